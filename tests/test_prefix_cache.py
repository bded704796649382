"""Prefix caches: what they save is what is found, what is found follows from sizes, sessions, routing and sleep, and off is off."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.catalogue import model
from ai_factory_gym.describe import describe
from ai_factory_gym.engine.cache import characteristic_s
from ai_factory_gym.engine.layout import (
    CHANCE,
    PREFILL,
    Array,
    Class,
    Context,
    Log,
    Pool,
    PoolSpec,
    SessionSpec,
    SiteInt,
    State,
    Store,
    Tier,
)
from ai_factory_gym.factory import Factory
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    PREFILL_KV_BYTES_PER_TOKEN,
    PREFILL_PER_TOKEN2_S,
    PREFILL_PER_TOKEN_S,
    kv_bytes_per_token,
    prefill_work_s,
)
from ai_factory_gym.sites import CacheConfig, PoolConfig, SiteConfig, StoreConfig, load_site
from ai_factory_gym.steady_cache import steady_cache
from ai_factory_gym.validate import findings
from ai_factory_gym.workload.classes import RequestClass, Session, load_classes, request_class
from ai_factory_gym.workload.demand import DemandProfile
from ai_factory_gym.workload.traces import Trace, load_trace, lru_hit_share, reuse
from tests.oracles.lru import Kind, hit_shares

AGENTS = Path(__file__).parents[1] / "examples" / "sites" / "agents.toml"
TURNS, REUSE, THINK_S = 5.0, 0.8, 60.0
FOLLOWING = 1.0 - 1.0 / TURNS
ENDLESS = CacheConfig(hbm_gb=2000.0, host_gb=1e6, host_gb_s=1e5)


def agent(**changes: Any) -> RequestClass:
    """Return a class of tasks of five requests that carry most of their context on."""
    values: dict[str, Any] = {
        "name": "agent",
        "requests_per_task": TURNS,
        "session": Session(REUSE, THINK_S),
        "demand": DemandProfile(overdispersion_sigma=0.0),
    }
    return dataclasses.replace(request_class("chat"), **{**values, **changes})


def small_site(
    cache: CacheConfig | None = ENDLESS,
    pools: int = 1,
    store: StoreConfig | None = None,
    classes: tuple[RequestClass, ...] = (),
    rps: float = 400.0,
    racks: int = 2,
) -> SiteConfig:
    """Return a site with one or two prefill pools of equal racks."""
    own = classes or (agent(),)
    kinds = ("gb300_nvl72", "vera_rubin_nvl144")[:pools]
    prefill = tuple(PoolConfig(kind, "prefill", racks, dp=4, cache=cache) for kind in kinds)
    return SiteConfig(
        name="Small",
        cap_w=3e6,
        model="deepseek-r1",
        pools=(*prefill, PoolConfig("gb300_nvl72", "decode", 2, dp=8, mtp=True)),
        demand_rps=rps,
        mix={cls.name: 1.0 / len(own) for cls in own},
        own_classes=own,
        kv_store=store,
    )


def make(site: SiteConfig, **settings: Any) -> AIFactoryEnv:
    """Return an environment of half an hour of steady demand without a warm-up."""
    defaults: dict[str, Any] = {
        "scenario": "steady",
        "horizon_s": 1800.0,
        "warmup_s": 300.0,
        "lambda_tokens_per_joule": 1.0,
    }
    return AIFactoryEnv(site=site, **{**defaults, **settings})


def run(env: AIFactoryEnv, steps: int = 10, seed: int = 0, action: Array | None = None) -> dict[str, Any]:
    """Return the info after some steps with one action, by default full clock and all racks."""
    chosen = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks) if action is None else action
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, _, _, info = env.step(chosen)
    return info


def state_of(env: AIFactoryEnv) -> State:
    """Return the engine's state."""
    return env.factory.engine.state


def hit_share(info: dict[str, Any]) -> float:
    """Return the share of prompt tokens that were found."""
    return float(info["cached_tokens"] / info["prompt_tokens"])


def ttft_s(env: AIFactoryEnv) -> float:
    """Return the mean TTFT of the first class."""
    counters = state_of(env).cls[0, 0]
    return float(counters[Class.TTFT_SUM_S] / counters[Class.TTFT_COUNT])


# ------------------------------------------------------------------------------------------------------------------- off


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_cache_without_sessions_and_sessions_without_a_cache_change_nothing(resolution: str) -> None:
    scale = {"demand_scale": 0.05} if resolution == "request" else {}
    alone = agent(session=None)
    trails = []
    for cache, cls in ((None, alone), (ENDLESS, alone), (None, agent())):
        env = make(small_site(cache, 2, classes=(cls,)), resolution=resolution, **scale)
        observation, _ = env.reset(seed=3)
        drawn = np.random.default_rng(0).uniform(-1, 1, (8, env.action_layout.size)).astype(np.float32)
        rows = []
        for action in drawn:
            observation, reward, _, _, info = env.step(action)
            seen = {name: observation[place] for name, place in env.observation_layout.slices.items()}
            rows.append((seen, reward, info))
        trails.append(rows)
    for rows in trails[1:]:
        for (seen, reward, info), (also_seen, also_reward, also_info) in zip(trails[0], rows, strict=True):
            assert reward == also_reward
            assert all(np.array_equal(seen[name], also_seen[name]) for name in seen)
            assert all(info[key] == also_info[key] for key in info)
    added = set(trails[1][0][2]) - set(trails[0][0][2])
    assert added == {"prompt_tokens", "cached_tokens", "loaded_tokens", "held_tokens"}
    assert trails[1][-1][2]["cached_tokens"] == 0.0 < trails[1][-1][2]["prompt_tokens"]
    assert set(trails[1][0][0]) - set(trails[0][0][0]) == {"pool_cached"}
    tasks = {f"class/agent/{key}" for key in ("tasks_completed", "agent_hours", "think_hours")}
    assert set(trails[2][0][2]) - set(trails[0][0][2]) == tasks


