"""From site, scenario and settings to the constant arrays of the engine: every number a kernel uses passes through here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.catalogue import model
from ai_factory_gym.engine.layout import (
    COHORT,
    DECODE,
    PREFILL,
    REQUEST,
    SEPARATE,
    SHARED_GPUS,
    SHARED_POWER,
    Array,
    CacheSpec,
    Cell,
    ClassSpec,
    Params,
    PoolSpec,
    SessionSpec,
    SiteSpec,
    UnitSpec,
)
from ai_factory_gym.errors import ConfigError, check_range, unknown
from ai_factory_gym.grid.series import SeriesEventSpec, hottest_c
from ai_factory_gym.physics.cooling import pue
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_SERVERS_PER_REPLICA,
    compute_rate,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
    prefill_free_bytes,
    prefill_work_s,
)
from ai_factory_gym.physics.power import (
    POWER_ACTIVE_W,
    POWER_COMPUTE_W,
    POWER_GPUS,
    POWER_IDLE_W,
    POWER_LOSS,
    POWER_MEMORY_CORE_W,
    POWER_MEMORY_W,
    POWER_SLEEP_RACK_W,
    POWER_TDP_W,
    POWER_VOLTAGE_FLOOR,
    POWER_WAKE_RACK_W,
    gpu_power_w,
    highest_clock,
    power_coefficients,
    prefill_part,
    rack_power_w,
)
from ai_factory_gym.physics.training import compute_time_share, phase_power_w
from ai_factory_gym.scenarios import Scenario
from ai_factory_gym.sites import PoolConfig, RampConfig, SiteConfig
from ai_factory_gym.sites.money import TOKENS_PER_MTOK, MoneyConfig
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.workload.classes import RequestClass
from ai_factory_gym.workload.strata import build_strata, output_slices
from ai_factory_gym.workload.traces import Reuse, Trace, reuse

GOLDEN = 0.6180339887498949
"""Golden section: multiples of it, modulo one, fill an interval evenly in whatever order they are cut off."""

LEAST_DECODE_SHARE = 0.1
"""Share of the time that decode keeps of aggregated racks, however much waits for prefill (status: assumed)."""

URGENT_S = 3600.0
"""Deferrable work this close to its deadline is released whatever the hour (status: assumed)."""

REFERENCE_CLOCK = 0.8
"""Clock of the reference point at which a request's reference joules are taken (status: assumed)."""

REFERENCE_TPOT_SHARE = 0.85
"""The reference batch leaves this margin to the tightest TPOT limit (status: assumed)."""


SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 1.0, 3600.0
"""Control intervals that make sense, s."""

SLICE_S = 10.0
"""While a decode pool is nearly full, cohorts enter for this much of a tick at a time, s."""

CONTEXT_MEMORY_S = 600.0
"""Time over which flows of a class without sessions into the prefix caches are smoothed, s (status: design choice)."""

AGES = 32
"""Quantiles that stand for how long ago what a trace repeats was last seen."""

COHORT_DAY_TOKENS = 32.0
"""Days of a decode pool's calendar at cohort resolution, tokens: a day brings one cohort or two, and the calendar of a pool is two kilobytes."""

REQUEST_DAYS_PER_TOKEN = 4.0
"""The same at request resolution, per token: a day brings ten or so of the tens of thousands of requests in a batch."""

REQUEST_DAYS_PER_S = 512.0
"""Days per second of the calendars of what is in prefill and in transfer, at request resolution: a pool gets some thousands of requests
per second."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """How finely time and requests are grouped.

    Attributes:
        name: As given to ``gym.make``.
        kind: COHORT or REQUEST.
        tick_s: Interval in which arrivals are grouped, s; shorter where no whole number of them makes a control step.
        prompt_quantiles: Where prompts are cut into strata.
        output_quantiles: Where outputs are cut into strata.
        cohorts: One over the share of the demand that a cohort of a tick is to carry: strata that carry more are cut into equal parts that
            arrive at different times, because few large cohorts make a site pulse; neighbours that carry less go together.
    """

    name: str
    kind: int
    tick_s: float
    prompt_quantiles: tuple[float, ...]
    output_quantiles: tuple[float, ...]
    cohorts: int


RESOLUTIONS: Mapping[str, Resolution] = {
    "cohort": Resolution("cohort", COHORT, 30.0, (0.5, 0.9), (0.5, 0.9), 48),
    "coarse": Resolution("coarse", COHORT, 60.0, (0.8,), (0.5, 0.9), 25),
    "request": Resolution("request", REQUEST, 0.5, (0.5, 0.9), (0.5, 0.9), 0),
}


def resolution(name: str) -> Resolution:
    """Return a resolution by name.

    Raises:
        ConfigError: When there is none of that name.
    """
    if not isinstance(name, str) or name not in RESOLUTIONS:
        raise unknown("resolution", name, list(RESOLUTIONS))
    return RESOLUTIONS[name]


@functools.lru_cache(maxsize=64)
def _served_class(cls: RequestClass, context_limit: int) -> RequestClass:
    """Return a class with its lengths cut to the longest context, tokens."""
    longest_output = min(cls.output.maximum, max(cls.output.minimum, context_limit // 4))
    longest_prompt = min(cls.prompt.maximum, context_limit - longest_output)
    if longest_prompt <= cls.prompt.minimum:
        raise ConfigError(
            f"mix.{cls.name}: prompts have at least {cls.prompt.minimum:g} tokens, the site's longest context is {context_limit:g}."
        )
    return dataclasses.replace(
        cls,
        prompt=dataclasses.replace(cls.prompt, maximum=float(longest_prompt)),
        output=dataclasses.replace(cls.output, maximum=float(longest_output)),
    )


def served_classes(site: SiteConfig, names: tuple[str, ...] | None = None) -> tuple[RequestClass, ...]:
    """Return the classes a site serves, lengths cut to the longest context of their model.

    Args:
        site: The site.
        names: Classes to return; None is those with a share in the site's mix.
    """
    chosen = tuple(name for name, share in site.mix.items() if share > 0.0) if names is None else names
    known = site.known_classes
    return tuple(_served_class(known[name], site.context_limit(site.class_model(name))) for name in chosen)


def pool_coefficients(site: SiteConfig, pool: PoolConfig) -> Array:
    """Return the performance coefficients of a pool as an array (see ``physics.performance``)."""
    served = model(site.model if pool.model is None else pool.model)
    if pool.phase == "prefill":
        row = np.array(
            prefill_coefficients(
                pool.rack_type,
                served,
                precision=pool.precision,
                tp=pool.tp,
                dp=pool.dp,
                pp=pool.pp,
                profile=pool.profile,
            )
        )
        if pool.aggregated:
            # The request stays where it was prefilled: its KV is sent nowhere.
            architecture = pool.group.architecture
            row[PREFILL_FRONTEND_S] += architecture.frontend_aggregated_s - architecture.frontend_disaggregated_s
            row[PREFILL_KV_BYTES_PER_TOKEN] = 0.0
        return row
    return np.array(
        decode_coefficients(
            pool.rack_type,
            served,
            precision=pool.precision,
            tp=pool.tp,
            dp=pool.dp,
            ep=pool.ep,
            mtp=pool.mtp,
            profile=pool.profile,
        )
    )


def prefill_limit(pool: PoolConfig) -> float:
    """Return the largest share of an aggregated pool's time that prefill may take: decode keeps ``LEAST_DECODE_SHARE``."""
    interference = pool.group.architecture.aggregated_interference
    return 1.0 - LEAST_DECODE_SHARE if interference <= 1.0 else (1.0 - LEAST_DECODE_SHARE) / interference


def rack_power(pool: PoolConfig) -> Array:
    """Return the power coefficients of the racks of a pool, or of its GPUs' part of them, as an array (see ``physics.power``)."""
    phase = pool.phase if len(pool.rack_type.groups) > 1 else None
    return np.array(power_coefficients(pool.rack_type, pool.profile, phase=phase))


def pool_power(pool: PoolConfig) -> Array:
    """Return the power coefficients of what a pool is booked with as an array (see ``physics.power``).

    Of aggregated racks the decode pool has everything but what GPUs draw above idle for prefill: that is the prefill pool's, whose
    lanes are busy all the time when its share of the GPUs' time is at its limit.
    """
    row = rack_power(pool)
    return prefill_part(row, prefill_limit(pool)) if pool.aggregated and pool.phase == "prefill" else row


