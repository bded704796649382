"""Fit the GPU power constants of the catalogue to measured draws: ``python -m calibration.power [--validate] [--write]``.

The draws are those of the ML.ENERGY leaderboard v3 (vLLM on H100 and B200), for models whose shape the catalogue holds: per
configuration a curve of watts per GPU against batch, sampled at powers of two. The two ends and a few points between them are
measured; elsewhere stands the logistic through all points, unless it misses them badly. What a server does at a batch is predicted with
the performance constants the catalogue has, so this fit is to be run again when those change.

* A server of ``n`` GPUs is tensor parallel over all of them. ``batch`` requests decode at once, or as many as have KV memory (the others
  wait); KV is kept in bf16, vLLM's default. Prompts ride along in chunks: every iteration also processes ``batch x prompt / output`` prompt
  tokens, at the throughput of saturated prefill. ``serving_point`` would add the fixed time of a prefill pass per prompt instead of per
  chunk, two to three times the measured time per token at large batches of short prompts.
* mxfp4 weights are unpacked and multiplied in bf16 (vLLM's default, which needs no 4-bit units), so an H100 takes part with its bf16 rate.
* Where measured power falls again at the largest batches by more than 5 %, the host is the limit (GPUs wait for vLLM's scheduler). The
  model has no such limit: those points are left out of the fit and counted in the errors.

Per GPU generation: ``active``, ``compute``, ``memory`` and its part on the core's clock, and the power of reading expert weights relative
to dense ones. Watts at one clock cannot tell the two parts of memory apart, nor how much a fully busy GPU would draw beyond its limit, so
two facts stand beside the draws: saturated compute draws TDP, and a lower clock saves about 0.3 of light decode's energy.

Cross-validation leaves whole models out. Needs ``AI_FACTORY_REFERENCE_DIR``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares

from ai_factory_gym.catalogue import Rack
from ai_factory_gym.catalogue import model as find_model
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.physics.performance import (
    DECODE_KV_CAPACITY_TOKENS,
    DECODE_KV_REQUEST_TOKENS,
    PREFILL_STREAM_PER_TOKEN_S,
    decode_coefficients,
    decode_iteration_s,
    prefill_coefficients,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, power_coefficients
from calibration import catalogue_file
from calibration import limits as limit_curves
from calibration.performance import GENERATIONS, Constant, robust
from calibration.silicon import Constants, Floats, recalibrated, reference_folder

FILE = "mlenergy_power_fits.csv"
FACTS_FILE = "hardware_facts.yaml"

MODELS: Mapping[str, str] = {
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "deepseek-ai/DeepSeek-V3.1": "deepseek-r1",
    "meta-llama/Llama-3.1-405B": "llama-3.1-405b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.3-70B": "llama-3.1-70b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "Qwen/Qwen3-235B-A22B": "qwen3-235b-a22b",
}
"""Begin of a measured model's name to the model of the catalogue that has its shape."""

RACKS: Mapping[str, str] = {"B200": "b200_sxm8", "H100": "h100_sxm8"}
PRECISIONS: Mapping[str, str] = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4"}

LENGTHS: Mapping[str, tuple[int, int]] = {"lm-arena-chat": (150, 717), "gpqa": (250, 6988)}
"""Prompt and output tokens of each task. Outputs: means over models (ML.ENERGY blog on v3.0: 717 and 6,988); prompts: status assumed."""

HOST_LIMITED = 0.95
"""Points beyond a curve's peak that draw less than this share of it are host-limited."""

LOGISTIC_ERROR = 0.05
"""A logistic that misses its own points by more than this on average, share of TDP, is not sampled: only its points are taken."""

SPREAD = 0.06
"""Spread of the errors, as a share of TDP, at which the loss turns from square to linear."""

TIE = 0.4
"""Spread of the logarithm between generations: what the few H100 draws leave open follows Blackwell."""

SATURATED_SPREAD = 0.02
"""Spread of the draw of saturated compute about TDP, share of TDP (status assumed)."""

