from __future__ import annotations

import csv
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.evaluation import (
    EVALUATION_SEEDS,
    TRAINING_SEEDS,
    TUNING_SEEDS,
    EvaluationResult,
    cli,
    comparison_table,
    evaluate,
    first_seeds,
    rank,
    read_csv,
    result,
    versus_table,
    write_csv,
)
from tests import fake_factory
from tests.fake_factory import TASK, Jitter, Throttle, make_full_throttle

ROOT = Path(__file__).resolve().parent.parent


def run(policy=make_full_throttle, **changes):
    return evaluate(policy, TASK, **{"seeds": [2_000_000, 2_000_001, 2_000_002], **changes})


def test_rows_carry_totals_of_the_horizon_and_what_derives_from_them():
    row = run(seeds=[7]).episodes[0]
    assert [row[key] for key in ("task", "scenario", "resolution", "trace")] == [
        "Fake/Factory-v0",
        "diurnal",
        "cohort",
        "",
    ]
    assert (row["policy"], row["seed"]) == ("full", 7)
    assert row["steps"] == 13
    assert row["horizon_s"] == 600.0
    assert row["it_energy_j"] == pytest.approx(800.0 * 600.0)
    assert row["energy_j"] == pytest.approx(1.2 * 800.0 * 600.0)
    assert row["facility_power_mean_w"] == pytest.approx(960.0)
    assert row["facility_power_max_w"] == pytest.approx(960.0)
    assert row["cap_energy_j"] == pytest.approx(1000.0 * 600.0)
    assert row["tokens_per_joule_facility"] == pytest.approx(row["good_tokens"] / row["energy_j"])
    assert row["tokens_per_joule_it"] == pytest.approx(row["good_tokens"] / row["it_energy_j"])
    assert row["tokens_per_joule_cap"] == pytest.approx(row["good_tokens"] / row["cap_energy_j"])
    assert row["cost"] == pytest.approx(13 * 0.5)
    assert row["reward_terms/energy"] == pytest.approx(-13 * 0.096)
    assert row["return"] == pytest.approx(row["good_tokens"] / 1e5 - 13 * 0.096)


def test_drain_decides_every_scored_request():
    row = run(seeds=[7]).episodes[0]
    assert row["requests_arrived"] == row["requests_met_slo"] + row["requests_missed_slo"]
    assert row["class/chat/attainment"] == 1.0
    assert row["class/chat/attainment_target"] == 0.95
    assert "requests_in_flight" not in row
    assert "pue" not in row


def test_rows_hold_plain_scalars_only():
    for value in run(seeds=[7]).episodes[0].values():
        assert type(value) in (str, int, float, bool)


def test_arguments_reach_the_environment():
    seen = {}

    def make(env):
        seen.update(vars(env.unwrapped))
        return Throttle()

    run(make, seeds=[1], scenario="burst", resolution="request", trace=Path("a/b.csv"), horizon_s=120.0)
    assert (seen["scenario"], seen["resolution"], seen["trace"]) == ("burst", "request", str(Path("a/b.csv")))
    assert (seen["horizon_s"], seen["drain"]) == (120.0, True)


def test_trace_is_recorded_by_file_name():
    assert run(trace="/somewhere/else/day.csv.gz", seeds=[1]).episodes[0]["trace"] == "day.csv.gz"


def test_feasible_and_each_way_of_not_being_so():
    assert run().summary["feasible"]
    cases = {
        "chat attainment": run(Throttle(-1.0)),
        "energy above cap": run(env_kwargs={"over_cap_w": 0.11}),
        "brake": run(env_kwargs={"brake_s": 0.13}),
        "terminated": run(env_kwargs={"breaker": True}),
    }
    for condition, found in cases.items():
        assert found.summary["violations"] == {condition: 3}
        assert not found.summary["feasible"]
        assert found.summary["feasible_share"] == 0.0
        assert all(row["infeasible_reason"].startswith(condition) for row in found.episodes)
    # Just inside both limits: 1e-4 of the cap's energy, 0.2 % of the horizon.
    assert run(env_kwargs={"over_cap_w": 0.09, "brake_s": 0.11}).summary["feasible"]


def test_one_infeasible_class_is_enough_however_small():
    found = run(Throttle(-1.0))
    row = found.episodes[0]
    assert row["class/batch/attainment"] == 1.0
    assert row["class/chat/attainment"] == pytest.approx(0.9, abs=0.001)
    assert found.summary["class_attainment"]["batch"]["feasible_share"] == 1.0
    assert found.summary["class_attainment"]["chat"]["feasible_share"] == 0.0


