"""The coolant loop: how warm it is, and what IT power its limit allows."""

from __future__ import annotations

from ai_factory_gym.engine.layout import Params, Site, SiteSpec, State
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.cooling import coolable_w, coolant_after_c

LOOK_AHEAD_S = 60.0
"""The site's own control keeps the IT power that would bring the coolant to its limit in this time, s: no segment is longer. Draw that is
kept at it comes ever closer to the limit and does not pass it (status: design choice)."""


@inlined_kernel
def heat_allows_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return the IT power that keeps the coolant's limit for ``seconds`` from now on, W."""
    spec = params.site
    site = state.site[row]
    return float(
        coolable_w(
            site[Site.COOLANT_C],
            spec[SiteSpec.COOLANT_LIMIT_C],
            spec[SiteSpec.HEAT_W_PER_K],
            site[Site.OUTDOOR_C],
            spec[SiteSpec.LOOP_S],
            seconds,
        )
    )


@kernel
def warm_coolant(params: Params, state: State, row: int, it_w: float, elapsed: float) -> None:
    """Book a segment's heat, and engage the brake when it has been more than the limit allows for the brake's reaction time."""
    spec = params.site
    site = state.site[row]
    site[Site.COOLANT_C] = coolant_after_c(
        site[Site.COOLANT_C],
        it_w,
        spec[SiteSpec.HEAT_W_PER_K],
        site[Site.OUTDOOR_C],
        spec[SiteSpec.LOOP_S],
        elapsed,
    )
    site[Site.COOLANT_PEAK_C] = max(site[Site.COOLANT_PEAK_C], site[Site.COOLANT_C])
    if site[Site.BRAKED] > 0.0:
        site[Site.HEAT_LIMITED_S] += site[Site.SCORING] * site[Site.HEAT_BINDS] * elapsed
    if it_w <= site[Site.HEAT_LIMIT_W]:
        site[Site.HEAT_OVER_S] = 0.0
        return
    site[Site.HEAT_OVER_S] += elapsed
    if site[Site.BRAKED] == 0.0 and site[Site.HEAT_OVER_S] >= spec[SiteSpec.BRAKE_REACTION_S] - 1e-9:
        site[Site.BRAKED] = 1.0
        site[Site.BRAKED_AT_S] = site[Site.TIME_S] + elapsed
