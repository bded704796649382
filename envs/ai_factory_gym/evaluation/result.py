"""What an evaluation returns: a row per episode, a summary computed from the rows alone, and their CSV form."""

from __future__ import annotations

import csv
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation.feasibility import class_names, violations
from ai_factory_gym.evaluation.seeds import seed_range
from ai_factory_gym.evaluation.statistics import bootstrap_interval, iqm

TEXT_COLUMNS = ("task", "scenario", "resolution", "trace", "policy", "infeasible_reason", "hypothetical_racks")
GROUP_COLUMNS = ("task", "scenario", "resolution", "trace", "policy")


@dataclass(frozen=True)
class EvaluationResult:
    """The episodes of one policy in one setting, and what they amount to.

    Attributes:
        episodes: One row per episode, in the order of the seeds; `evaluate` lists the columns.
        summary: `summarise` of the rows.
    """

    episodes: list[dict[str, Any]]
    summary: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Compute the summary, so that it can never disagree with the rows."""
        object.__setattr__(self, "summary", summarise(self.episodes))


def summarise(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the episodes of one policy in one setting.

    Returns:
        A dictionary of plain Python values:

        - ``task, scenario, resolution, trace, policy, hypothetical_racks, seeds``, ``seed_range`` (``evaluation``,
          ...);
        - ``feasible``: whether *every* episode is feasible, which is what ranking asks; ``feasible_share`` of episodes;
          ``violations``: condition -> number of episodes that broke it;
        - ``metrics``: numeric column -> ``mean, iqm, low, high, minimum, maximum`` (``low`` and ``high``: 95 %
          bootstrap interval of the IQM, NaN for a single episode);
        - ``sla_attainment``: requests that met their SLO over requests decided, all episodes together;
        - ``class_attainment``: class -> ``attainment`` (all episodes together), ``mean``, ``worst`` (episode),
          ``target``, ``feasible_share`` (of episodes in which this class met its target).

    Raises:
        ConfigError: When there is no row, or the rows are not of one policy in one setting.
    """
    if not episodes:
        raise ConfigError("episodes: empty; there is nothing to summarise.")
    first = episodes[0]
    for name in GROUP_COLUMNS:
        found = sorted({str(row[name]) for row in episodes})
        if len(found) > 1:
            raise ConfigError(f"episodes: column {name!r} mixes {', '.join(found)}; summarise one at a time.")
    broken = Counter(condition for row in episodes for condition in violations(row))
    seeds = [row["seed"] for row in episodes]
    return {
        **{name: first[name] for name in GROUP_COLUMNS},
        "hypothetical_racks": first["hypothetical_racks"],
        "seeds": seeds,
        "seed_range": seed_range(seeds),
        "feasible": all(row["feasible"] for row in episodes),
        "feasible_share": sum(row["feasible"] for row in episodes) / len(episodes),
        "violations": dict(broken.most_common()),
        "sla_attainment": _attainment(episodes, "requests_met_slo", "requests_missed_slo"),
        "metrics": {
            name: _spread([row[name] for row in episodes])
            for name, value in first.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "seed"
        },
        "class_attainment": {name: _class_summary(episodes, name) for name in class_names(first)},
    }


def write_csv(episodes: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows to a new CSV file, whole or not at all; floats keep every digit.

    Rows of several policies and tasks may go into one file: the header has every column, and a cell is empty where a
    row has no such column (another task's classes).

    Raises:
        ConfigError: When there is no row or the file exists.
    """
    target = Path(path)
    if not episodes:
        raise ConfigError("episodes: empty; there is nothing to write.")
    check_new_file(target)
    columns = list(dict.fromkeys(key for row in episodes for key in row))
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with open(handle, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: repr(v) if isinstance(v, float) else v for key, v in row.items()} for row in episodes
            )
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files for the owner alone; results are for sharing like any other file the user writes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        _publish(Path(name), target)
    finally:
        Path(name).unlink(missing_ok=True)


def read_csv(path: str | os.PathLike[str]) -> list[EvaluationResult]:
    """Read what `write_csv` wrote, as one result per policy and setting, in order of first appearance.

    Raises:
        ConfigError: When the file is not such a table.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in (*TEXT_COLUMNS, "seed", "feasible") if name not in (reader.fieldnames or [])]
        if missing:
            raise ConfigError(f"{os.fspath(path)}: not a table of episodes; column(s) missing: {', '.join(missing)}.")
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for line in reader:
            row = {key: _parse(key, text) for key, text in line.items() if text != "" or key in TEXT_COLUMNS}
            groups.setdefault(tuple(row[name] for name in GROUP_COLUMNS), []).append(row)
    return [EvaluationResult(rows) for rows in groups.values()]


def check_new_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path at which something exists: results are never overwritten.

    Raises:
        ConfigError: When it exists.
    """
    if os.path.lexists(path):
        raise ConfigError(
            f"csv_path: {os.fspath(path)!r} exists; results are never overwritten: give a new name or move it."
        )


def _publish(temporary: Path, target: Path) -> None:
    """Give a finished file its name in one step; unlike a rename, a hard link fails when the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        check_new_file(target)
        raise
    except OSError:  # a file system without hard links
        check_new_file(target)
        os.rename(temporary, target)


def _parse(column: str, text: str) -> Any:
    if column in TEXT_COLUMNS:
        return text
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return float(text)


def _spread(values: Sequence[float]) -> dict[str, float]:
    samples = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval([samples])
    return {
        "mean": float(samples.mean()),
        "iqm": float(iqm(samples)),
        "low": low,
        "high": high,
        "minimum": float(samples.min()),
        "maximum": float(samples.max()),
    }


def _attainment(episodes: Iterable[Mapping[str, Any]], met_key: str, missed_key: str) -> float:
    met = missed = 0.0
    for row in episodes:
        met += row[met_key]
        missed += row[missed_key]
    return met / (met + missed) if met + missed else 1.0


def _class_summary(episodes: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    attainments = [float(row[f"class/{name}/attainment"]) for row in episodes]
    target = float(episodes[0][f"class/{name}/attainment_target"])
    return {
        "attainment": _attainment(episodes, f"class/{name}/met", f"class/{name}/missed"),
        "mean": float(np.mean(attainments)),
        "worst": min(attainments),
        "target": target,
        "feasible_share": sum(value >= target for value in attainments) / len(attainments),
    }
