"""Whether predicted errors are as large as those that are found: coverage of intervals, and error by size."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxmlip.observables.estimate import Estimate

LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.7, 0.8, 0.9, 0.95])
"""At which coverage is counted."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predicted against found errors.

    Attributes:
        levels: nominal, [levels].
        coverage: fraction of truths inside the intervals of each level.
        coverage_error: standard error of the fractions, by resampling of the estimates, [levels].
        predicted: root mean square of the predicted errors in each bin, from small to large, [bins].
        found: root mean square of the deviations there.
        found_error: its standard error, by resampling within the bin.
        ratio: root mean square of deviation over error; 1 if errors are right, and Gaussian.
        number: of estimates.
    """

    levels: Float[np.ndarray, " levels"]
    coverage: Float[np.ndarray, " levels"]
    coverage_error: Float[np.ndarray, " levels"]
    predicted: Float[np.ndarray, " bins"]
    found: Float[np.ndarray, " bins"]
    found_error: Float[np.ndarray, " bins"]
    ratio: float
    number: int


def calibration(
    predicted: Sequence[Estimate], truths: Sequence[Estimate | float | np.ndarray], *, bins: int = 5, seed: int = 0
) -> Calibration:
    """Hold the errors of estimates against their deviations from the truth.

    Deviations are those of `estimate − truth`, so that the error of a truth that was simulated counts too. Elements of
    functions are averaged within their estimate: they are not independent, and one RDF is one estimate.

    Args:
        predicted: for example `uncertainty.estimate` of observables, of several potentials.
        truths: likewise, exact or with errors.
        bins: of equal numbers, in which the root mean square deviations are held against the predicted errors; sizes
            are comparable where the units are, so give estimates of one unit or look at `coverage` alone.
        seed: of the resampling.

    Raises:
        ValueError: if there are not as many truths, fewer than two estimates with errors, or units that differ.
    """
    if len(predicted) != len(truths):
        raise ValueError(f"There are {len(predicted)} estimates and {len(truths)} truths; give one for each.")
    found = [one - truth for one, truth in zip(predicted, truths, strict=True)]
    differences = [each for each in found if each.status.has_error]
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} estimates have an error, and a calibration needs two or more.")
    if len({each.unit for each in differences}) > 1:
        units = sorted({each.unit or "none" for each in differences})
        raise ValueError(
            f"Errors of different units ({', '.join(units)}) have no sizes to compare; calibrate each unit."
        )
    inside = np.array([_inside(each) for each in differences])
    errors = np.array([math.sqrt(np.mean(each.error**2)) for each in differences])
    deviations = np.array([math.sqrt(np.mean(each.value**2)) for each in differences])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(inside), (500, len(inside)))
    parts = np.array_split(np.argsort(errors, kind="stable"), max(1, min(bins, len(errors))))
    root = [math.sqrt(np.mean(deviations[part] ** 2)) for part in parts]
    doubt = []
    for part in parts:
        again = deviations[part][rng.integers(0, len(part), (500, len(part)))]
        doubt.append(float(np.sqrt(np.mean(again**2, axis=1)).std()))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.array([np.mean((each.value / each.error) ** 2) for each in differences])
    return Calibration(
        levels=LEVELS,
        coverage=inside.mean(axis=0),
        coverage_error=inside[drawn].mean(axis=1).std(axis=0),
        predicted=np.array([math.sqrt(np.mean(errors[part] ** 2)) for part in parts]),
        found=np.array(root),
        found_error=np.array(doubt),
        ratio=float(np.sqrt(np.mean(ratios))),
        number=len(differences),
    )


def _inside(difference: Estimate) -> Float[np.ndarray, " levels"]:
    """Fraction of the elements whose interval of each level holds 0."""
    sizes, errors = (np.ravel(np.abs(each)) for each in (difference.value, difference.error))
    dofs = np.broadcast_to(difference.dof, difference.value.shape).ravel()
    halves = stats.t.ppf(0.5 + 0.5 * LEVELS[:, None], dofs) * errors
    return np.asarray(np.mean(sizes <= halves, axis=1))
