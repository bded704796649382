"""The engine's parts: heaps, random numbers, histograms, racks, routing; and that a state is all there is to an episode."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import config, njit
from scipy import stats

from ai_factory_gym import jit
from ai_factory_gym.engine import calendar, draw, heap, kernel, ledger, racks, rng
from ai_factory_gym.engine.arrivals import admit, route, route_request, size_class, turn
from ai_factory_gym.engine.layout import (
    COHORT_DAYS,
    DECODE,
    HISTOGRAM_BINS,
    HISTOGRAM_BINS_PER_DECADE,
    HISTOGRAM_LOW_S,
    NOBODY,
    PREFILL,
    READY_LINE,
    SERVICE_LINE,
    CapStep,
    Cell,
    Cohort,
    CohortInt,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Purpose,
    Site,
    SiteInt,
    SiteSpec,
    Stage,
    State,
    allocate,
    clear_row,
    grow,
)
from ai_factory_gym.engine.reference import Reference, state_of
from ai_factory_gym.engine.simulator import Decision, Engine, Episode
from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.sites import SiteConfig, load_site
from tests.oracles.cases import steady_world

# ---------------------------------------------------------------------------------------------------------------- heap


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 1.0, 2.5, -3.0, 7.0]), st.booleans()), max_size=60))
def test_heap_pops_in_order_of_key_then_slot(operations: list[tuple[float, bool]]) -> None:
    keys, slots = np.zeros(64), np.zeros(64, dtype=np.int32)
    size = 0
    inside: list[tuple[float, int]] = []
    for slot, (key, take) in enumerate(operations):
        heap.push(keys, slots, size, key, slot)
        size += 1
        inside.append((key, slot))
        if take:
            assert heap.pop(keys, slots, size) == min(inside)[1]
            size -= 1
            inside.remove(min(inside))
    while size:
        assert keys[0] == min(inside)[0]
        assert heap.pop(keys, slots, size) == min(inside)[1]
        size -= 1
        inside.remove(min(inside))


@pytest.fixture(scope="module")
def empty_state() -> State:
    """Room for 256 cohorts in one pool."""
    return allocate(
        rows=1,
        pools=1,
        classes=1,
        groups=1,
        cells=1,
        slots=256,
        minutes=1,
        backlog_bins=1,
        transitions=1,
        cap_steps=1,
        copies=0,
        trace_requests=0,
        log_lines=0,
        coefficients=(15, 12),
    )


_SPANS = [0.0, 0.25, 1.0, 1.0, 40.5, COHORT_DAYS - 0.5, COHORT_DAYS, 3.0 * COHORT_DAYS + 0.75]


@pytest.mark.parametrize("days_per_unit", [0.0, 1.0 / 16.0, 1.0, 4.0])
@pytest.mark.parametrize("line", [READY_LINE, SERVICE_LINE])
@settings(max_examples=60, deadline=None)
@given(
    begin=st.sampled_from([-600.25, 0.0, 1e6]),
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("enter"), st.sampled_from(_SPANS)), st.tuples(st.sampled_from(["take", "look", "anew"]))
        ),
        max_size=80,
    ),
    crowd=st.integers(0, 80),
)
def test_line_gives_cohorts_in_order_of_turn_then_slot(
    empty_state: State, line: int, days_per_unit: float, begin: float, operations: list[tuple[Any, ...]], crowd: int
) -> None:
    clear_row(empty_state, 0)
    ints = empty_state.pool_int[0, 0]
    ints[PoolInt.READY_TODAY + line] = math.floor(begin * days_per_unit)
    inside: list[tuple[float, int]] = []
    clock = begin

    def enter(key: float, slot: int) -> None:
        calendar.schedule(empty_state, 0, 0, line, slot, key, days_per_unit)
        inside.append((key, slot))

    def take() -> float:
        first = min(inside)
        key, place = calendar.find_next(empty_state, 0, 0, line, days_per_unit)
        assert key == first[0]
        assert calendar.take(empty_state, 0, 0, line, place) == first[1]
        inside.remove(first)
        assert ints[PoolInt.READY + line] == len(inside)
        return first[0]

    # As many on one day as on a page, and more.
    for slot in range(crowd):
        enter(begin + 5.0 + 0.25 * (slot * 7 % 5), 100 + slot)
    for slot, operation in enumerate(operations):
        if operation[0] == "enter":
            enter(clock + operation[1], slot)
        elif operation[0] == "take" and inside:
            clock = take()
        elif operation[0] == "look":
            ahead = clock + 30.0
            found = calendar.find_until(empty_state, 0, 0, line, ahead, days_per_unit)
            places = [calendar.place_of(empty_state, 0, 0, line, number) for number in range(found)]
            seen = {
                (empty_state.heap_key[0, 0, line, place], int(empty_state.heap_slot[0, 0, line, place]))
                for place in places
            }
            assert len(seen) == found
            assert seen <= set(inside)
            assert {entry for entry in inside if entry[0] <= ahead} <= seen
        elif operation[0] == "anew":
            count = calendar.gather(empty_state, 0, 0, line)
            entries = [
                (float(empty_state.heap_key[0, 0, line, n]), int(empty_state.heap_slot[0, 0, line, n]))
                for n in range(count)
            ]
            assert sorted(entries) == sorted(inside)
            assert ints[PoolInt.READY + line] == 0
            inside = []
            for key, entry in entries:
                enter(key, entry)
    while inside:
        clock = take()
    assert calendar.find_next(empty_state, 0, 0, line, days_per_unit)[0] == math.inf
    assert (empty_state.calendar == NOBODY).all()


def test_pages_stay_in_order_when_the_arrays_grow(empty_state: State) -> None:
    clear_row(empty_state, 0)
    keys = [0.5, 3.5, 3.25, 3.75, 9.0, 3.0]
    for slot, key in enumerate(keys):
        calendar.schedule(empty_state, 0, 0, SERVICE_LINE, slot, key, 1.0)
    calendar.find_until(empty_state, 0, 0, SERVICE_LINE, 3.0, 1.0)
    grown = grow(empty_state, 2 * empty_state.free.shape[1])
    assert grown.pool_int[0, 0, PoolInt.SERVING_PAGE] > 1
    found = []
    while grown.pool_int[0, 0, PoolInt.SERVING]:
        _, place = calendar.find_next(grown, 0, 0, SERVICE_LINE, 1.0)
        found.append(keys[calendar.take(grown, 0, 0, SERVICE_LINE, place)])
    assert found == sorted(keys)


# ----------------------------------------------------------------------------------------------------- random numbers


def stream(seed: int) -> np.ndarray:
    return rng.seed_stream(np.random.default_rng(seed))


def test_uniform_is_xoshiro256_plus_plus() -> None:
    # The reference algorithm in Python's unbounded integers.
    mask = (1 << 64) - 1
    state = [1, 2, 3, 4]
    ours = np.array(state, dtype=np.uint64)

    def rotate(x: int, k: int) -> int:
        return ((x << k) | (x >> (64 - k))) & mask

    for _ in range(200):
        result = (rotate((state[0] + state[3]) & mask, 23) + state[0]) & mask
        shifted = (state[1] << 17) & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotate(state[3], 45)
        assert rng.uniform(ours) == ((result >> 11) + 0.5) / 2**53
    assert [int(word) for word in ours] == state


def test_uniforms_exponentials_and_normals_have_their_distribution() -> None:
    s = stream(1)
    n = 20_000
    assert stats.kstest([rng.uniform(s) for _ in range(n)], "uniform").pvalue > 1e-3
    assert stats.kstest([rng.exponential(s) for _ in range(n)], "expon").pvalue > 1e-3
    numbers = np.array([rng.normal(s) for _ in range(2 * n)])
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4.0 / math.sqrt(2 * n)


@njit  # type: ignore[untyped-decorator]
def count_beyond(stream: np.ndarray, count: int, edges: np.ndarray) -> np.ndarray:
    """Count normal numbers below each edge's negative and above it, then exponential ones above it."""
    found = np.zeros((3, edges.shape[0]))
    for _ in range(count):
        number = rng.normal(stream)
        wait = rng.exponential(stream)
        for place in range(edges.shape[0]):
            found[0, place] += number < -edges[place]
            found[1, place] += number > edges[place]
            found[2, place] += wait > edges[place]
    return found


