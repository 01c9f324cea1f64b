"""The engine: many replicas, lists that hold, failures that are noticed."""

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from conftest import DT, FLUID, Growth, fcc, molten, run_fluid
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, Wells, lennard_jones

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import evaluate
from jaxmlip.simulation import driver
from jaxmlip.simulation.driver import Driver, SimulationError
from jaxmlip.simulation.engine import advance
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.safety import no_bonds
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.starts import ReplicaStarts
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.validation.averages import average


def _compiled() -> int:
    """How often the engine has been compiled."""
    return advance._cache_size()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def fluid_run(small_fluid: Atoms) -> Run:
    return run_fluid(small_fluid, replicas=3)


def virial_pressure(run: Run, first: int, stride: int) -> Estimate:
    """ρ kT − tr σ/3 over frames from `first` on, in reduced units at T = 1; averages of momenta are exact."""
    frames = [run[replica * run.n_frames + at] for replica in range(run.n_replicas)
              for at in range(first, run.n_frames, stride)]  # fmt: skip
    stress = np.array([np.trace(frame.stress) for frame in predict(lennard_jones(), frames, stress=True)])
    return correlated_mean(0.75 - stress.reshape(run.n_replicas, -1) / 3.0)


@pytest.mark.physics
def test_lennard_jones_energy_and_pressure(agrees) -> None:
    """E = −2.9286 per atom, P = 0.9897 at ρ = 0.75, T = 1, cut and shifted at 2.5 σ (equation of state of Thol et al.).

    For many atoms; the 108 here differ by less than their statistical errors.
    """
    options = {"steps": 1000, "timestep_fs": 2 * DT, "sample_every_fs": 10 * DT, "seed": 2}
    run = run_fluid(fcc(3), ensemble=molten(), replicas=4, **options)
    energy = average(run, PotentialEnergy(), equilibration=0.004 * REDUCED_TIME_FS)
    value, error = float(energy.value) / 108 + 1.5, float(energy.error) / 108
    assert error < 0.03
    agrees("Lennard-Jones, ρ = 0.75, T = 1, 108 atoms: E", value, error, -2.9286)
    # BAOAB's temperature is low by (ωh)²/4, less than 0.01 here; the standard error is 0.009.
    assert run.temperature[:, 80:].mean() / REDUCED_K == pytest.approx(1.0, abs=0.03)
    pressure = virial_pressure(run, first=80, stride=12)
    assert pressure.error < 0.2
    agrees("Lennard-Jones, ρ = 0.75, T = 1, 108 atoms: P", pressure.value, pressure.error, 0.9897)


@pytest.mark.slow
@pytest.mark.physics
def test_lennard_jones_energy_and_pressure_precisely(agrees) -> None:
    """As above to 0.1 %, with 500 atoms, and the heat capacity."""
    run = run_fluid(fcc(5), ensemble=molten(), replicas=4, steps=8000, sample_every_fs=20 * DT, seed=3)
    energy = average(run, PotentialEnergy(), equilibration=0.01 * REDUCED_TIME_FS)
    value, error = float(energy.value) / 500 + 1.5, float(energy.error) / 500
    assert error < 0.004
    agrees("Lennard-Jones, ρ = 0.75, T = 1, 500 atoms: E", value, error, -2.9286)
    pressure = virial_pressure(run, first=100, stride=10)
    assert pressure.error < 0.02
    agrees("Lennard-Jones, ρ = 0.75, T = 1, 500 atoms: P", pressure.value, pressure.error, 0.9897)
    energies = run.potential_energy[:, 100:]
    capacity = correlated_mean((energies - energies.mean()) ** 2 / 500)
    assert capacity.error < 0.08
    agrees("Lennard-Jones, ρ = 0.75, T = 1, 500 atoms: C_V", capacity.value + 1.5, capacity.error, 2.2787)


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize(
    ("density", "energy", "energy_error", "pressure", "pressure_error"),
    [(0.776, -5.5121, 5e-4, None, None), (0.86, -6.0305, 2.4e-3, 1.266, 0.014)],
)
def test_lennard_jones_states_of_nist(density, energy, energy_error, pressure, pressure_error, agrees) -> None:
    """NIST SRSW: T = 0.85, cut at 3 σ without a shift, with the usual corrections for the tail.

    The shift that our potential has is taken out again, frame by frame; forces are the same.
    """
    cut, temperature, atoms = 3.0, 0.85, fcc(4, density=density)
    number, options = len(atoms), {"replicas": 4, "steps": 8000, "sample_every_fs": 40 * DT, "seed": 5}
    run = run_fluid(atoms, lennard_jones(range_=cut), molten(temperature), **options)
    kept = [run[replica * run.n_frames + at] for replica in range(4) for at in range(40, run.n_frames)]
    pairs = np.array([len(neighbor_list("i", frame, cut)) / 2 for frame in kept]).reshape(4, -1)
    shift = 4.0 * (cut**-12 - cut**-6)
    energies = run.potential_energy[:, 40:] + shift * pairs
    # The distribution is that of the shifted potential: reweighted.
    weights = np.exp(-shift * (pairs - pairs.mean()) / temperature)
    found = correlated_mean(energies / number, weights)
    tail = 8.0 / 3.0 * np.pi * density * (cut**-9 / 3.0 - cut**-3)
    assert found.error < 0.01
    name = f"NIST state, ρ = {density}, T = 0.85"
    agrees(f"{name}: U", found.value + tail, found.error, energy, known_error=energy_error)
    if pressure is not None:
        stress = [np.trace(frame.stress) for frame in predict(lennard_jones(range_=cut), kept, stress=True)]
        virial = correlated_mean(density * temperature - np.reshape(stress, (4, -1)) / 3.0, weights)
        tail = 16.0 / 3.0 * np.pi * density**2 * (2.0 / 3.0 * cut**-9 - cut**-3)
        agrees(f"{name}: P", virial.value + tail, virial.error, pressure, known_error=pressure_error)


