"""The site behaves as its physics says, and its objective cannot be gamed."""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import ai_factory_gym
from ai_factory_gym.describe import figures, task_site
from ai_factory_gym.engine.layout import Class, ClassSpec, Pool, PoolSpec, SiteInt
from ai_factory_gym.evaluation import infeasible_reason
from ai_factory_gym.operating_point import SteadySite

EDGE = "ai_factory/Edge-v0"
NIGHT = {"scenario": "steady", "horizon_s": 1800.0, "warmup_s": 600.0, "demand_scale": 0.35, "drain": True}


def run(action, *, seed=2_000_000, change=None, task=EDGE, **settings):
    """Run an episode with one action; returns (return, final info, env).

    ``action`` gets the action layout and the pools' racks; ``change`` may alter the environment before the reset.
    """
    env = gymnasium.make(task, **settings).unwrapped
    if change:
        change(env)
    env.reset(seed=seed)
    chosen = action(env.action_layout, env.factory.params.pool[:, PoolSpec.RACKS])
    total = 0.0
    while True:
        _, reward, _, truncated, info = env.step(chosen)
        total += reward
        if truncated:
            return total, info, env


def clocks(prefill, decode, share=1.0):
    """Return an action with one clock per phase and a share of racks awake."""

    def action(layout, racks):
        phase = layout.params.pool[:, PoolSpec.PHASE]
        return layout.encode(clock=np.where(phase == 0, prefill, decode), racks=np.ceil(share * racks))

    return action


def test_lower_decode_clock_saves_energy_at_almost_no_loss():
    _, full, _ = run(clocks(0.8, 1.0), **NIGHT)
    _, low, _ = run(clocks(0.8, 0.5), **NIGHT)
    assert low["energy_j"] < 0.88 * full["energy_j"]
    assert low["good_tokens"] > 0.99 * full["good_tokens"]


def test_throttling_prefill_raises_ttft():
    def ttft(prefill):
        *_, env = run(clocks(prefill, 0.8), **NIGHT)
        cls = env.factory.engine.state.cls[0]
        return (cls[:, Class.TTFT_SUM_S] / cls[:, Class.TTFT_COUNT])[:5]

    slow, fast = ttft(0.45), ttft(1.0)
    assert (slow > fast).all() and slow[4] > 1.3 * fast[4]  # longest prompts feel it most


def test_fewer_awake_racks_save_power_at_night():
    settings = {**NIGHT, "horizon_s": 3600.0}
    _, everything, _ = run(clocks(0.8, 0.7), **settings)
    _, half, _ = run(clocks(0.8, 0.7, share=0.6), **settings)
    assert half["energy_j"] < 0.92 * everything["energy_j"]
    assert half["sla_attainment"] > 0.99


def test_more_batch_raises_tokens_per_joule_and_tpot():
    env = ai_factory_gym.AIFactoryEnv(site="edge", horizon_s=600.0)
    steady = SteadySite(env.task.site, env.classes, env.factory.params)
    points = [steady.at(load) for load in (1500.0, 3000.0, 6000.0, 12000.0)]
    assert all(a.tokens_per_joule < b.tokens_per_joule for a, b in zip(points, points[1:], strict=False))
    assert all(a.tpot_s[2] < b.tpot_s[2] and a.batch[2] < b.batch[2] for a, b in zip(points, points[1:], strict=False))


@pytest.mark.parametrize("load", [3000.0, 7000.0])
def test_engine_settles_at_the_steady_operating_point(load):
    def still(env):
        env.factory._demand = lambda stream, chosen, start_s, minutes, scale: (
            np.repeat(env.factory.mean_rate[:, None] * scale, minutes, axis=1),
            np.full(minutes, 1e-3),
        )

    scale = load / task_site(EDGE).demand_rps
    # Without the rack lever every rack stays awake, as the steady state assumes.
    settings = {
        "scenario": "steady",
        "horizon_s": 1800.0,
        "warmup_s": 3600.0,
        "demand_scale": scale,
        "levers": ("clock",),
    }
    _, info, env = run(clocks(0.9, 0.8), change=still, **settings)
    point = SteadySite(env.task.site, env.classes, env.factory.params).at(load, 0.9, 0.8)
    assert info["energy_j"] / 1800.0 == pytest.approx(point.facility_w, rel=0.03)
    assert info["output_tokens"] / info["energy_j"] == pytest.approx(point.tokens_per_joule, rel=0.05)
    assert env.factory.engine.state.pool[0, 2:, Pool.TPOT_S] == pytest.approx(point.tpot_s[2:], rel=0.05)


