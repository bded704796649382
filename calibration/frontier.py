"""What the model is for: which configuration to run. Choices among measured ones, and frontiers of measured and searched ones.

The test of a choice: among the configurations of a set that were measured, take the one that the model believes best at a
wanted speed, and look up what it gave on silicon.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ai_factory_gym.catalogue import model_ids
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.physics.serving import ServingPoint, serving_frontier
from calibration.silicon import RACKS, Floats, Measured, measured, predict

TARGETS = (20.0, 50.0, 100.0)
"""Wanted tokens/s/user."""

TOLERANCE = 0.10
"""A picked configuration that misses the target as measured still counts with its output when it misses by at most this share."""

OUTCOMES = ("best", "met", "narrow", "missed", "none")
"""The best itself; another that meets the target; one that misses it by at most ``TOLERANCE``; by more; nothing picked."""

LARGEST_WORKER_GPUS = 32
"""GPUs of the largest worker tried where a model does not fit one link domain (DeepSeek-R1 was measured on 16 H100)."""


@dataclass(frozen=True)
class Configuration:
    """One configuration of a set, as measured and as the model has it.

    Attributes:
        measured_speed: Tokens/s/user.
        measured_output: Output tokens/s/GPU.
        predicted_speed: Tokens/s/user by the model.
        predicted_output: Output tokens/s/GPU by the model.
    """

    measured_speed: float
    measured_output: float
    predicted_speed: float
    predicted_output: float


@dataclass(frozen=True)
class Choice:
    """What the model picked from one set at one target, and what was best.

    Attributes:
        setting: Name of the set.
        target: Wanted tokens/s/user.
        best: Configuration of most measured output among those that meet the target as measured.
        picked: Configuration of most predicted output among those that meet it by the model; None where none does.
    """

    setting: str
    target: float
    best: Configuration
    picked: Configuration | None

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        if self.picked is None:
            return "none"
        if self.picked == self.best:
            return "best"
        if self.picked.measured_speed >= self.target:
            return "met"
        return "narrow" if self.picked.measured_speed >= (1.0 - TOLERANCE) * self.target else "missed"

    @property
    def share(self) -> float:
        """Measured output of the pick over that of the best; at most 1, and 0 where the target is missed or nothing is picked.

        A pick that misses by little may give more output than any that meets the target; that is no merit, hence the bound.
        """
        if self.picked is None or self.outcome == "missed":
            return 0.0
        return min(1.0, self.picked.measured_output / self.best.measured_output)


def choose(setting: str, configurations: Sequence[Configuration], target: float) -> Choice | None:
    """Let the model pick from a set; None where no configuration meets the target as measured, or there is only one.

    Args:
        setting: Name of the set.
        configurations: The set.
        target: Wanted tokens/s/user.
    """
    meeting = [entry for entry in configurations if entry.measured_speed >= target]
    if not meeting or len(configurations) < 2:
        return None
    believed = [entry for entry in configurations if entry.predicted_speed >= target]
    return Choice(
        setting,
        target,
        best=max(meeting, key=lambda entry: entry.measured_output),
        picked=max(believed, key=lambda entry: entry.predicted_output, default=None),
    )


def places_of_configurations(points: Sequence[Measured]) -> list[list[int]]:
    """Return, for each different configuration, the places of its measurements."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, point in enumerate(points):
        found.setdefault((point.system, *sorted(point.arguments.items())), []).append(place)
    return list(found.values())


def sets(points: Sequence[Measured], errors: Floats, *, mtp_apart: bool = True) -> dict[str, list[Configuration]]:
    """Return the configurations of each system, model, precision and lengths, modes together.

    A configuration measured more than once counts once, with the geometric means of its figures: the best of a set would
    otherwise be the luckiest measurement, which no model can pick.

    Args:
        points: Measured points.
        errors: ln(predicted / measured) of each, float64[points, 3], as from ``log_errors``.
        mtp_apart: Whether points with multi-token prediction are sets of their own.
    """
    measured_speed = np.log([1.0 / point.tpot_s for point in points])
    measured_output = np.log([point.output_tokens_per_s_per_gpu for point in points])
    figures = np.stack(
        [measured_speed, measured_output, measured_speed - errors[:, 0], measured_output + errors[:, 2]], axis=1
    )
    found: dict[str, list[Configuration]] = {}
    for places in places_of_configurations(points):
        point = points[places[0]]
        name = " ".join([point.system, point.arguments["model"], point.arguments["precision"], point.lengths])
        if mtp_apart and point.arguments["mtp"]:
            name += " MTP"
        found.setdefault(name, []).append(Configuration(*np.exp(figures[places].mean(axis=0)).tolist()))
    return dict(sorted(found.items()))


def choices(
    points: Sequence[Measured], errors: Floats, targets: Sequence[float] = TARGETS, *, mtp_apart: bool = True
) -> list[Choice]:
    """Return the choice from every set at every target that it can meet."""
    configurations = sets(points, errors, mtp_apart=mtp_apart)
    found = (choose(name, entries, target) for target in targets for name, entries in configurations.items())
    return [choice for choice in found if choice is not None]


@dataclass(frozen=True)
class FrontierPoint:
    """A point of the measured frontier.

    Attributes:
        system: Measured system.
        model: Model served.
        precision: Weight precision.
        mtp: Whether multi-token prediction is on.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer.
        configuration: What was measured and what the model says of the same configuration.
    """

    system: str
    model: str
    precision: str
    mtp: bool
    prompt_tokens: int
    output_tokens: int
    configuration: Configuration


