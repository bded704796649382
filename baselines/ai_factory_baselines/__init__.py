"""Rules for ai-factory-gym; each has the ``predict`` method that learned agents have.

import ai_factory_baselines

rule = ai_factory_baselines.make("reactive", env)
action, state = rule.predict(observation, state)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ai_factory_gym.errors import unknown

if TYPE_CHECKING:
    from ai_factory_baselines.base import Rule

_MODULES = {
    "random": ("rules", "Random"),
    "uniform": ("rules", "Uniform"),
    "capacity_proportional": ("rules", "CapacityProportional"),
    "least_loaded": ("rules", "LeastLoaded"),
    "length_aware": ("rules", "LengthAware"),
    "reactive": ("reactive", "Reactive"),
    "grid_aware": ("grid_aware", "GridAware"),
}

OF_PARTS = ("grid_aware",)
"""Rules for the parts of a site that the published ``-v0`` tasks do not have; there each does what another of ``names()`` does."""

_BY_MODEL = ("length_aware", "reactive")
"""Rules that plan for one model: on a site with several there is one for each (``several.PerModel``)."""


def names() -> list[str]:
    """Return the names of the rules for any site, from naive to best; ``make`` knows those in ``OF_PARTS`` as well."""
    return [name for name in _MODULES if name not in OF_PARTS]


def make(name: str, env: Any) -> Rule:
    """Make a rule for an environment, single or vector, wrapped or not.

    Args:
        name: One of ``names()`` or of ``OF_PARTS``.
        env: The environment; only its public, constant facts are read.

    Raises:
        ConfigError: On an unknown name.
    """
    if name not in _MODULES:
        raise unknown("rule", name, list(_MODULES))
    import importlib

    module, kind = _MODULES[name]
    build = getattr(importlib.import_module(f"ai_factory_baselines.{module}"), kind)
    if name in _BY_MODEL:
        from ai_factory_baselines.several import by_model

        build = by_model(build)
    rule: Rule = build(env)
    return rule


__all__ = ["OF_PARTS", "make", "names"]
