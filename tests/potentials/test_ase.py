"""The bridge to ASE: our potentials drive ASE's algorithms, and ASE's calculators label our structures."""

from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.calculator import Calculator as BaseCalculator
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.phonons import Phonons
from ase.stress import full_3x3_to_voigt_6_stress
from morse import TRACES, morse

from jaxmlip.potentials import ase as bridge
from jaxmlip.potentials import graph_sizes
from jaxmlip.potentials.ase import AseTeacher, Calculator
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import graph_from_atoms


def copper(repeat: int = 1, seed: int | None = 0, a: float = 3.75) -> Atoms:
    atoms = bulk("Cu", cubic=True, a=a) * repeat
    if seed is not None:
        atoms.rattle(0.08, seed=seed)
    return atoms


def strained(atoms: Atoms, scale: float, seed: int) -> Atoms:
    """A copy under a random strain."""
    copy = atoms.copy()
    strain = scale * np.random.default_rng(seed).normal(size=(3, 3))
    copy.set_cell(copy.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy


@pytest.fixture(autouse=True)
def _no_sizes_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: sizes of graphs that other tests compiled would do for this one."""
    monkeypatch.setattr(graph_sizes, "_SIZES", {})


class TestCalculator:
    def test_agrees_with_predict(self):
        potential = morse()
        for atoms in (copper(), molecule("H2O")):
            (frame,) = predict(potential, [atoms], stress=True)
            atoms.calc = Calculator(potential)
            assert atoms.get_potential_energy() == pytest.approx(frame.energy, abs=1e-4)
            assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
            np.testing.assert_allclose(atoms.get_forces(), frame.forces, atol=2e-5, rtol=1e-5)
            if atoms.pbc.all():
                np.testing.assert_allclose(atoms.get_stress(), full_3x3_to_voigt_6_stress(frame.stress), atol=1e-6)

    def test_agrees_with_finite_differences(self, x64):
        atoms = strained(copper(), 0.03, seed=1)
        atoms.calc = Calculator(morse(np.float64))
        np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
        numerical = calculate_numerical_stress(atoms, eps=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-7)
        assert np.abs(numerical).min() > 1e-5

    def test_relaxes_cell_and_positions(self):
        """A strained, rattled crystal relaxes to the lattice constant of lowest energy among perfect crystals."""
        potential = morse()
        constants = np.linspace(3.2, 3.8, 51)
        energies = [frame.energy for frame in predict(potential, [copper(seed=None, a=a) for a in constants])]
        lowest = int(np.argmin(energies))
        fit = np.polyfit(constants[lowest - 4 : lowest + 5], energies[lowest - 4 : lowest + 5], 3)
        best = float(min(np.roots(np.polyder(fit)).real, key=lambda a: abs(a - constants[lowest])))
        atoms = strained(copper(a=3.55), 0.01, seed=2)
        atoms.calc = Calculator(potential)
        cell_and_positions: Any = FrechetCellFilter(atoms)
        assert BFGS(cell_and_positions, logfile=None).run(fmax=8e-3, steps=60)
        assert atoms.get_volume() ** (1 / 3) == pytest.approx(best, abs=2e-3)
        assert np.abs(atoms.get_stress()).max() < 2e-4
        assert np.abs(atoms.get_forces()).max() < 8e-3

    @pytest.mark.slow
    def test_phonons_are_those_of_second_derivatives(self, x64, tmp_path):
        """Frozen phonons of a crystal at a wave vector that its supercell holds, against the Hessian of the energy."""
        potential, crystal = morse(np.float64), bulk("Cu", a=3.45)
        phonons = Phonons(crystal, Calculator(potential), supercell=(3, 3, 3), delta=1e-3, name=str(tmp_path / "cu"))
        phonons.run()
        phonons.read(acoustic=False, symmetrize=0)
        found = np.sort(phonons.band_structure([[1 / 3, 0, 0]], verbose=False)[0])

        supercell = crystal * (3, 3, 3)
        graph = graph_from_atoms(supercell, potential.cutoff, potential.inner_cutoff, dtype=np.float64)
        moved = lambda shift: evaluate(potential, graph.replace(positions=graph.positions.at[0].add(shift))).forces  # noqa: E731
        graph = jax.device_put(graph)
        constants = -jax.jacfwd(moved)(np.zeros(3))  # [atoms, 3, 3]
        phases = np.exp(2j * np.pi / 3 * crystal.cell.scaled_positions(supercell.positions)[:, 0])
        squares = np.linalg.eigvalsh(np.einsum("j,jab->ab", phases, constants) / crystal.get_masses()[0])
        expected = np.sqrt(squares) * units._hbar * units.m / np.sqrt(units._e * units._amu)
        assert expected.min() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_conserves_energy_with_few_lists(self, x64, monkeypatch):
        """150 steps of NVE: the skin saves most neighbour lists and changes nothing; total energy to 1e-4 eV/atom."""
        lists = []
        monkeypatch.setattr(
            bridge, "graph_from_atoms", lambda *args, **kwargs: lists.append(1) or original(*args, **kwargs)
        )
        atoms = copper(2)
        thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(3))
        atoms.calc = Calculator(morse(np.float64), skin=0.5)
        dynamics = VelocityVerlet(atoms, timestep=2.0 * units.fs)
        start, kinetic = atoms.get_total_energy(), atoms.get_kinetic_energy()
        dynamics.run(150)
        assert 1 < len(lists) < 40
        assert atoms.get_total_energy() == pytest.approx(start, abs=1e-4 * len(atoms))
        assert abs(atoms.get_kinetic_energy() - kinetic) > 1e-2 * len(atoms)
        fresh = atoms.copy()
        fresh.calc = Calculator(morse(np.float64), skin=0.0)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-10)

    def test_a_kept_list_misses_nothing(self, x64):
        """A walk of cell and atoms together: every step equals a calculation with a new list."""
        calculator = Calculator(morse(np.float64), skin=0.6)
        rng = np.random.default_rng(4)
        atoms = copper(2, a=3.6)
        kept = 0
        previous = None
        for step in range(30):
            atoms = strained(atoms, 0.003, seed=step)
            atoms.positions += 0.02 * rng.normal(size=(len(atoms), 3))
            calculator.calculate(atoms, ["energy"])
            kept += calculator._list_made_for is previous
            previous = calculator._list_made_for
            (fresh,) = predict(morse(np.float64), [atoms], stress=True)
            assert calculator.results["energy"] == pytest.approx(fresh.energy, abs=1e-9)
            np.testing.assert_allclose(calculator.results["forces"], fresh.forces, atol=1e-10)
        assert 10 < kept < 30

    def test_grows_by_one_compilation(self):
        calculator = Calculator(morse(), skin=0.3)
        for scale in (1.0, 1.01, 0.99):
            calculator.calculate(strained(copper(2, a=4.0 * scale), 0.01, seed=5))
        TRACES.clear()
        dense = copper(2, a=3.2)
        calculator.calculate(dense)
        for scale in (0.99, 1.0, 1.02, 1.25):
            calculator.calculate(strained(copper(2, a=3.2 * scale), 0.005, seed=6))
        assert len(TRACES) == 1
        (frame,) = predict(morse(), [dense])
        calculator.calculate(dense)
        assert calculator.results["energy"] == pytest.approx(frame.energy, abs=2e-6 * len(dense) + 1e-4)

    def test_growing_systems_compile_at_most_once_more(self):
        """Atoms may be added too: capacity grows in steps, and a structure 5 % larger finds room."""
        calculator = Calculator(morse())
        crystal = copper(3)
        crystal.pbc = False
        crystal = crystal[np.argsort(crystal.positions[:, 2])]
        calculator.calculate(crystal[:99])
        TRACES.clear()
        for number in range(100, 105):
            calculator.calculate(crystal[:number], ["forces"])
            assert calculator.results["forces"].shape == (number, 3)
        assert len(TRACES) == 1
        (frame,) = predict(morse(), [crystal[:104]])
        np.testing.assert_allclose(calculator.results["forces"], frame.forces, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "one", [pytest.param(True, id="one calculator"), pytest.param(False, id="one for each", marks=pytest.mark.slow)]
    )
    def test_any_sizes_take_a_handful_of_compilations(self, one: bool):
        """40 clusters of water, 3 to 174 atoms, in random order, with the right energies."""
        places = 3.0 * np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)
        water = molecule("H2O").positions
        clusters = [
            Atoms("OH2" * n, positions=(places[:n, None] + water).reshape(-1, 3))
            for n in np.random.default_rng(7).choice(np.arange(1, 59), 40, replace=False)
        ]
        potential = morse().replace(known=(1, 8) if one else (1, 6, 8))  # nothing is compiled for them yet
        calculator = Calculator(potential)
        TRACES.clear()
        found = []
        for atoms in clusters:
            atoms.calc = calculator if one else Calculator(potential)
            found.append(atoms.get_potential_energy())
        assert len(TRACES) <= 8
        expected = [frame.energy for frame in predict(potential, clusters)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_one_that_stays_gets_a_size_of_its_own(self, monkeypatch: pytest.MonkeyPatch):
        """After a larger structure too, as soon as padding has cost a compilation."""
        large, small = copper(3), copper(2)
        (frame,) = predict(morse(), [small])
        calculator: Any = Calculator(morse())
        calculator.calculate(large)
        calculator.calculate(small)
        assert calculator._graph.n_atoms == len(large)
        monkeypatch.setattr(graph_sizes, "SLOTS_PER_COMPILATION", 10 * len(large) * calculator._graph.n_slots)
        for _ in range(20):
            calculator.calculate(small)
        assert calculator._graph.n_atoms == len(small)
        assert calculator.results["energy"] == pytest.approx(frame.energy, abs=1e-3)

    def test_follows_changes_of_the_structure(self):
        """Species, periodicity and number of atoms may change under a calculator that has a list."""
        calculator = Calculator(morse())
        atoms = copper()
        silver = atoms.copy()
        silver.numbers[1] = 47
        free = atoms.copy()
        free.pbc = False
        fewer = atoms[:3]
        variants = [atoms, silver, free, fewer, atoms]
        for variant, frame in zip(variants, predict(morse(), variants), strict=True):
            variant.calc = calculator
            assert variant.get_potential_energy() == pytest.approx(frame.energy, abs=1e-4)
            variant.calc = None

    def test_stress_needs_a_volume(self):
        slab = copper()
        slab.center(vacuum=5.0, axis=2)
        slab.pbc = (True, True, False)
        slab.calc = Calculator(morse())
        with pytest.raises(PropertyNotImplementedError, match=r"Cu4 is periodic along \[True, True, False\]: stress"):
            slab.get_stress()
        assert np.isfinite(slab.get_forces()).all()

    def test_constraints_act_in_ase_alone(self):
        atoms = copper()
        atoms.calc = Calculator(morse())
        free = atoms.get_forces()
        atoms.set_constraint(FixAtoms([0]))
        np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), free)
        assert not atoms.get_forces()[0].any()

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"skin of the neighbour list must not be negative, but is -0\.1 Å"):
            Calculator(morse(), skin=-0.1)
        with pytest.raises(ValueError, match="no structure to work on"):
            Calculator(morse()).calculate()
        with pytest.raises(ValueError, match="does not know Au"):
            Calculator(morse()).calculate(bulk("Au"))
        with pytest.raises(ValueError, match="position of atom 0"):
            Calculator(morse()).calculate(Atoms("Cu", [[np.nan, 0, 0]]))
        with pytest.raises(CalculationFailed, match="The energy of Cu4 is not finite"):
            Calculator(morse(depth=np.nan)).calculate(copper())


class EnergyOnly(BaseCalculator):
    """A calculator without forces."""

    implemented_properties = ["energy"]  # noqa: RUF012 (as ASE declares it)

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        self.results = {"energy": 1.0}


class Broken(BaseCalculator):
    """A calculator that fails, or gives NaN."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, message: str | None = None):
        super().__init__()
        self.message = message

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if self.message:
            raise RuntimeError(self.message)
        self.results = {"energy": np.nan, "forces": np.zeros((len(atoms or ()), 3))}


NOT_CALLABLE = 3.0


class TestTeacher:
    def test_labels_are_the_calculators_own(self):
        free = bulk("Cu", cubic=True)
        free.rattle(0.1, seed=1)
        free.info["kind"] = "bulk"
        held = free.copy()
        held.set_constraint(FixAtoms([0, 1]))
        cluster = free.copy()
        cluster.pbc = False
        frames = AseTeacher("ase.calculators.emt:EMT").label([free, held, cluster], stress=True)
        for atoms, frame in zip((free, held, cluster), frames, strict=True):
            own = atoms.copy()
            own.set_constraint()
            own.calc = EMT()
            assert frame.energy == own.get_potential_energy()
            np.testing.assert_array_equal(frame.forces, own.get_forces())
            assert frame.atoms == atoms
            assert frame.atoms.calc is None
            assert len(frame.atoms.constraints) == len(atoms.constraints)
            assert frame.info["kind"] == "bulk"
            if atoms.pbc.all():
                np.testing.assert_array_equal(frame.stress, own.get_stress(voigt=False))
            else:
                assert np.isnan(frame.stress).all()
        assert held.constraints
        assert held.calc is None

    def test_names_with_arguments(self):
        name = 'ase:package.module:factory?path="a%26b=c"&cutoff=1e+1&nested={"x":[1,null]}&on=true'
        teacher = AseTeacher.parse(name)
        assert teacher == AseTeacher(
            "package.module:factory", {"path": "a&b=c", "cutoff": 10.0, "nested": {"x": [1, None]}, "on": True}
        )
        assert AseTeacher.parse(str(teacher)) == teacher
        assert str(AseTeacher("ase.calculators.emt:EMT")) == "ase:ase.calculators.emt:EMT"

    def test_arguments_reach_the_calculator(self):
        pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 1.0]])
        teacher = AseTeacher.parse("ase:ase.calculators.lj:LennardJones?epsilon=2.5&rc=1e3")
        (frame,) = teacher.label([pair])
        assert frame.energy == pytest.approx(0.0, abs=1e-9)
        assert frame.forces[1, 2] == pytest.approx(24 * 2.5)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("ase:ase.calculators.emt", "does not name an ASE calculator; write ase:package.module:factory"),
            ("ase::EMT", "does not name an ASE calculator"),
            ("ase:a:b?model=medium", "keyword argument 'model=medium'.*strings in double quotes"),
            ("ase:a:b?model", "keyword argument 'model' .it has no '='."),
        ],
    )
    def test_malformed_names(self, name, reason):
        with pytest.raises(ValueError, match=reason):
            AseTeacher.parse(name)

    @pytest.mark.parametrize(
        ("name", "error", "reason"),
        [
            ("ase:no_such_package.module:EMT", ImportError, "cannot be imported .*No module named 'no_such_package'"),
            ("ase:ase.calculators.emt:EMTT", ImportError, "cannot be imported .*no attribute 'EMTT'"),
            ("ase:ase.build:molecule?name=%22H2O%22", ValueError, "gives a Atoms, not an ASE calculator"),
            ("ase:test_ase:Broken?no_such=1", ValueError, "factory failed with these arguments .*no_such"),
            ("ase:test_ase:NOT_CALLABLE", ValueError, "is a float, which cannot be called"),
            ("ase:test_ase:EnergyOnly", ValueError, "Frame 0 .*does not implement forces"),
            ("ase:test_ase:Broken", ValueError, "Frame 0 .*the energy is not finite"),
            ("ase:test_ase:Broken?message=%22no%20licence%22", ValueError, "Frame 0 .*no licence"),
        ],
    )
    def test_failures_name_the_teacher(self, name, error, reason):
        with pytest.raises(error, match=reason) as caught:
            AseTeacher.parse(name).label([copper()])
        assert name in str(caught.value)

    def test_damaged_structures_are_named(self):
        with pytest.raises(ValueError, match=r"Frame 1 \(Cu\), teacher ase:.*position of atom 0"):
            AseTeacher("ase.calculators.emt:EMT").label([copper(), Atoms("Cu", [[np.inf, 0, 0]])])
        with pytest.raises(ValueError, match=r"Frame 0 \(Au4\).*"):
            AseTeacher("test_ase:EnergyOnly").label([bulk("Au", cubic=True)], stress=True)


original = bridge.graph_from_atoms
