"""The facility's power cap: a constant, lowered by curtailment events that are announced some time ahead.

An event multiplies the cap by ``1 - depth`` over ``[start, start + duration)``; where events overlap, the deepest one
holds. Times are seconds of the episode; an event may have begun, or been announced, before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ai_factory_gym.errors import ConfigError, check_range

Float64Array = NDArray[np.float64]

DAY_S = 86400.0
HOUR_S = 3600.0
MINUTE_S = 60.0
# Uniforms drawn for cap events in every episode, used or not, so that a scenario's events never move another draw.
MAX_CAP_EVENTS = 16


@dataclass(frozen=True, slots=True)
class CapEventSpec:
    """A curtailment whose start is drawn once per episode and returns at that time of every day.

    Attributes:
        window_start_hour: Earliest start, hours of the day.
        window_end_hour: Latest start, hours of the day.
        duration_s: Length, s.
        depth: Share of the cap taken away, in (0, 1).
        notice_s: How long before its start it is announced, s.
        depth_high: Largest depth, uniform from ``depth``; None is ``depth``.
        duration_high_s: Largest length, uniform from ``duration_s``, s; None is ``duration_s``.
    """

    window_start_hour: float
    window_end_hour: float
    duration_s: float
    depth: float
    notice_s: float
    depth_high: float | None = None
    duration_high_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_s", self.duration_s, 1.0, DAY_S, "s")
        check_range("depth", self.depth, 1e-6, 0.999999)
        check_range("notice_s", self.notice_s, 0.0, DAY_S, "s")
        if self.depth_high is not None:
            check_range("depth_high", self.depth_high, self.depth, 0.999999)
        if self.duration_high_s is not None:
            check_range("duration_high_s", self.duration_high_s, self.duration_s, DAY_S, "s")

    @property
    def deepest(self) -> float:
        """Largest share of the cap that it may take away."""
        return self.depth if self.depth_high is None else self.depth_high

    def sized(self, u_depth: float, u_duration: float) -> tuple[float, float]:
        """Return depth and length (s, whole minutes where it has a range) for uniforms in [0, 1)."""
        depth, duration_s = self.depth, self.duration_s
        if self.depth_high is not None:
            depth += u_depth * (self.depth_high - self.depth)
        if self.duration_high_s is not None:
            duration_s += math.floor(u_duration * (self.duration_high_s - self.duration_s) / MINUTE_S) * MINUTE_S
        return depth, duration_s


@dataclass(frozen=True, slots=True, order=True)
class CapEvent:
    """One curtailment in episode time.

    Attributes:
        start_s: Start, s since the episode began; may be negative.
        duration_s: Length, s.
        depth: Share of the cap taken away, in (0, 1).
        notice_s: How long before its start it is announced, s.
    """

    start_s: float
    duration_s: float
    depth: float
    notice_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("start_s", self.start_s, -1e9, 1e9, "s")
        check_range("duration_s", self.duration_s, 1e-3, 1e9, "s")
        check_range("depth", self.depth, 1e-6, 0.999999)
        check_range("notice_s", self.notice_s, 0.0, 1e9, "s")

    @property
    def end_s(self) -> float:
        """First second after the event."""
        return self.start_s + self.duration_s

    @property
    def announced_at_s(self) -> float:
        """Time from which the event is known, s."""
        return self.start_s - self.notice_s


class Breakpoints(NamedTuple):
    """The cap as steps: ``cap_w[i]`` holds from ``times_s[i]`` to ``times_s[i + 1]``; every array has shape [n].

    Attributes:
        times_s: Start of each step, s, ascending; the first is -inf.
        cap_w: Cap, W.
        announced_at_s: Time from which the step is known in full, s: when every event that shapes it has been
            announced; -inf for the step before any event.
    """

    times_s: Float64Array
    cap_w: Float64Array
    announced_at_s: Float64Array


class EventArrays(NamedTuple):
    """Events for a kernel, in order of start; every array has shape [events]."""

    start_s: Float64Array
    end_s: Float64Array
    cap_w: Float64Array
    announced_at_s: Float64Array


@dataclass(frozen=True, slots=True)
class CapSchedule:
    """A base cap and the events that lower it.

    Attributes:
        base_cap_w: Cap outside events, W.
        events: Events in order of start.
    """

    base_cap_w: float
    events: tuple[CapEvent, ...] = ()

    def __post_init__(self) -> None:
        """Check the cap and put the events in order (ConfigError on a cap that is not positive)."""
        check_range("base_cap_w", self.base_cap_w, 1e-6, 1e15, "W")
        object.__setattr__(self, "events", tuple(sorted(self.events)))

    @property
    def lowest_cap_w(self) -> float:
        """Lowest cap the schedule ever sets, W."""
        return self.base_cap_w * (1.0 - max((event.depth for event in self.events), default=0.0))

    def cap_at(self, time_s: ArrayLike) -> Float64Array:
        """Return the cap in W at these times, any shape (a 0-d array for a number)."""
        return self.known_cap(math.inf, time_s)

    def known_cap(self, now_s: float, time_s: ArrayLike) -> Float64Array:
        """Return the cap in W at ``time_s`` as known at ``now_s``: events not announced by then are left out."""
        times = np.asarray(time_s, dtype=np.float64)
        fraction = np.ones(times.shape)
        for event in self.events:
            if event.announced_at_s <= now_s:
                inside = (times >= event.start_s) & (times < event.end_s)
                fraction = np.where(inside, np.minimum(fraction, 1.0 - event.depth), fraction)
        return np.asarray(self.base_cap_w * fraction, dtype=np.float64)

    def active_event(self, time_s: float) -> CapEvent | None:
        """Return the deepest event in force at ``time_s``, or None."""
        active = [event for event in self.events if event.start_s <= time_s < event.end_s]
        return max(active, key=lambda event: (event.depth, event.end_s), default=None)

    def next_announced(self, time_s: float) -> CapEvent | None:
        """Return the first event that is announced at ``time_s`` and starts later, or None."""
        return next((e for e in self.events if e.announced_at_s <= time_s < e.start_s), None)

    def breakpoints(self) -> Breakpoints:
        """Return the cap as ascending steps, neighbours of equal cap merged."""
        edges = sorted({edge for event in self.events for edge in (event.start_s, event.end_s)})
        times, caps, known = [-math.inf], [self.base_cap_w], [-math.inf]
        for edge in edges:
            cap = float(self.cap_at(edge))
            if cap == caps[-1]:
                continue
            touching = [e.announced_at_s for e in self.events if e.start_s <= edge <= e.end_s]
            times.append(edge)
            caps.append(cap)
            known.append(max(touching))
        return Breakpoints(np.array(times), np.array(caps), np.array(known))

    def event_arrays(self) -> EventArrays:
        """Return the events as arrays; the cap is the least of ``base_cap_w`` and the caps of events in force."""
        columns = [
            [event.start_s for event in self.events],
            [event.end_s for event in self.events],
            [self.base_cap_w * (1.0 - event.depth) for event in self.events],
            [event.announced_at_s for event in self.events],
        ]
        return EventArrays(*(np.array(column, dtype=np.float64) for column in columns))


def draw_schedule(
    rng: np.random.Generator,
    specs: Sequence[CapEventSpec],
    base_cap_w: float,
    start_time_s: float,
    horizon_s: float,
) -> CapSchedule:
    """Draw the cap of an episode: each event starts at a whole minute, uniform in its window.

    Exactly ``MAX_CAP_EVENTS`` uniforms are drawn whatever ``specs`` holds, and event i always uses the i-th; depths and lengths that have
    a range come from a stream of their own. Events are
    times of day: a window of the day sees the part inside it, a horizon of several days sees them on each. The schedule
    reaches a day beyond the horizon, because notice of what follows is given within it and work drains after it.

    Args:
        rng: The cap stream.
        specs: At most ``MAX_CAP_EVENTS`` event descriptions.
        base_cap_w: Cap outside events, W.
        start_time_s: Local time at which the episode starts, s since a midnight.
        horizon_s: Length of the episode, s.

    Returns:
        The schedule in episode time.

    Raises:
        ConfigError: On more events than allowed or numbers that are not finite.
    """
    if len(specs) > MAX_CAP_EVENTS:
        raise ConfigError(f"cap_events: {len(specs)} given; at most {MAX_CAP_EVENTS} are allowed.")
    check_range("start_time_s", start_time_s, -1e9, 1e9, "s")
    check_range("horizon_s", horizon_s, 0.0, 1e9, "s")
    uniforms = rng.random(MAX_CAP_EVENTS).tolist()
    sizes = rng.spawn(1)[0].random((MAX_CAP_EVENTS, 2)).tolist()
    events = []
    for spec, u, size in zip(specs, uniforms, sizes, strict=False):
        depth, duration_s = spec.sized(*size)
        hour = spec.window_start_hour + u * (spec.window_end_hour - spec.window_start_hour)
        time_of_day_s = math.floor(hour * HOUR_S / MINUTE_S) * MINUTE_S
        first_day = math.floor((start_time_s - time_of_day_s - duration_s) / DAY_S)
        last_day = math.floor((start_time_s + horizon_s - time_of_day_s) / DAY_S) + 1
        for day in range(first_day, last_day + 1):
            start_s = day * DAY_S + time_of_day_s - start_time_s
            if start_s + duration_s > 0.0:
                events.append(CapEvent(start_s, duration_s, depth, spec.notice_s))
    return CapSchedule(base_cap_w, tuple(events))
