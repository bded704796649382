"""A steady-state model of a site, as an operator would keep one: who serves what, at which clock, for how many watts.

Built on the environment's own physics (``ai_factory_gym.physics``). A phase is described by the load of each class and
prompt-length group; ``settle`` distributes it over the awake racks, finds the lowest clock of every pool that keeps the
limits, and adds up the power. At a fixed load and fixed racks the lowest admissible clock draws least: dynamic power
per unit of work falls with the square of the voltage, and a slower decode iteration reads the weights less often.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from ai_factory_baselines.base import Facts
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Cell, ClassSpec, PoolSpec, SiteSpec
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.cooling import pue
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_PER_TOKEN2_S,
    PREFILL_PER_TOKEN_S,
    PREFILL_STREAM_PER_TOKEN_S,
    PREFILL_TRANSFER_BYTES_PER_S,
    compute_rate,
    decode_iteration_s,
    prefill_work_s,
)
from ai_factory_gym.physics.power import POWER_SLEEP_RACK_W, gpu_power_w, rack_power_w

REQUESTS, PROMPT, PAIRS, OUTPUT, CONTEXT, RESERVE = range(6)
"""Columns of a load: requests/s; prompt tokens/s; squared prompt tokens/s; output tokens/s; output tokens/s weighted
with the mean KV context of their request, and with its prompt + output. A request is in flight in proportion to its
output, so the mean context in flight is CONTEXT / OUTPUT: the definition of ``ai_factory_gym.params.mean_context``, kept as
moments per class and group because the mix of classes in each pool changes from step to step; a test holds the two equal."""

LOAD_COLUMNS = 6

SLOW_SHARE = 0.02
"""A pool may serve a group when at most this share of its requests is too long for it (status: design choice)."""

FLOOR_TOLERANCE = 0.1
"""A group raises a pool's clock when the latency of its prompts needs this much above the lowest (status: choice)."""

OVERLOAD_W = 1e12
"""Penalty per unit of overload that puts any overloaded arrangement behind every sufficient one."""

TILTS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.45, 2.0)
"""Load of a rack of one pool relative to a rack of the first that ``dispatch`` tries."""

EVEN_OUT_S = 10.0
"""Time over which queues and batches even out the randomness of single arrivals (status: design choice)."""

BATCH_STEPS = 18
"""Bisections of a batch: to a sixtieth of a request at the usual ceiling."""

LEVEL_STEPS = 24
"""Bisections of a filling level."""

LEFT_OVER = 1e-9
"""Share of a group that may be left when all is distributed."""

LEVEL_WIDTH = 1e-8
"""Half the width of a bracket of the level, as a share of it: below the last bisection."""

BRACKET_STEPS = 10
"""Most evaluations spent on a bracket before a bisection; with fewer the bisection has more to evaluate, no more."""

COMPUTE_SPREAD = 1.6
"""Compute share of the prompts a server may have at one moment, relative to that of all (status: design choice)."""

LOAD_LEVELS = 48
RACK_LEVELS = 9


class Phase(NamedTuple):
    """The pools of one phase and the limits they keep. P pools, G prompt-length groups.

    Attributes:
        kind: PREFILL or DECODE.
        perf: Performance coefficients, float64[P, ...].
        power: Power coefficients, float64[P, 12].
        units: Prefill servers or decode replicas per rack, float64[P].
        most_batch: Batch ceiling per replica, float64[P].
        floor: Lowest clock at which a pool meets the TTFT limits of a group on its own, inf where never, float64[G, P].
        per_rack: Racks' worth of one unit of load per group at clock 1, inf where a pool cannot serve a group,
            float64[G, P]; for prefill it is computed from the load itself and only says inf or not.
        order: Pools, best for long prompts first, int64[P].
        tpot_s: TPOT limit kept by each pool, float64[P].
        sigma: Relative standard deviation of each class's rate from one step to the next, float64[classes].
    """

    kind: int
    perf: Array
    power: Array
    units: Array
    most_batch: Array
    floor: Array
    per_rack: Array
    order: Array
    tpot_s: Array
    sigma: Array


class Limits(NamedTuple):
    """How close to the limits a phase is run.

    Attributes:
        utilisation: Highest share of busy time of prefill servers.
        tpot_share: Highest TPOT as a share of the tightest limit.
        kv_share: Highest share of KV memory reserved.
        sigmas: Clocks are chosen for the load plus this many standard deviations of its change within a step.
        lowest: Lowest clock.
    """

    utilisation: float
    tpot_share: float
    kv_share: float
    sigmas: float
    lowest: float


BARE_LIMITS = Limits(1.0, 1.0, 1.0, 0.0, 0.2)
"""The limits themselves, without any margin."""


class Work(NamedTuple):
    """Scratch arrays of the kernels for one phase.

    Attributes:
        sums: A load of all classes, float64[G, 6].
        need: Racks' worth, float64[G, P].
        room: Racks times tilt, float64[P].
        share: Shares of an arrangement that is tried, float64[G, P].
        clock: Its clocks, float64[P].
        loads: Loads of one pool, float64[2, 6].
    """

    sums: Array
    need: Array
    room: Array
    share: Array
    clock: Array
    loads: Array

    @classmethod
    def of(cls, groups: int, pools: int) -> Work:
        """Return scratch for so many prompt-length groups and pools."""
        return cls(
            sums=np.zeros((groups, LOAD_COLUMNS)),
            need=np.zeros((groups, pools)),
            room=np.zeros(pools),
            share=np.zeros((groups, pools)),
            clock=np.zeros(pools),
            loads=np.zeros((2, LOAD_COLUMNS)),
        )


