"""Compositions of structures, and splits that keep each composition on one side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.systems.dataset import Frame


def composition(atoms: Atoms) -> str:
    """The reduced formula, metals first: MgO for Mg4O4."""
    return atoms.symbols.formula.reduce()[0].format("metal")


def split_by_composition(frames: Sequence, fractions: Sequence[float], seed: int = 0) -> tuple[Any, ...]:
    """Shuffle and split so that no composition is in two parts: errors on the others are errors on new substances.

    A split by frames would put strained copies of one crystal into training and test sets alike.

    Args:
        frames: frames or structures in a sequence; the parts of what has a method `select`, as a store, are views made
            by it.
        fractions: of all frames, for each part; they sum to at most 1. Compositions are not divided, so parts have
            these sizes to within a composition; fractions that sum to 1 leave no frame out.
        seed: the same seed gives the same split.

    Raises:
        ValueError: if fractions are negative or sum to more than 1, or if there are so few compositions that a part of
            a fraction that is not 0 would be empty.
    """
    if min(fractions, default=0) < 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"The fractions of a split cannot be negative or sum to more than 1: {list(fractions)}.")
    names = [composition(frame.atoms if isinstance(frame, Frame) else frame) for frame in frames]
    kinds, of_frame, sizes = np.unique(names, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(kinds))
    # A composition goes where its middle frame falls.
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    part_of = np.empty(len(kinds), int)
    part_of[order] = np.searchsorted(np.cumsum(fractions) * len(names) + 1e-6, middles)
    chosen = [np.flatnonzero(part_of[of_frame] == part) for part in range(len(fractions))]
    for fraction, members in zip(fractions, chosen, strict=True):
        if fraction > 0 and not len(members):
            raise ValueError(
                f"{len(kinds)} compositions are too few for a split into {list(fractions)}: a part would be empty."
            )
    select = getattr(frames, "select", lambda which: [frames[int(i)] for i in which])
    return tuple(map(select, chosen))
