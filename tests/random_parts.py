"""Parts of a site and scenarios in any combination: nothing is NaN, and energy, money, carbon and requests balance to 1e-9.

``python -m tests.random_parts --combinations 500`` plays as many from the root of the repository; a few run as a test. What balances is worked
out anew from single steps and from the engine's state of each step, not from the totals that are checked.
"""

from __future__ import annotations

import argparse
import math
import sys
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from tqdm import tqdm

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.catalogue import rack, rack_ids
from ai_factory_gym.engine.layout import Pool, Site, SiteSpec
from ai_factory_gym.grid.coincident import QUARTER_S
from ai_factory_gym.levers import LEVERS
from ai_factory_gym.scenarios import scenario_names
from ai_factory_gym.sites import load_site
from tests import random_sites

Table = dict[str, Any]

CLOSE = 1e-9
"""Relative error up to which books balance: that of a few thousand sums of doubles."""

STEPS = 40
"""Control steps of an episode that are played; of a minute they cover more than two quarters of an hour."""


def _series(site: Table, rng: np.random.Generator) -> Table:
    kinds = [kind for kind in ("electricity", "carbon", "temperature") if rng.random() < 0.7]
    return {"series": dict.fromkeys(kinds, "synthetic")} if kinds else {}


def _battery(site: Table, rng: np.random.Generator) -> Table:
    power_w = float(site["cap_w"] * 10.0 ** rng.uniform(-3.0, 0.0))
    return {
        "battery": {
            "power_w": power_w,
            "energy_wh": power_w * float(rng.uniform(0.01, 4.0)),
            "round_trip_efficiency": float(rng.uniform(0.3, 1.0)),
            "initial_charge": float(rng.uniform(0.0, 1.0)),
            "wear_usd_per_mwh": float(rng.choice([0.0, 50.0])),
        }
    }


def _money(site: Table, rng: np.random.Generator) -> Table:
    names = sorted(site["mix"])
    money: Table = {
        "input_usd_per_mtok": float(rng.uniform(0.0, 5.0)),
        "output_usd_per_mtok": float(rng.uniform(0.0, 20.0)),
        "sla_penalty_share": float(rng.uniform(0.0, 2.0)),
        "demand_usd_per_kw_month": float(rng.choice([0.0, 12.0])),
        "coincident_usd_per_kw_year": float(rng.choice([0.0, 100.0])),
        "rack_usd_per_hour": {entry["rack"]: float(rng.uniform(0.0, 300.0)) for entry in site["pools"][:1]},
    }
    if rng.random() < 0.5:
        money["classes"] = {names[0]: {"output_usd_per_mtok": 30.0, "budget_usd_per_day": float(rng.uniform(1.0, 1e6))}}
    return {"money": money}


def _cooling(site: Table, rng: np.random.Generator) -> Table:
    limit_c = float(rng.uniform(35.0, 50.0))
    return {
        "cooling": {
            "coolant_limit_c": limit_c,
            "design_outdoor_c": limit_c - float(rng.uniform(5.0, 20.0)),
            "loop_time_constant_s": float(rng.uniform(60.0, 900.0)),
            "outdoor_c": float(rng.uniform(-5.0, 12.0)),
        }
    }


def _reliability(site: Table, rng: np.random.Generator) -> Table:
    parts = {}
    if rng.random() < 0.5:
        share = float(rng.uniform(0.0, 1.0))
        parts = {
            "gpu_group_share": share,
            "nvlink_domain_share": 0.9 * (1.0 - share),
            "gpu_group_repair_s": float(10.0 ** rng.uniform(2.0, 4.5)),
        }
    return {
        "reliability": {
            "gpu_faults_per_hour": float(10.0 ** rng.uniform(-5.0, -2.5)),
            "hardware_share": float(rng.uniform(0.0, 1.0)),
            "repair_s": float(10.0 ** rng.uniform(2.0, 4.5)),
            **parts,
        }
    }