class Model(NamedTuple):
    """A site as the kernels see it; what is a pair is by phase.

    Attributes:
        phases: Prefill and decode.
        tilts: Tilts that ``dispatch`` tries, float64[T, P].
        members: Pools of the phase, int64[P].
        racks: Racks of each pool, float64[pools].
        power: Power coefficients of each pool, float64[pools, 12].
        site: Constants of the site.
        tpot_s: TPOT limits of the decode pools, float64[1 + R, P]: the tightest, then those of ``relaxed``.
        isolated: ``per_rack`` of prefill with the longest groups in one pool, float64[G - 1, G, P], see ``isolated``.
    """

    phases: tuple[Phase, Phase]
    tilts: tuple[Array, Array]
    members: tuple[Array, Array]
    racks: Array
    power: Array
    site: Array
    tpot_s: Array
    isolated: Array


@inlined_kernel
def named_model(parts: Any) -> Model:
    """Name the parts of a model, from ``unnamed``, again."""
    return Model((Phase(*parts[0][0]), Phase(*parts[0][1])), *parts[1:])


@inlined_kernel
def racks_worth(phase: Phase, load: Array, need: Array) -> None:
    """Write the racks' worth of each group's load (float64[G, 6]) on each pool at clock 1; inf where it may not go."""
    for group in range(need.shape[0]):
        for pool in range(need.shape[1]):
            if phase.per_rack[group, pool] == math.inf:
                need[group, pool] = math.inf
            elif phase.kind == PREFILL:
                coef = phase.perf[pool]
                scaling, fixed = prefill_work_s(coef, load[group, PROMPT], load[group, PAIRS])
                need[group, pool] = (scaling + fixed) / phase.units[pool]
            else:
                need[group, pool] = load[group, OUTPUT] * phase.per_rack[group, pool]


@inlined_kernel
def spare_slow(phase: Phase, lowest: float, need: Array) -> bool:
    """Keep the groups that would force a pool to a higher clock out of it, where other pools remain; tell whether any was.

    Args:
        phase: The phase.
        lowest: Lowest clock.
        need: From ``racks_worth``; infinite afterwards where a group is kept out, float64[G, P].
    """
    spared = False
    for group in range(need.shape[0]):
        others = False
        for pool in range(need.shape[1]):
            if need[group, pool] < math.inf and phase.floor[group, pool] <= lowest + FLOOR_TOLERANCE:
                others = True
        for pool in range(need.shape[1]):
            slow = need[group, pool] < math.inf and phase.floor[group, pool] > lowest + FLOOR_TOLERANCE
            if slow and others:
                need[group, pool] = math.inf
                spared = True
    return spared


@inlined_kernel
def scaled_load(load: Array, factor: float, out: Array) -> None:
    """Write a load times a factor, float64[C, G, 6]."""
    for cls in range(load.shape[0]):
        for group in range(load.shape[1]):
            for column in range(LOAD_COLUMNS):
                out[cls, group, column] = load[cls, group, column] * factor


@inlined_kernel
def load_of(moments: Array, rate: float, out: Array) -> None:
    """Write the load of a class's arrivals per second, float64[G, 6]."""
    for group in range(moments.shape[0]):
        for column in range(LOAD_COLUMNS):
            out[group, column] = rate * moments[group, column]


@inlined_kernel
def with_limits(phase: Phase, per_rack: Array, tpot_s: Array) -> Phase:
    """Return a phase whose pools may serve other groups, float64[G, P], or have other TPOT limits, float64[P]."""
    return Phase(
        phase.kind,
        phase.perf,
        phase.power,
        phase.units,
        phase.most_batch,
        phase.floor,
        per_rack,
        phase.order,
        tpot_s,
        phase.sigma,
    )


@inlined_kernel
def sum_classes(load: Array, sums: Array) -> None:
    """Write the load of all classes, float64[G, 6]."""
    sums[:] = 0.0
    for cls in range(load.shape[0]):
        for group in range(load.shape[1]):
            for column in range(LOAD_COLUMNS):
                sums[group, column] += load[cls, group, column]


@inlined_kernel
def _pour(need: Array, room: Array, order: Array, level: float, share: Array) -> float:
    """Fill pools up to ``level`` x room, longest prompts into the pools that are best for them; return what is left."""
    groups = need.shape[0]
    share[:] = 0.0
    for place in range(order.shape[0]):
        pool = order[place]
        left = room[pool] * level
        for back in range(groups):
            group = groups - 1 - back
            if left <= 0.0:
                break
            if need[group, pool] == math.inf:
                continue
            rest = 1.0
            for other in range(share.shape[1]):
                rest -= share[group, other]
            if rest <= 0.0:
                continue
            taken = rest
            if need[group, pool] * rest > left:
                taken = left / need[group, pool]
            share[group, pool] = taken
            left -= taken * need[group, pool]
    short = 0.0
    for group in range(groups):
        rest = 1.0
        for pool in range(share.shape[1]):
            rest -= share[group, pool]
        short += max(0.0, rest)
    return short


@inlined_kernel
def _least_level(need: Array, room: Array) -> float:
    """Return a level at which something is surely left: every group served only where it costs least, and a little less."""
    work = 0.0
    for group in range(need.shape[0]):
        least = math.inf
        for pool in range(need.shape[1]):
            least = min(least, need[group, pool])
        work += least
    racks = 0.0
    for pool in range(room.shape[0]):
        racks += room[pool]
    return (1.0 - 1e-6) * work / racks


