"""Functions of the distance: Bessel basis, smooth envelope and the network that mixes them."""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Float, Int

from jaxmlip.types import Leaf

SILU_SCALE = 1.6791767923989418
"""Factor that gives silu(x) a second moment of one for normally distributed x, as in e3nn and so in MACE's weights.

The exact value is 1.67653; e3nn estimates it from a million random numbers, and published weights contain its estimate.
"""


ZBL_AMPLITUDES = (0.1818, 0.5099, 0.2802, 0.02817)
ZBL_DECAYS = (3.2, 0.9423, 0.4028, 0.2016)
"""Of the universal screening function, a sum of exponentials."""


def bessel(lengths: Float[Array, "*edges"], functions: int, cutoff: float) -> Float[Array, "*edges functions"]:
    """Radial basis √(2/c) sin(n π r / c) / r for n = 1 … functions, with r and c in Å.

    Orthonormal on [0, c] with weight r² (Gasteiger et al., DimeNet, ICLR 2020, eq. 7). Lengths must not be zero.
    """
    frequencies = jnp.arange(1, functions + 1, dtype=lengths.dtype) * (jnp.pi / cutoff)
    r = lengths[..., None]
    return (2.0 / cutoff) ** 0.5 * jnp.sin(frequencies * r) / r


def envelope(
    lengths: Float[Array, "*edges"], cutoff: float | Float[Array, "*#edges"], power: int
) -> Float[Array, "*edges"]:
    """Polynomial that falls from 1 at r = 0 to 0 at the cutoff, and is exactly 0 beyond.

    With u = r / cutoff and p = power it is 1 − (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) − p(p+1)/2 u^(p+2) (DimeNet, eq. 8):
    value and the first two derivatives vanish at the cutoff. Evaluated as (1 − u)³ Σ_{k<p} (k+1)(k+2)/2 u^k, the same
    polynomial without the cancellation that leaves noise near the cutoff in float32.
    """
    u = jnp.minimum(lengths / cutoff, 1.0)
    series = jnp.zeros_like(u)
    for k in reversed(range(power)):
        series = series * u + (k + 1) * (k + 2) / 2
    return (1.0 - u) ** 3 * series


def agnesi(
    lengths: Float[Array, "*edges"], radii: Float[Array, "*#edges"], other_radii: Float[Array, "*#edges"]
) -> Float[Array, "*edges"]:
    """Distances as 1 / (1 + a u^q / (1 + u^(q−p))), with u the length over the mean covalent radius of the two atoms.

    The transform of ACEpotentials.jl (Witt et al., J. Chem. Phys. 159, 164101 (2023)), with MACE's constants a, q and
    p; it falls from 1 at zero length, so that the radial basis is finest where bonds are.
    """
    a, q, p = 1.0805, 0.9183, 4.5791
    u = lengths / (0.5 * (radii + other_radii))
    return 1.0 / (1.0 + a * u**q / (1.0 + u ** (q - p)))


def zbl(
    lengths: Float[Array, "*edges"],
    numbers: Int[Array, "*#edges"],
    other_numbers: Int[Array, "*#edges"],
    power: int,
) -> Float[Array, "*edges"]:
    """Half the screened repulsion of two nuclei in eV, so that the sum over ordered pairs counts each once.

    Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids (1985), with the polynomial envelope to
    zero at the sum of the covalent radii and the constants of MACE's pair repulsion.

    Args:
        lengths: Å, not zero.
        numbers: atomic numbers.
        other_numbers: atomic numbers of the neighbours.
        power: p of the envelope.
    """
    z, other_z = numbers.astype(lengths.dtype), other_numbers.astype(lengths.dtype)
    radii = jnp.asarray(covalent_radii, lengths.dtype)
    screening_length = 0.4543 * 0.529 / (z**0.3 + other_z**0.3)
    x = lengths / screening_length
    screening = sum(c * jnp.exp(-b * x) for c, b in zip(ZBL_AMPLITUDES, ZBL_DECAYS, strict=True))
    reach = radii[numbers] + radii[other_numbers]
    return 0.5 * 14.3996 * z * other_z / lengths * screening * envelope(lengths, reach, power)


def radial_features(weights: Sequence[Array], x: Float[Array, "edges functions"]) -> Float[Array, "edges hidden"]:
    """The last hidden layer of MACE's radial network: silu, no biases, so that zero maps to zero.

    Args:
        weights: of the hidden layers, see `RadialNetwork`.
        x: the radial basis.
    """
    for weight in weights:
        x = SILU_SCALE * jax.nn.silu(x @ weight)
    return x


class RadialNetwork(nn.Module):
    """Parameters of the hidden layers of the radial network (e3nn's FullyConnectedNet), of unit standard deviation.

    The final linear layer is left to the interaction, which may fold it (see
    `jaxmlip.potentials.equivariant_network.Network` for the initialisation).

    Attributes:
        functions: number of radial basis functions.
        widths: of the hidden layers.
    """

    functions: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[Array, ...]:
        """The weights, divided by √fan-in."""
        shapes = itertools.pairwise((self.functions, *self.widths))
        ones = nn.initializers.ones
        return tuple(
            self.param(f"weight_{layer}", ones, shape, jnp.float32) / shape[0] ** 0.5
            for layer, shape in enumerate(shapes)
        )


class Splines(flax.struct.PyTreeNode):
    """Piecewise cubic functions of the distance on equal intervals of [0, cutoff], zero beyond.

    Attributes:
        coefficients: [intervals, 4, functions], of 1, u, u² and u³, with u from 0 to 1 along the interval.
        cutoff: Å (static).
    """

    coefficients: Leaf
    cutoff: float = flax.struct.field(pytree_node=False)

    def __call__(self, lengths: Float[Array, "*edges"]) -> Float[Array, "*edges functions"]:
        """The functions' values at lengths in Å."""
        intervals = len(self.coefficients)
        place = lengths * (intervals / self.cutoff)
        interval = jnp.clip(place.astype(jnp.int32), 0, intervals - 1)
        u = (place - interval)[..., None]
        constant, linear, quadratic, cubic = jnp.moveaxis(self.coefficients[interval], -2, 0)
        value = constant + u * (linear + u * (quadratic + u * cubic))
        return jnp.where((lengths < self.cutoff)[..., None], value, 0.0)


def hermite(
    values: Float[np.ndarray, "knots functions"], slopes: Float[np.ndarray, "knots functions"]
) -> Float[np.ndarray, "intervals 4 functions"]:
    """Coefficients for `Splines` from values at the knots, and derivatives times the length of an interval."""
    left, right, start, stop = values[:-1], values[1:], slopes[:-1], slopes[1:]
    rise = right - left
    return np.stack([left, start, 3 * rise - 2 * start - stop, start + stop - 2 * rise], axis=1)
