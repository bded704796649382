"""What Stable-Baselines3 trains on: our vector environment as an SB3 ``VecEnv``, and the residual wrapper.

Order of wrappers: ``FactoryVecEnv`` -> ``ResidualVecEnv`` (if any) -> ``VecMonitor`` -> ``VecNormalize``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ai_factory_agents.policies.residual import residual_action, residual_observation
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.levers import check_action
from ai_factory_gym.vector_env import AIFactoryVectorEnv

Array = NDArray[Any]


class FactoryVecEnv(VecEnv):
    """``AIFactoryVectorEnv`` as SB3 expects it: rows that end start again in the same step.

    A row that ends carries in its info the ``terminal_observation``, ``TimeLimit.truncated`` (an episode that reaches
    its horizon is not over, so its value is bootstrapped) and the episode's final figures; the info of every other row
    is an empty dictionary, because building them all would cost an eighth of the step.

    Args:
        env: The vector environment, or several of the same task, which are stepped side by side in threads. Row i of
            all gets seed + i, so the result does not depend on how rows are divided.
        horizon_s: Lowest and highest length of an episode, s; drawn anew for every episode, in whole control steps.
            None leaves the task's.

    Raises:
        ConfigError: When the environments differ in their spaces or a length is not a whole number of control steps.
    """

    def __init__(
        self, env: AIFactoryVectorEnv | Sequence[AIFactoryVectorEnv], *, horizon_s: tuple[float, float] | None = None
    ) -> None:
        """Take the environments over; they must not be stepped by anybody else."""
        self.shards = [env] if isinstance(env, AIFactoryVectorEnv) else list(env)
        if not self.shards:
            raise ConfigError("env: none given; at least one vector environment is needed.")
        first = self.shards[0]
        for shard in self.shards[1:]:
            if shard.observation_layout.slices != first.observation_layout.slices or shard.task.site != first.task.site:
                raise ConfigError("env: the vector environments are of different tasks.")
        self._steps = _whole_steps(horizon_s, first.task.control_interval_s)
        self._interval_s = first.task.control_interval_s
        self._first_row = np.cumsum([0, *(shard.num_envs for shard in self.shards)])
        rows = int(self._first_row[-1])
        self._pool = ThreadPoolExecutor(len(self.shards)) if len(self.shards) > 1 else None
        self._generators = [np.random.default_rng() for _ in range(rows)]
        self._actions: Array = np.zeros((rows, first.action_layout.size))
        super().__init__(rows, first.single_observation_space, first.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start every row; seeds given to ``seed`` and options given to ``set_options`` are used once."""
        observations = np.zeros((self.num_envs, *self.observation_space.shape), dtype=np.float32)  # type: ignore[misc]
        for index, shard in enumerate(self.shards):
            rows = range(self._first_row[index], self._first_row[index + 1])
            for row in rows:
                seed = self._seeds[row]
                if seed is not None:
                    # The windows have their own stream: a row's days are those of a single environment of its seed.
                    self._generators[row] = np.random.default_rng([seed, 1])
            options = [self._draw_options(row) | self._options[row] for row in rows]
            shard.reset(seed=[self._seeds[row] for row in rows], options=_by_key(options))
            for place, row in enumerate(rows):
                self.reset_infos[row] = dict(shard.factory.info(place))
            shard.factory.observe(np.arange(len(rows)), observations[rows.start : rows.stop])
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Keep the actions, float[rows, actions] in [-1, 1], for ``step_wait``."""
        self._actions = check_action(actions, self._actions.shape)

    def step_wait(self) -> VecEnvStepReturn:
        """Run one control step of every row and start those again that ended."""
        shards = range(len(self.shards))
        parts = list(map(self._step_shard, shards) if self._pool is None else self._pool.map(self._step_shard, shards))
        observations, rewards, dones = (np.concatenate([part[k] for part in parts]) for k in range(3))
        return observations, rewards, dones, [info for part in parts for info in part[3]]

    def _step_shard(self, index: int) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Step one vector environment."""
        shard = self.shards[index]
        factory = shard.factory
        first = int(self._first_row[index])
        rows = np.arange(shard.num_envs)
        factory.step(rows, self._actions[first : first + len(rows)])
        rewards = factory.rewards(rows).astype(np.float32)
        terminated = factory.terminated(rows)
        done = terminated | factory.truncated(rows)
        observations = np.zeros((len(rows), shard.observation_layout.size), dtype=np.float32)
        factory.observe(rows, observations)
        infos: list[dict[str, Any]] = [{} for _ in rows]
        if done.any():
            ended = np.flatnonzero(done)
            for row in ended:
                infos[row] = {
                    **factory.info(int(row)),
                    "terminal_observation": observations[row].copy(),
                    "TimeLimit.truncated": not bool(terminated[row]),
                }
            self._begin_again(shard, first, done)
            factory.observe(rows, observations)
        return observations, rewards, done, infos

    def _begin_again(self, shard: AIFactoryVectorEnv, first: int, done: Array) -> None:
        """Start rows again, each with a window of its own."""
        drawn = {int(row): self._draw_options(first + int(row)) for row in np.flatnonzero(done)}
        options: dict[str, Any] = {"reset_mask": done}
        if self._steps is not None:
            # Rows that go on need some value in the list; it is not used.
            options["horizon_s"] = [
                drawn.get(row, {}).get("horizon_s", self._interval_s) for row in range(shard.num_envs)
            ]
        shard.reset(options=options)

    def _draw_options(self, row: int) -> dict[str, Any]:
        """Draw what differs from episode to episode."""
        if self._steps is None:
            return {}
        return {"horizon_s": self._interval_s * int(self._generators[row].integers(self._steps[0], self._steps[1] + 1))}

    def close(self) -> None:
        """Close the environments."""
        if self._pool is not None:
            self._pool.shutdown()
        for shard in self.shards:
            shard.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments, once per row."""
        return [getattr(self._shard_of(row), attr_name) for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments; rows share one, so it cannot be set for some of them."""
        if indices is not None:
            raise ConfigError(f"set_attr: {attr_name!r} cannot be set for single rows: rows share one environment.")
        for shard in self.shards:
            setattr(shard, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method that answers for every row; ``render`` is the only one.

        Raises:
            AttributeError: For any other, since rows are not environments of their own.
        """
        if method_name != "render":
            raise AttributeError(
                f"{method_name!r}: rows are not environments of their own; only 'render' can be called."
            )
        pictures = [picture for shard in self.shards for picture in (shard.render() or [None] * shard.num_envs)]
        return [pictures[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every row: rows have no wrappers."""
        return [False for _ in self._get_indices(indices)]

    def _shard_of(self, row: int) -> AIFactoryVectorEnv:
        return self.shards[int(np.searchsorted(self._first_row, row, side="right")) - 1]


class ResidualVecEnv(VecEnvWrapper):
    """Actions become corrections of a rule, and the rule's action becomes part of the observation.

    Args:
        venv: Environments with raw observations and actions in [-1, 1].
        rule: Anything with a batched ``predict`` that keeps its memory in ``state`` only.
        scale: See ``residual_action``.
    """

    def __init__(self, venv: VecEnv, rule: Any, scale: float) -> None:
        """Widen the observation space by the rule's action."""
        seen, acted = venv.observation_space, venv.action_space
        assert isinstance(seen, spaces.Box) and isinstance(acted, spaces.Box)
        wider = spaces.Box(
            np.concatenate([seen.low, acted.low]), np.concatenate([seen.high, acted.high]), dtype=np.float32
        )
        super().__init__(venv, observation_space=wider)
        self.rule = rule
        self.scale = scale
        self._state: Any = None
        self._rule_action: Array = np.zeros((venv.num_envs, *acted.shape), dtype=np.float32)

    def reset(self) -> VecEnvObs:
        """Start every row and ask the rule for its first action."""
        observations = self.venv.reset()
        assert isinstance(observations, np.ndarray)
        self._rule_action, self._state = self._ask(observations, None, np.ones(self.num_envs, dtype=np.bool_))
        return residual_observation(observations, self._rule_action)

    def step_async(self, actions: Array) -> None:
        """Correct the rule's actions."""
        self.venv.step_async(residual_action(self._rule_action, actions, self.scale))

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step and ask the rule what it would do next."""
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        if dones.any():
            last = observations.copy()
            for row in np.flatnonzero(dones):
                last[row] = infos[row]["terminal_observation"]
            # The rule's answer to the end of an episode completes the terminal observation; its memory is thrown away.
            answer, _ = self._ask(last, copy.deepcopy(self._state), np.zeros(self.num_envs, dtype=np.bool_))
            for row in np.flatnonzero(dones):
                infos[row]["terminal_observation"] = residual_observation(last[row], answer[row])
        self._rule_action, self._state = self._ask(observations, self._state, dones)
        return residual_observation(observations, self._rule_action), rewards, dones, infos

    def _ask(self, observations: Array, state: Any, episode_start: Array) -> tuple[Array, Any]:
        action, state = self.rule.predict(observations, state=state, episode_start=episode_start, deterministic=True)
        return np.asarray(action, dtype=np.float32), state


def _by_key(options: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn one dictionary per row into one list per key."""
    for key in {key for chosen in options for key in chosen}:
        if not all(key in chosen for chosen in options):
            raise ConfigError(f"options: {key}: given for some rows only; give it for all.")
    return {key: [chosen[key] for chosen in options] for key in options[0]}


def _whole_steps(horizon_s: tuple[float, float] | None, interval_s: float) -> tuple[int, int] | None:
    """Return the shortest and longest episode in control steps."""
    if horizon_s is None:
        return None
    steps = [value / interval_s for value in horizon_s]
    if any(abs(value - round(value)) > 1e-9 for value in steps) or not 1 <= steps[0] <= steps[1]:
        raise ConfigError(
            f"horizon_s: {tuple(horizon_s)!r} is not allowed; must be two rising multiples of the control "
            f"interval, {interval_s:g} s."
        )
    return round(steps[0]), round(steps[1])