@inlined_kernel
def _level_bracket(need: Array, room: Array, order: Array, least: float, share: Array) -> tuple[float, float]:
    """Return two levels close together: at the first something is left, at the second nothing; inf when none was found.

    What is left falls piecewise linearly with the level: secant steps from below, then a step to either side of the root.

    Args:
        need: As in ``fill``.
        room: As in ``fill``.
        order: As in ``fill``.
        least: Level at which something is left.
        share: Scratch, float64[G, P].
    """
    before, more = 0.0, float(need.shape[0])
    below, left = before, more
    above = math.inf
    probe = least
    for _ in range(BRACKET_STEPS):
        rest = _pour(need, room, order, probe, share)
        if rest > LEFT_OVER:
            before, more = below, left
            below, left = probe, rest
        else:
            above = probe
        width = LEVEL_WIDTH * probe
        if above - below <= 4.0 * width:
            break
        root = below + (left - LEFT_OVER) * (below - before) / (more - left)
        probe = root + width if root + 2.0 * width < above else root - width
        if not below < probe < above:
            probe = 0.5 * (below + min(above, 3.0 * below))
    return below, above


@inlined_kernel
def fill(need: Array, room: Array, order: Array, share: Array) -> float:
    """Distribute groups over pools by comparative advantage, every pool filled to the same share of its room.

    The level is found by bisection; what is left falls with the level, so that most steps are decided by a bracket.

    Args:
        need: Racks' worth of each group on each pool, float64[G, P].
        room: Racks of each pool, weighted or not, float64[P].
        order: Pools, best for long prompts first.
        share: Written: share of each group per pool, float64[G, P].

    Returns:
        The common filling level; inf when some group can go nowhere.
    """
    below = above = _least_level(need, room)
    if below < math.inf:
        below, above = _level_bracket(need, room, order, below, share)
    low = 0.0
    high = 1e-3
    while not high > below or (high < above and _pour(need, room, order, high, share) > LEFT_OVER):
        high *= 2.0
        if high > 1e9:
            _pour(need, room, order, 0.5 * high, share)
            return math.inf
    for _ in range(LEVEL_STEPS):
        middle = 0.5 * (low + high)
        if middle <= below or (middle < above and _pour(need, room, order, middle, share) > LEFT_OVER):
            low = middle
        else:
            high = middle
    _pour(need, room, order, high, share)
    return high


@inlined_kernel
def _batch_excess(perf: Array, tokens_per_s: float, context: float, clock: float, batch: float) -> float:
    """Return tokens per iteration that a batch emits beyond those wanted; negative while the batch is too small."""
    iteration_s = decode_iteration_s(perf, max(1.0, batch), context, clock)[0]
    return batch * perf[DECODE_TOKENS_PER_ITERATION] - tokens_per_s * iteration_s


@inlined_kernel
def _batch_bracket(perf: Array, tokens_per_s: float, context: float, clock: float, most: float) -> tuple[float, float]:
    """Return two batches close together, the first too small, the second sufficient; as ``_level_bracket``."""
    width = most / 2.0 ** (BATCH_STEPS + 3)
    below, above = 0.0, math.inf
    last, lack = 0.0, _batch_excess(perf, tokens_per_s, context, clock, 0.0)
    # Little's law with the iteration of a single request; the true one takes longer.
    probe = min(most, -lack / perf[DECODE_TOKENS_PER_ITERATION])
    for _ in range(BRACKET_STEPS):
        excess = _batch_excess(perf, tokens_per_s, context, clock, probe)
        if excess < 0.0:
            below = probe
        else:
            above = probe
        if above - below <= 4.0 * width or below >= most:
            break
        root = probe - excess * (probe - last) / (excess - lack)
        last, lack = probe, excess
        probe = min(most, root + width if root + 2.0 * width < above else root - width)
        if not below < probe < above:
            probe = 0.5 * (below + min(above, most))
    return below, above


@inlined_kernel
def decode_batch(perf: Array, tokens_per_s: float, context: float, clock: float, most: float) -> float:
    """Return the batch of a replica that emits ``tokens_per_s``; ``most`` when it cannot.

    Throughput rises with the batch, so that most steps of the bisection are decided by a bracket.
    """
    below, above = _batch_bracket(perf, tokens_per_s, context, clock, most)
    low = 0.0
    high = most
    for _ in range(BATCH_STEPS):
        middle = 0.5 * (low + high)
        if middle <= below or (middle < above and _batch_excess(perf, tokens_per_s, context, clock, middle) < 0.0):
            low = middle
        else:
            high = middle
    return high


@inlined_kernel
def _decode_strain(
    perf: Array, load: Array, replicas: float, clock: float, most_batch: float, tpot_s: float, kv: float
) -> float:
    """Return how far a decode pool is beyond its tightest limit: 1 is at the limit."""
    context = load[CONTEXT] / load[OUTPUT]
    held = load[RESERVE] / load[OUTPUT] + perf[DECODE_KV_REQUEST_TOKENS]
    most = min(most_batch, kv * perf[DECODE_KV_CAPACITY_TOKENS] / held)
    tokens = load[OUTPUT] / replicas
    batch = decode_batch(perf, tokens, context, clock, most)
    iteration_s = decode_iteration_s(perf, max(1.0, batch), context, clock)[0]
    reached = batch * perf[DECODE_TOKENS_PER_ITERATION] / iteration_s
    worst: float = max(iteration_s / perf[DECODE_TOKENS_PER_ITERATION] / tpot_s, tokens / reached)
    return worst


@inlined_kernel
def _prefill_seconds(perf: Array, load: Array, clock: float) -> tuple[float, float]:
    """Return server-seconds per second that scale with the clock, at that clock, and those that do not."""
    scaling, fixed = prefill_work_s(perf, load[PROMPT], load[PAIRS])
    return scaling / compute_rate(clock), fixed


