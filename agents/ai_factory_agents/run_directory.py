"""The directory of one training run: what lies where, and that nothing of a finished run is overwritten.

| path | content |
|---|---|
| ``config.json`` | settings, hyperparameters, versions, and at which steps the run was resumed |
| ``best.zip`` | the best policy so far, as one artefact (``ai_factory_agents.load_run``) |
| ``last.zip`` | the policy at the end |
| ``checkpoints/<steps>/`` | SB3's ``model.zip`` and ``vecnormalize.pkl`` to resume from; SAC's newest has its buffer |
| ``reference.npy`` | with a rule: what it earns alone in every step of every training window |
| ``metrics.csv`` | one row per evaluation on tuning seeds |
| ``tensorboard/`` | training curves |
| ``evaluation-<steps>.csv``, ``.txt`` | the final comparison on held-out seeds: episodes and table |
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_factory_gym.errors import ConfigError


@dataclass(frozen=True)
class RunDirectory:
    """Paths and records of a run.

    Attributes:
        path: The directory.
    """

    path: Path

    @classmethod
    def create(cls, wanted: Path | None, name: str, root: Path = Path("runs")) -> RunDirectory:
        """Make a new directory: the one asked for, or the first free ``root/name``, ``root/name-2``, ...

        Raises:
            ConfigError: When the one asked for exists and is not empty.
        """
        if wanted is not None:
            if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
                raise ConfigError(
                    f"run_dir: {str(wanted)!r} exists and is not empty; runs are never overwritten. Give a new name, "
                    f"or go on with it: --resume {wanted}."
                )
            wanted.mkdir(parents=True, exist_ok=True)
            return cls(wanted)
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                number += 1

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of an earlier run.

        Raises:
            ConfigError: When it is none.
        """
        if not (path / "config.json").is_file():
            raise ConfigError(f"run: {str(path)!r} is not the directory of a run: it has no config.json.")
        return cls(path)

    @property
    def best(self) -> Path:
        """File of the best policy."""
        return self.path / "best.zip"

    @property
    def last(self) -> Path:
        """File of the last policy."""
        return self.path / "last.zip"

    @property
    def tensorboard(self) -> Path:
        """Directory of the training curves."""
        return self.path / "tensorboard"

    @property
    def reference(self) -> Path:
        """What the rule alone earns in the training windows."""
        return self.path / "reference.npy"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``, whole or not at all."""
        temporary = self.path / ".config.json.tmp"
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "config.json")

    def read_config(self) -> dict[str, Any]:
        """Return what ``write_config`` wrote."""
        found: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return found

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to ``metrics.csv``; every row has the columns of the first."""
        path = self.path / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return all rows of ``metrics.csv``."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as stream:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]

    def save_checkpoint(self, model: Any, normalise: Any) -> Path:
        """Save model, normalisation and, for SAC, the replay buffer; an earlier checkpoint loses its buffer."""
        target = self.path / "checkpoints" / f"{model.num_timesteps:010d}"
        if target.exists():
            return target
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save(temporary / "model.zip")
        normalise.save(str(temporary / "vecnormalize.pkl"))
        if getattr(model, "replay_buffer", None) is not None:
            model.save_replay_buffer(temporary / "replay_buffer.pkl")
        os.rename(temporary, target)
        for older in self.checkpoints()[:-1]:
            (older / "replay_buffer.pkl").unlink(missing_ok=True)
        return target

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("[0-9]*") if path.is_dir())

    def newest_checkpoint(self) -> Path:
        """Return the checkpoint to resume from.

        Raises:
            ConfigError: When there is none.
        """
        found = self.checkpoints()
        if not found:
            raise ConfigError(f"resume: {str(self.path)!r} has no checkpoint yet; start a new run.")
        return found[-1]
