"""Ramp limits: they hold whatever the operator does, energy is conserved, and what is not there changes nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.layout import PoolInt, Site, SiteSpec
from ai_factory_gym.params import idle_facility_w, waking_step_w
from ai_factory_gym.physics.training import stored_burst_w
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import (
    BatteryConfig,
    PoolConfig,
    RampConfig,
    ReliabilityConfig,
    SiteConfig,
    StorageConfig,
    load_site,
    site_from_table,
)
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.validate import findings

EDGE = load_site("edge")
STEP_S = 15.0
EVENING = {
    "start_time_s": 18 * 3600.0,
    "horizon_s": 3600.0,
    "warmup_s": 60.0,
    "control_interval_s": STEP_S,
    "lambda_tokens_per_joule": 3.0,
}
SLOPE = EDGE.cap_w / 60.0
"""The whole cap in a minute, W/s."""

RACKS = ("clock", "active_racks")


def limited(up: float | None, down: float | None, *, storage: bool = False, **values: Any) -> SiteConfig:
    """Return the Edge site with limits given as shares of its cap per minute, whose clocks may go down to 0.3."""
    ramp = RampConfig(None if up is None else up * SLOPE, None if down is None else down * SLOPE)
    settings = {"clock_min": 0.3, "drain_s": 20.0, "dwell_s": 30.0, **values}
    return dataclasses.replace(EDGE, ramp=ramp, rack_storage=StorageConfig() if storage else None, **settings)


def make(site: SiteConfig, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site in the evening."""
    return AIFactoryEnv(site=site, **{**EVENING, **settings})


