"""Runs whose frames go to a file: the same trajectory, whatever happens on the way."""

import contextlib
import fcntl
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from conftest import DT, FLUID, fcc, fluid_options, run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, Wells, lennard_jones

from jaxmlip.simulation import recording, trajectory_file
from jaxmlip.simulation.barostats import NPT, NPTNoseHoover
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVE, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.marked_files import lock_of
from jaxmlip.simulation.recording import FRAMES_BETWEEN_WRITES, Recorder
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Outcome, Run, export_extxyz, load_run
from jaxmlip.units import GPA

ARRAYS = ("positions", "cells", "potential_energy", "temperature", "conserved", "pressure_GPa", "time_fs", "lengths")


def record(path: Path, structure: Any, ensemble: Ensemble = FLUID, **options: Any) -> Any:
    """As `run_fluid`, to a file."""
    return simulate(lennard_jones(), structure, ensemble, to=path, **fluid_options(**options))


def assert_same(one: Run, other: Run) -> None:
    """Bit for bit."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.outcomes == other.outcomes


@pytest.mark.parametrize(
    "ensemble",
    [
        FLUID,
        pytest.param(NVE(REDUCED_K), marks=pytest.mark.slow),
        pytest.param(NVTNoseHoover(REDUCED_K, 1e-4 * REDUCED_TIME_FS), marks=pytest.mark.slow),
        pytest.param(NVTVelocityRescaling(REDUCED_K, 1e-4 * REDUCED_TIME_FS), marks=pytest.mark.slow),
        pytest.param(
            NPT(REDUCED_K, 0.5 / GPA, "flexible", friction_per_ps=1000.0 / REDUCED_TIME_FS), marks=pytest.mark.slow
        ),
        NPTNoseHoover(REDUCED_K, 0.5 / GPA),
    ],
    ids=lambda ensemble: type(ensemble).__name__,
)
def test_stopped_and_resumed_is_undisturbed(small_fluid: Atoms, tmp_path: Path, ensemble: Ensemble) -> None:
    """Thermostats, cells, random keys and neighbour lists all go on where they were."""
    undisturbed = run_fluid(small_fluid, ensemble=ensemble, replicas=2, steps=80)
    first = record(tmp_path / "run.h5", small_fluid, ensemble, replicas=2, steps=30)
    assert (first.frames, first.resumed) == (3, 0)
    second = record(tmp_path / "run.h5", small_fluid, ensemble, replicas=2, steps=80, skin=0.4)
    assert (second.frames, second.resumed) == (8, 3)
    assert_same(load_run(tmp_path / "run.h5"), undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5"]
    again = record(tmp_path / "run.h5", small_fluid, ensemble, replicas=2, steps=80)
    assert (again.frames, again.resumed) == (8, 8), "a finished run does no work"
    assert_same(load_run(tmp_path / "run.h5"), undisturbed)


def as_before(path: Path) -> None:
    """Make of a file one as earlier versions wrote it."""
    with h5py.File(path, "r+") as file:
        file["h5md/creator"].attrs["version"] = "jaxmlip-run-2"
        box: Any = file["particles/replica0/box"]
        pbc = [each == "periodic" for each in box.attrs["boundary"]]
        box.attrs["boundary"] = np.array(["periodic" if each else "none" for each in pbc], dtype="S8")
        cells: Any = file["parameters/cells"]
        for dataset in (cells, box["edges/value"]):
            dataset[...] = np.where(np.array(pbc)[:, None], dataset[...], 0.0)


def test_slabs_keep_their_vacuum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In memory and in files; a file of an earlier version goes on as it is, and its pbc is right."""
    path = tmp_path / "run.h5"
    slab = Atoms("O2", positions=[[0.0, 0.0, 12.0], [2.5, 2.0, 12.5]], cell=[6.0, 7.0, 25.0], pbc=(True, True, False))
    wells = Wells({"k": np.float32(10.0), "centres": slab.positions.astype(np.float32)})
    options: dict[str, Any] = {"sample_every_fs": 0.5}
    undisturbed = simulate(wells, slab, NVE(300.0), steps=4, progress=True, **options)
    drawn = capsys.readouterr().err.split("\r")
    assert "compiling:   0%" in drawn[1]
    assert "compiling" not in "".join(drawn[2:])
    assert "100%" in drawn[-1]
    simulate(wells, slab, NVE(300.0), to=path, steps=2, progress=False, **options)
    for run in (undisturbed, load_run(path)):
        assert run[0].cell.lengths().tolist() == [6.0, 7.0, 25.0]
        assert run[0].pbc.tolist() == [True, True, False]
        assert not run.volume.any()
    as_before(path)
    assert load_run(path)[0].pbc.tolist() == [True, True, False]
    assert simulate(wells, slab, NVE(300.0), to=path, steps=4, progress=False, **options).resumed == 2
    run = load_run(path)
    np.testing.assert_array_equal(run.positions, undisturbed.positions)
    assert run[3].pbc.tolist() == [True, True, False]
    assert run[3].cell.lengths().tolist() == [6.0, 7.0, 0.0], "which is all that the file knew"


