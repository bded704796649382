"""The command line of ``evaluate.py``: policies by name, one table per scenario, one CSV of all episodes.

Names are turned into policies by a function that the caller passes in, because baselines and agents build on this
package and not the other way round.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_factory_gym.console import ends_with_its_reader, gathered
from ai_factory_gym.errors import ConfigError, PolicyRefused, check_count
from ai_factory_gym.evaluation.backends import check_backend, connected
from ai_factory_gym.evaluation.result import EvaluationResult, check_new_file, write_csv
from ai_factory_gym.evaluation.runner import RESERVED_ENV_KWARGS, PolicyFactory, evaluate
from ai_factory_gym.evaluation.seeds import EVALUATION_SEEDS
from ai_factory_gym.evaluation.table import comparison_table, versus_table

Resolver = Callable[[str, str], dict[str, PolicyFactory]]
"""(name as typed, task) -> name in the table -> picklable callable that makes the policy from the environment."""


@dataclass(frozen=True)
class Arguments:
    """Compare policies on the same held-out seeds, and rank those that keep the SLA and the cap."""

    policies: tuple[str, ...] = ("rules",)
    """Names of rules, "rules" for all of them, learned agents ("ppo", "sac"), or run directories of train.py."""
    task: str = "ai_factory/Edge-v0"
    """Registered id of the task."""
    scenario: tuple[str, ...] = ("diurnal",)
    """Names or paths of scenarios; one table each."""
    seeds: int = 10
    """Episodes per policy and scenario, the same seeds for all."""
    first_seed: int = EVALUATION_SEEDS.start
    """First seed; results to publish start at 2,000,000."""
    resolution: str = "cohort"
    """"cohort" (default), "coarse" or "request" (every request on its own; slower)."""
    trace: Path | None = None
    """Request trace to replay instead of synthetic arrivals."""
    horizon_s: float | None = None
    """Length of an episode in seconds; a day, or the length of the trace, when not given."""
    env: tuple[str, ...] = ()
    """Further arguments of gymnasium.make as KEY=VALUE, the value in JSON or plain text: rate_scale=20 'levers=["clock", "active_racks"]'"""
    jobs: int = 1
    """Processes, or actors on Ray; the numbers do not depend on it."""
    backend: str = "local"
    """"local" (processes of this machine) or "ray" (the cluster that RAY_ADDRESS names, or one that is started here)."""
    csv: Path | None = None
    """New file for the rows of all episodes."""
    markdown: bool = False
    """Print the tables as Markdown."""
    versus: str | None = None
    """Also print paired differences from this policy."""
    show_violations: bool = False
    """Also print each infeasible episode with what it broke."""


@ends_with_its_reader
def main(resolve: Resolver, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit status: 0, or 2 for input that cannot be used.

    Args:
        resolve: Turns a name into policies.
        argv: Arguments without the program's name; None takes those of the process.
    """
    try:
        import tyro
    except ImportError:
        print("evaluate.py needs tyro: pip install 'ai-factory-gym[eval]'", file=sys.stderr)
        return 2
    refused: dict[str, str] = {}
    try:
        # The class, not `main`, carries the description, so that the help is the fields' docstrings and nothing else.
        arguments = tyro.cli(Arguments, args=gathered(argv, Arguments))
        results = run(arguments, resolve, refused)
        print(report(arguments, results, refused))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.csv is not None:
        count = sum(len(result.episodes) for result in results)
        print(f"\n{count} episode{'s' if count > 1 else ''} written to {arguments.csv}")
    return 0


