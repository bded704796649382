"""Rules on a site with several models: one rule per model, each with its own pools, classes and plan, and a share of the cap.

A rule that plans (``length_aware``, ``reactive``) knows the pools of one model. What a site's models have in common is its cap. In every step
each model gets the share of it that the power its load would draw with all margins has in that of all models, so that where the cap does not
suffice all give way in proportion, and power moves with the demand. Facility power is linear in IT power (``physics.cooling``): the powers of
the parts, each with its own nameplate, add up to the site's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ai_factory_baselines.base import PHASES, Facts, Rule, reserve_place
from ai_factory_baselines.reactive import Reactive, Settings, tuned_settings
from ai_factory_baselines.rules import LengthAware
from ai_factory_gym.engine.layout import Array, Cell, ClassSpec, Params, PoolSpec, SiteSpec
from ai_factory_gym.levers import DEFAULT_LEVERS, ActionLayout
from ai_factory_gym.observation import BLOCKS, lay_out


@dataclasses.dataclass(frozen=True)
class Part:
    """One model of a site as if it were the site.

    Attributes:
        facts: Its facts, with the default levers.
        seen: Where each number of its observation stands in that of the site, int64[size].
        theirs: Numbers of the site's action that are the part's, int64[n].
        own: Where they stand in the part's action, int64[n].
        caps: Numbers of its observation that are caps, int64[2].
    """

    facts: Facts
    seen: Array
    theirs: Array
    own: Array
    caps: Array


def _params(params: Params, which: int, nameplate_w: float) -> Params:
    """Return the constant arrays of one model's pools and classes; without a trace, which rules do not read."""
    pools = params.pool[:, PoolSpec.MODEL] == which
    classes = np.flatnonzero(params.cls[:, ClassSpec.MODEL] == which)
    bins = len(params.group_edges) + 1
    groups = slice(which * bins, (which + 1) * bins)
    cell = params.cell[np.isin(params.cell[:, Cell.CLASS], classes)].copy()
    cell[:, Cell.CLASS] = np.searchsorted(classes, cell[:, Cell.CLASS])
    cell[:, Cell.GROUP] -= which * bins
    pool, cls, site = params.pool[pools].copy(), params.cls[classes].copy(), params.site.copy()
    pool[:, PoolSpec.MODEL] = 0.0
    # Pools that share racks, or whose racks may change places, serve one model.
    for column in (PoolSpec.PARTNER, PoolSpec.SIBLING):
        other = pool[:, column]
        pool[:, column] = np.where(other >= 0.0, np.searchsorted(np.flatnonzero(pools), other), -1.0)
    cls[:, ClassSpec.MODEL] = 0.0
    site[SiteSpec.IT_NAMEPLATE_W] = nameplate_w
    return params._replace(
        site=site,
        pool=pool,
        perf=params.perf[pools].copy(),
        power=params.power[pools].copy(),
        cls=cls,
        cell=cell,
        capacity=np.ascontiguousarray(params.capacity[:, groups][:, :, pools]),
        trace_time=params.trace_time[:0],
        trace_prompt=params.trace_prompt[:0],
        trace_output=params.trace_output[:0],
        trace_cell=params.trace_cell[:0],
    )


def part_of(facts: Facts, which: int) -> Part | None:
    """Return one model of a site as if it were the site; None when no class of the task asks for it."""
    layout, action = facts.observation, facts.action
    pools = np.flatnonzero(facts.params.pool[:, PoolSpec.MODEL] == which)
    classes = np.flatnonzero(facts.params.cls[:, ClassSpec.MODEL] == which)
    if len(classes) == 0:
        return None
    nameplate_w = float(layout.pool_nameplate_w[pools].sum())
    if facts.params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        # What cools a training block whatever it draws is there for all models.
        nameplate_w *= float(facts.params.site[SiteSpec.IT_NAMEPLATE_W] / layout.pool_nameplate_w.sum())
    params = _params(facts.params, which, nameplate_w)
    own_action = ActionLayout(params, DEFAULT_LEVERS, action.clock_min, layout.pool_batch[pools])
    slices, size = lay_out(len(pools), len(classes), 0)
    own_layout = dataclasses.replace(
        layout,
        slices=slices,
        size=size,
        pool_batch=layout.pool_batch[pools],
        pool_nameplate_w=layout.pool_nameplate_w[pools],
        class_rate=layout.class_rate[classes],
        class_ttft_s=layout.class_ttft_s[classes],
        pool_rack_w=layout.pool_rack_w[pools],
    )
    members = {"pools": pools, "classes": classes, "actions": np.zeros(0, dtype=np.int64)}
    seen = [
        layout[name].start + (members[length] if length in members else np.arange(int(length)))
        for name, length, _ in BLOCKS
    ]
    theirs, own = [], []
    for name in DEFAULT_LEVERS:
        if name in action.slices:
            places = pools
            if name.startswith("route"):
                phase = PHASES[DEFAULT_LEVERS.index(name)]
                places = np.flatnonzero(np.isin(action.routes[phase][:, 1], pools))
            theirs.append(action[name].start + places)
            own.append(np.arange(own_action[name].start, own_action[name].stop))
    none = [np.zeros(0, dtype=np.int64)]
    return Part(
        facts=Facts.build(
            params,
            own_layout,
            own_action,
            control_interval_s=facts.control_interval_s,
            sigma=facts.sigma[classes],
            tau_s=facts.tau_s[classes],
        ),
        seen=np.concatenate(seen),
        theirs=np.concatenate(theirs or none),
        own=np.concatenate(own or none),
        caps=np.array([slices["cap"].start, slices["cap_announced"].start + 2]),
    )


