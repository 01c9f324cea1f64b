"""CHGNet's network in flax.linen, on dense neighbour slots.

Deng et al., Nat. Mach. Intell. 5, 1031 (2023), with the layer normalisations of version 0.3.0. The numbers are the
original's; the order of the work is not. A gated multilayer perceptron of concatenated features begins with a matrix
product that is a sum of products per part, and each is taken where its part lives: once per atom, once per bond, and
per angle only for what belongs to the angle. Bonds longer than the bond graph's cutoff keep their first features, so
their embedding is folded into the weights. Features live on directed bonds here; both copies of a bond stay equal.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmlip.types import AnyArray, EdgeVectors, Neighbors, PerAtom

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
        self.atom_convolutions = [AtomConvolution() for _ in range(LAYERS)]
        self.bond_convolutions = [BondConvolution() for _ in range(LAYERS - 1)]
        # The angles of the last bond update are never read again, so the last angle update of the published
        # checkpoints is left out.
        self.angle_updates = [AngleUpdate() for _ in range(LAYERS - 2)]
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
            reverse: for the leading slots, which hold every bond up to 3 Å, where the same bond starting at its other
                end is among the flattened leading slots; out of range where it is missing.
        """
        inner = reverse.shape[1]
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        basis = self.atom_basis(lengths)
        near, far = basis[:, :inner], basis[:, inner:]
        weights = basis @ self.atom_weights
        atoms = self.atom_embedding[jnp.clip(species - 1, 0, ELEMENTS - 1)]
        bonds = near @ self.bond_embedding

        if inner:
            bond_weights = self.bond_basis(lengths[:, :inner]) @ self.bond_weights
            unit = vectors[:, :inner] / lengths[:, :inner, None]
            angles, embedding = self.angle_basis(unit), self.angle_embedding

        moments = jnp.zeros_like(atoms[:, 0])
        for layer, convolution in enumerate(self.atom_convolutions):
            if layer == LAYERS - 1:
                moments = jnp.abs(self.moment(atoms)[:, 0])
            kept = convolution.messages(atoms, far, self.bond_embedding, weights[:, inner:], neighbors[:, inner:])
            updated = convolution.messages(atoms, bonds, None, weights[:, :inner], neighbors[:, :inner])
            atoms = convolution.update(atoms, kept + updated)
            if inner and layer < LAYERS - 1:
                bonds = self.bond_convolutions[layer](atoms, bonds, angles, embedding, bond_weights, reverse)
                if layer < LAYERS - 2:
                    angles, embedding = self.angle_updates[layer](atoms, bonds, angles, embedding), None

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


class GatedPerceptron(nn.Module):
    """silu(norm(core(x))) · sigmoid(norm(gate(x))) of concatenated features x, each part taken where it lives.

    The two branches lie side by side in the first layer's columns. Layer normalisation begins by subtracting the mean
    over channels, which the linear layer before it can do once and for all in its weights.

    Attributes:
        parts: names of the concatenated features, `CHANNELS` wide each.
        hidden: whether each branch has two linear layers with a silu between, instead of one.
    """

    parts: tuple[str, ...]
    hidden: bool = True

    def setup(self) -> None:
        """First layer per part; second layer and norms per branch."""
        self.kernels = {part: self.param(part, _lecun, (CHANNELS, 2 * CHANNELS)) for part in self.parts}
        self.bias = self.param("bias", nn.initializers.zeros, (2 * CHANNELS,))
        if self.hidden:
            self.second = self.param("second", _lecun, (2, CHANNELS, CHANNELS))
            self.second_bias = self.param("second_bias", nn.initializers.zeros, (2, CHANNELS))
        self.scale = self.param("scale", nn.initializers.ones, (2, CHANNELS))
        self.shift = self.param("shift", nn.initializers.zeros, (2, CHANNELS))

    def first(
        self,
        part: str,
        features: Float[AnyArray, "*rows width"],
        embedding: Float[AnyArray, "width channels"] | None = None,
    ) -> Float[Array, "*rows both"]:
        """A part's share of the first layer; through an embedding if the features are still a basis."""
        kernel = self.kernels[part] if self.hidden else _centred(self.kernels[part])
        return features @ (kernel if embedding is None else embedding @ kernel)

    def constant(self) -> Float[AnyArray, " both"]:
        """The first layer's bias, to be added to any one of the shares."""
        return self.bias if self.hidden else _centred(self.bias)

    def __call__(self, both: Float[AnyArray, "*rows both"]) -> Float[Array, "*rows channels"]:
        """The rest, from the sum of the shares."""
        branches = []
        for branch, activation in enumerate((nn.silu, nn.sigmoid)):
            x = both[..., branch * CHANNELS : (branch + 1) * CHANNELS]
            if self.hidden:
                kernel, bias = self.second[branch], self.second_bias[branch]
                x = nn.silu(x) @ (kernel - kernel.mean(axis=-1, keepdims=True)) + (bias - bias.mean())
            inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
            branches.append(activation(x * inverse * self.scale[branch] + self.shift[branch]))
        return branches[0] * branches[1]


