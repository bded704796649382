"""Fill the generated blocks of docs/model.md: tables of constants from the catalogue and the code, and the worked example.

The page is written by hand around blocks that begin with ``<!-- table: NAME -->`` and end with ``<!-- end -->``. Run from the
root of the repository: ``python docs/tables/model.py`` writes the page, ``--check`` fails when it is stale, ``--stdout`` prints it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "envs")]

from ai_factory_gym import catalogue  # noqa: E402
from ai_factory_gym.physics.performance import (  # noqa: E402
    BYTES_PER_KV,
    PrefillCoefficients,
    decode_coefficients,
    decode_iteration_s,
    kv_bytes_per_token,
    prefill_coefficients,
    prefill_work_s,
)
from ai_factory_gym.physics.power import gpu_power_w, power_coefficients, rack_power_w  # noqa: E402
from ai_factory_gym.physics.serving import serving_point  # noqa: E402
from ai_factory_gym.sites import BrakeConfig, CoolingConfig  # noqa: E402

PAGE = ROOT / "docs" / "model.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

SYMBOLS = {
    "memory_efficiency": "eta_m",
    "expert_memory_efficiency": "eta_e",
    "decode_compute_efficiency_fp8": "eta_c (fp8, bf16)",
    "decode_compute_efficiency_fp4": "eta_c (fp4)",
    "prefill_efficiency_fp8": "eta_p (fp8, bf16)",
    "prefill_efficiency_fp4": "eta_p (fp4)",
    "prefill_attention_efficiency": "eta_a",
    "link_efficiency": "eta_n",
    "layer_latency_dense_s": "tau (dense)",
    "layer_latency_moe_s": "tau (MLA, experts)",
    "layer_latency_moe_fp4_s": "tau (MLA, experts, fp4)",
    "tensor_latency_s": "alpha",
    "all_to_all_latency_s": "alpha_a2a",
    "sequence_latency_s": "sigma",
    "prefill_layer_latency_s": "tau_p",
    "frontend_disaggregated_s": "T0 (disaggregated)",
    "frontend_aggregated_s": "T0 (aggregated)",
    "aggregated_interference": "phi",
    "queue_factor": "beta",
    "mtp_tokens_kept": "a",
    "mtp_tokens_verified": "m",
    "mtp_latency_factor": "mu",
    "voltage_floor": "v0",
    "active_fraction": "p_active",
    "compute_fraction": "p_compute",
    "memory_core_fraction": "p_core",
    "memory_fraction": "p_memory",
    "expert_power_ratio": "rho",
}
"""Symbol of each constant of a GPU generation in the equations of the page."""

CONSTANTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "physics.performance": (
        ("MEMORY_KNEE_CLOCK", "1", ""),
        ("CHUNK_TOKENS", "token", ""),
        ("MAX_LANES", "1", ""),
        ("MEMORY_RESERVE", "1", ""),
        ("BYTES_PER_WEIGHT", "B", ""),
        ("BYTES_PER_KV", "B", ""),
        (
            "_KERNELS_PER_LAYER_MLA_MOE",
            "1",
            "Kernels of an MLA layer with experts (status derived: form of the fit; only the ratio to the next matters).",
        ),
        ("_KERNELS_PER_LAYER_GQA_MOE", "1", "Kernels of a GQA layer with experts (status derived: form of the fit)."),
    ),
    "physics.serving": (
        ("MINIMUM_CLOCK", "1", ""),
        ("_ITERATIONS", "1", "Most steps of the fixed point of the closed loop (numerics)."),
        ("_TOLERANCE", "1", "Relative change of the batch at which it stops (numerics)."),
        ("_LARGEST_EXPONENT", "1", "`serving_frontier` tries up to 2 to this power users (search grid)."),
        ("_FRONTIER_SIZES", "1", "Attention ranks per worker that it tries (search grid)."),
        ("_WORKER_RATIOS", "1", "Prefill and decode workers that it tries (search grid)."),
    ),
    "physics.cooling": (
        ("FREE_COOLING_C", "degC", ""),
        ("FIXED_SHARE", "1", ""),
        ("MINIMUM_LOAD_FRACTION", "1", "Load below which PUE is not extrapolated (status assumed)."),
    ),
    "engine.heat": (("LOOK_AHEAD_S", "s", ""),),
    "engine.smoothing": (("REST_S", "s", ""),),
    "sites": (("LOOP_TIME_CONSTANT_S", "s", ""),),
    "engine.draw": (
        (
            "_LOWEST_CLOCK",
            "1",
            "Lowest clock a power limit sets (status assumed: performance collapses well above it).",
        ),
        ("_BISECTIONS", "1", "Halvings of the interval of clocks (numerics)."),
        ("SURE", "1", ""),
        ("_UNEVEN_S", "s", ""),
        ("_FIT_S", "s", ""),
        ("EVENTS_S", "s", ""),
    ),
    "engine.arrivals": (("CROWDED_PARTS", "1", ""), ("_USUAL_SHARE", "1", "")),
    "engine.decode": (
        ("SPLIT_PARTS", "1", ""),
        ("NEARLY", "1", ""),
        ("PACE_STEP", "1", ""),
        ("AT_ONCE", "1", ""),
        ("PACE_S", "s", ""),
        ("PACE_MEMORY_S", "s", ""),
    ),
    "params": (
        ("SLICE_S", "s", ""),
        ("COHORT_DAY_TOKENS", "tokens", ""),
        ("REQUEST_DAYS_PER_TOKEN", "1/token", ""),
        ("REQUEST_DAYS_PER_S", "1/s", ""),
        ("REFERENCE_CLOCK", "1", ""),
        ("REFERENCE_TPOT_SHARE", "1", ""),
        ("URGENT_S", "s", ""),
        ("LONGEST_RISE_S", "s", ""),
        ("LONGEST_WAKE_WAIT_S", "s", ""),
    ),
    "operating_point": (("PREFILL_UTILISATION_LIMIT", "1", ""),),
}
"""Constants in the code: module, then name, unit, and what the constant is where the code has no text on it."""

SITE_UNITS = {
    "base": "1",
    "per_kelvin": "1/K",
    "outdoor_c": "degC",
    "free_cooling_c": "degC",
    "fixed_share": "1",
    "coolant_limit_c": "degC",
    "design_outdoor_c": "degC",
    "loop_time_constant_s": "s",
    "enabled": "",
    "reaction_s": "s",
    "clock": "1",
    "floor": "1",
    "hold_s": "s",
    "target": "1",
    "release": "1",
}


def number(value: Any) -> str:
    """Return a value as the tables show it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(entry)}" for key, entry in value.items())
    if isinstance(value, tuple):
        return ", ".join(":".join(map(str, entry)) if isinstance(entry, tuple) else str(entry) for entry in value)
    if value is None or isinstance(value, (bool, str)):
        return str(value).lower()
    if abs(value) >= 1e3 and value == int(value):
        return f"{int(value):,}"
    return f"{value:.6g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]


