"""What a grid asks of a large user: emergencies within seconds, and a bill for its coincident peaks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.layout import CapStep, Site, World
from ai_factory_gym.grid.cap import CapEventSpec, draw_schedule
from ai_factory_gym.grid.coincident import DAY_S, MAX_WINDOWS, PeakWindowSpec, draw_peaks
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import BatteryConfig, CoolingConfig, SiteConfig, load_site
from ai_factory_gym.sites.money import MoneyConfig, Tariff, money_from_table

EDGE = load_site("edge")
PAYS = MoneyConfig(tariff=Tariff(0.5, 2.0), coincident_usd_per_kw_year=100.0)
SETTINGS = {"warmup_s": 300.0, "lambda_tokens_per_joule": 3.0}


def make(site: SiteConfig = EDGE, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site."""
    return AIFactoryEnv(site=site, **{**SETTINGS, **settings})


def paying(**values: Any) -> SiteConfig:
    """Return the Edge site with a charge for coincident peaks."""
    return dataclasses.replace(EDGE, money=dataclasses.replace(PAYS, **values))


def play(env: AIFactoryEnv, steps: int, clock: float = 0.8) -> list[dict[str, Any]]:
    """Return the infos of some steps with one action."""
    action = env.action_layout.encode(clock=clock, racks=env.action_layout.racks)
    return [env.step(action)[4] for _ in range(steps)]


# --------------------------------------------------------------------------------------------------------- emergencies


def test_the_shipped_emergency_is_that_of_the_trials() -> None:
    (event,) = scenario("grid_emergency").cap_events
    assert (event.depth, event.deepest, event.notice_s) == (0.30, 0.35, 30.0)
    assert event.duration_high_s == 10 * 3600.0
    assert scenario("grid_emergency").lowest_cap_fraction == pytest.approx(0.65)


@given(
    st.integers(0, 2**31), st.floats(0.05, 0.4), st.floats(0.0, 0.5), st.floats(60.0, 7200.0), st.floats(0.0, 36000.0)
)
@settings(max_examples=60, deadline=None)
def test_depth_and_length_are_drawn_between_their_ends(
    seed: int, depth: float, more: float, length: float, on: float
) -> None:
    spec = CapEventSpec(9.0, 15.0, length, depth, 30.0, depth + more, length + on)
    plain = CapEventSpec(9.0, 15.0, length, depth, 30.0)
    mine, theirs = (draw_schedule(np.random.default_rng(seed), [one], 1e6, 0.0, DAY_S).events for one in (spec, plain))
    event, usual = next(e for e in mine if e.start_s >= 0.0), next(e for e in theirs if e.start_s >= 0.0)
    assert event.start_s == usual.start_s and usual.depth == depth and usual.duration_s == length
    assert depth <= event.depth <= depth + more and length <= event.duration_s <= length + on
    # It is the same every day.
    assert len({(e.depth, e.duration_s) for e in mine}) == 1


def test_ranges_move_no_start_and_no_other_event() -> None:
    fixed = CapEventSpec(2.0, 5.0, 600.0, 0.1, 0.0)
    ranged = CapEventSpec(9.0, 15.0, 600.0, 0.1, 0.0, depth_high=0.3)
    for specs in ([fixed, ranged], [ranged, fixed], [fixed, fixed]):
        events = draw_schedule(np.random.default_rng(5), specs, 1e6, 0.0, DAY_S).events
        assert [e.depth for e in events if e.start_s < 6 * 3600.0 and e.start_s > 0 and specs[0] is fixed][:1] in (
            [0.1],
            [],
        )
    many = [draw_schedule(np.random.default_rng(s), [ranged], 1e6, 0.0, DAY_S).events[0].depth for s in range(400)]
    assert np.mean(many) == pytest.approx(0.2, abs=0.01) and np.ptp(many) > 0.18


@pytest.mark.parametrize(
    ("values", "message"),
    [({"depth_high": 0.1}, "depth_high: 0.1"), ({"duration_high_s": 5.0}, "duration_high_s: 5.0")],
)
def test_ranges_the_wrong_way_round_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CapEventSpec(9.0, 15.0, 600.0, 0.2, 0.0, **values)


def emergency(env: AIFactoryEnv) -> tuple[float, float]:
    """Return when the next curtailment begins, s, and the cap then, W."""
    steps = env.factory.engine.state.cap_steps[0]
    step = next(step for step in steps if step[CapStep.TIME_S] > 0.0)
    return float(step[CapStep.TIME_S]), float(step[CapStep.CAP_W])


