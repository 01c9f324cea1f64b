"""The symmetric contraction of MACE: invariant and equivariant polynomials of an atom's features.

Batatia et al., MACE, NeurIPS 2022 (arXiv:2206.07697), eqs. 10 and 11: the features A_lm of an atom and a channel are
multiplied with themselves up to `correlation` times and coupled to an output (L, M) along every path of intermediate
angular momenta, each path with a weight per element and channel. Evaluated as written this contracts tensors of
(l_max + 1)^(2 correlation) entries, nearly all of them zero, and most of the rest repeated: a product of features does
not depend on the order of its factors. What is left is a polynomial of a few dozen distinct monomials (for l_max = 3,
correlation 3 and a scalar: 1 linear, 16 quadratic, 77 cubic), and that is what is evaluated here.
"""

import dataclasses
import functools
from collections.abc import Sequence

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.cache
def coupling(l_max: int, order: int, l_out: int) -> Float[np.ndarray, "m_out *components paths"]:
    """Generalised Clebsch-Gordan coefficients that couple `order` copies of l = 0 … l_max to l_out.

    Paths are those of MACE's `U` matrices, in their order: factors are coupled from left to right; factors and output
    have natural parity (−1)^l, intermediates may have either; sorted at each step by (l, parity). Each step has the
    normalisation "component" of e3nn: √(2 l + 1) times the Wigner 3j symbol.

    Returns:
        [2 l_out + 1, (l_max + 1)², …, (l_max + 1)², paths], with `order` axes of components.
    """
    wanted = (l_out, (-1) ** l_out)
    return np.stack([tensor for irrep, tensor in _couplings(l_max, order) if irrep == wanted], axis=-1)


def _couplings(l_max: int, order: int) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Every coupling of `order` factors: its (l, parity) and its tensor [2 l + 1, components, …]."""
    components = (l_max + 1) ** 2
    if order == 1:
        unit = np.eye(components)
        return [((ell, (-1) ** ell), unit[ell**2 : (ell + 1) ** 2]) for ell in range(l_max + 1)]
    result = []
    for (l_left, parity), left in _couplings(l_max, order - 1):
        for l_right in range(l_max + 1):
            for ell in range(abs(l_left - l_right), l_left + l_right + 1):
                symbol = (2 * ell + 1) ** 0.5 * e3nn.clebsch_gordan(l_left, l_right, ell)
                tensor = np.zeros((2 * ell + 1, *left.shape[1:], components))
                tensor[..., l_right**2 : (l_right + 1) ** 2] = np.einsum("i...,ijk->k...j", left, symbol)
                result.append(((ell, parity * (-1) ** l_right), tensor))
    return sorted(result, key=lambda entry: entry[0])


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """One component (L, M) of the contraction as a sum of distinct monomials.

    Attributes:
        factors: [correlation, monomials], the components whose product a monomial is; the index one past the last
            component stands for the constant 1 and fills monomials of lower degree.
        coefficients: [monomials of the degree, paths] for each degree from 1 up: what a unit weight on a path adds to a
            monomial. Monomials are in the order of their degree.
    """

    factors: Int[np.ndarray, "correlation monomials"]
    coefficients: tuple[Float[np.ndarray, "monomials paths"], ...]


@functools.cache
def polynomials(l_max: int, correlation: int, l_out: int) -> tuple[Polynomial, ...]:
    """The polynomials of the 2 l_out + 1 components of an output, M in the order of e3nn."""
    constant = (l_max + 1) ** 2
    result = []
    for m in range(2 * l_out + 1):
        factors, coefficients = [], []
        for degree in range(1, correlation + 1):
            tensor = coupling(l_max, degree, l_out)[m]
            rows: dict[tuple[int, ...], np.ndarray] = {}
            for index in np.argwhere(tensor.any(axis=-1)):
                key = tuple(sorted(index.tolist()))
                rows[key] = rows.get(key, 0.0) + tensor[tuple(index)]
            # Couplings that are antisymmetric in two factors cancel in the sum over the orderings.
            rows = {key: row for key, row in rows.items() if np.abs(row).max() > 1e-9}
            factors += [(*key, *[constant] * (correlation - degree)) for key in rows]
            coefficients.append(np.array(list(rows.values())).reshape(len(rows), tensor.shape[-1]))
        result.append(Polynomial(np.array(factors, dtype=np.int32).T, tuple(coefficients)))
    return tuple(result)


def path_count(l_max: int, order: int, l_out: int) -> int:
    """Number of weights per element and channel that a product of `order` features has for an output l_out."""
    return coupling(l_max, order, l_out).shape[-1]


def contract(
    features: Float[Array, "atoms components channels"],
    weights: Sequence[Float[Array, "elements _ channels"]],
    element: Int[Array, " atoms"],
    l_max: int,
    l_out: int,
) -> Float[Array, "atoms m_out channels"]:
    """Symmetric contraction of each atom's features to the output l_out.

    Args:
        features: components (l, m) for l = 0 … l_max.
        weights: [elements, paths, channels] for each order from 1 up to the correlation.
        element: row of the weights that belongs to each atom.
        l_max: largest l of the features.
        l_out: l of the output.

    Weights are first folded into one coefficient per element, monomial and channel, so that the work per atom is a
    product and a sum over monomials. Products are gathered by static indices along an axis whose rows, the channels,
    are contiguous: nearly as fast as code unrolled over the monomials, which takes a compiler tens of seconds.
    """
    one = jnp.ones_like(features[:, :1])
    extended = jnp.concatenate([features, one], axis=1)
    outputs = []
    for polynomial in polynomials(l_max, len(weights), l_out):
        folded = [
            jnp.einsum("mp,epc->emc", jnp.asarray(coefficients, features.dtype), weight)
            for coefficients, weight in zip(polynomial.coefficients, weights, strict=True)
        ]
        monomials = extended[:, polynomial.factors[0]]
        for factor in polynomial.factors[1:]:
            monomials = monomials * extended[:, factor]
        outputs.append(jnp.sum(monomials * jnp.concatenate(folded, axis=1)[element], axis=1))
    return jnp.stack(outputs, axis=1)
