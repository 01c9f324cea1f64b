"""The layers of the student's network: messages, products and readouts, with where their parameters come from.

Each layer has two sides: a flax module that declares parameters and folds all factors of normalisation into them, and a
pytree of the weights that result, which does the work on blocks of atoms.
"""

import functools

import e3nn_jax as e3nn
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmlip.potentials.architecture import Architecture
from jaxmlip.potentials.contraction import contract, path_counts
from jaxmlip.potentials.present_elements import FEW_ELEMENTS
from jaxmlip.potentials.radial import SILU_SCALE, RadialNetwork, Splines, radial_features
from jaxmlip.types import AnyArray, Leaf


def parameter(module: nn.Module, name: str, shape: tuple[int, ...], deviation: np.ndarray | float = 1.0) -> Array:
    """A parameter, which `init` sets to its standard deviation (broadcast to its shape)."""
    return module.param(name, lambda _: jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), shape))


def block(ell: int) -> slice:
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
        return jnp.concatenate([features[:, block(ell)] @ up for ell, up in enumerate(self.up)], axis=1)

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
                weights[:, :, [column]] * sources[:, :, block(all_paths[path][0])] for column, path in enumerate(group)
            ]
            weighted = jnp.concatenate(columns, axis=2).reshape(atoms, slots, -1)
            sums = jnp.einsum("asy,asx->ayx", harmonics[:, :, block(l2)], weighted).reshape(atoms, 2 * l2 + 1, -1, c)
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
        sums = self._sums_by_element(radial, harmonics, element, len(folded[0]))
        messages = [
            sum(sums[e, block(ell)] @ of_element for e, of_element in enumerate(matrices))
            for ell, matrices in enumerate(folded)
        ]
        return jnp.concatenate(messages, axis=0)

    def of_own_elements(
        self,
        sources: Float[Array, "atoms elements channels"],
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
        element: Int[Array, "atoms slots"],
    ) -> Float[Array, "components atoms channels"]:
        """Messages in the first layer, where there are few elements around each atom and many around all of them.

        What is folded for few elements would be a matrix for each atom and element here. So the final layer of the
        radial network, the same for all, acts on the sums of each element, then the few numbers that belong to it.

        Args:
            sources: what neighbours of each of the elements around an atom give, see the method of that name.
            radial: radial basis, zero where there is no neighbour; or lengths, for tables.
            harmonics: spherical harmonics of the edges.
            element: which of them each neighbour is.
        """
        sums = self._sums_by_element(radial, harmonics, element, sources.shape[1])
        messages = [
            jnp.einsum("emac,aec->mac", sums[:, block(ell)] @ self.radial[:, ell], sources) @ self.mix[ell][0]
            for ell in range(self.l_max + 1)  # in the first layer the paths are (0, l, l)
        ]
        return jnp.concatenate(messages, axis=0)

    def _sums_by_element(
        self,
        radial: Float[Array, "atoms slots functions"],
        harmonics: Float[Array, "atoms slots components"],
        element: Int[Array, "atoms slots"],
        elements: int,
    ) -> Float[Array, "elements components atoms hidden"]:
        """Products of harmonics and last hidden features, summed over the neighbours of each element."""
        atoms, slots, components = harmonics.shape
        indicator = jax.nn.one_hot(element, elements, dtype=radial.dtype)
        split = (indicator[..., None] * harmonics[:, :, None]).reshape(atoms, slots, elements * components)
        sums = jnp.einsum("asy,ash->yah", split, self.radial_features(radial))
        return sums.reshape(elements, components, atoms, -1)


