"""Learning libraries on the environments: the examples, run for a moment, and TorchRL. Each needs its library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from ai_factory_gym.evaluation import evaluate
from ai_factory_gym.vector_env import AIFactoryVectorEnv

torch = pytest.importorskip("torch")

EDGE = "ai_factory/Edge-v0"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------------- CleanRL


def tiny_cleanrl() -> Any:
    pytest.importorskip("tyro")
    from examples import cleanrl_ppo

    return cleanrl_ppo, cleanrl_ppo.Settings(
        total_steps=2 * 3 * 8, rows=3, rollout_steps=8, episode_hours=0.1, epochs=2, minibatches=2
    )


def test_cleanrl_learns_for_two_updates_and_is_evaluated() -> None:
    cleanrl_ppo, settings = tiny_cleanrl()
    actor, records = cleanrl_ppo.train(settings)
    assert [record["steps"] for record in records] == [24, 48]
    # Episodes of six steps and a reset: each row ends one in each rollout.
    assert all(np.isfinite([record["loss"], record["return"]]).all() for record in records)
    torch.manual_seed(settings.seed)
    untrained = cleanrl_ppo.Agent(actor.mean.size, actor.agent.log_std.numel(), settings.initial_log_std)
    assert not torch.equal(untrained.mean[0].weight, actor.agent.mean[0].weight)
    again, _ = cleanrl_ppo.train(settings)
    assert torch.equal(again.agent.mean[0].weight, actor.agent.mean[0].weight)
    row = evaluate(actor, EDGE, seeds=1, horizon_s=600.0).episodes[0]
    assert row["policy"] == "cleanrl_ppo" and row["good_tokens"] > 0.0


def test_cleanrl_bootstraps_time_limits_and_passes_nothing_through_resets() -> None:
    cleanrl_ppo, _ = tiny_cleanrl()

    def column(*values: float) -> Any:
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)

    def estimate(terminated: float) -> list[float]:
        # Steps 0 and 1 are an episode, step 2 is the reset, step 3 begins the next one.
        rollout = cleanrl_ppo.Rollout(
            observations=torch.zeros(4, 1, 2),
            actions=torch.zeros(4, 1, 1),
            log_probabilities=column(0, 0, 0, 0),
            rewards=column(1, 2, 0, 3),
            terminated=column(0, terminated, 0, 0),
            done=column(0, 1, 0, 0),
            acted=column(1, 1, 0, 1),
            values=column(10, 20, 30, 40, 50),
        )
        found: list[float] = cleanrl_ppo.advantages(rollout, gamma=0.5, gae_lambda=0.5).flatten().tolist()
        return found

    # The value after the last step, 30, is that of the episode's own last observation.
    last, first_of_next = 2 + 0.5 * 30 - 20, 3 + 0.5 * 50 - 40
    truncated = estimate(terminated=0.0)
    assert truncated[1] == last and truncated[0] == 1 + 0.5 * 20 - 10 + 0.25 * last
    assert truncated[3] == first_of_next
    assert estimate(terminated=1.0)[1] == 2 - 20


# ----------------------------------------------------------------------------------------------------------- RLlib


@pytest.mark.slow
def test_rllib_samples_the_native_vector_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tyro")
    pytest.importorskip("ray.rllib.algorithms.ppo", reason="needs the rllib extra", exc_type=ImportError)
    import ray

    from examples import rllib_ppo

    settings = rllib_ppo.Settings(iterations=2, rows=3, rollout_steps=8, episode_hours=0.1)
    built: list[Any] = []
    build = rllib_ppo.PPOConfig.build_algo

    def remember(config: Any) -> Any:
        algorithm = build(config)
        built.append(algorithm.env_runner.env.unwrapped)
        return algorithm

    monkeypatch.setattr(rllib_ppo.PPOConfig, "build_algo", remember)
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="warning")
    try:
        actor, returns = rllib_ppo.train(settings)
    finally:
        ray.shutdown()
    assert isinstance(built[0], AIFactoryVectorEnv) and built[0].num_envs == 3
    assert len(returns) == 2 and np.isfinite(returns).all()
    row = evaluate(actor, EDGE, seeds=1, horizon_s=600.0).episodes[0]
    assert row["policy"] == "rllib_ppo" and row["good_tokens"] > 0.0


# --------------------------------------------------------------------------------------------------------- TorchRL


@pytest.fixture
def torchrl() -> Any:
    return pytest.importorskip("torchrl.envs", reason="needs torchrl")


def test_torchrl_steps_the_environment(torchrl: Any) -> None:
    from torchrl.envs.utils import check_env_specs

    env = torchrl.GymWrapper(gymnasium.make(EDGE, horizon_s=300.0))
    check_env_specs(env)
    env.set_seed(3)
    rollout = env.rollout(10)
    assert rollout.batch_size == (5,)
    assert rollout["next", "truncated"].flatten().tolist() == [False] * 4 + [True]
    assert not rollout["next", "terminated"].any()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_torchrl_steps_the_vector_environment(torchrl: Any, mode: str) -> None:
    from torchrl.envs.utils import check_env_specs

    rows, steps = 2, 3
    envs = gymnasium.make_vec(
        EDGE, num_envs=rows, vectorization_mode="vector_entry_point", horizon_s=60.0 * steps, autoreset_mode=mode
    )
    env = torchrl.GymWrapper(envs)
    check_env_specs(env)
    rollout = env.rollout(2 * steps, break_when_any_done=False)
    assert rollout.batch_size == (rows, 2 * steps)
    assert rollout["next", "truncated"][..., 0].tolist() == [[False, False, True] * 2] * rows
    # The last observation of an episode is its own; the next episode begins with another.
    seen, following = rollout["observation"], rollout["next", "observation"]
    for step in range(2 * steps - 1):
        assert torch.equal(following[:, step], seen[:, step + 1]) == ((step + 1) % steps != 0)
