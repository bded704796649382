"""What every rule shares: the public facts of a site, the observation in physical units, and ``predict``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Params, PoolSpec
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.levers import LEVERS, NEUTRAL_CLOCK, ROUTING_GAIN, ActionLayout
from ai_factory_gym.observation import BLOCKS, DURATION_SCALE_S, NOTICE_SCALE_S, ObservationLayout

PHASES = (PREFILL, DECODE)

PREFILL_QUEUE_SCALE = 100.0
WAIT_SCALE_S = 10.0
QUEUED_SCALE_S = 10.0

CLOCK_LEVER, RACKS_LEVER = LEVERS.index("clock"), LEVERS.index("active_racks")

STARVED = 1e-6
"""Routing factor of a pool that is to get nothing; the lever's smallest factor, far below its 1 % threshold."""

FAVOURED = float(np.exp(ROUTING_GAIN))
"""The lever's largest factor."""

POOL_BLOCKS = tuple(name for name, length, _ in BLOCKS if length == "pools")
"""Blocks with a number per pool: they lie side by side in the observation and are read as one table."""

BUSY, BATCH, KV, WAIT, TPOT, CLOCK = (
    POOL_BLOCKS.index(f"pool_{name}") for name in ("busy", "batch", "kv", "wait", "tpot", "clock")
)
ACTIVE, WAKING, DRAINING, ASLEEP = (
    POOL_BLOCKS.index(f"pool_{name}") for name in ("active", "waking", "draining", "asleep")
)
"""Rows of that table; the second four count racks."""

CAP_W, NEXT_CAP_W, NEXT_CAP_S, NEXT_CAP_DURATION_S, POWER_W, BRAKED = range(6)
RATE, QUEUED, SLACK, TTFT_SHARE = range(4)
"""What ``Seen`` says of the site and of each class."""

READ_BLOCKS = (
    "cap",
    "cap_announced",
    "power",
    "brake",
    POOL_BLOCKS[0],
    "class_rate",
    "class_queued",
    "class_slack",
    "queue_wait",
)
"""Blocks that are read, the pool blocks by their first."""

RESERVE = 5
"""Place in the block ``training`` of what the training block may come to draw: a rule that plans to the cap leaves it that much."""


@dataclass(frozen=True)
class Facts:
    """What an operator knows about the site before the day begins.

    Attributes:
        params: Constant arrays of the site.
        observation: Where each block of the observation lies, and its scale.
        action: Where each lever lies in the action.
        members: Pools of each phase, by phase.
        capacity: Capacity of a rack of each pool of a phase per group, by phase, float64[groups, pools of the phase].
        racks: Racks of each pool, float64[pools].
        pool_scale: What the pool blocks of an observation are multiplied with, float64[blocks, pools].
        reading: How an observation is read.
        control_interval_s: Length of a control step.
        clock_min: Lowest clock ceiling.
        sigma: Standard deviation of the logarithm of each class's minute-scale demand, float64[classes].
        tau_s: Its correlation time, float64[classes].
    """

    params: Params
    observation: ObservationLayout
    action: ActionLayout
    members: tuple[Array, Array]
    capacity: tuple[Array, Array]
    racks: Array
    pool_scale: Array
    reading: Reading
    control_interval_s: float
    clock_min: float
    sigma: Array
    tau_s: Array

    @classmethod
    def of(cls, env: Any) -> Facts:
        """Read the facts of an environment, wrapped or not, single or vector.

        Raises:
            ConfigError: When it is not an environment of this package.
        """
        inner = getattr(env, "unwrapped", env)
        if not hasattr(inner, "factory") or not hasattr(inner, "action_layout"):
            raise ConfigError(f"env: {env!r} is not allowed; must be an environment of ai_factory_gym.")
        return cls.build(
            inner.factory.params,
            inner.observation_layout,
            inner.action_layout,
            control_interval_s=float(inner.task.control_interval_s),
            sigma=np.array([cls.demand.overdispersion_sigma for cls in inner.classes]),
            tau_s=np.array([cls.demand.overdispersion_tau_s for cls in inner.classes]),
        )

    @classmethod
    def build(
        cls,
        params: Params,
        layout: ObservationLayout,
        action: ActionLayout,
        *,
        control_interval_s: float,
        sigma: Array,
        tau_s: Array,
    ) -> Facts:
        """Return the facts that follow from a site's arrays and layouts; arguments as the attributes."""
        phase = params.pool[:, PoolSpec.PHASE]
        members = np.flatnonzero(phase == PREFILL), np.flatnonzero(phase == DECODE)
        prefill, decode = (np.ascontiguousarray(params.capacity[k][:, members[k]]) for k in PHASES)
        racks = params.pool[:, PoolSpec.RACKS].copy()
        scale = pool_scale(layout, phase == PREFILL, racks)
        supply = layout.slices["supply"].start if "supply" in layout.slices else -1
        begins = np.array([*(layout.slices[name].start for name in READ_BLOCKS), supply])
        return cls(
            params=params,
            observation=layout,
            action=action,
            members=members,
            capacity=(prefill, decode),
            racks=racks,
            pool_scale=scale,
            reading=Reading(begins, scale, layout.class_rate, layout.base_cap_w, reserve_place(layout)),
            control_interval_s=control_interval_s,
            clock_min=action.clock_min,
            sigma=sigma,
            tau_s=tau_s,
        )

    @property
    def models(self) -> int:
        """How many models the site serves."""
        return int(self.params.pool[:, PoolSpec.MODEL].max()) + 1