def abrupt(env: AIFactoryEnv, steps: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return the infos of an episode whose operator throws levers about: clocks, and racks to sleep and awake."""
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    infos = []
    for _ in range(steps):
        action = rng.choice([-1.0, -0.3, 0.4, 1.0], env.action_space.shape).astype(np.float32)
        infos.append(env.step(action)[4])
    return infos


def steepest(infos: list[dict[str, Any]], key: str, step_s: float = STEP_S) -> tuple[float, float]:
    """Return the fastest rise of the mean draw between any two steps, W/s, and the fastest fall but for what is counted as excess."""
    mean = np.array([info[key] for info in infos])
    excess = np.array([info.get("ramp_excess_w", 0.0) for info in infos])
    change = mean[None, :] - mean[:, None]
    # What moved within the earlier step counts too: the excess of any time before it ended may be in its mean.
    before = np.concatenate([[0.0], excess[:-1]])
    known = excess[None, :] - before[:, None]
    seconds = step_s * (np.arange(len(mean))[None, :] - np.arange(len(mean))[:, None])
    later = seconds > 0.0
    rise = (change[later] / seconds[later]).max()
    fall = ((-change - known)[later] / seconds[later]).max()
    return float(rise), float(fall)


def balance(env: AIFactoryEnv, info: dict[str, Any], before: tuple[float, float]) -> None:
    """Check that grid energy is that of the facility and of what is stored, and that stores lose and make nothing but their losses."""
    moved = info["storage_in_j"] - info["storage_out_j"]
    moved += info.get("battery_in_j", 0.0) - info.get("battery_out_j", 0.0)
    assert info["grid_energy_j"] == pytest.approx(info["energy_j"] + moved, rel=1e-9)
    spec = env.factory.params.site
    for name, one_way, start in (
        ("storage", spec[SiteSpec.STORAGE_EFFICIENCY], before[0]),
        ("battery", spec[SiteSpec.BATTERY_EFFICIENCY], before[1]),
    ):
        if f"{name}_in_j" in info:
            held = start + info[f"{name}_in_j"] * one_way - info[f"{name}_out_j"] / one_way
            assert info[f"{name}_charge_j"] == pytest.approx(held, rel=1e-9, abs=1.0)
    assert 0.0 <= info["storage_charge_j"] <= spec[SiteSpec.STORAGE_J] * (1.0 + 1e-12)
    assert info["energy_j"] >= info["it_energy_j"] + info["ballast_j"]


# ----------------------------------------------------------------------------------------------------- the limits hold

SHARED = (
    PoolConfig("gb300_nvl72", "both", 5, dp=8, mtp=True),
    PoolConfig("vera_rubin_nvl144_cpx", "prefill", 3, pp=8, rack_limit_w=2.8e5),
    PoolConfig("vera_rubin_nvl144_cpx", "decode", 3, dp=8, mtp=True, rack_limit_w=2.8e5),
)
"""Pools that share GPUs, and pools that share racks."""

CASES = {
    "1 %": (limited(0.01, 0.01), {}),
    "1 %, racks": (limited(0.01, 0.01, storage=True), {"levers": RACKS}),
    "5 %, bursts": (limited(0.05, 0.05), {"levers": RACKS, "scenario": "burst"}),
    "20 %, hot": (limited(0.2, 0.1, storage=True), {"levers": RACKS, "demand_scale": 1.3}),
    "up only": (limited(0.05, None), {"levers": RACKS, "demand_scale": 0.4}),
    "down only": (limited(None, 0.05, storage=True), {"levers": RACKS, "demand_scale": 0.8}),
    "battery": (
        limited(0.05, 0.05, battery=BatteryConfig(4e5, 2e4, initial_charge=0.5)),
        {"levers": (*RACKS, "battery")},
    ),
    "roles": (limited(0.05, 0.05), {"levers": (*RACKS, "role"), "demand_scale": 0.5}),
    "shared racks": (limited(0.05, 0.05, pools=SHARED), {"levers": RACKS, "demand_scale": 0.5}),
    "faults": (
        limited(0.05, 0.05, storage=True, reliability=ReliabilityConfig(gpu_faults_per_hour=0.02)),
        {"levers": RACKS, "demand_scale": 0.6},
    ),
    "requests, shared racks": (
        limited(0.05, 0.05, pools=SHARED),
        {"resolution": "request", "demand_scale": 0.02, "levers": RACKS},
    ),
    "requests": (limited(0.05, 0.05), {"resolution": "request", "demand_scale": 0.02, "levers": RACKS}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_limits_hold_whatever_the_operator_does(name: str) -> None:
    site, settings = CASES[name]
    assert site.ramp is not None
    steps = 6 if name.startswith("requests") else 44
    env = make(site, **settings)
    env.reset(seed=1)
    state = env.factory.engine.state.site[0]
    before = (float(state[Site.STORAGE_CHARGE_J]), float(state[Site.BATTERY_CHARGE_J]))
    infos = abrupt(env, steps)
    rise, fall = steepest(infos, "grid_power_w")
    up, down = (math.inf if limit is None else limit for limit in (site.ramp.up_w_per_s, site.ramp.down_w_per_s))
    assert rise <= up * (1.0 + 1e-6) and fall <= down * (1.0 + 1e-6)
    # Nothing but the cap comes before a limit.
    assert infos[-1]["ramp_excess_w"] == 0.0 or infos[-1]["cap_violation_j"] > 0.0
    balance(env, infos[-1], before)
    # The same operator without limits: what holds above is not for free.
    plain = abrupt(
        make(dataclasses.replace(site, ramp=None, rack_storage=None, battery=None), **_without(settings)), steps
    )
    free_rise, free_fall = steepest(plain, "facility_power_w")
    assert free_rise > 1.2 * up or free_fall > 1.2 * down


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the battery's lever."""
    levers = tuple(lever for lever in settings.get("levers", ()) if lever != "battery")
    return {**settings, "levers": levers} if levers else settings


def steady(env: AIFactoryEnv, steps: int, seed: int | None = 1, **values: Any) -> list[dict[str, Any]]:
    """Return the infos of some steps with one encoded action, of a new episode unless ``seed`` is None."""
    if seed is not None:
        env.reset(seed=seed)
    action = env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})
    return [env.step(action)[4] for _ in range(steps)]


