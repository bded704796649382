"""Racks wake, drain and fall asleep."""

from __future__ import annotations

import math

from ai_factory_gym.engine.layout import PREFILL, SEPARATE, Params, Pool, PoolInt, PoolSpec, State, Transition
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS

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

    Waking is always allowed, draining racks first (they are still warm). Sleeping is allowed once ``dwell_s`` have passed
    since racks were last woken, so that a noisy order cannot flap them. A pool may be emptied only where its minimum is 0;
    it then takes no new requests, and its last rack stays until every request bound for it has left.

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
    if target > 0:
        ints[PoolInt.CLOSED] = 0
    if target > awake:
        wanted = target - awake
        back = min(wanted, ints[PoolInt.DRAINING])
        if back > 0:
            ints[PoolInt.DRAINING] -= back
            ints[PoolInt.ACTIVE] += back
            _cancel_drains(state, row, pool, back)
        wake = min(wanted - back, ints[PoolInt.ASLEEP])
        if wake > 0:
            ints[PoolInt.ASLEEP] -= wake
            ints[PoolInt.WAKING] += wake
            _schedule(state, row, pool, WAKE, now_s + spec[PoolSpec.WAKE_S], wake)
            numbers[Pool.DWELL_UNTIL_S] = now_s + spec[PoolSpec.WAKE_S] + spec[PoolSpec.DWELL_S]
    elif target < awake and now_s >= numbers[Pool.DWELL_UNTIL_S]:
        if target == 0:
            ints[PoolInt.CLOSED] = 1
        sleep = min(awake - max(target, 1), ints[PoolInt.ACTIVE] - 1)
        if sleep > 0:
            ints[PoolInt.ACTIVE] -= sleep
            ints[PoolInt.DRAINING] += sleep
            _schedule(state, row, pool, DRAIN, now_s + spec[PoolSpec.DRAIN_S], sleep)


@kernel
def _cancel_drains(state: State, row: int, pool: int, racks: int) -> None:
    """Take ``racks`` out of the drain schedule, the latest first."""
    entries = state.transition[row, pool, DRAIN]
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
            entries = state.transition[row, pool, DRAIN]
            for entry in range(entries.shape[0]):
                if entries[entry, Transition.DONE_S] <= now_s + 1e-6:
                    ints[PoolInt.ASLEEP] += int(entries[entry, Transition.RACKS])
                    ints[PoolInt.DRAINING] -= int(entries[entry, Transition.RACKS])
                    entries[entry, Transition.DONE_S] = math.inf
                    entries[entry, Transition.RACKS] = math.inf
    for pool in range(pools):
        ints = state.pool_int[row, pool]
        if ints[PoolInt.CLOSED] and ints[PoolInt.WAKING] == 0 and _empty(params, state, row, pool):
            ints[PoolInt.ASLEEP] += ints[PoolInt.ACTIVE]
            ints[PoolInt.ACTIVE] = 0


@inlined_kernel
def next_rack_change_s(state: State, row: int, now_s: float) -> float:
    """Return when the next rack finishes waking or draining, s; inf when none is about to."""
    next_s = math.inf
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
    units = ints[PoolInt.ACTIVE] * spec[PoolSpec.UNITS_PER_RACK]
    if spec[PoolSpec.PHASE] == PREFILL:
        return bool(ints[PoolInt.BUSY] <= math.ceil(units - 1e-9))
    numbers = state.pool[row, pool]
    return bool(
        numbers[Pool.RESERVED] <= units * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS]
        and numbers[Pool.IN_FLIGHT] <= units * spec[PoolSpec.MAX_BATCH]
    )
