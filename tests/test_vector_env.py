"""The vector environment: rows are single environments, whatever the task, the autoreset mode or the number of threads."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ai_factory_gym import TASKS
from ai_factory_gym.engine.ahead import FEW_ROWS
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.vector_env import AIFactoryVectorEnv

EDGE = "ai_factory/Edge-v0"
ROWS = 3
SHORT: dict[str, Any] = {"horizon_s": 180.0, "warmup_s": 60.0}
FEW_REQUESTS = {
    EDGE: 0.05,
    "ai_factory/Enterprise-v0": 0.01,
    "ai_factory/Sovereign-v0": 2e-3,
    "ai_factory/Hyperscale-v0": 5e-4,
    "ai_factory/Sovereign-v1": 2e-3,
    "ai_factory/Hyperscale-v1": 5e-4,
}
"""Share of demand at request resolution: every task, with some thousand requests a minute."""


def vector(rows: int = ROWS, task: str = EDGE, **settings: Any) -> AIFactoryVectorEnv:
    made = gymnasium.make_vec(task, num_envs=rows, vectorization_mode="vector_entry_point", **settings).unwrapped
    assert isinstance(made, AIFactoryVectorEnv)
    return made


def drawn(envs: AIFactoryVectorEnv, steps: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, *envs.action_space.shape)).astype(np.float32)  # type: ignore[misc]


def assert_row(info: dict[str, Any], infos: dict[str, Any], row: int) -> None:
    """Every key of the single environment's info has the row's value."""
    assert set(infos) >= set(info)
    for key, value in info.items():
        assert infos[key][row] == value, key
        assert infos[f"_{key}"][row], key


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("resolution", ["cohort", "coarse", "request"])
@pytest.mark.parametrize("task", TASKS)
def test_row_equals_single_environment(task: str, resolution: str, mode: AutoresetMode, threads: int) -> None:
    settings = dict(SHORT, resolution=resolution)
    if resolution == "request":
        settings["demand_scale"] = FEW_REQUESTS[task]
    envs = vector(task=task, autoreset_mode=mode, threads=threads, **settings)
    singles = [gymnasium.make(task, **settings) for _ in range(ROWS)]
    observations, infos = envs.reset(seed=11)
    for row, env in enumerate(singles):
        observation, info = env.reset(seed=11 + row)
        assert np.array_equal(observation, observations[row])
        assert_row(info, infos, row)
    done = np.zeros(ROWS, dtype=bool)
    for action in drawn(envs, steps=8):
        if mode is AutoresetMode.DISABLED and done.any():
            observations, infos = envs.reset(options={"reset_mask": done})
            for row in np.flatnonzero(done):
                observation, info = singles[row].reset()
                assert np.array_equal(observation, observations[row])
                assert_row(info, infos, row)
            done[:] = False
        observations, rewards, terminations, truncations, infos = envs.step(action)
        for row, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and done[row]:
                observation, info = env.reset()
                assert rewards[row] == 0.0 and not terminations[row] and not truncations[row]
            else:
                observation, reward, terminated, truncated, info = env.step(action[row])
                assert (reward, terminated, truncated) == (rewards[row], terminations[row], truncations[row])
                if mode is AutoresetMode.SAME_STEP and (terminated or truncated):
                    assert np.array_equal(infos["final_obs"][row], observation) and infos["_final_obs"][row]
                    assert_row(info, infos["final_info"], row)
                    observation, info = env.reset()
            assert np.array_equal(observation, observations[row])
            assert_row(info, infos, row)
        done = truncations | terminations
        if mode is AutoresetMode.SAME_STEP:
            done = np.zeros(ROWS, dtype=bool)
    envs.close()


@pytest.mark.parametrize("resolution", ["cohort", "coarse", "request"])
def test_many_rows_are_single_environments(resolution: str) -> None:
    # Of so many rows, the memory of each is asked for while the one before is simulated.
    settings = dict(SHORT, resolution=resolution)
    if resolution == "request":
        settings["demand_scale"] = FEW_REQUESTS[EDGE]
    envs = vector(FEW_ROWS + 4, autoreset_mode="SameStep", **settings)
    observed = [envs.reset(seed=5)[0]]
    actions = drawn(envs, steps=5)
    rewarded = []
    for action in actions:
        observations, rewards, *_ = envs.step(action)
        observed.append(observations)
        rewarded.append(rewards)
    for row in (0, 1, FEW_ROWS, FEW_ROWS + 3):
        env = gymnasium.make(EDGE, **settings)
        expected = [env.reset(seed=5 + row)[0]]
        for step, action in enumerate(actions[:, row]):
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == rewarded[step][row]
            expected.append(env.reset()[0] if terminated or truncated else observation)
        assert np.array_equal(expected, [seen[row] for seen in observed])


def test_rows_end_one_by_one_when_their_horizons_differ() -> None:
    envs = vector(autoreset_mode="SameStep", warmup_s=60.0)
    envs.reset(seed=0, options={"horizon_s": [60.0, 120.0, 180.0], "start_time_s": 0.0})
    ends = [envs.step(action)[3].tolist() for action in drawn(envs, 3)]
    assert ends == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing_while_arrays_grow(threads: int) -> None:
    # Few slots to begin with, and clocks that let requests pile up: the arrays have to grow in the middle of a step.
    settings = dict(SHORT, resolution="request", demand_scale=FEW_REQUESTS[EDGE])
    envs = vector(4, threads=threads, **settings)
    envs.factory.engine._slots = 700
    seen = [envs.reset(seed=3)[0]]
    slots = [envs.factory.engine.state.free.shape[1]]
    lowest = -np.ones(envs.action_space.shape, np.float32)  # type: ignore[arg-type]
    for _ in range(3):
        seen.append(envs.step(lowest)[0])
        slots.append(envs.factory.engine.state.free.shape[1])
    assert slots[-1] > slots[0] > 700
    alone = vector(4, **settings)
    expected = [alone.reset(seed=3)[0]] + [alone.step(lowest)[0] for _ in range(3)]
    assert alone.factory.engine.state.free.shape[1] == 32768
    assert np.array_equal(seen, expected)
    envs.close()


def test_nothing_that_is_returned_shares_memory() -> None:
    envs = vector(autoreset_mode="SameStep", **SHORT)
    kept: list[tuple[str, np.ndarray]] = []

    def keep(label: str, *values: Any) -> None:
        for value in values:
            if isinstance(value, dict):
                keep(label, *value.values())
            elif isinstance(value, np.ndarray) and value.dtype == object:
                keep(label, *[entry for entry in value if entry is not None])
            elif isinstance(value, np.ndarray):
                assert not any(np.shares_memory(value, other) for _, other in kept), label
                kept.append((label, value))

    keep("reset", *envs.reset(seed=1))
    for step, action in enumerate(drawn(envs, 3)):
        keep(f"step {step}", *envs.step(action))
    copies = [value.copy() for _, value in kept]
    envs.step(drawn(envs, 1)[0])
    assert all(np.array_equal(value, copy) for (_, value), copy in zip(kept, copies, strict=True))


def test_rows_of_different_tasks_are_their_single_environments() -> None:
    own = [{"scenario": "burst"}, {}, {"scenario": "curtailment", "demand_scale": 0.5}, {"scenario": "burst"}]
    for threads in (1, 2):
        envs = vector(4, row_settings=own, autoreset_mode="SameStep", threads=threads, **SHORT)
        assert len(envs.fleet.factories) == 3
        singles = [gymnasium.make(EDGE, **{**SHORT, **entry}) for entry in own]
        observations, infos = envs.reset(seed=20)
        for row, env in enumerate(singles):
            observation, info = env.reset(seed=20 + row)
            assert np.array_equal(observation, observations[row])
            assert_row(info, infos, row)
        for action in drawn(envs, 5):
            observations, rewards, _, truncations, infos = envs.step(action)
            for row, env in enumerate(singles):
                observation, reward, _, truncated, info = env.step(action[row])
                assert (reward, truncated) == (rewards[row], truncations[row])
                if truncated:
                    assert_row(info, infos["final_info"], row)
                    observation, info = env.reset()
                assert np.array_equal(observation, observations[row])
                assert_row(info, infos, row)
        envs.close()


def test_a_trace_in_one_row(tmp_path: Any) -> None:
    path = tmp_path / "trace.csv"
    rng = np.random.default_rng(0)
    columns = np.sort(rng.uniform(0, 900, 500)), rng.integers(50, 500, 500), rng.integers(10, 300, 500)
    lines = "\n".join(f"{t:.3f},{p},{o}" for t, p, o in zip(*columns, strict=True))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + lines + "\n")
    settings: dict[str, Any] = {"trace_class": "chat", **SHORT}
    own = [{"trace": str(path), "rate_scale": 2.0}, {"trace": str(path), "rate_scale": 3.5}]
    envs = vector(2, row_settings=own, **settings)
    observations, _ = envs.reset(seed=5)
    for row, entry in enumerate(own):
        assert np.array_equal(gymnasium.make(EDGE, **settings, **entry).reset(seed=5 + row)[0], observations[row])


def test_a_copy_goes_on_equally_with_its_own_threads() -> None:
    envs = vector(4, threads=2, **SHORT)
    envs.reset(seed=2)
    first, second, *_ = drawn(envs, 2)
    envs.step(first)
    copy = pickle.loads(pickle.dumps(envs))
    assert np.array_equal(envs.step(second)[0], copy.step(second)[0])
    envs.close()
    copy.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": 0}, ["threads", "0", "at least 1"]),
        ({"threads": 1.5}, ["threads", "1.5"]),
        ({"threads": True}, ["threads", "True"]),
        ({"thread": 2}, ["'thread'", "Did you mean 'threads'"]),
        ({"row_settings": {"scenario": "burst"}}, ["row_settings", "one dict per row"]),
        ({"row_settings": [{}]}, ["row_settings", "1 given for 3 rows"]),
        ({"row_settings": [{}, {}, 5]}, ["row_settings", "5"]),
        ({"row_settings": [{}, {}, {"scenario": "brust"}]}, ["scenario", "Did you mean 'burst'"]),
        ({"row_settings": [{}, {}, {"levers": ("clock",)}]}, ["row_settings", "observations", "differ"]),
        ({"row_settings": [{}, {}, {"site": "enterprise"}]}, ["row_settings", "differ"]),
    ],
)
def test_bad_rows_and_threads_are_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        vector(**{**SHORT, **settings})
    for word in words:
        assert word in str(error.value)


def test_an_action_is_shown_with_the_digits_it_was_given() -> None:
    envs = vector(**SHORT)
    envs.reset(seed=0)
    for kind in (np.float32, np.float64):
        actions = np.zeros(envs.action_space.shape, kind)  # type: ignore[arg-type]
        actions[1, 3] = 1.1
        with pytest.raises(ConfigError, match=r"action: 1\.1 at row 1, index 3 is not allowed"):
            envs.step(actions)


def test_options_of_a_reset_that_are_unknown_are_shown_with_all_that_are_allowed() -> None:
    envs = vector(**SHORT)
    with pytest.raises(ConfigError, match=r"allowed: .*reset_mask.*Did you mean 'reset_mask'"):
        envs.reset(options={"reset_masks": [True] * envs.num_envs})
    with pytest.raises(ConfigError, match="reset_mask"):
        envs.reset(options=["reset_mask"])  # type: ignore[arg-type]


def test_an_action_that_is_out_of_range_steps_no_row() -> None:
    envs = vector(**SHORT)
    envs.reset(seed=0)
    before = envs.factory.engine.snapshot()
    bad = np.zeros(envs.action_space.shape)  # type: ignore[arg-type]
    bad[2, 1] = np.nan
    with pytest.raises(ConfigError, match="nan at row 2, index 1 is not allowed"):
        envs.step(bad)
    after = envs.factory.engine.snapshot()
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before.state, after.state, strict=True))