def test_published_tasks_have_none() -> None:
    for name in ("edge", "enterprise", "sovereign", "hyperscale"):
        site = load_site(name)
        assert not site.caches
        assert all(site.known_classes[cls].session is None for cls in site.mix)
    env = AIFactoryEnv(site="edge")
    assert len(env.factory.params.cache) == len(env.factory.params.session) == 0
    assert "pool_cached" not in env.observation_layout.slices


# --------------------------------------------------------------------------------------------------- what is found, and saved


@pytest.mark.parametrize("resolution", ["cohort", "coarse", "request"])
def test_one_pool_that_forgets_nothing_finds_every_following_turn(resolution: str) -> None:
    scale = 0.1 if resolution == "request" else 1.0
    env = make(small_site(CacheConfig(hbm_gb=9000.0)), resolution=resolution, demand_scale=scale)
    info = run(env)
    drawn = resolution == "request"
    # At request resolution by chance: the deviation is that of some ten thousand requests of uneven lengths.
    assert hit_share(info) == pytest.approx(FOLLOWING * REUSE, rel=0.03 if drawn else 1e-6)
    assert info["loaded_tokens"] == 0.0
    assert env.observation_space.shape is not None


def test_work_saved_is_that_of_the_tokens_found() -> None:
    """Server-seconds worked are those of all prompts less what is found: linear and quadratic part, to the rounding."""
    envs = [make(small_site(cache), warmup_s=0.0) for cache in (CacheConfig(hbm_gb=9000.0), None)]
    worked = []
    for env in envs:
        env.reset(seed=0)
        action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
        busy = 0.0
        for _ in range(20):
            _, _, _, _, _ = env.step(action)
            params, numbers = env.factory.params, state_of(env).pool[0, 0]
            servers = params.pool[0, PoolSpec.RACKS] * params.pool[0, PoolSpec.UNITS_PER_RACK]
            busy += float(numbers[Pool.STEP_BUSY_S]) * servers
        worked.append(busy + float(numbers[Pool.BACKLOG]))
    info = run(envs[0], 20)
    prompt, cached = info["prompt_tokens"], info["cached_tokens"]
    perf = envs[0].factory.params.perf[0]
    linear_s, fixed_s = prefill_work_s(perf, 1.0, 0.0)
    cells = envs[0].factory.params.cell
    per_token = float(cells[:, 1] @ cells[:, 3]) / float(cells[:, 1] @ cells[:, 2])
    saved = (linear_s + fixed_s) * cached
    saved += (
        prefill_work_s(perf, 0.0, 1.0)[0]
        * REUSE**2
        * FOLLOWING
        * per_token
        * prompt
        * cached
        / (FOLLOWING * REUSE * prompt)
    )
    assert perf[PREFILL_PER_TOKEN2_S] > 0.0 < perf[PREFILL_PER_TOKEN_S]
    assert worked[1] - worked[0] == pytest.approx(saved, rel=5e-3)
    assert worked[0] < 0.5 * worked[1]


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_every_prompt_token_is_computed_or_found(resolution: str) -> None:
    scale = 0.1 if resolution == "request" else 1.0
    env = make(small_site(), resolution=resolution, demand_scale=scale, warmup_s=0.0, drain=True, horizon_s=300.0)
    env.factory = Factory(env.task, log_lines=200_000)
    env.reset(seed=2)
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(action)
    state = state_of(env)
    lines = state.log[0, : state.site_int[0, SiteInt.LOGGED]]
    served = lines[np.isfinite(lines[:, Log.TTFT_S])]
    prompts = float(served[:, Log.COUNT] @ served[:, Log.PROMPT])
    assert info["class/agent/arrived"] == lines[:, Log.COUNT].sum()
    # Whatever began prefill inside the scored window; the last seconds' arrivals may begin after it.
    assert 0.97 * prompts < info["prompt_tokens"] <= prompts * (1.0 + 1e-9)
    assert 0.0 < info["cached_tokens"] < info["prompt_tokens"]


def test_a_larger_cache_finds_more() -> None:
    shares = [hit_share(run(make(small_site(CacheConfig(hbm_gb=gb))))) for gb in (20.0, 60.0, 200.0, 1000.0)]
    assert all(a < b for a, b in zip(shares, shares[1:], strict=False))
    assert shares[0] < 0.2 and shares[-1] > 0.6


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_spreading_sessions_costs_hits_and_routing_them_together_brings_them_back(resolution: str) -> None:
    scale = 0.05 if resolution == "request" else 0.5
    env = make(small_site(CacheConfig(hbm_gb=5000.0), 2), resolution=resolution, demand_scale=scale)
    layout = env.action_layout
    shares = []
    groups = 2
    for factors in ([1.0, 1.0], [math.exp(4.0), 0.0]):
        info = run(env, 15, action=layout.encode(clock=1.0, racks=layout.racks, route_prefill=[factors] * groups))
        # What is sent to a pool at a moment wanders around its share by a cohort.
        here = state_of(env).weight[0, PREFILL, 0]
        shares.append((hit_share(info), float(here @ here)))
    (spread, expected), (together, one) = shares
    assert one > 0.99 and 0.4 < expected < 0.7
    assert spread == pytest.approx(FOLLOWING * REUSE * expected, rel=0.06 if resolution == "request" else 2e-3)
    assert together > 1.3 * spread


