"""Racks go out of service and come back; what was on them starts anew elsewhere.

Which rack of a family is struck, and when, was drawn before the episode (``engine.outages``). Racks have no names here: the number of the one
that is struck is counted through the pools of its family, active racks first, then draining, waking, sleeping and failed ones.

* A rack that fails takes its share of its pool's work with it: one of R racks that serve has 1/R of the requests. Which these are is decided by
  turns, from a start that was drawn with the fault.
* Requests being decoded lose their KV. They start anew, prefill and all, at the end of a queue; output tokens they had been given are counted as
  lost. The first token stays where it was, and so does the promise of the last: what the restart takes makes the request late.
* A prefill rack loses what it prefills and the KV it keeps until a decode pool has admitted the request. The queue in front of the pool is the
  pool's and stays.
* Where a pool has no active rack left, what is bound for it goes to other pools, if there are any.
* What a prefix cache had for a request that goes elsewhere it does not find there: it works off its whole prompt.
* A rack taken out for maintenance is emptied like one that is put to sleep: nothing is lost that the other racks have room for.
* A fault may take only a part of its rack: the replicas on a group of GPUs, or in one NVLink domain (``engine.health``). The requests on
  these are lost as above, the rest of the rack serves on, and the part serves again when it is repaired and has loaded the model. Where it would
  leave nothing of the rack, or of all awake racks of the pool, it takes the rack.
* A rack that fails asleep is out just as long. One that has failed already cannot fail again. A failed rack draws what a sleeping one does; when
  it is repaired it sleeps, and wakes if it is ordered to.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.arrivals import group_of, route, route_decode, route_request, route_request_on, size_class
from ai_factory_gym.engine.cache import find_nothing, has_cache
from ai_factory_gym.engine.calendar import gather, schedule
from ai_factory_gym.engine.health import (
    come_with_rack,
    count_out,
    go_with_rack,
    home_of,
    parts_out,
    units_per_rack,
    working_share,
)
from ai_factory_gym.engine.layout import (
    COHORT,
    DECODE,
    LINK_DOMAIN,
    MAINTENANCE,
    NOBODY,
    PREFILL,
    RACK,
    READY_LINE,
    SEPARATE,
    SERVICE_LINE,
    SHARE_IN_PREFILL,
    SHARED_GPUS,
    SHARED_POWER,
    Cohort,
    CohortInt,
    Fault,
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
from ai_factory_gym.engine.ledger import take_slot
from ai_factory_gym.engine.lists import insert, take_first
from ai_factory_gym.engine.prefill import join_queue, server_seconds, set_shares
from ai_factory_gym.engine.racks import DRAIN, WAKE, cancel
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    prefill_work_s,
)
from ai_factory_gym.physics.power import POWER_GPUS

_NOW_S = 1e-6

_ASLEEP, _FAILED = int(PoolInt.ASLEEP), int(PoolInt.FAILED)

_IN_ORDER = tuple(
    int(column) for column in (PoolInt.ACTIVE, PoolInt.DRAINING, PoolInt.WAKING, PoolInt.ASLEEP, PoolInt.FAILED)
)
"""States in which racks are counted through."""

_OF_BATCH = tuple(
    int(column)
    for column in (
        Pool.IN_FLIGHT,
        Pool.EMITTING,
        Pool.LEAVING,
        Pool.FREEING,
        Pool.CONTEXT,
        Pool.RESERVED,
        Pool.PACED_IN_FLIGHT,
        Pool.PACED_CONTEXT,
    )
)
"""What an empty batch has none of, exactly: rounding must not accumulate over a day."""


@inlined_kernel
def slots_for_faults(state: State, row: int, until_s: float) -> int:
    """Return how many free cohort slots faults before ``until_s`` may need: any cohort may be split in two."""
    if state.site[row, Site.FAULTS] == 0.0 or state.site[row, Site.NEXT_FAULT_S] >= until_s:
        return 0
    return int(state.free.shape[1] - state.site_int[row, SiteInt.FREE])


@kernel
def strike_and_repair(params: Params, state: State, row: int, now_s: float) -> None:
    """Let happen what is due of faults, maintenance and repairs, and note when the next of them is.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        now_s: Time, s.
    """
    site = state.site[row]
    if site[Site.NEXT_FAULT_S] > now_s + _NOW_S:
        return
    next_s = math.inf
    events = state.fault[row]
    for index in range(events.shape[0]):
        event = events[index]
        if event[Fault.TIME_S] == math.inf:
            break
        if event[Fault.DONE] == 0.0:
            if event[Fault.TIME_S] > now_s + _NOW_S:
                next_s = min(next_s, event[Fault.TIME_S])
                break
            event[Fault.DONE] = 1.0
            _strike(params, state, row, index, now_s)
        if event[Fault.BACK_S] <= now_s + _NOW_S:
            event[Fault.BACK_S] = math.inf
            if event[Fault.REPLICAS] > 0.0:
                event[Fault.REPLICAS] = 0.0
                count_out(params, state, row, int(event[Fault.WHERE]))
            else:
                _bring_back(params, state, row, int(event[Fault.WHERE]))
                if site[Site.FAULTS] > 1.0:
                    come_with_rack(params, state, row, int(event[Fault.WHERE]), index)
        next_s = min(next_s, event[Fault.BACK_S])
    site[Site.NEXT_FAULT_S] = next_s


@inlined_kernel
def _shares_racks(params: Params, pool: int) -> bool:
    return bool(params.pool[pool, PoolSpec.COUPLING] != SEPARATE)


@kernel
def _bring_back(params: Params, state: State, row: int, pool: int) -> None:
    """Let a rack whose repair is over sleep until it is wanted."""
    state.pool_int[row, pool, PoolInt.FAILED] -= 1
    state.pool_int[row, pool, PoolInt.ASLEEP] += 1
    if _shares_racks(params, pool):
        partner = int(params.pool[pool, PoolSpec.PARTNER])
        state.pool_int[row, partner, PoolInt.FAILED] -= 1
        state.pool_int[row, partner, PoolInt.ASLEEP] += 1


@kernel
def _find(params: Params, state: State, row: int, first: int, number: int, kind: int) -> tuple[int, int]:
    """Return pool and state (a column of PoolInt) of a family's ``number``-th rack; for maintenance, of one that sleeps if there is one."""
    other = int(params.pool[first, PoolSpec.SIBLING])
    if kind == MAINTENANCE:
        for turn in range(2):
            pool = first if turn == 0 else other
            if pool >= 0 and state.pool_int[row, pool, PoolInt.ASLEEP] > 0:
                return pool, _ASLEEP
    for turn in range(2):
        pool = first if turn == 0 else other
        if pool < 0:
            continue
        for column in _IN_ORDER:
            count = state.pool_int[row, pool, column]
            if number < count:
                return pool, column
            number -= count
    return first, _FAILED


