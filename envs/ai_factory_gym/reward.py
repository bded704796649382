"""Rewards by name. Each turns one step's totals into named terms; the reward is their sum.

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


TERMS = ("good_tokens", "energy", "missed", "cap", "brake")
"""Terms of every reward, in the order of their columns."""

RUNNING_TERMS = np.array([TERMS.index(name) for name in ("energy", "cap", "brake")])
"""Columns of what running costs, whatever becomes of the requests."""

_USED = np.array(
    [
        Site.STEP_GOOD_TOKENS,
        Site.STEP_ENERGY_J,
        Site.STEP_MISSED_TOKENS,
        Site.STEP_MISSED_REFERENCE_J,
        Site.STEP_CAP_VIOLATION_J,
        Site.STEP_BRAKE_S,
        Site.STEP_S,
        Site.CAP_W,
    ]
)


def tokens_per_watt(site: Array, price: Array, spec: RewardSpec) -> Array:
    """Good tokens less priced energy and missed requests, in units of a step's nominal tokens.

    Args:
        site: float64[n, Site].
        price: Lambda of each row, good tokens per joule, float64[n].
        spec: Constants.

    Returns:
        float64[n, TERMS].
    """
    good, energy_j, missed, missed_j, violation_j, brake_s, step_s, cap_w = site.T[_USED]
    terms = np.empty((len(site), len(TERMS)))
    terms[:, 0] = good / spec.scale_tokens
    terms[:, 1] = -price * energy_j / spec.scale_tokens
    terms[:, 2] = -spec.miss_weight * (missed + price * missed_j) / spec.scale_tokens
    terms[:, 3] = -CAP_WEIGHT * (violation_j / (cap_w * step_s))
    terms[:, 4] = -BRAKE_WEIGHT * brake_s / step_s
    return terms


def goodput(site: Array, price: Array, spec: RewardSpec) -> Array:
    """Good tokens less missed ones, whatever the energy; arguments as ``tokens_per_watt``."""
    return tokens_per_watt(site, np.zeros(len(price)), spec)


REWARDS: Mapping[str, Callable[[Array, Array, RewardSpec], Array]] = {
    "tokens_per_watt": tokens_per_watt,
    "goodput": goodput,
}


def reward_function(name: str) -> Callable[[Array, Array, RewardSpec], Array]:
    """Return a reward by name.

    Raises:
        ConfigError: When there is none of that name.
    """
    if not isinstance(name, str) or name not in REWARDS:
        raise unknown("reward", name, list(REWARDS))
    return REWARDS[name]
