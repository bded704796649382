"""Power made at a site: gas engines, gas turbines, a small reactor, or any unit in general form; and what the site may export.

Figures of the kinds are there to begin with, not to build on: each carries its status, and a site file overrides any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from ai_factory_gym.errors import ConfigError, check_flag, check_keys, check_range, check_text, unknown

GAS_USD_PER_GJ = 4.2
"""Natural gas, USD per GJ of lower heating value: 4 USD per million Btu of higher heating value (status assumed)."""

GAS_KG_PER_GJ = 56.1
"""Carbon dioxide from burning natural gas, kg per GJ of lower heating value (IPCC 2006 guidelines, default factor)."""

UPKEEP_USD_PER_MWH = 5.0
"""Maintenance of a gas unit per MWh (status assumed)."""

ENGINE_EFFICIENCY, TURBINE_EFFICIENCY = 0.46, 0.385
"""Plant efficiency, lower heating value: 0.45 to 0.48 for combustion engines and 0.37 to 0.40 for aeroderivative turbines (status vendor-stated:
Wartsila, "Combustion engine vs. aeroderivative gas turbine", who build engines)."""

MINUTE_S = 60.0
GJ_PER_MWH = 3.6


def _gas(efficiency: float) -> dict[str, float]:
    """Return what a MWh of a gas unit costs and emits: derived from the constants above."""
    burnt_gj = GJ_PER_MWH / efficiency
    return {
        "fuel_usd_per_mwh": round(burnt_gj * GAS_USD_PER_GJ + UPKEEP_USD_PER_MWH, 1),
        "carbon_g_per_kwh": round(burnt_gj * GAS_KG_PER_GJ),
    }


KINDS: Mapping[str, Mapping[str, float | bool]] = MappingProxyType(
    {
        # Start 2 to 5 min to full load, no minimum up or down time, 10 % minimum load of a plant of many (vendor-stated, as above); a single
        # engine that keeps its emission limits: 0.4 (assumed). Wear of a start: assumed small.
        "engine": {"min_load": 0.4, "start_s": 5 * MINUTE_S, "start_usd_per_mw": 5.0, **_gas(ENGINE_EFFICIENCY)},
        # Start 5 to 8 min, up 10 to 30 min, down 30 to 60 min, minimum load 40 % (vendor-stated, as above). Wear of a start: assumed.
        "turbine": {
            "min_load": 0.4,
            "start_s": 8 * MINUTE_S,
            "min_run_s": 30 * MINUTE_S,
            "min_down_s": 30 * MINUTE_S,
            "start_usd_per_mw": 25.0,
            **_gas(TURBINE_EFFICIENCY),
        },
        # Flat base load. 89 USD/MWh was the target price of the project of NuScale and UAMPS in 2023, which was then cancelled (status secondary
        # report). No carbon where it runs; its life cycle, like that of the grid, is not counted.
        "smr": {"min_load": 1.0, "must_run": True, "fuel_usd_per_mwh": 89.0, "carbon_g_per_kwh": 0.0},
    }
)
"""Defaults of the kinds; ``start_usd_per_mw`` times the power is their ``start_usd``."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """A unit that makes power at the site.

    A running unit gives anything from its minimum load to its power and follows the load within that at once (status assumed: engines
    change their whole power within a minute, vendor-stated). Its efficiency is that of full load (assumed).

    Attributes:
        name: Name in observations and info.
        power_w: Largest output, W.
        fuel_usd_per_mwh: What a MWh costs: fuel and upkeep, or the price of a contract.
        carbon_g_per_kwh: Emissions of a kWh.
        min_load: Least output while it runs, as a share of its power; 1 is flat.
        start_s: Time from the order to start until it gives power, s.
        min_run_s: Shortest time it runs once it gives power, s.
        min_down_s: Shortest time it stands still, s.
        start_usd: What a start costs.
        must_run: Whether it always runs. Only such units are firm: a site counts them where it has to keep its idle draw.
        kind: Kind whose figures stand where none were given; for people.
    """

    name: str
    power_w: float
    fuel_usd_per_mwh: float
    carbon_g_per_kwh: float
    min_load: float = 0.0
    start_s: float = 0.0
    min_run_s: float = 0.0
    min_down_s: float = 0.0
    start_usd: float = 0.0
    must_run: bool = False
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_text("generation: name", self.name)
        where = f"generation[{self.name}]"
        if "/" in self.name:
            raise ConfigError(f"generation: name: {self.name!r} is not allowed; must have no '/'.")
        check_text(f"{where}.kind", self.kind, empty=True)
        check_range(f"{where}.power_w", self.power_w, 1.0, 1e11, "W")
        check_range(f"{where}.fuel_usd_per_mwh", self.fuel_usd_per_mwh, 0.0, 1e4, "USD/MWh")
        check_range(f"{where}.carbon_g_per_kwh", self.carbon_g_per_kwh, 0.0, 5e3, "g/kWh")
        check_range(f"{where}.min_load", self.min_load, 0.0, 1.0)
        check_range(f"{where}.start_s", self.start_s, 0.0, 86400.0, "s")
        check_range(f"{where}.min_run_s", self.min_run_s, 0.0, 7 * 86400.0, "s")
        check_range(f"{where}.min_down_s", self.min_down_s, 0.0, 7 * 86400.0, "s")
        check_range(f"{where}.start_usd", self.start_usd, 0.0, 1e7, "USD")
        check_flag(f"{where}.must_run", self.must_run)

    @property
    def dispatchable(self) -> bool:
        """Whether there is anything to decide about it."""
        return not self.must_run or self.min_load < 1.0


def unit(kind: str, power_w: float, **given: Any) -> GenerationConfig:
    """Return a unit of a kind, with the figures of the kind where none are given.

    Args:
        kind: One of ``KINDS``.
        power_w: Its power, W.
        given: Other attributes of ``GenerationConfig``; the name is the kind's by default.

    Raises:
        ConfigError: On an unknown kind or a value out of range.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown("generation: kind", kind, list(KINDS))
    check_range("generation: power_w", power_w, 1.0, 1e11, "W")
    values: dict[str, Any] = {"name": kind, **KINDS[kind]}
    values["start_usd"] = values.pop("start_usd_per_mw", 0.0) * power_w / 1e6
    return GenerationConfig(**{**values, **given, "power_w": power_w, "kind": kind})


