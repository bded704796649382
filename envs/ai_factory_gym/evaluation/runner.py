"""Runs any policy on any task over given seeds, in one process or many, with the same numbers either way."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np

from ai_factory_gym.errors import ConfigError, PolicyRefused, check_count, unknown
from ai_factory_gym.evaluation.backends import check_backend, distribute, pack
from ai_factory_gym.evaluation.feasibility import infeasible_reason
from ai_factory_gym.evaluation.result import EvaluationResult, check_new_file, write_csv
from ai_factory_gym.evaluation.seeds import check_seeds

STEP_INFO = frozenset(
    {
        *("time_s", "facility_power_w", "it_power_w", "cap_w", "pue", "clock_mean", "cost", "requests_in_flight"),
        *("grid_power_w", "generation_power_w", "generation_available_w", "training_power_w", "training_phase"),
    }
)
"""Info keys that describe one step; all others, ``reward_terms/...`` apart, are totals over the episode."""

REQUIRED_INFO = (
    *(
        "time_s",
        "facility_power_w",
        "it_power_w",
        "cap_w",
        "energy_j",
        "good_tokens",
        "tokens_per_joule",
        "sla_attainment",
    ),
    *("requests_arrived", "requests_met_slo", "requests_missed_slo", "cap_violation_j", "brake_s", "cost"),
)
RESERVED_ENV_KWARGS = {
    "drain": "evaluation always drains, so that every request's fate counts",
    "scenario": "give it to evaluate(scenario=...)",
    "resolution": "give it to evaluate(resolution=...)",
    "trace": "give it to evaluate(trace=...)",
    "horizon_s": "give it to evaluate(horizon_s=...)",
}


class Policy(Protocol):
    """What is evaluated: the ``predict`` of Stable-Baselines3, which rules and planners have too."""

    def predict(
        self,
        observation: np.ndarray[Any, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray[Any, Any], Any]:
        """Return the action and the policy's next state."""
        ...


PolicyFactory: TypeAlias = Callable[[Any], Policy]


