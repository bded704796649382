"""Rows of one task, or of several with the same spaces, on one row axis, stepped in one thread or several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ai_factory_gym.control_step import Outcome, new_outcome
from ai_factory_gym.engine.kernel import DONE
from ai_factory_gym.engine.layout import Array
from ai_factory_gym.errors import ConfigError, check_count
from ai_factory_gym.factory import Factory
from ai_factory_gym.metrics import Info
from ai_factory_gym.task import Task


class Fleet:
    """Factories of several tasks as one: every row knows which factory it is in, and at which place.

    Args:
        tasks: Distinct tasks; observations, actions and classes must be alike.
        task_of: Index of each row's task.
        threads: Threads that simulate. Rows share nothing, so results do not depend on it.

    Attributes:
        factories: One per task.
        rows: Number of rows.

    Raises:
        ConfigError: When tasks differ in what is seen or done.
    """

    def __init__(self, tasks: Sequence[Task], task_of: Sequence[int], threads: int = 1) -> None:
        """Build one factory per task, each with its rows."""
        self._task_of = np.asarray(task_of, dtype=np.int64)
        self.rows = len(self._task_of)
        self._place = np.zeros(self.rows, dtype=np.int64)
        self.factories: list[Factory] = []
        for index, task in enumerate(tasks):
            mine = self._task_of == index
            self._place[mine] = np.arange(int(mine.sum()))
            self.factories.append(Factory(task, rows=int(mine.sum())))
            self._check_alike(self.factories[0], self.factories[-1])
        self._threads = check_count("threads", threads)
        self._executor: ThreadPoolExecutor | None = None

    @staticmethod
    def _check_alike(first: Factory, other: Factory) -> None:
        """Refuse rows whose numbers mean something else than those of the first."""
        for what, mine, theirs in (
            ("observations", first.observation_layout.slices, other.observation_layout.slices),
            ("actions", first.action_layout.slices, other.action_layout.slices),
            ("classes", first.info_keys, other.info_keys),
        ):
            if mine != theirs:
                raise ConfigError(
                    f"row_settings: {what} of task {other.task.site.name!r} differ from those of {first.task.site.name!r}; "
                    "rows of one vector environment must have the same pools, classes and levers."
                )

    @property
    def first(self) -> Factory:
        """The factory of the first task: layouts, pools and classes are those of all."""
        return self.factories[0]

    def locate(self, row: int) -> tuple[Factory, int]:
        """Return a row's factory and its place in it."""
        return self.factories[int(self._task_of[row])], int(self._place[row])

    def _by_factory(self, rows: Array) -> list[tuple[Factory, Array, Array]]:
        """Return for each factory concerned its places, and where in ``rows`` they stand."""
        if len(self.factories) == 1:
            return [(self.first, rows, np.arange(len(rows)))]
        found = []
        for index, factory in enumerate(self.factories):
            at = np.flatnonzero(self._task_of[rows] == index)
            if len(at):
                found.append((factory, self._place[rows[at]], at))
        return found

    def new_outcome(self) -> Outcome:
        """Return room for what a step of all rows gives back."""
        return new_outcome(self.rows, self.first.observation_layout.size, len(self.first.info_keys))

    def begin(
        self,
        rows: Array,
        generators: Sequence[np.random.Generator],
        options: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Start episodes in rows; see ``Factory.begin``."""
        for part in self._by_factory(rows):
            factory, places, at = part
            factory.prepare(places.tolist(), [generators[k] for k in at], [options[k] for k in at])
            unseen = self.new_outcome()
            for _ in range(factory.warmup_steps):
                factory.put(places, 0.0)
                self._each([part], unseen, rows, Factory.run)
            factory.open(places.tolist())

    def step(self, rows: Array, actions: Array, outcome: Outcome) -> None:
        """Run one control step of rows.

        Args:
            rows: int64[n].
            actions: float64[n, actions], checked.
            outcome: What the step gives back, written for these rows.
        """
        parts = self._by_factory(rows)
        for factory, places, at in parts:
            factory.need_episodes()
            factory.put(places, actions[at])
        self._each(parts, outcome, rows, Factory.run)

    def report(self, rows: Array, outcome: Outcome) -> None:
        """Write the observations and infos of rows as they are."""
        begun = [part for part in self._by_factory(rows) if part[0].engine.begun]
        self._each(begun, outcome, rows, Factory.report, ("observation", "info"))

    def _each(
        self,
        parts: list[tuple[Factory, Array, Array]],
        outcome: Outcome,
        rows: Array,
        call: Callable[[Factory, Array, Outcome], int | None],
        fields: Sequence[str] = Outcome._fields,
    ) -> None:
        """Call every factory until it is done, rows divided among the threads, and gather the fields it writes."""
        alone = len(self.factories) == 1
        given = [outcome if alone else factory.new_outcome() for factory, _, _ in parts]
        shares = max(1, self._threads // len(parts))
        waiting = [
            (factory, chunk, its)
            for (factory, places, _), its in zip(parts, given, strict=True)
            for chunk in np.array_split(places, min(shares, len(places)))
        ]
        while waiting:
            states = self._map(lambda job: call(job[0], job[1], job[2]), waiting)
            waiting = [job for job, state in zip(waiting, states, strict=True) if state not in (None, DONE)]
            # Only now: no thread may be at work in arrays that are replaced.
            for factory in {id(job[0]): job[0] for job in waiting}.values():
                factory.engine.grow()
        if not alone:
            for (_, places, at), its in zip(parts, given, strict=True):
                for field in fields:
                    getattr(outcome, field)[rows[at]] = getattr(its, field)[places]

    def _map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        """Return what a function gives for every job; the calling thread, which would wait otherwise, does its share."""
        if self._threads == 1 or len(jobs) == 1:
            return [function(job) for job in jobs]
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="ai-factory")
        results: list[Any] = [None] * len(jobs)
        left = deque(enumerate(jobs))

        def work() -> None:
            while left:
                try:
                    number, job = left.popleft()
                except IndexError:  # another thread was faster
                    return
                results[number] = function(job)

        helpers = [self._executor.submit(work) for _ in range(min(self._threads, len(jobs)) - 1)]
        work()
        for helper in helpers:
            helper.result()
        return results

    def info(self, outcome: Outcome, row: int) -> Info:
        """Return the info of one row: python scalars by key."""
        return self.first.info(outcome, row)

    def close(self) -> None:
        """Stop the threads."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the threads behind; a copy starts its own."""
        return {**self.__dict__, "_executor": None}


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
