"""Serving at steady state: a fixed number of users who always ask again, on a given layout or on the best one.

This is the part of the physics that measured serving points can be compared with: benchmarks of inference serving hold
the number of requests in flight constant. With C users, N_p prefill and N_d decode workers, service s of a prompt on a
prefill worker and B requests per decode worker:

* ``TTFT = T0 + own latency + transfer + L tau_p (1 - 1/n) + beta s (C/N_p - 1)`` with n users per attention rank (a prompt that
  is not alone waits for the pass under way), at least ``C s / N_p - (output - 1) TPOT``
  (prefill-bound)
* ``TPOT = iteration(B) / a``, plus ``phi s B / output`` when prefill shares the worker (aggregated)
* ``X = C / (TTFT + (output - 1) TPOT)`` requests/s and ``B = X (output - 1) TPOT / N_d``, solved by a damped fixed
  point; where B exceeds the KV memory, requests wait for a slot and TTFT grows by that wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.catalogue import Model, Rack
from ai_factory_gym.catalogue import model as find_model
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.errors import ConfigError, check_flag, check_range, unknown
from ai_factory_gym.jit import kernel
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_SERVERS_PER_REPLICA,
    PREFILL_STREAM_PER_TOKEN_S,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
    prefill_work_s,
)
from ai_factory_gym.physics.power import (
    POWER_GPUS,
    gpu_power_w,
    power_coefficients,
    rack_power_w,
)

MODES: tuple[str, ...] = ("disaggregated", "aggregated")
"""Prefill and decode on workers of their own, or sharing one kind of worker."""

MINIMUM_CLOCK = 0.1
"""Lowest clock a serving point is evaluated at (status assumed)."""

_ITERATIONS = 2000
_TOLERANCE = 1e-13

_LARGEST_EXPONENT = 17
_FRONTIER_SIZES = (1, 2, 4, 8, 16, 32, 64)
_WORKER_RATIOS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1), (8, 1), (2, 3), (3, 2))


@dataclass(frozen=True)
class ServingPoint:
    """One steady state: layout, latency, throughput and power.

    Attributes:
        rack: Rack type of the decode workers (of all of them, aggregated).
        prefill_rack: Rack type of the prefill workers.
        model: Model served.
        precision: Weight precision.
        mode: ``disaggregated`` or ``aggregated``.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer.
        concurrency: Users.
        prefill_workers: Prefill workers (0 aggregated).
        prefill_tp: Tensor-parallel size of one (0 aggregated).
        prefill_dp: Attention ranks of one (0 aggregated).
        prefill_pp: Pipeline stages of one (0 aggregated).
        decode_workers: Decode workers.
        decode_tp: Tensor-parallel size of one.
        decode_dp: Attention ranks of one.
        mtp: Whether multi-token prediction is on.
        clock: Clock of all GPUs.
        gpus: GPUs of all workers.
        ttft_s: Time to first token, queueing included.
        tpot_s: Time per output token after the first.
        tokens_per_s_per_user: 1 / tpot_s.
        requests_per_s: Completed requests.
        output_tokens_per_s: Output of all workers.
        output_tokens_per_s_per_gpu: The same over all GPUs.
        batch: Requests in flight per decode worker.
        prefill_utilisation: Share of the time a prefill worker serves (of a worker's time spent on prefill,
            aggregated).
        gpu_power_w: Mean draw of a GPU.
        power_w_per_gpu: IT power, rack overhead included, over all GPUs.
        output_tokens_per_joule: Output over IT energy.
        hypothetical: True when a rack type of the point was never shipped.
    """

    rack: str
    prefill_rack: str
    model: str
    precision: str
    mode: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    prefill_workers: int
    prefill_tp: int
    prefill_dp: int
    prefill_pp: int
    decode_workers: int
    decode_tp: int
    decode_dp: int
    mtp: bool
    clock: float
    gpus: int
    ttft_s: float
    tpot_s: float
    tokens_per_s_per_user: float
    requests_per_s: float
    output_tokens_per_s: float
    output_tokens_per_s_per_gpu: float
    batch: float
    prefill_utilisation: float
    gpu_power_w: float
    power_w_per_gpu: float
    output_tokens_per_joule: float
    hypothetical: bool


@kernel
def _closed_loop(
    decode: NDArray[np.float64],
    clock: float,
    users: float,
    workers: float,
    prompt: float,
    output: float,
    first_token_s: float,
    prefill_floor_s: float,
    interference_s: float,
) -> tuple[float, float, float, float]:
    """Solve the closed loop by a damped fixed point on the batch.

    Args:
        decode: ``np.array(DecodeCoefficients)``, shape (15,).
        clock: SM clock as a fraction of the maximum.
        users: Requests in flight, everywhere together.
        workers: Decode workers.
        prompt: Prompt tokens.
        output: Output tokens.
        first_token_s: TTFT while prefill keeps up.
        prefill_floor_s: Shortest cycle of a user that prefill allows, C s / N_p.
        interference_s: Seconds added to TPOT per request in flight on the worker.

    Returns:
        ``(batch, ttft_s, tpot_s, cycle_s)``; a user's cycle is TTFT + (output - 1) TPOT.
    """
    context = prompt + 0.5 * output
    slots = decode[DECODE_KV_CAPACITY_TOKENS] / (prompt + output + decode[DECODE_KV_REQUEST_TOKENS])
    batch = users / workers
    ttft_s = first_token_s
    tpot_s = 0.0
    cycle_s = 0.0
    for _ in range(_ITERATIONS):
        in_flight = max(1.0, min(batch, slots))
        iteration_s, _compute_s, _memory_s = decode_iteration_s(decode, in_flight, context, clock)
        tpot_s = iteration_s / decode[DECODE_TOKENS_PER_ITERATION] + interference_s * in_flight
        decode_s = (output - 1.0) * tpot_s
        cycle_s = max(first_token_s + decode_s, prefill_floor_s)
        # No more requests decode at once than have KV memory: the others wait, which lengthens the cycle.
        cycle_s = max(cycle_s, users * decode_s / (workers * slots))
        ttft_s = cycle_s - decode_s
        wanted = users * decode_s / (cycle_s * workers)
        change = wanted - batch
        batch += 0.5 * change
        if abs(change) <= _TOLERANCE * batch:
            break
    return batch, ttft_s, tpot_s, cycle_s


def _whole(name: str, value: int, low: int, high: float = 1e9) -> int:
    """Return ``value`` when it is a whole number in range, else refuse it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"{name}: {value!r} is not allowed; must be a whole number of at least {low}.")
    return int(check_range(name, int(value), low, high))


