"""A synchronous training job: what its racks draw and how fast it goes at a clock, phase by phase.

Every iteration has a compute phase, in which all GPUs of the job draw near their limit, and a communication phase, in which they wait for each
other near idle (bulk-synchronous training; Choukse et al., "Power Stabilization for AI Training Datacenters", arXiv:2508.14318, production
telemetry: swings between near TDP and near idle at 0.2 to 3 Hz, status secondary report). Only the compute phase slows down with the clock.
"""

from __future__ import annotations

from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.performance import compute_rate
from ai_factory_gym.physics.power import dynamic_power_factor


@inlined_kernel
def phase_power_w(
    idle_w: float, most_w: float, core_w: float, fixed_w: float, voltage_floor: float, clock: float
) -> float:
    """Return the IT power of racks whose GPUs all do the same, W: ``power.rack_power_w`` of ``power.gpu_power_w``, folded.

    Args:
        idle_w: Draw with no GPU running, W.
        most_w: What GPUs may add to it, W.
        core_w: What they add at clock 1 that depends on the clock, W.
        fixed_w: What they add that does not, W.
        voltage_floor: v0 of V(f) = v0 + (1 - v0) f.
        clock: SM clock as a fraction of the maximum.
    """
    return idle_w + min(core_w * dynamic_power_factor(voltage_floor, clock) + fixed_w, most_w)


@inlined_kernel
def iteration_time(compute_share: float, clock: float) -> float:
    """Return how long an iteration takes over what it takes at clock 1.

    Args:
        compute_share: Share of an iteration at clock 1 in which GPUs compute.
        clock: SM clock as a fraction of the maximum.
    """
    return compute_share / compute_rate(clock) + 1.0 - compute_share


@inlined_kernel
def compute_time_share(compute_share: float, clock: float) -> float:
    """Return the share of an iteration at a clock in which GPUs compute."""
    return 1.0 - (1.0 - compute_share) / iteration_time(compute_share, clock)


@kernel
def stored_burst_w(
    above_w: float, share: float, iteration_s: float, storage_w: float, storage_j: float, efficiency: float
) -> float:
    """Return what energy storage in the racks gives in the compute phase of every iteration, and takes back in the rest of it, W.

    As much as it can, up to what makes the draw even.

    Args:
        above_w: Draw of the compute phase above that of the communication phase, W.
        share: Share of the iteration in which GPUs compute.
        iteration_s: Its length, s.
        storage_w: Largest power of the storage, in and out, W.
        storage_j: What it holds, J.
        efficiency: Of one way.
    """
    if share >= 1.0:
        return 0.0
    # What it takes in the communication phase over what it gives in the compute phase.
    back = share / ((1.0 - share) * efficiency * efficiency)
    even_w = above_w / (1.0 + back)
    return min(even_w, storage_w, storage_w / back, efficiency * storage_j / (share * iteration_s))


@kernel
def undisturbed_s(time_s: float, period_s: float, checkpoint_s: float) -> float:
    """Return the job-seconds that a job left alone has done ``time_s`` after it began to run: a checkpoint after every period.

    Args:
        time_s: Time, s; not above zero while the job is still loading.
        period_s: Time between two checkpoints in which it runs, s.
        checkpoint_s: Time that writing one takes, in which it does not, s.
    """
    if time_s <= 0.0:
        return 0.0
    cycle_s = period_s + checkpoint_s
    cycles = time_s // cycle_s
    return float(cycles * period_s + min(time_s - cycles * cycle_s, period_s))
