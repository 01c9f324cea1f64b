"""Which parameters of a foundation move in fine-tuning, and how fast."""

from typing import Any, Literal, TypeAlias

import jax

from jaxmlip.potentials.adapters import low_rank
from jaxmlip.potentials.trainable import Group, Trainable

Moves: TypeAlias = Literal["everything", "readouts", "all_but_embedding", "low_rank"]
"""Which parameters move: all, those of the readouts, all but the table of elements, or low-rank updates of matrices."""


def adapted(potential: Trainable, moves: Moves, *, rank: int, layer_decay: float, seed: int) -> tuple[Trainable, Any]:
    """The potential to train, and the rate of each of its parameters.

    Rates differ by layer as in discriminative fine-tuning (Howard and Ruder, ACL 2018, arXiv:1801.06146): they are 1
    for the readouts, and fall by a factor with each layer from there to the table of elements, which comes last.

    Args:
        potential: with the parameters to start from.
        moves: see `Moves`.
        rank: of low-rank updates, if they are what moves.
        layer_decay: factor of the learning rate from one layer to the one below it; 1 for equal rates.
        seed: of the random factors of low-rank updates.

    Returns:
        The potential, as an adapter if the parameters that move are low-rank factors, and a pytree like its `params` of
        factors of the learning rate, 0 for what stays.

    Raises:
        ValueError: see `low_rank`.
    """
    trained = low_rank(potential, rank, seed) if moves == "low_rank" else potential

    def rate(group: Group) -> float:
        stays = (moves == "readouts" and group.role != "readout") or (
            moves == "all_but_embedding" and group.role == "embedding"
        )
        return 0.0 if stays else float(layer_decay**group.depth)

    return trained, jax.tree.map(rate, trained.groups())
