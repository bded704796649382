from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.grid.cap import MAX_CAP_EVENTS, CapEvent, CapEventSpec, CapSchedule, draw_schedule
from ai_factory_gym.scenarios import SCENARIO_DIR, Scenario, scenario, scenario_names
from ai_factory_gym.workload.demand import Shift, ShiftSpec, draw_shifts, shift_factor

BASE_W = 2.0e6
DAY_S = 86_400.0

events = st.builds(
    CapEvent,
    start_s=st.integers(-5000, 5000).map(float),
    duration_s=st.integers(1, 4000).map(float),
    depth=st.sampled_from([0.1, 0.15, 0.25, 0.5]),
    notice_s=st.sampled_from([0.0, 30.0, 3600.0]),
)

# ---------------------------------------------------------------------------------------------------------------- cap


def test_a_constant_cap_has_one_step() -> None:
    schedule = CapSchedule(BASE_W)
    assert schedule.cap_at([-1e6, 0.0, 1e9]).tolist() == [BASE_W] * 3
    steps = schedule.breakpoints()
    assert (steps.times_s.tolist(), steps.cap_w.tolist()) == ([-math.inf], [BASE_W])
    assert schedule.event_arrays().start_s.size == 0
    assert schedule.next_announced(0.0) is None
    assert schedule.lowest_cap_w == BASE_W


def test_an_event_holds_from_its_start_up_to_its_end() -> None:
    event = CapEvent(100.0, 50.0, 0.25, 30.0)
    schedule = CapSchedule(BASE_W, (event,))
    assert schedule.cap_at([99.999, 100.0, 149.999, 150.0]).tolist() == [BASE_W, 1.5e6, 1.5e6, BASE_W]
    assert schedule.next_announced(69.999) is None
    assert schedule.next_announced(70.0) == event
    assert schedule.next_announced(100.0) is None
    assert [schedule.active_event(t) for t in (99.0, 100.0, 150.0)] == [None, event, None]
    assert float(schedule.known_cap(69.0, 120.0)) == BASE_W
    assert float(schedule.known_cap(70.0, 120.0)) == 1.5e6
    steps = schedule.breakpoints()
    assert steps.times_s.tolist() == [-math.inf, 100.0, 150.0]
    assert steps.cap_w.tolist() == [BASE_W, 1.5e6, BASE_W]
    assert steps.announced_at_s.tolist() == [-math.inf, 70.0, 70.0]
    assert schedule.lowest_cap_w == 1.5e6


def test_the_deeper_of_two_overlapping_events_holds() -> None:
    schedule = CapSchedule(100.0, (CapEvent(20.0, 20.0, 0.5, 0.0), CapEvent(10.0, 20.0, 0.2, 5.0)))
    assert [event.start_s for event in schedule.events] == [10.0, 20.0]
    np.testing.assert_allclose(schedule.cap_at([5.0, 10.0, 20.0, 30.0, 40.0]), [100.0, 80.0, 50.0, 50.0, 100.0])
    np.testing.assert_allclose(schedule.known_cap(15.0, [15.0, 25.0, 35.0]), [80.0, 80.0, 100.0])
    active = schedule.active_event(25.0)
    assert active is not None and active.depth == 0.5
    assert schedule.breakpoints().times_s.tolist() == [-math.inf, 10.0, 20.0, 40.0]


@given(st.lists(events, max_size=5), st.floats(-8000.0, 12_000.0))
@settings(max_examples=100, deadline=None)
def test_steps_and_event_arrays_say_the_same_as_cap_at(some: list[CapEvent], time_s: float) -> None:
    schedule = CapSchedule(BASE_W, tuple(some))
    steps, arrays = schedule.breakpoints(), schedule.event_arrays()
    cap = float(schedule.cap_at(time_s))
    assert cap == steps.cap_w[np.searchsorted(steps.times_s, time_s, side="right") - 1]
    inside = (arrays.start_s <= time_s) & (time_s < arrays.end_s)
    assert cap == min([BASE_W, *arrays.cap_w[inside]])
    assert schedule.lowest_cap_w <= cap
    assert np.all(np.diff(steps.times_s[1:]) > 0.0)
    assert np.all(steps.announced_at_s[1:] <= steps.times_s[1:])
    upcoming = schedule.next_announced(time_s)
    if upcoming is not None:
        assert upcoming.announced_at_s <= time_s < upcoming.start_s


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.1), (0.0, 10.0, 0.0), (0.0, 10.0, 1.0), (math.nan, 1.0, 0.5)])
def test_impossible_events_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError):
        CapEvent(*values)


