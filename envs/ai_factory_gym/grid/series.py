"""What varies with time around a site: the price of electricity, its carbon intensity, the outdoor temperature.

A series is a constant, a CSV file of one's own, or synthetic. Synthetic profiles are made up: smooth curves with the features operators
know (an evening peak of prices, a dip of price and carbon while the sun shines, a warm afternoon) around the site's mean, so that price- and
weather-aware policies can be tried where no data are at hand. They are labelled synthetic wherever they are shown.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import ConfigError, check_range, unknown
from ai_factory_gym.grid.cap import DAY_S, HOUR_S, MINUTE_S

Float64Array = NDArray[np.float64]

SYNTHETIC = "synthetic"

MAX_EVENTS = 8
"""Uniforms are drawn for this many events of a kind in every episode, used or not, so that events never move another draw."""

UNITS = {"electricity": "usd_per_mwh", "carbon": "g_per_kwh", "temperature": "celsius"}
"""Kinds of series and the unit of their values, which is the name of the column in a CSV file."""

_WORDS = {
    "electricity": "US dollars per megawatt-hour",
    "carbon": "grams of CO2 per kilowatt-hour",
    "temperature": "degrees Celsius",
}
"""These units in words."""

RANGES = {"electricity": (-1e4, 1e5), "carbon": (0.0, 5e3), "temperature": (-60.0, 60.0)}
"""Values that can be meant."""

TIME_COLUMNS = {"time_s": 1.0, "hour": HOUR_S}
"""Names of a first column of numbers and the seconds of one unit; ``timestamp`` holds ISO 8601 times instead."""

# Bumps of the synthetic curves, (hour of the peak, width in hours, height relative to the mean): status assumed.
_PRICE_BUMPS = ((8.0, 1.5, 0.25), (13.0, 2.5, -0.35), (19.5, 1.8, 0.9))
_CARBON_BUMPS = ((13.0, 3.0, -0.35), (20.0, 2.5, 0.12))
_PRICE_HOUR_SIGMA, _PRICE_DAY_SIGMA = 0.12, 0.2
_CARBON_DAY_SIGMA = 0.1
_TEMPERATURE_SWING_K, _WARMEST_HOUR, _TEMPERATURE_DAY_K = 5.0, 15.0, 3.0


@dataclass(frozen=True, slots=True)
class Series:
    """Values over time, each holding until the next; after the end the series begins anew.

    Attributes:
        kind: One of ``UNITS``.
        times_s: Start of each value, s since the midnight of the first day, rising.
        values: Values in the unit of the kind.
        source: Where they come from, for people.
    """

    kind: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]
    source: str = ""

    @property
    def days(self) -> int:
        """Whole days covered: the last value holds as long as the one before it."""
        step_s = self.times_s[-1] - self.times_s[-2]
        return int((self.times_s[-1] + step_s + 1e-6) // DAY_S)

    @property
    def mean(self) -> float:
        """Mean over its days."""
        return float(self.at(np.arange(0.0, self.days * DAY_S, 60.0)).mean())

    def at(self, time_s: Float64Array) -> Float64Array:
        """Return the values at these times, s since the midnight of the first day."""
        wrapped = np.mod(time_s, self.days * DAY_S)
        place = np.searchsorted(np.array(self.times_s), wrapped + 1e-6, side="right") - 1
        # What comes before the first value of a file that begins after midnight is its last.
        return np.asarray(np.array(self.values)[place])


def load_series(path: str | Path, kind: str) -> Series:
    """Read a series from a CSV file, gzipped or not.

    The header has two columns: ``time_s``, ``hour`` or ``timestamp`` (ISO 8601, all with a zone or all without), and the unit of
    the kind (``usd_per_mwh``, ``g_per_kwh``, ``celsius``). The first day begins at the midnight before the first time.

    Args:
        path: The file.
        kind: One of ``UNITS``.

    Raises:
        ConfigError: On a file that cannot be read, another header, a row that is no number, times that do not rise, values out of range,
            or less than a day.
    """
    if kind not in UNITS:
        raise unknown("series", kind, list(UNITS))
    where = f"series {kind}: {str(path)!r}"
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error}).") from None
    except (UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        raise ConfigError(f"{where}: is not a text file in UTF-8 or is damaged ({error}).") from None
    if not rows or len(rows[0]) != 2:
        raise ConfigError(f"{where}: the first line must name two columns, a time and {UNITS[kind]}.")
    first, second = (name.strip() for name in rows[0])
    if first not in TIME_COLUMNS and first != "timestamp":
        raise unknown(f"{where}: first column", first, [*TIME_COLUMNS, "timestamp"])
    if second != UNITS[kind]:
        raise ConfigError(
            f"{where}: second column: {second!r} is not allowed; must be {UNITS[kind]!r}: values in {_WORDS[kind]}. Convert the values, "
            "not the name alone, where they are in another unit."
        )
    times, values = [], []
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise ConfigError(f"{where}: line {line} has {len(row)} columns; must have 2.")
        times.append(_time_s(f"{where}: line {line}: {first}", row[0], first))
        try:
            value = float(row[1])
        except ValueError:
            raise ConfigError(f"{where}: line {line}: {second}: {row[1]!r} is not a number.") from None
        values.append(check_range(f"{where}: line {line}: {second}", value, *RANGES[kind]))
        if len(times) > 1 and times[-1] <= times[-2]:
            raise ConfigError(
                f"{where}: line {line}: {first}: {row[0]!r} does not come after the line before; times must rise."
            )
    if len(times) < 2:
        raise ConfigError(f"{where}: {len(times)} rows; at least 2 are needed.")
    midnight = math.floor(times[0] / DAY_S) * DAY_S
    series = Series(kind, tuple(time - midnight for time in times), tuple(values), str(path))
    if series.days < 1:
        raise ConfigError(f"{where}: covers less than a day from midnight; must cover at least one.")
    return series


def _time_s(where: str, text: str, column: str) -> float:
    """Return a time of a file in seconds."""
    try:
        if column == "timestamp":
            moment = datetime.datetime.fromisoformat(text.strip())
            # Local time counts: the zone, where there is one, is left out.
            return (moment.replace(tzinfo=None) - datetime.datetime(1970, 1, 1)).total_seconds()
        value = float(text) * TIME_COLUMNS[column]
    except (ValueError, OverflowError):
        kind = "an ISO 8601 time" if column == "timestamp" else "a number"
        raise ConfigError(f"{where}: {text!r} is not {kind}.") from None
    return check_range(where, value, 0.0, 1e11, "s")


def _bumps(hours: Float64Array, bumps: Sequence[tuple[float, float, float]]) -> Float64Array:
    """Return a daily curve of mean 1: bumps around the clock on a flat base."""

    def curve(at: Float64Array) -> Float64Array:
        total = np.ones(at.shape)
        for peak, width, height in bumps:
            away = np.mod(at - peak + 12.0, 24.0) - 12.0
            total += height * np.exp(-0.5 * (away / width) ** 2)
        return total

    return curve(hours) / float(curve(np.arange(0.0, 24.0, 0.25)).mean())


def synthetic_series(rng: np.random.Generator, kind: str, mean: float, local_s: Float64Array) -> Float64Array:
    """Return a synthetic series around a mean.

    As many numbers are drawn whatever the mean: one a day and one an hour.

    Args:
        rng: A stream of its own.
        kind: One of ``UNITS``.
        mean: Long-run mean in the unit of the kind.
        local_s: Local times, s since the midnight of the first day, rising, float64[n].

    Returns:
        Values, float64[n].
    """
    hours = np.mod(local_s / HOUR_S, 24.0)
    first = math.floor(float(local_s[0]) / DAY_S)
    days = math.floor(float(local_s[-1]) / DAY_S) - first + 1
    by_day = rng.normal(size=days)[np.floor(local_s / DAY_S).astype(np.int64) - first]
    by_hour = rng.normal(size=24 * days)[np.floor(local_s / HOUR_S).astype(np.int64) - 24 * first]
    if kind == "temperature":
        swing = _TEMPERATURE_SWING_K * np.cos(2.0 * math.pi * (hours - _WARMEST_HOUR) / 24.0)
        return np.asarray(mean + swing + _TEMPERATURE_DAY_K * by_day)
    if kind == "carbon":
        level = np.exp(_CARBON_DAY_SIGMA * by_day - 0.5 * _CARBON_DAY_SIGMA**2)
        return np.asarray(mean * _bumps(hours, _CARBON_BUMPS) * level)
    spread = _PRICE_DAY_SIGMA * by_day + _PRICE_HOUR_SIGMA * by_hour
    level = np.exp(spread - 0.5 * (_PRICE_DAY_SIGMA**2 + _PRICE_HOUR_SIGMA**2))
    return np.asarray(mean * _bumps(hours, _PRICE_BUMPS) * level)


def draw_series(
    rng: np.random.Generator, kind: str, series: Series | str | None, mean: float, local_s: Float64Array
) -> Float64Array:
    """Return the values of an episode.

    Args:
        rng: A stream of its own: of a file it draws the day, of a synthetic series the noise.
        kind: One of ``UNITS``.
        series: A file's series, ``SYNTHETIC``, or None for a constant.
        mean: The constant, or what a synthetic series varies around.
        local_s: Local times, s since a midnight, float64[n].

    Returns:
        Values, float64[n].
    """
    if series is None:
        return np.full(len(local_s), mean)
    if isinstance(series, Series):
        return series.at(local_s + DAY_S * int(rng.integers(0, series.days)))
    return synthetic_series(rng, kind, mean, local_s)


def hottest_c(series: Series | str | None, mean: float, events: Sequence[SeriesEventSpec]) -> float:
    """Return the highest outdoor temperature an episode may meet, degC; of synthetic weather one day in a thousand is hotter."""
    if isinstance(series, Series):
        usual = max(series.values)
    elif series is None and not events:
        usual = mean
    else:
        usual = mean + _TEMPERATURE_SWING_K + 3.0 * _TEMPERATURE_DAY_K
    return usual + sum(event.high for event in events)


@dataclass(frozen=True, slots=True)
class SeriesEventSpec:
    """A stretch of a day in which a series is other than usual, drawn once per episode; it returns every day.

    Attributes:
        window_start_hour: Earliest begin, hours of the day.
        window_end_hour: Latest begin, hours of the day.
        duration_hours: Length at full size, h.
        ramp_min: Time to rise to it, and to fall back, minutes.
        low: Smallest size: a factor on prices, kelvin on temperatures.
        high: Largest size.
    """

    window_start_hour: float
    window_end_hour: float
    duration_hours: float
    ramp_min: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_hours", self.duration_hours, 0.01, 24.0, "h")
        check_range("ramp_min", self.ramp_min, 0.0, 720.0, "minutes")
        check_range("low", self.low, 0.0, 1000.0)
        check_range("high", self.high, self.low, 1000.0)


def event_strength(
    rng: np.random.Generator, specs: Sequence[SeriesEventSpec], local_s: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Draw events and return how far each is in force, and its size.

    Args:
        rng: A stream of its own; ``2 MAX_EVENTS`` uniforms are drawn whatever ``specs`` holds.
        specs: At most ``MAX_EVENTS`` descriptions.
        local_s: Local times, s since a midnight, float64[n].

    Returns:
        Strength in [0, 1], float64[events, n], and sizes, float64[events].
    """
    uniforms = rng.random((MAX_EVENTS, 2))
    strength = np.zeros((len(specs), len(local_s)))
    sizes = np.zeros(len(specs))
    for index, spec in enumerate(specs):
        begin_s = HOUR_S * (
            spec.window_start_hour + uniforms[index, 0] * (spec.window_end_hour - spec.window_start_hour)
        )
        sizes[index] = spec.low + uniforms[index, 1] * (spec.high - spec.low)
        ramp_s = max(spec.ramp_min * MINUTE_S, 1e-6)
        since_s = np.mod(local_s - begin_s, DAY_S)
        length_s = min(DAY_S, spec.duration_hours * HOUR_S + 2.0 * ramp_s)
        rise = np.minimum(since_s, length_s - since_s) / ramp_s
        strength[index] = np.clip(rise, 0.0, 1.0)
    return strength, sizes
