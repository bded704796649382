"""Prefix caches of prefill pools: which requests find the KV of their session, and what that saves and costs.

A prompt that has been worked off leaves its KV in its pool's HBM; what is least recently used moves on to host memory and is then dropped.
A store that all pools of the site share keeps a copy of everything for as long as it has room, whatever falls asleep. Nothing is done
per stored context: a cache in which all contexts age alike is described by one number, its characteristic time ``T``. A context that is
not asked for again within ``T`` has left it, one that is has not (Che, Tung and Wang, "Hierarchical Web Caching Systems", IEEE JSAC 2002).
``T`` is where what comes in fills the room, with ``b`` bytes/s of prompts of each class, a share ``q`` of them asked for again after ``A``:

    sum over classes of b E[time a byte stays] = room,    E[time a byte stays] = (1 - q) T + q E[min(A, T)]

which counts a context that is asked for again in the same pool once, and one that is asked for in another pool twice. Rates are smoothed
over the class's think time, so that their share by pool is the probability that a session's last request went to a pool, exactly so for
think times that are exponential. ``T`` grows by one second per second at most (a cache that nothing leaves), and shrinks towards where it has to
be within a time of that length.

A decode pool may hold the KV of sessions between turns in a share of its KV memory, which then admits fewer requests. A turn that comes back
to the pool that holds its context needs neither prefill nor transfer of it.

Assumed: inside a pool a request goes to the rack that has its context; one that comes as its predecessor is still in prefill finds it too.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.health import units_per_rack, working_share
from ai_factory_gym.engine.layout import (
    PREFILL,
    Array,
    CacheSpec,
    Cell,
    Cohort,
    CohortInt,
    Context,
    Found,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Seen,
    SessionSpec,
    Site,
    SiteSpec,
    State,
    Store,
    Tier,
)
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    prefill_work_s,
)

UPDATE_S = 10.0
"""Least time between two looks at the caches, s (status: design choice; think times are tens of seconds and more)."""

_COLUMNS = len(SessionSpec)
"""Columns of ``Params.session`` before those with the ages of a trace."""

_BISECTIONS = 30
_FASTEST_DROP_PER_S = 1e9

_ITERATIONS = 40
_TOLERANCE = 1e-9


@inlined_kernel
def has_cache(params: Params) -> bool:
    """Tell whether the site has a prefix cache."""
    return params.cache.shape[0] > 0


@kernel
def _stay_s(params: Params, cls: int, most_s: float) -> tuple[float, float]:
    """Return E[min(A, most_s)] of the time A after which a class's contexts are asked for again, s, and P(A > most_s)."""
    ages = params.session.shape[1] - _COLUMNS
    if ages > 0:
        total_s = 0.0
        beyond = 0.0
        for place in range(_COLUMNS, _COLUMNS + ages):
            age_s = params.session[cls, place]
            total_s += min(age_s, most_s)
            if age_s > most_s:
                beyond += 1.0
        return total_s / ages, beyond / ages
    think_s = params.session[cls, SessionSpec.THINK_S]
    if think_s <= 0.0:
        return most_s, 1.0
    beyond = math.exp(-most_s / think_s)
    return think_s * (1.0 - beyond), beyond


@kernel
def characteristic_s(params: Params, contexts: Array, pool: int, room: float) -> float:
    """Return the time after which a context that nobody asks for has left a cache, s; inf for a cache that nothing has to leave.

    What stays is concave in the time: Newton's method from below never passes the solution.

    Args:
        params: Site parameters.
        contexts: float64[classes, pools, Context] of the row.
        pool: The pool whose cache it is; -1 for the store, which all pools fill and ask.
        room: Its size, bytes.
    """
    if room <= 0.0:
        return 0.0
    time_s = 0.0
    for _ in range(_ITERATIONS):
        held = 0.0
        slope = 0.0
        for cls in range(contexts.shape[0]):
            again = params.session[cls, SessionSpec.FOLLOWING] * params.session[cls, SessionSpec.REUSE_SHARE]
            flow = 0.0
            total = 0.0
            here = 0.0
            for other in range(contexts.shape[1]):
                seen = contexts[cls, other, Context.SEEN]
                if seen > 0.0:
                    total += contexts[cls, other, Context.PER_S]
                    if other == pool or pool < 0:
                        here += contexts[cls, other, Context.PER_S]
                        kv_bytes = params.perf[other, PREFILL_KV_BYTES_PER_TOKEN]
                        flow += contexts[cls, other, Context.TOKENS_PER_S] / seen * kv_bytes
            if flow <= 0.0:
                continue
            again *= here / total
            stays_s, beyond = _stay_s(params, cls, time_s)
            held += flow * ((1.0 - again) * time_s + again * stays_s)
            slope += flow * (1.0 - again + again * beyond)
        if slope <= 0.0:
            return math.inf
        step_s = (room - held) / slope
        time_s += step_s
        if step_s <= _TOLERANCE * time_s:
            break
    return float(time_s)