@kernel
def _strike(params: Params, state: State, row: int, index: int, now_s: float) -> None:
    """Take a rack out of service, or a part of it, and with it what is on it."""
    event = state.fault[row, index]
    kind = int(event[Fault.KIND])
    pool, column = _find(params, state, row, int(event[Fault.POOL]), int(event[Fault.RACK]), kind)
    if column == PoolInt.FAILED:
        return
    in_part = state.site[row, Site.FAULTS] > 1.0
    if in_part and event[Fault.DOMAIN] != RACK and _strike_part(params, state, row, index, pool, column, now_s):
        return
    event[Fault.WHERE] = pool
    event[Fault.BACK_S] = now_s + event[Fault.LASTS_S]
    state.site[row, Site.RACKS_STRUCK] += state.site[row, Site.SCORING]
    ints = state.pool_int[row, pool]
    serving = float(ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING])
    partner = int(params.pool[pool, PoolSpec.PARTNER]) if _shares_racks(params, pool) else -1
    lost = 1.0 / serving if serving > 0.0 else 0.0
    lost_too = lost
    if in_part:
        lost = _lost_with_rack(params, state, row, index, pool, column)
        lost_too = lost
        if partner >= 0 and params.pool[pool, PoolSpec.COUPLING] == SHARED_POWER:
            lost_too = _lost_with_rack(params, state, row, index, partner, column)
    _take_rack(params, state, row, pool, column)
    if partner >= 0:
        _take_rack(params, state, row, partner, column)
    if column != PoolInt.ACTIVE and column != PoolInt.DRAINING:
        return
    for turn in range(2):
        member = pool if turn == 0 else partner
        if member < 0:
            continue
        # Before maintenance a rack is emptied: only what fits nowhere else is lost.
        share = 0.0 if kind == MAINTENANCE else lost if turn == 0 else lost_too
        if params.pool[member, PoolSpec.PHASE] == PREFILL:
            _lose_prefill(params, state, row, member, share, event[Fault.TURN])
        else:
            _lose_batch(params, state, row, member, share, event[Fault.TURN])
    for turn in range(2):
        member = pool if turn == 0 else partner
        if member >= 0 and state.pool_int[row, member, PoolInt.ACTIVE] == 0:
            if params.pool[member, PoolSpec.PHASE] == PREFILL:
                _leave_prefill_pool(params, state, row, member)
            elif params.pool[member, PoolSpec.COUPLING] != SHARED_GPUS:
                _leave_decode_pool(params, state, row, member, now_s)


