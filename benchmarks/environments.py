"""Control steps through ``gym.make`` and row-steps of the native vector environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

import ai_factory_baselines as baselines
import ai_factory_gym
from benchmarks.measure import (
    SPEED_HEAD,
    Effort,
    Paired,
    cartpole_line,
    drawn_actions,
    number,
    paired,
    speed_row,
    spread,
    table,
)

EDGE = "ai_factory/Edge-v0"
NOON_S = 43_200.0
NOON: dict[str, Any] = {"start_time_s": NOON_S, "horizon_s": NOON_S}
ROW_STEPS = 2048
"""Row-steps of one measurement of a vector environment, whatever its number of rows."""


def warmup_s(effort: Effort) -> float:
    """Return the warm-up at request resolution, where it takes seconds: short for a quick look."""
    return 600.0 if effort.full else 60.0


class Steps:
    """Control steps of an environment from the start of its window on, the reset before them not timed."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        """Draw the actions."""
        assert env.action_space.shape is not None
        self.env = env
        self.actions = drawn_actions(steps, *env.action_space.shape)

    def __call__(self) -> float:
        """Return seconds per step."""
        self.env.reset(seed=1)
        begin = time.perf_counter()
        for action in self.actions:
            self.env.step(action)
        return (time.perf_counter() - begin) / len(self.actions)


class StepsOn(Steps):
    """Control steps that go on where the last measurement stopped: for request resolution, whose resets take seconds."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        """Start the one episode."""
        super().__init__(env, steps)
        env.reset(seed=1)

    def __call__(self) -> float:
        """Return seconds per step."""
        begin = time.perf_counter()
        for action in self.actions:
            *_, truncated, _ = self.env.step(action)
            if truncated:
                self.env.reset(seed=1)
        return (time.perf_counter() - begin) / len(self.actions)


class WholeDay(Steps):
    """A day with its reset."""

    def __call__(self) -> float:
        """Return seconds per step, the reset shared among them."""
        begin = time.perf_counter()
        self.env.reset(seed=1)
        for action in self.actions:
            self.env.step(action)
        return (time.perf_counter() - begin) / len(self.actions)


class Resets:
    """Resets of an environment, warm-up included, per row."""

    def __init__(self, env: Any, rows: int = 1) -> None:
        """Take the environment."""
        self.env = env
        self.rows = rows

    def __call__(self) -> float:
        """Return seconds per row."""
        begin = time.perf_counter()
        self.env.reset(seed=1)
        return (time.perf_counter() - begin) / self.rows


class Decisions:
    """Decisions of ``reactive`` on one observation."""

    def __init__(self, env: gymnasium.Env[Any, Any], count: int) -> None:
        """Make the rule and an observation."""
        self.rule = baselines.make("reactive", env)
        self.count = count
        self.observation, _ = env.reset(seed=1)

    def __call__(self) -> float:
        """Return seconds per decision."""
        begin = time.perf_counter()
        for _ in range(self.count):
            self.rule.predict(self.observation)
        return (time.perf_counter() - begin) / self.count


class VectorSteps:
    """Row-steps of the native vector environment; the reset before them is not timed."""

    def __init__(self, rows: int, steps: int, **settings: Any) -> None:
        """Make the environment as a user does."""
        chosen: dict[str, Any] = {**NOON, "threads": 1, **settings}
        self.env = gymnasium.make_vec(EDGE, num_envs=rows, vectorization_mode="vector_entry_point", **chosen)
        assert self.env.action_space.shape is not None
        self.actions = drawn_actions(steps, *self.env.action_space.shape)
        self.resets = Resets(self.env, rows)

    def __call__(self) -> float:
        """Return seconds per row-step."""
        self.env.reset(seed=1)
        begin = time.perf_counter()
        for action in self.actions:
            self.env.step(action)
        return (time.perf_counter() - begin) / self.actions[:, :, 0].size


def single(effort: Effort) -> Iterator[str]:
    """Yield the table of single environments."""
    edge = gymnasium.make(EDGE, **NOON)
    measures: dict[str, Any] = {
        f"`{name.removeprefix('ai_factory/')}`, cohort": Steps(gymnasium.make(name, **NOON), effort.steps)
        for name in ai_factory_gym.TASKS
    }
    measures["`Edge-v0`, coarse"] = Steps(gymnasium.make(EDGE, resolution="coarse", **NOON), effort.steps)
    measures["`Edge-v0`, request"] = StepsOn(
        gymnasium.make(EDGE, resolution="request", start_time_s=NOON_S, horizon_s=7200.0, warmup_s=warmup_s(effort)), 1
    )
    if effort.full:
        measures["`Edge-v0`, cohort, a whole day with its reset"] = WholeDay(gymnasium.make(EDGE), 1440)
    measures["`Edge-v0`, cohort, one reset"] = Resets(edge)
    measures["`reactive`, one decision"] = Decisions(edge, 10 * effort.steps)
    found = paired(measures, effort)
    yield from table(SPEED_HEAD, [speed_row(name, each) for name, each in found.items()])
    yield ""
    yield cartpole_line(found.values())


def vector(effort: Effort) -> Iterator[str]:
    """Yield the tables of the vector environment."""
    sizes = (16, 64, 256, 1024) if effort.full else (16, 64)
    most = sizes[-2]
    row_steps = ROW_STEPS if effort.full else 4 * sizes[-1]
    measures: dict[str, Any] = {}
    for grain in ("cohort", "coarse"):
        for rows in sizes:
            measures[f"{grain}, {rows} rows"] = VectorSteps(rows, max(2, row_steps // rows), resolution=grain)
    two = f"cohort, {most} rows, 2 threads"
    measures[two] = VectorSteps(most, max(2, row_steps // most), threads=2)
    minutes = 60 if effort.full else 10
    restarting = f"cohort, {sizes[1]} rows, NEXT_STEP with episodes of {minutes} minutes"
    # As many steps as an episode and the reset that follows it have.
    measures[restarting] = VectorSteps(
        sizes[1], minutes + 1, autoreset_mode="NextStep", start_time_s="random", horizon_s=60.0 * minutes
    )
    resets = {f"{rows} rows": measures[f"cohort, {rows} rows"].resets for rows in (sizes[0], most)}
    found = paired({**measures, **resets}, effort)
    yield from table(("per row-step", *SPEED_HEAD[1:]), [speed_row(name, found[name]) for name in measures])
    yield ""
    rows_of_resets = [
        (name, number(1e6 * found[name].median_s), number(float(np.median(found[name].costs)))) for name in resets
    ]
    yield from table(("reset, per row", "microseconds", "CartPole steps"), rows_of_resets)
    yield ""
    yield _threads_line(found[f"cohort, {most} rows"], found[two], most)
    yield ""
    yield cartpole_line(found.values())


def _threads_line(one: Paired, two: Paired, rows: int) -> str:
    """Return what a second thread brings."""
    gain = one.against(two)
    return (
        f"Two threads against one, {rows} rows: {number(gain[1])} times the speed (quartiles {spread(gain)}). Only a machine "
        "with two idle cores shows what threads bring: where something else runs, a step waits for the slower of them."
    )
