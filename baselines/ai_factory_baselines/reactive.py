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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ai_factory_baselines.base import PHASES, Facts, Rule, View, routing_factors
from ai_factory_baselines.plant import OUTPUT, OVERLOAD_W, Limits, Phase, Plant, dispatch, load_level
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, PoolSpec
from ai_factory_gym.errors import ConfigError, check_keys, check_range
from ai_factory_gym.jit import inlined_kernel, kernel

TUNED_PATH = Path(__file__).with_name("tuned.toml")

CLEAR_S = 20.0
"""Time in which a prefill queue is to be cleared (status: design choice, a third of a control step)."""

CAP_TARGET = 0.985
"""Predicted power allowed, as a share of the cap (status: design choice, above the brake's 0.97)."""

KV_SHARE = 0.95
"""Share of KV memory that may be reserved before requests would have to wait (status: design choice)."""

QUEUED_TARGET = 0.955
"""The same while there is a queue: the work in service is then not the mix that arrives (status: design choice)."""

RELEASE_TARGET = 0.96
"""The same for the most the site may draw while the brake is engaged: the brake lets go when its own, pessimistic
prediction is below 0.98 (status: design choice)."""

BRAKED_MARGIN = 0.025
MOST_BRAKED = 3.0
"""Share of the cap by which these targets fall with every braked step of about the last day, and how many count: the
allowance is three steps a day (status: design choice)."""

BEHIND_S = 0.5
"""Prefill wait beyond which servers are taken to be busy all the time (status: design choice)."""

CAREFUL_STEPS = 4.0
"""Steps after a braked one in which the brake's own bound must fit while there is a queue (status: design choice)."""

QUEUE_S = 0.05
"""Prefill wait below which there is no queue to clear (status: design choice)."""

BARE = 0.98
"""Utilisation and TPOT, as shares of their limits, when power allows no margin (status: design choice)."""

SHED_TPOT = 0.6
"""TPOT of what is kept while requests are turned away, as a share of the limit: batches are full then and have to shrink
(status: design choice)."""

LATE_BOOST = 0.2
"""Decode load is taken to be this much higher meanwhile, as long as a batch is above its limit (status: design choice)."""

FULL_BATCH = 0.95
"""Share of the batch ceiling beyond which a batch counts as full (status: design choice)."""

CROWDED = 0.55
"""Share of the shortest prompts beyond which one pool is not left to a queue: too many would be late in it (status: design
choice)."""

MOST_SHED = 0.9
SHED_STEPS = 7
"""Largest share of the shortest prompts that is turned away, and steps of the search for the smallest (status: choice)."""

DAY_S = 86400.0
CLOCK_STEPS = 10
Predictor = Callable[[tuple[Array, Array], Array], float]

CLOCK_SLACK = 0.05
"""Clock above the planned one that does not yet call for more racks (status: design choice)."""

TREND_GAIN = 0.15
"""Weight of the newest difference in the smoothed trend (status: design choice)."""


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


@inlined_kernel
def _planned(levels: Array, plan: Array, level: float, pool: int) -> float:
    """Return the racks a plan (float64[L, P]) has awake in a pool at a load level: linear in between, rounded up."""
    last = levels.shape[0] - 1
    racks = plan[last, pool]
    if level <= levels[0]:
        racks = plan[0, pool]
    elif level < levels[last]:
        place = 0
        while levels[place + 1] <= level:
            place += 1
        slope = (plan[place + 1, pool] - plan[place, pool]) / (levels[place + 1] - levels[place])
        racks = slope * (level - levels[place]) + plan[place, pool]
    return float(math.ceil(racks - 1e-6))


