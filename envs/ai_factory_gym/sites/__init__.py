"""Sites: one facility behind one grid connection, described in a TOML file of a page."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ai_factory_gym.catalogue import PHASES, PRECISIONS, Group, Model, Rack, load_models, load_racks, model, rack
from ai_factory_gym.errors import ConfigError, check_count, check_flag, check_keys, check_range, check_text, unknown
from ai_factory_gym.grid.series import SYNTHETIC, UNITS, Series, load_series
from ai_factory_gym.sites.generation import GenerationConfig, GridConfig, generation_from_tables
from ai_factory_gym.sites.money import MoneyConfig, money_from_table
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.workload.classes import RequestClass, load_classes

SITES_PATH = Path(__file__).parent


MAX_BATCH = 4096
"""Requests in flight on a decode replica unless a pool says otherwise."""


LOOP_TIME_CONSTANT_S = 300.0
"""Time constant of a coolant loop, s: 7 m3 of water per MW of IT (29 MJ/K) that rises 10 K over the air at full load (0.1 MW/K) (status assumed)."""

BOTH = "both"
"""Phase of a pool whose GPUs prefill and decode: aggregated serving."""

_OF_PHASE: Mapping[str, dict[str, Any]] = {"prefill": {"mtp": False, "ep": None, "max_batch": MAX_BATCH}, "decode": {}}
"""Settings that one half of an aggregated pool does not have."""


def model_id(which: str | Model) -> str:
    """Return the name of a model."""
    return which.id if isinstance(which, Model) else which


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Where a rack of a prefill pool keeps the KV of prompts it has worked off.

    Attributes:
        hbm_gb: GPU memory beside the weights, GB per rack.
        host_gb: Host memory, GB per rack; takes what HBM has no room for any more.
        host_gb_s: Bandwidth from host memory to the GPUs, GB/s per rack; a replica has its part of it.
    """

    hbm_gb: float = 0.0
    host_gb: float = 0.0
    host_gb_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for key in ("hbm_gb", "host_gb"):
            check_range(f"cache.{key}", getattr(self, key), 0.0, 1e7, "GB")
        check_range("cache.host_gb_s", self.host_gb_s, 0.0, 1e6, "GB/s")
        if self.hbm_gb == 0.0 and self.host_gb == 0.0:
            raise ConfigError("cache: neither hbm_gb nor host_gb is given; leave the cache out of a pool without one.")
        if (self.host_gb > 0.0) != (self.host_gb_s > 0.0):
            raise ConfigError(
                f"cache.host_gb_s: {self.host_gb_s!r} is not allowed with host_gb {self.host_gb!r}; give both or neither."
            )


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """A store of KV that all prefill pools share and that nobody's sleep empties.

    Attributes:
        gb: Its size, GB.
        gb_s: Its bandwidth, GB/s in all; a replica has no more of it than its scale-out links carry.
    """

    gb: float
    gb_s: float

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("kv_store.gb", self.gb, 1e-3, 1e10, "GB")
        check_range("kv_store.gb_s", self.gb_s, 1e-3, 1e8, "GB/s")


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """The racks of one type that do one phase, or both, for one model.

    A site makes two pools of one that does ``both``, RACK/prefill and RACK/decode, that share racks and GPUs. Two pools of a rack type with
    two kinds of GPU share racks and power: they are the two halves of the same racks, and a site gives both.

    Attributes:
        rack: Catalogue id of the rack type, or a rack type of one's own.
        phase: ``prefill``, ``decode``, or ``both`` on the same GPUs (aggregated serving).
        racks: Number of racks.
        profile: Power profile of the rack type; None is its default.
        precision: Weight precision.
        tp: Tensor-parallel GPUs of an attention rank.
        dp: Attention ranks of a replica.
        pp: Pipeline stages (prefill over slow links).
        ep: Expert-parallel GPUs of a decode replica; None is all of them.
        mtp: Multi-token prediction in decode.
        max_batch: Most requests in flight on a decode replica.
        min_active: Fewest racks the operator may keep awake; 0 lets the pool be emptied.
        rack_limit_w: Most that one rack may draw, kept by its clocks, W; of two pools in the same racks, both together. None leaves
            it at what the GPUs draw at their own limits, which is the rack's nameplate.
        aggregated: Set by the site: whether the pool is one half of one that does both.
        model: Catalogue id of the model it serves, or a model of one's own; None is the site's. A site with one model leaves it None,
            a site with several gives every pool its own: it is then part of the pool's name.
        cache: Prefix cache of a prefill pool; None for none.
        hold_share: Share of a decode pool's KV memory that may hold the contexts of sessions between their turns.
    """

    rack: str | Rack
    phase: str
    racks: int
    profile: str | None = None
    precision: str = "fp4"
    tp: int = 1
    dp: int = 1
    pp: int = 1
    ep: int | None = None
    mtp: bool = False
    max_batch: int = MAX_BATCH
    min_active: int = 1
    rack_limit_w: float | None = None
    aggregated: bool = False
    model: str | Model | None = None
    cache: CacheConfig | None = None
    hold_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not isinstance(self.rack, Rack):
            check_text("pools: rack", self.rack)
        if self.model is not None and not isinstance(self.model, Model):
            check_text("pools: model", self.model)
        where = f"pools[{self.name}]"
        if self.phase not in (*PHASES, BOTH):
            raise unknown(f"{where}.phase", self.phase, (*PHASES, BOTH))
        check_flag(f"{where}.aggregated", self.aggregated)
        if self.phase == BOTH and len(self.rack_type.groups) > 1:
            raise ConfigError(
                f"{where}.phase: 'both' is not allowed; this rack has GPUs of two kinds, one for each phase: give a prefill pool and a decode "
                "pool with the same number of racks."
            )
        for key in ("racks", "tp", "dp", "pp", "max_batch", *(("ep",) if self.ep is not None else ())):
            check_count(f"{where}.{key}", getattr(self, key))
        check_flag(f"{where}.mtp", self.mtp)
        if self.min_active != 0:
            check_count(f"{where}.min_active", self.min_active)
        self.group.profile(self.profile)  # refuses an unknown one
        if self.precision not in PRECISIONS:
            raise unknown(f"{where}.precision", self.precision, PRECISIONS)
        check_range(f"{where}.racks", self.racks, 1, 100_000)
        check_range(f"{where}.max_batch", self.max_batch, 1, 1_000_000)
        check_range(f"{where}.min_active", self.min_active, 0, self.racks)
        if self.phase == "prefill" and (self.mtp or self.ep is not None or self.max_batch != MAX_BATCH):
            raise ConfigError(f"{where}: mtp, ep and max_batch are settings of decode pools.")
        check_range(f"{where}.hold_share", self.hold_share, 0.0, 0.9)
        if self.hold_share > 0.0 and self.phase not in ("decode", BOTH):
            raise ConfigError(f"{where}.hold_share: is a setting of decode pools.")
        if self.phase == BOTH and (self.cache is not None or self.hold_share > 0.0):
            key = "cache" if self.cache is not None else "hold_share"
            raise ConfigError(
                f"{where}.{key}: is not possible with phase 'both': a prefix cache is kept by prefill pools, and contexts are held by decode "
                "pools, whose GPUs do one phase; leave it out, or give a prefill pool and a decode pool."
            )
        if self.cache is not None and self.phase != "prefill":
            raise ConfigError(f"{where}.cache: is a setting of prefill pools.")
        if self.aggregated and (self.cache is not None or self.hold_share > 0.0):
            raise ConfigError(f"{where}: cache and hold_share are for pools whose GPUs do one phase.")
        if self.rack_limit_w is not None:
            check_range(f"{where}.rack_limit_w", self.rack_limit_w, 100.0, 1e7, "W")
        if self.phase != "prefill" and self.pp != 1:
            raise ConfigError(
                f"{where}.pp: {self.pp!r} is not allowed; pipeline stages are a setting of prefill pools."
            )
        if self.gpus_per_rack % self.gpus_per_replica:
            raise ConfigError(
                f"{where}: a replica of {self.gpus_per_replica} GPUs (tp {self.tp} x dp {self.dp} x pp {self.pp}) does not divide "
                f"the rack's {self.gpus_per_rack} GPUs evenly."
            )

    @property
    def name(self) -> str:
        """Name of the pool in observations, actions and tables."""
        name = f"{self.rack.id if isinstance(self.rack, Rack) else self.rack}/{self.phase}"
        return name if self.model is None else f"{name}/{model_id(self.model)}"

    @property
    def rack_type(self) -> Rack:
        """The rack type."""
        return rack(self.rack)

    @property
    def group(self) -> Group:
        """The rack's GPUs that do this phase."""
        kinds = self.rack_type.groups
        return kinds[0] if len(kinds) == 1 else self.rack_type.group(self.phase)

    @property
    def shares_racks(self) -> bool:
        """Whether another pool lives in the same racks."""
        return self.aggregated or len(self.rack_type.groups) > 1

    def halves(self) -> tuple[PoolConfig, ...]:
        """Return the pools of one that does both phases, else the pool itself."""
        if self.phase != BOTH:
            return (self,)
        return tuple(replace(self, phase=phase, aggregated=True, **_OF_PHASE[phase]) for phase in PHASES)

    @property
    def gpus_per_rack(self) -> int:
        """GPUs of one rack that do this phase."""
        return self.group.gpus

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that serve one copy of the model together."""
        return self.tp * self.dp * self.pp

    @property
    def replicas_per_rack(self) -> int:
        """Copies of the model in one rack."""
        return self.gpus_per_rack // self.gpus_per_replica


@dataclass(frozen=True, slots=True)
class BrakeConfig:
    """The site's own protection against drawing more than the cap.

    Attributes:
        enabled: Without it a site can trip its breaker.
        reaction_s: How long draw may exceed the cap before all clocks drop.
        clock: Clock the brake sets.
        floor: Lowest clock it may set when that is not enough.
        hold_s: Shortest time it stays engaged.
        target: Predicted draw it allows, share of the cap.
        release: Predicted draw without it at which it lets go, share of the cap.
    """

    enabled: bool = True
    reaction_s: float = 1.0
    clock: float = 0.5
    floor: float = 0.3
    hold_s: float = 30.0
    target: float = 0.97
    release: float = 0.98

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_flag("brake.enabled", self.enabled)
        check_range("brake.reaction_s", self.reaction_s, 0.1, 60.0, "s")
        check_range("brake.clock", self.clock, 0.2, 1.0)
        check_range("brake.floor", self.floor, 0.2, self.clock)
        check_range("brake.hold_s", self.hold_s, 0.0, 3600.0, "s")
        check_range("brake.target", self.target, 0.5, 1.0)
        check_range("brake.release", self.release, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class CoolingConfig:
    """Facility power over IT power: see ``physics.cooling.pue``.

    Attributes:
        base: PUE at full load and free cooling.
        per_kelvin: Rise of the PUE per kelvin above free cooling, at full load.
        outdoor_c: Outdoor temperature, degC.
        free_cooling_c: Outdoor temperature up to which free cooling suffices, degC.
        fixed_share: Share of the cooling draw that does not fall with load.
        coolant_limit_c: Warmest coolant that racks may be supplied with, degC, at a site without chillers; None is no limit.
        design_outdoor_c: Outdoor temperature at which that limit is just kept with every GPU at its limit, degC.
        loop_time_constant_s: How fast the coolant follows, s.
    """

    base: float = 1.12
    per_kelvin: float = 0.004
    outdoor_c: float = 18.0
    free_cooling_c: float = 20.0
    fixed_share: float = 0.3
    coolant_limit_c: float | None = None
    design_outdoor_c: float | None = None
    loop_time_constant_s: float = LOOP_TIME_CONSTANT_S

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("cooling.base", self.base, 1.0, 3.0)
        check_range("cooling.per_kelvin", self.per_kelvin, 0.0, 0.1, "1/K")
        check_range("cooling.outdoor_c", self.outdoor_c, -50.0, 60.0, "degC")
        check_range("cooling.free_cooling_c", self.free_cooling_c, -50.0, 60.0, "degC")
        check_range("cooling.fixed_share", self.fixed_share, 0.0, 1.0)
        check_range("cooling.loop_time_constant_s", self.loop_time_constant_s, 10.0, 86400.0, "s")
        if self.coolant_limit_c is None:
            if self.design_outdoor_c is not None or self.loop_time_constant_s != LOOP_TIME_CONSTANT_S:
                raise ConfigError(
                    "cooling: design_outdoor_c and loop_time_constant_s are settings of a coolant with a limit; give coolant_limit_c too."
                )
            return
        check_range("cooling.coolant_limit_c", self.coolant_limit_c, 15.0, 80.0, "degC")
        if self.design_outdoor_c is None:
            raise ConfigError(
                "cooling: coolant_limit_c needs design_outdoor_c, the outdoor temperature at which it is just kept with every GPU at its limit."
            )
        check_range("cooling.design_outdoor_c", self.design_outdoor_c, -50.0, 60.0, "degC")
        if self.design_outdoor_c >= self.coolant_limit_c:
            raise ConfigError(
                f"cooling.design_outdoor_c: {self.design_outdoor_c!r} is not allowed; must be below coolant_limit_c ({self.coolant_limit_c!r}): "
                "without chillers no coolant is colder than the air."
            )


@dataclass(frozen=True, slots=True)
class BatteryConfig:
    """A battery behind the site's grid connection.

    Attributes:
        power_w: Largest power, in and out, W.
        energy_wh: What it holds, Wh.
        round_trip_efficiency: What comes out over what was drawn to charge it (status assumed: large lithium-ion systems with their
            converters, 0.85 to 0.9).
        initial_charge: Share of ``energy_wh`` it holds when an episode begins.
        wear_usd_per_mwh: Cost of wear per MWh given (status assumed: 300 USD/kWh of cells over 6,000 full cycles are 50).
    """

    power_w: float
    energy_wh: float
    round_trip_efficiency: float = 0.87
    initial_charge: float = 1.0
    wear_usd_per_mwh: float = 50.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("battery.power_w", self.power_w, 1.0, 1e11, "W")
        check_range("battery.energy_wh", self.energy_wh, 1.0, 1e12, "Wh")
        check_range("battery.round_trip_efficiency", self.round_trip_efficiency, 0.3, 1.0)
        check_range("battery.initial_charge", self.initial_charge, 0.0, 1.0)
        check_range("battery.wear_usd_per_mwh", self.wear_usd_per_mwh, 0.0, 1e4, "USD/MWh")


@dataclass(frozen=True, slots=True)
class RampConfig:
    """How fast a site's draw from the grid may change. No published limit was found: the figures are the user's own.

    Attributes:
        up_w_per_s: Fastest rise, W/s; None is no limit.
        down_w_per_s: Fastest fall, W/s; None is no limit. The cap comes first.
        ballast_w: Largest power of the dummy load that burns what nothing else takes while the draw may not fall faster, W; None is as much as
            it takes. It stands beside the racks and has fans of its own: no PUE comes on top, and it does not warm the coolant.
    """

    up_w_per_s: float | None = None
    down_w_per_s: float | None = None
    ballast_w: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if self.up_w_per_s is None and self.down_w_per_s is None:
            raise ConfigError("ramp: limits nothing; give up_w_per_s, down_w_per_s or both, or leave the table out.")
        for key in ("up_w_per_s", "down_w_per_s"):
            if getattr(self, key) is not None:
                check_range(f"ramp.{key}", getattr(self, key), 1e-3, 1e11, "W/s")
        if self.ballast_w is not None:
            check_range("ramp.ballast_w", self.ballast_w, 0.0, 1e11, "W")


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Energy storage inside the racks.

    That of all pools, taken together, smooths the draw where it has a ramp limit, before anything else does; that of a training block's racks
    gives in the compute phase of every iteration what it takes back in the rest. It sits in the power shelves,
    which stay on while a rack sleeps; that a failed rack's is missing is left out.

    Attributes:
        racks: Rack types that have it. GB300 NVL72 is the only one whose vendor says so.
        energy_j_per_gpu: What it holds, J per GPU (GB300 NVL72: 65, status vendor-stated; developer.nvidia.com/blog/
            how-new-gb300-nvl72-features-provide-steady-power-for-ai).
        power_w_per_gpu: Largest power, in and out, W per GPU (status assumed: it carries the swing of a whole GPU of 1.4 kW).
        round_trip_efficiency: What comes out over what was drawn to charge it (status assumed: capacitors and their converters).
    """

    racks: tuple[str, ...] = ("gb300_nvl72",)
    energy_j_per_gpu: float = 65.0
    power_w_per_gpu: float = 1400.0
    round_trip_efficiency: float = 0.95

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not isinstance(self.racks, tuple) or not self.racks:
            raise ConfigError(
                f"rack_storage.racks: {self.racks!r} is not allowed; must be a list of at least one rack type."
            )
        check_range("rack_storage.energy_j_per_gpu", self.energy_j_per_gpu, 1e-3, 1e9, "J")
        check_range("rack_storage.power_w_per_gpu", self.power_w_per_gpu, 1e-3, 1e6, "W")
        check_range("rack_storage.round_trip_efficiency", self.round_trip_efficiency, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """A site: its cap, its racks, the model they serve and the traffic they get.

    Attributes:
        name: Name for people.
        cap_w: Cap of the grid connection, W; 0 for a site without one, which has units of its own (``generation``).
        model: Catalogue id of the served model, or a model of one's own; a pool or a class may have another.
        pools: Prefill pools first, then decode pools.
        demand_rps: Mean requests per second over a day, deferrable ones included.
        mix: Share of requests by class; sums to one.
        series: What varies with time, by kind: a file's values or ``SYNTHETIC``; kinds that are not there are constants.
        money: What it earns and pays, if that is to be metered.
        battery: Battery behind the grid connection, if there is one.
        own_classes: Request classes of one's own; they come before shipped ones of the same name.
        group_edges: Prompt lengths that separate routing groups, tokens, increasing.
        max_context: Longest prompt + output the site serves, tokens, or a table of them by model; None, or a model that is not in the
            table, is the model's own limit. A site that raises it above the model's says so here: longer contexts are assumed to work, no
            served model is trained for them.
        clock_min: Lowest clock ceiling an operator may set.
        drain_s: Time a rack drains before it sleeps, s.
        dwell_s: Time racks stay awake, and in their role, at least after the last of them was woken or came from the other role, s.
        brake: Power brake.
        cooling: PUE.
        electricity_usd_per_mwh: Energy price, or the mean of a synthetic one; a file has its own (``usual``).
        carbon_g_per_kwh: Carbon intensity of the supply, likewise.
        kv_store: Store of KV that all prefill pools share; None for none.
        calibration: Which model constants the site's figures were set with.
        description: A sentence for people.
        switch_s: Time a drained rack takes to load the model in the layout of the other role and to start serving, s. The default is
            assumed: a quarter of the wake time, which holds start-up and checks of the rack besides.
        reliability: How often racks fail; None is never, unless a scenario says so.
        class_models: Model of each class that is not served by the site's.
        ramp: How fast the draw from the grid may change; None is at will.
        rack_storage: Energy storage inside the racks, which smooths that draw; None for none.
        training: Racks that do a training job beside the pools; None for none.
        generation: Units that make power at the site.
        grid: What it may export; None is nothing.
    """

    name: str
    cap_w: float
    model: str | Model
    pools: tuple[PoolConfig, ...]
    demand_rps: float
    mix: Mapping[str, float]
    group_edges: tuple[float, ...] = (4096.0,)
    max_context: int | Mapping[str, int] | None = None
    clock_min: float = 0.4
    drain_s: float = 120.0
    dwell_s: float = 600.0
    brake: BrakeConfig = field(default_factory=BrakeConfig)
    cooling: CoolingConfig = field(default_factory=CoolingConfig)
    electricity_usd_per_mwh: float = 51.0
    carbon_g_per_kwh: float = 350.0
    calibration: str = "user"
    description: str = ""
    own_classes: tuple[RequestClass, ...] = ()
    series: tuple[tuple[str, Series | str], ...] = ()
    battery: BatteryConfig | None = None
    money: MoneyConfig | None = None
    switch_s: float = 120.0
    reliability: ReliabilityConfig | None = None
    class_models: Mapping[str, str | Model] = field(default_factory=dict)
    kv_store: StoreConfig | None = None
    ramp: RampConfig | None = None
    rack_storage: StorageConfig | None = None
    training: TrainingConfig | None = None
    generation: tuple[GenerationConfig, ...] = ()
    grid: GridConfig | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_text("site: name", self.name)
        where = f"site {self.name!r}: "
        for key in ("description", "calibration"):
            check_text(f"{where}{key}", getattr(self, key), empty=True)
        if not isinstance(self.model, Model):
            check_text(where + "model", self.model)
        self._check_supply(where)
        check_range(where + "demand_rps", self.demand_rps, 1e-6, 1e9, "requests/s")
        # Above it the clock lever's zero would lie below its lowest ceiling (levers.NEUTRAL_CLOCK).
        check_range(where + "clock_min", self.clock_min, 0.2, 0.75)
        check_range(where + "drain_s", self.drain_s, 0.0, 86400.0, "s")
        check_range(where + "dwell_s", self.dwell_s, 0.0, 86400.0, "s")
        check_range(where + "switch_s", self.switch_s, 0.0, 86400.0, "s")
        check_range(where + "electricity_usd_per_mwh", self.electricity_usd_per_mwh, -1e4, 1e5, "USD/MWh")
        check_range(where + "carbon_g_per_kwh", self.carbon_g_per_kwh, 0.0, 5e3, "g/kWh")
        pools = self.pools
        if any(pool.phase == BOTH for pool in pools):
            pools = tuple(half for pool in pools for half in pool.halves())
        # The engine goes through the pools of one phase after those of the other.
        object.__setattr__(self, "pools", tuple(sorted(pools, key=lambda pool: PHASES.index(pool.phase))))
        for phase in PHASES:
            if not any(pool.phase == phase for pool in self.pools):
                raise ConfigError(f"{where}pools: no {phase} pool; a site needs at least one pool of each phase.")
        self._name_models(where)
        names = [pool.name for pool in self.pools]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"{where}pools: {name!r} is given twice; give one pool per rack type, phase and model (one that does both phases is "
                    "one of each), or a rack type of your own under another name."
                )
        self._check_contexts(where)
        self._check_shared_racks(where)
        if self.cooling.coolant_limit_c is not None and not self.brake.enabled:
            raise ConfigError(
                f"{where}cooling.coolant_limit_c: needs the power brake, which keeps it; brake.enabled is false."
            )
        self._check_storage(where)
        edges = self.group_edges
        for edge in edges:
            check_range(f"{where}group_edges", edge, 0.0, 1e9, "tokens")
        if any(edge <= 0 for edge in edges) or list(edges) != sorted(set(edges)):
            raise ConfigError(f"{where}group_edges: {list(edges)!r} must be positive and strictly increasing.")
        classes = self.known_classes
        for name, share in self.mix.items():
            if name not in classes:
                raise unknown(f"{where}mix", name, list(classes))
            check_range(f"{where}mix.{name}", share, 0.0, 1.0)
        total = sum(self.mix.values())
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f"{where}mix: shares sum to {total:.6g}; they must sum to 1.")
        self._check_class_models(where, classes)

    def _check_supply(self, where: str) -> None:
        """Refuse a connection and units that give nothing, or cannot be told apart (ConfigError)."""
        if self.generation and self.cap_w == 0:
            check_range(where + "cap_w", self.cap_w, 0.0, 0.0, "W")
        else:
            least = "; 0 is for a site with units of its own, [[generation]]" if self.cap_w == 0 else ""
            check_range(where + "cap_w", self.cap_w, 1e4, 1e11, "W" + least)
        names = [unit.name for unit in self.generation]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}generation: {name!r} is given twice; give each unit a name of its own.")
        if self.ramp is not None and self.cap_w == 0:
            raise ConfigError(f"{where}ramp: a site without a grid connection (cap_w 0) has no draw to limit.")
        if self.grid is None or self.grid.export_w == 0.0:
            return
        if not self.generation:
            raise ConfigError(f"{where}grid.export_w: a site without [[generation]] has nothing to export.")
        if self.cap_w == 0:
            raise ConfigError(f"{where}grid.export_w: a site without a grid connection (cap_w 0) cannot export.")
        if self.ramp is not None:
            raise ConfigError(
                f"{where}grid.export_w: is not possible with ramp limits, which are for the draw from the grid; leave one of them out."
            )

    def usual(self, kind: str) -> float:
        """Return the mean price of electricity, USD/MWh, or the mean carbon intensity of the grid, g/kWh: that of its file where there is one.

        Args:
            kind: ``electricity`` or ``carbon``.
        """
        given = dict(self.series).get(kind)
        if isinstance(given, Series):
            return given.mean
        return self.electricity_usd_per_mwh if kind == "electricity" else self.carbon_g_per_kwh

    @property
    def supply_w(self) -> float:
        """What its connection and its own units give together, W."""
        return self.cap_w + sum(unit.power_w for unit in self.generation)

    @property
    def firm_w(self) -> float:
        """What those of its own units give that always run, W."""
        return sum(unit.power_w for unit in self.generation if unit.must_run)

    def _name_models(self, where: str) -> None:
        """Give each pool the model it serves where there are several, and none where there is one; refuse half a model."""
        known: dict[str, Model] = {}
        named = [("model", self.model)]
        named += [(f"pools[{pool.name}].model", pool.model) for pool in self.pools if pool.model is not None]
        named += [(f"class_models.{name}", which) for name, which in self.class_models.items()]
        for key, which in named:
            try:
                entry = model(which)
            except ConfigError as error:
                raise ConfigError(f"{where}{key}: {str(error).removeprefix('model: ')}") from None
            if known.setdefault(entry.id, entry) != entry:
                raise ConfigError(f"{where}{key}: two different models have the name {entry.id!r}.")
        served = [model_id(self.model if pool.model is None else pool.model) for pool in self.pools]
        if len(set(served)) == 1:
            if served[0] != model_id(self.model):
                raise ConfigError(
                    f"{where}model: all pools serve {served[0]!r}, and the site's model is {model_id(self.model)!r}; give the site "
                    "theirs, or a prefill and a decode pool to its own."
                )
            pools = [replace(pool, model=None) for pool in self.pools]
        else:
            for name in dict.fromkeys(served):
                for phase in PHASES:
                    if not any(p.phase == phase and m == name for p, m in zip(self.pools, served, strict=True)):
                        raise ConfigError(
                            f"{where}pools: no {phase} pool of model {name!r}; each model needs at least one pool of each phase."
                        )
            pools = [replace(pool, model=known[name]) for pool, name in zip(self.pools, served, strict=True)]
        object.__setattr__(self, "pools", tuple(pools))

    def _check_class_models(self, where: str, classes: Mapping[str, RequestClass]) -> None:
        """Refuse classes without pools and pools without classes."""
        served = {entry.id for entry in self.models}
        for name, which in self.class_models.items():
            if name not in classes:
                raise unknown(f"{where}class_models", name, list(classes))
            if model_id(which) not in served:
                raise ConfigError(
                    f"{where}class_models.{name}: no pool serves {model_id(which)!r}; the pools serve {', '.join(sorted(served))}."
                )
        for name in self.mix:
            if self.class_model(name).id not in served:
                raise ConfigError(
                    f"{where}mix.{name}: no pool serves {self.class_model(name).id!r}, the site's model; say in class_models which "
                    f"serves the class ({', '.join(sorted(served))}), or add a prefill and a decode pool."
                )
        used = {self.class_model(name).id for name in (*self.mix, *self.class_models)}
        for pool, entry in zip(self.pools, self.pool_models, strict=True):
            if entry.id not in used:
                raise ConfigError(
                    f"{where}pools: {pool.name!r} serves a model of no class; give {entry.id!r} a class in class_models, or leave the "
                    "pool out."
                )

    def _check_contexts(self, where: str) -> None:
        """Refuse longest contexts that are none, or of models that are not served."""
        if self.max_context is None:
            return
        if not isinstance(self.max_context, Mapping):
            check_count(where + "max_context", self.max_context)
            return
        served = [entry.id for entry in self.models]
        for name, tokens in self.max_context.items():
            if name not in served:
                raise unknown(f"{where}max_context", name, served)
            check_count(f"{where}max_context.{name}", tokens)

    def _check_storage(self, where: str) -> None:
        """Refuse limits of a draw there is none of, and storage in racks that are not there or that would have nothing to do (ConfigError)."""
        if self.ramp is not None and self.cap_w == 0.0:
            raise ConfigError(
                f"{where}ramp: limits the draw from the grid, and the site has none (cap_w is 0); leave it out."
            )
        if self.rack_storage is None:
            return
        training = [] if self.training is None else [self.training.rack_type.id]
        if self.ramp is None and not any(name in self.rack_storage.racks for name in training):
            raise ConfigError(
                f"{where}rack_storage: it smooths the draw where that has a ramp limit, and the bursts of a training block whose racks have it; "
                "give the site a [ramp] table with up_w_per_s or down_w_per_s, "
                + (f"name {training[0]!r} in racks, " if training else "")
                + "or leave rack_storage out."
            )
        there = list(dict.fromkeys([*(pool.rack_type.id for pool in self.pools), *training]))
        for name in self.rack_storage.racks:
            if name not in there:
                raise unknown(f"{where}rack_storage.racks", name, there)

    @property
    def rack_storage_gpus(self) -> int:
        """GPUs of pools in racks that have energy storage."""
        if self.rack_storage is None:
            return 0
        # Both pools of a rack with two kinds of GPU count; the two halves of an aggregated rack are the same GPUs.
        return sum(
            pool.racks * pool.gpus_per_rack
            for pool in self.pools
            if pool.rack_type.id in self.rack_storage.racks and not (pool.aggregated and pool.phase == "decode")
        )

    def _check_shared_racks(self, where: str) -> None:
        """Refuse pools in the same racks that do not fit together (ConfigError)."""
        for pool in self.pools:
            if not pool.shares_racks:
                continue
            other = self.pools[self.partner(pool)] if self.partner(pool) >= 0 else None
            if other is None:
                rest = "decode" if pool.phase == "prefill" else "prefill"
                why = (
                    "is one half of aggregated racks" if pool.aggregated else "is one of two kinds of GPU in its racks"
                )
                raise ConfigError(
                    f"{where}pools[{pool.name}]: {why}; give the {rest} pool of {pool.rack_type.id!r} too."
                )
            alike: tuple[str, ...] = ("racks", "min_active", "rack_limit_w")
            if pool.aggregated or other.aggregated:
                alike += ("aggregated", "profile", "precision", "tp", "dp", "pp")
            for key in alike:
                if getattr(pool, key) != getattr(other, key):
                    raise ConfigError(
                        f"{where}pools[{pool.name}].{key}: {getattr(pool, key)!r} is not allowed; must be that of {other.name!r}, which "
                        f"lives in the same racks: {getattr(other, key)!r}."
                    )
        for entry in self.models:
            own = [pool for pool, served in zip(self.pools, self.pool_models, strict=True) if served.id == entry.id]
            alone = {pool.phase for pool in own if not pool.aggregated}
            if len(alone) != 1 or not any(pool.aggregated for pool in own):
                continue
            (phase,) = alone
            of = f" of {entry.id}" if len(self.models) > 1 else ""
            raise ConfigError(
                f"{where}pools: beside the pools{of} that do both phases there are {phase} pools only, which nothing would be sent to or taken from; "
                "give pools of the other phase too, or leave them out."
            )

    @property
    def rack_pools(self) -> tuple[int, ...]:
        """Numbers of the pools by which racks are counted: of two pools in the same racks the first."""
        return tuple(index for index, pool in enumerate(self.pools) if not 0 <= self.partner(pool) < index)

    def partner(self, pool: PoolConfig) -> int:
        """Return the number of the pool that lives in the same racks, -1 for none."""
        if pool.shares_racks:
            for index, other in enumerate(self.pools):
                same = other.rack_type.id == pool.rack_type.id and other.model == pool.model
                if same and other.phase != pool.phase:
                    return index
        return -1

    @property
    def caches(self) -> bool:
        """Whether prompts find what earlier ones have left: some pool has a prefix cache or holds contexts, or the site has a store."""
        return self.kv_store is not None or any(pool.cache is not None or pool.hold_share > 0.0 for pool in self.pools)

    @property
    def served_model(self) -> Model:
        """The catalogue entry of the site's model: that of the pools and classes that name no other."""
        return model(self.model)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Places of the prefill and the decode pool of each rack type that has both, so that its racks may change their role.

        Pools in the same racks do both as it is; racks under different power profiles or limits, or of different models, are not alike.
        """
        alike = [
            None
            if pool.shares_racks
            else (pool.rack_type, pool.group.profile(pool.profile), pool.rack_limit_w, pool.model)
            for pool in self.pools
        ]
        return tuple(
            (prefill, decode)
            for prefill, decode in itertools.product(range(len(self.pools)), repeat=2)
            if self.pools[prefill].phase == "prefill"
            and self.pools[decode].phase == "decode"
            and alike[prefill] is not None
            and alike[prefill] == alike[decode]
        )

    @property
    def pool_models(self) -> tuple[Model, ...]:
        """The model that each pool serves."""
        return tuple(model(self.model if pool.model is None else pool.model) for pool in self.pools)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that pools serve: the site's first, then the others as pools name them."""
        found = {entry.id: entry for entry in self.pool_models}
        first = model_id(self.model)
        return tuple(found[name] for name in sorted(found, key=lambda name: name != first))

    def class_model(self, name: str) -> Model:
        """Return the model that serves a class."""
        return model(self.class_models.get(name, self.model))

    def model_index(self, which: Model) -> int:
        """Return the place of a model among ``models``."""
        return [entry.id for entry in self.models].index(which.id)

    @property
    def known_classes(self) -> dict[str, RequestClass]:
        """Request classes by name that the mix may name."""
        return load_classes() | {own.name: own for own in self.own_classes}

    def context_limit(self, which: Model) -> int:
        """Return the longest prompt + output of the requests to a model, tokens."""
        if isinstance(self.max_context, Mapping):
            return int(self.max_context.get(which.id, which.max_context))
        return which.max_context if self.max_context is None else int(self.max_context)


