"""Training with Stable-Baselines3: from settings to a run directory and a comparison with every rule."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from ai_factory_agents.callbacks import EvaluationCallback
from ai_factory_agents.hyperparameters import ZOO_KEYS, check_algorithm, load_hyperparameters
from ai_factory_agents.policies.artefact import TrainedPolicy, from_model
from ai_factory_agents.policies.residual import RESIDUAL_RULES, make_rule
from ai_factory_agents.run_directory import RunDirectory
from ai_factory_agents.vec_env import HOUR_S, FactoryVecEnv, ResidualVecEnv, draw_windows, rule_rewards
from ai_factory_gym import TASKS, __version__
from ai_factory_gym.console import ends_with_its_reader, gathered
from ai_factory_gym.errors import ConfigError, check_range, unknown
from ai_factory_gym.evaluation import (
    EVALUATION_SEEDS,
    TRAINING_SEEDS,
    TUNING_SEEDS,
    EvaluationResult,
    comparison_table,
    evaluate,
    write_csv,
)
from ai_factory_gym.evaluation.cli import parse_env
from ai_factory_gym.fleet import usable_cores
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.vector_env import AIFactoryVectorEnv

CLASSES: dict[str, type[PPO] | type[SAC]] = {"ppo": PPO, "sac": SAC}

WINDOWS_WITH_RULE = 160
WINDOWS_FREE = 10_000
"""Training windows when none are asked for: a rule has to be played in each beforehand."""


@dataclass(frozen=True)
class Settings:
    """Train an agent on the diurnal scenario, then compare it with every rule on held-out seeds."""

    algo: Literal["ppo", "sac"] = "ppo"
    """PPO, or SAC. SAC learns from every step many times: a gradient step costs several environment steps, so per
    environment step it takes about five times as long as PPO (which is why its default number of steps is lower)."""
    task: str = "ai_factory/Edge-v0"
    """Registered id of the task."""
    env: tuple[str, ...] = ()
    """Further arguments of the environment, KEY=VALUE: site=my_site.toml for ai_factory/Custom-v0. The agent needs the file as
    long as it is used."""
    seed: int = 0
    """Seed of the networks and of the training days."""
    total_steps: int | None = None
    """Control steps over all rows; the hyperparameters' n_timesteps when not given. PPO goes on to the end of
    a rollout (n_steps x rows). With --resume: the new total."""
    rows: int | None = None
    """Sites simulated side by side; the hyperparameters' n_envs when not given."""
    run_dir: Path | None = None
    """New directory of the run; runs/TASK-ALGO-sSEED, numbered when taken, when not given."""
    resume: Path | None = None
    """Go on with the run in this directory, with its settings."""
    residual_of: Literal["reactive", "none"] = "reactive"
    """Rule whose action the agent corrects, or none for an agent that acts on its own."""
    residual_levers: tuple[str, ...] = ("clock",)
    """Levers that the agent corrects; the others stay the rule's."""
    residual_scale: float = 0.4
    """Largest correction of any action."""
    window_hours: tuple[float, float] = (2.0, 6.0)
    """Shortest and longest training episode; each starts at a random time of day."""
    miss_weight: float = 1.0
    """Cost of a missed request in the training reward, in units of its value. The task's own 9 keeps attainment far above
    the targets; with less, energy may be saved down to them. The evaluation judges by the targets in any case."""
    windows: int | None = None
    """Training episodes to draw from. With a rule its rewards in every one are computed beforehand, so that training
    earns the difference: 160 when not given; without a rule 10,000."""
    hyperparams: Path | None = None
    """YAML file of hyperparameters keyed by task; the one that ships when not given."""
    eval_every: int = 25_000
    """Steps between evaluations on tuning seeds, each of which also saves a checkpoint."""
    eval_seeds: int = 4
    """Tuning seeds (whole days) per evaluation; the best policy is the one that does best on them."""
    eval_hours: float = 24.0
    """Length of the episodes of all evaluations."""
    final_seeds: int = 10
    """Held-out seeds of the comparison at the end; 0 leaves it out."""
    scenario: tuple[str, ...] = ("diurnal",)
    """Scenarios of the comparison at the end; training is always diurnal."""
    jobs: int = 2
    """Processes of the comparison at the end."""
    rollout_threads: int = 2
    """Threads that simulate; the result does not depend on it."""
    torch_threads: int = 1
    """Threads of torch; more than one is slower for networks this small."""
    progress: bool = True
    """Show a progress bar when standard error is a terminal."""


KEPT_ON_RESUME = (
    "total_steps",
    "resume",
    "jobs",
    "rollout_threads",
    "torch_threads",
    "progress",
    "final_seeds",
    "scenario",
)
"""Settings that a resumed run takes from the command line; everything else is the run's own."""


