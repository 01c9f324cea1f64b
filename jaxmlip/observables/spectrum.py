"""How well the mean of correlated series is known, from their power at low frequencies.

The variance of a mean is the spectral density at frequency zero, S₀, over the length (Heidelberger and Welch, Commun.
ACM 24, 233 (1981)). The lowest cosine transforms of a series are nearly independent normal numbers whose variances are
the spectral density at their frequencies, and the means of replicas are one more each (Müller, Econometrica 82, 1235
(2014)): their joint density is Whittle's likelihood (Ark. Mat. 2, 423 (1953)). The spectrum is that of two exponential
correlations, exp(−t/τ) with a share p of S₀ and a faster one; for each (τ/n, p, τ'/τ) on a grid the variances of the
transforms of n frames are known,

    A_k(x) = [1 − 2x (1 − (−1)ᵏ e^(−1/x)) / w_k] / w_k,    w_k = 1 + (π k x)²,    x = τ/n,

and that of the mean, B(x) = 1 − x (1 − e^(−1/x)), both in units of S₀ and S₀/n. With the density 1/S₀ for S₀, and one
for x that grows slowly, the mean has a posterior that is a mixture of Student's distributions. It
is narrow where the data show the plateau of the spectrum and wide where they do not, so that a run too short for its
own correlation time is not taken for a good one. The mixture is replaced by one Student's distribution with the same
mean and variance of ln S₀; its degrees of freedom say how well the error itself is known.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from scipy.special import digamma, polygamma
from scipy.stats import chi2
from scipy.stats import f as f_distribution

FREQUENCIES = 32
"""Most cosine transforms that are looked at, besides the mean."""


LONG = 1.0
"""Correlation times in units of the run from which on one replica says nothing of its mean."""


TIMES = np.geomspace(3e-4, 2.0, 24)
"""Values of x = τ/n: correlation times in units of the length of the run."""

EXPONENT = (0.25, 0.3)
"""The prior density of ln x is x to the power a + b/R: slow motion is thought likely, the more so the fewer replicas
there are to show it. The numbers are such that intervals hold from two correlation times on, see
`experiments/benchmarks/coverage.py`."""

SHARES = (1.0, 0.998, 0.99, 0.95, 0.85, 0.6)
"""Of S₀ that the slow correlation has, equally likely; 1 is a single exponential."""

FAST = (0.0, 0.05, 0.2)
"""τ'/τ, the correlation times of the fast part."""


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
        independent: how many independent elements there are, (Σ λ)² / Σ λ² of the eigenvalues of their correlations.
    """

    replicas: int
    frames: int
    means: Float[np.ndarray, " elements"]
    transforms: Float[np.ndarray, "frequencies elements"]
    amplitudes: Float[np.ndarray, "frequencies elements"]
    independent: float

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
        norms = np.sqrt(transforms.sum(axis=0))
        unit = np.divide(amplitudes, norms, out=np.zeros_like(amplitudes), where=norms > 0)
        unit = unit.reshape(replicas * number, -1)
        correlations = unit @ unit.T
        return cls(
            replicas=replicas,
            frames=frames,
            means=frames * (deviations.mean(axis=1) ** 2).sum(axis=0),
            transforms=transforms,
            amplitudes=amplitudes.sum(axis=0) / np.sqrt(replicas),
            independent=float(np.trace(correlations) ** 2 / max((correlations**2).sum(), 1e-300)),
        )

    @property
    def dof(self) -> int:
        """Numbers that the powers are sums of the squares of."""
        return self.replicas * len(self.transforms) + self.replicas - 1

    def scale(self) -> Scale:
        """Student's distribution of the mean; see the head of this module.

        There must be a degree of freedom, and every element must move.
        """
        shapes, of_mean, weights, times = _grid(len(self.transforms), EXPONENT[0] + EXPONENT[1] / self.replicas)
        quadratic = (1.0 / shapes) @ self.transforms + self.means / of_mean[:, None]
        determinant = self.replicas * np.log(shapes).sum(axis=1) + (self.replicas - 1) * np.log(of_mean)
        evidence = (np.log(weights) - 0.5 * determinant)[:, None] - 0.5 * self.dof * np.log(quadratic)
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

    def excess(self) -> Float[np.ndarray, " elements"]:
        """Power of the replicas' means and the first transform over the median of the others, per degree of freedom.

        About 1 for series of hundreds of correlation times, whatever their number; far more where there is something
        slower than the run. Infinite where there are too few frames to say.
        """
        if len(self.transforms) < 8:
            return np.full(self.means.shape, np.inf)
        floor = np.median(self.transforms[1:], axis=0) / chi2.ppf(0.5, self.replicas)
        lowest = (self.means + self.transforms[0]) / (2 * self.replicas - 1)
        return np.divide(lowest, floor, out=np.full_like(lowest, np.inf), where=floor > 0)

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
def _grid(frequencies: int, exponent: float) -> tuple[np.ndarray, ...]:
    """Variances of the transforms [grid, frequencies] and of the mean [grid], and weights [grid]."""
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
                weights.append(x**exponent / len(ratios))
                times.append(x)
    return np.array(shapes), np.array(of_mean), np.array(weights), np.array(times)
