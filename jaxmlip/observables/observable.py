"""What an observable is: a function of a frame, and how its values over many frames become an Estimate."""

import abc
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.potentials.potential import Potential


class References(NamedTuple):
    """What energies on the device are relative to, in double precision.

    Attributes:
        own: [replicas], elemental references of the potential that made the frames, summed over atoms, eV.
        other: [replicas], of the potential that is compared with; None if there is none.
        atoms: [replicas], number of atoms.
    """

    own: Float[np.ndarray, " replicas"]
    other: Float[np.ndarray, " replicas"] | None
    atoms: np.ndarray


class Observable(abc.ABC):
    """A function of a frame, and of a potential where its value depends on one. Subclasses are frozen dataclasses.

    They are hashable, for they are static to what is compiled. `per_frame` can be jitted and mapped; it can be
    differentiated, by positions, cell and the potential's parameters, where the subclass says so. `mean` is for jax,
    `estimate` for the host; both serve plain and reweighted averages alike.

    Attributes:
        recorded: attribute of a `Run` that has the values already, in double precision; empty if none has.
        needs_stress: whether the frame must know its stress if no potential is given.
        depends_on_potential: whether values depend on the potential, given the frame.
        needs_other_stress: whether the prediction of a potential that is compared with must have a stress.
        needs_moving_cell: whether it is the same in all frames where the cell does not move.
        of_fluctuations: whether `mean` is more than a mean of values: then means over several frames cannot take the
            place of these, and it cannot be observed on the way of a simulation.
    """

    recorded: ClassVar[str] = ""
    needs_stress: ClassVar[bool] = False
    depends_on_potential: ClassVar[bool] = False
    needs_other_stress: ClassVar[bool] = False
    needs_moving_cell: ClassVar[bool] = False
    of_fluctuations: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Short name for tables and plots."""

    @property
    @abc.abstractmethod
    def unit(self) -> str:
        """Unit of the values; empty for pure numbers."""

    @property
    def axis(self) -> Float[np.ndarray, " points"] | None:
        """For functions, the points they are given at (the r of an RDF)."""
        return None

    def bound_to(self, structure: Atoms) -> "Observable":
        """The observable for simulations that start from a structure, for one that must know its molecules.

        Raises:
            ValueError: if the structure does not have what the observable is of.
        """
        del structure
        return self

    def recorded_in(self, run: Any) -> np.ndarray | None:
        """Values [replicas, frames, ...] that a `Run` has already, in double precision; None if it has not."""
        return getattr(run, self.recorded) if self.recorded else None

    @abc.abstractmethod
    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """Value of one frame.

        Args:
            frame: see there.
            potential: what the value depends on beside the frame, if it does: then a derivative by its parameters is
                that of the value. Without it, what the frame knows of the potential that made it is used.
        """

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if the observable makes no sense for such frames; what is static is all there is to see."""
        del frame

    def completed(self, values: np.ndarray, references: References) -> np.ndarray:
        """Values [replicas, ...] in double precision, with the elemental references that the device left out."""
        del references
        return values

    def mean(self, values: Any, log_weights: Any = None) -> Any:
        """Average of values [replicas, frames, ...] in jax, with weights ∝ exp(log_weights) [replicas, frames]."""
        if log_weights is None:
            return jnp.mean(values, axis=(0, 1))
        weights = jax.nn.softmax(log_weights.ravel()).reshape(log_weights.shape)
        return jnp.tensordot(weights, values, axes=2)

    def estimate(self, values: Any, weights: Any = None) -> Estimate:
        """Average of values [replicas, frames, ...] with its error, with weights [replicas, frames] if given.

        Raises:
            ValueError: see `correlated_mean`.
        """
        found = correlated_mean(np.asarray(values), None if weights is None else np.asarray(weights))
        return dataclasses.replace(found, axis=self.axis)


def check_names(observables: Sequence[Observable]) -> None:
    """Raise ValueError if two observables have one name."""
    number = Counter(observable.name for observable in observables)
    if shared := [name for name, times in number.items() if times > 1]:
        raise ValueError(f"Observables need names of their own, but several are called {', '.join(shared)}.")
