"""Hybrid Monte Carlo samples the teacher's ensemble, whatever the student is."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.constraints import FixAtoms
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, Wells, lennard_jones

import jaxmlip as jm
from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.simulation.engine import advance
from jaxmlip.systems.capacity import Capacity
from jaxmlip.systems.graph import edge_vectors
from jaxmlip.types import PerAtom
from jaxmlip.units import GPA, KB
from jaxmlip.validation.atomic_energies import AtomicEnergies, _atomic_energies
from jaxmlip.validation.hybrid import HybridRun, hybrid_monte_carlo
from jaxmlip.validation.proposals import Chain, Proposal
from jaxmlip.validation.volume_moves import molecules_scaled

KT = 0.025
ROOM = jm.NVT(temperature_K=KT / KB)
CENTRES = 3.0 * np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
ATOMS = Atoms("Ar8", CENTRES)
QUARTER = Proposal(steps=12, timestep_fs=8.0, warm_up=20, adapts=False)
"""A quarter of a vibration of argon in wells of 1 eV/Å²."""


def wells(k: float = 1.0, moved: float = 0.0) -> Wells:
    """Harmonic wells of all atoms."""
    return Wells({"k": np.float32(k), "centres": CENTRES + np.float32(moved)})


def in_wells(student: Wells, *, teacher: jm.Potential | None = None, **options: Any) -> HybridRun:
    """A run whose teacher has wells of 1 eV/Å²."""
    chosen = {"moves": 60, "replicas": 16, "proposal": QUARTER, "progress": False} | options
    return hybrid_monte_carlo(student, teacher or wells(), ATOMS, ROOM, **chosen)


def programs() -> list[int]:
    """Numbers of compiled programs: trajectories, energies."""
    return [each._cache_size() for each in (advance, _atomic_energies)]  # pyright: ignore[reportAttributeAccessIssue]


def mean_square(sampled: HybridRun) -> Estimate:
    """⟨x²⟩ k/kT of the teacher's wells, 1 if exact."""
    return correlated_mean(((sampled.run.positions - CENTRES) ** 2).mean((2, 3)) / KT)


@pytest.mark.physics
@pytest.mark.parametrize("refreshed", [pytest.param(1.0, marks=pytest.mark.slow), 0.3])
def test_wells_are_the_teachers(refreshed: float, agrees: Any) -> None:
    """The student's are half as stiff again, and beside them: ⟨x²⟩ would be 0.7 (2 σ with 20 times the noise)."""
    proposal = dataclasses.replace(QUARTER, refreshed=refreshed, steps=8, warm_up=60)
    sampled = in_wells(wells(1.5, 0.02), moves=500, proposal=proposal)
    found = mean_square(sampled)
    assert found.error < 0.04
    name = f"hybrid Monte Carlo, harmonic wells, {refreshed:g} of the momenta new: "
    agrees(name + "⟨x²⟩ k/kT", found.value, found.error, 1.0)
    heat = correlated_mean(sampled.run.temperature * KB / KT)
    agrees(name + "⟨p²⟩/mkT", heat.value, heat.error, 1.0)
    assert 0.2 < sampled.acceptance.mean() < 0.8
    energy = correlated_mean(sampled.run.potential_energy / (12 * KT))
    agrees(name + "⟨U⟩, in 12 kT", energy.value, energy.error, 1.0)
    assert float(jm.average(sampled.run, jm.PotentialEnergy())) == pytest.approx(12 * KT, rel=0.2)
    assert sampled.total_teacher_calls == 16 * (1 + 60 + 500)
    assert sampled.warm_up_calls == 1 + 60
    assert 1.0 < sampled.correlation < 100.0
    assert sampled.samples_per_call == pytest.approx(1.0 / sampled.correlation)


def test_a_student_that_is_the_teacher_is_always_accepted() -> None:
    """But for the integrator's error, which is that of velocity Verlet: it falls with the square of the timestep."""
    short = dataclasses.replace(QUARTER, steps=48, timestep_fs=2.0)
    assert in_wells(wells(), proposal=short).acceptance.mean() > 0.995
    refused = [
        1 - in_wells(wells(), proposal=dataclasses.replace(QUARTER, steps=4, timestep_fs=t)).acceptance.mean()
        for t in (40.0, 20.0)
    ]
    assert refused[1] < 0.5 * refused[0]
    assert refused[0] > 0.02


