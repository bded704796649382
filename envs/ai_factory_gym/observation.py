"""What the operator sees: a flat vector of named, scaled blocks. Output lengths stay hidden until they happen: a POMDP.

Every number is divided by a fixed scale (``ObservationLayout.scale``) and saturates at ``LIMIT``, far outside normal
operation. Nothing tells how long the episode still lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ai_factory_gym.engine.draw import facility_power_w
from ai_factory_gym.engine.health import units_per_rack, working_share
from ai_factory_gym.engine.heat import LOOK_AHEAD_S, heat_allows_w
from ai_factory_gym.engine.layout import (
    BACKLOG_BIN_S,
    MAINTENANCE,
    PREFILL,
    RUNNING,
    STARTING,
    Array,
    CapStep,
    Cell,
    Class,
    ClassSpec,
    Fault,
    Params,
    Pool,
    PoolInt,
    PoolSpec,
    Site,
    SiteSpec,
    State,
    Tier,
    Transition,
    Unit,
    UnitSpec,
)
from ai_factory_gym.engine.ledger import held_at_most_s
from ai_factory_gym.engine.racks import racks_staying
from ai_factory_gym.engine.smoothing import highest_w, lowest_w
from ai_factory_gym.engine.training import (
    LOADING,
    PAUSED,
    WRITING,
    block_reserve_w,
    progress_share,
)
from ai_factory_gym.engine.training import RUNNING as TRAINS
from ai_factory_gym.errors import unknown
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import DECODE_KV_CAPACITY_TOKENS
from ai_factory_gym.sites import SiteConfig

LIMIT = 10.0
DAY_S = 86400.0
NOTICE_SCALE_S = 7200.0
DURATION_SCALE_S = 14400.0
TRAINING_SCALE_S = 600.0
USD_PER_MWH_SCALE = 100.0

BLOCKS: tuple[tuple[str, str, str], ...] = (
    ("time_of_day", "2", "sine and cosine of the local time"),
    ("cap", "1", "cap in force / base cap"),
    (
        "cap_announced",
        "4",
        "1 when a change is announced; time until it / 2 h; cap after it / base cap; its duration / 4 h",
    ),
    ("price", "1", "electricity price / 100 USD/MWh"),
    ("carbon", "1", "carbon intensity / 500 g/kWh"),
    ("power", "2", "facility power over the last step / base cap; last segment / base cap"),
    ("brake", "2", "1 while the brake is engaged; share of the last step under it"),
    ("pool_busy", "pools", "share of awake time in which the pool's racks ran"),
    (
        "pool_batch",
        "pools",
        "decode: requests in flight per replica / reference batch; prefill: requests in the queue per rack / 100",
    ),
    ("pool_kv", "pools", "decode: KV memory reserved or held / capacity of the active racks; prefill: 0"),
    (
        "pool_transfer",
        "pools",
        "decode: requests whose KV is in transfer or waits / reference batch of all replicas; prefill: 0",
    ),
    ("pool_tpot", "pools", "decode: time per output token / tightest TPOT limit; prefill: 0"),
    ("pool_wait", "pools", "prefill: time to serve the queue, s / 10; decode: predicted wait for admission, s / 10"),
    ("pool_clock", "pools", "mean clock over the last step"),
    ("pool_power", "pools", "IT power over the last step / nameplate of the pool"),
    ("pool_active", "pools", "racks active / racks as built"),
    ("pool_waking", "pools", "racks waking / racks as built"),
    ("pool_wake_time", "pools", "time until the next waking rack is active / wake time"),
    ("pool_draining", "pools", "racks draining / racks as built"),
    ("pool_asleep", "pools", "racks asleep / racks as built"),
    ("pool_failed", "pools", "racks failed, parts of racks as parts / racks as built"),
    ("class_rate", "classes", "arrivals per second over the last step / mean demand of the class"),
    ("class_rate_lag1", "classes", "the same one step earlier"),
    ("class_rate_lag2", "classes", "the same two steps earlier"),
    ("queue_wait", "classes", "mean TTFT of first tokens in the last step / TTFT limit of an average prompt"),
    ("class_queued", "classes", "requests without a first token / mean demand per second of the class / 10 s"),
    ("class_attainment", "classes", "recent share of requests that met their SLO; 1 while none was decided"),
    ("class_slack", "classes", "(recent share - target) x 10"),
    ("class_pending", "classes", "deferrable requests not released / mean demand per hour of the class"),
    ("previous_action", "actions", "the last action"),
)
"""Name, length and meaning of every block, in order."""

LEVER_BLOCKS: tuple[tuple[str, str, str, str], ...] = (
    ("power_limit", "pool_power_limit", "pools", "power limit in force / largest draw of a rack; 1 without a limit"),
    (
        "batch_ceiling",
        "pool_batch_ceiling",
        "pools",
        "decode: batch ceiling in force / reference batch; prefill: 0",
    ),
    (
        "admission",
        "class_admitted",
        "classes",
        "share of the arrivals that is let in; where all are, 1 + time they wait at the gate / longest there is",
    ),
    (
        "deferral",
        "class_due",
        "classes",
        "deferrable: time left to the oldest request that is not released / the class's deadline, 1 when there is none; others: 0",
    ),
    ("effort", "class_effort", "classes", "output that is allowed / output at full effort"),
    (
        "battery",
        "battery",
        "2",
        "charge / capacity; power given over the last segment / largest power, negative while it is charged",
    ),
    (
        "role",
        "pool_racks",
        "pools",
        "racks of the pool, those left out that are to leave / racks of its pair; 1 without a pair",
    ),
)
"""Lever, name, length and meaning of the blocks that are there, behind the others, when the lever is in use."""

PART_BLOCKS: tuple[tuple[str, str, str, str], ...] = (
    (
        "cache",
        "pool_cached",
        "pools",
        "prefill: share of the prompt tokens of the last step that the prefix cache had; decode: 0",
    ),
    (
        "coolant",
        "coolant",
        "3",
        "temperature / its limit; facility power that heat allows now / base cap, and for good in this weather / base cap",
    ),
    (
        "peaks",
        "peak_window",
        "4",
        "window of a coincident peak: 1 while it is announced; time until it / 2 h; 1 while it is in force; time left in it / 4 h",
    ),
    (
        "faults",
        "maintenance",
        "2",
        "1 when a rack is to be taken out for maintenance within a day; time until then / 2 h",
    ),
    (
        "ramp",
        "ramp",
        "4",
        "highest and lowest draw from the grid that the ramp limits allow at the end of the next step, at most the cap / base cap; charge of "
        "the racks' storage / what it holds; ballast of the last segment / base cap",
    ),
    (
        "training",
        "training",
        "9",
        "1 while there is a job; 1 while it runs; 1 while it is paused; its clock, 0 while it does not run; facility power of the block over the "
        "last segment / base cap, and what it may come to as ordered, bursts included / base cap; time left of writing or loading / 10 min; "
        "time run since the last checkpoint / time between two; progress so far / that of a job left alone, 1 before there is any",
    ),
    (
        "generation",
        "supply",
        "2",
        "power of the units at the site that run / base cap; of those that run or start / base cap",
    ),
    ("generation", "unit_running", "units", "1 while the unit runs"),
    ("generation", "unit_start", "units", "time until the unit that is starting runs / its start time; 0 otherwise"),
    ("generation", "unit_output", "units", "output over the last segment / its power"),
    ("generation", "unit_held", "units", "time for which the unit may not be stopped, or started, yet / 1 h"),
)
"""Part of the site, name, length and meaning of the blocks that are there, behind those of levers, when the site has that part."""

_CACHE, _COOLANT, _PEAKS, _FAULTS, _RAMP, _TRAINING, _SUPPLY = 0, 1, 2, 3, 4, 5, 6
"""Places in ``PART_BLOCKS``."""


def site_parts(site: SiteConfig, faults: bool = False) -> tuple[str, ...]:
    """Return the parts of a site that have an observation block; ``faults`` tells whether its racks may go out of service."""
    there = {
        "cache": site.caches,
        "coolant": site.cooling.coolant_limit_c is not None,
        "peaks": site.money is not None and site.money.coincident_usd_per_kw_year > 0.0,
        "faults": faults,
        "ramp": site.ramp is not None,
        "training": site.training is not None,
        "generation": bool(site.generation),
    }
    return tuple(part for part, has in there.items() if has)


@dataclass(frozen=True)
class ObservationLayout:
    """Where each block lies in the observation.

    Attributes:
        slices: Block name to slice.
        size: Length of the observation.
        pool_batch: Reference batch per decode replica, float64[pools].
        pool_nameplate_w: IT power of the pool's racks at their limit, float64[pools].
        class_rate: Mean demand, requests/s, float64[classes].
        class_ttft_s: TTFT limit of an average prompt, float64[classes].
        base_cap_w: Cap of the site; where it makes power itself, with the power of its units.
        tpot_s: Tightest TPOT limit.
        pool_rack_w: Largest draw of a rack, W, float64[pools].
    """

    slices: dict[str, slice] = field(repr=False)
    size: int
    pool_batch: Array = field(repr=False)
    pool_nameplate_w: Array = field(repr=False)
    class_rate: Array = field(repr=False)
    class_ttft_s: Array = field(repr=False)
    base_cap_w: float
    tpot_s: float
    pool_rack_w: Array = field(repr=False)

    @property
    def scales(self) -> tuple[Array, ...]:
        """Scales that differ by pool or class, and where the blocks of levers and of parts begin, as ``observe_row`` wants them."""
        begins, part_begins = (
            np.array([self.slices[name].start if name in self.slices else -1 for _, name, _, _ in blocks])
            for blocks in (LEVER_BLOCKS, PART_BLOCKS)
        )
        return (
            self.pool_batch,
            self.pool_nameplate_w,
            self.class_rate,
            self.class_ttft_s,
            self.pool_rack_w,
            begins.astype(np.int64),
            part_begins.astype(np.int64),
        )

    @property
    def constants(self) -> tuple[float, float]:
        """Base cap (W) and tightest TPOT (s)."""
        return self.base_cap_w, self.tpot_s

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the blocks, in order."""
        return iter(self.slices)

    def __len__(self) -> int:
        """Return how many blocks there are; ``size`` is the length of the observation."""
        return len(self.slices)

    def __contains__(self, block: object) -> bool:
        """Tell whether there is a block of that name."""
        return block in self.slices

    def __getitem__(self, block: str) -> slice:
        """Return where a block lies.

        Raises:
            ConfigError: When there is none of that name.
        """
        if block not in self.slices:
            raise unknown("observation_layout", block, self.slices)
        return self.slices[block]


