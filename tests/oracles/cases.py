"""Settings on which the engine and the oracles meet: sites, traffic and orders of the operator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.engine.layout import (
    Cell,
    Class,
    ClassSpec,
    Log,
    Params,
    Pool,
    PoolSpec,
    Purpose,
    Site,
    SiteInt,
    SiteSpec,
    World,
)
from ai_factory_gym.engine.simulator import Decision, Engine, Episode
from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.workload.traces import Trace
from tests.oracles.events import Outcome, Request, Setting, simulate

Floats = NDArray[np.float64]

CONTROL_INTERVAL_S = 10.0
NEVER_S = 1e6
"""Span of a trace that is not to repeat, s."""


def small_site(name: str, model: str, pools: list[dict[str, object]], **options: object) -> SiteConfig:
    """Return a site with a cap nobody reaches and one class, unless ``options`` say otherwise."""
    table: dict[str, object] = {
        "name": name,
        "cap_w": 1e10,
        "model": model,
        "demand_rps": 1.0,
        "mix": {"chat": 1.0},
        "pools": pools,
        "drain_s": 15.0,
    }
    return load_site(table | options)


@dataclass(frozen=True)
class Traffic:
    """Requests to draw.

    Attributes:
        requests: How many.
        load: Mean arrival rate as a share of what the tighter phase can serve with every rack at clock 1.
        prompt: Median and sigma of the log-normal prompt length, and its largest value, tokens.
        output: The same of the output.
        burst: Rate in the busy state over the mean rate; 1 is a Poisson process.
        long_answers: Share of requests whose output is 12 times longer.
        long_share: The same of the prompt.
        seed: Seed.
    """

    requests: int
    load: float
    prompt: tuple[float, float, float] = (700.0, 0.9, 16000.0)
    output: tuple[float, float, float] = (150.0, 0.8, 2000.0)
    burst: float = 1.0
    long_answers: float = 0.0
    long_share: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class Case:
    """One setting.

    Attributes:
        name: Short name.
        site: The site.
        traffic: What arrives.
        orders: (share of the run, clock factor of all pools, racks per pool or None for all).
        patience_s: Patience of every class; None is the classes' own.
        slow: Whether it takes long.
    """

    name: str
    site: SiteConfig
    traffic: Traffic
    orders: tuple[tuple[float, float, tuple[int, ...] | None], ...] = ()
    patience_s: float | None = None
    slow: bool = False


def draw_trace(case: Case, grain: str = "request") -> tuple[Trace, Params]:
    """Draw a case's requests and build the site's arrays for replaying them once, unshifted."""
    site, traffic = case.site, case.traffic
    rng = np.random.default_rng(traffic.seed)
    n = traffic.requests

    def lengths(median: float, sigma: float, most: float) -> Floats:
        return np.clip(np.round(median * np.exp(sigma * rng.standard_normal(n))), 1.0, most)

    prompt = lengths(*traffic.prompt)
    prompt = np.where(rng.random(n) < traffic.long_share, np.minimum(prompt * 12.0, traffic.prompt[2]), prompt)
    output = lengths(*traffic.output)
    if traffic.long_answers > 0.0:
        output = np.where(rng.random(n) < traffic.long_answers, np.minimum(output * 12.0, traffic.output[2]), output)
    gaps = rng.exponential(size=n)
    if traffic.burst > 1.0:
        # Two states of equal probability per request, held for 200 requests on average: a rate far from Poisson's.
        state = np.cumsum(rng.random(n) < 1.0 / 200.0) % 2
        slow = 1.0 / (2.0 - 1.0 / traffic.burst)
        gaps /= np.where(state == 1, traffic.burst, slow)
    unit = Trace(np.cumsum(gaps), prompt, output, span_s=NEVER_S)
    params = build(site, unit, grain)
    rate = traffic.load * capacity_rps(params)
    trace = Trace(np.cumsum(gaps) * (n / gaps.sum() / rate), prompt, output, span_s=NEVER_S)
    params = build(site, trace, grain)
    if case.patience_s is not None:
        params.cls[:, ClassSpec.PATIENCE_S] = case.patience_s
    return trace, params


def build(site: SiteConfig, trace: Trace, grain: str) -> Params:
    """Build the arrays for replaying a trace."""
    params = build_params(
        site, served_classes(site), resolution(grain), control_interval_s=CONTROL_INTERVAL_S, trace=trace
    )
    # Racks wake in less than a real one's eight minutes, so that a short run sees them wake.
    params.pool[:, PoolSpec.WAKE_S] = 25.0
    params.pool[:, PoolSpec.DWELL_S] = 0.0
    return params


def capacity_rps(params: Params) -> float:
    """Return the arrival rate the tighter phase can serve with every rack at clock 1, mix of groups as it comes."""
    groups = params.capacity.shape[1]
    share = np.bincount(params.cell[:, Cell.GROUP].astype(int), params.cell[:, Cell.WEIGHT], minlength=groups)
    share = share / share.sum()
    total = params.capacity @ params.pool[:, PoolSpec.RACKS]
    seconds = np.where(share > 0.0, share / np.maximum(total, 1e-300), 0.0).sum(axis=1)
    return float(1.0 / seconds.max())


def horizon_s(trace: Trace) -> float:
    """Return the end of the metered window: the control step in which the last request arrives."""
    return math.ceil(float(trace.arrival_s[-1]) / CONTROL_INTERVAL_S) * CONTROL_INTERVAL_S


def settings_of(case: Case, trace: Trace, params: Params) -> list[Setting]:
    """Return the orders of a case at the control steps where they come into force."""
    racks = tuple(int(count) for count in params.pool[:, PoolSpec.RACKS])
    pools = len(racks)
    settings = [Setting(0.0, (1.0,) * pools, racks)]
    for share, clock, wanted in case.orders:
        step = round(share * horizon_s(trace) / CONTROL_INTERVAL_S)
        settings.append(Setting(step * CONTROL_INTERVAL_S, (clock,) * pools, racks if wanted is None else wanted))
    return settings


def run_engine(params: Params, trace: Trace, settings: list[Setting], *, slots: int = 0) -> Outcome:
    """Replay a trace at request resolution until every fate is decided and read the request log."""
    pools = len(params.pool)
    engine = Engine(params, log_lines=len(trace), slots=slots)
    engine.begin(0, replay_episode(params, 0.0))
    engine.open_window(0)
    row = np.array([0])
    groups = params.capacity.shape[1]
    until_s = horizon_s(trace)
    energy_j = math.nan
    peak = 0.0
    pending = list(settings)
    setting = pending[0]
    now_s = 0.0
    for _ in range(100_000):
        while pending and pending[0].time_s <= now_s + 1e-9:
            setting = pending.pop(0)
        decision = Decision(
            np.ones((1, 2, groups, pools)),
            np.array([setting.clock]),
            np.full((1, pools), np.inf),
            np.array([setting.racks], dtype=np.int64),
        )
        engine.step(row, decision)
        now_s = float(engine.state.site[0, Site.TIME_S])
        peak = max(peak, float(engine.state.pool[0, :, Pool.IN_FLIGHT].sum()))
        if abs(now_s - until_s) < 1e-6:
            energy_j = float(engine.state.site[0, Site.ENERGY_J])
        if now_s >= until_s - 1e-6 and engine.state.site_int[0, SiteInt.LOGGED] >= len(trace):
            break
    else:
        raise AssertionError("the engine never finished the trace")
    counters = engine.state.cls[0].sum(axis=0)
    assert counters[Class.ARRIVED] == len(trace) == counters[Class.MET] + counters[Class.MISSED]
    log = engine.state.log[0]
    log = log[np.argsort(log[:, Log.ARRIVAL_S], kind="stable")]
    assert np.allclose(log[:, Log.ARRIVAL_S], trace.arrival_s, rtol=0.0, atol=1e-6)
    assert np.array_equal(np.sort(log[:, Log.OUTPUT]), np.sort(trace.output_tokens))
    ttft_s = log[:, Log.TTFT_S]
    return Outcome(
        log[:, Log.CLASS].astype(np.int64), ttft_s, log[:, Log.TPOT_S], log[:, Log.MET] > 0.0, energy_j, peak
    )


def replay_episode(params: Params, start_s: float, rate: Floats | None = None, seed: int = 0) -> Episode:
    """Return an episode under a cap nobody reaches: synthetic demand, and a trace from ``start_s`` on if there is one."""
    streams = dict(zip(Purpose, np.random.default_rng(seed).spawn(len(Purpose)), strict=True))
    cap = np.array([[-np.inf, 1e12, -np.inf]])
    rate = np.zeros((len(params.cls), 1)) if rate is None else rate
    copies = int(len(params.trace_time) > 0)
    kept = np.ones(len(params.trace_time), dtype=np.bool_)
    world = steady_world(params, rate.shape[1])
    return Episode(start_s, rate, np.zeros(rate.shape[1]), cap, np.full(copies, start_s), kept, streams, world)


def steady_world(params: Params, minutes: int) -> Floats:
    """Return what is around a site when nothing varies: the outdoor temperature it is built for, no price and no carbon."""
    world = np.zeros((minutes, len(World)))
    world[:, World.OUTDOOR_C] = params.site[SiteSpec.OUTDOOR_C]
    return world


def run_oracle(params: Params, trace: Trace, settings: list[Setting], *, own_batches: bool = False) -> Outcome:
    """Run an event simulation on the same requests."""
    requests = [
        Request(i, float(trace.arrival_s[i]), 0, float(trace.prompt_tokens[i]), float(trace.output_tokens[i]))
        for i in range(len(trace))
    ]
    return simulate(params, requests, settings, until_s=horizon_s(trace), own_batches=own_batches)


def _h100(phase: str, racks: int, **options: object) -> dict[str, object]:
    return {"rack": "h100_sxm8", "phase": phase, "racks": racks, "precision": "fp8"} | options


def _gb300(phase: str, racks: int, **options: object) -> dict[str, object]:
    return {"rack": "gb300_nvl72", "phase": phase, "racks": racks} | options


def _single() -> Case:
    pools = [_h100("prefill", 1, tp=8), _h100("decode", 1, tp=8)]
    return Case("one replica", small_site("single", "llama-3.1-70b", pools), Traffic(4000, 0.6))


def _light() -> Case:
    pools = [_gb300("prefill", 1, dp=4), _gb300("decode", 1, dp=8, mtp=True)]
    return Case("light load 0.3", small_site("light", "deepseek-r1", pools), Traffic(12000, 0.3))


def _heavy() -> Case:
    pools = [_h100("prefill", 3, tp=4), _h100("decode", 6, tp=4)]
    return Case("load 0.95", small_site("heavy", "llama-3.1-70b", pools), Traffic(12000, 0.95, seed=2))


def _overload() -> Case:
    pools = [_h100("prefill", 2, tp=4), _h100("decode", 8, tp=4)]
    return Case("overload 1.1", small_site("overload", "llama-3.1-70b", pools), Traffic(12000, 1.1, seed=3))


def _bursty() -> Case:
    pools = [_gb300("prefill", 1, dp=4), _gb300("decode", 1, dp=8, mtp=True)]
    traffic = Traffic(20000, 0.7, burst=4.0, seed=4)
    return Case("bursty 0.7", small_site("bursty", "deepseek-r1", pools), traffic)


def _clock() -> Case:
    pools = [_h100("prefill", 3, tp=4), _h100("decode", 6, tp=4)]
    orders = ((0.3, 0.55, None), (0.7, 0.8, None))
    return Case("clock change", small_site("clock", "llama-3.1-70b", pools), Traffic(12000, 0.6, seed=5), orders)


def _racks() -> Case:
    pools = [_h100("prefill", 4, tp=4), _h100("decode", 8, tp=4)]
    orders = ((0.15, 1.0, (2, 3)), (0.35, 1.0, (4, 8)))
    return Case("rack change", small_site("racks", "llama-3.1-70b", pools), Traffic(20000, 0.5, seed=6), orders)


def _kv_bound() -> Case:
    pools = [_h100("prefill", 6, tp=8), _h100("decode", 1, tp=8)]
    site = small_site("kv", "llama-3.1-405b", pools)
    # Nobody is turned away: with few requests who is would hang on rounding.
    traffic = Traffic(3000, 1.0, (2500.0, 0.4, 8000.0), (300.0, 0.6, 2000.0), seed=7)
    return Case("KV memory binds", site, traffic, patience_s=math.inf)


def _places_bound() -> Case:
    # Few long answers among many short ones: most places are held by those who stay long, most are freed by the others.
    pools = [_gb300("prefill", 1, dp=4), _gb300("decode", 1, dp=8, mtp=True, max_batch=58)]
    traffic = Traffic(20000, 1.25, output=(60.0, 0.5, 4000.0), long_answers=0.06, seed=11)
    return Case("batch places bind", small_site("places", "deepseek-r1", pools), traffic)


def _places_wait() -> Case:
    return dataclasses.replace(_places_bound(), name="batch places bind, nobody turned away", patience_s=math.inf)


def _long_prompts() -> Case:
    pools = [
        _gb300("prefill", 2, dp=4),
        {"rack": "rubin_cpx_sidecar", "phase": "prefill", "racks": 1, "pp": 8},
        _gb300("decode", 1, dp=8, mtp=True),
        {"rack": "vera_rubin_nvl144", "phase": "decode", "racks": 1, "profile": "max_q", "dp": 8, "mtp": True},
    ]
    site = small_site("long", "deepseek-r1", pools, mix={"coding": 1.0})
    traffic = Traffic(15000, 0.8, (2500.0, 1.0, 120000.0), (230.0, 0.8, 4000.0), long_share=0.05, seed=8)
    return Case("long prompts, 4 pools", site, traffic)


def _large() -> Case:
    decode = {"rack": "b200_sxm8", "phase": "decode", "racks": 250, "tp": 1}
    prefill = {"rack": "b200_sxm8", "phase": "prefill", "racks": 40, "tp": 1}
    site = small_site("large", "gpt-oss-120b", [prefill, decode])
    return Case("2,000 replicas", site, Traffic(40000, 0.6, seed=9), slow=True)


CASES: dict[str, Callable[[], Case]] = {
    "single": _single,
    "light": _light,
    "heavy": _heavy,
    "overload": _overload,
    "bursty": _bursty,
    "clock": _clock,
    "racks": _racks,
    "kv_bound": _kv_bound,
    "places_bound": _places_bound,
    "places_wait": _places_wait,
    "long_prompts": _long_prompts,
    "large": _large,
}
