"""Numbers of an ensemble that may differ between replicas and change in time."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmlip.types import Leaf
from jaxmlip.units import FS

Number: TypeAlias = float | int


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Ramp:
    """A linear change from one value to another, which then stays; a pytree of three numbers.

    Attributes:
        start: value at the start of the run, in the unit of the field that the ramp is given to.
        stop: value from `time_ps` on.
        time_ps: how long the change takes, ps.

    Raises:
        ValueError: for a duration that is not positive and finite.
    """

    start: Number
    stop: Number
    time_ps: Number

    def __post_init__(self) -> None:
        """Refuse a change that takes no time."""
        if not isinstance(self.time_ps, Tracer) and not (math.isfinite(self.time_ps) and self.time_ps > 0):
            raise ValueError(f"A ramp takes a positive time_ps, not {self.time_ps!r}.")

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        """For jax: the numbers by name."""
        names = ("start", "stop", "time_ps")
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], None

    @classmethod
    def tree_unflatten(cls, static: None, values: Sequence[Any]) -> "Ramp":
        """For jax, which puts whatever it likes in the place of numbers: nothing is checked."""
        del static
        ramp = object.__new__(cls)
        for name, value in zip(("start", "stop", "time_ps"), values, strict=True):
            object.__setattr__(ramp, name, value)
        return ramp


PerReplica: TypeAlias = Number | Ramp | Sequence[Number | Ramp] | np.ndarray | jax.Array
"""One value or ramp for all replicas, or one for each; arrays may be traced, to be differentiated by."""


class Schedule(flax.struct.PyTreeNode):
    """The values of one number in all replicas, in internal units; constants are ramps that lead nowhere.

    Attributes:
        start, stop: [replicas].
        duration: [replicas], in Å √(amu/eV).
    """

    start: Leaf
    stop: Leaf
    duration: Leaf

    def at(self, time: Any) -> Any:
        """Values [replicas] at a time since the start of the run."""
        return self.start + jnp.clip(time / self.duration, 0.0, 1.0) * (self.stop - self.start)

    @property
    def highest(self) -> Any:
        """The largest value that each replica ever has, [replicas]."""
        return jnp.maximum(self.start, self.stop)


def schedule(name: str, value: PerReplica, scale: float, replicas: int) -> Schedule:
    """The schedule of a number that is multiplied by `scale` to be in internal units.

    Raises:
        ValueError: if there are several values, but not one for each replica.
    """
    values = _each(value)
    if isinstance(value, Number | Ramp) or getattr(value, "ndim", 1) == 0:
        values = values * replicas
    if len(values) != replicas:
        raise ValueError(
            f"{name} has {len(values)} values for {replicas} replicas; give one value for all, or one for each."
        )
    ends = [(each.start, each.stop, each.time_ps) if isinstance(each, Ramp) else (each, each, 1.0) for each in values]
    begin, end, time_ps = zip(*ends, strict=True)
    return Schedule(
        start=jnp.asarray([scale * value for value in begin], float),
        stop=jnp.asarray([scale * value for value in end], float),
        duration=jnp.asarray([1000.0 * FS * value for value in time_ps], float),
    )


def longest_ramp_ps(dynamics: Any) -> float:
    """When the last number of a dynamics, or any other pytree of schedules, ceases to change, ps; 0 if none does."""
    schedules = jax.tree.leaves(dynamics, is_leaf=lambda each: isinstance(each, Schedule))
    ends = [np.where(each.start != each.stop, each.duration, 0.0).max() for each in schedules]
    return float(max(ends, default=0.0)) / (1000.0 * FS)


def check_range(owner: str, name: str, value: PerReplica, least: float, most: float) -> None:
    """Raise ValueError unless all values are numbers above `least` and at most `most`; traced ones are let pass."""
    for number in _numbers(value):
        if isinstance(number, Tracer):
            continue
        if not (isinstance(number, int | float) and math.isfinite(number) and least < number <= most):
            raise ValueError(f"{owner} needs {least:g} < {name} ≤ {most:g}, not {number!r}.")


def _each(value: PerReplica) -> list[Any]:
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        value = np.asarray(value).tolist()
    if isinstance(value, Tracer | np.ndarray | jax.Array):
        return [value] if value.ndim == 0 else [*value]
    return [value] if isinstance(value, Number | Ramp | np.generic) else [*value]


def _numbers(value: PerReplica) -> Iterator[Any]:
    for each in _each(value):
        yield from (each.start, each.stop) if isinstance(each, Ramp) else (each,)
