"""A prefill pool over one segment of constant settings: arrivals, first-come-first-served prefill, KV hand-over.

Both resolutions take arrivals from the pool's inbox (a linked list in order of arrival) and hand finished cohorts to the
ready line of their decode pool. At request resolution every server is simulated. At cohort resolution the pool is a fluid
queue: work flows in at a constant rate over the tick and a cohort starts when the pool has served what was ahead of it.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.cache import begin_prefill, has_cache
from ai_factory_gym.engine.calendar import find_next, schedule, take
from ai_factory_gym.engine.health import units_per_rack, working_share
from ai_factory_gym.engine.layout import (
    COHORT,
    NOBODY,
    READY_LINE,
    SERVICE_LINE,
    SHARE_IN_PREFILL,
    Array,
    ClassSpec,
    Cohort,
    CohortInt,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteInt,
    SiteSpec,
    Stage,
    State,
)
from ai_factory_gym.engine.ledger import reject
from ai_factory_gym.engine.lists import append, take_first
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import (
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_OVERHEAD_PER_TOKEN_S,
    PREFILL_STREAM_PER_TOKEN_S,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    prefill_work_s,
)

_IN_A_ROW = 64
"""Most arrivals that are gone through before those who finish meanwhile: what is known of them stays in the first-level cache."""


@inlined_kernel
def uncached_work_s(perf: Array, cohort: Array) -> tuple[float, float]:
    """Return the work of one request at clock 1 in its scaling and its fixed part, s, as a mean over the cohort's requests."""
    return prefill_work_s(
        perf, cohort[Cohort.PROMPT] - cohort[Cohort.CACHED], cohort[Cohort.PROMPT_SQ] - cohort[Cohort.CACHED_SQ]
    )


@inlined_kernel
def server_seconds(perf: Array, cohort: Array, rate: float) -> float:
    """Return the time one request occupies a server, in units of the service clock, its fixed part converted at ``rate``.

    Args:
        perf: Prefill coefficients of the pool.
        cohort: float64[Cohort].
        rate: Relative compute rate at the present clock.
    """
    scaling, fixed = uncached_work_s(perf, cohort)
    return scaling + fixed * rate


@inlined_kernel
def links_bytes_per_s(params: Params, state: State, row: int, pool: int) -> float:
    """Return how fast a pool's replicas together can send KV over their scale-out links."""
    racks = state.pool_int[row, pool, PoolInt.ACTIVE] + state.pool_int[row, pool, PoolInt.DRAINING]
    replicas = max(1.0, racks * (params.pool[pool, PoolSpec.REPLICAS_PER_RACK] * working_share(state, row, pool)))
    return float(state.perf[row, pool, PREFILL_TRANSFER_BYTES_PER_S] * replicas)


@inlined_kernel
def hand_over(
    params: Params, state: State, row: int, pool: int, slot: int, now_s: float, finish_s: float, links: float
) -> None:
    """Send a prefilled cohort's KV to its decode pool; it becomes ready when the last byte has arrived.

    A request's bytes leave over its replica's scale-out links; all requests together share the pool's (``links``, bytes/s). The pool's
    links are a queue in the order of hand-over (``now_s``), so that a long prompt that finishes late blocks nothing meanwhile.
    """
    perf = state.perf[row, pool]
    cohort = state.cohort[row, slot]
    ints = state.cohort_int[row, slot]
    numbers = state.pool[row, pool]
    sent = cohort[Cohort.PROMPT]
    if has_cache(params):
        sent -= cohort[Cohort.HELD]
    bytes_one = sent * perf[PREFILL_KV_BYTES_PER_TOKEN]
    free_s = max(numbers[Pool.TRANSFER_FREE_S], now_s) + cohort[Cohort.COUNT] * bytes_one / links
    numbers[Pool.TRANSFER_FREE_S] = free_s
    own_s = bytes_one / perf[PREFILL_TRANSFER_BYTES_PER_S]
    ready_s = finish_s + max(free_s - now_s, own_s) + perf[PREFILL_FRONTEND_S]
    ints[CohortInt.STAGE] = Stage.TRANSFER
    decode = ints[CohortInt.DECODE_POOL]
    count = cohort[Cohort.COUNT]
    state.pool[row, decode, Pool.IN_TRANSIT] += count
    state.pool[row, decode, Pool.HANDED] += count
    state.pool[row, decode, Pool.HANDED_TOKENS] += count * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])
    schedule(state, row, decode, READY_LINE, slot, ready_s, params.site[SiteSpec.DAYS_PER_S])


