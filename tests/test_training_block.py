"""A training block: what it draws counts, its checkpoints and pauses add up, and nobody gains by killing it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ai_factory_baselines
from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.draw import facility_power_w
from ai_factory_gym.engine.layout import Array, CapStep, Pool, Site, SiteInt, SiteSpec, World
from ai_factory_gym.engine.training import LOADING, NO_JOB, PAUSED, RUNNING, WRITING, meter_bursts
from ai_factory_gym.evaluation.feasibility import violations
from ai_factory_gym.factory import Factory
from ai_factory_gym.levers import DEFAULT_LEVERS, LEVERS, PAUSES_BELOW
from ai_factory_gym.metrics import TRAINING_KEYS
from ai_factory_gym.operating_point import steady_site
from ai_factory_gym.params import idle_facility_w, nameplate_it_w
from ai_factory_gym.physics.power import dynamic_power_factor, gpu_power_w, power_coefficients, rack_power_w
from ai_factory_gym.physics.training import compute_time_share, iteration_time, phase_power_w, undisturbed_s
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.scenarios.training import TrainingBlockSpec, TrainingJobSpec, draw_block_outages, draw_jobs
from ai_factory_gym.sites import (
    SITES_PATH,
    BatteryConfig,
    CoolingConfig,
    RampConfig,
    SiteConfig,
    load_site,
    site_from_table,
)
from ai_factory_gym.sites.money import MoneyConfig, Tariff
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.validate import findings

EDGE = load_site("edge")
BLOCK = TrainingConfig("gb300_nvl72", 3, checkpoint_period_s=300.0, checkpoint_s=20.0, restore_s=45.0)
NOON = {
    "scenario": "steady",
    "start_time_s": 12 * 3600.0,
    "horizon_s": 1800.0,
    "warmup_s": 120.0,
    "demand_scale": 0.4,
    "lambda_tokens_per_joule": 3.0,
}


def with_block(site: SiteConfig = EDGE, **values: Any) -> SiteConfig:
    """Return a site with a block of three racks and short checkpoints."""
    return dataclasses.replace(site, training=dataclasses.replace(BLOCK, **values))


def make(site: SiteConfig | None = None, **settings: Any) -> AIFactoryEnv:
    """Return a site with a block at noon, its lever in use."""
    given = {"levers": (*DEFAULT_LEVERS, "training"), **NOON, **settings}
    return AIFactoryEnv(site=with_block() if site is None else site, **given)


def order(env: AIFactoryEnv, training: float | None = 1.0, clock: float = 0.8) -> Array:
    """Return the action of all racks at a clock and the job at another; 0 pauses it, None leaves the lever at zero."""
    return env.action_layout.encode(clock=clock, racks=env.action_layout.racks, training=training)


def play(
    env: AIFactoryEnv, clocks: list[float | None], seed: int | None = 1, clock: float = 0.8
) -> list[dict[str, Any]]:
    """Return the infos of steps with these clocks of the job, of a new episode unless ``seed`` is None."""
    if seed is not None:
        env.reset(seed=seed)
    return [env.step(order(env, training, clock))[4] for training in clocks]


def rewards(env: AIFactoryEnv, training: float | None, steps: int) -> float:
    """Return the return of some steps."""
    env.reset(seed=1)
    return float(sum(env.step(order(env, training))[1] for _ in range(steps)))


def site_numbers(env: AIFactoryEnv) -> Array:
    """Return the engine's numbers of the site."""
    return env.factory.engine.state.site[0]


# ---------------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize("rack", ["gb300_nvl72", "vera_rubin_nvl144", "h100_sxm8"])
@pytest.mark.parametrize("clock", [1.0, 0.7, 0.3])
def test_a_phase_draws_what_the_power_model_of_its_racks_says(rack: str, clock: float) -> None:
    block = TrainingConfig(rack, 4, compute_memory=0.3, communication_memory=0.15)
    env = make(dataclasses.replace(EDGE, training=block, cap_w=1e8))
    spec = env.factory.params.site
    coef = np.array(power_coefficients(rack))
    common = (spec[SiteSpec.TRAIN_IDLE_W], spec[SiteSpec.TRAIN_MOST_W])
    compute_w = phase_power_w(
        *common,
        *spec[[SiteSpec.TRAIN_COMPUTE_CORE_W, SiteSpec.TRAIN_COMPUTE_FIXED_W, SiteSpec.TRAIN_VOLTAGE_FLOOR]],
        clock,
    )
    wait_w = phase_power_w(
        *common, *spec[[SiteSpec.TRAIN_WAIT_CORE_W, SiteSpec.TRAIN_WAIT_FIXED_W, SiteSpec.TRAIN_VOLTAGE_FLOOR]], clock
    )
    assert compute_w == pytest.approx(4 * rack_power_w(coef, gpu_power_w(coef, clock, 1.0, 1.0, 0.3)), rel=1e-12)
    assert wait_w == pytest.approx(4 * rack_power_w(coef, gpu_power_w(coef, clock, 1.0, 0.0, 0.15)), rel=1e-12)
    idle_w = 4 * rack_power_w(coef, gpu_power_w(coef, clock, 0.0, 0.0, 0.0))
    assert spec[SiteSpec.TRAIN_IDLE_W] == pytest.approx(idle_w, rel=1e-12)
    assert idle_w < wait_w < compute_w
    nameplate_w = 4 * block.group.profile().nameplate_w
    assert compute_w <= nameplate_w * (1.0 + 1e-12)
    assert nameplate_it_w(env.factory.site) == pytest.approx(nameplate_it_w(EDGE) + nameplate_w)
    assert idle_facility_w(env.factory.site) > idle_facility_w(EDGE) + spec[SiteSpec.TRAIN_IDLE_W]


