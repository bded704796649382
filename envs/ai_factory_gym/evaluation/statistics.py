"""Statistics of small samples of episodes: interquartile mean, stratified bootstrap, probability of improvement.

The estimators are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021). A stratum is one setting that episodes share (task, scenario, resolution, trace): episodes are
resampled within their stratum, never across, because settings differ far more than the seeds of one setting do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ai_factory_gym.errors import ConfigError, check_range, unknown

FloatArray: TypeAlias = NDArray[np.float64]
Stratum: TypeAlias = tuple[str, str, str, str]
Statistic: TypeAlias = Callable[..., Any]

STRATUM_KEYS = ("task", "scenario", "resolution", "trace")
"""The columns of an episode that name its stratum."""

CONFIDENCE = 0.95
RESAMPLES = 2_000
"""Bootstrap resamples; an end of a 95 % interval then has a standard error of 1.5 % of its width (normal case)."""


class HasEpisodes(Protocol):
    """Anything that carries per-episode rows, such as an ``EvaluationResult``."""

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """The rows, one per episode."""
        ...


Episodes: TypeAlias = HasEpisodes | Sequence[Mapping[str, Any]]


class Estimate(NamedTuple):
    """A value with the bootstrap interval around it; the interval is NaN where there are too few episodes for one."""

    value: float
    low: float
    high: float


def iqm(values: ArrayLike, axis: int = -1) -> Any:
    """Interquartile mean: the mean of the middle half, with a quarter of the values (rounded down) dropped at each end.

    Less swayed by one odd episode than the mean, and far less wasteful than the median.

    Args:
        values: Samples, of any shape, at least one along ``axis``.
        axis: The axis along which to average.

    Returns:
        A float for one-dimensional input, else an array without ``axis``.

    Raises:
        ConfigError: When there is nothing to average.
    """
    samples = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    count = samples.shape[-1]
    if count == 0:
        raise ConfigError("iqm: no values; at least one is needed.")
    cut = count // 4
    middle = np.sort(samples, axis=-1)[..., cut : count - cut].mean(axis=-1)
    return float(middle) if middle.ndim == 0 else middle


def bootstrap_interval(
    strata: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Stratified percentile-bootstrap interval of a statistic of all values together.

    Args:
        strata: One array of samples per stratum.
        statistic: Function of ``(values, axis=...)``, for example `iqm`, `numpy.mean` or `numpy.median`.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling, fixed by default so that a table can be reproduced to the last digit.

    Returns:
        Lower and upper end; both NaN when no stratum has two samples, since one sample says nothing about spread.

    Raises:
        ConfigError: When a stratum is empty, or ``confidence`` or ``resamples`` is out of range.
    """
    check_range("confidence", confidence, 1e-9, 1.0 - 1e-9)
    check_range("resamples", resamples, 1, 10_000_000)
    arrays = _sample_arrays(strata)
    if max(len(array) for array in arrays) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    resampled = [array[rng.integers(len(array), size=(resamples, len(array)))] for array in arrays]
    estimates = np.asarray(statistic(np.concatenate(resampled, axis=1), axis=1), dtype=np.float64)
    return _percentiles(estimates, confidence)


def estimate(strata: Sequence[ArrayLike], statistic: Statistic = iqm, **bootstrap: Any) -> Estimate:
    """Return a statistic of all values together with its stratified-bootstrap interval.

    Args:
        strata: One array of samples per stratum.
        statistic: As in `bootstrap_interval`.
        **bootstrap: Further arguments of `bootstrap_interval`.
    """
    low, high = bootstrap_interval(strata, statistic, **bootstrap)
    return Estimate(float(statistic(np.concatenate(_sample_arrays(strata)), axis=0)), low, high)


