"""Between the site and its grid connection: the weather and prices of a minute, the battery, the meter of demand."""

from __future__ import annotations

from ai_factory_gym.engine.layout import Array, Params, Site, SiteSpec, State, World
from ai_factory_gym.grid.coincident import QUARTER_S
from ai_factory_gym.jit import inlined_kernel, kernel

JOULES_PER_MWH = 3.6e9
JOULES_PER_KWH = 3.6e6

_COUNTED_SHARE = 0.9
"""Share of a quarter of an hour that must have been metered for its mean to count: ticks need not end with it."""


@inlined_kernel
def battery_help_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return what the battery can give for all of ``seconds``, W."""
    spec = params.site
    if spec[SiteSpec.BATTERY_W] <= 0.0:
        return 0.0
    charge_j = state.site[row, Site.BATTERY_CHARGE_J]
    return float(min(spec[SiteSpec.BATTERY_W], charge_j * spec[SiteSpec.BATTERY_EFFICIENCY] / seconds))


@kernel
def use_battery(params: Params, state: State, row: int, facility_w: float, limit_w: float, elapsed: float) -> float:
    """Book what the battery did in a segment and return what it gave, W; negative is what it took.

    It gives what is ordered, and whatever the site draws above its limit, as long as it holds anything; it never exports. It is charged
    from what is left below that only. What is lost is lost one half on the way in and one half on the way out.

    Args:
        params: Site parameters.
        state: Engine state.
        row: Row.
        facility_w: Draw in front of it, W.
        limit_w: What may be drawn behind it, W: the cap, and what units at the site can give that stand there.
        elapsed: Length of the segment, s.
    """
    site = state.site[row]
    spec = params.site
    order = site[Site.BATTERY_ORDER]
    wanted_w = max(order * spec[SiteSpec.BATTERY_W], facility_w - limit_w)
    if wanted_w > 0.0:
        out_w = min(wanted_w, facility_w, battery_help_w(params, state, row, elapsed))
    else:
        room_w = battery_room_w(params, state, row, elapsed)
        # The bursts of a training block come on top.
        left_w = limit_w - site[Site.TRAIN_BURST_W] - facility_w
        out_w = -max(0.0, min(-order * spec[SiteSpec.BATTERY_W], left_w, room_w))
    book_battery(params, state, row, out_w, elapsed)
    return float(out_w)


@inlined_kernel
def battery_room_w(params: Params, state: State, row: int, seconds: float) -> float:
    """Return the draw that fills the battery in ``seconds``, W; its largest power is another limit."""
    spec = params.site
    room_j = spec[SiteSpec.BATTERY_J] - state.site[row, Site.BATTERY_CHARGE_J]
    return float(room_j / (spec[SiteSpec.BATTERY_EFFICIENCY] * seconds))


@kernel
def book_battery(params: Params, state: State, row: int, out_w: float, elapsed: float) -> None:
    """Book that the battery gave ``out_w`` for ``elapsed`` seconds; negative is what it took. Both are within what it can."""
    site = state.site[row]
    spec = params.site
    efficiency = spec[SiteSpec.BATTERY_EFFICIENCY]
    if out_w > 0.0:
        taken_j = out_w * elapsed / efficiency
        site[Site.BATTERY_CHARGE_J] = max(0.0, site[Site.BATTERY_CHARGE_J] - taken_j)
        loss_j = taken_j - out_w * elapsed
        site[Site.BATTERY_OUT_J] += site[Site.SCORING] * out_w * elapsed
        wear_usd = out_w * elapsed / JOULES_PER_MWH * spec[SiteSpec.BATTERY_USD_PER_MWH]
        site[Site.STEP_WEAR_USD] += site[Site.SCORING] * wear_usd
    else:
        in_w = -out_w
        stored_j = in_w * elapsed * efficiency
        site[Site.BATTERY_CHARGE_J] = min(spec[SiteSpec.BATTERY_J], site[Site.BATTERY_CHARGE_J] + stored_j)
        loss_j = in_w * elapsed - stored_j
        site[Site.BATTERY_IN_J] += site[Site.SCORING] * in_w * elapsed
    site[Site.STEP_BATTERY_LOSS_J] += loss_j
    site[Site.BATTERY_OUT_W] = out_w


@inlined_kernel
def look_outside(state: State, row: int, minute: int) -> None:
    """Take over the temperature, price and carbon intensity of a minute."""
    site = state.site[row]
    site[Site.OUTDOOR_C] = state.world[row, minute, World.OUTDOOR_C]
    site[Site.USD_PER_MWH] = state.world[row, minute, World.USD_PER_MWH]
    site[Site.G_PER_KWH] = state.world[row, minute, World.G_PER_KWH]


@inlined_kernel
def meter_quarter(site: Array, grid_w: float, elapsed: float) -> None:
    """Note a segment's draw in its quarter of an hour, counted from the start of the scored window."""
    site[Site.QUARTER_J] += grid_w * elapsed
    site[Site.QUARTER_S] += elapsed
    if site[Site.QUARTER_S] >= QUARTER_S - 1e-6:
        # Segments end with ticks, which need not end with quarters: the mean is over what was measured.
        site[Site.PEAK_QUARTER_W] = max(site[Site.PEAK_QUARTER_W], site[Site.QUARTER_J] / site[Site.QUARTER_S])
        site[Site.QUARTER_J] = 0.0
        site[Site.QUARTER_S] = 0.0


@inlined_kernel
def look_for_peak(state: State, row: int, minute: int) -> None:
    """Take over what a minute has of the grid's coincident peaks."""
    site = state.site[row]
    site[Site.PEAK_UNTIL_S] = state.world[row, minute, World.PEAK_UNTIL_S]
    site[Site.PEAK_LEFT_S] = state.world[row, minute, World.PEAK_LEFT_S]
    site[Site.COINCIDENT] = state.world[row, minute, World.COINCIDENT]


@kernel
def meter_peak(params: Params, site: Array, grid_w: float, elapsed: float) -> None:
    """Note a segment's draw in a quarter of an hour that counts, and charge for it when it is over."""
    if site[Site.COINCIDENT] > 0.0:
        site[Site.COINCIDENT_J] += grid_w * elapsed
        site[Site.COINCIDENT_S] += elapsed
        if site[Site.COINCIDENT_S] < QUARTER_S - 1e-6:
            return
    if site[Site.COINCIDENT_S] >= _COUNTED_SHARE * QUARTER_S:
        mean_w = site[Site.COINCIDENT_J] / site[Site.COINCIDENT_S]
        site[Site.COINCIDENT_SUM_W] += mean_w
        site[Site.COINCIDENT_COUNT] += 1.0
        site[Site.STEP_COINCIDENT_USD] += params.site[SiteSpec.COINCIDENT_USD_PER_W] * mean_w
    site[Site.COINCIDENT_J] = 0.0
    site[Site.COINCIDENT_S] = 0.0