def largest_rack_w(power: Array, pools: Array) -> Array:
    """Return the largest draw of a rack of each pool, W, float64[pools]; pools in the same racks have the same.

    Args:
        power: Power coefficients, float64[pools, 12].
        pools: ``Params.pool``.
    """
    own = np.array([rack_power_w(row, gpu_power_w(row, 1.0, 1.0, 1.0, 1.0)) for row in power])
    largest = own.copy()
    for index, spec in enumerate(pools):
        partner = int(spec[PoolSpec.PARTNER])
        if spec[PoolSpec.COUPLING] == SHARED_POWER:
            largest[index] = own[index] + own[partner]
        elif spec[PoolSpec.COUPLING] == SHARED_GPUS and spec[PoolSpec.PHASE] == PREFILL:
            largest[index] = own[partner]
    return np.minimum(largest, pools[:, PoolSpec.RACK_LIMIT_W])


def pool_specs(site: SiteConfig, perf: Array) -> Array:
    """Return ``Params.pool`` of a site.

    Args:
        site: The site.
        perf: Performance coefficients of its pools.
    """
    pools = np.zeros((len(site.pools), len(PoolSpec)))
    reliability = site.reliability or ReliabilityConfig()
    for index, pool in enumerate(site.pools):
        partner = site.partner(pool)
        lanes = perf[index, PREFILL_SERVERS_PER_REPLICA] if pool.phase == "prefill" else 1.0
        if pool.aggregated and pool.phase == "prefill":
            lanes *= prefill_limit(pool)
        wakes = [pool.group.wake_s] if partner < 0 else [pool.group.wake_s, site.pools[partner].group.wake_s]
        pools[index, PoolSpec.PHASE] = PREFILL if pool.phase == "prefill" else DECODE
        pools[index, PoolSpec.RACKS] = pool.racks
        pools[index, PoolSpec.UNITS_PER_RACK] = pool.replicas_per_rack * lanes
        pools[index, PoolSpec.REPLICAS_PER_RACK] = pool.replicas_per_rack
        pools[index, PoolSpec.MIN_ACTIVE] = pool.min_active
        pools[index, PoolSpec.MAX_BATCH] = pool.max_batch
        pools[index, PoolSpec.WAKE_S] = max(wakes)
        pools[index, PoolSpec.DRAIN_S] = site.drain_s
        pools[index, PoolSpec.DWELL_S] = site.dwell_s
        pools[index, PoolSpec.PARTNER] = partner
        pools[index, PoolSpec.COUPLING] = SEPARATE if partner < 0 else SHARED_GPUS if pool.aggregated else SHARED_POWER
        pools[index, PoolSpec.INTERFERENCE] = (
            pool.group.architecture.aggregated_interference if pool.aggregated else 0.0
        )
        pools[index, PoolSpec.PREFILL_LIMIT] = prefill_limit(pool) if pool.aggregated else 1.0
        pools[index, PoolSpec.HOLD_SHARE] = pool.hold_share
        for column, gpus in (
            (PoolSpec.GROUP_REPLICAS, reliability.gpus_per_group),
            (PoolSpec.DOMAIN_REPLICAS, pool.group.link_domain_gpus),
        ):
            pools[index, column] = min(pool.replicas_per_rack, math.ceil(gpus / pool.gpus_per_replica))
        pools[index, PoolSpec.RACK_LIMIT_W] = math.inf if pool.rack_limit_w is None else pool.rack_limit_w
        pools[index, PoolSpec.SIBLING] = -1.0
        pools[index, PoolSpec.SWITCH_S] = site.switch_s
        pools[index, PoolSpec.MODEL] = site.model_index(site.pool_models[index])
    for prefill, decode in site.pairs:
        pools[prefill, PoolSpec.SIBLING] = decode
        pools[decode, PoolSpec.SIBLING] = prefill
    return pools


def aggregated_point(
    pool: PoolConfig, prefill: Array, decode: Array, sizes: Array, tpot_s: float, clock: float = 1.0
) -> tuple[float, float]:
    """Return the largest batch per replica at which racks that do both phases keep a TPOT, and their throughput there.

    With R replicas and a prompt that takes a rack s seconds, X requests/s leave ``1 - phi X s`` of the time for iterations, so that
    ``X = 1 / (output iteration(B) / (a R B) + phi s)`` and ``TPOT = R B / (X output)``.

    Args:
        pool: Either half of the aggregated pool.
        prefill: Prefill coefficients.
        decode: Decode coefficients.
        sizes: Mean prompt, squared prompt, output and context in flight of the requests, float64[4].
        tpot_s: TPOT to keep, s.
        clock: Clock.

    Returns:
        Requests per replica, 0 where none keeps the TPOT, and requests/s of a rack.
    """
    prompt, prompt_sq, output, context = (float(value) for value in sizes)
    scaling_s, fixed_s = prefill_work_s(prefill, prompt, prompt_sq)
    replicas = pool.replicas_per_rack
    rack_s = (scaling_s / compute_rate(clock) + fixed_s) / (replicas * prefill[PREFILL_SERVERS_PER_REPLICA])
    lost_s = pool.group.architecture.aggregated_interference * rack_s
    tokens = decode[DECODE_TOKENS_PER_ITERATION]
    high = min(pool.max_batch, decode[DECODE_KV_CAPACITY_TOKENS] / (context + decode[DECODE_KV_REQUEST_TOKENS]))

    def rate(batch: float) -> float:
        iteration_s = decode_iteration_s(decode, batch, context, clock)[0]
        return float(1.0 / (output * iteration_s / (tokens * replicas * batch) + lost_s))

    def kept(batch: float) -> bool:
        return bool(replicas * batch / (rate(batch) * output) <= tpot_s)

    if high < 1.0 or not kept(1.0):
        return 0.0, 0.0
    low = 1.0
    if kept(high):
        low = high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low, min(rate(low), prefill_limit(pool) / rack_s)


def largest_batch(perf: Array, context_tokens: float, tpot_s: float, clock: float, most: float) -> float:
    """Return the largest batch per decode replica that keeps TPOT and fits its KV memory; 0 when even one does not.

    Args:
        perf: Decode coefficients.
        context_tokens: Mean KV tokens per request.
        tpot_s: TPOT to keep, s.
        clock: Clock.
        most: Batch ceiling.
    """
    room = perf[DECODE_KV_CAPACITY_TOKENS] / (context_tokens + perf[DECODE_KV_REQUEST_TOKENS])
    high = min(most, room)

    def kept(batch: float) -> bool:
        iteration_s = decode_iteration_s(perf, batch, context_tokens, clock)[0]
        return bool(iteration_s / perf[DECODE_TOKENS_PER_ITERATION] <= tpot_s)

    if high < 1.0 or not kept(1.0):
        return 0.0
    if kept(high):
        return float(high)
    low = 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def site_pue(site: SiteConfig, load_fraction: float) -> float:
    """Return a site's PUE at a share of its nameplate IT power."""
    cooling = site.cooling
    return float(
        pue(
            cooling.base,
            cooling.per_kelvin,
            cooling.outdoor_c,
            load_fraction,
            cooling.free_cooling_c,
            cooling.fixed_share,
        )
    )


def reference_batch(site: SiteConfig, classes: tuple[RequestClass, ...], params: Params) -> Array:
    """Return the batch per decode replica that leaves a margin to the tightest TPOT limit at clock 1, float64[pools]; 0 for prefill.

    Limit and contexts are those of the classes that the pool's model serves.
    """
    weight = (
        np.array([site.mix.get(classes[int(cls)].name, 0.0) for cls in params.cell[:, Cell.CLASS]])
        * params.cell[:, Cell.WEIGHT]
    )
    if weight.sum() <= 0.0:
        weight = params.cell[:, Cell.WEIGHT]
    batch = np.zeros(len(site.pools))
    for served in served_models(site, classes, params.cell, weight):
        context = mean_context(params.cell, served.share)
        for index in served.pools:
            pool = site.pools[index]
            if pool.aggregated and pool.phase == "decode":
                means = (served.share @ params.cell[:, c] for c in (Cell.PROMPT, Cell.PROMPT_SQ, Cell.OUTPUT))
                sizes = np.array([*means, context])
                prefill = params.perf[site.partner(pool)]
                batch[index] = aggregated_point(pool, prefill, params.perf[index], sizes, served.tpot_s)[0]
            elif pool.phase == "decode":
                batch[index] = largest_batch(params.perf[index], context, served.tpot_s, 1.0, pool.max_batch)
    return batch


