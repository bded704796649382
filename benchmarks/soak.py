"""Step a vector environment for a very long time, twice side by side, and check that nothing drifts, leaks or differs.

Run from the root of the repository: ``python benchmarks/soak.py --row-steps 100_000_000 --rows 256 --threads 2`` (hours; a
hundredth of it already sees what a training run sees). Rows differ in scenario, horizon and demand and start at random hours;
actions are held for a random time and drawn around the neutral one, some of them from the whole range. Both runs have the
same seeds: whatever the threads do, every observation, reward, flag and info must be equal. The exit status is 1 when a check
fails; an interrupted run says how far it came.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "envs"), str(ROOT / "baselines")]

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ai_factory_gym import AIFactoryVectorEnv  # noqa: E402
from ai_factory_gym.engine.layout import SiteInt  # noqa: E402
from benchmarks.fresh import memory_mb  # noqa: E402

SCENARIOS = ("diurnal", "burst", "curtailment", "steady")
HORIZONS_S = (2 * 3600.0, 6 * 3600.0, 86_400.0)
DEMAND = (0.6, 1.0, 1.2)
"""Demand of the rows, times the site's, in turn with ``HORIZONS_S``: at the peak of the last one decode pools are full."""

NARROW = 0.25

INTERRUPTED = 130
"""Exit status of an interrupted run, as that of a program stopped by Ctrl-C."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        row_steps: Row-steps of each of the two runs.
        rows: Rows of a vector environment.
        kinds: Different tasks among the rows, at most one per scenario and horizon.
        threads: Its threads.
        seed: Of the episodes and the actions.
        hold_steps: Mean number of steps an action is held.
        wide_share: Share of actions that are drawn from the whole range, the others from ``NARROW`` of it: sites whose decode pools are
            full take ten times as long, and with wide actions alone nearly all of them would be.
        check_every: Steps between two looks at hashes, memory and slots.
        warm_share: Share of the run after which memory is to stay.
        growth_mb: How much it may still grow, apart from what the engine's arrays grow.
        most_slots: Cohort slots of a row that would mean that slots are not given back.
        horizons_s: Lengths of episodes among the rows, s.
        demand: Levels of demand among the rows, times the site's.
        resolution: ``cohort``, ``coarse`` or ``request``.
    """

    row_steps: int
    rows: int = 256
    kinds: int = len(SCENARIOS) * len(HORIZONS_S)
    threads: int = 2
    seed: int = 0
    hold_steps: float = 15.0
    wide_share: float = 0.05
    check_every: int = 50
    warm_share: float = 0.1
    growth_mb: float = 16.0
    most_slots: int = 65_536
    horizons_s: tuple[float, ...] = HORIZONS_S
    demand: tuple[float, ...] = DEMAND
    resolution: str = "cohort"


