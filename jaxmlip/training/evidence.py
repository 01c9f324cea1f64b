"""Bayesian linear regression in closed form, with the strengths of its priors chosen by the marginal likelihood.

The weights of each block of features have a Gaussian prior with one variance for the block; the variances and the
noise are those that make the labels most probable (MacKay, Neural Computation 4, 415 (1992); in kernel form Rasmussen
and Williams, Gaussian Processes for Machine Learning (2006), sections 2.1 and 5.4). There are at most a few hundred
labels and many more features, so everything is done with matrices of the size [labels, labels], in float64 on the host.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Int

HYPERPRIOR = 4.0
"""Standard deviation of the logarithms of the unknowns about the scale of the labels: weak, but it holds what the
labels leave open, such as the scale of a block that they do not need."""

SMALLEST_NOISE = 1e-3
"""Standard deviation of the noise over that of the labels below which the noise is not thought to go."""

NOISES = (0.1, 0.01)
"""Where the search for the noise starts, over the labels: one maximum of the evidence may call everything noise."""


@dataclasses.dataclass(frozen=True)
class LinearPosterior:
    """What labels say of the weights of a linear model y = Σ_blocks X w + noise.

    Attributes:
        features: X of each block, [labels, features of the block].
        labels: y, [labels].
        sizes: [labels]; the variance of the noise of a label is noise² · size.
        variances: [blocks], prior variance of the weights of each block.
        noise: standard deviation of the noise of a label of size 1, in the unit of the labels.
        log_evidence: log p(labels | variances, noise).
    """

    features: Sequence[Float[np.ndarray, "labels _"]]
    labels: Float[np.ndarray, " labels"]
    sizes: Float[np.ndarray, " labels"]
    variances: Float[np.ndarray, " blocks"]
    noise: float
    log_evidence: float

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        """Cholesky factor of the covariance of the labels."""
        kernels = [x @ x.T for x in self.features]
        return scipy.linalg.cho_factor(covariance(kernels, self.sizes, self.variances, self.noise), lower=True)

    @cached_property
    def precision(self) -> Float[np.ndarray, "labels labels"]:
        """Inverse of the covariance of the labels."""
        return scipy.linalg.cho_solve(self._factor, np.eye(len(self.labels)))

    def mean(self) -> list[Float[np.ndarray, " _"]]:
        """The most probable weights of each block."""
        return self._weights(self.labels)

    def sample(self, rng: np.random.Generator) -> list[Float[np.ndarray, " _"]]:
        """Weights drawn from the posterior, by correcting a draw from the prior (Matheron's rule).

        The correction is what the labels say beyond that draw and its noise: Wilson et al., ICML 2020
        (arXiv:2002.09309), eq. 10.
        """
        draw = [
            rng.standard_normal(x.shape[1]) * variance**0.5
            for x, variance in zip(self.features, self.variances, strict=True)
        ]
        drawn = sum((x @ w for x, w in zip(self.features, draw, strict=True)), np.zeros(len(self.labels)))
        noise = self.noise * self.sizes**0.5 * rng.standard_normal(len(self.labels))
        correction = self._weights(self.labels - drawn - noise)
        return [w + change for w, change in zip(draw, correction, strict=True)]

    def predict(
        self, features: Sequence[Float[np.ndarray, "others _"]]
    ) -> tuple[Float[np.ndarray, " others"], Float[np.ndarray, " others"]]:
        """Mean and standard deviation, without noise, of Σ_blocks X w for other features."""
        mean = sum((x @ w for x, w in zip(features, self.mean(), strict=True)), np.zeros(len(features[0])))
        terms = zip(features, self.features, self.variances, strict=True)
        parts = [(v * x @ own.T, v * np.sum(x**2, axis=1)) for x, own, v in terms]
        cross, prior = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
        explained = np.sum(cross * scipy.linalg.cho_solve(self._factor, cross.T).T, axis=1)
        return mean, np.sqrt(np.maximum(prior - explained, 0.0))

    def prior_covariance(
        self, one: Sequence[Float[np.ndarray, "one _"]], other: Sequence[Float[np.ndarray, "other _"]]
    ) -> Float[np.ndarray, "one other"]:
        """Covariance of Σ_blocks X w for two sets of features, before any label."""
        terms = zip(self.variances, one, other, strict=True)
        return np.sum([variance * (x @ y.T) for variance, x, y in terms], axis=0)

    def covariance_of(
        self, one: Sequence[Float[np.ndarray, "one _"]], other: Sequence[Float[np.ndarray, "other _"]]
    ) -> Float[np.ndarray, "one other"]:
        """Covariance of Σ_blocks X w, without noise, for two sets of features, after the labels."""
        explained = scipy.linalg.cho_solve(self._factor, self.prior_covariance(self.features, other))
        return self.prior_covariance(one, other) - self.prior_covariance(one, self.features) @ explained

    def without(self, places: Sequence[int] | Int[np.ndarray, " places"]) -> "LinearPosterior":
        """What the other labels say, with the same variances and noise; the evidence is not computed anew (NaN).

        Args:
            places: numbers of the labels to leave out.
        """
        rest = np.delete(np.arange(len(self.labels)), places)
        return dataclasses.replace(
            self,
            features=[block[rest] for block in self.features],
            labels=self.labels[rest],
            sizes=self.sizes[rest],
            log_evidence=np.nan,
        )

    def left_out(self) -> Float[np.ndarray, " labels"]:
        """Error (prediction − label) for each label by the model that has seen all others.

        Rasmussen and Williams, eq. 5.12; variances and noise stay as they are.
        """
        return -(self.precision @ self.labels) / np.diag(self.precision)

    def _weights(self, labels: Float[np.ndarray, " labels"]) -> list[Float[np.ndarray, " _"]]:
        dual = scipy.linalg.cho_solve(self._factor, labels)
        return [v * (x.T @ dual) for x, v in zip(self.features, self.variances, strict=True)]


def fit_by_evidence(
    features: Sequence[Float[np.ndarray, "labels _"]],
    labels: Float[np.ndarray, " labels"],
    sizes: Float[np.ndarray, " labels"],
) -> LinearPosterior:
    """Bayesian linear regression with the variances and the noise of largest marginal likelihood.

    Args:
        features: of each block, [labels, features of the block]; a block whose features are all 0 is refused.
        labels: to be explained, in any unit, of mean about 0.
        sizes: [labels], positive; the noise has a variance in proportion to them (number of atoms).

    Raises:
        ValueError: if there are fewer than two labels, no blocks, or numbers that are not finite, or a block or all
            labels are 0.
    """
    labels, sizes = np.asarray(labels, np.float64), np.asarray(sizes, np.float64)
    if len(labels) < 2:
        raise ValueError(f"There are {len(labels)} labels, but prior strengths can only be chosen with two or more.")
    if not features:
        raise ValueError("There are no blocks of features to explain the labels with.")
    blocks = [np.asarray(block, np.float64) for block in features]
    kernels = np.stack([block @ block.T for block in blocks])
    if not (np.isfinite(kernels).all() and np.isfinite(labels).all()):
        raise ValueError("Features or labels are not finite; look for absent energies or damaged structures.")
    scales = np.trace(kernels, axis1=1, axis2=2) / len(labels)
    spread = np.sqrt(np.mean(labels**2))
    if (scales <= 0).any() or spread == 0:
        raise ValueError("A block of features, or the labels, are 0 in every frame: there is nothing to fit.")
    mean_size = sizes.mean()
    kernels, unit_sizes, unit_labels = kernels / scales[:, None, None], sizes / mean_size, labels / spread

    # The unknowns are logarithms of standard deviations, in units of the labels' spread.
    start = np.append(np.full(len(blocks), -0.5 * np.log(len(blocks))), np.log(NOISES[0]))

    def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _negative_log_evidence(logs, kernels, unit_labels, unit_sizes)
        away = (logs - start) / HYPERPRIOR
        return value + 0.5 * float(away @ away), gradient + away / HYPERPRIOR

    bounds = [(-15.0, 7.0)] * len(blocks) + [(np.log(SMALLEST_NOISE), 3.0)]
    starts = [np.append(start[:-1], np.log(noise)) for noise in NOISES]
    runs = [scipy.optimize.minimize(objective, x, jac=True, method="L-BFGS-B", bounds=bounds) for x in starts]
    found = min(runs, key=lambda run: run.fun)
    deviations = np.exp(found.x)
    evidence = -_negative_log_evidence(found.x, kernels, unit_labels, unit_sizes)[0] - len(labels) * np.log(spread)
    return LinearPosterior(
        features=blocks,
        labels=labels,
        sizes=sizes,
        variances=deviations[:-1] ** 2 * spread**2 / scales,
        noise=float(deviations[-1] * spread / mean_size**0.5),
        log_evidence=float(evidence),
    )


def covariance(
    kernels: Sequence[Float[np.ndarray, "labels labels"]] | Float[np.ndarray, "blocks labels labels"],
    sizes: Float[np.ndarray, " labels"],
    variances: Float[np.ndarray, " blocks"],
    noise: float,
) -> Float[np.ndarray, "labels labels"]:
    """Covariance of the labels, Σ_blocks variance · X Xᵀ + noise² · diag(sizes)."""
    return np.tensordot(variances, np.asarray(kernels), 1) + np.diag(noise**2 * sizes)


def _negative_log_evidence(
    logs: np.ndarray, kernels: np.ndarray, labels: np.ndarray, sizes: np.ndarray
) -> tuple[float, np.ndarray]:
    """−log p(labels) and its gradient by logarithms of the standard deviations (Rasmussen and Williams, eq. 5.9)."""
    variances = np.exp(2 * logs[:-1])
    factor = scipy.linalg.cho_factor(covariance(kernels, sizes, variances, float(np.exp(logs[-1]))), lower=True)
    inverse = scipy.linalg.cho_solve(factor, np.eye(len(labels)))
    dual = inverse @ labels
    value = 0.5 * labels @ dual + np.sum(np.log(np.diag(factor[0]))) + 0.5 * len(labels) * np.log(2 * np.pi)
    slope = inverse - np.outer(dual, dual)
    of_blocks = variances * np.einsum("ij,bij->b", slope, kernels)
    of_noise = np.exp(2 * logs[-1]) * np.diag(slope) @ sizes
    return float(value), np.append(of_blocks, of_noise)