@inlined_kernel
def strain(phase: Phase, limits: Limits, pool: int, load: Array, racks: float, clock: float) -> float:
    """Return how far a pool is beyond its tightest limit at a clock: 1 is at the limit, inf is no rack.

    Args:
        phase: The phase.
        limits: The limits; their sigmas are not applied here.
        pool: Pool within the phase.
        load: The pool's load, float64[6].
        racks: Racks that serve.
        clock: Clock.
    """
    if load[REQUESTS] <= 0.0 or load[OUTPUT] <= 0.0:
        return 0.0
    if racks <= 0.0:
        return math.inf
    if phase.kind == PREFILL:
        scaling, fixed = _prefill_seconds(phase.perf[pool], load, clock)
        busy: float = (scaling + fixed) / (racks * phase.units[pool])
        return busy / limits.utilisation
    return _decode_strain(
        phase.perf[pool],
        load,
        racks * phase.units[pool],
        clock,
        phase.most_batch[pool],
        limits.tpot_share * phase.tpot_s[pool],
        limits.kv_share,
    )


@inlined_kernel
def pool_watts(phase: Phase, pool: int, load: Array, racks: float, clock: float, least: float) -> float:
    """Return the IT power of a pool's awake racks under a load, W.

    Args:
        phase: The phase.
        pool: Pool within the phase.
        load: The pool's load, float64[6].
        racks: Racks awake.
        clock: Clock.
        least: Busy share (prefill) or batch per replica (decode) to assume at least.
    """
    power = phase.power[pool]
    if racks <= 0.0:
        return 0.0
    if load[REQUESTS] <= 0.0 or load[OUTPUT] <= 0.0:
        return racks * rack_power_w(power, gpu_power_w(power, clock, 0.0, 0.0, 0.0))
    perf = phase.perf[pool]
    units = racks * phase.units[pool]
    if phase.kind == PREFILL:
        scaling, fixed = _prefill_seconds(perf, load, clock)
        total = scaling + fixed
        memory = perf[PREFILL_STREAM_PER_TOKEN_S] * load[PROMPT]
        busy = min(1.0, max(least, total / units))
        return racks * rack_power_w(power, gpu_power_w(power, clock, busy, scaling / total, memory / total))
    context = load[CONTEXT] / load[OUTPUT]
    most = min(phase.most_batch[pool], perf[DECODE_KV_CAPACITY_TOKENS] / (context + perf[DECODE_KV_REQUEST_TOKENS]))
    batch = max(min(least, most), decode_batch(perf, load[OUTPUT] / units, context, clock, most))
    iteration_s, compute_s, memory_s = decode_iteration_s(perf, max(1.0, batch), context, clock)
    gpu_w = gpu_power_w(power, clock, min(1.0, batch), compute_s / iteration_s, memory_s / iteration_s)
    return racks * rack_power_w(power, gpu_w)


@kernel
def most_watts(phase: Phase, pool: int, load: Array, racks: float, clock: float, low: float, high: float) -> float:
    """Return an upper bound of a pool's IT power, W: about what the power brake asks before it lets go.

    Prefill is taken to be busy all the time with prompts of the more compute-bound kind; decode to have any batch per replica
    from ``low`` to ``high``, of requests as they are on average or all at their end.
    """
    power = phase.power[pool]
    perf = phase.perf[pool]
    if phase.kind == PREFILL:
        scaling, fixed = _prefill_seconds(perf, load, clock)
        compute = min(1.0, COMPUTE_SPREAD * scaling / max(scaling + fixed, 1e-300))
        memory = min(
            1.0, COMPUTE_SPREAD * perf[PREFILL_STREAM_PER_TOKEN_S] * load[PROMPT] / max(scaling + fixed, 1e-300)
        )
        return racks * rack_power_w(power, gpu_power_w(power, clock, 1.0, compute, memory))
    watts = 0.0
    for context in (load[CONTEXT] / max(load[OUTPUT], 1e-300), load[RESERVE] / max(load[OUTPUT], 1e-300)):
        most = min(phase.most_batch[pool], perf[DECODE_KV_CAPACITY_TOKENS] / (context + perf[DECODE_KV_REQUEST_TOKENS]))
        for batch in (low, high):
            iteration_s, compute_s, memory_s = decode_iteration_s(perf, max(1.0, min(batch, most)), context, clock)
            gpu_w = gpu_power_w(power, clock, min(1.0, batch), compute_s / iteration_s, memory_s / iteration_s)
            watts = max(watts, racks * rack_power_w(power, gpu_w))
    return watts


@inlined_kernel
def keeps_limits(phase: Phase, limits: Limits, pool: int, load: Array, racks: float, clock: float) -> bool:
    """Tell whether ``strain`` is at most 1, without solving for the batch.

    The TPOT limit is kept when the batch of a pool that runs exactly at it (Little's law) takes no longer; below the batch
    ceiling throughput rises with the batch, so the true one is smaller.
    """
    if phase.kind == PREFILL or load[REQUESTS] <= 0.0 or load[OUTPUT] <= 0.0 or racks <= 0.0:
        return strain(phase, limits, pool, load, racks, clock) <= 1.0
    perf = phase.perf[pool]
    context = load[CONTEXT] / load[OUTPUT]
    held = load[RESERVE] / load[OUTPUT] + perf[DECODE_KV_REQUEST_TOKENS]
    most = min(phase.most_batch[pool], limits.kv_share * perf[DECODE_KV_CAPACITY_TOKENS] / held)
    tokens = load[OUTPUT] / (racks * phase.units[pool])
    tpot_s = limits.tpot_share * phase.tpot_s[pool]
    batch = min(most, tokens * tpot_s)
    own_s = decode_iteration_s(perf, max(1.0, batch), context, clock)[0] / perf[DECODE_TOKENS_PER_ITERATION]
    return own_s <= tpot_s and batch >= tokens * own_s