def evaluate(
    policy: Policy | PolicyFactory,
    task: str,
    *,
    scenario: str = "diurnal",
    seeds: int | Iterable[int],
    resolution: str = "cohort",
    trace: str | os.PathLike[str] | None = None,
    horizon_s: float | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    backend: str = "local",
    csv_path: str | os.PathLike[str] | None = None,
    policy_name: str | None = None,
    progress: bool | None = None,
) -> EvaluationResult:
    """Run a policy for one episode per seed and say how it did.

    The environment is made with ``drain=True``: after the horizon it keeps stepping, the policy acting, until the fate
    of every scored request is decided. Policies run on the same seeds meet the same world, so their rows can be paired.

    Every row has, beside every total of the final ``info`` (``class/<name>/...`` included), these columns:

    - ``task, scenario, resolution, trace`` (empty without one), ``policy, seed, hypothetical_racks`` (ids, or empty);
    - ``horizon_s, steps`` (drain included), ``terminated``, ``return`` (undiscounted, drain included), ``cost`` and
      ``reward_terms/<name>`` (sums over all steps);
    - ``tokens_per_joule_facility``, ``tokens_per_joule_it``, ``tokens_per_joule_cap``: good tokens over the facility's
      energy, over the energy of the IT equipment, and over the energy the cap would have allowed (which is good
      tokens/s per watt of cap), each in [0, horizon); at a site with a training block the first is over the facility's energy less the
      reference energy of the block's work (``serving_energy_j``), the others are over all there is;
    - ``it_energy_j, cap_energy_j``, ``facility_power_mean_w``, ``facility_power_max_w`` (highest mean of a control
      step);
    - ``cap_violation_share`` (of ``cap_energy_j``), ``brake_share`` (of the horizon);
    - ``class/<name>/attainment_target``, ``feasible`` and ``infeasible_reason`` (empty when feasible).

    Args:
        policy: Anything with ``predict(observation, state=None, episode_start=None, deterministic=True) -> (action,
            state)``, or a callable from the environment to such a thing, called once per worker. ``state`` is passed
            from step to step and is None at the start of an episode, where ``episode_start`` is ``[True]``. A policy
            with a ``reset`` method has it called before each episode, with ``seed=`` where the method takes one. A
            policy that carries anything else from one episode to the next makes its rows depend on ``n_jobs``.
        task: Registered id, or ``module:id`` where a module must be imported to register it.
        scenario: Name or path of the scenario.
        seeds: One seed per episode; an integer stands for that many of the first evaluation seeds.
        resolution: ``cohort``, ``coarse`` or ``request``.
        trace: Path of a trace to replay, or None.
        horizon_s: Length of an episode in s; None is the environment's default (a day, or the length of the trace).
        env_kwargs: Further arguments of ``gymnasium.make``.
        n_jobs: Number of workers. The rows are the same for any number. With more than one, and on Ray with any,
            ``policy`` and ``env_kwargs`` must be picklable.
        backend: ``local``: workers are processes of this machine (for one worker, this process), and a script must
            call this under ``if __name__ == "__main__":`` to have more than one. ``ray``: they are actors of one core
            each on Ray: where this process is connected to it already, else on the cluster that RAY_ADDRESS names,
            else on a cluster on this machine that lives as long as the call. A cluster must have this package.
        csv_path: Where to write the rows when all are done; never overwrites.
        policy_name: Name for the rows; None takes the policy's ``name``, or else that of its class.
        progress: Show a bar; None shows one when ``tqdm`` is installed and standard error is a terminal.

    Raises:
        ConfigError: For an unknown task or other argument that cannot be used, before any episode is run; of its kind PolicyRefused
            when the policy is not for this environment, a rule for pools that share racks for example.
    """
    job = _Job(
        policy=policy,
        task=_check_task(task),
        scenario=_check_path("scenario", scenario),
        resolution=resolution,
        trace=None if trace is None else _check_path("trace", trace),
        horizon_s=horizon_s,
        env_kwargs=_check_env_kwargs(env_kwargs),
        policy_name=policy_name,
    )
    check_backend(backend)
    chosen = check_seeds(seeds)
    check_count("n_jobs", n_jobs)
    if csv_path is not None:
        check_new_file(csv_path)
    bar = _progress_bar(progress, total=len(chosen), label=f"{policy_name or job.task} {job.scenario}")
    workers = min(n_jobs, len(chosen))
    if backend == "local" and workers == 1:
        rows = _run_here(job, chosen, bar)
    else:
        rows = _run_elsewhere(job, chosen, bar, backend, workers)
    result = EvaluationResult(rows)
    if csv_path is not None:
        write_csv(result.episodes, csv_path)
    return result


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs to run episodes."""

    policy: Any
    task: str
    scenario: str
    resolution: str
    trace: str | None
    horizon_s: float | None
    env_kwargs: dict[str, Any]
    policy_name: str | None


@dataclass(frozen=True)
class _Bench:
    """One worker's environment and the policy that acts in it."""

    job: _Job
    env: gymnasium.Env[Any, Any]
    policy: Any
    policy_name: str
    attainment_targets: dict[str, float]
    hypothetical_racks: str


def _called(policy: Any) -> str:
    """Return what a policy, or what makes one, is called in the code of whoever gave it."""
    if isinstance(policy, functools.partial):
        given = [*map(repr, policy.args), *(f"{key}={value!r}" for key, value in policy.keywords.items())]
        return f"{_called(policy.func)}({', '.join(given)})"
    return str(getattr(policy, "__name__", type(policy).__name__))


def _open_bench(job: _Job) -> _Bench:
    optional: dict[str, Any] = {"trace": job.trace, "horizon_s": job.horizon_s}
    given = {key: value for key, value in optional.items() if value is not None} | job.env_kwargs
    env = gymnasium.make(job.task, scenario=job.scenario, resolution=job.resolution, drain=True, **given)
    try:
        try:
            policy = _build_policy(job.policy, env)
        except ConfigError as error:
            raise PolicyRefused(f"policy {job.policy_name or _called(job.policy)!r}: {error}") from error
        name = job.policy_name or getattr(policy, "name", None) or type(policy).__name__
        targets = _attainment_targets(job.task, env)
    except BaseException:
        env.close()
        raise
    return _Bench(job, env, policy, str(name), targets, _hypothetical_racks(env))


def _run_here(job: _Job, seeds: list[int], bar: Callable[[Iterable[Any]], Iterable[Any]]) -> list[dict[str, Any]]:
    bench = _open_bench(job)
    with contextlib.closing(bench.env):
        return [_run_episode(bench, seed) for seed in bar(seeds)]


