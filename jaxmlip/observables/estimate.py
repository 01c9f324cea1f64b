"""Estimates: values with their uncertainties, and arithmetic that carries these along."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxmlip.describing import plus_minus


class Status(enum.Enum):
    """Whether an estimate can be used; the value is the message for the user. In the order of what is worse."""

    OK = "OK"
    TOO_FEW = "too few independent samples: fewer than 20; run longer, or more replicas"
    SLOW_MOTION = (
        "motion slower than the run cannot be ruled out, and the error allows for it: run longer, or more replicas"
    )
    REPLICAS_DISAGREE = "the replicas differ by more than their fluctuations explain: not one equilibrium, or not yet"
    REPLICA_FAILED = "at least one replica failed and was left out"
    UNRESOLVED = "no error can be given: one replica as short as its own correlation time; run longer, or more replicas"
    POOR_OVERLAP = (
        "no error can be given: too few frames of the one potential are typical of the other; bring the two closer, or "
        "bridge them by runs in between"
    )
    NOT_EQUILIBRATED = "no error can be given: still equilibrating in what was kept; run longer"
    TOO_SHORT = (
        "no error can be given: the run is shorter than its thermostat, barostat, ramp or slowest motion seen needs; "
        "run longer"
    )
    NO_DATA = "no replica ran to the end"

    @property
    def has_error(self) -> bool:
        """Whether estimates of this status come with an error."""
        without = (Status.UNRESOLVED, Status.POOR_OVERLAP, Status.NOT_EQUILIBRATED, Status.TOO_SHORT, Status.NO_DATA)
        return self not in without


def worst(*statuses: Status) -> Status:
    """The status that says most against an estimate."""
    order = list(Status)
    return max(statuses, key=order.index)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A mean and how well it is known.

    Sums, differences, products and quotients with numbers and other estimates carry errors along to first order.
    Estimates of different runs are taken as independent, with degrees of freedom after Welch and Satterthwaite
    (Biometrics Bulletin 2, 110 (1946)); those of the same frames of one run are correlated, and are combined by their
    blocks. What has lost its blocks (after a combination of different runs) counts as independent.

    Attributes:
        value: the mean, a scalar array or of the observable's shape.
        error: its standard error, of the same shape; NaN where none can be given, see `status`.
        effective_samples: independent samples that would give the same error; for a vector Σ variances / Σ errors².
        n_samples: frames that entered.
        status: whether to use it.
        dof: degrees of freedom of the error, of the same shape: value ± error is Student's distribution.
        unit: of value and error; empty for pure numbers.
        blocks: [blocks, ...], block means over all replicas, for errors of functions of the value; they are stretched
            about their mean so that their standard error is `error`.
        source: of the blocks; estimates of equal source come of the same frames, and their blocks belong together.
        noise_floor: for estimates of a distance: what noise alone would make of no difference at all.
        discarded_fs: simulated time left out at the start.
        axis: for functions, the points they are given at (the r of an RDF).
    """

    value: Float[np.ndarray, "*shape"]
    error: Float[np.ndarray, "*shape"]
    effective_samples: float
    n_samples: int
    status: Status = Status.OK
    dof: Float[np.ndarray, "*shape"] | float = math.inf
    unit: str = ""
    blocks: Float[np.ndarray, "blocks *shape"] | None = None
    source: tuple | None = None
    noise_floor: Float[np.ndarray, "*shape"] | None = None
    discarded_fs: float = 0.0
    axis: Float[np.ndarray, "*shape"] | None = None

    __array_ufunc__ = None  # so that array * estimate is an estimate

    def interval(self, level: float | int = 0.95) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """Both ends of the interval that holds the true mean with a probability; NaN where there is no error.

        Raises:
            ValueError: for a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"The level of an interval lies between 0 and 1, not {level!r}.")
        half = stats.t.ppf(0.5 + 0.5 * level, self.dof) * self.error
        return np.asarray(self.value - half), np.asarray(self.value + half)

    def sigma_from(self, other: Any) -> Float[np.ndarray, "*shape"]:
        """How far the value is from a number or another estimate, in σ of a normal distribution of equal probability.

        With few degrees of freedom this is less than the difference over its error: 3 errors at 4 degrees are as
        improbable as 2.05 σ. NaN where there is no error.
        """
        difference = self - other
        with np.errstate(divide="ignore", invalid="ignore"):
            t = difference.value / difference.error
        t = np.where((difference.value == 0) & (difference.error == 0), 0.0, t)
        dof = np.asarray(np.broadcast_to(difference.dof, t.shape))
        return np.asarray(np.sign(t) * _normal_quantile(np.asarray(np.abs(t)), dof))

    def __float__(self) -> float:
        """The value of a scalar."""
        return float(self.value)

    def __neg__(self) -> "Estimate":
        """Minus the estimate."""
        return self * -1.0

    def __add__(self, other: Any) -> "Estimate":
        """Sum with a number in the same unit, or an estimate of the same unit."""
        return self._combined(other, "+", np.add, lambda a, b: (np.ones_like(a), np.ones_like(b)))

    def __sub__(self, other: Any) -> "Estimate":
        """Difference to a number in the same unit, or an estimate of the same unit."""
        return self._combined(other, "-", np.subtract, lambda a, b: (np.ones_like(a), -np.ones_like(b)))

    def __mul__(self, other: Any) -> "Estimate":
        """Product with a number or an estimate."""
        return self._combined(other, "·", np.multiply, lambda a, b: (b, a))

    def __truediv__(self, other: Any) -> "Estimate":
        """Quotient by a number or an estimate."""
        return self._combined(other, "/", np.divide, lambda a, b: (1.0 / b, -a / b**2))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> "Estimate":
        """A number minus the estimate."""
        return -self + other

    def __rtruediv__(self, other: Any) -> "Estimate":
        """A number divided by the estimate."""
        return _exact(other, "", self) / self

    def _combined(self, other: Any, sign: str, function: Callable, slopes: Callable) -> "Estimate":
        """A function of two, linearised: `slopes` gives its derivatives by both."""
        if not isinstance(other, Estimate):
            if not np.issubdtype(np.asarray(other).dtype, np.number):
                return NotImplemented
            other = _exact(other, self.unit if sign in "+-" else "", self)
        unit = _unit(self.unit, other.unit, sign)
        a, b = np.broadcast_arrays(np.asarray(self.value, np.float64), np.asarray(other.value, np.float64))
        value = np.asarray(function(a, b))
        parts = [(slope, one) for slope, one in zip(slopes(a, b), (self, other), strict=True)]
        uncertain = [(slope, one) for slope, one in parts if one.n_samples]
        blocks, source = _joint_blocks(uncertain)
        variances = np.stack([np.broadcast_to((slope * one.error) ** 2, value.shape) for slope, one in parts])
        dofs = np.stack([np.broadcast_to(one.dof, value.shape) for _, one in parts])
        if len(uncertain) == 2 and blocks is not None:
            squared, dof = np.asarray(blocks.var(axis=0, ddof=1) / len(blocks)), dofs.min(axis=0)
        else:
            squared, dof = variances.sum(axis=0), welch_satterthwaite(variances, dofs)
        return Estimate(
            value=value,
            error=np.asarray(np.sqrt(squared)),
            effective_samples=min(one.effective_samples for _, one in parts),
            n_samples=min((one.n_samples for _, one in uncertain), default=0),
            status=worst(self.status, other.status),
            dof=dof,
            unit=unit,
            blocks=None if blocks is None else blocks + (value - blocks.mean(axis=0)),
            source=source,
            discarded_fs=max(self.discarded_fs, other.discarded_fs),
            axis=self.axis if self.axis is not None else other.axis,
        )

    def __repr__(self) -> str:
        """Value ± error for scalars, with as many digits as the error bears; the shape for others."""
        return self._text(self.status.name)

    def __str__(self) -> str:
        """As `repr`, with the status in words."""
        return self._text(self.status.value)

    def plain(self) -> str:
        """Value ± error with the unit, and nothing of samples and status."""
        return dataclasses.replace(self, status=Status.OK, effective_samples=math.nan)._text("")

    def _text(self, status: str) -> str:
        value, error, unit = np.asarray(self.value), np.asarray(self.error), f" {self.unit}" if self.unit else ""
        known = [f"n_eff {self.effective_samples:.0f}"] if np.isfinite(self.effective_samples) else []
        if value.ndim:
            text, known = f"array{value.shape} ± {np.sqrt(np.mean(error**2)):.2g}{unit}", ["RMS", *known]
        else:
            text = f"{plus_minus(value, error)}{unit}"
        known += [] if self.status is Status.OK else [status]
        return f"{text} ({'; '.join(known)})" if known else text


def welch_satterthwaite(
    variances: Float[np.ndarray, "terms *shape"], dofs: Float[np.ndarray, "terms *shape"]
) -> Float[np.ndarray, "*shape"]:
    """Degrees of freedom of a sum of independent variances: (Σ u)² / Σ u²/ν; infinite where all are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variances.sum(axis=0) ** 2 / (variances**2 / dofs).sum(axis=0)
    return np.asarray(np.where(np.isnan(ratio) & ~np.isnan(variances.sum(axis=0)), np.inf, ratio))


