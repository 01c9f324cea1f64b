"""Which labels made a number wrong, and which labels would mend it most.

Both are asked of a posterior that is linear in its weights (`TangentKernel`, `PairDifference`, or `tangent_posterior`
of a potential that has been trained), and of *targets*: numbers that are linear in the weights too, to first order,
such as an average of a simulation through its gradient, or energies and forces of structures that nobody has labelled.

Labels are few and weights are many, so that a fit explains most of each label by itself, and what it leaves of them
says little. All is done in dual form, with matrices of the size [labels, labels]: with the covariance K of the labels,
noise included, and C that of targets and labels, the targets are C K⁻¹ y, and without label i

    t_without − t = (C K⁻¹)_i · e_i,    e_i = −(K⁻¹ y)_i / (K⁻¹)_ii,

where e_i is the error of the prediction of label i by all others (Rasmussen and Williams, Gaussian Processes for
Machine Learning (2006), eq. 5.12). This is exact for the linear model: refitting gives the same. Influence functions
(Koh and Liang, ICML 2017) have the residual of the fit in place of e_i, and so miss a factor 1 / (1 − leverage).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.potentials.evaluation import potential_dtype
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior
from jaxmlip.training.strategies.closed_form import Posterior
from jaxmlip.validation.gradients import Gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """Numbers that one wants to be right, linear in the weights of a posterior.

    Their derivatives may be known with statistical errors that are independent between groups. Where something is
    squared, products of different groups alone are taken, so that noise adds nothing to it on average.

    Attributes:
        features: derivatives by the weights of each block, [groups, targets, weights of the block]; one group if they
            are exact.
        weights: [targets]; with errors e of the targets, Σ weight · e² is the squared error that counts.
    """

    features: Sequence[Float[np.ndarray, "groups targets _"]]
    weights: Float[np.ndarray, " targets"]

    @classmethod
    def forces(
        cls, posterior: Posterior, structures: Sequence[Atoms], *, directions: int = 32, seed: int = 0
    ) -> "Targets":
        """All force components of structures, which need no labels; the squared error is their mean square, (eV/Å)².

        The components are seen along random directions of ±1, the mean of whose squares is the sum over components
        (Hutchinson, Commun. Stat. Simul. Comput. 18, 1059 (1989)), with a relative error of at most √(2 / directions).

        Args:
            posterior: of energies.
            structures: such as frames of the student's own simulation.
            directions: for each structure.
            seed: of the directions.

        Raises:
            ValueError: if there are no structures or directions, or the potential does not know one of them.
        """
        if directions < 1:
            raise ValueError(f"Forces are seen along one direction at least, not {directions}.")
        rng, graphs = np.random.default_rng(seed), _graphs(posterior, structures, "Structure")
        ways = [rng.choice([-1.0, 1.0], (directions, graph.n_atoms, 3)) for graph in graphs]
        features = posterior.force_features(graphs, [each / np.sqrt(each[0].size) for each in ways])
        # References have no forces.
        return cls.exact([np.zeros((len(features[0]), len(posterior.elements))), *features])

    @classmethod
    def energies(cls, posterior: Posterior, structures: Sequence[Atoms]) -> "Targets":
        """Energies per atom of structures, which need no labels; the squared error is their mean square, eV².

        Raises:
            ValueError: if there are no structures, or the potential does not know one of them.
        """
        graphs = _graphs(posterior, structures, "Structure")
        _, features = posterior.energy_features(graphs)
        return cls.exact([block / _sizes(graphs)[:, None] for block in features])

    @classmethod
    def average(cls, posterior: Posterior, slope: Gradient) -> "Targets":
        """An average of a simulation, or a loss of it, by the gradient that `jm.gradient` has found.

        The squared error is the mean over the components of the average. Elemental references have no part in it, for
        they move no atom: ask for averages of energies by `energies`.

        Args:
            posterior: of energies.
            slope: taken at `posterior.potential()`, by covariance or reweighting.

        Raises:
            ValueError: for a gradient of another potential, or of the forward estimator.
        """
        if slope.parts is None:
            raise ValueError("A forward-mode gradient is along a few directions only; take one by all parameters.")
        features = [block.reshape(len(block), -1, block.shape[-1]) for block in posterior.by_weights(slope.parts)]
        groups, outputs = features[0].shape[:2]
        references = np.zeros((groups, outputs, len(posterior.elements)))
        return cls([references, *features], np.full(outputs, 1.0 / outputs))

    @classmethod
    def exact(cls, features: Sequence[Float[np.ndarray, "targets _"]]) -> "Targets":
        """Targets whose derivatives are known exactly; the squared error is the mean over them."""
        return cls([block[None] for block in features], np.full(len(features[0]), 1.0 / len(features[0])))

    def covariance(
        self, linear: LinearPosterior, features: Sequence[Float[np.ndarray, "others _"]], *, prior: bool = False
    ) -> Float[np.ndarray, "groups targets others"]:
        """Covariance with numbers of other features, after the labels, or before them (`prior`)."""
        flat = [block.reshape(-1, block.shape[-1]) for block in self.features]
        found = (linear.prior_covariance if prior else linear.covariance_of)(flat, features)
        return found.reshape(*self.features[0].shape[:2], -1)

    def variance(self, linear: LinearPosterior) -> float:
        """The squared error that a posterior expects."""
        rows = [block.reshape(-1, block.shape[-1]) for block in self.features]
        each = (linear.predict(rows)[1] ** 2).reshape(self.features[0].shape[:2])
        groups = len(each)
        if groups > 1:
            of_sum = linear.predict([block.sum(axis=0) for block in self.features])[1] ** 2
            each = (of_sum - each.sum(axis=0))[None] / (groups * (groups - 1))
        return float(each[0] @ self.weights)

    def squared(self, values: Float[np.ndarray, "groups targets *many"]) -> Float[np.ndarray, "*many"]:
        """The squared error that counts, of what the groups say of the errors."""
        groups = len(values)
        squares = values[0] ** 2
        if groups > 1:
            squares = (values.sum(axis=0) ** 2 - (values**2).sum(axis=0)) / (groups * (groups - 1))
        return np.asarray(np.tensordot(self.weights, squares, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Influence:
    """What each label does to targets; see `influence`.

    Attributes:
        targets: that were asked about.
        changes: [labels, targets], how each target moves if a label is taken away, in the unit of the target.
        squares: [labels], the squared error that these changes would be.
        errors: [labels], prediction − label by all other labels, in eV.
        scores: [labels], these over the standard deviation that is expected of them; far beyond 3, a label is at odds
            with all others.
        leverages: [labels], share of each fitted energy that comes from its own label, from 0 to 1.
        variance_kept: [labels], by how much the expected squared error of the targets would grow without a label.
    """

    targets: Targets
    changes: Float[np.ndarray, "labels targets"]
    squares: Float[np.ndarray, " labels"]
    errors: Float[np.ndarray, " labels"]
    scores: Float[np.ndarray, " labels"]
    leverages: Float[np.ndarray, " labels"]
    variance_kept: Float[np.ndarray, " labels"]

    @property
    def effective_parameters(self) -> float:
        """How many weights the labels have fixed: the sum of the leverages (MacKay's γ), less than there are labels."""
        return float(self.leverages.sum())

    def harm(self, errors: Float[np.ndarray, " targets"]) -> Float[np.ndarray, " labels"]:
        """By how much the squared error of the targets would fall without each label; if positive, it did harm.

        Args:
            errors: [targets], value − what it should be, such as student − teacher.

        Raises:
            ValueError: if there is not one error for each target.
        """
        errors = np.asarray(errors, np.float64)
        if errors.shape != self.targets.weights.shape:
            raise ValueError(f"There are {self.changes.shape[1]} targets, but errors of shape {errors.shape}.")
        return -2.0 * self.changes @ (self.targets.weights * errors) - self.squares


@dataclasses.dataclass(frozen=True, eq=False)
class LabelChoice:
    """Structures to label next; see `choose_labels`.

    Attributes:
        places: numbers of the candidates, in the order in which they were chosen.
        variances: [chosen + 1], the squared error of the targets that is expected before the first label and after
            each.
    """

    places: Int[np.ndarray, " chosen"]
    variances: Float[np.ndarray, " _"]


def influence(posterior: Posterior | LinearPosterior, targets: Targets) -> Influence:
    """How targets would change without each of the labels that a posterior has seen, prior and noise kept.

        posterior = jm.TangentKernel().posterior(problem)
        slope = jm.gradient(run, posterior.potential(), jm.RDF("O", "O"), temperature_K=250)
        found = jm.influence(posterior, jm.Targets.average(posterior, slope))

    Labels count in the order in which the posterior has seen them. Of a potential that was trained by gradients, ask
    `jm.tangent_posterior(trained, samples, start=foundation)`: there the answer holds to first order. Several labels
    together are not the sum of single ones; `posterior.without(places)` is what the others say.

    Args:
        posterior: of energies, or a linear model of one's own.
        targets: made with it.
    """
    linear = posterior if isinstance(posterior, LinearPosterior) else posterior.linear
    own, errors = np.diag(linear.precision), linear.left_out()
    pulls = targets.covariance(linear, linear.features, prior=True) @ linear.precision
    changes = pulls * errors
    return Influence(
        targets=targets,
        changes=changes.mean(axis=0).T,
        squares=targets.squared(changes),
        errors=errors,
        scores=errors * np.sqrt(own),
        leverages=1.0 - linear.noise**2 * linear.sizes * own,
        variance_kept=targets.squared(pulls) / own,
    )


def choose_labels(posterior: Posterior, candidates: Sequence[Atoms], targets: Targets, number: int) -> LabelChoice:
    """The structures whose energies, once labelled, would reduce the expected squared error of targets most.

    They are chosen one after the other, each by what it adds to those before it, so that of two structures that say the
    same one is taken (Bayesian A-optimality; Chaloner and Verdinelli, Statist. Sci. 10, 273 (1995)). No label of a
    candidate takes part: what is expected depends on structures, prior and noise alone. Derivatives are held in memory,
    8 bytes for each candidate (and target) and parameter. Expected is what the model knows of: errors that it cannot
    have, and priors that few labels have misled, are not in it.

    Args:
        posterior: of the energies that there are.
        candidates: without labels. Leave out what has been labelled already: noise is here what the model cannot
            explain, which the same label for a second time would not reduce.
        targets: made with the posterior.
        number: how many to choose.

    Raises:
        ValueError: if there are fewer candidates than asked for, the potential does not know one of them, no labelled
            structure has one of its elements, or the gradient behind the targets is too noisy to say what is gained.
    """
    if not 1 <= number <= len(candidates):
        raise ValueError(f"There are {len(candidates)} candidates, of which {number} cannot be chosen.")
    graphs = _graphs(posterior, candidates, "Candidate")
    linear = posterior.linear
    before = targets.variance(linear)
    if not before > 0:
        raise ValueError(
            "The gradient of the targets is noise: the expected squared error, from products of different groups of "
            f"frames, is {before:.2g}. Take the gradient of a longer simulation, or choose by Targets.forces."
        )
    _, features = posterior.energy_features(graphs)
    among, cross = linear.covariance_of(features, features), targets.covariance(linear, features)
    places, gains = greedy_choice(among, cross, linear.noise**2 * _sizes(graphs), targets, number)
    return LabelChoice(places, before - np.concatenate([[0.0], np.cumsum(gains)]))


def greedy_choice(
    among: Float[np.ndarray, "candidates candidates"],
    cross: Float[np.ndarray, "groups targets candidates"],
    noise: Float[np.ndarray, " candidates"],
    targets: Targets,
    number: int,
) -> tuple[Int[np.ndarray, " chosen"], Float[np.ndarray, " chosen"]]:
    """Candidates whose labels reduce the expected squared error of targets most, one by one, and by how much each does.

    After each choice the covariances are conditioned on its label, which is an update of rank one.

    Args:
        among: covariance of the candidates' energies, without noise.
        cross: covariance of targets and candidates.
        noise: variance of the noise of each candidate's label, positive.
        targets: what counts.
        number: how many to choose.
    """
    among, cross = among.copy(), cross.copy()
    unlabelled = np.ones(len(among), bool)
    places, gains = [], []
    for _ in range(number):
        spread = np.maximum(np.diag(among), 0.0) + noise
        expected = np.where(unlabelled, targets.squared(cross) / spread, -np.inf)
        best = int(np.argmax(expected))
        places.append(best)
        gains.append(expected[best])
        unlabelled[best] = False
        share = among[best] / spread[best]
        cross -= np.multiply.outer(cross[..., best], share)
        among -= np.outer(among[best], share)
    return np.array(places), np.array(gains)


def _sizes(graphs: Sequence[Graph]) -> Float[np.ndarray, " graphs"]:
    """Numbers of atoms, which the variance of the noise of an energy goes with."""
    return np.array([graph.n_atoms for graph in graphs], np.float64)


def _graphs(posterior: Posterior, structures: Sequence[Atoms], word: str) -> list[Graph]:
    """Structures as the foundation reads them, if it can and their references are known."""
    if len(structures) == 0:
        raise ValueError("There are no structures whose energies or forces could be asked about.")
    foundation, graphs = posterior.foundation, []
    for number, atoms in enumerate(structures):
        try:
            foundation.check(atoms)
            unseen = set(atoms.numbers.tolist()) - set(posterior.elements)
            if unseen:
                raise ValueError(
                    f"no labelled structure has the element of atomic number {min(unseen)}, so that its reference "
                    "energy is unknown; label one first."
                )
            cutoffs = foundation.cutoff, foundation.inner_cutoff
            graphs.append(graph_from_atoms(atoms, *cutoffs, dtype=potential_dtype(foundation)))
        except ValueError as error:
            raise ValueError(f"{word} {number} ({atoms.symbols}): {error}") from None
    return graphs
