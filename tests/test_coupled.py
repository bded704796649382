"""Pools that live in the same racks: two kinds of GPU that share a rack's power, and GPUs that do both phases."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import ai_factory_baselines
from ai_factory_gym import AIFactoryEnv, AIFactoryVectorEnv, ConfigError, serving_point
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.describe import describe
from ai_factory_gym.discrete import DiscreteLevers
from ai_factory_gym.engine.layout import (
    DECODE,
    NOBODY,
    PREFILL,
    SEPARATE,
    SHARED_GPUS,
    SHARED_POWER,
    Array,
    Class,
    CohortInt,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteInt,
    SiteSpec,
    Stage,
)
from ai_factory_gym.engine.truth import truth_of
from ai_factory_gym.levers import LEAST_LIMIT
from ai_factory_gym.operating_point import SteadySite, steady_site
from ai_factory_gym.params import LEAST_DECODE_SHARE, idle_facility_w, largest_rack_w, nameplate_it_w, site_pue
from ai_factory_gym.physics.power import prefill_part
from ai_factory_gym.sites import PoolConfig, SiteConfig, load_site
from ai_factory_gym.sites.money import MoneyConfig
from ai_factory_gym.validate import validate
from tests import random_sites

Table = dict[str, Any]

CPX = "vera_rubin_nvl144_cpx"
LEVERS = ("route_prefill", "route_decode", "clock", "active_racks", "power_limit")
COUNTS = [PoolInt.ACTIVE, PoolInt.WAKING, PoolInt.DRAINING, PoolInt.ASLEEP]


def table(*pools: Table, **settings: Any) -> Table:
    return {
        "name": "Coupled",
        "cap_w": 1e8,
        "model": "deepseek-r1",
        "demand_rps": 1500.0,
        "mix": {"chat": 0.8, "coding": 0.2},
        "dwell_s": 60.0,
        "drain_s": 30.0,
        "pools": list(pools),
        **settings,
    }


def cpx_pools(racks: int = 4, **settings: Any) -> tuple[Table, Table]:
    return (
        {"rack": CPX, "phase": "prefill", "racks": racks, "pp": 8, **settings},
        {"rack": CPX, "phase": "decode", "racks": racks, "dp": 8, "mtp": True, **settings},
    )


def both(racks: int = 6, **settings: Any) -> Table:
    return {"rack": "gb300_nvl72", "phase": "both", "racks": racks, "dp": 8, "mtp": True, **settings}


SHARED = table(*cpx_pools())
AGGREGATED = table(both())
MIXED = table(
    both(4),
    *cpx_pools(2),
    {"rack": "vera_rubin_nvl144", "phase": "decode", "racks": 2, "dp": 8, "mtp": True},
)
SITES = {"shared": SHARED, "aggregated": AGGREGATED, "mixed": MIXED}


def make(site: Table | SiteConfig, **settings: Any) -> AIFactoryEnv:
    given = {"scenario": "steady", "horizon_s": 600.0, "warmup_s": 120.0, "lambda_tokens_per_joule": 1.0}
    return AIFactoryEnv(site=site, **{"levers": LEVERS, **given, **settings})


def full(env: AIFactoryEnv, **values: Any) -> Array:
    return env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})


def wander(env: AIFactoryEnv, steps: int, seed: int = 0, low: float = -0.5) -> list[Array]:
    """Actions that drift, with every routing, clock, rack and limit in reach."""
    rng = np.random.default_rng(seed)
    chosen = rng.uniform(low, 1.0, env.action_layout.size)
    actions = []
    for _ in range(steps):
        chosen = np.clip(chosen + rng.normal(0.0, 0.3, chosen.shape), -1.0, 1.0)
        actions.append(chosen.astype(np.float32))
    return actions


def pairs(env: AIFactoryEnv) -> list[tuple[int, int]]:
    """Prefill and decode pool of every pair."""
    specs = env.factory.params.pool
    return [
        (k, int(spec[PoolSpec.PARTNER]))
        for k, spec in enumerate(specs)
        if spec[PoolSpec.PARTNER] >= 0 and spec[PoolSpec.PHASE] == PREFILL
    ]


# ----------------------------------------------------------------------------------------------------- what a site says


def test_two_kinds_of_gpu_in_a_rack_are_one_rack() -> None:
    site = load_site(SHARED)
    assert [pool.name for pool in site.pools] == [f"{CPX}/prefill", f"{CPX}/decode"]
    env = make(SHARED)
    specs = env.factory.params.pool
    assert list(specs[:, PoolSpec.PARTNER]) == [1, 0]
    assert list(specs[:, PoolSpec.COUPLING]) == [SHARED_POWER] * 2
    # 370 kW by SemiAnalysis (catalogue), of which 143 are the CPX GPUs'; 48 kW idle, 34 of them with the shared CPUs and switches.
    assert nameplate_it_w(site) == pytest.approx(4 * 370e3)
    assert list(env.action_layout.rack_w) == pytest.approx([370e3, 370e3])
    assert idle_facility_w(site) == pytest.approx(4 * 48e3 * site_pue(site, 48.0 / 370.0))
    assert "4 racks in 2 pools" in validate_text(SHARED)


def test_a_pool_that_does_both_becomes_two_with_one_rack_count() -> None:
    site = load_site(AGGREGATED)
    assert [(pool.name, pool.phase, pool.aggregated) for pool in site.pools] == [
        ("gb300_nvl72/prefill", "prefill", True),
        ("gb300_nvl72/decode", "decode", True),
    ]
    assert site.pools[0].mtp is False and site.pools[1].mtp is True
    python = SiteConfig(
        "Coupled", 1e8, "deepseek-r1", (PoolConfig("gb300_nvl72", "both", 6, dp=8, mtp=True),), 1500.0, {"chat": 1.0}
    )
    assert python.pools == site.pools
    profile = find_rack("gb300_nvl72").group().profile(None)
    assert nameplate_it_w(site) == pytest.approx(6 * profile.nameplate_w)
    assert idle_facility_w(site) == pytest.approx(
        6 * profile.idle_rack_w * site_pue(site, profile.idle_rack_w / profile.nameplate_w)
    )
    specs = make(AGGREGATED).factory.params.pool
    assert list(specs[:, PoolSpec.COUPLING]) == [SHARED_GPUS] * 2
    # Prefill is stopped where decode would have less than its share.
    assert 1.0 - specs[0, PoolSpec.INTERFERENCE] * specs[0, PoolSpec.PREFILL_LIMIT] == pytest.approx(LEAST_DECODE_SHARE)


def test_pools_of_their_own_are_not_coupled() -> None:
    specs = make(random_sites.good()).factory.params
    assert specs.site[SiteSpec.COUPLED] == 0.0
    assert (specs.pool[:, PoolSpec.COUPLING] == SEPARATE).all() and (specs.pool[:, PoolSpec.PARTNER] == -1).all()


def validate_text(site: Table) -> str:
    """Return what ``validate`` says of a table, written to a file as a user has it."""
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in site.items() if key not in ("pools", "mix")]
    lines += ["[mix]", *(f"{key} = {value}" for key, value in site["mix"].items())]
    for pool in site["pools"]:
        lines += [
            "[[pools]]",
            *(f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in pool.items()),
        ]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "site.toml"
        path.write_text("\n".join(lines).replace("'", '"'), encoding="utf-8")
        return validate(str(path)) + describe(str(path))


def test_racks_are_paid_for_once() -> None:
    money = MoneyConfig(rack_usd_per_hour=((CPX, 360.0), ("gb300_nvl72", 180.0)))
    for site, usd_per_hour in ((SHARED, 4 * 360.0), (AGGREGATED, 6 * 180.0)):
        params = make(replace(load_site(site), money=money)).factory.params
        assert params.site[SiteSpec.CAPITAL_USD_PER_S] * 3600.0 == pytest.approx(usd_per_hour)


def test_describe_and_validate_say_what_is_shared() -> None:
    shared, aggregated = validate_text({**SHARED, "cap_w": 1.0e6}), validate_text({**AGGREGATED, "cap_w": 0.6e6})
    assert f"{CPX}/prefill and {CPX}/decode share racks and their power: 4 racks in all" in shared
    assert "hypothetical" in shared
    assert "gb300_nvl72/prefill and gb300_nvl72/decode share GPUs (aggregated): 6 racks in all" in aggregated
    assert "6 racks in 2 pools" in aggregated


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        (cpx_pools()[:1], [f"{CPX}/prefill", "two kinds of GPU", "give the decode pool"]),
        (({**cpx_pools()[0], "racks": 3}, cpx_pools()[1]), ["racks", "3", f"{CPX}/decode", "4"]),
        (({**cpx_pools()[0], "min_active": 0}, cpx_pools()[1]), ["min_active", "same racks"]),
        (({**cpx_pools()[0], "rack_limit_w": 2e5}, cpx_pools()[1]), ["rack_limit_w", "same racks"]),
        (({"rack": CPX, "phase": "both", "racks": 4},), ["phase", "'both'", "two kinds"]),
        (({**both(), "pp": 2},), ["pp", "2", "prefill pools"]),
        (({**both(), "rack_limit_w": -1.0},), ["rack_limit_w", "-1"]),
        (({**both(), "rack_limit_w": "low"},), ["rack_limit_w", "'low'"]),
        (({**both(), "aggregated": True},), ["aggregated"]),
        (({**both(), "phase": "bot"},), ["phase", "'bot'", "both"]),
        ((both(), {"rack": "gb300_nvl72", "phase": "decode", "racks": 2, "dp": 8}), ["gb300_nvl72/decode", "twice"]),
        ((both(), {"rack": "vera_rubin_nvl144", "phase": "decode", "racks": 2, "dp": 8}), ["decode pools only"]),
        ((both(), {"rack": "rubin_cpx_sidecar", "phase": "prefill", "racks": 2, "pp": 8}), ["prefill pools only"]),
    ],
)
def test_pools_that_do_not_fit_together_are_refused(pools: tuple[Table, ...], words: list[str]) -> None:
    # With a second pool of the missing phase where the site would be incomplete for another reason.
    if len(pools) == 1 and pools[0]["phase"] == "prefill":
        pools = (*pools, {"rack": "gb300_nvl72", "phase": "decode", "racks": 2, "dp": 8})
    with pytest.raises(ConfigError) as error:
        load_site(table(*pools))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_half_an_aggregated_pool_is_refused() -> None:
    half = PoolConfig("gb300_nvl72", "prefill", 2, dp=8, aggregated=True)
    other = PoolConfig("vera_rubin_nvl144", "decode", 2, dp=8)
    with pytest.raises(ConfigError, match="one half of aggregated racks"):
        SiteConfig("Half", 1e7, "deepseek-r1", (half, other), 1.0, {"chat": 1.0})
    other = PoolConfig("gb300_nvl72", "decode", 2, dp=4, aggregated=True)
    with pytest.raises(ConfigError, match="dp: 8 is not allowed"):
        SiteConfig("Half", 1e7, "deepseek-r1", (half, other), 1.0, {"chat": 1.0})


# ------------------------------------------------------------------------------------------------- racks, power, energy


@pytest.mark.parametrize("name", SITES)
def test_racks_move_together_and_energy_adds_up(name: str) -> None:
    """Under wandering actions, pools that may be emptied included."""
    site = copy.deepcopy(SITES[name])
    for pool in site["pools"]:
        pool["min_active"] = 0
    env = make(site, horizon_s=3600.0, demand_scale=0.5)
    env.reset(seed=2)
    specs = env.factory.params.pool
    asleep = 0
    before = 0.0
    for action in wander(env, 50, low=-1.0):
        info = env.step(action)[4]
        state = env.factory.engine.state
        for prefill, decode in pairs(env):
            counts = state.pool_int[0][:, COUNTS]
            assert list(counts[prefill]) == list(counts[decode])
            assert counts[prefill].sum() == specs[prefill, PoolSpec.RACKS]
            asleep += counts[prefill][3]
        assert state.pool[0, :, Pool.POWER_W].sum() == pytest.approx(state.site[0, Site.IT_POWER_W], rel=1e-12)
        assert state.pool[0, :, Pool.ENERGY_J].sum() == pytest.approx(info["it_energy_j"], rel=1e-9)
        stage = state.cohort_int[0][:, CohortInt.STAGE]
        assert (state.pool_int[0, :, PoolInt.ASSIGNED].sum()) == 2 * (stage != Stage.FREE).sum()
        decided = info["requests_met_slo"] + info["requests_missed_slo"]
        assert decided <= info["requests_arrived"]
        assert info["energy_j"] > before
        before = info["energy_j"]
    # Of two wishes the larger holds: in the mixed site all four are never low at once.
    assert asleep > 0 or name == "mixed"
    assert decided > 0


@pytest.mark.parametrize(("name", "rack"), [("shared", CPX), ("aggregated", "gb300_nvl72")])
def test_overhead_idle_and_sleep_are_counted_once(name: str, rack: str) -> None:
    env = make({**SITES[name], "dwell_s": 0.0}, demand_scale=1e-9, warmup_s=0.0, horizon_s=3600.0)
    env.reset(seed=0)
    profiles = [group.profile(None) for group in find_rack(rack).groups]
    idle_w = sum(profile.idle_rack_w for profile in profiles)
    sleep_w = sum(profile.sleep_rack_w for profile in profiles)
    wake_w = sum(profile.wake_rack_w for profile in profiles)
    racks = int(env.action_layout.racks[0])
    info = env.step(full(env))[4]
    assert info["it_power_w"] == pytest.approx(racks * idle_w, rel=1e-6)
    for _ in range(3):
        info = env.step(full(env, racks=np.ones(2)))[4]
    assert info["it_power_w"] == pytest.approx(idle_w + (racks - 1) * sleep_w, rel=1e-6)
    # The larger of two wishes holds.
    info = env.step(full(env, racks=np.array([1, racks])))[4]
    assert info["it_power_w"] == pytest.approx(idle_w + (racks - 1) * wake_w, rel=1e-6)
    for _ in range(10):
        info = env.step(full(env, racks=np.array([racks, 1])))[4]
    assert info["it_power_w"] == pytest.approx(racks * idle_w, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- rack limits


@pytest.mark.parametrize("name", ["shared", "aggregated"])
@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_racks_never_draw_more_than_their_limit(name: str, resolution: str) -> None:
    """Short steps, so that the draw of nearly every segment is seen; clocks and racks wander, the site's limit and the lever's."""
    exact = resolution == "request"
    limit_w = {"shared": 200e3, "aggregated": 95e3}[name]
    site = copy.deepcopy(SITES[name])
    for pool in site["pools"]:
        pool |= {"rack_limit_w": limit_w, "racks": 1 if exact else pool["racks"]}
    env = make(
        {**site, "demand_rps": 700.0 if exact else 4500.0},
        control_interval_s=2.0 if exact else 5.0,
        resolution=resolution,
        warmup_s=20.0 if exact else 120.0,
        horizon_s=1200.0,
    )
    env.reset(seed=1)
    kept, bound = [], 0
    for action in wander(env, 10 if exact else 100, seed=3):
        env.step(action)
        pool, ints = env.factory.engine.state.pool[0], env.factory.engine.state.pool_int[0]
        awake = ints[0, PoolInt.ACTIVE] + ints[0, PoolInt.DRAINING]
        powers = env.factory.params.power
        rest_w = ints[0, PoolInt.WAKING] * powers[:, 11].sum() + ints[0, PoolInt.ASLEEP] * powers[:, 10].sum()
        limit = pool[0, Pool.POWER_LIMIT_W]
        assert limit == pool[1, Pool.POWER_LIMIT_W] <= limit_w
        if pool[:, Pool.CLOCK].max() > 0.2 + 1e-6:
            kept.append((pool[:, Pool.POWER_W].sum() - rest_w) / awake / limit)
        bound += bool((pool[:, Pool.CLOCK] < pool[:, Pool.CLOCK_CEILING]).any())
    assert bound > 3
    assert max(kept) <= 1.0 + 1e-9
    # And it is used, as far as an upper bound of what is to come can tell.
    assert max(kept) > 0.8


def test_under_a_tight_rack_limit_more_prefill_means_slower_decode() -> None:
    """Slower than the longer contexts alone make it."""
    slower = []
    for share in (0.0, 0.1, 0.2):
        tpot = []
        for limit_w in (370e3, 150e3):
            site = table(
                *cpx_pools(rack_limit_w=limit_w), demand_rps=2500.0, mix={"chat": 1.0 - share, "coding": share}
            )
            env = make(site)
            env.reset(seed=5)
            for _ in range(5):
                env.step(full(env))
            counters = env.factory.engine.state.cls[0].sum(axis=0)
            tpot.append(counters[Class.TPOT_SUM_S] / counters[Class.TPOT_COUNT])
        slower.append(tpot[1] / tpot[0])
    assert all(less < more for less, more in pairwise(slower))
    assert slower[-1] > slower[0] + 0.01


def test_a_lower_limit_draws_less_and_the_lower_of_two_holds() -> None:
    draws = []
    for share in (1.0, 0.6, 0.45):
        drawn = []
        for which in (0, 1):
            env = make({**SHARED, "demand_rps": 4000.0})
            env.reset(seed=1)
            limits = np.full(2, np.inf)
            limits[which] = share * env.action_layout.rack_w[which]
            for _ in range(5):
                info = env.step(full(env, power_limit_w=limits))[4]
            drawn.append(info["it_energy_j"])
        # Whichever pool's dimension it was.
        assert drawn[0] == drawn[1]
        draws.append(drawn[0])
    assert draws[0] > draws[1] > draws[2]
    assert LEAST_LIMIT < 0.45


def test_a_limit_of_racks_of_their_own_is_the_levers() -> None:
    """``rack_limit_w`` at a pool that shares nothing does what the lever ``power_limit`` does."""
    limited = random_sites.good() | {"cap_w": 1e8, "demand_rps": 4000.0}
    limited["pools"][0]["rack_limit_w"] = 60e3
    totals = []
    for site in (random_sites.good() | {"cap_w": 1e8, "demand_rps": 4000.0}, limited):
        env = make(site)
        env.reset(seed=1)
        limits = np.array([60e3, np.inf])
        for _ in range(5):
            info = env.step(full(env, power_limit_w=limits))[4]
        totals.append(info["it_energy_j"])
        assert env.factory.engine.state.pool[0, 0, Pool.CLOCK] < 1.0
    # But for the warm-up, in which only the site has it.
    assert totals[0] == pytest.approx(totals[1], rel=3e-3)
    assert nameplate_it_w(load_site(limited)) == pytest.approx(4 * 60e3 + 4 * 138e3)
    assert list(env.action_layout.rack_w) == pytest.approx([60e3, 138e3])


@pytest.mark.parametrize("name", ["shared", "aggregated"])
def test_a_limit_that_never_binds_changes_nothing(name: str) -> None:
    loose = copy.deepcopy(SITES[name])
    for pool in loose["pools"]:
        pool["rack_limit_w"] = 5e5
    seen = []
    for site in (SITES[name], loose):
        env = make(site)
        rows = [env.reset(seed=3)[0]]
        rows += [env.step(action)[0] for action in [full(env), *[a * 0.3 + 0.5 for a in wander(env, 6)]]]
        seen.append(np.array(rows))
    assert (seen[0] == seen[1]).all()


@pytest.mark.parametrize("name", SITES)
def test_a_segment_the_brake_did_not_look_at_stays_below_the_cap(name: str) -> None:
    """The bound of the draw holds for pools that share racks; see the test of the same name in test_behaviour.py."""
    trusted, steps = [], 0
    for seed in range(3):
        site = {**SITES[name], "demand_rps": {"shared": 2500.0, "aggregated": 2000.0, "mixed": 1500.0}[name]}
        site["cap_w"] = {"shared": 0.95e6, "aggregated": 0.72e6, "mixed": 1.1e6}[name]
        limits = [{**pool, "rack_limit_w": 230e3} if pool["rack"] == CPX else pool for pool in site["pools"]]
        site["pools"] = limits if seed == 2 else site["pools"]
        env = make(site, control_interval_s=5.0)
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        chosen = rng.uniform(-0.3, 0.9, env.action_layout.size)
        for _ in range(120):
            chosen = np.clip(chosen + rng.normal(0.0, 0.05, chosen.shape), -1.0, 1.0)
            before = env.factory.engine.state.site_int[0, SiteInt.SEGMENTS]
            info = env.step(chosen.astype(np.float32))[4]
            steps += 1
            if env.factory.engine.state.site_int[0, SiteInt.SEGMENTS] == before + 1 and info["brake_s"] == 0.0:
                trusted.append(info["facility_power_w"] / info["cap_w"])
    assert len(trusted) > 0.2 * steps
    assert max(trusted) <= 1.0
    assert max(trusted) > 0.85


# --------------------------------------------------------------------------------------------------------- aggregated

WARM_UP_S, SCORED_S = 120.0, 120.0
LAYOUTS: dict[str, tuple[str, str, Table, Table]] = {
    "gb300": (
        "gb300_nvl72",
        "deepseek-r1",
        {"racks": 1, "dp": 8, "mtp": True},
        {"precision": "fp4", "decode_workers": 9, "decode_dp": 8, "mtp": True},
    ),
    "h100": (
        "h100_sxm8",
        "llama-3.1-70b",
        {"racks": 6, "tp": 4, "precision": "fp8"},
        {"precision": "fp8", "decode_workers": 12, "decode_tp": 4},
    ),
}


def replay(site: Table, rate: float, prompt: int, output: int, **settings: Any) -> AIFactoryEnv:
    """Return a site that gets requests of one length at random times (Poisson)."""
    gaps = np.random.default_rng(7).exponential(1.0 / rate, int(1.1 * rate * (WARM_UP_S + SCORED_S)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
            writer.writerows((f"{arrival:.6f}", prompt, output) for arrival in np.cumsum(gaps))
        return make(site, trace=path, trace_repeat=True, **settings)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_prefill_stops_where_decode_would_have_less_than_its_share(resolution: str) -> None:
    """Overloaded with prompts and short answers, within the racks' nameplate."""
    site = table(both(1), mix={"chat": 1.0})
    env = replay(site, 600.0, 8192, 16, resolution=resolution, warmup_s=10.0, horizon_s=120.0, control_interval_s=10.0)
    env.reset(seed=0)
    busy, shares = [], []
    for _ in range(4):
        info = env.step(full(env))[4]
        pool = env.factory.engine.state.pool[0]
        busy.append(pool[0, Pool.STEP_BUSY_S] / 10.0)
        shares.append(pool[1, Pool.PREFILL_SHARE])
        assert info["it_power_w"] <= 138e3
    assert busy[-1] == pytest.approx(1.0, abs=1e-3)
    assert shares[-1] == pytest.approx(env.factory.params.pool[1, PoolSpec.PREFILL_LIMIT], rel=1e-3)
    assert info["requests_rejected"] > 0
    assert info["output_tokens"] > 0