@kernel
def _strike_part(params: Params, state: State, row: int, index: int, pool: int, column: int, now_s: float) -> bool:
    """Take a part of a rack out of service, and what is on it; tell whether that is all the fault takes. Else it takes the rack."""
    event = state.fault[row, index]
    place = event[Fault.PLACE]
    if params.pool[pool, PoolSpec.COUPLING] == SHARED_POWER:
        # Which of the two kinds of GPU is struck; what is left of the draw is even again.
        partner = int(params.pool[pool, PoolSpec.PARTNER])
        mine = params.power[pool, POWER_GPUS] / (params.power[pool, POWER_GPUS] + params.power[partner, POWER_GPUS])
        if place >= mine:
            pool = partner
            place = (place - mine) / (1.0 - mine)
        else:
            place /= mine
    spec = params.pool[pool]
    per_rack = spec[PoolSpec.REPLICAS_PER_RACK]
    taken = spec[PoolSpec.DOMAIN_REPLICAS] if event[Fault.DOMAIN] == LINK_DOMAIN else spec[PoolSpec.GROUP_REPLICAS]
    if taken >= per_rack and spec[PoolSpec.COUPLING] != SHARED_POWER:
        return False
    ints = state.pool_int[row, pool]
    serves = column == PoolInt.ACTIVE or column == PoolInt.DRAINING
    racks = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING] if serves else ints[PoolInt.WAKING] + ints[PoolInt.ASLEEP]
    home = home_of(params, pool)
    _, out = parts_out(state, row, home, 1.0 if serves else 0.0)
    if place * racks * per_rack < out:
        # GPUs that are out already cannot fail again.
        return True
    left = racks * per_rack - out - taken
    if left < 1.0:
        return False
    event[Fault.WHERE] = home
    event[Fault.BACK_S] = now_s + event[Fault.LASTS_S] + spec[PoolSpec.SWITCH_S]
    event[Fault.REPLICAS] = taken
    event[Fault.AWAKE] = 1.0 if serves else 0.0
    state.site[row, Site.GROUPS_STRUCK] += state.site[row, Site.SCORING]
    count_out(params, state, row, pool)
    if not serves:
        return True
    other = int(spec[PoolSpec.PARTNER]) if spec[PoolSpec.COUPLING] == SHARED_GPUS else -1
    for turn in range(2):
        member = pool if turn == 0 else other
        if member < 0:
            continue
        phase = int(params.pool[member, PoolSpec.PHASE])
        if ints[PoolInt.ACTIVE] > 0:
            for group in range(state.weight.shape[2]):
                _lower_share(state, row, phase, group, member, left / (left + taken))
        if phase == PREFILL:
            _lose_prefill(params, state, row, member, taken / (left + taken), event[Fault.TURN])
        else:
            _lose_batch(params, state, row, member, taken / (left + taken), event[Fault.TURN])
    return True


@kernel
def _lost_with_rack(params: Params, state: State, row: int, index: int, pool: int, column: int) -> float:
    """Return the share of a pool's work that is on a rack which goes out of service; what was out in it goes with it."""
    event = state.fault[row, index]
    ints = state.pool_int[row, pool]
    serves = column == PoolInt.ACTIVE or column == PoolInt.DRAINING
    racks = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING] if serves else ints[PoolInt.WAKING] + ints[PoolInt.ASLEEP]
    working = racks * working_share(state, row, pool)
    out = go_with_rack(params, state, row, pool, 1.0 if serves else 0.0, racks, event[Fault.PLACE], index)
    if not serves:
        return 0.0
    mine = 1.0 - out / params.pool[pool, PoolSpec.REPLICAS_PER_RACK]
    return float(min(1.0, mine / working))


