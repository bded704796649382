"""A training job beside the serving pools of a site: its racks, its phases, its checkpoints, and what its work is worth."""

from __future__ import annotations

from dataclasses import dataclass

from ai_factory_gym.catalogue import Group, Rack, rack
from ai_factory_gym.errors import ConfigError, check_count, check_range, check_text


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Racks that do one synchronous training job at a time, beside the pools that serve.

    Attributes:
        rack: Catalogue id of the rack type, or a rack type of one's own, with one kind of GPU.
        racks: Number of racks.
        profile: Power profile of the rack type; None is its default.
        clock: Clock the job runs at by itself, at most: that at which compute phases draw the GPUs' power limit, if it is lower.
        iteration_s: Length of an iteration at that clock, s (status assumed: between 0.33 and 5 s, as in swings of 0.2 to 3 Hz, secondary report
            of the telemetry in arXiv:2508.14318). It says how fast bursts follow each other and changes no mean.
        compute_share: Share of an iteration at full clock in which GPUs compute; in the rest they communicate (status assumed).
        compute_memory: Memory activity while they compute (status assumed; with compute units busy they draw their limit at full clock anyway).
        communication_memory: Memory activity while they communicate (status assumed; "near idle", same report).
        checkpoint_period_s: Time between two checkpoints in which the job runs, s (status assumed; guides say 15 to 100 min).
        checkpoint_s: Time that writing a checkpoint takes, in which the job stands, s (status assumed).
        restore_s: Time from the order to go on to the first iteration, s: processes start and read the checkpoint (status assumed).
        checkpoint_rack_w: Draw of a rack meanwhile, writing or reading, W; None is that of a communication phase (status assumed).
        stall_limit_s: How long iterations may stand still under the brake before the job dies of it, s (status documented: 10 min is
            PyTorch's default limit of an NCCL collective, pull request 110947).
        worth: What a job-second is worth, over what the energy it takes by itself costs in the reward. 1 says that a joule of training is worth
            as much as a joule of the best serving (status design choice).
        usd_per_rack_hour: What an hour of progress of one rack pays; None is ``worth`` times its energy at the site's mean price.
        target_share: Progress that an episode has to make to count as feasible, over that of a job left alone; 0 asks for none.
    """

    rack: str | Rack
    racks: int
    profile: str | None = None
    clock: float = 1.0
    iteration_s: float = 2.0
    compute_share: float = 0.8
    compute_memory: float = 0.2
    communication_memory: float = 0.1
    checkpoint_period_s: float = 1800.0
    checkpoint_s: float = 60.0
    restore_s: float = 300.0
    checkpoint_rack_w: float | None = None
    stall_limit_s: float = 600.0
    worth: float = 1.0
    usd_per_rack_hour: float | None = None
    target_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not isinstance(self.rack, Rack):
            check_text("training.rack", self.rack)
        check_count("training.racks", self.racks)
        check_range("training.racks", self.racks, 1, 100_000)
        if len(self.rack_type.groups) > 1:
            raise ConfigError(
                f"training.rack: {self.rack_type.id!r} is not allowed; its GPUs are of two kinds, and a synchronous job runs on one."
            )
        self.group.profile(self.profile)  # refuses an unknown one
        check_range("training.clock", self.clock, 0.2, 1.0)
        check_range("training.iteration_s", self.iteration_s, 0.01, 60.0, "s")
        check_range("training.compute_share", self.compute_share, 0.01, 1.0)
        check_range("training.compute_memory", self.compute_memory, 0.0, 1.0)
        check_range("training.communication_memory", self.communication_memory, 0.0, 1.0)
        check_range("training.checkpoint_period_s", self.checkpoint_period_s, 1.0, 3.2e7, "s")
        check_range("training.checkpoint_s", self.checkpoint_s, 0.0, 86400.0, "s")
        check_range("training.restore_s", self.restore_s, 0.0, 86400.0, "s")
        check_range("training.stall_limit_s", self.stall_limit_s, 1.0, 3.2e7, "s")
        check_range("training.worth", self.worth, 0.0, 1e3)
        check_range("training.target_share", self.target_share, 0.0, 1.0)
        if self.usd_per_rack_hour is not None:
            check_range("training.usd_per_rack_hour", self.usd_per_rack_hour, 0.0, 1e6, "USD/h")
        if self.checkpoint_rack_w is not None:
            chosen = self.group.profile(self.profile)
            check_range(
                "training.checkpoint_rack_w", self.checkpoint_rack_w, chosen.idle_rack_w, chosen.nameplate_w, "W"
            )

    @property
    def rack_type(self) -> Rack:
        """The rack type."""
        return rack(self.rack)

    @property
    def group(self) -> Group:
        """The rack's GPUs."""
        return self.rack_type.groups[0]
