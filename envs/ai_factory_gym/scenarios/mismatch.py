"""What a planner believes is wrong, as in life: a hidden draw per episode of how far a site is from its catalogue.

Each factor is ``exp(u)`` with ``u`` even in ``[-ln(1 + s), ln(1 + s)]`` for a spread ``s``, so that half the sites are better than believed and
half worse. Times differ by pool (a layout's kernels are tuned or they are not), idle power by rack type, lengths of answers by
class (what is asked for has changed since the trace was taken). Params, and so every rule that plans with them, keep the
catalogue's figures (``engine.truth`` has the true ones).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import check_range

Array = NDArray[Any]

LARGEST_SPREAD = 1.0
"""Spreads above 1 (half to double) are no mismatch any more but another machine."""


@dataclass(frozen=True, slots=True)
class MismatchSpec:
    """How far an episode's site may be from its catalogue; a spread of 0.15 is a factor between 1 / 1.15 and 1.15.

    Attributes:
        prefill_time: Spread of every prefill time of a pool.
        decode_time: Spread of every decode time of a pool.
        idle_power: Spread of the draw of an idle rack, by rack type. What a rack draws at its limit stays.
        output_tokens: Spread of the length of answers, by class, within the longest the class can have.
    """

    prefill_time: float = 0.0
    decode_time: float = 0.0
    idle_power: float = 0.0
    output_tokens: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for field in fields(self):
            check_range(f"mismatch.{field.name}", getattr(self, field.name), 0.0, LARGEST_SPREAD)

    def __or__(self, other: MismatchSpec) -> MismatchSpec:
        """Return the larger spread of both, one by one."""
        return MismatchSpec(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


NO_SPREAD = MismatchSpec()
"""The catalogue is right."""


@dataclass(frozen=True)
class Truth:
    """What is true in an episode over what the catalogue says; 1 everywhere without a mismatch.

    Attributes:
        time: Factor on the times of each pool, float64[pools].
        idle_power: Factor on the idle draw of each pool's racks, float64[pools].
        output_tokens: Factor on the answers of each class, float64[classes].
    """

    time: Array
    idle_power: Array
    output_tokens: Array


def no_mismatch(pools: int, classes: int) -> Truth:
    """Return a site that is as its catalogue says."""
    return Truth(np.ones(pools), np.ones(pools), np.ones(classes))


def draw_truth(
    rng: np.random.Generator, spec: MismatchSpec, phases: Sequence[str], racks: Sequence[str], classes: int
) -> Truth:
    """Draw what is true in an episode.

    Args:
        rng: Stream of its own; how many numbers are drawn depends on the site alone.
        spec: Spreads.
        phases: "prefill" or "decode", of each pool.
        racks: Rack type of each pool; pools of one type have the same idle draw.
        classes: Number of classes.
    """
    kinds = list(dict.fromkeys(racks))
    times = rng.uniform(-1.0, 1.0, len(racks))
    idle = rng.uniform(-1.0, 1.0, len(kinds))
    outputs = rng.uniform(-1.0, 1.0, classes)
    spread = np.array([spec.prefill_time if phase == "prefill" else spec.decode_time for phase in phases])
    return Truth(
        time=np.exp(times * np.log1p(spread)),
        idle_power=np.exp(idle * math.log1p(spec.idle_power))[[kinds.index(kind) for kind in racks]],
        output_tokens=np.exp(outputs * math.log1p(spec.output_tokens)),
    )
