"""Several models on one site: who may serve whom, two models side by side as two sites, rules under one cap, shifts, and clear errors."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.catalogue import model
from ai_factory_gym.describe import describe
from ai_factory_gym.discrete import DiscreteLevers
from ai_factory_gym.engine.layout import (
    DECODE,
    PREFILL,
    Array,
    Cell,
    Class,
    ClassSpec,
    CohortInt,
    Log,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    Stage,
)
from ai_factory_gym.engine.simulator import Decision, Engine
from ai_factory_gym.levers import LEVERS as EVERY_LEVER
from ai_factory_gym.operating_point import steady_site
from ai_factory_gym.params import build_params, reference_batch, resolution, served_classes
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.sites import SiteConfig, load_site
from ai_factory_gym.task import shifted_classes
from ai_factory_gym.workload.traces import Trace
from tests.oracles.cases import NEVER_S, replay_episode

LEVERS = tuple(name for name in EVERY_LEVER if name not in ("battery", "training", "generation"))
"""Levers that a site without a battery, a training block and units of its own has."""

EXAMPLE = Path(__file__).parents[1] / "examples" / "sites" / "two_models.toml"
FIRST, SECOND = "deepseek-r1", "gpt-oss-120b"
Table = dict[str, Any]


def table() -> Table:
    """Return a site with two models, three pools of the first, of which a prefill pool may be emptied, and two of the second."""
    pools = [
        {"rack": "gb300_nvl72", "phase": "prefill", "racks": 2, "dp": 4, "min_active": 0},
        {"rack": "gb300_nvl72", "phase": "prefill", "racks": 1, "model": SECOND, "min_active": 0},
        {"rack": "gb300_nvl72", "phase": "decode", "racks": 1, "dp": 8, "mtp": True, "min_active": 0},
        {"rack": "vera_rubin_nvl144", "phase": "decode", "racks": 1, "dp": 8, "mtp": True, "profile": "max_q"},
        {"rack": "gb300_nvl72", "phase": "decode", "racks": 1, "model": SECOND, "min_active": 0},
    ]
    return {
        "name": "Two",
        "cap_w": 6e5,
        "model": FIRST,
        "demand_rps": 1500.0,
        "mix": {"chat": 0.6, "reasoning": 0.1, "coding": 0.2, "batch": 0.1},
        "class_models": {"coding": SECOND, "batch": SECOND},
        "pools": pools,
    }


@functools.cache
def two() -> SiteConfig:
    """Return that site."""
    return load_site(table())


def make(**options: Any) -> AIFactoryEnv:
    """Return a short episode of that site."""
    short = {"horizon_s": 900.0, "warmup_s": 120.0, "start_time_s": 43_200.0, "lambda_tokens_per_joule": 2.0}
    return AIFactoryEnv(**{"site": two(), **short, **options})


# ------------------------------------------------------------------------------------------------------------- the site


def test_names_carry_the_model_where_there_are_several() -> None:
    site = two()
    assert [pool.name for pool in site.pools] == [
        f"gb300_nvl72/prefill/{FIRST}",
        f"gb300_nvl72/prefill/{SECOND}",
        f"gb300_nvl72/decode/{FIRST}",
        f"vera_rubin_nvl144/decode/{FIRST}",
        f"gb300_nvl72/decode/{SECOND}",
    ]
    assert [entry.id for entry in site.models] == [FIRST, SECOND]
    assert [site.class_model(name).id for name in ("chat", "coding", "batch")] == [FIRST, SECOND, SECOND]
    assert load_site(site) is site and dataclasses.replace(site, demand_rps=1.0).pools == site.pools


def test_a_site_with_one_model_is_as_before_even_when_its_pools_say_so() -> None:
    plain = load_site("edge")
    assert [pool.name for pool in plain.pools][0] == "gb300_nvl72/prefill"
    said = dataclasses.replace(plain, pools=tuple(dataclasses.replace(p, model="deepseek-r1") for p in plain.pools))
    assert said == plain
    only = tuple(pool for pool, entry in zip(two().pools, two().pool_models, strict=True) if entry.id == FIRST)
    alone = dataclasses.replace(two(), pools=only, mix={"chat": 1.0}, class_models={})
    assert [pool.name for pool in alone.pools][0] == "gb300_nvl72/prefill"


def test_files_of_ones_own_name_models_everywhere(tmp_path: Path) -> None:
    catalogue = Path(str(load_site.__code__.co_filename)).parents[1] / "catalogue" / "models.toml"
    text = catalogue.read_text(encoding="utf-8")
    begin = text.index(f'[models."{SECOND}"]')
    own = text[begin : text.index("[models.", begin + 1)].replace(SECOND, "ours")
    (tmp_path / "models.toml").write_text(own, encoding="utf-8")
    site = EXAMPLE.read_text(encoding="utf-8").replace(SECOND, "ours")
    site = site.replace("[class_models]", '[own]\nmodels = "models.toml"\n\n[class_models]')
    (tmp_path / "site.toml").write_text(site, encoding="utf-8")
    loaded, shipped = load_site(tmp_path / "site.toml"), load_site(EXAMPLE)
    assert [entry.id for entry in loaded.models] == [FIRST, "ours"]
    assert loaded.class_model("coding").id == "ours"
    ours, theirs = (steady_site(each).saturation() for each in (loaded, shipped))
    assert ours == theirs


def changed(**changes: Any) -> Table:
    """Return the table with other keys; a change of ``pools`` is a function of the list."""
    found = copy.deepcopy(table())
    for key, value in changes.items():
        found[key] = value(found["pools"]) if key == "pools" else value
    return found


def without(place: int) -> Any:
    """Return what leaves a pool out."""
    return lambda pools: [pool for k, pool in enumerate(pools) if k != place]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(pools=without(4)), f"pools: no decode pool of model '{SECOND}'; each model needs"),
        (changed(pools=without(1)), f"pools: no prefill pool of model '{SECOND}'"),
        (changed(class_models={}), f"pools: 'gb300_nvl72/prefill/{SECOND}' serves a model of no class"),
        (
            changed(class_models={"coding": "kimi-k2.5"}),
            "class_models.coding: no pool serves 'kimi-k2.5'; the pools serve",
        ),
        (changed(class_models={"coding": "gpt-oss"}), "class_models.coding: unknown value 'gpt-oss'.*Did you mean"),
        (changed(class_models={"codign": SECOND}), "class_models: unknown value 'codign'.*Did you mean 'coding'"),
        (changed(class_models={"coding": 3}), "class_models.coding: 3 is not allowed; must be a string"),
        (changed(class_models=[SECOND]), "class_models: .* must be a table of class = model"),
        (
            changed(pools=lambda p: [{**p[0], "model": "gpt-oss-120"}, *p[1:]]),
            "model: unknown value 'gpt-oss-120'.*Did",
        ),
        (changed(pools=lambda p: [{**p[0], "model": 4}, *p[1:]]), "pools: model: 4 is not allowed"),
        (changed(pools=lambda p: [*p, p[0]]), f"pools: 'gb300_nvl72/prefill/{FIRST}' is given twice"),
        (
            changed(pools=lambda p: [{**p[k], "model": SECOND} for k in (1, 4)], mix={"coding": 1.0}),
            f"model: all pools serve '{SECOND}', and the site's model is '{FIRST}'",
        ),
        (changed(max_context={"kimi-k2.5": 5000}), "max_context: unknown value 'kimi-k2.5'; allowed: deepseek-r1, gpt"),
        (changed(max_context={SECOND: 0}), f"max_context.{SECOND}: 0 is not allowed"),
    ],
)
def test_half_a_model_is_refused(bad: Table, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_site(bad)


def test_all_pools_may_override_the_sites_model_only_as_a_whole() -> None:
    overridden = [{**pool, "model": pool.get("model", "kimi-k2.5")} for pool in table()["pools"]]
    with pytest.raises(ConfigError, match=f"mix.chat: no pool serves '{FIRST}', the site's model; say in class_models"):
        load_site({**table(), "pools": overridden})


def test_two_models_of_one_name_are_refused() -> None:
    other = dataclasses.replace(model(SECOND), layers=10)
    with pytest.raises(ConfigError, match=f"two different models have the name '{SECOND}'"):
        load_site(changed(class_models={"coding": SECOND, "batch": other}))


def test_lengths_are_cut_to_the_context_of_the_classs_model() -> None:
    table_ = changed(max_context={SECOND: 9000})
    by_name = {cls.name: cls for cls in served_classes(load_site(table_))}
    assert by_name["coding"].prompt.maximum + by_name["coding"].output.maximum <= 9000
    free = {cls.name: cls for cls in served_classes(two())}
    assert by_name["chat"] == free["chat"]
    for name, cls in free.items():
        assert cls.prompt.maximum + cls.output.maximum <= model(two().class_model(name)).max_context
    everywhere = served_classes(load_site(changed(max_context=9000)))
    assert all(cls.prompt.maximum + cls.output.maximum <= 9000 for cls in everywhere)


# ------------------------------------------------------------------------------------------------- precision and profile


def capacities(served: str = FIRST, **changes: Any) -> tuple[Array, Array, float]:
    """Return capacities, KV tokens per decode replica and unthrottled draw at saturation of a site of one model with other pools."""
    pools = [
        {"rack": "vera_rubin_nvl144", "phase": phase, "racks": 1, "dp": 8, "precision": "fp4", **changes}
        for phase in ("prefill", "decode")
    ]
    own = {"model": served, "class_models": {}, "mix": {"chat": 1.0}, "pools": pools, "cap_w": 1e7}
    site = load_site({**table(), **own})
    steady = steady_site(site)
    return steady.params.capacity, steady.params.perf[1, DECODE_KV_CAPACITY_TOKENS], steady.saturation().facility_w


def test_precision_is_a_property_of_a_pool() -> None:
    # Twice the bytes per weight: a fraction of the peak, more to read, less room for KV.
    four, room_four, _ = capacities("llama-3.1-70b", precision="fp4")
    eight, room_eight, _ = capacities("llama-3.1-70b", precision="fp8")
    assert eight[PREFILL, 0, 0] < 0.6 * four[PREFILL, 0, 0] and eight[DECODE, 0, 1] < 0.95 * four[DECODE, 0, 1]
    assert room_eight < room_four
    # Of a mixture of experts only these are in four bits, all else in sixteen: decode gains, prefill need not.
    four, room_four, _ = capacities(precision="fp4")
    eight, room_eight, _ = capacities(precision="fp8")
    assert eight[DECODE, 0, 1] < 0.95 * four[DECODE, 0, 1] and room_eight < room_four
    with pytest.raises(ConfigError, match="precision: unknown value 'fp6'"):
        capacities(precision="fp6")


def test_a_profile_is_a_property_of_a_pool() -> None:
    quiet, _, quiet_w = capacities(profile="max_q")
    loud, _, loud_w = capacities(profile="max_p")
    assert (quiet <= loud).all() and quiet[PREFILL, 0, 0] < loud[PREFILL, 0, 0]
    assert quiet_w < 0.95 * loud_w
    # Tokens per joule are what the quieter one is for.
    assert quiet[DECODE, 0, 1] / quiet_w > loud[DECODE, 0, 1] / loud_w
    with pytest.raises(ConfigError, match="profile.*'max_r'"):
        capacities(profile="max_r")


# ---------------------------------------------------------------------------------------------------- who serves whom


def models_of(env: AIFactoryEnv) -> tuple[Array, Array]:
    """Return the model of each class and of each pool."""
    params = env.factory.params
    return params.cls[:, ClassSpec.MODEL].astype(int), params.pool[:, PoolSpec.MODEL].astype(int)


def check_kept_apart(env: AIFactoryEnv) -> int:
    """Return the number of cohorts at the site; each must be in pools of its class's model, prefill and decode.

    Raises:
        AssertionError: When one is not.
    """
    of_class, of_pool = models_of(env)
    state = env.factory.engine.state
    live = state.cohort_int[0][state.cohort_int[0, :, CohortInt.STAGE] != Stage.FREE]
    wanted = of_class[live[:, CohortInt.CLASS]]
    for column, phase in ((CohortInt.PREFILL_POOL, PREFILL), (CohortInt.DECODE_POOL, DECODE)):
        pools = live[:, column]
        assert (of_pool[pools] == wanted).all()
        assert (env.factory.params.pool[pools, PoolSpec.PHASE] == phase).all()
    return len(live)


@functools.cache
def shared(grain: str) -> AIFactoryEnv:
    """Return one environment per resolution, for all examples."""
    scale = {"demand_scale": 0.03} if grain == "request" else {"demand_scale": 1.2}
    return make(resolution=grain, levers=LEVERS, drain=True, **scale)


@given(
    st.sampled_from(["cohort", "request"]),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_requests_stay_with_their_model_whatever_is_done(grain: str, seed: int, swing: float, empty: bool) -> None:
    env = shared(grain)
    env.reset(seed=seed, options={"horizon_s": 600.0})
    rng = np.random.default_rng(seed)
    seen, truncated, step = 0, False, 0
    while not truncated:
        action = (swing * rng.uniform(-1, 1, env.action_layout.size)).astype(np.float32)
        if empty and step < 6:
            action[env.action_layout["active_racks"]] = -1.0
        step += 1
        _, _, _, truncated, info = env.step(action if step < 12 else np.zeros_like(action))
        seen += check_kept_apart(env)
        counters = env.factory.engine.state.cls[0]
        if not info["requests_in_flight"] and step > 12:
            break
        flying = counters[:, Class.ARRIVED] - counters[:, Class.MET] - counters[:, Class.MISSED]
        assert (flying >= -1e-6).all()
    assert seen > 0
    for name in (cls.name for cls in env.classes if not cls.deferrable):
        arrived, met, missed = (info[f"class/{name}/{what}"] for what in ("arrived", "met", "missed"))
        assert met + missed <= arrived + 1e-6


def test_every_class_is_conserved_to_the_end() -> None:
    env = make(drain=True, horizon_s=600.0)
    env.reset(seed=3)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    for cls in env.classes:
        arrived, met, missed = (info[f"class/{cls.name}/{what}"] for what in ("arrived", "met", "missed"))
        assert arrived > 0.0 or cls.deferrable
        assert met + missed == pytest.approx(arrived, abs=1e-6)
    state = env.factory.engine.state
    numbers = state.pool[0]
    assert numbers[:, Pool.KV_TOKENS_IN].min() >= 0.0
    _, of_pool = models_of(env)
    for which in range(2):
        decode = (env.factory.params.pool[:, PoolSpec.PHASE] == DECODE) & (of_pool == which)
        kept = numbers[decode, Pool.KV_TOKENS_IN] + numbers[decode, Pool.KV_TOKENS_GENERATED]
        left = numbers[decode, Pool.KV_TOKENS_OUT] + numbers[decode, Pool.CONTEXT]
        assert kept == pytest.approx(left, rel=1e-6)


def test_emptied_pools_of_one_model_let_its_requests_wait_and_not_go_elsewhere() -> None:
    env = make(demand_scale=0.5)
    env.reset(seed=0)
    racks = env.action_layout.racks.copy()
    racks[[1, 4]] = 0
    for _ in range(8):
        env.step(env.action_layout.encode(clock=1.0, racks=racks))
        check_kept_apart(env)
    state, params = env.factory.engine.state, env.factory.params
    assert (state.pool_int[0, [1, 4], PoolInt.CLOSED] == 1).all()
    bins = len(params.group_edges) + 1
    of_pool = params.pool[:, PoolSpec.MODEL]
    for group in range(params.capacity.shape[1]):
        for phase in (PREFILL, DECODE):
            shares = state.weight[0, phase, group]
            assert shares.sum() == pytest.approx(1.0)
            assert (shares[of_pool != group // bins] == 0.0).all()


def test_one_model_on_racks_that_do_both_phases() -> None:
    pools = [pool for pool in table()["pools"] if pool.get("model") == SECOND]
    pools += [{"rack": "gb300_nvl72", "phase": "both", "racks": 3, "dp": 8, "mtp": True}]
    env = make(site={**table(), "pools": pools}, demand_scale=0.5)
    site = env.task.site
    assert [site.partner(pool) for pool in site.pools] == [-1, 3, -1, 1]
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(6):
        *_, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        check_kept_apart(env)
        live = env.factory.engine.state.cohort_int[0]
        live = live[live[:, CohortInt.STAGE] != Stage.FREE]
        both = live[:, CohortInt.PREFILL_POOL] == 1
        assert (live[both, CohortInt.DECODE_POOL] == 3).all() and (live[~both, CohortInt.DECODE_POOL] == 2).all()
    assert info["requests_met_slo"] > 0
    assert np.isfinite(env.factory.engine.state.weight).all()
    # The steady state is searched model by model: the first is not throttled with the second.
    steady = steady_site(site)
    point = steady.cheapest(0.5 * site.demand_rps)
    assert point.binds is None and point.facility_w <= steady.at(0.5 * site.demand_rps).facility_w
    pools.append({"rack": "vera_rubin_nvl144", "phase": "prefill", "racks": 1, "dp": 4})
    with pytest.raises(
        ConfigError, match=f"beside the pools of {FIRST} that do both phases there are prefill pools only"
    ):
        load_site({**table(), "pools": pools})


def test_actions_and_blocks_have_places_for_what_can_be_set() -> None:
    env = make(levers=LEVERS)
    layout, params = env.action_layout, env.factory.params
    bins = len(params.group_edges) + 1
    # Two bins for each model: the first has one prefill and two decode pools, the second one of each.
    assert [len(routes) for routes in layout.routes] == [bins * 1 + bins * 1, bins * 2 + bins * 1]
    for kind, name in ((PREFILL, "route_prefill"), (DECODE, "route_decode")):
        group, pool = layout.routes[kind].T
        assert layout[name].stop - layout[name].start == len(group)
        assert (params.pool[pool, PoolSpec.MODEL] == group // bins).all()
        assert (params.pool[pool, PoolSpec.PHASE] == kind).all()
        assert (params.capacity[kind, group, pool] > 0.0).all()
        for place in range(len(group)):
            action = np.zeros((1, layout.size))
            action[0, layout[name].start + place] = 1.0
            bias = layout.decide(action).bias[0]
            moved = np.argwhere(bias != 1.0)
            assert moved.tolist() == [[kind, group[place], pool[place]]]
    members = np.flatnonzero(params.pool[:, PoolSpec.PHASE] == DECODE)
    wanted = np.random.default_rng(0).uniform(0.1, 10.0, (2 * bins, len(members)))
    bias = layout.decide(layout.encode(route_decode=wanted)[None].astype(float)).bias[0, DECODE]
    group, pool = layout.routes[DECODE].T
    assert bias[group, pool] == pytest.approx(wanted[group, np.searchsorted(members, pool)], rel=1e-5)
    one = AIFactoryEnv(site="edge").action_layout
    assert one.routes[PREFILL].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_masks_of_choices_follow_the_routes() -> None:
    env = DiscreteLevers(make(), steps=3)
    env.reset(seed=0)
    base = env.unwrapped
    assert isinstance(base, AIFactoryEnv)
    action = base.action_layout.encode(racks=np.array([2, 0, 1, 1, 1]))
    base.step(action)
    masks = env.action_masks().reshape(-1, 3)
    routes = base.action_layout.routes[PREFILL]
    block = masks[base.action_layout["route_prefill"]]
    assert (block[routes[:, 1] == 1] == [False, True, False]).all() and block[routes[:, 1] == 0].all()


def test_two_models_in_a_vector_environment_and_in_snapshots() -> None:
    settings_ = {"site": str(EXAMPLE), "horizon_s": 600.0, "warmup_s": 60.0}
    single = gymnasium.make("ai_factory/Custom-v0", **settings_).unwrapped
    rows = gymnasium.make_vec(
        "ai_factory/Custom-v0", num_envs=2, vectorization_mode="vector_entry_point", threads=2, **settings_
    )
    assert isinstance(single, AIFactoryEnv)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2, single.action_layout.size)).astype(np.float32)
    rows.reset(seed=3)
    trail = [rows.step(action)[0][0] for action in actions]
    single.reset(seed=3)
    assert np.array_equal([single.step(action)[0] for action in actions[:2, 0]], trail[:2])
    saved = single.factory.snapshot()
    ends = []
    for _ in range(2):
        single.factory.restore(saved)
        ends.append([single.step(action)[0] for action in actions[2:, 0]])
    assert np.array_equal(ends[0], ends[1]) and np.array_equal(ends[0], trail[2:])
    rows.close()


def test_a_trace_of_one_models_class_leaves_the_others_idle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "trace.csv"
    lines = [f"{at:.3f},{int(prompt)},{int(output)}" for at, prompt, output in zip(
        np.sort(rng.uniform(0.0, 900.0, 3000)), rng.integers(50, 6000, 3000), rng.integers(5, 400, 3000), strict=True
    )]  # fmt: skip
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines), encoding="utf-8")
    for grain in ("cohort", "request"):
        env = make(trace=str(path), trace_class="coding", resolution=grain, horizon_s=600.0, warmup_s=0.0)
        env.reset(seed=0)
        for _ in range(8):
            _, _, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        busy = env.factory.engine.state.pool[0, :, Pool.STEP_BUSY_S]
        _, of_pool = models_of(env)
        assert check_kept_apart(env) >= 0 and info["requests_arrived"] > 1000
        assert (busy[of_pool == 0] == 0.0).all() and (busy[of_pool == 1] > 0.0).all()
    long = path.read_text(encoding="utf-8") + "\n899.9,130000,2000\n"
    path.write_text(long, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=f"132,000 tokens, and the longest context of site 'Two' with {SECOND} is 131,072"
    ):
        make(trace=str(path), trace_class="coding", horizon_s=600.0)
    make(trace=str(path), trace_class="chat", horizon_s=600.0)


# ------------------------------------------------------------------------------------------ two models, or two sites


TWIN = dataclasses.replace(model("llama-3.1-70b"), id="twin")


def h100(phase: str, racks: int, **options: Any) -> Table:
    """Return a pool of eight-GPU systems."""
    return {"rack": "h100_sxm8", "phase": phase, "racks": racks, "precision": "fp8", "tp": 4, **options}


def half(racks: tuple[int, int], cls: str, share: float, cap_w: float, which: Any = "llama-3.1-70b") -> SiteConfig:
    """Return a site with one model and one class."""
    pools = [h100("prefill", racks[0]), h100("decode", racks[1])]
    return load_site(
        {"name": "Half", "cap_w": cap_w, "model": which, "demand_rps": share, "mix": {cls: 1.0}, "pools": pools}
    )


def whole(racks: tuple[tuple[int, int], tuple[int, int]], shares: tuple[float, float], cap_w: float) -> SiteConfig:
    """Return a site that is two such sites side by side: chat of one model, coding of its twin."""
    (a, b), (c, d) = racks
    pools = [h100("prefill", a), h100("prefill", c, model=TWIN), h100("decode", b), h100("decode", d, model=TWIN)]
    total = sum(shares)
    return load_site(
        {
            "name": "Whole",
            "cap_w": cap_w,
            "model": "llama-3.1-70b",
            "demand_rps": total,
            "mix": {"chat": shares[0] / total, "coding": shares[1] / total},
            "class_models": {"coding": TWIN},
            "pools": pools,
        }
    )


RACKS = ((3, 4), (2, 5))
SHARES = (40.0, 10.0)


def test_capacity_reference_and_joules_are_those_of_two_sites() -> None:
    site = whole(RACKS, SHARES, 1e8)
    classes = served_classes(site)
    params = build_params(site, classes, resolution("cohort"), control_interval_s=60.0)
    batch = reference_batch(site, classes, params)
    for which, name in enumerate(("chat", "coding")):
        alone = half(RACKS[which], name, SHARES[which], 1e8)
        own = served_classes(alone)
        single = build_params(alone, own, resolution("cohort"), control_interval_s=60.0)
        pools = np.array([0, 2]) + which
        # Strata of the whole are coarser per class, means are not: capacities agree to what cutting outputs leaves.
        mine = params.capacity[:, 2 * which : 2 * which + 2][:, :, pools]
        assert mine == pytest.approx(single.capacity, rel=1e-6)
        assert params.capacity[:, 2 * which : 2 * which + 2][:, :, np.array([0, 2]) + 1 - which].max() == 0.0
        assert batch[pools] == pytest.approx(reference_batch(alone, own, single), rel=1e-6)
        joules = [ClassSpec.PREFILL_J_PER_TOKEN, ClassSpec.PREFILL_J_PER_TOKEN2, ClassSpec.DECODE_J_PER_TOKEN]
        assert params.cls[which, joules] == pytest.approx(single.cls[0, joules], rel=1e-6)
        cells = params.cell[params.cell[:, Cell.CLASS] == which]
        assert (cells[:, Cell.GROUP] // 2 == which).all()


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_a_steady_state_is_that_of_two_sites(scale: float) -> None:
    both = steady_site(whole(RACKS, SHARES, 1e8))
    parts = [steady_site(half(RACKS[k], name, SHARES[k], 1e8)) for k, name in enumerate(("chat", "coding"))]
    point = both.cheapest(scale * sum(SHARES))
    alone = [part.cheapest(scale * share) for part, share in zip(parts, SHARES, strict=True)]
    # Facility power is linear in IT power: nameplates add up.
    assert point.facility_w == pytest.approx(sum(each.facility_w for each in alone), rel=1e-6)
    for which, each in enumerate(alone):
        for whole_, own in (
            (point.utilisation, each.utilisation),
            (point.tpot_s, each.tpot_s),
            (point.pool_w, each.pool_w),
        ):
            assert np.array(whole_)[[which, which + 2]] == pytest.approx(own, rel=1e-6)
    first = min(part.saturation().load_rps / share for part, share in zip(parts, SHARES, strict=True))
    assert both.saturation().load_rps == pytest.approx(first * sum(SHARES), rel=1e-6)


def trace_of(seed: int, count: int, rate: float) -> Trace:
    """Return requests to replay once."""
    rng = np.random.default_rng(seed)
    prompt = np.clip(np.round(700.0 * np.exp(0.9 * rng.standard_normal(count))), 1.0, 12_000.0)
    output = np.clip(np.round(120.0 * np.exp(0.8 * rng.standard_normal(count))), 1.0, 1500.0)
    return Trace(np.cumsum(rng.exponential(1.0 / rate, count)), prompt, output, span_s=NEVER_S)


def replay(site: SiteConfig, trace: Trace, labels: Array, cap_w: float, steps: int = 30) -> Engine:
    """Return the engine after replaying a trace request by request, every rack awake, clocks changing."""
    params = build_params(
        site, served_classes(site), resolution("request"), control_interval_s=10.0, trace=trace, trace_labels=labels
    )
    engine = Engine(params, log_lines=len(trace))
    episode = replay_episode(params, 0.0)
    episode.cap_steps[0, 1] = cap_w
    engine.begin(0, episode)
    engine.open_window(0)
    pools, groups = len(params.pool), params.capacity.shape[1]
    racks = params.pool[:, PoolSpec.RACKS].astype(np.int64)[None]
    for step in range(steps):
        ceiling = np.full((1, pools), (1.0, 0.6, 0.8)[step % 3])
        decision = Decision(np.ones((1, 2, groups, pools)), ceiling, np.full((1, pools), np.inf), racks)
        engine.step(np.array([0]), decision)
    return engine


def log_of(engine: Engine, cls: int) -> Array:
    """Return the log of a class in order of arrival, without the class."""
    log = engine.state.log[0]
    log = log[(log[:, Log.COUNT] > 0) & (log[:, Log.CLASS] == cls)]
    return log[np.argsort(log[:, Log.ARRIVAL_S], kind="stable")][:, Log.ARRIVAL_S :]


def test_requests_fare_as_on_two_sites() -> None:
    traces = [trace_of(1, 900, 6.0), trace_of(2, 500, 3.0)]
    order = np.argsort(np.concatenate([each.arrival_s for each in traces]), kind="stable")
    columns = [
        np.concatenate([getattr(each, name) for each in traces])[order]
        for name in ("arrival_s", "prompt_tokens", "output_tokens")
    ]
    labels = np.repeat([0, 1], [len(each) for each in traces])[order]
    cap_w = 1e10
    both = replay(whole(RACKS, SHARES, cap_w), Trace(*columns, span_s=NEVER_S), labels, cap_w)
    energy = 0.0
    for which, (name, trace) in enumerate(zip(("chat", "coding"), traces, strict=True)):
        alone = replay(
            half(RACKS[which], name, SHARES[which], cap_w), trace, np.zeros(len(trace), dtype=np.int64), cap_w
        )
        mine, theirs = log_of(both, which), log_of(alone, 0)
        assert len(mine) == len(theirs) == len(trace)
        assert np.array_equal(mine, theirs)
        pools = np.array([0, 2]) + which
        assert np.array_equal(both.state.pool[0, pools, Pool.ENERGY_J], alone.state.pool[0, :, Pool.ENERGY_J])
        energy += alone.state.site[0, Site.ENERGY_J]
    assert both.state.site[0, Site.ENERGY_J] == pytest.approx(energy, rel=1e-9)


def test_twins_under_one_cap_fare_as_each_under_half_of_it() -> None:
    trace, racks = trace_of(3, 3000, 40.0), (2, 3)
    nobody = np.zeros(2, dtype=np.int64)
    idle = replay(half(racks, "chat", 1.0, 1e10), trace_of(4, 2, 0.01), nobody, 1e10, steps=1)
    cap_w = 1.5 * float(idle.state.site[0, Site.ENERGY_J]) / 10.0
    columns = [np.repeat(getattr(trace, name), 2) for name in ("arrival_s", "prompt_tokens", "output_tokens")]
    labels = np.tile([0, 1], len(trace))
    # A class of the same promises for the twin.
    chat = two().known_classes["chat"]
    site = dataclasses.replace(
        whole((racks, racks), (1.0, 1.0), 2.0 * cap_w),
        mix={"chat": 0.5, "chat_twin": 0.5},
        class_models={"chat_twin": TWIN},
        own_classes=(dataclasses.replace(chat, name="chat_twin"),),
    )
    both = replay(site, Trace(*columns, span_s=NEVER_S), labels, 2.0 * cap_w)
    alone = replay(half(racks, "chat", 1.0, cap_w), trace, np.zeros(len(trace), dtype=np.int64), cap_w)
    mine, theirs = both.state.site[0], alone.state.site[0]
    assert mine[Site.BRAKE_S] > 10.0
    assert mine[Site.BRAKE_S] == pytest.approx(theirs[Site.BRAKE_S], abs=1e-6)
    assert mine[Site.ENERGY_J] == pytest.approx(2.0 * theirs[Site.ENERGY_J], rel=1e-9)
    assert mine[Site.CAP_VIOLATION_J] == pytest.approx(2.0 * theirs[Site.CAP_VIOLATION_J], rel=1e-6)
    for which in range(2):
        assert log_of(both, which) == pytest.approx(log_of(alone, 0), rel=1e-9, nan_ok=True)


# ------------------------------------------------------------------------------------------------------------ scenarios


def test_demand_moves_from_one_model_to_the_others() -> None:
    plain = make(scenario="diurnal")
    moved = make(scenario="diurnal+model_mix_shift")
    plain.reset(seed=5)
    moved.reset(seed=5)
    of_class, _ = models_of(plain)
    ratio = moved.factory.engine.state.rate[0] / plain.factory.engine.state.rate[0]
    assert ratio[of_class == 0].min() < 0.71 and ratio[of_class == 0].max() <= 1.0
    assert ratio[of_class == 1].max() > 1.29 and ratio[of_class == 1].min() >= 1.0
    # All classes of a model move alike.
    for which in range(2):
        assert np.ptp(ratio[of_class == which], axis=0) == pytest.approx(0.0, abs=1e-12)


def test_shifts_name_models_classes_or_both(tmp_path: Path) -> None:
    text = (Path(str(load_site.__code__.co_filename)).parents[1] / "scenarios" / "model_mix_shift.toml").read_text(
        "utf-8"
    )
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('["default"]', f'["{SECOND}"]\nclasses = ["chat"]'), encoding="utf-8")
    env = make(scenario=str(path))
    first, second = (shifted_classes(shift, two()) for shift in env.task.scenario.shifts)
    assert set(first) & set(two().mix) == {"chat", "coding", "batch"}
    assert set(second) & set(two().mix) == {"coding", "batch"}
    path.write_text(text.replace('"default"', '"gpt-oss"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="shifts: models: unknown value 'gpt-oss'.*Did you mean 'gpt-oss-120b'"):
        make(scenario=str(path))
    path.write_text(text.replace('models = ["default"]\n', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shifts\[0\].classes: none given, and no models"):
        make(scenario=str(path))
    path.write_text(text.replace('models = ["default"]', 'models = "default"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shifts\[0\].models: 'default' is not allowed; must be a list of names"):
        make(scenario=str(path))


def test_where_there_is_one_model_nothing_moves_and_that_is_said() -> None:
    short = {"site": "edge", "horizon_s": 600.0, "warmup_s": 60.0}
    with pytest.warns(UserWarning, match="model_mix_shift' moves demand between models, and site 'Edge' serves one"):
        shifted = AIFactoryEnv(scenario="diurnal+model_mix_shift", lambda_tokens_per_joule=3.0, **short)
    plain = AIFactoryEnv(scenario="diurnal", **short)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        shifted.reset(seed=1)
    plain.reset(seed=1)
    assert np.array_equal(shifted.factory.engine.state.rate, plain.factory.engine.state.rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(scenario="model_mix_shift").reset(seed=1)


# ---------------------------------------------------------------------------------------------------------------- rules


def test_every_rule_acts_on_two_models() -> None:
    baselines = pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    env = make()
    for name in baselines.names():
        rule = baselines.make(name, env)
        observation, _ = env.reset(seed=2)
        state = None
        for _ in range(4):
            action, state = rule.predict(observation, state)
            assert env.action_space.contains(action)
            observation, _, _, _, info = env.step(action)
            check_kept_apart(env)
        assert info["requests_met_slo"] > 0


def test_a_plan_is_of_one_model_and_the_error_says_so() -> None:
    pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    from ai_factory_baselines.reactive import Reactive

    with pytest.raises(ConfigError, match="the site serves 2 models, and a plan is of one.*ai_factory_baselines.make"):
        Reactive(make())


def twins(share: tuple[float, float] = (1.0, 1.0)) -> tuple[AIFactoryEnv, AIFactoryEnv]:
    """Return a site, and one that is it and its twin behind twice the cap."""
    racks, demand, cap_w = (4, 4), 60.0, 8e4
    chat = two().known_classes["chat"]
    both = dataclasses.replace(
        whole((racks, racks), share, 2.0 * cap_w),
        mix={"chat": 0.5, "chat_twin": 0.5},
        class_models={"chat_twin": TWIN},
        own_classes=(dataclasses.replace(chat, name="chat_twin"),),
        demand_rps=2.0 * demand,
    )
    alone = dataclasses.replace(half(racks, "chat", 1.0, cap_w), demand_rps=demand)
    short = {"horizon_s": 1800.0, "warmup_s": 120.0, "start_time_s": 50_400.0, "lambda_tokens_per_joule": 1.0}
    return AIFactoryEnv(site=alone, **short), AIFactoryEnv(site=both, **short)


@pytest.mark.parametrize("name", ["length_aware", "reactive"])
def test_a_rule_does_to_each_twin_what_it_does_alone(name: str) -> None:
    baselines = pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    alone, both = twins()
    one, two_ = baselines.make(name, alone), baselines.make(name, both)
    seen, _ = alone.reset(seed=1)
    mine, theirs = None, None
    layout = both.observation_layout
    for step in range(6):
        wide = np.zeros(layout.size, np.float32)
        for block, place in alone.observation_layout.slices.items():
            numbers = seen[place]
            if block.startswith("pool_"):
                numbers = np.repeat(numbers, 2)
            elif block.startswith(("class_", "queue_wait")):
                numbers = np.tile(numbers, 2)
            if block != "previous_action":
                wide[layout[block]] = numbers
        action, mine = one.predict(seen, mine)
        wider, theirs = two_.predict(wide, theirs)
        for lever in ("clock", "active_racks"):
            assert wider[both.action_layout[lever]] == pytest.approx(
                np.repeat(action[alone.action_layout[lever]], 2), abs=2e-5
            )
        seen, *_ = alone.step(np.clip(action - 0.1 * step, -1.0, 1.0))


def test_where_one_model_asks_more_the_other_gives_up_power() -> None:
    pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    import ai_factory_baselines
    from ai_factory_baselines.several import ReactivePerModel

    _, both = twins()
    rule = ai_factory_baselines.make("reactive", both)
    assert isinstance(rule, ReactivePerModel)
    observation, _ = both.reset(seed=1)
    place = both.observation_layout["class_rate"].start
    shares = []
    for factor in (0.5, 1.0, 2.0):
        seen = np.repeat(observation[None].astype(float), 2, axis=0)
        seen[:, place] *= factor
        parts = [seen[:, part.seen] for part in rule.parts]
        memory = [np.zeros((2, each.memory_size)) for each in rule.rules]
        found = rule.cap_shares(parts, memory)
        assert found.sum(axis=0) == pytest.approx(1.0) and (found[:, 0] == found[:, 1]).all()
        shares.append(found[0, 0])
    assert shares[0] < shares[1] < shares[2]
    copied = pickle.loads(pickle.dumps(rule))
    np.testing.assert_array_equal(copied.predict(observation)[0], rule.predict(observation)[0])
    again = type(rule)(both, dataclasses.replace(rule.settings, power_sigmas=5.0))
    assert again.settings.power_sigmas == 5.0


# ------------------------------------------------------------------------------------------------------- the pages


def test_describe_says_who_serves_what() -> None:
    text = describe(str(EXAMPLE))
    assert f"models {FIRST}, {SECOND}" in text
    assert f"gb300_nvl72/decode/{SECOND}" in text and f"vera_rubin_nvl144/decode/{FIRST}" in text
    rows = [line for line in text.splitlines() if line.startswith(("chat", "reasoning", "coding"))]
    assert [row.split()[-1] for row in rows] == [FIRST, FIRST, SECOND]
    # Two bins of prompts for each pool, not four groups.
    capacity = next(line for line in text.splitlines() if line.startswith(f"gb300_nvl72/decode/{SECOND}"))
    assert capacity.count(", ") == 1
    assert "model " not in describe("edge").splitlines()[12]
