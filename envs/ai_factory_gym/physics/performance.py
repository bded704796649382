"""How long prefill and decode take: a roofline per rack type, model, precision and layout, with every term visible.

The form, for a decode worker of ``G = tp x dp`` GPUs with ``B`` requests in flight, ``b = B / dp`` per attention rank
and ``S`` tokens of context each (L layers, h hidden, k of E experts active, m tokens verified, a kept per iteration):

* memory: ``[W_dense/tp + b S kv / min(tp, kv_heads; 1 for MLA)] / (BW eta_m) + W_experts u / (G BW eta_e)`` with
  ``u = 1 - (1 - k/E)^B``, the share of the experts that some request touches
* compute: ``m [2 k P_e B / (G F_e eta_c) + 2 P_dense b / (tp F_d eta_c) + A S b / (tp F_a eta_c)]``
* communication: ``m L b h / eta_n x [8 (tp-1)/tp / link_tp + 3 min(k, G) (G-1)/G / link_ep  if dp > 1 and experts]``
* fixed: ``(1 + mu (m-1)) L {tau r + alpha log2 tp + alpha_a2a (dp > 1, experts) + sigma b}``
* iteration: ``sqrt(memory^2 + compute^2) + communication + fixed``; ``TPOT = iteration / a``

and for a prefill worker of ``G = tp x dp x pp`` GPUs, whose attention ranks work in passes of ``chunk_tokens`` prompt tokens, per token

* ``sqrt(compute^2 + stream^2 + communication^2)``, with the FLOPs of the weights over ``G F eta_p`` as compute and the
  weights read once per pass as stream,
* plus ``L tau_p / chunk_tokens`` per rank (experts only), its share of the fixed time of a pass, because under load prompts
  fill passes; the fixed time of a prompt's own pass, ``L tau_p``, delays its first token and occupies nothing,
* plus attention FLOPs, quadratic in the prompt, over ``G F_a eta_a``; ``F_a`` is a figure of its own per rack type.

Compute scales with the clock, memory bandwidth does not until clocks are very low, links and host latencies never do.
Constants are per GPU generation, in the catalogue, with their status. The coefficients fold a fixed layout into nine
(prefill) and fifteen (decode) floats, so that kernels need few operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.catalogue import PRECISIONS, Architecture, Group, Model, Rack
from ai_factory_gym.catalogue import model as find_model
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.errors import ConfigError, check_count, unknown
from ai_factory_gym.jit import inlined_kernel, kernel

MEMORY_KNEE_CLOCK = 0.35
"""Clock below which memory bandwidth falls: the L2 and fabric then no longer keep the memory busy (hardware_facts:
performance collapses below 0.3-0.4 of the power range; status derived)."""

CHUNK_TOKENS = 24_576
"""Prompt tokens an attention rank processes per pass over the weights when prompts wait (status derived: passes of 16k to 32k tokens fit
the measured points alike, 8k and 64k worse; usual chunked-prefill budgets are 8-32k)."""

MAX_LANES = 4
"""Most prompts a prefill worker serves at once: own latency is min(dp, 4) services (status derived). Pipeline stages
count as ranks (status assumed: a prompt is cut into chunks that fill most of the pipeline)."""

MEMORY_RESERVE = 0.04
"""Share of GPU memory kept for activations, graphs and fragmentation (status derived: DeepSeek-R1 at fp8, 168 GB per
GPU, was measured on four B200 of 180 GB)."""

BYTES_PER_WEIGHT = {"fp8": 1.0, "fp4": 0.5625, "bf16": 2.0}
"""Bytes per weight; fp4 carries one 8-bit scale per 16 weights (NVFP4)."""

BYTES_PER_KV = {"fp8": 1.0, "bf16": 2.0}
"""Bytes per KV-cache element."""

_KERNELS_PER_LAYER_MLA_MOE = 20.0
_KERNELS_PER_LAYER_GQA_MOE = 13.0
_ALL_TOUCHED_LOG = -700.0


class PrefillCoefficients(NamedTuple):
    """Prefill on one lane of a replica at clock 1. All floats.

    Attributes:
        per_token_s: Compute time per new prompt token; scales with 1 / clock.
        per_token2_s: Attention time per squared prompt token; scales with 1 / clock.
        stream_per_token_s: Part of weight streaming and communication that compute does not hide, per token; does not
            scale.
        overhead_per_token_s: Fixed time of full passes, per token; does not scale.
        servers_per_replica: Lanes of the replica, which serve one prompt each.
        frontend_s: Constant latency added to every TTFT, the fixed time of the prompt's own pass included; occupies nothing.
        kv_bytes_per_token: KV cache handed to decode per prompt token.
        transfer_bytes_per_s: Scale-out bandwidth of the whole replica.
        gpus: GPUs of the replica.
    """

    per_token_s: float
    per_token2_s: float
    stream_per_token_s: float
    overhead_per_token_s: float
    servers_per_replica: float
    frontend_s: float
    kv_bytes_per_token: float
    transfer_bytes_per_s: float
    gpus: float


class DecodeCoefficients(NamedTuple):
    """Decode on one replica of a fixed layout at clock 1. All floats.

    Attributes:
        memory_s: Reading the dense weights once.
        memory_request_s: Reading the constant KV (sliding-window layers) of one request.
        memory_context_s: Reading one token of KV of one request.
        experts_s: Reading every expert once.
        experts_power: Power drawn while reading experts, relative to reading dense weights.
        expert_log: ln(1 - k/E), so that experts touched = 1 - exp(expert_log x batch); 0 without experts.
        compute_request_s: Multiplying one request's new tokens with the weights it uses.
        compute_context_s: Attention of one request per token of its context.
        communication_request_s: Collectives per request.
        latency_s: Fixed time per iteration.
        latency_request_s: Time per request that nothing hides: sampling, scheduling, per-request kernels.
        tokens_per_iteration: Tokens each request gains per iteration (a).
        kv_capacity_tokens: Tokens of KV the replica holds beside the weights and the reserve.
        kv_request_tokens: KV a request holds besides its context, in tokens (sliding-window layers).
        gpus: GPUs of the replica.
    """

    memory_s: float
    memory_request_s: float
    memory_context_s: float
    experts_s: float
    experts_power: float
    expert_log: float
    compute_request_s: float
    compute_context_s: float
    communication_request_s: float
    latency_s: float
    latency_request_s: float
    tokens_per_iteration: float
    kv_capacity_tokens: float
    kv_request_tokens: float
    gpus: float


PREFILL_PER_TOKEN_S = 0
PREFILL_PER_TOKEN2_S = 1
PREFILL_STREAM_PER_TOKEN_S = 2
PREFILL_OVERHEAD_PER_TOKEN_S = 3
PREFILL_SERVERS_PER_REPLICA = 4
PREFILL_FRONTEND_S = 5
PREFILL_KV_BYTES_PER_TOKEN = 6
PREFILL_TRANSFER_BYTES_PER_S = 7
PREFILL_GPUS = 8

DECODE_MEMORY_S = 0
DECODE_MEMORY_REQUEST_S = 1
DECODE_MEMORY_CONTEXT_S = 2
DECODE_EXPERTS_S = 3
DECODE_EXPERTS_POWER = 4
DECODE_EXPERT_LOG = 5
DECODE_COMPUTE_REQUEST_S = 6
DECODE_COMPUTE_CONTEXT_S = 7
DECODE_COMMUNICATION_REQUEST_S = 8
DECODE_LATENCY_S = 9
DECODE_LATENCY_REQUEST_S = 10
DECODE_TOKENS_PER_ITERATION = 11
DECODE_KV_CAPACITY_TOKENS = 12
DECODE_KV_REQUEST_TOKENS = 13
DECODE_GPUS = 14


@inlined_kernel
def compute_rate(clock: float) -> float:
    """Compute rate relative to clock 1: proportional to the clock.

    Args:
        clock: SM clock as a fraction of the maximum, in (0, 1].
    """
    return clock


@inlined_kernel
def memory_rate(clock: float) -> float:
    """Memory bandwidth relative to clock 1: flat above the knee, proportional to the clock below it.

    Args:
        clock: SM clock as a fraction of the maximum, in (0, 1].
    """
    return 1.0 if clock >= MEMORY_KNEE_CLOCK else clock / MEMORY_KNEE_CLOCK


@inlined_kernel
def prefill_work_s(coef: NDArray[np.float64], new_tokens: float, token_pairs: float) -> tuple[float, float]:
    """Work of one prompt on one lane, in its scaling and its fixed part.

    Service time at a clock is ``scaling_s / compute_rate(clock) + fixed_s``.

    Args:
        coef: ``np.array(PrefillCoefficients)``, shape (9,).
        new_tokens: Prompt tokens without the cached ones.
        token_pairs: ``E[prompt^2] - cached^2``.

    Returns:
        ``(scaling_s, fixed_s)``, seconds at clock 1.
    """
    scaling_s = coef[PREFILL_PER_TOKEN_S] * new_tokens + coef[PREFILL_PER_TOKEN2_S] * token_pairs
    fixed_s = (coef[PREFILL_STREAM_PER_TOKEN_S] + coef[PREFILL_OVERHEAD_PER_TOKEN_S]) * new_tokens
    return scaling_s, fixed_s


@kernel
def decode_iteration_s(
    coef: NDArray[np.float64], batch: float, context_tokens: float, clock: float
) -> tuple[float, float, float]:
    """Time of one decode iteration of a replica.

    ``TPOT = iteration_s / coef[DECODE_TOKENS_PER_ITERATION]``.

    Args:
        coef: ``np.array(DecodeCoefficients)``, shape (15,).
        batch: Requests in flight on the replica, at least 1.
        context_tokens: Mean tokens of KV per request.
        clock: SM clock as a fraction of the maximum, in (0, 1].

    Returns:
        ``(iteration_s, compute_s, memory_s)``: the iteration, and what draws power within it: how long the compute
        units work (matrix products, and the collectives they run; not the sampling and scheduling of each request,
        which leave them idle), and how long its bytes take the memory at full bandwidth (so that below the knee, where
        fewer bytes move per second, memory draws less), experts weighted by the power of reading them.
    """
    tokens = batch * context_tokens
    touched = 1.0 - math.exp(coef[DECODE_EXPERT_LOG] * batch)
    dense_s = coef[DECODE_MEMORY_S] + coef[DECODE_MEMORY_REQUEST_S] * batch + coef[DECODE_MEMORY_CONTEXT_S] * tokens
    experts_s = coef[DECODE_EXPERTS_S] * touched
    slowed_s = (dense_s + experts_s) / memory_rate(clock)
    compute_s = (coef[DECODE_COMPUTE_REQUEST_S] * batch + coef[DECODE_COMPUTE_CONTEXT_S] * tokens) / compute_rate(clock)
    communication_s = coef[DECODE_COMMUNICATION_REQUEST_S] * batch
    fixed_s = coef[DECODE_LATENCY_S] + coef[DECODE_LATENCY_REQUEST_S] * batch
    iteration_s = math.sqrt(slowed_s * slowed_s + compute_s * compute_s) + communication_s + fixed_s
    return iteration_s, compute_s + communication_s, dense_s + coef[DECODE_EXPERTS_POWER] * experts_s


def _kernel_ratio(model: Model) -> float:
    """Kernels per layer relative to an MLA mixture-of-experts layer: latency follows launches."""
    return 1.0 if model.attention == "mla" else _KERNELS_PER_LAYER_GQA_MOE / _KERNELS_PER_LAYER_MLA_MOE


def _dense_precision(model: Model, precision: str) -> str:
    """Precision of the non-expert weights: 4-bit mixture-of-experts checkpoints leave them in bf16."""
    return "bf16" if precision == "fp4" and model.is_moe else precision


def _efficiency(architecture: Architecture, phase: str, precision: str) -> float:
    """Share of peak FLOP/s a phase reaches at a precision; bf16 is taken as fp8 (status assumed: not in the fit)."""
    if phase == "decode":
        four, eight = architecture.decode_compute_efficiency_fp4, architecture.decode_compute_efficiency_fp8
    else:
        four, eight = architecture.prefill_efficiency_fp4, architecture.prefill_efficiency_fp8
    return four if precision == "fp4" else eight


def _moe_latency_s(architecture: Architecture, precision: str) -> float:
    """Fixed time per decode layer of an MLA mixture-of-experts model at a precision."""
    return architecture.layer_latency_moe_fp4_s if precision == "fp4" else architecture.layer_latency_moe_s


def _check_layout(model: Model, tp: int, pp: int) -> None:
    """Refuse layouts that cannot be: heads are shared out evenly, and a stage has a layer at least."""
    if model.heads % tp != 0:
        raise ConfigError(f"tp: {tp} is not allowed; must divide the {model.heads} heads of {model.id!r}.")
    if pp > model.layers:
        raise ConfigError(f"pp: {pp} is not allowed; {model.id!r} has {model.layers} layers.")


def _check_precision(model: Model, group: Group, precision: str, kv_precision: str) -> None:
    """Refuse precisions that are unknown or that the GPU has no units for."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if kv_precision not in BYTES_PER_KV:
        raise unknown("kv_precision", kv_precision, BYTES_PER_KV)
    group.flops(precision)
    group.flops(_dense_precision(model, precision))


