"""Ways to lift a potential to another level of theory; each says what is trained on what, and what is deployed.

A strategy turns a foundation potential and labelled frames of several fidelities into a `TrainingProblem`, and what
comes back from the trainer into a Potential. The names follow the literature on multi-fidelity potentials: differential
or Δ-learning (Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015)), single fidelity for fine-tuning on the new
labels alone, multi fidelity for a shared trunk with a readout per level and replay of the old labels (multi-head
fine-tuning of MACE). All are trained with the same settings unless one is configured with changes of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import jax
import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.potentials.adapters import LowRank
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential, with_heads
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.references import elements_of
from jaxmlip.systems.dataset import Frame, describe, frame_kind
from jaxmlip.training.distill import fresh_problem, split_validation
from jaxmlip.training.labels import FixedReferences, Labels, References, residuals
from jaxmlip.training.loss import Terms
from jaxmlip.training.pair_difference import PairDifference
from jaxmlip.training.strategy import (
    REFERENCES,
    STARTS,
    Continued,
    Data,
    Strategy,
    samples_of,
    seen,
    with_trainable_references,
)
from jaxmlip.training.tangent import TangentKernel
from jaxmlip.training.trainer import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings, check_frames
from jaxmlip.training.weighting import terms_of


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
        model: Equivariant,
        high: Sequence[Frame],
        *,
        validation: Sequence[Frame],
        labels: Labels = "energy_forces",
        settings: TrainingSettings = DEFAULT_SETTINGS,
    ) -> TrainingProblem:
        """What to train where there is no foundation: an architecture of one's own, for the elements of the frames.

        Args:
            model: architecture.
            high: training frames.
            validation: frames that decide which parameters are kept.
            labels: which labels may be seen.
            settings: of the training to come; `adjusted` is applied.

        Raises:
            ValueError: if the references were to come from a foundation, and as `problem`.
        """
        how = self.trainable_from if self.references == "trainable" else self.references
        if how != "refit":
            raise ValueError(
                f"references is {how}, which starts from a foundation's; choose refit, or give a foundation."
            )
        settings = self.adjusted(settings)
        terms, high, validation = seen(high, validation, labels, settings)
        problem = fresh_problem(model, high, validation, settings=settings, terms=terms)
        return with_trainable_references(problem) if self.references == "trainable" else problem


class Differential(Strategy):
    """A new potential for the difference between the fidelities; deployed as baseline + difference."""

    name: Literal["differential"] = "differential"
    baseline: Literal["student", "teacher"] = pydantic.Field(
        default="student", description="what is subtracted and deployed: the distilled student, or the teacher itself"
    )

    def set_up(self, data: Data) -> TrainingProblem:
        """New parameters; labels are what the baseline's predictions lack."""
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

    def deploy(self, trained: Trained) -> Potential:
        """The sum of the baseline and the trained difference."""
        assert trained.problem.baseline is not None
        return trained.problem.baseline + super().deploy(trained)