def _exact(value: Any, unit: str, like: Estimate) -> Estimate:
    """A number without error."""
    number = np.asarray(value, np.float64)
    return Estimate(number, np.zeros_like(number), math.inf, 0, unit=unit, discarded_fs=like.discarded_fs)


def _unit(one: str, other: str, sign: str) -> str:
    """Unit of a combination; ValueError where different units are to be added."""
    if sign in "+-":
        if one != other:
            first, second = (f"in {unit}" if unit else "without a unit" for unit in (one, other))
            raise ValueError(f"Estimates {first} and {second} cannot be added or subtracted; convert one of them.")
        return one
    if sign == "/":
        return "" if one == other else f"{one or '1'}/{other}" if other else one
    return f"{one}·{other}" if one and other else one or other


def _joint_blocks(parts: list[tuple[Any, Estimate]]) -> tuple[np.ndarray | None, tuple | None]:
    """Blocks of a linear combination of estimates of the same frames, and their source."""
    sources = {one.source for _, one in parts}
    if len(sources) != 1 or None in sources or any(one.blocks is None for _, one in parts):
        return None, None
    if len({len(one.blocks) for _, one in parts if one.blocks is not None}) != 1:
        return None, None
    blocks: Any = sum(slope * (one.blocks - one.value) for slope, one in parts if one.blocks is not None)
    return (np.asarray(blocks), sources.pop()) if len(blocks) > 1 else (None, None)


def _normal_quantile(t: Float[np.ndarray, "*shape"], dof: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Z ≥ 0 of a normal distribution that is as improbable as t of Student's, whose tails are given up beyond 37."""
    probability = np.asarray(stats.t.sf(t, dof))
    z = stats.norm.isf(probability)
    return np.asarray(np.where(np.isinf(dof), t, np.where(probability > 0, z, np.minimum(t, 37.0))))