def check_settings(settings: Settings) -> None:
    """Refuse settings that cannot be used.

    Raises:
        ConfigError: Naming the first one.
    """
    check_algorithm(settings.algo)
    if settings.task not in gymnasium.registry:
        raise unknown("task", settings.task, list(TASKS))
    if settings.residual_of not in RESIDUAL_RULES:
        raise unknown("residual_of", settings.residual_of, RESIDUAL_RULES)
    if not 0.0 < settings.residual_scale <= 2.0:
        raise ConfigError(f"residual_scale: {settings.residual_scale!r} is not allowed; must be a number in (0, 2].")
    if settings.seed not in TRAINING_SEEDS:
        raise ConfigError(f"seed: {settings.seed!r} is not allowed; must be in [0, {TRAINING_SEEDS.stop - 1}].")
    for name in ("total_steps", "rows", "windows", "eval_every", "jobs", "rollout_threads", "torch_threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name}: {value!r} is not allowed; must be at least 1.")
    if not 1 <= settings.eval_seeds <= len(TUNING_SEEDS):
        raise ConfigError(f"eval_seeds: {settings.eval_seeds!r} is not allowed; must be at least 1.")
    if settings.final_seeds not in range(len(EVALUATION_SEEDS) + 1):
        raise ConfigError(f"final_seeds: {settings.final_seeds!r} is not allowed; must be at least 0.")
    environment_of(settings)
    minutes = 60.0 * check_range("eval_hours", settings.eval_hours, 1.0 / 60.0, 24.0 * 366.0, "h")
    if abs(minutes - round(minutes)) > 1e-9:
        raise ConfigError(f"eval_hours: {settings.eval_hours!r} is not allowed; must be a whole number of minutes.")
    for name in settings.scenario:
        scenario(name)


OWN_ARGUMENTS = ("scenario", "start_time_s", "horizon_s", "miss_weight", "drain", "resolution", "trace")
"""Arguments of the environment that training and evaluation set themselves."""


def environment_of(settings: Settings) -> dict[str, Any]:
    """Return the further arguments of the environment, with the place of a site's file in full.

    Raises:
        ConfigError: For what is no ``KEY=VALUE``, or one of ``OWN_ARGUMENTS``.
    """
    # First: what is said of these otherwise is how to give them to an evaluation.
    own = {field.name for field in dataclasses.fields(Settings)}
    for pair in settings.env:
        key, _, value = pair.partition("=")
        if key in OWN_ARGUMENTS:
            hint = f"training sets {', '.join(OWN_ARGUMENTS)} itself"
            if key in own:
                hint = f"give it as --{key.replace('_', '-')} {value}"
            raise ConfigError(f"env: {pair!r} is not allowed; {hint}.")
    parsed = parse_env(settings.env)
    site = parsed.get("site")
    if isinstance(site, str) and site.endswith(".toml"):
        parsed["site"] = str(Path(site).resolve())
    return parsed


