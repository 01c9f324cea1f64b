"""What labels ask for: errors of energy per atom, forces, stress and magnetic moments, over labels that are there."""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxmlip.potentials.potential import Potential, Prediction, evaluate
from jaxmlip.systems.batches import Batch
from jaxmlip.systems.graph import Graph, strained
from jaxmlip.training.objective import Objective, Term, TermSums
from jaxmlip.types import AnyArray, Leaf, Matrices, PerAtom, PerGraph, Vectors

LossKind: TypeAlias = Literal["huber", "mse"]


class Terms(NamedTuple):
    """Which terms a loss has; static, because what is not in the loss is not computed."""

    energy: bool = True
    forces: bool = True
    stress: bool = False
    magmoms: bool = False


DEFAULT_TERMS = Terms()

OF_ATOMS = ("forces", "magmoms")
"""Terms that have components of each atom, the others of each structure."""


class Weights(flax.struct.PyTreeNode):
    """Numbers of the loss. They are traced: strategies and studies that differ in them share one compiled step.

    Attributes:
        energy: weight of the energy per atom (error in eV/atom).
        forces: weight of the forces (eV/Å).
        stress: weight of the stress (eV/Å³).
        magmoms: weight of the magnetic moments' magnitudes (μB).
        huber_delta: error beyond which the Huber loss is linear, in the unit of each term.
        huber_deltas: the same by term, where it is another.
    """

    energy: Leaf = 1.0
    forces: Leaf = 10.0
    stress: Leaf = 0.0
    magmoms: Leaf = 0.0
    huber_delta: Leaf = 0.01
    huber_deltas: dict[str, Leaf] = flax.struct.field(default_factory=dict)


def loss(
    potential: Potential, batch: Batch, weights: Weights, *, terms: Terms = DEFAULT_TERMS, kind: LossKind = "huber"
) -> tuple[Float[AnyArray, ""], dict[str, TermSums]]:
    """Weighted sum over terms of the mean over the components that have a label.

    The energy is compared per atom (as in MACE and NequIP), forces and stress by Cartesian component, and magnetic
    moments by their magnitude, whatever the sign of the label: which way up is no property of the structure. Each graph
    is predicted by the readout of its own fidelity (`Batch.head`).

    It can be differentiated by the potential and by positions and cells of the structures, in reverse mode, and its
    gradient once more in either mode: `jax.jvp` of `jax.grad` is a Hessian-vector product (see `predicted`).

    Args:
        potential: energies relative to the references that the batch's labels are relative to.
        batch: NaN marks an absent label.
        weights: of the terms.
        terms: terms to compute (static); without forces and stress, no gradient of the energy is taken.
        kind: "huber" (½e² up to δ, δ(|e| − ½δ) beyond: Huber, Ann. Math. Statist. 35, 73 (1964)) or "mse" (e²).

    Returns:
        The loss, and each term's sums for `total` and `rmse`.
    """
    objective = Objective((LabelErrors(weights, terms, kind),))
    sums = objective.sums(potential, batch)
    return objective.total(sums), sums


class LabelErrors(Term):
    """The term of an objective that every training has: errors of energy per atom, forces, stress, moments.

    Attributes:
        numbers: weights, and Huber's δ.
        labels: which of them are compared (static).
        kind: of penalty (static), see `loss`.
    """

    numbers: Weights
    labels: Terms = flax.struct.field(pytree_node=False, default=DEFAULT_TERMS)
    kind: LossKind = flax.struct.field(pytree_node=False, default="huber")

    def __call__(self, potential: Potential, batch: Batch) -> dict[str, TermSums]:
        """Sums of each label, [graphs]."""
        sums = {}
        for name, (error, present, weight) in errors(potential, batch, self.labels).items():
            by_graph = batch.graph.sum_over_atoms if name in OF_ATOMS else lambda of_graphs: of_graphs
            delta = self.numbers.huber_deltas.get(name, self.numbers.huber_delta)
            penalty = weight * _penalty(error, delta, self.kind)
            components = (penalty, error**2, present.astype(error.dtype))
            sums[name] = TermSums(*(by_graph(part.sum(tuple(range(1, part.ndim)))) for part in components))
        return sums

    def weights(self) -> dict[str, Any]:
        """Of energy, forces, stress and magnetic moments."""
        return {name: getattr(self.numbers, name) for name, compared in self.labels._asdict().items() if compared}


