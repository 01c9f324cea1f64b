"""Atoms that a structure says are to stay where they are."""

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from jaxtyping import Bool


def fixed_atoms(atoms: Atoms) -> Bool[np.ndarray, " atoms"]:
    """Which atoms the constraints of a structure hold: those of all its `FixAtoms`.

    `FixCartesian` in all three directions, as which a `move_mask` of three columns comes, holds them as well.

    Raises:
        ValueError: naming it, for a constraint of another kind.
    """
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        directions = constraint.mask if isinstance(constraint, FixCartesian) else np.ones(3, bool)
        if not directions.any():  # as which the free atoms of such a move_mask come
            continue
        if not isinstance(constraint, FixAtoms | FixCartesian) or not directions.all():
            raise ValueError(
                f"{atoms.symbols} has the constraint {type(constraint).__name__}, and only FixAtoms is honoured: "
                "remove it from the file, or by atoms.set_constraint()."
            )
        fixed[constraint.index] = True
    return fixed


def hold(atoms: Atoms, fixed: Bool[np.ndarray, " atoms"] | None) -> None:
    """Give a structure the one `FixAtoms` that holds these atoms, or no constraint if there are none."""
    atoms.set_constraint(FixAtoms(mask=fixed) if fixed is not None and fixed.any() else None)
