"""Rows of one task: the engine with its levers, observations, rewards and info, shared by both environments."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from ai_factory_gym.control_step import (
    FRESH,
    Constants,
    Episodes,
    Outcome,
    Station,
    new_episodes,
    new_outcome,
    outside,
    report_rows,
    step_rows,
)
from ai_factory_gym.engine.kernel import DONE
from ai_factory_gym.engine.layout import (
    Array,
    CapStep,
    Cell,
    ClassSpec,
    PoolSpec,
    Purpose,
    SessionSpec,
    SiteSpec,
    World,
)
from ai_factory_gym.engine.outages import child, draw_faults
from ai_factory_gym.engine.reference import Reference
from ai_factory_gym.engine.simulator import Engine, Episode, Snapshot
from ai_factory_gym.engine.supply import JOULES_PER_KWH
from ai_factory_gym.engine.truth import check_idle_power, truth_of
from ai_factory_gym.errors import ConfigError, check_keys, check_range
from ai_factory_gym.grid.coincident import draw_peaks
from ai_factory_gym.grid.series import SYNTHETIC, draw_series, event_strength
from ai_factory_gym.levers import ActionLayout, as_actions, no_decision, refuse_actions
from ai_factory_gym.metrics import Info, info_keys
from ai_factory_gym.observation import ObservationLayout, class_limits_s, lay_out, site_parts
from ai_factory_gym.params import at_hottest, build_params, check_cap, check_ramp, reference_batch, with_block
from ai_factory_gym.reward import TERMS, reward_of
from ai_factory_gym.scenarios import Scenario, scenario
from ai_factory_gym.scenarios.mismatch import NO_SPREAD, Truth, draw_truth
from ai_factory_gym.scenarios.training import JOBS_STREAM, OUTAGES_STREAM, draw_block_outages, draw_jobs
from ai_factory_gym.sites import SiteConfig
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.task import DAY_S, Task, check_shifts, shifted_classes, warn_of_shifts
from ai_factory_gym.workload.demand import mean_path, rate_path, shift_factor
from ai_factory_gym.workload.traces import SuperpositionPlan, shifts, unit_hash

RESET_OPTIONS = ("start_time_s", "scenario", "demand_scale", "horizon_s")

DRAIN_LIMIT_S = 12 * 3600.0
"""Demand path kept beyond the horizon for draining, s; deferrable work is decided within its deadline."""

RELEASE_PER_HOUR = 1.0
"""Share of the deferrable backlog the built-in rule releases per hour in the deepest valley of demand (status: assumed)."""

BREAKER_S = 60.0
"""A site without a brake trips its breaker after drawing above the cap for this long without a break (status: assumed)."""


def may_fail(site: SiteConfig, chosen: Scenario) -> bool:
    """Tell whether racks may go out of service at a site under a scenario."""
    return site.reliability is not None or chosen.faults.rate_factor > 0.0 or bool(chosen.maintenance)


def may_fail_in_part(site: SiteConfig, chosen: Scenario) -> bool:
    """Tell whether faults may take parts of racks at a site under a scenario."""
    faults = site.reliability is not None or chosen.faults.rate_factor > 0.0
    return faults and chosen.faults.at(site.reliability).in_part


def check_options(options: Any, allowed: Sequence[str] = RESET_OPTIONS) -> None:
    """Refuse reset options that are no mapping or hold a key that is not allowed (ConfigError)."""
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options: {options!r} is not allowed; must be a dict with keys of {', '.join(allowed)}.")
    check_keys("options", options or {}, required=(), optional=allowed)


@dataclass(frozen=True)
class FactorySnapshot:
    """Everything that changes in a factory.

    Attributes:
        made_for: ``Factory.digest`` of the factory it came from.
        engine: State of the engine.
        episodes: What each row's episode is.
    """

    made_for: str
    engine: Snapshot
    episodes: Episodes


class Factory:
    """One task's environments, side by side.

    Args:
        task: The task.
        rows: Number of environments.
        log_lines: Lines of the request log kept per row.
    """

    def __init__(self, task: Task, rows: int = 1, log_lines: int = 0) -> None:
        """Build parameters, layouts and engine."""
        self.task = task
        self.rows = rows
        self.site = with_block(task.site, task.scenario)
        self.classes = task.classes
        self.pools = task.site.pools
        self._thin = 1.0
        if task.trace is not None:
            fraction = task.rate_scale - math.floor(task.rate_scale)
            self._thin = fraction if fraction > 0.0 else 1.0
        self.params = build_params(
            self.site,
            self.classes,
            task.grain,
            control_interval_s=task.control_interval_s,
            deferrable=task.scenario.deferrable,
            trace=task.trace,
            trace_labels=None if task.trace is None else task.trace_labels(),
            thin_fraction=self._thin,
            effort="effort" in task.levers,
            gate="admission" in task.levers,
            faults=float(may_fail(task.site, task.scenario)) + float(may_fail_in_part(task.site, task.scenario)),
        )
        self._lambda: dict[Scenario, float] = {}
        self._check(task.scenario)
        self.engine = Engine(self.params, rows=rows, log_lines=log_lines)
        batch = reference_batch(self.site, self.classes, self.params)
        self.action_layout = ActionLayout(self.params, task.levers, task.site.clock_min, batch)
        self.mean_rate = self._mean_rate()
        slices, size = lay_out(
            len(self.pools),
            len(self.classes),
            self.action_layout.size,
            task.levers,
            site_parts(self.site, may_fail(task.site, task.scenario)),
            len(task.site.generation),
        )
        self.observation_layout = ObservationLayout(
            slices=slices,
            size=size,
            pool_batch=np.maximum(batch, 1.0),
            pool_nameplate_w=self.params.pool[:, PoolSpec.RACKS] * self.action_layout.rack_w,
            class_rate=self.mean_rate,
            class_ttft_s=class_limits_s(self.params),
            base_cap_w=task.site.supply_w,
            tpot_s=min(cls.tpot_s for cls in self.classes),
            pool_rack_w=self.action_layout.rack_w,
        )
        sessions = (
            self.params.session[:, SessionSpec.THINK_S] if len(self.params.session) else np.zeros(len(self.classes))
        )
        self.info_keys = info_keys(
            tuple(cls.name for cls in self.classes),
            "effort" in task.levers,
            task.site.battery is not None,
            task.site.money is not None,
            tuple(cls.name for cls, think_s in zip(self.classes, sessions, strict=True) if think_s > 0.0),
            task.site.caches,
            "coolant" in site_parts(task.site),
            "peaks" in site_parts(task.site),
            may_fail(task.site, task.scenario),
            task.site.ramp is not None,
            may_fail_in_part(task.site, task.scenario),
            self.site.training is not None,
            tuple(unit.name for unit in task.site.generation),
        )
        self._no_info = dict.fromkeys(self.info_keys, math.nan)
        self._constants = Constants(
            clock_min=task.site.clock_min,
            scale_tokens=self._nominal_tokens(),
            miss_weight=float(task.miss_weight),
            reward_kind=reward_of(task.reward).kind,
            scale_usd=self._nominal_usd(),
            joules_per_kg=JOULES_PER_KWH * 1000.0 / max(task.site.usual("carbon"), 1e-9),
            breaker_s=math.inf if task.site.brake.enabled else BREAKER_S,
            drain_s=DRAIN_LIMIT_S if task.drain else 0.0,
        )
        self._fixed_numbers = (self.observation_layout.constants, tuple(self._constants))
        self._params = Reference(self.params)
        self._status = np.zeros(rows, dtype=np.int64)
        self._episodes = new_episodes(rows, self.action_layout.size, len(TERMS))
        decision = no_decision(rows, self.params)
        self._station = Reference(
            Station(
                *self._episodes,
                *(getattr(decision, field.name) for field in dataclasses.fields(decision)),
                *self.action_layout.arrays,
                *self.observation_layout.scales,
            )
        )
        self._episodes.price[:] = reward_of(task.reward).price_share * task.energy_price
        self._begun: set[int] = set()

    @functools.cached_property
    def digest(self) -> str:
        """What a snapshot must share with the factory it is restored to: constant arrays, levers and number of rows."""
        parts = [np.ascontiguousarray(array).tobytes() for array in self.params]
        return hashlib.sha256(b"".join(parts) + repr((self.task.levers, self.rows)).encode()).hexdigest()

    def need_episodes(self) -> None:
        """Refuse to go on before every row was reset (ResetNeeded)."""
        if len(self._begun) < self.rows:
            raise ResetNeeded("reset() has to be called first, for every row.")

    def _lambda_under(self, chosen: Scenario) -> float:
        """Return the price of energy in the reward under a scenario, against which the site is checked when it comes for the first time.

        Raises:
            ConfigError: When the site cannot work under it, or there is no price.
        """
        if chosen not in self._lambda:
            self._check(chosen)
            self._lambda[chosen] = self.task.lambda_for(chosen)
        return self._lambda[chosen]

    def _check(self, chosen: Scenario) -> None:
        """Refuse a scenario under which the site cannot work (ConfigError)."""
        spread = chosen.mismatch.idle_power
        check_idle_power(self.params, [pool.name for pool in self.pools], spread)
        site = with_block(self.task.site, chosen)
        if site.training != self.site.training:
            raise ConfigError(
                f"options: scenario {chosen.name!r} differs from {self.task.scenario.name!r} in the training block of site {site.name!r}; make a new "
                f"environment with scenario={chosen.name!r}."
            )
        racks = sum(pool.racks for pool in site.pools)
        for maintenance in chosen.maintenance:
            if maintenance.racks > racks:
                raise ConfigError(
                    f"scenario {chosen.name!r}: maintenance: racks: {maintenance.racks:g} is not allowed; site {site.name!r} has {racks}."
                )
        lowest_cap_w = site.cap_w * chosen.lowest_cap_fraction
        check_cap(at_hottest(site, chosen.temperature_events), lowest_cap_w, 1.0 + spread)
        check_ramp(site, lowest_cap_w)

    def _mean_rate(self) -> Array:
        """Return mean requests/s per class."""
        task = self.task
        if task.trace is None:
            shares = np.array([task.site.mix[cls.name] for cls in self.classes])
            return shares * task.site.demand_rps
        counts = np.bincount(task.trace_labels(), minlength=len(self.classes))
        return counts / task.trace.span_s * task.rate_scale

    def _nominal_tokens(self) -> float:
        """Return the output tokens of a control step at mean demand: the reward's scale."""
        task = self.task
        if task.trace is None:
            outputs = np.array([cls.output.mean() for cls in self.classes])
            return float(self.mean_rate @ outputs) * task.control_interval_s
        return float(np.mean(task.trace.output_tokens)) * float(self.mean_rate.sum()) * task.control_interval_s

    def _nominal_usd(self) -> float:
        """Return the revenue of a control step at mean demand, USD; 1 where tokens are not paid for."""
        if self.task.site.money is None:
            return 1.0
        cells, spec = self.params.cell, self.params.cls
        of_class = cells[:, Cell.CLASS].astype(np.int64)
        paid = spec[of_class, ClassSpec.INPUT_USD] * cells[:, Cell.PROMPT]
        paid += spec[of_class, ClassSpec.OUTPUT_USD] * cells[:, Cell.OUTPUT]
        usd = float((self.mean_rate[of_class] * cells[:, Cell.WEIGHT]) @ paid) * self.task.control_interval_s
        return usd if usd > 0.0 else 1.0

    # ------------------------------------------------------------------------------------------------ episodes

    def begin(
        self,
        rows: Sequence[int],
        generators: Sequence[np.random.Generator],
        options: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Start episodes in rows and warm them up with the neutral action.

        Args:
            rows: Rows to start.
            generators: One random generator per row; spawns one child per purpose.
            options: Reset options per row, see RESET_OPTIONS.

        Raises:
            ConfigError: On an option that cannot be used.
        """
        self.prepare(rows, generators, options)
        index = np.asarray(rows, dtype=np.int64)
        outcome = self.new_outcome()
        for _ in range(self.warmup_steps):
            self.put(index, 0.0)
            while self.run(index, outcome) != DONE:
                self.engine.grow()
        self.open(rows)

    @property
    def warmup_steps(self) -> int:
        """Control steps before the scored window."""
        return round(self.task.warmup_s / self.task.control_interval_s)

    def prepare(
        self,
        rows: Sequence[int],
        generators: Sequence[np.random.Generator],
        options: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Draw the episodes of rows and empty their sites; ``warmup_steps`` with the neutral action and ``open`` come next."""
        for chosen in options:
            check_options(chosen)
        for row, generator, chosen in zip(rows, generators, options, strict=True):
            self.engine.begin(row, self._draw_episode(row, generator, dict(chosen or {})))
            self._episodes.closed[row] = False

    def open(self, rows: Sequence[int]) -> None:
        """Begin the scored windows of rows."""
        for row in rows:
            self.engine.open_window(row)
            self._episodes.action[row] = 0.0
            self._episodes.scored[row] = True
            self._episodes.terms[row] = 0.0
            self._begun.add(row)

    def _draw_episode(self, row: int, generator: np.random.Generator, options: dict[str, Any]) -> Episode:
        """Draw everything an episode meets; nothing here depends on what the operator will do."""
        task = self.task
        chosen = scenario(options["scenario"]) if "scenario" in options else task.scenario
        if chosen.deferrable != task.scenario.deferrable:
            raise ConfigError(
                f"options: scenario {chosen.name!r} differs from {task.scenario.name!r} in whether work may be deferred; "
                f"make a new environment with scenario={chosen.name!r}."
            )
        check_shifts(chosen, task.site)
        if "scenario" in options:
            warn_of_shifts(chosen, task.site)
        price = self._lambda_under(chosen)
        horizon_s = check_range(
            "options: horizon_s", options.get("horizon_s", task.horizon_s), task.control_interval_s, 3.2e7, "s"
        )
        steps = horizon_s / task.control_interval_s
        if abs(steps - round(steps)) > 1e-9:
            raise ConfigError(f"options: horizon_s: {horizon_s!r} must be a multiple of {task.control_interval_s:g} s.")
        task.check_trace_covers(horizon_s)
        demand = check_range("options: demand_scale", options.get("demand_scale", task.demand_scale), 0.0, 1000.0)
        if task.trace is not None and demand != 1.0:
            raise ConfigError(f"options: demand_scale: {demand!r} scales synthetic demand, and a trace is replayed.")
        task.check_duration(horizon_s, demand)
        drawn = 60.0 * int(generator.integers(0, 1440))
        start_s = options.get("start_time_s", drawn if task.start_time_s is None else task.start_time_s)
        check_range("options: start_time_s", start_s, 0.0, DAY_S, "s")
        streams = dict(zip(Purpose, generator.spawn(len(Purpose)), strict=True))
        self._episodes.start_s[row] = start_s
        self._episodes.horizon_s[row] = horizon_s
        self._episodes.price[row] = reward_of(task.reward).price_share * price
        self._episodes.credit[row] = self.params.site[SiteSpec.TRAIN_WORTH] * price
        path_start_s = -task.warmup_s
        minutes = math.ceil((task.warmup_s + horizon_s + DRAIN_LIMIT_S) / 60.0)
        rate, hazard = self._demand(streams[Purpose.RATES], chosen, start_s + path_start_s, minutes, demand)
        cap = chosen.draw_cap(streams[Purpose.CAP], task.site.cap_w or 1.0, start_s, horizon_s).breakpoints()
        cap_steps = np.stack([cap.times_s, cap.cap_w, cap.announced_at_s], axis=1)
        if task.site.cap_w == 0.0:
            # Nobody curtails a site that has no connection.
            cap_steps = np.array([[-math.inf, 0.0, -math.inf]])
        assert cap_steps.shape[1] == len(CapStep)
        plan = self._superposition(streams[Purpose.SHIFTS])
        shift = plan.shift_s
        kept = np.ones(len(self.params.trace_time), dtype=np.bool_)
        if self._thin < 1.0:
            shift = np.append(shift, plan.thin_shift_s)
            kept = np.asarray(unit_hash(np.arange(len(kept)), plan.salt) < self._thin)
        # A stream of its own: what else is drawn does not depend on whether there is a mismatch.
        truth = None
        if chosen.mismatch != NO_SPREAD:
            stream = streams[Purpose.FAULTS].spawn(1)[0]
            phases, racks = [pool.phase for pool in self.pools], [pool.rack_type.id for pool in self.pools]
            truth = draw_truth(stream, chosen.mismatch, phases, racks, len(self.classes))
        world = self._world(streams, chosen, start_s + path_start_s, minutes)
        world[:, World.JOB] = self._jobs(streams, chosen, start_s + path_start_s, minutes)
        faults = self._faults(streams[Purpose.FAULTS], chosen, start_s, horizon_s + DRAIN_LIMIT_S)
        return Episode(path_start_s, rate, hazard, cap_steps, shift, kept, streams, world, truth, faults)

    def _jobs(
        self, streams: Mapping[Purpose, np.random.Generator], chosen: Scenario, start_s: float, minutes: int
    ) -> Array:
        """Return whether there is a training job by minute, float64[minutes]; -1 where it waits for a rack of its block."""
        block = self.site.training
        if block is None:
            return np.zeros(minutes)
        local_s = start_s + 60.0 * np.arange(minutes, dtype=np.float64)
        there = draw_jobs(child(streams[Purpose.CAP], JOBS_STREAM), chosen.training_jobs, local_s)
        factor = chosen.faults.rate_factor or float(self.site.reliability is not None)
        if factor > 0.0:
            gpus = block.racks * block.group.gpus
            spec = self.site.reliability or ReliabilityConfig()
            stream = child(streams[Purpose.FAULTS], OUTAGES_STREAM)
            there[draw_block_outages(stream, spec, factor, gpus, minutes) & (there > 0.0)] = -1.0
        return there

    def _faults(self, stream: np.random.Generator, chosen: Scenario, start_s: float, span_s: float) -> Array | None:
        """Return when which racks go out of service, float64[events, Fault]; None where none ever does."""
        site = self.task.site
        if not may_fail(site, chosen):
            return None
        factor = chosen.faults.rate_factor or float(site.reliability is not None)
        # Racks that may change their role are one family, under the number of their prefill pool.
        other = dict(site.pairs)
        first = [index for index in site.rack_pools if index not in other.values()]
        racks = [site.pools[i].racks + (site.pools[other[i]].racks if i in other else 0) for i in first]
        gpus = [sum(group.gpus for group in site.pools[index].rack_type.groups) for index in first]
        spec = chosen.faults.at(site.reliability)
        return draw_faults(child(stream), spec, factor, chosen.maintenance, first, racks, gpus, start_s, span_s)

    def _world(
        self, streams: Mapping[Purpose, np.random.Generator], chosen: Scenario, start_s: float, minutes: int
    ) -> Array:
        """Return outdoor temperature, price, carbon intensity and coincident peaks by minute, float64[minutes, World]."""
        site = self.task.site
        series = dict(site.series)
        if chosen.temperature_events:
            series.setdefault("temperature", SYNTHETIC)
        if chosen.price_events:
            series.setdefault("electricity", SYNTHETIC)
        # The day of a file and the noise of a synthetic series are drawn from streams of their own, whatever there is.
        of_price, of_carbon, of_prices_events, of_peaks = streams[Purpose.PRICE].spawn(4)
        of_weather, of_heat = streams[Purpose.WEATHER].spawn(2)
        local_s = start_s + 60.0 * np.arange(minutes, dtype=np.float64)
        world = np.empty((minutes, len(World)))
        for column, kind, stream, mean in (
            (World.OUTDOOR_C, "temperature", of_weather, site.cooling.outdoor_c),
            (World.USD_PER_MWH, "electricity", of_price, site.electricity_usd_per_mwh),
            (World.G_PER_KWH, "carbon", of_carbon, site.carbon_g_per_kwh),
        ):
            world[:, column] = draw_series(stream, kind, series.get(kind), mean, local_s)
        if chosen.price_events:
            strength, size = event_strength(of_prices_events, chosen.price_events, local_s)
            world[:, World.USD_PER_MWH] *= np.prod(1.0 + strength * (size[:, None] - 1.0), axis=0)
        if chosen.temperature_events:
            strength, size = event_strength(of_heat, chosen.temperature_events, local_s)
            world[:, World.OUTDOOR_C] += (strength * size[:, None]).sum(axis=0)
        peaks = draw_peaks(of_peaks, chosen.peak_windows, local_s)
        world[:, World.PEAK_UNTIL_S], world[:, World.PEAK_LEFT_S], world[:, World.COINCIDENT] = peaks
        return world

    def truth(self, row: int = 0) -> Truth:
        """Return how far a row's site is from its catalogue in this episode: what a mismatch hides from the operator."""
        self.need_episodes()
        return truth_of(self.params, self.engine.state, row)

    def _superposition(self, stream: np.random.Generator) -> SuperpositionPlan:
        if self.task.trace is None:
            return SuperpositionPlan(np.zeros(0), 0.0, 0.0, 0)
        return shifts(stream, self.task.rate_scale, self.task.trace.span_s)

    @functools.cached_property
    def _least_and_most_rps(self) -> dict[bool, tuple[float, float]]:
        """Lowest and highest mean demand of a day that cannot be deferred, requests/s; without and with the daily curve."""
        interactive = np.array([not cls.deferrable for cls in self.classes])
        profiles = [cls.demand for cls in self.classes]
        found = {}
        for daily in (False, True):
            day = mean_path(profiles, self.mean_rate, 0.0, 1440, daily=daily)[interactive].sum(axis=0)
            found[daily] = float(day.min()), float(day.max())
        return found

    def _demand(
        self, stream: np.random.Generator, chosen: Scenario, start_s: float, minutes: int, scale: float
    ) -> tuple[Array, Array]:
        """Return the intensity path and the share of deferrable work released per second, by minute."""
        profiles = [cls.demand for cls in self.classes]
        bursts = chosen.draw_bursts(stream)
        rate = rate_path(
            stream,
            profiles,
            self.mean_rate * scale,
            start_s,
            minutes,
            daily=chosen.daily,
            overdispersion=chosen.overdispersion,
            bursts=bursts,
        )
        if chosen.shifts:
            # A stream of their own: what else is drawn does not depend on whether a scenario has shifts.
            shifts = [
                dataclasses.replace(shift, classes=shifted_classes(shift, self.task.site))
                for shift in chosen.draw_shifts(stream.spawn(1)[0])
            ]
            rate *= shift_factor(shifts, [cls.name for cls in self.classes], start_s, minutes)
        interactive = np.array([not cls.deferrable for cls in self.classes])
        curve = mean_path(profiles, self.mean_rate, start_s, minutes, daily=chosen.daily)[interactive].sum(axis=0)
        low, high = self._least_and_most_rps[chosen.daily]
        valley = (high - curve) / (high - low) if high > low * (1.0 + 1e-9) else np.ones(minutes)
        return rate, RELEASE_PER_HOUR / 3600.0 * np.clip(valley, 0.0, 1.0)

    # ---------------------------------------------------------------------------------------------------- steps

    def check(self, actions: Any, shape: tuple[int, ...]) -> Array:
        """Return actions as float64 of the given shape; refuse what is not in [-1, 1] (ConfigError)."""
        checked = as_actions(actions, shape)
        if outside(checked.reshape(-1, self.action_layout.size)):
            refuse_actions(checked)
        return checked

    def new_outcome(self) -> Outcome:
        """Return room for what a step of all rows gives back."""
        return new_outcome(self.rows, self.observation_layout.size, len(self.info_keys))

    def step(self, rows: Array, actions: Array, outcome: Outcome) -> None:
        """Run one control step of rows; those that pass their horizon close their scored window.

        Args:
            rows: int64[n].
            actions: float64[n, actions], checked.
            outcome: What the step gives back, written for these rows.
        """
        self.need_episodes()
        self.put(rows, actions)
        while self.run(rows, outcome) != DONE:
            self.engine.grow()

    def put(self, rows: Array, actions: Array | float) -> None:
        """Take the actions with which ``run`` is to begin a control step of rows."""
        if self.rows == 1:
            # There is nothing to look up, which takes longer than to copy.
            self._episodes.action[0] = actions
            self._status[0] = FRESH
        else:
            self._episodes.action[rows] = actions
            self._status[rows] = FRESH

    def run(self, rows: Array, outcome: Outcome) -> int:
        """Run, or resume, a control step of rows; returns DONE, or NEEDS_SLOTS when the engine must grow first.

        Calls for different rows may run side by side in threads.
        """
        seen, numbers = self._fixed_numbers
        return int(
            step_rows(
                self._params.handed,
                self.engine.reference.handed,
                self._station.handed,
                tuple(outcome),
                seen,
                numbers,
                rows,
                self.engine.path_start_s,
                self._status,
            )
        )

    def report(self, rows: Array, outcome: Outcome) -> None:
        """Write the observations and infos of rows as they are."""
        seen, _ = self._fixed_numbers
        report_rows(
            self._params.handed,
            self.engine.reference.handed,
            self._station.handed,
            tuple(outcome),
            seen,
            rows,
        )

    def info(self, outcome: Outcome, row: int) -> Info:
        """Return the info of one row: python scalars by key."""
        # To fill a copy with all keys in place takes less than to let a dictionary grow; ``new_outcome`` has a place for each of them.
        info = self._no_info.copy()
        info.update(zip(self.info_keys, outcome.info[row].tolist()))  # noqa: B905
        return info

    # ------------------------------------------------------------------------------------------------ snapshots

    def snapshot(self) -> FactorySnapshot:
        """Return everything that changes as one value."""
        self.need_episodes()
        mine = Episodes(*(array.copy() for array in self._episodes))
        return FactorySnapshot(self.digest, self.engine.snapshot(), mine)

    def restore(self, saved: FactorySnapshot) -> None:
        """Go back to a snapshot of a factory of the same site, classes, resolution, trace, levers and number of rows.

        Raises:
            ConfigError: When it is no snapshot, or one of another factory.
        """
        if not isinstance(saved, FactorySnapshot) or saved.made_for != self.digest:
            raise ConfigError(
                "snapshot: must come from an environment of the same site, classes, resolution, trace, levers and rows."
            )
        self.engine.restore(saved.engine)
        for array, was in zip(self._episodes, saved.episodes, strict=True):
            array[...] = was
        self._begun = set(range(self.rows))
