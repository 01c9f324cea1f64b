"""Errors and biases of what is no mean of values but a function of such means: fluctuations, ratios."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import BLOCKS, correlated_mean


def jackknife_estimate(
    observable: Observable,
    values: Float[np.ndarray, "replicas frames *shape"],
    weights: Float[np.ndarray, "replicas frames"] | None = None,
) -> Estimate:
    """Estimate of an observable whose `mean` is not linear in the values of correlated frames, in double precision.

    The error is that of the infinitesimal jackknife (Efron, The Jackknife, the Bootstrap and Other Resampling Plans,
    1982, ch. 6): how much each frame moves the result is the derivative by its log weight. The series of these is a
    mean to first order, and has its error, degrees of freedom and status by `correlated_mean`, whatever the frames'
    correlations in time. The bias of order 1/n is what leaving out one block b of m_b of the n frames after the other
    shows, Σ_b (1 − m_b/n) f_b − (B − 1) f (Busing et al., Stat. Comput. 9, 3 (1999)); it is taken off the value. There
    are as many blocks as `statistics` keeps.

    Args:
        observable: whose `mean` is meant.
        values: in the frames.
        weights: of the frames; equal if None.

    Raises:
        ValueError: as `correlated_mean`.
    """
    x = np.asarray(values, np.float64)
    w = np.ones(x.shape[:2]) if weights is None else np.asarray(weights, np.float64)
    correlated_mean(x, w)  # refuses what is not finite, and weights that are none
    with np.errstate(divide="ignore"):
        log_weights = np.log(w)
    left_out = _blocks(log_weights)
    with jax.enable_x64(True):
        outcome = _plain_slopes_and_without(observable, jnp.asarray(x), jnp.asarray(log_weights), jnp.asarray(left_out))
        plain, slopes, without = (np.asarray(each) for each in outcome)
    pseudo = plain + log_weights.size * np.moveaxis(slopes, (-2, -1), (0, 1))
    found = correlated_mean(pseudo)
    if len(left_out) < 2:
        return dataclasses.replace(found, value=plain)
    kept = 1.0 - left_out.mean(axis=(1, 2))
    bias = np.tensordot(kept, without, axes=1) - (len(left_out) - 1.0) * plain
    blocks = None if found.blocks is None else found.blocks - bias
    return dataclasses.replace(found, value=np.asarray(plain - bias), blocks=blocks)


@functools.partial(jax.jit, static_argnums=0)
def _plain_slopes_and_without(observable: Observable, x: Any, log_weights: Any, left_out: Any) -> tuple[Any, Any, Any]:
    """The mean, its derivatives by log weights [..., replicas, frames], and the means without blocks [blocks, ...]."""
    slopes = jax.jacrev(lambda each: observable.mean(x, each))(log_weights)
    without = jax.lax.map(lambda out: observable.mean(x, jnp.where(out, -jnp.inf, log_weights)), left_out)
    return observable.mean(x, log_weights), slopes, without


def _blocks(log_weights: np.ndarray) -> np.ndarray:
    """Which frames are of each block [blocks, replicas, frames]; none whose absence would leave nothing."""
    replicas, frames = log_weights.shape
    count = min(-(-BLOCKS // replicas), frames)
    block_of = np.minimum(np.arange(frames) // (frames // count), count - 1) + count * np.arange(replicas)[:, None]
    members = np.arange(replicas * count)[:, None, None] == block_of
    leaves = np.isfinite(np.where(members, -np.inf, log_weights)).any(axis=(1, 2))
    return members if leaves.all() else members[:0]
