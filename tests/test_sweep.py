"""Sweeps: the grid, bad input, and that each run is what train.py makes of the same settings. Tiny networks."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ai_factory_gym.errors import ConfigError

pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")

from ai_factory_agents.run_directory import RunDirectory  # noqa: E402
from ai_factory_agents.sweep import Trial, combinations, main, sweep, table  # noqa: E402
from ai_factory_agents.training import train  # noqa: E402
from tests.tiny import TINY  # noqa: E402

TASK = "ai_factory/Edge-v0"
OPTIONS = (
    "--residual-of none --window-hours 0.1 0.2 --windows 6 --eval-every 32 --eval-seeds 1 --eval-hours 0.1".split()
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("hyperparams") / "tiny.yml"
    path.write_text(yaml.safe_dump({TASK: TINY["ppo"]}))
    return [*OPTIONS, "--hyperparams", str(path)]


@pytest.fixture(scope="module")
def swept(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Trial], Path, list[dict[str, Any]]]:
    """Three trials, the first of which fails, with the directory and the table of their sweep."""
    trials = combinations([0, 1], ["learning_rate=0.001"], options)
    broken = Trial("broken", trials[0].settings, {"batch_size": "many"}, {"learning_rate": "0.001"})
    path = tmp_path_factory.mktemp("sweeps") / "local"
    return [broken, *trials], path, sweep([broken, *trials], path, jobs=1, report=quiet)


def quiet(_: str) -> None:
    pass


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on where and how fast a run was."""
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


def test_every_seed_meets_every_combination(options: list[str]) -> None:
    vary = ["gamma=0.9,0.95", "miss_weight=1,3", "residual_levers=clock,clock racks"]
    trials = combinations([0, 7], vary, [*options, "--total-steps", "32"])
    assert len({trial.name for trial in trials}) == len(trials) == 16
    assert [trial.settings.seed for trial in trials[:3]] == [0, 7, 0]
    assert {trial.settings.miss_weight for trial in trials} == {1.0, 3.0}
    assert {trial.settings.residual_levers for trial in trials} == {("clock",), ("clock", "racks")}
    assert {trial.hyperparameters["gamma"] for trial in trials} == {0.9, 0.95}
    assert {(trial.settings.total_steps, trial.settings.final_seeds) for trial in trials} == {(32, 0)}
    assert trials[-1].name == "gamma=0.95-miss_weight=3-residual_levers=clock+racks-s7"
    assert [trial.name for trial in combinations([3], [])] == ["s3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "gama=0.9"], "vary: unknown value 'gama'.*Did you mean 'gamma'"),
        (["--vary", "gamma"], "vary: 'gamma' is not allowed; write KEY=VALUE,VALUE"),
        (["--vary", "gamma="], "vary: 'gamma=' is not allowed"),
        (["--vary", "gamma=0.9,0.9"], "vary: gamma: 0.9 occurs twice"),
        (["--vary", "gamma=0.9", "gamma=0.8"], "vary: gamma is given twice"),
        (["--vary", "seed=1"], "vary: 'seed' is not allowed; give --seeds"),
        (["--vary", "miss_weight=much"], "could not convert string to float: 'much'"),
        (["--vary", "residual_scale=0.1,9"], "residual_scale: 9.0 is not allowed"),
        (["--seed", "3"], "seed: not allowed in a sweep; give --seeds"),
        (["--run-dir", "x"], "run_dir: not allowed in a sweep; give --directory"),
        (["--seeds", "1", "1"], "seeds: 1 occurs twice"),
        (["--seeds", "1", "--seeds", "1"], "seeds: 1 occurs twice"),
        (["--vary", "gamma=0.9", "--vary", "gamma=0.8"], "vary: gamma is given twice"),
        (["--env", "a=1", "--seeds", "1", "--env", "a=2"], "env: a is given twice"),
        (["--seeds"], "seeds: empty"),
        (["--task", "ai_factory/Egde-v0"], "Did you mean 'ai_factory/Edge-v0'"),
        (["--total-stps", "3"], "Unrecognized options: --total-stps"),
        (["--jobs", "0"], "jobs: 0 is not allowed"),
        (["--backend", "rya"], "backend: unknown value 'rya'.*Did you mean 'ray'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # tyro, which checks the options of train.py, exits by itself.
    try:
        status = main([*words, "--directory", str(tmp_path / "sweep")])
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    assert status == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_makes_the_runs_of_train_and_survives_one_that_fails(
    options: list[str], swept: tuple[list[Trial], Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    trials, path, rows = swept
    assert [row["run"] for row in rows] == ["broken", "learning_rate=0.001-s0", "learning_rate=0.001-s1"]
    failed, *done = rows
    assert failed["error"].startswith("ConfigError") and failed["steps"] == 0 and math.isnan(failed["tokens_per_joule"])
    assert "Traceback" in (path / "broken.log").read_text()
    for row, trial in zip(done, trials[1:], strict=True):
        run = RunDirectory.open(path / row["run"])
        config = run.read_config()
        assert config["hyperparameters"]["learning_rate"] == 0.001
        assert config["settings"]["seed"] == trial.settings.seed
        assert (row["steps"], row["seed"], row["error"]) == (64, trial.settings.seed, "")
        best = max(run.read_metrics(), key=lambda found: (found["best"], found["steps"]))
        assert row["tokens_per_joule"] == best["tokens_per_joule"] and row["best_steps"] == best["steps"]
    # The same settings by themselves.
    changed = tmp_path / "changed.yml"
    changed.write_text(yaml.safe_dump({TASK: {**TINY["ppo"], "learning_rate": 0.001}}))
    settings = combinations([1], [], [*options, "--hyperparams", str(changed)])[0].settings
    alone = train(dataclasses.replace(settings, run_dir=tmp_path / "alone"), quiet)
    assert alone.read_metrics()[-1]["return"] == run.read_metrics()[-1]["return"]

    with (path / "sweep.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [float(row["tokens_per_joule"]) for row in written[1:]] == [row["tokens_per_joule"] for row in done]
    lines = table(rows, ["learning_rate"]).splitlines()
    better = max(done, key=lambda row: (row["feasible_share"] >= 1.0, row["tokens_per_joule"]))
    assert lines[2].startswith(better["run"]) and lines[-1].startswith("broken failed: ConfigError")
    with pytest.raises(ConfigError, match="runs are never overwritten"):
        sweep(trials, path, report=quiet)


@pytest.mark.slow
def test_ray_gives_the_table_of_local_processes(
    swept: tuple[list[Trial], Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the ray extra")
    trials, _, rows = swept
    assert figures(sweep(trials[1:], tmp_path / "ray", jobs=1, backend="ray", report=quiet)) == figures(rows[1:])
