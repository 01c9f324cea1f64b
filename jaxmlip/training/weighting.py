"""Whether a training sees stresses, and how much they weigh, where `TrainingSettings.stress_weight` leaves it open."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxmlip.systems.batches import Sample
from jaxmlip.systems.dataset import Frame, has_stress
from jaxmlip.training.loss import LossKind, Terms
from jaxmlip.training.problem import Label, TrainingProblem, TrainingSettings
from jaxmlip.units import GPA

SHARE = 0.125
"""What stress costs at first, of all other labels together; see `stress_weight`."""

LEAST_SPREAD = 0.5 * GPA
"""eV/Å³; stresses that differ less are weighed as if they differed by so much: what is left of such errors is small."""

LOOKED_AT = 1024
"""Samples that the weight is chosen from where they are made when asked: making all may take hours."""


def terms_of(settings: TrainingSettings, frames: Iterable[Frame]) -> Terms:
    """The terms of the loss that settings ask for with these frames; without a `stress_weight`, stress if any has it.

    Args:
        settings: of the training.
        frames: labelled; looked at only where the settings leave open whether there is a stress term.
    """
    return settings.terms(stress=settings.stress_weight is None and any(map(has_stress, frames)))


def demanded(terms: Terms, settings: TrainingSettings) -> Terms:
    """The terms whose labels validation frames must have: stress only if it was given a weight."""
    return terms._replace(stress=terms.stress and settings.stress_weight is not None)


def resolved(problem: TrainingProblem, settings: TrainingSettings) -> TrainingSettings:
    """The settings with a number for `stress_weight`: 0 without a stress term, else see `stress_weight`."""
    if settings.stress_weight is not None:
        return settings
    weight = stress_weight(problem.train, settings) if problem.terms.stress or problem.selection.stress else 0.0
    return settings.model_copy(update={"stress_weight": weight})


def stress_weight(samples: Sequence[Sample], settings: TrainingSettings) -> float:
    """The weight with which, of a potential that knows nothing, stress costs an eighth of what all other labels do.

        w_stress = SHARE (w_energy P(energies per atom) + w_forces P(forces)) / P(stresses)

    P is the mean penalty (Huber or square, see `loss`) of the labels' deviations: of energies and stresses from their
    mean over a fidelity, of forces from 0. So errors count by how large they are relative to the spread of their label.
    A fixed number cannot do that: in eV/Å³ stresses of solids spread by some 0.01, so that Huber's loss is quadratic
    for them where it is linear for forces, and with a weight like that of the forces their gradient is a hundred times
    smaller than this. An eighth, because a structure has six stresses and three forces for each atom: with it a stress
    still counts for more than a force of a cell of 16 atoms or more. More is no gain: at equal cost, a student of rock
    salt had forces and stresses both wrong by a third more (experiments/nacl_density).

    Args:
        samples: of the training, of all fidelities; of sets made when asked, `LOOKED_AT` evenly spaced ones.
        settings: for loss and weights.

    Returns:
        The weight to three digits; spreads below `LEAST_SPREAD` count as that. 1 if no label but stress says anything.
        0 if none has a stress.
    """
    energies, stresses, forces = _deviations(samples)
    if not stresses.size:
        return 0.0
    others = settings.energy_weight * _mean_penalty(energies, "energy", settings)
    others += settings.forces_weight * _mean_penalty(forces, "forces", settings)
    least = _mean_penalty(np.array([LEAST_SPREAD]), "stress", settings)
    return (
        float(f"{SHARE * others / max(_mean_penalty(stresses, 'stress', settings), least):.3g}") if others > 0 else 1.0
    )


def _deviations(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Components of the labels there are: energies per atom and stresses, each from its mean, and forces."""
    chosen: Iterable[Sample] = samples
    if not isinstance(samples, list) and len(samples) > LOOKED_AT:
        chosen = (samples[k] for k in np.linspace(0, len(samples) - 1, LOOKED_AT).astype(int).tolist())
    energies: dict[int, list[float]] = {}
    stresses: dict[int, list[np.ndarray]] = {}
    forces = []
    for sample in chosen:
        energies.setdefault(sample.head, []).append(sample.energy / sample.graph.n_atoms)
        forces.append(sample.forces.ravel())
        if np.linalg.det(np.asarray(sample.graph.cell, np.float64)).any():
            stresses.setdefault(sample.head, []).append(sample.stress)
    return (
        _there([_centred(each) for each in energies.values()]),
        _there([_centred(each) for each in stresses.values()]),
        _there(forces),
    )


def _centred(values: Sequence) -> np.ndarray:
    """Each component less its mean over those that are there."""
    array = np.array(values, np.float64)
    there = ~np.isnan(array)
    mean = np.where(there, array, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return array - mean


def _there(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All components but those that are NaN."""
    values = np.concatenate([np.ravel(part) for part in parts]) if parts else np.zeros(0)
    return values[~np.isnan(values)]


def _mean_penalty(deviations: np.ndarray, label: Label, settings: TrainingSettings) -> float:
    """The mean of `loss._penalty` in double; 0 for none."""
    if not deviations.size:
        return 0.0
    size = np.abs(deviations)
    kind: LossKind = settings.loss
    if kind == "mse":
        return float(np.mean(size**2))
    delta = settings.delta_of(label)
    near = np.minimum(size, delta)
    return float(np.mean(0.5 * near**2 + delta * (size - near)))
