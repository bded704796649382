"""What the operator sets, and how numbers in [-1, 1] map to it. Zero is a sensible operating point of every lever.

| lever | dimensions | mapping of a in [-1, 1] | left out |
|---|---|---|---|
| route_prefill | groups x prefill pools | weight = available capacity x exp(4 a) | capacity-proportional |
| route_decode | groups x decode pools | weight = available capacity x exp(4 a) | capacity-proportional |
| clock | pools | ceiling: -1 lowest, 0 NEUTRAL_CLOCK, 1 full, linear between | full clock |
| active_racks | pools | racks awake: -1 the pool's minimum, 0 NEUTRAL_AWAKE of them, 1 all, rounded up | all awake |

A routing weight under 1 % of its group's sum becomes 0; pools without an active rack get nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Params, PoolSpec
from ai_factory_gym.engine.simulator import Decision
from ai_factory_gym.errors import ConfigError, unknown

ROUTING_GAIN = 4.0
NEUTRAL_CLOCK = 0.75
NEUTRAL_AWAKE = 0.85

LEVERS = ("route_prefill", "route_decode", "clock", "active_racks")


def from_centre(action: Array, low: Array | float, centre: Array | float, high: Array | float) -> Array:
    """Map -1, 0, 1 to ``low``, ``centre``, ``high``, linearly between."""
    return np.where(
        action < 0.0, centre + action * (np.asarray(centre) - low), centre + action * (high - np.asarray(centre))
    )


class Span(NamedTuple):
    """The range of a lever with its centre, float64[pools] each.

    Attributes:
        centre: What 0 stands for.
        below: From there to what -1 stands for, above zero.
        above: The same to what 1 stands for.
    """

    centre: Array
    below: Array
    above: Array

    @classmethod
    def of(cls, low: Array | float, centre: Array, high: Array | float) -> Span:
        """Return the span of a lever; a side without any room is as short as can be."""
        return cls(centre, np.maximum(centre - low, 1e-12), np.maximum(high - centre, 1e-12))

    def to_centre(self, value: Array | float) -> Array:
        """Invert ``from_centre``; values outside the span are an error of the caller and map outside [-1, 1]."""
        beyond = value - self.centre
        return np.asarray(beyond / np.where(beyond < 0.0, self.below, self.above))


@dataclass(frozen=True)
class ActionLayout:
    """The action vector: which part belongs to which lever, and what it does.

    Args:
        params: Constant arrays of the site.
        levers: Names of the levers in use, each at most once.
        clock_min: Lowest clock ceiling.

    Attributes:
        slices: Lever name to slice of the action vector.
        spans: Ranges of the levers with a centre other than the middle, one entry per pool.
        size: Length of the action vector.
    """

    params: Params
    levers: tuple[str, ...]
    clock_min: float

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
        groups = self.params.capacity.shape[1]
        sizes = {
            "route_prefill": groups * int((phase == PREFILL).sum()),
            "route_decode": groups * int((phase == DECODE).sum()),
            "clock": len(phase),
            "active_racks": len(phase),
        }
        slices = {}
        begin = 0
        for name in self.levers:
            slices[name] = slice(begin, begin + sizes[name])
            begin += sizes[name]
        object.__setattr__(self, "slices", slices)
        object.__setattr__(self, "size", begin)
        racks, least = self.params.pool[:, PoolSpec.RACKS], self.params.pool[:, PoolSpec.MIN_ACTIVE]
        self.spans["clock"] = Span.of(self.clock_min, np.full(len(phase), NEUTRAL_CLOCK), 1.0)
        self.spans["active_racks"] = Span.of(least, np.maximum(NEUTRAL_AWAKE * racks, least), racks)
        object.__setattr__(self, "_members", {k: np.flatnonzero(phase == k) for k in (PREFILL, DECODE)})

    slices: dict[str, slice] = None  # type: ignore[assignment]
    spans: dict[str, Span] = field(default_factory=dict, init=False, repr=False, compare=False)
    size: int = 0

    def decide(self, action: Array) -> Decision:
        """Translate actions into decisions.

        Args:
            action: float[n, size] in [-1, 1].

        Returns:
            The decision, one entry per row.
        """
        rows = len(action)
        pool = self.params.pool
        groups = self.params.capacity.shape[1]
        bias = np.ones((rows, 2, groups, len(pool)))
        for name, phase in (("route_prefill", PREFILL), ("route_decode", DECODE)):
            if name in self.slices:
                members = self._members[phase]  # type: ignore[attr-defined]
                factor = np.exp(ROUTING_GAIN * action[:, self.slices[name]])
                bias[:, phase][:, :, members] = factor.reshape(rows, groups, len(members))
        ceiling = np.ones((rows, len(pool)))
        if "clock" in self.slices:
            ceiling[:] = from_centre(action[:, self.slices["clock"]], self.clock_min, NEUTRAL_CLOCK, 1.0)
        racks = np.broadcast_to(pool[:, PoolSpec.RACKS], ceiling.shape)
        if "active_racks" in self.slices:
            racks = self.racks_awake(action[:, self.slices["active_racks"]])
        return Decision(bias, ceiling, np.full(ceiling.shape, np.inf), racks.astype(np.int64))

    def racks_awake(self, action: Array) -> Array:
        """Return racks wanted awake for actions of the ``active_racks`` lever, same shape."""
        least, most = self.params.pool[:, PoolSpec.MIN_ACTIVE], self.params.pool[:, PoolSpec.RACKS]
        wanted = from_centre(action, least, self.spans["active_racks"].centre, most)
        return np.asarray(np.ceil(wanted - 1e-6))

    def encode(
        self,
        *,
        clock: Array | float | None = None,
        racks: Array | None = None,
        route_prefill: Array | None = None,
        route_decode: Array | None = None,
    ) -> Array:
        """Return the action that sets physical values; what is None, or whose lever is not in use, is left at zero.

        Args:
            clock: Clock ceilings per pool, or one for all.
            racks: Racks awake per pool.
            route_prefill: Routing factors (1 is capacity-proportional), [groups, prefill pools].
            route_decode: The same for decode.

        Returns:
            float32[size] in [-1, 1].
        """
        action = np.zeros(self.size)
        if clock is not None and "clock" in self.slices:
            action[self.slices["clock"]] = self.spans["clock"].to_centre(clock)
        if racks is not None and "active_racks" in self.slices:
            # Half a rack below the wanted number rounds up to it.
            aim = np.maximum(np.asarray(racks, dtype=np.float64) - 0.5, self.params.pool[:, PoolSpec.MIN_ACTIVE])
            action[self.slices["active_racks"]] = self.spans["active_racks"].to_centre(aim)
        for name, factor in (("route_prefill", route_prefill), ("route_decode", route_decode)):
            if factor is not None and name in self.slices:
                # A factor of zero has no logarithm, and is below the lever's smallest anyway.
                positive = np.maximum(np.asarray(factor, dtype=np.float64), 1e-300)
                action[self.slices[name]] = np.log(positive).reshape(-1) / ROUTING_GAIN
        return np.minimum(np.maximum(action, -1.0), 1.0).astype(np.float32)


def check_action(action: Array, shape: Sequence[int]) -> Array:
    """Return actions as float64 when every number lies in [-1, 1].

    Args:
        action: Any array-like.
        shape: Shape it must have.

    Raises:
        ConfigError: On a wrong shape, NaN or a number outside [-1, 1].
    """
    array = np.asarray(action, dtype=np.float64)
    if array.shape != tuple(shape):
        raise ConfigError(f"action: shape {array.shape} is not allowed; must be {tuple(shape)}.")
    if not (np.abs(array) <= 1.0).all():
        flat = array.reshape(-1)
        index = int(np.flatnonzero(~(np.abs(flat) <= 1.0))[0])
        raise ConfigError(
            f"action: {flat[index]!r} at index {index} is not allowed; every entry must be a number in [-1, 1]."
        )
    return array
