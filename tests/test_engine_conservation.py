"""What goes in comes out: requests, tokens, KV memory, racks and joules, whatever the operator does."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ai_factory_gym.engine.layout import (
    GPU_GROUP,
    HISTOGRAM_BINS,
    LINK_DOMAIN,
    PREFILL,
    RACK,
    CapStep,
    Class,
    Cohort,
    CohortInt,
    Fault,
    Log,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Purpose,
    Site,
    SiteInt,
    SiteSpec,
    Span,
    Stage,
    State,
)
from ai_factory_gym.engine.simulator import Decision, Engine, Episode
from ai_factory_gym.params import (
    build_params,
    check_cap,
    idle_facility_w,
    nameplate_it_w,
    resolution,
    served_classes,
)
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
)
from ai_factory_gym.sites import SiteConfig, load_site
from tests.oracles.cases import steady_world

Floats = NDArray[np.float64]

CONTROL_INTERVAL_S = 30.0
PREFILL_RACKS, DECODE_RACKS = (3, 2), (4, 2)


@functools.cache
def site() -> SiteConfig:
    """Two pools of each phase, every kind of class, PUE independent of load, racks that wake within an episode."""
    pools = [
        {
            "rack": "h100_sxm8",
            "phase": "prefill",
            "racks": PREFILL_RACKS[0],
            "precision": "fp8",
            "tp": 4,
            "min_active": 0,
        },
        {"rack": "h200_sxm8", "phase": "prefill", "racks": PREFILL_RACKS[1], "precision": "fp8", "tp": 4},
        {"rack": "h100_sxm8", "phase": "decode", "racks": DECODE_RACKS[0], "precision": "fp8", "tp": 4},
        {
            "rack": "h200_sxm8",
            "phase": "decode",
            "racks": DECODE_RACKS[1],
            "precision": "fp8",
            "tp": 4,
            "min_active": 0,
        },
    ]
    return load_site(
        {
            "name": "conservation",
            "cap_w": 1e6,
            "model": "llama-3.1-70b",
            "demand_rps": 60.0,
            "mix": {"chat": 0.5, "customer_service": 0.2, "reasoning": 0.1, "coding": 0.05, "batch": 0.15},
            "max_context": 32768,
            "group_edges": [2048.0],
            "drain_s": 20.0,
            "dwell_s": 30.0,
            "switch_s": 25.0,
            "cooling": {"fixed_share": 0.0},
            "pools": pools,
        }
    )


@functools.cache
def params(grain: str) -> Params:
    built = build_params(site(), served_classes(site()), resolution(grain), control_interval_s=CONTROL_INTERVAL_S)
    built.pool[:, PoolSpec.WAKE_S] = 40.0
    return built


@functools.cache
def engine(grain: str) -> Engine:
    """One engine per resolution, with so few slots at first that it has to grow."""
    return Engine(params(grain), slots=256, log_lines=200_000)


@dataclass(frozen=True)
class Play:
    """A random episode: demand, caps and what the operator orders in each control step."""

    seed: int
    demand: float
    caps: tuple[float, ...]
    bias: tuple[tuple[float, ...], ...]
    clock: tuple[tuple[float, ...], ...]
    awake: tuple[tuple[float, ...], ...]
    limit: tuple[tuple[float, ...], ...]
    role: tuple[tuple[float, ...], ...] = ()
    faults: tuple[tuple[float, ...], ...] = ()


STEPS = 7
_unit = st.floats(0.0, 1.0)
_two = st.tuples(_unit, _unit)
_four = st.tuples(_unit, _unit, _unit, _unit)
PLAYS = st.builds(
    Play,
    seed=st.integers(0, 2**32 - 1),
    demand=st.sampled_from([0.0, 0.2, 1.0, 2.0, 4.0]),
    caps=st.lists(_unit, min_size=1, max_size=6).map(tuple),
    bias=st.tuples(*[_four] * STEPS),
    clock=st.tuples(*[_four] * STEPS),
    awake=st.tuples(*[_four] * STEPS),
    limit=st.tuples(*[_four] * STEPS),
    role=st.one_of(st.just(()), st.tuples(*[_two] * STEPS)),
    faults=st.one_of(st.just(()), st.lists(st.tuples(*[_unit] * 6), max_size=8).map(tuple)),
)


def begin(play: Play, grain: str) -> Engine:
    """Start an episode whose cap moves anywhere between just above idle draw and far above the nameplate."""
    p = params(grain)
    streams = dict(zip(Purpose, np.random.default_rng(play.seed).spawn(len(Purpose)), strict=True))
    idle_w = idle_facility_w(site())
    most_w = 1.2 * nameplate_it_w(site())
    cap = np.zeros((len(play.caps), len(CapStep)))
    cap[:, CapStep.TIME_S] = 37.0 * np.arange(len(play.caps))
    cap[0, CapStep.TIME_S] = -np.inf
    cap[:, CapStep.CAP_W] = idle_w * 1.02 + (most_w - idle_w) * np.array(play.caps) ** 2
    cap[:, CapStep.ANNOUNCED_S] = -np.inf
    check_cap(site(), float(cap[:, CapStep.CAP_W].min()))
    share = np.array([site().mix[cls.name] for cls in served_classes(site())])
    rate = play.demand * site().demand_rps * share[:, None] * np.array([1.0, 0.4, 1.6, 1.0])
    hazard = np.full(4, 1.0 / 120.0)
    result = engine(grain)
    kept = np.zeros(0, dtype=np.bool_)
    result.begin(
        0, Episode(0.0, rate, hazard, cap, np.zeros(0), kept, streams, steady_world(p, 4), None, outages(play))
    )
    result.open_window(0)
    assert p.site[SiteSpec.BRAKE_ENABLED] == 1.0
    return result


def outages(play: Play) -> Floats | None:
    """Translate unit numbers into racks, or parts of them, that go out of service, and come back within the episode."""
    if not play.faults:
        return None
    table = np.zeros((len(play.faults), len(Fault)))
    for event, (when, pool, rack, kind, lasts, turn) in zip(table, sorted(play.faults), strict=True):
        # Pools 0 and 2 are of one rack type, 1 and 3 of another.
        first = int(pool > 0.5)
        event[Fault.TIME_S] = STEPS * CONTROL_INTERVAL_S * when
        event[Fault.POOL] = first
        event[Fault.RACK] = min(rack, 0.999) * (PREFILL_RACKS[first] + DECODE_RACKS[first])
        event[Fault.KIND] = float(kind > 0.75)
        event[Fault.DOMAIN] = GPU_GROUP if 0.25 < kind < 0.65 else LINK_DOMAIN if 0.65 <= kind <= 0.75 else RACK
        event[Fault.PLACE] = 37.0 * turn % 1.0
        event[Fault.LASTS_S] = 120.0 * lasts
        event[Fault.TURN] = min(turn, 0.999)
        event[Fault.BACK_S] = np.inf
    table[:, Fault.RACK] = np.floor(table[:, Fault.RACK])
    return table


def decision(play: Play, step: int) -> Decision:
    """Translate one step's unit numbers into orders."""
    p = params("cohort")
    pools = len(p.pool)
    factor = np.exp(8.0 * np.array(play.bias[step]) - 4.0)
    bias = np.broadcast_to(factor, (1, 2, p.capacity.shape[1], pools)).copy()
    ceiling = 0.3 + 0.7 * np.array(play.clock[step])
    own = p.pool[:, PoolSpec.RACKS].copy()
    if play.role:
        # Pools 0 and 2 are of one rack type, 1 and 3 of another.
        total = own[:2] + own[2:]
        own[:2] = np.round(1.0 + (total - 2.0) * np.array(play.role[step]))
        own[2:] = total - own[:2]
    lowest = p.pool[:, PoolSpec.MIN_ACTIVE]
    racks = np.round(lowest + (own - lowest) * np.array(play.awake[step])).astype(np.int64)
    limit = np.array(play.limit[step])
    limit_w = np.where(limit > 0.5, np.inf, 3000.0 + 14000.0 * limit)
    return Decision(bias, ceiling[None], limit_w[None], racks[None], own=own[None].astype(np.int64))


