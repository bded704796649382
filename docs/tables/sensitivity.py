"""Write docs/sensitivity.md: how the ranking of rules depends on the idle floor and on the clock exponent.

``python docs/tables/sensitivity.py --evaluate`` runs the rules on every variant that has no file in docs/results/sensitivity yet (whole
days; named variants are run again); without it, only the page is set anew. ``--stdout`` prints the page instead, ``--out FILE`` writes it
elsewhere; ``--folder``, ``--hours`` and ``--seeds`` are for trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "envs"), str(ROOT / "baselines")]

from tqdm import tqdm  # noqa: E402

import ai_factory_baselines as baselines  # noqa: E402
from ai_factory_gym.catalogue import Group, Rack  # noqa: E402
from ai_factory_gym.catalogue import rack as find_rack  # noqa: E402
from ai_factory_gym.evaluation import (  # noqa: E402
    TUNING_SEEDS,
    EvaluationResult,
    evaluate,
    first_seeds,
    read_csv,
    write_csv,
)
from ai_factory_gym.physics.power import dynamic_power_factor  # noqa: E402
from ai_factory_gym.sites import SiteConfig, load_site  # noqa: E402
from ai_factory_gym.task import frozen_lambdas  # noqa: E402

FOLDER = ROOT / "docs" / "results" / "sensitivity"
PAGE = ROOT / "docs" / "sensitivity.md"
TASK, SITE, SCENARIO = "ai_factory/Edge-v0", "edge", "diurnal"
METRIC = "tokens_per_joule_facility"
NAIVE = "uniform"
"""Rule the gain is counted from."""

IDLE = (0.6, 1.0, 1.4)
"""Factors on idle power. GB300 (200 W): 120 W is the 110 W measured on older GPUs with a model loaded, 280 W is idle plus the 66 W that a
CUDA context may add (arXiv 2604.04745, 2605.23918)."""

VOLTAGE_FLOORS = (0.4, 0.55, 0.7)
"""Lowest over highest core voltage. Dynamic power goes as f V(f)^2, V(f) = v0 + (1 - v0) f."""

EXPONENT_CLOCK = 0.6
"""Clock at which the exponent is taken: the middle of what an operator may set."""

HEAD = """# Sensitivity: idle floor and clock exponent

Written by `python docs/tables/sensitivity.py`. What a policy can win hangs on two numbers that are known badly: what a GPU draws when it
has nothing to do (sleep and consolidation win that), and how fast dynamic power falls with the clock (lower clocks win that). Here both are
varied on `ai_factory/Edge-v0` and every rule runs the same days.

* **Idle**: factor on the idle power of every GPU and rack. Sources disagree by as much: 35 W asleep on the board, 110 W with weights loaded
  and 26-66 W more per CUDA context on older GPUs (arXiv 2604.04745, 2605.23918), 200 W per GPU in NVIDIA's idle policy for GB300. What was
  measured at load stays: what an idle GPU draws less, a running one draws more (`active_fraction`).
* **Voltage floor** v0: dynamic power goes as f V(f)^2 with V(f) = v0 + (1 - v0) f; the *exponent* is that of the power of f which gives the
  same at a clock of {clock}. Draw at clock 1 stays, so the fit to measured draws cannot tell these apart; 0.55 is assumed.

Cells are good tokens per joule of facility energy, mean over {seeds}; a star marks a rule that was infeasible
on some day. *Gain*: best feasible rule over `{naive}` (best rule of all in brackets where none is feasible). *Order*: whether the rules
stand in the order of the middle row, else the pairs that change places and by how much they differ at most.

