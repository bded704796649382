"""Both environments against their contracts: every registered id, determinism, infos, snapshots, bad input."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import ai_factory_gym
from ai_factory_gym import ConfigError
from ai_factory_gym.__main__ import main
from ai_factory_gym.errors import nearest
from ai_factory_gym.levers import DEFAULT_LEVERS, LEVERS
from ai_factory_gym.registration import TASK_LEVERS
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import load_site
from ai_factory_gym.vector_env import AIFactoryVectorEnv

TASKS = list(ai_factory_gym.TASKS)
EDGE = "ai_factory/Edge-v0"
SHORT = {"horizon_s": 600.0, "warmup_s": 120.0}
INFO_KEYS = (
    "time_s facility_power_w it_power_w cap_w pue clock_mean energy_j output_tokens good_tokens requests_arrived "
    "requests_met_slo requests_missed_slo requests_rejected requests_in_flight sla_attainment tokens_per_joule "
    "cap_violation_j brake_s energy_cost_usd carbon_kg cost"
).split()


def rollout(env, seed, steps=6):
    """Return observations, rewards and infos of a run with drawn actions."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    observation, info = env.reset(seed=seed)
    trail = [observation]
    numbers = [tuple(info.values())]
    for action in actions:
        observation, reward, _, truncated, info = env.step(action)
        trail.append(observation)
        numbers.append((reward, *info.values()))
        if truncated:
            break
    return np.array(trail), numbers


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_checker_is_clean(task):
    env = gymnasium.make(task, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_sb3_checker_is_clean(task):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs the train extra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Gymnasium tells of the later version of a task.
        warnings.filterwarnings("ignore", message=".*is out of date")
        checker.check_env(gymnasium.make(task, **SHORT).unwrapped)


@pytest.mark.parametrize("task", TASKS)
def test_spec_round_trip_and_registration(task):
    spec = gymnasium.make(task, **SHORT).spec
    again = EnvSpec.from_json(spec.to_json())
    assert again.kwargs == spec.kwargs and again.max_episode_steps is None
    assert gymnasium.make(again).unwrapped.task.horizon_s == SHORT["horizon_s"]
    ai_factory_gym.register_tasks()
    assert gymnasium.make(f"ai_factory_gym:{task}", **SHORT).unwrapped.task.site.name in task


def test_tasks_with_more_to_decide_about_have_the_levers_for_it():
    for task, levers in TASK_LEVERS.items():
        assert tuple(levers[: len(DEFAULT_LEVERS)]) == DEFAULT_LEVERS and set(levers) < set(LEVERS)
        assert gymnasium.make(task, **SHORT).unwrapped.task.levers == tuple(levers)


@pytest.mark.parametrize("resolution", ["cohort", "coarse", "request"])
def test_two_envs_and_two_resets_are_bit_equal(resolution):
    settings = {"horizon_s": 240.0, "warmup_s": 60.0, "resolution": resolution, "demand_scale": 0.05}
    first = gymnasium.make(EDGE, **settings)
    second = gymnasium.make(EDGE, **settings)
    a, b = rollout(first, 7), rollout(second, 7)
    assert np.array_equal(a[0], b[0]) and a[1] == b[1]
    assert rollout(first, 7)[1] == a[1]
    assert rollout(first, 8)[1] != a[1]
    # reset(seed) and then reset() are reproducible as a pair.
    first.reset(seed=3)
    second.reset(seed=3)
    assert np.array_equal(first.reset()[0], second.reset()[0])


def test_two_processes_are_bit_equal():
    code = (
        "import gymnasium, numpy as np, ai_factory_gym\n"
        "e = gymnasium.make('ai_factory/Edge-v0', horizon_s=600.0, warmup_s=120.0); e.reset(seed=5)\n"
        "a = np.random.default_rng(0).uniform(-1, 1, (5, *e.action_space.shape)).astype(np.float32)\n"
        "r = [e.step(x) for x in a]\n"
        "print(np.concatenate([x[0] for x in r]).tobytes().hex(), [x[1].hex() for x in r])"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1 and len(runs.pop()) > 100


def test_make_vec_and_returned_arrays_are_not_shared():
    envs = gymnasium.make_vec(EDGE, num_envs=2, vectorization_mode="vector_entry_point", **SHORT)
    first, _ = envs.reset(seed=1)
    kept = first.copy()
    envs.step(np.zeros(envs.action_space.shape, dtype=np.float32))
    assert np.array_equal(first, kept)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_pickled_env_goes_on_equally():
    env = gymnasium.make(EDGE, **SHORT).unwrapped
    env.reset(seed=2)
    env.step(env.action_space.sample() * 0)
    copy = pickle.loads(pickle.dumps(env))
    action = np.full(env.action_space.shape, 0.25, dtype=np.float32)
    assert np.array_equal(env.step(action)[0], copy.step(action)[0])


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_snapshot_run_restore_run(resolution):
    env = gymnasium.make(EDGE, horizon_s=600.0, warmup_s=60.0, resolution=resolution, demand_scale=0.05).unwrapped
    env.reset(seed=4)
    saved = env.snapshot()
    actions = np.random.default_rng(9).uniform(-1, 1, (4, *env.action_space.shape)).astype(np.float32)
    first = [env.step(a)[1:] for a in actions]
    env.restore(saved)
    assert [env.step(a)[1:] for a in actions] == first


def test_info_contract():
    env = gymnasium.make(EDGE, **SHORT)
    _, info = env.reset(seed=0)
    names = [cls.name for cls in env.unwrapped.classes]
    wanted = set(INFO_KEYS) | {f"class/{n}/{k}" for n in names for k in ("arrived", "met", "missed", "attainment")}
    assert wanted <= set(info) and any(key.startswith("reward_terms/") for key in info)
    assert info["time_s"] == 0.0 and info["sla_attainment"] == 1.0 and info["tokens_per_joule"] == 0.0
    before = info
    for _ in range(10):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert set(info) == set(before) and all(type(value) is float for value in info.values())
        assert (
            info["requests_arrived"]
            == info["requests_met_slo"] + info["requests_missed_slo"] + info["requests_in_flight"]
        )
        assert reward == pytest.approx(sum(v for k, v in info.items() if k.startswith("reward_terms/")))
        for key in ("energy_j", "good_tokens", "requests_arrived", "output_tokens"):
            assert info[key] >= before[key]
        before = info
    assert truncated and not terminated and info["time_s"] == 600.0


def test_same_world_for_different_actions():
    env = gymnasium.make(EDGE, **SHORT)
    arrived = []
    for value in (-1.0, 1.0):
        env.reset(seed=6)
        for _ in range(10):
            info = env.step(np.full(env.action_space.shape, value, np.float32))[4]
        arrived.append([v for k, v in info.items() if k.endswith("/arrived") and "batch" not in k])
    assert arrived[0] == arrived[1]


def test_drain_decides_every_fate_and_freezes_energy():
    env = gymnasium.make(EDGE, horizon_s=300.0, warmup_s=120.0, drain=True)
    env.reset(seed=1)
    frozen = None
    for _ in range(2000):
        *_, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        if info["time_s"] >= 300.0:
            frozen = frozen or (info["energy_j"], info["requests_arrived"], info["output_tokens"])
            assert (info["energy_j"], info["requests_arrived"], info["output_tokens"]) == frozen
        if truncated:
            break
    assert truncated and info["requests_in_flight"] == 0.0


def test_layouts_name_every_place_once():
    env = ai_factory_gym.AIFactoryEnv(site="edge", **SHORT)
    for layout, size in (
        (env.observation_layout, env.observation_space.shape[0]),
        (env.action_layout, env.action_space.shape[0]),
    ):
        places = [place for name in layout.slices for place in range(size)[layout[name]]]
        assert places == list(range(size)) and layout.size == size
        assert list(layout) == list(layout.slices) and len(layout) == len(layout.slices)
        name = next(iter(layout))
        assert name in layout and name + "s" not in layout
        with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
            layout[name + "s"]
    assert env.observation_layout["queue_wait"].stop - env.observation_layout["queue_wait"].start == len(env.classes)


def test_reset_options():
    env = gymnasium.make(EDGE, **SHORT)
    env.reset(seed=1, options={})
    low = env.reset(seed=1, options={"demand_scale": 0.2})[0]
    high = env.reset(seed=1, options={"demand_scale": 1.0})[0]
    rate = env.unwrapped.observation_layout.slices["class_rate"]
    assert high[rate].sum() > 3 * low[rate].sum()
    noon = env.reset(seed=1, options={"start_time_s": 43200.0, "horizon_s": 120.0, "scenario": "burst"})[0]
    assert noon[1] == pytest.approx(-1.0, abs=1e-3)
    env.step(np.zeros(env.action_space.shape, np.float32))
    assert env.step(np.zeros(env.action_space.shape, np.float32))[3]


def test_announced_curtailment_is_seen_and_comes():
    env = gymnasium.make(EDGE, scenario="curtailment", horizon_s=6 * 3600.0, start_time_s=8.5 * 3600.0, warmup_s=60.0)
    env.reset(seed=3)
    layout = env.unwrapped.observation_layout.slices["cap_announced"]
    seen = {}
    for step in range(360):
        observation, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
        if observation[layout][0] == 1.0 and "announced" not in seen:
            seen["announced"] = step
            assert observation[layout][2] == pytest.approx(0.75)
            assert observation[layout][3] == pytest.approx(3.0 / 4.0)
        if info["cap_w"] < 2.0e6 and "fell" not in seen:
            seen["fell"] = step
    assert seen["fell"] - seen["announced"] == pytest.approx(60, abs=1)


def test_ansi_rendering_shows_pools_and_classes():
    env = gymnasium.make(EDGE, render_mode="ansi", **SHORT)
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape, np.float32))
    picture = env.render()
    assert "gb300_nvl72/decode" in picture and "chat" in picture and "MW of 2.000" in picture