def lay_out(
    pools: int, classes: int, actions: int, levers: Sequence[str] = (), parts: Sequence[str] = (), units: int = 0
) -> tuple[dict[str, slice], int]:
    """Return the slices of all blocks and the length of the observation, those of levers in use and of the site's parts among them."""
    blocks = [*BLOCKS, *((name, length, text) for lever, name, length, text in LEVER_BLOCKS if lever in levers)]
    blocks += [(name, length, text) for part, name, length, text in PART_BLOCKS if part in parts]
    lengths = {"pools": pools, "classes": classes, "actions": actions, "units": units}
    slices = {}
    begin = 0
    for name, length, _ in blocks:
        size = lengths[length] if length in lengths else int(length)
        slices[name] = slice(begin, begin + size)
        begin += size
    return slices, begin


@kernel
def _announced(state: State, row: int, now_s: float, base_cap_w: float, out: Array, at: int) -> None:
    """Write the next cap change that has been announced: flag, time to it, cap after it, how long it lasts."""
    steps = state.cap_steps[row]
    for step in range(steps.shape[0]):
        begin_s = steps[step, CapStep.TIME_S]
        if begin_s > now_s and begin_s < math.inf and steps[step, CapStep.ANNOUNCED_S] <= now_s:
            end_s = math.inf
            if step + 1 < steps.shape[0]:
                end_s = steps[step + 1, CapStep.TIME_S]
            out[at] = 1.0
            out[at + 1] = (begin_s - now_s) / NOTICE_SCALE_S
            out[at + 2] = steps[step, CapStep.CAP_W] / base_cap_w
            out[at + 3] = min(LIMIT, (end_s - begin_s) / DURATION_SCALE_S)
            return
    out[at] = 0.0
    out[at + 1] = 0.0
    out[at + 2] = state.site[row, Site.CAP_W] / base_cap_w
    out[at + 3] = 0.0


