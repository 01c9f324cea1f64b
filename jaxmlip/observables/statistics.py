"""Means of correlated series, with errors that hold.

Series come as [replicas, frames, ...]. Every element of a vector-valued observable is treated on its own; whether the
run is good enough is decided for all of them together. Errors are those of `spectrum`, which reckon with motion slower
than the run where it cannot be ruled out.

An estimate is OK if there are replicas, and these are together `LENGTHS` times as long as the motion that is seen in
them (`spectrum.seen_lengths`). What low frequencies say of slower motion widens the error, and does not decide: a gate
that looks there lets those runs pass whose errors are too small by chance. One series tells nothing of what is slower
than it, and is never OK.

Where the means of replicas lie further apart than the power within them lets expect (F test, p < 0.001), their spread
alone is the error if it is larger, with one degree of freedom fewer than there are replicas.

`experiments/benchmarks/coverage.py` measures how often intervals hold.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from scipy.stats import t

from jaxmlip.observables.estimate import Estimate, Status
from jaxmlip.observables.spectrum import Powers, Scale, seen_lengths

ENOUGH = 20.0
"""Effective samples below which neither a mean nor its error is to be trusted (Grossfield et al., Living J. Comp. Mol.
Sci. 1, 5067 (2018))."""

BLOCKS = 32
"""Blocks that are kept, or one for each replica if there are more of these."""

LENGTHS = 350.0
"""Seen lengths that OK needs, of all replicas together."""


def correlated_mean(
    series: Float[np.ndarray, "replicas frames *shape"],
    weights: Float[np.ndarray, "replicas frames"] | None = None,
) -> Estimate:
    """Mean and standard error of correlated stationary series; see the head of this module.

    With weights w the value is Σ w x / Σ w, and the error that of the mean of x̄ + w (x − x̄) / ⟨w⟩: the linearised
    error of a ratio of means (Cochran, Sampling Techniques, 3rd ed., ch. 6), correlations of the weights included.

    Raises:
        ValueError: for empty series, values that are not finite, or weights that are not positive in sum.
    """
    x = np.asarray(series, np.float64)
    replicas, frames, *shape = x.shape
    if replicas * frames == 0:
        raise ValueError("An average needs at least one replica and one frame.")
    if not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"The value of replica {bad[0]}, frame {bad[1]} is not finite; leave failed replicas out.")
    x = x.reshape(replicas, frames, -1)
    mean = x.mean(axis=(0, 1))
    if weights is not None:
        w = np.asarray(weights, np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
            raise ValueError("Weights must be finite, not negative, and not all zero.")
        w = (w / w.mean())[:, :, None]
        mean = (w * x).mean(axis=(0, 1))
        x = mean + w * (x - mean)

    deviations = x - mean
    variance = (deviations**2).mean(axis=(0, 1))
    # What does not change but for rounding has no error.
    moves = variance > (1e-12 * np.abs(mean)) ** 2
    error, dof, status = np.zeros_like(mean), np.full_like(mean, np.inf), Status.OK
    if replicas * frames == 1:
        error[:], status = np.nan, Status.UNRESOLVED
    elif moves.any():
        moving = deviations[:, :, moves]
        scale, status = _scale(Powers.of(moving), variance[moves], seen_lengths(moving))
        error[moves], dof[moves] = scale.error, scale.dof
    total = float(np.sum(error**2))
    samples = float(variance.sum()) / total if total > 0 else float(replicas * frames)
    blocks = _block_means(deviations, mean, error)
    return Estimate(
        value=mean.reshape(shape),
        error=error.reshape(shape),
        effective_samples=min(samples, float(replicas * frames)),
        n_samples=replicas * frames,
        status=status,
        dof=dof.reshape(shape),
        blocks=None if blocks is None else blocks.reshape(-1, *shape),
    )


def _scale(powers: Powers, variance: Float[np.ndarray, " elements"], lengths: float) -> tuple[Scale, Status]:
    """Errors and degrees of freedom of elements that move, and what is to be said of them together."""
    scale = powers.scale(lengths)
    samples = np.sum(variance) / np.sum(scale.error**2)
    if powers.replicas == 1 and np.median(scale.unresolved) > 0.5:
        return dataclasses.replace(scale, error=np.full_like(variance, np.nan)), Status.UNRESOLVED
    apart = powers.disagreement() < 1e-3
    if np.mean(apart) > 0.05:
        spread = powers.between()
        wider = spread > scale.error
        error, dof = np.where(wider, spread, scale.error), np.where(wider, powers.replicas - 1.0, scale.dof)
        return Scale(error, dof, scale.unresolved), Status.REPLICAS_DISAGREE
    if samples < ENOUGH:
        return scale, Status.TOO_FEW
    seen = powers.replicas > 1 and powers.replicas * lengths >= LENGTHS
    return scale, Status.OK if seen else Status.SLOW_MOTION


def statistical_inefficiency(series: Float[np.ndarray, "replicas frames *shape"]) -> Float[np.ndarray, "*shape"]:
    """Statistical inefficiency g ≥ 1 of each element; for one replica that of `pymbar.timeseries` to rounding.

    1 + 2 Σ_t (1 − t/n) C(t), summed up to the first lag at which the autocorrelation C is not positive (Chodera et al.,
    J. Chem. Theory Comput. 3, 26 (2007)). Autocorrelations are about the mean over all replicas and averaged over them,
    by fast Fourier transforms. In short series it is too low, and no error is made of it.
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