def test_a_store_serves_every_pool() -> None:
    store = StoreConfig(gb=1e6, gb_s=1e5)
    spread = run(make(small_site(CacheConfig(hbm_gb=5000.0), 2)))
    stored = run(make(small_site(CacheConfig(hbm_gb=5000.0), 2, store)))
    only = run(make(small_site(None, 2, store)))
    assert hit_share(stored) == pytest.approx(FOLLOWING * REUSE, rel=1e-6)
    assert hit_share(only) == pytest.approx(FOLLOWING * REUSE, rel=1e-6)
    assert hit_share(spread) < 0.7 * hit_share(stored)
    # Loads are counted on arrival, what is found when prefill begins.
    assert only["loaded_tokens"] == pytest.approx(only["cached_tokens"], rel=0.01)
    assert 0.0 < stored["loaded_tokens"] < stored["cached_tokens"]


def test_sleeping_racks_lose_what_they_hold_and_a_store_does_not() -> None:
    def trail(store: StoreConfig | None) -> list[float]:
        env = make(small_site(CacheConfig(hbm_gb=5000.0), store=store, racks=4), demand_scale=0.3, horizon_s=3600.0)
        env.reset(seed=1)
        layout, found = env.action_layout, []
        for step in range(16):
            racks = layout.racks.copy()
            racks[0] = 4 if step < 6 else 1
            observation, _, _, _, _ = env.step(layout.encode(clock=1.0, racks=racks))
            found.append(float(observation[env.observation_layout["pool_cached"]][0]))
        return found

    alone, backed = trail(None), trail(StoreConfig(gb=1e6, gb_s=1e5))
    full = FOLLOWING * REUSE
    assert alone[5] == pytest.approx(full, rel=1e-5)
    # Three of four racks are asleep two minutes later, as the next tick notices; then sessions gather on the one that is left.
    assert min(alone[6:]) < 0.82 * full
    assert alone[-1] > 0.95 * full
    assert min(backed) == pytest.approx(full, rel=1e-5)


def test_host_memory_holds_more_and_takes_time() -> None:
    found, delays, loaded = [], [], []
    for cache in (
        CacheConfig(hbm_gb=20.0),
        CacheConfig(hbm_gb=20.0, host_gb=2000.0, host_gb_s=4000.0),
        CacheConfig(hbm_gb=2020.0),
        CacheConfig(hbm_gb=20.0, host_gb=2000.0, host_gb_s=0.05),
    ):
        env = make(small_site(cache))
        info = run(env)
        found.append(hit_share(info))
        delays.append(ttft_s(env))
        loaded.append(info["loaded_tokens"])
    small, tiered, large, slow = range(4)
    assert found[small] < 0.5 * found[tiered] and found[tiered] == pytest.approx(found[large], rel=1e-6)
    assert delays[large] < delays[tiered] < delays[small]
    assert loaded[small] == loaded[large] == 0.0 < loaded[tiered]
    # Loading that takes longer than prefill is not done.
    assert loaded[slow] < 0.05 * loaded[tiered] and delays[slow] < delays[small] + 0.05


def test_both_resolutions_agree() -> None:
    site = small_site(CacheConfig(hbm_gb=12.0, host_gb=24.0, host_gb_s=500.0), 2, rps=60.0)
    shares, delays, kept_s = [], [], []
    for resolution in ("cohort", "request"):
        env = make(site, resolution=resolution, warmup_s=600.0)
        info = run(env, 20)
        shares.append((hit_share(info), info["loaded_tokens"] / info["cached_tokens"]))
        delays.append(ttft_s(env))
        kept_s.append(state_of(env).cache[0, :2, Tier.HOST_S])
    assert 0.1 < shares[0][0] < 0.9 * FOLLOWING * REUSE
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    assert delays[0] == pytest.approx(delays[1], rel=0.1)
    assert kept_s[0] == pytest.approx(kept_s[1], rel=0.1)


# -------------------------------------------------------------------------------------------------------- characteristic time


def contexts_of(site: SiteConfig, kinds: tuple[Kind, ...], pool_shares: tuple[float, ...]) -> tuple[Any, Array]:
    """Return parameters and steady contexts of kinds of sessions."""
    params = make(site).factory.params
    contexts = np.zeros((len(kinds), len(params.pool), len(Context)))
    session = np.zeros((len(kinds), len(SessionSpec)))
    for number, kind in enumerate(kinds):
        session[number, SessionSpec.FOLLOWING] = 1.0 - 1.0 / kind.turns
        session[number, SessionSpec.REUSE_SHARE] = kind.reuse_share
        session[number, SessionSpec.THINK_S] = kind.think_s
        for pool, share in enumerate(pool_shares):
            contexts[number, pool, Context.PER_S] = share * kind.requests_per_s
            contexts[number, pool, Context.TOKENS_PER_S] = share * kind.requests_per_s * kind.prompt_tokens
            contexts[number, pool, Context.SEEN] = 1.0
    return params._replace(session=session), contexts


