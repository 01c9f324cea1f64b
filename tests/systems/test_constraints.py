"""Which atoms a structure says are to stay where they are."""

from io import StringIO

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane
from ase.io import read, write

from jaxmlip.systems.constraints import fixed_atoms, hold


def one_structure(text: str) -> Atoms:
    """The structure of extended XYZ."""
    atoms = read(StringIO(text), format="extxyz")
    assert isinstance(atoms, Atoms)
    return atoms


def test_all_ways_of_fixing_atoms() -> None:
    """Several constraints add up; an index may count from the end, and a mask do in its place."""
    slab = fcc111("Cu", (1, 1, 6), vacuum=5.0)
    assert not fixed_atoms(slab).any()
    slab.set_constraint([FixAtoms([0, -1]), FixAtoms(mask=[False, True, *[False] * 4]), FixCartesian([3])])
    assert fixed_atoms(slab).tolist() == [True, True, False, True, False, True]


def test_move_mask_of_extended_xyz() -> None:
    """One column comes as FixAtoms, three as FixCartesian; both are written again as one FixAtoms."""
    for columns, mask in ((1, "F"), (3, "F F F")):
        free = mask.replace("F", "T")
        text = f'2\nProperties=species:S:1:pos:R:3:move_mask:L:{columns} pbc="F F F"\nH 0 0 0 {mask}\nO 0 0 1 {free}\n'
        atoms = one_structure(text)
        assert fixed_atoms(atoms).tolist() == [True, False]
        hold(atoms, fixed_atoms(atoms))
        out = StringIO()
        write(out, atoms, format="extxyz")
        (constraint,) = one_structure(out.getvalue()).constraints
        assert isinstance(constraint, FixAtoms)
        assert constraint.index.tolist() == [0]


@pytest.mark.parametrize(
    "constraint", [FixBondLength(0, 1), FixedPlane(0, (0, 0, 1)), FixCartesian(0, (True, True, False))]
)
def test_others_are_refused_by_name(constraint) -> None:
    water = molecule("H2O")
    water.set_constraint([FixAtoms([0]), constraint])
    with pytest.raises(ValueError, match=rf"^OH2 has the constraint {type(constraint).__name__}, .*set_constraint"):
        fixed_atoms(water)


def test_holding_none_takes_constraints_away() -> None:
    water = molecule("H2O")
    for nothing in (None, np.zeros(3, bool)):
        hold(water, np.array([True, False, False]))
        assert len(water.constraints) == 1
        hold(water, nothing)
        assert not water.constraints
