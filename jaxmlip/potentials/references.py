"""Elemental reference energies: fitted to data, and moved from one level of theory to another."""

import warnings
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float

from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.types import AnyArray

RANK_TOLERANCE = 1e-10
"""Singular values of the composition matrix below this share of the largest count as zero."""


def fit_references(
    frames: Sequence[Frame], *, baseline: Sequence[float] | Float[np.ndarray, " frames"] | None = None
) -> Float[np.ndarray, "119"]:
    """Elemental energies that best reproduce the energies of the frames, by least squares.

    Energies per atom are fitted by the fractions of the elements, E = (AᵀA)⁻¹Aᵀ E (the AtomRef of Huang et al., npj
    Comput. Mater. 11, 313 (2025)), so that a frame counts the same whatever its size. Where the compositions do not
    determine the elements one by one (pure water), the solution of least norm is taken: energies of such compositions
    are exact, those of others mean nothing.

    Args:
        frames: labelled structures; those without an energy (NaN) are left out.
        baseline: total energies in eV predicted for the frames, to be subtracted first: what remains is fitted.

    Returns:
        [119], eV by atomic number, float64; 0 for elements that are not in the frames.

    Raises:
        ValueError: if no frame has an energy, if an energy is infinite or a baseline not finite, or if there are not
            as many baseline energies as frames.

    Warns:
        UserWarning: naming the elements that cannot be told apart.
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

    counts = np.array([np.bincount(frames[n].atoms.numbers, minlength=N_SPECIES) for n in labelled], np.float64)
    energies = np.array([frames[n].energy - predicted[n] for n in labelled], np.float64)
    atoms = counts.sum(axis=1)
    elements = np.flatnonzero(counts.any(axis=0))
    fractions = counts[:, elements] / atoms[:, None]
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies / atoms, rcond=RANK_TOLERANCE)
    if rank < len(elements):
        _, _, rows = np.linalg.svd(np.linalg.qr(fractions, mode="r"))
        undetermined = elements[(np.abs(rows[rank:]) > 1e-6).any(axis=0)]
        names = ", ".join(chemical_symbols[z] for z in undetermined)
        warnings.warn(
            f"The compositions of the frames do not tell the reference energies of {names} apart; the solution of "
            "least norm is used, and only energies of the same compositions can be trusted.",
            stacklevel=2,
        )
    references = np.zeros(N_SPECIES)
    references[elements] = solution
    return references


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
