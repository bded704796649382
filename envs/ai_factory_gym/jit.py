"""How kernels are compiled: one definition for the engine and for the physics it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
"""Kernels never allocate, so numba's reference counting is off: with it every call counts the two dozen arrays of the
state up and down atomically, several times the work between the calls. The error model is numpy's because Python's check
for division by zero would stand in every inner loop."""


def kernel(function: Function) -> Function:
    """Compile a function for the engine, cached on disk."""
    compiled: Function = njit(**_OPTIONS)(function)
    return compiled


def inlined_kernel(function: Function) -> Function:
    """Compile a function that is called for every cohort so that its callers take it in.

    A call hands over every array of the state by value, a few hundred words: more than most such functions do.
    """
    compiled: Function = njit(**_OPTIONS, forceinline=True)(function)
    return compiled
