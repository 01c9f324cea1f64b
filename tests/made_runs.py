"""Runs made of given positions, for tests of what is computed from runs."""

import dataclasses
from typing import Any

import numpy as np
from ase.data import atomic_masses

from jaxmlip.simulation.trajectory import Outcome, Run


def as_run(positions: np.ndarray, numbers: np.ndarray, cell: np.ndarray, **changes: Any) -> Run:
    """Positions [replicas, frames, atoms, 3] as a Run."""
    replicas, frames = positions.shape[:2]
    rng = np.random.default_rng(0)
    run = Run(
        numbers=numbers,
        positions=positions.astype(np.float32),
        cells=np.repeat(cell[None], replicas, axis=0),
        pbc=np.array([True, True, True]),
        masses=np.repeat(atomic_masses[numbers][None], replicas, axis=0),
        potential_energy=rng.normal(size=(replicas, frames)),
        temperature=rng.normal(300.0, 10.0, size=(replicas, frames)),
        time_fs=10.0 * np.arange(1, frames + 1),
        timestep_fs=0.5,
        outcomes=(Outcome.COMPLETED,) * replicas,
        lengths=np.full(replicas, frames),
        wall_s=1.0,
        ns_per_day=1.0,
    )
    return dataclasses.replace(run, **changes)