def test_impossible_caps_are_refused() -> None:
    with pytest.raises(ConfigError, match="base_cap_w"):
        CapSchedule(0.0)


@given(st.integers(0, 10_000), st.floats(0.0, 3 * DAY_S), st.floats(3600.0, 2 * DAY_S))
@settings(max_examples=60, deadline=None)
def test_a_window_of_the_day_sees_its_part_of_the_day(seed: int, start_s: float, horizon_s: float) -> None:
    specs = [CapEventSpec(9.0, 13.0, 10_800.0, 0.25, 3600.0), CapEventSpec(22.0, 24.0, 7200.0, 0.1, 30.0)]
    day = draw_schedule(np.random.default_rng(seed), specs, BASE_W, 0.0, 5 * DAY_S)
    window = draw_schedule(np.random.default_rng(seed), specs, BASE_W, start_s, horizon_s)
    # Not exactly at an edge, where the subtraction of the start time decides by rounding.
    times = np.floor(np.linspace(0.0, horizon_s + 0.9 * DAY_S, 500)) + 0.5
    clear = np.abs(((start_s + times) % 60.0) - 30.0) < 29.0
    later_day = DAY_S if start_s < DAY_S else 0.0
    np.testing.assert_array_equal(
        window.cap_at(times[clear]), day.cap_at(((start_s + times[clear]) % DAY_S) + later_day + DAY_S)
    )


def test_an_event_under_way_at_the_start_is_in_force() -> None:
    spec = CapEventSpec(10.0, 10.0, 7200.0, 0.2, 600.0)
    schedule = draw_schedule(np.random.default_rng(0), [spec], 100.0, 11.0 * 3600.0, 7200.0)
    assert schedule.cap_at([0.0, 3599.0, 3600.0]).tolist() == [80.0, 80.0, 100.0]
    overnight = CapEventSpec(23.5, 23.5, 7200.0, 0.2, 600.0)
    schedule = draw_schedule(np.random.default_rng(0), [overnight], 100.0, 0.0, 7200.0)
    assert schedule.cap_at([0.0, 5399.0, 5400.0]).tolist() == [80.0, 80.0, 100.0]


def test_drawing_uses_the_same_numbers_whatever_is_drawn() -> None:
    spec = CapEventSpec(9.0, 13.0, 3600.0, 0.25, 60.0)

    def after(count: int) -> tuple[float, CapSchedule]:
        rng = np.random.default_rng(2)
        schedule = draw_schedule(rng, [spec] * count, BASE_W, 0.0, 3600.0)
        return float(rng.random()), schedule

    assert after(0)[0] == after(2)[0] == after(MAX_CAP_EVENTS)[0]
    assert set(after(1)[1].events) <= set(after(2)[1].events)
    with pytest.raises(ConfigError, match="cap_events"):
        after(MAX_CAP_EVENTS + 1)


# ---------------------------------------------------------------------------------------------------------- scenarios


def test_the_shipped_scenarios() -> None:
    held_out = (
        "agent_surge",
        "burst",
        "curtailment",
        "faults",
        "four_cp",
        "training_block",
        "grid_emergency",
        "heatwave",
        "long_context",
        "mismatch",
        "mix_shift",
        "model_mix_shift",
        "price_spike",
    )
    assert set(scenario_names()) == {"diurnal", "steady", *held_out}
    for name in scenario_names():
        loaded = scenario(name)
        assert loaded.name == name and loaded.description
        assert scenario(loaded) is loaded
        assert scenario(SCENARIO_DIR / f"{name}.toml") == loaded
        hash(loaded)


def test_steady_is_steady() -> None:
    steady = scenario("steady")
    assert not steady.daily and not steady.bursts and not steady.cap_events
    assert steady.lowest_cap_fraction == 1.0


def test_diurnal_has_one_mild_curtailment_announced_an_hour_ahead() -> None:
    diurnal = scenario("diurnal")
    assert diurnal.daily and diurnal.deferrable and diurnal.bursts
    (event,) = diurnal.cap_events
    assert (event.depth, event.duration_s, event.notice_s) == (0.15, 7200.0, 3600.0)


def test_burst_has_several_bursts_and_a_constant_cap() -> None:
    burst = scenario("burst")
    assert len(burst.draw_bursts(np.random.default_rng(0))) == 6
    assert burst.draw_cap(np.random.default_rng(0), BASE_W, 0.0, DAY_S).events == ()


