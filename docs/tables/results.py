"""Write docs/results.md from the per-episode files in docs/results.

The files come from ``python evaluate.py``; the command of each is in ``COMMANDS`` and in the page. ``make docs-tables`` only sets the
tables anew; ``python docs/tables/results.py --evaluate`` removes the files and runs the commands again, which takes a while.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from ai_factory_gym.evaluation import comparison_table, read_csv, versus_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"

RUNS = tuple(f"runs/Edge-v0-ppo-s{seed}" for seed in range(5))
"""What ``python train.py --seed 0`` (1, 2, 3, 4) leaves; the policy that ships is the one that does best on the tuning seeds."""

COMMANDS = {
    "edge.csv": f"python evaluate.py --task ai_factory/Edge-v0 --policies rules {' '.join(RUNS)} "
    "--scenario diurnal burst curtailment --seeds 10 --jobs 2 --csv docs/results/edge.csv",
    "edge_mismatch.csv": "python evaluate.py --task ai_factory/Edge-v0 --policies rules ppo --scenario mismatch --seeds 10 --jobs 2 "
    "--csv docs/results/edge_mismatch.csv",
    "tasks.csv": "python evaluate.py --task {task} --policies reactive --scenario steady diurnal burst curtailment "
    "--seeds 3 --jobs 2 --csv docs/results/{name}.csv",
    "sovereign-v1.csv": "python evaluate.py --task ai_factory/Sovereign-v1 --policies reactive grid_aware "
    "--scenario diurnal burst curtailment grid_emergency --seeds 10 --jobs 2 --csv docs/results/sovereign-v1.csv",
    "hyperscale-v1.csv": "python evaluate.py --task ai_factory/Hyperscale-v1 --policies reactive grid_aware "
    "--scenario diurnal curtailment price_spike heatwave diurnal+four_cp --seeds 10 --jobs 2 --csv docs/results/hyperscale-v1.csv",
    "azure.csv": "python evaluate.py --task ai_factory/Edge-v0 --policies rules --scenario steady --resolution request --seeds 1 "
    "--trace azure_llm_2023_conv.csv.gz --env rate_scale=1000 --csv docs/results/azure.csv",
    "azure_cohort.csv": "python evaluate.py --task ai_factory/Edge-v0 --policies rules --scenario steady --seeds 1 "
    "--trace azure_llm_2023_conv.csv.gz --env rate_scale=1000 --csv docs/results/azure_cohort.csv",
}

INTRODUCTION = """# Results

Held-out evaluation seeds, whole days from midnight, scored as in the README: *tokens/J* is good tokens per joule of facility energy,
and only policies that are feasible in every episode are ranked. `diurnal` is the training scenario (other seeds), the others are held
out. Every table has its per-episode file in `docs/results/`. `runs/Edge-v0-ppo-sN` is what `python train.py --seed N` leaves; the policy
that ships (`ppo`) is the best of the five on the tuning seeds.
"""


def page() -> str:
    """Return the page: one section per file, its command and its tables."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.csv")):
        results = read_csv(path)
        parts.append(f"## {path.stem}\n")
        command = COMMANDS.get(path.name)
        if command is None:
            task = results[0].episodes[0]["task"]
            command = COMMANDS["tasks.csv"].format(task=task, name=path.stem)
        parts.append(f"```bash\n{command}\n```\n")
        parts.append(comparison_table(results, markdown=True) + "\n")
        if any(result.summary["policy"] == "reactive" for result in results) and len(results) > 4:
            parts.append(versus_table(results, "reactive", markdown=True) + "\n")
    return "\n".join(parts)


def _with_trace(words: list[str]) -> list[str]:
    """Return a command with its trace, if it replays one, taken from the folder AI_FACTORY_TRACE_DIR names."""
    if "--trace" not in words:
        return words
    folder = os.environ.get("AI_FACTORY_TRACE_DIR")
    if not folder:
        raise SystemExit(
            "error: set AI_FACTORY_TRACE_DIR to the folder of the public traces; they are not part of the repository."
        )
    at = words.index("--trace") + 1
    return [*words[:at], str(Path(folder) / words[at]), *words[at + 1 :]]


def main() -> None:
    """Run the commands when asked to, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--evaluate", nargs="*", metavar="FILE", help="files to produce anew, e.g. edge.csv; none means all present"
    )
    chosen = parser.parse_args()
    if chosen.evaluate is not None:
        for name in chosen.evaluate or [path.name for path in RESULTS.glob("*.csv")]:
            (RESULTS / name).unlink(missing_ok=True)
            command = COMMANDS.get(name) or COMMANDS["tasks.csv"].format(
                task=f"ai_factory/{Path(name).stem.capitalize()}-v0", name=Path(name).stem
            )
            subprocess.run([sys.executable, *_with_trace(shlex.split(command)[1:])], check=True, cwd=ROOT)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
