"""Work on many atoms, a few at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmlip.types import AnyArray

MOST_BLOCKS = 64
"""Every block costs a pass over the gradient of all atoms; larger systems get larger blocks instead of more."""


def in_blocks(function: Callable, size: int, *arrays: AnyArray):
    """A function of arrays with an axis of atoms in front, applied to a few atoms at a time on a CPU.

    What the function makes for a block is made again for the gradient instead of being kept: it stays in the cache, and
    its buffers serve all blocks. On a GPU the function is applied to all atoms at once.

    Args:
        function: of one array for each of `arrays`, with the same axis in front; so are its results.
        size: atoms of a block, about.
        arrays: [atoms, …].
    """
    atoms = arrays[0].shape[0]
    if jax.default_backend() != "cpu":
        return function(*arrays)
    blocks = min(MOST_BLOCKS, -(-atoms // size))
    size = -(-atoms // blocks)
    blocks = -(-atoms // size)

    def cut(x: AnyArray) -> AnyArray:
        padding = [(0, blocks * size - atoms)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(blocks, size, *x.shape[1:])

    results = jax.lax.map(lambda block: jax.checkpoint(function)(*block), tuple(map(cut, arrays)))
    return jax.tree.map(lambda x: x.reshape(blocks * size, *x.shape[2:])[:atoms], results)
