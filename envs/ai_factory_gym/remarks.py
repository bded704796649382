"""Settings of a site that can be simulated and are hardly meant: limits that never bind, parts too small to matter, tables that price nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ai_factory_gym.engine.layout import DECODE, Params, PoolSpec
from ai_factory_gym.params import largest_rack_w
from ai_factory_gym.physics.performance import DECODE_TOKENS_PER_ITERATION, decode_iteration_s
from ai_factory_gym.sites import SiteConfig
from ai_factory_gym.sites.money import Tariff
from ai_factory_gym.workload.classes import RequestClass

LOOSE_TPOT_S = 1.0
"""TPOT limit from which on it is taken for a slip of the unit, s: nobody reads a token a second (status: design choice; MLPerf's loosest limit for
language models is 0.2 s)."""

SHORT_PATIENCE_S = 1.0
"""Patience below which requests are turned away by any queue at all, s (status: design choice)."""

SHORT_BATTERY_S = 60.0
"""Time at full power below which a battery is gone within a control step, s (status: design choice: the default control step)."""

LARGEST_HOST_GB = 54_000.0
"""Host memory of the largest rack in the catalogue, GB: 36 CPUs of 1.5 TB in a Vera Rubin rack (status: vendor-stated, CES 2026; a GB300 NVL72 rack
has 17 TB)."""

LOW_USD_PER_MWH, LOW_G_PER_KWH = 2.0, 2.0
"""Mean price and carbon intensity below which they are taken for a slip of the unit (status: design choice)."""

SHORTENED = 0.8
"""Share of a class's mean prompt or answer below which what is left by ``max_context`` is another class (status: design choice)."""


def _fastest_token_s(site: SiteConfig, params: Params, cls: RequestClass) -> float:
    """Return the time per output token of a lone request of a class on the fastest decode pool of its model, s."""
    model = site.model_index(site.class_model(cls.name))
    found = math.inf
    for perf, spec in zip(params.perf, params.pool, strict=True):
        if spec[PoolSpec.PHASE] == DECODE and spec[PoolSpec.MODEL] == model:
            iteration_s = decode_iteration_s(perf, 1.0, cls.prompt.mean(), 1.0)[0]
            found = min(found, float(iteration_s / perf[DECODE_TOKENS_PER_ITERATION]))
    return found


def _of_classes(site: SiteConfig, classes: tuple[RequestClass, ...], params: Params) -> Iterator[str]:
    for cls in classes:
        asked = site.known_classes[cls.name]
        for what, before, after in (
            ("prompts", asked.prompt.mean(), cls.prompt.mean()),
            ("answers", asked.output.mean(), cls.output.mean()),
        ):
            if after < SHORTENED * before:
                limit = site.context_limit(site.class_model(cls.name))
                yield (
                    f"max_context: {limit:,} tokens cut the {what} of {cls.name} from {before:,.0f} to {after:,.0f} tokens on average: "
                    "raise it, or give the site a class with shorter ones."
                )
        if cls.deferrable:
            continue
        if cls.tpot_s > LOOSE_TPOT_S:
            yield (
                f"mix.{cls.name}: {cls.tpot_s:g} s a token are allowed, and a lone request takes {_fastest_token_s(site, params, cls):.4f} s: "
                "the limit binds nothing, batches grow until memory or max_batch ends them; tpot_s is in seconds."
            )
        if cls.patience_s < SHORT_PATIENCE_S:
            yield (
                f"mix.{cls.name}: patience_s is {cls.patience_s:g}: a request that would wait longer is turned away on arrival, and "
                f"the first token of a mean prompt is allowed {cls.ttft_limit_s(cls.prompt.mean()):.2f} s; any queue at all will cost requests."
            )


def _of_routing(site: SiteConfig, classes: tuple[RequestClass, ...]) -> Iterator[str]:
    if not site.group_edges:
        return
    longest, shortest = max(cls.prompt.maximum for cls in classes), min(cls.prompt.minimum for cls in classes)
    for edge in site.group_edges:
        if edge >= longest or edge < shortest:
            yield (
                f"group_edges: {edge:g} separates nothing: prompts have {shortest:,.0f} to {longest:,.0f} tokens; the routing levers "
                "of the group beyond it do nothing."
            )


