"""Which racks ``reactive`` keeps awake: a plan, read at a slow average of the load, and what the cap has room for."""

from __future__ import annotations

import math
from typing import NamedTuple

from ai_factory_baselines.base import ACTIVE, DRAINING, WAKING
from ai_factory_baselines.plant import (
    OVERLOAD_W,
    Limits,
    Model,
    Phase,
    Work,
    dispatch,
    facility_watts,
    load_level,
)
from ai_factory_baselines.serve import (
    ANSWER,
    BEFORE,
    FAST,
    FRESH,
    LEAST,
    NOW,
    OWN_CLOCK,
    RISING,
    TOTAL,
    WANTED,
    Margins,
    Outlook,
    Room,
    predicted_watts,
    resting_watts,
    target_watts,
)
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W

CLOCK_SLACK = 0.05
"""Clock above the planned one that does not yet call for more racks (status: design choice)."""

TREND_GAIN = 0.15
"""Weight of the newest difference in the smoothed trend (status: design choice)."""


class RackPlan(NamedTuple):
    """Which racks of a phase are awake at which load.

    Attributes:
        levels: Load levels, float64[L].
        racks: Racks awake at each, float64[L, P].
        lead_steps: Steps the trend of the load goes on for: its lag, and the time a rack takes to wake.
    """

    levels: Array
    racks: Array
    lead_steps: float


class Pace(NamedTuple):
    """How racks follow the load.

    Attributes:
        lead: How much of the trend is added to the level of the slow load.
        wake_margin: Load above the expected one for which racks are woken.
        sleep_margin: Further load above that for which they are kept awake.
        hold: Steps the load must have been low before racks sleep.
        highest_clock: Clock above which the racks awake do not suffice.
    """

    lead: float
    wake_margin: float
    sleep_margin: float
    hold: float
    highest_clock: float


@inlined_kernel
def _planned(plan: RackPlan, level: float, pool: int) -> float:
    """Return the racks a plan has awake in a pool at a load level: linear in between, rounded up."""
    levels = plan.levels
    last = levels.shape[0] - 1
    racks = plan.racks[last, pool]
    if level <= levels[0]:
        racks = plan.racks[0, pool]
    elif level < levels[last]:
        place = 0
        while levels[place + 1] <= level:
            place += 1
        slope = (plan.racks[place + 1, pool] - plan.racks[place, pool]) / (levels[place + 1] - levels[place])
        racks = slope * (level - levels[place]) + plan.racks[place, pool]
    return float(math.ceil(racks - 1e-6))


@inlined_kernel
def _follow_plan(
    plan: RackPlan,
    pace: Pace,
    expected: float,
    urgent: float,
    members: Array,
    awake: Array,
    low_steps: Array,
    racks: Array,
) -> None:
    """Write the racks wanted awake in the pools of a phase.

    Args:
        plan: The plan of the phase.
        pace: How racks follow the load.
        expected: Load level for which racks wake.
        urgent: Load level that the racks awake cannot serve, for which they wake too; 0 when there is none.
        members: Pools of the phase, int64[P].
        awake: Racks awake or waking, float64[P].
        low_steps: Updated: for how many steps the load has been low, float64[pools].
        racks: Written: racks wanted, float64[pools].
    """
    kept = expected * (1.0 + pace.sleep_margin)
    for place in range(members.shape[0]):
        pool = members[place]
        up = _planned(plan, expected, place)
        keep = max(up, _planned(plan, kept, place))
        if urgent > 0.0:
            most = _planned(plan, urgent, place)
            up, keep = max(up, most), max(keep, most)
        low_steps[pool] = low_steps[pool] + 1.0 if keep < awake[place] else 0.0
        racks[pool] = keep if low_steps[pool] > pace.hold else max(awake[place], up)


