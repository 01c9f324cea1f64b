"""Labels in other units than those they are read in are told by what they say of one another."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.label_units import UnitCheck, thomas_fermi


@pytest.fixture(scope="module")
def copper() -> list[Frame]:
    """Frames of one crystal of 32 atoms, moved a little, with EMT's energies and forces."""
    return frames_of(bulk("Cu", cubic=True).repeat(2), 8)


def frames_of(start: Atoms, number: int) -> list[Frame]:
    frames = []
    for seed in range(number):
        atoms = start.copy()
        atoms.rattle(0.04, seed=seed)
        if seed % 2:
            atoms.positions[0] += atoms.cell.array[0]  # the same structure
        atoms.calc = EMT()
        frames.append(Frame(atoms.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    return frames


def said(frames: list[Frame], energy: float = 1.0, force: float = 1.0) -> list[str]:
    check = UnitCheck()
    for frame in frames:
        scaled = Frame(frame.atoms, frame.energy * energy, frame.forces * force)
        check.add(scaled, dict(frame.atoms.symbols.formula.count()))
    return check.said()


def test_right_units_are_not_odd(copper) -> None:
    assert said(copper) == []
    assert said(copper[:1]) == []
    assert said([*copper, *frames_of(bulk("Cu", cubic=True), 4)]) == []


@pytest.mark.parametrize(
    ("energy", "force", "sentence"),
    [
        (1 / units.Hartree, 1.0, "the energies look like Hartree"),
        (units.mol / units.kJ, 1.0, "the energies look like kJ/mol"),
        (units.mol / units.kcal, 1.0, "the energies look like kcal/mol"),
        (1 / 32, 1.0, "the energies look like eV/atom"),
        (1.0, units.Bohr / units.Hartree, "the forces look like Hartree/bohr"),
        (1 / units.Hartree, units.Bohr / units.Hartree, "energies and forces look like atomic units"),
        (1.0, -1.0, "look like gradients"),
        (1.0, 0.5, "they are of other units or levels"),
    ],
)
def test_forces_tell_the_unit_of_energies(copper, energy: float, force: float, sentence: str) -> None:
    (found,) = said(copper, energy, force)
    assert sentence in found
    assert "Of 7 pairs of frames" in found


def test_a_unit_that_may_be_another_is_named_with_it() -> None:
    """27 atoms: an energy per atom is nearly one in Hartree."""
    (found,) = said(frames_of(bulk("Cu").repeat(3), 6), 1 / 27)
    assert "eV/atom" in found
    assert "Hartree" in found


def test_energies_that_do_not_grow_with_size() -> None:
    rng = np.random.default_rng(0)
    frames = [
        Frame(Atoms("Ar" * n, rng.uniform(0, 50, (n, 3))), n * (-4.7 + 0.01 * rng.normal()), np.full((n, 3), np.nan))
        for n in (4, 8, 12, 16)
    ]
    assert said(frames) == []
    for frame in frames:
        frame.__dict__["energy"] /= len(frame.atoms)
    (found,) = said(frames)
    assert "Energies of Ar with 4 to 16 atoms are nearly the same" in found


def test_totals_of_all_electrons() -> None:
    """B3LYP and Hartree-Fock give −76.4 and −76.0 Hartree for water; a plane-wave code gives −14.2 eV."""
    water = Atoms("OH2", [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]])
    nan = np.full((3, 3), np.nan)
    for unit, value in {"Hartree": 1.0, "kJ/mol": 2625.5, "kcal/mol": 627.51, "Rydberg": 2.0}.items():
        (found,) = said([Frame(water, -76.2 * value, nan)])
        assert f"total energies in {unit};" in found
    for energy in (-76.2 * units.Hartree, -14.2, 0.0, np.nan):
        assert said([Frame(water, energy, nan)]) == []
    exact = {"He": -2.9037, "O": -75.067, "Ar": -527.54, "Kr": -2752.05}  # Hartree; non-relativistic for Kr
    for symbol, energy in exact.items():
        assert thomas_fermi(symbol) == pytest.approx(energy, rel=0.06)
