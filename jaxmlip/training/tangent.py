"""Fine-tuning in closed form: Bayesian regression on the derivatives of a foundation's energy by its parameters.

To first order, E(θ₀ + w) = E(θ₀) + J w with J = ∂E/∂θ: fine-tuning is linear regression, with as many features as there
are parameters and the neural tangent kernel J Jᵀ as covariance (Jacot et al., NeurIPS 2018, arXiv:1806.07572; for
fine-tuning Maddox et al., AISTATS 2021, arXiv:2103.01439). A few hundred energies make a small matrix, so that nothing
is trained: the posterior is exact, there are no epochs or learning rates to choose, and what remains to be chosen, a
prior scale for each array of parameters and the noise, maximises the marginal likelihood of the training energies
(`fit_by_evidence`). No force takes part in any of it.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.evaluation import potential_dtype
from jaxmlip.potentials.linearized import LinearizedPotential
from jaxmlip.potentials.potential import N_SPECIES, Potential, evaluate, stack
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.dataset import describe
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior, fit_by_evidence
from jaxmlip.training.loss import Terms
from jaxmlip.training.strategy import Data, Strategy, samples_of
from jaxmlip.training.trainer import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings

NEGLIGIBLE = 1e-12
"""An array whose derivatives have less than this share of the variance of all has no influence, and no prior scale."""

Features: TypeAlias = dict[str, Float[np.ndarray, "samples _"]]
"""Derivatives of the energies of samples by each array of parameters, by its path."""


class TangentKernel(Strategy):
    """Closed-form Bayesian fine-tuning in the tangent space of the foundation, from energies alone.

    Forces are not looked at, whichever labels are given; nor are epochs, learning rate and other settings of training.
    """

    name: Literal["tangent_kernel"] = "tangent_kernel"

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with the elemental references of the high fidelity, and frames with energies."""
        references = self.lifted(data.foundation, data.high, data.low)
        potential, energy = data.foundation.replace(references=references), Terms(True, False, False)
        train, validation = (samples_of(potential, frames, 0) for frames in (data.high, data.validation))
        names = [describe(frame, number) for number, frame in enumerate(data.high)]
        return TrainingProblem(potential, train, validation, energy, energy, names)

    def solve(
        self, problem: TrainingProblem, settings: TrainingSettings = DEFAULT_SETTINGS, *, progress: bool = True
    ) -> Trained:
        """The most probable potential; the history has one record, with the error of the validation energies."""
        started = time.perf_counter()
        posterior = self.posterior(problem)
        mean, _ = posterior.energies(problem.validation)
        errors = [
            (energy - sample.energy) / sample.graph.n_atoms
            for energy, sample in zip(mean, problem.validation, strict=True)
        ]
        record = {
            "epoch": 0,
            "log_evidence": posterior.linear.log_evidence,
            "validation_energy_rmse_meV_atom": 1e3 * float(np.sqrt(np.nanmean(np.square(errors)))),
            "validation_force_rmse_meV_A": np.nan,
            "validation_stress_rmse_GPa": np.nan,
            "wall_s": time.perf_counter() - started,
        }
        return Trained(posterior.potential(), [record], 0, problem)

    def posterior(self, problem: TrainingProblem) -> "TangentPosterior":
        """All that the energies of a problem say, with uncertainties."""
        assert isinstance(problem.potential, EquivariantPotential)
        return tangent_posterior(problem.potential, problem.train)

    def deploy(self, trained: Trained) -> Potential:
        """The linearised potential."""
        return trained.potential