def generation_from_tables(where: str, entries: Any) -> tuple[GenerationConfig, ...]:
    """Build the units of a site from its tables ``[[generation]]``.

    Args:
        where: Name used in error messages.
        entries: A list of tables with a ``kind``, or in general form: name, power, cost and emissions of a MWh.

    Raises:
        ConfigError: On an unknown or missing key, an unknown kind, or a value out of range.
    """
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ConfigError(f"{where}: {entries!r} is not allowed; must be a list of at least one [[generation]] table.")
    names = [field.name for field in fields(GenerationConfig)]
    units = []
    for index, entry in enumerate(entries):
        here = f"{where}[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{here}: {entry!r} is not allowed; must be a table.")
        general = "kind" not in entry
        required = ("name", "power_w", "fuel_usd_per_mwh", "carbon_g_per_kwh") if general else ("kind", "power_w")
        check_keys(here, entry, required=required, optional=[name for name in names if name not in required])
        units.append(GenerationConfig(**entry) if general else unit(**entry))
    return tuple(units)


@dataclass(frozen=True, slots=True)
class GridConfig:
    """What the site may do with its grid connection beside drawing from it.

    Attributes:
        export_w: Most it may feed in of what its own units make, W; 0 is nothing: surplus of units that cannot go lower is then spilled.
        export_usd_per_mwh: What it is paid for that; who would have to pay for it spills instead.
    """

    export_w: float = 0.0
    export_usd_per_mwh: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("grid.export_w", self.export_w, 0.0, 1e11, "W")
        check_range("grid.export_usd_per_mwh", self.export_usd_per_mwh, 0.0, 1e5, "USD/MWh")
        if self.export_usd_per_mwh != 0.0 and self.export_w == 0.0:
            raise ConfigError(
                f"grid.export_usd_per_mwh: {self.export_usd_per_mwh!r} is not allowed without export_w, which says how much may be exported."
            )


__all__ = ["KINDS", "GenerationConfig", "GridConfig", "generation_from_tables", "unit"]
