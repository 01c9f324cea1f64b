"""Dynamics of ice with a trained student, whose making is in `data`."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.potentials.files import load
from jaxmlip.potentials.potential import Potential, evaluate
from jaxmlip.simulation.ensembles import NVE
from jaxmlip.simulation.relaxation import relax
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.ice import ice_ih

pytestmark = pytest.mark.physics


@pytest.fixture(scope="module")
def student() -> Potential:
    found = load(Path(__file__).parent / "data" / "ice_student.jaxmlip")
    assert isinstance(found, Potential)
    return found


@pytest.fixture(scope="module")
def crystal(student: Potential) -> Atoms:
    """16 molecules at rest."""
    relaxed = relax(student, ice_ih(cells=(2, 1, 1), seed=0), 0.05)
    assert relaxed.converged
    return relaxed.atoms


def energies(student: Potential, crystal: Atoms, timestep_fs: float, time_ps: float, replicas: int = 2) -> Run:
    """A run that settles at half of its 300 K at the start; at 250 K so small a student can lose a proton in 10 ps."""
    run = simulate(
        student, crystal, NVE(300.0), time_ps=time_ps, timestep_fs=timestep_fs, replicas=replicas, sample_every_fs=2.0,
        progress=False, seed=1,
    )  # fmt: skip
    assert run.conserved is not None
    assert 120.0 < run.temperature[:, run.n_frames // 5 :].mean() < 190.0
    return run


def slopes(run: Run) -> np.ndarray:
    """Drift of each replica in eV/atom/ps, without the first fifth."""
    assert run.conserved is not None
    first = run.n_frames // 5
    return np.polyfit(run.time_fs[first:] / 1000.0, run.conserved[:, first:].T / len(run.numbers), 1)[0]


@pytest.mark.slow
def test_energy_is_conserved(student: Potential, crystal: Atoms) -> None:
    """Fluctuations are of second order in the timestep, and the energy does not drift."""
    coarse, fine = (energies(student, crystal, timestep_fs, 0.5) for timestep_fs in (0.5, 0.25))
    ratio = coarse.conserved.std(axis=1).mean() / fine.conserved.std(axis=1).mean()  # pyright: ignore[reportOptionalMemberAccess]
    assert 3.2 < ratio < 5.0
    assert abs(slopes(fine).mean()) < 3e-5, "eV/atom/ps; half a picosecond tells no more, the next test does"

    frame = fine[-1]
    direct = evaluate(student, graph_from_atoms(frame, student.cutoff))
    relative = frame.info["potential_energy"] - student.references[crystal.numbers].sum()
    assert relative == pytest.approx(float(direct.energy[0]), abs=1e-4)


@pytest.mark.slow
def test_energy_does_not_drift(student: Potential, crystal: Atoms, agrees) -> None:
    """Ten picoseconds at the usual timestep."""
    run = energies(student, crystal, 0.5, 10.0, replicas=4)
    drift = 1e6 * slopes(run)
    error = drift.std(ddof=1) / np.sqrt(len(drift))
    assert abs(drift.mean()) < 10.0
    assert error < 5.0
    agrees("NVE, ice with a student, 0.5 fs, 10 ps: drift, 10⁻⁶ eV/atom/ps", drift.mean(), error, 0.0)