@inlined_kernel
def lowest_clock(phase: Phase, limits: Limits, pool: int, load: Array, racks: float, floor: float) -> float:
    """Return the lowest clock from ``floor`` up at which a pool keeps its limits; 1 when none does."""
    if keeps_limits(phase, limits, pool, load, racks, floor):
        return floor
    low = floor
    high = 1.0
    for _ in range(9):
        middle = 0.5 * (low + high)
        if keeps_limits(phase, limits, pool, load, racks, middle):
            high = middle
        else:
            low = middle
    return high


@inlined_kernel
def pool_load(phase: Phase, load: Array, share: Array, pool: int, out: Array) -> float:
    """Write the load that reaches a pool, float64[6], and return the relative standard deviation of its work."""
    out[:] = 0.0
    variance = 0.0
    total = 0.0
    for cls in range(load.shape[0]):
        work = 0.0
        for group in range(load.shape[1]):
            part = share[group, pool]
            for column in range(LOAD_COLUMNS):
                out[column] += part * load[cls, group, column]
            if phase.kind == PREFILL:
                coef = phase.perf[pool]
                work += part * (coef[PREFILL_PER_TOKEN_S] * load[cls, group, PROMPT])
                work += part * (coef[PREFILL_PER_TOKEN2_S] * load[cls, group, PAIRS])
            else:
                work += part * load[cls, group, OUTPUT]
        spread = work * phase.sigma[cls]
        variance += spread * spread
        total += work
    return math.sqrt(variance) / max(total, 1e-300)


@inlined_kernel
def raised_load(phase: Phase, load: Array, share: Array, pool: int, sigmas: float, out: Array) -> None:
    """Write the load that reaches a pool, float64[6], when its work is so many standard deviations higher."""
    spread = pool_load(phase, load, share, pool, out)
    for column in range(LOAD_COLUMNS):
        out[column] *= 1.0 + sigmas * spread


@inlined_kernel
def served_share(
    phase: Phase, load: Array, share: Array, racks: Array, clock: Array, sigmas: float, one: Array
) -> float:
    """Return the share of prompts that prefill can serve at its very limits; arguments as ``phase_watts``."""
    total = 0.0
    served = 0.0
    for pool in range(racks.shape[0]):
        raised_load(phase, load, share, pool, sigmas, one)
        total += one[PROMPT]
        served += one[PROMPT] / max(1.0, strain(phase, BARE_LIMITS, pool, one, racks[pool], clock[pool]))
    return served / total if total > 0.0 else 1.0


@kernel
def phase_watts(
    phase: Phase, load: Array, share: Array, racks: Array, clock: Array, least: Array, sigmas: float, one: Array
) -> float:
    """Return the IT power of a phase's awake racks, W.

    Args:
        phase: The phase.
        load: Load, float64[C, G, 6].
        share: Shares, float64[G, P].
        racks: Racks awake, float64[P].
        clock: Clocks, float64[P].
        least: As in ``pool_watts``, float64[P].
        sigmas: Standard deviations by which every pool's load is higher.
        one: Scratch, float64[6].
    """
    total = 0.0
    for pool in range(racks.shape[0]):
        raised_load(phase, load, share, pool, sigmas, one)
        total += pool_watts(phase, pool, one, racks[pool], clock[pool], least[pool])
    return total


@kernel
def facility_watts(site: Array, it_w: float) -> float:
    """Return facility power for an IT power, W; ``site`` holds the constants of the site."""
    load = it_w / site[SiteSpec.IT_NAMEPLATE_W]
    ratio: float = pue(
        site[SiteSpec.PUE_BASE],
        site[SiteSpec.PUE_KELVIN],
        site[SiteSpec.OUTDOOR_C],
        load,
        site[SiteSpec.PUE_FREE_COOLING_C],
        site[SiteSpec.PUE_FIXED_SHARE],
    )
    return it_w * ratio


@inlined_kernel
def expected_watts(
    phases: tuple[Phase, Phase],
    site: Array,
    load: Array,
    share: tuple[Array, Array],
    racks: tuple[Array, Array],
    clock: tuple[Array, Array],
    least: tuple[Array, Array],
    resting_w: float,
    sigmas: float,
    emitted: Array,
    one: Array,
) -> float:
    """Return facility power when decode gets what prefill can serve of a load, W.

    Args:
        phases: Prefill and decode.
        site: Constants of the site.
        load: Load, float64[C, G, 6].
        share: By phase, as the next three: as in ``phase_watts``.
        racks: Racks awake.
        clock: Clocks.
        least: What to assume at least.
        resting_w: IT power of the racks that are not awake, W.
        sigmas: Standard deviations by which every pool's load is higher.
        emitted: Scratch, float64[C, G, 6].
        one: Scratch, float64[6].
    """
    prefill, decode = phases
    served = served_share(prefill, load, share[PREFILL], racks[PREFILL], clock[PREFILL], sigmas, one)
    scaled_load(load, served, emitted)
    it_w = resting_w + phase_watts(
        prefill, load, share[PREFILL], racks[PREFILL], clock[PREFILL], least[PREFILL], sigmas, one
    )
    it_w += phase_watts(decode, emitted, share[DECODE], racks[DECODE], clock[DECODE], least[DECODE], sigmas, one)
    return facility_watts(site, it_w)


@kernel
def load_level(phase: Phase, load: Array, racks: Array, work: Work) -> float:
    """Return a load (float64[C, G, 6]) as a share of what racks (float64[P]) serve at full clock within the SLO."""
    sum_classes(load, work.sums)
    racks_worth(phase, work.sums, work.need)
    return fill(work.need, racks, phase.order, work.share)


