"""Runs as sequences of frames and as files."""

import dataclasses
from pathlib import Path
from typing import Any

import ase.io
import h5py
import MDAnalysis
import numpy as np
import pytest
import znh5md
from made_runs import as_run
from MDAnalysis.lib.mdamath import triclinic_vectors

from jaxmlip.simulation.trajectory import Outcome, Run, export_extxyz, load_run
from jaxmlip.simulation.trajectory_file import TrajectoryFile


@pytest.fixture
def run() -> Run:
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(2, 4, 3, 3)).astype(np.float32)
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


def test_is_a_sequence_of_structures(run: Run) -> None:
    frames = [*run]
    assert repr(run) == "<Run: OH2, 2 replicas of 4 frames to 0.02 ps, 1 COMPLETED, 1 NOT_FINITE>"
    assert len(frames) == len(run) == 7, "frames of failed replicas end at the failure"
    np.testing.assert_array_equal(frames[5].positions, run.positions[1, 1].astype(float))
    assert frames[5].cell.array[0, 0] == 10.0
    assert frames[5].info == {
        "replica": 1,
        "time_fs": 10.0,
        "potential_energy": run.potential_energy[1, 1],
    }
    assert run[-1].info["time_fs"] == 15.0
    assert [a.info["time_fs"] for a in run[2:5]] == [15.0, 20.0, 5.0]
    assert [(a.info["replica"], a.info["time_fs"]) for a in run.frames(stride=2)] == [(0, 10.0), (0, 20.0), (1, 10.0)]
    with pytest.raises(ValueError, match="1 or more, not 0"):
        run.frames(stride=0)


def test_file_gives_the_run_back(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run.h5")
    back = load_run(tmp_path / "run.h5")
    for field in dataclasses.fields(Run):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(run, field.name), err_msg=field.name)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    with h5py.File(tmp_path / "run.h5") as file:
        np.testing.assert_array_equal(np.asarray(file["h5md"].attrs["version"]), [1, 1])
        np.testing.assert_array_equal(np.asarray(file["particles/replica1/position/step"]), [10, 20, 30, 40])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, True), (False, False, False)], ids=str)
def test_other_programs_see_what_is_periodic(run: Run, tmp_path: Path, pbc: tuple[bool, bool, bool]) -> None:
    """Slabs, wires and molecules: which directions are periodic, and the vacuum about them."""
    cell = np.array([[6.0, 0.0, 0.0], [1.0, 6.5, 0.0], [0.0, 0.0, 25.0]])
    open_run = dataclasses.replace(run, pbc=np.array(pbc), cells=np.stack([cell, cell]))
    assert not open_run.volume.any()
    open_run.save(tmp_path / "run.h5")
    export_extxyz(tmp_path / "run.h5", tmp_path / "run.xyz")
    exported: Any = ase.io.read(tmp_path / "run.xyz", 0)
    elsewhere: Any = znh5md.IO(str(tmp_path / "run.h5"), particles_group="replica0")[0]
    for atoms in (open_run[0], load_run(tmp_path / "run.h5")[0], exported, elsewhere):
        assert tuple(atoms.pbc) == pbc
        np.testing.assert_allclose(atoms.cell.array, cell, atol=1e-9)
    universe: Any = MDAnalysis.Universe.empty(3, trajectory=True)
    universe.load_new(str(tmp_path / "run.h5"), format="H5MD")
    np.testing.assert_allclose(triclinic_vectors(universe.trajectory[0].dimensions), cell, atol=1e-4)


def test_save_that_fails_leaves_the_old_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.h5"
    run.save(path)
    before = path.read_bytes()

    def fail(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(TrajectoryFile, "append", fail)
    with pytest.raises(OSError, match="no space left"):
        run.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_bad_files_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    run.save(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"run\.h5 is not a trajectory saved by jaxmlip, or is damaged"):
            load_run(path)
    with h5py.File(path, "w") as file:
        file["something"] = 1
    with pytest.raises(ValueError, match=r"run\.h5 is not a trajectory"):
        load_run(path)
    with pytest.raises(FileNotFoundError, match=r"There is no trajectory .*none\.h5"):
        load_run(tmp_path / "none.h5")


def test_stretch_of_a_run() -> None:
    run = as_run(np.random.default_rng(0).normal(size=(2, 6, 1, 3)), np.array([18]), 9.0 * np.eye(3))
    run = dataclasses.replace(run, lengths=np.array([6, 3]), observed={"density": np.arange(12.0).reshape(2, 6)})
    part = run.during(slice(2, 5))
    np.testing.assert_array_equal(part.positions, run.positions[:, 2:5])
    np.testing.assert_array_equal(part.cells, run.cells)
    np.testing.assert_array_equal(part.observed["density"], [[2, 3, 4], [8, 9, 10]])
    assert part.lengths.tolist() == [3, 1]
    assert part.time_fs.tolist() == [30.0, 40.0, 50.0]
    moving = dataclasses.replace(run, cells=np.array(run.frame_cells))
    assert moving.during(slice(4, None)).cells.shape == (2, 2, 3, 3)
    with pytest.raises(ValueError, match="not every 2"):
        run.during(slice(0, None, 2))
