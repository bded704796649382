"""What people are told when something cannot be used: the key as they wrote it, the value, what is allowed, and what to do."""

from __future__ import annotations

import functools
import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ai_factory_agents
import ai_factory_baselines
from ai_factory_gym.errors import ConfigError, PolicyRefused, unknown
from ai_factory_gym.evaluation import cli, evaluate
from ai_factory_gym.grid.series import SeriesEventSpec, load_series
from ai_factory_gym.params import at_hottest, build_params, resolution, served_classes, with_block
from ai_factory_gym.scenarios import scenario
from ai_factory_gym.sites import load_site
from ai_factory_gym.workload.classes import load_classes
from ai_factory_gym.workload.traces import load_trace
from tests.fake_factory import TASK, Throttle

ROOT = Path(__file__).parents[1]


def site(**changes: Any) -> dict[str, Any]:
    """Return a small site's table."""
    pools = [
        {"rack": "gb300_nvl72", "phase": "prefill", "racks": 1, "dp": 4},
        {"rack": "gb300_nvl72", "phase": "decode", "racks": 1, "dp": 8, "mtp": True},
    ]
    table = {
        "name": "s",
        "cap_w": 4e5,
        "model": "deepseek-r1",
        "demand_rps": 100.0,
        "mix": {"chat": 1.0},
        "pools": pools,
    }
    return table | changes


def full_throttle(env: Any) -> Throttle:
    return Throttle(1.0)


def refuses(env: Any) -> Throttle:
    raise ConfigError("rule: not possible on a site where pools share racks.")


def resolve(name: str, task: str) -> dict[str, Any]:
    known = {"bold": full_throttle, "picky": refuses, "choosy": refuses}
    return known if name == "rules" else {name: known[name]}


def test_a_rule_that_refuses_the_site_is_named_and_the_others_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", TASK, "--seeds", "1", "--scenario", "diurnal", "burst"]
    assert cli.main(resolve, [*arguments, "--policies", "rules"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rank  policy") == 2
    assert printed.count("picky was not run, it refuses the site: rule: not possible on a site where pools share") == 1
    assert "choosy was not run" in printed
    assert cli.main(resolve, [*arguments, "--policies", "picky"]) == 2
    assert "error: policy 'picky': rule: not possible" in capsys.readouterr().err
    assert cli.main(resolve, [*arguments, "--policies", "rules", "--versus", "picky"]) == 2
    assert "error: policy 'picky': rule: not possible" in capsys.readouterr().err
    with pytest.raises(PolicyRefused, match="policy 'refuses': rule: not possible"):
        evaluate(refuses, TASK, seeds=[1])
    made = functools.partial(ai_factory_baselines.make, "reactve")
    with pytest.raises(PolicyRefused, match=r"policy \"make\('reactve'\)\": .*Did you mean 'reactive'"):
        evaluate(made, TASK, seeds=[1])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("horizon_s=3600", "env: 'horizon_s=3600' is not allowed; give it as --horizon-s 3600."),
        ("scenario=burst", "env: 'scenario=burst' is not allowed; give it as --scenario burst."),
        ("drain=false", "env: 'drain=false' is not allowed; evaluation always drains"),
        (
            "levers=clock, effort",
            """env: levers: 'clock, effort' is not allowed; write a list in JSON: --env 'levers=["clock", "effort"]'.""",
        ),
        ("levers=[clock]", "env: levers: '[clock]' is not JSON; write names in double quotes"),
    ],
)
def test_env_arguments(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cli.parse_env([pair])


@pytest.mark.parametrize(
    ("words", "env", "scenario"),
    [
        ("--env a=1 b=2 --scenario x y", ("a=1", "b=2"), ("x", "y")),
        ("--env a=1 --env b=2", ("a=1", "b=2"), ("diurnal",)),
        ("--env=a=1 --scenario x --seeds 3 --env b=2 c=-3 --scenario=y", ("a=1", "b=2", "c=-3"), ("x", "y")),
        ("--scenario x --env --scenario y -1", (), ("x", "y", "-1")),
    ],
)
def test_an_option_given_twice_has_the_values_of_both(
    words: str, env: tuple[str, ...], scenario: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[cli.Arguments] = []
    monkeypatch.setattr(cli, "run", lambda arguments, *_: taken.append(arguments) or [])
    monkeypatch.setattr(cli, "report", lambda *_: "")
    assert cli.main(resolve, words.split()) == 0
    assert (taken[0].env, taken[0].scenario) == (env, scenario)
    # As from the shell.
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words.split()])
    assert cli.main(resolve) == 0
    assert taken[1] == taken[0]


