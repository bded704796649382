"""Fill the table of docs/reliability.md: a day of the Edge site under `reactive`, with racks, or parts of them, that fail more or less often.

``python docs/tables/reliability.py`` writes it; ``--check`` fails when the page is stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

import ai_factory_baselines
from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.scenarios.faults import FaultSpec
from ai_factory_gym.sites.reliability import LLAMA_3_GPU_GROUP_SHARE, LLAMA_3_NVLINK_DOMAIN_SHARE

PAGE = Path(__file__).parents[1] / "reliability.md"
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->"
RACKS, PARTS = "racks", "parts"
ROWS = (
    (0.0, RACKS),
    *((factor, taken) for factor in (1.0, 10.0, 30.0, 100.0) for taken in (RACKS, PARTS)),
)
"""Factors on the rate of the source, and what faults take."""
SEEDS = range(2_000_000, 2_000_010)
KEYS = (
    "racks_struck",
    "rack_down_s",
    "requests_restarted",
    "requests_arrived",
    "lost_tokens",
    "output_tokens",
    "good_tokens",
    "energy_j",
    "requests_met_slo",
    "groups_struck",
    "gpu_down_s",
)


def day(factor: float, taken: str, seed: int) -> list[float]:
    """Return what a day brings, in the order of ``KEYS``; 0 where there is no such key."""
    faults = FaultSpec(factor)
    if taken == PARTS:
        faults = FaultSpec(factor, LLAMA_3_GPU_GROUP_SHARE, LLAMA_3_NVLINK_DOMAIN_SHARE)
    chosen = dataclasses.replace(scenario("diurnal"), name="diurnal", faults=faults)
    env = AIFactoryEnv(site="edge", scenario=chosen)
    policy = ai_factory_baselines.make("reactive", env)
    observation, info = env.reset(seed=seed)
    state, truncated = None, False
    begins = np.ones(1, dtype=bool)
    while not truncated:
        action, state = policy.predict(observation, state, begins)
        observation, _, _, truncated, info = env.step(action)
        begins = np.zeros(1, dtype=bool)
    return [float(info.get(key, 0.0)) for key in KEYS]


def table() -> str:
    """Return the table: means over the seeds."""
    pools = AIFactoryEnv(site="edge").unwrapped.pools
    gpus = sum(pool.racks * pool.gpus_per_rack for pool in pools)
    racks = sum(pool.racks for pool in pools)
    rows = [
        "| rate, times that of the source | faults take | racks struck a day | parts struck a day | in service | requests that start anew | "
        "tokens lost | good of all output tokens | requests that meet their SLO | good tokens per joule |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for factor, taken in ROWS:
        days = np.array([day(factor, taken, seed) for seed in SEEDS])
        mean = dict(zip(KEYS, days.mean(axis=0), strict=True))
        # Of racks the share of racks, of parts of racks the share of GPUs.
        down = (mean["rack_down_s"] / racks + mean["gpu_down_s"] / gpus) / 86400.0
        rows.append(
            f"| {factor:g} | {taken if factor else 'nothing'} | {mean['racks_struck']:.1f} | {mean['groups_struck']:.1f} | {1.0 - down:.2%} | "
            f"{mean['requests_restarted'] / mean['requests_arrived']:.4%} | {mean['lost_tokens'] / mean['output_tokens']:.4%} | "
            f"{mean['good_tokens'] / mean['output_tokens']:.3%} | {mean['requests_met_slo'] / mean['requests_arrived']:.2%} | "
            f"{mean['good_tokens'] / mean['energy_j']:.3f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = head + BEGIN + table() + END + rest.split(END, 1)[1]
    if check and new != old:
        sys.exit(f"{PAGE} is stale; run python docs/tables/reliability.py")
    if not check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