def _ramp(site: Table, rng: np.random.Generator) -> Table:
    slopes = {
        key: float(site["cap_w"] / 60.0 * 10.0 ** rng.uniform(-2.0, 0.5)) for key in ("up_w_per_s", "down_w_per_s")
    }
    ramp = {key: slope for key, slope in slopes.items() if rng.random() < 0.8} or slopes
    if rng.random() < 0.2:
        ramp["ballast_w"] = float(site["cap_w"] * rng.uniform(0.0, 0.5))
    if rng.random() < 0.5:
        return {"ramp": ramp}
    storage = {
        "racks": sorted({entry["rack"] for entry in site["pools"]})[:2],
        "energy_j_per_gpu": float(10.0 ** rng.uniform(0.0, 5.0)),
        "power_w_per_gpu": float(10.0 ** rng.uniform(1.0, 4.0)),
        "round_trip_efficiency": float(rng.uniform(0.3, 1.0)),
    }
    return {"ramp": ramp, "rack_storage": storage}


def _training(site: Table, rng: np.random.Generator) -> Table:
    kind = str(rng.choice(sorted(set(rack_ids()) - {"vera_rubin_nvl144_cpx"})))
    rack_w = rack(kind).groups[0].profile(None).nameplate_w
    block: Table = {
        "rack": kind,
        "racks": max(1, int(site["cap_w"] * rng.uniform(0.01, 0.4) / rack_w)),
        "clock": float(rng.uniform(0.4, 1.0)),
        "compute_share": float(rng.uniform(0.3, 1.0)),
        "checkpoint_period_s": float(10.0 ** rng.uniform(1.0, 4.0)),
        "checkpoint_s": float(rng.choice([0.0, 7.0, 60.0])),
        "restore_s": float(rng.choice([0.0, 45.0, 300.0])),
        "stall_limit_s": float(rng.choice([30.0, 600.0])),
        "worth": float(rng.uniform(0.0, 2.0)),
    }
    return {"training": block | ({"usd_per_rack_hour": 100.0} if rng.random() < 0.5 else {})}


def _generation(site: Table, rng: np.random.Generator) -> Table:
    """Units in place of some of the connection, or all of it, or beside it, and sometimes exports."""
    # Ramp limits are for the draw from a grid.
    alone = rng.random() < 0.2 and "ramp" not in site
    made_w = site["cap_w"] * (1.0 if alone else float(rng.uniform(0.05, 0.8)))
    units: list[Table] = []
    for index, share in enumerate(rng.dirichlet(np.ones(rng.integers(1, 4)))):
        unit: Table = {"kind": str(rng.choice(["engine", "turbine", "smr"])), "power_w": float(share * made_w) + 1.0}
        unit["name"] = f"unit {index}"
        if rng.random() < 0.5:
            unit |= {"min_load": float(rng.uniform(0.0, 1.0)), "start_s": float(rng.choice([0.0, 7.0, 200.0]))}
        if rng.random() < 0.5:
            unit |= {"min_run_s": float(rng.choice([0.0, 90.0])), "min_down_s": float(rng.choice([0.0, 90.0]))}
        if rng.random() < 0.5:
            unit |= {"fuel_usd_per_mwh": float(rng.uniform(0.0, 120.0)), "start_usd": float(rng.uniform(0.0, 100.0))}
        if alone or rng.random() < 0.3:
            unit["must_run"] = True
        units.append(unit)
    table: Table = {"generation": units}
    if alone:
        return {**table, "cap_w": 0.0}
    if rng.random() < 0.7:
        table["cap_w"] = site["cap_w"] - 0.9 * made_w
    if rng.random() < 0.5 and "ramp" not in site:
        most_w = float(rng.uniform(0.0, site["cap_w"])) + 1.0
        table["grid"] = {"export_w": most_w, "export_usd_per_mwh": float(rng.uniform(0.0, 120.0))}
    return table


