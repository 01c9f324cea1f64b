"""Potentials that lend an equivariant potential other parameters to train: low-rank factors, elemental references.

An adapter exists during training alone; `plain` makes of it the equivariant potential that it amounts to.
"""

from collections.abc import Iterable
from typing import Any, cast

import flax.struct
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from jaxmlip.potentials.equivariant import EquivariantPotential, select_head
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.systems.graph import Graph
from jaxmlip.types import AnyArray, Leaf, PerAtom


class Adapter(Potential):
    """Base of the adapters: everything but parameters and energies is that of the adapted potential.

    Attributes:
        params: what is trained.
        potential: the adapted potential.
    """

    params: Leaf
    potential: "EquivariantPotential | LowRank"

    def _described(self) -> tuple[str, ...]:
        return (f"of {type(self.potential).__name__}",)

    @property
    def references(self) -> Float[AnyArray, "*models 119"]:
        """Of the adapted potential, eV."""
        return self.potential.references

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.potential.cutoff

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""
        return self.potential.species

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that the adapted potential has seen."""
        return self.potential.trained_on

    def having_seen(self, labels: Iterable[str]) -> "Potential":
        """The adapter of a potential that was trained on these labels too."""
        return self.replace(potential=self.potential.having_seen(labels))

    @property
    def heads(self) -> int:
        """Number of readouts."""
        return self.potential.heads

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, for a potential with a single readout; 0 for padding atoms."""
        if self.heads != 1:
            raise ValueError(
                f"The potential has {self.heads} readouts, and its energy is not defined before one is chosen: use "
                "plain(potential, head)."
            )
        return self.readouts(graph)[:, 0]


@flax.struct.dataclass
class LowRank(Adapter):
    """W + A·B in place of some matrices W, with A and B as parameters (LoRA: Hu et al., ICLR 2022, arXiv:2106.09685).

    Attributes:
        params: for the path of each matrix, such as "interaction_0/up_0", its factors a [rows, rank] and b [rank,
            columns]. The last axis of a parameter counts the columns, all others together the rows.
        potential: with the matrices W.
    """

    params: Leaf
    potential: EquivariantPotential

    def merged(self) -> EquivariantPotential:
        """The potential with A·B added to its matrices."""
        leaves = cast(dict[str, Any], flatten_dict(self.potential.params, sep="/"))
        for path, factors in self.params.items():
            leaves[path] = leaves[path] + (factors["a"] @ factors["b"]).reshape(leaves[path].shape)
        return self.potential.replace(params=unflatten_dict(leaves, sep="/"))

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Those of the merged potential, eV."""
        return self.merged().readouts(graph)


@flax.struct.dataclass
class TrainableReferences(Adapter):
    """Elemental reference energies that move: an offset for each element and readout is added to each atom's energy.

    Attributes:
        params: "offsets" [elements, heads] in eV, elements as in `species`; "potential", those of the potential.
        potential: without parameters of its own.
    """

    params: Leaf
    potential: EquivariantPotential | LowRank

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Those of the potential plus the offsets, eV; 0 for padding atoms."""
        energies = jnp.asarray(self.potential.replace(params=self.params["potential"]).readouts(graph))
        row = np.zeros(N_SPECIES, np.int32)
        row[list(self.species)] = np.arange(len(self.species))
        offsets = jnp.asarray(self.params["offsets"], energies.dtype)[jnp.asarray(row)[graph.species]]
        return energies + jnp.where(graph.atom_mask[:, None], offsets, 0.0)


def low_rank(potential: EquivariantPotential, rank: int, seed: int) -> LowRank:
    """The potential with a low-rank update of every matrix that has more than `rank` rows and columns.

    A is random and B is zero, so that energies are what they were. A has the variance 1/rank: an optimiser that changes
    each entry of B by a step changes entries of A·B by about that step, as if they were parameters themselves.

    Args:
        potential: to start from.
        rank: of the updates.
        seed: of A.

    Raises:
        ValueError: if no matrix has more than `rank` rows and columns.
    """
    draw = np.random.default_rng(seed)
    factors = {}
    for path, leaf in cast(dict[str, Any], flatten_dict(potential.params, sep="/")).items():
        rows, columns = int(np.prod(leaf.shape[:-1])), leaf.shape[-1]
        if leaf.ndim > 1 and min(rows, columns) > rank:
            a = draw.standard_normal((rows, rank)) / rank**0.5
            factors[path] = {"a": a.astype(leaf.dtype), "b": np.zeros((rank, columns), leaf.dtype)}
    if not factors:
        raise ValueError(f"rank is {rank}, but no matrix of the potential has more rows and columns; lower it.")
    return LowRank(params=factors, potential=potential)


def trainable_references(potential: EquivariantPotential | LowRank) -> TrainableReferences:
    """The potential with offsets of its elemental references among its parameters, 0 at first."""
    offsets = np.zeros((len(potential.species), potential.heads), np.float32)
    params = {"offsets": offsets, "potential": potential.params}
    return TrainableReferences(params=params, potential=potential.replace(params=None))


def plain(potential: Potential, head: int) -> EquivariantPotential:
    """The equivariant potential that a trained potential amounts to, with one of its readouts.

    Args:
        potential: an equivariant potential, or an adapter of one.
        head: of the readout; its offsets become part of the elemental references.

    Raises:
        ValueError: if there is no such head.
        TypeError: for any other potential.
    """
    if isinstance(potential, TrainableReferences):
        inner = plain(potential.potential.replace(params=potential.params["potential"]), head)
        references = np.array(potential.references, np.float64)
        references[list(potential.species)] += np.asarray(potential.params["offsets"], np.float64)[:, head]
        return inner.replace(references=references)
    if isinstance(potential, LowRank):
        potential = potential.merged()
    if not isinstance(potential, EquivariantPotential):
        raise TypeError(f"A {type(potential).__name__} is no equivariant potential, nor an adapter of one.")
    return potential if potential.heads == 1 and head == 0 else select_head(potential, head)
