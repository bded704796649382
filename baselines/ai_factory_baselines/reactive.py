"""``reactive``: length-aware routing, a clock lock that follows load and cap, racks that sleep and wake with hysteresis.

What it knows comes from the observation and from a steady-state model of the site (``plant``); it forecasts nothing but
the present trend. Three loops, from fast to slow:

1. Every step the present load, with a margin, is distributed over the racks that are active, at the lowest clocks that
   keep TTFT, TPOT and KV memory. A queue adds the clock that clears it.
2. If the power predicted for a somewhat larger load does not fit the cap, in force or about to be, all clocks come down
   together until it does.
3. Racks awake follow a plan, computed once: which racks draw least at each load level while clocks keep a reserve. They
   wake at once when the smoothed load (extrapolated over the wake time) asks for them, and sleep one decision at a time
   after the load has been lower, with a larger margin, for a while.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, PoolSpec
from ai_factory_gym.errors import ConfigError, check_keys, check_range

from ai_factory_baselines.base import PHASES, Facts, Rule, View, routing_factors
from ai_factory_baselines.plant import Limits, Plant

TUNED_PATH = Path(__file__).with_name("tuned.toml")

CLEAR_S = 20.0
"""Time in which a prefill queue is to be cleared (status: design choice, a third of a control step)."""

CAP_TARGET = 0.985
"""Predicted power allowed, as a share of the cap (status: design choice, above the brake's 0.97)."""

KV_SHARE = 0.95
"""Share of KV memory that may be reserved before requests would have to wait (status: design choice)."""

CLOCK_STEPS = 14
TREND_GAIN = 0.15
"""Weight of the newest difference in the smoothed trend (status: design choice)."""


@dataclass(frozen=True)
class Settings:
    """What is tuned. Every margin is a factor minus one.

    Attributes:
        clock_margin: Load above the present one for which clocks are chosen.
        utilisation: Highest utilisation of prefill servers at that load.
        tpot_share: Highest TPOT at that load, as a share of the tightest limit.
        power_margin: Load above the present one whose power must fit the cap.
        plan_clock: Highest clock that the plan of racks may need; what lies above is the reserve for bursts.
        wake_margin: Load above the expected one for which racks are woken.
        sleep_margin: Further load above that for which racks are kept awake.
        sleep_hold: Steps the load must have been lower before racks sleep.
        smoothing: Weight of the newest step in the smoothed load that racks follow.
        lead: How much of the trend over the wake time is added to the load that racks follow.
    """

    clock_margin: float = 0.12
    utilisation: float = 0.92
    tpot_share: float = 0.92
    power_margin: float = 0.08
    plan_clock: float = 0.8
    wake_margin: float = 0.08
    sleep_margin: float = 0.06
    sleep_hold: float = 10.0
    smoothing: float = 0.2
    lead: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, (low, high) in RANGES.items():
            check_range(name, getattr(self, name), low, high)


RANGES: Mapping[str, tuple[float, float]] = {
    "clock_margin": (0.0, 1.0),
    "utilisation": (0.5, 1.0),
    "tpot_share": (0.5, 1.0),
    "power_margin": (0.0, 1.0),
    "plan_clock": (0.4, 1.0),
    "wake_margin": (0.0, 1.0),
    "sleep_margin": (0.0, 1.0),
    "sleep_hold": (0.0, 120.0),
    "smoothing": (0.02, 1.0),
    "lead": (0.0, 4.0),
}
"""Values a setting may have."""


def settings_from_table(where: str, table: Mapping[str, Any], base: Settings) -> Settings:
    """Return ``base`` with the values of a table.

    Raises:
        ConfigError: On an unknown key or a value out of range.
    """
    check_keys(where, table, required=(), optional=[field.name for field in dataclasses.fields(Settings)])
    return dataclasses.replace(base, **{key: float(value) for key, value in table.items()})


@functools.lru_cache(maxsize=1)
def _tuned() -> Mapping[str, Mapping[str, float]]:
    try:
        return tomllib.loads(TUNED_PATH.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{TUNED_PATH.name}: not valid TOML ({error}).") from None


def tuned_settings(site: str) -> Settings:
    """Return the tuned settings of a site by its name, those under ``default`` for a site that was not tuned."""
    tables = _tuned()
    base = settings_from_table("tuned.toml: default", tables.get("default", {}), Settings())
    return settings_from_table(f"tuned.toml: {site}", tables.get(site, {}), base)


class Reactive(Rule):
    """See the module.

    Args:
        env: The environment, or the facts of one.
        settings: Parameters; None takes the tuned ones of the site.
    """

    name: ClassVar[str] = "reactive"

    def __init__(self, env: Any, settings: Settings | None = None) -> None:
        """Build the model of the site and the plan of racks."""
        super().__init__(env)
        if settings is None:
            inner = getattr(env, "unwrapped", env)
            settings = Settings() if isinstance(env, Facts) else tuned_settings(inner.task.site.name)
        self.settings = settings
        self.plant = Plant(self.facts)
        lowest = self.facts.clock_min
        clocks = Limits(settings.utilisation, settings.tpot_share, KV_SHARE, 1.0 + settings.clock_margin, lowest)
        self._limits = clocks
        # The plan keeps its reserve in clocks (plan_clock) and in the load it is read at, not in the load of a level.
        steady = clocks._replace(margin=1.0)
        self._plans = tuple(self.plant.rack_plan(kind, steady, settings.plan_clock) for kind in PHASES)
        self._wake_s = tuple(float(self.facts.params.pool[m, PoolSpec.WAKE_S].max()) for m in self.facts.members)

    # Memory: whether the episode has begun, smoothed rate per class, trend of the load level per phase, and for each
    # pool the steps its load has been low.

    @property
    def memory_size(self) -> int:
        """Numbers remembered."""
        return 1 + len(self.facts.observation.class_rate) + len(PHASES) + len(self.facts.racks)

    def decide(self, seen: View, memory: Array) -> Array:
        """Return the action for one observation."""
        classes = len(seen.rate)
        smooth = memory[1 : 1 + classes]
        trend = memory[1 + classes : 3 + classes]
        low_steps = memory[3 + classes :]
        before = smooth.copy()
        fresh = memory[0] == 0.0
        smooth += (1.0 if fresh else self.settings.smoothing) * (seen.rate - smooth)
        memory[0] = 1.0
        if fresh:
            before[:] = smooth
        racks = np.zeros(len(self.facts.racks))
        share: list[Array] = []
        clock = np.zeros(len(self.facts.racks))
        load = self.plant.load(np.maximum(seen.rate, 1e-3 * self.facts.observation.class_rate))
        for phase in PHASES:
            members = self.facts.members[phase]
            level = self.plant.level(phase, self.plant.load(smooth))
            change = level - self.plant.level(phase, self.plant.load(before))
            trend[phase] += TREND_GAIN * (change - trend[phase])
            racks[members] = self._racks(phase, level, float(trend[phase]), seen, low_steps)
            active = np.maximum(seen.active[members], 0.0)
            shares, clocks, _ = self.plant.dispatch(phase, self._limits, load, active)
            share.append(shares)
            clock[members] = self._corrected(phase, seen, load, shares, active, clocks)
        clock = self._under_cap(seen, load, share, clock, racks)
        return self.facts.action.encode(
            clock=clock,
            racks=racks,
            route_prefill=routing_factors(self.facts, PREFILL, share[PREFILL], seen.active, clock),
            route_decode=routing_factors(self.facts, DECODE, share[DECODE], seen.active, clock),
        )

    def _planned(self, phase: int, level: float) -> Array:
        levels, racks = self._plans[phase]
        return np.array([math.ceil(np.interp(level, levels, racks[:, pool]) - 1e-6) for pool in range(racks.shape[1])])

    def _racks(self, phase: int, level: float, trend: float, seen: View, low_steps: Array) -> Array:
        """Return racks wanted awake in a phase, float64[pools of the phase]."""
        members = self.facts.members[phase]
        chosen = self.settings
        steps = self._wake_s[phase] / self.facts.control_interval_s + 1.0
        expected = level + chosen.lead * trend * steps
        up = self._planned(phase, max(level, expected) * (1.0 + chosen.wake_margin))
        keep = self._planned(phase, max(level, expected) * (1.0 + chosen.wake_margin) * (1.0 + chosen.sleep_margin))
        awake = seen.active[members] + seen.waking[members]
        counter = low_steps[members]
        counter = np.where(np.maximum(keep, up) < awake, counter + 1.0, 0.0)
        asleep = counter > chosen.sleep_hold
        wanted = np.where(asleep, np.maximum(keep, up), np.maximum(awake, up))
        low_steps[members] = counter
        return np.asarray(wanted)

    def _corrected(self, phase: int, seen: View, load: Array, share: Array, active: Array, clock: Array) -> Array:
        """Raise clocks where the site is behind the model: a prefill queue to clear, a decode batch above the expected."""
        members = self.facts.members[phase]
        clock = clock.copy()
        if phase == PREFILL:
            # Utilisation the queue adds while it is cleared; wait is in server-seconds at the last clock.
            extra = seen.wait_s[members] * np.maximum(seen.clock[members], 0.1) / CLEAR_S
            return np.asarray(np.minimum(1.0, clock + np.where(seen.wait_s[members] > 0.05, extra, 0.0)))
        limit_s = self.settings.tpot_share * self.plant.phases[phase].tpot_s
        late = seen.tpot_s[members] / limit_s
        return np.asarray(np.where(late > 1.0, np.minimum(1.0, np.maximum(clock, seen.clock[members] * late)), clock))

    def _under_cap(self, seen: View, load: Array, share: list[Array], clock: Array, racks: Array) -> Array:
        """Lower all clocks together until the predicted power fits the lower of the caps in force and about to be."""
        cap_w = seen.cap_w
        if seen.next_cap_s <= self.facts.control_interval_s:
            cap_w = min(cap_w, seen.next_cap_w)
        more = load * (1.0 + self.settings.power_margin)
        awake = seen.active + seen.draining
        waking = np.maximum(seen.waking, racks - seen.active)
        resting_w = self.plant.resting_w(waking, np.maximum(0.0, self.facts.racks - awake - waking))

        def predicted_w(clocks: Array) -> float:
            it_w = resting_w
            for phase in PHASES:
                members = self.facts.members[phase]
                it_w += self.plant.watts(phase, more, share[phase], awake[members], clocks[members])
            return self.plant.facility_w(it_w)

        if predicted_w(clock) <= CAP_TARGET * cap_w:
            return clock
        low, high = 0.0, 1.0
        floor = self.facts.clock_min
        for _ in range(CLOCK_STEPS):
            middle = 0.5 * (low + high)
            if predicted_w(floor + middle * (clock - floor)) <= CAP_TARGET * cap_w:
                low = middle
            else:
                high = middle
        return np.asarray(floor + low * (clock - floor))


__all__ = ["RANGES", "Reactive", "Settings", "settings_from_table", "tuned_settings"]
