from __future__ import annotations

import functools
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import ai_factory_baselines
import ai_factory_gym  # noqa: F401 - registers the tasks
from ai_factory_baselines import freeze, tune
from ai_factory_baselines.base import PHASES, Facts, Levers, routing_factors, view, write_levers, write_routing
from ai_factory_baselines.plant import BARE_LIMITS, CONTEXT, OUTPUT, Plant, fill, keeps_limits, lowest_clock, strain
from ai_factory_baselines.reactive import RANGES, Reactive, Settings, settings_from_table, tuned_settings
from ai_factory_gym.engine.layout import DECODE, PREFILL, Cell
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation import TUNING_SEEDS, evaluate
from ai_factory_gym.params import mean_context

TASK = "ai_factory/Edge-v0"
ROWS = 3


@pytest.fixture(scope="module")
def env() -> Any:
    return gymnasium.make(TASK, horizon_s=3600.0)


@pytest.fixture(scope="module")
def facts(env: Any) -> Facts:
    return Facts.of(env)


@pytest.fixture(scope="module")
def plant(facts: Facts) -> Plant:
    return Plant(facts)


def play(name: str, env: Any, steps: int = 4, seed: int = 3) -> np.ndarray:
    rule = ai_factory_baselines.make(name, env)
    observation, _ = env.reset(seed=seed)
    state = None
    actions = []
    for step in range(steps):
        action, state = rule.predict(observation, state, np.array([step == 0]))
        actions.append(action)
        observation = env.step(action)[0]
    return np.array(actions)


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", ai_factory_baselines.names())
def test_actions_are_valid_and_the_same_every_time(name: str, env: Any) -> None:
    first = play(name, env)
    assert first.dtype == np.float32
    assert all(env.action_space.contains(action) for action in first)
    np.testing.assert_array_equal(first, play(name, env))


@pytest.mark.parametrize("name", ai_factory_baselines.names())
def test_a_batch_of_observations_is_its_rows(name: str) -> None:
    vector = gymnasium.make_vec(TASK, num_envs=ROWS, horizon_s=3600.0)
    rule = ai_factory_baselines.make(name, vector)
    singles = [ai_factory_baselines.make(name, vector) for _ in range(ROWS)]
    observation, _ = vector.reset(seed=5)
    state: Any = None
    states: list[Any] = [None] * ROWS
    for step in range(3):
        action, state = rule.predict(observation, state, np.full(ROWS, step == 0))
        assert vector.action_space.contains(action)
        if name != "random":
            for row in range(ROWS):
                alone, states[row] = singles[row].predict(observation[row], states[row])
                np.testing.assert_array_equal(alone, action[row])
        observation = vector.step(action)[0]


@pytest.mark.parametrize("name", ai_factory_baselines.names())
def test_a_pickled_rule_goes_on_as_the_original(name: str, env: Any) -> None:
    rule = ai_factory_baselines.make(name, env)
    observation, _ = env.reset(seed=1)
    _, state = rule.predict(observation)
    copy = pickle.loads(pickle.dumps(rule))
    np.testing.assert_array_equal(rule.predict(observation, state)[0], copy.predict(observation, state)[0])


def test_a_new_episode_forgets_the_last_in_its_row_only(env: Any) -> None:
    rule = ai_factory_baselines.make("reactive", env)
    observation, _ = env.reset(seed=1)
    pair = np.stack([observation, observation])
    _, used = rule.predict(pair)
    _, used = rule.predict(pair * 0.9, used)
    _, after = rule.predict(pair, used, np.array([True, False]))
    _, fresh = rule.predict(observation)
    np.testing.assert_array_equal(after[0], fresh[0])
    assert not np.array_equal(after[1], fresh[0])


