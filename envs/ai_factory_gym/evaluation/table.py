"""Comparison tables: a row per policy; feasible ones are ranked by tokens per joule, infeasible ones marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.evaluation.result import EvaluationResult
from ai_factory_gym.evaluation.statistics import Estimate, compare

METRIC = "tokens_per_joule_facility"
"""What policies are ranked by."""

_JOULES_PER_MWH = 3.6e9
_UNRANKED = "-"
_HEADER = (
    *(
        "rank",
        "policy",
        "tokens/J",
        "95 % interval",
        "feasible",
        "SLA",
        "tightest class",
        "energy MWh",
        "above cap",
        "brake",
    ),
)
_LEFT_ALIGNED = frozenset({"policy", "tightest class", "95 % interval"})


def rank(results: Sequence[EvaluationResult]) -> list[tuple[int | None, EvaluationResult]]:
    """Order the policies of one setting: feasible ones by IQM of tokens per joule, then the others, unranked, as given.

    A policy is ranked when every one of its episodes is feasible.

    Raises:
        ConfigError: When the results are of different settings or seeds, or two have the same policy name.
    """
    _check_one_setting(results)
    feasible = [result for result in results if result.summary["feasible"]]
    feasible.sort(key=lambda result: -result.summary["metrics"][METRIC]["iqm"])
    ranked: list[tuple[int | None, EvaluationResult]] = [
        (place, result) for place, result in enumerate(feasible, start=1)
    ]
    return ranked + [(None, result) for result in results if not result.summary["feasible"]]


def comparison_table(results: Sequence[EvaluationResult], *, markdown: bool = False) -> str:
    """Render results as text: a table per setting (task, scenario, resolution, trace), and notes below each.

    Columns: good tokens per joule of facility energy (IQM and its 95 % stratified-bootstrap interval), share of
    episodes that are feasible, SLA attainment of all requests, the class with the least slack to its target, mean
    energy per episode, energy above the cap as a share of the cap's, and time under the brake as a share of the
    horizon.

    Args:
        results: In any order.
        markdown: Pipe tables with headings, instead of aligned plain text.

    Raises:
        ConfigError: As `rank`.
    """
    blocks = []
    for group in _by_setting(results):
        ordered = rank(group)
        cells = [_cells(place, result.summary) for place, result in ordered]
        table = render(_HEADER, cells, left=_LEFT_ALIGNED, markdown=markdown)
        blocks.append(_join([_title(group[0].summary, markdown=markdown), table, *_notes(ordered)], markdown=markdown))
    return "\n\n".join(blocks)


def versus_table(results: Sequence[EvaluationResult], reference: str, *, markdown: bool = False) -> str:
    """Render each policy's difference from a reference policy in tokens per joule, paired by seed, per setting.

    Args:
        results: In any order; the reference's own among them.
        reference: Name of the policy to compare with.
        markdown: As in `comparison_table`.

    Raises:
        ConfigError: When a setting has no result of that policy, or as `rank`.
    """
    header = ("policy", "difference", "95 % interval", "relative", "better on", "P(improvement)", "95 % interval")
    blocks = []
    for group in _by_setting(results):
        ordered = [result for _, result in rank(group)]
        named = {result.summary["policy"]: result for result in ordered}
        if reference not in named:
            raise unknown("versus", reference, list(named))
        cells = []
        for name, result in named.items():
            if name == reference:
                continue
            found = compare(result, named[reference], METRIC)
            cells.append(
                (
                    name if result.summary["feasible"] else f"{name} (infeasible)",
                    f"{found.difference.value:+#.4g}",
                    _interval(found.difference.low, found.difference.high, "+#.4g"),
                    f"{found.relative_difference.value:+.2%}",
                    f"{found.wins:.0%} of seeds",
                    f"{found.probability_of_improvement.value:.2f}",
                    _estimate_interval(found.probability_of_improvement),
                )
            )
        title = _title(group[0].summary, markdown=markdown, suffix=f": tokens/J against {reference}, paired by seed")
        left = frozenset({"policy", "95 % interval"})
        blocks.append(_join([title, render(header, cells, left=left, markdown=markdown)], markdown=markdown))
    return "\n\n".join(blocks)


def render(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: frozenset[str] = frozenset(), markdown: bool = False
) -> str:
    """Align cells in columns, to the right except for the columns named in ``left``; plain text or a pipe table."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, width, name in zip(cells, widths, header, strict=True)
        ]
        return "| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        marks = [
            "-" * width if name in left else "-" * (width - 1) + ":" for name, width in zip(header, widths, strict=True)
        ]
        rule = "| " + " | ".join(marks) + " |"
    else:
        rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *(line(cells) for cells in rows)])


