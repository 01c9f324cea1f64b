"""CHGNet's network in flax.linen, on dense neighbour slots.

Deng et al., Nat. Mach. Intell. 5, 1031 (2023), with the layer normalisations of version 0.3.0. The numbers are the
original's; the order of the work is not:

* A gated multilayer perceptron of concatenated features begins with a matrix product that is a sum of products per
  part. Each is taken where its part lives: once per atom, once per bond, and per angle only for what is the angle's.
* Bonds longer than the bond graph's cutoff keep their first features: their embedding is folded into the weights.
* Messages are made and summed in blocks of a few atoms, and made again for the gradient, so that what exists per edge
  or per angle stays in the cache. That is faster than storing it, though a third of the work is done twice.

Features live on directed bonds, i → j in the slots of i and j → i in those of j; both copies stay equal.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmlip.types import AnyArray, EdgeVectors, Leaf, Neighbors, PerAtom

ATOM_CUTOFF = 6.0
"""Reach in Å of the messages between atoms."""

BOND_CUTOFF = 3.0
"""Length in Å up to which a bond's features are updated and it takes part in angles."""

ELEMENTS = 94
CHANNELS = 64
RADIAL = 31
ANGULAR = 31
LAYERS = 4
ENVELOPE_POWER = 8
NORM_EPSILON = 1e-5
"""Of torch.nn.LayerNorm."""

COLLINEAR = 1.0 - 1e-6
"""Factor on cosines that keeps the angle differentiable when three atoms are on a line, as in the original."""

BLOCK_ATOMS = 8
"""Atoms whose edges (some 90 each, 128 channels) fit into the second-level cache of one core, several times."""

MOST_BLOCKS = 64
"""Every block costs a pass over the gradient of all atoms; larger systems get larger blocks instead of more."""

_lecun = nn.initializers.lecun_normal()