def test_ziggurats_close_and_their_tails_hold_what_they_should() -> None:
    for ends, density in ((rng._NORMAL_ENDS, rng._NORMAL_DENSITY), (rng._EXPONENTIAL_ENDS, rng._EXPONENTIAL_DENSITY)):
        assert np.all(np.diff(ends) < 0.0) and ends[-1] == 0.0 and density[-1] == 1.0
        areas = ends[1:-1] * np.diff(density[1:])
        np.testing.assert_allclose(areas, areas[0], rtol=1e-6)
        assert ends[0] * density[1] == pytest.approx(areas[0])
    # Layers, wedges and tails, on both sides of the last edge.
    count = 20_000 if config.DISABLE_JIT else 4_000_000
    edges = np.array([0.1, 1.0, 2.0, 3.0, 3.6, 3.7, 4.2, 7.6, 7.8])
    found = count_beyond(stream(5), count, edges)
    for expected, seen in zip((stats.norm.sf(edges), stats.norm.sf(edges), stats.expon.sf(edges)), found, strict=True):
        mean = count * expected
        assert np.all(np.abs(seen - mean) < 4.5 * np.sqrt(mean) + 1.0)


@pytest.mark.parametrize("mean", [0.03, 1.7, 9.99, 10.0, 10.5, 33.0, 400.0, 1e5])
def test_poisson_has_its_distribution(mean: float) -> None:
    s = stream(int(mean * 100))
    n = 20_000
    counts = np.array([rng.poisson(s, mean) for _ in range(n)])
    assert counts.min() >= 0
    assert abs(counts.mean() - mean) < 4.5 * math.sqrt(mean / n)
    edges = np.unique(stats.poisson.ppf(np.linspace(0.0, 1.0, 21)[1:-1], mean))
    bounds = np.concatenate([[-np.inf], edges, [np.inf]])
    expected = n * np.diff(stats.poisson.cdf(bounds, mean))
    observed = np.histogram(counts, np.concatenate([[-0.5], edges + 0.5, [np.inf]]))[0]
    used = expected > 5.0
    statistic = float((((observed - expected) ** 2)[used] / expected[used]).sum())
    assert stats.chi2.sf(statistic, max(1, used.sum() - 1)) > 1e-3