@cache
def settled(name: str, prompt: int, output: int, users: int, resolution: str = "cohort") -> Table:
    """Replay requests of one length, Poisson, at 95 % of the rate of so many users per replica; and the serving point met."""
    rack, model, pool, arguments = LAYOUTS[name]

    def point(concurrency: int) -> Any:
        return serving_point(
            rack,
            model,
            mode="aggregated",
            prompt_tokens=prompt,
            output_tokens=output,
            concurrency=concurrency,
            **arguments,
        )

    rate = 0.95 * point(users * arguments["decode_workers"]).requests_per_s
    site = table({"rack": rack, "phase": "both", **pool}, cap_w=1e10, model=model, mix={"chat": 1.0})
    env = replay(site, rate, prompt, output, resolution=resolution, warmup_s=WARM_UP_S, horizon_s=SCORED_S)
    env.reset(seed=0)
    busy = 0.0
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(full(env))
        busy += env.factory.engine.state.pool[0, 0, Pool.STEP_BUSY_S] / SCORED_S
    counters = env.factory.engine.state.cls[0].sum(axis=0)
    found = {
        "requests_per_s": info["output_tokens"] / output / SCORED_S,
        "ttft_s": counters[Class.TTFT_SUM_S] / counters[Class.TTFT_COUNT],
        "tpot_s": counters[Class.TPOT_SUM_S] / counters[Class.TPOT_COUNT],
        "it_w": info["it_energy_j"] / SCORED_S,
        "prefill_share": busy * env.factory.params.pool[0, PoolSpec.PREFILL_LIMIT],
        "rejected": info["requests_rejected"],
    }
    found["in_flight"] = found["requests_per_s"] * (found["ttft_s"] + (output - 1) * found["tpot_s"])
    task = env.factory.task
    found["steady"] = SteadySite(task.site, task.classes, env.factory.params).at(found["requests_per_s"])
    found["point"] = point(round(found["in_flight"]))
    return found