PARTS: dict[str, Callable[[Table, np.random.Generator], Table]] = {
    "series": _series,
    "battery": _battery,
    "money": _money,
    "cooling": _cooling,
    "reliability": _reliability,
    "ramp": _ramp,
    "training": _training,
    "generation": _generation,
}
"""Parts of a site file by name; each returns the tables that it adds."""


def shipped(name: str) -> Table:
    """Return the table of a shipped site."""
    text = resources.files("ai_factory_gym.sites").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def draw(seed: int) -> tuple[Table, Table, tuple[str, ...]]:
    """Return a site's table with some of the parts, settings of an environment, and the names of the parts.

    Raises:
        ConfigError: When the drawn site is not possible.
    """
    rng = np.random.default_rng([seed, 2])
    if rng.random() < 0.5:
        table = shipped(str(rng.choice(["edge", "enterprise", "sovereign", "hyperscale"])))
    else:
        table = random_sites.fit(random_sites.propose(rng), rng)
    parts = tuple(name for name in PARTS if rng.random() < 0.6)
    for name in parts:
        table |= PARTS[name](table, rng)
    scenarios = rng.choice(scenario_names(), rng.integers(1, 5), replace=False)
    # One tick a step: prices and weather, which change with ticks, are those of the step's end.
    grain, interval_s = [("coarse", 60.0), ("cohort", 30.0), ("cohort", 20.0)][int(rng.integers(3))]
    settings = {
        "scenario": "+".join(map(str, scenarios)),
        "levers": tuple(map(str, rng.choice(LEVERS, rng.integers(1, len(LEVERS) + 1), replace=False))),
        "reward": str(rng.choice(["tokens_per_watt", "goodput", "carbon", *(["profit"] if "money" in parts else [])])),
        "resolution": grain,
        "control_interval_s": interval_s,
        "horizon_s": STEPS * interval_s,
        "warmup_s": 180.0,
        "start_time_s": float(60.0 * rng.integers(1440)),
        "demand_scale": float(rng.uniform(0.3, 1.3)),
        "lambda_tokens_per_joule": "estimate",
    }
    return table, settings, parts