@kernel
def _take_rack(params: Params, state: State, row: int, pool: int, column: int) -> None:
    """Count a rack as failed that was in the state of ``column``, and route the less to its pool."""
    ints = state.pool_int[row, pool]
    before = ints[column]
    ints[column] -= 1
    ints[PoolInt.FAILED] += 1
    if state.site[row, Site.FAULTS] > 1.0:
        if column == PoolInt.ACTIVE or column == PoolInt.DRAINING:
            # It has not fallen asleep: what is out in the others stays there.
            ints[PoolInt.AWAKE_SEEN] -= 1
        count_out(params, state, row, pool)
    if column == PoolInt.WAKING:
        cancel(state, row, pool, WAKE, 1)
    elif column == PoolInt.DRAINING:
        cancel(state, row, pool, DRAIN, 1)
        ints[PoolInt.MOVING] = min(ints[PoolInt.MOVING], ints[PoolInt.DRAINING])
    elif column == PoolInt.ACTIVE:
        phase = int(params.pool[pool, PoolSpec.PHASE])
        for group in range(state.weight.shape[2]):
            _lower_share(state, row, phase, group, pool, ints[PoolInt.ACTIVE] / before)


@kernel
def _lower_share(state: State, row: int, phase: int, group: int, pool: int, factor: float) -> None:
    """Lower a pool's routing share by a factor, to the others' good; a share nobody else could take stays till the operator's next order."""
    shares = state.weight[row, phase, group]
    total = 0.0
    for other in range(shares.shape[0]):
        total += shares[other] * (factor if other == pool else 1.0)
    if shares[pool] <= 0.0 or total <= 1e-12:
        return
    shares[pool] *= factor
    if factor <= 0.0:
        state.carry[row, phase, group, :, pool] = 0.0
    for other in range(shares.shape[0]):
        shares[other] /= total


# ------------------------------------------------------------------------------------------------- what a request is bound for


@kernel
def _unbind(state: State, row: int, slot: int, waits: bool) -> None:
    """Take a cohort off its pools' books; ``waits`` for decode, or is in the batch."""
    ints = state.cohort_int[row, slot]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    state.pool_int[row, ints[CohortInt.PREFILL_POOL], PoolInt.ASSIGNED] -= 1
    state.pool_int[row, ints[CohortInt.DECODE_POOL], PoolInt.ASSIGNED] -= 1
    if waits:
        numbers = state.pool[row, ints[CohortInt.DECODE_POOL]]
        numbers[Pool.WAITING] -= count
        numbers[Pool.WAITING_TOKENS] -= count * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])


@kernel
def _bind(state: State, row: int, slot: int, prefill: int, decode: int) -> None:
    """Enter a cohort that is not in a batch into the books of its pools."""
    ints = state.cohort_int[row, slot]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    ints[CohortInt.PREFILL_POOL] = prefill
    ints[CohortInt.DECODE_POOL] = decode
    state.pool_int[row, prefill, PoolInt.ASSIGNED] += 1
    state.pool_int[row, decode, PoolInt.ASSIGNED] += 1
    numbers = state.pool[row, decode]
    numbers[Pool.WAITING] += count
    numbers[Pool.WAITING_TOKENS] += count * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])


@kernel
def _route_again(params: Params, state: State, row: int, slot: int) -> tuple[int, int]:
    """Choose a prefill and a decode pool for a cohort as for one that arrives."""
    cohort = state.cohort[row, slot]
    prompt = cohort[Cohort.PROMPT]
    group = group_of(params, state.cohort_int[row, slot, CohortInt.CLASS], prompt)
    if params.site[SiteSpec.RESOLUTION] != COHORT:
        prefill = route_request(params, state, row, PREFILL, group)
        return prefill, route_request_on(params, state, row, prefill, group)
    count = cohort[Cohort.COUNT]
    scaling, fixed = prefill_work_s(params.perf[0], prompt, cohort[Cohort.PROMPT_SQ])
    prefill = route(params, state, row, PREFILL, group, size_class(prompt), count * (scaling + fixed))
    output = cohort[Cohort.OUTPUT]
    return prefill, route_decode(params, state, row, prefill, group, size_class(output), count * output)


