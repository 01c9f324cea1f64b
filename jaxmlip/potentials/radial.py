"""Functions of the distance: Bessel basis, smooth envelope and the network that mixes them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlip.types import AnyArray

SILU_SCALE = 1.6791767923989418
"""Factor that gives silu(x) a second moment of one for normally distributed x, as in e3nn and so in MACE's weights.

The exact value is 1.67653; e3nn estimates it from a million random numbers, and published weights contain its estimate.
"""


def bessel(lengths: Float[Array, "*edges"], functions: int, cutoff: float) -> Float[Array, "*edges functions"]:
    """Radial basis √(2/c) sin(n π r / c) / r for n = 1 … functions, with r and c in Å.

    Orthonormal on [0, c] with weight r² (Gasteiger et al., DimeNet, ICLR 2020, eq. 7). Lengths must not be zero.
    """
    frequencies = jnp.arange(1, functions + 1, dtype=lengths.dtype) * (jnp.pi / cutoff)
    r = lengths[..., None]
    return (2.0 / cutoff) ** 0.5 * jnp.sin(frequencies * r) / r


def envelope(lengths: Float[Array, "*edges"], cutoff: float, power: int) -> Float[Array, "*edges"]:
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


class RadialNetwork(nn.Module):
    """The hidden layers of MACE's radial network: silu, no biases, so that zero maps to zero (e3nn FullyConnectedNet).

    Parameters are of unit standard deviation (see `jaxmlip.potentials.equivariant_network.Network`).

    Attributes:
        widths: of the hidden layers.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*edges functions"]) -> Float[Array, "*edges hidden"]:
        """Features of the last hidden layer; the final linear layer is left to the interaction, which may fold it."""
        x = jnp.asarray(x)
        for layer, width in enumerate(self.widths):
            weight = self.param(f"weight_{layer}", nn.initializers.ones, (x.shape[-1], width), jnp.float32)
            x = SILU_SCALE * jax.nn.silu((x @ weight) / weight.shape[0] ** 0.5)
        return x