@dataclasses.dataclass(frozen=True)
class TangentPosterior:
    """What energies say of the change of a foundation's parameters.

    Attributes:
        foundation: to be changed.
        elements: atomic numbers of the labelled samples; shifts of their references are the first block of weights.
        arrays: paths of the parameters in the other blocks, in order.
        linear: posterior of the weights.
    """

    foundation: EquivariantPotential
    elements: tuple[int, ...]
    arrays: tuple[str, ...]
    linear: LinearPosterior

    def potential(self) -> LinearizedPotential:
        """The most probable potential."""
        return self._with(self.linear.mean())

    def ensemble(self, members: int, seed: int = 0) -> LinearizedPotential:
        """Potentials drawn from the posterior, stacked for `jax.vmap`; see `spread`."""
        rng = np.random.default_rng(seed)
        return stack([self._with(self.linear.sample(rng)) for _ in range(members)])  # pyright: ignore[reportReturnType]

    def energies(self, samples: Sequence[Sample]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Energies of samples in eV, relative to the foundation's references, and their standard deviations."""
        energies, features = tangent_features(self.foundation, [sample.graph for sample in samples])
        mean, deviation = self.linear.predict(self._blocks(samples, features))
        return energies + mean, deviation

    def _blocks(self, samples: Sequence[Sample], features: Features) -> list[Float[np.ndarray, "samples _"]]:
        return _blocks(samples, features, self.elements, self.arrays)

    def _with(self, weights: Sequence[Float[np.ndarray, " _"]]) -> LinearizedPotential:
        references = np.array(self.foundation.references, np.float64)
        references[list(self.elements)] += weights[0]
        by_path = dict(zip(self.arrays, weights[1:], strict=True))

        def change(path: Any, leaf: Any) -> np.ndarray:
            values = by_path.get(jax.tree_util.keystr(path), np.zeros(leaf.size))
            return np.asarray(values, leaf.dtype).reshape(leaf.shape)

        return LinearizedPotential(
            base=self.foundation.replace(references=references),
            change=jax.tree_util.tree_map_with_path(change, self.foundation.params),
            references=references,
        )


def tangent_posterior(foundation: EquivariantPotential, samples: Sequence[Sample]) -> TangentPosterior:
    """The posterior of the change of a foundation's parameters, and of its references, that explains energies.

    Args:
        foundation: with one readout.
        samples: with energies relative to its references; no other label is looked at.

    Raises:
        ValueError: for an energy that is absent, and as `fit_by_evidence`.
    """
    labels = np.array([sample.energy for sample in samples], np.float64)
    missing = np.flatnonzero(np.isnan(labels))
    if missing.size:
        raise ValueError(f"Sample {missing[0]} has no energy; closed-form fine-tuning needs one of every frame.")
    energies, features = tangent_features(foundation, [sample.graph for sample in samples])
    elements = tuple(np.flatnonzero(np.sum(_counts(samples), axis=0)).tolist())
    strengths = {path: float(np.sum(array**2)) for path, array in features.items()}
    arrays = tuple(path for path in features if strengths[path] > NEGLIGIBLE * sum(strengths.values()))
    sizes = np.array([sample.graph.n_atoms for sample in samples], np.float64)
    linear = fit_by_evidence(_blocks(samples, features, elements, arrays), labels - energies, sizes)
    return TangentPosterior(foundation, elements, arrays, linear)


def tangent_features(
    foundation: EquivariantPotential, graphs: Sequence[Graph]
) -> tuple[Float[np.ndarray, " samples"], Features]:
    """Energies of single graphs in eV, relative to the references, and their derivatives by all parameters."""
    shape = {"n_atoms": max(graph.n_atoms for graph in graphs), "slots": max(graph.n_slots for graph in graphs)}
    on_device = jax.device_put(foundation)
    energies, rows = [], []
    for graph in graphs:
        energy, slope = jax.device_get(_slope(on_device, batch_graphs([graph], **shape)))
        energies.append(float(energy))
        rows.append({jax.tree_util.keystr(path): leaf.ravel() for path, leaf in _leaves(slope)})
    return np.array(energies), {path: np.stack([row[path] for row in rows]).astype(np.float64) for path in rows[0]}


def spread(ensemble: Potential, atoms: Atoms) -> tuple[float, Float[np.ndarray, "atoms 3"]]:
    """Standard deviations, over the members of a stack of potentials, of the energy (eV) and of the forces (eV/Å).

    Args:
        ensemble: potentials in a stack, two or more.
        atoms: one structure.
    """
    graph = graph_from_atoms(atoms, ensemble.cutoff, ensemble.inner_cutoff, dtype=potential_dtype(ensemble))
    energies, forces = jax.device_get(_members(ensemble, graph))
    references = np.asarray(ensemble.references, np.float64)[:, atoms.numbers].sum(axis=1)
    totals = energies.astype(np.float64) + references
    return float(totals.std(ddof=1)), forces.astype(np.float64).std(axis=0, ddof=1)


@jax.jit
def _members(ensemble: Potential, graph: Graph) -> tuple[Any, Any]:
    def member(potential: Potential) -> tuple[Any, Any]:
        prediction = evaluate(potential, graph)
        return prediction.energy[0], prediction.forces

    return jax.lax.map(member, ensemble)


@jax.jit
def _slope(potential: EquivariantPotential, graph: Graph) -> tuple[Any, Any]:
    """Energy of a graph and its derivative by the parameters."""
    return jax.value_and_grad(lambda params: potential.replace(params=params).energy(graph)[0])(potential.params)


def _blocks(
    samples: Sequence[Sample], features: Features, elements: Sequence[int], arrays: Sequence[str]
) -> list[Float[np.ndarray, "samples _"]]:
    """Features as the posterior has them: numbers of atoms of each element, then the derivatives."""
    return [_counts(samples)[:, list(elements)], *(features[path] for path in arrays)]


def _counts(samples: Sequence[Sample]) -> Float[np.ndarray, "samples 119"]:
    return np.array([np.bincount(np.asarray(s.graph.species), minlength=N_SPECIES) for s in samples], np.float64)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)
