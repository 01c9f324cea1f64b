"""The student's network: equivariant message passing of the MACE family, from edge vectors to atomic energies.

The equations are those of ScaleShiftMACE with residual agnostic interactions (Batatia et al., NeurIPS 2022,
arXiv:2206.07697, and the reference implementation ACEsuit/mace), normalised like it, so that weights can be exchanged.
They are evaluated in another order, which changes nothing but the cost: see `Interaction` and `contraction`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import e3nn_jax as e3nn
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Bool, Float, Int
from pydantic import BaseModel, model_validator

from jaxmlip.potentials.blocks import in_blocks
from jaxmlip.potentials.contraction import contract, path_counts
from jaxmlip.potentials.radial import SILU_SCALE, RadialNetwork, Splines, agnesi, bessel, envelope, radial_features
from jaxmlip.types import AnyArray, EdgeMask, Leaf, Neighbors

FEW_ELEMENTS = 4
"""Up to so many elements the first interaction sums over neighbours element by element (see `Interaction`)."""

BLOCK_ATOMS = 32
"""Atoms worked on at a time on a CPU, so that what exists for each of their edges stays in the cache; half as many if
there are more than scalars."""


class Architecture(BaseModel, frozen=True, extra="forbid"):
    """Sizes and cutoff of an equivariant network.

    Attributes:
        channels: number of features of each l.
        l_max: largest angular momentum of the spherical harmonics and of the products' factors.
        correlation: highest order of the products, 1 to 4; an atom sees bodies of order correlation + 1 per layer.
        layers: number of interactions; the potential reaches layers · cutoff far.
        message_l: largest l of the messages between layers, 0 to 2: scalars, vectors, tensors.
        cutoff: Å.
        radial_functions: number of Bessel functions.
        envelope_power: p of the polynomial envelope.
        distance_transform: "agnesi" measures distances in covalent radii before the radial basis (see `agnesi`).
        learned_radial_scale: whether the radial basis sees r · exp(½(a_i + a_j)), with a parameter a for each element
            that starts at 0: heavy and light elements may need their resolution at different distances.
        repulsion: whether to add the screened nuclear repulsion (see `zbl`), so that no two atoms can coincide.
        first_interaction: "residual", with a skip connection around the first layer as in ScaleShiftMACE, or
            "agnostic", with a linear map of the messages for each element instead, as in MACE.
        radial_mlp: widths of the hidden layers of the radial network.
        readout_hidden: hidden width of the last layer's readout.
    """

    channels: int = 64
    l_max: int = 3
    correlation: int = 3
    layers: int = 2
    message_l: int = 0
    cutoff: float = 5.0
    radial_functions: int = 8
    envelope_power: int = 5
    distance_transform: Literal["none", "agnesi"] = "none"
    learned_radial_scale: bool = False
    repulsion: bool = False
    first_interaction: Literal["residual", "agnostic"] = "residual"
    radial_mlp: tuple[int, ...] = (64, 64, 64)
    readout_hidden: int = 16

    @model_validator(mode="after")
    def _check(self) -> "Architecture":
        """Raise ValueError, as one sentence, for a value that describes no network."""
        ranges = {
            "channels": (1, None),
            "l_max": (0, 4),
            "correlation": (1, 4),
            "layers": (1, None),
            "message_l": (0, 2),
            "radial_functions": (1, None),
            "envelope_power": (2, None),
            "readout_hidden": (1, None),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} is {value}, but it must be {allowed}.")
        if self.message_l > self.l_max:
            raise ValueError(
                f"message_l is {self.message_l} and l_max is {self.l_max}, but messages cannot have a larger "
                "l than the products they are made of: raise l_max or lower message_l."
            )
        if not (np.isfinite(self.cutoff) and self.cutoff > 0):
            raise ValueError(f"cutoff is {self.cutoff} Å, but it must be a positive length.")
        if not self.radial_mlp or min(self.radial_mlp) < 1:
            raise ValueError(
                f"radial_mlp is {self.radial_mlp}, but it must name the width of at least one hidden layer."
            )
        return self


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
    """

    specification: Architecture
    numbers: tuple[int, ...]
    average_neighbors: float
    heads: int
    tabulated: bool = False

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
        logarithm = _parameter(self, "radial_scale", (elements,), 0.0) if spec.learned_radial_scale else None
        edges = [
            self._edges(vectors[part], mask[part], neighbors[part], element[part[0]], element, logarithm)
            for part in parts
        ]

        embedding = _parameter(self, "embedding", (elements, spec.channels)) / elements**0.5
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

            size = BLOCK_ATOMS // (1 + (l_in > 0))
            sum_block = functools.partial(summed, messages=messages, folded=folded, sources=sources)
            update_block = functools.partial(updated, product=product, by_element=by_element)
            if len(edges) == 1:
                block = functools.partial(both, sum_block=sum_block, update_block=update_block)
                features = in_blocks(block, size, *edges[0], features, element)
            else:  # one loop for what has the same shape in every tier: compiling it for each would take long
                sums = jnp.concatenate([in_blocks(sum_block, size, *part) for part in edges])
                features = in_blocks(update_block, size, sums, features, element)
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


