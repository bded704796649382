"""Write docs/experiments.md: published effects, found again (or not) in this model, each with a table, and the plots beside it.

``python docs/tables/experiments.py`` (some minutes; needs the ``plot`` extra), ``--only NAME ...`` for some of them. Published figures
are quoted with their conditions; where ours differ, the page says by how much and why.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ai_factory_gym import AIFactoryEnv, serving_frontier
from ai_factory_gym.catalogue import rack
from ai_factory_gym.engine.layout import DECODE, PREFILL, Pool, PoolInt, PoolSpec
from ai_factory_gym.levers import LEAST_LIMIT
from ai_factory_gym.operating_point import CLOCKS, SteadySite, steady_site
from ai_factory_gym.params import nameplate_it_w, site_pue
from ai_factory_gym.scenarios import Scenario
from ai_factory_gym.sites import PoolConfig, SiteConfig, load_site

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "experiments.md"
IMAGES = DOCS / "images"

MODEL = "deepseek-r1"
SPEEDS = (20.0, 50.0, 100.0)
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in markdown, numbers to the right."""
    return [
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def picture(
    name: str, title: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], x: str, y: str
) -> None:
    """Draw lines and save them as ``docs/images/experiments_NAME.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    for label, xs, ys in lines:
        axis.plot(xs, ys, marker="o", markersize=3, label=label)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / f"experiments_{name}.png", dpi=100)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------- phase clocks

LOADS = (0.2, 0.35, 0.5, 0.65)


def _settled(site: SiteConfig, load_rps: float, prefill: float, decode: float) -> tuple[float, np.ndarray]:
    """Return attainment and energy by phase of an hour of constant demand at a clock per phase, simulated, J."""
    env = AIFactoryEnv(
        site=site,
        scenario="steady",
        demand_scale=load_rps / site.demand_rps,
        horizon_s=3600.0,
        levers=("clock", "active_racks"),
        lambda_tokens_per_joule=1.0,
    )
    env.reset(seed=1)
    phase = env.factory.params.pool[:, PoolSpec.PHASE]
    action = env.action_layout.encode(
        clock=np.where(phase == PREFILL, prefill, decode), racks=env.action_layout.racks.astype(float)
    )
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(action)
    joules = env.factory.engine.state.pool[0, :, Pool.ENERGY_J]
    worst = min(value for key, value in info.items() if key.startswith("class/") and key.endswith("/attainment"))
    return worst, np.array([joules[phase == which].sum() for which in (PREFILL, DECODE)])


def phase_clocks() -> list[str]:
    """Energy by phase with a clock per phase against full clock, both within the SLA, over load."""
    # Without a cap in the way: what the clocks save, not what the brake takes.
    site = dataclasses.replace(load_site("edge"), cap_w=1e8)
    steady = steady_site(site)
    most = steady.saturation().load_rps
    phase = steady.params.pool[:, PoolSpec.PHASE]
    rows, savings = [], []
    for share in LOADS:
        load = share * most
        best = _slowest(steady, load, phase)
        before, full = _settled(site, load, 1.0, 1.0)
        after, slow = _settled(site, load, *best)
        saved = 1.0 - slow / full
        savings.append(saved)
        rows.append(
            [
                f"{share:.0%}",
                f"{best[0]:.2f} / {best[1]:.2f}",
                f"{saved[0]:.1%}",
                f"{saved[1]:.1%}",
                f"{1.0 - slow.sum() / full.sum():.1%}",
                f"{before:.4f} / {after:.4f}",
            ]
        )
    lines = [
        ("prefill", [100 * s for s in LOADS], [100 * s[0] for s in savings]),
        ("decode", [100 * s for s in LOADS], [100 * s[1] for s in savings]),
    ]
    picture("phase_clocks", "IT energy saved by a clock per phase, SLA kept", lines, "load, % of saturation", "% saved")
    largest = np.max(savings, axis=0)
    header = [
        "load",
        "clocks, prefill / decode",
        "saved, prefill",
        "saved, decode",
        "both",
        "worst class's attainment, full / slower",
    ]
    return [
        *table(header, rows),
        "",
        f"Published: up to 39 % of prefill and 48 % of decode energy at equal SLA. Here at most {largest[0]:.0%} and {largest[1]:.0%}: the whole "
        "racks are counted, with CPUs, switches and the idle floor of GPUs, which no clock lowers, and no rack sleeps.",
    ]


def _slowest(steady: SteadySite, load_rps: float, phase: np.ndarray) -> tuple[float, float]:
    """Return the clocks of least IT power that keep the SLA at a load, prefill and decode, in a steady state."""
    found = []
    for which in (PREFILL, DECODE):
        best, least_w = 1.0, np.inf
        for clock in CLOCKS:
            clocks = (float(clock), 1.0) if which == PREFILL else (1.0, float(clock))
            point = steady.at(load_rps, *clocks)
            fine = point.binds is None or (which == DECODE and point.binds == "prefill")
            watts = sum(w for w, k in zip(point.pool_w, phase, strict=True) if k == which)
            if fine and watts < least_w:
                best, least_w = float(clock), watts
        found.append(best)
    return found[0], found[1]


# --------------------------------------------------------------------------------------------------- provisioned power


CUTS = (0.0, 0.1, 0.2, 0.31, 0.4)
LIMIT_CLOCKS = np.round(np.arange(1.0, 0.299, -0.05), 2)


def provisioned() -> list[str]:
    """Output per GPU when GPUs are provisioned with less than their TDP, at the best layouts."""
    rows, lines = [], []
    for name in ("gb300_nvl72", "vera_rubin_nvl144"):
        tdp_w = rack(name).groups[0].profile(None).tdp_w
        for speed in SPEEDS:
            points = []
            for clock in LIMIT_CLOCKS:
                found = serving_frontier(
                    name,
                    MODEL,
                    precision="fp4",
                    prompt_tokens=8192,
                    output_tokens=1024,
                    tokens_per_s_per_user=speed,
                    modes=("disaggregated",),
                    clock=float(clock),
                )
                if found:
                    points.append((found[0].gpu_power_w / tdp_w, found[0].output_tokens_per_s_per_gpu))
            draws, outputs = np.array(points).T
            # Between two clocks of the grid, linear; below the lowest draw there is no layout.
            kept = [float(np.interp(1.0 - cut, draws[::-1], outputs[::-1], left=np.nan)) for cut in CUTS]
            lost = [1.0 - output / outputs[0] for output in kept]
            rows.append(
                [
                    f"{name}, {speed:g} tokens/s/user",
                    f"{draws[0]:.0%}",
                    *("none" if np.isnan(value) else f"{value:.1%}" for value in lost[1:]),
                ]
            )
            lines.append((rows[-1][0], [100 * cut for cut in CUTS], [100 * value for value in lost]))
    picture(
        "provisioned", "Output lost when GPUs get less power", lines, "% less than TDP per GPU", "% less output per GPU"
    )
    return [
        *table(["output lost", "draw at full clock / TDP", *(f"{cut:.0%} below TDP" for cut in CUTS[1:])], rows),
        "",
        "Published (NVIDIA, site figure): 31 % less provisioned power per GPU costs 6 to 9 % of output per GPU. Here a GPU's mean draw in the best "
        "layout has to fit; it is below TDP at full clock already, and the more so the faster users are served, so that a part of the cut costs "
        "nothing.",
    ]


# ------------------------------------------------------------------------------------------------------------ CPX racks

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
CPX = (0, 2, 4, 6, 8)
LAYOUT_STEPS = (4, 2, 1)


def _mixed(prefill: int, cpx: int, decode: int, share: float) -> SiteConfig:
    pools = [PoolConfig("gb300_nvl72", "prefill", prefill, dp=4)]
    if cpx:
        pools.append(PoolConfig("rubin_cpx_sidecar", "prefill", cpx, pp=8))
    pools.append(PoolConfig("gb300_nvl72", "decode", decode, dp=8, mtp=True))
    mix = {"chat": 1.0 - share, "coding": share} if share > 0.0 else {"chat": 1.0}
    return SiteConfig("Mixed", 4e6, MODEL, tuple(pools), 1.0, mix, group_edges=(4096.0, 32768.0))


def _best(cpx: int, share: float) -> tuple[float, float, tuple[int, int]]:
    """Return the most requests/s under the cap with so many CPX racks, tokens/J there, and the GB300 racks of both phases."""
    known: dict[tuple[int, int], Any] = {}

    def at(racks: tuple[int, int]) -> Any:
        if racks not in known:
            known[racks] = steady_site(_mixed(racks[0], cpx, racks[1], share)).under_cap(4e6)
        return known[racks]

    here = (6, 8)
    for step in LAYOUT_STEPS:
        while True:
            around = [
                (here[0] + a * step, here[1] + b * step)
                for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))
            ]
            best = max((r for r in around if min(r) >= 1), key=lambda r: at(r).load_rps)
            if at(best).load_rps <= at(here).load_rps * (1.0 + 1e-6):
                break
            here = best
    return at(here).load_rps, at(here).tokens_per_joule, here


def cpx() -> list[str]:
    """What CPX racks bring under a cap, over the share of long prompts."""
    rows, lines = [], []
    for share in SHARES:
        found = [_best(count, share) for count in CPX]
        loads = np.array([load for load, _, _ in found])
        best = int(np.argmax(loads))
        none, some = found[0], found[best]
        rows.append(
            [
                f"{share:.0%}",
                f"{none[0]:,.0f} ({none[2][0]} + {none[2][1]})",
                f"{some[0]:,.0f} ({some[2][0]} + {CPX[best]} CPX + {some[2][1]})",
                f"{some[0] / none[0] - 1.0:+.1%}",
                f"{some[1] / none[1] - 1.0:+.1%}",
            ]
        )
        lines.append((f"{share:.0%} coding", list(CPX), list(100.0 * loads / loads[0])))
    picture("cpx", "Requests/s under 4 MW, best GB300 racks beside, without CPX = 100", lines, "CPX racks", "%")
    header = [
        "share of coding",
        "requests/s without (GB300 prefill + decode)",
        "with the best number",
        "more served",
        "tokens/J",
    ]
    return [
        *table(header, rows),
        "",
        "A 4 MW site, chat with a growing share of coding prompts (mean 11,400 tokens); for each number of CPX racks the best numbers of GB300 "
        "racks, which cost nothing here but power: without CPX many of them run at low clocks. Rubin CPX is hypothetical: announced, withdrawn, "
        "never shipped; its efficiency is assumed, not measured.",
    ]


MOST_RACKS = 64
VERA_RUBIN = "vera_rubin_nvl144"
CPX_RACK = "vera_rubin_nvl144_cpx"
SIDECAR = "rubin_cpx_sidecar"


def _whole_site(pools: Sequence[PoolConfig], share: float, cap_w: float = 4e6) -> SiteConfig:
    """Return a site of chat with a share of coding."""
    mix = {"chat": 1.0 - share, "coding": share} if share > 0.0 else {"chat": 1.0}
    return SiteConfig("Compared", cap_w, MODEL, tuple(pools), 1.0, mix, group_edges=(4096.0, 32768.0))


def _apart(kind: str, prefill: int, decode: int, profile: str | None = None) -> list[PoolConfig]:
    """Return prefill and decode racks of one kind."""
    return [
        PoolConfig(kind, "prefill", prefill, profile=profile, dp=4),
        PoolConfig(kind, "decode", decode, profile=profile, dp=8, mtp=True),
    ]


def _with_sidecars(sidecars: int, decode: int) -> list[PoolConfig]:
    return [
        PoolConfig(SIDECAR, "prefill", sidecars, pp=8),
        PoolConfig(VERA_RUBIN, "decode", decode, dp=8, mtp=True),
    ]


def _cpx_racks(racks: int) -> list[PoolConfig]:
    return [
        PoolConfig(CPX_RACK, "prefill", racks, pp=8),
        PoolConfig(CPX_RACK, "decode", racks, dp=8, mtp=True),
    ]


def _climb(score: Callable[[tuple[int, ...]], float], begin: tuple[int, ...]) -> tuple[int, ...]:
    """Return whole numbers, each at least 1, that no step of 4, 2 or 1 in one or against one another improves."""
    known: dict[tuple[int, ...], float] = {}

    def at(point: tuple[int, ...]) -> float:
        if point not in known:
            known[point] = score(point)
        return known[point]

    moves = [tuple(int(k == j) for k in range(len(begin))) for j in range(len(begin))]
    moves += [tuple(-v for v in move) for move in moves]
    if len(begin) == 2:
        moves += [(1, -1), (-1, 1)]
    here = begin
    for step in LAYOUT_STEPS:
        while True:
            around = [tuple(h + step * m for h, m in zip(here, move, strict=True)) for move in moves]
            best = max((point for point in around if 1 <= min(point) and max(point) <= MOST_RACKS), key=at)
            if at(best) <= at(here) * (1.0 + 1e-6):
                break
            here = best
    return here


CpxKind = tuple[str, Callable[..., list[PoolConfig]], tuple[int, ...], Callable[..., str]]
CPX_KINDS: tuple[CpxKind, ...] = (
    ("GB300", lambda p, d: _apart("gb300_nvl72", p, d), (30, 10), lambda p, d: f"{p} + {d}"),
    ("Vera Rubin", lambda p, d: _apart(VERA_RUBIN, p, d), (16, 6), lambda p, d: f"{p} + {d}"),
    ("sidecars to Vera Rubin 1:1", lambda n: _with_sidecars(n, n), (8,), lambda n: f"{n} + {n}"),
    ("1:2", lambda n: _with_sidecars(n, 2 * n), (6,), lambda n: f"{n} + {2 * n}"),
    ("2:1", lambda n: _with_sidecars(2 * n, n), (5,), lambda n: f"{2 * n} + {n}"),
    ("NVL144 CPX", lambda n: _cpx_racks(n), (8,), lambda n: f"{n}"),
)
"""Name, pools by numbers of racks, numbers to begin the search with, and how they are written."""


def cpx_racks() -> list[str]:
    """Racks with CPX of every kind under a cap, over the share of long prompts."""
    rows: list[list[str]] = []
    lines: list[tuple[str, list[float], list[float]]] = [(name, [], []) for name, *_ in CPX_KINDS]
    for share in SHARES:
        cells = []
        for place, (_, pools, begin, written) in enumerate(CPX_KINDS):

            def served(point: tuple[int, ...], pools: Any = pools, share: float = share) -> float:
                return float(steady_site(_whole_site(pools(*point), share)).under_cap(4e6).load_rps)

            best = _climb(served, begin)
            point = steady_site(_whole_site(pools(*best), share)).under_cap(4e6)
            cells.append(f"{point.tokens_per_joule:.3f} ({written(*best)})")
            lines[place][1].append(100.0 * share)
            lines[place][2].append(point.tokens_per_joule)
        rows.append([f"{share:.0%}", *cells])
    picture("cpx_racks", "Tokens per joule of facility energy under 4 MW", lines, "share of coding, %", "tokens/J")
    header = ["share of coding", "GB300 (prefill + decode)", "Vera Rubin (prefill + decode)"]
    header += ["sidecars + Vera Rubin, 1:1", "1:2", "2:1", "NVL144 CPX (racks)"]
    return [
        *table(header, rows),
        "",
        "Output tokens per joule of facility energy in the steady state of the largest load that the SLA and 4 MW allow, and the racks; the "
        f"numbers of racks are those that serve most (a local search), at most "
        f"{MOST_RACKS} of a kind. A sidecar is a rack of 144 CPX GPUs that prefills for Vera "
        "Rubin racks, an NVL144 CPX rack has as many beside its 72 Rubin GPUs: in GPUs it is the ratio 1:1, with one rack's CPUs and switches "
        "instead of two's. NVIDIA announced both forms and no ratio for the first. Both are hypothetical: announced, withdrawn, never shipped.",
    ]


def break_even() -> list[str]:
    """What a rack with CPX may cost, in GB300 racks, before it serves less per dollar of racks."""
    rows = []
    for share in SHARES:

        def per_rack(point: tuple[int, ...], pools: Any, share: float = share) -> float:
            return float(steady_site(_whole_site(pools(*point), share, 1e9)).saturation().load_rps) / sum(point)

        def gb300(p: int, d: int) -> list[PoolConfig]:
            return _apart("gb300_nvl72", p, d)

        split = _climb(lambda point: per_rack(point, gb300), (24, 8))  # noqa: B023 - called at once
        base = per_rack(split, gb300)
        mixed = steady_site(_whole_site(_cpx_racks(8), share, 1e9)).saturation()
        whole = mixed.load_rps / 8 / base
        worth = []
        for decode in range(1, 33):
            pools = [
                PoolConfig(SIDECAR, "prefill", 4, pp=8),
                PoolConfig("gb300_nvl72", "decode", decode, dp=8, mtp=True),
            ]
            served = steady_site(_whole_site(pools, share, 1e9)).saturation().load_rps
            worth.append((served / base - decode) / 4)
        best = int(np.argmax(worth))
        rows.append(
            [
                f"{share:.0%}",
                f"{base:,.0f} ({split[0]} + {split[1]})",
                f"{worth[best]:.1f} (4 + {best + 1} GB300)",
                f"{whole:.1f}",
            ]
        )
    header = [
        "share of coding",
        "requests/s per GB300 rack (prefill + decode)",
        "break-even price of a CPX sidecar",
        "of an NVL144 CPX rack",
    ]
    return [
        *table(header, rows),
        "",
        "Nobody has published what a CPX rack costs. The break-even price is what one may cost, as a multiple of the price of a GB300 rack, so "
        "that as many requests/s are served per dollar of racks as by GB300 racks alone in their best split; no price is needed for it. Racks at "
        "full clock at the largest load that keeps the SLA, power not limited and not paid for. Sidecars are worth what they replace: four of "
        "them beside the number of GB300 decode racks at which each replaces most. Both racks are hypothetical: announced, withdrawn, never "
        "shipped.",
    ]


# ------------------------------------------------------------------------------------------------------ power profiles


def profiles() -> list[str]:
    """Vera Rubin racks in their two power profiles under the same cap."""
    rows = []
    for racks in (16, 20, 24, 32):
        row = [str(racks)]
        found = []
        for profile in ("max_p", "max_q"):
            points = [
                steady_site(_whole_site(_apart(VERA_RUBIN, p, racks - p, profile), 0.05)).under_cap(4e6)
                for p in range(racks // 3, racks)
            ]
            best = int(np.argmax([point.load_rps for point in points]))
            found.append(points[best])
            prefill = racks // 3 + best
            row.append(f"{points[best].load_rps:,.0f} ({prefill} + {racks - prefill})")
        row += [f"{point.tokens_per_joule:.3f}" for point in found]
        row.append(f"{found[1].tokens_per_joule / found[0].tokens_per_joule - 1.0:+.1%}")
        rows.append(row)
    header = [
        "racks",
        "requests/s, Max-P",
        "requests/s, Max-Q",
        "tokens/J, Max-P",
        "tokens/J, Max-Q",
        "Max-Q over Max-P",
    ]
    return [
        *table(header, rows),
        "",
        "Vera Rubin NVL144 under 4 MW, chat with 5 % coding, the best split into prefill + decode, the best clock of each phase, at the largest "
        "load that the SLA and the cap allow. Max-P allows 2,300 W per GPU and 227 kW per rack, Max-Q 1,800 W and 190 kW (status: secondary "
        "report and analyst estimates). The profile is a ceiling that the clock can be set below: with racks enough to run below it, the two "
        "differ by little.",
    ]


# ------------------------------------------------------------------------------------------- disaggregated, aggregated


def aggregated() -> list[str]:
    """Output per GPU of disaggregated over aggregated serving, over speed and prompt length."""
    speeds = (5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0)
    rows, lines = [], []
    for prompt in (1024, 8192, 32768):
        outputs: list[list[float]] = []
        for mode in ("disaggregated", "aggregated"):
            outputs.append(
                [
                    point[0].output_tokens_per_s_per_gpu if point else float("nan")
                    for speed in speeds
                    for point in [
                        serving_frontier(
                            "gb300_nvl72",
                            MODEL,
                            precision="fp4",
                            prompt_tokens=prompt,
                            output_tokens=1024,
                            tokens_per_s_per_user=speed,
                            modes=(mode,),  # type: ignore[arg-type]
                        )
                    ]
                ]
            )
        gains = np.array(outputs[0]) / np.array(outputs[1])
        rows.append([f"{prompt:,}", *("no layout" if np.isnan(gain) else f"{gain:.2f}" for gain in gains)])
        lines.append((f"prompts of {prompt:,} tokens", list(speeds), list(gains)))
    picture(
        "aggregated", "Output per GPU, disaggregated over aggregated", lines, "tokens/s per user (1 / TPOT)", "ratio"
    )
    return [
        *table(["prompt tokens", *(f"{speed:g} tokens/s" for speed in speeds)], rows),
        "",
        "GB300 NVL72, DeepSeek-R1 in fp4, answers of 1,024 tokens, the best layout of each mode. Published gains on NVL72 racks are 1.4x to 6x, "
        "growing with prompt length and speed; at short prompts and loose limits there is nothing to gain.",
    ]


def _clocks(steady: SteadySite, load_rps: float, together: bool) -> tuple[float, float]:
    """Return the clocks of least power that keep the SLA at a load, prefill and decode."""
    if not together:
        return _slowest(steady, load_rps, steady.params.pool[:, PoolSpec.PHASE])
    points = {float(c): steady.at(load_rps, float(c), float(c)) for c in CLOCKS}
    kept = [c for c, point in points.items() if point.binds is None]
    clock = min(kept, key=lambda c: points[c].facility_w, default=1.0)
    return clock, clock


def _simulated(site: SiteConfig, load_rps: float, clocks: tuple[float, float]) -> tuple[float, float, float]:
    """Return requests/s served within the SLA, the worst class's attainment and tokens per joule of half an hour in the engine."""
    env = AIFactoryEnv(
        site=dataclasses.replace(site, demand_rps=load_rps),
        scenario="steady",
        horizon_s=1800.0,
        levers=("clock", "active_racks"),
        lambda_tokens_per_joule=1.0,
    )
    env.reset(seed=1)
    phase = env.factory.params.pool[:, PoolSpec.PHASE]
    action = env.action_layout.encode(
        clock=np.where(phase == PREFILL, *clocks), racks=env.action_layout.racks.astype(float)
    )
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(action)
    worst = min(value for key, value in info.items() if key.startswith("class/") and key.endswith("/attainment"))
    return info["requests_met_slo"] / 1800.0, worst, info["good_tokens"] / info["energy_j"]


