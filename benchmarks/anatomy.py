"""Where the time of a control step goes: Python, the call into the kernel, and what the kernel does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from ai_factory_gym import AIFactoryEnv, AIFactoryVectorEnv
from ai_factory_gym.engine.layout import SiteInt
from benchmarks.environments import EDGE, NOON, NOON_S
from benchmarks.measure import Effort, cartpole_line, drawn_actions, number, paired, quartiles, table

COUNTERS = {"segments": SiteInt.SEGMENTS, "events": SiteInt.EVENTS, "cohorts": SiteInt.ROUTED}
"""What the engine counts of its own work, by name."""

REPORTED_ROWS = 64


def counters(env: AIFactoryEnv) -> np.ndarray:
    """Return the engine's counters of the environment's row, in the order of ``COUNTERS``."""
    return env.factory.engine.state.site_int[0, list(COUNTERS.values())].copy()


class Levels:
    """Steps through ``gym.make``, and how long each spent below the wrappers and in the kernel.

    The depths are timed within the same steps: their differences, a few microseconds, would be lost between one run and the next.

    Attributes:
        shares: Of each run: the parts of its time below the wrappers and in ``Factory.run``.
        counted: The engine's counters per step of the last run.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        """Draw the actions, and put a clock around the two calls."""
        assert env.action_space.shape is not None
        self.env = env
        self.core: AIFactoryEnv = env.unwrapped  # type: ignore[assignment]
        self.actions = drawn_actions(steps, *env.action_space.shape)
        self.shares: list[tuple[float, float]] = []
        self.counted = np.zeros(len(COUNTERS))
        self._below = Clocked(self.core.step)
        self._kernel = Clocked(self.core.factory.run)
        self.core.step = self._below  # type: ignore[assignment, method-assign]
        self.core.factory.run = self._kernel  # type: ignore[assignment, method-assign]

    def __call__(self) -> float:
        """Return seconds per step."""
        self.env.reset(seed=1)
        before = counters(self.core)
        self._below.seconds = self._kernel.seconds = 0.0
        begin = time.perf_counter()
        for action in self.actions:
            self.env.step(action)
        seconds = time.perf_counter() - begin
        self.counted = (counters(self.core) - before) / len(self.actions)
        self.shares.append((self._below.seconds / seconds, self._kernel.seconds / seconds))
        return seconds / len(self.actions)

    def handing_over(self) -> float:
        """Return seconds per call of ``Factory.run`` that finds its row done: what handing over the arrays costs."""
        factory = self.core.factory
        self.env.reset(seed=1)
        self.env.step(self.actions[0])
        rows, outcome = np.zeros(1, dtype=np.int64), factory.new_outcome()
        count = 10 * len(self.actions)
        begin = time.perf_counter()
        for _ in range(count):
            factory.run(rows, outcome)
        return (time.perf_counter() - begin) / count


class Clocked:
    """A function with a clock around it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Take the function."""
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call it and add up the time."""
        begin = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - begin
        return result


class Reports:
    """Observations and infos of many rows in one call, of which handing over the arrays is then a small part."""

    def __init__(self, grain: str, calls: int) -> None:
        """Make the rows and let them run for a step."""
        env = AIFactoryVectorEnv(REPORTED_ROWS, site="edge", resolution=grain, **NOON)
        env.reset(seed=1)
        env.step(np.zeros((REPORTED_ROWS, env.action_layout.size), np.float32))
        self.fleet = env.fleet
        self.outcome = env.fleet.new_outcome()
        self.rows = np.arange(REPORTED_ROWS)
        self.calls = calls

    def __call__(self) -> float:
        """Return seconds per row."""
        begin = time.perf_counter()
        for _ in range(self.calls):
            self.fleet.report(self.rows, self.outcome)
        return (time.perf_counter() - begin) / (self.calls * REPORTED_ROWS)


def anatomy(effort: Effort) -> Iterator[str]:
    """Yield the section on what a step spends its time on."""
    grains = {
        grain: Levels(gymnasium.make(EDGE, resolution=grain, **NOON), effort.steps) for grain in ("cohort", "coarse")
    }
    measures: dict[str, Callable[[], float]] = {}
    for grain, levels in grains.items():
        measures[f"{grain} step"] = levels
        measures[f"{grain} handing over"] = levels.handing_over
        measures[f"{grain} reporting"] = Reports(grain, effort.steps)
    found = paired(measures, effort)
    cartpole_s = float(np.median([value for each in found.values() for value in each.reference_s]))
    typical_s = {name: cartpole_s * float(np.median(each.costs)) for name, each in found.items()}
    kernel_s = {}
    rows = []
    for grain, levels in grains.items():
        # The first run was that of the round which is left out.
        below, kernel = (quartiles(part) for part in np.array(levels.shares[1:]).T)
        step_s, handed_s, report_s = (typical_s[f"{grain} {what}"] for what in ("step", "handing over", "reporting"))
        kernel_s[grain] = kernel[1] * step_s
        parts = {
            "wrappers of `gym.make`": (1.0 - below[1]) * step_s,
            "the environment's own Python": (below[1] - kernel[1]) * step_s,
            "handing arrays to the kernel": handed_s,
            "observation and info, in the kernel": report_s,
            "simulation, in the kernel": kernel_s[grain] - handed_s - report_s,
        }
        rows += [
            (f"{grain}: {part}", number(1e6 * seconds), f"{100.0 * seconds / step_s:.0f} %")
            for part, seconds in parts.items()
        ]
        rows.append(
            (f"{grain}: a step", number(1e6 * step_s), f"kernel {100.0 * kernel[1]:.0f} % ({_percent(kernel)})")
        )
    yield from table(("`Edge-v0`, noon", "microseconds", "share of a step"), rows)
    yield ""
    yield cartpole_line(found.values())
    yield ""
    yield from _counted(grains, kernel_s, effort)


def _percent(values: tuple[float, float, float]) -> str:
    return f"quartiles {100.0 * values[0]:.0f} to {100.0 * values[2]:.0f}"


def _counted(grains: dict[str, Levels], kernel_s: dict[str, float], effort: Effort) -> Iterator[str]:
    """Yield the table of what the engine counts per step; one step of request resolution beside the others."""
    counted = {grain: levels.counted for grain, levels in grains.items()}
    if effort.full:
        exact = Levels(gymnasium.make(EDGE, resolution="request", start_time_s=NOON_S, horizon_s=3600.0), 2)
        kernel_s = {**kernel_s, "request": exact() * exact.shares[0][1]}
        counted["request"] = exact.counted
    rows = []
    for grain, values in counted.items():
        events = float(values[list(COUNTERS).index("events")])
        cells = [f"{value:,.0f}" for value in values]
        rows.append((grain, *cells, f"{1e9 * kernel_s[grain] / events:.0f}"))
    yield from table(("per control step", *COUNTERS, "kernel nanoseconds per event"), rows)
