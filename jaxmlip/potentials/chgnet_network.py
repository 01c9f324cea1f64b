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

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmlip.potentials.blocks import Form, blocks_of, in_blocks
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

BLOCK_ATOMS = 32
"""Few enough that a block's edges (some 90 an atom, 128 channels) stay in the cache and its buffers are used again by
the next block; enough that two cores have something to share."""


def _uniform(width: int) -> nn.initializers.Initializer:
    """1/√width for weights and biases that are drawn between plus and minus that, as torch.nn.Linear does."""
    return nn.initializers.constant(width**-0.5)


def _linear(outputs: int) -> nn.Dense:
    """A linear layer of all channels."""
    return nn.Dense(outputs, kernel_init=_uniform(CHANNELS), bias_init=_uniform(CHANNELS))


class CHGNetNetwork(nn.Module):
    """Species and edge vectors in; atomic energies and magnetic moments out.

    Its `init` draws nothing: it gives the spread of each parameter, which `drawn` multiplies by random numbers.

    Attributes:
        form: see `blocks.Form`.
    """

    form: Form = "cpu"

    def setup(self) -> None:
        """Parameters; names follow the roles, sizes are those of the published checkpoints."""
        self.atom_embedding = self.param("atom_embedding", nn.initializers.ones, (ELEMENTS, CHANNELS))
        self.atom_basis = RadialBasis(ATOM_CUTOFF)
        self.bond_basis = RadialBasis(BOND_CUTOFF)
        self.angle_basis = AngularBasis()
        self.bond_embedding = self.param("bond_embedding", _uniform(RADIAL), (RADIAL, CHANNELS))
        self.atom_weights = self.param("atom_weights", _uniform(RADIAL), (RADIAL, CHANNELS))
        self.bond_weights = self.param("bond_weights", _uniform(RADIAL), (RADIAL, CHANNELS))
        self.angle_embedding = self.param("angle_embedding", _uniform(ANGULAR), (ANGULAR, CHANNELS))
        self.atom_convolutions = [Convolution(("center", "bond", "neighbor")) for _ in range(LAYERS)]
        self.bond_convolutions = [Convolution(("bond", "other", "angle", "center")) for _ in range(LAYERS - 1)]
        # Nothing reads the angles after the last bond update, so the published last angle update is left out.
        self.angle_updates = [
            GatedPerceptron(("bond", "other", "angle", "center"), hidden=False) for _ in range(LAYERS - 2)
        ]
        self.moment = _linear(1)
        self.norm = nn.LayerNorm(epsilon=NORM_EPSILON)
        self.readout = [_linear(CHANNELS), _linear(CHANNELS), _linear(CHANNELS), _linear(1)]

    def __call__(
        self,
        species: Int[AnyArray, " atoms"],
        vectors: EdgeVectors,
        neighbors: Neighbors,
        reverse: Int[AnyArray, "atoms inner"],
    ) -> tuple[PerAtom, PerAtom]:
        """Atomic energies in eV, relative to AtomRef, and magnetic moments in μB; for the arguments see `features`."""
        return self.outputs(*self.features(species, vectors, neighbors, reverse))

    def features(
        self,
        species: Int[AnyArray, " atoms"],
        vectors: EdgeVectors,
        neighbors: Neighbors,
        reverse: Int[AnyArray, "atoms inner"],
    ) -> tuple[Float[AnyArray, "atoms channels"], Float[AnyArray, "atoms channels"]]:
        """What the trunk knows of each atom before its last layer and after it.

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
        if inner:
            bond_weights = self.bond_basis(lengths[:, :inner]) @ self.bond_weights
            angles = self.angle_basis(vectors[:, :inner] / lengths[:, :inner, None])

        before = atoms
        for layer, convolution in enumerate(self.atom_convolutions):
            before, weights = atoms, (self.bond_embedding, self.atom_weights)
            gated, out = convolution()
            atoms = atoms + atom_messages(gated, out, *weights, atoms, bonds, basis, neighbors, self.form)
            if inner and layer < LAYERS - 1:
                gated, out = self.bond_convolutions[layer]()
                if layer == 0:
                    gated = gated.embedded("angle", self.angle_embedding)
                    here = before, atoms, bonds, angles, bond_weights, self.form
                    messages, _ = angle_messages(None, gated, out, *here)
                else:
                    if layer == 1:
                        angles = angles @ self.angle_embedding
                    update = self.angle_updates[layer - 1]()
                    here = before, atoms, bonds, angles, bond_weights, self.form
                    messages, angles = angle_messages(update, gated, out, *here)
                other = jnp.asarray(messages).reshape(-1, CHANNELS).at[reverse].get(mode="fill", fill_value=0)
                bonds = bonds + messages + other
        return before, atoms

    def outputs(
        self, before: Float[AnyArray, "atoms channels"], atoms: Float[AnyArray, "atoms channels"]
    ) -> tuple[PerAtom, PerAtom]:
        """Energies of the atoms' last features, and magnetic moments of those before the last layer."""
        hidden = self.norm(atoms)
        for dense in self.readout[:-1]:
            hidden = nn.silu(dense(hidden))
        return self.readout[-1](hidden)[:, 0], jnp.abs(self.moment(before)[:, 0])


