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
import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.trainable import Group, Role, Trainable
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.graph import Graph, batch_graphs
from jaxmlip.training.evidence import fit_by_evidence
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.closed_form import ClosedForm, Posterior, element_counts, elements_in, labels_of
from jaxmlip.training.strategies.registry import register_strategy

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
    """

    arrays: tuple[str, ...]

    def with_weights(self, weights: Sequence[Float[np.ndarray, " _"]]) -> LinearizedPotential:
        """The foundation to first order in a change of its parameters; its cost is about twice the foundation's."""
        by_path = dict(zip(self.arrays, weights[1:], strict=True))

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
        """Energies of the foundation in eV, and their derivatives by the parameters of each block."""
        energies, features = tangent_features(self.foundation, graphs)
        return energies, [features[path] for path in self.arrays]


def tangent_posterior(
    foundation: Trainable, samples: Sequence[Sample], *, roles: Sequence[Role] | None = None
) -> TangentPosterior:
    """The posterior of the change of a foundation's parameters, and of its references, that explains energies.

    Args:
        foundation: with one readout.
        samples: with energies relative to its references; no other label is looked at.
        roles: of the parameters that change; by default all.

    Raises:
        ValueError: for an energy that is absent, if no parameter has one of the roles, and as `fit_by_evidence`.
    """
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
    blocks = [counts[:, list(elements)], *(features[path] for path in arrays)]
    linear = fit_by_evidence(blocks, labels - energies, counts.sum(axis=1))
    return TangentPosterior(foundation, elements, linear, arrays)


def tangent_features(foundation: Trainable, graphs: Sequence[Graph]) -> tuple[Float[np.ndarray, " samples"], Features]:
    """Energies of single graphs in eV, relative to the references, and their derivatives by all parameters."""
    shape = {"n_atoms": max(graph.n_atoms for graph in graphs), "slots": max(graph.n_slots for graph in graphs)}
    on_device = jax.device_put(foundation)
    energies, rows = [], []
    for graph in graphs:
        energy, slope = jax.device_get(_slope(on_device, batch_graphs([graph], **shape)))
        energies.append(float(energy))
        leaves = jax.tree_util.tree_leaves_with_path(slope)
        rows.append({jax.tree_util.keystr(path): leaf.ravel() for path, leaf in leaves})
    return np.array(energies), {path: np.stack([row[path] for row in rows]).astype(np.float64) for path in rows[0]}


@jax.jit
def _slope(potential: Trainable, graph: Graph) -> tuple[Any, Any]:
    """Energy of a graph and its derivative by the parameters."""
    return jax.value_and_grad(lambda params: potential.with_params(params).energy(graph)[0])(potential.params)