class Books:
    """What an episode's totals must be, from its single steps."""

    def __init__(self, env: AIFactoryEnv) -> None:
        """Begin with a reset environment."""
        self.env = env
        self.site = env.factory.engine.state.site[0]
        self.spec = env.task.site
        self.names = [served.name for served in env.classes]
        self.charge_j = float(self.site[Site.BATTERY_CHARGE_J])
        self.stored_j = float(self.site[Site.STORAGE_CHARGE_J])
        self.grid_w = math.nan
        self.excess_w = 0.0
        self.told_w = 0.0
        self.seconds = 0.0
        self.energy_j = 0.0
        self.it_energy_j = 0.0
        self.grid_j = 0.0
        self.usd = 0.0
        self.kg = 0.0
        self.quarter: list[float] = []
        self.peak_w = 0.0

    def step(self, info: dict[str, Any], seconds: float) -> None:
        """Note a step."""
        self.seconds += seconds
        self.energy_j += info["facility_power_w"] * seconds
        self.it_energy_j += info["it_power_w"] * seconds
        grid_w = info.get("grid_power_w", info["facility_power_w"])
        self.grid_j += grid_w * seconds
        self.usd += grid_w * seconds / 3.6e9 * self.site[Site.USD_PER_MWH]
        self.kg += grid_w * seconds / 3.6e9 * self.site[Site.G_PER_KWH]
        if self.spec.ramp is not None:
            self._ramp(info, grid_w, seconds)
        self.quarter.append(grid_w)
        if len(self.quarter) * seconds >= QUARTER_S:
            self.peak_w = max(self.peak_w, sum(self.quarter) / len(self.quarter))
            self.quarter = []

    def check(self, info: dict[str, Any]) -> None:
        """Compare totals with what the steps say.

        Raises:
            AssertionError: Where they differ.
        """
        same("energy_j", info["energy_j"], self.energy_j)
        same("it_energy_j", info["it_energy_j"], self.it_energy_j)
        pools = self.env.factory.engine.state.pool[0, :, Pool.ENERGY_J].sum()
        same("energy of pools and block", pools + self.site[Site.TRAIN_IT_ENERGY_J], info["it_energy_j"])
        if "training_energy_j" in info:
            self._training(info)
        own_usd, own_kg = self._units(info) if self.spec.generation else (0.0, 0.0)
        same("energy_cost_usd", info["energy_cost_usd"], self.usd + own_usd, scale=self.usd)
        same("carbon_kg", info["carbon_kg"], self.kg + own_kg)
        self._requests(info)
        if self.spec.battery is not None or self.spec.ramp is not None or self.spec.generation:
            same("grid_energy_j", info["grid_energy_j"], self.grid_j, scale=info["energy_j"])
            given, taken = (
                ("battery_out_j", "storage_out_j", "generation_j"),
                ("battery_in_j", "storage_in_j", "export_j", "spilled_j"),
            )
            given_j, taken_j = (sum(info.get(key, 0.0) for key in keys) for keys in (given, taken))
            same("grid and stores", info["grid_energy_j"] + given_j, info["energy_j"] + taken_j)
        if self.spec.battery is not None:
            self._battery(info)
        if self.spec.rack_storage is not None:
            self._storage(info)
        if self.spec.money is not None:
            self._money(info)

    def _training(self, info: dict[str, Any]) -> None:
        """Job-seconds are done, lost or due; what they are credited with is taken off once; the block draws as it may."""
        done_s = info["training_progress_s"] + info["training_lost_s"]
        same("training_progress_s", done_s, self.site[Site.TRAIN_DONE_S])
        assert -1e-6 <= done_s <= self.seconds * (1.0 + CLOSE) + 1e-6
        assert info["training_paused_s"] <= self.seconds * (1.0 + CLOSE) + 1e-6
        credit_j = info["energy_j"] - info["serving_energy_j"]
        same("serving_energy_j", credit_j, self.site[Site.TRAIN_CREDIT_J], scale=info["energy_j"])
        numbers = self.env.factory.params.site
        idle_j = numbers[SiteSpec.TRAIN_IDLE_W] * self.seconds
        most_j = idle_j + numbers[SiteSpec.TRAIN_MOST_W] * self.seconds
        assert idle_j * (1.0 - CLOSE) <= self.site[Site.TRAIN_IT_ENERGY_J] <= most_j * (1.0 + CLOSE)
        assert self.site[Site.TRAIN_SINCE_S] <= self.site[Site.TRAIN_RAN_S] * (1.0 + CLOSE) + 1e-6

    def _requests(self, info: dict[str, Any]) -> None:
        keys = {"arrived": "requests_arrived", "met": "requests_met_slo", "missed": "requests_missed_slo"}
        for of_class, of_site in keys.items():
            same(of_site, sum(info[f"class/{name}/{of_class}"] for name in self.names), info[of_site])
        fates = info["requests_met_slo"] + info["requests_missed_slo"] + info["requests_in_flight"]
        same("requests", fates, info["requests_arrived"])
        assert info["requests_rejected"] <= info["requests_missed_slo"] * (1.0 + CLOSE)
        assert info["requests_in_flight"] >= -CLOSE * info["requests_arrived"]
        assert info["good_tokens"] <= info["output_tokens"] * (1.0 + CLOSE) + 1e-6

    def _battery(self, info: dict[str, Any]) -> None:
        battery = self.spec.battery
        assert battery is not None
        one_way = math.sqrt(battery.round_trip_efficiency)
        stored_j = self.charge_j + info["battery_in_j"] * one_way - info["battery_out_j"] / one_way
        same("battery_charge_j", info["battery_charge_j"], stored_j, scale=3600.0 * battery.energy_wh)
        # It gives no more than it held and took: what comes out of nothing would show here.
        held_j = self.charge_j * one_way + info["battery_in_j"] * battery.round_trip_efficiency
        assert info["battery_out_j"] <= held_j * (1.0 + CLOSE) + 1e-3, "battery"

    def _storage(self, info: dict[str, Any]) -> None:
        storage = self.spec.rack_storage
        assert storage is not None
        one_way = math.sqrt(storage.round_trip_efficiency)
        stored_j = self.stored_j + info["storage_in_j"] * one_way - info["storage_out_j"] / one_way
        same("storage_charge_j", info["storage_charge_j"], stored_j, scale=info["storage_in_j"] + info["storage_out_j"])
        assert 0.0 <= info["storage_charge_j"] <= storage.energy_j_per_gpu * self.spec.rack_storage_gpus * (1.0 + CLOSE)

    def _ramp(self, info: dict[str, Any], grid_w: float, seconds: float) -> None:
        """Check that the draw has moved no faster than its limits, but for what is told."""
        ramp = self.spec.ramp
        assert ramp is not None
        told_w = info["ramp_excess_w"] - self.excess_w
        rounding_w = CLOSE * self.spec.cap_w
        if ramp.up_w_per_s is not None and not math.isnan(self.grid_w):
            risen_w = grid_w - self.grid_w - ramp.up_w_per_s * seconds
            assert risen_w <= rounding_w, f"rises by {risen_w} W more than it may"
        if ramp.down_w_per_s is not None and not math.isnan(self.grid_w):
            fallen_w = self.grid_w - grid_w - ramp.down_w_per_s * seconds
            assert fallen_w <= told_w + self.told_w + rounding_w, (
                f"falls by {fallen_w} W more than it may, {told_w} W told"
            )
        self.grid_w, self.excess_w, self.told_w = grid_w, info["ramp_excess_w"], told_w

    def _units(self, info: dict[str, Any]) -> tuple[float, float]:
        """Return what the site's units cost, less exports, and what they emit, from what each of them made."""
        usd, kg, made_j, starts_usd = 0.0, 0.0, 0.0, 0.0
        for unit in self.spec.generation:
            joules, run_s, starts = (info[f"generation/{unit.name}/{key}"] for key in ("energy_j", "run_s", "starts"))
            # With ramp limits a unit takes load, and gives it up, as fast as they let.
            least_j = 0.0 if self.spec.ramp is not None and not unit.must_run else unit.min_load * unit.power_w * run_s
            assert least_j * (1.0 - CLOSE) <= joules <= unit.power_w * run_s * (1.0 + CLOSE)
            assert run_s <= self.seconds * (1.0 + CLOSE)
            if unit.must_run:
                same(unit.name, run_s, self.seconds)
            made_j += joules
            usd += joules / 3.6e9 * unit.fuel_usd_per_mwh
            kg += joules / 3.6e9 * unit.carbon_g_per_kwh
            starts_usd += starts * unit.start_usd
        same("generation_j", info["generation_j"], made_j)
        same("fuel_cost_usd", info["fuel_cost_usd"], usd)
        same("start_cost_usd", info["start_cost_usd"], starts_usd)
        most_w, paid = (
            (0.0, 0.0) if self.spec.grid is None else (self.spec.grid.export_w, self.spec.grid.export_usd_per_mwh)
        )
        assert info["export_j"] <= most_w * self.seconds * (1.0 + CLOSE) and info["spilled_j"] >= 0.0
        same("export_revenue_usd", info["export_revenue_usd"], info["export_j"] / 3.6e9 * paid)
        return usd + starts_usd - info["export_revenue_usd"], kg

    def _money(self, info: dict[str, Any]) -> None:
        money = self.spec.money
        assert money is not None
        same("revenue", sum(info[f"class/{name}/revenue_usd"] for name in self.names), info["revenue_usd"])
        same("peak_quarter_hour_w", info["peak_quarter_hour_w"], self.peak_w)
        demand = money.demand_usd_per_kw_month / 1e3 / (30 * 86400.0) * self.peak_w * self.seconds
        same("demand_charge_usd", info["demand_charge_usd"], demand)
        costs = info["energy_cost_usd"] + info["demand_charge_usd"] + info["capital_usd"] + info["sla_penalty_usd"]
        costs += info.get("battery_wear_usd", 0.0) + info.get("coincident_charge_usd", 0.0)
        revenue = info["revenue_usd"] + info.get("training_revenue_usd", 0.0)
        same("profit_usd", info["profit_usd"] + costs, revenue, scale=costs)


