"""A simulation in a process of its own, for tests with several devices or processes: python simulate_here.py OUT."""

import sys
from pathlib import Path
from typing import Any

import jax
from conftest import DT, FLUID, fcc, fluid_options
from simple_potentials import REDUCED_K, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.processes import join_processes
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.recording import Recorded
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import GPA

TEMPERATURES = [0.8 * REDUCED_K, 0.9 * REDUCED_K, REDUCED_K, 1.1 * REDUCED_K]


def options_for(devices: int | None, replicas: int) -> dict[str, Any]:
    """Observed on the way, and compared with a second potential."""
    return fluid_options(
        replicas=replicas,
        steps=60,
        sample_every_fs=30 * DT,
        observe_every_fs=10 * DT,
        devices=devices,
        observables=[RDF("Ar", "Ar", r_max=1.7, bins=20)],
        against=lennard_jones(),
    )


def simulated(devices: int | None = None, out: Path | None = None) -> Run | Recorded:
    """Four replicas at constant pressure, at temperatures of their own; in memory or in a file."""
    barostat = NPT(TEMPERATURES, 0.5 / GPA, friction_per_ps=FLUID.friction_per_ps)
    options = options_for(devices, 4)
    if out is None:
        return simulate(lennard_jones(), fcc(2), barostat, **options)
    return simulate(lennard_jones(), fcc(2), barostat, to=out, **options)


def simulated_each(devices: int | None = None) -> list[Run]:
    """Two replicas each of 28 and 32 atoms; two processes have one size each."""
    barostat = NPT(REDUCED_K, 0.5 / GPA, friction_per_ps=FLUID.friction_per_ps)
    return simulate(lennard_jones(), [fcc(2)[:28], fcc(2)], barostat, **options_for(devices, 2))


if __name__ == "__main__":
    join_processes()
    out, number = Path(sys.argv[1]), int(sys.argv[2])
    run = simulated(number)
    assert isinstance(run, Run)
    run.save(out)
    if jax.process_count() > 1:
        simulated(number, out.with_name("shared.h5"))
        for place, run in enumerate(simulated_each(number)):
            run.save(out.with_suffix(f".{place}.h5"))