def test_poisson_of_nothing_is_nothing_and_draws_nothing() -> None:
    s = stream(3)
    before = s.copy()
    assert rng.poisson(s, 0.0) == 0
    assert rng.poisson(s, -1.0) == 0
    assert np.array_equal(s, before)


def test_streams_of_one_seed_differ_by_purpose_and_are_never_all_zero() -> None:
    children = np.random.default_rng(0).spawn(8)
    words = np.array([rng.seed_stream(child) for child in children])
    assert len(np.unique(words[:, 1])) == 8
    assert np.all(words[:, 0] % np.uint64(2) == 1)


# ----------------------------------------------------------------------------------------------------------- histogram


@pytest.mark.parametrize("seconds", [1e-9, 1e-3, 1.0000001e-3, 0.0123, 0.5, 2.0, 999.0, 9.99e3, 1e5])
def test_histogram_bin_holds_its_latency(seconds: float) -> None:
    index = ledger.histogram_bin(seconds)
    assert 0 <= index < HISTOGRAM_BINS
    low, high = (HISTOGRAM_LOW_S * 10.0 ** ((index + k) / HISTOGRAM_BINS_PER_DECADE) for k in (0, 1))
    assert seconds < high * (1.0 + 1e-12) or index == HISTOGRAM_BINS - 1
    assert seconds >= low * (1.0 - 1e-12) or index == 0


# ------------------------------------------------------------------------------------------------------ a small factory


def site() -> SiteConfig:
    pools = [
        {"rack": "h100_sxm8", "phase": "prefill", "racks": 4, "precision": "fp8", "tp": 4},
        {"rack": "h200_sxm8", "phase": "prefill", "racks": 2, "precision": "fp8", "tp": 4, "min_active": 0},
        {"rack": "h100_sxm8", "phase": "decode", "racks": 5, "precision": "fp8", "tp": 4},
        {"rack": "h200_sxm8", "phase": "decode", "racks": 2, "precision": "fp8", "tp": 4, "min_active": 0},
    ]
    return load_site(
        {
            "name": "units",
            "cap_w": 1e6,
            "model": "llama-3.1-70b",
            "demand_rps": 40.0,
            "mix": {"chat": 0.6, "customer_service": 0.3, "batch": 0.1},
            "max_context": 32768,
            "group_edges": [1024.0],
            "pools": pools,
        }
    )


SITE = site()
RACKS = np.array([pool.racks for pool in SITE.pools])
INTERVAL_S = 30.0


def params(grain: str) -> Params:
    return build_params(SITE, served_classes(SITE), resolution(grain), control_interval_s=INTERVAL_S)


def episode(p: Params, seed: int, demand: float = 1.0, cap_w: float = 1e5) -> Episode:
    streams = dict(zip(Purpose, np.random.default_rng(seed).spawn(len(Purpose)), strict=True))
    share = np.array([SITE.mix[cls.name] for cls in served_classes(SITE)])
    rate = demand * SITE.demand_rps * share[:, None] * np.array([1.0, 1.5, 0.5])
    cap = np.array([[-np.inf, cap_w, -np.inf], [70.0, 0.7 * cap_w, 10.0]])
    assert cap.shape[1] == len(CapStep)
    kept = np.zeros(0, dtype=np.bool_)
    return Episode(-INTERVAL_S, rate, np.full(3, 1e-3), cap, np.zeros(0), kept, streams, steady_world(p, 3))


def orders(p: Params, step: int, rows: int = 1) -> Decision:
    """Orders that differ from step to step: routing, clocks, racks and power limits all move."""
    draw = np.random.default_rng(1000 + step)
    pools = len(p.pool)
    bias = np.exp(draw.uniform(-2.0, 2.0, (2, p.capacity.shape[1], pools)))
    ceiling = draw.uniform(0.5, 1.0, pools)
    limit = np.where(draw.random(pools) < 0.7, np.inf, draw.uniform(4000.0, 12000.0, pools))
    target = np.maximum(1, np.round(draw.uniform(0.4, 1.0, pools) * RACKS)).astype(np.int64)
    return Decision(*(np.repeat(a[None], rows, axis=0) for a in (bias, ceiling, limit, target)))


def start(p: Params, seed: int, **options: int) -> Engine:
    engine = Engine(p, **options)
    for row in range(engine.rows):
        engine.begin(row, episode(p, seed + row))
    return engine


def advance(engine: Engine, begin: int, end: int) -> None:
    rows = np.arange(engine.rows)
    for step in range(begin, end):
        engine.step(rows, orders(engine.params, step, engine.rows))
        if step == 0:
            for row in rows:
                engine.open_window(int(row))