def dropping(depth: float, after_s: float = 60.0) -> Any:
    """Return a day whose cap falls without notice shortly after the start."""
    (event,) = scenario("grid_emergency").cap_events
    hour = (EVENING["start_time_s"] + after_s) / 3600.0
    event = dataclasses.replace(event, window_start_hour=hour, window_end_hour=hour, notice_s=0.0)
    event = dataclasses.replace(event, depth=depth, depth_high=None, duration_s=7200.0, duration_high_s=None)
    return dataclasses.replace(scenario("grid_emergency"), cap_events=(event,))


def test_the_cap_comes_before_the_limit_down() -> None:
    # At most the draw of a second more than without limits is above the cap, and what fell faster than allowed is told.
    site = limited(0.02, 0.02)
    infos = steady(make(site, scenario=dropping(0.4), demand_scale=0.9), 16, clock=0.9)
    plain = steady(make(dataclasses.replace(site, ramp=None), scenario=dropping(0.4), demand_scale=0.9), 16, clock=0.9)
    assert infos[3]["ramp_excess_w"] == 0.0 < infos[-1]["ramp_excess_w"]
    cap_w = infos[-1]["cap_w"]
    assert cap_w == pytest.approx(0.6 * EDGE.cap_w)
    before_w = infos[3]["grid_power_w"]
    assert infos[-1]["ramp_excess_w"] == pytest.approx(before_w - cap_w, rel=0.05)
    assert infos[-1]["cap_violation_j"] <= plain[-1]["cap_violation_j"] * 1.05 + 1.0
    assert all(info["grid_power_w"] <= cap_w * (1.0 + 1e-9) for info in infos[5:])
    # Afterwards the draw falls from the cap as slowly as it may.
    late = [info for info in infos[5:]]
    rise, fall = steepest(late, "grid_power_w")
    assert fall <= site.ramp.down_w_per_s * (1.0 + 1e-6)  # type: ignore[union-attr,operator]


def test_a_small_ballast_lets_the_draw_fall_faster_and_says_so() -> None:
    excess = []
    for ballast_w in (None, 2e4):
        ramp = RampConfig(down_w_per_s=0.01 * SLOPE, ballast_w=ballast_w)
        env = make(dataclasses.replace(limited(None, 0.01), ramp=ramp), demand_scale=0.6)
        steady(env, 2)
        last = steady(env, 8, seed=None, clock=0.4)[-1]
        excess.append(last["ramp_excess_w"])
        if ballast_w is not None:
            assert 0.0 < last["ballast_j"] <= ballast_w * 10 * STEP_S
        balance(env, last, (0.0, 0.0))
    assert excess[0] == 0.0 < excess[1]


def test_tighter_limits_cost_more() -> None:
    burnt, served = [], []
    for share in (100.0, 1.0, 0.1, 0.02):
        env = make(limited(None, share), demand_scale=0.7)
        steady(env, 2)
        burnt.append(steady(env, 10, seed=None, clock=0.4)[-1]["ballast_j"])
        env = make(limited(share, None), demand_scale=0.7)
        steady(env, 4, clock=0.4)
        served.append(steady(env, 10, seed=None)[-1]["output_tokens"])
    assert burnt[0] < burnt[1] < burnt[2] < burnt[3]
    assert served[0] >= served[1] > served[2] > served[3]


def test_storage_bridges_what_it_holds_and_saves_ballast() -> None:
    found = {}
    for joules in (None, 65.0, 65e3):
        site = limited(0.05, 0.05)
        if joules is not None:
            site = dataclasses.replace(site, rack_storage=StorageConfig(energy_j_per_gpu=joules))
        found[joules] = abrupt(make(site, levers=RACKS), 30)[-1]
    assert found[None]["storage_in_j"] == found[None]["storage_out_j"] == found[None]["storage_charge_j"] == 0.0
    assert found[65e3]["ballast_j"] < 0.8 * found[65.0]["ballast_j"] < found[None]["ballast_j"]
    assert found[65e3]["ramp_limited_s"] < found[None]["ramp_limited_s"]
    assert found[65e3]["good_tokens"] > found[None]["good_tokens"]


