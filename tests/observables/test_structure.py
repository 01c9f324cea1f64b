"""Radial distribution functions against ideal gases and freud, and the distance between two."""

import dataclasses
from pathlib import Path

import ase.io
import freud
import jax
import numpy as np
import pytest
from ase import Atoms
from made_runs import as_run
from scipy.stats import norm

from jaxmlip.observables.estimate import Estimate, Status
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.structure import RDF, rdf_error
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Temperature
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.device_lists import cell_heights
from jaxmlip.validation.averages import average, observe

TRICLINIC = np.array([[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.5, 2.5, 8.5]])


def as_frame(atoms: Atoms) -> FrameState:
    cell = atoms.cell.array
    return FrameState(
        positions=atoms.positions.astype(np.float32),
        cell=cell.astype(np.float32),
        masses=atoms.get_masses().astype(np.float32),
        numbers=tuple(atoms.numbers.tolist()),
        heights=tuple(cell_heights(cell).tolist()),
    )


@pytest.fixture(scope="module")
def gas() -> Run:
    """Ideal gas of 12 O and 24 H, never wrapped."""
    rng = np.random.default_rng(3)
    positions = rng.uniform(-2, 3, size=(4, 250, 36, 3)) @ TRICLINIC
    return as_run(positions, np.array([8] * 12 + [1] * 24), TRICLINIC)


@pytest.mark.parametrize(("pair", "expected"), [(("O", "H"), 1.0), (("O", "O"), 1 - 1 / 12), (("H", "H"), 1 - 1 / 24)])
def test_ideal_gas(gas: Run, pair: tuple[str, str], expected: float) -> None:
    """1 between species, 1 − 1/N within one; χ² of the bins says that the errors are right as well."""
    rdf = RDF(*pair, bins=30)
    estimate = average(gas, rdf, equilibration=0)
    far = rdf.r > 1.0
    z = ((estimate.value - expected) / estimate.error)[far]
    assert np.abs(z).max() < 4.5
    assert 0.2 < (z**2).mean() < 1.8
    assert estimate.value[far].mean() == pytest.approx(expected, abs=0.01)
    assert estimate.status is Status.OK
    np.testing.assert_array_equal(estimate.axis, rdf.r)


@pytest.mark.parametrize("pair", [("O", "O"), ("O", "H"), ("H", "O"), ("H", "H")])
def test_equals_freud(gas: Run, ice_like: Atoms, pair: tuple[str, str]) -> None:
    del gas
    _compare_with_freud(ice_like, pair, r_max=4.0)


@pytest.mark.parametrize("pair", [("O", "O"), ("O", "H"), ("H", "H")])
def test_equals_freud_on_ice(ice_data: Path, pair: tuple[str, str]) -> None:
    """Bulk ice of 128 molecules in a triclinic cell."""
    atoms = ase.io.read(ice_data / "bulk.extxyz", index=0)
    assert isinstance(atoms, Atoms)
    _compare_with_freud(atoms, pair, r_max=6.0)


@pytest.fixture(scope="module")
def ice_like() -> Atoms:
    """A crowded triclinic box of water-like composition."""
    rng = np.random.default_rng(5)
    cell = 1.3 * TRICLINIC
    return Atoms("O40H80", positions=rng.uniform(-1, 2, size=(120, 3)) @ cell, cell=cell, pbc=True)


def _compare_with_freud(atoms: Atoms, pair: tuple[str, str], r_max: float) -> None:
    rdf = RDF(*pair, r_max=r_max, bins=60)
    ours = np.asarray(jax.jit(rdf.per_frame)(as_frame(atoms)))
    box = freud.box.Box.from_matrix(atoms.cell.standard_form()[0].array.T)
    upright = Atoms(atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell.standard_form()[0])
    points = box.wrap(upright.positions)
    first, second = (points[atoms.symbols == symbol] for symbol in pair)
    theirs = freud.density.RDF(bins=60, r_max=r_max, normalization_mode="exact")
    theirs.compute((box, second), query_points=first, neighbors={"r_max": r_max, "exclude_ii": pair[0] == pair[1]})
    # Both are single precision: a distance may fall on the other side of a border between shells.
    volume = atoms.get_volume()
    one = volume / (len(first) * len(second) * 4 * np.pi * rdf.r**2 * (r_max / 60))
    counts = np.round((ours - theirs.rdf) / one)
    assert np.abs(counts).sum() <= 8
    np.testing.assert_allclose(ours - counts * one, theirs.rdf, rtol=2e-3, atol=2e-3 * one.min())
    same = counts == 0
    np.testing.assert_allclose(ours[same], theirs.rdf[same], rtol=1e-5, atol=1e-6)


