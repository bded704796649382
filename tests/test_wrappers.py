"""Gymnasium's own wrappers on both environments: that what they report is right, not only that they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector as vector_wrappers

import ai_factory_gym  # noqa: F401  registers the tasks

EDGE = "ai_factory/Edge-v0"
STEPS = 6
SETTINGS = {"horizon_s": 60.0 * STEPS, "warmup_s": 120.0}
MODES = list(AutoresetMode)
ROWS = 3
LENGTHS = (2, 4, STEPS)
"""Steps of the first episode of each row; the rows end one after the other. Later episodes take STEPS."""


def make(**changes: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(EDGE, **{**SETTINGS, **changes})


def drawn_actions(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1.0, 1.0, shape).astype(np.float32)


class Trail(NamedTuple):
    observations: np.ndarray
    rewards: np.ndarray
    infos: list[dict[str, Any]]


def play(env: gymnasium.Env[Any, Any], actions: np.ndarray, seed: int = 5) -> Trail:
    """Play one episode to its end."""
    observation, info = env.reset(seed=seed)
    observations, rewards, infos = [observation], [], [info]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    return Trail(np.array(observations), np.array(rewards), infos)


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    return drawn_actions(STEPS, *make().action_space.shape)  # type: ignore[misc]


@pytest.fixture(scope="module")
def bare(actions: np.ndarray) -> Trail:
    return play(make(), actions)


# ---------------------------------------------------------------------------------------------------- single env


def test_episode_statistics_are_sum_and_number_of_rewards(actions: np.ndarray, bare: Trail) -> None:
    trail = play(wrappers.RecordEpisodeStatistics(make()), actions)
    assert trail.infos[-1]["episode"]["r"] == pytest.approx(bare.rewards.sum())
    assert trail.infos[-1]["episode"]["l"] == len(bare.rewards) == STEPS
    assert all("episode" not in info for info in trail.infos[:-1])
    assert {key: value for key, value in trail.infos[-1].items() if key != "episode"} == bare.infos[-1]


def test_normalised_observations_have_the_statistics_of_the_bare_ones(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.NormalizeObservation(make())
    play(env, actions)
    np.testing.assert_allclose(env.obs_rms.mean, bare.observations.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(env.obs_rms.var, bare.observations.var(axis=0), atol=1e-2)
    env.update_running_mean = False
    expected = (bare.observations - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(play(env, actions).observations, expected, rtol=1e-4, atol=1e-4)


def test_normalised_rewards_are_rewards_over_the_spread_of_returns(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.NormalizeReward(make(), gamma=0.9)
    play(env, actions)
    discounted = [bare.rewards[0]]
    for reward in bare.rewards[1:]:
        discounted.append(0.9 * discounted[-1] + reward)
    assert env.return_rms.var == pytest.approx(np.var(discounted), rel=0.01)
    env.update_running_mean = False
    expected = bare.rewards / np.sqrt(env.return_rms.var + env.epsilon)
    np.testing.assert_allclose(play(env, actions).rewards, expected, rtol=1e-6)


def test_time_aware_observations_end_with_the_time(actions: np.ndarray, bare: Trail) -> None:
    # The wrapper reads the length from a TimeLimit, which the tasks themselves do without.
    env = wrappers.TimeAwareObservation(make(max_episode_steps=STEPS), normalize_time=False)
    trail = play(env, actions)
    np.testing.assert_array_equal(trail.observations[:, -1], np.arange(STEPS + 1))
    np.testing.assert_array_equal(trail.observations[:, :-1], bare.observations)
    assert len(play(make(max_episode_steps=2), actions).rewards) == 2


def test_flattened_observations_are_the_observations(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.FlattenObservation(make())
    assert env.observation_space == make().observation_space
    np.testing.assert_array_equal(play(env, actions).observations, bare.observations)


def test_stacked_frames_are_the_last_observations(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.FrameStackObservation(make(), 3)
    stacked = play(env, actions).observations
    assert env.observation_space.contains(stacked[-1].astype(np.float32))
    padded = np.concatenate([bare.observations[:1], bare.observations[:1], bare.observations])
    for step in range(STEPS + 1):
        np.testing.assert_array_equal(stacked[step], padded[step : step + 3])


def test_rescaled_actions_do_what_the_bare_ones_do(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.RescaleAction(make(), np.float32(0.0), np.float32(1.0))
    np.testing.assert_allclose(play(env, (actions + 1.0) / 2.0).rewards, bare.rewards, rtol=1e-3)


def test_clipped_actions_do_what_the_limits_do(actions: np.ndarray) -> None:
    at_the_limits = play(make(), np.sign(actions))
    beyond = play(wrappers.ClipAction(make()), np.sign(actions) * (1.0 + np.abs(actions)))
    np.testing.assert_array_equal(beyond.rewards, at_the_limits.rewards)
    np.testing.assert_array_equal(beyond.observations, at_the_limits.observations)


def test_transformed_rewards_are_the_transform_of_the_bare_ones(actions: np.ndarray, bare: Trail) -> None:
    env = wrappers.TransformReward(make(), lambda reward: 2.0 * float(reward) + 1.0)
    np.testing.assert_allclose(play(env, actions).rewards, 2.0 * bare.rewards + 1.0)


def test_a_usual_stack_of_wrappers_keeps_the_episode(actions: np.ndarray, bare: Trail) -> None:
    env: gymnasium.Env[Any, Any] = wrappers.RecordEpisodeStatistics(make())
    env = wrappers.NormalizeObservation(wrappers.ClipAction(wrappers.FlattenObservation(env)))
    env = wrappers.TransformReward(wrappers.NormalizeReward(env), lambda reward: float(np.clip(reward, -10.0, 10.0)))
    trail = play(env, actions)
    # Recorded below the normalisation: the return is that of the task.
    assert trail.infos[-1]["episode"]["r"] == pytest.approx(bare.rewards.sum())
    assert env.unwrapped.observation_layout.size == bare.observations.shape[1]  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------- vector env


class Step(NamedTuple):
    """One step of all rows; ``first`` marks rows in which it was a reset and no step."""

    observations: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    infos: Any
    first: np.ndarray


def make_vector(mode: AutoresetMode) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(
        EDGE, num_envs=ROWS, vectorization_mode="vector_entry_point", autoreset_mode=mode.value, **SETTINGS
    )


def drive(envs: VectorEnv[Any, Any, Any], mode: AutoresetMode, steps: int = 2 * STEPS) -> Iterator[Step]:
    """Step rows through two episodes of different lengths."""
    acted = drawn_actions(steps, *envs.action_space.shape)  # type: ignore[misc]
    horizons = [60.0 * length for length in LENGTHS]
    observations, infos = envs.reset(seed=11, options={"horizon_s": horizons})
    done = np.zeros(ROWS, dtype=np.bool_)
    yield Step(observations, np.zeros(ROWS), done, infos, ~done)
    for action in acted:
        first = np.zeros(ROWS, dtype=np.bool_)
        if mode is AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})
        if mode is AutoresetMode.NEXT_STEP:
            first = done
        observations, rewards, terminated, truncated, infos = envs.step(action)
        done = terminated | truncated
        yield Step(observations, rewards, done, infos, first)


@pytest.mark.parametrize("mode", MODES)
def test_vector_statistics_are_those_of_each_rows_episodes(mode: AutoresetMode) -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(make_vector(mode))
    earned, lengths = np.zeros(ROWS), np.zeros(ROWS, dtype=int)
    found: list[list[int]] = [[] for _ in range(ROWS)]
    for number, step in enumerate(drive(envs, mode)):
        if number == 0:
            continue
        assert (step.rewards[step.first] == 0.0).all()
        earned += step.rewards
        lengths += ~step.first
        assert ("episode" in step.infos) == step.done.any()
        for row in np.flatnonzero(step.done):
            assert step.infos["_episode"][row]
            assert step.infos["episode"]["r"][row] == pytest.approx(earned[row])
            assert step.infos["episode"]["l"][row] == lengths[row]
            found[row].append(int(lengths[row]))
            earned[row], lengths[row] = 0.0, 0
    assert [row[0] for row in found] == list(LENGTHS)
    assert found[0][1] == STEPS


@pytest.mark.parametrize("mode", MODES)
def test_vector_rewards_are_over_the_spread_of_returns(mode: AutoresetMode) -> None:
    envs = vector_wrappers.NormalizeReward(make_vector(mode), gamma=0.9)
    for bare, step in zip(drive(make_vector(mode), mode), drive(envs, mode), strict=True):
        scale = np.sqrt(envs.return_rms.var + envs.epsilon)
        np.testing.assert_allclose(step.rewards, bare.rewards / scale, rtol=1e-6)
        np.testing.assert_array_equal(step.observations, bare.observations)
        np.testing.assert_array_equal(step.done, bare.done)


def test_vector_observations_are_normalised_by_their_statistics() -> None:
    # Gymnasium's wrapper takes environments that reset in the next step only.
    mode = AutoresetMode.NEXT_STEP
    envs = vector_wrappers.NormalizeObservation(make_vector(mode))
    list(drive(envs, mode))
    bare = np.array([step.observations for step in drive(make_vector(mode), mode)])
    np.testing.assert_allclose(envs.obs_rms.mean, bare.mean(axis=(0, 1)), atol=1e-3)
    envs.update_running_mean = False
    expected = (bare - envs.obs_rms.mean) / np.sqrt(envs.obs_rms.var + envs.epsilon)
    np.testing.assert_allclose([step.observations for step in drive(envs, mode)], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_vector_actions_rescaled_and_clipped_do_what_the_bare_ones_do(mode: AutoresetMode) -> None:
    rescaled = vector_wrappers.RescaleAction(make_vector(mode), np.float32(-2.0), np.float32(2.0))
    halved = vector_wrappers.TransformAction(rescaled, lambda action: 2.0 * action)
    clipped = vector_wrappers.ClipAction(make_vector(mode))
    for bare, doubled, unlimited in zip(
        drive(make_vector(mode), mode), drive(halved, mode), drive(clipped, mode), strict=True
    ):
        np.testing.assert_allclose(doubled.rewards, bare.rewards, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(unlimited.rewards, bare.rewards)
        np.testing.assert_array_equal(unlimited.observations, bare.observations)


@pytest.mark.parametrize("mode", MODES)
def test_listed_infos_are_those_of_single_environments(mode: AutoresetMode) -> None:
    envs = vector_wrappers.DictInfoToList(vector_wrappers.RecordEpisodeStatistics(make_vector(mode)))
    acted = drawn_actions(2 * STEPS, *envs.action_space.shape)  # type: ignore[misc]
    singles = [make() for _ in range(ROWS)]
    started = [
        env.reset(seed=11 + row, options={"horizon_s": 60.0 * LENGTHS[row]})[1] for row, env in enumerate(singles)
    ]
    for number, step in enumerate(drive(envs, mode)):
        assert len(step.infos) == ROWS
        for row, env in enumerate(singles):
            given = dict(step.infos[row])
            assert ("episode" in given) == step.done[row]
            given.pop("episode", None)
            if number == 0:
                assert given == started[row]
                continue
            if step.first[row]:
                assert given == env.reset()[1]
                continue
            observation, _, _, truncated, info = env.step(acted[number - 1][row])
            assert truncated == step.done[row]
            if truncated and mode is AutoresetMode.SAME_STEP:
                assert given.pop("final_info") == info
                np.testing.assert_array_equal(given.pop("final_obs"), observation)
                info = env.reset()[1]
            elif truncated and mode is AutoresetMode.DISABLED:
                env.reset()
            assert given == info
