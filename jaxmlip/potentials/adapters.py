"""Potentials that lend another potential other parameters to train: low-rank factors, elemental references.

An adapter exists during training alone; `select_head` makes of it the potential that it amounts to.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.potentials.trainable import Group, Trainable, check_head, check_one_head, path_name
from jaxmlip.systems.graph import Graph
from jaxmlip.types import AnyArray, Leaf, PerAtom


class Adapter(Trainable):
    """Base of the adapters: everything but parameters and energies is that of the adapted potential.

    Attributes:
        params: what is trained.
        potential: the adapted potential.
    """

    params: Leaf
    potential: Trainable

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
    def inner_cutoff(self) -> float:
        """Å."""
        return self.potential.inner_cutoff

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""
        return self.potential.species

    @property
    def reads_elements(self) -> bool:
        """Whether the adapted potential saves work by it."""
        return self.potential.reads_elements

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that the adapted potential has seen."""
        return self.potential.trained_on

    def having_seen(self, labels: Iterable[str]) -> "Adapter":
        """The adapter of a potential that was trained on these labels too."""
        return self.replace(potential=self.potential.having_seen(labels))

    @property
    def heads(self) -> int:
        """Number of readouts."""
        return self.potential.heads

    @property
    def has_magnetic_moments(self) -> bool:
        """Whether the adapted potential predicts them."""
        return self.potential.has_magnetic_moments

    def with_heads(self, heads: int, *, fresh: int | None = None) -> "Adapter":
        """The adapter, whose readouts are those of what it adapts.

        Raises:
            ValueError: if it were to have other ones.
        """
        del fresh
        if heads != self.heads:
            raise ValueError(f"A {type(self).__name__} has the readouts of what it adapts; give that {heads} first.")
        return self

    def with_references(self, references: Float[np.ndarray, "119"]) -> "Adapter":
        """The adapter of a potential with other elemental reference energies, eV."""
        return self.replace(potential=self.potential.with_references(references))

    def fresh(
        self,
        *,
        references: Float[np.ndarray, "119"],
        scale: float,
        shift: float,
        seed: int,
        species: Sequence[int] | None = None,
    ) -> Trainable:
        """A new potential like the adapted one, without an adapter; see `Trainable.fresh`."""
        return self.potential.fresh(references=references, scale=scale, shift=shift, seed=seed, species=species)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, for a potential with a single readout; 0 for padding atoms."""
        check_one_head(self)
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
    potential: Trainable

    def groups(self) -> Any:
        """The factors of a matrix belong to its group."""
        of_matrices = {path_name(path): group for path, group in _leaves(self.potential.groups())}
        return {path: jax.tree.map(lambda _, p=path: of_matrices[p], factors) for path, factors in self.params.items()}

    def merged(self) -> Trainable:
        """The potential with A·B added to its matrices."""

        def updated(path: tuple[Any, ...], leaf: Any) -> Any:
            factors = self.params.get(path_name(path))
            return leaf if factors is None else leaf + (factors["a"] @ factors["b"]).reshape(leaf.shape)

        return self.potential.with_params(jax.tree_util.tree_map_with_path(updated, self.potential.params))

    def select_head(self, head: int) -> Trainable:
        """The merged potential with one of its readouts."""
        return self.merged().select_head(head)

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Those of the merged potential, eV."""
        return self.merged().readouts(graph)

    def outputs(self, graph: Graph) -> tuple[Float[AnyArray, "atoms heads"], Float[AnyArray, "atoms heads"] | None]:
        """Those of the merged potential."""
        return self.merged().outputs(graph)


@flax.struct.dataclass
class TrainableReferences(Adapter):
    """Elemental reference energies that move: an offset for each element and readout is added to each atom's energy.

    Attributes:
        params: "offsets" [elements, heads] in eV, elements as in `elements`; "potential", those of the potential.
        potential: without parameters of its own.
        elements: atomic numbers that have an offset, ascending (static): those that the potential knows.
    """

    params: Leaf
    potential: Trainable
    elements: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def whole(self) -> Trainable:
        """The adapted potential with its parameters."""
        return self.potential.with_params(self.params["potential"])

    def groups(self) -> Any:
        """The offsets, and those of the adapted potential."""
        return {"offsets": Group("references"), "potential": self.whole().groups()}

    def select_head(self, head: int) -> Trainable:
        """The adapted potential with one of its readouts, whose offsets become part of the elemental references."""
        check_head(self, head)
        references = np.array(self.references, np.float64)
        references[list(self.elements)] += np.asarray(self.params["offsets"], np.float64)[:, head]
        return self.whole().select_head(head).with_references(references)

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Those of the potential plus the offsets, eV; 0 for padding atoms."""
        return self._moved(self.whole().readouts(graph), graph)

    def outputs(self, graph: Graph) -> tuple[Float[AnyArray, "atoms heads"], Float[AnyArray, "atoms heads"] | None]:
        """Those of the potential, its energies plus the offsets."""
        energies, moments = self.whole().outputs(graph)
        return self._moved(energies, graph), moments

    def _moved(self, energies: Float[AnyArray, "atoms heads"], graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Atomic energies plus the offsets."""
        energies = jnp.asarray(energies)
        row = np.zeros(N_SPECIES, np.int32)
        row[list(self.elements)] = np.arange(len(self.elements))
        offsets = jnp.asarray(self.params["offsets"], energies.dtype)[jnp.asarray(row)[graph.species]]
        return energies + jnp.where(graph.atom_mask[:, None], offsets, 0.0)


def low_rank(potential: Trainable, rank: int, seed: int) -> LowRank:
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
    for path, leaf in _leaves(potential.params):
        rows, columns = int(np.prod(leaf.shape[:-1])), leaf.shape[-1] if leaf.ndim else 0
        if leaf.ndim > 1 and min(rows, columns) > rank:
            a = draw.standard_normal((rows, rank)) / rank**0.5
            factors[path_name(path)] = {"a": a.astype(leaf.dtype), "b": np.zeros((rank, columns), leaf.dtype)}
    if not factors:
        raise ValueError(f"rank is {rank}, but no matrix of the potential has more rows and columns; lower it.")
    return LowRank(params=factors, potential=potential)


def trainable_references(potential: Trainable) -> TrainableReferences:
    """The potential with offsets of its elemental references among its parameters, 0 at first."""
    elements = tuple(potential.species)
    offsets = np.zeros((len(elements), potential.heads), np.float32)
    params = {"offsets": offsets, "potential": potential.params}
    return TrainableReferences(params=params, potential=potential.with_params(None), elements=elements)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
