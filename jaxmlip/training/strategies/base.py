"""What every strategy has in common: checked data, elemental references, samples, and what is deployed."""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import jax
import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.potentials.adapters import trainable_references
from jaxmlip.potentials.evaluation import potential_dtype
from jaxmlip.potentials.models import Model
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.batches import Sample, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.labels import FixedReferences, Labels, References, lifted_references, without_forces
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings, check_frames
from jaxmlip.training.trainer import train
from jaxmlip.training.weighting import demanded, terms_of

REFERENCES = (
    "elemental reference energies: keep (the foundation's), trainable, refit (least squares on the labels), shift (the "
    "foundation's + fit of high − fit of low labels), residual (the foundation's + fit of label − prediction)"
)
STARTS = "where trainable references start: keep, refit, shift or residual"


@dataclasses.dataclass(frozen=True)
class Data:
    """What a strategy works on.

    Attributes:
        foundation: student of the low fidelity.
        high: training frames of the high fidelity.
        validation: validation frames of the high fidelity.
        low: frames of the low fidelity.
        between: frames of further fidelities, one sequence for each.
        teacher: the potential that the foundation imitates, if known.
        terms: terms of the loss for which the high fidelity has labels.
        settings: of the training to come.
    """

    foundation: Trainable
    high: Sequence[Frame]
    validation: Sequence[Frame]
    low: Sequence[Frame]
    between: Sequence[Sequence[Frame]]
    teacher: Potential | None
    terms: Terms
    settings: TrainingSettings