@pytest.mark.parametrize("pool_shares", [(1.0,), (0.7, 0.3)])
def test_hits_are_those_of_a_cache_that_drops_the_least_recently_used(pool_shares: tuple[float, ...]) -> None:
    kinds = (Kind(4.0, 6.0, 40.0, 1000.0, 0.8), Kind(2.0, 3.0, 200.0, 3000.0, 0.5))
    site = small_site(pools=len(pool_shares))
    params, contexts = contexts_of(site, kinds, pool_shares)
    kv_bytes = kv_bytes_per_token(model("deepseek-r1"))
    assert params.perf[0, PREFILL_KV_BYTES_PER_TOKEN] == kv_bytes
    for room in (1e5, 4e5, 1.2e6):
        rooms = [room * share for share in pool_shares]
        found = hit_shares(kinds, pool_shares, rooms, until_s=4000.0, from_s=1000.0, seed=1)
        for number, kind in enumerate(kinds):
            expected = 0.0
            for pool, share in enumerate(pool_shares):
                kept_s = characteristic_s(params, contexts, pool, rooms[pool] * kv_bytes)
                expected += share * share * (1.0 - 1.0 / kind.turns) * (1.0 - math.exp(-kept_s / kind.think_s))
            assert found[number] == pytest.approx(expected, abs=0.012)


def test_the_engine_finds_what_a_cache_of_sessions_finds() -> None:
    """The whole engine at both resolutions, against sessions one by one."""
    lengths = dataclasses.replace(
        request_class("chat").prompt, median=1500.0, sigma=0.01, minimum=1200.0, maximum=1900.0
    )
    cls = agent(prompt=lengths)
    kv_bytes = kv_bytes_per_token(model("deepseek-r1"))
    rps, room = 20.0, 0.9e6
    cache = CacheConfig(hbm_gb=room * kv_bytes / 1e9 / 2)
    oracle = hit_shares(
        [Kind(rps, TURNS, THINK_S, 1500.0, REUSE)], [1.0], [room], until_s=6000.0, from_s=2000.0, seed=5
    )
    assert 0.2 < oracle[0] < 0.75 * FOLLOWING
    for resolution in ("cohort", "request"):
        info = run(make(small_site(cache, classes=(cls,), rps=rps), resolution=resolution, warmup_s=600.0), 25)
        assert hit_share(info) == pytest.approx(oracle[0] * REUSE, rel=0.04)


def test_limits_of_the_characteristic_time() -> None:
    params, contexts = contexts_of(small_site(), (Kind(4.0, 6.0, 40.0, 1000.0, 0.8),), (1.0,))
    flow = 4000.0 * kv_bytes_per_token(model("deepseek-r1"))
    assert characteristic_s(params, contexts, 0, 0.0) == 0.0
    # A small cache is filled by what comes in; no room is ever too large for what is not asked for again.
    assert characteristic_s(params, contexts, 0, flow * 1e-3) == pytest.approx(1e-3, rel=1e-3)
    again = 5.0 / 6.0 * 0.8
    late_s = characteristic_s(params, contexts, 0, flow * 1e5)
    assert (1.0 - again) * late_s + again * 40.0 == pytest.approx(1e5, rel=1e-9)
    assert characteristic_s(params, np.zeros_like(contexts), 0, 1.0) == math.inf


def test_a_cache_that_nothing_leaves_ages_with_the_clock() -> None:
    """After all racks but one slept and woke again the cache knows nothing older than the time since."""
    env = make(small_site(CacheConfig(hbm_gb=400.0), racks=4), horizon_s=3600.0)
    env.reset(seed=0)
    layout = env.action_layout
    few = layout.racks.copy()
    few[0] = 1
    kept = []
    for step in range(30):
        env.step(layout.encode(clock=1.0, racks=layout.racks if not 3 <= step < 12 else few))
        kept.append(float(state_of(env).cache[0, 0, Tier.HBM_S]))
    assert kept[11] < 0.5 * kept[2]
    rises = np.diff(kept[12:])
    assert rises.max() <= 60.0 + 1e-6
    assert kept[-1] == pytest.approx(kept[2], rel=0.1)


# ---------------------------------------------------------------------------------------------------------------- traces


def naive_reuse(trace: Trace) -> list[list[tuple[int, float, int]]]:
    """Return (tokens, age, request) of what each request repeats, by looking back through all earlier requests."""
    assert trace.hash_ids is not None
    found: list[list[tuple[int, float, int]]] = []
    for i, blocks in enumerate(trace.hash_ids):
        left = int(trace.prompt_tokens[i]) - 1
        pieces: list[tuple[int, float, int]] = []
        for block in blocks:
            before = [j for j in range(i) if block in trace.hash_ids[j]]
            if not before or left == 0:
                break
            tokens = min(512, left)
            left -= tokens
            pieces.append((tokens, float(trace.arrival_s[i] - trace.arrival_s[before[-1]]), before[-1]))
        merged: list[tuple[int, float, int]] = []
        for tokens, age_s, owner in pieces:
            if merged and merged[-1][2] == owner:
                merged[-1] = (merged[-1][0] + tokens, age_s, owner)
            else:
                merged.append((tokens, age_s, owner))
        found.append(merged)
    return found


