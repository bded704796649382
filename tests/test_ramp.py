"""Ramp limits: they hold whatever the operator does, energy is conserved, and what is not there changes nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.layout import PoolInt, Site, SiteSpec
from ai_factory_gym.params import idle_facility_w, waking_step_w
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import (
    BatteryConfig,
    RampConfig,
    ReliabilityConfig,
    SiteConfig,
    StorageConfig,
    load_site,
    site_from_table,
)
from ai_factory_gym.validate import findings

EDGE = load_site("edge")
STEP_S = 15.0
EVENING = {
    "start_time_s": 18 * 3600.0,
    "horizon_s": 3600.0,
    "warmup_s": 60.0,
    "control_interval_s": STEP_S,
    "lambda_tokens_per_joule": 3.0,
}
SLOPE = EDGE.cap_w / 60.0
"""The whole cap in a minute, W/s."""

RACKS = ("clock", "active_racks")


def limited(up: float | None, down: float | None, *, storage: bool = False, **values: Any) -> SiteConfig:
    """Return the Edge site with limits given as shares of its cap per minute, whose clocks may go down to 0.3."""
    ramp = RampConfig(None if up is None else up * SLOPE, None if down is None else down * SLOPE)
    settings = {"clock_min": 0.3, "drain_s": 20.0, "dwell_s": 30.0, **values}
    return dataclasses.replace(EDGE, ramp=ramp, rack_storage=StorageConfig() if storage else None, **settings)


def make(site: SiteConfig, **settings: Any) -> AIFactoryEnv:
    """Return an environment of a site in the evening."""
    return AIFactoryEnv(site=site, **{**EVENING, **settings})


def abrupt(env: AIFactoryEnv, steps: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return the infos of an episode whose operator throws levers about: clocks, and racks to sleep and awake."""
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    infos = []
    for _ in range(steps):
        action = rng.choice([-1.0, -0.3, 0.4, 1.0], env.action_space.shape).astype(np.float32)
        infos.append(env.step(action)[4])
    return infos


def steepest(infos: list[dict[str, Any]], key: str, step_s: float = STEP_S) -> tuple[float, float]:
    """Return the fastest rise of the mean draw between any two steps, W/s, and the fastest fall but for what is counted as excess."""
    mean = np.array([info[key] for info in infos])
    excess = np.array([info.get("ramp_excess_w", 0.0) for info in infos])
    change = mean[None, :] - mean[:, None]
    # What moved within the earlier step counts too: the excess of any time before it ended may be in its mean.
    before = np.concatenate([[0.0], excess[:-1]])
    known = excess[None, :] - before[:, None]
    seconds = step_s * (np.arange(len(mean))[None, :] - np.arange(len(mean))[:, None])
    later = seconds > 0.0
    rise = (change[later] / seconds[later]).max()
    fall = ((-change - known)[later] / seconds[later]).max()
    return float(rise), float(fall)


def balance(env: AIFactoryEnv, info: dict[str, Any], before: tuple[float, float]) -> None:
    """Check that grid energy is that of the facility and of what is stored, and that stores lose and make nothing but their losses."""
    moved = info["storage_in_j"] - info["storage_out_j"]
    moved += info.get("battery_in_j", 0.0) - info.get("battery_out_j", 0.0)
    assert info["grid_energy_j"] == pytest.approx(info["energy_j"] + moved, rel=1e-9)
    spec = env.factory.params.site
    for name, one_way, start in (
        ("storage", spec[SiteSpec.STORAGE_EFFICIENCY], before[0]),
        ("battery", spec[SiteSpec.BATTERY_EFFICIENCY], before[1]),
    ):
        if f"{name}_in_j" in info:
            held = start + info[f"{name}_in_j"] * one_way - info[f"{name}_out_j"] / one_way
            assert info[f"{name}_charge_j"] == pytest.approx(held, rel=1e-9, abs=1.0)
    assert 0.0 <= info["storage_charge_j"] <= spec[SiteSpec.STORAGE_J] * (1.0 + 1e-12)
    assert info["energy_j"] >= info["it_energy_j"] + info["ballast_j"]


# ----------------------------------------------------------------------------------------------------- the limits hold

CASES = {
    "1 %": (limited(0.01, 0.01), {}),
    "1 %, racks": (limited(0.01, 0.01, storage=True), {"levers": RACKS}),
    "5 %, bursts": (limited(0.05, 0.05), {"levers": RACKS, "scenario": "burst"}),
    "20 %, hot": (limited(0.2, 0.1, storage=True), {"levers": RACKS, "demand_scale": 1.3}),
    "up only": (limited(0.05, None), {"levers": RACKS, "demand_scale": 0.4}),
    "down only": (limited(None, 0.05, storage=True), {"levers": RACKS, "demand_scale": 0.8}),
    "battery": (
        limited(0.05, 0.05, battery=BatteryConfig(4e5, 2e4, initial_charge=0.5)),
        {"levers": (*RACKS, "battery")},
    ),
    "roles": (limited(0.05, 0.05), {"levers": (*RACKS, "role"), "demand_scale": 0.5}),
    "faults": (
        limited(0.05, 0.05, storage=True, reliability=ReliabilityConfig(gpu_faults_per_hour=0.02)),
        {"levers": RACKS, "demand_scale": 0.6},
    ),
    "requests": (limited(0.05, 0.05), {"resolution": "request", "demand_scale": 0.02, "levers": RACKS}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_limits_hold_whatever_the_operator_does(name: str) -> None:
    site, settings = CASES[name]
    assert site.ramp is not None
    steps = 6 if name == "requests" else 44
    env = make(site, **settings)
    env.reset(seed=1)
    state = env.factory.engine.state.site[0]
    before = (float(state[Site.STORAGE_CHARGE_J]), float(state[Site.BATTERY_CHARGE_J]))
    infos = abrupt(env, steps)
    rise, fall = steepest(infos, "grid_power_w")
    up, down = (math.inf if limit is None else limit for limit in (site.ramp.up_w_per_s, site.ramp.down_w_per_s))
    assert rise <= up * (1.0 + 1e-6) and fall <= down * (1.0 + 1e-6)
    # Nothing but the cap comes before a limit.
    assert (infos[-1]["ramp_excess_w"] > 0.0) <= (infos[-1]["cap_violation_j"] > 0.0)
    balance(env, infos[-1], before)
    # The same operator without limits: what holds above is not for free.
    plain = abrupt(make(dataclasses.replace(site, ramp=None, rack_storage=None, battery=None), **_without(settings)), steps)
    free_rise, free_fall = steepest(plain, "facility_power_w")
    assert free_rise > 1.2 * up or free_fall > 1.2 * down


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the battery's lever."""
    levers = tuple(lever for lever in settings.get("levers", ()) if lever != "battery")
    return {**settings, "levers": levers} if levers else settings
