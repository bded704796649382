"""Faults that take a part of a rack: its share of everything goes, the rest serves on, and nothing changes where no share is given."""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine import layout
from ai_factory_gym.engine.draw import pool_power_w
from ai_factory_gym.engine.faults import strike_and_repair
from ai_factory_gym.engine.health import follow_racks
from ai_factory_gym.engine.layout import (
    DECODE,
    GPU_GROUP,
    LINK_DOMAIN,
    RACK,
    Array,
    Fault,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
)
from ai_factory_gym.engine.outages import draw_faults
from ai_factory_gym.metrics import PART_FAULT_KEYS
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.physics.power import POWER_OVERHEAD_W
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.scenarios.faults import FaultSpec
from ai_factory_gym.sites import PoolConfig, SiteConfig, site_from_table
from ai_factory_gym.sites.reliability import (
    LLAMA_3_FAULTS_PER_GPU_HOUR,
    LLAMA_3_GPU_GROUP_SHARE,
    LLAMA_3_NVLINK_DOMAIN_SHARE,
    ReliabilityConfig,
)
from tests.test_faults import EDGE, NOON, SMALL, check, kernel_step, make, racks_of
from tests.test_faults import event as rack_event

IN_PART = ReliabilityConfig(0.0, gpu_group_share=0.9, nvlink_domain_share=0.1)


def part(time_s: float, pool: int, rack: int = 0, lasts_s: float = 240.0, domain: int = GPU_GROUP) -> Array:
    """Return a fault of a part of a rack."""
    row = rack_event(time_s, pool, rack, lasts_s)
    row[Fault.DOMAIN] = domain
    row[Fault.PLACE] = 0.97
    return row


def partly(*events: Array, site: SiteConfig = EDGE, **settings: Any) -> AIFactoryEnv:
    """Return a site at noon at which exactly these faults happen, and whose faults may take parts of racks."""
    env = make(*events, site=site, **settings)
    chosen = {"scenario": "steady", "demand_scale": SMALL[settings.get("resolution", "cohort")], **NOON, **settings}
    found = AIFactoryEnv(site=dataclasses.replace(site, reliability=IN_PART), **chosen)
    found.factory._faults = env.factory._faults  # type: ignore[method-assign]
    return found


def go(env: AIFactoryEnv, steps: int, seed: int = 1, reset: bool = True, **values: Any) -> dict[str, Any]:
    """Run some steps at full clock with every rack wanted, checking counts; return the last info."""
    if reset:
        env.reset(seed=seed)
    action = env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})
    info: dict[str, Any] = {}
    for _ in range(steps):
        *_, info = env.step(action)
        check(env, info)
    return info


def test_no_two_columns_have_one_number() -> None:
    # An enumeration takes a number that is there already for another name of the same column, without a word.
    for name, columns in vars(layout).items():
        if isinstance(columns, type) and issubclass(columns, IntEnum) and columns is not IntEnum:
            values = [int(member) for member in columns.__members__.values()]
            assert sorted(values) == list(range(len(values))), name


# ---------------------------------------------------------------------------------------------------------- the schedule


def drawn(seed: int = 0, **spec: Any) -> Array:
    """Return what befalls a hundred racks in a hundred days."""
    reliability = ReliabilityConfig(**spec)
    return draw_faults(np.random.default_rng(seed), reliability, 1.0, (), [0], [100], [72], 0.0, 100 * 86400.0)


def test_shares_change_neither_when_nor_which_rack_fails() -> None:
    whole = drawn()
    split = drawn(gpu_group_share=0.6, nvlink_domain_share=0.3, gpu_group_repair_s=3600.0)
    same = [Fault.TIME_S, Fault.POOL, Fault.RACK, Fault.KIND, Fault.TURN, Fault.PLACE]
    assert np.array_equal(whole[:, same], split[:, same])
    assert np.all(whole[:, Fault.DOMAIN] == RACK)
    counts = np.bincount(split[:, Fault.DOMAIN].astype(int), minlength=3) / len(split)
    assert counts == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    groups = split[:, Fault.DOMAIN] == GPU_GROUP
    assert split[groups, Fault.LASTS_S] == pytest.approx(whole[groups, Fault.LASTS_S] / 4.0)
    assert np.array_equal(split[~groups, Fault.LASTS_S], whole[~groups, Fault.LASTS_S])
    assert pytest.approx(1.0) == LLAMA_3_GPU_GROUP_SHARE + LLAMA_3_NVLINK_DOMAIN_SHARE


