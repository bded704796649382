"""Binary min-heaps over two parallel arrays (keys and cohort slots); the caller keeps the size.

Equal keys are ordered by slot, so that the order of events never depends on how the heap was built.
"""

from __future__ import annotations

from ai_factory_gym.jit import inlined_kernel
from ai_factory_gym.engine.layout import Array


@inlined_kernel
def push(keys: Array, slots: Array, size: int, key: float, slot: int) -> None:
    """Insert ``(key, slot)`` into a heap of ``size`` entries; the caller adds one to its size."""
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        above = keys[parent]
        if above < key or (above == key and slots[parent] < slot):
            break
        keys[child] = above
        slots[child] = slots[parent]
        child = parent
    keys[child] = key
    slots[child] = slot


@inlined_kernel
def pop(keys: Array, slots: Array, size: int) -> int:
    """Remove the smallest entry of a heap of ``size >= 1`` entries and return its slot; the caller takes one off its size."""
    top = slots[0]
    last = size - 1
    key = keys[last]
    slot = slots[last]
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= last:
            break
        right = child + 1
        if right < last and (keys[right] < keys[child] or (keys[right] == keys[child] and slots[right] < slots[child])):
            child = right
        if key < keys[child] or (key == keys[child] and slot < slots[child]):
            break
        keys[parent] = keys[child]
        slots[parent] = slots[child]
        parent = child
    keys[parent] = key
    slots[parent] = slot
    return int(top)
