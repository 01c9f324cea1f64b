"""What is minimised: terms, each a function of potential and batch, whose sums are added before means are taken.

A term of one's own is a pytree whose numbers are traced, so that weights and targets that change do not compile anew:

    class Pressure(jm.Term):
        graph: Leaf
        target: Leaf
        weight: Leaf = 1.0

        def __call__(self, potential, batch):
            error = ... - self.target
            return {"pressure": jm.TermSums(error**2, error**2, 1.0)}

        def weights(self):
            return {"pressure": self.weight}

    problem = dataclasses.replace(problem, objective=(Pressure(graph, 0.0, weight=10.0),))
"""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp

from jaxmlip.potentials.potential import Potential
from jaxmlip.pytrees import Distinct
from jaxmlip.systems.batches import Batch


class TermSums(NamedTuple):
    """Numerator and denominator of one quantity's mean, of each structure of a batch, [graphs], or of all together, [].

    Sums of structures, batches and devices may be added; means are taken last. So a quantity that does not depend on
    the batch counts once for each batch and device, and its mean is what it would be if it counted once.

    Attributes:
        loss: Σ (sample weight) × (loss of a component).
        squared: Σ (error of a component)², without sample weights; its unit squared.
        count: number of components with a label.
    """

    loss: Any
    squared: Any
    count: Any


class Term(Distinct, flax.struct.PyTreeNode, abc.ABC):
    """A part of an objective. Numbers are leaves; what decides the program is static."""

    @abc.abstractmethod
    def __call__(self, potential: Potential, batch: Batch) -> dict[str, TermSums]:
        """Sums of each quantity by its name, which no other term has.

        Args:
            potential: with all of its readouts; `Headed(potential, head)` answers with those that are asked for, and
                `loss.predicted` gives derivatives whose own gradient is cheap.
            batch: of the training or validation samples.
        """

    @abc.abstractmethod
    def weights(self) -> Mapping[str, Any]:
        """The factor of each quantity's mean in the loss."""


class TermSource(abc.ABC):
    """Where terms come from that hold for parameters near those they were made with, and are made anew when these move.

    Such are terms of the frames that the potential itself has sampled. The trainer asks for terms before the first
    validation, and after every epoch whether they still hold; terms of equal structure share the compiled step.

    The `repr` of a source says all that decides its terms: a checkpoint of a training with another is refused.
    """

    @abc.abstractmethod
    def outdated(self, terms: tuple[Term, ...], potential: Potential) -> bool:
        """Whether terms say too little of a potential to go on with."""

    @abc.abstractmethod
    def renewed(
        self, terms: tuple[Term, ...], potential: Potential, number: int, folder: Path | None, *, progress: bool
    ) -> tuple[Term, ...]:
        """Terms for parameters near those of a potential, the same whenever it is asked for the same.

        Args:
            terms: that they take the place of; none at first.
            potential: with all of its readouts.
            number: how many times terms have been made, 1 at first.
            folder: where what `restored` needs is kept; None if the training has none.
            progress: show a bar.
        """

    @abc.abstractmethod
    def restored(self, potential: Potential, number: int, folder: Path) -> tuple[Term, ...]:
        """What `renewed` gave at that number in a process that has ended.

        Args:
            potential: of equal structure; its parameters are those of a later step.
            number: see `renewed`.
            folder: see `renewed`.
        """


class Objective(flax.struct.PyTreeNode):
    """The loss: Σ weight × (Σ loss / Σ count) over the quantities of all terms.

    Attributes:
        terms: in the order in which they are added.
    """

    terms: tuple[Term, ...]

    def sums(self, potential: Potential, batch: Batch) -> dict[str, TermSums]:
        """Sums of all quantities.

        Raises:
            ValueError: if two terms give a quantity of one name.
        """
        found: dict[str, TermSums] = {}
        for term in self.terms:
            new = term(potential, batch)
            if twice := found.keys() & new.keys():
                raise ValueError(f"Two terms of the objective give {min(twice)}; rename it in one of them.")
            found |= new
        return found

    def weights(self) -> dict[str, Any]:
        """The factors of all quantities."""
        return {name: weight for term in self.terms for name, weight in term.weights().items()}

    def total(self, sums: Mapping[str, TermSums]) -> Any:
        """The loss from the sums over one batch or many."""
        return total(sums, self.weights())


def total(sums: Mapping[str, TermSums], weights: Mapping[str, Any]) -> Any:
    """Σ weight × (Σ loss / Σ count), 0 for a quantity that was not counted."""
    return sum(weights[name] * jnp.sum(term.loss) / jnp.maximum(jnp.sum(term.count), 1) for name, term in sums.items())
