"""Elemental reference energies: fitted to data, and moved from one level of theory to another."""

import warnings
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.types import AnyArray

RANK_TOLERANCE = 1e-10
"""Singular values of the composition matrix below this share of the largest count as zero."""


def fit_references(
    frames: Sequence[Frame],
    *,
    baseline: Sequence[float] | Float[np.ndarray, " frames"] | None = None,
    start: Float[AnyArray, "119"] | None = None,
) -> Float[np.ndarray, "119"]:
    """Elemental energies that best reproduce the energies of the frames, by least squares.

    Energies per atom are fitted by the fractions of the elements, E = (AᵀA)⁻¹Aᵀ E (the AtomRef of Huang et al., npj
    Comput. Mater. 11, 313 (2025)), so that a frame counts the same whatever its size. Where the compositions do not
    determine the elements one by one (pure water), the solution nearest to `start` is taken: energies of such
    compositions are exact, those of others mean nothing.

    Args:
        frames: labelled structures; those without an energy (NaN) are left out.
        baseline: total energies in eV predicted for the frames, to be subtracted first: what remains is fitted.
        start: [119], eV; what compositions do not determine stays as near to it as the fit allows. 0 by default.

    Returns:
        [119], eV by atomic number, float64; that of `start` for elements that are not in the frames.

    Raises:
        ValueError: if no frame has an energy, if an energy is infinite or a baseline not finite, or if there are not
            as many baseline energies as frames.

    Warns:
        UserWarning: for each group of elements that cannot be told apart.
    """
    predicted = np.zeros(len(frames)) if baseline is None else np.asarray(baseline, np.float64)
    if predicted.shape != (len(frames),):
        raise ValueError(f"There are {len(frames)} frames, but the baseline has shape {predicted.shape}.")
    labelled = [number for number, frame in enumerate(frames) if not np.isnan(frame.energy)]
    if not labelled:
        raise ValueError(f"Reference energies cannot be fitted: none of the {len(frames)} frames has an energy.")
    for number in labelled:
        for what, value in (("energy", frames[number].energy), ("baseline energy", predicted[number])):
            if not np.isfinite(value):
                raise ValueError(f"{describe(frames[number], number)}: the {what} is {value}, not a finite number.")

    references = np.zeros(N_SPECIES) if start is None else np.array(start, np.float64)
    counts = np.array([np.bincount(frames[n].atoms.numbers, minlength=N_SPECIES) for n in labelled], np.float64)
    energies = np.array([frames[n].energy - predicted[n] for n in labelled], np.float64) - counts @ references
    atoms = counts.sum(axis=1)
    elements = np.flatnonzero(counts.any(axis=0))
    fractions = counts[:, elements] / atoms[:, None]
    for tied, relations in tied_elements(fractions):
        names = _listed([chemical_symbols[z] for z in elements[tied]])
        if relations == len(tied) - 1:
            why = f"{names} occur in one ratio only"
        else:
            how_many = "a linear relation" if relations == 1 else f"{relations} linear relations"
            why = f"The amounts of {names} obey {how_many} in every frame"
        nearest = "of least norm" if start is None else "that change least"
        warnings.warn(
            f"{why}, so their reference energies cannot be told apart: of all that fit, those {nearest} are used, and "
            "only energies of such compositions can be trusted.",
            stacklevel=2,
        )
    references[elements] += np.linalg.lstsq(fractions, energies / atoms, rcond=RANK_TOLERANCE)[0]
    return references


def elements_of(frames: Sequence[Frame]) -> list[int]:
    """Atomic numbers in frames, ascending."""
    return sorted({int(number) for frame in frames for number in frame.atoms.numbers})


def tied_elements(compositions: Float[np.ndarray, "frames elements"]) -> list[tuple[list[int], int]]:
    """Groups of elements whose amounts are tied to each other, so that no fit can tell their energies apart.

    Changes of the reference energies that change no frame's energy form the null space of the composition matrix. An
    element is tied if one of them moves it, and to those that the projector on that space couples it with.

    Args:
        compositions: amounts or fractions, a row for each frame.

    Returns:
        Columns of each group and the number of independent linear relations that its amounts obey, one less than the
        number of elements if they occur in one ratio only.
    """
    _, values, rows = np.linalg.svd(np.linalg.qr(compositions, mode="r"))
    free = rows[int(np.sum(values > RANK_TOLERANCE * values[0])) :]
    projector = free.T @ free
    _, group = connected_components(np.abs(projector) > 1e-6, directed=False)
    groups = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    relations = [round(float(np.trace(projector[np.ix_(members, members)]))) for members in groups]
    return [(members.tolist(), number) for members, number in zip(groups, relations, strict=True) if number]


def shift_references(
    source_model: Float[AnyArray, "119"], source_fit: Float[AnyArray, "119"], target_fit: Float[AnyArray, "119"]
) -> Float[np.ndarray, "119"]:
    """References of a model moved to another level of theory: source model + target fit − source fit.

    The transfer of Huang et al., npj Comput. Mater. 11, 313 (2025): the network keeps what it learnt relative to its
    references, and only the difference between the two fits is added.

    Args:
        source_model: [119], references of the model to be moved, eV.
        source_fit: [119], `fit_references` of data of the model's own level of theory, eV.
        target_fit: [119], `fit_references` of data of the new one, eV.

    Returns:
        [119], eV, float64. Elements that either fit has not seen (exactly 0) keep the model's reference.
    """
    model, source, target = (np.asarray(table, np.float64) for table in (source_model, source_fit, target_fit))
    return np.where((source != 0) & (target != 0), model + target - source, model)


def _listed(names: Sequence[str]) -> str:
    """H, C and O."""
    return " and ".join([", ".join(names[:-1]), names[-1]])
