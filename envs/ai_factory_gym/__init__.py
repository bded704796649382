"""A Gymnasium environment of a power-capped AI factory.

Importing the package registers its tasks and nothing heavy; the rest loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.registration import TASKS, register_tasks

if TYPE_CHECKING:
    from ai_factory_gym.env import AIFactoryEnv
    from ai_factory_gym.physics.serving import ServingPoint, serving_frontier, serving_point
    from ai_factory_gym.vector_env import AIFactoryVectorEnv
    from ai_factory_gym.workload.traces import Trace, load_trace

__version__ = "0.1.0"

_LAZY = {
    "AIFactoryEnv": "ai_factory_gym.env",
    "AIFactoryVectorEnv": "ai_factory_gym.vector_env",
    "ServingPoint": "ai_factory_gym.physics.serving",
    "serving_frontier": "ai_factory_gym.physics.serving",
    "serving_point": "ai_factory_gym.physics.serving",
    "Trace": "ai_factory_gym.workload.traces",
    "load_trace": "ai_factory_gym.workload.traces",
}

__all__ = [
    "TASKS",
    "AIFactoryEnv",
    "AIFactoryVectorEnv",
    "ConfigError",
    "ServingPoint",
    "Trace",
    "load_trace",
    "register_tasks",
    "serving_frontier",
    "serving_point",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: numba alone takes longer than everything else."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_tasks()
