"""What prefix caches find at a steady load: the engine's equations (``engine.cache``) without an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ai_factory_gym.engine.cache import characteristic_s
from ai_factory_gym.engine.layout import (
    DECODE,
    PREFILL,
    Array,
    CacheSpec,
    Cell,
    Context,
    Params,
    PoolSpec,
    SessionSpec,
    SiteSpec,
)
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.sites import SiteConfig


@dataclass(frozen=True)
class SteadyCache:
    """What is kept and found with all racks awake and routing by capacity.

    Attributes:
        hbm_s: How long HBM keeps a context that nobody asks for, by pool, s; 0 where there is none.
        host_s: How long HBM and host memory do.
        store_s: How long the store does.
        found: Share of a class's prompt tokens found in HBM, host memory, the store, and held in decode pools, float64[classes, 4].
    """

    hbm_s: Array
    host_s: Array
    store_s: float
    found: Array


def _routed(site: SiteConfig, params: Params, phase: int) -> Array:
    """Return the share of each group's requests by pool, in proportion to capacity, float64[groups, pools]."""
    racks = np.array([pool.racks for pool in site.pools], dtype=np.float64)
    capacity = params.capacity[phase] * racks
    return np.asarray(capacity / capacity.sum(axis=1, keepdims=True))


def _held(most: Array, think_s: Array, room: Array) -> Array:
    """Return the KV tokens that decode pools hold where any context is dropped at the same rate, float64[classes, pools].

    Args:
        most: What would be held were there room for all, float64[classes, pools].
        think_s: Mean think times, float64[classes].
        room: Tokens there is room for, float64[pools].
    """
    low, high = np.zeros(most.shape[1]), np.full(most.shape[1], 1e9)
    for _ in range(200):
        drop_per_s = 0.5 * (low + high)
        over = (most / (1.0 + drop_per_s * think_s[:, None])).sum(axis=0) > room
        low, high = np.where(over, drop_per_s, low), np.where(over, high, drop_per_s)
    fits = most.sum(axis=0) <= room
    return np.asarray(np.where(fits, most, most / (1.0 + high * think_s[:, None])))


def steady_cache(site: SiteConfig, params: Params, rate: Array) -> SteadyCache:
    """Return what the caches of a site keep and find at steady demand.

    Args:
        site: A site with a prefix cache.
        params: Its parameters, without a trace.
        rate: Requests/s by class, float64[classes].
    """
    cells, session = params.cell, params.session
    classes, pools = len(params.cls), len(params.pool)
    racks = params.pool[:, PoolSpec.RACKS]
    contexts = np.zeros((classes, pools, len(Context)))
    held = np.zeros((classes, pools))
    asked = np.zeros((classes, pools))
    places = cells[:, Cell.CLASS].astype(int), cells[:, Cell.GROUP].astype(int)
    per_s = rate[places[0]] * cells[:, Cell.WEIGHT]
    into, out = _routed(site, params, PREFILL)[places[1]], _routed(site, params, DECODE)[places[1]]
    tokens = cells[:, Cell.PROMPT] + cells[:, Cell.OUTPUT]
    np.add.at(contexts[:, :, Context.PER_S], places[0], per_s[:, None] * into)
    np.add.at(contexts[:, :, Context.TOKENS_PER_S], places[0], (per_s * cells[:, Cell.PROMPT])[:, None] * into)
    np.add.at(held, places[0], (per_s * tokens)[:, None] * out)
    np.add.at(asked, places[0], per_s[:, None] * out)
    contexts[:, :, Context.SEEN] = params.pool[:, PoolSpec.PHASE] == PREFILL
    hbm_s, host_s = np.zeros(pools), np.zeros(pools)
    for pool in range(pools):
        hbm = racks[pool] * params.cache[pool, CacheSpec.HBM_BYTES]
        host = racks[pool] * params.cache[pool, CacheSpec.HOST_BYTES]
        hbm_s[pool] = characteristic_s(params, contexts, pool, hbm)
        host_s[pool] = characteristic_s(params, contexts, pool, hbm + host)
    store_s = characteristic_s(params, contexts, -1, params.site[SiteSpec.STORE_BYTES])
    holds = session[:, SessionSpec.HOLD] > 0.0
    most = held * (session[:, SessionSpec.FOLLOWING] * session[:, SessionSpec.THINK_S] * holds)[:, None]
    room = params.pool[:, PoolSpec.HOLD_SHARE] * racks * params.pool[:, PoolSpec.UNITS_PER_RACK]
    room = room * params.perf[:, DECODE_KV_CAPACITY_TOKENS] * (params.pool[:, PoolSpec.PHASE] == DECODE)
    kept = _held(most, session[:, SessionSpec.THINK_S], room)
    found = np.zeros((classes, 4))
    for cls in range(classes):
        think_s = session[cls, SessionSpec.THINK_S]
        if think_s <= 0.0 or rate[cls] <= 0.0:
            continue
        again = session[cls, SessionSpec.FOLLOWING] * session[cls, SessionSpec.REUSE_SHARE]
        # Routed as the share of tokens, found where the share of requests was.
        sent = contexts[cls, :, Context.TOKENS_PER_S] / contexts[cls, :, Context.TOKENS_PER_S].sum()
        share = contexts[cls, :, Context.PER_S] / contexts[cls, :, Context.PER_S].sum()
        if most[cls].sum() > 0.0:
            found[cls, 3] = (asked[cls] / asked[cls].sum()) @ kept[cls] / most[cls].sum()
        left = 1.0 - found[cls, 3]
        inside = [1.0 - np.exp(-times / think_s) for times in (hbm_s, host_s)]
        stored = 1.0 - math.exp(-store_s / think_s)
        found[cls, 0] = left * float(sent @ (share * inside[0]))
        found[cls, 1] = left * float(sent @ (share * (inside[1] - inside[0])))
        found[cls, 2] = left * float(sent @ (share * np.maximum(0.0, stored - inside[1]) + (1.0 - share) * stored))
        found[cls] *= again
    return SteadyCache(hbm_s, host_s, store_s, found)


__all__ = ["SteadyCache", "steady_cache"]