def talks(requests: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Return lines of a trace in Mooncake's form: sessions that grow, all behind one system prompt."""
    rng = np.random.default_rng(seed)
    lines, history, block = [], {}, 1
    for number in range(requests):
        session = int(rng.integers(0, 40))
        blocks = history.get(session, [0])
        new = int(rng.integers(1, 4))
        blocks = [*blocks, *range(block, block + new)]
        block += new
        history[session] = blocks[: max(2, len(blocks) - 1)] if len(blocks) < 30 else [0]
        tokens = 512 * len(blocks) - int(rng.integers(0, 512))
        lines.append(
            {"timestamp": 1500 * number, "input_length": tokens, "output_length": 60 + number % 50, "hash_ids": blocks}
        )
    return lines


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "talks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in talks()))
    return path


def test_reuse_of_a_trace_is_what_looking_back_finds(trace_path: Path) -> None:
    trace = load_trace(trace_path)
    found = reuse(trace)
    for i, pieces in enumerate(naive_reuse(trace)):
        own = slice(found.begin[i], found.begin[i + 1])
        assert found.tokens[own].tolist() == [piece[0] for piece in pieces]
        assert found.age_s[own] == pytest.approx([piece[1] for piece in pieces])
        assert found.seen_by[own].tolist() == [piece[2] for piece in pieces]
        assert (np.diff(found.age_s[own]) > 0).all()
        assert found.tokens[own].sum() < trace.prompt_tokens[i]
    plain = reuse(dataclasses.replace(trace, hash_ids=None))
    assert len(plain.tokens) == 0 and len(plain.begin) == len(trace) + 1 and not plain.begin.any()


@pytest.mark.parametrize("resolution", ["cohort", "request"])
@pytest.mark.parametrize(("gb", "rate_scale"), [(9000.0, 1.0), (9000.0, 2.5), (5.0, 1.0)])
def test_a_replayed_trace_finds_what_its_ids_say(
    trace_path: Path, resolution: str, gb: float, rate_scale: float
) -> None:
    trace = load_trace(trace_path)
    repeated = reuse(trace)
    site = small_site(CacheConfig(hbm_gb=gb), classes=(agent(session=None),), rps=20.0, racks=1)
    env = make(
        site, trace=trace_path, trace_class="agent", trace_repeat=True, rate_scale=rate_scale,
        resolution=resolution, horizon_s=None, warmup_s=120.0,
    )  # fmt: skip
    env.reset(seed=0)
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
    begin_s = float(state_of(env).cache[0, 0, Tier.HBM_S])
    owner = np.repeat(np.arange(len(trace)), np.diff(repeated.begin))
    inside = 0
    for step in range(10):
        _, _, _, _, info = env.step(action)
        end_s = float(state_of(env).cache[0, 0, Tier.HBM_S])
        now = (trace.arrival_s[owner] >= 60.0 * step) & (trace.arrival_s[owner] < 60.0 * step + 60.0)
        inside += repeated.tokens[now & (repeated.age_s <= 0.5 * (begin_s + end_s))].sum()
        begin_s = end_s
    ideal = repeated.tokens.sum() / trace.prompt_tokens.sum()
    if gb > 1000.0:
        # Half of the last copy's requests look for ones that the copy leaves out.
        assert hit_share(info) == pytest.approx(ideal, rel=0.02 if rate_scale == 1.0 else 0.15)
        assert rate_scale == 1.0 or hit_share(info) < ideal
        return
    assert inside < 0.95 * repeated.tokens.sum()
    assert hit_share(info) == pytest.approx(inside / trace.prompt_tokens.sum(), rel=0.03)


@pytest.mark.parametrize("room_tokens", [3e4, 1e5, 3e5])
def test_a_replayed_trace_finds_what_a_cache_of_its_blocks_finds(trace_path: Path, room_tokens: float) -> None:
    trace = load_trace(trace_path)
    gb = room_tokens * kv_bytes_per_token(model("deepseek-r1")) / 1e9
    site = small_site(CacheConfig(hbm_gb=gb), classes=(agent(session=None),), rps=20.0, racks=1)
    env = make(site, trace=trace_path, trace_class="agent", trace_repeat=True, horizon_s=None, warmup_s=600.0)
    # The characteristic time is that of many contexts; here are a few dozen, and they grow.
    assert hit_share(run(env, 10)) == pytest.approx(lru_hit_share(trace, room_tokens), abs=0.09)


def test_a_cache_of_blocks_finds_less_the_smaller_it_is(trace_path: Path) -> None:
    trace = load_trace(trace_path)
    shares = [lru_hit_share(trace, room) for room in (0.0, 1e4, 1e5, 1e6, math.inf)]
    assert shares[0] == 0.0
    assert all(a <= b for a, b in zip(shares, shares[1:], strict=False))
    assert shares[-1] == pytest.approx(reuse(trace).tokens.sum() / trace.prompt_tokens.sum())
    assert lru_hit_share(dataclasses.replace(trace, hash_ids=None), math.inf) == 0.0


def test_a_trace_without_ids_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    rows = "".join(f"{2.0 * number},{800 + number % 90},50\n" for number in range(300))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    site = small_site(classes=(agent(),), rps=20.0, racks=1)
    info = run(make(site, trace=path, trace_class="agent", horizon_s=None, warmup_s=0.0), 5)
    assert info["cached_tokens"] == 0.0 < info["prompt_tokens"]
    assert "class/agent/tasks_completed" not in info


# ------------------------------------------------------------------------------------------------------------ tasks, and the rest


def test_tasks_and_hours_of_agents() -> None:
    env = make(small_site(), drain=True)
    info = run(env, 20)
    counters = state_of(env).cls[0, 0]
    met, missed = counters[Class.MET], counters[Class.MISSED]
    assert missed == 0.0
    assert info["class/agent/tasks_completed"] == pytest.approx(met / TURNS)
    # Little's law: time in the system is the mean stay times the requests that were answered.
    assert info["class/agent/agent_hours"] * 3600.0 == pytest.approx(counters[Class.BUSY_S])
    least = counters[Class.TTFT_SUM_S] / counters[Class.TTFT_COUNT]
    assert counters[Class.BUSY_S] > counters[Class.ANSWERED] * least
    both = info["class/agent/think_hours"] / FOLLOWING + info["class/agent/agent_hours"]
    assert both * 3600.0 == pytest.approx(counters[Class.ANSWERED] * THINK_S)


def test_one_broken_turn_breaks_a_task() -> None:
    levers = ("clock", "active_racks", "admission")
    env = make(small_site(), levers=levers)
    layout = env.action_layout
    info = run(env, 20, action=layout.encode(clock=1.0, racks=layout.racks, admitted=0.9))
    decided = info["class/agent/met"] + info["class/agent/missed"]
    share = info["class/agent/attainment"]
    assert share < 0.92
    assert info["class/agent/tasks_completed"] == pytest.approx(decided / TURNS * share**TURNS, rel=0.02)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_snapshot_and_restore(resolution: str) -> None:
    scale = 0.05 if resolution == "request" else 1.0
    site = small_site(CacheConfig(40.0, 80.0, 100.0), 2, StoreConfig(200.0, 50.0))
    env = make(site, resolution=resolution, demand_scale=scale)
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (9, env.action_layout.size)).astype(np.float32)
    for action in actions[:3]:
        env.step(action)
    saved = env.snapshot()
    first = [env.step(action) for action in actions[3:]]
    env.restore(saved)
    second = [env.step(action) for action in actions[3:]]
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one[0], two[0]) and one[1] == two[1] and one[4] == two[4]
    assert state_of(env).cache[0, -1, Store.UPDATED_S] > 0.0
    assert np.isfinite(first[-1][0]).all()


