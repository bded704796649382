"""Replay requests of one's own against a site of one's own, with two rules.

    python examples/replay_trace.py                      # writes and replays an example trace
    python examples/replay_trace.py --trace my_trace.csv --site my_site.toml --rate 1200

A trace is a CSV with the columns ``arrival_s, prompt_tokens, output_tokens``; shifted copies of it are superposed until the mean rate is
``--rate``. Every request is simulated on its own. Needs the baselines.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import ai_factory_baselines
from ai_factory_gym import ConfigError
from ai_factory_gym.evaluation import comparison_table, evaluate
from ai_factory_gym.registration import CUSTOM
from ai_factory_gym.workload.traces import load_trace

SITE = Path(__file__).with_name("sites") / "cage.toml"
RULES = ("length_aware", "reactive")


def write_example(path: Path, requests: int = 3000, span_s: float = 1800.0) -> None:
    """Write half an hour of requests: questions of some hundred tokens, one in ten with a document."""
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.uniform(0.0, span_s, requests))
    document = rng.random(requests) < 0.1
    prompt = np.where(document, rng.lognormal(8.8, 0.5, requests), rng.lognormal(6.3, 0.6, requests)).clip(10, 60_000)
    output = rng.lognormal(5.1, 0.8, requests).clip(1, 4000)
    with path.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
        writer.writerows(zip(arrival.round(3), prompt.astype(int), output.astype(int), strict=True))


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="trace to replay; an example is written when not given")
    parser.add_argument("--site", type=Path, default=SITE, help="TOML file of the site (examples/sites/cage.toml)")
    parser.add_argument("--rate", type=float, default=1000.0, help="mean requests per second (%(default)g)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.trace
        if path is None:
            path = Path(folder) / "example_trace.csv"
            write_example(path)
        try:
            trace = load_trace(path)
            results = [
                evaluate(
                    partial(ai_factory_baselines.make, rule),
                    CUSTOM,
                    scenario="steady",
                    seeds=1,
                    resolution="request",
                    trace=path,
                    env_kwargs={"site": str(chosen.site), "rate_scale": chosen.rate / trace.mean_rate_rps},
                    policy_name=rule,
                )
                for rule in RULES
            ]
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(
        f"{len(trace):,} requests, mean prompt {trace.prompt_tokens.mean():,.0f} tokens, output {trace.output_tokens.mean():,.0f}"
    )
    print(comparison_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
