from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_factory_gym.errors import ConfigError
from ai_factory_gym.workload.traces import (
    Trace,
    dispersion,
    load_trace,
    shifts,
    superpose,
    superpose_window,
    superposition_report,
    unit_hash,
)

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,0
2024-05-10 00:00:02.5+00:00,76,15
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 10, "output_length": 1, "hash_ids": []}
"""
GENERIC = """arrival_s,prompt_tokens,output_tokens,class
0.5,100,10,chat
0.5,200,20,coding
2.25,300,30,chat
"""


def write(tmp_path: Path, text: str, *, gz: bool = False, name: str = "trace.dat") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())
    return path


# ------------------------------------------------------------------------------------------------------------ readers


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("text", "kind", "arrival", "prompt", "output", "dropped"),
    [
        (AZURE_2023, "azure", [0.0, 4.314579, 4.541877], [374, 396, 879], [44, 109, 55], 0),
        (AZURE_2024, "azure", [0.0, 2.49007], [2162, 76], [5, 15], 1),
        (BURSTGPT, "burstgpt", [0.0, 113.0], [472, 417], [18, 276], 1),
        (MOONCAKE, "mooncake", [0.0, 0.0, 3.0], [6758, 7322, 10], [500, 490, 1], 0),
        (GENERIC, "generic", [0.0, 0.0, 1.75], [100, 200, 300], [10, 20, 30], 0),
    ],
)
def test_each_format_is_read(
    tmp_path: Path,
    gz: bool,
    text: str,
    kind: str,
    arrival: list[float],
    prompt: list[int],
    output: list[int],
    dropped: int,
) -> None:
    trace = load_trace(write(tmp_path, text, gz=gz))
    assert trace.source_format == kind
    np.testing.assert_allclose(trace.arrival_s, arrival, atol=1e-6)
    assert trace.prompt_tokens.tolist() == prompt
    assert trace.output_tokens.tolist() == output
    assert trace.prompt_tokens.dtype == trace.output_tokens.dtype == np.int64
    assert trace.rows_dropped == dropped
    assert (trace.hash_ids is not None) == (kind == "mooncake")
    assert (trace.class_names is not None) == (kind == "generic")
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 1.0


def test_hash_ids_and_classes_survive(tmp_path: Path) -> None:
    assert load_trace(write(tmp_path, MOONCAKE)).hash_ids == ((0, 1, 2), (0, 14), ())
    assert load_trace(write(tmp_path, GENERIC)).class_names == ("chat", "coding", "chat")


def test_byte_order_mark_crlf_and_blank_lines_are_harmless(tmp_path: Path) -> None:
    text = "\ufeff\r\n" + GENERIC.replace("\n", "\r\n") + "\r\n"
    assert len(load_trace(write(tmp_path, text))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no rows"),
        ("time,in,out\n1,2,3\n", "unknown trace format"),
        ("just some words\n", "unknown trace format"),
        ("arrival_s,prompt_tokens\n1,2\n", r"line 1: missing column\(s\) output_tokens"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", "missing column.* GeneratedTokens of the azure"),
        (GENERIC.replace("class", "klass"), "Did you mean 'class'"),
        (GENERIC.replace("prompt_tokens", "output_tokens", 1), "missing column.*prompt_tokens"),
        (GENERIC.replace("2.25", "0.25"), r"line 4: arrival_s: '0.25' comes before '0.5'"),
        (GENERIC.replace("0.5,100", "-0.5,100"), "line 2: arrival_s.*'-0.5'"),
        (GENERIC.replace("0.5,100", "nan,100"), "line 2: arrival_s.*'nan'"),
        (GENERIC.replace("0.5,200", "soon,200"), "line 3: arrival_s: 'soon' is not a number"),
        (GENERIC.replace(",200,", ",-200,"), "line 3: prompt_tokens: '-200'"),
        (GENERIC.replace(",200,", ",0,"), "line 3: prompt_tokens: '0'"),
        (GENERIC.replace(",200,", ",,"), "line 3: prompt_tokens: '' is not a number"),
        (GENERIC.replace(",20,", ",nan,"), "line 3: output_tokens: 'nan'"),
        (GENERIC.replace(",20,", ",0,"), "line 3: output_tokens: '0'"),
        (GENERIC.replace(",20,", ",20.5,"), "line 3: output_tokens: '20.5'"),
        (GENERIC.replace(",20,coding", ",20"), "line 3: 3 fields where the header has 4"),
        (GENERIC.replace("coding", " "), "line 3: class is empty"),
        ("\n\n" + GENERIC.replace(",20,", ",0,"), "line 5: output_tokens"),
        (AZURE_2023.replace("18:15:51", "18:15:41"), "line 4: TIMESTAMP.*comes before"),
        (AZURE_2023.replace("2023-11-16 18:15:51.2224670", "yesterday"), "line 4: TIMESTAMP: 'yesterday'"),
        (AZURE_2024.replace(",76,", ",0,"), "line 4: ContextTokens: '0'"),
        (BURSTGPT.replace(",18,", ",0,").replace(",276,", ",0,"), "no request was served"),
        (BURSTGPT.replace("118,", "8,"), "line 4: Timestamp.*comes before"),
        (MOONCAKE.replace('"output_length": 490, ', ""), r"line 2: missing key\(s\) output_length"),
        (MOONCAKE.replace("490", "0"), "line 2: output_length: 0"),
        (MOONCAKE.replace("490", '"many"'), "line 2: output_length: 'many' is not a number"),
        (MOONCAKE.replace("490", "NaN"), "line 2: output_length: nan"),
        (MOONCAKE.replace("[0, 14]", '["a"]'), "line 2: hash_ids"),
        (MOONCAKE.replace("[0, 14]}", "[0, 14]"), "line 2: not valid JSON"),
        ("{}\n", "line 1: missing key"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_trace(path)
    assert "trace.dat" in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(tmp_path / "none.csv")
    damaged = tmp_path / "damaged.csv.gz"
    damaged.write_bytes(gzip.compress(GENERIC.encode() * 1000)[:-20])
    with pytest.raises(ConfigError, match="damaged"):
        load_trace(damaged)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match="UTF-8"):
        load_trace(binary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "no requests"),
        (([0.0, -1.0], [1, 1], [1, 1]), r"arrival_s\[1\]"),
        (([2.0, 1.0], [1, 1], [1, 1]), "comes before"),
        (([0.0, np.nan], [1, 1], [1, 1]), r"arrival_s\[1\]"),
        (([0.0, 1.0], [1], [1, 1]), "shape"),
        (([0.0, 1.0], [1, 0], [1, 1]), r"prompt_tokens\[1\]"),
        (([0.0, 1.0], [1, 1], [1, 1.5]), r"output_tokens\[1\]"),
        (([0.0, 1.0], [1, 1], [1, 1], ((1,),)), "hash_ids has 1 entries"),
    ],
)
def test_a_trace_made_by_hand_is_checked_too(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trace(*arguments)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- dispersion


def test_dispersion_of_known_processes() -> None:
    rng = np.random.default_rng(0)
    poisson = np.sort(rng.random(200_000)) * 20_000
    assert dispersion(poisson, 1.0) == pytest.approx(1.0, abs=0.03)
    assert dispersion(np.arange(1, 10_001) - 0.5, 10.0) == pytest.approx(0.0, abs=1e-12)
    assert dispersion(np.repeat(poisson, 5), 1.0) == pytest.approx(5.0, rel=0.05)


def test_dispersion_needs_two_windows() -> None:
    with pytest.raises(ConfigError, match="1 whole window"):
        dispersion([0.0, 1.0, 1.9], 1.0)
    with pytest.raises(ConfigError, match="positive"):
        dispersion([0.0, 1.0], 0.0)


# ------------------------------------------------------------------------------------------------------ superposition


def bursty_trace(seed: int = 0, minutes: int = 240, rate: float = 2.0) -> Trace:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate * 60.0 * rng.gamma(4.0, 0.25, minutes))
    arrival = np.sort(np.repeat(60.0 * np.arange(minutes), counts) + 60.0 * rng.random(counts.sum()))
    n = arrival.size
    arrival -= arrival[0]
    return Trace(arrival, rng.integers(1, 5000, n), rng.integers(1, 500, n), tuple((i, i + 1) for i in range(n)))


def test_scale_one_is_the_trace_itself() -> None:
    trace = bursty_trace()
    same = superpose(trace, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(same.arrival_s, trace.arrival_s)
    np.testing.assert_array_equal(same.output_tokens, trace.output_tokens)
    assert same.hash_ids == trace.hash_ids


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 7.0, 20.25])
def test_superposition_scales_rate_and_keeps_lengths(scale: float) -> None:
    trace = bursty_trace()
    more = superpose(trace, scale, np.random.default_rng(1))
    fraction = scale % 1.0
    slack = 5.0 * np.sqrt(fraction * (1.0 - fraction) * len(trace)) + 0.5
    assert abs(len(more) - scale * len(trace)) <= slack
    assert more.span_s == trace.span_s
    assert more.arrival_s[-1] < trace.span_s
    assert more.prompt_tokens.mean() == pytest.approx(trace.prompt_tokens.mean(), rel=0.03)


def test_superposition_keeps_the_index_of_dispersion_on_average() -> None:
    # A rate that is independent from minute to minute: a copy shifted by a share of a minute spreads each minute over
    # two windows and keeps between half and all of the excess, two thirds on average.
    trace = dataclasses.replace(bursty_trace(), hash_ids=None)
    before = dispersion(trace.arrival_s, 60.0)
    assert before > 20.0
    after = [superposition_report(trace, 6.0, np.random.default_rng(s), (60.0,))[60.0][1] for s in range(40)]
    # The first copy is not shifted.
    expected = 1.0 + (before - 1.0) * (1.0 + 5.0 * 2.0 / 3.0) / 6.0
    assert np.mean(after) == pytest.approx(expected, rel=0.08)


def test_superposition_keeps_the_dispersion_of_slow_swings() -> None:
    trace = bursty_trace(minutes=480)
    slow = Trace(np.sort(trace.arrival_s * 20.0), trace.prompt_tokens, trace.output_tokens)
    before = dispersion(slow.arrival_s, 60.0)
    after = np.mean([superposition_report(slow, 5.0, np.random.default_rng(s), (60.0,))[60.0][1] for s in range(40)])
    assert after == pytest.approx(before, rel=0.1)


def test_thinning_moves_the_dispersion_towards_poisson() -> None:
    trace = bursty_trace()
    before = dispersion(trace.arrival_s, 60.0)
    after = dispersion(superpose(trace, 0.25, np.random.default_rng(3)).arrival_s, 60.0)
    assert after == pytest.approx(1.0 + 0.25 * (before - 1.0), rel=0.2)


@given(st.floats(0.05, 6.0), st.integers(0, 2**32), st.lists(st.floats(0.0, 1.0), max_size=5))
@settings(max_examples=30, deadline=None)
def test_windows_add_up_to_the_whole(scale: float, seed: int, cuts: list[float]) -> None:
    trace = bursty_trace(minutes=5)
    plan = shifts(np.random.default_rng(seed), scale, trace.span_s)
    whole = superpose_window(trace, plan, 0.0, trace.span_s)
    edges = [0.0, *sorted(c * trace.span_s for c in cuts), trace.span_s]
    parts = [superpose_window(trace, plan, a, b) for a, b in zip(edges, edges[1:], strict=False)]
    for column in range(3):
        np.testing.assert_array_equal(whole[column], np.concatenate([part[column] for part in parts]))
    assert np.all(np.diff(whole[0]) >= 0.0)
    copies = np.bincount(whole[2], minlength=plan.shift_s.size)[: plan.shift_s.size]
    assert np.all(copies == len(trace))


def test_windows_beyond_the_span_repeat_the_trace() -> None:
    trace = bursty_trace(minutes=5)
    plan = shifts(np.random.default_rng(0), 2.5, trace.span_s)
    now = superpose_window(trace, plan, 0.0, 100.0)
    later = superpose_window(trace, plan, 3 * trace.span_s, 3 * trace.span_s + 100.0)
    np.testing.assert_allclose(later[0] - 3 * trace.span_s, now[0], atol=1e-6)
    np.testing.assert_array_equal(later[1], now[1])
    with pytest.raises(ConfigError, match="no longer than the span"):
        superpose_window(trace, plan, 0.0, 2.0 * trace.span_s)


def test_shifts_draw_one_number_and_agree_across_scales() -> None:
    small, large = np.random.default_rng(4), np.random.default_rng(4)
    two, many = shifts(small, 2.5, 1000.0), shifts(large, 50.0, 1000.0)
    np.testing.assert_array_equal(two.shift_s, many.shift_s[:2])
    assert two.thin_shift_s == many.shift_s[2]
    assert (two.thin_fraction, many.thin_fraction) == (0.5, 0.0)
    assert two.shift_s[0] == 0.0
    assert small.random() == large.random()
    assert many.shift_s.max() < 1000.0
    assert shifts(np.random.default_rng(4), 50.0, 1000.0, max_shift_s=60.0).shift_s.max() < 60.0


def test_copies_do_not_share_prefix_blocks() -> None:
    trace = bursty_trace(minutes=3)
    more = superpose(trace, 3.0, np.random.default_rng(0))
    assert trace.hash_ids is not None and more.hash_ids is not None
    distinct = len({block for blocks in trace.hash_ids for block in blocks})
    assert len({block for blocks in more.hash_ids for block in blocks}) == 3 * distinct


def test_unit_hash_looks_uniform() -> None:
    u = unit_hash(np.arange(200_000), 12345)
    assert 0.0 <= u.min() and u.max() < 1.0
    counts = np.histogram(u, 100, (0.0, 1.0))[0]
    assert ((counts - 2000.0) ** 2 / 2000.0).sum() < 160.0
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(u, unit_hash(np.arange(200_000), 12346))[0, 1]) < 0.01


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="rate_scale"):
        shifts(np.random.default_rng(0), scale, 100.0)


def test_a_trace_without_span_cannot_be_superposed() -> None:
    with pytest.raises(ConfigError, match="span_s"):
        superpose(Trace(np.zeros(1), np.ones(1), np.ones(1)), 2.0, np.random.default_rng(0))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- real traces

TRACE_DIR = os.environ.get("AI_FACTORY_TRACE_DIR", "")
needs_traces = pytest.mark.skipif(not TRACE_DIR, reason="AI_FACTORY_TRACE_DIR is not set: no real traces to read")
FILES = {
    "azure_llm_2023_code": "azure_llm_2023_code.csv.gz",
    "azure_llm_2023_conv": "azure_llm_2023_conv.csv.gz",
    "mooncake_conversation": "mooncake_conversation.jsonl.gz",
}


@needs_traces
@pytest.mark.parametrize("name", FILES)
def test_real_traces_have_their_published_statistics(name: str) -> None:
    with (Path(TRACE_DIR) / "stats.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["trace"] == name)
    trace = load_trace(Path(TRACE_DIR) / FILES[name])
    assert len(trace) == int(row["rows"])
    assert trace.rows_dropped == 0
    assert trace.arrival_s[-1] == pytest.approx(float(row["duration_s"]), abs=0.06)
    assert trace.mean_rate_rps == pytest.approx(float(row["rate_rps"]), abs=2e-3)
    for prefix, tokens in (("in", trace.prompt_tokens), ("out", trace.output_tokens)):
        assert tokens.mean() == pytest.approx(float(row[f"{prefix}_mean"]), abs=0.06)
        assert np.median(tokens) == float(row[f"{prefix}_p50"])
        assert np.percentile(tokens, 95) == pytest.approx(float(row[f"{prefix}_p95"]))
        assert tokens.max() == int(row[f"{prefix}_max"])
    for window in (1, 10, 60):
        assert dispersion(trace.arrival_s, window) == pytest.approx(float(row[f"idc_{window}s"]), abs=0.006)


@needs_traces
def test_real_traces_keep_their_dispersion_when_superposed() -> None:
    trace = load_trace(Path(TRACE_DIR) / FILES["azure_llm_2023_conv"])
    reports = [superposition_report(trace, 8.0, np.random.default_rng(seed)) for seed in range(12)]
    for window in (1.0, 10.0, 60.0):
        after = np.mean([report[window][1] for report in reports])
        assert after == pytest.approx(reports[0][window][0], rel=0.25)


@needs_traces
def test_mooncake_prefix_blocks_are_read() -> None:
    trace = load_trace(Path(TRACE_DIR) / FILES["mooncake_conversation"])
    assert trace.hash_ids is not None
    seen: set[int] = set()
    hits = total = 0
    for blocks in trace.hash_ids:
        hits += sum(block in seen for block in blocks)
        total += len(blocks)
        seen.update(blocks)
    assert hits / total == pytest.approx(0.366, abs=0.005)


def test_json_lines_are_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"timestamp": 5, "input_length": 1, "output_length": 1}) + "\n", name="trace.csv")
    trace = load_trace(path)
    assert (trace.source_format, trace.hash_ids, trace.arrival_s.tolist()) == ("mooncake", None, [0.0])
