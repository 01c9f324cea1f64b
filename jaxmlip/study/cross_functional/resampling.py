"""Means, differences and slopes of errors, with their uncertainty over seeds and test compositions.

Test structures of one composition are no independent evidence, and neither are the potentials of one seed: both are
drawn with replacement (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, sec. 3.8).
Variances over compositions come from draws, those over seeds from the seeds' own values where there are two or more,
for draws of three seeds are too narrow by a third; the two add, and Welch and Satterthwaite's formula gives the degrees
of freedom of the sum.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from jaxmlip.files import finite

DRAWS = 1000

FEWEST = 3
"""Compositions below which nothing is said of an error."""


@dataclasses.dataclass(frozen=True)
class Errors:
    """Absolute errors of the potentials of an arm, one for each seed, on the same test structures.

    Attributes:
        sums: [seeds, structures] of absolute errors.
        counts: [structures] of their components.
        compositions: of the structures.
    """

    sums: Float[np.ndarray, "seeds structures"]
    counts: Float[np.ndarray, " structures"]
    compositions: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """Number of potentials."""
        return len(self.sums)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A number with its uncertainty.

    Attributes:
        value: the mean over seeds, or what is made of it.
        error: its standard error; NaN where there are too few compositions.
        dof: degrees of freedom of the error.
        seeds: number of potentials of each arm.
        compositions: number of test compositions.
    """

    value: float
    error: float
    dof: float
    seeds: int
    compositions: int

    def interval(self, level: float | int = 0.95) -> tuple[float, float]:
        """Student's interval; NaN where there is no error."""
        reach = float(t.ppf(0.5 + 0.5 * level, self.dof)) * self.error if self.dof > 0 else np.nan
        return self.value - reach, self.value + reach

    def to_json(self) -> dict[str, Any]:
        """Value, error, 95 % interval and sample sizes as plain data; what is not known is None."""
        return finite(
            {
                "value": self.value,
                "error": self.error,
                "interval": list(self.interval()),
                "seeds": self.seeds,
                "compositions": self.compositions,
            }
        )


