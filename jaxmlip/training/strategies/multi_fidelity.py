"""A trunk shared by fidelities, with a readout for each, and replay of the labels that the foundation was trained on.

Multi-head fine-tuning, as of MACE.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import numpy as np
import pydantic

from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.dataset import Frame, describe, frame_kind
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import TrainingProblem, check_frames
from jaxmlip.training.strategies.base import Data, samples_of
from jaxmlip.training.strategies.continued import Continued
from jaxmlip.training.strategies.registry import register_strategy
from jaxmlip.training.weighting import terms_of


@register_strategy
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
        fresh = None if self.warm_start else data.settings.seed
        potential = foundation.with_heads(len(data.between) + 2, fresh=fresh).with_references(references)
        problem = self.continued(potential, data)
        if not _has_readouts(problem.potential):
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
            problem = self._with_replay(problem, data, foundation.with_references(own), frames, head, rng)
        return problem

    def _with_replay(
        self,
        problem: TrainingProblem,
        data: Data,
        source: Trainable,
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


def _labelled(frames: Sequence[Frame], label: str) -> bool:
    return any(not np.isnan(getattr(frame, label)).all() for frame in frames)


def _has_readouts(potential: Potential) -> bool:
    """Whether parameters of readouts are among those that are trained."""
    assert isinstance(potential, Trainable)
    return any(group.role == "readout" for group in jax.tree.leaves(potential.groups()))
