"""Cohort slots and the fate of requests: the only place that counts arrived, met, missed and good tokens."""

from __future__ import annotations

import math

import numpy as np

from ai_factory_gym.engine.layout import (
    DECODE_BYTES,
    HISTOGRAM_BINS,
    HISTOGRAM_BINS_PER_DECADE,
    HISTOGRAM_LOW_S,
    TPOT,
    TTFT,
    Array,
    Class,
    ClassSpec,
    Cohort,
    CohortInt,
    Log,
    Params,
    Pool,
    PoolInt,
    Site,
    SiteInt,
    SiteSpec,
    Span,
    Stage,
    State,
)
from ai_factory_gym.engine.lowering import ask_to_write
from ai_factory_gym.jit import inlined_kernel, kernel

DAY_S = 86400.0

MOST_HELD = 0.8
"""Largest share of their patience that requests may be held at the gate (status: design choice): the rest is for the queues behind it."""

_UPPER_EDGE_S = HISTOGRAM_LOW_S * 10.0 ** (np.arange(1, HISTOGRAM_BINS) / HISTOGRAM_BINS_PER_DECADE)
"""Upper edge of every bin but the last, s."""

_PREFIX_BITS = 47
_LOWEST_PREFIX = int(np.float64(HISTOGRAM_LOW_S).view(np.int64)) >> _PREFIX_BITS
_FIRST_BIN = np.searchsorted(
    _UPPER_EDGE_S,
    (np.arange(_LOWEST_PREFIX, int(_UPPER_EDGE_S[-1].view(np.int64) >> _PREFIX_BITS) + 1) << _PREFIX_BITS).view(
        np.float64
    ),
    side="right",
)
"""Lowest bin of the numbers that share sign, exponent and the first five bits after the point, which at most one edge divides: faster
than a logarithm."""


@inlined_kernel
def histogram_bin(seconds: float) -> int:
    """Return the log bin of a latency in seconds."""
    if seconds < _UPPER_EDGE_S[0]:
        return 0
    if seconds >= _UPPER_EDGE_S[-1]:
        return HISTOGRAM_BINS - 1
    index = int(_FIRST_BIN[(np.float64(seconds).view(np.int64) >> _PREFIX_BITS) - _LOWEST_PREFIX])
    return index + 1 if seconds >= _UPPER_EDGE_S[index] else index


@inlined_kernel
def _count_latency(state: State, row: int, cls: int, kind: int, seconds: float, count: float) -> None:
    """Count requests with a latency (TTFT or TPOT) in their class's histogram."""
    index = histogram_bin(seconds)
    state.histogram[row, cls, kind, index] += int(count)
    span = state.span[row, cls, kind]
    span[Span.BELOW_TOP] = max(span[Span.BELOW_TOP], HISTOGRAM_BINS - index)
    span[Span.END] = max(span[Span.END], index + 1)


@inlined_kernel
def ask_for_slot(state: State, row: int, others: int) -> None:
    """Ask for the record of the slot that will be taken after ``others`` others: it is going to be written to."""
    slot = int(state.free[row, max(0, state.site_int[row, SiteInt.FREE] - 1 - others)])
    ask_to_write(state.cohort[row, slot], 0)
    ask_to_write(state.cohort[row, slot], DECODE_BYTES)
    ask_to_write(state.cohort_int[row, slot], 0)


@inlined_kernel
def take_slot(state: State, row: int) -> int:
    """Take a free cohort slot; the caller has checked that there is one."""
    site_int = state.site_int[row]
    site_int[SiteInt.FREE] -= 1
    slot = int(state.free[row, site_int[SiteInt.FREE]])
    if slot >= site_int[SiteInt.HIGH_WATER]:
        site_int[SiteInt.HIGH_WATER] = slot + 1
    return slot


@inlined_kernel
def release_slot(state: State, row: int, slot: int) -> None:
    """Give a slot back; the cohort has left the site."""
    state.cohort_int[row, slot, CohortInt.STAGE] = Stage.FREE
    site_int = state.site_int[row]
    state.free[row, site_int[SiteInt.FREE]] = slot
    site_int[SiteInt.FREE] += 1


@inlined_kernel
def reference_energy_j(spec: Array, prompt: float, prompt_sq: float, output: float) -> float:
    """Return the joules a request of this class and size costs at the task's reference point.

    Args:
        spec: float64[ClassSpec] of the class.
        prompt: Prompt tokens.
        prompt_sq: Their square (mean of squares for a cohort).
        output: Output tokens.
    """
    return (
        spec[ClassSpec.PREFILL_J_PER_TOKEN] * prompt
        + spec[ClassSpec.PREFILL_J_PER_TOKEN2] * prompt_sq
        + spec[ClassSpec.DECODE_J_PER_TOKEN] * output
    )


