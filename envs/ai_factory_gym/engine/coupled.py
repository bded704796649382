"""A prefill and a decode pool that live in the same racks.

With two kinds of GPU in a rack (``SHARED_POWER``) the two pools are separate but for the racks and their power. With one kind
(``SHARED_GPUS``, aggregated serving) the same GPUs do both, one at a time:

* Prefill comes first, up to ``PREFILL_LIMIT`` of the GPUs' time: what is left of it cannot be taken from decode, as passes of
  chunked prefill always carry the tokens of the batch too (the form is assumed).
* Decode has the rest. Of a share ``u`` of time in prefill it loses ``INTERFERENCE u``, the calibrated factor of
  ``physics.serving``: iterations run ``1 - INTERFERENCE u`` of the time, and TPOT is as much longer.
* GPUs draw prefill's power for ``u`` of the time and decode's for ``1 - u``. The racks' overhead and idle draw are the decode
  pool's; the prefill pool has only what prefill draws above them.

Racks of both kinds wake, drain and sleep together: the larger of the two orders holds. So does the lower of two power limits, which are
for the whole rack, and with shared GPUs the lower of two clock ceilings.
"""

from __future__ import annotations

from ai_factory_gym.engine.layout import (
    DECODE,
    PREFILL,
    SEPARATE,
    SHARED_GPUS,
    Array,
    Params,
    Pool,
    PoolSpec,
    State,
)
from ai_factory_gym.jit import inlined_kernel, kernel


@inlined_kernel
def takes_from_others(params: Params, pool: int) -> bool:
    """Tell whether a pool can be routed to: a decode pool on shared GPUs takes what was prefilled there, and nothing else."""
    return bool(params.pool[pool, PoolSpec.COUPLING] != SHARED_GPUS or params.pool[pool, PoolSpec.PHASE] == PREFILL)


@kernel
def stay_where_prefilled(params: Params, state: State, row: int, group: int) -> bool:
    """Set a group's decode shares where every request to its model is decoded where it was prefilled; tell whether that is so."""
    pools = params.pool.shape[0]
    model = group // (params.group_edges.shape[0] + 1)
    for pool in range(pools):
        mine = params.pool[pool, PoolSpec.PHASE] == DECODE and params.pool[pool, PoolSpec.MODEL] == model
        if mine and takes_from_others(params, pool):
            return False
    for pool in range(pools):
        state.weight[row, DECODE, group, pool] = 0.0
        partner = int(params.pool[pool, PoolSpec.PARTNER])
        if params.pool[pool, PoolSpec.PHASE] == DECODE and partner >= 0:
            state.weight[row, DECODE, group, pool] = state.weight[row, PREFILL, group, partner]
    return True


@inlined_kernel
def wanted_racks(params: Params, racks: Array, pool: int) -> int:
    """Return how many racks a pool, or the one in the same racks, is to have awake."""
    if params.pool[pool, PoolSpec.COUPLING] == SEPARATE:
        return int(racks[pool])
    return int(max(racks[pool], racks[int(params.pool[pool, PoolSpec.PARTNER])]))


@kernel
def couple_throttles(params: Params, state: State, row: int) -> None:
    """Give both pools of a pair the lower power limit, and the lower clock ceiling where they share their GPUs."""
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.COUPLING] == SEPARATE or params.pool[pool, PoolSpec.PHASE] == DECODE:
            continue
        prefill = state.pool[row, pool]
        decode = state.pool[row, int(params.pool[pool, PoolSpec.PARTNER])]
        limit_w = min(prefill[Pool.POWER_LIMIT_W], decode[Pool.POWER_LIMIT_W])
        prefill[Pool.POWER_LIMIT_W] = limit_w
        decode[Pool.POWER_LIMIT_W] = limit_w
        if params.pool[pool, PoolSpec.COUPLING] == SHARED_GPUS:
            ceiling = min(prefill[Pool.CLOCK_CEILING], decode[Pool.CLOCK_CEILING])
            prefill[Pool.CLOCK_CEILING] = ceiling
            decode[Pool.CLOCK_CEILING] = ceiling


@inlined_kernel
def time_left(params: Params, pool: int, share: float) -> float:
    """Return the share of time in which iterations run while prefill takes ``share`` of the GPUs' time."""
    return float(1.0 - params.pool[pool, PoolSpec.INTERFERENCE] * share)


@kernel
def leave_time_to_prefill(params: Params, state: State, row: int, pool: int, elapsed_s: float) -> None:
    """Shorten a decode pool's duty by what prefill, advanced already, took of the same GPUs in this segment."""
    if params.pool[pool, PoolSpec.COUPLING] != SHARED_GPUS:
        return
    busy = state.pool[row, int(params.pool[pool, PoolSpec.PARTNER]), Pool.BUSY_S] / elapsed_s
    share = min(1.0, busy) * params.pool[pool, PoolSpec.PREFILL_LIMIT]
    numbers = state.pool[row, pool]
    numbers[Pool.PREFILL_SHARE] = share
    numbers[Pool.DUTY] *= time_left(params, pool, share)


@kernel
def book_shared_time(params: Params, state: State, row: int, pool: int) -> None:
    """Stretch a decode pool's TPOT by prefill's share, and book all the time that prefill left as decode's.

    Iterations that are held up draw what iterations draw: so does ``physics.serving``, with which power was compared.
    """
    if params.pool[pool, PoolSpec.COUPLING] != SHARED_GPUS:
        return
    numbers = state.pool[row, pool]
    left = time_left(params, pool, numbers[Pool.PREFILL_SHARE])
    held = (1.0 - numbers[Pool.PREFILL_SHARE]) / left
    numbers[Pool.TPOT_S] /= left
    numbers[Pool.BUSY_S] *= held
    numbers[Pool.COMPUTE_S] *= held
    numbers[Pool.MEMORY_S] *= held
