"""What the grid allows and asks: the power cap over time, the price of electricity, its carbon intensity, and the weather beside them."""

from __future__ import annotations

from ai_factory_gym.grid.cap import CapEvent, CapEventSpec, CapSchedule, draw_schedule
from ai_factory_gym.grid.series import Series, load_series

__all__ = ["CapEvent", "CapEventSpec", "CapSchedule", "Series", "draw_schedule", "load_series"]
