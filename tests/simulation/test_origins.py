"""Far from the origin dynamics is what it is near it, also where atoms are brought back on the way."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from conftest import FLUID, fluid_options, run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.simulation import origins
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVE, NVT
from jaxmlip.simulation.relaxation import relax
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.systems import origin
from jaxmlip.units import GPA
from jaxmlip.validation.averages import observe

FAR = 5e4 * np.array([0.77, -0.39, 0.51])
FLEXIBLE = NPT(REDUCED_K, 0.5 / GPA, "flexible", friction_per_ps=1000.0 / REDUCED_TIME_FS)


def moved(atoms: Atoms, by: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.positions += by
    return copy


@pytest.fixture(scope="module")
def cluster(small_fluid: Atoms) -> Atoms:
    """The same atoms without a cell."""
    fluid = small_fluid
    return Atoms(fluid.numbers, fluid.positions, masses=fluid.get_masses(), info=fluid.info)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Atoms far away are brought back as soon as they leave the cell, or all have moved by 0.02 Å; how often."""
    monkeypatch.setattr(origins, "STRAYED", 0.0)
    monkeypatch.setattr(origins, "CELLS_AWAY", 0)
    monkeypatch.setattr(origin, "GRID", 0.04)
    times, translate = [], Driver._translate

    def spy(self: Driver, new: origins.Origins) -> None:
        times.append(int((new.images != self.origins.images).sum() + (new.centres != self.origins.centres).sum()))
        translate(self, new)

    monkeypatch.setattr(Driver, "_translate", spy)
    return times


@pytest.mark.parametrize(
    "ensemble", [pytest.param(NVE(REDUCED_K), id="NVE"), pytest.param(FLEXIBLE, id="NPT", marks=pytest.mark.slow)]
)
def test_periodic_fluid(small_fluid: Atoms, ensemble: Ensemble) -> None:
    """The same trajectory in the frame of the structure, of atoms that were translated or never wrapped."""
    jumps = np.random.default_rng(0).integers(-9000, 9000, (32, 3)) @ small_fluid.cell.array
    away = np.stack([np.zeros((32, 3)), np.broadcast_to(FAR, (32, 3)), jumps])
    rdf = RDF("Ar", "Ar", r_max=1.7, bins=10)
    observed = {"observables": [rdf], "against": lennard_jones(range_=3.0)}
    here = run_fluid(small_fluid, ensemble=ensemble, replicas=3, **observed)
    far = run_fluid([moved(small_fluid, each) for each in away], ensemble=ensemble, **observed)
    np.testing.assert_allclose(far.potential_energy, here.potential_energy, atol=5e-3)
    np.testing.assert_allclose(far.temperature, here.temperature, rtol=1e-3)
    for name in ("g_ArAr", "squared force error"):
        np.testing.assert_allclose(far.observed[name], here.observed[name], rtol=1e-2, atol=1e-2)
    # Atoms that are n cells away go n times as far as the cell when that is strained.
    strained = away[:, None] @ np.linalg.inv(small_fluid.cell.array) @ far.frame_cells
    np.testing.assert_allclose(far.positions - strained, here.positions, atol=1e-4 if not ensemble.moves_cell else 5e-3)
    # Frames have the values that were observed: they are not rounded on the way to where they are looked at.
    stored = dataclasses.replace(far, observed={})
    np.testing.assert_allclose(observe(stored, rdf), far.observed["g_ArAr"], atol=1e-2)


def test_energy_is_conserved_by_a_far_cluster(cluster: Atoms) -> None:
    """Without a cell the whole is translated; drift and trajectory are those near the origin."""
    potential, options = lennard_jones(range_=6.0), fluid_options(steps=100)
    cold = relax(potential, cluster, forces_eV_A=0.5).atoms
    here, far = (simulate(potential, each, NVE(0.05 * REDUCED_K), **options) for each in (cold, moved(cold, FAR)))
    assert here.conserved is not None
    assert far.conserved is not None
    np.testing.assert_allclose(far.positions - FAR, here.positions, atol=1e-4)
    assert here.positions.dtype == np.float32
    assert far.positions.dtype == np.float64
    np.testing.assert_allclose(far.conserved, here.conserved, atol=2e-4)


@pytest.mark.parametrize(
    "ensemble", [pytest.param(FLUID, id="NVT"), pytest.param(FLEXIBLE, id="NPT", marks=pytest.mark.slow)]
)
def test_brought_back_on_the_way(small_fluid: Atoms, restless: list[int], ensemble: Ensemble, monkeypatch) -> None:
    """Nothing but rounding tells of it: positions that are recorded are continuous."""
    far = moved(small_fluid, 1e3 * np.ones(3))
    brought = run_fluid(far, ensemble=ensemble)
    assert sum(restless) > 0
    monkeypatch.setattr(Driver, "bring_back", lambda self: None)
    left = run_fluid(far, ensemble=ensemble)
    np.testing.assert_allclose(brought.positions, left.positions, atol=2e-3)
    np.testing.assert_allclose(brought.potential_energy, left.potential_energy, atol=2e-2)