def test_a_battery_stands_by_for_the_ramp() -> None:
    none = abrupt(make(limited(0.05, 0.05), levers=RACKS), 30)[-1]
    battery = BatteryConfig(1e6, 1e5, initial_charge=0.5)
    some = abrupt(make(limited(0.05, 0.05, battery=battery), levers=RACKS), 30)[-1]
    assert some["battery_in_j"] > 0.0 and some["battery_out_j"] > 0.0
    assert some["ballast_j"] < 0.5 * none["ballast_j"] and some["ramp_limited_s"] < none["ramp_limited_s"]
    assert some["good_tokens"] > none["good_tokens"]


@pytest.mark.parametrize("battery", [None, BatteryConfig(4e5, 1e5)])
def test_limits_that_never_bind_change_nothing(battery: BatteryConfig | None) -> None:
    free = limited(1e6, 1e6, battery=battery)
    plain = dataclasses.replace(free, ramp=None)
    levers = ("clock", "active_racks", "power_limit", *(("battery",) if battery else ()))
    envs = [make(site, levers=levers, demand_scale=1.1) for site in (plain, free)]
    size = envs[0].observation_space.shape[0]
    observed = [env.reset(seed=3)[0] for env in envs]
    assert observed[1].shape == (size + 4,) and (observed[0] == observed[1][:size]).all()
    for mine, theirs in zip(*(abrupt(env, 12, seed=3) for env in envs), strict=True):
        for key, value in mine.items():
            if key in ("energy_cost_usd", "carbon_kg"):
                assert theirs[key] == pytest.approx(value, rel=1e-9)
            else:
                assert theirs[key] == value, key
        assert theirs["ballast_j"] == theirs["ramp_limited_s"] == theirs["held_rack_s"] == 0.0


def test_racks_wait_for_the_ramp_and_wake() -> None:
    site = limited(0.1, 0.1)
    env = make(site, levers=RACKS, demand_scale=0.3)
    steady(env, 12, racks=[1] * len(env.pools))
    state = env.factory.engine.state
    asleep = int(state.pool_int[0, :, PoolInt.ASLEEP].sum())
    assert asleep >= 8
    waking = []
    for _ in range(120):
        info = steady(env, 1, seed=None)[0]
        waking.append(asleep - int(state.pool_int[0, :, PoolInt.ASLEEP].sum()))
    # One after the other, every one of them: the draw rises ahead of each.
    assert waking[0] < asleep == waking[-1]
    assert 0.0 < info["held_rack_s"]
    longest_s = asleep * waking_step_w(site) / site.ramp.up_w_per_s  # type: ignore[union-attr,operator]
    assert info["held_rack_s"] <= asleep * longest_s
    # An order withdrawn is forgotten.
    assert int(state.pool_int[0, :, PoolInt.HELD].sum()) == 0


def test_ballast_is_energy_of_the_facility_and_not_of_the_racks() -> None:
    env = make(limited(None, 0.005), demand_scale=0.5)
    steady(env, 2)
    infos = steady(env, 4, seed=None, clock=0.3)
    plain = make(dataclasses.replace(limited(None, 0.005), ramp=None), demand_scale=0.5)
    steady(plain, 2)
    others = steady(plain, 4, seed=None, clock=0.3)
    for mine, theirs in zip(infos, others, strict=True):
        assert mine["it_power_w"] == theirs["it_power_w"] and mine["pue"] == pytest.approx(theirs["pue"], rel=1e-12)
        assert mine["facility_power_w"] > 1.01 * theirs["facility_power_w"]
        assert mine["reward_terms/energy"] < theirs["reward_terms/energy"]
    assert infos[-1]["energy_j"] - others[-1]["energy_j"] == pytest.approx(infos[-1]["ballast_j"], rel=1e-9)


