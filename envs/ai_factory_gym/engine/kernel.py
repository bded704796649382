"""One control step of every row, in the order of a request's life: arrive, prefill, transfer, decode, be metered.

A control step is cut into ticks (arrivals are grouped by tick; a tick into slices while a decode pool is nearly full), and
these into segments of constant clocks, racks and cap.
Pools feed forward only, prefill to decode, so that within a segment each pool is advanced once.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.arrivals import admit, minute_of, most_arrivals
from ai_factory_gym.engine.coupled import (
    book_shared_time,
    couple_throttles,
    leave_time_to_prefill,
    stay_where_prefilled,
    takes_from_others,
    wanted_racks,
)
from ai_factory_gym.engine.decode import advance_decode, predict_admission_wait
from ai_factory_gym.engine.draw import cap_now_w, meter_segment, plan_segment
from ai_factory_gym.engine.faults import slots_for_faults, strike_and_repair
from ai_factory_gym.engine.generation import commit_units, set_orders
from ai_factory_gym.engine.health import follow_racks, working_share
from ai_factory_gym.engine.layout import (
    DECODE,
    FIRST_UNIT,
    PREFILL,
    Array,
    Class,
    Gate,
    Order,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    SessionSpec,
    Site,
    SiteInt,
    SiteSpec,
    State,
    Tier,
)
from ai_factory_gym.engine.ledger import held_at_most_s, sweep
from ai_factory_gym.engine.limiter import limit_decode, limit_ramp, ramp_horizon_s
from ai_factory_gym.engine.prefill import advance_prefill
from ai_factory_gym.engine.racks import advance_racks, order_racks, order_role
from ai_factory_gym.engine.reference import params_of, state_of
from ai_factory_gym.engine.supply import look_for_peak, look_outside
from ai_factory_gym.engine.training import advance_training, look_for_job
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import compute_rate

DONE, NEEDS_SLOTS = 0, 1

_SMALLEST_SHARE = 0.01
"""A pool whose routing share would be below 1 % gets nothing, so that a lever can really empty it."""

_RECENT_DECAY = 0.8
"""Recent attainment forgets a fifth per control step (a five-step memory)."""


@kernel
def set_routing(params: Params, state: State, row: int, phase: int, group: int, bias: Array) -> None:
    """Set one group's routing shares of one phase: available capacity x bias, small shares dropped, summing to one.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        phase: PREFILL or DECODE.
        group: Routing group.
        bias: float64[pools] factor of each pool, ``exp(4 a)`` of the routing lever.
    """
    pools = params.pool.shape[0]
    shares = state.weight[row, phase, group]
    if params.site[SiteSpec.COUPLED] > 0.0 and phase == DECODE and stay_where_prefilled(params, state, row, group):
        return
    total = 0.0
    available = 0.0
    for pool in range(pools):
        shares[pool] = 0.0
        if params.pool[pool, PoolSpec.PHASE] != phase or not takes_from_others(params, pool):
            continue
        ints = state.pool_int[row, pool]
        if ints[PoolInt.ACTIVE] > 0 and not ints[PoolInt.CLOSED]:
            capacity = ints[PoolInt.ACTIVE] * params.capacity[phase, group, pool] * working_share(state, row, pool)
            if phase == PREFILL:
                capacity *= compute_rate(state.pool[row, pool, Pool.CLOCK_CEILING])
            shares[pool] = capacity * bias[pool]
            total += shares[pool]
            available += capacity
    if available <= 0.0:
        _route_anywhere(params, state, row, phase, group, shares)
        return
    kept = 0.0
    for pool in range(pools):
        if shares[pool] < _SMALLEST_SHARE * total:
            shares[pool] = 0.0
            # A pool that gets nothing is owed nothing when it comes back.
            state.carry[row, phase, group, :, pool] = 0.0
        kept += shares[pool]
    for pool in range(pools):
        shares[pool] /= kept


@kernel
def _route_anywhere(params: Params, state: State, row: int, phase: int, group: int, shares: Array) -> None:
    """With no pool available, queue in front of every pool of the phase and model that is waking or, failing that, of any."""
    model = group // (params.group_edges.shape[0] + 1)
    count = 0.0
    for waking_only in (True, False):
        for pool in range(params.pool.shape[0]):
            mine = params.pool[pool, PoolSpec.PHASE] == phase and params.pool[pool, PoolSpec.MODEL] == model
            if mine and takes_from_others(params, pool):
                if not waking_only or state.pool_int[row, pool, PoolInt.WAKING] > 0:
                    shares[pool] = 1.0
                    count += 1.0
        if count > 0.0:
            break
    for pool in range(shares.shape[0]):
        shares[pool] /= count


@kernel
def apply_action(
    params: Params,
    state: State,
    row: int,
    bias: Array,
    ceiling: Array,
    power_limit_w: Array,
    racks: Array,
    most_batch: Array,
    gate: Array,
    order: Array,
    own: Array,
) -> None:
    """Put an operator's decision into force for the control step that begins.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        bias: float64[2, groups, pools] routing factors.
        ceiling: float64[pools] clock ceilings.
        power_limit_w: float64[pools] watts per active rack, inf for none.
        racks: int64[pools] racks wanted awake.
        most_batch: float64[pools] requests per decode replica, at most the pool's own.
        gate: float64[classes, Gate].
        order: float64[Order, and behind it the units that the operator decides about].
        own: int64[pools] racks wanted in a pool, awake or not; the others of the two go to its sibling.
    """
    now_s = state.site[row, Site.TIME_S]
    coupled = params.site[SiteSpec.COUPLED] > 0.0
    state.site[row, Site.BATTERY_ORDER] = order[Order.BATTERY]
    state.site[row, Site.TRAIN_HELD] = order[Order.TRAINING]
    if params.site[SiteSpec.GENERATION_W] > 0.0:
        set_orders(params, state, row, order[FIRST_UNIT:])
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.PHASE] == PREFILL and params.pool[pool, PoolSpec.SIBLING] >= 0.0:
            order_role(params, state, row, pool, own[pool], now_s)
    for pool in range(params.pool.shape[0]):
        state.pool[row, pool, Pool.CLOCK_CEILING] = ceiling[pool]
        state.pool[row, pool, Pool.POWER_LIMIT_W] = min(power_limit_w[pool], params.pool[pool, PoolSpec.RACK_LIMIT_W])
        state.pool[row, pool, Pool.MAX_BATCH] = min(most_batch[pool], params.pool[pool, PoolSpec.MAX_BATCH])
        order_racks(params, state, row, pool, wanted_racks(params, racks, pool) if coupled else racks[pool], now_s)
    if coupled:
        couple_throttles(params, state, row)
    for cls in range(params.cls.shape[0]):
        state.cls[row, cls, Class.ADMITTED] = gate[cls, Gate.ADMITTED]
        state.cls[row, cls, Class.RELEASE] = gate[cls, Gate.RELEASE]
        state.cls[row, cls, Class.EFFORT] = gate[cls, Gate.EFFORT]
        state.cls[row, cls, Class.DELAY_S] = gate[cls, Gate.DELAY] * held_at_most_s(params.cls[cls])
    for phase in (PREFILL, DECODE):
        for group in range(params.capacity.shape[1]):
            set_routing(params, state, row, phase, group, bias[phase, group])


@inlined_kernel
def begin_step(params: Params, state: State, row: int) -> None:
    """Clear the per-step accumulators of a row."""
    site = state.site[row]
    site[Site.STEP_S] = 0.0
    site[Site.STEP_ENERGY_J] = 0.0
    site[Site.STEP_IT_ENERGY_J] = 0.0
    site[Site.STEP_CAP_VIOLATION_J] = 0.0
    site[Site.STEP_BRAKE_S] = 0.0
    site[Site.STEP_GOOD_TOKENS] = 0.0
    site[Site.STEP_OUTPUT_TOKENS] = 0.0
    site[Site.STEP_MISSED_TOKENS] = 0.0
    site[Site.STEP_MISSED_REFERENCE_J] = 0.0
    site[Site.STEP_CLOCK_S] = 0.0
    site[Site.STEP_VALUE_TOKENS] = 0.0
    site[Site.STEP_ENERGY_USD] = 0.0
    site[Site.STEP_CARBON_KG] = 0.0
    site[Site.STEP_GRID_ENERGY_J] = 0.0
    site[Site.STEP_BATTERY_LOSS_J] = 0.0
    site[Site.STEP_REVENUE_USD] = 0.0
    site[Site.STEP_PENALTY_USD] = 0.0
    site[Site.STEP_WEAR_USD] = 0.0
    site[Site.STEP_COINCIDENT_USD] = 0.0
    site[Site.STEP_BALLAST_J] = 0.0
    site[Site.STEP_TRAIN_CREDIT_J] = 0.0
    site[Site.STEP_TRAIN_S] = 0.0
    site[Site.STEP_GENERATION_J] = 0.0
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        numbers[Pool.STEP_ENERGY_J] = 0.0
        numbers[Pool.STEP_BUSY_S] = 0.0
        numbers[Pool.STEP_CLOCK_S] = 0.0
        numbers[Pool.STEP_BATCH_S] = 0.0
        numbers[Pool.STEP_UNIT_S] = 0.0
    for cls in range(params.cls.shape[0]):
        counters = state.cls[row, cls]
        counters[Class.STEP_ARRIVED] = 0.0
        counters[Class.STEP_MET] = 0.0
        counters[Class.STEP_MISSED] = 0.0
        counters[Class.STEP_TTFT_SUM_S] = 0.0
        counters[Class.STEP_TTFT_COUNT] = 0.0
        counters[Class.RECENT_MET] *= _RECENT_DECAY
        counters[Class.RECENT_MISSED] *= _RECENT_DECAY
    for pool in range(state.cache.shape[1]):
        state.cache[row, pool, Tier.STEP_PROMPT] = 0.0
        state.cache[row, pool, Tier.STEP_CACHED] = 0.0
    state.site_int[row, SiteInt.TICK] = 0
    state.site_int[row, SiteInt.SLICE] = 0


@inlined_kernel
def end_step(params: Params, state: State, row: int) -> None:
    """Decide fates that can no longer turn out well and update the arrival-rate history."""
    now_s = state.site[row, Site.TIME_S]
    sweep(params, state, row, now_s)
    elapsed = state.site[row, Site.STEP_S]
    for cls in range(params.cls.shape[0]):
        counters = state.cls[row, cls]
        counters[Class.RATE_LAG2] = counters[Class.RATE_LAG1]
        counters[Class.RATE_LAG1] = counters[Class.RATE]
        counters[Class.RATE] = counters[Class.STEP_ARRIVED] / elapsed
    if params.session.shape[0] > 0:
        _count_tasks(params, state, row)


@kernel
def _count_tasks(params: Params, state: State, row: int) -> None:
    """Add the tasks of which a control step decides the last request, and all of whose requests are expected to be met.

    Of ``n`` requests decided ``n / turns`` are the last of their task. The chance that all of a task's requests were met is taken as
    ``attainment ** turns`` with the class's recent attainment: misses independent of each other.
    """
    for cls in range(params.cls.shape[0]):
        if params.session[cls, SessionSpec.THINK_S] <= 0.0:
            continue
        counters = state.cls[row, cls]
        decided = counters[Class.RECENT_MET] + counters[Class.RECENT_MISSED]
        if decided > 0.0:
            turns = params.session[cls, SessionSpec.TURNS]
            ended = (counters[Class.STEP_MET] + counters[Class.STEP_MISSED]) / turns
            counters[Class.TASKS] += ended * (counters[Class.RECENT_MET] / decided) ** turns


@kernel
def close_window(state: State, row: int) -> None:
    """End scoring: energy, emission and arrivals freeze; fates of scored requests are still counted."""
    state.site[row, Site.SCORING] = 0.0
    for pool in range(state.pool.shape[1]):
        state.pool[row, pool, Pool.G_CLOSE] = state.pool[row, pool, Pool.G]


@inlined_kernel
def run_segment(params: Params, state: State, row: int, begin_s: float, end_s: float) -> float:
    """Simulate from ``begin_s`` as long as settings may stand, at most until ``end_s``; return where it stopped, s."""
    if state.site[row, Site.FAULTS] > 0.0:
        strike_and_repair(params, state, row, begin_s)
    advance_racks(params, state, row, begin_s)
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        advance_training(params, state, row)
    slice_end_s = end_s
    if params.site[SiteSpec.GENERATION_W] > 0.0:
        commit_units(params, state, row, begin_s, cap_now_w(state, row, begin_s))
    ramp = params.site[SiteSpec.RAMP] > 0.0
    if ramp:
        end_s = ramp_horizon_s(params, state, row, begin_s, end_s)
    if state.site[row, Site.FAULTS] > 1.0:
        follow_racks(params, state, row)
    end_s = plan_segment(params, state, row, begin_s, end_s)
    if ramp:
        limit_ramp(params, state, row, begin_s, end_s, slice_end_s)
    pools = params.pool.shape[0]
    coupled = params.site[SiteSpec.COUPLED] > 0.0
    for pool in range(pools):
        if params.pool[pool, PoolSpec.PHASE] == PREFILL:
            advance_prefill(params, state, row, pool, end_s)
    if ramp:
        limit_decode(params, state, row, begin_s, end_s)
    for pool in range(pools):
        if params.pool[pool, PoolSpec.PHASE] == DECODE:
            if coupled:
                leave_time_to_prefill(params, state, row, pool, end_s - begin_s)
            advance_decode(params, state, row, pool, end_s)
            if coupled:
                book_shared_time(params, state, row, pool)
            predict_admission_wait(params, state, row, pool, end_s - begin_s)
    meter_segment(params, state, row, begin_s, end_s)
    state.site[row, Site.TIME_S] = end_s
    state.site_int[row, SiteInt.SEGMENTS] += 1
    return end_s


@kernel
def run_step(params: Params, state: State, row: int, path_start_s: float) -> int:
    """Run, or resume, one control step of a row.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        path_start_s: Time at which the row's rate path begins, s.

    Returns:
        DONE, or NEEDS_SLOTS when the cohort arrays must grow before the next tick; call again after growing them.
    """
    tick_s = params.site[SiteSpec.TICK_S]
    slices = int(params.site[SiteSpec.SLICES])
    ticks = int(math.floor(params.site[SiteSpec.CONTROL_INTERVAL_S] / tick_s + 0.5))
    progress = state.site_int[row]
    begin_s = state.site[row, Site.TIME_S] - tick_s * progress[SiteInt.SLICE] / slices
    while progress[SiteInt.TICK] < ticks:
        look_outside(state, row, minute_of(state, path_start_s, begin_s))
        if params.site[SiteSpec.COINCIDENT_USD_PER_W] > 0.0:
            look_for_peak(state, row, minute_of(state, path_start_s, begin_s))
        if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
            look_for_job(state, row, minute_of(state, path_start_s, begin_s))
        needed = most_arrivals(params, state, row, begin_s, tick_s, path_start_s)
        if progress[SiteInt.FREE] < needed + slots_for_faults(state, row, begin_s + tick_s):
            return NEEDS_SLOTS
        progress[SiteInt.SLICE] += admit(params, state, row, begin_s, tick_s, path_start_s)
        end_s = begin_s + tick_s * progress[SiteInt.SLICE] / slices
        time_s = state.site[row, Site.TIME_S]
        while time_s < end_s:
            time_s = run_segment(params, state, row, time_s, end_s)
        if progress[SiteInt.SLICE] == slices:
            progress[SiteInt.SLICE] = 0
            progress[SiteInt.TICK] += 1
            begin_s = end_s
    end_step(params, state, row)
    return DONE


@kernel
def run_rows(
    params_table: Array,
    state_table: Array,
    rows: Array,
    path_start_s: Array,
    status: Array,
) -> int:
    """Run one control step of the given rows.

    Args:
        params_table: ``Params`` by reference (``Reference.handed``).
        state_table: ``State`` by reference.
        rows: int64[n] rows to run.
        path_start_s: float64[all rows] s.
        status: int64[all rows]; rows that are DONE are skipped and the result of each row is written back.

    Returns:
        DONE when every row is, else NEEDS_SLOTS.
    """
    params = params_of(params_table)
    state = state_of(state_table)
    result = DONE
    for index in range(rows.shape[0]):
        row = rows[index]
        if status[row] != DONE:
            status[row] = run_step(params, state, row, path_start_s[row])
            if status[row] != DONE:
                result = NEEDS_SLOTS
    return result


@kernel
def act_rows(
    params_table: Array,
    state_table: Array,
    rows: Array,
    bias: Array,
    ceiling: Array,
    power_limit_w: Array,
    racks: Array,
    most_batch: Array,
    gate: Array,
    order: Array,
    own: Array,
) -> None:
    """Begin a control step of the given rows with one action each.

    Args:
        params_table: ``Params`` by reference.
        state_table: ``State`` by reference.
        rows: int64[n] rows.
        bias: float64[n, 2, groups, pools].
        ceiling: float64[n, pools].
        power_limit_w: float64[n, pools].
        racks: int64[n, pools].
        most_batch: float64[n, pools].
        gate: float64[n, classes, Gate].
        order: float64[n, Order and units].
        own: int64[n, pools].
    """
    params = params_of(params_table)
    state = state_of(state_table)
    for index in range(rows.shape[0]):
        row = rows[index]
        begin_step(params, state, row)
        apply_action(
            params,
            state,
            row,
            bias[index],
            ceiling[index],
            power_limit_w[index],
            racks[index],
            most_batch[index],
            gate[index],
            order[index],
            own[index],
        )
