"""Callbacks of a training run: evaluation on tuning seeds, checkpoints, the episode's figures in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from ai_factory_agents.policies.artefact import TrainedPolicy
from ai_factory_agents.run_directory import RunDirectory
from ai_factory_gym.evaluation import TUNING_SEEDS, EvaluationResult, evaluate


def score(feasible_share: float, tokens_per_joule: float, episode_return: float) -> tuple[float, float]:
    """Return what makes a policy better than another: feasible in every episode first, then tokens per joule.

    Among infeasible ones tokens per joule would reward shedding work, so the episode's return decides.
    """
    return (1.0, tokens_per_joule) if feasible_share >= 1.0 else (0.0, episode_return)


class EvaluationCallback(BaseCallback):
    """Evaluates the policy between updates, keeps the best one and saves checkpoints.

    What is evaluated is the artefact itself, with the normalisation of that moment, by the evaluation that publishes
    results, on tuning seeds; so what is saved as best is exactly what was measured. (SB3's ``EvalCallback`` saves a
    model without its VecNormalize statistics.)

    Args:
        run: Where to save.
        export: Makes an artefact of the model as it is.
        task: Registered id.
        every: Environment steps between evaluations.
        seeds: Number of tuning seeds.
        horizon_s: Length of an episode, s; None is a day.
        jobs: Processes.
        report: Called with a line of text after each evaluation.
        env: Further arguments of the environment.
    """

    def __init__(
        self,
        run: RunDirectory,
        export: Callable[[], TrainedPolicy],
        *,
        task: str,
        every: int,
        seeds: int,
        horizon_s: float | None,
        jobs: int,
        report: Callable[[str], None],
        env: Mapping[str, Any] | None = None,
    ) -> None:
        """Go on from the evaluations the run has already."""
        super().__init__()
        self.run = run
        self.export = export
        self.task = task
        self.every = every
        self.seeds = list(TUNING_SEEDS[:seeds])
        self.horizon_s = horizon_s
        self.jobs = jobs
        self.report = report
        self.env = dict(env or {})
        earlier = run.read_metrics()
        self.best = max((_score_of(row) for row in earlier), default=None)
        self.done_at = {int(row["steps"]) for row in earlier}
        self.wall_before_s = max((row["wall_s"] for row in earlier), default=0.0)
        self._started_s = time.perf_counter()

    def _on_training_start(self) -> None:
        self._started_s = time.perf_counter()
        self._next = (self.num_timesteps // self.every) * self.every

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            self._next = (self.num_timesteps // self.every + 1) * self.every
            self.evaluate_now()

    def _on_training_end(self) -> None:
        self.evaluate_now()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                for key in ("tokens_per_joule", "sla_attainment"):
                    self.logger.record_mean(f"rollout/{key}", info[key])
                self.logger.record_mean("rollout/reward_per_step", info["episode"]["r"] / info["episode"]["l"])
        return True

    def evaluate_now(self) -> None:
        """Evaluate, write metrics, and save a checkpoint and the best policy; once per number of steps."""
        steps = self.num_timesteps
        normalise = self.model.get_vec_normalize_env()
        assert isinstance(normalise, VecNormalize)
        if steps > 0:
            self.run.save_checkpoint(self.model, normalise)
        if steps in self.done_at:
            return
        self.done_at.add(steps)
        policy = self.export()
        result = evaluate(
            policy,
            self.task,
            seeds=self.seeds,
            horizon_s=self.horizon_s,
            env_kwargs=self.env,
            n_jobs=self.jobs,
            policy_name=policy.name,
            progress=False,
        )
        row = {"steps": steps, "wall_s": self.wall_before_s + time.perf_counter() - self._started_s, **_figures(result)}
        better = self.best is None or _score_of(row) > self.best
        if better:
            self.best = _score_of(row)
            policy.save(self.run.best)
        row["best"] = float(better)
        self.run.add_metrics(row)
        for key, value in row.items():
            if key not in ("steps", "wall_s"):
                self.logger.record(f"tuning/{key}", value)
        # Dumped here, because SB3 dumps at the end of a rollout only and the last evaluation comes after it.
        self.logger.dump(steps)
        self.report(
            f"{steps:>9,} steps {row['wall_s']:6.0f} s   tuning seeds: {row['tokens_per_joule']:.4f} tokens/J, "
            f"{row['feasible_share']:.0%} feasible, return {row['return']:.1f}{'   best so far' if better else ''}"
        )


def _score_of(row: dict[str, float]) -> tuple[float, float]:
    return score(row["feasible_share"], row["tokens_per_joule"], row["return"])


def _figures(result: EvaluationResult) -> dict[str, float]:
    metrics = result.summary["metrics"]
    slack = min(found["worst"] - found["target"] for found in result.summary["class_attainment"].values())
    return {
        "feasible_share": result.summary["feasible_share"],
        "tokens_per_joule": metrics["tokens_per_joule_facility"]["iqm"],
        "return": metrics["return"]["mean"],
        "sla_attainment": result.summary["sla_attainment"],
        "worst_class_slack": float(np.float64(slack)),
        "cap_violation_share": metrics["cap_violation_share"]["maximum"],
        "brake_share": metrics["brake_share"]["maximum"],
    }