@inlined_kernel
def _move_s(before_s: float, wanted_s: float, elapsed_s: float) -> float:
    """Return a characteristic time after ``elapsed_s`` in which it moved from ``before_s`` towards ``wanted_s``."""
    if before_s <= wanted_s:
        return min(wanted_s, before_s + elapsed_s)
    if before_s == math.inf or wanted_s <= 0.0:
        return wanted_s
    return max(wanted_s, before_s + elapsed_s * (1.0 - before_s / wanted_s))


@kernel
def update_caches(params: Params, state: State, row: int, now_s: float) -> None:
    """Follow what the caches have been given since they were last looked at, and how long they keep it.

    Args:
        params: Site parameters of a site with a prefix cache.
        state: Engine state.
        row: Row.
        now_s: Time, s.
    """
    store = state.cache[row, params.pool.shape[0]]
    elapsed_s = now_s - store[Store.UPDATED_S]
    if elapsed_s < UPDATE_S - 1e-6:
        return
    store[Store.UPDATED_S] = now_s
    contexts = state.context[row]
    pools = params.pool.shape[0]
    for pool in range(pools):
        if params.pool[pool, PoolSpec.PHASE] != PREFILL:
            _hold(params, state, row, pool, elapsed_s)
            continue
        tier = state.cache[row, pool]
        racks = float(state.pool_int[row, pool, PoolInt.ACTIVE] + state.pool_int[row, pool, PoolInt.DRAINING])
        # What is out of service in them has lost its share of what they kept.
        racks *= working_share(state, row, pool)
        kept = 1.0
        if racks < tier[Tier.RACKS]:
            kept = racks / tier[Tier.RACKS]
        tier[Tier.RACKS] = racks
        for cls in range(contexts.shape[0]):
            context = contexts[cls, pool]
            left = math.exp(-elapsed_s / params.session[cls, SessionSpec.MEMORY_S])
            per_s = (1.0 - left) * context[Context.NEW] / elapsed_s
            context[Context.PER_S] = left * context[Context.PER_S] + per_s
            context[Context.KEPT_PER_S] = kept * left * context[Context.KEPT_PER_S] + per_s
            tokens_per_s = (1.0 - left) * context[Context.NEW_TOKENS] / elapsed_s
            context[Context.TOKENS_PER_S] = left * context[Context.TOKENS_PER_S] + tokens_per_s
            context[Context.SEEN] = left * context[Context.SEEN] + 1.0 - left
            context[Context.NEW] = 0.0
            context[Context.NEW_TOKENS] = 0.0
        if racks == 0.0:
            for cls in range(contexts.shape[0]):
                contexts[cls, pool, Context.KEPT_PER_S] = 0.0
    for pool in range(pools):
        if params.pool[pool, PoolSpec.PHASE] != PREFILL:
            continue
        tier = state.cache[row, pool]
        spec = params.cache[pool]
        hbm = tier[Tier.RACKS] * spec[CacheSpec.HBM_BYTES]
        host = tier[Tier.RACKS] * spec[CacheSpec.HOST_BYTES]
        tier[Tier.HBM_S] = _move_s(tier[Tier.HBM_S], characteristic_s(params, contexts, pool, hbm), elapsed_s)
        both_s = tier[Tier.HBM_S]
        if host > 0.0:
            both_s = _move_s(tier[Tier.HOST_S], characteristic_s(params, contexts, pool, hbm + host), elapsed_s)
        tier[Tier.HOST_S] = max(tier[Tier.HBM_S], both_s)
    room = params.site[SiteSpec.STORE_BYTES]
    if room > 0.0:
        store[Store.STORE_S] = _move_s(store[Store.STORE_S], characteristic_s(params, contexts, -1, room), elapsed_s)
    for cls in range(contexts.shape[0]):
        _share_out(params, state, row, cls)


