"""A force error that is predicted without a force of the high fidelity: posterior, misfit, and surrogates of the truth.

A posterior over corrections that are linear in their weights knows how far the labels determine these weights, and
nothing of what no weights can describe. That shows in energies, as the noise that the evidence needs for labels which
have none: σ eV for each √atom. Where the part that is not described varies over a length ℓ, it has forces of σ/ℓ, so

    s² = within² + (σ/ℓ)²,   ln(found / s) ~ μ ± τ,

with the posterior's own force error `within`. ℓ, μ and τ are learnt where forces cost nothing: the same strategy, from
the same clusters, learns the difference between other potentials (surrogates), whose forces on the same structures are
there to be looked at. ℓ makes the spread of the logarithms least, μ is their mean, and the interval is Student's for
one more draw. Of S surrogates, each is predicted by the others; the fraction that lies in its interval is reported.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from jaxtyping import Float
from scipy import stats

from jaxmlip.observables.estimate import Estimate
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import atoms_from_graph
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.closed_form import ClosedForm, Posterior, element_counts, spread

FEWEST = 5
"""Surrogates below which a spread of their errors is not to be trusted."""

INVERSE_LENGTHS = np.append(0.0, np.geomspace(0.3, 30.0, 41))
"""1/ℓ in 1/Å to choose from: 0 if misfit has no forces, 30 if nothing but misfit counts."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two potentials, or of two sets of labels.

    Attributes:
        energies: of the clusters that a strategy learns from, [clusters], eV.
        forces: in the structures that the error is wanted of, [atoms of all, 3], eV/Å.
    """

    energies: Float[np.ndarray, " clusters"]
    forces: Float[np.ndarray, "atoms 3"]


@dataclasses.dataclass(frozen=True)
class SurrogateFit:
    """What a strategy did to a surrogate of the truth, in eV and eV/Å.

    Attributes:
        name: of the surrogate.
        within: force error that the posterior expects, root mean square over components.
        noise: σ, misfit of the energies for each √atom.
        found: force error that it has.
    """

    name: str
    within: float
    noise: float
    found: float

    def size(self, inverse_length: float) -> float:
        """S for a length."""
        return math.hypot(self.within, self.noise * inverse_length)


@dataclasses.dataclass(frozen=True)
class ForceErrorCertificate:
    """A predicted force error, eV/Å, root mean square over components.

    Attributes:
        predicted: median.
        low, high: ends of the interval.
        level: probability of the interval.
        within: what the posterior alone says.
        noise: σ, misfit of the energies for each √atom, eV.
        inverse_length: 1/ℓ, 1/Å.
        coverage: fraction of surrogates that lie in the interval that the others give.
        surrogates: what all rests on.
    """

    predicted: float
    low: float
    high: float
    level: float
    within: float
    noise: float
    inverse_length: float
    coverage: float
    surrogates: tuple[SurrogateFit, ...]

    @property
    def logarithm(self) -> Estimate:
        """The logarithm of the force error over 1 eV/Å, whose distribution is Student's; for `calibration`."""
        dof = len(self.surrogates) - 1.0
        error = math.log(self.high / self.predicted) / stats.t.ppf(0.5 + 0.5 * self.level, dof)
        number = len(self.surrogates)
        return Estimate(np.array(math.log(self.predicted)), np.array(error), float(number), number, dof=dof)

    def __str__(self) -> str:
        """The prediction in words."""
        return (
            f"force error {1e3 * self.predicted:.0f} meV/Å, {100 * self.level:.0f} % within {1e3 * self.low:.0f} to "
            f"{1e3 * self.high:.0f} ({len(self.surrogates)} surrogates, of which such intervals hold "
            f"{100 * self.coverage:.0f} %; the posterior alone says {1e3 * self.within:.0f})"
        )


def force_error_certificate(
    strategy: ClosedForm,
    problem: TrainingProblem,
    structures: Sequence[Atoms],
    surrogates: Mapping[str, Potential | tuple[Potential, Potential] | Difference],
    *,
    level: float = 0.9,
    draws: int = 24,
    seed: int = 0,
) -> ForceErrorCertificate:
    """Predict the force error of an energies-only student in structures of which no label exists.

        problem = jm.PairDifference().problem(student, clusters, validation=held_out, low=cheap, labels="energy")
        others = {"GGA": jm.load("chgnet:gga"), "r2SCAN − GGA": (jm.load("chgnet:r2scan"), jm.load("chgnet:gga")), …}
        print(jm.force_error_certificate(jm.PairDifference(), problem, bulk, others))

    The error is that of the correction: forces of the student minus those of its foundation against high − low.

    Args:
        strategy: `PairDifference`, `TangentKernel`, or another closed form.
        problem: of the strategy.
        structures: that the error is wanted of.
        surrogates: by name, potentials to be lifted to from the foundation, or pairs (to, from), or differences that
            are known already. The more alike to the real difference of levels, and to each other's independence, the
            better; of scaled copies of one potential nothing can be learnt. `FEWEST` or more.
        level: of the interval.
        draws: from each posterior.
        seed: of the draws.

    Raises:
        ValueError: for too few surrogates, a level that is no probability, no structures, or a surrogate that does not
            fit these or does not differ from what it is lifted from.
    """
    _check(surrogates, level)
    if not structures:
        raise ValueError("There are no structures to predict the force error of.")
    posterior = strategy.posterior(problem)
    clusters = [atoms_from_graph(sample.graph)[0] for sample in problem.train]
    counts = element_counts(problem.train)[:, list(posterior.elements)]
    base, _ = posterior.features([sample.graph for sample in problem.train])
    own = np.concatenate([each.forces for each in predict(posterior.foundation, structures)])
    fits = []
    for name, surrogate in surrogates.items():
        known = _difference(name, surrogate, posterior.foundation, clusters, structures)
        # What differs in proportion to the composition is a matter of references, which a strategy fits beforehand.
        energies = known.energies - counts @ np.linalg.lstsq(counts, known.energies, rcond=None)[0]
        train = [dataclasses.replace(s, energy=float(e)) for s, e in zip(problem.train, base + energies, strict=True)]
        fitted = strategy.posterior(dataclasses.replace(problem, train=train))
        lifted = np.concatenate([each.forces for each in predict(fitted.potential(), structures)])
        found = float(np.sqrt(np.mean((lifted - own - known.forces) ** 2)))
        fits.append(SurrogateFit(name, within(fitted, structures, draws, seed), fitted.linear.noise, found))
    return certified(within(posterior, structures, draws, seed), posterior.linear.noise, fits, level)