def weight_bytes_per_gpu(model: Model, precision: str, *, tp: int, dp: int, pp: int = 1) -> float:
    """Bytes of weights one GPU holds: experts spread over the worker, all else copied per attention rank.

    Args:
        model: The model.
        precision: Weight precision of the experts (of everything in a dense model).
        tp: GPUs an attention rank spans.
        dp: Attention ranks.
        pp: Pipeline stages.

    Returns:
        Bytes, embedding included.
    """
    dense = (model.dense_params + model.embedding_params) * BYTES_PER_WEIGHT[_dense_precision(model, precision)]
    experts = model.experts * model.expert_params * BYTES_PER_WEIGHT[precision]
    return dense / (tp * pp) + experts / (tp * dp * pp)


def _free_bytes_per_gpu(rack: Rack, group: Group, model: Model, precision: str, tp: int, dp: int, pp: int) -> float:
    """Memory of one GPU beside weights and reserve; refuse a layout that has none."""
    gpus = tp * dp * pp
    weights = weight_bytes_per_gpu(model, precision, tp=tp, dp=dp, pp=pp)
    usable = group.memory_gb * 1e9 * (1.0 - MEMORY_RESERVE)
    if weights >= usable:
        raise ConfigError(
            f"model {model.id!r} at {precision} does not fit a worker of {gpus} GPUs (tp {tp} x dp {dp} x pp "
            f"{pp}) of {rack.id!r}: "
            f"{weights / 1e9:.1f} GB of weights per GPU, {usable / 1e9:.1f} GB usable of {group.memory_gb:g} GB; "
            f"use more GPUs or a smaller precision."
        )
    return usable - weights


