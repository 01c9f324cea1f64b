"""A trajectory's file between those who read and write it."""

import fcntl
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import fcc
from test_recording import record

from jaxmlip.simulation import h5md
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.simulation.trajectory_file import TrajectoryFile


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "run.h5"
    record(path, fcc(2))
    return path


@pytest.mark.slow
def test_readers_and_writers_wait_for_each_other(recorded: Path, tmp_path: Path) -> None:
    """One process opens the file to write and closes it, again and again, while another reads it."""
    path = Path(shutil.copy(recorded, tmp_path))
    text = f"""
        from pathlib import Path
        from jaxmlip.simulation.trajectory_file import TrajectoryFile
        print("begins", flush=True)
        for _ in range(40):
            with TrajectoryFile.reopen(Path({str(path)!r})):
                pass
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "begins\n"
    frames = set()
    while writer.poll() is None:
        frames.add(load_run(path).n_frames)
    assert writer.returncode == 0
    assert frames == {load_run(recorded).n_frames}


def test_who_keeps_the_file_open_is_told(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5md, "LOCK_PATIENCE_S", 0.1)
    path = Path(shutil.copy(recorded, tmp_path))
    before = path.read_bytes()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for attempt in (load_run, TrajectoryFile.reopen):
            with pytest.raises(ValueError, match="kept open by another program"):
                attempt(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