@inlined_kernel
def turned_away(params: Params, state: State, row: int, slot: int, prefill_wait_s: float) -> bool:
    """Tell whether a cohort entering now would wait longer than its class's patience, time at the gate included, and reject it if so."""
    ints = state.cohort_int[row, slot]
    cohort = state.cohort[row, slot]
    wait_s = prefill_wait_s + state.pool[row, ints[CohortInt.DECODE_POOL], Pool.WAIT_S]
    wait_s += cohort[Cohort.KEY] - cohort[Cohort.ARRIVAL_S]
    if state.site[row, Site.FAULTS] > 0.0:
        racks = state.pool_int[row, ints[CohortInt.DECODE_POOL]]
        if racks[PoolInt.ACTIVE] + racks[PoolInt.DRAINING] == 0:
            # The last one has failed, or is gone for another reason: as in front of a prefill pool without a rack.
            wait_s = math.inf
    if wait_s <= params.cls[ints[CohortInt.CLASS], ClassSpec.PATIENCE_S]:
        return False
    reject(params, state, row, slot)
    return True


@kernel
def join_queue(params: Params, state: State, row: int, pool: int, slot: int) -> None:
    """Put a cohort that is none of this tick's arrivals at the end of a pool's queue: its work is added to what waits."""
    numbers = state.pool[row, pool]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    perf = state.perf[row, pool]
    state.cohort_int[row, slot, CohortInt.STAGE] = Stage.QUEUED
    append(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL, slot)
    numbers[Pool.QUEUED] += count
    if params.site[SiteSpec.RESOLUTION] != COHORT:
        numbers[Pool.QUEUED_WORK] += count * server_seconds(perf, cohort, 1.0)
        return
    rate = compute_rate(numbers[Pool.CLOCK])
    own = server_seconds(perf, cohort, rate)
    # Behind all work that waits; never quite at the clock itself, lest a pool without a rack should start it.
    cohort[Cohort.KEY] = numbers[Pool.V] + max(numbers[Pool.BACKLOG], 1e-6)
    scaling, _ = prefill_work_s(perf, cohort[Cohort.PROMPT], cohort[Cohort.PROMPT_SQ])
    part = count * own / max(count * own, numbers[Pool.BACKLOG] + numbers[Pool.INFLOW] * params.site[SiteSpec.TICK_S])
    streaming = perf[PREFILL_STREAM_PER_TOKEN_S] * cohort[Cohort.PROMPT] * rate
    numbers[Pool.SHARE_COMPUTE] += part * (scaling / own - numbers[Pool.SHARE_COMPUTE])
    numbers[Pool.SHARE_MEMORY] += part * (streaming / own - numbers[Pool.SHARE_MEMORY])
    numbers[Pool.BACKLOG] += count * own
    numbers[Pool.QUEUED_WORK] = numbers[Pool.BACKLOG]


@inlined_kernel
def _work_of_one_s(params: Params, perf: Array, cohort: Array) -> tuple[float, float]:
    """Return ``uncached_work_s`` of a cohort of one request, from what lies in one line of memory where there is no cache."""
    if has_cache(params):
        return uncached_work_s(perf, cohort)
    prompt = cohort[Cohort.PROMPT]
    return prefill_work_s(perf, prompt, prompt * prompt)


@inlined_kernel
def _streaming_share(perf: Array) -> float:
    """Return the share of what is not compute in which a lane streams weights: the same for every prompt."""
    return float(
        perf[PREFILL_STREAM_PER_TOKEN_S] / (perf[PREFILL_STREAM_PER_TOKEN_S] + perf[PREFILL_OVERHEAD_PER_TOKEN_S])
    )