def test_the_operator_sees_the_ramp() -> None:
    site = limited(0.05, 0.1, storage=True)
    env = make(site, demand_scale=0.5)
    env.reset(seed=1)
    observation, _, _, _, info = env.step(env.action_layout.encode(clock=0.5, racks=env.action_layout.racks))
    block = observation[env.observation_layout["ramp"]]
    now_w = env.factory.engine.state.site[0, Site.RAMP_W]
    assert block[0] == pytest.approx(min(1.0, now_w / EDGE.cap_w + 0.05 * STEP_S / 60.0), abs=0.03)
    assert block[1] == pytest.approx(now_w / EDGE.cap_w - 0.1 * STEP_S / 60.0, abs=0.06)
    assert block[1] < now_w / EDGE.cap_w < block[0]
    gpus = 72 * 9
    assert env.factory.params.site[SiteSpec.STORAGE_J] == 65.0 * gpus
    assert block[2] == pytest.approx(info["storage_charge_j"] / (65.0 * gpus), rel=1e-5)
    with pytest.raises(ConfigError, match="observation_layout"):
        make(EDGE).observation_layout["ramp"]


def test_a_snapshot_takes_the_draw_along() -> None:
    env = make(limited(0.05, 0.05, storage=True), levers=RACKS)
    abrupt(env, 5)
    saved = env.snapshot()
    first = steady(env, 3, seed=None, clock=0.4)
    env.restore(saved)
    assert steady(env, 3, seed=None, clock=0.4) == first


# ----------------------------------------------------------------------------------------------------- training bursts


