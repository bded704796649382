"""Fill the outputs of docs/own_site.md and docs/grid.md: ``python docs/tables/own_site.py`` runs the commands that the pages show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(ROOT / "docs" / name for name in ("own_site.md", "grid.md"))
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
    "agents": ("python examples/agent_bill.py --agents 5 --requests-per-s 10 --prompt-tokens 100 --output-tokens 100",),
    "service": ("python examples/agent_bill.py --queries-per-day 10000 --prompt-tokens 800 --output-tokens 50",),
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
    """Fill the pages."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(BLOCK.sub(lambda m: m.group(1) + shown(m.group(2)) + m.group(3), page), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
