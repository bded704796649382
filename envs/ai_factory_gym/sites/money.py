"""What a site earns and pays: prices of tokens, penalties, demand charge, capital. All in US dollars, all the user's own figures.

No default is a market price: token prices differ hundredfold between models and vendors and fall every year. What is left out is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ai_factory_gym.errors import ConfigError, check_count, check_flag, check_keys, check_range, unknown

TOKENS_PER_MTOK = 1e6

_OF_THE_SITE = (
    "sla_penalty_share",
    "demand_usd_per_kw_month",
    "coincident_usd_per_kw_year",
    "coincident_intervals_per_year",
)
"""Keys of ``MoneyConfig`` that are numbers."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a request of a class pays.

    Attributes:
        input_usd_per_mtok: Per million prompt tokens.
        output_usd_per_mtok: Per million output tokens.
        budget_usd_per_day: What its customers mean to spend a day; 0 is no budget. It meters and warns.
        budget_cap: Whether it also ends there: once the answers of a day have cost it, further requests of the class are turned away until the
            next day begins (days are counted from the start of the episode). They are the customers' own refusal: neither arrived nor missed.
    """

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    budget_usd_per_day: float = 0.0
    budget_cap: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for key in ("input_usd_per_mtok", "output_usd_per_mtok", "budget_usd_per_day"):
            check_range(key, getattr(self, key), 0.0, 1e9, "USD")
        check_flag("budget_cap", self.budget_cap)
        if self.budget_cap and self.budget_usd_per_day == 0.0:
            raise ConfigError("budget_cap: True is not allowed without a budget; give budget_usd_per_day.")


@dataclass(frozen=True, slots=True)
class MoneyConfig:
    """What a site earns and pays.

    Attributes:
        tariff: What requests pay whose class has no tariff of its own.
        classes: Tariffs by class name.
        sla_penalty_share: What a missed request costs, as a share of what it would have paid (1: it is not paid for; more: a credit on
            top).
        demand_usd_per_kw_month: Charge for the highest mean draw from the grid over any quarter of an hour, per month of 30 days.
        rack_usd_per_hour: Cost of owning a rack, awake or not, by rack type; those of a training block too.
        coincident_usd_per_kw_year: Yearly charge per kW of mean draw in the quarter hours of the grid's coincident peaks (ERCOT 4CP: 50 to 150,
            status secondary report); 0 is none. A scenario says when they may be (``peak_windows``).
        coincident_intervals_per_year: How many there are in a year: each costs that share of the yearly charge (4CP: 4).
    """

    tariff: Tariff = Tariff()
    classes: tuple[tuple[str, Tariff], ...] = ()
    sla_penalty_share: float = 1.0
    demand_usd_per_kw_month: float = 0.0
    rack_usd_per_hour: tuple[tuple[str, float], ...] = ()
    coincident_usd_per_kw_year: float = 0.0
    coincident_intervals_per_year: int = 4

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("money.sla_penalty_share", self.sla_penalty_share, 0.0, 100.0)
        check_range("money.demand_usd_per_kw_month", self.demand_usd_per_kw_month, 0.0, 1e4, "USD/kW/month")
        check_range("money.coincident_usd_per_kw_year", self.coincident_usd_per_kw_year, 0.0, 1e5, "USD/kW/year")
        check_count("money.coincident_intervals_per_year", self.coincident_intervals_per_year)

    def of(self, name: str) -> Tariff:
        """Return what requests of a class pay."""
        return dict(self.classes).get(name, self.tariff)


def _tariff(where: str, table: Any) -> Tariff:
    """Build a tariff from its table."""
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{where}: {table!r} is not allowed; must be a table of {', '.join(f.name for f in fields(Tariff))}."
        )
    check_keys(where, table, required=(), optional=[field.name for field in fields(Tariff)])
    try:
        return Tariff(**table)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def money_from_table(where: str, table: Any, classes: list[str], racks: list[str]) -> MoneyConfig:
    """Build what a site earns and pays from its table ``[money]``.

    Args:
        where: Name used in error messages.
        table: Keys of ``Tariff``, ``_OF_THE_SITE``, and the tables ``classes`` and ``rack_usd_per_hour``.
        classes: Names of the classes of the site's mix.
        racks: Rack types of the site.

    Raises:
        ConfigError: On an unknown key, class or rack type, or a value out of range.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {table!r} is not allowed; must be a table.")
    own = [field.name for field in fields(Tariff)]
    check_keys(
        where,
        table,
        required=(),
        optional=[*own, "classes", "rack_usd_per_hour", *_OF_THE_SITE],
    )
    tariff = _tariff(where, {key: table[key] for key in own if key in table})
    tables: dict[str, Mapping[str, Any]] = {}
    for key, names in (("classes", classes), ("rack_usd_per_hour", racks)):
        tables[key] = table.get(key, {})
        if not isinstance(tables[key], Mapping):
            raise ConfigError(f"{where}: {key}: {tables[key]!r} is not allowed; must be a table by name.")
        for name in tables[key]:
            if name not in names:
                raise unknown(f"{where}: {key}", name, names)
    rack_usd = tuple(
        (name, check_range(f"{where}: rack_usd_per_hour.{name}", value, 0.0, 1e6, "USD/h"))
        for name, value in tables["rack_usd_per_hour"].items()
    )
    by_class = []
    for name, mine in tables["classes"].items():
        if not isinstance(mine, Mapping):
            raise ConfigError(f"{where}: classes.{name}: {mine!r} is not allowed; must be a table.")
        prices = {key: getattr(tariff, key) for key in own if not key.startswith("budget")}
        by_class.append((name, _tariff(f"{where}: classes.{name}", {**prices, **mine})))
    return MoneyConfig(
        tariff=tariff,
        classes=tuple(by_class),
        rack_usd_per_hour=rack_usd,
        **{key: table[key] for key in _OF_THE_SITE if key in table},
    )
