"""The text of docs/validation.md: every number comes from ``Evidence``, and sentences about numbers hold whatever they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.catalogue import rack as find_rack
from calibration import limits, mlperf
from calibration.evidence import Evidence, noise
from calibration.frontier import OUTCOMES, TARGETS, TOLERANCE, Choice, choices, places_of_configurations
from calibration.performance import FOLDS, groups, statistics
from calibration.power import Draw
from calibration.silicon import Floats, Measured

SMALL_GROUP = 10
"""Points below which a group is listed but not judged."""

WORST_GROUPS = 8
WORST_ROWS = 20
"""Lines of the lists of the worst."""

NONE = "–"

KINDS = ("catalogue", "left out")
"""Names of ``Evidence.all_errors`` and ``Evidence.all_draws``."""

UNMEASURED = """* **Rubin CPX.** It never shipped. All its constants are assumed; its racks are marked hypothetical.
* **Vera Rubin.** MLPerf only: one model, two scenarios. The silicon constants are those of Blackwell (assumed).
* **Power limits on Blackwell and Rubin.** The only measured curve is one consumer GPU, and it gives the shape only.
* **Idle and sleep power of NVL72 racks.** Derived from trays or assumed. No meter reading is public.
* **Other lengths.** The points have prompts of 1k to 8k tokens and answers of 1k to 8k. Nothing was measured at 32k, or at 100k and more.
  There the model goes by attention FLOPs and KV bytes alone.
* **Other models.** The constants are fitted to DeepSeek-R1 and Llama-3.1-70B. For gpt-oss-120b there are MLPerf results and a few
  published points, for some models GPU power, for Kimi-K2.5 nothing.
* **Prefix caching, mixed lengths, arrivals by chance.** The points are closed loops of equal requests on random text.
* **Software after April 2026.** The points were measured from late 2025 to April 2026. Software alone moved the same hardware 1.2 to 2.8
  times within six months, so that a calibration is good for its date.