@pytest.mark.parametrize("seed", range(10))
def test_curtailment_has_a_long_announced_event_and_a_short_notice_one(seed: int) -> None:
    curtailment = scenario("curtailment")
    schedule = curtailment.draw_cap(np.random.default_rng(seed), BASE_W, 0.0, DAY_S)
    today = [event for event in schedule.events if 0.0 <= event.start_s < DAY_S]
    assert [(e.depth, e.duration_s, e.notice_s) for e in today] == [(0.25, 10_800.0, 3600.0), (0.25, 3600.0, 30.0)]
    assert today[0].end_s + 3600.0 <= today[1].start_s
    assert schedule.lowest_cap_w == pytest.approx(BASE_W * curtailment.lowest_cap_fraction)
    below = schedule.cap_at(np.arange(0.0, DAY_S, 60.0)) < BASE_W
    assert below.sum() == 240


def test_the_same_seed_gives_the_same_day() -> None:
    diurnal = scenario("diurnal")
    one, two = (diurnal.draw_cap(np.random.default_rng(9), BASE_W, 3600.0, DAY_S) for _ in range(2))
    assert one == two
    assert diurnal.draw_bursts(np.random.default_rng(9)) == diurnal.draw_bursts(np.random.default_rng(9))


def test_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'diurnal'"):
        scenario("diurnall")


MINE = """
description = "own"
daily = true
overdispersion = 0.5
deferrable = false
[[bursts]]
window_start_hour = 1
window_end_hour = 2
duration_min_low = 5
duration_min_high = 6
multiplier_low = 1.5
multiplier_high = 2
[[cap_events]]
window_start_hour = 1
window_end_hour = 2
duration_s = 600
depth = 0.3
notice_s = 0
"""


def test_a_user_scenario_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    loaded = scenario(str(path))
    assert loaded == scenario(path)
    assert (loaded.name, loaded.overdispersion, loaded.deferrable) == ("mine", 0.5, False)
    assert loaded.lowest_cap_fraction == pytest.approx(0.7)
    assert dataclasses.replace(loaded, daily=False).daily is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("daily = true", "dayly = true", "Did you mean 'daily'"),
        ("daily = true", "daily = 1", "true or false"),
        ("daily = true\n", "", "missing key.*daily"),
        ("overdispersion = 0.5", "overdispersion = -1", "overdispersion"),
        ("overdispersion = 0.5", "overdispersion = nan", "overdispersion"),
        ("depth = 0.3", "depth = 1.3", r"cap_events\[0\]\.depth"),
        ("depth = 0.3", "depht = 0.3", "Did you mean 'depth'"),
        ("depth = 0.3\n", "", r"cap_events\[0\].*missing key.*depth"),
        ("depth = 0.3", 'depth = "deep"', r"cap_events\[0\]\.depth"),
        ("multiplier_high = 2", "multiplier_high = 1.2", r"bursts\[0\]\.multiplier_high"),
        ("[[bursts]]", "[bursts]", "array of tables"),
        ("daily = true", "daily =", "not valid TOML"),
    ],
)
def test_a_bad_scenario_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        scenario(path)


def test_a_missing_scenario_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        scenario(tmp_path / "none.toml")


def test_too_many_events_are_refused() -> None:
    spec = CapEventSpec(9.0, 13.0, 3600.0, 0.25, 60.0)
    with pytest.raises(ConfigError, match="cap_events"):
        Scenario("x", cap_events=(spec,) * (MAX_CAP_EVENTS + 1))


# --------------------------------------------------------------------------------------------- shifts and composition


def test_a_shift_ramps_up_holds_and_goes_every_day() -> None:
    shift = Shift(("coding",), 10 * 3600.0, 3600.0, 4 * 3600.0, 3.0)
    factor = shift_factor([shift], ["chat", "coding"], 0.0, 2880)
    assert (factor[0] == 1.0).all()
    day = factor[1, :1440]
    assert np.array_equal(day, factor[1, 1440:])
    assert (day[: 10 * 60] == 1.0).all() and (day[14 * 60 :] == 1.0).all()
    assert day[10 * 60 + 30] == pytest.approx(2.0, abs=0.02)
    assert day[11 * 60 : 13 * 60] == pytest.approx(3.0)
    assert day[13 * 60 + 30] == pytest.approx(2.0, abs=0.02)


