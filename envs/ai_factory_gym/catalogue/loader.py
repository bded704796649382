"""Strict reader of the rack and model catalogue.

Each number in the TOML files is an inline table ``{value, unit, status, source}`` with an optional ``note``. The reader
checks the unit, the range and the status of every one, refuses unknown and missing keys, and returns frozen dataclasses
of plain floats that keep the provenance beside the value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ai_factory_gym.errors import ConfigError, check_keys, unknown

PRECISIONS: tuple[str, ...] = ("fp8", "fp4", "bf16")
"""Weight precisions a model can be served at."""

PHASES: tuple[str, ...] = ("prefill", "decode")
"""The two phases of serving."""

STATUSES: tuple[str, ...] = (
    "vendor-stated",
    "measured by third party",
    "measured by submitter, MLCommons-audited",
    "calibrated",
    "analyst estimate",
    "secondary report",
    "from memory, unverified",
    "derived",
    "assumed",
)
"""How a number came to be known, from best to least supported (`calibrated`, `derived` and `assumed` are our own)."""

_DIRECTORY = Path(__file__).parent
_RACKS = _DIRECTORY / "racks.toml"
_MODELS = _DIRECTORY / "models.toml"


class Quantity(NamedTuple):
    """One number of the catalogue with its provenance."""

    value: float
    unit: str
    status: str
    source: str
    note: str = ""


class _Spec(NamedTuple):
    """What a number may be: its unit, its closed range, whether it is a whole number, whether it may be left out."""

    unit: str
    low: float
    high: float
    whole: bool = False
    default: float | None = None


Provenance = tuple[tuple[str, Quantity], ...]


@dataclass(frozen=True)
class _Sourced:
    """Base of the catalogue's records: keeps where each of its numbers comes from."""

    provenance: Provenance = field(repr=False, compare=False)

    def quantity(self, name: str) -> Quantity:
        """Return value, unit, status and source of one number.

        Raises:
            ConfigError: When the record has no number of that name.
        """
        numbers = dict(self.provenance)
        if name not in numbers:
            raise unknown("quantity", name, numbers)
        return numbers[name]


@dataclass(frozen=True)
class Architecture(_Sourced):
    """Efficiencies, latencies and power shape of one GPU generation.

    Attributes:
        id: Name of the generation.
        memory_efficiency: Share of memory bandwidth reached on dense weights and KV (eta_m).
        expert_memory_efficiency: The same on expert weights (eta_e).
        decode_compute_efficiency_fp8: Share of peak FLOP/s in decode, 8 and 16 bit (eta_c).
        decode_compute_efficiency_fp4: The same, 4 bit.
        prefill_efficiency_fp8: Share of peak FLOP/s in prefill, 8 and 16 bit (eta_p).
        prefill_efficiency_fp4: The same, 4 bit.
        prefill_attention_efficiency: Share of the attention peak reached by prefill attention.
        link_efficiency: Share of the link bandwidth reached by collectives (eta_n).
        layer_latency_dense_s: Fixed time per decode layer of a dense model (tau).
        layer_latency_moe_s: Fixed time per decode layer of an MLA mixture-of-experts model; other kinds scale with
            their kernels.
        layer_latency_moe_fp4_s: The same at 4 bit, whose kernels are younger.
        tensor_latency_s: Extra time per layer per doubling of the tensor-parallel size (alpha).
        all_to_all_latency_s: Extra time per layer of the expert all-to-all (alpha_a2a).
        sequence_latency_s: Time per sequence and layer in an iteration that nothing hides: launches and bookkeeping of each request (sigma).
        prefill_layer_latency_s: Fixed time per layer of a prefill pass of an MLA mixture-of-experts model (tau_p).
        frontend_disaggregated_s: Latency of everything before and after the workers, disaggregated (T0).
        frontend_aggregated_s: The same, aggregated.
        aggregated_interference: Share of prefill service that delays the decode of the same worker (phi).
        queue_factor: Growth of TTFT per further user of a prefill worker, in services (beta).
        mtp_tokens_kept: Tokens kept per iteration with multi-token prediction (a).
        mtp_tokens_verified: Tokens verified per iteration with multi-token prediction (m).
        mtp_latency_factor: Growth of the fixed latencies per extra verified token.
        voltage_floor: v0 of V(f) = v0 + (1 - v0) f.
        active_fraction: Power of a running GPU above idle, before activity, as a share of TDP.
        compute_fraction: Power of fully busy compute units, share of TDP.
        memory_core_fraction: Clock-dependent power of a fully busy memory system, share of TDP.
        memory_fraction: Clock-independent power of a fully busy memory system, share of TDP.
        expert_power_ratio: Power of reading expert weights relative to reading dense weights and KV.
    """

    id: str
    memory_efficiency: float
    expert_memory_efficiency: float
    decode_compute_efficiency_fp8: float
    decode_compute_efficiency_fp4: float
    prefill_efficiency_fp8: float
    prefill_efficiency_fp4: float
    prefill_attention_efficiency: float
    link_efficiency: float
    layer_latency_dense_s: float
    layer_latency_moe_s: float
    layer_latency_moe_fp4_s: float
    tensor_latency_s: float
    all_to_all_latency_s: float
    sequence_latency_s: float
    prefill_layer_latency_s: float
    frontend_disaggregated_s: float
    frontend_aggregated_s: float
    aggregated_interference: float
    queue_factor: float
    mtp_tokens_kept: float
    mtp_tokens_verified: float
    mtp_latency_factor: float
    voltage_floor: float
    active_fraction: float
    compute_fraction: float
    memory_core_fraction: float
    memory_fraction: float
    expert_power_ratio: float


