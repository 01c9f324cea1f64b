"""Kernels of the contraction behind `message_kernel`: what programs share the work, and what one of them does."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from jaxmlip.potentials.equivariant_layers import block, paths

HARMONICS, HIDDEN, FINAL, SOURCES, SUMS = range(5)
"""Places of the five arrays, in the order in which they are passed."""

NAMES = ("harmonics", "hidden", "final", "sources", "sums")
"""Of kernels, in profiles, by what they make."""

SMALLEST = 16
"""Extent of a matrix in a product of Triton, at least; all are powers of two."""

SLOTS, CHANNELS = 32, 64
"""Slots and channels of a tile, at most."""

PARTS = 128
"""Partial sums of the gradient by the final layer, at most: each is as large as that layer."""


class Coupling(NamedTuple):
    """How the paths of an interaction couple, see `coupling`.

    Attributes:
        places: number of tiles for the messages.
        rows: components of harmonics and of messages, up to a power of two.
        paths: for each path the tile that it adds to, and its terms: a component of the neighbours' features, and the
            matrix that belongs to it.
        matrices: [terms, rows, rows], by components of the message and of the harmonics.
    """

    places: int
    rows: int
    paths: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    matrices: np.ndarray


class Tile(NamedTuple):
    """What one program works on at a time.

    Attributes:
        slots: of an atom.
        channels: of them.
        atoms: over which a program sums, where it does.
    """

    slots: int
    channels: int
    atoms: int


class Refs(NamedTuple):
    """What a kernel reads and writes, a block of each: `None` of the axes of systems and, but for F, of atoms.

    Attributes:
        neighbors: [slots].
        matrices: see `Coupling`.
        harmonics: Y, [rows, slots].
        hidden: H, [slots, hidden].
        final: F, [paths, hidden, channels].
        sources: S, [atoms, components_in, channels]; where it is the result, [slots, components_in, channels].
        sums: the messages, [places, rows, channels].
    """

    neighbors: Any
    matrices: Any
    harmonics: Any
    hidden: Any
    final: Any
    sources: Any
    sums: Any


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number, nor below what products need."""
    return max(SMALLEST, 1 << (number - 1).bit_length())


@functools.cache
def coupling(l_in: int, l_max: int) -> Coupling:
    """Clebsch-Gordan coefficients of all paths. The n-th path of each l3 has its messages in the n-th tile."""
    rows = power_of_two((l_max + 1) ** 2)
    found, matrices, seen = [], [], [0] * (l_max + 1)
    for l1, l2, l3 in paths(l_in, l_max):
        coefficients = (2 * l3 + 1) ** 0.5 * np.asarray(e3nn.clebsch_gordan(l1, l2, l3))
        terms = []
        for x in range(2 * l1 + 1):
            matrix = np.zeros((rows, rows))
            matrix[block(l3), block(l2)] = coefficients[x].T
            terms.append((l1**2 + x, len(matrices)))
            matrices.append(matrix)
        found.append((seen[l3], tuple(terms)))
        seen[l3] += 1
    return Coupling(max(seen), rows, tuple(found), np.array(matrices))


