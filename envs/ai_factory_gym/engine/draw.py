"""What the site draws, and what keeps it under the cap: clock ceilings, power limits, the power brake."""

from __future__ import annotations

import math

from ai_factory_gym.engine.calendar import find_until, place_of
from ai_factory_gym.engine.decode import PACE_S, nearly_full
from ai_factory_gym.engine.generation import use_units
from ai_factory_gym.engine.health import gpus_out, units_per_rack, working_share
from ai_factory_gym.engine.heat import LOOK_AHEAD_S, heat_allows_w, warm_coolant
from ai_factory_gym.engine.layout import (
    COHORT,
    NOBODY,
    PREFILL,
    READY_LINE,
    REQUEST,
    SEPARATE,
    SHARED_GPUS,
    CapStep,
    Cohort,
    CohortInt,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteSpec,
    State,
)
from ai_factory_gym.engine.prefill import server_seconds, uncached_work_s
from ai_factory_gym.engine.racks import next_rack_change_s
from ai_factory_gym.engine.smoothing import note_shaved, smooth_draw, wanted_of_battery_w
from ai_factory_gym.engine.supply import (
    JOULES_PER_KWH,
    JOULES_PER_MWH,
    battery_help_w,
    meter_peak,
    meter_quarter,
    use_battery,
)
from ai_factory_gym.engine.training import (
    BY_BRAKE,
    block_draw_w,
    book_training,
    meter_bursts,
    next_training_change_s,
    training_clock,
)
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.cooling import pue
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    PREFILL_STREAM_PER_TOKEN_S,
    compute_rate,
    decode_iteration_s,
)
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W, gpu_power_w, rack_power_w

_BISECTIONS = 24
_LOWEST_CLOCK = 0.2

SURE = 0.99
"""Share of the cap up to which a predicted draw is trusted for a whole segment. The bound takes the mix of contexts in a decode batch
as it is, and arrivals of a tick as even; a test looks for segments that were trusted and drew more than the cap."""

_UNEVEN_S = 1.0
"""Arrivals that the bound counts beyond those of its time, s: cohorts come one after the other, a handful a second, not evenly."""

_ROUNDING = 1e-12
"""Share of the cap by which sums of powers may miss it."""

_SHORTEST_S = 1e-6
"""Shortest segment, s: a rack that fails within the brake's reaction cuts what is left of it."""

_FIT_S = 5.0
"""Segment that is tried where draw may exceed the cap by the end of a longer one, s; the longest one where a rack's limit binds."""

EVENTS_S = 0.1
"""Segment at request resolution in which few requests join a batch, s (status: design choice)."""

_MOMENT_S = 1e-3
"""A time in which any backlog keeps all servers busy, s."""

_CONGESTED_COHORTS_S = 0.5
_CONGESTED_REQUESTS_S = 0.05
"""Longest segment while a decode pool is nearly full, at either resolution, s."""


@inlined_kernel
def cap_now_w(state: State, row: int, time_s: float) -> float:
    """Return the facility cap in force at ``time_s``, W."""
    steps = state.cap_steps[row]
    cap_w = steps[0, CapStep.CAP_W]
    for step in range(steps.shape[0]):
        if steps[step, CapStep.TIME_S] > time_s:
            break
        cap_w = steps[step, CapStep.CAP_W]
    return float(cap_w)


@inlined_kernel
def next_cap_change_s(state: State, row: int, time_s: float) -> float:
    """Return when the cap changes next, s; inf when it does not."""
    steps = state.cap_steps[row]
    for step in range(steps.shape[0]):
        if steps[step, CapStep.TIME_S] > time_s:
            return float(steps[step, CapStep.TIME_S])
    return math.inf


@kernel
def pool_power_w(
    params: Params, state: State, row: int, pool: int, clock: float, busy: float, compute: float, memory: float
) -> float:
    """Return the IT power of a pool, W.

    Args:
        params: Site parameters.
        state: Engine state (racks by state).
        row: Row.
        pool: Pool.
        clock: Clock in force.
        busy: Share of the awake racks' time in which they run, 0 to 1.
        compute: Share of time compute units work (at most ``busy``).
        memory: Share of time the memory system works (at most ``busy``).
    """
    power = state.power[row, pool]
    ints = state.pool_int[row, pool]
    share_compute = compute / busy if busy > 0.0 else 0.0
    share_memory = memory / busy if busy > 0.0 else 0.0
    # GPUs that are out of service draw nothing; switches, fans and pumps of their racks go on.
    gpu_w = gpu_power_w(power, clock, busy, share_compute, share_memory) * working_share(state, row, pool)
    rack_w = rack_power_w(power, gpu_w)
    return (
        (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * rack_w
        + ints[PoolInt.WAKING] * power[POWER_WAKE_RACK_W]
        + (ints[PoolInt.ASLEEP] + ints[PoolInt.FAILED]) * power[POWER_SLEEP_RACK_W]
    )


@kernel
def _decode_power_w(
    params: Params,
    state: State,
    row: int,
    pool: int,
    clock: float,
    duty: float,
    in_flight: float,
    context: float,
) -> float:
    """Return a decode pool's power with ``in_flight`` requests of ``context`` KV tokens each on average, W."""
    ints = state.pool_int[row, pool]
    replicas = (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    if in_flight <= 0.0 or replicas <= 0.0 or duty <= 0.0:
        return pool_power_w(params, state, row, pool, clock, 0.0, 0.0, 0.0)
    iteration, compute_s, memory_s = decode_iteration_s(
        state.perf[row, pool], max(1.0, in_flight / replicas), context, clock
    )
    busy = duty * min(1.0, in_flight / replicas)
    return pool_power_w(
        params, state, row, pool, clock, busy, busy * compute_s / iteration, busy * memory_s / iteration
    )


@kernel
def _note_later(params: Params, state: State, row: int, from_s: float, slice_end_s: float) -> None:
    """Note for each decode pool what comes between ``from_s`` and the end of the present slice, and cannot draw before.

    It is what lies in the inboxes with a later arrival. As much is left out as an even flow would bring, where that is less: what
    is in prefill or in transfer counts in any case.
    """
    for pool in range(params.pool.shape[0]):
        state.pool[row, pool, Pool.LATER] = 0.0
        state.pool[row, pool, Pool.LATER_TOKENS] = 0.0
    even_s = slice_end_s - from_s - _UNEVEN_S
    if even_s <= 0.0 or params.site[SiteSpec.RESOLUTION] == REQUEST:
        return
    for pool in range(params.pool.shape[0]):
        slot = state.pool_int[row, pool, PoolInt.INBOX_HEAD]
        while slot != NOBODY:
            cohort = state.cohort[row, slot]
            if cohort[Cohort.KEY] >= from_s:
                numbers = state.pool[row, state.cohort_int[row, slot, CohortInt.DECODE_POOL]]
                numbers[Pool.LATER] += cohort[Cohort.COUNT]
                numbers[Pool.LATER_TOKENS] += cohort[Cohort.COUNT] * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])
            slot = state.link[row, slot]
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        numbers[Pool.LATER] = min(numbers[Pool.LATER], even_s * numbers[Pool.COMING])
        numbers[Pool.LATER_TOKENS] = min(numbers[Pool.LATER_TOKENS], even_s * numbers[Pool.COMING_TOKENS])