def test_describe_tells_what_the_engine_finds() -> None:
    """The steady state of ``describe`` against the engine under the same conditions: all racks, routing by capacity."""
    site = load_site(AGENTS)
    pools = (*site.pools[:-1], dataclasses.replace(site.pools[-1], hold_share=0.05))
    calm = tuple(dataclasses.replace(cls, demand=DemandProfile(overdispersion_sigma=0.0)) for cls in site.own_classes)
    site = dataclasses.replace(site, pools=pools, own_classes=calm)
    env = make(site, warmup_s=3600.0)
    info = run(env, 20)
    params, classes = env.factory.params, env.classes
    rate = site.demand_rps * np.array([site.mix[cls.name] for cls in classes])
    kept = steady_cache(site, params, rate)
    prompts = rate * np.array([cls.prompt.mean() for cls in classes])
    assert hit_share(info) == pytest.approx(float(prompts @ kept.found.sum(axis=1)) / prompts.sum(), rel=0.02)
    assert info["held_tokens"] / info["prompt_tokens"] == pytest.approx(
        float(prompts @ kept.found[:, 3]) / prompts.sum(), rel=0.05
    )
    tiers = state_of(env).cache[0]
    assert tiers[:2, Tier.HBM_S] == pytest.approx(kept.hbm_s[:2], rel=0.1)
    assert tiers[:2, Tier.HOST_S] == pytest.approx(kept.host_s[:2], rel=0.1)
    assert "store" in describe(str(AGENTS)) and "KV kept" not in describe("edge")


def test_a_row_of_many_is_the_single_environment() -> None:
    settings = {"scenario": "burst", "horizon_s": 600.0, "warmup_s": 120.0, "lambda_tokens_per_joule": 1.0}
    single = AIFactoryEnv(site=AGENTS, **settings)
    rows = gymnasium.make_vec(
        "ai_factory/Custom-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        threads=2,
        site=str(AGENTS),
        **settings,
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, single.action_layout.size)).astype(np.float32)
    rows.reset(seed=5)
    single.reset(seed=5)
    for action in actions:
        seen, _, _, _, infos = rows.step(action)
        observation, _, _, _, info = single.step(action[0])
        assert np.array_equal(seen[0], observation)
        assert all(infos[key][0] == value for key, value in info.items())
    assert info["cached_tokens"] > 0.0 < info["loaded_tokens"]
    rows.close()


def test_rules_serve_a_site_with_caches() -> None:
    baselines = pytest.importorskip("ai_factory_baselines", reason="needs the baselines package")
    env = make(load_site(AGENTS))
    for name in ("uniform", "length_aware"):
        rule = baselines.make(name, env)
        observation, _ = env.reset(seed=0)
        for _ in range(5):
            action, _ = rule.predict(observation)
            observation, _, _, _, info = env.step(action)
        assert info["sla_attainment"] > 0.95 and info["cached_tokens"] > 0.0