def used(state: State) -> tuple[Floats, NDArray[np.int32]]:
    """Return the records of the cohorts in the site."""
    busy = state.cohort_int[0, :, CohortInt.STAGE] != Stage.FREE
    return state.cohort[0][busy], state.cohort_int[0][busy]


def check_requests(state: State) -> None:
    """Arrived = met + missed + undecided, per class, and every list agrees with the cohorts in it."""
    cohort, ints = used(state)
    for cls, counters in enumerate(state.cls[0]):
        open_ = (ints[:, CohortInt.CLASS] == cls) & (ints[:, CohortInt.SCORED] == 1) & (ints[:, CohortInt.DECIDED] == 0)
        undecided = cohort[open_, Cohort.COUNT].sum()
        assert counters[Class.ARRIVED] == counters[Class.MET] + counters[Class.MISSED] + undecided
        assert counters[Class.REJECTED] <= counters[Class.MISSED]
        no_token = (ints[:, CohortInt.CLASS] == cls) & (ints[:, CohortInt.STAGE] != Stage.DECODING)
        # Requests that were lost with a rack have had their first token.
        no_token &= np.isnan(cohort[:, Cohort.FIRST_TOKEN_S])
        assert counters[Class.QUEUED] == pytest.approx(cohort[no_token, Cohort.COUNT].sum())
        assert state.histogram[0, cls, 0].sum() == counters[Class.TTFT_COUNT]
        assert state.histogram[0, cls, 1].sum() == counters[Class.TPOT_COUNT]
        for histogram, span in zip(state.histogram[0, cls], state.span[0, cls], strict=True):
            counted = np.flatnonzero(histogram)
            if len(counted) > 0:
                assert HISTOGRAM_BINS - span[Span.BELOW_TOP] <= counted[0]
                assert span[Span.END] > counted[-1]
    assert state.site_int[0, SiteInt.FREE] + len(cohort) == state.free.shape[1]
    assert len(set(state.free[0, : state.site_int[0, SiteInt.FREE]])) == state.site_int[0, SiteInt.FREE]
    for pool in range(state.pool.shape[1]):
        assigned = (ints[:, CohortInt.PREFILL_POOL] == pool) | (ints[:, CohortInt.DECODE_POOL] == pool)
        assert state.pool_int[0, pool, PoolInt.ASSIGNED] == assigned.sum()


