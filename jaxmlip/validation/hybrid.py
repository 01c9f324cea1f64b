"""Hybrid Monte Carlo: the ensemble of a teacher by trajectories of its student, from few energies of the teacher.

A proposal is a short trajectory of the student by velocity Verlet from fresh momenta (Duane, Kennedy, Pendleton and
Roweth, Phys. Lett. B 195, 216 (1987); Mehlig, Heermann and Forrest, Phys. Rev. B 45, 679 (1992)). It is reversible and
conserves volume in phase space whatever its forces are, so that accepting it with the probability

    min(1, exp(−β (H(new) − H(old)))),    H = U_teacher + Σ p²/2m,

samples exp(−β U_teacher) exactly: the student, its forces and the timestep decide how often that happens, and nothing
else. A proposal costs one energy of the teacher, and no forces.

At constant pressure a proposal is trajectory, change of volume, trajectory, and so on to a last trajectory, all of
equal lengths. Changes of volume (`volume_moves`) are accepted or refused by the student in its own ensemble of constant
pressure, and the whole with the probability

    min(1, exp(−β (H(new) − H(old) − Σ ΔU_student))),

where the sum is over the changes of volume that the student took. The ratio of probabilities of a path and of the
opposite one is that of the target, times π_student(before) / π_student(after) of each change of volume (which is in
detailed balance with π_student), where PV and the Jacobian cancel. So volumes too cost the teacher nothing of their own
(compare Iftimie, Salahub, Wei and Schofield, J. Chem. Phys. 113, 4852 (2000); Gelb, J. Chem. Phys. 118, 7747 (2003)).

States that the teacher allows and the student does not (atoms closer than its hard cores) are never proposed: both must
agree about what is possible at all.
"""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.describing import count, short
from jaxmlip.observables.statistics import statistical_inefficiency
from jaxmlip.potentials.potential import Potential
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options, checked
from jaxmlip.simulation.recording import ReplicaFrames, ns_per_day, stacked
from jaxmlip.simulation.schedules import longest_ramp_ps
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.validation.proposals import Chain, Proposal

ALMOST_NEVER = 0.01
"""Acceptance of a replica below which nothing can be averaged."""

FEW = 10
"""Proposals that say nothing of how many are accepted."""


@dataclasses.dataclass(frozen=True, eq=False)
class HybridRun:
    """What hybrid Monte Carlo leaves behind.

    Attributes:
        run: frames after every so many proposals, refused ones included: `jm.average(sampled.run, …)`. Energies are the
            teacher's, temperatures those of the momenta, with 3N degrees of freedom. Times are those of the
            trajectories, of mean length: no dynamics is in the order of frames.
        acceptance: [replicas], share of proposals that were accepted after the warm-up.
        proposal: with the numbers that the warm-up has led to.
        volume_acceptance: share of changes of volume that the student took after the warm-up; NaN at constant volume.
        teacher_calls: energies of the teacher, of each replica; warm-up and start included.
        warm_up_calls: how many of them until the warm-up was over.
        student_calls: forces of the student, of each replica.
        broken: proposals, of all replicas, that were refused because the student's trajectory broke down or the
            teacher gave no finite energy.
        teacher_s: seconds in the teacher, compilation included.
        student_s: seconds in trajectories, compilation not included.
        every: proposals between frames.
    """

    run: Run
    acceptance: Float[np.ndarray, " replicas"]
    proposal: Proposal
    volume_acceptance: float
    teacher_calls: int
    warm_up_calls: int
    student_calls: int
    broken: int
    teacher_s: float
    student_s: float
    every: int

    @property
    def total_teacher_calls(self) -> int:
        """Energies of the teacher, of all replicas together."""
        return self.teacher_calls * self.run.n_replicas

    @property
    def correlation(self) -> float:
        """Proposals after which the teacher's energy is forgotten: its statistical inefficiency, at least `every`."""
        return self.every * float(statistical_inefficiency(self.run.potential_energy))

    @property
    def effective_samples(self) -> float:
        """Independent values of the teacher's energy that the frames of all replicas are worth."""
        return self.every * self.run.n_replicas * self.run.n_frames / self.correlation

    @property
    def samples_per_call(self) -> float:
        """Effective samples for each energy of the teacher after the warm-up."""
        return self.effective_samples / (self.run.n_replicas * (self.teacher_calls - self.warm_up_calls))

    def __repr__(self) -> str:
        """Acceptance, proposals and calls."""
        told = f"{self.proposal.steps} steps of {self.proposal.timestep_fs:.3g} fs"
        calls = count(self.teacher_calls, "teacher call")
        return short("HybridRun", repr(self.run)[1:-1], f"acceptance {self.acceptance.mean():.2f}", told, calls)