@pytest.mark.slow
def test_cluster_that_drifts(cluster: Atoms, restless: list[int], monkeypatch) -> None:
    """The centre of mass of Langevin dynamics diffuses."""
    far = moved(cluster, FAR)
    brought = run_fluid(far)
    assert sum(restless) > 0
    monkeypatch.setattr(Driver, "bring_back", lambda self: None)
    np.testing.assert_allclose(brought.positions, run_fluid(far).positions, atol=1e-3)


@pytest.mark.parametrize(
    "ensemble", [pytest.param(FLUID, id="NVT"), pytest.param(FLEXIBLE, id="NPT", marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_is_undisturbed(
    small_fluid: Atoms, tmp_path: Path, restless: list[int], ensemble: Ensemble
) -> None:
    """Bit for bit: where the origin is goes into the file, with what was taken off each atom."""
    path, far = tmp_path / "run.h5", [moved(small_fluid, FAR), small_fluid]
    undisturbed = run_fluid(far, ensemble=ensemble)
    assert sum(restless) > 0
    simulate(lennard_jones(), far, ensemble, to=path, **fluid_options(steps=20))
    resumed = simulate(lennard_jones(), far, ensemble, to=path, **fluid_options(skin=0.4))
    assert (resumed.frames, resumed.resumed) == (4, 2)
    run = load_run(path)
    np.testing.assert_array_equal(run.positions, undisturbed.positions)
    np.testing.assert_array_equal(run.potential_energy, undisturbed.potential_energy)
    run.save(tmp_path / "again.h5")
    np.testing.assert_array_equal(load_run(tmp_path / "again.h5").positions, undisturbed.positions)


def test_goes_on_with_a_file_that_knows_no_offsets(small_fluid: Atoms, tmp_path: Path) -> None:
    """As versions wrote that had none."""
    path = tmp_path / "run.h5"
    simulate(lennard_jones(), small_fluid, FLUID, to=path, **fluid_options(steps=20))
    with h5py.File(path, "r+") as file:
        for slot in (0, 1):
            numbers = file[f"parameters/snapshot/{slot}/001"]
            assert isinstance(numbers, h5py.Dataset)
            numbers.resize((min(8, len(numbers)),))
    simulate(lennard_jones(), small_fluid, FLUID, to=path, **fluid_options())
    np.testing.assert_array_equal(load_run(path).positions, run_fluid(small_fluid).positions)


@pytest.mark.slow
def test_bonds_across_a_face_of_the_cell(restless: list[int], tmp_path: Path) -> None:
    """A bond that is watched stays the same bond when one of its atoms is brought back, also after a restart."""
    bonded = LennardJones({"epsilon": np.float32(1.0), "sigma": np.float32(0.855)})
    pair = Atoms("OH", [[-0.02, 1, 1], [0.93, 1, 1]], cell=[5, 5, 5], pbc=True)
    pair.positions += [1000.0, -400.0, 75.0]
    pair.positions[1] += [15.0, -400.0, 0.0]  # bonded to another image
    options = {"timestep_fs": 0.5, "sample_every_fs": 1.0, "progress": False, "seed": 3}
    ensemble = NVT(1000.0, friction_per_ps=20.0)
    run = simulate(bonded, pair, ensemble, steps=80, replicas=2, **options)
    assert run.completed.all()
    assert sum(restless) > 0
    path = tmp_path / "run.h5"
    for steps in (30, 80):
        simulate(bonded, pair, ensemble, to=path, steps=steps, replicas=2, **options)
    np.testing.assert_array_equal(load_run(path).positions, run.positions)


def test_relaxation_far_away(cluster: Atoms) -> None:
    here, far = (relax(lennard_jones(range_=6.0), each) for each in (cluster, moved(cluster, FAR)))
    assert here.converged
    assert far.converged
    assert far.energy == pytest.approx(here.energy, abs=1e-3)
    assert np.abs(far.atoms.positions.mean(0) - cluster.positions.mean(0) - FAR).max() < 0.01


def test_single_precision_suffices_near_the_origin(small_fluid: Atoms, tmp_path: Path) -> None:
    """In memory; what a file has in double comes back in single."""
    run = run_fluid(small_fluid)
    simulate(lennard_jones(), small_fluid, FLUID, to=tmp_path / "run.h5", **fluid_options())
    for each in (run, load_run(tmp_path / "run.h5")):
        assert each.positions.dtype == np.float32
        assert each.fixed is None
        assert not each[0].constraints
