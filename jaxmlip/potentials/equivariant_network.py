"""The student's network: equivariant message passing of the MACE family, from edge vectors to atomic energies.

The equations are those of ScaleShiftMACE with residual agnostic interactions (Batatia et al., NeurIPS 2022,
arXiv:2206.07697, and the reference implementation ACEsuit/mace), normalised like it, so that weights can be exchanged.
They are evaluated in another order, which changes nothing but the cost: see `Interaction` and `contraction`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import e3nn_jax as e3nn
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Bool, Float, Int

from jaxmlip.potentials.architecture import Architecture
from jaxmlip.potentials.blocks import Form, blocks_of, in_blocks
from jaxmlip.potentials.equivariant_layers import (
    ElementMap,
    Interaction,
    Messages,
    Product,
    Readout,
    parameter,
)
from jaxmlip.potentials.present_elements import FEW_ELEMENTS, Present
from jaxmlip.potentials.radial import agnesi, bessel, envelope
from jaxmlip.types import AnyArray, EdgeMask, Neighbors

BLOCK_ATOMS = 32
"""Atoms worked on at a time on a CPU, so that what exists for each of their edges stays in the cache; half as many if
there are more than scalars."""


class Elements(NamedTuple):
    """The elements that weights are for: all that a network knows, or those that there are.

    Attributes:
        embedding: [elements, channels].
        of_atoms: [atoms], which of them an atom is.
        rows: [elements], their rows in the tables of parameters; None for all.
        of_graphs: the elements of each graph, where these are few and all together many.
    """

    embedding: Array
    of_atoms: AnyArray
    rows: Array | None = None
    of_graphs: Present | None = None

    def those(self, present: Present) -> "Elements":
        """Of all elements those that there are."""
        if not present.together:
            return self._replace(of_graphs=present)
        rows = present.rows[0]
        return Elements(self.embedding[rows], present.place, rows)


def summation(
    messages: Messages,
    features: Float[Array, "atoms components channels"],
    elements: Elements,
    *,
    first: bool,
    kernel: bool = False,
) -> tuple[Callable[..., Array], tuple[Array, ...], int]:
    """What sums over the neighbours of some atoms: the cheapest form that there is for the elements.

    Args:
        messages: of the layer.
        features: of all atoms.
        elements: that there are.
        first: whether it is the first layer, where features are those of the elements.
        kernel: whether the kernel of `message_kernel` stands for the plain form.

    Returns:
        A function of radial basis, harmonics and neighbours of some atoms, and of what else it needs of these atoms;
        that of all atoms, with an axis of atoms in front; and how many numbers there are of each slot on the way.
    """
    weights = messages.radial.shape[1] * features.shape[-1]
    if first and len(elements.embedding) <= FEW_ELEMENTS:
        folded, of_atoms = messages.folded(elements.embedding), jnp.asarray(elements.of_atoms)

        def of_few(radial: Array, harmonics: Array, neighbors: Array) -> Array:
            return messages.of_elements(folded, radial, harmonics, of_atoms[neighbors])

        return of_few, (), weights
    if first and elements.of_graphs is not None:
        there = elements.of_graphs
        of_graphs = messages.sources(elements.embedding[:, None])[:, 0][there.rows]

        def of_own(radial: Array, harmonics: Array, neighbors: Array, own: Array) -> Array:
            return messages.of_own_elements(own, radial, harmonics, there.place[neighbors])

        return of_own, (of_graphs[there.group],), weights
    sources = messages.sources(features)
    if kernel:
        from jaxmlip.potentials.message_kernel import kernel_messages  # Pallas takes a while to import

        def by_kernel(radial: Array, harmonics: Array, neighbors: Array) -> Array:
            return kernel_messages(messages, sources, neighbors, radial, harmonics)

        # The radial weights are never in memory.
        return by_kernel, (), messages.radial.shape[0] + features.shape[1] * features.shape[-1]

    def of_all(radial: Array, harmonics: Array, neighbors: Array) -> Array:
        return messages(sources[neighbors], radial, harmonics)

    return of_all, (), weights


class Network(nn.Module):
    """Edge vectors in, atomic energies out.

    `init` gives the standard deviation of each parameter instead of random numbers, which are drawn on the host: a
    random generator compiled for each of them would take longer than compiling the network.

    Attributes:
        specification: sizes and cutoff.
        numbers: atomic number of each element it knows.
        average_neighbors: divides the sums over neighbours.
        heads: number of readouts.
        tabulated: whether the parameters have tables of the radial functions (see `tabulate`).
        form: see `blocks.Form`.
    """

    specification: Architecture
    numbers: tuple[int, ...]
    average_neighbors: float
    heads: int
    tabulated: bool = False
    form: Form = "cpu"

    @nn.compact
    def __call__(
        self,
        vectors: Float[Array, "atoms slots 3"],
        mask: EdgeMask,
        neighbors: Neighbors,
        element: Int[AnyArray, " atoms"],
        tiers: tuple[tuple[int, int], ...] = (),
        present: Present | None = None,
    ) -> Float[Array, "atoms heads"]:
        """Sum of the readouts of all layers.

        Args:
            vectors: Å, from each atom to its neighbours; of any non-zero length where `mask` is False.
            mask: which slots hold a neighbour.
            neighbors: their indices; any in slots without.
            element: row of the tables that belongs to each atom.
            tiers: see `Graph.tiers`.
            present: elements that there are, where they are few of many.
        """
        spec, known = self.specification, len(self.numbers)
        tiers = tiers or ((mask.shape[0], mask.shape[1]),)
        rows = itertools.pairwise((0, *itertools.accumulate(count for count, _ in tiers)))
        parts = [np.s_[first:stop, :width] for (first, stop), (_, width) in zip(rows, tiers, strict=True)]
        scales = radii = None
        if spec.learned_radial_scale:
            scales = parameter(self, "radial_scale", (known,), 0.0)[element]
        if spec.distance_transform == "agnesi":
            radii = jnp.asarray(covalent_radii[list(self.numbers)], vectors.dtype)[element]
        edges = [self._edges(vectors[part], mask[part], neighbors[part], part[0], radii, scales) for part in parts]

        elements = Elements(parameter(self, "embedding", (known, spec.channels)) / known**0.5, element)
        if present is not None:
            elements = elements.those(present)
        features = elements.embedding[elements.of_atoms][:, None]
        energies = jnp.zeros((), vectors.dtype)
        for layer in range(spec.layers):
            features = self._layer(layer, features, edges, [part[0] for part in parts], elements)
            # As in MACE, a network of one layer has a linear readout.
            hidden = spec.readout_hidden if layer == spec.layers - 1 and layer > 0 else None
            energies = energies + Readout(self.heads, hidden, name=f"readout_{layer}")(features[:, 0])
        return energies

    def _layer(
        self,
        layer: int,
        features: Float[Array, "atoms components_in channels"],
        edges: list[tuple[Array, Array, AnyArray]],
        parts: list[slice],
        elements: "Elements",
    ) -> Float[Array, "atoms components_out channels"]:
        """New features of all atoms, computed for some of them at a time.

        Args:
            layer: which, from 0.
            features: of before.
            edges: see `_edges`, of each tier.
            parts: atoms of each tier.
            elements: that there are.
        """
        spec, known = self.specification, len(self.numbers)
        l_in = 0 if layer == 0 else spec.message_l
        residual = layer > 0 or spec.first_interaction == "residual"
        messages = Interaction(spec, l_in, self.average_neighbors, self.tabulated, name=f"interaction_{layer}")()
        l_out = 0 if layer == spec.layers - 1 else spec.message_l
        product = Product(spec, l_in if residual else None, l_out, known, name=f"product_{layer}")()
        by_element = None if residual else ElementMap(spec, known, name="map_0")()
        if elements.rows is not None:
            product = product.of(elements.rows)
            by_element = None if by_element is None else by_element.of(elements.rows)
        by_kernel = self.form == "accelerator_kernel"
        sums, of_atoms, weights = summation(messages, features, elements, first=layer == 0, kernel=by_kernel)
        skip = product.skip
        if layer == 0 and skip is not None:  # features are those of elements: so is what the skip connection adds
            count = len(elements.embedding)
            features = skip(elements.embedding[None], np.arange(count)).swapaxes(0, 1)[elements.of_atoms]

        def summed(*of_block: Array) -> Array:
            return sums(*of_block).swapaxes(0, 1)

        def updated(summed: Array, own: Array, element: Array) -> Array:
            arrived, skipped = summed.swapaxes(0, 1), own.swapaxes(0, 1)
            if by_element is not None:
                arrived = by_element(arrived, element)
            if layer > 0 and skip is not None:
                skipped = skip(skipped, element)
            return product(arrived, skipped, element)

        def both(own: Array, element: Array, *of_block: Array) -> Array:
            return updated(summed(*of_block), own, element)

        blocks = [blocks_of(self.form, BLOCK_ATOMS // (1 + (l_in > 0)), part[0].shape[1] * weights) for part in edges]
        if len(edges) == 1:
            return in_blocks(both, blocks[0], features, elements.of_atoms, *edges[0], *of_atoms)
        # One loop for what has the same shape in every tier: compiling it for each would take long.
        of_tiers = [
            in_blocks(summed, size, *of_edges, *(values[part] for values in of_atoms))
            for size, of_edges, part in zip(blocks, edges, parts, strict=True)
        ]
        return in_blocks(updated, blocks[0], jnp.concatenate(of_tiers), features, elements.of_atoms)

    def _edges(
        self,
        vectors: Float[Array, "here slots 3"],
        mask: Bool[AnyArray, "here slots"],
        neighbors: Int[AnyArray, "here slots"],
        here: slice,
        radii: Float[Array, " atoms"] | None,
        scales: Float[Array, " atoms"] | None,
    ) -> tuple[Array, Array, AnyArray]:
        """Radial basis (or lengths, for tables) and harmonics of the edges of some atoms, and their neighbours.

        Args:
            vectors: see `__call__`.
            mask: likewise.
            neighbors: likewise.
            here: which atoms these are.
            radii: covalent radii of all atoms, Å; None where distances are not transformed.
            scales: logarithms of the radial scales of all atoms' elements, where they are learned.
        """
        spec = self.specification
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        if self.tabulated:
            radial = jnp.where(mask, lengths, spec.cutoff)[..., None]
        else:
            smooth = jnp.where(mask, envelope(lengths, spec.cutoff, spec.envelope_power), 0.0)
            if radii is not None:
                lengths = agnesi(lengths, radii[here][:, None], radii[neighbors])
            if scales is not None:
                lengths = lengths * jnp.exp(0.5 * (scales[here][:, None] + scales[neighbors]))
            radial = bessel(lengths, spec.radial_functions, spec.cutoff) * smooth[..., None]
        irreps = e3nn.Irreps.spherical_harmonics(spec.l_max)
        harmonics = e3nn.spherical_harmonics(irreps, vectors, normalize=True, normalization="component").array
        return radial, harmonics, neighbors