@kernel
def wanted_racks(
    phase: Phase,
    limits: Limits,
    tilts: Array,
    plan: RackPlan,
    pace: Pace,
    members: Array,
    places: Array,
    loads: Array,
    work: Work,
    share: Array,
    trend: Array,
    low_steps: Array,
    racks: Array,
) -> None:
    """Write the racks wanted awake in the pools of a phase.

    The plan is read at the slow load, brought forward by its own lag and by the time a rack takes to wake. Only when the
    racks awake cannot serve the fast load within the planned clock is it read at that.

    Args:
        phase: The phase.
        limits: How close to its limits it is run.
        tilts: Tilts to try, float64[T, P].
        plan: The plan of the phase.
        pace: How racks follow the load.
        members: Pools of the phase, int64[P].
        places: Numbers of its pools, as in ``Room``.
        loads: As in ``Room``.
        work: Scratch.
        share: Scratch, float64[G, P].
        trend: Updated: change of the level per step, by phase, float64[2].
        low_steps: Updated: for how many steps the load has been low, float64[pools].
        racks: Written: racks wanted, float64[pools].
    """
    total, awake, clock = places[TOTAL], places[RISING], places[OWN_CLOCK]
    now, before, fast = loads[NOW], loads[BEFORE], loads[FAST]
    level = load_level(phase, now, total, work)
    change = level - load_level(phase, before, total, work)
    trend[phase.kind] += TREND_GAIN * (change - trend[phase.kind])
    expected = max(0.0, level + pace.lead * trend[phase.kind] * plan.lead_steps) * (1.0 + pace.wake_margin)
    watts = dispatch(phase, limits, fast, awake, tilts, work, share, clock)
    highest = 0.0
    for place in range(awake.shape[0]):
        if awake[place] > 0.0:
            highest = max(highest, clock[place])
    urgent = 0.0
    if watts >= OVERLOAD_W or highest > pace.highest_clock:
        urgent = load_level(phase, fast, total, work) * (1.0 + pace.wake_margin)
    _follow_plan(plan, pace, expected, urgent, members, awake, low_steps, racks)


@kernel
def keep_affordable(model: Model, margins: Margins, load: Array, braked: float, room: Room) -> None:
    """Wake no more racks at a time than the cap has room for while they wake: lower those wanted.

    Args:
        model: The site.
        margins: How close to its limits it is run.
        load: Load of the next step, float64[C, G, 6].
        braked: How often the brake was on lately.
        room: Scratch: holds the observation, the racks wanted, and the comfortable answer to the load.
    """
    pools, racks, fresh = room.seen.pools, room.pools[WANTED], room.pools[FRESH]
    some = False
    for pool in range(racks.shape[0]):
        there = racks[pool] - pools[ACTIVE, pool] - pools[WAKING, pool] - pools[DRAINING, pool]
        fresh[pool] = max(0.0, there)
        some = some or fresh[pool] > 0.0
    if not some:
        return
    resting_w = resting_watts(model.racks, model.power, pools, pools[WAKING])
    outlook = Outlook(load, LEAST, resting_w, 0.0, False, margins.power_sigmas)
    prompts, tokens = room.share[PREFILL][ANSWER], room.share[DECODE][ANSWER]
    now_w = predicted_watts(model, outlook, prompts, tokens, room.clock[ANSWER], room)
    target_w = target_watts(room.places[PREFILL], room.seen.site, margins.control_interval_s, braked)
    room_w = max(0.0, target_w - now_w)
    facility_share = facility_watts(model.site, 1e6) / 1e6
    # Decode first: a rack there serves more.
    for back in range(racks.shape[0]):
        pool = racks.shape[0] - 1 - back
        extra_w = (model.power[pool, POWER_WAKE_RACK_W] - model.power[pool, POWER_SLEEP_RACK_W]) * facility_share
        afford = min(fresh[pool], float(math.floor(room_w / extra_w)))
        racks[pool] -= fresh[pool] - afford
        room_w -= afford * extra_w


__all__ = ["CLOCK_SLACK", "Pace", "RackPlan", "keep_affordable", "wanted_racks"]