@inlined_kernel
def _find_nothing(params: Params, state: State, row: int, slot: int) -> None:
    """Let a cohort work off its whole prompt: what a prefix cache had for it is on racks it does not go to."""
    if has_cache(params):
        find_nothing(state.cohort[row, slot], 0.0)


@kernel
def _start_anew(params: Params, state: State, row: int, slot: int) -> None:
    """Send a cohort that is on nobody's books to the end of a queue."""
    _find_nothing(params, state, row, slot)
    prefill, decode = _route_again(params, state, row, slot)
    _bind(state, row, slot, prefill, decode)
    join_queue(params, state, row, prefill, slot)
    state.site[row, Site.RESTARTED] += state.site[row, Site.SCORING] * state.cohort[row, slot, Cohort.COUNT]


@kernel
def _part_lost(state: State, row: int, slot: int, turn: float) -> int:
    """Return the slot of the ``floor(turn)`` requests of a cohort that are lost: the cohort's own where all are, NOBODY where none is."""
    count = state.cohort[row, slot, Cohort.COUNT]
    lost = min(count, math.floor(turn + 1e-9))
    if lost <= 0.0:
        return NOBODY
    if lost >= count:
        return slot
    if state.site_int[row, SiteInt.FREE] == 0:
        # Room was made beforehand (slots_for_faults); after many faults within a tick whole cohorts have to do.
        return slot if 2.0 * lost >= count else NOBODY
    part = take_slot(state, row)
    for column in range(state.cohort.shape[2]):
        state.cohort[row, part, column] = state.cohort[row, slot, column]
    for column in range(state.cohort_int.shape[2]):
        state.cohort_int[row, part, column] = state.cohort_int[row, slot, column]
    state.cohort[row, part, Cohort.COUNT] = lost
    state.cohort[row, slot, Cohort.COUNT] -= lost
    state.pool_int[row, state.cohort_int[row, slot, CohortInt.PREFILL_POOL], PoolInt.ASSIGNED] += 1
    state.pool_int[row, state.cohort_int[row, slot, CohortInt.DECODE_POOL], PoolInt.ASSIGNED] += 1
    return part


# -------------------------------------------------------------------------------------------------------------- what is lost


@kernel
def _lose_batch(params: Params, state: State, row: int, pool: int, share: float, turn: float) -> None:
    """Lose a share of a decode pool's batch, request by request in turn, and enter the others into an empty calendar."""
    ints = state.pool_int[row, pool]
    numbers = state.pool[row, pool]
    perf = state.perf[row, pool]
    gather(state, row, pool, SERVICE_LINE)
    numbers[Pool.PACED_IN_FLIGHT] *= 1.0 - share
    numbers[Pool.PACED_CONTEXT] *= 1.0 - share
    for slot in range(state.site_int[row, SiteInt.HIGH_WATER]):
        if _decodes(state, row, pool, slot):
            turn += share * state.cohort[row, slot, Cohort.COUNT]
            turn -= _lose_from_batch(params, state, row, pool, slot, turn)
    # Requests differ in size, and turns know nothing of it: what is left was on racks where it fitted, so it has to fit.
    for slot in range(state.site_int[row, SiteInt.HIGH_WATER]):
        if _decodes(state, row, pool, slot):
            excess = _excess(params, state, row, pool, slot)
            if excess > 0.0:
                _lose_from_batch(params, state, row, pool, slot, excess)
    for slot in range(state.site_int[row, SiteInt.HIGH_WATER]):
        if _decodes(state, row, pool, slot):
            cohort = state.cohort[row, slot]
            span = perf[DECODE_TOKENS_PER_ITERATION] + cohort[Cohort.OUTPUT] - 1.0
            days_per_token = params.site[SiteSpec.DAYS_PER_TOKEN]
            schedule(state, row, pool, SERVICE_LINE, slot, cohort[Cohort.G_ADMIT] + span, days_per_token)
    if ints[PoolInt.SERVING] == 0:
        for column in _OF_BATCH:
            numbers[column] = 0.0


