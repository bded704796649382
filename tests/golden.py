"""Frozen predictions of ``serving_point``: a change of physics or constants must be deliberate.

``tests/data/golden_serving_points.csv`` has one point per row: first the arguments of ``serving_point`` (empty: the
default), then what it answered. After a deliberate recalibration, write the answers anew from the root of the repository::

    python -m tests.golden

To add a point, add a row with its arguments and run the same command.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai_factory_gym.physics.serving import serving_point

PATH = Path(__file__).parent / "data" / "golden_serving_points.csv"

WHOLE = (
    "prompt_tokens",
    "output_tokens",
    "concurrency",
    "prefill_workers",
    "prefill_tp",
    "prefill_dp",
    "prefill_pp",
    "decode_workers",
    "decode_tp",
    "decode_dp",
    "decode_ep",
)
TEXT = ("rack", "model", "precision", "mode", "prefill_rack", "prefill_profile", "decode_profile", "kv_precision")
ANSWERS = (
    "ttft_s",
    "tpot_s",
    "output_tokens_per_s_per_gpu",
    "batch",
    "prefill_utilisation",
    "power_w_per_gpu",
)
DIGITS = 9


def rows() -> list[dict[str, str]]:
    """Return the table as it is, one dict of text per point."""
    with PATH.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def arguments(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of ``serving_point`` of a row."""
    given: dict[str, Any] = {key: row[key] for key in TEXT if row[key]}
    given |= {key: int(row[key]) for key in WHOLE if row[key]}
    given |= {"mtp": row["mtp"] == "1"} if row["mtp"] else {}
    return given | ({"clock": float(row["clock"])} if row["clock"] else {})


def frozen(row: Mapping[str, str]) -> list[float]:
    """Return the answers in the table."""
    return [float(row[name]) for name in ANSWERS]


def answers(row: Mapping[str, str]) -> list[float]:
    """Return the answers of the model as it is now."""
    point = serving_point(**arguments(row))
    return [float(getattr(point, name)) for name in ANSWERS]


def main() -> None:
    """Write the table with the answers of the model as it is now."""
    table = rows()
    for row in table:
        row |= {name: f"{value:.{DIGITS}g}" for name, value in zip(ANSWERS, answers(row), strict=True)}
    with PATH.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(PATH)


if __name__ == "__main__":
    main()
