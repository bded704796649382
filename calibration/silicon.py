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

REFERENCE_VARIABLE = "AI_FACTORY_REFERENCE_DIR"

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
    """One measured serving point.

    Attributes:
        system: Measured system, a key of ``RACKS``.
        model: Model served.
        precision: Weight precision.
        mode: ``disaggregated`` or ``aggregated``.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer.
        concurrency: Users.
        mtp: Whether multi-token prediction was on.
        gpus: GPUs of all workers.
        prefill: Workers, tp and dp of prefill (zeros aggregated).
        decode: Workers, tp and dp of decode.
        ttft_s: Measured time to first token, queueing included.
        tpot_s: Measured time per output token.
        output_tokens_per_s_per_gpu: Follows from the two.
        image: Software.
        run: Points of one run share it: a run is left out as a whole.
    """

    system: str
    model: str
    precision: str
    mode: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    mtp: bool
    gpus: int
    prefill: tuple[int, int, int]
    decode: tuple[int, int, int]
    ttft_s: float
    tpot_s: float
    output_tokens_per_s_per_gpu: float
    image: str
    run: str

    @property
    def group(self) -> str:
        """System, model, precision and mode."""
        return f"{self.system} {self.model} {self.precision} {self.mode}"

    @property
    def lengths(self) -> str:
        """Prompt and output tokens."""
        return f"{self.prompt_tokens}/{self.output_tokens}"


def reference_folder() -> Path:
    """Return the folder of the reference data.

    Raises:
        SystemExit: When the environment does not name one.
    """
    folder = os.environ.get(REFERENCE_VARIABLE)
    if not folder or not Path(folder).is_dir():
        raise SystemExit(f"error: set {REFERENCE_VARIABLE} to the folder of the reference data.")
    return Path(folder)


@functools.cache
def measured(folder: Path) -> tuple[Measured, ...]:
    """Return every measured point of ``silicon_calibration.csv``."""
    with (folder / "silicon_calibration.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Measured(
            system=row["system"],
            model=row["model"],
            precision=row["precision"],
            mode=row["mode"],
            prompt_tokens=int(row["prompt_tokens"]),
            output_tokens=int(row["output_tokens"]),
            concurrency=int(row["concurrency"]),
            mtp=row["mtp"] == "1",
            gpus=int(row["n_gpus"]),
            prefill=_worker(row, "prefill"),
            decode=_worker(row, "decode"),
            ttft_s=float(row["ttft_s"]),
            tpot_s=float(row["tpot_s"]),
            output_tokens_per_s_per_gpu=float(row["output_tokens_per_s_per_gpu"]),
            image=row["image"],
            run=row["run"],
        )
        for row in rows
    )


def _worker(row: Mapping[str, str], phase: str) -> tuple[int, int, int]:
    workers, tp, dp = (int(row[f"{phase}_{key}"] or 0) for key in ("workers", "tp", "dp"))
    return workers, tp, dp


def _fields(constants: Mapping[str, Mapping[str, float]], generation: str) -> dict[str, Any]:
    return dict(constants.get(generation, {}))


def recalibrated(rack: Rack, constants: Mapping[str, Mapping[str, float]]) -> Rack:
    """Return a rack type with some constants of its GPU generations replaced.

    Args:
        rack: Rack type.
        constants: Generation to field of ``Architecture`` to value.
    """
    groups = tuple(
        dataclasses.replace(
            group,
            architecture=dataclasses.replace(group.architecture, **_fields(constants, group.architecture.id)),
        )
        for group in rack.groups
    )
    return dataclasses.replace(rack, groups=groups)


def predict(point: Measured, rack: Rack | None = None) -> ServingPoint:
    """Return the model's answer to one measured point: a measured row is one call of ``serving_point``."""
    prefill_workers, prefill_tp, prefill_dp = point.prefill
    workers, tp, dp = point.decode
    return serving_point(
        find_rack(RACKS[point.system]) if rack is None else rack,
        point.model,
        precision=point.precision,
        prompt_tokens=point.prompt_tokens,
        output_tokens=point.output_tokens,
        concurrency=point.concurrency,
        mode=point.mode,  # type: ignore[arg-type]
        decode_workers=workers,
        decode_tp=tp,
        decode_dp=dp,
        mtp=point.mtp,
        prefill_workers=prefill_workers,
        prefill_tp=prefill_tp,
        prefill_dp=prefill_dp,
    )


def log_errors(points: Sequence[Measured], constants: Mapping[str, Mapping[str, float]] | None = None) -> Floats:
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