@inlined_kernel
def _most_busy(params: Params, state: State, row: int, pool: int, seconds: float, clock: float, duty: float) -> float:
    """Return an upper bound of the share of the next ``seconds`` in which a prefill pool's racks run."""
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    servers = float(ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    if servers <= 0.0 or duty <= 0.0:
        return 0.0
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        capacity = servers * compute_rate(clock) * duty
        return float(min(1.0, (numbers[Pool.BACKLOG] / seconds + numbers[Pool.INFLOW]) / capacity) * duty)
    waiting = ints[PoolInt.SERVING] + numbers[Pool.QUEUED] + numbers[Pool.INFLOW] * seconds
    return float(min(1.0, waiting / servers) * duty)


@kernel
def _most_power_w(
    params: Params, state: State, row: int, pool: int, seconds: float, clock: float, duty: float
) -> float:
    """Return an upper bound of a pool's mean power over the next ``seconds``, W.

    Prefill: no more can be served than waits, is in service or arrives. Decode: no request finishes and every request
    bound for the pool joins the batch, as far as its memory holds them, but those that ``_note_later`` has noted.
    """
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    spec = params.pool[pool]
    if spec[PoolSpec.PHASE] == PREFILL:
        busy = _most_busy(params, state, row, pool, seconds, clock, duty)
        if busy > 0.0:
            if params.site[SiteSpec.RESOLUTION] == COHORT:
                # What will be in service mixes what is and what arrives, so each activity stays below the larger of the two.
                # Only compute slows down with the clock: a cohort's share s at clock 1 becomes s / (s + (1 - s) rate).
                arriving = numbers[Pool.INFLOW_COMPUTE]
                if arriving > 0.0:
                    arriving /= arriving + (1.0 - arriving) * compute_rate(clock)
                compute = max(numbers[Pool.SHARE_COMPUTE], arriving)
                memory = max(numbers[Pool.SHARE_MEMORY], numbers[Pool.INFLOW_MEMORY])
                return pool_power_w(params, state, row, pool, clock, busy, busy * compute, busy * memory)
        # A request of any size may start: bound the activities by one.
        return pool_power_w(params, state, row, pool, clock, busy, busy, 0.0)
    in_flight = numbers[Pool.IN_FLIGHT]
    waiting = numbers[Pool.WAITING] - numbers[Pool.LATER]
    bound_for = in_flight + max(0.0, waiting)
    replicas = (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    if bound_for <= 0.0:
        return _decode_power_w(params, state, row, pool, clock, duty, 0.0, 1.0)
    # Contexts grow while requests are decoded: from what the batch holds now to all that is promised to it.
    largest = numbers[Pool.RESERVED] + max(0.0, numbers[Pool.WAITING_TOKENS] - numbers[Pool.LATER_TOKENS])
    largest /= bound_for
    context = numbers[Pool.CONTEXT] / in_flight if in_flight > 0.0 else largest
    most = min(bound_for, replicas * numbers[Pool.MAX_BATCH])
    most = max(in_flight, min(most, replicas * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS] / context))
    # The pace follows batch and contexts over some seconds: one that has just shrunk goes on drawing like the one before.
    paced = numbers[Pool.PACED_IN_FLIGHT]
    most = max(most, paced)
    before = numbers[Pool.PACED_CONTEXT] / paced if paced > 0.0 else context
    least = min(context, before)
    largest = max(largest, before)
    # At low clocks the draw is largest at some batch in between: compute grows with the batch, the share of time that memory is read shrinks.
    fewest = max(min(in_flight, paced), min(most, replicas))
    watts = 0.0
    for batch in (fewest, math.sqrt(fewest * most), most):
        for held in (least, largest):
            watts = max(watts, _decode_power_w(params, state, row, pool, clock, duty, batch, held))
    return watts


@kernel
def _pair_bound_w(
    params: Params,
    state: State,
    row: int,
    pool: int,
    seconds: float,
    clock: float,
    prefill_duty: float,
    decode_duty: float,
) -> float:
    """Return an upper bound of the mean power of two pools in the same racks, no clock above ``clock`` or its ceiling, W.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: The prefill pool of the pair.
        seconds: For how long, s.
        clock: Clock.
        prefill_duty: Share of time prefill may run.
        decode_duty: Share of time iterations may run.
    """
    partner = int(params.pool[pool, PoolSpec.PARTNER])
    prefill_clock = min(clock, state.pool[row, pool, Pool.CLOCK_CEILING])
    decode_clock = min(clock, state.pool[row, partner, Pool.CLOCK_CEILING])
    prefill_w = _most_power_w(params, state, row, pool, seconds, prefill_clock, prefill_duty)
    decode_w = _most_power_w(params, state, row, partner, seconds, decode_clock, decode_duty)
    if params.pool[pool, PoolSpec.COUPLING] != SHARED_GPUS:
        return float(prefill_w + decode_w)
    # GPUs draw for prefill or for decode: the more of either, the less of the other.
    share = _most_busy(params, state, row, pool, seconds, prefill_clock, prefill_duty)
    share *= params.pool[pool, PoolSpec.PREFILL_LIMIT]
    running_w = decode_w - pool_power_w(params, state, row, partner, decode_clock, 0.0, 0.0, 0.0)
    return float(decode_w + max(0.0, prefill_w - share * running_w))


@inlined_kernel
def _pair_allowance_w(params: Params, state: State, row: int, pool: int) -> float:
    """Return what two pools in the same racks may draw by their racks' limit, racks that wake or sleep included, W."""
    ints = state.pool_int[row, pool]
    allowed_w = (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * state.pool[row, pool, Pool.POWER_LIMIT_W]
    for member in (pool, int(params.pool[pool, PoolSpec.PARTNER])):
        power = state.power[row, member]
        resting = ints[PoolInt.ASLEEP] + ints[PoolInt.FAILED]
        allowed_w += ints[PoolInt.WAKING] * power[POWER_WAKE_RACK_W] + resting * power[POWER_SLEEP_RACK_W]
    return float(allowed_w)


@kernel
def _most_pair_w(
    params: Params,
    state: State,
    row: int,
    pool: int,
    seconds: float,
    clock_limit: float,
    prefill_duty: float,
    decode_duty: float,
) -> float:
    """Return an upper bound of a pair's mean power over the next ``seconds``, its racks' limit kept, W; see ``_pair_bound_w``."""
    watts = _pair_bound_w(params, state, row, pool, seconds, clock_limit, prefill_duty, decode_duty)
    if state.pool[row, pool, Pool.POWER_LIMIT_W] < math.inf:
        allowed_w = _pair_allowance_w(params, state, row, pool)
        if watts > allowed_w:
            lowest = min(_LOWEST_CLOCK, clock_limit)
            least_w = _pair_bound_w(params, state, row, pool, seconds, lowest, prefill_duty, decode_duty)
            watts = min(watts, max(allowed_w, least_w))
    return float(watts)


@kernel
def _pair_clock(params: Params, state: State, row: int, pool: int) -> float:
    """Return the highest clock at which a pair's racks are sure to keep their limit; both kinds of GPU get it.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: The prefill pool of the pair.

    Returns:
        The clock; 1 where the limit does not bind at the ceilings.
    """
    if state.pool[row, pool, Pool.POWER_LIMIT_W] == math.inf:
        return 1.0
    ints = state.pool_int[row, pool]
    if ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING] == 0:
        return 1.0
    # The limit holds at every moment: whatever waits is served at once.
    seconds = _MOMENT_S if params.site[SiteSpec.RESOLUTION] == COHORT else params.site[SiteSpec.TICK_S]
    allowed_w = _pair_allowance_w(params, state, row, pool)
    if _pair_bound_w(params, state, row, pool, seconds, 1.0, 1.0, 1.0) <= allowed_w:
        return 1.0
    low = _LOWEST_CLOCK
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if _pair_bound_w(params, state, row, pool, seconds, middle, 1.0, 1.0) <= allowed_w:
            low = middle
        else:
            high = middle
    return float(low)


@kernel
def _set_pair_clocks(
    params: Params, state: State, row: int, begin_s: float, end_s: float, slice_end_s: float, clock_limit: float
) -> float:
    """Set the clocks of pools that live in the same racks, and return how long they may stand, at most until ``end_s``.

    Where a rack's limit binds, a segment is short: the bound counts every request that may join in it.
    """
    _note_later(params, state, row, end_s, slice_end_s)
    for pool in range(params.pool.shape[0]):
        spec = params.pool[pool]
        if spec[PoolSpec.COUPLING] != SEPARATE and spec[PoolSpec.PHASE] == PREFILL and end_s > begin_s + _FIT_S:
            if _pair_clock(params, state, row, pool) < 1.0:
                end_s = begin_s + _FIT_S
                _note_later(params, state, row, end_s, slice_end_s)
    for pool in range(params.pool.shape[0]):
        spec = params.pool[pool]
        if spec[PoolSpec.COUPLING] != SEPARATE and spec[PoolSpec.PHASE] == PREFILL:
            clock = min(_pair_clock(params, state, row, pool), clock_limit)
            for member in (pool, int(spec[PoolSpec.PARTNER])):
                numbers = state.pool[row, member]
                numbers[Pool.CLOCK] = min(numbers[Pool.CLOCK_CEILING], clock)
    return end_s


@inlined_kernel
def facility_power_w(params: Params, state: State, row: int, it_w: float) -> float:
    """Return facility power for an IT power, W: IT times the PUE at this load and outdoor temperature."""
    return it_w * facility_pue(params, state, row, it_w)


@inlined_kernel
def facility_pue(params: Params, state: State, row: int, it_w: float) -> float:
    """Return the PUE at an IT power of ``it_w``."""
    site = params.site
    return float(
        pue(
            site[SiteSpec.PUE_BASE],
            site[SiteSpec.PUE_KELVIN],
            state.site[row, Site.OUTDOOR_C],
            it_w / site[SiteSpec.IT_NAMEPLATE_W],
            site[SiteSpec.PUE_FREE_COOLING_C],
            site[SiteSpec.PUE_FIXED_SHARE],
        )
    )


@kernel
def _heat_limit_w(params: Params, state: State, row: int) -> float:
    """Note the IT power that the coolant's limit allows from now on, and return the facility power that goes with it, W.

    It is inf where the whole site can run.
    """
    it_w = heat_allows_w(params, state, row, LOOK_AHEAD_S)
    state.site[row, Site.HEAT_LIMIT_W] = it_w
    if it_w >= params.site[SiteSpec.IT_NAMEPLATE_W]:
        return math.inf
    return float(facility_power_w(params, state, row, it_w))


@kernel
def _stays_below(
    params: Params,
    state: State,
    row: int,
    seconds: float,
    clock_limit: float,
    prefill_duty: float,
    decode_duty: float,
    limit_w: float,
) -> bool:
    """Tell whether facility draw is sure to stay at or below ``limit_w`` for ``seconds`` with no clock above ``clock_limit``.

    ``_note_later`` has been called for the end of that time. The bursts of a training block count at their height.
    """
    it_w = 0.0
    burst_w = 0.0
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        it_w, burst_w, _ = block_draw_w(params, state, row, clock_limit)
    coupled = params.site[SiteSpec.COUPLED] > 0.0
    for pool in range(params.pool.shape[0]):
        if coupled and params.pool[pool, PoolSpec.COUPLING] != SEPARATE:
            if params.pool[pool, PoolSpec.PHASE] == PREFILL:
                it_w += _most_pair_w(params, state, row, pool, seconds, clock_limit, prefill_duty, decode_duty)
            if it_w > limit_w:
                return False
            continue
        clock = min(_throttled_clock(params, state, row, pool), clock_limit)
        duty = prefill_duty if params.pool[pool, PoolSpec.PHASE] == PREFILL else decode_duty
        it_w += _most_power_w(params, state, row, pool, seconds, clock, duty)
        if it_w > limit_w:
            return False
    return facility_power_w(params, state, row, it_w) + burst_w <= limit_w


@inlined_kernel
def _throttled_clock(params: Params, state: State, row: int, pool: int) -> float:
    """Return the clock the operator's throttles allow: the ceiling, or the highest whose draw obeys the power limit."""
    if state.pool[row, pool, Pool.POWER_LIMIT_W] == math.inf:
        return float(state.pool[row, pool, Pool.CLOCK_CEILING])
    return _limited_clock(params, state, row, pool)


@kernel
def _limited_clock(params: Params, state: State, row: int, pool: int) -> float:
    """Return the highest clock up to the ceiling at which the pool's racks obey their power limit."""
    numbers = state.pool[row, pool]
    ceiling = numbers[Pool.CLOCK_CEILING]
    limit_w = numbers[Pool.POWER_LIMIT_W]
    ints = state.pool_int[row, pool]
    awake = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
    if awake == 0:
        return float(ceiling)
    others_w = pool_power_w(params, state, row, pool, ceiling, 0.0, 0.0, 0.0)
    power = state.power[row, pool]
    idle_w = gpu_power_w(power, ceiling, 0.0, 0.0, 0.0) * working_share(state, row, pool)
    others_w -= awake * rack_power_w(power, idle_w)
    if _active_rack_w(params, state, row, pool, ceiling, others_w, awake) <= limit_w:
        return float(ceiling)
    low = min(_LOWEST_CLOCK, ceiling)
    high = ceiling
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if _active_rack_w(params, state, row, pool, middle, others_w, awake) <= limit_w:
            low = middle
        else:
            high = middle
    return float(low)


@kernel
def _active_rack_w(
    params: Params, state: State, row: int, pool: int, clock: float, others_w: float, awake: float
) -> float:
    """Return the draw of one awake rack at a clock with the pool's present work, W."""
    if params.pool[pool, PoolSpec.PHASE] == PREFILL:
        watts = _most_power_w(params, state, row, pool, params.site[SiteSpec.TICK_S], clock, 1.0)
    else:
        numbers = state.pool[row, pool]
        in_flight = numbers[Pool.IN_FLIGHT]
        context = numbers[Pool.CONTEXT] / in_flight if in_flight > 0.0 else 1.0
        watts = _decode_power_w(params, state, row, pool, clock, 1.0, in_flight, context)
        watts = max(watts, _paced_power_w(params, state, row, pool, clock, 1.0))
    return (watts - others_w) / awake


@kernel
def _shed_waking(params: Params, state: State, row: int) -> None:
    """Put every waking rack back to sleep: the brake's last resort."""
    for pool in range(params.pool.shape[0]):
        ints = state.pool_int[row, pool]
        ints[PoolInt.ASLEEP] += ints[PoolInt.WAKING]
        ints[PoolInt.WAKING] = 0
        state.transition[row, pool, 0] = math.inf


@kernel
def _brake_fit(params: Params, state: State, row: int, seconds: float, target_w: float) -> None:
    """Set the brake's clock and duties so that draw stays at or below ``target_w`` for ``seconds``.

    First the clock, down to the brake's floor; where the floor does not fit, a training job stands still, which loses its time only;
    then decode iterations pause part of the time, then prefill; where even an idle site does not fit, racks that are waking go back to
    sleep.
    """
    site = state.site[row]
    floor = params.site[SiteSpec.BRAKE_FLOOR]
    high = params.site[SiteSpec.BRAKE_CLOCK]
    site[Site.DECODE_DUTY] = 1.0
    site[Site.PREFILL_DUTY] = 1.0
    site[Site.BRAKE_CLOCK] = high
    if _stays_below(params, state, row, seconds, high, 1.0, 1.0, target_w):
        return
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0 and not _stays_below(
        params, state, row, seconds, floor, 1.0, 1.0, target_w
    ):
        site[Site.TRAIN_STALLED] = BY_BRAKE
        if _stays_below(params, state, row, seconds, high, 1.0, 1.0, target_w):
            return
    if _stays_below(params, state, row, seconds, floor, 1.0, 1.0, target_w):
        low = floor
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if _stays_below(params, state, row, seconds, middle, 1.0, 1.0, target_w):
                low = middle
            else:
                high = middle
        site[Site.BRAKE_CLOCK] = low
        return
    site[Site.BRAKE_CLOCK] = floor
    low_duty = 0.0
    high_duty = 1.0
    if _stays_below(params, state, row, seconds, floor, 1.0, 0.0, target_w):
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low_duty + high_duty)
            if _stays_below(params, state, row, seconds, floor, 1.0, middle, target_w):
                low_duty = middle
            else:
                high_duty = middle
        site[Site.DECODE_DUTY] = low_duty
        return
    site[Site.DECODE_DUTY] = 0.0
    if not _stays_below(params, state, row, seconds, floor, 0.0, 0.0, target_w):
        _shed_waking(params, state, row)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low_duty + high_duty)
        if _stays_below(params, state, row, seconds, floor, middle, 0.0, target_w):
            low_duty = middle
        else:
            high_duty = middle
    site[Site.PREFILL_DUTY] = low_duty


