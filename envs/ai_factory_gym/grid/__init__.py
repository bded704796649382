"""What the grid connection allows: the power cap over time and the notice given of its changes."""

from __future__ import annotations

from ai_factory_gym.grid.cap import CapEvent, CapEventSpec, CapSchedule, draw_schedule

__all__ = ["CapEvent", "CapEventSpec", "CapSchedule", "draw_schedule"]
