"""Errors that linear response predicts, and their shares, where both are known exactly."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from made_runs import as_run
from scipy.spatial.transform import Rotation
from simple_potentials import Wells

from jaxmlip.figures import figure
from jaxmlip.observables.cells import Volume
from jaxmlip.observables.fluctuations import HeatCapacity
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.potentials.pairs import PairForces
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.molecules import molecules_in
from jaxmlip.units import KB
from jaxmlip.validation.response import predicted_error

KELVIN, STIFFNESS, CHANGE = 300.0, 0.5, 0.04
KT = KB * KELVIN
NUMBERS = np.array([10, 10, 18, 18])
CENTRES = np.array([[2.0, 2.0, 2.0], [2.0, 7.0, 2.0], [7.0, 2.0, 2.0], [7.0, 7.0, 7.0]])


@dataclasses.dataclass(frozen=True)
class NeonSpread(Observable):
    """Mean squared displacement of neon from its wells."""

    @property
    def name(self) -> str:
        return "x2"

    @property
    def unit(self) -> str:
        return "Å2"

    def per_frame(self, frame: Any, potential: Any = None) -> Any:
        return ((frame.positions[:2] - CENTRES[:2].astype(np.float32)) ** 2).sum(1).mean()


def wells(neon: float, argon: float) -> Wells:
    k = np.array([neon, neon, argon, argon], np.float32)
    return Wells({"k": k, "centres": CENTRES.astype(np.float32)})


@pytest.mark.physics
def test_wells_of_one_element_are_to_blame(agrees) -> None:
    """Stiffer wells: β cov(x², ½ Δk x²) = 3 Δk kT / k² of neon, whatever argon's do; nothing is left over."""
    rng = np.random.default_rng(0)
    x = CENTRES + rng.normal(size=(8, 200, 4, 3)) * np.sqrt(KT / STIFFNESS)
    x -= (x - CENTRES).mean(axis=2, keepdims=True)  # as simulations have it
    run = as_run(x, NUMBERS, 10.0 * np.eye(3))
    student, teacher = wells(STIFFNESS, STIFFNESS), wells(STIFFNESS + CHANGE, STIFFNESS)
    found = predicted_error(run, student, teacher, [NeonSpread()], temperature_K=KELVIN)["x2"]
    by_element = found.by("elements")
    assert found.names["elements"] == ("Ar", "Ne", "rest")
    assert by_element.value[0] == 0
    assert abs(by_element.value[2]) < 1e-3 * by_element.value[1]
    # Three quarters of each variance: one atom in four is fixed by the others.
    left = 0.75**2 + 0.25**2
    agrees(
        "wells: predicted error of <x2>",
        by_element.value[1],
        by_element.error[1],
        3 * CHANGE * KT / STIFFNESS**2 * left,
    )
    np.testing.assert_allclose(found.by("atoms").value.sum(), float(found.total), rtol=1e-4)
    assert found.names["motions"] == ("displacement", "rest")
    alone = predicted_error(run, student, teacher, [NeonSpread()], temperature_K=KELVIN, by=())["x2"]
    assert (float(alone.total), float(alone.total.error)) == (float(found.total), float(found.total.error))
    assert alone.pair_forces is None
    with pytest.raises(ValueError, match="not split by elements: that was not asked for"):
        alone.by("elements")
    few = predicted_error(run, student, teacher, [NeonSpread()], temperature_K=KELVIN, by=["elements"])["x2"]
    np.testing.assert_array_equal(few.by("elements").value, by_element.value)
    assert [*few.energies] == ["elements"]


def test_a_run_that_drifts_has_no_error() -> None:
    """Neither of the total nor of its shares."""
    rng = np.random.default_rng(0)
    x = CENTRES + rng.normal(size=(8, 40, 4, 3)) * np.sqrt(KT / STIFFNESS)
    drift = np.linspace(0.0, 50.0, 40) + rng.normal(size=(8, 40))
    run = as_run(x, NUMBERS, 10.0 * np.eye(3), potential_energy=drift)
    both = wells(STIFFNESS, STIFFNESS), wells(STIFFNESS + CHANGE, STIFFNESS)
    found = predicted_error(run, *both, [NeonSpread()], temperature_K=KELVIN)["x2"]
    assert not found.total.status.has_error
    assert np.isnan(found.total.error)
    assert np.isnan(found.by("pairs").error).all()


def made_ice(rng: np.random.Generator, motion: str) -> Run:
    """Frames of ice whose molecules only translate, rotate or vibrate, or only their cell is strained."""
    ice = ice_ih(molecules=16, seed=0)
    groups = [list(each.atoms) for each in molecules_in(ice)]
    places, cells = np.empty((2, 24, len(ice), 3)), np.empty((2, 24, 3, 3))
    for replica, frame in np.ndindex(2, 24):
        matrix = np.eye(3)
        if motion == "cell":
            strain = rng.normal(scale=0.01, size=(3, 3))
            matrix = np.eye(3) + 0.5 * (strain + strain.T)
        cells[replica, frame] = ice.cell.array @ matrix
        for atoms in groups:
            whole = ice.get_distances(atoms[0], atoms, mic=True, vector=True) + ice.positions[atoms[0]]
            centre = whole.mean(axis=0)
            arms = whole - centre
            if motion == "rotation":
                arms = arms @ Rotation.from_rotvec(rng.normal(scale=0.02, size=3)).as_matrix()
            if motion == "vibration":
                arms = arms * (1.0 + rng.normal(scale=0.02))
            shift = rng.normal(scale=0.05, size=3) if motion == "translation" else 0.0
            places[replica, frame, atoms] = centre @ matrix + shift + arms
    run = as_run(places, ice.numbers, ice.cell.array)
    return dataclasses.replace(run, cells=cells) if motion == "cell" else run


