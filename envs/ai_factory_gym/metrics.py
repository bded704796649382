"""The ``info`` contract: every step the same keys, python scalars, names that carry their unit."""

from __future__ import annotations

from collections.abc import Sequence

from ai_factory_gym.engine.layout import Array, Class, ClassSpec, Params, SessionSpec, Site, SiteSpec, Tier, Unit
from ai_factory_gym.engine.supply import JOULES_PER_KWH, JOULES_PER_MWH
from ai_factory_gym.engine.training import progress_share
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.reward import TERMS

Info = dict[str, float]

SITE_KEYS = (
    "time_s",
    "facility_power_w",
    "it_power_w",
    "cap_w",
    "pue",
    "clock_mean",
    "energy_j",
    "it_energy_j",
    "output_tokens",
    "good_tokens",
    "requests_arrived",
    "requests_met_slo",
    "requests_missed_slo",
    "requests_rejected",
    "requests_in_flight",
    "sla_attainment",
    "tokens_per_joule",
    "cap_violation_j",
    "cap_energy_j",
    "peak_power_w",
    "brake_s",
    "energy_cost_usd",
    "carbon_kg",
    "cost",
)
"""Keys of the site. Means over the step (power, PUE, clock), values at its end (time, cap, in flight), the step's ``cost``, and
totals since the start of the episode."""

VALUE_KEYS = ("value_tokens",)
"""Keys that are there, behind the others, where answers may be shortened: good tokens at the value of full effort, in total."""

GRID_KEYS = ("grid_power_w", "grid_energy_j")
"""Keys that are there where the draw from the grid is not that of the facility, at a site with a battery, units of its own or ramp limits: its
mean over the step, and grid energy in total. ``energy_j`` and ``facility_power_w`` stay those of the facility; cap, peak, cost of energy
and carbon are those of the grid draw."""

BATTERY_KEYS = (
    "battery_charge_j",
    "battery_in_j",
    "battery_out_j",
    "battery_wear_usd",
)
"""Keys that are there where the site has a battery: charge now; what the battery took, gave, and what its wear cost in total."""

RAMP_KEYS = (
    "ramp_limited_s",
    "ramp_excess_w",
    "ballast_j",
    "held_rack_s",
    "storage_charge_j",
    "storage_in_j",
    "storage_out_j",
)
"""Keys that are there where the draw from the grid has ramp limits, totals since the start of the episode but for the charge: time in which the
limiter lowered clocks or duties; by how much in all the draw moved faster than its limits allow (the cap comes before the limit down: 0.0 but for
drops of the cap); what the ballast burnt, part of ``energy_j`` and not of ``it_energy_j``; rack-seconds in which racks that were ordered awake
waited for the ramp; charge of the racks' storage now, what it took and what it gave."""

GENERATION_KEYS = (
    "generation_power_w",
    "generation_available_w",
    "generation_j",
    "export_j",
    "spilled_j",
    "fuel_cost_usd",
    "start_cost_usd",
    "export_revenue_usd",
)
"""Keys that are there where the site makes power: what its units gave in the mean of the step; what those that run can give at its end; and
totals: what they made, what of it was exported, what was spilled; what fuel and starts cost, what exports earned.
``energy_cost_usd`` is then all that energy costs: the grid, fuel and starts, less exports; ``carbon_kg`` counts what the units emit, that of
exports included.
energy_j + battery_in_j + storage_in_j + export_j + spilled_j = grid_energy_j + battery_out_j + storage_out_j + generation_j."""

UNIT_KEYS = ("energy_j", "run_s", "starts")
"""Keys of each unit, behind ``generation/<name>/``: what it made, how long it ran, how often it was started."""

MONEY_KEYS = (
    "revenue_usd",
    "sla_penalty_usd",
    "demand_charge_usd",
    "peak_quarter_hour_w",
    "capital_usd",
    "profit_usd",
    "usd_per_mtok",
    "budget_alerts",
)
"""Keys that are there where the site has a table ``[money]``, totals since the start of the episode: what served requests paid, what missed ones
cost; the demand charge for the time so far, by the highest mean draw of any full quarter of an hour; the cost of owning the racks; revenue
less penalties, energy (fuel, starts and exports among it), wear of the battery, demand charge and capital; those costs per million good
tokens (0.0 while there are none); and how many classes have spent more than ``BUDGET_ALERT`` of what their customers meant to spend by now."""

