"""The residual parametrisation: an agent that corrects a rule instead of replacing it.

``action = clip(rule action + scale x residual, -1, 1)``, where the residual in [-1, 1] is what the network gives, for the
levers it may correct; the others stay the rule's. The network sees the raw observation followed by the rule's action: the
rule has a memory (its hysteresis) that the observation alone does not show. A residual of zero is the rule. Training
(``ResidualVecEnv``) and the saved policy (``TrainedPolicy``) share the functions of this file.

Residual policy learning: Silver et al., "Residual Policy Learning", arXiv 1812.06298; Johannink et al., "Residual
Reinforcement Learning for Robot Control", arXiv 1812.03201.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import ConfigError, unknown

RESIDUAL_RULES = ("reactive", "none")
"""Rules an agent may correct; ``none`` is an agent that acts on its own."""


def residual_action(
    rule_action: NDArray[Any], residual: NDArray[Any], scale: float, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the action: the rule's, corrected and kept within [-1, 1].

    Args:
        rule_action: float[..., actions].
        residual: What the network gives, float[..., len(places)]; clipped to [-1, 1] first.
        scale: Largest correction of any entry, in units of the action.
        places: Entries of the action that are corrected.
    """
    correction = np.float32(scale) * np.clip(np.asarray(residual, dtype=np.float32), -1.0, 1.0)
    action = np.array(rule_action, dtype=np.float32)
    action[..., places] = np.clip(action[..., places] + correction, -1.0, 1.0)
    return action


def residual_observation(observation: NDArray[Any], rule_action: NDArray[Any]) -> NDArray[np.float32]:
    """Return what the network sees: float32[..., observations + actions]."""
    return np.concatenate([observation, rule_action], axis=-1, dtype=np.float32)


def corrected_places(slices: Mapping[str, slice], levers: Sequence[str]) -> NDArray[np.int64]:
    """Return the entries of the action that belong to levers.

    Args:
        slices: Those of ``ActionLayout``.
        levers: Names of levers in use.

    Raises:
        ConfigError: When there is none, or the environment has no such lever.
    """
    for name in levers:
        if name not in slices:
            raise unknown("residual_levers", name, list(slices))
    if not levers:
        raise ConfigError(f"residual_levers: none given; choose from {', '.join(slices)}.")
    return np.array(
        [place for name, part in slices.items() if name in levers for place in range(part.start, part.stop)]
    )


def make_rule(
    name: str, task: str, settings: Mapping[str, float] | None = None, env: Mapping[str, Any] | None = None
) -> Any:
    """Build the rule that an agent corrects, or None for ``none``.

    Args:
        name: One of RESIDUAL_RULES.
        task: Registered id; the rule is made from an environment of it.
        settings: The rule's parameters, as ``rule_settings`` gave them; None takes those it is tuned to now.
        env: Further arguments of the environment.

    Raises:
        ConfigError: When there is no such rule or no such task.
    """
    if name not in RESIDUAL_RULES:
        raise unknown("residual_of", name, RESIDUAL_RULES)
    if name == "none":
        return None
    import gymnasium

    import ai_factory_baselines

    made = gymnasium.make(task, **(env or {}))
    try:
        rule: Any = ai_factory_baselines.make(name, made)
        return rule if settings is None else type(rule)(made, dataclasses.replace(rule.settings, **settings))
    finally:
        made.close()


def rule_settings(rule: Any) -> dict[str, float]:
    """Return a rule's parameters: an agent goes on correcting the rule it was trained on when that is tuned anew."""
    return dict(dataclasses.asdict(rule.settings))
