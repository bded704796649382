"""A decode pool over one segment of constant settings: admission by KV memory, processor sharing, completion.

All replicas of a pool share the batch evenly. Time within a request runs on the pool's token clock ``G``, which advances by
one when every request in flight has received one more token; a cohort's finish is a fixed point on ``G`` however the batch,
the context or the clock change, so nothing is touched per token.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.cache import has_cache, leave_context
from ai_factory_gym.engine.calendar import find_next, find_until, place_of, schedule, take
from ai_factory_gym.engine.health import units_per_rack
from ai_factory_gym.engine.layout import (
    COHORT,
    NOBODY,
    READY_LINE,
    REQUEST,
    SERVICE_LINE,
    Array,
    Cohort,
    CohortInt,
    Params,
    Pool,
    PoolInt,
    Site,
    SiteInt,
    SiteSpec,
    Stage,
    State,
)
from ai_factory_gym.engine.ledger import first_token, last_token, take_slot
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    decode_iteration_s,
)

SPLIT_PARTS = 4
"""A cohort that does not fit is split only when at least this fraction (1/4) of it does, so that it cannot crumble."""


NEARLY = 0.98
"""Share of a decode pool's room above which it is nearly full."""


PACE_STEP = 4e-4
"""Change of a batch, or of the KV it holds, by which the time of its iterations is worked out anew at request resolution:
one request among tens of thousands moves it by less."""

AT_ONCE = 2e-3
"""Largest number of requests, as a share of the batch, that is admitted, or on average finishes, at one pace at request resolution (status:
design choice): about as many come as go, so that the batch moves by a fraction of it."""

PACE_S = 2.0
"""How often the time of iterations is worked out anew at cohort resolution, s."""

PACE_MEMORY_S = 3.0
"""Time over which batch and KV are smoothed for it, s. A cohort joins and leaves at once where its requests would come and go
over a whole tick; the mean over some seconds is that of the requests, and its swings are not theirs."""


@inlined_kernel
def nearly_full(params: Params, state: State, row: int, pool: int) -> bool:
    """Tell whether requests wait, or soon may have to, for a decode pool's KV memory or batch places.

    Who is turned away then depends on fractions of a second of predicted wait: segments are short and cohorts small.
    """
    numbers = state.pool[row, pool]
    if numbers[Pool.WAIT_S] > 0.0:
        return True
    units = state.pool_int[row, pool, PoolInt.ACTIVE] * units_per_rack(params, state, row, pool)
    places = units * numbers[Pool.MAX_BATCH]
    tokens = units * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS] - numbers[Pool.HELD]
    return bool(numbers[Pool.IN_FLIGHT] > NEARLY * places or numbers[Pool.RESERVED] > NEARLY * tokens)


@inlined_kernel
def _split(state: State, row: int, slot: int, count: float) -> int:
    """Take ``count`` requests off a cohort into a new one that is equal otherwise, and return its slot."""
    part = take_slot(state, row)
    for column in range(state.cohort.shape[2]):
        state.cohort[row, part, column] = state.cohort[row, slot, column]
    for column in range(state.cohort_int.shape[2]):
        state.cohort_int[row, part, column] = state.cohort_int[row, slot, column]
    state.cohort[row, part, Cohort.COUNT] = count
    state.cohort[row, slot, Cohort.COUNT] -= count
    state.pool_int[row, state.cohort_int[row, slot, CohortInt.PREFILL_POOL], PoolInt.ASSIGNED] += 1
    state.pool_int[row, state.cohort_int[row, slot, CohortInt.DECODE_POOL], PoolInt.ASSIGNED] += 1
    return part