KNOTS, REACH = 20, 5.0
OPTIONS: dict[str, Any] = {"temperature_K": 250.0, "equilibration": 0, "pair_reach": REACH, "pair_knots": KNOTS}
STUDENT = PairForces(np.zeros((3, KNOTS), np.float32), np.zeros(119), (1, 8), REACH)
TEACHER = STUDENT.replace(params=np.random.default_rng(3).normal(scale=0.1, size=(3, KNOTS)).astype(np.float32))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "motion", ["cell", *(pytest.param(each, marks=SLOW) for each in ("rotation", "translation", "vibration"))]
)
def test_motions_of_molecules_are_told_apart(motion: str) -> None:
    """What molecules do not do has no share, and the difference of energies is the sum of the shares."""
    run = made_ice(np.random.default_rng(1), motion)
    observable = Volume() if motion == "cell" else RDF("O", "H", r_max=4.0, bins=8, smearing=0.05)
    found = predicted_error(run, STUDENT, TEACHER, [observable], **OPTIONS)[observable.name]
    spread = {name: found.energies["motions"][:, :, n].std() for n, name in enumerate(found.names["motions"])}
    whole = found.energies["pairs"].sum(2).std()
    assert spread.pop(motion) == pytest.approx(whole, rel=0.05)
    assert all(each < 0.05 * whole for each in spread.values()), spread
    for what in ("atoms", "elements", "motions", "pairs", "distances"):
        np.testing.assert_allclose(found.energies[what].sum(2), found.energies["pairs"].sum(2), atol=1e-3 * whole)
        total = found.by(what).value.sum()
        assert total == pytest.approx(float(np.asarray(found.by("pairs").value).sum()), rel=1e-4)


def test_pair_forces_are_found() -> None:
    """Those that the teacher has and the student has not, where there are such pairs; no rest is left."""
    run = made_ice(np.random.default_rng(2), "translation")
    found = predicted_error(run, STUDENT, TEACHER, [RDF("O", "O", r_max=4.0, bins=8)], **OPTIONS)["g_OO"]
    assert found.names["pairs"] == ("H–H", "H–O", "O–O", "rest")
    energies = found.energies["pairs"]
    assert energies[:, :, 3].std() < 1e-2 * energies.sum(2).std()
    assert found.pair_forces is not None
    nearest = np.abs(found.distances - 2.75).argmin()
    np.testing.assert_allclose(found.pair_forces.params[2, nearest], TEACHER.params[2, nearest], rtol=0.02)
    whole = found.by("pairs", whole=True)
    np.testing.assert_allclose(whole.value.sum(0), found.total.value, atol=1e-4 * np.abs(found.total.value).max())
    picture, axes = figure(1, 3, 9.0, 3.0)
    found.draw(axes[0])
    assert axes[0][2].get_legend().get_texts()[0].get_text() == "H–H"
    picture.clear()


@pytest.mark.slow
def test_replicas_may_have_settled_in_several_places() -> None:
    """Each then has a mean structure of its own, and what differs between them is the rest."""
    run = made_ice(np.random.default_rng(4), "translation")
    moved = run.positions.copy()
    moved[0, :, 4] += [0.6, 0.3, 0.0]
    apart = dataclasses.replace(run, positions=moved)
    found = predicted_error(apart, STUDENT, TEACHER, [RDF("O", "O", r_max=4.0, bins=8)], **OPTIONS)["g_OO"]
    rest = found.energies["motions"][:, :, -1]
    whole = found.energies["pairs"].sum(2)
    assert (rest - rest.mean(axis=1, keepdims=True)).std() < 0.1 * whole.std()


def test_liquids_are_split_by_pairs_only() -> None:
    """An atom that leaves its site is named; observables that are no means are refused."""
    run = made_ice(np.random.default_rng(2), "translation")
    moved = run.positions.copy()
    moved[:, 12:, 4] += 2.0
    left = dataclasses.replace(run, positions=moved)
    found = predicted_error(left, STUDENT, TEACHER, [PotentialEnergy()], **OPTIONS)["potential energy"]
    assert found.by("pairs").value.shape == (4,)
    picture, axes = figure(1, 3, 11.0, 2.6)
    found.draw(axes[0])
    picture.canvas.draw()
    assert "Atom 4 of replica" in axes[0][1].texts[0].get_text()
    assert axes[0][0].get_position().width > 0.15, "what is said of atoms leaves no room for the panels beside it"
    picture.clear()
    with pytest.raises(ValueError, match=r"not split by atoms: Atom 4 of replica \d comes 1\.\d\d Å"):
        found.by("atoms")
    with pytest.raises(ValueError, match="no mean, of which there is a linear response"):
        predicted_error(run, STUDENT, TEACHER, [HeatCapacity(250.0)], **OPTIONS)
