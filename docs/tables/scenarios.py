"""Write docs/scenarios.md: what every scenario brings, with a small plot of cap, demand and mix.

``python docs/tables/scenarios.py`` (needs the ``plot`` extra for the picture ``docs/images/scenarios.png``); ``--check`` fails when the
page is stale.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.engine.layout import World
from ai_factory_gym.scenarios import Scenario, scenario, scenario_names
from ai_factory_gym.workload.demand import OTHER_MODELS, SITES_MODEL, ShiftSpec

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "scenarios.md"
PICTURE = DOCS / "images" / "scenarios.png"

SITE = "hyperscale"
"""Site whose classes and day are shown: it serves all of them."""

TWO_MODELS = DOCS.parent / "examples" / "sites" / "two_models.toml"
"""Site on which scenarios are shown that move demand between models."""

SEED = 1

INTRODUCTION = f"""# Scenarios

What a day brings beside the site and its users: `gym.make(..., scenario="burst")`. Several come together with a plus,
`scenario="diurnal+curtailment+agent_surge"`: the events of all of them happen, where curtailments overlap the deeper one holds, and the
larger overdispersion applies. A scenario of one's own is a TOML file of the same form: `scenario="my_day.toml"`, also in a sum. Hours are
local time; every event is drawn once per episode and returns daily. `diurnal` is the one to train on; the others are held out.

Tables: `[[bursts]]` raise all demand, each class by its exposure; `[[cap_events]]` lower the cap, known `notice_s` before; `[[shifts]]` change
the demand of some `classes` for hours, or of the classes of some `models`: names, `"default"` for the one that a site's `model` names,
`"others"` for its others (a site with one model has none to move between: a warning says so, and the shift is left out); `[[price_events]]`
multiply the price of electricity and `[[temperature_events]]` heat the outdoor air; `[[peak_windows]]` are the hours of coincident peaks, for
which a site may pay ([grid.md](grid.md)); `[faults]` makes racks fail and `[[maintenance]]` takes them out ([reliability.md](reliability.md));
`[training_block]` puts a training block beside the pools of a site that has none, and `[[training_jobs]]` say when it has work
([training_block.md](training_block.md));
`[mismatch]` makes the site differ from its catalogue by a
draw per episode that nothing shows but its consequences (a spread of 0.15 is a factor between 1/1.15 and 1.15). Agents' training and
evaluation seeds never meet, whatever the scenario.

A file of your own has the keys `description`, `daily` (whether demand follows the daily curve), `overdispersion` (factor, 1 as measured) and
`deferrable` (whether deferrable work may wait), and any number of these tables:

```toml
description = "a hot day with everything"
daily = true
overdispersion = 1.0
deferrable = true

[[bursts]]                    # all demand, once a day; hours of the day between which it begins
window_start_hour = 8.0
window_end_hour = 13.0
duration_min_low = 10.0
duration_min_high = 20.0
multiplier_low = 1.15
multiplier_high = 1.35

[[cap_events]]                # depth is the share of the cap that is taken away; depth_high and duration_high_s make ranges
window_start_hour = 15.0
window_end_hour = 19.0
duration_s = 7200.0
depth = 0.15
notice_s = 3600.0

[[shifts]]                    # classes = [...] or models = [...]
classes = ["coding"]
window_start_hour = 7.0
window_end_hour = 10.0
ramp_min = 60.0
duration_hours = 9.0
factor_low = 2.0
factor_high = 3.0

[[price_events]]              # a factor; [[temperature_events]] have the same keys, low and high in kelvin
window_start_hour = 16.0
window_end_hour = 20.0
duration_hours = 2.0
ramp_min = 15.0
low = 4.0
high = 10.0

[[peak_windows]]              # hours that hold a coincident peak
start_hour = 15.0
end_hour = 18.0
notice_hours = 6.0

[mismatch]                    # spreads; any of them
decode_time = 0.15

[faults]
rate_factor = 10.0
gpu_group_share = 0.916       # any of the two: faults that take a part of a rack
nvlink_domain_share = 0.084

[[maintenance]]
window_start_hour = 1.0
window_end_hour = 5.0
duration_hours = 2.0
racks = 1

[training_block]              # share of the cap that its racks may take at their limit
cap_share = 0.2
rack = "gb300_nvl72"

[[training_jobs]]             # without any there is one all the time
window_start_hour = 20.0
window_end_hour = 24.0
duration_hours = 8.0
duration_high_hours = 12.0
```

This page is written by `python docs/tables/scenarios.py`.

![Demand by class and cap of one day](images/{PICTURE.name})

