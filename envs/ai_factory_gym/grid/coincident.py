"""Coincident peaks: the quarter hours by which a grid's users share its cost, known only afterwards.

In ERCOT (4CP) a large user's share of the transmission cost of a year is its mean draw in four quarter hours, those in which the whole grid
drew most in June, July, August and September. Nobody knows them beforehand; services warn of the hours in which they may fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import ConfigError, check_range
from ai_factory_gym.grid.cap import DAY_S, HOUR_S

Float64Array = NDArray[np.float64]

QUARTER_S = 900.0
"""A quarter of an hour: what draw is charged by."""

MAX_WINDOWS = 8
"""Uniforms are drawn for this many windows on every day with any, used or not."""


@dataclass(frozen=True, slots=True)
class PeakWindowSpec:
    """Hours of every day in one of whose quarters the coincident peak falls; which one is hidden and drawn anew each day.

    Attributes:
        start_hour: Begin, hours of the day.
        end_hour: End, hours of the day.
        notice_hours: How long before its begin the window is announced, h.
    """

    start_hour: float
    end_hour: float
    notice_hours: float

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("start_hour", self.start_hour, 0.0, 24.0, "h")
        check_range("end_hour", self.end_hour, self.start_hour, 24.0, "h")
        check_range("notice_hours", self.notice_hours, 0.0, 24.0, "h")
        if self.quarters < 1:
            raise ConfigError(
                f"end_hour: {self.end_hour!r} is not allowed; there must be a full quarter of an hour by the clock after {self.start_hour!r}."
            )

    @property
    def first_quarter(self) -> int:
        """First quarter of an hour of the day that lies within."""
        return math.ceil(self.start_hour * 4.0 - 1e-9)

    @property
    def quarters(self) -> int:
        """How many lie within."""
        return math.floor(self.end_hour * 4.0 + 1e-9) - self.first_quarter


class PeakPath(NamedTuple):
    """What is known of coincident peaks and what is not; every array has shape [n].

    Attributes:
        until_s: Time until the next announced window begins, s; 0 inside one, inf without one.
        left_s: Time left in the present window, s; 0 outside.
        counted: 1 in the quarter hour that counts, which the operator does not see.
    """

    until_s: Float64Array
    left_s: Float64Array
    counted: Float64Array


def draw_peaks(rng: np.random.Generator, specs: Sequence[PeakWindowSpec], local_s: Float64Array) -> PeakPath:
    """Draw the quarter hours that count, and return what is known when.

    Args:
        rng: A stream of its own; ``MAX_WINDOWS`` uniforms are drawn a day.
        specs: At most ``MAX_WINDOWS`` windows.
        local_s: Local times, s since a midnight, rising, float64[n].
    """
    path = PeakPath(np.full(len(local_s), math.inf), np.zeros(len(local_s)), np.zeros(len(local_s)))
    if not specs:
        return path
    now_s = local_s + 1e-3  # begins are whole seconds up to rounding
    first = math.floor(float(local_s[0]) / DAY_S)
    # A day more: notice of its window may be given on the last one.
    for day in range(first, math.floor(float(local_s[-1]) / DAY_S) + 2):
        uniforms = rng.random(MAX_WINDOWS)
        for spec, uniform in zip(specs, uniforms, strict=False):
            begin_s, end_s = (day * DAY_S + HOUR_S * hour for hour in (spec.start_hour, spec.end_hour))
            ahead = (now_s >= begin_s - HOUR_S * spec.notice_hours) & (now_s < begin_s)
            inside = (now_s >= begin_s) & (now_s < end_s)
            path.until_s[ahead] = np.minimum(path.until_s[ahead], begin_s - local_s[ahead])
            path.until_s[inside] = 0.0
            path.left_s[inside] = np.maximum(path.left_s[inside], end_s - local_s[inside])
            quarter = spec.first_quarter + int(uniform * spec.quarters)
            counted_s = day * DAY_S + QUARTER_S * quarter
            path.counted[(now_s >= counted_s) & (now_s < counted_s + QUARTER_S)] = 1.0
    return path
