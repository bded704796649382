"""What the operator sets, and how numbers in [-1, 1] map to it. Zero is a sensible operating point of every lever.

| lever | dimensions | mapping of a in [-1, 1] | left out |
|---|---|---|---|
| route_prefill | groups x prefill pools of the group's model | weight = available capacity x exp(4 a) | capacity-proportional |
| route_decode | groups x decode pools of the group's model | weight = available capacity x exp(4 a) | capacity-proportional |
| clock | pools | ceiling: -1 lowest, 0 NEUTRAL_CLOCK, 1 full, linear between | full clock |
| active_racks | pools | racks awake: -1 the pool's minimum, 0 NEUTRAL_AWAKE of them, 1 all, rounded up | all awake |
| power_limit | pools | most an active rack draws: -1 LEAST_LIMIT of its largest draw, linear up to 0; from 0 no limit | no limit |
| batch_ceiling | decode pools | requests per replica: -1 LEAST_BATCH of the reference batch, geometric up to 0; from 0 the pool's own | as built |
| admission | classes | -1 all turned away, linear up to 0; from 0 all let in, 1 after MOST_HELD of their patience at the gate | all, at once |
| deferral | deferrable classes | release of deferred work: -1 at its deadline, 0 by the built-in rule, 1 at once, linear | built-in rule |
| battery | 1 | power of the site's battery: -1 charges at full power, from what the cap leaves; 0 only what exceeds the cap; 1 gives all | as 0 |
| effort | classes that may be cut | output over that of full effort: -1 the least of the class, linear up to 0; from 0 all | full effort |
| training | 1 | clock of the training job: its lowest at PAUSES_BELOW, linear up to 0; below, it is to pause; from 0 its own | as 0 |
| role | pairs of pools | racks of one type in prefill: -1 fewest, 0 as built, 1 most, linear, rounded; the others in decode | as built |
| generation | units at the site | output: from 0 to 1 at least that share of its power, linear; from 0 to -1 at most 1 + a of it; off at -1 | as 0 |

Pools in the same racks (``engine.coupled``): of two orders for racks the larger holds; a power limit is for the whole rack, and the lower
of two holds; on shared GPUs so does the lower of two clock ceilings, and ``route_decode`` has no say in what was prefilled there.

Zero of ``generation`` is the built-in dispatch (``engine.generation``): a unit runs when the cap asks for it or its MWh is cheaper than the
grid's. Above zero it is started where the share reaches its least output, and gives it as far as the site and what may be exported take it;
below, it is stopped where what is left is less than that, once the site does without it. A unit that always runs at one output has no number.

A power limit is kept by the clock, which does not go below 0.2: a rack that is full of work may draw more than LEAST_LIMIT there.
The first four levers are in use by default. Zero is neutral for the others: they are then as if they were not in use.

A smaller effort makes answers of new requests shorter, and worth less (``workload.effort``): the reward counts their worth, ``good_tokens`` what
was emitted. Deferred work gets the effort of the moment in which it is released, and never waits at the gate.

A routing group is a bin of prompt lengths of the requests to one model (``ActionLayout.routes`` lists group and pool of every number).
A routing weight under 1 % of its group's sum becomes 0; pools without an active rack get nothing. Clock and power limit compose:
the lower of the two clocks is in force. The reference batch is that of ``params.reference_batch``: the largest that keeps the tightest
TPOT limit at full clock, with a margin.

A pair is a rack type that has both a prefill and a decode pool, in racks of their own; each of the two keeps its minimum of racks, and at
least one. A rack that changes its role drains, then loads the model for ``switch_s``. ``active_racks`` is a share of the racks that
``role`` gives the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ai_factory_gym.engine.layout import (
    DECODE,
    FIRST_UNIT,
    PREFILL,
    Array,
    ClassSpec,
    Gate,
    Order,
    Params,
    PoolSpec,
    SiteSpec,
    UnitSpec,
)
from ai_factory_gym.engine.simulator import Decision, no_order, open_gate
from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.params import largest_rack_w

ROUTING_GAIN = 4.0
NEUTRAL_CLOCK = 0.75
NEUTRAL_AWAKE = 0.85

LEAST_LIMIT = 0.3
"""Lowest power limit, as a share of a rack's largest draw: below 0.3 to 0.4 performance collapses (status: design choice)."""