@inlined_kernel
def _held_after(held: float, came: float, think_s: float, drop_per_s: float, elapsed_s: float) -> float:
    """Return what is held after ``elapsed_s`` in which ``came`` came evenly and left after think times or was dropped."""
    leaving = 1.0 / think_s + drop_per_s
    left = math.exp(-elapsed_s * leaving)
    return left * held + came * (1.0 - left) / (leaving * elapsed_s)


@kernel
def _all_held(params: Params, contexts: Array, pool: int, drop_per_s: float, elapsed_s: float) -> float:
    """Return what a decode pool holds of all classes after ``elapsed_s``, were contexts dropped at a rate, KV tokens."""
    total = 0.0
    for cls in range(contexts.shape[0]):
        session = params.session[cls]
        if session[SessionSpec.HOLD] > 0.0:
            context = contexts[cls, pool]
            came = session[SessionSpec.FOLLOWING] * context[Context.NEW_TOKENS]
            total += _held_after(context[Context.HELD], came, session[SessionSpec.THINK_S], drop_per_s, elapsed_s)
    return total


@kernel
def _hold(params: Params, state: State, row: int, pool: int, elapsed_s: float) -> None:
    """Follow what a decode pool holds for sessions between turns: the KV of answered requests that another will follow.

    What is held goes as the next turns come, after exponential times. Where there is no room for all, any is dropped at the same
    rate, the least that makes the rest fit.
    """
    contexts = state.context[row]
    spec = params.pool[pool]
    units = state.pool_int[row, pool, PoolInt.ACTIVE] * units_per_rack(params, state, row, pool)
    room = spec[PoolSpec.HOLD_SHARE] * units * state.perf[row, pool, DECODE_KV_CAPACITY_TOKENS]
    drop_per_s = 0.0
    if room > 0.0 and _all_held(params, contexts, pool, 0.0, elapsed_s) > room:
        low = 0.0
        drop_per_s = 1.0 / elapsed_s
        while _all_held(params, contexts, pool, drop_per_s, elapsed_s) > room and drop_per_s < _FASTEST_DROP_PER_S:
            low = drop_per_s
            drop_per_s *= 4.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + drop_per_s)
            if _all_held(params, contexts, pool, middle, elapsed_s) > room:
                low = middle
            else:
                drop_per_s = middle
    held = 0.0
    for cls in range(contexts.shape[0]):
        session = params.session[cls]
        context = contexts[cls, pool]
        if session[SessionSpec.HOLD] > 0.0:
            came = session[SessionSpec.FOLLOWING] * context[Context.NEW_TOKENS]
            think_s = session[SessionSpec.THINK_S]
            if room > 0.0:
                context[Context.HELD] = _held_after(context[Context.HELD], came, think_s, drop_per_s, elapsed_s)
            else:
                context[Context.HELD] = 0.0
            context[Context.HELD_AT_MOST] = _held_after(context[Context.HELD_AT_MOST], came, think_s, 0.0, elapsed_s)
            held += context[Context.HELD]
        context[Context.NEW] = 0.0
        context[Context.NEW_TOKENS] = 0.0
    state.pool[row, pool, Pool.HELD] = min(held, room)


@inlined_kernel
def leave_context(state: State, row: int, pool: int, slot: int) -> None:
    """Note the KV of a cohort that its decode pool has answered."""
    cohort = state.cohort[row, slot]
    context = state.context[row, state.cohort_int[row, slot, CohortInt.CLASS], pool]
    context[Context.NEW] += cohort[Cohort.COUNT]
    context[Context.NEW_TOKENS] += cohort[Cohort.COUNT] * (cohort[Cohort.PROMPT] + cohort[Cohort.OUTPUT])


