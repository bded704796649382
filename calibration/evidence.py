"""Everything docs/validation.md shows, computed: errors, choices, submissions, published points, draws, limit curves."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from ai_factory_gym.physics.serving import ServingPoint
from calibration import frontier, limits, mlperf, performance, power
from calibration.catalogue_file import RACKS_PATH
from calibration.figures import Setting, setting_of
from calibration.frontier import FrontierPoint, Published
from calibration.limits import Curve
from calibration.mlperf import Submission
from calibration.power import Draw
from calibration.silicon import Floats, Measured, log_errors, measured

DATA = ("silicon_calibration.csv", "silicon_frontier_calibration.csv", "hardware_facts.yaml", "mlenergy_power_fits.csv")
"""Files of the reference folder that the page is made from."""


@dataclass(frozen=True)
class Evidence:
    """What the page is written from.

    Attributes:
        points: Measured serving points.
        months: Month of each measurement, ``YYYY-MM``.
        fitted: ln(predicted / measured) with the catalogue's constants: float64[points, 3] for TPOT, TTFT and output
            tokens/s/GPU.
        held: The same by fits that left out the run of each point; None without cross-validation.
        frontier: Points of the measured frontiers.
        searched: The model's frontier over all layouts, by setting.
        submissions: MLPerf submissions and their predictions, offline and server.
        unseen: ln(predicted / measured) of the submissions by a fit to serving points alone: float64[submissions, 2] for offline and
            server; None without cross-validation.
        server_ranges: GPU generation to least and largest output tokens/s/GPU of its DeepSeek-R1 submissions to the round, in
            server, whatever the submitter and the number of racks.
        published: Published points of unknown configuration, each with the best output the model finds without and with
            multi-token prediction (None where it finds none, or where the option is known to be the other).
        draws: Measured GPU draws.
        drawn: Predicted draws with the catalogue's constants, W: float64[draws].
        drawn_held: The same by fits that left out the model of each draw; None without cross-validation.
        curves: Performance against clock and power limit.
        fingerprints: File name to the first 12 digits of its SHA-256: catalogue and reference data.
    """

    points: Sequence[Measured]
    months: Sequence[str]
    fitted: Floats
    held: Floats | None
    frontier: Sequence[FrontierPoint]
    searched: Mapping[Setting, Sequence[ServingPoint]]
    submissions: Sequence[tuple[Submission, tuple[float, float]]]
    unseen: Floats | None
    server_ranges: Mapping[str, tuple[float, float]]
    published: Sequence[tuple[Published, float | None, float | None]]
    draws: Sequence[Draw]
    drawn: Floats
    drawn_held: Floats | None
    curves: Sequence[Curve]
    fingerprints: Mapping[str, str]

    @property
    def all_errors(self) -> tuple[Floats, ...]:
        """Errors with the catalogue's constants, and of runs left out where there are any."""
        return (self.fitted,) if self.held is None else (self.fitted, self.held)

    @property
    def all_ratios(self) -> tuple[Floats, ...]:
        """Predicted over measured results of MLPerf, float64[submissions, 2], and by a fit without them where there is one."""
        measured_results = np.array([(entry.offline, entry.server) for entry, _ in self.submissions])
        found = np.array([predicted for _, predicted in self.submissions]) / measured_results
        return (found,) if self.unseen is None else (found, np.exp(self.unseen))

    @property
    def all_draws(self) -> tuple[Floats, ...]:
        """Predicted draws with the catalogue's constants, and of models left out where there are any."""
        return (self.drawn,) if self.drawn_held is None else (self.drawn, self.drawn_held)

    @property
    def strictest(self) -> Floats:
        """Errors of runs left out where there are any, else of the catalogue: what plots and lists of the worst show."""
        return self.all_errors[-1]


