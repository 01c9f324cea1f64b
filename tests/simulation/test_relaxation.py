"""Relaxation against lattice sums."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from scipy.optimize import minimize_scalar
from simple_potentials import RockSalt, lennard_jones

from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.ase_potential import from_ase
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation.relaxation import Relaxed, relax
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.systems.ice import ice_ih
from jaxmlip.units import GPA

RANGE = 2.58
"""Å; between the fifth and the sixth shell of the crystal, so that no rattled atom meets the cutoff."""

SHELLS = np.array([1, 2, 3, 4, 5]), np.array([12, 6, 24, 12, 24])


def lattice_energy(nearest: float) -> float:
    """Energy of an atom of the fcc crystal, cut and shifted."""
    squared, counts = SHELLS

    def pair(d2):
        return 4.0 * (d2**-6.0 - d2**-3.0)

    return float(0.5 * (counts * (pair(nearest**2 * squared) - pair(RANGE**2))).sum())


@pytest.fixture
def rattled() -> Atoms:
    """Four atoms of the crystal, its cell too wide and sheared."""
    atoms = bulk("Ar", "fcc", a=1.1 * np.sqrt(2.0), cubic=True)
    strain = np.array([[1.03, 0.02, 0.0], [0.0, 1.01, -0.01], [0.0, 0.0, 0.99]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.info["allow_close"] = True  # lengths are in units of σ
    return atoms


def test_repr_is_the_summary() -> None:
    relaxed = Relaxed(Atoms("Ar2"), Outcome.NOT_CONVERGED, 7, -1.25, np.eye(3)[:2], None)
    assert repr(relaxed) == "<Relaxed: Ar2, NOT_CONVERGED, 7 steps, -1.250000 eV, longest force 1 eV/Å>"


def run(atoms: Atoms, **options) -> Relaxed:
    return relax(lennard_jones(range_=RANGE), atoms, forces_eV_A=0.003, skin=0.2, **options)


@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_cell_and_positions(rattled: Atoms, pressure: float) -> None:
    """The crystal of least enthalpy, from a rattled and sheared one."""
    best: Any = minimize_scalar(
        lambda d: lattice_energy(d) + pressure * d**3 / np.sqrt(2.0), bounds=(0.95, 1.15), method="bounded"
    )
    relaxed = run(rattled, stress_GPa=0.01 / GPA, pressure_GPa=pressure / GPA)
    assert relaxed.converged, relaxed.summary()
    assert relaxed.energy / 4 == pytest.approx(lattice_energy(best.x), abs=2e-4)
    assert relaxed.atoms.get_volume() / 4 == pytest.approx(best.x**3 / np.sqrt(2.0), rel=3e-4)
    np.testing.assert_allclose(relaxed.atoms.cell.angles(), 90.0, atol=0.05)
    assert relaxed.stress is not None
    np.testing.assert_allclose(relaxed.stress, -pressure * np.eye(3), atol=0.011)
    assert np.linalg.norm(relaxed.forces, axis=1).max() < 0.003


def test_steps_do_not_depend_on_the_size_of_the_cell(rattled: Atoms) -> None:
    """Eight cells at once, each atom rattled in its own way, take about as many steps as one."""
    many = rattled.repeat(2)
    many.rattle(0.03, seed=5)
    one, eight = (run(each, stress_GPa=0.05 / GPA) for each in (rattled, many))
    assert one.converged
    assert eight.converged
    assert eight.steps < 1.5 * one.steps < 200
    assert eight.energy / 8 == pytest.approx(one.energy, abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("molecules", "most"), [(16, 200), (96, 300)])
def test_cell_of_ice(molecules: int, most: int) -> None:
    """Stiff bonds in a soft crystal, to 0.05 GPa."""
    student = load_potential(Path(__file__).parent / "data" / "ice_student.jaxmlip")
    relaxed = relax(student, ice_ih(molecules=molecules, seed=0), 0.01, 0.05)
    assert relaxed.converged, relaxed.summary()
    assert relaxed.steps < most


@pytest.mark.slow
@pytest.mark.parametrize("crystal", ["rock salt", "copper"])
def test_cells_are_those_of_ase(crystal: str) -> None:
    """ASE's FIRE with its FrechetCellFilter, in no more steps; the same energy and volume."""
    reduced = {"epsilon": np.float32(1.0), "sigma": np.float32(1.0)}
    of_copper = crystal == "copper"
    potential = from_ase(EMT()) if of_copper else RockSalt(reduced, range_=3.0)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True) if of_copper else bulk("NaCl", "rocksalt", a=2.35, cubic=True)
    strain = np.array([[1.03, 0.02, 0.0], [0.0, 1.01, -0.01], [0.0, 0.0, 0.99]])
    atoms = atoms.repeat(2)
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.info["allow_close"] = not of_copper  # lengths are in units of σ
    limits = (0.01, 0.05) if of_copper else (0.01, 0.5)
    relaxed = relax(potential, atoms, *limits)
    assert relaxed.converged, relaxed.summary()
    theirs = atoms.copy()
    theirs.calc = EMT() if of_copper else Calculator(potential)
    steps = 0
    optimizer: Any = FIRE
    for _ in optimizer(FrechetCellFilter(theirs), logfile=None).irun(fmax=1e-12, steps=1000):
        longest = np.linalg.norm(theirs.get_forces(), axis=1).max()
        if longest < limits[0] and np.abs(theirs.get_stress()).max() < limits[1] * GPA:
            break
        steps += 1
    assert relaxed.steps <= 1.1 * steps
    assert relaxed.energy == pytest.approx(theirs.get_potential_energy(), abs=2e-3)
    assert relaxed.atoms.get_volume() == pytest.approx(theirs.get_volume(), rel=2e-3)


