"""Means of correlated series with honest standard errors.

Series come as [replicas, frames, ...]. Every element of a vector-valued observable is treated on its own.

Two estimates of the variance of the mean are combined, with n frames in each of R replicas and overall mean x̄:

* within: s_w² = s² g / (R n), where s² = Σ (x − x̄)² / (R n − g) and g is the statistical inefficiency
  1 + 2 Σ_t (1 − t/n) C(t), summed up to the first lag at which the autocorrelation C, averaged over replicas, is not
  positive (Chodera et al., J. Chem. Theory Comput. 3, 26 (2007); the alternative to the blocks of Flyvbjerg and
  Petersen, J. Chem. Phys. 91, 461 (1989)). The integrated correlation time is known to about ν_w = n_eff / 5 degrees of
  freedom (n_eff = R n / g; Sokal's variance 2(2M + 1)/n of it with a window of M = 5 τ, in Functional Integration,
  Plenum 1997).
* between: s_b² = Σ_r (x̄_r − x̄)² / (R (R − 1)), with ν_b = R − 1 degrees of freedom.

If the two agree (F test, p > 0.001) the variance is (ν_w s_w² + ν_b s_b²) / (ν_w + ν_b). Otherwise the replicas hold
something that their series do not show, and the larger, s_b², stands.
"""

import dataclasses
import enum
import functools
import logging

import jax
import numpy as np
from jaxtyping import Float
from scipy.stats import f as f_distribution

ENOUGH = 20.0
"""Effective samples below which neither a mean nor its error is to be trusted (Grossfield et al., Living J. Comp. Mol.
Sci. 1, 5067 (2018))."""

MAX_BLOCKS = 32
"""Blocks kept of each replica."""


