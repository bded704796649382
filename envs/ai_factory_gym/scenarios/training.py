"""A training block that a scenario puts beside a site's pools, and when jobs come to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import ConfigError, check_range, check_text
from ai_factory_gym.sites.reliability import ReliabilityConfig

Float64Array = NDArray[np.float64]

DAY_S, HOUR_S, MINUTE_S = 86400.0, 3600.0, 60.0

MAX_JOBS = 8
"""Uniforms are drawn for this many jobs of a day, used or not."""

JOBS_STREAM, OUTAGES_STREAM = 0x7EA1, 0x7EA2
"""Keys of their streams below those of a purpose (``engine.outages.child``)."""


@dataclass(frozen=True, slots=True)
class TrainingBlockSpec:
    """The training block of a site that has none of its own.

    Attributes:
        cap_share: Share of the site's cap that its racks may take at their limit, cooling included: as many as fit, and at least one. 0 is
            no block.
        rack: Their type.
    """

    cap_share: float = 0.0
    rack: str = "gb300_nvl72"

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("training_block.cap_share", self.cap_share, 0.0, 0.9)
        check_text("training_block.rack", self.rack)

    def __or__(self, other: TrainingBlockSpec) -> TrainingBlockSpec:
        """Return the larger block of both."""
        return other if other.cap_share > self.cap_share else self


NO_BLOCK = TrainingBlockSpec()
"""No block but that of the site, if it has one."""


@dataclass(frozen=True, slots=True)
class TrainingJobSpec:
    """A training job that comes once a day.

    Attributes:
        window_start_hour: Earliest hour of the day at which it comes.
        window_end_hour: Latest hour.
        duration_hours: How long it stays; what it has not done by then is left undone.
        duration_high_hours: Longest, uniform from ``duration_hours``; None is ``duration_hours``.
    """

    window_start_hour: float
    window_end_hour: float
    duration_hours: float
    duration_high_hours: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_hours", self.duration_hours, 0.1, 24.0, "h")
        if self.duration_high_hours is not None:
            check_range("duration_high_hours", self.duration_high_hours, self.duration_hours, 24.0, "h")

    @property
    def longest_hours(self) -> float:
        """Longest stay."""
        return self.duration_hours if self.duration_high_hours is None else self.duration_high_hours


def draw_jobs(rng: np.random.Generator, specs: Sequence[TrainingJobSpec], local_s: Float64Array) -> Float64Array:
    """Draw when there is a job: 1 in minutes with one, else 0; without specs there always is one.

    Begin and length, whole minutes, are drawn once per episode and return daily. Where two jobs overlap the block is busy once.

    Args:
        rng: A stream of its own; the same numbers are drawn whatever ``specs`` holds.
        specs: At most ``MAX_JOBS`` jobs.
        local_s: Local times, s since a midnight, rising, float64[n].

    Raises:
        ConfigError: On more jobs than allowed.
    """
    if len(specs) > MAX_JOBS:
        raise ConfigError(f"training_jobs: {len(specs)} given; at most {MAX_JOBS} are allowed.")
    uniforms = rng.random((MAX_JOBS, 2))
    if not specs:
        return np.ones(len(local_s))
    there = np.zeros(len(local_s))
    for spec, (u_begin, u_length) in zip(specs, uniforms.tolist(), strict=False):
        hour = spec.window_start_hour + u_begin * (spec.window_end_hour - spec.window_start_hour)
        begin_s = math.floor(hour * HOUR_S / MINUTE_S) * MINUTE_S
        hours = spec.duration_hours + u_length * (spec.longest_hours - spec.duration_hours)
        length_s = math.floor(hours * HOUR_S / MINUTE_S) * MINUTE_S
        # Times are whole seconds up to rounding.
        there[(local_s - begin_s + 1e-3) % DAY_S < length_s] = 1.0
    return there


def draw_block_outages(
    rng: np.random.Generator, spec: ReliabilityConfig, rate_factor: float, gpus: int, minutes: int
) -> NDArray[np.bool_]:
    """Draw the minutes in which a rack of the block is out of service, bool[minutes]; the job stands on all of its racks.

    A fault that needs no repair takes a minute: the job has to start again all the same.

    Args:
        rng: A stream of its own.
        spec: The site's reliability.
        rate_factor: Factor on its rate.
        gpus: GPUs of the block.
        minutes: Minutes of the episode.
    """
    down = np.zeros(minutes, dtype=np.bool_)
    for _ in range(int(rng.poisson(rate_factor * spec.gpu_faults_per_hour * gpus * minutes / 60.0))):
        begin = int(rng.integers(minutes))
        hardware = rng.uniform() < spec.hardware_share
        lasts_s = rng.exponential(spec.repair_s)
        down[begin : begin + 1 + int(hardware * lasts_s / MINUTE_S)] = True
    return down


__all__ = ["MAX_JOBS", "NO_BLOCK", "TrainingBlockSpec", "TrainingJobSpec", "draw_block_outages", "draw_jobs"]