@pytest.mark.parametrize(
    ("name", "prompt", "output", "users"),
    [
        ("gb300", 1024, 2048, 32),
        ("gb300", 1024, 2048, 256),
        ("gb300", 1024, 512, 96),
        ("gb300", 8192, 1024, 96),
        ("h100", 1024, 2048, 32),
        ("h100", 1024, 2048, 256),
        ("h100", 1024, 512, 96),
        ("h100", 8192, 1024, 16),
    ],
)
def test_aggregated_racks_settle_at_the_serving_point(name: str, prompt: int, output: int, users: int) -> None:
    """``serving_point(mode="aggregated")`` was validated against silicon; TTFT there holds the queue of closed benchmarks."""
    found = settled(name, prompt, output, users)
    point = found["point"]
    assert found["rejected"] == 0.0
    assert found["requests_per_s"] == pytest.approx(point.requests_per_s, rel=0.05)
    assert found["tpot_s"] == pytest.approx(point.tpot_s, rel=0.03)
    assert found["it_w"] == pytest.approx(point.power_w_per_gpu * point.gpus, rel=0.01)
    assert found["prefill_share"] == pytest.approx(point.prefill_utilisation, abs=0.015)
    assert found["ttft_s"] < point.ttft_s + 4.0 * point.tpot_s
    # And the fluid model where the engine is.
    assert sum(found["steady"].pool_w) == pytest.approx(found["it_w"], rel=0.01)
    assert found["steady"].tpot_s[1] == pytest.approx(found["tpot_s"], rel=0.06)
    assert found["steady"].utilisation[0] * 0.9 / 1.339 == pytest.approx(found["prefill_share"], abs=0.015)