def test_energies_and_forces_are_those_of_a_direct_call(small_fluid: Atoms, fluid_run: Run) -> None:
    potential = lennard_jones()
    for place in (0, 5, 11):
        direct = evaluate(potential, graph_from_atoms(fluid_run[place], potential.cutoff))
        assert fluid_run[place].info["potential_energy"] == pytest.approx(float(direct.energy[0]), rel=2e-6)

    starts = ReplicaStarts.of([small_fluid] * 3, no_bonds(3))
    engine = Driver(potential, starts, FLUID.dynamics(3), timestep_fs=DT, skin=0.3, seed=0, stop_at_failure=True)
    engine.prepare()
    engine.advance(25)
    for replica in range(3):
        atoms = small_fluid.copy()
        atoms.positions = np.asarray(engine.replicas.state.position[replica])
        direct = evaluate(potential, graph_from_atoms(atoms, potential.cutoff))
        np.testing.assert_allclose(engine.replicas.state.force[replica], direct.forces, atol=2e-4)


def test_references_are_added_in_double_precision(small_fluid: Atoms, fluid_run: Run) -> None:
    references = np.zeros(119)
    references[18] = -14354.123456
    run = run_fluid(small_fluid, lennard_jones(references=references), replicas=3)
    np.testing.assert_allclose(run.potential_energy, fluid_run.potential_energy + 32 * references[18], rtol=1e-15)


def test_replicas_are_independent(small_fluid: Atoms, fluid_run: Run) -> None:
    """A replica's trajectory follows from the seed and its index; others make no difference but rounding."""
    alone = run_fluid(small_fluid)
    np.testing.assert_allclose(alone.positions[0], fluid_run.positions[0], atol=1e-4)
    assert np.abs(fluid_run.positions[1] - fluid_run.positions[0]).max() > 0.1


def test_same_seed_same_bits(small_fluid: Atoms, fluid_run: Run) -> None:
    """Neither a repetition nor other sampling changes a bit."""
    again = run_fluid(small_fluid, replicas=3, sample_every_fs=20 * DT)
    np.testing.assert_array_equal(again.positions, fluid_run.positions[:, 1::2])
    other = run_fluid(small_fluid, replicas=3, seed=1)
    assert np.abs(other.positions - fluid_run.positions).max() > 0.1


def test_second_potential_does_not_compile(small_fluid: Atoms, fluid_run: Run) -> None:
    """Students of equal structure, other temperatures and other seeds share the compiled engine."""
    del fluid_run
    before = _compiled()
    student = LennardJones({"epsilon": np.float32(0.9), "sigma": np.float32(1.02)}, np.ones(119))
    simulate(student, small_fluid, NVT(temperature_K=9000.0), steps=7, timestep_fs=0.03, replicas=3, seed=4, skin=0.3,
             sample_every_fs=0.1, progress=False)  # fmt: skip
    assert _compiled() == before


