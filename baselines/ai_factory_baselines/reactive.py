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
    WAKING,
    Facts,
    Levers,
    Reading,
    Rule,
    read,
    unnamed,
    write_factors,
    write_levers,
    write_routing,
)
from ai_factory_baselines.plant import Limits, Plant, load_of, named_model
from ai_factory_baselines.racks import CLOCK_SLACK, Pace, RackPlan, keep_affordable, wanted_racks
from ai_factory_baselines.serve import (
    ANSWER,
    BEFORE,
    CAREFUL_STEPS,
    FAST,
    LEAST,
    NEXT,
    NOW,
    OTHER,
    WANTED,
    Margins,
    Outlook,
    Room,
    arrange,
    gather,
    named_margins,
    named_room,
    predicted_watts,
    resting_watts,
    serve,
)
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, PoolSpec
from ai_factory_gym.errors import ConfigError, check_keys, check_range
from ai_factory_gym.jit import inlined_kernel, kernel

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

    A later version of a task (``Sovereign-v1``) has the racks and requests of the first, and its settings, as long as it has none of its own.

    Raises:
        ConfigError: When ``tuned.toml`` cannot be used.
    """
    try:
        tables = tomllib.loads(TUNED_PATH.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{TUNED_PATH.name}: not valid TOML ({error}).") from None
    name = next((name for name in (site, site.partition("-v")[0]) if name in tables), "default")
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


class Demand(NamedTuple):
    """What a site knows of its demand.

    Attributes:
        moments: Load of one request per second of each class, float64[C, G, 6].
        reversion: Share of a deviation from the usual rate that is left one step later, float64[C].
        least_rate: Rates that are assumed at least, float64[C].
    """

    moments: Array
    reversion: Array
    least_rate: Array


@inlined_kernel
def _write_loads(demand: Demand, tuning: Tuning, rate: Array, smooth: Array, slow: Array, loads: Array) -> None:
    """Smooth the rates and write the loads that follow from them.

    Args:
        demand: What the site knows of its demand.
        tuning: Settings.
        rate: Rates seen, float64[C].
        smooth: Updated: fast smoothed rates, float64[C].
        slow: Updated: slow smoothed rates, float64[C].
        loads: Written: ``NOW`` to ``NEXT``, float64[7, C, G, 6].
    """
    moments, least_rate = demand.moments, demand.least_rate
    for cls in range(rate.shape[0]):
        load_of(moments[cls], slow[cls], loads[BEFORE, cls])
        smooth[cls] += tuning.smoothing * (rate[cls] - smooth[cls])
        slow[cls] += tuning.slow_smoothing * (rate[cls] - slow[cls])
        # Deviations from the usual rate fade as fast as the class's demand forgets them.
        next_rate = smooth[cls] + demand.reversion[cls] * (rate[cls] - smooth[cls])
        load_of(moments[cls], slow[cls], loads[NOW, cls])
        load_of(moments[cls], max(smooth[cls], least_rate[cls]), loads[FAST, cls])
        load_of(moments[cls], max(next_rate, least_rate[cls]), loads[NEXT, cls])


@inlined_kernel
def _named_tuning(parts: Any) -> Tuning:
    """Name the parts of ``Tuning``, from ``unnamed``, again."""
    plans = RackPlan(*parts[1][0]), RackPlan(*parts[1][1])
    return Tuning(named_margins(parts[0]), plans, Pace(*parts[2]), *parts[3:])


@kernel
def _decide_rows(parts: Any, observations: Array, memory: Array, actions: Array) -> None:
    """Write the action of each row; see ``Rule.decide``. ``parts`` are model, demand, tuning, reading, levers and room, unnamed.

    Memory of a row: whether the episode has begun, steps since the last braked one counted down, how often the brake was
    on lately, a fast and a slow smoothed rate per class, trend of the slow load level per phase, and for each pool the
    steps its load has been low.
    """
    model, demand, tuning = named_model(parts[0]), Demand(*parts[1]), _named_tuning(parts[2])
    reading, levers, room = Reading(*parts[3]), Levers(*parts[4]), named_room(parts[5])
    seen, loads, racks, clock = room.seen, room.loads, room.pools[WANTED], room.clock[ANSWER]
    margins, classes = tuning.margins, demand.moments.shape[0]
    for row in range(observations.shape[0]):
        read(reading, observations[row], seen)
        braked, kept = seen.site[BRAKED], memory[row]
        smooth, slow = kept[3 : 3 + classes], kept[3 + classes : 3 + 2 * classes]
        trend, low_steps = kept[3 + 2 * classes : 5 + 2 * classes], kept[5 + 2 * classes :]
        kept[2] = kept[2] * tuning.fading + braked
        if kept[0] == 0.0:
            kept[0] = 1.0
            for cls in range(classes):
                smooth[cls] = slow[cls] = seen.classes[RATE, cls]
        _write_loads(demand, tuning, seen.classes[RATE], smooth, slow, loads)
        overloaded = 0
        for kind in (PREFILL, DECODE):
            phase, limits, tilts = model.phases[kind], margins.comfortable[kind], model.tilts[kind]
            members, places, work, share = model.members[kind], room.places[kind], room.work[kind], room.share[kind]
            gather(kind, members, seen.pools, places)
            wanted_racks(
                phase,
                limits,
                tilts,
                tuning.plans[kind],
                tuning.pace,
                members,
                places,
                loads,
                work,
                share[OTHER],
                trend,
                low_steps,
                racks,
            )
            if not arrange(phase, limits, loads[NEXT], tilts, members, places, work, share[ANSWER], clock):
                overloaded += 1
        keep_affordable(model, margins, loads[NEXT], kept[2], room)
        serve(model, margins, tuning.shed_tilts, loads[NEXT], overloaded == 0, kept[1], kept[2], room)
        kept[1] = CAREFUL_STEPS if braked > 0.0 else max(0.0, kept[1] - 1.0)
        write_levers(levers, clock, racks, actions[row])
        for kind in (PREFILL, DECODE):
            share, factors = room.share[kind][ANSWER], room.work[kind].share
            clocked = kind == PREFILL
            write_factors(
                levers.capacity[kind], share, model.members[kind], seen.pools[ACTIVE], clock, clocked, factors
            )
            write_routing(levers, kind, factors, actions[row])


@kernel
def _wanted_rows(parts: Any, observations: Array, memory: Array, wanted: Array) -> None:
    """Write the facility power that each row's load would draw with all margins, W, float64[rows]; the memory is written over."""
    model, demand, tuning = named_model(parts[0]), Demand(*parts[1]), _named_tuning(parts[2])
    reading, room = Reading(*parts[3]), named_room(parts[5])
    seen, loads, clock, margins = room.seen, room.loads, room.clock[ANSWER], tuning.margins
    classes = demand.moments.shape[0]
    for row in range(observations.shape[0]):
        read(reading, observations[row], seen)
        kept = memory[row]
        smooth, slow = kept[3 : 3 + classes], kept[3 + classes : 3 + 2 * classes]
        if kept[0] == 0.0:
            for cls in range(classes):
                smooth[cls] = slow[cls] = seen.classes[RATE, cls]
        _write_loads(demand, tuning, seen.classes[RATE], smooth, slow, loads)
        for kind in (PREFILL, DECODE):
            members, places = model.members[kind], room.places[kind]
            gather(kind, members, seen.pools, places)
            arrange(
                model.phases[kind],
                margins.comfortable[kind],
                loads[NEXT],
                model.tilts[kind],
                members,
                places,
                room.work[kind],
                room.share[kind][ANSWER],
                clock,
            )
        resting_w = resting_watts(model.racks, model.power, seen.pools, seen.pools[WAKING])
        outlook = Outlook(loads[NEXT], LEAST, resting_w, 0.0, False, margins.power_sigmas)
        prompts, tokens = room.share[PREFILL][ANSWER], room.share[DECODE][ANSWER]
        wanted[row] = predicted_watts(model, outlook, prompts, tokens, clock, room)


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
        least_rate = LEAST_RATE * self.facts.observation.class_rate
        demand = Demand(self.plant.moments, self.plant.reversion, least_rate)
        levers, room = Levers.of(self.facts), Room.of(self.facts, self.plant.mean.shape)
        self._parts = unnamed((self.plant.model(), demand, self._tune(), self.facts.reading, levers, room))

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
        """Numbers remembered; ``_decide_rows`` says which."""
        return 3 + 2 * len(self.facts.observation.class_rate) + len(PHASES) + len(self.facts.racks)

    def decide(self, observations: Array, memory: Array, actions: Array) -> None:
        """Write the actions for observations."""
        numbers = np.ascontiguousarray(observations, dtype=np.float64)
        _decide_rows(self._parts, numbers, memory, actions)

    def wanted_watts(self, observations: Array, memory: Array) -> Array:
        """Return the facility power that the next step's load would draw with all margins, whatever the cap, W, float64[rows].

        Args:
            observations: float[rows, size].
            memory: As for ``decide``; it stays as it is.
        """
        wanted = np.zeros(len(observations))
        _wanted_rows(self._parts, np.ascontiguousarray(observations, dtype=np.float64), np.array(memory), wanted)
        return wanted


__all__ = ["RANGES", "Reactive", "Settings", "settings_from_table", "tuned_settings"]
