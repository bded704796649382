"""At the meter: ramp limits of the draw from the grid, kept by the racks' storage, the site's battery and a ballast.

The draw of a segment is a mean. The draw over time is the line through these means at the middles of their segments, and a ramp limit
bounds its slope: from one segment to the next the mean changes by no more than the limit times the distance of their middles. It follows
that the means over any two intervals made of whole segments, control steps among them, differ by no more than the limit times the distance
of their middles.

What the site would draw without limits is its demand. Where the draw is below it, racks' storage and then the battery give the
difference; where it is above, they take it, and the ballast burns the rest. ``engine.limiter`` sees to it that they can on the way up.
"""

from __future__ import annotations

import math

from ai_factory_gym.engine.layout import PREFILL, SEPARATE, Params, PoolInt, PoolSpec, Site, SiteSpec, State
from ai_factory_gym.engine.supply import battery_help_w, battery_room_w, book_battery, use_battery
from ai_factory_gym.jit import inlined_kernel, kernel

REST_S = 30.0
"""Time in which the racks' storage returns to its resting charge when nothing is asked of it, s (status: design choice)."""

BRIDGED = 0.9
"""Share of what the battery holds that is counted on for that: segments end when they end (status: design choice)."""

_EXACT = 1e-9
"""Share of the cap below which a draw outside its limits is rounding."""


@inlined_kernel
def highest_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return the largest mean draw from the grid that the limit up allows for the next ``seconds``, W."""
    site = state.site[row]
    middle_s = 0.5 * (site[Site.RAMP_S] + seconds)
    return float(site[Site.RAMP_W] + params.site[SiteSpec.RAMP_UP_W_PER_S] * middle_s)


@inlined_kernel
def lowest_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return the smallest mean draw from the grid that the limit down allows for the next ``seconds``, W."""
    site = state.site[row]
    middle_s = 0.5 * (site[Site.RAMP_S] + seconds)
    return float(max(0.0, site[Site.RAMP_W] - params.site[SiteSpec.RAMP_DOWN_W_PER_S] * middle_s))


@inlined_kernel
def storage_help_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return what the racks' storage can give for all of ``seconds``, W."""
    spec = params.site
    held_j = state.site[row, Site.STORAGE_CHARGE_J] * spec[SiteSpec.STORAGE_EFFICIENCY]
    return float(min(spec[SiteSpec.STORAGE_W], held_j / seconds))


@inlined_kernel
def _storage_room_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return what the racks' storage can take for all of ``seconds``, W."""
    spec = params.site
    if spec[SiteSpec.STORAGE_W] <= 0.0:
        return 0.0
    room_j = spec[SiteSpec.STORAGE_J] - state.site[row, Site.STORAGE_CHARGE_J]
    return float(min(spec[SiteSpec.STORAGE_W], room_j / (spec[SiteSpec.STORAGE_EFFICIENCY] * seconds)))


@inlined_kernel
def bridge_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return what the battery may give for ``seconds`` and still bridge what is missing then until the draw has risen for it, W.

    A power ``G`` that the draw makes up for at the slope ``u`` takes ``G**2 / (2 u)`` of energy.
    """
    help_w = battery_help_w(params, state, row, seconds)
    up_w_per_s = params.site[SiteSpec.RAMP_UP_W_PER_S]
    if up_w_per_s == math.inf or help_w <= 0.0:
        return help_w
    held_j = state.site[row, Site.BATTERY_CHARGE_J] * params.site[SiteSpec.BATTERY_EFFICIENCY]
    return float(min(help_w, math.sqrt(2.0 * up_w_per_s * BRIDGED * held_j)))


@kernel
def allowed_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return the facility power that keeps the limit up for the next ``seconds``, with what stores and units of the site can give then, W."""
    help_w = storage_help_w(params, state, row, seconds) + bridge_w(params, state, row, seconds)
    # Units at the site follow the load: what they can give, and what those give that are being stopped.
    help_w += state.site[row, Site.RUNNING_W] + state.site[row, Site.STOPPING_W]
    return float(highest_w(params, state, row, seconds) + help_w)