def within(posterior: Posterior, structures: Sequence[Atoms], draws: int = 24, seed: int = 0) -> float:
    """Force error that a posterior expects, root mean square over components, eV/Å."""
    ensemble = posterior.ensemble(draws, seed)
    return float(np.sqrt(np.mean(np.concatenate([spread(ensemble, each)[1] for each in structures]) ** 2)))


def certified(
    within: float, noise: float, surrogates: Sequence[SurrogateFit], level: float = 0.9
) -> ForceErrorCertificate:
    """The certificate for a posterior of which `within` and `noise` are known; see `force_error_certificate`.

    Raises:
        ValueError: for too few surrogates, a level that is no probability, or a surrogate without a force error.
    """
    _check(surrogates, level)
    for each in surrogates:
        if not (each.found > 0 and each.within > 0 and math.isfinite(each.found)):
            raise ValueError(f"The surrogate {each.name} has no force error that tells anything ({each.found} eV/Å).")
    center, half, inverse_length = _calibrated(surrogates, level)
    size = math.hypot(within, noise * inverse_length)
    held = []
    for one in surrogates:
        middle, width, length = _calibrated([other for other in surrogates if other is not one], level)
        held.append(abs(math.log(one.found / one.size(length)) - middle) <= width)
    return ForceErrorCertificate(
        predicted=size * math.exp(center),
        low=size * math.exp(center - half),
        high=size * math.exp(center + half),
        level=level,
        within=within,
        noise=noise,
        inverse_length=inverse_length,
        coverage=float(np.mean(held)),
        surrogates=tuple(surrogates),
    )


def _calibrated(surrogates: Sequence[SurrogateFit], level: float) -> tuple[float, float, float]:
    """μ, half the width of the interval of ln(found / s), and 1/ℓ."""
    within, noise, found = np.array([[one.within, one.noise, one.found] for one in surrogates]).T
    logs = np.log(found / np.hypot(within, noise * INVERSE_LENGTHS[:, None]))
    best = int(np.argmin(logs.std(axis=1)))
    number = len(surrogates)
    half = stats.t.ppf(0.5 + 0.5 * level, number - 1) * logs[best].std(ddof=1) * math.sqrt(1.0 + 1.0 / number)
    return float(logs[best].mean()), float(half), float(INVERSE_LENGTHS[best])


def _check(surrogates: Mapping | Sequence, level: float) -> None:
    if len(surrogates) < FEWEST:
        raise ValueError(f"There are {len(surrogates)} surrogates, and an interval needs {FEWEST} or more.")
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval lies between 0 and 1, not {level!r}.")


def _difference(
    name: str,
    surrogate: Potential | tuple[Potential, Potential] | Difference,
    foundation: Potential,
    clusters: Sequence[Atoms],
    structures: Sequence[Atoms],
) -> Difference:
    """What a surrogate is to be lifted by."""
    if not isinstance(surrogate, Difference):
        to, start = surrogate if isinstance(surrogate, tuple) else (surrogate, foundation)
        predicted = [predict(each, [*clusters, *structures]) for each in (to, start)]
        energies = [np.array([frame.energy for frame in frames[: len(clusters)]]) for frames in predicted]
        forces = [np.concatenate([frame.forces for frame in frames[len(clusters) :]]) for frames in predicted]
        surrogate = Difference(energies[0] - energies[1], forces[0] - forces[1])
    atoms = sum(map(len, structures))
    if surrogate.energies.shape != (len(clusters),) or surrogate.forces.shape != (atoms, 3):
        raise ValueError(
            f"The surrogate {name} has {surrogate.energies.size} energies and forces {surrogate.forces.shape}, where "
            f"there are {len(clusters)} clusters and {atoms} atoms in the structures."
        )
    if not surrogate.forces.any():
        raise ValueError(
            f"The surrogate {name} has the forces of what it is lifted from; give a potential that differs."
        )
    return surrogate
