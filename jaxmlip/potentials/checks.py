"""What a potential must be for functions that work on the host, told in a sentence."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import GHOST, Graph


def check_one(potential: Potential, what: str, instead: str = "") -> None:
    """Refuse a potential that is being differentiated or compiled, and a stack of potentials.

    Args:
        potential: to be used.
        what: uses it, as a message calls it.
        instead: what to do with a stack of potentials.

    Raises:
        ValueError: in either case.
    """
    check_concrete(potential, what)
    if is_stack(potential):
        raise ValueError(
            f"{what} takes one potential, and this is a stack of several: {instead or 'give them one by one'}, or use "
            "jax.vmap over evaluate."
        )


def check_concrete(values: Any, what: str) -> None:
    """Raise ValueError if jax traces one of some values: in `jax.grad`, `jax.jit`, `jax.vmap` and the like."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise ValueError(
            f"{what} works on the host and cannot be differentiated, compiled or mapped by jax (grad, jit, vmap): call "
            "it with plain numbers, and differentiate evaluate(potential, graph) in its place."
        )


def is_stack(potential: Potential) -> bool:
    """Whether a potential is several, whose leaves have a leading axis, as `jax.vmap` takes them.

    A stack is one by its references, or, if only its parameters are stacked, as its energies make no sense while those
    of its members do.
    """
    if np.ndim(potential.references) != 1:
        return True
    leaves = jax.tree.leaves(potential.params)
    leading = {np.shape(leaf)[:1] for leaf in leaves}
    if len(leading) != 1 or leading == {()}:
        return False

    def member(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf)[1:], leaf.dtype)

    (number,) = leading.pop()
    if _has_energies(potential) or _has_energies(potential, number):  # a potential may have a parameter for each atom
        return False
    params = jax.tree.map(member, potential.params)
    try:
        return _has_energies(_with_params(potential, params))
    except (TypeError, AttributeError):  # its parameters are a property, and can be replaced by no one
        return False


def readouts_shape(potential: Potential, atoms: int = 2) -> tuple[int, ...]:
    """Shape of the readouts of so many atoms, traced without computing; fails if parameters do not fit the network."""
    graph = Graph(
        positions=np.zeros((atoms, 3), np.float32),
        species=np.full(atoms, potential.species[0], np.int32),
        cell=np.zeros((1, 3, 3), np.float32),
        neighbors=np.full((atoms, 2), GHOST, np.int32),
        shifts=np.zeros((atoms, 2, 3), np.int8),
        owner=np.zeros(atoms, np.int32),
        inner=1,
    )
    return jax.eval_shape(_readouts, potential, graph).shape


def _readouts(potential: Potential, graph: Graph) -> Any:
    """A function of the module, so that JAX keeps its trace: potentials of equal structure are traced once."""
    return potential.readouts(graph)


def _with_params(potential: Potential, params: Any) -> Potential:
    return potential.with_params(params)


def _has_energies(potential: Potential, atoms: int = 2) -> bool:
    """Whether so many atoms have energies."""
    try:
        shape = readouts_shape(potential, atoms)
    except Exception:  # networks raise anything when shapes do not fit
        return False
    return len(shape) == 2 and shape[0] == atoms
