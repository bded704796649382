"""How many racks of each kind serve most of a trace under a power cap? A search in steady states, checked by simulation.

    python examples/plan_racks.py my_trace.csv --cap-mw 5
    python examples/plan_racks.py my_trace.csv --cap-mw 5 --tpot-ms 30 --csv plan.csv

The trace says how long prompts and answers are; it is replayed as often as the site can stand. For every number of CPX racks the best
numbers of GB300 racks for prefill and decode are searched for: those that serve most requests per second while the steady state keeps
the SLA and the cap. The best few are then simulated, every request on its way through the site, with the rule ``reactive`` at the power.
Rubin CPX was announced and withdrawn: its rows are hypothetical. Needs the baselines.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np

import ai_factory_baselines
from ai_factory_gym import ConfigError
from ai_factory_gym.errors import check_range
from ai_factory_gym.evaluation import EvaluationResult, evaluate
from ai_factory_gym.operating_point import OperatingPoint, SteadySite
from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.registration import CUSTOM
from ai_factory_gym.sites import PoolConfig, SiteConfig
from ai_factory_gym.workload.classes import request_class
from ai_factory_gym.workload.traces import Trace, load_trace

CLASS = "planned"
STEPS = (8, 4, 2, 1)
"""Racks added or taken away in the search, coarse to fine."""

HEADROOM = 0.85
"""Share of what the steady state can serve that is simulated: a trace comes in bursts, a steady state does not."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A site and what it can serve in a steady state."""

    site: SiteConfig
    point: OperatingPoint

    @property
    def racks(self) -> tuple[int, ...]:
        """Racks of each pool: GB300 prefill, GB300 decode, then CPX when there are any."""
        return tuple(pool.racks for pool in self.site.pools)


def site_of(
    prefill: int, cpx: int, decode: int, cap_w: float, tpot_s: float | None, ttft_s: float | None
) -> SiteConfig:
    """Return a site of GB300 racks for prefill and decode, and CPX racks for prefill."""
    chat = request_class("chat")
    cls = dataclasses.replace(
        chat,
        name=CLASS,
        tpot_s=tpot_s or chat.tpot_s,
        ttft_a_s=ttft_s or chat.ttft_a_s,
        patience_s=0.7 * (ttft_s or chat.ttft_a_s),
    )
    pools = [PoolConfig("gb300_nvl72", "prefill", prefill, dp=4)]
    if cpx:
        pools.append(PoolConfig("rubin_cpx_sidecar", "prefill", cpx, pp=8))
    pools.append(PoolConfig("gb300_nvl72", "decode", decode, dp=8, mtp=True))
    return SiteConfig("Planned", cap_w, "deepseek-r1", tuple(pools), 1.0, {CLASS: 1.0}, own_classes=(cls,))


def plan(site: SiteConfig, trace: Trace) -> Plan:
    """Return what a site can serve of requests like those of a trace, all racks awake, the best clocks, in a steady state."""
    classes = served_classes(site, (CLASS,))
    labels = np.zeros(len(trace), dtype=np.int64)
    params = build_params(
        site, classes, resolution("coarse"), control_interval_s=60.0, trace=trace, trace_labels=labels
    )
    return Plan(site, SteadySite(site, classes, params).under_cap(site.cap_w))


def best_for(cpx: int, trace: Trace, cap_w: float, limits: tuple[float | None, float | None]) -> Plan:
    """Search for the numbers of GB300 racks that serve most beside so many CPX racks."""
    known: dict[tuple[int, int], Plan] = {}

    def at(racks: tuple[int, int]) -> Plan:
        if racks not in known:
            known[racks] = plan(site_of(racks[0], cpx, racks[1], cap_w, *limits), trace)
        return known[racks]

    # Few racks first: with too many, idling alone takes more than a small cap.
    here = (1, 1)
    for step in STEPS:
        improved = True
        while improved:
            around = [
                (here[0] + step, here[1]),
                (here[0] - step, here[1]),
                (here[0], here[1] + step),
                (here[0], here[1] - step),
            ]
            allowed = [racks for racks in around if min(racks) >= 1]
            best = max(allowed, key=lambda racks: at(racks).point.load_rps, default=here)
            improved = at(best).point.load_rps > at(here).point.load_rps * (1.0 + 1e-6)
            here = best if improved else here
    return at(here)


