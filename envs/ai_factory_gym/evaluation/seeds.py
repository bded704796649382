"""Seed ranges reserved for training, tuning and evaluation.

They are disjoint, so no policy is scored on a day it has seen. Everything that draws seeds takes them from here:
training scripts, the commands that tune rules, and the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable

from ai_factory_gym.errors import ConfigError

TRAINING_SEEDS = range(0, 1_000_000)
"""Seeds of the episodes an agent learns from, and of the agent's own randomness."""

TUNING_SEEDS = range(1_000_000, 2_000_000)
"""Seeds for setting parameters and for choosing between agents, the best model of a training run included."""

EVALUATION_SEEDS = range(2_000_000, 3_000_000)
"""Seeds of published results."""

_RANGES = {"training": TRAINING_SEEDS, "tuning": TUNING_SEEDS, "evaluation": EVALUATION_SEEDS}


def first_seeds(count: int, seeds: range = EVALUATION_SEEDS) -> list[int]:
    """Return the first ``count`` seeds of a range, the ones every policy is compared on.

    Raises:
        ConfigError: When ``count`` is not an integer between 1 and the length of the range.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(seeds):
        raise ConfigError(f"seeds: {count!r} is not allowed; must be an integer in [1, {len(seeds)}].")
    return list(seeds[:count])


def check_seeds(seeds: int | Iterable[int]) -> list[int]:
    """Return seeds as a list; an integer stands for that many of the first evaluation seeds.

    Raises:
        ConfigError: When there is none, one is not a non-negative integer, or one occurs twice.
    """
    if not isinstance(seeds, Iterable):
        return first_seeds(seeds)
    checked: list[int] = []
    for seed in seeds:
        value = int(seed) if hasattr(seed, "__index__") and not isinstance(seed, bool) else -1
        if value < 0:
            raise ConfigError(f"seeds: {seed!r} is not allowed; each seed must be an integer >= 0.")
        if value in checked:
            raise ConfigError(f"seeds: {seed!r} occurs twice; one seed is one episode, so a second run adds nothing.")
        checked.append(value)
    if not checked:
        raise ConfigError(
            "seeds: empty; give at least one seed, for example seeds=10 for the first ten evaluation seeds."
        )
    return checked


def seed_range(seeds: Iterable[int]) -> str:
    """Name the range the seeds come from: ``training``, ``tuning``, ``evaluation``, or ``mixed`` when not from one."""
    names = {next((name for name, allowed in _RANGES.items() if seed in allowed), "mixed") for seed in seeds}
    return names.pop() if len(names) == 1 else "mixed"
