"""Sites, scenarios and levers nobody thought of: valid ones have to run, invalid ones have to be refused with one clear error.

``python -m tests.random_sites --valid 1000 --invalid 200`` runs as many of both from the root of the repository; a few run as a test.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.catalogue import model_ids, rack, rack_ids
from ai_factory_gym.engine.layout import Class, Pool
from ai_factory_gym.levers import LEVERS
from ai_factory_gym.operating_point import SteadySite
from ai_factory_gym.params import build_params, idle_facility_w, resolution, served_classes
from ai_factory_gym.scenarios import scenario_names
from ai_factory_gym.sites import CacheConfig, SiteConfig, StoreConfig, load_site
from ai_factory_gym.workload.classes import Session, load_classes

Table = dict[str, Any]


def propose(rng: np.random.Generator) -> Table:
    """Return the table of a site that may be possible: any racks, layouts, mix and cap."""

    def pool(phase: str) -> Table:
        kind = str(rng.choice(rack_ids()))
        cards = kind.endswith("sxm8")
        # Layouts near those in use: most of any others are impossible, which the error says, and nothing runs.
        tp, dp, pp = (
            [(1, 4, 1), (1, 8, 1), (4, 1, 1), (8, 1, 1), (1, 4, 1)][int(rng.integers(5))]
            if "cpx" not in kind or phase == "decode"
            else [(1, 1, 8), (1, 1, 4), (1, 4, 1)][int(rng.integers(3))]
        )
        entry: Table = {
            "rack": kind,
            "phase": phase,
            "racks": int(rng.integers(1, 12)),
            "precision": "fp8" if kind.startswith("h") or rng.random() < 0.2 else "fp4",
            "tp": 8 if cards else tp,
            "dp": 1 if cards else dp,
            "min_active": int(rng.integers(0, 2)),
        }
        if phase == "decode":
            entry |= {"mtp": bool(rng.integers(2)), "max_batch": int(rng.choice([64, 512, 4096]))}
        else:
            entry |= {"pp": 1 if cards else pp}
        return entry

    pools = [pool(phase) for phase in ("prefill", "decode") for _ in range(rng.integers(1, 4))]
    pools = couple(pools, rng)
    second = rng.random() < 0.3
    if second:
        # A second model of the same or other racks.
        more = [pool(phase) | {"model": "second"} for phase in ("prefill", "decode") for _ in range(rng.integers(1, 3))]
        pools += more
    pools = list({(entry["rack"], entry["phase"], entry.get("model")): entry for entry in pools}.values())
    names = rng.choice(list(load_classes()), rng.integers(2 if second else 1, 5), replace=False)
    shares = rng.dirichlet(np.ones(len(names)))
    first, other = map(str, rng.choice(model_ids(), 2, replace=False))
    for entry in pools:
        if "model" in entry:
            entry["model"] = other
    moved = {str(name): other for name in names[1:] if second and (name == names[-1] or rng.random() < 0.5)}
    return {
        "name": "Drawn",
        "cap_w": 1e9,
        "model": first,
        "class_models": moved,
        "demand_rps": 1.0,
        "mix": dict(zip(map(str, names), map(float, shares), strict=True)),
        "group_edges": sorted({float(edge) for edge in rng.choice([1024, 4096, 16384, 65536], rng.integers(1, 4))}),
        "clock_min": float(rng.uniform(0.2, 0.75)),
        "drain_s": float(rng.choice([0.0, 30.0, 300.0])),
        "dwell_s": float(rng.choice([0.0, 60.0, 900.0])),
        "switch_s": float(rng.choice([0.0, 60.0, 300.0])),
        "pools": pools,
    }


def couple(pools: list[Table], rng: np.random.Generator) -> list[Table]:
    """Return the pools, sometimes with one that does both phases, and with both halves of racks with two kinds of GPU."""
    mixed = "vera_rubin_nvl144_cpx"
    halves = [entry for entry in pools if entry["rack"] == mixed]
    if halves:
        # As many racks of either kind, with layouts that fit their GPUs.
        racks = {"rack": mixed, "racks": halves[0]["racks"], "min_active": halves[0]["min_active"]}
        pools = [entry for entry in pools if entry["rack"] != mixed]
        pools += [{**racks, "phase": "prefill", "pp": 8}, {**racks, "phase": "decode", "dp": 8, "mtp": True}]
    if rng.random() < 0.25:
        last = next(
            (entry for entry in reversed(pools) if entry["phase"] == "decode" and "cpx" not in entry["rack"]), None
        )
        if last is not None:
            rest = [entry for entry in pools if entry["rack"] != last["rack"]]
            phases = {entry["phase"] for entry in rest}
            pools = [*(rest if len(phases) == 2 else []), {**last, "phase": "both"}]
    if rng.random() < 0.3:
        limit_w = float(rng.uniform(0.5, 1.1))
        pools = [{**entry, "rack_limit_w": limit_w * RACK_W[entry["rack"]]} for entry in pools]
    return pools


RACK_W = {rack_id: sum(group.profile(None).nameplate_w for group in rack(rack_id).groups) for rack_id in rack_ids()}
"""What a rack draws at most, W."""


def fit(table: Table, rng: np.random.Generator) -> Table:
    """Return a proposed site with a cap between what it draws idle and what it could use, and a demand from light to too much.

    Raises:
        ConfigError: When the site is not possible.
    """
    site = load_site(table)
    classes = served_classes(site)
    steady = SteadySite(site, classes, build_params(site, classes, resolution("coarse"), control_interval_s=60.0))
    saturation = steady.saturation()
    least_w, most_w = idle_facility_w(site), max(saturation.facility_w, 1.01 * idle_facility_w(site))
    cap_w = least_w * 2.0 + rng.uniform(0.1, 1.5) * (most_w - least_w)
    demand = max(saturation.load_rps, 1.0) * rng.uniform(0.05, 1.3)
    return {**table, "cap_w": float(cap_w), "demand_rps": float(demand)}


def with_caches(site: SiteConfig, rng: np.random.Generator) -> SiteConfig:
    """Return a site, half of the time with some of the ways to keep KV, and with sessions in some classes."""
    if rng.random() < 0.5:
        return site
    pools = []
    for pool in site.pools:
        if pool.aggregated:
            pools.append(pool)
            continue
        if pool.phase == "prefill" and rng.random() < 0.7:
            host_gb, host_gb_s = (
                (float(rng.uniform(1.0, 5e3)), float(rng.uniform(0.1, 5e3))) if rng.random() < 0.5 else (0.0, 0.0)
            )
            cache = CacheConfig(float(rng.uniform(0.1, 100.0)), host_gb, host_gb_s)
            pool = dataclasses.replace(pool, cache=cache)
        elif pool.phase == "decode" and rng.random() < 0.4:
            pool = dataclasses.replace(pool, hold_share=float(rng.uniform(0.0, 0.5)))
        pools.append(pool)
    store = StoreConfig(float(rng.uniform(1.0, 1e6)), float(rng.uniform(0.1, 1e4))) if rng.random() < 0.4 else None
    own = tuple(
        dataclasses.replace(
            site.known_classes[name],
            requests_per_task=float(rng.uniform(1.5, 30.0)),
            session=Session(float(rng.uniform(0.0, 0.99)), float(rng.uniform(1.0, 2e3)), bool(rng.integers(2))),
        )
        for name in site.mix
        if rng.random() < 0.7
    )
    return dataclasses.replace(site, pools=tuple(pools), kv_store=store, own_classes=own)


def settings(rng: np.random.Generator) -> Table:
    """Return arguments of an environment beside the site: levers, scenario, times."""
    scenarios = rng.choice(scenario_names(), rng.integers(1, 4), replace=False)
    return {
        "scenario": "+".join(map(str, scenarios)),
        "levers": tuple(map(str, rng.choice(LEVERS, rng.integers(1, len(LEVERS) + 1), replace=False))),
        "resolution": str(rng.choice(["coarse", "cohort"])),
        "control_interval_s": float(rng.choice([20.0, 60.0, 90.0])),
        "horizon_s": 1800.0,
        "warmup_s": 180.0,
        "start_time_s": "random",
        "drain": bool(rng.integers(2)),
        "lambda_tokens_per_joule": "estimate",
    }


def check_episode(env: AIFactoryEnv, rng: np.random.Generator) -> None:
    """Play half an hour with drawn actions; everything returned is finite, no queue negative, every request in one state.

    Raises:
        AssertionError: When it is not so.
    """
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    for step in range(400):
        assert np.isfinite(observation).all() and env.observation_space.contains(observation)
        action = rng.uniform(-1, 1, env.action_layout.size).astype(np.float32) * rng.choice([0.0, 0.3, 1.0])
        observation, reward, _, truncated, info = env.step(action.astype(np.float32))
        assert math.isfinite(reward)
        assert all(math.isfinite(value) for value in info.values()), info
        state = env.factory.engine.state
        for column in (
            Pool.QUEUED,
            Pool.IN_FLIGHT,
            Pool.CONTEXT,
            Pool.RESERVED,
            Pool.WAITING,
            Pool.BACKLOG,
            Pool.WAIT_S,
        ):
            assert (state.pool[0, :, column] >= -1e-6 * max(1.0, np.abs(state.pool[0, :, column]).max())).all(), column
        for column in (Class.QUEUED, Class.PENDING, Class.MET, Class.MISSED, Class.REJECTED):
            assert (state.cls[0, :, column] >= -1e-6).all(), column
        decided = info["requests_met_slo"] + info["requests_missed_slo"]
        assert decided <= info["requests_arrived"] + 1e-6
        assert 0.0 <= info["sla_attainment"] <= 1.0
        if "cached_tokens" in info:
            assert 0.0 <= info["held_tokens"] <= info["cached_tokens"] * (1.0 + 1e-9) < info["prompt_tokens"] + 1e-6
        if truncated or step == 60:
            break


def run_valid(seed: int) -> str:
    """Run one drawn site, or say why it is not possible; returns an empty string for one that ran."""
    rng = np.random.default_rng(seed)
    table = propose(rng)
    chosen = settings(rng)
    try:
        site = with_caches(load_site(fit(table, rng)), np.random.default_rng([seed, 1]))
        env = make(site, chosen)
    except ConfigError as error:
        text = str(error)
        assert ":" in text and "\n" not in text, text
        return text
    check_episode(env, rng)
    return ""


def make(site: SiteConfig, chosen: Table) -> AIFactoryEnv:
    """Return an environment with those of the drawn levers that the site can have; the error names the others one by one."""
    levers = chosen["levers"]
    while True:
        try:
            return AIFactoryEnv(site=site, **{**chosen, "levers": levers})
        except ConfigError as error:
            missing = [name for name in levers if str(error).startswith(f"levers: {name!r} is not possible")]
            if not missing or len(levers) == 1:
                raise
            levers = tuple(name for name in levers if name not in missing)


Mutation = tuple[str, Callable[[Table, np.random.Generator], None]]


def _set(path: str, *values: Any) -> Mutation:
    """Return a mutation that gives a key, dotted, one of the values."""

    def change(table: Table, rng: np.random.Generator) -> None:
        *outer, last = path.split(".")
        for key in outer:
            table = table[int(key)] if key.isdigit() else table[key]  # type: ignore[call-overload]
        table[last] = values[int(rng.integers(len(values)))]

    return path.rpartition(".")[2], change


def _drop(key: str) -> Mutation:
    return key, lambda table, rng: table.pop(key) and None


MUTATIONS: tuple[Mutation, ...] = (
    _set("cap_w", -1.0, 0.0, math.nan, math.inf, "2 MW", None, True, 1e3),
    _set("model", "deepseek-r9", 7, None, ["deepseek-r1"]),
    _set("demand_rps", -3.0, math.nan, "many", None),
    _set("mix", {}, {"chat": 0.7}, {"chats": 1.0}, {"chat": 1.5, "batch": -0.5}, [0.5, 0.5], "chat"),
    _set("group_edges", [4096.0, 1024.0], [-1.0], ["4096"], 4096.0, [math.nan]),
    _set("clock_min", 0.0, 0.9, 1.5, math.nan, "low"),
    _set("drain_s", -1.0, math.inf, "x"),
    _set("dwell_s", -1.0, math.nan),
    _set("switch_s", -1.0, math.nan),
    _set("max_context", 0, -5, 1.5, "128k"),
    _set("max_context", {"deepseek": 5000}, {"deepseek-r1": 0}, {"deepseek-r1": "long"}),
    _set(
        "class_models", {"chats": "deepseek-r1"}, {"chat": "gpt-oss-120b"}, {"chat": "gpt"}, {"chat": 3}, "gpt-oss-120b"
    ),
    _set("pools.0.model", "deepseek-r9", 5, "", "gpt-oss-120b", ["deepseek-r1"]),
    _set("name", 3, None, ""),
    _set("pools", [], {}, "gb300_nvl72", None, [3]),
    _set("brake", {"enabled": "no"}, {"enabled": 2}, {"reaction_s": 0.0}, {"clok": 0.5}, 3, {"floor": 0.9}),
    _set("cooling", {"base": 0.5}, {"fixed_share": 2.0}, "liquid"),
    _set("cap", 2e6),
    _set("own", {"rack": "x.toml"}, {"racks": 3}, {"classes": "nowhere.toml"}, 5),
    _set("pools.0.rack", "gb300", 5, None, ""),
    _set("pools.0.phase", "prefil", "", None, 1),
    _set("pools.0.racks", 0, -2, 2.5, "six", None, 10**9),
    _set("pools.0.dp", 0, 7, -4, 2.5, "four"),
    _set("pools.0.tp", 0, -1, "x"),
    _set("pools.0.pp", 0, 5, None),
    _set("pools.0.precision", "fp3", 8, None),
    _set("pools.0.profile", "max_x", 3),
    _set("pools.0.min_active", -1, 99, 0.5, "one"),
    _set("pools.0.mtp", "yes", 1, True),
    _set("pools.0.rack_count", 4),
    _set("pools.0.cache", 5, {}, {"hbm_gb": -1.0}, {"hbm": 3}, {"host_gb": 5.0}, {"hbm_gb": 1e6}),
    _set("pools.1.hold_share", -0.1, 1.0, "half", math.nan),
    _set("kv_store", 3, {"gb": 1.0}, {"gb": -1.0, "gb_s": 1.0}),
    _set("generation", 3, [], [{"kind": "engine"}], [{"kind": "engines", "power_w": 1e6}], [{"power_w": 1e6}]),
    _set("generation", [{"kind": "engine", "power_w": -1.0}], [{"kind": "smr", "power_w": 1e6, "min_load": 2.0}]),
    _set("grid", 3, {"export_w": -1.0}, {"export": 1.0}, {"export_w": 1e5}),
    _set("pools.0.rack_limit_w", -1.0, 0.0, math.nan, "low"),
    _set("pools.0.max_batch", 8, "big", 0),
    _set("pools.1.max_batch", 0, -1, 3.5, "big"),
    _set("pools.1.ep", 0, "all", -3),
    ("pools", _set("pools.1.phase", "prefill")[1]),
    _drop("cap_w"),
    _drop("model"),
    _drop("mix"),
    _drop("pools"),
    _drop("demand_rps"),
)
"""Key that the error has to name, and what makes a good site a bad one."""


def good() -> Table:
    """Return the table of a site that is possible."""
    return {
        "name": "Good",
        "cap_w": 1.2e6,
        "model": "deepseek-r1",
        "demand_rps": 2000.0,
        "mix": {"chat": 1.0},
        "pools": [
            {"rack": "gb300_nvl72", "phase": "prefill", "racks": 4, "dp": 4},
            {"rack": "gb300_nvl72", "phase": "decode", "racks": 4, "dp": 8, "mtp": True},
        ],
    }


def run_invalid(seed: int) -> tuple[str, str]:
    """Make a site invalid; returns the key that is wrong and the error, which is empty when nobody noticed."""
    rng = np.random.default_rng(seed)
    key, change = MUTATIONS[seed % len(MUTATIONS)]
    table = good()
    change(table, rng)
    try:
        AIFactoryEnv(site=table, lambda_tokens_per_joule=1.0)
    except ConfigError as error:
        return key, str(error)
    return key, ""


def main() -> int:
    """Run the command line; returns 1 when a site failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--valid", type=int, default=1000)
    parser.add_argument("--invalid", type=int, default=200)
    parser.add_argument("--begin", type=int, default=0, help="first seed")
    chosen = parser.parse_args()
    failures = []
    reasons: Counter[str] = Counter()
    ran, seed = 0, chosen.begin
    with tqdm(total=chosen.valid, desc="valid sites", disable=not sys.stderr.isatty()) as bar:
        while ran < chosen.valid:
            try:
                reason = run_valid(seed)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is to be counted
                failures.append(f"seed {seed}: {type(error).__name__}: {error}")
                reason = ""
            if reason:
                reasons[reason.split(":")[0]] += 1
            else:
                ran += 1
                bar.update()
            seed += 1
    unclear = [
        (number, key, text)
        for number in range(chosen.invalid)
        for key, text in [run_invalid(number)]
        if key not in text
    ]
    print(
        f"{ran:,} sites ran ({seed - chosen.begin - ran:,} drawn ones were refused as impossible), {len(failures)} failed"
    )
    print(f"{chosen.invalid:,} invalid sites: {chosen.invalid - len(unclear)} refused with an error that names the key")
    for line in [*failures, *(f"invalid {number} ({key}): {text or 'not noticed'}" for number, key, text in unclear)]:
        print(line)
    return 1 if failures or unclear else 0


if __name__ == "__main__":
    sys.exit(main())
