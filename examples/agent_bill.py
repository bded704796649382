"""What do agents earn, and what does their energy cost a year, on each kind of rack?

    python examples/agent_bill.py --agents 5 --requests-per-s 10 --prompt-tokens 100 --output-tokens 100
    python examples/agent_bill.py --queries-per-day 10000 --prompt-tokens 800 --output-tokens 50

Plain arithmetic on one steady state per rack type, the layout with most tokens per joule that keeps the speed: tokens/s of the agents,
dollars at a price per million output tokens, and the energy of those tokens at a price per MWh. The rack is shared with others who fill it;
alone, a few agents would pay for a rack that idles. Token price, PUE and price of electricity are yours to set.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ai_factory_gym import ConfigError, serving_frontier
from ai_factory_gym.catalogue import rack, rack_ids
from ai_factory_gym.errors import check_range

HOURS_PER_YEAR = 8760.0
SECONDS_PER_DAY = 86400.0
MODEL = "deepseek-r1"


@dataclass(frozen=True)
class Usage:
    """What the agents ask for.

    Attributes:
        requests_per_s: Requests per second of all of them, mean over the day.
        prompt_tokens: Tokens of a prompt.
        output_tokens: Tokens of an answer.
    """

    requests_per_s: float
    prompt_tokens: int
    output_tokens: int

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens per second of all agents."""
        return self.requests_per_s * self.output_tokens

    def usd_per_hour(self, usd_per_mtok: float) -> float:
        """Return what an hour of output costs at a price per million output tokens."""
        return self.output_tokens_per_s * 3600.0 / 1e6 * usd_per_mtok


@dataclass(frozen=True)
class Bill:
    """Energy of the agents on one kind of rack.

    Attributes:
        rack: Rack type.
        precision: Precision it is served in.
        joules_per_token: Facility energy per output token, that of its share of the prompt included.
        kwh_per_year: Energy of a year.
        usd_per_year: Its cost.
        hypothetical: Whether nobody sells the rack.
    """

    rack: str
    precision: str
    joules_per_token: float
    kwh_per_year: float
    usd_per_year: float
    hypothetical: bool


def bill(name: str, usage: Usage, *, tpot_s: float, pue: float, usd_per_mwh: float) -> Bill | str:
    """Return the energy bill of a year on a kind of rack, or why there is none."""
    if len(rack(name).groups) > 1:
        return "two kinds of GPU: see its parts"
    precision = "fp4" if rack(name).groups[0].fp4_pflops > 0.0 else "fp8"
    try:
        points = serving_frontier(
            name,
            MODEL,
            precision=precision,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            tpot_s=tpot_s,
            ttft_limit_s=1.5,
            objective="output_tokens_per_joule",
        )
    except ConfigError:
        return f"does not hold {MODEL} in {precision}"
    if not points:
        return "does not keep the speed alone"
    joules = pue / points[0].output_tokens_per_joule
    kwh = joules * usage.output_tokens_per_s * HOURS_PER_YEAR * 3600.0 / 3.6e6
    return Bill(name, precision, joules, kwh, kwh / 1e3 * usd_per_mwh, points[0].hypothetical)


def usage_of(given: argparse.Namespace) -> Usage:
    """Return what the arguments ask for."""
    if (given.queries_per_day is None) == (given.agents is None):
        raise ConfigError("give either --agents and --requests-per-s, or --queries-per-day.")
    if given.queries_per_day is not None:
        rate = check_range("--queries-per-day", given.queries_per_day, 1e-6, 1e12) / SECONDS_PER_DAY
    else:
        rate = check_range("--agents", given.agents, 1.0, 1e9) * check_range(
            "--requests-per-s", given.requests_per_s, 1e-6, 1e6
        )
    return Usage(rate, given.prompt_tokens, given.output_tokens)


def main() -> None:
    """Print the arithmetic and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=None)
    parser.add_argument("--requests-per-s", type=float, default=1.0, help="of one agent")
    parser.add_argument("--queries-per-day", type=float, default=None, help="instead of agents")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--output-tokens", type=int, required=True)
    parser.add_argument("--usd-per-mtok", type=float, default=25.0, help="price of a million output tokens")
    parser.add_argument("--usd-per-mwh", type=float, default=51.0)
    parser.add_argument("--pue", type=float, default=1.15)
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="slowest time per output token")
    given = parser.parse_args()
    try:
        usage = usage_of(given)
        bills = [
            bill(name, usage, tpot_s=given.tpot_ms / 1e3, pue=given.pue, usd_per_mwh=given.usd_per_mwh)
            for name in rack_ids()
        ]
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    hour = usage.usd_per_hour(given.usd_per_mtok)
    print(
        f"{usage.requests_per_s:,.4g} requests/s x {usage.output_tokens} tokens = {usage.output_tokens_per_s:,.4g} tokens/s = "
        f"{usage.output_tokens_per_s * 3600 / 1e6:,.4g} million tokens/h"
    )
    print(
        f"at {given.usd_per_mtok:g} USD per million output tokens: {hour:,.4g} USD/h, {24 * hour:,.5g} USD/day, "
        f"{HOURS_PER_YEAR * hour:,.0f} USD/year\n"
    )
    print(f"energy at {given.usd_per_mwh:g} USD/MWh, PUE {given.pue:g}, {MODEL}, TPOT at most {given.tpot_ms:g} ms:")
    print(f"{'rack':24} {'precision':9} {'J/token':>8} {'kWh/year':>12} {'USD/year':>10} {'of revenue':>10}")
    for name, found in zip(rack_ids(), bills, strict=True):
        if isinstance(found, str):
            print(f"{name:24} {found}")
            continue
        mark = " (hypothetical)" if found.hypothetical else ""
        print(
            f"{name:24} {found.precision:9} {found.joules_per_token:8.3f} {found.kwh_per_year:12,.0f} {found.usd_per_year:10,.0f} "
            f"{found.usd_per_year / (HOURS_PER_YEAR * hour):10.2%}{mark}"
        )


if __name__ == "__main__":
    main()
