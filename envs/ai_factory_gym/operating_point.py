"""Where a site settles under constant load: utilisation, batches, power. What ``describe`` prints and sites are sized with.

A fluid model on the engine's own physics: every pool gets its capacity-proportional share, prefill runs at its
utilisation, decode at the batch whose throughput equals its load (Little's law). No queueing, no bursts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, SHARED_GPUS, Array, Cell, Params, PoolSpec, SiteSpec
from ai_factory_gym.engine.training import RUNNING, draw_of_phase_w
from ai_factory_gym.params import (
    build_params,
    mean_context,
    nameplate_it_w,
    resolution,
    served_classes,
    served_models,
    site_pue,
)
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_STREAM_PER_TOKEN_S,
    compute_rate,
    decode_iteration_s,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, rack_power_w
from ai_factory_gym.sites import SiteConfig
from ai_factory_gym.workload.classes import RequestClass

PREFILL_UTILISATION_LIMIT = 0.9
"""Highest prefill utilisation at which queues stay short against the TTFT limits (status: assumed, checked by simulation)."""

CLOCKS = np.round(np.arange(0.4, 1.0001, 0.05), 2)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A steady state.

    Attributes:
        load_rps: Requests/s.
        facility_w: Facility power, a training block's with its job running included, W.
        utilisation: Share of busy time (prefill) or batch / largest batch within the SLO and memory (decode), per pool.
        batch: Requests in flight per decode replica, per pool; 0 for prefill.
        tpot_s: Time per output token, per pool; 0 for prefill.
        pool_w: IT power, per pool.
        pool_binds: ``prefill``, ``tpot``, ``kv`` or None, per pool.
        tokens_per_joule: Output tokens per facility joule, a training block's left out.
        binds: ``prefill``, ``tpot``, ``kv``, ``rack power`` or None when the point keeps every limit.
    """

    load_rps: float
    facility_w: float
    utilisation: tuple[float, ...]
    batch: tuple[float, ...]
    tpot_s: tuple[float, ...]
    pool_w: tuple[float, ...]
    tokens_per_joule: float
    binds: str | None
    pool_binds: tuple[str | None, ...]


