"""Put calibrated constants into the catalogue's file."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import ai_factory_gym.catalogue
from calibration.silicon import Constants

RACKS_PATH = Path(ai_factory_gym.catalogue.__file__).with_name("racks.toml")


MEASUREMENTS = "InferenceX to 2026-04, MLPerf v6.1, ML.ENERGY v3"
"""What the constants are fitted to."""


def write(path: Path, constants: Constants, source: str, status: str = "calibrated") -> None:
    """Put constants into a file like ``racks.toml`` with status ``calibrated``, and the date into the calibration's name.

    Args:
        path: The file.
        constants: GPU generation to field to value.
        source: Where they come from.
        status: How they are known.

    Raises:
        SystemExit: When the file has no such entry.
    """
    text = path.read_text(encoding="utf-8")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = re.sub(
        r'^calibration = ".*"$', f'calibration = "{today}: {MEASUREMENTS}"', text, count=1, flags=re.MULTILINE
    )
    for generation, values in constants.items():
        begin = text.index(f"[architectures.{generation}]")
        end = text.find("\n[", begin)
        section = text[begin:end]
        for field, value in values.items():
            pattern = rf'^({field} = \{{ value = )[^,]+(, unit = "[^"]+", status = )"[^"]+"(, source = )"[^"]*"'
            entry = re.search(pattern, section, flags=re.MULTILINE)
            if entry is None:
                raise SystemExit(f"error: {path.name}: no entry {field} under {generation}.")
            written = f'{entry[1]}{value:.4g}{entry[2]}"{status}"{entry[3]}"{source}"'
            section = section[: entry.start()] + written + section[entry.end() :]
        text = text[:begin] + section + text[end:]
    path.write_text(text, encoding="utf-8")
