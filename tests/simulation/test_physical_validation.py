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
from conftest import DT, fcc, run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS
from test_barostats import REDUCED_GPA, reduced_npt

from jaxmlip.observables.statistics import statistical_inefficiency
from jaxmlip.simulation.barostats import NPT, CellMotion, NPTNoseHoover
from jaxmlip.simulation.ensembles import NVT, Ensemble, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import KB

pytestmark = [pytest.mark.physics, pytest.mark.slow]

REPLICAS = 16
"""At each of the two states."""

LEFT_OUT = 60
"""Frames of equilibration; one every 0.025 reduced times."""

RINGS = 5
"""Times as long takes, and is run, a barostat without noise: at first it swings in step in all replicas."""

TIMESTEP = 0.5 * DT
"""Short: the kinetic energy of all these integrators is off by (ωh)²/4, which these tests would see."""

TEMPERATURES = np.repeat(REDUCED_K * np.array([1.0, 0.92]), REPLICAS)
PRESSURES = np.repeat([1.0, 2.0], REPLICAS)
COLD = 0.4
"""Volumes are those of a crystal, at so much of the temperatures: nothing holds the shape of a fluid's cell, and
32 atoms freeze and melt by turns."""

FAST = {"compressibility_per_GPa": 0.015 / REDUCED_GPA, "pressure_time_ps": 5e-5 * REDUCED_TIME_FS}
"""The cell follows at once, so that frames are soon independent."""

PERIODS = {"temperature_time_ps": 3e-4 * REDUCED_TIME_FS, "pressure_time_ps": 3e-4 * REDUCED_TIME_FS}


def rescaling(cell: CellMotion, temperature_K: Any, pressures: Any = 1.0) -> NPT:
    """Cell rescaling for the crystal."""
    ensemble = reduced_npt(pressures, cell=cell, **FAST)
    return dataclasses.replace(ensemble, temperature_K=(COLD * np.asarray(temperature_K)).tolist())


AT_TWO_TEMPERATURES = {
    "Langevin": NVT(TEMPERATURES, friction_per_ps=2000.0 / REDUCED_TIME_FS),
    "Nosé–Hoover": NVTNoseHoover(TEMPERATURES, temperature_time_ps=5e-4 * REDUCED_TIME_FS),
    "velocity rescaling": NVTVelocityRescaling(TEMPERATURES, temperature_time_ps=2e-4 * REDUCED_TIME_FS),
    "cell rescaling": rescaling("isotropic", TEMPERATURES),
    "orthorhombic": rescaling("orthorhombic", TEMPERATURES),
    "flexible": rescaling("flexible", TEMPERATURES),
    "extended dynamics": NPTNoseHoover(COLD * TEMPERATURES, REDUCED_GPA, **PERIODS),
}
AT_TWO_PRESSURES = {
    "cell rescaling": rescaling("isotropic", REDUCED_K, PRESSURES.tolist()),
    "orthorhombic": rescaling("orthorhombic", REDUCED_K, PRESSURES.tolist()),
    "flexible": rescaling("flexible", REDUCED_K, PRESSURES.tolist()),
    "extended dynamics": NPTNoseHoover(COLD * REDUCED_K, PRESSURES * REDUCED_GPA, **PERIODS),
}


@pytest.fixture(autouse=True)
def _single_precision_afterwards() -> Iterator[None]:
    """pymbar, which physical_validation asks for free energies, turns double precision on for the whole process."""
    yield
    jax.config.update("jax_enable_x64", False)


def simulated(ensemble: Ensemble) -> Run:
    """The first half of the replicas at one state, the second at the other."""
    structure = fcc(2, rattle=0.02, density=1.0) if ensemble.moves_cell else fcc(2)
    steps = 2000 * (RINGS if isinstance(ensemble, NPTNoseHoover) else 1 + ensemble.moves_cell)
    options = {"timestep_fs": TIMESTEP, "sample_every_fs": 10 * TIMESTEP, "skin": 0.4, "seed": 11}
    return run_fluid(structure, ensemble=ensemble, replicas=2 * REPLICAS, steps=steps, **options)


def as_data(run: Run, ensemble: Ensemble, state: int, temperature_K: float, pressure: float) -> Any:
    """Independent frames of the replicas at one of the two states, as physical_validation wants them."""
    mine = slice(state * REPLICAS, (state + 1) * REPLICAS)
    degrees = ensemble.degrees_of_freedom(32)
    first = LEFT_OUT if run.n_frames < 1000 else LEFT_OUT * RINGS
    series = {
        "potential_energy": run.potential_energy[mine, first:],
        "kinetic_energy": 0.5 * degrees * KB * run.temperature[mine, first:],
        "volume": run.volume[mine, first:],
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
def test_kinetic_and_configurational_distributions(name: str, agrees) -> None:
    """Mean and width of the kinetic energy, and how energies (enthalpies) of two temperatures are distributed."""
    ensemble = AT_TWO_TEMPERATURES[name]
    run = simulated(ensemble)
    scale = COLD if ensemble.moves_cell else 1.0
    states = [as_data(run, ensemble, n, scale * float(TEMPERATURES[-n]), 1.0) for n in (0, 1)]
    for state in states:
        deviations = pv.kinetic_energy.distribution(
            state, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
        for quantity, deviation in zip(("mean", "width"), np.atleast_1d(deviations), strict=True):
            agrees(f"physical_validation, {name}: {quantity} of kinetic energies, in σ", deviation, 1.0, 0.0)
    deviations = pv.ensemble.check(*states, verbosity=0, data_is_uncorrelated=True)
    for deviation in np.atleast_1d(deviations):
        agrees(f"physical_validation, {name}: two temperatures, in σ", deviation, 1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_TWO_PRESSURES)
def test_volumes_follow_the_pressure(name: str, agrees) -> None:
    """Volumes at two pressures are distributed as one thermodynamics has it, and fluctuate as compressible as it is."""
    ensemble = AT_TWO_PRESSURES[name]
    run = simulated(ensemble)
    states = [as_data(run, ensemble, n, COLD * REDUCED_K, float(PRESSURES[-n])) for n in (0, 1)]
    deviations = pv.ensemble.check(*states, verbosity=0, data_is_uncorrelated=True)
    for deviation in np.atleast_1d(deviations):
        agrees(f"physical_validation, {name}: two pressures, in σ", deviation, 1.0, 0.0)

    # −∂⟨V⟩/∂P = Var(V)/kT, here over a finite change of pressure, with the mean of the fluctuations at both ends.
    volumes = [state.observables.volume for state in states]
    means, variances = [v.mean() for v in volumes], [v.var(ddof=1) for v in volumes]
    change = (means[0] - means[1]) / (PRESSURES[-1] - PRESSURES[0])
    fluctuation = 0.5 * sum(variances) / COLD
    change_error = np.sqrt(sum(v.var() / len(v) for v in volumes)) / (PRESSURES[-1] - PRESSURES[0])
    squared = sum(2.0 * s**2 / len(v) for s, v in zip(variances, volumes, strict=True))
    fluctuation_error = 0.5 * np.sqrt(squared) / COLD
    finite = 0.05 * fluctuation  # the change is not a derivative
    agrees(f"{name}: Var(V)/kT over −∂⟨V⟩/∂P", fluctuation / change, np.hypot(fluctuation_error, finite) / change, 1.0,
           known_error=change_error / change)  # fmt: skip
