"""What it takes to begin: import, first step, memory per process and per environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks.fresh import fresh_seconds, run_fresh
from benchmarks.measure import Effort, number, quartiles, spread, table

PLAIN = "import gymnasium"
OURS = "import gymnasium, ai_factory_gym"
FIRST_STEP = (
    "import gymnasium, numpy as np, ai_factory_gym\n"
    "e = gymnasium.make('ai_factory/Edge-v0'); e.reset(seed=0)\n"
    "e.step(np.zeros(e.action_space.shape, np.float32))"
)


def memory_code(rows: int) -> str:
    """Return a program that steps a vector environment a few times and prints the most memory it held, MB."""
    return (
        "import gymnasium, numpy as np, ai_factory_gym\n"
        "from benchmarks.fresh import peak_memory_mb\n"
        f"e = gymnasium.make_vec('ai_factory/Edge-v0', num_envs={rows}, vectorization_mode='vector_entry_point')\n"
        "e.reset(seed=0)\n"
        "for _ in range(5): e.step(np.zeros(e.action_space.shape, np.float32))\n"
        "print(peak_memory_mb())"
    )


SINGLE_MEMORY = FIRST_STEP + "\nfrom benchmarks.fresh import peak_memory_mb; print(peak_memory_mb())"


def startup(effort: Effort) -> Iterator[str]:
    """Yield the section on starting."""
    repeats = min(effort.repeats, 5)
    times: dict[str, list[float]] = {code: [] for code in (PLAIN, OURS, FIRST_STEP)}
    # One round beforehand: file caches, and kernels where none are compiled yet.
    for each in range(repeats + 1):
        for code, found in times.items():
            seconds = fresh_seconds(code)
            if each:
                found.append(seconds)
    plain = np.array(times[PLAIN])
    rows = []
    for name, code in (("import", OURS), ("import, make, reset and first step", FIRST_STEP)):
        beyond = quartiles(np.array(times[code]) - plain)
        ratio = quartiles(np.array(times[code]) / plain)
        rows.append((name, number(beyond[1]), spread(beyond), number(ratio[1])))
    if effort.cold:
        with tempfile.TemporaryDirectory() as folder:
            seconds = fresh_seconds(FIRST_STEP, NUMBA_CACHE_DIR=folder)
        late = seconds - float(np.median(plain))
        rows.append(
            ("the same, nothing compiled yet", number(late), "one run", number(seconds / float(np.median(plain))))
        )
    head = ("fresh interpreter", "seconds beyond `import gymnasium`", "quartiles", "times `import gymnasium`")
    yield from table(head, rows)
    yield ""
    many = 256 if effort.full else 16
    one_mb, many_mb = (float(run_fresh(memory_code(rows))) for rows in (1, many))
    only_mb = float(run_fresh("import gymnasium; from benchmarks.fresh import peak_memory_mb; print(peak_memory_mb())"))
    memory = [
        ("process with `import gymnasium` alone", f"{only_mb:.0f} MB"),
        ("process with one environment through `gym.make`", f"{float(run_fresh(SINGLE_MEMORY)):.0f} MB"),
        ("process with a vector environment of one row", f"{one_mb:.0f} MB"),
        (f"process with a vector environment of {many} rows", f"{many_mb:.0f} MB"),
        ("each further row", f"{(many_mb - one_mb) / (many - 1):.2f} MB"),
    ]
    yield from table(("memory", "peak"), memory)