def prefill_free_bytes(rack: Rack | str, model: Model | str, *, precision: str, tp: int, dp: int, pp: int) -> float:
    """Return the GPU memory of a prefill replica beside weights and reserve, bytes.

    Raises:
        ConfigError: On an unknown name or a model that does not fit.
    """
    rack = find_rack(rack)
    return tp * dp * pp * _free_bytes_per_gpu(rack, rack.group("prefill"), find_model(model), precision, tp, dp, pp)


def _link_bytes_per_s(group: Group, gpus: int) -> float:
    """Bandwidth of one GPU to the others of a set: the link inside its domain, the network beyond it."""
    return (group.link_gb_s if gpus <= group.link_domain_gpus else group.scaleout_gb_s) * 1e9


def _attention_flops(model: Model, *, absorbed: bool) -> float:
    """FLOPs of one layer's attention per pair of query and key tokens.

    MLA decode works on the compressed KV (absorbed); MLA prefill expands it to full heads, which is cheaper per pair.
    """
    if model.attention == "gqa":
        return 4.0 * model.heads * model.head_dim
    if absorbed:
        return 2.0 * model.heads * (2 * model.kv_lora + model.rope)
    return 2.0 * model.heads * (model.nope_dim + model.rope + model.v_dim)


def kv_bytes_per_token(model: Model, kv_precision: str = "fp8") -> float:
    """Bytes of KV cache per token of context, all layers that keep the whole context.

    Raises:
        ConfigError: On an unknown precision.
    """
    if kv_precision not in BYTES_PER_KV:
        raise unknown("kv_precision", kv_precision, BYTES_PER_KV)
    return model.kv_elements_per_token * BYTES_PER_KV[kv_precision]


