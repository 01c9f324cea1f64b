"""Files as stores."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.study.convert import convert_data
from jaxmlip.systems.dataset import Frame, write_frames
from jaxmlip.systems.store import FrameStore, open_frames

WATER = [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]


def test_absent_labels_and_a_store_of_a_store(tmp_path: Path) -> None:
    atoms = Atoms("OH2", WATER, cell=[8, 8, 8], pbc=True)
    stress = np.diag([1.0, 2.0, 3.0])
    frames = [
        Frame(atoms, -1.0, np.full((3, 3), np.nan), info={"kind": "energy"}),
        Frame(atoms, np.nan, np.ones((3, 3)), stress, {"kind": "forces"}),
    ]
    write_frames(tmp_path / "a.xyz", frames, prefix="x_")
    keys = {label: f"x_{label}" for label in ("energy", "forces", "stress")}
    assert convert_data(tmp_path / "a.xyz", tmp_path / "a.h5", keys) == (2, [])
    assert convert_data(tmp_path / "a.h5", tmp_path / "b.h5", {"energy": None}) == (2, [])
    first, second = open_frames(tmp_path / "a.h5", stress_key="x_stress")
    assert (first.energy, first.info["kind"]) == (-1.0, "energy")
    assert np.isnan(first.forces).all()
    np.testing.assert_array_equal(second.stress, stress)
    assert np.isnan([frame.energy for frame in FrameStore(tmp_path / "b.h5")]).all()
    with pytest.raises(ValueError, match=r"a\.xyz, frame 0 has neither 'energy' nor 'forces', nor has any other"):
        convert_data(tmp_path / "a.xyz", tmp_path / "c.h5", {})
    assert not (tmp_path / "c.h5").exists(), "nothing is half written"


def test_names_of_mptrj_are_fixed(tmp_path: Path) -> None:
    (tmp_path / "mp.json").write_text(json.dumps({"mp-1": {"mp-1-0-0": {"structure": {}}}}))
    with pytest.raises(ValueError, match=r"mp\.json is of the MPtrj layout, whose forces and stress have fixed names"):
        convert_data(tmp_path / "mp.json", tmp_path / "mp.h5", {"forces": "f"})