_ARCHITECTURE: dict[str, _Spec] = {
    "memory_efficiency": _Spec("ratio", 0.05, 1.0),
    "expert_memory_efficiency": _Spec("ratio", 0.05, 1.0),
    "decode_compute_efficiency_fp8": _Spec("ratio", 0.05, 1.0),
    "decode_compute_efficiency_fp4": _Spec("ratio", 0.05, 1.0),
    "prefill_efficiency_fp8": _Spec("ratio", 0.05, 1.0),
    "prefill_efficiency_fp4": _Spec("ratio", 0.05, 1.0),
    "prefill_attention_efficiency": _Spec("ratio", 0.05, 1.0),
    "link_efficiency": _Spec("ratio", 0.05, 1.0),
    "layer_latency_dense_s": _Spec("s/layer", 0.0, 0.01),
    "layer_latency_moe_s": _Spec("s/layer", 0.0, 0.01),
    "layer_latency_moe_fp4_s": _Spec("s/layer", 0.0, 0.01),
    "tensor_latency_s": _Spec("s/layer", 0.0, 0.01),
    "all_to_all_latency_s": _Spec("s/layer", 0.0, 0.01),
    "sequence_latency_s": _Spec("s/(sequence layer)", 0.0, 1e-4),
    "prefill_layer_latency_s": _Spec("s/layer", 0.0, 0.1),
    "frontend_disaggregated_s": _Spec("s", 0.0, 10.0),
    "frontend_aggregated_s": _Spec("s", 0.0, 10.0),
    "aggregated_interference": _Spec("ratio", 0.0, 5.0),
    "queue_factor": _Spec("ratio", 0.0, 5.0),
    "mtp_tokens_kept": _Spec("token", 1.0, 8.0),
    "mtp_tokens_verified": _Spec("token", 1.0, 8.0),
    "mtp_latency_factor": _Spec("ratio", 0.0, 2.0),
    "voltage_floor": _Spec("ratio", 0.0, 0.99),
    "active_fraction": _Spec("ratio", 0.0, 1.0),
    "compute_fraction": _Spec("ratio", 0.0, 1.0),
    "memory_core_fraction": _Spec("ratio", 0.0, 1.0),
    "memory_fraction": _Spec("ratio", 0.0, 1.0),
    "expert_power_ratio": _Spec("ratio", 0.1, 10.0),
}