def prefill_coefficients(
    rack: Rack | str,
    model: Model | str,
    *,
    precision: str,
    tp: int = 1,
    dp: int = 1,
    pp: int = 1,
    profile: str | None = None,
    kv_precision: str = "fp8",
    chunk_tokens: int = CHUNK_TOKENS,
) -> PrefillCoefficients:
    """Fold a rack type, a model and a layout into prefill coefficients.

    Args:
        rack: Rack type or its catalogue name.
        model: Model or its catalogue name.
        precision: Weight precision.
        tp: GPUs an attention rank spans.
        dp: Attention ranks of a replica (expert parallel over all of its GPUs).
        pp: Pipeline stages; the layout of GPUs without NVLink, where only activations cross stages.
        profile: Power profile; None is the default one.
        kv_precision: Precision of the KV cache.
        chunk_tokens: Prompt tokens an attention rank processes per pass over the weights.

    Returns:
        The coefficients of one lane.

    Raises:
        ConfigError: On an unknown name, a bad layout, or a model that does not fit.
    """
    rack, model = find_rack(rack), find_model(model)
    group = rack.group("prefill")
    architecture = group.architecture
    _check_precision(model, group, precision, kv_precision)
    tp, dp, pp = check_count("tp", tp), check_count("dp", dp), check_count("pp", pp)
    _check_layout(model, tp, pp)
    chunk_tokens = check_count("chunk_tokens", chunk_tokens)
    _free_bytes_per_gpu(rack, group, model, precision, tp, dp, pp)
    gpus = tp * dp * pp
    scale = group.profile(profile).compute_scale
    dense_precision = _dense_precision(model, precision)
    # The output head runs for the last token only.
    dense_params = model.dense_params - model.embedding_params
    dense_rate = group.flops(dense_precision) * scale * _efficiency(architecture, "prefill", dense_precision) * gpus
    expert_rate = group.flops(precision) * scale * _efficiency(architecture, "prefill", precision) * gpus
    weights_s = 2.0 * dense_params / dense_rate + 2.0 * model.top_k * model.expert_params / expert_rate
    attention_rate = group.attention_pflops * 1e15 * scale * architecture.prefill_attention_efficiency * gpus
    attention = _attention_flops(model, absorbed=False)
    window_s = attention * model.sliding_layers * model.window / attention_rate
    per_token2_s = attention * (model.layers - model.sliding_layers) / 2.0 / attention_rate

    bandwidth = group.memory_tb_s * 1e12
    dense_bytes = dense_params * BYTES_PER_WEIGHT[dense_precision] / (tp * pp)
    expert_bytes = model.experts * model.expert_params * BYTES_PER_WEIGHT[precision] / gpus
    pass_s = dense_bytes / architecture.memory_efficiency + expert_bytes / architecture.expert_memory_efficiency
    stream_s = pass_s / (bandwidth * chunk_tokens * dp)
    communication_s = _communication_s(group, model, tp, dp) * (1.0 / pp)
    if pp > 1:
        communication_s += 2.0 * model.hidden / (dp * _link_bytes_per_s(group, gpus) * architecture.link_efficiency)
    exposed_s = math.sqrt(weights_s**2 + stream_s**2 + communication_s**2) - weights_s
    pass_s = 0.0
    if model.is_moe:
        pass_s = model.layers * architecture.prefill_layer_latency_s * _kernel_ratio(model)
    lanes = min(dp * pp, MAX_LANES)
    return PrefillCoefficients(
        per_token_s=lanes * (weights_s + window_s),
        per_token2_s=lanes * per_token2_s,
        stream_per_token_s=lanes * exposed_s,
        overhead_per_token_s=lanes * pass_s / (chunk_tokens * dp * pp),
        servers_per_replica=float(lanes),
        frontend_s=architecture.frontend_disaggregated_s + pass_s,
        kv_bytes_per_token=kv_bytes_per_token(model, kv_precision),
        transfer_bytes_per_s=gpus * group.scaleout_gb_s * 1e9,
        gpus=float(gpus),
    )


