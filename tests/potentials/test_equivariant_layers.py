"""The layers of the student's network on their own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.equivariant_layers import ByElement, Messages
from jaxmlip.potentials.present_elements import FEW_ELEMENTS

ATOMS, CHANNELS = 7, 3


@pytest.mark.parametrize("elements", [2, FEW_ELEMENTS + 3])
def test_matrices_of_each_atoms_element(elements: int, x64: None) -> None:
    """With few elements and with many, values and both derivatives are those of one matrix product an atom."""
    draw = np.random.default_rng(0)
    weights = tuple(jnp.asarray(draw.standard_normal((CHANNELS, elements, CHANNELS))) for _ in range(2))
    features = jnp.asarray(draw.standard_normal((9, ATOMS, CHANNELS)))
    element = draw.integers(elements, size=ATOMS)

    def ours(weights: tuple, features: jax.Array) -> jax.Array:
        return ByElement(weights, elements)(features, element)

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


def test_maps_of_some_elements_are_normalised_for_all(x64: None) -> None:
    draw = np.random.default_rng(1)
    whole = ByElement((jnp.asarray(draw.standard_normal((CHANNELS, 7, CHANNELS))),), 7)
    features, rows = jnp.asarray(draw.standard_normal((1, ATOMS, CHANNELS))), jnp.asarray([2, 5])
    place = draw.integers(2, size=ATOMS)
    np.testing.assert_allclose(whole.of(rows)(features, place), whole(features, rows[place]), atol=1e-13)


def test_sums_over_own_elements_are_those_over_neighbours(x64: None) -> None:
    """Each atom has elements of its own: values and all derivatives are those of the general form."""
    draw = np.random.default_rng(2)
    slots, own, functions, hidden, l_max = 6, 3, 4, 5, 2

    def real(*shape: int) -> jax.Array:
        return jnp.asarray(draw.standard_normal(shape))

    messages = Messages(
        hidden=(real(functions, hidden),),
        radial=real(hidden, l_max + 1, CHANNELS),
        up=(real(CHANNELS, CHANNELS),),
        mix=tuple(real(1, CHANNELS, CHANNELS) for _ in range(l_max + 1)),
        l_max=l_max,
    )
    tables, element = real(ATOMS, own, CHANNELS), draw.integers(own, size=(ATOMS, slots))
    given = messages, tables, real(ATOMS, slots, functions), real(ATOMS, slots, (l_max + 1) ** 2)

    def fast(messages: Messages, tables: jax.Array, radial: jax.Array, harmonics: jax.Array) -> jax.Array:
        return messages.of_own_elements(tables, radial, harmonics, jnp.asarray(element))

    def plain(messages: Messages, tables: jax.Array, radial: jax.Array, harmonics: jax.Array) -> jax.Array:
        sources = jnp.take_along_axis(tables, element[:, :, None], axis=1)
        return messages(sources[:, :, None], radial, harmonics)

    cotangent = real((l_max + 1) ** 2, ATOMS, CHANNELS)

    @functools.partial(jax.jit, static_argnums=0)
    def with_derivatives(form: Callable, *given: Any) -> Any:
        values, pull = jax.vjp(form, *given)
        return values, pull(cotangent)

    found, known = with_derivatives(fast, *given), with_derivatives(plain, *given)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
