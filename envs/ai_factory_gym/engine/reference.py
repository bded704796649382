"""Handing the arrays of an engine to its kernels by reference: one address instead of fifty arrays.

numba takes a tuple of arrays apart: a kernel that is called with ``Params`` and ``State`` is called with six hundred words, the address,
the shape and the strides of every array, and from Python each array is first looked at and unpacked. Here all that is written down once,
in a table (``Reference``); kernels hand on its address, and look up in it what they use. Nothing in a kernel shows it:
``state.pool[row, pool]`` is compiled to the same load. Two things make it a faster one: axes that have the same length on every site
(columns) are constants, and an index is never negative (``Plain``), so that it need not be asked whether it counts from the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils, typing
from numba.core.extending import lower_builtin, lower_getattr_generic, models, register_model, type_callable
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.np import numpy_support
from numba.np.arrayobj import getitem_array_tuple, getitem_arraynd_intp, populate_array, setitem_array

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
    allocate,
)
from ai_factory_gym.physics.performance import DecodeCoefficients
from ai_factory_gym.physics.power import PowerCoefficients

Arrays = TypeVar("Arrays", bound=tuple[Array, ...])

Axes = tuple[int | None, ...]
"""Lengths of the axes of an array; None is one that depends on the site."""


class Plain(types.Array):  # type: ignore[misc]
    """An array whose indices never count from its end: a negative one is an error that nothing finds but ``NUMBA_BOUNDSCHECK=1``."""

    def copy(self, dtype: Any = None, ndim: Any = None, layout: Any = None, readonly: Any = None) -> Plain:
        """Return the type of a part of it."""
        return Plain(
            self.dtype if dtype is None else dtype,
            self.ndim if ndim is None else ndim,
            self.layout if layout is None else layout,
            not self.mutable if readonly is None else readonly,
        )


register_model(Plain)(models.ArrayModel)


def _without_sign(context: Any, builder: Any, index_type: Any, index: Any) -> tuple[Any, Any]:
    """Return an index, or a tuple of indices, as numba takes it that none of them is negative."""
    if isinstance(index_type, types.BaseTuple):
        parts = [
            _without_sign(context, builder, part_type, part)
            for part_type, part in zip(index_type.types, cgutils.unpack_tuple(builder, index), strict=True)
        ]
        whole = types.Tuple([part_type for part_type, _ in parts])
        return whole, context.make_tuple(builder, whole, [part for _, part in parts])
    if isinstance(index_type, types.Integer) and index_type.signed:
        return types.uintp, context.cast(builder, index, index_type, types.intp)
    return index_type, index


@lower_builtin(operator.getitem, Plain, types.Integer)  # type: ignore[untyped-decorator]
@lower_builtin(operator.getitem, Plain, types.BaseTuple)  # type: ignore[untyped-decorator]
def _get(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Compile ``array[index]``."""
    index_type, index = _without_sign(context, builder, signature.args[1], arguments[1])
    unsigned = typing.signature(signature.return_type, signature.args[0], index_type)
    get = getitem_array_tuple if isinstance(index_type, types.BaseTuple) else getitem_arraynd_intp
    return get(context, builder, unsigned, (arguments[0], index))


