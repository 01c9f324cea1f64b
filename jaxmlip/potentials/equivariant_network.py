"""The student's network: equivariant message passing of the MACE family, from edge vectors to atomic energies.

The equations are those of ScaleShiftMACE with residual agnostic interactions (Batatia et al., NeurIPS 2022,
arXiv:2206.07697, and the reference implementation ACEsuit/mace), normalised like it, so that weights can be exchanged.
They are evaluated in another order, which changes nothing but the cost: see `Interaction` and `contraction`.
"""

import functools
from typing import Literal

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Float, Int
from pydantic import BaseModel, model_validator

from jaxmlip.potentials.contraction import contract, path_counts
from jaxmlip.potentials.radial import SILU_SCALE, RadialNetwork, agnesi, bessel, envelope
from jaxmlip.types import AnyArray, EdgeMask, Neighbors

FEW_ELEMENTS = 4
"""Up to so many elements the first interaction sums over neighbours element by element (see `Interaction`)."""


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
    """

    specification: Architecture
    numbers: tuple[int, ...]
    average_neighbors: float
    heads: int

    @nn.compact
    def __call__(
        self,
        vectors: Float[Array, "atoms slots 3"],
        mask: EdgeMask,
        neighbors: Neighbors,
        element: Int[AnyArray, " atoms"],
    ) -> Float[Array, "atoms heads"]:
        """Sum of the readouts of all layers.

        Args:
            vectors: Å, from each atom to its neighbours; of any non-zero length where `mask` is False.
            mask: which slots hold a neighbour.
            neighbors: their indices; any in slots without.
            element: row of the tables that belongs to each atom.
        """
        spec, elements = self.specification, len(self.numbers)
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        smooth = jnp.where(mask, envelope(lengths, spec.cutoff, spec.envelope_power), 0.0)
        if spec.distance_transform == "agnesi":
            radii = jnp.asarray(covalent_radii[list(self.numbers)], lengths.dtype)[element]
            lengths = agnesi(lengths, radii[:, None], radii[neighbors])
        radial = bessel(lengths, spec.radial_functions, spec.cutoff) * smooth[..., None]
        irreps = e3nn.Irreps.spherical_harmonics(spec.l_max)
        harmonics = e3nn.spherical_harmonics(irreps, vectors, normalize=True, normalization="component").array

        embedding = _parameter(self, "embedding", (elements, spec.channels))
        features = embedding[:, None] / elements**0.5
        energies = jnp.zeros((), vectors.dtype)
        for layer in range(spec.layers):
            last = layer == spec.layers - 1
            l_in = 0 if layer == 0 else spec.message_l
            interaction = Interaction(spec, l_in, self.average_neighbors, name=f"interaction_{layer}")
            l_out = 0 if last else spec.message_l
            residual = layer > 0 or spec.first_interaction == "residual"
            product = Product(spec, l_in if residual else None, l_out, elements, name=f"product_{layer}")
            if layer == 0:
                messages = interaction.of_elements(features, radial, harmonics, element[neighbors])
                if not residual:
                    messages = ElementMap(spec.l_max, elements, name="map_0")(messages, element)
                features = product(messages, features[element], element)
            else:
                messages = interaction(features[neighbors], radial, harmonics)
                features = product(messages, features, element)
            # As in MACE, a network of one layer has a linear readout.
            hidden = spec.readout_hidden if last and layer > 0 else None
            energies = energies + Readout(self.heads, hidden, name=f"readout_{layer}")(features[:, 0])
        return energies


def _parameter(module: nn.Module, name: str, shape: tuple[int, ...], deviation: np.ndarray | float = 1.0) -> Array:
    """A parameter, which `init` sets to its standard deviation (broadcast to its shape)."""
    return module.param(name, lambda _: jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), shape))


def _by_element(
    features: Float[Array, "atoms components channels"],
    weights: Float[Array, "channels elements channels"],
    element: Int[AnyArray, " atoms"],
) -> Float[Array, "atoms components channels"]:
    """Features times the matrix of each atom's element, normalised as e3nn does a product with a one-hot vector."""
    c, e, _ = weights.shape
    indicator = jax.nn.one_hot(element, e, dtype=features.dtype) / (c * e) ** 0.5
    return jnp.einsum("amce,ced->amd", features[..., None] * indicator[:, None, None], weights)


