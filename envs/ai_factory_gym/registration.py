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


def register_tasks() -> None:
    """Register every task once; calling it again changes nothing.

    No ``max_episode_steps``: both environments truncate at ``horizon_s`` themselves, so that the argument means what it
    says.
    """
    for name, site in TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="ai_factory_gym.env:AIFactoryEnv",
                vector_entry_point="ai_factory_gym.vector_env:AIFactoryVectorEnv",
                max_episode_steps=None,
                kwargs={"site": site},
            )
