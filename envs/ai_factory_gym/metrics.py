"""The ``info`` contract: every step the same keys, python scalars, names that carry their unit."""

from __future__ import annotations

from collections.abc import Sequence

from ai_factory_gym.engine.layout import Array, Class, ClassSpec, Params, SessionSpec, Site, SiteSpec, Tier
from ai_factory_gym.jit import inlined_kernel
from ai_factory_gym.reward import TERMS

JOULES_PER_MWH = 3.6e9
JOULES_PER_KWH = 3.6e6

Info = dict[str, float]

SITE_KEYS = (
    "time_s",
    "facility_power_w",
    "it_power_w",
    "cap_w",
    "pue",
    "clock_mean",
    "energy_j",
    "it_energy_j",
    "output_tokens",
    "good_tokens",
    "requests_arrived",
    "requests_met_slo",
    "requests_missed_slo",
    "requests_rejected",
    "requests_in_flight",
    "sla_attainment",
    "tokens_per_joule",
    "cap_violation_j",
    "cap_energy_j",
    "peak_power_w",
    "brake_s",
    "energy_cost_usd",
    "carbon_kg",
    "cost",
)
"""Keys of the site. Means over the step (power, PUE, clock), values at its end (time, cap, in flight), the step's ``cost``, and
totals since the start of the episode."""

VALUE_KEYS = ("value_tokens",)
"""Keys that are there, behind the others, where answers may be shortened: good tokens at the value of full effort, in total."""

CLASS_KEYS = ("arrived", "met", "missed", "attainment")
"""Keys of each class, behind ``class/<name>/``."""


CACHE_KEYS = ("prompt_tokens", "cached_tokens", "loaded_tokens", "held_tokens")
"""Keys of a site with a prefix cache: prompt tokens of the requests whose prefill began, those of them that needed no work because
their KV was there, and those that were loaded from host memory or the store (by requests that were then turned away, too); those of the
cached ones that a decode pool had held since the turn before."""

TASK_KEYS = ("tasks_completed", "agent_hours", "think_hours")
"""Keys of each class with sessions, behind ``class/<name>/``. Tasks are the expected number of those decided whose requests all met their
SLO (requests decided in a control step over requests per task, times recent attainment to the power of requests per task: misses are taken
as independent of each other). Agent hours are the time that the agent was busy: its answered requests were in the system. Think hours are
the rest of the time up to a task's next request: share of requests that are followed x (requests answered x mean time to the next, less the
time busy), at least 0. Arrivals do not wait for answers (open loop): slow answers shorten think hours, not the number of tasks."""


def info_keys(
    classes: Sequence[str], effort: bool = False, sessions: Sequence[str] = (), cached: bool = False
) -> tuple[str, ...]:
    """Return all keys in the order in which ``write_info`` writes them: site, classes, reward terms, and those of parts in use.

    Args:
        classes: Names of all classes.
        effort: Whether the operator may shorten answers.
        sessions: Names of those with sessions, in the same order.
        cached: Whether the site has a prefix cache.
    """
    of_classes = (f"class/{name}/{key}" for name in classes for key in CLASS_KEYS)
    of_tasks = (f"class/{name}/{key}" for name in sessions for key in TASK_KEYS)
    parts = (*(VALUE_KEYS if effort else ()), *(CACHE_KEYS if cached else ()))
    return (*SITE_KEYS, *of_classes, *(f"reward_terms/{name}" for name in TERMS), *parts, *of_tasks)


@inlined_kernel
def tokens_per_joule(good_tokens: float, energy_j: float) -> float:
    """Return good tokens per joule; 0.0 at zero energy."""
    return good_tokens / energy_j if energy_j > 0.0 else 0.0


@inlined_kernel
def attainment(met: float, missed: float) -> float:
    """Return the share of decided requests that met their SLO; 1.0 while none is decided."""
    decided = met + missed
    return met / decided if decided > 0.0 else 1.0