@inlined_kernel
def set_shares(state: State, row: int, pool: int) -> None:
    """Set the shares of compute and of streaming in what the servers of a pool do at request resolution, given the sum of the first."""
    numbers = state.pool[row, pool]
    serving = state.pool_int[row, pool, PoolInt.SERVING]
    if serving == 0:
        # Rounding must not accumulate over a day.
        numbers[Pool.SHARE_COMPUTE] = 0.0
    numbers[Pool.SHARE_MEMORY] = _streaming_share(state.perf[row, pool]) * (serving - numbers[Pool.SHARE_COMPUTE])


@inlined_kernel
def _start_exact(
    params: Params,
    state: State,
    row: int,
    pool: int,
    slot: int,
    rate: float,
    time_s: float,
    clock_w: float,
    left: float,
) -> float:
    """Put a request on a free server, where it adds ``left``, of the pool's time, to what is busy unless it finishes within the segment.

    Returns:
        When it finishes on the service clock: once that has advanced by its server time.
    """
    perf = state.perf[row, pool]
    cohort = state.cohort[row, slot]
    numbers = state.pool[row, pool]
    if has_cache(params):
        cohort[Cohort.LOADED_S] = begin_prefill(params, state, row, pool, slot, time_s)
    scaling, fixed = _work_of_one_s(params, perf, cohort)
    work = scaling + fixed * rate
    compute = scaling / work
    cohort[SHARE_IN_PREFILL] = compute
    numbers[Pool.SHARE_COMPUTE] += compute
    numbers[Pool.BUSY_S] += left
    numbers[Pool.COMPUTE_S] += left * compute
    state.cohort_int[row, slot, CohortInt.STAGE] = Stage.PREFILLING
    finish_w = clock_w + work
    schedule(state, row, pool, SERVICE_LINE, slot, finish_w, params.site[SiteSpec.DAYS_PER_S])
    return float(finish_w)


@inlined_kernel
def _finish_exact(
    params: Params, state: State, row: int, pool: int, slot: int, time_s: float, left: float, links: float
) -> None:
    """Take a request that has left the service line off its server, which is free for ``left`` of the segment, and hand it over."""
    numbers = state.pool[row, pool]
    cohort = state.cohort[row, slot]
    compute = cohort[SHARE_IN_PREFILL]
    numbers[Pool.SHARE_COMPUTE] -= compute
    numbers[Pool.BUSY_S] -= left
    numbers[Pool.COMPUTE_S] -= left * compute
    loading_s = cohort[Cohort.LOADED_S] if has_cache(params) else 0.0
    hand_over(params, state, row, pool, slot, time_s, time_s + loading_s, links)


