"""What cooling adds: facility power = IT power x PUE(outdoor temperature, load).

A linear model with the two effects operators see: warmer outdoor air costs compressor and fan power above the
temperature free cooling reaches, and fixed pumps and fans weigh more at part load. The band of liquid-cooled halls,
about 1.05 to 1.25, is unverified (no measured NVL72 hall is public), so every value is a parameter.

Racks cooled by warm water need no chiller: dry coolers give the heat to the outdoor air, as long as the coolant supplied to the racks is
warmer than it. One loop, one temperature ``T``, heat rejected in proportion to its rise over the air:

    C dT/dt = P - UA (T - T_outdoor),    tau = C / UA

Its supply temperature has a limit (45 degC for Vera Rubin racks, status vendor-stated), so that a hot day limits the IT power that can be
kept up for long, while the loop's heat capacity lets a short excess pass.
"""

from __future__ import annotations

import math

from ai_factory_gym.jit import kernel

FREE_COOLING_C = 20.0
"""Outdoor temperature below which free cooling suffices (status assumed; coolant inlet is 17-45 C)."""

FIXED_SHARE = 0.3
"""Share of the cooling draw at full load that does not fall with load: pumps, minimum fan speed (status assumed)."""

MINIMUM_LOAD_FRACTION = 0.05
"""Load below which PUE is not extrapolated: fixed draw over no load is no longer a ratio."""


@kernel
def coolant_after_c(
    coolant_c: float, it_w: float, w_per_kelvin: float, outdoor_c: float, time_constant_s: float, seconds: float
) -> float:
    """Return the coolant's temperature after ``seconds`` of constant power and weather, degC: the exact solution.

    Args:
        coolant_c: Temperature now, degC.
        it_w: IT power, all of it heat in the loop, W.
        w_per_kelvin: Heat rejected per kelvin over the outdoor air, W/K.
        outdoor_c: Outdoor temperature, degC.
        time_constant_s: Heat capacity of the loop over ``w_per_kelvin``, s.
        seconds: For how long, s.
    """
    settled_c = outdoor_c + it_w / w_per_kelvin
    return settled_c + (coolant_c - settled_c) * math.exp(-seconds / time_constant_s)


@kernel
def coolable_w(
    coolant_c: float, limit_c: float, w_per_kelvin: float, outdoor_c: float, time_constant_s: float, seconds: float
) -> float:
    """Return the constant IT power that brings the coolant to its limit after ``seconds``, W; 0 where even none would keep it.

    The temperature moves towards its settled one without a turn, so that a lower power keeps the limit all that time.

    Args:
        coolant_c: Temperature now, degC.
        limit_c: Limit, degC.
        w_per_kelvin: Heat rejected per kelvin over the outdoor air, W/K.
        outdoor_c: Outdoor temperature, degC.
        time_constant_s: Heat capacity of the loop over ``w_per_kelvin``, s.
        seconds: For how long, s; inf is for good.
    """
    kept = math.exp(-seconds / time_constant_s)
    return max(0.0, w_per_kelvin * (limit_c - outdoor_c + (limit_c - coolant_c) * kept / (1.0 - kept)))


@kernel
def pue(
    base: float,
    per_kelvin: float,
    outdoor_c: float,
    load_fraction: float,
    free_cooling_c: float = FREE_COOLING_C,
    fixed_share: float = FIXED_SHARE,
) -> float:
    """Power usage effectiveness: facility power over IT power.

    Args:
        base: PUE at full load and free cooling, at least 1.
        per_kelvin: Rise of PUE per kelvin of outdoor temperature above free cooling, at full load.
        outdoor_c: Outdoor temperature in degrees Celsius.
        load_fraction: IT power over its nameplate; taken as at least 0.05.
        free_cooling_c: Outdoor temperature up to which free cooling suffices.
        fixed_share: Share of the cooling draw that does not fall with load.

    Returns:
        PUE, at least 1.
    """
    overhead = base - 1.0 + per_kelvin * max(outdoor_c - free_cooling_c, 0.0)
    load = max(load_fraction, MINIMUM_LOAD_FRACTION)
    return 1.0 + overhead * (1.0 - fixed_share + fixed_share / load)


@kernel
def facility_power_w(it_w: float, pue_now: float) -> float:
    """Draw of the facility.

    Args:
        it_w: IT power.
        pue_now: Power usage effectiveness, at least 1.
    """
    return it_w * pue_now
