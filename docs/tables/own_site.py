"""Fill the outputs of docs/own_site.md: ``python docs/tables/own_site.py`` runs the commands that the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_site.md"
BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

COMMANDS = {
    "cage": (
        "python -m ai_factory_gym validate examples/sites/cage.toml",
        "python -m ai_factory_gym describe examples/sites/cage.toml",
    ),
    "coding": ("python -m ai_factory_gym describe examples/sites/coding.toml",),
    "models": (
        "python -m ai_factory_gym validate examples/sites/two_models.toml",
        "python -m ai_factory_gym describe examples/sites/two_models.toml",
    ),
    "replay": ("python examples/replay_trace.py",),
}


def shown(name: str) -> str:
    """Return the commands of a block and what they print."""
    lines = ["```"]
    for command in COMMANDS[name]:
        words = command.split()
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, env=os.environ, check=True, capture_output=True, text=True
        )
        lines += [f"$ {command}", done.stdout.rstrip()]
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    """Fill the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: m.group(1) + shown(m.group(2)) + m.group(3), page), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
