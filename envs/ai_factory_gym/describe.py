"""What a task is: inventory, power, capacity, what binds. ``python -m ai_factory_gym describe TASK`` prints it."""

from __future__ import annotations

import dataclasses

import numpy as np

from ai_factory_gym.engine.layout import DECODE, PREFILL, PoolSpec, SiteSpec
from ai_factory_gym.errors import ConfigError, check_range, unknown
from ai_factory_gym.levers import pairs_of
from ai_factory_gym.operating_point import OperatingPoint, SteadySite, steady_site
from ai_factory_gym.params import (
    coolable_up_to_c,
    derates_above_c,
    idle_facility_w,
    idle_it_power_w,
    nameplate_it_w,
    served_classes,
    site_pue,
    waking_step_w,
)
from ai_factory_gym.registration import CUSTOM, TASKS
from ai_factory_gym.sites import RampConfig, SiteConfig, StorageConfig, load_site
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.steady_cache import steady_cache
from ai_factory_gym.validate import daily_demand_rps
from ai_factory_gym.workload.traces import load_trace, superposition_report


def task_site(name: str) -> SiteConfig:
    """Return the site of a task id, a shipped site name or a TOML path.

    Raises:
        ConfigError: When it is none of them.
    """
    if name == CUSTOM:
        raise ConfigError(f"task: {name!r} has no site of its own; give the TOML file of yours.")
    if name in TASKS:
        return load_site(TASKS[name])
    if name.endswith(".toml") or name in TASKS.values():
        return load_site(name)
    raise unknown("task", name, [*TASKS, *TASKS.values()])


def figures(site: SiteConfig) -> dict[str, float]:
    """Return the two figures every task is sized by, and those they come from.

    Returns:
        ``saturation_rps``, ``unthrottled_draw_over_cap``, ``cap_rps`` (what the cap can serve) and ``mean_load_over_cap_rps``; where the site
        makes power, its units count as cap.
    """
    steady = steady_site(site)
    saturation = steady.saturation()
    capped = steady.under_cap(site.supply_w)
    return {
        "saturation_rps": saturation.load_rps,
        "unthrottled_draw_over_cap": saturation.facility_w / site.supply_w,
        "cap_rps": capped.load_rps,
        "mean_load_over_cap_rps": site.demand_rps / capped.load_rps,
    }


def describe(name: str) -> str:
    """Return the description of a task.

    Args:
        name: Task id, shipped site name or TOML path.

    Raises:
        ConfigError: On an unknown task or an invalid site.
    """
    return describe_site(task_site(name))


