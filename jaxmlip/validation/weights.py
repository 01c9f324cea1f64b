"""Averages of one potential's ensemble from another's frames: reweighting, over one run or many, and free energies.

Frames x_n of K runs, of N_k frames each, of states with reduced energies u_k are samples of their mixture. With

    q_kn = exp(f_k − u_k(x_n)) / Σ_j N_j exp(f_j − u_j(x_n)),   Σ_n q_kn = 1,

(MBAR: Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008)) the second condition gives the free energies f_k of the
sampled states, and weights q_tn in which any other state t has the average ⟨A⟩ = Σ_n q_tn A_n. With one run this is
plain reweighting, q_n ∝ exp(u_k − u_t). A reduced energy is βU at constant volume and β(U + PV) at constant pressure,
with β and P of that state: between potentials at one pressure PV cancels, between state points it does not.

Errors are those of the estimators linearised about their values. Let Q be the matrix of q_kn, w that of the target:

    δ⟨A⟩ = Σ_n ψ_n,   ψ_n = w_n (A_n − ⟨A⟩) − c · J⁺ q_n,   J_kj = δ_kj − N_j Σ_n q_kn q_jn,
    c_j = −N_j Σ_n q_jn w_n (A_n − ⟨A⟩),

where the second term is that of the f_k, which are known no better than the rest. Frames of different runs are
independent and those of one are correlated: the variance of each run's sum is that of `statistics.correlated_mean`. So
correlation in time, of values and of weights, is part of every error, and so are replicas.

Self-normalised weights are biased by order 1/N: the jackknife over replicas removes that.

The fraction of frames that is left, (Σ w)²/Σ w² (Kish), looks good where not one frame is typical of the target. With
Gaussian differences of u of spread s it would be exp(−s²), which is seen in the bulk of the differences and not in
their tail; the smaller of the two decides whether a number is given.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import logsumexp

from jaxmlip.observables.estimate import Estimate, Status, welch_satterthwaite, worst
from jaxmlip.observables.statistics import correlated_mean, statistical_inefficiency
from jaxmlip.units import GPA, KB

ENOUGH = 50.0
"""Effective independent frames that must be left for a number."""

OVERLAP = 0.03
"""Of neighbouring states, below which a free energy between them is not to be trusted (Klimovich, Shirts and Mobley,
J. Comput.-Aided Mol. Des. 29, 397 (2015))."""

GROUPS = 8
"""Parts that a single replica is cut into for the jackknife."""

Reduced = Float[np.ndarray, "_ _"]


def reduced_energies(
    energies: Float[np.ndarray, "*potentials replicas frames"],
    temperature_K: float | int,
    volumes: Float[np.ndarray, "replicas frames"] | None = None,
    pressure_GPa: float | int = 0.0,
) -> Float[np.ndarray, "*potentials replicas frames"]:
    """β U, or β (U + PV) where volumes (Å³) move; of energies in eV."""
    enthalpy = energies if volumes is None else energies + pressure_GPa * GPA * volumes
    return np.asarray(enthalpy, np.float64) / (KB * temperature_K)


def kish(log_weights: Float[np.ndarray, "*shape"]) -> float:
    """(Σw)² / (N Σw²): the fraction of samples that would give a mean as well without weights (Kish 1965)."""
    log = np.ravel(log_weights)
    return float(np.exp(2.0 * _log_sum(log) - _log_sum(2.0 * log)) / len(log))


def perplexity(log_weights: Float[np.ndarray, "*shape"]) -> float:
    """exp(−Σ w ln w) / N with normalised weights: the same by their entropy, and larger than `kish`."""
    log = np.ravel(log_weights) - _log_sum(np.ravel(log_weights))
    weights = np.exp(log)
    return float(np.exp(-np.sum(np.where(weights > 0, weights * log, 0.0))) / len(log))


@dataclasses.dataclass(frozen=True)
class Target:
    """A state that averages are wanted of, by what of it is in the frames.

    Attributes:
        log_weights: [frames], of all runs, normalised.
        free_energy: reduced, relative to that of the first run's state.
        kish, perplexity: fractions of all frames.
        effective_frames: independent frames that are left: of the run that is nearest, frames over their statistical
            inefficiency, times the smaller of Kish's fraction and exp(−s²).
        spread: s, standard deviation of the target's reduced energy minus that of the nearest run's state.
        connected: whether neighbours on the way from the first run to the nearest one overlap.
    """

    log_weights: Float[np.ndarray, " frames"]
    free_energy: float
    kish: float
    perplexity: float
    effective_frames: float
    spread: float
    connected: bool

    @property
    def allowed(self) -> bool:
        """Whether averages may be given a number."""
        return self.connected and self.effective_frames >= ENOUGH


class Mixture:
    """Frames of one or several runs as samples of any state; see the head of this module.

    Attributes:
        free_energies: [runs], reduced, of the runs' states; the first is 0.
    """

    def __init__(self, reduced: Sequence[Float[np.ndarray, "runs _ _"]]) -> None:
        """Solve for the free energies.

        Args:
            reduced: for each run the reduced energies of its frames in the states of all runs, in the order of runs.

        Raises:
            ValueError: if shapes do not belong together or a number is not finite.
        """
        runs = len(reduced)
        if not runs or any(each.ndim != 3 or each.shape[0] != runs for each in reduced):
            raise ValueError(
                f"Each of {runs} runs needs reduced energies [{runs}, replicas, frames], one for each run's state."
            )
        if not all(np.isfinite(each).all() for each in reduced):
            raise ValueError("A reduced energy is not finite; leave failed replicas and broken frames out.")
        self.shapes = [each.shape[1:] for each in reduced]
        self.counts = np.array([rows * frames for rows, frames in self.shapes])
        self.reduced = np.concatenate([each.reshape(runs, -1) for each in reduced], axis=1)
        self.free_energies = _free_energies(self.reduced, self.counts)

    @functools.cached_property
    def _log_mixture(self) -> Float[np.ndarray, " frames"]:
        return _log_sum(np.log(self.counts)[:, None] + self.free_energies[:, None] - self.reduced)

    @functools.cached_property
    def _shares(self) -> Float[np.ndarray, "runs frames"]:
        return np.exp(self.free_energies[:, None] - self.reduced - self._log_mixture)

    @functools.cached_property
    def _shift(self) -> Float[np.ndarray, "runs frames"]:
        """−δf by frame: J⁺ q_n, relative to the first state."""
        jacobian = np.eye(len(self.counts)) - (self._shares * self.counts[:, None] @ self._shares.T).T
        shift = np.linalg.pinv(jacobian, rcond=1e-10) @ self._shares
        return shift - shift[0]

    @property
    def overlap(self) -> Float[np.ndarray, "runs runs"]:
        """Σ_n N_j q_in q_jn: the probability that a frame of state i is found in the run of state j."""
        return self._shares @ (self.counts[:, None] * self._shares).T

    def target(self, reduced: Sequence[Reduced]) -> Target:
        """What is there of a state.

        Args:
            reduced: of each run's frames in that state.
        """
        wanted = self._flat(reduced)
        log = -wanted - self._log_mixture
        free_energy = -float(_log_sum(log))
        log = log + free_energy
        fraction, apart = kish(log), []
        for state, values in enumerate(self._parts(wanted - self.reduced)):
            own = values[state]
            spread = float(own.std())
            inefficiency = float(np.max(statistical_inefficiency(own))) if own.std() > 0 else 1.0
            left = own.size / inefficiency * math.exp(-min(spread**2, 700.0))
            apart.append((spread, left, inefficiency))
        nearest = min(range(len(apart)), key=lambda state: apart[state][0])
        spread, left, inefficiency = apart[nearest]
        ladder = np.diag(self.overlap, 1)[:nearest]
        return Target(
            log_weights=log,
            free_energy=free_energy,
            kish=fraction,
            perplexity=perplexity(log),
            effective_frames=min(left, fraction * len(log) / inefficiency),
            spread=spread,
            connected=bool((ladder >= OVERLAP).all()),
        )

    def average(self, target: Target, values: Sequence[np.ndarray], *, unit: str = "") -> Estimate:
        """⟨A⟩ of a state; no error where too little of it is there.

        Args:
            target: of `target`.
            values: of each run's frames, [replicas, frames, ...].
            unit: of the values.
        """
        flat = self._flat(values)
        mean, influence = self._linearised(target, flat)
        return self._estimate(target, np.asarray(mean - self._bias(target, flat)), influence, flat, unit)

    def difference(
        self, target: Target, values: Sequence[np.ndarray], other: Target, others: Sequence[np.ndarray], unit: str = ""
    ) -> Estimate:
        """⟨A⟩ of one state minus ⟨B⟩ of another, from the same frames: much of what both fluctuate by cancels."""
        one, two = self._flat(values), self._flat(others)
        mean, influence = self._linearised(target, one)
        second, its_influence = self._linearised(other, two)
        bias = self._bias(target, one) - self._bias(other, two)
        worse = min(target, other, key=lambda each: (each.connected, each.effective_frames))
        return self._estimate(worse, np.asarray(mean - second - bias), influence - its_influence, one, unit)

    def free_energy(self, target: Target) -> Estimate:
        """F of a state minus F of the first run's state, over kT."""
        weights = np.exp(target.log_weights)
        slopes = self.counts * (self._shares @ weights)
        influence = -(weights - weights.sum() / len(weights)) - slopes @ self._shift
        return self._estimate(target, np.asarray(target.free_energy), influence, None, "kT")

    def _linearised(self, target: Target, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """⟨A⟩ and ψ, of values [frames, ...]."""
        weights = np.exp(target.log_weights)
        mean = np.asarray(np.tensordot(weights, values, axes=1))
        influence = weights.reshape(-1, *[1] * mean.ndim) * (values - mean)
        slopes = -self.counts.reshape(-1, *[1] * mean.ndim) * np.tensordot(self._shares, influence, axes=1)
        return mean, influence - np.tensordot(self._shift.T, slopes, axes=1)

    def _estimate(
        self, target: Target, mean: np.ndarray, influence: np.ndarray, values: np.ndarray | None, unit: str
    ) -> Estimate:
        parts = [
            correlated_mean(count * part)
            for count, part in zip(self.counts, _split(influence, self.shapes), strict=True)
        ]
        variances = np.stack([part.error**2 for part in parts])
        dofs = np.stack([np.broadcast_to(part.dof, part.error.shape) for part in parts])
        status = worst(*(part.status for part in parts), *([] if target.allowed else [Status.POOR_OVERLAP]))
        error = np.asarray(np.sqrt(variances.sum(axis=0)))
        if values is None:
            samples = target.effective_frames
        else:
            weights = np.exp(target.log_weights).reshape(-1, *[1] * mean.ndim)
            total = float(np.sum(error**2))
            spread = float((weights * (values - mean) ** 2).sum())
            samples = min(spread / total, float(len(values))) if total > 0 else float(len(values))
        return Estimate(
            value=np.asarray(mean),
            error=error if status.has_error else np.full_like(error, np.nan),
            effective_samples=samples if status.has_error else math.nan,
            n_samples=len(influence),
            status=status,
            dof=welch_satterthwaite(variances, dofs),
            unit=unit,
        )

    def _bias(self, target: Target, values: np.ndarray) -> np.ndarray:
        """Of the weighted mean, by leaving out replicas (or stretches of a single one) in turn; free energies held."""
        weights = np.exp(target.log_weights)
        flat = values.reshape(len(values), -1)
        members = self._groups == np.arange(self._groups.max() + 1)[:, None]
        number, sums, products = len(members), members @ weights, members @ (weights[:, None] * flat)
        without = (products.sum(0) - products) / (sums.sum() - sums)[:, None]
        bias = (number - 1) * (without.mean(0) - products.sum(0) / sums.sum())
        return bias.reshape(values.shape[1:])

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """[frames], which group of the jackknife they belong to; frames of one group are left out together."""
        found = []
        for replicas, frames in self.shapes:
            pieces = 1 if replicas > 1 else min(GROUPS, frames)
            piece = np.arange(frames) * pieces // frames
            found.append((np.arange(replicas)[:, None] * pieces + piece).ravel())
        return np.concatenate(found)

    def _flat(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[frames, ...] of values [replicas, frames, ...] of each run."""
        shapes = [np.shape(each)[:2] for each in values]
        if shapes != [tuple(shape) for shape in self.shapes]:
            raise ValueError(f"The runs have {self.shapes} replicas and frames, and the values {shapes}.")
        arrays = [np.asarray(each, np.float64) for each in values]
        return np.concatenate([each.reshape(-1, *each.shape[2:]) for each in arrays])

    def _parts(self, values: Float[np.ndarray, "runs frames"]) -> list[np.ndarray]:
        """[runs, replicas, frames] of each run."""
        return [each.transpose(2, 0, 1) for each in _split(values.T, self.shapes)]


def _log_sum(terms: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of exponentials over the first axis."""
    return np.asarray(logsumexp(terms, axis=0))


def _split(values: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Values [frames, ...] run by run, [replicas, frames, ...]."""
    ends = np.cumsum([rows * frames for rows, frames in shapes])[:-1]
    return [part.reshape(*shape, *values.shape[1:]) for part, shape in zip(np.split(values, ends), shapes, strict=True)]


def _free_energies(reduced: Float[np.ndarray, "runs frames"], counts: np.ndarray) -> Float[np.ndarray, " runs"]:
    """Reduced free energies of the states that were sampled, the first 0.

    They are where the negative logarithm of the likelihood is least, which is convex (Zhang et al., J. Chem. Phys. 136,
    144102 (2012)).
    """
    shares, total = counts / counts.sum(), counts.sum()
    if len(counts) == 1:
        return np.zeros(1)

    def spread(free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = np.log(counts)[:, None] + np.append(0.0, free)[:, None] - reduced
        log = _log_sum(terms)
        return log, np.exp(terms - log)

    def value(free: np.ndarray) -> float:
        return float(spread(free)[0].mean() - shares[1:] @ free)

    def slope(free: np.ndarray) -> np.ndarray:
        return spread(free)[1].mean(axis=1)[1:] - shares[1:]

    def curvature(free: np.ndarray) -> np.ndarray:
        parts = spread(free)[1][1:]
        return np.diag(parts.mean(axis=1)) - parts @ parts.T / total

    ends = np.cumsum(counts)
    means = [reduced[:, end - count : end].mean(axis=1) for end, count in zip(ends, counts, strict=True)]
    # Between neighbours the mean of the difference in both runs is a first guess (Gaussian: exact).
    steps = [
        0.5 * (means[k][k + 1] - means[k][k] + means[k + 1][k + 1] - means[k + 1][k]) for k in range(len(counts) - 1)
    ]
    found = minimize(value, np.cumsum(steps), jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-12})
    return np.append(0.0, found.x)


@dataclasses.dataclass(frozen=True)
class FreeEnergy:
    """A free-energy difference over kT, found in two ways.

    Attributes:
        mbar: from the weights.
        cumulants: ⟨Δu⟩ − var(Δu)/2, second order in the difference; exact if Δu is Gaussian.
        sigma: how far apart they are, in the errors of both as if independent; NaN without errors.
    """

    mbar: Estimate
    cumulants: Estimate
    sigma: float

    @property
    def agree(self) -> bool:
        """Whether the two agree within 3 σ."""
        return bool(abs(self.sigma) <= 3.0)


def free_energy_difference(own: Reduced, other: Reduced) -> FreeEnergy:
    """F of a state minus F of the one that a run sampled, over kT.

    Args:
        own: reduced energies of the run's frames in the state that it sampled.
        other: in the other state.
    """
    mixture = Mixture([own[None]])
    mbar = mixture.free_energy(mixture.target([other]))
    change = other - own
    mean = float(change.mean())
    series = change - 0.5 * (change - mean) ** 2 * (change.size / (change.size - 1.0))
    cumulants = dataclasses.replace(correlated_mean(series), unit="kT")
    return FreeEnergy(mbar, cumulants, float(mbar.sigma_from(cumulants)))


def reweighted(
    values: np.ndarray,
    own: Reduced,
    other: Reduced,
    *,
    unit: str = "",
) -> tuple[Estimate, Target]:
    """Average in a state of values in the frames of a run that sampled another; and how much of it is there.

    Args:
        values: [replicas, frames, ...], for example of `jm.observe`.
        own: reduced energies of the frames in the state that the run sampled, see `reduced_energies`.
        other: in the state that is wanted.
        unit: of the values.
    """
    mixture = Mixture([own[None]])
    target = mixture.target([other])
    return mixture.average(target, [values], unit=unit), target