def test_trajectories_are_reversible() -> None:
    """Backwards from the end with opposite momenta, the start is found again; volumes too."""
    chain = Chain(wells(1.5), wells(), [ATOMS] * 2, ROOM, QUARTER, seed=1)
    chain.begin()
    walkers = chain.walkers
    walkers.refresh(0, 0.0)
    start = jax.device_get((walkers.state.position, walkers.state.momentum))
    walkers.trajectory(30)
    there = walkers.state
    assert np.abs(np.asarray(there.position) - start[0]).max() > 0.05
    walkers.replicas = walkers.replicas.replace(state=there.set(momentum=-there.momentum))
    walkers.trajectory(30)
    np.testing.assert_allclose(walkers.state.position, start[0], atol=1e-5)
    np.testing.assert_allclose(walkers.state.momentum, -start[1], atol=1e-5)


def test_equal_seeds_give_equal_bits() -> None:
    """And others others."""
    one, same, other = (in_wells(wells(1.5), moves=10, seed=seed).run for seed in (3, 3, 4))
    for name in ("positions", "potential_energy", "temperature"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.positions, other.positions)


def test_nothing_is_compiled_for_further_moves() -> None:
    """Nor for other lengths of trajectories, timesteps or seeds."""
    in_wells(wells(1.5), moves=2)
    compiled = programs()
    adapting = dataclasses.replace(QUARTER, adapts=True, steps=5, timestep_fs=4.0, target=0.9)
    in_wells(wells(1.4), moves=30, seed=7, proposal=adapting)
    assert programs() == compiled


def test_the_warm_up_finds_the_acceptance_that_is_aimed_at() -> None:
    """By the number of steps; what it has found is told, and fixed."""
    proposal = Proposal(steps=2, timestep_fs=4.0, warm_up=150, target=0.6, most_steps=100)
    sampled = in_wells(wells(1.5), moves=150, proposal=proposal)
    assert sampled.acceptance.mean() == pytest.approx(0.6, abs=0.12)
    assert sampled.proposal.steps != 2
    assert 4.0 < sampled.proposal.timestep_fs < 8.01
    assert sampled.proposal.volume_width == pytest.approx(proposal.volume_width)
    assert sampled.run.time_fs[0] == pytest.approx(sampled.proposal.steps * sampled.proposal.timestep_fs)


def test_frames_are_rare_if_wanted() -> None:
    """Every third state of the chain that has all."""
    whole, rare = (in_wells(wells(1.5), moves=9, every=every) for every in (1, 3))
    np.testing.assert_array_equal(whole.run.positions[:, 2::3], rare.run.positions)
    assert rare.run.n_frames == 3
    np.testing.assert_allclose(whole.run.time_fs[2::3], rare.run.time_fs)


@flax.struct.dataclass
class Soft(LennardJones):
    """Pairs that repel each other by ε (1 − (r / range)²)³, so that atoms may pass through each other."""

    def atomic_energies(self, graph: jm.Graph) -> PerAtom:
        """Half the pair energies, eV."""
        vectors, mask = edge_vectors(graph)
        squared = jnp.where(mask, (vectors**2).sum(-1) / self.range_**2, 1.0)
        return 0.5 * self.params["epsilon"] * jnp.maximum(1.0 - squared, 0.0).__pow__(3).sum(-1)