def _communication_s(group: Group, model: Model, tp: int, dp: int) -> float:
    """Collectives of all layers per token of the worker: all-reduce within a rank, expert all-to-all across ranks."""
    gpus = tp * dp
    per_layer = 8.0 * (tp - 1) / tp / _link_bytes_per_s(group, tp)
    if dp > 1 and model.is_moe:
        per_layer += 3.0 * min(model.top_k, gpus) * (gpus - 1) / gpus / _link_bytes_per_s(group, gpus)
    return model.layers * model.hidden * per_layer / (dp * group.architecture.link_efficiency)


def decode_coefficients(
    rack: Rack | str,
    model: Model | str,
    *,
    precision: str,
    tp: int = 1,
    dp: int = 1,
    ep: int | None = None,
    mtp: bool = False,
    profile: str | None = None,
    kv_precision: str = "fp8",
) -> DecodeCoefficients:
    """Fold a rack type, a model and a layout into decode coefficients.

    Args:
        rack: Rack type or its catalogue name.
        model: Model or its catalogue name.
        precision: Weight precision.
        tp: GPUs an attention rank spans.
        dp: Attention ranks of a replica.
        ep: Expert-parallel size; None is the whole worker. Experts are spread over all GPUs either way, so the size
            changes nothing else here.
        mtp: Whether multi-token prediction is on.
        profile: Power profile; None is the default one.
        kv_precision: Precision of the KV cache.

    Returns:
        The coefficients of one replica.

    Raises:
        ConfigError: On an unknown name, a bad layout, or a model that does not fit.
    """
    rack, model = find_rack(rack), find_model(model)
    group = rack.group("decode")
    architecture = group.architecture
    _check_precision(model, group, precision, kv_precision)
    tp, dp = check_count("tp", tp), check_count("dp", dp)
    _check_layout(model, tp, 1)
    gpus = tp * dp
    if ep is not None and gpus % check_count("ep", ep) != 0:
        raise ConfigError(f"ep: {ep} is not allowed; must divide the worker's {gpus} GPUs (tp {tp} x dp {dp}).")
    free_bytes = _free_bytes_per_gpu(rack, group, model, precision, tp, dp, 1)
    scale = group.profile(profile).compute_scale
    dense_precision = _dense_precision(model, precision)
    verified = architecture.mtp_tokens_verified if mtp else 1.0
    kept = architecture.mtp_tokens_kept if mtp else 1.0

    bandwidth = group.memory_tb_s * 1e12
    kv_shards = min(tp, model.kv_heads) if model.attention == "gqa" else 1
    kv_token = kv_bytes_per_token(model, kv_precision)
    kv_constant = model.kv_elements_constant * BYTES_PER_KV[kv_precision]
    dense_bandwidth = bandwidth * architecture.memory_efficiency
    dense_s = model.dense_params * BYTES_PER_WEIGHT[dense_precision] / tp / dense_bandwidth
    experts = model.experts * model.expert_params
    experts_s = experts * BYTES_PER_WEIGHT[precision] / (gpus * bandwidth * architecture.expert_memory_efficiency)

    attention = _attention_flops(model, absorbed=True)
    attention_rate = group.attention_pflops * 1e15 * scale * _efficiency(architecture, "decode", "fp8") * gpus
    dense_rate = group.flops(dense_precision) * scale * _efficiency(architecture, "decode", dense_precision) * gpus
    expert_rate = group.flops(precision) * scale * _efficiency(architecture, "decode", precision) * gpus
    compute_request_s = verified * (
        2.0 * model.dense_params / dense_rate
        + 2.0 * model.top_k * model.expert_params / expert_rate
        + attention * model.sliding_layers * model.window / attention_rate
    )
    layer_latency_s = (
        _moe_latency_s(architecture, precision) * _kernel_ratio(model)
        if model.is_moe
        else architecture.layer_latency_dense_s
    ) + architecture.tensor_latency_s * math.log2(tp)
    if dp > 1 and model.is_moe:
        layer_latency_s += architecture.all_to_all_latency_s
    expert_log = 0.0
    if model.is_moe:
        # With every expert active, one request touches all of them.
        expert_log = math.log1p(-model.top_k / model.experts) if model.top_k < model.experts else _ALL_TOUCHED_LOG
    stretch = 1.0 + architecture.mtp_latency_factor * (verified - 1.0)
    return DecodeCoefficients(
        memory_s=dense_s,
        memory_request_s=kv_constant / (dp * kv_shards * dense_bandwidth),
        memory_context_s=kv_token / (dp * kv_shards * dense_bandwidth),
        experts_s=experts_s,
        experts_power=architecture.expert_power_ratio,
        expert_log=expert_log,
        compute_request_s=compute_request_s,
        compute_context_s=verified * attention * (model.layers - model.sliding_layers) / attention_rate,
        communication_request_s=verified * _communication_s(group, model, tp, dp),
        latency_s=stretch * model.layers * layer_latency_s,
        latency_request_s=stretch * model.layers * architecture.sequence_latency_s / dp,
        tokens_per_iteration=kept,
        kv_capacity_tokens=dp * kv_shards * free_bytes / kv_token,
        kv_request_tokens=kv_constant / kv_token,
        gpus=float(gpus),
    )
