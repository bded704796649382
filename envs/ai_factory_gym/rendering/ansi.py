"""A text picture of one site: what it draws, what each pool does, how each class fares."""

from __future__ import annotations

from ai_factory_gym.engine.layout import STARTING, Class, Pool, PoolInt, Site, Unit
from ai_factory_gym.factory import Factory
from ai_factory_gym.metrics import attainment

_WIDTH = 30


def _bar(share: float, width: int = _WIDTH) -> str:
    """Return a bar of ``width`` characters filled to ``share``."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return "#" * filled + "." * (width - filled)


def _units(factory: Factory, row: int) -> list[str]:
    """Return a line about the units that make power at the site, none where there are none."""
    parts = []
    for unit, mine in zip(factory.task.site.generation, factory.engine.state.unit[row], strict=True):
        doing = (
            "starting"
            if mine[Unit.MODE] == STARTING
            else f"{mine[Unit.OUTPUT_W] / 1e6:.3f} MW"
            if mine[Unit.MODE]
            else "off"
        )
        parts.append(f"{unit.name} {doing}")
    return [f"on site: {', '.join(parts)}"] if parts else []


def draw(factory: Factory, row: int) -> str:
    """Return the picture of one row.

    Args:
        factory: The factory.
        row: Row; an episode must have begun.
    """
    state = factory.engine.state
    site = state.site[row]
    seconds = int(site[Site.TIME_S])
    power_w, cap_w = site[Site.FACILITY_POWER_W], site[Site.CAP_W] + site[Site.RUNNING_W]
    brake = "  BRAKE" if site[Site.BRAKED] else ""
    lines = [
        f"{factory.task.site.name}  {factory.task.scenario.name}  {seconds // 3600:02d}:{seconds // 60 % 60:02d}"
        f"  good tokens/J {site[Site.GOOD_TOKENS] / max(site[Site.ENERGY_J], 1e-9):.4f}",
        f"power {power_w / 1e6:8.3f} MW of {cap_w / 1e6:.3f} [{_bar(power_w / cap_w)}]{brake}",
        *_units(factory, row),
        f"{'pool':<28}{'awake':>7}{'waking':>7}{'clock':>7}{'MW':>8}  load",
    ]
    for index, pool in enumerate(factory.pools):
        numbers, ints = state.pool[row, index], state.pool_int[row, index]
        awake = ints[PoolInt.ACTIVE] + ints[PoolInt.DRAINING]
        racks = awake + ints[PoolInt.WAKING] + ints[PoolInt.ASLEEP] + ints[PoolInt.FAILED]
        busy = numbers[Pool.STEP_BUSY_S] / max(site[Site.STEP_S], 1e-9)
        detail = f"TPOT {1e3 * numbers[Pool.TPOT_S]:.1f} ms, {numbers[Pool.IN_FLIGHT]:.0f} in flight"
        if pool.phase == "prefill":
            detail = f"[{_bar(busy, 10)}] {numbers[Pool.QUEUED]:.0f} queued"
        lines.append(
            f"{pool.name:<28}{awake:>3}/{racks:<3}{ints[PoolInt.WAKING]:>7}{numbers[Pool.CLOCK]:>7.2f}"
            f"{numbers[Pool.POWER_W] / 1e6:>8.3f}  {detail}"
        )
    lines.append(f"{'class':<28}{'req/s':>10}{'SLO met':>10}{'target':>9}")
    for index, cls in enumerate(factory.classes):
        counters = state.cls[row, index]
        share = attainment(counters[Class.MET], counters[Class.MISSED])
        lines.append(f"{cls.name:<28}{counters[Class.RATE]:>10.1f}{share:>10.4f}{cls.attainment_target:>9.2f}")
    return "\n".join(lines) + "\n"
