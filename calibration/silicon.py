"""Measured serving points, and what the model says of each with given constants."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.catalogue import Rack
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.physics.serving import ServingPoint, serving_point

Floats = NDArray[np.float64]

Constants = Mapping[str, Mapping[str, Any]]
"""GPU generation to field of ``Architecture`` to value."""

REFERENCE_VARIABLE = "AI_FACTORY_REFERENCE_DIR"
SERVING_POINTS = "silicon_calibration.csv"

RACKS: Mapping[str, str] = {
    "h100_sxm": "h100_sxm8",
    "h200_sxm": "h200_sxm8",
    "b200_sxm": "b200_sxm8",
    "b300_sxm": "b300_sxm8",
    "gb200": "gb200_nvl72",
    "gb300": "gb300_nvl72",
}
"""Rack type of each measured system."""


@dataclass(frozen=True)
class Measured:
    """One measured serving point: a call of ``serving_point`` and what came out on silicon.

    Attributes:
        system: Measured system, a key of ``RACKS``.
        arguments: Arguments of ``serving_point`` beside the rack.
        gpus: GPUs of all workers.
        ttft_s: Measured time to first token, queueing included.
        tpot_s: Measured time per output token.
        output_tokens_per_s_per_gpu: Follows from the two.
        run: Points of one run share it: a run is left out as a whole.
    """

    system: str
    arguments: Mapping[str, Any]
    gpus: int
    ttft_s: float
    tpot_s: float
    output_tokens_per_s_per_gpu: float
    run: str

    @property
    def group(self) -> str:
        """System, model, precision and mode."""
        return " ".join([self.system, *(self.arguments[key] for key in ("model", "precision", "mode"))])

    @property
    def lengths(self) -> str:
        """Prompt and output tokens."""
        return f"{self.arguments['prompt_tokens']}/{self.arguments['output_tokens']}"


def reference_folder() -> Path:
    """Return the folder of the reference data.

    Raises:
        SystemExit: When the environment does not name one.
    """
    folder = os.environ.get(REFERENCE_VARIABLE)
    if not folder:
        raise SystemExit(f"error: set {REFERENCE_VARIABLE} to the folder of the reference data.")
    if not (Path(folder) / SERVING_POINTS).is_file():
        raise SystemExit(
            f"error: {REFERENCE_VARIABLE}: {folder!r} has no {SERVING_POINTS}; name the folder of the reference data."
        )
    return Path(folder)


@functools.cache
def measured(folder: Path) -> tuple[Measured, ...]:
    """Return every measured point of ``silicon_calibration.csv``."""
    with (folder / SERVING_POINTS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Measured(
            system=row["system"],
            arguments=_arguments(row),
            gpus=int(row["n_gpus"]),
            ttft_s=float(row["ttft_s"]),
            tpot_s=float(row["tpot_s"]),
            output_tokens_per_s_per_gpu=float(row["output_tokens_per_s_per_gpu"]),
            run=row["run"],
        )
        for row in rows
    )


def _arguments(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row's arguments of ``serving_point``; aggregated rows leave those of prefill workers empty."""
    layout = [f"{phase}_{key}" for phase in ("prefill", "decode") for key in ("workers", "tp", "dp")]
    return {
        **{key: row[key] for key in ("model", "precision", "mode")},
        **{key: int(row[key] or 0) for key in ("prompt_tokens", "output_tokens", "concurrency", *layout)},
        "mtp": row["mtp"] == "1",
    }


def recalibrated(rack: Rack, constants: Constants) -> Rack:
    """Return a rack type with some constants of its GPU generations replaced.

    Args:
        rack: Rack type.
        constants: What to replace.
    """
    groups = tuple(
        dataclasses.replace(
            group,
            architecture=dataclasses.replace(group.architecture, **constants.get(group.architecture.id, {})),
        )
        for group in rack.groups
    )
    return dataclasses.replace(rack, groups=groups)


def predict(point: Measured, rack: Rack | None = None) -> ServingPoint:
    """Return the model's answer to one measured point, on its system's rack type or the given one."""
    return serving_point(find_rack(RACKS[point.system]) if rack is None else rack, **point.arguments)


def log_errors(points: Sequence[Measured], constants: Constants | None = None) -> Floats:
    """Return ln(predicted / measured) of every point: float64[points, 3] for TPOT, TTFT and output tokens/s/GPU.

    Args:
        points: Measured points.
        constants: See ``recalibrated``; None takes the catalogue as it is.
    """
    racks = {system: recalibrated(find_rack(name), constants or {}) for system, name in RACKS.items()}
    errors = np.empty((len(points), 3))
    for index, point in enumerate(points):
        found = predict(point, racks[point.system])
        errors[index] = (
            found.tpot_s / point.tpot_s,
            found.ttft_s / point.ttft_s,
            found.output_tokens_per_s_per_gpu / point.output_tokens_per_s_per_gpu,
        )
    return np.log(errors)
