"""Simulations that take tables in place of radial networks by themselves, where their length pays for it.

Making tables and finding out their error takes some seconds, and a force call with tables takes two thirds to four
fifths of the time on a CPU. On accelerators nobody has measured what they gain, and nothing is tabulated unasked.
"""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

import jax
import numpy as np
from ase import Atoms

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.evaluation import compiled_evaluate
from jaxmlip.potentials.potential import Potential, Sum
from jaxmlip.potentials.scaled import Scaled
from jaxmlip.potentials.tabulation import tabulate, why_no_tables
from jaxmlip.simulation.h5md import opened, read_fixed
from jaxmlip.simulation.session import Session
from jaxmlip.simulation.trajectory import Tables
from jaxmlip.systems.capacity import RATTLE
from jaxmlip.systems.graph import graph_from_atoms

Choice: TypeAlias = Literal["auto"] | bool
"""Whether to simulate with tables: where it pays, always, never."""

TOLERANCES = (1e-5, 1e-6)
"""Of radial functions, see `tabulate`; the first whose forces are good enough."""

FORCE_ERROR_meV_A = 0.1
"""Largest RMS difference of force components that tables may make."""

PAYS_FROM = 6.4e7
"""Atoms × steps × channels from which on tables pay: at 128 channels they save 65 µs for each atom and step on two
cores (experiments/benchmarks/results/force_call_128_L0.md), hence twice the fifteen seconds that making them and
computing their error takes there, the compiler's included."""


def with_tables(session: Session, potential: Potential, choice: Choice, tolerance: float | None = None) -> Session:
    """A session at its start whose potential has tables, if that was chosen, or is chosen here.

    Args:
        session: of one potential or several.
        potential: of the session, if it has one.
        choice: see `Choice`.
        tolerance: of the tables that a file was begun with; None to find it.

    Raises:
        ValueError: if tables are asked for, and there can be none.
    """
    tolerances = TOLERANCES if tolerance is None else (tolerance,)
    if choice is False:
        return session
    refusal = _refusal(session, potential)
    if choice is True and refusal:
        raise ValueError(f"tables=True was given, but {refusal} Leave it out, or give tables=False.")
    plan = session.plan
    if choice == "auto" and tolerance is None:
        work = len(plan.starts) * plan.frames * plan.every * len(session.numbers) * _channels(potential)
        single = session.driver.replicas.energy.dtype == np.float32
        if refusal or work < PAYS_FROM or not single or not _for_cpu(potential):
            return session
    for each in tolerances:
        try:
            made = tabulated(potential, each)
        except ValueError:  # more knots than are allowed
            continue
        error = force_error_meV_A(potential, made, plan.starts[0])
        if error <= FORCE_ERROR_meV_A or tolerance is not None:
            session.driver.potential = jax.device_put(made)
            return dataclasses.replace(session, tables=Tables(each, error))
    if choice is True:
        raise ValueError(
            f"tables=True was given, but no tables keep the forces within {FORCE_ERROR_meV_A} meV/Å: give tables=False."
        )
    return session


def tabulated(potential: Potential, tolerance: float) -> Potential:
    """The potential with tables wherever radial networks are: in itself, or in what it is a sum or multiple of."""
    if isinstance(potential, Sum):
        return potential.replace(terms=tuple(tabulated(term, tolerance) for term in potential.terms))
    if isinstance(potential, Scaled):
        return potential.replace(of=tabulated(potential.of, tolerance))
    return potential if why_no_tables(potential) else tabulate(potential, tolerance)


def force_error_meV_A(potential: Potential, other: Potential, atoms: Atoms) -> float:
    """RMS difference of the force components of two potentials where atoms are displaced as by heat, meV/Å."""
    moved = atoms.copy()
    moved.positions += np.random.default_rng(0).normal(scale=RATTLE, size=moved.positions.shape)
    graph = jax.device_put(graph_from_atoms(moved, potential.cutoff, potential.inner_cutoff))
    forces = [np.asarray(compiled_evaluate(each, graph, False).forces, np.float64) for each in (potential, other)]
    return 1e3 * float(np.sqrt(np.mean((forces[0] - forces[1]) ** 2)))


def tolerance_of_file(path: Path) -> tuple[bool, float | None]:
    """Whether there is a run in a file that can go on, and the tolerance of the tables that it was begun with."""
    try:
        with opened(path) as file:
            run = read_fixed(file).identity.get("run")
    except (FileNotFoundError, ValueError):  # no file yet, or one that those who open it to write have words for
        return False, None
    return run is not None, (run or {}).get("tables")


def _refusal(session: Session, potential: Potential) -> str:
    """Why there can be no tables, as a sentence; nothing if there can."""
    if session.driver.layout.models:
        return "several potentials are simulated by one program, and their tables may differ in size."
    networks = _networks(potential)
    if not networks:
        return why_no_tables(potential) or "nothing in it has radial networks."
    return ""


def _networks(potential: Potential) -> list[EquivariantPotential]:
    """What `tabulated` would tabulate."""
    if isinstance(potential, Sum):
        return [network for term in potential.terms for network in _networks(term)]
    if isinstance(potential, Scaled):
        return _networks(potential.of)
    return [potential] if isinstance(potential, EquivariantPotential) and not why_no_tables(potential) else []


def _channels(potential: Potential) -> int:
    return sum(network.specification.channels for network in _networks(potential))


def _for_cpu(potential: Potential) -> bool:
    return all(network.form == "cpu" for network in _networks(potential))
