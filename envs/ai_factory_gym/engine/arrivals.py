"""New work of one tick: who arrives, how long the prompts are, and which pools they are routed to."""

from __future__ import annotations

import math

import numpy as np

from ai_factory_gym.engine.cache import add_found, find_cohort, find_request, has_cache, update_caches
from ai_factory_gym.engine.decode import nearly_full
from ai_factory_gym.engine.heap import pop, push
from ai_factory_gym.engine.layout import (
    BACKLOG_BIN_S,
    CHANCE,
    COHORT,
    DECODE,
    PREFILL,
    READY_LINE,
    SHARED_GPUS,
    SIZES,
    Array,
    Cell,
    Class,
    ClassSpec,
    Cohort,
    CohortInt,
    Draw,
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
)
from ai_factory_gym.engine.ledger import ask_for_slot, pass_gate, take_slot
from ai_factory_gym.engine.lists import append, insert
from ai_factory_gym.engine.rng import exponential, normal, poisson, uniform
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import (
    PREFILL_STREAM_PER_TOKEN_S,
    compute_rate,
    prefill_work_s,
)
from ai_factory_gym.workload import effort as effort_form
from ai_factory_gym.workload import quadrature

two_lengths = inlined_kernel(quadrature.two_lengths)
answer_value = inlined_kernel(effort_form.answer_value)

CROWDED_PARTS = 8
"""Parts into which a slice's share of a cohort is cut while a decode pool is nearly full.

A large cohort that becomes ready or leaves moves the wait by tenths of a second, across the patience of one class after the
other, where single requests hold it at the least patient one's."""


_USUAL_SHARE = 0.0625
"""Weight of a cohort in the mean work of its size, 1: a memory of sixteen cohorts (status: design choice)."""

_BLOCK = 64
"""Requests that are drawn together."""

_SLOTS_AHEAD = 3
"""How many cohorts before its turn the record of one is asked for: about the time it takes to come."""


FASTEST_RELEASE_PER_S = 6.0 / 3600.0
"""Share of the deferrable backlog that an operator can have released per second: most of it in a quarter of an hour (status: design
choice)."""


@inlined_kernel
def minute_of(state: State, start_s: float, time_s: float) -> int:
    """Return the column of ``State.rate`` for ``time_s``; the path begins at ``start_s`` and its last minute persists."""
    minute = int(math.floor((time_s - start_s) / 60.0 + 1e-9))
    return max(0, min(minute, state.rate.shape[2] - 1))


@inlined_kernel
def group_of(params: Params, cls: int, prompt: float) -> int:
    """Return the routing group of a request: the groups of a model lie side by side, one per bin of prompt length."""
    edges = params.group_edges.shape[0]
    place = 0
    for edge in range(edges):
        place += 1 if prompt > params.group_edges[edge] else 0
    return int(params.cls[cls, ClassSpec.MODEL]) * (edges + 1) + place


@inlined_kernel
def size_class(tokens: float) -> int:
    """Return the power of two below a length: routing tells cohorts apart by it."""
    # The exponent of the floating-point number.
    return min(SIZES - 1, int(np.float64(max(1.0, tokens)).view(np.int64) >> 52) - 1023)


@inlined_kernel
def route(params: Params, state: State, row: int, phase: int, group: int, size: int, work: float) -> int:
    """Send a cohort to the pool that is owed most work, and carry what the others are owed.

    Work is owed among those of similar size only, within a factor of two: a pool that was given a cohort of long answers is
    to get fewer long ones, for minutes, not to go without short ones for a moment. Over many cohorts of a size each
    pool's share of their work equals its weight, to within one cohort.

    Who is next is decided by the mean work of those before. By the work of the cohort itself, pools with a small share would be
    next when a small one comes: long prompts are small cohorts, and they would get more than their share of these.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        phase: PREFILL or DECODE.
        group: Prompt-length group.
        size: ``size_class`` of what sets how long one request stays.
        work: Work in all, in any unit.
    """
    weights = state.weight[row, phase, group]
    carry = state.carry[row, phase, group, size]
    pools = weights.shape[0]
    usual = carry[pools] if carry[pools] > 0.0 else work
    carry[pools] = usual + _USUAL_SHARE * (work - usual)
    best = -1
    most = -math.inf
    # Prefill pools come first.
    middle = int(params.site[SiteSpec.PREFILL_POOLS])
    begin, end = (0, middle) if phase == PREFILL else (middle, pools)
    # Which pool it is cannot be foreseen: choices between numbers, unlike branches, cost nothing when they were guessed wrong.
    for pool in range(begin, end):
        owed = carry[pool] + usual * weights[pool]
        better = (weights[pool] > 0.0) & (owed > most)
        best = pool if better else best
        most = owed if better else most
    for pool in range(begin, end):
        owed = carry[pool] + work * weights[pool]
        carry[pool] = owed - work if pool == best else owed
    return best


