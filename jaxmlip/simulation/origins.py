"""Where replicas are: near the origin on the device, in the frame of their structures on the host.

The device has single precision, which far from the origin is none (see `systems.origin`). Replicas therefore start near
it, and those that drift away are brought back between frames, at times that depend on nothing but the trajectory. What
was taken off is kept in double precision, and added to what is recorded: positions there are unwrapped and continuous.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxmlip.systems.origin import NEAR, Offset, offset_from_origin

STRAYED = 2.0 * NEAR
"""Å; coordinates up to this may come about during a run before something is done."""

CELLS_AWAY = 1
"""And where periodic, atoms may leave the cell by so many cells, lest they go back and forth at a face."""


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
    """Offsets of all replicas.

    Attributes:
        images: [replicas, atoms, 3], see `Offset`; zero for padding.
        centres: [replicas, 3].
    """

    images: Int[np.ndarray, "replicas atoms 3"]
    centres: Float[np.ndarray, "replicas 3"]

    @classmethod
    def of(cls, positions: Sequence[np.ndarray], cells: np.ndarray, atoms: int) -> "Origins":
        """The offsets of replicas with positions [atoms, 3] in their own frame."""
        found = [offset_from_origin(*each) for each in zip(positions, cells, strict=True)]
        return cls.none(len(found), atoms).with_offsets(dict(enumerate(found)))

    @classmethod
    def none(cls, replicas: int, atoms: int) -> "Origins":
        """No offsets."""
        return cls(np.zeros((replicas, atoms, 3), np.int64), np.zeros((replicas, 3)))

    def with_offsets(self, offsets: dict[int, Offset]) -> "Origins":
        """With other offsets for some replicas."""
        images, centres = self.images.copy(), self.centres.copy()
        for replica, offset in offsets.items():
            images[replica, : len(offset.images)], centres[replica] = offset.images, offset.centre
        return Origins(images, centres)

    @property
    def here(self) -> bool:
        """Whether there are no offsets at all."""
        return not (self.images.any() or self.centres.any())

    def vectors(self, cells: np.ndarray) -> Float[np.ndarray, "replicas atoms 3"]:
        """What positions in the structures' frames have in addition, Å."""
        return self.images @ cells + self.centres[:, None, :]


def strayed(positions: Sequence[np.ndarray], cells: np.ndarray) -> list[int]:
    """Replicas whose positions [atoms, 3] on the device have come so far from the origin that they are brought back."""
    found = []
    for replica, (where, cell) in enumerate(zip(positions, cells, strict=True)):
        offset = offset_from_origin(where, cell, near=STRAYED, cells_away=CELLS_AWAY)
        if offset.images.any() or offset.centre.any():
            found.append(replica)
    return found