@pytest.mark.parametrize("group_share", [0.7, 1.0])
def test_what_is_in_service_is_mtbf_over_mtbf_and_mttr(group_share: float) -> None:
    # Ten racks of nine replicas, event by event and without requests: each replica, or rack, fails and is repaired on its own.
    pools = (
        PoolConfig("gb300_nvl72", "prefill", 1, dp=4),
        PoolConfig("gb300_nvl72", "decode", 10, dp=8, mtp=True),
    )
    rate = 200.0 * LLAMA_3_FAULTS_PER_GPU_HOUR
    links = 0.2 if group_share < 1.0 else 0.0
    spec = ReliabilityConfig(rate, 0.78, 4 * 3600.0, group_share, links, gpu_group_repair_s=2 * 3600.0)
    site = SiteConfig("Two", 3e6, "deepseek-r1", pools, 10.0, {"chat": 1.0}, switch_s=600.0, reliability=spec)
    env = AIFactoryEnv(site=site, scenario="steady", demand_scale=0.0, **{**NOON, "warmup_s": 0.0})
    env.factory.params.pool[:, PoolSpec.SIBLING] = -1.0
    seconds, failed_s, out_s = 0.0, 0.0, 0.0
    for seed in range(30):
        # Two days, of which the first hours are left out: everything works when an episode begins.
        table = draw_faults(np.random.default_rng(seed), spec, 1.0, (), [1], [10], [72], 0.0, 2 * 86400.0)
        env.factory._faults = lambda *_, table=table: table  # type: ignore[method-assign]
        env.reset(seed=0)
        params, state = env.factory.params, env.factory.engine.state
        ints, numbers = state.pool_int[0, 1], state.pool[0, 1]
        follow_racks(params, state, 0)
        now_s = 0.0
        while state.site[0, Site.NEXT_FAULT_S] < 2 * 86400.0:
            next_s = float(state.site[0, Site.NEXT_FAULT_S])
            lasts_s = max(0.0, next_s - max(now_s, 12 * 3600.0))
            seconds += lasts_s
            failed_s += lasts_s * ints[PoolInt.FAILED]
            out_s += lasts_s * numbers[Pool.OUT_REPLICAS]
            now_s = next_s
            strike_and_repair(params, state, 0, now_s)
            # Whoever is repaired is woken at once.
            ints[PoolInt.ACTIVE] += ints[PoolInt.ASLEEP]
            ints[PoolInt.ASLEEP] = 0
            follow_racks(params, state, 0)
            awake = 9 * ints[PoolInt.ACTIVE]
            assert numbers[Pool.OUT_SHARE] * awake == pytest.approx(min(numbers[Pool.OUT_REPLICAS], max(0, awake - 1)))
    if group_share < 1.0:
        # A fault of an NVLink domain takes all nine replicas of such a rack, and so the rack: with the others three in ten faults do.
        mtbf_h, mttr_h, out = 1.0 / (rate * 72 * 0.3), 0.78 * 4.0, failed_s / 10
        assert 0.0 < out_s
    else:
        mtbf_h, mttr_h, out = 1.0 / (rate * 72 / 9), 0.78 * 2.0 + 600.0 / 3600.0, out_s / 90
        assert failed_s == 0.0
    assert 1.0 - out / seconds == pytest.approx(mtbf_h / (mtbf_h + mttr_h), abs=0.025)


