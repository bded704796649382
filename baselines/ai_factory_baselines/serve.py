"""How ``reactive`` serves a load under the cap: shares and clocks for one observation.

Tried in this order, until one is sufficient and its predicted power fits: with all margins; without margins (and anything
between, as the power allows); with long prompts queueing in a pool of their own; with a slower TPOT, that breaks the
tightest limit, in some decode pools; with part of the requests turned away; with all clocks lowered.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    with_limits,
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


SERVING, AWAKE, RISING, TOTAL, LEAST, SETTLED, OWN_CLOCK = range(7)
"""Numbers of the pools of a phase: racks active, active or draining, active or waking, all; what ``pool_watts`` is to assume
at least after a step behind the load, and in a settled state (zero); clocks."""

WANTED, FRESH, RESTLESS, HIGH, LOWEST = range(5)
"""Numbers of all pools: racks wanted awake, racks to be woken, racks that will be waking, highest and lowest clocks."""

ANSWER, OTHER, FALLBACK, FOUND, CHOSEN, WAYS = range(6)
"""Arrangements, shares and clocks: the answer, first with all margins, in the end the decision; one that is tried; the best
one that does not fit the power; how to turn requests away, with one tilt of prefill and with any; and from ``WAYS`` on
prefill without margins in each of the ``_ways``."""


class Room(NamedTuple):
    """Scratch arrays of a decision, few because every kernel is handed all of them; what is a pair is by phase.

    Attributes:
        seen: The observation.
        work: As the model's kernels want it.
        places: Numbers of the pools of a phase, ``SERVING`` to ``OWN_CLOCK``, float64[7, P].
        pools: Numbers of all pools, ``WANTED`` to ``LOWEST``, float64[5, pools].
        share: Share of each group per pool in each arrangement, ``ANSWER`` to the last way, float64[A, G, P].
        clock: Clock ceilings in each, float64[A, pools].
        loads: Loads, ``NOW`` to ``SERVED``, float64[7, C, G, 6].
        sufficient: Whether each of the ``_ways`` keeps the limits, bool[G].
    """

    seen: Seen
    work: tuple[Work, Work]
    places: tuple[Array, Array]
    pools: Array
    share: tuple[Array, Array]
    clock: Array
    loads: Array
    sufficient: Array

    @classmethod
    def of(cls, facts: Facts, load_shape: tuple[int, ...]) -> Room:
        """Return room for decisions on a site whose loads have a shape."""
        groups, pools = load_shape[1], len(facts.racks)
        prefill, decode = (len(members) for members in facts.members)
        places = np.zeros((OWN_CLOCK + 1, prefill)), np.zeros((OWN_CLOCK + 1, decode))
        for numbers, members in zip(places, facts.members, strict=True):
            numbers[TOTAL] = facts.racks[members]
        numbers = np.zeros((LOWEST + 1, pools))
        numbers[LOWEST] = facts.clock_min
        return cls(
            seen=Seen.of(facts),
            work=(Work.of(groups, prefill), Work.of(groups, decode)),
            places=places,
            pools=numbers,
            share=(np.zeros((WAYS + groups, groups, prefill)), np.zeros((WAYS + groups, groups, decode))),
            clock=np.zeros((WAYS + groups, pools)),
            loads=np.zeros((SERVED + 1, *load_shape)),
            sufficient=np.zeros(groups, np.bool_),
        )


@inlined_kernel
def named_room(parts: Any) -> Room:
    """Name the parts of a room, from ``unnamed``, again."""
    return Room(Seen(*parts[0]), (Work(*parts[1][0]), Work(*parts[1][1])), *parts[2:])


@inlined_kernel
def named_margins(parts: Any) -> Margins:
    """Name the parts of margins, from ``unnamed``, again."""
    return Margins((Limits(*parts[0][0]), Limits(*parts[0][1])), Limits(*parts[1]), Limits(*parts[2]), *parts[3:])


class Outlook(NamedTuple):
    """What power is predicted from.

    Attributes:
        load: Load of the next step, float64[C, G, 6].
        least: What ``pool_watts`` is to assume at least: ``LEAST`` or ``SETTLED``.
        resting_w: IT power of the racks that are waking and asleep, W.
        joining: Requests that may join the batch of each decode replica.
        most: Whether the most the site may draw is wanted, as the brake sees it, not what is expected.
        sigmas: Standard deviations by which every pool's load is taken to be higher.
    """

    load: Array
    least: int
    resting_w: float
    joining: float
    most: bool
    sigmas: float


@inlined_kernel
def _copy(source: Array, target: Array) -> None:
    """Copy numbers, float64[n]: an assignment of slices would allocate."""
    for place in range(source.shape[0]):
        target[place] = source[place]


@inlined_kernel
def _copy_share(source: Array, target: Array) -> None:
    """Copy shares, float64[G, P]."""
    for group in range(source.shape[0]):
        _copy(source[group], target[group])


@inlined_kernel
def _copy_arrangement(
    prefill: Array, decode: Array, clock: Array, to_prefill: Array, to_decode: Array, to_clock: Array
) -> None:
    """Copy the shares of both phases, float64[G, P], and clocks, float64[pools]."""
    _copy_share(prefill, to_prefill)
    _copy_share(decode, to_decode)
    _copy(clock, to_clock)


@inlined_kernel
def gather(kind: int, members: Array, pools: Array, places: Array) -> None:
    """Write the numbers of a phase's pools that follow from those seen."""
    for place in range(members.shape[0]):
        pool = members[place]
        places[SERVING, place] = pools[ACTIVE, pool]
        places[AWAKE, place] = pools[ACTIVE, pool] + pools[DRAINING, pool]
        places[RISING, place] = pools[ACTIVE, pool] + pools[WAKING, pool]
        # Servers with a queue are busy all the time, and a batch that has grown does not shrink at once.
        places[LEAST, place] = pools[BATCH, pool]
        if kind == PREFILL:
            places[LEAST, place] = 1.0 if pools[WAIT, pool] > BEHIND_S else 0.0


