"""Fine-tuning by one linear regression instead of training: what its strategies have in common."""

import abc
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pydantic
from ase import Atoms
from jaxtyping import Float

from jaxmlip.potentials.evaluation import potential_dtype, predict
from jaxmlip.potentials.potential import N_SPECIES, Potential, evaluate, reference_energy, stack
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior
from jaxmlip.training.labels import Labels
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import DEFAULT_SETTINGS, Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.base import Data, Strategy, samples_of


@dataclasses.dataclass(frozen=True)
class Posterior(abc.ABC):
    """What energies say of a correction of a foundation that is linear in its weights.

    Attributes:
        foundation: to be corrected.
        elements: atomic numbers of the labelled samples; shifts of their references are the first block of weights.
        linear: posterior of the weights.
    """

    foundation: Trainable
    elements: tuple[int, ...]
    linear: LinearPosterior

    @abc.abstractmethod
    def with_weights(self, weights: Sequence[Float[np.ndarray, " _"]]) -> Potential:
        """The corrected potential for weights of each block."""

    @abc.abstractmethod
    def features(
        self, graphs: Sequence[Graph]
    ) -> tuple[Float[np.ndarray, " samples"], list[Float[np.ndarray, "samples _"]]]:
        """Energies in eV for weights of 0, relative to the references, and features of all blocks but the first."""

    @abc.abstractmethod
    def force_features(
        self, graphs: Sequence[Graph], directions: Sequence[Float[np.ndarray, "directions _ 3"]]
    ) -> list[Float[np.ndarray, "rows _"]]:
        """Derivatives of Σ_atoms F · direction by the weights of all blocks but the first.

        Args:
            graphs: of single structures.
            directions: for each structure [directions, atoms, 3], the same number for all.

        Returns:
            Rows for the directions of the first structure, then of the next.
        """

    @abc.abstractmethod
    def by_weights(self, slope: Any) -> list[Float[np.ndarray, "*shape _"]]:
        """Derivatives by the weights of all blocks but the first, from those by the parameters of `potential()`.

        Args:
            slope: like the parameters; leaves may have the shape of what is differentiated in front.

        Raises:
            ValueError: if it is like the parameters of something else.
        """

    def potential(self) -> Potential:
        """The most probable potential."""
        return self.with_weights(self.linear.mean())

    def ensemble(self, members: int, seed: int = 0) -> Potential:
        """Potentials drawn from the posterior, stacked for `jax.vmap`; see `spread`."""
        rng = np.random.default_rng(seed)
        return stack([self.with_weights(self.linear.sample(rng)) for _ in range(members)])

    def energies(self, samples: Sequence[Sample]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Energies of samples in eV, relative to the foundation's references, and their standard deviations."""
        energies, features = self.energy_features([sample.graph for sample in samples])
        mean, deviation = self.linear.predict(features)
        return energies + mean, deviation

    def energy_features(
        self, graphs: Sequence[Graph]
    ) -> tuple[Float[np.ndarray, " samples"], list[Float[np.ndarray, "samples _"]]]:
        """Energies in eV for weights of 0, relative to the references, and their derivatives by all weights."""
        energies, features = self.features(graphs)
        return energies, [counts_in(graphs)[:, list(self.elements)], *features]

    def without(self, places: Sequence[int]) -> "Posterior":
        """What is said without some of the labels, with the same variances and noise; see `LinearPosterior.without`."""
        return dataclasses.replace(self, linear=self.linear.without(places))

    def shifted_references(self, shifts: Float[np.ndarray, " elements"]) -> Float[np.ndarray, "119"]:
        """The foundation's references with shifts for the elements, eV."""
        references = np.array(self.foundation.references, np.float64)
        references[list(self.elements)] += shifts
        return references


class ClosedForm(Strategy):
    """Base of the strategies that regress on energies, and train nothing.

    Forces are not looked at, whichever labels are given; nor are epochs, learning rate and other settings of training.
    What is learnt is the difference of the fidelities: where `low` has a label of the same structure, the error of the
    foundation on it is taken out of the high-fidelity energy, for which it would be noise.
    """

    sees: ClassVar[tuple[Labels, ...]] = ("energy",)
    seeded: ClassVar[bool] = False

    @pydantic.model_validator(mode="after")
    def _nothing_is_trained(self) -> "ClosedForm":
        if self.references == "trainable":
            raise ValueError(
                f"references is trainable, but {self.name} trains nothing: it fits references along with the rest, "
                "from wherever they start; choose keep, refit, shift or residual."
            )
        return self

    @abc.abstractmethod
    def posterior(self, problem: TrainingProblem) -> Posterior:
        """All that the training energies of a problem say, with uncertainties."""

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation with the elemental references of the high fidelity, and frames with energies."""
        high = without_errors(data.foundation, data.high, data.low)
        references = self.lifted(data.foundation, high, data.low)
        potential, energy = data.foundation.with_references(references), Terms(True, False, False)
        train, validation = (samples_of(potential, frames, 0) for frames in (high, data.validation))
        names = [describe(frame, number) for number, frame in enumerate(data.high)]
        return TrainingProblem(potential, train, validation, energy, energy, names)

    def solve(
        self,
        problem: TrainingProblem,
        settings: TrainingSettings = DEFAULT_SETTINGS,
        *,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> Trained:
        """The most probable potential; the history has one record, with the error of the validation energies.

        It takes seconds, so that nothing is kept in the folder.
        """
        started = time.perf_counter()
        posterior = self.posterior(problem)
        mean, _ = posterior.energies(problem.validation)
        labels = np.array([sample.energy for sample in problem.validation])
        atoms = np.array([sample.graph.n_atoms for sample in problem.validation])
        record = {
            "epoch": 0,
            "log_evidence": posterior.linear.log_evidence,
            "validation_energy_rmse_meV_atom": 1e3 * float(np.sqrt(np.nanmean(((mean - labels) / atoms) ** 2))),
            "validation_force_rmse_meV_A": np.nan,
            "validation_stress_rmse_GPa": np.nan,
            "wall_s": time.perf_counter() - started,
        }
        return Trained(posterior.potential(), [record], 0, problem)

    def deploy(self, trained: Trained) -> Potential:
        """The most probable potential, as it is."""
        return trained.potential


def without_errors(foundation: Potential, high: Sequence[Frame], low: Sequence[Frame]) -> list[Frame]:
    """High-fidelity frames, each with the foundation's error on the low-fidelity label of the same structure added.

    So that label − foundation is the difference of the labels. Frames of structures without a low-fidelity energy stay
    as they are.
    """
    labels = {_structure(frame.atoms): frame.energy for frame in low if not np.isnan(frame.energy)}
    known = [number for number, frame in enumerate(high) if _structure(frame.atoms) in labels]
    predictions = predict(foundation, [high[number].atoms for number in known])
    corrected = list(high)
    for number, prediction in zip(known, predictions, strict=True):
        error = prediction.energy - labels[_structure(prediction.atoms)]
        corrected[number] = dataclasses.replace(high[number], energy=high[number].energy + error)
    return corrected


def labels_of(samples: Sequence[Sample]) -> Float[np.ndarray, " samples"]:
    """Energies of samples, eV.

    Raises:
        ValueError: for an energy that is absent.
    """
    labels = np.array([sample.energy for sample in samples], np.float64)
    missing = np.flatnonzero(np.isnan(labels))
    if missing.size:
        raise ValueError(f"Sample {missing[0]} has no energy; closed-form fine-tuning needs one of every frame.")
    return labels


def element_counts(samples: Sequence[Sample]) -> Float[np.ndarray, "samples 119"]:
    """Number of atoms of each element."""
    return counts_in([sample.graph for sample in samples])


def counts_in(graphs: Sequence[Graph]) -> Float[np.ndarray, "graphs 119"]:
    """Number of atoms of each element in single graphs."""
    return np.array([np.bincount(np.asarray(g.species), minlength=N_SPECIES) for g in graphs], np.float64)


def elements_in(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Atomic numbers that occur, ascending."""
    return tuple(np.flatnonzero(element_counts(samples).sum(axis=0)).tolist())


def padded(graphs: Sequence[Graph]) -> list[Graph]:
    """Graphs of one shape, so that there is one compilation."""
    shape = {"n_atoms": max(graph.n_atoms for graph in graphs), "slots": max(graph.n_slots for graph in graphs)}
    return [batch_graphs([graph], **shape) for graph in graphs]


def padded_with(
    graphs: Sequence[Graph], directions: Sequence[Float[np.ndarray, "directions _ 3"]]
) -> list[tuple[Graph, Float[np.ndarray, "directions atoms 3"]]]:
    """The same, each with directions that padding atoms do not take part in."""
    found = []
    for graph, ways in zip(padded(graphs), directions, strict=True):
        all_atoms = np.zeros((len(ways), graph.n_atoms, 3), graph.positions.dtype)
        all_atoms[:, : ways.shape[1]] = ways
        found.append((graph, all_atoms))
    return found


def spread(ensemble: Potential, atoms: Atoms) -> tuple[float, Float[np.ndarray, "atoms 3"]]:
    """Standard deviations, over the members of a stack of potentials, of the energy (eV) and of the forces (eV/Å).

    Args:
        ensemble: potentials in a stack, two or more.
        atoms: one structure.
    """
    graph = graph_from_atoms(atoms, ensemble.cutoff, ensemble.inner_cutoff, dtype=potential_dtype(ensemble))
    energies, forces = jax.device_get(_members(ensemble, graph))
    members = [jax.tree.map(lambda leaf, k=k: leaf[k], ensemble) for k in range(len(energies))]
    totals = energies.astype(np.float64) + [reference_energy(member, atoms.numbers) for member in members]
    return float(totals.std(ddof=1)), forces.astype(np.float64).std(axis=0, ddof=1)


@jax.jit
def _members(ensemble: Potential, graph: Graph) -> tuple[Any, Any]:
    def member(potential: Potential) -> tuple[Any, Any]:
        prediction = evaluate(potential, graph)
        return prediction.energy[0], prediction.forces

    return jax.lax.map(member, ensemble)


def _structure(atoms: Atoms) -> tuple[bytes, ...]:
    """What two frames of one structure have in common, whatever file they come from."""
    rounded = (np.round(array, 5) + 0.0 for array in (atoms.positions, np.asarray(atoms.cell)))
    return (atoms.numbers.tobytes(), *(array.tobytes() for array in rounded))
