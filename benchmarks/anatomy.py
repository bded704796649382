"""Where the time of a control step goes: Python, the call into the kernel, and what the kernel does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.engine.kernel import DONE
from ai_factory_gym.engine.layout import SiteInt
from benchmarks.environments import EDGE, NOON, NOON_S
from benchmarks.measure import Effort, cartpole_line, drawn_actions, number, paired, table

COUNTERS = {"segments": SiteInt.SEGMENTS, "events": SiteInt.EVENTS, "cohorts": SiteInt.ROUTED}
"""What the engine counts of its own work, by name."""


def counters(env: AIFactoryEnv) -> np.ndarray:
    """Return the engine's counters of the environment's row, in the order of ``COUNTERS``."""
    return env.factory.engine.state.site_int[0, list(COUNTERS.values())].copy()


class Levels:
    """One environment, timed at several depths over the same steps from the same reset."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        """Draw the actions."""
        self.env = env
        self.core: AIFactoryEnv = env.unwrapped  # type: ignore[assignment]
        self.factory = self.core.factory
        assert env.action_space.shape is not None
        self.actions = drawn_actions(steps, *env.action_space.shape)
        self.rows = np.zeros(1, dtype=np.int64)
        self.outcome = self.factory.new_outcome()
        self.counted = np.zeros(len(COUNTERS))

    def wrapped(self) -> float:
        """Return seconds per step through the wrappers of ``gym.make``."""
        return self._time(self.env, self.env.step)

    def bare(self) -> float:
        """Return seconds per step without them."""
        return self._time(self.core, self.core.step)

    def _time(self, env: gymnasium.Env[Any, Any], step: Callable[[Any], Any]) -> float:
        env.reset(seed=1)
        before = counters(self.core)
        begin = time.perf_counter()
        for action in self.actions:
            step(action)
        seconds = (time.perf_counter() - begin) / len(self.actions)
        self.counted = (counters(self.core) - before) / len(self.actions)
        return seconds

    def kernel(self) -> float:
        """Return seconds per step inside ``Factory.run``: the kernel and the call into it."""
        self.core.reset(seed=1)
        seconds = 0.0
        for action in self.actions:
            self.factory.put(self.rows, action.astype(np.float64))
            begin = time.perf_counter()
            while self.factory.run(self.rows, self.outcome) != DONE:
                self.factory.engine.grow()
            seconds += time.perf_counter() - begin
        return seconds / len(self.actions)

    def handing_over(self) -> float:
        """Return seconds per call of ``Factory.run`` that finds its row done: what handing over the arrays costs."""
        return self._calls(lambda: self.factory.run(self.rows, self.outcome))

    def reporting(self) -> float:
        """Return seconds per call of ``Factory.report``: observation and info, its own handing over included."""
        return self._calls(lambda: self.factory.report(self.rows, self.outcome))

    def _calls(self, call: Callable[[], object]) -> float:
        self.core.reset(seed=1)
        self.core.step(self.actions[0])
        count = 10 * len(self.actions)
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count


def anatomy(effort: Effort) -> Iterator[str]:
    """Yield the section on what a step spends its time on."""
    grains = {
        grain: Levels(gymnasium.make(EDGE, resolution=grain, **NOON), effort.steps) for grain in ("cohort", "coarse")
    }
    measures = {
        f"{grain} {depth}": getattr(levels, depth)
        for grain, levels in grains.items()
        for depth in ("wrapped", "bare", "kernel", "handing_over", "reporting")
    }
    found = paired(measures, effort)
    # One speed of the machine for all parts, or their differences would be those of the moments they were measured in.
    cartpole_s = float(np.median([value for each in found.values() for value in each.reference_s]))
    typical_s = {name: cartpole_s * float(np.median(each.costs)) for name, each in found.items()}
    rows = []
    for grain in grains:
        whole_s, bare_s, kernel_s, handed_s, reported_s = (
            typical_s[f"{grain} {depth}"] for depth in ("wrapped", "bare", "kernel", "handing_over", "reporting")
        )
        report_s = max(0.0, reported_s - handed_s)
        parts = {
            "wrappers of `gym.make`": whole_s - bare_s,
            "the environment's own Python": bare_s - kernel_s,
            "handing arrays to the kernel": handed_s,
            "observation and info, in the kernel": report_s,
            "simulation, in the kernel": kernel_s - handed_s - report_s,
        }
        rows += [
            (f"{grain}: {part}", number(1e6 * seconds), f"{100.0 * seconds / whole_s:.0f} %")
            for part, seconds in parts.items()
        ]
        share = found[f"{grain} kernel"].against(found[f"{grain} wrapped"])
        rows.append((f"{grain}: a step", number(1e6 * whole_s), f"kernel {100.0 * share[1]:.0f} % ({_percent(share)})"))
    yield from table(("`Edge-v0`, noon", "microseconds", "share of a step"), rows)
    yield ""
    yield cartpole_line(found.values())
    yield ""
    yield from _counted(grains, {grain: typical_s[f"{grain} kernel"] for grain in grains}, effort)


def _percent(values: tuple[float, float, float]) -> str:
    return f"quartiles {100.0 * values[0]:.0f} to {100.0 * values[2]:.0f}"


def _counted(grains: dict[str, Levels], kernel_s: dict[str, float], effort: Effort) -> Iterator[str]:
    """Yield the table of what the engine counts per step; one step of request resolution beside the others."""
    counted = {grain: levels.counted for grain, levels in grains.items()}
    if effort.full:
        exact = Levels(gymnasium.make(EDGE, resolution="request", start_time_s=NOON_S, horizon_s=3600.0), 2)
        kernel_s = {**kernel_s, "request": exact.kernel()}
        exact.bare()
        counted["request"] = exact.counted
    rows = []
    for grain, values in counted.items():
        events = float(values[list(COUNTERS).index("events")])
        cells = [f"{value:,.0f}" for value in values]
        rows.append((grain, *cells, f"{1e9 * kernel_s[grain] / events:.0f}"))
    yield from table(("per control step", *COUNTERS, "kernel nanoseconds per event"), rows)
