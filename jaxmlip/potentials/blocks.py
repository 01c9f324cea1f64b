"""Work on many atoms, some at a time: as many as stay in the cache of a CPU, or in the memory of an accelerator."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmlip.types import AnyArray, Size

Form = Literal["cpu", "accelerator", "accelerator_kernel", "whole"]
"""For which machine a program is made. It is static in potentials, chosen once when they are made or loaded, and any
may be asked for on any machine: `potential.replace(form="accelerator")`. The numbers are the same to rounding. The form
"whole" takes all atoms at once however many they are, for programs that are exported without knowing that.
"accelerator_kernel" is "accelerator" with the messages of equivariant networks by a kernel of Pallas, for CUDA (see
`message_kernel`; CHGNet has none). It is never chosen by itself: no device has shown yet whether it is faster, or that
it is right there. On a CPU it is interpreted, slowly, and no other platform has it."""

EVERYTHING = 2**62
"""Atoms, more than there are."""

MOST_BLOCKS = 64
"""On a CPU: every block costs a pass over the gradient of all atoms; larger systems get larger blocks instead."""

BUDGET = 4 * 2**30
"""Bytes that a block may take on an accelerator, as arrays of numbers for each edge that are made again for the
gradient."""

COPIES = 9.0
"""So many arrays as large as the messages' weights exist at once where energies and forces are computed of all atoms:
0.9 and 2.3 MiB for each atom at 128 channels with 51 neighbours, l ≤ 3, scalar and vector messages (XLA's analysis)."""


class Blocks(NamedTuple):
    """How many atoms at a time.

    Attributes:
        size: about.
        most: number of blocks, at most; None where it is `size` that counts.
    """

    size: int
    most: int | None


def form_of_this_machine() -> Form:
    """The form for jax's default backend; asked where potentials are made, never in traced code."""
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def blocks_of(form: Form, cached: int, numbers_of_atom: Size) -> Blocks:
    """Blocks of a form.

    Args:
        form: see `Form`.
        cached: atoms of a block on a CPU.
        numbers_of_atom: size of the largest array that exists for each atom.
    """
    if form == "cpu":
        return Blocks(cached, MOST_BLOCKS)
    if form == "whole":
        return Blocks(EVERYTHING, None)
    return Blocks(max(1, int(BUDGET / (COPIES * 4.0 * max(1, numbers_of_atom)))), None)


def in_blocks(function: Callable, blocks: Blocks, *arrays: AnyArray):
    """A function of arrays with an axis of atoms in front, applied to some atoms at a time.

    What the function makes for a block is made again for the gradient instead of being kept: on a CPU it stays in the
    cache, and everywhere its buffers serve all blocks. On an accelerator that all atoms fit, there is one block, and
    nothing is made again.

    Args:
        function: of one array for each of `arrays`, with the same axis in front; so are its results.
        blocks: of `blocks_of`.
        arrays: [atoms, …].
    """
    atoms = arrays[0].shape[0]
    if blocks.most is None and atoms <= blocks.size:
        return function(*map(jnp.asarray, arrays))
    number = -(-atoms // blocks.size)
    if blocks.most is not None:
        number = min(blocks.most, number)
    size = -(-atoms // number)
    number = -(-atoms // size)

    def cut(x: AnyArray) -> AnyArray:
        padding = [(0, number * size - atoms)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(number, size, *x.shape[1:])

    results = jax.lax.map(lambda block: jax.checkpoint(function)(*block), tuple(map(cut, arrays)))
    return jax.tree.map(lambda x: x.reshape(number * size, *x.shape[2:])[:atoms], results)
