"""Geometry of cells on the device, for [..., 3, 3] arrays of lattice vectors as rows."""

import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.types import AnyArray

Cells = Float[AnyArray, "*replicas 3 3"]


def volumes(cells: Cells) -> Float[AnyArray, " *replicas"]:
    """Volumes in Å³; 0 unless periodic in all three directions."""
    return jnp.abs((cells[..., 0, :] * jnp.cross(cells[..., 1, :], cells[..., 2, :])).sum(-1))


def inverses(cells: Cells) -> Cells:
    """Inverses of cells that are periodic in all three directions, 1/Å."""
    a, b, c = cells[..., 0, :], cells[..., 1, :], cells[..., 2, :]
    faces = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    return faces / (a * faces[..., 0]).sum(-1)[..., None, None]


def heights(cells: Cells) -> Float[AnyArray, "*replicas 3"]:
    """Distances in Å between opposite faces of cells that are periodic in all three directions."""
    return 1.0 / jnp.linalg.norm(inverses(cells), axis=-2)


def deformation(before: Cells, after: Cells) -> tuple[Cells, Float[AnyArray, " *replicas"]]:
    """The matrix F that takes cells to others, before @ F = after, and by how much it compresses at most.

    A vector d becomes d F, whose length is at least (1 − c) |d|, where c is the Frobenius norm of F − 1, an upper bound
    of 1 − σ with σ the smallest singular value of F.
    """
    change = inverses(before) @ (after - before)
    return jnp.eye(3, dtype=change.dtype) + change, jnp.sqrt((change**2).sum((-2, -1)))