def drawn(path: str, spread: Float[np.ndarray, "..."], draw: np.random.Generator) -> Float[np.ndarray, "..."]:
    """A parameter before training, as the original draws it: by torch.nn's defaults.

    Args:
        path: of the parameter, see `path_name`.
        spread: what `CHGNetNetwork.init` gives for it.
        draw: where random numbers come from.
    """
    name = path.rpartition("/")[2]
    if name in ("frequencies", "scale"):
        return np.array(spread)
    numbers = draw.standard_normal if name == "atom_embedding" else lambda shape: draw.uniform(-1.0, 1.0, shape)
    return np.asarray(spread * numbers(spread.shape), spread.dtype)


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
    """Weights of a gated perceptron, silu(norm(core(x))) · sigmoid(norm(gate(x))), ready to be applied.

    Attributes:
        first: [part's width, 128] for each concatenated part; core and gate lie side by side in the columns.
        bias: [128].
        second: [2, 64, 64], the second linear layer of each branch; None if there is but one.
        second_bias: [2, 64].
        scale: [2, 64], of the normalisation of each branch.
        shift: [2, 64].
    """

    first: dict[str, Leaf]
    bias: Leaf
    second: Leaf
    second_bias: Leaf
    scale: Leaf
    shift: Leaf

    def embedded(self, part: str, embedding: Float[AnyArray, "width channels"]) -> "Gated":
        """The same perceptron for a part that is still to be embedded linearly."""
        return self.replace(first={**self.first, part: embedding @ self.first[part]})

    def __call__(self, both: Float[AnyArray, "*rows both"]) -> Float[AnyArray, "*rows channels"]:
        """What comes after the sum of the parts' shares of the first layer."""
        branches = []
        halves = zip(jnp.split(both, 2, axis=-1), (nn.silu, nn.sigmoid), strict=True)
        for branch, (x, activation) in enumerate(halves):
            if self.second is not None:
                x = nn.silu(x) @ self.second[branch] + self.second_bias[branch]
            # The weights before have seen to it that the mean over channels is zero.
            inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
            branches.append(activation(x * inverse * self.scale[branch] + self.shift[branch]))
        return branches[0] * branches[1]


class GatedPerceptron(nn.Module):
    """Parameters of a gated perceptron.

    Attributes:
        parts: names of the concatenated features, `CHANNELS` wide each.
        hidden: whether each branch has two linear layers with a silu between, instead of one.
    """

    parts: tuple[str, ...]
    hidden: bool = True

    @nn.compact
    def __call__(self) -> Gated:
        """The weights; the last linear layer already subtracts the mean, with which the normalisation begins."""
        start = _uniform(len(self.parts) * CHANNELS)
        first = {part: self.param(part, start, (CHANNELS, 2 * CHANNELS)) for part in self.parts}
        bias = self.param("bias", start, (2 * CHANNELS,))
        second = second_bias = None
        if self.hidden:
            second = _centred(self.param("second", _uniform(CHANNELS), (2, CHANNELS, CHANNELS)))
            second_bias = _centred(self.param("second_bias", _uniform(CHANNELS), (2, CHANNELS)))
        else:
            first, bias = jax.tree.map(
                lambda x: _centred(x.reshape(*x.shape[:-1], 2, CHANNELS)).reshape(x.shape), (first, bias)
            )
        scale = self.param("scale", nn.initializers.ones, (2, CHANNELS))
        shift = self.param("shift", nn.initializers.zeros, (2, CHANNELS))
        return Gated(first, bias, second, second_bias, scale, shift)


