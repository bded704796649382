"""Hyperparameters of networks small enough to train in a test, by algorithm."""

from __future__ import annotations

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "ppo": {
        "n_envs": 2,
        "n_timesteps": 64,
        "normalize": True,
        "policy": "MlpPolicy",
        "n_steps": 16,
        "batch_size": 32,
        "n_epochs": 2,
        "policy_kwargs": {"net_arch": [8]},
    },
    "sac": {
        "n_envs": 2,
        "n_timesteps": 64,
        "normalize": True,
        "policy": "MlpPolicy",
        "learning_starts": 16,
        "batch_size": 16,
        "buffer_size": 256,
        "policy_kwargs": {"net_arch": [8]},
    },
}