def gas_of_another(moves: int, warm_up: int) -> tuple[HybridRun, Any]:
    """An ideal gas at constant pressure, by a student whose atoms repel each other; its volumes in (N + 1) kT/P."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.5]] * 3), -1).reshape(-1, 3)
    gas = Atoms("Ar8", corners, cell=[3.1] * 3, pbc=True)
    gas.set_masses([1.0] * 8)  # pyright: ignore[reportArgumentType]
    student, teacher = (Soft({"epsilon": np.float32(e)}, range_=1.2) for e in (1.5, 0.0))
    pressure = 0.1
    sampled = hybrid_monte_carlo(
        student,
        teacher,
        gas,
        jm.NPT(REDUCED_K, pressure_GPa=pressure / GPA),
        moves=moves,
        replicas=32,
        proposal=Proposal(
            steps=4, timestep_fs=0.15 * REDUCED_TIME_FS, volume_width=0.6, volume_moves=1, warm_up=warm_up, adapts=False
        ),
        progress=False,
    )
    return sampled, sampled.run.volume * pressure / 9


def test_volumes_are_sampled() -> None:
    """Cells are those of the volumes, which are about what they should be."""
    sampled, reduced = gas_of_another(moves=20, warm_up=20)
    assert 0.3 < sampled.volume_acceptance < 0.8
    np.testing.assert_allclose(sampled.run.cells[..., 0, 0] ** 3, sampled.run.volume, rtol=1e-6)
    assert reduced.mean() == pytest.approx(1.0, abs=0.25)
    assert reduced.std() == pytest.approx(1 / 3, abs=0.15)


@pytest.mark.slow
@pytest.mark.physics
def test_volumes_of_an_ideal_gas(agrees: Any) -> None:
    """V has the Gamma distribution of N + 1, of mean (N + 1) kT/P."""
    sampled, reduced = gas_of_another(moves=150, warm_up=25)
    mean, square = correlated_mean(reduced), correlated_mean((reduced - 1.0) ** 2)
    assert mean.error < 0.025
    agrees("hybrid Monte Carlo, ideal gas at constant pressure: PV/(N + 1)kT", mean.value, mean.error, 1.0)
    agrees("hybrid Monte Carlo, ideal gas: var V P²/(N + 1)k²T²", 9 * square.value, 9 * square.error, 1.0)
    assert 0.5 < sampled.acceptance.mean() < 0.98


def water(repeats: int = 1) -> Atoms:
    """Ice Ih, wrapped, so that molecules lie across the faces of the cell."""
    ice = jm.ice_ih(molecules=16, seed=0)
    ice.wrap()
    return ice


def test_molecules_are_scaled_as_they_are() -> None:
    """Distances within molecules stay, centres of mass follow the cell, and the opposite factor leads back."""
    ice = water()
    points = molecules_scaled(ice)
    assert points.number == 16
    cells, positions = ice.cell.array[None], ice.positions[None]
    moved, reversible = points.scaled(positions, cells, np.array([1.03]))
    assert reversible.all()
    larger = ice.copy()
    larger.set_cell(1.03 * ice.cell.array)
    larger.positions = moved[0]
    for molecule in range(16):
        members = np.flatnonzero(points.molecule == molecule)
        assert sorted(ice.symbols[members]) == ["H", "H", "O"]
        a, b = (each.get_distances(members[0], members, mic=True) for each in (ice, larger))
        np.testing.assert_allclose(a, b, atol=1e-9)
    shares = points.weights
    np.testing.assert_allclose(shares.sum(1), 1.0)
    # Mean positions of whole molecules; atoms of wrapped ones follow their own images.
    firsts = points.order[points.parents[points.order] == points.order]
    inner = points._inner(positions, cells)[0]
    np.testing.assert_allclose(
        (moved[0] - points._inner(moved, 1.03 * cells)[0])[firsts], 1.03 * (ice.positions - inner)[firsts], atol=1e-9
    )
    back, _ = points.scaled(moved, 1.03 * cells, np.array([1 / 1.03]))
    np.testing.assert_allclose(back, positions, atol=1e-9)
    with pytest.raises(ValueError, match=r"not made of molecules.* Proposal\(scaled="):
        molecules_scaled(bulk("Si", cubic=True))


def test_lists_that_are_too_short_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals are computed again with more room, whatever becomes of them: the chain is the same but for rounding."""
    atoms = bulk("Ar", "fcc", a=1.75, cubic=True).repeat(2)
    atoms.set_masses([1.0] * 32)  # pyright: ignore[reportArgumentType]
    proposal = Proposal(steps=5, timestep_fs=0.005 * REDUCED_TIME_FS, warm_up=0)
    options: dict[str, Any] = {"moves": 3, "replicas": 2, "proposal": proposal, "progress": False}
    liquid = jm.NVT(temperature_K=REDUCED_K)
    weaker = lennard_jones().replace(params={"epsilon": np.float32(0.95), "sigma": np.float32(1.0)})
    roomy = hybrid_monte_carlo(weaker, lennard_jones(), atoms, liquid, **options)
    grown, room, grow = [], Capacity.holding, Capacity.grown

    def too_little(needs: Any, *others: Any) -> Capacity:
        return dataclasses.replace(room(needs, *others), listed=24, slots=24)

    def noted(self: Capacity, *others: Any) -> Capacity:
        grown.append(others)
        monkeypatch.setattr(Capacity, "holding", room)
        return grow(self, *others)

    monkeypatch.setattr(Capacity, "holding", too_little)
    monkeypatch.setattr(Capacity, "grown", noted)
    tight = hybrid_monte_carlo(weaker, lennard_jones(), atoms, liquid, **options)
    assert grown
    np.testing.assert_allclose(tight.run.positions, roomy.run.positions, atol=1e-4)
    np.testing.assert_array_equal(tight.acceptance, roomy.acceptance)