def _block(ell: int) -> slice:
    """Where the components of l are."""
    return slice(ell**2, (ell + 1) ** 2)


def _degrees(l_max: int) -> Int[np.ndarray, " components"]:
    """The l of each component."""
    return np.repeat(np.arange(l_max + 1), 2 * np.arange(l_max + 1) + 1)


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


@functools.cache
def _path_couplings(l_in: int, l_max: int) -> Float[np.ndarray, "components rank components columns"]:
    """What couples harmonics and features to messages.

    Returns:
        [m3, rank, m2, column]: √(2 l3 + 1) times the Wigner 3j symbol of a path. Columns are the components m1 of the
        feature of every path in turn; rank counts the paths that lead to one l3. Divided by the square root of the
        number of these paths, as the linear map that follows (e3nn's normalisation "element").
    """
    all_paths = paths(l_in, l_max)
    sizes = [2 * l1 + 1 for l1, _, _ in all_paths]
    starts = np.cumsum([0, *sizes])
    ends_at = [l3 for _, _, l3 in all_paths]
    result = np.zeros(((l_max + 1) ** 2, max(map(ends_at.count, ends_at)), (l_max + 1) ** 2, starts[-1]))
    for path, (l1, l2, l3) in enumerate(all_paths):
        symbol = ((2 * l3 + 1) / ends_at.count(l3)) ** 0.5 * e3nn.clebsch_gordan(l1, l2, l3)
        rank = ends_at[:path].count(l3)
        columns = slice(starts[path], starts[path + 1])
        result[_block(l3), rank, _block(l2), columns] = symbol.transpose(2, 1, 0)
    return result


class Interaction(nn.Module):
    """Messages from neighbours: RealAgnosticResidualInteractionBlock of MACE, without its skip connection.

    m_i,l3 = Σ_paths L_path Σ_j R_path(r_ij) (U h_j,l1 ⊗ Y_l2(r̂_ij))_l3 / average_neighbors, with linear maps U and L
    over channels and a radial network R. In the first layer h_j depends on nothing but the neighbour's element. There,
    with few elements, Σ_j runs over the last hidden features of the radial network times Y, element by element, and
    the final layer of that network, U h and L are folded into one small matrix beforehand: nothing of the size
    [edges, channels] is made.

    Attributes:
        specification: sizes.
        l_in: largest l of the neighbours' features.
        average_neighbors: divides the sum.
    """

    specification: Architecture
    l_in: int
    average_neighbors: float

    def setup(self) -> None:
        """Declare the parameters, in e3nn's normalisation: of unit variance, and results divided by √fan-in."""
        c, l_max = self.specification.channels, self.specification.l_max
        all_paths = paths(self.l_in, l_max)
        self.radial_network = RadialNetwork(self.specification.radial_mlp)
        self.final = _parameter(self, "radial", (self.specification.radial_mlp[-1], len(all_paths), c))
        self.up = [_parameter(self, f"up_{ell}", (c, c)) for ell in range(self.l_in + 1)]
        counts = [sum(path[2] == ell for path in all_paths) for ell in range(l_max + 1)]
        self.mix = [_parameter(self, f"mix_{ell}", (count, c, c)) for ell, count in enumerate(counts)]
        self.scale = 1.0 / (c * len(self.final) ** 0.5 * self.average_neighbors)

    def __call__(
        self,
        sources: Float[Array, "atoms slots components_in channels"],
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
    ) -> Float[Array, "atoms components channels"]:
        """Messages from neighbours of any features.

        Args:
            sources: the neighbours' features.
            radial: radial basis; zero where there is no neighbour.
            harmonics: spherical harmonics of the edges.
        """
        atoms, slots, _, c = sources.shape
        l_max = self.specification.l_max
        sources = jnp.concatenate([sources[:, :, _block(ell)] @ up for ell, up in enumerate(self.up)], axis=2)
        hidden = self.radial_network(radial.reshape(atoms * slots, -1))
        weights = (hidden @ self.final.reshape(len(self.final), -1)).reshape(atoms, slots, -1, c)
        if self.l_in == 0:
            weighted = weights * sources
        else:
            all_paths = paths(self.l_in, l_max)
            weighted = jnp.concatenate(
                [weights[:, :, [path]] * sources[:, :, _block(l1)] for path, (l1, _, _) in enumerate(all_paths)], axis=2
            )
        # One product for all pairs of harmonics and weighted features, needed or not: the coupling then acts on atoms
        # instead of edges, and there is little to compile.
        sums = jnp.einsum("asy,ast->ayt", harmonics, weighted.reshape(atoms, slots, -1))
        couplings = jnp.asarray(self.scale * _path_couplings(self.l_in, l_max), radial.dtype)
        messages = jnp.einsum("ayxc,mqyx->amqc", sums.reshape(*sums.shape[:2], -1, c), couplings)
        rank = messages.shape[2]
        mix = jnp.stack([jnp.pad(w, ((0, rank - len(w)), (0, 0), (0, 0))) for w in self.mix])
        return jnp.einsum("amqc,mqcd->amd", messages, mix[_degrees(l_max)])

    def of_elements(
        self,
        table: Float[Array, "elements 1 channels"],
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
        element: Int[Array, "atoms slots"],
    ) -> Float[Array, "atoms components channels"]:
        """Messages from neighbours whose features are those of their elements, as in the first layer.

        Args:
            table: features of each element.
            radial: radial basis; zero where there is no neighbour.
            harmonics: spherical harmonics of the edges.
            element: row of the table that belongs to each neighbour.
        """
        elements = len(table)
        if elements > FEW_ELEMENTS:
            return self(table[element], radial, harmonics)
        atoms, slots, components = harmonics.shape
        indicator = self.scale * jax.nn.one_hot(element, elements, dtype=radial.dtype)
        split = (harmonics[..., None] * indicator[:, :, None]).reshape(atoms, slots, components * elements)
        hidden = self.radial_network(radial.reshape(atoms * slots, -1)).reshape(atoms, slots, -1)
        sums = jnp.einsum("asy,asp->ayp", split, hidden).reshape(atoms, components, elements, -1)
        mix = jnp.concatenate(self.mix)
        folded = jnp.einsum("plc,ec,lcd->lepd", self.final, table[:, 0] @ self.up[0], mix)
        return jnp.einsum("amep,mepd->amd", sums, folded[_degrees(self.specification.l_max)])


