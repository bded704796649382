"""Command line: ``python -m ai_factory_gym describe TASK``, ``validate FILE``, ``warmup``."""

from __future__ import annotations

import argparse
import sys
import time

from ai_factory_gym.console import ends_with_its_reader
from ai_factory_gym.errors import ConfigError
from ai_factory_gym.registration import TASKS


@ends_with_its_reader
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ai_factory_gym", description="A power-capped AI factory.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("describe", help="print a task's inventory, capacity and what binds")
    show.add_argument("task", nargs="+", help=f"task id, site name or TOML file; ids: {', '.join(TASKS)}")
    show.add_argument("--trace", help="describe a trace too, and what rate-scale makes of its burstiness")
    show.add_argument("--rate-scale", type=float, default=1.0, help="factor on the trace's rate")
    check = commands.add_parser("validate", help="say what is wrong, or unlikely to be meant, in a site of your own")
    check.add_argument("site", nargs="+", help="TOML file or site name")
    commands.add_parser("warmup", help="compile and cache the kernels (about a minute, once)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "describe":
            from ai_factory_gym.describe import describe, describe_trace

            pages = [describe(name) for name in chosen.task]
            if chosen.trace is not None:
                pages.append(describe_trace(chosen.trace, chosen.rate_scale))
            elif chosen.rate_scale != 1.0:
                raise ConfigError(f"rate_scale: {chosen.rate_scale!r} scales a trace, and no trace is given.")
            print("\n".join(pages))
        elif chosen.command == "validate":
            from ai_factory_gym.validate import validate

            for source in chosen.site:
                print(validate(source), end="")
        else:
            print(f"kernels ready after {warm_up():.1f} s")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def warm_up() -> float:
    """Run one step so that every kernel of the environment is compiled and cached; returns the seconds it took."""
    import gymnasium

    begin = time.perf_counter()
    env = gymnasium.make("ai_factory/Edge-v0", horizon_s=60.0, warmup_s=60.0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
