"""To what sizes graphs of single structures are padded, so that few programs are compiled and little work is wasted.

A program that is too large for a structure costs time in every call, a new one costs a compilation. Without knowing
what comes, the cost is at most about twice the least if one compiles as soon as as much has been wasted.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlip.potentials.evaluation import SLOTS_PER_COMPILATION, round_up
from jaxmlip.potentials.potential import Potential

SMALL = SLOTS_PER_COMPILATION // 50
"""Neighbour slots up to which a graph grows by half where it must grow, beyond by a tenth."""


FEW = 3
"""Sizes without atoms to spare that users of different ones may have."""


class GraphSize(NamedTuple):
    """Static sizes of a graph; see `Graph`. `inner` is at most `slots`."""

    atoms: int
    slots: int
    inner: int

    def holds(self, other: "GraphSize") -> bool:
        """Whether a graph of another size fits."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))

    @property
    def cost(self) -> int:
        """Neighbour slots in all."""
        return self.atoms * self.slots


@dataclasses.dataclass
class GraphSizes:
    """The sizes that are compiled for potentials of one structure.

    A first size has no atoms to spare, since most users stay at one number of atoms. One that must grow grows by so
    much that structures of any sizes, in any order, take a number of compilations like the logarithm of the largest.
    Smaller structures are padded until that has wasted as much as a compilation costs: then a structure that stays gets
    a size that suits it, and where sizes change from call to call each further size must save twice as much as the one
    before.
    """

    compiled: list[GraphSize] = dataclasses.field(default_factory=list)
    _atoms: int = 0
    _wasted_on_it: int = 0
    _wasted: int = 0
    _price: int = SLOTS_PER_COMPILATION

    def size_for(self, needed: GraphSize, *, varies: bool = True) -> GraphSize:
        """The size to pad a structure's graph to.

        Args:
            needed: by the structure.
            varies: whether who asks has had structures of another size before.
        """
        suited = GraphSize(needed.atoms, *map(with_room, needed[1:]))
        fitting = [size for size in self.compiled if size.holds(needed)]
        best = min(fitting, key=lambda size: size.cost, default=None)
        if best is None:
            varied = varies and bool(self.compiled)
            best = self._grown(needed, suited) if varied or len(self.compiled) >= FEW else suited
        elif self._stays(needed) and self._wasted_on_it + best.cost - suited.cost > SLOTS_PER_COMPILATION:
            best, self._wasted_on_it, self._wasted = suited, 0, 0
        elif self._wasted + best.cost - suited.cost > self._price:
            best, self._wasted, self._price = _roomy(needed), 0, 2 * self._price
        if best not in self.compiled:
            self.compiled.append(best)
        return best

    def count(self, needed: GraphSize, size: GraphSize) -> bool:
        """Note a call for a structure at a size; whether it is time to ask for another size."""
        if not self._stays(needed):
            self._atoms, self._wasted_on_it = needed.atoms, 0
        waste = max(0, size.cost - needed.atoms * with_room(needed.slots))
        self._wasted += waste
        self._wasted_on_it += waste
        return waste > 0 and self._wasted_on_it > SLOTS_PER_COMPILATION

    def _stays(self, needed: GraphSize) -> bool:
        return needed.atoms == self._atoms

    def _grown(self, needed: GraphSize, suited: GraphSize) -> GraphSize:
        """A size that holds what is needed, and besides what another holds, unless that is far too much."""
        enough = [size for size in self.compiled if size.atoms >= needed.atoms]
        if enough:  # both kinds of slots grow, so that a compression compiles once
            other, grown = min(enough), suited
        else:
            other, grown = max(self.compiled), _roomy(needed)
        held = GraphSize(*map(max, other, grown))
        return held if held.cost - grown.cost <= SMALL else grown


def _roomy(needed: GraphSize) -> GraphSize:
    """A size with room for what is somewhat larger."""
    if needed.cost > SMALL:
        return GraphSize(*map(with_room, needed))
    return GraphSize(*(round_up(number + number // 2) for number in needed))


def with_room(number: int) -> int:
    """A capacity at least a tenth larger."""
    return round_up(number + -(-number // 10))


_SIZES: dict[Any, GraphSizes] = {}


def graph_sizes(potential: Potential, dtype: type, stress: bool, elements: tuple[int, int] = (0, 0)) -> GraphSizes:
    """The sizes that are compiled for potentials like this one: compiled code is shared by all of one structure.

    Args:
        potential: any.
        dtype: of positions.
        stress: whether it is computed.
        elements: see `Graph.elements`.
    """
    leaves, structure = jax.tree.flatten(potential)
    shapes = tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves)
    return _SIZES.setdefault((structure, shapes, np.dtype(dtype).name, stress, elements), GraphSizes())