def probability_of_improvement(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """How likely a random sample of ``first`` exceeds one of ``second`` in the same stratum, ties counting one half.

    The Mann-Whitney statistic divided by the number of pairs, averaged over strata with equal weight.

    Args:
        first: One array of samples per stratum.
        second: The same strata in the same order.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Number of bootstrap resamples; each array is resampled on its own.
        seed: Seed of the resampling.

    Raises:
        ConfigError: When the numbers of strata differ or a stratum is empty.
    """
    check_range("confidence", confidence, 1e-9, 1.0 - 1e-9)
    check_range("resamples", resamples, 1, 10_000_000)
    firsts, seconds = _sample_arrays(first), _sample_arrays(second)
    if len(firsts) != len(seconds):
        raise ConfigError(f"strata: {len(firsts)} against {len(seconds)}; both sides need the same strata.")
    value = float(np.mean([_win_share(a, b) for a, b in zip(firsts, seconds, strict=True)]))
    if min(max(len(a) for a in firsts), max(len(b) for b in seconds)) < 2:
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    shares = np.zeros((len(firsts), resamples))
    for row, (a, b) in enumerate(zip(firsts, seconds, strict=True)):
        picks_a = rng.integers(len(a), size=(resamples, len(a)))
        picks_b = rng.integers(len(b), size=(resamples, len(b)))
        for column in range(resamples):
            shares[row, column] = _win_share(a[picks_a[column]], b[picks_b[column]])
    low, high = _percentiles(shares.mean(axis=0), confidence)
    return Estimate(value, low, high)


@dataclass(frozen=True)
class Comparison:
    """One policy against a reference, on the same seeds.

    Attributes:
        metric: The column compared.
        pairs: Number of episodes compared.
        difference: Mean of (policy - reference) over pairs of equal stratum and seed, in the metric's unit.
        relative_difference: ``difference`` over the reference's mean; NaN where that mean is zero.
        wins: Share of pairs in which the policy's value is the larger one, ties counting one half.
        probability_of_improvement: As `probability_of_improvement`: over all pairs of a stratum, whatever their seeds.
    """

    metric: str
    pairs: int
    difference: Estimate
    relative_difference: Estimate
    wins: float
    probability_of_improvement: Estimate


def by_stratum(episodes: Episodes, metric: str) -> dict[Stratum, dict[int, float]]:
    """Group one column of the rows: stratum -> seed -> value.

    Raises:
        ConfigError: When there is no row, the column does not exist or is not a number, or a stratum has a seed twice
            (rows of several policies or training runs mixed together).
    """
    rows: Sequence[Mapping[str, Any]] = episodes if isinstance(episodes, Sequence) else episodes.episodes
    if not rows:
        raise ConfigError("episodes: empty; there is nothing to compute statistics of.")
    strata: dict[Stratum, dict[int, float]] = {}
    for row in rows:
        if metric not in row:
            raise unknown("metric", metric, [key for key, value in row.items() if _is_number(value)])
        if not _is_number(row[metric]):
            raise ConfigError(f"metric: column {metric!r} holds {row[metric]!r}, which is not a number.")
        task, scenario, resolution, trace = (str(row[key]) for key in STRATUM_KEYS)
        values = strata.setdefault((task, scenario, resolution, trace), {})
        seed = int(row["seed"])
        if seed in values:
            raise ConfigError(
                f"episodes: seed {seed} occurs twice in {task}, {scenario}; give one policy's rows at a time."
            )
        values[seed] = float(row[metric])
    return strata


def paired_differences(
    policy: Episodes, reference: Episodes, metric: str = "tokens_per_joule_facility"
) -> dict[Stratum, FloatArray]:
    """Differences (policy - reference) of episodes that met the same world, per stratum in ascending order of seed.

    Raises:
        ConfigError: When the two were not run on the same strata and seeds, or as in `by_stratum`.
    """
    ours, theirs = by_stratum(policy, metric), by_stratum(reference, metric)
    _check_paired(ours, theirs)
    return {
        stratum: np.array([values[seed] - theirs[stratum][seed] for seed in sorted(values)])
        for stratum, values in sorted(ours.items())
    }


def compare(
    policy: Episodes, reference: Episodes, metric: str = "tokens_per_joule_facility", **bootstrap: Any
) -> Comparison:
    """Compare one policy's episodes with another's on the same seeds.

    Args:
        policy: Rows, or a result that carries them, of one policy; several strata are allowed.
        reference: The same strata and seeds for the policy to compare with.
        metric: The column to compare.
        **bootstrap: ``confidence``, ``resamples`` and ``seed`` as in `bootstrap_interval`.

    Raises:
        ConfigError: As `paired_differences`.
    """
    differences = list(paired_differences(policy, reference, metric).values())
    ours, theirs = by_stratum(policy, metric), by_stratum(reference, metric)
    order = sorted(ours)
    first = [np.array(list(ours[stratum].values())) for stratum in order]
    second = [np.array(list(theirs[stratum].values())) for stratum in order]
    base = float(np.mean(np.concatenate(second)))
    difference = estimate(differences, np.mean, **bootstrap)
    signs = np.sign(np.concatenate(differences))
    scaled = (end / abs(base) if base else float("nan") for end in difference)
    return Comparison(
        metric=metric,
        pairs=len(signs),
        difference=difference,
        relative_difference=Estimate(*scaled),
        wins=float(np.mean((signs + 1.0) / 2.0)),
        probability_of_improvement=probability_of_improvement(first, second, **bootstrap),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _check_paired(ours: Mapping[Stratum, Mapping[int, float]], theirs: Mapping[Stratum, Mapping[int, float]]) -> None:
    if set(ours) != set(theirs):
        only = ", ".join(" / ".join(part for part in stratum if part) for stratum in sorted(set(ours) ^ set(theirs)))
        raise ConfigError(f"episodes: not paired; only one of the two was run on: {only}.")
    for stratum, values in ours.items():
        odd = sorted(set(values) ^ set(theirs[stratum]))
        if odd:
            where = " / ".join(part for part in stratum if part)
            raise ConfigError(f"episodes: not paired; in {where} only one of the two has seed(s) {odd}.")


def _sample_arrays(strata: Sequence[ArrayLike]) -> list[FloatArray]:
    arrays = [np.asarray(stratum, dtype=np.float64).ravel() for stratum in strata]
    if not arrays or min(len(array) for array in arrays) == 0:
        raise ConfigError("strata: empty; every stratum needs at least one sample.")
    return arrays


def _percentiles(estimates: FloatArray, confidence: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(estimates, [tail, 100.0 - tail])
    return float(low), float(high)


def _win_share(first: FloatArray, second: FloatArray) -> float:
    """Share of pairs with first > second, ties one half; sorted search instead of all pairs, which may be many."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, side="left")
    not_above = np.searchsorted(ordered, first, side="right")
    return float((below + not_above).mean() / (2.0 * len(second)))
