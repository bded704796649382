"""Coolant with a limit: the loop obeys its equation, and the site derates before the limit is passed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.heat import LOOK_AHEAD_S
from ai_factory_gym.engine.layout import Pool, Site
from ai_factory_gym.observation import PART_BLOCKS
from ai_factory_gym.params import coolable_up_to_c, derates_above_c, heat_w_per_kelvin, nameplate_it_w, site_pue
from ai_factory_gym.physics.cooling import coolable_w, coolant_after_c
from ai_factory_gym.sites import BrakeConfig, CoolingConfig, SiteConfig, load_site, site_from_table
from ai_factory_gym.validate import findings

EDGE = load_site("edge")
LIMIT_C, DESIGN_C = 45.0, 30.0
EVENING = {
    "start_time_s": 18 * 3600.0,
    "horizon_s": 1200.0,
    "warmup_s": 300.0,
    "lambda_tokens_per_joule": 3.0,
    "demand_scale": 0.9,
}


def warm(outdoor_c: float, **values: float) -> SiteConfig:
    """Return the Edge site without chillers."""
    given = {"coolant_limit_c": LIMIT_C, "design_outdoor_c": DESIGN_C, "outdoor_c": outdoor_c, **values}
    return dataclasses.replace(EDGE, cooling=CoolingConfig(**given))


def make(site: SiteConfig, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site in the evening."""
    return AIFactoryEnv(site=site, **{**EVENING, **settings})


def play(env: AIFactoryEnv, steps: int, clock: float = 0.8, seed: int | None = 1) -> list[dict[str, Any]]:
    """Return the infos of some steps with one action, of a new episode unless ``seed`` is None."""
    if seed is not None:
        env.reset(seed=seed)
    action = env.action_layout.encode(clock=clock, racks=env.action_layout.racks)
    return [env.step(action)[4] for _ in range(steps)]


# ----------------------------------------------------------------------------------------------------------- the loop

LOOPS = {
    "coolant_c": st.floats(10.0, 45.0),
    "it_w": st.floats(0.0, 5e6),
    "w_per_kelvin": st.floats(5e4, 5e5),
    "outdoor_c": st.floats(-20.0, 44.0),
    "tau_s": st.floats(30.0, 3600.0),
    "seconds": st.floats(0.1, 3600.0),
}


@given(**LOOPS)
@settings(max_examples=25, deadline=None)
def test_the_solution_is_that_of_the_equation(
    coolant_c: float, it_w: float, w_per_kelvin: float, outdoor_c: float, tau_s: float, seconds: float
) -> None:
    steps = 4000
    step_s = seconds / steps
    euler_c = coolant_c
    rejected_j = 0.0
    for _ in range(steps):
        rejected_j += w_per_kelvin * (euler_c - outdoor_c) * step_s
        euler_c += step_s * (it_w / w_per_kelvin - (euler_c - outdoor_c)) / tau_s
    exact_c = coolant_after_c(coolant_c, it_w, w_per_kelvin, outdoor_c, tau_s, seconds)
    swing = abs(outdoor_c + it_w / w_per_kelvin - coolant_c)
    assert exact_c == pytest.approx(euler_c, abs=1e-9 + swing * min(1.0, seconds / tau_s) * seconds / tau_s / steps)
    # What is not rejected stays in the loop; its heat capacity is tau x UA.
    stored_j = tau_s * w_per_kelvin * (euler_c - coolant_c)
    assert it_w * seconds - rejected_j == pytest.approx(stored_j, rel=1e-6, abs=1.0)


@given(**LOOPS)
@settings(max_examples=60, deadline=None)
def test_what_heat_allows_brings_the_coolant_to_its_limit(
    coolant_c: float, it_w: float, w_per_kelvin: float, outdoor_c: float, tau_s: float, seconds: float
) -> None:
    rest = (w_per_kelvin, outdoor_c, tau_s, seconds)
    allowed_w = coolable_w(coolant_c, LIMIT_C, *rest)
    assert coolant_after_c(coolant_c, allowed_w, *rest) == pytest.approx(LIMIT_C, abs=1e-6)
    # The temperature has no turn: half way it is below the limit.
    assert coolant_after_c(coolant_c, allowed_w, *rest[:-1], 0.5 * seconds) <= LIMIT_C + 1e-9
    assert coolable_w(coolant_c, LIMIT_C, w_per_kelvin, outdoor_c + 0.5, tau_s, seconds) < allowed_w
    assert coolable_w(coolant_c - 1.0, LIMIT_C, *rest) >= allowed_w
    assert coolable_w(coolant_c, LIMIT_C, *rest[:-1], 2.0 * seconds) <= allowed_w * (1.0 + 1e-12)
    for_good_w = coolable_w(coolant_c, LIMIT_C, *rest[:-1], math.inf)
    assert for_good_w == pytest.approx(w_per_kelvin * (LIMIT_C - outdoor_c)) and for_good_w <= allowed_w * (1 + 1e-9)