@inlined_kernel
def _behind(prefill: Array) -> bool:
    """Tell whether some prefill pool has a queue that keeps its servers busy all the time."""
    behind = False
    for place in range(prefill.shape[1]):
        behind = behind or prefill[LEAST, place] > 0.0
    return behind


@inlined_kernel
def _cap_w(site: Array, control_interval_s: float) -> float:
    """Return the lowest cap in force in the next step, W."""
    # Observations are rounded: a change at the very end of the step counts.
    if site[NEXT_CAP_S] <= 1.01 * control_interval_s:
        return min(site[CAP_W], site[NEXT_CAP_W])
    return float(site[CAP_W])


@inlined_kernel
def target_watts(prefill: Array, site: Array, control_interval_s: float, braked: float) -> float:
    """Return the facility power to stay below in the next step, W: less, the more of the brake's allowance is used."""
    spared = BRAKED_MARGIN * min(braked, MOST_BRAKED)
    return ((QUEUED_TARGET if _behind(prefill) else CAP_TARGET) - spared) * _cap_w(site, control_interval_s)


@inlined_kernel
def resting_watts(racks: Array, power: Array, pools: Array, waking: Array) -> float:
    """Return the IT power of the racks that are waking, float64[pools], and of those asleep then, W."""
    waking_w = 0.0
    asleep_w = 0.0
    for pool in range(waking.shape[0]):
        asleep = max(0.0, racks[pool] - (pools[ACTIVE, pool] + pools[DRAINING, pool]) - waking[pool])
        waking_w += waking[pool] * power[pool, POWER_WAKE_RACK_W]
        asleep_w += asleep * power[pool, POWER_SLEEP_RACK_W]
    return waking_w + asleep_w


@inlined_kernel
def _joining(classes: Array, decode: Array, units: Array) -> float:
    """Return the requests that may join the batch of each decode replica."""
    queued = 0.0
    for cls in range(classes.shape[1]):
        queued += classes[QUEUED, cls]
    replicas = 0.0
    for place in range(units.shape[0]):
        replicas += decode[AWAKE, place] * units[place]
    return queued / max(1.0, replicas)