def test_a_site_without_shares_is_what_it_was() -> None:
    plain = ReliabilityConfig(1000.0 * LLAMA_3_FAULTS_PER_GPU_HOUR)
    given = dataclasses.replace(plain, gpu_group_share=0.0, nvlink_domain_share=0.0, gpu_group_repair_s=60.0)
    infos = []
    for spec in (plain, given):
        env = AIFactoryEnv(site=dataclasses.replace(EDGE, reliability=spec), demand_scale=0.2, **NOON)
        env.reset(seed=2)
        rng = np.random.default_rng(0)
        for _ in range(6):
            seen, reward, *_, info = env.step(rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32))
        infos.append((info, reward, seen.tobytes()))
        assert info["racks_struck"] > 0.0
        assert env.factory.engine.state.site[0, Site.FAULTS] == 1.0
        assert not set(PART_FAULT_KEYS) & set(info)
    assert infos[0] == infos[1]


# ------------------------------------------------------------------------------------------------------------- a fault


@pytest.mark.parametrize("resolution", ["cohort", "request"])
@pytest.mark.parametrize("pool", range(4))
def test_a_part_goes_the_rest_serves_and_the_part_comes_back(pool: int, resolution: str) -> None:
    first, rack = {0: (0, 0), 1: (1, 0), 2: (0, 6), 3: (3, 0)}[pool]
    env = partly(part(90.0, first, rack), resolution=resolution)
    params = env.factory.params
    built, per_rack = int(EDGE.pools[pool].racks), EDGE.pools[pool].replicas_per_rack
    info = go(env, 2)
    state = env.factory.engine.state
    assert racks_of(env)[pool] == [built, 0, 0, 0, 0]
    assert state.pool[0, pool, Pool.OUT_REPLICAS] == 1.0
    assert state.pool[0, pool, Pool.OUT_SHARE] == pytest.approx(1.0 / (built * per_rack))
    assert np.count_nonzero(state.pool[0, :, Pool.OUT_SHARE]) == 1
    gpus = EDGE.pools[pool].gpus_per_replica
    assert (info["racks_struck"], info["rack_down_s"], info["groups_struck"]) == (0.0, 0.0, 1.0)
    assert info["gpu_down_s"] == pytest.approx(30.0 * gpus)
    if EDGE.pools[pool].phase == "decode":
        assert 0.0 < info["lost_tokens"] < info["output_tokens"]
    layout = env.observation_layout
    seen = env.factory.new_outcome()
    assert seen is not None and layout["pool_failed"].stop - layout["pool_failed"].start == 4
    # Repaired after 240 s, and 120 s later, at 450 s, it has loaded the model; nobody had to order anything.
    info = go(env, 6, reset=False)
    assert state.pool[0, pool, Pool.OUT_SHARE] == state.pool[0, pool, Pool.OUT_REPLICAS] == 0.0
    assert info["gpu_down_s"] == pytest.approx(360.0 * gpus)
    assert params.pool[pool, PoolSpec.SWITCH_S] == 120.0


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_part_has_its_share_of_batch_memory_and_power(resolution: str) -> None:
    env = partly(part(60.0, 3), resolution=resolution)
    info = go(env, 1)
    params, state = env.factory.params, env.factory.engine.state
    before = state.pool[0, 3].copy()
    busy_w = pool_power_w(params, state, 0, 3, 1.0, 1.0, 0.4, 0.6)
    saved = env.factory.snapshot()
    kernel_step(env)
    after = env.factory.engine.state
    replicas = 5 * EDGE.pools[3].replicas_per_rack
    lost = after.site[0, Site.RESTARTED]
    assert lost == pytest.approx(before[Pool.IN_FLIGHT] / replicas, abs=1.0)
    assert after.pool[0, 3, Pool.IN_FLIGHT] == pytest.approx(before[Pool.IN_FLIGHT] - lost)
    room = (replicas - 1) * params.perf[3, DECODE_KV_CAPACITY_TOKENS]
    assert after.pool[0, 3, Pool.RESERVED] <= room
    # What GPUs draw falls by their share; the racks' overhead stays.
    overhead_w = 5 * state.power[0, 3, POWER_OVERHEAD_W]
    now_w = pool_power_w(params, after, 0, 3, 1.0, 1.0, 0.4, 0.6)
    assert now_w - overhead_w == pytest.approx((busy_w - overhead_w) * (1.0 - 1.0 / replicas), rel=1e-12)
    # The others get its share of what arrives.
    share = after.weight[0, DECODE, 0, 3] / after.weight[0, DECODE, 0, 2]
    env.factory.restore(saved)
    assert env.factory.engine.state.pool[0, 3, Pool.OUT_SHARE] == 0.0
    was = env.factory.engine.state.weight[0, DECODE, 0, 3] / env.factory.engine.state.weight[0, DECODE, 0, 2]
    assert share == pytest.approx(was * (1.0 - 1.0 / replicas), rel=1e-9)
    # A snapshot from before the fault goes the same way again.
    kernel_step(env)
    again = env.factory.engine.state
    for name in ("site", "pool", "cls", "pool_int", "fault"):
        assert np.array_equal(getattr(again, name), getattr(after, name)), name
    assert info["groups_struck"] == 0.0


