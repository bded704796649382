"""Asking for the memory of a row before it is its turn.

A control step of a row reads and writes some fifty kilobytes, a few lines of a cache here and there. With a hundred rows they are no
longer in the processor's own caches when the row's turn comes, and every line would be waited for by itself. Asked for together while
another row runs, they come side by side. Nothing is changed by it, and nothing depends on it.
"""

from __future__ import annotations

from ai_factory_gym.engine.layout import (
    DECODE,
    HISTOGRAM_BINS,
    SERVICE_LINE,
    Array,
    Cell,
    ClassSpec,
    Params,
    PoolSpec,
    SiteInt,
    Span,
    State,
)
from ai_factory_gym.engine.lowering import ask
from ai_factory_gym.jit import inlined_kernel, kernel

FEW_ROWS = 16
"""As many rows stay in the caches anyway: asking would take time and bring nothing."""

_LINE = 64
"""Bytes of a line of a cache."""

_MOST_SLOTS = 512
"""Slots asked for at most: those used first, which are used again first. At request resolution all of them would push out one another."""

_FREED = 128
"""Entries of the stack of free slots, to either side of its top, that a step uses."""

_DUE = 8
"""First entries of a heap."""


@inlined_kernel
def _ask_for(array: Array, begin: int, end: int) -> None:
    """Ask for the entries from ``begin`` to ``end`` of the first axis of a contiguous array, as far as there are any."""
    entry = array.strides[0]
    for offset in range(max(0, begin) * entry, min(end, array.shape[0]) * entry, _LINE):
        ask(array, offset)


@kernel
def ask_for_row(params: Params, state: State, row: int, minute: int) -> None:
    """Ask for what the next control step of a row, which begins in ``minute``, is going to read and write.

    What is the same in every step, and of the histograms the bins that have been counted in before.
    """
    # Read further below, when it will have come.
    _ask_for(state.span[row], 0, state.span.shape[1])
    ints = state.site_int[row]
    used = min(ints[SiteInt.HIGH_WATER], _MOST_SLOTS)
    free = ints[SiteInt.FREE]
    _ask_for(state.cohort[row], 0, used)
    _ask_for(state.cohort_int[row], 0, used)
    _ask_for(state.link[row], 0, used)
    _ask_for(state.free[row], free - _FREED, free + _FREED)
    _ask_for(state.site[row], 0, state.site.shape[1])
    _ask_for(state.pool[row], 0, state.pool.shape[1])
    _ask_for(state.pool_int[row], 0, state.pool_int.shape[1])
    _ask_for(state.cls[row], 0, state.cls.shape[1])
    _ask_for(state.perf[row], 0, state.perf.shape[1])
    _ask_for(state.power[row], 0, state.power.shape[1])
    _ask_for(state.weight[row], 0, state.weight.shape[1])
    _ask_for(state.carry[row], 0, state.carry.shape[1])
    _ask_for(state.draw[row], 0, state.draw.shape[1])
    _ask_for(state.owed[row], 0, state.owed.shape[1])
    _ask_for(state.released[row], 0, state.released.shape[1])
    _ask_for(state.cap_steps[row], 0, state.cap_steps.shape[1])
    _ask_for(state.world[row], minute, minute + 1)
    _ask_for(state.hazard[row], minute, minute + 1)
    for cls in range(params.cls.shape[0]):
        _ask_for(state.rate[row, cls], minute, minute + 1)
    for cell in range(params.cell.shape[0]):
        if params.cls[int(params.cell[cell, Cell.CLASS]), ClassSpec.DEFERRABLE] > 0.0:
            _ask_for(state.backlog[row, cell], 0, state.backlog.shape[2])
    for pool in range(params.pool.shape[0]):
        for line in range(2):
            _ask_for(state.heap_key[row, pool, line], 0, _DUE)
            _ask_for(state.heap_slot[row, pool, line], 0, _DUE)
        if params.pool[pool, PoolSpec.PHASE] == DECODE:
            _ask_for(state.calendar[row, pool, SERVICE_LINE], 0, state.calendar.shape[3])
    for cls in range(params.cls.shape[0]):
        for kind in range(2):
            span = state.span[row, cls, kind]
            _ask_for(state.histogram[row, cls, kind], HISTOGRAM_BINS - span[Span.BELOW_TOP], span[Span.END])
