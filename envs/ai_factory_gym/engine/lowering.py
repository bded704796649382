# mypy: disable-error-code="no-untyped-call, attr-defined, override"
"""How the arrays of an engine look to its kernels: what numba is told to compile for ``state.pool[row, pool]``, and for asking for memory.

numba's own modules are typed in part only, hence the first line. Compiled kernels on disk name the types of this module: where one is moved
or renamed, those of before have to be deleted (``__pycache__``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, typing
from numba.core.extending import lower_builtin, lower_getattr_generic, models, register_model, type_callable
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.np import numpy_support
from numba.np.arrayobj import getitem_array_tuple, getitem_arraynd_intp, populate_array, setitem_array

from ai_factory_gym.engine.layout import Array

Axes = tuple[int | None, ...]
"""Lengths of the axes of an array; None is one that depends on the site."""


class Plain(types.Array):
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


@lower_builtin(operator.getitem, Plain, types.Integer)
@lower_builtin(operator.getitem, Plain, types.BaseTuple)
def _get(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Compile ``array[index]``."""
    index_type, index = _without_sign(context, builder, signature.args[1], arguments[1])
    unsigned = typing.signature(signature.return_type, signature.args[0], index_type)
    get = getitem_array_tuple if isinstance(index_type, types.BaseTuple) else getitem_arraynd_intp
    return get(context, builder, unsigned, (arguments[0], index))


@lower_builtin(operator.setitem, Plain, types.Integer, types.Any)
@lower_builtin(operator.setitem, Plain, types.BaseTuple, types.Any)
def _set(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Compile ``array[index] = value``."""
    index_type, index = _without_sign(context, builder, signature.args[1], arguments[1])
    unsigned = typing.signature(signature.return_type, signature.args[0], index_type, signature.args[2])
    return setitem_array(context, builder, unsigned, (arguments[0], index, arguments[2]))


class Referred(types.Type):
    """What a kernel knows of a table beforehand.

    Attributes:
        arrays: By name: the type of the array, its axes, and the place of its address in the table; its lengths follow.
    """

    def __init__(self, name: str, arrays: Mapping[str, tuple[Any, Axes]]) -> None:
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
class _Fields(AttributeTemplate):
    """The fields of a table are arrays."""

    key = Referred

    def generic_resolve(self, referred: Referred, name: str) -> Any:
        return referred.arrays[name][0] if name in referred.arrays else None


@lower_getattr_generic(Referred)
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


def found_at(referred: Referred, look: Callable[[Any], Any]) -> None:
    """Let a function of one argument, in a kernel, take a table for what ``referred`` says it is."""

    @type_callable(look)
    def _type(context: Any) -> Any:
        return lambda handed: referred

    @lower_builtin(look, types.Array)
    def _lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.bitcast(table.data, context.get_value_type(referred))


def ask(array: Array, offset: int) -> None:
    """Ask for the line that is ``offset`` bytes behind an array's first number, into the second-level cache; nothing without compilation."""


@type_callable(ask)
def _type_ask(context: Any) -> Any:
    return lambda array, offset: types.none


def ask_to_write(array: Array, offset: int) -> None:
    """Ask for a line that is going to be written to; nothing without compilation."""


@type_callable(ask_to_write)
def _type_ask_to_write(context: Any) -> Any:
    return lambda array, offset: types.none


@lower_builtin(ask_to_write, types.Array, types.Integer)
def _lower_ask_to_write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    # Into the first-level cache.
    return _prefetch(context, builder, signature, arguments, 1, 3)


@lower_builtin(ask, types.Array, types.Integer)
def _lower_ask(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return _prefetch(context, builder, signature, arguments, 0, 2)


def _prefetch(context: Any, builder: Any, signature: Any, arguments: Any, write: int, locality: int) -> Any:
    """Compile a prefetch of data; of ``locality``, 3 is the first-level cache and 2 the second."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    address = builder.gep(builder.bitcast(array.data, byte), [arguments[1]])
    function = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], function)
    builder.call(prefetch, [address, word(write), word(locality), word(1)])
    return context.get_dummy_value()