def test_parts_cost_less_than_racks() -> None:
    kept = []
    for domain in (GPU_GROUP, RACK):
        events = [part(70.0 + 10.0 * turn, 3, turn, 3600.0, domain) for turn in range(3)]
        env = partly(*events, demand_scale=1.2)
        kept.append(go(env, 8)["good_tokens"])
    assert kept[0] > kept[1]


def test_a_domain_of_a_whole_rack_is_the_rack_and_so_is_the_last_replica() -> None:
    env = partly(part(30.0, 3, domain=LINK_DOMAIN))
    info = go(env, 1)
    assert racks_of(env)[3][4] == 1 and info["racks_struck"] == 1.0 and info["groups_struck"] == 0.0
    pools = (
        PoolConfig("gb300_nvl72", "prefill", 1, dp=4),
        PoolConfig("vera_rubin_nvl144", "decode", 1, dp=36, mtp=True),
    )
    site = SiteConfig("Two", 1e6, "deepseek-r1", pools, 50.0, {"chat": 1.0})
    env = partly(part(30.0, 1), part(40.0, 1), site=site)
    env.factory._faults()[1, Fault.PLACE] = 0.99  # type: ignore[call-arg]
    info = go(env, 1)
    # Of two replicas one goes, then the rack with what is out in it; that is out for longer than the rack.
    assert (info["groups_struck"], info["racks_struck"]) == (1.0, 1.0)
    state = env.factory.engine.state
    assert racks_of(env)[1] == [0, 0, 0, 0, 1]
    assert state.pool[0, 1, Pool.OUT_REPLICAS] == 0.0
    assert state.fault[0, :2, Fault.BACK_S].tolist() == [30.0 + 240.0 + 120.0, 40.0 + 240.0]
    go(env, 4, reset=False)
    assert racks_of(env)[1] == [0, 0, 0, 1, 0]
    assert state.pool[0, 1, [Pool.OUT_REPLICAS, Pool.OUT_SHARE]].tolist() == [1.0, 0.0]


def test_what_is_out_sleeps_first_and_wakes_last() -> None:
    env = partly(part(30.0, 3, lasts_s=3600.0), demand_scale=0.2, horizon_s=2400.0)
    go(env, 1)
    state = env.factory.engine.state
    racks = env.action_layout.racks.copy()
    share = 1.0 / (5 * EDGE.pools[3].replicas_per_rack)
    assert state.pool[0, 3, Pool.OUT_SHARE] == pytest.approx(share)
    racks[3] = 4
    go(env, 4, reset=False, racks=racks)
    assert racks_of(env)[3] == [4, 0, 0, 1, 0]
    assert state.pool[0, 3, Pool.OUT_SHARE] == 0.0 and state.pool[0, 3, Pool.OUT_REPLICAS] == 1.0
    assert state.fault[0, 0, Fault.AWAKE] == 0.0
    racks[3] = 5
    wake_steps = int(np.ceil(env.factory.params.pool[3, PoolSpec.WAKE_S] / 60.0)) + 1
    go(env, wake_steps, reset=False, racks=racks)
    assert racks_of(env)[3] == [5, 0, 0, 0, 0]
    assert state.pool[0, 3, Pool.OUT_SHARE] == pytest.approx(share)


