"""Train several agents side by side, on the processes of this machine or on Ray, and gather their scores in one table.

    python -m ai_factory_agents.sweep --algo ppo --seeds 0 1 2 --jobs 2
    python -m ai_factory_agents.sweep --seeds 0 1 --vary gamma=0.97,0.99 residual_scale=0.2,0.4 --total-steps 50000
    RAY_ADDRESS=auto python -m ai_factory_agents.sweep --seeds 0 1 2 3 --jobs 4 --backend ray

A sweep has a new directory; a cluster of several machines must share it.

| path | content |
|---|---|
| ``<run>/`` | the run directory that ``train.py`` leaves, one per seed and combination |
| ``<run>.log`` | what ``train.py`` prints, and the traceback of a run that failed |
| ``<run>.yml`` | the run's hyperparameters, where ``--vary`` changed some |
| ``sweep.csv`` | the table: a row per run |
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ai_factory_agents.callbacks import score
from ai_factory_agents.hyperparameters import ZOO_KEYS, load_hyperparameters
from ai_factory_agents.run_directory import RunDirectory
from ai_factory_agents.training import CLASSES, Settings, check_settings, train
from ai_factory_gym.console import ends_with_its_reader, gathered
from ai_factory_gym.errors import ConfigError, check_count, unknown
from ai_factory_gym.evaluation import write_csv
from ai_factory_gym.evaluation.backends import check_backend, distribute, pack
from ai_factory_gym.evaluation.table import render

OWN = {
    "seed": "give --seeds",
    "run_dir": "give --directory; each run has a directory of its own in it",
    "resume": "go on with a run by train.py --resume",
    "jobs": "it is the number of runs side by side",
}
"""Settings of train.py that the sweep sets itself."""

DEFAULTS = ("--no-progress", "--final-seeds", "0", "--rollout-threads", "1")
"""What a sweep wants otherwise than train.py: runs are chosen by tuning seeds, and each has one core."""


@dataclass(frozen=True)
class Arguments:
    """Train agents of several seeds and settings side by side.

    All other options are those of train.py, for every run (python train.py --help), except that --final-seeds is 0 and
    --rollout-threads 1 unless given.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; one run each, for every combination of --vary."""
    vary: tuple[str, ...] = ()
    """KEY=VALUE,VALUE,... to try; KEY is a setting of train.py (residual_scale) or a hyperparameter (gamma)."""
    directory: Path | None = None
    """New directory of the sweep; runs/sweep, numbered when taken, when not given."""
    jobs: int = 2
    """Runs side by side: processes, or actors of one core on Ray."""
    backend: str = "local"
    """"local" (processes of this machine) or "ray" (the cluster that RAY_ADDRESS names, or one that is started here)."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: Name of its directory.
        settings: What to train; the sweep sets the directory.
        hyperparameters: What to change in the hyperparameters.
        varied: What is told apart in the table, and its value here.
    """

    name: str
    settings: Settings
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    varied: Mapping[str, str] = dataclasses.field(default_factory=dict)


def combinations(seeds: Sequence[int], vary: Sequence[str], options: Sequence[str] = ()) -> list[Trial]:
    """Make a trial of every seed and combination of values.

    Args:
        seeds: Training seeds.
        vary: ``KEY=VALUE,VALUE,...`` each.
        options: Command-line options of ``train.py`` for all trials.

    Raises:
        ConfigError: For a key or a value that cannot be used, or one that occurs twice.
        SystemExit: From tyro, which prints why, for an option or the value of a setting that ``train.py`` refuses.
    """
    if not seeds:
        raise ConfigError("seeds: empty; give at least one training seed.")
    _check_once("seeds", [str(seed) for seed in seeds])
    values = _parse_vary(vary)
    fields = {field.name for field in dataclasses.fields(Settings)}
    trials = []
    for chosen in itertools.product(*values.values()):
        varied = dict(zip(values, chosen, strict=True))
        given = [word for key, value in varied.items() if key in fields for word in (_option(key), *value.split())]
        settings = _parse_settings([*DEFAULTS, *options, *given])
        known = _hyperparameters(settings)
        for key in varied:
            if key not in fields and key not in known:
                raise unknown("vary", key, sorted((fields - set(OWN)) | known))
        changed = {key: _parse_value(value) for key, value in varied.items() if key not in fields}
        label = "".join(f"{key}={value}-".replace("/", "_").replace(" ", "+") for key, value in varied.items())
        for seed in seeds:
            own = dataclasses.replace(settings, seed=seed)
            check_settings(own)
            trials.append(Trial(f"{label}s{seed}", own, changed, varied))
    return trials


def sweep(
    trials: Sequence[Trial],
    directory: Path | None = None,
    *,
    jobs: int = 2,
    backend: str = "local",
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train every trial and return the table, which is also written to ``sweep.csv``.

    A trial that fails is a row with its error; the others go on.

    Args:
        trials: What to train.
        directory: New directory of the sweep; None takes ``runs/sweep``, numbered when taken.
        jobs: Trials side by side.
        backend: As in `ai_factory_gym.evaluation.evaluate`.
        report: Takes lines of text.

    Returns:
        A row per trial, in their order: ``run`` (its directory), ``task``, ``algo``, ``seed``, what was varied, the
        scores of its best policy on the tuning seeds (``feasible_share``, ``tokens_per_joule``, ``return``) and after
        how many steps it was reached (``best_steps``), all ``steps``, ``wall_s`` and ``error`` (empty without one).

    Raises:
        ConfigError: For input that cannot be used; before anything is written.
    """
    check_backend(backend)
    check_count("jobs", jobs)
    if not trials:
        raise ConfigError("trials: none given; at least one is needed.")
    _check_once("trials", [trial.name for trial in trials])
    tables = [_changed_hyperparameters(trial) for trial in trials]
    root = RunDirectory.create(directory, "sweep").path.resolve()
    ready = [_place(trial, table, root) for trial, table in zip(trials, tables, strict=True)]
    report(f"{len(trials)} runs, {min(jobs, len(trials))} side by side, in {root}")
    rows: list[dict[str, Any]] = []
    packed = pack(backend, _open_worker)
    try:
        with contextlib.closing(distribute(backend, packed, ready, min(jobs, len(trials)))) as finished:
            for row in finished:
                rows.append(row)
                report(
                    f"{len(rows)} of {len(trials)}: {row['run']} {'failed' if row['error'] else 'done'} after {row['wall_s']:.0f} s"
                )
    finally:
        if rows:
            write_csv(rows, root / "sweep.csv")
    return rows