def site_names() -> list[str]:
    """Return the names of the shipped sites."""
    return sorted(path.stem for path in SITES_PATH.glob("*.toml"))


def _subtable(where: str, kind: type[Any], table: Any, required: tuple[str, ...] = ()) -> Any:
    """Build one of the small dataclasses from its table."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {table!r} is not allowed; must be a table.")
    check_keys(where, table, required=required, optional=[f.name for f in fields(kind) if f.name not in required])
    return kind(**table)


def _training(where: str, table: Any, racks: Mapping[str, Rack]) -> TrainingConfig:
    """Build a site's training block from its table, rack types of the user's own looked up first."""
    if isinstance(table, Mapping) and isinstance(table.get("rack"), str):
        table = {**table, "rack": racks.get(table["rack"], table["rack"])}
    try:
        built: TrainingConfig = _subtable(where, TrainingConfig, table, ("rack", "racks"))
    except ConfigError as error:
        # The catalogue does not know whose rack it was asked for.
        raise ConfigError(f"{where}: {error}" if str(error).startswith("rack:") else str(error)) from None
    return built


_OWN_FILES = ("racks", "models", "classes")
"""What a site may bring along in files of its own, in the form of the shipped ones."""


def _own(where: str, table: Any, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return rack types, models and request classes of the files that a site's table ``own`` names."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {table!r} is not allowed; must be a table of file names: {', '.join(_OWN_FILES)}.")
    check_keys(where, table, required=(), optional=_OWN_FILES)
    found: dict[str, Mapping[str, Any]] = {}
    loaders: tuple[Callable[[Path], Mapping[str, Any]], ...] = (load_racks, load_models, load_classes)
    for key, load in zip(_OWN_FILES, loaders, strict=True):
        found[key] = {}
        if key in table:
            if not isinstance(table[key], str):
                raise ConfigError(f"{where}: {key}: {table[key]!r} is not allowed; must be the name of a TOML file.")
            try:
                found[key] = load(folder / table[key])
            except ConfigError as error:
                # The key says already what kind of file it is.
                text = str(error).removeprefix("request classes: ").removeprefix("catalogue file ")
                raise ConfigError(f"{where}: {key}: {text}") from None
    return found


def _class_models(where: str, table: Any, own: Mapping[str, Model]) -> dict[str, str | Model]:
    """Return the models of a site's table ``class_models``, those of the user's own looked up first."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {table!r} is not allowed; must be a table of class = model.")
    for name, which in table.items():
        if not isinstance(which, Model):
            check_text(f"{where}.{name}", which)
    return {name: own.get(which, which) if isinstance(which, str) else which for name, which in table.items()}


