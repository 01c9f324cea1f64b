"""Each kind of file says what it is, on the command line and in Python, and odd ones what is odd."""

import json
import shutil
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import Sum, TrainingRecord
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.h5md import dataset_at
from jaxmlip.simulation.simulate import simulate
from jaxmlip.study.info import info
from jaxmlip.systems.dataset import Frame, write_frames
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.store import write_store

TESTS = Path(__file__).parents[1]
STUDENT = TESTS / "simulation" / "data" / "ice_student.jaxmlip"
FIRST = TESTS / "potentials" / "data" / "first_version.jaxmlip"


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    labelled = []
    for seed in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.04, seed=seed)
        atoms.calc = EMT()
        labelled.append(Frame(atoms.copy(), atoms.get_potential_energy(), atoms.get_forces()))
    return labelled


def told(path: Path, *options: str) -> dict:
    """What the command says of a file, for machines; in words it says so too."""
    result = CliRunner().invoke(app, ["info", str(path), "--json", *options])
    assert result.exit_code == 0, result.output
    words = CliRunner().invoke(app, ["info", str(path), *options])
    found = json.loads(result.stdout)
    assert words.stdout.splitlines()[0] == f"{path}: {found['kind']}"
    assert words.stdout.count("\nOdd: ") == len(found["odd"])
    return found


