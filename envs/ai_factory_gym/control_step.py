"""One control step of one row as a whole, from action to reward, observation and info: what both environments run.

Between the operator's action and what the operator sees there is no Python: at a hundred microseconds a step, handing numbers
back and forth would cost as much as simulating them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from ai_factory_gym.engine.ahead import FEW_ROWS, ask_for_row
from ai_factory_gym.engine.arrivals import minute_of
from ai_factory_gym.engine.kernel import DONE, NEEDS_SLOTS, apply_action, begin_step, close_window, run_step
from ai_factory_gym.engine.layout import Array, Class, Params, Site, SiteSpec, State
from ai_factory_gym.engine.reference import params_of, refer, state_of
from ai_factory_gym.jit import inlined_kernel, kernel
from ai_factory_gym.levers import decide_row
from ai_factory_gym.metrics import write_info
from ai_factory_gym.observation import observe_row
from ai_factory_gym.reward import reward_terms

FRESH = 2
"""Status of a row whose control step has not begun; beside DONE and NEEDS_SLOTS."""


class Episodes(NamedTuple):
    """What a row's episode is beside the engine's state; the first axis is the row."""

    action: Array  # float64[rows, actions] the last one
    start_s: Array  # float64[rows] local time at the start of the scored window
    horizon_s: Array  # float64[rows]
    price: Array  # float64[rows] of energy, good tokens per joule
    closed: Array  # bool[rows] whether the scored window has ended
    scored: Array  # bool[rows] whether the last step began inside it
    terms: Array  # float64[rows, TERMS] reward terms of the last step
    credit: Array  # float64[rows] worth of training work, good tokens per joule of its reference energy


class Station(NamedTuple):
    """Arrays that stay the same as long as a factory does, beside ``Params`` and ``State``.

    Those of ``Episodes``, then room for the decisions of all rows (``Decision``), then ``ActionLayout.arrays``, then
    ``ObservationLayout.scales``.
    """

    action: Array
    start_s: Array
    horizon_s: Array
    price: Array
    closed: Array
    scored: Array
    terms: Array
    credit: Array
    bias: Array
    ceiling: Array
    power_limit_w: Array
    racks: Array
    most_batch: Array
    gate: Array
    order: Array
    own: Array
    begins: Array
    pool_racks: Array
    racks_span: Array
    most: Array
    deferrable: Array
    least_effort: Array
    pairs: Array
    batch: Array
    nameplate_w: Array
    rate: Array
    ttft_s: Array
    rack_w: Array
    lever_begins: Array
    part_begins: Array


_NUMBERS_AND_AXES = {
    "closed": (np.bool_, 1),
    "scored": (np.bool_, 1),
    "deferrable": (np.bool_, 1),
    "racks": (np.int64, 2),
    "own": (np.int64, 2),
    "begins": (np.int64, 1),
    "pool_racks": (np.int64, 2),
    "pairs": (np.int64, 2),
    "lever_begins": (np.int64, 1),
    "part_begins": (np.int64, 1),
    "bias": (np.float64, 4),
    "gate": (np.float64, 3),
    **dict.fromkeys(
        ("action", "terms", "ceiling", "power_limit_w", "most_batch", "order", "racks_span", "most"), (np.float64, 2)
    ),
}
"""Type of the numbers and count of the axes of a ``Station``'s arrays where these are not float64 and one."""


def station_of(handed: Any) -> Station:
    """Return in a kernel the ``Station`` whose ``Reference.handed`` it was given."""
    return cast(Station, handed)


refer(
    Station,
    {
        name: (dtype, (None,) * axes)
        for name, (dtype, axes) in ((name, _NUMBERS_AND_AXES.get(name, (np.float64, 1))) for name in Station._fields)
    },
    station_of,
)


class Outcome(NamedTuple):
    """What a step gives back; the first axis is the row."""

    observation: Array  # float32[rows, size]
    reward: Array  # float64[rows]
    terminated: Array  # bool[rows]
    truncated: Array  # bool[rows]
    info: Array  # float64[rows, keys] in the order of ``metrics.info_keys``


class Constants(NamedTuple):
    """Numbers of a task that are equal for all rows."""

    clock_min: float  # lowest clock ceiling
    scale_tokens: float  # a step's nominal output tokens
    miss_weight: float
    reward_kind: float  # of ``reward.Reward``
    scale_usd: float  # a step's nominal revenue
    joules_per_kg: float  # energy per kilogram of carbon dioxide in the mean
    breaker_s: float  # overdraw without a break that trips the breaker; inf where the brake prevents it
    drain_s: float  # longest time after the horizon in which fates are waited for; 0 where they are not


@kernel
def outside(actions: Array) -> bool:
    """Tell whether any number of float64[rows, actions] is not in [-1, 1]."""
    for row in range(actions.shape[0]):
        for place in range(actions.shape[1]):
            if not abs(actions[row, place]) <= 1.0:
                return True
    return False


@inlined_kernel
def _truncated(state: State, row: int, horizon_s: float, drain_s: float) -> bool:
    """Tell whether a row whose scored window has ended is over: at once, or when every scored fate is decided."""
    if drain_s <= 0.0 or state.site[row, Site.TIME_S] >= horizon_s + drain_s:
        return True
    undecided = 0.0
    for cls in range(state.cls.shape[1]):
        counters = state.cls[row, cls]
        undecided += counters[Class.ARRIVED] - counters[Class.MET] - counters[Class.MISSED]
    return undecided < 0.5