def describe_site(site: SiteConfig) -> str:
    """Return the description of a site."""
    steady = steady_site(site)
    classes = steady.classes
    params = steady.params
    saturation = steady.saturation()
    capped = steady.under_cap(site.supply_w)
    mean = steady.cheapest(site.demand_rps)
    binding = steady.cheapest(1.01 * capped.load_rps).binds or "cap"
    nameplate_w = nameplate_it_w(site, params.power)
    several = len(site.models) > 1
    width = max(30, *(len(pool.name) + 3 for pool in site.pools))
    lines = [
        f"{site.name}: {site.description}",
        f"calibration {site.calibration}; model{'s' if several else ''} {', '.join(entry.id for entry in site.models)}"
        + _contexts(site),
        "",
        f"{_cap(site)}; nameplate {nameplate_w * site_pue(site, 1.0) / 1e6:,.2f} MW with cooling; "
        f"idle, all racks awake, {idle_facility_w(site) / 1e6:,.2f} MW",
        *_cooling(site),
        "",
        f"{'pool':<{width}}{'racks':>7}{'replicas':>10}{'GPUs each':>11}{'capacity, requests/s of a rack by prompt group':>50}",
    ]
    for index, pool in enumerate(site.pools):
        phase = PREFILL if params.pool[index, PoolSpec.PHASE] == PREFILL else DECODE
        bins = len(params.group_edges) + 1
        first = bins * int(params.pool[index, PoolSpec.MODEL])
        rates = ", ".join(f"{rate:,.0f}" for rate in params.capacity[phase, first : first + bins, index])
        mark = " *" if pool.rack_type.hypothetical else ""
        lines.append(
            f"{pool.name + mark:<{width}}{pool.racks:>7}{pool.racks * pool.replicas_per_rack:>10}{pool.gpus_per_replica:>11}{rates:>50}"
        )
    for pool in site.pools:
        if pool.phase == "prefill" and site.partner(pool) >= 0:
            what = "GPUs (aggregated)" if pool.aggregated else "racks and their power"
            lines.append(
                f"{pool.name} and {site.pools[site.partner(pool)].name} share {what}: {pool.racks} racks in all"
            )
    for prefill, decode, fewest, most in pairs_of(params):
        both = site.pools[prefill].racks + site.pools[decode].racks
        lines.append(
            f"lever role: {fewest} to {most} of the {both} racks of {site.pools[prefill].rack_type.id} in prefill, the others in decode"
            + (f" ({site.pool_models[prefill].id})" if len(site.models) > 1 else "")
        )
    lines += _parts(site)
    if any(pool.rack_type.hypothetical for pool in site.pools):
        lines.append("* hypothetical: announced, then withdrawn; never shipped")
    lines += [
        "",
        f"{'class':<20}{'share':>7}{'prompt':>10}{'output':>9}{'TTFT limit':>13}{'TPOT limit':>12}{'target':>8}"
        f"{'alone, requests/s':>19}" + ("  model" if several else ""),
    ]
    for cls in classes:
        prompt = cls.prompt.mean()
        limit = f"{cls.deadline_s / 3600:.0f} h to do" if cls.deferrable else f"{cls.ttft_limit_s(prompt):.2f} s"
        tpot = "" if cls.deferrable else f"{1e3 * cls.tpot_s:.0f} ms"
        lines.append(
            f"{cls.name:<20}{site.mix[cls.name]:>7.0%}{prompt:>10,.0f}{cls.output.mean():>9,.0f}{limit:>13}{tpot:>12}{cls.attainment_target:>8.2f}"
            f"{_alone(site, cls.name)}" + (f"  {site.class_model(cls.name).id}" if several else "")
        )
    if site.caches:
        lines += _caches(site, steady)
    lines += [
        "",
        f"{'steady state':<34}{'requests/s':>12}{'MW':>9}{'x cap':>8}{'tokens/J':>10}  TPOT ms by decode pool; next limit",
        _line("SLA saturated, full clock", saturation, site, steady.at(1.01 * saturation.load_rps).binds),
        _line(f"most {_what(binding)} can serve", capped, site, binding),
        _line("mean demand, best clocks", mean, site, mean.binds),
        "",
        "next limit: prefill utilisation, tpot, kv (memory of decode), rack power or cap",
        f"unthrottled draw at the saturating load: {saturation.facility_w / site.supply_w:.3f} x cap",
        f"mean demand: {site.demand_rps / capped.load_rps:.3f} of what {_what(binding)} can serve",
        "",
        *plot_day(daily_demand_rps(site, classes).sum(axis=0), capped.load_rps, what=_what(binding)),
    ]
    return "\n".join(lines) + "\n"


def _cooling(site: SiteConfig) -> list[str]:
    """Return what a limit of the coolant means for the site, nothing where there is none."""
    if site.cooling.coolant_limit_c is None:
        return []
    return [
        f"coolant up to {site.cooling.coolant_limit_c:g} degC: the cap can be used up to {derates_above_c(site):.1f} degC outdoors, less above; "
        f"idle can be cooled up to {coolable_up_to_c(site, idle_it_power_w(site)):.1f} degC"
    ]


