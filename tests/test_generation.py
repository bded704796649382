"""Power made at the site: joules and dollars balance, units start in time, keep their limits, and change nothing where they are not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ai_factory_baselines as baselines
from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.describe import describe_site
from ai_factory_gym.engine.layout import OFF, RUNNING, STARTING, Site, Unit
from ai_factory_gym.evaluation import evaluate
from ai_factory_gym.levers import DEFAULT_LEVERS
from ai_factory_gym.params import idle_facility_w
from ai_factory_gym.scenarios import Scenario, scenario
from ai_factory_gym.sites import BatteryConfig, RampConfig, SiteConfig, load_site, site_from_table
from ai_factory_gym.sites.generation import GenerationConfig, GridConfig, unit
from ai_factory_gym.sites.money import MoneyConfig, Tariff
from ai_factory_gym.validate import findings

EDGE = load_site("edge")
EVENING = {"start_time_s": 18 * 3600.0, "horizon_s": 1800.0, "warmup_s": 60.0, "lambda_tokens_per_joule": 3.0}
LEVERS = ("clock", "active_racks", "generation")
DEAR = {"fuel_usd_per_mwh": 200.0}
"""Dearer than any MWh of the grid: such a unit runs where it is needed."""


def place(*units: GenerationConfig, cap_w: float = 1.5e6, **values: Any) -> SiteConfig:
    """Return the Edge site with a smaller connection and units of its own."""
    return dataclasses.replace(EDGE, cap_w=cap_w, generation=units, **values)


def make(site: SiteConfig, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site in the evening."""
    return AIFactoryEnv(site=site, **{**EVENING, "levers": LEVERS, **settings})


def play(env: AIFactoryEnv, steps: int = 10, seed: int = 1, **values: Any) -> list[dict[str, Any]]:
    """Return the infos of an episode with one encoded action."""
    env.reset(seed=seed)
    action = env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})
    return [env.step(action)[4] for _ in range(steps)]


def units(env: AIFactoryEnv) -> np.ndarray:
    """Return the units of an environment as they are."""
    return env.factory.engine.state.unit[0].copy()


def curtailed(hour: float, depth: float, notice_s: float) -> Scenario:
    """Return a day with one curtailment of an hour."""
    (event, _) = scenario("curtailment").cap_events
    event = dataclasses.replace(
        event, window_start_hour=hour, window_end_hour=hour, depth=depth, notice_s=notice_s, duration_s=3600.0
    )
    return dataclasses.replace(scenario("curtailment"), cap_events=(event,))


def balance(info: dict[str, Any]) -> float:
    """Return what an episode's energy fails to balance by, as a share of the facility's."""
    taken = info["energy_j"] + info.get("battery_in_j", 0.0) + info["export_j"] + info["spilled_j"]
    given = info["grid_energy_j"] + info.get("battery_out_j", 0.0) + info["generation_j"]
    return (taken - given) / info["energy_j"]


# ------------------------------------------------------------------------------------------------------------- books

EVERYTHING = place(
    unit("engine", 5e5, name="old", start_s=90.0, min_run_s=120.0, min_down_s=60.0, **DEAR),
    unit("engine", 3e5, start_s=30.0),
    unit("smr", 2e5),
    GenerationConfig("fuel cell", 1e5, 60.0, 300.0, must_run=True, min_load=0.2),
    cap_w=9e5,
    battery=BatteryConfig(power_w=3e5, energy_wh=5e4, initial_charge=0.5),
    grid=GridConfig(export_w=1.5e5, export_usd_per_mwh=45.0),
    money=MoneyConfig(tariff=Tariff(0.5, 2.0), demand_usd_per_kw_month=10.0),
)


@pytest.fixture(scope="module")
def everything() -> AIFactoryEnv:
    """A site with a battery, four units and exports."""
    levers = (*DEFAULT_LEVERS, "battery", "generation")
    return make(EVERYTHING, levers=levers, scenario="curtailment+price_spike", reward="profit", warmup_s=0.0)


