"""How a student's averages are held against its teacher's, cheapest way first.

A way is taken only if its own check allows it, and every number says which way gave it:

1. *reweighting*: the student's frames with weights ∝ exp(−β ΔU), ΔU = U_teacher − U_student. Allowed if enough
   independent frames are left, see `weights`.
2. *bridge*: simulations of (1 − λ) U_student + λ U_teacher between the two, one program for all, and MBAR over these
   and the student's frames. Allowed if neighbours overlap and the teacher need not be called more often than by a
   simulation of its own.
3. *response*: ⟨A⟩ − β cov(A, ΔU) in the student's frames. Its error includes the next term, ½ β² κ(A, ΔU, ΔU), whole;
   allowed if that is at most half of the first, or within the tolerance.
4. *direct*: a simulation of the teacher's own; if the caller allows what that costs, or has one.

Each way is an object that gives an average of the student, of the teacher, and their difference. Where one sample gave
both, the error of the difference knows it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import flax.struct
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status, worst
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf, PerAtom, PerGraph
from jaxmlip.validation.weights import Mixture, Target

Method = Literal["reweighting", "bridge", "response", "direct"]

APART = 1.0
"""Spread of the reduced energy difference between neighbours on a bridge: e^-1 of their frames overlap."""

MOST_STATES = 8
"""Simulations of a bridge, at most."""

Values = Sequence[np.ndarray]
"""Of an observable in the frames of one run or several, [replicas, frames, ...] each."""


class Way(Protocol):
    """What gives averages of student and teacher."""

    @property
    def method(self) -> Method:
        """Its name."""
        ...

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """Of student, teacher, and student − teacher, from values as either has them."""
        ...


@flax.struct.dataclass
class Bridge(Potential):
    """(1 − λ) U_student + λ U_teacher, λ a leaf: bridges of one pair of potentials stack.

    Attributes:
        student, teacher: the ends.
        share: λ.
    """

    student: Potential
    teacher: Potential
    share: Leaf

    @property
    def params(self) -> tuple:
        """Parameters of both."""
        return self.student.params, self.teacher.params

    def with_params(self, params: Any) -> "Bridge":
        """The bridge of the two with other parameters."""
        student, teacher = params
        return self.replace(student=self.student.with_params(student), teacher=self.teacher.with_params(teacher))

    @property
    def opaque(self) -> bool:
        """Whether JAX does not see the parameters of one of the two."""
        return self.student.opaque or self.teacher.opaque

    @property
    def references(self) -> Float[np.ndarray, "*models 119"]:
        """Elemental references, mixed likewise, eV."""
        share = np.asarray(self.share, np.float64)[..., None]
        one, other = (np.asarray(each.references, np.float64) for each in (self.student, self.teacher))
        return (1.0 - share) * one + share * other

    @property
    def cutoff(self) -> float:
        """The longer of the two, Å."""
        return max(self.student.cutoff, self.teacher.cutoff)

    @property
    def inner_cutoff(self) -> float:
        """The longer of the two, Å."""
        return max(self.student.inner_cutoff, self.teacher.inner_cutoff)

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that both know."""
        return tuple(sorted({*self.student.species} & {*self.teacher.species}))

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Atomic energies of both, mixed, eV."""
        one, other = (each.atomic_energies(graph) for each in (self.student, self.teacher))
        return (1.0 - self.share) * one + self.share * other

    def energy(self, graph: Graph) -> PerGraph:
        """Energies of both, mixed, eV."""
        return (1.0 - self.share) * self.student.energy(graph) + self.share * self.teacher.energy(graph)

    def references_for(self, species: Any) -> Float[np.ndarray, "119"]:
        """References of both for these elements, mixed, eV."""
        share = float(self.share)
        return (1.0 - share) * self.student.references_for(species) + share * self.teacher.references_for(species)

    def check(self, atoms: Any, *, stress: bool = False) -> None:
        """Whether both can say what is asked for; ValueError if not."""
        self.student.check(atoms, stress=stress)
        self.teacher.check(atoms, stress=stress)

    def complaint(self) -> str:
        """What went wrong in either."""
        return " ".join(filter(None, [self.student.complaint(), self.teacher.complaint()]))


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Reweighting, over the student's frames alone or over a bridge's too.

    Attributes:
        mixture: of all frames; the student's run comes first.
        student, teacher: the two states in it.
    """

    mixture: Mixture
    student: Target
    teacher: Target

    @property
    def method(self) -> Method:
        """Which of the two it is."""
        return "reweighting" if len(self.mixture.counts) == 1 else "bridge"

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """See `Way`."""
        if observable.of_fluctuations:
            return self._of_fluctuations(observable, student, teacher)
        one = self.mixture.average(self.student, student)
        other = self.mixture.average(self.teacher, teacher)
        return one, other, self.mixture.difference(self.student, student, self.teacher, teacher)

    def _of_fluctuations(
        self, observable: Observable, student: Values, teacher: Values
    ) -> tuple[Estimate, Estimate, Estimate]:
        """Those of an observable whose mean is more than a mean; the error of the difference is no less than it is."""
        if len(student) > 1:
            raise ValueError(f"A bridge gives means, and the {observable.name} is more than a mean.")
        weights = np.exp(self.teacher.log_weights).reshape(np.shape(student[0])[:2])
        one, other = observable.estimate(student[0]), observable.estimate(teacher[0], weights)
        one, other = (dataclasses.replace(each, source=None) for each in (one, other))
        return one, other, one - other


