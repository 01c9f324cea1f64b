"""The difference of two fidelities as a sum over pairs: Gaussian processes of the distance, from energies alone.

Much of what two levels of theory disagree on is one smooth function of the distance for each pair of elements. A few
hundred energies determine such functions, and with them the forces, where networks trained on energies find forces that
are several times worse. Each function is a Gaussian process of ln r: Gaussians on even centres, whose coefficients have
a squared-exponential covariance. Amplitudes, the share of each length scale, the noise and the range are those of
largest marginal likelihood (`fit_by_evidence`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import pydantic
from jaxtyping import Array, Float

from jaxmlip.potentials.evaluation import potential_dtype
from jaxmlip.potentials.pairs import PairPotential, element_pairs, log_centres
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.graph import Graph, atoms_from_graph, graph_from_atoms
from jaxmlip.training.evidence import fit_by_evidence
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.closed_form import (
    ClosedForm,
    Posterior,
    element_counts,
    elements_in,
    labels_of,
    padded,
    padded_with,
)
from jaxmlip.training.strategies.registry import register_strategy
from jaxmlip.types import AnyArray

CENTRES = 40
"""Basis functions of each pair of elements; their distance is far below the length scales."""

SHORTEST = 0.7
"""Å; below the shortest bonds of all elements but hydrogen's with itself."""

JITTER = 1e-6
"""Share of independent variance in the coefficients, for the Cholesky factor of their smooth covariance."""


@register_strategy
class PairDifference(ClosedForm):
    """The foundation plus a potential of pairs, fitted to energies in closed form."""

    name: Literal["pair_difference"] = "pair_difference"
    cutoffs: tuple[float, ...] = pydantic.Field(
        default=(5.0, 7.0), min_length=1, description="ranges of the pairs to choose from by evidence, Å"
    )
    length_scales: tuple[float, ...] = pydantic.Field(
        default=(0.2, 0.5, 1.0), min_length=1, description="of the pair functions, in ln r; evidence sets their shares"
    )

    def posterior(self, problem: TrainingProblem) -> "PairPosterior":
        """All that the training energies of a problem say, with uncertainties."""
        assert isinstance(problem.potential, Trainable)  # what `problem` has accepted
        found = [
            pair_posterior(problem.potential, problem.train, cutoff=cutoff, length_scales=self.length_scales)
            for cutoff in self.cutoffs
        ]
        return max(found, key=lambda posterior: posterior.linear.log_evidence)


@dataclasses.dataclass(frozen=True)
class PairPosterior(Posterior):
    """What energies say of the pair functions that are added to a foundation.

    Attributes:
        empty: pair potential of coefficients 0, which says what the functions are made of.
        blocks: number of the pair of elements, and length scale in ln r, of each block after the first.
    """

    empty: PairPotential
    blocks: tuple[tuple[int, float], ...]

    def with_weights(self, weights: Sequence[Float[np.ndarray, " _"]]) -> Potential:
        """The sum of the foundation and a pair potential."""
        coefficients = np.zeros(self.empty.params.shape)
        for (pair, scale), values in zip(self.blocks, weights[1:], strict=True):
            coefficients[pair] += smooth(self.empty, scale) @ values
        shifts = self.shifted_references(weights[0]) - np.asarray(self.foundation.references, np.float64)
        dtype = potential_dtype(self.foundation)
        return self.foundation + self.empty.replace(params=coefficients.astype(dtype), references=shifts)

    def features(
        self, graphs: Sequence[Graph]
    ) -> tuple[Float[np.ndarray, " samples"], list[Float[np.ndarray, "samples _"]]]:
        """Energies of the foundation in eV, and the functions of each block, summed over the pairs of a graph."""
        return energies_of(self.foundation, graphs), block_features(self.empty, self.blocks, graphs)

    def force_features(
        self, graphs: Sequence[Graph], directions: Sequence[Float[np.ndarray, "directions _ 3"]]
    ) -> list[Float[np.ndarray, "rows _"]]:
        """Minus the derivatives of the functions of each block along the directions."""
        on_device = jax.device_put(self.empty)
        pairs = padded_with(_with_own_neighbors(self.empty, graphs), directions)
        found = [jax.device_get(_functions_along(on_device, graph, ways)) for graph, ways in pairs]
        return _in_blocks(self.empty, self.blocks, -np.concatenate(found).astype(np.float64))

    def by_weights(self, slope: Any) -> list[Float[np.ndarray, "*shape _"]]:
        """From derivatives by the parameters of the foundation and by the coefficients of the pair functions."""
        shape = np.shape(self.empty.params)
        if not isinstance(slope, tuple) or len(slope) != 2 or np.shape(slope[1])[-2:] != shape:
            raise ValueError(
                "The derivative is not by the parameters of the sum of the foundation and its pair functions; take it "
                "at posterior.potential()."
            )
        return _in_blocks(self.empty, self.blocks, np.asarray(slope[1], np.float64))


