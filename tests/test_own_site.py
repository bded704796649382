"""Sites of one's own: Custom-v0, files of one's own, what ``validate`` and ``describe`` say, and sites nobody thought of."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.__main__ import main
from ai_factory_gym.describe import _parts, describe, plot_day
from ai_factory_gym.params import served_classes
from ai_factory_gym.registration import CUSTOM
from ai_factory_gym.scenarios.training import draw_block_outages
from ai_factory_gym.sites import BatteryConfig, load_site, site_names
from ai_factory_gym.sites.money import MoneyConfig, Tariff
from ai_factory_gym.sites.reliability import ReliabilityConfig
from ai_factory_gym.sites.training import TrainingConfig
from ai_factory_gym.task import estimated_lambda, frozen_lambdas
from ai_factory_gym.validate import findings, validate
from tests import random_sites

SITES = Path(__file__).parents[1] / "examples" / "sites"
EXAMPLES = ("cage", "coding", "two_models")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_as_custom_task(name: str) -> None:
    env = gymnasium.make(CUSTOM, site=str(SITES / f"{name}.toml"), horizon_s=600.0, warmup_s=120.0)
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        observation, reward, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert env.observation_space.contains(observation)
    assert info["sla_attainment"] > 0.9
    rows = gymnasium.make_vec(
        CUSTOM,
        num_envs=2,
        vectorization_mode="vector_entry_point",
        site=str(SITES / f"{name}.toml"),
        horizon_s=600.0,
        warmup_s=120.0,
    )
    rows.reset(seed=0)
    for _ in range(5):
        _, rewards, _, _, _ = rows.step(np.zeros(rows.action_space.shape, np.float32))
    assert rewards[0] == reward
    rows.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_to_be_remarked_about_the_examples(name: str) -> None:
    assert findings(load_site(SITES / f"{name}.toml")) == []


@pytest.mark.parametrize("name", site_names())
def test_nothing_is_to_be_remarked_about_shipped_sites(name: str) -> None:
    assert findings(load_site(name)) == []
    assert "nothing to remark" in validate(name)


def test_a_site_takes_what_it_does_not_have_from_the_one_it_is_based_on(tmp_path: Path) -> None:
    edge = load_site("edge")
    mine = load_site({"based_on": "edge", "name": "Mine", "cap_w": 1.9e6})
    assert mine == dataclasses.replace(edge, name="Mine", cap_w=1.9e6)
    # A chain of files; names of files are those of the folder they are named in.
    far = tmp_path / "far"
    far.mkdir()
    (far / "prices.csv").write_text("hour,usd_per_mwh\n0,40\n12,80\n", encoding="utf-8")
    (far / "base.toml").write_text(
        'based_on = "edge"\nname = "Base"\ncap_w = 1.8e6\n[series]\nelectricity = "prices.csv"\n', encoding="utf-8"
    )
    (tmp_path / "mine.toml").write_text('based_on = "far/base.toml"\nname = "Mine"\n', encoding="utf-8")
    chained = load_site(tmp_path / "mine.toml")
    assert (chained.name, chained.cap_w, chained.pools) == ("Mine", 1.8e6, edge.pools)
    assert chained.series == load_site(far / "base.toml").series


def test_mistakes_about_what_a_site_is_based_on_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('based_on = "b.toml"\nname = "A"\n', encoding="utf-8")
    (tmp_path / "b.toml").write_text('based_on = "a.toml"\nname = "B"\n', encoding="utf-8")
    with pytest.raises(
        ConfigError, match="based_on: '[ab].toml' is not allowed; sites are based on one another in a circle"
    ):
        load_site(tmp_path / "a.toml")
    for value, message in {
        "edgy": "based_on: unknown value 'edgy'.*Did you mean 'edge'",
        "none.toml": "based_on: cannot read 'none.toml'",
        3: "based_on: 3 is not allowed; must be a shipped site or the path of a TOML file",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_site({"based_on": value, "name": "Mine"})
    with pytest.raises(ConfigError, match="missing key.s. name"):
        load_site({"based_on": "edge"})
    with pytest.raises(ConfigError, match="'batery'.*Did you mean 'battery'"):
        load_site({"based_on": "edge", "name": "Mine", "batery": {}})


def test_a_custom_task_needs_a_site() -> None:
    with pytest.raises(ConfigError, match="missing key.s. site"):
        gymnasium.make(CUSTOM)


@pytest.mark.parametrize("name", site_names())
def test_the_estimated_price_of_energy_is_near_the_frozen_one(name: str) -> None:
    site = load_site(name)
    assert estimated_lambda(site) == pytest.approx(frozen_lambdas()[site.name]["diurnal"], rel=0.10)
    env = AIFactoryEnv(site=site, lambda_tokens_per_joule="estimate")
    assert env.task.energy_price == estimated_lambda(site)
    with pytest.raises(ConfigError, match="lambda_tokens_per_joule: unknown value 'guess'; allowed: estimate"):
        AIFactoryEnv(site=site, lambda_tokens_per_joule="guess")


def test_classes_racks_and_models_of_ones_own(tmp_path: Path) -> None:
    site = load_site(SITES / "coding.toml")
    own = next(cls for cls in site.own_classes if cls.name == "coding")
    assert site.known_classes["coding"] is own and own.prompt.median == 9000.0
    assert load_site("enterprise").known_classes["coding"].prompt.median != 9000.0
    # The same file from another folder.
    for name in ("coding.toml", "coding_classes.toml"):
        (tmp_path / name).write_text((SITES / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert load_site(tmp_path / "coding.toml") == site
    (tmp_path / "coding_classes.toml").unlink()
    with pytest.raises(ConfigError, match="coding_classes.toml.*cannot|cannot.*coding_classes.toml"):
        load_site(tmp_path / "coding.toml")


def remarks(**changes: object) -> str:
    """Return what is said about the cage with some changes."""
    return "\n".join(findings(dataclasses.replace(load_site(SITES / "cage.toml"), **changes)))  # type: ignore[arg-type]


def test_what_would_surprise_is_said() -> None:
    cage = load_site(SITES / "cage.toml")
    assert "power never binds" in remarks(cap_w=5e6)
    assert "before the power does" in remarks(cap_w=6e5)
    assert "requests will be turned away or late" in remarks(demand_rps=6000.0)
    lopsided = (dataclasses.replace(cage.pools[0], racks=12), cage.pools[1])
    assert "decode is at its limit" in remarks(pools=lopsided, cap_w=2e6)
    assert "move racks from prefill to decode" in remarks(pools=lopsided, cap_w=2e6)
    hasty = dataclasses.replace(
        cage.known_classes["chat"], ttft_a_s=0.01, ttft_b_s_per_token=0.0, ttft_c_s_per_token2=0.0
    )
    assert "takes" in remarks(own_classes=(hasty,)) and "always be missed" in remarks(own_classes=(hasty,))


def test_the_command_line_validates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["validate", str(SITES / "cage.toml"), "edge"]) == 0
    assert capsys.readouterr().out.count("nothing to remark") == 2
    broken = tmp_path / "broken.toml"
    broken.write_text(
        (SITES / "cage.toml").read_text(encoding="utf-8").replace("gb300_nvl72", "gb300_nvl27"), encoding="utf-8"
    )
    assert main(["validate", str(broken)]) == 2
    message = capsys.readouterr().err
    assert "Did you mean 'gb300_nvl72'?" in message and "broken.toml" in message and "pools[0]" in message
    assert main(["validate", "ai_factory/Edge-v0"]) == 0
    assert main(["describe", "ai_factory/Custom-v0"]) == 2
    assert "has no site of its own; give the TOML file of yours" in capsys.readouterr().err
    assert main(["validate", "cage"]) == 2
    assert "A site of your own is the path of a TOML file." in capsys.readouterr().err
    assert main(["validate", str(tmp_path / "missing.toml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_describe_shows_the_day_and_what_each_class_alone_could_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(SITES / "cage.toml")]) == 0
    text = capsys.readouterr().out
    assert "alone, requests/s" in text and "what the cap can serve" in text and "mean demand of the day" in text


def test_describe_shows_the_parts_around_the_racks() -> None:
    edge = load_site("edge")
    site = dataclasses.replace(
        edge,
        battery=BatteryConfig(power_w=4e5, energy_wh=1e5),
        series=(("carbon", "synthetic"),),
        money=MoneyConfig(tariff=Tariff(0.5, 2.0)),
        reliability=ReliabilityConfig(),
    )
    lines = _parts(site)
    assert lines[0] == "battery: 0.400 MW, 0.100 MWh, 15.0 min at full power, round trip 87%"
    assert lines[1] == "varies with time: carbon (synthetic)"
    per_request = sum(
        edge.mix[cls.name] * (0.5 * cls.prompt.mean() + 2.0 * cls.output.mean()) / 1e6 for cls in served_classes(edge)
    )
    assert lines[2] == f"money: served requests pay {per_request * edge.demand_rps * 3600.0:,.0f} USD/h at mean demand"
    assert "faults a day among 16 racks, repairs of 4 h" in lines[3]
    assert _parts(edge) == []
    # The racks that train fail as well.
    block = TrainingConfig(rack="gb300_nvl72", racks=20)
    line = _parts(dataclasses.replace(site, training=block))[3]
    assert line.startswith(lines[3])
    assert line.endswith("; 0.68 a day among the 20 racks of the training block, each of which stops its job")
    down = draw_block_outages(
        np.random.default_rng(0), ReliabilityConfig(hardware_share=0.0), 1.0, 72 * 20, 1440 * 4000
    )
    assert down.sum() / 4000.0 == pytest.approx(0.68, rel=0.05)


def test_describe_says_what_binds(tmp_path: Path) -> None:
    cage = (SITES / "cage.toml").read_text(encoding="utf-8")
    assert "most the cap can serve" in describe(str(SITES / "cage.toml"))
    (tmp_path / "wide.toml").write_text(cage.replace("cap_w = 4.2e5", "cap_w = 1e6"), encoding="utf-8")
    text = describe(str(tmp_path / "wide.toml"))
    assert "most the racks can serve" in text and "of what the racks can serve" in text
    assert "the cap can serve" not in text


@pytest.mark.parametrize("arguments", [["describe", "edge"], ["validate", "edge", "cage.toml"]])
def test_a_closed_pipe_ends_the_command_quietly(arguments: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "ai_factory_gym",
        *(str(SITES / a) if a.endswith(".toml") else a for a in arguments),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_the_plot_of_a_day_is_to_scale() -> None:
    lines = plot_day(np.repeat([100.0, 50.0], 720), 75.0, height=4)
    top, bottom = lines[1], lines[4]
    # 105 is the top: 100 fills the rows up to the last, 50 two of four.
    assert top.count("█") + top.count("▇") + top.count("▆") == 24
    assert bottom.count("█") == 48
    assert sum("what the cap can serve" in line for line in lines) == 1


@pytest.mark.parametrize("seed", range(200))
def test_an_invalid_site_gives_one_clear_error(seed: int) -> None:
    key, text = random_sites.run_invalid(seed)
    assert key in text, f"{key}: {text or 'not noticed'}"
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore:.*moves demand between models")
def test_drawn_sites_run() -> None:
    ran = [seed for seed in range(16) if random_sites.run_valid(seed) == ""]
    assert len(ran) >= 4
    # Some of them serve two models.
    assert any(random_sites.propose(np.random.default_rng(seed))["class_models"] for seed in ran)


def test_pools_are_in_the_order_of_their_phases_however_they_are_given() -> None:
    site = load_site("edge")
    turned = dataclasses.replace(site, pools=site.pools[::-1])
    assert [pool.phase for pool in site.pools] == ["prefill", "prefill", "decode", "decode"]
    assert turned.pools == (*site.pools[1::-1], *site.pools[:1:-1])