@kernel
def _share_out(params: Params, state: State, row: int, cls: int) -> None:
    """Work out with what probability requests of a class find their context in each tier of each pool."""
    contexts = state.context[row, cls]
    store_s = state.cache[row, params.pool.shape[0], Store.STORE_S]
    session = params.session[cls]
    following = session[SessionSpec.FOLLOWING]
    total = 0.0
    most = 0.0
    for pool in range(contexts.shape[0]):
        total += contexts[pool, Context.PER_S]
        most += contexts[pool, Context.HELD_AT_MOST]
    for pool in range(contexts.shape[0]):
        context = contexts[pool]
        if params.pool[pool, PoolSpec.PHASE] != PREFILL:
            context[Context.HELD_CHANCE] = context[Context.HELD] / most if most > 0.0 else 0.0
            continue
        share = 0.0
        if total > 0.0:
            share = context[Context.KEPT_PER_S] / total
        context[Context.SHARE] = share
        context[Context.IN_HBM] = 0.0
        context[Context.IN_HOST] = 0.0
        context[Context.IN_STORE] = 0.0
        # With a trace each request brings its own time.
        if total > 0.0 and session[SessionSpec.THINK_S] > 0.0 and params.session.shape[1] == _COLUMNS:
            tier = state.cache[row, pool]
            hbm = 1.0 - math.exp(-tier[Tier.HBM_S] / session[SessionSpec.THINK_S])
            host = 1.0 - math.exp(-tier[Tier.HOST_S] / session[SessionSpec.THINK_S])
            stored = 1.0 - math.exp(-store_s / session[SessionSpec.THINK_S])
            context[Context.IN_HBM] = following * share * hbm
            context[Context.IN_HOST] = following * share * (host - hbm)
            context[Context.IN_STORE] = following * (share * max(0.0, stored - host) + (1.0 - share) * stored)


@inlined_kernel
def add_found(params: Params, state: State, row: int, place: int, index: int, followed: bool) -> None:
    """Add what one request of a trace finds in each pool to the sums of its cell, the chance of being in that pool included.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        place: Its cell.
        index: Its place in the trace.
        followed: Whether its copy of the trace is thinned: only requests that are kept have left anything behind.
    """
    cls = int(params.cell[place, Cell.CLASS])
    most = params.trace_prompt[index] - 1.0
    store_s = state.cache[row, params.pool.shape[0], Store.STORE_S]
    begin = 0.0
    for segment in range(params.seen_begin[index], params.seen_begin[index + 1]):
        end = min(most, begin + params.seen[segment, Seen.TOKENS])
        if end <= begin or (followed and not state.kept[row, int(params.seen[segment, Seen.BY])]):
            return
        tokens = end - begin
        pairs = end * end - begin * begin
        age_s = params.seen[segment, Seen.AGE_S]
        stored = 1.0 if age_s <= store_s else 0.0
        for pool in range(params.pool.shape[0]):
            if params.pool[pool, PoolSpec.PHASE] != PREFILL:
                continue
            found = state.found[row, place, pool]
            share = state.context[row, cls, pool, Context.SHARE]
            in_store = (1.0 - share) * stored
            if age_s <= state.cache[row, pool, Tier.HBM_S]:
                found[Found.HBM] += share * tokens
                found[Found.HBM_SQ] += share * pairs
            elif age_s <= state.cache[row, pool, Tier.HOST_S]:
                found[Found.HOST] += share * tokens
                found[Found.HOST_SQ] += share * pairs
            else:
                in_store += share * stored
            found[Found.STORE] += in_store * tokens
            found[Found.STORE_SQ] += in_store * pairs
        begin = end


