"""Random numbers inside kernels: one xoshiro256++ state per row and purpose, part of the snapshot.

Algorithms: xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 2021); Poisson by
inversion below a mean of 10 and by transformed rejection PTRS above (Hoermann, "The transformed rejection method for
generating Poisson random variables", Insurance: Mathematics and Economics 1993); normal and exponential numbers by the ziggurat of 256
layers (Marsaglia and Tsang, "The ziggurat method for generating random variables", Journal of Statistical Software 2000), layer and
place within it from different bits of one word (Doornik, "An improved ziggurat method to generate normal random samples", 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ai_factory_gym.engine.layout import Array
from ai_factory_gym.jit import inlined_kernel, kernel

_TO_UNIT = 1.0 / 9007199254740992.0  # 2^-53
_S11 = np.uint64(11)
_S17 = np.uint64(17)
_S19 = np.uint64(19)
_S23 = np.uint64(23)
_S41 = np.uint64(41)
_S45 = np.uint64(45)


def seed_stream(generator: np.random.Generator) -> Array:
    """Return a xoshiro state (uint64[4]) drawn from a numpy generator; never all zero."""
    words = generator.integers(0, 2**64, size=4, dtype=np.uint64)
    words[0] |= np.uint64(1)
    return words


_LAYERS = 256
_LAYER_BITS = np.uint64(_LAYERS - 1)
_SIGN_BIT = np.uint64(_LAYERS)


def _ziggurat(edge: float, area: float, density: Callable[[float], float], inverse: Callable[[float], float]) -> Array:
    """Return where the layers of a ziggurat end, from the lowest, float64[layers + 1]: all have the same area under a falling density.

    The lowest holds the tail beyond ``edge``; where it ends is its area over its height.
    """
    ends = np.zeros(_LAYERS + 1)
    ends[0] = area / density(edge)
    ends[1] = edge
    for layer in range(2, _LAYERS):
        ends[layer] = inverse(density(ends[layer - 1]) + area / ends[layer - 1])
    return ends


_NORMAL_EDGE = 3.6541528853610088
_NORMAL_ENDS = _ziggurat(
    _NORMAL_EDGE,
    _NORMAL_EDGE * math.exp(-0.5 * _NORMAL_EDGE**2)
    + math.sqrt(0.5 * math.pi) * math.erfc(_NORMAL_EDGE / math.sqrt(2.0)),
    lambda x: math.exp(-0.5 * x * x),
    lambda y: math.sqrt(-2.0 * math.log(y)),
)
_NORMAL_DENSITY = np.exp(-0.5 * _NORMAL_ENDS**2)

_EXPONENTIAL_EDGE = 7.697117470131050
_EXPONENTIAL_ENDS = _ziggurat(
    _EXPONENTIAL_EDGE,
    (1.0 + _EXPONENTIAL_EDGE) * math.exp(-_EXPONENTIAL_EDGE),
    lambda x: math.exp(-x),
    lambda y: -math.log(y),
)
_EXPONENTIAL_DENSITY = np.exp(-_EXPONENTIAL_ENDS)
"""Edges for which 256 layers end at the top of the density (Marsaglia and Tsang 2000); tests/test_engine_units.py checks that they do."""


@inlined_kernel
def _word(stream: Array) -> int:
    """Return 64 random bits and advance ``stream`` (uint64[4])."""
    s0 = stream[0]
    s1 = stream[1]
    s2 = stream[2]
    s3 = stream[3]
    mixed = s0 + s3
    result = ((mixed << _S23) | (mixed >> _S41)) + s0
    shifted = s1 << _S17
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    s3 = (s3 << _S45) | (s3 >> _S19)
    stream[0] = s0
    stream[1] = s1
    stream[2] = s2
    stream[3] = s3
    return result


@inlined_kernel
def uniform(stream: Array) -> float:
    """Return a uniform number in (0, 1) and advance ``stream`` (uint64[4])."""
    return (float(_word(stream) >> _S11) + 0.5) * _TO_UNIT


@inlined_kernel
def exponential(stream: Array) -> float:
    """Return an exponential number of mean 1."""
    while True:
        word = _word(stream)
        layer = int(word & _LAYER_BITS)
        x = (float(word >> _S11) + 0.5) * _TO_UNIT * _EXPONENTIAL_ENDS[layer]
        if x < _EXPONENTIAL_ENDS[layer + 1]:
            return x
        if layer == 0:
            return _EXPONENTIAL_EDGE - math.log(uniform(stream))
        low = _EXPONENTIAL_DENSITY[layer]
        if low + uniform(stream) * (_EXPONENTIAL_DENSITY[layer + 1] - low) < math.exp(-x):
            return x


@inlined_kernel
def normal(stream: Array) -> float:
    """Return a standard normal number."""
    while True:
        word = _word(stream)
        layer = int(word & _LAYER_BITS)
        x = (float(word >> _S11) + 0.5) * _TO_UNIT * _NORMAL_ENDS[layer]
        low = _NORMAL_DENSITY[layer]
        if x >= _NORMAL_ENDS[layer + 1]:
            if layer == 0:
                x = _beyond(stream, _NORMAL_EDGE)
            elif low + uniform(stream) * (_NORMAL_DENSITY[layer + 1] - low) >= math.exp(-0.5 * x * x):
                continue
        return x if word & _SIGN_BIT else -x


@kernel
def _beyond(stream: Array, edge: float) -> float:
    """Return a standard normal number given that it is larger than ``edge`` (Marsaglia 1964)."""
    while True:
        over = -math.log(uniform(stream)) / edge
        if -2.0 * math.log(uniform(stream)) > over * over:
            return edge + over


@kernel
def poisson(stream: Array, mean: float) -> int:
    """Return a Poisson count of the given mean (0 when the mean is 0 or less)."""
    if mean <= 0.0:
        return 0
    if mean < 10.0:
        threshold = math.exp(-mean)
        count = 0
        product = uniform(stream)
        while product > threshold:
            count += 1
            product *= uniform(stream)
        return count
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    while True:
        u = uniform(stream) - 0.5
        v = uniform(stream)
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= v_r:
            return int(k)
        if k < 0.0 or (us < 0.013 and v > us):
            continue
        accept = math.log(v) + math.log(inverse_alpha) - math.log(a / (us * us) + b)
        if accept <= -mean + k * math.log(mean) - math.lgamma(k + 1.0):
            return int(k)