def reserve_place(layout: ObservationLayout) -> int:
    """Return where an observation has what the training block may come to draw, over the base cap; -1 without a block."""
    return layout.slices["training"].start + RESERVE if "training" in layout.slices else -1


def pool_scale(layout: ObservationLayout, prefill: Array, racks: Array) -> Array:
    """Return what the pool blocks of an observation are multiplied with, float64[blocks, pools].

    Args:
        layout: The observation.
        prefill: Whether a pool is of prefill, bool[pools].
        racks: Racks of each pool, float64[pools].
    """
    scales: dict[str, Array | float] = {
        "pool_batch": np.where(prefill, PREFILL_QUEUE_SCALE, layout.pool_batch),
        "pool_wait": WAIT_SCALE_S,
        "pool_tpot": layout.tpot_s,
        "pool_active": racks,
        "pool_waking": racks,
        "pool_draining": racks,
        "pool_asleep": racks,
    }
    return np.array([np.broadcast_to(scales.get(name, 1.0), racks.shape) for name in POOL_BLOCKS])


class View(NamedTuple):
    """One observation in physical units. Pool arrays have one entry per pool, class arrays one per class.

    Attributes:
        cap_w: What the pools and their cooling may draw: the cap in force and what the site's own units that run can give, less what a
            training block may come to draw.
        next_cap_w: The same after the change announced next, with the units that start now; as ``cap_w`` when none is.
        next_cap_s: Time until it; inf when none is announced.
        next_cap_duration_s: How long it lasts (up to ten times four hours is seen).
        power_w: Facility power over the last step.
        braked: Whether the brake is engaged.
        busy: Share of awake time in which racks ran.
        batch: Decode: requests in flight per replica; prefill: requests in the queue per rack.
        kv: KV memory reserved / capacity.
        wait_s: Predicted wait.
        tpot_s: Time per output token; 0 for prefill.
        clock: Mean clock over the last step.
        active: Racks active.
        waking: Racks waking.
        draining: Racks draining.
        asleep: Racks asleep.
        rate: Arrivals per second over the last step.
        queued: Requests without a first token, per class.
        slack: Recent attainment above target.
        ttft_share: Mean TTFT of the last step over the limit of an average prompt.
    """

    cap_w: float
    next_cap_w: float
    next_cap_s: float
    next_cap_duration_s: float
    power_w: float
    braked: bool
    busy: Array
    batch: Array
    kv: Array
    wait_s: Array
    tpot_s: Array
    clock: Array
    active: Array
    waking: Array
    draining: Array
    asleep: Array
    rate: Array
    queued: Array
    slack: Array
    ttft_share: Array