def _ramp(site: SiteConfig, ramp: RampConfig) -> list[str]:
    """Return what limits the ramps of the draw."""
    limits = [
        f"{limit:,.0f} W/s {way} ({60.0 * limit / site.cap_w:.2%} of the cap per minute)".replace("%", " %")
        for way, limit in (("up", ramp.up_w_per_s), ("down", ramp.down_w_per_s))
        if limit is not None
    ]
    lines = [f"ramp: at most {', '.join(limits)}"]
    if ramp.up_w_per_s is not None:
        lines[0] += f"; room for a rack to wake takes up to {waking_step_w(site) / ramp.up_w_per_s / 60.0:,.1f} min"
    return lines


def _storage(site: SiteConfig, storage: StorageConfig) -> list[str]:
    """Return what racks store: those of pools where the draw has a ramp limit, those that train in any case."""
    found = []
    if site.ramp is not None and site.rack_storage_gpus > 0:
        held_j = site.rack_storage_gpus * storage.energy_j_per_gpu
        found.append(
            f"rack storage: {site.rack_storage_gpus} GPUs x {storage.energy_j_per_gpu:g} J = {held_j / 1e6:,.3f} MJ"
            f", {held_j / site.cap_w * 1e3:,.0f} ms of the cap"
        )
    block = site.training
    if block is not None and block.rack_type.id in storage.racks:
        gpus = block.racks * block.group.gpus
        found.append(
            f"rack storage of the training block: {gpus} GPUs x {storage.energy_j_per_gpu:g} J, lowers its bursts"
        )
    return found


def _parts(site: SiteConfig) -> list[str]:
    """Return what the site has beside racks and a cap, a line each: battery, what varies with time, money, reliability, training."""
    lines = []
    for unit in site.generation:
        lines.append(
            f"on site: {unit.name} {unit.power_w / 1e6:,.3f} MW, "
            + (f"at least {unit.min_load:.0%} while it runs, " if unit.min_load < 1.0 else "flat, ")
            + ("always runs, " if unit.must_run else f"starts in {unit.start_s / 60.0:,.1f} min, ")
            + f"{unit.fuel_usd_per_mwh:,.1f} USD/MWh, {unit.carbon_g_per_kwh:,.0f} g/kWh"
        )
    if site.grid is not None and site.grid.export_w > 0.0:
        lines.append(
            f"grid: export up to {site.grid.export_w / 1e6:,.3f} MW at {site.grid.export_usd_per_mwh:,.1f} USD/MWh"
        )
    if site.battery is not None:
        cells = site.battery
        lines.append(
            f"battery: {cells.power_w / 1e6:,.3f} MW, {cells.energy_wh / 1e6:,.3f} MWh, {60.0 * cells.energy_wh / cells.power_w:,.1f} min at full "
            f"power, round trip {cells.round_trip_efficiency:.0%}"
        )
    if site.ramp is not None:
        lines += _ramp(site, site.ramp)
    if site.rack_storage is not None:
        lines += _storage(site, site.rack_storage)
    if site.series:
        given = (f"{kind} ({what if isinstance(what, str) else what.source})" for kind, what in site.series)
        lines.append(f"varies with time: {', '.join(given)}")
    if site.money is not None:
        shares = [(site.mix[cls.name], cls, site.money.of(cls.name)) for cls in served_classes(site)]
        usd = sum(
            share * (tariff.input_usd_per_mtok * cls.prompt.mean() + tariff.output_usd_per_mtok * cls.output.mean())
            for share, cls, tariff in shares
        )
        lines.append(f"money: served requests pay {usd * site.demand_rps * 0.0036:,.0f} USD/h at mean demand")
    if site.reliability is not None:
        # Racks that two pools share are counted once, and so are GPUs that do both phases.
        alone = [pool for pool in site.pools if pool.phase == "prefill" or site.partner(pool) < 0]
        racks = sum(pool.racks for pool in alone)
        own = [pool for pool in site.pools if pool in alone or not pool.aggregated]
        gpus = sum(pool.racks * pool.gpus_per_rack for pool in own)
        lines.append(
            f"reliability: {24.0 * gpus * site.reliability.gpu_faults_per_hour:.2f} faults a day among {racks} racks, repairs of "
            f"{site.reliability.repair_s / 3600.0:.3g} h"
            + _in_part(site.reliability)
            + _of_block(site, site.reliability)
        )
    if site.training is not None:
        lines.append(_block(site, site.training))
    return lines