@inlined_kernel
def _admit(params: Params, state: State, row: int, pool: int, slot: int) -> tuple[float, float]:
    """Add a cohort to the batch; it finishes after its first iteration and output - 1 further tokens.

    Returns:
        When it finishes, on the token clock; and the output tokens it emits per unit of that clock.
    """
    cohort = state.cohort[row, slot]
    numbers = state.pool[row, pool]
    count = cohort[Cohort.COUNT]
    prompt = cohort[Cohort.PROMPT]
    output = cohort[Cohort.OUTPUT]
    span = state.perf[row, pool, DECODE_TOKENS_PER_ITERATION] + output - 1.0
    held = prompt + output + state.perf[row, pool, DECODE_KV_REQUEST_TOKENS]
    leaving = count / span
    cohort[Cohort.G_ADMIT] = numbers[Pool.G]
    numbers[Pool.IN_FLIGHT] += count
    numbers[Pool.EMITTING] += leaving * output
    numbers[Pool.LEAVING] += leaving
    numbers[Pool.FREEING] += leaving * held
    numbers[Pool.CONTEXT] += count * prompt
    numbers[Pool.RESERVED] += count * held
    numbers[Pool.KV_TOKENS_IN] += count * prompt
    numbers[Pool.WAITING] -= count
    numbers[Pool.WAITING_TOKENS] -= count * (prompt + output)
    numbers[Pool.IN_TRANSIT] -= count
    state.cohort_int[row, slot, CohortInt.STAGE] = Stage.DECODING
    finish_g = numbers[Pool.G] + span
    schedule(state, row, pool, SERVICE_LINE, slot, finish_g, params.site[SiteSpec.DAYS_PER_TOKEN])
    return float(finish_g), float(leaving * output)


@inlined_kernel
def _complete(params: Params, state: State, row: int, pool: int, slot: int, time_s: float, ahead: float) -> float:
    """Let a cohort that has left the batch's line finish, and decide its fate.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: A decode pool.
        slot: The cohort.
        time_s: Now, s.
        ahead: Time on the token clock, from now on, for which its output is counted in ``Pool.CONTEXT`` already.

    Returns:
        Output tokens it has emitted per unit of the token clock.
    """
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    prompt = cohort[Cohort.PROMPT]
    output = cohort[Cohort.OUTPUT]
    span = state.perf[row, pool, DECODE_TOKENS_PER_ITERATION] + output - 1.0
    held = prompt + output + state.perf[row, pool, DECODE_KV_REQUEST_TOKENS]
    leaving = count / span
    numbers[Pool.IN_FLIGHT] -= count
    numbers[Pool.EMITTING] -= leaving * output
    numbers[Pool.LEAVING] -= leaving
    numbers[Pool.FREEING] -= leaving * held
    numbers[Pool.CONTEXT] -= count * (prompt + output) + leaving * output * ahead
    numbers[Pool.RESERVED] -= count * held
    numbers[Pool.KV_TOKENS_OUT] += count * (prompt + output)
    if ints[PoolInt.SERVING] == 0:
        # An empty batch is exactly empty: rounding must not accumulate over a day.
        numbers[Pool.IN_FLIGHT] = 0.0
        numbers[Pool.EMITTING] = 0.0
        numbers[Pool.LEAVING] = 0.0
        numbers[Pool.FREEING] = 0.0
        numbers[Pool.CONTEXT] = 0.0
        numbers[Pool.RESERVED] = 0.0
    # Tokens count as good only when they were emitted inside the scored window.
    begin = max(cohort[Cohort.G_ADMIT], numbers[Pool.G_OPEN])
    end = min(numbers[Pool.G], numbers[Pool.G_CLOSE])
    good = count * output * max(0.0, end - begin) / span
    if has_cache(params):
        leave_context(state, row, pool, slot)
    last_token(params, state, row, slot, time_s, good)
    return float(leaving * output)


@inlined_kernel
def _follow(numbers: Array, in_flight_s: float, context_s: float, elapsed: float) -> None:
    """Move the smoothed batch and KV towards their means over the last ``elapsed`` seconds (integrals given)."""
    share = elapsed / (elapsed + PACE_MEMORY_S)
    numbers[Pool.PACED_IN_FLIGHT] += share * (in_flight_s / elapsed - numbers[Pool.PACED_IN_FLIGHT])
    numbers[Pool.PACED_CONTEXT] += share * (context_s / elapsed - numbers[Pool.PACED_CONTEXT])