class PerModel(Rule):
    """A rule per model of a site; a model that no class of the task asks for is left at the neutral action.

    Args:
        env: The environment, or the facts of one.
        kind: Builds the rule of a part from its facts.

    Attributes:
        parts: The models that are asked for, each as if it were the site.
        rules: Their rules.
    """

    def __init__(self, env: Any, kind: Callable[[Facts], Rule]) -> None:
        """Take the site apart."""
        super().__init__(env)
        found = [part_of(self.facts, which) for which in range(self.facts.models)]
        self.parts = [part for part in found if part is not None]
        self.rules = [kind(part.facts) for part in self.parts]

    def reset(self) -> None:
        """Reset every rule."""
        for rule in self.rules:
            rule.reset()

    @property
    def memory_size(self) -> int:
        """Numbers that all rules remember, one after the other."""
        return sum(rule.memory_size for rule in self.rules)

    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the action of each model's rule."""
        seen = [np.asarray(observations, dtype=np.float64)[:, part.seen] for part in self.parts]
        ends = np.cumsum([rule.memory_size for rule in self.rules])
        kept = np.split(memory, ends[:-1], axis=1)
        reserve = reserve_place(self.facts.observation)
        if reserve >= 0:
            for part, numbers in zip(self.parts, seen, strict=True):
                numbers[:, part.caps] -= np.asarray(observations, dtype=np.float64)[:, reserve, None]
        shares = self.cap_shares(seen, kept)
        for part, rule, numbers, own, share in zip(self.parts, self.rules, seen, kept, shares, strict=True):
            numbers[:, part.caps] *= share[:, None]
            remembered = np.ascontiguousarray(own)
            action = np.zeros((len(numbers), part.facts.action.size), dtype=np.float32)
            rule.decide(numbers, remembered, action)
            own[:] = remembered
            actions[:, part.theirs] = action[:, part.own]

    def cap_shares(self, seen: list[Array], kept: list[Array]) -> Array:
        """Return each model's share of the cap, float64[parts, rows]: all of it for each, as long as their rules do not look at it.

        Args:
            seen: The observations of each part, float64[rows, size].
            kept: The memory of each rule, float64[rows, memory_size]; it stays as it is.
        """
        return np.ones((len(self.parts), len(seen[0])))


class LengthAwarePerModel(PerModel):
    """``length_aware`` for each model of a site."""

    name: ClassVar[str] = LengthAware.name

    def __init__(self, env: Any) -> None:
        """Build a rule per model."""
        super().__init__(env, LengthAware)


class ReactivePerModel(PerModel):
    """``reactive`` for each model of a site, the cap shared in proportion to the power that each one's load asks for.

    Args:
        env: The environment, or the facts of one.
        settings: Parameters of every rule; None takes the tuned ones of the site.
    """

    name: ClassVar[str] = Reactive.name

    def __init__(self, env: Any, settings: Settings | None = None) -> None:
        """Build a rule per model."""
        if settings is None:
            inner = getattr(env, "unwrapped", env)
            settings = Settings() if isinstance(env, Facts) else tuned_settings(inner.task.site.name)
        self.settings = settings
        self._reactive: list[Reactive] = []
        super().__init__(env, self._rule)

    def _rule(self, part: Facts) -> Reactive:
        self._reactive.append(Reactive(part, self.settings))
        return self._reactive[-1]

    def cap_shares(self, seen: list[Array], kept: list[Array]) -> Array:
        """Return each model's share of the cap, float64[parts, rows], summing to one over the parts."""
        wanted = np.array(
            [rule.wanted_watts(own, memory) for rule, own, memory in zip(self._reactive, seen, kept, strict=True)]
        )
        return np.asarray(wanted / wanted.sum(axis=0))


PER_MODEL: Mapping[type[Rule], Callable[[Any], Rule]] = {
    LengthAware: LengthAwarePerModel,
    Reactive: ReactivePerModel,
}
"""What stands for a rule that plans on a site with several models."""


def by_model(kind: type[Rule]) -> Callable[[Any], Rule]:
    """Return what makes a rule for an environment: of the kind itself where the site serves one model, else one per model."""

    def build(env: Any) -> Rule:
        facts = env if isinstance(env, Facts) else Facts.of(env)
        return kind(env) if facts.models == 1 else PER_MODEL[kind](env)

    return build


__all__ = ["PER_MODEL", "LengthAwarePerModel", "Part", "PerModel", "ReactivePerModel", "by_model", "part_of"]