AGGREGATED_RACKS = 10
AGGREGATED_CAP_W = 1.0e6
AGGREGATED_DP = (4, 8, 12, 24, 36)
AGGREGATED_MIXES: dict[str, dict[str, float]] = {
    "chat": {"chat": 1.0},
    "chat, 10 % coding": {"chat": 0.9, "coding": 0.1},
    "chat, 40 % coding": {"chat": 0.6, "coding": 0.4},
    "customer_service": {"customer_service": 1.0},
    "reasoning": {"reasoning": 1.0},
}
SPARE_CLOCKS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
LOAD_STEPS = np.round(np.arange(1.0, 0.299, -0.05), 2)
KEPT = 0.95


def _best_in_engine(site: SiteConfig, most_rps: float, together: bool) -> tuple[float, float, float]:
    """Return the largest load that the engine serves with the SLA under the cap, of steps of 5 % of ``most_rps``.

    Clocks are constant: those of least power in a steady state and as many above them as it takes, whichever gives most tokens per joule.

    Returns:
        Requests/s, attainment of the worst class, tokens per joule; zeros where no step is served.
    """
    steady = steady_site(site)
    for share in LOAD_STEPS:
        load = float(share) * most_rps
        least = _clocks(steady, load, together)
        tries = {tuple(min(1.0, round(clock + spare, 2)) for clock in least) for spare in SPARE_CLOCKS}
        found = [_simulated(site, load, clocks) for clocks in sorted(tries)]
        kept = [point for point in found if point[1] >= KEPT]
        if kept:
            return load, *max(kept, key=lambda point: point[2])[1:]
    return 0.0, 0.0, 0.0


