"""How well the mean of correlated series is known, from their power at low frequencies.

The variance of a mean is the spectral density at frequency zero, S₀, over the length (Heidelberger and Welch, Commun.
ACM 24, 233 (1981)). The lowest cosine transforms of a series are nearly independent normal numbers whose variances are
the spectral density at their frequencies, and the means of replicas are one more each (Müller, Econometrica 82, 1235
(2014)): their joint density is Whittle's likelihood (Ark. Mat. 2, 423 (1953)). The spectrum is that of two exponential
correlations, exp(−t/τ) with a share p of S₀ and a faster one; for each (τ/n, p, τ'/τ) on a grid the variances of the
transforms of n frames are known,

    A_k(x) = [1 − 2x (1 − (−1)ᵏ e^(−1/x)) / w_k] / w_k,    w_k = 1 + (π k x)²,    x = τ/n,

and that of the mean, B(x) = 1 − x (1 − e^(−1/x)), both in units of S₀ and S₀/n. With the density 1/S₀ for S₀, and a
power of x for x, the mean has a posterior that is a mixture of Student's distributions. It is narrow where the data
show the plateau of the spectrum and wide where they do not, so that a run too short for its own correlation time is not
taken for a good one. The mixture is replaced by one Student's distribution with the same mean and variance of ln S₀;
its degrees of freedom say how well the error itself is known.

A few series tell little of motion that is as slow as they are long: there the prior decides. It is the less for such
motion, the longer the series are in units of the correlation time that they show (`seen_lengths`), for motion is the
less likely to be there, the further it is below all that is seen.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from scipy.fft import next_fast_len
from scipy.special import digamma, polygamma
from scipy.stats import f as f_distribution

FREQUENCIES = 32
"""Most cosine transforms that are looked at, besides the mean."""

LONG = 1.0
"""Correlation times in units of the run from which on one replica says nothing of its mean."""

TIMES = np.geomspace(3e-4, 2.0, 24)
"""Values of x = τ/n: correlation times in units of the length of the run."""

EXPONENT = (1.0, 0.17)
"""The prior density of ln x is x to the power a − b ln N, for series of N seen lengths. The numbers are such that
intervals hold from two correlation times on, see `experiments/benchmarks/coverage.py`."""

SHARES = (1.0, 0.998, 0.99, 0.95, 0.85, 0.6)
"""Of S₀ that the slow correlation has, equally likely; 1 is a single exponential."""

FAST = (0.0, 0.05, 0.2)
"""τ'/τ, the correlation times of the fast part."""


def seen_lengths(deviations: Float[np.ndarray, "replicas frames elements"]) -> float:
    """Length of series in units of twice the time in which their autocorrelation falls to 1/e.

    The autocorrelation is about the overall mean, averaged over replicas and elements, all of which must move. For one
    exponential this is the number of effective samples in a replica; of several it sees the fastest that matters, and
    a vibration by its period.
    """
    _, frames, _ = deviations.shape
    padded = next_fast_len(2 * frames, real=True)
    scaled = deviations / np.sqrt((deviations**2).mean(axis=(0, 1)))
    power = sum((np.abs(np.fft.rfft(each, padded, axis=0)) ** 2).sum(axis=1) for each in scaled)
    covariance = np.fft.irfft(power, padded)[:frames] / (frames - np.arange(frames))
    correlation = covariance / covariance[0] - np.exp(-1.0)
    after = int(np.argmax(correlation < 0.0))
    if after == 0:
        return 0.5
    decay = after - correlation[after] / (correlation[after] - correlation[after - 1])
    return frames / max(1.0, 2.0 * float(decay))


@dataclasses.dataclass(frozen=True)
class Scale:
    """Student's distribution of a mean.

    Attributes:
        error: scale, of the shape of the mean.
        dof: degrees of freedom, of the same shape.
        unresolved: probability that the correlation time exceeds `LONG` lengths of the run.
    """

    error: Float[np.ndarray, " elements"]
    dof: Float[np.ndarray, " elements"]
    unresolved: Float[np.ndarray, " elements"]