def test_small_cell_equals_supercell() -> None:
    """A cell smaller than r_max, where an atom sees its own images, has the RDF of its supercell."""
    rng = np.random.default_rng(2)
    cell = np.array([[4.1, 0.0, 0.0], [1.3, 3.7, 0.0], [-0.8, 1.1, 5.3]])
    small = Atoms("O3H5", positions=rng.uniform(size=(8, 3)) @ cell, cell=cell, pbc=True)
    for pair in (("O", "O"), ("O", "H")):
        rdf = RDF(*pair, r_max=6.0, bins=37)
        one = np.asarray(jax.jit(rdf.per_frame)(as_frame(small)))
        many = np.asarray(jax.jit(rdf.per_frame)(as_frame(small.repeat((3, 3, 2)))))
        # Distances on the border between two shells may fall either way.
        cumulated = np.cumsum(one - many) * (rdf.edges[1] - rdf.edges[0])
        assert np.abs(one - many).mean() < 1e-3 * many.mean()
        assert abs(cumulated[-1]) < 1e-4
    lone = Atoms("O", cell=3.0 * np.eye(3), pbc=True)
    counts = np.asarray(jax.jit(RDF("O", "O", r_max=5.0, bins=10).per_frame)(as_frame(lone))) > 0
    assert counts.nonzero()[0].tolist() == [6, 8], "six images at 3 Å and twelve at 4.24 Å"


def test_smeared_rdf() -> None:
    """A Gaussian spreads counts but keeps their number, and gives a derivative that finite differences confirm."""
    rng = np.random.default_rng(4)
    atoms = Atoms("O4", positions=rng.uniform(size=(4, 3)) @ TRICLINIC, cell=TRICLINIC, pbc=True)
    sharp, smooth = RDF("O", "O", bins=12), RDF("O", "O", bins=12, smearing=0.1)
    shells = np.diff(sharp.edges**3)
    frame = as_frame(atoms)
    counts = [float((rdf.per_frame(frame) * shells).sum()) for rdf in (sharp, smooth)]
    assert counts[1] == pytest.approx(counts[0], rel=0.1)

    with jax.enable_x64(True):
        weights = rng.normal(size=12)

        def functional(positions):
            return (smooth.per_frame(frame.replace(positions=positions)) * weights).sum()

        frame = frame.replace(cell=TRICLINIC)
        gradient = jax.grad(functional)(atoms.positions)
        step = np.zeros((4, 3))
        step[1, 2] = 1e-5
        numerical = (functional(atoms.positions + step) - functional(atoms.positions - step)) / 2e-5
        assert float(gradient[1, 2]) == pytest.approx(float(numerical), rel=1e-6)
        assert abs(float(numerical)) > 1e-3


def test_what_smearing_costs() -> None:
    """A peak of width w falls to w / √(w² + σ²) of its height, and no more: what the docstring says of the bias."""
    width, cell = 0.11, 14.0 * np.eye(3)
    positions = np.full((1, 4000, 2, 3), 7.0)
    positions[0, :, 1, 0] += norm.ppf((np.arange(4000) + 0.5) / 4000, 2.75, width)
    run = as_run(positions, np.array([8, 8]), cell)
    heights = {}
    for smearing in (0.0, 0.025, 0.05, 0.1):
        rdf = RDF("O", "O", r_max=4.0, bins=160, smearing=smearing)
        shells = rdf.r**2 * observe(run, rdf)[0].mean(axis=0)
        heights[smearing] = shells[np.abs(rdf.r - 2.75) < 0.02].mean()
    for smearing in (0.025, 0.05, 0.1):
        wanted = width / np.hypot(width, smearing)
        assert heights[smearing] / heights[0.0] == pytest.approx(wanted, abs=0.02)