def test_an_option_of_training_given_twice_has_the_values_of_both_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = pytest.importorskip("ai_factory_agents.training")
    taken: list[Any] = []
    monkeypatch.setattr(training, "train", taken.append)
    words = "--env site=a.toml --residual-levers clock --residual_levers active_racks --env resolution=coarse --seed 1 --seed 2"
    assert training.main([*words.split(), "--window-hours", "1", "2"]) == 0
    assert taken[0].env == ("site=a.toml", "resolution=coarse")
    assert taken[0].residual_levers == ("clock", "active_racks")
    # One value each: the last one, as everywhere.
    assert taken[0].seed == 2 and taken[0].window_hours == (1.0, 2.0)
    assert training.main("--window-hours 1 2 --seed 1 --window-hours 3 4".split()) == 2
    assert capsys.readouterr().err == "error: window_hours: --window-hours is given twice.\n"


def test_no_agent_ships_for_a_site_of_ones_own() -> None:
    with pytest.raises(ConfigError, match="train.py --algo ppo --task ai_factory/Custom-v0 --env site=.*run directory"):
        ai_factory_agents.load("ppo", "ai_factory/Custom-v0")


CLASS = """
[mine]
description = "x"
[mine.prompt]
median = 500.0
sigma = 0.5
minimum = 10.0
maximum = 4000.0
[mine.output]
median = 100.0
sigma = 0.5
minimum = 1.0
maximum = 1000.0
[mine.slo]
ttft_a = 2.0
ttft_b = 0.0
ttft_c = 0.0
tpot = 0.08
patience = 1.0
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ttft_a = 2.0", "ttft_a = -2.0", "mine.slo.ttft_a: -2.0 is not allowed"),
        ("ttft_c = 0.0", "ttft_c = 5.0", "mine.slo.ttft_c: 5.0 is not allowed"),
        ("tpot = 0.08", "tpot = 0.0", "mine.slo.tpot: 0.0 is not allowed"),
        ("patience = 1.0", "patience = 1.0\ndeadline = 60.0", "mine.slo.deadline: 60.0 given, but the class is not"),
        (
            "patience = 1.0",
            "patience = 1.0\n[mine.effort]\nleast_share = 0.01\nvalue_loss = 0.1",
            "mine.effort.least_share: 0.01",
        ),
        (
            "patience = 1.0",
            "patience = 1.0\n[mine.effort]\nleast_share = 1.0\nvalue_loss = 0.1",
            "mine.effort.value_loss: 0.1 given, but effort.least_share is 1",
        ),
        (
            "[mine.prompt]",
            "requests_per_task = 3.0\n[mine.session]\nreuse_share = 0.5\nthink = 0.0\n[mine.prompt]",
            "mine.session.think: 0.0",
        ),
        (
            "patience = 1.0",
            "patience = 1.0\n[mine.demand]\noverdispersion_tau = -1.0",
            "mine.demand.overdispersion_tau: -1.0",
        ),
    ],
)
def test_errors_of_classes_name_the_keys_of_the_file(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    path.write_text(CLASS.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as caught:
        load_classes(path)
    assert not re.search(r"ttft_a_s|tpot_s|deadline_s|effort_|think_s|tau_s", str(caught.value))


def test_a_limit_that_no_rack_meets_names_its_class(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(CLASS.replace("tpot = 0.08", "tpot = 0.0005"), encoding="utf-8")
    (tmp_path / "site.toml").write_text(
        'name = "s"\ncap_w = 4e5\nmodel = "deepseek-r1"\ndemand_rps = 100.0\nmix = {chat = 0.5, mine = 0.5}\nown = {classes = "classes.toml"}\n'
        '[[pools]]\nrack = "gb300_nvl72"\nphase = "prefill"\nracks = 1\ndp = 4\n'
        '[[pools]]\nrack = "gb300_nvl72"\nphase = "decode"\nracks = 1\ndp = 8\nmtp = true\n',
        encoding="utf-8",
    )
    entry = load_site(tmp_path / "site.toml")
    with pytest.raises(ConfigError, match=r"class 'mine', slo.tpot = 0.0005 s.*s per token on gb300_nvl72/decode"):
        build_params(entry, served_classes(entry), resolution("cohort"), control_interval_s=60.0)


def test_a_column_in_another_unit_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("hour,eur_per_mwh\n0,1\n12,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'eur_per_mwh' is not allowed; must be 'usd_per_mwh'.*Convert the values"):
        load_site(site(series={"electricity": str(tmp_path / "prices.csv")}))


def test_aggregated_pools_have_no_cache() -> None:
    pool = {"rack": "gb300_nvl72", "phase": "both", "racks": 2, "dp": 8}
    for key, value in (("cache", {"hbm_gb": 100.0}), ("hold_share", 0.5)):
        with pytest.raises(ConfigError, match=rf"gb300_nvl72/both\].{key}: is not possible with phase 'both'"):
            load_site(site(pools=[pool | {key: value}]))


def test_unknown_keys_are_called_keys() -> None:
    with pytest.raises(ConfigError, match="site: unknown key 'capw'; allowed: .*Did you mean 'cap_w'"):
        load_site(site(capw=1.0))


def test_weather_beyond_the_model_names_the_event() -> None:
    event = SeriesEventSpec(10.0, 12.0, 4.0, 30.0, 5.0, 50.0)
    with pytest.raises(
        ConfigError, match=r"scenario: temperature_events: high: 50 K is not allowed at site 's'.*at most"
    ):
        at_hottest(load_site(site()), [event])


def test_scenarios_may_be_joined_with_spaces() -> None:
    assert scenario("burst + long_context") == scenario("burst+long_context")


@pytest.mark.parametrize("command", [["-m", "ai_factory_gym", "--help"], ["train.py", "--help"]])
def test_a_reader_that_stops_gets_no_traceback(command: list[str]) -> None:
    done = subprocess.run(
        f"{sys.executable} {' '.join(command)} | true", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


SITE = """
name = "Mine"
cap_w = 4e5
model = "deepseek-r1"
demand_rps = 100.0
mix = {{ chat = 1.0 }}
pools = [
    {{ rack = "gb300_nvl72", phase = "prefill", racks = 1, dp = 4 }},
    {{ rack = "gb300_nvl72", phase = "decode", racks = 1, dp = 8, mtp = true }},
]
{more}
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("clock_min = 3.0", "site 'my_site.toml': clock_min: 3.0 is not allowed; must be a number in [0.2, 0.75]."),
        ("dwel_s = 3.0", "site 'my_site.toml': unknown key 'dwel_s'; "),
        ("[ramp]", "site 'my_site.toml': ramp: limits nothing; "),
        ("[grid]\nexport_w = 5.0", "site 'my_site.toml': grid.export_w: a site without [[generation]] "),
        ("[own]\nclasses = 'no.toml'", "site 'my_site.toml': own: classes: cannot read 'no.toml' "),
        ("[own]\nclasses = 'bad.toml'", "site 'my_site.toml': own: classes: 'bad.toml' is not valid TOML "),
        ("[own]\nmodels = 'no.toml'", "site 'my_site.toml': own: models: 'no.toml': cannot be read "),
        ("[own]\nracks = 'bad.toml'", "site 'my_site.toml': own: racks: 'bad.toml': not valid TOML "),
        ("[own]\nracks = 'empty.toml'", "site 'my_site.toml': own: racks: empty.toml: missing key(s) racks; "),
        ("[series]\ncarbon = 'no.csv'", "site 'my_site.toml': series carbon: 'no.csv': cannot be read "),
        (
            "[series]\ncarbon = 'rows.csv'",
            "site 'my_site.toml': series carbon: 'rows.csv': line 3: g_per_kwh: 'x' is not a number.",
        ),
    ],
)
@pytest.mark.parametrize("based", [False, True])
def test_a_site_file_is_named_once(
    more: str, message: str, based: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("a = =", encoding="utf-8")
    Path("empty.toml").write_text("", encoding="utf-8")
    Path("rows.csv").write_text("hour,g_per_kwh\n0,1\n1,x\n", encoding="utf-8")
    if based:
        Path("base.toml").write_text(SITE.format(more=""), encoding="utf-8")
    own = f'name = "Other"\nbased_on = "base.toml"\n{more}' if based else SITE.format(more=more)
    Path("my_site.toml").write_text(own, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_site("my_site.toml")
    text = str(refused.value)
    assert text.startswith(message)
    assert "Mine" not in text and "Other" not in text
    named = re.findall(r"[\w.]+\.(?:toml|csv)", text)
    assert len(named) == len(set(named))


def test_a_site_without_a_file_is_named_as_it_calls_itself() -> None:
    with pytest.raises(ConfigError, match="^site 's': clock_min: 3.0 is not allowed"):
        load_site(site(clock_min=3.0))


def test_a_scenario_is_named_where_its_training_block_cannot_be_built(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "x"\ndaily = true\noverdispersion = 1.0\ndeferrable = true\n[training_block]\ncap_share = 0.1\nrack = "gb300"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="^scenario 'mine': training_block: rack: unknown value 'gb300'.*nvl72'"):
        with_block(load_site(site()), scenario(path))


def test_allowed_names_are_listed_once() -> None:
    assert str(unknown("model", "z", ["b", "a", "b"])) == "model: unknown value 'z'; allowed: a, b."


@pytest.mark.parametrize("damage", [lambda packed: packed[:40], lambda packed: packed[:12] + b"\xff" * 8 + packed[20:]])
def test_a_damaged_file_is_refused(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "prices.csv.gz"
    rows = "".join(f"{hour},{30.0 + 7.0 * (hour % 5)}\n" for hour in range(48))
    path.write_bytes(damage(gzip.compress(f"hour,usd_per_mwh\n{rows}".encode(), mtime=0)))
    with pytest.raises(ConfigError, match="^series electricity: '.*prices.csv.gz': is not a text file in UTF-8 or is"):
        load_series(path, "electricity")
    with pytest.raises(ConfigError, match="^trace '.*prices.csv.gz': is not a text file in UTF-8 or is damaged"):
        load_trace(path)
