"""What a control step's cost depends on at cohort resolution: not on the number of requests, but on cells, pools and the hour."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ai_factory_baselines as baselines
from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.engine.layout import DECODE, PoolSpec
from ai_factory_gym.factory import Factory
from ai_factory_gym.grid.series import SYNTHETIC, UNITS
from ai_factory_gym.levers import LEVERS
from ai_factory_gym.params import RESOLUTIONS, Resolution
from ai_factory_gym.sites import BatteryConfig, CacheConfig, RampConfig, StorageConfig, StoreConfig, load_site
from ai_factory_gym.sites.generation import unit
from ai_factory_gym.sites.money import MoneyConfig, Tariff
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.workload.classes import Session
from benchmarks.anatomy import COUNTERS, counters
from benchmarks.environments import NOON, NOON_S
from benchmarks.measure import Effort, Paired, cartpole_line, drawn_actions, number, paired, spread, table
from benchmarks.sites import scaled_site, split_pools, two_pool_site, with_classes

HOUR_S = 3600.0


class Probe:
    """Steps of an environment without wrappers from its reset on, and what they met.

    Args:
        env: The environment.
        actions: float32[steps, actions]; None lets ``reactive`` act, its decisions not timed.
        steps: Steps of a measurement when ``reactive`` acts.
    """

    def __init__(self, env: AIFactoryEnv, actions: NDArray[np.float32] | None, steps: int = 0) -> None:
        """Take what acts."""
        self.env = env
        self.actions = actions
        self.steps = steps if actions is None else len(actions)
        self.rule = baselines.make("reactive", env) if actions is None else None
        self.counted = np.zeros(len(COUNTERS))
        self.braked = 0.0

    def __call__(self) -> float:
        """Return seconds per step."""
        env = self.env
        observation, _ = env.reset(seed=1)
        before = counters(env)
        seconds = 0.0
        memory: Any = None
        info: Mapping[str, float] = {}
        for step in range(self.steps):
            if self.rule is None:
                assert self.actions is not None
                action = self.actions[step]
            else:
                action, memory = self.rule.predict(observation, memory)
            begin = time.perf_counter()
            observation, _, _, _, info = env.step(action)
            seconds += time.perf_counter() - begin
        self.counted = (counters(env) - before) / self.steps
        self.braked = info["brake_s"] / info["time_s"]
        return seconds / self.steps


STEADY = {"scenario": "steady"}
"""For what differs in the site: without a daily curve all are equally busy."""


def make(**settings: Any) -> AIFactoryEnv:
    """Return an environment from noon on, Edge unless another site is given, without the wrappers of ``gym.make``."""
    return AIFactoryEnv(**{"site": "edge", "lambda_tokens_per_joule": 1.0, **NOON, **settings})


def with_grain(grain: Resolution, **settings: Any) -> AIFactoryEnv:
    """Return an environment at a resolution that has no name; its spaces are those of the named ones."""
    env = make(**settings)
    env.task = dataclasses.replace(env.task, grain=grain)
    env.factory = Factory(env.task)
    return env


def probe(env: AIFactoryEnv, steps: int) -> Probe:
    """Return a probe with small drawn actions."""
    assert env.action_space.shape is not None
    return Probe(env, drawn_actions(steps, *env.action_space.shape))


def held(env: AIFactoryEnv, steps: int, *, decode_racks: float) -> Probe:
    """Return a probe with full clocks, all prefill racks awake, and the lever of decode racks at ``decode_racks``."""
    assert env.action_space.shape is not None
    action = np.zeros(env.action_space.shape, np.float32)
    action[env.action_layout["clock"]] = 1.0
    decoding = env.factory.params.pool[:, PoolSpec.PHASE] == DECODE
    action[env.action_layout["active_racks"]] = np.where(decoding, decode_racks, 1.0)
    return Probe(env, np.tile(action, (steps, 1)))


def _grains() -> dict[str, dict[str, AIFactoryEnv]]:
    """Return the environments of the tables on grouping."""
    cohort = RESOLUTIONS["cohort"]
    strata = {
        "one stratum per class and group": ((), (), 0),
        "strata, not cut further": (cohort.prompt_quantiles, cohort.output_quantiles, 0),
        "about 30 cohorts": (cohort.prompt_quantiles, cohort.output_quantiles, 30),
        f"about {cohort.cohorts} (`cohort`)": (cohort.prompt_quantiles, cohort.output_quantiles, cohort.cohorts),
        "about 120": (cohort.prompt_quantiles, cohort.output_quantiles, 120),
        "about 240": (cohort.prompt_quantiles, cohort.output_quantiles, 240),
    }
    cells = {
        name: with_grain(
            dataclasses.replace(cohort, prompt_quantiles=prompts, output_quantiles=outputs, cohorts=cohorts)
        )
        for name, (prompts, outputs, cohorts) in strata.items()
    }
    ticks = {
        f"{tick_s:g} s{' (`cohort`)' if tick_s == cohort.tick_s else ''}": with_grain(
            dataclasses.replace(cohort, tick_s=tick_s)
        )
        for tick_s in (60.0, 30.0, 15.0, 10.0, 5.0)
    }
    return {
        "cells of a tick": {f"{name}: {len(env.factory.params.cell)} cells": env for name, env in cells.items()},
        "length of a tick": ticks,
    }


def _sites(effort: Effort) -> dict[str, dict[str, AIFactoryEnv]]:
    """Return the environments of the tables on the site."""
    factors = (1, 10, 250) if effort.full else (1, 250)
    sizes = {}
    for factor in factors:
        site = scaled_site(factor)
        sizes[f"{site.demand_rps:,.0f} requests/s, {site.cap_w / 1e6:,.0f} MW"] = make(site=site, **STEADY)
    base = two_pool_site(40)
    pools = {
        f"{2 * parts} pools": make(site=split_pools(base, parts), **STEADY)
        for parts in ((1, 2, 4, 8) if effort.full else (1, 4))
    }
    # By share of requests, so that the first ones carry most.
    mix = load_site("edge").mix
    names = sorted(mix, key=lambda name: -mix[name])
    served = {}
    for count in (1, 2, 4, len(names)) if effort.full else (1, len(names)):
        env = make(site=with_classes(names[:count]), **STEADY)
        served[f"{count}, down to `{names[count - 1]}`: {len(env.factory.params.cell)} cells"] = env
    return {
        "requests per second, the same site larger": sizes,
        "pools, the same racks": pools,
        "classes, by share of requests": served,
    }


def _table(
    what: str, found: Mapping[str, Paired], probes: Mapping[str, Probe], base: str | None = None
) -> Iterator[str]:
    """Yield a table; costs are relative to ``base``, or to the first row."""
    first = found[base] if base is not None else next(iter(found.values()))
    rows = []
    for name, each in found.items():
        cost = each.against(first)
        rows.append(
            (
                name,
                number(1e6 * each.median_s),
                number(cost[1]),
                spread(cost),
                *(f"{value:,.0f}" for value in probes[name].counted),
                f"{100.0 * probes[name].braked:.0f} %",
            )
        )
    head = (what, "microseconds", "relative cost", "quartiles", *(f"{name} a step" for name in COUNTERS), "braked")
    yield from table(head, rows)
    yield ""


def _states(effort: Effort) -> dict[str, Probe]:
    """Return probes of one site in different states."""
    steps = effort.steps

    def at(hour: float, **settings: Any) -> AIFactoryEnv:
        return make(start_time_s=HOUR_S * hour, horizon_s=NOON_S, **settings)

    wide = at(12.0)
    assert wide.action_space.shape is not None
    return {
        "noon": probe(at(12.0), steps),
        "night, 3:00": probe(at(3.0), steps),
        "evening, 20:00": probe(at(20.0), steps),
        "noon, `reactive` acts": Probe(at(12.0), None, steps),
        "noon, actions from the whole range": Probe(wide, drawn_actions(steps, *wide.action_space.shape, span=1.0)),
        "noon, all levers": probe(
            at(12.0, levers=tuple(name for name in LEVERS if name not in ("battery", "training", "generation"))), steps
        ),
        "noon, all parts of a site but ramp limits, all levers": probe(at(12.0, **_everything(ramp=False)), steps),
        "noon, all parts of a site and all levers": probe(at(12.0, **_everything(ramp=True)), steps),
        "noon, demand x 1.3, full clocks: braked": held(at(12.0, demand_scale=1.3), steps, decode_racks=1.0),
        "noon, fewest decode racks: crowded": held(at(12.0), steps, decode_racks=-1.0),
    }


def _everything(ramp: bool) -> dict[str, Any]:
    """Return settings of the Edge site with every part a site may have, under a scenario that uses them, with every lever.

    Args:
        ramp: Whether ramp limits are among the parts: they cut steps into segments of a second.
    """
    edge = load_site("edge")
    classes = {name: edge.known_classes[name] for name in edge.mix}
    # Of every two requests one follows another within a minute and repeats most of its prompt.
    talks = dataclasses.replace(classes["chat"], requests_per_task=2.0, session=Session(reuse_share=0.8, think_s=60.0))
    pools = tuple(
        dataclasses.replace(pool, cache=CacheConfig(hbm_gb=100.0, host_gb=500.0, host_gb_s=1000.0))
        if pool.phase == "prefill"
        else dataclasses.replace(pool, hold_share=0.1)
        for pool in edge.pools
    )
    site = dataclasses.replace(
        edge,
        pools=pools,
        own_classes=(talks,),
        kv_store=StoreConfig(gb=1e5, gb_s=200.0),
        series=tuple((kind, SYNTHETIC) for kind in UNITS),
        battery=BatteryConfig(power_w=4e5, energy_wh=4e5),
        generation=(unit("engine", 5e5),),
        training=TrainingConfig("gb300_nvl72", 2),
        money=MoneyConfig(tariff=Tariff(0.5, 2.0), demand_usd_per_kw_month=12.0, coincident_usd_per_kw_year=100.0),
        cooling=dataclasses.replace(edge.cooling, coolant_limit_c=45.0, design_outdoor_c=30.0),
        reliability=ReliabilityConfig(gpu_group_share=0.6, nvlink_domain_share=0.1),
    )
    if ramp:
        # 5 % of the cap per minute.
        limit_w_per_s = 0.05 * edge.cap_w / 60.0
        site = dataclasses.replace(
            site, ramp=RampConfig(limit_w_per_s, limit_w_per_s), rack_storage=StorageConfig(("gb300_nvl72",))
        )
    return {
        "site": site,
        "scenario": "diurnal+faults+mismatch+price_spike+four_cp+agent_surge",
        "levers": LEVERS,
        "reward": "profit",
        "lambda_tokens_per_joule": 3.0,
    }


def _intervals(effort: Effort) -> dict[str, Probe]:
    """Return probes of an hour in control steps of different length."""
    lengths = (10.0, 30.0, 60.0, 300.0, 900.0) if effort.full else (30.0, 60.0)
    hour_s = HOUR_S if effort.full else 60.0 * effort.steps
    return {
        f"{length:g} s": probe(make(control_interval_s=length, warmup_s=900.0), max(1, round(hour_s / length)))
        for length in lengths
    }


def scaling(effort: Effort) -> Iterator[str]:
    """Yield the section on scaling, table by table."""
    everything: list[Paired] = []
    for what, envs in {**_sites(effort), **_grains()}.items():
        probes = {name: probe(env, effort.steps) for name, env in envs.items()}
        found = paired(probes, effort)
        everything += found.values()
        base = next((name for name in found if "(`cohort`)" in name), None)
        yield from _table(what, found, probes, base)
    states = _states(effort)
    found = paired(states, effort)
    everything += found.values()
    yield from _table("state of the site", found, states)
    intervals = _intervals(effort)
    found = paired(intervals, effort)
    everything += found.values()
    rows = []
    for name, each in found.items():
        per_hour = HOUR_S / intervals[name].env.task.control_interval_s
        cost = each.against(found["60 s"])
        rows.append(
            (name, number(1e6 * each.median_s), number(cost[1]), spread(cost), number(1e3 * per_hour * each.median_s))
        )
    head = ("control interval", "microseconds a step", "relative cost", "quartiles", "milliseconds per simulated hour")
    yield from table(head, rows)
    yield ""
    yield cartpole_line(everything)
