"""Sums over frames of derivatives by the parameters of a potential: batch by batch, group by group, on the device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import trainable
from jaxmlip.validation.averages import FRAMES_AT_ONCE
from jaxmlip.validation.energies import atomic_energies


def in_batches(function: Callable[[Any], Any], frames: Any) -> Any:
    """A function of frames [batch, ...] of frames [number, ...]; reverse mode keeps frames and recomputes the rest.

    Frames are a `FrameState`, or any pytree of what goes with frames.
    """
    number = len(jax.tree.leaves(frames)[0])
    pieces = -(-number // FRAMES_AT_ONCE)
    chosen = jnp.minimum(jnp.arange(pieces * FRAMES_AT_ONCE), number - 1).reshape(pieces, FRAMES_AT_ONCE)
    batches = jax.tree.map(lambda leaf: leaf[chosen], frames)
    found = jax.lax.map(jax.checkpoint(function), batches)
    return found.reshape(-1, *found.shape[2:])[:number]


@jax.jit
def energy_changes(potential: Potential, reference: Potential, frames: FrameState) -> Any:
    """Energies of a potential minus those of another, [groups, frames], atom by atom."""
    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames.at_rest)
    changes = in_batches(
        lambda batch: (atomic_energies(potential, batch) - atomic_energies(reference, batch)).sum(1), flat
    )
    return changes.reshape(frames.positions.shape[:2])


def _padded(frames: FrameState, numbers: Any) -> tuple[FrameState, Any]:
    """Frames [groups, frames, ...] as [groups, batches, batch, ...], and numbers as [groups, batches, outputs, batch].

    Frames that fill up a batch have the number 0.
    """
    groups, length = frames.positions.shape[:2]
    size = min(FRAMES_AT_ONCE, length)
    pieces = -(-length // size)
    chosen = jnp.minimum(jnp.arange(pieces * size), length - 1).reshape(pieces, size)
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, chosen], frames)
    added = jnp.pad(jnp.asarray(numbers), ((0, 0), (0, 0), (0, pieces * size - length)))
    return batches, added.reshape(-1, groups, pieces, size).transpose(1, 2, 0, 3)


def _summed(body: Callable[[FrameState, Any], Any], frames: FrameState, numbers: Any) -> Any:
    """Sums over the frames of each group of what a function says of batches of frames and their numbers."""

    def of_group(batches: tuple[FrameState, Any]) -> Any:
        shapes = jax.eval_shape(lambda one: body(*one), jax.tree.map(lambda leaf: leaf[0], batches))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, body(*one)), None), nothing, batches)[0]

    return jax.lax.map(of_group, _padded(frames, numbers))


@jax.jit
def sums_of_gradients(potential: Potential, frames: FrameState, numbers: Any) -> Any:
    """Σ_n numbers_n ∂U_n/∂θ over the frames of each group, leaves [groups, 1, ...]: one backward pass of each batch."""
    params, rebuild = trainable(potential)

    def of_batch(batch: FrameState, numbers: Any) -> Any:
        found = jax.grad(lambda params: (numbers[0] * atomic_energies(rebuild(params), batch).sum(1)).sum())(params)
        return jax.tree.map(lambda leaf: leaf[None], found)

    return _summed(of_batch, frames, numbers)


@jax.jit
def sums_of_each_gradient(potential: Potential, frames: FrameState, numbers: Any) -> Any:
    """The same for several numbers of each frame, leaves [groups, outputs, ...]: a backward pass of each frame."""
    params, rebuild = trainable(potential)

    def of_batch(batch: FrameState, numbers: Any) -> Any:
        def of_frame(frame: FrameState) -> Any:
            one = jax.tree.map(lambda leaf: leaf[None], frame)
            return jax.grad(lambda params: atomic_energies(rebuild(params), one).sum())(params)

        gradients = jax.vmap(of_frame)(batch)
        return jax.tree.map(lambda leaf: jnp.tensordot(numbers, leaf, axes=1), gradients)

    return _summed(of_batch, frames, numbers)


@jax.jit
def mean_gradient(potential: Potential, frames: FrameState) -> Any:
    """∂U/∂θ, mean over frames [frames, ...]."""
    params, rebuild = trainable(potential)
    number = len(frames.positions)
    return jax.grad(lambda params: in_batches(
        lambda batch: atomic_energies(rebuild(params), batch).sum(1), jax.tree.map(jnp.asarray, frames)
    ).sum() / number)(params)  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def sums_of_own_gradients(observable: Observable, potential: Potential, frames: FrameState, numbers: Any) -> Any:
    """Σ_n numbers_n · ∂A_n/∂θ, of numbers [outputs, groups, frames, ...]; leaves [groups, outputs, ...]."""
    params, rebuild = trainable(potential)
    outputs, groups, length = numbers.shape[:3]
    flat = jnp.asarray(numbers).reshape(outputs, groups, length, -1)
    size = flat.shape[3]
    spread = flat.transpose(0, 3, 1, 2).reshape(outputs * size, groups, length)

    def of_batch(batch: FrameState, numbers: Any) -> Any:
        numbers = numbers.reshape(outputs, size, -1).astype(batch.positions.dtype)

        def total(params: Any) -> Any:
            values = jax.vmap(lambda frame: observable.per_frame(frame, rebuild(params)))(batch)
            return jnp.einsum("okb,bk->o", numbers, values.reshape(len(values), -1))

        return jax.jacrev(total)(params)

    return _summed(of_batch, frames, spread)


@functools.partial(jax.jit, static_argnums=0)
def derivatives_along(
    observable: Observable, potential: Potential, frames: FrameState, directions: Any
) -> tuple[Any, Any]:
    """Derivatives along directions of energies [groups, frames, directions] and of values [..., *shape]."""
    params, rebuild = trainable(potential)
    shape = frames.positions.shape[:2]
    flat = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames)

    def along(function: Callable[[Any], Any]) -> Any:
        return jax.vmap(lambda way: jax.jvp(function, (params,), (way,))[1], out_axes=1)(directions)

    def energies(batch: FrameState) -> Any:
        return along(lambda params: atomic_energies(rebuild(params), batch).sum(1))

    def values(batch: FrameState) -> Any:
        return along(lambda params: jax.vmap(lambda frame: observable.per_frame(frame, rebuild(params)))(batch))

    slopes = in_batches(energies, flat.at_rest)
    own = in_batches(values, flat) if observable.depends_on_potential else slopes
    return tuple(each.reshape(*shape, *each.shape[1:]) for each in (slopes, own))
