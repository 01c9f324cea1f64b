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
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.potentials.potential import Potential
from jaxmlip.validation.weights import Mixture, Target

Method = Literal["reweighting", "bridge", "response", "direct"]

APART = 1.0
"""Spread of the reduced energy difference between neighbours on a bridge: e^-1 of their frames overlap."""

MOST_STATES = 8
"""Simulations of a bridge, at most."""

Values = Sequence[np.ndarray]
"""Of an observable in the frames of one run or several, [replicas, frames, ...] each."""


@runtime_checkable
class Way(Protocol):
    """What gives averages of student and teacher."""

    @property
    def method(self) -> Method:
        """Its name."""
        ...

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """Of student, teacher, and student − teacher, from values as either has them."""
        ...


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
        gap = np.asarray(student[0], np.float64) - first_order(teacher[0], self.change)
        difference = correlated_mean(gap)
        return one, _with_doubt(first, second), _with_doubt(difference, second)

    def orders(self, values: np.ndarray) -> tuple[Estimate, np.ndarray]:
        """The teacher's average to first order, and what the second order would add."""
        return correlated_mean(first_order(values, self.change)), second_order(values, self.change)


@dataclasses.dataclass(frozen=True)
class Direct:
    """Two simulations."""

    @property
    def method(self) -> Method:
        """Its name."""
        return "direct"

    def averages(self, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, Estimate, Estimate]:
        """See `Way`."""
        one, other = (dataclasses.replace(observable.estimate(values[0]), source=None) for values in (student, teacher))
        return one, other, one - other


def first_order(values: np.ndarray, change: np.ndarray) -> np.ndarray:
    """A series whose mean is ⟨A⟩ − β cov(A, ΔU), with N − 1, of values [replicas, frames, ...] and β ΔU of these."""
    values, number = np.asarray(values, np.float64), change.size
    return values - (values - values.mean(axis=(0, 1))) * _centred(change, values.ndim) * (number / (number - 1.0))


def second_order(values: np.ndarray, change: np.ndarray) -> np.ndarray:
    """½ β² κ(A, ΔU, ΔU), what the second order would add."""
    values = np.asarray(values, np.float64)
    deviation = values - values.mean(axis=(0, 1))
    return np.asarray(0.5 * (deviation * _centred(change, values.ndim) ** 2).mean(axis=(0, 1)))


def _centred(change: np.ndarray, dimensions: int) -> np.ndarray:
    """Deviations from the mean, with axes for those of values."""
    return (change - change.mean()).reshape(*change.shape, *[1] * (dimensions - 2))


def _with_doubt(estimate: Estimate, doubt: np.ndarray) -> Estimate:
    """The estimate with a systematic doubt added to its error, in squares."""
    return dataclasses.replace(estimate, error=np.asarray(np.hypot(estimate.error, doubt)))


def shares_of(spread: float) -> list[float]:
    """Places λ of the simulations between student (0) and teacher (1) so that neighbours are `APART` in spread.

    The teacher itself is not among them: it is as far from the last as these are from each other.
    """
    number = max(1, math.ceil(spread / APART))
    return [n / number for n in range(1, number)]


def spacing(observable: Observable) -> float:
    """Of the points of a function's axis; 1 for a number."""
    axis = observable.axis
    return 1.0 if axis is None or len(axis) < 2 else float(axis[1] - axis[0])


def deviation(way: Way, observable: Observable, student: Values, teacher: Values) -> tuple[Estimate, ...]:
    """Averages of student and teacher, and one number that says how far apart they are.

    Of numbers it is student − teacher; of functions ∫ |student − teacher| over their axis, whose error is that of the
    integral linearised about it, and whose noise floor is what noise makes of no difference, see `rdf_error`.
    """
    one, other, difference = way.averages(observable, student, teacher)
    if observable.axis is None:
        return one, other, difference
    one, other = (dataclasses.replace(each, axis=observable.axis) for each in (one, other))
    width = spacing(observable)
    signs = width * np.sign(difference.value)
    projected = ([np.asarray(each) @ signs for each in values] for values in (student, teacher))
    _, _, along = way.averages(_Plain(observable), *projected)
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
