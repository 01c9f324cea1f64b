"""Files of labelled frames as configurations name them: which labels must be there."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.study.frames import FileData
from jaxmlip.systems.dataset import Frame, write_frames
from jaxmlip.systems.store import write_store

ATOMS = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], cell=[5, 5, 5], pbc=True)
WHOLE = Frame(ATOMS, -3.0, np.ones((2, 3)), 0.01 * np.eye(3))


def without(frame: Frame, *labels: str) -> Frame:
    return dataclasses.replace(frame, **{label: np.full_like(getattr(frame, label), np.nan) for label in labels})


def test_stress_is_read_where_it_is(tmp_path):
    path = tmp_path / "frames.extxyz"
    write_frames(path, [WHOLE])
    np.testing.assert_array_equal(FileData(path=path).frames()[0].stress, WHOLE.stress)
    assert np.isnan(FileData(path=path, stress_key=None).frames()[0].stress).all()
    with pytest.raises(ValueError, match=r"frames\.extxyz, frame 0 has no 'virial'"):
        FileData(path=path, stress_key="virial").frames()
    write_frames(path, [without(WHOLE, "stress")])
    assert np.isnan(FileData(path=path).frames()[0].stress).all()
    store = tmp_path / "frames.h5"
    write_store(store, [WHOLE, without(WHOLE, "stress")])
    assert [np.isnan(frame.stress).all() for frame in FileData(path=store).frames()] == [False, True]


def test_forces_need_not_be_there_for_energies(tmp_path):
    """Nor need energies for forces, if the configuration says so; other mistakes stay mistakes."""
    path = tmp_path / "frames.extxyz"
    write_frames(path, [without(WHOLE, "forces")])
    (frame,) = FileData(path=path).frames(forces_needed=False)
    assert np.isnan(frame.forces).all()
    np.testing.assert_array_equal(frame.stress, WHOLE.stress)
    assert np.isnan(FileData(path=path).frames()[0].forces).all()  # the loss asks for them, not the reader
    write_frames(tmp_path / "dft.extxyz", [WHOLE], prefix="dft_")
    renamed = FileData(path=tmp_path / "dft.extxyz", energy_key="dft_energy")
    with pytest.raises(ValueError, match=r"has no 'forces'.*Is it one of them"):
        renamed.frames()
    assert np.isnan(renamed.frames(forces_needed=False)[0].forces).all()
    with pytest.raises(ValueError, match="has no 'dft_energy'"):
        FileData(path=path, energy_key="dft_energy").frames(forces_needed=False)
    write_frames(path, [dataclasses.replace(WHOLE, energy=np.nan)])
    (frame,) = FileData(path=path, energy_key=None).frames()
    assert np.isnan(frame.energy)
    np.testing.assert_array_equal(frame.forces, WHOLE.forces)
