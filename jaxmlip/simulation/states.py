"""States of all replicas at once: at the start, what their thermostats hold, and how they are kept on the host."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.schedules import Schedule


@functools.partial(jax.jit, static_argnames="kind")
def initial_state(
    positions: Any,
    masses: Any,
    cells: Any,
    key: Any,
    indices: Any,
    schedules: dict[str, Schedule],
    *,
    kind: type[Ensemble],
) -> Any:
    """States of all replicas; a replica's random numbers depend on the seed and its index [replicas] alone."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    numbers = {name: schedule.at(0.0) for name, schedule in schedules.items()}
    return jax.vmap(kind.init)(keys, positions, masses, cells, numbers)


@functools.partial(jax.jit, static_argnames="kind")
def reservoirs(state: Any, schedules: dict[str, Schedule], time: Any, *, kind: type[Ensemble]) -> Any:
    """Energies of the thermostats of all replicas, eV."""
    numbers = {name: schedule.at(time) for name, schedule in schedules.items()}
    return jax.vmap(kind.reservoir)(state, numbers)


def plain(leaf: Any) -> np.ndarray:
    """A leaf on the host; random keys as the integers that they are made of."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def as_before(values: np.ndarray, leaf: Any) -> Any:
    """Values of `plain` as what they were, on the device."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(values))
    return jnp.asarray(values, leaf.dtype)
