"""Recorded request traces: readers for four formats, index of dispersion, scaling by superposition.

Formats, recognised from the content (gzip or plain):

=========  ==============================================================================================
azure      CSV ``TIMESTAMP,ContextTokens,GeneratedTokens`` (2023; 2024 adds a time zone to the timestamp)
burstgpt   CSV ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` (timestamp in s)
mooncake   JSON lines ``timestamp`` (ms), ``input_length``, ``output_length``, optional ``hash_ids``
generic    CSV ``arrival_s,prompt_tokens,output_tokens`` and optionally ``class``
=========  ==============================================================================================

Times are shifted so that the first arrival is at 0. Azure and BurstGPT rows with zero generated tokens are failures (no
first token exists, so no latency can be judged): they are left out and counted in ``Trace.rows_dropped``. Everything
else that is not a request (unsorted times, negative, zero or missing tokens, NaN) is an error that names file and row.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ai_factory_gym.errors import ConfigError, nearest

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_CSV_COLUMNS: dict[str, tuple[str, str, str]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "generic": ("arrival_s", "prompt_tokens", "output_tokens"),
}
_MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
_FAILURES_MARKED_BY_ZERO_OUTPUT = ("azure", "burstgpt")
_MAX_TOKENS = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival; the arrays are read-only.

    Attributes:
        arrival_s: Arrival times, s, ascending, float64[n].
        prompt_tokens: Prompt lengths, at least 1, int64[n].
        output_tokens: Output lengths, at least 1, int64[n].
        hash_ids: Per request the ids of its prompt's prefix blocks (equal id = same prefix), or None.
        class_names: Per request the name of its class, or None.
        span_s: Period of the trace, s. 0 asks for the default, ``last arrival x n/(n-1)``: one mean gap after the last
            arrival, so that repeating the trace keeps its mean rate.
        source_format: Name of the format it was read from.
        rows_dropped: Failed requests left out by the reader.
    """

    arrival_s: Float64Array
    prompt_tokens: Int64Array
    output_tokens: Int64Array
    hash_ids: tuple[tuple[int, ...], ...] | None = None
    class_names: tuple[str, ...] | None = None
    span_s: float = 0.0
    source_format: str = ""
    rows_dropped: int = 0

    def __post_init__(self) -> None:
        """Copy the arrays, check them and fill in ``span_s``.

        Raises:
            ConfigError: On an empty trace, unequal lengths, unsorted or negative times, tokens below 1 or not finite.
        """
        arrival = np.array(self.arrival_s, dtype=np.float64)
        if arrival.ndim != 1 or arrival.size == 0:
            raise ConfigError("trace: holds no requests.")
        bad = ~np.isfinite(arrival) | (arrival < 0.0)
        if bad.any():
            i = int(np.argmax(bad))
            raise ConfigError(f"trace: arrival_s[{i}] = {arrival[i]!r} is not allowed; must be finite and >= 0.")
        backwards = np.diff(arrival) < 0.0
        if backwards.any():
            i = int(np.argmax(backwards)) + 1
            raise ConfigError(
                f"trace: arrival_s[{i}] = {arrival[i]:.9g} comes before {arrival[i - 1]:.9g}; sort by time."
            )
        tokens = {}
        for key in ("prompt_tokens", "output_tokens"):
            raw = np.asarray(getattr(self, key))
            if raw.shape != arrival.shape:
                raise ConfigError(f"trace: {key} has shape {raw.shape}, arrival_s {arrival.shape}; they must be equal.")
            wrong = ~((raw >= 1) & (raw <= _MAX_TOKENS) & (raw == np.floor(raw)))
            if wrong.any():
                i = int(np.argmax(wrong))
                raise ConfigError(f"trace: {key}[{i}] = {raw[i]} is not allowed; must be a whole number from 1 to 1e9.")
            tokens[key] = raw.astype(np.int64)
        for key, items in (("hash_ids", self.hash_ids), ("class_names", self.class_names)):
            if items is not None and len(items) != arrival.size:
                raise ConfigError(f"trace: {key} has {len(items)} entries for {arrival.size} requests.")
        last = float(arrival[-1])
        span = self.span_s if self.span_s != 0.0 else last * arrival.size / max(arrival.size - 1, 1)
        if not (math.isfinite(span) and span >= last):
            raise ConfigError(
                f"trace: span_s = {self.span_s!r} is not allowed; must be at least the last arrival, {last:.9g} s."
            )
        for array in (arrival, *tokens.values()):
            array.setflags(write=False)
        object.__setattr__(self, "arrival_s", arrival)
        object.__setattr__(self, "prompt_tokens", tokens["prompt_tokens"])
        object.__setattr__(self, "output_tokens", tokens["output_tokens"])
        object.__setattr__(self, "span_s", float(span))

    def __len__(self) -> int:
        """Return the number of requests."""
        return int(self.arrival_s.size)

    @property
    def mean_rate_rps(self) -> float:
        """Requests per second over the span; 0 for a trace without one."""
        return len(self) / self.span_s if self.span_s > 0.0 else 0.0


