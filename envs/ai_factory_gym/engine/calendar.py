"""Decoding cohorts by when they finish: a calendar of days of the token clock, and a heap of those due today.

A day is one token long at request resolution and several at cohort resolution (``SiteSpec.DAYS_PER_TOKEN``).

A finish is a fixed point on the token clock. At request resolution a hundred thousand are ahead, and a heap over all of
them misses the cache at every level. Here a cohort lies in the list of its day, untouched until the clock gets there; only
one day's cohorts are put in order.
"""

from __future__ import annotations

from ai_factory_gym.engine.heap import pop, push
from ai_factory_gym.engine.layout import DAYS, NOBODY, Cohort, CohortInt, Params, PoolInt, SiteSpec, Stage, State
from ai_factory_gym.jit import inlined_kernel


@inlined_kernel
def schedule(params: Params, state: State, row: int, pool: int, slot: int, finish_g: float) -> None:
    """Enter a cohort that joins the batch and finishes when the pool's token clock stands at ``finish_g``."""
    ints = state.pool_int[row, pool]
    ints[PoolInt.SERVING] += 1
    day = int(finish_g * params.site[SiteSpec.DAYS_PER_TOKEN])
    if day <= ints[PoolInt.TODAY]:
        push(state.heap_key[row, pool, 1], state.heap_slot[row, pool, 1], ints[PoolInt.DUE], finish_g, slot)
        ints[PoolInt.DUE] += 1
    else:
        state.cohort[row, slot, Cohort.KEY] = finish_g
        first = state.calendar[row, pool]
        state.link[row, slot] = first[day % DAYS]
        first[day % DAYS] = slot


@inlined_kernel
def find_next(params: Params, state: State, row: int, pool: int) -> None:
    """Turn pages until the heap holds the next cohort to finish; the batch is not empty."""
    days_per_token = params.site[SiteSpec.DAYS_PER_TOKEN]
    ints = state.pool_int[row, pool]
    first = state.calendar[row, pool]
    link = state.link[row]
    keys = state.heap_key[row, pool, 1]
    slots = state.heap_slot[row, pool, 1]
    while ints[PoolInt.DUE] == 0:
        ints[PoolInt.TODAY] += 1
        place = ints[PoolInt.TODAY] % DAYS
        slot = first[place]
        first[place] = NOBODY
        due = 0
        # Collected first and put in order afterwards, so that fetching one cohort need not wait for another.
        while slot != NOBODY:
            after = link[slot]
            key = state.cohort[row, slot, Cohort.KEY]
            # Nothing changes, but a store that need not be waited for fetches what the finish is going to read.
            state.cohort_int[row, slot, CohortInt.STAGE] = Stage.DECODING
            if int(key * days_per_token) <= ints[PoolInt.TODAY]:
                keys[due] = key
                slots[due] = slot
                due += 1
            else:
                # A later round of the ring.
                link[slot] = first[place]
                first[place] = slot
            slot = after
        for size in range(1, due):
            push(keys, slots, size, keys[size], slots[size])
        ints[PoolInt.DUE] = due


@inlined_kernel
def take_next(state: State, row: int, pool: int) -> int:
    """Take the cohort that finishes first out of the heap and return its slot."""
    ints = state.pool_int[row, pool]
    slot = pop(state.heap_key[row, pool, 1], state.heap_slot[row, pool, 1], ints[PoolInt.DUE])
    ints[PoolInt.DUE] -= 1
    ints[PoolInt.SERVING] -= 1
    return slot