class Interaction(nn.Module):
    """Parameters of the messages from neighbours: RealAgnosticResidualInteractionBlock of MACE, without its skip.

    m_i,l3 = Σ_paths L_path Σ_j R_path(r_ij) (U h_j,l1 ⊗ Y_l2(r̂_ij))_l3 / average_neighbors, with linear maps U and L
    over channels and a radial network R. In the first layer h_j depends on nothing but the neighbour's element. There,
    with few elements, Σ_j runs over the last hidden features of the radial network times Y, element by element, and
    the final layer of that network, U h and L are folded into one small matrix beforehand: nothing of the size
    [edges, channels] is made. Nor is it where there are many elements but few in each structure: Σ_j runs over those
    that an atom's structure has.

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
            final = parameter(self, "radial", (widths[-1], len(all_paths), c))
        up = [parameter(self, f"up_{ell}", (c, c)) for ell in range(self.l_in + 1)]
        scale = 1.0 / (c * self.specification.radial_mlp[-1] ** 0.5 * self.average_neighbors)
        counts = [sum(path[2] == ell for path in all_paths) for ell in range(l_max + 1)]
        mix = [parameter(self, f"mix_{ell}", (count, c, c)) * (scale / count**0.5) for ell, count in enumerate(counts)]
        return Messages(hidden, final, tuple(up), tuple(mix), l_max)


class ByElement(flax.struct.PyTreeNode):
    """Linear maps over channels, a matrix for each element and l.

    Attributes:
        weights: [channels, elements, channels] for each l.
        known: number of elements that the parameters are for (static).
    """

    weights: tuple
    known: int = flax.struct.field(pytree_node=False)

    def of(self, rows: Int[Array, " elements"]) -> "ByElement":
        """The maps of some of the elements."""
        return self.replace(weights=tuple(weights[:, rows] for weights in self.weights))

    def __call__(
        self, features: Float[Array, "components atoms channels"], element: Int[AnyArray, " atoms"]
    ) -> Float[Array, "mapped atoms channels"]:
        """Features of l = 0 … as many as there are weights, mapped by the matrices of each atom's element."""
        c, elements, _ = self.weights[0].shape
        scale = (c * self.known) ** -0.5  # as e3nn normalises a product with a one-hot vector
        if elements > FEW_ELEMENTS:  # the matrices of the atoms at hand, whose number is that of atoms and no larger
            own = [jnp.moveaxis(weights, 1, 0)[element] * scale for weights in self.weights]
            mapped = [jnp.einsum("mac,acd->mad", features[block(ell)], of_l) for ell, of_l in enumerate(own)]
        else:
            indicator = jax.nn.one_hot(element, elements, dtype=features.dtype) * scale
            mapped = [
                jnp.einsum("mace,ced->mad", features[block(ell), ..., None] * indicator[:, None], weights)
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
        maps = tuple(parameter(self, f"map_{ell}", shape) for ell in range(self.specification.l_max + 1))
        return ByElement(maps, self.elements)


class Contraction(flax.struct.PyTreeNode):
    """Weights of a product, ready to be applied to the messages of atoms.

    Attributes:
        weights: [elements, paths, channels] of the symmetric contraction, for each l of the new features.
        linear: [channels, channels] for each l, applied to its result.
        skip: map of the atoms' own features, whose result is added to it; None without a skip connection.
        l_max: largest l of the messages (static).
        correlation: highest order of the products (static).
    """

    weights: tuple
    linear: tuple
    skip: ByElement | None
    l_max: int = flax.struct.field(pytree_node=False)
    correlation: int = flax.struct.field(pytree_node=False)

    def of(self, rows: Int[Array, " elements"]) -> "Contraction":
        """The weights of some of the elements."""
        weights = tuple(of_l[rows] for of_l in self.weights)
        return self.replace(weights=weights, skip=None if self.skip is None else self.skip.of(rows))

    def __call__(
        self,
        messages: Float[Array, "components atoms channels"],
        skipped: Float[Array, "skipped atoms channels"] | None,
        element: Int[AnyArray, " atoms"],
    ) -> Float[Array, "atoms components_out channels"]:
        """New features of each atom.

        Args:
            messages: of l = 0 … l_max.
            skipped: what `skip` makes of the atom's own features.
            element: row of the tables that belongs to each atom.
        """
        contracted = contract(messages, self.weights, element, self.l_max, self.correlation)
        new = [of_l @ linear for of_l, linear in zip(contracted, self.linear, strict=True)]
        if self.skip is not None and skipped is not None:
            for ell in range(len(self.skip.weights)):
                new[ell] = new[ell] + skipped[block(ell)]
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
            weights.append(parameter(self, f"weights_{ell}", (e, sum(counts), c), deviation))
            linear.append(parameter(self, f"linear_{ell}", (c, c)) / c**0.5)
            if self.l_in is not None and ell <= self.l_in:
                skip.append(parameter(self, f"skip_{ell}", (c, e, c)))
        around = ByElement(tuple(skip), e) if skip else None
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
            return jnp.einsum("ac,hc->ah", scalars, parameter(self, "linear", (self.heads, c))) / c**0.5
        inner = jnp.einsum("ac,hcq->ahq", scalars, parameter(self, "linear_1", (self.heads, c, self.hidden))) / c**0.5
        outer = parameter(self, "linear_2", (self.heads, self.hidden))
        return SILU_SCALE / self.hidden**0.5 * jnp.einsum("ahq,hq->ah", jax.nn.silu(inner), outer)