def assert_equal(a: State, b: State, row_a: int = 0, row_b: int = 0, skip: tuple[str, ...] = ()) -> None:
    for name in set(State._fields) - set(skip):
        left, right = getattr(a, name)[row_a], getattr(b, name)[row_b]
        if name in ("cohort", "link", "heap_key", "heap_slot", "log", "free"):
            continue  # places that are not in use hold whatever was there; `content` compares what counts
        np.testing.assert_array_equal(left, right, err_msg=name)
    for left, right in zip(content(a, row_a), content(b, row_b), strict=True):
        np.testing.assert_array_equal(left, right)


def content(state: State, row: int) -> tuple[np.ndarray, ...]:
    """Cohorts in the site, heaps up to their size, and the lines of the log."""
    busy = state.cohort_int[row, :, 0] != 0
    pieces = [state.cohort[row][busy], state.log[row, : state.site_int[row, SiteInt.LOGGED]]]
    for pool in range(state.pool.shape[1]):
        for line in (READY_LINE, SERVICE_LINE):
            due = int(state.pool_int[row, pool, PoolInt.READY_DUE + line])
            page = state.heap_key.shape[3] - int(state.pool_int[row, pool, PoolInt.READY_PAGE + line])
            for array in (state.heap_key[row, pool, line], state.heap_slot[row, pool, line]):
                pieces.extend((array[:due], array[page:]))
    return tuple(pieces)


# --------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_two_engines_in_one_process_are_bit_equal(grain: str) -> None:
    p = params(grain)
    a, b = start(p, 3, log_lines=500), start(p, 3, log_lines=500)
    for step in range(5):
        advance(a, step, step + 1)
        advance(b, step, step + 1)
        assert_equal(a.state, b.state)
    other = start(p, 4)
    advance(other, 0, 5)
    assert other.state.site[0, Site.ENERGY_J] != a.state.site[0, Site.ENERGY_J]


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_snapshot_run_restore_run(grain: str) -> None:
    p = params(grain)
    engine = start(p, 5, log_lines=500, slots=512)
    advance(engine, 0, 3)
    saved = engine.snapshot()
    advance(engine, 3, 6)
    first = engine.snapshot()
    engine.restore(saved)
    assert_equal(engine.state, saved.state)
    advance(engine, 3, 6)
    assert_equal(engine.state, first.state)
    # A snapshot is a value: running on changed neither it nor an engine restored from it elsewhere.
    elsewhere = Engine(p, log_lines=500, slots=512)
    elsewhere.restore(saved)
    advance(elsewhere, 3, 6)
    assert_equal(elsewhere.state, first.state)


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_a_row_of_a_batch_equals_a_single_row(grain: str) -> None:
    p = params(grain)
    batch = start(p, 7, rows=3)
    advance(batch, 0, 4)
    for row in range(3):
        single = start(p, 7 + row)
        advance(single, 0, 4)
        # Rows share the number of slots; which ones are free is the same only up to that number.
        assert_equal(single.state, batch.state, 0, row, skip=("site_int", "cohort_int"))
        columns = [SiteInt.TICK, SiteInt.ROUTED, SiteInt.SEGMENTS, SiteInt.EVENTS, SiteInt.HIGH_WATER]
        np.testing.assert_array_equal(single.state.site_int[0, columns], batch.state.site_int[row, columns])


def test_rows_may_be_stepped_one_at_a_time() -> None:
    p = params("cohort")
    together, apart = start(p, 11, rows=2), start(p, 11, rows=2)
    advance(together, 0, 3)
    for row in (1, 0):
        for step in range(3):
            apart.step(np.array([row]), orders(p, step))
            if step == 0:
                apart.open_window(row)
    for row in (0, 1):
        assert_equal(together.state, apart.state, row, row)


@pytest.mark.parametrize("grain", ["cohort", "request"])
def test_growing_arrays_change_nothing(grain: str) -> None:
    p = params(grain)
    small, large = start(p, 9, slots=128, log_lines=3000), start(p, 9, slots=8192, log_lines=3000)
    advance(small, 0, 5)
    advance(large, 0, 5)
    assert small.state.free.shape[1] > 128 or grain == "cohort"
    for name in ("site", "pool", "pool_int", "cls", "histogram", "log", "rng", "carry", "weight", "backlog"):
        np.testing.assert_array_equal(getattr(small.state, name), getattr(large.state, name), err_msg=name)


def test_growing_keeps_every_slot_once() -> None:
    p = params("cohort")
    engine = start(p, 2, slots=512)
    advance(engine, 0, 2)
    slots = 2 * engine.state.free.shape[1]
    grown = grow(engine.state, slots)
    free = grown.free[0, : grown.site_int[0, SiteInt.FREE]]
    used = np.flatnonzero(grown.cohort_int[0, :, 0])
    assert sorted([*free.tolist(), *used.tolist()]) == list(range(slots))
    assert_equal(engine.state, grown, skip=("site_int", "cohort_int"))


_RUN = """
import json, sys
import numpy as np
from ai_factory_gym.engine.layout import Class, Pool, Site
from tests.test_engine_units import advance, params, start
out = {}
for grain in ("cohort", "request"):
    engine = start(params(grain), 21, log_lines=300)
    advance(engine, 0, 3)
    s = engine.state
    out[grain] = [s.site[0].tolist(), s.pool[0].tolist(), s.cls[0].tolist(), s.rng[0].tolist(), s.log[0].tolist()]
json.dump(out, sys.stdout)
"""