def test_only_the_compute_phase_slows_down() -> None:
    assert iteration_time(0.8, 1.0) == 1.0 and compute_time_share(0.8, 1.0) == pytest.approx(0.8)
    assert iteration_time(0.8, 0.5) == pytest.approx(0.8 / 0.5 + 0.2)
    assert compute_time_share(0.8, 0.5) == pytest.approx(1.6 / 1.8)
    assert compute_time_share(1.0, 0.4) == pytest.approx(1.0)


def test_a_job_left_alone_stands_while_it_writes_only() -> None:
    found = [undisturbed_s(t, 300.0, 20.0) for t in (-45.0, 0.0, 299.0, 300.0, 320.0, 321.0, 640.0, 641.5)]
    assert found == pytest.approx([0.0, 0.0, 299.0, 300.0, 300.0, 301.0, 600.0, 601.5])


# ------------------------------------------------------------------------------------------------- phases and pauses


def test_pause_and_resume_cost_a_checkpoint_and_a_restore_and_nothing_is_lost() -> None:
    env = make()
    infos = play(env, [None] * 8 + [0.0] * 4 + [1.0] * 2)
    done = [info["training_progress_s"] for info in infos]
    # It has run for 120 s of warm-up; writes from 180 to 200 s, runs to 480 s, is paused: writes to 500 s, loads from 720 to 765 s.
    expected = [60, 120, 180, 220, 280, 340, 400, 460, 460, 460, 460, 460, 475, 535]
    assert done == pytest.approx(expected, abs=1e-5)
    assert infos[11]["training_paused_s"] == pytest.approx(220.0, abs=1e-5)
    assert [info["training_phase"] for info in infos][7:13] == [RUNNING, PAUSED, PAUSED, PAUSED, PAUSED, RUNNING]
    assert infos[-1]["training_checkpoints"] == 2.0
    assert infos[-1]["training_lost_s"] == infos[-1]["training_kills"] == 0.0
    assert infos[7]["training_share"] == pytest.approx(1.0, abs=1e-6)
    due_s = undisturbed_s(120.0 + 14 * 60.0, 300.0, 20.0) - 120.0
    assert infos[-1]["training_share"] == pytest.approx(535.0 / due_s, abs=1e-6)
    block_w = [info["training_power_w"] for info in infos]
    assert block_w[9] < 0.3 * block_w[0]
    # Whole cycles of a job left alone are credited with the energy they took.
    site = site_numbers(env)
    assert site[Site.TRAIN_CREDIT_J] < site[Site.TRAIN_ENERGY_J]


def test_what_has_just_been_written_is_not_written_again_and_loading_can_be_broken_off() -> None:
    env = make(with_block(checkpoint_period_s=240.0))
    play(env, [None] * 2)
    site = site_numbers(env)
    assert site[Site.TRAIN_PHASE] == RUNNING and site[Site.TRAIN_RAN_S] == pytest.approx(240.0)
    info = play(env, [0.0], seed=None)[-1]
    assert info["training_phase"] == PAUSED and info["training_paused_s"] == pytest.approx(40.0)
    info = play(env, [0.0], seed=None)[-1]
    site[Site.TRAIN_HELD] = 0.0
    # Half a restore, then paused again: at once, with nothing to write.
    env.factory.engine.state.site[0, Site.TRAIN_PHASE] = LOADING
    env.factory.engine.state.site[0, Site.TRAIN_LEFT_S] = 20.0
    later = play(env, [0.0], seed=None)[-1]
    assert later["training_paused_s"] == pytest.approx(info["training_paused_s"] + 60.0)
    assert later["training_checkpoints"] == info["training_checkpoints"] == 1.0


def test_phases_may_take_no_time() -> None:
    env = make(with_block(checkpoint_s=0.0, restore_s=0.0, checkpoint_period_s=100.0))
    infos = play(env, [None, 0.0, None, None])
    assert infos[-1]["training_progress_s"] == pytest.approx(180.0, abs=1e-5)
    assert infos[-1]["training_paused_s"] == pytest.approx(60.0, abs=1e-5)
    assert infos[-1]["training_checkpoints"] >= 2.0


def test_a_lower_clock_slows_the_job_and_saves_more_than_it_slows() -> None:
    speed, energy = [], []
    env = make(with_block(checkpoint_period_s=1e6))
    spec = env.factory.params.site
    own = spec[SiteSpec.TRAIN_CLOCK]
    # At full clock compute phases would draw more than the GPUs' limit: the job runs at the clock that just fits.
    assert 0.8 < own < 1.0
    most_w = spec[SiteSpec.TRAIN_COMPUTE_CORE_W] * dynamic_power_factor(spec[SiteSpec.TRAIN_VOLTAGE_FLOOR], own)
    assert most_w + spec[SiteSpec.TRAIN_COMPUTE_FIXED_W] == pytest.approx(spec[SiteSpec.TRAIN_MOST_W], rel=1e-9)
    clocks = (own, 0.7, 0.55, 0.4)
    for clock in clocks:
        info = play(env, [clock] * 4)[-1]
        speed.append(info["training_progress_s"] / 240.0)
        energy.append(info["training_energy_j"])
    expected = [iteration_time(0.8, own) / iteration_time(0.8, clock) for clock in clocks]
    assert speed == pytest.approx(expected, rel=1e-6)
    assert all(np.diff(energy) < 0.0)
    assert energy[1] / energy[0] < speed[1]