@inlined_kernel
def _sure_until_s(
    params: Params,
    state: State,
    row: int,
    begin_s: float,
    end_s: float,
    slice_end_s: float,
    cap_w: float,
    heat_w: float,
) -> float:
    """Return until when the brake need not look at the draw: until ``end_s``, for some seconds, or no longer than it takes to react."""
    spec = params.site
    heat_w *= SURE
    limit_w = min(heat_w, SURE * cap_w + battery_help_w(params, state, row, end_s - begin_s))
    _note_later(params, state, row, end_s, slice_end_s)
    if _stays_below(params, state, row, end_s - begin_s, 1.0, 1.0, 1.0, limit_w):
        return end_s
    soon_s = begin_s + _FIT_S
    if soon_s < end_s:
        _note_later(params, state, row, soon_s, slice_end_s)
        limit_w = min(heat_w, SURE * cap_w + battery_help_w(params, state, row, _FIT_S))
        if _stays_below(params, state, row, _FIT_S, 1.0, 1.0, 1.0, limit_w):
            return soon_s
    # Stop exactly when the brake would have to act.
    over_s = max(state.site[row, Site.OVERDRAW_S], state.site[row, Site.HEAT_OVER_S])
    left_s = spec[SiteSpec.BRAKE_REACTION_S] - over_s
    return float(min(end_s, begin_s + min(spec[SiteSpec.CHECK_S], max(left_s, _SHORTEST_S))))


