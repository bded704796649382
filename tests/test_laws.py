"""Known laws of serving come out by themselves: none of them is written into the model."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import catalogue
from ai_factory_gym.catalogue import Rack
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.physics.performance import (
    DecodeCoefficients,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
)
from ai_factory_gym.physics.power import gpu_power_w, power_coefficients, rack_power_w
from ai_factory_gym.physics.serving import ServingPoint, serving_frontier, serving_point

R1 = "deepseek-r1"
NVL72 = ("gb200_nvl72", "gb300_nvl72", "vera_rubin_nvl144")
MOE = tuple(name for name in catalogue.model_ids() if catalogue.model(name).is_moe)
CONTEXTS = 2.0 ** np.arange(13, 18)
"""8k to 128k tokens."""


# Tokens per joule over context.


def tokens_per_joule(rack: str, coefficients: DecodeCoefficients, batch: float, context: float) -> float:
    """Output tokens per joule of IT energy of a decode rack."""
    iteration_s, compute_s, memory_s = decode_iteration_s(np.array(coefficients), batch, context, 1.0)
    power = power_coefficients(rack, phase="decode")
    gpu_w = gpu_power_w(np.array(power), 1.0, 1.0, compute_s / iteration_s, memory_s / iteration_s)
    rack_w_per_gpu = rack_power_w(np.array(power), gpu_w) / power.gpus
    return batch * coefficients.tokens_per_iteration / iteration_s / (coefficients.gpus * rack_w_per_gpu)


def slope(values: list[float]) -> float:
    return float(np.polyfit(np.log(CONTEXTS), np.log(values), 1)[0])


@pytest.mark.parametrize(
    ("rack", "model", "precision", "tp", "dp"),
    [
        ("gb300_nvl72", "deepseek-r1", "fp4", 1, 8),
        ("vera_rubin_nvl144", "kimi-k2.5", "fp4", 1, 16),
        ("gb200_nvl72", "qwen3-235b-a22b", "fp8", 8, 1),
        ("gb300_nvl72", "llama-3.1-405b", "fp8", 8, 1),
        ("h200_sxm8", "llama-3.1-70b", "fp8", 4, 1),
        ("b200_sxm8", "gpt-oss-120b", "fp4", 1, 1),
    ],
)
def test_tokens_per_joule_fall_in_proportion_to_context_where_kv_memory_binds(
    rack: str, model: str, precision: str, tp: int, dp: int
) -> None:
    """The 1/W law: with KV memory full, twice the context is half the batch at much the same iteration and power.

    The slope stays above -1 because a request also costs work that does not depend on its context (its products with the
    weights, sampling): at 8k tokens and a batch of hundreds that work is still a good part of the iteration, so the largest batch
    is not fully worth having there. It fades as contexts grow, so the law is asked for within a third over four doublings,
    and within a fifth over the last one. A slope below -1 is not possible before weights dominate, hence the upper margin of 5 %.
    """
    coefficients = decode_coefficients(rack, model, precision=precision, tp=tp, dp=dp)
    largest = coefficients.kv_capacity_tokens / (CONTEXTS + coefficients.kv_request_tokens)
    full = [tokens_per_joule(rack, coefficients, b, c) for b, c in zip(largest, CONTEXTS, strict=True)]
    assert -1.05 <= slope(full) <= -0.67
    assert -1.05 <= math.log2(full[-1] / full[-2]) <= -0.8
    # With few requests it is weights and latencies that cost: no such law.
    light = [tokens_per_joule(rack, coefficients, 4.0, context) for context in CONTEXTS]
    assert slope(light) > 0.5 * slope(full)


# Disaggregation.


@cache
def best(rack: str, prompt: int, speed: float, mode: Any) -> ServingPoint:
    """The point of most output per GPU at a speed per user."""
    return serving_frontier(
        rack,
        R1,
        precision="fp4",
        prompt_tokens=prompt,
        output_tokens=1024,
        tokens_per_s_per_user=speed,
        modes=(mode,),
    )[0]


def gain(rack: str, prompt: int, speed: float) -> float:
    """Output per GPU of disaggregated over aggregated serving."""
    apart, shared = (
        best(rack, prompt, speed, mode).output_tokens_per_s_per_gpu for mode in ("disaggregated", "aggregated")
    )
    return apart / shared


@pytest.mark.parametrize("rack", NVL72)
@pytest.mark.parametrize(("prompt", "speed"), [(8192, 50.0), (32768, 50.0), (32768, 100.0)])
def test_disaggregation_pays_at_long_prompts_and_tight_tpot(rack: str, prompt: int, speed: float) -> None:
    """Published gains per GPU on NVL72 racks are 1.4x to 6x, growing with prompt length and interactivity."""
    assert 1.4 <= gain(rack, prompt, speed) <= 6.0


@pytest.mark.parametrize("rack", NVL72)
@pytest.mark.parametrize("prompt", [256, 1024])
def test_disaggregation_hardly_pays_at_short_prompts_and_loose_tpot(rack: str, prompt: int) -> None:
    assert 0.8 <= gain(rack, prompt, 5.0) <= 1.25


def test_disaggregation_pays_more_the_tighter_the_tpot() -> None:
    """Up to 50 tokens/s/user; beyond, both modes are held by the latency of an iteration, not by interference."""
    gains = [gain("gb300_nvl72", 8192, speed) for speed in (10.0, 20.0, 50.0)]
    assert gains == sorted(gains)


# What hardware helps which phase.


def faster(name: str, **factors: float) -> Rack:
    """Return a rack type with some figures of its GPUs multiplied."""
    rack = catalogue.rack(name)
    group = rack.groups[0]
    changed = {key: getattr(group, key) * factor for key, factor in factors.items()}
    return dataclasses.replace(rack, groups=(dataclasses.replace(group, **changed),))


@pytest.mark.parametrize(
    ("name", "model", "layout"),
    [
        ("gb300_nvl72", R1, {"prefill_dp": 4, "decode_dp": 8}),
        ("vera_rubin_nvl144", "llama-3.1-405b", {"prefill_tp": 1, "decode_tp": 2}),
        ("b200_sxm8", "llama-3.1-70b", {"prefill_tp": 1, "decode_tp": 2}),
    ],
)
def test_bandwidth_helps_decode_and_flops_help_prefill(name: str, model: str, layout: dict[str, int]) -> None:
    flops = dict.fromkeys(("fp4_pflops", "fp8_pflops", "bf16_pflops", "attention_pflops"), 2.0)

    def point(rack: Rack) -> ServingPoint:
        keywords: dict[str, Any] = {"precision": "fp4", "prompt_tokens": 16_384, "output_tokens": 1024, **layout}
        return serving_point(rack, model, concurrency=4, **keywords)

    plain, wide, strong = point(faster(name)), point(faster(name, memory_tb_s=2.0)), point(faster(name, **flops))
    frontend_s = catalogue.rack(name).group("prefill").architecture.frontend_disaggregated_s
    assert wide.tpot_s < 0.85 * plain.tpot_s
    assert strong.tpot_s > 0.95 * plain.tpot_s
    assert strong.ttft_s - frontend_s < 0.7 * (plain.ttft_s - frontend_s)
    assert wide.ttft_s > 0.9 * plain.ttft_s


# The shape of a model says everything, its name nothing.


def as_toml(model: catalogue.Model, name: str, **changes: int) -> str:
    """Return a model as a table of a user's own file, in the format of models.toml."""
    lines = [f'[models."{name}"]', f'attention = "{model.attention}"']
    for key, quantity in model.provenance:
        value = changes.get(key, int(quantity.value))
        lines.append(
            f'{key} = {{ value = {value}, unit = "{quantity.unit}", status = "assumed", source = "my model" }}'
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", catalogue.model_ids())
def test_a_model_of_ones_own_of_the_same_shape_is_served_alike(name: str, tmp_path: Path) -> None:
    shipped = catalogue.model(name)
    path = tmp_path / "models.toml"
    path.write_text(as_toml(shipped, "mine"), encoding="utf-8")
    mine = catalogue.load_models(path)["mine"]
    keywords: dict[str, Any] = {
        "precision": "fp4",
        "prompt_tokens": 8192,
        "output_tokens": 1024,
        "concurrency": 100,
        "prefill_dp": 8,
        "decode_tp": 8,
    }
    ours, theirs = (serving_point("gb300_nvl72", model, **keywords) for model in (mine, shipped))
    assert ours.model == "mine"
    assert dataclasses.replace(ours, model=name) == theirs


def test_a_model_of_ones_own_of_another_shape_is_served(tmp_path: Path) -> None:
    """A quarter of the layers of DeepSeek-R1: iterations and prefill shrink with the layers."""
    shipped = catalogue.model(R1)
    path = tmp_path / "models.toml"
    path.write_text(as_toml(shipped, "small", layers=15), encoding="utf-8")
    small = catalogue.load_models(path)["small"]
    keywords: dict[str, Any] = {"precision": "fp4", "prompt_tokens": 8192, "output_tokens": 1024, "concurrency": 1}
    ours, theirs = (serving_point("gb300_nvl72", m, prefill_dp=4, decode_dp=8, **keywords) for m in (small, shipped))
    assert 0.2 < ours.tpot_s / theirs.tpot_s < 0.3
    assert ours.ttft_s < theirs.ttft_s


def test_latency_follows_layers_and_kernels() -> None:
    """Fixed latency is layers times time per layer; a layer costs by its kind (MLA or GQA, experts or none)."""
    for name in catalogue.model_ids():
        model = catalogue.model(name)
        dense_layers = 2 * model.dense_layers if model.dense_layers == model.layers else model.dense_layers
        double = dataclasses.replace(model, layers=2 * model.layers, dense_layers=dense_layers)
        once, twice = (
            decode_coefficients("gb300_nvl72", m, precision="fp4", tp=8, dp=4).latency_s for m in (model, double)
        )
        assert twice == pytest.approx(2.0 * once, rel=1e-12), name

    def per_layer_s(name: str) -> float:
        return decode_coefficients("gb300_nvl72", name, precision="fp8", tp=8).latency_s / catalogue.model(name).layers

    assert per_layer_s(R1) == pytest.approx(per_layer_s("kimi-k2.5"), rel=1e-12)
    assert per_layer_s("qwen3-235b-a22b") == pytest.approx(per_layer_s("gpt-oss-120b"), rel=1e-12)
    assert per_layer_s("llama-3.1-405b") == pytest.approx(per_layer_s("llama-3.1-70b"), rel=1e-12)
    assert per_layer_s("qwen3-235b-a22b") < per_layer_s(R1)


# Lengths, models and racks beyond those of the fit.

PROMPTS = (1024, 32_768, 100_000, 150_000)
PREFILL_LAYOUTS = ((1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 4, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 16, 1))
DECODE_LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (1, 16))


