"""What GPUs and racks draw: idle, a floor for running at all, compute, and memory, bounded by TDP.

``P_gpu = idle + busy [active g(f) + compute_activity compute g(f) + memory_activity (memory_core g(f) + memory)]`` with
``g(f) = f V(f)^2`` and ``V(f) = v0 + (1 - v0) f``: dynamic power of a voltage-scaled circuit. Memory has a part on the
GPU's clock (L2, fabric, controllers) and one that is not (the HBM stacks).

``P_rack = overhead + (1 + loss) sum P_gpu``: both constants follow from two catalogued draws, awake without work and
with every GPU at TDP, so a rack at full load is its nameplate. ``loss`` is everything that grows with GPU draw:
conversion losses and the CPUs, NICs and fans that work when GPUs do.

Collectives count as compute activity, sampling and scheduling as none, and expert weights are read at a power of their
own (``performance.decode_iteration_s``). The fractions of TDP in the catalogue are fitted to measured draws by
``calibration/power.py``; ``docs/validation.md`` says how far off they are (ML.ENERGY leaderboard v3, H100 and B200).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.catalogue import Rack
from ai_factory_gym.catalogue import rack as find_rack
from ai_factory_gym.jit import kernel


class PowerCoefficients(NamedTuple):
    """Power of one rack type, profile and kind of GPU. All floats.

    Attributes:
        gpus: GPUs per rack.
        tdp_w: Power limit of one GPU.
        idle_w: Draw of an idle GPU.
        active_w: Draw of a running GPU above idle before any activity, at clock 1.
        compute_w: Draw of fully busy compute units at clock 1.
        memory_core_w: Clock-dependent draw of a fully busy memory system at clock 1.
        memory_w: Clock-independent draw of a fully busy memory system.
        voltage_floor: v0 of V(f) = v0 + (1 - v0) f.
        overhead_w: Draw of an awake rack beside its GPUs, without work.
        loss: Watts of rack draw added per watt of GPU draw.
        sleep_rack_w: Draw of a sleeping rack.
        wake_rack_w: Draw of a waking rack.
    """

    gpus: float
    tdp_w: float
    idle_w: float
    active_w: float
    compute_w: float
    memory_core_w: float
    memory_w: float
    voltage_floor: float
    overhead_w: float
    loss: float
    sleep_rack_w: float
    wake_rack_w: float


POWER_GPUS = 0
POWER_TDP_W = 1
POWER_IDLE_W = 2
POWER_ACTIVE_W = 3
POWER_COMPUTE_W = 4
POWER_MEMORY_CORE_W = 5
POWER_MEMORY_W = 6
POWER_VOLTAGE_FLOOR = 7
POWER_OVERHEAD_W = 8
POWER_LOSS = 9
POWER_SLEEP_RACK_W = 10
POWER_WAKE_RACK_W = 11

_BISECTIONS = 40


@kernel
def dynamic_power_factor(voltage_floor: float, clock: float) -> float:
    """Dynamic power at a clock relative to clock 1: f V(f)^2.

    Args:
        voltage_floor: v0 of V(f) = v0 + (1 - v0) f.
        clock: SM clock as a fraction of the maximum.
    """
    voltage = voltage_floor + (1.0 - voltage_floor) * clock
    return clock * voltage * voltage


@kernel
def gpu_power_w(
    coef: NDArray[np.float64], clock: float, busy: float, compute_activity: float, memory_activity: float
) -> float:
    """Draw of one GPU, bounded by TDP.

    Args:
        coef: ``np.array(PowerCoefficients)``, shape (12,).
        clock: SM clock as a fraction of the maximum.
        busy: Share of the time (or of the replicas) that runs at all, in [0, 1].
        compute_activity: Share of the busy time the compute units work.
        memory_activity: Share of the busy time the memory system works.

    Returns:
        Watts.
    """
    factor = dynamic_power_factor(coef[POWER_VOLTAGE_FLOOR], clock)
    running_w = (
        coef[POWER_ACTIVE_W] * factor
        + compute_activity * coef[POWER_COMPUTE_W] * factor
        + memory_activity * (coef[POWER_MEMORY_CORE_W] * factor + coef[POWER_MEMORY_W])
    )
    limit_w = coef[POWER_TDP_W] - coef[POWER_IDLE_W]
    # The limit holds while a GPU runs; averaging over idle time comes after it.
    drawn_w: float = coef[POWER_IDLE_W] + busy * min(running_w, limit_w)
    return drawn_w


@kernel
def rack_power_w(coef: NDArray[np.float64], gpu_w: float) -> float:
    """Draw of one awake rack whose GPUs draw ``gpu_w`` each on average.

    Args:
        coef: ``np.array(PowerCoefficients)``, shape (12,).
        gpu_w: Mean draw of one GPU.

    Returns:
        Watts of IT power.
    """
    drawn_w: float = coef[POWER_OVERHEAD_W] + (1.0 + coef[POWER_LOSS]) * coef[POWER_GPUS] * gpu_w
    return drawn_w


@kernel
def highest_clock(
    coef: NDArray[np.float64],
    limit_w: float,
    busy: float,
    compute_activity: float,
    memory_activity: float,
    lowest_clock: float = 0.0,
) -> float:
    """Highest clock whose draw keeps a power limit: what firmware does.

    Args:
        coef: ``np.array(PowerCoefficients)``, shape (12,).
        limit_w: Power limit of one GPU.
        busy: Share of the time that runs at all, in [0, 1].
        compute_activity: Share of the busy time the compute units work. Activities are held: where they change with the
            clock, pass those at the clock found and repeat.
        memory_activity: Share of the busy time the memory system works.
        lowest_clock: Clock below which firmware does not go.

    Returns:
        Clock in [lowest_clock, 1]; ``lowest_clock`` where even that draws more.
    """
    if gpu_power_w(coef, 1.0, busy, compute_activity, memory_activity) <= limit_w:
        return 1.0
    low, high = lowest_clock, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if gpu_power_w(coef, middle, busy, compute_activity, memory_activity) <= limit_w:
            low = middle
        else:
            high = middle
    return low


def prefill_part(coef: NDArray[np.float64], largest_share: float) -> NDArray[np.float64]:
    """Return what prefill adds to racks whose GPUs decode too, as power coefficients.

    No idle draw and no overhead: the racks have those whatever their GPUs do. ``busy`` of these coefficients is relative to the largest
    share of time that prefill may take.

    Args:
        coef: ``np.array(PowerCoefficients)`` of the racks, shape (12,).
        largest_share: That share.
    """
    part = coef.copy()
    part[POWER_TDP_W] -= part[POWER_IDLE_W]
    for column in (POWER_TDP_W, POWER_ACTIVE_W, POWER_COMPUTE_W, POWER_MEMORY_CORE_W, POWER_MEMORY_W):
        part[column] *= largest_share
    for column in (POWER_IDLE_W, POWER_OVERHEAD_W, POWER_SLEEP_RACK_W, POWER_WAKE_RACK_W):
        part[column] = 0.0
    return part


def power_coefficients(rack: Rack | str, profile: str | None = None, *, phase: str | None = None) -> PowerCoefficients:
    """Fold a rack type and a power profile into power coefficients.

    Args:
        rack: Rack type or its catalogue name.
        profile: Power profile; None is the default one.
        phase: Which GPUs, in a rack with two kinds; the result is then that group's share of the rack.

    Returns:
        The coefficients.

    Raises:
        ConfigError: On an unknown name, or a rack with two kinds of GPU and no phase.
    """
    group = find_rack(rack).group(phase)
    chosen = group.profile(profile)
    architecture = group.architecture
    tdp_w = chosen.tdp_w
    loss = (chosen.nameplate_w - chosen.idle_rack_w) / (group.gpus * (tdp_w - group.idle_w)) - 1.0
    return PowerCoefficients(
        gpus=float(group.gpus),
        tdp_w=tdp_w,
        idle_w=group.idle_w,
        active_w=architecture.active_fraction * tdp_w,
        compute_w=architecture.compute_fraction * tdp_w,
        memory_core_w=architecture.memory_core_fraction * tdp_w,
        memory_w=architecture.memory_fraction * tdp_w,
        voltage_floor=architecture.voltage_floor,
        overhead_w=chosen.idle_rack_w - (1.0 + loss) * group.gpus * group.idle_w,
        loss=loss,
        sleep_rack_w=chosen.sleep_rack_w,
        wake_rack_w=chosen.wake_rack_w,
    )