class Reading(NamedTuple):
    """Where the numbers of an observation lie and what they are multiplied with.

    Attributes:
        begins: Where each of ``READ_BLOCKS`` begins, and the block ``supply`` (-1 where there is none), int64[blocks + 1].
        pool_scale: ``Facts.pool_scale``.
        class_rate: Mean demand of each class, requests per second, float64[classes].
        base_cap_w: Cap without curtailment.
        reserve: ``reserve_place`` of the observation.
    """

    begins: Array
    pool_scale: Array
    class_rate: Array
    base_cap_w: float
    reserve: int


class Seen(NamedTuple):
    """One observation in physical units, in tables: what ``View`` names, for kernels.

    Attributes:
        site: Numbers of the site, ``CAP_W`` to ``BRAKED``, float64[6].
        pools: Pool blocks, rows as in ``POOL_BLOCKS``, float64[blocks, pools].
        classes: Numbers of the classes, ``RATE`` to ``TTFT_SHARE``, float64[4, classes].
    """

    site: Array
    pools: Array
    classes: Array

    @classmethod
    def of(cls, facts: Facts) -> Seen:
        """Return tables for the observations of a site."""
        classes = len(facts.observation.class_rate)
        return cls(np.zeros(BRAKED + 1), np.zeros(facts.pool_scale.shape), np.zeros((TTFT_SHARE + 1, classes)))


@kernel
def read(reading: Reading, observation: Array, seen: Seen) -> None:
    """Read one observation (float64[size]) into ``seen``."""
    cap, announced, power, brake, pools, rate, queued, slack, ttft, supply = reading.begins
    site = seen.site
    reserve_w = observation[reading.reserve] * reading.base_cap_w if reading.reserve >= 0 else 0.0
    running, coming = 0.0, 0.0
    if supply >= 0:
        # What the site's own units give is as good as cap.
        running, coming = observation[supply], observation[supply + 1]
    site[CAP_W] = (observation[cap] + running) * reading.base_cap_w - reserve_w
    site[NEXT_CAP_W], site[NEXT_CAP_S], site[NEXT_CAP_DURATION_S] = site[CAP_W], math.inf, 0.0
    if observation[announced] > 0.5:
        site[NEXT_CAP_S] = observation[announced + 1] * NOTICE_SCALE_S
        site[NEXT_CAP_W] = (observation[announced + 2] + coming) * reading.base_cap_w - reserve_w
        site[NEXT_CAP_DURATION_S] = observation[announced + 3] * DURATION_SCALE_S
    site[POWER_W] = observation[power] * reading.base_cap_w
    site[BRAKED] = 1.0 if observation[brake] > 0.5 else 0.0
    for block in range(seen.pools.shape[0]):
        for pool in range(seen.pools.shape[1]):
            number = observation[pools] * reading.pool_scale[block, pool]
            counted = block == ACTIVE or block == WAKING or block == DRAINING or block == ASLEEP
            seen.pools[block, pool] = np.rint(number) if counted else number
            pools += 1
    for cls in range(seen.classes.shape[1]):
        seen.classes[RATE, cls] = observation[rate + cls] * reading.class_rate[cls]
        seen.classes[QUEUED, cls] = observation[queued + cls] * reading.class_rate[cls] * QUEUED_SCALE_S
        seen.classes[SLACK, cls] = observation[slack + cls] / 10.0
        seen.classes[TTFT_SHARE, cls] = observation[ttft + cls]