def check_tokens(p: Params, state: State, emitted: float) -> None:
    """Tokens emitted = tokens of finished requests + the part of those in flight; KV in + generated - out = held."""
    cohort, ints = used(state)
    lines = state.log[0, : state.site_int[0, SiteInt.LOGGED]]
    done = lines[np.isfinite(lines[:, Log.TTFT_S])]
    expected = float((done[:, Log.COUNT] * done[:, Log.OUTPUT]).sum())
    for pool in range(len(p.pool)):
        if p.pool[pool, PoolSpec.PHASE] == 0:
            continue
        numbers = state.pool[0, pool]
        decoding = (ints[:, CohortInt.DECODE_POOL] == pool) & (ints[:, CohortInt.STAGE] == Stage.DECODING)
        bound = (ints[:, CohortInt.DECODE_POOL] == pool) & ~decoding
        flying = cohort[decoding]
        count, prompt, output = flying[:, Cohort.COUNT], flying[:, Cohort.PROMPT], flying[:, Cohort.OUTPUT]
        span = p.perf[pool, DECODE_TOKENS_PER_ITERATION] + output - 1.0
        part = count * output * (numbers[Pool.G] - flying[:, Cohort.G_ADMIT]) / span
        expected += float(part.sum())
        assert np.all(part >= -1e-6) and np.all(part <= count * output * (1.0 + 1e-9) + 1e-6)
        close = functools.partial(pytest.approx, rel=1e-7, abs=1e-3)
        held = numbers[Pool.KV_TOKENS_IN] + numbers[Pool.KV_TOKENS_GENERATED] - numbers[Pool.KV_TOKENS_OUT]
        assert numbers[Pool.CONTEXT] == close((count * prompt + part).sum())
        assert held == close(numbers[Pool.CONTEXT])
        assert numbers[Pool.IN_FLIGHT] == close(count.sum())
        need = prompt + output + p.perf[pool, DECODE_KV_REQUEST_TOKENS]
        assert numbers[Pool.RESERVED] == close((count * need).sum())
        assert numbers[Pool.WAITING] == close(cohort[bound, Cohort.COUNT].sum())
        racks = state.pool_int[0, pool, PoolInt.ACTIVE] + state.pool_int[0, pool, PoolInt.DRAINING]
        replicas = racks * p.pool[pool, PoolSpec.UNITS_PER_RACK] * (1.0 - numbers[Pool.OUT_SHARE])
        assert numbers[Pool.RESERVED] <= replicas * p.perf[pool, DECODE_KV_CAPACITY_TOKENS] + 1e-6
        assert numbers[Pool.IN_FLIGHT] <= replicas * p.pool[pool, PoolSpec.MAX_BATCH] + 1e-6
    expected += float(state.site[0, Site.LOST_TOKENS])
    assert emitted == pytest.approx(expected, rel=1e-7, abs=1e-2)