def train(settings: Settings, report: Callable[[str], None] = print) -> RunDirectory:
    """Train an agent, or go on with it, up to the comparison at the end.

    Args:
        settings: What to train.
        report: Takes lines of text.

    Returns:
        The run directory.

    Raises:
        ConfigError: For settings that cannot be used; before anything is written.
    """
    resumed = None if settings.resume is None else RunDirectory.open(settings.resume)
    if resumed is None:
        config: dict[str, Any] = {"resumed_at": []}
        hyperparameters = None
    else:
        config = resumed.read_config()
        hyperparameters = config["hyperparameters"]
        settings = _settings_of(config["settings"], settings)
    check_settings(settings)
    if hyperparameters is None:
        hyperparameters = load_hyperparameters(settings.algo, settings.task, settings.hyperparams)
    total = settings.total_steps or int(hyperparameters["n_timesteps"])
    done = 0 if resumed is None else int(resumed.newest_checkpoint().name)
    if resumed is not None and done >= total:
        raise ConfigError(
            f"total_steps: the run has {done:,} steps already; give a larger --total-steps to go on with it."
        )
    torch.set_num_threads(settings.torch_threads)
    environment = environment_of(settings)
    rule = make_rule(settings.residual_of, settings.task, env=environment)
    rows = settings.rows or int(hyperparameters["n_envs"])
    venv, residual = make_training_env(settings, rows, rule)
    checkpoint = None if resumed is None else resumed.newest_checkpoint()
    model, normalise = _build(settings, hyperparameters, venv, checkpoint)
    # Only now, when everything has been accepted, is anything written.
    name = f"{settings.task.rpartition('/')[2]}-{settings.algo}-s{settings.seed}"
    run = resumed or RunDirectory.create(settings.run_dir, name)
    config.update(settings=_plain(settings), hyperparameters=hyperparameters, versions=_versions())
    config["resumed_at"] += [done] if resumed is not None else []
    run.write_config(config)
    # A resumed run goes on with new days instead of repeating its first ones.
    venv.seed(training_seed(settings.seed, done, rows))
    model.set_logger(configure(str(run.tensorboard), ["tensorboard"]))
    export = functools.partial(_export, model, normalise, settings, venv.unwrapped, residual)
    callback = EvaluationCallback(
        run,
        export,
        task=settings.task,
        every=settings.eval_every,
        seeds=settings.eval_seeds,
        horizon_s=settings.eval_hours * HOUR_S,
        jobs=1,
        report=report,
        env=environment,
    )
    kind = (
        "on its own"
        if rule is None
        else f"correcting {', '.join(settings.residual_levers)} of the rule {settings.residual_of} by up to {settings.residual_scale:g}"
    )
    report(
        f"{settings.algo.upper()} {kind} on {settings.task}: {total:,} steps, {rows} sites side by side, "
        f"seed {settings.seed}, in {run.path}"
    )
    if residual is not None:
        residual.reference = _reference(run, residual, report)
    started_s = time.perf_counter()
    try:
        model.learn(
            total - done,
            callback=callback,
            reset_num_timesteps=False,
            progress_bar=settings.progress and sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        run.save_checkpoint(model, normalise)
        report(f"\nStopped after {model.num_timesteps:,} steps. To go on: python train.py --resume {run.path}")
        raise
    finally:
        venv.close()
    report(f"Trained in {time.perf_counter() - started_s:.0f} s; tensorboard --logdir {run.tensorboard}")
    export().save(run.last)
    if settings.final_seeds:
        compare_with_rules(run, settings, model.num_timesteps, report)
    return run


def make_training_env(settings: Settings, rows: int, rule: Any) -> tuple[VecEnv, ResidualVecEnv | None]:
    """Build the environments of training: windows at random times of day, the residual, the monitor.

    Returns:
        The environments, and the residual wrapper among them, if any, whose reference is still to be set.
    """
    made = gymnasium.make_vec(
        settings.task,
        num_envs=rows,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        threads=min(settings.rollout_threads, usable_cores(), rows),
        scenario="diurnal",
        start_time_s="random",
        miss_weight=settings.miss_weight,
        **environment_of(settings),
    ).unwrapped
    assert isinstance(made, AIFactoryVectorEnv)
    count = settings.windows or (WINDOWS_FREE if rule is None else WINDOWS_WITH_RULE)
    windows = draw_windows(settings.seed, count, settings.window_hours, made.task.control_interval_s)
    inner = FactoryVecEnv(made, windows=windows)
    residual = None if rule is None else ResidualVecEnv(inner, rule, settings.residual_scale, settings.residual_levers)
    return VecMonitor(residual or inner), residual


def _reference(run: RunDirectory, residual: ResidualVecEnv, report: Callable[[str], None]) -> Any:
    """Return what the rule alone earns in every window; computed once per run."""
    if not run.reference.exists():
        started_s = time.perf_counter()
        earned = rule_rewards(residual.inner, residual.rule)
        np.save(run.reference, earned)
        report(f"Played {len(earned)} training windows with the rule alone in {time.perf_counter() - started_s:.0f} s")
    return np.load(run.reference)


def training_seed(seed: int, steps: int, rows: int) -> int:
    """Return the seed of the first row; every row's lies in the training range."""
    mixed = np.random.SeedSequence([seed, steps]).generate_state(1, np.uint64)[0]
    return int(mixed % np.uint64(TRAINING_SEEDS.stop - rows))


def compare_with_rules(
    run: RunDirectory, settings: Settings, steps: int, report: Callable[[str], None] = print
) -> list[EvaluationResult]:
    """Evaluate the best policy of a run and every rule on the same held-out seeds; print and keep both."""
    import ai_factory_baselines

    policy = TrainedPolicy.load(run.best)
    policies: dict[str, Any] = {policy.name: policy}
    for name in ai_factory_baselines.names():
        policies[name] = functools.partial(ai_factory_baselines.make, name)
    report(
        f"Comparing {', '.join(policies)} on {settings.final_seeds} held-out seeds ({', '.join(settings.scenario)}) ..."
    )
    started_s = time.perf_counter()
    results = []
    for chosen, (name, candidate) in itertools.product(settings.scenario, policies.items()):
        result = evaluate(
            candidate,
            settings.task,
            scenario=chosen,
            seeds=settings.final_seeds,
            horizon_s=settings.eval_hours * HOUR_S,
            env_kwargs=environment_of(settings),
            n_jobs=settings.jobs,
            policy_name=name,
            progress=None if settings.progress else False,
        )
        results.append(result)
        report(f"  {len(results)} of {len(settings.scenario) * len(policies)}: {name}, {chosen}")
    table = comparison_table(results)
    stem = run.path / f"evaluation-{steps}"
    write_csv([row for result in results for row in result.episodes], f"{stem}.csv")
    Path(f"{stem}.txt").write_text(table + "\n", encoding="utf-8")
    report(
        f"\n{table}\n\nEpisodes in {stem}.csv ({time.perf_counter() - started_s:.0f} s); "
        f"ai_factory_agents.load_run({str(run.path)!r}) gives the agent."
    )
    return results


def _build(
    settings: Settings, hyperparameters: dict[str, Any], venv: VecEnv, checkpoint: Path | None
) -> tuple[BaseAlgorithm, VecNormalize]:
    """Return a new model, or that of a checkpoint, and its normalisation."""
    algorithm = CLASSES[settings.algo]
    if checkpoint is not None:
        normalise = VecNormalize.load(str(checkpoint / "vecnormalize.pkl"), venv)
        model = algorithm.load(checkpoint / "model.zip", env=normalise, device="cpu")
        buffer = checkpoint / "replay_buffer.pkl"
        if isinstance(model, SAC) and buffer.is_file():
            model.load_replay_buffer(buffer)
        model.set_random_seed(training_seed(settings.seed, model.num_timesteps, venv.num_envs))
        return model, normalise
    on = bool(hyperparameters.get("normalize", False))
    gamma = float(hyperparameters.get("gamma", 0.99))
    normalise = VecNormalize(venv, norm_obs=True, norm_reward=on, gamma=gamma)
    arguments = {key: value for key, value in hyperparameters.items() if key not in ZOO_KEYS}
    policy = arguments.pop("policy")
    try:
        return algorithm(policy, normalise, seed=settings.seed, device="cpu", **arguments), normalise
    except TypeError as error:
        raise ConfigError(f"hyperparams: {settings.algo} does not take them: {error}.") from error


def _export(
    model: BaseAlgorithm, normalise: VecNormalize, settings: Settings, inner: VecEnv, residual: ResidualVecEnv | None
) -> TrainedPolicy:
    """Return the acting part of a model as it is now."""
    return from_model(
        model,
        normalise,
        algo=settings.algo,
        task=settings.task,
        observation_size=inner.observation_space.shape[0],  # type: ignore[index]
        action_size=inner.action_space.shape[0],  # type: ignore[index]
        residual={
            "residual_of": settings.residual_of,
            "residual_scale": settings.residual_scale if residual is not None else 0.0,
            "residual_places": residual.places.tolist() if residual is not None else [],
        },
        rule=None if residual is None else residual.rule,
        provenance={"steps": int(model.num_timesteps), "seed": settings.seed, "versions": _versions()},
        env=environment_of(settings),
    )


def _versions() -> dict[str, str]:
    names = ("stable-baselines3", "torch", "gymnasium", "numpy")
    # Its own version is known from the source too, where the package is not installed.
    return {"ai-factory-gym": __version__} | {name: importlib.metadata.version(name) for name in names}


def _plain(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON takes them."""
    table = dataclasses.asdict(settings)
    return {key: str(value) if isinstance(value, Path) else value for key, value in table.items()}


def _settings_of(stored: dict[str, Any], given: Settings) -> Settings:
    """Return the settings of a run, those of KEPT_ON_RESUME from the command line.

    Raises:
        ConfigError: When the command line asks for something else than the run had.
    """
    default = Settings()
    paths = ("run_dir", "resume", "hyperparams")
    own: dict[str, Any] = {
        key: Path(value) if key in paths and value is not None else tuple(value) if isinstance(value, list) else value
        for key, value in stored.items()
    }
    for field in dataclasses.fields(Settings):
        asked = getattr(given, field.name)
        if field.name in KEPT_ON_RESUME:
            if field.name != "total_steps" or asked is not None:
                own[field.name] = asked
        elif asked != getattr(default, field.name) and asked != own[field.name]:
            raise ConfigError(
                f"resume: {field.name} = {asked!r} differs from the run's {own[field.name]!r}; "
                "a run is resumed with its own settings."
            )
    return Settings(**own)


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, return the exit status: 0, 2 for input that cannot be used, 130 when stopped."""
    import tyro

    try:
        train(tyro.cli(Settings, args=gathered(argv, Settings)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