def _parameter(module: nn.Module, name: str, shape: tuple[int, ...], deviation: np.ndarray | float = 1.0) -> Array:
    """A parameter, which `init` sets to its standard deviation (broadcast to its shape)."""
    return module.param(name, lambda _: jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), shape))


def _block(ell: int) -> slice:
    """Where the components of l are."""
    return slice(ell**2, (ell + 1) ** 2)


@functools.cache
def paths(l_in: int, l_max: int) -> tuple[tuple[int, int, int], ...]:
    """The couplings (l of a feature, l of the harmonic, l of the message) that conserve parity, in MACE's order."""
    found = [
        (l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_max + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_max) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(found, key=lambda path: path[2]))


class Messages(flax.struct.PyTreeNode):
    """Weights of an interaction, ready to be applied: sums over the neighbours of atoms.

    Attributes:
        hidden: weights of the hidden layers of the radial network, or tables of what stands for them.
        radial: [hidden, paths, channels], its final layer.
        up: [channels, channels] for each l of the neighbours' features.
        mix: [paths, channels, channels] for each l of the messages; all factors of normalisation are in here.
        l_max: largest l of harmonics and messages (static).
    """

    hidden: tuple | Splines
    radial: Leaf
    up: tuple
    mix: tuple
    l_max: int = flax.struct.field(pytree_node=False)

    def radial_features(self, radial: Float[Array, "atoms slots functions"]) -> Float[Array, "atoms slots hidden"]:
        """What the final layer of the radial network acts on; zero where there is no neighbour."""
        if isinstance(self.hidden, Splines):
            return self.hidden(radial[..., 0])
        atoms, slots, functions = radial.shape
        return radial_features(self.hidden, radial.reshape(atoms * slots, functions)).reshape(atoms, slots, -1)

    def sources(
        self, features: Float[Array, "atoms components_in channels"]
    ) -> Float[Array, "atoms components_in channels"]:
        """What the neighbours of an atom take from it."""
        return jnp.concatenate([features[:, _block(ell)] @ up for ell, up in enumerate(self.up)], axis=1)

    def __call__(
        self,
        sources: Float[Array, "atoms slots components_in channels"],
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
    ) -> Float[Array, "components atoms channels"]:
        """Messages from neighbours of any features.

        Harmonics of one l at a time meet the features of all paths that need them; the sum over neighbours is then a
        small matrix product for each atom, and the coupling acts on its result instead of on the edges.

        Args:
            sources: the neighbours'.
            radial: radial basis, zero where there is no neighbour; or lengths, for tables.
            harmonics: spherical harmonics of the edges.
        """
        atoms, slots, _, c = sources.shape
        all_paths = paths(len(self.up) - 1, self.l_max)
        hidden = self.radial_features(radial).reshape(atoms * slots, -1)
        messages = [jnp.zeros((), radial.dtype)] * (self.l_max + 1)
        for l2 in range(self.l_max + 1):
            group = [path for path, (_, with_l, _) in enumerate(all_paths) if with_l == l2]
            final = self.radial[:, np.array(group)]
            weights = (hidden @ final.reshape(len(final), -1)).reshape(atoms, slots, len(group), c)
            columns = [
                weights[:, :, [column]] * sources[:, :, _block(all_paths[path][0])] for column, path in enumerate(group)
            ]
            weighted = jnp.concatenate(columns, axis=2).reshape(atoms, slots, -1)
            sums = jnp.einsum("asy,asx->ayx", harmonics[:, :, _block(l2)], weighted).reshape(atoms, 2 * l2 + 1, -1, c)
            first = 0
            for path in group:
                l1, _, l3 = all_paths[path]
                coupling = jnp.asarray((2 * l3 + 1) ** 0.5 * e3nn.clebsch_gordan(l1, l2, l3), radial.dtype)
                coupled = jnp.einsum("ayxc,xym->mac", sums[:, :, first : first + 2 * l1 + 1], coupling)
                first += 2 * l1 + 1
                place = [ends_at for _, _, ends_at in all_paths[:path]].count(l3)
                messages[l3] = messages[l3] + coupled @ self.mix[l3][place]
        return jnp.concatenate(messages, axis=0)

    def folded(self, table: Float[Array, "elements channels"]) -> list[Float[Array, "elements hidden channels"]]:
        """For neighbours whose features are those of their elements, all that follows the sum over them, for each l."""
        mix = jnp.concatenate(self.mix)
        return list(jnp.einsum("plc,ec,lcd->lepd", self.radial, table @ self.up[0], mix))

    def of_elements(
        self,
        folded: list[Float[Array, "elements hidden channels"]],
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
        element: Int[Array, "atoms slots"],
    ) -> Float[Array, "components atoms channels"]:
        """Messages in the first layer, where a neighbour's features are those of its element.

        Args:
            folded: see the method of that name.
            radial: radial basis, zero where there is no neighbour; or lengths, for tables.
            harmonics: spherical harmonics of the edges.
            element: row of the table that belongs to each neighbour.
        """
        atoms, slots, components = harmonics.shape
        elements = len(folded[0])
        indicator = jax.nn.one_hot(element, elements, dtype=radial.dtype)
        split = (indicator[..., None] * harmonics[:, :, None]).reshape(atoms, slots, elements * components)
        sums = jnp.einsum("asy,ash->yah", split, self.radial_features(radial)).reshape(elements, components, atoms, -1)
        messages = [
            sum(sums[e, _block(ell)] @ of_element for e, of_element in enumerate(matrices))
            for ell, matrices in enumerate(folded)
        ]
        return jnp.concatenate(messages, axis=0)