@dataclass(frozen=True)
class Profile(_Sourced):
    """One power profile of a group of GPUs.

    Attributes:
        id: Name of the profile.
        tdp_w: Power limit of one GPU.
        nameplate_w: Rack draw with every GPU at TDP.
        idle_rack_w: Rack draw, awake and without work.
        sleep_rack_w: Rack draw, asleep.
        wake_rack_w: Rack draw while waking.
        compute_scale: Compute rate at clock 1 relative to the peak FLOP/s of the group (1 for the fastest profile).
    """

    id: str
    tdp_w: float
    nameplate_w: float
    idle_rack_w: float
    sleep_rack_w: float
    wake_rack_w: float
    compute_scale: float


_PROFILE: dict[str, _Spec] = {
    "tdp_w": _Spec("W", 1.0, 1e4),
    "nameplate_w": _Spec("W", 1.0, 1e7),
    "idle_rack_w": _Spec("W", 0.0, 1e7),
    "sleep_rack_w": _Spec("W", 0.0, 1e7),
    "wake_rack_w": _Spec("W", 0.0, 1e7),
    "compute_scale": _Spec("ratio", 0.1, 1.0),
}


@dataclass(frozen=True)
class Group(_Sourced):
    """The GPUs of one kind in a rack. Most racks have one group; a mixed rack has one per kind.

    Attributes:
        id: Name of the group.
        architecture: Generation whose efficiencies hold.
        phases: Phases this group serves.
        gpus: GPUs (packages) in the group.
        fp4_pflops: Dense 4-bit peak of one GPU; 0 where the GPU has no 4-bit units.
        fp8_pflops: Dense 8-bit peak.
        bf16_pflops: Dense bf16 peak.
        attention_pflops: Rate at which attention runs before efficiency.
        memory_gb: Memory of one GPU.
        memory_tb_s: Memory bandwidth of one GPU.
        link_gb_s: One-way bandwidth between GPUs within the link domain (NVLink, or PCIe without it).
        link_domain_gpus: GPUs that reach each other over that link.
        scaleout_gb_s: One-way network bandwidth of one GPU.
        idle_w: Draw of an idle GPU.
        wake_s: Time from asleep to serving, weights loaded.
        profiles: Power profiles by name; the first is the default.
    """

    id: str
    architecture: Architecture
    phases: tuple[str, ...]
    gpus: int
    fp4_pflops: float
    fp8_pflops: float
    bf16_pflops: float
    attention_pflops: float
    memory_gb: float
    memory_tb_s: float
    link_gb_s: float
    link_domain_gpus: int
    scaleout_gb_s: float
    idle_w: float
    wake_s: float
    profiles: tuple[Profile, ...]

    def profile(self, name: str | None = None) -> Profile:
        """Return a power profile by name; None is the default one.

        Raises:
            ConfigError: When the group has no profile of that name.
        """
        if name is None:
            return self.profiles[0]
        for candidate in self.profiles:
            if candidate.id == name:
                return candidate
        raise unknown(f"{self.id}: profile", name, [candidate.id for candidate in self.profiles])

    def flops(self, precision: str) -> float:
        """Return the dense peak in FLOP/s of one GPU at a precision.

        Raises:
            ConfigError: When the GPU cannot compute at that precision.
        """
        peaks = {"fp4": self.fp4_pflops, "fp8": self.fp8_pflops, "bf16": self.bf16_pflops}
        if precision not in peaks:
            raise unknown("precision", precision, PRECISIONS)
        if peaks[precision] <= 0.0:
            able = [name for name, peak in peaks.items() if peak > 0.0]
            raise ConfigError(
                f"precision: {self.architecture.id} GPUs have no {precision} units; allowed: {', '.join(able)}."
            )
        return peaks[precision] * 1e15


