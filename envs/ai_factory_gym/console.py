"""What the command lines have in common."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

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


__all__ = ["ends_with_its_reader"]
