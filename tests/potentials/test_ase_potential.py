"""ASE calculators as Potentials: the calculator's own numbers wherever a potential of ours runs, or one sentence."""

import copy
import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator as BaseCalculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from morse import morse
from typer.testing import CliRunner

import jaxmlip as jm
from jaxmlip.cli import app
from jaxmlip.observables.thermodynamics import PressureTensor
from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.ase_potential import AsePotential, from_ase, named
from jaxmlip.potentials.evaluation import compiled_evaluate, label, predict
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import evaluate, fingerprint, stack
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.driver import SimulationError
from jaxmlip.simulation.ensembles import NVE, NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.relaxation import relax
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Outcome, load_run
from jaxmlip.systems.graph import batch_graphs, graph_from_atoms
from jaxmlip.training.distill import teacher_references

EMT_NAME = "ase:ase.calculators.emt:EMT"


def copper(seed: int = 1, a: float = 3.65) -> Atoms:
    """Four rattled atoms in a cell that is no cube."""
    atoms = bulk("Cu", cubic=True, a=a)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.eye(3, k=1)), scale_atoms=True)
    atoms.rattle(0.08, seed=seed)
    return atoms


def own(atoms: Atoms) -> Atoms:
    """A copy with EMT itself."""
    twin = atoms.copy()
    twin.calc = EMT()
    return twin