@inlined_kernel
def price_usd(spec: Array, prompt: float, output: float) -> float:
    """Return what a request of a class pays, USD.

    Args:
        spec: float64[ClassSpec] of the class.
        prompt: Prompt tokens.
        output: Output tokens.
    """
    return spec[ClassSpec.INPUT_USD] * prompt + spec[ClassSpec.OUTPUT_USD] * output


@inlined_kernel
def value_per_token(params: Params, state: State, row: int, slot: int) -> float:
    """Return what an output token of a cohort is worth: 1 at full effort, more where a shorter answer has to do."""
    if params.site[SiteSpec.EFFORT] > 0.0:
        return float(state.cohort[row, slot, Cohort.VALUE])
    return 1.0


@inlined_kernel
def count_missed(
    params: Params, state: State, row: int, cls: int, count: float, prompt: float, prompt_sq: float, output: float
) -> None:
    """Count ``count`` scored requests of one size as missed; ``output`` is what their answers are worth, in tokens at full effort."""
    counters = state.cls[row, cls]
    counters[Class.MISSED] += count
    counters[Class.STEP_MISSED] += count
    counters[Class.RECENT_MISSED] += count
    site = state.site[row]
    site[Site.STEP_MISSED_TOKENS] += count * output
    site[Site.STEP_MISSED_REFERENCE_J] += count * reference_energy_j(params.cls[cls], prompt, prompt_sq, output)
    if params.site[SiteSpec.MONEY] > 0.0:
        penalty_usd = params.site[SiteSpec.PENALTY_SHARE] * count * price_usd(params.cls[cls], prompt, output)
        counters[Class.PENALTY_USD] += penalty_usd
        site[Site.STEP_PENALTY_USD] += penalty_usd


@inlined_kernel
def miss(params: Params, state: State, row: int, slot: int) -> None:
    """Decide a cohort's fate: its SLO is missed. Does nothing when the fate is decided already."""
    ints = state.cohort_int[row, slot]
    if ints[CohortInt.DECIDED]:
        return
    ints[CohortInt.DECIDED] = 1
    if ints[CohortInt.SCORED]:
        cohort = state.cohort[row, slot]
        count_missed(
            params,
            state,
            row,
            ints[CohortInt.CLASS],
            cohort[Cohort.COUNT],
            cohort[Cohort.PROMPT],
            cohort[Cohort.PROMPT_SQ],
            cohort[Cohort.OUTPUT] * value_per_token(params, state, row, slot),
        )


@inlined_kernel
def meet(params: Params, state: State, row: int, slot: int, good_tokens: float) -> None:
    """Decide a cohort's fate: both SLOs are met. ``good_tokens`` are those emitted inside the scored window."""
    ints = state.cohort_int[row, slot]
    if ints[CohortInt.DECIDED]:
        return
    ints[CohortInt.DECIDED] = 1
    site = state.site[row]
    site[Site.GOOD_TOKENS] += good_tokens
    site[Site.STEP_GOOD_TOKENS] += good_tokens
    value_tokens = good_tokens * value_per_token(params, state, row, slot)
    site[Site.VALUE_TOKENS] += value_tokens
    site[Site.STEP_VALUE_TOKENS] += value_tokens
    counters = state.cls[row, ints[CohortInt.CLASS]]
    counters[Class.GOOD_TOKENS] += good_tokens
    if ints[CohortInt.SCORED]:
        count = state.cohort[row, slot, Cohort.COUNT]
        counters[Class.MET] += count
        counters[Class.STEP_MET] += count
        counters[Class.RECENT_MET] += count


@inlined_kernel
def write_log(state: State, row: int, slot: int, ttft_s: float, tpot_s: float, met: bool) -> None:
    """Append a line to the request log while there is room."""
    line = state.site_int[row, SiteInt.LOGGED]
    if line >= state.log.shape[1] or not state.cohort_int[row, slot, CohortInt.SCORED]:
        return
    state.site_int[row, SiteInt.LOGGED] = line + 1
    cohort = state.cohort[row, slot]
    entry = state.log[row, line]
    entry[Log.CLASS] = state.cohort_int[row, slot, CohortInt.CLASS]
    entry[Log.ARRIVAL_S] = cohort[Cohort.ARRIVAL_S]
    entry[Log.COUNT] = cohort[Cohort.COUNT]
    entry[Log.PROMPT] = cohort[Cohort.PROMPT]
    entry[Log.OUTPUT] = cohort[Cohort.OUTPUT]
    entry[Log.TTFT_S] = ttft_s
    entry[Log.TPOT_S] = tpot_s
    entry[Log.MET] = 1.0 if met else 0.0