def _series(where: str, table: Any, folder: Path) -> tuple[tuple[str, Series | str], ...]:
    """Return what varies with time: of each kind a file's values, or the word for a synthetic series."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {table!r} is not allowed; must be a table of {', '.join(UNITS)}.")
    check_keys(where, table, required=(), optional=tuple(UNITS))
    found: list[tuple[str, Series | str]] = []
    for kind in UNITS:
        if kind in table:
            given = table[kind]
            if not isinstance(given, str) or not (given == SYNTHETIC or given.endswith((".csv", ".csv.gz"))):
                raise ConfigError(
                    f"{where}: {kind}: {given!r} is not allowed; must be {SYNTHETIC!r} or the name of a CSV file."
                )
            found.append((kind, SYNTHETIC if given == SYNTHETIC else load_series(folder / given, kind)))
    return tuple(found)


def site_from_table(table: Mapping[str, Any], source: str = "site", folder: str | Path = ".") -> SiteConfig:
    """Build a site from a parsed table.

    Args:
        table: The table, keys as the fields of SiteConfig (``pools`` is a list of tables). The table ``own`` may name files with
            ``racks``, ``models`` and request ``classes`` of the user's, in the form of the shipped ones. ``based_on`` may name a site, shipped
            or a TOML file: what the table does not have is taken from it, key by key.
        source: Name used in error messages.
        folder: Where those files are, when their names are relative.

    Returns:
        The site.

    Raises:
        ConfigError: On an unknown or missing key or a value that cannot be used.
    """
    names = [f.name for f in fields(SiteConfig)]
    required = ("name", "cap_w", "model", "pools", "demand_rps", "mix")
    optional = [*(name for name in names if name not in (*required, "own_classes")), "own", "based_on"]
    if "based_on" in table:
        # A mistake is named as the site's own, not as that of what it is based on.
        check_keys(source, table, required=("name",), optional=[*required[1:], *optional])
        table = _with_base(table, source, Path(folder))
    check_keys(source, table, required=required, optional=optional)
    values = dict(table)
    own = _own(f"{source}: own", values.pop("own", {}), Path(folder))
    if isinstance(values["model"], str):
        values["model"] = own["models"].get(values["model"], values["model"])
    values["class_models"] = _class_models(f"{source}: class_models", values.get("class_models", {}), own["models"])
    values["own_classes"] = tuple(own["classes"].values())
    values["series"] = _series(f"{source}: series", values.get("series", {}), Path(folder))
    if not isinstance(values["pools"], (list, tuple)) or not values["pools"]:
        raise ConfigError(f"{source}: pools: must be a list of at least one [[pools]] table.")
    pools = []
    pool_fields = [f.name for f in fields(PoolConfig) if f.name != "aggregated"]
    for index, entry in enumerate(values["pools"]):
        where = f"{source}: pools[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where}: {entry!r} is not allowed; must be a table.")
        check_keys(
            where,
            entry,
            required=("rack", "phase", "racks"),
            optional=[name for name in pool_fields if name not in ("rack", "phase", "racks")],
        )
        if isinstance(entry["rack"], str):
            entry = {**entry, "rack": own["racks"].get(entry["rack"], entry["rack"])}
        if isinstance(entry.get("model"), str):
            entry = {**entry, "model": own["models"].get(entry["model"], entry["model"])}
        try:
            if "cache" in entry:
                entry = {**entry, "cache": _subtable("cache", CacheConfig, entry["cache"])}
            pools.append(PoolConfig(**entry))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith("pools") else f"pools[{index}]: {text}") from None
    values["pools"] = tuple(sorted(pools, key=lambda pool: (*PHASES, BOTH).index(pool.phase)))
    edges = values.get("group_edges", [4096.0])
    if not isinstance(edges, (list, tuple)):
        raise ConfigError(f"{source}: group_edges: {edges!r} is not allowed; must be a list of prompt lengths.")
    values["group_edges"] = tuple(check_range(f"{source}: group_edges", edge, 0.0, 1e9, "tokens") for edge in edges)
    if not isinstance(values["mix"], Mapping):
        raise ConfigError(f"{source}: mix: {values['mix']!r} is not allowed; must be a table of class = share.")
    values["mix"] = dict(values["mix"])
    if "brake" in values:
        values["brake"] = _subtable(f"{source}: brake", BrakeConfig, values["brake"])
    if "battery" in values:
        if isinstance(values["battery"], Mapping):
            check_keys(
                f"{source}: battery",
                values["battery"],
                required=("power_w", "energy_wh"),
                optional=[f.name for f in fields(BatteryConfig) if f.name not in ("power_w", "energy_wh")],
            )
        values["battery"] = _subtable(f"{source}: battery", BatteryConfig, values["battery"])
    if "ramp" in values:
        values["ramp"] = _subtable(f"{source}: ramp", RampConfig, values["ramp"])
    if "rack_storage" in values:
        storage = values["rack_storage"]
        if isinstance(storage, Mapping) and isinstance(storage.get("racks"), list):
            storage = {**storage, "racks": tuple(storage["racks"])}
        values["rack_storage"] = _subtable(f"{source}: rack_storage", StorageConfig, storage)
    if "reliability" in values:
        values["reliability"] = _subtable(f"{source}: reliability", ReliabilityConfig, values["reliability"])
    if "training" in values:
        values["training"] = _training(f"{source}: training", values["training"], own["racks"])
    if "cooling" in values:
        values["cooling"] = _subtable(f"{source}: cooling", CoolingConfig, values["cooling"])
    if "generation" in values:
        values["generation"] = generation_from_tables(f"{source}: generation", values["generation"])
    if "grid" in values:
        values["grid"] = _subtable(f"{source}: grid", GridConfig, values["grid"])
    if "kv_store" in values:
        values["kv_store"] = _subtable(f"{source}: kv_store", StoreConfig, values["kv_store"], ("gb", "gb_s"))
    if "money" in values:
        served = [name for name, share in values["mix"].items() if share]
        racks = [pool.rack_type.id for pool in values["pools"]]
        racks += [values["training"].rack_type.id] if isinstance(values.get("training"), TrainingConfig) else []
        values["money"] = money_from_table(f"{source}: money", values["money"], served, list(dict.fromkeys(racks)))
    return SiteConfig(**values)


_MOST_BASES = 8
"""Sites based on one another that are followed; more can only be a circle."""


def _with_base(table: Mapping[str, Any], source: str, folder: Path) -> dict[str, Any]:
    """Return a site's table with what it does not have from the site that it is based on.

    Raises:
        ConfigError: When there is no such site, or sites are based on one another in a circle.
    """
    whole = dict(table)
    bases = 0
    while "based_on" in whole:
        given = whole.pop("based_on")
        if not isinstance(given, str):
            raise ConfigError(
                f"{source}: based_on: {given!r} is not allowed; must be a shipped site or the path of a TOML file."
            )
        folder, base = _read_site(given, folder, f"{source}: based_on")
        inherited = {key: _with_folder(key, value, folder) for key, value in base.items() if key not in whole}
        bases += 1
        if bases > _MOST_BASES:
            raise ConfigError(
                f"{source}: based_on: {given!r} is not allowed; sites are based on one another in a circle."
            )
        whole |= inherited
    return whole


def _with_folder(key: str, value: Any, folder: Path) -> Any:
    """Return the value of a site's key; names of files in it are those of the site's folder."""
    if key not in ("own", "series") or not isinstance(value, Mapping):
        return value
    return {
        name: str(folder / given) if isinstance(given, str) and given != SYNTHETIC else given
        for name, given in value.items()
    }


def _read_site(source: str | Path, folder: Path, where: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the table of a site's file: a shipped one by name, another by its path.

    Raises:
        ConfigError: On an unknown name or a file that cannot be read.
    """
    name = str(source)
    path = folder / name if name.endswith(".toml") else SITES_PATH / f"{name}.toml"
    if not name.endswith(".toml") and name not in site_names():
        known = (
            unknown(where, source, site_names()) if isinstance(source, str) else f"{where}: {source!r} is not allowed."
        )
        raise ConfigError(f"{known} A site of your own is the path of a TOML file.")
    try:
        return path.parent, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {str(path)!r} ({error.strerror or error}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {str(path)!r} is not valid TOML ({error}).") from None


def load_site(source: str | Path | Mapping[str, Any] | SiteConfig) -> SiteConfig:
    """Return a site by shipped name, from a TOML file, from a table, or as it is.

    Raises:
        ConfigError: On an unknown name, an unreadable file or a table that is not a valid site.
    """
    if isinstance(source, SiteConfig):
        return source
    if isinstance(source, Mapping):
        return site_from_table(source)
    name = str(source)
    folder, table = _read_site(source, Path(), "site")
    try:
        return site_from_table(table, f"site {name!r}", folder)
    except ConfigError as error:
        # By its file, not by what it calls itself as well: the table may have the name of another.
        text = str(error).removeprefix(f"site {table.get('name')!r}: ").removeprefix(f"site {name!r}: ")
        raise ConfigError(f"site {name!r}: {text}") from None
