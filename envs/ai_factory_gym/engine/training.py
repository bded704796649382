"""The training block: a synchronous job on racks of its own, its phases, checkpoints, pauses and what the brake does to it.

At any moment the block is in one phase, and a segment of the engine ends where it changes. A segment holds many iterations, or a part of
one: its energy is that of the mean of their compute and communication phases, and whatever depends on the draw of a moment (the cap, its
violation, the brake, the battery) sees both levels, each for its share of the time. Cooling does not follow within seconds: a burst
adds to the facility's draw what it adds to that of the racks.
"""

from __future__ import annotations

from ai_factory_gym.engine.layout import Params, Site, SiteSpec, State, World
from ai_factory_gym.engine.supply import JOULES_PER_MWH
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.physics.cooling import pue
from ai_factory_gym.physics.training import (
    compute_time_share,
    iteration_time,
    phase_power_w,
    stored_burst_w,
    undisturbed_s,
)

BY_BRAKE, BY_LIMITER = 1.0, 2.0
"""What keeps iterations from running: the brake, or the limiter of the ramp, which a job waits for as long as it takes."""

LOWEST_CLOCK = 1.0
"""Up to this value the operator's order to hold the job back lowers its clock; above it the job is to pause."""

_DONE_S = 1e-6
"""What is left of a phase that counts as nothing, s: the engine's shortest segment."""

_STALLED_S = 1.0
"""Shortest time to the next change of a phase that the brake has stopped, s: a phase may be that much longer."""

_CHANGES = 4
"""Most changes of phase at one moment: phases may take no time."""


NO_JOB, RUNNING, WRITING, PAUSED, LOADING = 0, 1, 2, 3, 4
"""What the block does: nothing, for there is no job or a rack of it is out of service; iterations; it writes a checkpoint, and the job stands;
it is paused; the job starts, or starts again from its last checkpoint."""


@inlined_kernel
def look_for_job(state: State, row: int, minute: int) -> None:
    """Take over whether there is a job in a minute."""
    state.site[row, Site.JOB] = state.world[row, minute, World.JOB]


@kernel
def begin_training(params: Params, state: State, row: int) -> None:
    """Let the job that is there when an episode begins run, its last checkpoint just written."""
    site = state.site[row]
    site[Site.TRAIN_CLOCK] = params.site[SiteSpec.TRAIN_CLOCK]
    site[Site.TRAIN_PHASE] = RUNNING if site[Site.JOB] > 0.0 else NO_JOB
    site[Site.TRAIN_JOB_S] = 0.0 if site[Site.JOB] > 0.0 else -params.site[SiteSpec.TRAIN_RESTORE_S]


@kernel
def _kill(state: State, row: int) -> None:
    """End the job's processes: what was done since the last checkpoint is lost."""
    site = state.site[row]
    lost_s = site[Site.TRAIN_SINCE_S]
    site[Site.STEP_TRAIN_CREDIT_J] -= site[Site.TRAIN_SINCE_J]
    site[Site.STEP_TRAIN_S] -= lost_s
    if site[Site.SCORING] > 0.0:
        site[Site.TRAIN_LOST_S] += lost_s
        site[Site.TRAIN_CREDIT_J] -= site[Site.TRAIN_SINCE_J]
        site[Site.TRAIN_KILLS] += 1.0
    site[Site.TRAIN_SINCE_S] = 0.0
    site[Site.TRAIN_SINCE_J] = 0.0
    site[Site.TRAIN_RAN_S] = 0.0
    site[Site.TRAIN_STALL_S] = 0.0


