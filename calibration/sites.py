"""Set the demand of the shipped sites to the calibration: ``python -m calibration.sites [--write]``.

A site is sized when its unthrottled draw at the load that saturates the SLA is 1.25-1.4 x its cap and its mean load 0.6-0.65 of what the
cap can serve. Racks are chosen by hand (prefill and decode are to saturate together); demand follows from them, and so does the
``calibration`` that the site names.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import ai_factory_gym.sites
from ai_factory_gym.catalogue import calibration_name
from ai_factory_gym.describe import figures
from ai_factory_gym.sites import load_site, site_names

MEAN_LOAD = 0.625
"""Mean demand over what the cap can serve: the middle of 0.6-0.65."""

DRAW_OVER_CAP = (1.25, 1.4)
"""Unthrottled draw at the saturating load over the cap."""

DIGITS = 3


def sized_text(text: str, demand_rps: float, calibration: str) -> str:
    """Return a site's file with another demand and calibration.

    Args:
        text: The file; that of a site which is based on another may be without either.
        demand_rps: Mean requests/s.
        calibration: Name of the calibration.
    """
    if "based_on" in text:
        # What such a site does not say is that of another; its demand has to be its own where its racks or its cap are.
        return re.sub(r"^demand_rps = .*$", f"demand_rps = {demand_rps:.1f}", text, flags=re.MULTILINE)
    text, demands = re.subn(r"^demand_rps = .*$", f"demand_rps = {demand_rps:.1f}", text, flags=re.MULTILINE)
    text, names = re.subn(r"^calibration = .*$", f'calibration = "{calibration}"', text, flags=re.MULTILINE)
    if (demands, names) != (1, 1):
        raise SystemExit("error: a site's file must have one demand_rps and one calibration.")
    return text


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m calibration.sites", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put demand and calibration into the sites' files")
    chosen = parser.parse_args()
    low, high = DRAW_OVER_CAP
    for name in site_names():
        found = figures(load_site(name))
        draw = found["unthrottled_draw_over_cap"]
        demand_rps = MEAN_LOAD * found["cap_rps"]
        demand_rps = round(demand_rps, DIGITS - 1 - math.floor(math.log10(demand_rps)))
        print(f"{name:12} draw over cap {draw:.3f}, demand {demand_rps:,.0f} requests/s")
        if not low <= draw <= high:
            raise SystemExit(f"error: {name}: {draw:.3f} is outside {low}-{high}; change its racks first.")
        if chosen.write:
            path = Path(ai_factory_gym.sites.__file__).with_name(f"{name}.toml")
            path.write_text(
                sized_text(path.read_text(encoding="utf-8"), demand_rps, calibration_name()), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