def test_the_lever_maps_as_it_says_and_zero_is_the_job_by_itself() -> None:
    env = make()
    place = env.action_layout["training"]
    assert place.stop - place.start == 1 and "training" in LEVERS
    lowest = env.task.site.clock_min
    own = env.factory.params.site[SiteSpec.TRAIN_CLOCK]
    for clock in (1.0, 0.8, lowest):
        env.reset(seed=1)
        env.step(order(env, clock))
        assert site_numbers(env)[Site.TRAIN_CLOCK] == pytest.approx(min(clock, own), abs=1e-6)
    for number, phase in (
        (PAUSES_BELOW + 0.01, RUNNING),
        (PAUSES_BELOW - 0.01, PAUSED),
        (-1.0, PAUSED),
        (1.0, RUNNING),
    ):
        env.reset(seed=1)
        action = order(env)
        action[place] = number
        assert env.step(action)[4]["training_phase"] == phase
    without = make(levers=DEFAULT_LEVERS)
    a, b = play(env, [None] * 3)[-1], play(without, [None] * 3)[-1]
    assert a == b


def test_energy_adds_up() -> None:
    # A PUE that does not depend on the load: what is not the pools' is the block's.
    site = with_block(dataclasses.replace(EDGE, cooling=CoolingConfig(base=1.1, fixed_share=0.0)))
    env = make(site)
    env.reset(seed=1)
    for clock in (None, None, None, None, 0.0, 0.0, 0.6, 1.0, None):
        info = play(env, [clock], seed=None)[-1]
        pools_j = env.factory.engine.state.pool[0, :, Pool.ENERGY_J].sum()
        assert info["energy_j"] == pytest.approx(1.1 * info["it_energy_j"], rel=1e-9)
        assert info["training_energy_j"] == pytest.approx(info["energy_j"] - 1.1 * pools_j, rel=1e-9)
        it_j = pools_j + site_numbers(env)[Site.TRAIN_IT_ENERGY_J]
        assert info["it_energy_j"] == pytest.approx(it_j, rel=1e-9)
        credited_j = info["energy_j"] - info["serving_energy_j"]
        reference_w = env.factory.params.site[SiteSpec.TRAIN_REFERENCE_W]
        assert credited_j == pytest.approx(1.1 * reference_w * info["training_progress_s"], rel=1e-9)
        assert info["tokens_per_joule"] == pytest.approx(info["good_tokens"] / info["serving_energy_j"], rel=1e-12)


def test_a_job_left_alone_is_neutral_to_tokens_per_joule() -> None:
    env = make(with_block(checkpoint_period_s=280.0), warmup_s=0.0)
    # Five cycles of 300 s.
    info = play(env, [None] * 25)[-1]
    site = site_numbers(env)
    assert site[Site.TRAIN_CREDIT_J] == pytest.approx(site[Site.TRAIN_ENERGY_J], rel=2e-3)
    assert info["training_share"] == pytest.approx(1.0, abs=1e-6)
    plain = AIFactoryEnv(site=EDGE, **{**NOON, "warmup_s": 0.0})
    plain.reset(seed=1)
    action = plain.action_layout.encode(clock=0.8, racks=plain.action_layout.racks)
    for _ in range(25):
        other = plain.step(action)[4]
    assert info["requests_arrived"] == other["requests_arrived"]
    # More IT behind the same pumps: the fixed part of the cooling is larger, and shared.
    assert info["tokens_per_joule"] == pytest.approx(other["tokens_per_joule"], rel=0.03)


# --------------------------------------------------------------------------------------------------- bursts and brake


def test_bursts_count_for_their_share_of_the_time() -> None:
    env = make(dataclasses.replace(with_block(), battery=BatteryConfig(power_w=2e5, energy_wh=1e5)))
    env.reset(seed=1)
    params, state = env.factory.params, env.factory.engine.state
    cap_w = state.site[0, Site.CAP_W]
    rng = np.random.default_rng(0)
    for _ in range(50):
        mean_w, burst_w, share = cap_w * rng.uniform(0.8, 1.1), cap_w * rng.uniform(0.0, 0.2), rng.uniform(0.3, 1.0)
        held_j, used_w = rng.uniform(0.0, 1e6), rng.uniform(-2e5, 2e5)
        state.site[0, Site.BATTERY_CHARGE_J], state.site[0, Site.BATTERY_OUT_W] = held_j, used_w
        state.site[0, Site.TRAIN_BURST_W] = burst_w
        grid_w, over_w, top_w = meter_bursts(params, state, 0, mean_w, 0.0, share, 10.0)
        # The same, a tick of a square wave after the other.
        high = np.arange(100_000) < share * 100_000
        wave_w = np.where(high, mean_w + burst_w, mean_w - burst_w * high.mean() / max(1e-12, (~high).mean()))
        efficiency = np.sqrt(0.87)
        given_w = min(2e5 - used_w, held_j * efficiency / (share * 10.0), max(0.0, mean_w + burst_w - cap_w))
        wave_w = np.where(high, wave_w - given_w, wave_w)
        assert grid_w == pytest.approx(wave_w.mean(), rel=1e-4)
        assert over_w == pytest.approx(np.maximum(wave_w - cap_w, 0.0).mean(), rel=1e-3, abs=1e-4 * cap_w)
        assert top_w == pytest.approx(wave_w.max() if share > 0.0 else grid_w, rel=1e-4)
        assert state.site[0, Site.BATTERY_CHARGE_J] >= 0.0


