"""Simulations of many unlike structures: those of similar size share a program."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.processes import own_share, run_in_processes
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.tables import with_tables
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.constraints import fixed_atoms

MOST_PADDING = 0.25
"""Share of a program's atoms that may be padding, which costs memory and time; a further program costs compilation."""


def unlike(structures: Sequence[Atoms], ensemble: Ensemble) -> bool:
    """Whether structures are not the starts of replicas of one run.

    Their atoms or periodic directions differ; or, in ensembles that do not bear it, how many atoms are held.
    """
    return any(
        not np.array_equal(atoms.numbers, structures[0].numbers)
        or not np.array_equal(atoms.pbc, structures[0].pbc)
        or not (ensemble.pads or fixed_atoms(atoms).sum() == fixed_atoms(structures[0]).sum())
        for atoms in structures
    )


def simulate_each(
    potential: Potential, structures: Sequence[Atoms], ensemble: Ensemble, options: Options, progress: bool
) -> list[Run]:
    """A run for each of several structures, in their order; see `simulate`.

    A replica's random numbers follow from the seed and its number, counted through all structures, and messages call it
    by that. There is a progress bar for each program.

    Raises:
        ValueError: see `simulate`.
        SimulationError: see `simulate`.
    """
    replicas = 1 if options.replicas is None else options.replicas
    if replicas < 1:
        raise ValueError(f"A simulation needs at least one replica, not {replicas}.")
    buckets = [*_buckets(structures, MOST_PADDING if ensemble.pads else 0.0, alike=not ensemble.pads)]
    sessions, chosen, runs = [], dataclasses.replace(options, replicas=None), {}
    for members in buckets:  # all of them before the first runs: what is wrong with the last is said at once
        starts = [structures[number] for number in members for _ in range(replicas)]
        indices = np.array([number * replicas + k for number in members for k in range(replicas)])
        session = make_session([potential], starts, ensemble, chosen, own_share, alike=False, indices=indices)
        sessions.append(session)
    for members, session in zip(buckets, sessions, strict=True):
        session = with_tables(session, potential, options.tables)
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
    cut["velocities"] = None if run.velocities is None else run.velocities[:, :, :n]
    return dataclasses.replace(run, numbers=numbers, **cut)