@kernel
def _pool_blocks(
    params: Params, state: State, row: int, out: Array, at: int, batch: Array, nameplate_w: Array, tpot_s: float
) -> None:
    """Write the fourteen pool blocks, each ``pools`` long, from position ``at`` on."""
    pools = params.pool.shape[0]
    now_s = state.site[row, Site.TIME_S]
    elapsed = max(state.site[row, Site.STEP_S], 1e-9)
    for pool in range(pools):
        numbers = state.pool[row, pool]
        ints = state.pool_int[row, pool]
        spec = params.pool[pool]
        racks = spec[PoolSpec.RACKS]
        working = spec[PoolSpec.REPLICAS_PER_RACK] * working_share(state, row, pool)
        replicas = max(1.0, (ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]) * working)
        kv = 0.0
        transfer = 0.0
        tpot = 0.0
        wait_s = numbers[Pool.WAIT_S]
        if spec[PoolSpec.PHASE] == PREFILL:
            servers = ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool)
            load = numbers[Pool.QUEUED] / max(1.0, float(ints[PoolInt.ACTIVE])) / 100.0
            wait_s = numbers[Pool.QUEUED_WORK] / max(1.0, servers * numbers[Pool.CLOCK])
        else:
            load = numbers[Pool.IN_FLIGHT] / replicas / batch[pool]
            room = (
                max(1.0, ints[PoolInt.ACTIVE] * units_per_rack(params, state, row, pool))
                * params.perf[pool, DECODE_KV_CAPACITY_TOKENS]
            )
            kv = (numbers[Pool.RESERVED] + numbers[Pool.HELD]) / room
            transfer = numbers[Pool.IN_TRANSIT] / replicas / batch[pool]
            tpot = numbers[Pool.TPOT_S] / tpot_s
        wake_s = 0.0
        if ints[PoolInt.WAKING] > 0:
            first_s = math.inf
            for entry in range(state.transition.shape[3]):
                first_s = min(first_s, state.transition[row, pool, 0, entry, Transition.DONE_S])
            wake_s = max(0.0, first_s - now_s) / max(spec[PoolSpec.WAKE_S], 1.0)
        out[at + pool] = numbers[Pool.STEP_BUSY_S] / elapsed
        out[at + pools + pool] = load
        out[at + 2 * pools + pool] = kv
        out[at + 3 * pools + pool] = transfer
        out[at + 4 * pools + pool] = tpot
        out[at + 5 * pools + pool] = wait_s / 10.0
        out[at + 6 * pools + pool] = numbers[Pool.STEP_CLOCK_S] / elapsed
        out[at + 7 * pools + pool] = numbers[Pool.STEP_ENERGY_J] / elapsed / nameplate_w[pool]
        out[at + 8 * pools + pool] = ints[PoolInt.ACTIVE] / racks
        out[at + 9 * pools + pool] = ints[PoolInt.WAKING] / racks
        out[at + 10 * pools + pool] = wake_s
        out[at + 11 * pools + pool] = ints[PoolInt.DRAINING] / racks
        out[at + 12 * pools + pool] = ints[PoolInt.ASLEEP] / racks
        out_of_service = ints[PoolInt.FAILED] + numbers[Pool.OUT_REPLICAS] / spec[PoolSpec.REPLICAS_PER_RACK]
        out[at + 13 * pools + pool] = out_of_service / racks


