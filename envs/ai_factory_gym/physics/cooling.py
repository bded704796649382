"""What cooling adds: facility power = IT power x PUE(outdoor temperature, load).

A linear model with the two effects operators see: warmer outdoor air costs compressor and fan power above the
temperature free cooling reaches, and fixed pumps and fans weigh more at part load. The band of liquid-cooled halls,
about 1.05 to 1.25, is unverified (no measured NVL72 hall is public), so every value is a parameter.
"""

from __future__ import annotations

from ai_factory_gym.jit import kernel

FREE_COOLING_C = 20.0
"""Outdoor temperature below which free cooling suffices (status assumed; coolant inlet is 17-45 C)."""

FIXED_SHARE = 0.3
"""Share of the cooling draw at full load that does not fall with load: pumps, minimum fan speed (status assumed)."""

MINIMUM_LOAD_FRACTION = 0.05
"""Load below which PUE is not extrapolated: fixed draw over no load is no longer a ratio."""


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
