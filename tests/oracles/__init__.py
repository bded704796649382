"""Independent event simulations of the factory, and the settings on which the engine is held against them."""

from __future__ import annotations