One day of the site `{SITE}` (`model_mix_shift`: of [two_models.toml](../examples/sites/two_models.toml)), evaluation seed {SEED}: requests per
second by class (colours, left) and the cap (line, right, share of the base cap); below, when a training block has work. What prices, weather,
coincident peaks, faults and a mismatch do is not in it: they change neither.
"""


def _hours(low: float, high: float) -> str:
    return f"{low:g} to {high:g} h"


def _percent(low: float, high: float) -> str:
    return f"{high:.0%}" if low == high else f"{100.0 * low:.0f} to {high:.0%}"


def _range(low: float, high: float, unit: str = "") -> str:
    return f"{low:g}{unit}" if low == high else f"{low:g} to {high:g}{unit}"


def _concerned(shift: ShiftSpec) -> str:
    named = {SITES_MODEL: "classes of the site's model", OTHER_MODELS: "classes of its other models"}
    return ", ".join([*shift.classes, *(named.get(name, f"classes of {name}") for name in shift.models)])


def events(chosen: Scenario) -> list[str]:
    """Return what happens in a scenario, one line per event."""
    lines = [
        f"burst x {_range(b.multiplier_low, b.multiplier_high)} for {_range(b.duration_min_low, b.duration_min_high)} min, "
        f"onset {_hours(b.window_start_hour, b.window_end_hour)}"
        for b in chosen.bursts
    ]
    lines += [
        f"cap -{_percent(e.depth, e.deepest)} for {_range(e.duration_s / 3600.0, (e.duration_high_s or e.duration_s) / 3600.0)} h, "
        f"onset {_hours(e.window_start_hour, e.window_end_hour)}, announced {e.notice_s / 60.0:g} min ahead"
        for e in chosen.cap_events
    ]
    lines += [
        f"{_concerned(s)} x {_range(s.factor_low, s.factor_high)} for {s.duration_hours:g} h, onset "
        f"{_hours(s.window_start_hour, s.window_end_hour)}, within {s.ramp_min:g} min"
        for s in chosen.shifts
    ]
    for what, unit, some in (
        ("price x", "", chosen.price_events),
        ("outdoor temperature +", " K", chosen.temperature_events),
    ):
        lines += [
            f"{what} {_range(e.low, e.high, unit)} for {e.duration_hours:g} h, onset {_hours(e.window_start_hour, e.window_end_hour)}, within "
            f"{e.ramp_min:g} min"
            for e in some
        ]
    lines += [
        f"coincident peak in a hidden quarter of an hour, {_hours(w.start_hour, w.end_hour)}, announced {w.notice_hours:g} h ahead"
        for w in chosen.peak_windows
    ]
    spreads = [
        f"{f.name.replace('_', ' ')} x 1/{1 + v:g} to {1 + v:g}"
        for f in fields(chosen.mismatch)
        if (v := getattr(chosen.mismatch, f.name))
    ]
    if chosen.faults.rate_factor:
        lines.append(f"racks fail {chosen.faults.rate_factor:g} times as often as the site says, or the default rate")
    lines += [
        f"{m.racks:g} rack{'s' if m.racks > 1 else ''} out for maintenance for {m.duration_hours:g} h each, onset "
        f"{_hours(m.window_start_hour, m.window_end_hour)}"
        for m in chosen.maintenance
    ]
    if chosen.training_block.cap_share:
        lines.append(
            f"training block of up to {chosen.training_block.cap_share:.0%} of the cap ({chosen.training_block.rack}) where the site has none"
        )
    lines += [
        f"training job for {_range(j.duration_hours, j.longest_hours)} h, onset {_hours(j.window_start_hour, j.window_end_hour)}"
        for j in chosen.training_jobs
    ]
    if spreads:
        lines.append(f"hidden, once per episode: {', '.join(spreads)}")
    return lines


def page() -> str:
    """Return the page."""
    rows = ["| scenario | daily curve | overdispersion | deferrable work | events |", "|---|---|---|---|---|"]
    for name in scenario_names():
        chosen = scenario(name)
        rows.append(
            f"| `{name}`: {chosen.description} | {'yes' if chosen.daily else 'no'} | {chosen.overdispersion:g} | "
            f"{'may wait' if chosen.deferrable else 'served at once'} | {'<br>'.join(events(chosen)) or 'none'} |"
        )
    return INTRODUCTION + "\n" + "\n".join(rows) + "\n"


def draw() -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = scenario_names()
    # The last place is that of the legend.
    lines = len(names) // 2 + 1
    figure, axes = plt.subplots(lines, 2, figsize=(11, 2.1 * lines), sharex=True)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis in axes.flat[len(names) - 2 : len(names)]:
        axis.tick_params(labelbottom=True)
    bar: list[Any] = []
    colours: dict[str, str] = {}
    for axis, name in zip(axes.flat, names, strict=False):
        several = any(shift.models for shift in scenario(name).shifts)
        price = {"lambda_tokens_per_joule": "estimate"} if several else {}
        env = AIFactoryEnv(site=TWO_MODELS if several else SITE, scenario=name, warmup_s=60.0, **price)
        for cls in env.classes:
            colours.setdefault(cls.name, f"C{len(colours)}")
        env.reset(seed=2_000_000 + SEED)
        state = env.factory.engine.state
        hours = np.arange(1440) / 60.0
        demand = state.rate[0, :, 1:1441] / 1e3
        axis.stackplot(
            hours,
            demand,
            labels=[c.name for c in env.classes],
            colors=[colours[c.name] for c in env.classes],
            linewidth=0,
        )
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlim(0, 24)
        axis.set_xticks(range(0, 25, 6))
        axis.set_ylabel("1,000 requests/s", fontsize=8)
        steps = state.cap_steps[0]
        steps = steps[steps[:, 0] < 86400.0]
        times = np.append(np.maximum(steps[:, 0], 0.0) / 3600.0, 24.0)
        cap = axis.twinx()
        shares = np.append(steps[:, 1], steps[-1, 1]) / env.task.site.cap_w
        line = cap.step(times, shares, where="post", color="black", linewidth=1.2, label="cap")
        cap.set_ylim(0, 1.1)
        job = state.world[0, 1:1441, World.JOB] > 0.0
        if job.any():
            band = cap.fill_between(hours, 0.0, 0.07, where=job, color="black", linewidth=0, label="training job")
            bar = [band]
    handles, labels = axes.flat[0].get_legend_handles_labels()
    more = [*line, *bar]
    axes.flat[-1].legend(
        [*handles, *more], [*labels, *(str(shown.get_label()) for shown in more)], loc="center", ncols=3, fontsize=9
    )
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when docs/scenarios.md is stale; write nothing")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != page():
            raise SystemExit("error: docs/scenarios.md is stale; run python docs/tables/scenarios.py.")
        return
    PAGE.write_text(page(), encoding="utf-8")
    draw()
    print(PAGE)


if __name__ == "__main__":
    main()
