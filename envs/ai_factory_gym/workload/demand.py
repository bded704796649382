"""How much arrives when: mean demand, its daily curve, minute-scale overdispersion and bursts.

The intensity of a class is ``mean rate x daily curve x overdispersion x bursts``, piecewise constant over minutes;
given the intensity, arrivals are Poisson (the engine draws them). Recorded traffic is far from Poisson at the scale of
minutes: in the Azure 2023 conversation trace the variance of the requests per minute is 16 times their mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ai_factory_gym.errors import ConfigError, check_range

Float64Array = NDArray[np.float64]

DAY_S = 86400.0
MINUTE_S = 60.0
HOUR_S = 3600.0
# Uniforms drawn for bursts in every episode, used or not, so that a scenario's bursts never move another draw.
MAX_BURSTS = 16


@dataclass(frozen=True, slots=True)
class DemandProfile:
    """How one class's demand varies around its mean.

    Attributes:
        peak_hour: Local time of the daily peak, hours.
        peak_to_trough: Highest over lowest demand of the day, 1 for none.
        overdispersion_sigma: Standard deviation of the logarithm of the minute-scale factor.
        overdispersion_tau_s: Correlation time of that factor, s.
        burst_exposure: Share of a burst's excess this class sees (1 follows it fully, 0 not at all).
    """

    peak_hour: float = 15.0
    peak_to_trough: float = 1.0
    overdispersion_sigma: float = 0.0
    overdispersion_tau_s: float = 480.0
    burst_exposure: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("peak_hour", self.peak_hour, 0.0, 24.0, "h")
        check_range("peak_to_trough", self.peak_to_trough, 1.0, 1000.0)
        check_range("overdispersion_sigma", self.overdispersion_sigma, 0.0, 3.0)
        check_range("overdispersion_tau_s", self.overdispersion_tau_s, 1.0, 30 * DAY_S, "s")
        check_range("burst_exposure", self.burst_exposure, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class BurstSpec:
    """A demand burst of random onset, length and size, once a day.

    Attributes:
        window_start_hour: Earliest onset, hours of the day.
        window_end_hour: Latest onset, hours of the day.
        duration_min_low: Shortest length, minutes.
        duration_min_high: Longest length, minutes.
        multiplier_low: Smallest factor on demand.
        multiplier_high: Largest factor on demand.
    """

    window_start_hour: float
    window_end_hour: float
    duration_min_low: float
    duration_min_high: float
    multiplier_low: float
    multiplier_high: float

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_min_low", self.duration_min_low, 0.1, 1440.0, "minutes")
        check_range("duration_min_high", self.duration_min_high, self.duration_min_low, 1440.0, "minutes")
        check_range("multiplier_low", self.multiplier_low, 1.0, 100.0)
        check_range("multiplier_high", self.multiplier_high, self.multiplier_low, 100.0)


@dataclass(frozen=True, slots=True)
class Burst:
    """A burst as drawn: onset in seconds of the day, length in s, factor on demand. It returns every day."""

    onset_s: float
    duration_s: float
    multiplier: float


def draw_bursts(rng: np.random.Generator, specs: Sequence[BurstSpec]) -> tuple[Burst, ...]:
    """Draw the bursts of an episode, uniform in each stated range.

    Exactly ``3 * MAX_BURSTS`` uniforms are drawn whatever ``specs`` holds, and burst i always uses the same three.

    Args:
        rng: The arrivals stream.
        specs: At most ``MAX_BURSTS`` burst descriptions.

    Returns:
        One burst per description, in order.

    Raises:
        ConfigError: When there are more than ``MAX_BURSTS``.
    """
    if len(specs) > MAX_BURSTS:
        raise ConfigError(f"bursts: {len(specs)} given; at most {MAX_BURSTS} are allowed.")
    uniforms = rng.random((MAX_BURSTS, 3))
    bursts = []
    for spec, (a, b, c) in zip(specs, uniforms.tolist(), strict=False):
        hour = spec.window_start_hour + a * (spec.window_end_hour - spec.window_start_hour)
        minutes = spec.duration_min_low + b * (spec.duration_min_high - spec.duration_min_low)
        multiplier = spec.multiplier_low + c * (spec.multiplier_high - spec.multiplier_low)
        bursts.append(Burst(hour * HOUR_S, minutes * MINUTE_S, multiplier))
    return tuple(bursts)


SITES_MODEL, OTHER_MODELS = "default", "others"
"""In place of a model's name in a shift: the one that a site's ``model`` names, and all its others."""

MAX_SHIFTS = 8
"""Shifts a scenario may have: as many are drawn in every episode."""


@dataclass(frozen=True, slots=True)
class ShiftSpec:
    """A change of the mix whose onset and size are drawn once per episode: some classes ask more, or less, for hours of every day.

    Attributes:
        classes: Names of the classes concerned; those a site does not serve are left out.
        window_start_hour: Earliest onset, hours of the day.
        window_end_hour: Latest onset, hours of the day.
        ramp_min: Minutes until it is in full force, and until it has gone again.
        duration_hours: Hours from onset to the end of the second ramp.
        factor_low: Smallest factor on their demand.
        factor_high: Largest factor.
        models: Models whose classes are concerned too: names, ``SITES_MODEL`` for the one a site's ``model`` names, ``OTHER_MODELS`` for
            its others. A site says which class is served by which; on one with a single model they concern no class.
    """

    classes: tuple[str, ...]
    window_start_hour: float
    window_end_hour: float
    ramp_min: float
    duration_hours: float
    factor_low: float
    factor_high: float
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not self.classes and not self.models:
            raise ConfigError("classes: none given, and no models; a shift concerns at least one class or model.")
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_hours", self.duration_hours, 0.1, 24.0, "h")
        check_range("ramp_min", self.ramp_min, 0.0, 30.0 * self.duration_hours, "minutes")
        check_range("factor_low", self.factor_low, 0.0, 100.0)
        check_range("factor_high", self.factor_high, self.factor_low, 100.0)


@dataclass(frozen=True, slots=True)
class Shift:
    """A shift as drawn: onset in s of the day, ramp and length in s, factor on the demand of its classes. It returns every day."""

    classes: tuple[str, ...]
    onset_s: float
    ramp_s: float
    duration_s: float
    factor: float
    models: tuple[str, ...] = ()


def draw_shifts(rng: np.random.Generator, specs: Sequence[ShiftSpec]) -> tuple[Shift, ...]:
    """Draw the shifts of an episode, uniform in each stated range; exactly ``2 * MAX_SHIFTS`` uniforms are drawn in any case.

    Args:
        rng: A stream of their own.
        specs: At most ``MAX_SHIFTS``.

    Raises:
        ConfigError: When there are more.
    """
    if len(specs) > MAX_SHIFTS:
        raise ConfigError(f"shifts: {len(specs)} given; at most {MAX_SHIFTS} are allowed.")
    shifts = []
    for spec, (a, b) in zip(specs, rng.random((MAX_SHIFTS, 2)).tolist(), strict=False):
        hour = spec.window_start_hour + a * (spec.window_end_hour - spec.window_start_hour)
        factor = spec.factor_low + b * (spec.factor_high - spec.factor_low)
        shifts.append(
            Shift(
                spec.classes, hour * HOUR_S, spec.ramp_min * MINUTE_S, spec.duration_hours * HOUR_S, factor, spec.models
            )
        )
    return tuple(shifts)


def shift_factor(shifts: Sequence[Shift], names: Sequence[str], start_s: float, minutes: int) -> Float64Array:
    """Return the factor of shifts on each class and minute, float64[classes, minutes]; shifts of one class multiply.

    Args:
        shifts: As drawn, by classes (``task.shifted_classes`` says which those of a model are).
        names: Classes.
        start_s: Local time of the first minute, s since a midnight.
        minutes: Number of minutes.
    """
    factor = np.ones((len(names), minutes))
    time_s = start_s + MINUTE_S * (np.arange(minutes) + 0.5)
    for shift in shifts:
        since_s = (time_s - shift.onset_s) % DAY_S
        ramp_s = max(shift.ramp_s, 1e-9)
        strength = np.clip(np.minimum(since_s / ramp_s, (shift.duration_s - since_s) / ramp_s), 0.0, 1.0)
        concerned = np.isin(np.asarray(names), shift.classes)
        factor[concerned] *= 1.0 + (shift.factor - 1.0) * strength
    return factor


def daily_factor(profile: DemandProfile, time_s: ArrayLike) -> Float64Array:
    """Return the daily curve ``exp(kappa cos(2 pi (h - peak)/24)) / I0(kappa)``, ``kappa = ln(peak_to_trough)/2``.

    A smooth curve with one peak and one trough, always positive, whose mean over the day is exactly 1 (I0 is the
    modified Bessel function) and whose peak-to-trough ratio is the given one. A swing of 2.55, the median day of
    ServeGen m-large, gives peak/mean 1.51 (measured: median 1.45); 4.9 (deepseek-r1) gives 1.90 (measured: 2.19).

    Args:
        profile: Peak hour and peak-to-trough ratio.
        time_s: Local time in s since a midnight, any shape.

    Returns:
        float64 of the same shape.
    """
    kappa = 0.5 * math.log(profile.peak_to_trough)
    phase = (np.asarray(time_s, dtype=np.float64) - profile.peak_hour * HOUR_S) * (2.0 * math.pi / DAY_S)
    return np.asarray(np.exp(kappa * np.cos(phase)) / np.i0(kappa), dtype=np.float64)


def burst_factor(bursts: Sequence[Burst], start_s: float, minutes: int) -> Float64Array:
    """Return the factor of bursts per minute, [minutes]; a minute a burst covers partly gets its share of the excess.

    Bursts are times of day: they act on every day of the horizon, one that began before ``start_s`` with what is left
    of it. Overlapping bursts multiply.
    """
    factor = np.ones(minutes)
    first_day = math.floor(start_s / DAY_S) - 1
    last_day = math.floor((start_s + MINUTE_S * minutes) / DAY_S)
    for burst in bursts:
        excess = np.zeros(minutes)
        for day in range(first_day, last_day + 1):
            # In minutes since start_s; only the minutes the burst touches are worked on, resets are frequent.
            onset = (day * DAY_S + burst.onset_s - start_s) / MINUTE_S
            end = onset + burst.duration_s / MINUTE_S
            low, high = max(math.floor(onset), 0), min(math.ceil(end), minutes)
            if low < high:
                begin = np.arange(low, high)
                excess[low:high] += np.minimum(begin + 1.0, end) - np.maximum(begin, onset)
        factor *= 1.0 + (burst.multiplier - 1.0) * excess
    return factor


def overdispersion_factor(normals: ArrayLike, sigma: ArrayLike, tau_s: ArrayLike) -> Float64Array:
    """Return a log-Ornstein-Uhlenbeck factor with mean exactly 1, sampled once a minute.

    ``factor = exp(sigma x - sigma^2/2)`` with ``x`` a stationary AR(1) of unit variance and correlation
    ``exp(-60 s / tau)`` from one minute to the next. The recursion is unrolled by doubling: after k passes each element
    holds the last 2^k terms of ``x_m = sum_j rho^j e_(m-j)``, so the cost is log2(minutes) array operations, and
    minute m does not depend on how many minutes follow.

    Args:
        normals: Standard normal numbers, [classes, minutes].
        sigma: Standard deviation of the logarithm, [classes].
        tau_s: Correlation time in s, [classes].

    Returns:
        float64[classes, minutes].
    """
    x = np.array(np.asarray(normals, dtype=np.float64).T, order="C")
    sigma_row = np.asarray(sigma, dtype=np.float64)
    rho = np.exp(-MINUTE_S / np.asarray(tau_s, dtype=np.float64))
    # The first minute carries the stationary start; the others bring what keeps the variance at one.
    x[1:] *= np.sqrt(1.0 - rho * rho)
    # Minute-major and with the power written out per element, both operands are contiguous: twice as fast.
    power = np.tile(rho, (x.shape[0], 1))
    step = 1
    # Below 1e-17 a term cannot change a double of order one.
    while step < x.shape[0] and power[0].max() > 1e-17:
        x[step:] += power[:-step] * x[:-step]
        power *= power
        step *= 2
    x *= sigma_row
    x -= 0.5 * sigma_row * sigma_row
    return np.asarray(np.exp(x, out=x).T, dtype=np.float64)


class _Columns(NamedTuple):
    """Parameters of several classes as columns [classes, 1]; computed once per set of classes, resets are frequent."""

    cos_peak: Float64Array
    sin_peak: Float64Array
    kappa: Float64Array
    bessel: Float64Array
    sigma: Float64Array
    tau_s: Float64Array
    exposure: Float64Array


@functools.lru_cache(maxsize=64)
def _columns(profiles: tuple[DemandProfile, ...]) -> _Columns:
    def column(values: Sequence[float]) -> Float64Array:
        return np.array(values, dtype=np.float64)[:, None]

    peak = column([p.peak_hour for p in profiles]) * (2.0 * math.pi * HOUR_S / DAY_S)
    kappa = 0.5 * np.log(column([p.peak_to_trough for p in profiles]))
    return _Columns(
        cos_peak=np.cos(peak),
        sin_peak=np.sin(peak),
        kappa=kappa,
        bessel=np.asarray(np.i0(kappa), dtype=np.float64),
        sigma=column([p.overdispersion_sigma for p in profiles]),
        tau_s=column([p.overdispersion_tau_s for p in profiles]),
        exposure=column([p.burst_exposure for p in profiles]),
    )


def _check_path(
    profiles: Sequence[DemandProfile], mean_rate_rps: ArrayLike, start_s: float, minutes: int
) -> Float64Array:
    rates = np.asarray(mean_rate_rps, dtype=np.float64)
    if rates.shape != (len(profiles),) or not np.all(np.isfinite(rates)) or np.any(rates < 0.0):
        raise ConfigError(
            f"mean_rate_rps: {mean_rate_rps!r} must hold {len(profiles)} finite rates >= 0, one per class."
        )
    if not math.isfinite(start_s):
        raise ConfigError(f"start_s: {start_s!r} must be a finite number of seconds.")
    if minutes < 1:
        raise ConfigError(f"minutes: {minutes!r} must be at least 1.")
    return rates


def mean_path(
    profiles: Sequence[DemandProfile], mean_rate_rps: ArrayLike, start_s: float, minutes: int, *, daily: bool = True
) -> Float64Array:
    """Return the deterministic part of demand: what a forecaster knows without having seen the day.

    Args:
        profiles: One per class.
        mean_rate_rps: Mean over the day, requests/s, [classes].
        start_s: Local time of the first minute, s since a midnight; may exceed a day.
        minutes: Number of minutes.
        daily: Whether the daily curve applies.

    Returns:
        requests/s at the middle of each minute, float64[classes, minutes].

    Raises:
        ConfigError: On rates of the wrong shape, negative or not finite.
    """
    rates = _check_path(profiles, mean_rate_rps, start_s, minutes)
    if not daily:
        return np.repeat(rates[:, None], minutes, axis=1)
    columns = _columns(tuple(profiles))
    phase = (start_s + MINUTE_S * (np.arange(minutes) + 0.5)) * (2.0 * math.pi / DAY_S)
    # cos(a - b) expanded, so that the cosine is taken once per minute and not once per class and minute.
    wave = columns.kappa * (columns.cos_peak * np.cos(phase) + columns.sin_peak * np.sin(phase))
    np.exp(wave, out=wave)
    wave *= rates[:, None] / columns.bessel
    return np.asarray(wave, dtype=np.float64)


def rate_path(
    rng: np.random.Generator,
    profiles: Sequence[DemandProfile],
    mean_rate_rps: ArrayLike,
    start_s: float,
    minutes: int,
    *,
    daily: bool = True,
    overdispersion: float = 1.0,
    bursts: Sequence[Burst] = (),
) -> Float64Array:
    """Draw an intensity path: daily curve x overdispersion x bursts.

    ``minutes x classes`` normals are drawn, minute by minute, whatever the other arguments are: switching a part off or
    changing rates leaves every other number in place, and a longer path begins with the shorter one.

    Args:
        rng: The arrivals stream.
        profiles: One per class.
        mean_rate_rps: Mean over the day without bursts, requests/s, [classes].
        start_s: Local time of the first minute, s since a midnight; may exceed a day.
        minutes: Number of minutes.
        daily: Whether the daily curve applies.
        overdispersion: Factor on every class's ``overdispersion_sigma``; 0 switches it off.
        bursts: Bursts as drawn by ``draw_bursts``.

    Returns:
        requests/s, constant within each minute, float64[classes, minutes].

    Raises:
        ConfigError: On rates of the wrong shape, negative or not finite, or a negative ``overdispersion``.
    """
    check_range("overdispersion", overdispersion, 0.0, 10.0)
    path = mean_path(profiles, mean_rate_rps, start_s, minutes, daily=daily)
    normals = rng.standard_normal((minutes, len(profiles))).T
    columns = _columns(tuple(profiles))
    if overdispersion > 0.0:
        path *= overdispersion_factor(normals, columns.sigma[:, 0] * overdispersion, columns.tau_s[:, 0])
    if bursts:
        path *= 1.0 + columns.exposure * (burst_factor(bursts, start_s, minutes) - 1.0)
    return path
