"""Serving points: against frozen predictions, and against their own balance equations (measured ones: test_calibration)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import catalogue
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.physics.performance import decode_coefficients
from ai_factory_gym.physics.serving import MODES, ServingPoint, serving_frontier, serving_point
from tests import golden

R1 = "deepseek-r1"


@pytest.mark.parametrize("row", golden.rows(), ids=lambda row: f"{row['rack']} {row['model']} {row['prompt_tokens']}")
def test_frozen_predictions(row: dict[str, str]) -> None:
    """A change of physics or constants must be deliberate: ``python -m tests.golden`` writes the table anew."""
    np.testing.assert_allclose(golden.answers(row), golden.frozen(row), rtol=1e-6)


def test_frozen_predictions_span_the_model() -> None:
    rows = golden.rows()
    assert {row["rack"] for row in rows} == set(catalogue.rack_ids())
    assert {row["model"] for row in rows} == set(catalogue.model_ids())
    assert {row["precision"] for row in rows} == set(catalogue.PRECISIONS)
    assert {row["mode"] or "disaggregated" for row in rows} == set(MODES)
    for argument in ("mtp", "clock", "prefill_profile", "decode_profile", "kv_precision", "prefill_rack", "prefill_pp"):
        assert any(row[argument] for row in rows), argument


def gb300(**changes: Any) -> ServingPoint:
    keywords: dict[str, Any] = {
        "precision": "fp4",
        "prompt_tokens": 1024,
        "output_tokens": 1024,
        "concurrency": 256,
        "prefill_workers": 1,
        "prefill_dp": 4,
        "decode_workers": 1,
        "decode_dp": 8,
    }
    return serving_point("gb300_nvl72", R1, **{**keywords, **changes})


@given(
    concurrency=st.integers(1, 20_000),
    workers=st.integers(1, 6),
    clock=st.floats(0.2, 1.0),
    prompt=st.integers(64, 60_000),
    output=st.integers(2, 8192),
    aggregated=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_users_are_conserved(
    concurrency: int, workers: int, clock: float, prompt: int, output: int, aggregated: bool
) -> None:
    """Little's law on the whole and on decode, capacity of prefill and of KV memory."""
    keywords: dict[str, Any] = {"mode": "aggregated", "prefill_workers": 0, "prefill_dp": 0} if aggregated else {}
    point = gb300(
        concurrency=concurrency,
        decode_workers=workers,
        clock=clock,
        prompt_tokens=prompt,
        output_tokens=output,
        **keywords,
    )
    decode_s = (output - 1) * point.tpot_s
    assert point.requests_per_s * (point.ttft_s + decode_s) == pytest.approx(concurrency, rel=1e-9)
    assert point.batch * workers == pytest.approx(point.requests_per_s * decode_s, rel=1e-6)
    capacity = decode_coefficients("gb300_nvl72", R1, precision="fp4", dp=8).kv_capacity_tokens
    assert point.batch * (prompt + output) <= capacity * (1 + 1e-6)
    assert 0.0 < point.prefill_utilisation <= 1.0
    assert point.ttft_s > 0.0
    assert 200.0 <= point.gpu_power_w <= 1400.0
    assert point.power_w_per_gpu > point.gpu_power_w
    assert point.output_tokens_per_joule == pytest.approx(point.output_tokens_per_s_per_gpu / point.power_w_per_gpu)


def test_more_users_mean_more_output_and_slower_answers() -> None:
    points = [gb300(concurrency=2**n) for n in range(13)]
    for fewer, more in zip(points[:-1], points[1:], strict=True):
        assert more.output_tokens_per_s_per_gpu >= fewer.output_tokens_per_s_per_gpu
        assert more.tpot_s >= fewer.tpot_s
        assert more.ttft_s > fewer.ttft_s
    assert points[-1].output_tokens_per_s_per_gpu > 20 * points[0].output_tokens_per_s_per_gpu


def test_prefill_bound_sites_queue_before_prefill() -> None:
    point = gb300(prompt_tokens=60_000, output_tokens=64, concurrency=512, decode_workers=4)
    assert point.prefill_utilisation == pytest.approx(1.0)
    assert point.ttft_s > 10.0
    relieved = gb300(prompt_tokens=60_000, output_tokens=64, concurrency=512, decode_workers=4, prefill_workers=8)
    assert relieved.ttft_s < 0.2 * point.ttft_s
    assert relieved.requests_per_s == pytest.approx(8 * point.requests_per_s, rel=0.01)