def test_policy_state_and_resets_follow_episodes():
    policy = Throttle()
    run(policy)
    assert policy.resets == 3
    assert policy.starts == [step == 0 for _ in range(3) for step in range(13)]


def test_a_class_is_made_from_the_environment_and_named_after_itself():
    assert run(Jitter, seeds=[1]).episodes[0]["policy"] == "Jitter"
    assert run(Jitter, seeds=[1], policy_name="noise").episodes[0]["policy"] == "noise"


def test_seeds_decide_everything():
    first, second = run(Jitter), run(Jitter)
    assert first.episodes == second.episodes
    assert run(Jitter, seeds=[2_000_001]).episodes[0] == first.episodes[1]
    assert first.episodes[0]["good_tokens"] != first.episodes[1]["good_tokens"]


def test_policies_meet_the_same_world():
    slow, fast = run(Throttle(-1.0)), run(Throttle(1.0))
    assert [row["requests_arrived"] for row in slow.episodes] == [row["requests_arrived"] for row in fast.episodes]


def test_processes_change_nothing(tmp_path):
    alone = run(Jitter)
    together = run(Jitter, n_jobs=2, csv_path=tmp_path / "rows.csv")
    assert together.episodes == alone.episodes
    assert together.summary == alone.summary
    assert read_csv(tmp_path / "rows.csv")[0].episodes == alone.episodes


def test_errors_of_other_processes_arrive_as_they_are():
    with pytest.raises(ZeroDivisionError, match="the policy's own error"):
        run(fake_factory.fail_in_worker, n_jobs=2)


def test_what_cannot_be_pickled_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="must be picklable: use a function or class of a module, or n_jobs=1"):
        run(lambda env: Throttle(), n_jobs=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: empty"),
        ({"seeds": [1, 1]}, "1 occurs twice"),
        ({"seeds": [-1]}, "-1 is not allowed"),
        ({"seeds": [1.5]}, "1.5 is not allowed"),
        ({"seeds": 0}, r"0 is not allowed; must be an integer in \[1, 1000000\]"),
        ({"n_jobs": 0}, "n_jobs: 0 is not allowed"),
        ({"scenario": "diurnl"}, "scenario: unknown value 'diurnl'.*Did you mean 'diurnal'"),
        ({"env_kwargs": {"drain": False}}, "'drain' is not allowed here; evaluation always drains"),
        ({"env_kwargs": {"scenario": "burst"}}, r"give it to evaluate\(scenario=...\)"),
        ({"env_kwargs": 5}, "env_kwargs: 5 is not allowed; must be a dict"),
        ({"scenario": 5}, "scenario: 5 is not allowed"),
        ({"trace": 5}, "trace: 5 is not allowed"),
        ({"seeds": 1.5}, "seeds: 1.5 is not allowed"),
        ({"policy": 3}, "policy: 3 is not allowed; must have predict"),
        ({"policy": id}, "which has no predict method"),
    ],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_bad_input_is_refused_before_any_episode(changes, message, n_jobs):
    with pytest.raises(ConfigError, match=message):
        run(**{"n_jobs": n_jobs, **changes})


def test_unknown_task_is_refused_with_the_nearest_name():
    gymnasium.register("ai_factory/Almost-v0", entry_point=fake_factory.FakeFactory)
    try:
        with pytest.raises(ConfigError, match="task: unknown value.*Did you mean 'ai_factory/Almost-v0'"):
            evaluate(Throttle(), "ai_factory/Allmost-v0", seeds=1)
    finally:
        del gymnasium.registry["ai_factory/Almost-v0"]


def test_other_environments_are_refused():
    with pytest.raises(TypeError):
        evaluate(Throttle(), "CartPole-v1", seeds=1)


def test_seed_ranges_are_disjoint_and_a_number_means_evaluation_seeds():
    assert TRAINING_SEEDS.stop <= TUNING_SEEDS.start
    assert TUNING_SEEDS.stop <= EVALUATION_SEEDS.start
    assert (TUNING_SEEDS.start, EVALUATION_SEEDS.start) == (1_000_000, 2_000_000)
    assert first_seeds(2) == [2_000_000, 2_000_001]
    assert run(seeds=2).summary["seeds"] == [2_000_000, 2_000_001]
    assert run(seeds=[np.int64(5)]).summary["seed_range"] == "training"
    assert run(seeds=[5, 2_000_000]).summary["seed_range"] == "mixed"