def aggregated_site() -> list[str]:
    """The same racks under the same cap, split into phases or all doing both, simulated."""
    rows = []
    kind = "gb300_nvl72"
    for name, mix in AGGREGATED_MIXES.items():

        def site(pools: Sequence[PoolConfig], mix: dict[str, float] = mix) -> SiteConfig:
            return SiteConfig("Compared", AGGREGATED_CAP_W, MODEL, tuple(pools), 1.0, mix)

        splits = [site(_apart(kind, p, AGGREGATED_RACKS - p)) for p in range(1, AGGREGATED_RACKS)]
        shared = [site([PoolConfig(kind, "both", AGGREGATED_RACKS, dp=dp, mtp=True)]) for dp in AGGREGATED_DP]
        best = []
        for together, candidates in ((False, splits), (True, shared)):
            loads = [steady_site(candidate).under_cap(AGGREGATED_CAP_W).load_rps for candidate in candidates]
            chosen = candidates[int(np.argmax(loads))]
            best.append((chosen, max(loads), _best_in_engine(chosen, max(loads), together)))
        (split, load, one), (both, other, two) = best
        rows.append(
            [
                name,
                f"{load:,.0f} ({split.pools[0].racks} + {split.pools[1].racks})",
                f"{other:,.0f} (dp {both.pools[0].dp})",
                f"{load / other:.2f}",
                f"{one[0]:,.0f}, {one[2]:.3f}",
                f"{two[0]:,.0f}, {two[2]:.3f}",
                f"{one[0] / two[0]:.2f}",
            ]
        )
    header = [
        "mix",
        "steady: disaggregated, requests/s (prefill + decode racks)",
        "aggregated (layout)",
        "ratio",
        "engine: disaggregated, requests/s, tokens/J",
        "aggregated",
        "ratio",
    ]
    return [
        *table(header, rows),
        "",
        f"{AGGREGATED_RACKS} GB300 racks under {AGGREGATED_CAP_W / 1e6:g} MW, DeepSeek-R1 in fp4 with multi-token prediction; the best split, and "
        "the best of five aggregated layouts. First the largest load that the SLA and the cap allow in a steady state; then the largest, in "
        f"steps of 5 % of that, of which the engine serves {KEPT:.0%} of the worst class within its limits for half an hour, arrivals and lengths "
        "random, the brake watching, at the best constant clocks. Limits are those of the classes, so users are served at different speeds: the "
        "table above compares at equal speed.",
    ]