def test_requests_wait_for_kv_memory() -> None:
    small = {"mode": "aggregated", "prefill_workers": 0, "prefill_dp": 0, "decode_dp": 1, "decode_tp": 4}
    keywords = {"prompt_tokens": 30_000, "output_tokens": 8_000, "precision": "fp4"}
    point = serving_point("b200_sxm8", R1, concurrency=512, **keywords, **small)  # type: ignore[arg-type]
    capacity = decode_coefficients("b200_sxm8", R1, precision="fp4", tp=4).kv_capacity_tokens
    assert point.batch == pytest.approx(capacity / 38_000, rel=1e-6)
    assert point.ttft_s > 100.0


def test_lower_clock_saves_power_and_costs_prefill_first() -> None:
    fast, slow = gb300(), gb300(clock=0.5)
    assert slow.power_w_per_gpu < 0.9 * fast.power_w_per_gpu
    assert slow.ttft_s > fast.ttft_s
    assert fast.tpot_s < slow.tpot_s < 1.1 * fast.tpot_s
    assert slow.output_tokens_per_joule > fast.output_tokens_per_joule


def test_multi_token_prediction_helps() -> None:
    assert 1.3 < gb300().tpot_s / gb300(mtp=True).tpot_s < 1.8


def test_cpx_prefills_for_others_and_is_flagged() -> None:
    alone = gb300(prompt_tokens=100_000, prefill_workers=2)
    helped = gb300(prompt_tokens=100_000, prefill_rack="rubin_cpx_sidecar", prefill_dp=1, prefill_pp=8)
    assert helped.hypothetical and not alone.hypothetical
    assert helped.gpus == alone.gpus
    assert helped.output_tokens_per_s_per_gpu > 1.5 * alone.output_tokens_per_s_per_gpu
    assert helped.output_tokens_per_joule > 1.5 * alone.output_tokens_per_joule


def test_mixed_rack_prefills_on_cpx_and_decodes_on_rubin() -> None:
    point = serving_point(
        "vera_rubin_nvl144_cpx",
        R1,
        precision="fp4",
        prompt_tokens=8192,
        output_tokens=1024,
        concurrency=256,
        prefill_pp=8,
        decode_dp=8,
    )
    pair = serving_point(
        "vera_rubin_nvl144",
        R1,
        precision="fp4",
        prompt_tokens=8192,
        output_tokens=1024,
        concurrency=256,
        prefill_rack="rubin_cpx_sidecar",
        prefill_pp=8,
        decode_dp=8,
    )
    assert point.hypothetical
    assert (point.ttft_s, point.tpot_s) == (pair.ttft_s, pair.tpot_s)


@cache
def frontier(rack: str, prefill_rack: str | None = None, **keywords: Any) -> list[ServingPoint]:
    return serving_frontier(
        rack,
        R1,
        precision="fp4",
        prompt_tokens=8192,
        output_tokens=1024,
        prefill_rack=prefill_rack,
        modes=("disaggregated",),
        **keywords,
    )


