"""Derivatives of averages through the trajectories themselves.

Where frames tell nothing, of averages that depend on the course in time, or of potentials that no run has sampled, the
dynamics can be differentiated: d⟨A(t)⟩/dθ by reverse mode through a rollout, with starts and random numbers held. That
is biased at short times, where the start has not been forgotten, and useless at long ones, since in chaotic motion
derivatives grow exponentially and their variance with them (Metz et al., arXiv:2111.05803). So the result comes for
several horizons, with the rate at which its noise grows: trust it where neighbouring horizons agree within errors.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.observables.estimate import Status
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import trainable
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.rollout import SimulationState, prepare_rollout, rollout
from jaxmlip.validation.gradients import Gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Pathwise:
    """Derivatives through trajectories, by how long these were.

    Attributes:
        horizons_fs: lengths h, ascending: the average is that of times between h/2 and h.
        gradients: at each of them, with errors over replicas.
        growth_per_ps: rate of the exponential growth of the noise (the norm of the errors) between the last two
            horizons; negative if it falls.
    """

    horizons_fs: tuple[float, ...]
    gradients: tuple[Gradient, ...]
    growth_per_ps: float

    @property
    def longest(self) -> Gradient:
        """At the last horizon: the least biased, and the noisiest."""
        return self.gradients[-1]


def pathwise_gradient(
    potential: Potential,
    starts: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    observable: Observable,
    *,
    steps: int,
    every: int = 10,
    timestep_fs: float | int = 0.5,
    replicas: int | None = None,
    horizons: int = 3,
    loss: Callable[[Any], Any] | None = None,
    **room: Any,
) -> Pathwise:
    """The derivative of an observable's average, or of a loss of it, by all parameters, through simulations.

    Args:
        potential: at whose parameters (`jm.trainable`) the derivative is taken.
        starts: such as frames of a run in equilibrium; one replica each, or `replicas` of one.
        ensemble: as of `simulate`, one value for all replicas.
        observable: a number, or anything of which `loss` makes one; differentiable by positions.
        steps: of the longest horizon; each horizon before it is half as long.
        every: steps between samples.
        timestep_fs: fs.
        replicas: see `simulate`; at least two in all.
        horizons: how many.
        loss: a scalar of the observable's mean, linearised about its value at each horizon.
        room: `seed`, `skin` and `steps_per_list` of `prepare_rollout`.

    Raises:
        ValueError: for fewer than two replicas, horizons that are no whole number of samples, an observable that is not
            a number without a loss, or lists that lack room on the way.
    """
    params, rebuild = trainable(potential)
    lengths, shares = _horizons(steps, every, horizons)
    state, capacity = prepare_rollout(potential, starts, ensemble, replicas=replicas, timestep_fs=timestep_fs, **room)
    number = state.positions.shape[0]
    if number < 2:
        raise ValueError("Errors come from replicas, of which a derivative through trajectories needs two or more.")
    how = {"steps": steps, "every": every, "timestep_fs": timestep_fs, "observe": (observable,)}

    def course(params: Any, replica: Any) -> tuple[Any, Any]:
        """Means at all horizons of one replica, and whether it is valid."""
        _, found, valid = rollout(rebuild(params), ensemble, _alone(state, replica), capacity, **how)
        return jnp.tensordot(jnp.asarray(shares, found["energy"].dtype), found[observable.name][:, 0], axes=1), valid

    means, valid = jax.jit(lambda params: jax.lax.map(lambda n: course(params, n), jnp.arange(number)))(params)
    _check(valid)
    linear = _linearised(observable, means.mean(0), loss)

    found = _slopes(course, params, linear, number)
    gradients = tuple(_of(jax.tree.map(lambda leaf, n=n: leaf[:, n], found)) for n in range(horizons))
    lengths_fs = tuple(float(length * every * timestep_fs) for length in lengths)
    return Pathwise(lengths_fs, gradients, _growth(gradients, lengths_fs))


def _slopes(course: Callable[[Any, Any], tuple[Any, Any]], params: Any, linear: Any, replicas: int) -> Any:
    """Derivatives of each replica's means at each horizon by all parameters, leaves [replicas, horizons, ...]."""
    horizons = len(linear)
    rows = jnp.eye(horizons, dtype=linear.dtype).reshape(horizons, horizons, *[1] * (linear.ndim - 1)) * linear

    @jax.jit
    def slopes(params: Any) -> Any:
        def of_replica(replica: Any) -> Any:
            _, pull, _ = jax.vjp(lambda params: course(params, replica), params, has_aux=True)
            return jax.vmap(lambda row: pull(row)[0])(rows)

        return jax.lax.map(of_replica, jnp.arange(replicas))

    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), slopes(params))


def _alone(state: SimulationState, replica: Any) -> SimulationState:
    """The state of one replica."""

    def own(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, replica, 1), tree)

    system = state.system
    mine = {name: own(getattr(system, name)) for name in ("species", "cells", "inverses", "bonds")}
    return state.replace(system=system.replace(**mine), replicas=own(state.replicas))


def _linearised(observable: Observable, average: Any, loss: Callable[[Any], Any] | None) -> Any:
    """The derivative of the loss by the average at each horizon, [horizons, ...]; ones of a number without a loss."""
    if loss is None and average.ndim > 1:
        raise ValueError(f"The {observable.name} has {average.shape[1:]} numbers: say by loss= which one is wanted.")
    return average * 0 + 1 if loss is None else jax.vmap(jax.grad(loss))(average)


def _horizons(steps: int, every: int, horizons: int) -> tuple[list[int], np.ndarray]:
    """Lengths of the horizons in samples, and the share [horizons, samples] of each sample in their averages."""
    samples = steps // every
    if horizons < 1 or steps % every or samples % 2**horizons:
        raise ValueError(
            f"{steps} steps with a sample every {every} cannot be halved {horizons} times into horizons with a sample "
            f"in each half: take a multiple of {every * 2**horizons} steps, or fewer horizons."
        )
    lengths = [samples // 2 ** (horizons - 1 - n) for n in range(horizons)]
    shares = np.zeros((horizons, samples))
    for row, length in zip(shares, lengths, strict=True):
        row[length // 2 : length] = 1.0 / (length - length // 2)
    return lengths, shares


def _of(parts: Any) -> Gradient:
    """The gradient of independent parts, leaves [replicas, ...]."""
    number = len(jax.tree.leaves(parts)[0])
    value = jax.tree.map(lambda part: part.mean(0), parts)
    error = jax.tree.map(lambda part: part.std(0, ddof=1) / math.sqrt(number), parts)
    return Gradient(value, error, parts, "pathwise", Status.OK, float(number))


def _growth(gradients: Sequence[Gradient], lengths_fs: Sequence[float]) -> float:
    """1/ps; NaN for a single horizon."""
    if len(gradients) < 2:
        return math.nan
    noise = [math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(each.error))) for each in gradients[-2:]]
    if min(noise) <= 0:
        return math.nan
    return 1000.0 * math.log(noise[1] / noise[0]) / (lengths_fs[-1] - lengths_fs[-2])


def _check(valid: Any) -> None:
    if not bool(np.all(valid)):
        raise ValueError(
            "Neighbour lists did not hold on the way, or numbers ceased to be finite: give a larger skin=, fewer "
            "steps_per_list=, or a shorter timestep_fs."
        )