@pytest.mark.slow
def test_the_source_without_jit_runs_the_same_trajectory() -> None:
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "envs"), os.environ.get("PYTHONPATH", "")])
    results = {}
    for off in ("0", "1"):
        environment = os.environ | {"NUMBA_DISABLE_JIT": off, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", _RUN], env=environment, capture_output=True, text=True, check=True)
        results[off] = json.loads(done.stdout)
    for grain in ("cohort", "request"):
        for compiled, plain in zip(results["0"][grain], results["1"][grain], strict=True):
            a, b = np.array(compiled, dtype=np.float64), np.array(plain, dtype=np.float64)
            # Sums of a thousand terms may be rounded in another order; nothing else may differ.
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)
    assert results["1"]["request"][0][Site.ENERGY_J] > 0.0


# --------------------------------------------------------------------------------------------------------------- racks


def racks_of(engine: Engine, pool: int) -> list[int]:
    columns = [PoolInt.ACTIVE, PoolInt.WAKING, PoolInt.DRAINING, PoolInt.ASLEEP]
    return [int(engine.state.pool_int[0, pool, column]) for column in columns]


def order(engine: Engine, pool: int, target: int, now_s: float) -> None:
    racks.order_racks(engine.params, engine.state, 0, pool, target, now_s)
    racks.advance_racks(engine.params, engine.state, 0, now_s)


def idle_engine() -> Engine:
    p = params("cohort")
    engine = Engine(p)
    engine.begin(0, episode(p, 1, demand=0.0))
    return engine


def test_racks_drain_sleep_wake_and_dwell() -> None:
    engine = idle_engine()
    wake_s, drain_s, dwell_s = engine.params.pool[2, [PoolSpec.WAKE_S, PoolSpec.DRAIN_S, PoolSpec.DWELL_S]]
    assert racks_of(engine, 2) == [5, 0, 0, 0]
    order(engine, 2, 2, 0.0)
    assert racks_of(engine, 2) == [2, 0, 3, 0]
    order(engine, 2, 2, drain_s - 1.0)
    assert racks_of(engine, 2) == [2, 0, 3, 0]
    order(engine, 2, 2, drain_s)
    assert racks_of(engine, 2) == [2, 0, 0, 3]
    order(engine, 2, 4, 200.0)
    assert racks_of(engine, 2) == [2, 2, 0, 1]
    order(engine, 2, 4, 200.0 + wake_s - 1.0)
    assert racks_of(engine, 2) == [2, 2, 0, 1]
    order(engine, 2, 1, 200.0 + wake_s)
    # Awake now, but the dwell time keeps them from going to sleep again.
    assert racks_of(engine, 2) == [4, 0, 0, 1]
    order(engine, 2, 1, 200.0 + wake_s + dwell_s - 1.0)
    assert racks_of(engine, 2) == [4, 0, 0, 1]
    order(engine, 2, 1, 200.0 + wake_s + dwell_s)
    assert racks_of(engine, 2) == [1, 0, 3, 1]


def test_draining_racks_are_called_back_before_sleeping_ones_are_woken() -> None:
    engine = idle_engine()
    order(engine, 2, 3, 0.0)
    order(engine, 2, 3, 500.0)
    order(engine, 2, 1, 600.0)
    assert racks_of(engine, 2) == [1, 0, 2, 2]
    order(engine, 2, 4, 610.0)
    assert racks_of(engine, 2) == [3, 1, 0, 1]
    order(engine, 2, 4, 5000.0)
    # The cancelled drain must not put racks to sleep later, nor cut a later drain short.
    assert racks_of(engine, 2) == [4, 0, 0, 1]
    order(engine, 2, 2, 9000.0)
    assert racks_of(engine, 2) == [2, 0, 2, 1]


def test_a_pool_that_may_be_empty_closes_and_opens_again() -> None:
    engine = idle_engine()
    order(engine, 3, 0, 0.0)
    assert engine.state.pool_int[0, 3, PoolInt.CLOSED] == 1
    order(engine, 3, 0, 1000.0)
    assert racks_of(engine, 3) == [0, 0, 0, 2]
    order(engine, 3, 1, 2000.0)
    assert engine.state.pool_int[0, 3, PoolInt.CLOSED] == 0
    order(engine, 3, 1, 2000.0 + engine.params.pool[3, PoolSpec.WAKE_S])
    assert racks_of(engine, 3) == [1, 0, 0, 1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 10.0, 130.0, 500.0, 2000.0])), max_size=80))
def test_racks_are_never_lost_however_they_are_ordered(story: list[tuple[int, float]]) -> None:
    engine = idle_engine()
    now_s = 0.0
    for target, gap_s in story:
        now_s += gap_s
        order(engine, 3, target, now_s)
        assert sum(racks_of(engine, 3)) == 2 and min(racks_of(engine, 3)) >= 0
    order(engine, 3, 2, now_s + 10_000.0)
    order(engine, 3, 2, now_s + 20_000.0)
    assert racks_of(engine, 3) == [2, 0, 0, 0]