def test_structures_of_their_own(small_fluid: Atoms, fluid_run: Run) -> None:
    """Replicas may start from different structures in different cells."""
    stretched = small_fluid.copy()
    stretched.set_cell(1.05 * stretched.cell.array, scale_atoms=True)
    run = run_fluid([small_fluid, stretched, small_fluid])
    np.testing.assert_allclose(run.positions[0], fluid_run.positions[0], atol=1e-4)
    for frame in (run[0], run[4], run[8]):
        direct = evaluate(lennard_jones(), graph_from_atoms(frame, 2.5))
        assert frame.info["potential_energy"] == pytest.approx(float(direct.energy[0]), rel=2e-6)


def test_atoms_may_have_diffused_cells_away(small_fluid: Atoms) -> None:
    away = small_fluid.copy()
    away.positions += np.random.default_rng(0).integers(-4, 5, (32, 3)) @ small_fluid.cell.array
    near, far = run_fluid(small_fluid), run_fluid(away)
    np.testing.assert_allclose(far.potential_energy, near.potential_energy, rtol=1e-4)
    moved = far.positions - near.positions - (away.positions - small_fluid.positions)
    assert np.abs(moved).max() < 1e-3


def test_cell_smaller_than_the_cutoff() -> None:
    """Four atoms in a cell of 1.7 σ have an eighth of the energy of their supercell."""
    run = run_fluid(fcc(1), replicas=2)
    for frame in (run[0], run[-1]):
        supercell = evaluate(lennard_jones(), graph_from_atoms(frame.repeat(2), 2.5))
        assert frame.info["potential_energy"] == pytest.approx(float(supercell.energy[0]) / 8, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_neither_skin_nor_room_matters(
    small_fluid: Atoms, grown: list[Growth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists outrun in a single step, or that do not fit, are made again: the same run to 1e-9 in double precision."""
    # With an inner cutoff only the leading slots are read: lists too short there would change the forces.
    potential = lennard_jones(inner_range=1.8)
    ample = run_fluid(small_fluid, potential, replicas=2, skin=0.8)

    grown.clear()
    thin = run_fluid(small_fluid, potential, replicas=2, skin=0.02)
    assert len(grown) >= 1, "an atom outran the skin in one step"
    np.testing.assert_allclose(thin.potential_energy, ample.potential_energy, rtol=1e-9)
    np.testing.assert_allclose(thin.positions, ample.positions, atol=1e-6)

    grown.clear()
    rightly = driver.needs_of
    monkeypatch.setattr(driver, "needs_of", lambda *given: rightly(*given) // 2)
    cramped = run_fluid(small_fluid, potential, replicas=2, skin=0.8)
    assert len(grown) >= 2, "too few listed, then too few seen"
    np.testing.assert_allclose(cramped.potential_energy, ample.potential_energy, rtol=1e-9)
    np.testing.assert_allclose(cramped.positions, ample.positions, atol=1e-6)


@flax.struct.dataclass
class Cliff(Wells):
    """Wells with NaN energy as soon as an atom is beyond `edge` in x."""

    edge: float = flax.struct.field(pytree_node=False, default=3.0)

    def atomic_energies(self, graph: Graph):
        """Wells below the edge, NaN beyond, eV."""
        return jnp.where(graph.positions[:, 0] > self.edge, jnp.nan, super().atomic_energies(graph))


@pytest.fixture(scope="module")
def cliff():
    """A potential, and two starts: one far from the edge, one that soon steps over it."""
    safe = Atoms("N2", positions=[[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    near = safe.copy()
    near.positions[0, 0] = 2.0
    potential = Cliff({"k": np.float32(0.2), "centres": np.array([[1e-3, 0, 0], [0, 5, 0]], np.float32)}, edge=2.05)
    return potential, safe, near


def test_failure_names_replica_and_step(cliff) -> None:
    potential, safe, near = cliff
    # The second start is pulled back, but thermal motion carries it over the edge in some of the replicas.
    starts = [safe, safe] + [near] * 4
    with pytest.raises(SimulationError, match=r"Replica [2-5] failed in step \d+ \([\d.]+ fs\).*\(a\).*\(b\).*\(c\)"):
        simulate(potential, starts, NVT(temperature_K=3000.0), steps=100, progress=False, seed=1)


def test_marked_failure_lets_the_others_go_on(cliff) -> None:
    potential, safe, near = cliff
    starts = [safe, safe] + [near] * 4
    options = {"steps": 100, "progress": False, "seed": 1, "sample_every_fs": 1.0, "on_failure": "mark"}
    run = simulate(potential, starts, NVT(temperature_K=3000.0), **options)
    undisturbed = simulate(potential, [safe] * 6, NVT(temperature_K=3000.0), **options)
    assert run.outcomes[:2] == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert Outcome.NOT_FINITE in run.outcomes[2:]
    np.testing.assert_allclose(run.positions[:2], undisturbed.positions[:2], atol=1e-5)
    for replica in range(6):
        length = run.lengths[replica]
        whole = run.outcomes[replica] is Outcome.COMPLETED
        assert whole == (length == run.n_frames)
        assert np.isfinite(run.positions[replica, :length]).all()
        assert np.isfinite(run.potential_energy[replica, :length]).all()
        assert np.isnan(run.positions[replica, length:]).all()
        assert (run.positions[replica, :length, 0, 0] <= 2.05).all()
    assert len(run) == run.lengths.sum() < 6 * run.n_frames


def test_nan_at_the_start(cliff) -> None:
    potential, safe, _ = cliff
    beyond = safe.copy()
    beyond.positions[0, 0] = 4.0
    with pytest.raises(SimulationError, match=r"Replica 5 failed in step 0 \(0 fs\).*finite"):
        simulate(potential, [safe] * 5 + [beyond], NVT(temperature_K=300.0), steps=20, progress=False)


def test_explosion() -> None:
    """Two atoms nearly on top of each other fly apart: noticed although nothing is NaN."""
    clash = Atoms("Ar2", positions=[[0, 0, 0], [0.25, 0, 0]], masses=[1.0, 1.0])
    failed = pytest.raises(SimulationError, match=r"Replica 0 failed in step 1 .*moved further in one step")
    with (
        failed,
        pytest.warns(UserWarning, match=r"^Atoms 0 \(Ar\) and 1 \(Ar\) are 0\.25 Å apart, closer than any"),
    ):
        run_fluid(clash, steps=10)


def _with_nan(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.positions[3, 1] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"structure": lambda a: _with_nan(a)}, r"atom 3 \(Ar\) of Ar32 is not finite"),
        ({"structure": lambda a: a[:0]}, "has no atoms"),
        ({"structure": lambda a: []}, "No structure was given"),
        (
            {"structure": lambda a: [a, a[:-1]], "to": "a.h5"},
            "A file holds one run, .* structures with different atoms",
        ),
        ({"structure": lambda a: [a, a], "replicas": 3}, "3 replicas were asked for, but 2 structures"),
        ({"replicas": 0}, "at least one replica, not 0"),
        ({"steps": None}, "either as time_ps or as steps"),
        ({"time_ps": 1.0}, "either as time_ps or as steps"),
        ({"steps": 0}, "whole positive number of steps"),
        ({"steps": 5}, "ends before its first frame"),
        ({"timestep_fs": 0.0}, "timestep must lie between 0 and 100 fs, not 0.0"),
        ({"sample_every_fs": -1.0}, "sample_every_fs must be positive, not -1.0"),
        ({"skin": -0.5}, "skin must lie between 0 and 10 Å, not -0.5"),
        ({"seed": -1}, "non-negative integer below 2⁶³, not -1"),
    ],
)
def test_refuses_before_anything_is_compiled(small_fluid: Atoms, change: dict, sentence: str) -> None:
    before = _compiled()
    structure = change.pop("structure", lambda a: a)(small_fluid)
    with pytest.raises(ValueError, match=sentence):
        run_fluid(structure, **change)
    assert _compiled() == before


def test_refuses_other_words_for_failure(small_fluid: Atoms) -> None:
    # The type checker of the tests comes first; without it, it is a ValueError.
    with pytest.raises(Exception, match="on_failure"):
        run_fluid(small_fluid, on_failure="ignore")


def test_refuses_unknown_elements(small_fluid: Atoms) -> None:
    class OnlyHydrogen(LennardJones):
        @property
        def species(self):
            return (1,)

    with pytest.raises(ValueError, match="does not know Ar; the elements it knows are H"):
        run_fluid(small_fluid, OnlyHydrogen(lennard_jones().params))


def test_progress_is_quiet_or_shown(small_fluid: Atoms, fluid_run: Run, capfd: pytest.CaptureFixture) -> None:
    del fluid_run
    capfd.readouterr()
    run_fluid(small_fluid, replicas=3)
    assert capfd.readouterr().err == ""
    run = run_fluid(small_fluid, replicas=3, progress=True)
    assert "ns/day" in capfd.readouterr().err
    assert run.ns_per_day > 0
    assert run.wall_s > 0
    np.testing.assert_allclose(run.time_fs, 10 * DT * np.arange(1, 5))