LEAST_BATCH = 0.125
"""Lowest batch ceiling, as a share of the reference batch (status: design choice)."""

PAUSES_BELOW = -0.8
"""Below this number the lever ``training`` is the order to pause (status: design choice: a drawn number is below it one time in ten)."""

PAUSE = 2.0
"""That order among the decisions: more than the clock can be held back."""

DEFAULT_LEVERS = ("route_prefill", "route_decode", "clock", "active_racks")
"""The levers of the published tasks."""

LEVERS = (
    *DEFAULT_LEVERS,
    "power_limit",
    "batch_ceiling",
    "admission",
    "deferral",
    "effort",
    "battery",
    "role",
    "training",
    "generation",
)
"""All levers; the routing of a phase stands at the phase's number."""

_CLOCK, _RACKS, _LIMIT, _BATCH, _ADMISSION, _DEFERRAL, _EFFORT, _BATTERY, _ROLE, _TRAINING, _GENERATION = (
    LEVERS.index(name) for name in LEVERS[2:]
)


@inlined_kernel
def from_centre(action: float, below: float, centre: float, above: float) -> float:
    """Map -1, 0, 1 to ``centre - below``, ``centre``, ``centre + above``, linearly between."""
    return centre + action * (below if action < 0.0 else above)


def to_centre(value: Array | float, below: Array | float, centre: Array | float, above: Array | float) -> Array:
    """Invert ``from_centre`` for arrays; values outside its range are an error of the caller and map outside [-1, 1]."""
    beyond = np.asarray(value, dtype=np.float64) - centre
    return np.asarray(beyond / np.maximum(np.where(beyond < 0.0, below, above), 1e-12))