@inlined_kernel
def _decodes(state: State, row: int, pool: int, slot: int) -> bool:
    """Tell whether a cohort is in a pool's batch."""
    ints = state.cohort_int[row, slot]
    return bool(ints[CohortInt.STAGE] == Stage.DECODING and ints[CohortInt.DECODE_POOL] == pool)


@kernel
def _excess(params: Params, state: State, row: int, pool: int, slot: int) -> float:
    """Return how many requests like those of a cohort would have to go until a batch fits the racks that are left."""
    ints = state.pool_int[row, pool]
    numbers = state.pool[row, pool]
    perf = state.perf[row, pool]
    cohort = state.cohort[row, slot]
    units = (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * units_per_rack(params, state, row, pool)
    held = cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT] + perf[DECODE_KV_REQUEST_TOKENS]
    tokens = numbers[Pool.RESERVED] - units * perf[DECODE_KV_CAPACITY_TOKENS]
    places = numbers[Pool.IN_FLIGHT] - units * params.pool[pool, PoolSpec.MAX_BATCH]
    return float(math.ceil(max(tokens / held, places) - 1e-6))


@kernel
def _lose_from_batch(params: Params, state: State, row: int, pool: int, slot: int, turn: float) -> float:
    """Lose ``floor(turn)`` requests of a cohort of the batch, at most all, and return how many; the batch's calendar is not kept."""
    part = _part_lost(state, row, slot, turn)
    if part == NOBODY:
        return 0.0
    count = state.cohort[row, part, Cohort.COUNT]
    _leave_batch(state, row, pool, part)
    _unbind(state, row, part, False)
    _start_anew(params, state, row, part)
    return float(count)


@kernel
def _leave_batch(state: State, row: int, pool: int, slot: int) -> None:
    """Take a cohort's requests, KV and tokens out of the batch; what it was given is lost."""
    numbers = state.pool[row, pool]
    cohort = state.cohort[row, slot]
    count = cohort[Cohort.COUNT]
    output = cohort[Cohort.OUTPUT]
    span = state.perf[row, pool, DECODE_TOKENS_PER_ITERATION] + output - 1.0
    held = cohort[Cohort.PROMPT] + output + state.perf[row, pool, DECODE_KV_REQUEST_TOKENS]
    leaving = count / span
    given = leaving * output * (numbers[Pool.G] - cohort[Cohort.G_ADMIT])
    kv = count * cohort[Cohort.PROMPT] + given
    numbers[Pool.IN_FLIGHT] -= count
    numbers[Pool.EMITTING] -= leaving * output
    numbers[Pool.LEAVING] -= leaving
    numbers[Pool.FREEING] -= leaving * held
    numbers[Pool.CONTEXT] -= kv
    numbers[Pool.RESERVED] -= count * held
    numbers[Pool.KV_TOKENS_OUT] += kv
    begin = max(cohort[Cohort.G_ADMIT], numbers[Pool.G_OPEN])
    scoring = state.site[row, Site.SCORING]
    state.site[row, Site.LOST_TOKENS] += scoring * leaving * output * max(0.0, numbers[Pool.G] - begin)


@kernel
def _lose_prefill(params: Params, state: State, row: int, pool: int, share: float, turn: float) -> None:
    """Lose a share of what a prefill pool has in service, and of the KV it made and keeps until it is admitted to decode."""
    ints = state.pool_int[row, pool]
    for decode in range(params.pool.shape[0]):
        if params.pool[decode, PoolSpec.PHASE] == DECODE:
            turn = _lose_ready(params, state, row, pool, decode, share, turn)
    if params.site[SiteSpec.RESOLUTION] == COHORT:
        return
    numbers = state.pool[row, pool]
    keys = state.heap_key[row, pool, SERVICE_LINE]
    slots = state.heap_slot[row, pool, SERVICE_LINE]
    racks = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
    lanes = int(math.ceil(racks * units_per_rack(params, state, row, pool) - 1e-9))
    # Entries move to the front only, behind the one that is looked at.
    for entry in range(gather(state, row, pool, SERVICE_LINE)):
        key = keys[entry]
        slot = int(slots[entry])
        turn += share
        if turn < 1.0 - 1e-9 and ints[PoolInt.SERVING] < lanes:
            schedule(state, row, pool, SERVICE_LINE, slot, key, params.site[SiteSpec.DAYS_PER_S])
            continue
        turn -= 1.0
        numbers[Pool.SHARE_COMPUTE] -= state.cohort[row, slot, SHARE_IN_PREFILL]
        _unbind(state, row, slot, True)
        _start_anew(params, state, row, slot)
    set_shares(state, row, pool)


