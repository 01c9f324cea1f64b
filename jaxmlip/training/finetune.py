"""Lift a student in one call."""

from collections.abc import Sequence

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import split_validation
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import DEFAULT_SETTINGS, TrainingSettings
from jaxmlip.training.strategies.base import Strategy


def finetune(
    student: Potential,
    frames: Sequence[Frame],
    *,
    strategy: Strategy,
    labels: Labels = "energy_forces",
    low: Sequence[Frame] = (),
    between: Sequence[Sequence[Frame]] = (),
    teacher: Potential | None = None,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    validation_fraction: float = 0.1,
    progress: bool = True,
) -> Potential:
    """Lift a student to the level of theory of labelled frames.

    Args:
        student: the low-fidelity potential.
        frames: with high-fidelity labels; a random part becomes the validation set.
        strategy: how, for example `MultiFidelity(replay=0.5)`.
        labels: which high-fidelity labels may be seen.
        low: frames with low-fidelity labels, for replay.
        between: frames of further fidelities, one sequence for each, see `Strategy.problem`.
        teacher: the potential that the student imitates, for `Differential(baseline="teacher")`.
        settings: of the training; its seed also splits the frames.
        validation_fraction: share of the frames kept for validation, at least one.
        progress: show a bar.

    Raises:
        ValueError: see `Strategy.problem` and `split_validation`.
        TrainingDiverged: see `train`.
    """
    settings = strategy.adjusted(settings)
    training, validation = split_validation(frames, validation_fraction, settings.seed)
    problem = strategy.problem(
        student,
        training,
        validation=validation,
        low=low,
        between=between,
        teacher=teacher,
        labels=labels,
        settings=settings,
    )
    return strategy.deploy(strategy.solve(problem, settings, progress=progress))
