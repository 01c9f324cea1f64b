"""Every thermostat and barostat before physical_validation (Merz and Shirts, PLoS ONE 13, e0202764 (2018)).

One run holds replicas at two states; the ratio of their distributions must be the exact one, whatever the system.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import physical_validation as pv
import pytest
from ase import Atoms
from conftest import run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS
from test_barostats import REDUCED_GPA, reduced_npt

from jaxmlip.observables.statistics import statistical_inefficiency
from jaxmlip.simulation.barostats import NPTNoseHoover
from jaxmlip.simulation.ensembles import NVT, Ensemble, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import KB

pytestmark = pytest.mark.physics

REPLICAS = 16
"""At each of the two states."""

KEPT = 40
"""Frames after equilibration; one every 0.05 reduced times."""

TEMPERATURES = np.repeat(REDUCED_K * np.array([1.0, 0.92]), REPLICAS)
PRESSURES = np.repeat([1.0, 1.3], REPLICAS)
FAST = {"pressure_time_ps": 5e-5 * REDUCED_TIME_FS}
"""The cell follows at once, so that frames are soon independent."""

PERIODS = {"temperature_time_ps": 3e-4 * REDUCED_TIME_FS, "pressure_time_ps": 3e-4 * REDUCED_TIME_FS}
AT_TWO_TEMPERATURES = {
    "Langevin": NVT(TEMPERATURES, friction_per_ps=2000.0 / REDUCED_TIME_FS),
    "Nosé–Hoover": NVTNoseHoover(TEMPERATURES, temperature_time_ps=5e-4 * REDUCED_TIME_FS),
    "velocity rescaling": NVTVelocityRescaling(TEMPERATURES, temperature_time_ps=2e-4 * REDUCED_TIME_FS),
    "cell rescaling": dataclasses.replace(reduced_npt(**FAST), temperature_K=TEMPERATURES),
    "orthorhombic": dataclasses.replace(reduced_npt(cell="orthorhombic", **FAST), temperature_K=TEMPERATURES),
    "extended dynamics": NPTNoseHoover(TEMPERATURES, REDUCED_GPA, **PERIODS),
}
AT_TWO_PRESSURES = {
    "cell rescaling": reduced_npt(PRESSURES.tolist(), **FAST),
    "orthorhombic": reduced_npt(PRESSURES.tolist(), cell="orthorhombic", **FAST),
    "extended dynamics": NPTNoseHoover(REDUCED_K, PRESSURES * REDUCED_GPA, **PERIODS),
}


@pytest.fixture(autouse=True)
def _single_precision_afterwards() -> Iterator[None]:
    """pymbar, which physical_validation asks for free energies, turns double precision on for the whole process."""
    yield
    jax.config.update("jax_enable_x64", False)


def simulated(structure: Atoms, ensemble: Ensemble) -> Run:
    """The first half of the replicas at one state, the second at the other; a frame every 0.05 reduced times."""
    steps = 4000 if ensemble.moves_cell else 1600  # volumes are slow
    return run_fluid(structure, ensemble=ensemble, replicas=2 * REPLICAS, steps=steps, skin=0.4, seed=11)


def as_data(run: Run, ensemble: Ensemble, state: int, temperature_K: float, pressure: float) -> Any:
    """Independent frames of the replicas at one of the two states, as physical_validation wants them."""
    mine = slice(state * REPLICAS, (state + 1) * REPLICAS)
    degrees = ensemble.degrees_of_freedom(32)
    series = {
        "potential_energy": run.potential_energy[mine, KEPT:],
        "kinetic_energy": 0.5 * degrees * KB * run.temperature[mine, KEPT:],
        "volume": run.volume[mine, KEPT:],
    }
    apart = max(statistical_inefficiency(values) for values in series.values() if values.std() > 1e-6)
    series = {name: values[:, :: int(np.ceil(apart))].ravel() for name, values in series.items()}
    assert len(series["volume"]) > 50
    name, state_of = "NVT", {"volume": float(series["volume"][0])}
    if ensemble.moves_cell:
        name, state_of = "NPT", {"pressure": pressure}
    return pv.data.SimulationData(
        units=pv.data.UnitData(KB, 96.48533, 0.1, 1e-3, 1.0, 1.6021766e6, 1.0),  # to kJ/mol, nm, nm³, K, bar, ps
        ensemble=pv.data.EnsembleData(name, natoms=32, temperature=temperature_K, **state_of),
        system=pv.data.SystemData(
            natoms=32, nconstraints=0, ndof_reduction_tra=96 - degrees, ndof_reduction_rot=0, mass=np.ones(32)
        ),
        observables=pv.data.ObservableData(
            **series, total_energy=series["kinetic_energy"] + series["potential_energy"]
        ),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * e.moves_cell) for n, e in AT_TWO_TEMPERATURES.items()]
)
def test_kinetic_and_configurational_distributions(small_fluid: Atoms, name: str) -> None:
    """Mean and width of the kinetic energy, and how energies (enthalpies) of two temperatures are distributed."""
    ensemble = AT_TWO_TEMPERATURES[name]
    run = simulated(small_fluid, ensemble)
    states = [as_data(run, ensemble, n, float(TEMPERATURES[-n]), 1.0) for n in (0, 1)]
    for state in states:
        deviations = pv.kinetic_energy.distribution(
            state, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
        assert np.abs(deviations).max() < 3.0, "σ of mean and width"
    deviations = pv.ensemble.check(*states, verbosity=0, data_is_uncorrelated=True)
    assert np.abs(deviations).max() < 3.0, "σ"


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_TWO_PRESSURES)
def test_volumes_follow_the_pressure(small_fluid: Atoms, name: str) -> None:
    """Volumes at two pressures are distributed as one thermodynamics has it, and fluctuate as compressible as it is."""
    ensemble = AT_TWO_PRESSURES[name]
    run = simulated(small_fluid, ensemble)
    states = [as_data(run, ensemble, n, REDUCED_K, float(PRESSURES[-n])) for n in (0, 1)]
    deviations = pv.ensemble.check(*states, verbosity=0, data_is_uncorrelated=True)
    assert np.abs(deviations).max() < 3.0, "σ"

    # −∂⟨V⟩/∂P = Var(V)/kT, here over a finite change of pressure, with the mean of the fluctuations at both ends.
    volumes = [state.observables.volume for state in states]
    means, variances = [v.mean() for v in volumes], [v.var(ddof=1) for v in volumes]
    change = (means[0] - means[1]) / (PRESSURES[-1] - PRESSURES[0])
    fluctuation = 0.5 * sum(variances)
    change_error = np.sqrt(sum(v.var() / len(v) for v in volumes)) / (PRESSURES[-1] - PRESSURES[0])
    fluctuation_error = 0.5 * np.sqrt(sum(2.0 * s**2 / len(v) for s, v in zip(variances, volumes, strict=True)))
    assert abs(change - fluctuation) < 3.0 * np.hypot(change_error, fluctuation_error) + 0.05 * fluctuation
