"""Atoms that constraints hold: they stay, the others move as statistical mechanics wants it, and files say so."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from ase.io import iread
from conftest import DT, FLUID, fluid_options, run_fluid
from scipy import stats
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, Wells, lennard_jones

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import correlated_mean, statistical_inefficiency
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.barostats import NPT, NPTNoseHoover
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVE, NVT, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, export_extxyz, load_run
from jaxmlip.units import KB

THERMOSTATS = {
    "Langevin": NVT(REDUCED_K, friction_per_ps=2000.0 / REDUCED_TIME_FS),
    "Nosé–Hoover": NVTNoseHoover(REDUCED_K, temperature_time_ps=0.0005 * REDUCED_TIME_FS),
    "velocity rescaling": NVTVelocityRescaling(REDUCED_K, temperature_time_ps=0.0002 * REDUCED_TIME_FS),
}


def held(atoms: Atoms, indices: object) -> Atoms:
    """A copy whose atoms of these indices are held."""
    copy = atoms.copy()
    copy.set_constraint(FixAtoms(indices))
    return copy


@pytest.fixture(scope="module")
def half_held(small_fluid: Atoms) -> list[Atoms]:
    """Eight replicas of 32 atoms, every other one of which is held, in every other replica the others."""
    return [held(small_fluid, range(replica % 2, 32, 2)) for replica in range(8)]


class Runs(dict[str, Run]):
    """By thermostat, made when asked for; a frame every 0.05 reduced times."""

    def __init__(self, structures: list[Atoms], steps: int) -> None:
        self.structures, self.steps = structures, steps

    def __missing__(self, name: str) -> Run:
        self[name] = run_fluid(self.structures, ensemble=THERMOSTATS[name], steps=self.steps, seed=7)
        return self[name]


@pytest.fixture(scope="module")
def short(half_held: list[Atoms]) -> Runs:
    """One reduced time."""
    return Runs(half_held, 200)


@pytest.fixture(scope="module")
def runs(half_held: list[Atoms]) -> Runs:
    """6 reduced times, of which 5 are kept."""
    return Runs(half_held, 1200)


def of_thermostats(*names: str) -> pytest.MarkDecorator:
    """Chains are slow: what tells their motion of held atoms from others' is in `test_state_of_a_chain`."""
    marked = [pytest.param(name, marks=[pytest.mark.slow] * (name == "Nosé–Hoover")) for name in names]
    return pytest.mark.parametrize("name", marked)


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("name", THERMOSTATS)
def test_kinetic_energy_of_free_atoms_is_canonical(runs: Runs, name: str, agrees) -> None:
    """χ² law of 48 degrees of freedom in every ensemble: with atoms that are held no momentum is conserved."""
    scaled = 48 * runs[name].temperature[:, 20:] / REDUCED_K
    independent = scaled[:, :: int(np.ceil(statistical_inefficiency(scaled)))].ravel()
    assert len(independent) > 30
    assert stats.kstest(independent, stats.chi2(48).cdf).pvalue > 1e-3
    mean = correlated_mean(scaled / 48)
    assert mean.error < 0.04
    agrees(f"kinetic energy per degree of freedom, half held, {name}, in kT/2", mean.value, mean.error, 1.0)


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("name", ["Nosé–Hoover", "velocity rescaling"])
def test_potential_energy_is_that_of_langevin_dynamics(runs: Runs, name: str, agrees) -> None:
    """What the temperature is does not depend on how it is counted. Which atoms are held makes a difference."""
    for half in (0, 1):
        reference, mean = (
            correlated_mean(runs[each].potential_energy[half::2, 20:] / 16) for each in ("Langevin", name)
        )
        assert np.hypot(reference.error, mean.error) < 0.1
        known, known_error = float(reference.value), float(reference.error)
        what = f"potential energy, half {half} held, {name}, against Langevin's"
        agrees(what, mean.value, mean.error, known, known_error=known_error)


@of_thermostats(*THERMOSTATS)
def test_held_atoms_stay(short: Runs, half_held: list[Atoms], name: str) -> None:
    """Where the structure says to the last bit, in each replica those that it names; the others move."""
    run = short[name]
    assert run.completed.all()
    for replica, atoms in enumerate(half_held):
        fixed = np.arange(32) % 2 == replica % 2
        assert run.fixed is not None
        assert (run.fixed[replica] == fixed).all()
        places = np.broadcast_to(atoms.positions[fixed], (20, 16, 3))
        np.testing.assert_array_equal(run.positions[replica][:, fixed], places)
        moved = np.linalg.norm(run.positions[replica, -1] - atoms.positions, axis=1)
        assert (moved[~fixed] > 1e-2).all()
        frame = run[20 * replica + 5]
        np.testing.assert_array_equal(frame.positions[fixed], atoms.positions[fixed])
        (constraint,) = frame.constraints
        assert constraint.index.tolist() == np.flatnonzero(fixed).tolist()


