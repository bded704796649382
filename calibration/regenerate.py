"""Make everything anew that depends on the constants: ``python -m calibration.regenerate``.

Steps run in order; ``--list`` shows them with their commands, ``--only`` runs some, ``--begin`` starts at one. Hours on two cores, of which
the comparison tables and the training of five agents take most. Needs ``AI_FACTORY_REFERENCE_DIR``, ``AI_FACTORY_TRACE_DIR`` and the
extras ``train``, ``plot`` and ``dev``. Training refuses run directories that exist: move those of the calibration before away.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = tuple(ROOT / "runs" / f"Edge-v0-ppo-s{seed}" for seed in range(5))
SHIPPED = ROOT / "agents" / "ai_factory_agents" / "zoo" / "ppo" / "Edge-v0.zip"
TUNED = ROOT / "baselines" / "ai_factory_baselines" / "tuned.toml"


def best_run(runs: Mapping[str, list[dict[str, float]]]) -> str:
    """Return the run whose best policy earns most tokens per joule on tuning days, feasible on all of them.

    Args:
        runs: Run to the rows of its ``metrics.csv``.
    """
    scores = {
        run: max((row["tokens_per_joule"] for row in rows if row["feasible_share"] == 1.0), default=-1.0)
        for run, rows in runs.items()
    }
    best = max(scores, key=lambda run: scores[run])
    if scores[best] < 0.0:
        raise SystemExit("error: no run has a policy that is feasible on every tuning day.")
    return best


def ship() -> None:
    """Copy the best run's policy to where policies ship from."""
    rows = {}
    for run in RUNS:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows[str(run)] = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    best = best_run(rows)
    shutil.copyfile(Path(best) / "best.zip", SHIPPED)
    print(f"{best} ships")


def tune_commands() -> list[str]:
    """Return the commands that tuned each site, from the file they write."""
    entries = tomllib.loads(TUNED.read_text(encoding="utf-8")).values()
    return [entry["command"] for entry in entries if entry["command"].startswith("python ")]


def steps() -> dict[str, list[str | Callable[[], None]]]:
    """Return the steps in order: name to commands and functions."""
    return {
        "performance": ["python -m calibration.performance --write"],
        "power": ["python -m calibration.power --write"],
        "golden": ["python -m tests.golden"],
        "sites": ["python -m calibration.sites --write"],
        "tune": [*tune_commands()],
        "freeze": ["python -m ai_factory_baselines.freeze --seeds 3 --jobs 2 --write"],
        "train": [f"python train.py --seed {seed} --final-seeds 0" for seed in range(len(RUNS))],
        "ship": [ship],
        "results": ["python docs/tables/results.py --evaluate"],
        "accuracy": ["python docs/tables/engine_accuracy.py"],
        "sensitivity": ["python docs/tables/sensitivity.py --evaluate"],
        "model": ["python docs/tables/model.py"],
        "validation": ["python -m calibration.validation"],
        "figures": ["python docs/figures/day.py"],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.regenerate", description=(__doc__ or "").split("\n")[0]
    )
    names = list(steps())
    parser.add_argument("--list", action="store_true", help="show the steps and their commands")
    parser.add_argument("--only", nargs="+", choices=names, help="run these steps only")
    parser.add_argument("--begin", choices=names, help="run this step and those after it")
    chosen = parser.parse_args()
    wanted = chosen.only or (names[names.index(chosen.begin) :] if chosen.begin else names)
    started = time.monotonic()
    for name, commands in steps().items():
        if name not in wanted:
            continue
        for command in commands:
            shown = command if isinstance(command, str) else (command.__doc__ or "").rstrip(".")
            print(f"== {name} ({time.monotonic() - started:.0f} s): {shown}", flush=True)
            if chosen.list:
                continue
            if isinstance(command, str):
                environment = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                }
                subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, cwd=ROOT, env=environment)
            else:
                command()


if __name__ == "__main__":
    main()