def test_labelled_frames_in_files_of_all_kinds(frames, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.extxyz", frames)
    write_store(tmp_path / "a.h5", frames, keys={"energy": "emt_energy"})
    for name in ("a.db", "a.json"):
        database = ase.db.connect(tmp_path / name, serial=True)
        for frame in frames:
            atoms = frame.atoms.copy()
            atoms.calc = EMT()
            atoms.get_forces()
            database.write(atoms)
    for name in ("a.extxyz", "a.h5", "a.db", "a.json"):
        found = told(tmp_path / name)
        assert found["odd"] == [], name
        facts = found["facts"]
        assert (facts["frames"], facts["elements"]) == (6, {"Cu": 24})
        least, largest = facts["labels"]["energy"]["range_eV_atom"]
        assert least == pytest.approx(min(frame.energy for frame in frames) / 4)
        assert largest == pytest.approx(max(frame.energy for frame in frames) / 4)
        assert facts["labels"]["forces"]["frames"] == 6
    assert told(tmp_path / "a.h5")["kind"] == "store of labelled frames"
    assert told(tmp_path / "a.h5")["facts"]["labels were called"] == {"energy": "emt_energy"}
    ase.io.write(tmp_path / "a.cif", frames[0].atoms)
    (odd,) = told(tmp_path / "a.cif")["odd"]
    assert "a.cif, frame 0 has neither 'energy' nor 'forces'" in odd


def test_odd_frames_are_told(frames, tmp_path: Path) -> None:
    scaled = [Frame(frame.atoms, frame.energy / units.Hartree, frame.forces) for frame in frames]
    write_frames(tmp_path / "hartree.extxyz", [*scaled, scaled[0]])
    odd = told(tmp_path / "hartree.extxyz")["odd"]
    assert "1 of 7 frames are there twice, as frame 6, which is frame 0." in odd
    assert any("the energies look like Hartree" in sentence for sentence in odd)
    write_frames(tmp_path / "other.extxyz", frames, prefix="emt_")
    (odd,) = told(tmp_path / "other.extxyz")["odd"]
    assert "the keys that are there: emt_energy, emt_forces" in odd
    assert told(tmp_path / "other.extxyz", "--energy-key", "emt_energy", "--forces-key", "emt_forces")["odd"] == []


def test_the_layout_of_mptrj(tmp_path: Path) -> None:
    structure = {
        "lattice": {"matrix": (4 * np.eye(3)).tolist()},
        "sites": [{"species": [{"element": "Cu", "occu": 1}], "xyz": [0.0, 0, 0], "abc": [0.0, 0, 0]}],
    }
    good = {"structure": structure, "uncorrected_total_energy": -3.7, "force": [[0.0, 0, 0]], "stress": None}
    (tmp_path / "mp.json").write_text(json.dumps({"mp-1": {"mp-1-0-0": good, "mp-1-0-1": {"structure": {}}}}))
    found = told(tmp_path / "mp.json")
    assert found["kind"] == "labelled frames in JSON of the MPtrj layout"
    assert found["facts"]["frames"] == 1
    assert found["odd"][0].startswith("1 more frames cannot be used, the first of them:")


def test_potentials(tmp_path: Path) -> None:
    found = told(STUDENT)
    (part,) = found["facts"]["potentials"]
    assert (found["kind"], found["facts"]["elements"], part["kind"]) == ("potential", ["H", "O"], "equivariant")
    potential = load(STUDENT)
    assert part["parameters"] == sum(np.size(leaf) for leaf in _leaves(potential.params))
    assert found["facts"]["references_eV"]["O"] == pytest.approx(float(potential.references[8]))
    assert found["facts"]["provenance"]["versions"]["jaxmlip"] == "0.1.0"
    assert "of version 1 of the format, which is read" in told(FIRST)["odd"][0]

    seen = load(FIRST)
    assert isinstance(seen, EquivariantPotential)
    seen = seen.replace(record=TrainingRecord(("energy",)))
    config = {"study": "train", "name": "copper", "strategy": {"name": "direct"}, "training": {"epochs": 3}}
    save(Sum((seen, potential)), tmp_path / "sum.jaxmlip", provenance={"seed": 3, "config": config})
    found = told(tmp_path / "sum.jaxmlip")
    assert found["facts"]["elements"] == ["H", "O", "Cu"]
    assert [part["kind"] for part in found["facts"]["potentials"]] == ["equivariant", "equivariant"]
    assert found["facts"]["provenance"]["config"] == {key: config[key] for key in ("study", "name", "strategy")}
    (odd,) = found["odd"]
    assert "trained on energy, never on stress" in odd
    shutil.copy(STUDENT, tmp_path / "without_suffix")
    assert told(tmp_path / "without_suffix")["kind"] == "potential"


def _leaves(params):
    return [leaf for value in params.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


def test_trajectories(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    times = {"time_ps": 0.003, "sample_every_fs": 1.0, "timestep_fs": 0.5}
    simulate(load(STUDENT), ice_ih(molecules=16, seed=0), NVT(250.0), to=path, replicas=2, seed=5, **times)
    found = told(path)
    facts = found["facts"]
    assert (found["kind"], facts["replicas"], facts["frames"], facts["atoms"]) == ("trajectory", 2, 6, 48)
    assert facts["time_ps"] == pytest.approx(0.003)
    assert facts["elements"] == {"O": 16, "H": 32}
    assert facts["provenance"]["run"]["seed"] == 5
    assert 0 < facts["temperature_K"][0] <= facts["temperature_K"][1] < 2000
    assert found["odd"] == []
    with h5py.File(path, "r+") as file:
        dataset_at(file, "parameters/outcomes")[1] = b"TOO_HOT"
        dataset_at(file, "parameters/lengths")[1] = 1
    found = told(path)
    assert found["facts"]["frames"] == 4
    assert found["odd"] == ["Replica 1 did not run to its end: its temperature rose above ten times the target."]


def test_configurations_and_runs(frames, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(f"study: train\nname: copper\nfoundation: {tmp_path / 'gone.jaxmlip'}\ndata: {{path: a.xyz}}\n")
    found = told(config)
    assert found["kind"] == "configuration, for `jaxmlip train`"
    assert (found["facts"]["study"], found["facts"]["name"], found["facts"]["seed"]) == ("train", "copper", 0)
    assert f"There is no foundation {tmp_path / 'gone.jaxmlip'}." in found["odd"]
    assert "There is no data.path a.xyz." in found["odd"]

    run = tmp_path / "run"
    for stage in ("labels", ".students.partial"):
        (run / "stages" / stage).mkdir(parents=True)
    (run / "stages" / "labels" / "stage.json").write_text('{"key": "k", "wall_s": 1.5, "inputs": {}, "versions": {}}')
    said = {"config": {"study": "train", "name": "copper"}, "seed": 4, "versions": {"jax": "0.9"}}
    (run / "config.json").write_text(json.dumps(said))
    found = told(run)
    assert found["facts"]["stages_s"] == {"labels": 1.5}
    assert (found["facts"]["seed"], found["facts"]["versions"]) == (4, {"jax": "0.9"})
    assert found["odd"] == ["The stage students is not finished; the same command goes on with it."]
    assert told(run / "config.json")["kind"] == "record of a run's configuration"
    assert told(run / "stages" / "labels" / "stage.json")["kind"] == "record of a stage"
    verdict = {"verdict": "pass", "observables": {"density": {"verdict": "pass"}}, "settings": {}}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    assert told(tmp_path / "verdict.json")["facts"]["observables"] == {"density": "pass"}
    (tmp_path / "validation").mkdir()
    shutil.move(tmp_path / "verdict.json", tmp_path / "validation" / "verdict.json")
    found = told(tmp_path / "validation")
    assert (found["kind"], found["facts"]["verdict"]) == ("folder of a validation", "pass")


def test_the_folder_of_a_training(tmp_path: Path) -> None:
    """What it was trained on, and the errors that it closed with."""
    config = {"study": "train", "name": "copper", "data": {"path": "a.xyz"}, "foundation": None, "training": {}}
    save(load(STUDENT), tmp_path / "potential.jaxmlip", provenance={"config": config, "seed": 3})
    (tmp_path / "errors.json").write_text('{"frames": 4, "force_rmse_meV_A": 80.0, "energy_rmse_meV_atom": null}')
    facts = told(tmp_path)["facts"]
    assert (facts["study"], facts["name"], facts["seed"]) == ("train", "copper", 3)
    assert facts["trained"] == {"data": {"path": "a.xyz"}}
    assert facts["errors of frames held out"] == {"force_rmse_meV_A": 80.0}
    assert told(tmp_path / "potential.jaxmlip")["facts"]["provenance"]["config"]["data"] == {"path": "a.xyz"}


def test_what_is_nothing_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"colour": "red"}')
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.jaxmlip").write_text("{")
    (tmp_path / "d").mkdir()
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["x"] = 1
    reasons = {
        "a.json": "no kind that jaxmlip writes; its keys are colour",
        "b.json": "no readable JSON",
        "c.jaxmlip": "not written by jaxmlip",
        "d": "not that of a run",
        "e.h5": "no store of frames",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            info(tmp_path / name)
        result = CliRunner().invoke(app, ["info", str(tmp_path / name)])
        assert result.exit_code == 1
        (line,) = result.stderr.strip().splitlines()
        assert str(tmp_path / name) in line
    with pytest.raises(FileNotFoundError, match="There is no file"):
        info(tmp_path / "gone.xyz")
