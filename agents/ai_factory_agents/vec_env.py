"""What Stable-Baselines3 trains on: our vector environment as an SB3 ``VecEnv``, and the residual wrapper.

Order of wrappers: ``FactoryVecEnv`` -> ``ResidualVecEnv`` (if any) -> ``VecMonitor`` -> ``VecNormalize``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ai_factory_agents.policies.residual import corrected_places, residual_action, residual_observation
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation import TRAINING_SEEDS
from ai_factory_gym.vector_env import AIFactoryVectorEnv

Array = NDArray[Any]

HOUR_S = 3600.0


class Window(NamedTuple):
    """One training episode: everything that happens in it, whatever the operator does, follows from these two.

    Attributes:
        seed: Seed of the environment.
        horizon_s: Length, s.
    """

    seed: int
    horizon_s: float


def draw_windows(seed: int, count: int, hours: tuple[float, float], interval_s: float) -> list[Window]:
    """Draw training episodes.

    Args:
        seed: Seed of the draw.
        count: Number of windows.
        hours: Shortest and longest window.
        interval_s: Control interval, s.

    Raises:
        ConfigError: When a length is not a whole number of control steps.
    """
    steps = [value * HOUR_S / interval_s for value in hours]
    if any(abs(value - round(value)) > 1e-6 for value in steps) or not 1 <= round(steps[0]) <= round(steps[1]):
        raise ConfigError(
            f"window_hours: {tuple(hours)!r} is not allowed; must be two rising multiples of the control interval, "
            f"{interval_s:g} s."
        )
    rng = np.random.default_rng([seed, 1])
    seeds = rng.integers(TRAINING_SEEDS.start, TRAINING_SEEDS.stop, count).tolist()
    lengths = rng.integers(round(steps[0]), round(steps[1]) + 1, count).tolist()
    return [Window(seed, interval_s * length) for seed, length in zip(seeds, lengths, strict=True)]


class FactoryVecEnv(VecEnv):
    """``AIFactoryVectorEnv`` as SB3 expects it: rows that end start again in the same step.

    A row that ends carries in its info the ``terminal_observation``, ``TimeLimit.truncated`` (an episode that reaches
    its horizon is not over, so its value is bootstrapped) and the episode's final figures; the info of every other row
    is an empty dictionary, because building them all would cost as much as the step.

    Args:
        env: The vector environment; it must not be stepped by anybody else.
        windows: Episodes to choose from; every episode is one of them, drawn at random. None goes on with each row's own
            random stream and the task's horizon, as the vector environment does.

    Attributes:
        window: Index of each row's window, int64[rows].
        elapsed: Steps of each row's episode so far, int64[rows].
    """

    def __init__(self, env: AIFactoryVectorEnv, *, windows: Sequence[Window] | None = None) -> None:
        """Take the environment over."""
        self.env = env
        self.windows = windows
        rows = env.num_envs
        self._generators = [np.random.default_rng() for _ in range(rows)]
        self.window: Array = np.zeros(rows, dtype=np.int64)
        self.elapsed: Array = np.zeros(rows, dtype=np.int64)
        self._all = np.arange(rows)
        self._actions: Array = np.zeros((rows, env.action_layout.size))
        super().__init__(rows, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start every row; seeds given to ``seed`` and options given to ``set_options`` are used once.

        With windows, a row's seed decides which ones it meets and in what order.
        """
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[row] = np.random.default_rng(seed)
        if self.windows is None:
            observations = self._start(self._seeds, self._options)
        else:
            observations = self.play([self._draw(row) for row in range(self.num_envs)])
        self._reset_seeds()
        self._reset_options()
        return observations

    def play(self, chosen: Sequence[int]) -> Array:
        """Start every row in the window of an index and return the observations."""
        assert self.windows is not None
        self.window[:] = chosen
        drawn = [self.windows[index] for index in chosen]
        return self._start([window.seed for window in drawn], [{"horizon_s": window.horizon_s} for window in drawn])

    def _start(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> Array:
        observations, infos = self.env.reset(seed=list(seeds), options=_by_key(options))
        keys = self.env.factory.info_keys
        self.reset_infos = [{key: infos[key].item(row) for key in keys} for row in range(self.num_envs)]
        self.elapsed[:] = 0
        return observations

    def step_async(self, actions: Array) -> None:
        """Keep the actions, float[rows, actions] in [-1, 1], for ``step_wait``."""
        self._actions = self.env.fleet.first.check(actions, self._actions.shape)

    def step_wait(self) -> VecEnvStepReturn:
        """Run one control step of every row and start those again that ended."""
        fleet = self.env.fleet
        outcome = fleet.new_outcome()
        fleet.step(self._all, self._actions, outcome)
        self.elapsed += 1
        done = outcome.terminated | outcome.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            ended = np.flatnonzero(done)
            for row in ended:
                infos[row] = {
                    **fleet.info(outcome, int(row)),
                    "terminal_observation": outcome.observation[row].copy(),
                    "TimeLimit.truncated": not bool(outcome.terminated[row]),
                }
            outcome.observation[ended] = self._begin_again(done)[ended]
        return outcome.observation, outcome.reward.astype(np.float32), done, infos

    def _begin_again(self, done: Array) -> Array:
        """Start rows again and return the observations of all."""
        self.elapsed[done] = 0
        if self.windows is None:
            return self.env.reset(options={"reset_mask": done})[0]
        seeds: list[int | None] = [None] * len(done)
        # Rows that go on need some value in the list; it is not used.
        horizons = [self.env.task.horizon_s] * len(done)
        for row in np.flatnonzero(done):
            index = self._draw(int(row))
            self.window[row] = index
            seeds[row], horizons[row] = self.windows[index]
        return self.env.reset(seed=seeds, options={"reset_mask": done, "horizon_s": horizons})[0]

    def _draw(self, row: int) -> int:
        """Draw a row's next window."""
        assert self.windows is not None
        return int(self._generators[row].integers(len(self.windows)))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environment, once per row."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment; rows share it, so it cannot be set for some of them."""
        if indices is not None:
            raise ConfigError(f"set_attr: {attr_name!r} cannot be set for single rows: rows share one environment.")
        setattr(self.env, attr_name, value)

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
        pictures = self.env.render() or (None,) * self.num_envs
        return [pictures[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every row: rows have no wrappers."""
        return [False for _ in self._get_indices(indices)]


class ResidualVecEnv(VecEnvWrapper):
    """Actions become corrections of a rule, and the rule's action becomes part of the observation.

    With a reference, the reward becomes what the step earned beyond what the rule alone earns in the same step of the
    same window. Arrivals, prices and caps do not depend on actions, so this changes the return of every policy by the
    same amount, and takes away most of its variance: what a day brings is common to both (Mao et al., "Variance Reduction
    for Reinforcement Learning in Input-Driven Environments", arXiv 1807.02264). A residual of zero earns exactly zero.

    Args:
        venv: Environments with raw observations and actions in [-1, 1].
        rule: Anything with a batched ``predict`` that keeps its memory in ``state`` only.
        scale: See ``residual_action``.
        levers: Levers that are corrected; None takes all.
        reference: Rewards of the rule alone, see ``rule_rewards``; None leaves rewards as they are.
    """

    def __init__(
        self,
        venv: FactoryVecEnv,
        rule: Any,
        scale: float,
        levers: Sequence[str] | None = None,
        reference: Array | None = None,
    ) -> None:
        """Widen the observation space by the rule's action; keep of the action space what is corrected."""
        seen, acted = venv.observation_space, venv.action_space
        assert isinstance(seen, spaces.Box) and isinstance(acted, spaces.Box)
        wider = spaces.Box(
            np.concatenate([seen.low, acted.low]), np.concatenate([seen.high, acted.high]), dtype=np.float32
        )
        slices = venv.env.action_layout.slices
        self.places = corrected_places(slices, tuple(slices) if levers is None else levers)
        narrower = spaces.Box(-1.0, 1.0, self.places.shape, np.float32)
        super().__init__(venv, observation_space=wider, action_space=narrower)
        self.inner = venv
        self.rule = rule
        self.scale = scale
        self.reference = reference
        self._state: Any = None
        self._rule_action: Array = np.zeros((venv.num_envs, *acted.shape), dtype=np.float32)
        self._rule_reward: Array = np.zeros(venv.num_envs, dtype=np.float32)

    def reset(self) -> VecEnvObs:
        """Start every row and ask the rule for its first action."""
        observations = np.asarray(self.venv.reset())
        self._rule_action, self._state = _ask(self.rule, observations, None, np.ones(self.num_envs, dtype=np.bool_))
        return residual_observation(observations, self._rule_action)

    def step_async(self, actions: Array) -> None:
        """Correct the rule's actions."""
        if self.reference is not None:
            self._rule_reward = self.reference[self.inner.window, self.inner.elapsed]
        self.venv.step_async(residual_action(self._rule_action, actions, self.scale, self.places))

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step and ask the rule what it would do next."""
        observations, rewards, dones, infos = self.venv.step_wait()
        observations = np.asarray(observations)
        if dones.any():
            last = observations.copy()
            for row in np.flatnonzero(dones):
                last[row] = infos[row]["terminal_observation"]
            # The rule's answer to the end of an episode completes the terminal observation; its memory is thrown away.
            answer, _ = _ask(self.rule, last, copy.deepcopy(self._state), np.zeros(self.num_envs, dtype=np.bool_))
            for row in np.flatnonzero(dones):
                infos[row]["terminal_observation"] = residual_observation(last[row], answer[row])
        self._rule_action, self._state = _ask(self.rule, observations, self._state, dones)
        return residual_observation(observations, self._rule_action), rewards - self._rule_reward, dones, infos


def rule_rewards(venv: FactoryVecEnv, rule: Any) -> Array:
    """Return what a rule earns in every step of every window of an environment, float32[windows, longest].

    Args:
        venv: Environments with windows; they are left in the middle of episodes.
        rule: As in ``ResidualVecEnv``.
    """
    assert venv.windows is not None
    interval_s = venv.env.task.control_interval_s
    lengths = np.array([round(window.horizon_s / interval_s) for window in venv.windows])
    earned = np.zeros((len(lengths), int(lengths.max())), dtype=np.float32)
    # Windows of about one length side by side: a row whose window has ended idles until the longest has.
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), venv.num_envs):
        chosen = np.resize(order[begin : begin + venv.num_envs], venv.num_envs)
        observations = venv.play(chosen.tolist())
        state: Any = None
        start = np.ones(venv.num_envs, dtype=np.bool_)
        for step in range(int(lengths[chosen].max())):
            action, state = _ask(rule, observations, state, start)
            seen, rewards, start, _ = venv.step(action)
            observations = np.asarray(seen)
            running = step < lengths[chosen]
            earned[chosen[running], step] = rewards[running]
    return earned


def _ask(rule: Any, observations: Array, state: Any, episode_start: Array) -> tuple[Array, Any]:
    action, state = rule.predict(observations, state=state, episode_start=episode_start, deterministic=True)
    return np.asarray(action, dtype=np.float32), state


def _by_key(options: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn one dictionary per row into one list per key."""
    for key in {key for chosen in options for key in chosen}:
        if not all(key in chosen for chosen in options):
            raise ConfigError(f"options: {key}: given for some rows only; give it for all.")
    return {key: [chosen[key] for chosen in options] for key in options[0]}
