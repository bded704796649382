"""GPU power against measured draws, and the program that fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.physics.performance import (
    PREFILL_STREAM_PER_TOKEN_S,
    decode_iteration_s,
    prefill_coefficients,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, power_coefficients, rack_power_w
from calibration import catalogue_file, mlperf, power, silicon
from tests.reference import needs_reference


def draws() -> tuple[power.Draw, ...]:
    return power.measured_draws(silicon.reference_folder())


def test_every_constant_is_in_the_catalogues_file(tmp_path: Path) -> None:
    path = tmp_path / "racks.toml"
    before = catalogue_file.RACKS_PATH.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    catalogue_file.write(path, power.present(), "a test")
    after = path.read_text(encoding="utf-8")
    assert after.count('status = "calibrated", source = "a test"') == len(power.GENERATIONS) * len(power.CONSTANTS)
    assert len(before.splitlines()) == len(after.splitlines())


@pytest.mark.parametrize("rack", ["h200_sxm8", "b200_sxm8"])
def test_a_server_draws_more_with_more_requests(rack: str) -> None:
    for model, precision, gpus in power.LIGHT_DECODE:
        server = power.server(rack, model, precision, gpus, 150, 717)
        watts, seconds = np.array([server.at(batch) for batch in 2.0 ** np.arange(10)]).T
        # Up to a plateau: more requests lengthen the host's part of an iteration too.
        assert (np.diff(watts[:7]) >= 0.0).all()
        assert watts[-1] > 0.97 * watts.max()
        assert (np.diff(seconds) > 0.0).all()
        # More than KV memory holds wait.
        assert server.at(1e9) == server.at(1e8)


def test_what_is_known_beside_the_draws_holds() -> None:
    for name, (value, _) in power.facts().items():
        low, high = (0.95, 1.05) if "saturated" in name else (0.25, 0.36)
        assert low <= value <= high, name


def test_limits_cost_what_was_measured() -> None:
    for limit, measured in power.MEASURED_LIMITS.items():
        prefill, decode = power.performance_under(limit)
        assert decode == pytest.approx(measured[1], abs=0.15)
        if limit > 0.5:
            assert prefill == pytest.approx(measured[0], abs=0.1)
    prefill, decode = power.performance_under(power.SITE_LIMIT)
    # NVIDIA's site figure, 6-9 % of output, lies between a site that only prefills and one that only decodes.
    assert prefill < 0.91 and decode > 0.94


@pytest.mark.parametrize("rack_name", ["gb300_nvl72", "vera_rubin_nvl144"])
def test_a_rack_at_mlperf_server_load_stays_within_its_nameplate(rack_name: str) -> None:
    benchmark = mlperf.BENCHMARKS["deepseek-r1"]
    point = mlperf.best_point(rack_name, benchmark, mlperf.server_limit_s(benchmark))
    iteration_s, compute_s, memory_s = decode_iteration_s(point.decode, point.batch, point.context_tokens, 1.0)
    coef = np.array(power_coefficients(rack_name))
    decode_w = gpu_power_w(coef, 1.0, 1.0, compute_s / iteration_s, memory_s / iteration_s)
    prefill = np.array(prefill_coefficients(rack_name, benchmark.model, precision=benchmark.precision, dp=4))
    scaling_s, fixed_s = prefill_work_s(prefill, benchmark.prompt_tokens, benchmark.prompt_tokens**2)
    lane_s = scaling_s + fixed_s
    stream_s = prefill[PREFILL_STREAM_PER_TOKEN_S] * benchmark.prompt_tokens
    prefill_w = gpu_power_w(coef, 1.0, 1.0, scaling_s / lane_s, stream_s / lane_s)
    gpu_w = point.prefill_share * prefill_w + (1.0 - point.prefill_share) * decode_w
    nameplate_w = find_rack(rack_name).group().profile().nameplate_w
    # On GB300 decode at this load is at TDP, and a rack whose GPUs are at TDP draws its nameplate.
    assert 0.5 * nameplate_w < rack_power_w(coef, gpu_w) <= nameplate_w


@needs_reference
def test_draws_of_every_configuration_are_read() -> None:
    found = draws()
    labels = {draw.label for draw in found}
    assert len(labels) == 23
    assert {draw.model for draw in found} == set(power.MODELS.values())
    for label in labels:
        curve = [draw for draw in found if draw.label == label]
        assert len(curve) >= 3
        assert [draw.batch for draw in curve] == sorted({draw.batch for draw in curve})
        assert not curve[0].host_limited
        assert all(100.0 < draw.watts < draw.tdp_w for draw in curve)
        # Watts were measured at the best batch, and so was the time per iteration.
        assert any(draw.itl_s is not None for draw in curve)
    assert sum(draw.host_limited for draw in found) < 0.05 * len(found)


@needs_reference
def test_the_catalogue_predicts_measured_draws() -> None:
    found = draws()
    size = np.abs(power.errors(found, power.predictions(found)))
    for moe in (False, True):
        chosen = size[[draw.moe == moe for draw in found]]
        assert np.median(chosen) < (0.06 if moe else 0.04)
        assert np.mean(chosen) < 0.08
    assert power.predicted_w(found[0]) == power.predictions(found[:1])[0]


@needs_reference
def test_models_left_out_are_predicted_too() -> None:
    found = draws()
    size = np.abs(power.errors(found, power.cross_validate(found)))
    for moe in (False, True):
        assert np.median(size[[draw.moe == moe for draw in found]]) <= 0.08


@needs_reference
def test_a_fit_to_fewer_draws_does_not_get_worse() -> None:
    found = [draw for draw in draws() if not draw.host_limited][::4]
    before = np.abs(power.errors(found, power.predictions(found, power.constants_of(power._PRIOR)))).mean()
    now = np.abs(power.errors(found, power.predictions(found))).mean()
    after = np.abs(power.errors(found, power.predictions(found, power.fit(found)))).mean()
    assert after < 0.8 * before
    assert after < now + 0.005
