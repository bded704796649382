"""What the measurements are made of: ratios, tables, altered sites, and that every section runs. No time is asserted."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tqdm")

from ai_factory_gym.describe import figures
from ai_factory_gym.params import RESOLUTIONS
from ai_factory_gym.sites import load_site
from benchmarks import peers, performance, sites
from benchmarks.environments import EDGE
from benchmarks.fresh import memory_mb, peak_memory_mb, run_fresh
from benchmarks.measure import Effort, Paired, cartpole_step_s, drawn_actions, number, paired, quartiles, table
from benchmarks.per_request import duration
from benchmarks.scaling import held, make, with_grain

MOMENT = Effort(repeats=1, steps=2, cartpole_steps=100, full=False)


# ------------------------------------------------------------------------------------------------------------ measuring


class Clock:
    """A machine whose speed changes: everything takes as long as ``pace`` says at its turn."""

    def __init__(self, pace: list[float]) -> None:
        self.pace = pace
        self.turn = 0

    def __call__(self, *_: Any) -> float:
        self.turn += 1
        return self.pace[(self.turn - 1) % len(self.pace)]


def test_each_measurement_stands_between_two_of_the_reference() -> None:
    # Reference, thing, reference, thing ...; the first round is left out.
    reference = Clock([1.0, 1.0, 3.0, 5.0])
    found = paired({"thing": Clock([100.0, 8.0, 4.0])}, Effort(repeats=2), reference)["thing"]
    assert found.seconds == (8.0, 4.0)
    assert found.reference_s == (2.0, 4.0)
    assert found.costs.tolist() == [4.0, 1.0]
    assert found.speed()[1] == pytest.approx(0.625)


def test_a_slow_moment_of_the_machine_cancels() -> None:
    steady = Paired((2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    uneven = Paired((4.0, 40.0, 4.0), (1.0, 10.0, 1.0))
    assert uneven.speed() == (0.25, 0.25, 0.25)
    assert uneven.against(steady) == (2.0, 2.0, 2.0)
    assert uneven.median_s == 4.0


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00012345, "0.000123"),
        (0.9996, "1.00"),
        (1.2345, "1.23"),
        (99.96, "100"),
        (1234.5, "1,230"),
        (-2.5, "-2.50"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_tables() -> None:
    assert table(("a", "b", "c"), [("x", "1", "2")]) == ["| a | b | c |", "|---|---:|---:|", "| x | 1 | 2 |"]
    with pytest.raises(ValueError, match="2 cells"):
        table(("a", "b", "c"), [("x", "1")])


def test_durations() -> None:
    assert [duration(minutes) for minutes in (1, 60, 90, 1440)] == ["1 min", "1 h", "90 min", "24 h"]


def test_drawn_actions_are_the_same_each_time() -> None:
    first, again = drawn_actions(5, 3, 2), drawn_actions(5, 3, 2)
    assert first.dtype == np.float32 and first.shape == (5, 3, 2)
    assert (first == again).all() and np.abs(first).max() <= 0.2


def test_cartpole_is_measured() -> None:
    assert 0.0 < cartpole_step_s(50) < 1.0


def test_fresh_interpreters_and_memory() -> None:
    assert run_fresh("import os, ai_factory_gym; print(os.environ['EXTRA'])", EXTRA="there").strip() == "there"
    if np.isfinite(memory_mb()):
        assert 0.0 < memory_mb() <= 1.01 * peak_memory_mb()


# ---------------------------------------------------------------------------------------------------------------- sites


def balance(site: Any) -> tuple[float, float]:
    """Return how short of power a site is, and how busy."""
    found = figures(site)
    return found["unthrottled_draw_over_cap"], found["mean_load_over_cap_rps"]


@pytest.fixture(scope="module")
def edge_balance() -> Any:
    found = sites.edge_figures()
    return pytest.approx((found["unthrottled_draw_over_cap"], found["mean_load_over_cap_rps"]), rel=0.01)


def test_a_scaled_site_is_as_short_of_power_and_as_busy(edge_balance: Any) -> None:
    factor = 250
    site = sites.scaled_site(factor)
    assert site.demand_rps == factor * load_site("edge").demand_rps
    assert balance(site) == edge_balance


def test_split_pools_are_as_short_of_power_and_as_busy(edge_balance: Any) -> None:
    assert balance(sites.split_pools(sites.two_pool_site(8), 2)) == edge_balance


def test_fewer_classes_keep_their_proportions_and_are_as_busy(edge_balance: Any) -> None:
    mix = load_site("edge").mix
    site = sites.with_classes(["chat", "reasoning"])
    assert sum(site.mix.values()) == pytest.approx(1.0)
    assert site.mix["chat"] / site.mix["reasoning"] == pytest.approx(mix["chat"] / mix["reasoning"])
    assert balance(site) == edge_balance


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_split_pools_are_the_same_racks(parts: int) -> None:
    base = sites.scaled_site(5)
    site = sites.split_pools(base, parts)
    assert len(site.pools) == parts * len(base.pools)
    for phase in ("prefill", "decode"):
        racks = [sum(pool.racks for pool in each.pools if pool.phase == phase) for each in (base, site)]
        assert racks[0] == racks[1]
    for place, pool in enumerate(base.pools):
        own = [part.racks for part in site.pools[parts * place : parts * (place + 1)]]
        assert sum(own) == pool.racks and max(own) - min(own) <= 1


def test_the_small_site_runs_inside_its_cap() -> None:
    site = sites.small_site()
    assert site.demand_rps == 1000.0 and all(pool.racks == 1 for pool in site.pools)
    assert site.demand_rps < figures(site)["cap_rps"]


def test_a_resolution_without_a_name() -> None:
    cohort = RESOLUTIONS["cohort"]
    fine, coarse = (with_grain(dataclasses.replace(cohort, cohorts=cohorts)) for cohorts in (120, 0))
    assert len(fine.factory.params.cell) > len(coarse.factory.params.cell)
    named = make()
    for env in (fine, coarse):
        observation, _ = env.reset(seed=0)
        assert env.observation_space == named.observation_space and env.observation_space.contains(observation)


def test_held_racks_sleep_in_decode_pools_alone() -> None:
    env = make()
    action = held(env, 3, decode_racks=-1.0).actions
    assert action is not None
    part = action[0, env.action_layout["active_racks"]]
    assert part.tolist() == [1.0 if pool.phase == "prefill" else -1.0 for pool in env.pools]


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_has_a_place_for_every_section() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    for name in performance.SECTIONS:
        assert f"| {name} |" in performance.insert(page, name, f"| {name} |")
    with pytest.raises(ValueError, match="nowhere"):
        performance.insert(page, "nowhere", "")


def test_tables_are_replaced_and_nothing_else() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\nkept\n<!-- end y -->\n"
    once = performance.insert(page, "x", r"new \1")
    assert once == page.replace("old", r"new \1")
    assert performance.insert(once, "x", "old") == page


def test_the_peers_on_the_page_are_those_of_the_file() -> None:
    assert "\n".join(peers.peers(MOMENT)) in performance.PAGE.read_text(encoding="utf-8")


def test_a_peer_needs_its_source(tmp_path: Any, monkeypatch: Any) -> None:
    entry = '[[peer]]\nname = "n"\nkind = "k"\nfigure = "f"\nconditions = "c"\n'
    for line, complaint in (("", "must have"), ('source = "hearsay"\n', "no address")):
        path = tmp_path / "peers.toml"
        path.write_text(entry + line, encoding="utf-8")
        monkeypatch.setattr(peers, "PATH", path)
        with pytest.raises(ValueError, match=complaint):
            peers.load_peers()


def test_a_section_is_written_with_its_conditions(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- begin thing -->\n<!-- end thing -->\n", encoding="utf-8")
    monkeypatch.setattr(performance, "PAGE", path)
    monkeypatch.setattr(performance, "SECTIONS", {"thing": lambda effort: iter([f"{effort.repeats} rounds of it"])})
    performance.main(["--quick", "--repeats", "2", "--write"])
    page = path.read_text(encoding="utf-8")
    assert "2 rounds of it" in page and "not figures to quote" in page and "CartPole" not in page
    assert "## thing" in capsys.readouterr().out


QUICK = ["vector", "anatomy", "peers"]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in performance.SECTIONS],
)
def test_every_section_runs(name: str) -> None:
    lines = performance.render(name, MOMENT).splitlines()
    assert sum(line.startswith("|---") for line in lines) >= 1
    assert not any(re.search(r"\bnan\b", line) for line in lines)
    assert (EDGE.rpartition("/")[2] in " ".join(lines)) == (name in ("single", "requests", "anatomy"))
