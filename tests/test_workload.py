from __future__ import annotations

import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.workload.classes import STATUSES, RequestClass, load_classes, request_class
from ai_factory_gym.workload.demand import (
    MAX_BURSTS,
    Burst,
    BurstSpec,
    DemandProfile,
    burst_factor,
    daily_factor,
    draw_bursts,
    mean_path,
    overdispersion_factor,
    rate_path,
)
from ai_factory_gym.workload.lengths import LengthDistribution, normal_quantile
from ai_factory_gym.workload.quadrature import two_lengths
from ai_factory_gym.workload.strata import build_strata, output_slices

NAMES = ["chat", "customer_service", "ecommerce_agent", "reasoning", "coding", "video", "batch"]


@st.composite
def lengths(draw: st.DrawFn) -> LengthDistribution:
    median = draw(st.floats(2.0, 1e5))
    sigma = draw(st.floats(0.05, 2.0))
    low = draw(st.floats(0.01, 0.9))
    high = draw(st.floats(1.1, 500.0))
    return LengthDistribution(median, sigma, max(1.0, median * low), median * high)


# ------------------------------------------------------------------------------------------------------------ lengths


def test_normal_quantile_agrees_with_the_standard_library() -> None:
    p = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 2001), [1e-300, 1e-20, 1e-11, 1 - 1e-12, 0.075, 0.925]])
    expected = [statistics.NormalDist().inv_cdf(x) for x in p]
    np.testing.assert_allclose(normal_quantile(p), expected, rtol=1e-13, atol=1e-15)
    assert normal_quantile([0.0, 1.0]).tolist() == [-math.inf, math.inf]
    assert normal_quantile(0.5).shape == ()