_GROUP: dict[str, _Spec] = {
    "gpus": _Spec("GPU", 1, 10_000, whole=True),
    "fp4_pflops": _Spec("PFLOP/s", 0.0, 1e3, default=0.0),
    "fp8_pflops": _Spec("PFLOP/s", 1e-3, 1e3),
    "bf16_pflops": _Spec("PFLOP/s", 1e-3, 1e3),
    "attention_pflops": _Spec("PFLOP/s", 1e-3, 1e3),
    "memory_gb": _Spec("GB", 1.0, 1e5),
    "memory_tb_s": _Spec("TB/s", 1e-3, 1e3),
    "link_gb_s": _Spec("GB/s", 1e-3, 1e5),
    "link_domain_gpus": _Spec("GPU", 1, 10_000, whole=True),
    "scaleout_gb_s": _Spec("GB/s", 1e-3, 1e5),
    "idle_w": _Spec("W", 0.0, 1e4),
    "wake_s": _Spec("s", 0.0, 86_400.0),
}


@dataclass(frozen=True)
class Rack:
    """One rack type (or 8-GPU system) of the catalogue.

    Attributes:
        id: Catalogue name.
        label: Name for people.
        availability: Whether and when it can be bought.
        hypothetical: True when the product was never shipped; every table that shows it says so.
        groups: Its GPUs, one group per kind.
    """

    id: str
    label: str
    availability: str
    hypothetical: bool
    groups: tuple[Group, ...]

    def group(self, phase: str | None = None) -> Group:
        """Return the GPUs that serve a phase; None is allowed where there is only one group.

        Raises:
            ConfigError: When the phase is unknown, not served, or needed to choose.
        """
        if phase is None:
            if len(self.groups) == 1:
                return self.groups[0]
            raise ConfigError(f"rack {self.id!r} has two kinds of GPU: say which phase; allowed: {', '.join(PHASES)}.")
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        for candidate in self.groups:
            if phase in candidate.phases:
                return candidate
        raise ConfigError(f"rack {self.id!r} has no GPUs for {phase}.")


@dataclass(frozen=True)
class Model(_Sourced):
    """A served model: its shape, from which parameters, FLOPs and bytes are derived.

    Attributes:
        id: Catalogue name.
        attention: ``mla`` (compressed KV shared by all heads) or ``gqa``.
        layers: Transformer layers.
        hidden: Width of the residual stream.
        vocab: Vocabulary; embedding and output head are separate matrices.
        heads: Query heads.
        kv_heads: Key-value heads (gqa).
        head_dim: Width of a head (gqa).
        q_lora: Query compression rank (mla).
        kv_lora: KV compression rank (mla).
        rope: Rotary elements per token (mla).
        nope_dim: Non-rotary width of a head (mla).
        v_dim: Value width of a head (mla).
        sliding_layers: Layers that attend to a window only.
        window: That window.
        dense_layers: Layers with a dense FFN.
        dense_ffn: Its width.
        experts: Routed experts of each other layer.
        shared_experts: Experts every token uses.
        top_k: Routed experts per token.
        expert_ffn: Width of an expert.
        max_context: Longest context the model is published for.
    """

    id: str
    attention: Literal["mla", "gqa"]
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    q_lora: int
    kv_lora: int
    rope: int
    nope_dim: int
    v_dim: int
    sliding_layers: int
    window: int
    dense_layers: int
    dense_ffn: int
    experts: int
    shared_experts: int
    top_k: int
    expert_ffn: int
    max_context: int

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return self.dense_layers < self.layers

    @property
    def attention_params(self) -> float:
        """Parameters of the attention blocks of all layers."""
        if self.attention == "mla":
            per_layer = (
                self.hidden * self.q_lora
                + self.q_lora * self.heads * (self.nope_dim + self.rope)
                + self.hidden * (self.kv_lora + self.rope)
                + self.kv_lora * self.heads * (self.nope_dim + self.v_dim)
                + self.heads * self.v_dim * self.hidden
            )
        else:
            per_layer = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return float(self.layers * per_layer)

    @property
    def embedding_params(self) -> float:
        """Parameters of the input embedding: looked up, neither streamed nor multiplied."""
        return float(self.vocab * self.hidden)

    @property
    def dense_params(self) -> float:
        """Parameters every token is multiplied with: attention, dense FFN, shared experts, router, output head."""
        moe_layers = self.layers - self.dense_layers
        ffn = (
            3 * self.hidden * (self.dense_layers * self.dense_ffn + moe_layers * self.shared_experts * self.expert_ffn)
        )
        return self.attention_params + ffn + moe_layers * self.hidden * self.experts + self.embedding_params

    @property
    def expert_params(self) -> float:
        """Parameters of one routed expert, summed over the layers that have experts (P_e)."""
        return float((self.layers - self.dense_layers) * 3 * self.hidden * self.expert_ffn)

    @property
    def total_params(self) -> float:
        """All parameters."""
        return self.dense_params + self.embedding_params + self.experts * self.expert_params

    @property
    def active_params(self) -> float:
        """Parameters a token is multiplied with (the input embedding is not)."""
        return self.dense_params + self.top_k * self.expert_params

    @property
    def kv_elements_per_token(self) -> float:
        """KV-cache elements that grow with every token (sliding-window layers hold a constant amount)."""
        per_layer = self.kv_lora + self.rope if self.attention == "mla" else 2 * self.kv_heads * self.head_dim
        return float((self.layers - self.sliding_layers) * per_layer)

    @property
    def kv_elements_constant(self) -> float:
        """KV-cache elements of the sliding-window layers of one full sequence."""
        return float(self.sliding_layers * self.window * 2 * self.kv_heads * self.head_dim)