@inlined_kernel
def route_request(params: Params, state: State, row: int, phase: int, group: int) -> int:
    """Send a single request to the pool that is owed most of them, and carry what the others are owed: ``route`` with work of one."""
    weights = state.weight[row, phase, group]
    carry = state.carry[row, phase, group, 0]
    best = -1
    most = -math.inf
    middle = int(params.site[SiteSpec.PREFILL_POOLS])
    begin, end = (0, middle) if phase == PREFILL else (middle, weights.shape[0])
    for pool in range(begin, end):
        owed = carry[pool] + weights[pool]
        carry[pool] = owed
        better = (weights[pool] > 0.0) & (owed > most)
        best = pool if better else best
        most = owed if better else most
    carry[best] -= 1.0
    return best


@inlined_kernel
def route_request_on(params: Params, state: State, row: int, prefill: int, group: int) -> int:
    """Send a single request that ``prefill`` will prefill to a decode pool."""
    if params.site[SiteSpec.COUPLED] > 0.0 and params.pool[prefill, PoolSpec.COUPLING] == SHARED_GPUS:
        return int(params.pool[prefill, PoolSpec.PARTNER])
    return route_request(params, state, row, DECODE, group)


@inlined_kernel
def route_decode(params: Params, state: State, row: int, prefill: int, group: int, size: int, work: float) -> int:
    """Send what ``prefill`` will prefill to a decode pool: where prefill and decode share their GPUs, it stays there."""
    if params.site[SiteSpec.COUPLED] > 0.0 and params.pool[prefill, PoolSpec.COUPLING] == SHARED_GPUS:
        return int(params.pool[prefill, PoolSpec.PARTNER])
    return route(params, state, row, DECODE, group, size, work)


@inlined_kernel
def turn(tick: int, place: int) -> float:
    """Return a number in [0, 1) that is spread evenly over ticks, over the cells of a tick, and over both together.

    A Kronecker sequence: a choice made by it keeps its proportions in every cell, in every tick and over a few ticks.
    """
    return (0.7548776662466927 * tick + 0.5698402909980532 * place) % 1.0


@inlined_kernel
def _enter(
    params: Params,
    state: State,
    row: int,
    cls: int,
    group: int,
    arrival_s: float,
    count: float,
    prompt: float,
    prompt_sq: float,
    output: float,
    deadline_s: float,
    prefill: int,
    decode: int,
) -> int:
    """Create a cohort, count it as arrived and put it into its prefill pool's inbox; return its slot."""
    slot = take_slot(state, row)
    spec = params.cls[cls]
    scoring = state.site[row, Site.SCORING]
    cohort = state.cohort[row, slot]
    cohort[Cohort.ARRIVAL_S] = arrival_s
    cohort[Cohort.COUNT] = count
    cohort[Cohort.PROMPT] = prompt
    cohort[Cohort.PROMPT_SQ] = prompt_sq
    cohort[Cohort.CACHED] = 0.0
    cohort[Cohort.OUTPUT] = output
    promised_s = (
        arrival_s + spec[ClassSpec.TTFT_A_S] + spec[ClassSpec.TTFT_B] * prompt + spec[ClassSpec.TTFT_C] * prompt_sq
    )
    cohort[Cohort.DEADLINE_S] = deadline_s if deadline_s < math.inf else promised_s
    cohort[Cohort.FIRST_TOKEN_S] = math.nan
    cohort[Cohort.G_ADMIT] = 0.0
    enter_s = arrival_s + state.cls[row, cls, Class.DELAY_S]
    cohort[Cohort.KEY] = enter_s
    ints = state.cohort_int[row, slot]
    ints[CohortInt.STAGE] = Stage.INBOX
    ints[CohortInt.CLASS] = cls
    ints[CohortInt.PREFILL_POOL] = prefill
    ints[CohortInt.DECODE_POOL] = decode
    ints[CohortInt.SCORED] = 1 if scoring > 0.0 else 0
    ints[CohortInt.DECIDED] = 0
    if params.site[SiteSpec.GATE] > 0.0:
        insert(state, row, prefill, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL, slot)
    else:
        append(state, row, prefill, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL, slot)
    state.pool_int[row, prefill, PoolInt.ASSIGNED] += 1
    state.pool_int[row, decode, PoolInt.ASSIGNED] += 1
    numbers = state.pool[row, decode]
    numbers[Pool.WAITING] += count
    numbers[Pool.WAITING_TOKENS] += count * (prompt + output)
    counters = state.cls[row, cls]
    counters[Class.ARRIVED] += scoring * count
    counters[Class.STEP_ARRIVED] += count
    counters[Class.QUEUED] += count
    state.site_int[row, SiteInt.ROUTED] += 1
    return slot