class SingleFidelity(Continued):
    """Go on from the foundation's parameters with high-fidelity labels alone."""

    name: Literal["single_fidelity"] = "single_fidelity"

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with the elemental references of the high fidelity."""
        references = self.lifted(data.foundation, data.high, data.low)
        return self.continued(data.foundation.replace(references=references), data)


class MultiFidelity(Continued):
    """One trunk, a readout for each fidelity; labels of the others are replayed beside the high-fidelity ones."""

    name: Literal["multi_fidelity"] = "multi_fidelity"
    replay: float = pydantic.Field(
        default=0.5, gt=0, description="frames of each other fidelity replayed for each high-fidelity frame"
    )
    replay_weight: float = pydantic.Field(
        default=1.0, gt=0, description="weight of a replayed frame in the loss, relative to a high-fidelity one"
    )
    replay_shares: dict[str, Annotated[float, pydantic.Field(gt=0, le=1)]] = pydantic.Field(
        default_factory=dict,
        description="share of a type of frame (kind, config_type or file) among those replayed, repeated if too few",
    )
    warm_start: bool = pydantic.Field(
        default=True, description="the high readout starts as a copy of the low one, else with random parameters"
    )

    @pydantic.model_validator(mode="after")
    def _shares_leave_room(self) -> "MultiFidelity":
        if sum(self.replay_shares.values()) > 1:
            raise ValueError(f"The replay_shares {self.replay_shares} add up to more than 1; lower them.")
        return self

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation's readout first, then one for each fidelity between, that of the high fidelity last.

        Replayed frames keep their forces. A random choice of them is replayed, the same in every epoch so that batches
        keep their shapes. Of the types of frame in `replay_shares`, as many as their shares ask for: bulk frames are
        few among the cheap labels, and it is the bulk that clusters alone leave open.
        """
        foundation = data.foundation
        if len(data.low) == 0:
            raise ValueError(
                "The strategy multi_fidelity replays low-fidelity labels, but there are no low-fidelity frames; give "
                "them (`replay` in a configuration, the argument `low` in Python), or choose single_fidelity."
            )
        references = self.lifted(foundation, data.high, data.low)
        potential = with_heads(foundation, len(data.between) + 2).replace(references=references)
        if not self.warm_start:
            potential = _with_fresh_readout(potential, data.settings.seed)
        problem = self.continued(potential, data)
        if isinstance(problem.potential, LowRank) and not any(
            path.startswith("readout") for path in problem.potential.params
        ):
            raise ValueError(
                "The rank of the updates is not below the size of any readout, so that all fidelities would share what "
                "moves; lower rank, or choose another moves."
            )

        if self.replay_shares:
            types = {frame_kind(frame) for frames in (data.low, *data.between) for frame in frames}
            if unknown := self.replay_shares.keys() - types:
                raise ValueError(
                    f"replay_shares names frames of type {min(unknown)}, but those to be replayed are of types "
                    f"{', '.join(sorted(types))}; correct the name."
                )
        rng = np.random.default_rng(data.settings.seed)
        for head, frames in enumerate((data.low, *data.between)):
            own = foundation.references if head == 0 else self.lifted(foundation, frames, data.low)
            problem = self._with_replay(problem, data, foundation.replace(references=own), frames, head, rng)
        return problem

    def _with_replay(
        self,
        problem: TrainingProblem,
        data: Data,
        source: EquivariantPotential,
        frames: Sequence[Frame],
        head: int,
        rng: np.random.Generator,
    ) -> TrainingProblem:
        """The problem with a choice of frames of another fidelity, whose references are those of `source`."""
        chosen = self._chosen(frames, max(1, round(self.replay * len(data.high))), rng)
        replayed = [frames[index] for index in chosen]
        wanted = terms_of(data.settings, replayed)
        terms = Terms(*(w and _labelled(replayed, name) for w, name in zip(wanted, Terms._fields, strict=True)))
        check_frames(source.species, replayed, replayed, terms, terms)
        names = [f"{describe(frame, k)} (replayed)" for k, frame in zip(chosen, replayed, strict=True)]
        return dataclasses.replace(
            problem,
            train=[*problem.train, *samples_of(source, replayed, head, weight=self.replay_weight)],
            names=[*problem.names, *names],
            terms=Terms(*(a or b for a, b in zip(problem.terms, terms, strict=True))),
        )

    def _chosen(self, frames: Sequence[Frame], number: int, rng: np.random.Generator) -> list[int]:
        """So many frames, or all there are; more than once only those of types with a share."""
        others, chosen = np.arange(len(frames)), []
        if self.replay_shares:
            types = np.array([frame_kind(frame) for frame in frames])
            others = np.flatnonzero(~np.isin(types, list(self.replay_shares)))
            for kind, share in self.replay_shares.items():
                there = np.flatnonzero(types == kind)
                if len(there):  # not every fidelity has every type
                    repeats, rest = divmod(round(share * number), len(there))
                    chosen += [*np.repeat(there, repeats), *rng.choice(there, rest, replace=False)]
        chosen += [*rng.choice(others, min(len(others), max(0, number - len(chosen))), replace=False)]
        return sorted(int(index) for index in chosen)


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


STRATEGIES: dict[str, type[Strategy]] = {
    "direct": Direct,
    "differential": Differential,
    "single_fidelity": SingleFidelity,
    "multi_fidelity": MultiFidelity,
    "tangent_kernel": TangentKernel,
    "pair_difference": PairDifference,
}

AnyStrategy: TypeAlias = Annotated[
    Annotated[
        Direct | Differential | SingleFidelity | MultiFidelity | TangentKernel | PairDifference,
        pydantic.Field(discriminator="name"),
    ],
    pydantic.BeforeValidator(
        _from_name,
        json_schema_input_type=Literal[
            "direct", "differential", "single_fidelity", "multi_fidelity", "tangent_kernel", "pair_difference"
        ]
        | Direct
        | Differential
        | SingleFidelity
        | MultiFidelity
        | TangentKernel
        | PairDifference,
    ),
]
"""A strategy as configuration spells it: `{name: multi_fidelity, replay: 0.5}`, or its name alone."""


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


def _fresh(
    data: Data, frames: Sequence[Frame], validation: Sequence[Frame], references: Float[np.ndarray, "119"]
) -> TrainingProblem:
    """A new potential of the foundation's architecture; with its normalisation too, so that they share compilations."""
    return fresh_problem(
        data.foundation.specification,
        frames,
        validation,
        references,
        settings=data.settings,
        terms=data.terms,
        species=data.foundation.species,
        neighbors=data.foundation.average_neighbors,
    )


def _labelled(frames: Sequence[Frame], label: str) -> bool:
    return any(not np.isnan(getattr(frame, label)).all() for frame in frames)


def _with_fresh_readout(potential: EquivariantPotential, seed: int) -> EquivariantPotential:
    """The potential with random parameters in its last readout."""
    new = potential.specification.build(potential.known, average_neighbors=potential.average_neighbors, seed=seed)

    def replaced(old: Any, fresh: Any) -> np.ndarray:
        return np.concatenate([np.asarray(old)[:-1], np.asarray(fresh, old.dtype)])

    params = {
        name: jax.tree.map(replaced, tree, new.params[name]) if name.startswith("readout") else tree
        for name, tree in potential.params.items()
    }
    return potential.replace(params=params)