def collect(folder: Path, *, cross_validation: bool = True) -> Evidence:
    """Compute everything.

    Args:
        folder: Reference data.
        cross_validation: Whether to refit without each tenth of the runs, and without each model's draws (some minutes).
    """
    points = measured(folder)
    draws = power.measured_draws(folder)
    settings = {setting_of(point): point for point in reversed(frontier.measured_frontier(folder))}
    return Evidence(
        points=points,
        months=_months(folder),
        fitted=log_errors(points),
        held=performance.cross_validate(
            points, performance.fitted_submissions(folder), performance.present(), progress=_bar
        )
        if cross_validation
        else None,
        frontier=frontier.measured_frontier(folder),
        searched={
            setting: frontier.searched(point)
            for setting, point in tqdm(settings.items(), "frontiers", leave=False, disable=None)
        },
        submissions=[
            (entry, mlperf.predictions(entry))
            for entry in tqdm(mlperf.submissions(folder), "MLPerf", leave=False, disable=None)
        ],
        unseen=_unseen(folder) if cross_validation else None,
        server_ranges=_server_ranges(folder),
        published=[
            (
                point,
                None if point.mtp else frontier.best_output(point, mtp=False),
                None if point.mtp is False else frontier.best_output(point, mtp=True),
            )
            for point in tqdm(frontier.published(folder), "published points", leave=False, disable=None)
        ],
        draws=draws,
        drawn=np.array([power.predicted_w(draw) for draw in draws]),
        drawn_held=power.cross_validate(draws) if cross_validation else None,
        curves=[limits.curve(rack, phase) for rack in limits.RACKS for phase in limits.MEASURED],
        fingerprints={
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in [
                RACKS_PATH,
                RACKS_PATH.with_name("models.toml"),
                *(folder / name for name in DATA),
            ]
        },
    )


def _bar(folds: Iterable[int]) -> Iterable[int]:
    return tqdm(folds, "cross-validation", unit="fold", leave=False, disable=None)


def _months(folder: Path) -> list[str]:
    """Return the month of each row of the measured points."""
    with (folder / "silicon_calibration.csv").open(encoding="utf-8", newline="") as file:
        return [row["measured"][:7] for row in csv.DictReader(file)]


def _unseen(folder: Path) -> Floats:
    """Return ln(predicted / measured) of MLPerf results by a fit that has none of them."""
    variables = performance.fit(measured(folder), (), performance.present(), evaluations=8)
    return mlperf.log_errors(mlperf.submissions(folder), performance.constants_of(variables))


def _server_ranges(folder: Path) -> dict[str, tuple[float, float]]:
    """Return how far apart submissions on the same GPUs are."""
    facts: dict[str, Any] = yaml.safe_load((folder / "hardware_facts.yaml").read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {}
    for entry in facts["mlperf"]:
        if entry["round"] == "v6.1" and entry["model"] == "deepseek-r1":
            found.setdefault(entry["system"].split()[0], []).append(entry["server"] / entry["gpus"])
    return {system: (min(values), max(values)) for system, values in sorted(found.items()) if len(values) > 1}


@dataclass(frozen=True)
class Noise:
    """What measuring again changes.

    Attributes:
        places: Places of the points that were measured more than once.
        deviations: ln(geometric mean of the configuration's measurements / measurement): the log errors of a model that has
            seen them, float64[places, 3] for TPOT, TTFT and output tokens/s/GPU.
        spreads: ln(largest / smallest) of each configuration: float64[configurations, 3].
        copies: Rows that repeat another in configuration, TPOT and TTFT to the last digit; they say nothing of noise.
    """

    places: Sequence[int]
    deviations: Floats
    spreads: Floats
    copies: int


def noise(points: Sequence[Measured], wanted: Sequence[int] | None = None) -> Noise:
    """Measure the label noise: same system, layout, lengths and concurrency, measured more than once.

    Args:
        points: Measured points.
        wanted: Places that count; None for all.
    """
    keep = set(range(len(points)) if wanted is None else wanted)
    places: list[int] = []
    deviations: list[Any] = []
    spreads: list[Any] = []
    copies = 0
    for group in frontier.places_of_configurations(points):
        different = {(points[place].tpot_s, points[place].ttft_s): place for place in reversed(group) if place in keep}
        own = sorted(different.values())
        copies += sum(place in keep for place in group) - len(own)
        if len(own) < 2:
            continue
        figures = np.log([[points[p].tpot_s, points[p].ttft_s, points[p].output_tokens_per_s_per_gpu] for p in own])
        places += own
        deviations.extend(figures.mean(axis=0) - figures)
        spreads.append(np.ptp(figures, axis=0))
    return Noise(places, np.array(deviations).reshape(-1, 3), np.array(spreads).reshape(-1, 3), copies)
