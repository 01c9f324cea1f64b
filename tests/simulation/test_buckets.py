"""Unlike structures, simulated by as few programs as there are sizes, each as if it were alone."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from conftest import FLUID, fcc, fluid_options, run_fluid
from simple_potentials import REDUCED_K, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.buckets import _buckets
from jaxmlip.simulation.driver import SimulationError
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.engine import advance
from jaxmlip.simulation.ensembles import NVT, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.units import GPA

STUDENT = Path(__file__).parent / "data" / "ice_student.jaxmlip"
"""Small and trained on ice; see make_ice_student.py there."""


def assert_same(run: Run, alone: Run) -> None:
    """But for rounding: sums over atoms may be taken in another order."""
    np.testing.assert_array_equal(run.numbers, alone.numbers)
    np.testing.assert_array_equal(run.masses, alone.masses)
    assert (run.outcomes, run.lengths.tolist()) == (alone.outcomes, alone.lengths.tolist())
    for name in ("positions", "cells", "potential_energy", "temperature", "conserved", "pressure_GPa"):
        ours, theirs = getattr(run, name), getattr(alone, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=name)
    assert run.observed.keys() == alone.observed.keys()
    for name, values in run.observed.items():
        np.testing.assert_allclose(values, alone.observed[name], rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "ensemble",
    [
        pytest.param(FLUID, id="NVT"),
        pytest.param(NVTVelocityRescaling(REDUCED_K, 0.01), id="velocity rescaling"),
        pytest.param(NPT(REDUCED_K, 0.5 / GPA, cell="flexible"), id="NPT"),
    ],
)
@pytest.mark.slow
def test_padding_changes_nothing(small_fluid: Atoms, ensemble: Ensemble) -> None:
    """32, 28 and 28 atoms, one of them another, in one program; replicas 0, 1 and 2 of those that are alone."""
    fewer = small_fluid[:28]
    other = fewer.copy()
    other.numbers[3] = 36
    other.set_masses((1.0 + np.arange(28) / 28).tolist())
    options = {"skin": 0.4, "observables": [RDF("Ar", "Ar", r_max=1.7, bins=10)], "against": lennard_jones(range_=3.0)}
    runs = simulate(lennard_jones(), [fewer, small_fluid, other], ensemble, **fluid_options(**options))
    for number, structure in enumerate([fewer, small_fluid, other]):
        alone = run_fluid(structure, ensemble=ensemble, replicas=3, **options)
        assert_same(runs[number], alone.part(slice(number, number + 1)))


def test_sizes_too_different_for_one_program(small_fluid: Atoms) -> None:
    """In the order of the structures, with replicas of each."""
    stretched, larger = small_fluid.copy(), fcc(3)
    stretched.set_cell(1.05 * stretched.cell.array, scale_atoms=True)
    before = advance._cache_size()  # type: ignore[attr-defined]
    runs = simulate(lennard_jones(), [small_fluid, larger, stretched], FLUID, replicas=2, **fluid_options(skin=0.4))
    assert advance._cache_size() == before + 2, "one program for each size"  # type: ignore[attr-defined]
    alike = run_fluid([small_fluid, small_fluid, stretched, stretched, stretched, stretched], skin=0.4)
    assert_same(runs[0], alike.part(slice(2)))
    assert_same(runs[1], run_fluid(larger, replicas=4, skin=0.4).part(slice(2, 4)))
    assert_same(runs[2], alike.part(slice(4, 6)))


@pytest.mark.slow
def test_molecules_of_a_trained_potential() -> None:
    """Bonds are watched, each molecule's own; what fails is marked, and the others go on as if alone."""
    student, ensemble = load_potential(STUDENT), NVT(temperature_K=250)
    water, peroxide = molecule("H2O"), molecule("H2O2")
    dimer = water + Atoms("OH2", water.positions + np.array([0.0, 0.0, 3.0]))
    clash = dimer.copy()
    clash.positions[3] = clash.positions[0] + 0.05
    clash.info["allow_close"] = True
    options = {"steps": 20, "sample_every_fs": 5.0, "progress": False, "on_failure": "mark"}
    before = advance._cache_size()  # type: ignore[attr-defined]
    runs = simulate(student, [dimer, water, clash, peroxide], ensemble, **options)
    assert advance._cache_size() == before + 1, "one program"  # type: ignore[attr-defined]
    assert runs[2].outcomes[0] is not Outcome.COMPLETED
    assert [run.positions.shape[2] for run in runs] == [6, 3, 6, 4]
    for number, structure in ((0, dimer), (1, water), (3, peroxide)):
        alone = simulate(student, structure, ensemble, replicas=4, **options)
        assert_same(runs[number], alone.part(slice(number, number + 1)))


def test_programs() -> None:
    """A quarter of a program may be padding, none with Nosé–Hoover chains, and periodic directions are not mixed."""
    structures = [Atoms(f"H{n}", pbc=n == 70) for n in (76, 100, 40, 58, 70, 76)]
    assert [*_buckets(structures, 0.25, alike=False)] == [[1, 0, 5, 3], [2], [4]]
    assert [*_buckets(structures, 0.0, alike=True)] == [[1], [0, 5], [3], [2], [4]]


@pytest.mark.slow
def test_chains_of_equal_sizes(small_fluid: Atoms) -> None:
    """Which jax-md's need: unlike elements share a program, unlike sizes do not."""
    ensemble = NVTNoseHoover(REDUCED_K, 0.01)
    other = small_fluid.copy()
    other.numbers[3] = 36
    runs = simulate(lennard_jones(), [small_fluid, small_fluid[:28], other], ensemble, **fluid_options())
    assert [run.numbers.size for run in runs] == [32, 28, 32]
    assert_same(runs[1], run_fluid(small_fluid[:28], ensemble=ensemble, replicas=2).part(slice(1, 2)))


def test_defaults_are_those_of_simulate() -> None:
    theirs = inspect.signature(simulate).parameters
    for name, ours in inspect.signature(Options).parameters.items():
        # What a failure leads to depends on how many potentials there are.
        assert ours.default == theirs[name].default or name == "on_failure", name


def test_mistakes(small_fluid: Atoms) -> None:
    with pytest.raises(ValueError, match="No structure was given"):
        simulate(lennard_jones(), [], FLUID, steps=1)
    with pytest.raises(ValueError, match="at least one replica, not 0"):
        simulate(lennard_jones(), [small_fluid, small_fluid[:8]], FLUID, replicas=0, steps=1)
    clash = molecule("H2O")
    clash.positions[1] = clash.positions[0] + 0.05
    clash.info["allow_close"] = True
    with pytest.raises(SimulationError, match="Replica 2 failed in step"):
        simulate(load_potential(STUDENT), [molecule("H2O"), molecule("H2O2"), clash], NVT(250), steps=20)
    before = advance._cache_size()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="does not know"):
        simulate(load_potential(STUDENT), [molecule("H2O2"), Atoms("C")], FLUID, time_ps=1)
    assert advance._cache_size() == before, "before anything is compiled"  # type: ignore[attr-defined]