@kernel
def _class_blocks(params: Params, state: State, row: int, out: Array, at: int, rate: Array, ttft_s: Array) -> None:
    """Write the eight class blocks, each ``classes`` long, from position ``at`` on."""
    classes = params.cls.shape[0]
    for cls in range(classes):
        counters = state.cls[row, cls]
        mean = max(rate[cls], 1e-9)
        decided = counters[Class.RECENT_MET] + counters[Class.RECENT_MISSED]
        attainment = counters[Class.RECENT_MET] / decided if decided > 0.0 else 1.0
        wait_s = 0.0
        if counters[Class.STEP_TTFT_COUNT] > 0.0:
            wait_s = counters[Class.STEP_TTFT_SUM_S] / counters[Class.STEP_TTFT_COUNT]
        out[at + cls] = counters[Class.RATE] / mean
        out[at + classes + cls] = counters[Class.RATE_LAG1] / mean
        out[at + 2 * classes + cls] = counters[Class.RATE_LAG2] / mean
        out[at + 3 * classes + cls] = wait_s / ttft_s[cls]
        out[at + 4 * classes + cls] = counters[Class.QUEUED] / mean / 10.0
        out[at + 5 * classes + cls] = attainment
        out[at + 6 * classes + cls] = (attainment - params.cls[cls, ClassSpec.TARGET]) * 10.0
        out[at + 7 * classes + cls] = counters[Class.PENDING] / mean / 3600.0


