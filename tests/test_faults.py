"""Racks that fail: what is on them starts anew elsewhere and is counted once, and nothing else of an episode changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.draw import pool_power_w
from ai_factory_gym.engine.layout import (
    BREAKDOWN,
    DECODE,
    MAINTENANCE,
    PREFILL,
    Array,
    Class,
    ClassSpec,
    Fault,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
)
from ai_factory_gym.engine.outages import draw_faults
from ai_factory_gym.factory import Factory
from ai_factory_gym.metrics import FAULT_KEYS
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.scenarios.faults import FaultSpec, MaintenanceSpec
from ai_factory_gym.sites import PoolConfig, SiteConfig, load_site, site_from_table
from ai_factory_gym.sites.reliability import LLAMA_3_FAULTS_PER_GPU_HOUR, ReliabilityConfig

EDGE = load_site("edge")
NOON = {"start_time_s": 12 * 3600.0, "horizon_s": 900.0, "warmup_s": 300.0, "lambda_tokens_per_joule": 1.0}
STATES = (PoolInt.ACTIVE, PoolInt.WAKING, PoolInt.DRAINING, PoolInt.ASLEEP, PoolInt.FAILED)
SMALL = {"cohort": 1.0, "request": 0.01}
"""Demand at which an episode takes a moment, by resolution."""


def event(time_s: float, pool: int, rack: int = 0, lasts_s: float = 240.0, kind: int = BREAKDOWN) -> Array:
    """Return one rack that goes out of service."""
    row = np.zeros(len(Fault))
    row[Fault.TIME_S] = time_s
    row[Fault.POOL] = pool
    row[Fault.RACK] = rack
    row[Fault.KIND] = kind
    row[Fault.LASTS_S] = lasts_s
    row[Fault.TURN] = 0.5
    row[Fault.BACK_S] = np.inf
    return row


def make(*events: Array, site: SiteConfig = EDGE, resolution: str = "cohort", **settings: Any) -> AIFactoryEnv:
    """Return a site at noon at which exactly these racks go out of service."""
    site = dataclasses.replace(site, reliability=ReliabilityConfig(gpu_faults_per_hour=0.0))
    chosen = {"scenario": "steady", "demand_scale": SMALL[resolution], **NOON, **settings}
    env = AIFactoryEnv(site=site, resolution=resolution, **chosen)
    table = np.array(events) if events else None
    env.factory._faults = lambda *_: table  # type: ignore[method-assign]
    return env


def play(env: AIFactoryEnv, seed: int = 1, steps: int | None = None, action: Array | None = None) -> dict[str, Any]:
    """Run an episode with every rack wanted at full clock, checking counts; return the last info."""
    env.reset(seed=seed)
    if action is None:
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
    info: dict[str, Any] = {}
    truncated = False
    while not truncated and steps != 0:
        _, _, _, truncated, info = env.step(action)
        check(env, info)
        steps = None if steps is None else steps - 1
    return info


def check(env: AIFactoryEnv, info: dict[str, Any]) -> None:
    """Requests are in one state each, racks too, and KV that came in is held or has left."""
    state, params = env.factory.engine.state, env.factory.params
    assert info["requests_arrived"] == pytest.approx(
        info["requests_met_slo"] + info["requests_missed_slo"] + info["requests_in_flight"]
    )
    assert info["good_tokens"] + info["lost_tokens"] <= info["output_tokens"] * (1.0 + 1e-9) + 1e-6
    racks = state.pool_int[0][:, list(STATES)]
    assert racks.min() >= 0
    assert racks.sum() == params.pool[:, PoolSpec.RACKS].sum()
    assert state.histogram[0, :, 0].sum() == state.cls[0, :, Class.TTFT_COUNT].sum()
    for pool in np.flatnonzero(params.pool[:, PoolSpec.PHASE] == DECODE):
        numbers = state.pool[0, pool]
        held = numbers[Pool.KV_TOKENS_IN] + numbers[Pool.KV_TOKENS_GENERATED] - numbers[Pool.KV_TOKENS_OUT]
        assert numbers[Pool.CONTEXT] == pytest.approx(held, rel=1e-6, abs=1.0)


def racks_of(env: AIFactoryEnv) -> list[list[int]]:
    """Return racks active, waking, draining, asleep and failed, by pool."""
    found: list[list[int]] = env.factory.engine.state.pool_int[0][:, list(STATES)].tolist()
    return found


# ---------------------------------------------------------------------------------------------------------- the schedule


def drawn(seed: int = 0, factor: float = 1.0, span_s: float = 86400.0, **spec: float) -> Array:
    """Return what befalls two families of racks."""
    reliability = ReliabilityConfig(**spec)
    return draw_faults(np.random.default_rng(seed), reliability, factor, (), [0, 2], [100, 50], [72, 8], 0.0, span_s)


def test_faults_come_at_the_rate_of_the_source_and_last_as_said() -> None:
    # 419 interruptions in 54 days on 16,384 GPUs.
    assert pytest.approx(1.97e-5, rel=2e-3) == LLAMA_3_FAULTS_PER_GPU_HOUR
    days = 400.0
    table = drawn(span_s=days * 86400.0)
    expected = LLAMA_3_FAULTS_PER_GPU_HOUR * 24.0 * days * np.array([7200, 400])
    counts = np.array([(table[:, Fault.POOL] == pool).sum() for pool in (0, 2)])
    assert np.all(np.abs(counts - expected) < 4.0 * np.sqrt(expected))
    assert np.all(np.diff(table[:, Fault.TIME_S]) >= 0.0)
    repaired = table[table[:, Fault.LASTS_S] > 0.0, Fault.LASTS_S]
    assert len(repaired) / len(table) == pytest.approx(0.78, abs=0.05)
    assert repaired.mean() == pytest.approx(4 * 3600.0, rel=0.15)
    assert set(table[table[:, Fault.POOL] == 2, Fault.RACK]) <= set(range(50))
    assert len(drawn(factor=0.0)) == 0


def test_maintenance_takes_its_racks_one_after_the_other_every_day() -> None:
    window = MaintenanceSpec(2.0, 4.0, 1.5, 3)
    rng = np.random.default_rng(3)
    table = draw_faults(rng, ReliabilityConfig(), 0.0, (window,), [0], [5], [72], 6 * 3600.0, 2 * 86400.0)
    assert np.all(table[:, Fault.KIND] == MAINTENANCE)
    begin_h = (table[:, Fault.TIME_S] / 3600.0 + 6.0) % 24.0
    assert len(table) == 6
    assert np.all(np.diff(begin_h[:3]) == pytest.approx(1.5))
    assert 2.0 <= begin_h[0] <= 4.0
    # Faults are drawn from a stream of their own, whether there is maintenance or not.
    alone, both = (
        draw_faults(np.random.default_rng(5), ReliabilityConfig(), 50.0, some, [0], [5], [72], 0.0, 86400.0)
        for some in ((), (window,))
    )
    assert np.array_equal(both[both[:, Fault.KIND] == BREAKDOWN], alone)


def test_the_schedule_depends_on_the_seed_alone_and_changes_no_other_stream() -> None:
    settings = {**NOON, "horizon_s": 300.0, "warmup_s": 60.0}
    tables, worlds = [], []
    for name, action in (("faults", 0.0), ("faults", -0.7), ("diurnal", 0.0)):
        env = AIFactoryEnv(site=EDGE, scenario=name, **settings)
        env.reset(seed=4)
        state = env.factory.engine.state
        worlds.append([state.rate[0].copy(), state.cap_steps[0].copy(), state.world[0].copy()])
        for _ in range(3):
            env.step(np.full(env.action_space.shape, action, dtype=np.float32))
        worlds[-1].append(state.rng[0].copy())
        tables.append(state.fault[0, :, : Fault.DONE].copy())
    assert len(tables[0]) > 0 and len(tables[2]) == 0
    assert np.array_equal(tables[0], tables[1])
    for other in worlds[1:]:
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(worlds[0], other, strict=True))


def test_a_site_whose_racks_never_fail_is_that_without_the_table_to_the_bit() -> None:
    infos, seen = [], []
    for table in (None, ReliabilityConfig(gpu_faults_per_hour=0.0)):
        env = AIFactoryEnv(site=dataclasses.replace(EDGE, reliability=table), **NOON)
        env.reset(seed=2)
        rng = np.random.default_rng(0)
        for _ in range(6):
            observation, *_, info = env.step(rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32))
        infos.append(info)
        seen.append(observation)
    assert [infos[1].pop(key) for key in FAULT_KEYS] == [0.0] * len(FAULT_KEYS)
    assert infos[0] == infos[1]
    assert np.array_equal(seen[0], seen[1][:-2]) and not seen[1][-2:].any()


# ------------------------------------------------------------------------------------------------------------- a fault


@pytest.mark.parametrize("resolution", ["cohort", "request"])
@pytest.mark.parametrize("pool", range(4))
def test_a_rack_fails_loses_its_share_is_repaired_and_wakes(pool: int, resolution: str) -> None:
    # Pools 0 and 2 are of one type: its racks are counted through both.
    first, rack = {0: (0, 0), 1: (1, 0), 2: (0, 6), 3: (3, 0)}[pool]
    env = make(event(90.0, first, rack), resolution=resolution)
    built = int(EDGE.pools[pool].racks)
    info = play(env, steps=2)
    assert racks_of(env)[pool] == [built - 1, 0, 0, 0, 1]
    assert info["racks_struck"] == 1.0 and info["rack_down_s"] == pytest.approx(30.0)
    if EDGE.pools[pool].phase == "decode":
        assert 0.0 < info["lost_tokens"] < info["output_tokens"]
        assert info["requests_restarted"] > 0.0
    else:
        assert info["lost_tokens"] == 0.0
    # Repaired after 240 s, at 330 s: asleep, then ordered to wake with the next step.
    for _ in range(4):
        env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    assert racks_of(env)[pool] == [built - 1, 0, 0, 1, 0]
    _, _, _, _, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    assert racks_of(env)[pool] == [built - 1, 1, 0, 0, 0]
    assert info["rack_down_s"] == pytest.approx(240.0)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_decode_rack_has_its_share_of_the_batch(resolution: str) -> None:
    # Nothing else in flight in the step: the moment before and after the fault of one of five racks.
    env = make(event(60.0, 3), resolution=resolution)
    play(env, steps=1)
    before = env.factory.engine.state.pool[0, 3].copy()
    saved = env.factory.snapshot()
    kernel_step(env)
    after = env.factory.engine.state
    lost = after.site[0, Site.RESTARTED]
    assert lost == pytest.approx(before[Pool.IN_FLIGHT] / 5.0, abs=1.0)
    assert after.pool[0, 3, Pool.IN_FLIGHT] == pytest.approx(before[Pool.IN_FLIGHT] - lost)
    assert after.site[0, Site.LOST_TOKENS] > 0.0
    assert after.pool[0, 3, Pool.EMITTING] == pytest.approx(0.8 * before[Pool.EMITTING], rel=0.1)
    queued = after.pool[0, :2, Pool.QUEUED].sum()
    assert queued >= lost
    # A snapshot from before the fault goes the same way again.
    env.factory.restore(saved)
    kernel_step(env)
    again = env.factory.engine.state
    for name in ("site", "pool", "cls", "pool_int", "fault"):
        assert np.array_equal(getattr(again, name), getattr(after, name)), name


def kernel_step(env: AIFactoryEnv) -> None:
    """Let happen what is due at this moment and nothing else."""
    from ai_factory_gym.engine.faults import strike_and_repair

    engine = env.factory.engine
    strike_and_repair(engine.params, engine.state, 0, float(engine.state.site[0, Site.TIME_S]))


def test_lateness_counts_and_every_fate_is_decided_once() -> None:
    infos = []
    for events in ((), (event(130.0, 3), event(131.0, 3), event(132.0, 3))):
        env = make(*events, drain=True, horizon_s=600.0)
        infos.append(play(env))
        assert infos[-1]["requests_in_flight"] == pytest.approx(0.0, abs=1e-6)
    calm, struck = infos
    assert struck["requests_arrived"] == calm["requests_arrived"]
    assert struck["requests_missed_slo"] > calm["requests_missed_slo"]
    assert struck["good_tokens"] < calm["good_tokens"]
    # Raw throughput does not fall as much: what was lost was emitted, and is emitted again.
    assert struck["output_tokens"] - struck["good_tokens"] > calm["output_tokens"] - calm["good_tokens"]


def test_more_faults_make_fewer_good_tokens() -> None:
    good = []
    for factor in (0.0, 300.0, 3000.0):
        site = dataclasses.replace(EDGE, reliability=ReliabilityConfig(factor * LLAMA_3_FAULTS_PER_GPU_HOUR))
        env = AIFactoryEnv(site=site, **NOON)
        good.append(sum(play(env, seed)["good_tokens"] for seed in (1, 2)))
    assert good[0] > good[1] > good[2]


def test_a_failed_rack_draws_what_a_sleeping_one_does() -> None:
    env = make(event(30.0, 3))
    play(env, steps=1)
    params, state = env.factory.params, env.factory.engine.state
    before = pool_power_w(params, state, 0, 3, 1.0, 0.0, 0.0, 0.0)
    state.pool_int[0, 3, PoolInt.FAILED] = 0
    assert before - pool_power_w(params, state, 0, 3, 1.0, 0.0, 0.0, 0.0) == state.power[0, 3, POWER_SLEEP_RACK_W]


# ------------------------------------------------------------------------------------------------------------- many faults


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_pool_without_a_rack_leaves_its_work_to_others(resolution: str) -> None:
    # Every rack of a decode pool, then both of a prefill pool; the others serve on.
    events = [event(65.0 + turn, 3, lasts_s=3600.0) for turn in range(5)]
    events += [event(130.0 + turn, 1, lasts_s=3600.0) for turn in range(2)]
    env = make(*events, resolution=resolution, demand_scale=0.3 * SMALL[resolution])
    info = play(env, steps=5)
    state = env.factory.engine.state
    assert racks_of(env)[3][4] == 5 and racks_of(env)[1][4] == 2
    assert state.pool_int[0, 3, PoolInt.ASSIGNED] == 0
    assert state.pool_int[0, 1, PoolInt.QUEUE_HEAD] == state.pool_int[0, 1, PoolInt.INBOX_HEAD] == -1
    assert state.pool[0, 3, [Pool.IN_FLIGHT, Pool.CONTEXT, Pool.RESERVED]].tolist() == [0.0] * 3
    # Requests that arrive after the faults are served as well as any.
    late = info["requests_met_slo"]
    for _ in range(2):
        *_, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    assert info["requests_met_slo"] > late
    assert info["requests_rejected"] == 0.0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_site_without_a_rack_turns_away_and_comes_back(phase: str) -> None:
    pools = (
        PoolConfig("gb300_nvl72", "prefill", 1, dp=4),
        PoolConfig("vera_rubin_nvl144", "decode", 1, dp=8, mtp=True),
    )
    site = SiteConfig("Two", 1e6, "deepseek-r1", pools, 300.0, {"chat": 1.0})
    place = 0 if phase == "prefill" else 1
    env = make(event(60.0, place, lasts_s=120.0), site=site, horizon_s=1500.0)
    info = play(env, steps=3)
    arrived, rejected = info["requests_arrived"], info["requests_rejected"]
    assert rejected > 0.0
    *_, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    assert info["requests_rejected"] - rejected == pytest.approx(info["requests_arrived"] - arrived, rel=0.02)
    wake_steps = int(np.ceil(env.factory.params.pool[place, PoolSpec.WAKE_S] / 60.0)) + 2
    for _ in range(wake_steps):
        *_, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    met = info["requests_met_slo"]
    *_, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
    assert racks_of(env)[place] == [1, 0, 0, 0, 0]
    assert info["requests_met_slo"] > met


def test_a_spare_rack_keeps_the_sla() -> None:
    attained = []
    for racks in (2, 3):
        pools = (
            PoolConfig("gb300_nvl72", "prefill", 6, dp=4),
            PoolConfig("vera_rubin_nvl144", "decode", racks, dp=8, mtp=True),
        )
        site = SiteConfig("Spare", 3e6, "deepseek-r1", pools, 6500.0, {"chat": 1.0})
        env = make(event(120.0, 1, lasts_s=3600.0), site=site)
        attained.append(play(env)["sla_attainment"])
        assert env.factory.params.cls[0, ClassSpec.TARGET] <= 0.99
    assert attained[0] < 0.95 < attained[1]


def test_racks_that_two_pools_share_fail_in_both() -> None:
    pools = (PoolConfig("gb300_nvl72", "both", 3, dp=8),)
    site = SiteConfig("Both", 1e6, "deepseek-r1", pools, 400.0, {"chat": 1.0}, drain_s=60.0)
    env = make(*(event(70.0 + 60.0 * turn, 0, turn, lasts_s=150.0) for turn in range(3)), site=site, horizon_s=1800.0)
    env.reset(seed=0)
    info: dict[str, Any] = {}
    for _ in range(8):
        *_, info = env.step(env.action_layout.encode(clock=1.0, racks=env.action_layout.racks))
        check(env, info)
        prefill, decode = racks_of(env)
        assert prefill == decode
    assert info["racks_struck"] >= 2.0
    # Every rack is counted once: 150 s each.
    assert info["rack_down_s"] <= 150.0 * info["racks_struck"] + 1e-6


def test_maintenance_loses_nothing_that_fits_and_takes_sleeping_racks_first() -> None:
    work = event(90.0, 3, lasts_s=240.0, kind=MAINTENANCE)
    env = make(work, demand_scale=0.3)
    env.reset(seed=1)
    layout = env.observation_layout
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
    observation, *_ = env.step(action)
    assert observation[layout["maintenance"]] == pytest.approx([1.0, 30.0 / 7200.0])
    observation, _, _, _, info = env.step(action)
    assert racks_of(env)[3] == [4, 0, 0, 0, 1]
    assert (info["requests_restarted"], info["lost_tokens"], info["racks_struck"]) == (0.0, 0.0, 1.0)
    assert not observation[layout["maintenance"]].any()
    racks = env.action_layout.racks.copy()
    racks[3] = 3
    asleep = make(event(400.0, 3, lasts_s=240.0, kind=MAINTENANCE), demand_scale=0.3)
    play(asleep, steps=8, action=asleep.action_layout.encode(clock=1.0, racks=racks))
    assert racks_of(asleep)[3] == [3, 0, 0, 1, 1]


# ------------------------------------------------------------------------------------------------------------ configuration


def test_scenarios_compose_and_the_shipped_one_strikes() -> None:
    both = scenario("faults+heatwave")
    assert both.faults == scenario("faults").faults and both.maintenance == scenario("faults").maintenance
    assert (FaultSpec(3.0) | FaultSpec(2.0)) == FaultSpec(3.0)
    env = AIFactoryEnv(site="edge", scenario="faults", horizon_s=86400.0, warmup_s=0.0)
    counts = []
    for seed in range(12):
        env.reset(seed=seed)
        table = env.factory.engine.state.fault[0]
        counts.append((table[:, Fault.TIME_S] < 86400.0).sum())
    # Ten times 1.97e-5 a GPU-hour and one rack for maintenance.
    gpus = sum(pool.racks * sum(group.gpus for group in pool.rack_type.groups) for pool in EDGE.pools)
    assert np.mean(counts) == pytest.approx(240.0 * LLAMA_3_FAULTS_PER_GPU_HOUR * gpus + 1.0, abs=2.0)
    # A scenario that a reset brings in strikes too.
    plain = AIFactoryEnv(site="edge", horizon_s=300.0, warmup_s=0.0)
    plain.reset(seed=0, options={"scenario": "faults"})
    assert plain.factory.engine.state.site[0, Site.FAULTS] == 1.0
    plain.reset(seed=0)
    assert plain.factory.engine.state.site[0, Site.FAULTS] == 0.0


def test_bad_input_is_refused(tmp_path: Path) -> None:
    table = {
        "name": "s",
        "cap_w": 1e6,
        "model": "deepseek-r1",
        "demand_rps": 1.0,
        "mix": {"chat": 1.0},
        "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 1} for phase in ("prefill", "decode")],
    }
    site = site_from_table({**table, "reliability": {"repair_s": 60.0}})
    assert site.reliability == ReliabilityConfig(repair_s=60.0)
    for wrong, word in (
        ({"repair": 60.0}, "repair_s"),
        ({"gpu_faults_per_hour": -1.0}, "gpu_faults_per_hour"),
        ({"hardware_share": 1.5}, "hardware_share"),
        ({"repair_s": 0.0}, "repair_s"),
        (3, "table"),
    ):
        with pytest.raises(ConfigError, match=word):
            site_from_table({**table, "reliability": wrong})
    head = 'description = ""\ndaily = true\noverdispersion = 1.0\ndeferrable = true\n'
    window = "[[maintenance]]\nwindow_start_hour = 1.0\nwindow_end_hour = 2.0\nduration_hours = 1.0\nracks = {}\n"
    for number, (text, word) in enumerate(
        (
            ("[faults]\nrate = 2.0\n", "rate_factor"),
            ("[faults]\nrate_factor = -2.0\n", "rate_factor"),
            ("faults = 3\n", "table"),
            (window.format(1.5), "whole"),
            (window.format(0), "racks"),
            (window.format(1) * 9, "at most"),
        )
    ):
        path = tmp_path / f"s{number}.toml"
        path.write_text(head + text, encoding="utf-8")
        with pytest.raises(ConfigError, match=word):
            scenario(path)


def test_phases_of_the_pools_used_here() -> None:
    specs = Factory(make().task).params.pool
    assert specs[:, PoolSpec.PHASE].tolist() == [PREFILL, PREFILL, DECODE, DECODE]
    assert specs[:, PoolSpec.SIBLING].tolist() == [2.0, -1.0, 0.0, -1.0]


def test_maintenance_that_cannot_be_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="racks: 13.0 racks, one after the other for 2 h each, do not fit into a day; must be at most 12",
    ):
        MaintenanceSpec(1.0, 5.0, 2.0, 13.0)
    day = dataclasses.replace(scenario("faults"), maintenance=(MaintenanceSpec(1.0, 5.0, 0.5, 40.0),))
    with pytest.raises(ConfigError, match="maintenance: racks: 40 is not allowed; site 'Edge' has 16"):
        AIFactoryEnv(site="edge", scenario=day, lambda_tokens_per_joule=3.0)