@kernel
def advance_training(params: Params, state: State, row: int) -> None:
    """Change the block's phase where it is time to: a job comes or goes, the operator pauses it or lets it go on, something is done."""
    site = state.site[row]
    spec = params.site
    there = site[Site.JOB] > 0.0
    paused = site[Site.TRAIN_HELD] > LOWEST_CLOCK
    if site[Site.JOB] < 0.0 and site[Site.TRAIN_PHASE] != NO_JOB:
        # One rack less is no job any more: it waits for the repair and starts again from its last checkpoint.
        if site[Site.TRAIN_PHASE] != PAUSED:
            _kill(state, row)
        site[Site.TRAIN_PHASE] = NO_JOB
    if site[Site.JOB] == 0.0 and site[Site.TRAIN_PHASE] == NO_JOB:
        site[Site.TRAIN_JOB_S] = -spec[SiteSpec.TRAIN_RESTORE_S]
    for _ in range(_CHANGES):
        phase = site[Site.TRAIN_PHASE]
        if phase == NO_JOB:
            if not there:
                return
            site[Site.TRAIN_PHASE] = PAUSED if paused else LOADING
            site[Site.TRAIN_LEFT_S] = spec[SiteSpec.TRAIN_RESTORE_S]
        elif phase == RUNNING:
            due = site[Site.TRAIN_RAN_S] >= spec[SiteSpec.TRAIN_PERIOD_S] - _DONE_S
            if there and not paused and not due:
                return
            site[Site.TRAIN_PHASE] = WRITING
            # What has just been written need not be written again.
            site[Site.TRAIN_LEFT_S] = spec[SiteSpec.TRAIN_CHECKPOINT_S] if site[Site.TRAIN_RAN_S] > 0.0 else 0.0
        elif phase == WRITING:
            if site[Site.TRAIN_LEFT_S] > _DONE_S:
                return
            if site[Site.TRAIN_RAN_S] > 0.0:
                site[Site.TRAIN_CHECKPOINTS] += site[Site.SCORING]
            site[Site.TRAIN_SINCE_S] = 0.0
            site[Site.TRAIN_SINCE_J] = 0.0
            site[Site.TRAIN_RAN_S] = 0.0
            site[Site.TRAIN_PHASE] = NO_JOB if not there else PAUSED if paused else RUNNING
        elif phase == PAUSED:
            if there and paused:
                return
            site[Site.TRAIN_PHASE] = LOADING if there else NO_JOB
            site[Site.TRAIN_LEFT_S] = spec[SiteSpec.TRAIN_RESTORE_S]
        else:
            if there and not paused and site[Site.TRAIN_LEFT_S] > _DONE_S:
                return
            # Loading can be broken off at any time: there is nothing to lose yet.
            site[Site.TRAIN_PHASE] = NO_JOB if not there else PAUSED if paused else RUNNING
            site[Site.TRAIN_RAN_S] = 0.0


@inlined_kernel
def next_training_change_s(params: Params, state: State, row: int, begin_s: float) -> float:
    """Return when the block's phase changes by itself at the earliest, s; of one that stood still so far no sooner than ``_STALLED_S``.

    Whether it goes on standing still is decided later: otherwise what little is left of a phase would make segments of no length.
    """
    site = state.site[row]
    left_s = 1e30
    if site[Site.TRAIN_PHASE] == RUNNING:
        left_s = params.site[SiteSpec.TRAIN_PERIOD_S] - site[Site.TRAIN_RAN_S]
    elif site[Site.TRAIN_PHASE] == WRITING or site[Site.TRAIN_PHASE] == LOADING:
        left_s = site[Site.TRAIN_LEFT_S]
    if site[Site.TRAIN_STALLED] > 0.0:
        left_s = max(left_s, _STALLED_S)
    return begin_s + left_s


@inlined_kernel
def training_clock(params: Params, state: State, row: int) -> float:
    """Return the clock that the operator allows the job."""
    spec = params.site
    own = spec[SiteSpec.TRAIN_CLOCK]
    held = min(LOWEST_CLOCK, state.site[row, Site.TRAIN_HELD])
    return own - held * (own - spec[SiteSpec.TRAIN_LEAST_CLOCK])


@kernel
def draw_of_phase_w(params: Params, phase: int, clock: float) -> tuple[float, float, float]:
    """Return what the block draws in a phase at a clock: mean IT power, what its bursts add to it, W, and their share of the time.

    Args:
        params: Site parameters.
        phase: ``NO_JOB`` to ``LOADING``.
        clock: Clock, while it runs.
    """
    spec = params.site
    idle_w = spec[SiteSpec.TRAIN_IDLE_W]
    if phase == NO_JOB or phase == PAUSED:
        return float(idle_w), 0.0, 1.0
    if phase != RUNNING:
        return float(spec[SiteSpec.TRAIN_CHECKPOINT_W]), 0.0, 1.0
    most_w = spec[SiteSpec.TRAIN_MOST_W]
    floor = spec[SiteSpec.TRAIN_VOLTAGE_FLOOR]
    compute_w = phase_power_w(
        idle_w, most_w, spec[SiteSpec.TRAIN_COMPUTE_CORE_W], spec[SiteSpec.TRAIN_COMPUTE_FIXED_W], floor, clock
    )
    wait_w = phase_power_w(
        idle_w, most_w, spec[SiteSpec.TRAIN_WAIT_CORE_W], spec[SiteSpec.TRAIN_WAIT_FIXED_W], floor, clock
    )
    share = compute_time_share(spec[SiteSpec.TRAIN_COMPUTE_SHARE], clock)
    mean_w = share * compute_w + (1.0 - share) * wait_w
    if spec[SiteSpec.TRAIN_STORAGE_W] > 0.0:
        relative = iteration_time(spec[SiteSpec.TRAIN_COMPUTE_SHARE], spec[SiteSpec.TRAIN_CLOCK])
        relative = iteration_time(spec[SiteSpec.TRAIN_COMPUTE_SHARE], clock) / relative
        efficiency = spec[SiteSpec.TRAIN_STORAGE_EFFICIENCY]
        given_w = stored_burst_w(
            compute_w - wait_w,
            share,
            spec[SiteSpec.TRAIN_ITERATION_S] * relative,
            spec[SiteSpec.TRAIN_STORAGE_W],
            spec[SiteSpec.TRAIN_STORAGE_J],
            efficiency,
        )
        compute_w -= given_w
        mean_w += share * given_w * (1.0 / (efficiency * efficiency) - 1.0)
    return mean_w, compute_w - mean_w, share