@inlined_kernel
def reject(params: Params, state: State, row: int, slot: int) -> None:
    """Turn a cohort away on arrival: it is missed and leaves the site."""
    ints = state.cohort_int[row, slot]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    decode = state.pool[row, ints[CohortInt.DECODE_POOL]]
    decode[Pool.WAITING] -= count
    decode[Pool.WAITING_TOKENS] -= count * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])
    state.pool_int[row, ints[CohortInt.PREFILL_POOL], PoolInt.ASSIGNED] -= 1
    state.pool_int[row, ints[CohortInt.DECODE_POOL], PoolInt.ASSIGNED] -= 1
    counters = state.cls[row, ints[CohortInt.CLASS]]
    counters[Class.QUEUED] -= count
    miss(params, state, row, slot)
    if ints[CohortInt.SCORED]:
        counters[Class.REJECTED] += count
    write_log(state, row, slot, math.nan, math.nan, False)
    release_slot(state, row, slot)


@inlined_kernel
def held_at_most_s(spec: Array) -> float:
    """Return how long requests of a class may be held at the gate, s: a part of their patience; deferrable ones wait elsewhere."""
    if spec[ClassSpec.DEFERRABLE] > 0.0 or spec[ClassSpec.PATIENCE_S] == math.inf:
        return 0.0
    return float(MOST_HELD * spec[ClassSpec.PATIENCE_S])


@inlined_kernel
def _spent(params: Params, state: State, row: int, cls: int) -> bool:
    """Tell whether a class whose budget is a cap has spent that of the days begun so far."""
    spec = params.cls[cls]
    if spec[ClassSpec.BUDGET_CAPPED] == 0.0:
        return False
    days = math.floor(state.site[row, Site.SCORED_S] / DAY_S) + 1.0
    return bool(state.cls[row, cls, Class.REVENUE_USD] >= days * DAY_S * spec[ClassSpec.BUDGET_USD_PER_S])


@inlined_kernel
def pass_gate(
    params: Params,
    state: State,
    row: int,
    cls: int,
    count: float,
    prompt: float,
    prompt_sq: float,
    output: float,
) -> float:
    """Let in those of ``count`` requests that the operator admits; the others have arrived, are missed, and never enter.

    Fractions are carried over, so that of many requests of a class exactly the admitted share comes in. Where customers have capped their
    budget and it is spent, nobody comes in, and nothing counts as missed.

    Returns:
        Requests admitted, a whole number.
    """
    counters = state.cls[row, cls]
    if params.site[SiteSpec.MONEY] > 0.0 and _spent(params, state, row, cls):
        counters[Class.OVER_BUDGET] += state.site[row, Site.SCORING] * count
        return 0.0
    if counters[Class.ADMITTED] >= 1.0:
        return count
    owed = counters[Class.ADMISSION_OWED] + counters[Class.ADMITTED] * count
    admitted = min(count, math.floor(owed + 1e-9))
    counters[Class.ADMISSION_OWED] = owed - admitted
    away = count - admitted
    if away > 0.0:
        counters[Class.STEP_ARRIVED] += away
        if state.site[row, Site.SCORING] > 0.0:
            counters[Class.ARRIVED] += away
            counters[Class.REJECTED] += away
            count_missed(params, state, row, cls, away, prompt, prompt_sq, output)
    return admitted