@settings(max_examples=60, deadline=None)
@given(lengths(), st.integers(0, 2))
def test_moments_are_those_of_the_truncated_log_normal(dist: LengthDistribution, order: int) -> None:
    mu = math.log(dist.median)
    a, b = ((math.log(x) - mu) / dist.sigma for x in (dist.minimum, dist.maximum))
    a, b = max(a, -12.0), min(b, 12.0 + order * dist.sigma)
    centre = min(max(order * dist.sigma, a), b)
    top, _ = integrate.quad(
        lambda z: math.exp(order * (mu + dist.sigma * z)) * stats.norm.pdf(z), a, b, points=[centre], limit=500
    )
    mass = stats.norm.cdf(b) - stats.norm.cdf(a)
    assert dist.slice_moment(-math.inf, math.inf, order) == pytest.approx(top / mass, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(lengths(), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_samples_are_increasing_and_inside_the_limits(dist: LengthDistribution, u: list[float]) -> None:
    tokens = dist.sample(np.sort(u))
    assert tokens.min() >= dist.minimum
    assert tokens.max() <= dist.maximum
    assert np.all(np.diff(tokens) >= 0.0)


@settings(max_examples=30, deadline=None)
@given(lengths(), st.floats(0.02, 0.98))
def test_quantile_inverts_probability(dist: LengthDistribution, q: float) -> None:
    assert dist.probability(-math.inf, dist.quantile(q)) == pytest.approx(q, abs=1e-9)


def test_sample_has_the_stated_moments() -> None:
    dist = LengthDistribution(5862.0, 1.2, 100.0, 1e6)
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    tokens = dist.sample(u)
    assert tokens.mean() == pytest.approx(dist.mean(), rel=1e-5)
    assert np.mean(tokens**2) == pytest.approx(dist.second_moment(), rel=1e-3)


def test_tail_slices_keep_their_digits() -> None:
    dist = LengthDistribution(1000.0, 0.5, 1.0, 1e6)
    inside = dist.slice_moment(50_000.0, 60_000.0, 1) / dist.probability(50_000.0, 60_000.0)
    assert 50_000.0 < inside < 60_000.0


def test_from_mean_hits_the_mean_or_says_that_it_cannot() -> None:
    assert LengthDistribution.from_mean(1155.0, 0.98, 10.0, 16000.0).mean() == pytest.approx(1155.0, rel=1e-9)
    with pytest.raises(ConfigError, match="cannot be reached"):
        LengthDistribution.from_mean(15_900.0, 0.98, 10.0, 16000.0)


def test_a_fixed_length_is_sigma_zero() -> None:
    dist = LengthDistribution(512.0, 0.0, 1.0, 1000.0)
    assert dist.mean() == 512.0
    assert dist.second_moment() == 512.0**2
    assert dist.sample([0.0, 0.3, 1.0]).tolist() == [512.0] * 3


@pytest.mark.parametrize(
    "values",
    [(0.0, 1.0, 1.0, 10.0), (5.0, -1.0, 1.0, 10.0), (5.0, 1.0, 10.0, 1.0), (5.0, 1.0, 0.0, 9.0), (5.0, 1.0, 7.0, 7.0)]
    + [(math.nan, 1.0, 1.0, 10.0), (5.0, 0.1, 1e6, 1e7), (50.0, 0.0, 1.0, 10.0)],
)
def test_impossible_lengths_are_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError):
        LengthDistribution(*values)


# ------------------------------------------------------------------------------------------------------------- strata


@settings(max_examples=40, deadline=None)
@given(
    lengths(),
    lengths(),
    st.lists(st.floats(1.0, 1e6), max_size=4, unique=True),
    st.lists(st.floats(0.01, 0.99), max_size=4, unique=True),
    st.lists(st.floats(0.01, 0.99), max_size=4, unique=True),
)
def test_strata_keep_every_mean(
    prompt: LengthDistribution, output: LengthDistribution, edges: list[float], pq: list[float], oq: list[float]
) -> None:
    cls = RequestClass("x", "", prompt, output, 1.0, 0.0, 0.0, 0.1, 1.0)
    strata = build_strata(cls, sorted(edges), sorted(pq), sorted(oq))
    assert strata.weight.min() > 0.0
    assert strata.weight.sum() == pytest.approx(1.0, rel=1e-9)
    assert strata.weight @ strata.prompt == pytest.approx(prompt.mean(), rel=1e-9)
    assert strata.weight @ strata.prompt_sq == pytest.approx(prompt.second_moment(), rel=1e-9)
    assert strata.weight @ strata.output == pytest.approx(output.mean(), rel=1e-9)
    assert np.all(strata.prompt_sq >= strata.prompt**2 * (1 - 1e-9))
    expected_group = np.searchsorted(sorted(edges), strata.prompt, side="left")
    np.testing.assert_array_equal(strata.group, expected_group)
    assert strata.prompt_max.max() == prompt.maximum


@pytest.mark.parametrize("name", NAMES)
def test_strata_agree_with_sampled_cells(name: str) -> None:
    cls = request_class(name)
    strata = build_strata(cls, (2000.0, 32_000.0), (0.5, 0.9), (0.5,))
    rng = np.random.default_rng(1)
    prompt, output = cls.prompt.sample(rng.random(400_000)), cls.output.sample(rng.random(400_000))
    long_output = output > cls.output.quantile(0.5)
    group = np.searchsorted([2000.0, 32_000.0], prompt, side="left")
    for g in np.unique(strata.group):
        cells = strata.group == g
        weight = strata.weight[cells].sum()
        assert np.mean(group == g) == pytest.approx(weight, abs=4e-3)
        if weight > 0.05:
            mean = strata.weight[cells] @ strata.prompt[cells] / weight
            assert prompt[group == g].mean() == pytest.approx(mean, rel=0.02)
    longest = strata.output == strata.output.max()
    assert output[long_output].mean() == pytest.approx(strata.output[longest][0], rel=0.02)


def test_strata_without_cuts_are_the_class_as_one_request() -> None:
    cls = request_class("chat")
    strata = build_strata(cls)
    assert strata.weight.tolist() == [1.0]
    assert strata.prompt[0] == pytest.approx(cls.prompt.mean(), rel=1e-12)


def test_quantile_next_to_a_group_edge_adds_no_sliver() -> None:
    cls = request_class("chat")
    edge = cls.prompt.quantile(0.501)
    assert len(build_strata(cls, (edge,), (0.5,)).weight) == 2


def test_fixed_length_makes_one_cell_in_the_right_group() -> None:
    fixed = LengthDistribution(100.0, 0.0, 1.0, 1000.0)
    cls = RequestClass("x", "", fixed, fixed, 1.0, 0.0, 0.0, 0.1, 1.0)
    assert build_strata(cls, (100.0, 200.0), (0.5,), (0.5,)).group.tolist() == [0]
    assert build_strata(cls, (50.0, 99.0)).group.tolist() == [2]


@pytest.mark.parametrize(
    "bad", [{"group_edges": (5.0, 5.0)}, {"prompt_quantiles": (0.0,)}, {"output_quantiles": (0.9, 0.1)}]
)
def test_bad_cuts_are_refused(bad: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        build_strata(request_class("chat"), **bad)


# ------------------------------------------------------------------------------------------------------------ classes


@given(st.lists(st.floats(1.0, 1e4), min_size=2, max_size=30))
def test_two_lengths_have_three_moments_and_lie_inside(lengths: list[float]) -> None:
    values = np.array(lengths)
    short, long, share = two_lengths(*((values**order).mean() for order in (1, 2, 3)))
    assert values.min() - 1e-6 * values.max() <= short <= long <= values.max() * (1.0 + 1e-6)
    assert 0.0 <= share <= 1.0
    for order in (1, 2, 3):
        moment = (1.0 - share) * short**order + share * long**order
        assert moment == pytest.approx((values**order).mean(), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_output_slices_share_their_distribution(parts: int) -> None:
    lengths = request_class("reasoning").output
    low, high = lengths.quantile(0.5), lengths.quantile(0.9)
    slices = output_slices(lengths, low, high, parts)
    assert len(slices) == parts
    assert np.all(np.diff([piece.mean for piece in slices]) > 0.0)
    mass = lengths.probability(low, high)
    assert np.mean([piece.mean for piece in slices]) == pytest.approx(
        lengths.slice_moment(low, high, 1) / mass, rel=1e-6
    )
    assert np.mean([piece.square for piece in slices]) == pytest.approx(
        lengths.slice_moment(low, high, 2) / mass, rel=1e-6
    )
    for piece in slices:
        assert piece.short <= piece.mean <= piece.long
        assert (1 - piece.long_share) * piece.short**2 + piece.long_share * piece.long**2 == pytest.approx(piece.square)


def test_the_shipped_classes_are_those_of_the_design() -> None:
    assert list(load_classes()) == NAMES


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [("chat", 1155, 211), ("reasoning", 1576, 2133), ("coding", 12035, 343), ("customer_service", 800, 50)]
    + [("ecommerce_agent", 100, 100), ("video", 30000, 150), ("batch", 2048, 500)],
)
def test_class_means_are_those_of_their_sources(name: str, prompt: float, output: float) -> None:
    cls = request_class(name)
    assert cls.prompt.mean() == pytest.approx(prompt, rel=0.01)
    assert cls.output.mean() == pytest.approx(output, rel=0.01)


def test_coding_reaches_a_million_tokens() -> None:
    prompt = request_class("coding").prompt
    assert prompt.maximum == 1_000_000
    assert 1e-3 < prompt.probability(131_072, math.inf) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_every_number_says_where_it_comes_from(name: str) -> None:
    cls = request_class(name)
    assert len(cls.provenance) >= 17
    for note in cls.provenance:
        assert note.status in STATUSES and note.status != "user"
        assert len(note.source) > 3 and note.unit


@pytest.mark.parametrize("name", NAMES)
def test_slos_grow_with_the_prompt_and_are_hashable(name: str) -> None:
    cls = request_class(name)
    assert cls.ttft_limit_s(cls.prompt.maximum) >= cls.ttft_limit_s(1.0) >= cls.ttft_a_s
    assert cls.deferrable == (name == "batch") == (cls.deadline_s > 0.0)
    hash(cls)


def test_unknown_class_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reasoning'"):
        request_class("reasonning")


MINIMAL = """
[mine]
description = "own"
prompt = { median = 100, sigma = 0.5, minimum = 1, maximum = 1000 }
output = { median = 10, sigma = 0.5, minimum = 1, maximum = 100 }
slo = { ttft_a = 1, ttft_b = 1e-4, ttft_c = 0, tpot = 0.05, patience = 2 }
"""


def test_a_user_file_may_give_bare_numbers(tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    path.write_text(MINIMAL)
    classes = load_classes(path)
    assert list(classes) == ["mine"]
    assert classes["mine"].prompt.median == 100.0
    assert {note.status for note in classes["mine"].provenance} == {"user"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tpot = 0.05", "tpots = 0.05", "Did you mean 'tpot'"),
        ("tpot = 0.05, ", "", "missing key.*tpot"),
        ("tpot = 0.05", 'tpot = "fast"', r"mine\.slo\.tpot"),
        ("tpot = 0.05", 'tpot = {value = 50, unit = "ms", status = "assumed", source = "x"}', "'ms' is not allowed"),
        ("tpot = 0.05", 'tpot = {value = 1, unit = "s", status = "asumed", source = "x"}', "Did you mean 'assumed'"),
        ("sigma = 0.5, minimum = 1, maximum = 1000", "sigma = -1, minimum = 1, maximum = 1000", r"mine\.prompt\.sigma"),
        ("patience = 2", "patience = 2, deadline = 60", "not deferrable"),
        ("[mine]", "[mine]\ndeferrable = true", r"mine\.slo\.deadline"),
        ("[mine]", "[mine]\ndeferrable = 1", "true or false"),
        ("[mine]", "[mine]\ndemand = {peak_hour = 25}", r"mine\.demand\.peak_hour"),
        ("[mine]", "[mine", "not valid TOML"),
    ],
)
def test_a_bad_class_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "classes.toml"
    path.write_text(MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_classes(path)


def test_a_missing_class_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_classes(tmp_path / "none.toml")


# ------------------------------------------------------------------------------------------------------------- demand


@given(st.floats(0.0, 24.0), st.floats(1.0, 50.0))
@settings(max_examples=50, deadline=None)
def test_daily_curve_has_mean_one_and_the_stated_swing(peak_hour: float, ratio: float) -> None:
    profile = DemandProfile(peak_hour=peak_hour, peak_to_trough=ratio)
    curve = mean_path([profile], [1.0], 0.0, 1440)[0]
    assert curve.mean() == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(curve, daily_factor(profile, 60.0 * (np.arange(1440) + 0.5)), rtol=1e-10)
    peak, trough = daily_factor(profile, [peak_hour * 3600.0, (peak_hour + 12.0) * 3600.0])
    assert peak / trough == pytest.approx(ratio, rel=1e-9)


def test_chat_day_resembles_the_recorded_one() -> None:
    # ServeGen m-large: the median day's busiest hour is 1.45 times its mean. Reasoning takes the same swing: the one
    # recorded day of deepseek-r1 (2.19 times) is a single day.
    for name, measured in (("chat", 1.45), ("reasoning", 1.45)):
        profile = request_class(name).demand
        assert daily_factor(profile, profile.peak_hour * 3600.0) == pytest.approx(measured, rel=0.15)


def test_demand_does_not_depend_on_the_date() -> None:
    profiles = [cls.demand for cls in load_classes().values()]
    rates = np.arange(1.0, 8.0)
    np.testing.assert_allclose(mean_path(profiles, rates, 3600.0, 60), mean_path(profiles, rates, 90_000.0, 60))
    np.testing.assert_array_equal(mean_path(profiles, rates, 0.0, 5, daily=False), np.repeat(rates[:, None], 5, 1))


@given(st.integers(1, 200), st.floats(0.0, 1.0), st.floats(30.0, 1e5), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_overdispersion_is_the_plain_recursion(minutes: int, sigma: float, tau_s: float, seed: int) -> None:
    normals = np.random.default_rng(seed).standard_normal((2, minutes))
    factor = overdispersion_factor(normals, [sigma, 0.3], [tau_s, 480.0])
    rho = math.exp(-60.0 / tau_s)
    x = normals[0, 0]
    for m in range(minutes):
        if m:
            x = rho * x + math.sqrt(1.0 - rho * rho) * normals[0, m]
        assert factor[0, m] == pytest.approx(math.exp(sigma * x - sigma**2 / 2), rel=1e-9)


def test_overdispersion_is_stationary_with_mean_one() -> None:
    sigma, tau_s = 0.4, 300.0
    normals = np.random.default_rng(7).standard_normal((40_000, 30))
    factor = overdispersion_factor(normals, np.full(40_000, sigma), np.full(40_000, tau_s))
    assert factor.mean(axis=0) == pytest.approx(np.ones(30), abs=0.012)
    assert np.log(factor).std(axis=0) == pytest.approx(np.full(30, sigma), rel=0.02)
    log = np.log(factor) + sigma**2 / 2
    assert np.mean(log[:, 0] * log[:, 5]) / sigma**2 == pytest.approx(math.exp(-1.0), abs=0.02)


def test_counts_are_as_overdispersed_as_the_azure_conversations() -> None:
    # 5.53 requests/s: the trace's index of dispersion is 3.9 at 10 s and 16.1 at 60 s.
    profile = request_class("chat").demand
    rng = np.random.default_rng(3)
    path = rate_path(rng, [profile], [5.53], 0.0, 60_000, daily=False)[0]
    counts = rng.poisson(np.repeat(path, 6) * 10.0)
    assert counts.var() / counts.mean() == pytest.approx(3.86, rel=0.25)
    per_minute = counts.reshape(-1, 6).sum(axis=1)
    expected = 1.0 + 5.53 * 60.0 * math.expm1(profile.overdispersion_sigma**2)
    assert per_minute.var() / per_minute.mean() == pytest.approx(expected, rel=0.08)
    assert per_minute.var() / per_minute.mean() == pytest.approx(16.1, rel=0.12)
    assert per_minute.mean() == pytest.approx(5.53 * 60.0, rel=0.02)


def test_paths_are_reproducible_and_prefixes_of_longer_ones() -> None:
    profiles = [cls.demand for cls in load_classes().values()]
    one, two, longer = (
        rate_path(np.random.default_rng(5), profiles, np.ones(7), 1000.0, m) for m in (1500, 1500, 1777)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, longer[:, :1500])


def test_parameters_do_not_move_the_random_numbers() -> None:
    profiles = [cls.demand for cls in load_classes().values()]

    def after(**arguments: object) -> float:
        rng = np.random.default_rng(5)
        rate_path(rng, profiles, np.ones(7), 0.0, 100, **arguments)  # type: ignore[arg-type]
        return float(rng.random())

    def after_bursts(count: int) -> float:
        rng = np.random.default_rng(5)
        draw_bursts(rng, [BurstSpec(1.0, 2.0, 5.0, 9.0, 1.1, 1.2)] * count)
        return float(rng.random())

    assert (
        after() == after(daily=False, overdispersion=0.0) == after(overdispersion=2.0, bursts=[Burst(0.0, 60.0, 2.0)])
    )
    assert after_bursts(0) == after_bursts(3) == after_bursts(MAX_BURSTS)
    off = rate_path(np.random.default_rng(5), profiles, np.ones(7), 0.0, 100, overdispersion=0.0)
    np.testing.assert_array_equal(off, mean_path(profiles, np.ones(7), 0.0, 100))


@given(st.floats(0.0, 86_400.0), st.floats(6.0, 1440.0), st.floats(1.0, 5.0), st.floats(0.0, 200_000.0))
@settings(max_examples=50, deadline=None)
def test_a_burst_adds_its_excess_every_day(onset_s: float, minutes: float, multiplier: float, start_s: float) -> None:
    factor = burst_factor([Burst(onset_s, minutes * 60.0, multiplier)], start_s, 1440)
    assert (factor - 1.0).sum() == pytest.approx((multiplier - 1.0) * minutes, rel=1e-6, abs=1e-9)
    assert factor.max() <= multiplier + 1e-9


def test_only_exposed_classes_burst() -> None:
    profiles = [DemandProfile(burst_exposure=1.0), DemandProfile(burst_exposure=0.5), DemandProfile(burst_exposure=0.0)]
    path = rate_path(np.random.default_rng(0), profiles, np.ones(3), 0.0, 10, bursts=[Burst(120.0, 180.0, 3.0)])
    np.testing.assert_allclose(path[:, 2:5], [[3.0] * 3, [2.0] * 3, [1.0] * 3])
    np.testing.assert_allclose(path[:, 5:], 1.0)


def test_bursts_are_drawn_inside_their_ranges() -> None:
    spec = BurstSpec(8.0, 10.0, 5.0, 15.0, 1.2, 1.5)
    for seed in range(50):
        (burst,) = draw_bursts(np.random.default_rng(seed), [spec])
        assert 8 * 3600 <= burst.onset_s <= 10 * 3600
        assert 300 <= burst.duration_s <= 900
        assert 1.2 <= burst.multiplier <= 1.5


def test_impossible_demand_is_refused() -> None:
    rng = np.random.default_rng(0)
    profile = DemandProfile()
    for rates in ([1.0, 2.0], [-1.0], [math.nan], 1.0):
        with pytest.raises(ConfigError, match="mean_rate_rps"):
            rate_path(rng, [profile], rates, 0.0, 5)
    with pytest.raises(ConfigError, match="minutes"):
        rate_path(rng, [profile], [1.0], 0.0, 0)
    with pytest.raises(ConfigError, match="overdispersion"):
        rate_path(rng, [profile], [1.0], 0.0, 5, overdispersion=-1.0)
    with pytest.raises(ConfigError, match="bursts"):
        draw_bursts(rng, [BurstSpec(1.0, 2.0, 5.0, 9.0, 1.1, 1.2)] * (MAX_BURSTS + 1))
    with pytest.raises(ConfigError, match="window_end_hour"):
        BurstSpec(5.0, 4.0, 5.0, 9.0, 1.1, 1.2)


def test_the_workload_imports_nothing_heavy() -> None:
    code = (
        "import sys, ai_factory_gym.workload, ai_factory_gym.grid, ai_factory_gym.scenarios;"
        "print([m for m in ('scipy', 'numba', 'torch', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