def test_summary_pools_requests_and_is_plain_data():
    found = run(Jitter)
    summary = found.summary
    met = sum(row["requests_met_slo"] for row in found.episodes)
    assert summary["sla_attainment"] == met / sum(row["requests_arrived"] for row in found.episodes)
    chat = summary["class_attainment"]["chat"]
    assert chat["worst"] == min(row["class/chat/attainment"] for row in found.episodes)
    assert chat["target"] == 0.95
    tokens = summary["metrics"]["tokens_per_joule_facility"]
    values = [row["tokens_per_joule_facility"] for row in found.episodes]
    assert tokens["mean"] == pytest.approx(np.mean(values))
    assert tokens["minimum"] <= tokens["low"] <= tokens["iqm"] <= tokens["high"] <= tokens["maximum"]
    assert json.loads(json.dumps(summary)) == summary


def test_csv_round_trip_keeps_every_digit_and_separates_policies(tmp_path):
    results = [run(Jitter), run(Throttle(1.0)), run(Throttle(1.0), scenario="burst")]
    path = tmp_path / "new" / "rows.csv"
    write_csv([row for one in results for row in one.episodes], path)
    assert [one.episodes for one in read_csv(path)] == [one.episodes for one in results]
    assert [one.summary for one in read_csv(path)] == [one.summary for one in results]
    assert os.listdir(path.parent) == ["rows.csv"]


def test_csv_never_overwrites(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists; results are never overwritten"):
        run(csv_path=path)
    # Also not when the name is taken between the check and the end.
    rows = run(seeds=[1]).episodes
    monkeypatch.setattr(result, "check_new_file", lambda path: None)
    with pytest.raises(FileExistsError):
        write_csv(rows, path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_csv_is_whole_or_absent(tmp_path, monkeypatch):
    rows = run(seeds=[1]).episodes

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(csv.DictWriter, "writerows", fail)
    with pytest.raises(OSError, match="disk full"):
        write_csv(rows, tmp_path / "rows.csv")
    assert os.listdir(tmp_path) == []


def test_csv_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a table of episodes"):
        read_csv(tmp_path / "x.csv")


def test_a_summary_is_of_one_policy_in_one_setting():
    rows = run(seeds=[1]).episodes + run(Jitter, seeds=[1]).episodes
    with pytest.raises(ConfigError, match="mixes Jitter, full"):
        EvaluationResult(rows)
    with pytest.raises(ConfigError, match="empty"):
        EvaluationResult([])


def test_only_feasible_policies_are_ranked():
    starved = run(Throttle(-1.0, "starved"))
    half, full = run(Throttle(0.0, "half")), run(Throttle(1.0, "full"))
    # What makes feasibility necessary: starving a class is worth more tokens per joule than serving it.
    assert (
        starved.summary["metrics"]["tokens_per_joule_facility"]["iqm"]
        > full.summary["metrics"]["tokens_per_joule_facility"]["iqm"]
    )
    ordered = [(place, one.summary["policy"]) for place, one in rank([starved, full, half])]
    assert ordered == [(1, "half"), (2, "full"), (None, "starved")]


def test_table_shows_ranks_marks_and_reasons():
    results = [run(Throttle(-1.0, "starved")), run(Throttle(1.0, "full")), run(Throttle(1.0, "full"), scenario="burst")]
    text = comparison_table(results)
    lines = text.splitlines()
    assert lines[0] == "Fake/Factory-v0, diurnal, cohort resolution, 3 evaluation seeds from 2000000"
    assert lines[1].split()[:3] == ["rank", "policy", "tokens/J"]
    assert lines[3].split()[:2] == ["1", "full"]
    assert lines[4].split()[:3] == ["-", "starved", "(infeasible)"]
    assert "starved is infeasible; of 3 episodes: chat attainment in 3." in text
    assert "hypothetical racks, which nobody sells: rubin_cpx_sidecar" in text
    assert "Fake/Factory-v0, burst" in text
    markdown = comparison_table(results, markdown=True)
    assert markdown.startswith("### Fake/Factory-v0, diurnal")
    assert "| rank | policy" in markdown


def test_versus_table_pairs_by_seed():
    text = versus_table([run(Throttle(1.0, "full")), run(Throttle(0.0, "half"))], "full")
    assert "half" in text
    assert "100% of seeds" in text
    with pytest.raises(ConfigError, match="versus: unknown value 'ful'.*Did you mean 'full'"):
        versus_table([run(Throttle(1.0, "full"))], "ful")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda: [run(seeds=[1]), run(Jitter, seeds=[2])], "different seeds"),
        (lambda: [run(seeds=[1]), run(seeds=[1])], "two policies are named full"),
        (lambda: [], "results: empty"),
    ],
)
def test_tables_of_unlike_things_are_refused(results, message):
    with pytest.raises(ConfigError, match=message):
        comparison_table(results())


