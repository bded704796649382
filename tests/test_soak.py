"""A short soak, and that each of its checks can fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tqdm")

from benchmarks import soak

SHORT = soak.Settings(
    row_steps=12 * 60, rows=12, threads=1, check_every=5, hold_steps=5.0, horizons_s=(600.0, 1200.0, 1800.0)
)


@pytest.mark.parametrize(("kinds", "resolution"), [(1, "cohort"), (12, "cohort"), (12, "coarse")])
def test_a_short_soak_finds_nothing(kinds: int, resolution: str) -> None:
    seen = []
    settings = dataclasses.replace(SHORT, kinds=kinds, resolution=resolution)
    report = soak.soak(settings, seen.append)
    assert report.failures == []
    assert report.status == 0 and "no check failed" in report.text()
    assert report.steps == 60 and sum(seen) == settings.row_steps
    assert report.episodes >= 12 and report.high_water > 0 and report.digest
    assert len(report.memory_mb) == 12


def test_one_and_two_threads_return_the_same() -> None:
    digests = []
    for threads in (1, 2):
        run = soak.Run(dataclasses.replace(SHORT, threads=threads))
        for _ in range(12):
            run.step()
        run.env.close()
        digests.append(run.digest)
    assert soak.find_difference(digests, 12) is None


def test_rows_go_round_scenarios_and_horizons() -> None:
    rows = soak.row_settings(24, (600.0, 1200.0), 8)
    assert {(row["scenario"], row["horizon_s"]) for row in rows} == {
        (scenario, horizon_s) for scenario in soak.SCENARIOS for horizon_s in (600.0, 1200.0)
    }
    assert all(row == rows[0] for row in soak.row_settings(5, (600.0, 1200.0), 1))


# ------------------------------------------------------------------------------------------------- checks that can fail


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(bad: float) -> None:
    good = {
        "observation": np.zeros((2, 3), np.float32),
        "_final_obs": np.array([False, True]),
        "final_obs": np.array([None, np.ones(3, np.float32)], dtype=object),
        "final_info": {"cost": np.zeros(2)},
    }
    assert soak.find_not_finite(good) is None
    wrong = np.array([0.0, bad])
    assert soak.find_not_finite({**good, "reward": wrong}) == "reward"
    assert soak.find_not_finite({**good, "final_info": {"cost": wrong}}) == "final_info/cost"
    last = np.array([None, np.array([bad, 1.0], np.float32)], dtype=object)
    assert soak.find_not_finite({**good, "final_obs": last}) == "final_obs/1"


def test_growing_memory_is_found() -> None:
    level = [100.0 + (step % 3) for step in range(100)]
    assert soak.find_growth(level, 0.1, 4.0) is None
    assert soak.find_growth([10.0 * step for step in range(10)] + level, 0.1, 4.0) is None
    peak = [*level[:50], 500.0, *level[50:]]
    assert soak.find_growth(peak, 0.1, 4.0) is None
    leak = [value + 0.2 * step for step, value in enumerate(level)]
    assert "memory grew" in str(soak.find_growth(leak, 0.1, 4.0))
    assert soak.find_growth(leak[:3], 0.1, 4.0) is None


def test_unequal_hashes_are_found() -> None:
    assert soak.find_difference(["a", "a"], 7) is None
    assert "differ after 7 steps: a, b" in str(soak.find_difference(["a", "b"], 7))


def test_ends_without_a_flag_are_found() -> None:
    off, on = np.array([False, False]), np.array([False, True])
    assert soak.find_lost_end({"terminated": off, "truncated": off}) is None
    assert soak.find_lost_end({"terminated": off, "truncated": on, "_final_obs": on}) is None
    assert "1 rows ([1]" in str(soak.find_lost_end({"terminated": off, "truncated": off, "_final_obs": on}))
    assert "1 rows ([1]" in str(soak.find_lost_end({"terminated": on, "truncated": off}))


class Spoilt(soak.Run):
    """Runs of which something goes wrong at the tenth step; what it is, is drawn from ``ways`` in turn."""

    ways: list[str]

    def __init__(self, settings: soak.Settings) -> None:
        super().__init__(settings)
        self.way = self.ways.pop(0)
        self.steps = 0

    def step(self) -> dict[str, Any]:
        returned = super().step()
        self.steps += 1
        if self.steps == 10 and self.way == "nan":
            returned["reward"] = np.full(len(returned["reward"]), np.nan)
        if self.steps == 10 and self.way == "action":
            self._actions *= -0.5
        if self.steps == 10 and self.way == "interrupt":
            raise KeyboardInterrupt
        return returned

    def slots(self) -> tuple[int, int]:
        return (10**6, 10**6) if self.way == "slots" else super().slots()


@pytest.mark.parametrize(
    ("ways", "status", "message"),
    [
        (["", "nan"], 1, "run 1, step 10: reward is not finite"),
        (["", "action"], 1, "the runs differ after 15 steps"),
        (["slots", ""], 1, "they are not given back"),
        (["", "interrupt"], soak.INTERRUPTED, "interrupted"),
    ],
)
def test_a_soak_stops_where_something_is_wrong(ways: list[str], status: int, message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(soak, "Run", Spoilt)
    monkeypatch.setattr(Spoilt, "ways", list(ways), raising=False)
    report = soak.soak(dataclasses.replace(SHORT, rows=2, kinds=1, row_steps=100))
    assert report.status == status and message in report.text()
    assert report.steps < 50


def test_a_leak_stops_a_soak(monkeypatch: Any) -> None:
    held = iter(range(1000, 100_000, 100))
    monkeypatch.setattr(soak, "memory_mb", lambda: float(next(held)))
    report = soak.soak(dataclasses.replace(SHORT, rows=2, kinds=1, row_steps=100, check_every=1))
    assert report.status == 1 and "memory grew" in report.text()


def test_the_command_returns_its_status(monkeypatch: Any, capsys: Any) -> None:
    given = []

    def pretend(settings: soak.Settings, progress: Any) -> soak.Report:
        given.append(settings)
        return soak.Report(settings.rows, failures=["it broke"])

    monkeypatch.setattr(soak, "soak", pretend)
    assert soak.main(["--row-steps", "100_000", "--rows", "8", "--threads", "1"]) == 1
    assert given[0].row_steps == 100_000 and given[0].rows == 8
    assert "FAILED: it broke" in capsys.readouterr().out
