"""Messages by a kernel of Pallas: the radial weights of edges are made, used and forgotten on the chip.

For an atom i, a path p (l1, l2, l3), a component m of l3 and a channel c, a message is

    m_i,pmc = Σ_s Σ_xy C_p,xym Y_is,y (Σ_h H_is,h F_p,hc) S_j(i,s),xc,

with harmonics Y, the last hidden features H of the radial network and its final layer F, the neighbours' features S,
and Clebsch-Gordan coefficients C. What the plain form writes to memory and reads back, for each edge and channel,
Σ_h H F (all paths) and S_j, exists here for a few slots at a time.

The sum is linear in each of Y, H, F and S. With a weight for every message it is a number that is linear in five
arrays, and each of its derivatives of any order is the sum over all indices but those of one of the five: a
vector-Jacobian product of the messages leaves out Y, H, F or S instead of the messages, and a Jacobian-vector product
exchanges one of the arrays for its tangent. So there is one operation, `contraction`, with the array that is left out
as an argument, whose derivatives in forward and reverse mode are contractions again.

The kernels (`message_kernels`) are written for Pallas' Triton backend, on CUDA alone; on a CPU they run in Pallas'
interpreter, which is for tests, and slow. Sums over the slots of an atom stay on the chip; the gradient by S, to which
many edges contribute, is the only one that is scattered.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

from jaxmlip.potentials.equivariant_layers import Messages, block
from jaxmlip.potentials.message_kernels import (
    CHANNELS,
    FINAL,
    HIDDEN,
    SLOTS,
    SOURCES,
    SUMS,
    coupling,
    launched,
    power_of_two,
)
from jaxmlip.types import AnyArray


class Plan(NamedTuple):
    """What a contraction does not see in its arrays.

    Attributes:
        l_in: largest l of the neighbours' features.
        l_max: largest l of harmonics and messages.
        atoms: that have features.
        slots: of an atom, without padding.
    """

    l_in: int
    l_max: int
    atoms: int
    slots: int


def kernel_messages(
    messages: Messages,
    sources: Float[Array, "all_atoms components_in channels"],
    neighbors: Int[AnyArray, "atoms slots"],
    radial: Float[Array, "atoms slots functions"],
    harmonics: Float[Array, "atoms slots components"],
) -> Float[Array, "components atoms channels"]:
    """What `Messages.__call__` gives for `sources[neighbors]`, without an array of edges and channels.

    It can be differentiated any number of times in either mode, and mapped by `jax.vmap`.

    Args:
        messages: weights.
        sources: of all atoms, see `Messages.sources`.
        neighbors: rows of `sources`; any number where there is no neighbour.
        radial: radial basis, zero where there is no neighbour; or lengths, for tables.
        harmonics: spherical harmonics of the edges.
    """
    l_in, l_max = len(messages.up) - 1, messages.l_max
    slots, channels = neighbors.shape[1], sources.shape[-1]
    hidden = messages.radial_features(radial)
    # Nothing checks an index in a kernel, and an empty slot's is negative. It reads any row, times zero; each atom
    # another, since the gradients are added to these rows, one after the other where they are the same.
    spare = jnp.arange(len(neighbors), dtype=jnp.int32)[:, None] % len(sources)
    neighbors = jnp.where((neighbors >= 0) & (neighbors < len(sources)), neighbors, spare)
    plan = Plan(l_in, l_max, len(sources), slots)
    all_slots = _whole(slots, SLOTS)
    widths, all_channels = power_of_two(hidden.shape[-1]), _whole(channels, CHANNELS)
    sums = contraction.bind(
        _padded(neighbors, all_slots)[None],
        _padded(harmonics.swapaxes(1, 2), coupling(l_in, l_max).rows, all_slots)[None],
        _padded(hidden, all_slots, widths)[None],
        _padded(messages.radial.swapaxes(0, 1), widths, all_channels)[None],
        _padded(sources, all_channels)[None],
        target=SUMS,
        plan=plan,
    )[0, ..., :channels]
    of_l = [jnp.einsum("apmc,pcd->mad", sums[:, : len(mix), block(ell)], mix) for ell, mix in enumerate(messages.mix)]
    return jnp.concatenate(of_l, axis=0)


def _whole(number: int, tile: int) -> int:
    """A number of tiles that has room for so many, or one that is smaller."""
    return -(-number // tile) * tile if number > tile else power_of_two(number)


def _padded(x: Array, *sizes: int) -> Array:
    """Zeros behind the last axes, up to these sizes."""
    there = x.shape[x.ndim - len(sizes) :]
    padding = [(0, size - old) for size, old in zip(sizes, there, strict=True)]
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(sizes)) + padding)


# The operation: five arrays with an axis of systems in front, of which four are given.

contraction = Primitive("contraction")
"""`bind(neighbors, *four, target=, plan=)`: the fifth, see the module; arrays have the shapes of `_shapes`, padded."""


def _shapes(neighbors: Any, four: tuple, target: int, plan: Plan) -> list[tuple[int, ...]]:
    """Shapes of all five."""
    five = [*four[:target], None, *four[target:]]
    how = coupling(plan.l_in, plan.l_max)
    systems, atoms, slots = neighbors.shape
    hidden = five[HIDDEN].shape[3] if target != HIDDEN else five[FINAL].shape[2]
    channels = five[FINAL].shape[3] if target != FINAL else five[SOURCES].shape[3]
    return [
        (systems, atoms, how.rows, slots),
        (systems, atoms, slots, hidden),
        (systems, len(how.paths), hidden, channels),
        (systems, plan.atoms, (plan.l_in + 1) ** 2, channels),
        (systems, atoms, how.places, how.rows, channels),
    ]


def _abstract(neighbors: Any, *four: Any, target: int, plan: Plan) -> Any:
    return ShapedArray(_shapes(neighbors, four, target, plan)[target], four[0].dtype)


def _tangent(place: int, tangent: Any, neighbors: Any, *four: Any, target: int, plan: Plan) -> Any:
    exchanged = (*four[:place], tangent, *four[place + 1 :])
    return contraction.bind(neighbors, *exchanged, target=target, plan=plan)


def _transpose(cotangent: Any, neighbors: Any, *four: Any, target: int, plan: Plan) -> list[Any]:
    """By the one of the four that is linear here: a contraction that leaves out this one."""
    (place,) = [place for place, each in enumerate(four) if ad.is_undefined_primal(each)]
    results: list[Any] = [None] * 5
    if type(cotangent) is ad.Zero:
        results[1 + place] = ad.Zero(four[place].aval)
        return results
    five = [*four[:target], cotangent, *four[target:]]
    linear = place + (place >= target)
    given = five[:linear] + five[linear + 1 :]
    results[1 + place] = contraction.bind(neighbors, *given, target=linear, plan=plan)
    return results


def _mapped(operands: Any, axes: Any, *, target: int, plan: Plan) -> tuple[Any, int]:
    """More systems."""
    number = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)

    def joined(x: Any, axis: int | None) -> Any:
        x = jnp.broadcast_to(x, (number, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return x.reshape(-1, *x.shape[2:])

    joint = [joined(x, axis) for x, axis in zip(operands, axes, strict=True)]
    result = contraction.bind(*joint, target=target, plan=plan)
    return result.reshape(number, -1, *result.shape[1:]), 0


def _computed(neighbors: Any, *four: Any, target: int, plan: Plan, interpret: bool) -> Any:
    """The kernel of a target, and what it leaves to sum."""
    shapes = _shapes(neighbors, four, target, plan)
    found = launched(neighbors, four, target, coupling(plan.l_in, plan.l_max), shapes, interpret)
    if target == SOURCES:
        systems, zero = jnp.arange(len(found))[:, None, None], jnp.zeros(shapes[SOURCES], found.dtype)
        return zero.at[systems, neighbors[:, :, : plan.slots]].add(found[:, :, : plan.slots])
    return found.sum(1) if target == FINAL else found


_eager = jax.jit(lambda *operands, **how: contraction.bind(*operands, **how), static_argnames=("target", "plan"))
contraction.def_impl(_eager)
contraction.def_abstract_eval(_abstract)
ad.defjvp(contraction, None, *(functools.partial(_tangent, place) for place in range(4)))
ad.primitive_transposes[contraction] = _transpose
batching.primitive_batchers[contraction] = _mapped
for _platform in ("cpu", "cuda"):
    _lowering = functools.partial(_computed, interpret=_platform == "cpu")
    mlir.register_lowering(contraction, mlir.lower_fun(_lowering, multiple_results=False), platform=_platform)
