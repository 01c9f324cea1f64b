"""What the state of a replica must have, and how states are kept on the host."""

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.pytrees import Distinct
from jaxmlip.types import Leaf


class State(Protocol):
    """What is read and written of the state of one replica, whatever moves it; states are pytrees, and may have more.

    jax-md's states satisfy it, as do those that derive from `BasicState`. Of several replicas at once all leaves have a
    leading axis.

    Attributes:
        position: [atoms, 3], Å, unwrapped.
        momentum: [atoms, 3], √(amu eV).
        force: [atoms, 3], eV/Å, at the positions.
        mass: [atoms, 1], amu; `motion.PADDING_MASS` and `motion.HELD_MASS` mark atoms that do not move.
    """

    @property
    def position(self) -> Leaf: ...
    @property
    def momentum(self) -> Leaf: ...
    @property
    def force(self) -> Leaf: ...
    @property
    def mass(self) -> Leaf: ...

    def set(self, **changes: Any) -> Any:
        """A copy with other values; called as jax-md's steps call it."""
        ...


class StateWithCell(State, Protocol):
    """What there is in addition where the cell moves.

    Attributes:
        cell: [3, 3], lattice vectors as rows, Å.
        stress: [3, 3], ∂E/∂ε / V at the positions, eV/Å³, without the kinetic part; written by the step.
    """

    @property
    def cell(self) -> Leaf: ...
    @property
    def stress(self) -> Leaf: ...


class BasicState(Distinct, flax.struct.PyTreeNode):
    """The fields of `State`, to derive from."""

    position: Leaf
    momentum: Leaf
    force: Leaf
    mass: Leaf

    def set(self, **changes: Any) -> Any:
        """A copy with other values."""
        return self.replace(**changes)


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
