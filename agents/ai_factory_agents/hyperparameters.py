"""Hyperparameters from YAML, keyed by environment id as rl_zoo3 reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ai_factory_agents.zoo import ALGORITHMS
from ai_factory_gym.errors import ConfigError, unknown

DIRECTORY = Path(__file__).with_name("hyperparams")

ZOO_KEYS = ("n_envs", "n_timesteps", "normalize")
"""Keys that rl_zoo3 takes out before it hands the rest to the algorithm."""


def check_algorithm(algo: str) -> str:
    """Return the name of an algorithm.

    Raises:
        ConfigError: When there is none of that name.
    """
    if algo not in ALGORITHMS:
        raise unknown("algo", algo, ALGORITHMS)
    return algo


def load_hyperparameters(algo: str, task: str, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the hyperparameters of an algorithm on a task.

    Args:
        algo: ``ppo`` or ``sac``.
        task: Registered id.
        path: YAML file of the user; None takes the one that ships.

    Returns:
        ``n_envs``, ``n_timesteps``, ``normalize`` and the arguments of the algorithm.

    Raises:
        ConfigError: For an unknown algorithm, a task without hyperparameters, or a file that cannot be read.
    """
    chosen = DIRECTORY / f"{check_algorithm(algo)}.yml" if path is None else Path(path)
    try:
        table = yaml.safe_load(chosen.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"hyperparams: there is no file {os.fspath(chosen)!r}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"hyperparams: {os.fspath(chosen)!r} is not YAML ({error}).") from error
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise ConfigError(f"hyperparams: {os.fspath(chosen)!r} must map task ids to tables.")
    if task not in table:
        refused = unknown(f"hyperparams ({chosen.name}): task", task, list(table))
        raise ConfigError(f"{refused} Give --hyperparams FILE with an entry for it.")
    found = dict(table[task])
    for key in ("n_envs", "n_timesteps", "policy"):
        if key not in found:
            raise ConfigError(f"hyperparams ({chosen.name}): {task}: missing key {key}.")
    return found
