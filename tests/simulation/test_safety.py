"""Failures that leave every number finite, and numbers that change in time."""

import numpy as np
import pytest
from ase import Atoms
from simple_potentials import Wells

from jaxmlip.simulation.driver import SimulationError
from jaxmlip.simulation.engine import advance
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.safety import bonds_of_hydrogen
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.ice import ice_ih

WARM = NVT(temperature_K=300.0, friction_per_ps=1.0)


def run_wells(starts: list[Atoms], ensemble: NVT = WARM, k: float = 0.5, **options) -> Run:
    """O and H in soft wells 3 Å apart."""
    wells = Wells({"k": np.float32(k), "centres": np.array([[0, 0, 0], [3, 0, 0]], np.float32)})
    options = {"steps": 200, "sample_every_fs": 1.0, "progress": False, "on_failure": "mark"} | options
    return simulate(wells, starts, ensemble, **options)


def hydroxyl(distance: float) -> Atoms:
    return Atoms("OH", positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def test_broken_bond() -> None:
    """A hydrogen atom that leaves its oxygen is noticed, one that was never bonded to it is left alone."""
    run = run_wells([hydroxyl(0.97), hydroxyl(3.0)])
    assert run.outcomes == (Outcome.BOND_BROKEN, Outcome.COMPLETED)
    before = run.positions[0, run.lengths[0] - 1]
    assert 1.7 < np.linalg.norm(before[1] - before[0]) <= 1.94
    with pytest.raises(SimulationError, match=r"Replica 0 failed in step \d+ .*bond of hydrogen"):
        run_wells([hydroxyl(0.97), hydroxyl(3.0)], on_failure="raise")
    assert run_wells([hydroxyl(0.97), hydroxyl(3.0)], watch_bonds=False).completed.all()


def test_bonds_of_ice() -> None:
    """Two for each molecule, across the faces of the cell too; none where nothing is covalent."""
    ice = ice_ih(molecules=16, seed=0)
    ice.wrap()
    pairs, shifts, lengths = bonds_of_hydrogen(ice)
    assert len(pairs) == 32
    assert (ice.numbers[pairs] == [1, 8]).all()
    vectors = ice.positions[pairs[:, 1]] + shifts @ ice.cell.array - ice.positions[pairs[:, 0]]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), lengths, atol=1e-10)
    assert np.abs(shifts).max() == 1
    assert lengths.max() < 1.1
    assert len(bonds_of_hydrogen(Atoms("H2", positions=[[0, 0, 0], [0.74, 0, 0]]))[0]) == 0
    assert len(bonds_of_hydrogen(Atoms("OHO", positions=[[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]]))[0]) == 0


def test_too_hot() -> None:
    """Energy of a start that is far from equilibrium turns into heat."""
    far = hydroxyl(3.0)
    far.positions[0, 1] = 5.0
    run = run_wells([hydroxyl(3.0), far])
    assert run.outcomes == (Outcome.COMPLETED, Outcome.TOO_HOT)
    assert run.temperature[1, : run.lengths[1]].max() < 10 * 300.0 * 2, "as of four atoms"


def test_temperatures_of_replicas_and_ramps() -> None:
    """One compiled program for constants, values of replicas, and ramps; each replica follows its own."""
    options = {"steps": 2000, "sample_every_fs": 10.0, "watch_bonds": False}
    starts = [hydroxyl(3.0)] * 40
    strong = {"friction_per_ps": 100.0}
    cold = run_wells(starts, NVT(temperature_K=200.0, **strong), k=20.0, **options)
    compiled = advance._cache_size()  # type: ignore[attr-defined]
    own = run_wells(starts, NVT(temperature_K=np.repeat([200.0, 400.0], 20), **strong), k=20.0, **options)
    ramp = Ramp(200.0, 1000.0, time_ps=0.5)
    changing = run_wells(starts, NVT(temperature_K=[ramp] * 20 + [200.0] * 20, **strong), k=20.0, **options)
    assert advance._cache_size() == compiled  # type: ignore[attr-defined]
    np.testing.assert_array_equal(own.positions[:20], cold.positions[:20])
    np.testing.assert_array_equal(changing.positions[20:], cold.positions[20:])
    energies = own.potential_energy[:, 20:].mean(axis=1)
    assert energies[20:].mean() / energies[:20].mean() == pytest.approx(2.0, abs=0.25)
    # Half way the target is 600 K, at the end 1000 K.
    heat = changing.temperature[:20].mean(axis=0)
    assert heat[20:30].mean() == pytest.approx(600.0, rel=0.15)
    assert heat[60:].mean() == pytest.approx(1000.0, rel=0.1)


def test_refuses_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="temperature_K has 3 values for 2 replicas"):
        run_wells([hydroxyl(3.0)] * 2, NVT(temperature_K=[300.0, 310.0, 320.0]))
    with pytest.raises(ValueError, match="positive time_ps, not 0"):
        Ramp(100.0, 200.0, time_ps=0)
    with pytest.raises(ValueError, match=r"0 < temperature_K ≤ 100000, not -5"):
        NVT(temperature_K=[300.0, Ramp(100.0, -5.0, time_ps=1.0)])


def test_deuterium_is_slower() -> None:
    """Masses are those of the Atoms: in the same well D oscillates √2 times as slowly as H."""
    light, heavy = hydroxyl(3.2), hydroxyl(3.2)
    heavy.set_masses(np.array([15.999, 2.014]))  # type: ignore[arg-type]
    run = run_wells([light, heavy], NVT(temperature_K=1e-3, friction_per_ps=1e-3), k=10.0, steps=400)
    x = run.positions[:, :, 1, 0] - 3.0
    frequencies = [np.pi * np.count_nonzero(np.diff(np.sign(each))) / run.time_fs[-1] for each in x]
    assert frequencies[0] / frequencies[1] == pytest.approx(np.sqrt(2.014 / 1.008), rel=0.12)
