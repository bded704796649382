"""A task: site, scenario and settings as one frozen value, built strictly from the arguments of ``gym.make``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ai_factory_gym.catalogue import model_ids
from ai_factory_gym.engine.layout import Array
from ai_factory_gym.errors import ConfigError, check_flag, check_keys, check_range, unknown
from ai_factory_gym.levers import DEFAULT_LEVERS, LEVERS
from ai_factory_gym.params import Resolution, resolution, served_classes
from ai_factory_gym.reward import MISS_WEIGHT, PROFIT, reward_of
from ai_factory_gym.scenarios import Scenario, scenario
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.workload.classes import RequestClass
from ai_factory_gym.workload.demand import OTHER_MODELS, SITES_MODEL, Shift
from ai_factory_gym.workload.traces import Trace, load_trace

DAY_S = 86400.0
FROZEN_PATH = Path(__file__).with_name("frozen.toml")

REQUESTS_PER_SECOND = 500_000.0
"""Requests a core simulates per second at request resolution, for the estimate of ``Task.check_duration`` (``benchmarks/`` measures it)."""

SLOW_S = 1800.0
"""Longest estimated episode that request resolution starts without being told to."""

TraceRule = str | Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Task:
    """Everything an environment is made from.

    Attributes:
        site: The site.
        scenario: What the day brings.
        grain: Resolution.
        levers: Levers in use, in the order of the action vector.
        reward: Name of the reward.
        miss_weight: Cost of a missed request in units of its value.
        lambda_tokens_per_joule: Price of energy in the reward; None looks up the frozen value of (site, scenario), and
            ``ESTIMATE`` takes ``estimated_lambda``.
        control_interval_s: Length of a control step, s.
        horizon_s: Length of the scored window, s.
        start_time_s: Local time at its start, s since midnight; None draws one uniformly, to the minute, each episode.
        warmup_s: Simulated time before the window, s.
        demand_scale: Factor on demand.
        drain: Keep stepping after the horizon until every scored fate is decided.
        trace: Replayed requests instead of synthetic demand.
        trace_path: Where they were read from.
        rate_scale: Factor on the trace's rate, by superposed shifted copies.
        trace_class: Class of the trace's requests, or (prompt limit, class) pairs in rising order of limit.
        trace_repeat: Whether the trace may be repeated where the horizon is longer.
        allow_slow: Whether request resolution may be used where an episode would take hours.
    """

    site: SiteConfig
    scenario: Scenario
    grain: Resolution
    levers: tuple[str, ...] = DEFAULT_LEVERS
    reward: str = "tokens_per_watt"
    miss_weight: float = MISS_WEIGHT
    lambda_tokens_per_joule: float | str | None = None
    control_interval_s: float = 60.0
    horizon_s: float = DAY_S
    start_time_s: float | None = 0.0
    warmup_s: float = 600.0
    demand_scale: float = 1.0
    drain: bool = False
    trace: Trace | None = None
    trace_path: str | None = None
    rate_scale: float = 1.0
    trace_class: TraceRule = "chat"
    trace_repeat: bool = False
    allow_slow: bool = False

    @functools.cached_property
    def classes(self) -> tuple[RequestClass, ...]:
        """Classes served, lengths cut to the site's longest context."""
        if self.trace is None:
            return served_classes(self.site)
        return served_classes(self.site, tuple(dict.fromkeys(self._trace_names)))

    @functools.cached_property
    def _trace_names(self) -> list[str]:
        """Class names a trace can have, in order of the rule."""
        if isinstance(self.trace_class, str):
            return [self.trace_class]
        return [name for _, name in self.trace_class]

    def trace_labels(self) -> Array:
        """Return the class index of every request of the trace, int64[requests]."""
        assert self.trace is not None
        names = [cls.name for cls in self.classes]
        if isinstance(self.trace_class, str):
            return np.zeros(len(self.trace), dtype=np.int64)
        limits = np.array([limit for limit, _ in self.trace_class])
        which = np.searchsorted(limits, self.trace.prompt_tokens, side="left")
        return np.array([names.index(name) for _, name in self.trace_class], dtype=np.int64)[which]

    def check_contexts(self) -> None:
        """Refuse a trace with requests that are longer than their model's longest context (ConfigError)."""
        if self.trace is None:
            return
        tokens, labels = self.trace.prompt_tokens + self.trace.output_tokens, self.trace_labels()
        for index, cls in enumerate(self.classes):
            which = self.site.class_model(cls.name)
            limit = self.site.context_limit(which)
            longest = int(np.max(tokens[labels == index], initial=0.0))
            if longest > limit:
                of = f" with {which.id}" if len(self.site.models) > 1 else ""
                raise ConfigError(
                    f"trace: {self.trace_path!r} has a request of {longest:,} tokens, and the longest context of site {self.site.name!r}{of} "
                    f"is {limit:,}; leave such requests out, or give the site a larger max_context."
                )

    def check_trace_covers(self, horizon_s: float) -> None:
        """Refuse a horizon longer than the trace, unless it may be repeated.

        Raises:
            ConfigError: When the trace ends before the horizon.
        """
        if self.trace is not None and horizon_s > self.trace.span_s and not self.trace_repeat:
            longest_s = math.floor(self.trace.span_s / self.control_interval_s) * self.control_interval_s
            raise ConfigError(
                f"horizon_s: {horizon_s:g} s is longer than the trace ({self.trace.span_s:.0f} s); give at most {longest_s:g}, "
                f"or make the environment with trace_repeat=True to repeat it."
            )

    def check_duration(self, horizon_s: float, demand_scale: float) -> None:
        """Refuse request resolution where one episode would take long, with the estimate and the way round it.

        Raises:
            ConfigError: When an episode is estimated to take longer than ``SLOW_S`` and ``allow_slow`` is not set.
        """
        if self.grain.name != "request" or self.allow_slow:
            return
        if self.trace is None:
            rate = self.site.demand_rps * demand_scale
        else:
            rate = self.trace.mean_rate_rps * self.rate_scale
        seconds = rate * horizon_s / REQUESTS_PER_SECOND
        if seconds > SLOW_S:
            raise ConfigError(
                f"resolution: 'request' would simulate {rate * horizon_s:,.0f} requests per episode, about {seconds / 3600.0:.1f} h; "
                f"use resolution='cohort', a shorter horizon_s, or allow_slow=True."
            )

    @property
    def energy_price(self) -> float:
        """Lambda of the reward: the given one, or the frozen one of (site, scenario), or of the site's default scenario."""
        return self.lambda_for(self.scenario)

    @functools.cached_property
    def _estimated_lambda(self) -> float:
        return estimated_lambda(self.site)

    def lambda_for(self, chosen: Scenario) -> float:
        """Return lambda under a scenario.

        Raises:
            ConfigError: When the site has none and none was given.
        """
        if isinstance(self.lambda_tokens_per_joule, str):
            return self._estimated_lambda
        if self.lambda_tokens_per_joule is not None:
            return self.lambda_tokens_per_joule
        table = frozen_lambdas().get(self.site.name)
        # A shipped site that was changed has another best ratio; whether it has a brake is an argument of its own.
        if table is None or self.site != dataclasses.replace(_shipped_site(self.site.name), brake=self.site.brake):
            raise ConfigError(
                f"lambda_tokens_per_joule: site {self.site.name!r}, as given, has no frozen value; give the best known feasible good tokens per "
                f"joule of the site, or '{ESTIMATE}'. `python -m ai_factory_baselines.freeze --site FILE --scenario NAME` computes it from the rules."
            )
        return table.get(chosen.name, table["diurnal"])