@inlined_kernel
def write_info(
    params: Params,
    site: Array,
    cls: Array,
    cache: Array,
    terms: Array,
    scored: bool,
    usd_per_mwh: float,
    g_per_kwh: float,
    out: Array,
) -> None:
    """Write the info of one row.

    Args:
        params: Site parameters (attainment targets).
        site: float64[Site] of the row.
        cls: float64[classes, Class] of the row.
        cache: float64[pools, Tier] of the row; no pools without a prefix cache.
        terms: This step's reward terms, float64[TERMS].
        scored: Whether the step began before the horizon; later ones cost nothing but what they find missed.
        usd_per_mwh: Price of electricity.
        g_per_kwh: Carbon intensity.
        out: Written: float64[keys], in the order of ``info_keys``.
    """
    classes = cls.shape[0]
    elapsed = max(site[Site.STEP_S], 1e-9)
    arrived = 0.0
    met = 0.0
    missed = 0.0
    rejected = 0.0
    excess = 0.0
    decided = 0.0
    at = len(SITE_KEYS)
    for index in range(classes):
        counters = cls[index]
        arrived += counters[Class.ARRIVED]
        met += counters[Class.MET]
        missed += counters[Class.MISSED]
        rejected += counters[Class.REJECTED]
        step_decided = counters[Class.STEP_MET] + counters[Class.STEP_MISSED]
        allowed = (1.0 - params.cls[index, ClassSpec.TARGET]) * step_decided
        decided += step_decided
        excess += max(0.0, counters[Class.STEP_MISSED] - allowed)
        out[at] = counters[Class.ARRIVED]
        out[at + 1] = counters[Class.MET]
        out[at + 2] = counters[Class.MISSED]
        out[at + 3] = attainment(counters[Class.MET], counters[Class.MISSED])
        at += len(CLASS_KEYS)
    for term in range(terms.shape[0]):
        out[at + term] = terms[term]
    at += terms.shape[0]
    if params.site[SiteSpec.EFFORT] > 0.0:
        out[at] = site[Site.VALUE_TOKENS]
        at += 1
    if cache.shape[0] > 0:
        for column in range(len(CACHE_KEYS)):
            out[at + column] = 0.0
        for pool in range(cache.shape[0]):
            out[at] += cache[pool, Tier.PROMPT]
            out[at + 1] += cache[pool, Tier.CACHED]
            out[at + 2] += cache[pool, Tier.LOADED]
            out[at + 3] += cache[pool, Tier.HELD]
        at += len(CACHE_KEYS)
    if params.session.shape[0] > 0:
        for index in range(classes):
            think_s = params.session[index, SessionSpec.THINK_S]
            if think_s > 0.0:
                counters = cls[index]
                out[at] = counters[Class.TASKS]
                out[at + 1] = counters[Class.BUSY_S] / 3600.0
                between_s = counters[Class.ANSWERED] * think_s - counters[Class.BUSY_S]
                out[at + 2] = max(0.0, params.session[index, SessionSpec.FOLLOWING] * between_s) / 3600.0
                at += 3
    energy_j = site[Site.ENERGY_J]
    out[0] = site[Site.TIME_S]
    out[1] = site[Site.STEP_ENERGY_J] / elapsed
    out[2] = site[Site.STEP_IT_ENERGY_J] / elapsed
    out[3] = site[Site.CAP_W]
    out[4] = out[1] / out[2] if out[2] > 0.0 else 1.0
    out[5] = site[Site.STEP_CLOCK_S] / elapsed
    out[6] = energy_j
    out[7] = site[Site.IT_ENERGY_J]
    out[8] = site[Site.OUTPUT_TOKENS]
    out[9] = site[Site.GOOD_TOKENS]
    out[10] = arrived
    out[11] = met
    out[12] = missed
    out[13] = rejected
    out[14] = arrived - met - missed
    out[15] = attainment(met, missed)
    out[16] = tokens_per_joule(site[Site.GOOD_TOKENS], energy_j)
    out[17] = site[Site.CAP_VIOLATION_J]
    out[18] = site[Site.CAP_ENERGY_J]
    out[19] = site[Site.PEAK_POWER_W]
    out[20] = site[Site.BRAKE_S]
    out[21] = energy_j / JOULES_PER_MWH * usd_per_mwh
    out[22] = energy_j / JOULES_PER_KWH * g_per_kwh / 1000.0
    # Constraint cost of the step, for safe RL: energy above the cap and time under the brake as shares of the step,
    # and misses beyond what the targets allow as a share of the requests decided.
    out[23] = excess / decided if decided > 0.0 else 0.0
    if scored:
        out[23] += (site[Site.STEP_CAP_VIOLATION_J] / site[Site.CAP_W] + site[Site.STEP_BRAKE_S]) / elapsed