def test_bursts_share_the_cap() -> None:
    # The mean fits under the cap, its bursts do not: the brake acts, and after its reaction the bursts fit.
    env = make(with_block(iteration_s=4.0), demand_scale=0.05, control_interval_s=5.0, warmup_s=60.0)
    calm = play(env, [None] * 2)[-1]
    spec = env.factory.params.site
    state = env.factory.engine.state
    site = state.site[0]
    mean_w = calm["facility_power_w"]
    burst_w = 3 * 138e3 - (site[Site.TRAIN_POWER_W] / site[Site.PUE])
    assert burst_w > 2e4
    state.cap_steps[0, 0, CapStep.CAP_W] = mean_w + 0.5 * burst_w
    infos = play(env, [None] * 6, seed=None)
    assert mean_w < infos[-1]["cap_w"]
    assert infos[-1]["brake_s"] > 0.0
    over_j = infos[-1]["cap_violation_j"]
    share = spec[SiteSpec.TRAIN_COMPUTE_SHARE]
    assert over_j == pytest.approx(share * 0.5 * burst_w * spec[SiteSpec.BRAKE_REACTION_S], rel=0.15)
    assert infos[1]["cap_violation_j"] == over_j
    assert infos[-1]["peak_power_w"] == pytest.approx(mean_w + burst_w, rel=0.01)
    # A cap above the bursts is not touched.
    state.cap_steps[0, 0, CapStep.CAP_W] = 1.3 * (mean_w + burst_w)
    play(env, [None] * 20, seed=None)
    braked = site_numbers(env)[Site.BRAKE_S]
    after = play(env, [None] * 6, seed=None)[-1]
    assert after["brake_s"] == braked and after["cap_violation_j"] == over_j


def test_the_brake_slows_the_job_then_stops_it_and_its_own_limit_kills_it() -> None:
    env = make(with_block(stall_limit_s=90.0, checkpoint_period_s=1e5), demand_scale=0.3)
    play(env, [None] * 2, clock=1.0)
    state = env.factory.engine.state
    # Half the cap: slowed. Just above the idle draw: stopped.
    state.cap_steps[0, 0, CapStep.CAP_W] = 0.8 * EDGE.cap_w
    slowed = play(env, [None] * 2, seed=None, clock=1.0)[-1]
    site = site_numbers(env)
    assert slowed["brake_s"] > 60.0 and site[Site.TRAIN_STALLED] == 0.0 and site[Site.TRAIN_CLOCK] <= 0.5
    assert 120.0 < slowed["training_progress_s"] < 240.0
    state.cap_steps[0, 0, CapStep.CAP_W] = 1.05 * idle_facility_w(env.factory.site)
    stopped = play(env, [None], seed=None, clock=1.0)[-1]
    assert site[Site.TRAIN_STALLED] == 1.0 and stopped["training_kills"] == 0.0
    assert stopped["training_progress_s"] == pytest.approx(slowed["training_progress_s"], abs=2.0)
    killed = play(env, [None], seed=None, clock=1.0)[-1]
    assert killed["training_kills"] == 1.0
    # All since the beginning of the warm-up, its 120 s among them.
    assert killed["training_lost_s"] == pytest.approx(stopped["training_progress_s"] + 120.0, abs=1e-5)
    assert killed["training_progress_s"] == pytest.approx(-120.0, abs=1e-5)
    assert site[Site.TRAIN_PHASE] == LOADING
    credit_j = env.factory.params.site[SiteSpec.TRAIN_REFERENCE_W] * killed["training_progress_s"]
    assert site[Site.TRAIN_CREDIT_J] == pytest.approx(credit_j * site[Site.PUE], rel=0.15)
    # The cap was kept but for the reaction of the brake at either of its two falls.
    assert killed["cap_violation_j"] < 2.0 * nameplate_it_w(env.factory.site) * 1.3
    state.cap_steps[0, 0, CapStep.CAP_W] = 1e9
    freed = play(env, [None] * 3, seed=None, clock=1.0)[-1]
    assert freed["training_phase"] == RUNNING and freed["training_kills"] == 1.0


def test_a_phase_that_is_nearly_over_does_not_hold_up_a_stopped_block() -> None:
    env = make(with_block(checkpoint_s=60.0), demand_scale=0.3)
    play(env, [None] * 2)
    state = env.factory.engine.state
    site = site_numbers(env)
    site[Site.TRAIN_PHASE], site[Site.TRAIN_LEFT_S] = WRITING, 0.002
    site[Site.TRAIN_STALLED] = site[Site.BRAKED] = 1.0
    site[Site.BRAKED_AT_S] = site[Site.TIME_S]
    # Less than what a checkpoint draws, more than the idle draw.
    state.cap_steps[0, 0, CapStep.CAP_W] = 1.05 * idle_facility_w(env.factory.site)
    before = state.site_int[0, SiteInt.SEGMENTS]
    play(env, [None], seed=None)
    assert site[Site.TRAIN_STALLED] == 1.0 and site[Site.TRAIN_LEFT_S] == pytest.approx(0.002)
    assert state.site_int[0, SiteInt.SEGMENTS] - before < 200


def test_the_cap_is_kept_beside_a_block() -> None:
    # More demand than the cap serves, full clocks and a curtailment: the brake is all there is.
    env = make(with_block(), scenario="curtailment", demand_scale=1.0, horizon_s=1800.0, start_time_s=18 * 3600.0)
    infos = play(env, [None] * 30, clock=1.0)
    longest_s = site_numbers(env)[Site.LONGEST_OVERDRAW_S]
    assert longest_s <= EDGE.brake.reaction_s + 1e-6
    assert infos[-1]["brake_s"] > 0.0
    for before, after in zip(infos[1:], infos[2:], strict=False):
        if before["brake_s"] + 60.0 <= after["brake_s"] + 1e-6:
            assert after["cap_violation_j"] == before["cap_violation_j"]