def test_positions_alone(rattled: Atoms) -> None:
    """In a fixed cell every atom of the crystal goes back to its place; the start is left as it was."""
    before = rattled.positions.copy()
    relaxed = run(rattled)
    np.testing.assert_array_equal(rattled.positions, before)
    np.testing.assert_array_equal(relaxed.atoms.cell.array, rattled.cell.array)
    assert relaxed.outcome is Outcome.COMPLETED
    assert relaxed.stress is None
    places = relaxed.atoms.get_scaled_positions(wrap=False)
    places -= places[0]
    np.testing.assert_allclose(places * 2, np.round(places * 2), atol=2e-3)
    again = run(relaxed.atoms)
    assert again.steps == 0


def test_says_that_it_has_not_converged(rattled: Atoms) -> None:
    relaxed = run(rattled, steps=3)
    assert relaxed.outcome is Outcome.NOT_CONVERGED
    assert relaxed.steps == 3
    assert "3 steps" in relaxed.summary()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "positive steps, not 0"),
        ({"stress_GPa": -1.0}, "positive stress_GPa, not -1.0"),
    ],
)
def test_refuses_senseless_values(rattled: Atoms, change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(rattled, **change)


def test_refuses_a_cell_that_is_not_periodic(rattled: Atoms) -> None:
    rattled.pbc = (True, True, False)
    with pytest.raises(ValueError, match="leave out stress_GPa"):
        run(rattled, stress_GPa=0.1)


@pytest.fixture
def slab() -> Atoms:
    """Five rattled layers of the crystal, the lowest two of which are held."""
    atoms = fcc111("Ar", (2, 2, 5), a=1.1 * np.sqrt(2.0), vacuum=4.0)
    atoms.rattle(0.04, seed=2)
    atoms.info["allow_close"] = True  # lengths are in units of σ
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag > 3]))
    return atoms


@pytest.mark.parametrize("optimizer", [FIRE, pytest.param(BFGS, marks=pytest.mark.slow)])
def test_slab_with_held_layers(slab: Atoms, optimizer: type) -> None:
    """The energy that ASE's optimisers find with the same constraint; held atoms do not move, nor count."""
    fixed = slab.constraints[0].index
    relaxed = run(slab)
    assert relaxed.converged, relaxed.summary()
    np.testing.assert_array_equal(relaxed.atoms.positions[fixed], slab.positions[fixed])
    assert relaxed.atoms.constraints[0].index.tolist() == fixed.tolist()
    free = np.setdiff1d(np.arange(len(slab)), fixed)
    assert np.linalg.norm(relaxed.forces[free], axis=1).max() < 0.003
    assert np.linalg.norm(relaxed.forces[fixed], axis=1).max() > 0.1, "they would move if they were free"
    assert f"longest force {np.linalg.norm(relaxed.forces[free], axis=1).max():.2g}" in relaxed.summary()

    theirs = slab.copy()
    theirs.calc = Calculator(lennard_jones(range_=RANGE))
    optimizer(theirs, logfile=None).run(fmax=0.003, steps=500)
    assert relaxed.energy == pytest.approx(theirs.get_potential_energy(), abs=1e-4)


def test_refuses_constraints_that_it_cannot_keep(slab: Atoms, rattled: Atoms) -> None:
    rattled.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="Ar4 has fixed atoms, which a cell that relaxes would move"):
        run(rattled, stress_GPa=0.1)
    slab.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="Ar20 has the constraint FixBondLength"):
        run(slab)


def test_warns_of_atoms_closer_than_any_bond(rattled: Atoms) -> None:
    """Which readers, `label` and the command line refuse; unless they are meant."""
    rattled.info.clear()
    with pytest.warns(UserWarning, match=r"Atoms \d \(Ar\) and \d \(Ar\) .*closer than any bond"):
        run(rattled, steps=3)
    rattled.info["allow_close"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(rattled, steps=3).steps == 3
    rattled.set_array("occupancy", np.array([1.0, 0.5, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"Atom 1 \(Ar\) has an occupancy of 0\.5"):
        run(rattled)


def test_nothing_to_relax(rattled: Atoms) -> None:
    rattled.set_constraint(FixAtoms(range(4)))
    relaxed = run(rattled)
    assert relaxed.steps == 0
    assert relaxed.converged
    assert "longest force 0 eV/Å" in relaxed.summary()