def _grouped(texts: dict[str, str]) -> str:
    """Return what holds for whom: one text, or each with the names it holds for."""
    owners: dict[str, list[str]] = {}
    for name, text in texts.items():
        owners.setdefault(text, []).append(name)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in owners.items())


def _source(quantity: catalogue.Quantity) -> str:
    return quantity.source + (f" ({quantity.note})" if quantity.note else "")


def architectures() -> list[str]:
    """Constants of each GPU generation."""
    kinds: dict[str, Any] = {}
    for name in catalogue.rack_ids():
        for group in catalogue.rack(name).groups:
            kinds.setdefault(group.architecture.id, group.architecture)
    kinds = {
        name: kinds[name] for name in sorted(kinds, key=["hopper", "blackwell", "rubin", "rubin_cpx", *kinds].index)
    }
    rows = []
    for field, symbol in SYMBOLS.items():
        found = {name: kind.quantity(field) for name, kind in kinds.items()}
        rows.append(
            [
                f"`{field}`",
                symbol,
                next(iter(found.values())).unit,
                *(number(quantity.value) for quantity in found.values()),
                _grouped({name: quantity.status for name, quantity in found.items()}),
                _grouped({name: _source(quantity) for name, quantity in found.items()}),
            ]
        )
    return table(["constant", "symbol", "unit", *kinds, "status", "source"], rows)


