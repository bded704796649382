"""Min-heaps with four children per node over two parallel arrays (keys and cohort slots); the caller keeps the size.

Four children halve the depth of a binary heap and lie side by side in memory: at request resolution a heap holds every
request in flight and most of its cost is waiting for memory. Equal keys are ordered by slot, so that the order of events
never depends on how the heap was built.
"""

from __future__ import annotations

from ai_factory_gym.engine.layout import Array
from ai_factory_gym.jit import inlined_kernel


@inlined_kernel
def push(keys: Array, slots: Array, size: int, key: float, slot: int) -> None:
    """Insert ``(key, slot)`` into a heap of ``size`` entries; the caller adds one to its size."""
    child = size
    while child > 0:
        parent = (child - 1) >> 2
        above = keys[parent]
        if above < key or (above == key and slots[parent] < slot):
            break
        keys[child] = above
        slots[child] = slots[parent]
        child = parent
    keys[child] = key
    slots[child] = slot


@inlined_kernel
def _lesser(keys: Array, slots: Array, one: int, other: int) -> int:
    """Return which of two entries comes first."""
    after = (keys[other] < keys[one]) | ((keys[other] == keys[one]) & (slots[other] < slots[one]))
    return other if after else one


@inlined_kernel
def pop(keys: Array, slots: Array, size: int) -> int:
    """Remove the smallest entry of a heap of ``size >= 1`` entries and return its slot; the caller takes one off its size."""
    top = slots[0]
    last = size - 1
    key = keys[last]
    slot = slots[last]
    parent = 0
    while True:
        first = 4 * parent + 1
        if first + 4 <= last:
            # Which child is the least cannot be foreseen: choices between numbers cost nothing when they were guessed wrong.
            left = _lesser(keys, slots, first, first + 1)
            child = _lesser(keys, slots, left, _lesser(keys, slots, first + 2, first + 3))
        elif first < last:
            child = first
            for other in range(first + 1, last):
                child = _lesser(keys, slots, child, other)
        else:
            break
        least = keys[child]
        if key < least or (key == least and slot < slots[child]):
            break
        keys[parent] = least
        slots[parent] = slots[child]
        parent = child
    keys[parent] = key
    slots[parent] = slot
    return int(top)
