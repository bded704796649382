"""A steady site in the engine settles where ``serving_point`` says, at the same requests in flight.

The mapping between the two is written down in ``docs/model.md``. The engine replays requests of one length that arrive at random at
a constant rate (Poisson). Little's law, rate x time in the site, gives the number in flight, and ``serving_point`` is asked for
that many users on the same replicas. All requests are alike, so no difference comes from a mix of lengths.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import pytest

import ai_factory_gym  # noqa: F401 - registers the tasks
from ai_factory_gym.catalogue import Rack
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.engine.layout import Class, Pool, PoolSpec
from ai_factory_gym.operating_point import OperatingPoint, SteadySite
from ai_factory_gym.physics.performance import (
    PREFILL_FRONTEND_S,
    PREFILL_STREAM_PER_TOKEN_S,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, rack_power_w
from ai_factory_gym.physics.serving import ServingPoint, serving_point
from calibration.silicon import recalibrated

WARM_UP_S = 180.0
SCORED_S = 180.0


@dataclass(frozen=True)
class Setup:
    """A site of one prefill and one decode pool, and the same replicas as arguments of ``serving_point``."""

    rack: str
    model: str
    pools: tuple[dict[str, Any], dict[str, Any]]
    arguments: dict[str, Any]


SETUPS = {
    "gb300": Setup(
        "gb300_nvl72",
        "deepseek-r1",
        ({"racks": 1, "dp": 4}, {"racks": 2, "dp": 8, "mtp": True}),
        {
            "precision": "fp4",
            "prefill_workers": 18,
            "prefill_dp": 4,
            "decode_workers": 18,
            "decode_dp": 8,
            "mtp": True,
        },
    ),
    "h100": Setup(
        "h100_sxm8",
        "llama-3.1-70b",
        ({"racks": 3, "tp": 4, "precision": "fp8"}, {"racks": 6, "tp": 4, "precision": "fp8"}),
        {"precision": "fp8", "prefill_workers": 6, "prefill_tp": 4, "decode_workers": 12, "decode_tp": 4},
    ),
}


@dataclass(frozen=True)
class Measured:
    """What the engine did in the scored time.

    Attributes:
        requests_per_s: Output tokens over those of a request.
        ttft_s: Mean.
        tpot_s: Mean.
        batch: Mean requests in flight per decode replica.
        it_w: Mean IT power.
        prefill_w: That of the prefill pool.
        prefill_utilisation: Share of time a prefill lane works.
        turned_away: Requests turned away.
        steady: What the fluid model of ``operating_point`` says of the same site and rate.
        perf: Prefill coefficients.
        power: Power coefficients of the prefill pool.
        racks: Prefill racks.
    """

    requests_per_s: float
    ttft_s: float
    tpot_s: float
    batch: float
    it_w: float
    prefill_w: float
    prefill_utilisation: float
    turned_away: float
    steady: OperatingPoint
    perf: np.ndarray
    power: np.ndarray
    racks: float


@cache
def measured(name: str, prompt: int, output: int, users: int, resolution: str = "request") -> Measured:
    """Run the engine at 95 % of the rate that so many users per decode replica would make."""
    setup = SETUPS[name]
    users *= setup.arguments["decode_workers"]
    rate = 0.95 * predicted(setup.rack, setup, prompt, output, users).requests_per_s
    site = {
        "name": name,
        "cap_w": 1e10,
        "model": setup.model,
        "demand_rps": 1.0,
        "mix": {"chat": 1.0},
        "pools": [
            {"rack": setup.rack, "phase": phase, **pool}
            for phase, pool in zip(("prefill", "decode"), setup.pools, strict=True)
        ],
    }
    gaps = np.random.default_rng(7).exponential(1.0 / rate, int(1.1 * rate * (WARM_UP_S + SCORED_S)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
            writer.writerows((f"{arrival:.6f}", prompt, output) for arrival in np.cumsum(gaps))
        env: Any = gymnasium.make(
            "ai_factory/Edge-v0",
            site=site,
            scenario="steady",
            resolution=resolution,
            trace=path,
            trace_repeat=True,
            warmup_s=WARM_UP_S,
            horizon_s=SCORED_S,
            lambda_tokens_per_joule=1.0,
        ).unwrapped
    env.reset(seed=0)
    params = env.factory.params
    racks = params.pool[:, PoolSpec.RACKS]
    action = env.action_layout.encode(clock=np.ones(len(racks)), racks=racks)
    sums = np.zeros(4)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(action)
        pool = env.factory.engine.state.pool[0]
        sums += [
            pool[1, Pool.STEP_BATCH_S],
            pool[1, Pool.STEP_UNIT_S],
            pool[0, Pool.STEP_BUSY_S],
            pool[0, Pool.STEP_ENERGY_J],
        ]
    counters = env.factory.engine.state.cls[0].sum(axis=0)
    task = env.factory.task
    requests_per_s = info["output_tokens"] / output / SCORED_S
    return Measured(
        requests_per_s=requests_per_s,
        ttft_s=counters[Class.TTFT_SUM_S] / counters[Class.TTFT_COUNT],
        tpot_s=counters[Class.TPOT_SUM_S] / counters[Class.TPOT_COUNT],
        batch=sums[0] / sums[1],
        it_w=info["it_energy_j"] / SCORED_S,
        prefill_w=sums[3] / SCORED_S,
        prefill_utilisation=sums[2] / SCORED_S,
        turned_away=info["requests_rejected"],
        steady=SteadySite(task.site, task.classes, params).at(requests_per_s),
        perf=params.perf[0],
        power=params.power[0],
        racks=racks[0],
    )


def predicted(rack: str | Rack, setup: Setup, prompt: int, output: int, users: int) -> ServingPoint:
    return serving_point(
        rack, setup.model, prompt_tokens=prompt, output_tokens=output, concurrency=users, **setup.arguments
    )


def in_flight(found: Measured, output: int) -> int:
    """Little's law on the whole site."""
    return round(found.requests_per_s * (found.ttft_s + (output - 1) * found.tpot_s))