@dataclass
class Report:
    """How far a soak came and what it found.

    Attributes:
        steps: Steps of each run.
        rows: Rows of each run.
        episodes: Episodes that ended in the first run.
        seconds: Wall time.
        memory_mb: Memory of the process beyond the engines' arrays, at every look.
        slots: Cohort slots of a row, at the last look.
        high_water: Most of them in use at any look.
        digest: Hash of everything the first run returned.
        interrupted: Whether it was stopped by hand.
        failures: What failed; empty when all is well.
    """

    rows: int
    steps: int = 0
    episodes: int = 0
    seconds: float = 0.0
    memory_mb: list[float] = field(default_factory=list)
    slots: int = 0
    high_water: int = 0
    digest: str = ""
    interrupted: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status."""
        if self.failures:
            return 1
        return INTERRUPTED if self.interrupted else 0

    def text(self) -> str:
        """Return the report for people."""
        row_steps = self.steps * self.rows
        lines = [
            f"{row_steps:,} row-steps in each of two runs ({self.rows} rows x {self.steps:,} steps) in {self.seconds:,.0f} s, "
            f"{self.episodes:,} episodes ended in each",
            f"slots: {self.slots:,} a row, at most {self.high_water:,} in use",
        ]
        if self.memory_mb:
            lines.append(
                f"memory beyond the engines' arrays: {self.memory_mb[0]:.1f} MB first, {self.memory_mb[-1]:.1f} MB last"
            )
        lines.append(f"hash of everything returned: {self.digest}")
        if self.interrupted:
            lines.append("interrupted: the above is how far it came")
        lines += [f"FAILED: {failure}" for failure in self.failures] or ["no check failed"]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- checks


def find_not_finite(returned: Mapping[str, Any]) -> str | None:
    """Return the name of the first array, in whatever depth, that holds NaN or infinity; None when all is finite."""
    for name, value in returned.items():
        if isinstance(value, Mapping):
            found = find_not_finite(value)
            if found is not None:
                return f"{name}/{found}"
        elif isinstance(value, np.ndarray) and value.dtype == object:
            parts = {str(row): each for row, each in enumerate(value) if each is not None}
            found = find_not_finite(parts)
            if found is not None:
                return f"{name}/{found}"
        elif not np.isfinite(value).all():
            return name
    return None


def find_lost_end(returned: Mapping[str, Any]) -> str | None:
    """Return which rows restarted without saying so, or the other way round; None when flags and last observations agree."""
    done = returned["terminated"] | returned["truncated"]
    restarted = returned.get("_final_obs", np.zeros(len(done), dtype=np.bool_))
    rows = np.flatnonzero(done != restarted)
    if not len(rows):
        return None
    return (
        f"{len(rows)} rows ({rows[:3].tolist()} ...) restarted without a flag of their end, or ended without restarting"
    )


def find_growth(memory_mb: Sequence[float], warm_share: float, bound_mb: float) -> str | None:
    """Return how memory grew when it did so after the warm-up; None when it stayed.

    The first and the last quarter after the warm-up are compared by their medians, so that a single peak says nothing.

    Args:
        memory_mb: Memory at equal distances in time.
        warm_share: Share of them that is left out at the beginning.
        bound_mb: How much it may grow.
    """
    warm = list(memory_mb)[int(warm_share * len(memory_mb)) :]
    if len(warm) < 4:
        return None
    quarter = len(warm) // 4
    before, after = float(np.median(warm[:quarter])), float(np.median(warm[-quarter:]))
    if after - before <= bound_mb:
        return None
    return f"memory grew from {before:.1f} to {after:.1f} MB after the warm-up, by more than {bound_mb:g} MB"


def find_difference(digests: Sequence[str], steps: int) -> str | None:
    """Return that runs differ when their hashes do."""
    return None if len(set(digests)) == 1 else f"the runs differ after {steps:,} steps: {', '.join(digests)}"


# --------------------------------------------------------------------------------------------------------------- runs


def row_settings(
    rows: int, horizons_s: Sequence[float], most: int, demand: Sequence[float] = DEMAND
) -> list[dict[str, Any]]:
    """Return settings that go round among the rows: every scenario with every horizon, or the first ``most`` of these."""
    kinds = [
        {"scenario": scenario, "horizon_s": horizon_s, "demand_scale": demand[index % len(demand)]}
        for scenario, (index, horizon_s) in itertools.product(SCENARIOS, enumerate(horizons_s))
    ]
    return [kinds[row % min(most, len(kinds))] for row in range(rows)]


class Run:
    """One of the runs: a vector environment, its stream of actions, and the hash of all it has returned.

    Attributes:
        env: The environment.
        episodes: Episodes that have ended.
    """

    def __init__(self, settings: Settings) -> None:
        """Start the episodes."""
        self.env = AIFactoryVectorEnv(
            settings.rows,
            site="edge",
            start_time_s="random",
            autoreset_mode="SameStep",
            resolution=settings.resolution,
            threads=settings.threads,
            row_settings=row_settings(settings.rows, settings.horizons_s, settings.kinds, settings.demand),
        )
        self.episodes = 0
        self._change = 1.0 / settings.hold_steps
        self._wide_share = settings.wide_share
        self._stream = np.random.default_rng(settings.seed)
        self._hash = hashlib.blake2b(digest_size=16)
        self._actions = self._draw(settings.rows)
        observation, infos = self.env.reset(seed=settings.seed)
        self._take({"observation": observation, **infos})
        # Arrays are zero pages until they are written to, which would look like growth: a copy is all there at once.
        for factory in self.env.fleet.factories:
            factory.restore(factory.snapshot())

    def _draw(self, rows: int) -> NDArray[np.float32]:
        shape = (rows, self.env.action_layout.size)
        span = np.where(self._stream.random((rows, 1)) < self._wide_share, 1.0, NARROW)
        return (span * self._stream.uniform(-1.0, 1.0, shape)).astype(np.float32)

    def _take(self, returned: Mapping[str, Any]) -> None:
        """Add what was returned to the hash, in the order of its names."""
        for name, value in returned.items():
            self._hash.update(name.encode())
            if isinstance(value, Mapping):
                self._take(value)
            elif value.dtype == object:
                self._take({str(row): each for row, each in enumerate(value) if each is not None})
            else:
                self._hash.update(np.ascontiguousarray(value).tobytes())

    def step(self) -> dict[str, Any]:
        """Step every row and return everything by name."""
        changing = np.flatnonzero(self._stream.random(len(self._actions)) < self._change)
        self._actions[changing] = self._draw(len(changing))
        observation, reward, terminated, truncated, infos = self.env.step(self._actions)
        self.episodes += int(np.sum(infos.get("_final_obs", 0)))
        returned = {
            "observation": observation,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            **infos,
        }
        self._take(returned)
        return returned

    @property
    def digest(self) -> str:
        """Hash of everything returned so far."""
        return self._hash.hexdigest()

    def slots(self) -> tuple[int, int]:
        """Return the most cohort slots of any row, and the most that any row's present episode has used."""
        states = [factory.engine.state for factory in self.env.fleet.factories]
        used = max(int(state.site_int[:, SiteInt.HIGH_WATER].max()) for state in states)
        return max(state.free.shape[1] for state in states), used

    def array_mb(self) -> float:
        """Return the size of the engine's arrays, MB."""
        states = [factory.engine.state for factory in self.env.fleet.factories]
        return sum(array.nbytes for state in states for array in state) / 2**20


