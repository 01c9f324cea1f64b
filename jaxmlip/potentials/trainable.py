"""What can be trained: the parameters of a potential, what they are for, its readouts, and how to begin anew.

`trainable` splits any potential into parameters and a function that rebuilds it. Strategies ask for more, and get it
from potentials that are `Trainable`: our student and its adapters, and other people's that derive from it. Nothing here
assumes a kind of network. `jaxmlip.testing.check_trainable` holds a class to what is promised here.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.describing import count
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.types import Leaf

Role: TypeAlias = Literal["embedding", "trunk", "readout", "references"]
"""What parameters are for: the table of elements, what turns it into features of atoms, what turns these into energies,
or elemental reference energies that move."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that a strategy moves or holds together.

    Attributes:
        role: what they are for.
        depth: layers from the readouts down: 0 for readouts and references, 1 for the last layer of the trunk, one
            more for each layer before it, most for the embedding.
    """

    role: Role
    depth: int = 0


class Trainable(Potential):
    """A potential that strategies can train. Parameters are floating-point leaves of `params`, and nothing else moves.

    A class with one readout has to say what its parameters are for (`groups`) and how a new one is made (`fresh`); one
    with a readout for each fidelity overrides `select_head` and `with_heads` too.

    Attributes:
        heads: number of readouts, one for each fidelity.
    """

    heads: int = 1

    def with_params(self, params: Any) -> "Trainable":
        """The potential with other parameters; all else, references among it, is as it was."""
        return self.replace(params=params)

    @abc.abstractmethod
    def groups(self) -> Any:
        """A pytree like `params` with the `Group` of each leaf (see `grouped`)."""

    @abc.abstractmethod
    def fresh(
        self,
        *,
        references: Float[np.ndarray, "119"],
        scale: float,
        shift: float,
        seed: int,
        species: Sequence[int] | None = None,
    ) -> "Trainable":
        """A potential of the same architecture, with one readout and random parameters that have seen no label.

        Args:
            references: [119], elemental reference energies in eV by atomic number.
            scale: eV, the size of an atom's energy, and of forces times Å: the network's output is multiplied by it.
            shift: eV, added to each atom's energy.
            seed: of the parameters; the same seed gives the same ones.
            species: atomic numbers it shall know; by default those that this one knows.
        """

    def select_head(self, head: int) -> "Trainable":
        """The potential with one of its readouts alone, as it is deployed: an adapter is merged into what it adapts.

        Raises:
            ValueError: if there is no such readout.
        """
        check_head(self, head)
        return self

    def with_heads(self, heads: int, *, fresh: int | None = None) -> "Trainable":
        """The potential with its single readout copied to every head.

        Args:
            heads: how many there shall be.
            fresh: seed of random parameters for the last head; None for a copy there too.

        Raises:
            ValueError: if the class has but one readout, there are several already, or `heads` is not positive.
        """
        del fresh
        if heads != 1:
            raise ValueError(
                f"A {type(self).__name__} has one readout, not {heads}; choose a strategy without a readout for each "
                "fidelity."
            )
        return self

    def with_references(self, references: Float[np.ndarray, "119"]) -> "Trainable":
        """The potential with other elemental reference energies, eV by atomic number."""
        return self.replace(references=np.array(references, np.float64))


def trainable(potential: Potential) -> tuple[Leaf, Callable[[Any], Potential]]:
    """The parameters of a potential, and what makes a potential of others like them.

        params, rebuild = jm.trainable(student)
        slope = jax.grad(lambda params: loss(rebuild(params)))(params)

    Differentiating by, or optimising, the potential itself takes its other leaves along: references, scale and shift
    are float64 on the host, would move, and would be rounded to float32. `rebuild` leaves them as they are.

    Args:
        potential: any with parameters; of a sum, those of all terms.

    Returns:
        A pytree of floating-point arrays, and the function of such a pytree that gives the potential; it may be traced.

    Raises:
        ValueError: if there are none that JAX sees, or some are not floating-point numbers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(potential.params)
    if potential.opaque or not leaves:
        raise ValueError(f"A {type(potential).__name__} has no parameters to be trained.")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"The parameter {path_name(path)} of a {type(potential).__name__} is of type {jnp.result_type(leaf)}, "
                "and only floating-point numbers can be trained; make it a static field."
            )
    return potential.params, potential.with_params


def without_params(potential: Potential) -> Potential:
    """The potential without its parameters, to be handed around apart from them; `with_params` puts them back."""
    return potential.with_params(jax.tree.map(lambda leaf: None, potential.params))


def grouped(params: Any, group_of: Callable[[str], Group]) -> Any:
    """A pytree like the parameters with the group of each, chosen by its path, such as `interaction_0/up_0`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: group_of(path_name(path)), params)


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf in words: its keys, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_head(potential: Trainable, head: int) -> None:
    """Raise ValueError if there is no such readout."""
    if not 0 <= head < potential.heads:
        raise ValueError(f"There is no head {head}: the potential has {potential.heads}, counted from 0.")


def check_one_head(potential: Trainable) -> None:
    """Raise ValueError if a potential has several readouts, so that it has no energy yet."""
    if potential.heads != 1:
        raise ValueError(
            f"The potential has {count(potential.heads, 'readout')}, and its energy is not defined before one is "
            "chosen: use potential.select_head(head)."
        )


def check_single_readout(potential: Trainable, heads: int) -> None:
    """Raise ValueError unless a potential has one readout, to be copied to a number of heads that is positive."""
    if potential.heads != 1:
        raise ValueError(f"The potential has {potential.heads} readouts already: potential.select_head(head) first.")
    if heads < 1:
        raise ValueError(f"heads is {heads}, but a potential needs at least one readout.")


def known_species(species: Sequence[int], most: int = N_SPECIES - 1) -> tuple[int, ...]:
    """Atomic numbers that a new potential is to know, ascending.

    Args:
        species: in any order.
        most: the last one that its architecture can know.

    Raises:
        ValueError: if there are none, or others than atomic numbers up to that.
    """
    known = tuple(sorted({int(z) for z in species}))
    if not known or known[0] < 1 or known[-1] > most:
        raise ValueError(f"species is {tuple(species)}, but it must name atomic numbers from 1 to {most}.")
    return known


def check_references(references: Float[np.ndarray, " _"]) -> None:
    """Raise ValueError unless there is a reference for each atomic number."""
    if references.shape != (N_SPECIES,):
        raise ValueError(f"references have shape {references.shape}, but there is one for each of {N_SPECIES} numbers.")
