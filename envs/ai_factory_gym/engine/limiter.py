"""Before a segment: what keeps the draw from rising faster than its ramp limit allows.

The limiter is no brake: it slows a training job, then lets it wait; it lowers clocks, then the share of time in which iterations and
prefill run, by just what the limit asks for, anew in every segment, and lets go at once. While it does, the draw rises at its limit: what
the prediction of a segment's draw is above what comes of it is stored or burnt, lest the margin of one segment lower the limit of the
next. Racks that are ordered awake draw at once most of what they will ever draw, which no clock can make up for: they wait until the draw
has been raised for them.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.decode import PACE_S
from ai_factory_gym.engine.draw import (
    EVENTS_S,
    SURE,
    decode_may_draw_w,
    next_cap_change_s,
    note_arrivals,
    planned_draw_w,
    planned_serving_w,
    surely_below,
    with_training_w,
)
from ai_factory_gym.engine.layout import (
    COHORT,
    DECODE,
    PREFILL,
    SEPARATE,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteSpec,
    State,
)
from ai_factory_gym.engine.racks import next_rack_change_s, switching_w, wake_racks, waking_w
from ai_factory_gym.engine.smoothing import allowed_w
from ai_factory_gym.engine.supply import battery_help_w
from ai_factory_gym.engine.training import BY_LIMITER
from ai_factory_gym.jit import kernel

_BISECTIONS = 24

_TARGET = 1.0 - 1e-7
"""Share of what is allowed at which the limiter aims: rounding must not lead beyond it."""

_SOON_S = 5.0
"""Longest segment tried before those in which decode's draw is known beforehand, s."""

_AT_CAP = 0.999
"""Share of the cap from which on a draw that waits for a rack is not raised further: the limiter makes the room."""


@kernel
def ramp_horizon_s(params: Params, state: State, row: int, begin_s: float, end_s: float) -> float:
    """Return until when a segment may last, s, and start the racks there is room for.

    Where the draw is sure to stay below its limit the segment is not shortened; elsewhere it is as short as its draw is predictable.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        begin_s: Start of the segment, s.
        end_s: Latest end, s.
    """
    site = state.site[row]
    site[Site.RAMP_LIMITS] = 0.0
    site[Site.RAMP_RESERVE_W] = 0.0
    if site[Site.RAMP_ON] == 0.0 or params.site[SiteSpec.RAMP_UP_W_PER_S] == math.inf:
        return end_s
    _start_racks(params, state, row, begin_s)
    slice_end_s = end_s
    end_s = min(end_s, next_cap_change_s(state, row, begin_s), next_rack_change_s(state, row, begin_s))
    if site[Site.RAMP_RESERVE_W] > 0.0:
        end_s = min(end_s, begin_s + _SOON_S)
    limit_w = SURE * allowed_w(params, state, row, end_s - begin_s)
    if surely_below(params, state, row, begin_s, end_s, slice_end_s, limit_w):
        return end_s
    soon_s = begin_s + _SOON_S
    if soon_s < end_s:
        limit_w = SURE * allowed_w(params, state, row, _SOON_S)
        if surely_below(params, state, row, begin_s, soon_s, slice_end_s, limit_w):
            return soon_s
    return min(end_s, begin_s + (PACE_S if params.site[SiteSpec.RESOLUTION] == COHORT else EVENTS_S))