def test_nothing_can_be_cooled_when_it_is_too_hot() -> None:
    assert coolable_w(46.0, 45.0, 1e5, 46.0, 300.0, math.inf) == 0.0


# ----------------------------------------------------------------------------------------------------------- the site


def test_the_coolant_follows_the_draw() -> None:
    env = make(warm(33.0), control_interval_s=5.0, demand_scale=0.7)
    infos = play(env, 60)
    spec = heat_w_per_kelvin(env.task.site)
    assert spec == pytest.approx(nameplate_it_w(EDGE) / (LIMIT_C - DESIGN_C))
    before_c = infos[0]["coolant_c"]
    for info in infos[1:]:
        expected_c = coolant_after_c(before_c, info["it_power_w"], spec, 33.0, 300.0, 5.0)
        assert info["coolant_c"] == pytest.approx(expected_c, abs=1e-3)
        before_c = info["coolant_c"]
    assert np.ptp([info["coolant_c"] for info in infos]) > 0.01


def test_an_episode_starts_in_equilibrium_with_its_warm_up() -> None:
    env = make(warm(33.0))
    _, info = env.reset(seed=1)
    state = env.factory.engine.state
    it_w = state.pool[0, :, Pool.STEP_ENERGY_J].sum() / state.site[0, Site.STEP_S]
    rise_k = it_w / heat_w_per_kelvin(env.task.site)
    assert info["coolant_c"] == pytest.approx(33.0 + rise_k, abs=1e-9)
    assert info["coolant_peak_c"] == info["coolant_c"] and info["heat_limited_s"] == 0.0


def test_the_hotter_the_less_is_allowed_and_the_limit_is_kept() -> None:
    energy, limited, allowed = [], [], []
    reaction_s = EDGE.brake.reaction_s
    for outdoor_c in (30.0, 37.0, 38.5, 40.0):
        env = make(warm(outdoor_c))
        last = play(env, 12)[-1]
        energy.append(last["it_energy_j"])
        limited.append(last["heat_limited_s"])
        block = env.factory.observation_layout["coolant"]
        observation = env.step(env.action_layout.encode(clock=0.8, racks=env.action_layout.racks))[0]
        allowed.append(observation[block][2])
        # A jump to the nameplate for as long as the brake takes to react.
        passed_k = nameplate_it_w(EDGE) / heat_w_per_kelvin(env.task.site) * reaction_s / 300.0
        assert last["coolant_peak_c"] <= LIMIT_C + passed_k
        assert last["heat_limited_s"] <= last["brake_s"]
        assert last["cap_violation_j"] == 0.0 and last["cap_w"] == EDGE.cap_w
    assert limited[0] == 0.0 < limited[1] < limited[3]
    assert energy[0] > energy[2] > energy[3]
    assert all(np.diff(allowed) < 0.0)


def test_a_short_excess_passes_and_a_long_one_does_not() -> None:
    env = make(warm(38.0))
    env.reset(seed=1)
    env.factory.engine.state.site[0, Site.COOLANT_C] = 42.0
    infos = play(env, 14, seed=None)
    for_good_w = heat_w_per_kelvin(env.task.site) * (LIMIT_C - 38.0)
    assert all(info["it_power_w"] > for_good_w for info in infos[:5])
    assert infos[4]["heat_limited_s"] == 0.0 and infos[4]["brake_s"] == 0.0
    assert infos[-1]["heat_limited_s"] > 0.0
    # From the first order on the limit is kept: draw is that of the weather in the mean.
    late_w = (infos[-1]["it_energy_j"] - infos[-4]["it_energy_j"]) / 180.0
    assert late_w <= for_good_w * 1.1


def test_draining_the_loop_of_its_inertia_changes_when_not_whether() -> None:
    onset = []
    for tau_s in (60.0, 1800.0):
        env = make(warm(38.0, loop_time_constant_s=tau_s))
        env.reset(seed=1)
        env.factory.engine.state.site[0, Site.COOLANT_C] = 44.0
        infos = play(env, 10, seed=None)
        onset.append(sum(info["heat_limited_s"] == 0.0 for info in infos))
    assert onset[0] < onset[1]


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_limit_that_never_binds_changes_nothing(resolution: str) -> None:
    scale = 0.9 if resolution == "cohort" else 0.02
    plain = make(
        dataclasses.replace(EDGE, cooling=CoolingConfig(outdoor_c=25.0)), resolution=resolution, demand_scale=scale
    )
    cool = make(warm(25.0, coolant_limit_c=80.0, design_outdoor_c=60.0), resolution=resolution, demand_scale=scale)
    size = plain.observation_space.shape[0]
    observed = [env.reset(seed=3)[0] for env in (plain, cool)]
    assert observed[1].shape == (size + 3,) and (observed[0] == observed[1][:size]).all()
    steps = 4 if resolution == "cohort" else 1
    for mine, theirs in zip(play(plain, steps), play(cool, steps), strict=True):
        assert mine == {key: value for key, value in theirs.items() if key in mine}


