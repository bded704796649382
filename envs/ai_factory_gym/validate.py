"""What is wrong, or unlikely to be meant, in a site of one's own. ``python -m ai_factory_gym validate FILE`` prints it.

What cannot be simulated at all is an error, raised where the site is read or its arrays are built. Here stands what can be simulated
but would surprise: each finding says what was found, in figures, and what could be changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ai_factory_gym import remarks
from ai_factory_gym.engine.generation import START_SHARE
from ai_factory_gym.engine.layout import DECODE, PREFILL, Array, PoolSpec, SiteSpec
from ai_factory_gym.operating_point import PREFILL_UTILISATION_LIMIT, OperatingPoint, SteadySite, steady_site
from ai_factory_gym.params import (
    at_hottest,
    check_cap,
    check_ramp,
    derates_above_c,
    idle_facility_w,
    nameplate_it_w,
    site_pue,
    waking_step_w,
)
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    DECODE_TOKENS_PER_ITERATION,
    PREFILL_FRONTEND_S,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_TRANSFER_BYTES_PER_S,
    decode_iteration_s,
    prefill_work_s,
)
from ai_factory_gym.registration import TASKS
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.workload.classes import RequestClass
from ai_factory_gym.workload.demand import mean_path

LOPSIDED = 2.0
"""How many times the load of the other a phase may stand before it counts as oversized (status: design choice)."""

LONG_FALL_S = 3600.0
"""Time from the cap to the idle draw at the limit down from which on it is worth a remark, s (status: design choice)."""

LONG_WAKE_WAIT_S = 600.0
"""The same of the time the draw takes to rise for one rack: about what the rack takes to wake (status: design choice)."""


def daily_demand_rps(site: SiteConfig, classes: tuple[RequestClass, ...]) -> np.ndarray:
    """Return the mean demand of every minute of the day by class, requests/s, float64[classes, 1440]."""
    mean = np.array([site.mix[cls.name] for cls in classes]) * site.demand_rps
    return mean_path([cls.demand for cls in classes], mean, 0.0, 1440, daily=True)


def _power(site: SiteConfig, steady: SteadySite, saturation: OperatingPoint) -> Iterator[str]:
    nameplate_w = nameplate_it_w(site, steady.params.power) * site_pue(site, 1.0)
    units = " with its units" if site.generation else ""
    if nameplate_w <= site.supply_w:
        yield (
            f"cap_w: {site.supply_w / 1e6:,.3f} MW{units} is more than all racks can draw ({nameplate_w / 1e6:,.3f} MW with cooling): "
            "power never binds; lower the cap or add racks."
        )
    elif saturation.facility_w < site.supply_w:
        yield (
            f"cap_w: at the load that saturates the SLA the site draws {saturation.facility_w / site.supply_w:.2f} of its cap{units}: the racks bind "
            "before the power does; the shipped sites draw 1.25 to 1.4 times their cap there."
        )


def _heat(site: SiteConfig) -> Iterator[str]:
    most_c = derates_above_c(site)
    hottest = at_hottest(site).cooling.outdoor_c
    if hottest > most_c:
        yield (
            f"cooling: it may be {hottest:.1f} degC outdoors, and above {most_c:.1f} degC the coolant's limit binds before the cap does: the site "
            "will have to derate; raise design_outdoor_c (more dry coolers) if that is not meant."
        )


def _ramp(site: SiteConfig) -> Iterator[str]:
    if site.ramp is None:
        return
    swing_w = site.cap_w - idle_facility_w(site)
    down = site.ramp.down_w_per_s
    if down is not None and swing_w / down > LONG_FALL_S:
        yield (
            f"ramp.down_w_per_s: from the cap to the idle draw takes {swing_w / down / 3600.0:,.1f} h at {down:,.0f} W/s; whoever throttles faster "
            "burns the difference in the ballast: lower clocks save nothing for as long; raise the limit or give the site a battery."
        )
    up = site.ramp.up_w_per_s
    if up is not None and waking_step_w(site) / up > LONG_WAKE_WAIT_S:
        yield (
            f"ramp.up_w_per_s: the draw takes {waking_step_w(site) / up / 60.0:,.0f} min to rise by what a rack draws when it wakes, beside the "
            "time it takes to wake: racks will be late for a rising demand; a battery that can bridge that starts them at once."
        )


def _generation(site: SiteConfig) -> Iterator[str]:
    idle_w = idle_facility_w(site)
    least_w = sum(unit.min_load * unit.power_w for unit in site.generation if unit.must_run)
    sold_w = site.grid.export_w if site.grid is not None else 0.0
    if least_w > idle_w + sold_w:
        yield (
            f"generation: units that always run give at least {least_w / 1e6:,.3f} MW, more than the site draws idle ({idle_w / 1e6:,.3f} MW) and "
            f"may export ({sold_w / 1e6:,.3f} MW): the rest is spilled; lower min_load, or give [grid] an export_w."
        )
    for unit in site.generation:
        if unit.must_run or "electricity" in dict(site.series) or site.cap_w == 0.0:
            continue
        dear = unit.fuel_usd_per_mwh >= max(
            site.electricity_usd_per_mwh, site.grid.export_usd_per_mwh if site.grid is not None else -1e9
        )
        if dear and nameplate_it_w(site) * site_pue(site, 1.0) <= START_SHARE * site.cap_w:
            yield (
                f"generation: {unit.name!r} is dearer than the grid and the cap never asks for it: it runs in curtailments only, or when it is "
                "ordered to."
            )


def _demand(site: SiteConfig, steady: SteadySite) -> Iterator[str]:
    capped = steady.under_cap(site.supply_w)
    demand = daily_demand_rps(site, steady.classes).sum(axis=0)
    if capped.load_rps <= 0.0:
        yield "demand_rps: the site cannot keep its SLA under its cap at any load; raise cap_w or loosen the classes' limits."
        return
    hours = float((demand > capped.load_rps).mean()) * 24.0
    if hours > 0.0:
        yield (
            f"demand_rps: the mean day asks for more than the site can serve with the SLA under its cap ({capped.load_rps:,.0f} requests/s) during "
            f"{hours:.1f} h, up to {demand.max():,.0f}: requests will be turned away or late. Mean demand is {site.demand_rps / capped.load_rps:.2f} "
            "of that; the shipped sites have 0.60 to 0.65."
        )


def _phase_limit_rps(steady: SteadySite, phase: int, model: int, most_rps: float) -> float:
    """Return the site's load at which a phase of a model alone would be at its limit at full clock, requests/s, at most ``most_rps``."""
    spec = steady.params.pool
    pools = np.flatnonzero((spec[:, PoolSpec.PHASE] == phase) & (spec[:, PoolSpec.MODEL] == model))

    def fits(load_rps: float) -> bool:
        point = steady.at(load_rps)
        if phase == PREFILL:
            return all(point.utilisation[k] <= PREFILL_UTILISATION_LIMIT for k in pools)
        return all(point.tpot_s[k] <= steady.tpot_limit_s[k] and point.utilisation[k] < 1.0 for k in pools)

    low, high = 0.0, most_rps
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return high


