"""What a site earns and pays: every dollar of ``info`` follows from tokens, joules and the site's own table."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_factory_gym import AIFactoryEnv, ConfigError
from ai_factory_gym.engine.layout import Class, ClassSpec, Log, Site
from ai_factory_gym.factory import Factory
from ai_factory_gym.reward import REWARDS
from ai_factory_gym.sites import BatteryConfig, CacheConfig, SiteConfig, load_site
from ai_factory_gym.sites.money import MoneyConfig, Tariff, money_from_table
from ai_factory_gym.task import build_task
from ai_factory_gym.workload.classes import Session
from examples import agent_bill

EDGE = load_site("edge")
MONEY = MoneyConfig(
    tariff=Tariff(0.5, 2.0),
    classes=(("coding", Tariff(3.0, 15.0, budget_usd_per_day=50_000.0)),),
    sla_penalty_share=1.5,
    demand_usd_per_kw_month=12.0,
    rack_usd_per_hour=(("gb300_nvl72", 190.0),),
)
EVENING = {"start_time_s": 18 * 3600.0, "horizon_s": 1800.0, "warmup_s": 300.0, "lambda_tokens_per_joule": 3.0}


def make(money: MoneyConfig | None = MONEY, site: SiteConfig = EDGE, **settings: Any) -> AIFactoryEnv:
    """Return the Edge site in the evening, with money."""
    return AIFactoryEnv(site=dataclasses.replace(site, money=money), **{**EVENING, **settings})


def play(env: AIFactoryEnv, seed: int = 1, **values: Any) -> list[dict[str, Any]]:
    """Return the infos of a whole episode at full clock."""
    env.reset(seed=seed)
    action = env.action_layout.encode(**{"clock": 1.0, "racks": env.action_layout.racks, **values})
    infos, truncated = [], False
    while not truncated:
        _, _, _, truncated, info = env.step(action)
        infos.append(info)
    return infos


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_revenue_is_what_served_requests_pay(resolution: str) -> None:
    task = build_task(
        site=dataclasses.replace(EDGE, money=MONEY),
        resolution=resolution,
        **{**EVENING, "horizon_s": 600.0},
        demand_scale=0.02 if resolution == "request" else 0.7,
        drain=True,
    )
    factory = Factory(task, log_lines=200_000)
    factory.begin([0], [np.random.default_rng(1)], [None])
    outcome = factory.new_outcome()
    while not outcome.truncated[0]:
        factory.step(np.array([0]), np.zeros((1, factory.action_layout.size)), outcome)
    info = factory.info(outcome, 0)
    log = factory.engine.state.log[0, : int(factory.engine.state.site_int[0, 4])]
    served = log[~np.isnan(log[:, Log.TTFT_S])]
    assert len(served) > 100
    for index, cls in enumerate(task.classes):
        mine = served[served[:, Log.CLASS] == index]
        tariff = MONEY.of(cls.name)
        paid = mine[:, Log.COUNT] @ (
            tariff.input_usd_per_mtok * mine[:, Log.PROMPT] + tariff.output_usd_per_mtok * mine[:, Log.OUTPUT]
        )
        assert info[f"class/{cls.name}/revenue_usd"] == pytest.approx(paid / 1e6, rel=1e-9)
        for kind, column in (("prompt", Log.PROMPT), ("output", Log.OUTPUT)):
            tokens = mine[:, Log.COUNT] @ mine[:, column]
            assert info[f"class/{cls.name}/paid_{kind}_tokens"] == pytest.approx(tokens, rel=1e-9)
        if resolution == "request":
            # The energy of each answer at the reference point, by which costs are split.
            spec = factory.params.cls[index]
            joules = spec[ClassSpec.PREFILL_J_PER_TOKEN] * mine[:, Log.PROMPT]
            joules += spec[ClassSpec.PREFILL_J_PER_TOKEN2] * mine[:, Log.PROMPT] ** 2
            joules += spec[ClassSpec.DECODE_J_PER_TOKEN] * mine[:, Log.OUTPUT]
            assert factory.engine.state.cls[0, index, Class.SERVED_J] == pytest.approx(joules.sum(), rel=1e-9)


def test_the_books_balance() -> None:
    battery = BatteryConfig(power_w=3e5, energy_wh=1e5)
    env = make(site=dataclasses.replace(EDGE, battery=battery), demand_scale=1.2, scenario="diurnal+price_spike")
    infos = play(env)
    last = infos[-1]
    counters = env.factory.engine.state.cls[0]
    assert last["revenue_usd"] == pytest.approx(
        sum(last[f"class/{cls.name}/revenue_usd"] for cls in env.classes), rel=1e-12
    )
    assert last["sla_penalty_usd"] == pytest.approx(counters[:, Class.PENALTY_USD].sum(), rel=1e-12)
    assert last["sla_penalty_usd"] > 0.0 and last["battery_wear_usd"] > 0.0
    racks = sum(pool.racks for pool in EDGE.pools if pool.rack == "gb300_nvl72")
    assert last["capital_usd"] == pytest.approx(190.0 * racks * 0.5, rel=1e-9)
    costs = last["energy_cost_usd"] + last["battery_wear_usd"] + last["demand_charge_usd"] + last["capital_usd"]
    assert last["profit_usd"] == pytest.approx(last["revenue_usd"] - last["sla_penalty_usd"] - costs, rel=1e-9)
    assert last["usd_per_mtok"] == pytest.approx(1e6 * costs / last["good_tokens"], rel=1e-9)


def test_demand_is_charged_by_the_highest_quarter_of_an_hour() -> None:
    infos = play(make())
    joules = np.array([0.0, *(info["energy_j"] for info in infos)])
    quarters = np.diff(joules[::15]) / 900.0
    assert len(quarters) == 2
    assert infos[-1]["peak_quarter_hour_w"] == pytest.approx(quarters.max(), rel=1e-9)
    assert infos[13]["peak_quarter_hour_w"] == 0.0
    half_hour = 1800.0 / (30.0 * 86400.0)
    assert infos[-1]["demand_charge_usd"] == pytest.approx(12.0 * quarters.max() / 1e3 * half_hour, rel=1e-9)


def test_budgets_are_metered_and_warned_of() -> None:
    infos = play(make())
    used = [info["class/coding/budget_used"] for info in infos]
    spent = infos[-1]["class/coding/revenue_usd"]
    assert used[-1] == pytest.approx(spent / (50_000.0 * 1800.0 / 86400.0), rel=1e-9)
    assert infos[-1]["class/chat/budget_used"] == 0.0
    assert infos[-1]["budget_alerts"] == float(used[-1] > 0.8)


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_a_budget_that_is_a_cap_ends_there(resolution: str) -> None:
    scale = 0.01 if resolution == "request" else 1.0
    settings = {"resolution": resolution, "demand_scale": scale, "scenario": "steady", "horizon_s": 900.0}
    plain = play(make(MoneyConfig(Tariff(0.5, 2.0)), **settings))[-1]
    budget = 0.5 * plain["class/chat/revenue_usd"]
    money = MoneyConfig(Tariff(0.5, 2.0), (("chat", Tariff(0.5, 2.0, budget, budget_cap=True)),))
    infos = play(make(money, **settings))
    last = infos[-1]
    # Nothing differs until it is spent; then nobody comes in, and what is being served ends.
    spent = [info["class/chat/over_budget"] > 0.0 for info in infos]
    first = spent.index(True)
    assert 2 < first < 12 and all(spent[first:])
    arrived = [info["class/chat/arrived"] for info in infos]
    assert arrived[first] < arrived[first + 1] + 1e-9 and arrived[first + 1] == arrived[-1]
    assert budget <= last["class/chat/revenue_usd"] < 1.5 * budget
    assert last["class/chat/arrived"] + last["class/chat/over_budget"] == pytest.approx(plain["class/chat/arrived"])
    assert last["class/chat/missed"] <= plain["class/chat/missed"] + 1.0
    assert last["requests_rejected"] == plain["requests_rejected"] == 0.0
    assert last["class/coding/over_budget"] == 0.0 and last["class/coding/arrived"] == plain["class/coding/arrived"]
    assert last["budget_alerts"] == 1.0


def test_a_budget_that_is_a_cap_needs_one() -> None:
    with pytest.raises(ConfigError, match="budget_cap: True is not allowed without a budget"):
        Tariff(budget_cap=True)
    with pytest.raises(ConfigError, match="money.budget_cap"):
        money_from_table("money", {"budget_usd_per_day": 1.0, "budget_cap": 1.0}, ["chat"], [])
    # A class with prices of its own has a budget of its own, or none.
    table = {"budget_usd_per_day": 9.0, "budget_cap": True, "classes": {"chat": {"input_usd_per_mtok": 1.0}}}
    money = money_from_table("money", table, ["chat"], [])
    assert money.of("chat") == Tariff(1.0) and money.of("coding").budget_cap


def test_profit_counts_dollars() -> None:
    env = make(reward="profit")
    env.reset(seed=1)
    before: dict[str, float] = {"revenue_usd": 0.0, "sla_penalty_usd": 0.0, "energy_cost_usd": 0.0}
    action = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks)
    scales = []
    for _ in range(20):
        _, reward, _, _, info = env.step(action)
        step = {key: info[key] - value for key, value in before.items()}
        before = {key: info[key] for key in before}
        dollars = step["revenue_usd"] - step["sla_penalty_usd"] - step["energy_cost_usd"]
        own = sum(info[f"reward_terms/{name}"] for name in ("good_tokens", "energy", "missed"))
        assert reward == pytest.approx(sum(v for k, v in info.items() if k.startswith("reward_terms/")), rel=1e-9)
        scales.append(dollars / own)
    assert np.allclose(scales, scales[0], rtol=1e-6)
    # A step's nominal revenue: what the mean demand pays.
    tariffs = [MONEY.of(cls.name) for cls in env.classes]
    usd_per_s = sum(
        EDGE.demand_rps
        * EDGE.mix[cls.name]
        * (tariff.input_usd_per_mtok * cls.prompt.mean() + tariff.output_usd_per_mtok * cls.output.mean())
        / 1e6
        for cls, tariff in zip(env.classes, tariffs, strict=True)
    )
    assert scales[0] == pytest.approx(60.0 * usd_per_s, rel=0.01)


def test_carbon_is_tokens_per_watt_where_intensity_does_not_vary() -> None:
    plain, carbon = (play(make(None, reward=name)) for name in ("tokens_per_watt", "carbon"))
    for mine, theirs in zip(plain, carbon, strict=True):
        assert theirs["reward_terms/energy"] == pytest.approx(mine["reward_terms/energy"], rel=1e-9)


def test_money_changes_no_trajectory() -> None:
    plain, paid = play(make(None)), play(make())
    for mine, theirs in zip(plain, paid, strict=True):
        assert {key: theirs[key] for key in mine} == mine


def test_late_requests_pay_and_cost_their_penalty() -> None:
    env = make(levers=("clock", "active_racks", "admission"))
    env.reset(seed=1)
    nobody = env.action_layout.encode(clock=1.0, racks=env.action_layout.racks, admitted=0.0)
    info = env.step(nobody)[4]
    # Nobody is served; what they would have paid, and half as much again, is the penalty.
    assert info["sla_penalty_usd"] > 0.0
    state = env.factory.engine.state
    assert state.site[0, Site.STEP_PENALTY_USD] == pytest.approx(info["sla_penalty_usd"])


def test_mistakes_are_named() -> None:
    names, racks = ["chat", "coding"], ["gb300_nvl72"]
    for table, message in (
        (3, "money: 3 is not allowed; must be a table"),
        ({"input_usd": 1.0}, "money: unknown key 'input_usd'"),
        ({"input_usd_per_mtok": -1.0}, "money.input_usd_per_mtok: -1.0 is not allowed"),
        ({"sla_penalty_share": "much"}, "money.sla_penalty_share: 'much' is not allowed"),
        ({"classes": {"chats": {}}}, "money: classes: unknown value 'chats'.*Did you mean 'chat'"),
        ({"classes": {"chat": 3}}, "money: classes.chat: 3 is not allowed; must be a table"),
        ({"classes": {"chat": {"output_usd_per_mtok": float("nan")}}}, "money: classes.chat.output_usd_per_mtok: nan"),
        ({"rack_usd_per_hour": {"gb200_nvl72": 3.0}}, "rack_usd_per_hour: unknown value 'gb200_nvl72'"),
    ):
        with pytest.raises(ConfigError, match=message):
            money_from_table("money", table, names, racks)
    with pytest.raises(ConfigError, match="reward: 'profit' is not possible: site 'Edge' has no table"):
        make(None, reward="profit")
    with pytest.raises(ConfigError, match="reward: unknown value 'profits'.*Did you mean 'profit'"):
        make(reward="profits")
    assert set(REWARDS) == {"tokens_per_watt", "goodput", "carbon", "profit"}


def test_the_bills_of_the_documentation_add_up() -> None:
    page = (Path(__file__).parents[1] / "docs" / "grid.md").read_text(encoding="utf-8")
    agents = agent_bill.Usage(5 * 10.0, 100, 100)
    assert agents.output_tokens_per_s == 5_000.0 and agents.usd_per_hour(25.0) == pytest.approx(450.0)
    assert "5,000 tokens/s" in page and "450 USD/h" in page
    service = agent_bill.Usage(10_000.0 / 86_400.0, 800, 50)
    assert 24.0 * service.usd_per_hour(25.0) == pytest.approx(10_000 * 50 / 1e6 * 25.0)
    for usage, begin in ((agents, "--agents 5"), (service, "--queries-per-day 10000")):
        table = page[page.index(begin) :].split("```")[0]
        rows = re.findall(r"^(\w+) +fp[48] +([\d.]+) +([\d,]+) +([\d,]+) ", table, re.MULTILINE)
        assert len(rows) >= 5
        for rack, joules, kwh, usd in rows:
            tokens = usage.output_tokens_per_s * 365 * 86_400.0
            found_kwh, found_usd = (float(text.replace(",", "")) for text in (kwh, usd))
            # Joules are shown to three digits behind the point, kWh and dollars as whole numbers.
            assert found_kwh == pytest.approx(float(joules) * tokens / 3.6e6, rel=6e-3, abs=1.0), rack
            assert found_usd == pytest.approx(found_kwh * 0.051, abs=0.6), rack


@pytest.mark.parametrize("resolution", ["cohort", "request"])
def test_cost_per_task_and_per_agent_hour(resolution: str) -> None:
    # A user's own class with sessions beside a shipped one; half of what the agent asks is found in a cache.
    agent = dataclasses.replace(
        EDGE.known_classes["coding"],
        name="my_agent",
        deferrable=False,
        session=Session(reuse_share=0.6, think_s=20.0),
        requests_per_task=10.0,
    )
    pools = tuple(
        dataclasses.replace(pool, cache=CacheConfig(hbm_gb=500.0)) if pool.phase == "prefill" else pool
        for pool in EDGE.pools
    )
    site = dataclasses.replace(
        EDGE, pools=pools, own_classes=(agent,), mix={"chat": 0.9, "my_agent": 0.1}, demand_rps=800.0
    )
    money = MoneyConfig(Tariff(0.5, 2.0), rack_usd_per_hour=(("gb300_nvl72", 190.0),), demand_usd_per_kw_month=12.0)
    scale = 0.01 if resolution == "request" else 1.0
    env = make(money, site, resolution=resolution, scenario="steady", demand_scale=scale, horizon_s=600.0, drain=True)
    _, info = env.reset(seed=1)
    new = ("usd_per_task", "usd_per_agent_hour", "cost_usd")
    assert [info[f"class/my_agent/{key}"] for key in new] == [0.0] * 3
    assert "class/chat/usd_per_task" not in info and info["class/chat/cost_usd"] == 0.0
    info = play(env)[-1]
    state, params = env.factory.engine.state, env.factory.params
    costs = info["energy_cost_usd"] + info["demand_charge_usd"] + info["capital_usd"]
    assert costs * 1e6 / info["good_tokens"] == pytest.approx(info["usd_per_mtok"], rel=1e-9)
    assert info["class/chat/cost_usd"] + info["class/my_agent/cost_usd"] == pytest.approx(costs, rel=1e-9)
    assert info["class/my_agent/tasks_completed"] > 0.0 < info["class/my_agent/agent_hours"]
    mine = info["class/my_agent/cost_usd"]
    assert info["class/my_agent/usd_per_task"] == pytest.approx(mine / info["class/my_agent/tasks_completed"])
    assert info["class/my_agent/usd_per_agent_hour"] == pytest.approx(mine / info["class/my_agent/agent_hours"])
    # By hand: joules of what was answered, at the reference point, without what the cache had.
    joules = state.cls[0, :, Class.SERVED_J]
    assert mine / costs == pytest.approx(joules[1] / joules.sum())
    for index, cls in enumerate(env.classes):
        prompt, output = (info[f"class/{cls.name}/paid_{kind}_tokens"] for kind in ("prompt", "output"))
        spec = params.cls[index]
        assert info[f"class/{cls.name}/revenue_usd"] == pytest.approx((0.5 * prompt + 2.0 * output) / 1e6, rel=1e-9)
        if cls.name == "chat":
            # Its prompts are short: what goes with their square is little.
            linear = spec[ClassSpec.PREFILL_J_PER_TOKEN] * prompt + spec[ClassSpec.DECODE_J_PER_TOKEN] * output
            assert linear < joules[index] < 1.1 * linear
    assert 0.0 < info["cached_tokens"] < info["prompt_tokens"]
    if resolution == "cohort":
        bare = dataclasses.replace(site, pools=EDGE.pools)
        without = play(make(money, bare, scenario="steady", horizon_s=600.0, drain=True))[-1]
        odds = [last["class/my_agent/cost_usd"] / last["class/chat/cost_usd"] for last in (info, without)]
        assert odds[1] > 1.1 * odds[0]


def test_what_nobody_answered_costs_nothing_per_task() -> None:
    chat = EDGE.known_classes["chat"]
    agent = dataclasses.replace(chat, name="idle_agent", session=Session(0.5, 20.0), requests_per_task=10.0)
    site = dataclasses.replace(EDGE, own_classes=(agent,), mix={"idle_agent": 1.0}, demand_rps=800.0)
    info = play(make(site=site, money=MoneyConfig(), scenario="steady", demand_scale=0.0, horizon_s=120.0))[-1]
    for key in ("usd_per_task", "usd_per_agent_hour", "cost_usd", "paid_prompt_tokens"):
        assert info[f"class/idle_agent/{key}"] == 0.0
    # Energy was paid for all the same.
    assert info["energy_cost_usd"] > 0.0 and info["usd_per_mtok"] == 0.0