def test_frontier_is_a_trade_off_whose_points_can_be_recomputed() -> None:
    points = frontier("gb300_nvl72")
    assert len(points) >= 8
    for slower, faster in zip(points[:-1], points[1:], strict=True):
        assert faster.tokens_per_s_per_user > slower.tokens_per_s_per_user
        assert faster.output_tokens_per_s_per_gpu < slower.output_tokens_per_s_per_gpu
    assert all(point.ttft_s <= 10.0 for point in points)
    point = points[len(points) // 2]
    again = serving_point(
        point.rack,
        point.model,
        precision=point.precision,
        prompt_tokens=8192,
        output_tokens=1024,
        concurrency=point.concurrency,
        prefill_workers=point.prefill_workers,
        prefill_tp=point.prefill_tp,
        prefill_dp=point.prefill_dp,
        prefill_pp=point.prefill_pp,
        decode_workers=point.decode_workers,
        decode_tp=point.decode_tp,
        decode_dp=point.decode_dp,
    )
    assert dataclasses.asdict(again) == dataclasses.asdict(point)


def test_frontier_targets_are_met_by_the_best_point() -> None:
    whole = frontier("gb300_nvl72")
    chosen = frontier("gb300_nvl72", tokens_per_s_per_user=(20.0, 60.0, 1e5))
    assert len(chosen) == 2
    for target, point in zip((20.0, 60.0), chosen, strict=True):
        assert point.tokens_per_s_per_user >= target
        best = max(p.output_tokens_per_s_per_gpu for p in whole if p.tokens_per_s_per_user >= target)
        assert best <= point.output_tokens_per_s_per_gpu < 2.0 * best
        # More users would be too slow, or would only wait for prefill.
        assert point.tokens_per_s_per_user < 1.1 * target or point.prefill_utilisation > 0.99
    assert frontier("gb300_nvl72", tpot_s=0.05) == chosen[:1]


def test_cpx_serves_decode_badly() -> None:
    """At 20 tokens/s/user on its best layout, per GPU and per joule."""
    cpx = frontier("rubin_cpx_sidecar", tokens_per_s_per_user=20.0)[0]
    full = frontier("gb300_nvl72", tokens_per_s_per_user=20.0)[0]
    helped = frontier("gb300_nvl72", "rubin_cpx_sidecar", tokens_per_s_per_user=20.0)[0]
    assert cpx.output_tokens_per_s_per_gpu < 0.2 * full.output_tokens_per_s_per_gpu
    assert cpx.output_tokens_per_joule < 0.35 * full.output_tokens_per_joule
    assert helped.output_tokens_per_joule > full.output_tokens_per_joule


def test_generations_are_ordered() -> None:
    best = [
        frontier(rack, tokens_per_s_per_user=50.0)[0].output_tokens_per_s_per_gpu
        for rack in ("gb200_nvl72", "gb300_nvl72", "vera_rubin_nvl144")
    ]
    assert best[0] < best[1] < best[2]


@pytest.mark.parametrize(
    ("rack", "measured"), [("gb200_nvl72", 7544.0), ("gb300_nvl72", 9441.0), ("vera_rubin_nvl144", 16435.0)]
)
def test_mlperf_offline(rack: str, measured: float) -> None:
    """MLPerf v6.1 DeepSeek-R1 offline, tokens/s per GPU (MLCommons-audited): within a quarter, with MTP."""
    points = serving_frontier(
        rack,
        R1,
        precision="fp4",
        prompt_tokens=800,
        output_tokens=3790,
        tokens_per_s_per_user=1.0,
        ttft_limit_s=1e9,
        modes=("disaggregated",),
        mtp=True,
    )
    assert points[0].output_tokens_per_s_per_gpu == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"mode": "disagg"}, ["mode", "'disagg'", "'disaggregated'"]),
        ({"clock": 1.2}, ["clock", "1.2", "[0.1, 1]"]),
        ({"clock": float("nan")}, ["clock", "nan"]),
        ({"concurrency": 0}, ["concurrency", "0"]),
        ({"concurrency": 1.5}, ["concurrency", "1.5", "whole"]),
        ({"output_tokens": 1}, ["output_tokens", "1", "[2"]),
        ({"prompt_tokens": 163_000}, ["164024", "163840"]),
        ({"prefill_workers": 0}, ["prefill_workers", "0"]),
        ({"mode": "aggregated", "prefill_dp": 4}, ["prefill_dp", "4", "aggregated"]),
        ({"mode": "aggregated", "prefill_dp": 1, "prefill_rack": "gb200_nvl72"}, ["prefill_rack", "aggregated"]),
        ({"prefill_rack": "gb20_nvl72"}, ["'gb20_nvl72'", "'gb200_nvl72'"]),
        ({"precision": "fp16"}, ["precision", "'fp16'", "bf16"]),
        ({"decode_profile": "max_q"}, ["profile", "'max_q'", "default"]),
        ({"decode_dp": 1}, ["does not fit", "1 GPUs", "GB"]),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        gb300(**changes)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: frontier("gb300_nvl72", objective="tokens_per_watt"), "objective"),
        (lambda: frontier("gb300_nvl72", tpot_s=0.05, tokens_per_s_per_user=20.0), "one of them"),
        (
            lambda: serving_frontier("h100_sxm8", R1, precision="fp8", prompt_tokens=1024, output_tokens=64),
            "does not fit",
        ),
    ],
)
def test_bad_searches_are_refused(call: Callable[[], object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        call()