@inlined_kernel
def _ordered_w(params: Params, state: State, row: int, facility_w: float, elapsed: float) -> float:
    """Return what the battery gives by order and for the cap's sake, W; negative is what it takes.

    An order is followed as fast as the limits of the draw allow. What exceeds the cap is covered in any case.
    """
    spec = params.site
    site = state.site[row]
    if spec[SiteSpec.BATTERY_W] <= 0.0:
        return 0.0
    order = site[Site.BATTERY_ORDER]
    most_w = min(facility_w, battery_help_w(params, state, row, elapsed))
    out_w = 0.0
    if order > 0.0:
        # No more than it can take back slowly enough: it must not be empty all at once.
        out_w = min(order * spec[SiteSpec.BATTERY_W], bridge_w(params, state, row, elapsed))
        out_w = min(out_w, max(0.0, facility_w - lowest_w(params, state, row, elapsed)))
    elif order < 0.0:
        left_w = min(site[Site.CAP_W] - site[Site.TRAIN_BURST_W], highest_w(params, state, row, elapsed)) - facility_w
        room_w = battery_room_w(params, state, row, elapsed)
        out_w = -max(0.0, min(-order * spec[SiteSpec.BATTERY_W], left_w, room_w))
    return float(min(most_w, max(out_w, facility_w - site[Site.CAP_W]) if facility_w > site[Site.CAP_W] else out_w))


@kernel
def wanted_of_battery_w(params: Params, state: State, row: int, facility_w: float, elapsed: float) -> float:
    """Return what the battery is to give by its order alone, W, negative what it is to take: what units of the site need not make."""
    site = state.site[row]
    order = site[Site.BATTERY_ORDER]
    if params.site[SiteSpec.BATTERY_W] <= 0.0:
        return 0.0
    if order >= 0.0:
        most_w = min(facility_w, bridge_w(params, state, row, elapsed))
        return float(min(order * params.site[SiteSpec.BATTERY_W], most_w))
    left_w = site[Site.CAP_W] + site[Site.RUNNING_W] - site[Site.TRAIN_BURST_W] - facility_w
    room_w = min(left_w, battery_room_w(params, state, row, elapsed))
    return float(-max(0.0, min(-order * params.site[SiteSpec.BATTERY_W], room_w)))


@inlined_kernel
def _wanted_w(params: Params, state: State, row: int, demand_w: float, elapsed: float) -> float:
    """Return the draw to which the site would go were there no limits, W: never above the cap for anything but its demand."""
    site = state.site[row]
    wanted_w = demand_w
    if params.site[SiteSpec.STORAGE_W] > 0.0:
        missing_j = params.site[SiteSpec.STORAGE_REST_J] - site[Site.STORAGE_CHARGE_J]
        wanted_w += missing_j / max(REST_S, elapsed)
    if site[Site.RAMP_RESERVE_W] > 0.0:
        wanted_w = max(wanted_w, demand_w + site[Site.RAMP_RESERVE_W])
    # The bursts of a training block come on top.
    return float(min(wanted_w, max(demand_w, site[Site.CAP_W] - site[Site.TRAIN_BURST_W])))