@kernel
def _start_racks(params: Params, state: State, row: int, now_s: float) -> None:
    """Wake the held racks for which there is room, and note what the next one needs.

    Room is what the draw is above the demand, or what the battery can add until the draw has risen by the rest. Once the draw has come to
    the cap it is raised no further: then a rack starts where clocks can make the room.
    """
    site = state.site[row]
    spec = params.site
    # What units at the site could give more is there at once.
    spare_w = site[Site.RAMP_SPARE_W] + max(0.0, site[Site.RUNNING_W] - site[Site.MADE_W])
    for pool in range(params.pool.shape[0]):
        shared = params.pool[pool, PoolSpec.COUPLING] != SEPARATE
        if shared and params.pool[pool, PoolSpec.PHASE] == DECODE:
            continue
        ints = state.pool_int[row, pool]
        partner = int(params.pool[pool, PoolSpec.PARTNER]) if shared else pool
        step_w = waking_w(state, row, pool)
        if shared:
            step_w += waking_w(state, row, partner)
        step_w *= site[Site.PUE]
        while min(ints[PoolInt.HELD], ints[PoolInt.ASLEEP]) > 0:
            if not _has_room(params, state, row, step_w, spare_w):
                break
            spare_w -= step_w
            wake_racks(params, state, row, pool, 1, now_s)
            ints[PoolInt.HELD] -= 1
            if shared:
                wake_racks(params, state, row, partner, 1, now_s)
                state.pool_int[row, partner, PoolInt.HELD] -= 1
        if min(ints[PoolInt.HELD], ints[PoolInt.ASLEEP]) > 0:
            site[Site.RAMP_RESERVE_W] = max(site[Site.RAMP_RESERVE_W], step_w)
        if ints[PoolInt.MOVING] > 0:
            # As long ahead as the draw takes to rise by what one of its racks needs.
            by_s = now_s + step_w / spec[SiteSpec.RAMP_UP_W_PER_S]
            switch_w = switching_w(params, state, row, pool, by_s) * site[Site.PUE]
            site[Site.RAMP_RESERVE_W] = max(site[Site.RAMP_RESERVE_W], switch_w)
    site[Site.RAMP_SPARE_W] = max(0.0, min(site[Site.RAMP_SPARE_W], spare_w))


@kernel
def _has_room(params: Params, state: State, row: int, step_w: float, spare_w: float) -> bool:
    """Tell whether a rack whose start adds ``step_w`` to the facility's draw may start, the draw being ``spare_w`` above the demand."""
    site = state.site[row]
    spec = params.site
    up_w_per_s = spec[SiteSpec.RAMP_UP_W_PER_S]
    missing_w = step_w * (1.0 - 1e-6) - spare_w - up_w_per_s * PACE_S
    if missing_w <= 0.0:
        return True
    if spec[SiteSpec.BATTERY_W] > 0.0 and site[Site.BATTERY_ORDER] == 0.0:
        bridged_j = missing_w * missing_w / (2.0 * up_w_per_s)
        held_j = site[Site.BATTERY_CHARGE_J] * spec[SiteSpec.BATTERY_EFFICIENCY]
        if battery_help_w(params, state, row, PACE_S) >= missing_w and held_j >= bridged_j:
            return True
    if site[Site.RAMP_W] < _AT_CAP * site[Site.CAP_W]:
        return False
    least_w = planned_draw_w(params, state, row, PACE_S, spec[SiteSpec.BRAKE_FLOOR], 1.0, 1.0)
    return bool(least_w + step_w <= site[Site.RAMP_W])


@kernel
def limit_ramp(params: Params, state: State, row: int, begin_s: float, end_s: float, slice_end_s: float) -> None:
    """Lower clocks and duties of a planned segment as far as the limit up asks for.

    Args:
        params: Site parameters.
        state: Engine state; ``plan_segment`` has set clocks and duties.
        row: Row.
        begin_s: Start of the segment, s.
        end_s: Its end, s.
        slice_end_s: End of the present slice of the tick, s.
    """
    site = state.site[row]
    spec = params.site
    if site[Site.RAMP_ON] == 0.0 or spec[SiteSpec.RAMP_UP_W_PER_S] == math.inf:
        return
    seconds = end_s - begin_s
    limit_w = _TARGET * allowed_w(params, state, row, seconds)
    note_arrivals(params, state, row, end_s, slice_end_s)
    if planned_draw_w(params, state, row, seconds, 1.0, 1.0, 1.0) <= limit_w:
        return
    site[Site.RAMP_LIMITS] = 1.0
    site[Site.RAMP_RESERVE_W] = math.inf
    floor = spec[SiteSpec.BRAKE_FLOOR]
    if spec[SiteSpec.TRAIN_RACKS] > 0.0 and _hold_training(params, state, row, seconds, limit_w, floor):
        return
    clock, prefill_duty, decode_duty = 1.0, 1.0, 1.0
    if planned_draw_w(params, state, row, seconds, floor, 1.0, 1.0) <= limit_w:
        clock = _largest(params, state, row, seconds, limit_w, 0, floor)
    elif planned_draw_w(params, state, row, seconds, floor, 1.0, 0.0) <= limit_w:
        clock = floor
        decode_duty = _largest(params, state, row, seconds, limit_w, 1, floor)
    else:
        clock = floor
        decode_duty = 0.0
        prefill_duty = _largest(params, state, row, seconds, limit_w, 2, floor)
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        duty = prefill_duty if params.pool[pool, PoolSpec.PHASE] == PREFILL else decode_duty
        numbers[Pool.CLOCK] = min(numbers[Pool.CLOCK], clock)
        numbers[Pool.DUTY] = min(numbers[Pool.DUTY], duty)


