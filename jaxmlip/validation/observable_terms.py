"""Errors of averages of the potential's own simulation, as a term of a loss: frames are reweighted as it changes.

With frames x_n that parameters θ₀ have sampled, the averages at θ near them have weights w_n ∝ exp(−β (U_θ − U_θ₀)), at
constant volume and at constant pressure alike, and reverse mode gives their derivatives by θ (DiffTRe: Thaler and
Zavadlav, Nat. Commun. 12, 6884 (2021)).

An average is compared with its target in multiples z of the error of their difference, the target's and the average's
own together, so that no simulation is fitted more closely than it is known. The loss is √(1 + z²) − 1: ½ z² within the
error and z beyond it, as Huber's of labels, so that what is far off does not drown all else.

How many frames are left is Kish's fraction (Σw)² / (N Σw²), or exp(−s²) with the spread s of β (U_θ − U_θ₀) if that is
less (see `weights`). Correlation in time makes N/g independent ones of N frames; the same fraction is left of them.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.batches import Batch
from jaxmlip.training.loss import Headed
from jaxmlip.training.objective import Term, TermSums
from jaxmlip.types import AnyArray, Leaf
from jaxmlip.validation.averages import FRAMES_AT_ONCE
from jaxmlip.validation.energies import atomic_energies
from jaxmlip.validation.frame_gradients import in_batches
from jaxmlip.validation.weights import kish


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What an average is to become.

    Attributes:
        observable: whose average.
        value: in the observable's unit and shape.
        error: in its unit; of a vector the root mean square over components.
        weight: in the loss.
    """

    observable: Observable
    value: np.ndarray
    error: float
    weight: float


class ObservableErrors(Term):
    """√(1 + z²) − 1, z being how far an average over frames that are reweighted to θ is off, in multiples of `errors`.

    z² is the mean over the components of the observable.

    Attributes:
        frames: leaves [replicas, frames, ...], with room for lists of the potential.
        reference: [replicas, frames, atoms], atomic energies at θ₀, eV.
        values: of each observable [replicas, frames, ...], or None if they depend on θ themselves.
        targets: of each, relative to the elemental references where energies are.
        errors: of the difference between average and target, of each.
        numbers: weights of each in the loss.
        kT: eV.
        least: fraction of frames below which they say nothing more: there the term neither counts nor pulls.
        observables: whose averages (static).
        head: readout that has sampled the frames (static).
    """

    frames: FrameState
    reference: Leaf
    values: Leaf
    targets: Leaf
    errors: Leaf
    numbers: Leaf
    kT: Leaf
    least: Leaf
    observables: tuple[Observable, ...] = flax.struct.field(pytree_node=False, default=())
    head: int = flax.struct.field(pytree_node=False, default=0)

    def log_weights(self, potential: Potential) -> Float[AnyArray, "replicas frames"]:
        """−β (U_θ − U_θ₀) of each frame; energies are subtracted atom by atom."""
        return -(atomic_energies_of(potential, self.head, self.frames) - self.reference).sum(2) / self.kT

    def __call__(self, potential: Potential, batch: Batch) -> dict[str, TermSums]:
        """By the names of the observables; sums do not depend on the batch."""
        del batch
        log_weights, found = self.log_weights(potential), {}
        fraction = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights)) / log_weights.size
        told, seen, frames = fraction >= self.least, answering(potential, self.head), flat(self.frames)
        for observable, known, target, error in zip(
            self.observables, self.values, self.targets, self.errors, strict=True
        ):
            values = known
            if known is None:
                of_each = jax.vmap(lambda frame, observable=observable: observable.per_frame(frame, seen))
                values = in_batches(of_each, frames)
                values = values.reshape(*log_weights.shape, *values.shape[1:])
            squared = jnp.mean((observable.mean(jnp.asarray(values), log_weights) - target) ** 2)
            found[observable.name] = TermSums(
                jnp.where(told, jnp.sqrt(1.0 + squared / error**2) - 1.0, 0.0), squared, 1.0
            )
        return found

    def weights(self) -> dict[str, Any]:
        """By the names of the observables."""
        return {observable.name: weight for observable, weight in zip(self.observables, self.numbers, strict=True)}

    def fraction_left(self, potential: Potential) -> float:
        """Of the effective frames: Kish's fraction, or exp(−s²) if that is less; 0 if an energy is not finite."""
        log_weights = np.asarray(_log_weights(self, potential), np.float64)
        if not np.isfinite(log_weights).all():
            return 0.0
        return min(kish(log_weights), math.exp(-min(float(log_weights.var()), 700.0)))


def answering(potential: Potential, head: int) -> Headed:
    """A potential whose readout of that number answers for every frame."""
    return Headed(potential, jnp.full(FRAMES_AT_ONCE, head))


def atomic_energies_of(potential: Potential, head: int, frames: FrameState) -> Float[AnyArray, "replicas frames atoms"]:
    """Of frames [replicas, frames], eV, relative to the references."""
    seen = answering(potential, head)
    found = in_batches(lambda batch: atomic_energies(seen, batch), flat(frames.at_rest))
    return found.reshape(*frames.positions.shape[:2], -1)


def flat(frames: FrameState) -> FrameState:
    """Leaves [frames, ...] of leaves [replicas, frames, ...]."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames)


@jax.jit
def _log_weights(term: ObservableErrors, potential: Potential) -> Any:
    return term.log_weights(potential)