# ----------------------------------------------------------------------------------------------------- roles and power

ROLE_CAP_W = 2.6e6
ROLE_RACKS = 24
ROLE_MIXES = {
    "chat": {"chat": 1.0},
    "20% coding": {"chat": 0.8, "coding": 0.2},
    "30% reasoning": {"chat": 0.7, "reasoning": 0.3},
}
ROLE_CASES = ((17, "chat"), (17, "20% coding"), (17, "30% reasoning"), (12, "chat"), (12, "20% coding"))
"""Racks of the prefill pool as built, and the traffic: 17 of 24 serve most chat under uniform limits, 12 are half of them."""

ROLE_PLOTTED = (17, "30% reasoning")

ROLE_LIMITS = np.round(np.arange(0.35, 1.001, 0.05), 2)
"""Power limits of prefill racks that are tried, as shares of a rack's largest draw; decode racks get what is left of the budget."""

LIMIT_MARGIN = 0.96
"""Share of the cap that the limits of all racks add up to, cooling included: clocks are set for the batch as it was some seconds ago."""

CONSTANT = Scenario("constant", "Poisson arrivals at constant rates", daily=False, overdispersion=0.0)
ROLE_KEPT = 0.98
"""Share of the cap that a setting may draw in the search: other seeds draw a little more. Not every limit can be kept, see ``levers``."""

