"""Cohorts by when their turn comes: per pool a line of what is to be ready for decode, and one of what is in service.

A line is in order of a clock: seconds for what becomes ready, the service clock for prefill, the token clock for decode. A turn is
a fixed point on it. At request resolution tens of thousands are ahead, and a heap over all of them is deep and misses the cache at
every level. Here a cohort lies in the list of its day, untouched until the clock gets there. A day's cohorts are then put in order, on
the day's page; whoever comes to the line when it is his day already goes to a heap beside it. How long a day is says ``SiteSpec``: at
request resolution it brings about ten cohorts.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.heap import pop, push
from ai_factory_gym.engine.layout import DECODE_BYTES, NOBODY, Array, Cohort, PoolInt, State
from ai_factory_gym.engine.lowering import ask
from ai_factory_gym.jit import inlined_kernel, kernel

_PAGE = 48
"""Most cohorts that are put on a page: on more, a heap takes fewer comparisons."""

_LANES = 8
"""Numbers that are compared at once."""


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
        push(
            state.heap_key[row, pool, line], state.heap_slot[row, pool, line], ints[PoolInt.READY_DUE + line], key, slot
        )
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
def _put_in_order(keys: Array, slots: Array, begin: int, count: int) -> None:
    """Copy ``count`` entries from ``begin`` on to the end of the arrays, in order of key, then slot.

    The place of each is how many come before it. That is counted over all, eight at a time and without a branch: what no
    processor could foresee costs more than a few comparisons too many.
    """
    whole = (count + _LANES - 1) & -_LANES
    for entry in range(begin + count, begin + whole):
        keys[entry] = math.inf
    first = keys.shape[0] - count
    for entry in range(begin, begin + count):
        key = keys[entry]
        slot = slots[entry]
        before = 0
        for other in range(begin, begin + whole):
            before += int((keys[other] < key) | ((keys[other] == key) & (slots[other] < slot)))
        keys[first + before] = key
        slots[first + before] = slot


@inlined_kernel
def _turn_page(state: State, row: int, pool: int, line: int, days_per_unit: float) -> None:
    """Begin the next day of a line."""
    ints = state.pool_int[row, pool]
    first = state.calendar[row, pool, line]
    link = state.link[row]
    keys = state.heap_key[row, pool, line]
    slots = state.heap_slot[row, pool, line]
    ints[PoolInt.READY_AHEAD + line] = NOBODY
    ints[PoolInt.READY_TODAY + line] += 1
    today = ints[PoolInt.READY_TODAY + line]
    place = _place(first, today)
    slot = first[place]
    if slot == NOBODY:
        return
    first[place] = NOBODY
    begin = ints[PoolInt.READY_DUE + line]
    count = 0
    # Collected first and put in order afterwards, so that fetching one cohort need not wait for another.
    while slot != NOBODY:
        after = link[slot]
        key = state.cohort[row, slot, Cohort.KEY]
        if math.floor(key * days_per_unit) <= today:
            keys[begin + count] = key
            slots[begin + count] = slot
            count += 1
        else:
            # A later round of the ring.
            link[slot] = first[place]
            first[place] = slot
        slot = after
    crowded = days_per_unit >= 1.0 and count <= _PAGE and begin + 2 * count + _LANES <= keys.shape[0]
    if not crowded or ints[PoolInt.READY_PAGE + line] > 0:
        for size in range(max(1, begin), begin + count):
            push(keys, slots, size, keys[size], slots[size])
        ints[PoolInt.READY_DUE + line] = begin + count
    else:
        _put_in_order(keys, slots, begin, count)
        ints[PoolInt.READY_PAGE + line] = count
        ints[PoolInt.READY_AHEAD + line] = first[_place(first, today + 1)]


@inlined_kernel
def find_next(state: State, row: int, pool: int, line: int, days_per_unit: float) -> tuple[float, int]:
    """Turn pages until the next cohort of a line is found.

    Returns:
        When its turn comes, inf where the line is empty; and its place in the arrays of the line's heap.
    """
    ints = state.pool_int[row, pool]
    if ints[PoolInt.READY + line] == 0:
        return math.inf, 0
    while ints[PoolInt.READY_PAGE + line] + ints[PoolInt.READY_DUE + line] == 0:
        _turn_page(state, row, pool, line, days_per_unit)
    keys = state.heap_key[row, pool, line]
    page = ints[PoolInt.READY_PAGE + line]
    if page == 0:
        return float(keys[0]), 0
    place = keys.shape[0] - page
    if ints[PoolInt.READY_DUE + line] > 0:
        slots = state.heap_slot[row, pool, line]
        if keys[0] < keys[place] or (keys[0] == keys[place] and slots[0] < slots[place]):
            return float(keys[0]), 0
    return float(keys[place]), int(place)


@inlined_kernel
def take(state: State, row: int, pool: int, line: int, place: int) -> int:
    """Take the cohort that ``find_next`` has found at ``place`` out of its line and return its slot."""
    ints = state.pool_int[row, pool]
    slots = state.heap_slot[row, pool, line]
    ints[PoolInt.READY + line] -= 1
    ahead = ints[PoolInt.READY_AHEAD + line]
    if ahead != NOBODY:
        # With each cohort taken one of the next day is asked for; to follow their list all at once would be to wait for memory at every link.
        ask(state.cohort[row, ahead], DECODE_BYTES)
        ask(state.cohort_int[row, ahead], 0)
        ints[PoolInt.READY_AHEAD + line] = state.link[row, ahead]
    # A page never begins where the heap does: it leaves room for as many again.
    if place > 0:
        ints[PoolInt.READY_PAGE + line] -= 1
        return int(slots[place])
    due = ints[PoolInt.READY_DUE + line]
    ints[PoolInt.READY_DUE + line] = due - 1
    return pop(state.heap_key[row, pool, line], slots, due)


@kernel
def find_until(state: State, row: int, pool: int, line: int, key: float, days_per_unit: float) -> int:
    """Turn pages until all are found whose turn has come when the clock of a line stands at ``key``; return how many are found."""
    ints = state.pool_int[row, pool]
    last = math.floor(key * days_per_unit)
    found = ints[PoolInt.READY_PAGE + line] + ints[PoolInt.READY_DUE + line]
    while ints[PoolInt.READY + line] > found and ints[PoolInt.READY_TODAY + line] < last:
        _turn_page(state, row, pool, line, days_per_unit)
        found = ints[PoolInt.READY_PAGE + line] + ints[PoolInt.READY_DUE + line]
    return int(found)


@inlined_kernel
def place_of(state: State, row: int, pool: int, line: int, number: int) -> int:
    """Return where in a line's heap arrays the ``number``-th of those found is, in no order."""
    ints = state.pool_int[row, pool]
    beyond = number - ints[PoolInt.READY_DUE + line]
    if beyond < 0:
        return number
    return int(state.heap_key.shape[3] - ints[PoolInt.READY_PAGE + line] + beyond)


@kernel
def gather(state: State, row: int, pool: int, line: int) -> int:
    """Take all cohorts out of a line; return how many there are, the first entries of its heap's arrays, in no order."""
    ints = state.pool_int[row, pool]
    first = state.calendar[row, pool, line]
    keys = state.heap_key[row, pool, line]
    slots = state.heap_slot[row, pool, line]
    found = ints[PoolInt.READY_DUE + line]
    for at in range(keys.shape[0] - ints[PoolInt.READY_PAGE + line], keys.shape[0]):
        keys[found] = keys[at]
        slots[found] = slots[at]
        found += 1
    for place in range(first.shape[0]):
        slot = first[place]
        first[place] = NOBODY
        while slot != NOBODY:
            keys[found] = state.cohort[row, slot, Cohort.KEY]
            slots[found] = slot
            found += 1
            slot = state.link[row, slot]
    ints[PoolInt.READY_AHEAD + line] = NOBODY
    ints[PoolInt.READY_PAGE + line] = 0
    ints[PoolInt.READY_DUE + line] = 0
    ints[PoolInt.READY + line] = 0
    return int(found)