def check_racks(p: Params, state: State) -> None:
    """Every rack is in one state, and there are never fewer than none."""
    columns = [PoolInt.ACTIVE, PoolInt.WAKING, PoolInt.DRAINING, PoolInt.ASLEEP, PoolInt.FAILED]
    racks = state.pool_int[0][:, columns]
    assert np.all(racks >= 0)
    built = p.pool[:, PoolSpec.RACKS].astype(np.int64)
    # A rack may change its role; of each type there are as many as ever, and every pool has one.
    assert np.array_equal(racks[:2].sum(axis=1) + racks[2:].sum(axis=1), built[:2] + built[2:])
    assert np.all(racks.sum(axis=1) >= 1)
    moving = state.pool_int[0, :, PoolInt.MOVING]
    assert np.all((moving >= 0) & (moving <= racks[:, 2]))
    assert state.site[0, Site.FAULTS] > 0.0 or not racks[:, 4].any()
    kept = (p.pool[:, PoolSpec.MIN_ACTIVE] > 0) & (state.site[0, Site.FAULTS] == 0.0)
    assert np.all(racks[kept, 0] >= 1)
    busy = np.where(p.pool[:, PoolSpec.PHASE] == PREFILL, state.pool_int[0, :, PoolInt.SERVING], 0)
    lanes = (racks[:, 0] + racks[:, 2]) * p.pool[:, PoolSpec.UNITS_PER_RACK] * (1.0 - state.pool[0, :, Pool.OUT_SHARE])
    assert np.all(busy <= lanes + 1e-9)
    # Of the replicas of awake racks those that are in service serve: all but what events have taken, and at least one.
    events = state.fault[0]
    events = events[(events[:, Fault.REPLICAS] > 0.0) & (events[:, Fault.AWAKE] >= 0.0)]
    for pool, numbers in enumerate(state.pool[0]):
        mine = events[events[:, Fault.WHERE] == pool]
        awake = (racks[pool, 0] + racks[pool, 2]) * p.pool[pool, PoolSpec.REPLICAS_PER_RACK]
        out = min(mine[mine[:, Fault.AWAKE] == 1.0, Fault.REPLICAS].sum(), max(0.0, awake - 1.0))
        assert numbers[Pool.OUT_REPLICAS] == mine[:, Fault.REPLICAS].sum()
        assert numbers[Pool.OUT_SHARE] * awake == pytest.approx(out)


def check_energy(p: Params, state: State, before: dict[str, float]) -> None:
    """Pools add up to the site, and the site's joules are its power over time."""
    row = state.site[0]
    factor = p.site[SiteSpec.PUE_BASE]
    assert row[Site.STEP_S] == pytest.approx(CONTROL_INTERVAL_S)
    assert row[Site.STEP_IT_ENERGY_J] == pytest.approx(state.pool[0, :, Pool.STEP_ENERGY_J].sum(), rel=1e-9)
    assert row[Site.STEP_ENERGY_J] == pytest.approx(factor * row[Site.STEP_IT_ENERGY_J], rel=1e-9)
    assert row[Site.ENERGY_J] == pytest.approx(before["energy"] + row[Site.STEP_ENERGY_J], rel=1e-9)
    assert row[Site.ENERGY_J] == pytest.approx(factor * state.pool[0, :, Pool.ENERGY_J].sum(), rel=1e-9)
    assert row[Site.STEP_ENERGY_J] <= row[Site.PEAK_POWER_W] * CONTROL_INTERVAL_S * (1.0 + 1e-9)
    assert row[Site.CAP_VIOLATION_J] >= row[Site.ENERGY_J] - row[Site.CAP_ENERGY_J] - 1e-6 * row[Site.CAP_ENERGY_J]
    # A GPU draws at most its TDP and a sleeping rack at least its standby power.
    assert row[Site.STEP_IT_ENERGY_J] <= nameplate_it_w(site()) * CONTROL_INTERVAL_S * (1.0 + 1e-9)
    assert np.all(state.pool[0, :, Pool.STEP_ENERGY_J] > 0.0)