class Convolution(nn.Module):
    """Parameters of a message: a gated perceptron, and the linear layer applied to the sum of messages.

    Attributes:
        parts: names of the concatenated features.
    """

    parts: tuple[str, ...]

    @nn.compact
    def __call__(self) -> tuple[Gated, Float[AnyArray, "channels channels"]]:
        """The perceptron's weights and those of the linear layer."""
        gated = GatedPerceptron(self.parts, name="perceptron")()
        return gated, self.param("out", _uniform(CHANNELS), (CHANNELS, CHANNELS))


def _centred(weights: Float[AnyArray, "*rows channels"]) -> Float[AnyArray, "*rows channels"]:
    """Weights of a linear layer whose outputs have zero mean."""
    return weights - weights.mean(axis=-1, keepdims=True)


def atom_messages(
    gated: Gated,
    out: Float[AnyArray, "channels channels"],
    bond_embedding: Float[AnyArray, "radial channels"],
    atom_weights: Float[AnyArray, "radial channels"],
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    basis: Float[AnyArray, "atoms slots radial"],
    neighbors: Neighbors,
    form: Form,
) -> Float[AnyArray, "atoms channels"]:
    """Sum over its neighbours of the messages to each atom."""
    inner = bonds.shape[1]
    center = atoms @ gated.first["center"] + gated.bias
    neighbor = atoms @ gated.first["neighbor"]
    far_kernel = bond_embedding @ gated.first["bond"]

    def block(center: Array, bonds: Array, basis: Array, neighbors: Array) -> Array:
        bond = jnp.concatenate([bonds @ gated.first["bond"], basis[:, inner:] @ far_kernel], axis=1)
        both = bond + center[:, None] + neighbor[neighbors]
        # The product with `out` is taken in here, because what ends a block is compiled for one thread.
        return jnp.sum(gated(both) * (basis @ atom_weights), axis=1) @ out

    blocks = blocks_of(form, BLOCK_ATOMS, basis.shape[1] * 2 * CHANNELS)
    return in_blocks(block, blocks, center, bonds, basis, neighbors)


def angle_messages(
    update: Gated | None,
    gated: Gated,
    out: Float[AnyArray, "channels channels"],
    before: Float[AnyArray, "atoms channels"],
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    angles: Float[AnyArray, "atoms inner inner width"],
    weights: Float[AnyArray, "atoms inner channels"],
    form: Form,
) -> tuple[Float[AnyArray, "atoms inner channels"], Float[AnyArray, "atoms inner inner width"]]:
    """Sum over the angles at an atom of the messages to each of its bonds, and the angles.

    The angles are updated first, by the update that the original does at the end of the layer before: with the bonds,
    and with the atoms as they were `before` this layer.
    """
    inner = bonds.shape[1]
    different = ~jnp.eye(inner, dtype=bool)[:, :, None]

    def shares(gated: Gated, atoms: Array, bonds: Array, angles: Array) -> Array:
        center = atoms @ gated.first["center"] + gated.bias
        own = bonds @ gated.first["bond"] + center[:, None]
        return angles @ gated.first["angle"] + own[:, :, None] + (bonds @ gated.first["other"])[:, None]

    def block(before: Array, atoms: Array, bonds: Array, angles: Array, weights: Array) -> tuple[Array, Array]:
        if update is not None:
            angles = angles + update(shares(update, before, bonds, angles))
        messages = gated(shares(gated, atoms, bonds, angles)) * (weights[:, None] * different)
        return (weights * jnp.sum(messages, axis=2)) @ out, angles

    blocks = blocks_of(form, BLOCK_ATOMS, inner * inner * 2 * CHANNELS)
    return in_blocks(block, blocks, before, atoms, bonds, angles, weights)