@of_thermostats("Nosé–Hoover", "velocity rescaling")
def test_conserved_quantities(short: Runs, name: str) -> None:
    """The extended energies vary far less than the total energy; their chains count 48 degrees of freedom."""
    run = short[name]
    assert run.conserved is not None
    kinetic = 0.5 * 48 * KB * run.temperature
    assert (run.conserved.std(axis=1) < 0.05 * (run.potential_energy + kinetic).std(axis=1)).all()


def test_state_of_a_chain(half_held: list[Atoms]) -> None:
    """Held atoms have no momentum at the start, and what was given to the others is all there is."""
    options = {key: value for key, value in fluid_options().items() if key != "progress"}
    driver = make_session([lennard_jones()], half_held, THERMOSTATS["Nosé–Hoover"], Options(**options)).driver
    driver.prepare()
    state = driver.replicas.state
    assert state.chain.degrees_of_freedom == 48
    momenta = np.asarray(state.momentum)
    assert not momenta[driver.starts.fixed].any()
    assert np.abs(momenta[~driver.starts.fixed]).min() > 0
    assert np.abs(momenta.sum(1)).max() > 1, "the centre of mass is not brought to rest"
    kinetic = 0.5 * (momenta**2).sum((1, 2))  # masses are 1
    np.testing.assert_allclose(state.chain.kinetic_energy, kinetic, rtol=1e-5)


@pytest.mark.slow
def test_energy_without_thermostat() -> None:
    """Velocity Verlet in a crystal with every fourth atom held: errors of second order, and no drift."""
    crystal = bulk("Ar", "fcc", a=1.1 * np.sqrt(2.0), cubic=True).repeat(2)
    crystal.set_masses(np.ones(32))
    crystal = held(crystal, range(0, 32, 4))
    deviation = []
    for refinement in (1, 2):
        run = run_fluid(
            crystal,
            lennard_jones(range_=1.1 * np.sqrt(5.5)),
            NVE(0.03 * REDUCED_K),
            replicas=4,
            steps=400 * refinement,
            timestep_fs=DT / refinement,
            sample_every_fs=10 * DT,
        )
        assert run.conserved is not None
        deviation.append(run.conserved.std(axis=1).mean())
        drift = np.polyfit(run.time_fs / REDUCED_TIME_FS, run.conserved.mean(axis=0) / 24, 1)[0]
        assert abs(drift) < 2e-4, "ε per atom and reduced time"
    assert 3.0 < deviation[0] / deviation[1] < 5.5


def test_one_atom_that_moves() -> None:
    """Has three degrees of freedom, whatever surrounds it: in a harmonic well ⟨T⟩ is the thermostat's."""
    atoms = Atoms("O8", positions=4.0 * np.indices((2, 2, 2)).reshape(3, -1).T)
    wells = Wells({"k": np.float32(1.0), "centres": atoms.positions.astype(np.float32)})
    run = simulate(
        wells, held(atoms, range(7)), NVTVelocityRescaling(300.0, 0.01), steps=2000, timestep_fs=2.0, replicas=16,
        sample_every_fs=20.0, progress=False,
    )  # fmt: skip
    mean = correlated_mean(run.temperature[:, 20:] / 300.0)
    assert mean.error < 0.05
    assert float(mean.value) == pytest.approx(1.0, abs=4 * float(mean.error))
    energies = correlated_mean(run.potential_energy[:, 20:] / (1.5 * KB * 300.0))
    assert float(energies.value) == pytest.approx(1.0, abs=4 * float(energies.error))


@dataclasses.dataclass(frozen=True)
class Mass(Observable):
    """Of all atoms, those that are held included."""

    name: ClassVar[str] = "mass"  # type: ignore[assignment]
    unit: ClassVar[str] = "amu"  # type: ignore[assignment]

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """A constant."""
        return frame.masses.sum()


