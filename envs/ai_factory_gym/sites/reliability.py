"""How often racks fail, and how long they are out."""

from __future__ import annotations

from dataclasses import dataclass

from ai_factory_gym.errors import ConfigError, check_count, check_range

LLAMA_3_FAULTS_PER_GPU_HOUR = 419.0 / (54.0 * 24.0 * 16384.0)
"""Unexpected interruptions of Llama 3 405B's pre-training, 419 in 54 days on 16,384 GPUs: 1.97e-5 per GPU-hour (status measured, on 8-GPU
H100 systems under training load; "The Llama 3 Herd of Models", section 3.3.4 and table 5). It counts every cause, software among them."""

LLAMA_3_HARDWARE_SHARE = 0.78
"""Share of those interruptions that were confirmed or suspected hardware (status measured, same section)."""


LLAMA_3_GPU_GROUP_SHARE = 384.0 / 419.0
"""Share of those interruptions that take one GPU, one host or one process, and so a group of GPUs of a rack: 268 of GPUs and their memory (148
faulty GPU, 72 HBM3, 19 SRAM, 17 system processor, 6 silent data corruption, 6 thermal interface and sensor), 53 of hosts (32 host maintenance,
7 network card, 14 other parts: in an NVL72 rack a host is a tray of four GPUs), 63 of software (54 bugs, 7 NCCL watchdog timeouts, 2 dependencies).
Status derived: the counts are of table 5, the mapping is ours."""

LLAMA_3_NVLINK_DOMAIN_SHARE = 35.0 / 419.0
"""Share that was network switches and cables (35, same table). That switches and cables of an NVLink domain fail like those is assumed."""

GPUS_OF_A_TRAY = 4
"""GPUs of a compute tray of an NVL72 rack: 18 trays of four (status vendor-stated: DGX GB200 user guide, hardware)."""


def check_shares(where: str, gpu_group: float | None, nvlink_domain: float | None) -> None:
    """Refuse shares of faults out of range, or that come to more than all of them (ConfigError); None is none given."""
    for name, share in (("gpu_group_share", gpu_group), ("nvlink_domain_share", nvlink_domain)):
        if share is not None:
            check_range(f"{where}.{name}", share, 0.0, 1.0)
    # A billionth absorbs the rounding of shares that were worked out.
    if (gpu_group or 0.0) + (nvlink_domain or 0.0) > 1.0 + 1e-9:
        raise ConfigError(
            f"{where}: gpu_group_share {gpu_group!r} and nvlink_domain_share {nvlink_domain!r} are not allowed together; they must come to "
            "at most 1: the rest of the faults takes whole racks."
        )


@dataclass(frozen=True, slots=True)
class ReliabilityConfig:
    """Faults and repairs of a site's racks. As long as no shares are given a fault takes its whole rack.

    Attributes:
        gpu_faults_per_hour: Faults per GPU and hour, of all causes; a rack's rate is this times its GPUs, awake or not.
        hardware_share: Share of faults that need a repair. After the others the rack may be woken again at once.
        repair_s: Mean time from a fault to the end of its repair, s; times are exponential (status assumed: half a working day; no vendor
            publishes one for these racks).
        gpu_group_share: Share of faults that take the replicas on one group of GPUs, while the rest of the rack serves on.
        nvlink_domain_share: Share that takes the replicas in one NVLink domain: in an NVL72 rack all of them, and so the rack; of a rack with
            several domains, or with GPUs without NVLink beside them, one domain. The rest of the faults takes the rack (power, cooling, switch).
        gpu_group_repair_s: Mean time of repair of the first kind, s; None is ``repair_s``.
        nvlink_domain_repair_s: Of the second.
        gpus_per_group: GPUs that are replaced together: a tray. A fault takes every replica that has one of them.
    """

    gpu_faults_per_hour: float = LLAMA_3_FAULTS_PER_GPU_HOUR
    hardware_share: float = LLAMA_3_HARDWARE_SHARE
    repair_s: float = 4 * 3600.0
    gpu_group_share: float = 0.0
    nvlink_domain_share: float = 0.0
    gpu_group_repair_s: float | None = None
    nvlink_domain_repair_s: float | None = None
    gpus_per_group: int = GPUS_OF_A_TRAY

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        check_range("reliability.gpu_faults_per_hour", self.gpu_faults_per_hour, 0.0, 1.0, "1/h")
        check_range("reliability.hardware_share", self.hardware_share, 0.0, 1.0)
        check_range("reliability.repair_s", self.repair_s, 1.0, 3.2e7, "s")
        check_shares("reliability", self.gpu_group_share, self.nvlink_domain_share)
        for key in ("gpu_group_repair_s", "nvlink_domain_repair_s"):
            if getattr(self, key) is not None:
                check_range(f"reliability.{key}", getattr(self, key), 1.0, 3.2e7, "s")
        check_count("reliability.gpus_per_group", self.gpus_per_group)

    @property
    def in_part(self) -> bool:
        """Whether faults may take a part of a rack."""
        return self.gpu_group_share > 0.0 or self.nvlink_domain_share > 0.0