@kernel
def _class_due(params: Params, state: State, row: int, cls: int, now_s: float) -> float:
    """Return the time left to the oldest deferred requests of a class, as a share of its deadline; 1 when there are none.

    What is released is a share: a bin never empties quite, and counts as long as a whole request is left of it.
    """
    deadline_s = params.cls[cls, ClassSpec.DEADLINE_S]
    bins = state.backlog.shape[2]
    now_bin = int(math.floor(now_s / BACKLOG_BIN_S))
    for back in range(bins):
        age = bins - 1 - back
        waiting = 0.0
        for cell in range(params.cell.shape[0]):
            if int(params.cell[cell, Cell.CLASS]) == cls:
                waiting += state.backlog[row, cell, (now_bin - age) % bins]
        if waiting >= 1.0:
            left_s = (now_bin - age) * BACKLOG_BIN_S + deadline_s - now_s
            return min(1.0, max(0.0, left_s / deadline_s))
    return 1.0


@kernel
def _next_maintenance(state: State, row: int, now_s: float, out: Array, at: int) -> None:
    """Write whether a rack is to be taken out within a day, and when."""
    out[at] = 0.0
    out[at + 1] = 0.0
    for index in range(state.fault.shape[1]):
        event = state.fault[row, index]
        if event[Fault.TIME_S] >= now_s + DAY_S:
            return
        if event[Fault.KIND] == MAINTENANCE and event[Fault.DONE] == 0.0:
            out[at] = 1.0
            out[at + 1] = min(LIMIT, (event[Fault.TIME_S] - now_s) / NOTICE_SCALE_S)
            return


@inlined_kernel
def _lever_blocks(
    params: Params, state: State, row: int, out: Array, begins: Array, batch: Array, rack_w: Array, now_s: float
) -> None:
    """Write the blocks of ``LEVER_BLOCKS`` that are there."""
    for pool in range(params.pool.shape[0]):
        numbers = state.pool[row, pool]
        if begins[0] >= 0:
            out[begins[0] + pool] = min(1.0, numbers[Pool.POWER_LIMIT_W] / rack_w[pool])
        if begins[1] >= 0:
            decode = params.pool[pool, PoolSpec.PHASE] != PREFILL
            out[begins[1] + pool] = min(LIMIT, numbers[Pool.MAX_BATCH] / batch[pool]) if decode else 0.0
        if begins[6] >= 0:
            sibling = int(params.pool[pool, PoolSpec.SIBLING])
            total = params.pool[pool, PoolSpec.RACKS]
            total += params.pool[sibling, PoolSpec.RACKS] if sibling >= 0 else 0.0
            out[begins[6] + pool] = racks_staying(state, row, pool) / total
    if begins[5] >= 0:
        spec = params.site
        out[begins[5]] = state.site[row, Site.BATTERY_CHARGE_J] / spec[SiteSpec.BATTERY_J]
        out[begins[5] + 1] = state.site[row, Site.BATTERY_OUT_W] / spec[SiteSpec.BATTERY_W]
    for cls in range(params.cls.shape[0]):
        if begins[2] >= 0:
            longest_s = max(held_at_most_s(params.cls[cls]), 1e-9)
            out[begins[2] + cls] = state.cls[row, cls, Class.ADMITTED] + state.cls[row, cls, Class.DELAY_S] / longest_s
        if begins[3] >= 0:
            held = params.cls[cls, ClassSpec.DEFERRABLE] > 0.0
            out[begins[3] + cls] = _class_due(params, state, row, cls, now_s) if held else 0.0
        if begins[4] >= 0:
            out[begins[4] + cls] = state.cls[row, cls, Class.EFFORT]