@kernel
def block_draw_w(params: Params, state: State, row: int, clock_limit: float) -> tuple[float, float, float]:
    """Return what the block draws now with no clock above ``clock_limit``, nothing running where the brake has stopped it."""
    if state.site[row, Site.TRAIN_STALLED] > 0.0:
        return draw_of_phase_w(params, NO_JOB, clock_limit)
    clock = min(training_clock(params, state, row), clock_limit)
    return draw_of_phase_w(params, int(state.site[row, Site.TRAIN_PHASE]), clock)


@kernel
def book_training(params: Params, state: State, row: int, mean_w: float, elapsed: float) -> None:
    """Book what the block did in a segment.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        mean_w: Its mean IT power, W.
        elapsed: Length of the segment, s.
    """
    site = state.site[row]
    spec = params.site
    scoring = site[Site.SCORING]
    factor = site[Site.PUE]
    phase = site[Site.TRAIN_PHASE]
    site[Site.TRAIN_POWER_W] = mean_w * factor
    site[Site.TRAIN_ENERGY_J] += scoring * mean_w * factor * elapsed
    site[Site.TRAIN_IT_ENERGY_J] += scoring * mean_w * elapsed
    if site[Site.JOB] != 0.0:
        before_s = site[Site.TRAIN_JOB_S]
        site[Site.TRAIN_JOB_S] = before_s + elapsed
        period_s, writing_s = spec[SiteSpec.TRAIN_PERIOD_S], spec[SiteSpec.TRAIN_CHECKPOINT_S]
        due_s = undisturbed_s(before_s + elapsed, period_s, writing_s) - undisturbed_s(before_s, period_s, writing_s)
        site[Site.TRAIN_DUE_S] += scoring * due_s
    if phase == PAUSED:
        site[Site.TRAIN_PAUSED_S] += scoring * elapsed
    if phase == NO_JOB or phase == PAUSED:
        return
    if site[Site.TRAIN_STALLED] == BY_LIMITER:
        return
    if site[Site.TRAIN_STALLED] > 0.0:
        site[Site.TRAIN_STALL_S] += elapsed
        if site[Site.TRAIN_STALL_S] >= spec[SiteSpec.TRAIN_STALL_LIMIT_S] - _DONE_S:
            _kill(state, row)
            site[Site.TRAIN_PHASE] = LOADING
            site[Site.TRAIN_LEFT_S] = spec[SiteSpec.TRAIN_RESTORE_S]
        return
    site[Site.TRAIN_STALL_S] = 0.0
    if phase != RUNNING:
        site[Site.TRAIN_LEFT_S] = max(0.0, site[Site.TRAIN_LEFT_S] - elapsed)
        return
    share = spec[SiteSpec.TRAIN_COMPUTE_SHARE]
    speed = iteration_time(share, spec[SiteSpec.TRAIN_CLOCK]) / iteration_time(share, site[Site.TRAIN_CLOCK])
    done_s = speed * elapsed
    credit_j = done_s * spec[SiteSpec.TRAIN_REFERENCE_W] * factor
    site[Site.TRAIN_RAN_S] += elapsed
    site[Site.TRAIN_SINCE_S] += done_s
    site[Site.TRAIN_SINCE_J] += credit_j
    site[Site.TRAIN_DONE_S] += scoring * done_s
    site[Site.TRAIN_CREDIT_J] += scoring * credit_j
    site[Site.STEP_TRAIN_CREDIT_J] += credit_j
    site[Site.STEP_TRAIN_S] += done_s


