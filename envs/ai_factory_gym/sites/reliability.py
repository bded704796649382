"""How often racks fail, and how long they are out."""

from __future__ import annotations

from dataclasses import dataclass

from ai_factory_gym.errors import check_range

LLAMA_3_FAULTS_PER_GPU_HOUR = 419.0 / (54.0 * 24.0 * 16384.0)
"""Unexpected interruptions of Llama 3 405B's pre-training, 419 in 54 days on 16,384 GPUs: 1.97e-5 per GPU-hour (status measured, on 8-GPU
H100 systems under training load; "The Llama 3 Herd of Models", section 3.3.4 and table 5). It counts every cause, software among them."""

LLAMA_3_HARDWARE_SHARE = 0.78
"""Share of those interruptions that were confirmed or suspected hardware (status measured, same section)."""


@dataclass(frozen=True, slots=True)
class ReliabilityConfig:
    """Faults and repairs of a site's racks. A fault takes the whole rack: on NVL72 systems it is one NVLink domain.

    Attributes:
        gpu_faults_per_hour: Faults per GPU and hour, of all causes; a rack's rate is this times its GPUs, awake or not.
        hardware_share: Share of faults that need a repair. After the others the rack may be woken again at once.
        repair_s: Mean time from a fault to the end of its repair, s; times are exponential (status assumed: half a working day; no vendor
            publishes one for these racks).
    """

    gpu_faults_per_hour: float = LLAMA_3_FAULTS_PER_GPU_HOUR
    hardware_share: float = LLAMA_3_HARDWARE_SHARE
    repair_s: float = 4 * 3600.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("reliability.gpu_faults_per_hour", self.gpu_faults_per_hour, 0.0, 1.0, "1/h")
        check_range("reliability.hardware_share", self.hardware_share, 0.0, 1.0)
        check_range("reliability.repair_s", self.repair_s, 1.0, 3.2e7, "s")