@kernel
def _training_block(params: Params, state: State, row: int, out: Array, at: int, base_cap_w: float) -> None:
    """Write what the training block does, and what it may come to draw."""
    site = state.site[row]
    spec = params.site
    phase = site[Site.TRAIN_PHASE]
    running = phase == TRAINS and site[Site.TRAIN_STALLED] == 0.0
    out[at] = abs(site[Site.JOB])
    out[at + 1] = 1.0 if running else 0.0
    out[at + 2] = 1.0 if phase == PAUSED else 0.0
    out[at + 3] = site[Site.TRAIN_CLOCK] if running else 0.0
    out[at + 4] = min(LIMIT, site[Site.TRAIN_POWER_W] / base_cap_w)
    out[at + 5] = min(LIMIT, block_reserve_w(params, state, row) / base_cap_w)
    waiting = phase == WRITING or phase == LOADING
    out[at + 6] = min(LIMIT, site[Site.TRAIN_LEFT_S] / TRAINING_SCALE_S) if waiting else 0.0
    out[at + 7] = min(LIMIT, site[Site.TRAIN_RAN_S] / spec[SiteSpec.TRAIN_PERIOD_S])
    done_s = site[Site.TRAIN_DONE_S] - site[Site.TRAIN_LOST_S]
    out[at + 8] = max(-LIMIT, min(LIMIT, progress_share(done_s, site[Site.TRAIN_DUE_S])))


@kernel
def _supply_blocks(params: Params, state: State, row: int, out: Array, at: int, base_cap_w: float) -> None:
    """Write the blocks of the units that make power at the site, from position ``at`` on."""
    now_s = state.site[row, Site.TIME_S]
    units = params.unit.shape[0]
    running_w = 0.0
    coming_w = 0.0
    for unit in range(units):
        spec = params.unit[unit]
        mine = state.unit[row, unit]
        runs = mine[Unit.MODE] == RUNNING
        starts = mine[Unit.MODE] == STARTING
        if runs:
            running_w += spec[UnitSpec.POWER_W]
        elif starts:
            coming_w += spec[UnitSpec.POWER_W]
        left_s = max(0.0, mine[Unit.READY_S] - now_s) if starts else 0.0
        held_s = 0.0 if starts else max(0.0, mine[Unit.HOLD_S] - now_s)
        out[at + 2 + unit] = 1.0 if runs else 0.0
        out[at + 2 + units + unit] = left_s / max(spec[UnitSpec.START_S], 1.0)
        out[at + 2 + 2 * units + unit] = mine[Unit.OUTPUT_W] / spec[UnitSpec.POWER_W]
        out[at + 2 + 3 * units + unit] = min(LIMIT, held_s / 3600.0)
    out[at] = running_w / base_cap_w
    out[at + 1] = (running_w + coming_w) / base_cap_w


@inlined_kernel
def _part_blocks(params: Params, state: State, row: int, out: Array, begins: Array, base_cap_w: float) -> None:
    """Write the blocks of ``PART_BLOCKS`` that are there."""
    if begins[_CACHE] >= 0:
        for pool in range(params.pool.shape[0]):
            tier = state.cache[row, pool]
            prompt = tier[Tier.STEP_PROMPT]
            out[begins[_CACHE] + pool] = tier[Tier.STEP_CACHED] / prompt if prompt > 0.0 else 0.0
    if begins[_COOLANT] >= 0:
        at = begins[_COOLANT]
        out[at] = state.site[row, Site.COOLANT_C] / params.site[SiteSpec.COOLANT_LIMIT_C]
        now_w = facility_power_w(params, state, row, heat_allows_w(params, state, row, LOOK_AHEAD_S))
        always_w = facility_power_w(params, state, row, heat_allows_w(params, state, row, math.inf))
        out[at + 1] = min(LIMIT, now_w / base_cap_w)
        out[at + 2] = min(LIMIT, always_w / base_cap_w)
    if begins[_PEAKS] >= 0:
        at = begins[_PEAKS]
        until_s = state.site[row, Site.PEAK_UNTIL_S]
        left_s = state.site[row, Site.PEAK_LEFT_S]
        ahead = 0.0 < until_s < math.inf
        out[at] = 1.0 if ahead else 0.0
        out[at + 1] = min(LIMIT, until_s / NOTICE_SCALE_S) if ahead else 0.0
        out[at + 2] = 1.0 if left_s > 0.0 else 0.0
        out[at + 3] = min(LIMIT, left_s / DURATION_SCALE_S)
    if begins[_FAULTS] >= 0:
        _next_maintenance(state, row, state.site[row, Site.TIME_S], out, begins[_FAULTS])
    if begins[_RAMP] >= 0:
        at = begins[_RAMP]
        spec = params.site
        # The means of the last segment and of a whole step are half their lengths away from now.
        ahead_s = 2.0 * spec[SiteSpec.CONTROL_INTERVAL_S]
        cap_w = state.site[row, Site.CAP_W]
        out[at] = min(LIMIT, min(cap_w, highest_w(params, state, row, ahead_s)) / base_cap_w)
        out[at + 1] = min(LIMIT, min(cap_w, lowest_w(params, state, row, ahead_s)) / base_cap_w)
        holds_j = spec[SiteSpec.STORAGE_J]
        out[at + 2] = state.site[row, Site.STORAGE_CHARGE_J] / holds_j if holds_j > 0.0 else 0.0
        out[at + 3] = min(LIMIT, state.site[row, Site.BALLAST_W] / base_cap_w)
    if begins[_TRAINING] >= 0:
        _training_block(params, state, row, out, begins[_TRAINING], base_cap_w)
    if begins[_SUPPLY] >= 0:
        _supply_blocks(params, state, row, out, begins[_SUPPLY], base_cap_w)