def test_an_emergency_is_met_by_the_brake_when_the_operator_ignores_it() -> None:
    """Curtailed within 30 s of the order, 30 to 35 % deep, though the operator does nothing; and that is dear."""
    found = scenario("grid_emergency").cap_events[0]
    # At a known hour, so that the episode can be short.
    at_noon = dataclasses.replace(scenario("steady"), cap_events=(dataclasses.replace(found, window_end_hour=12.0),))
    begin = {"start_time_s": 12 * 3600.0 - 60.0, "horizon_s": 600.0, "demand_scale": 1.25}
    calm = make(scenario="steady", **begin)
    calm.reset(seed=4)
    usual = play(calm, 10)
    env = make(scenario=at_noon, **begin)
    env.reset(seed=4)
    begin_s, cap_w = emergency(env)
    assert begin_s == 60.0 and 0.65 <= cap_w / EDGE.cap_w <= 0.70
    before = play(env, 1)[0]
    assert before == usual[0] and before["facility_power_w"] > cap_w
    # The next second draw is above the new cap, then never: well within the 30 s of notice plus the brake's second.
    after = play(env, 9)
    over_j = [info["cap_violation_j"] for info in after]
    assert 0.0 < over_j[0] <= EDGE.brake.reaction_s * before["facility_power_w"] and over_j[-1] == over_j[0]
    assert all(info["facility_power_w"] <= cap_w for info in after[1:])
    # What it cost: brake time, misses, reward, constraint cost.
    assert after[-1]["brake_s"] > 0.5 * 540.0 and usual[-1]["brake_s"] == 0.0
    assert after[-1]["good_tokens"] < usual[-1]["good_tokens"]
    assert after[-1]["requests_missed_slo"] > usual[-1]["requests_missed_slo"]
    assert after[1]["cost"] > 0.5 and after[1]["reward_terms/brake"] < 0.0


def test_the_order_is_seen_half_a_minute_ahead() -> None:
    found = dataclasses.replace(scenario("grid_emergency").cap_events[0], window_end_hour=12.0)
    day = dataclasses.replace(scenario("steady"), cap_events=(found,))
    env = make(
        scenario=day,
        start_time_s=12 * 3600.0 - 60.0,
        horizon_s=120.0,
        control_interval_s=10.0,
        demand_scale=0.5,
        warmup_s=60.0,
    )
    observation, _ = env.reset(seed=2)
    block = env.observation_layout["cap_announced"]
    caps, seen = [observation[env.observation_layout["cap"]][0]], [observation[block][0]]
    for _ in range(7):
        observation = env.step(env.action_layout.encode())[0]
        caps.append(observation[env.observation_layout["cap"]][0])
        seen.append(observation[block][0])
    # Its end is announced with it.
    assert seen == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert caps[:6] == [1.0] * 6 and 0.65 <= caps[7] <= 0.7


# ------------------------------------------------------------------------------------------------------ coincident peaks

MINUTES = 60.0 * np.arange(3 * 1440)


@given(st.integers(0, 2**31), st.integers(0, 1200), st.integers(30, 240), st.floats(0.0, 12.0))
@settings(max_examples=40, deadline=None)
def test_one_hidden_quarter_an_hour_counts_a_day(seed: int, begin: int, length: int, notice: float) -> None:
    spec = PeakWindowSpec(begin / 60.0, (begin + length) / 60.0, notice)
    path = draw_peaks(np.random.default_rng(seed), (spec,), MINUTES)
    for day in range(3):
        today = slice(1440 * day, 1440 * (day + 1))
        (counted,) = np.nonzero(path.counted[today])
        assert len(counted) == 15 and counted[0] % 15 == 0 and (np.diff(counted) == 1).all()
        assert (path.left_s[today][counted] > 0.0).all() and (path.until_s[today][counted] == 0.0).all()
        inside = path.left_s[today] > 0.0
        assert inside.sum() == length
    ahead = np.isfinite(path.until_s) & (path.until_s > 0.0)
    assert (path.until_s[ahead] <= 3600.0 * notice + 1e-6).all()
    # Before its begin nothing but the window is known: time until it falls by a minute a minute.
    steps = np.diff(np.where(ahead, path.until_s, 0.0))[ahead[1:] & ahead[:-1]]
    assert np.allclose(steps, -60.0)


