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
from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to evaluate the contraction to all l = 0 … l_out together.

    Couplings along different paths are not independent once factors commute: of the 28 paths to a scalar (l_max = 3,
    correlation 3), 13 are left.

    Attributes:
        factors: for each order, [order, monomials] components to multiply, distinct over all outputs.
        values: for each l, [2 l + 1, independent, monomials], of all orders in turn.
        mixing: for each l, [independent, paths]: the independent combinations of weights.
    """

    factors: tuple[Int[np.ndarray, "_ _"], ...]
    values: tuple[Float[np.ndarray, "_ _ _"], ...]
    mixing: tuple[Float[np.ndarray, "_ _"], ...]


@functools.cache
def plan(l_max: int, correlation: int, l_out: int) -> Plan:
    """The plan for outputs of l = 0 … l_out."""
    constant = (l_max + 1) ** 2
    outputs = [polynomials(l_max, correlation, ell) for ell in range(l_out + 1)]
    distinct = {tuple(column) for output in outputs for column in output.factors.T.tolist()}
    monomials = sorted(distinct, key=lambda m: (correlation - m.count(constant), m))
    place = {monomial: index for index, monomial in enumerate(monomials)}
    degree = np.array([correlation - m.count(constant) for m in monomials])
    table = np.array(monomials).T
    values, mixing = [], []
    for output in outputs:
        dense = np.zeros((len(output.starts) - 1, len(monomials), output.coefficients.shape[1]))
        where = [place[tuple(column)] for column in output.factors.T.tolist()]
        for m, (start, stop) in enumerate(itertools.pairwise(output.starts)):
            dense[m, where[start:stop]] = output.coefficients[start:stop]
        left, sizes, right = np.linalg.svd(dense.reshape(-1, dense.shape[-1]), full_matrices=False)
        rank = int((sizes > 1e-9 * sizes[0]).sum())
        values.append((left[:, :rank] * sizes[:rank]).reshape(*dense.shape[:2], rank).transpose(0, 2, 1))
        mixing.append(right[:rank])
    return Plan(
        tuple(table[:order, degree == order] for order in range(1, correlation + 1)), tuple(values), tuple(mixing)
    )


def contract(
    features: Float[Array, "components atoms channels"],
    weights: Sequence[Float[Array, "elements _ channels"]],
    element: Int[AnyArray, " atoms"],
    l_max: int,
    correlation: int,
) -> list[Float[Array, "_ atoms channels"]]:
    """Symmetric contraction of each atom's features to l = 0, 1, … as many as there are weights.

    Monomials are products of static choices of components; what couples them is one matrix product, the same for all
    atoms and channels; the weights of each atom then act on the few independent results. Nothing is unrolled, which
    would take a compiler tens of seconds.

    Args:
        features: components (l, m) for l = 0 … l_max.
        weights: for each l of the output, those of each path (see `path_counts`), of order 1 first.
        element: row of the weights that belongs to each atom.
        l_max: largest l of the features.
        correlation: highest order of the products.
    """
    how = plan(l_max, correlation, len(weights) - 1)
    rows = features.reshape(len(features), -1)
    terms = []
    for factors in how.factors:
        product = rows[factors[0]]
        for factor in factors[1:]:
            product = product * rows[factor]
        terms.append(product)
    products = jnp.concatenate(terms, axis=0)

    results = []
    for values, mixing, of_paths in zip(how.values, how.mixing, weights, strict=True):
        m, independent, _ = values.shape
        matrix = jnp.asarray(values.reshape(m * independent, -1), features.dtype)
        # In full precision also where a GPU would round: large terms cancel.
        coupled = jnp.matmul(matrix, products, precision="highest").reshape(m, independent, *features.shape[1:])
        of_atom = jnp.einsum("rp,epc->erc", jnp.asarray(mixing, features.dtype), of_paths)[element]
        results.append(jnp.einsum("mrac,arc->mac", coupled, of_atom))
    return results