CLOCK_SAVING, CLOCK_SAVING_SPREAD = 0.30, 0.02
"""Energy a lower clock saves in light decode for under 1 % of throughput: at most 0.32 (arXiv 2605.11999)."""

CONSTANTS = (
    Constant("active_fraction", 0.2, 0.5, 0.02, 0.6),
    Constant("compute_fraction", 0.66, 0.2, 0.3, 0.95),
    Constant("memory_core_fraction", 0.15, 0.7, 0.01, 0.8),
    Constant("memory_fraction", 0.4, 0.5, 0.05, 0.8),
    Constant("expert_power_ratio", 1.0, 0.4, 0.2, 5.0),
)


@dataclass(frozen=True)
class Draw:
    """A measured draw.

    Attributes:
        label: Configuration: model, task, precision, GPUs.
        model: Model of the catalogue.
        precision: Weight precision.
        rack: Rack type.
        gpus: GPUs of the server.
        batch: Largest number of requests in flight.
        watts: Draw per GPU.
        tdp_w: Limit of a GPU.
        prompt_tokens: Prompt tokens, assumed.
        output_tokens: Output tokens, mean of the task.
        moe: Whether the model has experts.
        host_limited: Whether power fell towards this batch, so that GPUs are not what limits.
        itl_s: Measured time per iteration; None where it was not published.
    """

    label: str
    model: str
    precision: str
    rack: str
    gpus: int
    batch: int
    watts: float
    tdp_w: float
    prompt_tokens: int
    output_tokens: int
    moe: bool
    host_limited: bool = False
    itl_s: float | None = None

    @property
    def server(self) -> tuple[str, str, str, int, int, int]:
        """All but batch and what was measured."""
        return self.rack, self.model, self.precision, self.gpus, self.prompt_tokens, self.output_tokens