@given(st.integers(0, 2**31), st.floats(0.0, 1.3), st.floats(0.0, 1.0))
@settings(max_examples=10, deadline=None)
def test_no_joule_and_no_dollar_is_lost_or_made(
    everything: AIFactoryEnv, seed: int, demand: float, bold: float
) -> None:
    env, rng = everything, np.random.default_rng(seed)
    env.reset(seed=seed, options={"demand_scale": demand, "start_time_s": float(rng.integers(0, 24)) * 3600.0})
    specs = EVERYTHING.generation
    before: dict[str, Any] = {}
    for _ in range(12):
        action = bold * rng.uniform(-1.0, 1.0, env.action_layout.size)
        _, _, _, _, info = env.step(action)
        assert abs(balance(info)) < 1e-9
        for spec, mine in zip(specs, units(env), strict=True):
            runs = mine[Unit.MODE] == RUNNING
            low, high = (spec.min_load * spec.power_w, spec.power_w) if runs else (0.0, 0.0)
            assert low - 1e-6 <= mine[Unit.OUTPUT_W] <= high + 1e-6
            assert runs or not spec.must_run
        assert info["export_j"] <= 1.5e5 * info["time_s"] * (1.0 + 1e-9)
        assert all(info[key] >= before.get(key, 0.0) for key in ("grid_energy_j", "generation_j", "spilled_j"))
        before = info
    made = [info[f"generation/{spec.name}/energy_j"] for spec in specs]
    assert sum(made) == pytest.approx(info["generation_j"], rel=1e-9)
    fuel = sum(j / 3.6e9 * spec.fuel_usd_per_mwh for j, spec in zip(made, specs, strict=True))
    assert info["fuel_cost_usd"] == pytest.approx(fuel, rel=1e-9)
    starts = sum(info[f"generation/{spec.name}/starts"] * spec.start_usd for spec in specs)
    assert info["start_cost_usd"] == pytest.approx(starts, abs=1e-9)
    assert info["export_revenue_usd"] == pytest.approx(info["export_j"] / 3.6e9 * 45.0, rel=1e-9)
    costs = info["energy_cost_usd"] + info["battery_wear_usd"] + info["demand_charge_usd"] + info["capital_usd"]
    assert info["profit_usd"] == pytest.approx(info["revenue_usd"] - info["sla_penalty_usd"] - costs, rel=1e-9)


def test_cost_and_carbon_are_those_of_grid_and_units() -> None:
    site = place(
        unit("engine", 2e6, start_s=60.0, start_usd=7.0),
        unit("smr", 2e5),
        grid=GridConfig(export_w=4e5, export_usd_per_mwh=60.0),
        money=MoneyConfig(tariff=Tariff(0.5, 2.0)),
        battery=BatteryConfig(power_w=3e5, energy_wh=5e4),
    )
    env = make(site, levers=(*LEVERS, "battery"), reward="profit", demand_scale=0.3)
    env.reset(seed=3)
    rewards = 0.0
    for order in (0.0, 0.0, -1.0, -1.0, -0.4, 0.0, 0.0, 1.0):
        action = env.action_layout.encode(clock=0.7, racks=env.action_layout.racks, generation=order, battery=order)
        info = env.step(action)[4]
        rewards += info["reward_terms/energy"]
    grid_mwh = info["grid_energy_j"] / 3.6e9
    assert info["export_j"] > 0.0 and info["start_cost_usd"] == 7.0 and grid_mwh > 0.0 and info["battery_out_j"] > 0.0
    parts = info["fuel_cost_usd"] + info["start_cost_usd"] - info["export_revenue_usd"]
    assert info["energy_cost_usd"] == pytest.approx(51.0 * grid_mwh + parts, rel=1e-9)
    of_units = sum(info[f"generation/{spec.name}/energy_j"] / 3.6e9 * spec.carbon_g_per_kwh for spec in site.generation)
    assert info["carbon_kg"] == pytest.approx(350.0 * grid_mwh + of_units, rel=1e-9)
    usd = -rewards * env.factory._constants.scale_usd
    assert usd == pytest.approx(info["energy_cost_usd"] + info["battery_wear_usd"], rel=1e-9)