FAULT_KEYS = ("racks_struck", "rack_down_s", "requests_restarted", "lost_tokens")
"""Keys that are there where racks may fail, totals since the start of the episode: racks that went out of service, faults and maintenance
together; rack-seconds out of service; requests that were lost with a rack and started anew; output tokens they had been given. ``output_tokens``
counts those, ``good_tokens`` never does: their difference is what late and lost work cost."""

PART_FAULT_KEYS = ("groups_struck", "gpu_down_s")
"""Keys that are there, behind those, where faults may take parts of racks, in total: parts that went out of service, and GPU-seconds out of
service in racks that were not."""

CLASS_MONEY_KEYS = ("revenue_usd", "budget_used", "cost_usd", "paid_prompt_tokens", "paid_output_tokens", "over_budget")
"""Keys of each class then, behind ``class/<name>/``: what it paid, and that over its budget for the time so far (0.0 without a budget); its part
of the costs that ``usd_per_mtok`` counts (0.0 while nobody was answered); and the tokens it paid for. Costs are split in proportion to the
energy that the answered requests of each class take at the task's reference point, prompt tokens that a cache had left out. Last, requests that
were turned away because a budget that is a cap was spent; they are in no other count."""

TASK_MONEY_KEYS = ("usd_per_task", "usd_per_agent_hour")
"""Keys of each class with sessions then, behind ``TASK_KEYS``: its ``cost_usd`` per completed task and per agent hour; 0.0 while there are none."""

BUDGET_ALERT = 0.8

COOLANT_KEYS = ("coolant_c", "coolant_peak_c", "heat_limited_s")
"""Keys that are there where the coolant has a limit: its temperature now, the highest since the start of the episode, and the time for which
the brake kept that limit rather than the cap (part of ``brake_s``)."""

PEAK_KEYS = ("coincident_peak_w", "coincident_charge_usd")
"""Keys that are there where coincident peaks are charged for: mean draw in the quarter hours that counted so far (0.0 while there are none),
and the charge for them, which is part of the costs that ``profit_usd`` and ``usd_per_mtok`` count."""

TRAINING_KEYS = (
    "training_progress_s",
    "training_share",
    "training_lost_s",
    "training_paused_s",
    "training_checkpoints",
    "training_kills",
    "training_energy_j",
    "training_power_w",
    "training_phase",
    "serving_energy_j",
    "training_target_share",
)
"""Keys that are there where the site has a training block, totals since the start of the episode unless said otherwise: job-seconds done and not
lost (a job-second is a second of running as the job does by itself; below zero where what was done before the episode was lost in it); that over
what a job left alone would have done (1.0 while that is nothing); job-seconds lost; time paused; checkpoints written; how often the job died;
facility energy of the block, its part of cooling included; its facility power in the last segment; what it does now (``engine.training``: 0 no
job, 1 running, 2 writing, 3 paused, 4 loading); facility energy less the reference energy of what the block has done and not lost, which is what
``tokens_per_joule`` divides by; and the share that is asked for."""

TRAINING_MONEY_KEYS = ("training_revenue_usd",)
"""Key behind them where there is a table ``[money]``: what the progress has paid, part of ``profit_usd``."""

CLASS_KEYS = ("arrived", "met", "missed", "attainment")
"""Keys of each class, behind ``class/<name>/``."""


CACHE_KEYS = ("prompt_tokens", "cached_tokens", "loaded_tokens", "held_tokens")
"""Keys of a site with a prefix cache: prompt tokens of the requests whose prefill began, those of them that needed no work because
their KV was there, and those that were loaded from host memory or the store (by requests that were then turned away, too); those of the
cached ones that a decode pool had held since the turn before."""

TASK_KEYS = ("tasks_completed", "agent_hours", "think_hours")
"""Keys of each class with sessions, behind ``class/<name>/``. Tasks are the expected number of those decided whose requests all met their
SLO (requests decided in a control step over requests per task, times recent attainment to the power of requests per task: misses are taken
as independent of each other). Agent hours are the time that the agent was busy: its answered requests were in the system. Think hours are
the rest of the time up to a task's next request: share of requests that are followed x (requests answered x mean time to the next, less the
time busy), at least 0. Arrivals do not wait for answers (open loop): slow answers shorten think hours, not the number of tasks."""