def test_validate_says_when_one_half_is_missing() -> None:
    site = load_site(AGENTS)
    assert findings(site) == []
    bare = dataclasses.replace(
        site, kv_store=None, pools=tuple(dataclasses.replace(pool, cache=None) for pool in site.pools)
    )
    assert any("has a session, but no pool keeps KV" in text for text in findings(bare))
    assert any("no class has a session" in text for text in findings(small_site(classes=(agent(session=None),))))


def test_chance_does_not_depend_on_what_the_operator_does() -> None:
    env = make(small_site(pools=2), resolution="request", demand_scale=0.05, levers=("route_prefill", "admission"))
    drawn = []
    for value in (0.0, -0.7):
        run(env, 5, action=np.full(env.action_layout.size, value, np.float32))
        drawn.append(state_of(env).rng[0, CHANCE].copy())
    assert np.array_equal(*drawn)
    assert drawn[0].any()


def test_pools_without_a_cache_find_nothing() -> None:
    site = small_site(pools=2)
    bare = dataclasses.replace(site.pools[1], cache=None)
    env = make(dataclasses.replace(site, pools=(site.pools[0], bare, site.pools[2])))
    run(env)
    tiers = state_of(env).cache[0]
    assert tiers[0, Tier.CACHED] > 0.0 == tiers[1, Tier.CACHED] < tiers[1, Tier.PROMPT]
    assert (env.factory.params.pool[2:, PoolSpec.PHASE] != PREFILL).all() and not tiers[2].any()