@inlined_kernel
def plan_segment(params: Params, state: State, row: int, begin_s: float, end_s: float) -> float:
    """Set every pool's clock and duty from ``begin_s`` on and return how long they may stand, at most until ``end_s``.

    While draw may exceed the cap the segment is short enough for the brake to react in time; a braked site is planned anew
    at every segment, so that growing batches cannot push it over the cap.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        begin_s: Start of the segment, s.
        end_s: Latest end, s.

    Returns:
        End of the segment, s.
    """
    site = state.site[row]
    spec = params.site
    cap_w = cap_now_w(state, row, begin_s)
    site[Site.CAP_W] = cap_w
    heat_w = math.inf
    if spec[SiteSpec.HEAT_W_PER_K] > 0.0:
        heat_w = _heat_limit_w(params, state, row)
    slice_end_s = end_s
    end_s = min(end_s, next_cap_change_s(state, row, begin_s), next_rack_change_s(state, row, begin_s))
    if spec[SiteSpec.GENERATION_W] > 0.0:
        # What runs at the site is as good as cap.
        cap_w += site[Site.RUNNING_W]
        end_s = min(end_s, site[Site.NEXT_UNIT_S])
    clock_limit = 1.0
    prefill_duty = 1.0
    decode_duty = 1.0
    if spec[SiteSpec.TRAIN_RACKS] > 0.0:
        end_s = min(end_s, next_training_change_s(params, state, row, begin_s))
        site[Site.TRAIN_STALLED] = 0.0
    if site[Site.BRAKED] > 0.0:
        end_s = min(end_s, begin_s + _FIT_S)
        seconds = end_s - begin_s
        _note_later(params, state, row, end_s, slice_end_s)
        help_w = battery_help_w(params, state, row, seconds)
        release_w = min(spec[SiteSpec.BRAKE_RELEASE] * heat_w, spec[SiteSpec.BRAKE_RELEASE] * cap_w + help_w)
        held = begin_s - site[Site.BRAKED_AT_S] >= spec[SiteSpec.BRAKE_HOLD_S]
        if held and _stays_below(params, state, row, seconds, 1.0, 1.0, 1.0, release_w):
            site[Site.BRAKED] = 0.0
        else:
            target_w = spec[SiteSpec.BRAKE_TARGET] * cap_w + help_w
            site[Site.HEAT_BINDS] = 1.0 if spec[SiteSpec.BRAKE_TARGET] * heat_w < target_w else 0.0
            _brake_fit(params, state, row, seconds, min(spec[SiteSpec.BRAKE_TARGET] * heat_w, target_w))
            clock_limit = site[Site.BRAKE_CLOCK]
            prefill_duty = site[Site.PREFILL_DUTY]
            decode_duty = site[Site.DECODE_DUTY]
    if site[Site.BRAKED] == 0.0:
        end_s = _sure_until_s(params, state, row, begin_s, end_s, slice_end_s, cap_w, heat_w)
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.PHASE] != PREFILL and nearly_full(params, state, row, pool):
            congested_s = _CONGESTED_COHORTS_S if spec[SiteSpec.RESOLUTION] == COHORT else _CONGESTED_REQUESTS_S
            end_s = min(end_s, begin_s + congested_s)
    if spec[SiteSpec.TRAIN_RACKS] > 0.0:
        site[Site.TRAIN_CLOCK] = min(training_clock(params, state, row), clock_limit)
    coupled = spec[SiteSpec.COUPLED] > 0.0
    if coupled:
        end_s = _set_pair_clocks(params, state, row, begin_s, end_s, slice_end_s, clock_limit)
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        if not coupled or params.pool[pool, PoolSpec.COUPLING] == SEPARATE:
            throttled = _throttled_clock(params, state, row, pool)
            if throttled < numbers[Pool.CLOCK_CEILING]:
                # A power limit binds: the clock follows the batch.
                end_s = min(end_s, begin_s + _FIT_S)
            numbers[Pool.CLOCK] = min(throttled, clock_limit)
        numbers[Pool.DUTY] = prefill_duty if params.pool[pool, PoolSpec.PHASE] == PREFILL else decode_duty
        numbers[Pool.BUSY_S] = 0.0
        numbers[Pool.COMPUTE_S] = 0.0
        numbers[Pool.MEMORY_S] = 0.0
    return float(end_s)