class Scripted(BaseCalculator):
    """EMT without stress, that fails where the first atom's x exceeds `wall`, and for isolated atoms if told so."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, wall: float = np.inf, offset: float = 0.0, isolated: bool = True):
        super().__init__()
        self.wall, self.offset, self.alone, self.emt = wall, offset, isolated, EMT()
        self.parameters = {"wall": wall, "offset": offset}

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        assert atoms is not None
        if len(atoms) == 1 and not self.alone:
            raise RuntimeError("SCF did not converge")
        if atoms.positions[0, 0] > self.wall:
            raise RuntimeError("the licence\nhas expired.")
        twin = atoms.copy()
        twin.calc = self.emt
        charge = atoms.get_initial_charges().sum()
        self.results = {"energy": twin.get_potential_energy() + self.offset * len(atoms) + charge}
        self.results["forces"] = twin.get_forces()


@pytest.fixture(scope="module")
def emt() -> AsePotential:
    return named(EMT_NAME)


class TestNumbers:
    def test_a_batch_in_double_precision(self, emt, x64):
        """A crystal, a slab and a cluster in one padded graph: energies, forces and stress are the calculator's own."""
        slab, cluster = copper(2), copper(3)
        slab.pbc, cluster.pbc = (True, True, False), False
        structures = [copper(), slab, cluster]
        structures[0].positions += 3 * structures[0].cell.array[0]  # not wrapped
        graphs = [graph_from_atoms(atoms, 0.5, dtype=np.float64) for atoms in structures]
        batch = batch_graphs(graphs, n_atoms=16, n_graphs=5, slots=1)
        prediction = jax.device_get(jax.jit(lambda p, g: evaluate(p, g, stress=True))(emt, batch))
        for number, atoms in enumerate(structures):
            twin = own(atoms)
            energy = twin.get_potential_energy() - 4 * emt.references_for([29])[29]
            assert prediction.energy[number] == pytest.approx(energy, abs=1e-12)
            np.testing.assert_allclose(prediction.forces[4 * number : 4 * number + 4], twin.get_forces(), atol=1e-12)
            if atoms.pbc.all():
                np.testing.assert_allclose(prediction.stress[number], twin.get_stress(voigt=False), atol=1e-12)
            else:
                assert np.isnan(prediction.stress[number]).all()
        assert not prediction.energy[3:].any()
        assert not prediction.forces[12:].any()
        np.testing.assert_allclose(
            jax.jit(lambda p, g: g.sum_over_atoms(p.atomic_energies(g)))(emt, batch), prediction.energy, atol=1e-12
        )

    def test_predictions_labels_and_calculator_agree(self, emt):
        (predicted,) = predict(emt, [copper()], stress=True)
        (labelled,) = label([copper()], emt, stress=True)
        atoms, twin = copper(), own(copper())
        atoms.calc = Calculator(emt)
        for energy, forces, stress, close in (
            (labelled.energy, labelled.forces, labelled.stress, 1e-13),
            (predicted.energy, predicted.forces, predicted.stress, 3e-6),
            (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False), 3e-6),
        ):
            assert energy == pytest.approx(twin.get_potential_energy(), abs=close)
            np.testing.assert_allclose(forces, twin.get_forces(), atol=close)
            np.testing.assert_allclose(stress, twin.get_stress(voigt=False), atol=close)

    def test_transformations(self, emt, x64):
        """Forward mode, vmap over structures, a stack of potentials, a sum with a potential of ours."""
        graph = jax.tree.map(jnp.asarray, graph_from_atoms(copper(), 0.5, dtype=np.float64))
        along = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
        energy = lambda r: emt.energy(graph.replace(positions=r)).sum()  # noqa: E731
        here, slope = jax.jvp(energy, (graph.positions,), (along,))
        assert float(slope) == pytest.approx(-(own(copper()).get_forces() * np.asarray(along)).sum(), abs=1e-12)
        two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), graph)
        two = two.replace(positions=jnp.stack([graph.positions, graph.positions + 0.1 * along]))
        of_two = jax.jit(jax.vmap(lambda g: emt.energy(g).sum()))(two)
        np.testing.assert_allclose(of_two, [here, energy(two.positions[1])], atol=1e-12)
        stacked: Any = stack([emt, emt])
        by_model = jax.vmap(lambda p: jax.grad(lambda r: p.energy(graph.replace(positions=r)).sum())(graph.positions))
        np.testing.assert_allclose(by_model(stacked)[1], -own(copper()).get_forces(), atol=1e-12)

    def test_sum_with_a_potential_of_ours(self, emt):
        delta = morse()
        total, parts = (
            predict(emt + delta, [copper()], stress=True),
            [predict(p, [copper()], stress=True) for p in (emt, delta)],
        )
        assert total[0].energy == pytest.approx(sum(part[0].energy for part in parts), abs=1e-5)
        np.testing.assert_allclose(total[0].forces, sum(part[0].forces for part in parts), atol=1e-5)
        np.testing.assert_allclose(total[0].stress, sum(part[0].stress for part in parts), atol=1e-6)

        def loss(params: Any) -> Any:
            graph = graph_from_atoms(copper(), 5.0, 3.5)
            return (emt + delta.replace(params=params)).energy(graph).sum()

        assert np.isfinite(jax.grad(loss)(delta.params)["embedding"])

    def test_what_has_no_derivative_is_refused_in_a_sentence(self, emt):
        graph = graph_from_atoms(copper(), 0.5)
        with pytest.raises(
            NotImplementedError, match=r"parameters of the calculator ase:ase\.calc.*EMT are not known to JAX"
        ):
            jax.grad(lambda p: p.energy(graph).sum())(emt)
        for second in (jax.hessian, lambda f: jax.jit(jax.grad(lambda r: (jax.grad(f)(r) ** 2).sum()))):
            with pytest.raises(
                NotImplementedError, match=r"calculator ase:ase\.calc.*EMT gives energy, forces and stress, and"
            ):
                second(lambda r: emt.energy(graph.replace(positions=r)).sum())(jnp.asarray(graph.positions))