def test_a_site_file_has_caches_and_sessions(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(
        """
        [agent]
        description = "an agent"
        requests_per_task = 20
        prompt = { median = 6000, sigma = 0.6, minimum = 64, maximum = 60000 }
        output = { median = 200, sigma = 0.6, minimum = 1, maximum = 2000 }
        slo = { ttft_a = 2.0, ttft_b = 1e-4, ttft_c = 1e-9, tpot = 0.08, patience = 30.0 }
        session = { reuse_share = 0.9, think = 20.0 }
        """
    )
    (tmp_path / "site.toml").write_text(
        """
        name = "Cached"
        cap_w = 1.2e6
        model = "deepseek-r1"
        demand_rps = 100.0
        [mix]
        agent = 1.0
        [own]
        classes = "classes.toml"
        [kv_store]
        gb = 100000
        gb_s = 200
        [[pools]]
        rack = "gb300_nvl72"
        phase = "prefill"
        racks = 3
        dp = 4
        cache = { hbm_gb = 1000, host_gb = 8000, host_gb_s = 2000 }
        [[pools]]
        rack = "gb300_nvl72"
        phase = "decode"
        racks = 3
        dp = 8
        mtp = true
        """
    )
    site = load_site(tmp_path / "site.toml")
    assert site.pools[0].cache == CacheConfig(1000, 8000, 2000) and site.kv_store == StoreConfig(100000, 200)
    assert site.known_classes["agent"].session == Session(0.9, 20.0)
    assert {note.key for note in load_classes(tmp_path / "classes.toml")["agent"].provenance} >= {
        "session.reuse_share",
        "session.think",
    }
    info = run(make(site), 3)
    assert hit_share(info) == pytest.approx(0.95 * 0.9, rel=0.02)


def bad(**changes: Any) -> Any:
    """Return a table of the pools of a good site with one pool changed."""
    return {"rack": "gb300_nvl72", "phase": "prefill", "racks": 4, "dp": 4, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pools": [bad(cache={"hbm": 3})]}, "cache.*'hbm'.*'hbm_gb'"),
        ({"pools": [bad(cache=3)]}, "cache: 3 is not allowed; must be a table"),
        ({"pools": [bad(cache={})]}, "neither hbm_gb nor host_gb"),
        ({"pools": [bad(cache={"hbm_gb": -1.0})]}, "hbm_gb.*-1"),
        ({"pools": [bad(cache={"host_gb": 10.0})]}, "host_gb_s: 0.0 is not allowed with host_gb 10"),
        ({"pools": [bad(cache={"hbm_gb": 30000.0})]}, "hbm_gb: 30000 is not allowed; weights leave"),
        ({"pools": [bad(), bad(phase="decode", dp=8, cache={"hbm_gb": 5})]}, "cache: is a setting of prefill pools"),
        ({"kv_store": {"gb": 5.0}}, "kv_store.*gb_s"),
        ({"kv_store": {"gb": 0.0, "gb_s": 1.0}}, "kv_store.gb"),
        ({"kv_store": 7}, "kv_store: 7 is not allowed; must be a table"),
    ],
)
def test_mistakes_of_a_site_are_named(changes: dict[str, Any], message: str) -> None:
    table = {
        "name": "Bad",
        "cap_w": 1.2e6,
        "model": "deepseek-r1",
        "demand_rps": 500.0,
        "mix": {"chat": 1.0},
        **changes,
    }
    pools = table.get("pools", [bad()])
    if len(pools) == 1:
        pools = [*pools, bad(phase="decode", dp=8, mtp=True)]
    with pytest.raises(ConfigError, match=message):
        AIFactoryEnv(site={**table, "pools": pools}, lambda_tokens_per_joule=1.0)


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: Session(1.0, 30.0), "reuse_share"),
        (lambda: Session(0.5, 0.0), "think_s"),
        (lambda: agent(requests_per_task=1.0), "requests_per_task: 1.0 is not allowed with a session"),
    ],
)
def test_mistakes_of_a_session_are_named(make_one: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_one()


# --------------------------------------------------------------------------------------------------------- KV held in decode


def holding(hold_share: float, **settings: Any) -> SiteConfig:
    """Return a site without prefix caches whose decode pool holds contexts between turns."""
    site = small_site(None, **settings)
    return dataclasses.replace(
        site, pools=(*site.pools[:-1], dataclasses.replace(site.pools[-1], hold_share=hold_share))
    )


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_kv_held_between_turns_needs_neither_prefill_nor_transfer(resolution: str) -> None:
    scale = 0.05 if resolution == "request" else 1.0
    bare = make(small_site(None), resolution=resolution, demand_scale=scale, warmup_s=600.0)
    without = run(bare)
    env = make(holding(0.5), resolution=resolution, demand_scale=scale, warmup_s=600.0)
    info = run(env)
    drawn = resolution == "request"
    assert info["held_tokens"] == info["cached_tokens"]
    assert hit_share(info) == pytest.approx(FOLLOWING * REUSE, rel=0.03 if drawn else 1e-9)
    # Little's law: contexts that will be asked for again, for the time until they are.
    tokens = env.factory.params.cell[:, 1] @ (env.factory.params.cell[:, 2] + env.factory.params.cell[:, 4])
    held = state_of(env).pool[0, -1, Pool.HELD]
    assert held == pytest.approx(400.0 * scale * FOLLOWING * tokens * THINK_S, rel=0.15 if drawn else 0.03)
    assert ttft_s(env) < ttft_s(bare)
    assert info["class/agent/arrived"] == without["class/agent/arrived"]
    sent = [float(state_of(e).pool[0, 0, Pool.TRANSFER_FREE_S]) for e in (env, bare)]
    assert sent[0] < sent[1]


def test_what_has_no_room_is_not_held() -> None:
    probe = make(holding(0.5))
    run(probe)
    most = float(state_of(probe).pool[0, -1, Pool.HELD])
    room = 0.5 * most
    params = probe.factory.params
    units = params.pool[-1, PoolSpec.RACKS] * params.pool[-1, PoolSpec.UNITS_PER_RACK]
    share = room / (units * params.perf[-1, DECODE_KV_CAPACITY_TOKENS])
    env = make(holding(share))
    info = run(env)
    assert state_of(env).pool[0, -1, Pool.HELD] == pytest.approx(room)
    assert hit_share(info) == pytest.approx(0.5 * FOLLOWING * REUSE, rel=0.05)


def test_held_kv_takes_room_from_requests() -> None:
    """Where KV memory is short, contexts that are held make requests wait; classes may be left out of it."""
    chat = request_class("chat")
    prompt = dataclasses.replace(chat.prompt, median=30000.0, sigma=0.1, minimum=20000.0, maximum=40000.0)
    held, in_flight, wait_s = [], [], []
    for share, hold in ((0.0, True), (0.9, True), (0.9, False)):
        cls = agent(prompt=prompt, session=Session(REUSE, 600.0, hold), ttft_a_s=20.0, patience_s=60.0)
        site = holding(share, classes=(cls,), rps=450.0)
        prefill, decode = (
            dataclasses.replace(pool, racks=racks) for pool, racks in zip(site.pools, (160, 1), strict=True)
        )
        env = make(dataclasses.replace(site, cap_w=9e7, pools=(prefill, decode)), warmup_s=900.0)
        run(env, 5)
        numbers = state_of(env).pool[0, -1]
        held.append(numbers[Pool.HELD])
        in_flight.append(numbers[Pool.IN_FLIGHT])
        wait_s.append(numbers[Pool.WAIT_S])
        room = (
            env.factory.params.pool[-1, PoolSpec.UNITS_PER_RACK]
            * env.factory.params.perf[-1, DECODE_KV_CAPACITY_TOKENS]
        )
        assert numbers[Pool.RESERVED] + numbers[Pool.HELD] <= room * (1.0 + 1e-9)
    assert held[0] == held[2] == 0.0 and held[1] == pytest.approx(0.9 * room)
    assert in_flight[0] == in_flight[2] > 1.5 * in_flight[1]
    assert wait_s[0] == wait_s[2] == 0.0 and wait_s[1] > 10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_share": 0.95}, "hold_share.*0.95"),
        ({"hold_share": "half"}, "hold_share.*'half'"),
    ],
)
def test_mistakes_of_holding_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(small_site().pools[-1], **changes)
    with pytest.raises(ConfigError, match="hold_share: is a setting of decode pools"):
        dataclasses.replace(small_site().pools[0], hold_share=0.5)


def test_holding_is_refused_where_it_cannot_be(trace_path: Path) -> None:
    with pytest.raises(ConfigError, match="hold_share: 0.5 is not possible with a trace"):
        make(holding(0.5, classes=(agent(),)), trace=trace_path, trace_class="agent", horizon_s=None)
    with pytest.raises(ConfigError, match="hold: 3 is not allowed"):
        Session(0.5, 10.0, 3)  # type: ignore[arg-type]
