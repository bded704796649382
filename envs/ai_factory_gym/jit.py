"""How kernels are compiled: one definition for the engine and for the physics it calls."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True, "_nrt": False}
"""Kernels never allocate, so numba's reference counting is off: with it every view of an array is counted up and down atomically,
several times the work between. The error model is numpy's because Python's check
for division by zero would stand in every inner loop. The interpreter lock is released: rows of different factories share
nothing and may run in threads."""


def shared_sources() -> list[Path]:
    """Return every source that kernels of other modules can depend on."""
    package = Path(__file__).parent
    files = [*sorted(package.glob("engine/*.py")), *sorted(package.glob("physics/*.py"))]
    names = ("workload/quadrature.py", "workload/effort.py", "levers.py", "observation.py", "metrics.py", "reward.py")
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


def kernel(function: Function) -> Function:
    """Compile a function for the engine, cached on disk."""
    compiled: Function = njit(**_OPTIONS)(function)
    _stamp(compiled)
    return compiled


def inlined_kernel(function: Function) -> Function:
    """Compile a function that is called for every cohort so that its callers take it in: a call takes longer than most of them do."""
    compiled: Function = njit(**_OPTIONS, forceinline=True)(function)
    _stamp(compiled)
    return compiled