def _in_part(spec: ReliabilityConfig) -> str:
    """Return which shares of faults take parts of racks, where any do."""
    if not spec.in_part:
        return ""
    kinds = (
        ("GPU groups", spec.gpu_group_share, spec.gpu_group_repair_s),
        ("NVLink domains", spec.nvlink_domain_share, spec.nvlink_domain_repair_s),
    )
    texts = [
        f"{share:.1%} take {kind}" + (f" (repairs of {repair_s / 3600.0:.3g} h)" if repair_s else "")
        for kind, share, repair_s in kinds
        if share > 0.0
    ]
    return f"; {', '.join(texts)}"


def _of_block(site: SiteConfig, spec: ReliabilityConfig) -> str:
    """Return how many faults strike the site's training block, where it has one: all of them stop the job, whatever they take elsewhere."""
    if site.training is None:
        return ""
    racks = site.training.racks
    faults = 24.0 * racks * site.training.group.gpus * spec.gpu_faults_per_hour
    return f"; {faults:.2f} a day among the {racks} racks of the training block, each of which stops its job"


def _block(site: SiteConfig, block: TrainingConfig) -> str:
    """Return what the site trains with, in a line."""
    steady = steady_site(site)
    spec = steady.params.site
    factor = site_pue(site, 1.0)
    compute_w = steady.block_w * factor + steady.burst_w
    return (
        f"training block: {block.racks} racks of {block.rack_type.id}, {steady.block_w * factor / 1e6:,.3f} MW with cooling while its job runs, in "
        f"bursts of {compute_w / 1e6:,.3f} MW every {block.iteration_s:g} s; paused {factor * spec[SiteSpec.TRAIN_IDLE_W] / 1e6:,.3f} MW; a "
        f"checkpoint of {block.checkpoint_s:g} s every {block.checkpoint_period_s / 60.0:g} min, {block.restore_s:g} s to go on"
    )


def _cap(site: SiteConfig) -> str:
    """Return the site's cap, and what it makes itself, in words."""
    cap = f"cap {site.cap_w / 1e6:,.2f} MW" if site.cap_w > 0.0 or not site.generation else "no grid connection"
    if not site.generation:
        return cap
    firm = f", {site.firm_w / 1e6:,.2f} of it always" if site.firm_w > 0.0 else ""
    return f"{cap} and {(site.supply_w - site.cap_w) / 1e6:,.2f} MW on site{firm} (both are the cap below)"


def _what(binding: str) -> str:
    """Return what sets how much a site can serve: its cap, or its racks when one of their limits comes before it."""
    return "the cap" if binding == "cap" else "the racks"


def _contexts(site: SiteConfig) -> str:
    """Return what is to be said of contexts longer than models are published for."""
    if isinstance(site.max_context, int):
        return f"; contexts up to {site.max_context:,} tokens assumed to work"
    longer = [entry for entry in site.models if site.context_limit(entry) > entry.max_context]
    return "".join(
        f"; contexts of {entry.id} up to {site.context_limit(entry):,} tokens assumed to work" for entry in longer
    )


def _caches(site: SiteConfig, steady: SteadySite) -> list[str]:
    """Return how long the prefix caches keep what nobody asks for, and what is found, at mean demand."""
    params = steady.params
    rate = site.demand_rps * np.array([site.mix[cls.name] for cls in steady.classes])
    kept = steady_cache(site, params, rate)
    lines = ["", "KV kept, mean demand, all racks   HBM, s   host memory, s"]
    for pool, hbm_s, host_s in zip(site.pools, kept.hbm_s, kept.host_s, strict=True):
        if pool.cache is not None:
            lines.append(f"{pool.name:<30}{hbm_s:>10,.0f}{host_s:>17,.0f}")
    if site.kv_store is not None:
        lines.append(f"store{kept.store_s:>52,.0f}")
    lines.append(f"{'prompt tokens found':<30}{'HBM':>10}{'host memory':>17}{'store':>10}{'held':>10}{'all':>10}")
    for cls, found in zip(steady.classes, kept.found, strict=True):
        shares = f"{found[0]:>10.0%}{found[1]:>17.0%}{found[2]:>10.0%}{found[3]:>10.0%}{found.sum():>10.0%}"
        lines.append(f"{cls.name:<30}{shares}")
    return [*lines, "steady states below work every prompt off in full"]


