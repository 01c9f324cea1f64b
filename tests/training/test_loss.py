"""The loss: closed forms, absent labels, gradients, padding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from water_pairs import HIGH, LOW, water_pairs

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.batches import Batch, make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training import loss as loss_module
from jaxmlip.training.loss import LabelErrors, Terms, Weights, loss
from jaxmlip.training.objective import Objective

compiled = jax.jit(loss, static_argnames=("terms", "kind"))
"""Few shapes and few terms: most tests share a compilation."""

gradient = jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True), static_argnames=("terms", "kind"))

NO_STRESS = Terms(True, True, False)
ALL = Terms(True, True, True)
KINDS = ("huber", "mse")
WEIGHTS = Weights(energy=2.0, forces=3.0, stress=5.0, huber_delta=0.1)


def batch_of(frames: list[Frame], *, head: int = 0, weight: float = 1.0, dtype: type = np.float32) -> Batch:
    samples = make_samples(frames, 4.0, 0.0, HIGH.references, head, weight=weight, dtype=dtype)
    return make_batches(samples, len(samples))[0]


@pytest.fixture(scope="module")
def solids(clusters) -> list[Frame]:
    """Two clusters in boxes, with stresses of the high level."""
    boxed = [atoms.copy() for atoms in clusters[:2]]
    for atoms in boxed:
        atoms.set_cell([12.0, 11.0, 10.0])
        atoms.set_pbc(True)
        atoms.wrap()
    return predict(HIGH, boxed, stress=True)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form(high, low, solids, kind):
    """Against numpy on the frames themselves, for a periodic and a finite set."""
    for frames in (high[:3], solids):
        terms = ALL if frames is solids else NO_STRESS
        mine = predict(LOW, [f.atoms for f in frames], stress=frames is solids)
        # Energies relative to references: the labels' are HIGH's, the prediction's LOW's.
        relative = [
            ((m.energy - LOW.references[m.atoms.numbers].sum()) - (f.energy - HIGH.references[f.atoms.numbers].sum()))
            / len(f.atoms)
            for m, f in zip(mine, frames, strict=True)
        ]
        errors = {"energy": np.array(relative)}
        errors["forces"] = np.concatenate([(m.forces - f.forces).ravel() for m, f in zip(mine, frames, strict=True)])
        if terms.stress:
            errors["stress"] = np.array([m.stress - f.stress for m, f in zip(mine, frames, strict=True)]).ravel()

        def penalty(e):
            return e**2 if kind == "mse" else np.where(abs(e) < 0.1, 0.5 * e**2, 0.1 * (abs(e) - 0.05))

        expected = sum(getattr(WEIGHTS, name) * penalty(e).mean() for name, e in errors.items())
        value, sums = compiled(LOW, batch_of(frames), WEIGHTS, terms=terms, kind=kind)
        np.testing.assert_allclose(value, expected, rtol=2e-5)
        for name, e in errors.items():
            np.testing.assert_allclose(sums[name].squared.sum() / sums[name].count.sum(), (e**2).mean(), rtol=2e-4)


def test_gradient_against_finite_differences(x64, solids):
    """Every parameter's derivative of energy, force and stress terms together, in float64."""
    potential = water_pairs(dtype=np.float64)
    batch = batch_of(solids, dtype=np.float64)

    @jax.jit
    def both(params):
        return jnp.stack([loss(potential.replace(params=params), batch, WEIGHTS, terms=ALL, kind=k)[0] for k in KINDS])

    exact = jax.jit(jax.jacrev(both))(potential.params)
    step = 1e-6
    for name, leaf in potential.params.items():
        for index in np.ndindex(leaf.shape):
            up, down = (both({**potential.params, name: jnp.asarray(leaf).at[index].add(s)}) for s in (step, -step))
            np.testing.assert_allclose(
                exact[name][(slice(None), *index)], (up - down) / (2 * step), rtol=2e-5, atol=1e-8
            )


@pytest.fixture
def small_student(x64, solids) -> tuple[Any, Batch]:
    """A student of two heads with every kind of layer, in float64, and a batch of two solids, one of each fidelity."""
    model = Equivariant(channels=2, l_max=1, message_l=1, correlation=2, cutoff=3.5, radial_mlp=(4,), readout_hidden=2)
    potential = model.build([1, 8], average_neighbors=9.0, scale=0.7, heads=2, seed=1)
    potential = potential.replace(params=jax.tree.map(lambda leaf: leaf.astype(np.float64), potential.params))
    samples = [
        *make_samples(solids[:1], 3.5, 0.0, HIGH.references, 0, dtype=np.float64),
        *make_samples(solids[1:], 3.5, 0.0, HIGH.references, 1, dtype=np.float64),
    ]
    return potential, make_batches(samples, 2)[0]