@dataclass(frozen=True)
class ServedModel:
    """One model of a site with what it is to serve.

    Attributes:
        index: Its place among the models of the site.
        pools: Indices of its pools.
        weights: Each cell's share of its requests, in any unit, float64[cells]; of all requests of the site when it has none.
        tpot_s: TPOT that its reference point keeps, ``reference_tpot_s`` of its classes; of all classes when it has none.
        asked: Whether it has requests.
    """

    index: int
    pools: tuple[int, ...]
    weights: Array = field(repr=False)
    tpot_s: float
    asked: bool

    @property
    def share(self) -> Array:
        """Each cell's share of its requests, float64[cells], summing to one."""
        return np.asarray(self.weights / self.weights.sum())


def served_models(
    site: SiteConfig, classes: tuple[RequestClass, ...], cells: Array, weights: Array
) -> tuple[ServedModel, ...]:
    """Return the models of a site, each with its part of the requests.

    Args:
        site: The site.
        classes: Its classes.
        cells: float64[cells, Cell].
        weights: Each cell's share of all requests, in any unit, float64[cells].
    """
    of_pool = [site.model_index(entry) for entry in site.pool_models]
    of_class = np.array([site.model_index(site.class_model(cls.name)) for cls in classes])
    found = []
    for index in range(len(site.models)):
        mine = np.where(of_class[cells[:, Cell.CLASS].astype(int)] == index, weights, 0.0)
        own = tuple(cls for cls, which in zip(classes, of_class, strict=True) if which == index)
        asked = bool(mine.sum() > 0.0)
        pools = tuple(place for place, which in enumerate(of_pool) if which == index)
        found.append(ServedModel(index, pools, mine if asked else weights, reference_tpot_s(own or classes), asked))
    return tuple(found)


def reference_tpot_s(classes: tuple[RequestClass, ...]) -> float:
    """Return the TPOT the reference point keeps: the tightest limit of the classes that have one, with a margin."""
    limits = [cls.tpot_s for cls in classes if not cls.deferrable] or [cls.tpot_s for cls in classes]
    return REFERENCE_TPOT_SHARE * min(limits)


def mean_context(cells: Array, share: Array) -> float:
    """Return the mean KV tokens of a request in flight, tokens.

    A request holds its place for as long as its output takes, so the mean over requests in flight weighs each by its
    output: E[output x (prompt + output / 2)] / E[output] (Little's law per cell).

    Args:
        cells: float64[cells, Cell].
        share: Share of requests per cell.
    """
    output = cells[:, Cell.OUTPUT]
    return float(share @ (output * cells[:, Cell.PROMPT] + 0.5 * cells[:, Cell.OUTPUT_SQ]) / (share @ output))


def _group_share(cells: Array, weights: Array, group: int) -> Array:
    """Return each cell's share of a group's requests over its model's mix; of all its model's requests if the group is empty."""
    share = np.where(cells[:, Cell.GROUP] == group, weights, 0.0)
    if share.sum() <= 0.0:
        share = weights
    return np.asarray(share / share.sum())


def _capacity(site: SiteConfig, classes: tuple[RequestClass, ...], perf: Array, cells: Array, weights: Array) -> Array:
    """Return requests/s one active rack can serve at clock 1, float64[2, groups, pools].

    It is 0 for the pools of other models, and where a pool cannot keep the SLO.
    """
    bins = len(site.group_edges) + 1
    capacity = np.zeros((2, bins * len(site.models), len(site.pools)))
    for served in served_models(site, classes, cells, weights):
        groups = range(served.index * bins, (served.index + 1) * bins)
        for group in groups:
            share = _group_share(cells, served.weights, group)
            prompt, prompt_sq, output = (float(share @ cells[:, c]) for c in (Cell.PROMPT, Cell.PROMPT_SQ, Cell.OUTPUT))
            context = mean_context(cells, share)
            for index in served.pools:
                pool = site.pools[index]
                if pool.aggregated:
                    pair = sorted((index, site.partner(pool)))
                    sizes = np.array([prompt, prompt_sq, output, context])
                    rate = aggregated_point(pool, perf[pair[0]], perf[pair[1]], sizes, served.tpot_s)[1]
                    capacity[PREFILL if pool.phase == "prefill" else DECODE, group, index] = rate
                elif pool.phase == "prefill":
                    scaling_s, fixed_s = prefill_work_s(perf[index], prompt, prompt_sq)
                    lanes = pool.replicas_per_rack * perf[index, PREFILL_SERVERS_PER_REPLICA]
                    capacity[PREFILL, group, index] = lanes / (scaling_s + fixed_s)
                else:
                    batch = largest_batch(perf[index], context, served.tpot_s, 1.0, pool.max_batch)
                    if batch > 0.0:
                        iteration_s = decode_iteration_s(perf[index], batch, context, 1.0)[0]
                        tokens_per_s = batch * perf[index, DECODE_TOKENS_PER_ITERATION] / iteration_s
                        capacity[DECODE, group, index] = pool.replicas_per_rack * tokens_per_s / output
        for phase, name in ((PREFILL, "prefill"), (DECODE, "decode")):
            if served.asked and not capacity[phase, groups].any(axis=1).all():
                of = f" of {site.models[served.index].id}" if len(site.models) > 1 else ""
                why = f": {_tightest_tpot(site, classes, served, perf, cells, 1.0)}" if phase == DECODE else ""
                raise ConfigError(
                    f"site {site.name!r}: no {name} pool{of} can serve every request class within its SLO{why}; add racks, change the "
                    "layout, or loosen the limit."
                )
    return capacity


def _tightest_tpot(
    site: SiteConfig, classes: tuple[RequestClass, ...], served: ServedModel, perf: Array, cells: Array, clock: float
) -> str:
    """Return a phrase that names the class with a model's tightest TPOT limit, and the least TPOT that a decode pool of it reaches."""
    context = mean_context(cells, served.share)
    found = []
    for index in served.pools:
        if site.pools[index].phase == "decode":
            iteration_s = decode_iteration_s(perf[index], 1.0, context, clock)[0]
            found.append((iteration_s / perf[index, DECODE_TOKENS_PER_ITERATION], site.pools[index].name))
    least_s, name = min(found)
    asked = [cls for cls in classes if site.model_index(site.class_model(cls.name)) == served.index] or list(classes)
    tightest = min([cls for cls in asked if not cls.deferrable] or asked, key=lambda cls: cls.tpot_s)
    return (
        f"the tightest TPOT limit is that of class {tightest.name!r}, slo.tpot = {tightest.tpot_s:g} s (less a margin of "
        f"{1.0 - REFERENCE_TPOT_SHARE:.0%}); a request alone takes {least_s:.3g} s per token on {name}, and memory has to hold it"
    )


def _reference_joules(
    site: SiteConfig, classes: tuple[RequestClass, ...], perf: Array, power: Array, cells: Array, weights: Array
) -> Array:
    """Return facility joules per (prompt token, prompt token squared, output token) at the reference point, float64[models, 3].

    Prefill: a fully busy rack at the reference clock. Decode: a rack at the reference batch and clock. Each phase is the
    mean over its pools of a model, weighted by racks; for a model without requests it is 0.
    """
    models = served_models(site, classes, cells, weights)
    joules = [
        _model_joules(site, classes, served, perf, power, cells) if served.asked else np.zeros(3) for served in models
    ]
    return np.array(joules)


def _model_joules(
    site: SiteConfig, classes: tuple[RequestClass, ...], served: ServedModel, perf: Array, power: Array, cells: Array
) -> Array:
    """Return the facility joules of one model's requests, float64[3]; see ``_reference_joules``."""
    factor = site_pue(site, 1.0)
    tpot_s, share = served.tpot_s, served.share
    prompt, prompt_sq = (float(share @ cells[:, column]) for column in (Cell.PROMPT, Cell.PROMPT_SQ))
    context = mean_context(cells, share)
    sums = np.zeros(3)
    racks = np.zeros(2)
    for index in served.pools:
        pool, coef, watts = site.pools[index], perf[index], power[index]
        if pool.phase == "prefill":
            linear_s, fixed_s = prefill_work_s(coef, prompt, 0.0)
            pairs_s = prefill_work_s(coef, 0.0, prompt_sq)[0]
            rate = compute_rate(REFERENCE_CLOCK)
            service_s = (linear_s + pairs_s) / rate + fixed_s
            rack_w = rack_power_w(
                watts, gpu_power_w(watts, REFERENCE_CLOCK, 1.0, (linear_s + pairs_s) / rate / service_s, 0.0)
            )
            joules = factor * rack_w / (pool.replicas_per_rack * coef[PREFILL_SERVERS_PER_REPLICA])
            sums[0] += pool.racks * joules * (linear_s / rate + fixed_s) / prompt
            sums[1] += pool.racks * joules * pairs_s / rate / prompt_sq
            racks[PREFILL] += pool.racks
            continue
        batch = largest_batch(coef, context, tpot_s, REFERENCE_CLOCK, pool.max_batch)
        if batch > 0.0:
            iteration_s, compute_s, memory_s = decode_iteration_s(coef, batch, context, REFERENCE_CLOCK)
            rack_w = rack_power_w(
                watts, gpu_power_w(watts, REFERENCE_CLOCK, 1.0, compute_s / iteration_s, memory_s / iteration_s)
            )
            tokens_per_s = pool.replicas_per_rack * batch * coef[DECODE_TOKENS_PER_ITERATION] / iteration_s
            sums[2] += pool.racks * factor * rack_w / tokens_per_s
            racks[DECODE] += pool.racks
    if racks[DECODE] == 0.0:
        tightest = _tightest_tpot(site, classes, served, perf, cells, REFERENCE_CLOCK)
        raise ConfigError(
            f"site {site.name!r}: no decode pool keeps the tightest TPOT limit at clock {REFERENCE_CLOCK}: {tightest}."
        )
    return sums / np.array([racks[PREFILL], racks[PREFILL], racks[DECODE]])


