"""What users of ASE do with calculators: pickle and copy them, add them, share them in bands and threads."""

import concurrent.futures
import copy
import os
import pickle
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.mixing import SumCalculator
from ase.mep import NEB
from ase.optimize import FIRE
from water_pairs import HIGH, LOW

from jaxmlip.potentials.ase import Calculator


def water(seed: int = 0) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    return atoms


def evaluated(calculator: Any, seed: int = 0) -> tuple[float, np.ndarray]:
    atoms = water(seed)
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_say_the_same(copied: Any) -> None:
    """Also of one that has been used, and used again afterwards."""
    calculator = Calculator(LOW)
    energy, forces = evaluated(calculator)
    other = copied(calculator)
    for one in (other, calculator):
        found = evaluated(one)
        assert found[0] == energy
        np.testing.assert_array_equal(found[1], forces)


def test_sums_of_calculators() -> None:
    energy, forces = evaluated(SumCalculator([Calculator(LOW), Calculator(HIGH)]))
    (low, pull), (high, push) = (evaluated(Calculator(potential)) for potential in (LOW, HIGH))
    assert energy == pytest.approx(low + high, rel=1e-12)
    np.testing.assert_allclose(forces, pull + push, rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_bands_of_images(shared: bool) -> None:
    """A nudged elastic band with one calculator for all images, or one for each, moves alike."""
    turned = water()
    turned.rotate(60, "y")
    images = [water(), *(water() for _ in range(3)), turned]
    band: Any = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    band.interpolate()
    one = Calculator(LOW)
    for image in images:
        image.calc = one if shared else Calculator(LOW)
    FIRE(band, logfile=os.devnull).run(fmax=0.01, steps=3)
    assert np.isfinite(band.get_residual())
    assert images[2].get_potential_energy() == pytest.approx(_energy_of(images[2]), abs=1e-6)


def _energy_of(atoms: Atoms) -> float:
    fresh = atoms.copy()
    fresh.calc = Calculator(LOW)
    return fresh.get_potential_energy()


def test_threads_with_calculators_of_their_own() -> None:
    alone = [evaluated(Calculator(LOW), seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: evaluated(Calculator(LOW), seed), range(8)))
    for one, other in zip(alone, together, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
