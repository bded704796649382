"""Plots of docs/validation.md. Each function draws one and returns it; ``save`` writes it. Needs the extra ``plot``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.physics.serving import ServingPoint
from calibration.frontier import FrontierPoint
from calibration.limits import MEASURED, MEASURED_LIMITS, Curve
from calibration.mlperf import Submission
from calibration.power import Draw
from calibration.silicon import RACKS, Floats, Measured

DPI = 110

# Colours of Okabe and Ito: told apart by colour-blind readers too.
SYSTEM_COLOURS: Mapping[str, str] = {
    "h100_sxm": "#999999",
    "h200_sxm": "#000000",
    "b200_sxm": "#0072B2",
    "b300_sxm": "#56B4E9",
    "gb200": "#E69F00",
    "gb300": "#D55E00",
}
KIND_MARKERS: Mapping[tuple[str, str], str] = {
    ("fp8", "aggregated"): "o",
    ("fp8", "disaggregated"): "s",
    ("fp4", "aggregated"): "^",
    ("fp4", "disaggregated"): "D",
}
OPTION_COLOURS: Mapping[tuple[str, bool], str] = {
    ("fp8", False): "#0072B2",
    ("fp8", True): "#56B4E9",
    ("fp4", False): "#D55E00",
    ("fp4", True): "#E69F00",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "os^Dv"

Setting = tuple[str, str, str, bool, int, int]
"""System, model, precision, multi-token prediction, prompt and output tokens."""


def setting_of(point: FrontierPoint) -> Setting:
    """Return the setting of a point."""
    return (point.system, point.model, point.precision, point.mtp, point.prompt_tokens, point.output_tokens)


def save(figure: Figure, path: Path) -> None:
    """Write a figure and close it; equal figures give equal files."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def _bands(axes: Axes, low: float, high: float) -> None:
    """Draw the line of equality and those of factors 1.25 and 2, and make the axes equal and logarithmic."""
    ends = np.array([low, high])
    axes.plot(ends, ends, color="black", linewidth=0.9, zorder=1)
    for factor, style in ((1.25, "--"), (2.0, ":")):
        for side in (factor, 1.0 / factor):
            axes.plot(ends, side * ends, color="grey", linewidth=0.8, linestyle=style, zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def predicted_against_measured(points: Sequence[Measured], errors: Floats) -> Figure:
    """Draw TPOT, TTFT and output tokens/s/GPU of every point, predicted against measured.

    Args:
        points: Measured points.
        errors: ln(predicted / measured), float64[points, 3].
    """
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 5.4), layout="constrained")
    quantities = (
        ("TPOT, ms", 1e3, "tpot_s"),
        ("TTFT, s", 1.0, "ttft_s"),
        ("output tokens/s/GPU", 1.0, "output_tokens_per_s_per_gpu"),
    )
    kinds_of_points: dict[tuple[str, tuple[str, str]], list[int]] = {}
    for place, point in enumerate(points):
        kind = (point.arguments["precision"], point.arguments["mode"])
        kinds_of_points.setdefault((point.system, kind), []).append(place)
    for column, (name, factor, field) in enumerate(quantities):
        measured = factor * np.array([getattr(point, field) for point in points])
        predicted = measured * np.exp(errors[:, column])
        # Systems of many points first, so that they do not hide the others.
        for (system, kind), places in sorted(kinds_of_points.items(), key=lambda entry: -len(entry[1])):
            axes[column].plot(
                measured[places],
                predicted[places],
                KIND_MARKERS[kind],
                color=SYSTEM_COLOURS[system],
                markersize=4,
                markeredgewidth=0.8,
                markerfacecolor="none",
                alpha=0.8,
                zorder=2,
            )
        both = np.concatenate([measured, predicted])
        _bands(axes[column], 0.8 * both.min(), 1.25 * both.max())
        axes[column].set_title(name)
        axes[column].set_xlabel("measured")
    axes[0].set_ylabel("predicted")
    systems = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, colour in SYSTEM_COLOURS.items()
    ]
    kinds = [
        Line2D([], [], color="black", marker=marker, markerfacecolor="none", linestyle="", label=" ".join(kind))
        for kind, marker in KIND_MARKERS.items()
    ]
    lines = [
        Line2D([], [], color="grey", linestyle="--", label="factor 1.25"),
        Line2D([], [], color="grey", linestyle=":", label="factor 2"),
    ]
    figure.legend(handles=[*systems, *kinds, *lines], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _outer(points: Sequence[tuple[float, float]]) -> Floats:
    """Return the Pareto-optimal ones of (speed, output), by rising speed: float64[points, 2]."""
    kept: list[tuple[float, float]] = []
    for speed, output in sorted(points, reverse=True):
        if not kept or output > kept[-1][1]:
            kept.append((speed, output))
    return np.array(kept[::-1])


def frontiers(
    model: str, points: Sequence[FrontierPoint], searched: Mapping[Setting, Sequence[ServingPoint]]
) -> Figure:
    """Draw measured frontiers of one model, what the model says of the same configurations, and the searched frontier.

    Args:
        model: Model served.
        points: Points of the measured frontiers.
        searched: The model's frontier over all layouts, by setting.
    """
    points = [point for point in points if point.model == model]
    systems = [system for system in RACKS if any(point.system == system for point in points)]
    lengths = sorted({(point.prompt_tokens, point.output_tokens) for point in points if point.prompt_tokens != 4000})
    figure, grid = plt.subplots(
        len(lengths),
        len(systems),
        figsize=(2.65 * len(systems) + 0.8, 2.55 * len(lengths) + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (row, (prompt, output)), (column, system) in itertools.product(enumerate(lengths), enumerate(systems)):
        axes = grid[row, column]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(which="major", color="0.9", linewidth=0.6)
        axes.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        if row == 0:
            axes.set_title(find_rack(RACKS[system]).label, fontsize="medium")
        if column == 0:
            axes.set_ylabel(f"{prompt}/{output}\noutput tokens/s/GPU")
        if row == len(lengths) - 1:
            axes.set_xlabel("tokens/s/user")
        drawn = [
            _draw_frontier(axes, points, searched, (system, model, precision, mtp, prompt, output))
            for precision, mtp in OPTION_COLOURS
        ]
        if not any(drawn):
            axes.text(
                0.5, 0.5, "no measured frontier", transform=axes.transAxes, ha="center", color="0.6", fontsize="small"
            )
    grid[0, 0].set_xlim(6.0, 400.0)
    grid[0, 0].set_ylim(bottom=8.0)
    options = [
        Line2D([], [], color=colour, label=precision + (" MTP" if mtp else ""))
        for (precision, mtp), colour in OPTION_COLOURS.items()
        if any((point.precision, point.mtp) == (precision, mtp) for point in points)
    ]
    styles = [
        Line2D([], [], color="black", marker="o", markersize=4, label="measured"),
        Line2D(
            [],
            [],
            color="black",
            marker="o",
            markersize=4,
            markerfacecolor="white",
            linestyle="--",
            label="predicted, same configurations",
        ),
        Line2D([], [], color="black", linestyle=":", label="predicted, best of all layouts"),
    ]
    figure.legend(handles=[*options, *styles], loc="outside lower center", ncols=7, frameon=False)
    return figure


def _draw_frontier(
    axes: Axes, points: Sequence[FrontierPoint], searched: Mapping[Setting, Sequence[ServingPoint]], setting: Setting
) -> bool:
    """Draw one setting into a panel; tell whether there is any."""
    own = [point.configuration for point in points if setting_of(point) == setting]
    if not own:
        return False
    colour = OPTION_COLOURS[setting[2], setting[3]]
    measured = _outer([(entry.measured_speed, entry.measured_output) for entry in own])
    predicted = _outer([(entry.predicted_speed, entry.predicted_output) for entry in own])
    every = np.array([(entry.predicted_speed, entry.predicted_output) for entry in own])
    axes.plot(*measured.T, color=colour, marker="o", markersize=3.2, linewidth=1.3)
    axes.plot(*predicted.T, color=colour, linestyle="--", linewidth=1.1)
    axes.plot(*every.T, color=colour, marker="o", markersize=3.2, markerfacecolor="white", linestyle="")
    best = searched.get(setting)
    if best:
        axes.plot(
            [point.tokens_per_s_per_user for point in best],
            [point.output_tokens_per_s_per_gpu for point in best],
            color=colour,
            linestyle=":",
            linewidth=1.1,
        )
    return True


def mlperf_bars(rows: Sequence[tuple[Submission, tuple[float, float]]]) -> Figure:
    """Draw measured and predicted output tokens/s/GPU of MLPerf submissions.

    Args:
        rows: Submissions and their predictions, offline and server.
    """
    benchmarks = list(dict.fromkeys(submission.benchmark for submission, _ in rows))
    counts = [sum(submission.benchmark == name for submission, _ in rows) for name in benchmarks]
    figure, grid = plt.subplots(
        1,
        len(benchmarks),
        figsize=(max(8.0, 1.5 * sum(counts) + 1.5), 4.0),
        width_ratios=counts,
        squeeze=False,
        layout="constrained",
    )
    kinds = (
        ("offline, measured", "#0072B2", None),
        ("offline, predicted", "#0072B2", "///"),
        ("server, measured", "#E69F00", None),
        ("server, predicted", "#E69F00", "///"),
    )
    for axes, name in zip(grid[0], benchmarks, strict=True):
        own = [entry for entry in rows if entry[0].benchmark == name]
        places = np.arange(len(own))
        values = [(s.offline, offline, s.server, server) for s, (offline, server) in own]
        for number, (label, colour, hatch) in enumerate(kinds):
            axes.bar(
                places + 0.2 * (number - 1.5),
                [entry[number] for entry in values],
                0.18,
                label=label,
                facecolor="white" if hatch else colour,
                edgecolor=colour,
                hatch=hatch,
            )
        axes.set_xticks(places, [s.system.replace(" ", "\n") for s, _ in own])
        axes.set_title(f"MLPerf Inference v6.1, {name}")
    grid[0, 0].set_ylabel("output tokens/s/GPU")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def power_against_batch(draws: Sequence[Draw], watts: Floats) -> Figure:
    """Draw measured and predicted draw against batch: a row per rack type, dense models left, mixtures of experts right.

    Args:
        draws: Measured draws.
        watts: Predicted ones, W: float64[draws].
    """
    racks = list(dict.fromkeys(draw.rack for draw in draws))
    figure, grid = plt.subplots(
        len(racks), 2, figsize=(12.5, 4.6 * len(racks)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for (row, rack), (column, moe) in itertools.product(enumerate(racks), enumerate((False, True))):
        axes = grid[row, column]
        curves: dict[str, list[int]] = {}
        for place, draw in enumerate(draws):
            if (draw.rack, draw.moe) == (rack, moe):
                curves.setdefault(draw.label, []).append(place)
        for number, (label, places) in enumerate(curves.items()):
            colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number // len(CYCLE) % len(MARKERS)]
            places = sorted(places, key=lambda place: draws[place].batch)
            batch = [draws[place].batch for place in places]
            measured = [draws[place].watts / draws[place].tdp_w for place in places]
            predicted = [watts[place] / draws[place].tdp_w for place in places]
            axes.plot(batch, measured, marker + "-", color=colour, markersize=4, linewidth=1.1, label=label)
            axes.plot(
                batch, predicted, marker + "--", color=colour, markersize=4, linewidth=0.9, markerfacecolor="white"
            )
        if curves:
            axes.legend(loc="lower right", fontsize=7, frameon=False)
        axes.set_title(f"{find_rack(rack).label}, {'mixture of experts' if moe else 'dense'}", fontsize="medium")
        axes.set_xscale("log", base=2)
        axes.grid(color="0.9", linewidth=0.6)
        if column == 0:
            axes.set_ylabel("GPU power / TDP")
        if row == len(racks) - 1:
            axes.set_xlabel("requests in flight")
    grid[0, 0].set_ylim(0.0, 1.05)
    figure.suptitle("filled, solid: measured; white, dashed: predicted", fontsize="medium")
    return figure


def limit_curves(curves: Sequence[Curve]) -> Figure:
    """Draw performance against power limit and against clock, beside the measured shape.

    Args:
        curves: Curves of both phases.
    """
    figure, grid = plt.subplots(1, 2, figsize=(12.0, 4.6), sharey=True, layout="constrained")
    racks = list(dict.fromkeys(entry.rack for entry in curves))
    limits = np.linspace(0.2, 1.0, 161)
    for entry in curves:
        colour = {"prefill": "#D55E00", "decode": "#0072B2"}[entry.phase]
        style = ("-", "--", ":")[racks.index(entry.rack)]
        label = f"{find_rack(entry.rack).label}, {entry.phase}"
        # A limit below the draw of the lowest clock cannot be obeyed.
        held = limits[limits >= entry.draw.min()]
        grid[0].plot(held, [entry.at_limit(limit) for limit in held], style, color=colour, label=label)
        grid[1].plot(entry.clock, entry.performance, style, color=colour)
    for phase, marker in (("prefill", "o"), ("decode", "s")):
        colour = {"prefill": "#D55E00", "decode": "#0072B2"}[phase]
        grid[0].plot(
            MEASURED_LIMITS, MEASURED[phase], marker, color=colour, label=f"one consumer GPU, {phase}, measured"
        )
    grid[0].set_xlabel("power limit / TDP")
    grid[1].set_xlabel("clock / largest clock")
    grid[0].set_ylabel("tokens/s over those without limit")
    grid[0].set_ylim(0.0, 1.05)
    for axes in grid:
        axes.grid(color="0.9", linewidth=0.6)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