def test_the_reward_carbon_weighs_what_units_emit() -> None:
    terms = []
    for grams in (0.0, 800.0):
        site = place(unit("engine", 7e5, carbon_g_per_kwh=grams, must_run=True))
        info = play(make(site, reward="carbon"), 2)[-1]
        terms.append((info["reward_terms/energy"], info["carbon_kg"], info["generation_j"]))
    assert terms[1][0] < terms[0][0] < 0.0
    assert terms[1][1] - terms[0][1] == pytest.approx(800.0 * terms[0][2] / 3.6e9, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------- dispatch


def test_a_cheap_unit_spares_the_grid_and_a_dear_one_stands_still() -> None:
    cheap, dear = (play(make(place(unit("engine", 7e5, **given), cap_w=3e6)), 5) for given in ({}, DEAR))
    assert cheap[-1]["generation_power_w"] == pytest.approx(7e5)
    assert cheap[-1]["grid_power_w"] == pytest.approx(cheap[-1]["facility_power_w"] - 7e5)
    assert dear[-1]["generation_j"] == dear[-1]["generation/engine/run_s"] == 0.0
    assert dear[-1]["grid_energy_j"] == pytest.approx(dear[-1]["energy_j"], rel=1e-12)
    assert cheap[-1]["energy_cost_usd"] < dear[-1]["energy_cost_usd"]


def test_the_price_of_the_moment_decides() -> None:
    site = place(unit("engine", 7e5, fuel_usd_per_mwh=55.0, start_s=0.0, start_usd=0.0), cap_w=3e6)
    env = make(dataclasses.replace(site, series=(("electricity", "synthetic"),)), demand_scale=0.3)
    seen = set()
    for hour in (13.0, 19.5):
        env.reset(seed=1, options={"start_time_s": hour * 3600.0})
        for _ in range(3):
            info = env.step(env.action_layout.encode(clock=0.8, racks=env.action_layout.racks))[4]
            price = env.factory.engine.state.site[0, Site.USD_PER_MWH]
            assert (price > 55.0) == (info["generation_power_w"] > 0.0)
            seen.add(bool(price > 55.0))
    assert len(seen) == 2


def test_merit_order_the_cheapest_first() -> None:
    site = place(
        unit("engine", 4e5, name="dear", min_load=0.0, start_s=0.0, **DEAR),
        unit("engine", 4e5, name="cheap", min_load=0.0, start_s=0.0, fuel_usd_per_mwh=150.0),
        cap_w=1.6e6,
    )
    env = make(site, demand_scale=0.95)
    info = play(env, 15)[-1]
    assert info["generation/cheap/run_s"] > info["generation/dear/run_s"]
    assert info["generation/cheap/energy_j"] > info["generation/dear/energy_j"]


def test_a_unit_that_starts_does_not_help_before_it_runs() -> None:
    env = make(place(unit("engine", 9e5, start_s=240.0, **DEAR)), demand_scale=1.2)
    env.reset(seed=1)
    slow, full = (
        env.action_layout.encode(clock=c, racks=env.action_layout.racks, generation=g)
        for c, g in ((0.4, -1.0), (1.0, 0.0))
    )
    while units(env)[0, Unit.MODE] != OFF:
        env.step(slow)
    started_s, braked = 0.0, []
    for _ in range(12):
        info = env.step(full)[4]
        mine = units(env)[0]
        braked.append(info["brake_s"])
        if mine[Unit.MODE] == STARTING:
            started_s = mine[Unit.READY_S] - 240.0
            assert mine[Unit.OUTPUT_W] == 0.0 and info["generation_available_w"] == 0.0
            assert info["generation_power_w"] == 0.0
        assert info["grid_power_w"] <= 1.5e6 * (1.0 + 1e-3)
    assert info["generation/engine/starts"] == 1.0 and started_s > 0.0
    assert info["generation/engine/energy_j"] > 0.0
    # It gave nothing before: it has run since then, and no longer.
    since_s = info["time_s"] - (started_s + 240.0)
    assert units(env)[0, Unit.RUN_S] <= since_s + 1e-6 + 240.0
    assert max(braked) > 0.0


def test_an_announced_curtailment_finds_the_unit_running() -> None:
    site = place(unit("engine", 1e6, start_s=300.0, **DEAR), cap_w=2.6e6)
    calm = {"start_time_s": 17.75 * 3600.0, "demand_scale": 0.9}
    for notice_s, kept in ((900.0, True), (0.0, False)):
        env = make(site, scenario=curtailed(18.0, 0.5, notice_s), **calm)
        infos = play(env, 20)
        before, after = infos[9], infos[-1]
        assert (before["generation_available_w"], after["cap_w"]) == (0.0, pytest.approx(1.3e6))
        ready_s = 15 * 60.0
        if kept:
            assert infos[14]["generation_available_w"] == 1e6
            assert after["cap_violation_j"] == 0.0 and after["brake_s"] == 0.0
            assert (
                after["facility_power_w"] > after["cap_w"]
                and after["generation/engine/run_s"] < after["time_s"] - ready_s + 600.0
            )
        else:
            # Without notice the brake holds the cap for the five minutes that it takes to start.
            assert after["brake_s"] > 200.0


def test_minimum_times_are_kept() -> None:
    env = make(
        place(unit("engine", 6e5, start_s=60.0, min_run_s=300.0, min_down_s=240.0, **DEAR), cap_w=3e6),
        horizon_s=2400.0,
        demand_scale=0.2,
    )
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    history = ""
    for _ in range(40):
        order = float(rng.choice([-1.0, 1.0]))
        env.step(env.action_layout.encode(clock=0.6, racks=env.action_layout.racks, generation=order))
        history += "OSR"[int(units(env)[0, Unit.MODE])]
    stretches = [(mode, len(list(steps))) for mode, steps in itertools.groupby(history)][1:-1]
    least = {"O": 4, "S": 1, "R": 5}
    assert {mode for mode, _ in stretches} == set(least) and len(stretches) > 5
    assert all(length >= least[mode] for mode, length in stretches)
    assert all(length == 1 for mode, length in stretches if mode == "S")


def test_zero_is_the_lever_left_out() -> None:
    site = place(unit("engine", 7e5), unit("engine", 3e5, name="dear", **DEAR))
    plain = play(make(site, levers=("clock", "active_racks"), demand_scale=1.1), 6)
    assert plain == play(make(site, demand_scale=1.1), 6, generation=0.0)


def test_the_lever_sets_least_and_most_and_never_the_cap() -> None:
    cheap = make(place(unit("engine", 6e5, start_s=0.0), cap_w=3e6), demand_scale=0.6)
    given = {order: play(cheap, 4, generation=order)[-1]["generation_power_w"] for order in (-1.0, -0.5, 0.0, 1.0)}
    assert given == pytest.approx({-1.0: 0.0, -0.5: 3e5, 0.0: 6e5, 1.0: 6e5})
    dear = make(place(unit("engine", 6e5, start_s=0.0, **DEAR), cap_w=3e6), demand_scale=0.6)
    given = {order: play(dear, 4, generation=order)[-1]["generation_power_w"] for order in (0.0, 0.2, 0.5, 1.0)}
    assert given == pytest.approx({0.0: 0.0, 0.2: 0.0, 0.5: 3e5, 1.0: 6e5})
    # A unit the cap asks for is not stopped, nor held down.
    tight = make(place(unit("engine", 9e5, **DEAR)))
    held = play(tight, 4, generation=-1.0)[-1]
    assert held["facility_power_w"] > 1.5e6 and held["brake_s"] == 0.0
    assert held["grid_power_w"] == pytest.approx(1.5e6, rel=1e-3)


def test_a_flat_unit_exports_its_surplus_or_spills_it() -> None:
    for grid, exported in ((None, 0.0), (GridConfig(2e5, 20.0), 2e5), (GridConfig(5e6), 5e6)):
        env = make(place(unit("smr", 2.5e6), grid=grid), levers=("clock",), demand_scale=0.2)
        info = play(env, 4)[-1]
        surplus_w = 2.5e6 - info["facility_power_w"]
        assert surplus_w > 2e5 and info["grid_energy_j"] == 0.0 and abs(balance(info)) < 1e-9
        assert info["generation_j"] == pytest.approx(2.5e6 * info["time_s"], rel=1e-9)
        assert info["export_j"] == pytest.approx(
            min(exported * info["time_s"], info["export_j"] + info["spilled_j"]), rel=1e-6
        )
        assert info["carbon_kg"] == 0.0
    with pytest.raises(ConfigError, match="levers: 'generation' is not possible: the site has no unit to decide about"):
        make(place(unit("smr", 2.5e6)))


def test_a_site_without_a_grid_works() -> None:
    firm, spare = 9e5, 8e5
    site = place(
        unit("engine", firm, name="base", must_run=True),
        unit("engine", spare, name="spare", start_s=120.0, min_load=0.3),
        cap_w=0.0,
        battery=BatteryConfig(power_w=3e5, energy_wh=5e4),
    )
    assert idle_facility_w(site) < firm
    env = make(site, horizon_s=3600.0, warmup_s=600.0)
    infos = play(env, 20, clock=0.7)
    last = infos[-1]
    assert last["cap_w"] == 0.0 and last["generation/spare/run_s"] > 0.0
    assert abs(balance(last)) < 1e-9
    assert (
        last["cap_violation_j"] == pytest.approx(last["grid_energy_j"], abs=1.0)
        and last["cap_violation_j"] < 1e-4 * last["energy_j"]
    )
    assert last["energy_cost_usd"] == pytest.approx(
        last["fuel_cost_usd"] + last["start_cost_usd"] + 51.0 * last["grid_energy_j"] / 3.6e9
    )
    assert all(np.isfinite(value) for info in infos for value in info.values())
    observation = env.reset(seed=1)[0]
    assert observation[env.observation_layout["cap"]][0] == 0.0 and np.isfinite(observation).all()
    observation = env.reset(seed=1, options={"scenario": "curtailment"})[0]
    assert observation[env.observation_layout["cap_announced"]][0] == 0.0


def test_a_site_under_the_brake_gets_the_next_unit() -> None:
    # From idle to far above the cap within seconds: the draw of the last minute says nothing, and then the brake holds it down.
    site = place(
        *(unit("engine", 3e5, name=f"unit {k}", start_s=120.0, fuel_usd_per_mwh=200.0 + k) for k in range(3)),
        cap_w=1.3e6,
    )
    env = make(site, demand_scale=1.2)
    env.reset(seed=1)
    slow, full = (env.action_layout.encode(clock=clock, racks=env.action_layout.racks) for clock in (0.4, 1.0))
    for _ in range(3):
        env.step(slow)
    env.factory.engine.state.unit[0, :, Unit.MODE] = OFF
    env.factory.engine.state.site[0, Site.DRAW_W] = 1e6
    seen = []
    for _ in range(10):
        info = env.step(full)[4]
        modes = units(env)[:, Unit.MODE]
        # One after the other.
        assert (modes == STARTING).sum() <= 1 or info["brake_s"] == 0.0
        seen.append(int((modes != OFF).sum()))
    assert seen[-1] == 3 and seen == sorted(seen)
    assert info["facility_power_w"] > 1.3e6


def test_evaluation_counts_units_as_cap() -> None:
    site = place(unit("engine", 1.5e6, must_run=True), cap_w=0.0)
    result = evaluate(
        functools.partial(baselines.make, "uniform"),
        "ai_factory/Custom-v0",
        seeds=[2_000_000],
        scenario="steady",
        horizon_s=600.0,
        env_kwargs={"site": site, "demand_scale": 1.4, "warmup_s": 60.0, "lambda_tokens_per_joule": 3.0},
    )
    (row,) = result.episodes
    assert row["cap_energy_j"] == 0.0
    assert row["cap_violation_share"] == pytest.approx(row["cap_violation_j"] / (1.5e6 * 600.0))
    assert "generation_available_w" not in row and row["generation_j"] > 0.0


def test_the_brake_protects_a_site_without_a_grid() -> None:
    site = place(unit("engine", 1.6e6, must_run=True), cap_w=0.0)
    infos = play(make(site, demand_scale=1.3), 8)
    assert infos[-1]["brake_s"] > 0.0
    # A second of the brake's reaction, and no more.
    assert infos[-1]["cap_violation_j"] <= 2.0 * 1e6
    assert max(info["facility_power_w"] for info in infos[4:]) <= 1.6e6


@pytest.mark.parametrize("battery", [None, BatteryConfig(power_w=1e5, energy_wh=2e4)])
def test_with_ramp_limits_units_take_load_and_give_it_up_as_the_limits_let(battery: BatteryConfig | None) -> None:
    slope = 5e3
    site = place(unit("engine", 7e5, start_s=60.0, **DEAR), cap_w=2.6e6, ramp=RampConfig(slope, slope), battery=battery)
    env = make(site, demand_scale=0.7)
    env.reset(seed=1)
    outputs, grid = [], []
    for order in (-1.0,) * 5 + (1.0,) * 7 + (-1.0,) * 7:
        info = env.step(env.action_layout.encode(clock=0.7, racks=env.action_layout.racks, generation=order))[4]
        outputs.append(units(env)[0, Unit.OUTPUT_W])
        grid.append(info["grid_power_w"])
        assert abs(balance(info)) < 1e-9
    assert outputs[4] == 0.0 and outputs[11] == pytest.approx(7e5) and outputs[-1] == 0.0
    # Two minutes and a third each way; nothing is burnt for it.
    assert 0.0 < outputs[6] < 7e5 and 0.0 < outputs[12] < 7e5
    assert np.abs(np.diff(grid)).max() <= slope * 60.0 * (1.0 + 1e-9)
    assert info["ramp_excess_w"] == 0.0 and info["ballast_j"] < 1e-3 * info["energy_j"]
    assert info["ramp_limited_s"] < 30.0 and info["generation/engine/starts"] == 1.0
    # One that is being stopped can take load again, without another start.
    for order in (1.0,) * 4 + (-1.0, 1.0, 1.0, 1.0):
        info = env.step(env.action_layout.encode(clock=0.7, racks=env.action_layout.racks, generation=order))[4]
    assert info["generation/engine/starts"] == 2.0 and units(env)[0, Unit.OUTPUT_W] == pytest.approx(7e5)
    assert info["ramp_excess_w"] == 0.0 and abs(balance(info)) < 1e-9


def test_units_that_run_make_room_for_a_steep_rise() -> None:
    ramp = RampConfig(up_w_per_s=1e3)
    limited = []
    for units_ in ((), (unit("engine", 1.5e6, must_run=True, min_load=0.05, **DEAR),)):
        env = make(place(*units_, cap_w=2.6e6, ramp=ramp), levers=("clock", "active_racks"))
        env.reset(seed=1)
        for clock in (0.4, 0.4, 0.4, 1.0, 1.0, 1.0):
            info = env.step(env.action_layout.encode(clock=clock, racks=env.action_layout.racks))[4]
        assert info["ramp_excess_w"] == 0.0
        limited.append((info["ramp_limited_s"], info["good_tokens"]))
    assert limited[1][0] < 0.5 * limited[0][0] and limited[1][1] >= limited[0][1]


# ------------------------------------------------------------------------------------- what others make of it, bad input


def test_rules_are_told_what_runs() -> None:
    site = place(unit("engine", 5e5, must_run=True))
    plain = dataclasses.replace(EDGE, cap_w=2e6)
    found = []
    for each in (site, plain):
        env = AIFactoryEnv(site=each, **{**EVENING, "start_time_s": 19.5 * 3600.0})
        rule = baselines.make("reactive", env)
        observation, _ = env.reset(seed=1)
        assert baselines.base.view(rule.facts, observation).cap_w == pytest.approx(2e6, rel=1e-6)
        memory = None
        for _ in range(5):
            action, memory = rule.predict(observation, memory)
            observation, *_, info = env.step(action)
        found.append(info)
    # The facility cannot tell a unit that always runs from a larger cap.
    for key in ("good_tokens", "energy_j", "requests_met_slo", "brake_s"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-6), key


def test_the_observation_tells_of_each_unit() -> None:
    env = make(place(unit("engine", 5e5, start_s=600.0, **DEAR), unit("smr", 2e5), cap_w=3e6), demand_scale=0.5)
    layout = env.observation_layout
    assert layout.base_cap_w == 3.7e6
    observation, _ = env.reset(seed=1)
    off, on = (env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, generation=g) for g in (-1.0, 1.0))
    for action, running, start in ((off, [0.0, 1.0], 0.0), (on, [0.0, 1.0], 0.9)):
        observation = env.step(action)[0]
        assert observation[layout["unit_running"]].tolist() == running
        assert observation[layout["unit_start"]][0] == pytest.approx(start, abs=0.03)
    assert observation[layout["unit_output"]].tolist() == [0.0, 1.0]
    assert observation[layout["supply"]] == pytest.approx([2e5 / 3.7e6, 7e5 / 3.7e6], rel=1e-5)
    assert observation[layout["cap"]][0] == pytest.approx(3.0 / 3.7)