def check_sane(state: State) -> None:
    """Nothing is NaN and no counter negative."""
    assert np.all(np.isfinite(np.delete(state.site[0], Site.NEXT_FAULT_S)))
    for name in ("cls", "carry", "weight", "backlog"):
        assert np.all(np.isfinite(getattr(state, name)[0])), name
    unbounded = {Pool.POWER_LIMIT_W, Pool.TRANSFER_FREE_S, Pool.DWELL_UNTIL_S, Pool.G_CLOSE}
    for column in set(Pool) - unbounded:
        assert np.all(np.isfinite(state.pool[0, :, column])), column
    assert not np.any(np.isnan(state.pool[0]))
    assert np.all(state.cls[0] >= -1e-6)
    signed = unbounded | {Pool.TIME_S, Pool.DWELL_UNTIL_S}
    for column in set(Pool) - signed:
        scale = np.abs(state.pool[0][:, [Pool.RESERVED, Pool.WAITING_TOKENS]]).max() + 1.0
        assert np.all(state.pool[0, :, column] >= -1e-9 * scale), column
    assert np.all(state.pool_int[0][:, [PoolInt.READY, PoolInt.SERVING, PoolInt.ASSIGNED]] >= 0)
    assert np.all((state.pool[0, :, Pool.CLOCK] > 0.0) & (state.pool[0, :, Pool.CLOCK] <= 1.0))


def play_out(play: Play, grain: str) -> Engine:
    """Run an episode, check everything after every step, then let it drain and check that every fate is decided."""
    p = params(grain)
    e = begin(play, grain)
    emitted = 0.0
    for step in range(STEPS):
        before = {"energy": float(e.state.site[0, Site.ENERGY_J])}
        e.step(np.array([0]), decision(play, step))
        emitted += float(e.state.site[0, Site.STEP_OUTPUT_TOKENS])
        state = e.state
        check_requests(state)
        check_tokens(p, state, emitted)
        check_racks(p, state)
        check_energy(p, state, before)
        check_sane(state)
        assert state.site[0, Site.LONGEST_OVERDRAW_S] <= p.site[SiteSpec.BRAKE_REACTION_S] + 1e-6
        assert state.site[0, Site.OUTPUT_TOKENS] == pytest.approx(emitted, rel=1e-9, abs=1e-6)
    good = float(state.site[0, Site.GOOD_TOKENS])
    assert good == pytest.approx(state.cls[0, :, Class.GOOD_TOKENS].sum(), rel=1e-9)
    assert good <= emitted * (1.0 + 1e-9) + 1e-6
    return e


NOTHING = (0.0, 0.0, 0.0, 0.0)
LETS_GO = Play(
    seed=0,
    demand=4.0,
    caps=(0.14263971080691176,),
    bias=((0.5, 0.0, 0.0, 0.0), *6 * (NOTHING,)),
    clock=7 * (NOTHING,),
    awake=((1.0, 1.0, 0.0, 0.0), *6 * (NOTHING,)),
    limit=((1.0, 1.0, 0.0, 0.0), *6 * (NOTHING,)),
)
"""A brake that nearly halts decode and lets go: requests end before the first token that was dated at their admission."""

COMES_EARLY = Play(
    seed=0,
    demand=1.0,
    caps=(0.15625,),
    bias=((0.375, 1.0, 0.0, 0.0), *6 * (NOTHING,)),
    clock=((1.0, 0.0, 0.0, 0.0), *6 * (NOTHING,)),
    awake=((1.0, 0.0, 0.0, 0.0), *6 * (NOTHING,)),
    limit=((0.0, 0.0, 0.125, 0.0), *6 * (NOTHING,)),
)
"""More of a slice has come than an even flow would have brought: what the bound of the draw leaves out must still be to come."""


CUT_SHORT = Play(
    seed=0,
    demand=1.0,
    caps=(0.0,),
    bias=7 * (NOTHING,),
    clock=((0.0, 1.0, 0.0, 0.0), *6 * (NOTHING,)),
    awake=7 * (NOTHING,),
    limit=((0.0, 1.0, 0.0, 0.0), *6 * (NOTHING,)),
    faults=((0.0, 0.0, 0.0, 0.0, 1.421511758316446e-07, 0.0),),
)
"""A rack fails a moment before the brake's reaction time is over: what is left of it is shorter than any usual segment."""


