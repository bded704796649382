# mypy: disable-error-code="misc, no-untyped-call"
"""How kernels are compiled: one definition for the engine and for the physics it calls.

As numba has it, every function becomes a library of its own: all that it calls is copied in, optimised as a whole and made machine code,
and its callers copy, optimise and emit all of that once more. Of our hundreds of kernels Python calls a dozen. Here a kernel that another
kernel calls is compiled as a ``_Part``, only as far as its caller needs it; what Python calls is compiled, with all its parts, once.
numba's own classes carry few types, hence the first line.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

Function = TypeVar("Function", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"nopython": True, "error_model": "numpy", "nogil": True, "_nrt": False}
"""Kernels never allocate, so numba's reference counting is off: with it every view of an array is counted up and down atomically,
several times the work between. The error model is numpy's because Python's check
for division by zero would stand in every inner loop. The interpreter lock is released: rows of different factories share
nothing and may run in threads."""


def shared_sources() -> list[Path]:
    """Return every source that kernels of other modules can depend on."""
    package = Path(__file__).parent
    files = [*sorted(package.glob("engine/*.py")), *sorted(package.glob("physics/*.py"))]
    names = (
        "jit.py",
        "workload/quadrature.py",
        "workload/effort.py",
        "levers.py",
        "observation.py",
        "metrics.py",
        "reward.py",
    )
    return files + [package / name for name in names]


@functools.lru_cache(maxsize=1)
def sources_digest() -> str:
    """Return a digest of ``shared_sources``."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in shared_sources())).hexdigest()


@functools.lru_cache(maxsize=64)
def _stamp_of(path: str) -> str:
    """Return what kernels of a file depend on: the engine, the physics, and the file or, outside this package, those beside it."""
    source = Path(path)
    inside = source.is_relative_to(Path(__file__).parent)
    own = [source] if inside else sorted(source.parent.glob("*.py"))
    return sources_digest() + hashlib.sha256(b"".join(path.read_bytes() for path in own)).hexdigest()


def _stamp(compiled: Any) -> None:
    """Make a kernel's disk cache depend on all kernel sources.

    numba looks at the file a function stands in, not at what the function calls: after a change in one module its callers
    in others would go on running the old code.
    """
    cache_file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        cache_file._source_stamp = _stamp_of(compiled.py_func.__code__.co_filename)


class _PartLibrary(JITCodeLibrary):
    """A kernel and all that it calls as they were lowered: neither optimised nor made machine code."""

    def _optimize_final_module(self) -> None:
        """Leave that to the library in which the part ends up."""

    def _finalize_final_module(self) -> None:
        """Be ready to be linked, but not to run."""
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _OfferPart(LoweringPass):
    """Lets kernels call a part: what numba does with a function once it can run."""

    _name = "offer_part"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Enter the part under its library where numba has the address of the machine code."""
        state.targetctx.insert_user_function(state.library, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=state.library)
        return True


class _PartCompiler(CompilerBase):
    """numba's compiler up to the machine code."""

    def define_pipelines(self) -> list[PassManager]:
        """Return numba's passes, with a library that ends early."""
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.flags.no_compile = self.state.flags.no_cpython_wrapper = self.state.flags.no_cfunc_wrapper = True
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OfferPart, NativeLowering)
        passes.finalize()
        return [passes]


class _Part(CPUDispatcher):
    """A kernel as other kernels call it. It is not cached on disk: what is, has it inside."""

    def add_overload(self, cres: Any) -> None:
        """Keep a compiled signature for kernels only; there is nothing that Python could call."""
        self.overloads[tuple(cres.signature.args)] = cres


class _Kernel(CPUDispatcher):
    """A kernel as Python calls it."""

    def add_overload(self, cres: Any) -> None:
        """Keep a compiled signature, and let its parts find what they need to print; loaded from disk, numba sees to that itself."""
        for environment in cres._find_referenced_environments():
            cres.library.codegen.set_env(environment.env_name, environment)
        super().add_overload(cres)

    @functools.cached_property
    def _part(self) -> Any:
        """The same kernel as other kernels call it."""
        return _Part(self.py_func, targetoptions=self.targetoptions, pipeline_class=_PartCompiler)

    @property
    def _numba_type_(self) -> Any:
        """What numba finds where a kernel names this one."""
        return self._part._numba_type_


def _compiled(function: Function, *, inline: bool) -> Function:
    """Return a function compiled on its first call, cached on disk."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    # Said to either: where it is not, a function inherits it from the caller that numba happens to compile first.
    dispatcher: Any = _Kernel(function, targetoptions=_OPTIONS | {"forceinline": inline})
    dispatcher.enable_caching()
    _stamp(dispatcher)
    return dispatcher


def kernel(function: Function) -> Function:
    """Compile a function for the engine, cached on disk; whether a caller takes it in is left to the compiler."""
    return _compiled(function, inline=False)


def inlined_kernel(function: Function) -> Function:
    """Compile a function that is called for every cohort so that its callers take it in: a call takes longer than most of them do."""
    return _compiled(function, inline=True)