@inlined_kernel
def first_token(params: Params, state: State, row: int, slot: int, time_s: float) -> None:
    """Record a cohort's first token at ``time_s``; misses it when that is late, else promises the last token's time."""
    cohort = state.cohort[row, slot]
    ints = state.cohort_int[row, slot]
    cls = ints[CohortInt.CLASS]
    count = cohort[Cohort.COUNT]
    if state.site[row, Site.FAULTS] > 0.0 and not math.isnan(cohort[Cohort.FIRST_TOKEN_S]):
        # It was lost with a rack and starts anew: the user had the first token, and the promise of the last one stands.
        return
    cohort[Cohort.FIRST_TOKEN_S] = time_s
    ttft_s = time_s - cohort[Cohort.ARRIVAL_S]
    counters = state.cls[row, cls]
    counters[Class.QUEUED] -= count
    counters[Class.STEP_TTFT_SUM_S] += count * ttft_s
    counters[Class.STEP_TTFT_COUNT] += count
    if ints[CohortInt.SCORED]:
        counters[Class.TTFT_SUM_S] += count * ttft_s
        counters[Class.TTFT_COUNT] += count
        _count_latency(state, row, cls, TTFT, ttft_s, count)
    spec = params.cls[cls]
    deadline_s = cohort[Cohort.DEADLINE_S]
    promised = spec[ClassSpec.DEFERRABLE] == 0.0
    if promised & (time_s > deadline_s):
        miss(params, state, row, slot)
    else:
        # One part in a billion absorbs the rounding of a request that runs at exactly its limit.
        last_s = time_s + spec[ClassSpec.TPOT_S] * (cohort[Cohort.OUTPUT] - 1.0) * (1.0 + 1e-9) + 1e-9
        # Where the first token is the last there is no pace to keep.
        last_s = last_s if cohort[Cohort.OUTPUT] > 1.0 else math.inf
        cohort[Cohort.DEADLINE_S] = last_s if promised else deadline_s


@inlined_kernel
def last_token(params: Params, state: State, row: int, slot: int, time_s: float, good_tokens: float) -> None:
    """Record a cohort's last token: its fate is decided and it leaves the site."""
    cohort = state.cohort[row, slot]
    ints = state.cohort_int[row, slot]
    cls = ints[CohortInt.CLASS]
    count = cohort[Cohort.COUNT]
    output = cohort[Cohort.OUTPUT]
    if params.session.shape[0] > 0 and ints[CohortInt.SCORED]:
        state.cls[row, cls, Class.BUSY_S] += count * (time_s - cohort[Cohort.ARRIVAL_S])
        state.cls[row, cls, Class.ANSWERED] += count
    tpot_s = 0.0
    if output > 1.0:
        # The first token was dated at admission, at the pace of that moment: under a brake that lets go, the last may be earlier.
        tpot_s = max(0.0, time_s - cohort[Cohort.FIRST_TOKEN_S]) / (output - 1.0)
        if ints[CohortInt.SCORED]:
            counters = state.cls[row, cls]
            counters[Class.TPOT_SUM_S] += count * tpot_s
            counters[Class.TPOT_COUNT] += count
            _count_latency(state, row, cls, TPOT, tpot_s, count)
    # A promise broken earlier has decided the fate already.
    met = not ints[CohortInt.DECIDED] and time_s <= cohort[Cohort.DEADLINE_S]
    if met:
        meet(params, state, row, slot, good_tokens)
    else:
        miss(params, state, row, slot)
    if params.site[SiteSpec.MONEY] > 0.0 and ints[CohortInt.SCORED]:
        # Whoever is served pays, in time or not; what lateness costs is the penalty of a missed request.
        prompt = cohort[Cohort.PROMPT]
        paid_usd = count * price_usd(params.cls[cls], prompt, output)
        counters = state.cls[row, cls]
        counters[Class.REVENUE_USD] += paid_usd
        counters[Class.PAID_PROMPT] += count * prompt
        counters[Class.PAID_OUTPUT] += count * output
        prompt_sq = cohort[Cohort.PROMPT_SQ]
        if params.cache.shape[0] > 0:
            prompt -= cohort[Cohort.CACHED]
            prompt_sq -= cohort[Cohort.CACHED_SQ]
        counters[Class.SERVED_J] += count * reference_energy_j(params.cls[cls], prompt, prompt_sq, output)
        state.site[row, Site.STEP_REVENUE_USD] += paid_usd
    write_log(state, row, slot, cohort[Cohort.FIRST_TOKEN_S] - cohort[Cohort.ARRIVAL_S], tpot_s, met)
    state.pool_int[row, ints[CohortInt.PREFILL_POOL], PoolInt.ASSIGNED] -= 1
    state.pool_int[row, ints[CohortInt.DECODE_POOL], PoolInt.ASSIGNED] -= 1
    release_slot(state, row, slot)


@kernel
def sweep(params: Params, state: State, row: int, now_s: float) -> None:
    """Decide the fate of every cohort whose promise can no longer be kept."""
    for slot in range(state.site_int[row, SiteInt.HIGH_WATER]):
        ints = state.cohort_int[row, slot]
        if ints[CohortInt.STAGE] != Stage.FREE and not ints[CohortInt.DECIDED]:
            if now_s > state.cohort[row, slot, Cohort.DEADLINE_S]:
                miss(params, state, row, slot)