def test_the_quarter_is_drawn_evenly_and_anew_each_day() -> None:
    spec = PeakWindowSpec(15.0, 18.0, 6.0)
    assert spec.quarters == 12
    begins = []
    for seed in range(150):
        path = draw_peaks(np.random.default_rng(seed), (spec,), MINUTES)
        begins += [int(np.nonzero(path.counted[1440 * d : 1440 * (d + 1)])[0][0]) // 15 for d in range(3)]
    counts = np.bincount(begins, minlength=96)
    assert counts[60:72].sum() == 450 and counts[60:72].min() > 15 and counts[60:72].max() < 65
    # A longer episode meets the same first days, more windows the same first one.
    short = draw_peaks(np.random.default_rng(7), (spec,), MINUTES[:1440])
    both = draw_peaks(np.random.default_rng(7), (spec, PeakWindowSpec(6.0, 8.0, 1.0)), MINUTES)
    late = slice(12 * 60, 1440)
    assert (short.counted[late] == both.counted[:1440][late]).all()


def test_a_site_is_charged_for_its_mean_draw_in_the_quarter() -> None:
    env = make(paying(), scenario="steady+four_cp", start_time_s=15 * 3600.0, horizon_s=3 * 3600.0, demand_scale=0.6)
    env.reset(seed=1)
    counted = env.factory.engine.state.world[0, 5:185, World.COINCIDENT] > 0.0
    infos = play(env, 180)
    energy = np.diff([0.0, *(info["energy_j"] for info in infos)])
    mean_w = energy[counted].sum() / 900.0
    last = int(np.nonzero(counted)[0][-1])
    assert infos[-1]["coincident_peak_w"] == pytest.approx(mean_w, rel=1e-9)
    # A fourth of 100 USD per kW and year.
    assert infos[-1]["coincident_charge_usd"] == pytest.approx(25.0 * mean_w / 1e3, rel=1e-9)
    assert infos[last - 1]["coincident_charge_usd"] == 0.0 < infos[last]["coincident_charge_usd"]
    charge = infos[-1]["coincident_charge_usd"]
    parts = infos[-1]["revenue_usd"] - infos[-1]["sla_penalty_usd"] - infos[-1]["energy_cost_usd"] - charge
    assert infos[-1]["profit_usd"] == pytest.approx(parts - infos[-1]["capital_usd"], rel=1e-9)


def test_profit_counts_the_charge_once_and_nothing_else_changes() -> None:
    rewards = []
    infos = []
    begin: dict[str, Any] = {"start_time_s": 15 * 3600.0, "horizon_s": 1800.0, "demand_scale": 0.6, "reward": "profit"}
    short = dataclasses.replace(scenario("steady"), peak_windows=(PeakWindowSpec(15.0, 15.25, 1.0),))
    for usd in (100.0, 0.0):
        env = make(paying(coincident_usd_per_kw_year=usd), scenario=short, **begin)
        env.reset(seed=1)
        action = env.action_layout.encode(clock=0.8, racks=env.action_layout.racks)
        steps = [env.step(action) for _ in range(20)]
        rewards.append([step[1] for step in steps])
        infos.append(steps[-1][4])
    scale = env.factory._constants.scale_usd
    lost = np.subtract(rewards[1], rewards[0]) * scale
    assert lost[14] == pytest.approx(infos[0]["coincident_charge_usd"], rel=1e-6)
    assert np.delete(lost, 14) == pytest.approx(0.0, abs=1e-9)
    assert "coincident_charge_usd" not in infos[1]
    # Costs of classes are shares of all costs.
    shares = {key for key in infos[1] if key.startswith("class/") and key.endswith("/cost_usd")}
    same = set(infos[1]) - {"profit_usd", "usd_per_mtok", "reward_terms/energy"} - shares
    assert {key: infos[0][key] for key in same} == {key: infos[1][key] for key in same}


def test_the_operator_sees_the_window_and_not_the_quarter() -> None:
    env = make(
        paying(),
        scenario="steady+four_cp",
        start_time_s=14 * 3600.0,
        horizon_s=5 * 3600.0,
        demand_scale=0.05,
        control_interval_s=900.0,
        warmup_s=900.0,
    )
    blocks = []
    for seed in (1, 2, 3):
        observation, _ = env.reset(seed=seed)
        block = env.observation_layout["peak_window"]
        mine = [observation[block]]
        mine += [env.step(env.action_layout.encode())[0][block] for _ in range(18)]
        blocks.append(np.array(mine))
    assert (blocks[0] == blocks[1]).all() and (blocks[0] == blocks[2]).all()
    seen = blocks[0]
    assert seen[0][0] == 1.0 and 0.4 < seen[0][1] <= 0.6 and seen[0][2] == 0.0
    assert (seen[5:17, 2] == 1.0).all() and (seen[5:17, 0] == 0.0).all() and (np.diff(seen[5:17, 3]) < 0.0).all()
    assert (seen[17:] == 0.0).all()
    with pytest.raises(ConfigError, match="observation_layout"):
        make().observation_layout["peak_window"]


def test_a_site_that_does_not_pay_does_not_notice() -> None:
    begin: dict[str, Any] = {"start_time_s": 15 * 3600.0, "horizon_s": 300.0, "demand_scale": 0.6}
    results = []
    steady = scenario("steady")
    for day in (steady, dataclasses.replace(steady, peak_windows=scenario("four_cp").peak_windows)):
        env = make(scenario=day, **begin)
        env.reset(seed=1)
        results.append(play(env, 3))
    assert results[0] == results[1]


def test_a_snapshot_takes_the_metered_quarter_along() -> None:
    short = dataclasses.replace(scenario("steady"), peak_windows=(PeakWindowSpec(15.0, 15.25, 1.0),))
    env = make(paying(), scenario=short, start_time_s=15 * 3600.0, horizon_s=1800.0, demand_scale=0.6)
    env.reset(seed=1)
    play(env, 7)
    assert env.factory.engine.state.site[0, Site.COINCIDENT_S] == pytest.approx(420.0)
    saved = env.snapshot()
    first = play(env, 9)
    env.restore(saved)
    assert play(env, 9) == first and first[-1]["coincident_charge_usd"] > 0.0


def test_mistakes_are_named() -> None:
    for values, message in (
        ((15.0, 14.0, 1.0), "end_hour: 14.0 is not allowed"),
        ((15.05, 15.3, 1.0), "there must be a full quarter"),
        ((15.0, 18.0, 30.0), "notice_hours: 30.0"),
        ((math.nan, 18.0, 1.0), "start_hour: nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            PeakWindowSpec(*values)
    with pytest.raises(ConfigError, match="peak_windows: 9 given; at most 8"):
        dataclasses.replace(scenario("steady"), peak_windows=(PeakWindowSpec(1.0, 2.0, 1.0),) * (MAX_WINDOWS + 1))
    with pytest.raises(ConfigError, match="coincident_intervals_per_year: 0 is not allowed"):
        money_from_table("money", {"coincident_intervals_per_year": 0}, [], [])
    with pytest.raises(ConfigError, match="Did you mean 'coincident_usd_per_kw_year'"):
        money_from_table("money", {"coincident_usd_per_kw_years": 100.0}, [], [])


def test_parts_come_together() -> None:
    """Keys and blocks of several parts stand where their names say."""
    site = dataclasses.replace(
        paying(),
        battery=BatteryConfig(power_w=3e5, energy_wh=1e5),
        cooling=CoolingConfig(coolant_limit_c=45.0, design_outdoor_c=30.0, outdoor_c=30.0),
    )
    env = make(site, scenario="four_cp", start_time_s=15 * 3600.0, horizon_s=600.0, demand_scale=0.6)
    assert tuple(env.observation_layout.slices)[-2:] == ("coolant", "peak_window")
    env.reset(seed=1)
    observation, _, _, _, info = env.step(env.action_layout.encode())
    state = env.factory.engine.state.site[0]
    assert info["coolant_c"] == state[Site.COOLANT_C] and info["battery_charge_j"] == state[Site.BATTERY_CHARGE_J]
    assert info["coincident_charge_usd"] == 0.0 and info["revenue_usd"] > 0.0
    assert observation[env.observation_layout["coolant"]][0] == pytest.approx(info["coolant_c"] / 45.0, rel=1e-6)
    assert observation[env.observation_layout["peak_window"]].tolist()[:3] == [0.0, 0.0, 1.0]
    assert len(info) == len(env.factory.info_keys) == len(set(env.factory.info_keys))