class Interaction(nn.Module):
    """Parameters of the messages from neighbours: RealAgnosticResidualInteractionBlock of MACE, without its skip.

    m_i,l3 = Σ_paths L_path Σ_j R_path(r_ij) (U h_j,l1 ⊗ Y_l2(r̂_ij))_l3 / average_neighbors, with linear maps U and L
    over channels and a radial network R. In the first layer h_j depends on nothing but the neighbour's element. There,
    with few elements, Σ_j runs over the last hidden features of the radial network times Y, element by element, and
    the final layer of that network, U h and L are folded into one small matrix beforehand: nothing of the size
    [edges, channels] is made.

    Attributes:
        specification: sizes.
        l_in: largest l of the neighbours' features.
        average_neighbors: divides the sum.
        tabulated: whether tables stand for the radial network's hidden layers.
    """

    specification: Architecture
    l_in: int
    average_neighbors: float
    tabulated: bool = False

    @nn.compact
    def __call__(self) -> Messages:
        """The weights; parameters are in e3nn's normalisation, of unit variance and results divided by √fan-in."""
        c, l_max = self.specification.channels, self.specification.l_max
        all_paths = paths(self.l_in, l_max)
        if self.tabulated:
            hidden = Splines(self.get_variable("params", "table"), self.specification.cutoff)
            final = self.get_variable("params", "radial")
        else:
            functions, widths = self.specification.radial_functions, self.specification.radial_mlp
            hidden = RadialNetwork(functions, widths, name="radial_network")()
            final = _parameter(self, "radial", (widths[-1], len(all_paths), c))
        up = [_parameter(self, f"up_{ell}", (c, c)) for ell in range(self.l_in + 1)]
        scale = 1.0 / (c * self.specification.radial_mlp[-1] ** 0.5 * self.average_neighbors)
        counts = [sum(path[2] == ell for path in all_paths) for ell in range(l_max + 1)]
        mix = [_parameter(self, f"mix_{ell}", (count, c, c)) * (scale / count**0.5) for ell, count in enumerate(counts)]
        return Messages(hidden, final, tuple(up), tuple(mix), l_max)


class ByElement(flax.struct.PyTreeNode):
    """Linear maps over channels, [channels, elements, channels] for each l."""

    weights: tuple

    def __call__(
        self, features: Float[Array, "components atoms channels"], element: Int[AnyArray, " atoms"]
    ) -> Float[Array, "mapped atoms channels"]:
        """Features of l = 0 … as many as there are weights, mapped by the matrices of each atom's element."""
        c, elements, _ = self.weights[0].shape
        # Normalised as e3nn does a product with a one-hot vector.
        indicator = jax.nn.one_hot(element, elements, dtype=features.dtype) / (c * elements) ** 0.5
        mapped = [
            jnp.einsum("mace,ced->mad", features[_block(ell), ..., None] * indicator[:, None], weights)
            for ell, weights in enumerate(self.weights)
        ]
        return jnp.concatenate(mapped, axis=0)


