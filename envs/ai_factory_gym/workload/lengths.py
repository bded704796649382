"""Prompt and output lengths: a truncated log-normal in tokens, with exact moments of any slice of it.

The log-normal is the usual first description of LLM request lengths: the logarithm of prompt and output tokens of
the Azure 2023 conversation trace has standard deviation 0.99 and 0.86, of the Mooncake conversation prompts 1.20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ai_factory_gym.errors import ConfigError, check_range

Float64Array = NDArray[np.float64]

# Rational approximations of the normal quantile, highest power first: Wichura (1988), "Algorithm AS 241: The
# percentage points of the normal distribution", Applied Statistics 37(3), 477-484, routine PPND16 (1e-16 relative).
_CENTRE_NUMERATOR = (
    2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
    13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080,
)  # fmt: skip
_CENTRE_DENOMINATOR = (
    5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
    5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0,
)  # fmt: skip
_MIDDLE_NUMERATOR = (
    7.74545014278341407640e-4, 0.0227238449892691845833, 0.241780725177450611770, 1.27045825245236838258,
    3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734,
)  # fmt: skip
_MIDDLE_DENOMINATOR = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 0.0151986665636164571966, 0.148103976427480074590,
    0.689767334985100004550, 1.67638483018380384940, 2.05319162663775882187, 1.0,
)  # fmt: skip
_TAIL_NUMERATOR = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 0.0265321895265761230930,
    0.296560571828504891230, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720,
)  # fmt: skip
_TAIL_DENOMINATOR = (
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    0.0148753612908506148525, 0.136929880922735805310, 0.599832206555887937690, 1.0,
)  # fmt: skip


def _horner(coefficients: tuple[float, ...], x: Float64Array) -> Float64Array:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def normal_quantile(probability: ArrayLike) -> Float64Array:
    """Return the standard normal quantile, vectorised (AS 241, about 1e-16 relative).

    Args:
        probability: Any shape, values in [0, 1]; 0 and 1 give -inf and inf.

    Returns:
        float64 of the same shape.
    """
    p = np.asarray(probability, dtype=np.float64)
    flat = p.reshape(-1)
    centred = flat - 0.5
    t = 0.180625 - centred * centred
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.asarray(centred * _horner(_CENTRE_NUMERATOR, t) / _horner(_CENTRE_DENOMINATOR, t))
        outside = np.flatnonzero(np.abs(centred) > 0.425)
        if outside.size:
            c = centred[outside]
            r = np.sqrt(-np.log(np.where(c < 0.0, flat[outside], 1.0 - flat[outside])))
            z = _horner(_MIDDLE_NUMERATOR, r - 1.6) / _horner(_MIDDLE_DENOMINATOR, r - 1.6)
            far = r > 5.0
            if far.any():
                tail = r[far] - 5.0
                z[far] = _horner(_TAIL_NUMERATOR, tail) / _horner(_TAIL_DENOMINATOR, tail)
                z[np.isinf(r)] = np.inf
            result[outside] = np.copysign(z, c)
    return result.reshape(p.shape)


def _normal_interval(low_z: float, high_z: float) -> float:
    """Probability of a standard normal in (low_z, high_z]; from whichever tail loses no digits."""
    if high_z <= low_z:
        return 0.0
    root_half = math.sqrt(0.5)
    if low_z > 0.0:
        return 0.5 * (math.erfc(low_z * root_half) - math.erfc(high_z * root_half))
    return 0.5 * (math.erfc(-high_z * root_half) - math.erfc(-low_z * root_half))


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """A log-normal number of tokens, truncated to ``[minimum, maximum]``.

    ``ln X`` is normal with mean ``ln median`` and standard deviation ``sigma`` before truncation. The variable is
    continuous; whoever needs whole tokens rounds (to nearest, which leaves the mean in place).

    Attributes:
        median: Median before truncation, tokens.
        sigma: Standard deviation of the natural logarithm before truncation; 0 means every length is ``median``.
        minimum: Shortest length, tokens.
        maximum: Longest length, tokens.
    """

    median: float
    sigma: float
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        """Refuse an empty or meaningless distribution (ConfigError)."""
        check_range("minimum", self.minimum, 1.0, 1e9, "tokens")
        check_range("maximum", self.maximum, self.minimum, 1e9, "tokens")
        check_range("median", self.median, 1.0, 1e9, "tokens")
        check_range("sigma", self.sigma, 0.0, 5.0)
        if self.sigma == 0.0 and not self.minimum <= self.median <= self.maximum:
            raise ConfigError(
                f"median: {self.median!r} lies outside [{self.minimum:g}, {self.maximum:g}] with sigma 0."
            )
        if self.sigma > 0.0 and self.minimum == self.maximum:
            raise ConfigError("maximum: must exceed minimum when sigma > 0; for a fixed length set sigma to 0.")
        if self.sigma > 0.0 and self._mass() < 1e-6:
            raise ConfigError(
                f"minimum, maximum: [{self.minimum:g}, {self.maximum:g}] holds under 1e-6 of a log-normal with "
                f"median {self.median:g} and sigma {self.sigma:g}."
            )

    def _z(self, tokens: float) -> float:
        return (math.log(tokens) - math.log(self.median)) / self.sigma

    def _mass(self) -> float:
        return _normal_interval(self._z(self.minimum), self._z(self.maximum))

    def probability(self, low: float, high: float) -> float:
        """Return P(low < X <= high); a slice from below the minimum includes the minimum itself."""
        return self.slice_moment(low, high, 0)

    def slice_moment(self, low: float, high: float, order: int) -> float:
        """Return E[X^order; low < X <= high], the partial moment of a slice (not divided by its probability).

        For a log-normal, E[X^k; a < X <= b] = exp(k mu + k^2 sigma^2 / 2) [Phi(z_b - k sigma) - Phi(z_a - k sigma)],
        here over the probability kept by the truncation.

        Args:
            low: Lower edge, tokens; anything below ``minimum`` (``-inf`` too) means no lower edge.
            high: Upper edge, tokens; ``inf`` means no upper edge.
            order: Power of the length, 0 or more.

        Returns:
            The partial moment in tokens^order.
        """
        if self.sigma == 0.0:
            inside = low < self.median <= high
            return self.median**order if inside else 0.0
        a = max(low, self.minimum)
        b = min(high, self.maximum)
        if b <= a:
            return 0.0
        shift = order * self.sigma
        scale = math.exp(order * math.log(self.median) + 0.5 * shift * shift)
        return scale * _normal_interval(self._z(a) - shift, self._z(b) - shift) / self._mass()

    def mean(self) -> float:
        """Return the mean in tokens, truncation included."""
        return self.slice_moment(-math.inf, math.inf, 1)

    def second_moment(self) -> float:
        """Return E[X^2] in tokens^2, truncation included."""
        return self.slice_moment(-math.inf, math.inf, 2)

    def sample(self, u: ArrayLike) -> Float64Array:
        """Return lengths by the inverse distribution function of uniforms.

        Args:
            u: Uniform numbers in [0, 1], any shape.

        Returns:
            float64 tokens of the same shape, within ``[minimum, maximum]``, increasing in ``u``.
        """
        uniform = np.asarray(u, dtype=np.float64)
        if self.sigma == 0.0:
            return np.full_like(uniform, self.median)
        below = _normal_interval(-math.inf, self._z(self.minimum))
        z = normal_quantile(np.clip(below + uniform * self._mass(), 0.0, 1.0))
        tokens = np.exp(math.log(self.median) + self.sigma * z)
        return np.asarray(np.clip(tokens, self.minimum, self.maximum), dtype=np.float64)

    def quantile(self, probability: float) -> float:
        """Return the length exceeded with probability ``1 - probability``, tokens."""
        check_range("probability", probability, 0.0, 1.0)
        return float(self.sample(probability))

    @classmethod
    def from_mean(cls, mean: float, sigma: float, minimum: float, maximum: float) -> LengthDistribution:
        """Return the distribution with this sigma and truncation whose mean, after truncation, is ``mean``.

        Args:
            mean: Wanted mean, tokens, strictly between ``minimum`` and ``maximum``.
            sigma: Standard deviation of the logarithm before truncation.
            minimum: Shortest length, tokens.
            maximum: Longest length, tokens.

        Raises:
            ConfigError: When no median gives that mean.
        """
        low, high = math.log(max(minimum, 1.0)), math.log(maximum)
        for _ in range(200):
            middle = 0.5 * (low + high)
            if cls(math.exp(middle), sigma, minimum, maximum).mean() < mean:
                low = middle
            else:
                high = middle
        found = cls(math.exp(0.5 * (low + high)), sigma, minimum, maximum)
        if not math.isclose(found.mean(), mean, rel_tol=1e-9):
            raise ConfigError(
                f"mean: {mean!r} tokens cannot be reached with sigma {sigma:g} in [{minimum:g}, {maximum:g}]."
            )
        return found