@pytest.mark.parametrize("grain", ["cohort", "request"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@example(play=LETS_GO)
@example(play=COMES_EARLY)
@example(play=CUT_SHORT)
@given(play=PLAYS)
def test_conservation_whatever_the_operator_does(grain: str, play: Play) -> None:
    play_out(play, grain)


@pytest.mark.parametrize("grain", ["cohort", "request"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(play=PLAYS)
def test_after_the_window_every_fate_is_decided_and_totals_stand_still(grain: str, play: Play) -> None:
    e = play_out(play, grain)
    e.close_window(0)
    frozen = e.state.site[0, [Site.ENERGY_J, Site.OUTPUT_TOKENS, Site.CAP_ENERGY_J, Site.BRAKE_S]].copy()
    arrived = e.state.cls[0, :, Class.ARRIVED].copy()
    best = Play(0, 0.0, (1.0,), *[((0.5, 0.5, 0.5, 0.5),)] * 1, ((1.0,) * 4,), ((1.0,) * 4,), ((1.0,) * 4,))
    e.state.cap_steps[0, :, CapStep.CAP_W] = 1e9
    for _ in range(60):
        e.step(np.array([0]), decision(best, 0))
        counters = e.state.cls[0]
        if np.array_equal(counters[:, Class.ARRIVED], counters[:, Class.MET] + counters[:, Class.MISSED]):
            break
    else:
        raise AssertionError("some fates were never decided")
    check_requests(e.state)
    assert np.array_equal(e.state.cls[0, :, Class.ARRIVED], arrived)
    assert np.array_equal(e.state.site[0, [Site.ENERGY_J, Site.OUTPUT_TOKENS, Site.CAP_ENERGY_J, Site.BRAKE_S]], frozen)
    assert e.state.site[0, Site.GOOD_TOKENS] <= frozen[1] * (1.0 + 1e-9) + 1e-6


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_the_checks_meet_a_brake_growing_arrays_and_racks_that_move(grain: str) -> None:
    # The properties would hold trivially in a site where nothing happens.
    play = Play(
        7,
        4.0,
        (0.6, 0.1, 0.6),
        ((0.5,) * 4,) * STEPS,
        ((1.0,) * 4,) * STEPS,
        ((1.0,) * 4, (0.0,) * 4, (0.0,) * 4, (1.0,) * 4, (1.0,) * 4, (1.0,) * 4, (1.0,) * 4),
        ((1.0,) * 4,) * STEPS,
    )
    e = play_out(play, grain)
    assert e.state.site[0, Site.BRAKE_S] > 0.0
    assert e.state.site[0, Site.LONGEST_OVERDRAW_S] > 0.0
    assert e.state.cls[0, :, Class.MISSED].sum() > 0.0
    assert e.state.cls[0, :, Class.MET].sum() > 0.0
    if grain == "request":
        assert e.state.free.shape[1] > 256


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_joules_are_the_integral_of_power_segment_by_segment(grain: str) -> None:
    p = params(grain)
    tick_s = float(p.site[SiteSpec.TICK_S])
    stepped = p._replace(site=p.site.copy())
    stepped.site[SiteSpec.CONTROL_INTERVAL_S] = tick_s
    single = Engine(stepped)
    shared = engine(grain)
    play = Play(3, 1.0, (1.0,), *[((0.5,) * 4,) * STEPS], *[((1.0,) * 4,) * STEPS] * 3)
    begin(play, grain)
    streams = dict(zip(Purpose, np.random.default_rng(play.seed).spawn(len(Purpose)), strict=True))
    source = shared.state
    single.begin(
        0,
        Episode(0.0, source.rate[0].copy(), source.hazard[0].copy(), source.cap_steps[0].copy(), np.zeros(0),
                np.zeros(0, dtype=np.bool_), streams, source.world[0].copy()),
    )  # fmt: skip
    single.open_window(0)
    total = 0.0
    for _ in range(int(60.0 / tick_s)):
        segments = single.state.site_int[0, SiteInt.SEGMENTS]
        single.step(np.array([0]), decision(play, 0))
        assert single.state.site_int[0, SiteInt.SEGMENTS] == segments + 1
        total += float(single.state.site[0, Site.FACILITY_POWER_W]) * tick_s
        assert single.state.site[0, Site.FACILITY_POWER_W] == pytest.approx(
            single.state.pool[0, :, Pool.POWER_W].sum() * single.state.site[0, Site.PUE], rel=1e-12
        )
    assert single.state.site[0, Site.ENERGY_J] == pytest.approx(total, rel=1e-9)
