"""Request resolution: requests per second, a whole day of a small site, and what memory depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.engine.layout import Class, SiteInt
from benchmarks.environments import NOON_S, warmup_s
from benchmarks.fresh import peak_memory_mb, run_fresh
from benchmarks.measure import Effort, cartpole_line, cartpole_step_s, number, paired, spread, table
from benchmarks.sites import SMALL_RPS, small_site

DAY_HOURS = 24


def small_env(**settings: Any) -> AIFactoryEnv:
    """Return the small site at request resolution."""
    chosen = {"site": small_site(), "lambda_tokens_per_joule": 1.0, "resolution": "request", **settings}
    return AIFactoryEnv(**chosen)


def neutral_action(env: AIFactoryEnv) -> NDArray[np.float32]:
    """Return the action of zeros."""
    return np.zeros(env.action_layout.size, np.float32)


def arrived(env: AIFactoryEnv) -> float:
    """Return requests that have arrived in the scored window."""
    return float(env.factory.engine.state.cls[0, :, Class.ARRIVED].sum())


def duration(minutes: int) -> str:
    """Return a simulated time as text."""
    return f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"


class Requests:
    """Requests simulated with the neutral action, in an episode that goes on from measurement to measurement."""

    def __init__(self, env: AIFactoryEnv, steps: int) -> None:
        """Start the episode."""
        self.env = env
        self.steps = steps
        self.neutral = neutral_action(env)
        env.reset(seed=1)

    def __call__(self) -> float:
        """Return seconds per request."""
        before = arrived(self.env)
        begin = time.perf_counter()
        for _ in range(self.steps):
            self.env.step(self.neutral)
        return (time.perf_counter() - begin) / (arrived(self.env) - before)


def _day(effort: Effort) -> Iterator[str]:
    """Yield the sentence about a whole day, timed piece by piece between measurements of CartPole."""
    pieces, steps = (DAY_HOURS, 60) if effort.full else (2, 2)
    env = small_env(start_time_s=0.0)
    env.reset(seed=1)
    neutral = neutral_action(env)
    seconds = 0.0
    cost = 0.0
    before = cartpole_step_s(effort.cartpole_steps)
    for _ in range(pieces):
        begin = time.perf_counter()
        for _ in range(steps):
            env.step(neutral)
        took = time.perf_counter() - begin
        after = cartpole_step_s(effort.cartpole_steps)
        seconds += took
        cost += took / (0.5 * (before + after))
        before = after
    requests = arrived(env)
    yield (
        f"{duration(pieces * steps)} of a site of {SMALL_RPS:,.0f} requests/s (one rack of each of Edge's pools), every request on its "
        f"own: {requests / 1e6:,.1f} million requests in {number(seconds)} s, the time of {number(cost / 1e6)} million CartPole steps."
    )


def memory_run(minutes: list[int], demand_scale: float) -> None:
    """Run the small site under steady demand and print its memory after so many minutes, one JSON line each."""
    env = small_env(scenario="steady", demand_scale=demand_scale)
    env.reset(seed=1)
    neutral = neutral_action(env)
    for minute in range(1, max(minutes) + 1):
        env.step(neutral)
        if minute in minutes:
            state = env.factory.engine.state
            slots = state.free.shape[1]
            found = {
                "minutes": minute,
                "served": arrived(env),
                "in_flight": slots - int(state.site_int[0, SiteInt.FREE]),
                "high_water": int(state.site_int[0, SiteInt.HIGH_WATER]),
                "slots": slots,
                "state_mb": sum(array.nbytes for array in state) / 2**20,
                "peak_mb": peak_memory_mb(),
            }
            print(json.dumps(found), flush=True)


def _memory(effort: Effort) -> Iterator[str]:
    """Yield the table of memory."""
    runs = [([60, 240], 1.0), ([60], 0.5), ([60], 1.5)] if effort.full else [([1, 2], 1.0), ([1], 0.5)]
    rows = []
    for minutes, scale in runs:
        code = f"from benchmarks.per_request import memory_run; memory_run({minutes}, {scale})"
        for line in run_fresh(code).splitlines():
            found = json.loads(line)
            rows.append(
                (
                    f"{scale * SMALL_RPS:,.0f} requests/s, {duration(found['minutes'])}",
                    f"{found['served'] / 1e6:.2f}",
                    f"{found['in_flight']:,}",
                    f"{found['high_water']:,}",
                    f"{found['slots']:,}",
                    f"{found['state_mb']:.1f}",
                    f"{found['peak_mb']:.0f}",
                )
            )
    head = (
        "steady demand",
        "million requests served",
        "in flight",
        "most slots in use",
        "slots",
        "state, MB",
        "process, MB",
    )
    yield from table(head, rows)


def requests(effort: Effort) -> Iterator[str]:
    """Yield the section on request resolution."""
    edge = AIFactoryEnv(
        site="edge", resolution="request", start_time_s=NOON_S, horizon_s=7200.0, warmup_s=warmup_s(effort)
    )
    small = small_env(start_time_s=NOON_S, horizon_s=43_200.0)
    found = paired({"`Edge-v0`, noon": Requests(edge, 1), "1,000 requests/s, noon": Requests(small, 2)}, effort)
    rows = []
    for name, each in found.items():
        speed = each.speed()
        rows.append((name, number(1e-6 / each.median_s), number(speed[1]), spread(speed)))
    yield from table(("site", "million requests/s", "requests per CartPole step", "quartiles"), rows)
    yield ""
    yield cartpole_line(found.values())
    yield ""
    yield from _day(effort)
    yield ""
    yield from _memory(effort)
