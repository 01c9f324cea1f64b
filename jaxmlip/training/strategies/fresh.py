"""Strategies that train new parameters: for the labels themselves, or for what the foundation lacks."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.potentials.models import Model
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.references import elements_of
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import fresh_problem, of_architecture, of_foundation
from jaxmlip.training.labels import FixedReferences, Labels, References, residuals
from jaxmlip.training.problem import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.base import REFERENCES, STARTS, Data, Strategy, seen, with_trainable_references
from jaxmlip.training.strategies.registry import register_strategy


@register_strategy
class Direct(Strategy):
    """From scratch on the high-fidelity labels, with the foundation's architecture."""

    name: Literal["direct"] = "direct"
    references: References = pydantic.Field(default="refit", description=REFERENCES)
    trainable_from: FixedReferences = pydantic.Field(default="refit", description=STARTS)

    def set_up(self, data: Data) -> TrainingProblem:
        """New parameters; scale and shift from the labels."""
        references = self.lifted(data.foundation, data.high, data.low)
        return _fresh(data, data.high, data.validation, references)

    def from_labels(
        self,
        model: Model,
        high: Sequence[Frame],
        *,
        validation: Sequence[Frame],
        labels: Labels = "energy_forces",
        settings: TrainingSettings = DEFAULT_SETTINGS,
    ) -> TrainingProblem:
        """An architecture of one's own, for the elements of the frames; see `Strategy.from_labels`."""
        how = self.trainable_from if self.references == "trainable" else self.references
        if how != "refit":
            raise ValueError(
                f"references is {how}, which starts from a foundation's; choose refit, or give a foundation."
            )
        settings = self.adjusted(settings)
        terms, high, validation = seen(high, validation, labels, settings)
        problem = fresh_problem(of_architecture(model, high), high, validation, settings=settings, terms=terms)
        return with_trainable_references(problem) if self.references == "trainable" else problem


@register_strategy
class Differential(Strategy):
    """A new potential for the difference between the fidelities; deployed as baseline + difference."""

    name: Literal["differential"] = "differential"
    baseline: Literal["student", "teacher"] = pydantic.Field(
        default="student", description="what is subtracted and deployed: the distilled student, or the teacher itself"
    )

    def set_up(self, data: Data) -> TrainingProblem:
        """New parameters; labels are what the baseline's predictions lack."""
        if data.terms.magmoms:
            raise ValueError(
                "magmoms_weight is positive, but magnetic moments are absolute values, of which no potential for a "
                "difference can be trained: set it to 0 (the moments of differential are the baseline's), or choose "
                "another strategy."
            )
        baseline = data.foundation if self.baseline == "student" else data.teacher
        if baseline is None:
            raise ValueError(
                "The strategy differential subtracts the teacher's predictions, but there is no teacher; give "
                "`teacher`, or choose baseline: student."
            )
        own = baseline.references_for(elements_of([*data.high, *data.low, *data.validation]))
        change = self.lifted(baseline, data.high, data.low) - own
        problem = _fresh(data, residuals(baseline, data.high), residuals(baseline, data.validation), change)
        return dataclasses.replace(problem, baseline=baseline)

    @property
    def deploys_teacher(self) -> bool:
        """Whether the baseline is the teacher."""
        return self.baseline == "teacher"

    def deploy(self, trained: Trained) -> Potential:
        """The sum of the baseline and the trained difference."""
        assert trained.problem.baseline is not None
        return trained.problem.baseline + super().deploy(trained)


def _fresh(
    data: Data, frames: Sequence[Frame], validation: Sequence[Frame], references: Float[np.ndarray, "119"]
) -> TrainingProblem:
    """A new potential of the foundation's architecture."""
    start = of_foundation(data.foundation)
    return fresh_problem(start, frames, validation, references, settings=data.settings, terms=data.terms)