@inlined_kernel
def _load(
    params: Params,
    state: State,
    row: int,
    slot: int,
    share: float,
    tokens: float,
    pairs: float,
    stored: bool,
) -> None:
    """Have cached tokens of a cohort loaded from host memory or the store, unless it is quicker to work them off again.

    Loading begins on arrival; those that are ahead in the queue for prefill hide it. All requests share the tier's bandwidth, and one
    request has no more of it than its replica's part.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        slot: The cohort.
        share: Share of its requests that find their context in the tier.
        tokens: What these find, tokens each.
        pairs: What that takes off the squared prompt.
        stored: Whether the tier is the site's store.
    """
    cohort = state.cohort[row, slot]
    pool = state.cohort_int[row, slot, CohortInt.PREFILL_POOL]
    spec = params.pool[pool]
    tier = state.cache[row, pool]
    racks = max(1.0, tier[Tier.RACKS])
    arrival_s = cohort[Cohort.ARRIVAL_S]
    if stored:
        bytes_per_s = params.site[SiteSpec.STORE_BYTES_PER_S]
        one_per_s = min(bytes_per_s, params.perf[pool, PREFILL_TRANSFER_BYTES_PER_S])
        free_s = state.cache[row, params.pool.shape[0], Store.FREE_S]
    else:
        bytes_per_s = params.cache[pool, CacheSpec.HOST_BYTES_PER_S] * racks
        one_per_s = params.cache[pool, CacheSpec.HOST_BYTES_PER_S] / spec[PoolSpec.REPLICAS_PER_RACK]
        free_s = tier[Tier.HOST_FREE_S]
    one_bytes = tokens * params.perf[pool, PREFILL_KV_BYTES_PER_TOKEN]
    waits_s = max(0.0, free_s - arrival_s)
    scaling, fixed = prefill_work_s(state.perf[row, pool], tokens, pairs)
    computed_s = scaling / compute_rate(state.pool[row, pool, Pool.CLOCK]) + fixed
    if waits_s + one_bytes / one_per_s > computed_s:
        return
    taken_s = share * cohort[Cohort.COUNT] * one_bytes / bytes_per_s
    free_s = arrival_s + waits_s + taken_s
    if stored:
        state.cache[row, params.pool.shape[0], Store.FREE_S] = free_s
    else:
        tier[Tier.HOST_FREE_S] = free_s
    cohort[Cohort.CACHED] += share * tokens
    cohort[Cohort.CACHED_SQ] += share * pairs
    if state.cohort_int[row, slot, CohortInt.SCORED]:
        tier[Tier.LOADED] += share * cohort[Cohort.COUNT] * tokens
    # The mean delay of the cohort's requests: those that load nothing have none.
    delay_s = share * (waits_s + max(taken_s, one_bytes / one_per_s))
    cohort[Cohort.LOADED_S] = max(cohort[Cohort.LOADED_S], arrival_s + delay_s)


@inlined_kernel
def find_nothing(cohort: Array, loaded_s: float) -> None:
    """Let a cohort, float64[Cohort], find nothing that was left behind: it works off its whole prompt, and waits for no load after ``loaded_s``."""
    cohort[Cohort.CACHED] = 0.0
    cohort[Cohort.CACHED_SQ] = 0.0
    cohort[Cohort.HELD] = 0.0
    cohort[Cohort.LOADED_S] = loaded_s


@inlined_kernel
def find_cohort(params: Params, state: State, row: int, slot: int, cls: int, place: int) -> None:
    """Note what the requests of a new cohort find in the caches of their prefill pool, as means.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        slot: The cohort, routed.
        cls: Its class.
        place: Its cell.
    """
    cohort = state.cohort[row, slot]
    pool = state.cohort_int[row, slot, CohortInt.PREFILL_POOL]
    find_nothing(cohort, cohort[Cohort.ARRIVAL_S])
    if state.found.shape[1] > 0:
        found = state.found[row, place, pool]
        cohort[Cohort.CACHED] = found[Found.HBM]
        cohort[Cohort.CACHED_SQ] = found[Found.HBM_SQ]
        # Of requests that find something the cell knows the mean only.
        if found[Found.HOST] > 0.0:
            _load(params, state, row, slot, 1.0, found[Found.HOST], found[Found.HOST_SQ], False)
        if found[Found.STORE] > 0.0:
            _load(params, state, row, slot, 1.0, found[Found.STORE], found[Found.STORE_SQ], True)
        return
    context = state.context[row, cls, pool]
    reuse = params.session[cls, SessionSpec.REUSE_SHARE]
    tokens = reuse * cohort[Cohort.PROMPT]
    pairs = reuse * reuse * cohort[Cohort.PROMPT_SQ]
    # What the decode pool holds needs no cache of a prefill pool.
    held = state.context[row, cls, state.cohort_int[row, slot, CohortInt.DECODE_POOL], Context.HELD_CHANCE]
    following = params.session[cls, SessionSpec.FOLLOWING]
    in_hbm = following * held + (1.0 - held) * context[Context.IN_HBM]
    cohort[Cohort.HELD] = following * held * tokens
    cohort[Cohort.CACHED] = in_hbm * tokens
    cohort[Cohort.CACHED_SQ] = in_hbm * pairs
    if context[Context.IN_HOST] > 0.0:
        _load(params, state, row, slot, (1.0 - held) * context[Context.IN_HOST], tokens, pairs, False)
    if context[Context.IN_STORE] > 0.0:
        _load(params, state, row, slot, (1.0 - held) * context[Context.IN_STORE], tokens, pairs, True)