SETTLE_STEPS, MEASURED_STEPS = 40, 60
SEARCH_SEED, REPORT_SEEDS = 1, (11, 12, 13)
HELD = 0.95
HELD_STEP = 1.02

Setting = tuple[int, float, float]
"""Racks in prefill, and the power limits of a prefill and of a decode rack, W."""

ROLE_KINDS = {
    "uniform": "as built, one limit for all",
    "limits": "as built, a limit per pool",
    "roles": "roles moved, one limit for all",
    "both": "roles moved, a limit per pool",
}


@dataclasses.dataclass(frozen=True)
class Fate:
    """What became of an hour's requests.

    Attributes:
        attainment: Share that met the SLO.
        worst: The same of the class that fared worst.
        per_joule: Requests that met it, per facility joule.
        most_w: Largest facility draw of a minute, W.
    """

    attainment: float
    worst: float
    per_joule: float
    most_w: float


class RoleSite:
    """GB300 racks in one pair of pools, limited in power, under constant demand.

    Args:
        built: Racks of the prefill pool as built.
        mix: Shares of the classes.
    """

    def __init__(self, built: int, mix: dict[str, float]) -> None:
        """Divide the cap."""
        self.built, self.mix = built, mix
        pools = (
            PoolConfig("gb300_nvl72", "prefill", built, dp=4),
            PoolConfig("gb300_nvl72", "decode", ROLE_RACKS - built, dp=8, mtp=True),
        )
        self.site = SiteConfig("Pair", ROLE_CAP_W, MODEL, pools, 1.0, mix, group_edges=(4096.0, 32768.0))
        nameplate_w = nameplate_it_w(self.site)
        self.rack_w = nameplate_w / ROLE_RACKS
        self.budget_w = LIMIT_MARGIN * ROLE_CAP_W
        for _ in range(50):
            self.budget_w = LIMIT_MARGIN * ROLE_CAP_W / site_pue(self.site, self.budget_w / nameplate_w)
        self._known: dict[tuple[float, Setting, int], Fate] = {}

    def uniform(self, prefill: int) -> Setting:
        """Return the setting with so many racks in prefill and the same limit for all."""
        return prefill, self.budget_w / ROLE_RACKS, self.budget_w / ROLE_RACKS

    def divided(self, prefill: int) -> list[Setting]:
        """Return settings with so many racks in prefill whose limits add up to the budget, the uniform one among them."""
        found = [self.uniform(prefill)]
        for share in ROLE_LIMITS:
            rest_w = (self.budget_w - prefill * share * self.rack_w) / (ROLE_RACKS - prefill)
            if rest_w >= LEAST_LIMIT * self.rack_w:
                found.append((prefill, float(share * self.rack_w), float(min(rest_w, self.rack_w))))
        return found

    def fate(self, load_rps: float, setting: Setting, seed: int = SEARCH_SEED) -> Fate:
        """Simulate constant demand: racks move and limits hold from the first action on, the hour after ``SETTLE_STEPS`` counts."""
        key = (load_rps, setting, seed)
        if key not in self._known:
            self._known[key] = self._simulate(*key)
        return self._known[key]

    def _simulate(self, load_rps: float, setting: Setting, seed: int) -> Fate:
        prefill, *limits_w = setting
        steps = SETTLE_STEPS + MEASURED_STEPS
        env = AIFactoryEnv(
            # The limits have to keep the cap: the brake would hide it if they did not.
            site=dataclasses.replace(self.site, cap_w=1e8, demand_rps=load_rps),
            scenario=CONSTANT,
            horizon_s=60.0 * steps,
            levers=("clock", "active_racks", "power_limit", "role"),
            lambda_tokens_per_joule=1.0,
        )
        env.reset(seed=seed)
        action = env.action_layout.encode(
            clock=1.0,
            racks=np.array([prefill, ROLE_RACKS - prefill]),
            role=prefill,
            power_limit_w=np.array(limits_w),
        )
        keys = ["energy_j", *(f"class/{name}/{what}" for name in self.mix for what in ("met", "missed"))]
        totals = np.zeros((steps, len(keys)))
        for step in range(steps):
            info = env.step(action)[4]
            totals[step] = [info[key] for key in keys]
        assert env.factory.engine.state.pool_int[0, 0, PoolInt.ACTIVE] == prefill
        spent = totals[-1] - totals[SETTLE_STEPS - 1]
        met, missed = spent[1::2], spent[2::2]
        return Fate(
            float(met.sum() / (met + missed).sum()),
            float((met / (met + missed)).min()),
            float(met.sum() / spent[0]),
            float(np.diff(totals[SETTLE_STEPS - 1 :, 0]).max() / 60.0),
        )

    def best(self, load_rps: float, kind: str) -> Setting:
        """Return the setting with the highest attainment at a load, to a thousandth; of equal ones that with most requests per joule.

        Settings that do not keep the cap are not taken as long as there is one that does.
        Where both may change: first the roles under one limit for all, then the limits of that and of the nearest roles.
        """

        def rank(setting: Setting) -> tuple[bool, float, float]:
            fate = self.fate(load_rps, setting)
            return fate.most_w <= ROLE_KEPT * ROLE_CAP_W, round(fate.attainment, 3), fate.per_joule

        if kind == "uniform":
            return self.uniform(self.built)
        if kind == "limits":
            return max(self.divided(self.built), key=rank)
        moved = max((self.uniform(prefill) for prefill in range(3, ROLE_RACKS - 1)), key=rank)
        if kind == "roles":
            return moved
        near = range(moved[0] - 1, moved[0] + 2)
        return max((setting for prefill in near for setting in self.divided(prefill)), key=rank)

    def holds(self, kind: str, high_rps: float) -> float:
        """Return the largest load at which the best setting keeps every class at ``HELD``, to ``HELD_STEP``, requests/s."""
        low = 0.1 * high_rps
        while high_rps > HELD_STEP * low:
            middle = float(np.sqrt(low * high_rps))
            good = self.fate(middle, self.best(middle, kind)).worst >= HELD
            low, high_rps = (middle, high_rps) if good else (low, middle)
        return low

    def report(self, load_rps: float, setting: Setting) -> Fate:
        """Return the mean over seeds that the search has not seen; of the draw, the largest."""
        fates = [dataclasses.astuple(self.fate(load_rps, setting, seed)) for seed in REPORT_SEEDS]
        attainment, worst, per_joule, _ = np.mean(fates, axis=0)
        return Fate(float(attainment), float(worst), float(per_joule), max(fate[3] for fate in fates))


