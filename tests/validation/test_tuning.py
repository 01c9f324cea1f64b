"""Potentials tuned to averages of their own simulations: to exact answers, resumed, counted, and by every trainable."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from simple_potentials import LennardJones, SquaredDisplacement, Wells

from jaxmlip.simulation.ensembles import NVT
from jaxmlip.systems.batches import make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.step import update
from jaxmlip.training.trainer import train
from jaxmlip.units import KB
from jaxmlip.validation.tuning import ObservableTarget, own_simulations

KELVIN, CENTRE, ATOMS = 300.0, 5.0, 4
KT = KB * KELVIN
ENERGY = Terms(True, False, False)
NVT_FAST = NVT(KELVIN, friction_per_ps=100.0)
SAMPLING: dict[str, Any] = {"time_ps": 1.2, "replicas": 8, "timestep_fs": 2.0, "sample_every_fs": 40.0}


def settings(epochs: int, **changes: Any) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, batch_size=1, ema_decay=0.0, warmup=0.0, clip_norm=1e6, **changes)


def in_wells() -> Atoms:
    """Light atoms, which a thermostat of 100/ps brings from one well to another place of it within 30 fs."""
    return Atoms("Ar4", np.full((ATOMS, 3), CENTRE), cell=np.full(3, 10.0), pbc=True, masses=np.ones(ATOMS))


def wells(stiffness: float) -> Wells:
    return Wells({"k": np.float32(stiffness), "centres": np.full((ATOMS, 3), CENTRE, np.float32)})


def unlabelled(atoms: Atoms, potential: Any) -> list:
    """A sample without labels, for a training on observables alone."""
    nothing = Frame(atoms, float("nan"), np.full((len(atoms), 3), np.nan), np.full((3, 3), np.nan))
    return make_samples([nothing], potential.cutoff, potential.inner_cutoff, potential.references)


def problem_of_wells(stiffness: float, target: float, error: float, **sampling: Any) -> TrainingProblem:
    potential, atoms = wells(stiffness), in_wells()
    atoms.rattle(0.1, seed=0)
    samples = unlabelled(atoms, potential)
    wanted = ObservableTarget(observable=SquaredDisplacement(), value=target, error=error)
    source = own_simulations(potential, atoms, NVT_FAST, [wanted], weight=1.0, **(SAMPLING | sampling))
    rates = {"k": 1.0, "centres": 0.0}
    return TrainingProblem(potential, samples, samples, ENERGY, ENERGY, rates=rates, source=source)


@pytest.mark.physics
def test_spring_constant_of_a_mean_square(agrees) -> None:
    """⟨x²⟩ = kT/k: from k = 0.5 eV/Å² to the 0.8 eV/Å² that the target belongs to, by a handful of simulations."""
    known = 0.8
    problem = problem_of_wells(0.5, KT / known, 0.01 * KT / known)
    trained = train(problem, settings(60, learning_rate=0.03, final_learning_rate=0.05), progress=False)
    last, first = trained.history[-1], trained.history[0]
    found = float(trained.potential.params["k"])
    # 8 replicas, whose 12 effective frames each of 12 coordinates are known to so much.
    agrees("wells tuned: k of <x2>", found, known * np.sqrt(2.0 / (8 * 12 * 12)), known)
    assert last["validation_x2_loss"] < 0.01 * first["validation_x2_loss"]
    assert 2 <= last["renewals"] <= 20, "frames are used for several steps each"
    np.testing.assert_array_equal(trained.potential.params["centres"], problem.potential.params["centres"])
