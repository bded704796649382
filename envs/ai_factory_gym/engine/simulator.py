"""The Python side of the engine: owns the arrays, starts episodes, runs control steps, saves and restores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.engine import kernel
from ai_factory_gym.engine.generation import begin_units
from ai_factory_gym.engine.layout import (
    BACKLOG_BIN_S,
    CHANCE,
    COHORT_DAYS,
    FIRST_UNIT,
    PREFILL,
    RACK,
    REQUEST,
    REQUEST_DAYS,
    Array,
    CapStep,
    Class,
    ClassSpec,
    Fault,
    Gate,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Purpose,
    Site,
    SiteInt,
    SiteSpec,
    State,
    Store,
    Tier,
    Unit,
    UnitSpec,
    World,
    allocate,
    clear_row,
    grow,
)
from ai_factory_gym.engine.reference import Reference
from ai_factory_gym.engine.rng import seed_stream
from ai_factory_gym.engine.training import begin_training
from ai_factory_gym.engine.truth import true_perf, true_power
from ai_factory_gym.scenarios.mismatch import Truth, no_mismatch

_OUTSIDE = {
    Site.OUTDOOR_C: World.OUTDOOR_C,
    Site.USD_PER_MWH: World.USD_PER_MWH,
    Site.G_PER_KWH: World.G_PER_KWH,
    Site.PEAK_UNTIL_S: World.PEAK_UNTIL_S,
    Site.PEAK_LEFT_S: World.PEAK_LEFT_S,
    Site.COINCIDENT: World.COINCIDENT,
    Site.JOB: World.JOB,
}
"""What a row knows of the present minute, and where it is in the world."""


@dataclass(frozen=True)
class Episode:
    """What one row meets from ``start_s`` on: drawn before it begins, untouched by any action.

    Attributes:
        path_start_s: Time at which the rate path begins, s; negative by the warm-up.
        rate: Intensity per class and minute, requests/s, float64[classes, minutes].
        hazard: Share of the deferrable backlog released per second, float64[minutes].
        cap_steps: float64[steps, CapStep].
        shift: Shifts of the copies of a replayed trace, s, float64[copies].
        kept: Requests the last copy keeps, bool[requests].
        streams: One numpy generator per ``Purpose``.
        world: Outdoor temperature, price, carbon intensity, coincident peaks and training jobs by minute, float64[minutes, World].
        truth: What is true in this episode over what the catalogue says; None is as it says.
        faults: When which racks go out of service, float64[events, Fault]; None is never.
    """

    path_start_s: float
    rate: Array
    hazard: Array
    cap_steps: Array
    shift: Array
    kept: Array
    streams: dict[Purpose, np.random.Generator]
    world: Array
    truth: Truth | None = None
    faults: Array | None = None


@dataclass(frozen=True)
class Decision:
    """What the operator sets for a control step, one entry per row that is stepped.

    Attributes:
        bias: Routing factors, float64[n, 2, groups, pools].
        ceiling: Clock ceilings, float64[n, pools].
        power_limit_w: Watts per active rack, inf for none, float64[n, pools].
        racks: Racks wanted awake, int64[n, pools].
        most_batch: Requests per decode replica, float64[n, pools]; None is what the pools allow.
        gate: What is let in, released and thought about by class, float64[n, classes, Gate]; None is everything, by the built-in rule,
            at full effort.
        order: What is set for the site as a whole and for the units that make its power, float64[n, Order and units]; None is nothing.
        own: Racks wanted in each pool, awake or not, int64[n, pools]; None is as built.
    """

    bias: Array
    ceiling: Array
    power_limit_w: Array
    racks: Array
    most_batch: Array | None = None
    gate: Array | None = None
    order: Array | None = None
    own: Array | None = None


def open_gate(rows: int, classes: int) -> Array:
    """Return a gate that lets all in, leaves deferred work to the built-in rule, and all answers long, float64[rows, classes, Gate]."""
    gate = np.zeros((rows, classes, len(Gate)))
    gate[:, :, Gate.ADMITTED] = 1.0
    gate[:, :, Gate.EFFORT] = 1.0
    return gate


def no_order(rows: int, params: Params) -> Array:
    """Return no orders for the site as a whole and its units, float64[rows, Order and units]."""
    return np.zeros((rows, FIRST_UNIT + int((params.unit[:, UnitSpec.LEVER] >= 0.0).sum())))


@dataclass(frozen=True)
class Snapshot:
    """The whole state of an engine: arrays and random streams as one value."""

    state: State
    path_start_s: Array


class Engine:
    """Rows of sites that run side by side in the same kernels.

    Args:
        params: Constant arrays.
        rows: Number of environments.
        slots: Cohort slots to begin with; they double when they run out.
        log_lines: Lines of the request log kept per row; 0 keeps none.
    """

    def __init__(self, params: Params, *, rows: int = 1, slots: int = 0, log_lines: int = 0) -> None:
        """Allocate the arrays."""
        self.params = params
        self._params = Reference(params)
        self.rows = rows
        self._log_lines = log_lines
        exact = params.site[SiteSpec.RESOLUTION] == REQUEST
        self._slots = slots or (32768 if exact else 2048)
        self._state: State | None = None
        self._reference: Reference | None = None
        self._path_start_s = np.zeros(rows)
        self._status = np.zeros(rows, dtype=np.int64)

    @property
    def begun(self) -> bool:
        """Whether any row was begun."""
        return self._state is not None

    @property
    def state(self) -> State:
        """The arrays; rows are meaningful once they were begun."""
        if self._state is None:
            raise RuntimeError("Engine.begin() has to be called before the state is read.")
        return self._state

    @property
    def reference(self) -> Reference:
        """The state as kernels are handed it."""
        if self._reference is None:
            raise RuntimeError("Engine.begin() has to be called before the state is read.")
        return self._reference

    def _replace(self, state: State) -> None:
        """Take other arrays for the state."""
        self._state = state
        self._reference = Reference(state)

    @property
    def path_start_s(self) -> Array:
        """Time at which each row's rate path begins, s, float64[rows]."""
        return self._path_start_s

    @property
    def tick_s(self) -> float:
        """Length of a tick, s."""
        return float(self.params.site[SiteSpec.TICK_S])

    def begin(self, row: int, episode: Episode) -> None:
        """Start an episode in one row: every rack awake, no requests, clocks at their maximum, scoring off."""
        params = self.params
        self._fit(episode)
        state = self.state
        clear_row(state, row)
        minutes = episode.rate.shape[1]
        state.rate[row, :, :minutes] = episode.rate
        state.rate[row, :, minutes:] = episode.rate[:, -1:]
        state.hazard[row, :minutes] = episode.hazard
        state.hazard[row, minutes:] = episode.hazard[-1]
        state.world[row, :minutes] = episode.world
        state.world[row, minutes:] = episode.world[-1]
        state.cap_steps[row, : len(episode.cap_steps)] = episode.cap_steps
        state.shift[row] = episode.shift
        state.kept[row] = episode.kept
        for purpose in Purpose:
            state.rng[row, purpose] = seed_stream(episode.streams[purpose])
        self._path_start_s[row] = episode.path_start_s
        site = state.site[row]
        site[Site.TIME_S] = episode.path_start_s
        site[Site.CAP_W] = episode.cap_steps[0, CapStep.CAP_W]
        site[list(_OUTSIDE)] = episode.world[0, list(_OUTSIDE.values())]
        site[Site.BATTERY_CHARGE_J] = params.site[SiteSpec.BATTERY_INITIAL_J]
        site[Site.STORAGE_CHARGE_J] = params.site[SiteSpec.STORAGE_REST_J]
        site[Site.VARIES] = float(np.ptp(episode.world[:, [World.USD_PER_MWH, World.G_PER_KWH]], axis=0).any())
        if episode.faults is not None and len(episode.faults):
            state.fault[row, : len(episode.faults)] = episode.faults
            site[Site.FAULTS] = 2.0 if np.any(episode.faults[:, Fault.DOMAIN] != RACK) else 1.0
            site[Site.NEXT_FAULT_S] = episode.faults[0, Fault.TIME_S]
        site[Site.DECODE_DUTY] = site[Site.PREFILL_DUTY] = 1.0
        site[Site.BRAKE_CLOCK] = 1.0
        begin_units(params, state, row)
        if params.site[SiteSpec.HEAT_W_PER_K] > 0.0:
            site[Site.COOLANT_C] = site[Site.COOLANT_PEAK_C] = site[Site.OUTDOOR_C]
        if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
            begin_training(params, state, row)
        pool = state.pool[row]
        pool[:, Pool.TIME_S] = episode.path_start_s
        pool[:, Pool.CLOCK] = pool[:, Pool.CLOCK_CEILING] = pool[:, Pool.DUTY] = 1.0
        pool[:, Pool.TRANSFER_FREE_S] = -math.inf
        pool[:, Pool.DWELL_UNTIL_S] = -math.inf
        pool[:, Pool.MAX_BATCH] = params.pool[:, PoolSpec.MAX_BATCH]
        state.cls[row, :, Class.ADMITTED] = state.cls[row, :, Class.EFFORT] = 1.0
        truth = episode.truth or no_mismatch(len(params.pool), len(params.cls))
        state.cls[row, :, Class.OUTPUT_FACTOR] = truth.output_tokens
        state.perf[row] = true_perf(params, truth)
        state.power[row] = true_power(params, truth)
        state.pool_int[row, :, PoolInt.ACTIVE] = params.pool[:, PoolSpec.RACKS].astype(np.int64)
        state.pool_int[row, :, PoolInt.READY_TODAY] = math.floor(
            episode.path_start_s * params.site[SiteSpec.DAYS_PER_S]
        )
        if len(params.cache):
            # A stream of its own, so that no other changes. What was before the episode is taken to have been like its first minutes.
            state.rng[row, CHANCE] = seed_stream(episode.streams[Purpose.SHIFTS].spawn(1)[0])
            state.cache[row, -1, Store.UPDATED_S] = episode.path_start_s
            state.cache[row, -1, Store.STORE_S] = math.inf if params.site[SiteSpec.STORE_BYTES] > 0.0 else 0.0
            prefill = np.flatnonzero(params.pool[:, PoolSpec.PHASE] == PREFILL)
            state.cache[row, prefill, Tier.HBM_S] = state.cache[row, prefill, Tier.HOST_S] = math.inf
        # A copy starts at its first request that is due: times of a repeating copy rise with the cursor.
        if len(params.trace_time):
            span_s = params.site[SiteSpec.TRACE_SPAN_S]
            for copy, shift_s in enumerate(episode.shift):
                cycles, inside_s = divmod(episode.path_start_s - shift_s + span_s, span_s)
                first = int(np.searchsorted(params.trace_time, inside_s))
                state.cursor[row, copy] = int(cycles) * len(params.trace_time) + first

    def _fit(self, episode: Episode) -> None:
        """Allocate the state for an episode of this shape, or widen its time axis."""
        params = self.params
        minutes = episode.rate.shape[1]
        steps = len(episode.cap_steps)
        faults = 0 if episode.faults is None else len(episode.faults)
        if self._state is not None:
            wider = {}
            if minutes > self._state.rate.shape[2]:
                extra = minutes - self._state.rate.shape[2]
                wider["rate"] = np.pad(self._state.rate, ((0, 0), (0, 0), (0, extra)), mode="edge")
                wider["hazard"] = np.pad(self._state.hazard, ((0, 0), (0, extra)), mode="edge")
                wider["world"] = np.pad(self._state.world, ((0, 0), (0, extra), (0, 0)), mode="edge")
            if steps > self._state.cap_steps.shape[1]:
                extra = steps - self._state.cap_steps.shape[1]
                wider["cap_steps"] = np.pad(self._state.cap_steps, ((0, 0), (0, extra), (0, 0)), constant_values=np.inf)
            if faults > self._state.fault.shape[1]:
                extra = faults - self._state.fault.shape[1]
                wider["fault"] = np.pad(self._state.fault, ((0, 0), (0, extra), (0, 0)), constant_values=np.inf)
            if wider:
                self._replace(self._state._replace(**wider))
            return
        deadline_s = float(np.max(params.cls[:, ClassSpec.DEADLINE_S]))
        longest_s = float(np.max(params.pool[:, [PoolSpec.WAKE_S, PoolSpec.DRAIN_S, PoolSpec.SWITCH_S]]))
        state = allocate(
            rows=self.rows,
            pools=len(params.pool),
            classes=len(params.cls),
            groups=params.capacity.shape[1],
            cells=len(params.cell),
            slots=self._slots,
            minutes=minutes,
            backlog_bins=int(deadline_s // BACKLOG_BIN_S) + 3,
            transitions=min(64, int(longest_s // params.site[SiteSpec.CONTROL_INTERVAL_S]) + 3),
            cap_steps=max(8, steps),
            copies=len(episode.shift),
            trace_requests=len(params.trace_time),
            log_lines=self._log_lines,
            cached=len(params.cache) > 0,
            coefficients=(params.perf.shape[1], params.power.shape[1]),
            faults=faults,
            units=len(params.unit),
            days=REQUEST_DAYS if params.site[SiteSpec.RESOLUTION] == REQUEST else COHORT_DAYS,
        )
        self._replace(state)

    def step(self, rows: Array, decision: Decision) -> None:
        """Run one control step of the given rows.

        Args:
            rows: int64[n], each at most once.
            decision: One entry per row.
        """
        params, count = self.params, len(rows)
        most_batch, gate, own = decision.most_batch, decision.gate, decision.own
        if most_batch is None:
            most_batch = np.tile(params.pool[:, PoolSpec.MAX_BATCH], (count, 1))
        if gate is None:
            gate = open_gate(count, len(params.cls))
        order = no_order(count, params) if decision.order is None else decision.order
        if own is None:
            own = np.tile(params.pool[:, PoolSpec.RACKS].astype(np.int64), (count, 1))
        kernel.act_rows(
            self._params.handed,
            self.reference.handed,
            rows,
            decision.bias,
            decision.ceiling,
            decision.power_limit_w,
            decision.racks,
            most_batch,
            gate,
            order,
            own,
        )
        self._status[rows] = kernel.NEEDS_SLOTS
        while (
            kernel.run_rows(self._params.handed, self.reference.handed, rows, self._path_start_s, self._status)
            != kernel.DONE
        ):
            self.grow()

    def grow(self) -> None:
        """Double the cohort slots of every row."""
        self._replace(grow(self.state, 2 * self.state.free.shape[1]))

    def open_window(self, row: int) -> None:
        """Begin scoring: totals start at zero, requests in flight stay but enter no request counter."""
        state = self.state
        site = state.site[row]
        keep = [
            Site.TIME_S,
            Site.FACILITY_POWER_W,
            Site.IT_POWER_W,
            Site.CAP_W,
            Site.PUE,
            Site.OVERDRAW_S,
            Site.BRAKED,
            Site.BRAKED_AT_S,
            Site.BRAKE_CLOCK,
            Site.DECODE_DUTY,
            Site.PREFILL_DUTY,
            Site.STEP_S,
            Site.OUTDOOR_C,
            Site.USD_PER_MWH,
            Site.G_PER_KWH,
            Site.VARIES,
            Site.BATTERY_ORDER,
            Site.BATTERY_CHARGE_J,
            Site.BATTERY_OUT_W,
            Site.PEAK_UNTIL_S,
            Site.PEAK_LEFT_S,
            Site.FAULTS,
            Site.NEXT_FAULT_S,
            Site.RAMP_W,
            Site.RAMP_S,
            Site.STORAGE_CHARGE_J,
            Site.JOB,
            Site.TRAIN_PHASE,
            Site.TRAIN_HELD,
            Site.TRAIN_CLOCK,
            Site.TRAIN_STALLED,
            Site.TRAIN_STALL_S,
            Site.TRAIN_LEFT_S,
            Site.TRAIN_RAN_S,
            Site.TRAIN_SINCE_S,
            Site.TRAIN_SINCE_J,
            Site.TRAIN_JOB_S,
            Site.TRAIN_POWER_W,
            Site.RUNNING_W,
            Site.MADE_W,
            Site.NEXT_UNIT_S,
            Site.DRAW_W,
        ]
        kept = {column: site[column] for column in keep}
        if self.params.site[SiteSpec.HEAT_W_PER_K] > 0.0:
            kept[Site.COOLANT_C] = kept[Site.COOLANT_PEAK_C] = self._settled_c(row)
        site[:] = 0.0
        for column, value in kept.items():
            site[column] = value
        site[Site.SCORING] = 1.0
        site[Site.RAMP_ON] = self.params.site[SiteSpec.RAMP]
        history = (
            Class.RATE,
            Class.RATE_LAG1,
            Class.RATE_LAG2,
            Class.QUEUED,
            Class.PENDING,
            Class.ADMITTED,
            Class.RELEASE,
            Class.ADMISSION_OWED,
            Class.OUTPUT_FACTOR,
            Class.EFFORT,
            Class.DELAY_S,
        )
        saved = state.cls[row][:, list(history)].copy()
        state.cls[row] = 0.0
        state.cls[row][:, list(history)] = saved
        state.histogram[row] = 0
        state.cache[row, :, [Tier.PROMPT, Tier.CACHED, Tier.LOADED, Tier.HELD]] = 0.0
        state.pool[row, :, Pool.ENERGY_J] = 0.0
        state.pool[row, :, Pool.G_OPEN] = state.pool[row, :, Pool.G]
        state.pool[row, :, Pool.G_CLOSE] = math.inf
        state.unit[row, :, [Unit.ENERGY_J, Unit.RUN_S, Unit.STARTS]] = 0.0
        state.site_int[row, SiteInt.LOGGED] = 0

    def _settled_c(self, row: int) -> float:
        """Return the coolant's temperature in equilibrium with the last control step, at most its limit, degC."""
        spec, site = self.params.site, self.state.site[row]
        if site[Site.STEP_S] <= 0.0:
            return float(site[Site.COOLANT_C])
        rise_k = site[Site.STEP_IT_ENERGY_J] / site[Site.STEP_S] / spec[SiteSpec.HEAT_W_PER_K]
        return float(min(spec[SiteSpec.COOLANT_LIMIT_C], site[Site.OUTDOOR_C] + rise_k))

    def close_window(self, row: int) -> None:
        """End scoring: energy, emission and arrivals freeze; fates of scored requests are still counted."""
        kernel.close_window(self.state, row)

    def snapshot(self) -> Snapshot:
        """Return a copy of everything that changes."""
        return Snapshot(State(*(array.copy() for array in self.state)), self._path_start_s.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of an engine with the same parameters and rows."""
        self._replace(State(*(array.copy() for array in snapshot.state)))
        self._path_start_s = snapshot.path_start_s.copy()