def table(rows: Sequence[Mapping[str, Any]], varied: Sequence[str] = ()) -> str:
    """Render the rows of a sweep, best first: feasible on all tuning seeds before others, then by tokens per joule."""
    varied = [key for key in varied if key not in ("task", "algo")]
    header = ("run", "task", "algo", *varied, "seed", "tokens/J", "feasible", "return", "at", "steps", "wall s")
    done = sorted((row for row in rows if not row["error"]), key=_merit, reverse=True)
    failed = [row for row in rows if row["error"]]
    cells = [
        (
            *(row["run"], row["task"], row["algo"], *(str(row[key]) for key in varied), str(row["seed"])),
            *(f"{row['tokens_per_joule']:.4f}", f"{row['feasible_share']:.0%}", f"{row['return']:.1f}"),
            *(f"{row['best_steps']:,}", f"{row['steps']:,}", f"{row['wall_s']:.0f}"),
        )
        for row in done
    ]
    parts = [render(header, cells, left=frozenset({"run", "task", "algo", *varied}))] if done else []
    return "\n".join([*parts, *(f"{row['run']} failed: {row['error']}" for row in failed)])


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 when a run failed, 2 for input that cannot be used, 130 when stopped."""
    import tyro

    try:
        arguments, options = tyro.cli(
            Arguments,
            args=gathered(argv, Arguments),
            prog="python -m ai_factory_agents.sweep",
            return_unknown_args=True,
        )
        trials = combinations(arguments.seeds, arguments.vary, gathered(options, Settings))
        rows = sweep(trials, arguments.directory, jobs=arguments.jobs, backend=arguments.backend)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"\n{table(rows, list(trials[0].varied))}")
    return int(any(row["error"] for row in rows))


# ------------------------------------------------------------------------------------------------------- one trial


def _open_worker() -> Callable[[Trial], dict[str, Any]]:
    return _run


def _run(trial: Trial) -> dict[str, Any]:
    """Train one trial and return its row."""
    run = RunDirectory(_run_dir(trial))
    started_s = time.perf_counter()
    error = ""
    with run.path.with_name(f"{trial.name}.log").open("w", encoding="utf-8") as log:
        try:
            train(trial.settings, functools.partial(print, file=log, flush=True))
        except Exception as failure:
            # One run that diverges is a result; the others are to go on.
            traceback.print_exc(file=log)
            error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return _row(trial, run.read_metrics(), time.perf_counter() - started_s, error)


def _row(trial: Trial, metrics: Sequence[Mapping[str, float]], wall_s: float, error: str) -> dict[str, Any]:
    # Every evaluation that beats all before it is marked as best.
    best: Mapping[str, float] = next((row for row in reversed(metrics) if row["best"]), {})
    settings = trial.settings
    return {
        **{"run": trial.name, "task": settings.task, "algo": settings.algo, **trial.varied, "seed": settings.seed},
        **{key: best.get(key, float("nan")) for key in ("feasible_share", "tokens_per_joule", "return")},
        "best_steps": int(best.get("steps", 0)),
        "steps": int(metrics[-1]["steps"]) if metrics else 0,
        "wall_s": wall_s,
        "error": error,
    }


def _merit(row: Mapping[str, Any]) -> tuple[float, float]:
    return score(row["feasible_share"], row["tokens_per_joule"], row["return"])


def _run_dir(trial: Trial) -> Path:
    assert trial.settings.run_dir is not None
    return trial.settings.run_dir


def _place(trial: Trial, hyperparameters: dict[str, Any] | None, root: Path) -> Trial:
    """Return the trial with its paths, absolute ones, since Ray's workers may stand elsewhere."""
    path = trial.settings.hyperparams
    if hyperparameters is not None:
        path = root / f"{trial.name}.yml"
        path.write_text(yaml.safe_dump({trial.settings.task: hyperparameters}), encoding="utf-8")
    settings = dataclasses.replace(
        trial.settings, run_dir=root / trial.name, hyperparams=None if path is None else path.resolve()
    )
    return dataclasses.replace(trial, settings=settings)


