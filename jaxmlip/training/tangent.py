"""Fine-tuning in closed form: Bayesian regression on the derivatives of a foundation's energy by its parameters.

To first order, E(θ₀ + w) = E(θ₀) + J w with J = ∂E/∂θ: fine-tuning is linear regression, with as many features as there
are parameters and the neural tangent kernel J Jᵀ as its covariance (Jacot et al., NeurIPS 2018, arXiv:1806.07572; for
fine-tuning Maddox et al., AISTATS 2021, arXiv:2103.01439). A few hundred energies make a small matrix, so that nothing
is trained: the posterior is exact, there are no epochs or learning rates to choose, and what remains to be chosen, a
prior scale for each layer and the noise, maximises the marginal likelihood of the training energies
(`fit_by_evidence`). No force takes part in any of it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.evaluation import compiled_evaluate, potential_dtype
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.potential import N_SPECIES, Potential, check_species, stack
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior, fit_by_evidence

NEGLIGIBLE = 1e-12
"""A layer whose features have less than this share of the variance of all has no influence, and no prior scale."""


@dataclasses.dataclass(frozen=True)
class TangentPosterior:
    """What energies say of the change of a foundation's parameters.

    Attributes:
        foundation: with its elemental references moved to the new level of theory.
        elements: atomic numbers whose references may move further; their shifts are the first block of weights.
        layers: names of the parameters of the other blocks, in order.
        linear: posterior of the weights.
    """

    foundation: EquivariantPotential
    elements: tuple[int, ...]
    layers: tuple[str, ...]
    linear: LinearPosterior

    def potential(self) -> LinearizedPotential:
        """The most probable potential."""
        return self._with(self.linear.mean())

    def ensemble(self, members: int, seed: int = 0) -> LinearizedPotential:
        """Potentials drawn from the posterior, stacked for `jax.vmap`; their spread is the uncertainty."""
        rng = np.random.default_rng(seed)
        return stack([self._with(self.linear.sample(rng)) for _ in range(members)])  # pyright: ignore

    def _with(self, weights: Sequence[Float[np.ndarray, " _"]]) -> LinearizedPotential:
        references = np.array(self.foundation.references, np.float64)
        references[list(self.elements)] += weights[0]
        by_layer = dict(zip(self.layers, weights[1:], strict=True))

        def change(path: Any, leaf: Any) -> np.ndarray:
            name = jax.tree_util.keystr(path)
            return np.asarray(by_layer.get(name, np.zeros(leaf.size)), leaf.dtype).reshape(leaf.shape)

        changes = jax.tree_util.tree_map_with_path(change, jax.tree.map(np.asarray, self.foundation.params))
        return LinearizedPotential(self.foundation, changes, references)


def tangent_posterior(foundation: EquivariantPotential, frames: Sequence[Frame]) -> TangentPosterior:
    """The posterior of a change of a foundation that explains energies.

    Args:
        foundation: with references of about the level of theory of the frames (see `lifted_references`).
        frames: labelled with energies; nothing else of their labels is looked at.

    Raises:
        ValueError: if a frame has no energy or an element the foundation does not know, or as `fit_by_evidence`.
    """
    energies, slopes = tangent_features(foundation, [frame.atoms for frame in frames])
    counts = np.array([np.bincount(frame.atoms.numbers, minlength=N_SPECIES) for frame in frames], np.float64)
    labels = np.array([frame.energy for frame in frames]) - counts @ np.asarray(foundation.references, np.float64)
    for number, frame in enumerate(frames):
        if not np.isfinite(frame.energy):
            raise ValueError(f"{describe(frame, number)} has no energy; leave it out, or label it.")
    elements = np.flatnonzero(counts.any(axis=0))
    strengths = {name: float(np.sum(block**2)) for name, block in slopes.items()}
    layers = tuple(name for name in slopes if strengths[name] > NEGLIGIBLE * sum(strengths.values()))
    blocks = [counts[:, elements], *(slopes[name] for name in layers)]
    linear = fit_by_evidence(blocks, labels - energies, counts.sum(axis=1))
    return TangentPosterior(foundation, tuple(elements.tolist()), layers, linear)


def tangent_features(
    foundation: EquivariantPotential, structures: Sequence[Atoms]
) -> tuple[Float[np.ndarray, " frames"], dict[str, Float[np.ndarray, "frames _"]]]:
    """Energies of structures in eV, relative to the elemental references, and their derivatives by each parameter array."""
    graphs = []
    for number, atoms in enumerate(structures):
        try:
            check_species(foundation, atoms.numbers)
            graphs.append(graph_from_atoms(atoms, foundation.cutoff, dtype=potential_dtype(foundation)))
        except ValueError as error:
            raise ValueError(f"Frame {number} ({atoms.symbols}): {error}") from None
    shape = {"n_atoms": max(g.n_atoms for g in graphs), "slots": max(g.n_slots for g in graphs), "n_graphs": 1}
    on_device = jax.device_put(foundation)
    energies, slopes = np.empty(len(graphs)), []
    for number, graph in enumerate(graphs):
        energy, gradient = jax.device_get(_slope(on_device, batch_graphs([graph], **shape)))
        energies[number] = energy
        slopes.append({jax.tree_util.keystr(path): leaf.ravel() for path, leaf in _leaves(gradient)})
    return energies, {name: np.stack([slope[name] for slope in slopes]) for name in slopes[0]}


def spread(
    ensemble: Potential, structures: Sequence[Atoms]
) -> list[tuple[float, Float[np.ndarray, "atoms 3"]]]:
    """Standard deviations over an ensemble of the energy (eV) and of each force component (eV/Å) of structures."""
    first = jax.tree.map(lambda leaf: leaf[0], ensemble)
    results = []
    for atoms in structures:
        graph = graph_from_atoms(atoms, first.cutoff, dtype=potential_dtype(first))
        prediction = jax.device_get(_members(ensemble, graph))
        counts = np.bincount(atoms.numbers, minlength=N_SPECIES)
        energies = prediction.energy[:, 0].astype(np.float64) + np.asarray(ensemble.references, np.float64) @ counts
        results.append((float(energies.std(ddof=1)), prediction.forces.std(axis=0, ddof=1, dtype=np.float64)))
    return results


@jax.jit
def _members(ensemble: Potential, graph: Graph) -> Any:
    return jax.vmap(functools.partial(compiled_evaluate, graph=graph, stress=False))(ensemble)


@jax.jit
def _slope(potential: EquivariantPotential, graph: Graph) -> Any:
    def energy(params: Any) -> Any:
        return potential.replace(params=params).energy(graph)[0]

    return jax.value_and_grad(energy)(potential.params)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
