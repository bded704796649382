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
def _least_of_some(keys: Array, slots: Array, first: int, end: int) -> int:
    """Return which of the entries from ``first`` up to ``end`` comes first."""
    least = first
    for other in range(first + 1, end):
        if keys[other] < keys[least] or (keys[other] == keys[least] and slots[other] < slots[least]):
            least = other
    return least


@inlined_kernel
def _least_of_four(keys: Array, slots: Array, first: int) -> int:
    """Return which of four entries comes first.

    Which one it is cannot be foreseen: choices between numbers, unlike branches, cost nothing when they were guessed wrong.
    """
    key_0, key_1, key_2, key_3 = keys[first], keys[first + 1], keys[first + 2], keys[first + 3]
    left = first + 1 if key_1 < key_0 else first
    right = first + 3 if key_3 < key_2 else first + 2
    left_key = key_1 if key_1 < key_0 else key_0
    right_key = key_3 if key_3 < key_2 else key_2
    if (key_0 == key_1) | (key_2 == key_3) | (left_key == right_key):
        return int(_least_of_some(keys, slots, first, first + 4))
    return right if right_key < left_key else left


@inlined_kernel
def pop(keys: Array, slots: Array, size: int) -> int:
    """Remove the smallest entry of a heap of ``size >= 1`` entries and return its slot; the caller takes one off its size."""
    top = slots[0]
    last = size - 1
    key = keys[last]
    slot = slots[last]
    hole = 0
    while True:
        first = 4 * hole + 1
        if first + 4 <= last:
            child = _least_of_four(keys, slots, first)
        elif first < last:
            child = _least_of_some(keys, slots, first, last)
        else:
            break
        least = keys[child]
        if key < least or (key == least and slot < slots[child]):
            break
        keys[hole] = least
        slots[hole] = slots[child]
        hole = child
    keys[hole] = key
    slots[hole] = slot
    return int(top)