class Product(nn.Module):
    """Symmetric contraction of the messages, mixed over channels, plus the skip connection of the interaction.

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
    def __call__(
        self,
        messages: Float[Array, "atoms components channels"],
        features: Float[Array, "atoms components_in channels"],
        element: Int[AnyArray, " atoms"],
    ) -> Float[Array, "atoms components_out channels"]:
        """New features of each atom.

        Args:
            messages: of l = 0 … l_max.
            features: the atom's own, of l = 0 … l_in.
            element: row of the tables that belongs to each atom.
        """
        c, e = self.specification.channels, self.elements
        l_max, correlation = self.specification.l_max, self.specification.correlation
        outputs = []
        for ell in range(self.l_out + 1):
            # MACE divides the initial weights by the number of paths of the same order.
            counts = path_counts(l_max, correlation, ell)
            deviation = np.concatenate([np.full(count, 1.0 / count) for count in counts if count])[:, None]
            weights = _parameter(self, f"weights_{ell}", (e, sum(counts), c), deviation)
            contracted = contract(messages, weights, element, l_max, correlation, ell)
            output = contracted @ _parameter(self, f"linear_{ell}", (c, c)) / c**0.5
            if self.l_in is not None and ell <= self.l_in:
                skip = _parameter(self, f"skip_{ell}", (c, e, c))
                output = output + _by_element(features[:, _block(ell)], skip, element)
            outputs.append(output)
        return jnp.concatenate(outputs, axis=1)


class ElementMap(nn.Module):
    """A linear map over channels for each element and l: the `skip_tp` of MACE's interactions that are not residual.

    Attributes:
        l_max: largest l of the features.
        elements: number of elements.
    """

    l_max: int
    elements: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "atoms components channels"], element: Int[AnyArray, " atoms"]
    ) -> Float[Array, "atoms components channels"]:
        """The features of each atom, mapped by the matrices of its element (row of the tables)."""
        c = features.shape[-1]
        mapped = [
            _by_element(features[:, _block(ell)], _parameter(self, f"map_{ell}", (c, self.elements, c)), element)
            for ell in range(self.l_max + 1)
        ]
        return jnp.concatenate(mapped, axis=1)


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