def test_a_battery_shaves_bursts() -> None:
    plain = make(demand_scale=0.05, control_interval_s=5.0, warmup_s=60.0)
    mean_w = play(plain, [None] * 2)[-1]["facility_power_w"]
    site = dataclasses.replace(with_block(), battery=BatteryConfig(power_w=1e5, energy_wh=1e5))
    env = make(site, demand_scale=0.05, control_interval_s=5.0, warmup_s=60.0)
    play(env, [None] * 2)
    env.factory.engine.state.cap_steps[0, 0, CapStep.CAP_W] = 1.02 * mean_w
    info = play(env, [None] * 6, seed=None)[-1]
    assert info["cap_violation_j"] == 0.0 and info["brake_s"] == 0.0
    assert info["battery_out_j"] > 0.0 and info["grid_energy_j"] == pytest.approx(
        info["energy_j"] - info["battery_out_j"] + info["battery_in_j"], rel=1e-9
    )


@pytest.mark.parametrize(("cap_w", "power_w"), [(8e5, 1.6e6), (0.0, 2.5e6)])
def test_units_of_the_site_leave_the_bursts_to_the_connection_if_it_is_large_enough(
    cap_w: float, power_w: float
) -> None:
    unit = {"name": "engine", "kind": "engine", "power_w": power_w, "fuel_usd_per_mwh": 90.0, "must_run": cap_w == 0.0}
    table = {"based_on": "edge", "name": "Mine", "cap_w": cap_w, "generation": [unit]}
    env = make(with_block(load_site(table), checkpoint_period_s=1e5), demand_scale=0.4, warmup_s=300.0)
    infos = play(env, [None] * 6)
    state = env.factory.engine.state
    site_row = site_numbers(env)
    burst_w = site_row[Site.TRAIN_BURST_W]
    assert burst_w > 4e4 and infos[-1]["facility_power_w"] > 1.1e6
    assert infos[-1]["cap_violation_j"] == infos[-1]["brake_s"] == 0.0
    assert infos[-1]["grid_power_w"] == pytest.approx(max(0.0, cap_w - burst_w), abs=1e3)
    assert infos[-1]["peak_power_w"] <= cap_w * (1.0 + 1e-9)
    # What runs at the site has to be enough for bursts too.
    state.site[0, Site.CAP_W] = 0.5 * burst_w
    _, over_w, top_w = meter_bursts(env.factory.params, state, 0, 0.0, 0.0, 0.8, 1.0)
    assert top_w == pytest.approx(burst_w) and over_w == pytest.approx(0.8 * 0.5 * burst_w)
    # What nobody takes of them is there too.
    _, over_w, top_w = meter_bursts(env.factory.params, state, 0, 0.0, 0.6 * burst_w, 0.8, 1.0)
    assert top_w == pytest.approx(0.5 * burst_w) and over_w == 0.0


def test_a_job_waits_for_the_ramp_and_serving_does_not() -> None:
    # What the block draws when it runs takes two minutes at this limit.
    ramp = RampConfig(up_w_per_s=2500.0)
    met = []
    for site in (dataclasses.replace(with_block(), ramp=ramp), with_block()):
        env = make(site)
        play(env, [0.0] * 3)
        infos = play(env, [1.0] * 6, seed=None)
        met.append(infos[-1]["requests_met_slo"])
        if site.ramp is None:
            continue
        assert site_numbers(env)[Site.RAMP_EXCESS_W] <= 1e-6 * EDGE.cap_w
        loaded = 45.0  # s of the first minute
        assert infos[-1]["training_progress_s"] < infos[0]["time_s"] + 360.0 - loaded - 30.0
        assert infos[-1]["training_phase"] == RUNNING and infos[-1]["training_kills"] == 0.0
        assert infos[-1]["ballast_j"] > 0.0
        rises = np.diff([info["grid_power_w"] for info in infos])
        assert max(rises) <= 60.0 * 2500.0 * (1.0 + 1e-6)
    assert met[0] >= 0.995 * met[1]


def test_heat_of_the_block_is_cooled_too() -> None:
    cooling = CoolingConfig(coolant_limit_c=45.0, design_outdoor_c=30.0, outdoor_c=25.0)
    warm = [
        play(make(dataclasses.replace(site, cooling=cooling)), [clock] * 5)[-1]["coolant_c"]
        for site, clock in ((with_block(), 1.0), (with_block(), 0.0))
    ]
    assert warm[0] > warm[1] + 0.5


# ------------------------------------------------------------------------------------------------------- what it is worth

PAID = dataclasses.replace(EDGE, money=MoneyConfig(tariff=Tariff(0.5, 2.0)))


@pytest.mark.parametrize("reward", ["tokens_per_watt", "carbon", "goodput", "profit"])
def test_pausing_always_does_not_pay_unless_the_work_is_worth_less_than_its_energy(reward: str) -> None:
    def gain(**values: Any) -> float:
        env = make(with_block(PAID, **values), reward=reward, warmup_s=360.0)
        return rewards(env, 0.0, 12) - rewards(env, None, 12)

    assert gain() < 0.0
    free = {"worth": 0.0} if reward != "profit" else {"usd_per_rack_hour": 0.0}
    assert gain(**free) > 0.0 or reward == "goodput"
    assert gain(worth=3.0) < gain()


