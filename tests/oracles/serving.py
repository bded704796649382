"""The equations of docs/model.md in plain arithmetic, from numbers of the catalogue and shapes of models alone.

No function of ``ai_factory_gym.physics`` is used, only its constants, nor what a model derives from its shape: where the page and the
code say different things, ``tests/test_model_page.py`` fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ai_factory_gym import catalogue
from ai_factory_gym.physics import performance

KNEE, CHUNK, LANES = performance.MEMORY_KNEE_CLOCK, performance.CHUNK_TOKENS, performance.MAX_LANES
RESERVE, WEIGHT, ELEMENT = performance.MEMORY_RESERVE, performance.BYTES_PER_WEIGHT, performance.BYTES_PER_KV
GQA_KERNELS = performance._KERNELS_PER_LAYER_GQA_MOE / performance._KERNELS_PER_LAYER_MLA_MOE


@dataclass(frozen=True)
class Worker:
    """GPUs that serve one copy of a model together.

    Attributes:
        group: Kind of GPU.
        model: The model.
        precision: Weight precision.
        tp: GPUs of an attention rank.
        dp: Attention ranks.
        pp: Pipeline stages.
        profile: Power profile.
        kv: Bytes per KV element.
        mtp: Whether multi-token prediction is on.
    """

    group: catalogue.Group
    model: catalogue.Model
    precision: str
    tp: int
    dp: int
    pp: int
    profile: catalogue.Profile
    kv: float
    mtp: bool = False

    @property
    def gpus(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def dense_precision(self) -> str:
        return "bf16" if self.precision == "fp4" and self.experts else self.precision

    @property
    def experts(self) -> bool:
        return self.model.dense_layers < self.model.layers

    @property
    def mla(self) -> bool:
        return self.model.attention == "mla"

    @property
    def embedding(self) -> float:
        return self.model.vocab * self.model.hidden

    @property
    def dense(self) -> float:
        m = self.model
        if self.mla:
            attention = m.hidden * (m.q_lora + m.kv_lora + m.rope) + m.heads * (
                m.q_lora * (m.nope_dim + m.rope) + m.kv_lora * (m.nope_dim + m.v_dim) + m.v_dim * m.hidden
            )
        else:
            attention = 2 * m.hidden * m.head_dim * (m.heads + m.kv_heads)
        moe_layers = m.layers - m.dense_layers
        ffn = 3 * m.hidden * (m.dense_layers * m.dense_ffn + moe_layers * m.shared_experts * m.expert_ffn)
        return m.layers * attention + ffn + moe_layers * m.hidden * m.experts + self.embedding

    @property
    def expert(self) -> float:
        m = self.model
        return (m.layers - m.dense_layers) * 3 * m.hidden * m.expert_ffn

    @property
    def kv_token(self) -> float:
        m = self.model
        elements = m.kv_lora + m.rope if self.mla else 2 * m.kv_heads * m.head_dim
        return (m.layers - m.sliding_layers) * elements * self.kv

    @property
    def kv_window(self) -> float:
        m = self.model
        return m.sliding_layers * m.window * 2 * m.kv_heads * m.head_dim * self.kv

    @property
    def shards(self) -> int:
        return 1 if self.mla else min(self.tp, self.model.kv_heads)

    def peak(self, precision: str) -> float:
        peaks = {"fp4": self.group.fp4_pflops, "fp8": self.group.fp8_pflops, "bf16": self.group.bf16_pflops}
        return peaks[precision] * 1e15 * self.profile.compute_scale

    @property
    def attention_peak(self) -> float:
        return self.group.attention_pflops * 1e15 * self.profile.compute_scale

    def link(self, gpus: int) -> float:
        return 1e9 * (self.group.link_gb_s if gpus <= self.group.link_domain_gpus else self.group.scaleout_gb_s)

    @property
    def collectives(self) -> float:
        """Seconds per unit of L h / (dp eta_n)."""
        gpus = self.tp * self.dp
        found = 8.0 * (self.tp - 1) / self.tp / self.link(self.tp)
        if self.dp > 1 and self.experts:
            found += 3.0 * min(self.model.top_k, gpus) * (gpus - 1) / gpus / self.link(gpus)
        return found

    @property
    def capacity(self) -> float:
        weights = (self.dense + self.embedding) * WEIGHT[self.dense_precision] / (self.tp * self.pp)
        weights += self.model.experts * self.expert * WEIGHT[self.precision] / self.gpus
        return self.dp * self.shards * (self.group.memory_gb * 1e9 * (1.0 - RESERVE) - weights) / self.kv_token

    def iteration(self, batch: float, context: float, clock: float) -> tuple[float, float, float]:
        """Seconds of a decode iteration, its compute activity and its memory activity."""
        m, c, gpus, rank = self.model, self.group.architecture, self.gpus, batch / self.dp
        bandwidth = self.group.memory_tb_s * 1e12
        touched = 1.0 - (1.0 - m.top_k / m.experts) ** batch if self.experts else 0.0
        dense_s = self.dense * WEIGHT[self.dense_precision] / self.tp
        dense_s += rank * (context * self.kv_token + self.kv_window) / self.shards
        dense_s /= bandwidth * c.memory_efficiency
        experts_s = m.experts * self.expert * WEIGHT[self.precision] * touched
        experts_s /= gpus * bandwidth * c.expert_memory_efficiency
        eta = {"fp4": c.decode_compute_efficiency_fp4}
        eight = c.decode_compute_efficiency_fp8
        verified = c.mtp_tokens_verified if self.mtp else 1.0
        per_pair = 2 * m.heads * (2 * m.kv_lora + m.rope) if self.mla else 4 * m.heads * m.head_dim
        pairs = per_pair * ((m.layers - m.sliding_layers) * context + m.sliding_layers * m.window)
        compute_s = (
            verified
            * batch
            / gpus
            * (
                2.0 * self.dense / (self.peak(self.dense_precision) * eta.get(self.dense_precision, eight))
                + 2.0 * m.top_k * self.expert / (self.peak(self.precision) * eta.get(self.precision, eight))
                + pairs / (self.attention_peak * eight)
            )
        )
        links_s = verified * batch * m.layers * m.hidden * self.collectives / (self.dp * c.link_efficiency)
        tau = c.layer_latency_dense_s
        if self.experts:
            tau = c.layer_latency_moe_fp4_s if self.precision == "fp4" else c.layer_latency_moe_s
            tau *= 1.0 if self.mla else GQA_KERNELS
        tau += c.tensor_latency_s * math.log2(self.tp)
        tau += c.all_to_all_latency_s if self.dp > 1 and self.experts else 0.0
        stretch = 1.0 + c.mtp_latency_factor * (verified - 1.0)
        tau += c.sequence_latency_s * rank
        slowed_s = (dense_s + experts_s) / min(1.0, clock / KNEE)
        total = math.hypot(slowed_s, compute_s / clock) + links_s + stretch * m.layers * tau
        return total, (compute_s / clock + links_s) / total, (dense_s + c.expert_power_ratio * experts_s) / total

    def lane(self, prompt: float) -> tuple[float, float, float, float, int]:
        """Seconds of a prompt on a lane (scaling, streaming, its share of passes), of a pass, and lanes."""
        m, c, gpus = self.model, self.group.architecture, self.gpus
        lanes = min(self.dp * self.pp, LANES)
        dense = self.dense - self.embedding
        eta = {"fp4": c.prefill_efficiency_fp4}
        eight = c.prefill_efficiency_fp8
        weights_s = 2.0 * dense / (gpus * self.peak(self.dense_precision) * eta.get(self.dense_precision, eight))
        weights_s += 2.0 * m.top_k * self.expert / (gpus * self.peak(self.precision) * eta.get(self.precision, eight))
        attention_rate = gpus * self.attention_peak * c.prefill_attention_efficiency
        per_pair = 2 * m.heads * (m.nope_dim + m.rope + m.v_dim) if self.mla else 4 * m.heads * m.head_dim
        window_s = per_pair * m.sliding_layers * m.window / attention_rate
        square_s = per_pair * (m.layers - m.sliding_layers) / 2.0 / attention_rate
        stream_s = dense * WEIGHT[self.dense_precision] / (self.tp * self.pp * c.memory_efficiency)
        stream_s += m.experts * self.expert * WEIGHT[self.precision] / (gpus * c.expert_memory_efficiency)
        stream_s /= self.group.memory_tb_s * 1e12 * CHUNK * self.dp
        links_s = m.layers * m.hidden * self.collectives / (self.dp * self.pp * c.link_efficiency)
        if self.pp > 1:
            links_s += 2.0 * m.hidden / (self.dp * self.link(gpus) * c.link_efficiency)
        exposed_s = math.sqrt(weights_s**2 + stream_s**2 + links_s**2) - weights_s
        pass_s = 0.0
        if self.experts:
            pass_s = m.layers * c.prefill_layer_latency_s * (1.0 if self.mla else GQA_KERNELS)
        scaling_s = lanes * ((weights_s + window_s) * prompt + square_s * prompt**2)
        shared_s = lanes * pass_s * prompt / (CHUNK * self.dp * self.pp)
        return scaling_s, lanes * exposed_s * prompt, shared_s, pass_s, lanes

    def gpu_w(self, clock: float, busy: float, compute: float, memory: float) -> float:
        c, tdp_w, idle_w = self.group.architecture, self.profile.tdp_w, self.group.idle_w
        g = clock * (c.voltage_floor + (1.0 - c.voltage_floor) * clock) ** 2
        share = (
            c.active_fraction * g
            + compute * c.compute_fraction * g
            + memory * (c.memory_core_fraction * g + c.memory_fraction)
        )
        return idle_w + busy * min(share * tdp_w, tdp_w - idle_w)

    def it_w(self, gpu_w: float) -> float:
        """IT power per GPU."""
        n, idle_w = self.group.gpus, self.group.idle_w
        loss = (self.profile.nameplate_w - self.profile.idle_rack_w) / (n * (self.profile.tdp_w - idle_w)) - 1.0
        return (self.profile.idle_rack_w - (1.0 + loss) * n * idle_w) / n + (1.0 + loss) * gpu_w


def serving(
    rack: str,
    model: str,
    *,
    precision: str,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
    mode: str = "disaggregated",
    prefill_workers: int = 1,
    prefill_tp: int = 1,
    prefill_dp: int = 1,
    prefill_pp: int = 1,
    decode_workers: int = 1,
    decode_tp: int = 1,
    decode_dp: int = 1,
    decode_ep: int | None = None,
    prefill_rack: str | None = None,
    prefill_profile: str | None = None,
    decode_profile: str | None = None,
    mtp: bool = False,
    clock: float = 1.0,
    kv_precision: str = "fp8",
) -> dict[str, float]:
    """Return the steady state of ``serving_point``'s arguments, by its names."""
    apart = mode == "disaggregated"
    back = catalogue.rack(rack).group("decode")
    front = catalogue.rack(prefill_rack or rack).group("prefill")
    shape, kv = catalogue.model(model), ELEMENT[kv_precision]
    d = Worker(back, shape, precision, decode_tp, decode_dp, 1, back.profile(decode_profile), kv, mtp)
    layout = (prefill_tp, prefill_dp, prefill_pp) if apart else (decode_tp, decode_dp, 1)
    p = Worker(front, shape, precision, *layout, front.profile(prefill_profile if apart else decode_profile), kv, mtp)
    workers = prefill_workers if apart else decode_workers
    c: Any = front.architecture
    prompt, output, users = float(prompt_tokens), float(output_tokens), float(concurrency)
    scaling_s, streaming_s, share_s, pass_s, lanes = p.lane(prompt)
    lane_s = scaling_s / clock + streaming_s + share_s
    service_s = lane_s / lanes
    ranks = prefill_dp if apart else decode_dp
    wait_s = pass_s * (1.0 - 1.0 / max(1.0, users / workers / ranks))
    wait_s += c.queue_factor * service_s * max(users / workers - 1.0, 0.0)
    first_s = lane_s + pass_s + wait_s
    if apart:
        first_s += c.frontend_disaggregated_s + prompt * p.kv_token / (p.gpus * front.scaleout_gb_s * 1e9)
    else:
        first_s += c.frontend_aggregated_s
    shared_s = 0.0 if apart else c.aggregated_interference * service_s / output
    slots = d.capacity / (prompt + output + d.kv_window / d.kv_token)
    context = prompt + output / 2.0
    kept = back.architecture.mtp_tokens_kept if mtp else 1.0

    def loop(batch: float) -> tuple[float, float, float]:
        """Batch that follows from a batch, TPOT, and cycle."""
        inside = max(1.0, min(batch, slots))
        tpot_s = d.iteration(inside, context, clock)[0] / kept + shared_s * inside
        decode_s = (output - 1.0) * tpot_s
        cycle_s = max(first_s + decode_s, users * service_s / workers, users * decode_s / (decode_workers * slots))
        return users * decode_s / (cycle_s * decode_workers), tpot_s, cycle_s

    low, high = 0.0, users / decode_workers
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if loop(middle)[0] > middle else (low, middle)
    batch, tpot_s, cycle_s = loop(high)
    requests_per_s = users / cycle_s
    utilisation = min(1.0, requests_per_s * service_s / workers)
    shares = d.iteration(max(1.0, batch), context, clock)[1:]
    decode_w = d.gpu_w(clock, min(1.0, batch), *shares)
    compute, streaming = scaling_s / clock / lane_s, streaming_s / lane_s
    if apart:
        front_gpus, back_gpus = workers * p.gpus, decode_workers * d.gpus
        prefill_w = p.gpu_w(clock, utilisation, compute, streaming)
        it_w = front_gpus * p.it_w(prefill_w) + back_gpus * d.it_w(decode_w)
        gpus = front_gpus + back_gpus
    else:
        gpus = decode_workers * d.gpus
        mixed_w = utilisation * p.gpu_w(clock, 1.0, compute, streaming) + (1.0 - utilisation) * decode_w
        it_w = gpus * d.it_w(mixed_w)
    return {
        "ttft_s": cycle_s - (output - 1.0) * tpot_s,
        "tpot_s": tpot_s,
        "output_tokens_per_s_per_gpu": requests_per_s * output / gpus,
        "batch": batch,
        "prefill_utilisation": utilisation,
        "power_w_per_gpu": it_w / gpus,
    }