def test_import_is_light():
    code = "import sys, ai_factory_gym; print([m for m in ('numba', 'torch', 'matplotlib', 'scipy', 'stable_baselines3') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scenario": "diurnl"}, ["scenario", "'diurnl'", "allowed", "Did you mean 'diurnal'"]),
        ({"levers": ("clok",)}, ["levers", "'clok'", "Did you mean 'clock'"]),
        ({"levers": ("clock", "clock")}, ["levers", "twice"]),
        ({"levers": ()}, ["levers", "none given"]),
        ({"reward": "tokens_per_wat"}, ["reward", "Did you mean 'tokens_per_watt'"]),
        ({"resolution": "requests"}, ["resolution", "Did you mean 'request'"]),
        ({"site": "enterprise", "resolution": "request"}, ["resolution", "requests per episode", "allow_slow=True"]),
        ({"horizon_s": 100.0}, ["horizon_s", "100.0", "multiple", "60"]),
        ({"horizon_s": float("nan")}, ["horizon_s", "nan"]),
        ({"horizon_s": "day"}, ["horizon_s", "'day'"]),
        ({"scenaro": "burst"}, ["'scenaro'", "Did you mean 'scenario'"]),
        ({"levers": "clock"}, ["levers", "'clock'", "list"]),
        ({"resolution": ["cohort"]}, ["resolution", "['cohort']"]),
        ({"reward": {}}, ["reward", "{}"]),
        ({"scenario": 5}, ["scenario", "5"]),
        ({"drain": "no"}, ["drain", "'no'", "True or False"]),
        ({"brake": 0}, ["brake", "0", "True or False"]),
        ({"trace": 5}, ["trace", "5", "path"]),
        ({"trace_repeat": True}, ["trace_repeat", "no trace is given"]),
        ({"trace_class": "coding"}, ["trace_class", "'coding'", "no trace is given"]),
        (
            {"control_interval_s": 0.5, "horizon_s": 450.0, "warmup_s": 450.0},
            ["control_interval_s", "0.5", "[1, 3600] s"],
        ),
        ({"demand_scale": -1.0}, ["demand_scale", "-1.0"]),
        ({"start_time_s": "rnd"}, ["start_time_s", "'rnd'"]),
        ({"rate_scale": 2.0}, ["rate_scale", "no trace is given"]),
        ({"trace": "nowhere.csv"}, ["nowhere.csv"]),
        ({"render_mode": "human"}, ["render_mode", "'human'", "ansi"]),
        ({"site": "egde"}, ["site", "'egde'", "Did you mean 'edge'"]),
    ],
)
def test_bad_settings_name_key_value_and_nearest(settings, words):
    with pytest.raises(ConfigError) as error:
        ai_factory_gym.AIFactoryEnv(**{"site": "edge", **settings})
    for word in words:
        assert word in str(error.value)


