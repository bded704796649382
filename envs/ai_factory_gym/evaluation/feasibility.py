"""Which runs count: the conditions a policy must meet before its tokens per watt are compared with anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_CAP_VIOLATION_SHARE = 1e-4
"""Energy above the cap, as a share of the energy the cap allowed over the horizon (0.01 %)."""

MAX_BRAKE_SHARE = 2e-3
"""Time under the power brake, as a share of the horizon (0.2 %)."""


def violations(row: Mapping[str, Any]) -> dict[str, str]:
    """List the conditions an episode broke; an empty dictionary means that it is feasible.

    Feasible means: the episode ran to its end, every class met its attainment target, energy above the cap and time
    under the brake stay within `MAX_CAP_VIOLATION_SHARE` and `MAX_BRAKE_SHARE`, and a training block of which the site asks for progress
    has made it.

    Args:
        row: One episode, as in ``EvaluationResult.episodes``.

    Returns:
        Condition (``"chat attainment"``, ``"energy above cap"``, ``"brake"``, ``"training progress"``, ``"terminated"``) -> what was found.
    """
    broken: dict[str, str] = {}
    if row["terminated"]:
        broken["terminated"] = "before the horizon"
    for name in class_names(row):
        attainment, target = row[f"class/{name}/attainment"], row[f"class/{name}/attainment_target"]
        if not attainment >= target:
            broken[f"{name} attainment"] = f"{attainment:.4f} < {target:g}"
    if not row["cap_violation_share"] <= MAX_CAP_VIOLATION_SHARE:
        broken["energy above cap"] = f"{row['cap_violation_share']:.4%} > {MAX_CAP_VIOLATION_SHARE:.2%}"
    if not row["brake_share"] <= MAX_BRAKE_SHARE:
        broken["brake"] = f"{row['brake_share']:.2%} of the horizon > {MAX_BRAKE_SHARE:.1%}"
    if row.get("training_target_share", 0.0) > 0.0 and not row["training_share"] >= row["training_target_share"]:
        broken["training progress"] = f"{row['training_share']:.4f} < {row['training_target_share']:g}"
    return broken


def infeasible_reason(row: Mapping[str, Any]) -> str:
    """Say in one line why an episode is infeasible; an empty string means that it is feasible."""
    return "; ".join(f"{condition} {found}" for condition, found in violations(row).items())


def class_names(row: Mapping[str, Any]) -> list[str]:
    """Names of the request classes an episode reports, in the order of its columns."""
    return [key.split("/")[1] for key in row if key.startswith("class/") and key.endswith("/attainment_target")]