def fake_resolver(name, task):
    assert task == TASK
    known = {"full": 1.0, "half": 0.0, "starved": -1.0}
    chosen = known if name == "rules" else {name: known[name]}
    return {one: functools.partial(named_throttle, throttle) for one, throttle in chosen.items()}


def named_throttle(action, env):
    return Throttle(action)


def test_command_line_prints_tables_and_writes_one_csv(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    arguments = ["--task", TASK, "--scenario", "diurnal", "burst", "--seeds", "2", "--csv", str(path)]
    assert cli.main(fake_resolver, [*arguments, "--versus", "full", "--show-violations"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rank  policy") == 2
    assert "12 episodes written to" in printed
    assert "burst starved 2000001: chat attainment" in printed
    assert [one.summary["policy"] for one in read_csv(path)] == ["full", "half", "starved"] * 2
    assert cli.main(fake_resolver, arguments) == 2
    assert "results are never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--versus", "ppo"], "versus: 'ppo' is not among the policies compared: full, half, starved."),
        (["--env", "over_cap_w"], "env: 'over_cap_w' is not allowed; write KEY=VALUE"),
        (["--env", "brake_s=1", "brake_s=2"], "env: brake_s is given twice."),
        (["--env", "levers=[clock]"], "env: levers: '[clock]' is not JSON; write names in double quotes"),
        (["--seeds", "0"], "seeds: 0 is not allowed"),
        (["--scenario", "x"], "scenario: unknown value 'x'; allowed: burst, diurnal."),
    ],
)
def test_command_line_refuses_bad_input_in_one_line(arguments, message, capsys):
    assert cli.main(fake_resolver, ["--task", TASK, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_command_line_passes_environment_arguments_on():
    assert cli.parse_env(["rate_scale=20", "trace_class=chat", 'levers=["clock"]']) == {
        "rate_scale": 20,
        "trace_class": "chat",
        "levers": ["clock"],
    }


def test_importing_the_evaluation_imports_no_learner_and_no_rules():
    code = (
        "import sys, ai_factory_gym.evaluation, ai_factory_gym.evaluation.cli;"
        "heavy = {'torch', 'stable_baselines3', 'scipy', 'matplotlib', 'tyro', 'tqdm', 'ray',"
        " 'ai_factory_baselines', 'ai_factory_agents'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_progress_is_silent_without_a_terminal(capfd):
    run(seeds=[1])
    assert capfd.readouterr().err == ""


def test_infinite_or_missing_values_never_count_as_feasible():
    row = dict(run(seeds=[1]).episodes[0])
    for column in ("class/chat/attainment", "cap_violation_share", "brake_share"):
        assert result.violations({**row, column: math.nan})


def test_the_script_finds_rules_agents_and_runs(monkeypatch, tmp_path):
    import ai_factory_agents
    import ai_factory_baselines
    import evaluate as script

    asked = []
    monkeypatch.setattr(ai_factory_baselines, "names", lambda: ["uniform", "reactive"], raising=False)
    monkeypatch.setattr(ai_factory_baselines, "make", lambda *given: asked.append(given), raising=False)
    monkeypatch.setattr(ai_factory_agents, "load", lambda *given: asked.append(given), raising=False)
    monkeypatch.setattr(ai_factory_agents, "load_run", lambda *given: asked.append(given), raising=False)

    assert list(script.resolve("rules", "T")) == ["uniform", "reactive"]
    for name in ("reactive", "ppo", str(tmp_path)):
        factories = script.resolve(name, "T")
        assert list(factories) == [name]
        factories[name]("env")
    assert asked == [("reactive", "env"), ("ppo", "T"), (str(tmp_path),)]
    with pytest.raises(ConfigError, match="policies: unknown value 'reactiv'.*Did you mean 'reactive'"):
        script.resolve("reactiv", "T")
    with pytest.raises(ConfigError, match="there is no run directory 'runs/none'"):
        script.resolve("runs/none", "T")
