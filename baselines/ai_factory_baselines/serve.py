"""How ``reactive`` serves a load under the cap: shares and clocks for one observation.

Tried in this order, until one is sufficient and its predicted power fits: with all margins; without margins (and anything
between, as the power allows); with long prompts queueing in a pool of their own; with a slower TPOT, that breaks the
tightest limit, in some decode pools; with part of the requests turned away; with all clocks lowered.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ai_factory_baselines.base import (
    ACTIVE,
    BATCH,
    BRAKED,
    CAP_W,
    CLOCK,
    DRAINING,
    NEXT_CAP_S,
    NEXT_CAP_W,
    QUEUED,
    TPOT,
    WAIT,
    WAKING,
    Facts,
    Seen,
)
from ai_factory_baselines.plant import (
    OUTPUT,
    OVERLOAD_W,
    Limits,
    Model,
    Phase,
    Work,
    dispatch,
    expected_watts,
    facility_watts,
    most_watts,
    scaled_load,
    with_per_rack,
    with_tpot,
)
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W

CLEAR_S = 20.0
"""Time in which a prefill queue is to be cleared (status: design choice, a third of a control step)."""

CAP_TARGET = 0.985
"""Predicted power allowed, as a share of the cap (status: design choice, above the brake's 0.97)."""

QUEUED_TARGET = 0.955
"""The same while there is a queue: the work in service is then not the mix that arrives (status: design choice)."""

RELEASE_TARGET = 0.96
"""The same for the most the site may draw while the brake is engaged: the brake lets go when its own, pessimistic
prediction is below 0.98 (status: design choice)."""

BRAKED_MARGIN = 0.025
MOST_BRAKED = 3.0
"""Share of the cap by which these targets fall with every braked step of about the last day, and how many count: the
allowance is three steps a day (status: design choice)."""

BEHIND_S = 0.5
"""Prefill wait beyond which servers are taken to be busy all the time (status: design choice)."""

CAREFUL_STEPS = 4.0
"""Steps after a braked one in which the brake's own bound must fit while there is a queue (status: design choice)."""

QUEUE_S = 0.05
"""Prefill wait below which there is no queue to clear (status: design choice)."""

LATE_BOOST = 0.2
"""Decode load is taken to be this much higher meanwhile, as long as a batch is above its limit (status: design choice)."""

FULL_BATCH = 0.95
"""Share of the batch ceiling beyond which a batch counts as full (status: design choice)."""

CROWDED = 0.55
"""Share of the shortest prompts beyond which one pool is not left to a queue: too many would be late in it (status: design
choice)."""

MOST_SHED = 0.9
SHED_STEPS = 7
"""Largest share of the shortest prompts that is turned away, and steps of the search for the smallest (status: choice)."""

CLOCK_STEPS = 10

NOW, BEFORE, FAST, NEXT, KEPT, EMITTED, SERVED = range(7)
"""Loads a decision works with: at the slow rate, at that of the step before, at the fast one, of the next step; of what is
not turned away, what prefill then passes on, and what it passes on in a prediction of power."""


class Margins(NamedTuple):
    """How close to its limits the site is run.

    Attributes:
        comfortable: By phase: with all margins.
        bare: Without.
        shedding: While requests are turned away.
        power_sigmas: The power of the load plus this many standard deviations must fit the cap.
        control_interval_s: Length of a control step.
    """

    comfortable: tuple[Limits, Limits]
    bare: Limits
    shedding: Limits
    power_sigmas: float
    control_interval_s: float


class Arrangement(NamedTuple):
    """Who serves what at which clock.

    Attributes:
        share: By phase: share of each group per pool, float64[G, P].
        clock: Clock ceilings, float64[pools].
    """

    share: tuple[Array, Array]
    clock: Array

    @classmethod
    def of(cls, facts: Facts) -> Arrangement:
        """Return room for one."""
        shapes = [facts.capacity[kind].shape for kind in (PREFILL, DECODE)]
        return cls((np.zeros(shapes[PREFILL]), np.zeros(shapes[DECODE])), np.zeros(len(facts.racks)))


class Room(NamedTuple):
    """Scratch arrays of a decision; what is a pair is by phase.

    Attributes:
        seen: The observation.
        work: As the model's kernels want it.
        clock: Clocks of a phase, float64[P].
        active: Racks active, float64[P].
        awake: Racks active or draining, float64[P].
        rising: Racks active or waking, float64[P].
        least: What ``pool_watts`` is to assume at least, float64[P].
        none: Zeros, float64[P].
        loads: Loads, ``NOW`` to ``SERVED``, float64[7, C, G, 6].
        total: Load of the site, float64[6].
        rate: A rate of each class, float64[C].
        racks: Racks wanted awake, float64[pools].
        fresh: Racks to be woken, float64[pools].
        waking: Racks that will be waking, float64[pools].
        high: Highest clocks of a search, float64[pools].
        lowest: Lowest clocks, float64[pools].
        answer: Who serves what: first with all margins, in the end the decision.
        other: Another arrangement that is tried.
        fallback: The best one that does not fit the power.
        found: The best one found that turns requests away, with one tilt of prefill.
        chosen: With any.
        prompts: Shares and clocks of prefill without margins, in each of the ``_ways``, float64[G, G, P] and
            float64[G, pools].
        sufficient: Whether these keep the limits, bool[G].
    """

    seen: Seen
    work: tuple[Work, Work]
    clock: tuple[Array, Array]
    active: tuple[Array, Array]
    awake: tuple[Array, Array]
    rising: tuple[Array, Array]
    least: tuple[Array, Array]
    none: tuple[Array, Array]
    loads: Array
    total: Array
    rate: Array
    racks: Array
    fresh: Array
    waking: Array
    high: Array
    lowest: Array
    answer: Arrangement
    other: Arrangement
    fallback: Arrangement
    found: Arrangement
    chosen: Arrangement
    prompts: tuple[Array, Array]
    sufficient: Array

    @classmethod
    def of(cls, facts: Facts, load_shape: tuple[int, ...]) -> Room:
        """Return room for decisions on a site whose loads have a shape."""
        groups, pools = load_shape[1], len(facts.racks)
        first, second = (len(members) for members in facts.members)

        def pair() -> tuple[Array, Array]:
            return np.zeros(first), np.zeros(second)

        return cls(
            seen=Seen.of(facts),
            work=(Work.of(groups, first), Work.of(groups, second)),
            clock=pair(),
            active=pair(),
            awake=pair(),
            rising=pair(),
            least=pair(),
            none=pair(),
            loads=np.zeros((SERVED + 1, *load_shape)),
            total=np.zeros(load_shape[2]),
            rate=np.zeros(load_shape[0]),
            racks=np.zeros(pools),
            fresh=np.zeros(pools),
            waking=np.zeros(pools),
            high=np.zeros(pools),
            lowest=np.full(pools, facts.clock_min),
            answer=Arrangement.of(facts),
            other=Arrangement.of(facts),
            fallback=Arrangement.of(facts),
            found=Arrangement.of(facts),
            chosen=Arrangement.of(facts),
            prompts=(np.zeros((groups, groups, first)), np.zeros((groups, pools))),
            sufficient=np.zeros(groups, np.bool_),
        )


class Outlook(NamedTuple):
    """What power is predicted from.

    Attributes:
        load: Load of the next step, float64[C, G, 6].
        least: By phase: what ``pool_watts`` is to assume at least, float64[P].
        resting_w: IT power of the racks that are waking and asleep, W.
        extra: Requests that may join the batch of each decode replica.
        most: Whether the most the site may draw is wanted, as the brake sees it, not what is expected.
    """

    load: Array
    least: tuple[Array, Array]
    resting_w: float
    extra: float
    most: bool


@inlined_kernel
def _copy(source: Array, target: Array) -> None:
    """Copy numbers, float64[n]: an assignment of slices would allocate."""
    for place in range(source.shape[0]):
        target[place] = source[place]


@inlined_kernel
def _copy_rows(source: Array, target: Array) -> None:
    """Copy a table, float64[n, m]."""
    for row in range(source.shape[0]):
        _copy(source[row], target[row])


@inlined_kernel
def copy_arrangement(source: Arrangement, target: Arrangement) -> None:
    """Copy an arrangement."""
    _copy_rows(source.share[PREFILL], target.share[PREFILL])
    _copy_rows(source.share[DECODE], target.share[DECODE])
    _copy(source.clock, target.clock)


@inlined_kernel
def gather(model: Model, room: Room) -> None:
    """Write the racks of each phase and what its pools are busy with at least."""
    pools = room.seen.pools
    for kind in (PREFILL, DECODE):
        for place in range(model.members[kind].shape[0]):
            pool = model.members[kind][place]
            room.active[kind][place] = pools[ACTIVE, pool]
            room.awake[kind][place] = pools[ACTIVE, pool] + pools[DRAINING, pool]
            room.rising[kind][place] = pools[ACTIVE, pool] + pools[WAKING, pool]
            # Servers with a queue are busy all the time, and a batch that has grown does not shrink at once.
            if kind == PREFILL:
                room.least[kind][place] = 1.0 if pools[WAIT, pool] > BEHIND_S else 0.0
            else:
                room.least[kind][place] = pools[BATCH, pool]


@inlined_kernel
def _behind(model: Model, seen: Seen) -> bool:
    """Tell whether some prefill pool has a queue that keeps its servers busy all the time."""
    longest = 0.0
    for place in range(model.members[PREFILL].shape[0]):
        longest = max(longest, seen.pools[WAIT, model.members[PREFILL][place]])
    return longest > BEHIND_S


@inlined_kernel
def _cap_w(margins: Margins, seen: Seen) -> float:
    """Return the lowest cap in force in the next step, W."""
    # Observations are rounded: a change at the very end of the step counts.
    if seen.site[NEXT_CAP_S] <= 1.01 * margins.control_interval_s:
        return min(seen.site[CAP_W], seen.site[NEXT_CAP_W])
    return float(seen.site[CAP_W])


@inlined_kernel
def target_watts(model: Model, margins: Margins, seen: Seen, braked: float) -> float:
    """Return the facility power to stay below in the next step, W: less, the more of the brake's allowance is used."""
    spared = BRAKED_MARGIN * min(braked, MOST_BRAKED)
    return ((QUEUED_TARGET if _behind(model, seen) else CAP_TARGET) - spared) * _cap_w(margins, seen)


@inlined_kernel
def resting_watts(model: Model, pools: Array, waking: Array) -> float:
    """Return the IT power of the racks that are waking, float64[pools], and of those asleep then, W."""
    waking_w = 0.0
    asleep_w = 0.0
    for pool in range(waking.shape[0]):
        asleep = max(0.0, model.racks[pool] - (pools[ACTIVE, pool] + pools[DRAINING, pool]) - waking[pool])
        waking_w += waking[pool] * model.power[pool, POWER_WAKE_RACK_W]
        asleep_w += asleep * model.power[pool, POWER_SLEEP_RACK_W]
    return waking_w + asleep_w


@inlined_kernel
def _joining(model: Model, room: Room) -> float:
    """Return the requests that may join the batch of each decode replica."""
    queued = 0.0
    for cls in range(room.seen.classes.shape[1]):
        queued += room.seen.classes[QUEUED, cls]
    replicas = 0.0
    for place in range(room.awake[DECODE].shape[0]):
        replicas += room.awake[DECODE][place] * model.phases[DECODE].units[place]
    return queued / max(1.0, replicas)


@kernel
def predicted_watts(
    model: Model, power_sigmas: float, outlook: Outlook, share: tuple[Array, Array], clock: Array, room: Room
) -> float:
    """Return facility power in the next step with shares and clocks (float64[pools]), W."""
    for kind in (PREFILL, DECODE):
        for place in range(model.members[kind].shape[0]):
            room.clock[kind][place] = clock[model.members[kind][place]]
    if not outlook.most:
        return expected_watts(
            model,
            outlook.load,
            share,
            room.awake,
            room.clock,
            outlook.least,
            outlook.resting_w,
            power_sigmas,
            room.loads[SERVED],
            room.work[DECODE].loads[0],
        )
    total = room.total
    total[:] = 0.0
    for cls in range(outlook.load.shape[0]):
        for group in range(outlook.load.shape[1]):
            for column in range(total.shape[0]):
                total[column] += outlook.load[cls, group, column]
    watts = 0.0
    for kind in (PREFILL, DECODE):
        for place in range(model.members[kind].shape[0]):
            low = outlook.least[kind][place]
            racks, top = room.awake[kind][place], room.clock[kind][place]
            watts += most_watts(model.phases[kind], place, total, racks, top, low, low + outlook.extra)
    return facility_watts(model.site, outlook.resting_w + watts)


@kernel
def arrange(
    model: Model, phase: Phase, limits: Limits, load: Array, tilts: Array, room: Room, share: Array, clock: Array
) -> bool:
    """Write shares (float64[G, P]) and clocks (float64[pools]) of a phase; tell whether its active racks suffice."""
    kind = phase.kind
    found = room.clock[kind]
    watts = dispatch(phase, limits, load, room.active[kind], tilts, room.work[kind], share, found)
    for place in range(found.shape[0]):
        clock[model.members[kind][place]] = found[place]
    return watts < OVERLOAD_W


@inlined_kernel
def _clear_queues(model: Model, seen: Seen, clock: Array) -> None:
    """Raise the prefill clocks, float64[pools], by the utilisation that clearing a queue adds."""
    for place in range(model.members[PREFILL].shape[0]):
        pool = model.members[PREFILL][place]
        wait_s = seen.pools[WAIT, pool]
        extra = wait_s * max(seen.pools[CLOCK, pool], 0.1) / CLEAR_S if wait_s > QUEUE_S else 0.0
        clock[pool] = min(1.0, clock[pool] + extra)


@inlined_kernel
def _catch_up(model: Model, limits: Limits, seen: Seen, clock: Array) -> None:
    """Raise the decode clocks, float64[pools], where a token takes longer than it may."""
    for place in range(model.members[DECODE].shape[0]):
        pool = model.members[DECODE][place]
        late = seen.pools[TPOT, pool] / (limits.tpot_share * model.phases[DECODE].tpot_s[place])
        if late > 1.0:
            clock[pool] = min(1.0, max(clock[pool], seen.pools[CLOCK, pool] * late))


@kernel
def _between(model: Model, power_sigmas: float, outlook: Outlook, low: Array, target_w: float, room: Room) -> None:
    """Give ``answer`` the highest clocks on the line from ``low`` to ``room.high`` whose predicted power fits."""
    share, clock, high = room.answer.share, room.answer.clock, room.high
    if predicted_watts(model, power_sigmas, outlook, share, high, room) <= target_w:
        _copy(high, clock)
        return
    least, most = 0.0, 1.0
    for _ in range(CLOCK_STEPS):
        middle = 0.5 * (least + most)
        for pool in range(clock.shape[0]):
            clock[pool] = low[pool] + middle * (high[pool] - low[pool])
        if predicted_watts(model, power_sigmas, outlook, share, clock, room) <= target_w:
            least = middle
        else:
            most = middle
    for pool in range(clock.shape[0]):
        clock[pool] = low[pool] + least * (high[pool] - low[pool])


@inlined_kernel
def _lane(load: Array, begin: int, end: int) -> float:
    """Return the output tokens of every eighth class and group from ``begin`` to ``end``."""
    total = 0.0
    for index in range(begin, end, 8):
        total += load[index // load.shape[1], index % load.shape[1], OUTPUT]
    return total


@inlined_kernel
def _output_tokens(load: Array) -> float:
    """Return the output tokens of a load, float64[C, G, 6], added in eight lanes as numpy does."""
    size = load.shape[0] * load.shape[1]
    whole = size - size % 8
    pairs = (_lane(load, 0, whole) + _lane(load, 1, whole)) + (_lane(load, 2, whole) + _lane(load, 3, whole))
    others = (_lane(load, 4, whole) + _lane(load, 5, whole)) + (_lane(load, 6, whole) + _lane(load, 7, whole))
    total = pairs + others
    for index in range(whole, size):
        total += load[index // load.shape[1], index % load.shape[1], OUTPUT]
    return total


@kernel
def _shed_with(model: Model, margins: Margins, tilts: Array, outlook: Outlook, braked: float, room: Room) -> float:
    """Write what ``_shed`` does with prefill tilted so to ``found``; return how crowded its queue is, inf for no way out."""
    other, found, load = room.other, room.found, outlook.load
    prefill, decode = model.phases
    kept, emitted = room.loads[KEPT], room.loads[EMITTED]
    target_w = (CAP_TARGET - BRAKED_MARGIN * min(braked, MOST_BRAKED)) * _cap_w(margins, room.seen)
    boost = 1.0 + LATE_BOOST * _late(model, room.seen)
    least, most, crowded = 0.0, MOST_SHED, math.inf
    for _ in range(SHED_STEPS):
        part = 0.5 * (least + most) if crowded < math.inf else most
        _scale_groups(load, 0, 1, 1.0 - part, kept)
        fits = arrange(model, prefill, margins.shedding, kept, tilts, room, other.share[PREFILL], other.clock)
        # Who is turned away is not quite in proportion: routing must not depend on it.
        scaled_load(load, boost * _output_tokens(kept) / _output_tokens(load), emitted)
        if fits:
            even = model.tilts[DECODE]
            fits = arrange(model, decode, margins.shedding, emitted, even, room, other.share[DECODE], other.clock)
        if fits:
            settled = Outlook(kept, room.none, outlook.resting_w, 0.0, False)
            fits = predicted_watts(model, margins.power_sigmas, settled, other.share, other.clock, room) <= target_w
        if not fits:
            if crowded == math.inf:
                break
            least = part
            continue
        most = part
        copy_arrangement(other, found)
        crowded = _queue_up(prefill, room.active[PREFILL], part, found.share[PREFILL])
    return crowded


@inlined_kernel
def _scale_groups(load: Array, begin: int, end: int, factor: float, out: Array) -> None:
    """Write a load whose groups from ``begin`` to ``end`` are multiplied with a factor, float64[C, G, 6]."""
    for cls in range(load.shape[0]):
        for group in range(load.shape[1]):
            for column in range(load.shape[2]):
                number = load[cls, group, column]
                out[cls, group, column] = number * factor if begin <= group < end else number


@inlined_kernel
def _late(model: Model, seen: Seen) -> bool:
    """Tell whether the batch of some decode pool is above its limit."""
    decode = model.phases[DECODE]
    late = False
    for place in range(decode.units.shape[0]):
        pool = model.members[DECODE][place]
        late |= seen.pools[TPOT, pool] > decode.tpot_s[place]
        late |= seen.pools[BATCH, pool] > FULL_BATCH * decode.most_batch[place]
    return late


@inlined_kernel
def _queue_up(prefill: Phase, active: Array, part: float, share: Array) -> float:
    """Send a part of the shortest prompts to the open pool that has the fewest; return the share it has then."""
    queue = -1
    for pool in range(share.shape[1]):
        share[0, pool] *= 1.0 - part
        open_to = active[pool] > 0.0 and prefill.per_rack[0, pool] < math.inf
        if open_to and (queue < 0 or share[0, pool] < share[0, queue]):
            queue = pool
    share[0, queue] += part
    return float(share[0, queue])


@kernel
def _shed(model: Model, margins: Margins, shed_tilts: Array, outlook: Outlook, braked: float, room: Room) -> bool:
    """Write to ``chosen`` how requests are turned away evenly, as few as need be; false when that is no way out.

    A queue in every pool turns away first all those of the least patient class, and makes them late anyway. Here the
    excess of the shortest prompts is sent, in one part with all classes, to a single pool, whose queue turns it away:
    the others stay in time.
    """
    least_crowded = CROWDED
    any_found = False
    for trial in range(1 + shed_tilts.shape[0]):
        tilts = model.tilts[PREFILL] if trial == 0 else shed_tilts[trial - 1]
        crowded = _shed_with(model, margins, tilts, outlook, braked, room)
        if crowded <= least_crowded:
            copy_arrangement(room.found, room.chosen)
            least_crowded = crowded
            any_found = True
    return any_found


@inlined_kernel
def _ways(model: Model, room: Room) -> int:
    """Return the ways to serve prompts without margins: 1, or more when long ones can have a pool of their own."""
    active = room.active[PREFILL]
    apart = model.phases[PREFILL].order[0]
    others = False
    for pool in range(active.shape[0]):
        others |= pool != apart and active[pool] > 0.0
    return 1 + model.isolated.shape[0] if others and active[apart] > 0.0 else 1


@inlined_kernel
def _serve_prompts(model: Model, bare: Limits, load: Array, way: int, room: Room) -> None:
    """Serve prompts without margins in one of the ``_ways``: all in every pool, or the longest in a pool of their own."""
    prefill, tilts = model.phases[PREFILL], model.tilts[PREFILL]
    share, clock = room.prompts
    if way == 0:
        room.sufficient[way] = arrange(model, prefill, bare, load, tilts, room, share[way], clock[way])
        return
    # The queue takes what comes; only the others' share is to be settled.
    groups = load.shape[1]
    _scale_groups(load, groups - way, groups, 1e-9, room.loads[KEPT])
    isolated = with_per_rack(prefill, model.isolated[way - 1])
    shorter = room.loads[KEPT]
    room.sufficient[way] = arrange(model, isolated, bare, shorter, tilts, room, share[way], clock[way])


@kernel
def _serve_bare(model: Model, margins: Margins, outlook: Outlook, target_w: float, room: Room) -> bool:
    """Serve a load without margins; when no way fits the power, leave the best to ``fallback`` and return false."""
    answer, other, bare, load = room.answer, room.other, margins.bare, outlook.load
    share, clock = room.prompts
    ways = _ways(model, room)
    for limits in range(model.tpot_s.shape[0]):
        decode = with_tpot(model.phases[DECODE], model.tpot_s[limits])
        even = model.tilts[DECODE]
        suffices = arrange(model, decode, bare, load, even, room, other.share[DECODE], other.clock)
        for way in range(ways):
            if limits == 0:
                _serve_prompts(model, bare, load, way, room)
            _copy_rows(share[way], other.share[PREFILL])
            for place in range(model.members[PREFILL].shape[0]):
                pool = model.members[PREFILL][place]
                other.clock[pool] = clock[way, pool]
            fits = suffices and room.sufficient[way]
            if fits and predicted_watts(model, margins.power_sigmas, outlook, other.share, other.clock, room) <= target_w:
                for pool in range(other.clock.shape[0]):
                    room.high[pool] = max(answer.clock[pool], other.clock[pool])
                copy_arrangement(other, answer)
                _between(model, margins.power_sigmas, outlook, other.clock, target_w, room)
                return True
            if fits or (limits == 0 and way == 0):
                copy_arrangement(other, room.fallback)
    return False


@kernel
def _serve_part(
    model: Model, margins: Margins, shed_tilts: Array, outlook: Outlook, target_w: float, braked: float, room: Room
) -> None:
    """Serve what fits the power: with part of the requests turned away, or with all clocks lowered."""
    answer, sigmas = room.answer, margins.power_sigmas
    copy_arrangement(room.fallback, answer)
    if predicted_watts(model, sigmas, outlook, answer.share, answer.clock, room) > target_w:
        if _shed(model, margins, shed_tilts, outlook, braked, room):
            chosen = room.chosen
            copy_arrangement(chosen, answer)
            if predicted_watts(model, sigmas, outlook, answer.share, answer.clock, room) <= target_w:
                _copy(chosen.clock, room.high)
                _catch_up(model, margins.comfortable[DECODE], room.seen, room.high)
                for pool in range(room.high.shape[0]):
                    room.high[pool] = max(chosen.clock[pool], room.high[pool])
                _between(model, sigmas, outlook, chosen.clock, target_w, room)
                return
    for pool in range(room.high.shape[0]):
        room.high[pool] = max(answer.clock[pool], margins.bare.lowest)
    _between(model, sigmas, outlook, room.lowest, target_w, room)


@inlined_kernel
def _release(model: Model, margins: Margins, outlook: Outlook, careful: float, room: Room) -> None:
    """Lower the clocks while the brake is engaged.

    Whatever is asked for, the brake's clock holds until its own bound fits: get rid of it first. At its clock that bound
    does fit, else it would have set a lower one.
    """
    pools = room.seen.pools
    braked_at = 0.0
    for pool in range(pools.shape[1]):
        braked_at = max(braked_at, pools[CLOCK, pool])
    for pool in range(pools.shape[1]):
        top = room.answer.clock[pool]
        if careful == CAREFUL_STEPS:
            top = min(top, braked_at)
        room.high[pool] = max(top, margins.bare.lowest)
    target_w = RELEASE_TARGET * _cap_w(margins, room.seen)
    _between(model, margins.power_sigmas, outlook, room.lowest, target_w, room)


@kernel
def serve_comfortably(model: Model, margins: Margins, load: Array, room: Room) -> bool:
    """Write to ``answer`` how a load is served with all margins; tell whether the active racks suffice."""
    answer = room.answer
    suffices = True
    for kind in (PREFILL, DECODE):
        phase, limits, tilts = model.phases[kind], margins.comfortable[kind], model.tilts[kind]
        suffices &= arrange(model, phase, limits, load, tilts, room, answer.share[kind], answer.clock)
    return suffices


@inlined_kernel
def serve(
    model: Model,
    margins: Margins,
    shed_tilts: Array,
    load: Array,
    suffices: bool,
    careful: float,
    braked: float,
    room: Room,
) -> None:
    """Turn the comfortable ``answer`` into one that fits the cap: see the module.

    Args:
        model: The site.
        margins: How close to its limits it is run.
        shed_tilts: Tilts of prefill, beside the usual ones, while requests are turned away, float64[S, 1, P].
        load: Load of the next step, float64[C, G, 6].
        suffices: Whether the active racks suffice for the comfortable answer.
        careful: Steps still to be careful for after a braked one.
        braked: How often the brake was on lately.
        room: Scratch: holds the observation, the racks wanted awake and the answer.
    """
    pools, answer = room.seen.pools, room.answer
    for pool in range(room.waking.shape[0]):
        fresh = room.racks[pool] - pools[ACTIVE, pool] - pools[DRAINING, pool]
        room.waking[pool] = max(pools[WAKING, pool], fresh)
    _clear_queues(model, room.seen, answer.clock)
    _catch_up(model, margins.comfortable[DECODE], room.seen, answer.clock)
    engaged = room.seen.site[BRAKED] > 0.0
    most = engaged or (careful > 0.0 and _behind(model, room.seen))
    resting_w = resting_watts(model, pools, room.waking)
    outlook = Outlook(load, room.least, resting_w, _joining(model, room), most)
    if engaged:
        _release(model, margins, outlook, careful, room)
        return
    target_w = target_watts(model, margins, room.seen, braked)
    if suffices and predicted_watts(model, margins.power_sigmas, outlook, answer.share, answer.clock, room) <= target_w:
        return
    if not _serve_bare(model, margins, outlook, target_w, room):
        _serve_part(model, margins, shed_tilts, outlook, target_w, braked, room)


__all__ = ["Arrangement", "Margins", "Room", "serve", "serve_comfortably"]