ESTIMATE = "estimate"

ESTIMATE_LOADS = np.geomspace(0.25, 4.0, 17)
"""Loads at which ``estimated_lambda`` looks for the best steady state, relative to the mean demand."""


def estimated_lambda(site: SiteConfig) -> float:
    """Return what a site's best steady state under its cap gives, good tokens per joule: all racks awake, the best clocks.

    A rule that lets racks sleep reaches about as much in the mean of a day, so it stands for the best known ratio where nobody has
    frozen one; ``python -m ai_factory_baselines.freeze`` does that from the rules.

    Raises:
        ConfigError: When the site keeps its SLA under the cap at none of ``ESTIMATE_LOADS``.
    """
    from ai_factory_gym.operating_point import steady_site

    steady = steady_site(site)
    points = [steady.cheapest(float(load) * site.demand_rps) for load in ESTIMATE_LOADS]
    kept = [point.tokens_per_joule for point in points if point.binds is None and point.facility_w <= site.supply_w]
    if not kept:
        raise ConfigError(
            f"site {site.name!r}: keeps its SLA under its cap neither at a quarter of demand_rps nor at any load up to four times of it; "
            "`python -m ai_factory_gym validate FILE` says what binds."
        )
    return max(kept)


@functools.lru_cache(maxsize=16)
def _shipped_site(name: str) -> SiteConfig:
    """Return the site of this name as it ships."""
    return load_site(name.lower())