def run(arguments: Arguments, resolve: Resolver, refused: dict[str, str] | None = None) -> list[EvaluationResult]:
    """Evaluate every policy in every scenario.

    Args:
        arguments: The command line.
        resolve: Turns a name into policies.
        refused: Takes up which policies are not for this site, and why, while others are; None raises the error.

    Raises:
        ConfigError: For input that cannot be used; what names alone can show is refused before the first episode.
    """
    if arguments.csv is not None:
        check_new_file(arguments.csv)
    if arguments.seeds < 1:
        raise ConfigError(f"seeds: {arguments.seeds} is not allowed; must be at least 1.")
    factories: dict[str, PolicyFactory] = {}
    for name in arguments.policies:
        factories.update(resolve(name, arguments.task))
    if arguments.versus is not None and arguments.versus not in factories:
        raise ConfigError(f"versus: {arguments.versus!r} is not among the policies compared: {', '.join(factories)}.")
    with connected(check_backend(arguments.backend), check_count("jobs", arguments.jobs)):
        results = []
        for scenario, (name, factory) in itertools.product(arguments.scenario, factories.items()):
            if refused is not None and name in refused:
                continue
            try:
                results.append(_evaluated(arguments, scenario, name, factory))
            except PolicyRefused as error:
                # One that is compared with others is not worth theirs; nor are theirs without what they are compared with.
                if refused is None or name == arguments.versus:
                    raise
                refused[name] = str(error).removeprefix(f"policy {name!r}: ")
                if len(refused) == len(factories):
                    raise
    if arguments.csv is not None:
        write_csv([row for result in results for row in result.episodes], arguments.csv)
    return results


def _evaluated(arguments: Arguments, scenario: str, name: str, factory: PolicyFactory) -> EvaluationResult:
    """Evaluate one policy in one scenario."""
    return evaluate(
        factory,
        arguments.task,
        scenario=scenario,
        seeds=range(arguments.first_seed, arguments.first_seed + arguments.seeds),
        resolution=arguments.resolution,
        trace=arguments.trace,
        horizon_s=arguments.horizon_s,
        env_kwargs=parse_env(arguments.env),
        n_jobs=arguments.jobs,
        backend=arguments.backend,
        policy_name=name,
    )


def report(arguments: Arguments, results: Sequence[EvaluationResult], refused: Mapping[str, str] | None = None) -> str:
    """Return everything that is printed about the results, and about policies that refused the site."""
    parts = [comparison_table(results, markdown=arguments.markdown)]
    if refused:
        parts.append("\n".join(f"{name} was not run, it refuses the site: {why}" for name, why in refused.items()))
    if arguments.versus is not None:
        parts.append(versus_table(results, arguments.versus, markdown=arguments.markdown))
    if arguments.show_violations:
        rows = [row for result in results for row in result.episodes if not row["feasible"]]
        lines = [f"{row['scenario']} {row['policy']} {row['seed']}: {row['infeasible_reason']}" for row in rows]
        parts.append("\n".join(lines or ["Every episode is feasible."]))
    return "\n\n".join(parts)


def parse_env(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` arguments; a value that is not JSON is text.

    Raises:
        ConfigError: For one without a key or an equals sign, a key given twice, or what begins as a list or table and is not JSON.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals):
            raise ConfigError(f"env: {pair!r} is not allowed; write KEY=VALUE, for example control_interval_s=30.")
        if key in parsed:
            raise ConfigError(f"env: {key} is given twice.")
        if key in RESERVED_ENV_KWARGS:
            flag = "--" + key.replace("_", "-")
            hint = f"give it as {flag} {value}" if key != "drain" else RESERVED_ENV_KWARGS[key]
            raise ConfigError(f"env: {pair!r} is not allowed; {hint}.")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            if value.lstrip()[:1] in ("[", "{"):
                raise ConfigError(
                    f"env: {key}: {value!r} is not JSON; write names in double quotes and the whole in single ones, for example "
                    """--env 'levers=["clock", "active_racks"]'."""
                ) from None
            if key == "levers":
                names = ", ".join(f'"{name.strip()}"' for name in value.split(","))
                raise ConfigError(
                    f"env: {key}: {value!r} is not allowed; write a list in JSON: --env 'levers=[{names}]'."
                ) from None
            parsed[key] = value
    return parsed
