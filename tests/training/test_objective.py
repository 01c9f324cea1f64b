"""Terms of one's own beside the labels': they are trained, summed exactly, and told apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from water_pairs import HIGH, LOW

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.training.checkpoints import fingerprint
from jaxmlip.training.loss import Terms, predicted
from jaxmlip.training.objective import Term, TermSums
from jaxmlip.training.parallel import DATA
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.stacking import stacked_potentials, stacked_validation
from jaxmlip.training.step import measure, update
from jaxmlip.training.trainer import train, train_many
from jaxmlip.types import Leaf
from jaxmlip.units import GPA

ENERGY = Terms(True, False, False)
SETTINGS = TrainingSettings(epochs=20, batch_size=4, learning_rate=0.005, ema_decay=0.9)

NO_BATCH: Any = None
"""The terms here look at structures of their own."""


class Pressure(Term):
    """Squared error of the pressure of one structure, GPa²."""

    graph: Graph
    target: Leaf
    weight: Leaf = 1.0

    def __call__(self, potential, batch) -> dict[str, TermSums]:
        stress: Any = predicted(potential, jnp.zeros(1, jnp.int32), self.graph, True).stress  # pyright: ignore
        error = -jnp.trace(stress[0]) / 3 / GPA - self.target
        return {"pressure": TermSums(error**2, error**2, 1.0)}

    def weights(self) -> dict[str, Any]:
        return {"pressure": self.weight}


class LongestForce(Term):
    """Of each structure, (eV/Å)²: a quantity with a value for every graph."""

    def __call__(self, potential, batch) -> dict[str, TermSums]:
        forces: Any = predicted(potential, batch.head, batch.graph, False).forces  # pyright: ignore
        square = jnp.sum(forces**2, axis=1)
        longest = jax.ops.segment_max(square, batch.graph.owner, batch.graph.n_graphs + 1)[:-1]
        real = batch.index >= 0
        return {"longest force": TermSums(jnp.where(real, longest, 0.0), jnp.where(real, longest, 0.0), 1.0 * real)}

    def weights(self) -> dict[str, Any]:
        return {"longest force": 0.0}


@pytest.fixture(scope="module")
def problem(high) -> TrainingProblem:
    """Energies of HIGH alone, from LOW's parameters, which say little of the pressure."""
    start = LOW.replace(references=HIGH.references)
    training, held_out = (make_samples(part, 4.0, 0.0, HIGH.references) for part in (high[:8], high[24:30]))
    return TrainingProblem(start, training, held_out, ENERGY, ENERGY)


@pytest.fixture(scope="module")
def pressure(clusters) -> Pressure:
    """What HIGH gives for a cluster in a box."""
    boxed = clusters[0].copy()
    boxed.set_cell([9.0, 9.0, 9.0])
    boxed.set_pbc(True)
    graph = jax.tree.map(np.asarray, graph_from_atoms(boxed, 4.0))
    zero = Pressure(graph, 0.0)
    target = float(np.sqrt(pressure_loss(zero, HIGH)))
    off = [abs(pressure_loss(zero.replace(target=sign * target), HIGH)) for sign in (1, -1)]
    return zero.replace(target=target if off[0] < off[1] else -target, weight=0.1)


@jax.jit
def compiled_loss(pressure: Pressure, potential: Potential) -> Any:
    return pressure(potential, NO_BATCH)["pressure"].loss


def pressure_loss(pressure: Pressure, potential: Potential) -> float:
    return float(compiled_loss(pressure, potential))


def test_training_lowers_a_term_from_outside(problem, pressure):
    """Far below what labels alone leave of it; the history has its value, which is that of the potential."""
    given = dataclasses.replace(problem, objective=(pressure,))
    with_it, without = (train(one, SETTINGS, progress=False) for one in (given, problem))
    start = pressure_loss(pressure, problem.potential)
    assert pressure_loss(pressure, with_it.potential) < 0.05 * min(start, pressure_loss(pressure, without.potential))
    first, best = with_it.history[0], with_it.history[with_it.best_epoch]
    assert first["validation_pressure_loss"] == pytest.approx(start, rel=1e-4)
    assert best["validation_pressure_loss"] == pytest.approx(
        pressure_loss(pressure, with_it.potential), rel=0.05, abs=1e-5
    )
    labels = (first["validation_loss"] - 0.1 * start) / without.history[0]["validation_loss"]
    assert labels == pytest.approx(1.0, rel=1e-3)
    assert "validation_pressure_loss" not in without.history[0]


def test_numbers_of_a_term_are_traced(problem, pressure):
    """Other targets and weights share the compiled step; another structure of terms has its own."""
    short = SETTINGS.model_copy(update={"epochs": 1})
    train(dataclasses.replace(problem, objective=(pressure,)), short, progress=False)
    compiled = update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    other = pressure.replace(target=pressure.target + 1, weight=3.0)
    train(dataclasses.replace(problem, objective=(other,)), short, progress=False)
    assert update._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]


def test_sums_do_not_depend_on_batches_or_devices(problem, pressure):
    """A mean over batches of any size, and over the devices of a mesh, is what it would be in one batch."""
    given = dataclasses.replace(problem, objective=(pressure, LongestForce()))
    potential = stacked_potentials([given]).with_params(jax.tree.map(lambda leaf: leaf[None], given.potential.params))
    objective = stacked_validation([given], [SETTINGS])

    def means(size: int, mesh: Mesh | None = None) -> dict[str, float]:
        place = (None, None) if mesh is not None else (None,)
        batches = jax.tree.map(lambda leaf: np.asarray(leaf)[place], make_batches(problem.validation, size))
        found = [jax.device_get(measure(potential, batch, objective, mesh=mesh)[0]) for batch in batches]
        assert {np.ndim(sums["pressure"].loss) for sums in found} == {1}
        added = jax.tree.map(lambda *parts: sum(float(np.sum(part)) for part in parts), *found)
        return {name: term.loss / term.count for name, term in added.items()}

    whole = means(6)
    assert whole["pressure"] == pytest.approx(pressure_loss(pressure, problem.potential), rel=1e-5)
    assert whole["longest force"] > 0
    assert means(2) == pytest.approx(whole, rel=1e-5)
    assert means(6, Mesh(np.array(jax.devices()[:1]), (DATA,))) == pytest.approx(whole, rel=1e-5)


def test_mistakes_are_named(problem, pressure):
    twice = dataclasses.replace(problem, objective=(pressure, pressure))
    with pytest.raises(ValueError, match="Two terms of the objective give pressure; rename it"):
        train(twice, SETTINGS, progress=False)
    given = dataclasses.replace(problem, objective=(pressure,))
    with pytest.raises(ValueError, match="cannot be trained as one stack: their objectives have different further"):
        train_many([problem, given], SETTINGS, progress=False)
    heavier = dataclasses.replace(problem, objective=(pressure.replace(weight=2.0),))
    prints = {fingerprint([one], [SETTINGS]) for one in (problem, given, heavier)}
    assert len(prints) == 3, "checkpoints of other objectives are refused"