@inlined_kernel
def _follow_plan(
    levels: Array,
    plan: Array,
    expected: float,
    kept: float,
    urgent: float,
    hold: float,
    members: Array,
    awake: Array,
    low_steps: Array,
    racks: Array,
) -> None:
    """Write the racks wanted awake in the pools of a phase.

    Args:
        levels: Load levels of the plan, float64[L].
        plan: Racks awake at each, float64[L, P].
        expected: Load level for which racks wake.
        kept: Load level for which racks stay awake.
        urgent: Load level that the racks awake cannot serve, for which they wake too; 0 when there is none.
        hold: Steps the load must have been low before racks sleep.
        members: Pools of the phase, int64[P].
        awake: Racks awake or waking, float64[P].
        low_steps: Updated: for how many steps the load has been low, float64[pools].
        racks: Written: racks wanted, float64[pools].
    """
    for place in range(members.shape[0]):
        pool = members[place]
        up = _planned(levels, plan, expected, place)
        keep = max(up, _planned(levels, plan, kept, place))
        if urgent > 0.0:
            most = _planned(levels, plan, urgent, place)
            up, keep = max(up, most), max(keep, most)
        low_steps[pool] = low_steps[pool] + 1.0 if keep < awake[place] else 0.0
        racks[pool] = keep if low_steps[pool] > hold else max(awake[place], up)


@kernel
def _plan_racks(
    phase: Phase,
    limits: Limits,
    tilts: Array,
    levels: Array,
    plan: Array,
    slow: Array,
    before: Array,
    fast: Array,
    lead: float,
    lead_steps: float,
    wake_margin: float,
    sleep_margin: float,
    hold: float,
    highest_clock: float,
    members: Array,
    total: Array,
    awake: Array,
    trend: Array,
    low_steps: Array,
    racks: Array,
    share: Array,
    clock: Array,
    sums: Array,
    need: Array,
    room: Array,
    tried_share: Array,
    tried_clock: Array,
    loads: Array,
) -> None:
    """Write the racks wanted awake in the pools of a phase.

    The plan is read at the slow load, brought forward by its own lag and by the time a rack takes to wake. Only when the
    racks awake cannot serve the fast load within the planned clock is it read at that.

    Args:
        phase: The phase.
        limits: Its limits.
        tilts: Its tilts, float64[T, P].
        levels: Load levels of the plan, float64[L].
        plan: Racks awake at each, float64[L, P].
        slow: Slowly smoothed load, float64[C, G, 6].
        before: The same one step earlier.
        fast: Fast smoothed load, likewise.
        lead: How much of the trend is added to the level of the slow load.
        lead_steps: Steps the trend goes on for.
        wake_margin: Load above the expected one for which racks are woken.
        sleep_margin: Further load above that for which they are kept awake.
        hold: Steps the load must have been low before racks sleep.
        highest_clock: Clock above which the racks awake do not suffice.
        members: Pools of the phase, int64[P].
        total: Racks, float64[P].
        awake: Racks awake or waking, float64[P].
        trend: Updated: change of the level per step, by phase, float64[2].
        low_steps: Updated: for how many steps the load has been low, float64[pools].
        racks: Written: racks wanted, float64[pools].
        share: Scratch; this and what follows as in ``dispatch``.
        clock: Scratch.
        sums: Scratch.
        need: Scratch.
        room: Scratch.
        tried_share: Scratch.
        tried_clock: Scratch.
        loads: Scratch.
    """
    level = load_level(phase, slow, total, sums, need, share)
    change = level - load_level(phase, before, total, sums, need, share)
    trend[phase.kind] += TREND_GAIN * (change - trend[phase.kind])
    expected = max(0.0, level + lead * trend[phase.kind] * lead_steps) * (1.0 + wake_margin)
    watts = dispatch(phase, limits, fast, awake, tilts, share, clock, sums, need, room, tried_share, tried_clock, loads)
    highest = 0.0
    for place in range(awake.shape[0]):
        if awake[place] > 0.0:
            highest = max(highest, clock[place])
    urgent = 0.0
    if watts >= OVERLOAD_W or highest > highest_clock:
        urgent = load_level(phase, fast, total, sums, need, share) * (1.0 + wake_margin)
    kept = expected * (1.0 + sleep_margin)
    _follow_plan(levels, plan, expected, kept, urgent, hold, members, awake, low_steps, racks)


@kernel
def _clear_queues(clock: Array, members: Array, wait_s: Array, last_clock: Array, out: Array) -> None:
    """Write prefill clocks, raised by the utilisation that clearing the queue adds.

    Args:
        clock: Clocks without a queue, float64[P].
        members: Pools of the phase, int64[P].
        wait_s: Predicted waits at the last clocks, float64[pools].
        last_clock: Mean clocks over the last step, float64[pools].
        out: Written in the pools of the phase, float64[pools].
    """
    for place in range(members.shape[0]):
        pool = members[place]
        extra = wait_s[pool] * max(last_clock[pool], 0.1) / CLEAR_S if wait_s[pool] > QUEUE_S else 0.0
        out[pool] = min(1.0, clock[place] + extra)


