"""Which of a potential's elements there are: what it costs follows from them, and not from all that it knows.

The host counts them, compiled code finds out which they are: so one program serves all structures of equally many
elements, whatever these are, and derivatives by the parameters are those of all elements' parameters.
"""

from collections.abc import Iterable

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import Graph
from jaxmlip.types import AnyArray, Leaf

FEW_ELEMENTS = 4
"""Up to so many elements what depends on them is summed element by element, in products that are dense in elements."""


def elements_of(
    potential: Potential, structures: Iterable[Int[np.ndarray, " _"]], *, rounded: bool = False
) -> tuple[int, int]:
    """`Graph.elements` for graphs of these structures, if the potential reads it; counted on the host.

    Args:
        potential: any.
        structures: atomic numbers of the atoms of each; 0 for padding.
        rounded: to 2 and 4, so that structures of various compositions share programs.
    """
    if not potential.reads_elements:
        return (0, 0)
    each = [np.unique(numbers[numbers > 0]) for numbers in structures]
    in_all = len(np.unique(np.concatenate(each))) if each else 0
    return few(in_all, max(map(len, each), default=0), rounded=rounded)


def few(in_all: int, in_one: int, *, rounded: bool = False) -> tuple[int, int]:
    """Numbers of elements as `Graph.elements` has them: what is too many, or implied, is left out."""
    if rounded:
        in_all, in_one = (number + number % 2 for number in (in_all, in_one))
    if in_all <= FEW_ELEMENTS:
        return (in_all, 0)
    return (0, in_one if in_one <= FEW_ELEMENTS else 0)


class Present(flax.struct.PyTreeNode):
    """The elements that there are, as rows of a potential's tables: of all graphs together, or of each graph.

    Attributes:
        rows: [groups, elements], ascending; any where a group has fewer elements. One group if together, else one for
            each graph.
        place: [atoms], which of them an atom's element is.
        group: [atoms]; any for padding.
        complete: [atoms], whether an atom's group has no more elements than `Graph.elements` says.
        together: see `rows` (static).
    """

    rows: Leaf
    place: Leaf
    group: Leaf
    complete: Leaf
    together: bool = flax.struct.field(pytree_node=False)


def present_elements(
    graph: Graph, element: Int[AnyArray, " atoms"], real: Bool[AnyArray, " atoms"], known: int
) -> Present | None:
    """The elements that there are, if there are few of many.

    Args:
        graph: that says how many there are.
        element: row of the tables that belongs to each atom.
        real: which atoms count.
        known: number of rows.
    """
    in_all, in_one = graph.elements
    together = in_all > 0
    groups, number = (1, in_all) if together else (graph.n_graphs, in_one)
    if not 0 < number <= FEW_ELEMENTS < known:
        return None
    owner = jnp.asarray(graph.owner)
    group = jnp.zeros_like(owner) if together else jnp.minimum(owner, groups - 1)
    atoms_of = jnp.zeros((groups, known), jnp.int32).at[group, element].add(jnp.asarray(real, jnp.int32))
    rank = jnp.cumsum(atoms_of > 0, axis=1, dtype=jnp.int32)
    # The n-th of a group is the row that as many rows come before as have ranks up to n.
    rows = jnp.sum(rank[:, None, :] <= jnp.arange(number)[:, None], axis=2, dtype=jnp.int32)
    return Present(
        rows=jnp.minimum(rows, known - 1),
        place=jnp.clip(rank[group, element] - 1, 0, number - 1),
        group=group,
        complete=(rank[:, -1] <= number)[group],
        together=together,
    )
