"""Simulations of many unlike structures: those of similar size share a program."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.processes import own_share, run_in_processes
from jaxmlip.simulation.session import Options, make_session
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.constraints import fixed_atoms

MOST_PADDING = 0.25
"""Share of a program's atoms that may be padding, which costs memory and time; a further program costs compilation."""


def simulate_each(
    potential: Potential,
    structures: Sequence[Atoms],
    ensemble: Ensemble,
    *,
    replicas: int = 1,
    progress: bool = True,
    **options: Any,
) -> list[Run]:
    """A run for each of several structures, of any sizes and elements.

    Structures of similar size, and with the same periodic directions, are replicas of one program, in which smaller
    ones are padded with atoms that take no part; the programs follow one another. Where a Nosé–Hoover chain is part of
    the ensemble, sizes must be equal for that. Replicas are counted through all structures; a replica's random numbers
    follow from the seed and its number, and messages call it by that.

    Args:
        potential: see `simulate`.
        structures: one start for each run.
        ensemble: with one temperature, and one pressure, for all.
        replicas: of each structure.
        progress: show a progress bar for each program.
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
    buckets = [*_buckets(structures, MOST_PADDING if ensemble.pads else 0.0, alike=not ensemble.pads)]
    sessions, chosen, runs = [], Options(**options), {}
    for members in buckets:  # all of them before the first runs: what is wrong with the last is said at once
        starts = [structures[number] for number in members for _ in range(replicas)]
        indices = np.array([number * replicas + k for number in members for k in range(replicas)])
        sessions.append(make_session([potential], starts, ensemble, chosen, own_share, alike=False, indices=indices))
    for members, session in zip(buckets, sessions, strict=True):
        run = run_in_processes(lambda _, session=session: session.run(progress))
        for place, number in enumerate(members):
            own = run.part(slice(place * replicas, (place + 1) * replicas))
            runs[number] = _without_padding(own, structures[number])
    return [runs[number] for number in range(len(structures))]


def _buckets(structures: Sequence[Atoms], most_padding: float, *, alike: bool) -> Iterator[list[int]]:
    """Numbers of the structures that share a program, largest first; if alike, as many atoms are held in all."""
    groups: dict[tuple[bytes, int], list[int]] = {}
    for number, atoms in enumerate(structures):
        held = int(fixed_atoms(atoms).sum()) if alike else 0
        groups.setdefault((atoms.pbc.tobytes(), held), []).append(number)
    for numbers in groups.values():
        bucket: list[int] = []
        for number in sorted(numbers, key=lambda n: -len(structures[n])):
            joined = [*bucket, number]
            sizes = [len(structures[member]) for member in joined]
            if sum(sizes) < (1.0 - most_padding) * len(sizes) * sizes[0]:
                yield bucket
                joined = [number]
            bucket = joined
        yield bucket


def _without_padding(run: Run, atoms: Atoms) -> Run:
    """The run of one structure, cut out of that of its bucket."""
    n = len(atoms)
    numbers = np.asarray(atoms.numbers, np.int64)
    fixed = None if run.fixed is None or not run.fixed.any() else run.fixed[:, :n]
    cut = {"positions": run.positions[:, :, :n], "masses": run.masses[:, :n], "fixed": fixed}
    return dataclasses.replace(run, numbers=numbers, **cut)
