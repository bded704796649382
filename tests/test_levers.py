"""Levers beyond the four of the published tasks: neutral at zero, monotone in what they set, conserving, and clear about mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ai_factory_gym
from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.layout import DECODE, Array, Class, ClassSpec, Cohort, Gate, Pool, PoolInt, PoolSpec
from ai_factory_gym.engine.ledger import MOST_HELD
from ai_factory_gym.levers import DEFAULT_LEVERS, LEAST_LIMIT, LEVERS
from ai_factory_gym.observation import BLOCKS, LEVER_BLOCKS
from ai_factory_gym.sites import load_site
from ai_factory_gym.workload.effort import answer_value

EXTRA = ("power_limit", "batch_ceiling", "admission", "deferral", "effort", "role")
HERE = tuple(name for name in LEVERS if name not in ("battery", "training", "generation"))
"""Levers that the Edge site has: those of its parts have tests of their own."""

NOON = {"start_time_s": 12 * 3600.0, "horizon_s": 1200.0, "warmup_s": 600.0}
CLASSES = ("chat", "customer_service", "ecommerce_agent", "reasoning", "coding", "batch")


def make(levers: tuple[str, ...], **settings: Any) -> AIFactoryEnv:
    """Return the Edge site at noon with some levers."""
    return AIFactoryEnv(site="edge", levers=levers, **{**NOON, **settings})


def play(env: AIFactoryEnv, actions: Array, seed: int = 3) -> tuple[Array, list[dict[str, Any]]]:
    """Return observations and infos of an episode under given actions."""
    observation, info = env.reset(seed=seed)
    observations, infos = [observation], [info]
    for action in actions:
        observation, _, _, _, info = env.step(action)
        observations.append(observation)
        infos.append(info)
    return np.array(observations), infos


def constant(env: AIFactoryEnv, steps: int = 20, **values: Any) -> list[dict[str, Any]]:
    """Return the infos of an episode with one encoded action."""
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, **values)
    return play(env, np.repeat(action[None], steps, axis=0))[1]


@pytest.mark.parametrize("resolution", ["cohort", "request"])
@pytest.mark.parametrize("lever", EXTRA)
def test_a_lever_at_zero_changes_nothing(lever: str, resolution: str) -> None:
    scale = {"demand_scale": 0.05} if resolution == "request" else {}
    plain, fitted = (
        make(levers, resolution=resolution, **scale) for levers in (DEFAULT_LEVERS, (*DEFAULT_LEVERS, lever))
    )
    drawn = np.random.default_rng(1).uniform(-1, 1, (10, plain.action_layout.size)).astype(np.float32)
    wider = np.zeros((10, fitted.action_layout.size), np.float32)
    wider[:, : plain.action_layout.size] = drawn
    seen, infos = play(plain, drawn)
    also_seen, also_infos = play(fitted, wider)
    for info in also_infos:
        # Where answers may be shortened, info has their value: that of the good tokens at full effort.
        assert info.pop("value_tokens", info["good_tokens"]) == info["good_tokens"]
    assert infos == also_infos
    for name, place in plain.observation_layout.slices.items():
        width = place.stop - place.start
        begin = fitted.observation_layout[name].start
        assert np.array_equal(seen[:, place], also_seen[:, begin : begin + width]), name


def test_positive_numbers_leave_limits_off() -> None:
    env = make(("clock", "power_limit", "batch_ceiling", "admission"))
    size = env.action_layout.size
    begin, end = env.action_layout["clock"].stop, env.action_layout["admission"].start
    full, off = (np.zeros((5, size), np.float32) for _ in range(2))
    full[:, begin:end] = 1.0
    assert play(env, full)[1] == play(env, off)[1]


def test_dimensions_and_blocks_are_documented() -> None:
    env = make(HERE)
    decode = int((env.factory.params.pool[:, PoolSpec.PHASE] == DECODE).sum())
    sizes = {name: place.stop - place.start for name, place in env.action_layout.slices.items()}
    assert [sizes[name] for name in EXTRA] == [4, decode, len(CLASSES), 1, 1, 1]
    for lever, block, _, _ in (each for each in LEVER_BLOCKS if each[0] != "battery"):
        assert lever in EXTRA and f"``{block}`` *" in str(AIFactoryEnv.__doc__)
        assert env.observation_layout[block].start >= env.observation_layout["previous_action"].stop
        assert f"``{lever}`` *" in str(AIFactoryEnv.__doc__)
    plain = make(DEFAULT_LEVERS)
    assert list(plain.observation_layout.slices) == [name for name, _, _ in BLOCKS]
    assert ai_factory_gym.AIFactoryEnv(site="edge").action_layout.levers == DEFAULT_LEVERS


@given(st.lists(st.sampled_from(HERE), min_size=1, max_size=len(HERE), unique=True))
@settings(max_examples=12, deadline=None)
def test_any_subset_composes(levers: list[str]) -> None:
    env = AIFactoryEnv(site="edge", levers=tuple(levers), horizon_s=180.0, warmup_s=60.0)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        action = rng.uniform(-1, 1, env.action_layout.size).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
    assert np.isfinite(observation).all() and math.isfinite(reward)
    assert env.observation_space.contains(observation)
    assert all(math.isfinite(value) for value in info.values())


def test_a_power_limit_is_obeyed_and_saves_energy() -> None:
    # Below the cap: at full clock the brake would limit the draw before the lever does.
    env = make(("clock", "active_racks", "power_limit"), demand_scale=0.7)
    largest = env.action_layout.rack_w
    racks = env.factory.params.pool[:, PoolSpec.RACKS]
    energy, met = [], []
    for share in (math.inf, 0.6, 0.55, 0.5, 0.45, 0.4):
        infos = constant(env, power_limit_w=share * largest if share < math.inf else math.inf)
        energy.append(infos[-1]["energy_j"])
        met.append(infos[-1]["requests_met_slo"])
        numbers = env.factory.engine.state.pool[0]
        assert infos[-1]["brake_s"] == 0.0
        # Clocks are set for the batch at the start of a segment, which the arrivals of half a minute may exceed.
        assert (numbers[:, Pool.POWER_W] <= share * largest * racks * 1.01).all()
    assert all(a > b for a, b in itertools.pairwise(energy))
    assert energy[-1] < 0.75 * energy[0] and met[-1] > 0.99 * met[0]


def test_the_lower_of_clock_and_power_limit_holds() -> None:
    env = make(("clock", "active_racks", "power_limit"))
    tight = 0.5 * env.action_layout.rack_w
    low = play(env, np.repeat(env.action_layout.encode(clock=0.5, racks=env.action_layout.racks)[None], 5, axis=0))[1]
    both = env.action_layout.encode(clock=0.5, racks=env.action_layout.racks, power_limit_w=tight)
    limited = play(env, np.repeat(both[None], 5, axis=0))[1]
    assert limited[-1]["clock_mean"] <= low[-1]["clock_mean"] + 1e-12


def test_a_batch_ceiling_holds_and_makes_requests_wait() -> None:
    env = make(("clock", "active_racks", "batch_ceiling"))
    params = env.factory.params
    decode = params.pool[:, PoolSpec.PHASE] == DECODE
    tpot = []
    for most in (4096, 1000, 600):
        infos = constant(env, most_batch=most)
        numbers = env.factory.engine.state.pool[0][decode]
        replicas = params.pool[decode, PoolSpec.RACKS] * params.pool[decode, PoolSpec.UNITS_PER_RACK]
        assert np.array_equal(numbers[:, Pool.MAX_BATCH], [most] * decode.sum())
        assert (numbers[:, Pool.IN_FLIGHT] <= most * replicas + 1e-6).all()
        tpot.append(float(numbers[:, Pool.TPOT_S].max()))
        met = infos[-1]["requests_met_slo"]
    assert tpot[0] > tpot[1] > tpot[2]
    assert met > 0


@given(st.integers(1, 4096))
@settings(max_examples=50, deadline=None)
def test_a_batch_ceiling_is_encoded_exactly(most: int) -> None:
    env = make(("batch_ceiling",))
    least = env.action_layout.arrays[3][2]
    decode = env.factory.params.pool[:, PoolSpec.PHASE] == DECODE
    wanted = np.maximum(most, np.ceil(least[decode]))
    action = env.action_layout.encode(most_batch=wanted)
    found = env.action_layout.decide(action[None].astype(np.float64)).most_batch
    assert found is not None
    # Actions are float32: seven digits of the logarithm.
    assert np.allclose(found[0][decode], wanted, rtol=2e-6, atol=1.0)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75])
def test_admission_turns_away_exactly_the_rest(share: float, resolution: str) -> None:
    scale = {"demand_scale": 0.05} if resolution == "request" else {}
    env = make(("clock", "active_racks", "admission"), resolution=resolution, scenario="steady", **scale)
    admitted = np.ones(len(env.classes))
    admitted[1] = share
    env.reset(seed=0)
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, admitted=admitted)
    # The warm-up is neutral: from the first step on.
    for _ in range(20):
        _, _, _, _, info = env.step(action)
    name = env.classes[1].name
    counters = env.factory.engine.state.cls[0, 1]
    arrived, rejected = info[f"class/{name}/arrived"], counters[Class.REJECTED]
    assert arrived > 100
    assert abs(rejected - (1.0 - share) * arrived) <= 1.0 + 1e-6
    assert info[f"class/{env.classes[0].name}/attainment"] > 0.95
    assert counters[Class.ADMITTED] == pytest.approx(share, abs=1e-6)


def test_what_is_turned_away_has_arrived_and_is_missed() -> None:
    env = make(("admission",), drain=True)
    env.reset(seed=0)
    nothing = env.action_layout.encode(admitted=0.0)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(nothing)
    assert info["requests_arrived"] > 0
    assert info["requests_met_slo"] + info["requests_missed_slo"] == pytest.approx(info["requests_arrived"])
    for cls in env.classes:
        if not cls.deferrable:
            assert info[f"class/{cls.name}/met"] == 0
            assert info[f"class/{cls.name}/missed"] == info[f"class/{cls.name}/arrived"]


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_requests_held_at_the_gate_wait_there_and_nowhere_else(resolution: str) -> None:
    scale = {"demand_scale": 0.05} if resolution == "request" else {"demand_scale": 0.5}
    env = make(("clock", "active_racks", "admission"), resolution=resolution, scenario="steady", **scale)
    ttft = {}
    for share in (0.0, 0.5, 1.0):
        held = np.zeros(len(env.classes))
        held[1] = share
        infos = constant(env, held=held)
        counters = env.factory.engine.state.cls[0]
        ttft[share] = counters[:, Class.TTFT_SUM_S] / counters[:, Class.TTFT_COUNT]
        assert counters[1, Class.DELAY_S] == pytest.approx(share * MOST_HELD * env.classes[1].patience_s, rel=1e-6)
        assert infos[-1]["requests_rejected"] == 0.0
    longest_s = MOST_HELD * env.classes[1].patience_s
    for share in (0.5, 1.0):
        # The first requests of the episode came before the lever was moved.
        assert ttft[share][1] - ttft[0.0][1] == pytest.approx(share * longest_s, rel=0.06)
        others = np.delete(ttft[share] - ttft[0.0], 1)
        assert np.abs(others[~np.isnan(others)]).max() < 0.02


def test_requests_at_the_gate_enter_in_order_and_none_is_lost() -> None:
    env = make(("clock", "active_racks", "admission"), drain=True, horizon_s=300.0, warmup_s=60.0)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    truncated = False
    while not truncated:
        gate = rng.uniform(-0.3, 1.0, len(env.classes)).astype(np.float32)
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
        action[env.action_layout["admission"]] = gate
        observation, _, _, truncated, info = env.step(action)
        seen = observation[env.observation_layout["class_admitted"]]
        wanted = np.where([cls.deferrable for cls in env.classes], np.minimum(1.0, 1.0 + gate), 1.0 + gate)
        assert np.allclose(seen, wanted, atol=1e-6)
        state = env.factory.engine.state
        for pool in range(len(env.pools)):
            slot, before = int(state.pool_int[0, pool, PoolInt.INBOX_HEAD]), -math.inf
            while slot >= 0:
                assert state.cohort[0, slot, Cohort.KEY] >= before
                before, slot = state.cohort[0, slot, Cohort.KEY], int(state.link[0, slot])
    assert info["requests_met_slo"] + info["requests_missed_slo"] == pytest.approx(info["requests_arrived"])


def test_who_is_held_as_long_as_its_patience_finds_no_queue() -> None:
    env = make(("clock", "active_racks", "admission"), demand_scale=1.3, scenario="steady")
    rejected = [constant(env, held=share)[-1]["requests_rejected"] for share in (0.0, 1.0)]
    # Time at the gate counts as waiting: less is left for the queues behind it.
    assert rejected[1] > rejected[0]


def test_the_world_does_not_depend_on_admission() -> None:
    env = make(("admission",))
    arrived = []
    for admitted in (1.0, 0.5):
        infos = play(env, np.repeat(env.action_layout.encode(admitted=admitted)[None], 20, axis=0))[1]
        arrived.append([infos[-1][f"class/{cls.name}/arrived"] for cls in env.classes if not cls.deferrable])
    assert arrived[0] == arrived[1]


def test_deferred_work_is_held_back_or_released_and_never_late_for_it() -> None:
    env = make(("deferral",), horizon_s=4 * 3600.0, start_time_s=0.0)
    held = next(k for k, cls in enumerate(env.classes) if cls.deferrable)
    pending, due = [], []
    for hand in (-1.0, 0.0, 1.0):
        observations, _ = play(env, np.full((240, 1), hand, np.float32))
        pending.append(env.factory.engine.state.cls[0, held, Class.PENDING])
        due.append(observations[-1, env.observation_layout["class_due"]][held])
    assert pending[0] > pending[1] > pending[2] > 0.0
    assert due[0] <= due[1] <= due[2]
    assert due[0] < due[2]


def test_work_held_back_to_its_deadline_is_still_done() -> None:
    env = make(("deferral",), horizon_s=10 * 3600.0, start_time_s=0.0, drain=True, resolution="coarse")
    env.reset(seed=1)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(np.full(1, -1.0, np.float32))
    batch = next(cls for cls in env.classes if cls.deferrable)
    assert info[f"class/{batch.name}/attainment"] > 0.99


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_less_effort_shortens_answers_of_its_class_and_keeps_their_value(resolution: str) -> None:
    # Below the cap: at full clock the brake would limit the draw.
    scale = 0.05 if resolution == "request" else 0.5
    env = make(("clock", "active_racks", "effort"), resolution=resolution, scenario="steady", demand_scale=scale)
    which = [cls.name for cls in env.classes].index("reasoning")
    spec = env.classes[which]
    emitted, worth, energy, served = [], [], [], []
    for effort in (1.0, 0.6, 0.33):
        infos = constant(env, effort=effort)
        counters = env.factory.engine.state.cls[0]
        assert counters[which, Class.EFFORT] == pytest.approx(effort, abs=1e-6)
        assert (np.delete(counters[:, Class.EFFORT], which) == 1.0).all()
        emitted.append(infos[-1]["output_tokens"])
        worth.append(infos[-1]["value_tokens"] / infos[-1]["good_tokens"])
        energy.append(infos[-1]["energy_j"])
        served.append(infos[-1]["requests_met_slo"])
    assert emitted[0] > emitted[1] > emitted[2] and energy[0] > energy[1] > energy[2]
    assert worth[0] == 1.0 and worth[0] < worth[1] < worth[2] < (1.0 - spec.effort_value_loss) / 0.33
    # Shorter answers end sooner, never later.
    assert served[0] <= served[1] <= served[2]


def test_the_value_of_an_answer() -> None:
    assert answer_value(1.0, 0.3, 0.1) == 1.0
    assert answer_value(0.3, 0.3, 0.1) == pytest.approx(0.9)
    values = [answer_value(effort, 0.3, 0.1) for effort in np.linspace(0.3, 1.0, 8)]
    assert all(low < high for low, high in itertools.pairwise(values))


def test_no_request_is_worth_missing_at_a_smaller_effort() -> None:
    # What is missed costs what it would have been worth, not the few tokens it would have emitted.
    lost = []
    for effort in (1.0, 0.33):
        env = make(("clock", "active_racks", "admission", "effort"), scenario="steady")
        env.reset(seed=3)
        away = np.ones(len(env.classes))
        away[[cls.name for cls in env.classes].index("reasoning")] = 0.0
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, admitted=away, effort=effort)
        lost.append(sum(env.step(action)[4]["reward_terms/missed"] for _ in range(20)))
    assert lost[0] == lost[1] < 0.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="levers: unknown value 'power_limits'.*Did you mean 'power_limit'"):
        make(("power_limits",))
    chat_only = dataclasses.replace(load_site("edge"), mix={"chat": 1.0})
    with pytest.raises(ConfigError, match="levers: 'deferral' is not possible: no class"):
        AIFactoryEnv(site=chat_only, levers=("deferral",), lambda_tokens_per_joule="estimate")
    with pytest.raises(
        ConfigError, match="levers: 'effort' is not possible: no class of this site has an .effort. table"
    ):
        AIFactoryEnv(site=chat_only, levers=("effort",), lambda_tokens_per_joule="estimate")
    with pytest.raises(ConfigError, match=r"must be a list of names.*--env 'levers=\[\"clock\", \"active_racks\"\]'"):
        make("clock,admission")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'admission' is given twice"):
        make(("admission", "clock", "admission"))


def test_the_lowest_limit_is_that_of_the_documentation() -> None:
    env = make(("power_limit",))
    decision = env.action_layout.decide(np.full((1, 4), -1.0))
    assert np.allclose(decision.power_limit_w[0], LEAST_LIMIT * env.action_layout.rack_w)
    assert decision.gate is not None and (decision.gate[..., Gate.ADMITTED] == 1.0).all()
    deferrable = env.factory.params.cls[:, ClassSpec.DEFERRABLE]
    assert deferrable.sum() == 1


def test_rules_leave_other_levers_alone() -> None:
    baselines = pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    env = make(HERE)
    observation, _ = env.reset(seed=0)
    for name in ("uniform", "length_aware"):
        action, _ = baselines.make(name, env).predict(observation)
        for lever in EXTRA:
            assert (action[env.action_layout[lever]] == 0.0).all()


def test_all_levers_in_a_vector_environment() -> None:
    settings = {"levers": HERE, **NOON}
    single = make(HERE)
    rows = gymnasium.make_vec(
        "ai_factory/Edge-v0", num_envs=2, vectorization_mode="vector_entry_point", threads=2, **settings
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, single.action_layout.size)).astype(np.float32)
    rows.reset(seed=3)
    trail = [rows.step(action)[0][0] for action in actions]
    assert np.array_equal(play(single, actions[:, 0])[0][1:], np.array(trail))
    rows.close()
