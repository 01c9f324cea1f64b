"""Frames of trajectories, and one function that opens everything."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.simulation import frames as module
from jaxmlip.simulation.frames import TrajectoryFrames, last_structure, open_frames
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.dataset import Frame, write_frames
from jaxmlip.systems.store import FrameStore, write_store

WATER = [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]


@pytest.fixture
def run() -> Run:
    """Two replicas of a molecule, the second of heavy water and ended early."""
    rng = np.random.default_rng(0)
    positions = (np.array(WATER) + rng.normal(scale=0.02, size=(2, 4, 3, 3))).astype(np.float32)
    positions[1, 3:] = np.nan
    return Run(
        numbers=np.array([8, 1, 1]),
        positions=positions,
        cells=np.stack([9.0 * np.eye(3), 10.0 * np.eye(3)]),
        pbc=np.array([True, True, True]),
        masses=np.array([[15.999, 1.008, 1.008], [15.999, 2.014, 2.014]]),
        potential_energy=rng.normal(size=(2, 4)) - 1e4,
        temperature=rng.uniform(200, 300, size=(2, 4)),
        time_fs=5.0 * np.arange(1, 5),
        timestep_fs=0.5,
        outcomes=(Outcome.COMPLETED, Outcome.NOT_FINITE),
        lengths=np.array([4, 3]),
        wall_s=1.5,
        ns_per_day=0.25,
    )


@pytest.fixture
def path(run: Run, tmp_path: Path) -> Path:
    run.save(tmp_path / "run.h5")
    return tmp_path / "run.h5"


@pytest.mark.parametrize("at_once", [2, 256])
def test_frames_are_those_of_the_run(run: Run, path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", at_once)
    frames = open_frames(path)
    assert isinstance(frames, TrajectoryFrames)
    assert len(frames) == 7
    for number, (frame, atoms) in enumerate(zip(frames, run, strict=True)):
        np.testing.assert_array_equal(frame.atoms.positions, atoms.positions)
        np.testing.assert_array_equal(frame.atoms.cell.array, atoms.cell.array)
        np.testing.assert_array_equal(frame.atoms.get_masses(), atoms.get_masses())
        assert frame.energy == atoms.info["potential_energy"]
        assert np.isnan(frame.forces).all()
        assert np.isnan(frame.stress).all()
        assert frame.info == atoms.info | {"file": str(path), "frame": number}
    assert frames[5].atoms.get_masses()[1] == 2.014
    picked = open_frames(path, index="::-3", energy_key="potential_energy")
    assert [frame.info["frame"] for frame in picked] == [6, 3, 0]
    assert [frame.info["replica"] for frame in picked[:2]] == [1, 0]
    assert np.isnan(open_frames(path, energy_key=None)[0].energy)


def test_mistakes_are_named(run: Run, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.h5 has no 'dft_energy': it is a trajectory"):
        open_frames(path, energy_key="dft_energy")
    with pytest.raises(ValueError, match=r"run\.h5 has 7 frames, and index 9 is none of them"):
        open_frames(path, index=9)
    with pytest.raises(IndexError, match=r"run\.h5 has 7 frames, and 7 is none of them"):
        open_frames(path)[7]
    dataclasses.replace(run, lengths=np.array([0, 0])).save(tmp_path / "empty.h5")
    with pytest.raises(ValueError, match=r"empty\.h5 has no frames yet"):
        open_frames(tmp_path / "empty.h5")
    with pytest.raises(ValueError, match=r"run\.h5 is a trajectory, and no store of labelled frames"):
        FrameStore(path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.h5"):
        open_frames(tmp_path / "nowhere.h5")


def test_the_last_structure_of_everything(run: Run, path: Path, tmp_path: Path) -> None:
    water = Atoms("OH2", WATER)
    close = Atoms("OH2W", [*WATER, [0, 0, 0.0]])
    frames = [Frame(atoms, 0.0, np.zeros((len(atoms), 3))) for atoms in (close, water)]
    write_frames(tmp_path / "a.xyz", frames[1:])
    write_store(tmp_path / "a.h5", frames)
    for name in ("a.xyz", "a.h5"):
        assert last_structure(tmp_path / name).positions.tolist() == WATER
    assert last_structure(path).get_masses().tolist() == run.masses[1].tolist()
    write_store(tmp_path / "b.h5", frames[:1])
    with pytest.raises(ValueError, match=r"b\.h5, frame 0: Atoms 0 \(O\) and 3 \(W\) are 0\.119 Å apart"):
        last_structure(tmp_path / "b.h5")
    allowed = last_structure(tmp_path / "b.h5", allow_close=True)
    assert allowed.info["allow_close"], "whoever simulates it has allowed it"
    assert len(allowed) == 4