@inlined_kernel
def meter_segment(params: Params, state: State, row: int, begin_s: float, end_s: float) -> None:
    """Book a finished segment's energy and engage the brake when draw has been above the cap for its reaction time."""
    elapsed = end_s - begin_s
    site = state.site[row]
    spec = params.site
    scoring = site[Site.SCORING]
    it_w = 0.0
    clock_sum = 0.0
    awake_sum = 0.0
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        ints = state.pool_int[row, pool]
        clock = numbers[Pool.CLOCK]
        watts = pool_power_w(
            params,
            state,
            row,
            pool,
            clock,
            min(1.0, numbers[Pool.BUSY_S] / elapsed),
            numbers[Pool.COMPUTE_S] / elapsed,
            numbers[Pool.MEMORY_S] / elapsed,
        )
        numbers[Pool.POWER_W] = watts
        numbers[Pool.ENERGY_J] += scoring * watts * elapsed
        numbers[Pool.STEP_ENERGY_J] += watts * elapsed
        numbers[Pool.STEP_BUSY_S] += numbers[Pool.BUSY_S]
        numbers[Pool.STEP_CLOCK_S] += clock * elapsed
        awake = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
        numbers[Pool.STEP_UNIT_S] += awake * units_per_rack(params, state, row, pool) * elapsed
        clock_sum += awake * clock
        awake_sum += awake
        it_w += watts
    block_w = 0.0
    burst_share = 1.0
    if spec[SiteSpec.TRAIN_RACKS] > 0.0:
        block_w, site[Site.TRAIN_BURST_W], burst_share = block_draw_w(params, state, row, site[Site.TRAIN_CLOCK])
        it_w += block_w
    facility_w = facility_power_w(params, state, row, it_w)
    site[Site.PUE] = facility_w / it_w if it_w > 0.0 else spec[SiteSpec.PUE_BASE]
    grid_w = facility_w
    spare_w = 0.0
    generates = spec[SiteSpec.GENERATION_W] > 0.0
    if spec[SiteSpec.RAMP] > 0.0:
        if generates:
            # The limits are for the draw behind the battery, whose order comes before the units as it does without limits.
            ordered_w = wanted_of_battery_w(params, state, row, facility_w, elapsed)
            left_w = use_units(params, state, row, facility_w, facility_w - ordered_w, elapsed)
            spare_w = site[Site.RUNNING_W] - (facility_w - ordered_w - left_w)
            grid_w = left_w + ordered_w
        grid_w = smooth_draw(params, state, row, grid_w, elapsed)
        if generates and abs(grid_w - site[Site.CAP_W]) <= _ROUNDING * site[Site.CAP_W]:
            # What rounding leaves above the cap is no excess.
            grid_w = site[Site.CAP_W]
        facility_w += site[Site.BALLAST_W]
    else:
        if spec[SiteSpec.BATTERY_W] > 0.0:
            grid_w -= use_battery(params, state, row, facility_w, site[Site.CAP_W] + site[Site.RUNNING_W], elapsed)
        if generates:
            load_w = grid_w
            grid_w = use_units(params, state, row, facility_w, load_w, elapsed)
            spare_w = site[Site.RUNNING_W] - (load_w - grid_w)
    over_w = max(0.0, grid_w - site[Site.CAP_W])
    top_w = grid_w
    if spec[SiteSpec.TRAIN_RACKS] > 0.0:
        grid_w, over_w, top_w = meter_bursts(params, state, row, grid_w, spare_w, burst_share, elapsed)
        if spec[SiteSpec.RAMP] > 0.0:
            note_shaved(state, row, grid_w)
        book_training(params, state, row, block_w, elapsed)
    site[Site.FACILITY_POWER_W] = facility_w
    site[Site.IT_POWER_W] = it_w
    site[Site.STEP_S] += elapsed
    site[Site.STEP_ENERGY_J] += facility_w * elapsed
    site[Site.STEP_IT_ENERGY_J] += it_w * elapsed
    site[Site.STEP_GRID_ENERGY_J] += grid_w * elapsed
    energy_usd = grid_w * elapsed / JOULES_PER_MWH * site[Site.USD_PER_MWH]
    carbon_kg = grid_w * elapsed / JOULES_PER_KWH * site[Site.G_PER_KWH] / 1000.0
    site[Site.STEP_ENERGY_USD] += energy_usd
    site[Site.STEP_CARBON_KG] += carbon_kg
    site[Site.STEP_CAP_VIOLATION_J] += over_w * elapsed
    site[Site.STEP_CLOCK_S] += clock_sum / max(awake_sum, 1.0) * elapsed
    if site[Site.BRAKED] > 0.0:
        site[Site.STEP_BRAKE_S] += elapsed
    if scoring > 0.0:
        site[Site.ENERGY_J] += facility_w * elapsed
        site[Site.IT_ENERGY_J] += it_w * elapsed
        site[Site.GRID_ENERGY_J] += grid_w * elapsed
        site[Site.SCORED_S] += elapsed
        if site[Site.FAULTS] > 0.0:
            for pool in range(params.pool.shape[0]):
                if params.pool[pool, PoolSpec.COUPLING] == SEPARATE or params.pool[pool, PoolSpec.PHASE] == PREFILL:
                    site[Site.RACK_DOWN_S] += state.pool_int[row, pool, PoolInt.FAILED] * elapsed
            if site[Site.FAULTS] > 1.0:
                site[Site.GPU_DOWN_S] += gpus_out(params, state, row) * elapsed
        meter_quarter(site, grid_w, elapsed)
        if spec[SiteSpec.COINCIDENT_USD_PER_W] > 0.0:
            meter_peak(params, site, grid_w, elapsed)
        site[Site.ENERGY_USD] += energy_usd
        site[Site.CARBON_KG] += carbon_kg
        site[Site.CAP_ENERGY_J] += site[Site.CAP_W] * elapsed
        site[Site.CAP_VIOLATION_J] += over_w * elapsed
        site[Site.PEAK_POWER_W] = max(site[Site.PEAK_POWER_W], top_w)
        if site[Site.BRAKED] > 0.0:
            site[Site.BRAKE_S] += elapsed
    if over_w > 0.0:
        site[Site.OVERDRAW_S] += elapsed
        site[Site.LONGEST_OVERDRAW_S] = max(site[Site.LONGEST_OVERDRAW_S], site[Site.OVERDRAW_S])
        engaged = site[Site.BRAKED] > 0.0 or spec[SiteSpec.BRAKE_ENABLED] == 0.0
        if not engaged and site[Site.OVERDRAW_S] >= spec[SiteSpec.BRAKE_REACTION_S] - 1e-9:
            site[Site.BRAKED] = 1.0
            site[Site.BRAKED_AT_S] = end_s
    else:
        site[Site.OVERDRAW_S] = 0.0
    if spec[SiteSpec.HEAT_W_PER_K] > 0.0:
        warm_coolant(params, state, row, it_w, elapsed)