def serving_point(
    rack: Rack | str,
    model: Model | str,
    *,
    precision: str,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
    mode: Literal["disaggregated", "aggregated"] = "disaggregated",
    prefill_workers: int = 1,
    prefill_tp: int = 1,
    prefill_dp: int = 1,
    decode_workers: int = 1,
    decode_tp: int = 1,
    decode_dp: int = 1,
    decode_ep: int | None = None,
    prefill_rack: Rack | str | None = None,
    prefill_profile: str | None = None,
    decode_profile: str | None = None,
    mtp: bool = False,
    clock: float = 1.0,
    prefill_pp: int = 1,
    kv_precision: str = "fp8",
) -> ServingPoint:
    """Predict latency, throughput and power of a layout under a constant number of users.

    Args:
        rack: Rack type or its catalogue name.
        model: Model or its catalogue name.
        precision: Weight precision: ``fp8``, ``fp4`` or ``bf16``.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer, at least 2.
        concurrency: Users, over all workers; each asks again when answered.
        mode: ``disaggregated`` (prefill workers and decode workers) or ``aggregated`` (``decode_*`` workers do both;
            ``prefill_*`` are 0 or left out).
        prefill_workers: Prefill workers.
        prefill_tp: GPUs an attention rank of a prefill worker spans.
        prefill_dp: Attention ranks of a prefill worker.
        decode_workers: Decode workers.
        decode_tp: GPUs an attention rank of a decode worker spans.
        decode_dp: Attention ranks of a decode worker.
        decode_ep: Expert-parallel size; None is the whole worker.
        prefill_rack: Rack type of the prefill workers; None is ``rack``.
        prefill_profile: Power profile of the prefill racks; None is the default one.
        decode_profile: Power profile of the decode racks; None is the default one.
        mtp: Whether multi-token prediction is on.
        clock: SM clock of all GPUs as a fraction of the maximum.
        prefill_pp: Pipeline stages of a prefill worker (for GPUs without NVLink).
        kv_precision: Precision of the KV cache.

    Returns:
        The steady state.

    Raises:
        ConfigError: On an unknown name, a value out of range, or a model that does not fit.
    """
    rack, model = find_rack(rack), find_model(model)
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    aggregated = mode == "aggregated"
    prompt_tokens = _whole("prompt_tokens", prompt_tokens, 1)
    output_tokens = _whole("output_tokens", output_tokens, 2)
    concurrency = _whole("concurrency", concurrency, 1)
    decode_workers = _whole("decode_workers", decode_workers, 1)
    check_range("clock", clock, MINIMUM_CLOCK, 1.0)
    check_flag("mtp", mtp)
    if prompt_tokens + output_tokens > model.max_context:
        raise ConfigError(
            f"prompt_tokens + output_tokens: {prompt_tokens + output_tokens} is not allowed; {model.id!r} has a "
            f"context of at most {model.max_context} tokens."
        )
    if aggregated:
        given = {
            "prefill_workers": prefill_workers,
            "prefill_tp": prefill_tp,
            "prefill_dp": prefill_dp,
            "prefill_pp": prefill_pp,
        }
        for name, value in given.items():
            if value not in (0, 1):
                raise ConfigError(
                    f"{name}: {value!r} is not allowed in aggregated mode, where decode_* is the worker; must "
                    f"be 0 or 1."
                )
        if prefill_rack is not None or prefill_profile is not None:
            raise ConfigError(
                "prefill_rack, prefill_profile: not allowed in aggregated mode, which has one kind of worker."
            )
        if len(rack.groups) > 1:
            raise ConfigError(
                f"mode: 'aggregated' is not allowed on {rack.id!r}, where one kind of GPU prefills and another decodes."
            )
        front, prefill_profile = rack, decode_profile
        prefill_workers, prefill_tp, prefill_dp, prefill_pp = decode_workers, decode_tp, decode_dp, 1
    else:
        front = rack if prefill_rack is None else find_rack(prefill_rack)
        prefill_workers = _whole("prefill_workers", prefill_workers, 1)
    prefill = np.array(
        prefill_coefficients(
            front,
            model,
            precision=precision,
            tp=prefill_tp,
            dp=prefill_dp,
            pp=prefill_pp,
            profile=prefill_profile,
            kv_precision=kv_precision,
        )
    )
    decode = np.array(
        decode_coefficients(
            rack,
            model,
            precision=precision,
            tp=decode_tp,
            dp=decode_dp,
            ep=decode_ep,
            mtp=mtp,
            profile=decode_profile,
            kv_precision=kv_precision,
        )
    )
    slots = decode[DECODE_KV_CAPACITY_TOKENS] / (prompt_tokens + output_tokens + decode[DECODE_KV_REQUEST_TOKENS])
    if slots < 1.0:
        raise ConfigError(
            f"prompt_tokens + output_tokens: {prompt_tokens + output_tokens} is not allowed; the KV memory of a "
            f"decode worker of {decode_tp * decode_dp} GPUs of {rack.id!r} holds "
            f"{int(decode[DECODE_KV_CAPACITY_TOKENS])} tokens beside the weights."
        )

    scaling_s, fixed_s = prefill_work_s(prefill, float(prompt_tokens), float(prompt_tokens) ** 2)
    lane_s = scaling_s / compute_rate(clock) + fixed_s
    service_s = lane_s / prefill[PREFILL_SERVERS_PER_REPLICA]
    users_per_prefill = concurrency / prefill_workers
    architecture = front.group("prefill").architecture
    first_token_s = prefill[PREFILL_FRONTEND_S] + lane_s
    if aggregated:
        first_token_s += architecture.frontend_aggregated_s - architecture.frontend_disaggregated_s
        interference_s = architecture.aggregated_interference * service_s / output_tokens
    else:
        transfer_s = prompt_tokens * prefill[PREFILL_KV_BYTES_PER_TOKEN] / prefill[PREFILL_TRANSFER_BYTES_PER_S]
        first_token_s += transfer_s
        interference_s = 0.0
    # A prompt that arrives while a pass runs waits for the rest of it.
    pass_s = prefill[PREFILL_FRONTEND_S] - architecture.frontend_disaggregated_s
    first_token_s += pass_s * (1.0 - 1.0 / max(1.0, users_per_prefill / prefill_dp))
    first_token_s += architecture.queue_factor * service_s * max(users_per_prefill - 1.0, 0.0)
    batch, ttft_s, tpot_s, cycle_s = _closed_loop(
        decode,
        clock,
        float(concurrency),
        float(decode_workers),
        float(prompt_tokens),
        float(output_tokens),
        first_token_s,
        users_per_prefill * service_s,
        interference_s,
    )
    requests_per_s = concurrency / cycle_s
    utilisation = min(1.0, requests_per_s * service_s / prefill_workers)

    iteration_s, compute_s, memory_s = decode_iteration_s(
        decode, max(1.0, batch), prompt_tokens + 0.5 * output_tokens, clock
    )
    compute_share = scaling_s / compute_rate(clock) / lane_s
    stream_share = prefill[PREFILL_STREAM_PER_TOKEN_S] * prompt_tokens / lane_s
    decode_power = np.array(power_coefficients(rack, decode_profile, phase="decode"))
    decode_gpu_w = gpu_power_w(decode_power, clock, min(1.0, batch), compute_s / iteration_s, memory_s / iteration_s)
    prefill_power = np.array(power_coefficients(front, prefill_profile, phase="prefill"))
    prefill_gpu_w = gpu_power_w(prefill_power, clock, 1.0, compute_share, stream_share)
    decode_gpus = decode_workers * decode_tp * decode_dp
    if aggregated:
        prefill_gpus = 0
        decode_gpu_w = utilisation * prefill_gpu_w + (1.0 - utilisation) * decode_gpu_w
        prefill_gpu_w = 0.0
    else:
        prefill_gpus = prefill_workers * prefill_tp * prefill_dp * prefill_pp
        prefill_gpu_w = gpu_power_w(prefill_power, clock, utilisation, compute_share, stream_share)
    gpus = prefill_gpus + decode_gpus
    gpu_w = (prefill_gpus * prefill_gpu_w + decode_gpus * decode_gpu_w) / gpus
    it_w = decode_gpus * rack_power_w(decode_power, decode_gpu_w) / decode_power[POWER_GPUS]
    if prefill_gpus:
        it_w += prefill_gpus * rack_power_w(prefill_power, prefill_gpu_w) / prefill_power[POWER_GPUS]
    tokens_per_s = requests_per_s * output_tokens
    return ServingPoint(
        rack=rack.id,
        prefill_rack=front.id,
        model=model.id,
        precision=precision,
        mode=mode,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        prefill_workers=0 if aggregated else prefill_workers,
        prefill_tp=0 if aggregated else int(prefill_tp),
        prefill_dp=0 if aggregated else int(prefill_dp),
        prefill_pp=0 if aggregated else int(prefill_pp),
        decode_workers=decode_workers,
        decode_tp=int(decode_tp),
        decode_dp=int(decode_dp),
        mtp=mtp,
        clock=clock,
        gpus=int(gpus),
        ttft_s=float(ttft_s),
        tpot_s=float(tpot_s),
        tokens_per_s_per_user=float(1.0 / tpot_s),
        requests_per_s=float(requests_per_s),
        output_tokens_per_s=float(tokens_per_s),
        output_tokens_per_s_per_gpu=float(tokens_per_s / gpus),
        batch=float(batch),
        prefill_utilisation=float(utilisation),
        gpu_power_w=float(gpu_w),
        power_w_per_gpu=float(it_w / gpus),
        output_tokens_per_joule=float(tokens_per_s / it_w),
        hypothetical=rack.hypothetical or front.hypothetical,
    )