@inlined_kernel
def decide_row(
    action: Array,
    begins: Array,
    pool_racks: Array,
    racks_span: Array,
    most: Array,
    deferrable: Array,
    least_effort: Array,
    pairs: Array,
    clock_min: float,
    bias: Array,
    ceiling: Array,
    power_limit_w: Array,
    racks: Array,
    most_batch: Array,
    gate: Array,
    order: Array,
    own: Array,
) -> None:
    """Translate one action into a decision.

    Args:
        action: float64[size] in [-1, 1].
        begins: Where each of ``LEVERS`` begins, -1 where it is not in use, int64[levers].
        pool_racks: int64[pools, 4], of each pool: phase, racks, and the routing groups of its model, first and behind the last.
        racks_span: float64[3, pools]: ``racks_below``, ``centre_racks``, ``racks_above``.
        most: float64[3, pools]: largest draw of a rack, W; batch ceiling of the pool; lowest batch ceiling, 0 for prefill.
        deferrable: Whether work of a class may be deferred, bool[classes].
        least_effort: Smallest effort of a class, 1 where answers may not be cut, float64[classes].
        pairs: int64[pairs, 4]: prefill pool, decode pool, fewest and most racks in the prefill pool.
        clock_min: Lowest clock ceiling.
        bias: Written: float64[2, groups, pools].
        ceiling: Written: float64[pools].
        power_limit_w: Written: float64[pools].
        racks: Written: int64[pools].
        most_batch: Written: float64[pools].
        gate: Written: float64[classes, Gate].
        order: Written: float64[Order, and behind it the units that the operator decides about].
        own: Written: int64[pools], racks wanted in each pool, awake or not.
    """
    pools = ceiling.shape[0]
    for pool in range(pools):
        own[pool] = pool_racks[pool, 1]
    if begins[_ROLE] >= 0:
        for pair in range(pairs.shape[0]):
            prefill = pairs[pair, 0]
            decode = pairs[pair, 1]
            built = own[prefill]
            wanted = from_centre(
                action[begins[_ROLE] + pair], float(built - pairs[pair, 2]), float(built), float(pairs[pair, 3] - built)
            )
            own[prefill] = int(math.floor(wanted + 0.5))
            own[decode] += built - own[prefill]
    for phase in (PREFILL, DECODE):
        column = begins[phase]
        for group in range(bias.shape[1]):
            for pool in range(pools):
                bias[phase, group, pool] = 1.0
                if begins[phase] < 0 or pool_racks[pool, 0] != phase:
                    continue
                if pool_racks[pool, 2] <= group < pool_racks[pool, 3]:
                    bias[phase, group, pool] = math.exp(ROUTING_GAIN * action[column])
                    column += 1
    for pool in range(pools):
        ceiling[pool] = 1.0
        power_limit_w[pool] = math.inf
        if begins[_CLOCK] >= 0:
            ceiling[pool] = from_centre(
                action[begins[_CLOCK] + pool], NEUTRAL_CLOCK - clock_min, NEUTRAL_CLOCK, 1.0 - NEUTRAL_CLOCK
            )
        racks[pool] = own[pool]
        if begins[_RACKS] >= 0:
            below, centre, above = racks_span[0, pool], racks_span[1, pool], racks_span[2, pool]
            if own[pool] != pool_racks[pool, 1]:
                least = centre - below
                centre = max(NEUTRAL_AWAKE * own[pool], least)
                below = centre - least
                above = own[pool] - centre
            wanted = from_centre(action[begins[_RACKS] + pool], below, centre, above)
            racks[pool] = int(math.ceil(wanted - 1e-6))
        if begins[_LIMIT] >= 0 and action[begins[_LIMIT] + pool] < 0.0:
            power_limit_w[pool] = most[0, pool] * (1.0 + (1.0 - LEAST_LIMIT) * action[begins[_LIMIT] + pool])
    place = begins[_BATCH]
    for pool in range(pools):
        most_batch[pool] = most[1, pool]
        if begins[_BATCH] >= 0 and pool_racks[pool, 0] == DECODE:
            if action[place] < 0.0:
                most_batch[pool] = max(
                    1.0, math.floor(most[1, pool] * (most[2, pool] / most[1, pool]) ** -action[place])
                )
            place += 1
    place = begins[_DEFERRAL]
    for cls in range(gate.shape[0]):
        gate[cls, Gate.ADMITTED] = 1.0
        gate[cls, Gate.DELAY] = 0.0
        gate[cls, Gate.RELEASE] = 0.0
        if begins[_ADMISSION] >= 0:
            gate[cls, Gate.ADMITTED] = min(1.0, 1.0 + action[begins[_ADMISSION] + cls])
            gate[cls, Gate.DELAY] = max(0.0, action[begins[_ADMISSION] + cls])
        if begins[_DEFERRAL] >= 0 and deferrable[cls]:
            gate[cls, Gate.RELEASE] = action[place]
            place += 1
    order[Order.BATTERY] = action[begins[_BATTERY]] if begins[_BATTERY] >= 0 else 0.0
    order[Order.TRAINING] = 0.0
    if begins[_TRAINING] >= 0 and action[begins[_TRAINING]] < 0.0:
        wanted = action[begins[_TRAINING]] / PAUSES_BELOW
        # A float32 may lie a little below.
        order[Order.TRAINING] = PAUSE if wanted > 1.0 + 1e-6 else min(1.0, wanted)
    for place in range(order.shape[0] - FIRST_UNIT):
        order[FIRST_UNIT + place] = action[begins[_GENERATION] + place] if begins[_GENERATION] >= 0 else 0.0
    place = begins[_EFFORT]
    for cls in range(gate.shape[0]):
        gate[cls, Gate.EFFORT] = 1.0
        if begins[_EFFORT] >= 0 and least_effort[cls] < 1.0:
            gate[cls, Gate.EFFORT] = 1.0 + min(0.0, action[place]) * (1.0 - least_effort[cls])
            place += 1


@kernel
def _decide_rows(
    action: Array,
    lever_arrays: tuple[Array, ...],
    clock_min: float,
    bias: Array,
    ceiling: Array,
    power_limit_w: Array,
    racks: Array,
    most_batch: Array,
    gate: Array,
    order: Array,
    own: Array,
) -> None:
    """Translate actions, float64[n, size], into decisions, one entry per row (see ``decide_row``)."""
    begins, pool_racks, racks_span, most, deferrable, least_effort, pairs = lever_arrays
    for row in range(action.shape[0]):
        decide_row(
            action[row],
            begins,
            pool_racks,
            racks_span,
            most,
            deferrable,
            least_effort,
            pairs,
            clock_min,
            bias[row],
            ceiling[row],
            power_limit_w[row],
            racks[row],
            most_batch[row],
            gate[row],
            order[row],
            own[row],
        )


