"""Paired measurement beside CartPole-v1, and the tables that show it.

Machines differ, and a machine differs from moment to moment. So every figure is a ratio to gymnasium's CartPole-v1 in the same
run: each measurement stands between two of CartPole, and what is shown are medians and quartiles over such pairs.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Quartiles = tuple[float, float, float]

SPEED_HEAD = ("what", "microseconds", "of CartPole's speed", "quartiles")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        repeats: Rounds; each measures everything once.
        steps: Control steps of one measurement.
        cartpole_steps: CartPole steps between two measurements.
        full: Whether the long rows are run: many environments, whole days, high rates.
        cold: Whether the compilation of all kernels is timed, minutes.
    """

    repeats: int = 11
    steps: int = 60
    cartpole_steps: int = 10_000
    full: bool = True
    cold: bool = False


@dataclass(frozen=True)
class Paired:
    """Measurements of one thing.

    Attributes:
        seconds: Per unit, of each round.
        reference_s: Per CartPole step, mean of the measurements before and after.
    """

    seconds: tuple[float, ...]
    reference_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median seconds per unit."""
        return float(np.median(self.seconds))

    @property
    def costs(self) -> NDArray[np.float64]:
        """CartPole steps that one unit takes the time of, by round."""
        return np.array(self.seconds) / np.array(self.reference_s)

    def speed(self) -> Quartiles:
        """Return the quartiles of units per CartPole step: 0.1 is a tenth of CartPole's speed."""
        return quartiles(1.0 / self.costs)

    def against(self, other: Paired) -> Quartiles:
        """Return the quartiles of the cost of one unit over that of another thing's, round by round."""
        return quartiles(self.costs / other.costs)


def quartiles(values: Sequence[float] | NDArray[np.float64]) -> Quartiles:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def cartpole_step_s(steps: int) -> float:
    """Return seconds per CartPole-v1 step through ``gym.make``, resets included, actions drawn beforehand."""
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    actions = [int(a) for a in np.random.default_rng(0).integers(0, 2, steps)]
    begin = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - begin) / steps


def paired(
    measures: Mapping[str, Callable[[], float]],
    effort: Effort,
    reference: Callable[[int], float] = cartpole_step_s,
) -> dict[str, Paired]:
    """Measure everything once per round, each measurement between two of the reference.

    One round is run beforehand and left out: it loads kernels and touches memory for the first time.

    Args:
        measures: Name to function that returns seconds per unit.
        effort: How often.
        reference: Returns seconds per step of the reference, of as many steps as it is given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    references: dict[str, list[float]] = {name: [] for name in measures}
    # None: no bar where nobody looks.
    with tqdm(total=len(measures) * (effort.repeats + 1), leave=False, disable=None) as bar:
        before = reference(effort.cartpole_steps)
        for number in range(effort.repeats + 1):
            for name, measure in measures.items():
                bar.set_postfix_str(name)
                found = measure()
                after = reference(effort.cartpole_steps)
                if number:
                    seconds[name].append(found)
                    references[name].append(0.5 * (before + after))
                before = after
                bar.update()
    return {name: Paired(tuple(seconds[name]), tuple(references[name])) for name in measures}


def drawn_actions(steps: int, *shape: int, span: float = 0.2) -> NDArray[np.float32]:
    """Return actions drawn beforehand, uniform in [-span, span], float32[steps, *shape]."""
    return np.random.default_rng(0).uniform(-span, span, (steps, *shape)).astype(np.float32)


def number(value: float) -> str:
    """Return a number with three significant digits, never in exponents."""
    if not np.isfinite(value):
        return str(value)
    if value == 0.0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - int(np.floor(np.log10(abs(rounded)))))}f}"


def spread(values: Quartiles) -> str:
    """Return the lower and the upper quartile as text."""
    return f"{number(values[0])} to {number(values[2])}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a markdown table: the first column to the left, the others to the right.

    Raises:
        ValueError: When a row has not as many cells as the head.
    """
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{row!r} has {len(row)} cells, the head {len(head)}")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def speed_row(name: str, found: Paired) -> tuple[str, str, str, str]:
    """Return a row under ``SPEED_HEAD``."""
    speed = found.speed()
    return name, number(1e6 * found.median_s), number(speed[1]), spread(speed)


def cartpole_line(found: Iterable[Paired]) -> str:
    """Return what CartPole took while these were measured."""
    times = quartiles([1e6 * value for each in found for value in each.reference_s])
    return f"CartPole-v1 in these rounds: {number(times[1])} microseconds a step (quartiles {spread(times)})."


def _processor() -> str:
    """Return the name of the processor where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def conditions() -> str:
    """Return where and with what it was measured, and how busy the machine was."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("gymnasium", "numpy", "numba"))
    load = f"; load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{_processor()}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"