@functools.lru_cache(maxsize=1)
def frozen_lambdas() -> Mapping[str, Mapping[str, float]]:
    """Return the frozen lambda of every shipped (site, scenario), good tokens per joule."""
    table = tomllib.loads(FROZEN_PATH.read_text(encoding="utf-8"))
    return {site: dict(values) for site, values in table["lambda_tokens_per_joule"].items()}


def check_shifts(chosen: Scenario, site: SiteConfig) -> None:
    """Refuse a scenario that shifts a class or a model nobody has heard of (ConfigError); what the site does not serve is left out."""
    known = [*model_ids(), *(entry.id for entry in site.models), SITES_MODEL, OTHER_MODELS]
    for shift in chosen.shifts:
        for name in shift.classes:
            if name not in site.known_classes:
                raise unknown(f"scenario {chosen.name!r}: shifts: classes", name, list(site.known_classes))
        for name in shift.models:
            if name not in known:
                raise unknown(f"scenario {chosen.name!r}: shifts: models", name, known)


def warn_of_shifts(chosen: Scenario, site: SiteConfig) -> None:
    """Warn when a scenario moves demand that the site does not have: between models where there is one, or of classes that it does not serve."""
    named = [shift for shift in chosen.shifts if shift.classes and not shift.models]
    if named and not any(site.mix.get(name, 0.0) > 0.0 for shift in named for name in shift.classes):
        classes = ", ".join(dict.fromkeys(name for shift in named for name in shift.classes))
        warnings.warn(
            f"scenario {chosen.name!r} moves the demand of classes ({classes}) of which site {site.name!r} serves none: that part of it has no "
            "effect.",
            stacklevel=3,
        )
    if len(site.models) == 1 and any(shift.models for shift in chosen.shifts):
        warnings.warn(
            f"scenario {chosen.name!r} moves demand between models, and site {site.name!r} serves one ({site.models[0].id}): that part of "
            "it has no effect.",
            stacklevel=3,
        )


def shifted_classes(shift: Shift, site: SiteConfig) -> tuple[str, ...]:
    """Return the names of the classes that a shift concerns at a site, those of its models among them."""
    concerned = list(shift.classes)
    if len(site.models) > 1:
        first = site.served_model.id
        for name in site.known_classes:
            served = site.class_model(name).id
            if served in shift.models or (SITES_MODEL if served == first else OTHER_MODELS) in shift.models:
                concerned.append(name)
    return tuple(dict.fromkeys(concerned))


def _number(key: str, value: Any, low: float, high: float, unit: str) -> float:
    return check_range(key, value, low, high, unit)


def _multiple(key: str, value_s: float, interval_s: float) -> None:
    steps = value_s / interval_s
    if abs(steps - round(steps)) > 1e-9:
        raise ConfigError(
            f"{key}: {value_s!r} is not allowed; must be a multiple of the control interval of {interval_s:g} s."
        )


