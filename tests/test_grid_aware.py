"""The rule ``grid_aware``: ``reactive`` where a site has none of the parts it knows, and what it does with each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ai_factory_baselines as baselines
from ai_factory_baselines.grid_aware import CHARGE
from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.levers import DEFAULT_LEVERS
from ai_factory_gym.sites import load_site

LEVERS = (*DEFAULT_LEVERS, "deferral", "battery")
PARTS: dict[str, Any] = {
    "battery": {"power_w": 4e5, "energy_wh": 8e5, "initial_charge": 0.9},
    "cooling": {"coolant_limit_c": 45.0, "design_outdoor_c": 30.0},
    "money": {"output_usd_per_mtok": 2.0, "coincident_usd_per_kw_year": 100.0},
    "series": {"electricity": "synthetic"},
}


def make(*parts: str, **settings: Any) -> AIFactoryEnv:
    """Return Edge with some parts."""
    site = load_site({"based_on": "edge", "name": "Mine", **{name: PARTS[name] for name in parts}})
    return AIFactoryEnv(
        site=site, lambda_tokens_per_joule=3.0, horizon_s=600.0, warmup_s=60.0, start_time_s=14 * 3600.0, **settings
    )


def seen(env: AIFactoryEnv, **values: Any) -> np.ndarray:
    """Return the first observation with some of its numbers replaced, by block."""
    observation, _ = env.reset(seed=1)
    observation = observation.copy()
    for name, numbers in values.items():
        observation[env.observation_layout[name]] = numbers
    return observation


def ordered(env: AIFactoryEnv, *observations: np.ndarray) -> np.ndarray:
    """Return what the rule orders after the last of the observations."""
    rule, state = baselines.make("grid_aware", env), None
    for observation in observations:
        action, state = rule.predict(observation, state)
    assert env.action_space.contains(action)
    return np.asarray(action)


CURTAILED: dict[str, Any] = {"cap": 0.7, "cap_announced": [1.0, 0.5, 1.0, 1.0]}
ANNOUNCED: dict[str, Any] = {"cap_announced": [1.0, 0.2, 0.7, 0.75]}


def test_without_parts_it_is_reactive() -> None:
    env = make()
    own, plain = baselines.make("grid_aware", env), baselines.make("reactive", env)
    observation, _ = env.reset(seed=1)
    mine = theirs = None
    for _ in range(10):
        action, mine = own.predict(observation, mine)
        expected, theirs = plain.predict(observation, theirs)
        np.testing.assert_array_equal(action, expected)
        observation = env.step(action)[0]
    assert "grid_aware" in baselines.OF_PARTS and "grid_aware" not in baselines.names()


def test_a_curtailment_empties_the_battery_evenly_and_holds_deferred_work_back() -> None:
    env = make("battery", levers=LEVERS)
    layout = env.action_layout
    action = ordered(env, seen(env, **CURTAILED))
    # One hour is left: 0.9 of two hours at full power, what comes out of it, over that hour; more than the battery gives.
    assert action[layout["battery"]] == 1.0 and (action[layout["deferral"]] == -1.0).all()
    slow = ordered(env, seen(env, **{**CURTAILED, "cap_announced": [1.0, 2.0, 1.0, 1.0]}))
    assert slow[layout["battery"]] == pytest.approx(0.9 * 2.0 * np.sqrt(0.87) / 4.0, rel=1e-6)
    before = ordered(env, seen(env, **ANNOUNCED))
    assert before[layout["battery"]] == pytest.approx(-CHARGE) and (before[layout["deferral"]] == 0.0).all()


def test_the_cap_it_keeps_is_what_there_is() -> None:
    plain, stored = make(), make("battery", levers=LEVERS)
    without = ordered(plain, seen(plain, **CURTAILED))
    layout = stored.action_layout
    with_battery = ordered(stored, seen(stored, **CURTAILED))
    assert (with_battery[layout["clock"]] >= without[plain.action_layout["clock"]]).all()
    hot = make("cooling")
    cool = ordered(hot, seen(hot, coolant=[0.8, 2.0, 2.0]))
    warm = ordered(hot, seen(hot, coolant=[1.0, 0.3, 0.3]))
    clocks = hot.action_layout["clock"]
    assert warm[clocks].sum() < cool[clocks].sum()


def test_a_peak_window_is_met_with_the_battery() -> None:
    env = make("battery", "money", levers=LEVERS)
    action = ordered(env, seen(env, peak_window=[1.0, 0.0, 1.0, 1.0]))
    # Four hours are left of the window.
    assert action[env.action_layout["battery"]] == pytest.approx(0.9 * 2.0 * np.sqrt(0.87) / 4.0, rel=1e-6)
    assert (action[env.action_layout["deferral"]] == -1.0).all()


def test_the_battery_is_sold_when_that_pays() -> None:
    env = make("battery", "series", levers=LEVERS)
    battery = env.action_layout["battery"]
    usual = [seen(env, price=0.5)] * 20
    # 50 USD/MWh bought, 57 with the losses, 107 with the wear.
    assert ordered(env, *usual, seen(env, price=0.9))[battery] == 0.0
    assert ordered(env, *usual, seen(env, price=1.3))[battery] == 1.0
    assert ordered(env, *usual, seen(env, price=1.3, battery=[0.5, 0.0]))[battery] == 0.0
    assert ordered(env, *usual, seen(env, price=0.3))[battery] == pytest.approx(-CHARGE)


def test_power_made_on_site_is_no_curtailment() -> None:
    site = load_site(
        {
            **{"based_on": "edge", "name": "Mine", "cap_w": 1.5e6, "battery": PARTS["battery"]},
            "generation": [{"kind": "engine", "power_w": 5e5}],
            "training": {"rack": "gb300_nvl72", "racks": 2},
        }
    )
    levers = (*LEVERS, "training", "generation")
    env = AIFactoryEnv(
        site=site, lambda_tokens_per_joule=3.0, horizon_s=600.0, warmup_s=60.0, start_time_s=14 * 3600.0, levers=levers
    )
    layout = env.action_layout
    usual = seen(env)
    assert usual[env.observation_layout["cap"]][0] == pytest.approx(0.75)
    calm = ordered(env, usual)
    assert (calm[layout["deferral"]] == 0.0).all() and calm[layout["training"]] == 0.0
    low: dict[str, Any] = {"cap": 0.6, "cap_announced": [1.0, 0.5, 0.75, 1.0]}
    roomy = ordered(env, seen(env, **low, power=0.3))
    assert (roomy[layout["deferral"]] == -1.0).all() and roomy[layout["training"]] == 0.0
    # 0.6 of the connection and 0.25 made on site: the job has to go, and stays away when there is room for it without it.
    full = seen(env, **low, power=0.8)
    assert ordered(env, full)[layout["training"]] == -1.0
    assert ordered(env, full, seen(env, **low, power=0.3))[layout["training"]] == -1.0
    assert ordered(env, full, usual)[layout["training"]] == 0.0


def test_rows_are_decided_one_by_one() -> None:
    env = make("battery", "cooling", "money", "series", levers=LEVERS)
    rule = baselines.make("grid_aware", env)
    rows = np.stack(
        [seen(env), seen(env, **CURTAILED), seen(env, peak_window=[1.0, 0.0, 1.0, 1.0]), seen(env, price=2.0)]
    )
    state: Any = None
    states: list[Any] = [None] * len(rows)
    for _ in range(3):
        actions, state = rule.predict(rows, state)
        for row in range(len(rows)):
            alone, states[row] = rule.predict(rows[row], states[row])
            np.testing.assert_array_equal(alone, actions[row])
