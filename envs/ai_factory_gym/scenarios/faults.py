"""How often racks fail in a scenario, and when they are taken out for maintenance; ``engine.outages`` draws which and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ai_factory_gym.errors import ConfigError, check_range
from ai_factory_gym.sites.reliability import ReliabilityConfig, check_shares

LARGEST_FACTOR = 1e4

MAX_MAINTENANCE = 8
"""Most kinds of maintenance windows of a scenario."""


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """How much oftener racks fail than the site's table ``[reliability]`` says.

    Attributes:
        rate_factor: Factor on the rate. A site without the table has the table's defaults then. 0 leaves it at the site: faults at the rate
            of its table, none without one.
        gpu_group_share: Share of faults that take one group of GPUs instead of a rack; None leaves it at the site's.
        nvlink_domain_share: Share that takes one NVLink domain; None likewise.
    """

    rate_factor: float = 0.0
    gpu_group_share: float | None = None
    nvlink_domain_share: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("faults.rate_factor", self.rate_factor, 0.0, LARGEST_FACTOR)
        check_shares("faults", self.gpu_group_share, self.nvlink_domain_share)

    def __or__(self, other: FaultSpec) -> FaultSpec:
        """Return the larger factor of both, and the larger of each share."""
        return FaultSpec(
            max(self.rate_factor, other.rate_factor),
            _larger(self.gpu_group_share, other.gpu_group_share),
            _larger(self.nvlink_domain_share, other.nvlink_domain_share),
        )

    def at(self, site: ReliabilityConfig | None) -> ReliabilityConfig:
        """Return a site's reliability, its defaults without a table, with the shares that the scenario gives."""
        spec = site or ReliabilityConfig()
        group, link = self.gpu_group_share, self.nvlink_domain_share
        return replace(
            spec,
            gpu_group_share=spec.gpu_group_share if group is None else group,
            nvlink_domain_share=spec.nvlink_domain_share if link is None else link,
        )


def _larger(one: float | None, other: float | None) -> float | None:
    """Return the larger of two shares, either of which may not be given."""
    return max((share for share in (one, other) if share is not None), default=None)


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