def _changed_hyperparameters(trial: Trial) -> dict[str, Any] | None:
    """Return the hyperparameters of a trial that changes some, or None; refuse a file that cannot be used."""
    settings = trial.settings
    shared = load_hyperparameters(settings.algo, settings.task, settings.hyperparams)
    return {**shared, **trial.hyperparameters} if trial.hyperparameters else None


# ---------------------------------------------------------------------------------------------------- command line


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _parse_settings(options: Sequence[str]) -> Settings:
    import tyro

    settings = tyro.cli(Settings, args=options, prog="python -m ai_factory_agents.sweep")
    for key in OWN:
        if getattr(settings, key) != getattr(Settings(), key):
            raise ConfigError(f"{key}: not allowed in a sweep; {OWN[key]}.")
    return dataclasses.replace(settings, jobs=1)


def _hyperparameters(settings: Settings) -> set[str]:
    """Return the names of all hyperparameters: those of the file, and what else the algorithm takes."""
    in_file = load_hyperparameters(settings.algo, settings.task, settings.hyperparams)
    taken = set(inspect.signature(CLASSES[settings.algo]).parameters) - {"env", "seed", "device", "_init_setup_model"}
    return {*in_file, *taken, *ZOO_KEYS}


def _parse_vary(pairs: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        chosen = text.split(",")
        if not (key.isidentifier() and equals and all(chosen)):
            raise ConfigError(f"vary: {pair!r} is not allowed; write KEY=VALUE,VALUE, for example gamma=0.97,0.99.")
        if key in OWN:
            raise ConfigError(f"vary: {key!r} is not allowed; {OWN[key]}.")
        if key in values:
            raise ConfigError(f"vary: {key} is given twice; write all its values after one {key}=.")
        _check_once(f"vary: {key}", chosen)
        values[key] = chosen
    return values


def _check_once(what: str, given: Sequence[str]) -> None:
    for value in given:
        if given.count(value) > 1:
            raise ConfigError(f"{what}: {value} occurs twice.")


def _parse_value(text: str) -> Any:
    """Return a hyperparameter as JSON has it, or else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    # What a Ray worker is sent has to come from a module it can import, which `__main__` is not.
    from ai_factory_agents.sweep import main as imported_main

    sys.exit(imported_main())
