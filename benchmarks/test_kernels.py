"""Micro-benchmarks: ``python -m pytest benchmarks/ --benchmark-only`` (pytest-benchmark, extra ``dev``).

For comparing two states of the code on one machine (``--benchmark-save``, ``--benchmark-compare``); nothing is asserted about
time. Ticks, steps and reports are called from Python: the call is part of them. The first run compiles the loops of ``benchmarks/kernels.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ai_factory_baselines as baselines
from ai_factory_gym import AIFactoryEnv, AIFactoryVectorEnv
from ai_factory_gym.engine.layout import Pool, SiteSpec
from ai_factory_gym.engine.reference import Reference
from ai_factory_gym.factory import Factory
from benchmarks import kernels
from benchmarks.measure import drawn_actions

pytest.importorskip("pytest_benchmark")

COUNT = 10_000
"""Calls of a small kernel per measurement: nanoseconds each are microseconds / 10."""

PREFILL_POOL, DECODE_POOL = 0, 3
ROWS = (1, 64)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).random(COUNT)


@pytest.fixture(scope="module")
def warm() -> dict[int, AIFactoryVectorEnv]:
    """Environments of ``ROWS`` rows half an hour after noon."""
    found = {}
    for rows in ROWS:
        env = AIFactoryVectorEnv(rows, site="edge", start_time_s=43_200.0)
        env.reset(seed=1)
        for action in drawn_actions(30, rows, env.action_layout.size):
            env.step(action)
        found[rows] = env
    return found


def factory_of(env: AIFactoryVectorEnv) -> Factory:
    return env.fleet.first


def _handed(factory: Factory) -> tuple[Any, Any]:
    """Return what kernels are handed of parameters and state."""
    return Reference(factory.params).handed, factory.engine.reference.handed


# ------------------------------------------------------------------------------------------------------ small kernels


def test_heap(benchmark: Any, values: np.ndarray) -> None:
    keys, slots = np.zeros(COUNT), np.zeros(COUNT, dtype=np.int32)
    assert benchmark(kernels.heap_through, keys, slots, values) == int(values.argmax())


def test_calendar(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], values: np.ndarray) -> None:
    factory = Factory(factory_of(warm[1]).task)
    factory.begin([0], [np.random.default_rng(0)], [None])
    empty = factory.engine.snapshot()
    pool = empty.state.pool[0, DECODE_POOL]
    slots = empty.state.free.shape[1]
    finishes = pool[Pool.G] + 1.0 + 4000.0 * values[:slots]
    # No cohorts: their slots are used freely below.
    for array in (empty.state.pool_int, empty.state.heap_key):
        array[:] = 0
    empty.state.calendar[:] = -1

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        factory.engine.restore(empty)
        return (*_handed(factory), DECODE_POOL, finishes), {}

    last = benchmark.pedantic(kernels.calendar_through, setup=setup, rounds=50, warmup_rounds=2)
    assert last == int(finishes.argmax())


@pytest.mark.parametrize("mean", [0.5, 5.0, 500.0])
def test_poisson(benchmark: Any, mean: float) -> None:
    stream = np.random.default_rng(0).integers(1, 2**63, 4, dtype=np.uint64)
    assert benchmark(kernels.poisson_sum, stream, mean, COUNT) > 0


def test_decode_iteration(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], values: np.ndarray) -> None:
    coef = factory_of(warm[1]).params.perf[DECODE_POOL]
    assert benchmark(kernels.iterations_sum, coef, 1.0 + 1000.0 * values, 2000.0, 0.8) > 0.0


def test_pool_power(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], values: np.ndarray) -> None:
    factory = factory_of(warm[1])
    clocks = 0.4 + 0.6 * values
    assert benchmark(kernels.power_sum, *_handed(factory), DECODE_POOL, clocks) > 0.0


# --------------------------------------------------------------------------------------- a tick of one pool, and steps


def _tick(benchmark: Any, env: AIFactoryVectorEnv, pool: int) -> None:
    """Time the advance of one pool by a tick, from the same state in every round."""
    factory = factory_of(env)
    saved = factory.engine.snapshot()
    tick_s = float(factory.params.site[SiteSpec.TICK_S])
    begin_s = float(saved.state.pool[0, pool, Pool.TIME_S])

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        factory.engine.restore(saved)
        params, state = _handed(factory)
        kernels.admit_tick(params, state, begin_s, tick_s, float(factory.engine.path_start_s[0]))
        return (params, state, pool, begin_s + tick_s), {}

    benchmark.pedantic(kernels.advance_pool, setup=setup, rounds=50, warmup_rounds=2)
    assert factory.engine.state.pool[0, pool, Pool.TIME_S] == begin_s + tick_s
    factory.engine.restore(saved)


def test_prefill_tick(benchmark: Any, warm: dict[int, AIFactoryVectorEnv]) -> None:
    _tick(benchmark, warm[1], PREFILL_POOL)


def test_decode_tick(benchmark: Any, warm: dict[int, AIFactoryVectorEnv]) -> None:
    _tick(benchmark, warm[1], DECODE_POOL)


@pytest.mark.parametrize("rows", ROWS)
def test_control_step(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], rows: int) -> None:
    factory = factory_of(warm[rows])
    saved = factory.snapshot()
    index = np.arange(rows)
    outcome = factory.new_outcome()
    actions = drawn_actions(1, rows, factory.action_layout.size)[0].astype(np.float64)

    def setup() -> None:
        factory.restore(saved)
        factory.put(index, actions)

    benchmark.pedantic(factory.run, args=(index, outcome), setup=setup, rounds=30, warmup_rounds=2)
    assert np.isfinite(outcome.reward).all()
    factory.restore(saved)


@pytest.mark.parametrize("rows", ROWS)
def test_observation_and_info(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], rows: int) -> None:
    factory = factory_of(warm[rows])
    outcome = factory.new_outcome()
    benchmark(factory.report, np.arange(rows), outcome)
    assert outcome.observation.any()


@pytest.mark.parametrize("rows", ROWS)
def test_reactive(benchmark: Any, warm: dict[int, AIFactoryVectorEnv], rows: int) -> None:
    factory = factory_of(warm[rows])
    outcome = factory.new_outcome()
    factory.report(np.arange(rows), outcome)
    rule = baselines.make("reactive", AIFactoryEnv(site="edge"))
    action, _ = benchmark(rule.predict, outcome.observation)
    assert action.shape == (rows, factory.action_layout.size)