@inlined_kernel
def _with_effort(params: Params, state: State, row: int, cls: int, output: float) -> tuple[float, float]:
    """Return how long an answer gets that would have ``output`` tokens at full effort, and its value over the value then."""
    effort = state.cls[row, cls, Class.EFFORT]
    if effort >= 1.0:
        return output, 1.0
    spec = params.cls[cls]
    value = answer_value(effort, spec[ClassSpec.EFFORT_LEAST], spec[ClassSpec.EFFORT_LOSS])
    return max(1.0, effort * output), value


@inlined_kernel
def _enter_request(
    params: Params,
    state: State,
    row: int,
    cls: int,
    arrival_s: float,
    prompt: float,
    output: float,
    deadline_s: float,
    index: int,
    followed: bool,
) -> None:
    """Create a single request, unless it is turned away at the gate.

    ``index`` is its place in the trace, -1 without one; ``followed`` says that it is of a copy that keeps some requests only.
    """
    chance = (1.0, 1.0, 1.0)
    if has_cache(params):
        # Before the gate: how many numbers are drawn does not depend on what the operator does.
        stream = state.rng[row, CHANCE]
        chance = (uniform(stream), uniform(stream), uniform(stream))
    if pass_gate(params, state, row, cls, 1.0, prompt, prompt * prompt, output) < 1.0:
        return
    shorter, value = _with_effort(params, state, row, cls, output)
    if shorter < output:
        shorter = max(1.0, math.floor(shorter + 0.5))
        value *= output / shorter
    group = group_of(params, cls, prompt)
    prefill = route_request(params, state, row, PREFILL, group)
    decode = route_request_on(params, state, row, prefill, group)
    slot = _enter(
        params, state, row, cls, group, arrival_s, 1.0, prompt, prompt * prompt, shorter, deadline_s, prefill, decode
    )
    if params.site[SiteSpec.EFFORT] > 0.0:
        state.cohort[row, slot, Cohort.VALUE] = value
    if has_cache(params):
        find_request(params, state, row, slot, cls, index, followed, chance)
    state.pool[row, prefill, Pool.INFLOW] += 1.0


@inlined_kernel
def _enter_cohort(
    params: Params,
    state: State,
    row: int,
    place: int,
    arrival_s: float,
    number: int,
    begin: float,
    end: float,
    flow_s: float,
) -> None:
    """Create a cohort of those of a cell (``State.draw``) that come between two shares of the tick, if there are any.

    It has one of the cell's two outputs.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        place: The cell.
        arrival_s: When it arrives, s.
        number: Its number among the cell's cohorts, for choices by turns.
        begin: Share of the tick, 0 to 1, at which it begins.
        end: And ends.
        flow_s: Time over which its work flows in, s.
    """
    drawn = state.draw[row, place]
    whole = drawn[Draw.COUNT]
    count = math.floor(whole * end + 1e-9) - math.floor(whole * begin + 1e-9)
    if count == 0.0:
        return
    cls = int(params.cell[place, Cell.CLASS])
    group = int(params.cell[place, Cell.GROUP])
    prompt = drawn[Draw.PROMPT]
    prompt_sq = drawn[Draw.PROMPT_SQ]
    output = drawn[Draw.OUTPUT_SHORT]
    longer = drawn[Draw.OUTPUT_LONG] - output
    count = pass_gate(params, state, row, cls, count, prompt, prompt_sq, output + drawn[Draw.LONG_SHARE] * longer)
    if count == 0.0:
        return
    swing = count * longer
    if swing > 0.0:
        # By turns, and so that the cell's tokens stay within a cohort's of what they should be.
        owed = state.owed[row, place] + drawn[Draw.LONG_SHARE] * swing
        is_long = turn(number, place) * swing < owed
        output = drawn[Draw.OUTPUT_LONG] if is_long else output
        state.owed[row, place] = owed - swing if is_long else owed
    shorter, value = _with_effort(params, state, row, cls, output)
    if shorter < output:
        value *= output / shorter
        output = shorter
    # Any one prefill pool measures work: only the ratio between cohorts matters. Prefill pools come first.
    scaling, fixed = prefill_work_s(params.perf[0], prompt, prompt_sq)
    prefill = route(params, state, row, PREFILL, group, size_class(prompt), count * (scaling + fixed))
    decode = route_decode(params, state, row, prefill, group, size_class(output), count * output)
    slot = _enter(
        params,
        state,
        row,
        cls,
        group,
        arrival_s,
        count,
        prompt,
        prompt_sq,
        output,
        drawn[Draw.DEADLINE_S],
        prefill,
        decode,
    )
    if params.site[SiteSpec.EFFORT] > 0.0:
        state.cohort[row, slot, Cohort.VALUE] = value
    if has_cache(params):
        find_cohort(params, state, row, slot, cls, place)
    _add_inflow(params, state, row, slot, prefill, decode, count, prompt, prompt_sq, output, flow_s)