@dataclasses.dataclass(frozen=True)
class Powers:
    """Squares of low-frequency transforms, summed over replicas.

    Attributes:
        replicas, frames: of the series.
        means: [elements], n Σ (x̄_r − x̄)².
        transforms: [frequencies, elements], from the first on.
        amplitudes: [frequencies, elements], sums of the transforms over replicas, over √replicas: what all share.
    """

    replicas: int
    frames: int
    means: Float[np.ndarray, " elements"]
    transforms: Float[np.ndarray, "frequencies elements"]
    amplitudes: Float[np.ndarray, "frequencies elements"]

    @classmethod
    def of(cls, deviations: Float[np.ndarray, "replicas frames elements"]) -> "Powers":
        """Those of series minus their overall mean."""
        replicas, frames, _ = deviations.shape
        number = min(FREQUENCIES, frames - 1)
        basis = np.sqrt(2.0 / frames) * np.cos(
            np.pi / frames * np.outer(np.arange(1, number + 1), np.arange(frames) + 0.5)
        )
        amplitudes = np.stack([basis @ each for each in deviations])
        transforms = (amplitudes**2).sum(axis=0)
        return cls(
            replicas=replicas,
            frames=frames,
            means=frames * (deviations.mean(axis=1) ** 2).sum(axis=0),
            transforms=transforms,
            amplitudes=amplitudes.sum(axis=0) / np.sqrt(replicas),
        )

    @property
    def dof(self) -> int:
        """Numbers that the powers are sums of the squares of."""
        return self.replicas * len(self.transforms) + self.replicas - 1

    def scale(self, lengths: float) -> Scale:
        """Student's distribution of the mean for series of so many `seen_lengths`; see the head of this module.

        There must be a degree of freedom, and every element must move.
        """
        shapes, of_mean, weights, times = _grid(len(self.transforms))
        prior = np.log(weights) + (EXPONENT[0] - EXPONENT[1] * np.log(lengths)) * np.log(times)
        quadratic = (1.0 / shapes) @ self.transforms + self.means / of_mean[:, None]
        determinant = self.replicas * np.log(shapes).sum(axis=1) + (self.replicas - 1) * np.log(of_mean)
        evidence = (prior - 0.5 * determinant)[:, None] - 0.5 * self.dof * np.log(quadratic)
        posterior = np.exp(evidence - evidence.max(axis=0))
        posterior /= posterior.sum(axis=0)
        squared = np.log(quadratic * (of_mean / (self.dof * self.frames * self.replicas))[:, None])
        mean = (posterior * squared).sum(axis=0)
        variance = (posterior * (squared - mean) ** 2).sum(axis=0) + polygamma(1, 0.5 * self.dof)
        dof = np.interp(-variance, -_VARIANCES, _DOFS)
        # ln σ² of Student's distribution with scale e and ν degrees has the mean ln e² + ln(ν/2) − ψ(ν/2).
        mean += np.log(0.5 * self.dof) - digamma(0.5 * self.dof) - np.log(0.5 * dof) + digamma(0.5 * dof)
        return Scale(np.exp(0.5 * mean), dof, posterior[times > LONG].sum(axis=0))

    def between(self) -> Float[np.ndarray, " elements"]:
        """Standard error of the mean from the replicas' means alone, with a degree of freedom fewer than replicas."""
        return np.sqrt(self.means / (self.replicas - 1) / (self.frames * self.replicas))

    def disagreement(self) -> Float[np.ndarray, " elements"]:
        """Probability of replicas' means so far apart, if their power were that of the four slowest transforms."""
        if self.replicas < 2 or not len(self.transforms):
            return np.ones_like(self.means)
        lowest = self.transforms[:4]
        others = lowest.sum(axis=0) / (self.replicas * len(lowest))
        between = self.means / (self.replicas - 1)
        ratio = np.divide(between, others, out=np.ones_like(between), where=others > 0)
        return f_distribution.sf(ratio, self.replicas - 1, self.replicas * len(lowest))


_DOFS = np.geomspace(0.3, 3000.0, 4000)
_VARIANCES = polygamma(1, 0.5 * _DOFS)


@functools.cache
def _grid(frequencies: int) -> tuple[np.ndarray, ...]:
    """Variances of the transforms [grid, frequencies] and of the mean, weights and times, all [grid]."""
    k = np.arange(1, frequencies + 1)
    shapes, of_mean, weights, times = [], [], [], []

    def transforms(x: float) -> np.ndarray:
        if x == 0.0:
            return np.ones(frequencies)
        width = 1.0 + (np.pi * k * x) ** 2
        return (1.0 - 2.0 * x * (1.0 - (-1.0) ** k * np.exp(-1.0 / x)) / width) / width

    def mean(x: float) -> float:
        return 1.0 if x == 0.0 else 1.0 - x * (1.0 - np.exp(-1.0 / x))

    for x in TIMES:
        for share in SHARES:
            ratios = (0.0,) if share == 1.0 else FAST
            for ratio in ratios:
                shapes.append(share * transforms(x) + (1.0 - share) * transforms(ratio * x))
                of_mean.append(share * mean(x) + (1.0 - share) * mean(ratio * x))
                weights.append(1.0 / len(ratios))
                times.append(x)
    return np.array(shapes), np.array(of_mean), np.array(weights), np.array(times)
