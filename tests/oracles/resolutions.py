"""The same requests at request resolution and grouped into cohorts: what grouping costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.engine.layout import Cell, Class, Log, PoolSpec, Site, SiteInt
from ai_factory_gym.engine.simulator import Decision, Engine
from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.workload.traces import Trace
from tests.oracles.cases import NEVER_S, capacity_rps, replay_episode, small_site

Floats = NDArray[np.float64]

CONTROL_INTERVAL_S = 60.0
MOST_LINES = 6_000_000


@dataclass(frozen=True)
class Setup:
    """A site under a load.

    Attributes:
        name: Short name.
        site: The site.
        load: Mean arrival rate over what the tighter phase can serve, every rack awake at clock 1.
        minutes: Scored time.
        warm_minutes: Time to fill the site before; requests that arrive in it are not scored.
        replay: Replay one drawn trace in every resolution, so that the very same requests come. Otherwise each resolution
            draws from the same intensities: for large sites, whose trace would be too large.
        swing: Relative amplitude of a sine of five minutes in the rate.
        clock: Clock ceiling from the middle of the scored time on.
        awake: Share of racks awake from the middle on.
        seed: Seed.
    """

    name: str
    site: SiteConfig
    load: float
    minutes: int = 2
    warm_minutes: int = 2
    replay: bool = False
    swing: float = 0.0
    clock: float = 1.0
    awake: float = 1.0
    seed: int = 5


@dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        attainment: Share of scored requests that met both promises.
        by_class: The same of each class.
        ttft_s: p50, p90 and p99 of TTFT.
        slowest_ttft_s: Mean TTFT of the slowest tenth of the requests. Cohorts carry the mean of their stratum, so that a
            quantile at the edge of a stratum (0.5, 0.9) can lie on either side of it, and this mean cannot.
        prompt_tokens_met: Share of prompt tokens whose requests met both promises, by the mean prompts of the classes.
        tpot_s: Mean TPOT.
        energy_j: Facility energy of the scored time.
        rejected: Share turned away.
        cohorts: Cohorts per minute of scored time.
    """

    attainment: float
    by_class: Floats
    ttft_s: tuple[float, float, float]
    slowest_ttft_s: float
    prompt_tokens_met: float
    tpot_s: float
    energy_j: float
    rejected: float
    cohorts: float


@dataclass(frozen=True)
class Demand:
    """What arrives: requests/s of each class and minute, and for a replay the requests themselves with their classes."""

    rate: Floats
    trace: Trace | None
    label: NDArray[np.int64] | None


def draw_demand(setup: Setup) -> Demand:
    """Draw a setup's demand."""
    rng = np.random.default_rng(setup.seed)
    classes = served_classes(setup.site)
    share = np.array([setup.site.mix[cls.name] for cls in classes])
    plain = build_params(setup.site, classes, resolution("cohort"), control_interval_s=CONTROL_INTERVAL_S)
    plain.cell[:, Cell.WEIGHT] *= share[plain.cell[:, Cell.CLASS].astype(int)]
    minutes = setup.warm_minutes + setup.minutes
    wave = 1.0 + setup.swing * np.sin(2.0 * np.pi * np.arange(minutes) / 5.0)
    rate = share[:, None] * setup.load * capacity_rps(plain) * wave
    if not setup.replay:
        return Demand(rate, None, None)
    counts = rng.poisson(60.0 * rate)
    label = np.repeat(np.tile(np.arange(len(classes)), minutes), counts.T.reshape(-1))
    start_s = np.repeat(np.repeat(60.0 * np.arange(minutes), len(classes)), counts.T.reshape(-1))
    arrival_s = start_s + 60.0 * rng.random(len(label))
    order = np.argsort(arrival_s)
    label = label[order]
    prompt = np.ones(len(label))
    output = np.ones(len(label))
    for index, cls in enumerate(classes):
        mine = label == index
        prompt[mine] = np.maximum(1.0, np.round(cls.prompt.sample(rng.random(mine.sum()))))
        output[mine] = np.maximum(1.0, np.round(cls.output.sample(rng.random(mine.sum()))))
    return Demand(rate, Trace(arrival_s[order], prompt, output, span_s=NEVER_S), label)