@inlined_kernel
def _first_place(number: int, cells: int) -> int:
    """Return the cell with which the ``number``-th slice begins.

    In a fixed order the same cells would be sent to the same pools every time.
    """
    return int(0.6180339887498949 * number % 1.0 * cells) % cells


@inlined_kernel
def _backlog_bin(state: State, time_s: float) -> int:
    """Return the ring position of the backlog bin that holds arrivals of ``time_s``."""
    return int(math.floor(time_s / BACKLOG_BIN_S)) % state.backlog.shape[2]


@inlined_kernel
def _release_hazard(state: State, row: int, cls: int, minute: int) -> float:
    """Return the share of a class's backlog that is released per second: the built-in rule's, as the operator wants it."""
    hand = state.cls[row, cls, Class.RELEASE]
    hazard = state.hazard[row, minute]
    if hand < 0.0:
        hazard *= 1.0 + hand
    elif hand > 0.0:
        hazard += hand * max(0.0, FASTEST_RELEASE_PER_S - hazard)
    return float(hazard)


@inlined_kernel
def _release_share(hazard: float, left_s: float, urgent_s: float, tick_s: float) -> float:
    """Return the share of a bin that a tick releases, with ``left_s`` to the bin's deadline."""
    share = hazard * tick_s
    if left_s < urgent_s:
        share = max(share, tick_s / max(tick_s, left_s - 0.5 * urgent_s))
    return min(1.0, share)


@kernel
def _most_released(params: Params, state: State, row: int, begin_s: float, tick_s: float, minute: int) -> float:
    """Return the most requests that a tick can release, those that arrive in it left out."""
    bins = state.backlog.shape[2]
    now_bin = int(math.floor(begin_s / BACKLOG_BIN_S))
    most = 0.0
    for cell in range(params.cell.shape[0]):
        cls = int(params.cell[cell, Cell.CLASS])
        if params.cls[cls, ClassSpec.DEFERRABLE] == 0.0:
            continue
        hazard = _release_hazard(state, row, cls, minute)
        most += state.released[row, cell] + 1.0
        for age in range(bins):
            left_s = (now_bin - age) * BACKLOG_BIN_S + params.cls[cls, ClassSpec.DEADLINE_S] - begin_s
            share = _release_share(hazard, left_s, params.site[SiteSpec.URGENT_S], tick_s)
            most += share * state.backlog[row, cell, (now_bin - age) % bins]
    return most


@kernel
def _release(
    params: Params, state: State, row: int, cell: int, begin_s: float, tick_s: float, minute: int
) -> tuple[int, float]:
    """Release deferrable requests of one cell.

    The built-in rule releases a share of every bin per second (``State.hazard``, higher in the daily valley), and a bin
    whose deadline is near evenly over the time that is left. The operator may lower the share to nothing, or raise it to
    ``FASTEST_RELEASE_PER_S``; deadlines are kept in any case.

    Returns:
        Requests released in this tick, and the deadline of the oldest among them, s.
    """
    spec = params.cls[int(params.cell[cell, Cell.CLASS])]
    bins = state.backlog.shape[2]
    urgent_s = params.site[SiteSpec.URGENT_S]
    hazard = _release_hazard(state, row, int(params.cell[cell, Cell.CLASS]), minute)
    now_bin = int(math.floor(begin_s / BACKLOG_BIN_S))
    amount = state.released[row, cell]
    deadline_s = begin_s + spec[ClassSpec.DEADLINE_S]
    newest = now_bin % bins
    for age in range(bins):
        place = newest - age if age <= newest else newest - age + bins
        waiting = state.backlog[row, cell, place]
        if waiting <= 0.0:
            continue
        # The oldest request of a bin sets the bin's deadline.
        left_s = (now_bin - age) * BACKLOG_BIN_S + spec[ClassSpec.DEADLINE_S] - begin_s
        out = waiting * _release_share(hazard, left_s, urgent_s, tick_s)
        state.backlog[row, cell, place] = waiting - out
        amount += out
        if out > 0.0:
            deadline_s = min(deadline_s, begin_s + left_s)
    whole = math.floor(amount + 1e-9)
    state.released[row, cell] = max(0.0, amount - whole)
    state.cls[row, int(params.cell[cell, Cell.CLASS]), Class.PENDING] -= whole
    return int(whole), deadline_s