# --------------------------------------------------------------------------------------------------------------- cells


def cells_of(cohorts: int, site: SiteConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of a site at cohort resolution with another number of cohorts, and each one's share of the requests."""
    classes = served_classes(site)
    grain = dataclasses.replace(resolution("cohort"), cohorts=cohorts)
    cell = build_params(site, classes, grain, control_interval_s=INTERVAL_S).cell
    mix = np.array([site.mix[cls.name] for cls in classes])
    return cell, mix[cell[:, Cell.CLASS].astype(int)] * cell[:, Cell.WEIGHT] / mix.sum()


@pytest.mark.parametrize("site", ["edge", "hyperscale"])
def test_cells_put_together_or_cut_keep_what_arrives(site: str) -> None:
    plain, plain_share = cells_of(0, load_site(site))
    kinds = [(row[Cell.CLASS], row[Cell.PROMPT]) for row in plain]
    for cohorts in (1, 13, 46, 300):
        cell, share = cells_of(cohorts, load_site(site))
        for cls, prompt in set(kinds):
            before = (plain[:, Cell.CLASS] == cls) & (plain[:, Cell.PROMPT] == prompt)
            after = (cell[:, Cell.CLASS] == cls) & (cell[:, Cell.PROMPT] == prompt)
            assert share[after].sum() == pytest.approx(plain_share[before].sum(), rel=1e-9)
            for column in (Cell.PROMPT_SQ, Cell.GROUP, Cell.OUTPUT, Cell.OUTPUT_SQ):
                means = [
                    weight[mine] @ table[mine, column]
                    for table, weight, mine in ((plain, plain_share, before), (cell, share, after))
                ]
                assert means[1] == pytest.approx(means[0], rel=1e-6)


def test_a_cell_carries_about_a_cohort_and_small_ones_go_together() -> None:
    counts = []
    for cohorts in (10, 20, 46, 80, 160):
        cell, share = cells_of(cohorts, SITE)
        carried = share[:, None] * np.stack([np.ones(len(cell)), cell[:, Cell.PROMPT], cell[:, Cell.OUTPUT]], axis=1)
        largest = (carried / carried.sum(axis=0)).max(axis=1)
        # Parts are equal in number, not in tokens: those of the longest answers carry more.
        assert largest.max() * cohorts <= 3.0
        counts.append(len(cell))
    assert counts == sorted(counts)
    strata = len(cells_of(0, SITE)[0])
    prompts = len({(row[Cell.CLASS], row[Cell.PROMPT]) for row in cells_of(0, SITE)[0]})
    assert len(cells_of(1, SITE)[0]) == prompts < strata < len(cells_of(160, SITE)[0])


@pytest.mark.parametrize("site", ["edge", "hyperscale"])
def test_whatever_their_number_cells_bring_tokens_evenly_over_a_tick(site: str) -> None:
    for cohorts in range(5, 90):
        cell, share = cells_of(cohorts, load_site(site))
        tokens = share * cell[:, Cell.OUTPUT]
        tokens /= tokens.sum()
        ahead = np.cumsum(tokens) - np.arange(1, len(cell) + 1) / len(cell)
        assert np.abs(ahead).max() <= 3.5 * tokens.max()


def test_cohorts_of_a_tick_arrive_in_the_order_of_the_cells() -> None:
    p = params("cohort")
    engine = Engine(p)
    # Nearly every cell has requests, and no decode pool is full in an empty site.
    engine.begin(0, episode(p, 4, demand=50.0))
    state, begin_s = engine.state, float(engine.state.site[0, Site.TIME_S])
    admit(p, state, 0, begin_s, float(p.site[SiteSpec.TICK_S]), begin_s)
    cohort = state.cohort[0, state.cohort_int[0, :, CohortInt.STAGE] == Stage.INBOX]
    classes = state.cohort_int[0, state.cohort_int[0, :, CohortInt.STAGE] == Stage.INBOX, CohortInt.CLASS]
    order = np.argsort(cohort[:, Cohort.ARRIVAL_S])
    arrived = list(zip(classes[order].tolist(), cohort[order, Cohort.PROMPT].tolist(), strict=True))
    cells = [tuple(row) for row in p.cell[:, [Cell.CLASS, Cell.PROMPT]].tolist()]
    assert len(arrived) > 0.8 * len(cells)

    def walks(first: int) -> bool:
        """Tell whether what arrived is met in order on one walk round the cells from ``first``; empty ones are passed by."""
        rest = iter(cells[first:] + cells[:first])
        return all(cohort in rest for cohort in arrived)

    assert any(walks(first) for first in range(len(cells)))


# ----------------------------------------------------------------------------------------------------------- the draw


@settings(max_examples=150, deadline=None)
@given(
    pool=st.sampled_from([2, 3]),
    clock=st.floats(0.2, 1.0),
    requests=st.floats(10.0, 30_000.0),
    coming=st.floats(0.0, 15.0),
    paced=st.floats(0.25, 4.0),
    context=st.floats(300.0, 10_000.0),
    longer=st.floats(0.5, 2.0),
)
@example(pool=2, clock=0.35, requests=300.0, coming=15.0, paced=4.0, context=3000.0, longer=1.0)
def test_a_bound_of_the_draw_holds_on_the_way_from_one_batch_to_another(
    pool: int, clock: float, requests: float, coming: float, paced: float, context: float, longer: float
) -> None:
    """At low clocks decode draws most at a batch in between, and while its pace follows, contexts are those of before."""
    engine = idle_engine()
    p, state = engine.params, engine.state
    numbers = state.pool[0, pool]
    numbers[Pool.IN_FLIGHT] = requests
    numbers[Pool.CONTEXT] = numbers[Pool.RESERVED] = requests * context
    numbers[Pool.PACED_IN_FLIGHT] = paced * requests
    numbers[Pool.PACED_CONTEXT] = paced * requests * longer * context
    numbers[Pool.WAITING] = coming * requests
    numbers[Pool.WAITING_TOKENS] = coming * requests * context
    bound_w = draw._most_power_w(p, state, 0, pool, 5.0, clock, 1.0)
    replicas = racks_of(engine, pool)[0] * p.pool[pool, PoolSpec.REPLICAS_PER_RACK]
    room = replicas * min(numbers[Pool.MAX_BATCH], p.perf[pool, DECODE_KV_CAPACITY_TOKENS] / context)
    most = max(requests, paced * requests, min((1.0 + coming) * requests, room))
    for batch in np.geomspace(min(1.0, paced) * requests, most, 9):
        for held in (context, longer * context):
            assert draw._decode_power_w(p, state, 0, pool, clock, 1.0, batch, held) <= bound_w / draw.SURE


# ------------------------------------------------------------------------------------------------------------- routing


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.02, 1.0), min_size=2, max_size=2), st.integers(0, 2**31))
def test_requests_follow_their_shares_to_within_one(weights: list[float], seed: int) -> None:
    engine = idle_engine()
    share = np.array(weights) / sum(weights)
    state = engine.state
    state.weight[0, PREFILL, 0] = 0.0
    state.weight[0, PREFILL, 0, :2] = share
    state.carry[0] = 0.0
    got = np.zeros(4)
    for count in range(1, 300):
        got[route_request(engine.params, state, 0, PREFILL, 0)] += 1.0
        assert np.all(np.abs(got[:2] - share * count) <= 1.0 + 1e-9)
    assert got[2:].sum() == 0.0


