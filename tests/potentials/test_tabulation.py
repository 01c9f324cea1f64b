"""Tabulated radial functions: the same potential to a stated error."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import Prediction, evaluate
from jaxmlip.potentials.radial import Splines, hermite
from jaxmlip.potentials.tabulation import tabulate
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms, strained
from jaxmlip.systems.ice import ice_ih

CUTOFF = 4.0
MODEL = Equivariant(channels=8, l_max=1, message_l=1, correlation=2, cutoff=CUTOFF, radial_mlp=(32, 32))


@jax.jit
def predict(potential: EquivariantPotential, graph: Graph) -> Prediction:
    return evaluate(potential, graph, stress=True)


def build(**changes) -> EquivariantPotential:
    return MODEL.model_copy(update=changes).build([1, 8], average_neighbors=30.0, scale=0.5, seed=3)


def ice(dtype: type = np.float64) -> Graph:
    atoms = ice_ih(molecules=16, seed=0)
    atoms.rattle(0.1, seed=1)
    return graph_from_atoms(atoms, CUTOFF, dtype=dtype)


SLOW = [pytest.param(tolerance, marks=pytest.mark.slow) for tolerance in (1e-3, 1e-7)]


@pytest.mark.parametrize("tolerance", [1e-5, *SLOW])
def test_error_is_what_was_asked_for(tolerance: float, x64: None) -> None:
    """Energy, forces and stress of ice differ by some tens of the tolerance at most, relative to the largest."""
    potential, graph = build(), ice()
    exact, found = predict(potential, graph), predict(tabulate(potential, tolerance), graph)
    for name in ("energy", "forces", "stress"):
        right, ours = np.asarray(getattr(exact, name)), np.asarray(getattr(found, name))
        error = np.abs(ours - right).max() / np.abs(right).max()
        assert error < 50 * tolerance, name
    assert np.abs(np.asarray(found.forces - exact.forces)).max() > 0


def test_fewer_functions_for_larger_tolerances(x64: None) -> None:
    potential = build()
    ranks = [tabulate(potential, tol).params["interaction_1"]["table"].shape[2] for tol in (1e-2, 1e-4, 1e-6)]
    assert ranks == sorted(set(ranks))
    assert ranks[-1] < 32


def test_forces_and_stress_are_derivatives_of_the_energy(x64: None) -> None:
    potential, graph = tabulate(build(), 1e-4), ice()
    prediction = predict(potential, graph)
    draw = np.random.default_rng(0)
    shift, strain = draw.standard_normal(graph.positions.shape), draw.standard_normal((1, 3, 3))
    strain = 0.5 * (strain + strain.swapaxes(1, 2))
    energy = jax.jit(lambda graph: potential.energy(graph)[0])

    def central(moved) -> float:
        h = 1e-6  # cubic splines have jumps in the second derivative, which show where a length crosses a knot
        return float(energy(moved(h)) - energy(moved(-h))) / (2 * h)

    slope = central(lambda h: graph.replace(positions=graph.positions + h * shift))
    assert slope == pytest.approx(-float(np.sum(prediction.forces * shift)), rel=1e-5)
    slope = central(lambda h: strained(graph, graph.positions, jnp.asarray(h * strain)))
    assert slope == pytest.approx(float(np.sum(prediction.stress * strain) * graph.volume()[0]), rel=1e-5)


@pytest.mark.slow
def test_padding_changes_nothing(x64: None) -> None:
    potential, graph = tabulate(build(), 1e-4), ice()
    single = predict(potential, graph)
    more = batch_graphs([graph, graph], n_atoms=100, n_graphs=3, slots=graph.n_slots + 5)
    batch = predict(potential, more)
    np.testing.assert_allclose(batch.energy[:2], np.repeat(single.energy, 2), rtol=1e-12)
    np.testing.assert_allclose(batch.forces[48:96], single.forces, atol=1e-12)
    assert np.all(np.asarray(batch.forces)[96:] == 0)


@pytest.mark.slow
def test_travels_as_a_file(tmp_path: Path) -> None:
    potential, graph = tabulate(build()), ice(np.float32)
    save(potential, tmp_path / "p.jaxmlip")
    again = load(tmp_path / "p.jaxmlip")
    assert isinstance(again, EquivariantPotential)
    assert again.tabulated
    np.testing.assert_array_equal(predict(again, graph).forces, predict(potential, graph).forces)


def test_splines_are_zero_from_the_cutoff_on_and_smooth_before(x64: None) -> None:
    knots = np.linspace(0.0, 2.0, 9)
    values, slopes = (knots**2 * (2 - knots) ** 3)[:, None], (2 * knots * (2 - knots) ** 3)[:, None]
    slopes -= 3 * (knots**2 * (2 - knots) ** 2)[:, None]
    splines = Splines(jnp.asarray(hermite(values, 0.25 * slopes)), 2.0)
    np.testing.assert_allclose(splines(jnp.asarray(knots)), values, atol=1e-12)
    assert np.all(np.asarray(splines(jnp.asarray([2.0, 2.5, 1e6]))) == 0)
    derivative = jax.vmap(jax.grad(lambda r: splines(r)[0]))
    np.testing.assert_allclose(derivative(jnp.asarray(knots[1:-1]) - 1e-9), slopes[1:-1, 0], atol=1e-6)
    np.testing.assert_allclose(derivative(jnp.asarray(knots[1:-1]) + 1e-9), slopes[1:-1, 0], atol=1e-6)
    assert np.all(np.asarray(derivative(jnp.asarray([2.0, 2.5]))) == 0)


def test_refusals() -> None:
    small = {"l_max": 0, "message_l": 0}
    tables = tabulate(build(**small), 1e-3)
    with pytest.raises(ValueError, match="has tables of its radial functions already"):
        tabulate(tables)
    for changes in ({"distance_transform": "agnesi"}, {"learned_radial_scale": True}):
        with pytest.raises(ValueError, match="depend on the elements"):
            tabulate(build(**small, **changes))
    for tolerance in (0.0, 1.0, -1e-3):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            tabulate(build(**small), tolerance)
    with pytest.raises(ValueError, match="do not reach a tolerance of 1e-15"):
        tabulate(build(**small), 1e-15)
