"""Draw the picture of the README: one day of the Edge site under the rule ``reactive``.

Run ``python docs/figures/day.py`` (needs the ``plot`` extra); it writes ``docs/images/edge_day.png``.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ai_factory_baselines
import ai_factory_gym  # noqa: F401 - registers the tasks
from ai_factory_gym.evaluation import EVALUATION_SEEDS

OUTPUT = Path(__file__).parents[1] / "images" / "edge_day.png"
TASK = "ai_factory/Edge-v0"
SCENARIO = "curtailment"


def record(seed: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Run one day and return its series by name, and the pool names."""
    env = gymnasium.make(TASK, scenario=SCENARIO)
    policy = ai_factory_baselines.make("reactive", env)
    observation, _ = env.reset(seed=seed)
    layout = env.unwrapped.observation_layout
    state, start = None, np.array([True])
    rows: list[list[float]] = []
    good = 0.0
    while True:
        action, state = policy.predict(observation, state=state, episode_start=start)
        start = np.array([False])
        observation, _, _, truncated, info = env.step(action)
        arrivals = float(observation[layout.slices["class_rate"]] @ layout.class_rate)
        awake = observation[layout.slices["pool_active"]] + observation[layout.slices["pool_draining"]]
        rows.append(
            [
                info["time_s"] / 3600.0,
                info["facility_power_w"] / 1e6,
                info["cap_w"] / 1e6,
                arrivals / 1e3,
                (info["good_tokens"] - good) / 60.0 / info["facility_power_w"],
                *awake,
                *observation[layout.slices["pool_clock"]],
            ]
        )
        good = info["good_tokens"]
        if truncated:
            break
    names = [pool.name for pool in env.unwrapped.pools]
    columns = ["hour", "power", "cap", "arrivals", "tokens_per_joule"]
    columns += [f"awake {name}" for name in names] + [f"clock {name}" for name in names]
    return dict(zip(columns, np.array(rows).T, strict=True)), names


def draw(series: dict[str, np.ndarray], names: list[str]) -> None:
    """Draw three panels over the day: power and demand, racks awake, clocks."""
    figure, axes = plt.subplots(3, 1, figsize=(9, 7), sharex=True, height_ratios=(2, 1, 1), layout="constrained")
    hour = series["hour"]
    axes[0].plot(hour, series["cap"], "k--", label="cap")
    axes[0].fill_between(hour, series["power"], alpha=0.35)
    axes[0].plot(hour, series["power"], label="facility power")
    axes[0].set_ylabel("MW")
    axes[0].set_ylim(0, 1.1 * series["cap"].max())
    demand = axes[0].twinx()
    demand.plot(hour, series["arrivals"], color="tab:red", linewidth=0.8, label="arrivals")
    demand.set_ylabel("thousand requests/s")
    demand.set_ylim(0, None)
    lines = [*axes[0].get_lines(), *demand.get_lines()]
    axes[0].legend(lines, [str(line.get_label()) for line in lines], loc="lower right", ncols=3)
    for name in names:
        axes[1].plot(hour, 100 * series[f"awake {name}"], label=name, drawstyle="steps-post")
        axes[2].plot(hour, series[f"clock {name}"], label=name)
    axes[1].set_ylabel("racks awake, %")
    axes[1].set_ylim(0, 105)
    axes[2].set_ylabel("clock")
    axes[2].set_xlabel("hour of the day")
    axes[2].legend(ncols=2, fontsize="small")
    axes[0].set_title("Edge site, two curtailments of 25 %, rule `reactive`")
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    draw(*record(EVALUATION_SEEDS.start))
    print(OUTPUT)
