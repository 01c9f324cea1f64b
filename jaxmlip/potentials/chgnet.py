"""CHGNet as a potential, pretrained (see `chgnet_checkpoint`) or new, and what strategies need to train it.

Deng et al., Nat. Mach. Intell. 5, 1031 (2023).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from pydantic import BaseModel

from jaxmlip.describing import count
from jaxmlip.potentials.blocks import Form, form_of_this_machine
from jaxmlip.potentials.chgnet_network import ATOM_CUTOFF, BOND_CUTOFF, ELEMENTS, LAYERS, CHGNetNetwork, drawn
from jaxmlip.potentials.potential import LABELS, N_SPECIES, TrainingRecord, all_labels
from jaxmlip.potentials.trainable import (
    Group,
    Trainable,
    check_head,
    check_one_head,
    check_references,
    check_single_readout,
    grouped,
    known_species,
    path_name,
)
from jaxmlip.systems.graph import GHOST, Graph, edge_vectors
from jaxmlip.types import AnyArray, Leaf, PerAtom

MISSED = 1e-2
"""Å: a bond this close to the bond graph's cutoff weighs too little to matter, and is not called missing."""

UNFITTED = 1e-6
"""Magnitude in eV below which an elemental reference was never fitted: no training structure had the element."""

NOT_IN_MPTRJ = (84, 85, 86, 87, 88)
"""Po, At, Rn, Fr and Ra: no structure of MPtrj, on which CHGNet was trained, has one of them (it has the other 89 of
the first 94 elements). The source is the published weights: in the embedding the rows of these five alone have the
length of rows that are drawn from the normal distribution, √64, and all others are longer by 40 % or more; and, with
that of Yb, which the data of r2SCAN lack, they have the same bits before and after the transfer to r2SCAN: no gradient
reached them. Their references for GGA are small instead of zero, and mean nothing."""


OF_READOUT = ("norm", "readout", "moment")
"""Parameters of a readout: of energies, with the normalisation before it, and of magnetic moments."""

LAST_LAYER = "readout_3"

OF_LAYERS = ("atom_convolutions", "bond_convolutions", "angle_updates")


class CHGNetModel(BaseModel, frozen=True, extra="forbid"):
    """What a new CHGNet looks like: the architecture of version 0.3.0, which has no sizes to choose; `build` makes one.

    Attributes:
        kind: how configurations tell it from other architectures.
    """

    kind: Literal["chgnet"] = "chgnet"

    @property
    def cutoff(self) -> float:
        """6 Å."""
        return ATOM_CUTOFF

    @property
    def inner_cutoff(self) -> float:
        """3 Å, the bond graph."""
        return BOND_CUTOFF

    def build(
        self,
        species: Sequence[int],
        *,
        average_neighbors: float = 1.0,
        references: Float[np.ndarray, "119"] | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        seed: int = 0,
    ) -> "CHGNet":
        """A CHGNet with random parameters, each drawn as the original draws it.

        CHGNet has no scale and shift beside its parameters. They enter by the last linear layer of the readout, whose
        weights and bias are multiplied by the scale, and to whose bias the shift is added; training moves both.

        Args:
            species: atomic numbers it is to know, up to 94.
            average_neighbors: of no use here: CHGNet's sums over neighbours are not divided by their number.
            references: elemental reference energies in eV by atomic number; zero by default.
            scale: eV, multiplies the network's output.
            shift: eV, added to each atom's energy.
            seed: of the random parameters.

        Raises:
            ValueError: for species that CHGNet has no embedding for.
        """
        del average_neighbors
        known = known_species(species, most=ELEMENTS)
        references = np.zeros(N_SPECIES) if references is None else np.array(references, np.float64)
        check_references(references)
        params = drawn_params(seed)
        last = params[LAST_LAYER]
        kernel, bias = np.float32(scale) * last["kernel"], np.float32(scale) * last["bias"] + np.float32(shift)
        params[LAST_LAYER] = {"kernel": kernel, "bias": bias}
        return CHGNet(params={"params": params}, references=references, known=known, record=TrainingRecord(()))


