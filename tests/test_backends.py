"""Evaluation on processes and on Ray: the same rows, the same errors. The tests on Ray need the `ray` extra."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ai_factory_baselines
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation import cli, evaluate
from tests import fake_factory
from tests.fake_factory import TASK, Jitter, Throttle, make_full_throttle

ROOT = Path(__file__).resolve().parent.parent
SEEDS = [2_000_000, 2_000_001, 2_000_002]


def run(policy: Any = Jitter, **changes: Any) -> Any:
    return evaluate(policy, TASK, **{"seeds": SEEDS, "n_jobs": 2, **changes}).episodes


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, not connected to anything. Tests that take it stand before those that share a cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return pytest.importorskip("ray", reason="needs the ray extra")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two cores that the caller has started and is connected to."""
    ray = pytest.importorskip("ray", reason="needs the ray extra")
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
    yield ray
    ray.shutdown()


# ------------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_backend_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="backend: unknown value 'rya'; allowed: local, ray. Did you mean 'ray'"):
        run(backend="rya")
    assert cli.main(lambda name, task: {name: Throttle}, ["--task", TASK, "--backend", "dask"]) == 2
    assert "backend: unknown value 'dask'" in capsys.readouterr().err


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"install ai-factory-gym\[ray\], or use 'local'"):
        run(backend="ray")


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(RuntimeError, match="A worker process died"):
        run(fake_factory.die_in_worker)


# -------------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.slow
def test_a_local_cluster_gives_the_rows_of_local_processes(ray: Any) -> None:
    assert not ray.is_initialized()
    rule = functools.partial(ai_factory_baselines.make, "reactive")
    settings: dict[str, Any] = {"seeds": 4, "horizon_s": 1800.0}
    alone = evaluate(rule, "ai_factory/Edge-v0", **settings)
    together = evaluate(rule, "ai_factory/Edge-v0", backend="ray", n_jobs=2, **settings)
    assert together.episodes == alone.episodes
    assert together.summary == alone.summary
    assert not ray.is_initialized()


@pytest.mark.slow
def test_one_command_starts_one_cluster(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    start = ray.init
    monkeypatch.setattr(ray, "init", lambda **given: (started.append(given), start(**given)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["--task", TASK, "--policies", "full", "--scenario", "diurnal", "burst", "--seeds", "2", "--jobs", "2"]
    assert not ray.is_initialized()
    assert cli.main(lambda name, task: {name: Jitter, "other": make_full_throttle}, [*words, "--backend", "ray"]) == 0
    assert len(started) == 1 and not ray.is_initialized()


def test_rows_are_the_same_for_any_number_of_actors(cluster: Any) -> None:
    alone = run(n_jobs=1)
    for jobs in (1, 2, 3):
        # The third actor never gets one of the two cores; the others do its work.
        assert run(backend="ray", n_jobs=jobs) == alone
    assert cluster.is_initialized()


def test_functions_of_a_script_reach_the_actors(cluster: Any) -> None:
    def make(env: Any) -> Throttle:
        return Throttle(0.5)

    assert run(make, backend="ray") == run(Throttle(0.5), n_jobs=1)


def test_errors_of_actors_arrive_as_they_are(cluster: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="the policy's own error"):
        run(fake_factory.fail_in_worker, backend="ray")
    with pytest.raises(ConfigError, match="scenario: unknown value 'diurnl'"):
        run(scenario="diurnl", backend="ray")


def test_an_actor_that_dies_is_reported(cluster: Any) -> None:
    with pytest.raises(RuntimeError, match="A worker on Ray died"):
        run(fake_factory.die_in_worker, backend="ray")


def test_what_cannot_be_sent_to_actors_is_refused(cluster: Any) -> None:
    policy = Throttle()
    policy.file = sys.stderr  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="policy: cannot be sent"):
        run(policy, backend="ray")


def test_actors_are_gone_and_cores_free_afterwards(cluster: Any) -> None:
    run(backend="ray")

    @cluster.remote(num_cpus=2)
    def whole_machine() -> int:
        return 5

    assert cluster.get(whole_machine.remote(), timeout=60) == 5


def test_bars_advance_with_the_episodes(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def bar(rows: Iterable[Any], total: int, **given: Any) -> Iterator[Any]:
        for row in rows:
            shown.append((row["seed"], total))
            yield row

    pytest.importorskip("tqdm")
    monkeypatch.setattr("tqdm.tqdm", bar)
    run(backend="ray", progress=True)
    assert shown == [(seed, 3) for seed in SEEDS]


@pytest.mark.slow
def test_the_cluster_of_the_environment_variable_is_used_and_left_alone(cluster: Any) -> None:
    address = cluster.get_runtime_context().gcs_address
    code = f"""
import ray
from ai_factory_gym.evaluation import evaluate
from tests.fake_factory import TASK, Throttle

def make(env):
    return Throttle(name=ray.get_runtime_context().gcs_address if ray.is_initialized() else "none")

print({{row["policy"] for row in evaluate(make, TASK, seeds={SEEDS}, n_jobs=2, backend="ray").episodes}})
assert not ray.is_initialized()
"""
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.strip() == str({address})
    assert cluster.get(cluster.put(5)) == 5