def test_a_rack_that_fails_takes_what_was_out_in_it() -> None:
    first, second = part(30.0, 3, lasts_s=600.0), part(40.0, 3, domain=RACK, lasts_s=60.0)
    for place, absorbed in ((0.0, True), (0.9, False)):
        second[Fault.PLACE] = place
        env = partly(first, second)
        info = go(env, 1)
        state = env.factory.engine.state
        assert racks_of(env)[3] == [4, 0, 0, 0, 1] and info["racks_struck"] == 1.0
        replicas = EDGE.pools[3].replicas_per_rack
        assert state.pool[0, 3, Pool.OUT_SHARE] == pytest.approx(0.0 if absorbed else 1.0 / (4 * replicas))
        assert state.pool[0, 3, Pool.OUT_REPLICAS] == (0.0 if absorbed else 1.0)
        # The rack is back before what was out in it: it rests, and so does that, until it is woken.
        go(env, 1, reset=False, racks=np.minimum(env.action_layout.racks, 4))
        assert racks_of(env)[3] == [4, 0, 0, 1, 0] and state.pool[0, 3, Pool.OUT_REPLICAS] == 1.0
        assert state.fault[0, 0, Fault.AWAKE] == (0.0 if absorbed else 1.0)
    # GPUs that are out already cannot fail again.
    again = part(50.0, 3)
    again[Fault.PLACE] = 0.0
    env = partly(first, again)
    assert go(env, 1)["groups_struck"] == 1.0


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_racks_that_do_both_phases_lose_their_part_in_both(resolution: str) -> None:
    pools = (PoolConfig("gb300_nvl72", "both", 3, dp=8),)
    site = SiteConfig("Both", 1e6, "deepseek-r1", pools, 400.0, {"chat": 1.0}, drain_s=60.0)
    env = partly(part(70.0, 0), part(80.0, 0, 1), site=site, resolution=resolution, horizon_s=1800.0)
    info = go(env, 2)
    state = env.factory.engine.state
    assert info["groups_struck"] == 2.0
    assert state.pool[0, :, Pool.OUT_REPLICAS].tolist() == [2.0, 2.0]
    assert state.pool[0, :, Pool.OUT_SHARE] == pytest.approx([2.0 / 27.0] * 2)
    # 8 GPUs each, counted once.
    assert info["gpu_down_s"] == pytest.approx(8 * (50.0 + 40.0))
    go(env, 6, reset=False)
    assert not state.pool[0, :, Pool.OUT_SHARE].any()


def test_in_racks_of_two_kinds_of_gpu_one_kind_is_struck() -> None:
    pools = (
        PoolConfig("vera_rubin_nvl144_cpx", "prefill", 3, pp=8),
        PoolConfig("vera_rubin_nvl144_cpx", "decode", 3, dp=8, mtp=True),
    )
    site = SiteConfig("Twin", 2e6, "deepseek-r1", pools, 200.0, {"chat": 1.0})
    # 144 CPX and 72 Rubin GPUs: two thirds of the rack are CPX.
    events = [part(30.0, 0), part(40.0, 0), part(50.0, 0, domain=LINK_DOMAIN)]
    for row, place in zip(events, (0.6, 0.9, 0.8), strict=True):
        row[Fault.PLACE] = place
    env = partly(*events, site=site)
    info = go(env, 1)
    state = env.factory.engine.state
    # The NVLink domain is that of the Rubin GPUs: all nine of their replicas, and the CPX GPUs of the rack go on.
    assert state.pool[0, :, Pool.OUT_REPLICAS].tolist() == [1.0, 10.0]
    assert info["gpu_down_s"] == pytest.approx(8 * 30.0 + 8 * 20.0 + 72 * 10.0)
    assert racks_of(env) == [[3, 0, 0, 0, 0]] * 2