def measured_draws(folder: Path) -> tuple[Draw, ...]:
    """Return the draws of every configuration whose model the catalogue holds, batches rising within each.

    Args:
        folder: Folder of the reference data.
    """
    with (folder / FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points = _points(folder)
    return tuple(
        draw for row in rows for name in MODELS if row["model"].startswith(name) for draw in _curve(row, name, points)
    )


_Key = tuple[str, int, int]
_Points = Mapping[_Key, Mapping[int, tuple[float, float]]]


def _points(folder: Path) -> _Points:
    """Return single measured points: GPU, GPUs and rounded watts at the smallest batch to batch to watts and seconds."""
    facts_file: dict[str, Any] = yaml.safe_load((folder / FACTS_FILE).read_text(encoding="utf-8"))
    curves: dict[tuple[str, str, int], dict[int, tuple[float, float]]] = {}
    for entry in facts_file["power"]["mlenergy_w_per_gpu"]:
        curve = curves.setdefault((entry["model"], entry["gpu"], entry["n"]), {})
        curve[entry["batch"]] = entry["w_per_gpu"], entry["itl_ms"] / 1e3
    return {(gpu, n, round(curve[min(curve)][0])): curve for (_, gpu, n), curve in curves.items()}


def _curve(row: Mapping[str, str], name: str, points: _Points) -> Iterator[Draw]:
    """Sample one configuration."""
    low, high, best = (int(row[key]) for key in ("bs_min", "bs_max", "best_bs"))
    floor_w, range_w, slope, middle, most_w, first_w, last_w, tdp_w = (
        float(row[key])
        for key in (
            "fit_b0",
            "fit_A",
            "fit_k",
            "fit_log2x0",
            "w_gpu_max",
            "w_gpu_at_min_bs",
            "w_gpu_at_max_bs",
            "tdp_w",
        )
    )
    prompt, output = LENGTHS[row["task"]]
    singles = points.get((row["gpu"], int(row["n_gpus"]), round(first_w)), {})
    measured_w = {low: first_w, high: last_w} | {batch: watts for batch, (watts, _) in singles.items()}
    batches = set(measured_w)
    if float(row["fit_mae_w"]) <= LOGISTIC_ERROR * tdp_w:
        batches |= {2**k for k in range(int(math.log2(high)) + 1) if 2**k >= low} | {best}
    peak = max(measured_w, key=lambda batch: measured_w[batch])
    for batch in sorted(batches):
        logistic_w = floor_w + range_w / (1.0 + math.exp(-slope * (math.log2(batch) - middle)))
        watts = measured_w.get(batch, min(most_w, logistic_w))
        itl_s = float(row["itl_ms_at_best"]) / 1e3 if batch == best else None
        yield Draw(
            label=f"{row['model'].split('/')[1]} {row['task']} {row['precision']} {row['n_gpus']} x {row['gpu']}",
            model=MODELS[name],
            precision=PRECISIONS[row["precision"]],
            rack=RACKS[row["gpu"]],
            gpus=int(row["n_gpus"]),
            batch=batch,
            watts=watts,
            tdp_w=tdp_w,
            prompt_tokens=prompt,
            output_tokens=output,
            moe=find_model(MODELS[name]).is_moe,
            host_limited=batch in measured_w and batch >= peak and watts < HOST_LIMITED * most_w,
            itl_s=singles[batch][1] if batch in singles else itl_s,
        )


def _weight_only(rack: Rack) -> Rack:
    """Return a rack type that multiplies 4-bit weights at its bf16 rate."""
    groups = tuple(dataclasses.replace(group, fp4_pflops=group.bf16_pflops) for group in rack.groups)
    return dataclasses.replace(rack, groups=groups)


@dataclass(frozen=True)
class Server:
    """A server with given constants.

    Attributes:
        decode: ``np.array(DecodeCoefficients)``, float64[15].
        power: ``np.array(PowerCoefficients)``, float64[12].
        context_tokens: Mean KV tokens of a request.
        chunk_s: Time each iteration spends on prompts, per request in flight.
    """

    decode: Floats
    power: Floats
    context_tokens: float
    chunk_s: float

    def at(self, batch: float, clock: float = 1.0) -> tuple[float, float]:
        """Return watts per GPU and seconds per iteration, prompts included.

        Args:
            batch: Requests in flight; those that KV memory does not hold wait.
            clock: SM clock as a fraction of the maximum.
        """
        held = self.context_tokens + self.decode[DECODE_KV_REQUEST_TOKENS]
        batch = min(batch, self.decode[DECODE_KV_CAPACITY_TOKENS] / held)
        iteration_s, compute_s, memory_s = decode_iteration_s(self.decode, batch, self.context_tokens, clock)
        decode_w = gpu_power_w(self.power, clock, 1.0, compute_s / iteration_s, memory_s / iteration_s)
        chunk_s = self.chunk_s * batch / clock
        prefill_w = gpu_power_w(self.power, clock, 1.0, 1.0, 0.0)
        return (iteration_s * decode_w + chunk_s * prefill_w) / (iteration_s + chunk_s), iteration_s + chunk_s


def server(
    rack_name: str,
    model: str,
    precision: str,
    gpus: int,
    prompt_tokens: int,
    output_tokens: int,
    constants: Constants | None = None,
) -> Server:
    """Return a server of ``gpus`` GPUs, tensor parallel; see the module's text for what is assumed of it.

    Args:
        rack_name: Rack type.
        model: Model.
        precision: Weight precision; fp4 is weights only.
        gpus: GPUs.
        prompt_tokens: Prompt tokens.
        output_tokens: Output tokens.
        constants: See ``recalibrated``; None takes the catalogue as it is.
    """
    rack = recalibrated(find_rack(rack_name), constants or {})
    if precision == "fp4":
        rack = _weight_only(rack)
    decode = decode_coefficients(rack, model, precision=precision, tp=gpus, kv_precision="bf16")
    prefill = np.array(prefill_coefficients(rack, model, precision=precision, tp=gpus, kv_precision="bf16"))
    # Only the part that fills the compute units: the weights are read for the decoding requests anyway.
    prompt_s, _ = prefill_work_s(prefill, float(prompt_tokens), float(prompt_tokens) ** 2)
    context = prompt_tokens + 0.5 * output_tokens
    return Server(np.array(decode), np.array(power_coefficients(rack)), context, prompt_s / output_tokens)


def predictions(draws: Sequence[Draw], constants: Constants | None = None) -> Floats:
    """Return watts per GPU of every draw, float64[draws].

    Args:
        draws: Measured draws.
        constants: See ``recalibrated``; None takes the catalogue as it is.
    """
    servers = {key: server(*key, constants) for key in {draw.server for draw in draws}}
    return np.array([servers[draw.server].at(draw.batch)[0] for draw in draws])


def predicted_w(draw: Draw, constants: Constants | None = None) -> float:
    """Return watts per GPU of one draw; see :func:`predictions`."""
    return float(predictions((draw,), constants)[0])


def errors(draws: Sequence[Draw], predicted: Floats) -> Floats:
    """Return (predicted - measured) / TDP of every draw, float64[draws]."""
    return np.array([(found - draw.watts) / draw.tdp_w for draw, found in zip(draws, predicted, strict=True)])


LIGHT_DECODE = (("llama-3.1-70b", "bf16", 2), ("deepseek-r1", "fp8", 8))
"""Servers whose energy at a lower clock is compared: model, precision, GPUs."""


def clock_saving(light: Server, batch: float = 8.0, loss: float = 0.01) -> float:
    """Return the largest share of energy per token a lower clock saves at a small loss of throughput.

    Args:
        light: A server.
        batch: Requests in flight.
        loss: Throughput that may be lost, share.
    """
    full_w, full_s = light.at(batch)
    at = [light.at(batch, float(clock)) for clock in np.linspace(0.2, 1.0, 41)]
    return 1.0 - min(watts * seconds for watts, seconds in at if seconds <= full_s / (1.0 - loss)) / (full_w * full_s)


def facts(constants: Constants | None = None) -> dict[str, tuple[float, float]]:
    """Return what is known of a generation beside its draws: value and residual, by name."""
    found: dict[str, tuple[float, float]] = {}
    for generation, name in GENERATIONS.items():
        for model, precision, gpus in LIGHT_DECODE:
            saving = clock_saving(server(name, model, precision, gpus, 1, 1400, constants))
            residual = (saving - CLOCK_SAVING) / CLOCK_SAVING_SPREAD
            found[f"{generation}: energy a lower clock saves, {model}"] = saving, residual
        coef = power_coefficients(recalibrated(find_rack(name), constants or {}))
        saturated = (coef.idle_w + coef.active_w + coef.compute_w) / coef.tdp_w
        found[f"{generation}: saturated compute, share of TDP"] = saturated, (saturated - 1.0) / SATURATED_SPREAD
    return found


MEASURED_LIMITS: Mapping[float, tuple[float, float]] = {
    limit: (prefill, decode)
    for limit, prefill, decode in zip(
        limit_curves.MEASURED_LIMITS, limit_curves.MEASURED["prefill"], limit_curves.MEASURED["decode"], strict=True
    )
    if limit > 0.4
}
"""Power limit, share of TDP, to the performance prefill and decode keep; below 0.4 it collapses."""

SITE_LIMIT = 0.69
"""Provisioned power per GPU of NVIDIA's site figure, which costs 6-9 % of output per GPU (hardware_facts: power.maxlps)."""


def performance_under(limit: float, constants: Constants | None = None) -> tuple[float, float]:
    """Return the share of full speed that prefill of Llama-3.1-70B (8k prompts) and light decode of DeepSeek-R1 keep on GB300.

    The measured prefill is bound by compute, so the model's is that of a dense model: a mixture of experts has fixed times
    that no clock changes and loses less.

    Args:
        limit: Power limit, share of TDP; obeyed with the highest clock that fits.
        constants: See ``recalibrated``; None takes the catalogue as it is.
    """
    rack = recalibrated(find_rack("gb300_nvl72"), constants or {})
    light = server("gb300_nvl72", "deepseek-r1", "fp4", 8, 1, 1400, constants)
    prefill = np.array(prefill_coefficients(rack, "llama-3.1-70b", precision="fp4", tp=1))
    scaling_s, fixed_s = prefill_work_s(prefill, 8000.0, 8000.0**2)
    limit_w = limit * find_rack("gb300_nvl72").group().profile().tdp_w
    kept = [0.0, 0.0]
    for clock in np.linspace(0.02, 1.0, 99):
        prompt_s = scaling_s / clock + fixed_s
        stream_s = prefill[PREFILL_STREAM_PER_TOKEN_S] * 8000.0
        prefill_w = gpu_power_w(light.power, clock, 1.0, scaling_s / clock / prompt_s, stream_s / prompt_s)
        decode_w, decode_s = light.at(32.0, float(clock))
        for index, (watts, speed) in enumerate(
            [(prefill_w, (scaling_s + fixed_s) / prompt_s), (decode_w, light.at(32.0)[1] / decode_s)]
        ):
            if watts <= limit_w:
                kept[index] = max(kept[index], speed)
    return kept[0], kept[1]


def limits(constants: Constants | None = None) -> list[str]:
    """Return the lines of a table of performance under a power limit."""
    lines = [f"{'performance under a power limit, share of TDP':62}{'prefill':>10}{'decode':>10}   measured"]
    for limit, (prefill, decode) in MEASURED_LIMITS.items():
        found = performance_under(limit, constants)
        lines.append(f"{limit:<62}{found[0]:>10.2f}{found[1]:>10.2f}   {prefill:.2f} {decode:.2f}")
    prefill, decode = performance_under(SITE_LIMIT, constants)
    lines.append(f"{f'{SITE_LIMIT}: site figure, 6-9 % of output lost':62}{prefill:>10.2f}{decode:>10.2f}")
    return lines


_VARIABLES = tuple((constant, generation) for generation in GENERATIONS for constant in CONSTANTS)
_LOW, _HIGH, _PRIOR = (np.log([getattr(c, key) for c, _ in _VARIABLES]) for key in ("low", "high", "prior"))
_SPREADS = np.array([c.spread for c, _ in _VARIABLES])


def constants_of(variables: Floats) -> dict[str, dict[str, float]]:
    """Return generation to field to value of the fit's variables (logarithms)."""
    table: dict[str, dict[str, float]] = {generation: {} for generation in GENERATIONS}
    for (constant, generation), value in zip(_VARIABLES, np.exp(variables), strict=True):
        table[generation][constant.field] = float(value)
    return table


def present() -> dict[str, dict[str, float]]:
    """Return the constants the catalogue has."""
    architectures = {g: find_rack(name).groups[0].architecture for g, name in GENERATIONS.items()}
    return {g: {c.field: getattr(architectures[g], c.field) for c in CONSTANTS} for g in GENERATIONS}


def fit(draws: Sequence[Draw], *, evaluations: int = 20) -> dict[str, dict[str, float]]:
    """Return the constants of least loss on some draws.

    Args:
        draws: Measured draws; host-limited ones are passed over.
        evaluations: Most steps of the search.
    """
    used = [draw for draw in draws if not draw.host_limited]

    def residuals(variables: Floats) -> Floats:
        constants = constants_of(variables)
        off = robust(errors(used, predictions(used, constants)) / SPREAD)
        known = [residual for _, residual in facts(constants).values()]
        by_generation = variables.reshape(len(GENERATIONS), -1)
        tie = (by_generation - by_generation.mean(axis=0)) / (TIE / math.sqrt(2.0))
        return np.concatenate([off, known, (variables - _PRIOR) / _SPREADS, tie.ravel()])

    found = least_squares(residuals, _PRIOR, bounds=(_LOW, _HIGH), diff_step=1e-3, max_nfev=evaluations)
    return constants_of(np.asarray(found.x))


def cross_validate(draws: Sequence[Draw]) -> Floats:
    """Return watts of every draw by a fit without its model, float64[draws]."""
    predicted = np.empty(len(draws))
    for model in sorted({draw.model for draw in draws}):
        constants = fit([draw for draw in draws if draw.model != model])
        held = np.array([draw.model == model for draw in draws])
        predicted[held] = predictions([draw for draw in draws if draw.model == model], constants)
    return predicted


def groups(draws: Sequence[Draw]) -> dict[str, list[int]]:
    """Return group to the places of its draws: dense, mixture of experts, generations, then every configuration."""
    found: dict[str, list[int]] = {}
    for index, draw in enumerate(draws):
        kind = "mixture of experts" if draw.moe else "dense"
        found.setdefault(kind, []).append(index)
        if draw.moe and not draw.host_limited:
            found.setdefault(f"{kind}, host-limited ends left out", []).append(index)
    for key in ("rack", "label"):
        for index, draw in enumerate(draws):
            found.setdefault(str(getattr(draw, key)), []).append(index)
    return found


def table(draws: Sequence[Draw], predicted: Mapping[str, Floats]) -> list[str]:
    """Return the lines of an error table in % of TDP.

    Args:
        draws: Measured draws.
        predicted: Watts of every draw, by the name of the prediction.
    """
    columns = {name: errors(draws, watts) for name, watts in predicted.items()}
    lines = [
        f"{'|error| and bias, % of TDP':62}{'n':>4}"
        + "".join(f"   {n + ': median mean p90 bias':<36}" for n in columns)
    ]
    for name, places in groups(draws).items():
        line = f"{name:62}{len(places):>4}"
        for values in columns.values():
            chosen = 100.0 * values[places]
            size = np.abs(chosen)
            numbers = np.median(size), size.mean(), np.quantile(size, 0.9), np.median(chosen)
            line += "   " + "".join(
                f"{number:>+9.1f}" if k == 3 else f"{number:>9.1f}" for k, number in enumerate(numbers)
            )
        lines.append(line)
    return lines


def speeds(draws: Sequence[Draw]) -> list[str]:
    """Return the lines of a table of iteration times, where they were measured."""
    lines = [f"{'time per iteration, ms':62}{'batch':>6}{'measured':>10}{'predicted':>11}"]
    for draw in draws:
        if draw.itl_s is not None:
            _, seconds = server(*draw.server).at(draw.batch)
            lines.append(f"{draw.label:62}{draw.batch:>6}{1e3 * draw.itl_s:>10.1f}{1e3 * seconds:>11.1f}")
    return lines


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m calibration.power", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--validate", action="store_true", help="cross-validate too (a minute)")
    parser.add_argument("--write", action="store_true", help="put the constants into racks.toml")
    chosen = parser.parse_args()
    draws = measured_draws(reference_folder())
    constants = fit(draws)
    before = present()
    for constant in CONSTANTS:
        for generation, values in constants.items():
            value, old = values[constant.field], before[generation][constant.field]
            print(f"{constant.field:24}{generation:12}{value:>8.3f}   catalogue {old:.3f}   prior {constant.prior:.3g}")
    print()
    for name, (value, _) in facts(constants).items():
        print(f"{name:62}{value:>8.3f}")
    print("\n" + "\n".join(limits(constants)))
    predicted = {"catalogue": predictions(draws), "fit": predictions(draws, constants)}
    if chosen.validate:
        predicted["model left out"] = cross_validate(draws)
    print("\n" + "\n".join(table(draws, predicted)) + "\n\n" + "\n".join(speeds(draws)))
    if chosen.write:
        kinds = [np.array([draw.moe == moe for draw in draws]) for moe in (False, True)]
        size = np.abs(errors(draws, predicted["fit"]))
        dense, experts = (100.0 * float(np.median(size[kind])) for kind in kinds)
        catalogue_file.write(
            catalogue_file.RACKS_PATH,
            constants,
            f"python -m calibration.power, {datetime.datetime.now(datetime.UTC).date().isoformat()}: {len(draws)} draws of "
            f"{len({draw.label for draw in draws})} configurations (ML.ENERGY leaderboard v3), error median {dense:.1f} % of TDP "
            f"dense, {experts:.1f} % mixture of experts",
        )
        print(f"written to {catalogue_file.RACKS_PATH}")


if __name__ == "__main__":
    main()
