"""Which parts of a pool's racks work: the replicas that faults of single GPUs or of NVLink domains have taken, while the rest of the rack serves.

Racks have no names here, so a part that is out is known by its entry in ``State.fault``: of which pool it is, how many replicas it has taken, and
whether its rack is awake. Each is taken to be in a rack of its own. A pool's awake racks are then alike: each has the working share of the
replicas it was built with, and servers, KV memory, batch places, links, caches and the draw of its GPUs are that share.

Racks with a part that is out are the first to fall asleep and the last to wake, and do not change their role (assumed: what an operator would do
who has a choice). Where everything is in order the share is exactly one, and multiplying by it changes nothing.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.layout import (
    PREFILL,
    SHARED_GPUS,
    Fault,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    State,
)
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.power import POWER_GPUS


@inlined_kernel
def working_share(state: State, row: int, pool: int) -> float:
    """Return the share of the replicas of a pool's awake racks that is in service; exactly 1.0 where none is out."""
    return float(1.0 - state.pool[row, pool, Pool.OUT_SHARE])


@inlined_kernel
def units_per_rack(params: Params, state: State, row: int, pool: int) -> float:
    """Return the prefill servers or decode replicas that serve in an awake rack of a pool, on average over its awake racks."""
    return float(params.pool[pool, PoolSpec.UNITS_PER_RACK] * working_share(state, row, pool))


@inlined_kernel
def home_of(params: Params, pool: int) -> int:
    """Return the pool under whose number parts of a pool's racks are out: of two pools on the same GPUs the prefill pool."""
    if params.pool[pool, PoolSpec.COUPLING] == SHARED_GPUS and params.pool[pool, PoolSpec.PHASE] != PREFILL:
        return int(params.pool[pool, PoolSpec.PARTNER])
    return pool


@inlined_kernel
def is_out(state: State, row: int, index: int, home: int) -> bool:
    """Tell whether an event has taken a part of a rack of a pool that is not back."""
    event = state.fault[row, index]
    return bool(event[Fault.REPLICAS] > 0.0 and int(event[Fault.WHERE]) == home)


@kernel
def parts_out(state: State, row: int, home: int, awake: float) -> tuple[int, float]:
    """Return how many parts of the awake (1) or resting (0) racks of a pool are out, and their replicas."""
    count = 0
    replicas = 0.0
    for index in range(state.fault.shape[1]):
        if state.fault[row, index, Fault.TIME_S] == math.inf:
            break
        if is_out(state, row, index, home) and state.fault[row, index, Fault.AWAKE] == awake:
            count += 1
            replicas += state.fault[row, index, Fault.REPLICAS]
    return count, replicas


@kernel
def count_out(params: Params, state: State, row: int, pool: int) -> None:
    """Work out what is out of service of a pool, and of the one on the same GPUs."""
    home = home_of(params, pool)
    _, awake = parts_out(state, row, home, 1.0)
    _, resting = parts_out(state, row, home, 0.0)
    for turn in range(2):
        member = home
        if turn == 1:
            if params.pool[home, PoolSpec.COUPLING] != SHARED_GPUS:
                return
            member = int(params.pool[home, PoolSpec.PARTNER])
        numbers = state.pool[row, member]
        ints = state.pool_int[row, member]
        racks = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
        built = racks * params.pool[member, PoolSpec.REPLICAS_PER_RACK]
        # Two parts may be out in one rack, and other racks leave: at least one replica of racks that are awake serves.
        numbers[Pool.OUT_SHARE] = min(awake, built - 1.0) / built if racks > 0 else 0.0
        numbers[Pool.OUT_REPLICAS] = awake + resting


@kernel
def follow_racks(params: Params, state: State, row: int) -> None:
    """Note which parts that are out are in racks that have fallen asleep or woken, where the number of awake racks has changed."""
    for pool in range(params.pool.shape[0]):
        ints = state.pool_int[row, pool]
        awake = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
        left = ints[PoolInt.AWAKE_SEEN] - awake
        if left == 0:
            continue
        ints[PoolInt.AWAKE_SEEN] = awake
        if home_of(params, pool) == pool:
            resting, _ = parts_out(state, row, pool, 0.0)
            # Racks that rest beyond those which rest with a part out already: that many more may, no more.
            room = ints[PoolInt.WAKING] + ints[PoolInt.ASLEEP] - resting
            if awake == 0:
                _move(state, row, pool, 0.0, state.fault.shape[1])
            elif left > 0:
                _move(state, row, pool, 0.0, min(left, room))
            else:
                _move(state, row, pool, 1.0, -room)
        count_out(params, state, row, pool)


@kernel
def _move(state: State, row: int, home: int, awake: float, parts: int) -> None:
    """Let up to ``parts`` parts that are out be in racks that are awake (1) or rest (0) from now on."""
    for index in range(state.fault.shape[1]):
        if parts <= 0 or state.fault[row, index, Fault.TIME_S] == math.inf:
            return
        if is_out(state, row, index, home) and state.fault[row, index, Fault.AWAKE] == 1.0 - awake:
            state.fault[row, index, Fault.AWAKE] = awake
            parts -= 1


@kernel
def go_with_rack(
    params: Params, state: State, row: int, pool: int, awake: float, racks: int, place: float, index: int
) -> float:
    """Let what was out in a rack that goes out of service go with it, and return its replicas; 0 where all of the rack worked.

    It is neither in an awake rack nor in one that rests until the rack is back, or it is repaired itself.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: A pool of the rack.
        awake: 1 where the rack is awake, 0 where it rests.
        racks: Racks in that state, itself among them.
        place: In [0, 1): which of them it is.
        index: The event that takes it.
    """
    home = home_of(params, pool)
    number = int(place * racks)
    replicas = 0.0
    for other in range(state.fault.shape[1]):
        part = state.fault[row, other]
        if part[Fault.TIME_S] == math.inf:
            break
        if is_out(state, row, other, home) and part[Fault.AWAKE] == awake:
            # All that is out in the only rack goes with it.
            if number == 0 or racks == 1:
                part[Fault.AWAKE] = -1.0 - index
                replicas += part[Fault.REPLICAS]
            number -= 1
    return min(replicas, params.pool[pool, PoolSpec.REPLICAS_PER_RACK])


@kernel
def come_with_rack(params: Params, state: State, row: int, pool: int, index: int) -> None:
    """Let what is still out in a rack that is back, and rests, be out in a rack that rests; ``index`` is the event that had taken the rack."""
    for member in (pool, int(params.pool[pool, PoolSpec.PARTNER])):
        if member < 0:
            continue
        home = home_of(params, member)
        for other in range(state.fault.shape[1]):
            if state.fault[row, other, Fault.TIME_S] == math.inf:
                break
            if is_out(state, row, other, home) and state.fault[row, other, Fault.AWAKE] == -1.0 - index:
                state.fault[row, other, Fault.AWAKE] = 0.0
        count_out(params, state, row, member)


@kernel
def gpus_out(params: Params, state: State, row: int) -> float:
    """Return the GPUs that are out of service in racks that are not."""
    total = 0.0
    for pool in range(params.pool.shape[0]):
        if home_of(params, pool) == pool:
            per_replica = params.power[pool, POWER_GPUS] / params.pool[pool, PoolSpec.REPLICAS_PER_RACK]
            total += per_replica * state.pool[row, pool, Pool.OUT_REPLICAS]
    return total