def _run_elsewhere(
    job: _Job, seeds: list[int], bar: Callable[[Iterable[Any]], Iterable[Any]], backend: str, workers: int
) -> list[dict[str, Any]]:
    try:
        packed = pack(backend, functools.partial(_open_worker, job))
    except Exception as error:
        raise ConfigError(
            f"policy: cannot be sent to other processes ({error}); with n_jobs > 1 or on Ray the policy (or the "
            "callable that makes it from the environment) and env_kwargs must be picklable: use a function or class of "
            "a module, or n_jobs=1."
        ) from error
    # Refuse bad input here, once and with a plain traceback, rather than in every worker.
    _open_bench(job).env.close()
    with contextlib.closing(distribute(backend, packed, seeds, workers)) as rows:
        return list(bar(rows))


def _open_worker(job: _Job) -> Callable[[int], dict[str, Any]]:
    return functools.partial(_run_episode, _open_bench(job))


def _run_episode(bench: _Bench, seed: int) -> dict[str, Any]:
    """Step one episode to its end and return its row."""
    env, policy = bench.env, bench.policy
    env.action_space.seed(seed)
    _reset_policy(policy, seed)
    observation, info = env.reset(seed=seed)
    _check_info(bench, info)
    totals = _Totals(start_s=info["time_s"], time_s=info["time_s"], energy_j=info["energy_j"])
    state: Any = None
    terminated = truncated = False
    while not (terminated or truncated):
        start = np.array([totals.steps == 0])
        action, state = policy.predict(observation, state=state, episode_start=start, deterministic=True)
        observation, reward, terminated, truncated, info = env.step(action)
        totals.add(float(reward), info)
    return _row(bench, seed, totals, info, terminated)


class _Totals:
    """Sums over the steps of an episode that the final ``info`` does not carry.

    A step belongs to the horizon while the facility's energy counter grows: the environment freezes it at the horizon,
    and before that it always grows, since a site never draws nothing.
    """

    def __init__(self, start_s: float, time_s: float, energy_j: float) -> None:
        self.start_s = start_s
        self.time_s = time_s
        self.energy_j = energy_j
        self.steps = 0
        self.horizon_s = 0.0
        self.episode_return = 0.0
        self.cap_energy_j = 0.0
        self.supply_energy_j = 0.0
        self.it_energy_j = 0.0
        self.facility_power_max_w = 0.0
        self.sums: dict[str, float] = {}

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        self.steps += 1
        self.episode_return += reward
        for key, value in info.items():
            if key == "cost" or key.startswith("reward_terms/"):
                self.sums[key] = self.sums.get(key, 0.0) + float(value)
        if info["energy_j"] > self.energy_j:
            duration_s = info["time_s"] - self.time_s
            self.horizon_s = info["time_s"] - self.start_s
            self.cap_energy_j += info["cap_w"] * duration_s
            # What units at the site can give is as good as cap: a site may have no other.
            self.supply_energy_j += (info["cap_w"] + info.get("generation_available_w", 0.0)) * duration_s
            self.it_energy_j += info["it_power_w"] * duration_s
            self.facility_power_max_w = max(self.facility_power_max_w, float(info["facility_power_w"]))
        self.time_s, self.energy_j = info["time_s"], info["energy_j"]


def _row(bench: _Bench, seed: int, totals: _Totals, info: Mapping[str, Any], terminated: bool) -> dict[str, Any]:
    job = bench.job
    row: dict[str, Any] = {
        "task": job.task.rpartition(":")[2],
        "scenario": job.scenario,
        "resolution": job.resolution,
        "trace": os.path.basename(job.trace) if job.trace else "",
        "policy": bench.policy_name,
        "seed": seed,
        "hypothetical_racks": bench.hypothetical_racks,
        "horizon_s": float(totals.horizon_s),
        "steps": totals.steps,
        "terminated": bool(terminated),
        "feasible": False,
        "infeasible_reason": "",
        "tokens_per_joule_facility": float(info["tokens_per_joule"]),
        "tokens_per_joule_it": _ratio(info["good_tokens"], totals.it_energy_j),
        "tokens_per_joule_cap": _ratio(info["good_tokens"], totals.cap_energy_j),
        "return": totals.episode_return,
        "cap_violation_share": _ratio(info["cap_violation_j"], totals.supply_energy_j),
        "brake_share": _ratio(info["brake_s"], totals.horizon_s),
        "facility_power_mean_w": _ratio(info["energy_j"], totals.horizon_s),
        "facility_power_max_w": totals.facility_power_max_w,
        "it_energy_j": totals.it_energy_j,
        "cap_energy_j": totals.cap_energy_j,
    }
    for key, value in info.items():
        per_step = key in STEP_INFO or key == "tokens_per_joule" or key.startswith("reward_terms/")
        if not per_step and isinstance(value, (bool, int, float, np.number)):
            row[key] = value.item() if isinstance(value, np.number) else value
    for name, target in bench.attainment_targets.items():
        row[f"class/{name}/attainment_target"] = target
    row.update(totals.sums)
    row["infeasible_reason"] = infeasible_reason(row)
    row["feasible"] = not row["infeasible_reason"]
    return row


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0


