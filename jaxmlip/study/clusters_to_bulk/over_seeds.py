"""Numbers of students that differ in their seed alone, as one number whose error has their spread in it."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from jaxmlip.files import finite
from jaxmlip.observables.estimate import welch_satterthwaite
from jaxmlip.validation.verdict import Level


def over_seeds(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was measured of the students of one strategy and set of labels, as of one.

    A number is the mean over those students that have it (a failed simulation has no averages), with

        error² = s²/n + e²,

    where s is the standard deviation over the n students, with n − 1 degrees of freedom, and e the part of their errors
    that is common to them all: that of the test frames or of the teacher's run. Degrees of freedom are those of Welch
    and Satterthwaite. RDF errors, whose noise cannot be told apart by run, count as common, which is cautious. Students
    are stable if all are, and their verdict is the most damning.

    Args:
        measured: of each student, in one layout; numbers are dictionaries with `value`, `error`, `dof` and
            `common_error`.

    Returns:
        The same layout, with `seeds` in every number, and what was measured of each in `by_seed` if there are several.
    """
    combined = _combined(measured)
    return combined | ({"by_seed": list(measured)} if len(measured) > 1 else {})


def _combined(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    combined: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in measured for key in each):
        there = [each[key] for each in measured if key in each]
        if key == "stable":
            combined[key] = all(there)
        elif key == "verdict":
            combined[key] = _worst(there)
        elif isinstance(there[0], dict):
            combined[key] = _number(there) if "value" in there[0] else _combined(there)
        else:  # what is said of the first simulation that is not sound, or of the first
            wrong = [each[key] for each in measured if key in each and not each.get("stable", True)]
            combined[key] = (wrong or there)[0]
    return combined


def _number(numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of one number over students."""
    known = [number for number in numbers if number["value"] is not None]
    if len(known) < 2:
        return (known or numbers)[0] | {"seeds": len(known)}
    values = np.array([number["value"] for number in known])
    common = [number["common_error"] for number in known]
    variances = [values.var(ddof=1) / len(values), math.nan]
    dofs = [len(values) - 1.0, min(math.inf if number["dof"] is None else number["dof"] for number in known)]
    if None not in common:
        variances[1] = np.mean(np.square(common))
    dof = welch_satterthwaite(np.array(variances), np.array(dofs))
    combined = known[0] | {
        "value": float(values.mean()),
        "error": finite(float(np.sqrt(sum(variances)))),
        "dof": finite(float(dof)),
        "common_error": finite(float(np.sqrt(variances[1]))),
        "seeds": len(known),
    }
    for key in ("noise_floor", "effective_samples"):
        if combined.get(key) is not None:
            each = [number[key] for number in known if number[key] is not None]
            combined[key] = float(np.mean(each) if key == "noise_floor" else np.sum(each))
    if "status" in combined:
        combined["status"] = next((number["status"] for number in known if number["status"] != "OK"), "OK")
    return combined


def _worst(verdicts: Sequence[dict[str, str]]) -> dict[str, str]:
    """The most damning verdict, and of which seed it is."""
    order = get_args(Level)
    place = min(range(len(verdicts)), key=lambda seed: order.index(verdicts[seed]["level"]))
    worst = verdicts[place]
    alike = sum(each["level"] == worst["level"] for each in verdicts)
    if len(verdicts) == 1 or alike == len(verdicts):
        return dict(worst)
    return {"level": worst["level"], "reason": f"{worst['reason']} ({alike} of {len(verdicts)} seeds)"}
