"""Trained policies that ship with the package, and those of training runs."""

from __future__ import annotations

import os
from pathlib import Path

from ai_factory_agents.policies.artefact import TrainedPolicy
from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.registration import CUSTOM

DIRECTORY = Path(__file__).parent
ALGORITHMS = ("ppo", "sac")


def available() -> list[tuple[str, str]]:
    """Return (algorithm, task) of every policy that ships."""
    return sorted((path.parent.name, f"ai_factory/{path.stem}") for path in DIRECTORY.glob("*/*.zip"))


def load(algo: str, task: str) -> TrainedPolicy:
    """Return the policy that ships for a task.

    Args:
        algo: ``ppo`` or ``sac``.
        task: Registered id, ``ai_factory/Edge-v0``.

    Raises:
        ConfigError: For an unknown algorithm or task, or when none was trained for the two.
    """
    if algo not in ALGORITHMS:
        raise unknown("algo", algo, ALGORITHMS)
    from ai_factory_gym import TASKS

    plain = str(task).rpartition(":")[2]
    if plain not in (*TASKS, CUSTOM):
        raise unknown("task", task, list(TASKS))
    path = DIRECTORY / algo / f"{plain.rpartition('/')[2]}.zip"
    if not path.is_file() and plain == CUSTOM:
        raise ConfigError(
            f"algo: no trained {algo!r} ships for {CUSTOM}, and none can: an agent is of one site. "
            f"`python train.py --algo {algo} --task {CUSTOM} --env site=my_site.toml` trains one on yours; give its run directory "
            "(runs/Custom-v0-...) among the policies instead."
        )
    if not path.is_file():
        known = ", ".join(f"{a} for {t}" for a, t in available()) or "none"
        raise ConfigError(
            f"algo: no trained {algo!r} ships for {plain}; there is: {known}. "
            f"`python train.py --algo {algo} --task {plain}` trains one (--hyperparams FILE where none ship for the task); "
            "give its run directory instead."
        )
    return TrainedPolicy.load(path)


def load_run(directory: str | os.PathLike[str]) -> TrainedPolicy:
    """Return the best policy of a training run.

    Args:
        directory: Run directory of ``train.py``.

    Raises:
        ConfigError: When it is none, or holds no policy yet.
    """
    run = Path(directory)
    if not run.is_dir():
        raise ConfigError(f"run directory: there is no directory {os.fspath(directory)!r}.")
    path = run / "best.zip"
    if not path.is_file():
        raise ConfigError(f"run directory: {os.fspath(directory)!r} holds no best.zip; is it a run of train.py?")
    return TrainedPolicy.load(path)