def _trace_rule(rule: Any, site: SiteConfig) -> TraceRule:
    """Check a rule that gives a trace's requests their class."""
    names = [cls.name for cls in site.known_classes.values() if not cls.deferrable]
    pairs = [(math.inf, rule)] if isinstance(rule, str) else rule
    try:
        checked = [(float(limit), str(name)) for limit, name in pairs]
    except (TypeError, ValueError):
        raise ConfigError(
            f"trace_class: {rule!r} is not allowed; must be a class name or a list of [longest prompt, class name]."
        ) from None
    for _, name in checked:
        if name not in names:
            raise unknown("trace_class", name, names)
    limits = [limit for limit, _ in checked]
    # A limit that is not a number fails every comparison.
    rising = all(low < high for low, high in itertools.pairwise([0.0, *limits]))
    longest = max(site.context_limit(site.class_model(name)) for _, name in checked) if checked else 0
    if not checked or not rising or not limits[-1] >= longest:
        raise ConfigError(
            f"trace_class: limits {limits!r} must rise and end at .inf or the site's longest context, {longest}."
        )
    return rule if isinstance(rule, str) else tuple(checked)


def task_from(settings: Mapping[str, Any], beside: Sequence[str] = ()) -> Task:
    """Build a task from the keyword arguments of an environment; see ``build_task``.

    Args:
        settings: The arguments.
        beside: Arguments of the environment that are none of the task's, for the error that lists what there is.

    Raises:
        ConfigError: On an argument that does not exist, with the nearest that does, or a value that cannot be used.
    """
    known = inspect.signature(build_task).parameters
    check_keys(
        "arguments", settings, required=("site",), optional=[*(name for name in known if name != "site"), *beside]
    )
    return build_task(**settings)


