"""Fill the tables of docs/grid.md on heat, own power, emergencies, coincident peaks and ramp limits: ``python docs/tables/grid.py`` (a few minutes).

``--stdout`` prints them instead, ``--seeds 1`` is for a look.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ai_factory_baselines as baselines
from ai_factory_gym import AIFactoryEnv
from ai_factory_gym.evaluation import read_csv
from ai_factory_gym.grid.series import SYNTHETIC
from ai_factory_gym.levers import DEFAULT_LEVERS
from ai_factory_gym.observation import NOTICE_SCALE_S
from ai_factory_gym.params import derates_above_c, heat_w_per_kelvin, nameplate_it_w
from ai_factory_gym.scenarios import Scenario, scenario
from ai_factory_gym.sites import BatteryConfig, CoolingConfig, RampConfig, SiteConfig, StorageConfig, load_site
from ai_factory_gym.sites.generation import unit
from ai_factory_gym.sites.money import MoneyConfig, Tariff

PAGE = Path(__file__).parents[1] / "grid.md"
BLOCK = re.compile(r"(<!-- generated (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

FIRST_SEED = 2_000_000
HOUR_S = 3600.0

LIMIT_C, DESIGN_C = 45.0, 30.0
"""Coolant supplied to the racks at most (Vera Rubin: status vendor-stated), and the outdoor temperature the dry coolers are sized for (assumed)."""

USD_PER_KW_YEAR = 100.0
"""Middle of what 4CP costs, 50 to 150 USD per kW and year (status secondary report)."""

Policy = Callable[[AIFactoryEnv, np.ndarray], np.ndarray]


def fixed(clock: float, **values: Any) -> Callable[[AIFactoryEnv], Policy]:
    """Return a policy that sets one clock everywhere and keeps all racks awake."""

    def made(env: AIFactoryEnv) -> Policy:
        action = env.action_layout.encode(clock=clock, racks=env.action_layout.racks, **values)
        return lambda env, observation: action

    return made


def reactive(heat: bool = False) -> Callable[[AIFactoryEnv], Policy]:
    """Return the rule ``reactive``; told, if wanted, that its cap is the lower of the cap and what the heat allows."""

    def made(env: AIFactoryEnv) -> Policy:
        rule = baselines.make("reactive", env)
        memory: Any = None

        def act(env: AIFactoryEnv, observation: np.ndarray) -> np.ndarray:
            nonlocal memory
            seen = observation.copy()
            if heat:
                allowed = seen[env.observation_layout["coolant"]][1]
                for place in (env.observation_layout["cap"].start, env.observation_layout["cap_announced"].start + 2):
                    seen[place] = min(seen[place], allowed)
            action, memory = rule.predict(seen, memory)
            return np.asarray(action)

        return act

    return made


def in_window(clock: float, low: float, **values: Any) -> Callable[[AIFactoryEnv], Policy]:
    """Return a policy that lowers its clock while a coincident peak may be, and orders its battery out if there is one."""

    def made(env: AIFactoryEnv) -> Policy:
        racks = env.action_layout.racks
        usual = env.action_layout.encode(clock=clock, racks=racks)
        inside = env.action_layout.encode(clock=low, racks=racks, **values)
        return lambda env, observation: inside if observation[env.observation_layout["peak_window"]][2] > 0.0 else usual

    return made


def riding_out(defer: bool, battery: bool) -> Callable[[AIFactoryEnv], Policy]:
    """Return the rule ``reactive`` that also holds deferred work back and empties a battery evenly over a curtailment.

    Announced curtailments it meets with deferred work done early. The rule sees the cap and what the battery adds to it.
    """

    def made(env: AIFactoryEnv) -> Policy:
        rule = baselines.make("reactive", env)
        memory: Any = None
        cells = env.task.site.battery

        def act(env: AIFactoryEnv, observation: np.ndarray) -> np.ndarray:
            nonlocal memory
            layout = env.observation_layout
            announced, until, after, _ = observation[layout["cap_announced"]]
            active = observation[layout["cap"]][0] < 0.999
            ahead = announced > 0.0 and after < 0.999 and not active
            seen = observation.copy()
            order = 0.0
            if battery and cells is not None:
                charge = float(observation[layout["battery"]][0])
                order = -0.3 if charge < 0.99 and not active else 0.0
                if active:
                    # The end of a curtailment is announced with its beginning.
                    left_s = max(60.0, float(until) * NOTICE_SCALE_S)
                    held_w = 3600.0 * cells.energy_wh * charge * np.sqrt(cells.round_trip_efficiency) / left_s
                    order = min(1.0, held_w / cells.power_w)
                    seen[layout["cap"].start] += order * cells.power_w / env.task.site.cap_w
            action, memory = rule.predict(seen, memory)
            action = np.asarray(action).copy()
            if defer:
                action[env.action_layout["deferral"]] = -1.0 if active else 1.0 if ahead else 0.0
            if battery and cells is not None:
                action[env.action_layout["battery"]] = order
            return action

        return act

    return made


def run(
    made: Callable[[AIFactoryEnv], Policy],
    site: SiteConfig,
    day: str | Scenario,
    seeds: Iterable[int],
    begin_h: float,
    hours: float,
    **settings: Any,
) -> list[list[Mapping[str, float]]]:
    """Return the infos of every step of an episode per seed."""
    env = AIFactoryEnv(
        site=site,
        scenario=day,
        start_time_s=begin_h * HOUR_S,
        horizon_s=hours * HOUR_S,
        lambda_tokens_per_joule=3.0,
        **settings,
    )
    episodes = []
    for seed in seeds:
        observation, _ = env.reset(seed=FIRST_SEED + seed)
        policy = made(env)
        infos: list[Mapping[str, float]] = []
        truncated = False
        while not truncated:
            observation, _, _, truncated, info = env.step(policy(env, observation))
            infos.append(info)
        episodes.append(infos)
    return episodes


def _mean(episodes: list[list[Mapping[str, float]]], key: str) -> float:
    return float(np.mean([infos[-1][key] for infos in episodes]))


def heat(seeds: range) -> list[str]:
    """Return the table of heat: what can be cooled, and what rules make of it."""
    edge = load_site("edge")
    policies = {
        "clock 0.8": fixed(0.8),
        "`reactive`": reactive(),
        "`reactive`, told": reactive(heat=True),
    }
    site = dataclasses.replace(edge, cooling=CoolingConfig(coolant_limit_c=LIMIT_C, design_outdoor_c=DESIGN_C))
    lines = [
        f"From {derates_above_c(site):.1f} degC on the coolant binds before the cap of {edge.cap_w / 1e6:g} MW.",
        "",
        "| outdoors, degC | IT power for good, MW (share of nameplate) | policy | tokens/J | SLA attainment | braked for heat | "
        "warmest coolant, degC |",
        "|---|---|---|---|---|---|---|",
    ]
    for outdoor_c in (30.0, 36.0, 38.0, 39.0, 40.0):
        hot = dataclasses.replace(site, cooling=dataclasses.replace(site.cooling, outdoor_c=outdoor_c))
        it_w = heat_w_per_kelvin(hot) * (LIMIT_C - outdoor_c)
        for name, made in policies.items():
            found = run(made, hot, "diurnal", seeds, 17.0, 4.0)
            warmest = max(infos[-1]["coolant_peak_c"] for infos in found)
            lines.append(
                f"| {outdoor_c:g} | {it_w / 1e6:.2f} ({it_w / nameplate_it_w(hot):.0%}) | {name} | {_mean(found, 'tokens_per_joule'):.3f} | "
                f"{_mean(found, 'sla_attainment'):.4f} | {_mean(found, 'heat_limited_s') / (4.0 * HOUR_S):.1%} | {warmest:.3f} |"
            )
    return lines


def supply(seeds: range) -> list[str]:
    """Return the table of supply forms: what tokens cost and emit with a smaller connection and units of the site's own."""
    edge = load_site("edge")
    series = (("electricity", SYNTHETIC), ("carbon", SYNTHETIC))
    engines = tuple(unit("engine", 7.5e5, name=f"engine {k}", must_run=k == 1) for k in (1, 2, 3))
    forms = {
        "2 MW connection": {},
        "1.5 MW connection": {"cap_w": 1.5e6},
        "1.5 MW, engine of 0.7 MW": {"cap_w": 1.5e6, "generation": (unit("engine", 7e5),)},
        "1.5 MW, turbine of 0.7 MW": {"cap_w": 1.5e6, "generation": (unit("turbine", 7e5),)},
        "1.5 MW, reactor of 0.5 MW": {"cap_w": 1.5e6, "generation": (unit("smr", 5e5),)},
        "no connection, three engines of 0.75 MW": {"cap_w": 0.0, "generation": engines},
    }
    lines = [
        "| supply | energy, USD per million good tokens | carbon, kg per million | own power | starts a day | tokens/J | SLA attainment | braked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, changes in forms.items():
        site = dataclasses.replace(edge, series=series, **changes)
        found = [infos[-1] for infos in run(reactive(), site, "diurnal", seeds, 0.0, 24.0)]
        tokens = np.mean([info["good_tokens"] for info in found]) / 1e6
        usd, kilograms = (np.mean([info[key] for info in found]) / tokens for key in ("energy_cost_usd", "carbon_kg"))
        own = np.mean([info.get("generation_j", 0.0) / info["energy_j"] for info in found])
        starts = np.mean([sum(info[f"generation/{each.name}/starts"] for each in site.generation) for info in found])
        lines.append(
            f"| {name} | {usd:.4f} | {kilograms:.4f} | {own:.0%} | {starts:.1f} | "
            f"{np.mean([info['tokens_per_joule'] for info in found]):.3f} | {np.mean([info['sla_attainment'] for info in found]):.4f} | "
            f"{np.mean([info['brake_s'] for info in found]) / (24.0 * HOUR_S):.2%} |"
        )
    return lines


def emergency(seeds: range) -> list[str]:
    """Return the table of emergencies: how fast the draw is down, and what ignoring the order costs."""
    lines = [
        "| policy | draw before / ordered cap | in the second minute / ordered cap | energy above the cap, s of it | braked | "
        "SLA attainment | good tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    edge = load_site("edge")
    kinds = {"ignores it (clock 0.8, all racks)": fixed(0.8), "`reactive`": reactive()}
    (event,) = scenario("grid_emergency").cap_events
    # The evening's demand, an hour before and three within.
    event = dataclasses.replace(event, window_start_hour=17.0, window_end_hour=17.0, duration_s=10 * HOUR_S)
    event = dataclasses.replace(event, duration_high_s=None)
    day = dataclasses.replace(scenario("grid_emergency"), cap_events=(event,))
    calm = dataclasses.replace(day, cap_events=())
    for name, made in kinds.items():
        usual = run(made, edge, calm, seeds, 16.0, 4.0)
        found = run(made, edge, day, seeds, 16.0, 4.0)
        for label, some in ((f"{name}, no emergency", usual), (name, found)):
            caps = [infos[-1]["cap_w"] for infos in found]
            before = np.mean([infos[59]["facility_power_w"] / cap for infos, cap in zip(some, caps, strict=True)])
            after = np.mean([infos[61]["facility_power_w"] / cap for infos, cap in zip(some, caps, strict=True)])
            over_s = np.mean([infos[-1]["cap_violation_j"] / infos[-1]["cap_w"] for infos in some])
            tokens = _mean(some, "good_tokens") / _mean(usual, "good_tokens")
            lines.append(
                f"| {label} | {before:.2f} | {after:.2f} | {over_s:.2f} | {_mean(some, 'brake_s') / (4.0 * HOUR_S):.1%} | "
                f"{_mean(some, 'sla_attainment'):.4f} | {tokens:.1%} |"
            )
    return lines


def peaks(seeds: range) -> list[str]:
    """Return the table of coincident peaks: what a site pays when it ignores the window, and when it does not."""
    edge = load_site("edge")
    money = MoneyConfig(tariff=Tariff(0.5, 2.0), coincident_usd_per_kw_year=USD_PER_KW_YEAR)
    site = dataclasses.replace(edge, money=money)
    stored = dataclasses.replace(site, battery=BatteryConfig(power_w=4e5, energy_wh=1.3e6))
    levers = ("route_prefill", "route_decode", "clock", "active_racks", "battery")
    lines = [
        "| policy | draw in the quarter, MW | charge, USD | energy, USD | SLA attainment | good tokens |",
        "|---|---|---|---|---|---|",
    ]
    first = 1.0
    for name, place, made, settings in (
        ("clock 0.7", site, fixed(0.7), {}),
        ("clock 0.7, 0.55 in the window", site, in_window(0.7, 0.55), {}),
        ("`reactive`", site, reactive(), {}),
        (
            "clock 0.7, battery of 0.4 MW and 1.3 MWh in the window",
            stored,
            in_window(0.7, 0.7, battery=1.0),
            {"levers": levers},
        ),
    ):
        found = run(made, place, "diurnal+four_cp", seeds, 12.0, 8.0, **settings)
        tokens = _mean(found, "good_tokens")
        first = tokens if len(lines) == 2 else first
        lines.append(
            f"| {name} | {_mean(found, 'coincident_peak_w') / 1e6:.3f} | {_mean(found, 'coincident_charge_usd'):,.0f} | "
            f"{_mean(found, 'energy_cost_usd'):,.0f} | {_mean(found, 'sla_attainment'):.4f} | {tokens / first:.1%} |"
        )
    return lines


def _trial(hour: float, notice_s: float) -> Scenario:
    """Return a day with 25 % less for three hours."""
    (event, _) = scenario("curtailment").cap_events
    event = dataclasses.replace(event, window_start_hour=hour, window_end_hour=hour, notice_s=notice_s)
    assert event.depth == 0.25 and event.duration_s == 3 * HOUR_S
    return dataclasses.replace(scenario("curtailment"), cap_events=(event,))


def trial(seeds: range) -> list[str]:
    """Return the table of a curtailment by a quarter for three hours: by which means, with how much notice."""
    edge = load_site("edge")
    stored = dataclasses.replace(edge, battery=BatteryConfig(power_w=5e5, energy_wh=1.7e6))
    levers = (*DEFAULT_LEVERS, "deferral")
    lines = [
        "| from, h | means | notice, min | worst interactive class in these hours | batch | energy above the cap, s of it | braked, s | "
        "battery used, MWh |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = {
        "throttling (`reactive`)": (edge, False, False),
        "and deferring": (edge, True, False),
        "and a battery": (stored, False, True),
        "and both": (stored, True, True),
    }
    hours = [(15.0, 60.0), *((18.0, notice_min) for notice_min in (0.0, 10.0, 60.0))]
    for hour, notice_min in hours:
        for name, (site, defer, battery) in kinds.items():
            found = run(
                riding_out(defer, battery),
                site,
                _trial(hour, 60.0 * notice_min),
                seeds,
                hour - 2.0,
                7.0,
                levers=(*levers, "battery") if battery else levers,
                drain=True,
            )
            worst = []
            for infos in found:
                before, after = infos[119], infos[299]
                keys = [key.split("/")[1] for key in after if key.endswith("/attainment") and "/batch/" not in key]
                shares = []
                for cls in keys:
                    met, missed = (after[f"class/{cls}/{k}"] - before[f"class/{cls}/{k}"] for k in ("met", "missed"))
                    shares.append(met / (met + missed))
                worst.append(min(shares))
            over_s = np.mean([infos[-1]["cap_violation_j"] / edge.cap_w for infos in found])
            given = _mean(found, "battery_out_j") / 3.6e9 if battery else 0.0
            lines.append(
                f"| {hour:g} | {name} | {notice_min:g} | {np.mean(worst):.4f} (lowest {min(worst):.4f}) | "
                f"{_mean(found, 'class/batch/attainment'):.4f} | "
                f"{over_s:.2f} | {_mean(found, 'brake_s'):.0f} | {given:.2f} |"
            )
    return lines


RAMP_SHARES = (0.01, 0.05, 0.2)
"""Ramp limits, shares of the cap per minute, up and down alike (status: none was published; a span to look at)."""


def ramp(seeds: range) -> list[str]:
    """Return the table of ramp limits: what they cost, with the racks' storage and with a battery; two seeds, for segments are short."""
    seeds = seeds[:2]
    edge = load_site("edge")
    battery = BatteryConfig(power_w=4e5, energy_wh=1e5, initial_charge=0.5)
    helps: dict[str, dict[str, Any]] = {
        "none": {},
        "racks, 65 J per GPU": {"rack_storage": StorageConfig()},
        "and a battery of 0.4 MW, 0.1 MWh": {"rack_storage": StorageConfig(), "battery": battery},
    }
    lines = [
        "| limit, cap per minute | storage | tokens/J | SLA attainment | lowest class | ballast, share of the energy | limiter, share of the time | "
        "racks waited, rack-min |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds: list[tuple[float | None, str]] = [
        (None, "none"),
        *((share, name) for share in RAMP_SHARES for name in helps),
    ]
    hours = 6.0
    for share, name in kinds:
        site = edge
        if share is not None:
            slope = share * edge.cap_w / 60.0
            site = dataclasses.replace(edge, ramp=RampConfig(slope, slope), **helps[name])
        found = run(reactive(), site, "diurnal", seeds, 15.0, hours)
        lowest = np.mean([min(v for k, v in infos[-1].items() if k.endswith("/attainment")) for infos in found])
        parts = (0.0, 0.0, 0.0)
        if share is not None:
            parts = (
                _mean(found, "ballast_j") / _mean(found, "energy_j"),
                _mean(found, "ramp_limited_s") / (hours * HOUR_S),
                _mean(found, "held_rack_s") / 60.0,
            )
        label = "no limit" if share is None else f"{share:.0%}"
        lines.append(
            f"| {label} | {name} | {_mean(found, 'tokens_per_joule'):.3f} | {_mean(found, 'sla_attainment'):.4f} | {lowest:.4f} | "
            f"{parts[0]:.2%} | {parts[1]:.1%} | {parts[2]:.0f} |"
        )
    return lines


RESULTS = PAGE.parent / "results"

TASK_COLUMNS: dict[str, dict[str, tuple[str, float, str]]] = {
    "sovereign-v1": {
        "training done": ("training_share", 1.0, ".1%"),
        "made on site, MWh": ("generation_j", 1.0 / 3.6e9, ",.0f"),
        "energy, thousand USD": ("energy_cost_usd", 1e-3, ",.1f"),
        "carbon, t": ("carbon_kg", 1e-3, ",.0f"),
        "limited by the ramp, s": ("ramp_limited_s", 1.0, ",.0f"),
        "ballast, MWh": ("ballast_j", 1.0 / 3.6e9, ",.2f"),
    },
    "hyperscale-v1": {
        "energy, thousand USD": ("energy_cost_usd", 1e-3, ",.0f"),
        "carbon, t": ("carbon_kg", 1e-3, ",.0f"),
        "coincident peaks, thousand USD": ("coincident_charge_usd", 1e-3, ",.0f"),
        "battery, MWh": ("battery_out_j", 1.0 / 3.6e9, ",.0f"),
        "racks struck": ("racks_struck", 1.0, ",.0f"),
        "profit, million USD": ("profit_usd", 1e-6, ",.3f"),
    },
}
"""Tasks with such parts, and what the table shows of each beside the tokens: key of ``info``, factor, format."""


def tasks(seeds: range) -> list[str]:
    """Return the tables of the tasks with these parts, from the files of ``docs/results``; ``seeds`` is for tables that are played here."""
    lines = []
    for name, columns in TASK_COLUMNS.items():
        results = read_csv(RESULTS / f"{name}.csv")
        lines += [f"`{results[0].summary['task']}`, means over {len(results[0].episodes)} evaluation seeds:", ""]
        lines += [
            f"| scenario | rule | feasible | tokens/J | lowest attainment of a class | {' | '.join(columns)} |",
            f"|---|---|---:|---:|---:|{'---:|' * len(columns)}",
        ]
        for result in results:
            rows = result.episodes
            worst = [
                min(v for k, v in row.items() if k.startswith("class/") and k.endswith("/attainment")) for row in rows
            ]
            shown = [
                format(float(np.mean([row[key] for row in rows])) * factor, form)
                for key, factor, form in columns.values()
            ]
            good = np.mean([row["tokens_per_joule_facility"] for row in rows])
            lines.append(
                f"| `{result.summary['scenario']}` | `{result.summary['policy']}` | {np.mean([row['feasible'] for row in rows]):.0%} | {good:.3f} | "
                f"{np.mean(worst):.4f} | {' | '.join(shown)} |"
            )
        lines.append("")
    return lines[:-1]


TABLES = {
    "heat": heat,
    "emergency": emergency,
    "peaks": peaks,
    "trial": trial,
    "supply": supply,
    "ramp": ramp,
    "tasks": tasks,
}


def main() -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stdout", action="store_true", help="print the tables; write nothing")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make")
    parser.add_argument("--seeds", type=int, default=5, help="evaluation seeds of each row (default 5)")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    if arguments.stdout:
        for name in arguments.only:
            print("\n".join(TABLES[name](seeds)), end="\n\n", flush=True)
        return
    page = PAGE.read_text(encoding="utf-8")
    filled = BLOCK.sub(
        lambda m: (
            m.group(1) + "\n".join(TABLES[m.group(2)](seeds)) + "\n" + m.group(3)
            if m.group(2) in arguments.only
            else m.group(0)
        ),
        page,
    )
    PAGE.write_text(filled, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