@pytest.mark.parametrize("name", LAYOUTS)
def test_aggregated_cohorts_settle_where_requests_do(name: str) -> None:
    cohorts, requests = (settled(name, 1024, 512, 32, resolution) for resolution in ("cohort", "request"))
    for key in ("requests_per_s", "tpot_s", "it_w"):
        assert cohorts[key] == pytest.approx(requests[key], rel=0.01)
    assert cohorts["ttft_s"] == pytest.approx(requests["ttft_s"], rel=0.05)
    assert cohorts["prefill_share"] == pytest.approx(requests["prefill_share"], abs=0.005)


def test_without_a_limit_shared_racks_are_as_pools_apart() -> None:
    """The GPUs are those of the sidecar and of NVL144 racks, and the fluid model says of both what the engine does."""
    apart = table(
        {"rack": "rubin_cpx_sidecar", "phase": "prefill", "racks": 4, "pp": 8},
        {"rack": "vera_rubin_nvl144", "phase": "decode", "racks": 4, "dp": 8, "mtp": True},
    )
    totals = []
    for site in (SHARED, apart):
        env = make(site)
        env.reset(seed=0)
        for _ in range(10):
            info = env.step(full(env))[4]
        task, state = env.factory.task, env.factory.engine.state
        steady = SteadySite(task.site, task.classes, env.factory.params).at(info["requests_arrived"] / 600.0)
        assert sum(steady.pool_w) == pytest.approx(info["it_energy_j"] / 600.0, rel=0.05)
        counters = state.cls[0].sum(axis=0)
        totals.append(
            [info["output_tokens"], counters[Class.TPOT_SUM_S], state.pool[0, 1, Pool.ENERGY_J], steady.pool_w[1]]
        )
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)


