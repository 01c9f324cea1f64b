"""Strategies that go on from the foundation's parameters, on high-fidelity labels alone or as a base of others."""

from typing import Literal

import pydantic

from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.dataset import describe
from jaxmlip.training.labels import anchors
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.base import Data, Strategy, samples_of
from jaxmlip.training.strategies.moving import Moves, adapted
from jaxmlip.training.strategies.registry import register_strategy

DEFAULT_RANK = 8
"""Of low-rank updates."""


class Continued(Strategy):
    """Base of the strategies that go on from the foundation's parameters."""

    moves: Moves = pydantic.Field(
        default="everything", description="parameters that move: everything, readouts, all_but_embedding or low_rank"
    )
    rank: int | None = pydantic.Field(
        default=None, ge=1, description=f"of the updates of moves: low_rank, by default {DEFAULT_RANK}"
    )
    layer_decay: float = pydantic.Field(
        default=1.0, gt=0, le=1, description="factor of the learning rate from the readouts down, for each layer"
    )
    l2_sp: float = pydantic.Field(
        default=0.0, ge=0, description="strength of ½ |θ − θ₀|² in the loss, θ₀ the foundation's parameters"
    )
    anchor: float = pydantic.Field(
        default=0.0,
        ge=0,
        description="weight, relative to a label's, of the foundation's forces on the high-fidelity structures",
    )

    @pydantic.model_validator(mode="after")
    def _rank_has_a_use(self) -> "Continued":
        if self.rank is not None and self.moves != "low_rank":
            raise ValueError(f"rank is {self.rank}, but moves is {self.moves}: only low_rank updates have a rank.")
        return self

    def continued(self, potential: Trainable, data: Data) -> TrainingProblem:
        """High-fidelity frames for the last readout of a potential with their references; the foundation's anchors."""
        seed, head = data.settings.seed, potential.heads - 1
        train, validation = (samples_of(potential, frames, head) for frames in (data.high, data.validation))
        names, terms = [describe(frame, number) for number, frame in enumerate(data.high)], data.terms
        if self.anchor:
            if not data.settings.forces_weight:
                raise ValueError(
                    "anchor holds forces, but forces_weight is 0; give forces a weight, or set anchor to 0."
                )
            train = train + samples_of(potential, anchors(data.foundation, data.high), head, weight=self.anchor)
            names = names + [f"{name} (anchor)" for name in names]
            terms = terms._replace(forces=True)
        trained, rates = adapted(
            potential, self.moves, rank=self.rank or DEFAULT_RANK, layer_decay=self.layer_decay, seed=seed
        )
        return TrainingProblem(trained, train, validation, terms, data.terms, names, rates=rates, l2_sp=self.l2_sp)


@register_strategy
class SingleFidelity(Continued):
    """Go on from the foundation's parameters with high-fidelity labels alone."""

    name: Literal["single_fidelity"] = "single_fidelity"

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with the elemental references of the high fidelity."""
        references = self.lifted(data.foundation, data.high, data.low)
        return self.continued(data.foundation.with_references(references), data)
