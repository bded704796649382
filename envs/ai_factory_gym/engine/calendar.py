"""Cohorts by when their turn comes: per pool a line of what is to be ready for decode, and one of what is in service.

A line is in order of a clock: seconds for what becomes ready, the service clock for prefill, the token clock for decode. A turn is
a fixed point on it. At request resolution tens of thousands are ahead, and a heap over all of them is deep and misses the cache at
every level. Here a cohort lies in the list of its day, untouched until the clock gets there; only one day's cohorts are put in order.
How long a day is says ``SiteSpec``: at request resolution it brings a few cohorts.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.heap import pop, push
from ai_factory_gym.engine.layout import NOBODY, SERVICE_LINE, Array, Cohort, PoolInt, State
from ai_factory_gym.engine.lowering import ask
from ai_factory_gym.jit import inlined_kernel, kernel

_DECODE_BYTES = 8 * int(Cohort.KEY)
"""Where in a cohort's record is what decode reads of it."""


@inlined_kernel
def schedule(state: State, row: int, pool: int, line: int, slot: int, key: float, days_per_unit: float) -> None:
    """Enter a cohort whose turn comes when the clock of a pool's line stands at ``key``.

    Args:
        state: Engine state.
        row: Row.
        pool: Pool.
        line: READY_LINE or SERVICE_LINE.
        slot: The cohort.
        key: When its turn comes.
        days_per_unit: Days per unit of the line's clock; 0 to have all in one day, in order.
    """
    ints = state.pool_int[row, pool]
    day = math.floor(key * days_per_unit)
    if ints[PoolInt.READY + line] == 0:
        # Nobody is ahead: the days up to the next turn need not be gone through.
        ints[PoolInt.READY_TODAY + line] = max(ints[PoolInt.READY_TODAY + line], day)
    ints[PoolInt.READY + line] += 1
    if day <= ints[PoolInt.READY_TODAY + line]:
        push(state.heap_key[row, pool, line], state.heap_slot[row, pool, line], ints[PoolInt.READY_DUE + line], key, slot)
        ints[PoolInt.READY_DUE + line] += 1
    else:
        state.cohort[row, slot, Cohort.KEY] = key
        first = state.calendar[row, pool, line]
        place = _place(first, day)
        state.link[row, slot] = first[place]
        first[place] = slot


@inlined_kernel
def _place(first: Array, day: int) -> int:
    """Return where the list of a day begins; the ring of days, a power of two long, is gone through again and again."""
    return int(day) & (first.shape[0] - 1)


@inlined_kernel
def _turn_page(state: State, row: int, pool: int, line: int, days_per_unit: float) -> None:
    """Begin the next day of a line: its cohorts join those due, in order."""
    ints = state.pool_int[row, pool]
    first = state.calendar[row, pool, line]
    link = state.link[row]
    keys = state.heap_key[row, pool, line]
    slots = state.heap_slot[row, pool, line]
    ints[PoolInt.READY_TODAY + line] += 1
    today = ints[PoolInt.READY_TODAY + line]
    place = _place(first, today)
    slot = first[place]
    first[place] = NOBODY
    before = ints[PoolInt.READY_DUE + line]
    due = before
    # Collected first and put in order afterwards, so that fetching one cohort need not wait for another.
    while slot != NOBODY:
        after = link[slot]
        key = state.cohort[row, slot, Cohort.KEY]
        if math.floor(key * days_per_unit) <= today:
            keys[due] = key
            slots[due] = slot
            due += 1
        else:
            # A later round of the ring.
            link[slot] = first[place]
            first[place] = slot
        slot = after
    for size in range(max(1, before), due):
        push(keys, slots, size, keys[size], slots[size])
    ints[PoolInt.READY_DUE + line] = due
    if line == SERVICE_LINE:
        # Long ago was when these were looked at: what the next day brings is on its way from memory meanwhile.
        slot = first[_place(first, today + 1)]
        while slot != NOBODY:
            ask(state.cohort[row, slot], _DECODE_BYTES)
            ask(state.cohort_int[row, slot], 0)
            slot = link[slot]


@inlined_kernel
def find_next(state: State, row: int, pool: int, line: int, days_per_unit: float) -> None:
    """Turn pages until the heap of a line that is not empty begins with the next cohort."""
    ints = state.pool_int[row, pool]
    while ints[PoolInt.READY_DUE + line] == 0:
        _turn_page(state, row, pool, line, days_per_unit)


@kernel
def find_until(state: State, row: int, pool: int, line: int, key: float, days_per_unit: float) -> None:
    """Turn pages until the heap of a line holds all whose turn has come when its clock stands at ``key``."""
    ints = state.pool_int[row, pool]
    last = math.floor(key * days_per_unit)
    while ints[PoolInt.READY + line] > ints[PoolInt.READY_DUE + line] and ints[PoolInt.READY_TODAY + line] < last:
        _turn_page(state, row, pool, line, days_per_unit)


@inlined_kernel
def take_next(state: State, row: int, pool: int, line: int) -> int:
    """Take the cohort whose turn comes first out of the heap and return its slot."""
    ints = state.pool_int[row, pool]
    slot = pop(state.heap_key[row, pool, line], state.heap_slot[row, pool, line], ints[PoolInt.READY_DUE + line])
    ints[PoolInt.READY_DUE + line] -= 1
    ints[PoolInt.READY + line] -= 1
    return slot


@kernel
def gather(state: State, row: int, pool: int, line: int) -> int:
    """Take all cohorts out of a line; return how many there are, the first entries of its heap's arrays, in no order."""
    ints = state.pool_int[row, pool]
    first = state.calendar[row, pool, line]
    found = ints[PoolInt.READY_DUE + line]
    for place in range(first.shape[0]):
        slot = first[place]
        first[place] = NOBODY
        while slot != NOBODY:
            state.heap_key[row, pool, line, found] = state.cohort[row, slot, Cohort.KEY]
            state.heap_slot[row, pool, line, found] = slot
            found += 1
            slot = state.link[row, slot]
    ints[PoolInt.READY_DUE + line] = 0
    ints[PoolInt.READY + line] = 0
    return int(found)
