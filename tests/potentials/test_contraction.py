"""The sparse polynomial of the symmetric contraction against MACE's dense form, and against rotations."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxmlip.potentials.contraction import contract, coupling, path_counts, plan, polynomials

ATOMS, CHANNELS, ELEMENTS = 5, 3, 2


def dense(
    features: jax.Array, weights: list[jax.Array], element: np.ndarray, l_max: int, correlation: int
) -> list[jax.Array]:
    """Eq. 10 and 11 of the MACE paper as they stand: every entry of every U tensor."""
    return [dense_of(features, of_l, element, l_max, correlation, l_out) for l_out, of_l in enumerate(weights)]


def dense_of(
    features: jax.Array, weights: jax.Array, element: np.ndarray, l_max: int, correlation: int, l_out: int
) -> jax.Array:
    result, first = jnp.zeros(()), 0
    for order in range(1, correlation + 1):
        tensor = jnp.asarray(coupling(l_max, order, l_out))
        of_atom = weights[element][:, first : first + tensor.shape[-1]]
        letters = "ijkl"[:order]
        factors = ",".join(f"{letter}ac" for letter in letters)
        result = result + jnp.einsum(f"m{letters}p,apc,{factors}->mac", tensor, of_atom, *[features] * order)
        first += tensor.shape[-1]
    return result


@pytest.mark.parametrize(("l_max", "correlation", "l_out"), [(3, 3, 0), (2, 3, 2), (2, 2, 0), (1, 1, 1), (1, 4, 1)])
def test_equals_the_dense_form(l_max: int, correlation: int, l_out: int, x64: None) -> None:
    draw = np.random.default_rng(0)
    features = jnp.asarray(draw.standard_normal(((l_max + 1) ** 2, ATOMS, CHANNELS)))
    counts = [sum(path_counts(l_max, correlation, ell)) for ell in range(l_out + 1)]
    weights = [jnp.asarray(draw.standard_normal((ELEMENTS, count, CHANNELS))) for count in counts]
    element = np.array([0, 1, 1, 0, 1])
    cotangents = [jnp.asarray(draw.standard_normal((2 * ell + 1, ATOMS, CHANNELS))) for ell in range(l_out + 1)]

    def value_and_gradients(form):
        def total(features, weights):
            outputs = form(features, weights, element, l_max, correlation)
            return sum(jnp.sum(x * y) for x, y in zip(outputs, cotangents, strict=True)), outputs

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(features, weights)

    for ours, reference in zip(*map(jax.tree.leaves, map(value_and_gradients, (contract, dense))), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12 * float(jnp.abs(reference).max()))


def test_counts_are_those_of_mace() -> None:
    # Shapes of the weights in published models with l_max = 3 (MACE-MP-0: 128x0e + 128x1o, correlation 3).
    assert path_counts(3, 3, 0) == (1, 4, 23)
    assert path_counts(3, 3, 1) == (1, 6, 51)
    scalar, vector = polynomials(3, 3, 0), polynomials(3, 3, 1)
    assert scalar.starts == (0, 1 + 16 + 77)
    assert np.diff(vector.starts).tolist() == [1 + 13 + 98, 1 + 9 + 82, 1 + 13 + 98]


def test_lowest_couplings_by_hand() -> None:
    np.testing.assert_allclose(coupling(1, 1, 1)[..., 0], np.eye(4)[1:], atol=1e-15)
    scalars = coupling(1, 2, 0)[0]
    np.testing.assert_allclose(scalars[..., 0], np.diag([1.0, 0, 0, 0]), atol=1e-15)
    np.testing.assert_allclose(scalars[..., 1], np.diag([0, 1.0, 1, 1]) / np.sqrt(3), atol=1e-12)


def test_rotates_and_reflects_as_its_output_should(x64: None) -> None:
    l_max = 2
    draw = np.random.default_rng(1)
    turn = -Rotation.random(rng=draw).as_matrix()
    points = draw.standard_normal((30, 3))
    before, after = (
        np.asarray(e3nn.spherical_harmonics(e3nn.Irreps.spherical_harmonics(l_max), jnp.asarray(x), True).array)
        for x in (points, points @ turn.T)
    )
    turn_in = np.linalg.lstsq(before, after, rcond=None)[0].T
    features = draw.standard_normal((9, ATOMS, CHANNELS))
    element = np.zeros(ATOMS, int)
    counts = [sum(path_counts(l_max, 3, l_out)) for l_out in (0, 1, 2)]
    weights = [jnp.asarray(draw.standard_normal((1, count, CHANNELS))) for count in counts]
    turned = contract(jnp.asarray(np.einsum("xy,yac->xac", turn_in, features)), weights, element, l_max, 3)
    straight = contract(jnp.asarray(features), weights, element, l_max, 3)
    for l_out, (after_turn, before_turn) in enumerate(zip(turned, straight, strict=True)):
        of_l = turn_in[l_out**2 : (l_out + 1) ** 2, l_out**2 : (l_out + 1) ** 2]
        expected = np.einsum("xy,yac->xac", of_l, before_turn)
        np.testing.assert_allclose(after_turn, expected, atol=1e-12 * np.abs(expected).max())
        assert np.abs(expected).min() > 1e-6


def test_only_independent_paths_are_evaluated() -> None:
    how = plan(3, 3, 1)
    assert [len(mixing) for mixing in how.mixing] == [13, 16]
    assert [factors.shape for factors in how.factors] == [(1, 1 + 3), (2, 16 + 35), (3, 77 + 278)]