def _enter_money(
    site: SiteConfig, money: MoneyConfig, classes: tuple[RequestClass, ...], site_row: Array, cls_rows: Array
) -> None:
    """Write what the site earns and pays into its rows of ``Params``."""
    site_row[SiteSpec.MONEY] = 1.0
    site_row[SiteSpec.PENALTY_SHARE] = money.sla_penalty_share
    site_row[SiteSpec.DEMAND_USD_PER_W] = money.demand_usd_per_kw_month / 1e3 / (30.0 * 86400.0)
    site_row[SiteSpec.COINCIDENT_USD_PER_W] = (
        money.coincident_usd_per_kw_year / 1e3 / money.coincident_intervals_per_year
    )
    by_rack = dict(money.rack_usd_per_hour)
    owned = [site.pools[index] for index in site.rack_pools]
    site_row[SiteSpec.CAPITAL_USD_PER_S] = sum(
        pool.racks * by_rack.get(pool.rack_type.id, 0.0) / 3600.0 for pool in owned
    )
    if site.training is not None:
        block_usd = site.training.racks * by_rack.get(site.training.rack_type.id, 0.0)
        site_row[SiteSpec.CAPITAL_USD_PER_S] += block_usd / 3600.0
    for row, cls in zip(cls_rows, classes, strict=True):
        tariff = money.of(cls.name)
        row[ClassSpec.INPUT_USD] = tariff.input_usd_per_mtok / TOKENS_PER_MTOK
        row[ClassSpec.OUTPUT_USD] = tariff.output_usd_per_mtok / TOKENS_PER_MTOK
        row[ClassSpec.BUDGET_USD_PER_S] = tariff.budget_usd_per_day / 86400.0
        row[ClassSpec.BUDGET_CAPPED] = float(tariff.budget_cap)


def _class_row(cls: RequestClass, which: int, joules: Array, deferrable: bool) -> list[float]:
    """Return one row of ``Params.cls``; a deferrable class served at once keeps its deadline as its promise."""
    row = [0.0] * len(ClassSpec)
    held = cls.deferrable and deferrable
    row[ClassSpec.TTFT_A_S] = cls.ttft_a_s
    row[ClassSpec.TTFT_B] = cls.ttft_b_s_per_token
    row[ClassSpec.TTFT_C] = cls.ttft_c_s_per_token2
    row[ClassSpec.TPOT_S] = cls.tpot_s
    row[ClassSpec.PATIENCE_S] = math.inf if held else cls.patience_s
    row[ClassSpec.DEFERRABLE] = float(held)
    row[ClassSpec.DEADLINE_S] = cls.deadline_s
    row[ClassSpec.PROMPT_MU] = math.log(cls.prompt.median)
    row[ClassSpec.PROMPT_SIGMA] = cls.prompt.sigma
    row[ClassSpec.PROMPT_MIN] = cls.prompt.minimum
    row[ClassSpec.PROMPT_MAX] = cls.prompt.maximum
    row[ClassSpec.OUTPUT_MU] = math.log(cls.output.median)
    row[ClassSpec.OUTPUT_SIGMA] = cls.output.sigma
    row[ClassSpec.OUTPUT_MIN] = cls.output.minimum
    row[ClassSpec.OUTPUT_MAX] = cls.output.maximum
    row[ClassSpec.PREFILL_J_PER_TOKEN] = joules[0]
    row[ClassSpec.PREFILL_J_PER_TOKEN2] = joules[1]
    row[ClassSpec.DECODE_J_PER_TOKEN] = joules[2]
    row[ClassSpec.TARGET] = cls.attainment_target
    row[ClassSpec.EFFORT_LEAST] = cls.effort_least_share
    row[ClassSpec.EFFORT_LOSS] = cls.effort_value_loss
    row[ClassSpec.MODEL] = which
    return row


def _synthetic_cells(site: SiteConfig, classes: tuple[RequestClass, ...], grain: Resolution) -> tuple[Array, Array]:
    """Return the strata of every class in the order in which they arrive within a tick, and their share of all requests."""
    first_group = _first_groups(site, classes)
    strata = [build_strata(c, site.group_edges, grain.prompt_quantiles, grain.output_quantiles) for c in classes]
    kinds = [(index, k) for index, own in enumerate(strata) for k in range(len(own.weight))]
    shares = np.array([site.mix[classes[index].name] * strata[index].weight[k] for index, k in kinds])
    amounts = np.array([(1.0, strata[index].prompt[k], strata[index].output[k]) for index, k in kinds])
    prompts = [(index, strata[index].prompt[k]) for index, k in kinds]
    rows = []
    for first, last, parts in _parts(prompts, amounts, shares, grain.cohorts):
        index, k = kinds[first]
        own = strata[index]
        weight = own.weight[k : kinds[last][1] + 1].sum()
        for piece in output_slices(classes[index].output, own.output_low[k], own.output_high[kinds[last][1]], parts):
            row = [0.0] * len(Cell)
            row[Cell.CLASS] = index
            row[Cell.WEIGHT] = weight / parts
            row[Cell.PROMPT] = own.prompt[k]
            row[Cell.PROMPT_SQ] = own.prompt_sq[k]
            row[Cell.GROUP] = first_group[index] + own.group[k]
            row[Cell.OUTPUT] = piece.mean
            row[Cell.OUTPUT_SQ] = piece.square
            row[Cell.OUTPUT_SHORT] = piece.short
            row[Cell.OUTPUT_LONG] = piece.long
            row[Cell.LONG_SHARE] = piece.long_share
            rows.append(row)
    table = np.array(rows)
    share = np.array([site.mix[cls.name] for cls in classes])[table[:, Cell.CLASS].astype(int)] * table[:, Cell.WEIGHT]
    order = _spread(len(rows))
    return table[order], share[order]


def _first_groups(site: SiteConfig, classes: tuple[RequestClass, ...]) -> NDArray[np.int64]:
    """Return the first routing group of each class's model, int64[classes]."""
    bins = len(site.group_edges) + 1
    return np.array([bins * site.model_index(site.class_model(cls.name)) for cls in classes], dtype=np.int64)


def _parts(prompts: Sequence[Hashable], amounts: Array, shares: Array, cohorts: int) -> Iterator[tuple[int, int, int]]:
    """Yield which strata go together, and into how many parts of equal probability they are cut, so that cohorts carry about as much each.

    A stratum's size is its largest share of requests, prompt tokens or output tokens. One of more than a cohort's (``1 / cohorts``) is
    cut; neighbours in outputs that have their prompts in common are put together as long as they are not more than one.

    Args:
        prompts: What tells strata of different prompts apart; those with the same lie side by side, outputs ascending.
        amounts: float64[strata, 3], 1, prompt and output tokens per request.
        shares: float64[strata], share of all requests.
        cohorts: Parts wanted; 0 leaves strata as they are.

    Yields:
        First and last stratum, number of parts.
    """
    carried = shares[:, None] * amounts
    carried /= carried.sum(axis=0)
    first = 0
    for last, prompt in enumerate(prompts):
        followed = last + 1 < len(prompts) and prompts[last + 1] == prompt
        if followed and 0.0 < cohorts * carried[first : last + 2].sum(axis=0).max() <= 1.0:
            continue
        yield first, last, max(1, round(cohorts * carried[first : last + 1].sum(axis=0).max()))
        first = last + 1


def _spread(count: int) -> NDArray[np.int64]:
    """Return an order that spreads neighbours evenly over a tick: the golden-ratio sequence."""
    return np.argsort([(place * GOLDEN) % 1.0 for place in range(count)], kind="stable")