def run(setup: Setup, grain: str, demand: Demand) -> Summary:
    """Run a setup's demand at a resolution until every scored fate is decided."""
    params = build_params(
        setup.site,
        served_classes(setup.site),
        resolution(grain),
        control_interval_s=CONTROL_INTERVAL_S,
        deferrable=False,
        trace=demand.trace,
        trace_labels=demand.label,
    )
    params.pool[:, PoolSpec.WAKE_S] = 0.5 * CONTROL_INTERVAL_S
    scored = 60.0 * demand.rate[:, setup.warm_minutes :].sum()
    engine = Engine(params, log_lines=min(MOST_LINES, int(1.1 * scored)) if grain == "request" else 100_000)
    start_s = -60.0 * setup.warm_minutes
    engine.begin(0, replay_episode(params, start_s, demand.rate, setup.seed))
    pools = len(params.pool)
    racks = params.pool[:, PoolSpec.RACKS]
    for minute in range(-setup.warm_minutes, setup.minutes + 60):
        if minute == 0:
            engine.open_window(0)
            routed = int(engine.state.site_int[0, SiteInt.ROUTED])
        if minute == setup.minutes:
            energy_j = float(engine.state.site[0, Site.ENERGY_J])
            routed = int(engine.state.site_int[0, SiteInt.ROUTED]) - routed
            engine.close_window(0)
        counters = engine.state.cls[0]
        undecided = counters[:, Class.ARRIVED] - counters[:, Class.MET] - counters[:, Class.MISSED]
        if minute >= setup.minutes and not undecided.any():
            break
        late = minute >= setup.minutes / 2
        wanted = np.maximum(1, np.round(racks * (setup.awake if late else 1.0))).astype(np.int64)
        engine.step(
            np.array([0]),
            Decision(
                np.ones((1, 2, params.capacity.shape[1], pools)),
                np.full((1, pools), setup.clock if late else 1.0),
                np.full((1, pools), np.inf),
                wanted[None],
            ),
        )
    else:
        raise AssertionError("some fates were never decided")
    lines = int(engine.state.site_int[0, SiteInt.LOGGED])
    assert lines < engine.state.log.shape[1]
    log = engine.state.log[0, :lines]
    log = log[np.isfinite(log[:, Log.TTFT_S])]
    log = log[np.argsort(log[:, Log.TTFT_S])]
    upto = np.cumsum(log[:, Log.COUNT])
    quantiles = [float(log[np.searchsorted(upto, q * upto[-1]), Log.TTFT_S]) for q in (0.5, 0.9, 0.99)]
    slowest = np.clip(upto - 0.9 * upto[-1], 0.0, log[:, Log.COUNT])
    counters = engine.state.cls[0]
    arrived = counters[:, Class.ARRIVED]
    prompts = np.array([cls.prompt.mean() for cls in served_classes(setup.site)])
    return Summary(
        attainment=float(counters[:, Class.MET].sum() / arrived.sum()),
        by_class=counters[:, Class.MET] / arrived,
        ttft_s=(quantiles[0], quantiles[1], quantiles[2]),
        slowest_ttft_s=float(slowest @ log[:, Log.TTFT_S] / slowest.sum()),
        prompt_tokens_met=float(prompts @ counters[:, Class.MET] / (prompts @ arrived)),
        tpot_s=float(counters[:, Class.TPOT_SUM_S].sum() / counters[:, Class.TPOT_COUNT].sum()),
        energy_j=energy_j,
        rejected=float(counters[:, Class.REJECTED].sum() / arrived.sum()),
        cohorts=routed / setup.minutes,
    )


def edge() -> SiteConfig:
    """Return the edge site with its own pools."""
    return load_site("edge")


def one_rack_each() -> SiteConfig:
    """Return a site of one rack per phase."""
    pools: list[dict[str, object]] = [
        {"rack": "gb300_nvl72", "phase": "prefill", "racks": 1, "dp": 4},
        {"rack": "gb300_nvl72", "phase": "decode", "racks": 1, "dp": 8, "mtp": True},
    ]
    mix = {"chat": 0.7, "ecommerce_agent": 0.28, "coding": 0.02}
    return small_site("one rack each", "deepseek-r1", pools, mix=mix)


def eight_gpu_systems() -> SiteConfig:
    """Return a site of twenty systems of eight GPUs."""
    pools: list[dict[str, object]] = [
        {"rack": "h100_sxm8", "phase": "prefill", "racks": 8, "precision": "fp8", "tp": 4},
        {"rack": "h100_sxm8", "phase": "decode", "racks": 12, "precision": "fp8", "tp": 4},
    ]
    mix = {"chat": 0.7, "customer_service": 0.3}
    return small_site("8-GPU systems", "llama-3.1-70b", pools, mix=mix)


def _edge(name: str, load: float, **options: float) -> Callable[[], Setup]:
    return lambda: Setup(f"edge, {name}", edge(), load, warm_minutes=8, **options)  # type: ignore[arg-type]


def _small(name: str, site: Callable[[], SiteConfig], load: float) -> Callable[[], Setup]:
    return lambda: Setup(f"{name}, load {load:g}", site(), load, minutes=6, replay=True)


SETUPS: dict[str, Callable[[], Setup]] = {
    "edge_30": _edge("load 0.3", 0.3),
    "edge_60": _edge("load 0.6", 0.6),
    "edge_90": _edge("load 0.9", 0.9),
    "edge_105": _edge("load 1.05", 1.05, replay=True, minutes=6),
    "edge_swing": _edge("load 0.7 +- 40 %", 0.7, swing=0.4, minutes=5),
    "edge_throttled": _edge("load 0.5, clock 0.6 midway", 0.5, clock=0.6, minutes=4),
    "edge_asleep": _edge("load 0.4, half the racks sleep midway", 0.4, awake=0.5, minutes=6),
    "rack_60": _small("one rack each", one_rack_each, 0.6),
    "rack_90": _small("one rack each", one_rack_each, 0.9),
    "rack_105": _small("one rack each", one_rack_each, 1.05),
    "systems_60": _small("8-GPU systems", eight_gpu_systems, 0.6),
    "systems_90": _small("8-GPU systems", eight_gpu_systems, 0.9),
}
