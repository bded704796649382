"""Sites that are not what their catalogue says: what is drawn, what it changes, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.layout import Site
from ai_factory_gym.engine.truth import with_idle_power
from ai_factory_gym.physics.power import gpu_power_w, rack_power_w
from ai_factory_gym.scenarios import SCENARIO_DIR, scenario
from ai_factory_gym.scenarios.mismatch import MismatchSpec, draw_truth

NOON = {"site": "edge", "start_time_s": 12 * 3600.0, "horizon_s": 900.0, "warmup_s": 300.0}
PHASES = ("prefill", "prefill", "decode", "decode")
RACKS = ("a", "b", "a", "c")


def with_spread(**spread: float) -> Any:
    """Return the scenario ``steady`` with a mismatch."""
    return dataclasses.replace(scenario("steady"), name="odd", mismatch=MismatchSpec(**spread))


def play(env: AIFactoryEnv, seed: int = 5, steps: int = 15) -> tuple[list[float], dict[str, Any]]:
    """Return rewards and the last info of an episode with the neutral action."""
    env.reset(seed=seed)
    rewards = []
    for _ in range(steps):
        _, reward, _, _, info = env.step(np.zeros(env.action_layout.size, np.float32))
        rewards.append(float(reward))
    return rewards, info


@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_factors_lie_within_their_spread(seed: int, prefill: float, decode: float, idle: float, output: float) -> None:
    truth = draw_truth(np.random.default_rng(seed), MismatchSpec(prefill, decode, idle, output), PHASES, RACKS, 3)
    for factors, spread in (
        (truth.time[:2], prefill),
        (truth.time[2:], decode),
        (truth.idle_power, idle),
        (truth.output_tokens, output),
    ):
        assert (np.abs(np.log(factors)) <= math.log1p(spread) + 1e-12).all()
    # One rack type idles alike in both phases.
    assert truth.idle_power[0] == truth.idle_power[2]


def test_half_of_all_sites_are_better_than_believed() -> None:
    spec = MismatchSpec(0.2, 0.2, 0.2, 0.2)
    drawn = [draw_truth(np.random.default_rng(seed), spec, PHASES, RACKS, 3) for seed in range(400)]
    for name in ("time", "idle_power", "output_tokens"):
        better = np.mean([getattr(truth, name) < 1.0 for truth in drawn])
        assert abs(better - 0.5) < 0.05


def test_as_many_numbers_are_drawn_whatever_the_spread() -> None:
    ends = []
    for spec in (MismatchSpec(), MismatchSpec(0.5, 0.5, 0.5, 0.5)):
        rng = np.random.default_rng(1)
        draw_truth(rng, spec, PHASES, RACKS, 3)
        ends.append(rng.random())
    assert ends[0] == ends[1]


def test_a_spread_of_next_to_nothing_changes_next_to_nothing() -> None:
    plain, plain_info = play(AIFactoryEnv(scenario="steady", lambda_tokens_per_joule=3.0, **NOON))
    tiny, tiny_info = play(AIFactoryEnv(scenario=with_spread(idle_power=1e-12), lambda_tokens_per_joule=3.0, **NOON))
    # The world is the same to the last arrival: a mismatch draws from a stream of its own.
    assert tiny_info["requests_arrived"] == plain_info["requests_arrived"]
    assert np.allclose(plain, tiny, rtol=1e-6)
    assert tiny_info["energy_j"] == pytest.approx(plain_info["energy_j"], rel=1e-9)


def test_the_operator_sees_consequences_and_not_the_draw() -> None:
    env = AIFactoryEnv(scenario=with_spread(prefill_time=0.3, decode_time=0.3, output_tokens=0.3), **NOON)
    plain = AIFactoryEnv(scenario="steady", **NOON)
    env.reset(seed=5)
    truth = env.factory.truth()
    assert (truth.time != 1.0).all() and (truth.output_tokens != 1.0).all() and (truth.idle_power == 1.0).all()
    assert env.observation_layout.slices == plain.observation_layout.slices
    assert env.factory.info_keys == plain.factory.info_keys
    for mine, believed in zip(env.factory.params, plain.factory.params, strict=True):
        assert np.array_equal(mine, believed)
    env.reset(seed=6)
    assert not np.array_equal(env.factory.truth().time, truth.time)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_longer_answers_are_emitted_and_take_longer(resolution: str) -> None:
    small = {"demand_scale": 0.05} if resolution == "request" else {}
    plain, odd = (
        AIFactoryEnv(scenario=chosen, resolution=resolution, **{**NOON, **small})
        for chosen in ("steady", with_spread(output_tokens=0.5))
    )
    shares = np.array([odd.task.site.mix[cls.name] * cls.output.mean() for cls in odd.classes])
    for seed in range(4):
        believed, true = play(plain, seed=seed)[1], play(odd, seed=seed)[1]
        factor = float(shares @ odd.factory.truth().output_tokens / shares.sum())
        longer = true["output_tokens"] / believed["output_tokens"]
        # What is in flight at the end is not emitted, and no answer is longer than the longest of its class.
        assert abs(longer - factor) < 0.02 + 0.3 * abs(factor - 1.0)


@given(st.floats(0.6, 1.4))
@settings(max_examples=30, deadline=None)
def test_idle_power_scales_and_the_draw_at_the_limit_stays(factor: float) -> None:
    env = AIFactoryEnv(scenario="steady", **NOON)
    for coef in env.factory.params.power:
        true = with_idle_power(coef, factor)
        idle, was_idle = (rack_power_w(c, gpu_power_w(c, 1.0, 0.0, 0.0, 0.0)) for c in (true, coef))
        assert idle == pytest.approx(factor * was_idle, rel=1e-9)
        for activity in (0.5, 1.0):
            full, was_full = (gpu_power_w(c, 1.0, 1.0, activity, activity) for c in (true, coef))
            assert full == pytest.approx(was_full, rel=1e-9)
        assert rack_power_w(true, gpu_power_w(true, 1.0, 1.0, 1.0, 1.0)) == pytest.approx(
            rack_power_w(coef, gpu_power_w(coef, 1.0, 1.0, 1.0, 1.0)), rel=1e-9
        )


def test_the_cap_is_kept_by_a_site_that_draws_more_than_believed() -> None:
    env = AIFactoryEnv(scenario="mismatch", demand_scale=1.3, **{**NOON, "horizon_s": 1800.0})
    for seed in range(3):
        env.reset(seed=seed)
        full = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
        for _ in range(30):
            info = env.step(full)[4]
        # The brake reacts to what is drawn, not to what the catalogue says would be.
        longest_s = env.factory.engine.state.site[0, Site.LONGEST_OVERDRAW_S]
        assert 0.0 < longest_s <= env.task.site.brake.reaction_s + 1e-6
        assert info["requests_arrived"] == pytest.approx(
            info["requests_met_slo"] + info["requests_missed_slo"] + info["requests_in_flight"]
        )


def test_a_snapshot_takes_the_truth_along() -> None:
    env = AIFactoryEnv(scenario="mismatch", **NOON)
    env.reset(seed=1)
    saved, truth = env.snapshot(), env.factory.truth()
    env.reset(seed=2)
    env.restore(saved)
    assert np.array_equal(env.factory.truth().time, truth.time)


def test_mismatches_add_up_to_the_larger() -> None:
    both = scenario("mismatch") + with_spread(decode_time=0.5)
    assert both.mismatch == dataclasses.replace(scenario("mismatch").mismatch, decode_time=0.5)
    assert scenario("diurnal+burst").mismatch == MismatchSpec()


def test_mistakes_are_named(tmp_path: Path) -> None:
    text = (SCENARIO_DIR / "mismatch.toml").read_text(encoding="utf-8")
    path = tmp_path / "odd.toml"
    for old, new, message in (
        ("decode_time = 0.15", "decode_time = 1.5", r"mismatch.decode_time: 1.5 is not allowed"),
        (
            "decode_time = 0.15",
            "decode_times = 0.15",
            "mismatch: unknown key 'decode_times'.*Did you mean 'decode_time'",
        ),
        (
            "idle_power = 0.3",
            "idle_power = 0.99",
            "mismatch.idle_power: 0.99 is not allowed for pool '.*'; must be at most",
        ),
    ):
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            AIFactoryEnv(scenario=str(path), **NOON)
