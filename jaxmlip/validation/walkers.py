"""Replicas that a student moves back and forth: the engine of simulations, as Monte Carlo needs it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float

from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.ensembles import VelocityVerlet
from jaxmlip.simulation.safety import no_bonds
from jaxmlip.simulation.schedules import Number, Schedule
from jaxmlip.simulation.starts import ReplicaStarts
from jaxmlip.systems.device_lists import cell_heights, pseudo_inverse, search_heights


class Trajectories(VelocityVerlet):
    """Newton's equations with all 3N momenta, whatever the kinetic energy; reversible, and volume is conserved."""

    guarded: ClassVar[bool] = False

    @staticmethod
    def degrees_of_freedom(atoms: Any, held: Any = False) -> Any:
        """3N: momenta are those of Maxwell and Boltzmann, the centre of mass included."""
        del held
        return 3 * atoms


class Walkers(Driver):
    """Replicas that start trajectories wherever they are put.

    Neighbour lists are those of `simulate`: what they could have missed is discarded and computed again with more
    room, before anything is known of acceptance. A trajectory that fails (numbers that are not finite, an atom that
    moves 0.5 Å in a step, which is the same backwards) marks its replica until the next proposal.
    """

    def __init__(
        self,
        potential: Potential,
        starts: list[Atoms],
        kT: Schedule,
        *,
        timestep_fs: Number,
        skin: Number,
        seed: int,
        moves_cell: bool,
    ) -> None:
        """Set up replicas; see `Driver`.

        Args:
            potential: the student.
            starts: one structure for each replica, equal atoms in equal order.
            kT: of the momenta, eV.
            timestep_fs: fs.
            skin: Å.
            seed: of the momenta.
            moves_cell: whether cells will be changed, by `place`.
        """
        super().__init__(
            potential,
            ReplicaStarts.of(starts, no_bonds(len(starts))),
            Trajectories(kT),
            timestep_fs=timestep_fs,
            skin=skin,
            seed=seed,
            stop_at_failure=False,
        )
        self._scales, self._key = moves_cell, jax.random.fold_in(jax.random.key(int(seed)), 1 + len(starts))
        self._kT = jnp.asarray(kT.start)[:, None, None]

    @property
    def state(self) -> Any:
        """Positions, momenta and forces of all replicas; see `states.State`."""
        return self.replicas.state

    @property
    def sound(self) -> Bool[np.ndarray, " replicas"]:
        """Which replicas have not failed since `refresh`."""
        return np.asarray(self.replicas.failure) == 0

    @property
    def kinetic_energies(self) -> Float[np.ndarray, " replicas"]:
        """Σ p²/2m in double precision, eV."""
        momentum = np.asarray(self.state.momentum, np.float64)
        return 0.5 * (momentum**2 / np.asarray(self.state.mass, np.float64)).sum((1, 2))

    @property
    def student_energies(self) -> Float[np.ndarray, " replicas"]:
        """The student's energies, relative to the references, in the precision of the device, eV."""
        return np.asarray(self.replicas.energy, np.float64)

    def refresh(self, move: int, kept: Number) -> None:
        """New momenta for a proposal: `kept` of the old ones and √(1 − kept²) of new ones; failures are forgiven."""
        state = self.state
        momentum = _refreshed(self._key, move, state.momentum, state.mass, self._kT, kept)
        nothing = jnp.zeros_like(self.replicas.failure)
        self.replicas = self.replicas.replace(
            state=state.set(momentum=momentum), failure=nothing, failed_at=nothing - 1
        )

    def trajectory(self, steps: int) -> float:
        """So many steps of all replicas from where they are; returns the seconds they took, without compilation."""
        self._begin(0)
        return self.advance(steps)

    def place(self, positions: np.ndarray, cells: np.ndarray) -> None:
        """Put replicas to other positions [replicas, atoms, 3] in other cells; forces are computed anew."""
        old = self.state
        self.replicas = self.replicas.replace(state=old.set(position=jnp.asarray(positions, old.position.dtype)))
        self._use_cells(cells)
        self.prepare()

    def prepare(self) -> None:
        """Compute energies and forces where the replicas are."""
        self._begin(-1)
        super().prepare()

    def choose(self, accepted: Bool[np.ndarray, " replicas"], before: Any, cells: np.ndarray, energy: Any) -> None:
        """Take replicas that were not accepted back to a state, cells and energies before, with opposite momenta."""
        back = before.set(momentum=-before.momentum)
        chosen = _where(jnp.asarray(accepted), (self.state, self.replicas.energy), (back, energy))
        self.replicas = self.replicas.replace(state=chosen[0], energy=chosen[1])
        if self._scales:
            self._use_cells(np.where(accepted[:, None, None], self.cells, cells))

    def _begin(self, step: int) -> None:
        """At a step, with lists to be made."""
        started = jnp.full_like(self.replicas.step, step)
        self.replicas = self.replicas.replace(step=started, stale=jnp.ones_like(self.replicas.stale))

    def _use_cells(self, cells: np.ndarray) -> None:
        """Other cells, with more images where they have become narrower than what is searched."""
        self._cells = cells
        self.system = self.system.replace(
            cells=jnp.asarray(cells, float),
            inverses=jnp.asarray(np.stack([pseudo_inverse(cell) for cell in cells]), float),
        )
        if (cell_heights(cells) < self.heights).any():
            self.heights = search_heights(cells, True)
            self.system = self.system.replace(lowest=jnp.asarray(self.heights, float))
            needed, reach = self._needed(self.positions, cells), self.cutoff + self.skin
            self.capacity = self.capacity.grown(needed, self.heights, reach, self.starts.atoms)
            self._clear_lists()


@jax.jit
def _refreshed(key: Any, move: Any, momentum: Any, mass: Any, kT: Any, kept: Any) -> Any:
    """Momenta kept p + √(1 − kept²) ξ with ξ of Maxwell and Boltzmann (Horowitz, Phys. Lett. B 268, 247 (1991))."""
    noise = jax.random.normal(jax.random.fold_in(key, move), momentum.shape, momentum.dtype)
    return kept * momentum + jnp.sqrt((1.0 - kept**2) * mass * kT) * noise


@jax.jit
def _where(accepted: Any, new: Any, old: Any) -> Any:
    """Of two trees whose leaves begin with replicas, the leaves of the new one where accepted."""

    def chosen(new: Any, old: Any) -> Any:
        return jnp.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(chosen, new, old)