class CHGNetNetwork(nn.Module):
    """Species and edge vectors in; atomic energies and magnetic moments out."""

    def setup(self) -> None:
        """Parameters; names follow the roles, sizes are those of the published checkpoints."""
        self.atom_embedding = self.param("atom_embedding", nn.initializers.normal(1.0), (ELEMENTS, CHANNELS))
        self.atom_basis = RadialBasis(ATOM_CUTOFF)
        self.bond_basis = RadialBasis(BOND_CUTOFF)
        self.angle_basis = AngularBasis()
        self.bond_embedding = self.param("bond_embedding", _lecun, (RADIAL, CHANNELS))
        self.atom_weights = self.param("atom_weights", _lecun, (RADIAL, CHANNELS))
        self.bond_weights = self.param("bond_weights", _lecun, (RADIAL, CHANNELS))
        self.angle_embedding = self.param("angle_embedding", _lecun, (ANGULAR, CHANNELS))
        self.atom_convolutions = GatedPerceptrons(LAYERS, ("center", "bond", "neighbor"), out=True)
        self.bond_convolutions = GatedPerceptrons(LAYERS - 1, ("bond", "other", "angle", "center"), out=True)
        self.angle_updates = GatedPerceptrons(LAYERS - 2, ("bond", "other", "angle", "center"), hidden=False)
        self.moment = nn.Dense(1)
        self.norm = nn.LayerNorm(epsilon=NORM_EPSILON)
        self.readout = [nn.Dense(CHANNELS), nn.Dense(CHANNELS), nn.Dense(CHANNELS), nn.Dense(1)]

    def __call__(
        self,
        species: Int[AnyArray, " atoms"],
        vectors: EdgeVectors,
        neighbors: Neighbors,
        reverse: Int[AnyArray, "atoms inner"],
    ) -> tuple[PerAtom, PerAtom]:
        """Atomic energies in eV, relative to AtomRef, and magnetic moments in μB.

        Args:
            species: atomic numbers; anything for padding atoms.
            vectors: Å; those of empty slots are longer than the cutoff.
            neighbors: indices of the neighbours; anything in empty slots.
            reverse: for the leading slots, which hold every bond up to 3 Å: where the same bond starting at its other
                end is among the flattened leading slots; out of range where it is missing.
        """
        inner = reverse.shape[1]
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        basis = self.atom_basis(lengths)
        atoms = self.atom_embedding[jnp.clip(species - 1, 0, ELEMENTS - 1)]
        bonds = basis[:, :inner] @ self.bond_embedding
        bond_weights = self.bond_basis(lengths[:, :inner]) @ self.bond_weights
        angles = self.angle_basis(vectors[:, :inner] / lengths[:, :inner, None]) @ self.angle_embedding
        convolutions, bond_convolutions = self.atom_convolutions(), self.bond_convolutions()
        angle_updates = self.angle_updates()

        def update_angles(layer: Array, atoms: Array, bonds: Array, angles: Array) -> Array:
            return angles + angle_changes(angle_updates.layer(layer), atoms, bonds, angles)

        def update_bonds(layer: Array, atoms: Array, bonds: Array, angles: Array) -> tuple[Array, Array]:
            gated = bond_convolutions.layer(layer)
            messages = angle_messages(gated, atoms, bonds, angles, bond_weights)
            other = jnp.take(messages.reshape(-1, CHANNELS), reverse, axis=0, mode="fill", fill_value=0)
            bonds = bonds + (messages + other) @ gated.out
            # Nothing reads the angles after the last bond update, so the published last angle update is left out.
            more = layer < LAYERS - 2
            return bonds, jax.lax.cond(more, update_angles, lambda *state: state[-1], layer, atoms, bonds, angles)

        def interact(state: tuple[Array, Array, Array], layer: Array) -> tuple[tuple[Array, Array, Array], Array]:
            atoms, bonds, angles = state
            gated = convolutions.layer(layer)
            messages = atom_messages(gated, self.bond_embedding, self.atom_weights, atoms, bonds, basis, neighbors)
            atoms = atoms + messages @ gated.out
            if inner:
                more = layer < LAYERS - 1
                bonds, angles = jax.lax.cond(more, update_bonds, lambda *state: state[-2:], layer, atoms, bonds, angles)
            return (atoms, bonds, angles), atoms

        # A loop, not LAYERS copies of its body: compiling takes a third of the time.
        _, after = jax.lax.scan(interact, (atoms, bonds, angles), jnp.arange(LAYERS))
        moments = jnp.abs(self.moment(after[-2])[:, 0])
        atoms = after[-1]

        hidden = self.norm(atoms)
        for dense in self.readout[:-1]:
            hidden = nn.silu(dense(hidden))
        return self.readout[-1](hidden)[:, 0], moments


class RadialBasis(nn.Module):
    """Bessel functions with learnt frequencies under a polynomial envelope (Gasteiger et al., ICLR 2020).

    Attributes:
        cutoff: Å.
    """

    cutoff: float

    @nn.compact
    def __call__(self, lengths: Float[AnyArray, "*edges"]) -> Float[Array, "*edges radial"]:
        """√(2/c) sin(f r/c)/r times the envelope; zero from the cutoff on."""
        frequencies = self.param("frequencies", lambda _: jnp.pi * jnp.arange(1, RADIAL + 1, dtype=jnp.float32))
        inside = lengths < self.cutoff
        scaled = jnp.where(inside, lengths, self.cutoff) / self.cutoff
        p = ENVELOPE_POWER
        series = (p + 1) * (p + 2) / 2 - p * (p + 2) * scaled + p * (p + 1) / 2 * scaled**2
        envelope = jnp.where(inside, 1.0 - scaled**p * series, 0.0)
        amplitude = (2.0 / self.cutoff) ** 0.5 * envelope / (scaled * self.cutoff)
        return amplitude[..., None] * jnp.sin(scaled[..., None] * frequencies)