class TestReferences:
    def test_totals_keep_their_digits(self):
        """With −2000 eV an atom, single precision rounds what is left beyond isolated atoms, not the total."""
        atoms = copper()
        exact = own(atoms).get_potential_energy() - 4 * 2000.0
        (frame,) = predict(from_ase(Scripted(offset=-2000.0)), [atoms])
        assert frame.energy == pytest.approx(exact, abs=3e-6)
        lonely = from_ase(Scripted(offset=-2000.0, isolated=False), references={"Cu": -2000.0})
        assert predict(lonely, [atoms])[0].energy == pytest.approx(exact, abs=3e-6)

    def test_a_calculator_without_isolated_atoms_says_so(self):
        atoms = copper()
        lonely = from_ase(Scripted(offset=-2e5, isolated=False))
        with pytest.warns(UserWarning, match=r"isolated atoms of Cu \(RuntimeError: SCF did not.*rounds.*to 0\.06 eV"):
            (frame,) = predict(lonely, [atoms])
        assert frame.energy == pytest.approx(own(atoms).get_potential_energy() - 8e5, abs=0.07)
        assert teacher_references(lonely, [frame]) is None
        assert teacher_references(from_ase(Scripted()), [frame])[29] == EMT_CU  # pyright: ignore[reportOptionalSubscript]

    def test_wrong_references(self):
        with pytest.raises(ValueError, match=r"finite energy of an element in eV, not 'Xx': 1\.0"):
            from_ase(EMT(), references={"Xx": 1.0})


EMT_CU = 3.51
"""EMT's energy of an isolated copper atom, relative to the crystal, eV."""


class TestDynamics:
    @pytest.mark.parametrize(
        ("precision", "most"), [pytest.param("single", 1e-4, marks=pytest.mark.slow), ("double", 1e-8)]
    )
    def test_two_replicas_follow_ases_own_dynamics(self, emt, precision, most):
        """50 steps of 5 fs at 300 K."""
        with jax.enable_x64(precision == "double"):
            starts = [copper(1), copper(2)]
            driver = make_session(
                [emt], starts, NVE(300), Options(steps=50, timestep_fs=5.0, sample_every_fs=50)
            ).driver
            driver.prepare()
            state = jax.device_get(driver.replicas.state)
            driver.advance(50)
            furthest = 0.0
            for replica, atoms in enumerate(starts):
                twin = own(atoms)
                twin.set_momenta(state.momentum[replica])
                VelocityVerlet(twin, timestep=5.0 * units.fs).run(50)
                furthest = max(furthest, np.abs(driver.positions[replica] - twin.positions).max())
                assert np.abs(twin.positions - atoms.positions).max() > 0.1
        print(f"{precision}: {furthest:.1e} Å")
        assert furthest < most

    def test_a_cell_that_moves_and_what_is_observed(self, emt):
        """The stored energies and pressures of an NPT run are EMT's own for the stored frames."""
        ensemble = NPT(temperature_K=300, pressure_GPa=1.0, cell="flexible")
        options: dict[str, Any] = {"steps": 12, "timestep_fs": 4.0, "sample_every_fs": 16, "progress": False}
        observed: dict[str, Any] = {"observables": [PressureTensor()], "against": emt}
        run = simulate(emt, [copper(1), copper(2)], ensemble, on_failure="mark", **options, **observed)
        assert run.completed.all()
        assert run.cells is not None
        assert run.pressure_GPa is not None
        assert np.abs(np.diff(run.cells, axis=1)).max() > 1e-4
        for number, frame in enumerate(run):
            place = divmod(number, run.n_frames)
            assert run.potential_energy[place] == pytest.approx(own(frame).get_potential_energy(), abs=5e-6)
            virial = -np.trace(own(frame).get_stress(voigt=False)) / 3
            kinetic = (
                ensemble.integrator.degrees_of_freedom(4) * units.kB * run.temperature[place] / (3 * frame.get_volume())
            )
            assert run.pressure_GPa[place] == pytest.approx((virial + kinetic) / units.GPa, abs=1e-3)
        assert run.observed["squared force error"].max() < 1e-10
        assert np.abs(run.observed["energy difference"]).max() < 1e-6

    def test_a_run_goes_on_from_its_file(self, tmp_path):
        """From the command line; another calculator is another run."""
        copper().write(tmp_path / "copper.extxyz")
        line = ["--temperature_K", 300, "--timestep_fs", 4, "--sample_every_fs", 8, "--replicas", 2]
        line += ["--ensemble", "npt", "--cell", "flexible"]

        def md(out: str, time_ps: float, potential: str = EMT_NAME) -> Any:
            words = ["md", tmp_path / "copper.extxyz", "--potential", potential, "--time_ps", time_ps, *line]
            return CliRunner().invoke(app, [str(word) for word in [*words, "--out", tmp_path / out]])

        for out, time_ps in (("whole.h5", 0.032), ("parts.h5", 0.016), ("parts.h5", 0.032)):
            result = md(out, time_ps)
            assert result.exit_code == 0, result.output
        whole, parts = (load_run(tmp_path / f"{name}.h5") for name in ("whole", "parts"))
        np.testing.assert_array_equal(whole.positions, parts.positions)
        np.testing.assert_array_equal(whole.potential_energy, parts.potential_energy)
        assert whole.n_frames == 4
        other = md("parts.h5", 0.048, f"{EMT_NAME}?asap_cutoff=true")
        assert other.exit_code == 1
        assert "potential" in other.stderr

    def test_relaxation_ends_where_ases_does(self, emt):
        atoms = copper()
        relaxed = relax(emt, atoms, 0.002, 0.01)
        assert relaxed.converged
        twin = own(atoms)
        cell_and_positions: Any = FrechetCellFilter(twin)
        assert BFGS(cell_and_positions, logfile=None).run(fmax=1e-4, steps=100)
        assert relaxed.energy == pytest.approx(twin.get_potential_energy(), abs=1e-5)
        assert relaxed.atoms.get_volume() == pytest.approx(twin.get_volume(), rel=1e-3)