_SHAPE: dict[str, _Spec] = {
    "layers": _Spec("layer", 1, 1000, whole=True),
    "hidden": _Spec("element", 1, 1_000_000, whole=True),
    "vocab": _Spec("token", 1, 10_000_000, whole=True),
    "heads": _Spec("head", 1, 10_000, whole=True),
    "dense_layers": _Spec("layer", 0, 1000, whole=True),
    "max_context": _Spec("token", 1, 100_000_000, whole=True),
}
_MLA: dict[str, _Spec] = {
    name: _Spec("element", 1, 100_000, whole=True) for name in ("q_lora", "kv_lora", "rope", "nope_dim", "v_dim")
}
_GQA: dict[str, _Spec] = {
    "kv_heads": _Spec("head", 1, 10_000, whole=True),
    "head_dim": _Spec("element", 1, 100_000, whole=True),
    "sliding_layers": _Spec("layer", 0, 1000, whole=True, default=0),
    "window": _Spec("token", 0, 10_000_000, whole=True, default=0),
}
_DENSE: dict[str, _Spec] = {"dense_ffn": _Spec("element", 1, 10_000_000, whole=True)}
_MOE: dict[str, _Spec] = {
    "experts": _Spec("expert", 1, 100_000, whole=True),
    "shared_experts": _Spec("expert", 0, 1000, whole=True),
    "top_k": _Spec("expert", 1, 100_000, whole=True),
    "expert_ffn": _Spec("element", 1, 10_000_000, whole=True),
}


def _table(where: str, value: object) -> Mapping[str, Any]:
    """Return ``value`` when it is a table, else refuse it."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {value!r} is not allowed; must be a table.")
    return value


def _text(where: str, value: object, allowed: Collection[str] | None = None) -> str:
    """Return ``value`` when it is a non-empty string (one of ``allowed``), else refuse it."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {value!r} is not allowed; must be a non-empty string.")
    if allowed is not None and value not in allowed:
        raise unknown(where, value, allowed)
    return value