# ------------------------------------------------------------------------------------------------------------ readers


class _Rows:
    """Columns of a trace file as read, with the line each row came from (``line_offset`` lines were skipped before)."""

    def __init__(self, name: str, line_offset: int) -> None:
        self.name = name
        self.line_offset = line_offset
        self.line: list[int] = []
        self.time: list[Any] = []
        self.prompt: list[Any] = []
        self.output: list[Any] = []
        self.hash_ids: list[tuple[int, ...] | None] = []
        self.class_names: list[str] = []

    def error(self, row: int, message: str) -> ConfigError:
        return ConfigError(f"{self.name}, line {self.line[row] + self.line_offset}: {message}")


def _open_text(path: Path) -> IO[str]:
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    if gzipped:
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_format(where: str, header: Sequence[str]) -> str:
    """Return the format whose columns the header holds; an error that says what is missing from the closest one."""
    best = max(_CSV_COLUMNS, key=lambda kind: sum(column in header for column in _CSV_COLUMNS[kind]))
    missing = [column for column in _CSV_COLUMNS[best] if column not in header]
    if len(missing) == len(_CSV_COLUMNS[best]):
        known = "; ".join(",".join(columns) for columns in _CSV_COLUMNS.values())
        raise ConfigError(
            f"{where}: unknown trace format, header {','.join(header)[:120]!r}; allowed: a CSV with the columns "
            f"{known}; or JSON lines with {', '.join(_MOONCAKE_KEYS)}."
        )
    if missing:
        raise ConfigError(f"{where}: missing column(s) {', '.join(missing)} of the {best} format.")
    if best == "generic":
        allowed = (*_CSV_COLUMNS["generic"], "class")
        for column in header:
            if column not in allowed:
                guess = nearest(column, allowed)
                hint = f" Did you mean {guess!r}?" if guess else ""
                raise ConfigError(f"{where}: unknown column {column!r}; allowed: {', '.join(allowed)}.{hint}")
    duplicate = next((column for column in header if column and header.count(column) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"{where}: column {duplicate!r} appears more than once.")
    return best


def _read_csv(rows: _Rows, lines: Iterator[str]) -> tuple[str, _Rows]:
    reader = csv.reader(lines)
    header = [column.strip() for column in next(reader)]
    kind = _csv_format(f"{rows.name}, line {1 + rows.line_offset}", header)
    time_index, prompt_index, output_index = (header.index(column) for column in _CSV_COLUMNS[kind])
    class_index = header.index("class") if kind == "generic" and "class" in header else -1
    width = len(header)
    for fields in reader:
        if not fields:
            continue
        rows.line.append(reader.line_num)
        if len(fields) != width:
            raise rows.error(-1, f"{len(fields)} fields where the header has {width}.")
        rows.time.append(fields[time_index])
        rows.prompt.append(fields[prompt_index])
        rows.output.append(fields[output_index])
        if class_index >= 0:
            label = fields[class_index].strip()
            if not label:
                raise rows.error(-1, "class is empty; give a class name or leave the column out.")
            rows.class_names.append(label)
    return kind, rows


def _read_mooncake(rows: _Rows, lines: Iterator[str]) -> tuple[str, _Rows]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        rows.line.append(number)
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise rows.error(-1, f"not valid JSON ({error.msg}).") from None
        missing = _MOONCAKE_KEYS if not isinstance(record, Mapping) else [k for k in _MOONCAKE_KEYS if k not in record]
        if missing:
            raise rows.error(-1, f"missing key(s) {', '.join(missing)} of the mooncake format.")
        stamp, prompt, output = (record[key] for key in _MOONCAKE_KEYS)
        for key, value in zip(_MOONCAKE_KEYS, (stamp, prompt, output), strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise rows.error(-1, f"{key}: {value!r} is not a number.")
        rows.time.append(stamp)
        rows.prompt.append(prompt)
        rows.output.append(output)
        blocks = record.get("hash_ids")
        if blocks is not None and not (isinstance(blocks, list) and all(type(b) is int for b in blocks)):
            raise rows.error(-1, "hash_ids: must be a list of whole numbers.")
        rows.hash_ids.append(None if blocks is None else tuple(blocks))
    return "mooncake", rows


def _numbers(rows: _Rows, key: str, values: Sequence[Any]) -> Float64Array:
    try:
        return np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        pass
    for i, value in enumerate(values):
        try:
            float(value)
        except (ValueError, TypeError, OverflowError):
            raise rows.error(i, f"{key}: {value!r} is not a number.") from None
    raise ConfigError(f"{rows.name}: {key}: the column cannot be read as numbers.")


def _timestamps(rows: _Rows) -> Float64Array:
    """Return seconds since the first timestamp; a timestamp without time zone is taken as UTC."""
    seconds = np.empty(len(rows.time))
    first: datetime | None = None
    for i, text in enumerate(rows.time):
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise rows.error(i, f"TIMESTAMP: {text!r} is not a date and time.") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        first = first or moment
        seconds[i] = (moment - first).total_seconds()
    return seconds


def _checked_tokens(rows: _Rows, key: str, values: Sequence[Any], low: int) -> Int64Array:
    numbers = _numbers(rows, key, values)
    with np.errstate(invalid="ignore"):
        bad = ~((numbers >= low) & (numbers <= _MAX_TOKENS) & (numbers == np.floor(numbers)))
    if bad.any():
        i = int(np.argmax(bad))
        raise rows.error(i, f"{key}: {values[i]!r} is not allowed; must be a whole number from {low} to 1e9.")
    return numbers.astype(np.int64)


def load_trace(path: str | Path) -> Trace:
    """Read a trace; the format is recognised from the content.

    Args:
        path: Azure LLM CSV, BurstGPT CSV, Mooncake JSON lines or generic CSV; gzip or plain.

    Returns:
        The trace, its first arrival at 0 s.

    Raises:
        ConfigError: On a file that cannot be read, is empty or of unknown format, on missing columns, and on rows with
            unsorted or negative times or with tokens that are not positive whole numbers; the message has the line.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"trace: {path!r} is not allowed; must be the path of a file.")
    source = Path(path)
    name = f"trace {str(source)!r}"
    try:
        with _open_text(source) as lines:
            blank, first = next(((i, line) for i, line in enumerate(lines) if line.strip()), (0, ""))
            if not first:
                raise ConfigError(f"{name}: the file is empty.")
            read = _read_mooncake if first.lstrip().startswith("{") else _read_csv
            kind, rows = read(_Rows(name, blank), itertools.chain([first], lines))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error}).") from None
    except (UnicodeDecodeError, EOFError, csv.Error, zlib.error) as error:
        raise ConfigError(f"{name}: is not a text file in UTF-8 or is damaged ({error}).") from None
    if not rows.line:
        raise ConfigError(f"{name}: the file has no rows.")
    columns = _MOONCAKE_KEYS if kind == "mooncake" else _CSV_COLUMNS[kind]
    if kind == "azure":
        times = _timestamps(rows)
    else:
        times = _numbers(rows, columns[0], rows.time)
        bad = ~np.isfinite(times) | (times < 0.0)
        if bad.any():
            i = int(np.argmax(bad))
            raise rows.error(i, f"{columns[0]}: {rows.time[i]!r} is not allowed; must be finite and >= 0.")
        if kind == "mooncake":
            times = times / 1000.0
    backwards = np.diff(times) < 0.0
    if backwards.any():
        i = int(np.argmax(backwards)) + 1
        raise rows.error(i, f"{columns[0]}: {rows.time[i]!r} comes before {rows.time[i - 1]!r}; sort the file by time.")
    output = _checked_tokens(rows, columns[2], rows.output, 0 if kind in _FAILURES_MARKED_BY_ZERO_OUTPUT else 1)
    served = np.flatnonzero(output > 0)
    if served.size == 0:
        raise ConfigError(f"{name}: every row has zero {columns[2]}: no request was served.")
    if served.size < output.size:
        picked = served.tolist()
        rows.line = [rows.line[i] for i in picked]
        rows.prompt = [rows.prompt[i] for i in picked]
        times, output = times[served], output[served]
        rows.class_names = [rows.class_names[i] for i in picked] if rows.class_names else []
    dropped = len(rows.time) - served.size
    prompt = _checked_tokens(rows, columns[1], rows.prompt, 1)
    hash_ids: tuple[tuple[int, ...], ...] | None = None
    if any(blocks is not None for blocks in rows.hash_ids):
        hash_ids = tuple(blocks or () for blocks in rows.hash_ids)
    return Trace(
        arrival_s=times - times[0],
        prompt_tokens=prompt,
        output_tokens=output,
        hash_ids=hash_ids,
        class_names=tuple(rows.class_names) if rows.class_names else None,
        source_format=kind,
        rows_dropped=dropped,
    )


# -------------------------------------------------------------------------------------------------------------- reuse

HASH_BLOCK_TOKENS = 512
"""Prompt tokens per entry of ``Trace.hash_ids`` (Mooncake's traces: Qin et al., FAST 2025)."""


class Reuse(NamedTuple):
    """What each request of a trace repeats of earlier prompts, as segments of leading tokens of equal age.

    Ages rise within a request: whoever asked for a block has asked for all that lead to it.

    Attributes:
        begin: Segments ``begin[i]`` up to ``begin[i + 1]`` are those of request i, int64[n + 1].
        tokens: Tokens of each segment, in the order of the prompt, int64[segments]. A request's last token is never repeated: at
            least that is worked off anew.
        age_s: Time since they were last asked for, s, float64[segments].
        seen_by: The request that was, int64[segments].
    """

    begin: Int64Array
    tokens: Int64Array
    age_s: Float64Array
    seen_by: Int64Array


def reuse(trace: Trace) -> Reuse:
    """Return what each request of a trace repeats, from its ids of prefix blocks; nothing for a trace without them."""
    begin = np.zeros(len(trace) + 1, dtype=np.int64)
    tokens: list[int] = []
    ages: list[float] = []
    owners: list[int] = []
    last: dict[int, int] = {}
    times = trace.arrival_s.tolist()
    prompts = trace.prompt_tokens.tolist()
    for i, blocks in enumerate(trace.hash_ids or ()):
        left = prompts[i] - 1
        owner = -1
        for block in blocks:
            seen = last.get(block, -1)
            if seen < 0 or left <= 0:
                break
            size = min(HASH_BLOCK_TOKENS, left)
            left -= size
            if seen == owner:
                tokens[-1] += size
            else:
                owner = seen
                tokens.append(size)
                ages.append(times[i] - times[seen])
                owners.append(seen)
        for block in blocks:
            last[block] = i
        begin[i + 1] = len(tokens)
    begin[len(trace.hash_ids or ()) + 1 :] = len(tokens)
    return Reuse(
        begin, np.array(tokens, dtype=np.int64), np.array(ages, dtype=np.float64), np.array(owners, dtype=np.int64)
    )


def lru_hit_share(trace: Trace, room_tokens: float) -> float:
    """Return the share of a trace's prompt tokens that a prefix cache of a given size finds, block by block.

    Every prompt is put in whole; what has not been asked for the longest leaves first, of a prompt its end. The cache begins empty.

    Args:
        trace: The trace; nothing is found without ids of prefix blocks.
        room_tokens: Room, tokens; inf for one that nothing leaves.
    """
    held: OrderedDict[int, None] = OrderedDict()
    room = room_tokens / HASH_BLOCK_TOKENS
    found = 0
    for blocks, prompt in zip(trace.hash_ids or (), trace.prompt_tokens.tolist(), strict=False):
        leading = 0
        for block in blocks:
            if block not in held:
                break
            leading += 1
        found += min(leading * HASH_BLOCK_TOKENS, prompt - 1)
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)
    return found / int(trace.prompt_tokens.sum())


# --------------------------------------------------------------------------------------------------------- dispersion


def dispersion(arrival_s: ArrayLike, window_s: float) -> float:
    """Return the index of dispersion of counts: variance / mean of arrivals per window, 1 for a Poisson process.

    Windows start at 0 s; the last, incomplete one is left out.

    Args:
        arrival_s: Arrival times, s, ascending and >= 0.
        window_s: Length of a window, s.

    Raises:
        ConfigError: When the arrivals fill fewer than two windows.
    """
    times = np.asarray(arrival_s, dtype=np.float64)
    if not (math.isfinite(window_s) and window_s > 0.0):
        raise ConfigError(f"window_s: {window_s!r} is not allowed; must be a positive number of seconds.")
    windows = int(times[-1] // window_s) if times.size else 0
    if windows < 2:
        raise ConfigError(f"window_s: {window_s:g} s leaves {windows} whole window(s); at least 2 are needed.")
    index = np.floor_divide(times, window_s).astype(np.int64)
    counts = np.bincount(index[index < windows], minlength=windows)
    return float(counts.var() / counts.mean())


# ------------------------------------------------------------------------------------------------------ superposition

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def unit_hash(index: ArrayLike, salt: int) -> Float64Array:
    """Return a number in [0, 1) per index that looks uniform and depends on index and salt only.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on ``salt + (index + 1) x golden ratio``. Which
    requests a thinned copy keeps thus never depends on who asks, when, or in which order.

    Args:
        index: Whole numbers >= 0, any shape.
        salt: Seed, 0 to 2^64 - 1.

    Returns:
        float64 of the same shape.
    """
    z = np.asarray(index, dtype=np.uint64) + np.uint64(1)
    z = z * _GOLDEN + np.asarray(salt, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53, dtype=np.float64)


class SuperpositionPlan(NamedTuple):
    """How a trace is scaled: whole copies, each shifted around its span, and one thinned copy.

    Attributes:
        shift_s: Shift of each whole copy, s in [0, span), float64[copies]; the first is 0.
        thin_fraction: Share of requests the extra copy keeps, in [0, 1); request i is kept when
            ``unit_hash(i, salt) < thin_fraction``.
        thin_shift_s: Shift of the extra copy, s; 0 when there is no whole copy.
        salt: Seed of the per-request hash.
    """

    shift_s: Float64Array
    thin_fraction: float
    thin_shift_s: float
    salt: int


def shifts(
    rng: np.random.Generator, rate_scale: float, span_s: float, *, max_shift_s: float | None = None
) -> SuperpositionPlan:
    """Plan the superposition that multiplies a trace's rate by ``rate_scale``.

    One integer is drawn whatever the scale; shifts are hashed from it, so copy i has the same shift at every scale.
    ``rate_scale = 1`` is the trace itself. Shifts are uniform over the span: independent copies keep the index of
    dispersion at short windows, but a trace of several days loses its daily curve unless ``max_shift_s`` is small.

    Args:
        rng: Random stream.
        rate_scale: Factor on the rate, above 0, at most 1e7.
        span_s: Period of the trace, s (``Trace.span_s``).
        max_shift_s: Upper limit of the shifts, s; None for the span.

    Returns:
        The plan.

    Raises:
        ConfigError: On a scale or span out of range.
    """
    if not (isinstance(rate_scale, (int, float)) and 0.0 < rate_scale <= 1e7):
        raise ConfigError(f"rate_scale: {rate_scale!r} is not allowed; must be a number in (0, 1e7].")
    if not (math.isfinite(span_s) and span_s > 0.0):
        raise ConfigError(f"span_s: {span_s!r} is not allowed; a trace needs arrivals at two different times at least.")
    limit = span_s if max_shift_s is None else max_shift_s
    if not 0.0 <= limit <= span_s:
        raise ConfigError(f"max_shift_s: {max_shift_s!r} is not allowed; must lie in [0, {span_s:g}] s.")
    salt = int(rng.integers(0, 2**64, dtype=np.uint64))
    whole = math.floor(rate_scale)
    # Thinning hashes (salt), shifts hash its complement: the two must not share numbers.
    fractions = unit_hash(np.arange(whole + 1), salt ^ (2**64 - 1))
    fractions[0] = 0.0
    every = fractions * limit
    return SuperpositionPlan(every[:whole].copy(), float(rate_scale - whole), float(every[whole]), salt)


def superpose_window(
    trace: Trace, plan: SuperpositionPlan, start_s: float, end_s: float
) -> tuple[Float64Array, Int64Array, Int64Array]:
    """Return the superposed requests that arrive in ``[start_s, end_s)``, in order.

    Copies are circular: a request leaves at the end of the span and returns at its start, so times beyond the span
    repeat the trace. Cost follows the requests returned, not those of the trace.

    Args:
        trace: The trace.
        plan: From ``shifts``.
        start_s: Start of the window, s, >= 0.
        end_s: End of the window, s; at most one span after ``start_s``.

    Returns:
        Arrival times float64[n], index of each request in the trace int64[n] and number of its copy int64[n] (the
        thinned one is the last); ties are in order of copy, then index.

    Raises:
        ConfigError: On a window that is reversed or longer than the span.
    """
    span = trace.span_s
    if not (0.0 <= start_s <= end_s <= start_s + span * (1.0 + 1e-12)):
        raise ConfigError(
            f"start_s, end_s: [{start_s!r}, {end_s!r}) must be ordered and no longer than the span, {span:g} s."
        )
    offsets = plan.shift_s
    if plan.thin_fraction > 0.0:
        offsets = np.append(offsets, plan.thin_shift_s)
    copies = offsets.size
    times: list[Float64Array] = []
    indices: list[Int64Array] = []
    owners: list[Int64Array] = []
    first_turn = math.floor(start_s / span) - 1
    for turn in range(first_turn, math.floor(end_s / span) + 1):
        base = offsets + turn * span
        low = np.searchsorted(trace.arrival_s, start_s - base, side="left")
        high = np.searchsorted(trace.arrival_s, end_s - base, side="left")
        lengths = high - low
        total = int(lengths.sum())
        if total == 0:
            continue
        owner = np.repeat(np.arange(copies), lengths)
        within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        index = np.repeat(low, lengths) + within
        times.append(trace.arrival_s[index] + base[owner])
        indices.append(index.astype(np.int64))
        owners.append(owner.astype(np.int64))
    if not times:
        return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    time, index, owner = np.concatenate(times), np.concatenate(indices), np.concatenate(owners)
    if plan.thin_fraction > 0.0:
        keep = (owner < plan.shift_s.size) | (unit_hash(index, plan.salt) < plan.thin_fraction)
        time, index, owner = time[keep], index[keep], owner[keep]
    order = np.lexsort((index, owner, time))
    return time[order], index[order], owner[order]


def superpose(trace: Trace, rate_scale: float, rng: np.random.Generator, *, max_shift_s: float | None = None) -> Trace:
    """Return the trace with its rate multiplied, every request written out.

    Prefix-block ids are made distinct per copy: a copy stands for other users, not for the same prompts sent again.

    Args:
        trace: The trace.
        rate_scale: Factor on the rate; whole parts superpose shifted copies, the fraction thins an extra one.
        rng: Random stream; see ``shifts``.
        max_shift_s: See ``shifts``.

    Returns:
        A trace over the same span (its first arrival need not be at 0).

    Raises:
        ConfigError: On a scale out of range, a trace without a span, or a scale so small that nothing is left.
    """
    plan = shifts(rng, rate_scale, trace.span_s, max_shift_s=max_shift_s)
    time, index, owner = superpose_window(trace, plan, 0.0, trace.span_s)
    if time.size == 0:
        raise ConfigError(f"rate_scale: {rate_scale!r} leaves no request of {len(trace)}.")
    picked = index.tolist()
    hash_ids = None
    if trace.hash_ids is not None:
        stride = 1 + max((max(blocks) for blocks in trace.hash_ids if blocks), default=0)
        ids = trace.hash_ids
        hash_ids = tuple(
            tuple(block + copy * stride for block in ids[i]) for i, copy in zip(picked, owner.tolist(), strict=True)
        )
    names = trace.class_names
    return replace(
        trace,
        arrival_s=time,
        prompt_tokens=trace.prompt_tokens[index],
        output_tokens=trace.output_tokens[index],
        hash_ids=hash_ids,
        class_names=None if names is None else tuple(names[i] for i in picked),
        span_s=trace.span_s,
    )


def superposition_report(
    trace: Trace, rate_scale: float, rng: np.random.Generator, windows_s: Sequence[float] = (1.0, 10.0, 60.0)
) -> dict[float, tuple[float, float]]:
    """Return the index of dispersion before and after superposition, by window.

    Args:
        trace: The trace.
        rate_scale: Factor on the rate.
        rng: Random stream; see ``shifts``.
        windows_s: Windows, s.

    Returns:
        ``{window_s: (before, after)}``.
    """
    after = superpose(trace, rate_scale, rng)
    return {w: (dispersion(trace.arrival_s, w), dispersion(after.arrival_s, w)) for w in windows_s}