@kernel
def predicted_watts(model: Model, outlook: Outlook, prompts: Array, tokens: Array, clock: Array, room: Room) -> float:
    """Return facility power in the next step with shares of prefill and decode (float64[G, P]) and clocks, W."""
    prefill, decode = room.places
    for kind in (PREFILL, DECODE):
        for place in range(model.members[kind].shape[0]):
            room.places[kind][OWN_CLOCK, place] = clock[model.members[kind][place]]
    one = room.work[DECODE].loads[0]
    if not outlook.most:
        return expected_watts(
            model.phases,
            model.site,
            outlook.load,
            (prompts, tokens),
            (prefill[AWAKE], decode[AWAKE]),
            (prefill[OWN_CLOCK], decode[OWN_CLOCK]),
            (prefill[outlook.least], decode[outlook.least]),
            outlook.resting_w,
            outlook.sigmas,
            room.loads[SERVED],
            one,
        )
    one[:] = 0.0
    for cls in range(outlook.load.shape[0]):
        for group in range(outlook.load.shape[1]):
            for column in range(one.shape[0]):
                one[column] += outlook.load[cls, group, column]
    watts = 0.0
    for kind in (PREFILL, DECODE):
        places = room.places[kind]
        for place in range(places.shape[1]):
            low, high = places[outlook.least, place], places[outlook.least, place] + outlook.joining
            racks, top = places[AWAKE, place], places[OWN_CLOCK, place]
            watts += most_watts(model.phases[kind], place, one, racks, top, low, high)
    return facility_watts(model.site, outlook.resting_w + watts)


@kernel
def arrange(
    phase: Phase,
    limits: Limits,
    load: Array,
    tilts: Array,
    members: Array,
    places: Array,
    work: Work,
    share: Array,
    clock: Array,
) -> bool:
    """Write shares (float64[G, P]) and clocks (float64[pools]) of a phase; tell whether its active racks suffice.

    Args:
        phase: The phase.
        limits: How close to its limits it is run.
        load: Load, float64[C, G, 6].
        tilts: Tilts to try, float64[T, P].
        members: Pools of the phase, int64[P].
        places: Numbers of the pools, as in ``Room``.
        work: Scratch.
        share: Written, float64[G, P].
        clock: Written in the pools of the phase, float64[pools].
    """
    watts = dispatch(phase, limits, load, places[SERVING], tilts, work, share, places[OWN_CLOCK])
    for place in range(members.shape[0]):
        clock[members[place]] = places[OWN_CLOCK, place]
    return watts < OVERLOAD_W


@inlined_kernel
def _clear_queues(members: Array, pools: Array, clock: Array) -> None:
    """Raise the prefill clocks, float64[pools], by the utilisation that clearing a queue adds."""
    for place in range(members.shape[0]):
        pool = members[place]
        extra = 0.0
        if pools[WAIT, pool] > QUEUE_S:
            extra = pools[WAIT, pool] * max(pools[CLOCK, pool], 0.1) / CLEAR_S
        clock[pool] = min(1.0, clock[pool] + extra)


@inlined_kernel
def _catch_up(members: Array, pools: Array, tpot_share: float, tpot_s: Array, clock: Array) -> None:
    """Raise the decode clocks, float64[pools], where a token takes longer than a share of its limit (float64[P])."""
    for place in range(members.shape[0]):
        pool = members[place]
        late = pools[TPOT, pool] / (tpot_share * tpot_s[place])
        if late > 1.0:
            clock[pool] = min(1.0, max(clock[pool], pools[CLOCK, pool] * late))


