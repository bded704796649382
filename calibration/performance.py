"""Fit the performance constants of the catalogue to measured serving points: ``python -m calibration.performance``.

One set of constants for every point of a GPU generation: efficiencies, fixed latencies and the gain of multi-token prediction, per
precision where kernels differ. No constant belongs to a point, a system or a model. What the points leave open is held by weak
priors from the literature (``Constant.prior``). Loss: log errors of TPOT and TTFT, robust (soft L1), TTFT at half the weight
because the same layout measured twice differs twice as much in it; and of the MLPerf results of DeepSeek-R1 (``mlperf.FITTED``),
which hold the largest batches and the efficiency of prefill.

Cross-validation leaves whole runs out, a tenth of them at a time: points of one run share software and settings.

``--write`` puts the constants into ``racks.toml``. Needs ``AI_FACTORY_REFERENCE_DIR``.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from ai_factory_gym.catalogue import rack as find_rack
from calibration import catalogue_file, mlperf
from calibration.catalogue_file import RACKS_PATH
from calibration.silicon import Constants, Floats, Measured, log_errors, measured, reference_folder

GENERATIONS: Mapping[str, str] = {"hopper": "h200_sxm8", "blackwell": "b200_sxm8"}
"""Fitted GPU generations, each with a rack type of it."""

FOLDS = 10
"""Parts of the runs, each left out once."""

TPOT_SPREAD = 0.12
TTFT_SPREAD = 0.25
MLPERF_SPREAD = 0.05
"""Spreads of the log errors at which the loss turns from square to linear. A result of MLPerf is the best of many layouts and audited."""


@dataclass(frozen=True)
class Constant:
    """A fitted constant.

    Attributes:
        field: Field of ``Architecture``.
        prior: Expected value.
        spread: Spread of the prior's logarithm.
        low: Least value.
        high: Largest value.
        shared: Whether all generations have the same: latencies of software and network, not of silicon.
        only: The one generation that has it; None for all.
    """

    field: str
    prior: float
    spread: float
    low: float
    high: float
    shared: bool = False
    only: str | None = None

    @property
    def owners(self) -> tuple[tuple[str, ...], ...]:
        """Generations that have a value of their own, those that share one together."""
        if self.only is not None:
            return ((self.only,),)
        return (tuple(GENERATIONS),) if self.shared else tuple((name,) for name in GENERATIONS)


CONSTANTS = (
    Constant("memory_efficiency", 0.86, 0.05, 0.6, 0.95),
    Constant("expert_memory_efficiency", 0.88, 0.08, 0.5, 0.95),
    Constant("decode_compute_efficiency_fp8", 0.52, 0.3, 0.2, 0.9),
    Constant("decode_compute_efficiency_fp4", 0.7, 0.3, 0.2, 0.95, only="blackwell"),
    # NVIDIA's kernel tables reach 0.39-0.63.
    Constant("prefill_efficiency_fp8", 0.55, 0.2, 0.3, 0.65),
    Constant("prefill_efficiency_fp4", 0.6, 0.2, 0.3, 0.65, only="blackwell"),
    Constant("prefill_attention_efficiency", 0.5, 0.3, 0.1, 0.9, shared=True),
    Constant("layer_latency_dense_s", 55e-6, 0.4, 5e-6, 3e-4),
    Constant("layer_latency_moe_s", 120e-6, 0.5, 1e-5, 5e-4),
    Constant("layer_latency_moe_fp4_s", 90e-6, 0.5, 1e-5, 5e-4, only="blackwell"),
    Constant("link_efficiency", 0.44, 0.3, 0.1, 1.0, shared=True),
    Constant("tensor_latency_s", 4.3e-6, 0.5, 1e-7, 1e-4, shared=True),
    Constant("all_to_all_latency_s", 79e-6, 0.3, 1e-6, 1e-3, shared=True),
    Constant("sequence_latency_s", 4.6e-7, 0.5, 1e-9, 1e-5, shared=True),
    Constant("prefill_layer_latency_s", 1.5e-3, 1.0, 1e-5, 1e-2, shared=True),
    Constant("frontend_disaggregated_s", 0.2, 0.5, 0.01, 1.0, shared=True),
    Constant("frontend_aggregated_s", 0.1, 0.7, 0.005, 0.5, shared=True),
    Constant("aggregated_interference", 1.1, 0.3, 0.3, 3.0, shared=True),
    Constant("queue_factor", 0.24, 0.7, 0.02, 1.0, shared=True),
    Constant("mtp_tokens_kept", 1.7, 0.1, 1.2, 2.0, shared=True),
    Constant("mtp_latency_factor", 0.1, 0.7, 0.01, 1.0, shared=True),
)

UNUSED_ON_HOPPER = {
    "decode_compute_efficiency_fp4": "decode_compute_efficiency_fp8",
    "prefill_efficiency_fp4": "prefill_efficiency_fp8",
    "layer_latency_moe_fp4_s": "layer_latency_moe_s",
}
"""Hopper has no 4-bit units: its 4-bit constants repeat those of 8 bit."""

_VARIABLES = tuple((constant, owners) for constant in CONSTANTS for owners in constant.owners)
_LOW = np.log([constant.low for constant, _ in _VARIABLES])
_HIGH = np.log([constant.high for constant, _ in _VARIABLES])
_PRIOR = np.log([constant.prior for constant, _ in _VARIABLES])
_SPREAD = np.array([constant.spread for constant, _ in _VARIABLES])


def constants_of(variables: Floats) -> dict[str, dict[str, float]]:
    """Return generation to field to value of the fit's variables (logarithms)."""
    table: dict[str, dict[str, float]] = {name: {} for name in GENERATIONS}
    for (constant, owners), value in zip(_VARIABLES, np.exp(variables), strict=True):
        for name in owners:
            table[name][constant.field] = float(value)
    for field, eight_bit in UNUSED_ON_HOPPER.items():
        table["hopper"][field] = table["hopper"][eight_bit]
    return table


