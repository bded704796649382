"""Handing the arrays of an engine to its kernels by reference: one address instead of fifty arrays.

numba takes a tuple of arrays apart: a kernel that is called with ``Params`` and ``State`` is called with six hundred words, the address,
the shape and the strides of every array, and from Python each array is first looked at and unpacked. Here all that is written down once,
in a table (``Reference``); kernels hand on its address, and look up in it what they use. Nothing in a kernel shows it:
``state.pool[row, pool]`` is compiled to the same load. Two things make it a faster one: axes that have the same length on every site
(columns) are constants, and an index is never negative (``Plain``), so that it need not be asked whether it counts from the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numba import config
from numba.np import numpy_support

from ai_factory_gym.engine.layout import (
    Array,
    CacheSpec,
    Cell,
    ClassSpec,
    Params,
    PoolSpec,
    Seen,
    SiteSpec,
    State,
    UnitSpec,
    allocate,
)
from ai_factory_gym.engine.lowering import Axes, Referred, found_at
from ai_factory_gym.physics.performance import DecodeCoefficients
from ai_factory_gym.physics.power import PowerCoefficients


class Reference:
    """Arrays and the table by which kernels find them. Copies and pickles of it make a table of their own.

    Args:
        arrays: A named tuple of arrays; they must not be replaced while the reference is in use.

    Attributes:
        handed: What a kernel is handed: the table; the arrays themselves where kernels are not compiled.

    Raises:
        TypeError: When an array is not as kernels take it to be.
    """

    __slots__ = ("_arrays", "handed")

    def __init__(self, arrays: tuple[Array, ...]) -> None:
        """Write the table."""
        self._refer(arrays)

    def _refer(self, arrays: tuple[Array, ...]) -> None:
        table = _table_of(arrays)
        self._arrays = arrays
        self.handed: Any = arrays if config.DISABLE_JIT else table  # type: ignore[attr-defined]

    def __getstate__(self) -> tuple[Array, ...]:
        """Leave the addresses behind: they mean nothing elsewhere."""
        return self._arrays

    def __setstate__(self, arrays: tuple[Array, ...]) -> None:
        """Write a table for the arrays of the copy."""
        self._refer(arrays)


def _table_of(arrays: tuple[Array, ...]) -> Array:
    """Return the table, int64[words]: of each array its address and its lengths."""
    referred = _REFERRED[type(arrays)]
    table = np.zeros(referred.words, dtype=np.int64)
    for array, (name, (expected, axes, place)) in zip(arrays, referred.arrays.items(), strict=True):
        fits = len(axes) == array.ndim and all(n in (None, own) for n, own in zip(axes, array.shape, strict=True))
        if not fits or not array.flags.c_contiguous or numpy_support.from_dtype(array.dtype) != expected.dtype:
            raise TypeError(f"{name}: {array.dtype} of shape {array.shape}; kernels expect {expected} of axes {axes}.")
        table[place] = array.ctypes.data
        table[place + 1 : place + 1 + array.ndim] = array.shape
    return table


def _varying(few: tuple[Array, ...], more: tuple[Array, ...]) -> dict[str, tuple[Any, Axes]]:
    """Return the numbers' type and the axes of arrays by name, told from examples for two sites that differ in every size."""
    return {
        name: (a.dtype, tuple(n if n == m else None for n, m in zip(a.shape, b.shape, strict=True)))
        for name, a, b in zip(few._fields, few, more, strict=True)  # type: ignore[attr-defined]
    }


_COEFFICIENTS = (len(DecodeCoefficients._fields), len(PowerCoefficients._fields))


def _example(size: int) -> State:
    """Return the state of a site of which everything is as many as ``size``."""
    sizes = [name for name in inspect.signature(allocate).parameters if name != "coefficients"]
    return allocate(**dict.fromkeys(sizes, size), coefficients=_COEFFICIENTS)  # type: ignore[arg-type]


_COLUMNS: dict[str, Axes] = {
    "site": (len(SiteSpec),),
    "pool": (None, len(PoolSpec)),
    "perf": (None, _COEFFICIENTS[0]),
    "power": (None, _COEFFICIENTS[1]),
    "cls": (None, len(ClassSpec)),
    "cell": (None, len(Cell)),
    "group_edges": (None,),
    "capacity": (2, None, None),
    "trace_time": (None,),
    "trace_prompt": (None,),
    "trace_output": (None,),
    "trace_cell": (None,),
    "cache": (None, len(CacheSpec)),
    "session": (None, None),
    "seen_begin": (None,),
    "seen": (None, len(Seen)),
    "unit": (None, len(UnitSpec)),
}
"""Axes of ``Params``; every field is named here."""

_WHOLE = ("trace_cell", "seen_begin")
"""Arrays of ``Params`` whose numbers are integers."""

_REFERRED: dict[type, Referred] = {}


def refer(arrays: type, axes: Mapping[str, tuple[Any, Axes]], look: Callable[[Any], Any]) -> None:
    """Make it known how a named tuple of arrays is handed to kernels.

    Args:
        arrays: The named tuple's type.
        axes: Of each of its arrays: type of its numbers, and axes.
        look: What a kernel calls to get the arrays from what it was handed.
    """
    _REFERRED[arrays] = Referred(arrays.__name__, axes)
    found_at(_REFERRED[arrays], look)


def params_of(handed: Any) -> Params:
    """Return in a kernel the ``Params`` whose ``Reference.handed`` it was given."""
    return cast(Params, handed)


def state_of(handed: Any) -> State:
    """Return in a kernel the ``State`` whose ``Reference.handed`` it was given."""
    return cast(State, handed)


refer(Params, {n: (np.int64 if n in _WHOLE else np.float64, _COLUMNS[n]) for n in Params._fields}, params_of)
refer(State, _varying(_example(1), _example(2)), state_of)
