"""Units that make power at the site: which of them run, what each gives, and where it goes.

Order of supply behind the facility: the battery, the site's own units, the grid. What runs is as good as cap: the brake and the planner of
segments count it, and nothing that is still starting.

Where the draw from the grid has ramp limits the units come first, and storage and battery smooth what is left. Units that run follow the
load, and so keep what is left within the limits as far as they can; one that has been started takes load, and one that is to be stopped gives it
up, as fast as the limits let: only then it is below its least output.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.layout import (
    OFF,
    RUNNING,
    STARTING,
    STOPPING,
    Array,
    CapStep,
    Params,
    Site,
    SiteSpec,
    State,
    Unit,
    UnitSpec,
)
from ai_factory_gym.engine.smoothing import highest_w, lowest_w
from ai_factory_gym.engine.supply import JOULES_PER_KWH, JOULES_PER_MWH
from ai_factory_gym.jit import inlined_kernel, kernel

START_SHARE = 0.9
"""A unit is started when the site draws more than this share of what the connection and the units that run or start give (status: design
choice, a tenth in reserve). Rules that plan to the cap stay within a few per cent of it: they get the unit they could use."""

STOP_SHARE = 0.8
"""It is not needed any more when the site draws less than this share of what is left without it (status: design choice)."""

LEAD_S = 60.0
"""A unit that an announced curtailment asks for runs this long before it, s (status: design choice)."""

SMOOTHED_S = 60.0
"""Time constant of the draw by which units are started and stopped, s (status: design choice)."""

STARTS_OVER_S = 3600.0
"""A start has to be worth it within this time, or within the shortest run where that is longer, s (status: design choice)."""

_SLACK_W = 1e-6
"""Watts that are none."""


@inlined_kernel
def _lowest_known_cap_w(state: State, row: int, now_s: float, until_s: float, cap_w: float) -> float:
    """Return the lowest cap up to ``until_s`` of which the site knows now, ``cap_w`` being the one in force, W."""
    steps = state.cap_steps[row]
    for step in range(steps.shape[0]):
        begin_s = steps[step, CapStep.TIME_S]
        if begin_s > until_s:
            break
        if begin_s > now_s and steps[step, CapStep.ANNOUNCED_S] <= now_s:
            cap_w = min(cap_w, steps[step, CapStep.CAP_W])
    return float(cap_w)


@inlined_kernel
def _held_by_cap(site: Array) -> bool:
    """Tell whether the brake is on, and not for the sake of the coolant: what it holds back is not seen in the draw."""
    return bool(site[Site.BRAKED] > 0.0 and site[Site.HEAT_BINDS] == 0.0 and site[Site.HEAT_OVER_S] == 0.0)


@inlined_kernel
def _ordered_on(spec: Array, order: float) -> bool:
    """Tell whether the operator wants a unit to run: to give no less than its least output."""
    return order > 0.0 and order * spec[UnitSpec.POWER_W] >= spec[UnitSpec.LEAST_W] - _SLACK_W


@inlined_kernel
def _ordered_off(spec: Array, order: float) -> bool:
    """Tell whether the operator wants a unit to give less than its least output, or nothing."""
    return order <= -1.0 or (1.0 + order) * spec[UnitSpec.POWER_W] < spec[UnitSpec.LEAST_W] - _SLACK_W


@kernel
def _pays(params: Params, state: State, row: int, place: int, cost_usd: float, connected: bool) -> bool:
    """Tell whether the unit at a place of the merit order is worth running: cheaper than what it spares, or what it can be sold for.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        place: Place in the merit order.
        cost_usd: What its MWh costs, USD.
        connected: Whether there is a grid connection that it could spare.
    """
    site = state.site[row]
    before_w = 0.0
    for other in range(params.unit.shape[0]):
        index = int(params.unit[other, UnitSpec.MERIT])
        mode = state.unit[row, index, Unit.MODE]
        if other != place and (mode == STARTING or mode == RUNNING):
            if other < place:
                before_w += params.unit[index, UnitSpec.POWER_W]
            else:
                before_w += params.unit[index, UnitSpec.LEAST_W]
    least_w = params.unit[int(params.unit[place, UnitSpec.MERIT]), UnitSpec.LEAST_W]
    left_w = site[Site.DRAW_W] - before_w
    if connected and cost_usd < site[Site.USD_PER_MWH] and left_w > 0.0 and left_w >= least_w:
        return True
    sold_w = params.site[SiteSpec.EXPORT_W]
    return bool(sold_w > 0.0 and cost_usd < params.site[SiteSpec.EXPORT_USD_PER_MWH] and left_w + sold_w >= least_w)


@kernel
def commit_units(params: Params, state: State, row: int, now_s: float, cap_w: float) -> float:
    """Start and stop units for the segment that begins, and return what those that run can give, W.

    A unit is started, cheapest first, when the operator orders it, when the site draws more than ``START_SHARE`` of what there is (by the
    lowest cap that is known for the time it takes to start) or is under the brake for it, or when its MWh, its start included, costs less
    than one from the grid, or than one fed into it pays. It is stopped, dearest first, when none of these holds any more; ordered off, as
    soon as the site does without it.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        now_s: Start of the segment, s.
        cap_w: Cap of the connection, W.
    """
    site = state.site[row]
    units = params.unit.shape[0]
    connected = cap_w > 0.0
    draw_w = site[Site.DRAW_W]
    committed_w = 0.0
    short = _held_by_cap(site)
    for unit in range(units):
        mode = state.unit[row, unit, Unit.MODE]
        if mode == STARTING or mode == RUNNING:
            committed_w += params.unit[unit, UnitSpec.POWER_W]
        # One after the other: how much is missing shows when the brake has let go.
        short = short and mode != STARTING
    for place in range(units):
        unit = int(params.unit[place, UnitSpec.MERIT])
        spec = params.unit[unit]
        mine = state.unit[row, unit]
        # One that is being stopped still runs: it can take load again.
        stopping = mine[Unit.MODE] == STOPPING
        rests = mine[Unit.MODE] == OFF and now_s >= mine[Unit.HOLD_S]
        if not (stopping or rests) or _ordered_off(spec, mine[Unit.ORDER]):
            continue
        lowest_w = _lowest_known_cap_w(state, row, now_s, now_s + spec[UnitSpec.START_S] + LEAD_S, cap_w)
        wanted = short or _ordered_on(spec, mine[Unit.ORDER]) or draw_w > START_SHARE * (lowest_w + committed_w)
        if not wanted:
            hours = max(spec[UnitSpec.MIN_RUN_S], STARTS_OVER_S) / 3600.0
            start_usd = 0.0 if stopping else spec[UnitSpec.START_USD] / (spec[UnitSpec.POWER_W] / 1e6 * hours)
            wanted = _pays(params, state, row, place, spec[UnitSpec.FUEL_USD_PER_MWH] + start_usd, connected)
        if wanted and stopping:
            mine[Unit.MODE] = RUNNING
            mine[Unit.LOADED] = 1.0 if mine[Unit.OUTPUT_W] >= spec[UnitSpec.LEAST_W] else 0.0
            site[Site.STOPPING_W] -= mine[Unit.OUTPUT_W]
        elif wanted:
            mine[Unit.MODE] = STARTING
            mine[Unit.READY_S] = now_s + spec[UnitSpec.START_S]
            mine[Unit.STARTS] += site[Site.SCORING]
            site[Site.START_USD] += site[Site.SCORING] * spec[UnitSpec.START_USD]
            site[Site.ENERGY_USD] += site[Site.SCORING] * spec[UnitSpec.START_USD]
            site[Site.STEP_ENERGY_USD] += spec[UnitSpec.START_USD]
        if wanted:
            committed_w += spec[UnitSpec.POWER_W]
            short = False
    running_w = 0.0
    next_s = math.inf
    for unit in range(units):
        mine = state.unit[row, unit]
        if mine[Unit.MODE] == STOPPING and mine[Unit.OUTPUT_W] <= _SLACK_W:
            mine[Unit.MODE] = OFF
            mine[Unit.HOLD_S] = now_s + params.unit[unit, UnitSpec.MIN_DOWN_S]
        if mine[Unit.MODE] == STARTING:
            if mine[Unit.READY_S] <= now_s + 1e-6:
                mine[Unit.MODE] = RUNNING
                mine[Unit.LOADED] = 1.0 - site[Site.RAMP_ON]
                mine[Unit.HOLD_S] = now_s + params.unit[unit, UnitSpec.MIN_RUN_S]
            else:
                next_s = min(next_s, mine[Unit.READY_S])
        if mine[Unit.MODE] == RUNNING:
            running_w += params.unit[unit, UnitSpec.POWER_W]
    site[Site.NEXT_UNIT_S] = next_s
    # All run through the warm-up, like all racks: what is not needed stops with the start of the episode.
    if now_s >= 0.0 and draw_w > 0.0:
        running_w = _stop_units(params, state, row, now_s, cap_w, running_w, draw_w)
    site[Site.RUNNING_W] = running_w
    return running_w


@kernel
def _stop_units(
    params: Params, state: State, row: int, now_s: float, cap_w: float, running_w: float, draw_w: float
) -> float:
    """Stop the units that nothing speaks for, dearest first, and return what the others can give, W."""
    for back in range(params.unit.shape[0]):
        place = params.unit.shape[0] - 1 - back
        unit = int(params.unit[place, UnitSpec.MERIT])
        spec = params.unit[unit]
        mine = state.unit[row, unit]
        if mine[Unit.MODE] != RUNNING or now_s < mine[Unit.HOLD_S] or spec[UnitSpec.MUST_RUN] > 0.0:
            continue
        if _ordered_on(spec, mine[Unit.ORDER]):
            continue
        lowest_w = _lowest_known_cap_w(state, row, now_s, now_s + spec[UnitSpec.START_S] + LEAD_S, cap_w)
        left_w = lowest_w + running_w - spec[UnitSpec.POWER_W]
        if _ordered_off(spec, mine[Unit.ORDER]):
            last_w = state.site[row, Site.FACILITY_POWER_W] + state.site[row, Site.TRAIN_BURST_W]
            if max(draw_w, last_w) > params.site[SiteSpec.BRAKE_TARGET] * left_w:
                continue
        elif (
            _held_by_cap(state.site[row])
            or draw_w > STOP_SHARE * left_w
            or _pays(params, state, row, place, spec[UnitSpec.FUEL_USD_PER_MWH], cap_w > 0.0)
        ):
            continue
        mine[Unit.MODE] = OFF
        if state.site[row, Site.RAMP_ON] > 0.0:
            mine[Unit.MODE] = STOPPING
            state.site[row, Site.STOPPING_W] += mine[Unit.OUTPUT_W]
        mine[Unit.HOLD_S] = now_s + spec[UnitSpec.MIN_DOWN_S]
        running_w -= spec[UnitSpec.POWER_W]
    return running_w


@inlined_kernel
def _raise(params: Params, state: State, row: int, unit: int, to_w: float, wanted_w: float) -> float:
    """Raise the output of a running unit up to ``to_w``, by no more than ``wanted_w``, and return by how much, W."""
    mine = state.unit[row, unit]
    if mine[Unit.MODE] != RUNNING:
        return 0.0
    more_w = max(0.0, min(wanted_w, min(to_w, params.unit[unit, UnitSpec.POWER_W]) - mine[Unit.OUTPUT_W]))
    mine[Unit.OUTPUT_W] += more_w
    return float(more_w)


@kernel
def _dispatch(params: Params, state: State, row: int, load_w: float, most_w: float, least_w: float) -> float:
    """Set what each unit gives for a load, and return it for all of them, W.

    First what the cap (or a ramp limit) asks for, then what the operator orders, then what is cheaper than the grid, then what is worth being
    sold; each cheapest first. A lever below zero holds a unit down in the last two, not in the first.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        load_w: Load, W.
        most_w: Most the grid may give, W.
        least_w: Least it is to give, W; the least output of units comes before it.
    """
    site = state.site[row]
    units = params.unit.shape[0]
    total_w = 0.0
    stopping_w = 0.0
    for unit in range(units):
        mine = state.unit[row, unit]
        if mine[Unit.MODE] == STOPPING:
            stopping_w += mine[Unit.OUTPUT_W]
        else:
            loaded = mine[Unit.MODE] == RUNNING and mine[Unit.LOADED] > 0.0
            mine[Unit.OUTPUT_W] = params.unit[unit, UnitSpec.LEAST_W] if loaded else 0.0
            total_w += mine[Unit.OUTPUT_W]
    if stopping_w > 0.0:
        total_w += _unload(params, state, row, load_w - most_w - total_w)
    sold_w = params.site[SiteSpec.EXPORT_W]
    for place in range(units):
        unit = int(params.unit[place, UnitSpec.MERIT])
        total_w += _raise(params, state, row, unit, math.inf, load_w - most_w - total_w)
    load_w -= least_w
    for unit in range(units):
        if state.unit[row, unit, Unit.LOADED] == 0.0:
            to_w = params.unit[unit, UnitSpec.LEAST_W]
            total_w += _raise(params, state, row, unit, to_w, load_w - total_w)
            if state.unit[row, unit, Unit.OUTPUT_W] >= to_w - _SLACK_W and state.unit[row, unit, Unit.MODE] == RUNNING:
                state.unit[row, unit, Unit.LOADED] = 1.0
    for place in range(units):
        unit = int(params.unit[place, UnitSpec.MERIT])
        order_w = state.unit[row, unit, Unit.ORDER] * params.unit[unit, UnitSpec.POWER_W]
        if order_w > 0.0:
            total_w += _raise(params, state, row, unit, order_w, load_w + sold_w - total_w)
    for place in range(units):
        unit = int(params.unit[place, UnitSpec.MERIT])
        to_w = min(1.0, 1.0 + state.unit[row, unit, Unit.ORDER]) * params.unit[unit, UnitSpec.POWER_W]
        cost_usd = params.unit[unit, UnitSpec.FUEL_USD_PER_MWH]
        if cost_usd < site[Site.USD_PER_MWH]:
            total_w += _raise(params, state, row, unit, to_w, load_w - total_w)
        if cost_usd < params.site[SiteSpec.EXPORT_USD_PER_MWH]:
            total_w += _raise(params, state, row, unit, to_w, load_w + sold_w - total_w)
    return total_w


@kernel
def _unload(params: Params, state: State, row: int, wanted_w: float) -> float:
    """Let the units that are being stopped give what is still wanted of them, no more than before, and return it, W."""
    total_w = 0.0
    for unit in range(params.unit.shape[0]):
        mine = state.unit[row, unit]
        if mine[Unit.MODE] == STOPPING:
            mine[Unit.OUTPUT_W] = max(0.0, min(mine[Unit.OUTPUT_W], wanted_w - total_w))
            total_w += mine[Unit.OUTPUT_W]
    return total_w


@kernel
def use_units(params: Params, state: State, row: int, facility_w: float, load_w: float, elapsed: float) -> float:
    """Book what the site's units did in a segment and return what is left for the grid to give, W.

    Facility draw and what charges the battery, less what it gives, is the load; load + exported + spilled = what is left + made. With ramp
    limits the battery comes behind the units: the load counts what is ordered of it.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        facility_w: Facility draw, W.
        load_w: Load, W.
        elapsed: Length of the segment, s.
    """
    site = state.site[row]
    # The bursts of a training block are left to the connection: units do not follow within seconds.
    most_w = max(0.0, site[Site.CAP_W] - site[Site.TRAIN_BURST_W])
    least_w = 0.0
    if site[Site.RAMP_ON] > 0.0:
        most_w = min(most_w, highest_w(params, state, row, elapsed))
        least_w = min(most_w, lowest_w(params, state, row, elapsed))
    made_w = _dispatch(params, state, row, load_w, most_w, least_w)
    grid_w = max(0.0, load_w - made_w)
    if abs(grid_w - most_w) <= _SLACK_W + 1e-12 * load_w:
        # What rounding leaves above the cap is no excess.
        grid_w = most_w
        made_w = max(made_w, load_w) if grid_w <= 0.0 else load_w - grid_w
    surplus_w = max(0.0, made_w - load_w)
    sold_w = min(surplus_w, params.site[SiteSpec.EXPORT_W])
    # The bursts of a training block count at their height.
    top_w = facility_w + site[Site.TRAIN_BURST_W]
    if site[Site.DRAW_W] <= 0.0:
        site[Site.DRAW_W] = top_w
    site[Site.DRAW_W] += (top_w - site[Site.DRAW_W]) * (1.0 - math.exp(-elapsed / SMOOTHED_S))
    fuel_usd = 0.0
    carbon_kg = 0.0
    scoring = site[Site.SCORING]
    site[Site.MADE_W] = made_w
    site[Site.STOPPING_W] = 0.0
    for unit in range(params.unit.shape[0]):
        mine = state.unit[row, unit]
        if mine[Unit.MODE] == STOPPING:
            site[Site.STOPPING_W] += mine[Unit.OUTPUT_W]
        if mine[Unit.MODE] == RUNNING or mine[Unit.MODE] == STOPPING:
            spec = params.unit[unit]
            joules = mine[Unit.OUTPUT_W] * elapsed
            fuel_usd += joules / JOULES_PER_MWH * spec[UnitSpec.FUEL_USD_PER_MWH]
            carbon_kg += joules / JOULES_PER_KWH * spec[UnitSpec.G_PER_KWH] / 1000.0
            mine[Unit.ENERGY_J] += scoring * joules
            mine[Unit.RUN_S] += scoring * elapsed
    export_usd = sold_w * elapsed / JOULES_PER_MWH * params.site[SiteSpec.EXPORT_USD_PER_MWH]
    site[Site.STEP_GENERATION_J] += made_w * elapsed
    site[Site.STEP_ENERGY_USD] += fuel_usd - export_usd
    site[Site.STEP_CARBON_KG] += carbon_kg
    site[Site.GENERATION_J] += scoring * made_w * elapsed
    site[Site.EXPORT_J] += scoring * sold_w * elapsed
    site[Site.SPILLED_J] += scoring * (surplus_w - sold_w) * elapsed
    site[Site.FUEL_USD] += scoring * fuel_usd
    site[Site.EXPORT_USD] += scoring * export_usd
    site[Site.ENERGY_USD] += scoring * (fuel_usd - export_usd)
    site[Site.CARBON_KG] += scoring * carbon_kg
    return float(grid_w)


@kernel
def set_orders(params: Params, state: State, row: int, orders: Array) -> None:
    """Take over what the operator wants of the units, float64[units the operator decides about]."""
    for unit in range(params.unit.shape[0]):
        place = int(params.unit[unit, UnitSpec.LEVER])
        state.unit[row, unit, Unit.ORDER] = orders[place] if place >= 0 else 0.0


def begin_units(params: Params, state: State, row: int) -> None:
    """Let every unit run from the start of a row's episode on."""
    if len(params.unit):
        state.unit[row, :, Unit.MODE] = RUNNING
        state.unit[row, :, Unit.LOADED] = 1.0
        state.unit[row, :, Unit.READY_S] = state.unit[row, :, Unit.HOLD_S] = -math.inf
        state.site[row, Site.RUNNING_W] = params.unit[:, UnitSpec.POWER_W].sum()
        state.site[row, Site.NEXT_UNIT_S] = math.inf