def _look(runs: Sequence[Run], settings: Settings, report: Report) -> None:
    """Compare hashes, sample memory and slots, and note what fails."""
    report.digest = runs[0].digest
    report.episodes = runs[0].episodes
    report.memory_mb.append(memory_mb() - sum(run.array_mb() for run in runs))
    slots, used = runs[0].slots()
    report.slots = slots
    report.high_water = max(report.high_water, used)
    found = [
        find_difference([run.digest for run in runs], report.steps),
        find_growth(report.memory_mb, settings.warm_share, settings.growth_mb),
        f"{slots:,} slots a row: they are not given back" if slots > settings.most_slots else None,
    ]
    report.failures += [failure for failure in found if failure is not None]


def soak(settings: Settings, progress: Callable[[int], object] = lambda row_steps: None) -> Report:
    """Run until all row-steps are done, a check fails, or it is interrupted.

    Args:
        settings: What to run.
        progress: Called after each step with the row-steps of one run that it was.
    """
    report = Report(settings.rows)
    begin = time.perf_counter()
    steps = -(-settings.row_steps // settings.rows)
    try:
        runs = [Run(settings), Run(settings)]
        while report.steps < steps and not report.failures:
            for number, run in enumerate(runs):
                returned = run.step()
                wrong = find_not_finite(returned)
                found = [f"{wrong} is not finite" if wrong is not None else None, find_lost_end(returned)]
                where = f"run {number}, step {report.steps + 1:,}"
                report.failures += [f"{where}: {failure}" for failure in found if failure is not None]
            report.steps += 1
            progress(settings.rows)
            if report.steps % settings.check_every == 0 or report.steps == steps:
                _look(runs, settings, report)
        for run in runs:
            run.env.close()
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.perf_counter() - begin
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run, print the report and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row-steps", type=int, default=1_000_000, help="row-steps of each run (default 1,000,000)")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", type=int, default=Settings.kinds, help="different tasks among the rows (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", choices=("cohort", "coarse", "request"), default="cohort")
    parser.add_argument(
        "--demand",
        type=float,
        nargs="+",
        default=list(DEMAND),
        help="levels of demand among the rows (default 0.6 1.0 1.2)",
    )
    parser.add_argument(
        "--horizons-h",
        type=float,
        nargs="+",
        default=[horizon_s / 3600.0 for horizon_s in HORIZONS_S],
        help="lengths of episodes among the rows, h (default 2 6 24)",
    )
    parser.add_argument(
        "--wide-share", type=float, default=Settings.wide_share, help="share of actions drawn from the whole range"
    )
    parser.add_argument(
        "--check-every", type=int, default=50, help="steps between two looks at hashes, memory and slots"
    )
    parser.add_argument(
        "--growth-mb", type=float, default=Settings.growth_mb, help="how much memory may grow after the warm-up"
    )
    chosen = parser.parse_args(arguments)
    settings = Settings(
        row_steps=chosen.row_steps,
        rows=chosen.rows,
        kinds=chosen.kinds,
        threads=chosen.threads,
        seed=chosen.seed,
        demand=tuple(chosen.demand),
        horizons_s=tuple(3600.0 * hours for hours in chosen.horizons_h),
        resolution=chosen.resolution,
        wide_share=chosen.wide_share,
        check_every=chosen.check_every,
        growth_mb=chosen.growth_mb,
    )
    with tqdm(total=settings.row_steps, unit="row-step", unit_scale=True, mininterval=1.0) as bar:
        report = soak(settings, bar.update)
    print(report.text())
    return report.status


if __name__ == "__main__":
    sys.exit(main())
