"""Linked lists of cohorts, first in first out: a pool keeps head and tail, ``State.link`` the rest."""

from __future__ import annotations

from ai_factory_gym.engine.layout import NOBODY, Cohort, State
from ai_factory_gym.jit import inlined_kernel, kernel


@inlined_kernel
def append(state: State, row: int, pool: int, head: int, tail: int, slot: int) -> None:
    """Append a cohort to one of a pool's linked lists (``head`` and ``tail`` are columns of PoolInt)."""
    ints = state.pool_int[row, pool]
    state.link[row, slot] = NOBODY
    if ints[tail] == NOBODY:
        ints[head] = slot
    else:
        state.link[row, ints[tail]] = slot
    ints[tail] = slot


@kernel
def insert(state: State, row: int, pool: int, head: int, tail: int, slot: int) -> None:
    """Put a cohort into a linked list that is in order of KEY, behind those with the same."""
    ints = state.pool_int[row, pool]
    key = state.cohort[row, slot, Cohort.KEY]
    if ints[tail] == NOBODY or state.cohort[row, ints[tail], Cohort.KEY] <= key:
        append(state, row, pool, head, tail, slot)
        return
    before = NOBODY
    after = int(ints[head])
    while state.cohort[row, after, Cohort.KEY] <= key:
        before = after
        after = int(state.link[row, after])
    state.link[row, slot] = after
    if before == NOBODY:
        ints[head] = slot
    else:
        state.link[row, before] = slot


@inlined_kernel
def take_first(state: State, row: int, pool: int, head: int, tail: int) -> int:
    """Remove and return the first cohort of a non-empty linked list."""
    ints = state.pool_int[row, pool]
    slot = int(ints[head])
    ints[head] = state.link[row, slot]
    if ints[head] == NOBODY:
        ints[tail] = NOBODY
    return slot