def test_requests_are_decoded_where_they_were_prefilled() -> None:
    """An aggregated pool's requests stay; the decode routing of the others has no say in it and leaves it out."""
    env = make(MIXED)
    env.reset(seed=1)
    aggregated = [k for k, pool in enumerate(env.pools) if pool.aggregated]
    others = [k for k, pool in enumerate(env.pools) if pool.phase == "decode" and not pool.aggregated]
    seen = np.zeros(2)
    for action in [full(env), full(env), *wander(env, 6)]:
        env.step(action)
        state = env.factory.engine.state
        ints = state.cohort_int[0][state.cohort_int[0][:, CohortInt.STAGE] != Stage.FREE]
        inside = ints[:, CohortInt.PREFILL_POOL] == aggregated[0]
        assert (ints[inside, CohortInt.DECODE_POOL] == aggregated[1]).all()
        assert np.isin(ints[~inside, CohortInt.DECODE_POOL], others).all()
        seen += inside.sum(), (~inside).sum()
        weight = state.weight[0, DECODE]
        assert (weight[:, aggregated[1]] == 0.0).all()
        assert weight.sum(axis=1) == pytest.approx(1.0)
        # Nothing is sent over the network from an aggregated pool.
        assert state.pool[0, aggregated[0], Pool.TRANSFER_FREE_S] <= state.site[0, 0]
    assert (seen > 20).all()