@kernel
def note_arrivals(params: Params, state: State, row: int, end_s: float, slice_end_s: float) -> None:
    """Note what comes after ``end_s`` and before the end of the slice: it is not part of what a segment that ends then can draw."""
    _note_later(params, state, row, end_s, slice_end_s)


@kernel
def surely_below(
    params: Params, state: State, row: int, begin_s: float, end_s: float, slice_end_s: float, limit_w: float
) -> bool:
    """Tell whether facility draw is sure to stay at or below ``limit_w`` from ``begin_s`` to ``end_s``, only the operator's throttles in force.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        begin_s: From when on, s.
        end_s: Until when, s.
        slice_end_s: End of the present slice of the tick, s.
        limit_w: Limit, W.
    """
    _note_later(params, state, row, end_s, slice_end_s)
    seconds = end_s - begin_s
    if params.site[SiteSpec.TRAIN_RACKS] <= 0.0:
        return bool(_stays_below(params, state, row, seconds, 1.0, 1.0, 1.0, limit_w))
    # A job that was stopped may go on. Ramp limits are for the mean of a segment, whatever its bursts.
    stopped = state.site[row, Site.TRAIN_STALLED]
    state.site[row, Site.TRAIN_STALLED] = 0.0
    limit_w += block_draw_w(params, state, row, 1.0)[1]
    below = _stays_below(params, state, row, seconds, 1.0, 1.0, 1.0, limit_w)
    state.site[row, Site.TRAIN_STALLED] = stopped
    return bool(below)


@inlined_kernel
def _fluid_busy(params: Params, state: State, row: int, pool: int, seconds: float, clock: float, duty: float) -> float:
    """Return the share of the next ``seconds`` in which a prefill pool runs at cohort resolution; less where requests are turned away."""
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    capacity = ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool) * compute_rate(clock) * duty
    if capacity <= 0.0:
        return 0.0
    busy = min(1.0, (numbers[Pool.BACKLOG] / seconds + numbers[Pool.INFLOW]) / capacity) * duty
    return float(busy * ints[PoolInt.ACTIVE] / (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]))


