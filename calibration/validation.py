"""Write docs/validation.md and its plots: ``python -m calibration.validation`` (``--help`` for more).

Takes the catalogue as it is: run it again when a constant has changed. Needs ``AI_FACTORY_REFERENCE_DIR``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calibration import figures, sections
from calibration.evidence import Evidence, collect
from calibration.silicon import reference_folder

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "validation.md"
IMAGES = "images"


def models_of(evidence: Evidence) -> list[str]:
    """Return the models that have measured frontiers."""
    return sorted({point.model for point in evidence.frontier})


def page(evidence: Evidence) -> str:
    """Return the text of the page."""
    parts = (
        sections.summary(evidence),
        sections.pictures(evidence, models_of(evidence)),
        sections.chosen(evidence),
        sections.generalisation(evidence),
        sections.powered(evidence),
        sections.wrong(evidence),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def draw(evidence: Evidence, folder: Path) -> None:
    """Draw every plot into a folder."""
    plots = {
        "points": figures.predicted_against_measured(evidence.points, evidence.strictest),
        **{
            f"frontier_{model}": figures.frontiers(model, evidence.frontier, evidence.searched)
            for model in models_of(evidence)
        },
        "mlperf": figures.mlperf_bars(evidence.submissions),
        "power": figures.power_against_batch(evidence.draws, evidence.all_draws[-1]),
        "limits": figures.limit_curves(evidence.curves),
    }
    for name, figure in plots.items():
        figures.save(figure, folder / f"validation_{name}.png")


def publish(evidence: Evidence, out: Path) -> list[Path]:
    """Write page and plots; all are made aside first, so that a failure leaves what was there.

    Args:
        evidence: What was computed.
        out: Folder of the page; plots go into ``images`` below it.

    Returns:
        The files, the page last.
    """
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".validation-") as scratch:
        aside = Path(scratch)
        (aside / PAGE).write_text(page(evidence), encoding="utf-8")
        draw(evidence, aside)
        written = [out / IMAGES / path.name for path in sorted(aside.glob("*.png"))]
        for path in written:
            os.replace(aside / path.name, path)
        os.replace(aside / PAGE, out / PAGE)
    return [*written, out / PAGE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words of the command line; None takes the program's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m calibration.validation", description=(__doc__ or "").split("\n")[0].split(":")[0]
    )
    parser.add_argument("--out", type=Path, default=DOCS, metavar="FOLDER", help="where the page goes (default: docs)")
    parser.add_argument(
        "--no-cross-validation",
        action="store_true",
        help="leave out the fits without runs and models, which take minutes; the page says so",
    )
    chosen = parser.parse_args(arguments)
    for path in publish(collect(reference_folder(), cross_validation=not chosen.no_cross_validation), chosen.out):
        print(path)


if __name__ == "__main__":
    main()