def test_where_all_is_aggregated_decode_shares_are_those_of_prefill() -> None:
    second = {**both(2), "rack": "vera_rubin_nvl144"}
    env = make(table(both(4), second))
    env.reset(seed=1)
    for action in wander(env, 3):
        env.step(action)
        weight = env.factory.engine.state.weight[0]
        assert (weight[DECODE][:, 2:] == weight[PREFILL][:, :2]).all()
        assert weight[DECODE].sum(axis=1) == pytest.approx(1.0)


def test_more_prefill_slows_decode_on_shared_gpus_and_the_lower_clock_holds() -> None:
    tpot = [settled("gb300", prompt, 512, 96)["tpot_s"] for prompt in (1024, 8192)]
    assert tpot[1] > tpot[0]
    energy = []
    for clocks in ((1.0, 0.6), (0.6, 1.0), (0.6, 0.6), (1.0, 1.0)):
        env = make(AGGREGATED)
        env.reset(seed=1)
        for _ in range(3):
            info = env.step(full(env, clock=np.array(clocks)))[4]
        energy.append(info["energy_j"])
    assert energy[0] == energy[1] == energy[2] < energy[3]


def test_disaggregated_and_aggregated_serve_the_same_physics() -> None:
    """With hardly any prompt to prefill, aggregated racks are decode racks."""
    pools = ({"rack": "gb300_nvl72", "phase": "prefill", "racks": 6, "dp": 8},)
    apart = table(
        *pools, {"rack": "gb300_nvl72", "phase": "decode", "racks": 6, "dp": 8, "mtp": True}, mix={"chat": 1.0}
    )
    together = table(both(6), mix={"chat": 1.0})
    separate, shared = (steady_site(load_site(site)).at(30.0) for site in (apart, together))
    assert shared.tpot_s[1] == pytest.approx(separate.tpot_s[1], rel=0.01)
    # 6 idle prefill racks less.
    assert sum(separate.pool_w) - sum(shared.pool_w) == pytest.approx(
        6 * find_rack("gb300_nvl72").group().profile(None).idle_rack_w, rel=0.02
    )