def racks() -> list[str]:
    """Numbers of each rack type and power profile."""
    lines: list[str] = []
    for name in catalogue.rack_ids():
        rack = catalogue.rack(name)
        flag = ", **hypothetical: never shipped**" if rack.hypothetical else ""
        lines += [f"### {rack.label} (`{name}`)", "", f"Availability: {rack.availability}{flag}.", ""]
        rows = []
        for group in rack.groups:
            where = f"{group.id}: " if len(rack.groups) > 1 else ""
            rows.append([f"{where}generation", f"`{group.architecture.id}`", "", "", ""])
            rows.append([f"{where}phases", ", ".join(group.phases), "", "", ""])
            rows += [
                [f"{where}`{key}`", number(quantity.value), quantity.unit, quantity.status, _source(quantity)]
                for key, quantity in group.provenance
            ]
            for profile in group.profiles:
                rows += [
                    [
                        f"{where}{profile.id}: `{key}`",
                        number(quantity.value),
                        quantity.unit,
                        quantity.status,
                        _source(quantity),
                    ]
                    for key, quantity in profile.provenance
                ]
        lines += [*table(["quantity", "value", "unit", "status", "source"], rows), ""]
    return lines[:-1]


def rack_power() -> list[str]:
    """Overhead and loss that follow from each profile's nameplate and idle draw."""
    rows = []
    for name in catalogue.rack_ids():
        for group in catalogue.rack(name).groups:
            for profile in group.profiles:
                found = power_coefficients(name, profile.id, phase=group.phases[0])
                rows.append(
                    [
                        f"`{name}`" + (f" {group.id}" if len(catalogue.rack(name).groups) > 1 else ""),
                        profile.id,
                        number(profile.nameplate_w),
                        number(profile.idle_rack_w),
                        number(found.gpus),
                        number(found.tdp_w),
                        number(found.idle_w),
                        f"{found.loss:.4f}",
                        f"{found.overhead_w:,.0f}",
                    ]
                )
    header = ["rack", "profile", "nameplate W", "idle W", "GPUs", "TDP W", "idle GPU W", "loss", "overhead W"]
    return table(header, rows)


def models() -> list[str]:
    """Shapes of the served models and what follows from them."""
    found = {name: catalogue.model(name) for name in catalogue.model_ids()}
    fields = [
        field.name
        for field in dataclasses.fields(catalogue.Model)
        if field.name not in ("provenance", "id", "attention")
    ]
    rows: list[list[str]] = [["`attention`", "", *(model.attention for model in found.values()), "", ""]]
    for field in fields:
        quantities = {name: model.quantity(field) for name, model in found.items() if field in dict(model.provenance)}
        rows.append(
            [
                f"`{field}`",
                next(iter(quantities.values())).unit,
                *(number(quantities[name].value) if name in quantities else "" for name in found),
                _grouped({name: quantity.status for name, quantity in quantities.items()}),
                _grouped({name: _source(quantity) for name, quantity in quantities.items()}),
            ]
        )
    derived: list[tuple[str, str, Callable[[catalogue.Model], str]]] = [
        ("all parameters", "billion", lambda m: f"{m.total_params / 1e9:.1f}"),
        ("multiplied per token", "billion", lambda m: f"{m.active_params / 1e9:.2f}"),
        ("P_dense", "billion", lambda m: f"{m.dense_params / 1e9:.3f}"),
        ("P_e", "billion", lambda m: f"{m.expert_params / 1e9:.3f}"),
        ("P_emb", "billion", lambda m: f"{m.embedding_params / 1e9:.3f}"),
        ("kv at fp8", "B/token", lambda m: number(kv_bytes_per_token(m))),
        (
            "kv of a window at fp8",
            "B/request",
            lambda m: number(m.kv_elements_constant * BYTES_PER_KV["fp8"]),
        ),
    ]
    rows += [[name, unit, *(value(m) for m in found.values()), "derived", "shape"] for name, unit, value in derived]
    return table(["number", "unit", *found, "status", "source"], rows)


def _texts(module: Any) -> dict[str, str]:
    """Return the text that follows each constant in a module's source."""
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    texts = {}
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(after.value.value, str):
                    texts[target.id] = " ".join(after.value.value.replace("``", "`").split())
    return texts


def constants() -> list[str]:
    """Constants in the code."""
    rows = []
    for name, entries in CONSTANTS.items():
        module = importlib.import_module(f"ai_factory_gym.{name}")
        texts = _texts(module)
        for constant, unit, text in entries:
            rows.append(
                [f"`{name}.{constant}`", number(getattr(module, constant)), unit, texts.get(constant, "") or text]
            )
    return table(["constant", "value", "unit", "what it is, status and source"], rows)


