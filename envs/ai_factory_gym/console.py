"""What the command lines have in common."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, get_args, get_origin, get_type_hints

from ai_factory_gym.errors import ConfigError

P = ParamSpec("P")


def ends_with_its_reader(main: Callable[P, int]) -> Callable[P, int]:
    """Return a command line that ends quietly, with exit code 1, when nobody reads on: ``... | head``.

    As Python's documentation of SIGPIPE has it: the flush at exit would fail once more, so that standard output leads nowhere from then on.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            try:
                code = main(*args, **kwargs)
            finally:
                # After --help too, which exits by an exception.
                sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return code

    return run


def gathered(argv: Sequence[str] | None, options: type[Any]) -> list[str]:
    """Return a command line on which an option that takes any number of values is given once, with the values of all times it was given.

    tyro, like argparse, takes ``--env a=1 --env b=2`` for ``--env b=2`` and says nothing. What it offers against that, ``UseAppendAction``,
    takes one value each time, so that ``--env a=1 b=2`` is no longer possible, and adds to a default instead of replacing it.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
        options: Dataclass of the options; its fields of type ``tuple[X, ...]`` take any number of values. Options of others are left as
            they are.

    Raises:
        ConfigError: When an option that takes several values, but a fixed number of them, is given twice.
    """
    any_number, fixed = set[str](), set[str]()
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        if get_origin(hints[field.name]) is tuple:
            (any_number if get_args(hints[field.name])[-1] is Ellipsis else fixed).add(field.name)
    groups: list[list[str]] = [[]]
    group, first = groups[0], dict[str, list[str]]()
    for word in sys.argv[1:] if argv is None else argv:
        if not word.startswith("-") or _is_number(word):
            group.append(word)
            continue
        flag, equals, value = word.partition("=")
        # tyro takes a dash for an underscore.
        name = flag.removeprefix("--").replace("-", "_")
        if name in first and name in fixed:
            raise ConfigError(f"{name}: {flag} is given twice.")
        if name in first and name in any_number:
            group = first[name]
            group[:1] = group[0].split("=", 1)
            group += [value] if equals else []
        else:
            group = first[name] = [word]
            groups.append(group)
    return [word for group in groups for word in group]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


__all__ = ["ends_with_its_reader", "gathered"]
