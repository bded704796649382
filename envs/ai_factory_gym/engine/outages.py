"""Which rack fails when, and which is taken out for maintenance: drawn before an episode begins, whatever the operator will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ai_factory_gym.engine.layout import BREAKDOWN, GPU_GROUP, LINK_DOMAIN, MAINTENANCE, RACK, Array, Fault
from ai_factory_gym.scenarios.faults import MaintenanceSpec
from ai_factory_gym.sites.reliability import ReliabilityConfig

DAY_S = 86400.0

_STREAM = 0xFA017
"""Key of the stream of faults below that of its purpose: other parts spawn from there too, and neither is to change the other."""


def child(stream: np.random.Generator, which: int = _STREAM) -> np.random.Generator:
    """Return the stream of faults, or of something else that has a key, below a purpose's, without counting as one of its children."""
    seed: Any = stream.bit_generator.seed_seq
    key = (*seed.spawn_key, which)
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=key, pool_size=seed.pool_size))


def draw_faults(
    rng: np.random.Generator,
    spec: ReliabilityConfig,
    rate_factor: float,
    maintenance: Sequence[MaintenanceSpec],
    pools: Sequence[int],
    racks: Sequence[int],
    gpus: Sequence[int],
    start_time_s: float,
    span_s: float,
) -> Array:
    """Draw the faults and maintenance of an episode; every rack works when it begins.

    Args:
        rng: Stream of its own; how many numbers are drawn depends on nothing the operator does.
        spec: The site's reliability.
        rate_factor: Factor on its rate; 0 is no fault.
        maintenance: The scenario's maintenance windows.
        pools: First pool of each family of racks: those that may serve in the same pools.
        racks: Racks of each family.
        gpus: GPUs of one of its racks.
        start_time_s: Local time at the start of the scored window, s.
        span_s: For how long, s.

    Returns:
        float64[events, Fault] in order of time.
    """
    # Faults and maintenance have a stream each, so that neither changes the other.
    # So have the parts of racks that faults take: what fails when, and for how long in its kind's mean, does not depend on them.
    of_faults, of_service, of_parts = rng.spawn(3)
    group_s = spec.gpu_group_repair_s or spec.repair_s
    link_s = spec.nvlink_domain_repair_s or spec.repair_s
    found = []
    for pool, count, each in zip(pools, racks, gpus, strict=True):
        mean = rate_factor * spec.gpu_faults_per_hour * each * count * span_s / 3600.0
        for _ in range(int(of_faults.poisson(mean))):
            event = _event(pool, BREAKDOWN)
            event[Fault.TIME_S] = of_faults.uniform(0.0, span_s)
            event[Fault.RACK] = of_faults.integers(count)
            event[Fault.TURN] = of_faults.uniform()
            hardware = of_faults.uniform() < spec.hardware_share
            lasts_s = of_faults.exponential(spec.repair_s)
            domain, event[Fault.PLACE] = of_parts.uniform(size=2)
            if domain < spec.gpu_group_share:
                event[Fault.DOMAIN] = GPU_GROUP
                lasts_s *= group_s / spec.repair_s
            elif domain < spec.gpu_group_share + spec.nvlink_domain_share:
                event[Fault.DOMAIN] = LINK_DOMAIN
                lasts_s *= link_s / spec.repair_s
            else:
                event[Fault.DOMAIN] = RACK
            event[Fault.LASTS_S] = lasts_s if hardware else 0.0
            found.append(event)
    for window in maintenance:
        hour = of_service.uniform(window.window_start_hour, window.window_end_hour)
        lasts_s = 3600.0 * window.duration_hours
        number = int(window.racks)
        homes = of_service.choice(len(pools), size=number, p=np.array(racks) / np.sum(racks))
        places = of_service.uniform(size=(number, 2))
        for day in range(-1, math.ceil((start_time_s + span_s) / DAY_S)):
            for turn in range(number):
                begin_s = day * DAY_S + 3600.0 * hour + turn * lasts_s - start_time_s
                if 0.0 <= begin_s < span_s:
                    event = _event(pools[homes[turn]], MAINTENANCE)
                    event[Fault.TIME_S] = begin_s
                    event[Fault.RACK] = math.floor(places[turn, 0] * racks[homes[turn]])
                    event[Fault.TURN] = places[turn, 1]
                    event[Fault.PLACE] = places[turn, 0] * racks[homes[turn]] % 1.0
                    event[Fault.LASTS_S] = lasts_s
                    found.append(event)
    if not found:
        return np.zeros((0, len(Fault)))
    table = np.array(found)
    return table[np.argsort(table[:, Fault.TIME_S], kind="stable")]


def _event(pool: int, kind: int) -> Array:
    """Return an event that has not happened."""
    event = np.zeros(len(Fault))
    event[Fault.POOL] = pool
    event[Fault.KIND] = kind
    event[Fault.BACK_S] = math.inf
    return event


__all__ = ["child", "draw_faults"]
