"""What a power limit or a lower clock costs: the model's curves beside the one measured shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.physics.performance import (
    compute_rate,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, power_coefficients
from calibration.silicon import Floats

MODEL = "deepseek-r1"
PRECISION = "fp4"
PROMPT_TOKENS = 8000.0
DECODE_BATCH = 32.0
DECODE_CONTEXT_TOKENS = 1500.0
"""What the curves serve (status assumed): prompts on a prefill worker of 4 ranks that never waits, 32 requests on a
decode worker of 8 GPUs, tensor-parallel."""

RACKS = ("gb300_nvl72", "vera_rubin_nvl144")

MEASURED_LIMITS = (0.86, 0.71, 0.57, 0.43, 0.29)
MEASURED: Mapping[str, tuple[float, ...]] = {
    "prefill": (0.94, 0.85, 0.60, 0.26, 0.14),
    "decode": (0.99, 0.97, 0.94, 0.86, 0.17),
}
"""Performance at power limits (shares of TDP) over that without one, by phase: one consumer GPU, so the shape only (measured
by third party)."""

CLOCKS = np.round(np.arange(1.0, 0.0499, -0.005), 3)
"""Clocks of the curves, downwards: shares of the largest."""


@dataclass(frozen=True)
class Curve:
    """One phase on one rack type from clock 1 downwards.

    Attributes:
        rack: Rack type.
        phase: ``prefill`` or ``decode``.
        clock: Clocks, shares of the largest: float64[clocks].
        draw: Draw of a GPU at each, share of TDP: float64[clocks].
        performance: Tokens/s at each over those at clock 1: float64[clocks].
    """

    rack: str
    phase: str
    clock: Floats
    draw: Floats
    performance: Floats

    def at_limit(self, limit: float) -> float:
        """Return performance under a power limit: at the highest clock that obeys it, or the lowest where none does.

        Args:
            limit: Share of TDP.
        """
        obeys = np.flatnonzero(self.draw <= limit)
        return float(self.performance[obeys[0] if len(obeys) else -1])


def curve(rack_name: str, phase: str) -> Curve:
    """Return the model's curve of a phase on a rack type, with its default power profile."""
    rack = find_rack(rack_name)
    power = power_coefficients(rack, phase=phase)
    points = [_point(rack_name, phase, float(clock)) for clock in CLOCKS]
    coef = np.array(power)
    watts = [
        gpu_power_w(coef, clock, 1.0, compute, memory)
        for clock, (_, compute, memory) in zip(CLOCKS, points, strict=True)
    ]
    seconds = np.array([entry[0] for entry in points])
    return Curve(rack_name, phase, CLOCKS, np.array(watts) / power.tdp_w, seconds[0] / seconds)


def _point(rack_name: str, phase: str, clock: float) -> tuple[float, float, float]:
    """Return seconds of a prompt or an iteration, and the activities of compute and memory."""
    if phase == "prefill":
        coef = np.array(prefill_coefficients(rack_name, MODEL, precision=PRECISION, dp=4))
        scaling_s, fixed_s = prefill_work_s(coef, PROMPT_TOKENS, PROMPT_TOKENS**2)
        total_s = scaling_s / compute_rate(clock) + fixed_s
        return total_s, 1.0 - fixed_s / total_s, fixed_s / total_s
    coef = np.array(decode_coefficients(rack_name, MODEL, precision=PRECISION, tp=8))
    iteration_s, compute_s, memory_s = decode_iteration_s(coef, DECODE_BATCH, DECODE_CONTEXT_TOKENS, clock)
    return iteration_s, compute_s / iteration_s, memory_s / iteration_s