class Status(enum.Enum):
    """Whether an estimate can be used; the value is the message for the user."""

    OK = "OK"
    NOT_EQUILIBRATED = "still equilibrating in the second half, which alone was kept: run longer"
    REPLICAS_DISAGREE = "the replicas differ by more than their fluctuations explain: not one equilibrium, or not yet"
    TOO_FEW = "too few independent samples: fewer than 20; run longer, or more replicas"
    REPLICA_FAILED = "at least one replica failed and was left out"
    NO_DATA = "no replica ran to the end"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known.

    Attributes:
        value: the mean, a scalar array or of the observable's shape.
        error: its standard error, of the same shape.
        effective_samples: independent samples that would give the same error; for a vector Σ variances / Σ errors².
        n_samples: frames that entered.
        status: whether to use it.
        blocks: [blocks, ...], nearly independent block means over all replicas, for errors of functions of the value.
        noise_floor: for estimates of a distance: what noise alone would make of no difference at all.
        discarded_fs: simulated time left out at the start.
        axis: for functions, the points they are given at (the r of an RDF).
    """

    value: Float[np.ndarray, "*shape"]
    error: Float[np.ndarray, "*shape"]
    effective_samples: float
    n_samples: int
    status: Status = Status.OK
    blocks: Float[np.ndarray, "blocks *shape"] | None = None
    noise_floor: Float[np.ndarray, "*shape"] | None = None
    discarded_fs: float = 0.0
    axis: Float[np.ndarray, "*shape"] | None = None

    def __str__(self) -> str:
        """Value ± error for scalars, the shape for others, and the status unless it is OK."""
        value = f"{self.value:.6g} ± {self.error:.2g}" if self.value.ndim == 0 else f"array{self.value.shape}"
        return value if self.status is Status.OK else f"{value} ({self.status.value})"


def worst(*statuses: Status) -> Status:
    """The status that says most against an estimate."""
    order = list(Status)
    return max(statuses, key=order.index)


def correlated_mean(
    series: Float[np.ndarray, "replicas frames *shape"],
    weights: Float[np.ndarray, "replicas frames"] | None = None,
) -> Estimate:
    """Mean and standard error of correlated series; see the head of this module for the formulas.

    With weights w the value is Σ w x / Σ w, and the error that of the mean of x̄ + w (x − x̄) / ⟨w⟩: the linearised
    error of a ratio of means (Cochran, Sampling Techniques, 3rd ed., ch. 6), correlations of the weights included.

    Raises:
        ValueError: for empty series, values that are not finite, or weights that are not positive in sum.
    """
    x = np.asarray(series, np.float64)
    replicas, frames = x.shape[:2]
    if replicas * frames == 0:
        raise ValueError("An average needs at least one replica and one frame.")
    if not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"The value of replica {bad[0]}, frame {bad[1]} is not finite; leave failed replicas out.")
    if weights is not None:
        w = np.asarray(weights, np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
            raise ValueError("Weights must be finite, not negative, and not all zero.")
        w = (w / w.mean()).reshape(replicas, frames, *[1] * (x.ndim - 2))
        mean = (w * x).mean(axis=(0, 1))
        x = mean + w * (x - mean)

    mean = x.mean(axis=(0, 1))
    inefficiency = statistical_inefficiency(x)
    effective = replicas * frames / inefficiency
    variance = ((x - mean) ** 2).sum(axis=(0, 1)) / np.maximum(replicas * frames - inefficiency, 0.5)
    within, dof_within = variance / effective, effective / 5.0
    squared, disagree = within, np.zeros(mean.shape, bool)
    if replicas > 1:
        dof_between = replicas - 1.0
        between = ((x.mean(axis=1) - mean) ** 2).sum(axis=0) / (replicas * dof_between)
        ratio = np.divide(between, within, out=np.ones_like(mean), where=within > 0)
        disagree = f_distribution.sf(ratio, dof_between, dof_within) < 1e-3
        pooled = (dof_within * within + dof_between * between) / (dof_within + dof_between)
        squared = np.where(disagree, between, pooled)

    total_squared = float(np.sum(squared))
    samples = float(np.sum(variance)) / total_squared if total_squared > 0 else float(replicas * frames)
    samples = min(samples, float(replicas * frames))
    status = Status.OK
    if np.mean(disagree) > 0.05:
        status = Status.REPLICAS_DISAGREE
    if samples < ENOUGH:
        status = worst(status, Status.TOO_FEW)
    return Estimate(
        value=np.asarray(mean),
        error=np.asarray(np.sqrt(squared)),
        effective_samples=samples,
        n_samples=replicas * frames,
        status=status,
        blocks=_block_means(x, replicas * frames / samples),
    )


def statistical_inefficiency(series: Float[np.ndarray, "replicas frames *shape"]) -> Float[np.ndarray, "*shape"]:
    """Statistical inefficiency g ≥ 1 of each element; for one replica that of `pymbar.timeseries` to rounding.

    Autocorrelations are about the mean over all replicas and averaged over them, by fast Fourier transforms.
    """
    x = np.asarray(series, np.float64)
    frames, shape = x.shape[1], x.shape[2:]
    deviation = (x - x.mean(axis=(0, 1))).reshape(x.shape[0], frames, -1)
    padded = 2 ** int(np.ceil(np.log2(2 * frames)))
    spectrum = np.abs(np.fft.rfft(deviation, padded, axis=1)) ** 2
    lags = np.arange(frames)
    covariance = np.fft.irfft(spectrum.mean(axis=0), padded, axis=0)[:frames] / (frames - lags)[:, None]
    variance = covariance[0]
    correlation = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    # As in pymbar, the first three lags count even if the correlation is negative there.
    ends = (correlation <= 0) & (lags > 3)[:, None]
    counted = (np.cumsum(ends, axis=0) == 0) & (lags > 0)[:, None] & (lags < frames - 1)[:, None]
    g = 1.0 + 2.0 * (counted * correlation * (1.0 - lags / frames)[:, None]).sum(axis=0)
    return np.maximum(g, 1.0).reshape(shape)


def _block_means(x: np.ndarray, inefficiency: float) -> np.ndarray:
    """Means over blocks of at least five inefficiencies, replica by replica; each replica gives one or more."""
    frames = x.shape[1]
    count = int(np.clip(frames / (5.0 * inefficiency), 1, min(MAX_BLOCKS, frames)))
    if x.shape[0] == 1:
        count = max(count, min(2, frames))
    length = frames // count
    x = x[:, frames - count * length :]
    return x.reshape(x.shape[0] * count, length, *x.shape[2:]).mean(axis=1)


def equilibration_frames(energies: Float[np.ndarray, "replicas frames"]) -> int:
    """Frames to discard: those before the start that leaves the most effective samples of the mean energy of replicas.

    Chodera, J. Chem. Theory Comput. 12, 1799 (2016), by `pymbar.timeseries.detect_equilibration`. All replicas share
    one start: their mean shows a drift that the noise of each would hide.
    """
    mean = np.asarray(energies, np.float64).mean(axis=0)
    if len(mean) < 4:
        return 0
    start, _, _ = _timeseries().detect_equilibration(mean, nskip=max(1, len(mean) // 200))
    return int(start)


@functools.cache
def _timeseries():
    """`pymbar.timeseries`, imported without its banner and without leave to change JAX's precision."""
    logger, double = logging.getLogger("pymbar"), bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from pymbar import timeseries
    finally:
        logger.setLevel(level)
        if bool(jax.config.jax_enable_x64) != double:  # type: ignore[attr-defined]
            jax.config.update("jax_enable_x64", double)
    return timeseries
