"""The layers of the student's network on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.equivariant_layers import FEW_ELEMENTS, ByElement

ATOMS, CHANNELS = 7, 3


@pytest.mark.parametrize("elements", [2, FEW_ELEMENTS + 3])
def test_matrices_of_each_atoms_element(elements: int, x64: None) -> None:
    """With few elements and with many, values and both derivatives are those of one matrix product an atom."""
    draw = np.random.default_rng(0)
    weights = tuple(jnp.asarray(draw.standard_normal((CHANNELS, elements, CHANNELS))) for _ in range(2))
    features = jnp.asarray(draw.standard_normal((9, ATOMS, CHANNELS)))
    element = draw.integers(elements, size=ATOMS)

    def ours(weights: tuple, features: jax.Array) -> jax.Array:
        return ByElement(weights)(features, element)

    def one_by_one(weights: tuple, features: jax.Array) -> jax.Array:
        rows = [
            features[ell**2 : (ell + 1) ** 2, atom] @ weights[ell][:, element[atom]] / (CHANNELS * elements) ** 0.5
            for ell in range(2)
            for atom in range(ATOMS)
        ]
        return jnp.concatenate([jnp.stack(rows[:ATOMS], axis=1), jnp.stack(rows[ATOMS:], axis=1)])

    found, pull = jax.vjp(ours, weights, features)
    known, its_pull = jax.vjp(one_by_one, weights, features)
    assert found.shape == (4, ATOMS, CHANNELS)
    np.testing.assert_allclose(found, known, atol=1e-12)
    cotangent = jnp.asarray(draw.standard_normal(found.shape))
    for one, other in zip(jax.tree.leaves(pull(cotangent)), jax.tree.leaves(its_pull(cotangent)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
