"""Speed beside gymnasium's CartPole-v1 in the same run; actions are drawn beforehand, so that drawing is not measured.

Run ``python benchmarks/speed.py`` (or ``make bench``). Every figure is a ratio, because machines differ, and one machine from moment
to moment: each measurement stands between two of CartPole, and the table shows the median and the quartiles of their ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import subprocess
import sys
import time

import gymnasium
import numpy as np

import ai_factory_baselines as baselines
import ai_factory_gym
from ai_factory_gym.engine.layout import Class
from ai_factory_gym.sites import load_site
from ai_factory_gym.vector_env import AIFactoryVectorEnv

REPEATS = 11


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
    """Return the peak memory of a fresh process with one Edge environment after a few steps, MB (Linux)."""
    # Not getrusage: its peak is inherited from the process that started this one.
    code = (
        "import gymnasium, numpy as np, ai_factory_gym, re\n"
        "e = gymnasium.make('ai_factory/Edge-v0'); e.reset(seed=0)\n"
        "for _ in range(5): e.step(np.zeros(e.action_space.shape, np.float32))\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
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
    rule = baselines.make("reactive", edge)
    observation, _ = edge.reset(seed=1)

    def vector_step_s() -> float:
        begin = time.perf_counter()
        for action in drawn:
            vector.step(action)
        return (time.perf_counter() - begin) / drawn[:, :, 0].size

    def predict_s() -> float:
        begin = time.perf_counter()
        for _ in range(100):
            rule.predict(observation)
        return (time.perf_counter() - begin) / 100

    measures = {
        "Edge-v0, gym.make": lambda: env_step_s(edge, 120),
        "Edge-v0 x 250": lambda: env_step_s(large, 120),
        "Edge-v0, coarse": lambda: env_step_s(coarse, 120),
        **{name.removeprefix("ai_factory/"): functools.partial(env_step_s, env, 60) for name, env in tasks.items()},
        "Edge-v0, 16 rows, per row": vector_step_s,
        "reactive, one decision": predict_s,
        "one request, request resolution": lambda: 1.0 / requests_per_s(exact, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    ratios: dict[str, list[float]] = {name: [] for name in measures}
    cartpole = [cartpole_step_s()]
    for _ in range(REPEATS):
        for name, measure in measures.items():
            seconds[name].append(measure())
            cartpole.append(cartpole_step_s())
            ratios[name].append(0.5 * (cartpole[-2] + cartpole[-1]) / seconds[name][-1])
    rows = [("what", "microseconds", "per CartPole step", "quartiles")]
    rows += [("CartPole-v1", f"{1e6 * np.median(cartpole):.1f}", "1", "")]
    for name, found in ratios.items():
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
        rows.append((name, f"{1e6 * np.median(seconds[name]):.4g}", f"{middle:.4g}", f"{low:.4g} to {high:.4g}"))
    for a, b, c, d in rows:
        print(f"| {a} | {b} | {c} | {d} |" if chosen.markdown else f"{a:<34}{b:>14}{c:>20}   {d}")
        if chosen.markdown and a == "what":
            print("|---|---:|---:|---|")
    plain = fresh_seconds("import gymnasium")
    ours = fresh_seconds("import ai_factory_gym")
    first = fresh_seconds(
        "import gymnasium, numpy as np, ai_factory_gym; e = gymnasium.make('ai_factory/Edge-v0'); e.reset(seed=0); "
        "e.step(np.zeros(e.action_space.shape, np.float32))"
    )
    scaled = np.median(np.array(seconds["Edge-v0 x 250"]) / np.array(seconds["Edge-v0, gym.make"]))
    requests = 1e-6 / np.array(seconds["one request, request resolution"])
    print(f"\nrequest resolution: median {np.median(requests):.2f}, best {requests.max():.2f} million requests/s")
    print(f"the same site scaled 250x: {scaled:.2f} x the time per step")
    print(
        f"import ai_factory_gym: {ours - plain:.2f} s beyond gymnasium; first step from a fresh interpreter, warm cache: {first - plain:.2f} s"
    )
    print(f"peak memory of a process with one environment: {memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
