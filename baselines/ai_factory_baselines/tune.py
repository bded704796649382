"""Tune ``reactive``: ``python -m ai_factory_baselines.tune --task ai_factory/Edge-v0``.

Random search with successive halving on the tuning seeds: candidates are drawn around the present settings and
anywhere in the search space, every round keeps the better part and runs it on further seeds. Candidates are ranked by
good tokens per facility joule among those that are feasible with a reserve, so that a good day on the tuning seeds is
not a bad one elsewhere; the others come after them, by how much they miss. The winner is written to ``tuned.toml``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import multiprocessing
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ai_factory_baselines.reactive import TUNED_PATH, Reactive, Settings, tuned_settings
from ai_factory_gym.console import ends_with_its_reader
from ai_factory_gym.errors import ConfigError, check_range
from ai_factory_gym.evaluation import MAX_BRAKE_SHARE, MAX_CAP_VIOLATION_SHARE, TUNING_SEEDS, evaluate

SEARCH: Mapping[str, tuple[float, float]] = {
    "prefill_sigmas": (0.3, 3.0),
    "decode_sigmas": (0.0, 2.5),
    "utilisation": (0.85, 0.98),
    "tpot_share": (0.82, 0.99),
    "power_sigmas": (0.0, 4.0),
    "plan_clock": (0.5, 1.0),
    "wake_margin": (0.0, 0.25),
    "sleep_margin": (0.0, 0.15),
    "sleep_hold": (2.0, 40.0),
    "smoothing": (0.05, 0.6),
    "slow_smoothing": (0.01, 0.2),
    "lead": (0.0, 1.5),
}
"""Where each setting is searched."""

LOCAL_SHARE = 0.7
LOCAL_SCALE = 0.15
"""Share of candidates drawn around the present settings, and their spread as a share of the search interval."""

KEPT_SHARE = 0.34
"""Share of candidates that enters the next round."""

ATTAINMENT_RESERVE = 0.02
BRAKE_RESERVE = 0.6
"""Every class is to exceed its target by this much, and braking to stay below this share of its limit."""


@dataclass(frozen=True)
class Outcome:
    """What a candidate has shown so far.

    Attributes:
        settings: The candidate.
        tokens_per_joule: Mean over its episodes.
        shortfall: Sum of relative violations of the limits with their reserve, worst episode; 0 is feasible.
        rows: Its episodes.
    """

    settings: Settings
    tokens_per_joule: float
    shortfall: float
    rows: tuple[dict[str, Any], ...]

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, smallest is best."""
        return (self.shortfall, -self.tokens_per_joule)


def shortfall(row: Mapping[str, Any], reserve: float = 1.0) -> float:
    """Return by how much an episode misses the limits with their reserve, 0 when it does not.

    Args:
        row: The episode.
        reserve: Share of the usual reserves asked for.
    """
    missing = 0.0
    for key, target in row.items():
        if key.startswith("class/") and key.endswith("/attainment_target"):
            found = row[key.removesuffix("_target")]
            wanted = min(1.0, target + reserve * ATTAINMENT_RESERVE * (1.0 - target) / 0.05)
            missing += max(0.0, wanted - found) / (1.0 - target)
    most_brake = (1.0 - reserve * (1.0 - BRAKE_RESERVE)) * MAX_BRAKE_SHARE
    missing += max(0.0, row["brake_share"] / most_brake - 1.0)
    missing += max(0.0, row["cap_violation_share"] / MAX_CAP_VIOLATION_SHARE - 1.0)
    return float(missing)


def outcome(settings: Settings, rows: Sequence[dict[str, Any]], reserve: float = 1.0) -> Outcome:
    """Summarise episodes of a candidate; ``reserve`` as in ``shortfall``."""
    return Outcome(
        settings,
        float(np.mean([row["tokens_per_joule_facility"] for row in rows])),
        float(np.max([shortfall(row, reserve) for row in rows])),
        tuple(rows),
    )


def draw(present: Settings, count: int, generator: np.random.Generator) -> list[Settings]:
    """Return the present settings and ``count - 1`` others."""
    candidates = [present]
    for index in range(count - 1):
        values = {}
        for name, (low, high) in SEARCH.items():
            if index < LOCAL_SHARE * (count - 1):
                value = getattr(present, name) + LOCAL_SCALE * (high - low) * generator.standard_normal()
            else:
                value = generator.uniform(low, high)
            values[name] = round(float(np.clip(value, low, high)), 3)
        candidates.append(dataclasses.replace(present, **values))
    return candidates


def run_candidate(
    task: str, scenario: str, horizon_s: float | None, settings: Settings, seeds: list[int]
) -> list[dict[str, Any]]:
    """Return the episodes of a candidate."""
    result = evaluate(
        functools.partial(Reactive, settings=settings),
        task,
        scenario=scenario,
        seeds=seeds,
        horizon_s=horizon_s,
        progress=False,
    )
    return result.episodes