def test_profit_pays_for_progress_and_takes_back_what_is_lost() -> None:
    env = make(with_block(PAID, usd_per_rack_hour=80.0, checkpoint_period_s=1e5), reward="profit", warmup_s=0.0)
    infos = play(env, [None] * 5)
    assert infos[-1]["training_revenue_usd"] == pytest.approx(3 * 80.0 / 12.0)
    last = infos[-1]
    assert last["profit_usd"] == pytest.approx(
        last["revenue_usd"] + last["training_revenue_usd"] - last["sla_penalty_usd"] - last["energy_cost_usd"]
    )
    _, reward, _, _, info = env.step(order(env))
    state = env.factory.engine.state
    block = env.factory.params.site[SiteSpec.TRAIN_USD_PER_S]
    assert block == pytest.approx(240.0 / 3600.0)
    # A rack goes out of service: all five minutes and the sixth are gone.
    state.world[0, :, World.JOB] = -1.0
    lost = env.step(order(env))[4]
    assert lost["training_lost_s"] == pytest.approx(360.0) and lost["training_revenue_usd"] == pytest.approx(
        0.0, abs=1e-6
    )
    energy = info["reward_terms/energy"] - lost["reward_terms/energy"]
    scale_usd = env.factory._constants.scale_usd
    assert energy == pytest.approx((60.0 + 360.0) * block / scale_usd, rel=0.1)


def test_progress_that_is_asked_for_is_a_condition() -> None:
    row = {"terminated": False, "cap_violation_share": 0.0, "brake_share": 0.0, "training_target_share": 0.9}
    assert violations({**row, "training_share": 0.95}) == {}
    assert violations({**row, "training_share": 0.5}) == {"training progress": "0.5000 < 0.9"}
    assert violations({**row, "training_share": 0.5, "training_target_share": 0.0}) == {}
    info = play(make(with_block(target_share=0.9)), [None])[-1]
    assert info["training_target_share"] == 0.9


# ---------------------------------------------------------------------------------------------- jobs, faults, scenario


def test_jobs_come_and_go_by_the_seed_alone() -> None:
    local_s = 60.0 * np.arange(2880.0)
    jobs = (TrainingJobSpec(20.0, 24.0, 8.0, 12.0), TrainingJobSpec(9.0, 13.0, 4.0))
    there = draw_jobs(np.random.default_rng(1), jobs, local_s)
    assert np.array_equal(there, draw_jobs(np.random.default_rng(1), jobs, local_s))
    assert np.array_equal(there[:1440], there[1440:])
    begins = np.flatnonzero(np.diff(there) > 0) + 1
    assert len(begins) >= 2 and 12 * 60 <= there[:1440].sum() <= 16 * 60
    assert draw_jobs(np.random.default_rng(1), (), local_s).all()
    # The second job does not depend on the first.
    alone = draw_jobs(np.random.default_rng(1), (jobs[0], jobs[0]), local_s)
    assert alone.sum() > 0


def test_a_job_that_comes_loads_first_and_one_that_goes_writes_last() -> None:
    env = make(warmup_s=0.0)
    env.reset(seed=1)
    world = env.factory.engine.state.world[0]
    world[:, World.JOB] = 0.0
    world[3:8, World.JOB] = 1.0
    site = site_numbers(env)
    site[Site.JOB], site[Site.TRAIN_PHASE], site[Site.TRAIN_JOB_S] = 0.0, NO_JOB, -45.0
    infos = play(env, [None] * 9, seed=None)
    assert [info["training_progress_s"] for info in infos] == pytest.approx(
        [0, 0, 0, 15, 75, 135, 195, 255, 255], abs=1e-5
    )
    assert infos[7]["training_share"] == pytest.approx(1.0, abs=1e-6)
    assert infos[8]["training_phase"] == NO_JOB and infos[8]["training_checkpoints"] == 1.0
    assert infos[8]["training_share"] == pytest.approx(1.0, abs=1e-6) and infos[8]["training_lost_s"] == 0.0


def test_a_fault_costs_what_was_done_since_the_last_checkpoint() -> None:
    rng = np.random.default_rng(0)
    down = draw_block_outages(rng, ReliabilityConfig(), 1.0, 72 * 100, 400 * 1440)
    begins = (np.diff(down.astype(int)) > 0).sum()
    expected = 1.97e-5 * 7200 * 9600
    assert abs(begins - expected) < 6.0 * np.sqrt(expected) + 0.2 * expected  # some overlap
    site = dataclasses.replace(with_block(), reliability=ReliabilityConfig(gpu_faults_per_hour=0.0))
    env = make(site)
    assert env.reset(seed=1)[1]["training_kills"] == 0.0
    world = env.factory.engine.state.world[0]
    world[2 + 5, World.JOB] = -1.0
    infos = play(env, [None] * 7, seed=None)
    # Written at 180 to 200 s; the rack goes at 300 s, is back at 360 s, the job loads until 405 s.
    assert infos[4]["training_progress_s"] == pytest.approx(280.0, abs=1e-5)
    assert infos[5]["training_progress_s"] == pytest.approx(180.0, abs=1e-5) and infos[5]["training_kills"] == 1.0
    assert infos[6]["training_progress_s"] == pytest.approx(195.0, abs=1e-5)
    assert infos[6]["training_share"] < 1.0


