"""Few compilations for structures of any sizes, and little wasted."""

from collections.abc import Iterable

import numpy as np
import pytest

from jaxmlip.potentials.evaluation import SLOTS_PER_COMPILATION
from jaxmlip.potentials.graph_sizes import GraphSize, GraphSizes, with_room


def cluster(atoms: int) -> GraphSize:
    """What a cluster needs: more slots the larger it is."""
    return GraphSize(atoms, round(min(4 * atoms**0.6, 60)), round(min(2 * atoms**0.5, 20)))


def cost_of(sizes: GraphSizes, needs: Iterable[GraphSize], *, varies: bool = True) -> tuple[int, int]:
    """Neighbour slots evaluated in all, and those that the structures need with room for a tenth more."""
    spent = least = 0
    for number, needed in enumerate(needs):
        size = sizes.size_for(needed, varies=varies and number > 0)
        assert size.holds(needed)
        assert size.inner <= size.slots
        sizes.count(needed, size)
        spent, least = spent + size.cost, least + needed.atoms * with_room(needed.slots)
    return spent, least


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_clusters_of_any_sizes(order: str) -> None:
    atoms = np.arange(3, 177, 3)
    if order == "random":
        atoms = np.random.default_rng(0).permutation(atoms)
    sizes = GraphSizes()
    spent, least = cost_of(sizes, map(cluster, atoms[:: -1 if order == "descending" else 1].tolist()))
    assert len(sizes.compiled) <= {"random": 6, "ascending": 10, "descending": 1}[order]
    assert spent < least + SLOTS_PER_COMPILATION


def test_one_size_has_no_atoms_to_spare() -> None:
    """Also after a much larger structure, once a compilation has paid for itself."""
    sizes, small = GraphSizes(), cluster(96)
    cost_of(sizes, [small] * 100, varies=False)
    assert sizes.compiled == [GraphSize(96, with_room(small.slots), with_room(small.inner))]
    sizes = GraphSizes()
    cost_of(sizes, [cluster(3000)])
    spent, least = cost_of(sizes, [small] * 10_000)
    assert sizes.compiled[-1].atoms == 96
    assert len(sizes.compiled) == 2
    assert spent < least + 1.2 * SLOTS_PER_COMPILATION


def test_what_is_wasted_is_bounded() -> None:
    """Of many small structures after a huge one, whose sizes change all the time, some sizes are compiled."""
    sizes = GraphSizes()
    cost_of(sizes, [cluster(10_000)])
    atoms = np.random.default_rng(1).integers(3, 40, 20_000)
    spent, least = cost_of(sizes, map(cluster, atoms.tolist()))
    assert 2 <= len(sizes.compiled) <= 8
    assert spent < 3 * least + 20 * SLOTS_PER_COMPILATION


def test_a_size_that_lacks_slots_alone_keeps_its_atoms() -> None:
    sizes = GraphSizes([GraphSize(32, 20, 8), GraphSize(4000, 20, 8)])
    assert sizes.size_for(GraphSize(32, 30, 9)) == GraphSize(32, with_room(30), 10)