def present() -> Floats:
    """Return the fit's variables as the catalogue has them."""
    values = []
    for constant, owners in _VARIABLES:
        architecture = find_rack(GENERATIONS[owners[-1]]).groups[0].architecture
        values.append(np.clip(getattr(architecture, constant.field), 1.001 * constant.low, 0.999 * constant.high))
    return np.log(values)


def robust(scaled: Floats) -> Floats:
    """Soften errors in units of their spread: square below one, linear above; the root, as least squares squares it again."""
    return np.sign(scaled) * np.sqrt(2.0 * (np.sqrt(1.0 + scaled**2) - 1.0))


def fitted_submissions(folder: Path) -> tuple[mlperf.Submission, ...]:
    """Return the MLPerf results that are in the fit."""
    return tuple(entry for entry in mlperf.submissions(folder) if entry.benchmark == mlperf.FITTED)


def fit(
    points: Sequence[Measured], submissions: Sequence[mlperf.Submission], start: Floats, *, evaluations: int = 20
) -> Floats:
    """Return the variables of least loss on some points and MLPerf results.

    Args:
        points: Measured points.
        submissions: MLPerf results; may be none.
        start: Where to begin.
        evaluations: Most steps of the search.
    """
    weight = np.array([1.0 / TPOT_SPREAD, 1.0 / TTFT_SPREAD])

    def residuals(variables: Floats) -> Floats:
        constants = constants_of(variables)
        parts = [robust(log_errors(points, constants)[:, :2] * weight).ravel(), (variables - _PRIOR) / _SPREAD]
        if submissions:
            parts.append(robust(mlperf.log_errors(submissions, constants) / MLPERF_SPREAD).ravel())
        return np.concatenate(parts)

    found = least_squares(residuals, start, bounds=(_LOW, _HIGH), diff_step=1e-3, max_nfev=evaluations)
    return np.asarray(found.x)


