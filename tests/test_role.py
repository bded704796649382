"""The lever ``role``: racks of one type move between prefill and decode, none is lost, and nothing moves while it is at zero."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.discrete import DiscreteLevers
from ai_factory_gym.engine import racks
from ai_factory_gym.engine.draw import _shed_waking, pool_power_w
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Pool, PoolInt, PoolSpec, Site
from ai_factory_gym.factory import Factory
from ai_factory_gym.physics.power import POWER_WAKE_RACK_W
from ai_factory_gym.sites import PoolConfig, SiteConfig, load_site

NOON = {"start_time_s": 12 * 3600.0, "horizon_s": 3600.0, "warmup_s": 120.0}
BUILT = (6, 4)
DRAIN_S, SWITCH_S, DWELL_S = 120.0, 60.0, 300.0


def site(**changes: Any) -> SiteConfig:
    """Return a site of ten GB300 racks in one pair of pools."""
    pools = (
        PoolConfig("gb300_nvl72", "prefill", BUILT[0], dp=4, min_active=2),
        PoolConfig("gb300_nvl72", "decode", BUILT[1], dp=8, mtp=True),
    )
    given = SiteConfig(
        "Pair", 1.4e6, "deepseek-r1", pools, 4000.0, {"chat": 0.9, "coding": 0.1}, switch_s=SWITCH_S, dwell_s=DWELL_S
    )
    return dataclasses.replace(given, **changes)


def make(levers: tuple[str, ...] = ("clock", "active_racks", "role"), **settings: Any) -> AIFactoryEnv:
    """Return the pair at noon."""
    chosen = {"site": site(), "lambda_tokens_per_joule": 1.0, "scenario": "steady", **NOON, **settings}
    return AIFactoryEnv(levers=levers, **chosen)


def racks_of(factory: Factory) -> Array:
    """Return racks by pool and state: active, waking, draining, asleep, failed, and of the draining ones those that leave."""
    columns = (
        PoolInt.ACTIVE,
        PoolInt.WAKING,
        PoolInt.DRAINING,
        PoolInt.ASLEEP,
        PoolInt.FAILED,
        PoolInt.MOVING,
    )
    return factory.engine.state.pool_int[0][:, columns]


class Pair:
    """An idle pair whose racks are ordered by hand."""

    def __init__(self, **changes: Any) -> None:
        """Begin an episode in which nobody asks for anything."""
        self.env = make(site=site(**changes), demand_scale=0.0)
        self.env.reset(seed=0)
        self.factory = self.env.factory
        self.params, self.state = self.factory.params, self.factory.engine.state
        self.racks = (BUILT[0], BUILT[1])

    def order(self, prefill: int, now_s: float, awake: tuple[int, int] | None = None) -> list[list[int]]:
        """Order roles and racks awake, as a control step does, and return the racks by state."""
        here = min(max(prefill, 2), 9)
        target = awake or (here, sum(self.racks) - here)
        racks.order_role(self.params, self.state, 0, 0, prefill, now_s)
        for pool in range(2):
            racks.order_racks(self.params, self.state, 0, pool, target[pool], now_s)
        return self.settle(now_s)

    def settle(self, now_s: float) -> list[list[int]]:
        """Let pass what is due and return the racks by state: active, waking, draining, asleep."""
        racks.advance_racks(self.params, self.state, 0, now_s)
        found = racks_of(self.factory)
        assert found[:, :5].sum() == sum(self.racks) and found.min() >= 0
        assert (found[:, 5] <= found[:, 2]).all()
        entries = self.state.transition[0]
        for pool in range(2):
            for kind, column in ((0, 1), (1, 2)):
                due = entries[pool, kind]
                assert due[np.isfinite(due[:, 0]), 1].sum() == found[pool, column]
        return found[:, :4].tolist()


# ------------------------------------------------------------------------------------------------------------ mechanics


def test_racks_drain_switch_and_stay() -> None:
    pair = Pair()
    assert pair.settle(0.0) == [[6, 0, 0, 0], [4, 0, 0, 0]]
    assert pair.order(3, 0.0) == [[3, 0, 3, 0], [4, 0, 0, 0]]
    assert pair.order(3, DRAIN_S - 1.0) == [[3, 0, 3, 0], [4, 0, 0, 0]]
    assert pair.order(3, DRAIN_S) == [[3, 0, 0, 0], [4, 3, 0, 0]]
    assert racks.next_rack_change_s(pair.state, 0, DRAIN_S) == DRAIN_S + SWITCH_S
    assert pair.order(3, DRAIN_S + SWITCH_S) == [[3, 0, 0, 0], [7, 0, 0, 0]]
    stay_s = DRAIN_S + SWITCH_S + DWELL_S
    # The other way is closed for the dwell time, and racks that have come do not sleep either.
    assert pair.order(8, stay_s - 1.0) == [[3, 0, 0, 0], [7, 0, 0, 0]]
    assert pair.order(8, stay_s) == [[3, 0, 0, 0], [2, 0, 5, 0]]


def test_racks_that_have_not_left_come_back() -> None:
    pair = Pair()
    pair.order(2, 0.0)
    assert pair.order(5, 60.0) == [[5, 0, 1, 0], [4, 0, 0, 0]]
    assert pair.order(6, 90.0) == [[6, 0, 0, 0], [4, 0, 0, 0]]
    # What was cancelled neither leaves later nor keeps racks from leaving.
    assert pair.order(6, 5000.0) == [[6, 0, 0, 0], [4, 0, 0, 0]]
    assert pair.order(5, 6000.0) == [[5, 0, 1, 0], [4, 0, 0, 0]]


def test_racks_asleep_go_first_and_then_those_that_drain_already() -> None:
    pair = Pair()
    pair.order(6, 0.0, awake=(4, 4))
    assert pair.settle(DRAIN_S) == [[4, 0, 0, 2], [4, 0, 0, 0]]
    assert pair.order(6, 200.0, awake=(3, 4)) == [[3, 0, 1, 2], [4, 0, 0, 0]]
    # Four are wanted: the two asleep at once, the one that drains when it is done, and one more.
    assert pair.order(2, 210.0, awake=(2, 6)) == [[2, 0, 2, 0], [4, 2, 0, 0]]
    assert racks_of(pair.factory)[0, 5] == 2
    assert pair.settle(200.0 + DRAIN_S) == [[2, 0, 1, 0], [4, 3, 0, 0]]
    assert pair.settle(210.0 + DRAIN_S) == [[2, 0, 0, 0], [4, 4, 0, 0]]
    assert pair.settle(5000.0) == [[2, 0, 0, 0], [8, 0, 0, 0]]


def test_racks_that_leave_are_not_called_back_to_be_awake() -> None:
    pair = Pair()
    pair.order(4, 0.0, awake=(2, 4))
    assert racks_of(pair.factory)[0].tolist() == [2, 0, 4, 0, 0, 2]
    assert pair.order(4, 60.0, awake=(4, 4)) == [[4, 0, 2, 0], [4, 0, 0, 0]]
    assert racks_of(pair.factory)[0, 5] == 2


def test_each_pool_keeps_its_minimum() -> None:
    pair = Pair()
    assert pair.order(-5, 0.0)[0] == [2, 0, 4, 0]
    pair.settle(DRAIN_S)
    pair.settle(1e4)
    assert pair.order(100, 1e4)[1] == [1, 0, 7, 0]


def test_what_is_in_flight_has_to_fit_on_those_that_stay() -> None:
    pair = Pair()
    numbers = pair.state.pool[0, 1]
    numbers[Pool.IN_FLIGHT] = (
        2.5 * pair.params.pool[1, PoolSpec.UNITS_PER_RACK] * pair.params.pool[1, PoolSpec.MAX_BATCH]
    )
    pair.order(9, 0.0)
    assert pair.settle(1000.0) == [[6, 0, 0, 0], [1, 0, 3, 0]]
    numbers[Pool.IN_FLIGHT] = 0.0
    assert pair.settle(1001.0) == [[6, 3, 0, 0], [1, 0, 0, 0]]
    assert pair.settle(1001.0 + SWITCH_S) == [[9, 0, 0, 0], [1, 0, 0, 0]]


def test_the_brake_sheds_racks_that_switch_and_loses_none() -> None:
    pair = Pair()
    pair.order(3, 0.0)
    pair.settle(DRAIN_S)
    _shed_waking(pair.params, pair.state, 0)
    assert pair.settle(DRAIN_S) == [[3, 0, 0, 0], [4, 0, 0, 3]]
    # They wake as sleeping racks do, for they have not loaded anything.
    assert pair.order(3, 300.0) == [[3, 0, 0, 0], [4, 3, 0, 0]]
    assert pair.settle(300.0 + pair.params.pool[1, PoolSpec.WAKE_S]) == [[3, 0, 0, 0], [7, 0, 0, 0]]


def test_a_closed_pool_lends_its_racks() -> None:
    pools = tuple(dataclasses.replace(pool, min_active=0) for pool in site().pools)
    pair = Pair(pools=pools)
    pair.order(6, 0.0, awake=(0, 4))
    assert pair.settle(1000.0) == [[0, 0, 0, 6], [4, 0, 0, 0]]
    assert pair.state.pool_int[0, 0, PoolInt.CLOSED] == 1
    assert pair.order(1, 1000.0, awake=(0, 9)) == [[0, 0, 0, 1], [4, 5, 0, 0]]
    assert pair.settle(3000.0) == [[0, 0, 0, 1], [9, 0, 0, 0]]
    assert pair.order(3, 4000.0, awake=(3, 7)) == [[0, 1, 0, 0], [7, 0, 2, 0]]


def test_a_switching_rack_draws_what_a_waking_one_does() -> None:
    pair = Pair()
    before = pool_power_w(pair.params, pair.state, 0, 1, 1.0, 0.0, 0.0, 0.0)
    pair.order(5, 0.0)
    pair.settle(DRAIN_S)
    after = pool_power_w(pair.params, pair.state, 0, 1, 1.0, 0.0, 0.0, 0.0)
    assert after - before == pytest.approx(pair.params.power[1, POWER_WAKE_RACK_W])


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10),
            st.integers(0, 10),
            st.integers(0, 10),
            st.sampled_from([1.0, 60.0, 130.0, 400.0, 2000.0]),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_no_rack_is_ever_lost(story: list[tuple[int, int, int, float, bool]]) -> None:
    pair = _idle()
    now_s = 0.0
    for prefill, first, second, gap_s, shed in story:
        now_s += gap_s
        if shed:
            _shed_waking(pair.params, pair.state, 0)
        pair.order(prefill, now_s, awake=(max(2, first), max(1, second)))
        staying = [racks.racks_staying(pair.state, 0, pool) for pool in range(2)]
        assert staying[0] >= 2 and staying[1] >= 1
    # Whatever has happened, an order that stands is carried out in the end.
    for _ in range(6):
        now_s += 5000.0
        found = pair.order(6, now_s)
    assert found == [[6, 0, 0, 0], [4, 0, 0, 0]]


_SHARED: list[Pair] = []


def _idle() -> Pair:
    """Return an idle pair as built, the same arrays every time."""
    if not _SHARED:
        _SHARED.append(Pair())
        _SHARED[0].order(6, -1.0)
        _SHARED[0].saved = _SHARED[0].factory.snapshot()  # type: ignore[attr-defined]
    pair = _SHARED[0]
    pair.factory.restore(pair.saved)  # type: ignore[attr-defined]
    pair.state = pair.factory.engine.state
    return pair


# ------------------------------------------------------------------------------------------------------------- the lever


def test_the_lever_is_linear_rounded_and_encoded_exactly() -> None:
    env = make(("role",))
    layout = env.action_layout
    assert layout.pairs.tolist() == [[0, 1, 2, 9]]

    def own(action: float) -> list[int]:
        found = layout.decide(np.array([[action]])).own
        assert found is not None
        return list(found[0])

    assert own(-1.0) == [2, 8] and own(0.0) == [6, 4] and own(1.0) == [9, 1]
    prefill = [own(action)[0] for action in np.linspace(-1.0, 1.0, 41)]
    assert (np.diff(prefill) >= 0).all() and set(prefill) == set(range(2, 10))
    for wanted in range(2, 10):
        assert own(float(layout.encode(role=wanted)[0])) == [wanted, 10 - wanted]
    assert own(float(layout.encode(role=0)[0])) == [2, 8] and own(float(layout.encode(role=99)[0])) == [9, 1]
    assert (layout.encode(clock=0.5) == 0.0).all()


def test_racks_awake_are_a_share_of_those_the_pool_has() -> None:
    env = make()
    for prefill in range(2, 10):
        for awake in ([2, 1], [prefill, 10 - prefill], [max(2, prefill - 1), max(1, 9 - prefill)]):
            action = env.action_layout.encode(racks=np.array(awake), role=prefill)
            decision = env.action_layout.decide(action[None].astype(np.float64))
            assert decision.racks[0].tolist() == awake and decision.own is not None
            assert decision.own[0].tolist() == [prefill, 10 - prefill]
    alone = make(("role",))
    decision = alone.action_layout.decide(alone.action_layout.encode(role=3)[None].astype(np.float64))
    assert decision.racks[0].tolist() == [3, 7]


def test_a_site_without_a_pair_refuses_the_lever() -> None:
    pools = (site().pools[0], PoolConfig("vera_rubin_nvl144", "decode", 3, dp=8, mtp=True))
    with pytest.raises(ConfigError, match="levers: 'role' is not possible: no rack type"):
        make(site=site(pools=pools))
    # Other power profiles: the racks are not alike.
    both = (
        PoolConfig("vera_rubin_nvl144", "prefill", 3, dp=4, profile="max_q"),
        PoolConfig("vera_rubin_nvl144", "decode", 3, dp=8, profile="max_p"),
    )
    assert site(pools=both).pairs == ()
    # Two kinds of GPU in one rack.
    kinds = (
        PoolConfig("vera_rubin_nvl144_cpx", "prefill", 3, pp=8),
        PoolConfig("vera_rubin_nvl144_cpx", "decode", 3, dp=8),
    )
    assert site(pools=kinds).pairs == ()
    assert load_site("edge").pairs == ((0, 2),)
    with pytest.raises(ConfigError, match="switch_s: -1"):
        site(switch_s=-1.0)


def test_an_action_moves_racks_and_the_observation_says_so() -> None:
    env = make(demand_scale=0.05)
    env.reset(seed=0)
    where = env.observation_layout["pool_racks"]
    action = env.action_layout.encode(clock=1.0, racks=np.array([3, 7]), role=3)
    seen = [env.step(action)[0][where] for _ in range(8)]
    # Racks that drain to leave are none of the pool's; those that switch are the other's.
    assert seen[0].tolist() == pytest.approx([0.3, 0.4]) and seen[-1].tolist() == pytest.approx([0.3, 0.7])
    assert racks_of(env.factory)[:, 0].tolist() == [3, 7]
    numbers, ints = env.factory.engine.state.pool[0], env.factory.engine.state.pool_int[0]
    units = env.factory.params.pool[:, PoolSpec.UNITS_PER_RACK]
    awake = ints[:, PoolInt.ACTIVE] + ints[:, PoolInt.DRAINING]
    assert numbers[:, Pool.STEP_UNIT_S] == pytest.approx(awake * units * 60.0)
    observation = env.step(action)[0]
    assert env.observation_space.contains(observation)
    assert observation[env.observation_layout["pool_active"]].tolist() == pytest.approx([3 / 6, 7 / 4])
    assert "gb300_nvl72/decode            7/7 " in str(AIFactoryEnv.render(_rendered(env)))


def _rendered(env: AIFactoryEnv) -> AIFactoryEnv:
    env.render_mode = "ansi"
    return env


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_racks_that_move_keep_the_cap_and_every_request(resolution: str) -> None:
    scale = 0.3 if resolution == "request" else 1.0
    settings = {"resolution": resolution, "demand_scale": scale, "drain": True, "horizon_s": 900.0}
    env = make(site=site(cap_w=1.0e6, dwell_s=60.0, demand_rps=4000.0 if scale == 1.0 else 800.0), **settings)
    env.reset(seed=2)
    rng = np.random.default_rng(2)
    truncated, k = False, 0
    moved = set()
    while not truncated:
        roles = (2, 9, 4)[k // 5 % 3]
        action = env.action_layout.encode(clock=1.0, role=roles, racks=np.array([9, 9]))
        if k % 4 == 3:
            action = rng.uniform(-1, 1, env.action_layout.size).astype(np.float32)
        _, _, _, truncated, info = env.step(action)
        found = racks_of(env.factory)
        assert found[:, :5].sum() == 10 and found.min() >= 0
        moved.add(tuple(found[:, :5].sum(axis=1)))
        k += 1
    assert len(moved) > 2
    assert info["requests_met_slo"] + info["requests_missed_slo"] == pytest.approx(info["requests_arrived"])
    assert env.factory.engine.state.site[0, Site.LONGEST_OVERDRAW_S] <= 1.0 + 1e-6


def test_more_racks_of_a_role_serve_more_of_it() -> None:
    env = make(demand_scale=1.0, horizon_s=1200.0)
    met = []
    for prefill in (3, 6):
        env.reset(seed=1)
        action = env.action_layout.encode(clock=1.0, racks=np.array([9, 9]), role=prefill)
        for _ in range(20):
            info = env.step(action)[4]
        met.append(info["sla_attainment"])
    assert met[0] < met[1]


def test_a_snapshot_in_the_middle_of_a_move_goes_on_alike() -> None:
    env = make(demand_scale=0.2)
    env.reset(seed=0)
    action = env.action_layout.encode(clock=1.0, racks=np.array([9, 9]), role=2)
    env.step(action)
    saved = env.factory.snapshot()
    assert racks_of(env.factory)[0, 5] == 4

    def on() -> list[Array]:
        return [env.step(action)[0] for _ in range(4)]

    first = on()
    env.factory.restore(saved)
    assert np.array_equal(first, on())


def test_masks_tell_when_roles_are_held() -> None:
    env = DiscreteLevers(make(demand_scale=0.05), steps=5)
    layout = env.unwrapped.action_layout  # type: ignore[attr-defined]
    place = layout["role"].start
    env.reset(seed=0)
    values = [2, 4, 6, 8, 9]
    assert env.action_masks().reshape(layout.size, 5)[place].all()
    choice = np.full(layout.size, 4)
    choice[place] = 1
    for _ in range(4):
        env.step(choice)
    # Four are in prefill; those that came to decode stay there, prefill may still give.
    mask = env.action_masks().reshape(layout.size, 5)
    assert racks_of(env.unwrapped.factory)[:, :5].sum(axis=1).tolist() == [4, 6]  # type: ignore[attr-defined]
    assert mask[place].tolist() == [value <= 4 for value in values]
    assert mask.any(axis=1).all()
    choice[place] = 4
    env.step(choice)
    assert racks_of(env.unwrapped.factory)[:, :5].sum(axis=1).tolist() == [4, 6]  # type: ignore[attr-defined]


def test_in_a_vector_environment_rows_move_on_their_own() -> None:
    settings = {"site": site(), "levers": ("role",), "lambda_tokens_per_joule": 1.0, "scenario": "steady", **NOON}
    rows = gymnasium.make_vec(
        "ai_factory/Custom-v0", num_envs=2, vectorization_mode="vector_entry_point", demand_scale=0.2, **settings
    )
    rows.reset(seed=3)
    actions = np.array([[-1.0], [1.0]], np.float32)
    trail = [rows.step(actions)[0] for _ in range(5)]
    single = make(("role",), demand_scale=0.2)
    single.reset(seed=3)
    assert np.array_equal([single.step(actions[0])[0] for _ in range(5)], np.array(trail)[:, 0])
    last = trail[-1][:, single.observation_layout["pool_racks"]]
    assert last == pytest.approx(np.array([[0.2, 0.8], [0.9, 0.1]]))
    rows.close()


def test_phases_of_a_pair_are_what_they_are_called() -> None:
    params = make().factory.params
    assert params.pool[:, PoolSpec.SIBLING].tolist() == [1.0, 0.0]
    assert params.pool[:, PoolSpec.PHASE].tolist() == [PREFILL, DECODE]
    assert params.pool[:, PoolSpec.SWITCH_S].tolist() == [SWITCH_S] * 2
