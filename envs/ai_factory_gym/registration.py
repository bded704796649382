"""The registered tasks: one class, one site each."""

from __future__ import annotations

from typing import Any

import gymnasium

NAMESPACE = "ai_factory"
TASKS = {
    f"{NAMESPACE}/Edge-v0": "edge",
    f"{NAMESPACE}/Enterprise-v0": "enterprise",
    f"{NAMESPACE}/Sovereign-v0": "sovereign",
    f"{NAMESPACE}/Hyperscale-v0": "hyperscale",
    f"{NAMESPACE}/Sovereign-v1": "sovereign-v1",
    f"{NAMESPACE}/Hyperscale-v1": "hyperscale-v1",
}
"""Task id to shipped site."""

# Spelt out: ``levers`` would bring the kernels along.
_DEFAULT_LEVERS = ("route_prefill", "route_decode", "clock", "active_racks")

TASK_LEVERS = {
    f"{NAMESPACE}/Sovereign-v1": [*_DEFAULT_LEVERS, "deferral", "training", "generation"],
    f"{NAMESPACE}/Hyperscale-v1": [*_DEFAULT_LEVERS, "deferral", "battery"],
}
"""Levers of tasks whose sites have more to decide about than the default ones."""

CUSTOM = f"{NAMESPACE}/Custom-v0"
"""Task without a site: ``gymnasium.make(CUSTOM, site="my_site.toml")``."""


def register_tasks() -> None:
    """Register every task once; calling it again changes nothing.

    No ``max_episode_steps``: both environments truncate at ``horizon_s`` themselves, so that the argument means what it
    says.
    """
    arguments: dict[str, dict[str, Any]] = {name: {"site": site} for name, site in TASKS.items()}
    for name, levers in TASK_LEVERS.items():
        arguments[name]["levers"] = levers
    # Nobody has frozen a price of energy for a site of one's own.
    arguments[CUSTOM] = {"lambda_tokens_per_joule": "estimate"}
    for name, kwargs in arguments.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="ai_factory_gym.env:AIFactoryEnv",
                vector_entry_point="ai_factory_gym.vector_env:AIFactoryVectorEnv",
                max_episode_steps=None,
                kwargs=kwargs,
            )