def test_an_episode_that_takes_hours_is_refused_at_reset_too():
    env = ai_factory_gym.AIFactoryEnv(site="edge", resolution="request", horizon_s=600.0)
    with pytest.raises(ConfigError, match="requests per episode.*allow_slow=True"):
        env.reset(seed=1, options={"demand_scale": 1000.0})


def test_describe_shows_what_superposition_does_to_a_trace(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    rows = "".join(f"{0.1 * k},100,10\n" for k in range(1200))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    assert main(["describe", "edge", "--trace", str(path), "--rate-scale", "5"]) == 0
    shown = capsys.readouterr().out
    assert "1,200 requests in 120 s, 10.00 requests/s; mean prompt 100 tokens, output 10" in shown
    for window, long_enough in ((1, True), (10, True), (60, False)):
        assert (f"in windows of {window} s" in shown) is long_enough
    assert main(["describe", "edge", "--rate-scale", "5"]) == 2
    assert "rate_scale: 5.0 scales a trace, and no trace is given" in capsys.readouterr().err


def test_numbers_of_numpy_are_numbers():
    settings = {"horizon_s": np.int64(300), "warmup_s": np.float32(60.0), "demand_scale": np.float64(0.5)}
    env = ai_factory_gym.AIFactoryEnv(site="edge", **settings)
    env.reset(seed=0, options={"horizon_s": np.int32(120), "demand_scale": np.float32(1.0)})
    assert type(env.task.horizon_s) is float


TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{second},{100 + second},20\n" for second in range(400))


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"demand_scale": 2.0}, ["demand_scale", "2.0", "rate_scale"]),
        ({"horizon_s": 420.0}, ["horizon_s", "420", "at most 360", "trace_repeat=True"]),
        ({"rate_scale": 0.0}, ["rate_scale", "0.0"]),
        ({"trace_class": "chatt"}, ["trace_class", "'chatt'", "Did you mean 'chat'"]),
        ({"trace_class": 5}, ["trace_class", "5"]),
        ({"trace_class": [[float("nan"), "chat"]]}, ["trace_class", "nan"]),
        ({"trace_class": [[500, "chat"], [400, "coding"]]}, ["trace_class", "must rise"]),
        ({"trace_class": [[500, "chat"]]}, ["trace_class", "longest context"]),
        ({"control_interval_s": 600.0}, ["trace", "lasts 400 s", "control step"]),
    ],
)
def test_bad_replays_are_refused(settings, words, trace):
    with pytest.raises(ConfigError) as error:
        ai_factory_gym.AIFactoryEnv(site="edge", trace=trace, **{"warmup_s": 0.0, **settings})
    for word in words:
        assert word in str(error.value)