def _cells(place: int | None, summary: dict[str, Any]) -> tuple[str, ...]:
    metrics = summary["metrics"]
    tightest = min(
        summary["class_attainment"].items(), key=lambda item: item[1]["attainment"] - item[1]["target"], default=None
    )
    return (
        _UNRANKED if place is None else str(place),
        summary["policy"] if place is not None else f"{summary['policy']} (infeasible)",
        f"{metrics[METRIC]['iqm']:.4g}",
        _interval(metrics[METRIC]["low"], metrics[METRIC]["high"], "#.4g"),
        f"{summary['feasible_share']:.0%}",
        f"{summary['sla_attainment']:.4f}",
        "" if tightest is None else f"{tightest[0]} {tightest[1]['attainment']:.4f} ({tightest[1]['target']:g})",
        f"{metrics['energy_j']['mean'] / _JOULES_PER_MWH:.3f}",
        f"{metrics['cap_violation_share']['mean']:.4%}",
        f"{metrics['brake_share']['mean']:.2%}",
    )


def _title(summary: dict[str, Any], *, markdown: bool, suffix: str = "") -> str:
    trace = f", trace {summary['trace']}" if summary["trace"] else ""
    seeds = summary["seeds"]
    count = f"{len(seeds)} {summary['seed_range']} seed{'s' if len(seeds) > 1 else ''} from {min(seeds)}"
    title = f"{summary['task']}, {summary['scenario']}{trace}, {summary['resolution']} resolution, {count}{suffix}"
    return f"### {title}" if markdown else title


def _notes(ordered: Sequence[tuple[int | None, EvaluationResult]]) -> list[str]:
    notes = []
    for place, result in ordered:
        if place is None:
            total = len(result.episodes)
            broken = ", ".join(f"{name} in {count}" for name, count in result.summary["violations"].items())
            notes.append(f"{result.summary['policy']} is infeasible; of {total} episode{'s' * (total > 1)}: {broken}.")
    hypothetical = ordered[0][1].summary["hypothetical_racks"]
    if hypothetical:
        notes.append(f"The site has hypothetical racks, which nobody sells: {hypothetical}.")
    return notes


def _join(parts: Sequence[str], *, markdown: bool) -> str:
    return ("\n\n" if markdown else "\n").join(parts)


def _interval(low: float, high: float, form: str) -> str:
    return "" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _estimate_interval(found: Estimate) -> str:
    return _interval(found.low, found.high, ".2f")


def _setting(result: EvaluationResult) -> tuple[str, ...]:
    return tuple(result.summary[name] for name in ("task", "scenario", "resolution", "trace"))


def _by_setting(results: Sequence[EvaluationResult]) -> list[list[EvaluationResult]]:
    if not results:
        raise ConfigError("results: empty; there is nothing to show.")
    groups: dict[tuple[str, ...], list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault(_setting(result), []).append(result)
    return list(groups.values())


def _check_one_setting(results: Sequence[EvaluationResult]) -> None:
    if not results:
        raise ConfigError("results: empty; there is nothing to rank.")
    if len({_setting(result) for result in results}) > 1:
        raise ConfigError(
            "results: of different settings; policies are ranked within one task, scenario and resolution."
        )
    if len({tuple(sorted(result.summary["seeds"])) for result in results}) > 1:
        raise ConfigError("results: run on different seeds; policies are ranked on the same ones.")
    names = [result.summary["policy"] for result in results]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"results: two policies are named {', '.join(repeated)}; give them names (policy_name=...).")