def view(facts: Facts, observation: Array) -> View:
    """Read one observation (float[size])."""
    seen = Seen.of(facts)
    read(facts.reading, np.asarray(observation, dtype=np.float64), seen)
    site, pools, classes = seen.site.tolist(), seen.pools, seen.classes
    return View(
        cap_w=site[CAP_W],
        next_cap_w=site[NEXT_CAP_W],
        next_cap_s=site[NEXT_CAP_S],
        next_cap_duration_s=site[NEXT_CAP_DURATION_S],
        power_w=site[POWER_W],
        braked=site[BRAKED] > 0.0,
        busy=pools[BUSY],
        batch=pools[BATCH],
        kv=pools[KV],
        wait_s=pools[WAIT],
        tpot_s=pools[TPOT],
        clock=pools[CLOCK],
        active=pools[ACTIVE],
        waking=pools[WAKING],
        draining=pools[DRAINING],
        asleep=pools[ASLEEP],
        rate=classes[RATE],
        queued=classes[QUEUED],
        slack=classes[SLACK],
        ttft_share=classes[TTFT_SHARE],
    )


@kernel
def write_factors(
    capacity: Array, share: Array, members: Array, active: Array, clock: Array, clocked: bool, factors: Array
) -> None:
    """Write the factors of ``routing_factors``; ``clocked`` says whether capacity counts at the clock ceiling."""
    for group in range(factors.shape[0]):
        largest = 0.0
        for place in range(factors.shape[1]):
            pool = members[place]
            available = capacity[group, place] * active[pool]
            if clocked:
                available *= clock[pool]
            factor = 0.0
            if available > 0.0 and share[group, place] > 0.0:
                factor = share[group, place] / max(available, 1e-300)
            factors[group, place] = factor
            largest = max(largest, factor)
        for place in range(factors.shape[1]):
            # Where no wanted pool is available the site decides: all factors equal.
            relative = max(factors[group, place] / max(largest, 1e-300), STARVED) if largest > 0.0 else 1.0
            factors[group, place] = relative * FAVOURED


def routing_factors(facts: Facts, phase: int, share: Array, active: Array, clock: Array) -> Array:
    """Return the routing factors that give each pool its share.

    The site weighs a pool with its active capacity, for prefill at its clock ceiling, times the factor.

    Args:
        facts: The site.
        phase: PREFILL or DECODE.
        share: Wanted shares, float64[groups, pools of the phase].
        active: Racks active, float64[pools].
        clock: Clock ceilings, float64[pools].

    Returns:
        float64[groups, pools of the phase], the largest of each group at the lever's upper end.
    """
    capacity = facts.capacity[phase]
    factors = np.empty(capacity.shape)
    write_factors(capacity, share, facts.members[phase], active, clock, phase == PREFILL, factors)
    return factors


class Levers(NamedTuple):
    """Where each lever lies in the action and what its ends mean.

    Attributes:
        begins: Where each of ``levers.LEVERS`` begins, -1 where it is not in use, int64[levers].
        racks_span: Racks between the centre and -1, at the centre, and between the centre and 1, float64[3, pools].
        least: Fewest racks awake, float64[pools].
        clock_min: Lowest clock ceiling.
        capacity: ``Facts.capacity``, which routing factors are relative to.
    """

    begins: Array
    racks_span: Array
    least: Array
    clock_min: float
    capacity: tuple[Array, Array]

    @classmethod
    def of(cls, facts: Facts) -> Levers:
        """Return the levers of a site."""
        begins, _, racks_span, *_ = facts.action.arrays
        least = facts.params.pool[:, PoolSpec.MIN_ACTIVE].copy()
        return cls(begins, racks_span, least, facts.action.clock_min, facts.capacity)


@inlined_kernel
def _to_centre(value: float, below: float, centre: float, above: float) -> float:
    """Invert ``levers.from_centre``, within [-1, 1]."""
    beyond = value - centre
    return min(max(beyond / max(below if beyond < 0.0 else above, 1e-12), -1.0), 1.0)