@given(
    st.floats(1.0, 1e5),
    st.floats(0.05, 0.95),
    st.floats(0.1, 5.0),
    st.floats(1.0, 1e5),
    st.floats(1.0, 1e5),
    st.floats(0.6, 1.0),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_store_gives_in_a_burst_what_it_takes_back_in_the_same_iteration(
    above_w: float, share: float, iteration_s: float, storage_w: float, storage_j: float, efficiency: float
) -> None:
    given_w = stored_burst_w(above_w, share, iteration_s, storage_w, storage_j, efficiency)
    taken_j = given_w * share * iteration_s / efficiency
    back_w = taken_j / efficiency / ((1.0 - share) * iteration_s)
    # Within its energy and its power both ways, and no phase draws more than the other did.
    assert 0.0 < given_w <= storage_w * (1.0 + 1e-9) and back_w <= storage_w * (1.0 + 1e-9)
    assert taken_j <= storage_j * (1.0 + 1e-9)
    assert back_w <= above_w - given_w + 1e-9 * above_w
    # One of these limits binds.
    slack = (storage_w - given_w, storage_w - back_w, storage_j - taken_j, above_w - given_w - back_w)
    assert min(slack[0] / storage_w, slack[1] / storage_w, slack[2] / storage_j, slack[3] / above_w) <= 1e-6


def test_storage_in_training_racks_lowers_their_bursts() -> None:
    """Five iterations a second, half the time computing: 65 J per GPU make the draw even, and the peak of the block falls by about 30 %."""
    found = {}
    for iteration_s, share in ((2.0, 0.8), (0.2, 0.5)):
        training = TrainingConfig("gb300_nvl72", 4, iteration_s=iteration_s, compute_share=share)
        for storage in (None, StorageConfig()):
            site = dataclasses.replace(EDGE, training=training, rack_storage=storage)
            env = make(site, demand_scale=0.2, scenario="steady")
            info = steady(env, 2, clock=0.5)[-1]
            state = env.factory.engine.state.site[0]
            found[share, storage is None] = (state[Site.TRAIN_BURST_W], info["peak_power_w"], info["energy_j"])
        without, with_it = found[share, True], found[share, False]
        assert with_it[0] < without[0] and with_it[1] < without[1]
        assert without[2] < with_it[2] < 1.01 * without[2]
    # Four racks of 138 kW that draw 51 kW while they communicate: see docs/training_block.md.
    assert found[0.5, False][0] <= 0.03 * found[0.5, True][0]
    saved = (found[0.5, True][1] - found[0.5, False][1]) / (4 * 138e3)
    assert saved == pytest.approx(0.3, abs=0.03)


# ------------------------------------------------------------------------------------------------- figures and mistakes


def test_describe_and_validate_say_so(tmp_path: Any) -> None:
    path = tmp_path / "slow.toml"
    text = (load_site.__globals__["SITES_PATH"] / "edge.toml").read_text()
    path.write_text(text + "\n[ramp]\nup_w_per_s = 1000.0\ndown_w_per_s = 60.0\n\n[rack_storage]\n")
    told = describe(str(path))
    assert "ramp: at most 1,000 W/s up (3.00 % of the cap per minute), 60 W/s down" in told
    assert "rack storage: 648 GPUs x 65 J = 0.042 MJ" in told
    assert "ramp" not in describe("edge")
    assert any("ramp.down_w_per_s" in text for text in findings(load_site(path)))


def test_a_limit_that_leaves_nothing_is_refused() -> None:
    needed = (EDGE.cap_w - idle_facility_w(EDGE)) / (6 * 3600.0)
    for up_w_per_s, what in ((0.9 * needed, "idle draw"), (waking_step_w(EDGE) / 3700.0, "when it wakes")):
        site = dataclasses.replace(EDGE, ramp=RampConfig(up_w_per_s=up_w_per_s))
        cap_w = EDGE.cap_w if what == "idle draw" else 0.8 * EDGE.cap_w
        with pytest.raises(ConfigError, match=f"ramp.up_w_per_s: .* is not allowed.*({what}).*must be at least"):
            make(dataclasses.replace(site, cap_w=cap_w))
        with pytest.raises(ConfigError, match="ramp.up_w_per_s"):
            findings(dataclasses.replace(site, cap_w=cap_w))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"ramp": {}}, "ramp: limits nothing; give up_w_per_s, down_w_per_s or both"),
        ({"ramp": {"up_w_per_s": 0.0}}, "ramp.up_w_per_s: 0.0 is not allowed"),
        ({"ramp": {"up_w_per_s": 1e3, "down_w_per_s": -1.0}}, "ramp.down_w_per_s: -1.0 is not allowed"),
        ({"ramp": {"up_w_per_s": 1e3, "ballast_w": math.nan}}, "ramp.ballast_w: nan is not allowed"),
        ({"ramp": {"up": 1e3}}, "ramp: key: unknown value 'up'.*up_w_per_s"),
        ({"ramp": 3.0}, "ramp: 3.0 is not allowed; must be a table"),
        ({"rack_storage": {}}, "rack_storage: it smooths the draw where that has a ramp limit"),
        (
            {"ramp": {"up_w_per_s": 1e3}, "rack_storage": {"racks": ["gb300"]}},
            "rack_storage.racks: unknown value 'gb300'",
        ),
        (
            {"ramp": {"up_w_per_s": 1e3}, "rack_storage": {"racks": "gb300_nvl72"}},
            "rack_storage.racks: 'gb300_nvl72' is not",
        ),
        (
            {"ramp": {"up_w_per_s": 1e3}, "rack_storage": {"energy_j_per_gpu": 0.0}},
            "energy_j_per_gpu: 0.0 is not allowed",
        ),
        (
            {"ramp": {"up_w_per_s": 1e3}, "rack_storage": {"round_trip_efficiency": 1.1}},
            "efficiency: 1.1 is not allowed",
        ),
    ],
)
def test_mistakes_are_named(extra: dict[str, Any], message: str) -> None:
    table = {
        "name": "own",
        "cap_w": 2e6,
        "model": "deepseek-r1",
        "demand_rps": 10.0,
        "mix": {"chat": 1.0},
        "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 2, "dp": 8} for phase in ("prefill", "decode")],
    }
    with pytest.raises(ConfigError, match=message):
        site_from_table({**table, **extra})
