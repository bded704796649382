"""Around the site: prices, carbon and weather that vary, and a battery. Balances hold, and what is not there changes nothing."""

from __future__ import annotations

import dataclasses
import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.layout import Site, World
from ai_factory_gym.grid.series import (
    DAY_S,
    MAX_EVENTS,
    SYNTHETIC,
    UNITS,
    Series,
    SeriesEventSpec,
    event_strength,
    load_series,
    synthetic_series,
)
from ai_factory_gym.levers import DEFAULT_LEVERS
from ai_factory_gym.params import idle_facility_w
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import BatteryConfig, SiteConfig, load_site, site_from_table

EDGE = load_site("edge")
MINUTES = 60.0 * np.arange(1440)
EVENING = {"start_time_s": 18 * 3600.0, "horizon_s": 900.0, "warmup_s": 60.0, "lambda_tokens_per_joule": 3.0}


def make(site: SiteConfig = EDGE, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site in the evening."""
    return AIFactoryEnv(site=site, **{**EVENING, **settings})


def with_battery(**values: float) -> SiteConfig:
    """Return the Edge site with a battery of 0.4 MW and 0.1 MWh."""
    return dataclasses.replace(EDGE, battery=BatteryConfig(**{"power_w": 4e5, "energy_wh": 1e5, **values}))


# ------------------------------------------------------------------------------------------------------------- series


@pytest.mark.parametrize("kind", list(UNITS))
def test_synthetic_series_vary_around_their_mean(kind: str) -> None:
    mean = {"electricity": 51.0, "carbon": 350.0, "temperature": 18.0}[kind]
    days = np.array([synthetic_series(np.random.default_rng(s), kind, mean, MINUTES) for s in range(200)])
    assert days.mean() == pytest.approx(mean, rel=0.05)
    assert days.std(axis=1).min() > 0.0
    if kind != "temperature":
        assert days.min() > 0.0
    hours = days.mean(axis=0).reshape(24, 60).mean(axis=1)
    if kind == "temperature":
        assert hours.argmax() in (14, 15) and hours.argmin() in (2, 3)
    else:
        assert hours.argmax() in (19, 20) and hours.argmin() in (12, 13)


def test_a_file_holds_each_value_until_the_next_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("hour,usd_per_mwh\n" + "".join(f"{hour},{hour % 24 + 100 * (hour // 24)}\n" for hour in range(48)))
    series = load_series(path, "electricity")
    assert series.days == 2
    assert series.at(np.array([0.0, 3599.0, 3600.0, DAY_S + 1.0, 2 * DAY_S + 7200.0])).tolist() == [0, 0, 1, 100, 2]


def test_timestamps_are_local_times(tmp_path: Path) -> None:
    path = tmp_path / "warm.csv"
    rows = "".join(
        f"2026-07-{day:02d}T{hour:02d}:00:00+02:00,{day + hour / 100}\n" for day in (3, 4) for hour in range(24)
    )
    path.write_text("timestamp,celsius\n" + rows)
    series = load_series(path, "temperature")
    assert series.days == 2 and series.at(np.array([5 * 3600.0]))[0] == pytest.approx(3.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name two columns"),
        ("hour,usd,mwh\n", "the first line must name two columns"),
        ("hours,usd_per_mwh\n0,1\n", "first column: unknown value 'hours'.*Did you mean 'hour'"),
        ("hour,eur_per_mwh\n0,1\n", "second column: 'eur_per_mwh' is not allowed; must be 'usd_per_mwh'"),
        ("hour,usd_per_mwh\n0,1,2\n", "line 2 has 3 columns"),
        ("hour,usd_per_mwh\n0,cheap\n", "line 2: usd_per_mwh: 'cheap' is not a number"),
        ("hour,usd_per_mwh\n0,nan\n", "line 2: usd_per_mwh: nan is not allowed"),
        ("hour,usd_per_mwh\nnoon,1\n", "line 2: hour: 'noon' is not a number"),
        ("timestamp,usd_per_mwh\n1,1\n", "line 2: timestamp: '1' is not an ISO 8601 time"),
        ("hour,usd_per_mwh\n1,1\n1,2\n", "line 3: hour: '1' does not come after"),
        ("hour,usd_per_mwh\n0,1\n", "1 rows; at least 2"),
        ("hour,usd_per_mwh\n0,1\n1,2\n", "covers less than a day"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_series(path, "electricity")


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    table = {
        "name": "own",
        "cap_w": 2e6,
        "model": "deepseek-r1",
        "demand_rps": 10.0,
        "mix": {"chat": 1.0},
        "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 2, "dp": 8} for phase in ("prefill", "decode")],
    }
    assert site_from_table({**table, "series": {"carbon": "synthetic"}}).series == (("carbon", SYNTHETIC),)
    for extra, message in (
        ({"series": {"prices": "synthetic"}}, "series: unknown key 'prices'"),
        ({"series": {"carbon": "synthetics"}}, "series: carbon: 'synthetics' is not allowed; must be 'synthetic' or"),
        ({"series": {"carbon": "none.csv"}}, "series carbon: '.*none.csv': cannot be read"),
        ({"series": 3}, "series: 3 is not allowed; must be a table"),
        ({"battery": {"power_w": 1e5}}, "battery: energy_wh: missing|battery.*energy_wh"),
        ({"battery": {"power_w": -1.0, "energy_wh": 1e5}}, "battery.power_w: -1.0 is not allowed"),
        ({"battery": {"power_w": 1e5, "energy_wh": 1e5, "efficency": 0.9}}, "battery: unknown key 'efficency'"),
    ):
        with pytest.raises(ConfigError, match=message):
            site_from_table({**table, **extra}, folder=tmp_path)
    with pytest.raises(ConfigError, match="levers: 'battery' is not possible: the site has none"):
        make(levers=("battery",))
    with pytest.raises(ConfigError, match="idle draw .* is not below its lowest cap"):
        # Enough on a usual day, and not on a hot one.
        tight = dataclasses.replace(EDGE, cap_w=1.02 * idle_facility_w(EDGE))
        make(tight, scenario="burst")
        make(tight, scenario="heatwave")


@given(st.integers(0, 2**31), st.floats(0.0, 24.0), st.floats(0.1, 20.0), st.floats(0.0, 300.0))
@settings(max_examples=60, deadline=None)
def test_events_rise_hold_and_fall(seed: int, begin: float, hours: float, ramp: float) -> None:
    spec = SeriesEventSpec(begin, begin, hours, ramp, 2.0, 3.0)
    strength, size = event_strength(np.random.default_rng(seed), (spec,), MINUTES)
    assert strength.shape == (1, 1440) and 2.0 <= size[0] <= 3.0
    assert strength.min() >= 0.0 and strength.max() <= 1.0
    full = (strength[0] > 1.0 - 1e-9).sum()
    assert abs(full - min(1440.0, 60.0 * hours)) <= 2.0 or 60.0 * hours + 2.0 * ramp > 1440.0


def test_as_many_numbers_are_drawn_whatever_the_events() -> None:
    ends = []
    for specs in ((), (SeriesEventSpec(1.0, 5.0, 2.0, 10.0, 1.0, 2.0),) * MAX_EVENTS):
        rng = np.random.default_rng(3)
        event_strength(rng, specs, MINUTES)
        ends.append(rng.random())
    assert ends[0] == ends[1]


# ------------------------------------------------------------------------------------------------------ what they cost


def play(env: AIFactoryEnv, steps: int = 15, seed: int = 1, **values: Any) -> list[dict[str, Any]]:
    """Return the infos of an episode with one encoded action."""
    env.reset(seed=seed)
    action = env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})
    return [env.step(action)[4] for _ in range(steps)]


def test_cost_and_carbon_are_integrals_of_price_and_intensity() -> None:
    env = make(dataclasses.replace(EDGE, series=(("carbon", SYNTHETIC), ("electricity", SYNTHETIC))))
    infos = play(env)
    world = env.factory.engine.state.world[0, 1:16]
    joules = np.diff([0.0, *(info["energy_j"] for info in infos)])
    usd = float(joules / 3.6e9 @ world[:, World.USD_PER_MWH])
    kilograms = float(joules / 3.6e9 @ world[:, World.G_PER_KWH])
    assert infos[-1]["energy_cost_usd"] == pytest.approx(usd, rel=1e-9)
    assert infos[-1]["carbon_kg"] == pytest.approx(kilograms, rel=1e-9)
    assert np.ptp(world[:, World.USD_PER_MWH]) > 0.0


def test_the_operator_sees_price_and_carbon() -> None:
    env = make(dataclasses.replace(EDGE, series=(("carbon", SYNTHETIC), ("electricity", SYNTHETIC))))
    observation, _ = env.reset(seed=1)
    site = env.factory.engine.state.site[0]
    assert observation[env.observation_layout["price"]][0] == pytest.approx(site[Site.USD_PER_MWH] / 100.0)
    assert observation[env.observation_layout["carbon"]][0] == pytest.approx(site[Site.G_PER_KWH] / 500.0)


def test_a_price_spike_costs_and_changes_nothing_else() -> None:
    plain, spike = (play(make(scenario=name))[-1] for name in ("diurnal", "diurnal+price_spike"))
    assert spike.pop("energy_cost_usd") > 1.2 * plain.pop("energy_cost_usd")
    assert spike.pop("carbon_kg") == pytest.approx(plain.pop("carbon_kg"), rel=1e-9)
    assert spike == plain


def test_heat_takes_more_of_the_cap_for_cooling() -> None:
    noon = {"start_time_s": 13 * 3600.0, "demand_scale": 0.5}
    cool, hot = (play(make(scenario=name, **noon)) for name in ("diurnal", "diurnal+heatwave"))
    assert hot[-1]["pue"] > cool[-1]["pue"] + 0.02
    # The cap does not bind: the racks do the same work.
    assert hot[-1]["it_energy_j"] == pytest.approx(cool[-1]["it_energy_j"], rel=0.01)
    assert hot[-1]["energy_j"] > 1.015 * cool[-1]["energy_j"]


def test_weather_and_prices_move_no_arrival() -> None:
    varied = dataclasses.replace(EDGE, series=tuple((kind, SYNTHETIC) for kind in UNITS))
    for name in ("diurnal", "burst"):
        counts = [play(make(site, scenario=name), steps=5)[-1]["requests_arrived"] for site in (EDGE, varied)]
        assert counts[0] == counts[1]


def test_a_file_gives_a_day_of_itself(tmp_path: Path) -> None:
    series = Series("temperature", tuple(3600.0 * k for k in range(72)), tuple(float(k // 24) for k in range(72)))
    env = make(dataclasses.replace(EDGE, series=(("temperature", series),)))
    seen = set()
    for seed in range(12):
        env.reset(seed=seed)
        seen.add(float(env.factory.engine.state.world[0, 5, World.OUTDOOR_C]))
    assert seen == {0.0, 1.0, 2.0}


# ------------------------------------------------------------------------------------------------------------ battery


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=8), st.floats(0.0, 1.0), st.floats(0.5, 1.0), st.integers(0, 99)
)
@settings(max_examples=12, deadline=None)
def test_no_joule_is_lost_or_made(orders: list[float], charge: float, efficiency: float, seed: int) -> None:
    site = with_battery(initial_charge=charge, round_trip_efficiency=efficiency)
    env = make(site, levers=("clock", "active_racks", "battery"), demand_scale=1.1, warmup_s=0.0)
    env.reset(seed=seed)
    assert site.battery is not None
    before_j = env.factory.engine.state.site[0, Site.BATTERY_CHARGE_J]
    assert before_j == pytest.approx(3600.0 * site.battery.energy_wh * charge)
    for order in orders:
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, battery=order)
        info = env.step(action)[4]
        assert 0.0 <= info["battery_charge_j"] <= 3600.0 * site.battery.energy_wh * (1.0 + 1e-12)
        assert abs(env.factory.engine.state.site[0, Site.BATTERY_OUT_W]) <= site.battery.power_w * (1.0 + 1e-12)
    balance = info["energy_j"] + info["battery_in_j"] - info["battery_out_j"]
    assert info["grid_energy_j"] == pytest.approx(balance, rel=1e-9)
    one_way = math.sqrt(efficiency)
    stored = before_j + info["battery_in_j"] * one_way - info["battery_out_j"] / one_way
    assert info["battery_charge_j"] == pytest.approx(stored, rel=1e-9, abs=1.0)


def test_standing_by_it_covers_what_exceeds_the_cap() -> None:
    plain = play(make(demand_scale=1.1))[-1]
    covered = play(make(with_battery(energy_wh=1e6), demand_scale=1.1))
    # The site draws more than its cap, the grid does not give more, and no brake engages as long as the battery lasts.
    assert plain["brake_s"] > 0.0 and covered[-1]["brake_s"] == 0.0
    assert covered[-1]["peak_power_w"] <= EDGE.cap_w * (1.0 + 1e-9) < max(info["facility_power_w"] for info in covered)
    assert covered[-1]["cap_violation_j"] == 0.0
    assert covered[-1]["requests_met_slo"] > plain["requests_met_slo"]


def test_the_brake_lets_go_where_the_battery_covers_the_rest() -> None:
    plain = play(make(demand_scale=1.3))
    small, large = (
        play(make(with_battery(power_w=power_w, energy_wh=1e6), demand_scale=1.3)) for power_w in (1e5, 4e5)
    )
    assert large[-1]["brake_s"] < small[-1]["brake_s"] == plain[-1]["brake_s"]
    assert large[-1]["good_tokens"] > 1.05 * plain[-1]["good_tokens"]
    # One that is too small covers the second of the brake's reaction: at the brake's clock the site draws less than its cap.
    assert small[-1]["battery_out_j"] == pytest.approx(1e5, rel=1e-6)
    assert all(info["facility_power_w"] < EDGE.cap_w for info in small[1:])


def test_an_empty_battery_is_no_battery() -> None:
    without = play(make(demand_scale=1.1))
    empty = play(make(with_battery(initial_charge=0.0), demand_scale=1.1))
    for mine, theirs in zip(without, empty, strict=True):
        assert all(theirs[key] == pytest.approx(value, rel=1e-12) for key, value in mine.items())


def test_an_order_of_zero_is_the_lever_left_out() -> None:
    plain = play(make(with_battery(), demand_scale=1.1))
    zero = play(make(with_battery(), demand_scale=1.1, levers=(*DEFAULT_LEVERS, "battery")), battery=0.0)
    assert plain == zero


def test_charging_never_exceeds_the_cap() -> None:
    env = make(with_battery(initial_charge=0.0, energy_wh=1e6), levers=("clock", "active_racks", "battery"))
    infos = play(env, battery=-1.0, clock=0.6)
    assert infos[-1]["battery_in_j"] > 0.0 and infos[-1]["brake_s"] == 0.0
    assert infos[-1]["peak_power_w"] <= EDGE.cap_w * (1.0 + 1e-9)


def test_what_is_lost_is_priced_like_energy() -> None:
    env = make(with_battery(), levers=("clock", "active_racks", "battery"), demand_scale=0.7)
    rewards = []
    for order in (0.0, 1.0):
        env.reset(seed=1)
        action = env.action_layout.encode(clock=0.7, racks=env.action_layout.racks, battery=order)
        rewards.append(env.step(action)[4]["reward_terms/energy"])
    assert rewards[1] < rewards[0]


def test_a_snapshot_takes_the_charge_along() -> None:
    env = make(with_battery(initial_charge=0.5), levers=("clock", "active_racks", "battery"))
    play(env, steps=3, battery=1.0)
    saved = env.snapshot()
    first = env.step(env.action_layout.encode(battery=1.0))[4]
    env.restore(saved)
    assert env.step(env.action_layout.encode(battery=1.0))[4] == first


def test_scenarios_of_price_and_weather_add_up() -> None:
    both = scenario("price_spike+heatwave")
    assert both.price_events == scenario("price_spike").price_events
    assert both.temperature_events == scenario("heatwave").temperature_events
