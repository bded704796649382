"""Grouping of a request class into prompt x output cells that keep exact conditional means.

A cohort stands for many requests; carried as one average request it would lose the spread of residence times and the
convexity of attention. Cut into a few cells with exact conditional means, the class keeps its mean work to rounding
error (first moments of both lengths and second moment of the prompt) and most of its spread. What spread of outputs is
left within a cell matters too: a long output holds its place and its memory longer, so that memory in use goes with the
mean squared output. Cohorts of a cell therefore have one of two lengths by turns (``two_lengths``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai_factory_gym.errors import ConfigError, check_range
from ai_factory_gym.workload.classes import RequestClass
from ai_factory_gym.workload.lengths import LengthDistribution
from ai_factory_gym.workload.quadrature import two_lengths

# A quantile cut this close (in probability) to another cut or to the end of the support is left out: it would add a
# cohort per tick that carries next to nothing.
MINIMUM_CELL = 0.005


class Strata(NamedTuple):
    """Cells of one class, prompt-major; every array has shape [K].

    Attributes:
        weight: Share of the class's requests in the cell; sums to 1.
        prompt: Mean prompt in the cell, tokens.
        prompt_sq: Mean squared prompt in the cell, tokens^2 (attention work).
        output: Mean output in the cell, tokens.
        group: Index of the prompt-length group the cell lies in, int64: the number of group edges below its prompts, so
            a prompt exactly at an edge is in the lower group.
        prompt_max: Longest prompt of the cell, tokens.
        output_low: Outputs of the cell are above this, tokens; -inf for none.
        output_high: And at most this, tokens; inf for none.
    """

    weight: NDArray[np.float64]
    prompt: NDArray[np.float64]
    prompt_sq: NDArray[np.float64]
    output: NDArray[np.float64]
    group: NDArray[np.int64]
    prompt_max: NDArray[np.float64]
    output_low: NDArray[np.float64]
    output_high: NDArray[np.float64]


class OutputSlice(NamedTuple):
    """A part of a distribution of output lengths.

    Attributes:
        mean: Mean output, tokens.
        square: Mean squared output, tokens^2.
        short: The lower of two lengths that stand for the slice, tokens.
        long: The higher, tokens.
        long_share: Share of requests that have the higher; two lengths and share keep the slice's first three moments.
    """

    mean: float
    square: float
    short: float
    long: float
    long_share: float


def output_slices(lengths: LengthDistribution, low: float, high: float, parts: int) -> list[OutputSlice]:
    """Cut the outputs in (low, high] into slices of equal probability, shortest first.

    Args:
        lengths: Distribution of outputs.
        low: Lower edge, tokens; -inf for none.
        high: Upper edge, tokens; inf for none.
        parts: Number of slices.
    """
    if lengths.sigma == 0.0:
        only = lengths.median
        return [OutputSlice(only, only * only, only, only, 0.5)] * parts
    below, mass = lengths.probability(-math.inf, low), lengths.probability(low, high)
    cuts = [low, *(lengths.quantile(below + mass * part / parts) for part in range(1, parts)), high]
    slices = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        inside = lengths.probability(a, b)
        mean, square, cube = (lengths.slice_moment(a, b, order) / inside for order in (1, 2, 3))
        slices.append(OutputSlice(mean, square, *two_lengths(mean, square, cube)))
    return slices


def _check_increasing(key: str, values: Sequence[float], low: float, high: float) -> list[float]:
    numbers = [check_range(f"{key}[{i}]", value, low, high) for i, value in enumerate(values)]
    if any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        raise ConfigError(f"{key}: {list(values)!r} must be strictly increasing.")
    return numbers


def _cuts(lengths: LengthDistribution, edges: Sequence[float], quantiles: Sequence[float]) -> list[float]:
    """Return the cell boundaries, -inf and inf included: edges inside the support, then quantiles not too close."""
    kept = [e for e in edges if lengths.probability(-math.inf, e) > 0.0 and lengths.probability(e, math.inf) > 0.0]
    for q in quantiles:
        cut = lengths.quantile(q)
        gaps = [abs(q - lengths.probability(-math.inf, other)) for other in kept]
        if lengths.sigma > 0.0 and all(gap >= MINIMUM_CELL for gap in [*gaps, q, 1.0 - q]):
            kept.append(cut)
    return [-math.inf, *sorted(kept), math.inf]


def build_strata(
    cls: RequestClass,
    group_edges: Sequence[float] = (),
    prompt_quantiles: Sequence[float] = (),
    output_quantiles: Sequence[float] = (),
) -> Strata:
    """Cut a class into cells with exact weights and conditional means.

    Prompt and output lengths are taken as independent: in the Azure and Mooncake traces their correlation lies between
    -0.11 and 0.07.

    Args:
        cls: The request class.
        group_edges: Prompt lengths in tokens that separate routing groups, increasing; a cell never straddles one.
        prompt_quantiles: Probabilities in (0, 1), increasing, at which prompts are cut as well. A cut within
            ``MINIMUM_CELL`` of another cut is left out.
        output_quantiles: Probabilities in (0, 1), increasing, at which outputs are cut.

    Returns:
        The cells. ``sum(weight) = 1``, ``sum(weight * prompt)``, ``sum(weight * prompt_sq)`` and
        ``sum(weight * output)`` are the class's moments up to rounding.

    Raises:
        ConfigError: On edges or quantiles that are out of range or not increasing.
    """
    edges = _check_increasing("group_edges", group_edges, 1.0, 1e9)
    prompt_cuts = _cuts(cls.prompt, edges, _check_increasing("prompt_quantiles", prompt_quantiles, 1e-9, 1.0 - 1e-9))
    output_cuts = _cuts(cls.output, (), _check_increasing("output_quantiles", output_quantiles, 1e-9, 1.0 - 1e-9))
    prompt_rows: list[tuple[float, float, float, int, float]] = []
    for low, high in zip(prompt_cuts, prompt_cuts[1:], strict=False):
        mass = cls.prompt.probability(low, high)
        mean = cls.prompt.slice_moment(low, high, 1) / mass
        square = cls.prompt.slice_moment(low, high, 2) / mass
        group = sum(1 for edge in edges if edge < mean)
        prompt_rows.append((mass, mean, square, group, min(high, cls.prompt.maximum)))
    output_rows = [
        (mass, cls.output.slice_moment(low, high, 1) / mass, low, high)
        for low, high in zip(output_cuts, output_cuts[1:], strict=False)
        for mass in [cls.output.probability(low, high)]
    ]
    cells = [(p[0] * o[0], p[1], p[2], o[1], p[3], p[4], o[2], o[3]) for p in prompt_rows for o in output_rows]
    columns = list(zip(*cells, strict=True))
    weight, prompt, prompt_sq, output, prompt_max, output_low, output_high = (
        np.array(columns[i], dtype=np.float64) for i in (0, 1, 2, 3, 5, 6, 7)
    )
    group_index = np.array(columns[4], dtype=np.int64)
    return Strata(weight, prompt, prompt_sq, output, group_index, prompt_max, output_low, output_high)