# ------------------------------------------------------------------------------------------------------ whole programme


@pytest.mark.parametrize("name", SITES)
def test_a_snapshot_goes_on_where_it_was_taken(name: str) -> None:
    env = make(SITES[name])
    env.reset(seed=4)
    actions = wander(env, 6)
    for action in actions[:3]:
        env.step(action)
    engine = env.factory.engine
    taken = engine.snapshot()
    first = [env.step(action)[0] for action in actions[3:]]
    engine.restore(taken)
    again = [env.step(action)[0] for action in actions[3:]]
    # The last action is part of what is seen, so the first observation after the restored one is compared as a whole.
    assert (np.array(first) == np.array(again)).all()
    assert NOBODY == -1


@pytest.mark.parametrize("name", ["shared", "aggregated"])
def test_racks_that_are_not_as_catalogued_are_so_for_both_pools(name: str) -> None:
    """Idle draw is one of a rack, and at the GPUs' limit the rack draws its nameplate all the same."""
    env = make({**SITES[name], "demand_rps": 1e-6}, scenario="steady+mismatch")
    env.reset(seed=1)
    truth = truth_of(env.factory.params, env.factory.engine.state, 0)
    assert np.isfinite(truth.idle_power).all()
    assert truth.idle_power[0] == truth.idle_power[1] != 1.0
    idle_w = sum(group.profile(None).idle_rack_w for group in find_rack(env.pools[0].rack).groups)
    info = env.step(full(env))[4]
    assert info["it_power_w"] == pytest.approx(env.action_layout.racks[0] * idle_w * truth.idle_power[0], rel=1e-6)
    power = env.factory.engine.state.power[0]
    busy = power[1] if name == "aggregated" else power[0]
    if name == "aggregated":
        assert power[0] == pytest.approx(prefill_part(busy, env.factory.params.pool[0, PoolSpec.PREFILL_LIMIT]))
    largest_w = largest_rack_w(power, env.factory.params.pool)
    assert largest_w == pytest.approx(env.action_layout.rack_w)


