"""Settings that are hardly meant are remarked on, with figures; shipped sites and examples have none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ai_factory_gym.params import build_params, resolution, served_classes
from ai_factory_gym.remarks import settings
from ai_factory_gym.sites import BatteryConfig, CacheConfig, PoolConfig, SiteConfig, load_site, site_names
from ai_factory_gym.sites.money import MoneyConfig, Tariff
from ai_factory_gym.sites.reliability import ReliabilityConfig

SITES = Path(__file__).parents[1] / "examples" / "sites"
EXAMPLES = [path for path in sorted(SITES.glob("*.toml")) if "cap_w" in path.read_text(encoding="utf-8")]
EDGE = load_site("edge")
CHAT = EDGE.known_classes["chat"]


def said(site: SiteConfig = EDGE, **changes: object) -> list[str]:
    """Return the remarks on a site with some changes."""
    changed = dataclasses.replace(site, **changes)  # type: ignore[arg-type]
    classes = served_classes(changed)
    params = build_params(changed, classes, resolution("coarse"), control_interval_s=60.0)
    return list(settings(changed, classes, params))


def test_shipped_sites_have_none() -> None:
    for name in (*site_names(), *EXAMPLES):
        assert said(load_site(name)) == [], name


def chat(**changes: object) -> dict[str, object]:
    """Return changes that give the Edge site another class of chats."""
    return {"own_classes": (dataclasses.replace(CHAT, **changes),)}  # type: ignore[arg-type]


def pools(index: int, **changes: object) -> dict[str, object]:
    """Return changes that give the Edge site another pool."""
    every = list(EDGE.pools)
    every[index] = dataclasses.replace(every[index], **changes)  # type: ignore[arg-type]
    return {"pools": tuple(every)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (chat(tpot_s=50.0), ("mix.chat: 50 s a token", "binds nothing")),
        (chat(patience_s=0.0), ("mix.chat: patience_s is 0", "turned away on arrival")),
        ({"battery": BatteryConfig(power_w=1e6, energy_wh=1000.0)}, ("it lasts 3.4 s (1,000 Wh at 1,000 kW)",)),
        ({"money": MoneyConfig()}, ("money: the table prices nothing",)),
        (pools(0, cache=CacheConfig(0.0, 1e6, 100.0)), ("cache.host_gb: 1,000,000 GB a rack",)),
        ({"group_edges": (4096.0, 1e7)}, ("group_edges: 1e+07 separates nothing",)),
        (pools(3, rack_limit_w=9e5), ("rack_limit_w: 900.0 kW is not below", "never binds")),
        ({"max_context": 3000}, ("max_context: 3,000 tokens cut the prompts of",)),
        (
            {"reliability": ReliabilityConfig(gpu_group_share=0.9), **pools(3, dp=72)},
            ("reliability.gpu_group_share: a rack of vera_rubin_nvl144/decode", "take the rack"),
        ),
    ],
)
def test_what_is_hardly_meant_is_said(changes: dict[str, object], words: tuple[str, ...]) -> None:
    found = said(**changes)
    assert found
    for word in words:
        assert any(word in text for text in found), found
    if "max_context" not in changes:
        assert len(found) == 1, found


def test_what_is_meant_is_not() -> None:
    assert said(battery=BatteryConfig(power_w=1e6, energy_wh=1e6)) == []
    assert said(money=MoneyConfig(Tariff(0.5))) == []
    (remark,) = said(money=MoneyConfig(rack_usd_per_hour=(("gb300_nvl72", 1.0),)))
    assert remark.startswith("money: no token has a price")
    (remark,) = said(electricity_usd_per_mwh=0.08)
    assert "0.008 cents a kWh" in remark
    (remark,) = said(carbon_g_per_kwh=0.439)
    assert remark.startswith("carbon_g_per_kwh: 0.439 g/kWh")
    assert said(electricity_usd_per_mwh=0.0, carbon_g_per_kwh=0.0) == []
    assert said(**pools(3, rack_limit_w=1e5)) == []
    assert said(reliability=ReliabilityConfig(gpu_group_share=0.9)) == []
    # Work that may be held back has neither patience nor a pace.
    batch = dataclasses.replace(EDGE.known_classes["batch"], patience_s=0.0, tpot_s=50.0)
    assert said(own_classes=(batch,)) == []


def test_both_halves_of_shared_racks_have_one_limit() -> None:
    site = SiteConfig(
        "Both",
        1e6,
        "deepseek-r1",
        (PoolConfig("gb300_nvl72", "both", 3, dp=8, rack_limit_w=5e5),),
        100.0,
        {"chat": 1.0},
    )
    assert sum("never binds" in text for text in said(site)) == 1