def same(name: str, found: float, expected: float, scale: float = 0.0) -> None:
    """Compare two figures to ``CLOSE`` of the larger of them and of ``scale``.

    Raises:
        AssertionError: When they differ.
    """
    largest = max(abs(found), abs(expected), abs(scale))
    assert abs(found - expected) <= CLOSE * largest, f"{name}: {found!r} is not {expected!r}"


def play(env: AIFactoryEnv, seed: int) -> None:
    """Play an episode with drawn actions; nothing is NaN, the books balance at each step, and the brake keeps the cap.

    Raises:
        AssertionError: When it is not so.
    """
    rng = np.random.default_rng([seed, 3])
    observation, info = env.reset(seed=int(rng.integers(2**31)))
    books = Books(env)
    calm = rng.random() < 0.3
    for _ in range(STEPS):
        action = rng.uniform(-1.0, 1.0, env.action_layout.size) * (0.2 if calm else rng.choice([0.0, 0.3, 1.0]))
        observation, reward, _, truncated, info = env.step(action.astype(np.float32))
        assert np.isfinite(observation).all() and env.observation_space.contains(observation)
        assert math.isfinite(reward) and all(math.isfinite(value) for value in info.values()), info
        books.step(info, env.task.control_interval_s)
        books.check(info)
        if truncated:
            break
    brake = env.task.site.brake
    if brake.enabled:
        longest_s = env.factory.engine.state.site[0, Site.LONGEST_OVERDRAW_S]
        assert longest_s <= brake.reaction_s + 1e-6, f"above the cap for {longest_s} s"


