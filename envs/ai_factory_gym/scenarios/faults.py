"""How often racks fail in a scenario, and when they are taken out for maintenance; ``engine.outages`` draws which and when."""

from __future__ import annotations

from dataclasses import dataclass

from ai_factory_gym.errors import ConfigError, check_range

LARGEST_FACTOR = 1e4

MAX_MAINTENANCE = 8
"""Most kinds of maintenance windows of a scenario."""


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """How much oftener racks fail than the site's table ``[reliability]`` says.

    Attributes:
        rate_factor: Factor on the rate. A site without the table has the table's defaults then. 0 leaves it at the site: faults at the rate
            of its table, none without one.
    """

    rate_factor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("faults.rate_factor", self.rate_factor, 0.0, LARGEST_FACTOR)

    def __or__(self, other: FaultSpec) -> FaultSpec:
        """Return the larger factor of both."""
        return FaultSpec(max(self.rate_factor, other.rate_factor))


NO_FAULTS = FaultSpec()
"""As often as the site says."""


@dataclass(frozen=True, slots=True)
class MaintenanceSpec:
    """Racks that are taken out for some hours of every day, one after the other in a draw without order.

    Attributes:
        window_start_hour: Earliest hour of the day at which the first begins.
        window_end_hour: Latest hour.
        duration_hours: How long each is out.
        racks: How many are taken out, each when the one before is back.
    """

    window_start_hour: float
    window_end_hour: float
    duration_hours: float
    racks: float

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("window_start_hour", self.window_start_hour, 0.0, 24.0, "h")
        check_range("window_end_hour", self.window_end_hour, self.window_start_hour, 24.0, "h")
        check_range("duration_hours", self.duration_hours, 0.01, 24.0, "h")
        check_range("racks", self.racks, 1.0, 1000.0)
        if self.racks != int(self.racks):
            raise ConfigError(f"racks: {self.racks!r} is not allowed; must be a whole number.")
        if self.racks * self.duration_hours > 24.0:
            raise ConfigError(
                f"racks: {self.racks!r} racks, one after the other for {self.duration_hours:g} h each, do not fit into a day; must be at most "
                f"{int(24.0 / self.duration_hours)}."
            )


__all__ = ["NO_FAULTS", "FaultSpec", "MaintenanceSpec"]