@kernel
def meter_bursts(
    params: Params, state: State, row: int, grid_w: float, spare_w: float, share: float, elapsed: float
) -> tuple[float, float, float]:
    """Return the draw from the grid, what of it is above the cap, in the mean, and its highest level, W; a battery shaves what is above.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        grid_w: Mean draw from the grid before that, W; ``TRAIN_BURST_W`` is what bursts add to it.
        spare_w: What units of the site that run could give beyond what it takes of them, W.
        share: Their share of the time.
        elapsed: Length of the segment, s.
    """
    site = state.site[row]
    spec = params.site
    cap_w = site[Site.CAP_W]
    burst_w = site[Site.TRAIN_BURST_W]
    if spec[SiteSpec.GENERATION_W] > 0.0:
        # Where the connection is too small for that, units that run swing around their mean as far as they have to and can, and what they make
        # for nobody is there in any case.
        burst_w -= min(burst_w, max(0.0, grid_w + burst_w - cap_w), max(0.0, spare_w))
    top_w = grid_w + burst_w
    low_w = grid_w - burst_w * share / (1.0 - share) if share < 1.0 else grid_w
    if spec[SiteSpec.BATTERY_W] > 0.0 and top_w > cap_w:
        efficiency = spec[SiteSpec.BATTERY_EFFICIENCY]
        held_w = site[Site.BATTERY_CHARGE_J] * efficiency / (share * elapsed)
        out_w = max(0.0, min(top_w - cap_w, spec[SiteSpec.BATTERY_W] - site[Site.BATTERY_OUT_W], held_w))
        given_j = out_w * share * elapsed
        site[Site.BATTERY_CHARGE_J] = max(0.0, site[Site.BATTERY_CHARGE_J] - given_j / efficiency)
        site[Site.STEP_BATTERY_LOSS_J] += given_j / efficiency - given_j
        site[Site.BATTERY_OUT_J] += site[Site.SCORING] * given_j
        wear_usd = given_j / JOULES_PER_MWH * spec[SiteSpec.BATTERY_USD_PER_MWH]
        site[Site.STEP_WEAR_USD] += site[Site.SCORING] * wear_usd
        site[Site.BATTERY_OUT_W] += out_w * share
        saved_w = min(out_w * share, max(0.0, grid_w)) if spec[SiteSpec.GENERATION_W] > 0.0 else out_w * share
        # Units that cannot go lower make for nobody what the battery gives.
        site[Site.SPILLED_J] += site[Site.SCORING] * (out_w * share - saved_w) * elapsed
        grid_w -= saved_w
        top_w -= out_w
    over_w = share * max(0.0, top_w - cap_w) + (1.0 - share) * max(0.0, low_w - cap_w)
    return grid_w, over_w, top_w


@kernel
def block_reserve_w(params: Params, state: State, row: int) -> float:
    """Return the facility power that the block may come to as the operator has ordered, bursts included, W.

    PUE makes cooling an affine function of IT power, so that what the block adds does not depend on what else runs.
    """
    site = state.site[row]
    spec = params.site
    phase = int(site[Site.TRAIN_PHASE])
    if site[Site.JOB] > 0.0 and site[Site.TRAIN_HELD] <= LOWEST_CLOCK:
        phase = RUNNING
    clock = training_clock(params, state, row)
    mean_w, burst_w, _ = draw_of_phase_w(params, phase, clock)
    rest_w = 0.5 * spec[SiteSpec.IT_NAMEPLATE_W]
    facility_w = 0.0
    for sign, it_w in ((1.0, rest_w + mean_w), (-1.0, rest_w)):
        facility_w += (
            sign
            * it_w
            * pue(
                spec[SiteSpec.PUE_BASE],
                spec[SiteSpec.PUE_KELVIN],
                site[Site.OUTDOOR_C],
                it_w / spec[SiteSpec.IT_NAMEPLATE_W],
                spec[SiteSpec.PUE_FREE_COOLING_C],
                spec[SiteSpec.PUE_FIXED_SHARE],
            )
        )
    return float(facility_w + burst_w)


@inlined_kernel
def progress_share(done_s: float, due_s: float) -> float:
    """Return what was done over what a job left alone had done; 1 before there is any."""
    return done_s / due_s if due_s > 0.0 else 1.0
