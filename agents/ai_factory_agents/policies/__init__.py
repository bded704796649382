"""Trained policies as files: the artefact, and the residual parametrisation it may carry."""

from ai_factory_agents.policies.artefact import TrainedPolicy
from ai_factory_agents.policies.residual import (
    RESIDUAL_RULES,
    corrected_places,
    make_rule,
    residual_action,
    residual_observation,
)

__all__ = [
    "RESIDUAL_RULES",
    "TrainedPolicy",
    "corrected_places",
    "make_rule",
    "residual_action",
    "residual_observation",
]
