"""A simulation in a process of its own, for tests with several devices or processes: python simulate_here.py OUT."""

import sys
from pathlib import Path

from conftest import DT, FLUID, fcc, fluid_options
from simple_potentials import REDUCED_K, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.processes import join_processes
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.recording import Recorded
from jaxmlip.simulation.replicas import simulate, simulate_to_file
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import GPA

TEMPERATURES = [0.8 * REDUCED_K, 0.9 * REDUCED_K, REDUCED_K, 1.1 * REDUCED_K]


def simulated(devices: int | None = None, out: Path | None = None) -> Run | Recorded:
    """Four replicas at constant pressure, at temperatures of their own, observed on the way; in memory or in a file."""
    barostat = NPT(TEMPERATURES, 0.5 / GPA, friction_per_ps=FLUID.friction_per_ps)
    options = fluid_options(
        replicas=4,
        steps=60,
        sample_every_fs=30 * DT,
        observe_every_fs=10 * DT,
        devices=devices,
        observables=[RDF("Ar", "Ar", r_max=2.0, bins=20)],
        against=lennard_jones(),
    )
    if out is None:
        return simulate(lennard_jones(), fcc(2), barostat, **options)
    return simulate_to_file(out, lennard_jones(), fcc(2), barostat, **options)


if __name__ == "__main__":
    join_processes()
    out, number = Path(sys.argv[1]), int(sys.argv[2])
    run = simulated(number)
    assert isinstance(run, Run)
    run.save(out)
    simulated(number, out.with_name("shared.h5"))