@inlined_kernel
def find_request(
    params: Params,
    state: State,
    row: int,
    slot: int,
    cls: int,
    index: int,
    followed: bool,
    chance: tuple[float, float, float],
) -> None:
    """Note what one new request finds in the caches of its prefill pool.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        slot: The request, routed.
        cls: Its class.
        index: Its place in the trace; -1 without one.
        followed: Whether its copy of the trace is thinned: only requests that are kept have left anything behind.
        chance: Uniform numbers: whether it follows another and after what time; whether that was in this prefill pool; whether its
            decode pool holds the context.
    """
    cohort = state.cohort[row, slot]
    pool = state.cohort_int[row, slot, CohortInt.PREFILL_POOL]
    find_nothing(cohort, cohort[Cohort.ARRIVAL_S])
    turn, place, hold = chance
    here = place < state.context[row, cls, pool, Context.SHARE]
    hbm_s = state.cache[row, pool, Tier.HBM_S] if here else -1.0
    host_s = state.cache[row, pool, Tier.HOST_S] if here else -1.0
    store_s = state.cache[row, params.pool.shape[0], Store.STORE_S] if params.site[SiteSpec.STORE_BYTES] > 0.0 else -1.0
    if index < 0:
        session = params.session[cls]
        if session[SessionSpec.THINK_S] <= 0.0 or turn >= session[SessionSpec.FOLLOWING]:
            return
        age_s = -session[SessionSpec.THINK_S] * math.log(turn / session[SessionSpec.FOLLOWING])
        tokens = session[SessionSpec.REUSE_SHARE] * cohort[Cohort.PROMPT]
        if hold < state.context[row, cls, state.cohort_int[row, slot, CohortInt.DECODE_POOL], Context.HELD_CHANCE]:
            cohort[Cohort.HELD] = tokens
            cohort[Cohort.CACHED] = tokens
            cohort[Cohort.CACHED_SQ] = tokens * tokens
            return
        _find(params, state, row, slot, tokens, tokens * tokens, age_s, hbm_s, host_s, store_s)
        return
    most = cohort[Cohort.PROMPT] - 1.0
    begin = 0.0
    for segment in range(params.seen_begin[index], params.seen_begin[index + 1]):
        end = min(most, begin + params.seen[segment, Seen.TOKENS])
        if end <= begin or (followed and not state.kept[row, int(params.seen[segment, Seen.BY])]):
            return
        age_s = params.seen[segment, Seen.AGE_S]
        _find(params, state, row, slot, end - begin, end * end - begin * begin, age_s, hbm_s, host_s, store_s)
        begin = end


@inlined_kernel
def _find(
    params: Params,
    state: State,
    row: int,
    slot: int,
    tokens: float,
    pairs: float,
    age_s: float,
    hbm_s: float,
    host_s: float,
    store_s: float,
) -> None:
    """Note what a request finds of tokens that were last seen ``age_s`` ago; tiers keep them for as long as given, -1 for none."""
    if age_s <= hbm_s:
        state.cohort[row, slot, Cohort.CACHED] += tokens
        state.cohort[row, slot, Cohort.CACHED_SQ] += pairs
    elif age_s <= host_s:
        _load(params, state, row, slot, 1.0, tokens, pairs, False)
    elif age_s <= store_s:
        _load(params, state, row, slot, 1.0, tokens, pairs, True)


@inlined_kernel
def begin_prefill(params: Params, state: State, row: int, pool: int, slot: int, start_s: float) -> float:
    """Count a cohort whose prefill begins, leave its prompt in the cache, and return by how long loading delays its end, s."""
    cohort = state.cohort[row, slot]
    ints = state.cohort_int[row, slot]
    count = cohort[Cohort.COUNT]
    tier = state.cache[row, pool]
    tier[Tier.STEP_PROMPT] += count * cohort[Cohort.PROMPT]
    tier[Tier.STEP_CACHED] += count * cohort[Cohort.CACHED]
    if ints[CohortInt.SCORED] and state.site[row, Site.SCORING] > 0.0:
        tier[Tier.PROMPT] += count * cohort[Cohort.PROMPT]
        tier[Tier.CACHED] += count * cohort[Cohort.CACHED]
        tier[Tier.HELD] += count * cohort[Cohort.HELD]
    context = state.context[row, ints[CohortInt.CLASS], pool]
    context[Context.NEW] += count
    context[Context.NEW_TOKENS] += count * cohort[Cohort.PROMPT]
    return float(max(0.0, cohort[Cohort.LOADED_S] - start_s))