@flax.struct.dataclass
class CHGNet(Trainable):
    """A CHGNet as a potential, to be used as it is or trained.

    Attributes:
        params: variables of `CHGNetNetwork`; those of the readouts have a leading axis if there are several.
        references: [119], eV; AtomRef of a checkpoint.
        known: atomic numbers it knows, ascending (static); None for a checkpoint, whose references say it, so that all
            checkpoints share compiled code.
        heads: number of readouts, one per fidelity (static).
        record: of what it was trained on (static, but no part of what is compiled); see `trained_on`.
        form: for which machine it is computed (static); see `blocks.Form`.
    """

    params: Leaf
    references: Leaf
    known: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    heads: int = flax.struct.field(pytree_node=False, default=1)
    record: TrainingRecord = flax.struct.field(pytree_node=False, default=TrainingRecord(LABELS))
    form: Form = flax.struct.field(pytree_node=False, default_factory=form_of_this_machine)

    def _described(self) -> tuple[str, ...]:
        return (count(self.heads, "readout") if self.heads > 1 else "",)

    @property
    def cutoff(self) -> float:
        """6 Å."""
        return ATOM_CUTOFF

    @property
    def inner_cutoff(self) -> float:
        """3 Å, the bond graph."""
        return BOND_CUTOFF

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers it knows; of a checkpoint those that training structures had, see `NOT_IN_MPTRJ`.

        Of a checkpoint it is not to be asked for in traced code.
        """
        if self.known is not None:
            return self.known
        fitted = np.flatnonzero(np.abs(np.asarray(self.references)) > UNFITTED).tolist()
        return tuple(number for number in fitted if number not in NOT_IN_MPTRJ)

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that its parameters have ever seen; of a checkpoint all, magnetic moments among them."""
        return self.record.labels

    def having_seen(self, labels: Iterable[str]) -> "CHGNet":
        """The potential, trained on these labels too."""
        return self.replace(record=TrainingRecord(all_labels([self.trained_on, tuple(labels)])))

    @property
    def has_magnetic_moments(self) -> bool:
        """It does."""
        return True

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, relative to its reference; NaN if a bond lies outside of the inner slots.

        Raises:
            ValueError: if the potential has several heads.
        """
        check_one_head(self)
        return self.outputs(graph)[0][:, 0]

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Atomic energies in eV of every head."""
        return self.outputs(graph)[0]

    def magnetic_moments(self, graph: Graph) -> PerAtom:
        """Magnitude of each atom's magnetic moment in μB; 0 for padding atoms.

        Raises:
            ValueError: if the potential has several heads.
        """
        check_one_head(self)
        return self.outputs(graph)[1][:, 0]

    def outputs(self, graph: Graph) -> tuple[Float[AnyArray, "atoms heads"], Float[AnyArray, "atoms heads"]]:
        """Atomic energies in eV and magnetic moments in μB of every head, 0 for padding atoms."""
        # Numpy leaves of the host cannot be indexed by what a transformation traces.
        params, graph = jax.tree.map(jnp.asarray, (self.params, graph))
        vectors, _ = edge_vectors(graph)
        inner = min(graph.inner, graph.n_slots)
        reverse = reverse_slots(graph.neighbors[:, :inner], graph.shifts[:, :inner])
        network = CHGNetNetwork(self.form)
        features = network.apply(params, graph.species, vectors, graph.neighbors, reverse, method="features")

        def of_head(readout: Any) -> tuple[Array, Array]:
            everything = {"params": {**params["params"], **readout}}
            return cast(tuple[Array, Array], network.apply(everything, *features, method="outputs"))

        readout = {name: tree for name, tree in params["params"].items() if _is_of_readout(name)}
        both = jax.vmap(of_head, out_axes=1)(readout) if self.heads > 1 else [x[:, None] for x in of_head(readout)]
        # The bond graph would silently lack a bond that has moved outside of the inner slots.
        missed = jnp.any(jnp.sum(vectors[:, inner:] ** 2, axis=-1) < (BOND_CUTOFF - MISSED) ** 2, axis=1)
        energies, moments = (
            jnp.where(graph.atom_mask[:, None], jnp.where(missed[:, None], jnp.nan, x), 0.0) for x in both
        )
        return energies, moments

    def groups(self) -> Any:
        """Bases and embeddings of atoms, bonds and angles; the layers; and the readouts of energies and moments."""

        def group_of(path: str) -> Group:
            part = path.split("/")[1]
            name, _, layer = part.rpartition("_")
            if _is_of_readout(part):
                return Group("readout")
            return Group("trunk", LAYERS - int(layer)) if name in OF_LAYERS else Group("embedding", LAYERS + 1)

        return grouped(self.params, group_of)

    def fresh(
        self,
        *,
        references: Float[np.ndarray, "119"],
        scale: float,
        shift: float,
        seed: int,
        species: Sequence[int] | None = None,
    ) -> "CHGNet":
        """A new CHGNet, see `Trainable.fresh` and `CHGNetModel.build`."""
        known = self.species if species is None else species
        new = CHGNetModel().build(known, references=references, scale=scale, shift=shift, seed=seed)
        return new.replace(form=self.form)

    def with_references(self, references: Float[np.ndarray, "119"]) -> "CHGNet":
        """The potential with other elemental reference energies, eV; it knows the elements that it knew."""
        return self.replace(references=np.array(references, np.float64), known=self.species)

    def select_head(self, head: int) -> "CHGNet":
        """The potential with one of its readouts alone; all others are dropped.

        Raises:
            ValueError: if there is no such head.
        """
        check_head(self, head)
        return self if self.heads == 1 else self._with_readouts(1, lambda leaf: leaf[head], self.params)

    def with_heads(self, heads: int, *, fresh: int | None = None) -> "CHGNet":
        """The potential with its single readout copied to every head, see `Trainable.with_heads`."""
        check_single_readout(self, heads)
        last = self.params if fresh is None else {"params": drawn_params(fresh)}
        return self._with_readouts(
            heads, lambda *leaves: np.stack(leaves) if heads > 1 else leaves[0], *[self.params] * (heads - 1), last
        )

    def _with_readouts(self, heads: int, made: Callable[..., Any], *sources: Any) -> "CHGNet":
        """The potential with readouts that are made of those in other parameters."""
        parts = {
            name: jax.tree.map(made, *(source["params"][name] for source in sources)) if _is_of_readout(name) else part
            for name, part in self.params["params"].items()
        }
        return self.replace(params={"params": parts}, heads=heads)


