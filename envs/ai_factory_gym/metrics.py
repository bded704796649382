"""The ``info`` contract: every step the same keys, python scalars, names that carry their unit."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from operator import itemgetter

from ai_factory_gym.engine.layout import Array, Class, Site
from ai_factory_gym.sites import SiteConfig

JOULES_PER_MWH = 3.6e9
JOULES_PER_KWH = 3.6e6

Info = dict[str, float]

# Built every step: reading many columns at once costs a tenth of naming each where it is used.
_SITE = itemgetter(
    Site.STEP_S,
    Site.STEP_ENERGY_J,
    Site.STEP_IT_ENERGY_J,
    Site.STEP_CAP_VIOLATION_J,
    Site.STEP_BRAKE_S,
    Site.STEP_CLOCK_S,
    Site.TIME_S,
    Site.CAP_W,
    Site.ENERGY_J,
    Site.IT_ENERGY_J,
    Site.OUTPUT_TOKENS,
    Site.GOOD_TOKENS,
    Site.CAP_VIOLATION_J,
    Site.CAP_ENERGY_J,
    Site.PEAK_POWER_W,
    Site.BRAKE_S,
)
_TOTALS = itemgetter(Class.ARRIVED, Class.MET, Class.MISSED, Class.REJECTED)
_CLASS = itemgetter(Class.ARRIVED, Class.MET, Class.MISSED, Class.STEP_MET, Class.STEP_MISSED)


@functools.lru_cache(maxsize=64)
def _class_keys(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the keys of each class."""
    return tuple(tuple(f"class/{name}/{key}" for key in ("arrived", "met", "missed", "attainment")) for name in names)


def tokens_per_joule(good_tokens: float, energy_j: float) -> float:
    """Return good tokens per joule; 0.0 at zero energy."""
    return good_tokens / energy_j if energy_j > 0.0 else 0.0


def attainment(met: float, missed: float) -> float:
    """Return the share of decided requests that met their SLO; 1.0 while none is decided."""
    decided = met + missed
    return met / decided if decided > 0.0 else 1.0


def build_info(
    site: Array,
    cls: Array,
    names: tuple[str, ...],
    config: SiteConfig,
    targets: tuple[float, ...],
    terms: Mapping[str, float],
    scored: bool,
) -> Info:
    """Build the info of one row.

    Args:
        site: float64[Site] of the row.
        cls: float64[classes, Class] of the row.
        names: Class names.
        config: The site (prices).
        targets: Attainment target per class.
        terms: This step's reward terms.
        scored: Whether the step began before the horizon; later ones cost nothing but what they find missed.

    Returns:
        Means over the step (power, PUE, clock), values at its end (cap, in flight), this step's ``cost`` and reward terms,
        and totals since the start of the episode.
    """
    numbers = site.tolist()
    (
        step_s,
        step_energy_j,
        step_it_energy_j,
        step_violation_j,
        step_brake_s,
        step_clock_s,
        time_s,
        cap_w,
        energy_j,
        it_energy_j,
        output_tokens,
        good_tokens,
        cap_violation_j,
        cap_energy_j,
        peak_power_w,
        brake_s,
    ) = _SITE(numbers)
    elapsed = max(step_s, 1e-9)
    it_w = step_it_energy_j / elapsed
    facility_w = step_energy_j / elapsed
    arrived, met, missed, rejected = _TOTALS(cls.sum(axis=0).tolist())
    rows = [_CLASS(row) for row in cls.tolist()]
    excess = 0.0
    decided = 0.0
    for (_, _, _, step_met, step_missed), target in zip(rows, targets, strict=True):
        decided += step_met + step_missed
        excess += max(0.0, step_missed - (1.0 - target) * (step_met + step_missed))
    violation = step_violation_j / (cap_w * elapsed)
    info: Info = {
        "time_s": time_s,
        "facility_power_w": facility_w,
        "it_power_w": it_w,
        "cap_w": cap_w,
        "pue": facility_w / it_w if it_w > 0.0 else 1.0,
        "clock_mean": step_clock_s / elapsed,
        "energy_j": energy_j,
        "it_energy_j": it_energy_j,
        "output_tokens": output_tokens,
        "good_tokens": good_tokens,
        "requests_arrived": arrived,
        "requests_met_slo": met,
        "requests_missed_slo": missed,
        "requests_rejected": rejected,
        "requests_in_flight": arrived - met - missed,
        "sla_attainment": attainment(met, missed),
        "tokens_per_joule": tokens_per_joule(good_tokens, energy_j),
        "cap_violation_j": cap_violation_j,
        "cap_energy_j": cap_energy_j,
        "peak_power_w": peak_power_w,
        "brake_s": brake_s,
        "energy_cost_usd": energy_j / JOULES_PER_MWH * config.electricity_usd_per_mwh,
        "carbon_kg": energy_j / JOULES_PER_KWH * config.carbon_g_per_kwh / 1000.0,
        # Constraint cost of the step, for safe RL: energy above the cap and time under the brake as shares of the step,
        # and misses beyond what the targets allow as a share of the requests decided.
        "cost": scored * (violation + step_brake_s / elapsed) + (excess / decided if decided > 0.0 else 0.0),
    }
    for keys, (arrived, met, missed, _, _) in zip(_class_keys(names), rows, strict=True):
        info.update(zip(keys, (arrived, met, missed, attainment(met, missed)), strict=True))
    for name, value in terms.items():
        info[f"reward_terms/{name}"] = value
    return info