@dataclasses.dataclass(frozen=True)
class Response:
    """Linear response, from the student's frames.

    Attributes:
        change: β ΔU of these, [replicas, frames].
    """

    change: Float[np.ndarray, "replicas frames"]

    @property
    def method(self) -> Method:
        """Its name."""
        return "response"

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """See `Way`; the error of the teacher's includes the second order."""
        if observable.of_fluctuations:
            raise ValueError(f"The {observable.name} is no mean, of which there is a linear response.")
        one = correlated_mean(np.asarray(student[0], np.float64))
        first, second = self.orders(teacher[0])
        gap = np.asarray(student[0], np.float64) - self._series(teacher[0])
        difference = correlated_mean(gap)
        return one, _with_doubt(first, second), _with_doubt(difference, second)

    def orders(self, values: np.ndarray) -> tuple[Estimate, np.ndarray]:
        """The teacher's average to first order, and what the second order would add."""
        values = np.asarray(values, np.float64)
        change = (self.change - self.change.mean()).reshape(*self.change.shape, *[1] * (values.ndim - 2))
        deviation = values - values.mean(axis=(0, 1))
        return correlated_mean(self._series(values)), 0.5 * (deviation * change**2).mean(axis=(0, 1))

    def _series(self, values: np.ndarray) -> np.ndarray:
        """Series whose mean is ⟨A⟩ − β cov(A, ΔU), with N − 1."""
        values = np.asarray(values, np.float64)
        number = self.change.size
        change = (self.change - self.change.mean()).reshape(*self.change.shape, *[1] * (values.ndim - 2))
        return values - (values - values.mean(axis=(0, 1))) * change * (number / (number - 1.0))


@dataclasses.dataclass(frozen=True)
class Direct:
    """Two simulations.

    Attributes:
        student_status, teacher_status: what is to be said of the runs.
    """

    student_status: Status
    teacher_status: Status

    @property
    def method(self) -> Method:
        """Its name."""
        return "direct"

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """See `Way`."""
        one, other = (_of_status(observable.estimate(values[0]), status) for values, status in (
            (student, self.student_status), (teacher, self.teacher_status)))  # fmt: skip
        one, other = (dataclasses.replace(each, source=None) for each in (one, other))
        return one, other, one - other


def _of_status(estimate: Estimate, status: Status) -> Estimate:
    """The estimate with the worse of two statuses, and without an error where there is none."""
    status = worst(estimate.status, status)
    error = estimate.error if status.has_error else np.full_like(estimate.error, np.nan)
    return dataclasses.replace(estimate, status=status, error=error)


def _with_doubt(estimate: Estimate, doubt: np.ndarray) -> Estimate:
    """The estimate with a systematic doubt added to its error, in squares."""
    return dataclasses.replace(estimate, error=np.asarray(np.hypot(estimate.error, doubt)))


def shares_of(spread: float) -> list[float]:
    """Places λ of the simulations between student (0) and teacher (1) so that neighbours are `APART` in spread.

    The teacher itself is not among them: it is as far from the last as these are from each other.
    """
    number = max(1, math.ceil(spread / APART))
    return [n / number for n in range(1, number)]


def projected(values: Values, coefficients: np.ndarray | None) -> Values:
    """Values · coefficients, for a function's deviation; as they are without coefficients."""
    return values if coefficients is None else [np.asarray(each) @ coefficients for each in values]


def deviation(way: Way, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, ...]:
    """Averages of student and teacher, and one number that says how far apart they are.

    Of numbers it is student − teacher; of functions ∫ |student − teacher| over their axis, whose error is that of the
    integral linearised about it, and whose noise floor is what noise makes of no difference, see `rdf_error`.
    """
    one, other, difference = way.averages(observable, student, teacher)
    if observable.axis is None:
        return one, other, difference
    axis = observable.axis
    one, other = (dataclasses.replace(each, axis=axis) for each in (one, other))
    width = float(axis[1] - axis[0]) if len(axis) > 1 else 1.0
    signs = width * np.sign(difference.value)
    plain = _Plain(observable)
    _, _, along = way.averages(plain, projected(student, signs), projected(teacher, signs))
    floor = math.sqrt(2.0 / math.pi) * width * float(difference.error.sum())
    value = np.asarray(width * np.abs(difference.value).sum())
    return one, other, dataclasses.replace(along, value=value, noise_floor=np.asarray(floor))


@dataclasses.dataclass(frozen=True)
class _Plain(Observable):
    """A projection of a function's values: a number with a plain mean."""

    of: Observable

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def unit(self) -> str:
        return self.of.unit

    def per_frame(self, frame: Any, potential: Potential | None = None) -> Any:
        return self.of.per_frame(frame, potential)
