"""Rewards by name. Each turns one step's totals into a number and its named terms.

``tokens_per_watt`` is Dinkelbach's linearisation of good tokens per joule: at the best ratio ``lambda`` the best policy of
``good - lambda x joules`` is the best policy of the ratio (Dinkelbach, "On nonlinear fractional programming", Management
Science 1967). A missed request costs more than the tokens and the energy it could have saved, so no request is worth
avoiding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.engine.layout import Array, Site
from ai_factory_gym.errors import unknown

MISS_WEIGHT = 9.0
"""Cost of a missed request in units of its own value (status: a study of the Edge site; holds the SLA)."""

CAP_WEIGHT = 20.0
"""Cost of a step whose whole energy is above the cap, in units of a step's nominal tokens (status: assumed)."""

BRAKE_WEIGHT = 1.0
"""Cost of a step spent under the power brake, same units (status: assumed)."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Constants of a reward.

    Attributes:
        name: Which reward.
        lambda_tokens_per_joule: Price of energy in good tokens per joule.
        scale_tokens: A step's nominal output tokens.
        miss_weight: See MISS_WEIGHT.
    """

    name: str
    lambda_tokens_per_joule: float
    scale_tokens: float
    miss_weight: float = MISS_WEIGHT


Terms = dict[str, Array]


def _constraints(site: Array) -> Terms:
    """Return the terms every reward shares: energy above the cap and time under the brake."""
    violation = site[:, Site.STEP_CAP_VIOLATION_J] / (site[:, Site.CAP_W] * site[:, Site.STEP_S])
    return {
        "cap": -CAP_WEIGHT * violation,
        "brake": -BRAKE_WEIGHT * site[:, Site.STEP_BRAKE_S] / site[:, Site.STEP_S],
    }


def tokens_per_watt(site: Array, price: Array, spec: RewardSpec) -> Terms:
    """Good tokens less priced energy and missed requests, in units of a step's nominal tokens.

    Args:
        site: float64[n, Site].
        price: Lambda of each row, good tokens per joule, float64[n].
        spec: Constants.

    Returns:
        Terms, float64[n] each.
    """
    missed = site[:, Site.STEP_MISSED_TOKENS] + price * site[:, Site.STEP_MISSED_REFERENCE_J]
    return {
        "good_tokens": site[:, Site.STEP_GOOD_TOKENS] / spec.scale_tokens,
        "energy": -price * site[:, Site.STEP_ENERGY_J] / spec.scale_tokens,
        "missed": -spec.miss_weight * missed / spec.scale_tokens,
        **_constraints(site),
    }


def goodput(site: Array, price: Array, spec: RewardSpec) -> Terms:
    """Good tokens less missed ones, whatever the energy; arguments as ``tokens_per_watt``."""
    return {
        "good_tokens": site[:, Site.STEP_GOOD_TOKENS] / spec.scale_tokens,
        "energy": np.zeros(len(site)),
        "missed": -spec.miss_weight * site[:, Site.STEP_MISSED_TOKENS] / spec.scale_tokens,
        **_constraints(site),
    }


REWARDS: Mapping[str, Callable[[Array, Array, RewardSpec], Terms]] = {
    "tokens_per_watt": tokens_per_watt,
    "goodput": goodput,
}
TERMS = ("good_tokens", "energy", "missed", "cap", "brake")


def reward_function(name: str) -> Callable[[Array, Array, RewardSpec], Terms]:
    """Return a reward by name.

    Raises:
        ConfigError: When there is none of that name.
    """
    if name not in REWARDS:
        raise unknown("reward", name, list(REWARDS))
    return REWARDS[name]
