"""Scenarios: what a day brings. One TOML file each beside this module; users write their own in the same form."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ai_factory_gym.errors import ConfigError, check_keys, check_range, unknown
from ai_factory_gym.grid.cap import MAX_CAP_EVENTS, CapEventSpec, CapSchedule, draw_schedule
from ai_factory_gym.grid.coincident import MAX_WINDOWS, PeakWindowSpec
from ai_factory_gym.grid.series import MAX_EVENTS, SeriesEventSpec
from ai_factory_gym.scenarios.faults import MAX_MAINTENANCE, NO_FAULTS, FaultSpec, MaintenanceSpec
from ai_factory_gym.scenarios.mismatch import NO_SPREAD, MismatchSpec
from ai_factory_gym.scenarios.training import MAX_JOBS, NO_BLOCK, TrainingBlockSpec, TrainingJobSpec
from ai_factory_gym.workload.demand import (
    MAX_BURSTS,
    MAX_SHIFTS,
    Burst,
    BurstSpec,
    Shift,
    ShiftSpec,
    draw_bursts,
    draw_shifts,
)

SCENARIO_DIR = Path(__file__).parent

_Spec = TypeVar(
    "_Spec", BurstSpec, CapEventSpec, ShiftSpec, SeriesEventSpec, PeakWindowSpec, MaintenanceSpec, TrainingJobSpec
)

_EVENTS = (
    "bursts",
    "cap_events",
    "shifts",
    "price_events",
    "temperature_events",
    "peak_windows",
    "maintenance",
    "training_jobs",
)

NAMES = {"classes", "models"}
"""Keys of shifts that hold names; one of them has to be given."""

PLUS = "+"
"""Between the names of scenarios that are to come together."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What varies in an episode besides the site and its demand; nothing here is drawn yet.

    Attributes:
        name: Identifier, the file's stem.
        description: One sentence.
        daily: Whether demand follows each class's daily curve.
        overdispersion: Factor on each class's minute-scale overdispersion; 0 makes arrivals Poisson.
        deferrable: Whether classes marked deferrable may be held back; when false they are served like the others.
        bursts: Demand bursts, once a day each.
        cap_events: Curtailments, once a day each.
        shifts: Changes of the mix, once a day each.
        mismatch: How far the site may be from its catalogue.
        price_events: Factors on the price of electricity, once a day each; where the site's price is a constant, it is synthetic then.
        temperature_events: Kelvin on top of the outdoor temperature, likewise.
        peak_windows: Hours in which a coincident peak of the grid falls, once a day each; a site that does not pay for it does not notice.
        faults: How much oftener racks fail than at the site.
        maintenance: Racks that are taken out for some hours, once a day.
        training_block: Training block of a site that has none of its own.
        training_jobs: Jobs that come to a training block, once a day each; without any there is one all the time.
    """

    name: str
    description: str = ""
    daily: bool = True
    overdispersion: float = 1.0
    deferrable: bool = True
    bursts: tuple[BurstSpec, ...] = ()
    cap_events: tuple[CapEventSpec, ...] = ()
    shifts: tuple[ShiftSpec, ...] = ()
    mismatch: MismatchSpec = NO_SPREAD
    price_events: tuple[SeriesEventSpec, ...] = ()
    temperature_events: tuple[SeriesEventSpec, ...] = ()
    peak_windows: tuple[PeakWindowSpec, ...] = ()
    faults: FaultSpec = NO_FAULTS
    maintenance: tuple[MaintenanceSpec, ...] = ()
    training_block: TrainingBlockSpec = NO_BLOCK
    training_jobs: tuple[TrainingJobSpec, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range(f"scenario {self.name!r}: overdispersion", self.overdispersion, 0.0, 10.0)
        for key, items, most in (
            ("bursts", self.bursts, MAX_BURSTS),
            ("cap_events", self.cap_events, MAX_CAP_EVENTS),
            ("shifts", self.shifts, MAX_SHIFTS),
            ("price_events", self.price_events, MAX_EVENTS),
            ("temperature_events", self.temperature_events, MAX_EVENTS),
            ("peak_windows", self.peak_windows, MAX_WINDOWS),
            ("maintenance", self.maintenance, MAX_MAINTENANCE),
            ("training_jobs", self.training_jobs, MAX_JOBS),
        ):
            if len(items) > most:
                raise ConfigError(f"scenario {self.name!r}: {key}: {len(items)} given; at most {most} are allowed.")

    @property
    def lowest_cap_fraction(self) -> float:
        """Lowest cap of the day over the base cap."""
        return 1.0 - max((event.deepest for event in self.cap_events), default=0.0)

    def draw_bursts(self, rng: np.random.Generator) -> tuple[Burst, ...]:
        """Draw the bursts of an episode; see ``workload.demand.draw_bursts``."""
        return draw_bursts(rng, self.bursts)

    def draw_shifts(self, rng: np.random.Generator) -> tuple[Shift, ...]:
        """Draw the shifts of an episode; see ``workload.demand.draw_shifts``."""
        return draw_shifts(rng, self.shifts)

    def __add__(self, other: Scenario) -> Scenario:
        """Return a day that brings what both bring.

        Events of both happen (equal ones once; where curtailments overlap the deeper one holds), the daily curve and deferral
        are there if either has them, and the larger overdispersion, mismatch, rate of faults and training block apply.
        """
        return Scenario(
            name=f"{self.name}{PLUS}{other.name}",
            description="; ".join(text for text in (self.description, other.description) if text),
            daily=self.daily or other.daily,
            overdispersion=max(self.overdispersion, other.overdispersion),
            deferrable=self.deferrable or other.deferrable,
            bursts=tuple(dict.fromkeys(self.bursts + other.bursts)),
            cap_events=tuple(dict.fromkeys(self.cap_events + other.cap_events)),
            shifts=tuple(dict.fromkeys(self.shifts + other.shifts)),
            mismatch=self.mismatch | other.mismatch,
            price_events=tuple(dict.fromkeys(self.price_events + other.price_events)),
            temperature_events=tuple(dict.fromkeys(self.temperature_events + other.temperature_events)),
            peak_windows=tuple(dict.fromkeys(self.peak_windows + other.peak_windows)),
            faults=self.faults | other.faults,
            maintenance=tuple(dict.fromkeys(self.maintenance + other.maintenance)),
            training_block=self.training_block | other.training_block,
            training_jobs=tuple(dict.fromkeys(self.training_jobs + other.training_jobs)),
        )

    def draw_cap(
        self, rng: np.random.Generator, base_cap_w: float, start_time_s: float, horizon_s: float
    ) -> CapSchedule:
        """Draw the cap of an episode; see ``grid.cap.draw_schedule``."""
        return draw_schedule(rng, self.cap_events, base_cap_w, start_time_s, horizon_s)


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a list of names.")
    return tuple(value)


def _specs(where: str, raw: Any, kind: type[_Spec]) -> tuple[_Spec, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise ConfigError(f"{where}: {raw!r} is not allowed; must be an array of tables ([[...]]).")
    fields = [field.name for field in dataclasses.fields(kind)]
    optional = NAMES & set(fields)
    optional |= {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    required = [name for name in fields if name not in optional]
    built = []
    for i, table in enumerate(raw):
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}[{i}]: {table!r} is not allowed; must be a table.")
        check_keys(f"{where}[{i}]", table, required=required, optional=optional)
        try:
            values: dict[str, Any] = {key: () for key in fields if key in NAMES} | {
                key: _names(key, value) if key in NAMES else check_range(key, value, -math.inf, math.inf)
                for key, value in table.items()
            }
            built.append(kind(**values))
        except ConfigError as error:
            raise ConfigError(f"{where}[{i}].{error}") from None
    return tuple(built)


def _mismatch(where: str, raw: Any) -> MismatchSpec:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: mismatch: {raw!r} is not allowed; must be a table.")
    check_keys(
        f"{where}: mismatch", raw, required=(), optional=[field.name for field in dataclasses.fields(MismatchSpec)]
    )
    try:
        return MismatchSpec(**{key: check_range(f"mismatch.{key}", value, 0.0, math.inf) for key, value in raw.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _faults(where: str, raw: Any) -> FaultSpec:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: faults: {raw!r} is not allowed; must be a table.")
    check_keys(f"{where}: faults", raw, required=(), optional=[field.name for field in dataclasses.fields(FaultSpec)])
    try:
        return FaultSpec(**raw)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _training_block(where: str, raw: Any) -> TrainingBlockSpec:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: training_block: {raw!r} is not allowed; must be a table.")
    names = [field.name for field in dataclasses.fields(TrainingBlockSpec)]
    check_keys(f"{where}: training_block", raw, required=(), optional=names)
    try:
        return TrainingBlockSpec(**raw)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _read(path: Path) -> Scenario:
    where = f"scenario {str(path)!r}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: is not valid TOML ({error}).") from None
    keys = ("description", "daily", "overdispersion", "deferrable")
    check_keys(where, table, required=keys, optional=("mismatch", "faults", "training_block", *_EVENTS))
    for key in ("daily", "deferrable"):
        if not isinstance(table[key], bool):
            raise ConfigError(f"{where}: {key}: {table[key]!r} is not allowed; must be true or false.")
    return Scenario(
        name=path.stem,
        description=str(table["description"]),
        daily=table["daily"],
        overdispersion=check_range(f"{where}: overdispersion", table["overdispersion"], 0.0, 10.0),
        deferrable=table["deferrable"],
        bursts=_specs(f"{where}: bursts", table.get("bursts", []), BurstSpec),
        cap_events=_specs(f"{where}: cap_events", table.get("cap_events", []), CapEventSpec),
        shifts=_specs(f"{where}: shifts", table.get("shifts", []), ShiftSpec),
        mismatch=_mismatch(where, table.get("mismatch", {})),
        price_events=_specs(f"{where}: price_events", table.get("price_events", []), SeriesEventSpec),
        temperature_events=_specs(f"{where}: temperature_events", table.get("temperature_events", []), SeriesEventSpec),
        peak_windows=_specs(f"{where}: peak_windows", table.get("peak_windows", []), PeakWindowSpec),
        faults=_faults(where, table.get("faults", {})),
        maintenance=_specs(f"{where}: maintenance", table.get("maintenance", []), MaintenanceSpec),
        training_block=_training_block(where, table.get("training_block", {})),
        training_jobs=_specs(f"{where}: training_jobs", table.get("training_jobs", []), TrainingJobSpec),
    )


@functools.lru_cache(maxsize=32)
def _shipped(name: str) -> Scenario:
    return _read(SCENARIO_DIR / f"{name}.toml")


def scenario_names() -> tuple[str, ...]:
    """Return the names of the shipped scenarios, sorted."""
    return tuple(sorted(path.stem for path in SCENARIO_DIR.glob("*.toml")))


def scenario(name: str | Path | Scenario) -> Scenario:
    """Return a scenario.

    Args:
        name: Name of a shipped scenario, path of a TOML file (a ``Path``, or a string that ends in ``.toml``), several of either
            joined by ``+``, or a ``Scenario``, which is returned as it is.

    Raises:
        ConfigError: On an unknown name (with the nearest one), a file that cannot be read, unknown or missing keys, or
            values out of range.
    """
    if isinstance(name, Scenario):
        return name
    if isinstance(name, str) and PLUS in name:
        # A path may hold a plus.
        if not (name.endswith(".toml") and Path(name).exists()):
            return functools.reduce(operator.add, (scenario(part.strip()) for part in name.split(PLUS)))
    if isinstance(name, Path) or (isinstance(name, str) and name.endswith(".toml")):
        return _read(Path(name))
    names = scenario_names()
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{unknown('scenario', name, names)} A scenario of your own is the path of a TOML file.")
    return _shipped(name)


__all__ = ["Scenario", "scenario", "scenario_names"]