def plainly(potential: Any, head: Any, graph: Any, stress: bool, magmoms: bool) -> Any:
    """`predicted` without its custom rule."""
    return evaluate(loss_module.Headed(potential, head), graph, stress=stress, magmoms=magmoms)


@pytest.mark.slow
def test_gradient_equals_plain_automatic_differentiation(small_student, monkeypatch):
    """One forward derivative under reverse mode gives the numbers of reverse mode over reverse mode."""
    potential, batch = small_student

    def slope() -> dict:
        def value(params):
            return loss(potential.replace(params=params), batch, WEIGHTS, terms=ALL, kind="mse")[0]

        return jax.jit(jax.grad(value))(potential.params)

    ours = slope()
    monkeypatch.setattr(loss_module, "predicted", plainly)
    for mine, right in zip(jax.tree.leaves(ours), jax.tree.leaves(slope()), strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-12 * max(1.0, float(jnp.abs(right).max())))


@pytest.fixture(params=["pairs", pytest.param("student", marks=pytest.mark.slow)])
def any_potential(request, solids) -> tuple[Any, Batch]:
    """A potential in float64, and a batch; the student takes minutes to compile plainly."""
    if request.param == "student":
        return request.getfixturevalue("small_student")
    request.getfixturevalue("x64")
    potential = water_pairs(dtype=np.float64)
    potential = potential.replace(params=jax.tree.map(jnp.asarray, potential.params))
    return potential, batch_of(solids, dtype=np.float64)


def test_hessian_vector_products_equal_reverse_over_reverse(any_potential, monkeypatch):
    """`jvp` of `grad` through the custom rule, against `grad` of `grad · v` without it."""
    potential, batch = any_potential
    draw = np.random.default_rng(2)
    along = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), potential.params)

    def value(params: Any) -> Any:
        return loss(potential.replace(params=params), batch, WEIGHTS, terms=ALL, kind="mse")[0]

    ours = jax.jit(lambda p: jax.jvp(jax.grad(value), (p,), (along,))[1])(potential.params)
    monkeypatch.setattr(loss_module, "predicted", plainly)

    def slope_along(params: Any) -> Any:
        slope = jax.grad(value)(params)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(along), strict=True))

    plain = jax.jit(jax.grad(slope_along))(potential.params)
    for mine, right in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-11 * max(1.0, float(jnp.abs(right).max())))


def test_gradient_by_positions_and_cells(any_potential, monkeypatch):
    """It is the one of plain automatic differentiation: no part of it is silently zero."""
    potential, batch = any_potential

    def value(at: tuple[Any, Any]) -> Any:
        graph = batch.graph.replace(positions=at[0], cell=at[1])
        return loss(potential, batch.replace(graph=graph), WEIGHTS, terms=ALL, kind="mse")[0]

    here = jnp.asarray(batch.graph.positions), jnp.asarray(batch.graph.cell)
    ours = jax.jit(jax.grad(value))(here)
    monkeypatch.setattr(loss_module, "predicted", plainly)
    for mine, right in zip(ours, jax.jit(jax.grad(value))(here), strict=True):
        assert float(jnp.abs(right).max()) > 0
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-11 * float(jnp.abs(right).max()))


def test_absent_labels_are_as_if_removed(high):
    """NaN in a frame's labels gives the sums, and a finite gradient, of the set without these labels."""
    no_energy = dataclasses.replace(high[0], energy=float("nan"))
    no_forces = dataclasses.replace(high[1], forces=np.full_like(high[1].forces, np.nan))
    one_component = high[2].forces.copy()
    one_component[4, 1] = np.nan
    partly = dataclasses.replace(high[2], forces=one_component)
    (whole, sums), slope = gradient(LOW, batch_of([no_energy, no_forces, partly]), WEIGHTS, terms=NO_STRESS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope.params))

    mine = predict(LOW, [frame.atoms for frame in high[:3]])
    energies = [
        (m.energy - f.energy - (LOW.references - HIGH.references)[m.atoms.numbers].sum()) / len(m.atoms)
        for m, f in zip(mine, high[:3], strict=True)
    ]
    forces = [m.forces - f.forces for m, f in zip(mine, [no_energy, high[1], partly], strict=True)]
    assert sums["energy"].count.sum() == 2
    np.testing.assert_allclose(sums["energy"].squared.sum(), energies[1] ** 2 + energies[2] ** 2, rtol=1e-3)
    assert sums["forces"].count.sum() == forces[0].size + forces[2].size - 1
    np.testing.assert_allclose(
        sums["forces"].squared.sum(), np.sum(forces[0] ** 2) + np.nansum(forces[2] ** 2), rtol=1e-5
    )
    means = {name: term.loss.sum() / term.count.sum() for name, term in sums.items()}
    np.testing.assert_allclose(whole, 2 * means["energy"] + 3 * means["forces"], rtol=1e-6)


