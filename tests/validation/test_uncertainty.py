"""Errors that include the model's, where they are known exactly: wells whose stiffness or whose place is uncertain."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from made_runs import as_run
from simple_potentials import SquaredDisplacement, Wells

from jaxmlip.observables.estimate import Status
from jaxmlip.observables.fluctuations import HeatCapacity
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.potentials.potential import Potential, stack
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.units import KB
from jaxmlip.validation.uncertainty import between, observable_uncertainty, pseudo_values, responded
from jaxmlip.validation.ways import second_order

ATOMS, CENTRE, STIFFNESS, KELVIN = 4, 5.0, 0.5, 300.0
KT = KB * KELVIN


@dataclasses.dataclass(frozen=True)
class Displacement(Observable):
    """Mean displacement from the wells along x."""

    @property
    def name(self) -> str:
        return "x"

    @property
    def unit(self) -> str:
        return "Å"

    def per_frame(self, frame: Any, potential: Any = None) -> Any:
        return frame.positions[:, 0].mean() - CENTRE


def wells(stiffness: float = STIFFNESS, shift: float = 0.0) -> Wells:
    centres = np.full((ATOMS, 3), CENTRE, np.float32)
    centres[:, 0] += shift
    return Wells({"k": np.asarray(stiffness, np.float32), "centres": centres})


def sampled(replicas: int = 8, frames: int = 300, seed: int = 0) -> Run:
    """Independent frames of the wells."""
    rng = np.random.default_rng(seed)
    x = CENTRE + rng.normal(size=(replicas, frames, ATOMS, 3)) * np.sqrt(KT / STIFFNESS)
    return as_run(
        x, np.full(ATOMS, 18), 10.0 * np.eye(3), temperature=rng.normal(KELVIN, 30.0, size=(replicas, frames))
    )


@dataclasses.dataclass(frozen=True)
class Places:
    """A posterior in which the energy is linear: wells whose place along x is uncertain, ½kx² − k a x."""

    deviation: float

    def ensemble(self, members: int, seed: int = 0) -> Potential:
        rng = np.random.default_rng(seed)
        return stack([wells(shift=shift) for shift in rng.normal(0.0, self.deviation, members)])


@pytest.fixture(scope="module")
def run() -> Run:
    return sampled()


@pytest.mark.physics
@pytest.mark.parametrize("stacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_committee_of_wells(run: Run, stacked: bool, agrees: Any) -> None:
    """⟨x²⟩ = kT/k of each member, so that their spread is known; a potential energy is 6 kT whatever k."""
    stiffnesses = STIFFNESS * (1.0 + np.array([-0.06, -0.03, 0.0, 0.02, 0.07]))
    committee: list[Potential] = [wells(k) for k in stiffnesses]
    members = stack(committee) if stacked else committee
    observables = [SquaredDisplacement(), PotentialEnergy()]
    found = observable_uncertainty(run, wells(), members, observables, temperature_K=KELVIN)
    x2, energy = found["x2"], found[PotentialEnergy().name]
    exact = KT / stiffnesses
    assert x2.method == "reweighting"
    np.testing.assert_allclose(x2.members - x2.members.mean(), exact - exact.mean(), atol=0.12 * exact.std())
    agrees("committee of wells: spread of <x2>", x2.model, 0.06 * exact.std(ddof=1), exact.std(ddof=1))
    agrees("committee of wells: <x2>", x2.estimate.value, x2.statistical, KT / STIFFNESS)
    np.testing.assert_allclose(x2.estimate.error**2, x2.statistical**2 + x2.model**2)
    assert energy.model < 0.3 * KT * np.std(stiffnesses / STIFFNESS) * 6
    assert energy.estimate.unit == "eV"


def test_a_linear_posterior(run: Run) -> None:
    """⟨x⟩ of each draw is its place exactly; error of the mean over draws against the deviation drawn from."""
    deviation = 0.01
    found = observable_uncertainty(
        run.part(slice(0, 4)), wells(), Places(deviation), [Displacement()], temperature_K=KELVIN, draws=30, seed=3
    )["x"]
    drawn = np.random.default_rng(3).normal(0.0, deviation, 30)
    np.testing.assert_allclose(found.model, drawn.std(ddof=1), rtol=0.1)
    assert np.corrcoef(found.members, drawn)[0, 1] > 0.98


def test_response_where_members_are_far(run: Run) -> None:
    """Few frames are typical of wells 35 % stiffer; ⟨x²⟩ to first order is kT/k (1 − δ), and the error has the next."""
    changes = np.array([-0.35, 0.35])
    few = run.during(slice(0, 12))
    committee = [wells(STIFFNESS * (1 + change)) for change in changes]
    options: dict[str, Any] = {"temperature_K": KELVIN, "equilibration": 0}
    capacity = HeatCapacity(temperature_K=KELVIN)
    found = observable_uncertainty(few, wells(), committee, [SquaredDisplacement(), capacity], **options)
    x2 = found["x2"]
    assert x2.method == "response"
    first = KT / STIFFNESS * changes.std(ddof=1)
    assert 0.8 * first < x2.model < 1.6 * first
    assert found[capacity.name].estimate.status is Status.POOR_OVERLAP
    farther = [wells(STIFFNESS * (1 + change)) for change in (-0.9, 2.5)]
    refused = observable_uncertainty(few, wells(), farther, [SquaredDisplacement()], **options)["x2"]
    assert refused.estimate.status is Status.POOR_OVERLAP
    assert np.isnan([refused.model, refused.statistical, refused.estimate.error]).all()


def test_orders_of_the_response() -> None:
    """Of x² in k: kT/k (1 − δ + δ²), each order by its own formula."""
    rng, delta = np.random.default_rng(0), 0.1
    x = rng.normal(size=(8, 100_000)) * np.sqrt(KT / STIFFNESS)
    change = 0.5 * delta * STIFFNESS * x**2 / KT
    scale = KT / STIFFNESS
    np.testing.assert_allclose(responded(x**2, change) / scale, 1 - delta, rtol=0.01)
    np.testing.assert_allclose(second_order(x**2, change) / scale, delta**2, rtol=0.05)
    parts = pseudo_values(responded, x**2, change)
    np.testing.assert_allclose(parts.mean(), responded(x**2, change), rtol=1e-5)


def test_the_noise_of_members_is_no_spread() -> None:
    """Equal members with noise of their own: nothing on average before what is negative is cut, and little after."""
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(5, 8, 4000))
    variance, noise = between(noisy)
    np.testing.assert_allclose(noise.mean(), 1.0 / 8, rtol=0.25)
    assert variance.mean() < 0.4 / 8
    spread = noisy + 2.0 * rng.normal(size=(5, 1, 4000))
    np.testing.assert_allclose(between(spread)[0].mean(), 4.0, rtol=0.05)


def test_intervals_hold_the_truth() -> None:
    """25 runs and committees of five; the truth is another draw of the same kind: 90 % intervals hold 83 to 97 %."""
    inside = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shifts, truths = rng.normal(0.0, 0.05, 5), rng.normal(0.0, 0.05, 200)
        middle = float(np.mean(shifts))
        one = sampled(frames=30, seed=seed)
        one = dataclasses.replace(one, positions=one.positions + np.array([middle, 0, 0], np.float32))
        committee = [wells(shift=shift) for shift in shifts]
        found = observable_uncertainty(
            one, wells(shift=middle), committee, [Displacement()], temperature_K=KELVIN, equilibration=0
        )["x"].estimate
        # The mean of five draws is itself uncertain, by a fifth of the variance of one.
        wide = dataclasses.replace(found, status=Status.OK, error=np.asarray(found.error * np.sqrt(1.2)))
        low, high = wide.interval(0.9)
        inside.append(np.mean((low <= truths) & (truths <= high)))
    assert 0.83 <= np.mean(inside) <= 0.97


def test_status_of_the_run_counts(run: Run) -> None:
    """A run as short as its thermostat's time has values and members, and no errors."""
    short = dataclasses.replace(run, time_constants_ps={"thermostat": 10.0})
    found = observable_uncertainty(
        short, wells(), [wells(0.49), wells(0.51)], [SquaredDisplacement()], temperature_K=KELVIN
    )["x2"]
    assert found.estimate.status is Status.TOO_SHORT
    assert np.isnan([found.model, found.statistical, found.estimate.error]).all()
    assert np.isfinite(found.members).all()