def run(seed: int) -> tuple[str, tuple[str, ...], str]:
    """Play one drawn combination, or say why it is not possible.

    Returns:
        The error (empty for one that ran), its parts, its scenario.
    """
    try:
        table, settings, parts = draw(seed)
        env = random_sites.make(load_site(table), settings)
    except ConfigError as error:
        text = str(error)
        assert ":" in text and "\n" not in text, text
        return text, (), ""
    play(env, seed)
    return "", parts, settings["scenario"]


def main() -> int:
    """Run the command line; returns 1 when a combination failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combinations", type=int, default=500)
    parser.add_argument("--begin", type=int, default=0, help="first seed")
    chosen = parser.parse_args()
    # A scenario may have parts that a drawn site has nothing for.
    warnings.filterwarnings("ignore", message=".*has no effect")
    failures, seed, ran = [], chosen.begin, 0
    parts: Counter[str] = Counter()
    scenarios: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with tqdm(total=chosen.combinations, desc="combinations", disable=not sys.stderr.isatty()) as bar:
        while ran < chosen.combinations:
            try:
                reason, used, scenario = run(seed)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is to be counted
                failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
                reason, used, scenario = "", (), ""
            if reason:
                refused[reason.split(":")[0]] += 1
            else:
                ran += 1
                parts.update(used)
                scenarios.update(scenario.split("+") if scenario else ())
                bar.update()
            seed += 1
    print(
        f"{ran:,} combinations ran ({sum(refused.values()):,} drawn ones were refused as impossible), {len(failures)} failed"
    )
    for what, counted in (("parts", parts), ("scenarios", scenarios)):
        print(f"{what}: " + ", ".join(f"{name} {count}" for name, count in sorted(counted.items())))
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
