"""Trajectories with the mark of a writer: damaged ones are refused at once, where HDF5 would wait for ever."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from made_runs import as_run

from jaxmlip.simulation import trajectory_file
from jaxmlip.simulation.marked_files import check_marked, lock_of, lookup3, no_writer
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.simulation.trajectory_file import TrajectoryFile


@pytest.fixture(scope="module")
def run() -> Run:
    positions = np.random.default_rng(0).normal(size=(2, 40, 3, 3))
    return as_run(positions, np.array([8, 1, 1]), 9.0 * np.eye(3))


@pytest.fixture(scope="module")
def marked(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as its writer left it when it was killed."""
    folder = tmp_path_factory.mktemp("marked")
    left, close = folder / "left.h5", TrajectoryFile.close

    def killed(self: TrajectoryFile) -> None:
        shutil.copy(self.path, left)
        close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryFile, "close", killed)
        run.save(folder / "whole.h5")
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(left, "r")
    return left


def test_checksums_are_those_of_the_original() -> None:
    """From the source of lookup3.c (its driver5)."""
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_what_was_left_is_read(marked: Path, run: Run) -> None:
    check_marked(marked)
    np.testing.assert_array_equal(load_run(marked).positions, run.positions)


def test_damaged_metadata_are_an_error(marked: Path, run: Run, tmp_path: Path, monkeypatch) -> None:
    """A changed byte, missing ends and lost blocks: a sentence, or the run if nothing is hit; never a wait."""
    opened_to_wait = []

    class Watched(h5py.File):
        def __init__(self, *where: Any, swmr: bool = False, **how: Any) -> None:
            if swmr:
                check_marked(where[0])  # or HDF5 would wait
                opened_to_wait.append(where)
            super().__init__(*where, swmr=swmr, **how)

    monkeypatch.setattr(h5py, "File", Watched)
    path, content, rng = tmp_path / "damaged.h5", marked.read_bytes(), np.random.default_rng(0)
    refused: list[str] = []
    for number in range(60):
        damaged, at = bytearray(content), int(rng.integers(len(content)))
        if number % 3 == 0:
            damaged[at] ^= 255
        else:
            damaged[at:] = bytes(len(damaged) - at if number % 3 == 1 else 0)
        path.write_bytes(damaged)
        try:
            assert load_run(path).positions.shape == run.positions.shape
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert all("damaged.h5 is not a trajectory saved by jaxmlip, or is damaged" in each for each in refused)
    assert opened_to_wait


def test_a_superblock_that_is_wrong(marked: Path, tmp_path: Path) -> None:
    content = bytearray(marked.read_bytes())
    content[20] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(OSError, match="checksum of its superblock is wrong"):
        check_marked(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(content[:20])
    with pytest.raises(OSError, match="no version that has marks"):
        check_marked(tmp_path / "a.h5")


def test_a_writer_at_work_is_seen(marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is in the middle of is nothing to look at without it."""
    monkeypatch.setattr(trajectory_file, "WRITER_PATIENCE_S", 0.05)
    path = Path(shutil.copy(marked, tmp_path / "run.h5"))
    for _ in range(2):
        with no_writer(path) as gone:
            assert gone
        with TrajectoryFile.reopen(path), no_writer(path) as gone:
            assert not gone
    lock_of(path).touch()  # as one leaves it that was killed
    with no_writer(path) as gone:
        assert gone
        with pytest.raises(ValueError, match="Another process is writing"):
            TrajectoryFile.reopen(path)


@pytest.mark.parametrize("lost", ["particles/replica0/position", "observables/replica0/temperature"])
def test_a_series_that_every_run_has(run: Run, tmp_path: Path, lost: str) -> None:
    run.save(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file[lost]
    with pytest.raises(ValueError, match="or is damaged"):
        load_run(tmp_path / "run.h5")
