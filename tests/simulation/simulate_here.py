"""A simulation in a process of its own, for tests with several devices or processes: python simulate_here.py OUT."""

import sys

from conftest import DT, FLUID, fcc, run_fluid
from simple_potentials import REDUCED_K, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.trajectory import Run
from jaxmlip.training.parallel import join_processes
from jaxmlip.units import GPA

TEMPERATURES = [0.8 * REDUCED_K, 0.9 * REDUCED_K, REDUCED_K, 1.1 * REDUCED_K]


def simulated(devices: int | None = None) -> Run:
    """Four replicas at constant pressure, at temperatures of their own, observed on the way."""
    barostat = NPT(TEMPERATURES, 0.5 / GPA, friction_per_ps=FLUID.friction_per_ps)
    options = {"replicas": 4, "steps": 60, "sample_every_fs": 30 * DT, "observe_every_fs": 10 * DT, "devices": devices}
    return run_fluid(
        fcc(2), ensemble=barostat, observables=[RDF("Ar", "Ar", r_max=2.0, bins=20)], against=lennard_jones(), **options
    )


if __name__ == "__main__":
    join_processes()
    out, number = sys.argv[1:]
    simulated(int(number)).save(out)