def test_error_of_equals_is_zero_and_of_a_shift_is_its_integral() -> None:
    r = RDF("O", "O", bins=60).r
    value = 1 + np.sin(r)
    exact = Estimate(value, np.zeros(60), 100.0, 100, axis=r)
    shifted = dataclasses.replace(exact, value=value + 0.25, status=Status.NOT_EQUILIBRATED)
    same = rdf_error(exact, exact)
    assert (same.value, same.error, same.noise_floor) == (0.0, 0.0, 0.0)
    error = rdf_error(shifted, exact)
    assert error.value == pytest.approx(0.25 * 6.0)
    assert error.status is Status.NOT_EQUILIBRATED


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_error_and_noise_floor_are_calibrated(gap: float) -> None:
    """Many pairs of RDFs with correlated bins: if equal the integral's mean is the floor, and its spread the error."""
    rng = np.random.default_rng(7)
    rdf = RDF("O", "O", bins=40)
    mixing = np.exp(-np.abs(np.subtract.outer(np.arange(40), np.arange(40))) / 3.0)
    truth = gap * np.cos(rdf.r)

    def estimate(offset):
        return rdf.estimate(offset + rng.normal(size=(4, 100, 40)) @ mixing)

    errors = [rdf_error(estimate(1 + truth), estimate(1.0)) for _ in range(150)]
    values = np.array([e.value for e in errors])
    floors = np.array([e.noise_floor for e in errors])
    claimed = np.sqrt(np.mean([e.error**2 for e in errors]))
    if gap == 0.0:
        # Errors are rather too large than too small, and so is the floor.
        assert 1.0 < floors.mean() / values.mean() < 1.2
        assert claimed > values.std(), "an upper bound where there is nothing but noise"
    else:
        # Where the difference passes through zero noise still adds a little.
        exact = np.abs(truth).sum() * 0.15
        assert exact < values.mean() < exact + floors.mean()
        assert 0.8 < claimed / values.std() < 1.6


def test_rdf_errors_need_equal_bins(gas: Run) -> None:
    short, fine = average(gas, RDF("O", "O", bins=20)), average(gas, RDF("O", "O", bins=30))
    with pytest.raises(ValueError, match=r"20 up to 5\.850 Å, 30 up to 5\.900 Å"):
        rdf_error(short, fine)
    with pytest.raises(ValueError, match="one of these has no r"):
        rdf_error(short, average(gas, PotentialEnergy()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"first": "Q", "second": "O"}, "'Q' is not the symbol of an element"),
        ({"first": "O", "second": "O", "r_max": 0.0}, "positive r_max"),
        ({"first": "O", "second": "O", "bins": 0}, "bins=0"),
    ],
)
def test_senseless_rdfs(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RDF(**arguments)


def test_runs_without_a_meaning(gas: Run) -> None:
    with pytest.raises(ValueError, match="g_ON: the frames hold no N"):
        average(gas, RDF("O", "N"))
    with pytest.raises(ValueError, match="periodic in all three directions"):
        average(dataclasses.replace(gas, pbc=np.array([True, True, False])), RDF("O", "O"))
    with pytest.raises(ValueError, match=r"Discarding 99 ps leaves nothing of a run of 2\.5 ps"):
        average(gas, Temperature(), equilibration=99)
    failed = dataclasses.replace(gas, outcomes=(Outcome.NOT_FINITE,) * 4)
    with pytest.raises(ValueError, match="No replica ran to the end"):
        average(failed, Temperature())


def test_scalars(gas: Run) -> None:
    """Plain means; failed replicas are left out; energies keep double precision."""
    energy = average(dataclasses.replace(gas, potential_energy=gas.potential_energy - 1e6), PotentialEnergy())
    kept = gas.potential_energy[:, energy.n_samples // -4 :]
    assert float(energy.value) == pytest.approx(kept.mean() - 1e6, abs=1e-9)
    assert float(energy.error) == pytest.approx(1 / np.sqrt(kept.size), rel=0.4)

    warm = average(gas, Temperature(), equilibration=0.5)
    assert warm.discarded_fs == 500.0
    assert warm.n_samples == 4 * 200
    assert float(warm.value) == pytest.approx(gas.temperature[:, 50:].mean(), rel=1e-6)

    positions = gas.positions.copy()
    positions[1, 7:] = np.nan
    outcomes = (Outcome.COMPLETED, Outcome.NOT_FINITE, Outcome.COMPLETED, Outcome.COMPLETED)
    lengths = np.array([250, 7, 250, 250])
    broken = dataclasses.replace(gas, positions=positions, outcomes=outcomes, lengths=lengths)
    partial = average(broken, Temperature(), equilibration=0.5)
    assert partial.status is Status.REPLICA_FAILED
    assert float(partial.value) == pytest.approx(gas.temperature[[0, 2, 3], 50:].mean(), rel=1e-6)

    mass = 12 * 15.999 + 24 * 1.008
    expected = mass * 1.66053907 / abs(np.linalg.det(TRICLINIC))
    density = average(gas, Density())
    assert float(density.value) == pytest.approx(expected, rel=1e-5)
    heavy = dataclasses.replace(gas, masses=np.where(gas.numbers == 1, 2.014, gas.masses))
    expected *= (12 * 15.999 + 24 * 2.014) / mass
    assert float(average(heavy, Density()).value) == pytest.approx(expected, rel=1e-5)