def varied(env: Any, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return observations of every kind the rule tells apart, and memories to go with them."""
    rule = Reactive(env)
    blocks = rule.facts.observation.slices
    racks = rule.facts.racks
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    observations, memories = [], []
    state = None
    for _ in range(count):
        action, state = rule.predict(observation, state)
        seen, memory = observation.copy(), state[0].copy()
        for change in generator.choice(8, size=2, replace=False):
            if change == 0:
                seen[blocks["brake"]] = 1.0
            elif change == 1:
                seen[blocks["class_rate"]] *= generator.uniform(0.0, 2.5)
            elif change == 2:
                seen[blocks["pool_wait"]] = generator.choice([0.0, 0.02, 0.3], len(racks))
            elif change == 3:
                seen[blocks["pool_tpot"]] *= generator.uniform(0.5, 2.0)
            elif change == 4:
                seen[blocks["cap"]] *= generator.uniform(0.3, 1.0)
            elif change == 5:
                seen[blocks["cap_announced"]] = [1.0, generator.choice([0.004, 0.5]), generator.uniform(0.3, 1.0), 0.5]
            elif change == 6:
                active = np.rint(generator.uniform(0.0, 1.0, len(racks)) * racks)
                seen[blocks["pool_active"]], seen[blocks["pool_asleep"]] = active / racks, (racks - active) / racks
            else:
                memory[1:3] = generator.uniform(0.0, 4.0, 2)
        observations.append(seen)
        memories.append(memory)
        observation = env.step(action)[0]
    return np.array(observations), np.array(memories)


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    env = gymnasium.make(TASK, scenario="burst", horizon_s=4800.0, start_time_s=61200.0, demand_scale=1.3)
    rule = Reactive(env)
    observations, memories = varied(env, 64)
    actions, after = rule.predict(observations, memories)
    assert len(np.unique(actions, axis=0)) > 32
    for row in reversed(range(len(observations))):
        action, state = rule.predict(observations[row], memories[row][None])
        np.testing.assert_array_equal(action, actions[row])
        np.testing.assert_array_equal(state[0], after[row])


@pytest.mark.slow
def test_decisions_are_the_same_without_compilation(tmp_path: Path) -> None:
    env = gymnasium.make(TASK, scenario="burst", horizon_s=4800.0, start_time_s=61200.0, demand_scale=1.3)
    rule = Reactive(env)
    case = rule, *varied(env, 8)
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(case))
    code = (
        "import pickle, sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "rule, observations, memories = pickle.loads((folder / 'case.pkl').read_bytes())\n"
        "(folder / 'out.pkl').write_bytes(pickle.dumps(rule.predict(observations, memories)))"
    )
    surroundings = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=surroundings, check=True)
    for plain, compiled in zip(pickle.loads((tmp_path / "out.pkl").read_bytes()), rule.predict(*case[1:]), strict=True):
        np.testing.assert_array_equal(plain, compiled)


def test_actions_are_written_as_the_layout_encodes_them(env: Any, facts: Facts) -> None:
    generator = np.random.default_rng(0)
    levers = Levers.of(facts)
    for _ in range(50):
        clock = generator.uniform(facts.clock_min, 1.0, len(facts.racks))
        racks = np.rint(generator.uniform(0.0, 1.0, len(facts.racks)) * facts.racks)
        factors = [generator.uniform(0.0, 60.0, facts.capacity[phase].shape) for phase in PHASES]
        written = np.zeros(facts.action.size, dtype=np.float32)
        write_levers(levers, clock, racks, written)
        for phase in PHASES:
            write_routing(levers, phase, factors[phase], written)
        wanted = facts.action.encode(clock=clock, racks=racks, route_prefill=factors[0], route_decode=factors[1])
        np.testing.assert_array_equal(written, wanted)


def test_random_follows_its_seed(env: Any) -> None:
    rule = ai_factory_baselines.make("random", env)
    observation, _ = env.reset(seed=1)
    draws = []
    for seed in (1, 2, 1):
        rule.reset(seed=seed)
        draws.append(rule.predict(observation)[0])
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])


def test_bad_input_is_named(env: Any) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reactive'"):
        ai_factory_baselines.make("reactiv", env)
    with pytest.raises(ConfigError, match="must be an environment of ai_factory_gym"):
        ai_factory_baselines.make("uniform", object())
    with pytest.raises(ConfigError, match="shape"):
        ai_factory_baselines.make("uniform", env).predict(np.zeros(7))
    with pytest.raises(ConfigError, match="plan_clock"):
        Settings(plan_clock=2.0)
    with pytest.raises(ConfigError, match="Did you mean 'plan_clock'"):
        settings_from_table("mine", {"plan_clok": 0.8}, Settings())


def test_every_rule_works_without_some_levers() -> None:
    small = gymnasium.make(TASK, horizon_s=3600.0, levers=("clock",))
    for name in ai_factory_baselines.names():
        assert all(small.action_space.contains(action) for action in play(name, small, steps=2))


# ------------------------------------------------------------------------------------------------- the model of the site


def test_routing_factors_give_the_wanted_shares(facts: Facts) -> None:
    generator = np.random.default_rng(0)
    active = facts.racks - 1.0
    clock = generator.uniform(0.5, 1.0, len(active))
    for phase in PHASES:
        members = facts.members[phase]
        wanted = generator.dirichlet(np.full(len(members), 5.0), size=facts.params.capacity.shape[1])
        weight = facts.params.capacity[phase][:, members] * active[members]
        if phase == PREFILL:
            weight = weight * clock[members]
        weight = weight * routing_factors(facts, phase, wanted, active, clock)
        np.testing.assert_allclose(weight / weight.sum(axis=1, keepdims=True), wanted, rtol=1e-9)


def test_fill_serves_everything_and_levels_the_pools(plant: Plant, facts: Facts) -> None:
    for phase in PHASES:
        need = plant.need(phase, plant.mean)
        room = facts.racks[facts.members[phase]]
        share = np.zeros(need.shape)
        level = fill(need, room, plant.phases[phase].order, share)
        np.testing.assert_allclose(share.sum(axis=1), 1.0, atol=1e-6)
        used = np.where(share > 0.0, share * np.where(np.isfinite(need), need, 0.0), 0.0)
        assert not share[~np.isfinite(need)].any()
        np.testing.assert_allclose(used.sum(axis=0) / room, level, rtol=1e-4)


def test_long_prompts_go_where_they_cost_relatively_least(plant: Plant, facts: Facts) -> None:
    phase = plant.phases[PREFILL]
    share = np.zeros(phase.floor.shape)
    fill(plant.need(PREFILL, plant.mean), facts.racks[facts.members[PREFILL]], phase.order, share)
    best, worst = phase.order[0], phase.order[-1]
    assert share[-1, best] > share[0, best]
    assert share[-1, worst] < share[0, worst]


def test_the_lowest_clock_is_at_a_limit(plant: Plant, facts: Facts) -> None:
    for phase in PHASES:
        model = plant.phases[phase]
        limits = BARE_LIMITS
        load = 0.5 * plant.mean.sum(axis=(0, 1))
        racks = 0.7 * float(facts.racks[facts.members[phase]].sum())
        clock = lowest_clock(model, limits, 0, load, racks, 0.2)
        assert strain(model, limits, 0, load, racks, clock) <= 1.0 + 1e-9
        if clock > 0.21:
            assert strain(model, limits, 0, load, racks, clock - 0.01) > 1.0


def test_the_model_predicts_the_power_of_the_site(plant: Plant, facts: Facts) -> None:
    """Constant demand, every rack awake at full clock: prediction against the simulated hour."""
    env = gymnasium.make(TASK, scenario="steady", horizon_s=3600.0, demand_scale=0.7)
    rule = ai_factory_baselines.make("capacity_proportional", env)
    observation, _ = env.reset(seed=2)
    ratios = []
    for _ in range(30):
        observation, *_, info = env.step(rule.predict(observation)[0])
        seen = view(facts, observation)
        it_w = 0.0
        for phase in PHASES:
            members = facts.members[phase]
            capacity = facts.params.capacity[phase][:, members] * seen.active[members]
            share = capacity / capacity.sum(axis=1, keepdims=True)
            none = np.zeros(len(members))
            it_w += plant.watts(phase, plant.load(seen.rate), share, seen.active[members], np.ones(len(members)), none)
        ratios.append(plant.facility_w(it_w) / info["facility_power_w"])
    assert np.mean(ratios[5:]) == pytest.approx(1.0, abs=0.03)


def test_the_plan_wakes_more_racks_for_more_load(plant: Plant, facts: Facts) -> None:
    for phase in PHASES:
        levels, racks = plant.rack_plan(phase, BARE_LIMITS, 0.8)
        total = racks.sum(axis=1)
        assert (racks <= facts.racks[facts.members[phase]]).all()
        assert total[np.searchsorted(levels, 0.2)] < total[np.searchsorted(levels, 0.8)]


def test_relaxing_tpot_takes_less_power_or_serves_more(plant: Plant) -> None:
    relaxed = plant.relaxed()
    assert all((phase.tpot_s >= plant.phases[DECODE].tpot_s).all() for phase in relaxed)


# ------------------------------------------------------------------------------------------------------------ the result


def run(name: str, start_h: float, hours: float, scenario: str = "diurnal") -> dict[str, Any]:
    result = evaluate(
        functools.partial(ai_factory_baselines.make, name),
        TASK,
        scenario=scenario,
        seeds=[TUNING_SEEDS[0]],
        horizon_s=hours * 3600.0,
        env_kwargs={"start_time_s": start_h * 3600.0},
    )
    return result.episodes[0]


def test_reactive_saves_energy_at_night_and_keeps_every_target() -> None:
    reactive, plain = run("reactive", 3.0, 2.0), run("capacity_proportional", 3.0, 2.0)
    assert reactive["energy_j"] < 0.8 * plain["energy_j"]
    for key, target in reactive.items():
        if key.endswith("/attainment_target"):
            assert reactive[key.removesuffix("_target")] >= target


def test_uniform_at_full_clock_is_worse_than_reactive() -> None:
    # The busiest hours: feasibility is a property of whole days, so the two are compared instead.
    reactive, uniform = run("reactive", 14.0, 3.0), run("uniform", 14.0, 3.0)
    assert not uniform["feasible"]
    assert reactive["sla_attainment"] > uniform["sla_attainment"] + 0.1
    assert uniform["tokens_per_joule_facility"] < 0.8 * reactive["tokens_per_joule_facility"]


@pytest.mark.slow
def test_the_rules_rank_alike_at_both_resolutions() -> None:
    score: dict[str, dict[str, tuple[bool, float]]] = {}
    for grain in ("cohort", "request"):
        found = {
            name: evaluate(
                functools.partial(ai_factory_baselines.make, name),
                "ai_factory/Edge-v0",
                seeds=[5],
                resolution=grain,
                horizon_s=1200.0,
                env_kwargs={"start_time_s": 9.0 * 3600.0},
                progress=False,
            ).summary
            for name in ai_factory_baselines.names()
        }
        # Feasible ones first, then by what is ranked.
        score[grain] = {
            name: (summary["feasible"], summary["metrics"]["tokens_per_joule_facility"]["mean"])
            for name, summary in found.items()
        }
    exact, grouped = score["request"], score["cohort"]
    apart = 0
    for one, other in itertools.combinations(exact, 2):
        # Two rules do the same in these minutes and are equal to a hundredth of a per cent, less than the two draws of arrivals
        # differ in (0.15 %): their order is chance.
        if exact[one][0] != exact[other][0] or abs(exact[one][1] / exact[other][1] - 1.0) > 0.002:
            apart += 1
            assert (exact[one] > exact[other]) == (grouped[one] > grouped[other]), (one, other)
    assert apart >= 14
    assert max(grouped, key=grouped.__getitem__) == "reactive"


def test_an_evening_burst_at_the_cap_keeps_every_target_of_the_day_within_reach() -> None:
    # Two evening bursts of the held-out kind, up to twice the demand, on the seed that was worst for the tightest class. Over
    # seven of the busiest hours more may be missed than over a day; the brake must hardly act and nobody may be starved.
    result = evaluate(
        functools.partial(ai_factory_baselines.make, "reactive"),
        TASK,
        scenario="burst",
        seeds=[TUNING_SEEDS[1]],
        horizon_s=7.0 * 3600.0,
        env_kwargs={"start_time_s": 17.0 * 3600.0},
    )
    row = result.episodes[0]
    assert row["brake_share"] <= 2e-3 * 24.0 / 7.0
    assert row["cap_violation_share"] <= 1e-4
    for key, target in row.items():
        if key.endswith("/attainment_target"):
            assert row[key.removesuffix("_target")] >= 1.0 - (1.0 - target) * 24.0 / 7.0


def test_the_rule_asks_for_clocks_the_brake_lets_go_at() -> None:
    """While the brake is on, the rule asks for no higher clocks than without it, and for the brake's own the second time."""
    env = gymnasium.make(TASK, scenario="burst", horizon_s=86400.0)
    rule = Reactive(env, Settings())
    observation, _ = env.reset(seed=TUNING_SEEDS[1])
    layout = rule.facts.observation
    seen = observation.copy()
    seen[layout.slices["brake"]] = 1.0
    free, state = rule.predict(observation)
    first, state = rule.predict(seen, state)
    second, _ = rule.predict(seen, state)
    clocks = [rule.facts.action.decide(action[None].astype(np.float64)).ceiling[0] for action in (free, first, second)]
    assert (clocks[1] <= clocks[0] + 1e-6).all()
    # The second time it asks for no more than what the brake allows anyway.
    assert clocks[2].max() <= max(float(view(rule.facts, seen).clock.max()), rule.facts.clock_min) + 1e-6


def test_limits_are_kept_exactly_where_the_strain_is_at_most_one(plant: Plant, facts: Facts) -> None:
    generator = np.random.default_rng(1)
    for phase in PHASES:
        model = plant.phases[phase]
        for _ in range(200):
            load = generator.uniform(0.05, 1.5) * plant.mean.sum(axis=(0, 1))
            racks = generator.uniform(0.2, 1.2) * float(facts.racks[facts.members[phase]].sum())
            clock = generator.uniform(0.2, 1.0)
            over = strain(model, BARE_LIMITS, 0, load, racks, clock)
            if abs(over - 1.0) > 1e-3:
                assert keeps_limits(model, BARE_LIMITS, 0, load, racks, clock) == (over <= 1.0)


def test_the_context_in_flight_is_that_of_the_engine(plant: Plant, facts: Facts) -> None:
    cells = facts.params.cell
    share = facts.observation.class_rate[cells[:, Cell.CLASS].astype(int)] * cells[:, Cell.WEIGHT]
    total = plant.mean.sum(axis=(0, 1))
    assert total[CONTEXT] / total[OUTPUT] == pytest.approx(mean_context(cells, share / share.sum()), rel=1e-12)


def test_power_stays_under_an_announced_curtailment() -> None:
    row = run("reactive", 9.0, 5.0, "curtailment")
    assert row["brake_share"] < 5e-3
    assert row["cap_violation_share"] < 1e-4


# ----------------------------------------------------------------------------------------------------- tune and freeze


def test_tuned_settings_are_read_and_others_get_the_default() -> None:
    assert isinstance(tuned_settings("Edge"), Settings)
    assert isinstance(tuned_settings("somebody's own"), Settings)
    # A later version of a task has the settings of the first.
    assert tuned_settings("Hyperscale-v1") == tuned_settings("Hyperscale") != tuned_settings("somebody's own")
    assert set(RANGES) == set(tune.SEARCH)
    for name, (low, high) in tune.SEARCH.items():
        assert RANGES[name][0] <= low < high <= RANGES[name][1]


def test_written_settings_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.toml"
    mine = Settings(plan_clock=0.66)
    tune.write(path, "Mine", {"command": "tune", "settings": vars(mine)})
    tune.write(path, "Other", {"command": "tune", "settings": vars(Settings())})
    monkeypatch.setattr("ai_factory_baselines.reactive.TUNED_PATH", path)
    assert tuned_settings("Mine") == mine
    assert tuned_settings("Other") == Settings()


def test_the_search_is_deterministic_and_keeps_the_present_settings() -> None:
    first, second = (tune.draw(Settings(), 5, np.random.default_rng(1)) for _ in range(2))
    assert first == second and first[0] == Settings() and len(set(first)) == 5


def test_shortfall_counts_every_limit() -> None:
    row = {
        "class/chat/attainment": 0.99,
        "class/chat/attainment_target": 0.95,
        "brake_share": 0.0,
        "cap_violation_share": 0.0,
    }
    assert tune.shortfall(row) == 0.0
    for key, value in (("class/chat/attainment", 0.94), ("brake_share", 0.01), ("cap_violation_share", 1e-3)):
        assert tune.shortfall({**row, key: value}) > 0.0


def test_a_frozen_table_keeps_what_was_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "frozen.toml"
    first = freeze.Frozen("Edge", "diurnal", 2.5, "reactive")
    freeze.write(path, [first, freeze.Frozen("Edge", "burst", None, None)], "one")
    freeze.write(path, [freeze.Frozen("Edge", "steady", 2.6, "length_aware")], "two")
    text = path.read_text()
    assert "# two" in text and "diurnal = 2.5" in text and "of length_aware; reactive is infeasible" in text


def test_rules_do_not_depend_on_names_of_pools(env: Any) -> None:
    rule = Reactive(Facts.of(env), Settings())
    observation, _ = env.reset(seed=1)
    assert env.action_space.contains(rule.predict(observation)[0])