def test_reset_options_keep_to_the_trace(trace):
    env = ai_factory_gym.AIFactoryEnv(site="edge", trace=trace, warmup_s=0.0)
    assert env.task.horizon_s == 360.0
    with pytest.raises(ConfigError, match="longer than the trace"):
        env.reset(seed=0, options={"horizon_s": 420.0})
    with pytest.raises(ConfigError, match="demand_scale"):
        env.reset(seed=0, options={"demand_scale": 2.0})
    again = ai_factory_gym.AIFactoryEnv(site="edge", trace=trace, warmup_s=0.0, trace_repeat=True)
    again.reset(seed=0, options={"horizon_s": 420.0})


def test_a_trace_runs_on_the_kernels_of_synthetic_demand(trace):
    from numba import typeof

    plain = ai_factory_gym.AIFactoryEnv(site="edge").factory.params
    replay = ai_factory_gym.AIFactoryEnv(site="edge", trace=trace).factory.params
    assert [typeof(array) for array in replay] == [typeof(array) for array in plain]


def test_a_trace_longer_than_the_context_is_refused(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,10\n100,200000,10\n")
    with pytest.raises(ConfigError, match="200,010 tokens.*163,840.*max_context"):
        ai_factory_gym.AIFactoryEnv(site="edge", trace=str(path))


def site_table(**changes):
    """Return a small valid site, changed."""
    table = {
        "name": "cage",
        "cap_w": 5.0e5,
        "model": "deepseek-r1",
        "demand_rps": 100.0,
        "mix": {"chat": 1.0},
        "pools": [
            {"rack": "gb300_nvl72", "phase": "prefill", "racks": 1, "dp": 4},
            {"rack": "gb300_nvl72", "phase": "decode", "racks": 1, "dp": 8},
        ],
    }
    table.update(changes)
    return table


def pools(**changes):
    """Return the two pools of the small site, the second one changed."""
    first, second = site_table()["pools"]
    return [first, {**second, **changes}]


def test_small_site_from_a_table_runs():
    env = ai_factory_gym.AIFactoryEnv(site=site_table(), lambda_tokens_per_joule=1.0, **SHORT)
    env.reset(seed=0)
    assert env.step(np.zeros(env.action_space.shape, np.float32))[4]["good_tokens"] > 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cap_w": 5.0e4}, ["idle draw", "0.067 MW", "lowest cap 0.043 MW"]),
        ({"model": "deepseek-r2"}, ["model", "'deepseek-r2'", "Did you mean 'deepseek-r1'"]),
        ({"pools": pools(rack="gb300_nvl27")}, ["rack", "'gb300_nvl27'", "Did you mean 'gb300_nvl72'"]),
        ({"pools": pools(phase="decoding")}, ["phase", "'decoding'", "Did you mean 'decode'"]),
        ({"pools": pools(dp=7)}, ["7 GPUs", "72 GPUs", "evenly"]),
        ({"pools": pools(dp=1)}, ["deepseek-r1", "does not fit", "GB of weights per GPU"]),
        ({"pools": pools(racks=0)}, ["racks", "0"]),
        ({"pools": pools(rcks=3)}, ["'rcks'", "Did you mean 'racks'"]),
        ({"mix": {"chatt": 1.0}}, ["mix", "'chatt'", "Did you mean 'chat'"]),
        ({"mix": {"chat": 0.5}}, ["mix", "sum to 0.5"]),
        ({"caps": 1.0}, ["'caps'", "allowed"]),
        ({"group_edges": [10.0, 5.0]}, ["group_edges", "increasing"]),
        ({}, ["lambda_tokens_per_joule", "'cage'", "ai_factory_baselines.freeze"]),
    ],
)
def test_bad_sites_are_refused(changes, words):
    with pytest.raises(ConfigError) as error:
        ai_factory_gym.AIFactoryEnv(site=site_table(**changes), **SHORT)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda n: np.full(n, np.nan), ["nan", "[-1, 1]"]),
        (lambda n: np.full(n, 1.5), ["1.5", "index 0"]),
        (lambda n: np.full(n, -np.inf), ["-inf", "[-1, 1]"]),
        (lambda n: np.zeros(n + 1), ["shape"]),
        (lambda n: np.zeros((1, n)), ["shape"]),
        (lambda n: "left", ["'left'", "numbers"]),
        (lambda n: None, ["None", "numbers"]),
        (lambda n: [[0.0], [0.0, 0.0]], ["[[0.0], [0.0, 0.0]]", "numbers"]),
        (lambda n: np.zeros(n, dtype=complex), ["numbers"]),
    ],
)
def test_bad_actions_are_refused(action, words):
    env = ai_factory_gym.AIFactoryEnv(site="edge", **SHORT)
    env.reset(seed=0)
    with pytest.raises(ConfigError) as error:
        env.step(action(env.action_space.shape[0]))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenari": "burst"}, "Did you mean 'scenario'"),
        ({"scenario": "brst"}, "scenario: .*'brst'.*Did you mean 'burst'"),
        ({"horizon_s": 61.0}, "horizon_s: 61.0 .*multiple of 60"),
        ({"demand_scale": np.nan}, "demand_scale: nan"),
        ({"start_time_s": -1.0}, "start_time_s: -1.0"),
        (5, "options: 5 .*dict"),
        (["scenario"], "options: .*dict"),
    ],
)
def test_bad_reset_options_are_refused(options, message):
    for env in (ai_factory_gym.AIFactoryEnv(site="edge", **SHORT), AIFactoryVectorEnv(1, site="edge", **SHORT)):
        with pytest.raises(ConfigError, match=message):
            env.reset(seed=0, options=options)