def search(
    task: str,
    *,
    present: Settings,
    scenarios: Sequence[str] = ("diurnal",),
    candidates: int = 48,
    rounds: Sequence[int] = (1, 3, 8),
    seed: int = 0,
    reserve: float = 1.0,
    horizon_s: float | None = None,
    jobs: int = 1,
    progress: bool | None = None,
) -> list[Outcome]:
    """Search settings.

    Args:
        task: Registered id.
        present: Settings to start from.
        scenarios: Scenarios that a candidate runs on, each with every seed.
        candidates: Candidates of the first round.
        rounds: Tuning seeds that a candidate has run on after each round.
        seed: Seed of the candidates.
        reserve: Share of the usual reserves asked for: small sites vary more from day to day than the reserves are wide.
        horizon_s: Length of an episode; None is a day.
        jobs: Processes.
        progress: Show a bar; None shows one when tqdm is installed and standard error is a terminal.

    Returns:
        The candidates of the last round, best first.
    """
    field = [Outcome(settings, 0.0, 0.0, ()) for settings in draw(present, candidates, np.random.default_rng(seed))]
    done = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, count in enumerate(rounds):
            seeds = list(TUNING_SEEDS[done:count])
            done = count
            jobs_of = [
                [pool.submit(run_candidate, task, scenario, horizon_s, entry.settings, seeds) for scenario in scenarios]
                for entry in field
            ]
            label = f"round {number + 1}/{len(rounds)}, {len(seeds)} seed(s)"
            field = [
                outcome(entry.settings, [*entry.rows, *(row for future in futures for row in future.result())], reserve)
                for entry, futures in _bar(list(zip(field, jobs_of, strict=True)), label, progress)
            ]
            field.sort(key=lambda entry: entry.rank)
            if number + 1 < len(rounds):
                field = field[: max(2, math.ceil(KEPT_SHARE * len(field)))]
    return field


def _bar(items: list[Any], label: str, progress: bool | None) -> Any:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=label, unit="candidate")


def table_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of ``tuned.toml``."""
    lines = [
        "# Settings of `reactive` by site, written by `python -m ai_factory_baselines.tune`; `default`: all others."
    ]
    for site, table in tables.items():
        lines += ["", f"[{site}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in table.items() if key != "settings"]
        lines += ["", f"[{site}.settings]"]
        lines += [f"{key} = {_toml(value)}" for key, value in table["settings"].items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def write(path: Path, site: str, entry: Mapping[str, Any]) -> None:
    """Put one site's entry into a table of settings, keeping the others."""
    tables = dict(tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    tables[site] = dict(entry)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(table_text(tables), encoding="utf-8")
    os.replace(temporary, path)


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ai_factory_baselines.tune", description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="ai_factory/Edge-v0", help="registered id")
    parser.add_argument("--scenario", nargs="+", default=["diurnal"], help="scenarios to tune on")
    parser.add_argument("--candidates", type=int, default=48, help="candidates of the first round")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 3, 8], help="seeds run after each round")
    parser.add_argument("--seed", type=int, default=0, help="seed of the candidates")
    parser.add_argument("--reserve", type=float, default=1.0, help="share of the usual reserves asked for")
    parser.add_argument("--horizon-s", type=float, default=None, help="length of an episode; a day when not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--dry-run", action="store_true", help="print the winner and write nothing")
    chosen = parser.parse_args(argv)
    try:
        import gymnasium

        env = gymnasium.make(chosen.task)
        site: str = env.unwrapped.task.site.name  # type: ignore[attr-defined]
        env.close()
        field = search(
            chosen.task,
            present=tuned_settings(site),
            scenarios=chosen.scenario,
            candidates=chosen.candidates,
            rounds=chosen.rounds,
            seed=chosen.seed,
            reserve=check_range("reserve", chosen.reserve, 0.0, 1.0),
            horizon_s=chosen.horizon_s,
            jobs=chosen.jobs,
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in field[:5]:
        print(f"{entry.tokens_per_joule:.4f} good tokens/J, shortfall {entry.shortfall:.3f}, {entry.settings}")
    best = field[0]
    if best.shortfall > 0.0:
        print("The best candidate breaks a limit or its reserve on some tuning seed.", file=sys.stderr)
    if not chosen.dry_run:
        write(
            TUNED_PATH,
            site,
            {
                "command": " ".join(["python -m ai_factory_baselines.tune", *(sys.argv[1:] if argv is None else argv)]),
                "tokens_per_joule": round(best.tokens_per_joule, 4),
                "episodes": len(best.rows),
                "settings": dataclasses.asdict(best.settings),
            },
        )
        print(f"written to {TUNED_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
