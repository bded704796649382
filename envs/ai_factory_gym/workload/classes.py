"""Request classes: what kinds of request there are, how long they are and how soon each must be answered.

``classes.toml`` beside this file holds the shipped classes; every number in it carries unit, status and source. A
user's file has the same form and may give bare numbers, which are then taken in the documented unit.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ai_factory_gym.catalogue.loader import STATUSES as CATALOGUE_STATUSES
from ai_factory_gym.errors import ConfigError, check_flag, check_keys, check_range, unknown
from ai_factory_gym.workload.demand import DemandProfile
from ai_factory_gym.workload.lengths import LengthDistribution

CLASSES_PATH = Path(__file__).with_name("classes.toml")
STATUSES = (*CATALOGUE_STATUSES, "benchmark", "user")
"""The catalogue's, and ``benchmark`` (a limit a benchmark sets), ``user`` (a bare number in a user's file)."""

# Unit of every number of a class table; a file that states another unit is refused, not converted.
_LENGTH_UNITS = {"median": "token", "sigma": "1", "minimum": "token", "maximum": "token"}
_SLO_UNITS = {
    "ttft_a": "s",
    "ttft_b": "s/token",
    "ttft_c": "s/token^2",
    "tpot": "s",
    "patience": "s",
    "deadline": "s",
    "attainment_target": "1",
}
_DEMAND_UNITS = {
    "peak_hour": "h",
    "peak_to_trough": "1",
    "overdispersion_sigma": "1",
    "overdispersion_tau": "s",
    "burst_exposure": "1",
}
_CLASS_UNITS = {"requests_per_task": "1"}
_SESSION_UNITS = {"reuse_share": "1", "think": "s"}
_EFFORT_UNITS = {"least_share": "1", "value_loss": "1"}


_KEYS = {
    "ttft_a_s": "slo.ttft_a",
    "ttft_b_s_per_token": "slo.ttft_b",
    "ttft_c_s_per_token2": "slo.ttft_c",
    "tpot_s": "slo.tpot",
    "patience_s": "slo.patience",
    "deadline_s": "slo.deadline",
    "attainment_target": "slo.attainment_target",
    "effort_least_share": "effort.least_share",
    "effort_value_loss": "effort.value_loss",
    "overdispersion_tau_s": "overdispersion_tau",
    "think_s": "think",
}
"""Keys of a class's file by the attributes that hold their values: what errors about a file name."""


class Provenance(NamedTuple):
    """Where a number comes from: dotted key within the class, value, unit, status and source."""

    key: str
    value: float
    unit: str
    status: str
    source: str


MOST_REUSE = 0.99
"""Largest share of a prompt that may repeat: something has to be new."""


@dataclass(frozen=True, slots=True)
class Session:
    """How the requests of a task follow each other; a task has ``RequestClass.requests_per_task`` of them.

    Attributes:
        reuse_share: Share of the prompt of every request but a task's first that the prompt before had: the context that is carried on.
        think_s: Mean time from one request of a task to its next, s (exponential): the answer, tools, and the user who thinks.
        hold: Whether decode pools with a ``hold_share`` hold the KV of its requests until the next one.
    """

    reuse_share: float
    think_s: float
    hold: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("reuse_share", self.reuse_share, 0.0, MOST_REUSE)
        check_range("think_s", self.think_s, 0.1, 30 * 86400.0, "s")
        check_flag("hold", self.hold)