def _of_racks(site: SiteConfig, params: Params) -> Iterator[str]:
    free = params.pool.copy()
    free[:, PoolSpec.RACK_LIMIT_W] = math.inf
    for index, (pool, most_w) in enumerate(zip(site.pools, largest_rack_w(params.power, free), strict=True)):
        if index in site.rack_pools and pool.rack_limit_w is not None and pool.rack_limit_w >= most_w:
            yield (
                f"pools[{pool.name}].rack_limit_w: {pool.rack_limit_w / 1e3:,.1f} kW is not below what the rack can draw "
                f"({most_w / 1e3:,.1f} kW): it never binds."
            )
        if pool.cache is not None and pool.cache.host_gb > LARGEST_HOST_GB:
            yield (
                f"pools[{pool.name}].cache.host_gb: {pool.cache.host_gb:,.0f} GB a rack; the host memory of a Vera Rubin rack is "
                f"{LARGEST_HOST_GB:,.0f} GB, that of a GB300 rack 17,000 GB."
            )
    if site.reliability is not None and site.reliability.gpu_group_share > 0.0:
        whole = [
            pool.name
            for pool, spec in zip(site.pools, params.pool, strict=True)
            if spec[PoolSpec.GROUP_REPLICAS] >= pool.replicas_per_rack
        ]
        if whole:
            yield (
                f"reliability.gpu_group_share: a rack of {', '.join(whole)} has no replica that a fault of {site.reliability.gpus_per_group} GPUs "
                "leaves: there such faults take the rack."
            )


def _of_units(site: SiteConfig) -> Iterator[str]:
    usd, grams = site.usual("electricity"), site.usual("carbon")
    if 0.0 < usd < LOW_USD_PER_MWH:
        yield f"electricity_usd_per_mwh: {usd:g} USD/MWh in the mean is {usd / 10.0:.3g} cents a kWh; prices are per MWh here."
    if 0.0 < grams < LOW_G_PER_KWH:
        yield f"carbon_g_per_kwh: {grams:g} g/kWh in the mean; no grid has so little (France: 25); grams, not kilograms, per kWh."


def _of_parts(site: SiteConfig) -> Iterator[str]:
    battery, money = site.battery, site.money
    if battery is not None:
        lasts_s = 3600.0 * battery.energy_wh * math.sqrt(battery.round_trip_efficiency) / battery.power_w
        if lasts_s < SHORT_BATTERY_S:
            yield (
                f"battery: at full power it lasts {lasts_s:.1f} s ({battery.energy_wh:,.0f} Wh at {battery.power_w / 1e3:,.0f} kW): "
                "less than a control step; energy_wh is in watt-hours."
            )
    if money is not None:
        tariffs = [money.tariff, *(tariff for _, tariff in money.classes)]
        charges = (
            money.demand_usd_per_kw_month,
            money.coincident_usd_per_kw_year,
            *(usd for _, usd in money.rack_usd_per_hour),
        )
        if all(tariff == Tariff() for tariff in tariffs) and not any(charges):
            yield (
                "money: the table prices nothing: revenue, penalties, charges and capital will be 0, and the cost per token that of energy "
                "alone; give it token prices, a demand charge or rack_usd_per_hour."
            )
        elif not any(tariff.input_usd_per_mtok + tariff.output_usd_per_mtok for tariff in tariffs):
            yield (
                "money: no token has a price: revenue and penalties will be 0, budgets are never spent, and reward='profit' is costs alone; give "
                "it input_usd_per_mtok or output_usd_per_mtok."
            )


def settings(site: SiteConfig, classes: tuple[RequestClass, ...], params: Params) -> Iterator[str]:
    """Yield what is unlikely to be meant in a site's settings.

    Args:
        site: The site.
        classes: Its classes, as ``served_classes`` gives them.
        params: Its parameters.
    """
    yield from _of_classes(site, classes, params)
    yield from _of_routing(site, classes)
    yield from _of_racks(site, params)
    yield from _of_units(site)
    yield from _of_parts(site)


__all__ = ["settings"]