def errors(potential: Potential, batch: Batch, terms: Terms) -> dict[str, tuple[AnyArray, AnyArray, AnyArray]]:
    """For each term: prediction − label (0 where there is no label), where there is one, and the samples' weights.

    Shapes: [graphs] for the energy (eV/atom), [atoms, 3] for forces (eV/Å), [graphs, 3, 3] for stress (eV/Å³), [atoms]
    for magnetic moments (μB).
    """
    batch = jax.tree.map(jnp.asarray, batch)  # so that a batch on the host may meet traced parameters
    graph = batch.graph
    if terms.forces or terms.stress:
        prediction: Prediction = predicted(potential, batch.head, graph, terms.stress, terms.magmoms)  # pyright: ignore
    else:
        energy, moments = _energy_and_moments(Headed(potential, batch.head), graph, terms.magmoms)
        prediction = Prediction(energy=energy, forces=None, magmoms=moments)

    found = {}
    if terms.energy:
        per_atom = 1.0 / jnp.maximum(graph.atoms_per_graph(), 1.0)
        found["energy"] = (*_difference(prediction.energy * per_atom, batch.energy * per_atom), batch.weight)
    of_atoms = batch.weight[jnp.minimum(graph.owner, graph.n_graphs - 1)]
    if terms.forces:
        found["forces"] = (*_difference(prediction.forces, batch.forces), of_atoms[:, None])
    if terms.stress:
        solid = graph.volume()[:, None, None] > 0
        label = jnp.where(solid, batch.stress, jnp.nan)
        found["stress"] = (*_difference(prediction.stress, label), batch.weight[:, None, None])
    if terms.magmoms:
        found["magmoms"] = (*_difference(prediction.magmoms, jnp.abs(batch.magmoms)), of_atoms)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def predicted(
    potential: Potential, head: Int[AnyArray, " graphs"], graph: Graph, stress: bool, magmoms: bool = False
) -> Prediction:
    """Energies, forces and, if asked for, stresses of a batch, with a gradient that costs less than autodiff's.

    Forces and stresses are first derivatives of the energy, and what a loss L needs of their derivatives is one number:
    with c, v, s and m the derivatives of L by energies, forces, stresses and magnetic moments M,

        dL = d [ Σ c E + d/dt Σ E(R − t v, ε = t s / V) + Σ m M ],   c, v, s and m held constant,

    by parameters θ, positions R and cells alike (the volume V is a function of the cell). That is reverse mode over a
    single forward derivative, where differentiating the forces' own reverse pass would be reverse over reverse: equal
    numbers, a quarter less time, and a fraction of memory and compilation. Nothing in the rule is a rule of its own, so
    that the gradient can be differentiated again: `jvp` of `grad` is forward over reverse over forward.

    Args:
        potential: energies and their derivatives.
        head: readout that answers for each graph.
        graph: structures; a gradient by positions and cell costs little beside the one by the potential, and nothing in
            a compiled program that does not use it.
        stress: see `evaluate`.
        magmoms: see `evaluate`.
    """
    return evaluate(Headed(potential, head), graph, stress=stress, magmoms=magmoms)


def _predicted_forward(
    potential: Potential, head: Int[AnyArray, " graphs"], graph: Graph, stress: bool, magmoms: bool
) -> tuple[Prediction, tuple]:
    # Not `predicted` itself: a custom rule within a custom rule has no forward derivative.
    return evaluate(Headed(potential, head), graph, stress=stress, magmoms=magmoms), (potential, head, graph)


def _predicted_backward(stress: bool, magmoms: bool, kept: tuple, by_prediction: Prediction) -> tuple[Any, None, Any]:
    potential, head, graph = kept

    def along(potential: Potential, graph: Graph) -> Float[AnyArray, ""]:
        strain = jnp.zeros_like(graph.cell)
        if stress:
            volume = graph.volume()[:, None, None]
            strain = jnp.where(volume > 0, by_prediction.stress / jnp.where(volume > 0, volume, 1.0), 0.0)

        def outputs(at: tuple[Vectors, Matrices]) -> tuple[PerGraph, PerAtom | None]:
            placed = strained(graph, *at) if stress else graph.replace(positions=at[0])
            return _energy_and_moments(Headed(potential, head), placed, magmoms)

        here = (graph.positions, jnp.zeros_like(graph.cell))
        energy, slope, moments = jax.jvp(outputs, (here,), ((-by_prediction.forces, strain),), has_aux=True)
        total = jnp.sum(by_prediction.energy * energy) + jnp.sum(slope)
        return total if moments is None else total + jnp.sum(by_prediction.magmoms * moments)

    by_potential, by_graph = jax.grad(along, argnums=(0, 1), allow_int=True)(potential, graph)
    return by_potential, None, by_graph


predicted.defvjp(_predicted_forward, _predicted_backward)


def _energy_and_moments(potential: Potential, graph: Graph, magmoms: bool) -> tuple[PerGraph, PerAtom | None]:
    """Energies, and magnetic moments only if they are asked for."""
    return potential.energy_and_moments(graph) if magmoms else (potential.energy(graph), None)


def _difference(prediction: AnyArray, label: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Error and presence; a `where` on both sides keeps NaN out of value and gradient."""
    present = ~jnp.isnan(label)
    return jnp.where(present, prediction, 0.0) - jnp.where(present, label, 0.0), present


def _penalty(error: AnyArray, delta: AnyArray | float, kind: LossKind) -> AnyArray:
    if kind == "mse":
        return error**2
    near = jnp.minimum(jnp.abs(error), delta)
    return 0.5 * near**2 + delta * (jnp.abs(error) - near)


@flax.struct.dataclass
class Headed(Potential):
    """A potential that answers for each graph with the readout of that graph's fidelity.

    Attributes:
        potential: with any number of readouts.
        head: [graphs], which readout answers.
    """

    potential: Potential
    head: Leaf

    @property
    def params(self) -> Any:
        return self.potential.params

    @property
    def references(self) -> Any:
        return self.potential.references

    @property
    def cutoff(self) -> float:
        return self.potential.cutoff

    @property
    def inner_cutoff(self) -> float:
        return self.potential.inner_cutoff

    @property
    def species(self) -> tuple[int, ...]:
        return self.potential.species

    def atomic_energies(self, graph: Graph) -> PerAtom:
        return self._chosen(self.potential.readouts(graph), graph)

    @property
    def has_magnetic_moments(self) -> bool:
        return self.potential.has_magnetic_moments

    def energy_and_moments(self, graph: Graph) -> tuple[PerGraph, PerAtom | None]:
        energies, moments = self.potential.outputs(graph)
        energy = graph.sum_over_atoms(self._chosen(energies, graph))
        return energy, None if moments is None else self._chosen(moments, graph)

    def _chosen(self, readouts: Float[AnyArray, "atoms heads"], graph: Graph) -> PerAtom:
        """Of each atom the number of its graph's head."""
        if readouts.shape[1] == 1:
            return readouts[:, 0]
        head = self.head[jnp.minimum(graph.owner, graph.n_graphs - 1)]
        return jnp.take_along_axis(readouts, head[:, None], axis=1)[:, 0]
