"""CHGNet is trained by the strategies that train the student: what they set up of it, and that the loss falls.

Setting up compiles next to nothing; a training step of CHGNet takes a minute to compile, so that few are made.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from water_pairs import HIGH, LOW

from jaxmlip.potentials.adapters import LowRank, TrainableReferences
from jaxmlip.potentials.chgnet import CHGNet, CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import Sum
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import distillation_problem
from jaxmlip.training.problem import Trained, TrainingSettings
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.tangent import TangentKernel
from jaxmlip.training.trainer import train

SETTINGS = TrainingSettings(epochs=6, batch_size=4, learning_rate=0.003, huber_delta=0.1)
KEPT: dict[str, Any] = {"references": "keep"}
"""Nothing is predicted to set up a strategy that keeps references, so that nothing is compiled."""

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


@pytest.fixture(scope="module")
def small(clusters: list[Atoms]) -> tuple[list[Frame], list[Frame]]:
    """The five smallest clusters at both levels of theory."""
    chosen = sorted(clusters, key=len)[:5]
    return label(chosen, LOW), label(chosen, HIGH)


@pytest.fixture(scope="module")
def foundation() -> CHGNet:
    return CHGNetModel().build([1, 8], references=LOW.references, scale=0.5, shift=-1.0, seed=3)


def test_fresh_from_an_architecture(small) -> None:
    """Elements of the frames, scale and shift of the labels, and slots for the bond graph."""
    problem = Direct().from_labels(CHGNetModel(), small[1][:4], validation=small[1][4:], settings=SETTINGS)
    new = problem.potential
    assert isinstance(new, CHGNet)
    assert (new.species, new.trained_on, new.heads) == ((1, 8), (), 1)
    assert all(sample.graph.inner > 0 for sample in problem.train)
    forces = np.concatenate([frame.forces.ravel() for frame in small[1][:4]])
    kernel = new.params["params"]["readout_3"]["kernel"]
    # Drawn between ±1/8 and times the scale, the RMS force.
    assert np.abs(kernel).max() <= (most := np.sqrt((forces**2).mean()) / 8) * 1.001
    assert np.abs(kernel).max() > 0.9 * most
    distilled = distillation_problem(CHGNetModel(), small[0][:4], small[0][4:], LOW.references, settings=SETTINGS)
    np.testing.assert_array_equal(distilled.potential.references, LOW.references)


def test_every_strategy_sets_up_what_it_trains(small, foundation: CHGNet) -> None:
    """The foundation, a new one beside it, low-rank factors, references that move, a readout for each fidelity."""
    low, high = small
    given = {"validation": high[4:], "low": low[:4], "settings": SETTINGS}

    def potential(strategy):
        return strategy.problem(foundation, high[:4], **given).potential

    direct = potential(Direct(**KEPT))
    assert isinstance(direct, CHGNet)
    assert not np.array_equal(
        direct.params["params"]["moment"]["kernel"], foundation.params["params"]["moment"]["kernel"]
    )
    assert potential(SingleFidelity(**KEPT)).params is foundation.params
    moved = potential(SingleFidelity(references="trainable", trainable_from="keep"))
    assert isinstance(moved, TrainableReferences)
    assert moved.params["offsets"].shape == (2, 1)
    low_rank = potential(SingleFidelity(moves="low_rank", rank=4, **KEPT))
    assert isinstance(low_rank, LowRank)
    assert low_rank.params["params/readout_0/kernel"]["a"].shape == (64, 4)
    assert low_rank.params["params/atom_convolutions_0/perceptron/second"]["b"].shape == (4, 64)
    both = potential(MultiFidelity(**KEPT, warm_start=False))
    assert isinstance(both, CHGNet)
    assert both.heads == 2
    rates = SingleFidelity(moves="all_but_embedding", **KEPT).problem(foundation, high[:4], **given).rates["params"]
    assert rates["atom_embedding"] == rates["bond_embedding"] == rates["angle_basis"]["frequencies"] == 0
    assert rates["atom_convolutions_0"]["out"] == rates["norm"]["scale"] == 1


@pytest.mark.slow
def test_an_equivariant_difference_to_chgnet(small, foundation: CHGNet) -> None:
    """The labels are what CHGNet lacks, and what is deployed is the sum."""
    student = Equivariant(channels=4, l_max=1, correlation=2, layers=1, cutoff=4.0, radial_mlp=(16,)).build(
        [1, 8], average_neighbors=9.0, references=LOW.references
    )
    strategy = Differential(baseline="teacher", **KEPT)
    high = small[1]
    problem = strategy.problem(student, high[:4], validation=high[4:], teacher=foundation, settings=SETTINGS)
    predicted = predict(foundation, [frame.atoms for frame in high[:4]])
    for sample, frame, said in zip(problem.train, high, predicted, strict=False):
        np.testing.assert_allclose(sample.forces, frame.forces - said.forces, atol=2e-3)
    deployed = strategy.deploy(Trained(problem.potential, [], 0, problem))
    assert isinstance(deployed, Sum)
    assert deployed.inner_cutoff == 3.0
    (whole,) = predict(deployed, [high[0].atoms])
    (part,) = predict(problem.potential, [high[0].atoms])
    np.testing.assert_allclose(whole.forces, predicted[0].forces + part.forces, atol=2e-3)


@pytest.mark.slow
def test_training_lowers_the_loss_with_a_readout_for_each_fidelity(small, foundation: CHGNet) -> None:
    """And the readout that is deployed predicts what it did in training."""
    low, high = small
    strategy = MultiFidelity()
    problem = strategy.problem(foundation, high[:4], validation=high[4:], low=low[:4], settings=SETTINGS)
    trained = train(problem, SETTINGS, progress=False)
    losses = [record["validation_loss"] for record in trained.history]
    assert min(losses) < 0.5 * losses[0]
    deployed = strategy.deploy(trained)
    assert isinstance(deployed, CHGNet)
    assert deployed.heads == 1
    assert deployed.trained_on == ("energy", "forces")
    (said,) = predict(deployed, [high[4].atoms])
    off = 1e3 * np.sqrt(((said.forces - high[4].forces) ** 2).mean())
    best = next(record for record in trained.history if record["epoch"] == trained.best_epoch)
    assert off == pytest.approx(best["validation_force_rmse_meV_A"], rel=1e-3)


@pytest.mark.slow
def test_the_tangent_of_a_chgnet_learns_from_energies(small, foundation: CHGNet) -> None:
    """It is linear in what moves, bond graph included, and no worse than the foundation on what it has seen."""
    high = [dataclasses.replace(frame) for frame in small[1]]
    strategy = TangentKernel()
    problem = strategy.problem(foundation, high[:4], validation=high[4:], labels="energy", settings=SETTINGS)
    deployed = strategy.deploy(strategy.solve(problem, SETTINGS, progress=False))
    assert deployed.inner_cutoff == 3.0
    structures = [frame.atoms for frame in high[:4]]
    errors = [
        np.std([p.energy - f.energy for p, f in zip(predict(each, structures), high, strict=False)])
        for each in (foundation, deployed)
    ]
    assert np.isfinite(errors).all()
    assert errors[1] < errors[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(deployed.params))
