"""Pools at request resolution, whose kernels take arrivals and departures in rows, against simulations that go one by one."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ai_factory_gym.engine import calendar, ledger, lists
from ai_factory_gym.engine.decode import AT_ONCE, advance_decode
from ai_factory_gym.engine.layout import (
    READY_LINE,
    SERVICE_LINE,
    ClassSpec,
    Cohort,
    CohortInt,
    Log,
    Pool,
    PoolInt,
    PoolSpec,
    Purpose,
    Site,
    SiteInt,
    SiteSpec,
    Stage,
)
from ai_factory_gym.engine.prefill import advance_prefill
from ai_factory_gym.engine.simulator import Engine, Episode
from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    decode_iteration_s,
    prefill_work_s,
)
from ai_factory_gym.sites import load_site
from tests.oracles.cases import steady_world

SITE = load_site("edge")
PREFILL_POOL, DECODE_POOL = 0, 2
CLOCK = 0.8


def engine_of(requests: int) -> Engine:
    """Return an engine of an empty site in which nobody loses patience, its window open."""
    p = build_params(SITE, served_classes(SITE), resolution("request"), control_interval_s=30.0)
    cls = p.cls.copy()
    cls[:, ClassSpec.PATIENCE_S] = np.inf
    p = p._replace(cls=cls)
    engine = Engine(p, slots=2 * requests + 4096, log_lines=requests)
    streams = dict(zip(Purpose, np.random.default_rng(0).spawn(len(Purpose)), strict=True))
    cap = np.array([[-np.inf, 1e9, -np.inf]])
    rate = np.zeros((len(cls), 2))
    none = np.zeros(0)
    engine.begin(
        0, Episode(0.0, rate, np.full(2, 1e-3), cap, none, np.zeros(0, dtype=np.bool_), streams, steady_world(p, 2))
    )
    engine.open_window(0)
    return engine


def enter(engine: Engine, stage: Stage, time_s: float, prompt: float, output: float) -> int:
    """Create a request in front of ``DECODE_POOL``."""
    state = engine.state
    slot = ledger.take_slot(state, 0)
    state.cohort[0, slot] = 0.0
    cohort = state.cohort[0, slot]
    cohort[[Cohort.COUNT, Cohort.PROMPT, Cohort.PROMPT_SQ, Cohort.OUTPUT]] = 1.0, prompt, prompt**2, output
    cohort[[Cohort.ARRIVAL_S, Cohort.KEY, Cohort.DEADLINE_S, Cohort.FIRST_TOKEN_S]] = time_s, time_s, np.inf, np.nan
    ints = state.cohort_int[0, slot]
    ints[[CohortInt.STAGE, CohortInt.CLASS, CohortInt.SCORED, CohortInt.DECIDED]] = stage, 0, 1, 0
    ints[[CohortInt.PREFILL_POOL, CohortInt.DECODE_POOL]] = PREFILL_POOL, DECODE_POOL
    state.pool_int[0, [PREFILL_POOL, DECODE_POOL], PoolInt.ASSIGNED] += 1
    state.pool[0, DECODE_POOL, Pool.WAITING] += 1.0
    state.pool[0, DECODE_POOL, Pool.WAITING_TOKENS] += prompt + output
    return slot


# -------------------------------------------------------------------------------------------------------------- prefill


@dataclass(frozen=True)
class Segment:
    """A time of constant settings."""

    begin_s: float
    end_s: float
    clock: float
    duty: float
    begin_w: float

    @property
    def speed(self) -> float:
        return float(compute_rate(self.clock)) * self.duty

    @property
    def end_w(self) -> float:
        return self.begin_w + self.speed * (self.end_s - self.begin_s)


def segments_of(lengths: list[float], draw: np.random.Generator) -> list[Segment]:
    found: list[Segment] = []
    for length in lengths:
        begin_s, begin_w = (found[-1].end_s, found[-1].end_w) if found else (0.0, 0.0)
        duty = draw.choice([1.0, 0.6, 0.0])
        found.append(Segment(begin_s, begin_s + length, draw.uniform(0.4, 1.0), duty, begin_w))
    return found


@settings(max_examples=25, deadline=None)
@given(
    load=st.floats(0.2, 2.0),
    lengths=st.lists(st.floats(0.01, 0.6), min_size=1, max_size=6),
    lumps=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(load=0.5, lengths=[2.0], lumps=False, seed=1)
@example(load=2.0, lengths=[0.5, 0.5], lumps=True, seed=2)
def test_prefill_serves_first_come_first_served(load: float, lengths: list[float], lumps: bool, seed: int) -> None:
    """On the service clock a pool is a queue with many servers: who comes gets the one that is free first."""
    draw = np.random.default_rng(seed)
    segments = segments_of(lengths, draw)
    engine = engine_of(60_000)
    p, state = engine.params, engine.state
    perf, numbers, ints = state.perf[0, PREFILL_POOL], state.pool[0, PREFILL_POOL], state.pool_int[0, PREFILL_POOL]
    racks = int(ints[PoolInt.ACTIVE])
    servers = int(racks * p.pool[PREFILL_POOL, PoolSpec.UNITS_PER_RACK])
    typical_s = sum(prefill_work_s(perf, 1500.0, 1500.0**2))
    until_s = segments[-1].end_s
    count = min(20_000, int(load * servers / typical_s * until_s))
    arrival_s = np.sort(draw.uniform(0.0, until_s, count))
    if lumps:
        arrival_s = np.floor(arrival_s * 40.0) / 40.0
    prompt = np.round(np.minimum(draw.lognormal(6.9, 0.8, count), 60_000.0))
    slots = []
    for time_s, tokens in zip(arrival_s, prompt, strict=True):
        slots.append(enter(engine, Stage.INBOX, float(time_s), float(tokens), 100.0))
        lists.append(state, 0, PREFILL_POOL, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL, slots[-1])
    busy_s, compute_s, memory_s = [], [], []
    for segment in segments:
        numbers[[Pool.CLOCK, Pool.DUTY]] = segment.clock, segment.duty
        numbers[[Pool.BUSY_S, Pool.COMPUTE_S, Pool.MEMORY_S]] = 0.0
        advance_prefill(p, state, 0, PREFILL_POOL, segment.end_s)
        busy_s.append(float(numbers[Pool.BUSY_S]))
        compute_s.append(float(numbers[Pool.COMPUTE_S]))
        memory_s.append(float(numbers[Pool.MEMORY_S]))
        in_service = int(ints[PoolInt.SERVING])
        assert numbers[Pool.SHARE_COMPUTE] + numbers[Pool.SHARE_MEMORY] <= in_service + 1e-9

    def segment_at(clock_w: float) -> Segment:
        return next((each for each in segments if clock_w < each.end_w), segments[-1])

    def time_at(clock_w: float) -> float:
        at = segment_at(clock_w)
        return at.begin_s + (clock_w - at.begin_w) / at.speed

    free_w = [0.0] * servers
    started, finished, shares, streams = [], [], [], []
    for time_s, tokens in zip(arrival_s, prompt, strict=True):
        at = next(each for each in segments if time_s < each.end_s)
        start_w = max(heapq.heappop(free_w), at.begin_w + at.speed * (time_s - at.begin_s))
        scaling, fixed = prefill_work_s(perf, tokens, tokens**2)
        rate = float(compute_rate(segment_at(start_w).clock))
        heapq.heappush(free_w, start_w + scaling + fixed * rate)
        started.append(start_w)
        finished.append(start_w + scaling + fixed * rate)
        shares.append(scaling / (scaling + fixed * rate))
        streams.append(perf[2] * tokens * rate / (scaling + fixed * rate))
    start_w, finish_w = np.array(started), np.array(finished)
    end_w = segments[-1].end_w
    # Nobody is within rounding of the last moment.
    assert int(ints[PoolInt.SERVING]) == np.sum((start_w < end_w) & (finish_w >= end_w))
    assert numbers[Pool.QUEUED] == np.sum(start_w >= end_w)
    for index, segment in enumerate(segments):
        overlap_w = np.clip(np.minimum(finish_w, segment.end_w) - np.maximum(start_w, segment.begin_w), 0.0, None)
        overlap_s = overlap_w / compute_rate(segment.clock) / servers
        assert busy_s[index] == pytest.approx(overlap_s.sum(), rel=1e-9, abs=1e-12)
        assert compute_s[index] == pytest.approx((overlap_s * shares).sum(), rel=1e-9, abs=1e-12)
        assert memory_s[index] == pytest.approx((overlap_s * streams).sum(), rel=1e-9, abs=1e-12)
    own = perf[PREFILL_TRANSFER_BYTES_PER_S]
    links = own * max(1.0, racks * p.pool[PREFILL_POOL, PoolSpec.REPLICAS_PER_RACK])
    free_s, ready_s = 0.0, {}
    for place in np.argsort(finish_w, kind="stable"):
        if finish_w[place] < end_w:
            sent = prompt[place] * perf[PREFILL_KV_BYTES_PER_TOKEN]
            now_s = time_at(finish_w[place])
            free_s = max(free_s, now_s) + sent / links
            ready_s[slots[place]] = now_s + max(free_s - now_s, sent / own) + perf[PREFILL_FRONTEND_S]
    found = calendar.gather(state, 0, DECODE_POOL, READY_LINE)
    assert found == len(ready_s)
    seen = state.heap_slot[0, DECODE_POOL, READY_LINE, :found]
    np.testing.assert_allclose(
        state.heap_key[0, DECODE_POOL, READY_LINE, :found], [ready_s[int(slot)] for slot in seen], rtol=0, atol=1e-9
    )


# --------------------------------------------------------------------------------------------------------------- decode


@dataclass(frozen=True)
class Decoded:
    """What becomes of requests: times, s (nan where there is none yet), and integrals over time."""

    first_s: np.ndarray
    last_s: np.ndarray
    batch_s: float
    generated: float
    context: float


def decode_one_by_one(
    perf: np.ndarray,
    replicas: float,
    room: tuple[float, float],
    ready_s: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    end_s: float,
) -> Decoded:
    """Decode requests in order of when they are ready, the pace anew at every event; ``room`` is KV tokens and batch places."""
    first_s, last_s = np.full(len(ready_s), np.nan), np.full(len(ready_s), np.nan)
    per_iteration = perf[DECODE_TOKENS_PER_ITERATION]
    span = per_iteration + output - 1.0
    held = prompt + output + perf[DECODE_KV_REQUEST_TOKENS]
    order = np.argsort(ready_s, kind="stable")
    batch: list[tuple[float, int]] = []
    time_s = clock_g = context = emitting = reserved = batch_s = generated = 0.0
    coming = 0
    entered = -1
    while True:
        iteration = speed = 0.0
        if batch:
            iteration = decode_iteration_s(perf, max(1.0, len(batch) / replicas), context / len(batch), CLOCK)[0]
            speed = per_iteration / iteration
        if entered >= 0:
            first_s[entered] = time_s + iteration
            entered = -1
        finish_s = time_s + (batch[0][0] - clock_g) / speed if batch else math.inf
        enter_s = math.inf
        if coming < len(order):
            after = order[coming]
            if reserved + held[after] <= room[0] and len(batch) + 1 <= room[1]:
                enter_s = max(time_s, ready_s[after])
        next_s = min(finish_s, enter_s, end_s)
        batch_s += len(batch) * (next_s - time_s)
        generated += emitting * speed * (next_s - time_s)
        context += emitting * speed * (next_s - time_s)
        clock_g += speed * (next_s - time_s)
        time_s = next_s
        if time_s >= end_s:
            return Decoded(first_s, last_s, batch_s, generated, context)
        if finish_s <= enter_s:
            gone = heapq.heappop(batch)[1]
            last_s[gone] = time_s
            context -= prompt[gone] + output[gone]
            reserved -= held[gone]
            emitting -= output[gone] / span[gone]
        else:
            entered = int(order[coming])
            coming += 1
            heapq.heappush(batch, (clock_g + span[entered], entered))
            context += prompt[entered]
            reserved += held[entered]
            emitting += output[entered] / span[entered]


@pytest.mark.parametrize("limit", ["none", "memory", "places"])
@pytest.mark.parametrize(("per_s", "outputs"), [(30.0, 60.0), (600.0, 250.0), (2400.0, 250.0)])
@pytest.mark.parametrize("comes_s", [8.0, 2.0])
def test_decode_in_rows_is_decode_one_by_one(limit: str, per_s: float, outputs: float, comes_s: float) -> None:
    """Requests come all the time, or for two seconds only, after which the batch gets smaller and faster."""
    draw = np.random.default_rng(round(per_s))
    until_s = 8.0
    count = int(per_s * comes_s)
    engine = engine_of(count)
    p, state = engine.params, engine.state
    numbers, ints, perf = state.pool[0, DECODE_POOL], state.pool_int[0, DECODE_POOL], state.perf[0, DECODE_POOL]
    replicas = ints[PoolInt.ACTIVE] * p.pool[DECODE_POOL, PoolSpec.UNITS_PER_RACK]
    ready_s = np.sort(draw.uniform(0.0, comes_s, count))
    # Some at the same time.
    ready_s[1::7] = ready_s[0::7][: len(ready_s[1::7])]
    prompt = np.round(draw.lognormal(6.5, 1.0, count)) + 1.0
    output = np.round(draw.exponential(outputs, count)) + 1.0
    numbers[[Pool.CLOCK, Pool.DUTY]] = CLOCK, 1.0
    tokens, places = replicas * perf[DECODE_KV_CAPACITY_TOKENS], replicas * numbers[Pool.MAX_BATCH]
    free = decode_one_by_one(perf, replicas, (tokens, places), ready_s, prompt, output, until_s)
    at_most = free.batch_s / until_s
    if limit == "memory":
        tokens = math.floor(0.6 * at_most) * np.mean(prompt + output)
        numbers[Pool.HELD] = replicas * perf[DECODE_KV_CAPACITY_TOKENS] - tokens
    elif limit == "places":
        places = math.floor(0.6 * at_most)
        numbers[Pool.MAX_BATCH] = places / replicas
    expected = decode_one_by_one(perf, replicas, (tokens, places), ready_s, prompt, output, until_s)
    if limit != "none":
        assert np.isnan(expected.first_s).sum() > 0.05 * count
    for time_s, before, after in zip(ready_s, prompt, output, strict=True):
        slot = enter(engine, Stage.TRANSFER, float(time_s), float(before), float(after))
        calendar.schedule(state, 0, DECODE_POOL, READY_LINE, slot, float(time_s), p.site[SiteSpec.DAYS_PER_S])
    most = 0.0
    for end_s in np.linspace(0.0, until_s, 33)[1:]:
        advance_decode(p, state, 0, DECODE_POOL, float(end_s))
        most = max(most, float(numbers[Pool.IN_FLIGHT]))
        assert numbers[Pool.RESERVED] <= tokens * (1.0 + 1e-9)
        assert numbers[Pool.IN_FLIGHT] <= places + 1e-9
    # Both ways of the kernel are taken: event by event, and in rows.
    if limit == "none":
        assert (AT_ONCE * most >= 1.0) == (per_s > 500.0)
    served = state.log[0, : state.site_int[0, SiteInt.LOGGED]]
    order = np.lexsort((served[:, Log.OUTPUT], served[:, Log.PROMPT], served[:, Log.ARRIVAL_S]))
    served = served[order]
    done = ~np.isnan(expected.last_s)
    mine = np.lexsort((output[done], prompt[done], ready_s[done]))
    assert abs(len(served) - done.sum()) <= 2 + 1e-3 * done.sum()
    # Whoever is done by then in one of the two only is left out.
    keys = {tuple(line) for line in served[:, [Log.ARRIVAL_S, Log.PROMPT, Log.OUTPUT]]}
    theirs = np.stack([ready_s[done][mine], prompt[done][mine], output[done][mine]], axis=1)
    both = np.array([tuple(line) in keys for line in theirs])
    shared = {tuple(line) for line in theirs[both]}
    also = np.array([tuple(line) in shared for line in served[:, [Log.ARRIVAL_S, Log.PROMPT, Log.OUTPUT]]])
    ttft_s = (expected.first_s - ready_s)[done][mine][both]
    np.testing.assert_allclose(served[also, Log.TTFT_S], ttft_s, rtol=0.005, atol=0.002)
    several = output[done][mine][both] > 1.0
    tpot_s = ((expected.last_s - expected.first_s)[done][mine] / np.maximum(1.0, output[done][mine] - 1.0))[both]
    np.testing.assert_allclose(served[also, Log.TPOT_S][several], tpot_s[several], rtol=0.002)
    assert numbers[Pool.STEP_BATCH_S] == pytest.approx(expected.batch_s, rel=5e-4)
    assert numbers[Pool.KV_TOKENS_GENERATED] == pytest.approx(expected.generated, rel=5e-4)
    assert numbers[Pool.CONTEXT] == pytest.approx(expected.context, rel=2e-3, abs=1e-6)
    # Tokens balance to rounding, whatever the order of events.
    inside = state.cohort[0, state.cohort_int[0, :, CohortInt.STAGE] == Stage.DECODING]
    span = perf[DECODE_TOKENS_PER_ITERATION] + inside[:, Cohort.OUTPUT] - 1.0
    emitted = inside[:, Cohort.OUTPUT] * (numbers[Pool.G] - inside[:, Cohort.G_ADMIT]) / span
    assert numbers[Pool.CONTEXT] == pytest.approx((inside[:, Cohort.PROMPT] + emitted).sum(), rel=1e-9)
    assert numbers[Pool.KV_TOKENS_GENERATED] == pytest.approx(emitted.sum() + served[:, Log.OUTPUT].sum(), rel=1e-9)
    assert numbers[Pool.IN_FLIGHT] == len(inside) == ints[PoolInt.READY + SERVICE_LINE]
    assert state.site[0, Site.OUTPUT_TOKENS] == pytest.approx(numbers[Pool.KV_TOKENS_GENERATED])


def test_a_batch_that_empties_is_exactly_empty() -> None:
    engine = engine_of(4000)
    p, state = engine.params, engine.state
    numbers = state.pool[0, DECODE_POOL]
    numbers[[Pool.CLOCK, Pool.DUTY]] = CLOCK, 1.0
    draw = np.random.default_rng(5)
    for time_s in np.sort(draw.uniform(0.0, 0.5, 3000)):
        slot = enter(engine, Stage.TRANSFER, float(time_s), 300.0, float(draw.integers(1, 90)))
        calendar.schedule(state, 0, DECODE_POOL, READY_LINE, slot, float(time_s), p.site[SiteSpec.DAYS_PER_S])
    for end_s in np.arange(0.25, 60.0, 0.25):
        numbers[Pool.BUSY_S] = 0.0
        advance_decode(p, state, 0, DECODE_POOL, float(end_s))
        assert -1e-12 <= numbers[Pool.BUSY_S] <= 0.25 + 1e-12
    assert state.site_int[0, SiteInt.LOGGED] == 3000
    for column in (Pool.IN_FLIGHT, Pool.EMITTING, Pool.LEAVING, Pool.FREEING, Pool.CONTEXT, Pool.RESERVED, Pool.BUSY_S):
        assert numbers[column] == 0.0, column
    # Else power would be foreseen for a batch that is gone.
    assert numbers[Pool.PACED_IN_FLIGHT] == numbers[Pool.PACED_CONTEXT] == 0.0
    # Their pace may change before they leave, but an answer of one token has none.
    served = state.log[0, :3000]
    assert np.sum(served[:, Log.OUTPUT] == 1.0) > 10
    assert served[served[:, Log.OUTPUT] == 1.0, Log.MET].all()