class TestRefusals:
    def test_a_calculator_without_stress_is_refused_before_anything_runs(self):
        potential, atoms = from_ase(Scripted(wall=-np.inf)), copper()  # it would fail if it were asked
        match = r"calculator test_ase_potential:Scripted gives no stress.*\(NVT"
        with pytest.raises(ValueError, match=match):
            simulate(potential, atoms, NPT(temperature_K=300, pressure_GPa=0), steps=40)
        with pytest.raises(ValueError, match=match):
            simulate(morse() + potential, atoms, NVT(300), steps=40, observables=[PressureTensor()])
        with pytest.raises(ValueError, match=match):
            relax(potential, atoms, stress_GPa=0.1)
        with pytest.raises(ValueError, match=f"Frame 0.*{match}"):
            predict(potential, [atoms], stress=True)

    def test_the_calculators_message_reaches_the_user(self, emt):
        """In the exception, in a warning where failures are marked, and where structures are predicted."""
        options: dict[str, Any] = {"steps": 12, "timestep_fs": 4.0, "sample_every_fs": 16, "progress": False}
        longer: dict[str, Any] = options | {"steps": 60}
        start, ensemble = copper(1), NPT(temperature_K=300, pressure_GPa=1.0, cell="flexible")
        far = start.copy()
        far.positions[:, 0] -= 5.0
        scripted = Scripted(wall=start.positions[0, 0] + 0.001)
        potential = from_ase(scripted)
        said = "The calculator test_ase_potential:Scripted failed for Cu4: RuntimeError: the licence has expired."
        with pytest.raises(SimulationError, match=f"Replica 1 failed.*finite.*{said}"):
            simulate(potential, [far, start], NVT(600), **longer)
        with pytest.warns(UserWarning, match=rf"Replicas have failed \(1\)\. {said}"):
            run = simulate(potential, [far, start], NVT(600), on_failure="mark", **longer)
        assert run.outcomes == (Outcome.COMPLETED, Outcome.NOT_FINITE)
        scripted.wall = -np.inf
        with pytest.warns(UserWarning, match=f"compared with has failed. {said}"):
            simulate(emt, [copper(1), copper(2)], ensemble, on_failure="mark", against=potential, **options)
        scripted.wall = start.positions[0, 0] - 1.0
        with pytest.raises(ValueError, match=rf"Frame 1 \(Cu4\).*energy.*not finite. {said}"):
            predict(potential, [far, start])
        assert potential.complaint() == ""

    def test_what_a_graph_does_not_carry(self):
        charged = copper()
        charged.set_initial_charges([0.5, 0, 0, 0])
        with pytest.raises(ValueError, match=r"Cu4 has initial charges \(initial_charges\), which the calculator"):
            predict(from_ase(Scripted()), [charged])
        (frame,) = predict(from_ase(Scripted(), template=charged), [charged])
        assert frame.energy == pytest.approx(own(charged).get_potential_energy() + 0.5, abs=3e-6)

    def test_no_file(self, emt, tmp_path):
        with pytest.raises(
            ValueError, match=r"cannot be written.*EMT runs a calculator of ASE, and a file holds numbers"
        ):
            save(emt + morse(), tmp_path / "a.jaxmlip")

    def test_no_calculator(self):
        for wrong in (EMT, copper(), morse(), None):
            with pytest.raises(TypeError, match="An ASE calculator is an object such as EMT"):
                from_ase(wrong)