def test_all_kinds_of_faults_and_orders_leave_the_counts_right() -> None:
    spec = ReliabilityConfig(6000.0 * LLAMA_3_FAULTS_PER_GPU_HOUR, 0.78, 300.0, 0.6, 0.1)
    for resolution, levers in (("cohort", ("active_racks", "role", "clock")), ("request", ("active_racks", "clock"))):
        env = AIFactoryEnv(
            site=dataclasses.replace(EDGE, reliability=spec),
            resolution=resolution,
            levers=levers,
            **{**NOON, "demand_scale": 0.3 * SMALL[resolution]},
        )
        env.reset(seed=3)
        rng = np.random.default_rng(0)
        info: dict[str, Any] = {}
        for _ in range(12):
            *_, info = env.step(rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32))
            check(env, info)
            state = env.factory.engine.state
            assert np.all(state.pool[0, :, Pool.OUT_SHARE] >= 0.0) and np.all(state.pool[0, :, Pool.OUT_SHARE] < 1.0)
            events = state.fault[0]
            for pool in range(4):
                mine = (events[:, Fault.WHERE] == pool) & (events[:, Fault.REPLICAS] > 0.0)
                mine &= events[:, Fault.AWAKE] >= 0.0
                assert state.pool[0, pool, Pool.OUT_REPLICAS] == events[mine, Fault.REPLICAS].sum()
        assert info["groups_struck"] > 2.0 and info["racks_struck"] > 0.0


# ------------------------------------------------------------------------------------------------------------ configuration


def test_scenarios_may_give_shares() -> None:
    day = dataclasses.replace(scenario("steady"), faults=FaultSpec(100.0, 0.5, 0.25))
    env = AIFactoryEnv(site=EDGE, scenario=day, **NOON)
    _, info = env.reset(seed=0)
    assert set(PART_FAULT_KEYS) <= set(info)
    table = env.factory.engine.state.fault[0]
    assert {GPU_GROUP, LINK_DOMAIN, RACK} == set(table[np.isfinite(table[:, Fault.TIME_S]), Fault.DOMAIN].astype(int))
    assert env.factory.engine.state.site[0, Site.FAULTS] == 2.0
    assert (FaultSpec(1.0, 0.2) | FaultSpec(2.0, None, 0.3)) == FaultSpec(2.0, 0.2, 0.3)
    assert FaultSpec(0.0, 0.4).at(IN_PART).gpu_group_share == 0.4
    assert FaultSpec().at(IN_PART) == IN_PART
    # A site whose racks never fail has no parts that do, and a reset may bring them in.
    plain = AIFactoryEnv(site=EDGE, scenario="steady", **NOON)
    _, info = plain.reset(seed=0, options={"scenario": day})
    assert not set(PART_FAULT_KEYS) & set(info) and plain.factory.engine.state.site[0, Site.FAULTS] == 2.0


def test_bad_shares_are_refused() -> None:
    table = {
        "name": "s",
        "cap_w": 1e6,
        "model": "deepseek-r1",
        "demand_rps": 1.0,
        "mix": {"chat": 1.0},
        "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 1} for phase in ("prefill", "decode")],
    }
    assert site_from_table({**table, "reliability": {"gpu_group_share": 0.9}}).reliability == ReliabilityConfig(
        gpu_group_share=0.9
    )
    for wrong, message in (
        ({"gpu_group": 0.5}, "gpu_group_share"),
        ({"gpu_group_share": -0.1}, "reliability.gpu_group_share"),
        ({"nvlink_domain_share": "half"}, "reliability.nvlink_domain_share"),
        ({"gpu_group_share": 0.6, "nvlink_domain_share": 0.5}, "at most 1"),
        ({"gpu_group_repair_s": 0.0}, "reliability.gpu_group_repair_s"),
        ({"gpus_per_group": 0}, "reliability.gpus_per_group"),
        ({"gpus_per_group": 2.5}, "reliability.gpus_per_group"),
    ):
        with pytest.raises(ConfigError, match=message):
            site_from_table({**table, "reliability": wrong})
    with pytest.raises(ConfigError, match="faults: gpu_group_share 0.7 and nvlink_domain_share 0.7"):
        FaultSpec(1.0, 0.7, 0.7)