def test_a_scenario_under_which_the_site_cannot_work_is_refused_every_time():
    env = ai_factory_gym.AIFactoryEnv(site="edge", **SHORT)
    known = scenario("curtailment")
    deep = dataclasses.replace(
        known, name="deep", cap_events=tuple(dataclasses.replace(event, depth=0.99) for event in known.cap_events)
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match="cap"):
            env.reset(seed=0, options={"scenario": deep})
    # What was asked for before is the scenario of that reset only.
    price = {name: env.unwrapped.factory.task.lambda_for(scenario(name)) for name in ("diurnal", "curtailment")}
    assert price["diurnal"] != price["curtailment"]
    for name in ("diurnal", "curtailment", "diurnal"):
        env.reset(seed=0, options={"scenario": name})
        assert env.factory._episodes.price[0] == price[name]


def test_a_snapshot_fixes_the_episodes_that_follow():
    env = ai_factory_gym.AIFactoryEnv(site="edge", horizon_s=300.0, warmup_s=60.0)
    env.reset(seed=1)
    saved = env.snapshot()
    first = env.reset()[0]
    env.restore(saved)
    assert np.array_equal(env.reset()[0], first)
    other = ai_factory_gym.AIFactoryEnv(site="edge", horizon_s=300.0, warmup_s=60.0)
    other.restore(saved)
    assert np.array_equal(other.reset()[0], first)