def site_defaults() -> list[str]:
    """Defaults of a site's cooling and brake."""
    rows = [
        [f"`{name}.{field.name}`", number(field.default), SITE_UNITS[field.name]]
        for name, kind in (("cooling", CoolingConfig), ("brake", BrakeConfig))
        for field in dataclasses.fields(kind)
    ]
    return table(["setting of a site", "default", "unit"], rows)


# The worked example.

RACK, MODEL = "b200_sxm8", "deepseek-r1"
EXAMPLE = {"precision": "fp8", "tp": 8}
BATCH, PROMPT, OUTPUT, USERS = 64, 1024, 1024, 64
DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Step:
    """A line of the worked example.

    Attributes:
        key: Name, which the test uses.
        text: What is worked out.
        value: Its value, in SI units.
        unit: Unit it is shown in.
        scale: Shown value over SI value.
    """

    key: str
    text: str
    value: float
    unit: str
    scale: float = 1.0

    def shown(self, value: float | None = None) -> str:
        """Return the value, or another one in its place, as the page shows it."""
        return f"{self.scale * (self.value if value is None else value):.{DIGITS}g} {self.unit}".strip()


def _ms(key: str, text: str, value: float) -> Step:
    return Step(key, text, value, "ms", 1e3)


def worked_decode() -> list[Step]:
    """One decode iteration."""
    model = catalogue.model(MODEL)
    c = decode_coefficients(RACK, MODEL, **EXAMPLE)  # type: ignore[arg-type]
    context = PROMPT + 0.5 * OUTPUT
    touched = 1.0 - math.exp(c.expert_log * BATCH)
    iteration_s, compute_s, memory_s = decode_iteration_s(np.array(c), float(BATCH), context, 1.0)
    communication_s = c.communication_request_s * BATCH
    dense_s, kv_s = c.memory_s, c.memory_context_s * BATCH * context
    experts_s = c.experts_s * touched
    coefficients = power_coefficients(RACK)
    power = np.array(coefficients)
    gpu_w = gpu_power_w(power, 1.0, 1.0, compute_s / iteration_s, memory_s / iteration_s)
    return [
        Step("dense_params", "P_dense, parameters every token is multiplied with", model.dense_params, "billion", 1e-9),
        Step("expert_params", "P_e, one expert over all layers", model.expert_params, "billion", 1e-9),
        Step("kv_bytes", "kv = 61 layers x (512 + 64) elements x 1 B", kv_bytes_per_token(model), "B/token"),
        _ms("dense_s", "dense weights: P_dense x 1 B / 8 / (BW eta_m)", dense_s),
        _ms("kv_s", "KV: 64 x 1,536 x kv / (BW eta_m), as MLA has one shard", kv_s),
        Step("touched", "u = 1 - (1 - 8/256)^64", touched, ""),
        _ms("experts_s", "t_exp, experts: 256 P_e x 1 B x u / (8 BW eta_e)", experts_s),
        _ms("memory_s", "t_mem, the sum of the three", dense_s + kv_s + experts_s),
        _ms(
            "compute_s",
            "t_cmp = 64 [2 (8 P_e + P_dense) / (8 F_8 eta_c) + A 1,536 / (8 F_a eta_c)]",
            compute_s - communication_s,
        ),
        _ms("communication_s", "t_comm = 61 x 64 h x 8 x 7/8 / (link eta_n)", communication_s),
        _ms("latency_s", "61 (tau + 3 alpha)", c.latency_s),
        _ms("sequence_s", "61 x 64 sigma", c.latency_request_s * BATCH),
        _ms("iteration_s", "t_it = sqrt(t_mem^2 + t_cmp^2) + t_comm + 61 (tau + 3 alpha + 64 sigma)", iteration_s),
        Step("rate", "output of the worker: 64 / t_it", BATCH / iteration_s, "tokens/s"),
        Step("compute_activity", "compute activity: (t_cmp + t_comm) / t_it", compute_s / iteration_s, ""),
        Step("memory_activity", "memory activity: (t_mem - t_exp + rho t_exp) / t_it", memory_s / iteration_s, ""),
        Step("gpu_w", "draw of a GPU", gpu_w, "W"),
        Step("rack_w", "draw of the 8-GPU system", rack_power_w(power, gpu_w), "W"),
        Step("kv_capacity", "KV capacity of the worker", c.kv_capacity_tokens, "million tokens", 1e-6),
    ]


