"""Ways to lift a potential to another level of theory; each says what is trained on what, and what is deployed.

A strategy turns a foundation potential and labelled frames of two fidelities into a `TrainingProblem`, and what comes
back from the trainer into a Potential. The names follow the literature on multi-fidelity potentials: differential or
Δ-learning (Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015)), single fidelity for fine-tuning on the new
labels alone, multi fidelity for a shared trunk with a readout per level and replay of the old labels (multi-head
fine-tuning of MACE).
"""

import abc
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.potentials.equivariant import EquivariantPotential, select_head, with_heads
from jaxmlip.potentials.evaluation import potential_dtype, predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.references import fit_references
from jaxmlip.systems.batches import make_samples
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.training.distill import fresh_problem, split_validation
from jaxmlip.training.loss import Terms
from jaxmlip.training.trainer import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings, check_frames, train

Labels: TypeAlias = Literal["energy_forces", "energy"]
"""Which high-fidelity labels may be seen. "energy" hides forces and stresses from everything."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What a strategy works on.

    Attributes:
        foundation: student of the low fidelity.
        high: training frames of the high fidelity.
        validation: validation frames of the high fidelity.
        low: frames of the low fidelity.
        terms: terms of the loss for which the high fidelity has labels.
        settings: of the training to come.
    """

    foundation: EquivariantPotential
    high: Sequence[Frame]
    validation: Sequence[Frame]
    low: Sequence[Frame]
    terms: Terms
    settings: TrainingSettings


class Strategy(pydantic.BaseModel, abc.ABC):
    """Base of the strategies; a strategy is configuration, and holds no state."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str = ""

    def problem(
        self,
        foundation: Potential,
        high: Sequence[Frame],
        *,
        validation: Sequence[Frame],
        low: Sequence[Frame] = (),
        labels: Labels = "energy_forces",
        settings: TrainingSettings = DEFAULT_SETTINGS,
    ) -> TrainingProblem:
        """What to train.

        Args:
            foundation: student of the low fidelity.
            high: training frames with high-fidelity labels.
            validation: frames with high-fidelity labels that decide which parameters are kept.
            low: frames with the labels that the foundation was trained on, for replay.
            labels: which high-fidelity labels may be seen; with "energy", forces and stresses are removed from `high`
                and `validation` before anything looks at them.
            settings: of the training to come.

        Raises:
            ValueError: if the foundation is not an EquivariantPotential, energies alone are allowed but have no
                weight, replay has no frames, or for data that `check_frames` refuses.
        """
        if not isinstance(foundation, EquivariantPotential):
            raise ValueError(
                f"The strategy {self.name} lifts an EquivariantPotential, not a {type(foundation).__name__}; "
                "distil it into a student first."
            )
        terms = settings.terms()
        if labels == "energy":
            terms = Terms(terms.energy, False, False)
            high, validation = without_forces(high), without_forces(validation)
            if not terms.energy:
                raise ValueError("labels is energy, but energy_weight is 0: there is nothing to train on.")
        check_frames(foundation.species, high, validation, terms, terms)
        return self.set_up(Data(foundation, high, validation, low, terms, settings))

    @abc.abstractmethod
    def set_up(self, data: Data) -> TrainingProblem:
        """`problem` for checked data, in which labels that must not be seen are NaN."""

    def deploy(self, trained: Trained) -> Potential:
        """The high-fidelity potential that training has produced."""
        return trained.potential


class Direct(Strategy):
    """From scratch on the high-fidelity labels, with the foundation's architecture."""

    name: Literal["direct"] = "direct"

    def set_up(self, data: Data) -> TrainingProblem:
        """New parameters; references, scale and shift from the labels."""
        return _fresh(data, data.high, data.validation)


class Differential(Strategy):
    """A new potential for the difference between the fidelities; deployed as `foundation + delta`."""

    name: Literal["differential"] = "differential"

    def set_up(self, data: Data) -> TrainingProblem:
        """New parameters; labels are what the foundation's predictions lack."""
        problem = _fresh(data, residuals(data.foundation, data.high), residuals(data.foundation, data.validation))
        return dataclasses.replace(problem, baseline=data.foundation)

    def deploy(self, trained: Trained) -> Potential:
        """The sum of the foundation and the trained difference."""
        assert trained.problem.baseline is not None
        return trained.problem.baseline + trained.potential