class Strategy(pydantic.BaseModel, abc.ABC):
    """Base of the strategies; a strategy is configuration, and holds no state.

    A subclass says what is trained on what (`set_up`), and has a field `name` with the name it is registered by (see
    `register_strategy`). The rest has defaults: how it is trained (`solve`) and what is deployed (`deploy`).

    Attributes:
        sees: sets of labels with which it is worth running (on the class).
        seeded: whether its result depends on the seed of the settings (on the class).
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    sees: ClassVar[tuple[Labels, ...]] = ("energy_forces", "energy")
    seeded: ClassVar[bool] = True

    name: str = ""
    title: str = pydantic.Field(
        default="", pattern=r"^[\w-]*$", description="what results call it, by default its name; for variants of one"
    )
    references: References = pydantic.Field(default="residual", description=REFERENCES)
    trainable_from: FixedReferences = pydantic.Field(default="residual", description=STARTS)
    training: dict[str, Any] = pydantic.Field(
        default={}, description="settings of the training that differ for this strategy, as {learning_rate: 0.003}"
    )

    @pydantic.field_validator("training")
    @classmethod
    def _are_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            TrainingSettings.model_validate(DEFAULT_SETTINGS.model_dump() | value)
        except pydantic.ValidationError as error:
            mistakes = [f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
            raise ValueError("; ".join(mistakes)) from None
        return value

    @property
    def called(self) -> str:
        """What results call the strategy."""
        return self.title or self.name

    @property
    def deploys_teacher(self) -> bool:
        """Whether the teacher is part of what is deployed, so that a file must be able to hold it."""
        return False

    def adjusted(self, settings: TrainingSettings) -> TrainingSettings:
        """Settings of the training with this strategy's own changes; the trainer is to be given these."""
        return TrainingSettings.model_validate(settings.model_dump() | self.training)

    def problem(
        self,
        foundation: Potential,
        high: Sequence[Frame],
        *,
        validation: Sequence[Frame],
        low: Sequence[Frame] = (),
        between: Sequence[Sequence[Frame]] = (),
        teacher: Potential | None = None,
        labels: Labels = "energy_forces",
        settings: TrainingSettings = DEFAULT_SETTINGS,
    ) -> TrainingProblem:
        """What to train.

        Args:
            foundation: student of the low fidelity.
            high: training frames with high-fidelity labels.
            validation: frames with high-fidelity labels that decide which parameters are kept.
            low: frames with the labels that the foundation was trained on, for replay and for `references: shift`.
            between: frames of further fidelities, one sequence for each, for strategies with a readout per fidelity.
            teacher: the potential that the foundation imitates, for differences to the teacher itself.
            labels: which high-fidelity labels may be seen; with "energy", forces and stresses are removed from `high`
                and `validation` before anything looks at them.
            settings: of the training to come; `adjusted` is applied.

        Raises:
            ValueError: if the foundation is not `Trainable`, energies alone are allowed but have no weight, frames or
                the teacher are missing where the strategy needs them, or for data that `check_frames` refuses.
        """
        if not isinstance(foundation, Trainable):
            raise ValueError(
                f"The strategy {self.name} lifts a potential that can be trained, and a {type(foundation).__name__} is "
                "none (see jaxmlip.Trainable); distil it into a student first."
            )
        settings = self.adjusted(settings)
        terms, high, validation = seen(high, validation, labels, settings)
        check_frames(foundation.species, high, validation, terms, demanded(terms, settings))
        problem = self.set_up(Data(foundation, high, validation, low, between, teacher, terms, settings))
        return with_trainable_references(problem) if self.references == "trainable" else problem

    def from_labels(
        self,
        model: Model,
        high: Sequence[Frame],
        *,
        validation: Sequence[Frame],
        labels: Labels = "energy_forces",
        settings: TrainingSettings = DEFAULT_SETTINGS,
    ) -> TrainingProblem:
        """What to train where there is no foundation, for strategies that can do without.

        Args:
            model: architecture.
            high: training frames.
            validation: frames that decide which parameters are kept.
            labels: which labels may be seen.
            settings: of the training to come; `adjusted` is applied.

        Raises:
            ValueError: if the strategy or its references start from a foundation, and as `problem`.
        """
        del model, high, validation, labels, settings
        raise ValueError(f"The strategy {self.name} starts from a foundation; give its path as foundation.")

    @abc.abstractmethod
    def set_up(self, data: Data) -> TrainingProblem:
        """`problem` for checked data, in which labels that must not be seen are NaN."""

    def solve(
        self,
        problem: TrainingProblem,
        settings: TrainingSettings = DEFAULT_SETTINGS,
        *,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> Trained:
        """Train a problem of this strategy: by the trainer (see `train`), unless a subclass needs none."""
        return train(problem, settings, folder=folder, progress=progress)

    def deploy(self, trained: Trained) -> Potential:
        """The high-fidelity potential that training has produced: the last readout is that of the high fidelity."""
        potential = trained.potential
        assert isinstance(potential, Trainable)  # what `problem` has accepted
        return potential.select_head(potential.heads - 1)

    def lifted(self, source: Potential, high: Sequence[Frame], low: Sequence[Frame]) -> Float[np.ndarray, "119"]:
        """References of another fidelity for a potential that goes on from `source`, as configured; see there."""
        how = self.trainable_from if self.references == "trainable" else cast(FixedReferences, self.references)
        return lifted_references(source, high, how, low)


def seen(
    high: Sequence[Frame], validation: Sequence[Frame], labels: Labels, settings: TrainingSettings
) -> tuple[Terms, Sequence[Frame], Sequence[Frame]]:
    """Terms of the loss and frames, without the labels that must not be seen.

    Raises:
        ValueError: if energies alone may be seen, but have no weight.
    """
    if labels == "energy_forces":
        return terms_of(settings, high), high, validation
    if not settings.energy_weight:
        raise ValueError("labels is energy, but energy_weight is 0: there is nothing to train on.")
    return Terms(True, False, False), without_forces(high), without_forces(validation)


def samples_of(potential: Potential, frames: Sequence[Frame], head: int, weight: float = 1.0) -> list[Sample]:
    """Samples for a readout, relative to the potential's references."""
    dtype = potential_dtype(potential)
    cutoffs = potential.cutoff, potential.inner_cutoff
    return make_samples(frames, *cutoffs, potential.references, head, weight=weight, dtype=dtype)


def with_trainable_references(problem: TrainingProblem) -> TrainingProblem:
    """The problem with offsets of the elemental references among its parameters, at the full learning rate."""
    potential, rates = problem.potential, problem.rates
    assert isinstance(potential, Trainable)  # what `problem` has accepted
    if rates is None:
        rates = jax.tree.map(lambda leaf: 1.0, potential.params)
    rates = {"offsets": 1.0, "potential": rates}
    return dataclasses.replace(problem, potential=trainable_references(potential), rates=rates)