def _alone(site: SiteConfig, name: str) -> str:
    """Return the last column of a class: how many requests/s the site serves under its cap when there are no others."""
    try:
        steady = steady_site(dataclasses.replace(site, mix={other: float(other == name) for other in site.mix}))
    except ConfigError:
        return f"{'none':>19}"
    return f"{steady.under_cap(site.supply_w).load_rps:>19,.0f}"


def plot_day(demand_rps: np.ndarray, cap_rps: float, height: int = 8, what: str = "the cap") -> list[str]:
    """Return a small plot of a day's demand and of what the site can serve, one line of text per row.

    Args:
        demand_rps: Demand at equal distances over the day, requests/s.
        cap_rps: What the site can serve under its cap, requests/s.
        height: Rows.
        what: What sets it.
    """
    columns = np.array([part.mean() for part in np.array_split(demand_rps, 48)])
    top = max(float(columns.max()), cap_rps) * 1.05
    level = np.rint(columns / top * height * 8).astype(int)
    line = min(height - 1, int(cap_rps / top * height))
    rows = []
    for row in range(height - 1, -1, -1):
        empty = "-" if row == line else " "
        cells = [" ▁▂▃▄▅▆▇█"[min(8, max(0, value - 8 * row))] for value in level]
        text = "".join(empty if cell == " " else cell for cell in cells)
        rows.append(f"{(row + 1) * top / height:>12,.0f} |{text}|" + (f" what {what} can serve" if row == line else ""))
    return ["mean demand of the day, requests/s", *rows, f"{'':>13}0h{'':>10}6h{'':>9}12h{'':>9}18h{'':>9}24h"]


_LEAST_WINDOWS = 10


def describe_trace(path: str, rate_scale: float) -> str:
    """Return the description of a trace and of what superposing shifted copies of it makes of its burstiness.

    Args:
        path: Path of the trace.
        rate_scale: Factor on its rate.

    Raises:
        ConfigError: When the trace or the factor cannot be used.
    """
    check_range("rate_scale", rate_scale, 1e-9, 1e7)
    trace = load_trace(path)
    # Dispersion is a variance over windows: a window must fit in more than a few times to say anything.
    windows_s = [w for w in (1.0, 10.0, 60.0) if _LEAST_WINDOWS * w <= trace.span_s]
    report = superposition_report(trace, rate_scale, np.random.default_rng(0), windows_s)
    lines = [
        f"{path}: {len(trace):,} requests in {trace.span_s:,.0f} s, {trace.mean_rate_rps:,.2f} requests/s; "
        f"mean prompt {trace.prompt_tokens.mean():,.0f} tokens, output {trace.output_tokens.mean():,.0f}",
        "",
        f"index of dispersion (1: Poisson){'as recorded':>14}{f'x {rate_scale:g}':>12}",
    ]
    lines += [f"{f'in windows of {w:g} s':<32}{before:>14.2f}{after:>12.2f}" for w, (before, after) in report.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, point: OperatingPoint, site: SiteConfig, binds: str | None) -> str:
    tpot = ", ".join(f"{1e3 * value:.1f}" for value in point.tpot_s if value > 0.0)
    return (
        f"{name:<34}{point.load_rps:>12,.0f}{point.facility_w / 1e6:>9,.3f}{point.facility_w / site.supply_w:>8.3f}"
        f"{point.tokens_per_joule:>10.3f}  {tpot}; {binds or 'none'}"
    )