def _check_task(task: str) -> str:
    if not isinstance(task, str):
        raise ConfigError(f"task: {task!r} is not allowed; must be the id of a registered environment.")
    if ":" not in task and task not in gymnasium.registry:
        raise unknown("task", task, [name for name in gymnasium.registry if name.startswith("ai_factory/")])
    return task


def _check_path(key: str, value: str | os.PathLike[str]) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"{key}: {value!r} is not allowed; must be a name or a path.")
    return os.fspath(value)


def _check_env_kwargs(env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    if env_kwargs is not None and not isinstance(env_kwargs, Mapping):
        raise ConfigError(f"env_kwargs: {env_kwargs!r} is not allowed; must be a dict of arguments of gymnasium.make.")
    given = dict(env_kwargs or {})
    for key in given:
        if key in RESERVED_ENV_KWARGS:
            raise ConfigError(f"env_kwargs: {key!r} is not allowed here; {RESERVED_ENV_KWARGS[key]}.")
    return given


def _check_info(bench: _Bench, info: Mapping[str, Any]) -> None:
    per_class = [f"class/{name}/{key}" for name in bench.attainment_targets for key in ("met", "missed", "attainment")]
    missing = [key for key in (*REQUIRED_INFO, *per_class) if key not in info]
    if missing:
        raise ConfigError(
            f"task: {bench.job.task!r} does not report {', '.join(missing)} in info; evaluation needs an environment "
            "with the info keys of ai_factory_gym's."
        )


def _build_policy(policy: Any, env: gymnasium.Env[Any, Any]) -> Any:
    """Return what acts: the policy itself, or what a class or function makes from the environment."""
    if not isinstance(policy, type) and callable(getattr(policy, "predict", None)):
        return policy
    if not callable(policy):
        raise ConfigError(
            f"policy: {policy!r} is not allowed; must have predict(observation, state, episode_start, deterministic), "
            "or be a callable that makes such a thing from the environment."
        )
    made = policy(env)
    if not callable(getattr(made, "predict", None)):
        raise ConfigError(f"policy: {policy!r} made {made!r} from the environment, which has no predict method.")
    return made


@functools.cache
def _takes_seed(function: Any) -> bool:
    try:
        parameters: Collection[inspect.Parameter] = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "seed" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _reset_policy(policy: Any, seed: int) -> None:
    reset = getattr(policy, "reset", None)
    if not callable(reset):
        return
    if _takes_seed(getattr(type(policy), "reset", reset)):
        reset(seed=seed)
    else:
        reset()


def _attainment_targets(task: str, env: gymnasium.Env[Any, Any]) -> dict[str, float]:
    classes = getattr(env.unwrapped, "classes", None)
    if not classes:
        raise ConfigError(
            f"task: {task!r} has no request classes (env.unwrapped.classes), so nothing to judge a policy by."
        )
    found = list(classes.values() if isinstance(classes, Mapping) else classes)
    targets = {str(entry.name): float(entry.attainment_target) for entry in found}
    for name, target in targets.items():
        if not (math.isfinite(target) and 0.0 <= target <= 1.0):
            raise ConfigError(f"class {name}: attainment_target {target!r} is not allowed; must be in [0, 1].")
    return targets


def _hypothetical_racks(env: gymnasium.Env[Any, Any]) -> str:
    """Ids of the site's rack types that were never sold, which every table has to say."""
    pools = getattr(env.unwrapped, "pools", ())
    types = [pool.rack_type for pool in (pools.values() if isinstance(pools, Mapping) else pools)]
    return " ".join(sorted({str(entry.id) for entry in types if entry.hypothetical}))


def _progress_bar(progress: bool | None, *, total: int, label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Return a function that shows an iterable's progress, or one that returns it unchanged."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return iter
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ConfigError(
                "progress: True needs tqdm; install ai-factory-gym[eval], or leave progress out."
            ) from error
        return iter
    return functools.partial(tqdm, total=total, desc=label, unit="episode", leave=False)
