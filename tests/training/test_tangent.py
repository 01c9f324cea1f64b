"""Closed-form fine-tuning equals explicit regression on the network's derivatives, and no force has a part in it."""

import dataclasses

import jax
import numpy as np
import pytest
from water_pairs import LOW

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.batches import make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.training.distill import distillation_problem
from jaxmlip.training.finetune import finetune
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.closed_form import spread, without_errors
from jaxmlip.training.strategies.tangent import TangentKernel, TangentPosterior, tangent_posterior
from jaxmlip.training.trainer import train

MODEL = Equivariant(channels=4, l_max=1, correlation=2, layers=1, cutoff=4.0, radial_mlp=(16,))
SETTINGS = TrainingSettings(epochs=10, batch_size=4, learning_rate=0.02, ema_decay=0.95)

pytestmark = pytest.mark.filterwarnings("ignore:The compositions of the frames")


@pytest.fixture(scope="module")
def foundation(low) -> EquivariantPotential:
    problem = distillation_problem(MODEL, low[:24], low[24:], LOW.references, settings=SETTINGS)
    potential = train(problem, SETTINGS, progress=False).potential
    assert isinstance(potential, EquivariantPotential)
    return potential


@pytest.fixture(scope="module")
def problem(foundation, high) -> TrainingProblem:
    return TangentKernel().problem(foundation, high[:24], validation=high[24:], labels="energy")


@pytest.fixture(scope="module")
def posterior(problem) -> TangentPosterior:
    return TangentKernel().posterior(problem)


def test_energies_are_those_of_the_deployed_potential(posterior, problem, high):
    """Features times weights on the host, against the network differentiated in forward mode on the device."""
    mean, deviation = posterior.energies(problem.validation)
    deployed = predict(posterior.potential(), [frame.atoms for frame in high[24:]])
    references = [problem.potential.references[frame.atoms.numbers].sum() for frame in high[24:]]
    energies = [frame.energy for frame in deployed]
    np.testing.assert_allclose(mean + references, energies, atol=1e-3)
    assert (deviation > 0).all()


def test_training_energies_are_explained_and_held_out_ones_improve(posterior, problem, foundation, high):
    deployed = posterior.potential()

    def errors(potential, frames: list[Frame]) -> np.ndarray:
        predicted = predict(potential, [frame.atoms for frame in frames])
        error = [(p.energy - f.energy) / len(f.atoms) for p, f in zip(predicted, frames, strict=True)]
        return np.sqrt(np.mean(np.square(error)))

    assert errors(deployed, high[24:]) < 0.7 * errors(problem.potential, high[24:])
    assert errors(deployed, high[:24]) <= errors(deployed, high[24:])


@pytest.mark.slow
def test_a_change_of_the_foundation_is_recovered_from_its_energies(foundation, clusters):
    """Labels of the linearised foundation with known weights: forces come back, and within their uncertainty."""
    rng = np.random.default_rng(0)
    samples = make_samples(predict(foundation, clusters), foundation.cutoff, 0.0, foundation.references)
    at_start = tangent_posterior(foundation, _noisy(samples, rng))
    truth = jax.tree.map(lambda leaf: leaf[0], at_start.ensemble(1, seed=3))
    labelled = make_samples(predict(truth, clusters), foundation.cutoff, 0.0, foundation.references)
    found = tangent_posterior(foundation, labelled[:24])

    atoms = clusters[-1]
    graph = graph_from_atoms(atoms, foundation.cutoff)
    wanted, got, before = (np.asarray(evaluate(p, graph).forces) for p in (truth, found.potential(), foundation))
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.5 * np.sqrt(np.mean((before - wanted) ** 2))


def _noisy(samples, rng):
    """Energies shaken by 0.1 eV for each root of the number of atoms."""
    return [
        dataclasses.replace(s, energy=s.energy + 0.1 * rng.standard_normal() * s.graph.n_atoms**0.5) for s in samples
    ]


def test_the_spread_of_the_ensemble_is_the_deviation(posterior, problem, high):
    _, deviation = posterior.energies(problem.validation[:1])
    energy, forces = spread(posterior.ensemble(200, seed=0), high[24].atoms)
    assert energy == pytest.approx(deviation[0], rel=0.2)
    assert forces.shape == (len(high[24].atoms), 3)
    assert (forces > 0).all()


def test_of_a_trained_potential_the_prior_is_about_its_start(foundation, problem, posterior, high):
    """What remains to be explained is what the foundation lacks, to first order, not what the trained one does."""
    change = jax.tree.map(lambda leaf: 0.3 * leaf, posterior.potential().change)
    trained = problem.potential.with_params(jax.tree.map(np.add, problem.potential.params, change))
    found = tangent_posterior(trained, problem.train, start=problem.potential)
    alone = tangent_posterior(trained, problem.train)
    known = posterior.linear.labels
    assert np.abs(found.linear.labels - known).max() < 0.2 * np.abs(alone.linear.labels - known).max()

    mean, _ = found.energies(problem.validation)
    references = [trained.references[frame.atoms.numbers].sum() for frame in high[24:]]
    energies = [frame.energy for frame in predict(found.potential(), [frame.atoms for frame in high[24:]])]
    np.testing.assert_allclose(mean + references, energies, atol=1e-3)


def test_forces_have_no_part(foundation, high, posterior):
    """Hidden, absent or absurd: the same potential, bit for bit, whichever labels are said to be seen."""

    def with_forces(frame: Frame, value: float) -> Frame:
        return dataclasses.replace(frame, forces=np.full_like(frame.forces, value), stress=np.full((3, 3), value))

    expected = jax.tree.leaves(posterior.potential())
    for value in (np.nan, 1e6):
        frames = [with_forces(frame, value) for frame in high]
        problem = TangentKernel().problem(foundation, frames[:24], validation=frames[24:], labels="energy")
        for one, other in zip(jax.tree.leaves(TangentKernel().posterior(problem).potential()), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_finetune_and_files(foundation, high, tmp_path):
    """The strategy runs where the others do, and what it makes is written and read to the last bit."""
    lifted = finetune(foundation, high, strategy=TangentKernel(), labels="energy", progress=False)
    save(lifted, tmp_path / "lifted.jaxmlip")
    for one, other in zip(jax.tree.leaves(load(tmp_path / "lifted.jaxmlip")), jax.tree.leaves(lifted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_of_the_foundation_are_taken_out(foundation, low, high):
    """Label − foundation becomes the difference of the labels, where there are both."""
    corrected = without_errors(foundation, high[:6], low[3:24])
    predictions = predict(foundation, [frame.atoms for frame in high[:6]])
    for number, (frame, prediction) in enumerate(zip(corrected, predictions, strict=True)):
        wanted = high[number].energy - (low[number] if number >= 3 else prediction).energy
        assert frame.energy - prediction.energy == pytest.approx(wanted, abs=1e-6)


def test_trainable_references_are_refused():
    with pytest.raises(ValueError, match="tangent_kernel trains nothing"):
        TangentKernel(references="trainable")


def test_samples_without_energy_are_refused(foundation, problem):
    broken = [dataclasses.replace(problem.train[0], energy=np.nan), *problem.train[1:]]
    with pytest.raises(ValueError, match="Sample 0 has no energy"):
        tangent_posterior(foundation, broken)