def _block_means(
    deviations: Float[np.ndarray, "replicas frames elements"],
    mean: Float[np.ndarray, " elements"],
    error: Float[np.ndarray, " elements"],
) -> Float[np.ndarray, "blocks elements"] | None:
    """Means over blocks of equal length, replica by replica, stretched so that their standard error is the mean's.

    How many there are follows from the numbers of replicas and frames alone, so that the blocks of two observables of
    one run belong together. None where there is but one, or no error.
    """
    replicas, frames, elements = deviations.shape
    count = min(-(-BLOCKS // replicas), frames)
    length = frames // count
    kept = deviations[:, frames - count * length :].reshape(replicas * count, length, elements)
    blocks = kept.mean(axis=1)
    if len(blocks) < 2 or np.isnan(error).any():
        return None
    blocks -= blocks.mean(axis=0)
    spread = blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))
    return mean + blocks * np.divide(error, spread, out=np.zeros_like(error), where=spread > 0)


def equilibration_frames(series: Float[np.ndarray, "replicas frames"]) -> int:
    """Frames to discard: those before the start that leaves the most effective samples of the mean of replicas.

    Chodera, J. Chem. Theory Comput. 12, 1799 (2016), by `pymbar.timeseries.detect_equilibration`. All replicas share
    one start: their mean shows a drift that the noise of each would hide.
    """
    mean = np.asarray(series, np.float64).mean(axis=0)
    if len(mean) < 4:
        return 0
    start, _, _ = _timeseries().detect_equilibration(mean, nskip=max(1, len(mean) // 200))
    return int(start)


def drifts(many: Sequence[Float[np.ndarray, "_ _"]], significance: float = 0.01) -> bool:
    """Whether one of several series [replicas, frames] is still on its way from where it started.

    The mean of the replicas shows it, in two ways. A steady drift is in the slowest transform, and in all replicas
    alike: a t test over replicas. A transient that decays early has the same sign in all of the slowest transforms: the
    sum over the first four is held against what else is in these. The `significance` is that of all tests together.
    """
    probabilities = []
    for series in many:
        x = np.asarray(series, np.float64)
        deviations = (x - x.mean())[:, :, None]
        if x.shape[1] < 12 or not deviations.any():
            continue
        powers, replicas = Powers.of(deviations), x.shape[0]
        shared, all_of_it = powers.amplitudes[:4, 0], powers.transforms[:4, 0]
        probabilities.append(_probability(shared.sum() / 2.0, all_of_it.sum(), 4 * replicas - 1))
        if replicas > 1:
            probabilities.append(_probability(shared[0], all_of_it[0], replicas - 1))
    return bool(probabilities) and min(probabilities) < significance / len(probabilities)


def _probability(one: float, squares: float, degrees: int) -> float:
    """Of one of several equal normal numbers to be so large, given the sum of all their squares."""
    rest = squares - one**2
    return float(2.0 * t.sf(abs(one) * np.sqrt(degrees / rest), degrees)) if rest > 0 else 0.0


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