@kernel
def settle(phase: Phase, limits: Limits, load: Array, racks: Array, tilt: Array, work: Work) -> float:
    """Distribute a load over racks and choose clocks: shares and clocks are left in ``work``.

    Args:
        phase: The phase.
        limits: The limits.
        load: Load per class and group, float64[C, G, 6].
        racks: Racks that serve, float64[P].
        tilt: Load of a rack of each pool relative to the others, float64[P].
        work: Scratch; its ``need`` is from ``racks_worth``.

    Returns:
        IT power of the awake racks, W; beyond OVERLOAD_W when some limit is broken even at full clock.
    """
    share, clock, room = work.share, work.clock, work.room
    own, raised = work.loads[0], work.loads[1]
    for pool in range(racks.shape[0]):
        room[pool] = racks[pool] * tilt[pool]
    if fill(work.need, room, phase.order, share) == math.inf:
        clock[:] = 0.0
        return 1e6 * OVERLOAD_W
    watts = 0.0
    for pool in range(racks.shape[0]):
        floor = limits.lowest
        for group in range(share.shape[0]):
            if share[group, pool] > 0.01:
                floor = max(floor, min(1.0, phase.floor[group, pool]))
        spread = pool_load(phase, load, share, pool, own)
        for column in range(LOAD_COLUMNS):
            raised[column] = own[column] * (1.0 + limits.sigmas * spread)
        clock[pool] = lowest_clock(phase, limits, pool, raised, racks[pool], floor)
        if not keeps_limits(phase, limits, pool, raised, racks[pool], clock[pool]):
            over = strain(phase, limits, pool, raised, racks[pool], clock[pool])
            if over > 1.001:
                watts += OVERLOAD_W * min(over, 1e3)
        watts += pool_watts(phase, pool, own, racks[pool], clock[pool], 0.0)
    return watts


@kernel
def dispatch(
    phase: Phase, limits: Limits, load: Array, racks: Array, tilts: Array, work: Work, share: Array, clock: Array
) -> float:
    """Settle with the tilt that draws least, with every group everywhere or the slow ones spared.

    Args:
        phase: The phase.
        limits: The limits.
        load: Load per class and group, float64[C, G, 6].
        racks: Racks that serve, float64[P].
        tilts: Tilts to try, float64[T, P].
        work: Scratch.
        share: Written, float64[G, P].
        clock: Written, float64[P].

    Returns:
        As ``settle``.
    """
    sum_classes(load, work.sums)
    racks_worth(phase, work.sums, work.need)
    best = math.inf
    for spare in range(2):
        if spare == 1 and not spare_slow(phase, limits.lowest, work.need):
            break
        for index in range(tilts.shape[0]):
            watts = settle(phase, limits, load, racks, tilts[index], work)
            if watts < best:
                best = watts
                for pool in range(racks.shape[0]):
                    clock[pool] = work.clock[pool]
                    for group in range(share.shape[0]):
                        share[group, pool] = work.share[group, pool]
    return best


@kernel
def _awake_watts(
    phase: Phase,
    limits: Limits,
    load: Array,
    racks: Array,
    tilts: Array,
    plan_clock: float,
    work: Work,
) -> float:
    """Return the IT power of the racks awake with the best tilt, W, and a penalty for clocks above ``plan_clock``."""
    best = math.inf
    for tilt in range(tilts.shape[0]):
        watts = settle(phase, limits, load, racks, tilts[tilt], work)
        for pool in range(racks.shape[0]):
            if racks[pool] > 0.0 and work.clock[pool] > plan_clock:
                watts += OVERLOAD_W * (work.clock[pool] - plan_clock)
        best = min(best, watts)
    return best


@kernel
def plan_racks(
    phase: Phase,
    limits: Limits,
    load: Array,
    levels: Array,
    counts: Array,
    total: Array,
    tilts: Array,
    plan_clock: float,
    chosen: Array,
    part: Array,
    work: Work,
) -> None:
    """Write, for every load level, which row of ``counts`` (racks awake per pool) draws least.

    Args:
        phase: The phase.
        limits: The limits.
        load: Load at level 1, float64[C, G, 6].
        levels: Load levels, float64[L].
        counts: Candidates, float64[C, P].
        total: Racks of each pool, float64[P].
        tilts: float64[T, P].
        plan_clock: Highest clock an arrangement may need; what lies above is kept for surprises.
        chosen: Written, int64[L].
        part: Scratch, float64[C, G, 6].
        work: Scratch.
    """
    for index in range(levels.shape[0]):
        scaled_load(load, levels[index], part)
        sum_classes(part, work.sums)
        racks_worth(phase, work.sums, work.need)
        best = math.inf
        for spare in range(2):
            if spare == 1 and not spare_slow(phase, limits.lowest, work.need):
                break
            for candidate in range(counts.shape[0]):
                racks = counts[candidate]
                asleep_w = 0.0
                for pool in range(total.shape[0]):
                    asleep_w += (total[pool] - racks[pool]) * phase.power[pool, POWER_SLEEP_RACK_W]
                watts = asleep_w + _awake_watts(phase, limits, part, racks, tilts, plan_clock, work)
                if watts < best:
                    best = watts
                    chosen[index] = candidate


def rack_candidates(least: Array, most: Array) -> Array:
    """Return combinations of racks awake, float64[C, P]: every number in small pools, RACK_LEVELS ones in large."""
    choices = []
    for low, high in zip(least.astype(int).tolist(), most.astype(int).tolist(), strict=True):
        if high - low < 12:
            choices.append(list(range(low, high + 1)))
        else:
            choices.append(sorted({round(x) for x in np.linspace(low, high, RACK_LEVELS)}))
    return np.array(list(itertools.product(*choices)), dtype=np.float64)


def tilt_candidates(pools: int) -> Array:
    """Return the tilts tried, float64[T, P], the even one first; coarser with more pools."""
    values = TILTS if pools <= 2 else (0.7, 1.0, 1.45) if pools == 3 else (1.0,)
    rows = [(1.0, *rest) for rest in itertools.product(values, repeat=pools - 1)]
    rows.sort(key=lambda row: max(abs(math.log(value)) for value in row))
    return np.array(rows)