def test_a_shift_is_seen_from_the_middle_of_it() -> None:
    shift = Shift(("coding",), 22 * 3600.0, 0.0, 4 * 3600.0, 2.0)
    assert shift_factor([shift], ["coding"], 3600.0, 120)[0].tolist() == [2.0] * 60 + [1.0] * 60


def test_shifts_of_one_class_multiply() -> None:
    shift = Shift(("a",), 0.0, 0.0, 86_400.0, 2.0)
    assert (shift_factor([shift, shift], ["a", "b"], 0.0, 10) == [[4.0] * 10, [1.0] * 10]).all()


def test_as_many_numbers_are_drawn_whatever_a_scenario_has() -> None:
    spec = ShiftSpec(("chat",), 1.0, 5.0, 10.0, 2.0, 1.5, 2.5)
    ends = []
    for specs in ((), (spec,), (spec, spec)):
        rng = np.random.default_rng(5)
        drawn = draw_shifts(rng, specs)
        ends.append(rng.random())
        assert all(1.0 <= each.onset_s / 3600.0 <= 5.0 and 1.5 <= each.factor <= 2.5 for each in drawn)
    assert len(set(ends)) == 1


def test_scenarios_add_up() -> None:
    both = scenario("steady+curtailment+agent_surge")
    curtailment, surge = scenario("curtailment"), scenario("agent_surge")
    assert both.name == "steady+curtailment+agent_surge"
    assert both.cap_events == curtailment.cap_events and both.shifts == surge.shifts
    assert both.daily and both.deferrable and both.overdispersion == 1.0
    assert scenario("diurnal+diurnal").bursts == scenario("diurnal").bursts
    with pytest.raises(ConfigError, match="scenario: unknown value 'curtailments'.*Did you mean 'curtailment'"):
        scenario("steady+curtailments")
    with pytest.raises(ConfigError, match="bursts: 13 given|bursts: [0-9]+ given; at most"):
        many = scenario("burst")
        other = dataclasses.replace(
            many, bursts=tuple(dataclasses.replace(b, multiplier_high=b.multiplier_high + 1) for b in many.bursts)
        )
        third = dataclasses.replace(
            many, bursts=tuple(dataclasses.replace(b, multiplier_high=b.multiplier_high + 2) for b in many.bursts)
        )
        many + other + third  # noqa: B018


def test_a_shift_of_classes_that_nobody_asks_for_is_warned_of() -> None:
    from ai_factory_gym import AIFactoryEnv
    from ai_factory_gym.sites import load_site

    site = dataclasses.replace(load_site("edge"), mix={"chat": 1.0})
    with pytest.warns(
        UserWarning, match="moves the demand of classes .ecommerce_agent, coding. of which site 'Edge' serves none"
    ):
        AIFactoryEnv(site=site, scenario="agent_surge", lambda_tokens_per_joule=3.0)


def test_a_shift_moves_no_other_draw() -> None:
    from ai_factory_gym import AIFactoryEnv

    settings = {"site": "edge", "horizon_s": 600.0, "warmup_s": 60.0, "start_time_s": 43_200.0}
    plain = AIFactoryEnv(scenario="diurnal", **settings)
    shifted = AIFactoryEnv(scenario="diurnal+long_context", lambda_tokens_per_joule=3.0, **settings)
    plain.reset(seed=4)
    shifted.reset(seed=4)
    names = [cls.name for cls in plain.classes]
    ratio = shifted.factory.engine.state.rate[0] / plain.factory.engine.state.rate[0]
    assert (ratio[[k for k, name in enumerate(names) if name != "coding"]] == 1.0).all()
    assert ratio[names.index("coding")].max() > 1.9
    assert np.array_equal(shifted.factory.engine.state.cap_steps, plain.factory.engine.state.cap_steps)


def test_a_shift_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    from ai_factory_gym import AIFactoryEnv

    path = tmp_path / "odd.toml"
    text = (SCENARIO_DIR / "long_context.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('"coding"', '"codign"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="shifts: classes: unknown value 'codign'.*Did you mean 'coding'"):
        AIFactoryEnv(site="edge", scenario=str(path))
    path.write_text(text.replace('["coding", "video"]', '"coding"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shifts\[0\].classes: 'coding' is not allowed; must be a list"):
        scenario(path)
    path.write_text(text.replace("factor_low = 2.0", "factor_low = 4.0"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shifts\[0\].factor_high: 3.0 is not allowed"):
        scenario(path)