@inlined_kernel
def observe_row(
    params: Params,
    state: State,
    row: int,
    start_s: float,
    action: Array,
    scales: tuple[Array, ...],
    constants: tuple[float, float],
    out: Array,
) -> None:
    """Write the observation of one row.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        start_s: Local time at the start of the scored window, s.
        action: The row's last action, float64[actions].
        scales: ``ObservationLayout.scales``.
        constants: ``ObservationLayout.constants``.
        out: float32[size], written.
    """
    batch, nameplate_w, rate, ttft_s, rack_w, begins, part_begins = scales
    base_cap_w, tpot_s = constants
    pools = params.pool.shape[0]
    classes = params.cls.shape[0]
    site = state.site[row]
    now_s = site[Site.TIME_S]
    elapsed = max(site[Site.STEP_S], 1e-9)
    angle = 2.0 * math.pi * ((start_s + now_s) % DAY_S) / DAY_S
    out[0] = math.sin(angle)
    out[1] = math.cos(angle)
    out[2] = site[Site.CAP_W] / base_cap_w
    _announced(state, row, now_s, base_cap_w, out, 3)
    out[7] = site[Site.USD_PER_MWH] / USD_PER_MWH_SCALE
    out[8] = site[Site.G_PER_KWH] / 500.0
    out[9] = site[Site.STEP_ENERGY_J] / elapsed / base_cap_w
    out[10] = site[Site.FACILITY_POWER_W] / base_cap_w
    out[11] = site[Site.BRAKED]
    out[12] = site[Site.STEP_BRAKE_S] / elapsed
    _pool_blocks(params, state, row, out, 13, batch, nameplate_w, tpot_s)
    _class_blocks(params, state, row, out, 13 + 14 * pools, rate, ttft_s)
    at = 13 + 14 * pools + 8 * classes
    for place in range(action.shape[0]):
        out[at + place] = action[place]
    for place in range(at):
        out[place] = max(-LIMIT, min(LIMIT, out[place]))
    _lever_blocks(params, state, row, out, begins, batch, rack_w, now_s)
    _part_blocks(params, state, row, out, part_begins, base_cap_w)


def class_limits_s(params: Params) -> Array:
    """Return the TTFT limit of an average prompt of each class, s, float64[classes]."""
    limits = np.zeros(len(params.cls))
    for index in range(len(params.cls)):
        cells = params.cell[params.cell[:, Cell.CLASS] == index]
        if len(cells) == 0:
            limits[index] = params.cls[index, ClassSpec.TTFT_A_S]
            continue
        share = cells[:, Cell.WEIGHT] / cells[:, Cell.WEIGHT].sum()
        limits[index] = (
            params.cls[index, ClassSpec.TTFT_A_S]
            + params.cls[index, ClassSpec.TTFT_B] * float(share @ cells[:, Cell.PROMPT])
            + params.cls[index, ClassSpec.TTFT_C] * float(share @ cells[:, Cell.PROMPT_SQ])
        )
    return limits


__all__ = [
    "BLOCKS",
    "LEVER_BLOCKS",
    "LIMIT",
    "PART_BLOCKS",
    "ObservationLayout",
    "class_limits_s",
    "lay_out",
    "observe_row",
    "site_parts",
]
