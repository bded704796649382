"""Where the time of training goes, and how long it takes to get somewhere.

``python benchmarks/training.py`` trains PPO with the committed settings for some rollouts, without evaluations, and prints the share of wall
time of the environment, of the rule that is corrected and of the learner. ``--runs runs/Edge-v0-ppo-s0 ...`` prints the time to a
threshold of finished runs of ``train.py`` instead: tokens per joule on tuning days relative to the first evaluation, which is the rule's.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ai_factory_agents.hyperparameters import load_hyperparameters
from ai_factory_agents.policies.residual import make_rule
from ai_factory_agents.run_directory import RunDirectory
from ai_factory_agents.training import Settings, _build, make_training_env
from ai_factory_gym.errors import ConfigError, check_count

GAINS = (0.005, 0.01)
"""Thresholds of ``--runs``: gain in tokens per joule over the rule alone, feasible on every tuning day."""


class Stopwatch:
    """Adds up the time spent in calls."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def shares(settings: Settings, rollouts: int) -> None:
    """Train for some rollouts and print where the time went."""
    torch.set_num_threads(settings.torch_threads)
    hyperparameters = load_hyperparameters(settings.algo, settings.task, settings.hyperparams)
    rows = settings.rows or int(hyperparameters["n_envs"])
    rule = make_rule(settings.residual_of, settings.task)
    venv, residual = make_training_env(settings, rows, rule)
    model, _ = _build(settings, hyperparameters, venv, None)
    environment, asked = Stopwatch(), Stopwatch()
    inner = venv.unwrapped
    inner.step_wait = environment.wrap(inner.step_wait)  # type: ignore[method-assign]
    if residual is not None:
        residual.rule.predict = asked.wrap(residual.rule.predict)
    steps = int(hyperparameters["n_steps"]) * rows
    model.learn(steps)
    environment.seconds = asked.seconds = 0.0
    begin = time.perf_counter()
    model.learn(rollouts * steps, reset_num_timesteps=False)
    total = time.perf_counter() - begin
    venv.close()
    print(
        f"{settings.algo} on {settings.task}: {rows} rows, {settings.rollout_threads} threads, "
        f"{rollouts * steps:,} steps in {total:.1f} s"
    )
    print(f"{rollouts * steps / total:,.0f} steps/s")
    for name, seconds in (
        ("environment, resets included", environment.seconds),
        ("rule that is corrected", asked.seconds),
        ("learner and the rest", total - environment.seconds - asked.seconds),
    ):
        print(f"{name:<30}{seconds / total:6.1%}")


def time_to(run: Path) -> str:
    """Return the line of a run: seconds until each threshold was kept, and the best figure."""
    rows = RunDirectory.open(run).read_metrics()
    start = rows[0]["tokens_per_joule"]
    cells = []
    for gain in GAINS:
        hit = [row for row in rows if row["feasible_share"] == 1.0 and row["tokens_per_joule"] >= (1.0 + gain) * start]
        cells.append(
            f"+{gain:.1%}: {hit[0]['wall_s']:.0f} s ({hit[0]['steps']:,.0f} steps)" if hit else f"+{gain:.1%}: not"
        )
    best = max((row["tokens_per_joule"] for row in rows if row["feasible_share"] == 1.0), default=float("nan"))
    return f"{run.name}: {'; '.join(cells)}; best {best / start - 1.0:+.2%} of {rows[-1]['wall_s']:.0f} s"


def main() -> int:
    """Run the command line; return 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=Settings.task)
    parser.add_argument("--rollouts", type=int, default=6, help="rollouts that are timed, after one that is not")
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="DIRECTORY", help="finished runs: print time to threshold"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=Settings.rollout_threads,
        help="threads that simulate (%(default)s, as in train.py)",
    )
    chosen = parser.parse_args()
    try:
        if chosen.runs:
            for run in chosen.runs:
                print(time_to(run))
        else:
            threads = check_count("threads", chosen.threads)
            shares(Settings(task=chosen.task, rollout_threads=threads), check_count("rollouts", chosen.rollouts))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
