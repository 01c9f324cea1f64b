"""From a student's averages to its teacher's, by the cheapest way whose own check allows it; see `ways`."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from jaxmlip.describing import count
from jaxmlip.digests import digest
from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.potential import Potential, Sum, fingerprint
from jaxmlip.potentials.scaled import Scaled
from jaxmlip.progress import say
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.systems.checks import ALLOW_CLOSE
from jaxmlip.validation.averages import observe, settled
from jaxmlip.validation.comparison import Comparison, Validation
from jaxmlip.validation.energies import frame_energies
from jaxmlip.validation.task import Task
from jaxmlip.validation.verdict import Answer, instability
from jaxmlip.validation.ways import MOST_STATES, Direct, Method, Response, Way, Weighted, deviation, shares_of, spacing
from jaxmlip.validation.weights import ENOUGH, Mixture

WAYS: tuple[Method, ...] = ("reweighting", "bridge", "response", "direct")
"""In the order in which they are tried."""

MOST_FRAMES = 1e9
"""Frames beyond which a number of them says nothing."""

LEVEL = 0.05
"""Probability that a student equal to its teacher fails for any of its observables."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A run's frames in equilibrium, with the energies of both potentials.

    Attributes:
        run: what is kept of it; all replicas ran to the end.
        status: whether that is in equilibrium.
        energies: [student and teacher, replicas, frames], eV.
    """

    run: Run
    status: Status
    energies: np.ndarray

    def values(self, observable: Observable, potential: Potential, which: int) -> np.ndarray:
        """Values as one of the two potentials has them in these frames."""
        made = dataclasses.replace(
            self.run, potential_energy=self.energies[which], pressure_GPa=None, conserved=None, observed={}
        )
        needed = observable.depends_on_potential and observable.recorded_in(made) is None
        return observe(made, observable, potential=potential if needed else None)


class Rung(NamedTuple):
    """A way that is open, and the frames that averages are taken in.

    Attributes:
        way: see there.
        of_student: where the student's values are taken; a bridge's frames come after its own.
        of_teacher: where the teacher's are.
    """

    way: Way
    of_student: list[Sample]
    of_teacher: list[Sample]


class Ladder:
    """The ways from student to teacher, each made when it is first needed.

    Attributes:
        own: the student's run.
        change: β ΔU in its frames.
        weighted: reweighting of these.
        calls: of forces or energies, by potential.
    """

    def __init__(self, task: Task, run: Run, teacher_run: Run | None, folder: Path | None, progress: bool) -> None:
        self.task, self.folder, self.progress, self.teacher_run = task, folder, progress, teacher_run
        self.own = self._sample(run, "student")
        self.steps = round(run.time_fs[-1] / run.timestep_fs)
        self.calls = {"student": self.steps * run.n_replicas, "teacher": self.own.energies[0].size}
        reduced = task.reduced(self.own.energies, self.own.run)
        self.change = reduced[1] - reduced[0]
        mixture = Mixture([reduced[:1]])
        self.weighted = Weighted(mixture, mixture.target([reduced[0]]), mixture.target([reduced[1]]))
        self._known: dict[Method, Rung | str] = {}
        self._unsteady: list[str] = []

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
        refused: dict[str, str] = {way: reason for way, reason in self._known.items() if isinstance(reason, str)}
        if self._unsteady:
            refused["response"] = f"its second order is more than half of the first for {', '.join(self._unsteady)}"
        there = self.weighted.teacher
        return Validation(answer, said + which, found, there.spread, there.effective_frames, self.calls, refused)

    def _compared(self, name: str, limit: float) -> Comparison:
        """One observable, by the first way that tells."""
        observable, best = self.task.observables[name].bound_to(self.task.start), None
        # A run of the teacher's own that is there costs nothing, and leaves no doubt.
        first: tuple[Method, ...] = () if self.teacher_run is None else ("direct",)
        for method in dict.fromkeys((*first, *WAYS)):
            if observable.of_fluctuations and method in ("bridge", "response"):
                continue
            rung = self._rung(method)
            if isinstance(rung, str):
                continue
            student = [each.values(observable, self.task.student, 0) for each in rung.of_student]
            teacher = [each.values(observable, self.task.teacher, 1) for each in rung.of_teacher]
            if isinstance(rung.way, Response) and not self._trusts(rung.way, name, observable, teacher[0]):
                self._unsteady.append(name)
                continue
            compared = self._judged(name, rung, deviation(rung.way, observable, student, teacher), limit)
            best = best or compared
            if compared.answer != "cannot tell":
                return compared
        return best or self._untold(name, observable)

    def _judged(self, name: str, rung: Rung, found: tuple[Estimate, ...], limit: float) -> Comparison:
        """What the difference says of an observable."""
        unit = self.task.observables[name].unit
        of_difference = "Å" if isinstance(self.task.observables[name], RDF) else unit  # an integral over r
        statuses = [worst(*(each.status for each in samples)) for samples in (rung.of_student, rung.of_teacher)]
        student, teacher, difference = (
            no_better(dataclasses.replace(each, unit=unit), status)
            for each, status in zip(found, (*statuses, worst(*statuses)), strict=True)
        )
        tolerance = self.task.tolerance(name, teacher)
        floor = 0.0 if difference.noise_floor is None else float(difference.noise_floor)
        scalar = difference if difference.value.ndim == 0 else _largest(difference)
        sigma, excess = float(scalar.sigma_from(floor)), abs(float(scalar)) - floor
        low, high = scalar.interval(0.6827)
        width = 0.5 * float(high - low)
        status = worst(student.status, teacher.status)
        answer: Answer = "cannot tell"
        if not status.has_error:
            said = status.value
        elif excess > tolerance and abs(sigma) > limit:
            answer, much = "fail", f"{excess:.3g} {of_difference}".rstrip()
            said = f"off by {much}, {abs(sigma):.1f} σ, tolerated are {tolerance:.3g}"
        elif not width <= tolerance:
            known = f"{width:.2g} {of_difference}".rstrip()
            said = f"known to ± {known} only, run {_longer(width, tolerance)} as much"
        else:
            answer, said = "pass", f"within {tolerance:.3g} {of_difference}".rstrip()
        scalar = dataclasses.replace(scalar, unit=of_difference)
        return Comparison(student, teacher, scalar, rung.way.method, tolerance, sigma, answer, said)

    def _untold(self, name: str, observable: Observable) -> Comparison:
        """Where no way was allowed: what it would take."""
        values = self.own.values(observable, self.task.student, 0)
        student = no_better(dataclasses.replace(observable.estimate(values), unit=observable.unit), self.own.status)
        there, number = self.weighted.teacher, self.own.energies[0].size
        frames = number * ENOUGH / max(there.effective_frames, 1e-300)
        needs = f"some {float(f'{frames:.1g}'):,.0f} of the student's frames (there are {number})"
        if frames > MOST_FRAMES:
            needs = "more of the student's frames than can be had"
        reason = (
            f"it would take {needs}, or a simulation of the teacher ({self.calls['student']} force calls; allowed by "
            "--allow-teacher-md, Sampling(teacher_md=True))"
        )
        return Comparison(student, None, None, None, self.task.tolerance(name, None), math.nan, "cannot tell", reason)

    def _rung(self, method: Method) -> Rung | str:
        """A way, or why it is not open."""
        if method not in self._known:
            make = {
                "reweighting": self._reweighting,
                "bridge": self._bridge,
                "response": self._response,
                "direct": self._direct,
            }[method]
            self._known[method] = make()
        return self._known[method]

    def _reweighting(self) -> Rung | str:
        there = self.weighted.teacher
        if not self.own.status.has_error:
            return f"the student's run has no averages: {self.own.status.value}"
        if not there.allowed:
            return (
                f"the energy difference spreads by {there.spread:.2g} kT, which leaves {there.effective_frames:.2g} "
                f"independent frames of the {ENOUGH:g} that are needed"
            )
        return Rung(self.weighted, [self.own], [self.own])

    def _response(self) -> Rung | str:
        """Open as such; whether the second order of an observable is small is asked later."""
        if not self.own.status.has_error:
            return self.own.status.value
        return Rung(Response(self.change), [self.own], [self.own])

    def _trusts(self, way: Response, name: str, observable: Observable, teacher: np.ndarray) -> bool:
        """Whether the second order is at most half of the first, or does no harm."""
        first, second = way.orders(teacher)
        moved = np.abs(first.value - np.mean(teacher, axis=(0, 1))).sum()
        tolerance = self.task.tolerance(name, dataclasses.replace(first, axis=observable.axis))
        doubt = np.abs(second).sum()
        return bool(doubt <= 0.5 * moved or spacing(observable) * doubt <= tolerance)

    def _bridge(self) -> Rung | str:
        shares, replicas = shares_of(self.weighted.teacher.spread), self.own.run.n_replicas
        if not self.task.sampling.bridge:
            return "it is not wanted"
        if not self.own.status.has_error:
            return self.own.status.value
        if not shares:
            return "the two are neighbours already, and what lacks is frames"
        if len(shares) > min(MOST_STATES, 2 * replicas):
            return (
                f"it would take {len(shares)} simulations between the two, more force calls of the teacher than "
                "a simulation of its own"
            )
        task, runs = self.task, self._between(shares)
        if any(not each.completed.all() for each in runs):
            return "one of its simulations failed"
        samples = [self.own, *(self._sample(each, f"bridge-{n}") for n, each in enumerate(runs))]
        unsettled = [each.status for each in samples if not each.status.has_error]
        if unsettled:
            return f"in one of its simulations {unsettled[0].value}"
        reduced = [task.reduced(each.energies, each.run) for each in samples]
        mixture = Mixture([np.stack([(1 - s) * each[0] + s * each[1] for s in (0.0, *shares)]) for each in reduced])
        student, teacher = (mixture.target([each[which] for each in reduced]) for which in (0, 1))
        if not teacher.allowed:
            overlaps = "neighbours overlap" if teacher.connected else "neighbours do not overlap"
            return f"{overlaps}, and it leaves {teacher.effective_frames:.2g} independent frames of {ENOUGH:g}"
        return Rung(Weighted(mixture, student, teacher), samples, samples)

    def _between(self, shares: list[float]) -> list[Run]:
        """Simulations of a bridge, one program for all, found again where they were made before.

        Together they take no more force calls than the student's own run.
        """
        task, run = self.task, self.own.run
        replicas = max(2, run.n_replicas // len(shares))
        part = min(1.0, run.n_replicas / (replicas * len(shares)))
        last = run.during(slice(-1, None)).frames()
        starts = [last[n % run.n_replicas] for n in range(replicas)]
        for atoms in starts:
            atoms.info[ALLOW_CLOSE] = True  # they are where the dynamics has brought them
        states: list[Potential] = [
            Sum((Scaled(task.student, np.float32(1 - share)), Scaled(task.teacher, np.float32(share))))
            for share in shares
        ]
        options: dict[str, Any] = {
            "steps": whole_frames(part * self.steps, round((run.time_fs[1] - run.time_fs[0]) / run.timestep_fs)),
            "timestep_fs": run.timestep_fs,
            "sample_every_fs": float(run.time_fs[1] - run.time_fs[0]),
            "seed": task.sampling.seed + 2,
            "keep_velocities": True,
            "on_failure": "mark",
        }
        self.calls["teacher"] += options["steps"] * replicas * len(shares)
        known = digest(*map(fingerprint, states), *(each.positions for each in starts), str(task.ensemble), options)
        paths = [self.folder / f"bridge-{known[:8]}-{n}.h5" for n in range(len(states))] if self.folder else []
        if paths and all(path.exists() for path in paths):
            return [load_run(path) for path in paths]
        options["progress"] = self.progress
        length, direct = options["steps"] * run.timestep_fs / 1000, self._known.get("reweighting")
        reason = f"no reweighting, for {direct}; " if isinstance(direct, str) else ""
        said = f"{count(len(shares), 'simulation')} between the two, {length:g} ps of {count(replicas, 'replica')} each"
        say(reason + said, shown=self.progress)
        if any(state.opaque for state in states):
            runs = [simulate(state, starts, task.ensemble, **options) for state in states]
        else:
            runs = simulate(states, starts, task.ensemble, **options)
        for path, each in zip(paths, runs, strict=False):
            each.save(path)
        return runs

    def _direct(self) -> Rung | str:
        run = self.teacher_run
        if run is None:
            if not self.task.sampling.teacher_md:
                return "simulating the teacher was not allowed"
            run = self.task.simulated(self.task.teacher, self.folder, "teacher", progress=self.progress)
            self.calls["teacher"] += round(run.time_fs[-1] / run.timestep_fs) * run.n_replicas
        wrong = unstable_in_equilibrium(run, self.task.temperature_K)
        if wrong:
            raise ValueError(f"The teacher's own simulation fails, so that nothing is compared: {wrong}.")
        return Rung(Direct(), [self.own], [self._sample(run, "teacher")])

    def _sample(self, run: Run, name: str) -> Sample:
        """What is kept of a run, with the energies of both potentials in its frames."""
        first, status = settled(run, "auto")
        run, kept = (
            run.during(slice(first, None)),
            None if self.folder is None else self.folder / f"{name}.energies.npz",
        )
        energies = frame_energies(run, [self.task.student, self.task.teacher], to=kept, progress=self.progress)
        return Sample(run, status, energies)


def whole_frames(steps: float, every: int) -> int:
    """Steps up to the last frame that so many of them give, one frame at least."""
    return max(1, int(steps) // every) * every


def unstable_in_equilibrium(run: Run, temperature_K: float) -> str | None:
    """What went wrong in a simulation, see `instability`; heat that the start brought along is nothing wrong."""
    if not run.completed.all():
        return instability(run, temperature_K)
    return instability(run.during(slice(settled(run, "auto")[0], None)), temperature_K)


def no_better(estimate: Estimate, status: Status) -> Estimate:
    """The estimate with the worse of two statuses, and without an error where there is none."""
    status = worst(estimate.status, status)
    error = estimate.error if status.has_error else np.full_like(estimate.error, np.nan)
    return dataclasses.replace(estimate, status=status, error=error)


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