@inlined_kernel
def _report(
    params: Params,
    state: State,
    station: Station,
    outcome: Outcome,
    row: int,
    seen: tuple[float, float],
) -> None:
    """Write a row's observation and info."""
    scales = (
        station.batch,
        station.nameplate_w,
        station.rate,
        station.ttft_s,
        station.rack_w,
        station.lever_begins,
        station.part_begins,
    )
    observe_row(params, state, row, station.start_s[row], station.action[row], scales, seen, outcome.observation[row])
    write_info(
        params,
        state.site[row],
        state.cls[row],
        state.cache[row],
        state.unit[row],
        station.terms[row],
        station.scored[row],
        outcome.info[row],
    )


@kernel
def step_rows(
    params_table: Array,
    state_table: Array,
    station_table: Array,
    outcome_arrays: tuple[Array, ...],
    seen: tuple[float, float],
    numbers: tuple[float, ...],
    rows: Array,
    path_start_s: Array,
    status: Array,
) -> int:
    """Run, or resume, one control step of the given rows with the actions in ``Station.action``.

    What comes anew with every step is handed over as plain tuples, which is cheaper than as named ones; the rest by reference.

    Args:
        params_table: ``Params`` by reference.
        state_table: ``State`` by reference.
        station_table: ``Station`` by reference.
        outcome_arrays: The arrays of ``Outcome``, written.
        seen: ``ObservationLayout.constants``.
        numbers: ``Constants``.
        rows: int64[n] rows to run.
        path_start_s: Time at which each row's rate path begins, s, float64[all rows].
        status: int64[all rows]: FRESH for a step that is to begin, NEEDS_SLOTS for one to resume; DONE rows are skipped.

    Returns:
        DONE when every row is, else NEEDS_SLOTS: call again when the cohort arrays have grown.
    """
    params = params_of(params_table)
    state = state_of(state_table)
    station = station_of(station_table)
    outcome = Outcome(*outcome_arrays)
    constants = Constants(*numbers)
    result = DONE
    for index in range(rows.shape[0]):
        row = rows[index]
        if status[row] == DONE:
            continue
        if status[row] == FRESH:
            decide_row(
                station.action[row],
                station.begins,
                station.pool_racks,
                station.racks_span,
                station.most,
                station.deferrable,
                station.least_effort,
                station.pairs,
                constants.clock_min,
                station.bias[row],
                station.ceiling[row],
                station.power_limit_w[row],
                station.racks[row],
                station.most_batch[row],
                station.gate[row],
                station.order[row],
                station.own[row],
            )
            begin_step(params, state, row)
            apply_action(
                params,
                state,
                row,
                station.bias[row],
                station.ceiling[row],
                station.power_limit_w[row],
                station.racks[row],
                station.most_batch[row],
                station.gate[row],
                station.order[row],
                station.own[row],
            )
        if FEW_ROWS < rows.shape[0] and index + 1 < rows.shape[0]:
            after = rows[index + 1]
            ask_for_row(params, state, after, minute_of(state, path_start_s[after], state.site[after, Site.TIME_S]))
        status[row] = run_step(params, state, row, path_start_s[row])
        if status[row] != DONE:
            result = NEEDS_SLOTS
            continue
        site = state.site[row]
        scored = not station.closed[row]
        station.scored[row] = scored
        outcome.reward[row] = reward_terms(
            site,
            station.price[row],
            constants.scale_tokens,
            constants.miss_weight,
            scored,
            station.terms[row],
            constants.reward_kind,
            constants.scale_usd,
            constants.joules_per_kg,
            station.credit[row],
            params.site[SiteSpec.TRAIN_USD_PER_S],
        )
        if scored and site[Site.TIME_S] >= station.horizon_s[row] - 1e-6:
            station.closed[row] = True
            close_window(state, row)
        outcome.terminated[row] = site[Site.LONGEST_OVERDRAW_S] >= constants.breaker_s
        outcome.truncated[row] = station.closed[row] and _truncated(
            state, row, station.horizon_s[row], constants.drain_s
        )
        _report(params, state, station, outcome, row, seen)
    return result


@kernel
def report_rows(
    params_table: Array,
    state_table: Array,
    station_table: Array,
    outcome_arrays: tuple[Array, ...],
    seen: tuple[float, float],
    rows: Array,
) -> None:
    """Write the observations and infos of rows as they are; arguments as ``step_rows``."""
    params = params_of(params_table)
    state = state_of(state_table)
    station = station_of(station_table)
    outcome = Outcome(*outcome_arrays)
    for index in range(rows.shape[0]):
        _report(params, state, station, outcome, rows[index], seen)


def new_episodes(rows: int, actions: int, terms: int) -> Episodes:
    """Return rows without an episode."""
    return Episodes(
        action=np.zeros((rows, actions)),
        start_s=np.zeros(rows),
        horizon_s=np.zeros(rows),
        price=np.zeros(rows),
        closed=np.zeros(rows, dtype=np.bool_),
        scored=np.ones(rows, dtype=np.bool_),
        terms=np.zeros((rows, terms)),
        credit=np.zeros(rows),
    )


def new_outcome(rows: int, size: int, keys: int) -> Outcome:
    """Return an outcome of zeros: nothing ended, nothing earned."""
    return Outcome(
        observation=np.zeros((rows, size), dtype=np.float32),
        reward=np.zeros(rows),
        terminated=np.zeros(rows, dtype=np.bool_),
        truncated=np.zeros(rows, dtype=np.bool_),
        info=np.zeros((rows, keys)),
    )