def measured(arms: Sequence[Errors], statistic: Callable[..., Float[np.ndarray, " rows"]], seed: int = 0) -> Measured:
    """A statistic of the mean absolute errors of some arms, all on the same test structures and with the same seeds.

    Args:
        arms: errors of each.
        statistic: of mean absolute errors [potentials, arms], one for each row.
        seed: of the draws.

    Raises:
        ValueError: if the arms differ in seeds or test structures.
    """
    check_comparable(arms)
    seeds, draws = arms[0].seeds, drawn_means(arms, seed)
    (value,) = statistic(draws.whole.mean(axis=0, keepdims=True)).tolist()
    number = draws.compositions
    if number < FEWEST:
        return Measured(value, np.nan, np.nan, seeds, number)
    over_compositions = float(np.nanvar(statistic(draws.drawn.mean(axis=1)))) * number / (number - 1)
    over_seeds = float(np.var(statistic(draws.whole), ddof=1)) / seeds if seeds > 1 else 0.0
    variance = over_compositions + over_seeds
    terms = over_compositions**2 / (number - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    dof = variance**2 / terms if terms > 0 else float(number - 1)
    return Measured(value, float(np.sqrt(variance)), dof, seeds, number)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Mean absolute errors of arms, of all test structures and of draws of their compositions.

    Attributes:
        whole: [seeds, arms].
        drawn: [draws, seeds, arms].
        compositions: number of them.
    """

    whole: Float[np.ndarray, "seeds arms"]
    drawn: Float[np.ndarray, "draws seeds arms"]
    compositions: int


def drawn_means(arms: Sequence[Errors], seed: int = 0) -> Draws:
    """Mean absolute errors of each seed and arm, and of the same draws of compositions for all."""
    names, place = np.unique(arms[0].compositions, return_inverse=True)
    number = len(names)
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=DRAWS)

    def by_composition(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(place, weights=row, minlength=number) for row in np.atleast_2d(values)])

    sums = np.stack([by_composition(arm.sums) for arm in arms], axis=-1)  # seeds, compositions, arms
    counts = np.stack([by_composition(arm.counts)[0] for arm in arms], axis=-1)  # compositions, arms
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = sums.sum(axis=1) / counts.sum(axis=0)
        drawn = np.einsum("dc,sca->dsa", weights, sums) / (weights @ counts)[:, None]
    return Draws(whole, drawn, number)


def mean(means: Float[np.ndarray, "rows arms"]) -> Float[np.ndarray, " rows"]:
    """Of a single arm: its mean absolute error."""
    return means[..., 0]


def difference(means: Float[np.ndarray, "rows arms"]) -> Float[np.ndarray, " rows"]:
    """Of two arms: the second's error less the first's."""
    return means[..., 1] - means[..., 0]


def log_ratio(means: Float[np.ndarray, "rows arms"]) -> Float[np.ndarray, " rows"]:
    """Of two arms: the natural logarithm of the second's error over the first's."""
    return np.log(means[..., 1] / means[..., 0])


def slope(sizes: Sequence[int]) -> Callable[[Float[np.ndarray, "rows arms"]], Float[np.ndarray, " rows"]]:
    """Of one arm a size: the least-squares slope of log error against log size.

    Raises:
        ValueError: for fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError("A slope needs two sizes or more.")
    x = np.log(np.asarray(sizes, float))
    x = x - x.mean()
    return lambda means: np.log(means) @ x / (x @ x)


def crossing(scratch: Sequence[Errors], transfer: Sequence[Errors], sizes: Sequence[int], seed: int = 0) -> dict:
    """Where straight lines through two curves of log error against log size would meet, with its uncertainty.

    Draws take compositions and seeds at once. A draw in which the curve that is higher at the largest size does not
    fall faster than the other has no crossing beyond it.

    Returns:
        `log10_size` with `value` (None if the lines do not meet beyond the largest size), `low` and `high` (95 % of
        the draws that cross), and `share_of_draws` that cross.
    """
    check_comparable([*scratch, *transfer])
    draws, n = drawn_means([*scratch, *transfer], seed), len(sizes)
    seeds = len(draws.whole)
    chosen = np.random.default_rng(seed + 1).integers(seeds, size=(len(draws.drawn), seeds))
    resampled = np.take_along_axis(draws.drawn, chosen[:, :, None], axis=1).mean(axis=1)
    found = _meet(np.log(resampled[:, :n]), np.log(resampled[:, n:]), sizes)
    crossed = found[np.isfinite(found)]
    both = draws.whole.mean(axis=0)
    (value,) = _meet(np.log(both[None, :n]), np.log(both[None, n:]), sizes)
    low, high = np.quantile(crossed, [0.025, 0.975]) if len(crossed) >= 0.05 * len(found) else (np.nan, np.nan)
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return finite({"log10_size": numbers, "share_of_draws": float(np.mean(np.isfinite(found)))})


def check_comparable(arms: Sequence[Errors]) -> None:
    """Raise ValueError unless all arms have as many seeds and the same test structures."""
    for arm in arms[1:]:
        if arm.seeds != arms[0].seeds or arm.compositions != arms[0].compositions:
            raise ValueError("Errors are compared on the same test structures, with as many seeds of each arm.")


def _meet(first: np.ndarray, second: np.ndarray, sizes: Sequence[int]) -> Float[np.ndarray, " draws"]:
    """log10 of the size where the lines through [draws, sizes] meet beyond the largest; NaN where they do not."""
    x = np.log(np.asarray(sizes, float))
    design = np.stack([np.ones_like(x), x])
    inverse = np.linalg.pinv(design)
    (level, fall), (other, others_fall) = (first @ inverse).T, (second @ inverse).T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        where = (other - level) / (fall - others_fall)
    return np.where(np.isfinite(where) & (where > x[-1]), where, np.nan) / np.log(10.0)