@inlined_kernel
def _cell_count(
    params: Params, state: State, row: int, cell: int, begin_s: float, tick_s: float, minute: int
) -> tuple[int, float]:
    """Draw how many requests of a cell arrive in a tick; for a deferrable class, how many are released.

    Returns:
        Count, and the deadline (inf for classes with a TTFT and TPOT promise).
    """
    cls = int(params.cell[cell, Cell.CLASS])
    mean = state.rate[row, cls, minute] * params.cell[cell, Cell.WEIGHT] * tick_s
    count = poisson(state.rng[row, Purpose.ARRIVALS], mean)
    if params.cls[cls, ClassSpec.DEFERRABLE] == 0.0:
        return count, math.inf
    if count > 0:
        state.backlog[row, cell, _backlog_bin(state, begin_s)] += count
        state.cls[row, cls, Class.PENDING] += count
    return _release(params, state, row, cell, begin_s, tick_s, minute)


@inlined_kernel
def _true_output(params: Params, state: State, row: int, cls: int, output: float) -> float:
    """Return how long an answer is that is believed to have ``output`` tokens, within the longest of its class."""
    factor = state.cls[row, cls, Class.OUTPUT_FACTOR]
    if factor == 1.0:
        return output
    return max(1.0, min(params.cls[cls, ClassSpec.OUTPUT_MAX], output * factor))


@inlined_kernel
def _draw_length(mu: float, sigma: float, low: float, high: float, normal: float) -> float:
    """Return a log-normal length in whole tokens, or -1 when it lies outside [low, high] and must be drawn again."""
    value = math.exp(mu + sigma * normal)
    if value < low or value > high:
        return -1.0
    return max(1.0, math.floor(value + 0.5))


@inlined_kernel
def _draw_request(params: Params, state: State, row: int, cls: int) -> tuple[float, float]:
    """Draw prompt and output tokens of one request (truncated log-normal, independent)."""
    spec = params.cls[cls]
    stream = state.rng[row, Purpose.LENGTHS]
    prompt = -1.0
    output = -1.0
    while prompt < 0.0 or output < 0.0:
        if prompt < 0.0:
            prompt = _draw_length(
                spec[ClassSpec.PROMPT_MU],
                spec[ClassSpec.PROMPT_SIGMA],
                spec[ClassSpec.PROMPT_MIN],
                spec[ClassSpec.PROMPT_MAX],
                normal(stream),
            )
        if output < 0.0:
            output = _draw_length(
                spec[ClassSpec.OUTPUT_MU],
                spec[ClassSpec.OUTPUT_SIGMA],
                spec[ClassSpec.OUTPUT_MIN],
                spec[ClassSpec.OUTPUT_MAX],
                normal(stream),
            )
    longer = _true_output(params, state, row, cls, output)
    return prompt, output if longer == output else max(1.0, math.floor(longer + 0.5))


@inlined_kernel
def most_arrivals(params: Params, state: State, row: int, begin_s: float, tick_s: float, path_start_s: float) -> int:
    """Return how many cohort slots a tick can need, with overwhelming probability (ten standard deviations)."""
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        return 2 * CROWDED_PARTS * params.cell.shape[0] + 64
    if params.trace_time.shape[0] > 0:
        copies = state.shift.shape[1]
        most = 0
        for copy in range(copies):
            most += _trace_ahead(params, state, row, copy, begin_s, tick_s)
        return most + 64
    minute = minute_of(state, path_start_s, begin_s)
    mean = 0.0
    for cls in range(params.cls.shape[0]):
        mean += state.rate[row, cls, minute] * tick_s
    return int(mean + 10.0 * math.sqrt(mean) + 64.0 + _most_released(params, state, row, begin_s, tick_s, minute))


