"""Rewards by name. Each turns one step's totals into named terms; the reward is their sum.

``tokens_per_watt`` is Dinkelbach's linearisation of good tokens per joule: at the best ratio ``lambda`` the best policy of
``good - lambda x joules`` is the best policy of the ratio (Dinkelbach, "On nonlinear fractional programming", Management
Science 1967). A missed request costs more than the tokens and the energy it could have saved, so no request is worth
avoiding.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ai_factory_gym.engine.layout import Array, Site
from ai_factory_gym.errors import unknown
from ai_factory_gym.jit import inlined_kernel

MISS_WEIGHT = 9.0
"""Cost of a missed request in units of its own value (status: a study of the Edge site; holds the SLA)."""

CAP_WEIGHT = 20.0
"""Cost of a step whose whole energy is above the cap, in units of a step's nominal tokens (status: assumed)."""

BRAKE_WEIGHT = 1.0
"""Cost of a step spent under the power brake, same units (status: assumed)."""

TERMS = ("good_tokens", "energy", "missed", "cap", "brake")
"""Terms of every reward, in the order of their columns."""

TOKENS, PROFIT, CARBON = 0.0, 1.0, 2.0
"""What a reward counts: tokens less priced energy, US dollars, or tokens less priced carbon."""


class Reward(NamedTuple):
    """A reward.

    Attributes:
        kind: TOKENS, PROFIT or CARBON.
        price_share: Share of lambda at which it prices energy.
    """

    kind: float
    price_share: float


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {
        "tokens_per_watt": Reward(TOKENS, 1.0),
        "goodput": Reward(TOKENS, 0.0),
        "carbon": Reward(CARBON, 1.0),
        "profit": Reward(PROFIT, 0.0),
    }
)
"""Rewards by name. ``goodput`` counts good tokens less missed ones, whatever the energy. ``carbon`` is ``tokens_per_watt`` with every joule from
the grid weighed by the carbon intensity of its moment over the site's mean. ``profit`` is revenue less penalties, energy, wear and, once it is
over, the charge for a coincident peak, in units of a step's nominal revenue: it needs a site with a table ``[money]``; demand charge and capital
are in ``info`` only, the one because it is known at the end, the other because nothing changes it.

What a training block does is credited in the term ``energy`` (``[training] worth``, ``usd_per_rack_hour``): each job-second with its reference
energy, times its worth, at the price of energy (``goodput``: at lambda, though energy itself is free there); ``profit`` with what it pays. What is
lost is taken back. A job left alone costs nothing at a worth of 1, and one that is paused its idle draw."""


@inlined_kernel
def reward_terms(
    site: Array,
    price: float,
    scale_tokens: float,
    miss_weight: float,
    scored: bool,
    terms: Array,
    kind: float,
    scale_usd: float,
    joules_per_kg: float,
    credit_price: float,
    usd_per_job_s: float,
) -> float:
    """Write the terms of one row's step and return their sum: good tokens less priced energy and missed requests.

    Where answers may be shortened (lever ``effort``), a good token counts for what the answer is worth, not for its length.

    Args:
        site: float64[Site] of the row.
        price: Price of energy, good tokens per joule.
        scale_tokens: A step's nominal output tokens.
        miss_weight: See MISS_WEIGHT.
        scored: Whether the step began before the horizon. A later one only waits for the last fates and costs nothing
            itself: how many there are says nothing about the policy.
        terms: Written: float64[TERMS].
        kind: TOKENS, PROFIT or CARBON.
        scale_usd: A step's nominal revenue, USD.
        joules_per_kg: Energy that the grid gives for a kilogram of carbon dioxide in the mean, J/kg.
        credit_price: Worth of training work, good tokens per joule of its reference energy; 0 without a training block.
        usd_per_job_s: What a job-second of training pays, USD.
    """
    missed = site[Site.STEP_MISSED_TOKENS] + price * site[Site.STEP_MISSED_REFERENCE_J]
    terms[0] = site[Site.STEP_VALUE_TOKENS] / scale_tokens
    terms[1] = 0.0
    terms[2] = -miss_weight * missed / scale_tokens
    terms[3] = 0.0
    terms[4] = 0.0
    if scored:
        terms[1] = -price * (site[Site.STEP_ENERGY_J] + site[Site.STEP_BATTERY_LOSS_J]) / scale_tokens
        supply_w = site[Site.CAP_W] + site[Site.RUNNING_W]
        terms[3] = -CAP_WEIGHT * (site[Site.STEP_CAP_VIOLATION_J] / (supply_w * site[Site.STEP_S]))
        terms[4] = -BRAKE_WEIGHT * site[Site.STEP_BRAKE_S] / site[Site.STEP_S]
        if kind == CARBON:
            terms[1] = -price * joules_per_kg * site[Site.STEP_CARBON_KG] / scale_tokens
        if credit_price > 0.0:
            terms[1] += credit_price * site[Site.STEP_TRAIN_CREDIT_J] / scale_tokens
    if kind == PROFIT:
        terms[0] = site[Site.STEP_REVENUE_USD] / scale_usd
        terms[1] = 0.0
        if scored:
            costs_usd = site[Site.STEP_ENERGY_USD] + site[Site.STEP_WEAR_USD] + site[Site.STEP_COINCIDENT_USD]
            terms[1] = -costs_usd / scale_usd
            if usd_per_job_s > 0.0:
                terms[1] += usd_per_job_s * site[Site.STEP_TRAIN_S] / scale_usd
        terms[2] = -site[Site.STEP_PENALTY_USD] / scale_usd
    total = 0.0
    for term in range(terms.shape[0]):
        total += terms[term]
    return float(total)


def reward_of(name: str) -> Reward:
    """Return a reward by name.

    Raises:
        ConfigError: When there is no reward of that name.
    """
    if not isinstance(name, str) or name not in REWARDS:
        raise unknown("reward", name, list(REWARDS))
    return REWARDS[name]
