"""How averages of simulations change with the potential: estimators of d⟨A⟩/dθ from the frames of a run.

* *covariance*: ∂⟨A⟩/∂θ = ⟨∂A/∂θ⟩ − β cov(A, ∂U/∂θ), with N − 1 for the covariance, at constant volume and at constant
  pressure alike.
* *reweighting* (Thaler and Zavadlav, Nat. Commun. 12, 6884 (2021)): the derivative of the average with weights
  ∝ exp(−β (U_θ − U_reference)), at any θ of which the frames of the reference still tell. At the reference it is the
  covariance.
* *forward*: the covariance along a few directions, by Jacobian-vector products. Its errors are those of a series in
  time, as of any average.

Trajectories can be differentiated themselves, see `pathwise`. `mean_of_frames` is the function under the first two, for
those who jit, map and differentiate on their own.

A loss of an average is linearised about its value. Its gradient then is a sum over frames of a number times ∂U/∂θ, and
costs one backward pass of energies, whatever the size of the observable. The error is that of the means over groups of
frames of

    y_n = ∂A_n/∂θ − β (A_n − ⟨A⟩) (∂U_n/∂θ − ∂U°/∂θ),

where ∂U° is the mean over a few frames: it centres what the covariance multiplies by, and cancels in the sum.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import trainable
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import KB
from jaxmlip.validation.averages import frame_states, observe, room_for, settled
from jaxmlip.validation.energies import atomic_energies
from jaxmlip.validation.frame_gradients import (
    derivatives_along,
    energy_changes,
    in_batches,
    mean_gradient,
    sums_of_each_gradient,
    sums_of_gradients,
    sums_of_own_gradients,
)
from jaxmlip.validation.weights import Mixture

GROUPS = 8
"""Groups of frames, at least, that errors come from: replicas, or stretches of them where there are fewer."""

CENTRED_BY = 16
"""Frames that ∂U° is the mean over."""

Loss = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gradient:
    """The derivative of an average, or of a loss of it.

    Attributes:
        value: like the parameters, in double precision; leaves begin with the observable's shape if there is no loss.
            In forward mode an array [directions, ...].
        error: standard errors, of the same shape.
        parts: means of y_n over groups (see `gradients`), leaves [groups, ...]; None in forward mode.
        estimator: see `gradients`.
        status: whether to use it.
        effective_samples: independent frames of the average.
    """

    value: Any
    error: Any
    parts: Any
    estimator: str
    status: Status
    effective_samples: float

    def __repr__(self) -> str:
        """Norms of value and error, and the status."""
        norms = [
            math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(each)))
            for each in (self.value, self.error)
        ]
        return f"<Gradient: {self.estimator}, norm {norms[0]:.4g}, of its errors {norms[1]:.2g}, {self.status.name}>"

    def along(self, direction: Any) -> Estimate:
        """The derivative along a direction that is like the parameters, with its own error.

        Raises:
            ValueError: in forward mode, where directions are given beforehand.
        """
        if self.parts is None:
            raise ValueError("A forward-mode gradient has its directions already: they are the rows of its value.")
        pairs = zip(jax.tree.leaves(self.parts), jax.tree.leaves(direction), strict=True)
        parts = np.asarray(sum(np.tensordot(part, np.asarray(way, np.float64), np.ndim(way)) for part, way in pairs))
        return Estimate(
            value=np.asarray(parts.mean(axis=0)),
            error=np.asarray(parts.std(axis=0, ddof=1) / math.sqrt(len(parts))),
            effective_samples=self.effective_samples,
            n_samples=len(parts),
            status=self.status,
            dof=len(parts) - 1.0,
        )


def mean_of_frames(
    potential: Potential,
    observable: Observable,
    frames: FrameState,
    temperature_K: Any,
    reference: Potential | None = None,
) -> Any:
    """Average over frames that the reference has sampled, reweighted to a potential; to be differentiated by it.

    A pure function: jit it, map it over stacked potentials, take its gradient in either mode. Frames are evaluated in
    batches, and in reverse mode recomputed, so that memory does not grow with their number.

    Args:
        potential: to differentiate by.
        observable: if its values depend on the potential, so does the derivative.
        frames: of `jm.frame_states(run, potential=potential)`, leaves [replicas, frames, ...].
        temperature_K: at which they were sampled, at constant volume or constant pressure.
        reference: that sampled the frames; by default `potential` itself, as it is.

    Returns:
        The observable's `mean`, NaN where neighbour lists lack room.
    """
    shape = frames.positions.shape[:2]
    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames)

    def change(batch: FrameState) -> Any:
        now = atomic_energies(potential, batch)
        before = now if reference is None else atomic_energies(reference, batch)
        return (now - jax.lax.stop_gradient(before)).sum(1)

    changes = in_batches(change, flat.at_rest)
    seen_of = potential if observable.depends_on_potential else None
    values = in_batches(jax.vmap(lambda frame: observable.per_frame(frame, seen_of)), flat)
    log_weights = -changes / (KB * temperature_K)
    return observable.mean(values.reshape(*shape, *values.shape[1:]), log_weights.reshape(shape))


def gradient(
    run: Run,
    potential: Potential,
    observable: Observable,
    *,
    temperature_K: float | int,
    estimator: str = "covariance",
    loss: Loss | None = None,
    directions: Sequence[Any] = (),
    reference: Potential | None = None,
    equilibration: Literal["auto"] | float | int = "auto",
) -> Gradient:
    """The derivative of an observable's average, or of a loss of it, by all parameters of a potential.

    Args:
        run: that the potential, or `reference`, has sampled at constant volume or constant pressure.
        potential: at whose parameters (`jm.trainable`) the derivative is taken.
        observable: for example `RDF("O", "O", smearing=0.05)`; histograms will do as well, for it is the weights of
            frames that change.
        temperature_K: of the ensemble.
        estimator: see the head of `gradients`.
        loss: a scalar of the observable's mean, in jax, such as `lambda g: ((g - target) ** 2).sum()`. Without it the
            whole Jacobian comes back, which costs a backward pass for every frame.
        directions: of forward mode, each like the parameters.
        reference: of reweighting, the potential that sampled the run; by default the potential itself.
        equilibration: what to discard, see `average`.

    Raises:
        ValueError: for a potential without parameters, observables that cannot be evaluated on frames, estimators that
            do not exist or cannot give what is asked for, or a run without frames in equilibrium.
    """
    if estimator not in ("covariance", "reweighting", "forward"):
        raise ValueError(
            f"The estimator is covariance, reweighting or forward, not {estimator!r}; see pathwise for derivatives "
            "through trajectories."
        )
    if bool(directions) != (estimator == "forward"):
        raise ValueError("Directions belong to the forward estimator, which needs at least one.")
    if reference is not None and estimator != "reweighting":
        raise ValueError(f"A reference belongs to the reweighting estimator, not to {estimator}.")
    trainable(potential)
    first, settling = settled(run, equilibration)
    of_frames = _Frames.of(run, potential, observable, first, KB * temperature_K, reference)
    known = of_frames.estimate()
    status = worst(settling, known.status)
    if estimator == "forward":
        series = of_frames.forward(directions, loss)
        along = correlated_mean(series)
        status = worst(status, along.status)
        return Gradient(along.value, along.error, None, estimator, status, along.effective_samples)
    parts = of_frames.parts(loss)
    if estimator == "reweighting":
        exact = of_frames.reweighted(loss)
        parts = jax.tree.map(lambda part, mean: part - part.mean(0) + mean, parts, exact)
    value = jax.tree.map(lambda part: part.mean(0), parts)
    error = jax.tree.map(lambda part: part.std(0, ddof=1) / math.sqrt(len(part)), parts)
    if not status.has_error:
        error = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), error)
    return Gradient(value, error, parts, estimator, status, known.effective_samples)


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Frames of a run, in groups, with the observable's values.

    Attributes:
        potential, observable: see `gradient`.
        kT: eV.
        frames: leaves [groups, frames, ...], with room for lists of the potentials.
        values: [groups, frames, ...], in double precision.
        log_weights: [groups, frames], of the potential against the reference.
        reference: that sampled the frames; None if it is the potential.
    """

    potential: Potential
    observable: Observable
    kT: float
    frames: FrameState
    values: Float[np.ndarray, "groups frames *shape"]
    log_weights: Float[np.ndarray, "groups frames"]
    reference: Potential | None

    @classmethod
    def of(
        cls, run: Run, potential: Potential, observable: Observable, first: int, kT: float, reference: Potential | None
    ) -> "_Frames":
        kept = int(run.completed.sum())
        pieces = -(-GROUPS // kept)
        length = (run.n_frames - first) // pieces
        if length < 2:
            raise ValueError(
                f"The run keeps {run.n_frames - first} frames of {kept} replicas, too few for {pieces * kept} groups "
                "with two frames each; run longer, or more replicas."
            )
        first = run.n_frames - pieces * length
        observable = observable.bound_to(run[0])
        seen_of = potential if observable.depends_on_potential else None
        values = observe(run, observable, first, seen_of)
        frames = frame_states(run, first, potential=potential)
        if reference is not None:
            both = [
                tuple(getattr(each, name) for each in (potential, reference)) for name in ("cutoff", "inner_cutoff")
            ]
            frames = frames.replace(capacity=room_for(frames, (max(both[0]), max(both[1]))))
        frames = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, length, *leaf.shape[2:]), frames)
        values = values.reshape(-1, length, *values.shape[2:])
        log_weights = np.zeros(values.shape[:2])
        if reference is not None:
            log_weights = -np.asarray(energy_changes(potential, reference, frames), np.float64) / kT
        return cls(potential, observable, kT, frames, values, log_weights, reference)

    def estimate(self) -> Estimate:
        """The observable's average; without an error where too few frames are left."""
        weights = None if self.reference is None else np.exp(self.log_weights - self.log_weights.max())
        known = self.observable.estimate(self.values, weights)
        if self.reference is not None:
            own = np.zeros_like(self.log_weights)
            if not Mixture([own[None]]).target([-self.log_weights]).allowed:
                known = dataclasses.replace(known, status=worst(known.status, Status.POOR_OVERLAP))
        return known

    @property
    def correction(self) -> float:
        """N / (N − 1): a covariance of N samples."""
        number = self.log_weights.size
        return number / (number - 1.0)

    def cotangents(self, loss: Loss | None) -> tuple[np.ndarray, np.ndarray]:
        """∂/∂log-weights and ∂/∂values of the loss, [outputs, groups, frames] and [outputs, groups, frames, ...]."""
        with jax.enable_x64(True):

            def outputs(log_weights: Any, values: Any) -> Any:
                mean = self.observable.mean(values, log_weights)
                return jnp.ravel(mean if loss is None else loss(mean))

            found = jax.jacrev(outputs, argnums=(0, 1))(jnp.asarray(self.log_weights), jnp.asarray(self.values))
            return np.asarray(found[0]), np.asarray(found[1])

    def parts(self, loss: Loss | None) -> Any:
        """Means of y_n over groups, leaves [groups, *shape, ...]."""
        of_weights, of_values = self.cotangents(loss)
        if loss is not None and len(of_weights) != 1:
            raise ValueError(f"A loss is one number, and this one has {len(of_weights)}.")
        groups = self.log_weights.shape[0]
        scaled = -groups * of_weights * self.correction / self.kT
        gradients = sums_of_gradients if len(scaled) == 1 else sums_of_each_gradient
        sums = gradients(self.potential, self.frames.at_rest, scaled.astype(self.dtype))
        centre = mean_gradient(self.potential, self._few())
        # Groups whose numbers do not add up to nothing would see the mean of ∂U/∂θ, which cancels in the sum.
        total = scaled.sum(axis=2).T
        parts = jax.tree.map(
            lambda leaf, mean: np.asarray(leaf, np.float64) - np.multiply.outer(total, np.asarray(mean, np.float64)),
            sums,
            centre,
        )
        if self.observable.depends_on_potential:
            own = sums_of_own_gradients(self.observable, self.potential, self.frames, groups * of_values)
            parts = jax.tree.map(lambda one, other: one + np.asarray(other, np.float64), parts, own)
        shape = () if loss is not None else np.shape(self.observable.mean(self.values[:1, :1]))
        return jax.tree.map(lambda leaf: leaf.reshape(groups, *shape, *leaf.shape[2:]), parts)

    def _few(self) -> FrameState:
        """A few frames, evenly taken, as [frames, ...]."""
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.frames.at_rest)
        number = len(flat.positions)
        chosen = np.linspace(0, number - 1, min(CENTRED_BY, number)).astype(int)
        return jax.tree.map(lambda leaf: leaf[chosen], flat)

    @property
    def dtype(self) -> Any:
        """Of the numbers on the device."""
        return jnp.asarray(self.frames.positions).dtype

    def reweighted(self, loss: Loss | None) -> Any:
        """The derivative of the weighted mean by automatic differentiation; like `parts` without groups."""
        reference = self.potential if self.reference is None else self.reference
        found = _derivative_of_mean(self.potential, reference, self.frames, self.kT / KB, self.observable, loss)
        # What the covariance is multiplied by, the derivative of the values themselves is not.
        if self.observable.depends_on_potential:
            of_values = self.cotangents(loss)[1]
            own = sums_of_own_gradients(self.observable, self.potential, self.frames, of_values)
            own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).sum(0), own)
            own = jax.tree.map(lambda leaf, like: leaf.reshape(np.shape(like)), own, found)
            scale = self.correction
            return jax.tree.map(lambda a, b: scale * (np.asarray(a, np.float64) - b) + b, found, own)
        return jax.tree.map(lambda leaf: self.correction * np.asarray(leaf, np.float64), found)

    def forward(self, directions: Sequence[Any], loss: Loss | None) -> np.ndarray:
        """Series whose means are derivatives along directions, [groups, frames, directions, ...]."""
        of_weights, of_values = self.cotangents(loss)
        number = self.log_weights.size
        along = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(each) for each in leaves]), *directions)
        slopes, own = derivatives_along(self.observable, self.potential, self.frames, along)
        slopes = np.asarray(slopes, np.float64)
        slopes = slopes - slopes.mean(axis=(0, 1))
        series = -self.correction / self.kT * number * of_weights.transpose(1, 2, 0)[:, :, None] * slopes[..., None]
        if self.observable.depends_on_potential:
            own = np.asarray(own, np.float64).reshape(*slopes.shape, -1)
            weights = number * of_values.reshape(*of_values.shape[:3], -1)
            series = series + np.einsum("ogfk,gfdk->gfdo", weights, own)
        shape = () if loss is not None else np.shape(self.observable.mean(self.values[:1, :1]))
        return series.reshape(*slopes.shape, *shape)


@functools.partial(jax.jit, static_argnames=("observable", "loss"))
def _derivative_of_mean(
    potential: Potential,
    reference: Potential,
    frames: FrameState,
    temperature_K: Any,
    observable: Observable,
    loss: Loss | None,
) -> Any:
    """By the parameters, of the mean in frames of a reference, or of a loss of it."""
    params, rebuild = trainable(potential)

    def outputs(params: Any) -> Any:
        mean = mean_of_frames(rebuild(params), observable, frames, temperature_K, reference)
        return mean if loss is None else loss(mean)

    return jax.jacrev(outputs)(params)
