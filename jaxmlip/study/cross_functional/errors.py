"""Errors of a potential, structure by structure, as the summary resamples them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmlip.potentials.errors import own_moments
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.study.cross_functional.phases import decomposition_energies, formation_energies
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import Frame, has_stress
from jaxmlip.units import GPA

VOIGT = np.triu_indices(3)

QUANTITIES = {
    "energy": "energy_mae_meV_atom",
    "force": "force_mae_meV_A",
    "stress": "stress_mae_GPa",
    "magmom": "magmom_mae_muB",
}
"""What is measured, and what summaries call its mean absolute error."""


def errors_of(potential: Potential, frames: Sequence[Frame]) -> dict[str, Any]:
    """Of each frame its composition, and for each quantity the sum of absolute errors and the number of its components.

    Energies are counted per atom, in meV, so that a frame has one; forces in meV/Å, stresses in GPa, magnitudes of
    magnetic moments in μB. Labels that are absent count as no components, nor do those that the potential does not
    predict.
    """
    frames = [*frames]
    predicted = predict(potential, [frame.atoms for frame in frames], stress=any(map(has_stress, frames)))
    differences: dict[str, list[np.ndarray]] = {name: [] for name in QUANTITIES}
    for label, said in zip(frames, predicted, strict=True):
        differences["energy"].append(np.array([1e3 * (said.energy - label.energy) / len(label.atoms)]))
        differences["force"].append(1e3 * (said.forces - label.forces).ravel())
        differences["stress"].append((said.stress - label.stress)[VOIGT] / GPA)
        differences["magmom"].append(own_moments(said) - own_moments(label))
    found: dict[str, Any] = {"compositions": [composition(frame.atoms) for frame in frames]}
    for name, each in differences.items():
        found[name] = {
            "sums": [float(np.nansum(np.abs(one))) for one in each],
            "counts": [int(np.isfinite(one).sum()) for one in each],
        }
    return found


def phase_energies(potential: Potential, phases: Sequence[Frame]) -> dict[str, Any] | None:
    """Energies of formation and of decomposition of compounds (eV/atom), by composition; None without phases."""
    if not phases:
        return None
    said = predict(potential, [frame.atoms for frame in phases])
    compounds = [number for number, frame in enumerate(phases) if len({*frame.atoms.numbers}) > 1]
    return {
        "compositions": [composition(phases[number].atoms) for number in compounds],
        "formation": formation_energies(said)[compounds].tolist(),
        "decomposition": decomposition_energies(said)[compounds].tolist(),
    }
