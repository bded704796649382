"""Fill the table of ``docs/training_block.md``: a curtailment by a quarter at a site that trains beside serving.

``python docs/tables/training_block.py`` (minutes); ``--stdout`` prints it and writes nothing, ``--seeds`` sets how many evaluation seeds it takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ai_factory_baselines as baselines
from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.levers import DEFAULT_LEVERS
from ai_factory_gym.scenarios import Scenario, scenario
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.sites.training import TrainingConfig

PAGE = Path(__file__).parents[1] / "training_block.md"
BLOCK = re.compile(r"(<!-- generated curtailment -->\n).*?(<!-- end curtailment -->)", re.DOTALL)

FIRST_SEED = 2_000_000
HOUR_S = 3600.0
RACKS = 3
BEFORE_H, CURTAILED_H, AFTER_H = 2.0, 3.0, 2.0
SLOWED = 0.5
"""Clock of the job that is slowed."""

Policy = Callable[[AIFactoryEnv, np.ndarray], np.ndarray]


def policy(env: AIFactoryEnv, clock: float | None) -> Policy:
    """Return the rule ``reactive`` that sets the job's clock while a curtailment lasts, 0 to pause it; None leaves the job alone."""
    rule = baselines.make("reactive", env)
    memory: Any = None

    def act(env: AIFactoryEnv, observation: np.ndarray) -> np.ndarray:
        nonlocal memory
        action, memory = rule.predict(observation, memory)
        if clock is not None and observation[env.observation_layout["cap"]][0] < 0.999:
            place = env.action_layout["training"]
            action = action.copy()
            action[place] = env.action_layout.encode(training=clock)[place]
        return np.asarray(action)

    return act


def day(hour: float) -> Scenario:
    """Return a day with 25 % less for three hours, announced an hour ahead."""
    (event, _) = scenario("curtailment").cap_events
    assert event.depth == 0.25 and event.duration_s == CURTAILED_H * HOUR_S
    event = dataclasses.replace(event, window_start_hour=hour, window_end_hour=hour)
    return dataclasses.replace(scenario("curtailment"), cap_events=(event,))


def play(site: SiteConfig, hour: float, clock: float | None, seed: int) -> list[Mapping[str, float]]:
    """Return the infos of every step, until every fate is decided."""
    env = AIFactoryEnv(
        site=site,
        scenario=day(hour),
        start_time_s=(hour - BEFORE_H) * HOUR_S,
        horizon_s=(BEFORE_H + CURTAILED_H + AFTER_H) * HOUR_S,
        levers=DEFAULT_LEVERS if site.training is None else (*DEFAULT_LEVERS, "training"),
        lambda_tokens_per_joule=3.0,
        drain=True,
    )
    observation, _ = env.reset(seed=FIRST_SEED + seed)
    act = policy(env, clock)
    infos: list[Mapping[str, float]] = []
    truncated = False
    while not truncated:
        observation, _, _, truncated, info = env.step(act(env, observation))
        infos.append(info)
    return infos


def worst_class(infos: list[Mapping[str, float]]) -> float:
    """Return the lowest attainment of an interactive class in the hours of the curtailment."""
    before, after = (infos[round(60.0 * hours) - 1] for hours in (BEFORE_H, BEFORE_H + CURTAILED_H))
    shares = []
    for key in after:
        if key.endswith("/attainment") and "/batch/" not in key:
            name = key.split("/")[1]
            met, missed = (after[f"class/{name}/{k}"] - before[f"class/{name}/{k}"] for k in ("met", "missed"))
            shares.append(met / (met + missed))
    return min(shares)


def table(seeds: range) -> list[str]:
    """Return the table."""
    edge = load_site("edge")
    trains = dataclasses.replace(edge, training=TrainingConfig("gb300_nvl72", RACKS))
    kinds: dict[str, tuple[SiteConfig, float | None]] = {
        "no block": (edge, None),
        "runs on": (trains, None),
        f"slowed to clock {SLOWED:g}": (trains, SLOWED),
        "paused": (trains, 0.0),
    }
    lines = [
        "| from, h | the job | worst interactive class in these hours | good tokens | tokens/J | progress over that of a job left alone | "
        "lost, s | energy above the cap, s of it | braked, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for hour in (15.0, 18.0):
        usual = 1.0
        for name, (site, clock) in kinds.items():
            found = [play(site, hour, clock, seed) for seed in seeds]
            last = [infos[-1] for infos in found]
            worst = [worst_class(infos) for infos in found]

            def mean(key: str, last: list[Mapping[str, float]] = last) -> float:
                return float(np.mean([info[key] for info in last]))

            usual = mean("good_tokens") if site is edge else usual
            trained = (
                f"{mean('training_share'):.1%} | {mean('training_lost_s'):.0f}" if site.training is not None else " | "
            )
            lines.append(
                f"| {hour:g} | {name} | {np.mean(worst):.4f} (lowest {min(worst):.4f}) | {mean('good_tokens') / usual:.1%} | "
                f"{mean('tokens_per_joule'):.3f} | {trained} | {mean('cap_violation_j') / edge.cap_w:.2f} | {mean('brake_s'):.0f} |"
            )
    return lines


def main() -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stdout", action="store_true", help="print the table; write nothing")
    parser.add_argument("--seeds", type=int, default=3, help="evaluation seeds of each row (default 3)")
    arguments = parser.parse_args()
    text = "\n".join(table(range(arguments.seeds)))
    if arguments.stdout:
        print(text)
        return
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: f"{m.group(1)}{text}\n{m.group(2)}", page), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
