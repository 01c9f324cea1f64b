"""Errors of averages that include the potential's own: a committee or a posterior, carried to observables by one run.

A potential is one of many that its labels allow. Simulating each of them is what nobody does; from a run of one
potential U, the average of a member m is

* by *reweighting*, that with weights ∝ exp(−β (U_m − U)), where enough independent frames are left for every member,
* else by *response*, ⟨A_m⟩ − β cov(A_m, U_m − U), where the next order, ½ β² κ(A, ΔU, ΔU), is at most half of the
  first, root mean square over members, or lost in the noise (Imbalzano et al., J. Chem. Phys. 154, 074102 (2021), for
  committees of potentials),

and the spread of these over members is the error that comes of the model. Members are evaluated in the same frames, so
that most of what the frames fluctuate by is common to them; what is not would be taken for a spread. So the average of
each member is found from groups of frames (jackknife), with d_mg its deviation from the mean of members in group g, and

    model variance = Σ_m Σ_{g ≠ h} d_mg d_mh / [(M − 1) G (G − 1)],

of which noise that is independent between groups is no part. That noise counts as statistical.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate, Status, welch_satterthwaite, worst
from jaxmlip.observables.observable import Observable, check_names
from jaxmlip.potentials.checks import check_one, is_stack
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import KB
from jaxmlip.validation.averages import settled
from jaxmlip.validation.energies import frame_energies
from jaxmlip.validation.gradients import GROUPS
from jaxmlip.validation.ladder import Sample
from jaxmlip.validation.ways import first_order, second_order
from jaxmlip.validation.weights import Mixture

DRAWS = 16
"""Potentials that are drawn from a posterior: its spread is then known to a fifth."""

Method = Literal["reweighting", "response"]


@runtime_checkable
class Posterior(Protocol):
    """What potentials can be drawn from, such as the posteriors of closed-form strategies."""

    def ensemble(self, members: int, seed: int = 0) -> Potential:
        """Potentials in a stack."""
        ...


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """An average whose error includes the model's.

    Attributes:
        estimate: of the run's potential; its error is `statistical` and `model` together.
        statistical: standard error that more frames would reduce, of the observable's shape.
        model: standard deviation that better potentials would reduce; 0 where it is lost in the noise. NaN, like the
            errors, where the estimate's status has none.
        members: averages of the members, [members, ...].
        method: how they were found.
        effective_frames: independent frames that are left of the member that is furthest away, see `weights`.
    """

    estimate: Estimate
    statistical: Float[np.ndarray, "*shape"]
    model: Float[np.ndarray, "*shape"]
    members: Float[np.ndarray, "members *shape"]
    method: Method
    effective_frames: float


def observable_uncertainty(
    run: Run,
    potential: Potential,
    members: Potential | Posterior | Sequence[Potential],
    observables: Sequence[Observable],
    *,
    temperature_K: float | int,
    draws: int = DRAWS,
    seed: int = 0,
    equilibration: Literal["auto"] | float | int = "auto",
    progress: bool = False,
) -> dict[str, Uncertainty]:
    """Averages of a run with errors that tell what the run and what the potential leaves open, by observable.

        posterior = jm.PairDifference().posterior(problem)
        run = jm.simulate(posterior.potential(), ice, jm.NVT(250), time_ps=20, replicas=8)
        jm.observable_uncertainty(run, posterior.potential(), posterior, [jm.RDF("O", "O")], temperature_K=250)

    Args:
        run: that the potential has sampled, at constant volume or constant pressure.
        potential: about which the members lie: the mean of a committee or of a posterior, or one of the members.
        members: a committee, as a sequence of potentials (`jm.train_many`) or a stack of them; or a posterior, that of
            `PairDifference`, of `TangentKernel` or `jm.last_layer_posterior`.
        observables: that are wanted. Those of fluctuations, such as heat capacities, need reweighting.
        temperature_K: of the ensemble.
        draws: potentials to draw from a posterior.
        seed: of the draws.
        equilibration: what to discard, see `average`.
        progress: show bars for the energies.

    Raises:
        ValueError: for fewer than two members, names of observables that occur twice, members that do not know an
            element of the run, or a run of which nothing is left.
    """
    check_names(observables)
    check_one(potential, "observable_uncertainty")
    others = _members(members, draws, seed)
    frames = _Frames.of(run, (potential, *others), KB * temperature_K, equilibration, progress)
    return {each.name: frames.uncertainty(each) for each in observables}


def _members(members: Any, draws: int, seed: int) -> list[Potential]:
    """Potentials one by one."""
    if isinstance(members, Posterior):
        members = members.ensemble(draws, seed)
    if isinstance(members, Potential):
        members = _unstacked(members)
    if len(members) < 2:
        raise ValueError(f"A committee has two members or more, not {len(members)}.")
    return list(members)


def _unstacked(members: Potential) -> list[Potential]:
    """The potentials of a stack, of which all leaves or only the parameters have the leading axis."""
    if not is_stack(members):
        raise ValueError("This is one potential, and nothing tells its error; give a committee or a posterior.")
    number = len(jax.tree.leaves(members.params)[0])
    if np.ndim(members.references) > 1:
        return [jax.tree.map(lambda leaf, k=k: leaf[k], members) for k in range(number)]
    params = [jax.tree.map(lambda leaf, k=k: leaf[k], members.params) for k in range(number)]
    return [members.with_params(each) for each in params]


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Frames of a run with the energies of the members.

    Attributes:
        sample: the run, and energies [1 + members, replicas, frames], eV; the first are those of the run's potential,
            those of failed replicas NaN.
        potentials: in the order of the energies.
        change: β ΔU of the members, [members, groups, frames], of replicas that ran to the end.
        method: how averages of members are found.
        effective: frames that are left of the member that is furthest away.
    """

    sample: Sample
    potentials: tuple[Potential, ...]
    change: Float[np.ndarray, "members groups frames"]
    method: Method
    effective: float

    @classmethod
    def of(
        cls, run: Run, potentials: tuple[Potential, ...], kT: float, equilibration: Any, progress: bool
    ) -> "_Frames":
        kept = run.completed
        if not kept.any():
            raise ValueError(f"No replica ran to the end. Replica 0: {run.outcomes[0].value}.")
        first, status = settled(run, equilibration)
        pieces = -(-GROUPS // int(kept.sum()))
        length = (run.n_frames - first) // pieces
        if length < 2:
            raise ValueError(
                f"The run keeps {run.n_frames - first} frames of {kept.sum()} replicas, too few for groups of two "
                f"frames and {GROUPS} groups; run longer, or more replicas."
            )
        run = run.during(slice(run.n_frames - pieces * length, None))
        # One by one: members of equal structure share a compiled program, which a tuple of them would unroll.
        found = np.concatenate([frame_energies(run, [each], progress=progress) for each in potentials])
        energies = np.full((len(potentials), *kept.shape, run.n_frames), np.nan)
        energies[:, kept] = found
        change = (found[1:] - found[:1]) / kT
        mixture = Mixture([np.zeros_like(change[:1])])
        targets = [mixture.target([each]) for each in change]
        method: Method = "reweighting" if all(each.allowed for each in targets) else "response"
        status = status if kept.all() else worst(status, Status.REPLICA_FAILED)
        effective = min(each.effective_frames for each in targets)
        grouped = change.reshape(len(change), -1, length)
        return cls(Sample(run, status, energies), potentials, grouped, method, effective)

    def uncertainty(self, observable: Observable) -> Uncertainty:
        """The average of an observable, with its errors."""
        run = self.sample.run
        observable = observable.bound_to(run[int(run.lengths[: np.argmax(run.completed)].sum())])
        values = self.sample.values(observable, self.potentials[0], 0)
        estimate = dataclasses.replace(observable.estimate(values), unit=observable.unit)
        parts, doubt, trusted = self._of_members(observable, values)
        status = worst(self.sample.status, estimate.status, *([] if trusted else [Status.POOR_OVERLAP]))
        variance, noise = between(parts)
        model, statistical = np.sqrt(variance + doubt), np.hypot(estimate.error, np.sqrt(noise))
        if not status.has_error:
            model, statistical = np.full_like(model, np.nan), np.full_like(statistical, np.nan)
        squares = np.stack([statistical**2, model**2])
        dofs = np.stack([np.broadcast_to(dof, model.shape) for dof in (estimate.dof, len(parts) - 1.0)])
        estimate = dataclasses.replace(
            estimate,
            error=np.asarray(np.sqrt(squares.sum(axis=0))),
            effective_samples=estimate.effective_samples if status.has_error else np.nan,
            status=status,
            dof=welch_satterthwaite(squares, dofs),
            blocks=None,
        )
        members = parts.mean(axis=1)
        return Uncertainty(estimate, np.asarray(statistical), np.asarray(model), members, self.method, self.effective)

    def _of_members(self, observable: Observable, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Averages [members, groups, ...], what the second order adds to their variance, and whether it is small."""
        shape = values.shape[2:]
        if self.method == "response" and observable.of_fluctuations:
            nothing = np.shape(observable.mean(values))
            return np.full((*self.change.shape[:2], *nothing), np.nan), np.full(nothing, np.nan), False
        average = _reweighted(observable) if self.method == "reweighting" else responded
        parts, seconds = [], []
        for number, change in enumerate(self.change, start=1):
            of_member = values
            if observable.depends_on_potential:
                of_member = self.sample.values(observable, self.potentials[number], number)
            grouped = of_member.reshape(*change.shape, *shape)
            parts.append(pseudo_values(average, grouped, change))
            seconds.append(second_order(grouped, change))
        found = np.stack(parts)
        if self.method == "reweighting":
            return found, np.zeros(found.shape[2:]), True
        second = np.mean(np.square(seconds), axis=0)
        moved = np.mean(np.square(found.mean(axis=1) - values.mean(axis=(0, 1))), axis=0)
        noise = between(found)[1]
        return found, np.asarray(second), bool(second.sum() <= 0.25 * moved.sum() or second.sum() <= noise.sum())


Average = Callable[[np.ndarray, np.ndarray], Any]
"""Of values [groups, frames, ...] of a member, from β ΔU [groups, frames]."""


def responded(values: np.ndarray, change: np.ndarray) -> np.ndarray:
    """⟨A⟩ − β cov(A, ΔU)."""
    return np.asarray(first_order(values, change).mean(axis=(0, 1)))


def _reweighted(observable: Observable) -> Average:
    """The average with weights ∝ exp(−β ΔU)."""

    def average(values: np.ndarray, change: np.ndarray) -> np.ndarray:
        if observable.of_fluctuations:
            with jax.enable_x64(True):
                return np.asarray(observable.mean(jnp.asarray(values), jnp.asarray(-change)))
        weights = np.exp(change.min() - change)
        return np.asarray(np.tensordot(weights / weights.sum(), values, axes=2))

    return average


def pseudo_values(average: Average, values: np.ndarray, change: np.ndarray) -> Float[np.ndarray, "groups *shape"]:
    """Of the jackknife: what each group alone says of the average, G a − (G − 1) a without the group.

    Their mean has no bias of order 1/N, and their spread is that of the average's error (Miller, Biometrika 61, 1
    (1974)).
    """
    groups = len(change)
    whole = np.asarray(average(values, change), np.float64)
    others = [np.delete(np.arange(groups), group) for group in range(groups)]
    without = np.stack([np.asarray(average(values[rest], change[rest]), np.float64) for rest in others])
    return groups * whole - (groups - 1) * without


def between(parts: Float[np.ndarray, "members groups *shape"]) -> tuple[np.ndarray, np.ndarray]:
    """Variance between members without the noise of their averages, at least 0, and that noise's; see the head."""
    members, groups = parts.shape[:2]
    away = parts - parts.mean(axis=0)
    squares = np.sum(away**2, axis=(0, 1))
    products = np.sum(away.sum(axis=1) ** 2, axis=0)
    scale = (members - 1.0) * groups
    variance = (products - squares) / (scale * (groups - 1.0))
    seen = products / (scale * groups)
    return np.asarray(np.maximum(variance, 0.0)), np.asarray(np.maximum(seen - variance, 0.0))