def _worker_layouts(largest: int) -> Iterator[tuple[int, int]]:
    """Layouts (tp, dp) of one worker, in powers of two, up to a number of GPUs."""
    for tp in (1, 2, 4, 8, 16):
        for dp in _FRONTIER_SIZES:
            # Attention ranks within tensor-parallel groups wider than 8 are not run in practice.
            if tp * dp <= largest and (tp <= 8 or dp == 1):
                yield tp, dp


def _prefill_layouts(
    rack: Rack,
    model: Model,
    precision: str,
    prompt_tokens: int,
    profile: str | None,
    kv_precision: str,
    clock: float,
    ttft_limit_s: float,
) -> list[tuple[int, int, int]]:
    """Prefill layouts (tp, dp, pp) worth trying: those no other beats in both prompts per GPU and latency of one's own.

    Pipelines are for GPUs without a link between them. Those too slow for the limit on TTFT by themselves are left out.
    """
    group = rack.group("prefill")
    candidates: list[tuple[float, float, tuple[int, int, int]]] = []
    for tp, dp in _worker_layouts(min(group.link_domain_gpus, 16)):
        for pp in (1, 4, 8, 16) if group.link_domain_gpus < group.gpus else (1,):
            if tp * dp * pp > min(group.gpus, 16) or (pp > 1 and dp > 1):
                continue
            try:
                coefficients = prefill_coefficients(
                    rack, model, precision=precision, tp=tp, dp=dp, pp=pp, profile=profile, kv_precision=kv_precision
                )
            except ConfigError:
                continue
            scaling_s, fixed_s = prefill_work_s(np.array(coefficients), float(prompt_tokens), float(prompt_tokens) ** 2)
            lane_s = scaling_s / compute_rate(clock) + fixed_s
            if lane_s <= ttft_limit_s:
                gpu_s = lane_s * coefficients.gpus / coefficients.servers_per_replica
                candidates.append((gpu_s, lane_s, (tp, dp, pp)))
    kept: list[tuple[int, int, int]] = []
    fastest_s = math.inf
    for _, lane_s, layout in sorted(candidates):
        if lane_s < fastest_s:
            kept.append(layout)
            fastest_s = lane_s
    return kept


