"""What depends on the order of frames in time: functions of whole trajectories, with errors over replicas or blocks."""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status
from jaxmlip.observables.frame import FrameState

TIME_BLOCKS = 5
"""Parts that a single trajectory is cut into, for its error."""

ENOUGH_REPLICAS = 4
"""Replicas from which on their spread is an error."""


class TimeObservable(abc.ABC):
    """A function of a trajectory: the frames of one replica, equally spaced in time. Subclasses are frozen dataclasses.

    They are hashable, for they are static to what is compiled. `of_trajectory` can be jitted, mapped and
    differentiated.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Short name for tables and plots."""

    @property
    @abc.abstractmethod
    def unit(self) -> str:
        """Unit of the values; empty for pure numbers."""

    @abc.abstractmethod
    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """Value of one trajectory.

        Args:
            frames: of one replica, leaves [frames, ...]; positions are unwrapped, so that differences in time are
                displacements.
            interval_fs: time between frames, static.
        """

    def axis(self, frames: int, interval_fs: float) -> Float[np.ndarray, " points"] | None:
        """For functions, the points they are given at, for trajectories of so many frames."""
        del frames, interval_fs
        return None

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if the observable makes no sense for such frames; what is static is all there is to see."""
        del frame

    def bound_to(self, structure: Atoms) -> "TimeObservable":
        """The same; see `Observable.bound_to`."""
        del structure
        return self

    def estimate(self, frames: FrameState, interval_fs: float) -> Estimate:
        """Mean over replicas with its standard error, N − 1 degrees of freedom.

        A single trajectory is cut into `TIME_BLOCKS` parts, each of which is a trajectory of its own: then lags reach
        less far, and what is slower than a part is not in the error, as the status says. Less than `ENOUGH_REPLICAS`
        are too few to be OK.

        Args:
            frames: leaves [replicas, frames, ...]; see `of_trajectory`.
            interval_fs: time between frames.

        Raises:
            ValueError: for trajectories too short, or values that are not finite.
        """
        replicas, number = np.shape(frames.positions)[:2]
        status = Status.OK if replicas >= ENOUGH_REPLICAS else Status.TOO_FEW
        if replicas == 1:
            number, status = number // TIME_BLOCKS, Status.SLOW_MOTION

            def parts(leaf: Any) -> Any:
                return leaf[0, : TIME_BLOCKS * number].reshape(TIME_BLOCKS, number, *leaf.shape[2:])

            frames = jax.tree.map(parts, frames)
        if number < 4:
            raise ValueError(
                f"The {self.name} of trajectories of {number} frames each (a fifth of the run if there is but one) "
                "says nothing: run longer, or sample more often."
            )
        values = np.asarray(_of_trajectories(self, frames, float(interval_fs)), np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"The {self.name} is not finite; leave failed replicas out.")
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        return Estimate(
            value=np.asarray(values.mean(axis=0)),
            error=np.asarray(error),
            effective_samples=float(len(values)),
            n_samples=replicas * int(np.shape(frames.positions)[1]) * (TIME_BLOCKS if replicas == 1 else 1),
            status=status,
            dof=np.full(values.shape[1:], len(values) - 1.0),
            unit=self.unit,
            blocks=values,
            axis=self.axis(number, float(interval_fs)),
        )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _of_trajectories(observable: TimeObservable, frames: FrameState, interval_fs: float) -> Any:
    return jax.lax.map(lambda each: observable.of_trajectory(each, interval_fs), frames)


def lag_times(frames: int, points: int, longest: float) -> np.ndarray:
    """About so many lags in frames, from 1 to a share of the trajectory, equally spaced."""
    last = max(1, int(longest * (frames - 1)))
    return np.unique(np.rint(np.linspace(1, last, min(points, last))).astype(int))


def autocorrelation(series: Float[Any, "frames components"], lags: int) -> Any:
    """Autocorrelations Σ_c ⟨x_c(t) x_c(t + τ)⟩ over all starts t, for lags 0 … lags − 1 in frames, by transforms."""
    frames = series.shape[0]
    padded = 2 ** int(np.ceil(np.log2(2 * frames)))
    power = (jnp.abs(jnp.fft.rfft(series, padded, axis=0)) ** 2).sum(axis=1)
    counts = frames - np.arange(lags)
    return jnp.fft.irfft(power, padded)[:lags] / jnp.asarray(counts, series.dtype)