@kernel
def _between(model: Model, outlook: Outlook, low: Array, target_w: float, room: Room) -> None:
    """Give the answer the highest clocks on the line from ``low`` to ``HIGH`` whose predicted power fits."""
    clock, high = room.clock[ANSWER], room.pools[HIGH]
    prompts, tokens = room.share[PREFILL][ANSWER], room.share[DECODE][ANSWER]
    if predicted_watts(model, outlook, prompts, tokens, high, room) <= target_w:
        _copy(high, clock)
        return
    least, most = 0.0, 1.0
    for _ in range(CLOCK_STEPS):
        middle = 0.5 * (least + most)
        for pool in range(clock.shape[0]):
            clock[pool] = low[pool] + middle * (high[pool] - low[pool])
        if predicted_watts(model, outlook, prompts, tokens, clock, room) <= target_w:
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
    total = 0.0
    for half in range(0, 8, 4):
        part = 0.0
        for lane in range(half, half + 4, 2):
            part += _lane(load, lane, whole) + _lane(load, lane + 1, whole)
        total += part
    for index in range(whole, size):
        total += load[index // load.shape[1], index % load.shape[1], OUTPUT]
    return total


@inlined_kernel
def _scale_groups(load: Array, begin: int, end: int, factor: float, out: Array) -> None:
    """Write a load whose groups from ``begin`` to ``end`` are multiplied with a factor, float64[C, G, 6]."""
    for cls in range(load.shape[0]):
        for group in range(load.shape[1]):
            for column in range(load.shape[2]):
                number = load[cls, group, column]
                out[cls, group, column] = number * factor if begin <= group < end else number


@inlined_kernel
def _late(decode: Phase, members: Array, pools: Array) -> bool:
    """Tell whether the batch of some decode pool is above its limit."""
    late = False
    for place in range(members.shape[0]):
        pool = members[place]
        late = late or pools[TPOT, pool] > decode.tpot_s[place]
        late = late or pools[BATCH, pool] > FULL_BATCH * decode.most_batch[place]
    return late


@inlined_kernel
def _queue_up(active: Array, per_rack: Array, part: float, share: Array) -> float:
    """Send a part of the shortest prompts to the open pool that has the fewest; return the share it has then."""
    queue = -1
    for pool in range(share.shape[1]):
        share[0, pool] *= 1.0 - part
        if active[pool] > 0.0 and per_rack[0, pool] < math.inf:
            if queue < 0 or share[0, pool] < share[0, queue]:
                queue = pool
    share[0, queue] += part
    return float(share[0, queue])


@kernel
def _shed(model: Model, shedding: Limits, shed_tilts: Array, outlook: Outlook, target_w: float, room: Room) -> bool:
    """Write to ``CHOSEN`` how requests are turned away evenly, as few as need be; false when that is no way out.

    A queue in every pool turns away first all those of the least patient class, and makes them late anyway. Here the
    excess of the shortest prompts is sent, in one part with all classes, to a single pool, whose queue turns it away:
    the others stay in time. The pool is the one that is least crowded then, over the tilts of prefill.
    """
    load, clock, pools = outlook.load, room.clock, room.seen.pools
    prompts, tokens = room.share
    kept, emitted = room.loads[KEPT], room.loads[EMITTED]
    boost = 1.0 + LATE_BOOST * _late(model.phases[DECODE], model.members[DECODE], pools)
    least_crowded = CROWDED
    any_found = False
    for trial in range(1 + shed_tilts.shape[0]):
        tilts = model.tilts[PREFILL] if trial == 0 else shed_tilts[trial - 1]
        least, most, crowded = 0.0, MOST_SHED, math.inf
        for _ in range(SHED_STEPS):
            part = 0.5 * (least + most) if crowded < math.inf else most
            _scale_groups(load, 0, 1, 1.0 - part, kept)
            # Who is turned away is not quite in proportion: routing must not depend on it.
            scaled_load(load, boost * _output_tokens(kept) / _output_tokens(load), emitted)
            fits = True
            for kind in (PREFILL, DECODE):
                fits = fits and arrange(
                    model.phases[kind],
                    shedding,
                    kept if kind == PREFILL else emitted,
                    tilts if kind == PREFILL else model.tilts[DECODE],
                    model.members[kind],
                    room.places[kind],
                    room.work[kind],
                    room.share[kind][OTHER],
                    clock[OTHER],
                )
            if fits:
                settled = Outlook(kept, SETTLED, outlook.resting_w, 0.0, False, outlook.sigmas)
                watts = predicted_watts(model, settled, prompts[OTHER], tokens[OTHER], clock[OTHER], room)
                fits = watts <= target_w
            if fits:
                most = part
                _copy_arrangement(
                    prompts[OTHER], tokens[OTHER], clock[OTHER], prompts[FOUND], tokens[FOUND], clock[FOUND]
                )
                active, per_rack = room.places[PREFILL][SERVING], model.phases[PREFILL].per_rack
                crowded = _queue_up(active, per_rack, part, prompts[FOUND])
            elif crowded == math.inf:
                break
            else:
                least = part
        if crowded <= least_crowded:
            _copy_arrangement(
                prompts[FOUND], tokens[FOUND], clock[FOUND], prompts[CHOSEN], tokens[CHOSEN], clock[CHOSEN]
            )
            least_crowded = crowded
            any_found = True
    return any_found


@inlined_kernel
def _ways(active: Array, apart: int, isolated: int) -> int:
    """Return the ways to serve prompts without margins: 1, or more when long ones can have a pool of their own."""
    others = False
    for pool in range(active.shape[0]):
        others = others or (pool != apart and active[pool] > 0.0)
    return 1 + isolated if others and active[apart] > 0.0 else 1


@kernel
def _serve_bare(model: Model, bare: Limits, outlook: Outlook, target_w: float, room: Room) -> bool:
    """Serve a load without margins; when no way fits the power, leave the best to ``FALLBACK`` and return false.

    Prompts are served by every pool or, in the other ways, the longest by a pool of their own: its queue takes what comes,
    and only the others' share is settled.
    """
    load, clock = outlook.load, room.clock
    prompts, tokens = room.share
    prefill, decode = model.phases
    groups = load.shape[1]
    even = model.tilts[PREFILL]
    ways = _ways(room.places[PREFILL][SERVING], prefill.order[0], model.isolated.shape[0])
    for way in range(ways):
        settled = room.loads[KEPT]
        _scale_groups(load, groups - way, groups, 1e-9, settled)
        phase = with_limits(prefill, model.isolated[way - 1] if way > 0 else prefill.per_rack, prefill.tpot_s)
        room.sufficient[way] = arrange(
            phase,
            bare,
            settled,
            even,
            model.members[PREFILL],
            room.places[PREFILL],
            room.work[PREFILL],
            prompts[WAYS + way],
            clock[WAYS + way],
        )
    for limits in range(model.tpot_s.shape[0]):
        suffices = arrange(
            with_limits(decode, decode.per_rack, model.tpot_s[limits]),
            bare,
            load,
            model.tilts[DECODE],
            model.members[DECODE],
            room.places[DECODE],
            room.work[DECODE],
            tokens[OTHER],
            clock[OTHER],
        )
        for way in range(ways):
            for place in range(model.members[PREFILL].shape[0]):
                pool = model.members[PREFILL][place]
                clock[OTHER, pool] = clock[WAYS + way, pool]
            _copy_share(prompts[WAYS + way], prompts[OTHER])
            fits = suffices and room.sufficient[way]
            if fits and predicted_watts(model, outlook, prompts[OTHER], tokens[OTHER], clock[OTHER], room) <= target_w:
                for pool in range(clock.shape[1]):
                    room.pools[HIGH, pool] = max(clock[ANSWER, pool], clock[OTHER, pool])
                _copy_arrangement(
                    prompts[OTHER], tokens[OTHER], clock[OTHER], prompts[ANSWER], tokens[ANSWER], clock[ANSWER]
                )
                _between(model, outlook, clock[OTHER], target_w, room)
                return True
            if fits or (limits == 0 and way == 0):
                _copy_arrangement(
                    prompts[OTHER], tokens[OTHER], clock[OTHER], prompts[FALLBACK], tokens[FALLBACK], clock[FALLBACK]
                )
    return False


@kernel
def _serve_part(
    model: Model,
    margins: Margins,
    shed_tilts: Array,
    outlook: Outlook,
    target_w: float,
    shed_target_w: float,
    room: Room,
) -> None:
    """Serve what fits the power: with part of the requests turned away, or with all clocks lowered."""
    clock, high = room.clock, room.pools[HIGH]
    prompts, tokens = room.share
    _copy_arrangement(
        prompts[FALLBACK], tokens[FALLBACK], clock[FALLBACK], prompts[ANSWER], tokens[ANSWER], clock[ANSWER]
    )
    if predicted_watts(model, outlook, prompts[ANSWER], tokens[ANSWER], clock[ANSWER], room) > target_w and _shed(
        model, margins.shedding, shed_tilts, outlook, shed_target_w, room
    ):
        _copy_arrangement(
            prompts[CHOSEN], tokens[CHOSEN], clock[CHOSEN], prompts[ANSWER], tokens[ANSWER], clock[ANSWER]
        )
        if predicted_watts(model, outlook, prompts[ANSWER], tokens[ANSWER], clock[ANSWER], room) <= target_w:
            decode = model.members[DECODE]
            _copy(clock[CHOSEN], high)
            tpot_share = margins.comfortable[DECODE].tpot_share
            _catch_up(decode, room.seen.pools, tpot_share, model.phases[DECODE].tpot_s, high)
            _between(model, outlook, clock[CHOSEN], target_w, room)
            return
    for pool in range(high.shape[0]):
        high[pool] = max(clock[ANSWER, pool], room.pools[LOWEST, pool])
    _between(model, outlook, room.pools[LOWEST], target_w, room)


@inlined_kernel
def _release(pools: Array, careful: float, clock: Array, lowest: Array, high: Array) -> None:
    """Write the highest clocks to ask for while the brake is engaged, all float64[pools].

    Whatever is asked for, the brake's clock holds until its own bound fits: get rid of it first. At its clock that bound
    does fit, else it would have set a lower one.
    """
    braked_at = 0.0
    for pool in range(clock.shape[0]):
        braked_at = max(braked_at, pools[CLOCK, pool])
    for pool in range(clock.shape[0]):
        top = min(clock[pool], braked_at) if careful == CAREFUL_STEPS else clock[pool]
        high[pool] = max(top, lowest[pool])


@kernel
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
    """Turn the answer with all margins into one that fits the cap: see the module.

    Args:
        model: The site.
        margins: How close to its limits it is run.
        shed_tilts: Tilts of prefill, beside the usual ones, while requests are turned away, float64[S, 1, P].
        load: Load of the next step, float64[C, G, 6].
        suffices: Whether the active racks suffice for the answer.
        careful: Steps still to be careful for after a braked one.
        braked: How often the brake was on lately.
        room: Scratch: holds the observation, the racks wanted awake and the answer.
    """
    pools, site, clock, waking = room.seen.pools, room.seen.site, room.clock[ANSWER], room.pools[RESTLESS]
    for pool in range(waking.shape[0]):
        fresh = room.pools[WANTED, pool] - pools[ACTIVE, pool] - pools[DRAINING, pool]
        waking[pool] = max(pools[WAKING, pool], fresh)
    decode = model.phases[DECODE]
    _clear_queues(model.members[PREFILL], pools, clock)
    _catch_up(model.members[DECODE], pools, margins.comfortable[DECODE].tpot_share, decode.tpot_s, clock)
    engaged = site[BRAKED] > 0.0
    most = engaged or (careful > 0.0 and _behind(room.places[PREFILL]))
    resting_w = resting_watts(model.racks, model.power, pools, waking)
    joining = _joining(room.seen.classes, room.places[DECODE], decode.units)
    outlook = Outlook(load, LEAST, resting_w, joining, most, margins.power_sigmas)
    cap_w = _cap_w(site, margins.control_interval_s)
    if engaged:
        _release(pools, careful, clock, room.pools[LOWEST], room.pools[HIGH])
        _between(model, outlook, room.pools[LOWEST], RELEASE_TARGET * cap_w, room)
        return
    target_w = target_watts(room.places[PREFILL], site, margins.control_interval_s, braked)
    prompts, tokens = room.share[PREFILL][ANSWER], room.share[DECODE][ANSWER]
    if suffices and predicted_watts(model, outlook, prompts, tokens, clock, room) <= target_w:
        return
    if not _serve_bare(model, margins.bare, outlook, target_w, room):
        shed_target_w = (CAP_TARGET - BRAKED_MARGIN * min(braked, MOST_BRAKED)) * cap_w
        _serve_part(model, margins, shed_tilts, outlook, target_w, shed_target_w, room)


__all__ = [
    "Margins",
    "Outlook",
    "Room",
    "arrange",
    "gather",
    "named_margins",
    "named_room",
    "predicted_watts",
    "serve",
]