@pytest.mark.parametrize(
    "ensemble",
    [
        pytest.param(FLUID, id="NVT", marks=pytest.mark.slow),
        pytest.param(NVTVelocityRescaling(REDUCED_K, 0.01), id="velocity rescaling"),
    ],
)
def test_padded_replicas(small_fluid: Atoms, ensemble: Ensemble) -> None:
    """In a program with larger structures a run is the one it would be alone, with the atoms it holds."""
    fewer = held(small_fluid[:28], [0, 5, 27])
    structures, options = [fewer, held(small_fluid, [1]), small_fluid], fluid_options(observables=[Mass()])
    runs = simulate(lennard_jones(), structures, ensemble, **options)
    alone = run_fluid(fewer, ensemble=ensemble, observables=[Mass()])
    np.testing.assert_allclose(runs[0].positions, alone.positions, atol=2e-5)
    np.testing.assert_allclose(runs[0].temperature, alone.temperature, rtol=2e-5)
    for run, masses in zip([*runs, alone], (28, 32, 32, 28), strict=True):
        np.testing.assert_allclose(run.observed["mass"], masses, rtol=1e-5)
    assert [None if run.fixed is None else run.fixed[0].nonzero()[0].tolist() for run in runs] == [
        [0, 5, 27],
        [1],
        None,
    ]


def test_chains_have_a_program_for_each_number_of_held_atoms(small_fluid: Atoms) -> None:
    structures = [held(small_fluid, [1]), held(small_fluid, [2, 3])]
    runs = simulate(lennard_jones(), structures, NVTNoseHoover(REDUCED_K, 0.01), **fluid_options())
    for run, number in zip(runs, (1, 2), strict=True):
        assert run.fixed is not None
        assert run.fixed.sum() == number
        assert run.completed.all()


def test_models_hold_the_same_atoms(half_held: list[Atoms], small_fluid: Atoms) -> None:
    options = fluid_options()
    for run in simulate([lennard_jones(), lennard_jones()], half_held[:2], FLUID, **options):
        assert run.fixed is not None
        np.testing.assert_array_equal(run.fixed.sum(1), [16, 16])
        np.testing.assert_array_equal(run.positions[0, -1, ::2], small_fluid.positions[::2])


def test_files_keep_the_constraint(half_held: list[Atoms], small_fluid: Atoms, tmp_path: Path) -> None:
    """Resumed bit for bit, read, saved and exported; with other atoms held it is another run."""
    path, options = tmp_path / "run.h5", fluid_options()
    alone = run_fluid(half_held[:2], steps=40)
    simulate(lennard_jones(), half_held[:2], FLUID, to=path, **fluid_options(steps=20))
    simulate(lennard_jones(), half_held[:2], FLUID, to=path, **options)
    run = load_run(path)
    run.save(tmp_path / "again.h5")
    for each in (run, load_run(tmp_path / "again.h5")):
        np.testing.assert_array_equal(each.positions, alone.positions)
        assert each.positions.dtype == np.float64
        assert each.fixed is not None
        assert alone.fixed is not None
        np.testing.assert_array_equal(each.fixed, alone.fixed)
    export_extxyz(path, tmp_path / "run.xyz")
    frames = [*iread(tmp_path / "run.xyz")]
    assert [frame.constraints[0].index.tolist() for frame in frames] == [
        [*range(k, 32, 2)] for k in (0, 0, 0, 0, 1, 1, 1, 1)
    ]
    for other in (half_held[1::-1], [small_fluid] * 2):
        with pytest.raises(ValueError, match=r"holds another run: constraints is FixAtoms of \[16, 16\] atoms"):
            simulate(lennard_jones(), other, FLUID, to=path, **options)


@pytest.mark.parametrize(
    ("constraint", "ensemble", "sentence"),
    [
        (FixBondLength(0, 1), FLUID, "Ar32 has the constraint FixBondLengths, .*set_constraint"),
        (FixAtoms([0]), NPT(REDUCED_K), "Ar32 has fixed atoms, and NPT would move them with the cell"),
        (FixAtoms([0]), NPTNoseHoover(REDUCED_K), "and NPTNoseHoover would move them with the cell"),
        (FixAtoms(range(32)), FLUID, "All atoms of structure 1 .* are fixed"),
    ],
)
def test_refuses_before_anything_runs(
    small_fluid: Atoms, constraint: object, ensemble: Ensemble, sentence: str
) -> None:
    other = small_fluid.copy()
    other.set_constraint(constraint)
    with pytest.raises(ValueError, match=sentence):
        run_fluid([small_fluid, other], ensemble=ensemble)
