"""Measure speed and memory and print the tables of docs/performance.md; ``--write`` puts them into the page.

Run from the root of the repository: ``make bench`` or ``python benchmarks/performance.py`` (about half an hour on a quiet core;
``--quick`` some minutes; ``--only NAME ...`` runs some sections; ``--cold`` also times the compilation of all kernels). Figures
of ``--quick`` are for looking at, not for the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "envs"), str(ROOT / "baselines")]

from benchmarks.anatomy import anatomy  # noqa: E402
from benchmarks.environments import single, vector  # noqa: E402
from benchmarks.measure import Effort, conditions  # noqa: E402
from benchmarks.peers import peers  # noqa: E402
from benchmarks.per_request import requests  # noqa: E402
from benchmarks.scaling import scaling  # noqa: E402
from benchmarks.startup import startup  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"

SECTIONS: Mapping[str, Callable[[Effort], Iterator[str]]] = {
    "single": single,
    "vector": vector,
    "requests": requests,
    "scaling": scaling,
    "anatomy": anatomy,
    "startup": startup,
    "peers": peers,
}
"""Name on the command line and in the page's markers to what yields the section's lines."""

QUICK = Effort(repeats=3, steps=20, cartpole_steps=3000, full=False)

QUOTED = ("peers",)
"""Sections of which nothing is measured."""


def render(name: str, effort: Effort) -> str:
    """Return a section's tables with the conditions they were measured under."""
    lines = list(SECTIONS[name](effort))
    if name not in QUOTED:
        rounds = f"{effort.repeats} rounds" + ("" if effort.full else ", a quick look, not figures to quote")
        lines += ["", f"*{conditions()}; {rounds}.*"]
    return "\n".join(lines)


def insert(page: str, name: str, text: str) -> str:
    """Return the page with a section's tables replaced.

    Raises:
        ValueError: When the page has no such markers.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not found.search(page):
        raise ValueError(f"the page has no {begin} ... {end}")
    return found.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for, print it, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="few rounds, and without the long rows")
    parser.add_argument("--repeats", type=int, help="rounds, instead of 11 (3 with --quick)")
    parser.add_argument("--cold", action="store_true", help="also time the compilation of all kernels")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    chosen = parser.parse_args(arguments)
    usual = QUICK if chosen.quick else Effort()
    effort = Effort(
        repeats=chosen.repeats or usual.repeats,
        steps=usual.steps,
        cartpole_steps=usual.cartpole_steps,
        full=usual.full,
        cold=chosen.cold,
    )
    for name in chosen.only:
        text = render(name, effort)
        print(f"\n## {name}\n\n{text}", flush=True)
        if chosen.write:
            PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
