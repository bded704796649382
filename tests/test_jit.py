"""How kernels are compiled: what only kernels call is part of what Python calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config, njit

from ai_factory_gym.jit import inlined_kernel, kernel

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")  # type: ignore[attr-defined]


@kernel
def _twice(number: float) -> float:
    return _once(number) + _once(number)


@kernel
def _once(number: float) -> float:
    """Long enough to be worth a call."""
    total = 0.0
    for power in range(7):
        total += np.sin(number) ** power + np.cos(number + power)
    return total


@inlined_kernel
def _shifted(number: float) -> float:
    return _twice(number + 1.0)


@kernel
def _outer(number: float) -> float:
    return 3.0 * _shifted(number)


if not config.DISABLE_JIT:  # type: ignore[attr-defined]
    for each in (_twice, _once, _shifted, _outer):
        # What is found on disk is not compiled again, and here is looked at what is compiled.
        each._cache.disable()  # type: ignore[attr-defined]


def _compiled(function: Any) -> tuple[int, int]:
    """Return how many signatures of a kernel Python can call, and how many other kernels can."""
    return len(function.overloads), len(function._part.overloads)


def test_what_only_kernels_call_is_compiled_as_a_part_of_its_caller() -> None:
    expected = 3.0 * 2.0 * _once.py_func(2.0)  # type: ignore[attr-defined]
    assert _outer(1.0) == pytest.approx(expected, rel=1e-12)
    assert _compiled(_outer) == (1, 0)
    assert _compiled(_shifted) == (0, 1)
    assert _compiled(_twice) == (0, 1)
    assert _compiled(_once) == (0, 1)
    # Python may call a part too, which is then compiled for it; what was compiled before stays.
    assert 6.0 * _once(2.0) == pytest.approx(expected, rel=1e-12)
    assert _compiled(_once) == (1, 1)
    assert _outer(1.0) == pytest.approx(expected, rel=1e-12)


def test_a_function_of_numba_s_own_may_call_kernels() -> None:
    def difference(number: float) -> float:
        return _outer(number) - _twice(number + 1.0)

    mine: Any = njit(difference)
    assert mine(1.0) == pytest.approx(2.0 * _twice(2.0), rel=1e-12)


def test_a_kernel_does_not_take_over_that_its_caller_is_inlined() -> None:
    def inlined(function: Any) -> set[bool]:
        return {result.fndesc.inline for result in function._part.overloads.values()}

    _outer(1.0)
    assert inlined(_shifted) == {True}
    assert inlined(_twice) == inlined(_once) == {False}


_PRINTS = """
from ai_factory_gym.jit import kernel

@kernel
def says(number):
    print("number", number)
    return number

@kernel
def lets_say(number):
    return says(number) + 1.0

print(lets_say(2.0))
"""


def test_a_part_may_print(tmp_path: Path) -> None:
    # It hung where numba did not know the environment of a part. In a process of its own: other packages replace ``print``.
    program = tmp_path / "prints.py"
    program.write_text(_PRINTS)
    for _ in ("compiled", "from disk"):
        ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=True)
        assert ran.stdout.split("\n") == ["number 2.0", "3.0", ""]