@dataclass(frozen=True, slots=True)
class RequestClass:
    """One kind of request.

    A request with p prompt tokens meets its SLO when TTFT <= ``ttft_a_s + ttft_b_s_per_token p + ttft_c_s_per_token2
    p^2`` and TPOT <= ``tpot_s``.

    Attributes:
        name: Identifier.
        description: What it stands for.
        prompt: Prompt length distribution, tokens.
        output: Output length distribution, tokens.
        ttft_a_s: Constant part of the TTFT limit, s.
        ttft_b_s_per_token: Linear part, s per prompt token.
        ttft_c_s_per_token2: Quadratic part, s per squared prompt token.
        tpot_s: TPOT limit, s.
        patience_s: A request whose predicted wait on arrival exceeds this is turned away, s.
        deferrable: Whether an operator may hold the work back.
        deadline_s: A deferrable request undone this long after its arrival is missed, s; 0 for the others.
        attainment_target: Share of requests that must meet both SLOs for a policy to be feasible.
        requests_per_task: Requests one user task takes (agents ask many times).
        session: How these follow each other; None for a class whose requests stand alone.
        effort_least_share: Smallest share of their output that answers may be cut to by a smaller reasoning budget; 1 is not at all.
        effort_value_loss: Share of an answer's value that is lost there (``workload.effort``).
        demand: Daily curve, overdispersion and exposure to bursts.
        provenance: Unit, status and source of every number.
    """

    name: str
    description: str
    prompt: LengthDistribution
    output: LengthDistribution
    ttft_a_s: float
    ttft_b_s_per_token: float
    ttft_c_s_per_token2: float
    tpot_s: float
    patience_s: float
    deferrable: bool = False
    deadline_s: float = 0.0
    attainment_target: float = 0.95
    requests_per_task: float = 1.0
    effort_least_share: float = 1.0
    effort_value_loss: float = 0.0
    demand: DemandProfile = DemandProfile()
    provenance: tuple[Provenance, ...] = ()
    session: Session | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        where = f"class {self.name!r}: "
        check_range(where + "ttft_a_s", self.ttft_a_s, 1e-3, 30 * 86400.0, "s")
        check_range(where + "ttft_b_s_per_token", self.ttft_b_s_per_token, 0.0, 1.0, "s/token")
        check_range(where + "ttft_c_s_per_token2", self.ttft_c_s_per_token2, 0.0, 1e-3, "s/token^2")
        check_range(where + "tpot_s", self.tpot_s, 1e-4, 3600.0, "s")
        check_range(where + "patience_s", self.patience_s, 0.0, 30 * 86400.0, "s")
        check_range(where + "attainment_target", self.attainment_target, 0.0, 1.0)
        check_range(where + "requests_per_task", self.requests_per_task, 1.0, 1e6)
        if self.session is not None and self.requests_per_task <= 1.0:
            raise ConfigError(
                f"{where}requests_per_task: {self.requests_per_task!r} is not allowed with a session; must be above 1."
            )
        check_range(where + "effort_least_share", self.effort_least_share, 0.05, 1.0)
        check_range(where + "effort_value_loss", self.effort_value_loss, 0.0, 1.0)
        if self.effort_least_share == 1.0 and self.effort_value_loss != 0.0:
            raise ConfigError(
                f"{where}effort_value_loss: {self.effort_value_loss!r} given, but effort_least_share is 1: nothing is cut."
            )
        if self.deferrable:
            check_range(where + "deadline_s", self.deadline_s, 1.0, 30 * 86400.0, "s")
        elif self.deadline_s != 0.0:
            raise ConfigError(f"{where}deadline_s: {self.deadline_s!r} given, but the class is not deferrable.")

    def ttft_limit_s(self, prompt_tokens: float) -> float:
        """Return the TTFT limit in s for a prompt of this many tokens."""
        return self.ttft_a_s + prompt_tokens * (self.ttft_b_s_per_token + prompt_tokens * self.ttft_c_s_per_token2)


def _of_file(where: str, error: ConfigError) -> ConfigError:
    """Return an error about attributes as one about the keys of the file they were read from."""
    words = re.sub(r"^class '[^']*': ", "", str(error))
    for attribute, key in _KEYS.items():
        words = re.sub(rf"\b{attribute}\b", key, words)
    return ConfigError(f"{where}.{words}")


def _number(where: str, key: str, raw: Any, unit: str, provenance: list[Provenance]) -> float:
    """Read one number, bare or a table of value, unit, status and source, and note where it comes from."""
    full = f"{where}.{key}"
    status, source = "user", ""
    value = raw
    if isinstance(raw, Mapping):
        check_keys(full, raw, required=("value", "unit", "status", "source"), optional=("note",))
        value, status, source = raw["value"], str(raw["status"]), str(raw["source"])
        if raw["unit"] != unit:
            raise ConfigError(f"{full}: unit {raw['unit']!r} is not allowed; give the value in {unit!r}.")
        if status not in STATUSES:
            raise unknown(f"{full}: status", status, STATUSES)
    number = check_range(full, value, -1e18, 1e18, unit)
    provenance.append(Provenance(full.split(".", 1)[1], number, unit, status, source))
    return number


def _table(
    where: str, raw: Any, units: Mapping[str, str], optional: tuple[str, ...], out: list[Provenance]
) -> dict[str, float]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: {raw!r} is not allowed; must be a table with {', '.join(units)}.")
    check_keys(where, raw, required=[key for key in units if key not in optional], optional=optional)
    return {key: _number(where, key, raw[key], unit, out) for key, unit in units.items() if key in raw}


