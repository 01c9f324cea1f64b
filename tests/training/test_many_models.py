"""Stacks of models: the numbers of single runs, one compilation, and what cannot be stacked."""

import dataclasses

import jax
import numpy as np
import pytest
from train_here import TERMS, water_problem
from water_pairs import HIGH, LOW, water_pairs

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.systems.batches import make_samples
from jaxmlip.training.distill import distillation_problem
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import Trained, TrainingDiverged, TrainingProblem, TrainingSettings
from jaxmlip.training.step import update as compiled_update
from jaxmlip.training.trainer import train, train_many

SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=0.02, ema_decay=0.9)
DIFFERENT = [
    SETTINGS,
    SETTINGS.model_copy(update={"seed": 1, "learning_rate": 0.005}),
    SETTINGS.model_copy(update={"seed": 2, "forces_weight": 3.0, "clip_norm": 0.5, "weight_decay": 0.1}),
]


def compilations() -> int:
    return compiled_update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def problems(high) -> list[TrainingProblem]:
    """Three starts, of which the last is held and pulled to its start; the second has other references and labels."""
    first = water_problem(high)
    moved = LOW.replace(params=jax.tree.map(lambda leaf: leaf * 1.01, LOW.params), references=HIGH.references + 0.5)
    energies = [dataclasses.replace(sample, energy=sample.energy + 0.1) for sample in first.train]
    held = {"depth": 1.0, "length": np.array([0.0, 0.5, 1.0], np.float32)}
    return [
        first,
        dataclasses.replace(first, potential=moved, train=energies),
        dataclasses.replace(first, rates=held, l2_sp=1.0),
    ]


@pytest.fixture(scope="module")
def alone(problems) -> list[Trained]:
    return [train(problem, settings, progress=False) for problem, settings in zip(problems, DIFFERENT, strict=True)]


def test_in_turns_the_bits_are_those_of_single_runs(problems, alone):
    """On the CPU this is the default, and nothing more is compiled."""
    before = compilations()
    together = train_many(problems, DIFFERENT, progress=False)
    assert compilations() == before
    for one, other in zip(together, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.potential.params, other.potential.params)
        assert one.best_epoch == other.best_epoch
        assert one.problem is other.problem


def test_by_vmap_the_numbers_are_those_of_single_runs(problems, alone):
    """To rounding; compiled once for the number of models, whoever they are."""
    before = compilations()
    seen = []
    together = train_many(
        problems, DIFFERENT, vectorised=True, progress=False, on_epoch=lambda *said: seen.append(said)
    )
    assert compilations() == before + 1
    for one, other in zip(together, alone, strict=True):
        for name, leaf in other.potential.params.items():
            np.testing.assert_allclose(one.potential.params[name], leaf, rtol=1e-5, atol=1e-6)
        losses = [[record["validation_loss"] for record in each.history] for each in (one, other)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        assert one.best_epoch == other.best_epoch
    assert [(model, record["epoch"]) for model, record in seen] == [(m, e) for e in range(4) for m in range(3)]
    np.testing.assert_array_equal(together[2].potential.params["length"][0], LOW.params["length"][0])
    train_many(problems[::-1], DIFFERENT, vectorised=True, progress=False)
    assert compilations() == before + 1


@pytest.mark.slow
def test_networks_are_stacked_alike(high):
    """The student itself, of two seeds: one step's gradients under vmap are those of single steps."""
    model = Equivariant(channels=4, l_max=1, correlation=2, radial_mlp=(8,), cutoff=4.0)
    settings = [SETTINGS.model_copy(update={"epochs": 1, "batch_size": 8, "seed": seed}) for seed in (0, 1)]
    given = [distillation_problem(model, high[:8], high[24:], HIGH.references, settings=mine) for mine in settings]
    together = train_many(given, settings, vectorised=True, progress=False)
    for one, problem, mine in zip(together, given, settings, strict=True):
        single = train(problem, mine, progress=False)
        for leaf, other in zip(*map(jax.tree.leaves, (one.potential.params, single.potential.params)), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vectorised", [False, True])
def test_one_that_diverges_does_not_stop_the_others(problems, alone, high, vectorised):
    """An infinite label in the second of three: it is frozen, named, and the other two are as if it were not there."""
    infinite = dataclasses.replace(problems[1].train[7], energy=np.inf)
    broken = dataclasses.replace(
        problems[1],
        train=[*problems[1].train[:7], infinite, *problems[1].train[8:]],
    )
    stack = [problems[0], broken, problems[2]]
    with pytest.warns(
        UserWarning, match=r"Model 1 of 3 has diverged. .* epoch 1 on the batch of .*high\.extxyz, frame 7"
    ):
        together = train_many(stack, DIFFERENT, vectorised=vectorised, progress=False)
    assert [one.diverged is None for one in together] == [True, False, True]
    assert [record["epoch"] for record in together[1].history] == [0, 1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together[1].potential.params))
    for number in (0, 2):
        for name, leaf in alone[number].potential.params.items():
            np.testing.assert_allclose(together[number].potential.params[name], leaf, rtol=1e-5, atol=1e-6)


def test_exploding_loss_stops(high):
    """Labels that are finite but absurd from some batch on: five such losses in a row, and the first is named."""
    given = water_problem(high)
    absurd = [dataclasses.replace(sample, forces=sample.forces * 1e6) for sample in given.train]
    settings = SETTINGS.model_copy(update={"epochs": 60, "learning_rate": 1e-4, "batch_size": 12, "loss": "mse"})
    good = train(given, settings, progress=False)
    assert good.diverged is None

    class Turning(list):
        """A data set that is replaced after the epochs in which its samples have been read so often."""

        reads = 0

        def __getitem__(self, number):
            type(self).reads += 1
            return (absurd if type(self).reads > 12 * 24 else given.train)[number]

    turned = dataclasses.replace(given, train=Turning(given.train))
    with pytest.raises(
        TrainingDiverged, match=r"exploded, .* 5 times in a row, first in epoch .*high\.extxyz, frame"
    ) as e:
        train(turned, settings, progress=False)
    last = e.value.trained.history[-1]["epoch"]
    assert 10 < last < 20
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(e.value.trained.potential.params))


