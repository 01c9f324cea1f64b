"""Cells against ASE's parameters, and enthalpies of runs."""

import dataclasses

import numpy as np
import pytest
from made_runs import as_run
from test_structure import TRICLINIC, as_frame

from jaxmlip.observables.cells import CellAngles, CellLengths, Enthalpy, Volume
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.systems.ice import ice_ih
from jaxmlip.testing import check_observable
from jaxmlip.units import FS, GPA
from jaxmlip.validation.averages import average, observe


def test_cells_are_those_of_ase() -> None:
    ice = ice_ih(molecules=16, seed=0)
    ice.set_cell(TRICLINIC, scale_atoms=True)
    frame = as_frame(ice)
    wanted = ice.cell.cellpar()
    np.testing.assert_allclose(CellLengths().per_frame(frame), wanted[:3], rtol=1e-6)
    np.testing.assert_allclose(CellAngles().per_frame(frame), wanted[3:], rtol=1e-6)
    assert float(Volume().per_frame(frame)) == pytest.approx(ice.get_volume(), rel=1e-6)


def test_enthalpies() -> None:
    """U + PV in double precision, with kinetic energies where velocities were kept."""
    rng = np.random.default_rng(0)
    cells = TRICLINIC * (1.0 + 0.01 * rng.normal(size=(2, 30, 1, 1)))
    run = as_run(rng.normal(size=(2, 30, 4, 3)), np.array([8, 1, 1, 18]), TRICLINIC, cells=cells)
    run = dataclasses.replace(run, potential_energy=run.potential_energy - 1e6)
    wanted = run.potential_energy + 2.0 * GPA * run.volume
    np.testing.assert_allclose(observe(run, Enthalpy(2.0)), wanted, rtol=1e-14)
    np.testing.assert_array_equal(observe(run, Enthalpy()), observe(run, PotentialEnergy()))
    with pytest.raises(ValueError, match="needs velocities: simulate with keep_velocities=True"):
        observe(run, Enthalpy(2.0, kinetic=True))
    moving = dataclasses.replace(run, velocities=0.01 * rng.normal(size=run.positions.shape))
    assert moving.velocities is not None
    kinetic = 0.5 * (run.masses[:, None, :, None] * (moving.velocities / FS) ** 2).sum((2, 3))
    np.testing.assert_allclose(observe(moving, Enthalpy(2.0, kinetic=True)) - wanted, kinetic, rtol=1e-6)
    with pytest.raises(ValueError, match="enthalpy needs a cell"):
        average(dataclasses.replace(run, pbc=np.zeros(3, bool)), Enthalpy())


@pytest.mark.parametrize("observable", [CellAngles(), Enthalpy(1.0, kinetic=True)])
def test_they_conform(observable: CellAngles | Enthalpy) -> None:
    check_observable(observable)
