"""Random numbers inside kernels: one xoshiro256++ state per row and purpose, part of the snapshot.

Algorithms: xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", ACM TOMS 2021); Poisson by
inversion below a mean of 10 and by transformed rejection PTRS above (Hoermann, "The transformed rejection method for
generating Poisson random variables", Insurance: Mathematics and Economics 1993); normal pairs by the polar method (Marsaglia and Bray, "A
convenient method for generating normal variables", SIAM Review 1964).
"""

from __future__ import annotations

import math

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


@inlined_kernel
def uniform(stream: Array) -> float:
    """Return a uniform number in (0, 1) and advance ``stream`` (uint64[4])."""
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
    return (float(result >> _S11) + 0.5) * _TO_UNIT


@inlined_kernel
def exponential(stream: Array) -> float:
    """Return an exponential number of mean 1."""
    return -math.log(uniform(stream))


@inlined_kernel
def normal_pair(stream: Array) -> tuple[float, float]:
    """Return two independent standard normal numbers."""
    square = 2.0
    first = 0.0
    second = 0.0
    while square >= 1.0:
        first = 2.0 * uniform(stream) - 1.0
        second = 2.0 * uniform(stream) - 1.0
        square = first * first + second * second
    scale = math.sqrt(-2.0 * math.log(square) / square)
    return first * scale, second * scale


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