def test_a_snapshot_takes_the_units_along() -> None:
    env = make(place(unit("engine", 5e5, start_s=600.0, **DEAR), cap_w=2.5e6))
    play(env, 2, generation=-1.0)
    action = env.action_layout.encode(generation=1.0)
    env.step(action)
    saved = env.snapshot()
    assert units(env)[0, Unit.MODE] == STARTING
    first = [env.step(action)[4] for _ in range(2)]
    env.restore(saved)
    assert [env.step(action)[4] for _ in range(2)] == first


TABLE = {
    "name": "own",
    "cap_w": 2e6,
    "model": "deepseek-r1",
    "demand_rps": 10.0,
    "mix": {"chat": 1.0},
    "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 2, "dp": 8} for phase in ("prefill", "decode")],
}
ENGINE = {"kind": "engine", "power_w": 1e6}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"generation": 3}, "generation: 3 is not allowed; must be a list of at least one"),
        ({"generation": [3]}, r"generation\[0\]: 3 is not allowed; must be a table"),
        ({"generation": [{"kind": "engin", "power_w": 1.0}]}, "kind: unknown value 'engin'.*Did you mean 'engine'"),
        ({"generation": [{"power_w": 1e6}]}, "missing key.s. name, fuel_usd_per_mwh, carbon_g_per_kwh"),
        ({"generation": [{**ENGINE, "minload": 0.3}]}, "unknown key 'minload'.*Did you mean 'min_load'"),
        ({"generation": [{**ENGINE, "min_load": 1.2}]}, r"generation\[engine\].min_load: 1.2 is not allowed"),
        ({"generation": [{**ENGINE, "power_w": "1 MW"}]}, "power_w: '1 MW' is not allowed"),
        ({"generation": [{**ENGINE, "must_run": 1}]}, "must_run: 1 is not allowed; must be True or False"),
        ({"generation": [ENGINE, ENGINE]}, "generation: 'engine' is given twice"),
        ({"generation": [{**ENGINE, "name": "a/b"}]}, "name: 'a/b' is not allowed; must have no '/'"),
        ({"cap_w": 0.0}, "cap_w: 0.0 is not allowed.*a site with units of its own"),
        ({"cap_w": 100.0, "generation": [ENGINE]}, "cap_w: 100.0 is not allowed"),
        ({"grid": {"export_w": 1e5}}, r"grid.export_w: a site without \[\[generation\]\] has nothing to export"),
        (
            {"grid": {"export_w": 1e5}, "cap_w": 0.0, "generation": [ENGINE]},
            "without a grid connection .* cannot export",
        ),
        (
            {"grid": {"export_w": 1e5}, "ramp": {"up_w_per_s": 1e3}, "generation": [ENGINE]},
            "grid.export_w: is not possible with ramp limits",
        ),
        ({"cap_w": 0.0, "ramp": {"up_w_per_s": 1e3}, "generation": [ENGINE]}, "ramp: a site without a grid connection"),
        ({"grid": {"export_usd_per_mwh": 1.0}, "generation": [ENGINE]}, "is not allowed without export_w"),
        ({"grid": {"exports_w": 1.0}}, "unknown key 'exports_w'.*Did you mean 'export_w'"),
    ],
)
def test_mistakes_are_named(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        site_from_table({**TABLE, **extra})


def test_only_units_that_always_run_keep_the_idle_draw() -> None:
    idle_w = idle_facility_w(EDGE)
    need_w = 0.8 * idle_w
    for must_run in (True, False):
        site = place(unit("engine", need_w, must_run=must_run), cap_w=0.4 * idle_w)
        if must_run:
            make(site, scenario="burst")
            continue
        with pytest.raises(ConfigError, match=r"idle draw .* its units that always run.*must_run"):
            make(site, scenario="burst")
    with pytest.raises(ConfigError, match="levers: 'generation' is not possible"):
        make(EDGE)


def test_a_site_file_reads_and_is_described() -> None:
    table = {**TABLE, "generation": [ENGINE, {"kind": "smr", "power_w": 5e5}], "grid": {"export_w": 1e5}}
    site = site_from_table(table)
    assert site.supply_w == 3.5e6 and site.firm_w == 5e5
    assert [each.dispatchable for each in site.generation] == [True, False]
    text = describe_site(site)
    assert "on site: engine 1.000 MW" in text and "smr 0.500 MW" in text and "export up to 0.100 MW" in text
    spilled = [text for text in findings(dataclasses.replace(site, grid=None, cap_w=3e6)) if "generation" in text]
    assert len(spilled) == 1 and "spilled" in spilled[0]


@pytest.mark.parametrize(("usd_per_mwh", "order"), [(20.0, 0.3), (80.0, -0.3)])
def test_ramp_limits_do_not_move_units_away_from_what_is_cheap(usd_per_mwh: float, order: float) -> None:
    # What a battery gives by order is not for the units to give as well, nor what it takes for the grid.
    table = {
        **{"based_on": "edge", "name": "Mine", "cap_w": 1.6e6, "electricity_usd_per_mwh": usd_per_mwh},
        "generation": [{"kind": "engine", "power_w": 7e5, "must_run": True}],
        "battery": {"power_w": 4e5, "energy_wh": 4e6, "initial_charge": 0.5},
    }
    made = []
    for ramp in ({}, {"ramp": {"up_w_per_s": 1667.0, "down_w_per_s": 1667.0}}):
        env = AIFactoryEnv(
            site=load_site({**table, **ramp}),
            scenario="steady",
            levers=("clock", "active_racks", "battery"),
            horizon_s=2400.0,
            warmup_s=600.0,
            start_time_s=12 * 3600.0,
            lambda_tokens_per_joule=3.0,
        )
        env.reset(seed=1)
        action = env.action_layout.encode(clock=0.7, racks=env.action_layout.racks, battery=order)
        made.append([env.step(action)[4]["generation_power_w"] for _ in range(40)][-10:])
    assert made[0] == pytest.approx([2.8e5 if order > 0.0 else 7e5] * 10, rel=1e-6)
    # Units take the swings of the draw that the grid may not follow, a few kilowatts here; before, they ended at the other end of their range.
    assert np.mean(made[1]) == pytest.approx(made[0][0], rel=0.05)
