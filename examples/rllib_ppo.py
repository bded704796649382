"""PPO of RLlib (its new API stack) on the native vector environment, then judged like every other policy.

    python examples/rllib_ppo.py
    python examples/rllib_ppo.py --iterations 50 --rows 32 --env-runners 2

RLlib's env runners call ``gymnasium.make_vec`` with the vectorisation mode they are given, so with
``vector_entry_point`` each of them steps one `AIFactoryVectorEnv` with all its rows instead of a list of single
environments. It resets in the step after an episode's end, which is what RLlib expects.

Needs the ``rllib`` and ``eval`` extras and torch. A short run shows how it is done; it does not make a good operator.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

import ai_factory_baselines
from ai_factory_gym.evaluation import comparison_table, evaluate


@dataclass(frozen=True)
class Settings:
    """Train RLlib's PPO on a task and compare it with the rule `reactive` on held-out seeds."""

    task: str = "ai_factory/Edge-v0"
    """Registered id of the task."""
    seed: int = 0
    """Seed of the networks and of the episodes."""
    iterations: int = 20
    """Rounds of sampling and learning."""
    rows: int = 16
    """Sites that an env runner simulates side by side."""
    env_runners: int = 0
    """Ray actors that sample; 0 samples in this process."""
    rollout_steps: int = 120
    """Steps of every row per iteration."""
    episode_hours: float = 2.0
    """Length of a training episode, which starts at a random time of day."""
    learning_rate: float = 3e-4
    """Step size of Adam."""
    evaluation_seeds: int = 3
    """Held-out seeds of the comparison at the end; 0 leaves it out."""
    evaluation_hours: float = 24.0
    """Length of the episodes of the comparison."""


class Actor:
    """The trained module as ``ai_factory_gym.evaluation`` and the rules have it: numpy in, numpy out."""

    name = "rllib_ppo"

    def __init__(self, module: Any) -> None:
        """Take the module of an algorithm."""
        self.module = module

    def predict(
        self,
        observation: np.ndarray[Any, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray[Any, Any], Any]:
        """Return the action for an observation."""
        with torch.no_grad():
            seen = torch.as_tensor(observation, dtype=torch.float32)[None]
            given = self.module.forward_inference({"obs": seen})["action_dist_inputs"]
            chosen = self.module.get_inference_action_dist_cls().from_logits(given)
            action = (chosen.to_deterministic() if deterministic else chosen).sample()
        return np.clip(action[0].numpy(), -1.0, 1.0), state


def configure(settings: Settings) -> PPOConfig:
    """Return RLlib's configuration."""
    samplers = max(1, settings.env_runners)
    return (
        PPOConfig()
        # The module in front of the colon is imported wherever the environment is made, which registers the task.
        .environment(
            f"ai_factory_gym:{settings.task}",
            env_config={"horizon_s": 3600.0 * settings.episode_hours, "start_time_s": "random"},
        )
        .env_runners(
            num_env_runners=settings.env_runners,
            num_envs_per_env_runner=settings.rows,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=settings.rollout_steps,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=samplers * settings.rows * settings.rollout_steps,
            minibatch_size=min(512, samplers * settings.rows * settings.rollout_steps),
            num_epochs=8,
            lr=settings.learning_rate,
            gamma=0.98,
            lambda_=0.9,
            use_kl_loss=False,
            clip_param=0.2,
            # Rewards are of the order of one, but an overloaded site loses hundreds per episode.
            vf_clip_param=1e6,
            vf_loss_coeff=1e-3,
            grad_clip=0.5,
        )
        .rl_module(
            model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
        )
        .debugging(seed=settings.seed, log_level="ERROR")
    )


def train(settings: Settings) -> tuple[Actor, list[float]]:
    """Train; return the policy and the mean return of the episodes that ended in each iteration."""
    torch.set_num_threads(1)
    algorithm = configure(settings).build_algo()
    returns: list[float] = []
    started_s = time.perf_counter()
    try:
        for _ in range(settings.iterations):
            result = algorithm.train()
            sampled = result["env_runners"]
            returns.append(float(sampled.get("episode_return_mean", float("nan"))))
            print(
                f"{int(result['num_env_steps_sampled_lifetime']):>9,} steps {time.perf_counter() - started_s:6.0f} s   "
                f"return {returns[-1]:8.1f}"
            )
        return Actor(algorithm.get_module()), returns
    finally:
        algorithm.stop()


def main() -> None:
    """Train, then compare with a rule."""
    settings = tyro.cli(Settings)
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        **({} if "RAY_ADDRESS" in os.environ else {"num_cpus": 1 + settings.env_runners, "include_dashboard": False}),
        logging_level="warning",
    )
    actor, _ = train(settings)
    ray.shutdown()
    if settings.evaluation_seeds:
        rule = functools.partial(ai_factory_baselines.make, "reactive")
        results = [
            evaluate(
                policy,
                settings.task,
                seeds=settings.evaluation_seeds,
                horizon_s=3600.0 * settings.evaluation_hours,
                policy_name=name,
            )
            for name, policy in ((actor.name, actor), ("reactive", rule))
        ]
        print(f"\n{comparison_table(results)}")


if __name__ == "__main__":
    main()