@pytest.mark.parametrize("task", list(ai_factory_gym.TASKS))
def test_tasks_are_sized_as_the_design_says(task):
    got = figures(task_site(task))
    assert 1.25 <= got["unthrottled_draw_over_cap"] <= 1.4
    assert 0.6 <= got["mean_load_over_cap_rps"] <= 0.65


@pytest.mark.parametrize("task", list(ai_factory_gym.TASKS))
def test_every_prompt_meets_its_limit_on_an_idle_site_with_a_factor_two_to_spare(task):
    from ai_factory_gym.params import pool_coefficients
    from ai_factory_gym.physics import performance as perf

    env = gymnasium.make(task).unwrapped
    prefill = [pool_coefficients(env.task.site, pool) for pool in env.pools if pool.phase == "prefill"]
    for cls in env.classes:
        if cls.deferrable:
            continue
        for prompt in np.geomspace(cls.prompt.minimum, cls.prompt.maximum, 50):
            ttft = [
                sum(perf.prefill_work_s(c, prompt, prompt * prompt))
                + c[perf.PREFILL_FRONTEND_S]
                + prompt * c[perf.PREFILL_KV_BYTES_PER_TOKEN] / c[perf.PREFILL_TRANSFER_BYTES_PER_S]
                for c in prefill
            ]
            assert 2.0 * (min(ttft) + 0.05) <= cls.ttft_limit_s(prompt), (cls.name, prompt)


# ------------------------------------------------------------------------------------- the objective cannot be gamed

HONEST = {"scenario": "diurnal", "horizon_s": 2 * 3600.0, "start_time_s": 9 * 3600.0, "drain": True}


def reason(info, env):
    """Return why an episode is infeasible, or an empty text."""
    row = {**info, "terminated": False}
    row["cap_violation_share"] = info["cap_violation_j"] / info["cap_energy_j"]
    row["brake_share"] = info["brake_s"] / env.task.horizon_s
    for cls in env.classes:
        row[f"class/{cls.name}/attainment_target"] = cls.attainment_target
    return infeasible_reason(row)


def without(*names):
    """Return a change that turns the named classes away on arrival."""

    def change(env):
        for index, cls in enumerate(env.classes):
            if cls.name in names:
                env.factory.params.cls[index, ClassSpec.PATIENCE_S] = -1.0

    return change


@pytest.fixture(scope="module")
def honest():
    return run(clocks(0.9, 0.8), **HONEST)


@pytest.mark.parametrize("name", ["chat", "customer_service", "ecommerce_agent", "reasoning", "coding", "batch"])
def test_turning_a_class_away_never_pays(honest, name):
    total, info, env = run(clocks(0.9, 0.8), change=without(name), **HONEST)
    assert total < honest[0]
    assert info[f"class/{name}/attainment"] == 0.0
    assert not reason(*honest[1:])
    assert f"{name} attainment" in reason(info, env)


def test_shedding_everything_is_the_worst(honest):
    names = [cls.name for cls in honest[2].classes]
    total, info, env = run(clocks(0.9, 0.8), change=without(*names), **HONEST)
    assert total < honest[0] - 100.0 and info["requests_met_slo"] == 0.0
    assert all(f"{name} attainment" in reason(info, env) for name in names)


def test_postponing_work_past_the_horizon_gains_nothing(honest):
    def postpone(env):
        original = env.factory._demand

        def never(*arguments):
            rate, hazard = original(*arguments)
            return rate, np.zeros_like(hazard)

        env.factory._demand = never

    total, info, _ = run(clocks(0.9, 0.8), change=postpone, **HONEST)
    assert info["class/batch/met"] < honest[1]["class/batch/met"]
    assert total <= honest[0] + 1e-9
    assert info["tokens_per_joule"] <= honest[1]["tokens_per_joule"] * 1.001