@lower_builtin(operator.setitem, Plain, types.Integer, types.Any)  # type: ignore[untyped-decorator]
@lower_builtin(operator.setitem, Plain, types.BaseTuple, types.Any)  # type: ignore[untyped-decorator]
def _set(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Compile ``array[index] = value``."""
    index_type, index = _without_sign(context, builder, signature.args[1], arguments[1])
    unsigned = typing.signature(signature.return_type, signature.args[0], index_type, signature.args[2])
    return setitem_array(context, builder, unsigned, (arguments[0], index, arguments[2]))


class Referred(types.Type):  # type: ignore[misc]
    """What a kernel knows of a table beforehand.

    Attributes:
        arrays: By name: the type of the array, its axes, and the place of its address in the table; its lengths follow.
    """

    def __init__(self, name: str, arrays: dict[str, tuple[str, Axes]]) -> None:
        """Give every array its place; ``arrays`` has the type of its numbers and its axes by name."""
        self.arrays: dict[str, tuple[Plain, Axes, int]] = {}
        self.words = 0
        for field, (dtype, axes) in arrays.items():
            of = Plain(numpy_support.from_dtype(np.dtype(dtype)), len(axes), "C")
            self.arrays[field] = of, axes, self.words
            self.words += 1 + len(axes)
        super().__init__(name=f"Referred({name})")


register_model(Referred)(models.OpaqueModel)


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    """The fields of a table are arrays."""

    key = Referred

    def generic_resolve(self, referred: Referred, name: str) -> Any:
        return referred.arrays[name][0] if name in referred.arrays else None


@lower_getattr_generic(Referred)  # type: ignore[untyped-decorator]
def _look_up(context: Any, builder: Any, referred: Referred, table: Any, name: str) -> Any:
    """Compile the look-up of an array: its address and those lengths that depend on the site are read from the table."""
    array_type, axes, place = referred.arrays[name]
    word = ir.IntType(64)
    words = builder.bitcast(table, word.as_pointer())

    def read(at: int) -> Any:
        loaded = builder.load(cgutils.gep(builder, words, at))
        # No kernel writes to a table: what was read once need not be read again.
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    array = context.make_array(array_type)(context, builder)
    shape = [read(place + 1 + axis) if length is None else word(length) for axis, length in enumerate(axes)]
    itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    strides = [word(itemsize)]
    for length in shape[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    address = builder.inttoptr(read(place), context.get_data_type(array_type.dtype).as_pointer())
    populate_array(array, address, shape, strides, word(itemsize), None)
    return array._getvalue()


class Reference:
    """Arrays and the table by which kernels find them. Copies and pickles of it make a table of their own.

    Args:
        arrays: A named tuple of arrays; they must not be replaced while the reference is in use.

    Raises:
        TypeError: When an array is not as kernels take it to be.
    """

    __slots__ = ("_arrays", "_table")

    def __init__(self, arrays: tuple[Array, ...]) -> None:
        """Write the table."""
        self._arrays = arrays
        self._table = _table_of(arrays)

    def __getstate__(self) -> tuple[Array, ...]:
        """Leave the addresses behind: they mean nothing elsewhere."""
        return self._arrays

    def __setstate__(self, arrays: tuple[Array, ...]) -> None:
        """Write a table for the arrays of the copy."""
        self._arrays = arrays
        self._table = _table_of(arrays)

    @property
    def handed(self) -> Any:
        """What a kernel is handed: the table; the arrays themselves where kernels are not compiled."""
        return self._arrays if config.DISABLE_JIT else self._table


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


def _reader(referred: Referred, tuple_type: type[Arrays]) -> Callable[[Any], Arrays]:
    """Return the function that makes in a kernel, of what it was handed, what stands for the named tuple."""

    def look(handed: Any) -> Arrays:
        return cast(Arrays, handed)

    @type_callable(look)  # type: ignore[untyped-decorator]
    def _type(context: Any) -> Any:
        return lambda handed: referred

    @lower_builtin(look, types.Array)  # type: ignore[untyped-decorator]
    def _lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.bitcast(table.data, context.get_value_type(referred))

    return look


def _varying(few: tuple[Array, ...], more: tuple[Array, ...]) -> dict[str, tuple[Any, Axes]]:
    """Return the numbers' type and the axes of arrays by name, told from examples for two sites that differ in every size."""
    return {
        name: (a.dtype, tuple(n if n == m else None for n, m in zip(a.shape, b.shape, strict=True)))
        for name, a, b in zip(few._fields, few, more, strict=True)  # type: ignore[attr-defined]
    }


_COEFFICIENTS = (len(DecodeCoefficients._fields), len(PowerCoefficients._fields))


def _example(size: int) -> State:
    """Return the state of a site of which everything is as many as ``size``."""
    sizes = ("rows", "pools", "classes", "groups", "cells", "slots", "minutes", "backlog_bins", "transitions", "cap_steps")
    sizes += ("copies", "trace_requests", "log_lines", "faults")
    return allocate(**dict.fromkeys(sizes, size), coefficients=_COEFFICIENTS, cached=True)


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
}
_WHOLE = ("trace_cell", "seen_begin")

_REFERRED = {
    Params: Referred("Params", {n: (np.int64 if n in _WHOLE else np.float64, axes) for n, axes in _COLUMNS.items()}),
    State: Referred("State", _varying(_example(1), _example(2))),
}

params_of = _reader(_REFERRED[Params], Params)
"""Return in a kernel the ``Params`` whose ``Reference.handed`` it was given."""

state_of = _reader(_REFERRED[State], State)
"""Return in a kernel the ``State`` whose ``Reference.handed`` it was given."""