def test_energies_are_those_of_predictions() -> None:
    """With references, of the frames that are kept, by a calculator of ASE in double precision too."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    atoms.rattle(0.1, seed=0)
    calculator = AseLennardJones(epsilon=0.0104, sigma=3.4, rc=6.0, smooth=False)
    teacher = jm.from_ase(calculator, references={"Ar": -100.0})
    student = LennardJones({"epsilon": np.float32(0.0104), "sigma": np.float32(3.4)}, range_=6.0)
    proposal = Proposal(steps=3, timestep_fs=10.0, warm_up=0)
    cold = jm.NVT(temperature_K=40.0)
    sampled = hybrid_monte_carlo(student, teacher, atoms, cold, moves=3, proposal=proposal, progress=False)
    assert sampled.acceptance.mean() > 0.5
    assert sampled.teacher_calls == 4
    for frame, energy in zip(sampled.run, sampled.run.potential_energy[0], strict=True):
        frame.calc = calculator
        assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-9)


def test_energies_by_atom_are_exact_to_rounding() -> None:
    """Sums in double precision, of energies in single, differ by less than a total in single precision does."""
    atoms = bulk("Ar", "fcc", a=1.7, cubic=True).repeat(3)
    atoms.rattle(0.05, seed=0)
    energies = AtomicEnergies(lennard_jones(), atoms.numbers, moves_cell=False)
    found = energies(atoms.positions[None].astype(np.float32), atoms.cell.array[None])
    with jax.enable_x64(True):
        double = lennard_jones().replace(params={"epsilon": np.float64(1), "sigma": np.float64(1)})
        exact = AtomicEnergies(double, atoms.numbers, moves_cell=False)
        known = exact(atoms.positions[None].astype(np.float32).astype(np.float64), atoms.cell.array[None])
    assert found.dtype == np.float64
    assert abs(found.sum() - known.sum()) < 5e-5
    assert np.abs(found - known).max() < 2e-5


class Refusing(Calculator):
    """Wells that cannot be computed where an atom is far from where it was."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Energy and forces, or an exception."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        if len(self.atoms) > 1 and np.abs(self.atoms.positions - CENTRES).max() > 0.3:
            raise RuntimeError("the cycle has not converged")
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


def test_what_the_teacher_cannot_compute_is_refused() -> None:
    """With a warning that says why; nothing of it is kept."""
    teacher = jm.from_ase(Refusing(), references={"Ar": 0.0})
    with pytest.warns(UserWarning, match="teacher has failed on a proposal, which is refused.*not converged"):
        sampled = in_wells(wells(0.3), teacher=teacher, moves=5, replicas=4)
    assert sampled.broken > 0
    assert np.abs(sampled.run.positions - CENTRES).max() <= 0.3


def test_replicas_that_accept_nothing_are_told() -> None:
    """Averages over them mean nothing."""
    with pytest.warns(UserWarning, match="Replicas 0, 1 have accepted fewer than 1 %"):
        in_wells(wells(0.05, moved=1.0), moves=12, replicas=2)


FIXED = ATOMS.copy()
FIXED.set_constraint(FixAtoms([0]))
HYDROGEN = ATOMS.copy()
HYDROGEN.symbols[0] = "H"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": jm.NVE(300.0)}, "samples NVT.* or NPT.*, not NVE"),
        ({"ensemble": jm.NVT(jm.Ramp(300, 200, time_ps=1))}, "one state"),
        ({"ensemble": jm.NPT(300.0, cell="flexible")}, "cell=\"isotropic\", not 'flexible'"),
        ({"ensemble": jm.NPT(300.0)}, "periodic in all three directions"),
        ({"structure": FIXED}, "remove the constraints"),
        ({"structure": [ATOMS, HYDROGEN]}, "Structure 1 .* differs from structure 0"),
        ({"moves": 0}, "moves is a whole number"),
        ({"every": 3, "moves": 2}, "every is a whole number"),
        ({"seed": -1}, "seed"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"student": wells(), "teacher": wells(), "structure": ATOMS, "ensemble": ROOM, "moves": 2} | changes
    with pytest.raises(ValueError, match=message):
        hybrid_monte_carlo(**given, progress=False)


def test_unknown_elements_are_refused() -> None:
    """By student and by teacher."""
    from morse import morse

    for student, teacher in ((morse(), wells()), (wells(), morse())):
        with pytest.raises(ValueError, match="does not know Ar"):
            hybrid_monte_carlo(student, teacher, ATOMS, ROOM, moves=2, progress=False)