def test_rows_of_a_vector_environment_are_single_ones() -> None:
    settings = {"scenario": "steady", "horizon_s": 300.0, "warmup_s": 60.0, "lambda_tokens_per_joule": 1.0}
    rows = AIFactoryVectorEnv(num_envs=2, site=MIXED, levers=LEVERS, **settings)
    rows.reset(seed=5)
    single = make(MIXED, **settings)
    single.reset(seed=6)
    for action in wander(single, 4):
        observation, reward, _, _, _ = rows.step(np.stack([action, action]))
        alone = single.step(action)
        assert (observation[1] == alone[0]).all()
        assert reward[1] == alone[1]
    rows.close()


@pytest.mark.parametrize("name", SITES)
def test_racks_in_two_pools_have_both_roles_already(name: str) -> None:
    with pytest.raises(ConfigError, match="'role' is not possible"):
        make(SITES[name], levers=("clock", "role"))


def test_discrete_choices_leave_out_a_routing_without_effect() -> None:
    env = DiscreteLevers(make(MIXED), steps=5)
    env.reset(seed=0)
    layout, masks = env.unwrapped.action_layout, env.action_masks().reshape(-1, 5)
    names = [pool.name for pool in env.unwrapped.pools if pool.phase == "decode"]
    block = masks[layout["route_decode"]].reshape(-1, len(names), 5)
    for k, name in enumerate(names):
        assert (block[:, k].sum(axis=1) == (1 if name == "gb300_nvl72/decode" else 5)).all()


@pytest.mark.parametrize("name", SITES)
def test_simple_rules_work_and_planning_ones_say_why_not(name: str) -> None:
    env = make(SITES[name], levers=("route_prefill", "route_decode", "clock", "active_racks"))
    for rule_name in ("random", "uniform", "capacity_proportional", "least_loaded"):
        observation, _ = env.reset(seed=0)
        rule = ai_factory_baselines.make(rule_name, env)
        state = None
        for _ in range(3):
            action, state = rule.predict(observation, state)
            observation, _, _, _, info = env.step(action)
        assert info["requests_arrived"] > 0
    for rule_name in ("length_aware", "reactive"):
        with pytest.raises(ConfigError, match="share racks"):
            ai_factory_baselines.make(rule_name, env)


def test_random_sites_have_pools_in_the_same_racks() -> None:
    drawn = [random_sites.propose(np.random.default_rng(seed))["pools"] for seed in range(60)]
    assert any(pool["phase"] == "both" for pools in drawn for pool in pools)
    assert any(sum(pool["rack"] == CPX for pool in pools) == 2 for pools in drawn)


@pytest.mark.parametrize("profile", ["max_q", "max_p"])
def test_power_profiles_on_a_site_of_ones_own(profile: str) -> None:
    """The limits of a profile are the site's: nameplate, idle draw and speed."""
    pools = [
        {"rack": "vera_rubin_nvl144", "phase": phase, "racks": 2, "dp": 8, "profile": profile}
        for phase in ("prefill", "decode")
    ]
    site = table(*pools)
    chosen = find_rack("vera_rubin_nvl144").group().profile(profile)
    assert nameplate_it_w(load_site(site)) == pytest.approx(4 * chosen.nameplate_w)
    env = make(site)
    env.reset(seed=0)
    info = env.step(full(env))[4]
    assert 4 * chosen.idle_rack_w < info["it_power_w"] < 4 * chosen.nameplate_w
    with pytest.raises(ConfigError, match="max_p"):
        load_site(table({**pools[0], "profile": "maxp"}, pools[1]))


def test_max_q_computes_slower_and_caps_lower() -> None:
    both_profiles = {}
    for profile in ("max_q", "max_p"):
        pools = [
            {"rack": "vera_rubin_nvl144", "phase": phase, "racks": 4, "dp": 8, "profile": profile}
            for phase in ("prefill", "decode")
        ]
        both_profiles[profile] = make(table(*pools)).factory.params
    assert (both_profiles["max_q"].capacity[PREFILL][:, 0] < both_profiles["max_p"].capacity[PREFILL][:, 0]).all()
