"""Distillation: a new student that imitates a teacher's energies and forces."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.potentials.ase_potential import AsePotential
from jaxmlip.potentials.equivariant import average_neighbors
from jaxmlip.potentials.evaluation import Teacher, label
from jaxmlip.potentials.models import Model
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.potentials.references import elements_of, fit_references
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.batches import Sample, make_samples
from jaxmlip.systems.dataset import Frame, describe, split
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import DEFAULT_SETTINGS, TrainingProblem, TrainingSettings, check_frames
from jaxmlip.training.trainer import train
from jaxmlip.training.weighting import demanded, terms_of
from jaxmlip.types import AnyArray


def distil(
    model: Model,
    teacher: Potential | Teacher,
    structures: Sequence[Atoms],
    *,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    validation_fraction: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> Potential:
    """Label structures by a teacher and train a new student on the labels.

    Args:
        model: architecture of the student.
        teacher: any Potential, or anything with a `label` method. The elemental references are the teacher's own, for
            an ASE calculator the energies of isolated atoms; without any, they are fitted by least squares.
        structures: what the teacher labels; a random part becomes the validation set.
        settings: of the training. Stresses of structures that are periodic in all three directions are labelled, and
            trained on, unless `stress_weight` is 0, or is left open and the teacher has no stress.
        validation_fraction: share of the structures kept for validation, at least one.
        seed: of that choice.
        progress: show bars.

    Returns:
        The student, with the parameters that did best on the validation set.

    Raises:
        ValueError: if there are fewer than two structures, or the teacher cannot label one of them.
        TrainingDiverged: see `train`.

    Warns:
        UserWarning: if the teacher has no stress, and none was asked for.
    """
    frames = label(structures, teacher, stress=_labels_stress(structures, teacher, settings), progress=progress)
    training, validation = split_validation(frames, validation_fraction, seed)
    references = teacher_references(teacher, frames)
    problem = distillation_problem(model, training, validation, references, settings=settings)
    return train(problem, settings, progress=progress).potential


def teacher_references(teacher: Potential | Teacher, frames: Sequence[Frame]) -> Float[np.ndarray, "119"] | None:
    """Elemental references of a teacher for the elements of frames, eV; None if it has none and they must be fitted."""
    elements = elements_of(frames)
    if not isinstance(teacher, Potential) or (
        isinstance(teacher, AsePotential) and not teacher.has_references(elements)
    ):
        return None
    return teacher.references_for(elements)


def _labels_stress(structures: Sequence[Atoms], teacher: Potential | Teacher, settings: TrainingSettings) -> bool:
    """Whether to label stresses; teachers are asked whether they have any, for many do not."""
    periodic = next((atoms for atoms in structures if atoms.pbc.all()), None)
    if settings.stress_weight is not None:
        return settings.stress_weight > 0
    if periodic is None:
        return False
    try:
        if isinstance(teacher, Potential):
            teacher.check(periodic, stress=True)
        else:
            label([periodic], teacher, stress=True)
    except ValueError as error:
        if not isinstance(teacher, Potential) and not isinstance(error.__cause__, NotImplementedError):
            raise
        warnings.warn(
            f"The student is trained without stress, which its teacher does not give ({error.__cause__ or error}); do "
            "not rely on its pressures, nor on densities at constant pressure.",
            stacklevel=3,
        )
        return False
    return True


def distillation_problem(
    model: Model,
    frames: Sequence[Frame],
    validation: Sequence[Frame],
    references: Float[AnyArray, " 119"] | None = None,
    *,
    settings: TrainingSettings = DEFAULT_SETTINGS,
) -> TrainingProblem:
    """The problem of fitting a new student to frames of one fidelity.

    Args:
        model: architecture of the student.
        frames: training frames; the student's elements are theirs.
        validation: frames that decide which parameters are kept.
        references: [119], elemental references in eV, usually the teacher's own; fitted by least squares if None.
        settings: for the weights of the terms and the seed of the new parameters.

    Raises:
        ValueError: see `check_frames`.
    """
    terms = terms_of(settings, frames)
    start = of_architecture(model, frames)
    return fresh_problem(start, frames, validation, references, settings=settings, terms=terms)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a new potential comes from.

    Attributes:
        make: gives it for samples (of the training) and the arguments of `Trainable.fresh`.
        species: atomic numbers it will know.
        cutoff: Å, its cutoff.
        inner_cutoff: Å, its inner cutoff.
    """

    make: Callable[..., Trainable]
    species: Sequence[int]
    cutoff: float
    inner_cutoff: float = 0.0


