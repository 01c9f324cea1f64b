"""What works on the host says so to jax, and to those who give it several potentials at once."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from morse import morse

from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.checks import is_stack
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import save
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.pairs import PairPotential
from jaxmlip.potentials.potential import Potential, stack
from jaxmlip.simulation.ensembles import NVE, NVT
from jaxmlip.simulation.relaxation import relax
from jaxmlip.simulation.simulate import simulate
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf, PerAtom

WATER = Atoms("OH2", positions=[[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])


@flax.struct.dataclass
class OnePerAtom(Potential):
    """A potential of a user that is defined for three atoms alone, with a parameter for each."""

    params: Leaf
    references: Leaf

    @property
    def cutoff(self) -> float:
        return 2.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1, 8)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        return self.params * (jnp.asarray(graph.positions) ** 2).sum(-1)


@pytest.fixture(scope="module")
def student() -> EquivariantPotential:
    model = Equivariant(cutoff=4.0, channels=4, l_max=1, layers=1, correlation=1, radial_functions=3, radial_mlp=(5,))
    return model.build((1, 8), average_neighbors=8.0)


def kinds(student: EquivariantPotential) -> dict[str, Potential]:
    pairs = PairPotential(np.ones((3, 6), np.float32), np.zeros(119), (1, 8), 4.0, 0.7)
    return {
        "equivariant": student,
        "sum": student + pairs,
        "low rank": low_rank(student, 2, 0),
        "trainable references": trainable_references(student),
        "linearized": LinearizedPotential(student, student.params, student.references),
        "pairs": pairs,
        "of a user": OnePerAtom(np.ones(3, np.float32), np.zeros(119)),
        "of numbers": morse(),
    }


def test_stacks_of_every_kind(student: EquivariantPotential) -> None:
    for name, potential in kinds(student).items():
        assert not is_stack(potential), name
        assert is_stack(stack([potential] * 3)), name
    for name in ("equivariant", "pairs"):  # parameters alone, as those of an ensemble that shares the rest
        potential: Any = kinds(student)[name]
        assert is_stack(potential.replace(params=stack([potential] * 3).params)), name


def test_reprs_are_short(student: EquivariantPotential) -> None:
    for name, potential in kinds(student).items():
        assert repr(potential).startswith(f"<{type(potential).__name__}: "), name
        assert len(repr(potential)) < 160, name
        assert "cutoff" in repr(potential)
        assert pickle.loads(pickle.dumps(potential)).params is not None, name
    assert repr(morse()) == "<Morse: H O Cu Ag, cutoff 5 Å, 4 parameters (float32)>"
    assert repr(stack([morse()] * 3)) == "<Morse: a stack of 3, H O Cu Ag, cutoff 5 Å, 12 parameters (float32)>"
    assert repr(student).startswith("<EquivariantPotential: 1 layer of 4 channels, H O, cutoff 4 Å, ")
    assert repr(student + morse()).startswith("<Sum: EquivariantPotential + Morse, H O, cutoff 5 Å, ")
    shapes = jax.eval_shape(lambda potential: potential, student)
    assert repr(shapes) == repr(student)
    assert repr(jax.tree.map(lambda _: None, student)).startswith("<EquivariantPotential")


USES: dict[str, Callable[[Any, Path], Any]] = {
    "simulate": lambda potential, _: simulate(potential, WATER, NVE(10.0), steps=20, progress=False),
    "against": lambda potential, _: simulate(morse(), WATER, NVE(10.0), steps=20, against=potential, progress=False),
    "predict": lambda potential, _: predict(potential, [WATER]),
    "Calculator": lambda potential, _: Calculator(potential),
    "relax": lambda potential, _: relax(potential, WATER),
    "save": lambda potential, folder: save(potential, folder / "a.jaxmlip"),
    "simulate ": lambda potential, folder: simulate(potential, WATER, NVE(10.0), to=folder / "a.h5", steps=20),
    "simulate  ": lambda potential, _: simulate([potential], WATER, NVE(10.0), steps=20),
}


@pytest.mark.parametrize("name", USES)
def test_refusals(name: str, student: EquivariantPotential, tmp_path: Path) -> None:
    """One sentence for stacks, one for jax's transformations, before anything is computed or written."""
    use = USES[name]
    for potential in (student, morse()):
        with pytest.raises(
            ValueError, match=rf"{name.strip()} takes one potential, and this is a stack of several: \w+"
        ):
            use(stack([potential] * 2), tmp_path)

    def traced(params: Any) -> Any:
        return use(student.replace(params=params), tmp_path)

    for transformed in (jax.jit(traced), jax.grad(traced)):
        with pytest.raises(ValueError, match="works on the host and cannot be differentiated, compiled or mapped"):
            transformed(student.params)
    assert not list(tmp_path.iterdir())


def test_traced_temperatures_are_refused() -> None:
    def energy(temperature: Any) -> Any:
        ensemble = NVT(300.0)
        object.__setattr__(ensemble, "temperature_K", temperature)  # past the type checks of the tests
        return simulate(morse(), WATER, ensemble, steps=20, progress=False).potential_energy.sum()

    with pytest.raises(ValueError, match="works on the host and cannot be differentiated"):
        jax.grad(energy)(300.0)
