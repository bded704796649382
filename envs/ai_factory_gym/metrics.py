"""The ``info`` contract: every step the same keys, python scalars, names that carry their unit."""

from __future__ import annotations

from collections.abc import Mapping

from ai_factory_gym.engine.layout import Array, Class, Site
from ai_factory_gym.sites import SiteConfig

JOULES_PER_MWH = 3.6e9
JOULES_PER_KWH = 3.6e6

Info = dict[str, float]


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
) -> Info:
    """Build the info of one row.

    Args:
        site: float64[Site] of the row.
        cls: float64[classes, Class] of the row.
        names: Class names.
        config: The site (prices).
        targets: Attainment target per class.
        terms: This step's reward terms.

    Returns:
        Means over the step (power, PUE, clock), values at its end (cap, in flight), this step's ``cost`` and reward terms,
        and totals since the start of the episode.
    """
    numbers = site.tolist()
    elapsed = max(numbers[Site.STEP_S], 1e-9)
    energy_j = numbers[Site.ENERGY_J]
    it_w = numbers[Site.STEP_IT_ENERGY_J] / elapsed
    facility_w = numbers[Site.STEP_ENERGY_J] / elapsed
    table = cls.tolist()
    arrived = sum(row[Class.ARRIVED] for row in table)
    met = sum(row[Class.MET] for row in table)
    missed = sum(row[Class.MISSED] for row in table)
    excess = 0.0
    decided = 0.0
    for row, target in zip(table, targets, strict=True):
        decided += row[Class.STEP_MET] + row[Class.STEP_MISSED]
        excess += max(0.0, row[Class.STEP_MISSED] - (1.0 - target) * (row[Class.STEP_MET] + row[Class.STEP_MISSED]))
    violation = numbers[Site.STEP_CAP_VIOLATION_J] / (numbers[Site.CAP_W] * elapsed)
    info: Info = {
        "time_s": numbers[Site.TIME_S],
        "facility_power_w": facility_w,
        "it_power_w": it_w,
        "cap_w": numbers[Site.CAP_W],
        "pue": facility_w / it_w if it_w > 0.0 else 1.0,
        "clock_mean": numbers[Site.STEP_CLOCK_S] / elapsed,
        "energy_j": energy_j,
        "it_energy_j": numbers[Site.IT_ENERGY_J],
        "output_tokens": numbers[Site.OUTPUT_TOKENS],
        "good_tokens": numbers[Site.GOOD_TOKENS],
        "requests_arrived": arrived,
        "requests_met_slo": met,
        "requests_missed_slo": missed,
        "requests_rejected": sum(row[Class.REJECTED] for row in table),
        "requests_in_flight": arrived - met - missed,
        "sla_attainment": attainment(met, missed),
        "tokens_per_joule": tokens_per_joule(numbers[Site.GOOD_TOKENS], energy_j),
        "cap_violation_j": numbers[Site.CAP_VIOLATION_J],
        "cap_energy_j": numbers[Site.CAP_ENERGY_J],
        "peak_power_w": numbers[Site.PEAK_POWER_W],
        "brake_s": numbers[Site.BRAKE_S],
        "energy_cost_usd": energy_j / JOULES_PER_MWH * config.electricity_usd_per_mwh,
        "carbon_kg": energy_j / JOULES_PER_KWH * config.carbon_g_per_kwh / 1000.0,
        # Constraint cost of the step, for safe RL: energy above the cap and time under the brake as shares of the step,
        # and misses beyond what the targets allow as a share of the requests decided.
        "cost": violation + numbers[Site.STEP_BRAKE_S] / elapsed + (excess / decided if decided > 0.0 else 0.0),
    }
    for name, row in zip(names, table, strict=True):
        info[f"class/{name}/arrived"] = row[Class.ARRIVED]
        info[f"class/{name}/met"] = row[Class.MET]
        info[f"class/{name}/missed"] = row[Class.MISSED]
        info[f"class/{name}/attainment"] = attainment(row[Class.MET], row[Class.MISSED])
    for name, value in terms.items():
        info[f"reward_terms/{name}"] = value
    return info