def _centred(weights: Float[AnyArray, "*rows both"]) -> Float[Array, "*rows both"]:
    """Weights of a linear layer whose two branches of outputs have zero mean."""
    branches = weights.reshape(*weights.shape[:-1], 2, CHANNELS)
    return (branches - branches.mean(axis=-1, keepdims=True)).reshape(weights.shape)


class AtomConvolution(nn.Module):
    """Messages along every bond update the atoms."""

    def setup(self) -> None:
        """One gated perceptron and a linear layer."""
        self.perceptron = GatedPerceptron(("center", "bond", "neighbor"))
        self.out = self.param("out", _lecun, (CHANNELS, CHANNELS))

    def messages(
        self,
        atoms: Float[AnyArray, "atoms channels"],
        bonds: Float[AnyArray, "atoms slots width"],
        embedding: Float[AnyArray, "width channels"] | None,
        weights: Float[AnyArray, "atoms slots channels"],
        neighbors: Neighbors,
    ) -> Float[Array, "atoms channels"]:
        """Sum over the slots of the messages to each atom."""
        first = self.perceptron.first
        center = first("center", atoms) + self.perceptron.constant()
        both = first("bond", bonds, embedding) + center[:, None] + first("neighbor", atoms)[neighbors]
        return jnp.sum(self.perceptron(both) * weights, axis=1)

    def update(
        self, atoms: Float[AnyArray, "atoms channels"], messages: Float[AnyArray, "atoms channels"]
    ) -> Float[Array, "atoms channels"]:
        """The atoms after the messages."""
        return atoms + messages @ self.out


class BondConvolution(nn.Module):
    """Messages along every angle update the bonds."""

    def setup(self) -> None:
        """One gated perceptron and a linear layer."""
        self.perceptron = GatedPerceptron(("bond", "other", "angle", "center"))
        self.out = self.param("out", _lecun, (CHANNELS, CHANNELS))

    def __call__(
        self,
        atoms: Float[AnyArray, "atoms channels"],
        bonds: Float[AnyArray, "atoms inner channels"],
        angles: Float[AnyArray, "atoms inner inner width"],
        embedding: Float[AnyArray, "width channels"] | None,
        weights: Float[AnyArray, "atoms inner channels"],
        reverse: Int[AnyArray, "atoms inner"],
    ) -> Float[Array, "atoms inner channels"]:
        """The bonds after the messages of the angles at both of their ends."""
        both = _angle_shares(self.perceptron, atoms, bonds, angles, embedding)
        others = weights[:, None] * ~jnp.eye(weights.shape[1], dtype=bool)[:, :, None]
        messages = weights * jnp.sum(self.perceptron(both) * others, axis=2)
        flat = messages.reshape(-1, CHANNELS)
        return bonds + (messages + flat.at[reverse].get(mode="fill", fill_value=0)) @ self.out


class AngleUpdate(nn.Module):
    """Both bonds of an angle and the atom between them update it."""

    def setup(self) -> None:
        """One gated perceptron without hidden layer."""
        self.perceptron = GatedPerceptron(("bond", "other", "angle", "center"), hidden=False)

    def __call__(
        self,
        atoms: Float[AnyArray, "atoms channels"],
        bonds: Float[AnyArray, "atoms inner channels"],
        angles: Float[AnyArray, "atoms inner inner width"],
        embedding: Float[AnyArray, "width channels"] | None,
    ) -> Float[Array, "atoms inner inner channels"]:
        """The angles after the update."""
        before = angles if embedding is None else angles @ embedding
        return before + self.perceptron(_angle_shares(self.perceptron, atoms, bonds, angles, embedding))


def _angle_shares(
    perceptron: GatedPerceptron,
    atoms: Float[AnyArray, "atoms channels"],
    bonds: Float[AnyArray, "atoms inner channels"],
    angles: Float[AnyArray, "atoms inner inner width"],
    embedding: Float[AnyArray, "width channels"] | None,
) -> Float[Array, "atoms inner inner both"]:
    """First layer for every pair (bond, other bond) of bonds from the same atom."""
    first = perceptron.first
    center = first("center", atoms) + perceptron.constant()
    own = first("bond", bonds) + center[:, None]
    return first("angle", angles, embedding) + own[:, :, None] + first("other", bonds)[:, None]