@kernel
def advance_prefill_exact(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a prefill pool to ``end_s`` server by server (cohorts of one request).

    Args:
        params: Site parameters.
        state: Engine state; the pool's clock and duty are constant until ``end_s``.
        row: Row.
        pool: A prefill pool.
        end_s: End of the segment, s.
    """
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    rate = compute_rate(numbers[Pool.CLOCK])
    # Lanes that share their GPUs with decode may be a fraction of one fewer: the servers are then as much slower.
    lanes = ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool)
    servers = int(math.ceil(lanes - 1e-9))
    present = float(ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    links = links_bytes_per_s(params, state, row, pool)
    days_per_s = params.site[SiteSpec.DAYS_PER_S]
    duty = numbers[Pool.DUTY] * (lanes / servers if servers > 0 else 1.0)
    speed = rate * duty
    share = duty / present if present > 0.0 else 0.0
    # The service clock runs evenly through the segment: where it stands follows from the time alone, not from event to event.
    begin_s = numbers[Pool.TIME_S]
    begin_w = numbers[Pool.W]
    # Whoever is in service counts as busy until the segment ends; what is left of the segment is taken off when a request finishes before.
    numbers[Pool.BUSY_S] += (end_s - begin_s) * share * ints[PoolInt.SERVING]
    numbers[Pool.COMPUTE_S] += (end_s - begin_s) * share * numbers[Pool.SHARE_COMPUTE]
    finish_w, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_s)
    time_s = begin_s
    clock_w = begin_w
    events = 0
    while True:
        while ints[PoolInt.QUEUE_HEAD] != NOBODY and ints[PoolInt.SERVING] < servers and speed > 0.0:
            slot = take_first(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL)
            numbers[Pool.QUEUED] -= 1.0
            numbers[Pool.QUEUED_WORK] -= server_seconds(state.perf[row, pool], state.cohort[row, slot], 1.0)
            left = (end_s - time_s) * share
            if _start_exact(params, state, row, pool, slot, rate, time_s, clock_w, left) <= finish_w:
                finish_w, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_s)
        # Whoever finds a server free need not wait for those who finish before him: arrivals in a row, then finishes in a row. Which of
        # the two is next cannot be foreseen, and to guess it wrong at every request would take more time than the rest.
        busy = (ints[PoolInt.QUEUE_HEAD] != NOBODY) | (speed <= 0.0)
        arrival_s = time_s
        full = False
        for _ in range(_IN_A_ROW):
            head = ints[PoolInt.INBOX_HEAD]
            arrival_s = max(begin_s, state.cohort[row, head, Cohort.KEY]) if head != NOBODY else math.inf
            full = busy | (ints[PoolInt.SERVING] >= servers)
            if (arrival_s >= end_s) | full:
                break
            events += 1
            slot = take_first(state, row, pool, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL)
            if turned_away(params, state, row, slot, 0.0):
                continue
            clock_w = begin_w + speed * (arrival_s - begin_s)
            left = (end_s - arrival_s) * share
            if _start_exact(params, state, row, pool, slot, rate, arrival_s, clock_w, left) <= finish_w:
                finish_w, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_s)
        until_s = min(arrival_s, end_s)
        while True:
            finish_s = max(time_s, begin_s + (finish_w - begin_w) / speed) if speed > 0.0 else math.inf
            if finish_s >= until_s:
                break
            events += 1
            time_s = finish_s
            clock_w = finish_w
            slot = take(state, row, pool, SERVICE_LINE, finish_place)
            finish_w, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_s)
            _finish_exact(params, state, row, pool, slot, time_s, (end_s - time_s) * share, links)
            if busy:
                break
        if finish_s < until_s:
            # Whoever waits gets the server at once.
            continue
        time_s = until_s
        clock_w = begin_w + speed * (time_s - begin_s)
        if time_s >= end_s:
            break
        if full and (busy or ints[PoolInt.SERVING] >= servers):
            events += 1
            wait_s = numbers[Pool.QUEUED_WORK] / (servers * speed) if servers > 0 and speed > 0.0 else math.inf
            slot = take_first(state, row, pool, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL)
            if not turned_away(params, state, row, slot, wait_s):
                state.cohort_int[row, slot, CohortInt.STAGE] = Stage.QUEUED
                append(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL, slot)
                numbers[Pool.QUEUED] += 1.0
                numbers[Pool.QUEUED_WORK] += server_seconds(state.perf[row, pool], state.cohort[row, slot], 1.0)
    numbers[Pool.MEMORY_S] = _streaming_share(state.perf[row, pool]) * (numbers[Pool.BUSY_S] - numbers[Pool.COMPUTE_S])
    set_shares(state, row, pool)
    numbers[Pool.TIME_S] = end_s
    numbers[Pool.W] = clock_w
    if ints[PoolInt.QUEUE_HEAD] == NOBODY:
        numbers[Pool.QUEUED] = 0.0
        numbers[Pool.QUEUED_WORK] = 0.0
    state.site_int[row, SiteInt.EVENTS] += events


@kernel
def advance_prefill_fluid(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a prefill pool to ``end_s`` as a fluid queue.

    The backlog (server-seconds) changes at ``INFLOW - capacity`` and never falls below zero. A cohort that arrives when the
    backlog is B starts once the pool has served B more, whatever happens to clocks and racks meanwhile, and is done one
    service time later.
    """
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    perf = state.perf[row, pool]
    rate = compute_rate(numbers[Pool.CLOCK])
    servers = ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool)
    links = links_bytes_per_s(params, state, row, pool)
    speed = rate * numbers[Pool.DUTY]
    capacity = servers * speed
    inflow = numbers[Pool.INFLOW]
    time_s = numbers[Pool.TIME_S]
    begin_s = time_s
    backlog = numbers[Pool.BACKLOG]
    work_before = backlog
    arrived = inflow * (end_s - begin_s)
    turned = 0.0
    events = 0
    while True:
        # Starts that fall before the next arrival, in order.
        head = ints[PoolInt.INBOX_HEAD]
        arrival = head != NOBODY and state.cohort[row, head, Cohort.KEY] < end_s
        next_s = max(time_s, state.cohort[row, head, Cohort.KEY]) if arrival else end_s
        served_v = numbers[Pool.V] + capacity * (next_s - time_s)
        while ints[PoolInt.QUEUE_HEAD] != NOBODY:
            slot = int(ints[PoolInt.QUEUE_HEAD])
            key = state.cohort[row, slot, Cohort.KEY]
            if key > served_v:
                break
            take_first(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL)
            numbers[Pool.QUEUED] -= state.cohort[row, slot, Cohort.COUNT]
            start_s = next_s if capacity <= 0.0 else time_s + max(0.0, key - numbers[Pool.V]) / capacity
            own_s = server_seconds(perf, state.cohort[row, slot], rate) / max(speed, 1e-3)
            if has_cache(params):
                own_s += begin_prefill(params, state, row, pool, slot, start_s)
            hand_over(params, state, row, pool, slot, start_s, start_s + own_s, links)
            events += 1
        backlog = max(0.0, backlog + (inflow - capacity) * (next_s - time_s))
        numbers[Pool.V] = served_v
        time_s = next_s
        if not arrival:
            break
        events += 1
        slot = take_first(state, row, pool, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL)
        cohort = state.cohort[row, slot]
        count = cohort[Cohort.COUNT]
        own = server_seconds(perf, cohort, rate)
        wait_s = 0.0
        if backlog > 0.0 or capacity <= 0.0:
            wait_s = backlog / capacity if capacity > 0.0 else math.inf
        if turned_away(params, state, row, slot, wait_s):
            # Its work is part of the inflow: take it out of the backlog, and what is not there out of the work served.
            lost = min(backlog, count * own)
            backlog -= lost
            turned += lost
            numbers[Pool.TURNED_WORK] += count * own - lost
            continue
        # What is in service is a mix of the backlog and of what this tick brings; work turned away is not part of it.
        scaling, _ = uncached_work_s(perf, cohort)
        part = count * own / max(count * own, backlog + inflow * params.site[SiteSpec.TICK_S])
        streaming = perf[PREFILL_STREAM_PER_TOKEN_S] * (cohort[Cohort.PROMPT] - cohort[Cohort.CACHED]) * rate
        numbers[Pool.SHARE_COMPUTE] += part * (scaling / own - numbers[Pool.SHARE_COMPUTE])
        numbers[Pool.SHARE_MEMORY] += part * (streaming / own - numbers[Pool.SHARE_MEMORY])
        if wait_s > 0.0:
            cohort[Cohort.KEY] = numbers[Pool.V] + backlog
            state.cohort_int[row, slot, CohortInt.STAGE] = Stage.QUEUED
            numbers[Pool.QUEUED] += count
            append(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL, slot)
        else:
            own_s = own / speed
            if has_cache(params):
                own_s += begin_prefill(params, state, row, pool, slot, time_s)
            hand_over(params, state, row, pool, slot, time_s, time_s + own_s, links)
    numbers[Pool.BACKLOG] = backlog
    numbers[Pool.QUEUED_WORK] = backlog
    if capacity > 0.0:
        served = max(0.0, work_before + arrived - turned - backlog)
        refused = min(served, numbers[Pool.TURNED_WORK])
        numbers[Pool.TURNED_WORK] -= refused
        served -= refused
        busy_s = min(end_s - begin_s, served / capacity) * numbers[Pool.DUTY]
        # Racks that drain have handed their queue over; they idle until they leave.
        present = float(ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING])
        busy_s *= ints[PoolInt.ACTIVE] / present
        numbers[Pool.BUSY_S] += busy_s
        numbers[Pool.COMPUTE_S] += busy_s * numbers[Pool.SHARE_COMPUTE]
        numbers[Pool.MEMORY_S] += busy_s * numbers[Pool.SHARE_MEMORY]
    numbers[Pool.TIME_S] = end_s
    state.site_int[row, SiteInt.EVENTS] += events


@inlined_kernel
def advance_prefill(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a prefill pool to ``end_s`` at the site's resolution."""
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        advance_prefill_fluid(params, state, row, pool, end_s)
    else:
        advance_prefill_exact(params, state, row, pool, end_s)