def test_a_hot_day_moves_no_arrival() -> None:
    counts = [play(make(warm(outdoor_c)), 6)[-1]["requests_arrived"] for outdoor_c in (25.0, 40.0)]
    assert counts[0] == counts[1]


def test_the_operator_sees_the_coolant() -> None:
    assert [name for _, name, _, _ in PART_BLOCKS if f"``{name}`` **" in str(AIFactoryEnv.__doc__)] == [
        name for _, name, _, _ in PART_BLOCKS
    ]
    env = make(warm(36.0))
    observation, info = env.reset(seed=1)
    coolant = observation[env.observation_layout["coolant"]]
    assert coolant[0] == pytest.approx(info["coolant_c"] / LIMIT_C, rel=1e-6)
    spec = heat_w_per_kelvin(env.task.site)
    for place, seconds in ((1, LOOK_AHEAD_S), (2, math.inf)):
        it_w = coolable_w(info["coolant_c"], LIMIT_C, spec, 36.0, 300.0, seconds)
        facility_w = it_w * site_pue(env.task.site, it_w / nameplate_it_w(EDGE))
        assert coolant[place] == pytest.approx(min(10.0, facility_w / EDGE.cap_w), rel=1e-5)
    with pytest.raises(ConfigError, match="observation_layout"):
        make(EDGE).observation_layout["coolant"]


def test_a_snapshot_takes_the_coolant_along() -> None:
    env = make(warm(38.0))
    play(env, 4)
    saved = env.snapshot()
    first = play(env, 3, seed=None)
    env.restore(saved)
    assert play(env, 3, seed=None) == first


# ------------------------------------------------------------------------------------------------- figures and mistakes


def test_the_temperature_at_which_a_site_derates() -> None:
    site = warm(30.0)
    above_c = derates_above_c(site)
    at = dataclasses.replace(site, cooling=dataclasses.replace(site.cooling, outdoor_c=above_c))
    it_w = heat_w_per_kelvin(site) * (LIMIT_C - above_c)
    assert it_w * site_pue(at, it_w / nameplate_it_w(site)) == pytest.approx(site.cap_w, rel=1e-6)
    assert coolable_up_to_c(site, nameplate_it_w(site)) == pytest.approx(DESIGN_C)
    assert derates_above_c(dataclasses.replace(site, cap_w=1e8)) == pytest.approx(DESIGN_C)
    assert derates_above_c(EDGE) == math.inf


def test_describe_and_validate_say_so(tmp_path: Any) -> None:
    path = tmp_path / "warm.toml"
    text = (load_site.__globals__["SITES_PATH"] / "edge.toml").read_text()
    assert "[cooling]" not in text
    path.write_text(text + "\n[cooling]\ncoolant_limit_c = 45\ndesign_outdoor_c = 30\noutdoor_c = 37.0\n")
    assert f"up to {derates_above_c(load_site(path)):.1f} degC outdoors" in describe(str(path))
    assert "coolant" not in describe("edge")
    assert any("the site will have to derate" in text for text in findings(load_site(path)))


def test_a_site_whose_idle_draw_cannot_be_cooled_is_refused() -> None:
    make(warm(40.0))
    with pytest.raises(
        ConfigError, match=r"idle draw of .* can be cooled up to 4\d\.\d degC outdoors, and it may be 44\.0"
    ):
        make(warm(44.0))
    make(warm(20.0))
    with pytest.raises(ConfigError, match="can be cooled up to"):
        make(warm(20.0), scenario="heatwave")


@pytest.mark.parametrize(
    ("cooling", "message"),
    [
        ({"coolant_limit_c": 45.0}, "coolant_limit_c needs design_outdoor_c"),
        ({"design_outdoor_c": 30.0}, "give coolant_limit_c too"),
        ({"loop_time_constant_s": 60.0}, "give coolant_limit_c too"),
        ({"coolant_limit_c": 45.0, "design_outdoor_c": 45.0}, "must be below coolant_limit_c"),
        ({"coolant_limit_c": 450.0, "design_outdoor_c": 30.0}, "coolant_limit_c: 450.0 is not allowed"),
        ({"coolant_limit_c": 45.0, "design_outdoor_c": 30.0, "loop_time_constant_s": 0.0}, "loop_time_constant_s: 0.0"),
        ({"coolant_limit": 45.0}, "Did you mean 'coolant_limit_c'"),
    ],
)
def test_mistakes_are_named(cooling: dict[str, float], message: str) -> None:
    table = {
        "name": "own",
        "cap_w": 2e6,
        "model": "deepseek-r1",
        "demand_rps": 10.0,
        "mix": {"chat": 1.0},
        "pools": [{"rack": "gb300_nvl72", "phase": phase, "racks": 2, "dp": 8} for phase in ("prefill", "decode")],
        "cooling": cooling,
    }
    with pytest.raises(ConfigError, match=message):
        site_from_table(table)


def test_the_limit_needs_the_brake() -> None:
    with pytest.raises(ConfigError, match="coolant_limit_c: needs the power brake"):
        dataclasses.replace(warm(30.0), brake=BrakeConfig(enabled=False))