def test_cohorts_follow_their_shares_among_those_of_their_size() -> None:
    engine = idle_engine()
    state = engine.state
    share = np.array([0.0, 0.0, 0.62, 0.38])
    state.weight[0, DECODE, 0] = share
    state.carry[0] = 0.0
    draw = np.random.default_rng(3)
    size = draw.lognormal(5.0, 1.5, 5000)
    work = size * draw.poisson(50.0, 5000)
    kinds = np.array([size_class(float(s)) for s in size])
    pool = np.array(
        [route(engine.params, state, 0, DECODE, 0, int(k), float(w)) for k, w in zip(kinds, work, strict=True)]
    )
    assert len(np.unique(kinds)) > 8
    for kind in np.unique(kinds):
        mine = kinds == kind
        sums = np.stack([np.cumsum(np.where(pool[mine] == p, work[mine], 0.0)) for p in range(4)], axis=1)
        # At any time, not only in the end, no pool is further from its share than the largest cohort.
        owed = sums - share * np.cumsum(work[mine])[:, None]
        assert np.all(np.abs(owed) <= 1.001 * work[mine].max())


@pytest.mark.parametrize("share", [0.1, 0.24, 0.5, 0.8])
def test_small_cohorts_do_not_go_to_small_shares(share: float) -> None:
    engine = idle_engine()
    state = engine.state
    state.weight[0, DECODE, 0] = np.array([0.0, 0.0, share, 1.0 - share])
    state.carry[0] = 0.0
    # Long prompts are rare: their cohorts are the small ones of their outputs.
    small = np.random.default_rng(5).random(20_000) < 0.5
    pool = np.array([route(engine.params, state, 0, DECODE, 0, 7, 1.0 if each else 20.0) for each in small])
    assert (pool[small] == 2).mean() == pytest.approx(share, abs=0.02)
    assert (pool[~small] == 2).mean() == pytest.approx(share, abs=0.02)


def test_turns_are_even_over_ticks_and_over_cells() -> None:
    turns = np.array([[turn(tick, place) for place in range(120)] for tick in range(120)])
    assert np.all((turns >= 0.0) & (turns < 1.0))
    for share in (0.08, 0.3, 0.5):
        assert np.all(np.abs((turns < share).mean(axis=0) - share) <= 0.03)
        assert np.all(np.abs((turns < share).mean(axis=1) - share) <= 0.03)


