from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation.statistics import (
    bootstrap_interval,
    by_stratum,
    compare,
    estimate,
    iqm,
    paired_differences,
    probability_of_improvement,
)

finite = st.floats(-1e6, 1e6, allow_nan=False)


def rows(values: dict[int, float], *, scenario: str = "diurnal") -> list[dict[str, object]]:
    setting = {"task": "T", "scenario": scenario, "resolution": "cohort", "trace": ""}
    return [{**setting, "seed": seed, "tokens_per_joule_facility": value} for seed, value in values.items()]


@given(st.lists(finite, min_size=1, max_size=40))
def test_iqm_is_scipys_trimmed_mean(values):
    assert iqm(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-6)


def test_iqm_along_an_axis_and_of_known_values():
    assert iqm([1.0, 2.0, 3.0, 1000.0]) == 2.5
    assert iqm([7.0]) == 7.0
    table = np.arange(24.0).reshape(3, 8)
    np.testing.assert_allclose(iqm(table, axis=1), [iqm(row) for row in table])
    np.testing.assert_allclose(iqm(table, axis=0), [iqm(column) for column in table.T])


def test_iqm_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="no values"):
        iqm([])


def test_bootstrap_agrees_with_scipy_in_one_stratum():
    sample = np.random.default_rng(5).lognormal(size=30)
    ours = bootstrap_interval([sample], np.mean, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_bootstrap_interval_of_the_iqm_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval([rng.normal(size=20)], resamples=400, seed=trial)
        inside += low <= 0.0 <= high
    # The percentile bootstrap is somewhat too narrow for small samples: 0.95 nominal, about 0.92 at n = 20.
    assert 0.86 <= inside / 200 <= 0.98


def test_bootstrap_resamples_within_strata_only():
    # Two settings far apart, each without spread: resampled within strata, their joint mean cannot move at all.
    strata = [np.full(5, 1.0), np.full(5, 100.0)]
    assert bootstrap_interval(strata, np.mean) == (50.5, 50.5)
    low, high = bootstrap_interval([np.concatenate(strata)], np.mean)
    assert high - low > 10.0


def test_bootstrap_is_reproducible_and_says_nothing_of_single_samples():
    sample = np.random.default_rng(3).normal(size=10)
    assert bootstrap_interval([sample]) == bootstrap_interval([sample])
    assert bootstrap_interval([sample], seed=1) != bootstrap_interval([sample], seed=2)
    value, low, high = estimate([[3.0]])
    assert value == 3.0
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strata": []}, "strata: empty"),
        ({"strata": [[1.0], []]}, "strata: empty"),
        ({"strata": [[1.0, 2.0]], "confidence": 95}, "confidence: 95 is not allowed"),
        ({"strata": [[1.0, 2.0]], "resamples": 0}, "resamples: 0 is not allowed"),
    ],
)
def test_bootstrap_refuses_bad_input(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bootstrap_interval(**arguments)


@given(
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12),
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12),
)
def test_probability_of_improvement_is_the_mann_whitney_statistic(first, second):
    found = probability_of_improvement([first], [second], resamples=2).value
    statistic = scipy.stats.mannwhitneyu(first, second).statistic
    assert found == pytest.approx(statistic / (len(first) * len(second)))
    assert found == pytest.approx(1.0 - probability_of_improvement([second], [first], resamples=2).value)


def test_probability_of_improvement_over_strata():
    # Better in one setting, worse in the other, by whatever margin: a coin toss.
    found = probability_of_improvement([[2.0, 3.0], [10.0, 10.0]], [[0.0, 1.0], [1e6, 1e6]])
    assert found == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="1 against 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])


def test_probability_of_improvement_has_an_interval():
    rng = np.random.default_rng(0)
    value, low, high = probability_of_improvement([rng.normal(0.5, 1.0, 20)], [rng.normal(0.0, 1.0, 20)])
    assert 0.0 <= low < value < high <= 1.0
    assert math.isnan(probability_of_improvement([[1.0]], [[2.0]]).low)


def test_paired_differences_match_seeds_and_not_positions():
    ours = rows({3: 5.0, 1: 2.0, 2: 4.0})
    theirs = rows({1: 1.0, 2: 4.0, 3: 3.0})
    (differences,) = paired_differences(ours, theirs).values()
    assert differences.tolist() == [1.0, 0.0, 2.0]


def test_compare_finds_a_small_paired_gain_below_the_noise_between_seeds():
    world = {seed: float(value) for seed, value in enumerate(np.random.default_rng(2).normal(10.0, 3.0, 12))}
    found = compare(rows({seed: value + 0.1 for seed, value in world.items()}), rows(world))
    assert found.pairs == 12
    assert found.wins == 1.0
    assert found.difference == pytest.approx((0.1, 0.1, 0.1))
    assert found.relative_difference.value == pytest.approx(0.1 / np.mean(list(world.values())))
    assert found.probability_of_improvement.low < 0.5 < found.probability_of_improvement.high


def test_compare_over_several_strata():
    ours = rows({0: 2.0, 1: 3.0}) + rows({0: 10.0, 1: 12.0}, scenario="burst")
    theirs = rows({0: 1.0, 1: 3.0}) + rows({0: 11.0, 1: 10.0}, scenario="burst")
    found = compare(ours, theirs)
    assert found.pairs == 4
    assert found.difference.value == pytest.approx(0.5)
    assert found.wins == pytest.approx(2.5 / 4)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (rows({1: 1.0, 5: 1.0}), r"only one of the two has seed\(s\) \[2, 5\]"),
        (rows({1: 1.0, 2: 1.0}, scenario="burst"), "T / burst / cohort, T / diurnal / cohort"),
        (rows({1: 1.0}) + rows({1: 1.0}), "seed 1 occurs twice"),
        ([], "episodes: empty"),
    ],
)
def test_what_cannot_be_paired_is_refused(theirs, message):
    with pytest.raises(ConfigError, match=message):
        compare(rows({1: 1.0, 2: 1.0}), theirs)


def test_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'tokens_per_joule_facility'"):
        by_stratum(rows({1: 1.0}), "tokens_per_joule_facilty")
    with pytest.raises(ConfigError, match="not a number"):
        by_stratum(rows({1: 1.0}), "scenario")
