"""Members of a family of pytrees are told apart by jax though their fields are alike."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import pytest
from simple_potentials import LennardJones, SmoothLennardJones, lennard_jones

from jaxmlip.simulation.ensembles import Langevin
from jaxmlip.simulation.states import BasicState
from jaxmlip.training.objective import Term


class Other(Langevin):
    """Has the fields of its base."""


class OtherState(BasicState):
    """Likewise."""


class First(Term):
    """A term without fields."""

    def __call__(self, potential: Any, batch: Any) -> Any:
        raise NotImplementedError

    def weights(self) -> Any:
        raise NotImplementedError


class Second(First):
    """Another."""


@pytest.mark.parametrize(
    ("one", "other", "make"),
    [
        (Langevin, Other, lambda kind: kind(1.0, 2.0)),
        (BasicState, OtherState, lambda kind: kind(*range(4))),
        (LennardJones, SmoothLennardJones, lambda kind: kind(lennard_jones().params)),
        (First, Second, lambda kind: kind()),
    ],
)
def test_classes_are_part_of_the_structure(one: type, other: type, make: Callable[[type], Any]) -> None:
    """What jax compares when it looks for a compiled function; mapping and replacing keep it."""
    structure = jax.tree.structure
    assert structure(make(one)) == structure(make(one))
    assert structure(make(one)) != structure(make(other))
    mapped: Any = jax.tree.map(lambda leaf: leaf, make(other))
    assert type(mapped) is other
    assert structure(mapped.replace()) == structure(make(other))
    assert "node_class" not in repr(mapped)


def test_jax_needs_it() -> None:
    """If this fails, jax tells all classes apart again, and `pytrees.Distinct` is needed by older versions alone."""

    class One(flax.struct.PyTreeNode):
        x: Any

    class Two(flax.struct.PyTreeNode):
        x: Any

    fixed = jax.__version_info__ < (0, 10)
    assert (jax.tree.structure(One(1)) == jax.tree.structure(Two(1))) != fixed