class AngularBasis(nn.Module):
    """Fourier series of the angle between two bonds, with learnt frequencies."""

    @nn.compact
    def __call__(self, unit: Float[AnyArray, "atoms inner 3"]) -> Float[Array, "atoms inner inner angular"]:
        """1/√2, sin(f θ) and cos(f θ), divided by √π."""
        frequencies = self.param("frequencies", lambda _: jnp.arange(1, ANGULAR // 2 + 1, dtype=jnp.float32))
        cosine = jnp.einsum("isx,itx->ist", unit, unit) * COLLINEAR
        angle = jnp.arccos(cosine)[..., None]
        constant = jnp.full_like(angle, 0.5**0.5)
        waves = [constant, jnp.sin(angle * frequencies), jnp.cos(angle * frequencies)]
        return jnp.concatenate(waves, axis=-1) / jnp.pi**0.5


class Gated(flax.struct.PyTreeNode):
    """Weights of gated perceptrons, silu(norm(core(x))) · sigmoid(norm(gate(x))), ready to be applied.

    Core and gate come in this order along an axis of two branches. With another axis in front the weights are those of
    a stack of layers.

    Attributes:
        first: [2, parts, 64, 64], the first linear layer for each of the concatenated features.
        bias: [2, 64].
        second: [2, 64, 64], the second linear layer; None if there is but one.
        second_bias: [2, 64].
        scale: [2, 64], of the normalisation.
        shift: [2, 64].
        out: [64, 64], for the sum of the results; None if there is none.
        parts: names of the concatenated features (static).
    """

    first: Leaf
    bias: Leaf
    second: Leaf
    second_bias: Leaf
    scale: Leaf
    shift: Leaf
    out: Leaf
    parts: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def layer(self, index: Int[AnyArray, ""]) -> "Gated":
        """One layer of a stack; the index may be known only when the program runs."""
        return jax.tree.map(lambda weights: weights[index], self)

    def kernel(self, branch: int, part: str) -> Float[AnyArray, "channels channels"]:
        """The first linear layer of a branch for one of the concatenated features."""
        return self.first[branch, self.parts.index(part)]

    def __call__(self, shares: Callable[[int], Float[AnyArray, "*rows channels"]]) -> Float[AnyArray, "*rows channels"]:
        """The perceptron, from a function that makes a branch's sum of the parts' shares of the first layer."""
        results = []
        for branch, activation in enumerate((nn.silu, nn.sigmoid)):
            x = shares(branch)
            if self.second is not None:
                x = nn.silu(x) @ self.second[branch] + self.second_bias[branch]
            # The weights before have seen to it that the mean over channels is zero.
            inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
            results.append(activation(x * inverse * self.scale[branch] + self.shift[branch]))
        return results[0] * results[1]


class GatedPerceptrons(nn.Module):
    """Parameters of a stack of gated perceptrons.

    Attributes:
        layers: how many.
        parts: names of the concatenated features, `CHANNELS` wide each.
        hidden: whether each branch has two linear layers with a silu between, instead of one.
        out: whether another linear layer acts on the sum of the results.
    """

    layers: int
    parts: tuple[str, ...]
    hidden: bool = True
    out: bool = False

    @nn.compact
    def __call__(self) -> Gated:
        """The weights; the last linear layer already subtracts the mean, with which the normalisation begins."""

        def kernels(name: str, *shape: int) -> Array:
            return self.param(name, nn.initializers.lecun_normal(), (self.layers, *shape, CHANNELS, CHANNELS))

        def per_branch(name: str, initial: Callable) -> Array:
            return self.param(name, initial, (self.layers, 2, CHANNELS))

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        weights = [kernels("first", 2, len(self.parts)), per_branch("bias", zeros)]
        if self.hidden:
            weights += [_centred(kernels("second", 2)), _centred(per_branch("second_bias", zeros))]
        else:
            weights = [*map(_centred, weights), None, None]
        out = kernels("out") if self.out else None
        return Gated(*weights, per_branch("scale", ones), per_branch("shift", zeros), out, parts=self.parts)


def _centred(weights: Float[AnyArray, "*rows channels"]) -> Float[AnyArray, "*rows channels"]:
    """Weights of a linear layer whose outputs have zero mean."""
    return weights - weights.mean(axis=-1, keepdims=True)


def atom_messages(
    gated: Gated,
    bond_embedding: Float[AnyArray, "radial channels"],
    atom_weights: Float[AnyArray, "radial channels"],
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    basis: Float[AnyArray, "atoms slots radial"],
    neighbors: Neighbors,
) -> Float[AnyArray, "atoms channels"]:
    """Sum over its neighbours of the messages to each atom."""
    inner = bonds.shape[1]
    # Of both branches: what is made once for all blocks, and folded weights.
    neighbor = [atoms @ gated.kernel(branch, "neighbor") for branch in (0, 1)]
    far = [bond_embedding @ gated.kernel(branch, "bond") for branch in (0, 1)]

    def block(atoms: Array, bonds: Array, basis: Array, neighbors: Array) -> Array:
        def shares(branch: int) -> Array:
            near = bonds @ gated.kernel(branch, "bond")
            bond = jnp.concatenate([near, basis[:, inner:] @ far[branch]], axis=1)
            center = atoms @ gated.kernel(branch, "center") + gated.bias[branch]
            return bond + center[:, None] + neighbor[branch][neighbors]

        return jnp.sum(gated(shares) * (basis @ atom_weights), axis=1)

    return _in_blocks(block, atoms, bonds, basis, neighbors)


def angle_messages(
    gated: Gated,
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    angles: Float[AnyArray, "atoms inner inner channels"],
    weights: Float[AnyArray, "atoms inner channels"],
) -> Float[AnyArray, "atoms inner channels"]:
    """Sum over the angles at an atom of the messages to each of its bonds."""
    different = ~jnp.eye(bonds.shape[1], dtype=bool)[:, :, None]

    def block(atoms: Array, bonds: Array, angles: Array, weights: Array) -> Array:
        messages = _around_angles(gated, atoms, bonds, angles) * (weights[:, None] * different)
        return weights * jnp.sum(messages, axis=2)

    return _in_blocks(block, atoms, bonds, angles, weights)


def angle_changes(
    gated: Gated,
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    angles: Float[AnyArray, "atoms inner inner channels"],
) -> Float[AnyArray, "atoms inner inner channels"]:
    """The change of each angle by both of its bonds and the atom between them."""
    return _in_blocks(partial(_around_angles, gated), atoms, bonds, angles)


def _around_angles(
    gated: Gated,
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    angles: Float[AnyArray, "atoms inner inner channels"],
) -> Float[AnyArray, "atoms inner inner channels"]:
    """A gated perceptron of every pair (bond, other bond) from the same atom."""

    def shares(branch: int) -> Array:
        center = atoms @ gated.kernel(branch, "center") + gated.bias[branch]
        own = bonds @ gated.kernel(branch, "bond") + center[:, None]
        other = bonds @ gated.kernel(branch, "other")
        return angles @ gated.kernel(branch, "angle") + own[:, :, None] + other[:, None]

    return gated(shares)


def _in_blocks(function: Callable, *arrays: AnyArray):
    """A function of arrays with an axis of atoms in front, applied to a few atoms at a time on a CPU."""
    atoms = arrays[0].shape[0]
    if jax.default_backend() != "cpu":
        return function(*arrays)
    size = max(BLOCK_ATOMS, -(-atoms // MOST_BLOCKS))
    # A block that divides the number of atoms saves copies into padded arrays.
    size = next((s for s in range(size, 2 * size) if atoms % s == 0), size)
    blocks = -(-atoms // size)

    def cut(x: AnyArray) -> AnyArray:
        padding = [(0, blocks * size - atoms)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(blocks, size, *x.shape[1:])

    results = jax.lax.map(lambda block: jax.checkpoint(function)(*block), tuple(map(cut, arrays)))
    return jax.tree.map(lambda x: x.reshape(blocks * size, *x.shape[2:])[:atoms], results)
