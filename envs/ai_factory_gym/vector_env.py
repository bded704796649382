"""``AIFactoryVectorEnv``: many factories of one task in one process, on the same kernels as the single environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ai_factory_gym.engine.layout import Array
from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.factory import Factory, check_options
from ai_factory_gym.levers import ActionLayout, check_action
from ai_factory_gym.metrics import Info
from ai_factory_gym.observation import LIMIT, ObservationLayout
from ai_factory_gym.sites import PoolConfig
from ai_factory_gym.task import Task, task_from
from ai_factory_gym.workload.classes import RequestClass


class AIFactoryVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Rows of ``AIFactoryEnv``; row i with seed s + i is bit-equal to a single environment with seed s + i.

    Args:
        num_envs: Number of rows.
        autoreset_mode: When a finished row starts again, as an AutoresetMode or its value.
        render_mode: ``ansi`` or None.
        settings: Arguments of ``ai_factory_gym.task.build_task``.

    Infos hold one array per key of the single environment's info, and its ``_key`` mask.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.NEXT_STEP}
    _modes: ClassVar[tuple[AutoresetMode, ...]] = tuple(AutoresetMode)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build all rows."""
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ConfigError(f"num_envs: {num_envs!r} is not allowed; must be a whole number of at least 1.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown("render_mode", render_mode, self.metadata["render_modes"])
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            raise unknown("autoreset_mode", autoreset_mode, [mode.value for mode in self._modes]) from None
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.task: Task = task_from(settings)
        self.factory = Factory(self.task, rows=self.num_envs)
        self.single_action_space = spaces.Box(-1.0, 1.0, (self.action_layout.size,), np.float32)
        self.single_observation_space = spaces.Box(-LIMIT, LIMIT, (self.observation_layout.size,), np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._all = np.arange(self.num_envs)

    @property
    def action_layout(self) -> ActionLayout:
        """Where each lever lies in a row's action."""
        return self.factory.action_layout

    @property
    def observation_layout(self) -> ObservationLayout:
        """Where each block lies in a row's observation, and its scale."""
        return self.factory.observation_layout

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """The pools, in the order of pool blocks and levers."""
        return self.factory.pools

    @property
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes, in the order of class blocks."""
        return self.factory.classes

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes.

        Args:
            seed: Row i gets ``seed + i``; a list gives each row its own; None goes on with the rows' generators.
            options: Those of the single environment, each one value for all rows or a list of one per row; and
                ``reset_mask`` (bool per row) to start only some rows.

        Returns:
            Observations float32[rows, size] and infos.
        """
        seeds: list[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed) if isinstance(seed, Iterable) else [seed]
            if len(seeds) != self.num_envs:
                raise ConfigError(
                    f"seed: {len(seeds)} given for {self.num_envs} rows; give one number, one per row, or None."
                )
        given = dict(options) if isinstance(options, Mapping) else {}
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)), dtype=np.bool_)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigError(f"options: reset_mask: must hold {self.num_envs} booleans, at least one of them true.")
        check_options(given if isinstance(options, Mapping) else options)
        rows = np.flatnonzero(mask)
        self._begin(rows, seeds, [self._row_options(given, row) for row in range(self.num_envs)])
        self._done[rows] = False
        return self._observe(self._all), self._infos(mask)

    def _row_options(self, given: dict[str, Any], row: int) -> dict[str, Any]:
        """Return one row's options out of those given per row or for all."""
        chosen = {}
        for key, value in given.items():
            per_row = isinstance(value, (list, tuple, np.ndarray))
            if per_row and len(value) != self.num_envs:
                raise ConfigError(f"options: {key}: {len(value)} values given for {self.num_envs} rows.")
            chosen[key] = value[row] if per_row else value
        return chosen

    def _begin(self, rows: Array, seeds: list[int | None], options: list[dict[str, Any]]) -> None:
        """Start episodes in rows."""
        generators = []
        for row in rows:
            known = self._generators[row]
            if seeds[row] is not None or known is None:
                known = seeding.np_random(seeds[row])[0]
                self._generators[row] = known
            generators.append(known)
        self.factory.begin([int(row) for row in rows], generators, [options[row] for row in rows])

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one control step of every row.

        Args:
            actions: float[rows, actions] in [-1, 1].

        Returns:
            Observations, rewards, terminations, truncations and infos.
        """
        checked = check_action(actions, (self.num_envs, self.action_layout.size))
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        resting = self._done.copy()
        if self.autoreset_mode is AutoresetMode.DISABLED and resting.any():
            raise ConfigError(
                f"step: rows {np.flatnonzero(resting).tolist()} are done and autoreset is disabled; "
                f"call reset(options={{'reset_mask': mask}}) first."
            )
        rows = np.flatnonzero(~resting)
        none: list[int | None] = [None] * self.num_envs
        empty: list[dict[str, Any]] = [{}] * self.num_envs
        if resting.any():
            # NEXT_STEP: the action of a finished row is ignored, its step is the reset.
            self._begin(np.flatnonzero(resting), none, empty)
        if len(rows):
            self.factory.step(rows, checked[rows])
            rewards[rows] = self.factory.rewards(rows)
            terminations[rows] = self.factory.terminated(rows)
            truncations[rows] = self.factory.truncated(rows)
        self._done = terminations | truncations
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            finished = np.flatnonzero(self._done)
            final = np.full(self.num_envs, None, dtype=object)
            last = self._observe(finished)
            for place, row in enumerate(finished):
                final[row] = last[place]
            infos["final_obs"] = final
            infos["_final_obs"] = self._done.copy()
            infos["final_info"] = self._infos(self._done)
            infos["_final_info"] = self._done.copy()
            self._begin(finished, none, empty)
            self._done = np.zeros(self.num_envs, dtype=np.bool_)
        infos.update(self._infos(np.ones(self.num_envs, dtype=np.bool_)))
        return self._observe(self._all), rewards, terminations, truncations, infos

    def _observe(self, rows: Array) -> np.ndarray:
        out = np.zeros((len(rows), self.observation_layout.size), dtype=np.float32)
        self.factory.observe(rows, out)
        return out

    def _infos(self, mask: Array) -> dict[str, Any]:
        """Return the infos of the rows in ``mask`` as one array per key."""
        rows = np.flatnonzero(mask)
        tables: list[Info] = [self.factory.info(int(row)) for row in rows]
        infos: dict[str, Any] = {}
        for key in tables[0]:
            values = np.zeros(self.num_envs)
            values[rows] = [table[key] for table in tables]
            infos[key] = values
            infos[f"_{key}"] = mask.copy()
        return infos

    def render(self) -> tuple[str, ...] | None:
        """Return a text picture per row (``render_mode="ansi"``)."""
        if self.render_mode is None:
            return None
        from ai_factory_gym.rendering.ansi import draw

        return tuple(draw(self.factory, row) for row in range(self.num_envs))