class SingleFidelity(Strategy):
    """Go on from the foundation's parameters with high-fidelity labels alone."""

    name: Literal["single_fidelity"] = "single_fidelity"

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with the elemental references of the high fidelity."""
        references = lifted_references(data.foundation, data.high)
        return _continued(data.foundation.replace(references=references), data)


class MultiFidelity(Strategy):
    """One trunk, a readout for each fidelity; low-fidelity labels are replayed beside the high-fidelity ones."""

    name: Literal["multi_fidelity"] = "multi_fidelity"
    replay: float = pydantic.Field(
        default=0.5, gt=0, description="low-fidelity frames replayed for each high-fidelity frame"
    )

    LOW: ClassVar[int] = 0
    HIGH: ClassVar[int] = 1

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with a second readout that starts as a copy of the first; replayed frames keep their forces.

        A random choice of low-fidelity frames is replayed, the same in every epoch so that batches keep their shapes.
        """
        foundation, wanted = data.foundation, data.settings.terms()
        if len(data.low) == 0:
            raise ValueError(
                "The strategy multi_fidelity replays low-fidelity labels, but there are no low-fidelity frames; give "
                "`low`, or choose single_fidelity."
            )
        number = min(len(data.low), max(1, round(self.replay * len(data.high))))
        rng = np.random.default_rng(data.settings.seed)
        chosen = sorted(rng.choice(len(data.low), number, replace=False).tolist())
        replayed = [data.low[index] for index in chosen]
        low_terms = Terms(*(w and _labelled(replayed, name) for w, name in zip(wanted, Terms._fields, strict=True)))
        check_frames(foundation.species, replayed, replayed, low_terms, low_terms)

        references = lifted_references(foundation, data.high)
        both = with_heads(foundation, 2).replace(references=references)
        problem = _continued(both, data, head=self.HIGH)
        return dataclasses.replace(
            problem,
            train=[*problem.train, *_samples(foundation, replayed, foundation.references, self.LOW)],
            names=[
                *problem.names,
                *(f"{describe(frame, k)} (replayed)" for k, frame in zip(chosen, replayed, strict=True)),
            ],
            terms=Terms(*(a or b for a, b in zip(data.terms, low_terms, strict=True))),
        )

    def deploy(self, trained: Trained) -> Potential:
        """The trunk with the high-fidelity readout alone."""
        assert isinstance(trained.potential, EquivariantPotential)
        return select_head(trained.potential, self.HIGH)


AnyStrategy: TypeAlias = Annotated[
    Direct | Differential | SingleFidelity | MultiFidelity, pydantic.Field(discriminator="name")
]
"""A strategy as configuration spells it: `{name: multi_fidelity, replay: 0.5}`."""

STRATEGIES: dict[str, type[Strategy]] = {
    "direct": Direct,
    "differential": Differential,
    "single_fidelity": SingleFidelity,
    "multi_fidelity": MultiFidelity,
}


def finetune(
    student: Potential,
    frames: Sequence[Frame],
    *,
    strategy: Strategy,
    labels: Labels = "energy_forces",
    low: Sequence[Frame] = (),
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
        settings: of the training; its seed also splits the frames.
        validation_fraction: share of the frames kept for validation, at least one.
        progress: show a bar.

    Raises:
        ValueError: see `Strategy.problem` and `split_validation`.
        TrainingDiverged: see `train`.
    """
    training, validation = split_validation(frames, validation_fraction, settings.seed)
    problem = strategy.problem(student, training, validation=validation, low=low, labels=labels, settings=settings)
    return strategy.deploy(train(problem, settings, progress=progress))


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


def lifted_references(foundation: Potential, high: Sequence[Frame]) -> Float[np.ndarray, "119"]:
    """The foundation's elemental references plus the least change that fits the high-fidelity energies.

    Of all changes with the least squared error of (label − prediction of the foundation), the one of least norm: a
    set of equal compositions, such as water, does not tell H from O, and neither moves without need. eV.
    """
    predictions = predict(foundation, [frame.atoms for frame in high])
    with warnings.catch_warnings():  # what warns of such compositions is meant for fits from nothing
        warnings.simplefilter("ignore")
        change = fit_references(high, baseline=[prediction.energy for prediction in predictions])
    return np.asarray(foundation.references, np.float64) + change


def _fresh(data: Data, frames: Sequence[Frame], validation: Sequence[Frame]) -> TrainingProblem:
    """A new potential of the foundation's architecture; with its normalisation too, so that they share compilations."""
    return fresh_problem(
        data.foundation.specification,
        frames,
        validation,
        settings=data.settings,
        terms=data.terms,
        species=data.foundation.species,
        neighbors=data.foundation.average_neighbors,
    )


def _continued(potential: EquivariantPotential, data: Data, head: int = 0) -> TrainingProblem:
    """High-fidelity frames for a potential that has parameters and references already."""
    train, validation = (_samples(potential, part, potential.references, head) for part in (data.high, data.validation))
    names = [describe(frame, number) for number, frame in enumerate(data.high)]
    return TrainingProblem(potential, train, validation, data.terms, data.terms, names)


def _samples(potential: Potential, frames: Sequence[Frame], references: Float[np.ndarray, "119"], head: int) -> list:
    dtype = potential_dtype(potential)
    return make_samples(frames, potential.cutoff, potential.inner_cutoff, references, head, dtype=dtype)


def _labelled(frames: Sequence[Frame], label: str) -> bool:
    return any(not np.isnan(getattr(frame, label)).all() for frame in frames)
