"""``reactive``: length-aware routing, a clock lock that follows load and cap, racks that sleep with hysteresis.

What it knows comes from the observation and from a steady-state model of the site (``plant``); it forecasts nothing but
the present trend. Three loops, from fast to slow:

1. Every step the present load, with a margin, is distributed over the racks that are active, at the lowest clocks that
   keep TTFT, TPOT and KV memory. A queue adds the clock that clears it.
2. If the power predicted for a somewhat larger load does not fit the cap, in force or about to be, margins go first,
   then some decode pools break the tightest TPOT limit, then part of the requests is turned away evenly, by a queue in
   one prefill pool, then all clocks come down. An engaged brake is met with clocks it can let go at, and every braked
   step of the day lowers the power aimed at.
3. Racks awake follow a plan, computed once: which racks draw least at each load level while clocks keep a reserve. It
   is read at a slow average of the load, extrapolated over the wake time, and at the present load only when clocks do
   not suffice, because waking a rack takes minutes and tens of megajoules. Racks wake only as far as the cap has room
   for it, and sleep after the load has been lower, with a larger margin, for a while.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ai_factory_baselines.base import (
    ACTIVE,
    BRAKED,
    PHASES,
    RATE,
    Facts,
    Levers,
    Reading,
    Rule,
    read,
    write_factors,
    write_levers,
    write_routing,
)
from ai_factory_baselines.plant import Limits, Model, Plant, load_of
from ai_factory_baselines.racks import CLOCK_SLACK, Pace, RackPlan, keep_affordable, plan_racks
from ai_factory_baselines.serve import (
    BEFORE,
    CAREFUL_STEPS,
    FAST,
    NEXT,
    NOW,
    Margins,
    Room,
    gather,
    serve,
    serve_comfortably,
)
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, PoolSpec
from ai_factory_gym.errors import ConfigError, check_keys, check_range
from ai_factory_gym.jit import kernel

TUNED_PATH = Path(__file__).with_name("tuned.toml")

KV_SHARE = 0.95
"""Share of KV memory that may be reserved before requests would have to wait (status: design choice)."""

BARE = 0.98
"""Utilisation and TPOT, as shares of their limits, when power allows no margin (status: design choice)."""

SHED_TPOT = 0.6
"""TPOT of what is kept while requests are turned away, as a share of the limit: batches are full then and have to shrink
(status: design choice)."""

LEAST_RATE = 1e-3
"""Demand assumed at least, as a share of the mean (status: design choice)."""

DAY_S = 86400.0
@dataclass(frozen=True)
class Settings:
    """What is tuned. Every margin is a factor minus one.

    Attributes:
        prefill_sigmas: Prefill clocks are chosen for the load plus this many standard deviations of its change within
            a step.
        decode_sigmas: The same for decode, where batches even load out.
        utilisation: Highest utilisation of prefill servers at that load.
        tpot_share: Highest TPOT at that load, as a share of the tightest limit.
        power_sigmas: The power of the load plus this many standard deviations must fit the cap.
        plan_clock: Highest clock that the plan of racks may need; what lies above is the reserve for bursts.
        wake_margin: Load above the expected one for which racks are woken.
        sleep_margin: Further load above that for which racks are kept awake.
        sleep_hold: Steps the load must have been lower before racks sleep.
        smoothing: Weight of the newest step in the fast smoothed load, which clocks fall back to.
        slow_smoothing: Weight of the newest step in the slow smoothed load, which racks follow.
        lead: How much of the slow load's trend, over its lag and the wake time, is added to it.
    """

    prefill_sigmas: float = 1.5
    decode_sigmas: float = 1.0
    utilisation: float = 0.92
    tpot_share: float = 0.92
    power_sigmas: float = 2.5
    plan_clock: float = 0.8
    wake_margin: float = 0.08
    sleep_margin: float = 0.06
    sleep_hold: float = 10.0
    smoothing: float = 0.25
    slow_smoothing: float = 0.03
    lead: float = 0.8

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, (low, high) in RANGES.items():
            check_range(name, getattr(self, name), low, high)


RANGES: Mapping[str, tuple[float, float]] = {
    "prefill_sigmas": (0.0, 6.0),
    "decode_sigmas": (0.0, 6.0),
    "utilisation": (0.5, 1.0),
    "tpot_share": (0.5, 1.0),
    "power_sigmas": (0.0, 6.0),
    "plan_clock": (0.4, 1.0),
    "wake_margin": (0.0, 1.0),
    "sleep_margin": (0.0, 1.0),
    "sleep_hold": (0.0, 120.0),
    "smoothing": (0.02, 1.0),
    "slow_smoothing": (0.005, 1.0),
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


def tuned_settings(site: str) -> Settings:
    """Return the tuned settings of a site by its name, those under ``default`` for a site that was not tuned.

    Raises:
        ConfigError: When ``tuned.toml`` cannot be used.
    """
    try:
        tables = tomllib.loads(TUNED_PATH.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{TUNED_PATH.name}: not valid TOML ({error}).") from None
    name = site if site in tables else "default"
    return settings_from_table(f"{TUNED_PATH.name}: {name}", tables.get(name, {}).get("settings", {}), Settings())


class Tuning(NamedTuple):
    """What the rule's kernel is told beside the site.

    Attributes:
        margins: How close to its limits the site is run.
        plans: By phase: which racks are awake at which load.
        pace: How racks follow the load.
        smoothing: Weight of the newest step in the fast smoothed load.
        slow_smoothing: Weight of the newest step in the slow smoothed load.
        fading: Share of the braked steps remembered that is left one step later.
        shed_tilts: As ``serve`` wants them.
    """

    margins: Margins
    plans: tuple[RackPlan, RackPlan]
    pace: Pace
    smoothing: float
    slow_smoothing: float
    fading: float
    shed_tilts: Array


@kernel
def _decide(model: Model, tuning: Tuning, memory: Array, room: Room) -> None:
    """Write ``racks`` and ``answer`` for the observation in ``room.seen``.

    Memory (float64): whether the episode has begun, steps since the last braked one counted down, how often the brake was
    on lately, a fast and a slow smoothed rate per class, trend of the slow load level per phase, and for each pool the
    steps its load has been low.
    """
    rate, least_rate = room.seen.classes[RATE], model.least_rate
    classes = rate.shape[0]
    smooth, slow = memory[3 : 3 + classes], memory[3 + classes : 3 + 2 * classes]
    trend, low_steps = memory[3 + 2 * classes : 5 + 2 * classes], memory[5 + 2 * classes :]
    braked = room.seen.site[BRAKED] > 0.0
    memory[2] = memory[2] * tuning.fading + (1.0 if braked else 0.0)
    if memory[0] == 0.0:
        memory[0] = 1.0
        for cls in range(classes):
            smooth[cls] = slow[cls] = rate[cls]
    now, before, fast, load = room.loads[NOW], room.loads[BEFORE], room.loads[FAST], room.loads[NEXT]
    load_of(model.moments, slow, before)
    for cls in range(classes):
        smooth[cls] += tuning.smoothing * (rate[cls] - smooth[cls])
        slow[cls] += tuning.slow_smoothing * (rate[cls] - slow[cls])
        room.rate[cls] = max(smooth[cls], least_rate[cls])
    load_of(model.moments, slow, now)
    load_of(model.moments, room.rate, fast)
    gather(model, room)
    for kind in (PREFILL, DECODE):
        plan_racks(model, tuning.margins, tuning.pace, tuning.plans[kind], kind, trend, low_steps, room)
    for cls in range(classes):
        # Deviations from the usual rate fade as fast as the class's demand forgets them.
        next_rate = smooth[cls] + model.reversion[cls] * (rate[cls] - smooth[cls])
        room.rate[cls] = max(next_rate, least_rate[cls])
    load_of(model.moments, room.rate, load)
    suffices = serve_comfortably(model, tuning.margins, load, room)
    keep_affordable(model, tuning.margins, load, memory[2], room)
    serve(model, tuning.margins, tuning.shed_tilts, load, suffices, memory[1], memory[2], room)
    memory[1] = CAREFUL_STEPS if braked else max(0.0, memory[1] - 1.0)


@kernel
def _decide_rows(
    model: Model,
    tuning: Tuning,
    reading: Reading,
    levers: Levers,
    room: Room,
    observations: Array,
    memory: Array,
    actions: Array,
) -> None:
    """Write the action of each row; see ``Rule.decide``."""
    pools, answer = room.seen.pools, room.answer
    for row in range(observations.shape[0]):
        read(reading, observations[row], room.seen)
        _decide(model, tuning, memory[row], room)
        write_levers(levers, answer.clock, room.racks, actions[row])
        for kind in (PREFILL, DECODE):
            factors = room.work[kind].share
            clocked = kind == PREFILL
            write_factors(
                model.capacity[kind],
                answer.share[kind],
                model.members[kind],
                pools[ACTIVE],
                answer.clock,
                clocked,
                factors,
            )
            write_routing(levers, kind, factors, actions[row])


class Reactive(Rule):
    """See the module.

    Args:
        env: The environment, or the facts of one.
        settings: Parameters; None takes the tuned ones of the site.

    Its scratch arrays are its own: a rule may be pickled, but not used in two threads at once.
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
        self._model = self.plant.model(LEAST_RATE)
        self._levers = Levers.of(self.facts)
        self._room = Room.of(self.facts, self.plant.mean.shape)
        self._tuning = self._tune()

    def _tune(self) -> Tuning:
        facts, chosen = self.facts, self.settings
        interval_s, lowest = facts.control_interval_s, facts.clock_min
        prefill, decode = (
            Limits(chosen.utilisation, chosen.tpot_share, KV_SHARE, sigmas, lowest)
            for sigmas in (chosen.prefill_sigmas, chosen.decode_sigmas)
        )
        bare = Limits(BARE, BARE, KV_SHARE, 0.0, lowest)
        shedding = bare._replace(tpot_share=SHED_TPOT)

        def plan(kind: int, limits: Limits) -> RackPlan:
            wake_s = float(facts.params.pool[facts.members[kind], PoolSpec.WAKE_S].max())
            steps = wake_s / interval_s + 1.0 / chosen.slow_smoothing
            return RackPlan(*self.plant.rack_plan(kind, limits, chosen.plan_clock), steps)

        # To keep the pool that is left to a queue small, the load of its racks is also tried at half that of the others.
        pools = len(facts.members[PREFILL])
        halves = np.where(np.eye(pools, dtype=np.bool_), 0.5, 1.0)[:, None]
        return Tuning(
            margins=Margins((prefill, decode), bare, shedding, chosen.power_sigmas, interval_s),
            plans=(plan(PREFILL, prefill), plan(DECODE, decode)),
            pace=Pace(
                chosen.lead, chosen.wake_margin, chosen.sleep_margin, chosen.sleep_hold, chosen.plan_clock + CLOCK_SLACK
            ),
            smoothing=chosen.smoothing,
            slow_smoothing=chosen.slow_smoothing,
            fading=math.exp(-interval_s / DAY_S),
            shed_tilts=halves if pools > 1 else halves[:0],
        )

    @property
    def memory_size(self) -> int:
        """Numbers remembered; ``_decide`` says which."""
        return 3 + 2 * len(self.facts.observation.class_rate) + len(PHASES) + len(self.facts.racks)

    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the actions for observations."""
        numbers = np.ascontiguousarray(observations, dtype=np.float64)
        _decide_rows(
            self._model, self._tuning, self.facts.reading, self._levers, self._room, numbers, memory, actions
        )


__all__ = ["RANGES", "Reactive", "Settings", "settings_from_table", "tuned_settings"]
