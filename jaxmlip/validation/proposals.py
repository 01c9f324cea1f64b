"""How hybrid Monte Carlo proposes states, and the Markov chain that follows; see `hybrid` for the theory."""

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential, reference_energy
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.schedules import Number
from jaxmlip.units import KB
from jaxmlip.validation.atomic_energies import AtomicEnergies
from jaxmlip.validation.volume_moves import ScaledPoints, atoms_scaled, molecules_scaled
from jaxmlip.validation.walkers import Walkers

INTEGRATED = 0.9
"""Acceptance that the warm-up leaves to the integrator alone, were the student the teacher."""

VOLUMES = 0.5
"""Acceptance of changes of volume by the student that the warm-up aims at."""

SKIN = 0.5
"""Å, by how much the student's neighbour lists reach beyond its cutoff, to begin with."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """How states are proposed.

    In the warm-up, from which nothing is kept, the number of steps, the timestep and the width of changes of volume
    follow the acceptance; after it they are fixed. The number of steps of each proposal is drawn evenly between half
    and three halves of `steps`, the same for all replicas, so that no mode of vibration is in step with it.

    Attributes:
        steps: of each trajectory, on average; where the warm-up begins.
        timestep_fs: fs; where the warm-up begins. It may be longer than in dynamics: its error is accounted for.
        refreshed: share of the momenta's variance that is drawn anew before each proposal; below 1, momenta turn round
            where a proposal is refused (Horowitz, Phys. Lett. B 268, 247 (1991)).
        volume_moves: changes of volume in each proposal, at constant pressure.
        volume_width: standard deviation of the change of ln V; where the warm-up begins.
        scaled: what is scaled with the cell, "atoms" or whole "molecules" (see `volume_moves`).
        warm_up: proposals that are discarded.
        adapts: whether the warm-up changes anything.
        target: acceptance that the warm-up aims at by the number of steps.
        most_steps: of each trajectory that the warm-up may come to.

    Raises:
        ValueError: for numbers that make no sense.
    """

    steps: int = 20
    timestep_fs: Number = 0.5
    refreshed: Number = 1.0
    volume_moves: int = 1
    volume_width: Number = 0.02
    scaled: Literal["atoms", "molecules"] = "atoms"
    warm_up: int = 100
    adapts: bool = True
    target: Number = 0.7
    most_steps: int = 200

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        least = {"steps": 1, "volume_moves": 1, "warm_up": 0, "most_steps": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value != int(value) or not lowest <= value < 2**31:
                raise ValueError(f"Proposal needs a whole number {name} of at least {lowest}, not {value!r}.")
        most = {"timestep_fs": 100.0, "refreshed": 1.0, "volume_width": 1.0, "target": 1.0}
        for name, highest in most.items():
            value = getattr(self, name)
            if not 0 < value <= highest:
                raise ValueError(f"Proposal needs 0 < {name} ≤ {highest:g}, not {value!r}.")
        if self.target == 1.0:
            raise ValueError("Proposal needs a target of acceptance below 1, which no student reaches.")
        if self.scaled not in ("atoms", "molecules"):
            raise ValueError(f'Proposal scales "atoms" or "molecules" with the cell, not {self.scaled!r}.')


class Chain:
    """The Markov chain of all replicas, and what is counted on its way.

    Attributes:
        walkers: the replicas.
        energies: [replicas, atoms], the teacher's, relative to its references, in double precision, eV.
        accepted: [replicas], proposals that were accepted since the warm-up, of `tried`.
        volumes: changes of volume that the student took since then, and how many there were.
    """

    def __init__(
        self,
        student: Potential,
        teacher: Potential,
        starts: list[Atoms],
        ensemble: Ensemble,
        proposal: Proposal,
        seed: int,
    ) -> None:
        self.starts, self.proposal, self.student = starts, proposal, student
        self._seed, self.moves_cell = int(seed), ensemble.moves_cell
        dynamics: Any = ensemble.dynamics(len(starts))
        self.kT = np.asarray(dynamics.kT.start, np.float64)
        self.points: ScaledPoints | None = None
        if self.moves_cell:
            self.pressure = np.asarray(dynamics.pressure.start, np.float64)
            molecules = proposal.scaled == "molecules"
            self.points = molecules_scaled(starts[0]) if molecules else atoms_scaled(len(starts[0]))
        self.walkers = Walkers(
            student,
            starts,
            dynamics.kT,
            timestep_fs=proposal.timestep_fs,
            skin=SKIN,
            seed=seed,
            moves_cell=self.moves_cell,
        )
        numbers = starts[0].numbers
        self.teacher = AtomicEnergies(teacher, numbers, self.moves_cell)
        self.by_student = AtomicEnergies(student, numbers, self.moves_cell)
        self.references = reference_energy(teacher, numbers)
        self.energies = np.zeros((len(starts), len(numbers)))
        self.steps, self.width = float(proposal.steps), float(proposal.volume_width)
        self._visited: list[list[float]] = []
        self.student_calls, self.student_s, self.number, self.warm_up_calls = 0, 0.0, 0, 0
        self._reset()

    def _reset(self) -> None:
        self.accepted, self.tried, self.broken, self.volumes = np.zeros(len(self.starts)), 0, 0, np.zeros(2)
        self.simulated_fs = self.seconds = 0.0

    def begin(self) -> None:
        """Energies at the start."""
        self.walkers.prepare()
        self.energies = self.teacher(self.walkers.state.position, self.walkers.cells)
        for name, fine, potential in (
            ("student", self.walkers.sound, self.student),
            ("teacher", np.isfinite(self.energies).all(1), self.teacher.potential),
        ):
            if not fine.all():
                raise ValueError(
                    f"The {name}'s energy or forces of replica {np.flatnonzero(~fine)[0]} are not finite at the start. "
                    f"{potential.complaint() or 'Relax the structure first.'}"
                )

    def move(self, adapting: int | None) -> None:
        """A proposal of every replica, and whether it is accepted."""
        # Numbers are drawn whatever happens, in this order.
        rng = np.random.default_rng([self._seed, self.number])
        steps = round(self.steps)
        steps = int(rng.integers((steps + 1) // 2, 3 * steps // 2, endpoint=True))
        walkers = self.walkers
        kept = float(np.sqrt(1.0 - self.proposal.refreshed)) if self.number else 0.0
        walkers.refresh(self.number, kept)
        before, cells, energy = walkers.state, walkers.cells, walkers.replicas.energy
        kinetic, of_student = walkers.kinetic_energies, walkers.student_energies

        self._trajectory(steps)
        by_volume = np.zeros(len(kinetic))
        taken = []
        for _ in range(self.proposal.volume_moves if self.moves_cell else 0):
            change, probability = self._volume_move(rng)
            by_volume += change
            taken.append(probability)
            self._trajectory(steps)

        energies = self.teacher(walkers.state.position, walkers.cells)
        with np.errstate(invalid="ignore"):
            heat = walkers.kinetic_energies - kinetic
            total = (energies - self.energies).sum(1) + heat - by_volume
            integrated = walkers.student_energies - of_student + heat - by_volume
        sound = walkers.sound & np.isfinite(total)
        exponent = np.where(sound, -total / self.kT, -np.inf)
        accepted = np.log(rng.random(len(exponent))) < exponent
        walkers.choose(accepted, before, cells, energy)
        self.energies = np.where(accepted[:, None], energies, self.energies)
        self._count(accepted, sound)
        if adapting is not None:
            by_integrator = np.where(sound, -integrated / self.kT, -np.inf)
            self._adapt(
                adapting, [_probability(by_integrator), _probability(exponent), float(np.mean(taken or [VOLUMES]))]
            )

    def _trajectory(self, steps: int) -> None:
        seconds = self.walkers.trajectory(steps)
        self.student_calls += steps
        self.simulated_fs += steps * self.walkers.timestep_fs * len(self.starts)
        self.student_s += seconds
        self.seconds += seconds

    def _volume_move(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """A change of volume in the student's ensemble: by how much its energy changes, and how probable that was."""
        assert self.points is not None
        walkers, kT = self.walkers, self.kT
        change, chance = self.width * rng.normal(size=len(kT)), rng.random(len(kT))
        positions, cells = np.asarray(walkers.state.position, np.float64), walkers.cells
        moved, reversible = self.points.scaled(positions, cells, np.exp(change / 3.0))
        larger = np.exp(change / 3.0)[:, None, None] * cells
        volumes = np.abs(np.linalg.det(cells))
        # What is evaluated is what the device will hold.
        moved = moved.astype(walkers.state.position.dtype)
        old, new = (self.by_student(*each) for each in ((walkers.state.position, cells), (moved, larger)))
        with np.errstate(invalid="ignore"):
            work = (new - old).sum(1)
            total = work + self.pressure * volumes * np.expm1(change) - (self.points.number + 1) * kT * change
        sound = walkers.sound & np.isfinite(total) & reversible
        exponent = np.where(sound, -total / kT, -np.inf)
        accepted = np.log(chance) < exponent
        self.volumes += accepted.sum(), accepted.size
        chosen = accepted[:, None, None]
        walkers.place(np.where(chosen, moved, positions), np.where(chosen, larger, cells))
        self.student_calls += 3
        return np.where(accepted, work, 0.0), _probability(exponent)

    def _count(self, accepted: np.ndarray, sound: np.ndarray) -> None:
        if not sound.all() and (complaint := self.teacher.potential.complaint()):
            warnings.warn(f"The teacher has failed on a proposal, which is refused. {complaint}", stacklevel=4)
        self.number += 1
        self.tried += 1
        self.accepted += accepted
        self.broken += int((~sound).sum())

    def _adapt(self, move: int, probabilities: list[float]) -> None:
        """Stochastic approximation of Robbins and Monro, on the logarithms."""
        gain, (integrated, total, taken) = (1.0 + move) ** -0.6, probabilities
        proposal, walkers = self.proposal, self.walkers
        longest, shortest = 2.0 * proposal.timestep_fs, 0.25 * proposal.timestep_fs
        timestep = walkers.timestep_fs * np.exp(gain * (integrated - INTEGRATED))
        walkers.timestep_fs = float(np.clip(timestep, shortest, longest))
        self.steps = float(
            np.clip(
                self.steps * np.exp(gain * (total - proposal.target)), 1.0, max(proposal.most_steps, proposal.steps)
            )
        )
        self.width = float(min(self.width * np.exp(gain * (taken - VOLUMES)), 1.0))
        self._visited.append([np.log(walkers.timestep_fs), np.log(self.steps), np.log(self.width)])

    def settle(self) -> None:
        """The warm-up is over: what it found is fixed from here on, averaged over its second half."""
        if self._visited:
            found = np.exp(np.mean(self._visited[len(self._visited) // 2 :], axis=0))
            self.walkers.timestep_fs, self.width = float(found[0]), float(found[2])
            self.steps = float(found[1])
        self.steps = float(round(self.steps))
        self.warm_up_calls = self.teacher.evaluations
        self._reset()

    def frame(self) -> dict[str, np.ndarray]:
        """What a `Run` holds of the present states."""
        self.walkers.bring_back()
        degrees = 3 * len(self.starts[0])
        found = {
            "positions": self.walkers.recorded_positions(),
            "potential_energy": self.energies.sum(1) + self.references,
            "temperature": 2.0 * self.walkers.kinetic_energies / (degrees * KB),
        }
        return found | ({"cells": self.walkers.cells.copy()} if self.moves_cell else {})

    @property
    def fixed_proposal(self) -> Proposal:
        """The proposal with what the warm-up has led to."""
        found = {"steps": int(self.steps), "timestep_fs": self.walkers.timestep_fs, "volume_width": self.width}
        return dataclasses.replace(self.proposal, **found)

    @property
    def said(self) -> str:
        """What the progress bar tells."""
        rate = self.accepted.sum() / max(self.accepted.size * self.tried, 1)
        steps = f"{round(self.steps)} steps of {self.walkers.timestep_fs:.2g} fs"
        return f"acceptance {rate:.2f}, {steps}, {self.teacher.evaluations} teacher calls"


def _probability(exponent: np.ndarray) -> float:
    """Mean probability of accepting."""
    return float(np.exp(np.minimum(exponent, 0.0)).mean())