def test_the_scenario_brings_a_block_to_a_site_without_one() -> None:
    env = AIFactoryEnv(site="edge", scenario="training_block", levers=(*DEFAULT_LEVERS, "training"), horizon_s=7200.0)
    block = env.factory.site.training
    assert block is not None and block.racks == 2 and env.task.site.training is None
    jobs = []
    for action in (0.0, -1.0):
        env.reset(seed=3)
        env.step(np.full(env.action_layout.size, action, dtype=np.float32))
        jobs.append(env.factory.engine.state.world[0, :, World.JOB].copy())
    assert np.array_equal(*jobs) and 0.0 < jobs[0].mean() < 1.0
    other = AIFactoryEnv(site="edge", scenario="diurnal", horizon_s=7200.0)
    for one in (env, other):
        one.reset(seed=3)
    assert np.array_equal(env.factory.engine.state.rate, other.factory.engine.state.rate)
    assert np.array_equal(env.factory.engine.state.cap_steps[0], other.factory.engine.state.cap_steps[0])
    with pytest.raises(ConfigError, match=r"training block.*scenario='diurnal'"):
        env.reset(seed=3, options={"scenario": "diurnal"})
    env.reset(seed=3, options={"scenario": "training_block+burst"})


def test_the_scenario_leaves_a_block_of_the_site_as_it_is_and_sums_keep_the_larger() -> None:
    site = with_block()
    assert Factory(AIFactoryEnv(site=site, **{**NOON, "scenario": "training_block"}).task).site == site
    both = scenario("diurnal+training_block+curtailment")
    assert both.training_block.cap_share == 0.2 and len(both.training_jobs) == 2 and len(both.cap_events) == 3
    larger = dataclasses.replace(both, training_block=TrainingBlockSpec(0.3)) + both
    assert larger.training_block.cap_share == 0.3 and len(larger.training_jobs) == 2


# ------------------------------------------------------------------------------------------- observation, rules, engine


def test_the_operator_sees_the_block() -> None:
    env = make()
    observation, _ = env.reset(seed=1)
    block = env.observation_layout["training"]
    own = env.factory.params.site[SiteSpec.TRAIN_CLOCK]
    assert observation[block][:4].tolist() == pytest.approx([1.0, 1.0, 0.0, own])
    for training in [None, None, 0.0, 0.0, None]:
        observation, _, _, _, info = env.step(order(env, training))
        seen = observation[block]
        phase = info["training_phase"]
        assert seen[1] == float(phase == RUNNING) and seen[2] == float(phase == PAUSED)
        assert seen[4] * EDGE.cap_w == pytest.approx(info["training_power_w"], rel=1e-5)
        # The one with its part of the fixed cooling, the other what it adds.
        assert seen[5] >= 0.9 * seen[4]
        assert (seen[6] > 0.0) == (phase in (WRITING, LOADING))
    params, state = env.factory.params, env.factory.engine.state
    # What it may come to is what it adds to the facility's draw at its bursts.
    rest_w = 8e5
    burst_w = facility_power_w(params, state, 0, rest_w + 3 * 138e3) - facility_power_w(params, state, 0, rest_w)
    assert seen[5] * EDGE.cap_w == pytest.approx(burst_w, rel=0.02)
    assert "training" not in AIFactoryEnv(site="edge").observation_layout.slices


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_restored_snapshot_goes_on_as_before(resolution: str) -> None:
    scale = 0.4 if resolution == "cohort" else 0.005
    env = make(resolution=resolution, demand_scale=scale)
    clocks = [None, 0.0, None, 0.7, None]
    play(env, clocks[:3])
    saved = env.factory.snapshot()
    first = play(env, clocks, seed=None)
    env.factory.restore(saved)
    assert play(env, clocks, seed=None) == first


def test_a_rule_that_plans_to_the_cap_leaves_room_for_the_block() -> None:
    settings = {"scenario": "steady", "demand_scale": 1.2, "levers": DEFAULT_LEVERS, "warmup_s": 300.0}
    env = make(with_block(), **settings)
    rule = ai_factory_baselines.make("reactive", env)
    observation, _ = env.reset(seed=1)
    state: Any = None
    for _ in range(20):
        action, state = rule.predict(observation, state)
        observation, _, _, _, info = env.step(action)
    assert info["brake_s"] <= 6.0 and info["cap_violation_j"] <= 1e-4 * info["cap_energy_j"]
    assert info["training_share"] == pytest.approx(1.0, abs=0.02)
    assert info["facility_power_w"] > 0.7 * EDGE.cap_w


def test_the_rule_for_the_parts_of_a_site_pauses_the_job_while_the_cap_is_low() -> None:
    env = make()
    rule = ai_factory_baselines.make("grid_aware", env)
    observation, _ = env.reset(seed=1)
    layout, place = env.observation_layout, env.action_layout["training"]
    ordered = []
    # Nothing; announced for in an hour, in a minute; in force.
    for cap, announced in (
        (1.0, [0, 0, 1, 0]),
        (1.0, [1, 0.5, 0.7, 1]),
        (1.0, [1, 60 / 7200, 0.7, 1]),
        (0.7, [1, 1, 1, 0]),
    ):
        seen = observation.copy()
        seen[layout["cap"]], seen[layout["cap_announced"]], seen[layout["power"]] = cap, announced, 0.9
        ordered.append(float(rule.predict(seen)[0][place][0]))
    assert ordered == [0.0, 0.0, -1.0, -1.0]