@kernel
def _trace_ahead(params: Params, state: State, row: int, copy: int, begin_s: float, tick_s: float) -> int:
    """Count one copy's trace requests in the tick, without moving its cursor."""
    times = params.trace_time
    requests = times.shape[0]
    span_s = params.site[SiteSpec.TRACE_SPAN_S]
    cursor = state.cursor[row, copy]
    count = 0
    while _trace_due_s(times, requests, span_s, cursor, state.shift[row, copy]) < begin_s + tick_s:
        cursor += 1
        count += 1
    return count


@inlined_kernel
def _trace_due_s(times: Array, requests: int, span_s: float, cursor: int, shift_s: float) -> float:
    """Return when the ``cursor``-th request of a shifted, repeating copy arrives, s."""
    return float(times[cursor % requests] + (cursor // requests) * span_s + shift_s - span_s)


@inlined_kernel
def _add_inflow(
    params: Params,
    state: State,
    row: int,
    slot: int,
    prefill: int,
    decode: int,
    count: float,
    prompt: float,
    prompt_sq: float,
    output: float,
    flow_s: float,
) -> None:
    """Add a cohort to what comes in ``flow_s``: its work flows into the prefill pool, its requests are bound for decode.

    What has just been written to its record is handed on, not read back.
    """
    if has_cache(params):
        prompt_left = prompt - state.cohort[row, slot, Cohort.CACHED]
        prompt_sq -= state.cohort[row, slot, Cohort.CACHED_SQ]
    else:
        prompt_left = prompt
    numbers = state.pool[row, prefill]
    perf = state.perf[row, prefill]
    scaling, fixed = prefill_work_s(perf, prompt_left, prompt_sq)
    numbers[Pool.INFLOW] += count * (scaling + fixed * compute_rate(numbers[Pool.CLOCK])) / flow_s
    # The brake must know beforehand how hard the tick's work can drive the pool.
    streaming = perf[PREFILL_STREAM_PER_TOKEN_S] * prompt_left
    numbers[Pool.INFLOW_COMPUTE] = max(numbers[Pool.INFLOW_COMPUTE], scaling / (scaling + fixed))
    numbers[Pool.INFLOW_MEMORY] = max(numbers[Pool.INFLOW_MEMORY], streaming / (scaling + fixed))
    bound = state.pool[row, decode]
    bound[Pool.COMING] += count / flow_s
    bound[Pool.COMING_TOKENS] += count * (prompt + output) / flow_s


@inlined_kernel
def _crowded(params: Params, state: State, row: int) -> bool:
    """Tell whether a decode pool is nearly full."""
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.PHASE] == DECODE and nearly_full(params, state, row, pool):
            return True
    return False


@kernel
def _draw_cells(params: Params, state: State, row: int, begin_s: float, tick_s: float, minute: int) -> None:
    """Draw what a tick brings of each cell."""
    for place in range(params.cell.shape[0]):
        cell = params.cell[place]
        drawn = state.draw[row, place]
        drawn[Draw.COUNT], drawn[Draw.DEADLINE_S] = _cell_count(params, state, row, place, begin_s, tick_s, minute)
        drawn[Draw.PROMPT] = cell[Cell.PROMPT]
        drawn[Draw.PROMPT_SQ] = cell[Cell.PROMPT_SQ]
        cls = int(cell[Cell.CLASS])
        drawn[Draw.OUTPUT_SHORT] = _true_output(params, state, row, cls, cell[Cell.OUTPUT_SHORT])
        drawn[Draw.OUTPUT_LONG] = _true_output(params, state, row, cls, cell[Cell.OUTPUT_LONG])
        drawn[Draw.LONG_SHARE] = cell[Cell.LONG_SHARE]


@kernel
def _enter_cells(params: Params, state: State, row: int, tick_begin_s: float, tick_s: float) -> int:
    """Create the cohorts of the rest of a tick, one per cell; while a decode pool is nearly full, of one slice, and many.

    They are spread evenly over the time they are for, in the order of the cells, which spreads classes and lengths.

    Returns:
        Slices entered.
    """
    slices = int(params.site[SiteSpec.SLICES])
    first = state.site_int[row, SiteInt.SLICE]
    entered = slices - first
    parts = 1
    if _crowded(params, state, row):
        entered = 1
        parts = CROWDED_PARTS
    cells = params.cell.shape[0]
    units = slices * CROWDED_PARTS
    tick = int(math.floor(tick_begin_s / tick_s + 0.5))
    flow_s = tick_s * entered / slices
    begin_s = tick_begin_s + tick_s * first / slices
    start = _first_place(tick * slices + first, cells)
    for part in range(parts):
        unit = first * CROWDED_PARTS + part
        place = start
        for index in range(cells):
            ask_for_slot(state, row, _SLOTS_AHEAD)
            _enter_cohort(
                params,
                state,
                row,
                place,
                begin_s + (part * cells + index + 0.5) / (parts * cells) * flow_s,
                tick * units + unit,
                unit / units,
                (unit + 1.0) / units if parts > 1 else (first + entered) / slices,
                flow_s,
            )
            place += 1
            if place == cells:
                place = 0
    return entered


@inlined_kernel
def _pick_class(params: Params, state: State, row: int, pick: float, minute: int) -> int:
    """Return the first class at whose end ``pick``, of the sum of rates, is used up: counted without a branch that could not be foreseen."""
    cls = 0
    beyond = 1
    for passed in range(params.cls.shape[0] - 1):
        pick -= state.rate[row, passed, minute] if params.cls[passed, ClassSpec.DEFERRABLE] == 0.0 else 0.0
        beyond = beyond if pick >= 0.0 else 0
        cls += beyond
    return cls


@kernel
def _synthetic_requests(params: Params, state: State, row: int, begin_s: float, tick_s: float, minute: int) -> None:
    """Create one tick's requests one by one, in order of arrival, as a Poisson process over all classes."""
    stream = state.rng[row, Purpose.ARRIVALS]
    classes = params.cls.shape[0]
    total = 0.0
    for cls in range(classes):
        if params.cls[cls, ClassSpec.DEFERRABLE] == 0.0:
            total += state.rate[row, cls, minute]
    for place in range(params.cell.shape[0]):
        if params.cls[int(params.cell[place, Cell.CLASS]), ClassSpec.DEFERRABLE] > 0.0:
            count, deadline_s = _cell_count(params, state, row, place, begin_s, tick_s, minute)
            # Released work of a tick enters together at its start, before the tick's arrivals.
            for _ in range(count):
                held = int(params.cell[place, Cell.CLASS])
                prompt, output = _draw_request(params, state, row, held)
                _enter_request(params, state, row, held, begin_s, prompt, output, deadline_s, -1, False)
    # Nothing else uses the ready line of a prefill pool. Drawn in blocks, requests need not wait for each other: what is drawn for one
    # does not depend on where the one before goes.
    drawn = state.heap_key[row, 0, READY_LINE]
    drawn_class = state.heap_slot[row, 0, READY_LINE]
    block = min(_BLOCK, drawn.shape[0] // 3)
    end_s = begin_s + tick_s
    mean_s = 1.0 / total if total > 0.0 else math.inf
    time_s = begin_s + exponential(stream) * mean_s
    while time_s < end_s:
        found = 0
        while found < block and time_s < end_s:
            drawn[found] = time_s
            drawn_class[found] = _pick_class(params, state, row, uniform(stream) * total, minute)
            found += 1
            time_s += exponential(stream) * mean_s
        for index in range(found):
            prompt, output = _draw_request(params, state, row, drawn_class[index])
            drawn[block + index] = prompt
            drawn[2 * block + index] = output
            ask_for_slot(state, row, index)
        for index in range(found):
            prompt = drawn[block + index]
            output = drawn[2 * block + index]
            _enter_request(params, state, row, drawn_class[index], drawn[index], prompt, output, math.inf, -1, False)


@kernel
def _trace_requests(params: Params, state: State, row: int, begin_s: float, tick_s: float) -> None:
    """Create one tick's requests of a replayed trace, all shifted copies merged in order of arrival."""
    times = params.trace_time
    requests = times.shape[0]
    span_s = params.site[SiteSpec.TRACE_SPAN_S]
    copies = state.shift.shape[1]
    thinned = copies - 1 if params.site[SiteSpec.THIN_FRACTION] < 1.0 else -1
    # The ready heap of a prefill pool is never used otherwise; here it puts the copies' requests in order.
    keys = state.heap_key[row, 0, 0]
    indices = state.heap_slot[row, 0, 0]
    found = 0
    for copy in range(copies):
        shift_s = state.shift[row, copy]
        while True:
            cursor = state.cursor[row, copy]
            due_s = _trace_due_s(times, requests, span_s, cursor, shift_s)
            if due_s >= begin_s + tick_s:
                break
            state.cursor[row, copy] = cursor + 1
            index = cursor % requests
            if copy == thinned and not state.kept[row, index]:
                continue
            # Whether a request is of the thinned copy is told by its number, where that matters.
            beyond = requests if copy == thinned and has_cache(params) else 0
            push(keys, indices, found, max(due_s, begin_s), index + beyond)
            found += 1
    while found > 0:
        due_s = keys[0]
        number = pop(keys, indices, found)
        found -= 1
        index = number % requests
        cls = int(params.cell[params.trace_cell[index], Cell.CLASS])
        _enter_request(
            params,
            state,
            row,
            cls,
            due_s,
            params.trace_prompt[index],
            params.trace_output[index],
            math.inf,
            index,
            number >= requests,
        )


@kernel
def _sum_cells(params: Params, state: State, row: int, begin_s: float, tick_s: float) -> None:
    """Sum up what a tick of a replayed trace brings of each cell: exact count, mean prompt, two outputs."""
    times = params.trace_time
    requests = times.shape[0]
    span_s = params.site[SiteSpec.TRACE_SPAN_S]
    copies = state.shift.shape[1]
    thinned = copies - 1 if params.site[SiteSpec.THIN_FRACTION] < 1.0 else -1
    draw = state.draw[row]
    for place in range(draw.shape[0]):
        for column in range(draw.shape[1]):
            draw[place, column] = 0.0
    if has_cache(params):
        for place in range(draw.shape[0]):
            for pool in range(state.found.shape[2]):
                for column in range(state.found.shape[3]):
                    state.found[row, place, pool, column] = 0.0
    for copy in range(copies):
        shift_s = state.shift[row, copy]
        while True:
            cursor = state.cursor[row, copy]
            if _trace_due_s(times, requests, span_s, cursor, shift_s) >= begin_s + tick_s:
                break
            state.cursor[row, copy] = cursor + 1
            index = cursor % requests
            if copy == thinned and not state.kept[row, index]:
                continue
            drawn = draw[params.trace_cell[index]]
            prompt = params.trace_prompt[index]
            output = params.trace_output[index]
            drawn[Draw.COUNT] += 1.0
            drawn[Draw.PROMPT] += prompt
            drawn[Draw.PROMPT_SQ] += prompt * prompt
            drawn[Draw.OUTPUT_SHORT] += output
            drawn[Draw.OUTPUT_LONG] += output * output
            drawn[Draw.LONG_SHARE] += output * output * output
            if has_cache(params):
                add_found(params, state, row, params.trace_cell[index], index, copy == thinned)
    for place in range(draw.shape[0]):
        drawn = draw[place]
        drawn[Draw.DEADLINE_S] = math.inf
        count = drawn[Draw.COUNT]
        if count > 0.0:
            for column in range(Draw.PROMPT, Draw.DEADLINE_S):
                drawn[column] /= count
            short, long, long_share = two_lengths(
                drawn[Draw.OUTPUT_SHORT], drawn[Draw.OUTPUT_LONG], drawn[Draw.LONG_SHARE]
            )
            drawn[Draw.OUTPUT_SHORT] = short
            drawn[Draw.OUTPUT_LONG] = long
            drawn[Draw.LONG_SHARE] = long_share
            if has_cache(params):
                for pool in range(state.found.shape[2]):
                    for column in range(state.found.shape[3]):
                        state.found[row, place, pool, column] /= count


@kernel
def admit(params: Params, state: State, row: int, begin_s: float, tick_s: float, path_start_s: float) -> int:
    """Create the next work of a tick and put it into the prefill pools' inboxes.

    What a tick brings is drawn as it begins, whatever is going on at the site; how much of it is grouped is decided slice
    by slice.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        begin_s: Start of the tick, s.
        tick_s: Its length, s.
        path_start_s: Time at which the rate path begins, s.

    Returns:
        Slices of the tick whose work was created.
    """
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        numbers[Pool.INFLOW] = 0.0
        numbers[Pool.INFLOW_COMPUTE] = 0.0
        numbers[Pool.INFLOW_MEMORY] = 0.0
        numbers[Pool.COMING] = 0.0
        numbers[Pool.COMING_TOKENS] = 0.0
    if has_cache(params) and state.site_int[row, SiteInt.SLICE] == 0:
        update_caches(params, state, row, begin_s)
    minute = minute_of(state, path_start_s, begin_s)
    replayed = params.trace_time.shape[0] > 0
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        if state.site_int[row, SiteInt.SLICE] == 0:
            if replayed:
                _sum_cells(params, state, row, begin_s, tick_s)
            else:
                _draw_cells(params, state, row, begin_s, tick_s, minute)
        return _enter_cells(params, state, row, begin_s, tick_s)
    if replayed:
        _trace_requests(params, state, row, begin_s, tick_s)
    else:
        _synthetic_requests(params, state, row, begin_s, tick_s, minute)
    for pool in range(params.pool.shape[0]):
        state.pool[row, pool, Pool.INFLOW] /= tick_s
    return 1