def pairs_of(params: Params) -> Array:
    """Return the pairs of pools whose racks may change their role, int64[pairs, 4]: prefill pool, decode pool, fewest and most in prefill."""
    least = np.maximum(1.0, params.pool[:, PoolSpec.MIN_ACTIVE])
    racks = params.pool[:, PoolSpec.RACKS]
    rows = []
    for prefill, decode in enumerate(params.pool[:, PoolSpec.SIBLING].astype(np.int64)):
        if decode >= 0 and params.pool[prefill, PoolSpec.PHASE] == PREFILL:
            rows.append([prefill, decode, least[prefill], racks[prefill] + racks[decode] - least[decode]])
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def no_decision(rows: int, params: Params) -> Decision:
    """Return room for the decisions of rows."""
    groups, pools = params.capacity.shape[1:]
    return Decision(
        bias=np.ones((rows, 2, groups, pools)),
        ceiling=np.ones((rows, pools)),
        power_limit_w=np.full((rows, pools), np.inf),
        racks=np.zeros((rows, pools), np.int64),
        most_batch=np.tile(params.pool[:, PoolSpec.MAX_BATCH], (rows, 1)),
        gate=open_gate(rows, len(params.cls)),
        order=no_order(rows, params),
        own=np.tile(params.pool[:, PoolSpec.RACKS].astype(np.int64), (rows, 1)),
    )


