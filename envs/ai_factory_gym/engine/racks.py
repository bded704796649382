"""Racks wake, drain, fall asleep, and change between prefill and decode.

A rack that changes its role drains, loads the model in the layout of its new pool, and serves there. While it loads it counts among the
waking racks of its new pool, so that every rack of a pair of pools is in one state of one of them at any time.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.layout import (
    PREFILL,
    SEPARATE,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteSpec,
    State,
    Transition,
)
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W, gpu_power_w, rack_power_w

WAKE, DRAIN = 0, 1


@kernel
def _schedule(state: State, row: int, pool: int, kind: int, done_s: float, racks: int) -> None:
    """Note that ``racks`` finish waking or draining at ``done_s``."""
    entries = state.transition[row, pool, kind]
    for entry in range(entries.shape[0]):
        if entries[entry, Transition.DONE_S] == math.inf:
            entries[entry, Transition.DONE_S] = done_s
            entries[entry, Transition.RACKS] = racks
            return
    # Every entry taken: join the last one scheduled rather than lose the racks.
    last = 0
    for entry in range(entries.shape[0]):
        if entries[entry, Transition.DONE_S] > entries[last, Transition.DONE_S]:
            last = entry
    entries[last, Transition.RACKS] += racks
    entries[last, Transition.DONE_S] = max(entries[last, Transition.DONE_S], done_s)


@kernel
def order_racks(params: Params, state: State, row: int, pool: int, target: int, now_s: float) -> None:
    """Ask for ``target`` racks awake in a pool.

    Waking is always allowed, draining racks first (they are still warm; those that are to change their role are none of the pool's any
    more). Sleeping is allowed once ``dwell_s`` have passed since racks were last woken, so that a noisy order cannot flap them. A pool
    may be emptied only where its minimum is 0; it then takes no new requests, and its last rack stays until every request bound for it
    has left.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: Pool.
        target: Racks wanted awake, between the pool's minimum and its racks.
        now_s: Time, s.
    """
    spec = params.pool[pool]
    ints = state.pool_int[row, pool]
    numbers = state.pool[row, pool]
    awake = ints[PoolInt.ACTIVE] + ints[PoolInt.WAKING]
    ints[PoolInt.HELD] = 0
    if target > 0:
        ints[PoolInt.CLOSED] = 0
    if target > awake:
        wanted = target - awake
        back = min(wanted, ints[PoolInt.DRAINING] - ints[PoolInt.MOVING])
        if back > 0:
            _call_back(state, row, pool, back)
        wake = min(wanted - back, ints[PoolInt.ASLEEP])
        if wake > 0:
            if keeps_ramp(params, state, row):
                ints[PoolInt.HELD] = wake
            else:
                wake_racks(params, state, row, pool, wake, now_s)
    elif target < awake and now_s >= numbers[Pool.DWELL_UNTIL_S]:
        if target == 0:
            ints[PoolInt.CLOSED] = 1
        sleep = min(awake - max(target, 1), ints[PoolInt.ACTIVE] - 1)
        if sleep > 0:
            ints[PoolInt.ACTIVE] -= sleep
            ints[PoolInt.DRAINING] += sleep
            _schedule(state, row, pool, DRAIN, now_s + spec[PoolSpec.DRAIN_S], sleep)


@inlined_kernel
def keeps_ramp(params: Params, state: State, row: int) -> bool:
    """Tell whether the draw from the grid has a limit of how fast it may rise, so that racks wait for it before they start."""
    spec = params.site
    limited = spec[SiteSpec.RAMP] > 0.0 and spec[SiteSpec.RAMP_UP_W_PER_S] < math.inf
    return bool(limited and state.site[row, Site.RAMP_ON] > 0.0)


@inlined_kernel
def waking_w(state: State, row: int, pool: int) -> float:
    """Return what a sleeping rack draws more once it wakes, W of IT."""
    power = state.power[row, pool]
    return float(power[POWER_WAKE_RACK_W] - power[POWER_SLEEP_RACK_W])


@kernel
def switching_w(params: Params, state: State, row: int, pool: int, by_s: float) -> float:
    """Return what those racks of a pool that change their role by ``by_s`` will draw more than idle, W of IT; 0 where there are none."""
    moving = state.pool_int[row, pool, PoolInt.MOVING]
    if moving == 0:
        return 0.0
    due = 0.0
    for entry in range(state.transition.shape[3]):
        if state.transition[row, pool, DRAIN, entry, Transition.DONE_S] <= by_s:
            due += state.transition[row, pool, DRAIN, entry, Transition.RACKS]
    other = int(params.pool[pool, PoolSpec.SIBLING])
    power = state.power[row, pool]
    idle_w = rack_power_w(power, gpu_power_w(power, 1.0, 0.0, 0.0, 0.0))
    return float(min(due, moving) * max(0.0, state.power[row, other, POWER_WAKE_RACK_W] - idle_w))


@kernel
def wake_racks(params: Params, state: State, row: int, pool: int, racks: int, now_s: float) -> None:
    """Begin to wake ``racks`` sleeping racks."""
    spec = params.pool[pool]
    ints = state.pool_int[row, pool]
    ints[PoolInt.ASLEEP] -= racks
    ints[PoolInt.WAKING] += racks
    _schedule(state, row, pool, WAKE, now_s + spec[PoolSpec.WAKE_S], racks)
    state.pool[row, pool, Pool.DWELL_UNTIL_S] = now_s + spec[PoolSpec.WAKE_S] + spec[PoolSpec.DWELL_S]


@kernel
def _may_switch(params: Params, state: State, row: int, pool: int, now_s: float) -> bool:
    """Tell whether the ramp limit has room for the racks of a pool that are to change their role now, should there be any."""
    site = state.site[row]
    step_w = switching_w(params, state, row, pool, now_s + 1e-6) * site[Site.PUE]
    if site[Site.RAMP_SPARE_W] < step_w * (1.0 - 1e-6):
        return False
    site[Site.RAMP_SPARE_W] = max(0.0, site[Site.RAMP_SPARE_W] - step_w)
    return True


@kernel
def racks_staying(state: State, row: int, pool: int) -> int:
    """Return how many racks a pool has, in any state, those left out that are to change their role."""
    ints = state.pool_int[row, pool]
    there = ints[PoolInt.ACTIVE] + ints[PoolInt.WAKING] + ints[PoolInt.DRAINING] + ints[PoolInt.ASLEEP]
    return int(there + ints[PoolInt.FAILED] - ints[PoolInt.MOVING])


@inlined_kernel
def least_racks(params: Params, pool: int) -> int:
    """Return how many racks a pool keeps whatever role is ordered: its minimum, and at least one."""
    return max(1, int(params.pool[pool, PoolSpec.MIN_ACTIVE]))


@kernel
def order_role(params: Params, state: State, row: int, pool: int, target: int, now_s: float) -> None:
    """Ask for ``target`` racks in a pool that has a sibling; the sibling has the others of the two.

    Racks that were to leave the pool and have not left come back at once. Others come from the sibling: first its racks that are asleep,
    which change their role in their sleep (they load the model when they wake), then those that drain already, then active ones, which
    drain. Racks that were woken, or came from the other role, stay for ``dwell_s``, so that a noisy order cannot flap them; waking ones
    are not taken. What is not possible now is done when it is, if it is still ordered.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: A pool with a sibling.
        target: Racks wanted in it; each of the two pools keeps ``least_racks``.
        now_s: Time, s.
    """
    other = int(params.pool[pool, PoolSpec.SIBLING])
    here = racks_staying(state, row, pool) + state.pool_int[row, other, PoolInt.MOVING]
    there = racks_staying(state, row, other) + state.pool_int[row, pool, PoolInt.MOVING]
    wanted = max(target, least_racks(params, pool))
    wanted = min(wanted, here + there - least_racks(params, other))
    if wanted > here:
        _fetch(params, state, row, other, pool, wanted - here, now_s)
    elif wanted < here:
        _fetch(params, state, row, pool, other, here - wanted, now_s)


@kernel
def _fetch(params: Params, state: State, row: int, giver: int, taker: int, racks: int, now_s: float) -> None:
    """Move up to ``racks`` racks from one pool of a pair to the other (see ``order_role``)."""
    gives = state.pool_int[row, giver]
    takes = state.pool_int[row, taker]
    back = min(racks, takes[PoolInt.MOVING])
    if back > 0:
        takes[PoolInt.MOVING] -= back
        _call_back(state, row, taker, back)
        racks -= back
    asleep = min(racks, gives[PoolInt.ASLEEP])
    gives[PoolInt.ASLEEP] -= asleep
    takes[PoolInt.ASLEEP] += asleep
    racks -= asleep
    leaving = min(racks, gives[PoolInt.DRAINING] - gives[PoolInt.MOVING])
    gives[PoolInt.MOVING] += leaving
    racks -= leaving
    if now_s < state.pool[row, giver, Pool.DWELL_UNTIL_S]:
        return
    drained = min(racks, gives[PoolInt.ACTIVE] - least_racks(params, giver))
    if drained > 0:
        gives[PoolInt.ACTIVE] -= drained
        gives[PoolInt.DRAINING] += drained
        gives[PoolInt.MOVING] += drained
        _schedule(state, row, giver, DRAIN, now_s + params.pool[giver, PoolSpec.DRAIN_S], drained)


@kernel
def _leave(params: Params, state: State, row: int, pool: int, racks: int, now_s: float) -> None:
    """Take racks that have drained out of service: to the sibling as many as are to change their role, the others to sleep."""
    ints = state.pool_int[row, pool]
    ints[PoolInt.DRAINING] -= racks
    moving = min(racks, ints[PoolInt.MOVING])
    ints[PoolInt.ASLEEP] += racks - moving
    if moving > 0:
        other = int(params.pool[pool, PoolSpec.SIBLING])
        ready_s = now_s + params.pool[pool, PoolSpec.SWITCH_S]
        ints[PoolInt.MOVING] -= moving
        state.pool_int[row, other, PoolInt.WAKING] += moving
        _schedule(state, row, other, WAKE, ready_s, moving)
        dwell_s = params.pool[other, PoolSpec.DWELL_S]
        numbers = state.pool[row, other]
        numbers[Pool.DWELL_UNTIL_S] = max(numbers[Pool.DWELL_UNTIL_S], ready_s + dwell_s)


@kernel
def _call_back(state: State, row: int, pool: int, racks: int) -> None:
    """Put draining racks back into service."""
    ints = state.pool_int[row, pool]
    ints[PoolInt.DRAINING] -= racks
    ints[PoolInt.ACTIVE] += racks
    cancel(state, row, pool, DRAIN, racks)


@kernel
def cancel(state: State, row: int, pool: int, kind: int, racks: int) -> None:
    """Take ``racks`` out of the schedule of wakes or of drains, the latest first."""
    entries = state.transition[row, pool, kind]
    while racks > 0:
        last = -1
        for entry in range(entries.shape[0]):
            if entries[entry, Transition.DONE_S] < math.inf:
                if last < 0 or entries[entry, Transition.DONE_S] > entries[last, Transition.DONE_S]:
                    last = entry
        if last < 0:
            return
        taken = min(racks, int(entries[last, Transition.RACKS]))
        racks -= taken
        entries[last, Transition.RACKS] -= taken
        if entries[last, Transition.RACKS] <= 0.0:
            entries[last, Transition.DONE_S] = math.inf
            entries[last, Transition.RACKS] = math.inf


@inlined_kernel
def advance_racks(params: Params, state: State, row: int, now_s: float) -> None:
    """Finish the wakes and drains that are due.

    A prefill rack leaves when its requests are done. A decode rack leaves when its drain time is over and the racks that
    stay can hold every request in flight: what is left on it moves there. Racks that two pools share leave when both can spare
    them; one loop per kind of change keeps the two pools' counts equal.
    """
    pools = params.pool.shape[0]
    for pool in range(pools):
        ints = state.pool_int[row, pool]
        if ints[PoolInt.WAKING] > 0:
            entries = state.transition[row, pool, WAKE]
            for entry in range(entries.shape[0]):
                if entries[entry, Transition.DONE_S] <= now_s + 1e-6:
                    ints[PoolInt.ACTIVE] += int(entries[entry, Transition.RACKS])
                    ints[PoolInt.WAKING] -= int(entries[entry, Transition.RACKS])
                    entries[entry, Transition.DONE_S] = math.inf
                    entries[entry, Transition.RACKS] = math.inf
    for pool in range(pools):
        ints = state.pool_int[row, pool]
        if ints[PoolInt.DRAINING] > 0 and _may_leave(params, state, row, pool):
            if keeps_ramp(params, state, row) and not _may_switch(params, state, row, pool, now_s):
                continue
            entries = state.transition[row, pool, DRAIN]
            for entry in range(entries.shape[0]):
                if entries[entry, Transition.DONE_S] <= now_s + 1e-6:
                    _leave(params, state, row, pool, int(entries[entry, Transition.RACKS]), now_s)
                    entries[entry, Transition.DONE_S] = math.inf
                    entries[entry, Transition.RACKS] = math.inf
    for pool in range(pools):
        ints = state.pool_int[row, pool]
        if ints[PoolInt.CLOSED] and ints[PoolInt.WAKING] == 0 and _empty(params, state, row, pool):
            ints[PoolInt.ASLEEP] += ints[PoolInt.ACTIVE]
            ints[PoolInt.ACTIVE] = 0


@inlined_kernel
def next_rack_change_s(state: State, row: int, now_s: float) -> float:
    """Return when the next rack finishes waking or draining, fails or is repaired, s; inf when none is about to."""
    next_s = math.inf
    if state.site[row, Site.FAULTS] > 0.0 and state.site[row, Site.NEXT_FAULT_S] > now_s + 1e-6:
        next_s = state.site[row, Site.NEXT_FAULT_S]
    for pool in range(state.transition.shape[1]):
        ints = state.pool_int[row, pool]
        if ints[PoolInt.WAKING] > 0 or ints[PoolInt.DRAINING] > 0:
            for kind in (WAKE, DRAIN):
                for entry in range(state.transition.shape[3]):
                    done_s = state.transition[row, pool, kind, entry, Transition.DONE_S]
                    if now_s + 1e-6 < done_s < next_s:
                        next_s = done_s
    return float(next_s)


@inlined_kernel
def _may_leave(params: Params, state: State, row: int, pool: int) -> bool:
    """Tell whether draining racks may fall asleep, as far as every pool in them is concerned."""
    if not _fits_without_draining(params, state, row, pool):
        return False
    if params.pool[pool, PoolSpec.COUPLING] == SEPARATE:
        return True
    return bool(_fits_without_draining(params, state, row, int(params.pool[pool, PoolSpec.PARTNER])))


@inlined_kernel
def _empty(params: Params, state: State, row: int, pool: int) -> bool:
    """Tell whether no request is bound for a pool, nor for the one in the same racks."""
    if state.pool_int[row, pool, PoolInt.ASSIGNED] > 0:
        return False
    if params.pool[pool, PoolSpec.COUPLING] == SEPARATE:
        return True
    return bool(state.pool_int[row, int(params.pool[pool, PoolSpec.PARTNER]), PoolInt.ASSIGNED] == 0)


@kernel
def _fits_without_draining(params: Params, state: State, row: int, pool: int) -> bool:
    """Tell whether the active racks alone can carry what the pool is serving."""
    ints = state.pool_int[row, pool]
    spec = params.pool[pool]
    # All that is out of service may be in the racks that stay.
    awake = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
    units = ints[PoolInt.ACTIVE] * spec[PoolSpec.UNITS_PER_RACK]
    units -= awake * spec[PoolSpec.UNITS_PER_RACK] * state.pool[row, pool, Pool.OUT_SHARE]
    if spec[PoolSpec.PHASE] == PREFILL:
        return bool(ints[PoolInt.SERVING] <= math.ceil(units - 1e-9))
    numbers = state.pool[row, pool]
    return bool(
        numbers[Pool.RESERVED] <= units * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS]
        and numbers[Pool.IN_FLIGHT] <= units * spec[PoolSpec.MAX_BATCH]
    )