@kernel
def _hold_training(params: Params, state: State, row: int, seconds: float, limit_w: float, floor: float) -> bool:
    """Lower the clock of a training job, or let it wait, before anything that serves is touched; tell whether that is enough."""
    site = state.site[row]
    if site[Site.TRAIN_STALLED] > 0.0:
        return False
    own = site[Site.TRAIN_CLOCK]
    low = min(floor, own)
    # What serves does not change with the job's clock.
    serving_w, least_w = planned_serving_w(params, state, row, seconds, 1.0, 1.0, 1.0)
    if with_training_w(params, state, row, serving_w, least_w, low) > limit_w:
        site[Site.TRAIN_CLOCK] = low
        site[Site.TRAIN_STALLED] = BY_LIMITER
        return bool(with_training_w(params, state, row, serving_w, least_w, low) <= limit_w)
    high = own
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if with_training_w(params, state, row, serving_w, least_w, middle) <= limit_w:
            low = middle
        else:
            high = middle
    site[Site.TRAIN_CLOCK] = low
    return True


@kernel
def limit_decode(params: Params, state: State, row: int, begin_s: float, end_s: float) -> None:
    """Lower decode's clocks and duties further where more than predicted may come of a segment at request resolution.

    Args:
        params: Site parameters.
        state: Engine state; prefill has been advanced to ``end_s``.
        row: Row.
        begin_s: Start of the segment, s.
        end_s: Its end, s.
    """
    site = state.site[row]
    spec = params.site
    exact = spec[SiteSpec.RESOLUTION] == COHORT or end_s - begin_s > EVENTS_S + 1e-6
    if exact or site[Site.RAMP_ON] == 0.0 or spec[SiteSpec.RAMP_UP_W_PER_S] == math.inf:
        return
    limit_w = _TARGET * allowed_w(params, state, row, end_s - begin_s)
    if decode_may_draw_w(params, state, row, begin_s, end_s, 1.0, 1.0) <= limit_w:
        return
    site[Site.RAMP_LIMITS] = 1.0
    site[Site.RAMP_RESERVE_W] = math.inf
    floor = spec[SiteSpec.BRAKE_FLOOR]
    by_clock = decode_may_draw_w(params, state, row, begin_s, end_s, floor, 1.0) <= limit_w
    low, high = (floor, 1.0) if by_clock else (0.0, 1.0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        clock, duty = (middle, 1.0) if by_clock else (floor, middle)
        if decode_may_draw_w(params, state, row, begin_s, end_s, clock, duty) <= limit_w:
            low = middle
        else:
            high = middle
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.PHASE] == DECODE:
            numbers = state.pool[row, pool]
            numbers[Pool.CLOCK] = min(numbers[Pool.CLOCK], low if by_clock else floor)
            numbers[Pool.DUTY] = min(numbers[Pool.DUTY], 1.0 if by_clock else low)


@kernel
def _largest(params: Params, state: State, row: int, seconds: float, limit_w: float, which: int, floor: float) -> float:
    """Return the largest clock (``which`` 0), duty of decode (1, at the clock's floor) or duty of prefill (2, no decode) that fits."""
    low = floor if which == 0 else 0.0
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if which == 0:
            draw_w = planned_draw_w(params, state, row, seconds, middle, 1.0, 1.0)
        elif which == 1:
            draw_w = planned_draw_w(params, state, row, seconds, floor, 1.0, middle)
        else:
            draw_w = planned_draw_w(params, state, row, seconds, floor, middle, 0.0)
        if draw_w <= limit_w:
            low = middle
        else:
            high = middle
    return float(low)