def _trace_cells(
    site: SiteConfig, classes: tuple[RequestClass, ...], trace: Trace, labels: Array, grain: Resolution
) -> tuple[Array, Array, Array]:
    """Group a trace's requests into cells of class x prompt x output, large cells cut into parts by their outputs.

    Returns:
        Cells, their share of requests, and each request's cell.
    """
    prompt = np.asarray(trace.prompt_tokens, dtype=np.float64)
    output = np.asarray(trace.output_tokens, dtype=np.float64)
    group = np.searchsorted(np.array(site.group_edges), prompt, side="left")
    prompt_bin = np.searchsorted(np.quantile(prompt, grain.prompt_quantiles), prompt, side="right")
    output_bin = np.searchsorted(np.quantile(output, grain.output_quantiles), output, side="right")
    # One number per combination: unique rows would be sorted as tuples, minutes for a large trace.
    outputs = len(grain.output_quantiles) + 1
    key = np.ravel_multi_index(
        (labels, group, prompt_bin, output_bin),
        (int(labels.max()) + 1, len(site.group_edges) + 1, len(grain.prompt_quantiles) + 1, outputs),
    )
    kinds, kind = np.unique(key, return_inverse=True)
    count = np.bincount(kind).astype(np.float64)
    amounts = np.stack(
        [np.bincount(kind, weights=values) / count for values in (np.ones(len(kind)), prompt, output)], axis=1
    )
    joined = list(_parts((kinds // outputs).tolist(), amounts, count / len(prompt), grain.cohorts))
    member = np.repeat(np.arange(len(joined)), [last - first + 1 for first, last, _ in joined])[kind]
    count = np.bincount(member).astype(np.float64)
    parts = np.minimum([wanted for _, _, wanted in joined], count)
    # Each request's rank by output within its kind decides its part. Equal outputs are ranked by a sequence that fills evenly (the golden
    # section): by arrival, a part would be a slice of time, and cohorts would pulse.
    scattered = np.arange(len(member)) * GOLDEN % 1.0
    order = np.lexsort((scattered, output, member))
    first = np.cumsum(count) - count
    rank = np.empty(len(member))
    rank[order] = np.arange(len(member)) - first[member[order]]
    part = (rank * parts[member] / count[member]).astype(np.int64)
    cell = (np.cumsum(parts) - parts).astype(np.int64)[member] + part
    size = np.bincount(cell).astype(np.float64)
    table = np.zeros((len(size), len(Cell)))
    table[cell, Cell.CLASS] = labels
    table[cell, Cell.GROUP] = group + _first_groups(site, classes)[labels]
    table[:, Cell.WEIGHT] = (
        size / np.bincount(labels, minlength=int(labels.max()) + 1)[table[:, Cell.CLASS].astype(int)]
    )
    for column, values in (
        (Cell.PROMPT, prompt),
        (Cell.PROMPT_SQ, prompt * prompt),
        (Cell.OUTPUT, output),
        (Cell.OUTPUT_SQ, output * output),
    ):
        table[:, column] = np.bincount(cell, weights=values) / size
    order = _spread(len(size))
    return table[order], size[order] / len(prompt), np.argsort(order)[cell]


def _cache_rows(site: SiteConfig) -> Array:
    """Return ``Params.cache``; no lines on a site without a prefix cache.

    Raises:
        ConfigError: When a cache is larger than the memory that a pool's weights leave.
    """
    if not site.caches:
        return np.zeros((0, len(CacheSpec)))
    rows = np.zeros((len(site.pools), len(CacheSpec)))
    for row, pool, served in zip(rows, site.pools, site.pool_models, strict=True):
        if pool.cache is None:
            continue
        free = prefill_free_bytes(pool.rack_type, served, precision=pool.precision, tp=pool.tp, dp=pool.dp, pp=pool.pp)
        free_gb = pool.replicas_per_rack * free / 1e9
        if pool.cache.hbm_gb > free_gb:
            raise ConfigError(
                f"site {site.name!r}: pool {pool.name!r}: cache.hbm_gb: {pool.cache.hbm_gb:g} is not allowed; weights leave "
                f"{free_gb:,.0f} GB of GPU memory per rack."
            )
        row[CacheSpec.HBM_BYTES] = pool.cache.hbm_gb * 1e9
        row[CacheSpec.HOST_BYTES] = pool.cache.host_gb * 1e9
        row[CacheSpec.HOST_BYTES_PER_S] = pool.cache.host_gb_s * 1e9
    return rows


def _session_rows(classes: tuple[RequestClass, ...], cached: bool) -> Array:
    """Return ``Params.session`` of synthetic demand; no lines where nothing needs them."""
    if not cached and all(cls.session is None for cls in classes):
        return np.zeros((0, len(SessionSpec)))
    rows = np.zeros((len(classes), len(SessionSpec)))
    for row, cls in zip(rows, classes, strict=True):
        row[SessionSpec.MEMORY_S] = CONTEXT_MEMORY_S
        row[SessionSpec.TURNS] = cls.requests_per_task
        if cls.session is not None:
            row[SessionSpec.FOLLOWING] = 1.0 - 1.0 / cls.requests_per_task
            row[SessionSpec.REUSE_SHARE] = cls.session.reuse_share
            row[SessionSpec.THINK_S] = row[SessionSpec.MEMORY_S] = cls.session.think_s
            row[SessionSpec.HOLD] = float(cls.session.hold)
    return rows


def _trace_sessions(trace: Trace, labels: Array, repeated: Reuse, sessions: Array) -> Array:
    """Return ``Params.session`` with what a trace repeats, and the quantiles of how long ago that was seen: both weighted by tokens.

    Args:
        trace: The trace.
        labels: int64[requests] class of each request.
        repeated: What its requests repeat.
        sessions: float64[classes, SessionSpec] of synthetic demand.
    """
    ages = np.zeros((len(sessions), AGES))
    owner = np.repeat(np.arange(len(trace)), np.diff(repeated.begin))
    filled = sessions.copy()
    for cls, row in enumerate(filled):
        row[SessionSpec.FOLLOWING] = row[SessionSpec.REUSE_SHARE] = row[SessionSpec.THINK_S] = 0.0
        row[SessionSpec.HOLD] = 0.0
        row[SessionSpec.MEMORY_S] = CONTEXT_MEMORY_S
        own = np.flatnonzero(labels[owner] == cls)
        if len(own) == 0:
            continue
        order = own[np.argsort(repeated.age_s[own], kind="stable")]
        weight = repeated.tokens[order].astype(np.float64)
        reached = np.cumsum(weight) / weight.sum()
        places = np.searchsorted(reached, (np.arange(AGES) + 0.5) / AGES)
        ages[cls] = repeated.age_s[order][np.minimum(places, len(order) - 1)]
        row[SessionSpec.FOLLOWING] = 1.0
        row[SessionSpec.REUSE_SHARE] = weight.sum() / float(trace.prompt_tokens[labels == cls].sum())
        row[SessionSpec.MEMORY_S] = max(1.0, float(weight @ repeated.age_s[order]) / weight.sum())
    return np.concatenate([filled, ages], axis=1)


def build_params(
    site: SiteConfig,
    classes: tuple[RequestClass, ...],
    grain: Resolution,
    *,
    control_interval_s: float,
    deferrable: bool = True,
    trace: Trace | None = None,
    trace_labels: Array | None = None,
    thin_fraction: float = 1.0,
    effort: bool = False,
    gate: bool = False,
    faults: float = 0.0,
) -> Params:
    """Build the engine's constant arrays.

    Args:
        site: The site.
        classes: Its classes, as ``served_classes`` gives them.
        grain: Resolution.
        control_interval_s: Length of a control step, s; cut into ticks of equal length.
        deferrable: Whether deferrable classes may be held back.
        trace: Requests to replay instead of synthetic demand.
        trace_labels: int64[requests], the class index of each request of the trace.
        thin_fraction: Share of the last superposed copy of the trace that is kept.
        effort: Whether the operator may shorten answers.
        gate: Whether the operator may hold requests back at the gate.
        faults: 1 where racks may go out of service, 2 where parts of racks may; 0 where neither.

    Returns:
        The parameters.

    Raises:
        ConfigError: When the site cannot work: a prompt that fits no replica's KV memory, a phase without capacity.
    """
    check_range("control_interval_s", control_interval_s, SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S, "s")
    coefficients = [pool_coefficients(site, pool) for pool in site.pools]
    perf = np.zeros((len(site.pools), max(len(row) for row in coefficients)))
    for index, row in enumerate(coefficients):
        perf[index, : len(row)] = row
    power = np.array([pool_power(pool) for pool in site.pools])
    if trace is None:
        cells, weights = _synthetic_cells(site, classes, grain)
        empty = np.zeros(0)
        trace_arrays = (empty, empty, empty, np.zeros(0, dtype=np.int64))
        span_s = 0.0
        longest = [cls.prompt.maximum + cls.output.maximum for cls in classes]
    else:
        labels = np.zeros(len(trace), dtype=np.int64) if trace_labels is None else trace_labels
        cells, weights, member = _trace_cells(site, classes, trace, labels, grain)
        # Copies: a trace's own arrays are read-only, for which numba would compile every kernel once more.
        trace_arrays = (
            np.array(trace.arrival_s, dtype=np.float64),
            np.array(trace.prompt_tokens, dtype=np.float64),
            np.array(trace.output_tokens, dtype=np.float64),
            member.astype(np.int64),
        )
        span_s = trace.span_s
        tokens = trace.prompt_tokens + trace.output_tokens
        longest = [float(np.max(tokens[labels == index], initial=0.0)) for index in range(len(classes))]
    cache = _cache_rows(site)
    sessions = _session_rows(classes, site.caches)
    nothing = np.zeros(0, dtype=np.int64)
    repeated = Reuse(nothing, nothing, np.zeros(0), nothing)
    if trace is not None and site.caches:
        repeated = reuse(trace)
        sessions = _trace_sessions(trace, labels, repeated, sessions)
    of_class = [site.model_index(site.class_model(cls.name)) for cls in classes]
    of_pool = [site.model_index(entry) for entry in site.pool_models]
    for index, pool in enumerate(site.pools):
        if pool.phase == "decode":
            holds = perf[index, DECODE_KV_CAPACITY_TOKENS] - perf[index, DECODE_KV_REQUEST_TOKENS]
            most = max(
                (tokens for tokens, k in zip(longest, of_class, strict=True) if k == of_pool[index]), default=0.0
            )
            if pool.hold_share > 0.0:
                if trace is not None:
                    raise ConfigError(
                        f"site {site.name!r}: pool {pool.name!r}: hold_share: {pool.hold_share!r} is not possible with a trace, "
                        "which does not say which requests are of one session."
                    )
                left = (1.0 - pool.hold_share) * max(1, pool.min_active) * pool.replicas_per_rack * holds
                if most > left:
                    raise ConfigError(
                        f"site {site.name!r}: pool {pool.name!r}: hold_share: {pool.hold_share!r} leaves {left:,.0f} tokens of KV; the "
                        f"longest request has {most:,.0f}."
                    )
            if most > holds:
                raise ConfigError(
                    f"site {site.name!r}: pool {pool.name!r} holds {holds:,.0f} tokens of KV per replica; the longest request has "
                    f"{most:,.0f} tokens. Use more GPUs per replica or lower max_context."
                )
    joules = _reference_joules(site, classes, perf, np.array([rack_power(pool) for pool in site.pools]), cells, weights)
    site_row = np.array(_site_row(site, grain, control_interval_s, power, span_s, thin_fraction))
    site_row[SiteSpec.EFFORT] = float(effort)
    site_row[SiteSpec.GATE] = float(gate)
    site_row[SiteSpec.FAULTS] = faults
    cls_rows = np.array([_class_row(cls, k, joules[k], deferrable) for cls, k in zip(classes, of_class, strict=True)])
    if site.money is not None:
        _enter_money(site, site.money, classes, site_row, cls_rows)
    params = Params(
        site=site_row,
        pool=pool_specs(site, perf),
        perf=perf,
        power=power,
        cls=cls_rows,
        cell=cells,
        group_edges=np.array(site.group_edges, dtype=np.float64),
        capacity=_capacity(site, classes, perf, cells, weights),
        trace_time=trace_arrays[0],
        trace_prompt=trace_arrays[1],
        trace_output=trace_arrays[2],
        trace_cell=trace_arrays[3],
        cache=cache,
        session=sessions,
        seen_begin=repeated.begin,
        seen=np.stack([repeated.tokens, repeated.age_s, repeated.seen_by], axis=1).astype(np.float64),
        unit=_unit_rows(site),
    )
    return params


def _unit_rows(site: SiteConfig) -> Array:
    """Return ``Params.unit``."""
    rows = np.zeros((len(site.generation), len(UnitSpec)))
    decided = 0
    for row, unit in zip(rows, site.generation, strict=True):
        row[UnitSpec.POWER_W] = unit.power_w
        row[UnitSpec.LEAST_W] = unit.min_load * unit.power_w
        row[UnitSpec.START_S] = unit.start_s
        row[UnitSpec.MIN_RUN_S] = unit.min_run_s
        row[UnitSpec.MIN_DOWN_S] = unit.min_down_s
        row[UnitSpec.FUEL_USD_PER_MWH] = unit.fuel_usd_per_mwh
        row[UnitSpec.START_USD] = unit.start_usd
        row[UnitSpec.G_PER_KWH] = unit.carbon_g_per_kwh
        row[UnitSpec.MUST_RUN] = float(unit.must_run)
        row[UnitSpec.LEVER] = decided if unit.dispatchable else -1
        decided += unit.dispatchable
    rows[:, UnitSpec.MERIT] = np.argsort(rows[:, UnitSpec.FUEL_USD_PER_MWH], kind="stable")
    return rows


def nameplate_it_w(site: SiteConfig, power: Array | None = None) -> float:
    """Return the IT power of the site with every GPU at its limit, W."""
    rows = np.array([pool_power(pool) for pool in site.pools]) if power is None else power
    specs = pool_specs(site, np.ones((len(site.pools), PREFILL_SERVERS_PER_REPLICA + 1)))
    largest_w = largest_rack_w(rows, specs)
    of_pools_w = float(sum(site.pools[index].racks * largest_w[index] for index in site.rack_pools))
    return of_pools_w if site.training is None else of_pools_w + block_nameplate_w(site.training)


def block_nameplate_w(block: TrainingConfig) -> float:
    """Return the IT power of a training block with every GPU at its limit, W."""
    return block.racks * block.group.profile(block.profile).nameplate_w


def with_block(site: SiteConfig, scenario: Scenario) -> SiteConfig:
    """Return a site with the training block of a scenario; the site as it is where it has one of its own or the scenario has none.

    Raises:
        ConfigError: When the scenario's rack type cannot be used.
    """
    spec = scenario.training_block
    if site.training is not None or spec.cap_share <= 0.0:
        return site
    try:
        one = TrainingConfig(rack=spec.rack, racks=1)
    except ConfigError as error:
        text = str(error).removeprefix("training.")
        raise ConfigError(f"scenario {scenario.name!r}: training_block: {text}") from None
    rack_w = block_nameplate_w(one) * site_pue(site, 1.0)
    return dataclasses.replace(
        site, training=dataclasses.replace(one, racks=max(1, math.floor(spec.cap_share * site.supply_w / rack_w)))
    )


def idle_it_power_w(site: SiteConfig) -> float:
    """Return IT power with every rack awake and no request served, a training job paused, W."""
    rows = np.array([pool_power(pool) for pool in site.pools])
    of_pools_w = float(
        sum(
            pool.racks * rack_power_w(row, gpu_power_w(row, 1.0, 0.0, 0.0, 0.0))
            for pool, row in zip(site.pools, rows, strict=True)
        )
    )
    if site.training is None:
        return of_pools_w
    return of_pools_w + site.training.racks * site.training.group.profile(site.training.profile).idle_rack_w


def idle_facility_w(site: SiteConfig) -> float:
    """Return facility power with every rack awake and no request served, W."""
    idle_w = idle_it_power_w(site)
    return float(idle_w * site_pue(site, idle_w / nameplate_it_w(site)))


def heat_w_per_kelvin(site: SiteConfig) -> float:
    """Return the heat a site's coolant loop gives to the air per kelvin between them, W/K; 0 where its coolant has no limit."""
    cooling = site.cooling
    if cooling.coolant_limit_c is None or cooling.design_outdoor_c is None:
        return 0.0
    return nameplate_it_w(site) / (cooling.coolant_limit_c - cooling.design_outdoor_c)


def coolable_up_to_c(site: SiteConfig, it_w: float) -> float:
    """Return the warmest outdoor air at which an IT power can be kept up for good, degC; inf where the coolant has no limit."""
    if site.cooling.coolant_limit_c is None:
        return math.inf
    return site.cooling.coolant_limit_c - it_w / heat_w_per_kelvin(site)


def derates_above_c(site: SiteConfig) -> float:
    """Return the outdoor temperature above which the coolant's limit binds before the cap does, degC; inf where it has no limit.

    The hotter, the less IT power the cap leaves beside cooling, and the less can be cooled; the latter falls faster.
    """
    if site.cooling.coolant_limit_c is None:
        return math.inf
    nameplate_w = nameplate_it_w(site)
    low, high = -100.0, site.cooling.coolant_limit_c
    for _ in range(60):
        middle = 0.5 * (low + high)
        hot = dataclasses.replace(
            site, cooling=dataclasses.replace(site.cooling, outdoor_c=max(-50.0, min(60.0, middle)))
        )
        it_w = nameplate_w * min(1.0, _highest_load(hot, nameplate_w))
        low, high = (middle, high) if middle <= coolable_up_to_c(site, it_w) else (low, middle)
    return low


def _highest_load(site: SiteConfig, nameplate_w: float) -> float:
    """Return the share of its nameplate at which a site's IT draws its cap with cooling."""
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = middle * nameplate_w * site_pue(site, middle) <= site.supply_w
        low, high = (middle, high) if below else (low, middle)
    return low


def at_hottest(site: SiteConfig, events: Sequence[SeriesEventSpec] = ()) -> SiteConfig:
    """Return a site on the hottest day that its weather and a scenario's temperature events may bring."""
    hottest = hottest_c(dict(site.series).get("temperature"), site.cooling.outdoor_c, events)
    if events and not -50.0 <= hottest <= 60.0:
        rise = sum(event.high for event in events)
        raise ConfigError(
            f"scenario: temperature_events: high: {rise:g} K is not allowed at site {site.name!r}: it could be {hottest:.1f} degC outdoors, and "
            f"the model of cooling holds in [-50, 60] degC; at most {60.0 - hottest + rise:.1f} K."
        )
    return dataclasses.replace(site, cooling=dataclasses.replace(site.cooling, outdoor_c=hottest))


def _firm(site: SiteConfig) -> str:
    """Return what a site can count on beside its cap, in words."""
    return f" and the {site.firm_w / 1e6:.3f} MW of its units that always run" if site.generation else ""


def check_cap(site: SiteConfig, lowest_cap_w: float, idle_factor: float = 1.0) -> None:
    """Refuse a site that draws more when idle than its lowest cap, or than its coolant can take away: no brake could keep it.

    Args:
        site: The site, at the hottest it may meet.
        lowest_cap_w: Its lowest cap, W.
        idle_factor: Largest factor on the idle draw that a mismatch may bring.

    Raises:
        ConfigError: With both figures.
    """
    idle_w = idle_factor * idle_facility_w(site)
    if idle_w >= lowest_cap_w + site.firm_w:
        mismatch = f" and a mismatch of {idle_factor:g}" if idle_factor > 1.0 else ""
        remedy = ", or let units run always (must_run)" if site.generation else ""
        raise ConfigError(
            f"site {site.name!r}: idle draw {idle_w / 1e6:.3f} MW with every rack awake{mismatch} is not below its lowest cap "
            f"{lowest_cap_w / 1e6:.3f} MW{_firm(site)}; raise the cap, lower the curtailment or remove racks{remedy}."
        )
    idle_it_w = idle_factor * idle_it_power_w(site)
    up_to_c = coolable_up_to_c(site, idle_it_w)
    if site.cooling.outdoor_c >= up_to_c:
        mismatch = f" and a mismatch of {idle_factor:g}" if idle_factor > 1.0 else ""
        raise ConfigError(
            f"site {site.name!r}: cooling: the idle draw of {idle_it_w / 1e6:.3f} MW IT with every rack awake{mismatch} can be cooled up to "
            f"{up_to_c:.1f} degC outdoors, and it may be {site.cooling.outdoor_c:.1f} degC; raise design_outdoor_c or coolant_limit_c, or choose "
            "milder weather."
        )


def waking_step_w(site: SiteConfig) -> float:
    """Return the largest rise of the facility's draw when one rack of a site begins to wake, W."""
    steps_w = []
    for index in site.rack_pools:
        members = {index, site.partner(site.pools[index])} - {-1}
        powers = [pool_power(site.pools[member]) for member in members]
        steps_w.append(sum(power[POWER_WAKE_RACK_W] - power[POWER_SLEEP_RACK_W] for power in powers))
    idle_load = idle_it_power_w(site) / nameplate_it_w(site)
    return float(max(steps_w) * site_pue(site, idle_load))


LONGEST_RISE_S = 6 * 3600.0
"""Longest time a site may take from idle to its cap at its ramp limit, s: a day's demand rises from its trough to its peak within half a day
(status: design choice)."""

LONGEST_WAKE_WAIT_S = 3600.0
"""Longest time the draw may take to make room for one rack to wake, s (status: design choice)."""


def check_ramp(site: SiteConfig, lowest_cap_w: float) -> None:
    """Refuse a limit of the rise under which a site could not follow its demand, nor ever wake a rack in time.

    Args:
        site: The site.
        lowest_cap_w: Its lowest cap, W.

    Raises:
        ConfigError: With the limit that would do.
    """
    if site.ramp is None or site.ramp.up_w_per_s is None:
        return
    idle_w, step_w = idle_facility_w(site), waking_step_w(site)
    needed = {
        f"from its idle draw ({idle_w / 1e6:.3f} MW) to its cap ({site.cap_w / 1e6:.3f} MW)": (
            site.cap_w - idle_w,
            LONGEST_RISE_S,
        ),
        f"by what a rack draws when it wakes ({step_w / 1e3:,.0f} kW)": (step_w, LONGEST_WAKE_WAIT_S),
    }
    for what, (rise_w, longest_s) in needed.items():
        takes_s = rise_w / site.ramp.up_w_per_s
        if takes_s > longest_s:
            raise ConfigError(
                f"site {site.name!r}: ramp.up_w_per_s: {site.ramp.up_w_per_s!r} is not allowed; the draw would take {takes_s / 3600.0:,.1f} h "
                f"to rise {what}; must be at least {rise_w / longest_s:,.1f} W/s ({longest_s / 3600.0:g} h)."
            )
    if step_w > lowest_cap_w:
        raise ConfigError(
            f"site {site.name!r}: ramp.up_w_per_s: a rack draws {step_w / 1e3:,.0f} kW more when it wakes, more than the lowest cap of "
            f"{lowest_cap_w / 1e3:,.0f} kW: the draw could not be raised for it; leave up_w_per_s out or raise the cap."
        )


def _enter_ramp(site: SiteConfig, ramp: RampConfig, row: list[float]) -> None:
    """Write the ramp limits of a site, and the racks' storage, into its row of ``Params.site``."""
    row[SiteSpec.RAMP] = 1.0
    row[SiteSpec.RAMP_UP_W_PER_S] = math.inf if ramp.up_w_per_s is None else ramp.up_w_per_s
    row[SiteSpec.RAMP_DOWN_W_PER_S] = math.inf if ramp.down_w_per_s is None else ramp.down_w_per_s
    row[SiteSpec.BALLAST_W] = math.inf if ramp.ballast_w is None else ramp.ballast_w
    row[SiteSpec.STORAGE_EFFICIENCY] = 1.0
    if site.rack_storage is None:
        return
    gpus = site.rack_storage_gpus
    row[SiteSpec.STORAGE_W] = gpus * site.rack_storage.power_w_per_gpu
    row[SiteSpec.STORAGE_J] = gpus * site.rack_storage.energy_j_per_gpu
    row[SiteSpec.STORAGE_EFFICIENCY] = math.sqrt(site.rack_storage.round_trip_efficiency)
    # Full where it will only be asked to give, empty where it will only be asked to take, else ready for both.
    resting = 0.5 if ramp.up_w_per_s is not None and ramp.down_w_per_s is not None else float(ramp.down_w_per_s is None)
    row[SiteSpec.STORAGE_REST_J] = resting * row[SiteSpec.STORAGE_J]


def training_numbers(site: SiteConfig, block: TrainingConfig) -> dict[SiteSpec, float]:
    """Return the numbers of a training block in ``Params.site``, by column."""
    coef = np.array(power_coefficients(block.rack_type, block.profile))
    # Watts of the block per watt of one of its GPUs.
    scale = block.racks * (1.0 + coef[POWER_LOSS]) * coef[POWER_GPUS]
    # Compute phases may be more than the GPUs' power limit lets run at the clock that is asked for.
    unlimited = coef.copy()
    unlimited[POWER_TDP_W] = math.inf
    clock = min(block.clock, highest_clock(unlimited, coef[POWER_TDP_W], 1.0, 1.0, block.compute_memory))
    core_w = coef[POWER_ACTIVE_W] + coef[POWER_COMPUTE_W] + block.compute_memory * coef[POWER_MEMORY_CORE_W]
    wait_core_w = coef[POWER_ACTIVE_W] + block.communication_memory * coef[POWER_MEMORY_CORE_W]
    found = {
        SiteSpec.TRAIN_RACKS: block.racks,
        SiteSpec.TRAIN_IDLE_W: block.racks * rack_power_w(coef, coef[POWER_IDLE_W]),
        SiteSpec.TRAIN_MOST_W: scale * (coef[POWER_TDP_W] - coef[POWER_IDLE_W]),
        SiteSpec.TRAIN_COMPUTE_CORE_W: scale * core_w,
        SiteSpec.TRAIN_COMPUTE_FIXED_W: scale * block.compute_memory * coef[POWER_MEMORY_W],
        SiteSpec.TRAIN_WAIT_CORE_W: scale * wait_core_w,
        SiteSpec.TRAIN_WAIT_FIXED_W: scale * block.communication_memory * coef[POWER_MEMORY_W],
        SiteSpec.TRAIN_VOLTAGE_FLOOR: coef[POWER_VOLTAGE_FLOOR],
        SiteSpec.TRAIN_COMPUTE_SHARE: block.compute_share,
        SiteSpec.TRAIN_CLOCK: clock,
        SiteSpec.TRAIN_LEAST_CLOCK: min(clock, site.clock_min),
        SiteSpec.TRAIN_PERIOD_S: block.checkpoint_period_s,
        SiteSpec.TRAIN_CHECKPOINT_S: block.checkpoint_s,
        SiteSpec.TRAIN_RESTORE_S: block.restore_s,
        SiteSpec.TRAIN_STALL_LIMIT_S: block.stall_limit_s,
        SiteSpec.TRAIN_WORTH: block.worth,
        SiteSpec.TRAIN_TARGET: block.target_share,
    }
    compute_w, wait_w = (
        phase_power_w(
            found[SiteSpec.TRAIN_IDLE_W],
            found[SiteSpec.TRAIN_MOST_W],
            found[core],
            found[fixed],
            found[SiteSpec.TRAIN_VOLTAGE_FLOOR],
            clock,
        )
        for core, fixed in (
            (SiteSpec.TRAIN_COMPUTE_CORE_W, SiteSpec.TRAIN_COMPUTE_FIXED_W),
            (SiteSpec.TRAIN_WAIT_CORE_W, SiteSpec.TRAIN_WAIT_FIXED_W),
        )
    )
    share = compute_time_share(block.compute_share, clock)
    running_w = share * compute_w + (1.0 - share) * wait_w
    writing_w = wait_w if block.checkpoint_rack_w is None else block.racks * block.checkpoint_rack_w
    reference_w = running_w + block.checkpoint_s / block.checkpoint_period_s * writing_w
    found[SiteSpec.TRAIN_CHECKPOINT_W] = writing_w
    found[SiteSpec.TRAIN_REFERENCE_W] = reference_w
    usd_per_j = max(0.0, site.usual("electricity")) / 3.6e9
    by_energy_usd = block.worth * reference_w * site_pue(site, 1.0) * usd_per_j
    by_hour = block.usd_per_rack_hour
    found[SiteSpec.TRAIN_USD_PER_S] = by_energy_usd if by_hour is None else block.racks * by_hour / 3600.0
    found[SiteSpec.TRAIN_ITERATION_S] = block.iteration_s
    storage = site.rack_storage
    if storage is not None and block.rack_type.id in storage.racks:
        gpus = block.racks * block.group.gpus
        found[SiteSpec.TRAIN_STORAGE_W] = gpus * storage.power_w_per_gpu
        found[SiteSpec.TRAIN_STORAGE_J] = gpus * storage.energy_j_per_gpu
        found[SiteSpec.TRAIN_STORAGE_EFFICIENCY] = math.sqrt(storage.round_trip_efficiency)
    return {column: float(value) for column, value in found.items()}


def _site_row(
    site: SiteConfig, grain: Resolution, control_interval_s: float, power: Array, span_s: float, thin_fraction: float
) -> list[float]:
    """Return ``Params.site``."""
    row = [0.0] * len(SiteSpec)
    tick_s = control_interval_s / math.ceil(control_interval_s / grain.tick_s - 1e-9)
    row[SiteSpec.TICK_S] = tick_s
    row[SiteSpec.CONTROL_INTERVAL_S] = control_interval_s
    row[SiteSpec.RESOLUTION] = grain.kind
    row[SiteSpec.CHECK_S] = site.brake.reaction_s
    row[SiteSpec.BRAKE_ENABLED] = float(site.brake.enabled)
    row[SiteSpec.BRAKE_REACTION_S] = site.brake.reaction_s
    row[SiteSpec.BRAKE_CLOCK] = site.brake.clock
    row[SiteSpec.BRAKE_FLOOR] = site.brake.floor
    row[SiteSpec.BRAKE_HOLD_S] = site.brake.hold_s
    row[SiteSpec.BRAKE_TARGET] = site.brake.target
    row[SiteSpec.BRAKE_RELEASE] = site.brake.release
    row[SiteSpec.PUE_BASE] = site.cooling.base
    row[SiteSpec.PUE_FIXED_SHARE] = site.cooling.fixed_share
    row[SiteSpec.PUE_KELVIN] = site.cooling.per_kelvin
    row[SiteSpec.PUE_FREE_COOLING_C] = site.cooling.free_cooling_c
    row[SiteSpec.OUTDOOR_C] = site.cooling.outdoor_c
    if site.cooling.coolant_limit_c is not None:
        row[SiteSpec.HEAT_W_PER_K] = heat_w_per_kelvin(site)
        row[SiteSpec.COOLANT_LIMIT_C] = site.cooling.coolant_limit_c
        row[SiteSpec.LOOP_S] = site.cooling.loop_time_constant_s
    row[SiteSpec.GENERATION_W] = sum(unit.power_w for unit in site.generation)
    if site.grid is not None:
        row[SiteSpec.EXPORT_W] = site.grid.export_w
        row[SiteSpec.EXPORT_USD_PER_MWH] = site.grid.export_usd_per_mwh
    if site.battery is not None:
        row[SiteSpec.BATTERY_W] = site.battery.power_w
        row[SiteSpec.BATTERY_J] = 3600.0 * site.battery.energy_wh
        row[SiteSpec.BATTERY_INITIAL_J] = 3600.0 * site.battery.energy_wh * site.battery.initial_charge
        row[SiteSpec.BATTERY_USD_PER_MWH] = site.battery.wear_usd_per_mwh
        row[SiteSpec.BATTERY_EFFICIENCY] = math.sqrt(site.battery.round_trip_efficiency)
    if site.ramp is not None:
        _enter_ramp(site, site.ramp, row)
    row[SiteSpec.IT_NAMEPLATE_W] = nameplate_it_w(site, power)
    row[SiteSpec.URGENT_S] = URGENT_S
    row[SiteSpec.THIN_FRACTION] = thin_fraction
    row[SiteSpec.TRACE_SPAN_S] = span_s
    row[SiteSpec.SLICES] = max(1.0, math.ceil(tick_s / SLICE_S - 1e-9)) if grain.kind == COHORT else 1.0
    row[SiteSpec.PREFILL_POOLS] = float(sum(pool.phase == "prefill" for pool in site.pools))
    row[SiteSpec.COUPLED] = float(any(pool.shares_racks for pool in site.pools))
    if site.training is not None:
        for column, value in training_numbers(site, site.training).items():
            row[column] = value
    if site.kv_store is not None:
        row[SiteSpec.STORE_BYTES] = site.kv_store.gb * 1e9
        row[SiteSpec.STORE_BYTES_PER_S] = site.kv_store.gb_s * 1e9
    row[SiteSpec.DAYS_PER_TOKEN] = REQUEST_DAYS_PER_TOKEN if grain.kind == REQUEST else 1.0 / COHORT_DAY_TOKENS
    row[SiteSpec.DAYS_PER_S] = REQUEST_DAYS_PER_S if grain.kind == REQUEST else 0.0
    return row


__all__ = [
    "RESOLUTIONS",
    "Resolution",
    "build_params",
    "at_hottest",
    "check_cap",
    "check_ramp",
    "coolable_up_to_c",
    "derates_above_c",
    "heat_w_per_kelvin",
    "idle_facility_w",
    "largest_batch",
    "nameplate_it_w",
    "resolution",
    "served_classes",
    "waking_step_w",
]
