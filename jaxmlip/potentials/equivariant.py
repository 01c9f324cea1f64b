"""The student: an equivariant message-passing network (see `equivariant_network`) as a Potential."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.describing import count
from jaxmlip.potentials.architecture import Architecture
from jaxmlip.potentials.blocks import Form, form_of_this_machine
from jaxmlip.potentials.equivariant_network import Network
from jaxmlip.potentials.potential import N_SPECIES, UNKNOWN, TrainingRecord, all_labels
from jaxmlip.potentials.present_elements import FEW_ELEMENTS, present_elements
from jaxmlip.potentials.radial import zbl
from jaxmlip.potentials.trainable import (
    Group,
    Trainable,
    check_head,
    check_one_head,
    check_references,
    check_single_readout,
    grouped,
    known_species,
)
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import AnyArray, Leaf, PerAtom


class Equivariant(Architecture, frozen=True, extra="forbid"):
    """What an equivariant potential is to look like; `build` makes one. For the other fields see `Architecture`.

    Attributes:
        kind: how configurations tell it from other architectures; they may leave it out, and files do.
    """

    kind: Literal["equivariant"] = pydantic.Field(default="equivariant", exclude=True, repr=False)

    @property
    def inner_cutoff(self) -> float:
        """0: there is none."""
        return 0.0

    def build(
        self,
        species: Sequence[int],
        *,
        average_neighbors: float,
        references: Float[np.ndarray, "119"] | None = None,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        heads: int = 1,
        seed: int = 0,
    ) -> "EquivariantPotential":
        """A potential with random parameters.

        Args:
            species: atomic numbers it is to know.
            average_neighbors: mean number of neighbours within the cutoff (see the function of that name); sums over
                neighbours are divided by it.
            references: elemental reference energies in eV by atomic number; zero by default.
            scale: eV, multiplies the network's output; one value, or one per head.
            shift: eV, added to each atom's energy; one value, or one per head.
            heads: number of readouts, one per fidelity.
            seed: of the random parameters.

        Raises:
            ValueError: for species that are not atomic numbers, or other values that describe no potential.
        """
        known = known_species(species)
        if not (np.isfinite(average_neighbors) and average_neighbors > 0):
            raise ValueError(
                f"average_neighbors is {average_neighbors}, but sums are divided by it, so it must be positive: "
                "structures of isolated atoms alone cannot set it."
            )
        if heads < 1:
            raise ValueError(f"heads is {heads}, but a potential needs at least one readout.")
        references = np.zeros(N_SPECIES) if references is None else np.array(references, np.float64)
        check_references(references)
        deviations = _deviations(self, known, heads)
        draw = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: jnp.asarray(x * draw.standard_normal(x.shape, np.float32)), deviations)
        return EquivariantPotential(
            params=params,
            references=references,
            scale=np.broadcast_to(np.asarray(scale, np.float64), (heads,)).copy(),
            shift=np.broadcast_to(np.asarray(shift, np.float64), (heads,)).copy(),
            repulsion=np.ones(heads),
            specification=self,
            known=known,
            average_neighbors=float(average_neighbors),
            heads=heads,
            record=TrainingRecord(()),
        )


@functools.cache
def _deviations(specification: Equivariant, known: tuple[int, ...], heads: int) -> dict:
    """The standard deviation of every parameter of a network, which is what its `init` gives."""
    network = Network(specification, known, 1.0, heads)
    atom = jnp.zeros(1, jnp.int32)
    far = jnp.full((1, 1, 3), 2 * specification.cutoff, jnp.float32)
    spread = jax.jit(network.init)(jax.random.key(0), far, jnp.zeros((1, 1), bool), atom[:, None], atom)["params"]
    return jax.tree.map(np.asarray, spread)


@flax.struct.dataclass
class EquivariantPotential(Trainable):
    """An equivariant network as a Potential.

    Attributes:
        params: of the network.
        references: [119], eV.
        scale: [heads], eV; not trained.
        shift: [heads], eV; not trained. An atom's energy is scale · network + shift + repulsion · ZBL.
        repulsion: [heads]; not trained. Weight of the screened nuclear repulsion, if the specification has one: 1, but
            for weights of ScaleShiftMACE, where `scale` acts on it too.
        specification: of the network (static).
        known: atomic numbers it knows, ascending (static).
        average_neighbors: divides the sums over neighbours (static).
        heads: number of readouts, one per fidelity (static).
        tabulated: whether `params` have tables of the radial functions (static); see `tabulate`.
        record: of what it was trained on (static, but no part of what is compiled); see `trained_on`.
        form: for which machine it is computed (static); see `blocks.Form`.
    """

    params: Leaf
    references: Leaf
    scale: Leaf
    shift: Leaf
    repulsion: Leaf
    specification: Equivariant = flax.struct.field(pytree_node=False)
    known: tuple[int, ...] = flax.struct.field(pytree_node=False)
    average_neighbors: float = flax.struct.field(pytree_node=False)
    heads: int = flax.struct.field(pytree_node=False, default=1)
    tabulated: bool = flax.struct.field(pytree_node=False, default=False)
    record: TrainingRecord = flax.struct.field(pytree_node=False, default=UNKNOWN)
    form: Form = flax.struct.field(pytree_node=False, default_factory=form_of_this_machine)

    def _described(self) -> tuple[str, ...]:
        model = self.specification
        layers = f"{count(model.layers, 'layer')} of {count(model.channels, 'channel')}"
        return layers, count(self.heads, "readout") if self.heads > 1 else "", "with tables" if self.tabulated else ""

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.specification.cutoff

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""
        return self.known

    @property
    def reads_elements(self) -> bool:
        """Whether it knows so many that most are not in a structure."""
        return len(self.known) > FEW_ELEMENTS

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that its parameters have ever seen: () if they are random, None if nobody knows."""
        return self.record.labels

    def having_seen(self, labels: Iterable[str]) -> "EquivariantPotential":
        """The potential, trained on these labels too."""
        return self.replace(record=TrainingRecord(all_labels([self.trained_on, tuple(labels)])))

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Atomic energies in eV of every head; 0 for padding atoms, NaN for elements the potential does not know.

        Computed in the precision of the graph's positions. Where the graph says how many elements there are, it costs
        what a potential of so few elements would; if there are more, energies are NaN.
        """
        vectors, mask = edge_vectors(graph)
        vectors, dtype = jnp.asarray(vectors), vectors.dtype
        row = np.full(N_SPECIES, -1, np.int32)
        row[list(self.known)] = np.arange(len(self.known))
        element = jnp.asarray(row)[graph.species]
        sure, row_of = (element >= 0) & graph.atom_mask, jnp.maximum(element, 0)
        present = present_elements(graph, row_of, sure, len(self.known))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.params)
        network = Network(self.specification, self.known, self.average_neighbors, self.heads, self.tabulated, self.form)
        output = jnp.asarray(
            network.apply({"params": params}, vectors, mask, graph.neighbors, row_of, graph.tiers, present)
        )
        energies = jnp.asarray(self.scale, dtype) * output + jnp.asarray(self.shift, dtype)
        if self.specification.repulsion:
            lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
            numbers = jnp.asarray(graph.species)
            pairs = zbl(lengths, numbers[:, None], numbers[graph.neighbors], self.specification.envelope_power)
            repulsion = jnp.sum(jnp.where(mask, pairs, 0.0), axis=1)
            energies = energies + jnp.asarray(self.repulsion, dtype) * repulsion[:, None]
        if present is not None:
            sure = sure & present.complete
        energies = jnp.where(sure[:, None], energies, jnp.nan)
        return jnp.where(graph.atom_mask[:, None], energies, 0.0)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, relative to its elemental reference; 0 for padding atoms.

        Raises:
            ValueError: if the potential has several heads.
        """
        check_one_head(self)
        return self.readouts(graph)[:, 0]

    def groups(self) -> Any:
        """The table of elements, each layer with the map and product that belong to it, and the readouts."""
        layers = self.specification.layers

        def group_of(path: str) -> Group:
            kind, _, layer = path.partition("/")[0].partition("_")
            if kind == "readout":
                return Group("readout")
            return Group("embedding", layers + 1) if kind == "embedding" else Group("trunk", layers - int(layer))

        return grouped(self.params, group_of)

    def fresh(
        self,
        *,
        references: Float[np.ndarray, "119"],
        scale: float,
        shift: float,
        seed: int,
        species: Sequence[int] | None = None,
    ) -> "EquivariantPotential":
        """A new potential of this architecture, see `Trainable.fresh`; with the mean number of neighbours of this one.

        So potentials of one architecture share compiled programs.
        """
        return self.specification.build(
            self.known if species is None else species,
            average_neighbors=self.average_neighbors,
            references=references,
            scale=scale,
            shift=shift,
            seed=seed,
        ).replace(form=self.form)

    def select_head(self, head: int) -> "EquivariantPotential":
        """The potential with one of its readouts alone; all others are dropped.

        Raises:
            ValueError: if there is no such head.
        """
        check_head(self, head)
        return self if self.heads == 1 else self._with_rows([head])

    def with_heads(self, heads: int, *, fresh: int | None = None) -> "EquivariantPotential":
        """The potential with its single readout copied to every head, see `Trainable.with_heads`."""
        check_single_readout(self, heads)
        copied = self._with_rows([0] * heads)
        if fresh is None:
            return copied
        new = self.specification.build(self.known, average_neighbors=self.average_neighbors, seed=fresh)

        def with_random_last(group: Group, old: Any, random: Any) -> Any:
            return np.concatenate([np.asarray(old)[:-1], np.asarray(random, old.dtype)]) if _is_readout(group) else old

        return copied.replace(params=jax.tree.map(with_random_last, self.groups(), copied.params, new.params))

    def _with_rows(self, heads: list[int]) -> "EquivariantPotential":
        """Index everything that has a leading axis of heads."""
        rows = np.array(heads)
        params = jax.tree.map(
            lambda group, leaf: leaf[rows] if _is_readout(group) else leaf, self.groups(), self.params
        )
        scales = {name: getattr(self, name)[rows] for name in ("scale", "shift", "repulsion")}
        return self.replace(params=params, **scales, heads=len(heads))


def _is_readout(group: Group) -> bool:
    return group.role == "readout"


def average_neighbors(graphs: Iterable[Graph], cutoff: float = np.inf) -> float:
    """Mean number of neighbours of the real atoms of some graphs.

    Args:
        graphs: with numpy or jax leaves.
        cutoff: Å; neighbours beyond it, of lists that reach farther, are not counted.

    Raises:
        ValueError: if there are no atoms.
    """
    neighbors = atoms = 0
    for graph in graphs:
        vectors, mask = edge_vectors(graph)
        near = np.asarray(mask) & (np.linalg.norm(np.asarray(vectors), axis=-1) < cutoff)
        real = np.asarray(graph.atom_mask)
        neighbors += int(near[real].sum())
        atoms += int(real.sum())
    if not atoms:
        raise ValueError("The mean number of neighbours was asked for, but the structures given have no atoms.")
    return neighbors / atoms
