"""Compute lambda, the price of energy in the reward: ``python -m ai_factory_baselines.freeze``.

Lambda of a (site, scenario) is the good tokens per facility joule of the best known feasible policy: the mean of
``reactive`` over the tuning seeds or, where that is infeasible, of the best feasible rule. With ``--write`` the table
goes into ``ai_factory_gym/frozen.toml``; a site of one's own (``--site FILE``) is printed, to be given to ``gym.make``
as ``lambda_tokens_per_joule``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ai_factory_baselines
from ai_factory_gym.console import ends_with_its_reader
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation import TUNING_SEEDS, evaluate
from ai_factory_gym.registration import TASKS
from ai_factory_gym.task import FROZEN_PATH

SCENARIOS = ("steady", "diurnal", "burst", "curtailment")
PREFERRED = "reactive"
DIGITS = 4


@dataclass(frozen=True)
class Frozen:
    """Lambda of one (site, scenario).

    Attributes:
        site: Name of the site.
        scenario: Name of the scenario.
        value: Good tokens per facility joule; None when no rule is feasible.
        rule: The rule it comes from.
    """

    site: str
    scenario: str
    value: float | None
    rule: str | None


def freeze(task: str, scenario: str, seeds: int, *, site: str | None = None, jobs: int = 1) -> Frozen:
    """Return lambda of a task's scenario.

    Args:
        task: Registered id.
        scenario: Scenario.
        seeds: Number of tuning seeds.
        site: A site to put in the task's place, as for ``gym.make``.
        jobs: Processes.
    """
    import gymnasium

    # The reward plays no part here, and a site that is not shipped has no lambda yet.
    settings: dict[str, Any] = {"lambda_tokens_per_joule": 0.0, **({} if site is None else {"site": site})}
    env = gymnasium.make(task, scenario=scenario, **settings)
    name = str(env.unwrapped.task.site.name)  # type: ignore[attr-defined]
    env.close()

    def score(rule: str) -> float | None:
        result = evaluate(
            functools.partial(ai_factory_baselines.make, rule),
            task,
            scenario=scenario,
            seeds=list(TUNING_SEEDS[:seeds]),
            env_kwargs=settings,
            n_jobs=jobs,
            policy_name=rule,
        )
        mean = float(result.summary["metrics"]["tokens_per_joule_facility"]["mean"])
        return mean if result.summary["feasible"] else None

    value = score(PREFERRED)
    if value is not None:
        return Frozen(name, scenario, value, PREFERRED)
    others = {rule: score(rule) for rule in ai_factory_baselines.names() if rule != PREFERRED}
    feasible = {rule: found for rule, found in others.items() if found is not None}
    if not feasible:
        return Frozen(name, scenario, None, None)
    best = max(feasible, key=lambda rule: feasible[rule])
    return Frozen(name, scenario, feasible[best], best)


def table_text(values: Mapping[str, Mapping[str, float]], notes: Mapping[tuple[str, str], str], command: str) -> str:
    """Return the text of ``frozen.toml``.

    Args:
        values: Site name -> scenario -> lambda.
        notes: (site, scenario) -> comment.
        command: What produced the values.
    """
    lines = [
        "# Frozen with the version: the price of energy in the reward, good tokens per facility joule.",
        f"# {command}",
    ]
    for site, table in values.items():
        lines += ["", f"[lambda_tokens_per_joule.{site}]"]
        for scenario, value in table.items():
            note = notes.get((site, scenario))
            lines.append(f"{scenario} = {round(value, DIGITS)}" + (f"  # {note}" if note else ""))
    return "\n".join(lines) + "\n"


def write(path: Path, found: Sequence[Frozen], command: str) -> None:
    """Put values into a frozen table, keeping those that were not computed anew."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))["lambda_tokens_per_joule"] if path.exists() else {}
    values = {site: dict(scenarios) for site, scenarios in table.items()}
    notes = {}
    for entry in found:
        if entry.value is not None:
            values.setdefault(entry.site, {})[entry.scenario] = entry.value
            if entry.rule != PREFERRED:
                notes[entry.site, entry.scenario] = f"of {entry.rule}; {PREFERRED} is infeasible"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(table_text(values, notes, command), encoding="utf-8")
    os.replace(temporary, path)


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 when a scenario has no feasible rule, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m ai_factory_baselines.freeze", description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="+", default=list(TASKS), help="registered ids; all tasks when not given")
    parser.add_argument("--site", default=None, help="a site of your own (TOML file) instead of a task's")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), help="scenarios")
    parser.add_argument("--seeds", type=int, default=8, help="tuning seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help="write the values of shipped sites into frozen.toml")
    chosen = parser.parse_args(argv)
    command = " ".join(["python -m ai_factory_baselines.freeze", *(sys.argv[1:] if argv is None else argv)])
    tasks = chosen.task if chosen.site is None else chosen.task[:1]
    found = []
    try:
        if chosen.site is not None and chosen.write:
            raise ConfigError(
                "write: frozen.toml holds shipped sites only; give a site of your own its value in gym.make."
            )
        for task in tasks:
            for scenario in chosen.scenario:
                entry = freeze(task, scenario, chosen.seeds, site=chosen.site, jobs=chosen.jobs)
                found.append(entry)
                if entry.value is None:
                    print(f"# {entry.site} {entry.scenario}: no rule is feasible", flush=True)
                else:
                    print(f"# {entry.site} {entry.scenario}: {entry.value:.{DIGITS}f} ({entry.rule})", flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.write:
        write(FROZEN_PATH, found, command)
        print(f"written to {FROZEN_PATH}")
    return 1 if any(entry.value is None for entry in found) else 0


if __name__ == "__main__":
    sys.exit(main())
