"""A student against its teacher, by every way there is; what is refused; what stands in the folder."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.files import finite
from jaxmlip.observables.estimate import Status
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import PotentialEnergy
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVE, NVT
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.systems.ice import ice_ih
from jaxmlip.units import GPA
from jaxmlip.validation import ladder
from jaxmlip.validation.ladder import whole_frames
from jaxmlip.validation.page import write_validation
from jaxmlip.validation.task import Sampling, named_values
from jaxmlip.validation.validate import Validation, validate
from jaxmlip.validation.verdict_file import VerdictFile
from jaxmlip.validation.ways import Response

DT = 0.005 * REDUCED_TIME_FS
ENSEMBLE = NVT(REDUCED_K, friction_per_ps=4000.0 / REDUCED_TIME_FS)
NAMES = ["rdf:Ar-Ar:r_max=1.7:bins=34", "potential_energy"]
TOLERANCES = {"potential_energy": 0.8, NAMES[0]: 0.05}
pytestmark = pytest.mark.optimised

SHORT = Sampling(time_ps=1.5 * DT, replicas=4, timestep_fs=DT, sample_every_fs=10 * DT)


def fluid(epsilon: float) -> LennardJones:
    return LennardJones({"epsilon": np.float32(epsilon), "sigma": np.float32(1.0)})


@pytest.fixture(scope="module")
def start() -> Atoms:
    atoms = bulk("Ar", "fcc", a=(4.0 / 0.75) ** (1.0 / 3.0), cubic=True) * (2, 2, 2)
    atoms.set_masses(np.ones(len(atoms)))
    atoms.rattle(0.1, seed=1)
    atoms.info["allow_close"] = True  # lengths are in units of σ
    # Molten and cooled: at its own temperature the crystal would last for longer than a run.
    for ensemble in (dataclasses.replace(ENSEMBLE, temperature_K=3 * REDUCED_K), ENSEMBLE):
        options: dict[str, Any] = {"timestep_fs": DT, "sample_every_fs": 400 * DT, "skin": 0.3, "progress": False}
        atoms = simulate(fluid(1.0), atoms, ensemble, steps=400, **options)[-1]
    return atoms


def simulated(start: Atoms, epsilon: float, seed: int) -> Run:
    options: dict[str, Any] = {"timestep_fs": DT, "sample_every_fs": 10 * DT, "skin": 0.3, "progress": False}
    return simulate(fluid(epsilon), start, ENSEMBLE, steps=2400, replicas=4, seed=seed, **options)


@pytest.fixture(scope="module")
def run(start: Atoms) -> Run:
    """Of the student, ε = 1."""
    return simulated(start, 1.0, 0)


def held(run: Run, epsilon: float, **options: Any) -> Validation:
    options = {"observables": NAMES, "tolerances": TOLERANCES, "progress": False} | options
    return validate(run, fluid(1.0), fluid(epsilon), ENSEMBLE, **options)


def test_student_equal_to_its_teacher_passes(run: Run) -> None:
    found = held(run, 1.0)
    assert found.answer == "pass"
    assert {each.method for each in found.observables.values()} == {"reweighting"}
    assert all(abs(float(each.difference)) < 1e-6 for each in found.observables.values() if each.difference)
    assert found.effective_frames > 50
    assert "pass" in repr(found)


@pytest.mark.physics
@pytest.mark.parametrize(
    ("epsilon", "way"), [pytest.param(1.02, "reweighting", marks=pytest.mark.slow), (1.4, "bridge")]
)
def test_all_ways_agree_with_the_teachers_own_simulation(
    epsilon: float, way: str, run: Run, start: Atoms, agrees
) -> None:
    """Reweighting to ε = 1.02 and a bridge to 1.4, against direct runs."""
    found = held(run, epsilon)
    direct = held(
        run, epsilon, teacher_run=simulated(start, epsilon, 7), sampling=dataclasses.replace(SHORT, bridge=False)
    )
    for name in NAMES:
        assert found.observables[name].method == way
    energy, own = (each.observables["potential_energy"] for each in (found, direct))
    assert (own.method, own.answer, energy.answer) == ("direct", "fail", "fail")
    one, other = energy.teacher, own.teacher
    assert one is not None
    assert other is not None
    quantity = f"Lennard-Jones, 32 atoms, <U> of ε = {epsilon} from ε = 1 by {way}"
    agrees(quantity, one.value, one.error, float(other), known_error=float(other.error))
    one, other = (each.observables[NAMES[0]].teacher for each in (found, direct))
    assert one is not None
    assert other is not None
    apart = one - other
    # Of the sigmas of 34 bins hardly one is beyond 3.5.
    assert np.abs(apart.sigma_from(0.0))[apart.error > 0].max() < 3.5


@pytest.mark.slow
@pytest.mark.physics
def test_students_equal_to_their_teacher_seldom_fail(start: Atoms) -> None:
    """Of 40 that are held against runs of their teacher's own, whatever is tolerated: at most 5 % are to fail.

    More than 6 would, in 3 of 1000 such tests.
    """
    options: dict[str, Any] = {"timestep_fs": DT, "sample_every_fs": 10 * DT, "skin": 0.3, "progress": False}
    both = [simulate(fluid(1.0), start, ENSEMBLE, steps=3200, replicas=160, seed=seed, **options) for seed in (20, 21)]
    nothing = dict.fromkeys(NAMES, 1e-9)
    failed = 0
    for repeat in range(40):
        student, teacher = (each.part(slice(4 * repeat, 4 * repeat + 4)) for each in both)
        found = held(student, 1.0, teacher_run=teacher, tolerances=nothing)
        assert {each.method for each in found.observables.values()} == {"direct"}
        failed += found.answer == "fail"
    assert failed <= 6, f"{failed} of 40 fail"


def test_linear_response(run: Run) -> None:
    """Small changes as by reweighting; its error has the second order in it."""
    by_weights = held(run, 1.02).observables["potential_energy"]
    energies = ladder.Ladder(*_ladder_arguments(run, 1.02))
    way = Response(energies.change)
    one, other, difference = way.averages(
        PotentialEnergy(),
        [energies.own.values(PotentialEnergy(), fluid(1.0), 0)],
        [energies.own.values(PotentialEnergy(), fluid(1.02), 1)],
    )
    assert by_weights.difference is not None
    assert float(difference) == pytest.approx(float(by_weights.difference), abs=3 * float(difference.error))
    assert float(one - other) == pytest.approx(float(difference), rel=1e-6)
    _, second = way.orders(energies.own.values(PotentialEnergy(), fluid(1.02), 1))
    assert difference.error >= abs(second)


def _ladder_arguments(run: Run, epsilon: float) -> tuple[Any, ...]:
    from jaxmlip.validation.task import Task

    task = Task.of(run, fluid(1.0), fluid(epsilon), ENSEMBLE, NAMES, TOLERANCES, SHORT)
    return task, run, None, None, False


def test_cannot_tell_what_no_way_tells(run: Run) -> None:
    """Far apart and no simulation allowed: no number of the teacher, and what it would take."""
    found = held(run, 3.0, sampling=dataclasses.replace(SHORT, bridge=False))
    assert found.answer == "cannot tell"
    energy = found.observables["potential_energy"]
    assert (energy.teacher, energy.method) == (None, None)
    assert energy.student is not None
    assert "a simulation of the teacher" in energy.reason
    assert {"reweighting", "bridge", "direct"} <= set(found.refused)
    told = repr(found).splitlines()
    assert [line for line in told if line.startswith("no bridge: it is not wanted")]
    assert [line for line in told if line.startswith(f"{NAMES[1]}: it would take") and "--allow-teacher-md" in line]


def test_folder_and_page(start: Atoms, tmp_path: Path) -> None:
    """Simulates, writes what the schema promises, and goes on from what is there without simulating again."""
    sampling = dataclasses.replace(SHORT, time_ps=400 * DT / 1000.0)
    options: dict[str, Any] = {"observables": NAMES, "sampling": sampling, "to": tmp_path, "progress": False}
    found = validate(start, fluid(1.0), fluid(1.01), ENSEMBLE, **options)
    write_validation(tmp_path, found, {"potential": "student"})
    content = json.loads((tmp_path / "verdict.json").read_text())
    assert content["verdict"] == found.answer
    for name in NAMES:
        one = content["observables"][name]
        assert one["method"] in ("reweighting", "bridge", "response", "direct", None)
        assert one["verdict"] in ("pass", "fail", "cannot tell")
        assert {"value", "error"} <= set(one["student"])
    assert content["versions"]["jaxmlip"]
    page = (tmp_path / "report.html").read_text()
    assert "Can this potential" in page
    assert "potential_energy" in page
    before = load_run(tmp_path / "student.h5").positions
    again = validate(start, fluid(1.0), fluid(1.01), ENSEMBLE, **options)
    np.testing.assert_array_equal(load_run(tmp_path / "student.h5").positions, before)
    assert finite(again.to_json()) == finite(found.to_json())
    with pytest.raises(ValueError, match="of another run or of other potentials"):
        validate(start, fluid(1.0), fluid(1.02), ENSEMBLE, **options)


def test_refuses_before_anything_runs(run: Run, start: Atoms) -> None:
    one = fluid(1.0)
    here: dict[str, Any] = {"progress": False}
    with pytest.raises(ValueError, match="holds no temperature"):
        validate(start, one, one, NVE(REDUCED_K), **here)
    with pytest.raises(ValueError, match="at one temperature"):
        validate(start, one, one, NVT(Ramp(10.0, 20.0, time_ps=1.0)), **here)
    with pytest.raises(ValueError, match="density is the same in all frames of NVT"):
        validate(start, one, one, ENSEMBLE, observables=["density"], **here)
    with pytest.raises(ValueError, match="There is no observable 'colour'"):
        validate(start, one, one, ENSEMBLE, observables=["colour"], **here)
    with pytest.raises(ValueError, match="course in time, which weights of frames do not give"):
        validate(start, one, one, ENSEMBLE, observables=["msd:Ar"], **here)
    with pytest.raises(ValueError, match="asked for twice"):
        validate(start, one, one, ENSEMBLE, observables=[RDF("Ar", "Ar"), RDF("Ar", "Ar")], **here)
    with pytest.raises(ValueError, match="hold no O"):
        validate(start, one, one, ENSEMBLE, observables=["rdf:O-O"], **here)
    with pytest.raises(ValueError, match="tolerance for density"):
        validate(start, one, one, ENSEMBLE, tolerances={"density": 1.0}, **here)
    molecule = Atoms("Ar2", [[0, 0, 0], [1.2, 0, 0]])
    with pytest.raises(ValueError, match="periodic in all three"):
        validate(molecule, one, one, ENSEMBLE, observables=["rdf:Ar-Ar"], **here)
    other = dataclasses.replace(run, numbers=np.full(32, 10))
    with pytest.raises(ValueError, match="of other atoms"):
        held(run, 1.0, teacher_run=other)


def test_failing_simulation_fails(run: Run) -> None:
    hot = dataclasses.replace(run, temperature=100.0 * run.temperature)
    found = held(hot, 1.0)
    assert found.answer == "fail"
    assert "six σ of its thermostat" in found.reason
    assert {each.answer for each in found.observables.values()} == {"fail"}


def test_default_observables(start: Atoms) -> None:
    from jaxmlip.validation.task import Task

    one = fluid(1.0)
    at_pressure = NPT(REDUCED_K, 0.5 / GPA)
    names = [*Task.of(start, one, one, at_pressure, None, None, SHORT).observables]
    assert names == ["rdf:Ar-Ar", "potential_energy", "density"]
    cluster = start.copy()
    cluster.pbc = False
    with pytest.warns(
        UserWarning, match=r"energies alone are compared: name what matters as observables, such as bond:"
    ):
        names = [*Task.of(cluster, one, one, NVT(REDUCED_K), None, None, SHORT).observables]
    assert names == ["potential_energy"]
    with warnings.catch_warnings(action="error"):
        Task.of(cluster, one, one, NVT(REDUCED_K), ["coordination:Ar-Ar:r_0=4"], None, SHORT)


def test_bridges_end_with_a_frame() -> None:
    """So that nobody is warned of a length that nobody chose."""
    assert [whole_frames(steps, 20) for steps in (285.0, 280.0, 279.9, 3.0)] == [280, 280, 260, 20]


def test_published_schema() -> None:
    published = Path(__file__).parents[2] / "docs" / "verdict.schema.json"
    assert json.loads(published.read_text()) == VerdictFile.model_json_schema()


def test_numbers_by_name() -> None:
    assert named_values(["density=0.01", "rdf:O-O:r_max=5=0.2"]) == {"density": 0.01, "rdf:O-O:r_max=5": 0.2}
    for wrong in ("density", "density=", "density=-1", "density=nan"):
        with pytest.raises(ValueError, match="NAME=VALUE with a positive number"):
            named_values([wrong])


def test_statuses_reach_the_answer(run: Run) -> None:
    """A run that has not settled says so in place of a number that looks good."""
    short = run.during(slice(0, 6))
    found = held(short, 1.0)
    assert found.answer == "cannot tell"
    assert found.observables["potential_energy"].student is not None
    assert found.observables["potential_energy"].student.status is not Status.OK


def test_command(tmp_path: Path) -> None:
    """A student of ice against itself; and a mistake, told in a sentence before anything runs."""
    student = str(Path(__file__).parents[1] / "simulation" / "data" / "ice_student.jaxmlip")
    write(tmp_path / "ice.extxyz", ice_ih(molecules=16, seed=0))
    words = ["validate", str(tmp_path / "ice.extxyz"), "--potential", student, "--against", student]
    words += ["--temperature_K", "100", "--time_ps", "0.03", "--sample_every_fs", "1", "--replicas", "2", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--observables", "density", "--out", str(tmp_path / "no")])
    assert done.exit_code == 1
    assert "whose cell does not move" in done.output
    assert not (tmp_path / "no").exists()
    done = CliRunner().invoke(app, [*words, "--observables", "potential_energy,rdf:O-O", "--out", str(tmp_path / "v")])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "v" / "verdict.json").read_text())
    assert [*content["observables"]] == ["potential_energy", "rdf:O-O"]
    assert content["verdict"] in ("pass", "cannot tell")
    assert content["settings"]["against"] == student
