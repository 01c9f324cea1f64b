"""Whether a student's simulation can be trusted: its run against the teacher's, observable by observable."""

import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols

from jaxmlip.observables.estimate import Estimate, worst
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF, rdf_error
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Temperature
from jaxmlip.potentials.errors import ErrorReport
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.validation.averages import average, observe

Level = Literal[
    "unstable",
    "wrong structure",
    "wrong density",
    "wrong energy",
    "undecided",
    "right for the wrong reasons",
    "trusted",
]
"""What is said of a student, from the most to the least damning."""

Answer = Literal["pass", "fail", "cannot tell"]

LEVELS: dict[str, Level] = {"structure": "wrong structure", "density": "wrong density", "energy": "wrong energy"}
"""What follows from the failure of each kind of check."""

LONG_RANGE = 6.0
"""Å, up to which RDFs are compared unless said otherwise."""


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Deviations that do no harm.

    Attributes:
        sigma: deviations below this many standard errors are not significant; of Student's distributions, those of
            equal probability of a normal one.
        rdf_A: ∫ |g − g_teacher| dr beyond what noise alone gives, Å.
        energy_meV: mean potential energy, meV per atom, or per whatever the verdict counts in.
        density: relative, of the mean density.
        temperature: relative, of the mean temperature.
        force: RMSE of forces relative to the RMS force.
    """

    sigma: float = 2.0
    rdf_A: float = 0.1
    energy_meV: float = 3.0
    density: float = 0.01
    temperature: float = 0.05
    force: float = 0.1


@dataclasses.dataclass(frozen=True)
class Check:
    """One observable of two runs.

    Attributes:
        kind: "structure", "density", "energy" or "temperature".
        name: of the observable.
        student, teacher: estimates; of the whole function for RDFs.
        difference: student − teacher in the unit of the tolerance; for RDFs `rdf_error`.
        sigma: how far the difference is from what is expected of equals, in σ; NaN without an error.
        tolerance: in the same unit as the difference.
        answer: "fail" if the difference is significant and beyond the tolerance, "cannot tell" if the runs are not in
            equilibrium or the difference is known less well than the tolerance, else "pass".
    """

    kind: str
    name: str
    student: Estimate
    teacher: Estimate
    difference: Estimate
    sigma: float
    tolerance: float
    answer: Answer

    @property
    def excess(self) -> float:
        """The difference less what noise alone would make of none; without its sign."""
        floor = 0.0 if self.difference.noise_floor is None else float(self.difference.noise_floor)
        return abs(float(self.difference)) - floor


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
    """What a student's run says of it; printed, a table.

    Attributes:
        level: see `Level`.
        reason: one sentence.
        checks: of all observables; empty if a replica of the student failed.
    """

    level: Level
    reason: str
    checks: tuple[Check, ...] = ()

    def __repr__(self) -> str:
        """The level, the reason and a table of the checks."""
        rows: list[list[str]] = [["observable", "student", "teacher", "difference", "σ", "tolerance", ""]]
        for check in self.checks:
            numbers = [_short(each) for each in (check.student, check.teacher, check.difference)]
            tolerance = f"{check.tolerance:.3g} {check.difference.unit}"
            rows.append([check.name, *numbers, f"{check.sigma:+.1f}", tolerance, check.answer])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.level}: {self.reason}", *(lines if self.checks else [])])


def verdict(
    student: Run,
    teacher: Run,
    errors: ErrorReport | None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    r_max: float | int = LONG_RANGE,
    per: tuple[str, int] | None = None,
    temperature_K: float | int | None = None,
    tolerances: Tolerances | None = None,
) -> Verdict:
    """Whether a student's simulation can be trusted, from its run, the teacher's, and its errors at fixed structures.

    The two runs are of the same atoms and ensemble, from like starts, with random numbers of their own. What they hold
    decides what is compared: radial distribution functions (where periodic), density (where cells move), potential
    energy and temperature. Where one of the two is not in equilibrium, the same stretch of both is compared, with the
    spread of the replicas for an error: that may show that they differ, but not that they agree.

    Args:
        student: its run.
        teacher: its run.
        errors: of the student's forces, from `compare`; with None the student can be wrong, but not trusted.
        pairs: of elements whose RDFs are compared; by default all.
        r_max: Å, range of the RDFs.
        per: what energies are per, and how many of these there are, such as ("molecule", 32); by default atoms.
        temperature_K: of the ensemble; a replica six standard deviations of the canonical ensemble above it is
            unstable. By default the mean of the teacher's.
        tolerances: see there.

    Raises:
        ValueError: if the runs are of different atoms, or the teacher's failed.
    """
    if not np.array_equal(student.numbers, teacher.numbers):
        raise ValueError("The runs of student and teacher are of different atoms; a verdict compares like with like.")
    if not teacher.completed.all():
        failed = int(np.flatnonzero(~teacher.completed)[0])
        raise ValueError(f"Replica {failed} of the teacher's run failed ({teacher.outcomes[failed].value}).")
    tolerances = tolerances or Tolerances()
    if temperature_K is None:
        temperature_K = float(teacher.temperature[:, teacher.n_frames // 2 :].mean())
    checks = _checks(student, teacher, pairs, r_max, per, tolerances) if student.completed.all() else []
    wrong = instability(student, temperature_K)
    judged = ("unstable", wrong) if wrong else _judged(checks, errors, tolerances)
    return Verdict(*judged, tuple(checks))


def instability(run: Run, temperature_K: float | int) -> str | None:
    """What went wrong in a simulation, in words; None if nothing did.

    A thermostatted replica whose kinetic temperature leaves T (1 + 6 √(2/3N)), six standard deviations of the canonical
    ensemble, is falling into a hole of its potential, whether or not it goes on.
    """
    hot = temperature_K * (1.0 + 6.0 * np.sqrt(2.0 / (3.0 * len(run.numbers))))
    failures = []
    for replica, (outcome, length) in enumerate(zip(run.outcomes, run.lengths, strict=True)):
        over = np.flatnonzero(run.temperature[replica, :length] > hot)
        if outcome is not Outcome.COMPLETED:
            failures.append(f"replica {replica} failed after {length} frames: {outcome.value}")
        elif over.size:
            at = run.time_fs[over[0]]
            failures.append(f"replica {replica} is hotter than {hot:.0f} K, six σ of its thermostat, at {at:.0f} fs")
    return "; ".join(failures) or None


def comparable(student: Run, teacher: Run, observable: Observable) -> tuple[Estimate, Estimate]:
    """Averages of two runs that can be compared.

    Those of `average`; but if one has no error, and there are replicas to make one of, the means over the later half of
    both, with the spread of the replicas for an error and the status that `average` gave.
    """
    one, other = (_remembered(run, observable, average) for run in (student, teacher))
    if (one.status.has_error and other.status.has_error) or min(student.n_replicas, teacher.n_replicas) < 2:
        return one, other
    return _remembered(student, observable, _stretch), _remembered(teacher, observable, _stretch)


_KNOWN: weakref.WeakKeyDictionary[Run, dict[Any, Estimate]] = weakref.WeakKeyDictionary()
"""Averages of runs that are still in use: a teacher's run is held against many students'."""


def _remembered(run: Run, observable: Observable, function: Callable[[Run, Observable], Estimate]) -> Estimate:
    """What a function says of an observable of a run, computed once."""
    known = _KNOWN.setdefault(run, {})
    if (function, observable) not in known:
        known[function, observable] = function(run, observable)
    return known[function, observable]


def _stretch(run: Run, observable: Observable) -> Estimate:
    """Mean over the later half of a run; replicas are independent, whatever they are on their way to."""
    known = _remembered(run, observable, average)
    first = run.n_frames // 2
    replicas = observe(run, observable, first).mean(axis=1)
    error = replicas.std(axis=0, ddof=1) / np.sqrt(len(replicas))
    return dataclasses.replace(
        known,
        value=np.asarray(replicas.mean(axis=0)),
        error=np.asarray(error),
        dof=len(replicas) - 1.0,
        effective_samples=float(len(replicas)),
        n_samples=len(replicas) * (run.n_frames - first),
        blocks=replicas,
        source=None,
        discarded_fs=float(run.time_fs[first - 1]) if first else 0.0,
    )


def _checks(
    student: Run,
    teacher: Run,
    pairs: Sequence[tuple[str, str]] | None,
    r_max: float | int,
    per: tuple[str, int] | None,
    tolerances: Tolerances,
) -> list[Check]:
    """All observables that both runs hold."""
    checks = []
    if student.pbc.all() and teacher.pbc.all():
        elements = [chemical_symbols[number] for number in np.unique(student.numbers)]
        for pair in itertools.combinations_with_replacement(elements, 2) if pairs is None else pairs:
            rdf = RDF(*pair, r_max=r_max)
            one, other = comparable(student, teacher, rdf)
            error = rdf_error(one, other)
            checks.append(_check("structure", rdf.name, one, other, error, tolerances.rdf_A, tolerances))
        if student.cells.ndim == teacher.cells.ndim == 4:
            one, other = comparable(student, teacher, Density())
            limit = tolerances.density * float(other)
            checks.append(_check("density", "density", one, other, one - other, limit, tolerances))
    what, number = per or ("atom", len(student.numbers))
    one, other = comparable(student, teacher, PotentialEnergy())
    difference = dataclasses.replace((one - other) * (1e3 / number), unit=f"meV/{what}")
    checks.append(_check("energy", "potential energy", one, other, difference, tolerances.energy_meV, tolerances))
    one, other = comparable(student, teacher, Temperature())
    limit = tolerances.temperature * float(other)
    checks.append(_check("temperature", "temperature", one, other, one - other, limit, tolerances))
    return checks


def _check(
    kind: str,
    name: str,
    student: Estimate,
    teacher: Estimate,
    difference: Estimate,
    tolerance: float,
    tolerances: Tolerances,
) -> Check:
    """One observable, judged."""
    floor = 0.0 if difference.noise_floor is None else difference.noise_floor
    sigma = float(difference.sigma_from(floor))
    check = Check(kind, name, student, teacher, difference, sigma, tolerance, "pass")
    significant = check.excess > 0 and abs(sigma) > tolerances.sigma
    if significant and check.excess > tolerance:
        return dataclasses.replace(check, answer="fail")
    if worst(student.status, teacher.status).has_error and _width(difference) <= tolerance:
        return check
    return dataclasses.replace(check, answer="cannot tell")


def _width(difference: Estimate) -> float:
    """Half of the interval that holds a difference in 68 of 100 cases; infinite without an error."""
    low, high = difference.interval(0.6827)
    width = 0.5 * float(high - low)
    return width if math.isfinite(width) else math.inf


def _judged(checks: Sequence[Check], errors: ErrorReport | None, tolerances: Tolerances) -> tuple[Level, str]:
    """Level and reason, from the most to the least damning observation."""
    for kind, level in LEVELS.items():
        failed = [check for check in checks if check.kind == kind and check.answer == "fail"]
        if failed:
            return level, _said(max(failed, key=lambda check: check.excess / check.tolerance if check.tolerance else 1))
    for check in checks:
        if check.answer == "fail":
            return "undecided", f"{_said(check)}: the runs are not of the same ensemble, or the timestep is too long"
    unknown = [check for check in checks if check.answer == "cannot tell" and check.kind != "temperature"]
    if unknown:
        status = worst(*(each.status for check in unknown for each in (check.student, check.teacher)))
        if not status.has_error:
            return "undecided", f"no difference is significant, but that shows little: {status.value}"
        check = max(unknown, key=lambda each: _width(each.difference) / each.tolerance if each.tolerance else math.inf)
        known = f"{_width(check.difference):.2g} {check.difference.unit}"
        what = f"RDF error of {check.name}" if check.kind == "structure" else f"difference of the {check.name}"
        return "undecided", f"the {what} is known to ± {known} only, more than the tolerance: run longer"
    if errors is None or not math.isfinite(errors.force_rmse_meV_A):
        return "undecided", "its run looks right, but nothing is known of its forces: give their errors"
    share = errors.force_rmse_meV_A / errors.force_rms_meV_A if errors.force_rms_meV_A else math.inf
    if share > tolerances.force:
        return "right for the wrong reasons", (
            f"its run looks right, but forces are off by {100 * share:.0f} % of their RMS"
        )
    kinds = [kind for kind in LEVELS if any(check.kind == kind for check in checks)]
    agreed = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    return "trusted", f"{agreed} agree within {tolerances.sigma:g} σ or the tolerances, and so do forces"


def _said(check: Check) -> str:
    """What a failed check found."""
    unit, sigma = check.difference.unit, abs(check.sigma)
    if check.kind == "structure":
        return f"RDF error of {check.name} is {check.excess:.2f} {unit} beyond sampling noise ({sigma:.1f} σ)"
    return f"mean {check.name} is off by {float(check.difference):+.3g} {unit} ({sigma:.1f} σ)"


def _short(estimate: Estimate) -> str:
    """Value ± error of a scalar; a dash for functions."""
    if estimate.value.ndim:
        return "–"
    return estimate.plain()