class Plant:
    """The steady-state model of one site that serves one model.

    Args:
        facts: The site.
        ttft_share: Share of a TTFT limit that prefill, transfer and front end of an unqueued request may take.

    Attributes:
        phases: Prefill and decode.
        moments: Load of one request per second of each class, float64[classes, G, 6].
        mean: Load of mean demand, float64[classes, G, 6].
        sigma: Relative standard deviation of each class's rate from one step to the next, float64[classes].
        reversion: Share of a deviation from the usual rate that is left one step later, float64[classes].
        total: Racks of each pool, per phase.
        work: Scratch of the kernels, per phase.
        tilts: Per phase.

    Its scratch arrays are its own: a plant may be pickled, but not used in two threads at once.

    Raises:
        ConfigError: When the site serves several models: ``several.PerModel`` plans for each.
    """

    def __init__(self, facts: Facts, ttft_share: float = 0.85) -> None:
        """Fold the site's cells into loads and its pools into phases; refuse pools that share racks (ConfigError)."""
        if facts.models > 1:
            raise ConfigError(
                f"plant: the site serves {facts.models} models, and a plan is of one: the pools of one cannot take over requests to another; "
                "ai_factory_baselines.make(name, env) makes a plan of each and shares the cap among them."
            )
        self.facts = facts
        params = facts.params
        if params.site[SiteSpec.COUPLED] > 0.0:
            raise ConfigError(
                "rule: not possible on a site where a prefill and a decode pool share racks: this rule plans each pool's racks, clocks and power "
                "as its own; use 'uniform', 'capacity_proportional', 'least_loaded' or 'random', or a learned agent."
            )
        groups = params.capacity.shape[1]
        classes = len(params.cls)
        self.moments = np.zeros((classes, groups, LOAD_COLUMNS))
        for cell in params.cell:
            prompt, output = cell[Cell.PROMPT], cell[Cell.OUTPUT]
            square = cell[Cell.OUTPUT_SQ]
            context, reserve = output * prompt + 0.5 * square, output * prompt + square
            columns = np.array([1.0, prompt, cell[Cell.PROMPT_SQ], output, context, reserve])
            self.moments[int(cell[Cell.CLASS]), int(cell[Cell.GROUP])] += cell[Cell.WEIGHT] * columns
        rate = facts.observation.class_rate
        self.mean = self.load(rate)
        self.reversion = np.exp(-facts.control_interval_s / facts.tau_s)
        # Change of an Ornstein-Uhlenbeck process over a step, and Poisson noise over the time that queues even out.
        change = 2.0 * facts.sigma**2 * (1.0 - self.reversion)
        self.sigma = np.sqrt(change + 2.0 / (EVEN_OUT_S * np.maximum(rate, 1e-9)))
        self.phases = self._phase(PREFILL, ttft_share), self._phase(DECODE, ttft_share)
        self.total = facts.racks[facts.members[PREFILL]], facts.racks[facts.members[DECODE]]
        self.work = tuple(Work.of(groups, len(members)) for members in facts.members)
        prefill, decode = facts.members
        self.tilts = tilt_candidates(len(prefill)), tilt_candidates(len(decode))

    def load(self, rate: Array) -> Array:
        """Return the load of arrivals per second of each class, float64[classes, G, 6]."""
        return np.multiply(rate[:, None, None], self.moments)

    def _phase(self, kind: int, ttft_share: float) -> Phase:
        params, members = self.facts.params, self.facts.members[kind]
        spec = params.pool[members]
        groups = params.capacity.shape[1]
        floor = np.zeros((groups, len(members)))
        if kind == PREFILL:
            for group in range(groups):
                floor[group] = [self._prefill_floor(group, pool, ttft_share) for pool in members]
            # A group that no pool serves in time goes wherever it is served fastest.
            hopeless = ~np.isfinite(floor).any(axis=1)
            floor[hopeless] = 1.0
        capacity = params.capacity[kind][:, members]
        usual = self.mean.sum(axis=0)
        mean_output = usual[:, OUTPUT] / np.maximum(usual[:, REQUESTS], 1e-300)
        with np.errstate(divide="ignore"):
            per_rack = 1.0 / (capacity * np.maximum(mean_output, 1e-9)[:, None])
        per_rack[~np.isfinite(floor)] = math.inf
        with np.errstate(invalid="ignore"):
            advantage = np.where(np.isfinite(per_rack[-1]), capacity[-1] / np.maximum(capacity[0], 1e-300), -1.0)
        limits = params.cls[params.cls[:, ClassSpec.DEFERRABLE] == 0.0, ClassSpec.TPOT_S]
        limits = limits if len(limits) else params.cls[:, ClassSpec.TPOT_S]
        return Phase(
            kind=kind,
            perf=np.ascontiguousarray(params.perf[members]),
            power=np.ascontiguousarray(params.power[members]),
            units=spec[:, PoolSpec.UNITS_PER_RACK].copy(),
            most_batch=spec[:, PoolSpec.MAX_BATCH].copy(),
            floor=floor,
            per_rack=np.ascontiguousarray(per_rack),
            order=np.argsort(-advantage, kind="stable"),
            tpot_s=np.full(len(members), limits.min()),
            sigma=self.sigma,
        )

    def _prefill_floor(self, group: int, pool: int, ttft_share: float) -> float:
        """Return the lowest clock at which a prefill pool serves nearly all of a group in time; inf when none does."""
        params = self.facts.params
        coef = params.perf[pool]
        rate = self.facts.observation.class_rate
        clocks = []
        weights = []
        for cell in params.cell[params.cell[:, Cell.GROUP] == group]:
            cls = params.cls[int(cell[Cell.CLASS])]
            if cls[ClassSpec.DEFERRABLE] > 0.0:
                continue
            prompt = math.sqrt(cell[Cell.PROMPT_SQ])
            limit_s = cls[ClassSpec.TTFT_A_S] + cls[ClassSpec.TTFT_B] * prompt + cls[ClassSpec.TTFT_C] * prompt * prompt
            scaling_s, fixed_s = prefill_work_s(coef, prompt, prompt * prompt)
            transfer_s = prompt * coef[PREFILL_KV_BYTES_PER_TOKEN] / coef[PREFILL_TRANSFER_BYTES_PER_S]
            fixed_s += coef[PREFILL_FRONTEND_S] + transfer_s
            left_s = ttft_share * limit_s - fixed_s
            clocks.append(scaling_s / left_s if left_s > 0.0 else math.inf)
            weights.append(cell[Cell.WEIGHT] * rate[int(cell[Cell.CLASS])])
        if not clocks:
            return 0.0
        order = np.argsort(clocks)
        kept = np.cumsum(np.array(weights)[order]) / max(sum(weights), 1e-300)
        clock = float(np.array(clocks)[order][int(np.searchsorted(kept, 1.0 - SLOW_SHARE))])
        return clock if clock <= 1.0 else math.inf

    def need(self, kind: int, load: Array) -> Array:
        """Return racks' worth of each group on each pool, float64[G, P]."""
        out = np.zeros(self.phases[kind].floor.shape)
        racks_worth(self.phases[kind], load.sum(axis=0), out)
        return out

    def level(self, kind: int, load: Array) -> float:
        """Return a load as a share of what all racks of a phase serve at full clock within the SLO."""
        return float(load_level(self.phases[kind], load, self.total[kind], self.work[kind]))

    def rack_plan(self, kind: int, limits: Limits, plan_clock: float) -> tuple[Array, Array]:
        """Return load levels, float64[L], and the racks awake per pool that draw least at each, float64[L, P]."""
        members = self.facts.members[kind]
        total = self.total[kind]
        counts = rack_candidates(self.facts.params.pool[members, PoolSpec.MIN_ACTIVE], total)
        levels = np.linspace(0.0, 1.25, LOAD_LEVELS + 1)[1:]
        load = self.mean / self.level(kind, self.mean)
        chosen = np.zeros(len(levels), dtype=np.int64)
        plan_racks(
            self.phases[kind],
            limits,
            load,
            levels,
            counts,
            total,
            self.tilts[kind],
            plan_clock,
            chosen,
            np.zeros_like(load),
            self.work[kind],
        )
        return levels, counts[chosen]

    def isolated(self) -> Array:
        """Return prefill's ``per_rack`` when the long prompts share one pool, and its queue, from the longest group down.

        Not all prompts can be in time then. First in first out, a pool with a queue is late for everybody in it: the other
        pools keep the shorter prompts in time. The pool is the best one for long prompts.
        """
        phase = self.phases[PREFILL]
        pool = int(phase.order[0])
        others = np.arange(len(phase.units)) != pool
        out = np.repeat(phase.per_rack[None], len(phase.per_rack) - 1, axis=0)
        for per_rack, first in zip(out, range(len(phase.per_rack) - 1, 0, -1), strict=True):
            per_rack[:first, pool] = math.inf
            per_rack[first:, others] = math.inf
        return out

    def relaxed(self) -> list[Phase]:
        """Return decode with the next TPOT limit above the tightest in one pool each, smallest first, then in all.

        Requests of the class with the tightest limit miss it there; those of all others do not. Empty when all classes
        have one limit.
        """
        decode = self.phases[DECODE]
        cls = self.facts.params.cls
        limits = np.unique(cls[cls[:, ClassSpec.DEFERRABLE] == 0.0, ClassSpec.TPOT_S])
        if len(limits) < 2:
            return []
        capacity = self.facts.racks[self.facts.members[DECODE]] / decode.per_rack[0]
        out = []
        for pool in np.argsort(capacity, kind="stable"):
            tpot_s = decode.tpot_s.copy()
            tpot_s[pool] = limits[1]
            out.append(decode._replace(tpot_s=tpot_s))
        if len(capacity) > 1:
            out.append(decode._replace(tpot_s=np.full(len(capacity), limits[1])))
        return out

    def model(self) -> Model:
        """Return the site for kernels."""
        facts = self.facts
        limits = [self.phases[DECODE].tpot_s, *(phase.tpot_s for phase in self.relaxed())]
        return Model(
            phases=self.phases,
            tilts=self.tilts,
            members=facts.members,
            racks=facts.racks,
            power=facts.params.power,
            site=facts.params.site,
            tpot_s=np.array(limits),
            isolated=self.isolated(),
        )

    def watts(
        self, kind: int, load: Array, share: Array, racks: Array, clock: Array, least: Array, sigmas: float = 0.0
    ) -> float:
        """Return the IT power of a phase's awake racks, W.

        Args:
            kind: PREFILL or DECODE.
            load: Load, float64[classes, G, 6].
            share: Shares, float64[G, P].
            racks: Racks awake, float64[P].
            clock: Clocks, float64[P].
            least: As in ``pool_watts``, float64[P].
            sigmas: Standard deviations by which every pool's load is higher.
        """
        one = self.work[kind].loads[0]
        return float(phase_watts(self.phases[kind], load, share, racks, clock, least, sigmas, one))

    def facility_w(self, it_w: float) -> float:
        """Return facility power for an IT power, W."""
        return float(facility_watts(self.facts.params.site, it_w))


__all__ = ["BARE_LIMITS", "Limits", "Model", "Phase", "Plant", "Work", "fill", "named_model"]
