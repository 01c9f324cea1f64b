"""Fine-tuning in closed form: Bayesian regression on the derivatives of a foundation's energy by its parameters.

To first order, E(θ₀ + w) = E(θ₀) + J w with J = ∂E/∂θ: fine-tuning is linear regression, with as many features as there
are parameters and the neural tangent kernel J Jᵀ as covariance (Jacot et al., NeurIPS 2018, arXiv:1806.07572; for
fine-tuning Maddox et al., AISTATS 2021, arXiv:2103.01439). A few hundred energies make a small matrix, so that nothing
is trained: the posterior is exact, there are no epochs or learning rates to choose, and what remains to be chosen, a
prior scale for each array of parameters and the noise, maximises the marginal likelihood of the training energies
(`fit_by_evidence`). No force takes part in any of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.trainable import Group, Role, Trainable
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.graph import Graph
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

NEGLIGIBLE = 1e-12
"""An array whose derivatives have less than this share of the variance of all has no influence, and no prior scale."""

Features: TypeAlias = dict[str, Float[np.ndarray, "samples _"]]
"""Derivatives of the energies of samples by each array of parameters, by its path."""


@register_strategy
class TangentKernel(ClosedForm):
    """Closed-form Bayesian fine-tuning in the tangent space of the foundation, from energies alone."""

    name: Literal["tangent_kernel"] = "tangent_kernel"

    def posterior(self, problem: TrainingProblem) -> "TangentPosterior":
        """All that the training energies of a problem say, with uncertainties."""
        assert isinstance(problem.potential, Trainable)  # what `problem` has accepted
        return tangent_posterior(problem.potential, problem.train)


@dataclasses.dataclass(frozen=True)
class TangentPosterior(Posterior):
    """What energies say of the change of a foundation's parameters.

    Attributes:
        arrays: paths of the parameters in the blocks after the first, in order.
        moved: of those parameters, how far the foundation has come from where weights are 0; empty if it is there.
    """

    arrays: tuple[str, ...]
    moved: Sequence[Float[np.ndarray, " _"]] = ()

    def with_weights(self, weights: Sequence[Float[np.ndarray, " _"]]) -> LinearizedPotential:
        """The foundation to first order in a change of its parameters; its cost is about twice the foundation's."""
        changes = [w - m for w, m in zip(weights[1:], self.moved, strict=True)] if self.moved else weights[1:]
        by_path = dict(zip(self.arrays, changes, strict=True))

        def change(path: Any, leaf: Any) -> np.ndarray:
            values = by_path.get(jax.tree_util.keystr(path), np.zeros(leaf.size))
            return np.asarray(values, leaf.dtype).reshape(leaf.shape)

        references = self.shifted_references(weights[0])
        return LinearizedPotential(
            base=self.foundation.with_references(references),
            change=jax.tree_util.tree_map_with_path(change, self.foundation.params),
            references=references,
        )

    def features(
        self, graphs: Sequence[Graph]
    ) -> tuple[Float[np.ndarray, " samples"], list[Float[np.ndarray, "samples _"]]]:
        """Energies in eV for weights of 0, and their derivatives by the parameters of each block."""
        energies, features = tangent_features(self.foundation, graphs)
        blocks = [features[path] for path in self.arrays]
        return energies - _explained(blocks, self.moved), blocks

    def force_features(
        self, graphs: Sequence[Graph], directions: Sequence[Float[np.ndarray, "directions _ 3"]]
    ) -> list[Float[np.ndarray, "rows _"]]:
        """Derivatives by the parameters of each block; each direction costs a few energies."""
        on_device = jax.device_put(self.foundation)
        pairs = padded_with(graphs, directions)
        found = [self._blocks_of(jax.device_get(_force_slopes(on_device, graph, ways))) for graph, ways in pairs]
        return [np.concatenate(blocks) for blocks in zip(*found, strict=True)]

    def by_weights(self, slope: Any) -> list[Float[np.ndarray, "*shape _"]]:
        """From derivatives by the change of the linearised foundation, or by the parameters of the foundation."""
        of_change = slope["change"] if isinstance(slope, dict) and set(slope) == {"base", "change"} else slope
        if jax.tree.structure(of_change) != jax.tree.structure(self.foundation.params):
            raise ValueError(
                "The derivative is not by the parameters of the foundation or of its linearisation; take it at "
                "posterior.potential()."
            )
        return self._blocks_of(of_change)

    def _blocks_of(self, slope: Any) -> list[Float[np.ndarray, "*shape _"]]:
        """Leaves like the parameters, with further axes in front, as the arrays of the blocks."""
        ours = jax.tree_util.tree_leaves_with_path(self.foundation.params)
        axes = {jax.tree_util.keystr(path): np.ndim(leaf) for path, leaf in ours}
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(slope)}
        shapes = {path: np.shape(leaves[path])[: np.ndim(leaves[path]) - axes[path]] for path in self.arrays}
        return [np.asarray(leaves[path], np.float64).reshape(*shapes[path], -1) for path in self.arrays]