class SteadySite:
    """A site's steady states at any load and clocks, all racks awake; every model has its share of the load.

    Args:
        site: The site.
        classes: Its classes.
        params: Its constant arrays.

    Attributes:
        tpot_limit_s: TPOT that each pool is to keep, ``reference_tpot_s`` of the classes of its model, float64[pools].
        block_w: Mean IT power of a training block while its job runs, W; 0 without one.
        burst_w: What its bursts add to the facility's draw, W.
    """

    def __init__(self, site: SiteConfig, classes: tuple[RequestClass, ...], params: Params) -> None:
        """Sum the mix up per group."""
        self.site = site
        self.classes = classes
        self.params = params
        cell = params.cell
        share = np.array([site.mix.get(classes[int(k)].name, 0.0) for k in cell[:, Cell.CLASS]]) * cell[:, Cell.WEIGHT]
        if share.sum() <= 0.0:
            share = cell[:, Cell.WEIGHT]
        self.share = share / share.sum()
        self.tpot_limit_s = np.zeros(len(params.pool))
        for served in served_models(site, classes, cell, self.share):
            self.tpot_limit_s[list(served.pools)] = served.tpot_s
        self.block_w, self.burst_w = 0.0, 0.0
        if site.training is not None:
            self.block_w, self.burst_w, _ = draw_of_phase_w(params, RUNNING, float(params.site[SiteSpec.TRAIN_CLOCK]))
        self.output_tokens = float(self.share @ cell[:, Cell.OUTPUT])

    def _group(self, group: int) -> tuple[float, Array]:
        """Return a group's share of requests and its mean (prompt, prompt squared, output, context in flight)."""
        cell = self.params.cell
        part = np.where(cell[:, Cell.GROUP] == group, self.share, 0.0)
        total = float(part.sum())
        if total <= 0.0:
            return 0.0, np.zeros(4)
        moments = [part @ cell[:, c] / total for c in (Cell.PROMPT, Cell.PROMPT_SQ, Cell.OUTPUT)]
        return total, np.array([*moments, mean_context(cell, part)])

    def at(
        self, load_rps: float, prefill_clock: float | Array = 1.0, decode_clock: float | Array = 1.0
    ) -> OperatingPoint:
        """Return the steady state at a load and a clock per phase, or one per phase for every pool, float64[pools]."""
        params = self.params
        clocks = [np.broadcast_to(clock, len(params.pool)) for clock in (prefill_clock, decode_clock)]
        pools = len(params.pool)
        work = np.zeros((pools, 3))  # prompts, squared prompts, requests per second
        decode = np.zeros((pools, 3))  # requests/s, context x output tokens/s, output tokens/s
        for group in range(params.capacity.shape[1]):
            share, (prompt, prompt_sq, output, context) = self._group(group)
            if share == 0.0:
                continue
            for phase, table in ((PREFILL, work), (DECODE, decode)):
                rate = self._rates(phase, group, load_rps * share)
                if phase == PREFILL:
                    table += rate[:, None] * np.array([prompt, prompt_sq, 1.0])
                else:
                    table += rate[:, None] * np.array([1.0, context * output, output])
        state: list[tuple[float, float, float, float, str | None]] = []
        # Prefill pools come first.
        for index in range(pools):
            own = tuple(float(clock[index]) for clock in clocks)
            partner = int(params.pool[index, PoolSpec.PARTNER])
            aggregated = params.pool[index, PoolSpec.COUPLING] == SHARED_GPUS
            if aggregated:
                first, second = sorted((index, partner))
                own = (min(float(clocks[PREFILL][first]), float(clocks[DECODE][second])),) * 2
            if params.pool[index, PoolSpec.PHASE] == PREFILL:
                state.append(self._prefill(index, work[index], own[PREFILL]))
            else:
                busy = min(1.0, state[partner][0]) if aggregated else 0.0
                state.append(
                    self._decode(index, decode[index], own[DECODE], busy * params.pool[index, PoolSpec.PREFILL_LIMIT])
                )
        utilisation, batch, tpot, watts, binds = zip(*state, strict=True)
        over = self._over_rack_limits(watts)
        it_w = float(sum(watts)) + self.block_w
        factor = site_pue(self.site, it_w / nameplate_it_w(self.site, params.power))
        facility_w = it_w * factor
        reasons = [reason for reason in (*binds, *over) if reason]
        return OperatingPoint(
            load_rps,
            facility_w,
            utilisation,
            batch,
            tpot,
            watts,
            load_rps * self.output_tokens / (facility_w - self.block_w * factor),
            reasons[0] if reasons else None,
            tuple(reason or limit for reason, limit in zip(binds, over, strict=True)),
        )

    def _rates(self, phase: int, group: int, rps: float) -> Array:
        """Return the requests/s of a group that each pool of a phase gets, float64[pools]: in proportion to capacity.

        What is prefilled on GPUs that decode too is decoded there.
        """
        params = self.params
        weight = params.capacity[phase, group] * params.pool[:, PoolSpec.RACKS]
        stays = (params.pool[:, PoolSpec.COUPLING] == SHARED_GPUS) & (params.pool[:, PoolSpec.PHASE] == DECODE)
        if phase == PREFILL or not stays.any():
            return np.asarray(rps * weight / weight.sum())
        prefilled = self._rates(PREFILL, group, rps)
        rate = np.where(stays, prefilled[params.pool[:, PoolSpec.PARTNER].astype(int)], 0.0)
        weight = np.where(stays, 0.0, weight)
        if weight.sum() > 0.0:
            rate += max(0.0, rps - rate.sum()) * weight / weight.sum()
        return np.asarray(rate)

    def _over_rack_limits(self, watts: tuple[float, ...]) -> tuple[str | None, ...]:
        """Return what binds where racks draw more than their limit, per pool."""
        found: list[str | None] = []
        for watt, spec in zip(watts, self.params.pool, strict=True):
            both = watt + (watts[int(spec[PoolSpec.PARTNER])] if spec[PoolSpec.PARTNER] >= 0 else 0.0)
            over = both > spec[PoolSpec.RACKS] * spec[PoolSpec.RACK_LIMIT_W] * (1.0 + 1e-9)
            found.append("rack power" if over else None)
        return tuple(found)

    def _prefill(self, index: int, work: Array, clock: float) -> tuple[float, float, float, float, str | None]:
        params = self.params
        perf, power = params.perf[index], params.power[index]
        rate = compute_rate(clock)
        scaling_s, fixed_s = prefill_work_s(perf, work[0], work[1])
        busy_s = scaling_s / rate + fixed_s
        servers = params.pool[index, PoolSpec.RACKS] * params.pool[index, PoolSpec.UNITS_PER_RACK]
        utilisation = busy_s / servers
        memory_s = perf[PREFILL_STREAM_PER_TOKEN_S] * work[0]
        gpu_w = gpu_power_w(
            power, clock, min(1.0, utilisation), scaling_s / rate / max(busy_s, 1e-300), memory_s / max(busy_s, 1e-300)
        )
        watts = params.pool[index, PoolSpec.RACKS] * rack_power_w(power, gpu_w)
        return utilisation, 0.0, 0.0, watts, "prefill" if utilisation > PREFILL_UTILISATION_LIMIT else None

    def _decode(
        self, index: int, load: Array, clock: float, prefill_share: float = 0.0
    ) -> tuple[float, float, float, float, str | None]:
        """Return the state of a decode pool, with ``prefill_share`` of its GPUs' time taken by prefill."""
        params = self.params
        perf, power, spec = params.perf[index], params.power[index], params.pool[index]
        replicas = spec[PoolSpec.RACKS] * spec[PoolSpec.UNITS_PER_RACK]
        if load[0] <= 0.0:
            return (
                0.0,
                0.0,
                0.0,
                spec[PoolSpec.RACKS] * rack_power_w(power, gpu_power_w(power, clock, 0.0, 0.0, 0.0)),
                None,
            )
        context = load[1] / load[2]
        most = min(
            spec[PoolSpec.MAX_BATCH],
            perf[DECODE_KV_CAPACITY_TOKENS] / (context + load[2] / load[0] / 2.0 + perf[DECODE_KV_REQUEST_TOKENS]),
        )
        left = 1.0 - spec[PoolSpec.INTERFERENCE] * prefill_share
        needed = load[2] / replicas / left

        def throughput(batch: float) -> float:
            return (
                batch * perf[DECODE_TOKENS_PER_ITERATION] / decode_iteration_s(perf, max(1.0, batch), context, clock)[0]
            )

        low, high = 0.0, float(most)
        binds = "kv" if throughput(high) < needed else None
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if throughput(middle) < needed else (low, middle)
        iteration_s, compute_s, memory_s = decode_iteration_s(perf, max(1.0, high), context, clock)
        tpot_s = iteration_s / perf[DECODE_TOKENS_PER_ITERATION] / left
        if binds is None and tpot_s > self.tpot_limit_s[index]:
            binds = "tpot"
        busy = (1.0 - prefill_share) * min(1.0, high)
        gpu_w = gpu_power_w(power, clock, busy, compute_s / iteration_s, memory_s / iteration_s)
        return high / most, high, tpot_s, spec[PoolSpec.RACKS] * rack_power_w(power, gpu_w), binds

    def saturation(self, clock: float = 1.0) -> OperatingPoint:
        """Return the unthrottled steady state at the largest load that keeps the SLA, whatever it draws."""

        def point(load_rps: float) -> OperatingPoint:
            full = self.at(load_rps, clock, clock)
            # Racks that may not draw what their GPUs could are throttled even then.
            return self.cheapest(load_rps) if full.binds == "rack power" else full

        return self._largest(point, None)

    def under_cap(self, cap_w: float) -> OperatingPoint:
        """Return the steady state at the largest load that keeps the SLA and the cap, with the best clock per phase and model."""
        return self._largest(lambda load: self.cheapest(load), cap_w - self.burst_w)

    def cheapest(self, load_rps: float) -> OperatingPoint:
        """Return the steady state of least power at a load, over a grid of clocks per phase and model; an infeasible one if none is."""
        spec = self.params.pool
        if (spec[:, PoolSpec.COUPLING] == SHARED_GPUS).any() or np.isfinite(spec[:, PoolSpec.RACK_LIMIT_W]).any():
            return self._cheapest_together(load_rps)
        points = {c: self.at(load_rps, float(c), float(c)) for c in CLOCKS}
        best = np.ones(len(spec))
        # Pools of one phase and model do not feel the clock of the others, so each is searched alone.
        for phase, which in sorted({(int(row[PoolSpec.PHASE]), int(row[PoolSpec.MODEL])) for row in spec}):
            pools = np.flatnonzero((spec[:, PoolSpec.PHASE] == phase) & (spec[:, PoolSpec.MODEL] == which))

            def draws_w(clock: float, pools: Array = pools) -> float:
                return sum(points[clock].pool_w[k] for k in pools)

            # What memory forbids at full clock too is no reason for a clock.
            short = {k for k in pools if points[1.0].pool_binds[k] == "kv"}
            good = [c for c in CLOCKS if not any(points[c].pool_binds[k] for k in pools if k not in short)]
            good = [c for c in good if all(points[c].tpot_s[k] <= self.tpot_limit_s[k] for k in short)]
            best[pools] = min(good, key=draws_w, default=1.0)
        return self.at(load_rps, best, best)

    def _cheapest_together(self, load_rps: float) -> OperatingPoint:
        """Return the steady state of least power where the phases of a model feel each other's clock: in racks they share."""
        phases = self.params.pool[self.params.pool[:, PoolSpec.COUPLING] != SHARED_GPUS, PoolSpec.PHASE]
        # With shared GPUs only, the lower clock holds for both phases.
        pairs = [(c, c) for c in CLOCKS] if len(phases) == 0 else [(p, d) for p in CLOCKS for d in CLOCKS]
        points = [self.at(load_rps, float(p), float(d)) for p, d in pairs]
        spec = self.params.pool
        best = np.ones((2, len(spec)))
        for which in np.unique(spec[:, PoolSpec.MODEL]):
            pools = np.flatnonzero(spec[:, PoolSpec.MODEL] == which)

            def cost(place: int, pools: Array = pools) -> tuple[bool, float]:
                point = points[place]
                return any(point.pool_binds[k] for k in pools), sum(point.pool_w[k] for k in pools)

            best[:, pools] = np.array(pairs[min(range(len(pairs)), key=cost)], dtype=np.float64)[:, None]
        return self.at(load_rps, best[PREFILL], best[DECODE])

    @staticmethod
    def _largest(point: Callable[[float], OperatingPoint], cap_w: float | None) -> OperatingPoint:
        """Return the last feasible point of a bisection on the load."""

        def fits(candidate: OperatingPoint) -> bool:
            return candidate.binds is None and (cap_w is None or candidate.facility_w <= cap_w)

        low, high = 0.0, 1.0
        while fits(point(high)) and high < 1e9:
            low, high = high, 2.0 * high
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if fits(point(middle)) else (low, middle)
        return point(low)


def steady_site(site: SiteConfig) -> SteadySite:
    """Return the steady-state model of a site at the default resolution's strata."""
    classes = served_classes(site)
    return SteadySite(site, classes, build_params(site, classes, resolution("cohort"), control_interval_s=60.0))


__all__ = ["CLOCKS", "PREFILL_UTILISATION_LIMIT", "OperatingPoint", "SteadySite", "steady_site"]