def roles() -> list[str]:
    """What moving racks between the phases and dividing the power brings at peak load, against uniform limits."""
    held_rows, met_rows, lines = [], [], []
    gains: dict[str, float] = {}
    alone: list[float] = []
    most_w = held_w = 0.0
    for built, name in ROLE_CASES:
        case = RoleSite(built, ROLE_MIXES[name])
        title = f"{name}, built {built} + {ROLE_RACKS - built}"
        above = 1.2 * max(
            steady_site(RoleSite(prefill, case.mix).site).saturation().load_rps for prefill in range(4, ROLE_RACKS, 4)
        )
        held = {kind: case.holds(kind, above) for kind in ROLE_KINDS}
        # What the search for both has not found it has not tried: each alone is one of its settings.
        peak = max(held.values())
        at_own = {kind: case.report(held[kind], case.best(held[kind], kind)) for kind in ("uniform", "both")}
        chosen = {kind: case.best(peak, kind) for kind in ROLE_KINDS}
        at_peak = {kind: case.report(peak, setting) for kind, setting in chosen.items()}
        fates = (*at_own.values(), *at_peak.values())
        most_w = max(most_w, *(fate.most_w for fate in fates))
        held_w = max(held_w, *(fate.most_w for fate in fates if fate.attainment >= HELD))
        gains[title] = held["both"] / held["uniform"]
        ratio = at_peak["both"].attainment / max(at_peak["uniform"].attainment, 1e-9)
        if gains[title] > 1.05:
            alone.append((held["limits"] - held["uniform"]) / (held["both"] - held["uniform"]))
        joules = [1e3 * at_own[kind].per_joule for kind in ("uniform", "both")]
        prefill, *limits_w = chosen["both"]
        held_rows.append(
            [
                title,
                *(f"{load:,.0f}" for load in held.values()),
                f"{gains[title]:.2f}x",
                f"{joules[0]:.2f} / {joules[1]:.2f}",
                f"{joules[1] / joules[0]:.2f}x",
            ]
        )
        met_rows.append(
            [
                title,
                f"{peak:,.0f}",
                *(f"{100.0 * fate.attainment:.1f}%" for fate in at_peak.values()),
                f"{ratio:.2f}x" if ratio < 10.0 else "over 10x",
                f"{prefill} + {ROLE_RACKS - prefill}, {limits_w[0] / 1e3:.0f} / {limits_w[1] / 1e3:.0f} kW",
            ]
        )
        if (built, name) == ROLE_PLOTTED:
            loads = np.linspace(0.3, 1.2, 10)
            for kind, label in ROLE_KINDS.items():
                reached = [100.0 * case.report(float(x) * peak, chosen[kind]).attainment for x in loads]
                lines.append((label, list(100.0 * loads), reached))
    picture(
        "roles",
        f"SLA attainment under one cap, {ROLE_PLOTTED[1]}, built {ROLE_PLOTTED[0]} + {ROLE_RACKS - ROLE_PLOTTED[0]}",
        lines,
        "load, % of what roles and limits hold",
        "% of requests",
    )
    least, most = min(gains.values()), max(gains.values())
    return [
        "The largest load held, and requests that met the SLO per kJ of facility energy at the load that each holds:",
        "",
        *table(
            [
                "traffic, racks built",
                *(f"{kind}, requests/s" for kind in ROLE_KINDS),
                "gain",
                "per kJ, uniform / both",
                "gain",
            ],
            held_rows,
        ),
        "",
        "At the peak, the share of requests that met the SLO:",
        "",
        *table(["traffic, racks built", "requests/s", *ROLE_KINDS, "ratio", "racks and limits of both"], met_rows),
        "",
        "Published (RAPID, arXiv 2601.12241, MI300X nodes): up to 2x SLO attainment at peak load over uniform caps and fixed roles, and up to 1.7x "
        f"requests per second and watt. The cap is the same here, so the latter is the load held: {least:.2f}x to {most:.2f}x, nothing where the "
        "racks were built for the traffic they get, most where it has moved away from them. The ratio of attainments at one load says less, and "
        "here can be as large as one likes: beyond what it holds, a site that serves first come first served and turns nobody away at the gate is "
        "late for many or nearly all, as the plot shows; and limits that were divided for one load fall off a cliff beyond it. Roles bring nearly "
        f"all of the gain, a limit per pool {min(alone):.0%} to {max(alone):.0%} of it alone and next to nothing beside roles: of 24 racks one is "
        "4 %, so that a split meets the traffic closely; among a few GPUs it does not, and power has more to even out. Settings are searched with "
        "the traffic known and constant; racks take four minutes to change (drain and load), limits none. Largest draw of a minute at loads that are "
        f"held: {held_w / 1e6:.2f} MW; far beyond them: {most_w / 1e6:.2f} MW.",
    ]


EXPERIMENTS: dict[str, Callable[[], list[str]]] = {
    "phase_clocks": phase_clocks,
    "provisioned": provisioned,
    "cpx": cpx,
    "cpx_racks": cpx_racks,
    "break_even": break_even,
    "profiles": profiles,
    "aggregated": aggregated,
    "aggregated_site": aggregated_site,
    "roles": roles,
}


def main() -> None:
    """Run the experiments and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--stdout", action="store_true", help="print instead of writing docs/experiments.md")
    chosen = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    names = [match.group(2) for match in BLOCK.finditer(page)]
    if sorted(names) != sorted(EXPERIMENTS):
        raise SystemExit(f"error: {PAGE.name} has the blocks {names}; it must have each of {list(EXPERIMENTS)} once.")
    done = {name: "\n".join(EXPERIMENTS[name]()) + "\n" for name in chosen.only}
    page = BLOCK.sub(lambda m: m.group(1) + done[m.group(2)] + m.group(3) if m.group(2) in done else m.group(0), page)
    if chosen.stdout:
        print("\n".join(done.values()))
    else:
        PAGE.write_text(page, encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
