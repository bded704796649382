"""What arrives: request classes, length strata, synthetic demand and recorded traces.

Submodules: ``lengths`` (truncated log-normal token counts), ``classes`` (request classes and their SLOs), ``strata``
(grouping of a class into cells with exact means), ``demand`` (minute-resolution intensity) and ``traces`` (readers and
superposition). Only numpy and the standard library are imported.
"""

from __future__ import annotations

from ai_factory_gym.workload.classes import RequestClass, load_classes, request_class
from ai_factory_gym.workload.demand import Burst, BurstSpec, DemandProfile, draw_bursts, mean_path, rate_path
from ai_factory_gym.workload.lengths import LengthDistribution
from ai_factory_gym.workload.strata import Strata, build_strata
from ai_factory_gym.workload.traces import Trace, dispersion, load_trace, shifts, superpose

__all__ = [
    "Burst",
    "BurstSpec",
    "DemandProfile",
    "LengthDistribution",
    "RequestClass",
    "Strata",
    "Trace",
    "build_strata",
    "dispersion",
    "draw_bursts",
    "load_classes",
    "load_trace",
    "mean_path",
    "rate_path",
    "request_class",
    "shifts",
    "superpose",
]
