"""Fill the tables of docs/prefix_cache.md: ``python docs/tables/prefix_cache.py``; ``--check`` fails when the page is stale.

What Mooncake's trace repeats needs the trace (``AI_FACTORY_TRACE_DIR``); without it that table stays as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.catalogue import model
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.layout import Class
from ai_factory_gym.physics.performance import kv_bytes_per_token
from ai_factory_gym.sites import CacheConfig, SiteConfig, load_site
from ai_factory_gym.workload.traces import load_trace, lru_hit_share, reuse

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "prefix_cache.md"
SITE = ROOT / "examples" / "sites" / "agents.toml"
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
STEPS, SEED = 30, 2_000_000


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def with_pools(
    site: SiteConfig, cache: Callable[[CacheConfig | None], CacheConfig | None], *, store: bool, hold_share: float = 0.0
) -> SiteConfig:
    """Return a site with other caches of its prefill pools, with or without its store, its decode pools holding or not."""
    pools = tuple(
        dataclasses.replace(pool, cache=cache(pool.cache))
        if pool.phase == "prefill"
        else dataclasses.replace(pool, hold_share=hold_share)
        for pool in site.pools
    )
    return dataclasses.replace(site, pools=pools, kv_store=site.kv_store if store else None)


def example() -> str:
    """Return what the example site does with and without its caches, half an hour of steady demand each."""
    site = load_site(SITE)
    bare = with_pools(site, lambda _: None, store=False)
    hbm = with_pools(site, lambda own: CacheConfig(own.hbm_gb) if own else None, store=False)
    host = with_pools(site, lambda own: own, store=False)
    apart = [[1.0, math.exp(-4.0)], [math.exp(-4.0), 1.0]]
    rows = []
    for name, chosen, route in (
        ("no cache", bare, None),
        ("HBM, 200 GB a rack", hbm, None),
        ("+ host memory, 1 TB a rack", host, None),
        ("the same, short prompts to GB300, long ones to Vera Rubin", host, apart),
        ("+ store, 200 TB", site, None),
        ("no cache, decode holds contexts in 30 % of its KV memory", with_pools(bare, lambda _: None, store=False, hold_share=0.3), None),
    ):  # fmt: skip
        env = AIFactoryEnv(site=chosen, scenario="steady", lambda_tokens_per_joule=1.0, horizon_s=3600.0)
        env.reset(seed=SEED)
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, route_prefill=route)
        for _ in range(STEPS):
            _, _, _, _, info = env.step(action)
        counters = env.factory.engine.state.cls[0]
        delays = counters[:, Class.TTFT_SUM_S] / counters[:, Class.TTFT_COUNT]
        found = info["cached_tokens"] / info["prompt_tokens"] if chosen.caches else 0.0
        loaded = info["loaded_tokens"] / max(1.0, info["cached_tokens"]) if chosen.caches else 0.0
        rows.append(
            [
                name,
                f"{found:.0%}",
                f"{loaded:.0%}",
                f"{delays[0]:.2f}, {delays[1]:.2f}",
                f"{info['facility_power_w'] / 1e6:.3f}",
                f"{info['tokens_per_joule']:.4f}",
                f"{info['sla_attainment']:.4f}",
                f"{info['class/coding_agent/tasks_completed']:,.0f}",
                f"{info['class/coding_agent/agent_hours']:,.0f}",
            ]
        )
    head = [
        "caches",
        "prompt tokens found",
        "of these loaded",
        "TTFT of agents, talks, s",
        "MW",
        "good tokens/J",
        "SLA",
        "agents' tasks",
        "agent hours",
    ]
    return table(head, rows)


def kept() -> str:
    """Return what ``describe`` says about the example site's caches."""
    lines = describe(str(SITE)).splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("KV kept"))
    shown = lines[begin : lines.index("", begin)]
    command = f"$ python -m ai_factory_gym describe {SITE.relative_to(ROOT)}"
    return "\n".join(["```", command, "...", *shown, "...", "```"]) + "\n"


def modelled(rate_tokens_s: float, again: float, ages: np.ndarray, weight: np.ndarray, room: float) -> float:
    """Return the hit share that the characteristic time of a steady flow gives: the equation of the page, by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = 0.5 * (low + high)
        stays = (1.0 - again) * middle + again * float(weight @ np.minimum(ages, middle))
        low, high = (middle, high) if rate_tokens_s * stays < room else (low, middle)
    return again * float(weight @ (ages <= low))


def trace_table() -> str | None:
    """Return what Mooncake's conversations repeat, and what caches of several sizes find; None where the trace is not at hand."""
    folder = os.environ.get("AI_FACTORY_TRACE_DIR")
    path = Path(folder or ".") / "mooncake_conversation.jsonl.gz"
    if folder is None or not path.exists():
        return None
    trace = load_trace(path)
    found = reuse(trace)
    total = float(trace.prompt_tokens.sum())
    weight = found.tokens / found.tokens.sum()
    order = np.argsort(found.age_s)
    reached = np.cumsum(weight[order])
    ages = [found.age_s[order][np.searchsorted(reached, q)] for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
    again = float(found.tokens.sum()) / total
    lines = [
        f"{len(trace):,} requests in {trace.span_s / 60.0:.0f} minutes, mean prompt {total / len(trace):,.0f} tokens. "
        f"{again:.1%} of the prompt tokens have been seen before in the trace. They were last seen, by tokens: "
        f"10 % within {ages[0]:.0f} s, 25 % {ages[1]:.0f} s, half {ages[2]:.0f} s, 75 % {ages[3]:.0f} s, 90 % {ages[4]:.0f} s ago.",
        "",
    ]
    kv_bytes = kv_bytes_per_token(model("deepseek-r1"))
    rows = []
    for room in (5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, math.inf):
        model_share = again if room == math.inf else modelled(total / trace.span_s, again, found.age_s, weight, room)
        size = "no limit" if room == math.inf else f"{room:,.0f} ({room * kv_bytes / 1e9:,.0f} GB)"
        rows.append([size, f"{lru_hit_share(trace, room):.1%}", f"{model_share:.1%}"])
    head = ["room, tokens (DeepSeek-R1, fp8 KV)", "found, block by block (LRU)", "found, characteristic time"]
    return "\n".join(lines) + "\n" + table(head, rows)


def main() -> int:
    """Fill the page, or check it; returns 1 when it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = {"example": example(), "trace": trace_table(), "kept": kept()}
    filled = BLOCK.sub(
        lambda m: m.group(0) if made[m.group(2)] is None else f"{m.group(1)}{made[m.group(2)]}{m.group(3)}", page
    )
    if chosen.check:
        return int(filled != page)
    PAGE.write_text(filled, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
