"""Pair functions come back from energies alone, with honest uncertainties; on real labels they give real forces."""

import dataclasses

import jax
import numpy as np
import pytest
from water_pairs import LOW

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load, save
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.training.finetune import finetune
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.closed_form import spread
from jaxmlip.training.strategies.pair_difference import PairDifference, PairPosterior

MODEL = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(4,))
STRATEGY = PairDifference(cutoffs=(4.0,))

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


@pytest.fixture(scope="module")
def foundation() -> EquivariantPotential:
    """Untrained: with low-fidelity labels of the same structures its errors are taken out of what is learnt."""
    return MODEL.build((1, 8), average_neighbors=8.0, references=np.asarray(LOW.references), scale=1e-3)


@pytest.fixture(scope="module")
def problem(foundation, low, high) -> TrainingProblem:
    return STRATEGY.problem(foundation, high[:24], validation=high[24:], low=low, labels="energy")


@pytest.fixture(scope="module")
def posterior(problem) -> PairPosterior:
    return STRATEGY.posterior(problem)


def difference(posterior: PairPosterior, foundation, frame: Frame) -> np.ndarray:
    """Predicted change of the forces."""
    whole, part = (predict(p, [frame.atoms])[0].forces for p in (posterior.potential(), foundation))
    return whole - part


def test_forces_come_back_from_energies(posterior, foundation, low, high):
    """Both waters are made of pairs; 24 energies suffice for most of the force difference."""
    wanted = [h.forces - w.forces for h, w in zip(high[24:], low[24:], strict=True)]
    error = [difference(posterior, foundation, h) - w for h, w in zip(high[24:], wanted, strict=True)]
    assert np.sqrt(np.mean(np.concatenate(error) ** 2)) < 0.3 * np.sqrt(np.mean(np.concatenate(wanted) ** 2))


def test_deviations_of_forces_cover_their_errors(posterior, foundation, low, high):
    scores = []
    ensemble = posterior.ensemble(30)
    for h, w in zip(high[24:28], low[24:28], strict=True):
        _, deviation = spread(ensemble, h.atoms)
        scores.append((difference(posterior, foundation, h) - (h.forces - w.forces)) / deviation)
    assert 0.3 < np.sqrt(np.mean(np.concatenate(scores) ** 2)) < 3.0


def test_energies_are_those_of_the_deployed_potential(posterior, problem, high):
    mean, deviation = posterior.energies(problem.validation)
    deployed = predict(posterior.potential(), [frame.atoms for frame in high[24:]])
    references = [problem.potential.references[frame.atoms.numbers].sum() for frame in high[24:]]
    np.testing.assert_allclose(mean + references, [frame.energy for frame in deployed], atol=2e-3)
    assert (deviation > 0).all()


def test_forces_have_no_part(foundation, low, high, posterior):
    """Absent or absurd: the same potential, bit for bit."""
    expected = jax.tree.leaves(posterior.potential())
    for value in (np.nan, 1e9):
        frames = [dataclasses.replace(f, forces=np.full_like(f.forces, value)) for f in high]
        problem = STRATEGY.problem(foundation, frames[:24], validation=frames[24:], low=low, labels="energy")
        for one, other in zip(jax.tree.leaves(STRATEGY.posterior(problem).potential()), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_finetune_and_files(foundation, low, high, tmp_path):
    lifted = finetune(foundation, high, strategy=STRATEGY, labels="energy", low=low, progress=False)
    save(lifted, tmp_path / "lifted.jaxmlip")
    for one, other in zip(jax.tree.leaves(load(tmp_path / "lifted.jaxmlip")), jax.tree.leaves(lifted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_ranges_are_refused(problem):
    with pytest.raises(ValueError, match=r"cutoff beyond 0.7 Å"):
        PairDifference(cutoffs=(0.5,)).posterior(problem)


def test_real_labels(ice_data):
    """MACE-MP-0 to MACE-OFF23 from 100 energies: forces of bulk ice far below the 541 meV/Å between the two."""

    def frames(file: str, kind: str, index: str) -> list[Frame]:
        return read_frames(ice_data / file, energy_key=f"{kind}_energy", forces_key=f"{kind}_forces", index=index)

    file = "clusters_5.0A.extxyz"
    low, high = frames(file, "mp0", ":100"), frames(file, "off23", ":100")
    untrained = MODEL.build((1, 8), average_neighbors=8.0, scale=1e-3)
    strategy = PairDifference(cutoffs=(5.0,))
    problem = strategy.problem(untrained, high, validation=high[:1], low=low, labels="energy")
    lifted = strategy.posterior(problem).potential()
    wanted = [
        h.forces - w.forces
        for h, w in zip(frames("bulk.extxyz", "off23", ":2"), frames("bulk.extxyz", "mp0", ":2"), strict=True)
    ]
    atoms = [frame.atoms for frame in frames("bulk.extxyz", "off23", ":2")]
    got = [a.forces - b.forces for a, b in zip(predict(lifted, atoms), predict(untrained, atoms), strict=True)]
    assert np.sqrt(np.mean((np.concatenate(got) - np.concatenate(wanted)) ** 2)) < 0.12
