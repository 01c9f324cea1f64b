"""Simulations of many unlike structures: those that are alike in kind share a program."""

from collections.abc import Sequence
from typing import Any

from ase import Atoms

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.replicas import simulate
from jaxmlip.simulation.trajectory import Run


def simulate_each(
    potential: Potential, structures: Sequence[Atoms], ensemble: Ensemble, *, replicas: int = 1, **options: Any
) -> list[Run]:
    """A run for each of several structures, of any sizes and elements.

    Structures with equal atoms in equal order, and the same periodic directions, are replicas of one program, whatever
    their positions and cells; unlike ones are simulated one after another. A replica's random numbers follow from the
    seed and its place among those of its kind.

    Args:
        potential: see `simulate`.
        structures: one start for each run.
        ensemble: with one temperature, and one pressure, for all.
        replicas: of each structure.
        options: as `simulate` takes them.

    Returns:
        The runs, in the order of the structures.

    Raises:
        ValueError: see `simulate`.
        SimulationError: see `simulate`.
    """
    if not structures:
        raise ValueError("No structure was given to start from.")
    if replicas < 1:
        raise ValueError(f"A simulation needs at least one replica, not {replicas}.")
    buckets: dict[tuple[bytes, bytes], list[int]] = {}
    for number, atoms in enumerate(structures):
        buckets.setdefault((atoms.numbers.tobytes(), atoms.pbc.tobytes()), []).append(number)
    runs: dict[int, Run] = {}
    for members in buckets.values():
        starts = [structures[number] for number in members for _ in range(replicas)]
        run = simulate(potential, starts, ensemble, **options)
        runs |= {n: run.part(slice(k * replicas, (k + 1) * replicas)) for k, n in enumerate(members)}
    return [runs[number] for number in range(len(structures))]
