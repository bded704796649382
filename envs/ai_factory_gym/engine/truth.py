"""What is true at a site in an episode, beside what its catalogue says: coefficients of ``State`` beside those of ``Params``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ai_factory_gym.engine.layout import PREFILL, SHARED_GPUS, Array, Class, Params, PoolSpec, State
from ai_factory_gym.errors import ConfigError
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
    prefill_part,
)
from ai_factory_gym.scenarios.mismatch import Truth

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


def true_perf(params: Params, truth: Truth) -> Array:
    """Return the true performance coefficients, float64[pools, coefficients]."""
    true = params.perf.copy()
    for pool, factor in enumerate(truth.time):
        true[pool, _PREFILL_TIMES if params.pool[pool, PoolSpec.PHASE] == PREFILL else _DECODE_TIMES] *= factor
    return true


def true_power(params: Params, truth: Truth) -> Array:
    """Return the true power coefficients, float64[pools, coefficients]."""
    true = np.array(
        [
            coef if factor == 1.0 else with_idle_power(coef, factor)
            for coef, factor in zip(params.power, truth.idle_power, strict=True)
        ]
    )
    for pool, spec in enumerate(params.pool):
        # What prefill draws above idle follows from what the racks draw, all of which is the decode pool's.
        partner = int(spec[PoolSpec.PARTNER])
        added = spec[PoolSpec.COUPLING] == SHARED_GPUS and spec[PoolSpec.PHASE] == PREFILL
        if added and truth.idle_power[partner] != 1.0:
            true[pool] = prefill_part(true[partner], spec[PoolSpec.PREFILL_LIMIT])
    return true


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


def truth_of(params: Params, state: State, row: int) -> Truth:
    """Return what is true in a row's episode over what the catalogue says."""
    prefill = params.pool[:, PoolSpec.PHASE] == PREFILL
    ratio = np.where(
        prefill,
        state.perf[row, :, PREFILL_PER_TOKEN_S] / params.perf[:, PREFILL_PER_TOKEN_S],
        state.perf[row, :, DECODE_MEMORY_S] / params.perf[:, DECODE_MEMORY_S],
    )
    # Prefill on shared GPUs has no idle draw of its own: its racks are the decode pool's.
    added = (params.pool[:, PoolSpec.COUPLING] == SHARED_GPUS) & prefill
    racks = np.where(added, params.pool[:, PoolSpec.PARTNER].astype(int), np.arange(len(params.pool)))
    return Truth(
        time=ratio,
        idle_power=state.power[row, racks, POWER_IDLE_W] / params.power[racks, POWER_IDLE_W],
        output_tokens=state.cls[row, :, Class.OUTPUT_FACTOR].copy(),
    )