@dataclass(frozen=True)
class ActionLayout:
    """The action vector: which part belongs to which lever, and what it does.

    Args:
        params: Constant arrays of the site.
        levers: Names of the levers in use, each at most once.
        clock_min: Lowest clock ceiling.
        reference_batch: Batch per decode replica that ``batch_ceiling`` refers to, float64[pools].

    Attributes:
        slices: Lever name to slice of the action vector.
        size: Length of the action vector.
        routes: By phase: routing group and pool of each number of its routing lever, int64[numbers, 2]; with one model every group with
            every pool of the phase, group by group.
        racks: Racks per pool, int64[pools].
        centre_racks: Racks wanted awake at action 0, float64[pools].
        racks_below: How many fewer at -1.
        racks_above: How many more at 1.
        rack_w: Largest draw of a rack, W, float64[pools]; pools in the same racks have the whole rack's.
        pairs: Prefill pool, decode pool, fewest and most racks in the prefill pool of each pair, int64[pairs, 4].
        arrays: Begins, phases and racks, the span of racks, the largest settings, who is deferrable, the least efforts, and the pairs,
            as ``decide_row`` wants them.
    """

    params: Params = field(repr=False)
    levers: tuple[str, ...]
    clock_min: float
    reference_batch: Array = field(repr=False)

    def __post_init__(self) -> None:
        """Lay the levers out one after the other; refuse unknown or repeated ones (ConfigError)."""
        for name in self.levers:
            if name not in LEVERS:
                raise unknown("levers", name, LEVERS)
            if self.levers.count(name) > 1:
                raise ConfigError(f"levers: {name!r} is given twice; each lever may be given once.")
        if not self.levers:
            raise ConfigError(f"levers: none given; choose from {', '.join(LEVERS)}.")
        phase = self.params.pool[:, PoolSpec.PHASE]
        bins = len(self.params.group_edges) + 1
        first_group = bins * self.params.pool[:, PoolSpec.MODEL]
        groups = np.arange(self.params.capacity.shape[1])[:, None]
        routed = (first_group <= groups) & (groups < first_group + bins)
        routes = tuple(np.argwhere(routed & (phase == kind)) for kind in (PREFILL, DECODE))
        object.__setattr__(self, "routes", routes)
        deferrable = self.params.cls[:, ClassSpec.DEFERRABLE] > 0.0
        least_effort = self.params.cls[:, ClassSpec.EFFORT_LEAST].copy()
        sizes = {
            "route_prefill": len(routes[PREFILL]),
            "route_decode": len(routes[DECODE]),
            "clock": len(phase),
            "active_racks": len(phase),
            "power_limit": len(phase),
            "batch_ceiling": int((phase == DECODE).sum()),
            "admission": len(self.params.cls),
            "deferral": int(deferrable.sum()),
            "effort": int((least_effort < 1.0).sum()),
            "battery": 1,
            "role": len(pairs_of(self.params)),
            "training": 1,
            "generation": int((self.params.unit[:, UnitSpec.LEVER] >= 0.0).sum()),
        }
        if "battery" in self.levers and self.params.site[SiteSpec.BATTERY_W] <= 0.0:
            raise ConfigError(
                "levers: 'battery' is not possible: the site has none; give it a [battery] table with power_w and energy_wh."
            )
        if "training" in self.levers and self.params.site[SiteSpec.TRAIN_RACKS] <= 0.0:
            raise ConfigError(
                "levers: 'training' is not possible: there is no training block; give the site a [training] table with rack and racks, or choose "
                "the scenario 'training_block'."
            )
        if "generation" in self.levers and not sizes["generation"]:
            raise ConfigError(
                "levers: 'generation' is not possible: the site has no unit to decide about; give it a [[generation]] table with a kind (engine, "
                "turbine) and power_w."
            )
        if "effort" in self.levers and not sizes["effort"]:
            raise ConfigError(
                "levers: 'effort' is not possible: no class of this site has an [effort] table, which says how far its answers may be cut; "
                "leave the lever out, or choose a mix with reasoning."
            )
        if "deferral" in self.levers and not deferrable.any():
            raise ConfigError(
                "levers: 'deferral' is not possible: no class of this site and scenario is deferrable; leave the lever out, or "
                "choose a scenario and a mix with deferrable work."
            )
        if "role" in self.levers and not sizes["role"]:
            raise ConfigError(
                "levers: 'role' is not possible: no rack type of this site has both a prefill and a decode pool; leave the lever out, or "
                "give a rack type pools of both phases (racks of their own, with one power profile and limit)."
            )
        slices = {}
        begin = 0
        for name in self.levers:
            slices[name] = slice(begin, begin + sizes[name])
            begin += sizes[name]
        object.__setattr__(self, "slices", slices)
        object.__setattr__(self, "size", begin)
        racks, least = self.params.pool[:, PoolSpec.RACKS], self.params.pool[:, PoolSpec.MIN_ACTIVE]
        object.__setattr__(self, "racks", racks.astype(np.int64))
        object.__setattr__(self, "centre_racks", np.maximum(NEUTRAL_AWAKE * racks, least))
        object.__setattr__(self, "racks_below", self.centre_racks - least)
        object.__setattr__(self, "racks_above", racks - self.centre_racks)
        object.__setattr__(self, "rack_w", largest_rack_w(self.params.power, self.params.pool))
        largest = self.params.pool[:, PoolSpec.MAX_BATCH]
        least = np.minimum(largest, np.maximum(1.0, LEAST_BATCH * self.reference_batch))
        object.__setattr__(self, "pairs", pairs_of(self.params))
        object.__setattr__(
            self,
            "arrays",
            (
                np.array([slices[name].start if name in slices else -1 for name in LEVERS]),
                np.column_stack([phase, racks, first_group, first_group + bins]).astype(np.int64),
                np.stack([self.racks_below, self.centre_racks, self.racks_above]),
                np.stack([self.rack_w, largest, least]),
                deferrable,
                least_effort,
                self.pairs,
            ),
        )

    slices: dict[str, slice] = field(init=False)
    routes: tuple[Array, Array] = field(init=False, repr=False)
    size: int = field(init=False)
    racks: Array = field(init=False, repr=False)
    centre_racks: Array = field(init=False, repr=False)
    racks_below: Array = field(init=False, repr=False)
    racks_above: Array = field(init=False, repr=False)
    rack_w: Array = field(init=False, repr=False)
    pairs: Array = field(init=False, repr=False)
    arrays: tuple[Array, ...] = field(init=False, repr=False)

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the levers in use, in order."""
        return iter(self.slices)

    def __len__(self) -> int:
        """Return how many levers are in use; ``size`` is the length of the action vector."""
        return len(self.slices)

    def __contains__(self, lever: object) -> bool:
        """Tell whether a lever is in use."""
        return lever in self.slices

    def __getitem__(self, lever: str) -> slice:
        """Return where a lever lies.

        Raises:
            ConfigError: When it is not in use.
        """
        if lever not in self.slices:
            raise unknown("action_layout", lever, self.slices)
        return self.slices[lever]

    def decide(self, action: Array) -> Decision:
        """Translate actions into decisions.

        Args:
            action: float[n, size] in [-1, 1].

        Returns:
            The decision, one entry per row.
        """
        decision = no_decision(len(action), self.params)
        assert decision.most_batch is not None and decision.gate is not None
        assert decision.order is not None and decision.own is not None
        given = np.asarray(action, dtype=np.float64)
        _decide_rows(
            given,
            self.arrays,
            self.clock_min,
            decision.bias,
            decision.ceiling,
            decision.power_limit_w,
            decision.racks,
            decision.most_batch,
            decision.gate,
            decision.order,
            decision.own,
        )
        return decision

    def encode(
        self,
        *,
        clock: Array | float | None = None,
        racks: Array | None = None,
        route_prefill: Array | None = None,
        route_decode: Array | None = None,
        power_limit_w: Array | float | None = None,
        most_batch: Array | float | None = None,
        admitted: Array | float | None = None,
        held: Array | float | None = None,
        release: Array | float | None = None,
        effort: Array | float | None = None,
        battery: float | None = None,
        role: Array | int | None = None,
        training: float | None = None,
        generation: Array | float | None = None,
    ) -> Array:
        """Return the action that sets physical values; what is None, or whose lever is not in use, is left at zero.

        Args:
            clock: Clock ceilings per pool, or one for all.
            racks: Racks awake per pool, of those that ``role`` gives it.
            route_prefill: Routing factors (1 is capacity-proportional), [groups, prefill pools]; those of a group and a pool of another
                model have no place in the action and are left out.
            route_decode: The same for decode.
            power_limit_w: Most an active rack of each pool may draw, W, inf for no limit, or one for all.
            most_batch: Most requests per replica of each decode pool, or one for all.
            admitted: Share of the arrivals of each class that is let in, or one for all.
            held: Time at the gate of each class over the longest there is, where all arrivals are let in, or one for all.
            release: Hand on the deferred work of each deferrable class, as the lever's own number, or one for all.
            effort: Output over that of full effort of each class that may be cut, or one for all.
            battery: Share of its power that the battery is to give, negative to take.
            role: Racks of each pair that are to be in its prefill pool, or one number for all pairs.
            training: Clock of the training job; 0 is to pause.
            generation: The lever's own number of each unit that there is a decision about, or one for all.

        Returns:
            float32[size] in [-1, 1].
        """
        action = np.zeros(self.size)
        own = self.racks.astype(np.float64)
        if role is not None and "role" in self.slices:
            prefill, decode, fewest, most = self.pairs.T
            wanted = np.clip(np.broadcast_to(role, prefill.shape), fewest, most)
            built = own[prefill]
            action[self.slices["role"]] = to_centre(wanted, built - fewest, built, most - built)
            own[prefill], own[decode] = wanted, built + own[decode] - wanted
        if clock is not None and "clock" in self.slices:
            below, above = NEUTRAL_CLOCK - self.clock_min, 1.0 - NEUTRAL_CLOCK
            action[self.slices["clock"]] = to_centre(clock, below, NEUTRAL_CLOCK, above)
        if racks is not None and "active_racks" in self.slices:
            # Half a rack below the wanted number rounds up to it.
            least = self.params.pool[:, PoolSpec.MIN_ACTIVE]
            aim = np.maximum(np.asarray(racks, dtype=np.float64) - 0.5, least)
            centre = np.maximum(NEUTRAL_AWAKE * own, least)
            action[self.slices["active_racks"]] = to_centre(aim, centre - least, centre, own - centre)
        for kind, name, factor in ((PREFILL, "route_prefill", route_prefill), (DECODE, "route_decode", route_decode)):
            if factor is not None and name in self.slices:
                members = np.flatnonzero(self.params.pool[:, PoolSpec.PHASE] == kind)
                group, pool = self.routes[kind].T
                shape = (self.params.capacity.shape[1], len(members))
                wanted = np.asarray(factor, dtype=np.float64).reshape(shape)[group, np.searchsorted(members, pool)]
                # A factor of zero has no logarithm, and is below the lever's smallest anyway.
                action[self.slices[name]] = np.log(np.maximum(wanted, 1e-300)) / ROUTING_GAIN
        largest_settings, least_effort = self.arrays[3], self.arrays[5]
        if power_limit_w is not None and "power_limit" in self.slices:
            share = np.minimum(np.broadcast_to(power_limit_w, self.rack_w.shape) / self.rack_w, 1.0)
            action[self.slices["power_limit"]] = (share - 1.0) / (1.0 - LEAST_LIMIT)
        if most_batch is not None and "batch_ceiling" in self.slices:
            decode = self.params.pool[:, PoolSpec.PHASE] == DECODE
            largest, least = largest_settings[1, decode], largest_settings[2, decode]
            # A little more than the wanted number is rounded down to it.
            wanted = np.clip(np.broadcast_to(most_batch, largest.shape) + 1e-3, 1.0, largest)
            action[self.slices["batch_ceiling"]] = -np.log(wanted / largest) / np.minimum(
                np.log(least / largest), -1e-12
            )
        if admitted is not None and "admission" in self.slices:
            action[self.slices["admission"]] = np.asarray(admitted, dtype=np.float64) - 1.0
        if held is not None and "admission" in self.slices:
            gate = action[self.slices["admission"]]
            action[self.slices["admission"]] = np.where(gate < 0.0, gate, held)
        if release is not None and "deferral" in self.slices:
            action[self.slices["deferral"]] = release
        if battery is not None and "battery" in self.slices:
            action[self.slices["battery"]] = battery
        if training is not None and "training" in self.slices:
            own, least = self.params.site[[SiteSpec.TRAIN_CLOCK, SiteSpec.TRAIN_LEAST_CLOCK]]
            lowered = (own - training) / max(own - least, 1e-12)
            action[self.slices["training"]] = -1.0 if training <= 0.0 else PAUSES_BELOW * min(1.0, max(0.0, lowered))
        if generation is not None and "generation" in self.slices:
            action[self.slices["generation"]] = generation
        if effort is not None and "effort" in self.slices:
            least = least_effort[least_effort < 1.0]
            action[self.slices["effort"]] = (np.broadcast_to(effort, least.shape) - 1.0) / (1.0 - least)
        return np.minimum(np.maximum(action, -1.0), 1.0).astype(np.float32)


def as_actions(action: Any, shape: Sequence[int]) -> Array:
    """Return actions as a float64 array of the given shape; what is in it is for the caller to check.

    Args:
        action: Any array-like of numbers.
        shape: Shape it must have.

    Raises:
        ConfigError: On a wrong shape, or what is no number.
    """
    try:
        given = np.asarray(action)
    except ValueError:
        given = np.asarray(None)
    if given.dtype.kind not in "fiub":
        raise ConfigError(f"action: {action!r} is not allowed; must be an array of numbers of shape {tuple(shape)}.")
    if given.shape != tuple(shape):
        raise ConfigError(f"action: shape {given.shape} is not allowed; must be {tuple(shape)}.")
    return given.astype(np.float64)


def refuse_actions(actions: Array) -> None:
    """Raise for the first number that does not lie in [-1, 1], if there is one (ConfigError)."""
    beyond = np.argwhere(~(np.abs(actions) <= 1.0))
    if len(beyond):
        *row, index = beyond[0].tolist()
        value = float(actions[(*row, index)])
        # As it was given: a float32 has fewer digits than the number it is taken for.
        shown = str(np.float32(value)) if np.float32(value) == value else repr(value)
        where = f"index {index}" if not row else f"row {row[0]}, index {index}"
        raise ConfigError(f"action: {shown} at {where} is not allowed; every entry must be a number in [-1, 1].")