def _quantity(where: str, value: object, spec: _Spec) -> Quantity:
    """Read one ``{value, unit, status, source}`` and check it against its specification."""
    table = _table(where, value)
    check_keys(where, table, required=("value", "unit", "status", "source"), optional=("note",))
    number = table["value"]
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not spec.low <= number <= spec.high:
        raise ConfigError(
            f"{where}.value: {number!r} is not allowed; must be a number in [{spec.low:g}, {spec.high:g}] {spec.unit}."
        )
    if spec.whole and number != int(number):
        raise ConfigError(f"{where}.value: {number!r} is not allowed; must be a whole number.")
    unit = _text(f"{where}.unit", table["unit"])
    if unit != spec.unit:
        raise ConfigError(f"{where}.unit: {unit!r} is not allowed; must be {spec.unit!r}.")
    status = _text(f"{where}.status", table["status"], STATUSES)
    source = _text(f"{where}.source", table["source"])
    note = _text(f"{where}.note", table["note"]) if "note" in table else ""
    return Quantity(float(number), unit, status, source, note)


def _numbers(where: str, table: Mapping[str, Any], specs: Mapping[str, _Spec]) -> tuple[dict[str, Any], Provenance]:
    """Read every number of ``specs`` from a table whose keys were checked."""
    values: dict[str, Any] = {}
    provenance: list[tuple[str, Quantity]] = []
    for name, spec in specs.items():
        if name not in table:
            values[name] = int(spec.default or 0) if spec.whole else float(spec.default or 0.0)
            continue
        quantity = _quantity(f"{where}.{name}", table[name], spec)
        values[name] = int(quantity.value) if spec.whole else quantity.value
        provenance.append((name, quantity))
    return values, tuple(provenance)


def _required(specs: Mapping[str, _Spec]) -> list[str]:
    """Names of the numbers that may not be left out."""
    return [name for name, spec in specs.items() if spec.default is None]


def _optional(specs: Mapping[str, _Spec]) -> list[str]:
    """Names of the numbers that may be left out."""
    return [name for name, spec in specs.items() if spec.default is not None]


