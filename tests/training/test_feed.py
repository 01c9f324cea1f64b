"""What batches say of their elements, for potentials that read it."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from simple_potentials import lennard_jones

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.systems.batches import Sample, count, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.feed import Feed, make_feed

REFERENCES = np.zeros(119)


def many_elements() -> EquivariantPotential:
    return Equivariant(channels=2, l_max=1, correlation=1, layers=1, radial_mlp=(4,)).build(
        range(1, 60), average_neighbors=10.0
    )


def samples(*formulas: str) -> list[Sample]:
    """Rock salt of these elements."""
    crystals: list[Atoms] = [bulk(formula, "rocksalt", a=5.5) for formula in formulas]
    return make_samples([Frame(atoms, 0.0, np.zeros((2, 3))) for atoms in crystals], 4.0, 0.0, REFERENCES)


def elements(feed: Feed) -> set[tuple[int, int]]:
    return {feed.load(indices).graph.elements for indices in feed.epoch([None] * len(feed.plans))}


@pytest.mark.parametrize(
    ("formulas", "said"),
    [
        (["NaCl", "NaCl", "NaCl"], (2, 0)),
        (["NaCl", "KCl", "NaF"], (4, 0)),
        (["NaCl", "KF", "LiBr"], (0, 2)),
    ],
)
def test_batches_say_how_many_elements_there_are(formulas: list[str], said: tuple[int, int]) -> None:
    """Counted in all samples, so that all batches share a program."""
    assert elements(make_feed(many_elements(), [samples(*formulas)], 1, 1, None)) == {said}
    assert elements(make_feed(lennard_jones(), [samples(*formulas)], 1, 1, None)) == {(0, 0)}


def test_models_of_different_samples_share_a_program() -> None:
    """Elements are counted over all models."""
    feed = make_feed(many_elements(), [samples("NaCl", "KCl"), samples("MgO", "CaO")], 2, 1, None)
    assert elements(feed) == {(0, 2)}


def test_elements_are_counted() -> None:
    counts = count(samples("NaCl", "KCl", "MgO"))
    assert counts.elements_in() == (5, 2)
    assert counts.of(np.array([0, 1])).elements_in() == (3, 2)
    assert counts.of(np.array([], int)).elements_in() == (0, 0)
