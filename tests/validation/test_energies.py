"""Energies of potentials in the frames of runs: exact, in pieces, from files, and resumed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from made_runs import as_run
from morse import Morse, morse

from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import reference_energy
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.validation import energies as module
from jaxmlip.validation.energies import frame_energies


@pytest.fixture(scope="module")
def run() -> Run:
    """Rattled copper in three replicas, one of which failed."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    rng = np.random.default_rng(0)
    moved = atoms.positions + rng.normal(scale=0.08, size=(3, 7, len(atoms), 3))
    outcomes = (Outcome.COMPLETED, Outcome.TOO_HOT, Outcome.COMPLETED)
    return as_run(moved, atoms.numbers, atoms.cell.array, outcomes=outcomes, lengths=np.array([7, 3, 7]))


def pair(large: float = 0.0) -> list[Morse]:
    """Two potentials; with large references, whose sum single precision does not hold."""
    found = []
    for depth in (0.3, 0.31):
        one = morse(depth=depth)
        found.append(one.replace(references=one.references + large))
    return found


def test_energies_are_those_of_predict(run: Run) -> None:
    found = frame_energies(run, pair())
    assert found.shape == (2, 2, 7)
    for potential, energies in zip(pair(), found, strict=True):
        frames = predict(potential, [run[n] for n in (*range(7), *range(10, 17))])
        np.testing.assert_allclose(energies.ravel(), [frame.energy for frame in frames], atol=2e-6)
    np.testing.assert_allclose(frame_energies(run, pair(), first=4), found[:, :, 4:], atol=1e-6)


def test_differences_survive_large_references(run: Run) -> None:
    small, large = (np.diff(frame_energies(run, pair(each)), axis=0) for each in (0.0, -1e6))
    np.testing.assert_allclose(large, small, atol=1e-8)


def test_from_a_file_in_pieces_and_resumed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two frames; a second call that is stopped in the middle goes on; a third does no work."""
    expected = frame_energies(run, pair())
    run.save(tmp_path / "run.h5")
    monkeypatch.setattr(module, "PIECE", 4)
    np.testing.assert_allclose(frame_energies(tmp_path / "run.h5", pair()), expected, atol=1e-6)

    evaluated = []
    whole = module._energies_of

    def stopped(*args):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(1)
        return whole(*args)

    monkeypatch.setattr(module, "_energies_of", stopped)
    kept = tmp_path / "energies.npz"
    with pytest.raises(KeyboardInterrupt):
        frame_energies(tmp_path / "run.h5", pair(), to=kept)
    monkeypatch.setattr(module, "_energies_of", lambda *args: (evaluated.append(1), whole(*args))[1])
    np.testing.assert_allclose(frame_energies(tmp_path / "run.h5", pair(), to=kept), expected, atol=1e-6)
    assert len(evaluated) == 4
    np.testing.assert_allclose(frame_energies(tmp_path / "run.h5", pair(), to=kept), expected, atol=1e-6)
    assert len(evaluated) == 4
    with pytest.raises(ValueError, match="of another run or of other potentials"):
        frame_energies(tmp_path / "run.h5", pair()[:1], to=kept)


def test_cells_that_move(run: Run, tmp_path: Path) -> None:
    """Frames of several volumes have lists that hold for all of them, in memory and from a file."""
    stretch = np.linspace(0.93, 1.05, 7)[None, :, None, None]
    cells = run.cells[:, None] * stretch
    moved = dataclasses.replace(run, positions=(run.positions * stretch).astype(np.float32), cells=cells)
    found = frame_energies(moved, pair())
    frames = predict(pair()[0], [moved[n] for n in range(7)])
    np.testing.assert_allclose(found[0, 0], [frame.energy for frame in frames], atol=5e-6)
    assert np.isfinite(found).all()
    moved.save(tmp_path / "moved.h5")
    np.testing.assert_allclose(frame_energies(tmp_path / "moved.h5", pair()), found, atol=2e-6)


def test_refuses(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know Cu"):
        frame_energies(run, [dataclasses.replace(morse(), known=(8,))])
    with pytest.raises(ValueError, match="none from 7 on"):
        frame_energies(run, pair(), first=7)
    failed = dataclasses.replace(run, outcomes=(Outcome.TOO_HOT,) * 3)
    with pytest.raises(ValueError, match="No replica ran to the end"):
        frame_energies(failed, pair())
    (tmp_path / "energies.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no file of frame energies"):
        frame_energies(run, pair(), to=tmp_path / "energies.npz")
    assert reference_energy(pair()[0], run.numbers) == pytest.approx(-10.0)
