"""The registered tasks: one class, one site each."""

from __future__ import annotations

import gymnasium

NAMESPACE = "ai_factory"
TASKS = {
    f"{NAMESPACE}/Edge-v0": "edge",
    f"{NAMESPACE}/Enterprise-v0": "enterprise",
    f"{NAMESPACE}/Sovereign-v0": "sovereign",
    f"{NAMESPACE}/Hyperscale-v0": "hyperscale",
}
"""Task id to shipped site."""

CUSTOM = f"{NAMESPACE}/Custom-v0"
"""Task without a site: ``gymnasium.make(CUSTOM, site="my_site.toml")``."""


def register_tasks() -> None:
    """Register every task once; calling it again changes nothing.

    No ``max_episode_steps``: both environments truncate at ``horizon_s`` themselves, so that the argument means what it
    says.
    """
    arguments: dict[str, dict[str, str]] = {name: {"site": site} for name, site in TASKS.items()}
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
