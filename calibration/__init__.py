"""Fits of the catalogue's constants to measured serving points and GPU power, and the pages that show how good they are.

Needs the reference data: a folder with ``silicon_calibration.csv``, ``hardware_facts.yaml`` and ``mlenergy_power_fits.csv``,
named by ``AI_FACTORY_REFERENCE_DIR``, and the extras ``dev``, ``eval`` and
``plot``. The data are not part of the repository.
"""

import importlib.util

_MISSING = [name for name in ("matplotlib", "scipy", "tqdm", "yaml") if importlib.util.find_spec(name) is None]
if _MISSING:
    raise SystemExit(f"error: calibration needs {', '.join(_MISSING)}: pip install -e '.[train,plot,dev]'")