@pytest.mark.parametrize(
    "field",
    [{"steps": 0}, {"timestep_fs": -1.0}, {"refreshed": 0.0}, {"warm_up": -1}, {"target": 1.0}, {"volume_width": 2.0}],
)
def test_proposals_make_sense(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Proposal .*" + next(iter(field))):
        Proposal(**field)


def fluid() -> Atoms:
    """32 atoms of unit mass and σ = 1 Å at ρ = 0.75, on their lattice."""
    atoms = bulk("Ar", "fcc", a=(4.0 / 0.75) ** (1.0 / 3.0), cubic=True).repeat(2)
    atoms.set_masses([1.0] * 32)  # pyright: ignore[reportArgumentType]
    return atoms


def scaled_down() -> LennardJones:
    """A student whose wells are 8 % too shallow, and atoms half a per cent too small."""
    return LennardJones({"epsilon": np.float32(0.92), "sigma": np.float32(0.995)})


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("constant_pressure", [False, True])
def test_fluid_is_the_teachers(constant_pressure: bool, agrees: Any) -> None:
    """Lennard-Jones: energy, structure and density by a student are those of dynamics by the teacher."""
    friction, dt = 1000.0 / REDUCED_TIME_FS, 0.004 * REDUCED_TIME_FS
    ensemble = jm.NVT(REDUCED_K, friction_per_ps=friction)
    if constant_pressure:
        ensemble = jm.NPT(
            REDUCED_K,
            pressure_GPa=0.9897 / GPA,
            pressure_time_ps=0.0005 * REDUCED_TIME_FS,
            compressibility_per_GPa=0.1 * GPA,
            friction_per_ps=friction,
        )
    options: dict[str, Any] = {"timestep_fs": dt, "replicas": 16, "skin": 0.3, "progress": False}
    hot = jm.NVT(3.0 * REDUCED_K, friction_per_ps=friction)
    molten = jm.simulate(lennard_jones(), fluid(), hot, steps=1000, sample_every_fs=1000 * dt, **options)
    cooled = jm.simulate(lennard_jones(), [*molten], ensemble, steps=2000, sample_every_fs=2000 * dt, **options)
    direct = jm.simulate(lennard_jones(), [*cooled], ensemble, steps=12000, sample_every_fs=20 * dt, **options)
    proposal = Proposal(steps=30, timestep_fs=dt, warm_up=150, volume_width=0.1, most_steps=60)
    sampled = hybrid_monte_carlo(
        scaled_down(), lennard_jones(), [*cooled], ensemble, moves=900, proposal=proposal, progress=False
    )
    where = "constant pressure" if constant_pressure else "constant volume"
    assert 0.4 < sampled.acceptance.mean() < 0.95
    wanted: list[jm.Observable] = [jm.PotentialEnergy(), jm.RDF("Ar", "Ar", r_max=2.0, bins=40)]
    for observable in wanted + [jm.Density()] * constant_pressure:
        found, known = (correlated_mean(jm.observe(run, observable)) for run in (sampled.run, direct))
        if found.value.ndim:
            sigma = found.sigma_from(known)[found.value > 0.05]
            assert np.sqrt(np.mean(sigma**2)) < 1.6
            assert np.abs(sigma).max() < 4.0
            peak = int(np.argmax(known.value))
            values = [float(part[peak]) for each in (found, known) for part in (each.value, each.error)]
        else:
            values = [float(part) for each in (found, known) for part in (each.value, each.error)]
        name = f"hybrid Monte Carlo, Lennard-Jones at {where}: {observable.name}"
        agrees(name, values[0], values[1], values[2], known_error=values[3])


@pytest.mark.slow
@pytest.mark.physics
def test_ice_by_another_teachers_student(agrees: Any) -> None:
    """CHGNet, by a student of MACE-MP-0, whose proposals must be short: the energy is that of CHGNet's dynamics."""
    student = jm.load(str(Path(__file__).parents[1] / "simulation/data/ice_student.jaxmlip"))
    teacher, ice, cold = jm.load("chgnet:gga"), jm.ice_ih(molecules=16, seed=0), jm.NVT(250.0, friction_per_ps=10.0)
    options: dict[str, Any] = {"replicas": 2, "sample_every_fs": 10.0, "progress": False}
    settled = jm.simulate(teacher, ice, cold, time_ps=0.3, **options)
    direct = jm.simulate(teacher, settled.frames(30), cold, time_ps=1.0, **options)
    proposal = Proposal(steps=3, timestep_fs=0.4, warm_up=100, target=0.5, most_steps=60)
    sampled = hybrid_monte_carlo(
        student, teacher, settled.frames(30), cold, moves=400, proposal=proposal, progress=False
    )
    assert sampled.acceptance.mean() > 0.2
    found, known = (correlated_mean(run.potential_energy) for run in (sampled.run, direct))
    agrees("hybrid Monte Carlo, CHGNet's ice: ⟨U⟩", found.value, found.error, known.value, known_error=known.error)