def _balance(steady: SteadySite, saturation: OperatingPoint) -> Iterator[str]:
    models = [entry.id for entry in steady.site.models]
    most = 2.0 * LOPSIDED * saturation.load_rps
    limits = np.array(
        [[_phase_limit_rps(steady, phase, k, most) for phase in (PREFILL, DECODE)] for k in range(len(models))]
    )
    for model, own in zip(models, limits, strict=True):
        names = [f"{phase} of {model}" if len(models) > 1 else phase for phase in ("prefill", "decode")]
        yield from _lopsided(names, own, most)
    yield from _lopsided(models, limits.min(axis=1), most)


def _lopsided(names: Sequence[str], limits: Array, most: float) -> Iterator[str]:
    """Remark on the loads at which parts of a site are at their limit, requests/s, searched up to ``most``."""
    tight, loose = int(np.argmin(limits)), int(np.argmax(limits))
    if limits[loose] > LOPSIDED * limits[tight]:
        more = "more than " if limits[loose] >= 0.99 * most else ""
        yield (
            f"pools: {names[tight]} is at its limit at {limits[tight]:,.0f} requests/s, {names[loose]} at {more}{limits[loose]:,.0f}: move racks "
            f"from {names[loose]} to {names[tight]}, or leave some out."
        )


def _first_token_s(steady: SteadySite, model: int, prompt: float) -> float:
    """Return the time to the first token of a lone request to a model on its best pools at full clock, s."""
    params = steady.params
    prefill, decode = np.inf, np.inf
    for perf, spec in zip(params.perf, params.pool, strict=True):
        if spec[PoolSpec.MODEL] != model:
            continue
        if spec[PoolSpec.PHASE] == PREFILL:
            scaling_s, fixed_s = prefill_work_s(perf, prompt, prompt * prompt)
            sent_s = prompt * perf[PREFILL_KV_BYTES_PER_TOKEN] / perf[PREFILL_TRANSFER_BYTES_PER_S]
            prefill = min(prefill, scaling_s + fixed_s + sent_s + perf[PREFILL_FRONTEND_S])
        else:
            decode = min(decode, decode_iteration_s(perf, 1.0, prompt, 1.0)[0])
    return float(prefill + decode)


