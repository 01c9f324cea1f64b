"""Tables that stand for radial networks in simulations: where they pay, to a stated error, on the way of a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from lowering import accelerators_student
from morse import morse
from simple_potentials import lennard_jones

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.potential import Potential, Sum
from jaxmlip.potentials.scaled import Scaled
from jaxmlip.potentials.tabulation import tabulate
from jaxmlip.simulation import tables
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.tables import tabulated, with_tables
from jaxmlip.simulation.trajectory import load_run

STUDENT = accelerators_student(l_max=0).replace(form="cpu")
"""With random weights."""


@pytest.fixture(scope="module")
def crystal() -> Atoms:
    atoms = bulk("OH", "rocksalt", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def run(potential: Any, structure: Any, steps: int = 8, **options: Any) -> Any:
    usual = {"sample_every_fs": 2.0, "seed": 1, "progress": False, "watch_bonds": False}
    return simulate(potential, structure, NVT(250.0), steps=steps, **usual, **options)


def test_long_runs_tabulate_by_themselves(crystal: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run is bit for bit that without tables, a long one that with tables; files go on as they were begun."""
    with_networks, short = run(STUDENT, crystal, tables=False), run(STUDENT, crystal)
    np.testing.assert_array_equal(short.positions, with_networks.positions)
    assert short.tables is None

    begun = tmp_path / "networks.h5"
    run(STUDENT, crystal, steps=4, to=begun)
    work = 8 * len(crystal) * STUDENT.specification.channels
    monkeypatch.setattr(tables, "PAYS_FROM", float(work))
    long = run(STUDENT, crystal)
    assert long.tables is not None
    assert 0 < long.tables.force_error_meV_A < 0.1
    np.testing.assert_allclose(long.positions, with_networks.positions, atol=1e-4)
    asked = with_tables(make_session([STUDENT], crystal, NVT(250.0), Options(steps=100)), STUDENT, True)
    assert isinstance(asked.driver.potential, EquivariantPotential)
    assert asked.driver.potential.tabulated

    run(STUDENT, crystal, to=begun)  # long enough now, but it was begun without
    assert load_run(begun).tables is None
    np.testing.assert_array_equal(load_run(begun).positions, with_networks.positions)
    with pytest.raises(ValueError, match="simulated without tables, and tables=True was given"):
        run(STUDENT, crystal, steps=12, to=begun, tables=True)

    other = tmp_path / "tables.h5"
    run(STUDENT, crystal, steps=4, to=other, tables=True)
    monkeypatch.setattr(tables, "PAYS_FROM", 1e30)
    run(STUDENT, crystal, to=other)
    found = load_run(other)
    assert found.tables == long.tables
    np.testing.assert_array_equal(found.positions, long.positions)
    with pytest.raises(ValueError, match="simulated with tables, and tables=False was given"):
        run(STUDENT, crystal, steps=12, to=other, tables=False)
    found.save(tmp_path / "whole.h5")
    assert load_run(tmp_path / "whole.h5").tables == long.tables


def test_what_has_no_networks_or_is_many_is_simulated_as_it_is(crystal: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why, where tables are asked for."""
    monkeypatch.setattr(tables, "PAYS_FROM", 0.0)

    def refused(potentials: list[Potential], structure: Atoms, why: str) -> None:
        session = make_session(potentials, structure, NVT(250.0), Options(steps=100))
        assert with_tables(session, potentials[0], "auto") is session
        with pytest.raises(ValueError, match=f"tables=True was given, but {why}"):
            with_tables(session, potentials[0], True)

    refused([STUDENT, STUDENT], crystal, "several potentials")
    argon = Atoms("Ar4", positions=3.0 * np.eye(4, 3), cell=[12.0] * 3, pbc=True)
    refused([lennard_jones()], argon, "A LennardJones has no radial networks")
    refused([tabulate(STUDENT, 1e-2)], crystal, "The potential has tables of its radial functions already")
    there = STUDENT.replace(form="accelerator")  # nobody has measured what they gain there
    session = make_session([there], crystal, NVT(250.0), Options(steps=100))
    assert with_tables(session, there, "auto") is session


def test_sums_and_multiples() -> None:
    """Networks in them get tables; other terms stay what they are."""
    rest = morse()
    made = tabulated(Scaled(STUDENT, np.float32(0.5)) + rest, 1e-2)
    assert isinstance(made, Sum)
    scaled, other = made.terms
    assert isinstance(scaled, Scaled)
    assert isinstance(scaled.of, EquivariantPotential)
    assert scaled.of.tabulated
    assert other is rest