def _read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a ConfigError."""
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"catalogue file {str(path)!r}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"catalogue file {str(path)!r}: not valid TOML ({error}).") from error


def _architecture(where: str, name: str, value: object, known: Mapping[str, Architecture]) -> Architecture:
    """Read one generation; what one ``based_on`` another does not state is assumed to be as there."""
    table = _table(where, value)
    inherited: dict[str, Any] = {}
    if "based_on" in table:
        base = known[_text(f"{where}.based_on", table["based_on"], known)]
        inherited = {
            key: {"value": quantity.value, "unit": quantity.unit, "status": "assumed", "source": f"as {base.id}"}
            for key, quantity in base.provenance
        }
    check_keys(
        where, table, required=[key for key in _ARCHITECTURE if key not in inherited], optional=["based_on", *inherited]
    )
    values, provenance = _numbers(where, inherited | dict(table), _ARCHITECTURE)
    fractions = values["active_fraction"] + values["memory_core_fraction"] + values["memory_fraction"]
    if fractions > 1.0:
        raise ConfigError(f"{where}: active and memory fractions sum to {fractions:g}; must be at most 1.")
    return Architecture(id=name, provenance=provenance, **values)


def _profile(where: str, name: str, value: object, gpus: int, idle_w: float) -> Profile:
    """Read one power profile and check that its draws are ordered and leave room for rack overhead."""
    table = _table(where, value)
    check_keys(where, table, required=list(_PROFILE))
    values, provenance = _numbers(where, table, _PROFILE)
    if not idle_w < values["tdp_w"]:
        raise ConfigError(
            f"{where}.tdp_w: {values['tdp_w']:g} W is not allowed; must exceed the idle draw of {idle_w:g} W."
        )
    order = ("sleep_rack_w", "idle_rack_w", "wake_rack_w", "nameplate_w")
    if not values["sleep_rack_w"] <= values["idle_rack_w"] <= values["wake_rack_w"] <= values["nameplate_w"]:
        drawn = ", ".join(f"{key} = {values[key]:g}" for key in order)
        raise ConfigError(f"{where}: {drawn} W is not allowed; must not decrease in this order.")
    swing_w = gpus * (values["tdp_w"] - idle_w)
    if values["nameplate_w"] - values["idle_rack_w"] < swing_w or values["idle_rack_w"] < gpus * idle_w:
        raise ConfigError(
            f"{where}: nameplate_w {values['nameplate_w']:g} and idle_rack_w {values['idle_rack_w']:g} W leave "
            f"nothing for the rack beside its GPUs ({gpus} x {values['tdp_w']:g} W at full load, {gpus} x "
            f"{idle_w:g} W idle)."
        )
    return Profile(id=name, provenance=provenance, **values)


def _group(where: str, name: str, value: object, architectures: Mapping[str, Architecture]) -> Group:
    """Read one group of GPUs."""
    table = _table(where, value)
    check_keys(
        where, table, required=["architecture", "phases", "profiles", *_required(_GROUP)], optional=_optional(_GROUP)
    )
    architecture = _text(f"{where}.architecture", table["architecture"], architectures)
    phases = table["phases"]
    if not isinstance(phases, list) or not phases:
        raise ConfigError(f"{where}.phases: {phases!r} is not allowed; must be a list out of {', '.join(PHASES)}.")
    checked = tuple(_text(f"{where}.phases", phase, PHASES) for phase in phases)
    values, provenance = _numbers(where, table, _GROUP)
    profiles = _table(f"{where}.profiles", table["profiles"])
    if not profiles:
        raise ConfigError(f"{where}.profiles: is empty; must hold at least one profile.")
    if values["link_domain_gpus"] > values["gpus"]:
        raise ConfigError(
            f"{where}.link_domain_gpus: {values['link_domain_gpus']} is not allowed; must be at most gpus = "
            f"{values['gpus']}."
        )
    return Group(
        id=name,
        architecture=architectures[architecture],
        phases=checked,
        profiles=tuple(
            _profile(f"{where}.profiles.{key}", key, entry, values["gpus"], values["idle_w"])
            for key, entry in profiles.items()
        ),
        provenance=provenance,
        **values,
    )


def load_racks(path: str | Path) -> dict[str, Rack]:
    """Read rack types from a TOML file in the format of ``racks.toml``.

    The file may define generations under ``[architectures.NAME]`` beside its racks; those of the catalogue are known
    without being repeated. A generation may be ``based_on`` one defined before it and then states only what differs.

    Args:
        path: The file.

    Returns:
        Rack types by name, in file order.

    Raises:
        ConfigError: On anything unknown, missing, of the wrong unit or out of range, naming file, table and key.
    """
    data = _read_toml(path)
    name = Path(path).name
    check_keys(name, data, required=("racks",), optional=("architectures",))
    architectures = {} if Path(path).resolve() == _RACKS.resolve() else dict(_catalogue_architectures())
    for key, entry in _table(f"{name}: architectures", data.get("architectures", {})).items():
        architectures[key] = _architecture(f"{name}: architectures.{key}", key, entry, architectures)
    racks: dict[str, Rack] = {}
    for key, entry in _table(f"{name}: racks", data["racks"]).items():
        where = f"{name}: racks.{key}"
        table = _table(where, entry)
        check_keys(where, table, required=("label", "availability", "hypothetical", "groups"))
        if not isinstance(table["hypothetical"], bool):
            raise ConfigError(f"{where}.hypothetical: {table['hypothetical']!r} is not allowed; must be true or false.")
        groups = tuple(
            _group(f"{where}.groups.{group}", group, value, architectures)
            for group, value in _table(f"{where}.groups", table["groups"]).items()
        )
        served = [phase for group in groups for phase in group.phases]
        if not served or len(set(served)) != len(served):
            raise ConfigError(
                f"{where}.groups: phases {served!r} are not allowed; each phase at most once, at least one."
            )
        racks[key] = Rack(
            id=key,
            label=_text(f"{where}.label", table["label"]),
            availability=_text(f"{where}.availability", table["availability"]),
            hypothetical=table["hypothetical"],
            groups=groups,
        )
    return racks


def load_models(path: str | Path) -> dict[str, Model]:
    """Read model shapes from a TOML file in the format of ``models.toml``.

    Args:
        path: The file.

    Returns:
        Models by name, in file order.

    Raises:
        ConfigError: On anything unknown, missing, of the wrong unit or out of range, naming file, table and key.
    """
    data = _read_toml(path)
    name = Path(path).name
    check_keys(name, data, required=("models",))
    models: dict[str, Model] = {}
    for key, entry in _table(f"{name}: models", data["models"]).items():
        where = f"{name}: models.{key}"
        table = _table(where, entry)
        if "attention" not in table:
            raise ConfigError(f"{where}: missing key(s) attention; allowed: gqa, mla.")
        attention = _text(f"{where}.attention", table["attention"], ("gqa", "mla"))
        if not {"layers", "dense_layers"} <= table.keys():
            raise ConfigError(f"{where}: missing key(s) layers or dense_layers; required: layers, dense_layers.")
        layers = _quantity(f"{where}.layers", table["layers"], _SHAPE["layers"]).value
        dense_layers = _quantity(f"{where}.dense_layers", table["dense_layers"], _SHAPE["dense_layers"]).value
        if dense_layers > layers:
            raise ConfigError(
                f"{where}.dense_layers: {dense_layers:g} is not allowed; must be at most layers = {layers:g}."
            )
        specs = {**_SHAPE, **(_MLA if attention == "mla" else _GQA)}
        specs |= _DENSE if dense_layers > 0 else {}
        specs |= _MOE if dense_layers < layers else {}
        check_keys(where, table, required=["attention", *_required(specs)], optional=_optional(specs))
        values, provenance = _numbers(where, table, specs)
        if dense_layers < layers and values["top_k"] > values["experts"]:
            raise ConfigError(
                f"{where}.top_k: {values['top_k']} is not allowed; must be at most experts = {values['experts']}."
            )
        if values.get("sliding_layers", 0) > layers:
            raise ConfigError(
                f"{where}.sliding_layers: {values['sliding_layers']} is not allowed; must be at most {layers:g}."
            )
        absent = dict.fromkeys([*_MLA, *_GQA, *_DENSE, *_MOE], 0)
        shape = {**absent, **values}
        models[key] = Model(id=key, attention="mla" if attention == "mla" else "gqa", provenance=provenance, **shape)
    return models


@cache
def _catalogue_architectures() -> dict[str, Architecture]:
    """Generations of the shipped catalogue."""
    found: dict[str, Architecture] = {}
    for key, entry in _read_toml(_RACKS)["architectures"].items():
        found[key] = _architecture(f"{_RACKS.name}: architectures.{key}", key, entry, found)
    return found


@cache
def _catalogue_racks() -> dict[str, Rack]:
    """Rack types of the shipped catalogue, read once."""
    return load_racks(_RACKS)


@cache
def _catalogue_models() -> dict[str, Model]:
    """Models of the shipped catalogue, read once."""
    return load_models(_MODELS)


def rack_ids() -> tuple[str, ...]:
    """Names of the shipped rack types."""
    return tuple(_catalogue_racks())


def model_ids() -> tuple[str, ...]:
    """Names of the shipped models."""
    return tuple(_catalogue_models())


def rack(name: str | Rack) -> Rack:
    """Return a rack type of the catalogue by name; a :class:`Rack` is returned as it is.

    Raises:
        ConfigError: When there is none of that name.
    """
    if isinstance(name, Rack):
        return name
    if name not in _catalogue_racks():
        raise unknown("rack", name, rack_ids())
    return _catalogue_racks()[name]


def model(name: str | Model) -> Model:
    """Return a model of the catalogue by name; a :class:`Model` is returned as it is.

    Raises:
        ConfigError: When there is none of that name.
    """
    if isinstance(name, Model):
        return name
    if name not in _catalogue_models():
        raise unknown("model", name, model_ids())
    return _catalogue_models()[name]