def test_a_single_bad_batch_does_not_stop(high):
    """One absurd label among many: the loss of one batch in six explodes in every epoch, and training goes on."""
    given = water_problem(high)
    samples = [*given.train]
    samples[3] = dataclasses.replace(samples[3], forces=samples[3].forces * 1e6)
    settings = SETTINGS.model_copy(update={"epochs": 6, "loss": "mse", "clip_norm": 1e-3})
    assert train(dataclasses.replace(given, train=samples), settings, progress=False).diverged is None


def test_what_cannot_be_stacked(problems, high):
    """One sentence that says what differs."""
    first = problems[0]
    two_heads = dataclasses.replace(first, potential=water_pairs(depth=np.ones((3, 2))))
    fewer = dataclasses.replace(first, train=first.train[:20])
    sparser = dataclasses.replace(first, train=make_samples(high[:24], 2.0, 0.0, HIGH.references))
    students = [
        dataclasses.replace(first, potential=Equivariant(channels=4).build(species, average_neighbors=9.0))
        for species in ((1, 8), (1, 6, 8))
    ]
    blind = dataclasses.replace(first, terms=Terms(True, False, False))
    longer = SETTINGS.model_copy(update={"epochs": 4})
    wrong = {
        r"potentials differ in the shape of .*depth.* \(\(3, 1\) and \(3, 2\)\)": ([first, two_heads], SETTINGS),
        r"they have 6 and 5 training batches in an epoch": ([first, fewer], SETTINGS),
        r"training batches differ in shape \(atoms × neighbours: .* and .*\)": ([first, sparser], SETTINGS),
        r"potentials differ in known \(\(1, 8\) and \(1, 6, 8\)\)": (students, SETTINGS),
        r"potentials differ in kind \(WaterPairs and EquivariantPotential\)": ([first, students[0]], SETTINGS),
        r"losses have different terms \(energy \+ forces and energy\)": ([first, blind], SETTINGS),
        r"Problems 0 and 2 .* settings have epochs 3 and 4": ([first] * 3, [SETTINGS, SETTINGS, longer]),
        r"There are 2 problems and 1 settings": ([first, first], [SETTINGS]),
        "There are no problems": ([], SETTINGS),
    }
    for message, (stack, settings) in wrong.items():
        with pytest.raises(ValueError, match=message):
            train_many(stack, settings, vectorised=True, progress=False)
    assert first.terms == TERMS