@kernel
def write_levers(levers: Levers, clock: Array, racks: Array, action: Array) -> None:
    """Write clocks and racks, float64[pools], into an action: as ``ActionLayout.encode``."""
    clock_begin, racks_begin = levers.begins[CLOCK_LEVER], levers.begins[RACKS_LEVER]
    for pool in range(clock.shape[0]):
        if clock_begin >= 0:
            below, above = NEUTRAL_CLOCK - levers.clock_min, 1.0 - NEUTRAL_CLOCK
            action[clock_begin + pool] = _to_centre(clock[pool], below, NEUTRAL_CLOCK, above)
        if racks_begin >= 0:
            below, centre, above = levers.racks_span[0, pool], levers.racks_span[1, pool], levers.racks_span[2, pool]
            # Half a rack below the wanted number rounds up to it.
            aim = max(racks[pool] - 0.5, levers.least[pool])
            action[racks_begin + pool] = _to_centre(aim, below, centre, above)


@kernel
def write_routing(levers: Levers, phase: int, factors: Array, action: Array) -> None:
    """Write the routing factors of a phase, float64[groups, pools of the phase], into an action: likewise."""
    begin = levers.begins[phase]
    if begin < 0:
        return
    for group in range(factors.shape[0]):
        for place in range(factors.shape[1]):
            exponent = math.log(max(factors[group, place], 1e-300)) / ROUTING_GAIN
            action[begin + group * factors.shape[1] + place] = min(max(exponent, -1.0), 1.0)


def unnamed(value: Any) -> Any:
    """Return nested tuples without their names: numba takes them over several times faster, and kernels name them again."""
    return tuple(unnamed(part) for part in value) if isinstance(value, tuple) else value


class Rule(ABC):
    """A policy made of rules: reads one observation, returns one action, remembers nothing but its ``state``.

    Args:
        env: The environment it is to act in, single or vector, or the facts of one.
    """

    name: ClassVar[str]

    def __init__(self, env: Any) -> None:
        """Read the site's facts."""
        self.facts = env if isinstance(env, Facts) else Facts.of(env)

    @abstractmethod
    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the actions for observations, row by row; a rule with a memory updates it in place.

        Args:
            observations: float[rows, size].
            memory: float64[rows, memory_size], zeros at the start of an episode.
            actions: Zeros, to be written: float32[rows, actions].
        """

    @property
    def memory_size(self) -> int:
        """Numbers the rule remembers from step to step."""
        return 0

    def reset(self) -> None:
        """Forget everything; called before each episode. Memory lies in ``state``, so there is nothing to do here."""
        return

    def predict(
        self,
        observation: Array,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Array, Any]:
        """Return the action, float32[..., actions], and the next state, float64[rows, memory_size].

        Args:
            observation: float32[size], or [rows, size] from a vector environment.
            state: What the last call returned; None at the start.
            episode_start: Whether each row's episode has just begun; such rows forget their memory.
            deterministic: Without effect: a rule has no other mode.

        Raises:
            ConfigError: When the observation is not one of the rule's site.
        """
        array = np.asarray(observation)
        if array.ndim not in (1, 2) or array.shape[-1] != self.facts.observation.size:
            raise ConfigError(
                f"observation: shape {array.shape} is not allowed; must be ({self.facts.observation.size},) or "
                f"(rows, {self.facts.observation.size}) as of the environment the rule was made for."
            )
        rows = array.reshape(-1, array.shape[-1])
        memory = np.zeros((len(rows), self.memory_size)) if state is None else np.array(state, dtype=np.float64)
        if episode_start is not None:
            memory[np.broadcast_to(np.asarray(episode_start, dtype=np.bool_), len(rows))] = 0.0
        actions = np.zeros((len(rows), self.facts.action.size), dtype=np.float32)
        self.decide(rows, memory, actions)
        return actions.reshape(*array.shape[:-1], -1), memory


__all__ = ["PHASES", "Facts", "Rule", "View", "routing_factors", "view"]
