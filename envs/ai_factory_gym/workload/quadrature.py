"""Two lengths that stand for a distribution of lengths; plain Python, which the engine compiles for itself."""

from __future__ import annotations

import math


def two_lengths(mean: float, square: float, cube: float) -> tuple[float, float, float]:
    """Return two lengths and the share of the longer that have a distribution's first three moments.

    This is Gauss quadrature with two nodes, which lie inside the distribution's support: with standard deviation s and
    skewness g they are mean + s (g / 2 -+ sqrt(1 + g^2 / 4)).

    Args:
        mean: E[X].
        square: E[X^2].
        cube: E[X^3].

    Returns:
        The shorter and the longer length, and the probability of the longer.
    """
    variance = square - mean * mean
    # Below rounding error there is no spread, and a skewness would be noise.
    if variance <= 1e-9 * square:
        return mean, mean, 0.5
    deviation = math.sqrt(variance)
    half_skewness = 0.5 * (cube - 3.0 * mean * square + 2.0 * mean * mean * mean) / (variance * deviation)
    root = math.sqrt(1.0 + half_skewness * half_skewness)
    return (
        mean + deviation * (half_skewness - root),
        mean + deviation * (half_skewness + root),
        0.5 * (1.0 - half_skewness / root),
    )