def _classes(site: SiteConfig, steady: SteadySite) -> Iterator[str]:
    params = steady.params
    for cls in steady.classes:
        model = site.model_index(site.class_model(cls.name))
        decode = [
            k for k, spec in enumerate(params.pool) if spec[PoolSpec.PHASE] == DECODE and spec[PoolSpec.MODEL] == model
        ]
        room = {
            site.pools[k].name: params.perf[k, DECODE_KV_CAPACITY_TOKENS] - params.perf[k, DECODE_KV_REQUEST_TOKENS]
            for k in decode
        }
        longest = cls.prompt.maximum + cls.output.maximum
        small = [name for name, tokens in room.items() if tokens < longest]
        if small:
            yield (
                f"mix.{cls.name}: a request may hold {longest:,.0f} tokens of KV, more than a replica of {', '.join(small)} has room for "
                f"({min(room.values()):,.0f} at least): such requests would block that pool; give its replicas more GPUs (dp, tp), or lower "
                "max_context."
            )
        if cls.deferrable:
            continue
        for what, prompt in (("a mean prompt", cls.prompt.mean()), ("the longest prompt", cls.prompt.maximum)):
            takes_s, limit_s = _first_token_s(steady, model, prompt), cls.ttft_limit_s(prompt)
            if takes_s > limit_s:
                yield (
                    f"mix.{cls.name}: the first token of {what} ({prompt:,.0f} tokens) takes {takes_s:.2f} s on an idle site, and {limit_s:.2f} s "
                    "are allowed: it will always be missed; add a faster prefill pool, or loosen the class's TTFT."
                )
                break
        fastest_s = min(
            decode_iteration_s(params.perf[k], 1.0, cls.prompt.mean(), 1.0)[0]
            / params.perf[k, DECODE_TOKENS_PER_ITERATION]
            for k in decode
        )
        if fastest_s > cls.tpot_s:
            yield (
                f"mix.{cls.name}: a lone request takes {1e3 * fastest_s:.1f} ms a token on the fastest pool, and {1e3 * cls.tpot_s:.1f} ms are "
                "allowed; use mtp, more GPUs per replica, or a faster rack."
            )


def _caches(site: SiteConfig) -> Iterator[str]:
    sessions = [
        name for name, share in site.mix.items() if share > 0.0 and site.known_classes[name].session is not None
    ]
    if site.caches and not sessions:
        yield (
            "cache: the site keeps KV of prompts, but no class has a session: nothing is found, unless a trace with ids of prefix blocks is "
            "replayed; give classes of your own a [session]."
        )
    if sessions and not site.caches:
        yield (
            f"mix.{sessions[0]}: has a session, but no pool keeps KV for its next turn: tasks are counted, nothing is found; give pools a cache or "
            "a hold_share, or the site a kv_store."
        )


def _training(site: SiteConfig, steady: SteadySite) -> Iterator[str]:
    block = site.training
    if block is None:
        return
    if block.worth < 1.0:
        yield (
            f"training.worth: {block.worth:g} says that the job's work is worth less than its energy: pausing it always pays, except where "
            "target_share forbids it."
        )
    hour_usd = steady.params.site[SiteSpec.TRAIN_REFERENCE_W] * site_pue(site, 1.0) * 3600.0 / 3.6e9 / block.racks
    hour_usd *= site.usual("electricity")
    if block.usd_per_rack_hour is not None and block.usd_per_rack_hour < hour_usd:
        yield (
            f"training.usd_per_rack_hour: {block.usd_per_rack_hour:g} is less than the energy of that hour costs ({hour_usd:,.2f} USD): with "
            "reward='profit' pausing the job always pays."
        )
    if block.restore_s + block.checkpoint_s > block.checkpoint_period_s:
        yield (
            f"training.checkpoint_period_s: {block.checkpoint_period_s:g} s is shorter than writing and reading a checkpoint "
            f"({block.restore_s + block.checkpoint_s:g} s)."
        )


def findings(site: SiteConfig) -> list[str]:
    """Return what would surprise: power, heat, ramp, generation, demand, pools, classes, caches, training, single settings; empty when nothing does.

    Raises:
        ConfigError: When the site cannot be simulated at all.
    """
    check_cap(at_hottest(site), site.cap_w)
    check_ramp(site, site.cap_w)
    steady = steady_site(site)
    saturation = steady.saturation()
    if saturation.load_rps <= 0.0:
        return [f"pools: no load keeps the SLA ({steady.at(1e-6).binds or 'tpot'} binds).", *_classes(site, steady)]
    return [
        *_power(site, steady, saturation),
        *_heat(site),
        *_ramp(site),
        *_generation(site),
        *_demand(site, steady),
        *_balance(steady, saturation),
        *_classes(site, steady),
        *_caches(site),
        *_training(site, steady),
        *remarks.settings(site, steady.classes, steady.params),
    ]


def validate(source: str | Path) -> str:
    """Return what ``validate`` prints about a site.

    Args:
        source: TOML path, shipped site name or task id.

    Raises:
        ConfigError: When the site cannot be simulated at all, with the first reason.
    """
    site = load_site(TASKS.get(str(source), source))
    found = findings(site)
    racks = sum(site.pools[index].racks for index in site.rack_pools)
    head = f"{source}: {site.name}, {racks} racks in {len(site.pools)} pools, can be simulated"
    if not found:
        return f"{head}; nothing to remark.\n"
    return (
        "\n".join([f"{head}; {len(found)} remark{'s' if len(found) > 1 else ''}:", *(f"- {text}" for text in found)])
        + "\n"
    )


__all__ = ["daily_demand_rps", "findings", "validate"]