def simulate(chosen: Plan, path: str, trace: Trace) -> EvaluationResult:
    """Replay the trace against a plan with the rule ``reactive``."""
    site = dataclasses.replace(chosen.site, demand_rps=HEADROOM * chosen.point.load_rps)
    return evaluate(
        partial(ai_factory_baselines.make, "reactive"),
        CUSTOM,
        scenario="steady",
        seeds=1,
        trace=path,
        env_kwargs={
            "site": site,
            "trace_class": CLASS,
            "rate_scale": site.demand_rps / trace.mean_rate_rps,
            "lambda_tokens_per_joule": chosen.point.tokens_per_joule,
        },
        progress=False,
    )


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="requests with arrival time, prompt and output tokens")
    parser.add_argument("--cap-mw", type=float, default=5.0, help="facility power, MW (%(default)g)")
    parser.add_argument("--tpot-ms", type=float, help="limit of the time per output token (that of chat, 80)")
    parser.add_argument(
        "--ttft-s",
        type=float,
        help="constant part of the limit of the time to first token (that of chat, 2), for the simulation",
    )
    parser.add_argument("--most-cpx", type=int, default=8, help="most CPX racks (%(default)d)")
    parser.add_argument(
        "--simulate", type=int, default=3, help="plans that are simulated, the best first (%(default)d)"
    )
    parser.add_argument("--csv", type=Path, help="write the table here too; the file must not exist")
    chosen = parser.parse_args()
    if chosen.csv is not None and (chosen.csv.exists() or not chosen.csv.parent.is_dir()):
        print(f"error: csv: {str(chosen.csv)!r} exists, or its folder does not; give another name.", file=sys.stderr)
        return 2
    try:
        check_range("cap-mw", chosen.cap_mw, 0.01, 1e5, "MW")
        check_range("most-cpx", chosen.most_cpx, 0, 1000)
        check_range("simulate", chosen.simulate, 0 if chosen.csv is None else 1, 1000)
        for key, value in (("tpot-ms", chosen.tpot_ms), ("ttft-s", chosen.ttft_s)):
            if value is not None:
                check_range(key, value, 1e-3, 1e6)
        trace = load_trace(chosen.trace)
        limits = (chosen.tpot_ms / 1e3 if chosen.tpot_ms else None, chosen.ttft_s)
        print(
            f"{len(trace):,} requests, mean prompt {trace.prompt_tokens.mean():,.0f} tokens, answer {trace.output_tokens.mean():,.0f}"
        )
        header = ("CPX", "GB300 prefill", "GB300 decode", "requests/s", "tokens/J", "MW", "bar")
        print(f"\n{header[0]:>4}{header[1]:>15}{header[2]:>14}{header[3]:>12}{header[4]:>10}{header[5]:>8}")
        plans: list[tuple[int, Plan]] = []
        for cpx in range(chosen.most_cpx + 1):
            found = best_for(cpx, trace, 1e6 * chosen.cap_mw, limits)
            plans.append((cpx, found))
            point = found.point
            if point.load_rps <= 0.0:
                raise ConfigError(
                    f"cap-mw: under {chosen.cap_mw:g} MW no number of racks serves these requests within the limits."
                )
            bar = "#" * round(40 * point.load_rps / plans[0][1].point.load_rps)
            print(
                f"{cpx:>4}{found.racks[0]:>15}{found.racks[-1]:>14}{point.load_rps:>12,.0f}{point.tokens_per_joule:>10.3f}"
                f"{point.facility_w / 1e6:>8.2f}  {bar}",
                flush=True,
            )
        plans.sort(key=lambda entry: -entry[1].point.load_rps)
        print(f"\nsimulated with reactive at {HEADROOM:.0%} of that load, the trace replayed as often as that takes:")
        rows = []
        for cpx, found in plans[: max(0, chosen.simulate)]:
            episode = simulate(found, chosen.trace, trace).episodes[0]
            rows.append(
                {
                    "cpx": cpx,
                    "gb300_prefill": found.racks[0],
                    "gb300_decode": found.racks[-1],
                    "requests_per_s": HEADROOM * found.point.load_rps,
                    "sla_attainment": episode["sla_attainment"],
                    "feasible": episode["feasible"],
                    "tokens_per_joule": episode["tokens_per_joule_facility"],
                    "peak_mw": episode["facility_power_max_w"] / 1e6,
                }
            )
            print(
                f"{cpx} CPX + {found.racks[0]} prefill + {found.racks[-1]} decode: {rows[-1]['requests_per_s']:,.0f} requests/s, attainment "
                f"{rows[-1]['sla_attainment']:.4f}, feasible {rows[-1]['feasible']}, {rows[-1]['tokens_per_joule']:.3f} tokens/J, "
                f"peak {rows[-1]['peak_mw']:.2f} MW",
                flush=True,
            )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.csv is not None:
        with chosen.csv.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
