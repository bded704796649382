"""PPO in one file, in the style of CleanRL: plain torch on Gymnasium's vector API, no learning library.

    python examples/cleanrl_ppo.py
    python examples/cleanrl_ppo.py --task ai_factory/Enterprise-v0 --total-steps 400000 --rows 32

A starting point for algorithms of your own rather than a tuned agent; ``train.py`` trains those. Needs torch and the
``eval`` extra.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.wrappers.vector import ClipAction, NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from torch import nn
from torch.distributions import Normal

import ai_factory_baselines
import ai_factory_gym  # noqa: F401  registers the tasks
from ai_factory_gym.evaluation import comparison_table, evaluate


@dataclass(frozen=True)
class Settings:
    """Train PPO on a task and compare it with the rule `reactive` on held-out seeds."""

    task: str = "ai_factory/Edge-v0"
    """Registered id of the task."""
    seed: int = 0
    """Seed of the networks and of the episodes."""
    total_steps: int = 100_000
    """Control steps over all rows."""
    rows: int = 16
    """Sites simulated side by side."""
    rollout_steps: int = 128
    """Steps of every row between two updates."""
    episode_hours: float = 2.0
    """Length of a training episode, which starts at a random time of day."""
    learning_rate: float = 3e-4
    """Step size of Adam, falling linearly to zero."""
    gamma: float = 0.98
    """Discount factor per control step."""
    gae_lambda: float = 0.9
    """Decay of generalised advantage estimation."""
    epochs: int = 8
    """Passes over a rollout."""
    minibatches: int = 4
    """Minibatches per pass."""
    clip: float = 0.2
    """Largest change of an action's probability that is still rewarded."""
    value_weight: float = 0.5
    """Weight of the value's loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    initial_log_std: float = -1.5
    """Logarithm of the standard deviation of actions at the start. An action of zero is a sensible operating point, so
    wide exploration mostly finds overload."""
    evaluation_seeds: int = 3
    """Held-out seeds (whole days) of the comparison at the end; 0 leaves it out."""


class Agent(nn.Module):
    """A Gaussian policy with a state-independent width, and a value function."""

    def __init__(self, observations: int, actions: int, initial_log_std: float) -> None:
        """Build both networks; the first actions are near zero."""
        super().__init__()
        self.mean = _network(observations, actions, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((actions,), initial_log_std))
        self.value = _network(observations, 1, last_gain=1.0)

    def distribution(self, observations: torch.Tensor) -> Normal:
        """Return the distribution of actions, [..., actions]."""
        return Normal(self.mean(observations), self.log_std.exp())


def _network(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Rollout(NamedTuple):
    """What was seen and done, [steps, rows, ...]; values have one step more, the one after the last."""

    observations: torch.Tensor
    actions: torch.Tensor
    log_probabilities: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    done: torch.Tensor
    acted: torch.Tensor
    values: torch.Tensor


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> torch.Tensor:
    """Return generalised advantage estimates, [steps, rows].

    The environment resets in the step after an episode's end (``AutoresetMode.NEXT_STEP``). So the observation after a
    last step is the episode's own last one, whose value is what a truncated episode would still have earned; only a
    terminated one is worth nothing. The step after that ignores the action and earns nothing: it is not ``acted``, no
    advantage passes through it, and it is left out of the loss.
    """
    found = torch.zeros_like(rollout.rewards)
    following = torch.zeros_like(rollout.rewards[0])
    for step in reversed(range(len(found))):
        goes_on = 1.0 - rollout.terminated[step]
        error = rollout.rewards[step] + gamma * rollout.values[step + 1] * goes_on - rollout.values[step]
        following = error + gamma * gae_lambda * (1.0 - rollout.done[step]) * following
        found[step] = following
    return found


class Actor:
    """The trained policy as ``ai_factory_gym.evaluation`` and the rules have it: numpy in, numpy out."""

    name = "cleanrl_ppo"

    def __init__(self, agent: Agent, normalise: NormalizeObservation) -> None:
        """Take the policy and the normalisation of observations as they are."""
        self.agent = agent
        self.mean = normalise.obs_rms.mean
        self.scale = 1.0 / np.sqrt(normalise.obs_rms.var + normalise.epsilon)

    def predict(
        self,
        observation: np.ndarray[Any, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray[Any, Any], Any]:
        """Return the action for an observation."""
        with torch.no_grad():
            seen = torch.as_tensor((observation - self.mean) * self.scale, dtype=torch.float32)
            chosen = self.agent.distribution(seen)
            action = chosen.mean if deterministic else chosen.sample()
        return np.clip(action.numpy(), -1.0, 1.0), state


def train(settings: Settings) -> tuple[Actor, list[dict[str, float]]]:
    """Train an agent; return it and a record per update."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)
    envs: Any = gymnasium.make_vec(
        settings.task,
        num_envs=settings.rows,
        vectorization_mode="vector_entry_point",
        horizon_s=3600.0 * settings.episode_hours,
        start_time_s="random",
    )
    envs = RecordEpisodeStatistics(envs)
    normalise = NormalizeObservation(ClipAction(envs))
    envs = NormalizeReward(normalise, gamma=settings.gamma)
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0], settings.initial_log_std)
    optimiser = torch.optim.Adam(agent.parameters(), settings.learning_rate, eps=1e-5)

    updates = max(1, settings.total_steps // (settings.rows * settings.rollout_steps))
    records: list[dict[str, float]] = []
    observation, _ = envs.reset(seed=settings.seed)
    done = np.zeros(settings.rows, dtype=np.bool_)
    started_s = time.perf_counter()
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * (1.0 - update / updates)
        returns: list[float] = []
        steps: list[tuple[Any, ...]] = []
        values: list[torch.Tensor] = []
        with torch.no_grad():
            for _ in range(settings.rollout_steps):
                seen = torch.as_tensor(observation)
                chosen = agent.distribution(seen)
                action = chosen.sample()
                values.append(agent.value(seen).squeeze(-1))
                acted = ~done
                observation, reward, terminated, truncated, infos = envs.step(action.numpy())
                done = terminated | truncated
                steps.append((seen, action, chosen.log_prob(action).sum(-1), reward, terminated, done, acted))
                if "episode" in infos:
                    returns += infos["episode"]["r"][infos["_episode"]].tolist()
            values.append(agent.value(torch.as_tensor(observation)).squeeze(-1))
        columns = [
            torch.stack([torch.as_tensor(cell, dtype=torch.float32) for cell in c]) for c in zip(*steps, strict=True)
        ]
        rollout = Rollout._make([*columns, torch.stack(values)])
        loss = _improve(agent, optimiser, rollout, settings)
        records.append({"steps": (update + 1) * rollout.rewards.numel(), "loss": loss})
        records[-1]["return"] = float(np.mean(returns)) if returns else float("nan")
        print(
            f"{records[-1]['steps']:>9,} steps {time.perf_counter() - started_s:6.0f} s   "
            f"return {records[-1]['return']:8.1f} over {len(returns)} episodes   loss {loss:7.3f}"
        )
    envs.close()
    return Actor(agent, normalise), records


def _improve(agent: Agent, optimiser: torch.optim.Optimizer, rollout: Rollout, settings: Settings) -> float:
    """Run the epochs of one update; return the last loss."""
    gained = advantages(rollout, settings.gamma, settings.gae_lambda)
    kept = rollout.acted.flatten() > 0.5
    observations = rollout.observations.flatten(0, 1)[kept]
    actions = rollout.actions.flatten(0, 1)[kept]
    before = rollout.log_probabilities.flatten()[kept]
    advantage = gained.flatten()[kept]
    target = (gained + rollout.values[:-1]).flatten()[kept]
    loss = torch.zeros(())
    for _ in range(settings.epochs):
        for part in torch.randperm(len(target)).chunk(settings.minibatches):
            ratio = (agent.distribution(observations[part]).log_prob(actions[part]).sum(-1) - before[part]).exp()
            gain = (advantage[part] - advantage[part].mean()) / (advantage[part].std() + 1e-8)
            clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            policy_loss = -torch.min(ratio * gain, clipped * gain).mean()
            value_loss = 0.5 * (agent.value(observations[part]).squeeze(-1) - target[part]).square().mean()
            loss = policy_loss + settings.value_weight * value_loss
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), settings.max_grad_norm)
            optimiser.step()
    return float(loss.detach())


def main() -> None:
    """Train, then compare with a rule."""
    settings = tyro.cli(Settings)
    actor, _ = train(settings)
    if settings.evaluation_seeds:
        rule = functools.partial(ai_factory_baselines.make, "reactive")
        results = [
            evaluate(policy, settings.task, seeds=settings.evaluation_seeds, policy_name=name)
            for name, policy in ((actor.name, actor), ("reactive", rule))
        ]
        print(f"\n{comparison_table(results)}")


if __name__ == "__main__":
    main()
