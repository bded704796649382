"""The mark of tests that need the reference data."""

from __future__ import annotations

import os

import pytest

from calibration.silicon import REFERENCE_VARIABLE

needs_reference = pytest.mark.skipif(
    not os.environ.get(REFERENCE_VARIABLE), reason=f"{REFERENCE_VARIABLE} names no folder of reference data"
)
