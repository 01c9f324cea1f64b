"""The conformance test of observables passes ours, and names the law that another breaks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import (
    Density,
    EnergyDifference,
    PotentialEnergy,
    Pressure,
    PressureTensor,
    SquaredForceError,
    Temperature,
)
from jaxmlip.potentials.pairs import PairPotential
from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.testing import check_observable

SALT = Atoms(
    "HOHO", [[0, 0, 0], [1.3, 1.4, 0.1], [1.2, 0, 1.3], [0.1, 1.3, 1.5]],
    cell=[[2.7, 0.1, 0], [0, 2.8, 0], [0.2, 0, 2.6]], pbc=True,
)  # fmt: skip
"""Four atoms, so that little is computed."""


@pytest.mark.parametrize(
    "observable",
    [
        Density(),
        EnergyDifference(),
        PotentialEnergy(),
        Pressure(),
        PressureTensor(),
        SquaredForceError(),
        Temperature(),
        RDF("O", "H", r_max=3.0, bins=6, smearing=0.2),
    ],
)
def test_ours_conform(observable: Observable) -> None:
    check_observable(observable, SALT)


def test_counts_have_no_derivative() -> None:
    check_observable(RDF("O", "O", r_max=3.0, bins=6), SALT, differentiable=())


@pytest.mark.slow
def test_of_a_potential() -> None:
    coefficients = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    pairs = PairPotential(coefficients, np.zeros(N_SPECIES), known=(1, 8), reach=3.0, shortest=0.6)
    check_observable(Pressure(), SALT, potential=pairs)


@dataclasses.dataclass(frozen=True)
class Broken(Observable):
    """A mean of squared velocities with one fault, by name."""

    fault: str

    @property
    def name(self) -> str:
        return "" if self.fault == "name" else "speed"

    @property
    def unit(self) -> str:
        return "eV/amu"

    def per_frame(self, frame: FrameState, potential: Any = None) -> Any:
        momenta, masses = frame.known_momenta, frame.masses[:, None]
        value = ((momenta / masses) ** 2).mean()
        if self.fault == "translation":
            value = value + 1e-3 * frame.positions.mean()
        if self.fault == "lattice":
            value = value + ((frame.positions - frame.positions.mean(0)) ** 2).mean()
        if self.fault == "order":
            value = value + momenta[0] @ momenta[1]
        if self.fault == "rotation":
            value = value + momenta[:, 0] @ momenta[:, 0]
        if self.fault == "finite":
            value = value / (frame.positions - frame.positions)[0, 0]
        if self.fault == "derivative":
            value = value + jax.lax.stop_gradient(value)
        if self.fault == "infinite derivative":
            value = value + jnp.sqrt(((momenta - momenta) ** 2).sum())
        return value

    def mean(self, values: Any, log_weights: Any = None) -> Any:
        if self.fault == "mean" and log_weights is not None:
            return jnp.tensordot(jnp.exp(log_weights), values, axes=2)
        return super().mean(values, log_weights)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("name", "an observable has a name"),
        ("translation", "a translation of all atoms"),
        ("lattice", "lattice translations of atoms"),
        ("order", "a permutation of equal atoms"),
        ("rotation", "a rotation changes nothing"),
        ("finite", "values are finite"),
        ("derivative", "derivatives by momenta are those of finite differences"),
        ("infinite derivative", "derivatives by momenta are finite"),
        ("mean", "mean with equal weights"),
    ],
)
def test_a_broken_law_is_named(fault: str, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_observable(Broken(fault), SALT)


def test_what_has_no_faults_passes() -> None:
    check_observable(Broken(""), SALT)