def hybrid_monte_carlo(
    student: Potential,
    teacher: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    moves: int,
    every: int = 1,
    proposal: Proposal | None = None,
    replicas: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> HybridRun:
    """Sample a teacher's ensemble exactly, by trajectories of a student; see the head of this module.

    Args:
        student: any Potential; its forces are used.
        teacher: any Potential, an ASE calculator among them (`from_ase`); only its energies are used.
        structure: the start of all replicas, or one for each, as of `simulate`.
        ensemble: `NVT` or isotropic `NPT`, of which temperature and pressure count: one value, or one for each replica.
        moves: proposals after the warm-up.
        every: proposals between frames.
        proposal: how to propose; `Proposal()` by default.
        replicas: number of them; by default as many as structures.
        seed: the same seed gives the same states on the same machine.
        progress: show a progress bar.

    Raises:
        ValueError: for elements that one of the potentials does not know, replicas of different atoms, constraints,
            another ensemble, a temperature that changes in time, a cell that is not periodic at constant pressure, or a
            start where one of the potentials has no finite energy.

    Warns:
        UserWarning: of replicas that have hardly accepted anything, and of a teacher that has failed.
    """
    proposal = proposal or Proposal()
    for name, value in {"moves": moves, "every": every}.items():
        if value != int(value) or not 1 <= value <= moves:
            raise ValueError(f"{name} is a whole number between 1 and moves={moves!r}, not {value!r}.")
    starts = _checked(student, teacher, structure, ensemble, proposal, replicas, seed)
    chain = Chain(student, teacher, starts, ensemble, proposal, seed)
    began = time.perf_counter()
    samples: list[ReplicaFrames] = []
    total, named = proposal.warm_up + moves, "warm-up" if proposal.warm_up else "sampling"
    with progress_bar(total=total, unit="move", desc=named, disable=not progress, compiles=True) as bar:
        chain.begin()
        for move in range(proposal.warm_up):
            chain.move(adapting=move if proposal.adapts else None)
            bar.set_postfix_str(chain.said, refresh=False)
            bar.update()
        chain.settle()
        if proposal.warm_up:
            bar.set_description("sampling", refresh=False)
        for move in range(1, moves + 1):
            chain.move(adapting=None)
            if move % every == 0:
                samples.append(chain.frame())
            bar.set_postfix_str(chain.said, refresh=False)
            bar.update()
    return _finished(chain, samples, every, time.perf_counter() - began)


def _checked(
    student: Potential,
    teacher: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    proposal: Proposal,
    replicas: int | None,
    seed: int,
) -> list[Atoms]:
    """The starts of all replicas; ValueError says what makes no sense."""
    if not isinstance(ensemble, NVT | NPT):
        raise ValueError(
            f"Hybrid Monte Carlo samples NVT(temperature_K=…) or NPT(temperature_K=…, pressure_GPa=…), not "
            f"{type(ensemble).__name__}."
        )
    at_volume = NVT(temperature_K=ensemble.temperature_K)
    options = Options(
        steps=1,
        timestep_fs=proposal.timestep_fs,
        sample_every_fs=proposal.timestep_fs,
        replicas=replicas,
        seed=seed,
        against=teacher,
    )
    plan = checked([student], structure, at_volume, options, alike=True)
    starts = plan.starts
    if plan.any_fixed:
        raise ValueError(
            "Hybrid Monte Carlo moves all atoms: remove the constraints by atoms.set_constraint(), or use simulate."
        )
    if longest_ramp_ps(ensemble.dynamics(len(starts))):
        raise ValueError("Hybrid Monte Carlo samples one state: give a temperature and pressure that do not change.")
    if isinstance(ensemble, NPT):
        if ensemble.cell != "isotropic":
            raise ValueError(
                f'Hybrid Monte Carlo changes volumes, not shapes: give cell="isotropic", not {ensemble.cell!r}.'
            )
        if not starts[0].pbc.all():
            raise ValueError(
                f"NPT needs a cell that is periodic in all three directions, not pbc {starts[0].pbc.tolist()}; put the "
                "atoms into a cell, or keep the volume constant."
            )
    return starts


def _finished(chain: Chain, samples: list[ReplicaFrames], every: int, wall_s: float) -> HybridRun:
    """The result."""
    acceptance = chain.accepted / chain.tried
    if chain.tried >= FEW and (acceptance < ALMOST_NEVER).any():
        stuck = np.flatnonzero(acceptance < ALMOST_NEVER)
        warnings.warn(
            f"Replicas {', '.join(map(str, stuck))} have accepted fewer than {100 * ALMOST_NEVER:g} % of their "
            "proposals, and averages over them mean nothing: give shorter trajectories (Proposal.steps), a longer "
            "warm-up, or a student that is closer to the teacher.",
            stacklevel=3,
        )
    series: dict[str, Any] = stacked(samples)
    if not chain.moves_cell:
        series["cells"] = np.stack([atoms.cell.array for atoms in chain.starts])
    proposal = chain.fixed_proposal
    segments = 1 + proposal.volume_moves * chain.moves_cell
    run = Run(
        numbers=np.asarray(chain.starts[0].numbers, np.int64),
        pbc=np.asarray(chain.starts[0].pbc, bool),
        masses=chain.walkers.starts.masses,
        time_fs=(1.0 + np.arange(len(samples))) * every * segments * proposal.steps * proposal.timestep_fs,
        timestep_fs=float(proposal.timestep_fs),
        outcomes=(Outcome.COMPLETED,) * len(chain.starts),
        lengths=np.full(len(chain.starts), len(samples)),
        wall_s=wall_s,
        ns_per_day=ns_per_day(chain.simulated_fs, chain.seconds),
        **series,
    )
    return HybridRun(
        run=run,
        acceptance=acceptance,
        proposal=proposal,
        volume_acceptance=float(chain.volumes[0] / chain.volumes[1]) if chain.moves_cell else float("nan"),
        teacher_calls=chain.teacher.evaluations,
        warm_up_calls=chain.warm_up_calls,
        student_calls=chain.student_calls,
        broken=chain.broken,
        teacher_s=chain.teacher.seconds,
        student_s=chain.student_s + chain.by_student.seconds,
        every=every,
    )
