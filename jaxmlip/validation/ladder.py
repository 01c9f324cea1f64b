"""From a student's averages to its teacher's, by the cheapest way whose own check allows it; see `ways`."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.stats import norm

from jaxmlip.digests import digest
from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.potential import Potential, fingerprint
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.validation.averages import observe, settled
from jaxmlip.validation.comparison import Comparison, Validation
from jaxmlip.validation.energies import frame_energies
from jaxmlip.validation.task import Task
from jaxmlip.validation.verdict import Answer, instability
from jaxmlip.validation.ways import MOST_STATES, Bridge, Direct, Response, Way, Weighted, deviation, shares_of
from jaxmlip.validation.weights import ENOUGH, Mixture

LEVEL = 0.05
"""Probability that a student equal to its teacher fails for any of its observables."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A run's frames in equilibrium, with the energies of both potentials.

    Attributes:
        run: all replicas ran to the end.
        first: frame to begin with.
        status: whether it is in equilibrium from there on.
        energies: [student and teacher, replicas, frames], eV.
    """

    run: Run
    first: int
    status: Status
    energies: np.ndarray

    def values(self, observable: Observable, potential: Potential, which: int) -> np.ndarray:
        """Values as one of the two potentials has them in these frames."""
        if not observable.depends_on_potential:
            return observe(dataclasses.replace(self.run, observed={}), observable, self.first)
        energies = np.full_like(self.run.potential_energy, np.nan, np.float64)
        energies[:, self.first :] = self.energies[which]
        made = dataclasses.replace(self.run, potential_energy=energies, pressure_GPa=None, observed={})
        if observable.recorded_in(made) is not None:
            return observe(made, observable, self.first)
        return observe(made, observable, self.first, potential)


class Ladder:
    """The ways from student to teacher, each made when it is first needed."""

    def __init__(self, task: Task, run: Run, teacher_run: Run | None, folder: Path | None, progress: bool) -> None:
        self.task, self.folder, self.progress = task, folder, progress
        self.teacher_run = teacher_run
        self.refused: dict[str, str] = {}
        self.own = self._sample(run, "student")
        steps = round(run.time_fs[-1] / run.timestep_fs) * run.n_replicas
        self.calls = {"student": steps, "teacher": self.own.energies[0].size}
        reduced = task.reduced(self.own.energies, run, self.own.first)
        self.change = reduced[1] - reduced[0]
        mixture = Mixture([reduced[:1]])
        self.weighted = Weighted(mixture, mixture.target([reduced[0]]), mixture.target([reduced[1]]))
        self._made: dict[str, tuple[Way, list[Sample], Sample | None] | None] = {}

    def climbed(self) -> Validation:
        """All observables, compared."""
        limit = float(norm.isf(0.5 * LEVEL / len(self.task.observables)))
        found = {name: self._compared(name, limit) for name in self.task.observables}
        answers = [each.answer for each in found.values()]
        answer: Answer = "fail" if "fail" in answers else "cannot tell" if "cannot tell" in answers else "pass"
        said = {
            "fail": "off by more than is tolerated: ",
            "cannot tell": "nothing is known to be wrong, but this cannot be told: ",
            "pass": "all within the tolerances: ",
        }[answer]
        which = ", ".join(name for name, each in found.items() if each.answer == answer)
        there = self.weighted.teacher
        return Validation(answer, said + which, found, there.spread, there.effective_frames, self.calls, self.refused)

    def _compared(self, name: str, limit: float) -> Comparison:
        """One observable, by the first way that tells."""
        observable, best = self.task.observables[name].bound_to(self.task.start), None
        ways = [self._reweighting, self._bridge, self._response, self._direct]
        # A run of the teacher's own that is there costs nothing, and leaves no doubt.
        for make in ways if self.teacher_run is None else [ways[-1], *ways[:-1]]:
            made = make()
            if made is None:
                continue
            way, samples, others = made
            if observable.of_fluctuations and way.method in ("bridge", "response"):
                continue
            student = [each.values(observable, self.task.student, 0) for each in samples]
            there = samples if others is None else [others]
            teacher = [each.values(observable, self.task.teacher, 1) for each in there]
            if isinstance(way, Response) and not self._trusts(way, name, observable, teacher[0]):
                continue
            compared = self._judged(name, way, deviation(way, observable, student, teacher), limit)
            best = best or compared
            if compared.answer != "cannot tell":
                return compared
        return best or self._untold(name, observable)

    def _judged(self, name: str, way: Way, found: tuple[Estimate, ...], limit: float) -> Comparison:
        unit = self.task.observables[name].unit
        of_difference = "Å" if isinstance(self.task.observables[name], RDF) else unit  # an integral over r
        student, teacher, difference = (dataclasses.replace(each, unit=unit) for each in found)
        if way.method != "direct":
            statuses = [sample.status for sample in self._made_samples(way)]
            student, teacher, difference = (
                _no_better(each, worst(*statuses)) for each in (student, teacher, difference)
            )
        tolerance = self.task.tolerance(name, teacher)
        floor = 0.0 if difference.noise_floor is None else float(difference.noise_floor)
        scalar = difference if difference.value.ndim == 0 else _largest(difference)
        sigma = float(scalar.sigma_from(floor))
        excess = abs(float(scalar)) - floor
        low, high = scalar.interval(0.6827)
        width = 0.5 * float(high - low)
        scalar = dataclasses.replace(scalar, unit=of_difference)
        answer: Answer = "pass"
        known = worst(student.status, teacher.status).has_error
        if known and excess > tolerance and abs(sigma) > limit:
            answer, said = (
                "fail",
                f"off by {excess:.3g} {of_difference}, {abs(sigma):.1f} σ, tolerated are {tolerance:.3g}",
            )
        elif not known:
            answer, said = "cannot tell", worst(student.status, teacher.status).value
        elif not width <= tolerance:
            longer = _longer(width, tolerance)
            answer, said = "cannot tell", f"known to ± {width:.2g} {of_difference} only, run {longer} as much"
        else:
            said = f"within {tolerance:.3g} {of_difference}"
        return Comparison(student, teacher, scalar, way.method, tolerance, sigma, answer, said)

    def _made_samples(self, way: Way) -> list[Sample]:
        for made in self._made.values():
            if made is not None and made[0] is way:
                return made[1]
        return []

    def _untold(self, name: str, observable: Observable) -> Comparison:
        """Where no way was allowed: what it would take."""
        values = self.own.values(observable, self.task.student, 0)
        student = _no_better(dataclasses.replace(observable.estimate(values), unit=observable.unit), self.own.status)
        there = self.weighted.teacher
        frames = self.own.energies[0].size * ENOUGH / max(there.effective_frames, 1e-300)
        needs = f"some {float(f'{frames:.1g}'):,.0f} of the student's frames (there are {self.own.energies[0].size})"
        steps = self.calls["student"]
        reason = f"it would take {needs}, or a simulation of the teacher ({steps} force calls, if that is allowed)"
        return Comparison(student, None, None, None, self.task.tolerance(name, None), math.nan, "cannot tell", reason)

    def _reweighting(self) -> tuple[Way, list[Sample], Sample | None] | None:
        """The first way."""
        if "reweighting" not in self._made:
            there, reason = self.weighted.teacher, None
            if not self.own.status.has_error:
                reason = f"the student's run has no averages: {self.own.status.value}"
            elif not there.allowed:
                reason = (
                    f"the energy difference spreads by {there.spread:.2g} kT, which leaves "
                    f"{there.effective_frames:.2g} independent frames of the {ENOUGH:g} that are needed"
                )
            self._keep("reweighting", None if reason else (self.weighted, [self.own], None), reason)
        return self._made["reweighting"]

    def _response(self) -> tuple[Way, list[Sample], Sample | None] | None:
        """The third way, before it is asked whether an observable's second order is small."""
        if "response" not in self._made:
            reason = None if self.own.status.has_error else self.own.status.value
            self._keep("response", None if reason else (Response(self.change), [self.own], None), reason)
        return self._made["response"]

    def _trusts(self, way: Response, name: str, observable: Observable, teacher: np.ndarray) -> bool:
        """Whether the second order is at most half of the first, or does no harm."""
        first, second = way.orders(teacher)
        moved = np.abs(first.value - np.mean(teacher, axis=(0, 1))).sum()
        width = 1.0 if observable.axis is None or len(observable.axis) < 2 else observable.axis[1] - observable.axis[0]
        tolerance = self.task.tolerance(name, dataclasses.replace(first, axis=observable.axis))
        small = np.abs(second).sum() <= 0.5 * moved or width * np.abs(second).sum() <= tolerance
        if not small:
            before = self.refused.get("response", "its second order is more than half of the first for")
            self.refused["response"] = f"{before}{',' if before[-3:] != 'for' else ''} {name}"
        return bool(small)

    def _bridge(self) -> tuple[Way, list[Sample], Sample | None] | None:
        """The second way."""
        if "bridge" in self._made:
            return self._made["bridge"]
        shares, replicas = shares_of(self.weighted.teacher.spread), self.own.run.n_replicas
        reason = None
        if not self.task.sampling.bridge:
            reason = "it is not wanted"
        elif not self.own.status.has_error:
            reason = self.own.status.value
        elif not shares:
            reason = "the two are neighbours already, and what lacks is frames"
        elif len(shares) > min(MOST_STATES, 2 * replicas):
            reason = (
                f"it would take {len(shares)} simulations between the two, more force calls of the teacher than "
                "a simulation of its own"
            )
        made = None
        if reason is None:
            made, reason = self._bridged(shares)
        self._keep("bridge", made, reason)
        return made

    def _bridged(self, shares: list[float]) -> tuple[tuple[Way, list[Sample], None] | None, str | None]:
        """The simulations of a bridge, together no more force calls than the student's own run; or why they fail."""
        task, run = self.task, self.own.run
        replicas = max(2, run.n_replicas // len(shares))
        part = min(1.0, run.n_replicas / (replicas * len(shares)))
        ends = [run.during(slice(-1, None)).frames()[n % run.n_replicas] for n in range(replicas)]
        states = [Bridge(task.student, task.teacher, np.float32(share)) for share in shares]
        options: dict[str, Any] = {
            "steps": int(part * run.time_fs[-1] / run.timestep_fs),
            "timestep_fs": run.timestep_fs,
            "sample_every_fs": float(run.time_fs[0]),
            "seed": task.sampling.seed + 2,
            "keep_velocities": True,
            "on_failure": "mark",
            "progress": self.progress,
        }
        runs = self._kept_runs(states, ends, options)
        self.calls["teacher"] += options["steps"] * replicas * len(shares)
        if any(not each.completed.all() for each in runs):
            return None, "one of its simulations failed"
        samples = [self.own, *(self._sample(each, f"bridge-{n}") for n, each in enumerate(runs))]
        unsettled = [each.status for each in samples if not each.status.has_error]
        if unsettled:
            return None, f"in one of its simulations {unsettled[0].value}"
        mixed = [0.0, *shares]
        reduced = [task.reduced(each.energies, each.run, each.first) for each in samples]
        mixture = Mixture([np.stack([(1 - s) * each[0] + s * each[1] for s in mixed]) for each in reduced])
        student, teacher = (mixture.target([each[which] for each in reduced]) for which in (0, 1))
        if not teacher.allowed:
            overlaps = "neighbours overlap" if teacher.connected else "neighbours do not overlap"
            return None, f"{overlaps}, and it leaves {teacher.effective_frames:.2g} independent frames of {ENOUGH:g}"
        return (Weighted(mixture, student, teacher), samples, None), None

    def _kept_runs(self, states: list[Bridge], starts: list[Atoms], options: dict[str, Any]) -> list[Run]:
        """Simulations of a bridge, one program for all; found again where they were made before."""
        task = self.task
        known = digest(*map(fingerprint, states), *(each.positions for each in starts), str(task.ensemble), options)
        paths = [self.folder / f"bridge-{known[:8]}-{n}.h5" for n in range(len(states))] if self.folder else []
        if paths and all(path.exists() for path in paths):
            return [load_run(path) for path in paths]
        if any(state.opaque for state in states):
            runs = [simulate(state, starts, task.ensemble, **options) for state in states]
        else:
            runs = simulate(states, starts, task.ensemble, **options)
        for path, run in zip(paths, runs, strict=False):
            run.save(path)
        return runs

    def _direct(self) -> tuple[Way, list[Sample], Sample | None] | None:
        """The last way."""
        if "direct" in self._made:
            return self._made["direct"]
        run, reason = self.teacher_run, None
        if run is None and not self.task.sampling.teacher_md:
            reason = "simulating the teacher was not allowed"
        elif run is None:
            run = self.task.simulated(self.task.teacher, self.folder, "teacher", progress=self.progress)
            self.calls["teacher"] += round(run.time_fs[-1] / run.timestep_fs) * run.n_replicas
        made = None
        if run is not None:
            wrong = unstable_in_equilibrium(run, self.task.temperature_K)
            if wrong:
                raise ValueError(f"The teacher's own simulation fails, so that nothing is compared: {wrong}.")
            other = self._sample(run, "teacher")
            made = Direct(self.own.status, other.status), [self.own], other
        self._keep("direct", made, reason)
        return made

    def _keep(self, name: str, made: Any, reason: str | None) -> None:
        self._made[name] = made
        if reason:
            self.refused[name] = reason

    def _sample(self, run: Run, name: str) -> Sample:
        """A run with the energies of both potentials in its frames."""
        first, status = settled(run, "auto")
        kept = None if self.folder is None else self.folder / f"{name}.energies.npz"
        both = [self.task.student, self.task.teacher]
        return Sample(run, first, status, frame_energies(run, both, first=first, to=kept, progress=self.progress))


def unstable_in_equilibrium(run: Run, temperature_K: float) -> str | None:
    """What went wrong in a simulation, see `instability`; heat that the start brought along is nothing wrong."""
    if not run.completed.all():
        return instability(run, temperature_K)
    return instability(run.during(slice(settled(run, "auto")[0], None)), temperature_K)


def _no_better(estimate: Estimate, status: Status) -> Estimate:
    """The estimate with the worse of two statuses."""
    return dataclasses.replace(estimate, status=worst(estimate.status, status))


def _largest(estimate: Estimate) -> Estimate:
    """Of several numbers, the one that is furthest from nothing in its errors."""
    size = np.abs(estimate.value) / np.where(estimate.error > 0, estimate.error, np.inf)
    place = int(np.argmax(size))
    picked = {
        "value": np.asarray(estimate.value.ravel()[place]),
        "error": np.asarray(estimate.error.ravel()[place]),
        "dof": float(np.broadcast_to(estimate.dof, estimate.error.shape).ravel()[place]),
    }
    return dataclasses.replace(estimate, blocks=None, source=None, axis=None, **picked)


def _longer(width: float, tolerance: float) -> str:
    """By how much more sampling an interval becomes as narrow as the tolerance."""
    return f"{(width / tolerance) ** 2:.1f} times" if 0 < tolerance < width < math.inf else "several times"