@kernel
def smooth_draw(params: Params, state: State, row: int, facility_w: float, elapsed: float) -> float:
    """Book what storage, battery and ballast did in a segment, and return its mean draw from the grid, W.

    The cap comes before the limit down: where the cap is below what the limit asks for, the draw falls at once to the higher of the cap and
    the demand. What the draw moves faster than its limits is added up in ``RAMP_EXCESS_W``.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        facility_w: Mean power of racks and cooling over the segment, less what the site's own units give, W.
        elapsed: Its length, s.
    """
    site = state.site[row]
    spec = params.site
    if site[Site.RAMP_ON] == 0.0:
        grid_w = facility_w
        if spec[SiteSpec.BATTERY_W] > 0.0:
            grid_w -= use_battery(params, state, row, facility_w, site[Site.CAP_W], elapsed)
        site[Site.RAMP_W] = grid_w
        site[Site.RAMP_S] = elapsed
        return float(grid_w)
    high_w = highest_w(params, state, row, elapsed)
    low_w = lowest_w(params, state, row, elapsed)
    site[Site.RAMP_LOW_W] = low_w
    battery_w = _ordered_w(params, state, row, facility_w, elapsed)
    demand_w = facility_w - battery_w
    wanted_w = _wanted_w(params, state, row, demand_w, elapsed)
    grid_w = min(high_w, max(wanted_w, min(low_w, max(demand_w, site[Site.CAP_W] - site[Site.TRAIN_BURST_W]))))
    site[Site.RAMP_SPARE_W] = max(0.0, grid_w - demand_w)
    stands_by = spec[SiteSpec.BATTERY_W] > 0.0 and site[Site.BATTERY_ORDER] == 0.0
    storage_w = 0.0
    ballast_w = 0.0
    if demand_w > grid_w:
        missing_w = demand_w - grid_w
        storage_w = min(missing_w, storage_help_w(params, state, row, elapsed))
        missing_w -= storage_w
        if spec[SiteSpec.BATTERY_W] > 0.0:
            # Whatever is ordered: an order to give less, or to charge, is followed no faster than the draw may rise.
            more_w = min(missing_w, battery_help_w(params, state, row, elapsed) - battery_w)
            battery_w += more_w
            missing_w -= more_w
        grid_w += missing_w
    elif demand_w < grid_w:
        left_w = grid_w - demand_w
        storage_w = -min(left_w, _storage_room_w(params, state, row, elapsed))
        left_w += storage_w
        if stands_by and battery_w <= 0.0:
            more_w = min(left_w, spec[SiteSpec.BATTERY_W], battery_room_w(params, state, row, elapsed))
            battery_w -= more_w
            left_w -= more_w
        ballast_w = min(left_w, spec[SiteSpec.BALLAST_W])
        grid_w -= left_w - ballast_w
    if spec[SiteSpec.BATTERY_W] > 0.0:
        book_battery(params, state, row, battery_w, elapsed)
    if spec[SiteSpec.STORAGE_W] > 0.0:
        _book_storage(params, state, row, storage_w, elapsed)
    site[Site.BALLAST_W] = ballast_w
    site[Site.STEP_BALLAST_J] += ballast_w * elapsed
    site[Site.BALLAST_J] += site[Site.SCORING] * ballast_w * elapsed
    excess_w = max(grid_w - high_w, low_w - grid_w)
    if excess_w > _EXACT * site[Site.CAP_W]:
        site[Site.RAMP_EXCESS_W] += site[Site.SCORING] * excess_w
    for pool in range(params.pool.shape[0]):
        if params.pool[pool, PoolSpec.COUPLING] == SEPARATE or params.pool[pool, PoolSpec.PHASE] == PREFILL:
            ints = state.pool_int[row, pool]
            site[Site.HELD_RACK_S] += site[Site.SCORING] * min(ints[PoolInt.HELD], ints[PoolInt.ASLEEP]) * elapsed
    site[Site.RAMP_LIMITED_S] += site[Site.SCORING] * site[Site.RAMP_LIMITS] * elapsed
    site[Site.RAMP_W] = grid_w
    site[Site.RAMP_S] = elapsed
    return float(grid_w)


@inlined_kernel
def note_shaved(state: State, row: int, grid_w: float) -> None:
    """Note that a segment's mean draw came to ``grid_w`` when the battery had shaved what bursts of a training block had above the cap."""
    site = state.site[row]
    if site[Site.RAMP_ON] > 0.0:
        below_w = max(0.0, site[Site.RAMP_LOW_W] - grid_w) - max(0.0, site[Site.RAMP_LOW_W] - site[Site.RAMP_W])
        site[Site.RAMP_EXCESS_W] += site[Site.SCORING] * max(0.0, below_w)
    site[Site.RAMP_W] = grid_w


@kernel
def _book_storage(params: Params, state: State, row: int, out_w: float, elapsed: float) -> None:
    """Book that the racks' storage gave ``out_w`` for ``elapsed`` seconds; negative is what it took. Both are within what it can."""
    site = state.site[row]
    spec = params.site
    efficiency = spec[SiteSpec.STORAGE_EFFICIENCY]
    moved_j = abs(out_w) * elapsed
    if out_w > 0.0:
        site[Site.STORAGE_CHARGE_J] = max(0.0, site[Site.STORAGE_CHARGE_J] - moved_j / efficiency)
        site[Site.STORAGE_OUT_J] += site[Site.SCORING] * moved_j
        loss_j = moved_j / efficiency - moved_j
    else:
        site[Site.STORAGE_CHARGE_J] = min(spec[SiteSpec.STORAGE_J], site[Site.STORAGE_CHARGE_J] + moved_j * efficiency)
        site[Site.STORAGE_IN_J] += site[Site.SCORING] * moved_j
        loss_j = moved_j - moved_j * efficiency
    # Priced like what the battery loses.
    site[Site.STEP_BATTERY_LOSS_J] += loss_j
