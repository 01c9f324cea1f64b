"""What `average` says of runs that have not settled, or are shorter than what drives them."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_runs import as_run

from jaxmlip.observables.estimate import Status
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Temperature
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVE, NVT, NVTVelocityRescaling
from jaxmlip.simulation.schedules import Ramp, longest_ramp_ps
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.validation.averages import average

CELL = 5.0 * np.eye(3)


def still(replicas: int = 8, *, frames: int = 400, constants: dict[str, float] | None = None) -> Run:
    """One atom at rest; temperatures and energies are noise. Frames are 10 fs apart."""
    positions = np.zeros((replicas, frames, 1, 3))
    return dataclasses.replace(as_run(positions, np.array([18]), CELL), time_constants_ps=constants or {})


def test_what_is_discarded_and_what_is_kept() -> None:
    """Five of the slowest time constants after the ramp go, two must stay, and forty for OK."""
    assert average(still(), Temperature()).unit == "K"
    assert average(still(constants={"thermostat": 0.05}), Temperature()).discarded_fs >= 250.0
    assert average(still(constants={"thermostat": 0.05, "barostat": 0.1}), Temperature()).discarded_fs >= 500.0
    assert average(still(constants={"thermostat": 0.05, "ramp": 1.0}), Temperature()).discarded_fs >= 1250.0
    known = average(still(32, constants={"thermostat": 0.05}), Temperature(), equilibration=0.25)
    assert known.status is Status.OK
    assert known.error > 0
    slower = average(still(32, constants={"thermostat": 0.1}), Temperature(), equilibration=0.25)
    assert slower.status is Status.SLOW_MOTION
    assert slower.error == known.error
    for constants in ({"thermostat": 0.41}, {"thermostat": 0.05, "barostat": 0.5}, {"ramp": 2.5}):
        short = average(still(constants=constants), Temperature())
        assert short.status is Status.TOO_SHORT
        assert np.isnan(short.error)
        assert np.isnan(short.effective_samples)
        assert float(short) == pytest.approx(300.0, abs=2.0)
    assert average(still(constants={"thermostat": 1.9}), Temperature(), equilibration=0).status.has_error
    assert average(still(constants={"thermostat": 2.1}), Temperature(), equilibration=0).status is Status.TOO_SHORT


def test_runs_without_time_constants_prove_themselves() -> None:
    """What temperature, energy and volume show takes the place of the constants: a slow start is noticed."""
    run = still()
    frames = np.arange(run.n_frames)

    def warming(decay: float) -> Run:
        return dataclasses.replace(run, temperature=run.temperature - 150.0 * np.exp(-frames / decay))

    assert average(run, PotentialEnergy()).status is Status.OK
    assert average(warming(100.0), PotentialEnergy()).status is Status.TOO_SHORT
    # It cannot be told from a run of which this is all that is known.
    assert average(warming(100.0), PotentialEnergy(), equilibration=2.0).status is not Status.TOO_SHORT
    quick = average(warming(4.0), PotentialEnergy())
    assert quick.status.has_error
    assert quick.discarded_fs >= 100.0
    cells = CELL * (1.0 + 0.01 * np.exp(-frames / 100.0))[None, :, None, None] * np.ones((8, 1, 1, 1))
    assert average(dataclasses.replace(run, cells=cells), Temperature()).status is Status.TOO_SHORT


def test_every_series_must_settle() -> None:
    """A volume that creeps is enough, whatever energy and temperature do."""
    run = still(constants={"thermostat": 0.01})
    frames = np.arange(run.n_frames)
    cells = CELL * (1.0 + 0.002 * np.random.default_rng(1).normal(size=(8, run.n_frames, 1, 1)))
    assert average(dataclasses.replace(run, cells=cells), Density()).status.has_error
    creeping = dataclasses.replace(run, cells=cells * (1.0 + 0.004 * frames / len(frames))[None, :, None, None])
    for observable in (Density(), Temperature()):
        found = average(creeping, observable)
        assert found.status is Status.NOT_EQUILIBRATED
        assert np.isnan(found.error)
    cooling = dataclasses.replace(run, potential_energy=run.potential_energy - 2.0 * frames / len(frames))
    assert average(cooling, Temperature(), equilibration=0).status is Status.NOT_EQUILIBRATED


def test_observables_of_one_run_belong_together() -> None:
    """Total energy by kinetic and potential energies that are perfectly anticorrelated: it is known exactly."""
    run = still()
    run = dataclasses.replace(run, potential_energy=-0.001 * run.temperature)
    energy, temperature = (average(run, each, equilibration=0) for each in (PotentialEnergy(), Temperature()))
    kinetic = dataclasses.replace(temperature * 0.001, unit="eV")
    assert (energy + kinetic).error == pytest.approx(0.0, abs=1e-9)
    assert (energy - kinetic).error == pytest.approx(2 * energy.error)


def test_ensembles_tell_their_time_constants(tmp_path: Path) -> None:
    """They are in runs and in files; files of before have none."""
    assert NVE(300.0).time_constants_ps == {}
    assert NVT(300.0, friction_per_ps=4.0).time_constants_ps == {"thermostat": 0.25}
    assert NVTVelocityRescaling(300.0).time_constants_ps == {"thermostat": 0.1}
    assert NPT(300.0, pressure_time_ps=2.0).time_constants_ps == {"thermostat": 0.5, "barostat": 2.0}
    assert longest_ramp_ps(NVT(Ramp(300.0, 200.0, time_ps=3.0)).schedules(2)) == pytest.approx(3.0, rel=1e-5)
    assert longest_ramp_ps(NVT(300.0).schedules(2)) == 0.0

    run = still(2, frames=5, constants={"thermostat": 0.25})
    run.save(tmp_path / "run.h5")
    assert load_run(tmp_path / "run.h5").time_constants_ps == {"thermostat": 0.25}
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file["parameters"].attrs["time_constants_ps"]
    assert load_run(tmp_path / "run.h5").time_constants_ps == {}
