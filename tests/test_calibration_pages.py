"""The page that shows how right the model is: choices with known answers, noise, and that it is written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from calibration import evidence, frontier, limits, silicon, validation
from calibration.frontier import Configuration, Published
from tests.reference import needs_reference

# Measured speed and output, predicted speed and output.
SLOW = Configuration(30.0, 500.0, 32.0, 480.0)
RIGHT = Configuration(55.0, 300.0, 52.0, 310.0)
FAST = Configuration(90.0, 100.0, 95.0, 110.0)


def point(concurrency: int = 8, *, tpot_s: float = 0.01, ttft_s: float = 0.2, **changes: Any) -> silicon.Measured:
    arguments = {
        "model": "deepseek-r1",
        "precision": "fp8",
        "mode": "aggregated",
        "prompt_tokens": 1024,
        "output_tokens": 1024,
        "concurrency": concurrency,
        "mtp": False,
    }
    return silicon.Measured("b200_sxm", arguments | changes, 8, ttft_s, tpot_s, 10.0 * concurrency, "1")


def test_the_best_that_is_fast_enough_is_found() -> None:
    choice = frontier.choose("a set", [SLOW, RIGHT, FAST], 50.0)
    assert choice is not None
    assert (choice.best, choice.picked, choice.outcome, choice.share) == (RIGHT, RIGHT, "best", 1.0)


def test_a_worse_pick_counts_with_its_measured_output() -> None:
    # The model believes the fast one to give most.
    misjudged = Configuration(90.0, 100.0, 95.0, 400.0)
    choice = frontier.choose("a set", [SLOW, RIGHT, misjudged], 50.0)
    assert choice is not None and choice.outcome == "met"
    assert choice.share == pytest.approx(100.0 / 300.0)


@pytest.mark.parametrize(
    ("speed", "output", "outcome", "share"),
    [(46.0, 240.0, "narrow", 0.8), (46.0, 900.0, "narrow", 1.0), (44.9, 900.0, "missed", 0.0)],
)
def test_a_pick_that_is_too_slow(speed: float, output: float, outcome: str, share: float) -> None:
    believed_fast = Configuration(speed, output, 51.0, 600.0)
    choice = frontier.choose("a set", [believed_fast, RIGHT, FAST], 50.0)
    assert choice is not None
    assert (choice.picked, choice.outcome) == (believed_fast, outcome)
    assert choice.share == pytest.approx(share)


def test_nothing_believed_fast_enough_counts_zero() -> None:
    choice = frontier.choose("a set", [SLOW, Configuration(55.0, 300.0, 45.0, 310.0)], 50.0)
    assert choice is not None
    assert (choice.picked, choice.outcome, choice.share) == (None, "none", 0.0)


def test_no_choice_without_alternatives_or_when_nothing_was_fast_enough() -> None:
    assert frontier.choose("a set", [RIGHT], 50.0) is None
    assert frontier.choose("a set", [SLOW, RIGHT], 60.0) is None


def test_a_configuration_measured_twice_counts_once() -> None:
    points = [point(8, tpot_s=0.010), point(8, tpot_s=0.0144), point(16, tpot_s=0.02), point(16, tpot_s=0.02, mtp=True)]
    errors = np.log(points[0].tpot_s * 1.2 / np.array([[p.tpot_s] * 3 for p in points]))
    apart = frontier.sets(points, errors)
    assert list(apart) == ["b200_sxm deepseek-r1 fp8 1024/1024", "b200_sxm deepseek-r1 fp8 1024/1024 MTP"]
    twice, once = apart["b200_sxm deepseek-r1 fp8 1024/1024"]
    assert twice.measured_speed == pytest.approx(1.0 / 0.012)
    assert twice.predicted_speed == pytest.approx(1.0 / 0.012)
    assert once.measured_speed == pytest.approx(50.0)
    assert [len(entries) for entries in frontier.sets(points, errors, mtp_apart=False).values()] == [3]


def test_noise_of_known_measurements() -> None:
    points = [point(8, tpot_s=0.01), point(8, tpot_s=0.02), point(8, tpot_s=0.02), point(16, tpot_s=0.05)]
    found = evidence.noise(points)
    # The third repeats the second to the last digit; the fourth was measured once.
    assert (found.copies, list(found.places)) == (1, [0, 1])
    np.testing.assert_allclose(found.spreads[:, 0], [np.log(2.0)])
    np.testing.assert_allclose(found.deviations[:, 0], [0.5 * np.log(2.0), -0.5 * np.log(2.0)])
    assert evidence.noise(points, [0, 3]).places == []


def test_a_limit_is_obeyed_with_the_highest_clock_that_fits() -> None:
    curve = limits.Curve(
        "gb300_nvl72", "decode", np.array([1.0, 0.8, 0.6]), np.array([0.9, 0.7, 0.5]), np.array([1.0, 0.95, 0.7])
    )
    assert [curve.at_limit(limit) for limit in (1.0, 0.89, 0.7, 0.3)] == [1.0, 0.95, 0.95, 0.7]
    shipped = limits.curve("gb300_nvl72", "prefill")
    assert np.all(np.diff(shipped.performance) < 0.0) and np.all(np.diff(shipped.draw) <= 1e-12)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "validation.md").write_text("before", encoding="utf-8")
    (tmp_path / "images" / "validation_a.png").write_text("before", encoding="utf-8")

    def draw(_: Any, folder: Path) -> None:
        (folder / "validation_a.png").write_text("after", encoding="utf-8")
        if broken:
            raise ValueError("no ink")

    monkeypatch.setattr(validation, "page", lambda _: "after")
    monkeypatch.setattr(validation, "draw", draw)
    nothing: Any = None
    files = [tmp_path / "images" / "validation_a.png", tmp_path / "validation.md"]
    broken = True
    with pytest.raises(ValueError, match="no ink"):
        validation.publish(nothing, tmp_path)
    assert [path.read_text(encoding="utf-8") for path in files] == ["before", "before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "validation.md"]
    broken = False
    assert validation.publish(nothing, tmp_path) == files
    assert [path.read_text(encoding="utf-8") for path in files] == ["after", "after"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "validation.md"]


def test_a_model_that_fits_nothing_has_no_published_point() -> None:
    # Hopper has no 4-bit units.
    assert (
        frontier.best_output(
            Published("h100_sxm8", "gpt-oss-120b", "fp4", False, 1024, 8192, 90.0, 1.0, True), mtp=False
        )
        is None
    )


@needs_reference
def test_every_point_of_the_measured_frontier_is_a_measured_row() -> None:
    points = frontier.measured_frontier(silicon.reference_folder())
    assert len(points) == 284
    assert {entry.system for entry in points} <= set(silicon.RACKS)


@needs_reference
def test_published_figures_are_output_per_gpu() -> None:
    points = frontier.published(silicon.reference_folder())
    # 25,319.6 tokens/s/GPU in and out at 1k/1k.
    assert [p.output for p in points if (p.model, p.speed) == ("gpt-oss-120b", 72.0)] == [pytest.approx(12659.8)]
    # 2.8 million tokens/s/MW at 2.17 kW per GPU, 8 of 9 of them output.
    assert [p.output for p in points if p.per_watt and p.rack == "b200_sxm8"] == [pytest.approx(2800 * 2.17 * 8 / 9)]


@needs_reference
@pytest.mark.slow
def test_the_quick_page_has_every_figure_and_system(tmp_path: Path) -> None:
    validation.main(["--out", str(tmp_path), "--no-cross-validation"])
    text = (tmp_path / "validation.md").read_text(encoding="utf-8")
    pictures = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert len(pictures) >= 6
    for name in pictures:
        assert f"(images/{name})" in text
        assert 10_000 < (tmp_path / "images" / name).stat().st_size < 600_000
    assert text.count("(images/") == len(pictures)
    for system in [*silicon.RACKS, "VR NVL72", "GB300 NVL72", "Vera Rubin NVL144"]:
        assert system in text
    assert "--no-cross-validation" in text
    assert "nan" not in text
    # Every row of a table has as many cells as the row above it.
    lines = text.splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if above.startswith("|") and line.startswith("|"):
            assert above.count("|") == line.count("|"), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "validation.md"]
