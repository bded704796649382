"""The constants against measured serving points, and the programs that fit them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ai_factory_gym.catalogue import rack as find_rack
from calibration import mlperf, performance, silicon

REFERENCE = os.environ.get(silicon.REFERENCE_VARIABLE)
needs_reference = pytest.mark.skipif(
    not REFERENCE, reason=f"{silicon.REFERENCE_VARIABLE} names no folder of reference data"
)


def folder() -> Path:
    return silicon.reference_folder()


def test_variables_and_constants_are_two_forms_of_the_same() -> None:
    constants = performance.constants_of(performance.present())
    for generation, name in performance.GENERATIONS.items():
        architecture = find_rack(name).groups[0].architecture
        for field, value in constants[generation].items():
            if generation == "blackwell":
                assert value == pytest.approx(getattr(architecture, field), rel=2e-3), field


def test_recalibrated_changes_the_named_constant_only() -> None:
    rack = find_rack("b200_sxm8")
    changed = silicon.recalibrated(rack, {"blackwell": {"link_efficiency": 0.3}, "hopper": {"link_efficiency": 0.2}})
    assert changed.groups[0].architecture.link_efficiency == 0.3
    assert (
        silicon.recalibrated(changed, {"blackwell": {"link_efficiency": rack.groups[0].architecture.link_efficiency}})
        == rack
    )


def test_statistics_of_known_errors() -> None:
    found = performance.statistics(np.log([1.1, 0.8, 1.0, 3.0]))
    assert (found.count, found.within_2x) == (4, 0.75)
    assert found.median == pytest.approx(0.15)
    assert found.mean == pytest.approx((0.1 + 0.2 + 0.0 + 2.0) / 4)
    assert found.bias == pytest.approx(np.sqrt(1.1) - 1.0)


def test_writing_changes_values_and_status_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = performance.RACKS_PATH.read_text(encoding="utf-8")
    path = tmp_path / "racks.toml"
    path.write_text(before, encoding="utf-8")
    monkeypatch.setattr(performance, "RACKS_PATH", path)
    performance.write({"blackwell": {"link_efficiency": 0.1234}}, "a test")
    lines = [
        (old, new)
        for old, new in zip(before.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True)
        if old != new
    ]
    assert len(lines) == 1
    assert lines[0][1].startswith(
        'link_efficiency = { value = 0.1234, unit = "ratio", status = "calibrated", source = "a test"'
    )
    with pytest.raises(SystemExit, match="no entry link_efficency under blackwell"):
        performance.write({"blackwell": {"link_efficency": 0.1}}, "a test")


@needs_reference
def test_every_measured_row_is_one_call() -> None:
    points = silicon.measured(folder())
    assert len(points) == 745
    for point in points[::50]:
        found = silicon.predict(point)
        assert found.gpus == point.gpus
        for key, value in point.arguments.items():
            if hasattr(found, key):
                assert getattr(found, key) == value, key


@needs_reference
def test_the_catalogue_predicts_measured_points() -> None:
    points = silicon.measured(folder())
    errors = silicon.log_errors(points)
    tpot, ttft, rate = (performance.statistics(errors[:, column]) for column in range(3))
    assert tpot.median < 0.11 and tpot.mean < 0.14 and tpot.p90 < 0.28 and abs(tpot.bias) < 0.05
    assert rate.median < 0.12 and rate.mean < 0.17
    # The label noise of TTFT alone is a median of 31 %.
    assert ttft.median < 0.45 and ttft.within_2x > 0.75


@needs_reference
def test_a_fit_to_fewer_points_does_not_get_worse() -> None:
    points = silicon.measured(folder())[::40]
    start = performance.present()
    before = np.abs(silicon.log_errors(points, performance.constants_of(start))[:, 0]).mean()
    fitted = performance.fit(points, performance.fitted_submissions(folder()), start, evaluations=3)
    after = np.abs(silicon.log_errors(points, performance.constants_of(fitted))[:, 0]).mean()
    assert after < before


@needs_reference
def test_deepseek_in_mlperf_offline() -> None:
    found = {
        s.system: mlperf.predictions(s)[0] / s.offline
        for s in mlperf.submissions(folder())
        if s.benchmark == "deepseek-r1"
    }
    assert set(found) == set(mlperf.SYSTEMS)
    for system, ratio in found.items():
        assert 0.8 < ratio < 1.2, (system, ratio)