@kernel
def _lose_ready(params: Params, state: State, row: int, pool: int, decode: int, share: float, turn: float) -> float:
    """Lose a share of what ``pool`` has for ``decode``: in transfer, waiting, and at cohort resolution in prefill. Returns the turn."""
    keys = state.heap_key[row, decode, READY_LINE]
    slots = state.heap_slot[row, decode, READY_LINE]
    for entry in range(gather(state, row, decode, READY_LINE)):
        key = keys[entry]
        slot = int(slots[entry])
        part = NOBODY
        if state.cohort_int[row, slot, CohortInt.PREFILL_POOL] == pool:
            turn += share * state.cohort[row, slot, Cohort.COUNT]
            part = _part_lost(state, row, slot, turn)
        if part != slot:
            schedule(state, row, decode, READY_LINE, slot, key, params.site[SiteSpec.DAYS_PER_S])
        if part != NOBODY:
            count = state.cohort[row, part, Cohort.COUNT]
            turn -= count
            state.pool[row, decode, Pool.IN_TRANSIT] -= count
            _unbind(state, row, part, True)
            _start_anew(params, state, row, part)
    return turn


# ------------------------------------------------------------------------------------------------- pools without an active rack


@kernel
def _leave_prefill_pool(params: Params, state: State, row: int, pool: int) -> None:
    """Send the queue and the inbox of a prefill pool elsewhere, as far as there is another pool that takes them."""
    numbers = state.pool[row, pool]
    ints = state.pool_int[row, pool]
    rate = compute_rate(numbers[Pool.CLOCK])
    cohorts = params.site[SiteSpec.RESOLUTION] == COHORT
    last = ints[PoolInt.QUEUE_TAIL]
    slot = NOBODY
    while ints[PoolInt.QUEUE_HEAD] != NOBODY and slot != last:
        slot = take_first(state, row, pool, PoolInt.QUEUE_HEAD, PoolInt.QUEUE_TAIL)
        cohort = state.cohort[row, slot]
        count = cohort[Cohort.COUNT]
        numbers[Pool.QUEUED] -= count
        if cohorts:
            own = server_seconds(state.perf[row, pool], cohort, rate)
            numbers[Pool.BACKLOG] = max(0.0, numbers[Pool.BACKLOG] - count * own)
            numbers[Pool.QUEUED_WORK] = numbers[Pool.BACKLOG]
        else:
            numbers[Pool.QUEUED_WORK] -= count * server_seconds(state.perf[row, pool], cohort, 1.0)
        _unbind(state, row, slot, True)
        prefill, decode = _route_again(params, state, row, slot)
        if prefill != pool:
            _find_nothing(params, state, row, slot)
        _bind(state, row, slot, prefill, decode)
        join_queue(params, state, row, prefill, slot)
    work = 0.0
    slot = ints[PoolInt.INBOX_HEAD]
    while slot != NOBODY:
        work += _flow(params, state, row, pool, slot, cohorts, rate)
        slot = state.link[row, slot]
    inflow = numbers[Pool.INFLOW]
    after = ints[PoolInt.INBOX_HEAD]
    ints[PoolInt.INBOX_HEAD] = NOBODY
    ints[PoolInt.INBOX_TAIL] = NOBODY
    while after != NOBODY:
        slot = after
        after = state.link[row, slot]
        _unbind(state, row, slot, True)
        prefill, decode = _route_again(params, state, row, slot)
        _bind(state, row, slot, prefill, decode)
        insert(state, row, prefill, PoolInt.INBOX_HEAD, PoolInt.INBOX_TAIL, slot)
        if prefill != pool:
            other = state.pool[row, prefill]
            mine = _flow(params, state, row, pool, slot, cohorts, rate)
            _find_nothing(params, state, row, slot)
            theirs = _flow(params, state, row, prefill, slot, cohorts, compute_rate(other[Pool.CLOCK]))
            numbers[Pool.INFLOW] = max(0.0, numbers[Pool.INFLOW] - inflow * mine / work)
            other[Pool.INFLOW] += inflow * theirs / work
            other[Pool.INFLOW_COMPUTE] = max(other[Pool.INFLOW_COMPUTE], numbers[Pool.INFLOW_COMPUTE])
            other[Pool.INFLOW_MEMORY] = max(other[Pool.INFLOW_MEMORY], numbers[Pool.INFLOW_MEMORY])


