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
from ai_factory_gym.jit import kernel

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


@kernel
def _terms(site: Array, price: Array, scale_tokens: float, miss_weight: float, terms: Array) -> None:
    """Write ``tokens_per_watt``'s terms of every row into ``terms``."""
    for row in range(site.shape[0]):
        step = site[row]
        missed = step[Site.STEP_MISSED_TOKENS] + price[row] * step[Site.STEP_MISSED_REFERENCE_J]
        terms[row, 0] = step[Site.STEP_GOOD_TOKENS] / scale_tokens
        terms[row, 1] = -price[row] * step[Site.STEP_ENERGY_J] / scale_tokens
        terms[row, 2] = -miss_weight * missed / scale_tokens
        terms[row, 3] = -CAP_WEIGHT * (step[Site.STEP_CAP_VIOLATION_J] / (step[Site.CAP_W] * step[Site.STEP_S]))
        terms[row, 4] = -BRAKE_WEIGHT * step[Site.STEP_BRAKE_S] / step[Site.STEP_S]


def tokens_per_watt(site: Array, price: Array, spec: RewardSpec) -> Array:
    """Good tokens less priced energy and missed requests, in units of a step's nominal tokens.

    Args:
        site: float64[n, Site].
        price: Lambda of each row, good tokens per joule, float64[n].
        spec: Constants.

    Returns:
        float64[n, TERMS].
    """
    terms = np.empty((len(site), len(TERMS)))
    _terms(site, price, spec.scale_tokens, spec.miss_weight, terms)
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