@functools.cache
def measured_frontier(folder: Path) -> tuple[FrontierPoint, ...]:
    """Return the points of ``silicon_frontier_calibration.csv`` with the model's answer to each.

    Raises:
        ValueError: When a point is not among the rows of ``silicon_calibration.csv``.
    """
    points = measured(folder)
    found = []
    with (folder / "silicon_frontier_calibration.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            point = _row_of(row, points)
            predicted = predict(point)
            found.append(
                FrontierPoint(
                    point.system,
                    point.arguments["model"],
                    point.arguments["precision"],
                    point.arguments["mtp"],
                    point.arguments["prompt_tokens"],
                    point.arguments["output_tokens"],
                    Configuration(
                        1.0 / point.tpot_s,
                        point.output_tokens_per_s_per_gpu,
                        predicted.tokens_per_s_per_user,
                        predicted.output_tokens_per_s_per_gpu,
                    ),
                )
            )
    return tuple(found)


def _row_of(row: Mapping[str, str], points: Sequence[Measured]) -> Measured:
    """Return the measured row that a row of the frontier was taken from: the frontier does not name layouts."""
    wanted = np.log([float(row["tokens_per_s_per_user"]), float(row["output_tokens_per_s_per_gpu"])])
    nearest, least = None, 0.01
    for point in points:
        if (
            point.system != row["system"]
            or point.gpus != int(row["n_gpus"])
            or point.lengths != f"{row['prompt_tokens']}/{row['output_tokens']}"
            or point.arguments["mtp"] != (row["mtp"] == "1")
            or any(point.arguments[key] != row[key] for key in ("model", "precision", "mode"))
        ):
            continue
        away = float(np.abs(np.log([1.0 / point.tpot_s, point.output_tokens_per_s_per_gpu]) - wanted).sum())
        if away < least:
            nearest, least = point, away
    if nearest is None:
        raise ValueError(f"silicon_frontier_calibration.csv: no measured row for {dict(row)}.")
    return nearest


def searched(point: FrontierPoint) -> list[ServingPoint]:
    """Return the model's whole frontier for the setting of a point, empty where the model fits no layout."""
    try:
        return serving_frontier(
            RACKS[point.system],
            point.model,
            precision=point.precision,
            prompt_tokens=point.prompt_tokens,
            output_tokens=point.output_tokens,
            mtp=point.mtp,
        )
    except ConfigError:
        return []


@dataclass(frozen=True)
class Published:
    """A point of a published frontier whose configuration is not known.

    Attributes:
        rack: Rack type.
        model: Model served.
        precision: Weight precision.
        mtp: Whether multi-token prediction is on; None where it is not said.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer.
        speed: Tokens/s/user.
        output: Output tokens/s/GPU. Published are tokens in and out together, of which this is the share of the output.
        per_watt: Whether the published figure is per megawatt, turned into one per GPU with the source's kW per GPU.
    """

    rack: str
    model: str
    precision: str
    mtp: bool | None
    prompt_tokens: int
    output_tokens: int
    speed: float
    output: float
    per_watt: bool


@functools.cache
def published(folder: Path) -> tuple[Published, ...]:
    """Return the InferenceX points of ``hardware_facts.yaml`` whose model is in the catalogue.

    Their tokens/s/GPU count input and output (``tput_per_gpu`` of InferenceX, the headline figure of its comparison pages).
    """
    facts: dict[str, Any] = yaml.safe_load((folder / "hardware_facts.yaml").read_text(encoding="utf-8"))["inferencex"]
    found = []
    for entry in facts["points"]:
        if entry["model"] not in model_ids():
            continue
        prompt, output = (1024 * int(part.removesuffix("k")) for part in entry["isl_osl"].split("/"))
        precision, _, option = entry["precision"].partition("+")
        per_gpu = entry["tok_s_gpu"]
        if per_gpu is None:
            per_gpu = entry["tok_s_mw"] * facts["all_in_kw_per_gpu"][entry["gpu"].split("_")[0]] / 1e3
        gpu = entry["gpu"]
        found.append(
            Published(
                rack=gpu if gpu.endswith("nvl72") else f"{gpu}_sxm8",
                model=entry["model"],
                precision=precision,
                mtp=True if option == "mtp" else (None if entry["model"].startswith("deepseek") else False),
                prompt_tokens=prompt,
                output_tokens=output,
                speed=float(entry["tok_s_user"]),
                output=per_gpu * output / (prompt + output),
                per_watt=entry["tok_s_gpu"] is None,
            )
        )
    return tuple(found)


def best_output(point: Published, *, mtp: bool) -> float | None:
    """Return the most output tokens/s/GPU at a point's speed that the model finds; None where it finds no layout.

    Args:
        point: Published point.
        mtp: Whether multi-token prediction is on.
    """
    best: list[ServingPoint] = []
    for largest in (None, LARGEST_WORKER_GPUS):
        try:
            best = serving_frontier(
                point.rack,
                point.model,
                precision=point.precision,
                prompt_tokens=point.prompt_tokens,
                output_tokens=point.output_tokens,
                tokens_per_s_per_user=point.speed,
                mtp=mtp,
                max_worker_gpus=largest,
            )
            break
        except ConfigError:
            continue
    return best[0].output_tokens_per_s_per_gpu if best else None