class TestIdentity:
    def test_one_calculator_one_compilation(self):
        calculator = LennardJones(rc=5.0)
        predict(from_ase(calculator), [molecule("H2O")])
        compiled = compiled_evaluate._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
        predict(from_ase(calculator), [molecule("H2O")])
        predict(copy.deepcopy(from_ase(calculator)), [molecule("H2O")])
        assert compiled_evaluate._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]
        assert named(EMT_NAME).host is named(EMT_NAME).host

    def test_a_calculator_that_was_not_compiled_for_is_let_go(self):
        calculator = LennardJones()
        gone = weakref.ref(calculator)
        potential = from_ase(calculator)
        label([molecule("H2O")], potential)
        del calculator, potential
        gc.collect()
        assert gone() is None

    def test_fingerprints(self, emt):
        """The same in every process, and of all that tells calculators apart."""
        assert fingerprint(from_ase(EMT())) == fingerprint(from_ase(EMT()))
        others = [from_ase(EMT(asap_cutoff=True)), from_ase(EMT()), from_ase(LennardJones()), morse()]
        assert len({fingerprint(potential) for potential in [emt, *others]}) == 5


class TestNamed:
    def test_loaded_by_name(self):
        potential = load(f"{EMT_NAME}?asap_cutoff=true")
        assert isinstance(potential, AsePotential)
        assert str(potential) == f"{EMT_NAME}?asap_cutoff=true"
        assert potential.host.calculator.parameters["asap_cutoff"] is True
        with pytest.raises(ImportError, match="no_such_package"):
            load("ase:no_such_package:Calculator")
        with pytest.raises(ValueError, match=r"Frame 0.*the factory gives a Atoms, not an ASE calculator"):
            predict(load('ase:ase.build:molecule?name="H2O"'), [copper()])

    def test_tight_binding(self, monkeypatch):
        """GFN2-xTB of tblite: water at constant energy, and its totals of −138 eV."""
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # three atoms are no work to share
        pytest.importorskip("tblite", reason="needs tblite, an optional extra that has no wheels for this platform")
        water = molecule("H2O")
        water.rattle(0.02, seed=1)
        potential = load('ase:tblite.ase:TBLite?method="GFN2-xTB"&verbosity=0')
        (labelled,), (predicted,) = label([water], potential), predict(potential, [water])
        assert labelled.energy < -137
        assert predicted.energy == pytest.approx(labelled.energy, abs=1e-5)
        np.testing.assert_allclose(predicted.forces, labelled.forces, atol=1e-5)
        run = simulate(potential, water, NVE(300), steps=24, timestep_fs=0.5, sample_every_fs=2, progress=False)
        (again,) = label([run[run.n_frames - 1]], potential)
        assert run.potential_energy[0, -1] == pytest.approx(again.energy, abs=1e-4)
        assert run.conserved is not None
        assert np.ptp(run.conserved) < 0.1 * np.ptp(run.potential_energy)


def test_public_names():
    assert jm.from_ase is from_ase
    assert jm.AsePotential is AsePotential