def test_no_label_at_all_is_no_loss(high):
    blank = [dataclasses.replace(f, energy=float("nan"), forces=np.full_like(f.forces, np.nan)) for f in high[:3]]
    (value, _), slope = gradient(LOW, batch_of(blank), WEIGHTS, terms=NO_STRESS)
    assert value == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slope.params))


def test_finite_stress_label_of_a_cluster_is_ignored(high, solids):
    """Without a volume there is no stress, whatever a file says."""
    claims = dataclasses.replace(high[0], stress=np.zeros((3, 3)))
    value, sums = compiled(LOW, batch_of([claims, solids[0]]), WEIGHTS, terms=ALL)
    assert np.isfinite(value)
    assert sums["stress"].count.sum() == 9


def test_padding_and_batching_change_nothing(high):
    """Sums over any batching of the same samples are the same."""
    samples = make_samples(high[:7], 4.0, 0.0, HIGH.references)

    def summed(batch_size: int) -> dict:
        parts = [
            compiled(LOW, b, WEIGHTS, terms=NO_STRESS)[1] for b in make_batches(samples, batch_size, seed=batch_size)
        ]
        return jax.tree.map(lambda *leaves: float(np.sum(leaves)), *parts)

    three, all_at_once = summed(3), summed(7)
    assert three["forces"].count == all_at_once["forces"].count == 3 * sum(len(f.atoms) for f in high[:7])
    objective = Objective((LabelErrors(WEIGHTS, NO_STRESS),))
    np.testing.assert_allclose(objective.total(three), objective.total(all_at_once), rtol=1e-5)


def test_each_graph_is_judged_by_its_own_head(high, low):
    """A potential with the depths of LOW in one readout and others in the second, on labels of LOW."""
    other = (0.1, 3.0, 0.5)
    both = water_pairs(depth=np.stack([LOW.params["depth"][:, 0], np.array(other, np.float32)], axis=1))
    alone = water_pairs(depth=other)
    for heads in ((0, 0), (0, 1), (1, 0)):
        samples = [make_samples([low[k]], 4.0, 0.0, LOW.references, head)[0] for k, head in enumerate(heads)]
        _, sums = compiled(both, make_batches(samples, 2)[0], WEIGHTS, terms=NO_STRESS)
        wrong = [low[k] for k, head in enumerate(heads) if head == 1]
        expected = [(m.forces - f.forces) for m, f in zip(predict(alone, [f.atoms for f in wrong]), wrong, strict=True)]
        of_graphs = [np.sum(expected.pop(0) ** 2) if head == 1 else 0.0 for head in heads]
        np.testing.assert_allclose(sums["forces"].squared, of_graphs, rtol=1e-4, atol=1e-6)


def test_sample_weight_is_a_factor(high):
    """Of the loss, not of the reported errors."""
    once, plain = compiled(LOW, batch_of(high[:3]), WEIGHTS, terms=NO_STRESS)
    twice, sums = compiled(LOW, batch_of(high[:3], weight=2.0), WEIGHTS, terms=NO_STRESS)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    np.testing.assert_allclose(sums["forces"].squared, plain["forces"].squared)


def test_without_forces_no_gradient_is_taken(high):
    """The program of an energy-only loss has no backward pass, and that of forces no strain."""
    batch = batch_of(high[:3])

    def operations(terms: Terms) -> int:
        return len(str(jax.make_jaxpr(lambda p: loss(p, batch, WEIGHTS, terms=terms)[0])(LOW)).splitlines())

    assert 1.5 * operations(Terms(True, False, False)) < operations(NO_STRESS) < operations(ALL)
