"""What every rule shares: the public facts of a site, the observation in physical units, and ``predict``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, Params, PoolSpec
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.jit import kernel
from ai_factory_gym.levers import ROUTING_GAIN, ActionLayout
from ai_factory_gym.observation import BLOCKS, DURATION_SCALE_S, NOTICE_SCALE_S, ObservationLayout

PHASES = (PREFILL, DECODE)

PREFILL_QUEUE_SCALE = 100.0
WAIT_SCALE_S = 10.0
QUEUED_SCALE_S = 10.0

STARVED = 1e-6
"""Routing factor of a pool that is to get nothing; the lever's smallest factor, far below its 1 % threshold."""

FAVOURED = float(np.exp(ROUTING_GAIN))
"""The lever's largest factor."""

POOL_BLOCKS = tuple(name for name, length, _ in BLOCKS if length == "pools")
"""Blocks with a number per pool: they lie side by side in the observation and are read as one table."""

BUSY, BATCH, KV, WAIT, TPOT, CLOCK = (
    POOL_BLOCKS.index(f"pool_{name}") for name in ("busy", "batch", "kv", "wait", "tpot", "clock")
)
RACK_COUNTS = np.array([POOL_BLOCKS.index(f"pool_{name}") for name in ("active", "waking", "draining", "asleep")])
"""Rows of that table; those of rack counts together."""


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
        pool_table: Where the pool blocks lie in the observation, one after the other.
        pool_scale: What they are multiplied with, float64[blocks, pools].
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
    pool_table: slice
    pool_scale: Array
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
        params: Params = inner.factory.params
        phase = params.pool[:, PoolSpec.PHASE]
        members = np.flatnonzero(phase == PREFILL), np.flatnonzero(phase == DECODE)
        prefill, decode = (np.ascontiguousarray(params.capacity[k][:, members[k]]) for k in PHASES)
        racks = params.pool[:, PoolSpec.RACKS].copy()
        blocks = inner.observation_layout.slices
        return cls(
            params=params,
            observation=inner.observation_layout,
            action=inner.action_layout,
            members=members,
            capacity=(prefill, decode),
            racks=racks,
            pool_table=slice(blocks[POOL_BLOCKS[0]].start, blocks[POOL_BLOCKS[-1]].stop),
            pool_scale=pool_scale(inner.observation_layout, phase == PREFILL, racks),
            control_interval_s=float(inner.task.control_interval_s),
            clock_min=float(inner.task.site.clock_min),
            sigma=np.array([cls.demand.overdispersion_sigma for cls in inner.classes]),
            tau_s=np.array([cls.demand.overdispersion_tau_s for cls in inner.classes]),
        )


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
        cap_w: Cap in force.
        next_cap_w: Cap after the change announced next; the cap in force when none is.
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


def view(facts: Facts, observation: Array) -> View:
    """Read one observation (float[size])."""
    layout = facts.observation
    slices = layout.slices
    numbers = np.asarray(observation, dtype=np.float64)
    announced, time, after, duration = numbers[slices["cap_announced"]].tolist()
    cap_w = numbers.item(slices["cap"].start) * layout.base_cap_w
    pools = numbers[facts.pool_table].reshape(facts.pool_scale.shape) * facts.pool_scale
    active, waking, draining, asleep = np.rint(pools[RACK_COUNTS])
    return View(
        cap_w=cap_w,
        next_cap_w=after * layout.base_cap_w if announced > 0.5 else cap_w,
        next_cap_s=time * NOTICE_SCALE_S if announced > 0.5 else float("inf"),
        next_cap_duration_s=duration * DURATION_SCALE_S if announced > 0.5 else 0.0,
        power_w=numbers.item(slices["power"].start) * layout.base_cap_w,
        braked=numbers.item(slices["brake"].start) > 0.5,
        busy=pools[BUSY],
        batch=pools[BATCH],
        kv=pools[KV],
        wait_s=pools[WAIT],
        tpot_s=pools[TPOT],
        clock=pools[CLOCK],
        active=active,
        waking=waking,
        draining=draining,
        asleep=asleep,
        rate=numbers[slices["class_rate"]] * layout.class_rate,
        queued=numbers[slices["class_queued"]] * layout.class_rate * QUEUED_SCALE_S,
        slack=numbers[slices["class_slack"]] / 10.0,
        ttft_share=numbers[slices["queue_wait"]],
    )


@kernel
def _write_factors(
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
    _write_factors(capacity, share, facts.members[phase], active, clock, phase == PREFILL, factors)
    return factors


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
    def decide(self, seen: View, memory: Array) -> Array:
        """Return the action for one observation; a rule with a memory updates it in place.

        Args:
            seen: The observation.
            memory: float64[memory_size], zeros at the start of an episode.
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
        actions = np.empty((len(rows), self.facts.action.size), dtype=np.float32)
        for action, row, remembered in zip(actions, rows, memory, strict=True):
            action[:] = self.decide(view(self.facts, row), remembered)
        return actions.reshape(*array.shape[:-1], -1), memory


__all__ = ["PHASES", "Facts", "Rule", "View", "routing_factors", "view"]