def best_precision(rack: str) -> str:
    return "fp4" if all(group.fp4_pflops > 0.0 for group in catalogue.rack(rack).groups) else "fp8"


@cache
def smallest_layout(rack: str, model: str) -> dict[str, int]:
    """The smallest workers of either phase that hold the model, and in decode the longest prompt beside it."""
    precision = best_precision(rack)
    longest = max(prompt for prompt in PROMPTS if prompt + 1024 <= catalogue.model(model).max_context)
    layout: dict[str, int] = {}
    for tp, dp, pp in PREFILL_LAYOUTS:
        # Without NVLink only a pipeline is a sensible way to span GPUs.
        if tp * dp > 1 and catalogue.rack(rack).group("prefill").architecture.id == "rubin_cpx":
            continue
        try:
            prefill_coefficients(rack, model, precision=precision, tp=tp, dp=dp, pp=pp)
        except ConfigError:
            continue
        layout |= {"prefill_tp": tp, "prefill_dp": dp, "prefill_pp": pp}
        break
    for tp, dp in DECODE_LAYOUTS:
        try:
            coefficients = decode_coefficients(rack, model, precision=precision, tp=tp, dp=dp)
        except ConfigError:
            continue
        if coefficients.kv_capacity_tokens > 2 * longest:
            return layout | {"decode_tp": tp, "decode_dp": dp}
    raise AssertionError(f"{model} fits no layout of {rack}")


