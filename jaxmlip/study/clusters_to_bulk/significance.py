"""One-sided tests of numbers with errors, as a summary holds them, by Student's distribution."""

import math
from typing import Any

import numpy as np
from scipy import stats

from jaxmlip.observables.estimate import welch_satterthwaite

Number = dict[str, Any]
"""A number of a summary: `value`, `error`, `dof` (None for infinitely many)."""


def p_below(number: Number | None, limit: float) -> float | None:
    """Probability of a value so low, or lower, if the truth were the limit; None without an error."""
    if number is None or number["value"] is None or number["error"] is None:
        return None
    return _tail(limit - number["value"], number["error"], _dof(number))


def p_above(number: Number | None, limit: float) -> float | None:
    """Probability of a value so high, or higher, if the truth were the limit; None without an error."""
    below = p_below(number, limit)
    return None if below is None else 1.0 - below


def difference(one: Number | None, other: Number | None) -> Number | None:
    """`other − one` of independent numbers (what they have in common is counted twice, which is cautious)."""
    numbers = [one, other]
    if any(each is None or each["value"] is None or each["error"] is None for each in numbers):
        return None
    assert one is not None
    assert other is not None
    variances = np.array([one["error"] ** 2, other["error"] ** 2])
    dof = float(welch_satterthwaite(variances, np.array([_dof(one), _dof(other)])))
    return {"value": other["value"] - one["value"], "error": float(np.sqrt(variances.sum())), "dof": dof}


def times_more(number: Number, alpha: float) -> float:
    """How many times as many samples would tell a number from 0, if it is what it seems."""
    if not number["value"]:
        return math.inf
    critical = float(stats.t.isf(alpha, _dof(number)))
    return (critical * number["error"] / abs(number["value"])) ** 2


def _dof(number: Number) -> float:
    return math.inf if number.get("dof") is None else float(number["dof"])


def _tail(distance: float, error: float, dof: float) -> float:
    """P(t > distance / error)."""
    if error == 0.0:
        return 0.5 if distance == 0.0 else float(distance < 0.0)
    return float(stats.t.sf(distance / error, dof))
