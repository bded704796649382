"""Racks and models: every number with its unit, status and source.

The catalogue is two TOML files (``racks.toml``, ``models.toml``) and a strict, typed loader. Files of your own can add
to it: :func:`load_racks` and :func:`load_models` read the same format.
"""

from __future__ import annotations

from ai_factory_gym.catalogue.loader import (
    PHASES,
    PRECISIONS,
    STATUSES,
    Architecture,
    Group,
    Model,
    Profile,
    Quantity,
    Rack,
    calibration_name,
    load_models,
    load_racks,
    model,
    model_ids,
    rack,
    rack_ids,
)

__all__ = [
    "PHASES",
    "PRECISIONS",
    "STATUSES",
    "Architecture",
    "Group",
    "Model",
    "Profile",
    "Quantity",
    "Rack",
    "calibration_name",
    "load_models",
    "load_racks",
    "model",
    "model_ids",
    "rack",
    "rack_ids",
]
