"""The simple rules: routing only, every rack awake at full clock."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from ai_factory_baselines.base import PHASES, Facts, Rule, View, routing_factors, view
from ai_factory_baselines.plant import Plant, fill
from ai_factory_gym.engine.layout import PREFILL, Array

LEAST_FREE = 0.02
"""Free capacity a full pool is credited with, so that it keeps being tried (status: design choice)."""

QUEUE_TOLERANCE_S = 1.0
"""Wait that halves a pool's weight in ``least_loaded`` (status: design choice)."""


class ByView(Rule):
    """Base of the rules that look at one observation at a time and remember nothing."""

    @abstractmethod
    def action(self, seen: View) -> Array:
        """Return the action for one observation."""

    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the action for each observation."""
        for action, observation in zip(actions, observations, strict=True):
            action[:] = self.action(view(self.facts, observation))


class Random(ByView):
    """Uniformly random actions from its own generator: the floor of every table."""

    name: ClassVar[str] = "random"

    def __init__(self, env: Any, seed: int = 0) -> None:
        """Seed the generator."""
        super().__init__(env)
        self.reset(seed)

    def reset(self, seed: int | None = 0) -> None:
        """Seed the generator anew."""
        self._generator = np.random.default_rng([0 if seed is None else seed, 0xA1FAC])

    def action(self, seen: View) -> Array:
        """Return a random action."""
        return self._generator.uniform(-1.0, 1.0, self.facts.action.size).astype(np.float32)


class FullClock(ByView):
    """Base of the rules that only route."""

    def shares(self, seen: View, phase: int) -> Array | None:
        """Return wanted shares, float64[groups, pools of the phase]; None is capacity-proportional."""
        return None

    def action(self, seen: View) -> Array:
        """Return the action: routing shares, full clock, every rack awake."""
        clock = np.ones(len(self.facts.racks))
        factors = []
        for phase in PHASES:
            share = self.shares(seen, phase)
            factors.append(None if share is None else routing_factors(self.facts, phase, share, seen.active, clock))
        return self.facts.action.encode(
            clock=1.0, racks=self.facts.racks, route_prefill=factors[0], route_decode=factors[1]
        )


class Uniform(FullClock):
    """Every pool gets the same number of requests, whatever its size: the naive operator."""

    name: ClassVar[str] = "uniform"

    def shares(self, seen: View, phase: int) -> Array:
        """Return equal shares."""
        members = self.facts.members[phase]
        return np.full((self.facts.params.capacity.shape[1], len(members)), 1.0 / len(members))


class CapacityProportional(FullClock):
    """Requests in proportion to the capacity of the active racks."""

    name: ClassVar[str] = "capacity_proportional"


class LeastLoaded(FullClock):
    """Requests in proportion to free capacity: idle servers and short queues (prefill), room in the batch (decode)."""

    name: ClassVar[str] = "least_loaded"

    def shares(self, seen: View, phase: int) -> Array:
        """Return shares in proportion to capacity x free share."""
        members = self.facts.members[phase]
        if phase == PREFILL:
            free = np.maximum(1.0 - seen.busy[members], LEAST_FREE)
            free = free / (1.0 + seen.wait_s[members] / QUEUE_TOLERANCE_S)
        else:
            used = np.maximum(seen.batch[members] / self.facts.observation.pool_batch[members], seen.kv[members])
            free = np.maximum(1.0 - used, LEAST_FREE)
        capacity = self.facts.params.capacity[phase][:, members] * seen.active[members]
        return np.asarray(capacity * free)


class LengthAware(FullClock):
    """Long prompts to the pools that are relatively best at them, short ones to the rest, all filled to the same level.

    What counts is the ratio of a pool's capacity for long and for short prompts; watts cancel in it.
    """

    name: ClassVar[str] = "length_aware"

    def __init__(self, env: Any) -> None:
        """Build the model of the site."""
        super().__init__(env)
        self.plant = Plant(self.facts)

    def shares(self, seen: View, phase: int) -> Array:
        """Return the shares of the present load."""
        model = self.plant.phases[phase]
        rate = np.maximum(seen.rate, 0.01 * self.facts.observation.class_rate)
        share = np.zeros(model.floor.shape)
        fill(self.plant.need(phase, self.plant.load(rate)), seen.active[self.facts.members[phase]], model.order, share)
        return share


__all__ = ["CapacityProportional", "Facts", "FullClock", "LeastLoaded", "LengthAware", "Random", "Uniform"]