@kernel
def _flow(params: Params, state: State, row: int, pool: int, slot: int, cohorts: bool, rate: float) -> float:
    """Return what a cohort of the inbox adds to a pool's inflow: server-seconds, or requests where they are simulated one by one."""
    cohort = state.cohort[row, slot]
    if not cohorts:
        return float(cohort[Cohort.COUNT])
    return float(cohort[Cohort.COUNT] * server_seconds(state.perf[row, pool], cohort, rate))


@kernel
def _leave_decode_pool(params: Params, state: State, row: int, pool: int, now_s: float) -> None:
    """Send what is bound for a decode pool, and not in its batch, to others; KV that is there is sent again from where it was made."""
    days_per_s = params.site[SiteSpec.DAYS_PER_S]
    keys = state.heap_key[row, pool, READY_LINE]
    slots = state.heap_slot[row, pool, READY_LINE]
    for entry in range(gather(state, row, pool, READY_LINE)):
        key = keys[entry]
        slot = int(slots[entry])
        decode = _other_decode_pool(params, state, row, slot)
        if decode == pool:
            schedule(state, row, pool, READY_LINE, slot, key, days_per_s)
            continue
        count = state.cohort[row, slot, Cohort.COUNT]
        prefill = state.cohort_int[row, slot, CohortInt.PREFILL_POOL]
        perf = state.perf[row, prefill]
        resent_s = (
            state.cohort[row, slot, Cohort.PROMPT]
            * perf[PREFILL_KV_BYTES_PER_TOKEN]
            / perf[PREFILL_TRANSFER_BYTES_PER_S]
        )
        _unbind(state, row, slot, True)
        state.pool[row, pool, Pool.IN_TRANSIT] -= count
        if has_cache(params) and state.cohort[row, slot, Cohort.HELD] > 0.0:
            # What the pool held of it was never sent, and is nowhere else.
            _start_anew(params, state, row, slot)
            continue
        _bind(state, row, slot, prefill, decode)
        state.pool[row, decode, Pool.IN_TRANSIT] += count
        schedule(state, row, decode, READY_LINE, slot, max(key, now_s + resent_s), days_per_s)
    for slot in range(state.site_int[row, SiteInt.HIGH_WATER]):
        ints = state.cohort_int[row, slot]
        stage = ints[CohortInt.STAGE]
        ahead = stage == Stage.INBOX or stage == Stage.QUEUED or stage == Stage.PREFILLING
        if ahead and ints[CohortInt.DECODE_POOL] == pool:
            decode = _other_decode_pool(params, state, row, slot)
            if decode != pool:
                prefill = int(ints[CohortInt.PREFILL_POOL])
                _unbind(state, row, slot, True)
                _bind(state, row, slot, prefill, decode)
                if has_cache(params):
                    # What the pool held for it is sent after all, as if it had been cached where it is prefilled.
                    state.cohort[row, slot, Cohort.HELD] = 0.0


@kernel
def _other_decode_pool(params: Params, state: State, row: int, slot: int) -> int:
    """Choose a decode pool for a cohort that has a prefill pool."""
    cohort = state.cohort[row, slot]
    prefill = int(state.cohort_int[row, slot, CohortInt.PREFILL_POOL])
    group = group_of(params, state.cohort_int[row, slot, CohortInt.CLASS], cohort[Cohort.PROMPT])
    if params.site[SiteSpec.RESOLUTION] != COHORT:
        return route_request_on(params, state, row, prefill, group)
    output = cohort[Cohort.OUTPUT]
    return route_decode(params, state, row, prefill, group, size_class(output), cohort[Cohort.COUNT] * output)
