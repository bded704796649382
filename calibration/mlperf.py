"""What the model says of MLPerf Inference submissions: best layout and batch, without and with the latency limits."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ai_factory_gym.catalogue import Model, Rack
from ai_factory_gym.catalogue import model as find_model
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_SERVERS_PER_REPLICA,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
    prefill_work_s,
)
from calibration.silicon import Constants, Floats, recalibrated

MTP_TOKENS_KEPT = 1.8
"""Tokens per iteration with one draft token accepted in 80 % (status assumed: submitters do not state it; one value for all)."""

OFFLINE_UTILISATION = 0.97
SERVER_UTILISATION = 0.90
"""Share of the best steady state that a whole run reaches: ramps, and in the server scenario arrivals by chance (status assumed)."""

P99_OVER_MEAN_TPOT = 1.17
"""p99 over mean TPOT: 48.2 ms over the median of 41.1 ms that Vera Rubin NVL72 reports in v6.1 (status derived)."""

BATCHES = 2.0 ** np.arange(0.0, 14.01, 0.125)
"""Requests in flight on a decode worker that are tried."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the suite.

    Attributes:
        model: Model served.
        precision: Weight precision of the submissions.
        prompt_tokens: Mean prompt.
        output_tokens: Mean answer.
        tpot_limit_s: Limit of p99 TPOT in the server scenario.
        mtp: Whether submissions draft tokens.
    """

    model: str
    precision: str
    prompt_tokens: float
    output_tokens: float
    tpot_limit_s: float
    mtp: bool


BENCHMARKS: Mapping[str, Benchmark] = {
    "deepseek-r1": Benchmark("deepseek-r1", "fp4", 800.0, 3790.0, 0.080, mtp=True),
    "gpt-oss-120b": Benchmark("gpt-oss-120b", "fp4", 8000.0, 1278.2, 0.080, mtp=False),
}
"""Benchmarks by name, limits from mlperf.conf.

DeepSeek-R1: answers of 3,790 tokens on average from the round's reports, prompts of about 800 (status assumed).

