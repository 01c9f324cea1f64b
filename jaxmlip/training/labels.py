"""What strategies make of labels before training: hidden forces, differences, references of another level."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.references import elements_of, fit_references, shift_references
from jaxmlip.systems.dataset import Frame, without_moments

Labels: TypeAlias = Literal["energy_forces", "energy"]
"""Which high-fidelity labels may be seen. "energy" hides forces and stresses from everything."""

FixedReferences: TypeAlias = Literal["keep", "refit", "shift", "residual"]
"""Where elemental references of the high fidelity come from; see `lifted_references`."""

References: TypeAlias = Literal["keep", "trainable", "refit", "shift", "residual"]
"""`FixedReferences`, or references that are trained."""


def without_forces(frames: Sequence[Frame]) -> list[Frame]:
    """The frames with energies alone: forces and stresses are NaN, that is, absent."""
    return [
        dataclasses.replace(
            frame, forces=np.full((len(frame.atoms), 3), np.nan), stress=np.full((3, 3), np.nan), info=dict(frame.info)
        )
        for frame in frames
    ]


def residuals(foundation: Potential, frames: Sequence[Frame]) -> list[Frame]:
    """The frames with label − prediction of the foundation as labels; absent labels stay absent."""
    stress = any(not np.isnan(frame.stress).all() for frame in frames)
    predictions = predict(foundation, [frame.atoms for frame in frames], stress=stress)
    return [
        dataclasses.replace(
            frame,
            energy=frame.energy - prediction.energy,
            forces=frame.forces - prediction.forces,
            stress=frame.stress - prediction.stress,
        )
        for frame, prediction in zip(frames, predictions, strict=True)
    ]


def anchors(foundation: Potential, frames: Sequence[Frame]) -> list[Frame]:
    """The structures with the foundation's forces as their only labels."""
    predictions = predict(foundation, [frame.atoms for frame in frames])
    return [
        dataclasses.replace(
            frame,
            atoms=without_moments(frame.atoms),
            energy=np.nan,
            forces=prediction.forces,
            stress=np.full((3, 3), np.nan),
        )
        for frame, prediction in zip(frames, predictions, strict=True)
    ]


def lifted_references(
    foundation: Potential, high: Sequence[Frame], how: FixedReferences = "residual", low: Sequence[Frame] = ()
) -> Float[np.ndarray, "119"]:
    """The foundation's elemental references, moved to the level of theory of high-fidelity labels.

    Whether transfer between levels works depends on them (Huang et al., npj Comput. Mater. 11, 313 (2025),
    arXiv:2504.05565). Whatever the compositions leave open (water does not tell H from O) stays as near to the
    foundation's references as it can.

    Args:
        foundation: of the low fidelity.
        high: frames with high-fidelity energies.
        how: "keep", the foundation's own. "refit", those that fit the energies, as if there were no interactions.
            "shift", the foundation's + fit of `high` − fit of `low`. "residual", the foundation's + fit of (label −
            prediction of the foundation), after which the foundation's mean error is zero.
        low: frames with low-fidelity energies, for "shift".

    Returns:
        [119], eV, float64. The foundation's own for elements that are not in the frames, and for all where the frames
        have no energies, as in a training on forces alone.

    Raises:
        ValueError: for "shift" without low-fidelity energies, or energies that `fit_references` refuses.

    Warns:
        UserWarning: see `fit_references`.
    """
    own = np.array(foundation.references_for(elements_of([*high, *low])))
    if how == "keep" or all(np.isnan(frame.energy) for frame in high):
        return own
    if how == "refit":
        return fit_references(high, start=own)
    if how == "shift":
        if all(np.isnan(frame.energy) for frame in low):
            raise ValueError(
                "references is shift, which compares with low-fidelity energies, but there are none; give frames that "
                "have them (`replay` in a configuration, the argument `low` in Python), or choose residual."
            )
        source = fit_references(low)
        # From the low fit, so that what the high compositions leave open is no part of the difference.
        return shift_references(own, source, fit_references(high, start=source))
    predictions = predict(foundation, [frame.atoms for frame in high])
    interactions = [prediction.energy - own[prediction.atoms.numbers].sum() for prediction in predictions]
    return fit_references(high, baseline=interactions, start=own)