@kernel
def _fluid_power_w(
    params: Params, state: State, row: int, pool: int, seconds: float, clock: float, busy: float
) -> float:
    """Return a prefill pool's mean power over the next ``seconds`` at cohort resolution, W, when it runs a share ``busy`` of them.

    It goes through the cohorts that arrive meanwhile as ``advance_prefill_fluid`` will, and takes of their effects on the mix of work those
    that raise the draw.
    """
    numbers = state.pool[row, pool]
    rate = compute_rate(clock)
    compute = numbers[Pool.SHARE_COMPUTE]
    memory = numbers[Pool.SHARE_MEMORY]
    perf = state.perf[row, pool]
    slot = state.pool_int[row, pool, PoolInt.INBOX_HEAD]
    while busy > 0.0 and slot != NOBODY and state.cohort[row, slot, Cohort.KEY] < numbers[Pool.TIME_S] + seconds:
        cohort = state.cohort[row, slot]
        own = server_seconds(perf, cohort, rate)
        scaling, _ = uncached_work_s(perf, cohort)
        streaming = perf[PREFILL_STREAM_PER_TOKEN_S] * (cohort[Cohort.PROMPT] - cohort[Cohort.CACHED]) * rate
        work = cohort[Cohort.COUNT] * own
        part = work / max(work, numbers[Pool.INFLOW] * params.site[SiteSpec.TICK_S])
        compute += part * max(0.0, scaling / own - compute)
        memory += part * max(0.0, streaming / own - memory)
        slot = state.link[row, slot]
    return pool_power_w(params, state, row, pool, clock, busy, busy * compute, busy * memory)


