"""Fresh interpreters: what a process costs can only be seen from outside."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a fresh interpreter that finds this repository, installed or not."""
    paths = [str(ROOT), str(ROOT / "envs"), str(ROOT / "baselines"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **extra}


def run_fresh(code: str, **extra: str) -> str:
    """Return what a fresh interpreter prints that runs ``code``, with ``extra`` environment variables."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=_environment(extra), stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def fresh_seconds(code: str, **extra: str) -> float:
    """Return the wall time of a fresh interpreter that runs ``code``."""
    begin = time.perf_counter()
    run_fresh(code, **extra)
    return time.perf_counter() - begin


def _status_mb(field: str) -> float:
    """Return a field of this process's status in MB; NaN where the system has none."""
    path = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+)", path.read_text(encoding="utf-8")) if path.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def peak_memory_mb() -> float:
    """Return the most memory this process ever held, MB (Linux).

    Not ``getrusage``: its peak is inherited from the process that started this one.
    """
    return _status_mb("VmHWM")


def memory_mb() -> float:
    """Return the memory this process holds now, what is free to be given back left out, MB (Linux)."""
    gc.collect()
    # The allocator keeps what was freed, by the arrays that the engine outgrew for one, and it would look like a leak.
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
    return _status_mb("VmRSS")