"""


@dataclass(frozen=True)
class Variant:
    """One altered world.

    Attributes:
        idle: Factor on idle power.
        voltage_floor: v0.
    """

    idle: float
    voltage_floor: float

    @property
    def name(self) -> str:
        """Name on the command line and of its file."""
        return f"idle_{self.idle:g}_floor_{self.voltage_floor:g}"

    @property
    def exponent(self) -> float:
        """Exponent of the clock in dynamic power."""
        return math.log(dynamic_power_factor(self.voltage_floor, EXPONENT_CLOCK)) / math.log(EXPONENT_CLOCK)

    def group(self, group: Group) -> Group:
        """Return one kind of GPU in this world."""
        less_w = (1.0 - self.idle) * group.idle_w
        # At TDP and at idle a rack draws what its profile says, and a running GPU at clock 1 what was measured.
        active = group.architecture.active_fraction + less_w / group.profiles[0].tdp_w
        if active < 0.0:
            raise SystemExit(f"error: {self.name}: {group.id} GPUs would draw less running than idle.")
        return dataclasses.replace(
            group,
            architecture=dataclasses.replace(
                group.architecture, active_fraction=active, voltage_floor=self.voltage_floor
            ),
            idle_w=self.idle * group.idle_w,
            profiles=tuple(
                dataclasses.replace(profile, idle_rack_w=self.idle * profile.idle_rack_w) for profile in group.profiles
            ),
        )

    def rack(self, rack: Rack) -> Rack:
        """Return a rack type in this world."""
        return dataclasses.replace(rack, groups=tuple(self.group(group) for group in rack.groups))

    def site(self) -> SiteConfig:
        """Return the site in this world; its cap and demand stay."""
        site = load_site(SITE)
        pools = tuple(dataclasses.replace(pool, rack=self.rack(pool.rack_type)) for pool in site.pools)
        return dataclasses.replace(site, pools=pools)


VARIANTS = {variant.name: variant for variant in itertools.starmap(Variant, itertools.product(IDLE, VOLTAGE_FLOORS))}
BASE = Variant(1.0, 0.55).name


def run(names: Iterable[str], folder: Path, seeds: int, hours: float) -> None:
    """Evaluate every rule on some variants, one file each."""
    chosen = list(names)
    with tqdm(total=len(chosen) * len(baselines.names()), unit="rule") as bar:
        for name in chosen:
            rows = []
            for rule in baselines.names():
                bar.set_postfix_str(f"{name} {rule}")
                found = evaluate(
                    functools.partial(baselines.make, rule),
                    TASK,
                    scenario=SCENARIO,
                    seeds=first_seeds(seeds, TUNING_SEEDS),
                    horizon_s=3600.0 * hours,
                    # The price of energy steers no rule; a changed site has none of its own.
                    env_kwargs={
                        "site": VARIANTS[name].site(),
                        "lambda_tokens_per_joule": frozen_lambdas()["Edge"][SCENARIO],
                    },
                    policy_name=rule,
                    progress=False,
                )
                rows += found.episodes
                bar.update()
            path = folder / f"{name}.csv"
            path.unlink(missing_ok=True)
            write_csv(rows, path)


def load(folder: Path) -> dict[str, dict[str, EvaluationResult]]:
    """Return variant to rule to result, of the files there are."""
    return {
        name: {str(result.summary["policy"]): result for result in read_csv(folder / f"{name}.csv")}
        for name in VARIANTS
        if (folder / f"{name}.csv").exists()
    }


def _value(result: EvaluationResult) -> float:
    return float(result.summary["metrics"][METRIC]["mean"])


def _gain(results: dict[str, EvaluationResult]) -> str:
    """Return the best rule and its gain over the naive one."""
    feasible = [rule for rule, result in results.items() if result.summary["feasible"]]
    best = max(feasible or results, key=lambda rule: _value(results[rule]))
    gain = f"`{best}` {100.0 * (_value(results[best]) / _value(results[NAIVE]) - 1.0):+.1f} %"
    return gain if feasible else f"({gain})"


def _order(results: dict[str, EvaluationResult], base: dict[str, EvaluationResult]) -> str:
    """Return which rules change places against the base variant."""
    swapped = [
        (above, below)
        for above, below in itertools.permutations(base, 2)
        if _value(base[above]) > _value(base[below]) and _value(results[above]) < _value(results[below])
    ]
    if not swapped:
        return "same"
    apart = max(_value(results[below]) / _value(results[above]) - 1.0 for above, below in swapped)
    return ", ".join(f"`{below}` over `{above}`" for above, below in swapped) + f" (by at most {100.0 * apart:.2f} %)"


def page(folder: Path) -> str:
    """Return the page; the middle variant, which the others are compared with, must be there."""
    found = load(folder)
    rules = baselines.names()
    first = found[BASE][rules[0]].episodes
    seeds = f"{len(first)} day{'s' if len(first) > 1 else ''}"
    if first[0]["horizon_s"] < 86400.0:
        seeds = f"{len(first)} x {first[0]['horizon_s'] / 3600.0:g} h: *a trial, not the study*"
    idle_w = find_rack("gb300_nvl72").group().idle_w
    lines = [
        HEAD.format(clock=EXPONENT_CLOCK, seeds=seeds, naive=NAIVE),
        "| idle | GB300 W/GPU | v0 | exponent | " + " | ".join(f"`{rule}`" for rule in rules) + " | gain | order |",
        "|---:" * (4 + len(rules)) + "|---|---|",
    ]
    for name, results in found.items():
        variant = VARIANTS[name]
        cells = [f"{variant.idle:g}", f"{variant.idle * idle_w:.0f}", f"{variant.voltage_floor:g}"]
        cells.append(f"{variant.exponent:.2f}")
        cells += [f"{_value(results[rule]):.3f}{'' if results[rule].summary['feasible'] else '*'}" for rule in rules]
        cells += [_gain(results), "-" if name == BASE else _order(results, found[BASE])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run variants when asked to, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--evaluate", nargs="*", choices=list(VARIANTS), metavar="VARIANT", help=f"run variants: {', '.join(VARIANTS)}"
    )
    parser.add_argument("--seeds", type=int, default=2, help="days of the tuning range")
    parser.add_argument("--hours", type=float, default=24.0, help="length of a day, for trials")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the per-episode files are")
    parser.add_argument("--out", type=Path, default=PAGE, help="where the page goes")
    parser.add_argument("--stdout", action="store_true", help="print instead of writing")
    options = parser.parse_args()
    if options.evaluate is not None:
        missing = [name for name in VARIANTS if not (options.folder / f"{name}.csv").exists()]
        run(options.evaluate or missing, options.folder, options.seeds, options.hours)
    if not (options.folder / f"{BASE}.csv").exists():
        # Not an error: `make docs-tables` runs every script, and this study is run by hand.
        print(f"no {BASE}.csv in {options.folder}: run with --evaluate first (about half a minute per variant and day)")
        return
    text = page(options.folder)
    if options.stdout:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(options.out)


if __name__ == "__main__":
    main()