class ElementMap(nn.Module):
    """Parameters of a linear map for each element and l: the `skip_tp` of MACE's interactions that are not residual.

    Attributes:
        specification: sizes.
        elements: number of elements.
    """

    specification: Architecture
    elements: int

    @nn.compact
    def __call__(self) -> ByElement:
        """The weights."""
        shape = (self.specification.channels, self.elements, self.specification.channels)
        return ByElement(tuple(_parameter(self, f"map_{ell}", shape) for ell in range(self.specification.l_max + 1)))


class Contraction(flax.struct.PyTreeNode):
    """Weights of a product, ready to be applied to the messages of atoms.

    Attributes:
        weights: [elements, paths, channels] of the symmetric contraction, for each l of the new features.
        linear: [channels, channels] for each l, applied to its result.
        skip: map of the atoms' own features, added to it; None without a skip connection.
        l_max: largest l of the messages (static).
        correlation: highest order of the products (static).
    """

    weights: tuple
    linear: tuple
    skip: ByElement | None
    l_max: int = flax.struct.field(pytree_node=False)
    correlation: int = flax.struct.field(pytree_node=False)

    def __call__(
        self,
        messages: Float[Array, "components atoms channels"],
        features: Float[Array, "atoms components_in channels"],
        element: Int[AnyArray, " atoms"],
    ) -> Float[Array, "atoms components_out channels"]:
        """New features of each atom.

        Args:
            messages: of l = 0 … l_max.
            features: the atom's own.
            element: row of the tables that belongs to each atom.
        """
        contracted = contract(messages, self.weights, element, self.l_max, self.correlation)
        new = [of_l @ linear for of_l, linear in zip(contracted, self.linear, strict=True)]
        if self.skip is not None:
            skipped = self.skip(features.swapaxes(0, 1), element)
            for ell in range(len(self.skip.weights)):
                new[ell] = new[ell] + skipped[_block(ell)]
        return jnp.concatenate(new, axis=0).swapaxes(0, 1)


class Product(nn.Module):
    """Parameters of the symmetric contraction of the messages and of the skip connection around it.

    EquivariantProductBasisBlock of MACE, and the `skip_tp` of its residual interactions: a linear map over channels for
    each element.

    Attributes:
        specification: sizes.
        l_in: largest l of the features that are skipped forward; None without a skip connection.
        l_out: largest l of the new features.
        elements: number of elements.
    """

    specification: Architecture
    l_in: int | None
    l_out: int
    elements: int

    @nn.compact
    def __call__(self) -> Contraction:
        """The weights."""
        c, e = self.specification.channels, self.elements
        l_max, correlation = self.specification.l_max, self.specification.correlation
        weights, linear, skip = [], [], []
        for ell in range(self.l_out + 1):
            # MACE divides the initial weights by the number of paths of the same order.
            counts = path_counts(l_max, correlation, ell)
            deviation = np.concatenate([np.full(count, 1.0 / count) for count in counts if count])[:, None]
            weights.append(_parameter(self, f"weights_{ell}", (e, sum(counts), c), deviation))
            linear.append(_parameter(self, f"linear_{ell}", (c, c)) / c**0.5)
            if self.l_in is not None and ell <= self.l_in:
                skip.append(_parameter(self, f"skip_{ell}", (c, e, c)))
        around = ByElement(tuple(skip)) if skip else None
        return Contraction(tuple(weights), tuple(linear), around, l_max, correlation)


class Readout(nn.Module):
    """Atomic energies from the scalar features, one for each head; every parameter has a leading axis of heads.

    LinearReadoutBlock of MACE, or its NonLinearReadoutBlock. As there, each head has hidden units of its own; their
    number in all does not enter the normalisation here, so that a head selected stays what it was.

    Attributes:
        heads: number of fidelities.
        hidden: number of hidden units of each head, or None for a linear readout.
    """

    heads: int
    hidden: int | None

    @nn.compact
    def __call__(self, scalars: Float[Array, "atoms channels"]) -> Float[Array, "atoms heads"]:
        """Energies before scale and shift."""
        c = scalars.shape[-1]
        if self.hidden is None:
            return jnp.einsum("ac,hc->ah", scalars, _parameter(self, "linear", (self.heads, c))) / c**0.5
        inner = jnp.einsum("ac,hcq->ahq", scalars, _parameter(self, "linear_1", (self.heads, c, self.hidden))) / c**0.5
        outer = _parameter(self, "linear_2", (self.heads, self.hidden))
        return SILU_SCALE / self.hidden**0.5 * jnp.einsum("ahq,hq->ah", jax.nn.silu(inner), outer)