@inlined_kernel
def _room(params: Params, state: State, row: int, pool: int) -> tuple[float, float, float]:
    """Return a pool's replicas, the KV tokens that may be reserved on those of them that admit, and their batch places."""
    ints = state.pool_int[row, pool]
    numbers = state.pool[row, pool]
    units = units_per_rack(params, state, row, pool)
    admitting = ints[PoolInt.ACTIVE] * units
    tokens = admitting * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS] - numbers[Pool.HELD]
    return (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units, tokens, admitting * numbers[Pool.MAX_BATCH]


@inlined_kernel
def _pace(state: State, row: int, pool: int, replicas: float) -> tuple[float, float, float, float, float]:
    """Return an iteration's seconds at the batch of the pace, tokens per second of a request, and what is busy, computes and streams."""
    numbers = state.pool[row, pool]
    perf = state.perf[row, pool]
    duty = numbers[Pool.DUTY]
    paced = numbers[Pool.PACED_IN_FLIGHT]
    batch = max(1.0, paced / replicas)
    iteration, computing, reading = decode_iteration_s(
        perf, batch, numbers[Pool.PACED_CONTEXT] / paced, numbers[Pool.CLOCK]
    )
    busy = duty * min(1.0, paced / replicas)
    speed = duty * perf[DECODE_TOKENS_PER_ITERATION] / iteration
    return (
        float(iteration),
        float(speed),
        float(busy),
        float(busy * computing / iteration),
        float(busy * reading / iteration),
    )


@kernel
def advance_decode_exact(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a decode pool to ``end_s`` request by request (cohorts of one request).

    A large batch goes in rows: a few admissions, up to ``AT_ONCE``, then the completions of the same time, all at one pace, as long as there
    is room without these completions. No processor can foresee whether an admission or a completion is next, and to guess it wrong at
    every request would take most of the time. A batch in which a single request counts goes from event to event.

    Args:
        params: Site parameters.
        state: Engine state; the pool's clock, duty and racks are constant until ``end_s``.
        row: Row.
        pool: A decode pool.
        end_s: End of the segment, s.
    """
    numbers = state.pool[row, pool]
    perf = state.perf[row, pool]
    duty = numbers[Pool.DUTY]
    tokens_per_iteration = perf[DECODE_TOKENS_PER_ITERATION]
    replicas, kv_room, batch_room = _room(params, state, row, pool)
    days_per_token = params.site[SiteSpec.DAYS_PER_TOKEN]
    days_per_s = params.site[SiteSpec.DAYS_PER_S]
    time_s = numbers[Pool.TIME_S]
    token_clock = numbers[Pool.G]
    all_generated = 0.0
    batch_s = 0.0
    admitted = NOBODY
    blocked = duty <= 0.0
    busy = 0.0
    compute = 0.0
    memory = 0.0
    busy_s = 0.0
    compute_s = 0.0
    memory_s = 0.0
    iteration = 0.0
    speed = 0.0
    ready_slots = state.heap_slot[row, pool, READY_LINE]
    ready_s, ready_place = find_next(state, row, pool, READY_LINE, days_per_s)
    finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
    events = 0
    while True:
        in_flight = numbers[Pool.IN_FLIGHT]
        context = numbers[Pool.CONTEXT]
        if in_flight <= 0.0 or replicas <= 0.0:
            speed = 0.0
            busy = 0.0
            compute = 0.0
            memory = 0.0
            # Power is foreseen by the batch of the pace: nobody draws nothing.
            numbers[Pool.PACED_IN_FLIGHT] = in_flight
            numbers[Pool.PACED_CONTEXT] = context
        elif (
            (speed == 0.0)
            | (abs(in_flight - numbers[Pool.PACED_IN_FLIGHT]) > PACE_STEP * in_flight)
            | (abs(context - numbers[Pool.PACED_CONTEXT]) > PACE_STEP * context)
        ):
            numbers[Pool.PACED_IN_FLIGHT] = in_flight
            numbers[Pool.PACED_CONTEXT] = context
            iteration, speed, busy, compute, memory = _pace(state, row, pool, replicas)
        if admitted != NOBODY:
            first_token(params, state, row, admitted, time_s + iteration / duty)
            admitted = NOBODY
        if time_s >= end_s:
            break
        # The token clock runs evenly at one pace: where it stands follows from the time alone, not from event to event.
        begin_s = time_s
        begin_g = token_clock
        s_per_token = 1.0 / speed if speed > 0.0 else math.inf
        finish_s = max(begin_s, begin_s + (finish_g - begin_g) * s_per_token) if speed > 0.0 else math.inf
        at_once = int(AT_ONCE * in_flight)
        singly = blocked or at_once < 1 or speed <= 0.0
        time_s = min(end_s, finish_s if singly else begin_s + at_once / (numbers[Pool.LEAVING] * speed))
        # Of those admitted: what they would have emitted, and how long they would have been in the batch, before they were.
        not_emitted = 0.0
        not_there_s = 0.0
        entering = max(1, at_once)
        while ready_s < time_s and not blocked:
            enter_s = max(begin_s, ready_s)
            if entering == 0:
                # The row ends before the next one is admitted: whoever comes finds the mean batch, and one more after him is above it.
                time_s = enter_s
                break
            slot = int(ready_slots[ready_place])
            cohort = state.cohort[row, slot]
            reserved = numbers[Pool.RESERVED] + (
                cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT] + perf[DECODE_KV_REQUEST_TOKENS]
            )
            if (reserved > kv_room) | (numbers[Pool.IN_FLIGHT] + 1.0 > batch_room):
                # Unless somebody finishes before it is ready, it waits for the first who does afterwards.
                blocked = True
                time_s = enter_s
                break
            events += 1
            entering -= 1
            take(state, row, pool, READY_LINE, ready_place)
            ready_s, ready_place = find_next(state, row, pool, READY_LINE, days_per_s)
            numbers[Pool.G] = begin_g + speed * (enter_s - begin_s)
            until_g, emitting = _admit(params, state, row, pool, slot)
            if until_g <= finish_g:
                finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
            not_emitted += emitting * (enter_s - begin_s)
            not_there_s += enter_s - begin_s
            if singly:
                # At the pace that it sets itself.
                admitted = slot
                time_s = enter_s
            else:
                first_token(params, state, row, slot, enter_s + iteration / duty)
        elapsed = time_s - begin_s
        token_clock = begin_g + speed * elapsed
        generated = (numbers[Pool.EMITTING] * elapsed - not_emitted) * speed
        numbers[Pool.CONTEXT] += generated
        batch_s += numbers[Pool.IN_FLIGHT] * elapsed - not_there_s
        busy_s += busy * elapsed
        compute_s += compute * elapsed
        memory_s += memory * elapsed
        while speed > 0.0:
            finish_s = max(begin_s, begin_s + (finish_g - begin_g) * s_per_token)
            if (finish_s > time_s) | (finish_s >= end_s):
                break
            events += 1
            slot = take(state, row, pool, SERVICE_LINE, finish_place)
            numbers[Pool.G] = finish_g
            ahead = token_clock - finish_g
            generated -= _complete(params, state, row, pool, slot, finish_s, ahead) * ahead
            batch_s -= time_s - finish_s
            finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
            blocked = False
        all_generated += generated
    numbers[Pool.G] = token_clock
    numbers[Pool.KV_TOKENS_GENERATED] += all_generated
    state.site[row, Site.STEP_OUTPUT_TOKENS] += all_generated
    state.site[row, Site.OUTPUT_TOKENS] += state.site[row, Site.SCORING] * all_generated
    numbers[Pool.STEP_BATCH_S] += batch_s
    numbers[Pool.TPOT_S] = iteration / tokens_per_iteration if numbers[Pool.IN_FLIGHT] > 0.0 else 0.0
    numbers[Pool.TIME_S] = end_s
    numbers[Pool.BUSY_S] += busy_s
    numbers[Pool.COMPUTE_S] += compute_s
    numbers[Pool.MEMORY_S] += memory_s
    state.site_int[row, SiteInt.EVENTS] += events


@kernel
def advance_decode_cohorts(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a decode pool to ``end_s`` cohort by cohort, from event to event (admissions and completions).

    Args:
        params: Site parameters.
        state: Engine state; the pool's clock, duty and racks are constant until ``end_s``.
        row: Row.
        pool: A decode pool.
        end_s: End of the segment, s.
    """
    numbers = state.pool[row, pool]
    perf = state.perf[row, pool]
    duty = numbers[Pool.DUTY]
    scoring = state.site[row, Site.SCORING]
    tokens_per_iteration = perf[DECODE_TOKENS_PER_ITERATION]
    replicas, kv_room, batch_room = _room(params, state, row, pool)
    days_per_token = params.site[SiteSpec.DAYS_PER_TOKEN]
    days_per_s = params.site[SiteSpec.DAYS_PER_S]
    time_s = numbers[Pool.TIME_S]
    # Sums that nothing else reads or writes meanwhile.
    token_clock = numbers[Pool.G]
    all_generated = numbers[Pool.KV_TOKENS_GENERATED]
    step_output = state.site[row, Site.STEP_OUTPUT_TOKENS]
    output_tokens = state.site[row, Site.OUTPUT_TOKENS]
    step_batch_s = numbers[Pool.STEP_BATCH_S]
    admitted = NOBODY
    blocked = duty <= 0.0
    pace_begin_s = time_s
    pace_end_s = time_s
    in_flight_s = 0.0
    context_s = 0.0
    busy = 0.0
    compute = 0.0
    memory = 0.0
    busy_s = 0.0
    compute_s = 0.0
    memory_s = 0.0
    iteration = 0.0
    speed = 0.0
    ready_slots = state.heap_slot[row, pool, READY_LINE]
    ready_s, ready_place = find_next(state, row, pool, READY_LINE, days_per_s)
    finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
    events = 0
    while True:
        in_flight = numbers[Pool.IN_FLIGHT]
        context = numbers[Pool.CONTEXT]
        running = in_flight > 0.0 and replicas > 0.0
        stale = running and speed == 0.0
        if stale or time_s >= pace_end_s:
            if time_s > pace_begin_s:
                _follow(numbers, in_flight_s, context_s, time_s - pace_begin_s)
                pace_begin_s = time_s
                in_flight_s = 0.0
                context_s = 0.0
            if running and numbers[Pool.PACED_IN_FLIGHT] <= 0.0:
                numbers[Pool.PACED_IN_FLIGHT] = in_flight
                numbers[Pool.PACED_CONTEXT] = context
            pace_end_s = min(end_s, time_s + PACE_S)
            stale = running
        if not running:
            speed = 0.0
            busy = 0.0
            compute = 0.0
            memory = 0.0
        elif stale:
            iteration, speed, busy, compute, memory = _pace(state, row, pool, replicas)
        if admitted != NOBODY:
            first_token(params, state, row, admitted, time_s + iteration / duty)
            admitted = NOBODY
        # What comes next cannot be foreseen; chosen as a number, it is guessed once, not at every comparison.
        next_s = pace_end_s
        enters = (ready_s < next_s) & (not blocked)
        next_s = max(time_s, ready_s) if enters else next_s
        finish_s = math.inf
        if speed > 0.0:
            finish_s = max(time_s, time_s + (finish_g - token_clock) / speed)
        finishes = (finish_s <= next_s) & (finish_s < end_s)
        next_s = finish_s if finishes else next_s
        kind = 2 if finishes else 1 if enters else 0
        elapsed = next_s - time_s
        if elapsed > 0.0:
            generated = numbers[Pool.EMITTING] * speed * elapsed
            token_clock += speed * (next_s - time_s)
            numbers[Pool.CONTEXT] = context + generated
            all_generated += generated
            step_output += generated
            output_tokens += scoring * generated
            busy_s += busy * elapsed
            compute_s += compute * elapsed
            memory_s += memory * elapsed
            in_flight_s += in_flight * elapsed
            context_s += context * elapsed
            step_batch_s += in_flight * elapsed
        time_s = next_s
        if kind == 0:
            if time_s >= end_s:
                break
            continue
        events += 1
        if kind == 2:
            token_clock = finish_g
            numbers[Pool.G] = token_clock
            _complete(params, state, row, pool, take(state, row, pool, SERVICE_LINE, finish_place), time_s, 0.0)
            finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
            blocked = False
            continue
        slot = int(ready_slots[ready_place])
        cohort = state.cohort[row, slot]
        count = cohort[Cohort.COUNT]
        need = cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT] + perf[DECODE_KV_REQUEST_TOKENS]
        room = min((kv_room - numbers[Pool.RESERVED]) / need, batch_room - in_flight)
        if room >= count:
            admitted = take(state, row, pool, READY_LINE, ready_place)
            ready_s, ready_place = find_next(state, row, pool, READY_LINE, days_per_s)
        elif room >= 1.0 and room * SPLIT_PARTS >= count and state.site_int[row, SiteInt.FREE] > 0:
            admitted = _split(state, row, slot, math.floor(room))
        else:
            blocked = True
            continue
        numbers[Pool.G] = token_clock
        until_g, _ = _admit(params, state, row, pool, admitted)
        if until_g <= finish_g:
            finish_g, finish_place = find_next(state, row, pool, SERVICE_LINE, days_per_token)
    numbers[Pool.G] = token_clock
    numbers[Pool.KV_TOKENS_GENERATED] = all_generated
    state.site[row, Site.STEP_OUTPUT_TOKENS] = step_output
    state.site[row, Site.OUTPUT_TOKENS] = output_tokens
    numbers[Pool.STEP_BATCH_S] = step_batch_s
    if time_s > pace_begin_s:
        _follow(numbers, in_flight_s, context_s, time_s - pace_begin_s)
    numbers[Pool.TPOT_S] = iteration / tokens_per_iteration if numbers[Pool.IN_FLIGHT] > 0.0 else 0.0
    numbers[Pool.TIME_S] = end_s
    numbers[Pool.BUSY_S] += busy_s
    numbers[Pool.COMPUTE_S] += compute_s
    numbers[Pool.MEMORY_S] += memory_s
    state.site_int[row, SiteInt.EVENTS] += events


@inlined_kernel
def advance_decode(params: Params, state: State, row: int, pool: int, end_s: float) -> None:
    """Advance a decode pool to ``end_s`` at the site's resolution."""
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        advance_decode_cohorts(params, state, row, pool, end_s)
    else:
        advance_decode_exact(params, state, row, pool, end_s)


@kernel
def predict_admission_wait(params: Params, state: State, row: int, pool: int, elapsed_s: float) -> None:
    """Set ``WAIT_S``: how long a request that becomes ready now would wait for KV memory or a batch place.

    Each request in flight gives its place and its memory back once per residence, so both free up at the sum of their
    inverse residences; what waits, over that, is the wait for whichever of the two is short.

    Cohorts become ready and leave by hundreds of requests, which moves the queue by tenths of a second where single requests
    hold it at the patience of the least patient. At cohort resolution the wait therefore follows the flows, as a fluid, and
    the queue itself over one tick.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: A decode pool.
        elapsed_s: Time since the last prediction, s.
    """
    numbers = state.pool[row, pool]
    handed = numbers[Pool.HANDED]
    handed_tokens = numbers[Pool.HANDED_TOKENS]
    before_s = numbers[Pool.WAIT_S]
    numbers[Pool.HANDED] = 0.0
    numbers[Pool.HANDED_TOKENS] = 0.0
    numbers[Pool.WAIT_S] = 0.0
    ints = state.pool_int[row, pool]
    if ints[PoolInt.READY] == 0 or numbers[Pool.IN_FLIGHT] <= 0.0 or numbers[Pool.TPOT_S] <= 0.0:
        return
    requests = 0.0
    tokens = 0.0
    for number in range(
        find_until(state, row, pool, READY_LINE, numbers[Pool.TIME_S], params.site[SiteSpec.DAYS_PER_S])
    ):
        place = place_of(state, row, pool, READY_LINE, number)
        if state.heap_key[row, pool, READY_LINE, place] <= numbers[Pool.TIME_S]:
            cohort = state.cohort[row, state.heap_slot[row, pool, READY_LINE, place]]
            requests += cohort[Cohort.COUNT]
            tokens += cohort[Cohort.COUNT] * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])
    if requests == 0.0:
        return
    places = ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool) * numbers[Pool.MAX_BATCH]
    if places - numbers[Pool.IN_FLIGHT] < 1.0:
        per_s = numbers[Pool.LEAVING] / numbers[Pool.TPOT_S]
        wait_s = requests / per_s
        growth_s = handed / per_s - elapsed_s
    else:
        per_s = numbers[Pool.FREEING] / numbers[Pool.TPOT_S]
        wait_s = tokens / per_s
        growth_s = handed_tokens / per_s - elapsed_s
    if before_s > 0.0 and params.site[SiteSpec.RESOLUTION] != REQUEST:
        followed = min(1.0, elapsed_s * params.site[SiteSpec.SLICES] / params.site[SiteSpec.TICK_S])
        wait_s = max(0.0, before_s + growth_s + followed * (wait_s - before_s - growth_s))
    numbers[Pool.WAIT_S] = wait_s
