"""The student's network: equivariant message passing of the MACE family, from edge vectors to atomic energies.

The equations are those of ScaleShiftMACE with residual agnostic interactions (Batatia et al., NeurIPS 2022,
arXiv:2206.07697, and the reference implementation ACEsuit/mace), normalised like it, so that weights can be exchanged.
They are evaluated in another order, which changes nothing but the cost: see `Interaction` and `contraction`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import e3nn_jax as e3nn
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Bool, Float, Int

from jaxmlip.potentials.architecture import Architecture
from jaxmlip.potentials.blocks import Form, blocks_of, in_blocks
from jaxmlip.potentials.equivariant_layers import (
    FEW_ELEMENTS,
    ByElement,
    Contraction,
    ElementMap,
    Interaction,
    Messages,
    Product,
    Readout,
    parameter,
    paths,
)
from jaxmlip.potentials.radial import agnesi, bessel, envelope
from jaxmlip.types import AnyArray, EdgeMask, Neighbors

BLOCK_ATOMS = 32
"""Atoms worked on at a time on a CPU, so that what exists for each of their edges stays in the cache; half as many if
there are more than scalars."""


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
    ) -> Float[Array, "atoms heads"]:
        """Sum of the readouts of all layers.

        Args:
            vectors: Å, from each atom to its neighbours; of any non-zero length where `mask` is False.
            mask: which slots hold a neighbour.
            neighbors: their indices; any in slots without.
            element: row of the tables that belongs to each atom.
            tiers: see `Graph.tiers`.
        """
        spec, elements = self.specification, len(self.numbers)
        tiers = tiers or ((mask.shape[0], mask.shape[1]),)
        rows = itertools.pairwise((0, *itertools.accumulate(count for count, _ in tiers)))
        parts = [np.s_[first:stop, :width] for (first, stop), (_, width) in zip(rows, tiers, strict=True)]
        logarithm = parameter(self, "radial_scale", (elements,), 0.0) if spec.learned_radial_scale else None
        edges = [
            self._edges(vectors[part], mask[part], neighbors[part], element[part[0]], element, logarithm)
            for part in parts
        ]

        embedding = parameter(self, "embedding", (elements, spec.channels)) / elements**0.5
        features = embedding[element][:, None]
        energies = jnp.zeros((), vectors.dtype)
        for layer in range(spec.layers):
            last = layer == spec.layers - 1
            l_in = 0 if layer == 0 else spec.message_l
            residual = layer > 0 or spec.first_interaction == "residual"
            messages = Interaction(spec, l_in, self.average_neighbors, self.tabulated, name=f"interaction_{layer}")()
            product = Product(
                spec, l_in if residual else None, 0 if last else spec.message_l, elements, name=f"product_{layer}"
            )()
            by_element = None if residual else ElementMap(spec, elements, name="map_0")()
            of_elements = layer == 0 and elements <= FEW_ELEMENTS
            folded = messages.folded(embedding) if of_elements else None
            sources = None if of_elements else messages.sources(features)

            def summed(
                radial: Array, harmonics: Array, neighbors: Array, messages: Messages, folded: Any, sources: Any
            ) -> Array:
                if folded is not None:
                    of_atoms = messages.of_elements(folded, radial, harmonics, element[neighbors])
                elif self.form == "accelerator_kernel":
                    from jaxmlip.potentials.message_kernel import kernel_messages  # Pallas takes a while to import

                    of_atoms = kernel_messages(messages, sources, neighbors, radial, harmonics)
                else:
                    of_atoms = messages(sources[neighbors], radial, harmonics)
                return of_atoms.swapaxes(0, 1)

            def updated(
                summed: Array, own: Array, element: Array, product: Contraction, by_element: ByElement | None
            ) -> Array:
                of_atoms = summed.swapaxes(0, 1)
                if by_element is not None:
                    of_atoms = by_element(of_atoms, element)
                return product(of_atoms, own, element)

            def both(
                radial: Array,
                harmonics: Array,
                neighbors: Array,
                own: Array,
                element: Array,
                sum_block: Callable,
                update_block: Callable,
            ) -> Array:
                return update_block(sum_block(radial, harmonics, neighbors), own, element)

            if self.form == "accelerator_kernel" and folded is None:  # its weights are never in memory
                weights = messages.radial.shape[0] + (l_in + 1) ** 2 * spec.channels
            else:
                weights = len(paths(l_in, spec.l_max)) * spec.channels
            blocks = [
                blocks_of(self.form, BLOCK_ATOMS // (1 + (l_in > 0)), part[0].shape[1] * weights) for part in edges
            ]
            sum_block = functools.partial(summed, messages=messages, folded=folded, sources=sources)
            update_block = functools.partial(updated, product=product, by_element=by_element)
            if len(edges) == 1:
                block = functools.partial(both, sum_block=sum_block, update_block=update_block)
                features = in_blocks(block, blocks[0], *edges[0], features, element)
            else:  # one loop for what has the same shape in every tier: compiling it for each would take long
                sums = [in_blocks(sum_block, size, *part) for size, part in zip(blocks, edges, strict=True)]
                features = in_blocks(update_block, blocks[0], jnp.concatenate(sums), features, element)
            # As in MACE, a network of one layer has a linear readout.
            hidden = spec.readout_hidden if last and layer > 0 else None
            energies = energies + Readout(self.heads, hidden, name=f"readout_{layer}")(features[:, 0])
        return energies

    def _edges(
        self,
        vectors: Float[Array, "here slots 3"],
        mask: Bool[AnyArray, "here slots"],
        neighbors: Int[AnyArray, "here slots"],
        own_element: Int[AnyArray, " here"],
        element: Int[AnyArray, " atoms"],
        radial_scale: Float[Array, " elements"] | None,
    ) -> tuple[Array, Array, AnyArray]:
        """Radial basis (or lengths, for tables) and harmonics of the edges of some atoms, and their neighbours."""
        spec = self.specification
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        if self.tabulated:
            radial = jnp.where(mask, lengths, spec.cutoff)[..., None]
        else:
            smooth = jnp.where(mask, envelope(lengths, spec.cutoff, spec.envelope_power), 0.0)
            if spec.distance_transform == "agnesi":
                radii = jnp.asarray(covalent_radii[list(self.numbers)], lengths.dtype)
                lengths = agnesi(lengths, radii[own_element][:, None], radii[element][neighbors])
            if radial_scale is not None:
                of_atoms = radial_scale[element]
                lengths = lengths * jnp.exp(0.5 * (radial_scale[own_element][:, None] + of_atoms[neighbors]))
            radial = bessel(lengths, spec.radial_functions, spec.cutoff) * smooth[..., None]
        irreps = e3nn.Irreps.spherical_harmonics(spec.l_max)
        harmonics = e3nn.spherical_harmonics(irreps, vectors, normalize=True, normalization="component").array
        return radial, harmonics, neighbors