def launched(
    neighbors: Any, four: tuple, target: int, how: Coupling, shapes: list[tuple[int, ...]], interpret: bool
) -> Array:
    """The kernel of a target on all atoms of all systems.

    Args:
        neighbors: [systems, atoms, slots].
        four: the arrays that are given, in their order.
        target: which is not.
        how: see `coupling`.
        shapes: of all five.
        interpret: by Pallas' interpreter.

    Returns:
        The array that is not given; instead of S the same for every edge, [systems, atoms, slots, components_in,
        channels], and F in parts that are to be summed, [systems, parts, paths, hidden, channels].
    """
    systems, atoms, slots = neighbors.shape
    channels = shapes[SUMS][-1]
    tile = Tile(min(slots, SLOTS), min(channels, CHANNELS), -(-atoms // PARTS) if target == FINAL else 1)
    programs = -(-atoms // tile.atoms)
    # Programs share the axes of the result; along the others each has a loop.
    shares_slots, shares_channels = target not in (SUMS, FINAL), target not in (HARMONICS, HIDDEN)
    sizes = {"system": None, "part": None, "atom": atoms if target == FINAL else None}
    sizes["slots"] = tile.slots if shares_slots else slots
    sizes["channels"] = tile.channels if shares_channels else channels

    def spec(*axes: Any) -> pl.BlockSpec:
        """A block of an array with these axes: names of those that are shared, sizes of others."""

        def place(program: Any, slot: Any, channel: Any) -> tuple:
            places = {"system": program // programs, "part": program % programs, "slots": slot, "channels": channel}
            places["atom"] = 0 if target == FINAL else program % programs
            return tuple(places.get(axis, 0) for axis in axes)

        return pl.BlockSpec(tuple(sizes.get(axis, axis) for axis in axes), place)

    specs, made, shape = _arrays(spec, target, how, shapes, (atoms, slots, programs))

    def kernel(neighbors: Any, matrices: Any, *refs: Any) -> None:
        *five, result = refs
        five.insert(target, result)
        KERNELS[target](Refs(neighbors, matrices, *five), how, tile)

    by_slots, by_channels = slots // tile.slots, channels // tile.channels
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(shape, four[0].dtype),
        grid=(systems * programs, by_slots if shares_slots else 1, by_channels if shares_channels else 1),
        in_specs=[spec("system", "atom", "slots"), spec(*how.matrices.shape), *specs],
        out_specs=made,
        interpret=interpret,
        # Loads ahead of a loop would take more shared memory than there is.
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=1),
        name=f"messages_{NAMES[target]}",
    )(neighbors, jnp.asarray(how.matrices, four[0].dtype), *four)


def _arrays(
    spec: Callable[..., pl.BlockSpec],
    target: int,
    how: Coupling,
    shapes: list[tuple[int, ...]],
    numbers: tuple[int, int, int],
) -> tuple[list[pl.BlockSpec], pl.BlockSpec, tuple[int, ...]]:
    """Blocks of the four arrays that are given and of the one that is made, and its shape.

    Args:
        spec: a block by its axes.
        target: what is made.
        how: see `coupling`.
        shapes: of all five.
        numbers: of atoms, slots and programs.
    """
    atoms, slots, programs = numbers
    specs = [
        spec("system", "atom", how.rows, "slots"),
        spec("system", "atom", "slots", shapes[HIDDEN][-1]),
        spec("system", *shapes[FINAL][1:3], "channels"),
        spec("system", *shapes[SOURCES][1:3], "channels"),
        spec("system", "atom", how.places, how.rows, "channels"),
    ]
    made, shape = specs.pop(target), list(shapes[target])
    if target == SOURCES:
        made = spec("system", "atom", "slots", shape[2], "channels")
        shape[1:2] = [atoms, slots]
    elif target == FINAL:
        made = spec("system", "part", *shape[1:3], "channels")
        shape[1:1] = [programs]
    return specs, made, tuple(shape)


def _dot(a: Array, b: Array, over: tuple[int, int] = (1, 0)) -> Array:
    """Product of two matrices over these axes."""
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=a.dtype)


def _loop(number: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    return body(0, start) if number == 1 else jax.lax.fori_loop(0, number, body, start)


def _uncoupled(refs: Refs, place: int, matrix: int, channels: Any, atom: tuple = ()) -> Array:
    """Weights of messages as weights of harmonics times a component of the sources, [rows, channels]."""
    return _dot(refs.matrices[matrix], refs.sums[(*atom, place, slice(None), channels)], (0, 0))


def _by_weights(refs: Refs, path: Any, slots: Any, channels: Any, atom: tuple = ()) -> Array:
    """Derivative by the radial weights of a path, [slots, channels]."""
    place, terms = path
    neighbors, harmonics = refs.neighbors[(*atom, slots)], refs.harmonics[(*atom, slice(None), slots)]
    total = jnp.zeros((), harmonics.dtype)
    for x, matrix in terms:
        weights = _dot(harmonics, _uncoupled(refs, place, matrix, channels, atom), (0, 0))
        total = total + refs.sources[neighbors, x, channels] * weights
    return total


def _to_sums(refs: Refs, how: Coupling, tile: Tile) -> None:
    """Messages of an atom, some channels."""
    slots, dtype = refs.hidden.shape[0], refs.sums.dtype
    zero = jnp.zeros((how.rows, tile.channels), dtype)
    totals = [zero] * how.places
    for p, (place, terms) in enumerate(how.paths):
        final = refs.final[p]

        def add(i: Any, sums: tuple, final: Array = final, terms: Any = terms) -> tuple:
            here = pl.ds(i * tile.slots, tile.slots)
            weights, neighbors, harmonics = (
                _dot(refs.hidden[here], final),
                refs.neighbors[here],
                refs.harmonics[:, here],
            )
            return tuple(
                each + _dot(harmonics, weights * refs.sources[neighbors, x])
                for each, (x, _) in zip(sums, terms, strict=True)
            )

        sums = _loop(slots // tile.slots, add, (zero,) * len(terms))
        for each, (_, matrix) in zip(sums, terms, strict=True):
            totals[place] = totals[place] + _dot(refs.matrices[matrix], each)
    for place, total in enumerate(totals):
        refs.sums[place] = total


def _to_harmonics(refs: Refs, how: Coupling, tile: Tile) -> None:
    """Gradient by the harmonics of some slots of an atom."""
    hidden, neighbors = refs.hidden[...], refs.neighbors[...]

    def add(i: Any, total: Array) -> Array:
        here = pl.ds(i * tile.channels, tile.channels)
        for p, (place, terms) in enumerate(how.paths):
            weights = _dot(hidden, refs.final[p, :, here])
            for x, matrix in terms:
                weighted = weights * refs.sources[neighbors, x, here]
                total = total + _dot(_uncoupled(refs, place, matrix, here), weighted, (1, 1))
        return total

    start = jnp.zeros((how.rows, tile.slots), refs.harmonics.dtype)
    refs.harmonics[...] = _loop(refs.sources.shape[2] // tile.channels, add, start)


def _to_hidden(refs: Refs, how: Coupling, tile: Tile) -> None:
    """Gradient by the hidden features of some slots of an atom."""

    def add(i: Any, total: Array) -> Array:
        here = pl.ds(i * tile.channels, tile.channels)
        for p, path in enumerate(how.paths):
            total = total + _dot(_by_weights(refs, path, slice(None), here), refs.final[p, :, here], (1, 1))
        return total

    start = jnp.zeros((tile.slots, refs.final.shape[1]), refs.hidden.dtype)
    refs.hidden[...] = _loop(refs.sources.shape[2] // tile.channels, add, start)


def _to_sources(refs: Refs, how: Coupling, tile: Tile) -> None:
    """Gradient by what some slots of an atom take from their neighbours, some channels."""
    hidden, harmonics = refs.hidden[...], refs.harmonics[...]
    totals: list[Any] = [jnp.zeros((tile.slots, tile.channels), refs.sources.dtype)] * refs.sources.shape[1]
    for p, (place, terms) in enumerate(how.paths):
        weights = _dot(hidden, refs.final[p])
        for x, matrix in terms:
            totals[x] = totals[x] + weights * _dot(harmonics, _uncoupled(refs, place, matrix, slice(None)), (0, 0))
    for x, total in enumerate(totals):
        refs.sources[:, x] = total


def _to_final(refs: Refs, how: Coupling, tile: Tile) -> None:
    """Gradient by the final layer of the radial network: the sum over some atoms, some channels."""
    atoms, slots, hidden = refs.hidden.shape
    parts = -(-atoms // tile.atoms)
    first = jax.lax.rem(pl.program_id(0), jnp.int32(parts)) * tile.atoms
    after = jnp.minimum(first + tile.atoms, atoms)
    for p, path in enumerate(how.paths):

        def of_atom(atom: Any, total: Array, path: Any = path) -> Array:
            def add(i: Any, total: Array) -> Array:
                here = pl.ds(i * tile.slots, tile.slots)
                by_weights = _by_weights(refs, path, here, slice(None), (atom,))
                return total + _dot(refs.hidden[atom, here], by_weights, (0, 0))

            return _loop(slots // tile.slots, add, total)

        start = jnp.zeros((hidden, tile.channels), refs.final.dtype)
        refs.final[p] = jax.lax.fori_loop(first, after, of_atom, start)


KERNELS = (_to_harmonics, _to_hidden, _to_final, _to_sources, _to_sums)
"""By what they make."""