@inlined_kernel
def _present_busy(params: Params, state: State, row: int, pool: int, duty: float) -> float:
    """Return the share of its servers that a prefill pool keeps busy with what it has now, at request resolution."""
    ints = state.pool_int[row, pool]
    servers = (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    if servers <= 0.0:
        return 0.0
    return float(min(1.0, (ints[PoolInt.SERVING] + state.pool[row, pool, Pool.QUEUED]) / servers) * duty)


@inlined_kernel
def _present_power_w(params: Params, state: State, row: int, pool: int, clock: float, duty: float) -> float:
    """Return a prefill pool's power at request resolution as it serves now, W."""
    numbers = state.pool[row, pool]
    serving = state.pool_int[row, pool, PoolInt.SERVING]
    busy = _present_busy(params, state, row, pool, duty)
    if serving == 0:
        return pool_power_w(params, state, row, pool, clock, busy, busy, 0.0)
    compute = busy * min(1.0, numbers[Pool.SHARE_COMPUTE] / serving)
    memory = busy * min(1.0, numbers[Pool.SHARE_MEMORY] / serving)
    return pool_power_w(params, state, row, pool, clock, busy, compute, memory)


@inlined_kernel
def _paced_power_w(params: Params, state: State, row: int, pool: int, clock: float, duty: float) -> float:
    """Return a decode pool's power at the batch by which its iterations are timed, W; idle where none is."""
    batch = state.pool[row, pool, Pool.PACED_IN_FLIGHT]
    context = state.pool[row, pool, Pool.PACED_CONTEXT] / batch if batch > 0.0 else 1.0
    return _decode_power_w(params, state, row, pool, clock, duty, batch, context)


@inlined_kernel
def _goes_on(params: Params, state: State, row: int, pool: int, seconds: float) -> bool:
    """Tell whether a decode pool has a batch by which iterations are timed, and is sure not to finish all of it in ``seconds``.

    A batch that begins anew is timed anew. Tokens that are promised and not yet generated, over the requests, are what the mean request has
    left: more than can be generated in twice that time, and not all of them finish.
    """
    numbers = state.pool[row, pool]
    in_flight = numbers[Pool.IN_FLIGHT]
    if in_flight <= 0.0 or numbers[Pool.PACED_IN_FLIGHT] <= 0.0 or numbers[Pool.TPOT_S] <= 0.0:
        return False
    left = numbers[Pool.RESERVED] - numbers[Pool.CONTEXT] - in_flight * state.perf[row, pool, DECODE_KV_REQUEST_TOKENS]
    return bool(left > 2.0 * in_flight * seconds / numbers[Pool.TPOT_S])


@kernel
def planned_serving_w(
    params: Params,
    state: State,
    row: int,
    seconds: float,
    clock_limit: float,
    prefill_duty: float,
    decode_duty: float,
) -> tuple[float, float]:
    """Return the mean IT power of what serves in a segment that has been planned, W, its clocks and duties lowered to those given.

    It is an upper bound, and at cohort resolution close where the segment is at most ``PACE_S`` long: iterations are timed by a batch that is
    known beforehand, and what flows into prefill is known too. At request resolution a segment of at most ``EVENTS_S`` is predicted from
    what runs now, and more may come of it: ``decode_may_draw_w`` bounds that, once prefill has been advanced.

    Args:
        params: Site parameters.
        state: Engine state; ``plan_segment`` has set clocks and duties, and noted what comes later.
        row: Row.
        seconds: Length of the segment, s.
        clock_limit: Highest clock.
        prefill_duty: Largest share of time prefill may run.
        decode_duty: Largest share of time iterations may run.

    Returns:
        The power, and what that of the site is to be taken for at least, W: what prefill may come to must leave something to take from decode.
    """
    it_w = 0.0
    least_w = 0.0
    cohorts = params.site[SiteSpec.RESOLUTION] == COHORT
    close = seconds <= (PACE_S if cohorts else EVENTS_S) + _SHORTEST_S
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        prefill = params.pool[pool, PoolSpec.PHASE] == PREFILL
        clock = min(clock_limit, numbers[Pool.CLOCK])
        duty = min(prefill_duty if prefill else decode_duty, numbers[Pool.DUTY])
        if params.pool[pool, PoolSpec.COUPLING] == SHARED_GPUS and (cohorts or not close):
            if prefill:
                it_w += _shared_power_w(params, state, row, pool, seconds, clock, duty, decode_duty, close)
            continue
        if close and not cohorts:
            if prefill:
                it_w += _present_power_w(params, state, row, pool, clock, duty)
                least_w += _most_power_w(params, state, row, pool, seconds, clock, duty)
            else:
                if params.pool[pool, PoolSpec.COUPLING] == SHARED_GPUS:
                    partner = int(params.pool[pool, PoolSpec.PARTNER])
                    taken = _present_busy(
                        params, state, row, partner, min(prefill_duty, state.pool[row, partner, Pool.DUTY])
                    )
                    duty *= 1.0 - taken * params.pool[partner, PoolSpec.PREFILL_LIMIT]
                it_w += _paced_power_w(params, state, row, pool, clock, duty)
                least_w += pool_power_w(params, state, row, pool, clock, 0.0, 0.0, 0.0)
            continue
        if close and prefill:
            busy = _fluid_busy(params, state, row, pool, seconds, clock, duty)
            it_w += _fluid_power_w(params, state, row, pool, seconds, clock, busy)
            continue
        if close and _goes_on(params, state, row, pool, seconds):
            it_w += _paced_power_w(params, state, row, pool, clock, duty)
            continue
        watts = _most_power_w(params, state, row, pool, seconds, clock, duty)
        if not prefill:
            watts = max(watts, _paced_power_w(params, state, row, pool, clock, duty))
        it_w += watts
    return it_w, least_w


@inlined_kernel
def with_training_w(
    params: Params, state: State, row: int, serving_w: float, least_w: float, training_clock: float
) -> float:
    """Return the facility power, W, of what serves (see ``planned_serving_w``) and of a training job at a clock."""
    it_w = serving_w
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        it_w += block_draw_w(params, state, row, training_clock)[0]
    return float(facility_power_w(params, state, row, max(it_w, least_w)))


@kernel
def planned_draw_w(
    params: Params,
    state: State,
    row: int,
    seconds: float,
    clock_limit: float,
    prefill_duty: float,
    decode_duty: float,
) -> float:
    """Return the mean facility power of a segment that has been planned, W; arguments as of ``planned_serving_w``."""
    serving_w, least_w = planned_serving_w(params, state, row, seconds, clock_limit, prefill_duty, decode_duty)
    training_clock = min(clock_limit, state.site[row, Site.TRAIN_CLOCK])
    return float(with_training_w(params, state, row, serving_w, least_w, training_clock))


@kernel
def _shared_power_w(
    params: Params,
    state: State,
    row: int,
    pool: int,
    seconds: float,
    clock: float,
    prefill_duty: float,
    decode_duty: float,
    close: bool,
) -> float:
    """Return an upper bound of what two pools on the same GPUs draw in a segment that has been planned, W.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        pool: The prefill pool of the two.
        seconds: Length of the segment, s.
        clock: Clock of both.
        prefill_duty: Share of time prefill may run.
        decode_duty: Largest share of time iterations may run.
        close: Whether it is short enough for what happens to be known.
    """
    partner = int(params.pool[pool, PoolSpec.PARTNER])
    duty = min(decode_duty, state.pool[row, partner, Pool.DUTY])
    if not (close and _goes_on(params, state, row, partner, seconds)):
        return _most_pair_w(params, state, row, pool, seconds, clock, prefill_duty, duty)
    # Iterations run in the time that prefill leaves. The draw is linear in it: highest with the most of prefill, or with none.
    most = _fluid_busy(params, state, row, pool, seconds, clock, prefill_duty)
    watts = 0.0
    for busy in (0.0, most):
        left = 1.0 - busy * params.pool[pool, PoolSpec.PREFILL_LIMIT]
        both_w = _fluid_power_w(params, state, row, pool, seconds, clock, busy)
        both_w += _paced_power_w(params, state, row, partner, clock, duty * left)
        watts = max(watts, both_w)
    return float(watts)


@kernel
def decode_may_draw_w(
    params: Params, state: State, row: int, begin_s: float, end_s: float, clock_limit: float, decode_duty: float
) -> float:
    """Return an upper bound of the mean facility power of a segment at request resolution whose prefill has been advanced, W.

    What prefill draws is known then, and so is every request that may join a batch.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        begin_s: Start of the segment, s.
        end_s: Its end, s.
        clock_limit: Highest clock of decode.
        decode_duty: Largest share of time iterations may run.
    """
    it_w = 0.0
    elapsed = end_s - begin_s
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        it_w = block_draw_w(params, state, row, state.site[row, Site.TRAIN_CLOCK])[0]
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        spec = params.pool[pool]
        if spec[PoolSpec.PHASE] == PREFILL:
            busy = min(1.0, numbers[Pool.BUSY_S] / elapsed)
            compute, memory = numbers[Pool.COMPUTE_S] / elapsed, numbers[Pool.MEMORY_S] / elapsed
            it_w += pool_power_w(params, state, row, pool, numbers[Pool.CLOCK], busy, compute, memory)
            continue
        clock = min(clock_limit, numbers[Pool.CLOCK])
        duty = min(decode_duty, numbers[Pool.DUTY])
        if spec[PoolSpec.COUPLING] == SHARED_GPUS:
            partner = int(spec[PoolSpec.PARTNER])
            busy = min(1.0, state.pool[row, partner, Pool.BUSY_S] / elapsed)
            duty *= 1.0 - busy * params.pool[partner, PoolSpec.PREFILL_LIMIT]
        it_w += _joined_power_w(params, state, row, pool, end_s, elapsed, clock, duty)
    return float(facility_power_w(params, state, row, it_w))


@kernel
def _joined_power_w(
    params: Params, state: State, row: int, pool: int, end_s: float, elapsed: float, clock: float, duty: float
) -> float:
    """Return an upper bound of a decode pool's power until ``end_s``, W: all join that are ready by then, and none finishes."""
    numbers = state.pool[row, pool]
    joining = 0.0
    tokens = 0.0
    for number in range(find_until(state, row, pool, READY_LINE, end_s, params.site[SiteSpec.DAYS_PER_S])):
        place = place_of(state, row, pool, READY_LINE, number)
        if state.heap_key[row, pool, READY_LINE, place] <= end_s:
            cohort = state.cohort[row, state.heap_slot[row, pool, READY_LINE, place]]
            joining += cohort[Cohort.COUNT]
            tokens += cohort[Cohort.COUNT] * cohort[Cohort.PROMPT]
    in_flight = numbers[Pool.IN_FLIGHT]
    most = in_flight + joining
    if most <= 0.0:
        return _decode_power_w(params, state, row, pool, clock, duty, 0.0, 1.0)
    # Each request's context grows by a token at a time; twice the pace of the last segment is more than it comes to.
    grown = 2.0 * elapsed / numbers[Pool.TPOT_S] if numbers[Pool.TPOT_S] > 0.0 else 0.0
    mixed = (numbers[Pool.CONTEXT] + tokens) / most + grown
    present = numbers[Pool.CONTEXT] / in_flight + grown if in_flight > 0.0 else mixed
    watts = _paced_power_w(params, state, row, pool, clock, duty)
    for batch in (max(1.0, in_flight), most):
        for context in (present, mixed):
            watts = max(watts, _decode_power_w(params, state, row, pool, clock, duty, batch, context))
    return watts