def info_keys(
    classes: Sequence[str],
    effort: bool = False,
    battery: bool = False,
    money: bool = False,
    sessions: Sequence[str] = (),
    cached: bool = False,
    coolant: bool = False,
    peaks: bool = False,
    faults: bool = False,
    ramp: bool = False,
    in_part: bool = False,
    training: bool = False,
    units: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return all keys in the order in which ``write_info`` writes them: site, classes, reward terms, and those of parts in use.

    Args:
        classes: Names of all classes.
        effort: Whether the operator may shorten answers.
        battery: Whether the site has a battery.
        money: Whether tokens are paid for.
        sessions: Names of the classes with sessions, in the same order.
        cached: Whether the site has a prefix cache.
        coolant: Whether the coolant has a limit.
        peaks: Whether coincident peaks are charged for.
        faults: Whether racks may go out of service.
        ramp: Whether the draw from the grid has ramp limits.
        in_part: Whether parts of racks may.
        training: Whether there is a training block.
        units: Names of the units that make power at the site.
    """
    of_classes = (f"class/{name}/{key}" for name in classes for key in CLASS_KEYS)
    parts: tuple[str, ...] = (
        *(VALUE_KEYS if effort else ()),
        *(GRID_KEYS if battery or ramp or units else ()),
        *(BATTERY_KEYS if battery else ()),
    )
    parts += (*(RAMP_KEYS if ramp else ()), *(GENERATION_KEYS if units else ()))
    parts += (*(f"generation/{name}/{key}" for name in units for key in UNIT_KEYS), *(MONEY_KEYS if money else ()))
    if money:
        parts += tuple(f"class/{name}/{key}" for name in classes for key in CLASS_MONEY_KEYS)
    parts += (*(COOLANT_KEYS if coolant else ()), *(PEAK_KEYS if peaks else ()))
    parts += (*(FAULT_KEYS if faults else ()), *(PART_FAULT_KEYS if in_part else ()))
    parts += (*TRAINING_KEYS, *(TRAINING_MONEY_KEYS if money else ())) if training else ()
    parts += CACHE_KEYS if cached else ()
    of_tasks = (*TASK_KEYS, *(TASK_MONEY_KEYS if money else ()))
    parts += tuple(f"class/{name}/{key}" for name in sessions for key in of_tasks)
    return (*SITE_KEYS, *of_classes, *(f"reward_terms/{name}" for name in TERMS), *parts)


@inlined_kernel
def tokens_per_joule(good_tokens: float, energy_j: float) -> float:
    """Return good tokens per joule; 0.0 at zero energy."""
    return good_tokens / energy_j if energy_j > 0.0 else 0.0


@inlined_kernel
def attainment(met: float, missed: float) -> float:
    """Return the share of decided requests that met their SLO; 1.0 while none is decided."""
    decided = met + missed
    return met / decided if decided > 0.0 else 1.0


@kernel
def _write_money(params: Params, site: Array, cls: Array, out: Array, at: int, energy_usd: float) -> float:
    """Write ``MONEY_KEYS`` and ``CLASS_MONEY_KEYS`` from position ``at`` on; ``energy_usd`` is the cost of energy and wear.

    Returns:
        Costs per joule of the answered requests at the reference point, USD; 0 while nobody was answered.
    """
    elapsed_s = max(site[Site.SCORED_S], 1e-9)
    revenue = 0.0
    penalty = 0.0
    alerts = 0.0
    served_j = 0.0
    mine = at + len(MONEY_KEYS)
    for index in range(cls.shape[0]):
        paid = cls[index, Class.REVENUE_USD]
        revenue += paid
        penalty += cls[index, Class.PENALTY_USD]
        budget = params.cls[index, ClassSpec.BUDGET_USD_PER_S] * elapsed_s
        used = paid / budget if budget > 0.0 else 0.0
        alerts += 1.0 if used > BUDGET_ALERT else 0.0
        out[mine] = paid
        out[mine + 1] = used
        out[mine + 3] = cls[index, Class.PAID_PROMPT]
        out[mine + 4] = cls[index, Class.PAID_OUTPUT]
        out[mine + 5] = cls[index, Class.OVER_BUDGET]
        served_j += cls[index, Class.SERVED_J]
        mine += len(CLASS_MONEY_KEYS)
    demand = params.site[SiteSpec.DEMAND_USD_PER_W] * site[Site.PEAK_QUARTER_W] * site[Site.SCORED_S]
    capital = params.site[SiteSpec.CAPITAL_USD_PER_S] * site[Site.SCORED_S]
    costs = energy_usd + demand + capital
    if params.site[SiteSpec.COINCIDENT_USD_PER_W] > 0.0:
        costs += params.site[SiteSpec.COINCIDENT_USD_PER_W] * site[Site.COINCIDENT_SUM_W]
    trained = (site[Site.TRAIN_DONE_S] - site[Site.TRAIN_LOST_S]) * params.site[SiteSpec.TRAIN_USD_PER_S]
    out[at] = revenue
    out[at + 1] = penalty
    out[at + 2] = demand
    out[at + 3] = site[Site.PEAK_QUARTER_W]
    out[at + 4] = capital
    out[at + 5] = revenue + trained - penalty - costs
    out[at + 6] = costs / site[Site.GOOD_TOKENS] * 1e6 if site[Site.GOOD_TOKENS] > 0.0 else 0.0
    out[at + 7] = alerts
    usd_per_j = costs / served_j if served_j > 0.0 else 0.0
    for index in range(cls.shape[0]):
        out[at + len(MONEY_KEYS) + index * len(CLASS_MONEY_KEYS) + 2] = usd_per_j * cls[index, Class.SERVED_J]
    return float(usd_per_j)


@kernel
def _write_units(site: Array, unit: Array, elapsed: float, out: Array, at: int) -> int:
    """Write ``GENERATION_KEYS`` and ``UNIT_KEYS`` from position ``at`` on, and return the place behind them."""
    out[at] = site[Site.STEP_GENERATION_J] / elapsed
    out[at + 1] = site[Site.RUNNING_W]
    out[at + 2] = site[Site.GENERATION_J]
    out[at + 3] = site[Site.EXPORT_J]
    out[at + 4] = site[Site.SPILLED_J]
    out[at + 5] = site[Site.FUEL_USD]
    out[at + 6] = site[Site.START_USD]
    out[at + 7] = site[Site.EXPORT_USD]
    at += len(GENERATION_KEYS)
    for index in range(unit.shape[0]):
        out[at] = unit[index, Unit.ENERGY_J]
        out[at + 1] = unit[index, Unit.RUN_S]
        out[at + 2] = unit[index, Unit.STARTS]
        at += len(UNIT_KEYS)
    return at


@kernel
def _write_training(params: Params, site: Array, out: Array, at: int) -> int:
    """Write ``TRAINING_KEYS`` and ``TRAINING_MONEY_KEYS`` from position ``at`` on; return how many."""
    done_s = site[Site.TRAIN_DONE_S] - site[Site.TRAIN_LOST_S]
    out[at] = done_s
    out[at + 1] = progress_share(done_s, site[Site.TRAIN_DUE_S])
    out[at + 2] = site[Site.TRAIN_LOST_S]
    out[at + 3] = site[Site.TRAIN_PAUSED_S]
    out[at + 4] = site[Site.TRAIN_CHECKPOINTS]
    out[at + 5] = site[Site.TRAIN_KILLS]
    out[at + 6] = site[Site.TRAIN_ENERGY_J]
    out[at + 7] = site[Site.TRAIN_POWER_W]
    out[at + 8] = site[Site.TRAIN_PHASE]
    out[at + 9] = site[Site.ENERGY_J] - site[Site.TRAIN_CREDIT_J]
    out[at + 10] = params.site[SiteSpec.TRAIN_TARGET]
    if params.site[SiteSpec.MONEY] <= 0.0:
        return len(TRAINING_KEYS)
    out[at + 11] = done_s * params.site[SiteSpec.TRAIN_USD_PER_S]
    return len(TRAINING_KEYS) + len(TRAINING_MONEY_KEYS)


@kernel
def _write_sessions(params: Params, cls: Array, cache: Array, out: Array, at: int, usd_per_j: float) -> None:
    """Write ``CACHE_KEYS`` where there is a prefix cache, and the keys of each class with sessions, from position ``at`` on."""
    if cache.shape[0] > 0:
        for column in range(len(CACHE_KEYS)):
            out[at + column] = 0.0
        for pool in range(cache.shape[0]):
            out[at] += cache[pool, Tier.PROMPT]
            out[at + 1] += cache[pool, Tier.CACHED]
            out[at + 2] += cache[pool, Tier.LOADED]
            out[at + 3] += cache[pool, Tier.HELD]
        at += len(CACHE_KEYS)
    for index in range(cls.shape[0]):
        think_s = params.session[index, SessionSpec.THINK_S]
        if think_s > 0.0:
            counters = cls[index]
            out[at] = counters[Class.TASKS]
            out[at + 1] = counters[Class.BUSY_S] / 3600.0
            between_s = counters[Class.ANSWERED] * think_s - counters[Class.BUSY_S]
            out[at + 2] = max(0.0, params.session[index, SessionSpec.FOLLOWING] * between_s) / 3600.0
            at += len(TASK_KEYS)
            if params.site[SiteSpec.MONEY] > 0.0:
                cost_usd = usd_per_j * counters[Class.SERVED_J]
                hours = counters[Class.BUSY_S] / 3600.0
                out[at] = cost_usd / counters[Class.TASKS] if counters[Class.TASKS] > 0.0 else 0.0
                out[at + 1] = cost_usd / hours if hours > 0.0 else 0.0
                at += len(TASK_MONEY_KEYS)


@inlined_kernel
def write_info(
    params: Params,
    site: Array,
    cls: Array,
    cache: Array,
    unit: Array,
    terms: Array,
    scored: bool,
    out: Array,
) -> None:
    """Write the info of one row.

    Args:
        params: Site parameters (attainment targets).
        site: float64[Site] of the row.
        cls: float64[classes, Class] of the row.
        cache: float64[pools + 1, Tier] of the row; no lines without a prefix cache.
        unit: float64[units, Unit] of the row; no lines where the site makes no power.
        terms: This step's reward terms, float64[TERMS].
        scored: Whether the step began before the horizon; later ones cost nothing but what they find missed.
        out: Written: float64[keys], in the order of ``info_keys``.
    """
    classes = cls.shape[0]
    elapsed = max(site[Site.STEP_S], 1e-9)
    arrived = 0.0
    met = 0.0
    missed = 0.0
    rejected = 0.0
    excess = 0.0
    decided = 0.0
    at = len(SITE_KEYS)
    for index in range(classes):
        counters = cls[index]
        arrived += counters[Class.ARRIVED]
        met += counters[Class.MET]
        missed += counters[Class.MISSED]
        rejected += counters[Class.REJECTED]
        step_decided = counters[Class.STEP_MET] + counters[Class.STEP_MISSED]
        allowed = (1.0 - params.cls[index, ClassSpec.TARGET]) * step_decided
        decided += step_decided
        excess += max(0.0, counters[Class.STEP_MISSED] - allowed)
        out[at] = counters[Class.ARRIVED]
        out[at + 1] = counters[Class.MET]
        out[at + 2] = counters[Class.MISSED]
        out[at + 3] = attainment(counters[Class.MET], counters[Class.MISSED])
        at += len(CLASS_KEYS)
    for term in range(terms.shape[0]):
        out[at + term] = terms[term]
    energy_j = site[Site.ENERGY_J]
    out[0] = site[Site.TIME_S]
    out[1] = site[Site.STEP_ENERGY_J] / elapsed
    out[2] = site[Site.STEP_IT_ENERGY_J] / elapsed
    out[3] = site[Site.CAP_W]
    # A dummy load is no cooling.
    out[4] = (out[1] - site[Site.STEP_BALLAST_J] / elapsed) / out[2] if out[2] > 0.0 else 1.0
    out[5] = site[Site.STEP_CLOCK_S] / elapsed
    out[6] = energy_j
    out[7] = site[Site.IT_ENERGY_J]
    out[8] = site[Site.OUTPUT_TOKENS]
    out[9] = site[Site.GOOD_TOKENS]
    out[10] = arrived
    out[11] = met
    out[12] = missed
    out[13] = rejected
    out[14] = arrived - met - missed
    out[15] = attainment(met, missed)
    out[16] = tokens_per_joule(site[Site.GOOD_TOKENS], energy_j)
    out[17] = site[Site.CAP_VIOLATION_J]
    out[18] = site[Site.CAP_ENERGY_J]
    out[19] = site[Site.PEAK_POWER_W]
    out[20] = site[Site.BRAKE_S]
    out[21] = energy_j / JOULES_PER_MWH * site[Site.USD_PER_MWH]
    out[22] = energy_j / JOULES_PER_KWH * site[Site.G_PER_KWH] / 1000.0
    generates = params.site[SiteSpec.GENERATION_W] > 0.0
    metered = params.site[SiteSpec.BATTERY_W] > 0.0 or params.site[SiteSpec.RAMP] > 0.0 or generates
    if site[Site.VARIES] > 0.0 or metered:
        out[21] = site[Site.ENERGY_USD]
        out[22] = site[Site.CARBON_KG]
    # Constraint cost of the step, for safe RL: energy above the cap and time under the brake as shares of the step,
    # and misses beyond what the targets allow as a share of the requests decided.
    out[23] = excess / decided if decided > 0.0 else 0.0
    if scored:
        supply_w = site[Site.CAP_W] + site[Site.RUNNING_W]
        out[23] += (site[Site.STEP_CAP_VIOLATION_J] / supply_w + site[Site.STEP_BRAKE_S]) / elapsed
    at += terms.shape[0]
    wear_usd = site[Site.BATTERY_OUT_J] / JOULES_PER_MWH * params.site[SiteSpec.BATTERY_USD_PER_MWH]
    if params.site[SiteSpec.EFFORT] > 0.0:
        out[at] = site[Site.VALUE_TOKENS]
        at += 1
    if metered:
        out[at] = site[Site.STEP_GRID_ENERGY_J] / elapsed
        out[at + 1] = site[Site.GRID_ENERGY_J]
        at += len(GRID_KEYS)
    if params.site[SiteSpec.BATTERY_W] > 0.0:
        out[at] = site[Site.BATTERY_CHARGE_J]
        out[at + 1] = site[Site.BATTERY_IN_J]
        out[at + 2] = site[Site.BATTERY_OUT_J]
        out[at + 3] = wear_usd
        at += len(BATTERY_KEYS)
    if params.site[SiteSpec.RAMP] > 0.0:
        out[at] = site[Site.RAMP_LIMITED_S]
        out[at + 1] = site[Site.RAMP_EXCESS_W]
        out[at + 2] = site[Site.BALLAST_J]
        out[at + 3] = site[Site.HELD_RACK_S]
        out[at + 4] = site[Site.STORAGE_CHARGE_J]
        out[at + 5] = site[Site.STORAGE_IN_J]
        out[at + 6] = site[Site.STORAGE_OUT_J]
        at += len(RAMP_KEYS)
    usd_per_j = 0.0
    if generates:
        at = _write_units(site, unit, elapsed, out, at)
    if params.site[SiteSpec.MONEY] > 0.0:
        usd_per_j = _write_money(params, site, cls, out, at, out[21] + wear_usd)
        at += len(MONEY_KEYS) + classes * len(CLASS_MONEY_KEYS)
    if params.site[SiteSpec.HEAT_W_PER_K] > 0.0:
        out[at] = site[Site.COOLANT_C]
        out[at + 1] = site[Site.COOLANT_PEAK_C]
        out[at + 2] = site[Site.HEAT_LIMITED_S]
        at += len(COOLANT_KEYS)
    if params.site[SiteSpec.COINCIDENT_USD_PER_W] > 0.0:
        out[at] = site[Site.COINCIDENT_SUM_W] / max(1.0, site[Site.COINCIDENT_COUNT])
        out[at + 1] = params.site[SiteSpec.COINCIDENT_USD_PER_W] * site[Site.COINCIDENT_SUM_W]
        at += len(PEAK_KEYS)
    if params.site[SiteSpec.FAULTS] > 0.0:
        out[at] = site[Site.RACKS_STRUCK]
        out[at + 1] = site[Site.RACK_DOWN_S]
        out[at + 2] = site[Site.RESTARTED]
        out[at + 3] = site[Site.LOST_TOKENS]
        at += len(FAULT_KEYS)
        if params.site[SiteSpec.FAULTS] > 1.0:
            out[at] = site[Site.GROUPS_STRUCK]
            out[at + 1] = site[Site.GPU_DOWN_S]
            at += len(PART_FAULT_KEYS)
    if params.site[SiteSpec.TRAIN_RACKS] > 0.0:
        out[16] = tokens_per_joule(site[Site.GOOD_TOKENS], energy_j - site[Site.TRAIN_CREDIT_J])
        at += _write_training(params, site, out, at)
    if params.session.shape[0] > 0:
        _write_sessions(params, cls, cache, out, at, usd_per_j)
