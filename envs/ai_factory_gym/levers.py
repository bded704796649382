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

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Params, PoolSpec
from ai_factory_gym.engine.simulator import Decision
from ai_factory_gym.errors import ConfigError, unknown
from ai_factory_gym.jit import inlined_kernel, kernel

ROUTING_GAIN = 4.0
NEUTRAL_CLOCK = 0.75
NEUTRAL_AWAKE = 0.85

LEVERS = ("route_prefill", "route_decode", "clock", "active_racks")
"""All levers; the routing of a phase stands at the phase's number."""

_CLOCK, _RACKS = LEVERS.index("clock"), LEVERS.index("active_racks")


@inlined_kernel
def from_centre(action: float, below: float, centre: float, above: float) -> float:
    """Map -1, 0, 1 to ``centre - below``, ``centre``, ``centre + above``, linearly between."""
    return centre + action * (below if action < 0.0 else above)


def to_centre(value: Array | float, below: Array | float, centre: Array | float, above: Array | float) -> Array:
    """Invert ``from_centre`` for arrays; values outside its range are an error of the caller and map outside [-1, 1]."""
    beyond = np.asarray(value, dtype=np.float64) - centre
    return np.asarray(beyond / np.maximum(np.where(beyond < 0.0, below, above), 1e-12))


@kernel
def _decide(
    action: Array,
    factor: Array,
    begins: Array,
    pool_racks: Array,
    racks_span: Array,
    clock_min: float,
    bias: Array,
    ceiling: Array,
    racks: Array,
) -> None:
    """Translate actions into decisions (see ``ActionLayout.decide``).

    Args:
        action: float64[n, size].
        factor: Routing factor each entry would stand for, float64[n, size].
        begins: Where each of ``LEVERS`` begins, -1 where it is not in use, int64[levers].
        pool_racks: int64[pools, 2], phase and racks of each pool.
        racks_span: float64[3, pools]: ``racks_below``, ``centre_racks``, ``racks_above``.
        clock_min: Lowest clock ceiling.
        bias: Written: float64[n, 2, groups, pools].
        ceiling: Written: float64[n, pools].
        racks: Written: int64[n, pools].
    """
    for row in range(action.shape[0]):
        for phase in (PREFILL, DECODE):
            column = begins[phase]
            for group in range(bias.shape[2]):
                for pool in range(bias.shape[3]):
                    bias[row, phase, group, pool] = 1.0
                    if begins[phase] >= 0 and pool_racks[pool, 0] == phase:
                        bias[row, phase, group, pool] = factor[row, column]
                        column += 1
        for pool in range(ceiling.shape[1]):
            ceiling[row, pool] = 1.0
            if begins[_CLOCK] >= 0:
                ceiling[row, pool] = from_centre(
                    action[row, begins[_CLOCK] + pool], NEUTRAL_CLOCK - clock_min, NEUTRAL_CLOCK, 1.0 - NEUTRAL_CLOCK
                )
            racks[row, pool] = pool_racks[pool, 1]
            if begins[_RACKS] >= 0:
                wanted = from_centre(
                    action[row, begins[_RACKS] + pool], racks_span[0, pool], racks_span[1, pool], racks_span[2, pool]
                )
                racks[row, pool] = int(math.ceil(wanted - 1e-6))


@dataclass(frozen=True)
class ActionLayout:
    """The action vector: which part belongs to which lever, and what it does.

    Args:
        params: Constant arrays of the site.
        levers: Names of the levers in use, each at most once.
        clock_min: Lowest clock ceiling.

    Attributes:
        slices: Lever name to slice of the action vector.
        size: Length of the action vector.
        racks: Racks per pool, int64[pools].
        centre_racks: Racks wanted awake at action 0, float64[pools].
        racks_below: How many fewer at -1.
        racks_above: How many more at 1.
    """

    params: Params = field(repr=False)
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
        object.__setattr__(self, "racks", racks.astype(np.int64))
        object.__setattr__(self, "centre_racks", np.maximum(NEUTRAL_AWAKE * racks, least))
        object.__setattr__(self, "racks_below", self.centre_racks - least)
        object.__setattr__(self, "racks_above", racks - self.centre_racks)
        # As the kernel wants them.
        object.__setattr__(self, "_begins", np.array([slices[name].start if name in slices else -1 for name in LEVERS]))
        object.__setattr__(self, "_pool_racks", np.column_stack([phase, racks]).astype(np.int64))
        object.__setattr__(self, "_racks_span", np.stack([self.racks_below, self.centre_racks, self.racks_above]))

    slices: dict[str, slice] = field(init=False)
    size: int = field(init=False)
    racks: Array = field(init=False, repr=False)
    centre_racks: Array = field(init=False, repr=False)
    racks_below: Array = field(init=False, repr=False)
    racks_above: Array = field(init=False, repr=False)
    _begins: Array = field(init=False, repr=False)
    _pool_racks: Array = field(init=False, repr=False)
    _racks_span: Array = field(init=False, repr=False)

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
        rows = len(action)
        pools = len(self.racks)
        bias = np.empty((rows, 2, self.params.capacity.shape[1], pools))
        ceiling = np.empty((rows, pools))
        racks = np.empty((rows, pools), np.int64)
        factor = np.exp(ROUTING_GAIN * action)
        _decide(action, factor, self._begins, self._pool_racks, self._racks_span, self.clock_min, bias, ceiling, racks)
        return Decision(bias, ceiling, np.full((rows, pools), np.inf), racks)

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
            below, above = NEUTRAL_CLOCK - self.clock_min, 1.0 - NEUTRAL_CLOCK
            action[self.slices["clock"]] = to_centre(clock, below, NEUTRAL_CLOCK, above)
        if racks is not None and "active_racks" in self.slices:
            # Half a rack below the wanted number rounds up to it.
            aim = np.maximum(np.asarray(racks, dtype=np.float64) - 0.5, self.params.pool[:, PoolSpec.MIN_ACTIVE])
            centred = to_centre(aim, self.racks_below, self.centre_racks, self.racks_above)
            action[self.slices["active_racks"]] = centred
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
    try:
        given = np.asarray(action)
    except ValueError:
        given = np.asarray(None)
    if given.dtype.kind not in "fiub":
        raise ConfigError(f"action: {action!r} is not allowed; must be an array of numbers of shape {tuple(shape)}.")
    array = given.astype(np.float64, copy=False)
    if array.shape != tuple(shape):
        raise ConfigError(f"action: shape {array.shape} is not allowed; must be {tuple(shape)}.")
    if not (np.abs(array) <= 1.0).all():
        flat = array.reshape(-1)
        index = int(np.flatnonzero(~(np.abs(flat) <= 1.0))[0])
        raise ConfigError(
            f"action: {float(flat[index])!r} at index {index} is not allowed; every entry must be a number in [-1, 1]."
        )
    return array
