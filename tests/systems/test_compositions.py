"""Splits that keep every composition on one side."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.systems.compositions import composition, split_by_composition
from jaxmlip.systems.crystals import many_crystals
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.store import FrameStore, write_store


def test_reduced_formulas() -> None:
    assert composition(Atoms("Mg4O4")) == composition(Atoms("OMg")) == "MgO"
    assert composition(Atoms("OTiOSrO")) == "SrTiO3"


def test_no_composition_is_on_two_sides(tmp_path: Path) -> None:
    crystals = many_crystals(240, elements=["Na", "K", "Mg", "Ca", "Cl", "O", "Al", "Fe", "Ti", "S"])
    parts = split_by_composition(crystals, [0.7, 0.15, 0.15], seed=1)
    assert sum(map(len, parts)) == len(crystals)
    kinds = [{composition(atoms) for atoms in part} for part in parts]
    assert sum(map(len, kinds)) == len(set.union(*kinds)), "no composition is in two parts"
    for part, fraction in zip(parts, (0.7, 0.15, 0.15), strict=True):
        assert len(part) / len(crystals) == pytest.approx(fraction, abs=0.1)
    again = split_by_composition(crystals, [0.7, 0.15, 0.15], seed=1)
    assert [[*map(id, part)] for part in again] == [[*map(id, part)] for part in parts]
    other, _ = split_by_composition(crystals, [0.5, 0.3], seed=2)
    assert {composition(atoms) for atoms in other} != kinds[0]

    frames = [Frame(atoms, float(k), np.zeros((len(atoms), 3))) for k, atoms in enumerate(crystals)]
    write_store(tmp_path / "a.h5", frames)
    views = split_by_composition(FrameStore(tmp_path / "a.h5"), [0.7, 0.15, 0.15], seed=1)
    for view, part in zip(views, parts, strict=True):
        assert [frame.energy for frame in view] == [float(crystals.index(atoms)) for atoms in part]


def test_splits_that_cannot_be() -> None:
    few = [Atoms("He"), Atoms("He2"), Atoms("Ne")]
    with pytest.raises(ValueError, match=r"2 compositions are too few for a split into \[0\.4, 0\.3, 0\.3\]"):
        split_by_composition(few, [0.4, 0.3, 0.3])
    with pytest.raises(ValueError, match="cannot be negative or sum to more than 1"):
        split_by_composition(few, [0.9, 0.2])
