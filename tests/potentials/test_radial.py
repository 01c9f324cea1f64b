"""The radial functions against their closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.radial import SILU_SCALE, RadialNetwork, bessel, envelope, radial_features

CUTOFF = 4.5


def test_bessel_functions_are_orthonormal(x64: None) -> None:
    r, weights = np.polynomial.legendre.leggauss(80)
    r, weights = CUTOFF / 2 * (r + 1), CUTOFF / 2 * weights
    values = np.asarray(bessel(jnp.asarray(r), 6, CUTOFF))
    overlap = np.einsum("r,rm,rn->mn", weights * r**2, values, values)
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(values[:, 2], np.sqrt(2 / CUTOFF) * np.sin(3 * np.pi * r / CUTOFF) / r, rtol=1e-12)


@pytest.mark.parametrize("power", [2, 5, 6])
def test_envelope_is_the_published_polynomial(power: int, x64: None) -> None:
    u = np.linspace(0.0, 1.0, 50)
    p = power
    published = 1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
    np.testing.assert_allclose(envelope(jnp.asarray(u * CUTOFF), CUTOFF, power), published, atol=1e-13)


def test_envelope_is_smooth_at_the_cutoff(x64: None) -> None:
    def value(r: jax.Array) -> jax.Array:
        return envelope(r, CUTOFF, 5)

    first = jax.grad(value)
    second = jax.grad(first)
    third = jax.grad(second)
    r = jnp.asarray([0.0, CUTOFF * (1 - 1e-9), CUTOFF, 1.001 * CUTOFF, 1e3])
    derivatives = jax.jit(jax.vmap(lambda r: jnp.stack([value(r), first(r), second(r), third(r)])))(r)
    assert derivatives[0, 0] == 1.0
    assert not np.asarray(derivatives[2:, :3]).any()
    # Continuity ends at the third derivative, −p (p + 1) (p + 2) / cutoff³.
    assert float(derivatives[1, 3]) == pytest.approx(-5 * 6 * 7 / CUTOFF**3, rel=1e-6)
    assert np.abs(derivatives[1, :3]).max() < 1e-6


def test_envelope_keeps_its_digits_in_single_precision() -> None:
    r = np.float32(CUTOFF) * np.float32(1 - 1e-3)
    u = float(r) / CUTOFF
    exact = (1 - u) ** 3 * (1 + 3 * u + 6 * u**2 + 10 * u**3 + 15 * u**4)
    # The rounding of 1 − u alone costs 3 · 6e-8 / 1e-3; the expanded polynomial would be wrong by 1e-6 / 3e-8.
    assert float(envelope(jnp.asarray(r), CUTOFF, 5)) == pytest.approx(exact, rel=5e-4)


def test_radial_network_is_e3nns_and_maps_zero_to_zero(x64: None) -> None:
    network = RadialNetwork(3, (6, 4))
    draw = np.random.default_rng(0)
    first, second = draw.standard_normal((3, 6)), draw.standard_normal((6, 4))
    params = {"params": {"weight_0": jnp.asarray(first), "weight_1": jnp.asarray(second)}}
    inputs = draw.standard_normal((10, 3))
    hidden = inputs
    for weight in (first, second):
        x = hidden @ weight / np.sqrt(len(weight))
        hidden = SILU_SCALE * x / (1 + np.exp(-x))
    weights: Any = network.apply(params)
    np.testing.assert_allclose(np.asarray(radial_features(weights, jnp.asarray(inputs))), hidden, atol=1e-14)
    assert not np.asarray(radial_features(weights, jnp.zeros((1, 3)))).any()


def test_activation_keeps_the_second_moment() -> None:
    x, weights = np.polynomial.hermite_e.hermegauss(60)
    second_moment = np.sum(weights * (SILU_SCALE * x / (1 + np.exp(-x))) ** 2) / np.sqrt(2 * np.pi)
    assert second_moment == pytest.approx(1.0, abs=4e-3)
