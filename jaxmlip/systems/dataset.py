"""Labelled structures: what every stage hands to the next."""

import dataclasses

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.types import HostMatrix


@dataclasses.dataclass(frozen=True)
class Frame:
    """A structure and what a level of theory says of it; NaN marks a label that is absent.

    Attributes:
        atoms: the structure, without calculator or constraints.
        energy: total energy in eV, elemental references included.
        forces: eV/Å.
        stress: eV/Å³, positive under tension.
        info: where the frame comes from (file, index, kind), for messages and per-type errors.
    """

    atoms: Atoms
    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: HostMatrix = dataclasses.field(default_factory=lambda: np.full((3, 3), np.nan))
    info: dict = dataclasses.field(default_factory=dict)
