"""What a planner believes is wrong, as in life: a hidden draw per episode of how far a site is from its catalogue.

Each factor is ``exp(u)`` with ``u`` even in ``[-ln(1 + s), ln(1 + s)]`` for a spread ``s``, so that half the sites are better than believed and
half worse. Times differ by pool (a layout's kernels are tuned or they are not), idle power by rack type, lengths of answers by
class (what is asked for has changed since the trace was taken). Params, and so every rule that plans with them, keep the
catalogue's figures; only ``State.perf`` and ``State.power`` hold the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ai_factory_gym.engine.layout import PREFILL, Array, Class, Params, PoolSpec, State
from ai_factory_gym.errors import ConfigError, check_range
from ai_factory_gym.physics.performance import (
    DECODE_COMMUNICATION_REQUEST_S,
    DECODE_COMPUTE_CONTEXT_S,
    DECODE_COMPUTE_REQUEST_S,
    DECODE_EXPERTS_S,
    DECODE_LATENCY_REQUEST_S,
    DECODE_LATENCY_S,
    DECODE_MEMORY_CONTEXT_S,
    DECODE_MEMORY_REQUEST_S,
    DECODE_MEMORY_S,
    PREFILL_FRONTEND_S,
    PREFILL_OVERHEAD_PER_TOKEN_S,
    PREFILL_PER_TOKEN2_S,
    PREFILL_PER_TOKEN_S,
    PREFILL_STREAM_PER_TOKEN_S,
)
from ai_factory_gym.physics.power import (
    POWER_ACTIVE_W,
    POWER_GPUS,
    POWER_IDLE_W,
    POWER_LOSS,
    POWER_OVERHEAD_W,
    POWER_TDP_W,
)

LARGEST_SPREAD = 1.0
"""Spreads above 1 (half to double) are no mismatch any more but another machine."""

_PREFILL_TIMES = [
    PREFILL_PER_TOKEN_S,
    PREFILL_PER_TOKEN2_S,
    PREFILL_STREAM_PER_TOKEN_S,
    PREFILL_OVERHEAD_PER_TOKEN_S,
    PREFILL_FRONTEND_S,
]
_DECODE_TIMES = [
    DECODE_MEMORY_S,
    DECODE_MEMORY_REQUEST_S,
    DECODE_MEMORY_CONTEXT_S,
    DECODE_EXPERTS_S,
    DECODE_COMPUTE_REQUEST_S,
    DECODE_COMPUTE_CONTEXT_S,
    DECODE_COMMUNICATION_REQUEST_S,
    DECODE_LATENCY_S,
    DECODE_LATENCY_REQUEST_S,
]


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

    def perf(self, params: Params) -> Array:
        """Return the true performance coefficients, float64[pools, coefficients]."""
        true = params.perf.copy()
        for pool, factor in enumerate(self.time):
            true[pool, _PREFILL_TIMES if params.pool[pool, PoolSpec.PHASE] == PREFILL else _DECODE_TIMES] *= factor
        return true

    def power(self, params: Params) -> Array:
        """Return the true power coefficients, float64[pools, coefficients]."""
        return np.array(
            [
                coef if factor == 1.0 else with_idle_power(coef, factor)
                for coef, factor in zip(params.power, self.idle_power, strict=True)
            ]
        )


def with_idle_power(coef: Array, factor: float) -> Array:
    """Return power coefficients of racks that draw ``factor`` times as much when idle, and as before at the limit of their GPUs.

    What an idle GPU draws more, a running one draws less above idle, so that draws under load stay what was measured.

    Args:
        coef: ``np.array(PowerCoefficients)``, shape (12,).
        factor: Factor on the draw of an idle rack and of its idle GPUs.
    """
    true = coef.copy()
    gpus, tdp_w, idle_w = coef[POWER_GPUS], coef[POWER_TDP_W], coef[POWER_IDLE_W]
    idle_rack_w = coef[POWER_OVERHEAD_W] + (1.0 + coef[POWER_LOSS]) * gpus * idle_w
    nameplate_w = coef[POWER_OVERHEAD_W] + (1.0 + coef[POWER_LOSS]) * gpus * tdp_w
    true[POWER_IDLE_W] = factor * idle_w
    true[POWER_ACTIVE_W] = coef[POWER_ACTIVE_W] + (1.0 - factor) * idle_w
    true[POWER_LOSS] = (nameplate_w - factor * idle_rack_w) / (gpus * (tdp_w - factor * idle_w)) - 1.0
    true[POWER_OVERHEAD_W] = factor * idle_rack_w - (1.0 + true[POWER_LOSS]) * gpus * factor * idle_w
    return true


def check_idle_power(params: Params, pools: Sequence[str], spread: float) -> None:
    """Refuse a spread of the idle draw with which a running GPU could draw less than an idle one.

    Args:
        params: Site parameters.
        pools: Names of the pools.
        spread: ``MismatchSpec.idle_power``.

    Raises:
        ConfigError: With the pool and the largest spread it allows.
    """
    for name, coef in zip(pools, params.power, strict=True):
        largest = coef[POWER_ACTIVE_W] / coef[POWER_IDLE_W] if coef[POWER_IDLE_W] > 0.0 else math.inf
        if spread > largest:
            raise ConfigError(
                f"mismatch.idle_power: {spread!r} is not allowed for pool {name!r}; must be at most {largest:.3g}, above which its GPUs "
                "would draw less running than idle."
            )


def no_mismatch(pools: int, classes: int) -> Truth:
    """Return a site that is as its catalogue says."""
    return Truth(np.ones(pools), np.ones(pools), np.ones(classes))


def truth_of(params: Params, state: State, row: int) -> Truth:
    """Return what is true in a row's episode over what the catalogue says."""
    prefill = params.pool[:, PoolSpec.PHASE] == PREFILL
    ratio = np.where(
        prefill,
        state.perf[row, :, PREFILL_PER_TOKEN_S] / params.perf[:, PREFILL_PER_TOKEN_S],
        state.perf[row, :, DECODE_MEMORY_S] / params.perf[:, DECODE_MEMORY_S],
    )
    return Truth(
        time=ratio,
        idle_power=state.power[row, :, POWER_IDLE_W] / params.power[:, POWER_IDLE_W],
        output_tokens=state.cls[row, :, Class.OUTPUT_FACTOR].copy(),
    )


def draw_truth(
    rng: np.random.Generator, spec: MismatchSpec, phase: Sequence[int] | Array, racks: Sequence[str], classes: int
) -> Truth:
    """Draw what is true in an episode.

    Args:
        rng: Stream of its own; how many numbers are drawn depends on the site alone.
        spec: Spreads.
        phase: Phase of each pool.
        racks: Rack type of each pool; pools of one type have the same idle draw.
        classes: Number of classes.
    """
    kinds = list(dict.fromkeys(racks))
    times = rng.uniform(-1.0, 1.0, len(racks))
    idle = rng.uniform(-1.0, 1.0, len(kinds))
    outputs = rng.uniform(-1.0, 1.0, classes)
    spread = np.where(np.asarray(phase) == PREFILL, spec.prefill_time, spec.decode_time)
    return Truth(
        time=np.exp(times * np.log1p(spread)),
        idle_power=np.exp(idle * math.log1p(spec.idle_power))[[kinds.index(kind) for kind in racks]],
        output_tokens=np.exp(outputs * math.log1p(spec.output_tokens)),
    )