def test_frames_are_written_in_pieces(small_fluid: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in memory is bounded, so that memory does not grow with the length of the run."""
    waiting = []
    whole = Recorder.write

    def counted(self: Recorder) -> None:
        waiting.append(len(self._waiting))
        whole(self)

    monkeypatch.setattr(Recorder, "write", counted)
    steps = 2 * FRAMES_BETWEEN_WRITES + 10
    record(tmp_path / "run.h5", small_fluid, steps=steps, sample_every_fs=DT)
    assert waiting[:3] == [FRAMES_BETWEEN_WRITES, FRAMES_BETWEEN_WRITES, 10]
    assert load_run(tmp_path / "run.h5").n_frames == steps
    assert_same(load_run(tmp_path / "run.h5"), run_fluid(small_fluid, steps=steps, sample_every_fs=DT))


FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
"""Where programs find what tests share."""

PROGRAM = """
import sys
sys.path[:0] = {tests!r}
from conftest import DT, fcc
from test_recording import record
from jaxmlip.simulation import recording
recording.SECONDS_BETWEEN_WRITES = 0.0
print("begins", flush=True)
print(record({path!r}, fcc(2), replicas=2, steps={steps}, sample_every_fs=DT, on_failure="mark").frames)
"""


def program(path: Path, steps: int) -> list[str]:
    """The command line of a process that records a run, writing every frame by itself."""
    text = PROGRAM.format(tests=FOLDERS, path=str(path), steps=steps)
    return [sys.executable, "-c", textwrap.dedent(text)]


def frames_in(path: Path) -> int:
    return load_run(path).n_frames if path.exists() else 0


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    """A process that writes all the time is killed; what is there can be read, and the run goes on from it."""
    path, steps = tmp_path / "run.h5", 600
    process = subprocess.Popen(program(path, steps), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    deadline = time.monotonic() + 120
    while frames_in(path) < 20:  # read while it is written
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = load_run(path)
    assert 20 <= run.n_frames < steps
    assert np.isfinite(run.positions).all()
    assert run.outcomes == (Outcome.UNFINISHED,) * 2
    structure = fcc(2)
    finished = record(path, structure, replicas=2, steps=steps, sample_every_fs=DT)
    assert finished.resumed == run.n_frames
    assert_same(load_run(path), run_fluid(structure, replicas=2, steps=steps, sample_every_fs=DT))


LONG_RUN = """
import resource, sys
sys.path[:0] = {tests!r}
import numpy as np
from ase import Atoms
from simple_potentials import Wells
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.simulate import simulate
atoms = Atoms("O8", positions=4.0 * np.indices((2, 2, 2)).reshape(3, -1).T)
wells = Wells({{"k": np.float32(10.0), "centres": atoms.positions.astype(np.float32)}})
run = simulate(wells, atoms, NVT(300.0), to={path!r}, time_ps={time_ps}, replicas=10, progress=False)
print(run.frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """Peak memory of ten replicas over 10 and over 100 ps, a frame every 10 fs."""
    peaks = []
    for time_ps in (10, 100):
        path = tmp_path / f"{time_ps}.h5"
        text = LONG_RUN.format(tests=FOLDERS, path=str(path), time_ps=time_ps)
        printed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        frames, peak = map(int, printed.split())
        assert frames == 100 * time_ps
        peaks.append(peak / 1024)
    assert peaks[1] < peaks[0] + 20.0, "MiB"


@contextlib.contextmanager
def limited(most: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files fails as a full disk does: the message says so, and no frame is lost."""
    path, structure = tmp_path / "run.h5", fcc(2)
    record(path, structure, replicas=2, steps=30, sample_every_fs=DT, on_failure="mark")
    before = load_run(path)
    with monkeypatch.context() as patch, limited(2**20):
        patch.setattr(recording, "SECONDS_BETWEEN_WRITES", 0.0)
        with pytest.raises(OSError, match=r"is the disk full\? It keeps its first 30 frames"):
            record(path, structure, replicas=2, steps=100, sample_every_fs=DT, on_failure="mark")
    assert_same(load_run(path), before)
    assert record(path, structure, replicas=2, steps=100, sample_every_fs=DT).resumed == 30
    assert_same(load_run(path), run_fluid(structure, replicas=2, steps=100, sample_every_fs=DT))
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5"]


def test_refuses_what_is_not_the_same_run(small_fluid: Atoms, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, small_fluid, seed=1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run.h5 holds another run: seed is 1 there and 0 here"):
        record(path, small_fluid)
    copies: Any = [small_fluid.copy() for _ in range(4)]
    shifted, heavier, changed, thin = copies
    shifted.positions += 0.1
    heavier.set_masses(np.full(32, 2.0))
    changed.numbers[0] = 2
    thin.pbc = (True, True, False)
    others = {
        "it started from other positions, or from another cell": {"structure": shifted},
        "it started in another cell": {"structure": fcc(2, density=0.7)},
        "its atoms are Ar32 there and HeAr31 here": {"structure": changed},
        r"it is periodic along \[True, True, True\] there and \[True, True, False\] here": {"structure": thin},
        "its atoms have other masses": {"structure": heavier},
        "replicas is 1 there and 2 here": {"replicas": 2},
        "ensemble is .* there and .* here, and timestep_fs is .* here": {"ensemble": NVE(REDUCED_K), "timestep_fs": 1},
        "what it is compared with is no potential there and another potential here": {"against": lennard_jones()},
    }
    for words, options in others.items():
        with pytest.raises(ValueError, match=f"run.h5 holds another run: [^;]*{words}") as refused:
            record(path, **{"structure": small_fluid, "seed": 1} | options)
        assert re.search("[0-9a-f]{32}", str(refused.value)) is None, "no digests"
    other = LennardJones({"epsilon": np.float32(1.1), "sigma": np.float32(1.0)})
    with pytest.raises(ValueError, match=r"another run: it is of another potential; choose another file"):
        simulate(other, small_fluid, FLUID, to=path, **fluid_options(seed=1))
    with pytest.raises(
        ValueError, match=r"run.h5 already holds 4 frames \(0.0020361 ps\), more than the 2 \(0.00101805 ps\)"
    ):
        record(path, small_fluid, seed=1, steps=20, progress=True)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match=r"run.h5 is no trajectory that can go on, or is damaged"):
        record(path, small_fluid, seed=1)
    run_fluid(small_fluid).save(path)
    with pytest.raises(ValueError, match=r"run.h5 is of a run that was saved as a whole, and cannot go on"):
        record(path, small_fluid, seed=1)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(ValueError, match=r"other.h5 is no trajectory that can go on"):
        record(tmp_path / "other.h5", small_fluid)


def test_time_that_is_no_whole_number_of_frames_is_said(small_fluid: Atoms, tmp_path: Path) -> None:
    options: dict[str, Any] = fluid_options(time_ps=35.0 * DT / 1000) | {"steps": None}
    said = "0.00178159 ps is not a whole number of the 0.509025 fs between frames: 0.00152708 ps are simulated, 3 frame"
    with pytest.warns(UserWarning, match=said):
        assert simulate(lennard_jones(), small_fluid, FLUID, **options).n_frames == 3
    with pytest.warns(UserWarning, match=said):
        assert simulate(lennard_jones(), small_fluid, FLUID, to=tmp_path / "run.h5", **options).frames == 3


def test_one_process_writes_at_a_time(small_fluid: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is under way keeps others out, and is kept out by them."""
    path, refused, write = tmp_path / "run.h5", [], Recorder.write

    def looked_at(self: Recorder) -> None:
        with lock_of(path).open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(True)
        write(self)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", looked_at)
        record(path, small_fluid, steps=20)
    assert refused
    monkeypatch.setattr(trajectory_file, "WRITER_PATIENCE_S", 0.1)
    with lock_of(path).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"Another process is writing .*run.h5"):
            record(path, small_fluid)


def test_failure_is_in_the_file(tmp_path: Path) -> None:
    """A replica that fails is marked, before and after another start of the same run."""
    starts = [fcc(2), fcc(2)]
    starts[1].positions[0] = starts[1].positions[1] + 0.4
    for steps in (20, 40):
        recorded = record(tmp_path / "run.h5", starts, steps=steps, on_failure="mark")
        assert recorded.outcomes[0] is Outcome.COMPLETED
        assert recorded.outcomes[1] in (Outcome.EXPLODED, Outcome.TOO_HOT, Outcome.NOT_FINITE)
    run = load_run(tmp_path / "run.h5")
    assert run.lengths.tolist() == [4, 0]
    assert np.isnan(run.positions[1]).all()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at constant pressure."""
    path = tmp_path_factory.mktemp("recorded") / "run.h5"
    barostat = NPT(REDUCED_K, 0.5 / GPA, friction_per_ps=1000.0 / REDUCED_TIME_FS)
    record(path, fcc(2), barostat, replicas=2, steps=60)
    return path


def test_mdanalysis_reads_it(recorded: Path) -> None:
    """Its reader takes the first replica."""
    import MDAnalysis
    from MDAnalysis.lib.mdamath import triclinic_vectors

    run = load_run(recorded)
    universe: Any = MDAnalysis.Universe.empty(run.positions.shape[2], trajectory=True)
    universe.load_new(str(recorded), format="H5MD")
    assert len(universe.trajectory) == 6
    for frame, now in enumerate(universe.trajectory):
        np.testing.assert_allclose(universe.atoms.positions, run.positions[0, frame], rtol=1e-6)
        np.testing.assert_allclose(triclinic_vectors(now.dimensions), run.cells[0, frame], atol=1e-4)
        assert now.time == pytest.approx(run.time_fs[frame] / 1000, rel=1e-6)  # ps


def test_znh5md_reads_it(recorded: Path) -> None:
    """As ASE's Atoms, any replica."""
    import znh5md

    run = load_run(recorded)
    frames = znh5md.IO(str(recorded), particles_group="replica1")[:]
    assert len(frames) == 6
    for atoms, ours in zip(frames, run[6:], strict=True):
        np.testing.assert_array_equal(atoms.numbers, ours.numbers)
        np.testing.assert_allclose(atoms.positions, ours.positions, rtol=1e-6)
        np.testing.assert_allclose(atoms.cell, ours.cell, rtol=1e-6)
        assert atoms.pbc.all()


def test_export_as_extended_xyz(recorded: Path, tmp_path: Path) -> None:
    run = load_run(recorded)
    assert export_extxyz(recorded, tmp_path / "run.xyz", every=2) == 6
    frames: Any = ase.io.read(tmp_path / "run.xyz", ":")
    for atoms, ours in zip(frames, run.frames(stride=2), strict=True):
        np.testing.assert_allclose(atoms.positions, ours.positions, atol=1e-6)
        np.testing.assert_allclose(atoms.cell, ours.cell, atol=1e-6)
        assert {key: atoms.info[key] for key in ours.info} == pytest.approx(ours.info)
    thinned = load_run(recorded, every=2)
    np.testing.assert_array_equal(thinned.positions, run.positions[:, 1::2])
    assert thinned.lengths.tolist() == [3, 3]
    with pytest.raises(ValueError, match="A stride is 1 or more, not 0"):
        load_run(recorded, every=0)
    with pytest.raises(FileNotFoundError, match=r"There is no trajectory .*absent.h5"):
        export_extxyz(tmp_path / "absent.h5", tmp_path / "absent.xyz")
    assert [file.name for file in tmp_path.iterdir()] == ["run.xyz"]
