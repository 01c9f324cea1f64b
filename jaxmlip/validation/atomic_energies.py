"""Energies of many replicas by atom in double precision: what decides about accepting is a difference of them.

A total in single precision rounds by as much as it is large; differences atom by atom, added in double precision, are
as good as the atoms' own energies.
"""

import contextlib
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxmlip.potentials.ase_potential import AsePotential
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.capacity import Capacity, graph_of_replicas, needs_of
from jaxmlip.systems.device_lists import cell_heights, search_heights


class AtomicEnergies:
    """A potential's energies by atom of all replicas at once, one compiled program that is given room as it is needed.

    Attributes:
        evaluations: how many times all replicas were evaluated, those that had to be repeated with more room included.
        seconds: what that took.
    """

    def __init__(self, potential: Potential, numbers: Int[np.ndarray, " atoms"], moves_cell: bool) -> None:
        """Keep what does not change.

        Args:
            potential: any Potential. A calculator of ASE is asked in double precision.
            numbers: atomic numbers of each replica.
            moves_cell: whether cells will change.
        """
        self.potential, self._moves_cell = jax.device_put(potential), moves_cell
        self._cutoffs = potential.cutoff, potential.inner_cutoff
        self._double = isinstance(potential, AsePotential)
        self._numbers = np.asarray(numbers, np.int32)
        self._capacity: Capacity | None = None
        self._heights = np.full(3, np.inf)
        self.evaluations, self.seconds = 0, 0.0

    def __call__(self, positions: Any, cells: Float[np.ndarray, "replicas 3 3"]) -> Float[np.ndarray, "replicas atoms"]:
        """Energies in eV, relative to the references; not finite where the potential breaks down.

        Args:
            positions: [replicas, atoms, 3], Å, finite.
            cells: Å; zero rows where not periodic.
        """
        began = time.perf_counter()
        capacity = self._room(positions, cells)
        real = np.float64 if self._double else positions.dtype
        inverses = np.linalg.pinv(cells).astype(real)
        species = np.broadcast_to(self._numbers, positions.shape[:2])
        here = species, np.asarray(positions, real) if self._double else positions, cells.astype(real), inverses
        while True:
            with jax.enable_x64(True) if self._double else contextlib.nullcontext():
                found = jax.device_get(_atomic_energies(self.potential, *here, capacity=capacity))
            self.evaluations += 1
            energies, needs = (np.asarray(each) for each in found)
            if capacity.fits(needs):
                self.seconds += time.perf_counter() - began
                return energies.astype(np.float64)
            capacity = self._capacity = capacity.grown(needs, self._heights, self._cutoffs[0], len(self._numbers))

    def _room(self, positions: Any, cells: np.ndarray) -> Capacity:
        """Room for lists in these cells: what there is, unless cells have become narrower than it was made for."""
        if self._capacity is not None and (cell_heights(cells) >= self._heights).all():
            return self._capacity
        self._heights = search_heights(cells, self._moves_cell)
        atoms = len(self._numbers)
        where = list(np.asarray(positions, np.float64))
        needs = needs_of(where, np.asarray(cells, np.float64), self._heights, self._cutoffs, 0.0, atoms)
        here = needs, self._heights, self._cutoffs[0], atoms
        self._capacity = Capacity.holding(*here) if self._capacity is None else self._capacity.grown(*here)
        return self._capacity


@functools.partial(jax.jit, static_argnames="capacity")
def _atomic_energies(
    potential: Potential, species: Any, positions: Any, cells: Any, inverses: Any, capacity: Capacity
) -> tuple[Any, Any]:
    """Energies [replicas, atoms], and what the lists need, [4]."""
    cutoffs = potential.cutoff, potential.inner_cutoff
    where = jnp.asarray(positions), jnp.asarray(cells), jnp.asarray(inverses)
    graph, needs = graph_of_replicas(jnp.asarray(species), *where, cutoffs, capacity)
    return potential.atomic_energies(graph).reshape(positions.shape[:2]), needs.max(0)