def build_task(
    *,
    site: str | Path | Mapping[str, Any] | SiteConfig,
    scenario: str | Path | Scenario = "diurnal",
    resolution: str = "cohort",
    levers: Sequence[str] = DEFAULT_LEVERS,
    reward: str = "tokens_per_watt",
    miss_weight: float = MISS_WEIGHT,
    lambda_tokens_per_joule: float | str | None = None,
    control_interval_s: float = 60.0,
    horizon_s: float | None = None,
    start_time_s: float | str = 0.0,
    warmup_s: float = 600.0,
    demand_scale: float = 1.0,
    drain: bool = False,
    brake: bool = True,
    trace: str | Path | None = None,
    rate_scale: float = 1.0,
    trace_class: Any = "chat",
    trace_repeat: bool = False,
    allow_slow: bool = False,
) -> Task:
    """Check the arguments of ``gym.make`` and build the task.

    Args:
        site: Shipped site name, TOML path or table.
        scenario: Scenario name, TOML path or value.
        resolution: ``cohort``, ``coarse`` or ``request``.
        levers: Names of the levers in use.
        reward: ``tokens_per_watt``, ``goodput``, ``carbon`` or ``profit``.
        miss_weight: Cost of a missed request in units of its value.
        lambda_tokens_per_joule: Price of energy in the reward; needed for a site that is not shipped; "estimate" is what its best
            steady state gives (``estimated_lambda``), which is the default of ``ai_factory/Custom-v0``.
        control_interval_s: Length of a control step, s.
        horizon_s: Length of an episode, s; None is a day, or the trace's length.
        start_time_s: Local time at the start, s since midnight, or "random".
        warmup_s: Simulated time before the start, s.
        demand_scale: Factor on synthetic demand; a trace is scaled by ``rate_scale``.
        drain: Keep stepping after the horizon until every scored fate is decided.
        brake: Whether the site has a power brake.
        trace: Path of a trace to replay instead of synthetic demand; of the scenario, its bursts, shifts and lengths
            of answers then have no effect; caps, weather, prices, faults and the rest of a mismatch remain.
        rate_scale: Factor on the trace's rate.
        trace_class: Class of the trace's requests, or [[longest prompt, class], ...].
        trace_repeat: Allow a horizon longer than the trace.
        allow_slow: Allow request resolution where an episode would take hours.

    Returns:
        The task.

    Raises:
        ConfigError: On any value that cannot be used.
    """
    for key, flag in (("drain", drain), ("brake", brake), ("trace_repeat", trace_repeat), ("allow_slow", allow_slow)):
        check_flag(key, flag)
    if isinstance(levers, str) or not isinstance(levers, Sequence):
        typed = (
            """; on a command line in JSON: --env 'levers=["clock", "active_racks"]'"""
            if isinstance(levers, str)
            else ""
        )
        raise ConfigError(
            f"levers: {levers!r} is not allowed; must be a list of names out of {', '.join(LEVERS)}{typed}."
        )
    chosen_site = load_site(site)
    if not brake:
        chosen_site = dataclasses.replace(chosen_site, brake=dataclasses.replace(chosen_site.brake, enabled=False))
    chosen_scenario = _scenario(scenario)
    check_shifts(chosen_scenario, chosen_site)
    warn_of_shifts(chosen_scenario, chosen_site)
    grain = _resolution(resolution)
    if reward_of(reward).kind == PROFIT and chosen_site.money is None:
        raise ConfigError(
            f"reward: 'profit' is not possible: site {chosen_site.name!r} has no table [money], which says what tokens are paid."
        )
    _number("control_interval_s", control_interval_s, 1.0, 3600.0, "s")
    _number("demand_scale", demand_scale, 0.0, 1000.0, "")
    _number("miss_weight", miss_weight, 0.0, 1e6, "")
    _number("warmup_s", warmup_s, 0.0, DAY_S, "s")
    _multiple("warmup_s", warmup_s, control_interval_s)
    if isinstance(lambda_tokens_per_joule, str):
        if lambda_tokens_per_joule != ESTIMATE:
            raise unknown("lambda_tokens_per_joule", lambda_tokens_per_joule, [ESTIMATE])
    elif lambda_tokens_per_joule is not None:
        _number("lambda_tokens_per_joule", lambda_tokens_per_joule, 0.0, 1e6, "tokens/J")
    if isinstance(start_time_s, str):
        if start_time_s != "random":
            raise unknown("start_time_s", start_time_s, ["random"])
        start: float | None = None
    else:
        start = _number("start_time_s", start_time_s, 0.0, DAY_S, "s")
    loaded = None
    if trace is not None:
        loaded = load_trace(trace)
        _number("rate_scale", rate_scale, 1e-9, 1e7, "")
        if demand_scale != 1.0:
            raise ConfigError(
                f"demand_scale: {demand_scale!r} scales synthetic demand, and a trace is given; rate_scale scales a trace."
            )
        if loaded.span_s < control_interval_s:
            raise ConfigError(f"trace: {str(trace)!r} lasts {loaded.span_s:g} s, less than one control step.")
        if horizon_s is None:
            horizon_s = math.floor(loaded.span_s / control_interval_s) * control_interval_s
    elif rate_scale != 1.0:
        raise ConfigError(
            f"rate_scale: {rate_scale!r} scales a trace, and no trace is given; demand_scale scales synthetic demand."
        )
    elif trace_class != "chat" or trace_repeat:
        key, value = ("trace_repeat", trace_repeat) if trace_repeat else ("trace_class", trace_class)
        raise ConfigError(f"{key}: {value!r} says how a trace is replayed, and no trace is given.")
    horizon = _number("horizon_s", DAY_S if horizon_s is None else horizon_s, control_interval_s, 366 * DAY_S, "s")
    _multiple("horizon_s", horizon, control_interval_s)
    task = Task(
        site=chosen_site,
        scenario=chosen_scenario,
        grain=grain,
        levers=tuple(levers),
        reward=reward,
        miss_weight=float(miss_weight),
        lambda_tokens_per_joule=lambda_tokens_per_joule,
        control_interval_s=float(control_interval_s),
        horizon_s=horizon,
        start_time_s=start,
        warmup_s=float(warmup_s),
        demand_scale=float(demand_scale),
        drain=drain,
        trace=loaded,
        trace_path=None if trace is None else str(trace),
        rate_scale=float(rate_scale),
        trace_class=_trace_rule(trace_class, chosen_site) if loaded is not None else "chat",
        trace_repeat=trace_repeat,
        allow_slow=allow_slow,
    )
    task.check_contexts()
    task.check_trace_covers(horizon)
    task.check_duration(horizon, task.demand_scale)
    return task


_scenario: Callable[[Any], Scenario] = scenario
_resolution: Callable[[str], Resolution] = resolution