"""


@dataclass(frozen=True)
class Requirement:
    """One line of the summary.

    Attributes:
        what: What is required of.
        target: What is required.
        catalogue: Figure with the catalogue's constants.
        held: Figure with whole runs (or models) left out; empty where there is no such figure.
        met: Whether every figure meets the target; None where there is none.
    """

    what: str
    target: str
    catalogue: str
    held: str
    met: bool | None


def percent(value: float, digits: int = 1) -> str:
    """Return a share as percent."""
    return f"{100.0 * value:.{digits}f} %"


def ratio_percent(ratio: float) -> str:
    """Return how far a ratio is from 1, signed."""
    return f"{100.0 * (ratio - 1.0):+.0f} %"


def requirements(evidence: Evidence) -> list[Requirement]:
    """Judge every requirement."""
    everything = list(range(len(evidence.points)))
    long_prompts = [k for k in everything if evidence.points[k].lengths == "8192/1024"]
    found: list[Requirement] = []

    def bound(what: str, target: str, figure: Callable[[Floats], float], limit: float, *, least: bool = False) -> None:
        figures = [figure(errors) for errors in evidence.all_errors]
        met = all(value >= limit if least else abs(value) <= limit for value in figures)
        found.append(Requirement(what, target, percent(figures[0]), percent(figures[1]) if figures[1:] else "", met))

    tpot = f"TPOT, all {len(everything)} points"
    bound(f"{tpot}, median error", "at most 11 %", lambda e: statistics(e[:, 0]).median, 0.11)
    bound(f"{tpot}, mean", "at most 14 %", lambda e: statistics(e[:, 0]).mean, 0.14)
    bound(f"{tpot}, 90th percentile", "at most 28 %", lambda e: statistics(e[:, 0]).p90, 0.28)
    bound(f"{tpot}, bias", "within 5 %", lambda e: statistics(e[:, 0]).bias, 0.05)
    found.append(_every_group(evidence))
    bound("TPOT, 8k/1k, median", "at most 12 %", lambda e: statistics(e[long_prompts, 0]).median, 0.12)
    bound("output tokens/s/GPU, median", "at most 12 %", lambda e: statistics(e[:, 2]).median, 0.12)
    bound("output tokens/s/GPU, mean", "at most 17 %", lambda e: statistics(e[:, 2]).mean, 0.17)
    bound("TTFT, median", "at most 38 %", lambda e: statistics(e[:, 1]).median, 0.38)
    bound("TTFT, within a factor 2", "at least 80 %", lambda e: statistics(e[:, 1]).within_2x, 0.80, least=True)
    for target in TARGETS:
        found.append(_frontier_requirement(evidence, target))
    found += _mlperf_requirements(evidence)
    for name, moe in (("dense", False), ("mixture of experts", True)):
        found.append(_power_requirement(evidence, name, moe=moe))
    return found


def _every_group(evidence: Evidence, limit: float = 0.22) -> Requirement:
    """Judge the TPOT median of every group of enough points."""
    places = {name: own for name, own in _by_group(evidence.points).items() if len(own) >= SMALL_GROUP}

    def text(errors: Floats) -> tuple[str, bool]:
        medians = {name: statistics(errors[own, 0]).median for name, own in places.items()}
        worst = max(medians, key=lambda name: medians[name])
        above = sum(value > limit for value in medians.values())
        return f"worst {percent(medians[worst])} ({worst}); {above} of {len(medians)} above", above == 0

    found = [text(errors) for errors in evidence.all_errors]
    return Requirement(
        f"TPOT, every group of at least {SMALL_GROUP} points, median",
        f"at most {percent(limit, 0)}",
        found[0][0],
        found[1][0] if found[1:] else "",
        all(met for _, met in found),
    )


def _frontier_requirement(evidence: Evidence, target: float, limit: float = 0.85) -> Requirement:
    """Judge the choices at one target."""

    def median(errors: Floats) -> float:
        return float(np.median([choice.share for choice in choices(evidence.points, errors, [target])]))

    medians = [median(errors) for errors in evidence.all_errors]
    return Requirement(
        f"configuration chosen by the model, {target:g} tokens/s/user, output over the measured best, median",
        f"at least {limit:g}",
        f"{medians[0]:.2f}",
        f"{medians[1]:.2f}" if medians[1:] else "",
        min(medians) >= limit,
    )


def _mlperf_requirements(evidence: Evidence) -> Iterator[Requirement]:
    """Judge the MLPerf figures: DeepSeek-R1 is in the fit and left out of a second one, gpt-oss-120b is in none."""
    names = [(entry.benchmark, entry.system) for entry, _ in evidence.submissions]

    def judged(
        what: str, target: str, judge: Callable[[dict[tuple[str, str], Floats]], tuple[str, bool | None]]
    ) -> Requirement:
        found = [judge(dict(zip(names, ratios, strict=True))) for ratios in evidence.all_ratios]
        # What the calibration is to meet with its inputs, MLPerf among them; the other fit is shown for what it says of them.
        return Requirement(what, target, found[0][0], found[1][0] if found[1:] else "", found[0][1])

    def within_20(column: int, allowed: int) -> Callable[[dict[tuple[str, str], Floats]], tuple[str, bool | None]]:
        def judge(ratios: dict[tuple[str, str], Floats]) -> tuple[str, bool | None]:
            own = {system: float(pair[column]) for (name, system), pair in ratios.items() if name == mlperf.FITTED}
            outside = [f"{system} {ratio_percent(ratio)}" for system, ratio in own.items() if abs(ratio - 1.0) > 0.20]
            worst = max(own, key=lambda system: abs(own[system] - 1.0))
            text = f"outside: {', '.join(outside) or 'none'}; worst {worst} {ratio_percent(own[worst])}"
            return text, len(outside) <= allowed and set(own) == set(mlperf.SYSTEMS)

        return judge

    def rubin(column: int) -> Callable[[dict[tuple[str, str], Floats]], tuple[str, bool | None]]:
        def judge(ratios: dict[tuple[str, str], Floats]) -> tuple[str, bool | None]:
            ratio = float(ratios[mlperf.FITTED, "VR NVL72"][column] / ratios[mlperf.FITTED, "GB300 NVL72"][column])
            return ratio_percent(ratio), abs(ratio - 1.0) <= 0.15

        return judge

    def other(ratios: dict[tuple[str, str], Floats]) -> tuple[str, bool | None]:
        own = {
            f"{system} {scenario}": float(ratios["gpt-oss-120b", system][column])
            for system in ("GB300 NVL72", "GB200 NVL72")
            for column, scenario in enumerate(("offline", "server"))
        }
        text = ", ".join(f"{name} {ratio_percent(ratio)}" for name, ratio in own.items())
        return text, all(abs(ratio - 1.0) <= 0.35 for ratio in own.values())

    systems = len(mlperf.SYSTEMS)
    yield judged(f"MLPerf v6.1 DeepSeek-R1, offline, {systems} systems", "within 20 %", within_20(0, 0))
    yield judged(f"MLPerf v6.1 DeepSeek-R1, server, {systems} systems", "within 20 %, all but one", within_20(1, 1))
    yield judged("MLPerf v6.1 DeepSeek-R1, offline, Vera Rubin over GB300", "within 15 %", rubin(0))
    yield judged("MLPerf v6.1 DeepSeek-R1, server, Vera Rubin over GB300", "within 15 %", rubin(1))
    yield judged("MLPerf v6.1 gpt-oss-120b (a model in no fit), GB300 and GB200", "within 35 %", other)


def _power_requirement(evidence: Evidence, name: str, *, moe: bool, limit: float = 0.08) -> Requirement:
    """Judge the GPU draws of one kind of model."""
    places = [place for place, draw in enumerate(evidence.draws) if draw.moe == moe]

    medians = [float(np.median(_power_errors(evidence, watts)[places])) for watts in evidence.all_draws]
    return Requirement(
        f"GPU power against batch, {name}, median error",
        f"at most {percent(limit, 0)} of TDP",
        percent(medians[0]),
        percent(medians[1]) if medians[1:] else "",
        max(medians) <= limit,
    )


def _power_errors(evidence: Evidence, watts: Floats) -> Floats:
    """Return |predicted - measured| draws over TDP: float64[draws]."""
    return np.array([abs(found - draw.watts) / draw.tdp_w for found, draw in zip(watts, evidence.draws, strict=True)])


def summary(evidence: Evidence) -> Iterator[str]:
    """Yield the title and the table of requirements."""
    found = requirements(evidence)
    judged = [entry for entry in found if entry.met is not None]
    missed = [entry for entry in judged if not entry.met]
    yield "# How right the performance and power model is"
    yield ""
    yield "Written by `python -m calibration.validation`" + (
        "."
        if evidence.held is not None
        else " with `--no-cross-validation`: a quick look. No run was left out of any fit, so the figures flatter the model."
    )
    yield f"It needs the reference data (`AI_FACTORY_REFERENCE_DIR`), which are not part of the repository. {_fingerprints(evidence)}"
    yield ""
    yield "## Requirements"
    yield ""
    yield (
        f"{len(judged) - len(missed)} of {len(judged)} requirements are met"
        + (f", {len(found) - len(judged)} cannot be judged" if len(judged) < len(found) else "")
        + ". An error is |predicted / measured - 1|; a bias is the median of predicted / measured - 1. *Catalogue*: the constants that "
        "ship, which were fitted to the same points. *Left out*: constants of fits that had not seen the run of a point (for power: "
        f"the model of a draw); {FOLDS} parts of the runs, each left out once, each fit begun at the catalogue. "
        "A requirement is met when both figures meet it; those of MLPerf when the catalogue does, as DeepSeek-R1's results are inputs of the "
        "calibration: there *left out* is a fit to serving points alone."
    )
    yield ""
    yield "| requirement | target | catalogue | left out | met |"
    yield "|---|---|---|---|---|"
    for entry in found:
        met = {True: "yes", False: "**no**", None: "not judged"}[entry.met]
        yield f"| {entry.what} | {entry.target} | {entry.catalogue} | {entry.held or NONE} | {met} |"
    yield ""


def _fingerprints(evidence: Evidence) -> str:
    listed = ", ".join(f"`{name}` {digits}" for name, digits in evidence.fingerprints.items())
    return f"Made from (start of the SHA-256): {listed}."


def pictures(evidence: Evidence, models: Sequence[str]) -> Iterator[str]:
    """Yield the section of predicted against measured.

    Args:
        evidence: What was computed.
        models: Models that have a picture of frontiers.
    """
    which = "catalogue" if evidence.held is None else "fits that left out the run of each point"
    systems = sorted({point.system for point in evidence.points})
    yield "## Predicted against measured"
    yield ""
    yield (
        f"{len(evidence.points)} measured serving points on {', '.join(systems)}: SemiAnalysis InferenceX and others, as in "
        "`aiconfigurator-core` 0.12 (Apache-2.0). Output tokens/s/GPU follow from TTFT and TPOT, so they are no third measurement. "
        f"Constants: {which}."
    )
    yield ""
    yield "![TPOT, TTFT and output tokens/s/GPU, predicted against measured](images/validation_points.png)"
    yield ""
    yield "## Errors"
    yield ""
    yield (
        "TPOT and output tokens/s/GPU: median / mean / 90th percentile / bias of the errors in percent. TTFT: median in percent, and the "
        "share of points within a factor 2. *Left out* as above."
    )
    yield ""
    yield from _error_table(evidence)
    yield from _noise_section(evidence)
    yield "## Frontiers"
    yield ""
    yield (
        "Measured frontiers (TTFT under 10 s), what the model says of the same configurations, and the best it finds over all layouts in "
        "powers of two. The last may lie above the measured one: not every layout was measured. Constants: catalogue."
    )
    yield ""
    for model in models:
        yield f"![Frontiers of {model}](images/validation_frontier_{model}.png)"
        yield ""


def _by_group(points: Sequence[Measured]) -> dict[str, list[int]]:
    """Return system, model, precision and mode to the places of their points."""
    names = {point.group for point in points}
    return {name: places for name, places in groups(points).items() if name in names}


def _partitions(evidence: Evidence) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Yield heading and the places of each part, for every way the tables cut the points."""
    points = evidence.points

    def by(name: Callable[[int], str]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place in sorted(range(len(points)), key=name):
            found.setdefault(name(place), []).append(place)
        return found

    def users(place: int) -> str:
        low = 4 ** int(math.log(points[place].arguments["concurrency"], 4) + 1e-9)
        return f"{low:05d}"

    yield "", {"all": list(range(len(points)))}
    yield "system, model, precision, mode", _by_group(points)
    yield "prompt/answer tokens", by(lambda k: points[k].lengths)
    yield "multi-token prediction", by(lambda k: "on" if points[k].arguments["mtp"] else "off")
    yield "mode", by(lambda k: str(points[k].arguments["mode"]))
    yield (
        "users",
        {f"{int(low):,} to {4 * int(low) - 1:,}": own for low, own in by(users).items()},
    )
    yield "month measured", by(lambda k: evidence.months[k] or "not known")


def _spread(errors: Floats) -> str:
    found = statistics(errors)
    return (
        f"{100 * found.median:.1f} / {100 * found.mean:.1f} / {100 * found.p90:.1f} / {100 * found.bias:+.1f}"
        if found.count
        else NONE
    )


def _late(errors: Floats) -> str:
    found = statistics(errors)
    return f"{100 * found.median:.0f} ({100 * found.within_2x:.0f} % within 2x)"


def _error_table(evidence: Evidence) -> Iterator[str]:
    """Yield the table of errors, fit and left out side by side."""
    kinds = list(zip(KINDS, evidence.all_errors, strict=False))
    heads = [f"{quantity}, {kind}" for quantity in ("TPOT", "output", "TTFT") for kind, _ in kinds]
    yield "| points | n | " + " | ".join(heads) + " |"
    yield "|---|---:|" + "---|" * len(heads)
    for heading, parts in _partitions(evidence):
        if heading:
            yield f"| *by {heading}* |" + " |" * (len(heads) + 1)
        for name, places in parts.items():
            cells = [_spread(errors[places, 0]) for _, errors in kinds]
            cells += [_spread(errors[places, 2]) for _, errors in kinds]
            cells += [_late(errors[places, 1]) for _, errors in kinds]
            yield f"| {name} | {len(places)} | " + " | ".join(cells) + " |"
    yield ""


def _noise_section(evidence: Evidence) -> Iterator[str]:
    """Yield the label noise beside the model's errors on the same points."""
    everything = noise(evidence.points)
    short = [k for k, point in enumerate(evidence.points) if point.lengths == "1024/1024"]
    yield "### How much of that is noise"
    yield ""
    ratios = {
        name: [
            f"{math.exp(np.median(found.spreads[:, c])):.2f}x ({math.exp(np.quantile(found.spreads[:, c], 0.9)):.2f}x)"
            for c in (0, 1)
        ]
        for name, found in (("all", everything), ("1k/1k", noise(evidence.points, short)))
    }
    yield (
        f"{len(everything.spreads)} configurations were measured more than once: same system, layout, lengths, users. The largest over the "
        f"smallest measurement, median (90th percentile): TPOT {ratios['all'][0]}, TTFT {ratios['all'][1]}; at 1k/1k alone TPOT "
        f"{ratios['1k/1k'][0]}, TTFT {ratios['1k/1k'][1]}. The study that came with the data (`performance_model.md`) found 1.16x in TPOT "
        "(90th percentile 1.34x) and 1.97x (3.65x) in TTFT at 1k/1k. Measurements again are by other software, at another date, or differ "
        "within one run for a reason that the data do not give."
    )
    yield ""
    yield (
        "*Floor* below is the error of a model that gives each configuration the geometric mean of its own measurements: it has seen the "
        "answers, so a model of the same inputs cannot be expected to do better. Beside it, this model on the same points. "
        f"{everything.copies} rows that repeat another to the last digit are left out here; they count in the tables above."
    )
    yield ""
    yield "| points measured more than once | n | floor | catalogue |" + (
        " left out |" if evidence.held is not None else ""
    )
    yield "|---|---:|---|---|" + ("---|" if evidence.held is not None else "")
    for name, column in (("TPOT", 0), ("TTFT", 1), ("output tokens/s/GPU", 2)):
        cells = [_spread(everything.deviations[:, column]), _spread(evidence.fitted[everything.places, column])]
        if evidence.held is not None:
            cells.append(_spread(evidence.held[everything.places, column]))
        yield f"| {name} | {len(everything.places)} | " + " | ".join(cells) + " |"
    yield ""
    shared = [
        k
        for k, point in enumerate(evidence.points)
        if point.arguments["mode"] == "aggregated" and not point.arguments["mtp"]
    ]
    tpot, ttft = (statistics(evidence.strictest[shared, column]) for column in (0, 1))
    yield (
        "For scale, NVIDIA's kernel-level AIConfigurator 0.12 against 275 aggregated points: TPOT median 14 %, mean 26 %; "
        f"TTFT median 43 % (reference data, README). This model on {len(shared)} aggregated points without multi-token prediction, not "
        f"exactly the same ones: TPOT median {percent(tpot.median, 0)}, mean {percent(tpot.mean, 0)}; TTFT median {percent(ttft.median, 0)}. "
        "AIConfigurator builds on measured kernels; this model was fitted to measured serving points"
        + (", for these figures to those of other runs." if evidence.held is not None else ".")
    )
    yield ""


def chosen(evidence: Evidence) -> Iterator[str]:
    """Yield the section of the choice of configurations."""
    yield "## Choosing a configuration"
    yield ""
    yield (
        "The question the model is for: which configuration to run? A set is everything measured of one system, model, precision and "
        "lengths, with multi-token prediction apart; modes, layouts and users are the choice. At each wanted speed the model picks, among the "
        "measured configurations that it believes fast enough, the one it believes to give most output. The score is what that one gave on "
        "silicon over the best that was fast enough on silicon."
    )
    yield ""
    yield (
        f"The rule for a pick that was too slow on silicon: within {percent(TOLERANCE, 0)} of the wanted speed it counts with its measured "
        "output, but never above 1; beyond that it counts 0. Where the model believes no configuration fast enough though one was, it counts 0 "
        "too. *Strict* counts every pick below the wanted speed 0. A configuration measured more than once counts once, with its geometric "
        "mean. Sets of one configuration, and sets that never reach the speed, are left out. TTFT plays no part."
    )
    yield ""
    kinds = list(zip(KINDS, evidence.all_errors, strict=False))
    yield (
        "| constants | sets | tokens/s/user | n | median | mean | 10th percentile | strict median | strict mean | "
        + (" | ".join(OUTCOMES) + " |")
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * len(OUTCOMES)
    for kind, errors in kinds:
        for sets, apart in (("MTP apart", True), ("MTP a choice", False)):
            found = choices(evidence.points, errors, mtp_apart=apart)
            for target in TARGETS:
                yield f"| {kind} | {sets} | {target:g} | " + _choice_cells([c for c in found if c.target == target])
    yield ""
    yield (
        "Outcomes: *best*, the best itself; *met*, another that was fast enough; *narrow*, too slow by at most "
        f"{percent(TOLERANCE, 0)}; *missed*, by more; *none*, nothing believed fast enough."
    )
    yield ""
    lost = sorted(
        (c for c in choices(evidence.points, evidence.strictest) if c.share < 0.85), key=lambda c: (c.share, c.setting)
    )
    if lost:
        yield f"Choices that score below 0.85 ({len(lost)}):"
        yield ""
        yield "| set | tokens/s/user | outcome | score | picked: tokens/s/user, output tokens/s/GPU, measured (predicted) | best, likewise |"
        yield "|---|---:|---|---:|---|---|"
        for choice in lost:
            cells = [
                NONE
                if c is None
                else f"{c.measured_speed:.0f} ({c.predicted_speed:.0f}), {c.measured_output:,.0f} ({c.predicted_output:,.0f})"
                for c in (choice.picked, choice.best)
            ]
            yield (
                f"| {choice.setting} | {choice.target:g} | {choice.outcome} | {choice.share:.2f} | {cells[0]} | {cells[1]} |"
            )
        yield ""


def _choice_cells(found: Sequence[Choice]) -> str:
    shares = np.array([choice.share for choice in found])
    strict = np.array([0.0 if choice.outcome == "narrow" else choice.share for choice in found])
    numbers = (np.median(shares), shares.mean(), np.quantile(shares, 0.1), np.median(strict), strict.mean())
    counts = [sum(choice.outcome == outcome for choice in found) for outcome in OUTCOMES]
    return " | ".join([str(len(found)), *(f"{n:.2f}" for n in numbers), *map(str, counts)]) + " |"


def generalisation(evidence: Evidence) -> Iterator[str]:
    """Yield the sections of MLPerf and of published points."""
    yield "## MLPerf Inference v6.1"
    yield ""
    yield (
        "The results of DeepSeek-R1 are in the fit, those of gpt-oss-120b are not; *left out* is a fit without any. A prediction is the "
        "best layout and batch, prefill GPUs counted, offline without a limit and "
        "server with TPOT within the limit. Some figures had to be assumed, the same for "
        "all systems; they can move all predictions together, so that what "
        "one system gives over another is the harder test:"
    )
    yield ""
    for name, benchmark in mlperf.BENCHMARKS.items():
        yield (
            f"* {name}: {benchmark.precision} weights, prompts of {benchmark.prompt_tokens:,.0f} and answers of "
            f"{benchmark.output_tokens:,.0f} tokens on average, p99 TPOT at most {1e3 * benchmark.tpot_limit_s:.0f} ms in server, multi-token "
            f"prediction {'on' if benchmark.mtp else 'off'}."
        )
    yield (
        "* The prompt of 800 tokens of DeepSeek-R1 is assumed; its answers are those of the round's reports. The answers of gpt-oss-120b are "
        "those of the reference implementation's compliance test; its prompts, of about 8,000 tokens, are a secondary report.\n"
        f"* Multi-token prediction keeps {mlperf.MTP_TOKENS_KEPT:g} tokens a step (one drafted, accepted in "
        f"{percent(mlperf.MTP_TOKENS_KEPT - 1.0, 0)}; assumed, submitters do not say).\n"
        f"* A whole run reaches {mlperf.OFFLINE_UTILISATION:g} of the best steady state offline and {mlperf.SERVER_UTILISATION:g} in server "
        "(assumed: ramps, arrivals by chance).\n"
        f"* p99 over mean TPOT is {mlperf.P99_OVER_MEAN_TPOT:g} (derived from the Vera Rubin report)."
    )
    yield ""
    yield "| benchmark | system | offline, measured | predicted | error | left out | server, measured | predicted | error | left out |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for place, (submission, (offline, server)) in enumerate(evidence.submissions):
        errors = [
            [ratio_percent(ratios[place, column]) for ratios in evidence.all_ratios] + [NONE] for column in (0, 1)
        ]
        yield (
            f"| {submission.benchmark} | {submission.system} | {submission.offline:,.0f} | {offline:,.0f} | {errors[0][0]} | {errors[0][1]} | "
            f"{submission.server:,.0f} | {server:,.0f} | {errors[1][0]} | {errors[1][1]} |"
        )
    yield ""
    ranges = ", ".join(f"{system} {low:,.0f} to {high:,.0f}" for system, (low, high) in evidence.server_ranges.items())
    yield (
        "Output tokens/s/GPU, submissions of at most one rack. Submitters and sizes of the system differ: DeepSeek-R1 in server over all "
        f"submissions of the round, tokens/s/GPU: {ranges}. No model without their software explains that, and the assumptions above move a "
        "prediction by about a tenth."
    )
    yield ""
    yield "![MLPerf, measured and predicted](images/validation_mlperf.png)"
    yield ""
    yield from _published_section(evidence)


def _published_section(evidence: Evidence) -> Iterator[str]:
    """Yield the table of published points."""
    yield "## Published frontiers without configurations"
    yield ""
    yield (
        "Points of InferenceX's comparison pages at a given speed, whose layouts are not given, against the best the model finds over all "
        "layouts (`serving_frontier`). Their dates and software are not given. Published are tokens in and out together; the "
        "table has the share of the output. Where a page does not say whether multi-token prediction was on, both are given: the measured "
        "figure then should lie between them. The model drafts one token a step; systems that draft more go faster than it allows."
    )
    yield ""
    yield "| system | model | lengths | tokens/s/user | measured | predicted, MTP off | MTP on | predicted / measured |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    between, unknown = 0, 0
    for point, off, on in evidence.published:
        ratios = [NONE if value is None else f"{value / point.output:.2f}" for value in (off, on)]
        if point.mtp is None:
            unknown += 1
            between += (off or 0.0) <= point.output <= (on or 0.0)
            ratio = " to ".join(ratios)
        else:
            ratio = ratios[1] if point.mtp else ratios[0]
        outputs = [NONE if value is None else f"{value:,.0f}" for value in (off, on)]
        yield (
            f"| {find_rack(point.rack).label} | {point.model} {point.precision} | {point.prompt_tokens}/{point.output_tokens} | "
            f"{point.speed:g} | {point.output:,.0f}{'*' if point.per_watt else ''} | {outputs[0]} | {outputs[1]} | {ratio} |"
        )
    yield ""
    yield (
        f"Of {unknown} points that do not say, {between} lie between. * Published per megawatt, turned into a figure per GPU with the kW per "
        f"GPU that the same source assumes. {NONE}: no layout reaches the speed, the GPU has no such precision, or the option is known "
        "to be the other."
    )
    yield ""


def powered(evidence: Evidence) -> Iterator[str]:
    """Yield the sections of GPU power and of power limits."""
    yield "## GPU power against batch"
    yield ""
    yield (
        f"{len(evidence.draws)} draws of {len({draw.model for draw in evidence.draws})} models in decode (ML.ENERGY leaderboard v3): the "
        "measured points of each curve that the data hold and, between them, its logistic fit. "
        "The error is |predicted - measured| over TDP. *Left out*: a fit that had not seen the draw's model."
    )
    yield ""
    kinds = list(zip(KINDS, evidence.all_draws, strict=False))
    heads = [f"{kind}: median / mean / 90th percentile / bias, % of TDP" for kind, _ in kinds]
    yield "| draws | n | " + " | ".join(heads) + " |"
    yield "|---|---:|" + "---|" * len(heads)
    for name, places in _kinds_of_draws(evidence.draws).items():
        cells = [_power_cells(evidence, watts, places) for _, watts in kinds]
        yield f"| {name} | {len(places)} | " + " | ".join(cells) + " |"
    yield ""
    yield "![GPU power against batch](images/validation_power.png)"
    yield ""
    yield "## Power limits and clocks"
    yield ""
    yield (
        f"Performance over that without a limit; a limit is obeyed with the highest clock whose draw fits. {limits.MODEL}, {limits.PRECISION}: "
        f"prompts of {limits.PROMPT_TOKENS:,.0f} tokens on a prefill worker that never waits, {limits.DECODE_BATCH:.0f} requests of "
        f"{limits.DECODE_CONTEXT_TOKENS:,.0f} tokens on a decode worker of 8 GPUs. The measured shape is of one consumer GPU: only "
        "its shape can be compared."
    )
    yield ""
    yield "| power limit / TDP | " + " | ".join(f"{limit:g}" for limit in limits.MEASURED_LIMITS) + " |"
    yield "|---|" + "---:|" * len(limits.MEASURED_LIMITS)
    for phase, shape in limits.MEASURED.items():
        yield f"| {phase}, measured, one consumer GPU | " + " | ".join(f"{value:.2f}" for value in shape) + " |"
        for curve in evidence.curves:
            if curve.phase == phase:
                cells = [f"{curve.at_limit(limit):.2f}" for limit in limits.MEASURED_LIMITS]
                yield f"| {phase}, {find_rack(curve.rack).label}, model | " + " | ".join(cells) + " |"
    yield ""
    excess = {
        (phase, limit): max(curve.at_limit(limit) - measured for curve in evidence.curves if curve.phase == phase)
        for phase, shape in limits.MEASURED.items()
        for limit, measured in zip(limits.MEASURED_LIMITS, shape, strict=True)
    }
    for low, high in ((0.5, 1.0), (0.0, 0.5)):
        at = {key: value for key, value in excess.items() if low <= key[1] < high}
        phase, limit = max(at, key=lambda key: at[key])
        yield (
            f"At limits {'above' if low else 'below'} half of TDP the model keeps at most {at[phase, limit]:.2f} more than that GPU ({phase} at "
            f"{limit:g})."
        )
    yield "Whether these GPUs fall as steeply is not known; if they do, deep throttling costs more than the model says."
    yield ""
    yield "![Performance against power limit and clock](images/validation_limits.png)"
    yield ""


def _kinds_of_draws(draws: Sequence[Draw]) -> dict[str, list[int]]:
    """Return name to the places of draws: all, dense and experts, and both by rack type."""
    found: dict[str, list[int]] = {"all": list(range(len(draws)))}
    for moe in (False, True):
        for rack in (None, *sorted({draw.rack for draw in draws})):
            places = [k for k, draw in enumerate(draws) if draw.moe == moe and rack in (None, draw.rack)]
            if places:
                kind = "mixture of experts" if moe else "dense"
                found[kind if rack is None else f"{kind}, {find_rack(rack).label}"] = places
    return found


def _power_cells(evidence: Evidence, watts: Floats, places: Sequence[int]) -> str:
    signed = np.array([(watts[k] - evidence.draws[k].watts) / evidence.draws[k].tdp_w for k in places])
    size = np.abs(signed)
    numbers = (np.median(size), size.mean(), np.quantile(size, 0.9))
    return " / ".join(f"{100 * n:.1f}" for n in numbers) + f" / {100 * np.median(signed):+.1f}"


def wrong(evidence: Evidence) -> Iterator[str]:
    """Yield the section of the worst groups and rows, and what nobody has measured."""
    errors = evidence.strictest
    parts = _by_group(evidence.points)
    worst = sorted(parts, key=lambda name: -statistics(errors[parts[name], 0]).median)[:WORST_GROUPS]
    yield "## Where it is wrong"
    yield ""
    yield f"The {len(worst)} groups of largest median error of TPOT, small ones too:"
    yield ""
    yield "| group | n | TPOT: median / mean / 90th percentile / bias, % | output tokens/s/GPU, likewise | TTFT |"
    yield "|---|---:|---|---|---|"
    for name in worst:
        own = parts[name]
        yield (
            f"| {name} | {len(own)} | {_spread(errors[own, 0])} | {_spread(errors[own, 2])} | {_late(errors[own, 1])} |"
        )
    yield ""
    rows = sorted(range(len(evidence.points)), key=lambda k: (-abs(errors[k, 0]), k))[:WORST_ROWS]
    size = np.abs(errors[:, 0])
    yield (
        f"The {len(rows)} points of largest error of TPOT; they are {percent(len(rows) / len(size))} of the points and hold "
        f"{percent(float(size[rows].sum() / size.sum()), 0)} of the sum of |ln(predicted / measured)|. *Again*: predicted over measured of "
        "the same configuration in its other measurements. Where those are near 1, the measurement is the outlier."
    )
    yield ""
    yield "| point | layout | users | measured | run | TPOT, ms | predicted | predicted / measured | again |"
    yield "|---|---|---:|---|---|---:|---:|---:|---|"
    again = {place: places for places in places_of_configurations(evidence.points) for place in places}
    for place in rows:
        point = evidence.points[place]
        ratio = math.exp(errors[place, 0])
        others = [f"{math.exp(errors[k, 0]):.2f}" for k in again[place] if k != place]
        mtp = " MTP" if point.arguments["mtp"] else ""
        yield (
            f"| {point.group} {point.lengths}{mtp} | {_layout(point)} | {point.arguments['concurrency']:,} | {evidence.months[place]} | "
            f"{point.run} | {1e3 * point.tpot_s:.1f} | {1e3 * point.tpot_s * ratio:.1f} | {ratio:.2f} | {', '.join(others) or NONE} |"
        )
    yield ""
    yield "What nobody has measured in public, so that nothing here says how right it is:"
    yield ""
    yield UNMEASURED


def _layout(point: Measured) -> str:
    """Return workers x (tp x dp) of prefill and decode."""
    phases = [
        f"{point.arguments[f'{phase}_workers']} x ({point.arguments[f'{phase}_tp']} x {point.arguments[f'{phase}_dp']})"
        for phase in ("prefill", "decode")
        if point.arguments[f"{phase}_workers"]
    ]
    return " + ".join(phases)
