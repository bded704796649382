"""docs/model.md is up to date, and its worked example comes out by hand.

The example is worked out here in plain arithmetic: from numbers of the catalogue and the shape of the model, without the functions of
``physics`` and without the derived properties of the model. It must agree with them, and with what the page prints. The page's equations
are checked in the same way on every frozen serving point.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import catalogue
from ai_factory_gym.physics.performance import CHUNK_TOKENS, MEMORY_RESERVE
from tests import golden
from tests.oracles.serving import serving

SCRIPT = Path(__file__).parents[1] / "docs" / "tables" / "model.py"


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_tables_model"] = module
    spec.loader.exec_module(module)
    return module


@cache
def page() -> str:
    return script().PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    """`python docs/tables/model.py` writes it anew."""
    assert script().filled(page()) == page()


def test_a_page_without_one_of_its_blocks_is_refused() -> None:
    with pytest.raises(SystemExit, match="blocks"):
        script().filled(page().replace("<!-- table: models -->", ""))


def test_every_constant_of_a_generation_has_a_symbol() -> None:
    fields = [field.name for field in dataclasses.fields(catalogue.Architecture)]
    assert [name for name in fields if name not in ("id", "provenance")] == list(script().SYMBOLS)


@cache
def by_hand() -> dict[str, float]:
    """Every line of the worked example: DeepSeek-R1, fp8, 8 x B200, tp 8, 64 requests of 1,024 + 1,024 tokens."""
    gpu = catalogue.rack("b200_sxm8").group()
    profile = gpu.profile()
    c: Any = gpu.architecture
    m = catalogue.model("deepseek-r1")
    gpus, batch, prompt, output = 8, 64.0, 1024.0, 1024.0
    context = prompt + output / 2.0

    # Parameters and bytes; one byte per weight and per KV element.
    attention = (
        m.hidden * m.q_lora
        + m.q_lora * m.heads * (m.nope_dim + m.rope)
        + m.hidden * (m.kv_lora + m.rope)
        + m.kv_lora * m.heads * (m.nope_dim + m.v_dim)
        + m.heads * m.v_dim * m.hidden
    )
    moe_layers = m.layers - m.dense_layers
    head = m.vocab * m.hidden
    ffn = 3 * m.hidden * (m.dense_layers * m.dense_ffn + moe_layers * m.shared_experts * m.expert_ffn)
    p_dense = m.layers * attention + ffn + moe_layers * m.hidden * m.experts + head
    p_e = moe_layers * 3 * m.hidden * m.expert_ffn
    kv = m.layers * (m.kv_lora + m.rope)
    weights = (p_dense + head) / gpus + m.experts * p_e / gpus
    capacity = (gpu.memory_gb * 1e9 * (1.0 - MEMORY_RESERVE) - weights) / kv

    # What a GPU can do.
    bandwidth, link, network = gpu.memory_tb_s * 1e12, gpu.link_gb_s * 1e9, gpu.scaleout_gb_s * 1e9
    f_8, f_a = gpu.fp8_pflops * 1e15 * profile.compute_scale, gpu.attention_pflops * 1e15 * profile.compute_scale
    a_decode = 2 * m.heads * (2 * m.kv_lora + m.rope)
    a_prefill = 2 * m.heads * (m.nope_dim + m.rope + m.v_dim)

    def decode(b: float) -> dict[str, float]:
        """One iteration with a batch of b."""
        dense_s = p_dense / gpus / (bandwidth * c.memory_efficiency)
        kv_s = b * context * kv / (bandwidth * c.memory_efficiency)
        touched = 1.0 - (1.0 - m.top_k / m.experts) ** b
        experts_s = m.experts * p_e * touched / (gpus * bandwidth * c.expert_memory_efficiency)
        eta_c = c.decode_compute_efficiency_fp8
        compute_s = b * (2 * (m.top_k * p_e + p_dense) / f_8 + a_decode * m.layers * context / f_a) / (gpus * eta_c)
        communication_s = m.layers * b * m.hidden * 8 * 7 / 8 / (link * c.link_efficiency)
        latency_s = m.layers * (c.layer_latency_moe_s + 3 * c.tensor_latency_s)
        sequence_s = m.layers * b * c.sequence_latency_s
        memory_s = dense_s + kv_s + experts_s
        iteration_s = math.hypot(memory_s, compute_s) + communication_s + latency_s + sequence_s
        return {
            "dense_s": dense_s,
            "kv_s": kv_s,
            "touched": touched,
            "experts_s": experts_s,
            "memory_s": memory_s,
            "compute_s": compute_s,
            "communication_s": communication_s,
            "latency_s": latency_s,
            "sequence_s": sequence_s,
            "iteration_s": iteration_s,
            "compute_activity": (compute_s + communication_s) / iteration_s,
            "memory_activity": (dense_s + kv_s + c.expert_power_ratio * experts_s) / iteration_s,
        }

    # Power at clock 1: g = 1.
    loss = (profile.nameplate_w - profile.idle_rack_w) / (gpus * (profile.tdp_w - gpu.idle_w)) - 1.0
    overhead_w = profile.idle_rack_w - (1.0 + loss) * gpus * gpu.idle_w

    def gpu_w(busy: float, compute: float, memory: float) -> float:
        shares = (
            c.active_fraction + compute * c.compute_fraction + memory * (c.memory_core_fraction + c.memory_fraction)
        )
        return gpu.idle_w + busy * min(shares * profile.tdp_w, profile.tdp_w - gpu.idle_w)

    def rack_w(per_gpu_w: float) -> float:
        return overhead_w + (1.0 + loss) * gpus * per_gpu_w

    found = decode(batch)
    decode_w = gpu_w(1.0, found["compute_activity"], found["memory_activity"])
    found |= {
        "dense_params": p_dense,
        "expert_params": p_e,
        "kv_bytes": kv,
        "rate": batch / found["iteration_s"],
        "gpu_w": decode_w,
        "rack_w": rack_w(decode_w),
        "kv_capacity": capacity,
    }

    # Prefill: the head runs once, weights are read once per chunk, one lane.
    eta_p = c.prefill_efficiency_fp8
    weights_s = prompt * 2 * (p_dense - head + m.top_k * p_e) / (gpus * f_8 * eta_p)
    attention_s = prompt**2 * a_prefill * m.layers / 2 / (gpus * f_a * c.prefill_attention_efficiency)
    pass_s = (
        (p_dense - head) / gpus / c.memory_efficiency + m.experts * p_e / gpus / c.expert_memory_efficiency
    ) / bandwidth
    stream_s = prompt * pass_s / CHUNK_TOKENS
    collectives_s = prompt * m.layers * m.hidden * 8 * 7 / 8 / (link * c.link_efficiency)
    exposed_s = math.sqrt(weights_s**2 + stream_s**2 + collectives_s**2) - weights_s
    overhead_s = prompt / CHUNK_TOKENS * m.layers * c.prefill_layer_latency_s
    frontend_s = c.frontend_disaggregated_s + m.layers * c.prefill_layer_latency_s
    scaling_s = weights_s + attention_s
    service_s = scaling_s + exposed_s + overhead_s
    transfer_s = prompt * kv / (gpus * network)

    # The closed loop: 64 users, one worker of each kind; neither prefill nor KV memory binds.
    users = 64.0
    wait_s = m.layers * c.prefill_layer_latency_s * (1.0 - 1.0 / users) + c.queue_factor * service_s * (users - 1.0)
    ttft_s = frontend_s + service_s + transfer_s + wait_s
    low, high = 1.0, users
    for _ in range(200):
        b = 0.5 * (low + high)
        residence_s = (output - 1.0) * decode(b)["iteration_s"]
        low, high = (b, high) if users * residence_s / (ttft_s + residence_s) > b else (low, b)
    tpot_s = decode(b)["iteration_s"]
    cycle_s = ttft_s + (output - 1.0) * tpot_s
    assert cycle_s > users * service_s and b < capacity / (prompt + output)
    requests_per_s = users / cycle_s
    utilisation = requests_per_s * service_s
    prefill_w = gpu_w(utilisation, scaling_s / service_s, exposed_s / service_s)
    decode_w = gpu_w(1.0, decode(b)["compute_activity"], decode(b)["memory_activity"])
    return found | {
        "weights_s": weights_s,
        "attention_s": attention_s,
        "exposed_s": exposed_s,
        "overhead_s": overhead_s,
        "service_s": service_s,
        "transfer_s": transfer_s,
        "frontend_s": frontend_s,
        "ttft_s": ttft_s,
        "batch": b,
        "tpot_s": tpot_s,
        "requests_per_s": requests_per_s,
        "output_tokens_per_s_per_gpu": output * requests_per_s / (2 * gpus),
        "prefill_utilisation": utilisation,
        "gpu_power_w": 0.5 * (prefill_w + decode_w),
        "power_w_per_gpu": (rack_w(prefill_w) + rack_w(decode_w)) / (2 * gpus),
    }


def test_the_worked_example_comes_out_by_hand() -> None:
    steps = {step.key: step.value for step in (*script().worked_decode(), *script().worked_serving())}
    assert steps.keys() == by_hand().keys()
    for key, value in steps.items():
        assert value == pytest.approx(by_hand()[key], rel=1e-9), key


def test_the_page_prints_what_comes_out_by_hand() -> None:
    for block, steps in (("worked_decode", script().worked_decode()), ("worked_serving", script().worked_serving())):
        printed = page().split(f"<!-- table: {block} -->")[1].split("<!-- end -->")[0]
        for step in steps:
            assert f"| {step.text} | {step.shown(by_hand()[step.key])} |" in printed, step.key


@pytest.mark.parametrize("generation", ["rubin", "rubin_cpx"])
def test_generations_without_measurements_have_the_constants_of_blackwell(generation: str) -> None:
    """The scaling rule that the page states."""
    kinds = {
        group.architecture.id: group.architecture
        for name in catalogue.rack_ids()
        for group in catalogue.rack(name).groups
    }
    assert dataclasses.replace(kinds[generation], id="blackwell") == kinds["blackwell"]


def test_links_of_the_page_lead_somewhere() -> None:
    folder = script().PAGE.parent
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        for line in page().splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", page()):
        file, _, anchor = target.partition("#")
        assert not file or (folder / file).exists(), target
        assert not anchor or anchor in headings, target


@pytest.mark.parametrize("row", golden.rows(), ids=lambda row: f"{row['rack']} {row['model']} {row['prompt_tokens']}")
def test_the_equations_of_the_page_are_those_of_the_code(row: dict[str, str]) -> None:
    """The page's equations in plain arithmetic, over racks, models, precisions, layouts, modes, clocks and profiles."""
    found = serving(**golden.arguments(row))
    np.testing.assert_allclose([found[name] for name in golden.ANSWERS], golden.answers(row), rtol=1e-8)
