"""What a validation says: observables of student and teacher, and all of them together."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxmlip.observables.estimate import Estimate
from jaxmlip.validation.verdict import Answer
from jaxmlip.validation.ways import Method


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One observable of student and teacher.

    Attributes:
        student, teacher: averages; of the whole function for an RDF. None where there is none.
        difference: student − teacher; of functions ∫ |student − teacher| over their axis.
        method: that gave the teacher's average; None where none was allowed.
        tolerance: difference that does no harm, in its unit.
        sigma: how far the difference is from none, or of functions from what noise makes of none, in σ.
        answer: "fail" if the difference is significant and beyond the tolerance, "cannot tell" if it is known less well
            than the tolerance, else "pass".
        reason: in a sentence, what was found, or what it would take to tell.
    """

    student: Estimate | None
    teacher: Estimate | None
    difference: Estimate | None
    method: Method | None
    tolerance: float
    sigma: float
    answer: Answer
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "student": _numbers(self.student),
            "teacher": _numbers(self.teacher),
            "method": self.method,
            "difference": _numbers(self.difference),
            "difference_sigma": self.sigma,
            "tolerance": self.tolerance,
            "verdict": self.answer,
            "reason": self.reason,
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Validation:
    """What was found of a student; printed, a table.

    Attributes:
        answer: "fail" if an observable fails, else "cannot tell" if one cannot be told, else "pass".
        reason: one sentence.
        observables: by name.
        spread: standard deviation of U_teacher − U_student over kT in the student's frames.
        effective_frames: independent frames that reweighting to the teacher leaves.
        steps: force calls of the student, and of the teacher for energies and simulations.
        refused: by way, why it was not taken.
    """

    answer: Answer
    reason: str
    observables: Mapping[str, Comparison]
    spread: float
    effective_frames: float
    steps: Mapping[str, int]
    refused: Mapping[str, str]

    def __repr__(self) -> str:
        """The answer, a table of the observables, why those that do not pass do not, and which ways were closed."""
        rows = [["observable", "student", "teacher", "method", "difference", "σ", "tolerance", ""]]
        for name, each in self.observables.items():
            numbers = [_short(one) for one in (each.student, each.teacher)]
            unit = each.difference.unit if each.difference is not None else ""
            sigma = f"{each.sigma:+.1f}" if math.isfinite(each.sigma) else "–"
            tolerance = f"{each.tolerance:.3g} {unit}" if math.isfinite(each.tolerance) else "–"
            rest = [each.method or "–", _short(each.difference), sigma, tolerance]
            rows.append([name, *numbers, *rest, each.answer])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        reasons = [f"{name}: {each.reason}" for name, each in self.observables.items() if each.answer != "pass"]
        untold = any(each.answer == "cannot tell" for each in self.observables.values())
        closed = [f"no {way}: {reason}" for way, reason in self.refused.items()] if untold else []
        return "\n".join([f"{self.answer}: {self.reason}", *lines, *reasons, *closed])

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `verdict.json` has it."""
        return {
            "verdict": self.answer,
            "reason": self.reason,
            "energy_difference_spread_kT": self.spread,
            "effective_frames": self.effective_frames,
            "force_calls": dict(self.steps),
            "refused": dict(self.refused),
            "observables": {name: each.to_json() for name, each in self.observables.items()},
        }


def _short(estimate: Estimate | None) -> str:
    """Value ± error of a number; a dash for functions and for nothing."""
    if estimate is None or estimate.value.ndim:
        return "–"
    return estimate.plain()


def _numbers(estimate: Estimate | None) -> dict[str, Any] | None:
    """Value, error and status of an estimate, lists for functions."""
    if estimate is None:
        return None
    found: dict[str, Any] = {"value": estimate.value.tolist(), "error": estimate.error.tolist()}
    found |= {"unit": estimate.unit, "effective_samples": estimate.effective_samples, "status": estimate.status.name}
    if estimate.axis is not None:
        found["axis"] = estimate.axis.tolist()
    return found
