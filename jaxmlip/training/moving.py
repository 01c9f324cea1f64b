"""Which parameters of a foundation move in fine-tuning, and how fast."""

from typing import Any, Literal, TypeAlias

import jax

from jaxmlip.potentials.adapters import LowRank, low_rank
from jaxmlip.potentials.equivariant import EquivariantPotential

Moves: TypeAlias = Literal["everything", "readouts", "all_but_embedding", "low_rank"]
"""Which parameters move: all, those of the readouts, all but the table of elements, or low-rank updates of matrices."""


def adapted(
    potential: EquivariantPotential, moves: Moves, *, rank: int, layer_decay: float, seed: int
) -> tuple[EquivariantPotential | LowRank, Any]:
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
    layers = potential.specification.layers
    trained = low_rank(potential, rank, seed) if moves == "low_rank" else potential

    def rate(path: tuple[Any, ...], leaf: Any) -> float:
        group = str(path[0].key).partition("/")[0]
        stays = (moves == "readouts" and not group.startswith("readout")) or (
            moves == "all_but_embedding" and group == "embedding"
        )
        return 0.0 if stays else float(layer_decay ** _depth(group, layers))

    return trained, jax.tree_util.tree_map_with_path(rate, trained.params)


def _depth(group: str, layers: int) -> int:
    """Layers below the readouts: 0 for them, 1 for the last interaction and product, most for the table of elements."""
    kind, _, layer = group.partition("_")
    if kind == "readout":
        return 0
    return layers + 1 if kind == "embedding" else layers - int(layer)