def serving_frontier(
    rack: Rack | str,
    model: Model | str,
    *,
    precision: str,
    prompt_tokens: int,
    output_tokens: int,
    tokens_per_s_per_user: float | Sequence[float] | None = None,
    tpot_s: float | None = None,
    ttft_limit_s: float = 10.0,
    objective: Literal["output_tokens_per_s_per_gpu", "output_tokens_per_joule"] = "output_tokens_per_s_per_gpu",
    modes: Sequence[Literal["disaggregated", "aggregated"]] = ("disaggregated", "aggregated"),
    prefill_rack: Rack | str | None = None,
    prefill_profile: str | None = None,
    decode_profile: str | None = None,
    mtp: bool = False,
    clock: float = 1.0,
    max_worker_gpus: int | None = None,
    kv_precision: str = "fp8",
) -> list[ServingPoint]:
    """Search layouts and loads for the best trade-off between speed per user and output per GPU (or per joule).

    Layouts are powers of two within one link domain with one to eight workers per phase, and users go to 131,072: a
    grid, so the frontier is a lower bound of what finer tuning finds. Users are powers of two on the whole frontier and
    tuned to 1 % where targets are given.

    Args:
        rack: Rack type or its catalogue name.
        model: Model or its catalogue name.
        precision: Weight precision.
        prompt_tokens: Tokens of every prompt.
        output_tokens: Tokens of every answer.
        tokens_per_s_per_user: Speed targets; the result is then the best point that meets each of them (targets that
            no point meets are left out). None returns the whole frontier.
        tpot_s: The same as one target, as time per output token.
        ttft_limit_s: Points with a longer TTFT are left out.
        objective: What is to be large beside the speed.
        modes: Modes to search.
        prefill_rack: Rack type of prefill workers in disaggregated mode; None is ``rack``.
        prefill_profile: Power profile of the prefill racks.
        decode_profile: Power profile of the decode racks.
        mtp: Whether multi-token prediction is on.
        clock: SM clock of all GPUs.
        max_worker_gpus: Largest worker; None is the link domain.
        kv_precision: Precision of the KV cache.

    Returns:
        Pareto-optimal points with their layouts, fastest user last; empty where nothing meets the limits.

    Raises:
        ConfigError: On an unknown name, a value out of range, or a model that fits no layout.
    """
    rack, model = find_rack(rack), find_model(model)
    front = rack if prefill_rack is None else find_rack(prefill_rack)
    objectives = ("output_tokens_per_s_per_gpu", "output_tokens_per_joule")
    if objective not in objectives:
        raise unknown("objective", objective, objectives)
    if isinstance(modes, str) or not modes:
        raise ConfigError(f"modes: {modes!r} is not allowed; must be a list out of {', '.join(MODES)}.")
    for mode in modes:
        if mode not in MODES:
            raise unknown("modes", mode, MODES)
    prompt_tokens = _whole("prompt_tokens", prompt_tokens, 1)
    if tpot_s is not None:
        if tokens_per_s_per_user is not None:
            raise ConfigError("tpot_s, tokens_per_s_per_user: give one of them, not both.")
        tokens_per_s_per_user = 1.0 / check_range("tpot_s", tpot_s, 1e-6, 1e3, "s")
    check_range("ttft_limit_s", ttft_limit_s, 1e-6, math.inf, "s")
    group = rack.group("decode")
    largest = group.link_domain_gpus if max_worker_gpus is None else _whole("max_worker_gpus", max_worker_gpus, 1, 4096)
    refusal: ConfigError | None = None
    fits = False
    front_layouts: list[tuple[int, int, int]] = []
    if "disaggregated" in modes:
        front_layouts = _prefill_layouts(
            front, model, precision, prompt_tokens, prefill_profile, kv_precision, clock, ttft_limit_s
        )

    def evaluate(layout: dict[str, Any], users: int) -> ServingPoint:
        return serving_point(
            rack,
            model,
            precision=precision,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            concurrency=users,
            decode_profile=decode_profile,
            mtp=mtp,
            clock=clock,
            kv_precision=kv_precision,
            **layout,
        )

    def score(point: ServingPoint) -> float:
        return float(getattr(point, objective))

    curves: list[tuple[dict[str, Any], list[ServingPoint]]] = []
    for tp, dp in _worker_layouts(largest):
        try:
            decode_coefficients(
                rack, model, precision=precision, tp=tp, dp=dp, profile=decode_profile, kv_precision=kv_precision
            )
        except ConfigError as error:
            refusal = error
            continue
        fits = True
        for layout in _layouts(
            front, front_layouts, "aggregated" in modes and front is rack and len(rack.groups) == 1, prefill_profile
        ):
            layout |= {"decode_tp": tp, "decode_dp": dp}
            curve: list[ServingPoint] = []
            for exponent in range(_LARGEST_EXPONENT + 1):
                try:
                    curve.append(evaluate(layout, 2**exponent))
                except ConfigError as error:
                    refusal = error
                    break
                if curve[-1].ttft_s > ttft_limit_s:
                    break
            if curve:
                curves.append((layout, curve))
    if refusal is not None and (not curves or not fits):
        raise refusal
    if tokens_per_s_per_user is None:
        return _pareto([point for _, curve in curves for point in curve if point.ttft_s <= ttft_limit_s], objective)

    if isinstance(tokens_per_s_per_user, str):
        raise ConfigError(f"tokens_per_s_per_user: {tokens_per_s_per_user!r} is not allowed; must be numbers.")
    targets = np.atleast_1d(np.asarray(tokens_per_s_per_user, dtype=np.float64)).tolist()
    found: list[ServingPoint] = []
    for target in sorted(targets):
        check_range("tokens_per_s_per_user", target, 1e-3, 1e6)
        best: ServingPoint | None = None
        for layout, curve in curves:
            meeting = [p for p in curve if p.ttft_s <= ttft_limit_s and p.tokens_per_s_per_user >= target]
            if not meeting:
                continue
            # Speed falls and output grows with users, so the best load lies between the last that meets the target
            # and the next; layouts that cannot beat the best even there are not refined.
            reach = curve[: len(meeting) + 1]
            if best is not None and max(score(point) for point in reach) <= score(best):
                continue
            low, high = meeting[-1].concurrency, reach[-1].concurrency
            while high - low > max(1, low // 100):
                middle = (low + high) // 2
                point = evaluate(layout, middle)
                if point.ttft_s <= ttft_limit_s and point.tokens_per_s_per_user >= target:
                    meeting.append(point)
                    low = middle
                else:
                    high = middle
            candidate = max(meeting, key=score)
            if best is None or score(candidate) > score(best):
                best = candidate
        if best is not None:
            found.append(best)
    return found


def _layouts(
    front: Rack, front_layouts: Sequence[tuple[int, int, int]], aggregated: bool, prefill_profile: str | None
) -> Iterator[dict[str, Any]]:
    """Everything of a layout but the decode worker, as keywords of :func:`serving_point`."""
    if aggregated:
        yield {"mode": "aggregated", "decode_workers": 1}
    for tp, dp, pp in front_layouts:
        for prefill_workers, decode_workers in _WORKER_RATIOS:
            yield {
                "mode": "disaggregated",
                "prefill_workers": prefill_workers,
                "prefill_tp": tp,
                "prefill_dp": dp,
                "prefill_pp": pp,
                "prefill_rack": front,
                "prefill_profile": prefill_profile,
                "decode_workers": decode_workers,
            }


def _pareto(points: Sequence[ServingPoint], objective: str) -> list[ServingPoint]:
    """Points that no other beats in both speed per user and the objective, by rising speed."""
    kept: list[ServingPoint] = []
    best = 0.0
    for point in sorted(
        points, key=lambda entry: (entry.tokens_per_s_per_user, getattr(entry, objective)), reverse=True
    ):
        # Layouts that differ in nothing but the number of copies of one unit differ by rounding only.
        if getattr(point, objective) > best * (1.0 + 1e-9):
            kept.append(point)
            best = getattr(point, objective)
    return kept[::-1]