# --------------------------------------------------------------------------------------------------- a real trace


def trace_path(name):
    folder = os.environ.get("AI_FACTORY_TRACE_DIR")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip("AI_FACTORY_TRACE_DIR is not set to a folder with the traces")
    return str(Path(folder) / name)


def test_azure_conversation_trace_replays_alike_at_both_resolutions():
    path = trace_path("azure_llm_2023_conv.csv.gz")
    results = {}
    for resolution in ("cohort", "request"):
        _, info, _ = run(
            clocks(0.9, 0.8),
            trace=path,
            rate_scale=200.5,
            resolution=resolution,
            horizon_s=600.0,
            warmup_s=300.0,
            scenario="steady",
            drain=True,
        )
        results[resolution] = info
    cohort, request = results["cohort"], results["request"]
    assert request["requests_arrived"] == pytest.approx(cohort["requests_arrived"], rel=0.002)
    assert request["requests_arrived"] == pytest.approx(200.5 * 5.53 * 600.0, rel=0.15)
    assert cohort["energy_j"] == pytest.approx(request["energy_j"], rel=0.01)
    assert cohort["sla_attainment"] == pytest.approx(request["sla_attainment"], abs=0.02)


def test_trace_longer_than_it_is_needs_repeat():
    path = trace_path("azure_llm_2023_conv.csv.gz")
    with pytest.raises(ai_factory_gym.ConfigError, match="trace_repeat=True"):
        gymnasium.make(EDGE, trace=path, horizon_s=7200.0)
    env = gymnasium.make(
        EDGE, trace=path, horizon_s=7200.0, trace_repeat=True, trace_class=[[500, "chat"], [float("inf"), "reasoning"]]
    )
    assert [cls.name for cls in env.unwrapped.classes] == ["chat", "reasoning"]


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_waiting_for_the_last_fates_costs_nothing(resolution: str) -> None:
    env = gymnasium.make(
        EDGE, resolution=resolution, horizon_s=300.0, start_time_s=9 * 3600.0, warmup_s=120.0, drain=True
    )
    env.reset(seed=4)
    core = env.unwrapped.factory
    energy = 0.0
    late = 0
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        energy += info["reward_terms/energy"]
        if info["time_s"] > 300.0 + 1e-6:
            late += 1
            assert info["reward_terms/energy"] == info["reward_terms/cap"] == info["reward_terms/brake"] == 0.0
    assert late >= 2
    price, scale_tokens = core._episodes.price[0], core._constants.scale_tokens
    assert energy == pytest.approx(-price * info["energy_j"] / scale_tokens, rel=1e-9)


@pytest.mark.parametrize(("interval_s", "share"), [(5.0, 0.05), (30.0, 0.01)])
def test_a_segment_the_brake_did_not_look_at_stays_below_the_cap(interval_s: float, share: float) -> None:
    # Busy hours, clocks and racks that wander: a step of one segment was trusted from its beginning to its end.
    trusted = []
    steps = 0
    for seed in range(6):
        env = gymnasium.make(
            EDGE,
            control_interval_s=interval_s,
            start_time_s=(9.0 + 2.0 * seed) * 3600.0,
            horizon_s=1800.0,
            warmup_s=300.0,
        ).unwrapped
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        chosen = rng.uniform(-0.3, 0.9, env.action_space.shape)
        for _ in range(round(1800.0 / interval_s)):
            chosen = np.clip(chosen + rng.normal(0.0, 0.05, chosen.shape), -1.0, 1.0)
            before = env.factory.engine.state.site_int[0, SiteInt.SEGMENTS]
            info = env.step(chosen.astype(np.float32))[4]
            steps += 1
            if env.factory.engine.state.site_int[0, SiteInt.SEGMENTS] == before + 1 and info["brake_s"] == 0.0:
                trusted.append(info["facility_power_w"] / info["cap_w"])
    assert len(trusted) > share * steps
    assert max(trusted) <= 1.0
    assert max(trusted) > 0.85