def worked_serving() -> list[Step]:
    """One prefill, and the closed loop of a prefill and a decode worker."""
    p: PrefillCoefficients = prefill_coefficients(RACK, MODEL, **EXAMPLE)  # type: ignore[arg-type]
    scaling_s, fixed_s = prefill_work_s(np.array(p), float(PROMPT), float(PROMPT) ** 2)
    point = serving_point(
        RACK,
        MODEL,
        precision="fp8",
        prompt_tokens=PROMPT,
        output_tokens=OUTPUT,
        concurrency=USERS,
        prefill_tp=8,
        decode_tp=8,
    )
    return [
        _ms("weights_s", "products with the weights: 1,024 t_w", p.per_token_s * PROMPT),
        _ms("attention_s", "attention: 1,024^2 A_p 61 / 2 / (8 F_a eta_a)", p.per_token2_s * PROMPT**2),
        _ms("exposed_s", "weights read and collectives that products do not hide", p.stream_per_token_s * PROMPT),
        _ms("overhead_s", "share of a pass: 1,024 / CHUNK_TOKENS x 61 tau_p", p.overhead_per_token_s * PROMPT),
        _ms("service_s", "s, the sum: one lane, so the worker's service time is the lane's", scaling_s + fixed_s),
        _ms(
            "transfer_s",
            "KV transfer: 1,024 kv / (8 scale-out links)",
            PROMPT * p.kv_bytes_per_token / p.transfer_bytes_per_s,
        ),
        _ms("frontend_s", "T0 + t_pass = T0 + 61 tau_p", p.frontend_s),
        _ms("ttft_s", "TTFT = T0 + t_pass + s + transfer + t_pass (1 - 1/64) + beta s (64 - 1)", point.ttft_s),
        Step("batch", "B that solves the loop", point.batch, ""),
        _ms("tpot_s", "TPOT = t_it(B) at 1,536 tokens of context", point.tpot_s),
        Step("requests_per_s", "X = 64 / (TTFT + 1,023 TPOT)", point.requests_per_s, "requests/s"),
        Step(
            "output_tokens_per_s_per_gpu",
            "output: 1,024 X / 16 GPUs",
            point.output_tokens_per_s_per_gpu,
            "tokens/s/GPU",
        ),
        Step("prefill_utilisation", "utilisation of the prefill worker: X s", point.prefill_utilisation, ""),
        Step("gpu_power_w", "mean draw of a GPU", point.gpu_power_w, "W"),
        Step("power_w_per_gpu", "IT power over the GPUs", point.power_w_per_gpu, "W"),
    ]


def _steps(steps: Sequence[Step]) -> list[str]:
    return table(["step", "value"], [[step.text, step.shown()] for step in steps])


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "architectures": architectures,
    "racks": racks,
    "rack_power": rack_power,
    "models": models,
    "constants": constants,
    "site_defaults": site_defaults,
    "worked_decode": lambda: _steps(worked_decode()),
    "worked_serving": lambda: _steps(worked_serving()),
}


def filled(page: str) -> str:
    """Return the page with every block filled anew.

    Raises:
        SystemExit: When a block is unknown or missing.
    """
    names = [match.group(2) for match in BLOCK.finditer(page)]
    if sorted(names) != sorted(BLOCKS):
        raise SystemExit(f"error: {PAGE.name} has the blocks {names}; it must have each of {list(BLOCKS)} once.")
    return BLOCK.sub(lambda match: match.group(1) + "\n".join(BLOCKS[match.group(2)]()) + "\n" + match.group(3), page)


def main() -> None:
    """Write, print or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stdout", action="store_true", help="print instead of writing docs/model.md")
    parser.add_argument("--check", action="store_true", help="fail when docs/model.md is stale; write nothing")
    options = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if options.check:
        if before != after:
            raise SystemExit("error: docs/model.md is stale; run python docs/tables/model.py.")
    elif options.stdout:
        print(after, end="")
    else:
        PAGE.write_text(after, encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