def _is_of_readout(name: str) -> bool:
    """Whether a part of the network belongs to the readouts."""
    return name.startswith(OF_READOUT)


def reverse_slots(
    neighbors: Int[AnyArray, "atoms inner"], shifts: Int[AnyArray, "atoms inner 3"]
) -> Int[Array, "atoms inner"]:
    """Where each bond is found among the slots of its other end.

    Returns:
        Index into the flattened slots of the bond j → i, shift −S, for the bond i → j, shift S, also if j is an image
        of i itself; one past the last slot if it is not there (an empty slot, or a bond beyond the inner cutoff).
    """
    atoms, inner = neighbors.shape
    here = jnp.arange(atoms)[:, None, None]
    back = jnp.all(jnp.asarray(shifts)[neighbors] == -shifts[:, :, None], axis=-1)
    match = back & (jnp.asarray(neighbors)[neighbors] == here) & (neighbors != GHOST)[:, :, None]
    slot = jnp.argmax(match, axis=-1) if inner else jnp.zeros((atoms, 0), jnp.int32)
    return jnp.where(match.any(axis=-1), neighbors * inner + slot, atoms * inner)


def drawn_params(seed: int) -> dict[str, Any]:
    """Parameters of the network before training, float32."""
    draw = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, spread: drawn(path_name(path), spread, draw), dict(spreads()))


@functools.cache
def spreads() -> Mapping:
    """What `CHGNetNetwork.init` gives."""
    vectors, slots = jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(CHGNetNetwork().init)
    return jax.tree.map(np.asarray, init(jax.random.key(0), jnp.ones(1, jnp.int32), vectors, slots, slots[:, :1]))[
        "params"
    ]