def test_the_models_of_a_site_share_what_the_block_leaves_of_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[1] / "examples" / "sites" / "two_models.toml"
    site = dataclasses.replace(load_site(str(path)), training=dataclasses.replace(BLOCK, racks=1))
    env = AIFactoryEnv(site=site, **{**NOON, "scenario": "diurnal"})
    rule = ai_factory_baselines.make("reactive", env)
    observation, _ = env.reset(seed=1)
    caps = []
    for part, own in zip(rule.parts, rule.rules, strict=True):
        decide = own.decide

        def noting(numbers: Array, memory: Array, actions: Array, part: Any = part, decide: Any = decide) -> None:
            caps.append(numbers[0, part.caps[0]])
            decide(numbers, memory, actions)

        monkeypatch.setattr(own, "decide", noting)
    rule.predict(observation)
    reserve = observation[env.observation_layout["training"]][5]
    assert len(caps) == 2 and reserve > 0.05
    assert sum(caps) == pytest.approx(1.0 - reserve, rel=1e-5)


def test_without_a_block_nothing_of_it_is_there() -> None:
    env = AIFactoryEnv(site="edge", **{**NOON, "lambda_tokens_per_joule": None})
    env.reset(seed=1)
    info = env.step(np.zeros(env.action_layout.size, dtype=np.float32))[4]
    assert not [key for key in info if key in TRAINING_KEYS]
    site = env.factory.engine.state.site[0]
    mine = [column for column in Site if "TRAIN" in column.name or column.name == "JOB"]
    assert not site[mine].any()
    assert not env.factory.params.site[[column for column in SiteSpec if "TRAIN" in column.name]].any()


def test_the_example_is_the_edge_site_that_trains() -> None:
    site = load_site(str(Path(__file__).parents[1] / "examples" / "sites" / "training.toml"))
    block = TrainingConfig("gb300_nvl72", 2, target_share=0.9)
    assert dataclasses.replace(site, name=EDGE.name, description=EDGE.description, training=None) == EDGE
    assert site.training == block


def test_describe_and_validate_tell_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    table = (SITES_PATH / "edge.toml").read_text() + '[training]\nrack = "gb300_nvl72"\nracks = 2\n'
    path.write_text(table)
    plain, mine = (steady_site(load_site(source)) for source in ("edge", str(path)))
    assert mine.burst_w > 0.0 == plain.burst_w
    assert mine.under_cap(EDGE.cap_w).load_rps < 0.95 * plain.under_cap(EDGE.cap_w).load_rps
    load = EDGE.demand_rps
    assert mine.cheapest(load).tokens_per_joule == pytest.approx(plain.cheapest(load).tokens_per_joule, rel=0.02)
    text = describe(str(path))
    assert "training block: 2 racks of gb300_nvl72" in text and "bursts of" in text
    assert not [line for line in findings(load_site(str(path))) if line.startswith("training")]
    path.write_text(table + "worth = 0.5\nusd_per_rack_hour = 1.0\ncheckpoint_period_s = 120.0\n")
    assert len([line for line in findings(load_site(str(path))) if line.startswith("training")]) == 3


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rack": "gb300_nvl72"}, "racks"),
        ({"rack": "gb300", "racks": 2}, "training: rack: unknown value 'gb300'.*gb300_nvl72"),
        ({"rack": "gb300_nvl72", "racks": 0}, "training.racks"),
        ({"rack": "gb300_nvl72", "racks": 2, "periode_s": 1}, "periode_s"),
        ({"rack": "gb300_nvl72", "racks": 2, "clock": 1.2}, "training.clock"),
        ({"rack": "gb300_nvl72", "racks": 2, "compute_share": 0.0}, "training.compute_share"),
        ({"rack": "gb300_nvl72", "racks": 2, "checkpoint_period_s": float("nan")}, "training.checkpoint_period_s"),
        ({"rack": "gb300_nvl72", "racks": 2, "checkpoint_rack_w": 1e6}, "training.checkpoint_rack_w"),
        ({"rack": "gb300_nvl72", "racks": 2, "worth": -1.0}, "training.worth"),
        ({"rack": "vera_rubin_nvl144_cpx", "racks": 2}, "two kinds"),
        ({"rack": "gb300_nvl72", "racks": 2, "profile": "max_x"}, "max_x"),
        ("gb300_nvl72", "must be a table"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table: Any, message: str) -> None:
    site = {
        "name": "Mine",
        "cap_w": 2e6,
        "model": "deepseek-r1",
        "demand_rps": 10.0,
        "mix": {"chat": 1.0},
        "pools": [
            {"rack": "gb300_nvl72", "phase": "prefill", "racks": 2, "dp": 4},
            {"rack": "gb300_nvl72", "phase": "decode", "racks": 2, "dp": 8},
        ],
    }
    assert site_from_table({**site, "training": {"rack": "gb300_nvl72", "racks": 2}}).training is not None
    with pytest.raises(ConfigError, match=message):
        site_from_table({**site, "training": table})


def test_what_cannot_work_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"\[training\].*training_block"):
        AIFactoryEnv(site="edge", levers=("clock", "training"))
    with pytest.raises(ConfigError, match="idle draw"):
        make(with_block(racks=70))
    unknown = dataclasses.replace(scenario("training_block"), training_block=TrainingBlockSpec(0.2, "gb300_nvl7"))
    with pytest.raises(ConfigError, match="training_block: rack: unknown value 'gb300_nvl7'.*gb300_nvl72"):
        AIFactoryEnv(site="edge", scenario=unknown)
    with pytest.raises(ConfigError, match="cap_share"):
        TrainingBlockSpec(cap_share=1.5)
    with pytest.raises(ConfigError, match="duration_high_hours"):
        TrainingJobSpec(1.0, 2.0, 5.0, 3.0)