gpt-oss-120b: 6,396 PubMed articles to summarise at low effort. Mean answer 1,278.2 tokens (compliance test TEST09 of the reference
implementation, mlcommons/inference language/gpt-oss-120b); prompts of about 8,000 tokens (status secondary report; the padded prompts
are 14,658 tokens wide, from the size of the data set's token file). Drafting is not known to be used (status assumed)."""

FITTED = "deepseek-r1"
"""The benchmark whose results are in the fit; the other one is a check of it."""

SYSTEMS: Mapping[str, str] = {
    "GB200 NVL72": "gb200_nvl72",
    "GB300 NVL72": "gb300_nvl72",
    "VR NVL72": "vera_rubin_nvl144",
    "B200 Nebius": "b200_sxm8",
    "B300 Nebius": "b300_sxm8",
}
"""Submitted systems and their rack types."""


@dataclass(frozen=True)
class Submission:
    """A measured result.

    Attributes:
        system: A key of ``SYSTEMS``.
        benchmark: A key of ``BENCHMARKS``.
        offline: Output tokens/s/GPU, offline.
        server: Output tokens/s/GPU under the latency limits.
    """

    system: str
    benchmark: str
    offline: float
    server: float


@functools.cache
def submissions(folder: Path, round_name: str = "v6.1") -> tuple[Submission, ...]:
    """Return the results of one round on ``SYSTEMS`` of at most one rack."""
    facts: dict[str, Any] = yaml.safe_load((folder / "hardware_facts.yaml").read_text(encoding="utf-8"))
    return tuple(
        Submission(entry["system"], entry["model"], entry["offline"] / entry["gpus"], entry["server"] / entry["gpus"])
        for entry in facts["mlperf"]
        if entry["round"] == round_name
        and entry["system"] in SYSTEMS
        and entry["gpus"] <= 72
        and entry["model"] in BENCHMARKS
    )


def _layouts(rack: Rack, phase: str) -> Iterator[tuple[int, int]]:
    domain = rack.group(phase).link_domain_gpus
    for tp in (1, 2, 4, 8):
        for dp in (1, 2, 4, 8, 16, 32, 64):
            if tp * dp <= domain:
                yield tp, dp


def prefill_gpu_s(rack: Rack, model: Model, benchmark: Benchmark) -> float:
    """Return the least GPU-seconds of one prompt over layouts."""
    best = np.inf
    for tp, dp in _layouts(rack, "prefill"):
        try:
            coef = np.array(prefill_coefficients(rack, model, precision=benchmark.precision, tp=tp, dp=dp))
        except ConfigError:
            continue
        scaling_s, fixed_s = prefill_work_s(coef, benchmark.prompt_tokens, benchmark.prompt_tokens**2)
        best = min(best, (scaling_s + fixed_s) * tp * dp / coef[PREFILL_SERVERS_PER_REPLICA])
    return float(best)


@dataclass(frozen=True)
class Point:
    """The best steady state found.

    Attributes:
        output_tokens_per_s_per_gpu: Output per GPU, prefill GPUs counted.
        decode: ``np.array(DecodeCoefficients)`` of the layout, float64[15].
        batch: Requests in flight on a decode worker.
        context_tokens: Mean KV tokens of a request.
        prefill_share: Share of the GPUs that prefill.
    """

    output_tokens_per_s_per_gpu: float
    decode: NDArray[np.float64]
    batch: float
    context_tokens: float
    prefill_share: float


def best_point(
    rack_name: str,
    benchmark: Benchmark,
    limit_tpot_s: float | None,
    constants: Constants | None = None,
) -> Point:
    """Return the steady state of largest output per GPU over layouts and batches.

    Args:
        rack_name: Rack type.
        benchmark: What is served.
        limit_tpot_s: Largest mean TPOT; None for none.
        constants: See ``recalibrated``.

    Raises:
        ConfigError: When no layout fits.
    """
    rack = recalibrated(find_rack(rack_name), constants or {})
    model = find_model(benchmark.model)
    prefill_s = prefill_gpu_s(rack, model, benchmark)
    context = benchmark.prompt_tokens + 0.5 * benchmark.output_tokens
    best: Point | None = None
    for tp, dp in _layouts(rack, "decode"):
        try:
            coef = np.array(
                decode_coefficients(rack, model, precision=benchmark.precision, tp=tp, dp=dp, mtp=benchmark.mtp)
            )
        except ConfigError:
            continue
        if benchmark.mtp:
            coef[DECODE_TOKENS_PER_ITERATION] = MTP_TOKENS_KEPT
        held = benchmark.prompt_tokens + benchmark.output_tokens + coef[DECODE_KV_REQUEST_TOKENS]
        slots = coef[DECODE_KV_CAPACITY_TOKENS] / held
        for batch in BATCHES[BATCHES <= slots]:
            iteration_s, _, _ = decode_iteration_s(coef, float(batch), context, 1.0)
            tpot_s = iteration_s / coef[DECODE_TOKENS_PER_ITERATION]
            if limit_tpot_s is not None and tpot_s > limit_tpot_s:
                break
            decode_s = benchmark.output_tokens * tpot_s * tp * dp / batch
            output = benchmark.output_tokens / (prefill_s + decode_s)
            if best is None or output > best.output_tokens_per_s_per_gpu:
                best = Point(output, coef, float(batch), context, prefill_s / (prefill_s + decode_s))
    if best is None:
        raise ConfigError(f"{benchmark.model} at {benchmark.precision}: no layout on {rack_name} keeps the limit.")
    return best


def log_errors(entries: Sequence[Submission], constants: Constants | None = None) -> Floats:
    """Return ln(predicted / measured) of results: float64[entries, 2] for offline and server.

    Args:
        entries: Results.
        constants: See ``recalibrated``.
    """
    measured = np.array([(entry.offline, entry.server) for entry in entries])
    return np.log(np.array([predictions(entry, constants) for entry in entries]) / measured)


def server_limit_s(benchmark: Benchmark) -> float:
    """Return the limit of mean TPOT in the server scenario."""
    return benchmark.tpot_limit_s / P99_OVER_MEAN_TPOT


def predictions(submission: Submission, constants: Constants | None = None) -> tuple[float, float]:
    """Return predicted output tokens/s/GPU, offline and server."""
    benchmark = BENCHMARKS[submission.benchmark]
    rack = SYSTEMS[submission.system]
    offline = best_point(rack, benchmark, None, constants)
    server = best_point(rack, benchmark, server_limit_s(benchmark), constants)
    return (
        OFFLINE_UTILISATION * offline.output_tokens_per_s_per_gpu,
        SERVER_UTILISATION * server.output_tokens_per_s_per_gpu,
    )