def test_failed_replicas_are_left_out(run: Run) -> None:
    outcomes = (Outcome.TOO_HOT, *run.outcomes[1:])
    positions = run.positions.copy()
    positions[0] = np.nan
    failed = dataclasses.replace(run, outcomes=outcomes, positions=positions, lengths=np.where(np.arange(8), 300, 0))
    committee = [wells(0.49), wells(0.51)]
    options: dict[str, Any] = {"temperature_K": KELVIN, "equilibration": 0}
    found = observable_uncertainty(failed, wells(), committee, [SquaredDisplacement(), PotentialEnergy()], **options)
    assert {each.estimate.status for each in found.values()} == {Status.REPLICA_FAILED}
    whole = observable_uncertainty(run.part(slice(1, None)), wells(), committee, [SquaredDisplacement()], **options)
    np.testing.assert_allclose(found["x2"].estimate.error, whole["x2"].estimate.error)


def test_nonsense_is_refused(run: Run) -> None:
    options: dict[str, Any] = {"temperature_K": KELVIN}
    with pytest.raises(ValueError, match="one potential, and nothing tells its error"):
        observable_uncertainty(run, wells(), wells(0.6), [SquaredDisplacement()], **options)
    with pytest.raises(ValueError, match="two members or more, not 1"):
        observable_uncertainty(run, wells(), [wells(0.6)], [SquaredDisplacement()], **options)
    with pytest.raises(ValueError, match="several are called x2"):
        observable_uncertainty(run, wells(), [wells(), wells()], [SquaredDisplacement()] * 2, **options)
    short = run.during(slice(0, 1))
    with pytest.raises(ValueError, match="too few for groups"):
        observable_uncertainty(short, wells(), [wells(), wells()], [SquaredDisplacement()], equilibration=0, **options)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), wells())
    with pytest.raises(ValueError, match="takes one potential"):
        observable_uncertainty(run, stacked, stacked, [SquaredDisplacement()], **options)