def pair_posterior(
    foundation: Trainable, samples: Sequence[Sample], *, cutoff: float, length_scales: Sequence[float]
) -> PairPosterior:
    """The posterior of pair functions, and of shifts of the references, that explain what a foundation lacks.

    Args:
        foundation: with one readout.
        samples: with energies relative to its references; no other label is looked at.
        cutoff: range of the functions, Å.
        length_scales: of their priors, in ln r.

    Raises:
        ValueError: for an energy that is absent, a cutoff or length scale that is not positive (or a cutoff within
            `SHORTEST`), and as `fit_by_evidence`.
    """
    if cutoff <= SHORTEST or min(length_scales) <= 0:
        raise ValueError(
            f"Pair functions need a cutoff beyond {SHORTEST} Å and positive length scales, not {cutoff} Å and "
            f"{tuple(length_scales)}."
        )
    labels, counts = labels_of(samples), element_counts(samples)
    shape = (len(element_pairs(foundation.species)), CENTRES)
    empty = PairPotential(
        params=np.zeros(shape, potential_dtype(foundation)),
        references=np.zeros(N_SPECIES),
        known=foundation.species,
        reach=float(cutoff),
        shortest=SHORTEST,
    )
    graphs, elements = [sample.graph for sample in samples], elements_in(samples)
    present = np.flatnonzero(pair_functions(empty, graphs).any(axis=(0, 2)))
    blocks = tuple((int(pair), float(scale)) for pair in present for scale in length_scales)
    features = [counts[:, list(elements)], *block_features(empty, blocks, graphs)]
    linear = fit_by_evidence(features, labels - energies_of(foundation, graphs), counts.sum(axis=1))
    return PairPosterior(foundation, elements, linear, empty, blocks)


def block_features(
    potential: PairPotential, blocks: Sequence[tuple[int, float]], graphs: Sequence[Graph]
) -> list[Float[np.ndarray, "samples centres"]]:
    """For each pair of elements and length scale, the smooth functions of the prior, summed over a graph's pairs."""
    return _in_blocks(potential, blocks, pair_functions(potential, graphs))


def _in_blocks(
    potential: PairPotential, blocks: Sequence[tuple[int, float]], functions: Float[np.ndarray, "*shape pairs centres"]
) -> list[Float[np.ndarray, "*shape centres"]]:
    """What the weights of each block multiply, from what the coefficients multiply."""
    return [functions[..., pair, :] @ smooth(potential, scale) for pair, scale in blocks]


def pair_functions(potential: PairPotential, graphs: Sequence[Graph]) -> Float[np.ndarray, "samples pairs centres"]:
    """What the coefficients of a pair potential multiply in the energy of each graph; with neighbours of its own."""
    on_device = jax.device_put(potential)
    own = padded(_with_own_neighbors(potential, graphs))
    return np.array([jax.device_get(_summed(on_device, graph)) for graph in own], np.float64)


def _with_own_neighbors(potential: PairPotential, graphs: Sequence[Graph]) -> list[Graph]:
    """The same structures, with neighbour lists that reach as far as the pair functions."""
    structures = [atoms_from_graph(graph)[0] for graph in graphs]
    return [graph_from_atoms(atoms, potential.cutoff, dtype=potential_dtype(potential)) for atoms in structures]


def energies_of(foundation: Potential, graphs: Sequence[Graph]) -> Float[np.ndarray, " samples"]:
    """Energies in eV, relative to the references."""
    on_device = jax.device_put(foundation)
    return np.array([float(_energy(on_device, graph)) for graph in padded(graphs)])


@jax.jit
def _summed(potential: PairPotential, graph: Graph) -> Float[Array, "pairs centres"]:
    return potential.functions(graph).sum(axis=0)


@jax.jit
def _functions_along(
    potential: PairPotential, graph: Graph, directions: Float[AnyArray, "directions atoms 3"]
) -> Float[Array, "directions pairs centres"]:
    """Derivatives of the summed functions along displacements."""
    _, slope = jax.linearize(lambda x: potential.functions(graph.replace(positions=x)).sum(axis=0), graph.positions)
    return jax.lax.map(slope, directions)


@jax.jit
def _energy(potential: Potential, graph: Graph) -> Float[Array, ""]:
    return potential.energy(graph)[0]


def smooth(potential: PairPotential, scale: float) -> Float[np.ndarray, "centres centres"]:
    """Cholesky factor of the covariance of the coefficients of one pair, in a prior of this length scale."""
    centres = log_centres(potential.shortest, potential.reach, potential.params.shape[-1])
    distances = (centres[:, None] - centres) / scale
    return np.linalg.cholesky(np.exp(-0.5 * distances**2) + JITTER * np.eye(len(centres)))