def tangent_posterior(
    foundation: Trainable,
    samples: Sequence[Sample],
    *,
    start: Trainable | None = None,
    roles: Sequence[Role] | None = None,
) -> TangentPosterior:
    """The posterior of the change of a foundation's parameters, and of its references, that explains energies.

    Args:
        foundation: with one readout.
        samples: with energies relative to its references; no other label is looked at.
        start: for a potential that has been trained on these samples already, what that training started from: the
            prior is about its parameters, and the expansion about those of the trained potential (the Gauss–Newton
            form of Laplace's approximation, MacKay, Neural Computation 4, 448 (1992)). By default both are the
            foundation's own.
        roles: of the parameters that change; by default all.

    Raises:
        ValueError: for an energy that is absent, a start of another architecture, if no parameter has one of the roles,
            and as `fit_by_evidence`.
    """
    if start is not None and _shapes(start) != _shapes(foundation):
        raise ValueError(
            "The start of the training has other parameters than the trained potential; give the foundation it began "
            "from, with one readout."
        )
    labels = labels_of(samples)
    energies, features = tangent_features(foundation, [sample.graph for sample in samples])
    strengths = {path: float(np.sum(array**2)) for path, array in features.items()}
    arrays = tuple(path for path in features if strengths[path] > NEGLIGIBLE * sum(strengths.values()))
    if roles is not None:
        groups = jax.tree_util.tree_leaves_with_path(foundation.groups(), is_leaf=lambda leaf: isinstance(leaf, Group))
        chosen = {jax.tree_util.keystr(path) for path, group in groups if group.role in roles}
        arrays = tuple(path for path in arrays if path in chosen)
        if not arrays:
            raise ValueError(f"No parameter of this {type(foundation).__name__} is {' or '.join(roles)}.")
    counts, elements = element_counts(samples), elements_in(samples)
    moved = () if start is None else _moved(start, foundation, arrays)
    slopes = [features[path] for path in arrays]
    at_zero = energies - _explained(slopes, moved)
    linear = fit_by_evidence([counts[:, list(elements)], *slopes], labels - at_zero, counts.sum(axis=1))
    return TangentPosterior(foundation, elements, linear, arrays, moved)


def _moved(start: Trainable, end: Trainable, arrays: Sequence[str]) -> list[Float[np.ndarray, " _"]]:
    """How far parameters have come, by array."""
    steps = jax.tree.map(lambda one, other: np.asarray(other, np.float64) - np.asarray(one), start.params, end.params)
    by_path = {jax.tree_util.keystr(path): leaf.ravel() for path, leaf in jax.tree_util.tree_leaves_with_path(steps)}
    return [by_path[path] for path in arrays]


def _explained(blocks: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> Any:
    """Σ_blocks X w; 0 if there are no weights."""
    return sum(x @ w for x, w in zip(blocks, weights, strict=True)) if weights else 0.0


def _shapes(potential: Trainable) -> Any:
    """Paths and shapes of the parameters."""
    return [(path, np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(potential.params)]


def tangent_features(foundation: Trainable, graphs: Sequence[Graph]) -> tuple[Float[np.ndarray, " samples"], Features]:
    """Energies of single graphs in eV, relative to the references, and their derivatives by all parameters."""
    on_device = jax.device_put(foundation)
    energies, rows = [], []
    for graph in padded(graphs):
        energy, slope = jax.device_get(_slope(on_device, graph))
        energies.append(float(energy))
        leaves = jax.tree_util.tree_leaves_with_path(slope)
        rows.append({jax.tree_util.keystr(path): leaf.ravel() for path, leaf in leaves})
    return np.array(energies), {path: np.stack([row[path] for row in rows]).astype(np.float64) for path in rows[0]}


@jax.jit
def _slope(potential: Trainable, graph: Graph) -> tuple[Any, Any]:
    """Energy of a graph and its derivative by the parameters."""
    return jax.value_and_grad(lambda params: potential.with_params(params).energy(graph)[0])(potential.params)


@jax.jit
def _force_slopes(potential: Trainable, graph: Graph, directions: Float[AnyArray, "directions atoms 3"]) -> Any:
    """Derivatives of Σ F · direction by the parameters: reverse mode over forward mode, one direction at a time."""

    def along(params: Any, direction: Any) -> Any:
        def energy(positions: Any) -> Any:
            return potential.with_params(params).energy(graph.replace(positions=positions))[0]

        return -jax.jvp(energy, (jnp.asarray(graph.positions),), (direction,))[1]

    return jax.lax.map(lambda direction: jax.grad(along)(potential.params, direction), directions)
