"""Speed beside gymnasium's CartPole-v1 in the same run; actions are drawn beforehand, so that drawing is not measured.

Run ``python benchmarks/speed.py`` (or ``make bench``). Every figure is a ratio, because machines differ: the best of several
repetitions of each side, interleaved.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time

import gymnasium
import numpy as np

import ai_factory_gym
from ai_factory_gym.engine.layout import Class
from ai_factory_gym.sites import load_site
from ai_factory_gym.vector_env import AIFactoryVectorEnv

REPEATS = 5


def cartpole_step_s() -> float:
    """Return seconds per CartPole-v1 step through ``gym.make``, resets included."""
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    actions = [int(a) for a in np.random.default_rng(0).integers(0, 2, 10_000)]
    begin = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return (time.perf_counter() - begin) / len(actions)


def env_step_s(env: gymnasium.Env, steps: int) -> float:
    """Return seconds per control step of an environment, from noon on, with small drawn actions."""
    env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (steps, *env.action_space.shape)).astype(np.float32)
    begin = time.perf_counter()
    for action in actions:
        env.step(action)
    return (time.perf_counter() - begin) / steps


def requests_per_s(env: gymnasium.Env, steps: int) -> float:
    """Return simulated requests per second of an environment at request resolution."""
    core = env.unwrapped
    core.reset(seed=1)
    action = np.zeros(env.action_space.shape, np.float32)
    before = core.factory.engine.state.cls[0, :, Class.ARRIVED].sum()
    begin = time.perf_counter()
    for _ in range(steps):
        core.step(action)
    elapsed = time.perf_counter() - begin
    return (core.factory.engine.state.cls[0, :, Class.ARRIVED].sum() - before) / elapsed


def scaled_site(factor: int) -> dict:
    """Return the Edge site ``factor`` times as large: racks, cap and demand."""
    site = load_site("edge")
    pools = tuple(dataclasses.replace(pool, racks=pool.racks * factor) for pool in site.pools)
    return dataclasses.replace(site, pools=pools, cap_w=site.cap_w * factor, demand_rps=site.demand_rps * factor)


def fresh_seconds(code: str) -> float:
    """Return the wall time of a fresh interpreter that runs ``code``, the best of three."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
        times.append(time.perf_counter() - begin)
    return min(times)


def memory_mb() -> float:
    """Return the peak memory of a fresh process with one Edge environment after a few steps, MB."""
    code = (
        "import gymnasium, numpy as np, ai_factory_gym, resource\n"
        "e = gymnasium.make('ai_factory/Edge-v0'); e.reset(seed=0)\n"
        "for _ in range(5): e.step(np.zeros(e.action_space.shape, np.float32))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    chosen = parser.parse_args()
    noon = {"start_time_s": 43200.0, "horizon_s": 43200.0}
    edge = gymnasium.make("ai_factory/Edge-v0", **noon)
    coarse = gymnasium.make("ai_factory/Edge-v0", resolution="coarse", **noon)
    large = ai_factory_gym.AIFactoryEnv(site=scaled_site(250), lambda_tokens_per_joule=1.0, **noon)
    exact = gymnasium.make("ai_factory/Edge-v0", resolution="request", start_time_s=43200.0, horizon_s=3600.0)
    tasks = {name: gymnasium.make(name, **noon) for name in ai_factory_gym.TASKS if "Edge" not in name}
    vector = AIFactoryVectorEnv(16, site="edge", **noon)
    vector.reset(seed=1)
    drawn = np.random.default_rng(0).uniform(-0.2, 0.2, (20, *vector.action_space.shape)).astype(np.float32)
    best: dict[str, float] = {}

    def keep(name: str, value: float, smaller: bool = True) -> None:
        best[name] = value if name not in best else (min if smaller else max)(best[name], value)

    for _ in range(REPEATS):
        keep("cartpole", cartpole_step_s())
        keep("Edge-v0, gym.make", env_step_s(edge, 120))
        keep("Edge-v0, coarse", env_step_s(coarse, 120))
        keep("Edge-v0 x 250", env_step_s(large, 120))
        for name, env in tasks.items():
            keep(name.removeprefix("ai_factory/"), env_step_s(env, 60))
        begin = time.perf_counter()
        for action in drawn:
            vector.step(action)
        keep("Edge-v0, 16 rows, per row", (time.perf_counter() - begin) / drawn[:, :, 0].size)
        keep("requests", requests_per_s(exact, 2), smaller=False)
    cartpole = best.pop("cartpole")
    requests = best.pop("requests")
    rows = [("what", "microseconds", "x CartPole steps/s")]
    rows += [("CartPole-v1", f"{1e6 * cartpole:.1f}", "1")]
    rows += [(name, f"{1e6 * seconds:.0f}", f"{cartpole / seconds:.4f}") for name, seconds in best.items()]
    for a, b, c in rows:
        print(f"| {a} | {b} | {c} |" if chosen.markdown else f"{a:<34}{b:>14}{c:>20}")
        if chosen.markdown and a == "what":
            print("|---|---:|---:|")
    plain = fresh_seconds("import gymnasium")
    ours = fresh_seconds("import ai_factory_gym")
    first = fresh_seconds(
        "import gymnasium, numpy as np, ai_factory_gym; e = gymnasium.make('ai_factory/Edge-v0'); e.reset(seed=0); "
        "e.step(np.zeros(e.action_space.shape, np.float32))"
    )
    print(
        f"\nrequest resolution: {requests / 1e6:.2f} million requests/s, {requests * cartpole:.1f} requests per CartPole step"
    )
    print(f"the same site scaled 250x: {best['Edge-v0 x 250'] / best['Edge-v0, gym.make']:.2f} x the time per step")
    print(
        f"import ai_factory_gym: {ours - plain:.2f} s beyond gymnasium; first step from a fresh interpreter, warm cache: {first - plain:.2f} s"
    )
    print(f"peak memory of a process with one environment: {memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
