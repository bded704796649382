"""The one way this package refuses bad input: an error that names key, value, allowed values and nearest match."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A value given by the user cannot be used; the message says which, and what would be."""


class PolicyRefused(ConfigError):
    """A policy cannot be made for an environment that is itself in order: others may well be."""


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name most like ``value``, or None when none is close."""
    names = {str(name).lower(): str(name) for name in allowed}
    given = str(value).lower()
    # The end of a longer name is close, too: "Edge-v0" is all of "ai_factory/Edge-v0" but the namespace.
    endings = [name for name in names if given and name.endswith(f"/{given}")]
    matches = endings or difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return names[matches[0]] if matches else None


def unknown(key: str, value: object, allowed: Collection[str], kind: str = "value") -> ConfigError:
    """Build the error for a name that is not among the allowed ones.

    Args:
        key: What the name stands for, as the user wrote it (``"scenario"``, ``"racks.gpu"``).
        value: The value that was given.
        allowed: Every valid name.
        kind: What it is: a value, or a key.

    Returns:
        The error, ready to be raised.
    """
    names = sorted({str(name) for name in allowed})
    guess = nearest(str(value), names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return ConfigError(f"{key}: unknown {kind} {value!r}; allowed: {', '.join(names) or '(none)'}.{hint}")


def check_keys(
    where: str, given: Mapping[str, Any], *, required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Refuse a table with unknown or missing keys.

    Args:
        where: Name of the table, used in the message.
        given: The table as read.
        required: Keys that must be there.
        optional: Keys that may be there.

    Raises:
        ConfigError: On the first unknown key, else listing every missing one.
    """
    allowed = [*required, *optional]
    for key in given:
        if key not in allowed:
            raise unknown(where, key, allowed, "key")
    missing = [key for key in required if key not in given]
    if missing:
        raise ConfigError(f"{where}: missing key(s) {', '.join(missing)}; required: {', '.join(required)}.")


def check_flag(key: str, value: Any) -> bool:
    """Return ``value`` when it is True or False, else refuse it: "no" and 0 are not taken for what they may mean.

    Raises:
        ConfigError: When it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: {value!r} is not allowed; must be True or False.")
    return value


def check_text(key: str, value: Any, empty: bool = False) -> str:
    """Return ``value`` when it is a string, and not an empty one unless that is allowed, else refuse it.

    Raises:
        ConfigError: Otherwise.
    """
    if not isinstance(value, str) or not (value or empty):
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a string{'' if empty else ' that is not empty'}.")
    return value


def check_count(key: str, value: Any) -> int:
    """Return ``value`` as an int when it is a whole number of at least 1, else refuse it; those of numpy are whole numbers too.

    Raises:
        ConfigError: Otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a whole number of at least 1.")
    return int(value)


def check_range(key: str, value: Any, low: float, high: float, unit: str = "") -> float:
    """Return ``value`` as a float when ``low <= value <= high``, else refuse it (NaN included).

    Numbers of numpy are numbers.

    Raises:
        ConfigError: When the value is outside the closed range or not a number.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not low <= float(value) <= high:
        suffix = f" {unit}" if unit else ""
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a number in [{low:g}, {high:g}]{suffix}.")
    return float(value)