@pytest.mark.parametrize("users", [32, 256])
@pytest.mark.parametrize("name", SETUPS)
def test_the_engine_settles_at_the_serving_point(name: str, users: int) -> None:
    """At moderate and high load; long answers, so that the two models of queueing before prefill weigh little."""
    setup, output = SETUPS[name], 2048
    found = measured(name, 1024, output, users)
    point = predicted(setup.rack, setup, 1024, output, in_flight(found, output))
    assert found.turned_away == 0.0
    assert found.requests_per_s == pytest.approx(point.requests_per_s, rel=0.05)
    assert found.tpot_s == pytest.approx(point.tpot_s, rel=0.05)
    assert found.it_w == pytest.approx(point.power_w_per_gpu * point.gpus, rel=0.05)


@pytest.mark.parametrize("users", [32, 96])
@pytest.mark.parametrize("name", SETUPS)
def test_without_the_queue_term_they_agree_on_short_answers_too(name: str, users: int) -> None:
    """The queue term is a fit to closed benchmarks; the engine queues instead, here hardly at all.

    TTFT in the engine is longer by the first iteration and by what little queueing there is, and shorter by the wait for the
    pass under way.
    """
    setup, output = SETUPS[name], 512
    found = measured(name, 1024, output, users)
    generation = find_rack(setup.rack).group().architecture.id
    rack = recalibrated(find_rack(setup.rack), {generation: {"queue_factor": 0.0}})
    point = predicted(rack, setup, 1024, output, in_flight(found, output))
    assert found.turned_away == 0.0
    assert found.requests_per_s == pytest.approx(point.requests_per_s, rel=0.02)
    assert found.tpot_s == pytest.approx(point.tpot_s, rel=0.02)
    assert found.batch == pytest.approx(point.batch, rel=0.02)
    assert found.it_w == pytest.approx(point.power_w_per_gpu * point.gpus, rel=0.02)
    assert found.prefill_utilisation == pytest.approx(point.prefill_utilisation, abs=0.02)
    pass_s = found.perf[PREFILL_FRONTEND_S] - find_rack(setup.rack).group().architecture.frontend_disaggregated_s
    assert -0.02 < found.ttft_s + pass_s - point.ttft_s < 4.0 * point.tpot_s + 0.02 + pass_s


@pytest.mark.parametrize("name", SETUPS)
def test_cohorts_settle_where_requests_do(name: str) -> None:
    """Requests of equal lengths too: cohorts of a trace must not be slices of time."""
    requests, cohorts = (measured(name, 1024, 512, 96, resolution) for resolution in ("request", "cohort"))
    assert cohorts.requests_per_s == pytest.approx(requests.requests_per_s, rel=0.01)
    assert cohorts.tpot_s == pytest.approx(requests.tpot_s, rel=0.01)
    assert cohorts.it_w == pytest.approx(requests.it_w, rel=0.01)


@pytest.mark.parametrize("users", [32, 96])
@pytest.mark.parametrize("name", SETUPS)
def test_the_fluid_model_of_a_site_agrees_with_the_engine(name: str, users: int) -> None:
    found = measured(name, 1024, 512, users)
    assert found.steady.tpot_s[1] == pytest.approx(found.tpot_s, rel=0.02)
    assert found.steady.batch[1] == pytest.approx(found.batch, rel=0.03)
    assert found.steady.utilisation[0] == pytest.approx(found.prefill_utilisation, abs=0.02)
    assert sum(found.steady.pool_w) == pytest.approx(found.it_w, rel=0.02)


@pytest.mark.parametrize("users", [32, 96])
@pytest.mark.parametrize("name", SETUPS)
def test_prefill_power_is_that_of_its_activities(name: str, users: int) -> None:
    """The fixed time of passes keeps a lane busy but neither its compute units nor its memory."""
    found = measured(name, 1024, 512, users)
    scaling_s, fixed_s = prefill_work_s(found.perf, 1024.0, 1024.0**2)
    lane_s = scaling_s + fixed_s
    streaming = found.perf[PREFILL_STREAM_PER_TOKEN_S] * 1024.0 / lane_s
    gpu_w = gpu_power_w(found.power, 1.0, found.prefill_utilisation, scaling_s / lane_s, streaming)
    assert found.prefill_w == pytest.approx(found.racks * rack_power_w(found.power, gpu_w), rel=1e-4)
