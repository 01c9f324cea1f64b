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
import itertools

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmlip.types import AnyArray


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
    return np.stack([tensor for irrep, tensor in _couplings(l_max, order, l_out, l_out) if irrep == wanted], axis=-1)


def _couplings(l_max: int, order: int, lowest: int, highest: int) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Couplings of `order` factors to l = lowest … highest: (l, parity) and the tensor [2 l + 1, components, …]."""
    components = (l_max + 1) ** 2
    if order == 1:
        unit = np.eye(components)
        return [((ell, (-1) ** ell), unit[ell**2 : (ell + 1) ** 2]) for ell in range(l_max + 1)]
    result = []
    for (l_left, parity), left in _couplings(l_max, order - 1, 0, l_max + highest):
        for l_right in range(l_max + 1):
            for ell in range(max(lowest, abs(l_left - l_right)), min(highest, l_left + l_right) + 1):
                symbol = (2 * ell + 1) ** 0.5 * e3nn.clebsch_gordan(l_left, l_right, ell)
                tensor = np.zeros((2 * ell + 1, *left.shape[1:], components))
                tensor[..., l_right**2 : (l_right + 1) ** 2] = np.einsum("i...,ijk->k...j", left, symbol)
                result.append(((ell, parity * (-1) ** l_right), tensor))
    return sorted(result, key=lambda entry: entry[0])


@dataclasses.dataclass(frozen=True)
class Polynomials:
    """The 2 L + 1 components of an output of the contraction, each a sum of distinct monomials.

    Attributes:
        factors: [correlation, monomials], the components whose product a monomial is; the index one past the last
            component stands for the constant 1 and fills monomials of lower degree.
        coefficients: [monomials, paths], what a unit weight on a path adds to a monomial; paths of order 1 first.
        starts: [2 L + 2], where the monomials of each component begin, and the end.
    """

    factors: Int[np.ndarray, "correlation monomials"]
    coefficients: Float[np.ndarray, "monomials paths"]
    starts: tuple[int, ...]


@functools.cache
def polynomials(l_max: int, correlation: int, l_out: int) -> Polynomials:
    """The polynomials of the components of an output, M in the order of e3nn."""
    constant = (l_max + 1) ** 2
    tensors = [coupling(l_max, order, l_out) for order in range(1, correlation + 1)]
    first_path = np.cumsum([0, *path_counts(l_max, correlation, l_out)])
    factors, coefficients, starts = [], [], [0]
    for m in range(2 * l_out + 1):
        for order, tensor in enumerate(tensors, start=1):
            rows: dict[tuple[int, ...], np.ndarray] = {}
            for index in np.argwhere(tensor[m].any(axis=-1)):
                key = tuple(sorted(index.tolist()))
                rows[key] = rows.get(key, 0.0) + tensor[(m, *index)]
            for key, row in rows.items():
                # Couplings that are antisymmetric in two factors cancel in the sum over the orderings.
                if np.abs(row).max() > 1e-9:
                    factors.append((*key, *[constant] * (correlation - order)))
                    coefficients.append(np.zeros(first_path[-1]))
                    coefficients[-1][first_path[order - 1] : first_path[order]] = row
        starts.append(len(factors))
    return Polynomials(np.array(factors, dtype=np.int32).T, np.array(coefficients), tuple(starts))


def path_counts(l_max: int, correlation: int, l_out: int) -> tuple[int, ...]:
    """Number of weights per element and channel of the products of order 1 … correlation for an output l_out."""
    return tuple(coupling(l_max, order, l_out).shape[-1] for order in range(1, correlation + 1))


def contract(
    features: Float[Array, "atoms components channels"],
    weights: Float[Array, "elements paths channels"],
    element: Int[AnyArray, " atoms"],
    l_max: int,
    correlation: int,
    l_out: int,
) -> Float[Array, "atoms m_out channels"]:
    """Symmetric contraction of each atom's features to the output l_out.

    Args:
        features: components (l, m) for l = 0 … l_max.
        weights: of each path (see `path_counts`), those of order 1 first.
        element: row of the weights that belongs to each atom.
        l_max: largest l of the features.
        correlation: highest order of the products.
        l_out: l of the output.

    Weights are first folded into one coefficient per element, monomial and channel, so that the work per atom is a
    product and a sum over monomials. Products are gathered by static indices along an axis whose rows, the channels,
    are contiguous: nearly as fast as code unrolled over the monomials, which takes a compiler tens of seconds.
    """
    table = polynomials(l_max, correlation, l_out)
    extended = jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
    terms = extended[:, table.factors[0]]
    for factor in table.factors[1:]:
        terms = terms * extended[:, factor]
    folded = jnp.einsum("mp,epc->emc", jnp.asarray(table.coefficients, features.dtype), weights)
    terms = terms * folded[element]
    components = [terms[:, start:stop].sum(axis=1) for start, stop in itertools.pairwise(table.starts)]
    return jnp.stack(components, axis=1)