@pytest.mark.parametrize("rack", catalogue.rack_ids())
@pytest.mark.parametrize("model", catalogue.model_ids())
def test_other_lengths_are_sane_on_every_rack(rack: str, model: str) -> None:
    fitting = [prompt for prompt in PROMPTS if prompt + 1024 <= catalogue.model(model).max_context]
    # Two prefill workers per decode worker, lightly loaded.
    points = [
        serving_point(
            rack,
            model,
            precision=best_precision(rack),
            prompt_tokens=prompt,
            output_tokens=1024,
            concurrency=2,
            prefill_workers=2,
            **smallest_layout(rack, model),  # type: ignore[arg-type]
        )
        for prompt in fitting
    ]
    assert len(points) >= 2
    for point in points:
        values = [value for value in dataclasses.asdict(point).values() if isinstance(value, float)]
        assert all(math.isfinite(value) and value >= 0.0 for value in values)
        assert 1e-3 < point.tpot_s < 0.1
        assert 0.1 < point.ttft_s < 200.0
        tdp_w = max(profile.tdp_w for group in catalogue.rack(rack).groups for profile in group.profiles)
        assert 100.0 < point.power_w_per_gpu < 2.0 * tdp_w
    for shorter, longer in itertools.pairwise(points):
        assert longer.ttft_s > shorter.ttft_s
        assert longer.output_tokens_per_s_per_gpu < shorter.output_tokens_per_s_per_gpu
    # More than proportionally: attention grows with the square of the prompt.
    frontend_s = catalogue.rack(rack).group("prefill").architecture.frontend_disaggregated_s
    first, last = (points[index].ttft_s - frontend_s for index in (1, -1))
    if len(points) > 2:
        assert last / first > fitting[-1] / fitting[1]


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 40960"):
        serving_point(
            "gb300_nvl72", "qwen3-235b-a22b", precision="fp8", prompt_tokens=100_000, output_tokens=1024, concurrency=1
        )


@pytest.mark.parametrize("rack", NVL72)
@pytest.mark.parametrize("model", MOE)
@pytest.mark.parametrize("per_gpu", [4.0, 64.0])
def test_more_expert_parallel_gpus_reduce_tpot(rack: str, model: str, per_gpu: float) -> None:
    """At a fixed batch per GPU each GPU reads fewer experts."""
    times = []
    for dp in (8, 16, 32, 64):
        coefficients = np.array(decode_coefficients(rack, model, precision="fp4", dp=dp))
        times.append(decode_iteration_s(coefficients, per_gpu * dp, 4096.0, 1.0)[0])
    assert times == sorted(times, reverse=True)
    assert times[-1] < 0.98 * times[0]