def cross_validate(
    points: Sequence[Measured],
    submissions: Sequence[mlperf.Submission],
    start: Floats,
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Floats:
    """Return log errors of every point by a fit to the runs it does not belong to: float64[points, 3].

    Args:
        points: Measured points.
        submissions: MLPerf results, part of every fit.
        start: Where each fit begins.
        progress: Wraps the numbers of the folds, to show how far it is.
    """
    runs = sorted({point.run for point in points})
    fold_of = dict(zip(np.random.default_rng(0).permutation(runs), np.arange(len(runs)) % FOLDS, strict=True))
    errors = np.empty((len(points), 3))
    fold = np.array([fold_of[point.run] for point in points])
    for number in progress(range(FOLDS)):
        variables = fit(
            [p for p, f in zip(points, fold, strict=True) if f != number], submissions, start, evaluations=8
        )
        held = [p for p, f in zip(points, fold, strict=True) if f == number]
        errors[fold == number] = log_errors(held, constants_of(variables))
    return errors


@dataclass(frozen=True)
class Errors:
    """Statistics of relative errors.

    Attributes:
        count: Points.
        median: Median of |error|.
        mean: Mean of it.
        p90: Its 90th percentile.
        bias: Median of error.
        within_2x: Share within a factor of two.
    """

    count: int
    median: float
    mean: float
    p90: float
    bias: float
    within_2x: float


def statistics(log_error: Floats) -> Errors:
    """Summarise log errors, float64[points]."""
    relative = np.abs(np.expm1(log_error))
    return Errors(
        count=len(log_error),
        median=float(np.median(relative)),
        mean=float(relative.mean()),
        p90=float(np.quantile(relative, 0.9)),
        bias=float(np.expm1(np.median(log_error))),
        within_2x=float(np.mean(np.abs(log_error) < np.log(2.0))),
    )


def groups(points: Sequence[Measured]) -> dict[str, list[int]]:
    """Return group and lengths to the places of their points, groups first."""
    found: dict[str, list[int]] = {}
    for key in ("group", "lengths"):
        for index in sorted(range(len(points)), key=lambda k: str(getattr(points[k], key))):
            found.setdefault(str(getattr(points[index], key)), []).append(index)
    return found


def table(points: Sequence[Measured], errors: Floats) -> list[str]:
    """Return the lines of an error table: all points, then by group and by lengths."""
    lines = [
        f"{'':44}{'n':>5}   {'TPOT median mean p90 bias, %':<31}{'TTFT median, %':>15}{'within 2x':>11}{'tokens/s/GPU':>14}"
    ]
    for name, places in {"all": list(range(len(points))), **groups(points)}.items():
        tpot, ttft, rate = (statistics(errors[places, column]) for column in range(3))
        lines.append(
            f"{name:44}{tpot.count:>5}   {100 * tpot.median:>6.1f}{100 * tpot.mean:>7.1f}{100 * tpot.p90:>7.1f}{100 * tpot.bias:>+8.1f}"
            f"{100 * ttft.median:>16.1f}{100 * ttft.within_2x:>11.0f}{100 * rate.median:>9.1f}{100 * rate.mean:>6.1f}"
        )
    return lines


def write(constants: Constants, source: str) -> None:
    """Put constants into ``racks.toml``; all else but the calibration's name stays as it is."""
    copied = (
        {"hopper": {field: constants["hopper"][field] for field in UNUSED_ON_HOPPER}} if "hopper" in constants else {}
    )
    fitted = {
        name: {field: value for field, value in values.items() if field not in copied.get(name, {})}
        for name, values in constants.items()
    }
    catalogue_file.write(RACKS_PATH, fitted, source)
    catalogue_file.write(RACKS_PATH, copied, "as at 8 bit: Hopper has no 4-bit units", "derived")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.performance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--validate", action="store_true", help="cross-validate too (a few minutes)")
    parser.add_argument("--write", action="store_true", help="put the constants into racks.toml")
    chosen = parser.parse_args()
    points, submissions = measured(reference_folder()), fitted_submissions(reference_folder())
    variables = fit(points, submissions, present())
    for (constant, owners), value in zip(_VARIABLES, np.exp(variables), strict=True):
        print(f"{constant.field:34}{' '.join(owners):18}{value:>11.4g}   prior {constant.prior:.4g}")
    constants = constants_of(variables)
    errors = log_errors(points, constants)
    print("\nfit\n" + "\n".join(table(points, errors)))
    print("\nMLPerf v6.1, predicted over measured, offline and server")
    for entry in mlperf.submissions(reference_folder()):
        offline, server = np.expm1(mlperf.log_errors([entry], constants)[0])
        print(f"{entry.system:16}{entry.benchmark:16}{100 * offline:+7.0f} % {100 * server:+7.0f} %")
    if chosen.validate:
        print("\nwhole runs left out\n" + "\n".join(table(points, cross_validate(points, submissions, variables))))
    if chosen.write:
        all_points = statistics(errors[:, 0])
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        write(
            constants,
            f"python -m calibration.performance, {today}: {len(points)} measured serving points (InferenceX via aiconfigurator-core "
            f"0.12, software to 2026-04) and MLPerf v6.1 DeepSeek-R1, TPOT error median {100 * all_points.median:.1f} %",
        )
        print(f"written to {RACKS_PATH}")


if __name__ == "__main__":
    main()