def of_architecture(model: Model, frames: Sequence[Frame]) -> Start:
    """A student for the elements of training frames, with their mean number of neighbours."""
    species = elements_of(frames)

    def make(samples: Sequence[Sample], **new: Any) -> Trainable:
        neighbors = average_neighbors([sample.graph for sample in samples])
        return model.build(tuple(species), average_neighbors=neighbors, **new)

    return Start(make, species, model.cutoff, model.inner_cutoff)


def of_foundation(foundation: Trainable) -> Start:
    """A new potential of a foundation's architecture, for its elements."""

    def make(samples: Sequence[Sample], **new: Any) -> Trainable:
        del samples
        return foundation.fresh(**new)

    return Start(make, foundation.species, foundation.cutoff, foundation.inner_cutoff)


def fresh_problem(
    start: Start,
    frames: Sequence[Frame],
    validation: Sequence[Frame],
    references: Float[AnyArray, " 119"] | None = None,
    *,
    settings: TrainingSettings,
    terms: Terms,
) -> TrainingProblem:
    """The problem of fitting new parameters, with scale and shift from the labels that `terms` allow to be seen.

    Args:
        start: where the new potential comes from.
        frames: training frames.
        validation: validation frames.
        references: [119], eV; if None, fitted by least squares, or 0 where energies are neither trained on nor there.
        settings: for the seed of the parameters.
        terms: of training loss and selection.

    Raises:
        ValueError: see `check_frames`.
    """
    check_frames(start.species, frames, validation, terms, demanded(terms, settings))
    if references is None:
        nothing_to_fit = not terms.energy and all(np.isnan(frame.energy) for frame in frames)
        references = np.zeros(N_SPECIES) if nothing_to_fit else fit_references(frames)
    samples = make_samples(frames, start.cutoff, start.inner_cutoff, references)
    held_out = make_samples(validation, start.cutoff, start.inner_cutoff, references)
    scale, shift = scale_and_shift(samples, terms)
    potential = start.make(
        samples,
        references=np.asarray(references, np.float64),
        scale=scale,
        shift=shift,
        seed=settings.seed,
    )
    names = [describe(frame, number) for number, frame in enumerate(frames)]
    return TrainingProblem(potential, samples, held_out, terms, terms, names)


def scale_and_shift(samples: Sequence[Sample], terms: Terms) -> tuple[float, float]:
    """Scale and shift of the atomic energies of a new potential, in eV, as MACE chooses them.

    The shift is the mean energy per atom, relative to the references (0 without energies). The scale is the RMS of the
    force components, or the standard deviation of the energies per atom if forces are not among the terms.
    """
    energies = np.array([sample.energy / sample.graph.n_atoms for sample in samples])
    energies = energies[~np.isnan(energies)]
    shift = float(energies.mean()) if terms.energy and energies.size else 0.0
    if terms.forces:
        forces = np.concatenate([sample.forces.ravel() for sample in samples])
        scale = float(np.sqrt(np.nanmean(forces**2)))
    else:
        scale = float(energies.std()) if energies.size else 0.0
    # A single frame, or forces that vanish by symmetry, say nothing of the scale.
    return (scale if scale > 1e-8 else 1.0), shift


def split_validation(frames: Sequence[Frame], fraction: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Training and validation frames, at least one of each.

    Raises:
        ValueError: if there are fewer than two frames, or the fraction is not between 0 and 1.
    """
    if len(frames) < 2:
        raise ValueError(f"Training needs at least 2 frames, one of them for validation; there are {len(frames)}.")
    if not 0 < fraction < 1:
        raise ValueError(f"The validation fraction must be between 0 and 1, not {fraction}.")
    held_out = min(max(round(fraction * len(frames)), 1), len(frames) - 1)
    training, validation = split(frames, [len(frames) - held_out, held_out], seed)
    return training, validation
