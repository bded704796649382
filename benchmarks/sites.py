"""Sites that differ from Edge in one thing: size, number of pools, classes. All are loaded as Edge is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from ai_factory_gym.describe import figures
from ai_factory_gym.params import nameplate_it_w
from ai_factory_gym.sites import PoolConfig, SiteConfig, load_site

SMALL_RPS = 1000.0
"""Mean demand of ``small_site``, requests/s."""


@functools.cache
def edge_figures() -> Mapping[str, float]:
    """Return the figures Edge is sized by; a second to work out."""
    return figures(load_site("edge"))


def scaled_site(factor: int, site: SiteConfig | None = None) -> SiteConfig:
    """Return a site (Edge) ``factor`` times as large: racks, cap and demand."""
    base = load_site("edge") if site is None else site
    pools = tuple(dataclasses.replace(pool, racks=pool.racks * factor) for pool in base.pools)
    return dataclasses.replace(base, pools=pools, cap_w=base.cap_w * factor, demand_rps=base.demand_rps * factor)


def sized_like_edge(site: SiteConfig) -> SiteConfig:
    """Return a site with the cap and the demand at which it is as short of power, and as busy, as Edge.

    Those are the two figures of ``python -m ai_factory_gym describe``: the unthrottled draw at the load that saturates the
    SLA over the cap, and the mean demand over what the cap can serve.
    """
    edge = edge_figures()
    found = figures(site)
    cap_w = site.cap_w * found["unthrottled_draw_over_cap"] / edge["unthrottled_draw_over_cap"]
    capped = dataclasses.replace(site, cap_w=cap_w)
    return dataclasses.replace(capped, demand_rps=edge["mean_load_over_cap_rps"] * figures(capped)["cap_rps"])


def two_pool_site(racks: int) -> SiteConfig:
    """Return a site with one kind of rack per phase, ``racks`` racks each: the first and the last pool of Edge."""
    edge = load_site("edge")
    pools = tuple(dataclasses.replace(pool, racks=racks) for pool in (edge.pools[0], edge.pools[-1]))
    factor = 2.0 * racks / sum(pool.racks for pool in edge.pools)
    site = dataclasses.replace(
        edge, pools=pools, cap_w=edge.cap_w * factor, demand_rps=edge.demand_rps * factor, name="Two pools"
    )
    return sized_like_edge(site)


def _split(pool: PoolConfig, parts: int) -> list[PoolConfig]:
    """Return a pool's racks as several pools, as equal as they can be; their rack types differ in name alone."""
    kind = pool.rack_type
    split = []
    for part in range(parts):
        racks = pool.racks * (part + 1) // parts - pool.racks * part // parts
        named = dataclasses.replace(kind, id=f"{kind.id}_{part + 1}")
        split.append(dataclasses.replace(pool, rack=named, racks=racks))
    return split


def split_pools(site: SiteConfig, parts: int) -> SiteConfig:
    """Return a site of the same racks in ``parts`` times as many pools."""
    pools = tuple(part for pool in site.pools for part in _split(pool, parts))
    return dataclasses.replace(site, pools=pools)


def with_classes(names: Sequence[str]) -> SiteConfig:
    """Return Edge serving only some of its classes, in their proportions."""
    edge = load_site("edge")
    total = sum(edge.mix[name] for name in names)
    return sized_like_edge(dataclasses.replace(edge, mix={name: edge.mix[name] / total for name in names}))


def small_site() -> SiteConfig:
    """Return a site of 1,000 requests/s: one rack of each of Edge's pools, the cap in proportion to the nameplate."""
    edge = load_site("edge")
    pools = tuple(dataclasses.replace(pool, racks=1) for pool in edge.pools)
    site = dataclasses.replace(edge, pools=pools, demand_rps=SMALL_RPS, name="Small")
    return dataclasses.replace(site, cap_w=edge.cap_w * nameplate_it_w(site) / nameplate_it_w(edge))