@kernel
def _catch_up(clock: Array, members: Array, limit_s: Array, tpot_s: Array, last_clock: Array, out: Array) -> None:
    """Write decode clocks, raised where a token takes longer than it may; arguments as ``_clear_queues``.

    Args:
        clock: Clocks of batches as expected, float64[P].
        members: Pools of the phase, int64[P].
        limit_s: Longest time per output token, float64[P].
        tpot_s: Time per output token, float64[pools].
        last_clock: Mean clocks over the last step, float64[pools].
        out: Written in the pools of the phase, float64[pools].
    """
    for place in range(members.shape[0]):
        pool = members[place]
        late = tpot_s[pool] / limit_s[place]
        out[pool] = min(1.0, max(clock[place], last_clock[pool] * late)) if late > 1.0 else clock[place]


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
        self._limits = tuple(
            Limits(settings.utilisation, settings.tpot_share, KV_SHARE, sigmas, lowest)
            for sigmas in (settings.prefill_sigmas, settings.decode_sigmas)
        )
        self._bare = Limits(BARE, BARE, KV_SHARE, 0.0, lowest)
        # To keep the pool that is left to a queue small, the load of its racks is also tried at half that of the others.
        pools = len(self.facts.members[PREFILL])
        halves = [np.where(np.arange(pools) == pool, 0.5, 1.0)[None] for pool in range(pools)] if pools > 1 else []
        self._shed_tilts: list[Array | None] = [None, *halves]
        self._shedding = self._bare._replace(tpot_share=SHED_TPOT)
        self._relaxed = self.plant.relaxed()
        self._plans = tuple(self.plant.rack_plan(kind, self._limits[kind], settings.plan_clock) for kind in PHASES)
        wake_s = [float(self.facts.params.pool[m, PoolSpec.WAKE_S].max()) for m in self.facts.members]
        self._lead_steps = [s / self.facts.control_interval_s + 1.0 / settings.slow_smoothing for s in wake_s]
        self._longest_tpot_s = settings.tpot_share * self.plant.phases[DECODE].tpot_s
        self._served = [(np.zeros(phase.floor.shape), np.zeros(len(phase.units))) for phase in self.plant.phases]
        self._floor = np.full(len(self.facts.racks), lowest)
        self._least_rate = 1e-3 * self.facts.observation.class_rate
        self._fading = math.exp(-self.facts.control_interval_s / DAY_S)

    # Memory: whether the episode has begun, steps since the last braked one counted down, how often
    # the brake was on lately, a fast and a slow smoothed rate per
    # class, trend of the slow load level per phase, and for each pool the steps its load has been low.

    @property
    def memory_size(self) -> int:
        """Numbers remembered."""
        return 3 + 2 * len(self.facts.observation.class_rate) + len(PHASES) + len(self.facts.racks)

    def decide(self, seen: View, memory: Array) -> Array:
        """Return the action for one observation."""
        classes = len(seen.rate)
        smooth, slow = memory[3 : 3 + classes], memory[3 + classes : 3 + 2 * classes]
        trend = memory[3 + 2 * classes : 5 + 2 * classes]
        low_steps = memory[5 + 2 * classes :]
        memory[2] = memory[2] * self._fading + float(seen.braked)
        if memory[0] == 0.0:
            memory[0] = 1.0
            smooth[:] = seen.rate
            slow[:] = seen.rate
        before = self.plant.load(slow)
        smooth += self.settings.smoothing * (seen.rate - smooth)
        slow += self.settings.slow_smoothing * (seen.rate - slow)
        now, fast = self.plant.load(slow), self.plant.load(np.maximum(smooth, self._least_rate))
        racks = np.zeros(len(self.facts.racks))
        awake = seen.active + seen.waking
        for phase in PHASES:
            self._plan_racks(phase, (now, before, fast), awake, trend, low_steps, racks)
        # Deviations from the usual rate fade as fast as the class's demand forgets them.
        next_rate = smooth + self.plant.reversion * (seen.rate - smooth)
        load = self.plant.load(np.maximum(next_rate, self._least_rate))
        racks = self._affordable(seen, load, racks, float(memory[2]))
        share, clock = self._serve(seen, load, racks, memory[1], float(memory[2]))
        memory[1] = CAREFUL_STEPS if seen.braked else max(0.0, memory[1] - 1.0)
        return self.facts.action.encode(
            clock=clock,
            racks=racks,
            route_prefill=routing_factors(self.facts, PREFILL, share[PREFILL], seen.active, clock),
            route_decode=routing_factors(self.facts, DECODE, share[DECODE], seen.active, clock),
        )

    def _plan_racks(
        self, phase: int, loads: tuple[Array, Array, Array], awake: Array, trend: Array, low_steps: Array, racks: Array
    ) -> None:
        """Write the racks wanted awake in a phase: see the kernel; ``awake`` is float64[pools]."""
        chosen = self.settings
        members = self.facts.members[phase]
        _plan_racks(
            self.plant.phases[phase],
            self._limits[phase],
            self.plant.tilts[phase],
            *self._plans[phase],
            *loads,
            chosen.lead,
            self._lead_steps[phase],
            chosen.wake_margin,
            chosen.sleep_margin,
            chosen.sleep_hold,
            chosen.plan_clock + CLOCK_SLACK,
            members,
            self.plant.total[phase],
            awake[members],
            trend,
            low_steps,
            racks,
            *self._served[phase],
            *self.plant.work[phase],
        )

    def _correct(self, phase: int, seen: View, clock: Array, out: Array) -> None:
        """Write clocks, raised where the site is behind the model: a queue to clear, a batch above the expected."""
        members = self.facts.members[phase]
        if phase == PREFILL:
            _clear_queues(clock, members, seen.wait_s, seen.clock, out)
        else:
            _catch_up(clock, members, self._longest_tpot_s, seen.tpot_s, seen.clock, out)

    def _behind(self, seen: View) -> bool:
        """Tell whether some prefill pool has a queue that keeps its servers busy all the time."""
        return max(seen.wait_s[self.facts.members[PREFILL]].tolist()) > BEHIND_S

    def _serve(
        self, seen: View, load: Array, racks: Array, careful: float, braked: float
    ) -> tuple[tuple[Array, Array], Array]:
        """Return shares per phase and clocks that serve a load under the cap.

        Tried in this order, until one is sufficient and its predicted power fits: with all margins; without margins
        (and anything between, as the power allows); with long prompts queueing in a pool of their own; with a slower
        TPOT, that breaks the tightest limit, in some decode pools; with part of the requests turned away; with all clocks
        lowered.
        """
        prefill, decode = self.facts.members
        active = [seen.active[members] for members in self.facts.members]
        waking = np.maximum(seen.waking, racks - seen.active - seen.draining)
        predict = self._predictor(seen, load, waking)
        if careful > 0.0 and self._behind(seen):
            predict = self._bound(seen, load, waking)
        target_w = self._target_w(seen, braked)
        clock = np.zeros(len(self.facts.racks))
        floor = self._floor
        comfortable = [self.plant.dispatch(self.plant.phases[k], self._limits[k], load, active[k]) for k in PHASES]
        for k in PHASES:
            self._correct(k, seen, comfortable[k].clock, clock)
        share = (comfortable[PREFILL].share, comfortable[DECODE].share)
        if seen.braked:
            # Whatever is asked for, the brake's clock holds until its own bound fits: get rid of it first. At its clock
            # that bound does fit, else it would have set a lower one.
            most = self._bound(seen, load, waking)
            top = np.minimum(clock, seen.clock.max()) if careful == CAREFUL_STEPS else clock
            return share, self._between(most, share, floor, np.maximum(top, floor), RELEASE_TARGET * self._cap_w(seen))
        if all(entry.sufficient for entry in comfortable) and predict(share, clock) <= target_w:
            return share, clock
        bare = self.plant.dispatch(self.plant.phases[PREFILL], self._bare, load, active[PREFILL])
        fallback: tuple[tuple[Array, Array], Array] | None = None
        for phase in (self.plant.phases[DECODE], *self._relaxed):
            tokens = self.plant.dispatch(phase, self._bare, load, active[DECODE])
            for prompts in (bare, *self.plant.isolated(self._bare, load, active[PREFILL])):
                share = (prompts.share, tokens.share)
                least = floor.copy()
                least[prefill], least[decode] = prompts.clock, tokens.clock
                if prompts.sufficient and tokens.sufficient and predict(share, least) <= target_w:
                    return share, self._between(predict, share, least, np.maximum(clock, least), target_w)
                if fallback is None or prompts.sufficient and tokens.sufficient:
                    fallback = share, least
        assert fallback is not None
        share, least = fallback
        if predict(share, least) > target_w:
            turned_away = self._shed(seen, load, active, waking, braked)
            if turned_away is not None:
                share, least = turned_away
                if predict(share, least) <= target_w:
                    high = least.copy()
                    self._correct(DECODE, seen, least[decode], high)
                    high = np.maximum(least, high)
                    return share, self._between(predict, share, least, high, target_w)
        return share, self._between(predict, share, floor, np.maximum(least, floor), target_w)

    def _shed(
        self, seen: View, load: Array, active: list[Array], waking: Array, braked: float
    ) -> tuple[tuple[Array, Array], Array] | None:
        """Return shares and clocks that turn requests away evenly, as few as need be; None when that is no way out.

        A queue in every pool turns away first all those of the least patient class, and makes them late anyway. Here the
        excess of the shortest prompts is sent, in one part with all classes, to a single pool, whose queue turns it away:
        the others stay in time.
        """
        least_crowded = CROWDED
        chosen: tuple[tuple[Array, Array], Array] | None = None
        for tilts in self._shed_tilts:
            found, crowded = self._shed_with(tilts, seen, load, active, waking, braked)
            if found is not None and crowded <= least_crowded:
                chosen, least_crowded = found, crowded
        return chosen

    def _shed_with(
        self, tilts: Array | None, seen: View, load: Array, active: list[Array], waking: Array, braked: float
    ) -> tuple[tuple[tuple[Array, Array], Array] | None, float]:
        """Return what ``_shed`` does with prefill tilted so, and the share of the shortest prompts that meets a queue."""
        prefill, decode = self.facts.members
        clock = np.zeros(len(self.facts.racks))
        found: tuple[tuple[Array, Array], Array] | None = None
        target_w = (CAP_TARGET - BRAKED_MARGIN * min(braked, MOST_BRAKED)) * self._cap_w(seen)
        least, most, crowded = 0.0, MOST_SHED, 0.0
        late = seen.tpot_s[decode] > self.plant.phases[DECODE].tpot_s
        full = seen.batch[decode] > FULL_BATCH * self.plant.phases[DECODE].most_batch
        boost = 1.0 + LATE_BOOST * bool((late | full).any())
        for _ in range(SHED_STEPS):
            part = 0.5 * (least + most) if found is not None else most
            kept = load.copy()
            kept[:, 0] *= 1.0 - part
            prompts = self.plant.dispatch(self.plant.phases[PREFILL], self._shedding, kept, active[PREFILL], tilts)
            # Who is turned away is not quite in proportion: routing must not depend on it.
            emitted = load * (boost * kept[:, :, OUTPUT].sum() / load[:, :, OUTPUT].sum())
            tokens = self.plant.dispatch(self.plant.phases[DECODE], self._shedding, emitted, active[DECODE])
            fits = prompts.sufficient and tokens.sufficient
            if fits:
                clock[prefill], clock[decode] = prompts.clock, tokens.clock
                predict = self._predictor(seen, kept, waking, settled=True)
                fits = predict((prompts.share, tokens.share), clock) <= target_w
            if not fits:
                if found is None:
                    return None, crowded
                least = part
                continue
            most = part
            share = prompts.share.copy()
            open_to = np.flatnonzero((active[PREFILL] > 0.0) & np.isfinite(self.plant.phases[PREFILL].per_rack[0]))
            share[0] *= 1.0 - part
            place = open_to[np.argmin(share[0, open_to])]
            share[0, place] += part
            crowded = float(share[0, place])
            found = (share, tokens.share), clock.copy()
        return found, crowded

    def _cap_w(self, seen: View) -> float:
        """Return the lowest cap in force in the next step, W."""
        # Observations are rounded: a change at the very end of the step counts.
        if seen.next_cap_s <= 1.01 * self.facts.control_interval_s:
            return min(seen.cap_w, seen.next_cap_w)
        return seen.cap_w

    def _target_w(self, seen: View, braked: float) -> float:
        """Return the facility power to stay below in the next step, W: less, the more of the brake's allowance is used."""
        spared = BRAKED_MARGIN * min(braked, MOST_BRAKED)
        return ((QUEUED_TARGET if self._behind(seen) else CAP_TARGET) - spared) * self._cap_w(seen)

    def _bound(self, seen: View, load: Array, waking: Array) -> Predictor:
        """Return the function from shares and clocks to the most the site may draw, as the brake sees it, W."""
        decode = self.facts.members[DECODE]
        awake = seen.active + seen.draining
        resting_w = self.plant.resting_w(waking, np.maximum(0.0, self.facts.racks - awake - waking))
        low = np.zeros(len(awake))
        low[decode] = seen.batch[decode]
        replicas = awake[decode] * self.facts.params.pool[decode, PoolSpec.UNITS_PER_RACK]
        high = low + seen.queued.sum() / max(1.0, float(replicas.sum()))

        def most(share: tuple[Array, Array], clock: Array) -> float:
            return self.plant.facility_w(resting_w + self.plant.most_watts(load, awake, clock, low, high))

        return most

    def _predictor(self, seen: View, load: Array, waking: Array, settled: bool = False) -> Predictor:
        """Return the function from shares and clocks to facility power in the next step, W."""
        prefill, decode = self.facts.members
        sigmas = self.settings.power_sigmas
        # Servers with a queue are busy all the time, and a batch that has grown does not shrink at once.
        queued = np.zeros(len(prefill)) if settled else (seen.wait_s[prefill] > BEHIND_S).astype(np.float64)
        batch = np.zeros(len(decode)) if settled else seen.batch[decode]
        awake = seen.active + seen.draining
        resting_w = self.plant.resting_w(waking, np.maximum(0.0, self.facts.racks - awake - waking))
        racks = awake[prefill], awake[decode]

        def predict(share: tuple[Array, Array], clock: Array) -> float:
            clocks = clock[prefill], clock[decode]
            return self.plant.expected_w(load, share, racks, clocks, (queued, batch), resting_w, sigmas)

        return predict

    def _affordable(self, seen: View, load: Array, racks: Array, braked: float) -> Array:
        """Wake no more racks at a time than the cap has room for while they wake."""
        fresh = np.maximum(0.0, racks - seen.active - seen.waking - seen.draining)
        if not fresh.any():
            return racks
        active = [seen.active[members] for members in self.facts.members]
        served = [self.plant.dispatch(self.plant.phases[k], self._limits[k], load, active[k]) for k in PHASES]
        clock = np.zeros(len(racks))
        for k in PHASES:
            clock[self.facts.members[k]] = served[k].clock
        now_w = self._predictor(seen, load, seen.waking)((served[PREFILL].share, served[DECODE].share), clock)
        room_w = max(0.0, self._target_w(seen, braked) - now_w)
        extra_w = self.plant.waking_w * float(self.plant.facility_w(1e6) / 1e6)
        allowed = racks.copy()
        # Decode first: a rack there serves more.
        for pool in reversed(range(len(racks))):
            afford = min(fresh[pool], math.floor(room_w / extra_w[pool]))
            allowed[pool] -= fresh[pool] - afford
            room_w -= afford * extra_w[pool]
        return allowed

    @staticmethod
    def _between(predict: Predictor, share: tuple[Array, Array], low: Array, high: Array, target_w: float) -> Array:
        """Return the highest clocks on the line from ``low`` to ``high`` whose predicted power fits."""
        if predict(share, high) <= target_w:
            return high
        least, most = 0.0, 1.0
        for _ in range(CLOCK_STEPS):
            middle = 0.5 * (least + most)
            if predict(share, low + middle * (high - low)) <= target_w:
                least = middle
            else:
                most = middle
        return np.asarray(low + least * (high - low))


__all__ = ["RANGES", "Reactive", "Settings", "settings_from_table", "tuned_settings"]