def _lengths(where: str, raw: Any, out: list[Provenance]) -> LengthDistribution:
    numbers = _table(where, raw, _LENGTH_UNITS, (), out)
    try:
        return LengthDistribution(**numbers)
    except ConfigError as error:
        raise _of_file(where, error) from None


def _demand(where: str, raw: Any, out: list[Provenance]) -> DemandProfile:
    numbers = _table(where, raw, _DEMAND_UNITS, tuple(_DEMAND_UNITS), out)
    if "overdispersion_tau" in numbers:
        numbers["overdispersion_tau_s"] = numbers.pop("overdispersion_tau")
    try:
        return DemandProfile(**numbers)
    except ConfigError as error:
        raise _of_file(where, error) from None


def _session(where: str, raw: Any, out: list[Provenance]) -> Session:
    rest = {key: value for key, value in raw.items() if key != "hold"} if isinstance(raw, Mapping) else raw
    numbers = _table(where, rest, _SESSION_UNITS, (), out)
    try:
        return Session(numbers["reuse_share"], numbers["think"], raw.get("hold", True))
    except ConfigError as error:
        raise _of_file(where, error) from None


def _build(name: str, raw: Any) -> RequestClass:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{name}: {raw!r} is not allowed; must be a table describing a request class.")
    check_keys(
        name,
        raw,
        required=("description", "prompt", "output", "slo"),
        optional=("demand", "deferrable", "session", "effort", *_CLASS_UNITS),
    )
    deferrable = raw.get("deferrable", False)
    if not isinstance(deferrable, bool):
        raise ConfigError(f"{name}.deferrable: {deferrable!r} is not allowed; must be true or false.")
    notes: list[Provenance] = []
    prompt = _lengths(f"{name}.prompt", raw["prompt"], notes)
    output = _lengths(f"{name}.output", raw["output"], notes)
    slo = _table(f"{name}.slo", raw["slo"], _SLO_UNITS, ("deadline", "attainment_target"), notes)
    requests_per_task = 1.0
    if "requests_per_task" in raw:
        requests_per_task = _number(name, "requests_per_task", raw["requests_per_task"], "1", notes)
    session = _session(f"{name}.session", raw["session"], notes) if "session" in raw else None
    effort = {"least_share": 1.0, "value_loss": 0.0}
    if "effort" in raw:
        effort = _table(f"{name}.effort", raw["effort"], _EFFORT_UNITS, (), notes)
    demand = _demand(f"{name}.demand", raw.get("demand", {}), notes)
    try:
        return RequestClass(
            name=name,
            description=str(raw["description"]),
            prompt=prompt,
            output=output,
            ttft_a_s=slo["ttft_a"],
            ttft_b_s_per_token=slo["ttft_b"],
            ttft_c_s_per_token2=slo["ttft_c"],
            tpot_s=slo["tpot"],
            patience_s=slo["patience"],
            deferrable=deferrable,
            deadline_s=slo.get("deadline", 0.0),
            attainment_target=slo.get("attainment_target", 0.95),
            requests_per_task=requests_per_task,
            effort_least_share=effort["least_share"],
            effort_value_loss=effort["value_loss"],
            demand=demand,
            provenance=tuple(notes),
            session=session,
        )
    except ConfigError as error:
        raise _of_file(name, error) from None


@functools.lru_cache(maxsize=1)
def _shipped() -> dict[str, RequestClass]:
    return _read(CLASSES_PATH)


def _read(path: Path) -> dict[str, RequestClass]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"request classes: cannot read {str(path)!r} ({error.strerror or error}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"request classes: {str(path)!r} is not valid TOML ({error}).") from None
    if not tables:
        raise ConfigError(f"request classes: {str(path)!r} describes no class.")
    return {name: _build(name, raw) for name, raw in tables.items()}


def load_classes(path: str | Path | None = None) -> dict[str, RequestClass]:
    """Read request classes.

    Args:
        path: A TOML file with one table per class; None for the classes shipped with the package.

    Returns:
        A new dict of classes by name, in the order of the file.

    Raises:
        ConfigError: On a file that cannot be read, unknown or missing keys, a wrong unit or a value out of range.
    """
    return dict(_shipped()) if path is None else _read(Path(path))


def request_class(name: str) -> RequestClass:
    """Return a shipped request class by name.

    Raises:
        ConfigError: When there is none of that name; the message has the nearest one.
    """
    classes = _shipped()
    if name not in classes:
        raise unknown("request class", name, classes)
    return classes[name]
