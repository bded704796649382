"""The one way this package refuses bad input: an error that names key, value, allowed values and nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """A value given by the user cannot be used; the message says which, and what would be."""


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name most like ``value``, or None when none is close."""
    matches = difflib.get_close_matches(str(value).lower(), [str(name) for name in allowed], n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(key: str, value: object, allowed: Collection[str]) -> ConfigError:
    """Build the error for a name that is not among the allowed ones.

    Args:
        key: What the name stands for, as the user wrote it (``"scenario"``, ``"racks.gpu"``).
        value: The value that was given.
        allowed: Every valid name.

    Returns:
        The error, ready to be raised.
    """
    names = sorted(str(name) for name in allowed)
    guess = nearest(str(value), names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return ConfigError(f"{key}: unknown value {value!r}; allowed: {', '.join(names) or '(none)'}.{hint}")


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
            raise unknown(f"{where}: key", key, allowed)
    missing = [key for key in required if key not in given]
    if missing:
        raise ConfigError(f"{where}: missing key(s) {', '.join(missing)}; required: {', '.join(required)}.")


def check_range(key: str, value: float, low: float, high: float, unit: str = "") -> float:
    """Return ``value`` when ``low <= value <= high``, else refuse it (NaN included).

    Raises:
        ConfigError: When the value is outside the closed range or not a number.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        suffix = f" {unit}" if unit else ""
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a number in [{low:g}, {high:g}]{suffix}.")
    return float(value)
