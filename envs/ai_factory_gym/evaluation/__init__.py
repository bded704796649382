"""Evaluation: run any policy over held-out seeds, judge feasibility, and compare policies with proper intervals.

    from ai_factory_gym.evaluation import comparison_table, evaluate

    result = evaluate(policy, "ai_factory/Edge-v0", scenario="burst", seeds=10, n_jobs=2)
    print(comparison_table([result]))

Needs nothing beyond the package's own dependencies; a policy is anything with ``predict``.
"""

from ai_factory_gym.evaluation.feasibility import (
    MAX_BRAKE_SHARE,
    MAX_CAP_VIOLATION_SHARE,
    infeasible_reason,
    violations,
)
from ai_factory_gym.evaluation.result import EvaluationResult, read_csv, summarise, write_csv
from ai_factory_gym.evaluation.runner import Policy, PolicyFactory, evaluate
from ai_factory_gym.evaluation.seeds import EVALUATION_SEEDS, TRAINING_SEEDS, TUNING_SEEDS, first_seeds
from ai_factory_gym.evaluation.statistics import (
    Comparison,
    Estimate,
    bootstrap_interval,
    compare,
    estimate,
    iqm,
    paired_differences,
    probability_of_improvement,
)
from ai_factory_gym.evaluation.table import comparison_table, rank, versus_table

__all__ = [
    "EVALUATION_SEEDS",
    "MAX_BRAKE_SHARE",
    "MAX_CAP_VIOLATION_SHARE",
    "TRAINING_SEEDS",
    "TUNING_SEEDS",
    "Comparison",
    "Estimate",
    "EvaluationResult",
    "Policy",
    "PolicyFactory",
    "bootstrap_interval",
    "compare",
    "comparison_table",
    "estimate",
    "evaluate",
    "first_seeds",
    "infeasible_reason",
    "iqm",
    "paired_differences",
    "probability_of_improvement",
    "rank",
    "read_csv",
    "summarise",
    "versus_table",
    "violations",
    "write_csv",
]
