"""``AIFactoryVectorEnv``: many factories of one task in one process, on the same kernels as the single environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ai_factory_gym.control_step import Outcome
from ai_factory_gym.engine.layout import Array
from ai_factory_gym.errors import ConfigError, check_count, unknown
from ai_factory_gym.factory import RESET_OPTIONS, Factory, check_options
from ai_factory_gym.fleet import Fleet
from ai_factory_gym.levers import ActionLayout
from ai_factory_gym.observation import LIMIT, ObservationLayout
from ai_factory_gym.sites import PoolConfig
from ai_factory_gym.task import Task, task_from
from ai_factory_gym.workload.classes import RequestClass


class AIFactoryVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Rows of ``AIFactoryEnv``; row i with seed s + i is bit-equal to a single environment with seed s + i.

    Infos hold one array per key of the single environment's info, and its ``_key`` mask. Nothing that is returned shares
    memory with anything else.

    Args:
        num_envs: Number of rows.
        autoreset_mode: When a finished row starts again, as an AutoresetMode or its value.
        threads: Threads that simulate, 1 or as many as there are cores; results do not depend on it.
        row_settings: For domain randomisation, one mapping per row of arguments of ``build_task`` in which the row differs
            from ``settings``: scenario, trace, site, cap ... Observations, actions and classes must stay the same.
            What a scenario, a start time, a demand factor or a horizon changes can also be given to ``reset``.
        render_mode: ``ansi`` or None.
        settings: Arguments of ``ai_factory_gym.task.build_task``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.NEXT_STEP}
    _modes: ClassVar[tuple[AutoresetMode, ...]] = tuple(AutoresetMode)
    _arguments: ClassVar[tuple[str, ...]] = ("autoreset_mode", "threads", "row_settings", "render_mode")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        threads: int = 1,
        row_settings: Sequence[Mapping[str, Any]] | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build all rows."""
        self.num_envs = check_count("num_envs", num_envs)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown("render_mode", render_mode, self.metadata["render_modes"])
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            raise unknown("autoreset_mode", autoreset_mode, [mode.value for mode in self._modes]) from None
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        distinct, which = _distinct_settings(settings, row_settings, self.num_envs)
        self.fleet = Fleet([task_from(chosen, self._arguments) for chosen in distinct], which, threads)
        self.single_action_space = spaces.Box(-1.0, 1.0, (self.action_layout.size,), np.float32)
        self.single_observation_space = spaces.Box(-LIMIT, LIMIT, (self.observation_layout.size,), np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._all = np.arange(self.num_envs)

    @property
    def factory(self) -> Factory:
        """The factory of the first row: layouts, pools and classes are those of all, constants may differ by row."""
        return self.fleet.first

    @property
    def task(self) -> Task:
        """The task of the first row."""
        return self.factory.task

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
        check_options(options, (*RESET_OPTIONS, "reset_mask"))
        given = dict(options or {})
        mask = np.asarray(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)), dtype=np.bool_)
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigError(f"options: reset_mask: must hold {self.num_envs} booleans, at least one of them true.")
        rows = np.flatnonzero(mask)
        self._begin(rows, seeds, [self._row_options(given, row) for row in range(self.num_envs)])
        self._done[rows] = False
        outcome = self.fleet.new_outcome()
        self.fleet.report(self._all, outcome)
        return outcome.observation, self._infos(outcome, mask)

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
        self.fleet.begin(rows, generators, [options[row] for row in rows])

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one control step of every row.

        Args:
            actions: float[rows, actions] in [-1, 1].

        Returns:
            Observations, rewards, terminations, truncations and infos.
        """
        checked = self.factory.check(actions, (self.num_envs, self.action_layout.size))
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            raise ConfigError(
                f"step: rows {np.flatnonzero(self._done).tolist()} are done and autoreset is disabled; "
                f"call reset(options={{'reset_mask': mask}}) first."
            )
        outcome = self.fleet.new_outcome()
        # NEXT_STEP: the action of a finished row is ignored, its step is the reset.
        resting = np.flatnonzero(self._done)
        if len(resting):
            self._begin_again(resting, outcome)
            running = np.flatnonzero(~self._done)
            if len(running):
                self.fleet.step(running, checked[running], outcome)
        else:
            self.fleet.step(self._all, checked, outcome)
        self._done = outcome.terminated | outcome.truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            finished = np.flatnonzero(self._done)
            final = np.full(self.num_envs, None, dtype=object)
            for row in finished:
                final[row] = outcome.observation[row].copy()
            infos["final_obs"] = final
            infos["_final_obs"] = self._done.copy()
            infos["final_info"] = self._infos(outcome, self._done)
            infos["_final_info"] = self._done.copy()
            self._begin_again(finished, outcome)
            self._done = np.zeros(self.num_envs, dtype=np.bool_)
        infos.update(self._infos(outcome, np.ones(self.num_envs, dtype=np.bool_)))
        return outcome.observation, outcome.reward, outcome.terminated, outcome.truncated, infos

    def _begin_again(self, rows: Array, outcome: Outcome) -> None:
        """Start rows again, each going on with its own random stream."""
        self._begin(rows, [None] * self.num_envs, [{}] * self.num_envs)
        self.fleet.report(rows, outcome)

    def _infos(self, outcome: Outcome, mask: Array) -> dict[str, Any]:
        """Return the infos of the rows in ``mask`` as one array per key."""
        keys = self.factory.info_keys
        values = np.where(mask[:, None], outcome.info, 0.0).T.copy()
        masks = np.repeat(mask[None], len(keys), axis=0)
        infos: dict[str, Any] = {}
        for key, column, known in zip(keys, values, masks, strict=True):
            infos[key] = column
            infos[f"_{key}"] = known
        return infos

    def render(self) -> tuple[str, ...] | None:
        """Return a text picture per row (``render_mode="ansi"``)."""
        if self.render_mode is None:
            return None
        from ai_factory_gym.rendering.ansi import draw

        return tuple(draw(*self.fleet.locate(row)) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        self.fleet.close()


def _distinct_settings(
    common: Mapping[str, Any], row_settings: Sequence[Mapping[str, Any]] | None, rows: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the distinct settings among rows, and which each row has.

    Raises:
        ConfigError: When ``row_settings`` is no sequence of one mapping per row.
    """
    if row_settings is None:
        return [dict(common)], [0] * rows
    if isinstance(row_settings, (str, bytes, Mapping)) or not isinstance(row_settings, Sequence):
        raise ConfigError(f"row_settings: {row_settings!r} is not allowed; must be a list of one dict per row.")
    if len(row_settings) != rows:
        raise ConfigError(f"row_settings: {len(row_settings)} given for {rows} rows.")
    distinct: list[dict[str, Any]] = []
    which = []
    for own in row_settings:
        if not isinstance(own, Mapping):
            raise ConfigError(f"row_settings: {own!r} is not allowed; must be a dict of arguments of the task.")
        merged = {**common, **own}
        if merged not in distinct:
            distinct.append(merged)
        which.append(distinct.index(merged))
    return distinct, which