def test_snapshots_of_other_environments_are_refused():
    env = ai_factory_gym.AIFactoryEnv(site="edge", **SHORT)
    env.reset(seed=0)
    saved = env.snapshot()
    others = [{"site": "enterprise"}, {"resolution": "coarse"}, {"levers": ("clock",)}, {"control_interval_s": 30.0}]
    for changes in others:
        other = ai_factory_gym.AIFactoryEnv(**{"site": "edge", **SHORT, **changes})
        with pytest.raises(ConfigError, match="snapshot"):
            other.restore(saved)
    for junk in (None, 5, (1, 2), (1, 2, 3)):
        with pytest.raises(ConfigError, match="snapshot"):
            env.restore(junk)
    # One made with the same arguments takes it before its first reset, and a pickled snapshot is as good.
    twin = ai_factory_gym.AIFactoryEnv(site="edge", **SHORT)
    twin.restore(pickle.loads(pickle.dumps(saved)))
    action = np.zeros(env.action_space.shape, np.float32)
    assert np.array_equal(twin.step(action)[0], env.step(action)[0])


def test_stepping_before_the_first_reset_is_refused():
    for env in (ai_factory_gym.AIFactoryEnv(site="edge", **SHORT), AIFactoryVectorEnv(2, site="edge", **SHORT)):
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros(env.action_space.shape, np.float32))
    env.reset(seed=0, options={"reset_mask": [True, False]})
    with pytest.raises(gymnasium.error.ResetNeeded, match="every row"):
        env.step(np.zeros(env.action_space.shape, np.float32))


def test_vector_env_refuses_bad_input():
    with pytest.raises(ConfigError, match="num_envs"):
        AIFactoryVectorEnv(0, site="edge")
    with pytest.raises(ConfigError, match="autoreset_mode"):
        AIFactoryVectorEnv(1, site="edge", autoreset_mode="same")
    envs = AIFactoryVectorEnv(2, site="edge", **SHORT)
    with pytest.raises(ConfigError, match="3 given for 2 rows"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ConfigError, match="seed: 1 given for 2 rows"):
        envs.reset(seed=1.5)


def test_breaker_trips_only_without_a_brake():
    env = ai_factory_gym.AIFactoryEnv(site="edge", brake=False, horizon_s=3600.0, warmup_s=600.0, demand_scale=2.0)
    env.reset(seed=0, options={"start_time_s": 12 * 3600.0})
    full = env.action_layout.encode(clock=1.0, racks=env.factory.params.pool[:, 1])
    for _ in range(60):
        _, _, terminated, truncated, info = env.step(full)
        if terminated:
            break
    assert terminated and not truncated and info["cap_violation_j"] > 0.0


def test_the_nearest_name_ignores_case_and_namespace():
    assert nearest("edge-V0", TASKS) == EDGE
    assert nearest("ai_factory/edgy-v0", TASKS) == EDGE
    assert nearest("unlike anything", TASKS) is None


def test_a_shipped_site_that_was_changed_needs_its_own_lambda() -> None:
    larger = dataclasses.replace(load_site("edge"), cap_w=3e6)
    with pytest.raises(ConfigError, match="'Edge', as given, has no frozen value"):
        ai_factory_gym.AIFactoryEnv(site=larger, **SHORT)
    ai_factory_gym.AIFactoryEnv(site=larger, lambda_tokens_per_joule=1.0, **SHORT)