def test_shares_follow_capacity_bias_clock_and_closed_pools() -> None:
    engine = idle_engine()
    p, state = engine.params, engine.state
    ones = np.ones(4)

    def shares(phase: int, bias: np.ndarray) -> np.ndarray:
        kernel.set_routing(p, state, 0, phase, 0, bias)
        return state.weight[0, phase, 0].copy()

    expected = p.capacity[PREFILL, 0] * RACKS
    np.testing.assert_allclose(shares(PREFILL, ones), expected / expected.sum())
    state.pool[0, 0, Pool.CLOCK_CEILING] = 0.5
    expected[0] *= 0.5
    np.testing.assert_allclose(shares(PREFILL, ones), expected / expected.sum())
    np.testing.assert_allclose(shares(DECODE, np.array([1.0, 1.0, 1e-6, 1.0])), [0.0, 0.0, 0.0, 1.0])
    state.pool_int[0, 3, PoolInt.CLOSED] = 1
    np.testing.assert_allclose(shares(DECODE, ones), [0.0, 0.0, 1.0, 0.0])
    state.pool_int[0, 2:, PoolInt.ACTIVE] = 0
    assert shares(DECODE, ones).sum() == pytest.approx(1.0)
    state.pool_int[0, 3, PoolInt.WAKING] = 1
    np.testing.assert_allclose(shares(DECODE, ones), [0.0, 0.0, 0.0, 1.0])


def test_the_cache_of_kernels_depends_on_every_source_of_kernels() -> None:
    """Compiled kernels are kept on disk: one that calls a kernel of another file must not outlive a change of it."""
    package = Path(jit.__file__).parent
    with_kernels = {
        path
        for path in package.rglob("*.py")
        if re.search(r"^@(inlined_)?kernel$|= (inlined_)?kernel\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    # Nothing but Python calls these.
    top = {package / "control_step.py"}
    assert top <= with_kernels
    assert with_kernels - top <= set(jit.shared_sources())


# ---------------------------------------------------------------------------------------------------------- references


def _some_state() -> State:
    return allocate(
        rows=3,
        pools=2,
        classes=2,
        groups=2,
        cells=5,
        slots=9,
        minutes=4,
        backlog_bins=3,
        transitions=3,
        cap_steps=3,
        copies=1,
        trace_requests=0,
        log_lines=0,
        coefficients=(15, 12),
    )


@njit(_nrt=False)  # type: ignore[untyped-decorator]
def _touch(handed: Any, row: int, pool: int) -> float:
    state = state_of(handed)
    numbers = state.pool[row, pool]
    numbers[Pool.CLOCK] += 1.0
    state.cohort_int[row, pool, 2] += 7
    state.carry[row, 1, 0, :, pool] = 3.0
    return float(numbers[Pool.CLOCK] + state.cohort_int[row, pool, 2] + 100.0 * state.cohort.shape[1])


def test_kernels_find_the_arrays_of_a_reference_and_those_of_its_copies() -> None:
    state = _some_state()
    state.pool[2, 1, Pool.CLOCK] = 20.0
    reference = Reference(state)
    assert _touch(reference.handed, 2, 1) == 928.0
    assert state.pool[2, 1, Pool.CLOCK] == 21.0
    assert state.carry[2, 1, 0, :, 1].tolist() == [3.0] * state.carry.shape[3]
    assert state.carry.sum() == 3.0 * state.carry.shape[3]
    for other in (copy.deepcopy(reference), pickle.loads(pickle.dumps(reference))):
        assert _touch(other.handed, 2, 1) == 936.0
    assert state.pool[2, 1, Pool.CLOCK] == 21.0


def test_a_reference_refuses_arrays_that_kernels_do_not_expect() -> None:
    state = _some_state()
    for wrong in (
        state.pool.astype(np.float32),
        state.pool[:, :, :-1].copy(),
        state.pool[:, ::2],
        state.pool[0],
    ):
        with pytest.raises(TypeError, match="pool"):
            Reference(state._replace(pool=wrong))


OUT_OF_BOUNDS = """
from ai_factory_gym.engine.layout import Pool, allocate
from ai_factory_gym.engine.reference import _COEFFICIENTS, Reference, state_of
from ai_factory_gym.jit import inlined_kernel, kernel
import inspect

sizes = [name for name in inspect.signature(allocate).parameters if name != "coefficients"]
reference = Reference(allocate(**dict.fromkeys(sizes, 2), coefficients=_COEFFICIENTS))


@inlined_kernel
def inner(state, row, pool, column):
    return state.pool[row][pool, column]


@kernel
def read(table, row, pool, column):
    return inner(state_of(table), row, pool, column)


@kernel
def write(table, row, pool, column):
    of_pool = state_of(table).pool[row, pool]
    of_pool[column] = 1.0


for touch in (read, write):
    touch(reference.handed, 1, 1, len(Pool) - 1)
    for place in ((2, 0, 0), (-1, 0, 0), (0, 2, 0), (0, -1, 0), (0, 0, len(Pool)), (0, 0, -1)):
        try:
            touch(reference.handed, *place)
        except IndexError:
            continue
        raise SystemExit(f"{touch.py_func.__name__} of {place} was not noticed")
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="is about compiled kernels")
def test_an_index_out_of_bounds_is_found_where_it_is_asked_for(tmp_path: Path) -> None:
    # An index that is never negative is not asked for its sign: this is how one that is can be found.
    script = tmp_path / "out_of_bounds.py"
    script.write_text(OUT_OF_BOUNDS, encoding="utf-8")
    asked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], env=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
