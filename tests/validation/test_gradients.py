"""Derivatives of averages against exact ones, against each other, and against simulations of other potentials."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from lowering import accelerators_student, check_lowered
from made_runs import as_run
from simple_potentials import SquaredDisplacement, Wells

from jaxmlip.observables.estimate import Status
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import PotentialEnergy, Temperature
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import KB
from jaxmlip.validation.averages import frame_states
from jaxmlip.validation.frame_gradients import sums_of_gradients
from jaxmlip.validation.gradients import _derivative_of_mean, gradient, mean_of_frames

ATOMS, CENTRE, STIFFNESS, KELVIN = 4, 5.0, 0.5, 300.0
KT = KB * KELVIN
ALONG_K = {"k": np.float32(1.0), "centres": np.zeros((ATOMS, 3), np.float32)}


def wells(stiffness: float = STIFFNESS, dtype: type = np.float32) -> Wells:
    centres = np.full((ATOMS, 3), CENTRE, dtype)
    return Wells({"k": np.asarray(stiffness, dtype), "centres": centres})


@pytest.fixture(scope="module")
def run() -> Run:
    """Independent frames of the wells."""
    rng = np.random.default_rng(0)
    x = CENTRE + rng.normal(size=(8, 100, ATOMS, 3)) * np.sqrt(KT / STIFFNESS)
    temperatures = rng.normal(KELVIN, 30.0, size=x.shape[:2])
    return as_run(x, np.full(ATOMS, 18), 10.0 * np.eye(3), temperature=temperatures)


@pytest.mark.physics
@pytest.mark.parametrize("estimator", ["covariance", pytest.param("reweighting", marks=pytest.mark.slow), "forward"])
def test_wells(run: Run, estimator: Any, agrees) -> None:
    """d⟨x²⟩/dk = −kT/k², and nothing for ⟨U⟩, where ⟨∂U/∂k⟩ and the covariance cancel."""
    options = {"temperature_K": KELVIN, "estimator": estimator}
    options |= {"directions": [ALONG_K]} if estimator == "forward" else {}
    for observable, known in ((SquaredDisplacement(), -KT / STIFFNESS**2), (PotentialEnergy(), 0.0)):
        found = gradient(run, wells(), observable, **options)
        value, error = (each if estimator == "forward" else each["k"] for each in (found.value, found.error))
        agrees(f"wells: d<{observable.name}>/dk, {estimator}", np.squeeze(value), np.squeeze(error), known)
        assert found.status in (Status.OK, Status.SLOW_MOTION)


@pytest.mark.slow
@pytest.mark.parametrize("observable", [SquaredDisplacement(directions=True), PotentialEnergy()])
def test_reweighting_is_covariance_at_the_reference(observable: Observable, run: Run, x64: None) -> None:
    """To 1e-10: two ways, one by differentiating weights, one by a sum over frames."""
    run = dataclasses.replace(run, positions=run.positions.astype(np.float64))
    options = {"temperature_K": KELVIN, "loss": lambda mean: jnp.sin(3.0 * mean).sum()}
    one = gradient(run, wells(dtype=np.float64), observable, **options).value
    other = gradient(run, wells(dtype=np.float64), observable, estimator="reweighting", **options).value
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * scale)


def test_reweighting_away_from_the_reference(run: Run) -> None:
    """d⟨x²⟩/dk at k = 0.55 from frames of k = 0.5; at k = 2 they do not tell, and that is said."""
    options = {"temperature_K": KELVIN, "estimator": "reweighting", "reference": wells()}
    found = gradient(run, wells(0.55), SquaredDisplacement(), **options)
    assert abs(found.along(ALONG_K).sigma_from(-KT / 0.55**2)) < 3
    far = gradient(run, wells(2.0), SquaredDisplacement(), **options)
    assert far.status is Status.POOR_OVERLAP
    assert np.isnan(far.error["k"])


def test_whole_jacobian_is_that_of_single_losses(run: Run) -> None:
    """Of a vector, by a backward pass for each frame; also along a direction, forward and from the groups."""
    jacobian = gradient(run, wells(), SquaredDisplacement(directions=True), temperature_K=KELVIN)
    assert jacobian.value["centres"].shape == (3, ATOMS, 3)
    for direction in range(3):
        one = gradient(
            run,
            wells(),
            SquaredDisplacement(directions=True),
            temperature_K=KELVIN,
            loss=lambda mean, n=direction: mean[n],
        )
        for name in ("k", "centres"):
            np.testing.assert_allclose(jacobian.value[name][direction], one.value[name], rtol=1e-3, atol=2e-6)
            np.testing.assert_allclose(jacobian.error[name][direction], one.error[name], rtol=1e-3, atol=2e-6)
    forward = gradient(
        run,
        wells(),
        SquaredDisplacement(directions=True),
        temperature_K=KELVIN,
        estimator="forward",
        directions=[ALONG_K],
    )
    np.testing.assert_allclose(forward.value[0], jacobian.along(ALONG_K).value, rtol=1e-4)
    np.testing.assert_allclose(forward.error[0], jacobian.along(ALONG_K).error, rtol=0.6)


def test_errors_hold() -> None:
    """Of 80 runs: d⟨x²⟩/dk lies within its 95 % interval in 88 to 99 % of them; all runs share compiled code.

    Errors too small by a third would be found in 9 of 10 such tests, errors twice as large as they should be always.
    """
    rng, inside, runs = np.random.default_rng(1), 0, 80
    for _ in range(runs):
        x = CENTRE + rng.normal(size=(8, 20, ATOMS, 3)) * np.sqrt(KT / STIFFNESS)
        one = as_run(x, np.full(ATOMS, 18), 10.0 * np.eye(3))
        found = gradient(one, wells(), SquaredDisplacement(), temperature_K=KELVIN, equilibration=0).along(ALONG_K)
        low, high = dataclasses.replace(found, status=Status.OK).interval(0.95)
        inside += bool(low <= -KT / STIFFNESS**2 <= high)
    assert 0.88 <= inside / runs <= 0.99


def test_mean_of_frames_is_for_users_to_jit_and_map(run: Run) -> None:
    """Over stacked potentials, its value and gradient are those of single ones."""
    frames = frame_states(run, potential=wells())

    @jax.jit
    def slope(k: Any) -> Any:
        potential = wells()
        return jax.value_and_grad(
            lambda k: mean_of_frames(
                potential.replace(params=potential.params | {"k": k}), SquaredDisplacement(), frames, KELVIN, wells()
            )
        )(k)

    stiffness = jnp.asarray([0.5, 0.52])
    values, slopes = jax.jit(jax.vmap(slope))(stiffness)
    for n, k in enumerate(stiffness):
        np.testing.assert_allclose((values[n], slopes[n]), slope(k), rtol=1e-4)
    assert float(values[0]) == pytest.approx(float(np.mean((run.positions - CENTRE) ** 2)), rel=1e-5)


def test_refuses_what_cannot_be_given(run: Run) -> None:
    here: dict[str, Any] = {"temperature_K": KELVIN}
    with pytest.raises(ValueError, match="covariance, reweighting or forward, not 'adjoint'"):
        gradient(run, wells(), SquaredDisplacement(), estimator="adjoint", **here)
    with pytest.raises(ValueError, match="which needs at least one"):
        gradient(run, wells(), SquaredDisplacement(), estimator="forward", **here)
    with pytest.raises(ValueError, match="belongs to the reweighting estimator"):
        gradient(run, wells(), SquaredDisplacement(), reference=wells(), **here)
    with pytest.raises(ValueError, match="A loss is one number"):
        gradient(run, wells(), SquaredDisplacement(directions=True), loss=lambda mean: mean, **here)
    with pytest.raises(ValueError, match="no momenta"):
        gradient(run, wells(), dataclasses.replace(Momentum()), **here)
    short = as_run(run.positions[:, :1], run.numbers, 10.0 * np.eye(3))
    with pytest.raises(ValueError, match="run longer, or more replicas"):
        gradient(short, wells(), SquaredDisplacement(), **here)


class Momentum(Temperature):
    """A temperature that no run has recorded."""

    recorded = ""


def test_same_shapes_share_one_program(run: Run) -> None:
    """Of another potential, and of a loss that is the same function."""
    options = {"temperature_K": KELVIN, "estimator": "reweighting"}
    gradient(run, wells(), SquaredDisplacement(directions=True), loss=jnp.sum, **options)
    compiled: Any = _derivative_of_mean
    before = compiled._cache_size()
    gradient(run, wells(0.6), SquaredDisplacement(directions=True), loss=jnp.sum, **options)
    assert compiled._cache_size() == before


@pytest.mark.slow
def test_lowers_for_accelerators() -> None:
    """The gradient of a reweighted average, and the sums of the covariance, of a network's parameters."""
    atoms = bulk("OH", "rocksalt", a=3.6, cubic=True)
    draw = np.random.default_rng(0)
    positions = atoms.positions + 0.1 * draw.standard_normal((2, 3, len(atoms), 3))
    student, rdf = accelerators_student(l_max=0), RDF("O", "O", r_max=1.7, bins=4, smearing=0.1)
    frames = frame_states(as_run(positions, atoms.numbers, atoms.cell.array), potential=student)

    def loss(params: Any, frames: FrameState) -> Any:
        return (mean_of_frames(student.replace(params=params), rdf, frames, KELVIN, student) ** 2).sum()

    check_lowered(jax.jit(jax.grad(loss)), student.params, frames)
    check_lowered(sums_of_gradients, student, frames, np.ones((1, 2, 3), np.float32))
