"""Speeds that other projects state, quoted with their conditions; nothing here is measured."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Effort, table

PATH = Path(__file__).with_name("peers.toml")

COLUMNS = ("name", "kind", "figure", "conditions", "source")


def load_peers() -> list[dict[str, str]]:
    """Return the quoted figures, each with every one of ``COLUMNS``.

    Raises:
        ValueError: When an entry lacks a column, has another, or names no page as its source.
    """
    entries: list[dict[str, str]] = tomllib.loads(PATH.read_text(encoding="utf-8"))["peer"]
    for entry in entries:
        if sorted(entry) != sorted(COLUMNS):
            raise ValueError(f"{entry!r}: must have {', '.join(COLUMNS)}")
        if not entry["source"].startswith("https://"):
            raise ValueError(f"{entry['name']}: {entry['source']!r} is no address of a page")
    return entries


def peers(effort: Effort) -> Iterator[str]:
    """Yield the table; it is the same whatever the effort."""
    rows = [
        (entry["name"], entry["kind"], entry["figure"], entry["conditions"], f"<{entry['source']}>")
        for entry in load_peers()
    ]
    yield from table(("project", "what", "stated", "conditions", "source"), rows)
