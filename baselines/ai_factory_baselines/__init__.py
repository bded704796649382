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
}


_BY_MODEL = ("length_aware", "reactive")
"""Rules that plan for one model: on a site with several there is one for each (``several.PerModel``)."""


def names() -> list[str]:
    """Return the names of all rules, from naive to best."""
    return list(_MODULES)


def make(name: str, env: Any) -> Rule:
    """Make a rule for an environment, single or vector, wrapped or not.

    Args:
        name: One of ``names()``.
        env: The environment; only its public, constant facts are read.

    Raises:
        ConfigError: On an unknown name.
    """
    if name not in _MODULES:
        raise unknown("rule", name, names())
    import importlib

    module, kind = _MODULES[name]
    build = getattr(importlib.import_module(f"ai_factory_baselines.{module}"), kind)
    if name in _BY_MODEL:
        from ai_factory_baselines.several import by_model

        build = by_model(build)
    rule: Rule = build(env)
    return rule


__all__ = ["make", "names"]
