"""The compiled step of the optimiser: what it lowers to for accelerators."""

import jax
import numpy as np
import pytest
from ase.build import bulk
from lowering import accelerators_student, check_lowered

from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
from jaxmlip.training.step import update


@pytest.mark.parametrize(("models", "layers"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_lowers_for_accelerators(models: int, layers: int) -> None:
    """Energy and forces; one model, and a stack of two."""
    draw, frames = np.random.default_rng(0), []
    for seed in range(2):
        atoms = bulk("OH", "rocksalt", a=3.6, cubic=True)
        atoms.rattle(0.1, seed=seed)
        frames.append(Frame(atoms, 1.0, draw.standard_normal((len(atoms), 3))))
    students = [accelerators_student(seed, layers=layers) for seed in range(models)]
    samples = make_samples(frames, students[0].cutoff, 0.0, np.zeros(119))
    (batch,) = make_batches(samples, 2)
    settings = TrainingSettings()
    problems = [TrainingProblem(each, samples, samples, settings.terms(), settings.terms()) for each in students]
    batches = jax.tree.map(lambda leaf: np.stack([leaf] * models), batch)
    controls = stacked_controls(problems, [settings] * models)
    controls = controls.replace(learning_rate=np.full(models, 1e-3))
    check_lowered(update, stacked_potentials(problems), stacked_states(problems), batches, controls)
