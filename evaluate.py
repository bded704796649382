"""Compare rules and learned agents on the same held-out seeds.

    python evaluate.py --task ai_factory/Edge-v0 --policies rules ppo --scenario diurnal burst --seeds 10 --jobs 2
    --csv out.csv

``python evaluate.py --help`` lists every option. The work is done by `ai_factory_gym.evaluation`; this file only knows
where policies come from.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.evaluation.cli import main

LEARNED = ("ppo", "sac")


def resolve(name: str, task: str) -> dict[str, Callable[[Any], Any]]:
    """Turn a name from the command line into policies: all rules, one rule, a shipped agent, or a run directory.

    Raises:
        ConfigError: When it is none of these.
    """
    import ai_factory_baselines

    rules = list(ai_factory_baselines.names())
    if name == "rules":
        return {rule: functools.partial(ai_factory_baselines.make, rule) for rule in rules}
    if name in (*rules, *ai_factory_baselines.OF_PARTS):
        return {name: functools.partial(ai_factory_baselines.make, name)}
    if name in LEARNED:
        return {name: functools.partial(_load_agent, name, task)}
    if Path(name).is_dir():
        return {name: functools.partial(_load_run, name)}
    if "/" in name:
        raise ConfigError(f"policies: there is no run directory {name!r}.")
    raise unknown("policies", name, ["rules", *rules, *ai_factory_baselines.OF_PARTS, *LEARNED])


def _load_agent(algorithm: str, task: str, env: Any) -> Any:
    import ai_factory_agents

    return ai_factory_agents.load(algorithm, task)


def _load_run(directory: str, env: Any) -> Any:
    import ai_factory_agents

    return ai_factory_agents.load_run(directory)


if __name__ == "__main__":
    sys.exit(main(resolve))
