"""Loops over single kernels: called one by one from Python, the call would be all that is measured."""

from __future__ import annotations

from ai_factory_gym.engine.arrivals import admit
from ai_factory_gym.engine.calendar import find_next, schedule, take
from ai_factory_gym.engine.decode import advance_decode
from ai_factory_gym.engine.draw import pool_power_w
from ai_factory_gym.engine.heap import pop, push
from ai_factory_gym.engine.layout import PREFILL, SERVICE_LINE, Array, PoolSpec, SiteSpec
from ai_factory_gym.engine.prefill import advance_prefill
from ai_factory_gym.engine.reference import params_of, state_of
from ai_factory_gym.engine.rng import poisson
from ai_factory_gym.jit import kernel
from ai_factory_gym.physics.performance import decode_iteration_s


@kernel
def heap_through(keys: Array, slots: Array, values: Array) -> int:
    """Push every value and pop them all; returns the slot of the largest."""
    count = values.shape[0]
    for slot in range(count):
        push(keys, slots, slot, values[slot], slot)
    last = -1
    for size in range(count, 0, -1):
        last = pop(keys, slots, size)
    return last


@kernel
def calendar_through(params_table: Array, state_table: Array, pool: int, finishes: Array) -> int:
    """Enter cohorts that finish at these token clocks and take them out in order; returns the last one's slot."""
    params = params_of(params_table)
    state = state_of(state_table)
    days_per_token = params.site[SiteSpec.DAYS_PER_TOKEN]
    for slot in range(finishes.shape[0]):
        schedule(state, 0, pool, SERVICE_LINE, slot, finishes[slot], days_per_token)
    last = -1
    for _ in range(finishes.shape[0]):
        _, place = find_next(state, 0, pool, SERVICE_LINE, days_per_token)
        last = take(state, 0, pool, SERVICE_LINE, place)
    return last


@kernel
def admit_tick(params_table: Array, state_table: Array, begin_s: float, tick_s: float, path_start_s: float) -> None:
    """Create the work of a tick of the first row."""
    admit(params_of(params_table), state_of(state_table), 0, begin_s, tick_s, path_start_s)


@kernel
def advance_pool(params_table: Array, state_table: Array, pool: int, end_s: float) -> None:
    """Advance a pool of the first row to ``end_s``."""
    params = params_of(params_table)
    state = state_of(state_table)
    if params.pool[pool, PoolSpec.PHASE] == PREFILL:
        advance_prefill(params, state, 0, pool, end_s)
    else:
        advance_decode(params, state, 0, pool, end_s)


@kernel
def poisson_sum(stream: Array, mean: float, count: int) -> int:
    """Draw counts of one mean and return their sum."""
    total = 0
    for _ in range(count):
        total += poisson(stream, mean)
    return total


@kernel
def iterations_sum(coef: Array, batches: Array, context: float, clock: float) -> float:
    """Return the sum of the iteration times at these batches, s."""
    total = 0.0
    for index in range(batches.shape[0]):
        total += decode_iteration_s(coef, batches[index], context, clock)[0]
    return total


@kernel
def power_sum(params_table: Array, state_table: Array, pool: int, clocks: Array) -> float:
    """Return the sum of a pool's power at these clocks, half busy, W."""
    params = params_of(params_table)
    state = state_of(state_table)
    total = 0.0
    for index in range(clocks.shape[0]):
        total += pool_power_w(params, state, 0, pool, clocks[index], 0.5, 0.2, 0.3)
    return total
