"""Learning curves in miniature, on real labels of ice: what they write, what they share, what they must not see."""

import concurrent.futures
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import jax
import numpy as np
import pytest
import yaml
from ase import Atoms

from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.study.config import resolve
from jaxmlip.study.learning_curve.config import LearningCurve, Schedule
from jaxmlip.study.learning_curve.report import measures, summarise, table
from jaxmlip.study.learning_curve.run import run_learning_curve
from jaxmlip.study.learning_curve.stages import formula_unit
from jaxmlip.study.registry import study_of
from jaxmlip.study.section import ConfigError
from jaxmlip.study.workers import Place, make_stage
from jaxmlip.study.workspace import Workspace
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.checkpoints import Checkpoints

LOW = {"energy_key": "mp0_energy", "forces_key": "mp0_forces"}
LABELS = ("energy_forces", "energy")
HIGH: dict[str, Any] = {"energy_key": "off23_energy", "forces_key": "off23_forces"}


def content(clusters, bulk, **changes):
    return {
        "study": "learning_curve",
        "foundation": {
            "data": [{"path": str(clusters), "index": ":6", **LOW}, {"path": str(clusters), "index": "6:8", **LOW}],
            "validation_fraction": 0.2,
            "references": {"H": -1.159, "O": -2.081},
            "student": {"channels": 2, "layers": 1, "l_max": 0, "correlation": 1, "radial_mlp": [4], "cutoff": 3.0},
            "training": {"steps": 4, "validations": 1},
        },
        "high": {"path": str(clusters), **HIGH},
        "validation": {"path": str(clusters), "index": "8:10", **HIGH},
        "test": {"path": str(bulk), "index": "5:7", **HIGH},
        "replay": [{"path": str(clusters), "index": ":2", **LOW}],
        "sizes": [4],
        "strategies": ["direct", "multi_fidelity"],
        "seeds": [0],
        "training": {"steps": 6, "validations": 2, "energy_weight": 40},
    } | changes


def configured(clusters, bulk, **changes):
    config = resolve(content(clusters, bulk, **changes), "miniature")
    assert isinstance(config, LearningCurve)
    return config


@pytest.fixture(scope="module")
def files(ice_data, tmp_path_factory):
    """As many frames as are looked at."""
    folder = tmp_path_factory.mktemp("ice")
    for name, number in (("clusters_4.0A.extxyz", 10), ("bulk.extxyz", 7)):
        ase.io.write(folder / name, ase.io.read(ice_data / name, index=f":{number}"))
    return folder / "clusters_4.0A.extxyz", folder / "bulk.extxyz"


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """Of a part of the grid, and then of the whole."""
    folder = tmp_path_factory.mktemp("curve") / "run"
    part = configured(*files, strategies=["multi_fidelity"], labels=["energy_forces"])
    run_learning_curve(part, folder, progress=False)
    assert [*(folder / "potentials").glob("*-*")] == [
        folder / "potentials" / "multi_fidelity-energy_forces-4-0.jaxmlip"
    ]
    return folder


@pytest.fixture(scope="module")
def results(files, folder):
    """Of the whole grid."""
    before = written(folder)
    results = run_learning_curve(configured(*files), folder, progress=False)
    after = written(folder)
    assert {path: after[path] for path in before} == before, "a stage of the part was made anew"
    return results


def written(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "stages").rglob("*") if path.is_file()}


def test_potentials_are_named_by_strategy_labels_size_and_seed(results, folder):
    names = {path.stem for path in (folder / "potentials").iterdir()}
    arms = {f"{strategy}-{labels}-4-0" for strategy in ("direct", "multi_fidelity") for labels in LABELS}
    assert names == arms | {"foundation"}
    assert {run["potential"] for run in results["runs"]} == {f"potentials/{name}.jaxmlip" for name in names}


def test_numbers_are_those_of_the_potentials(results, folder, files):
    test = read_frames(files[1], index="5:7", **HIGH)
    for arm in results["arms"]:
        name = f"{arm['strategy']}-{arm['labels']}-4-0" if arm["labels"] else "foundation"
        potential = load_potential(str(folder / "potentials" / f"{name}.jaxmlip"))
        expected = compare(test, predict(potential, [frame.atoms for frame in test]))
        assert arm["force_rmse_meV_A"]["value"] == pytest.approx(expected.force_rmse_meV_A, rel=1e-5)
        assert arm["force_rmse_meV_A"]["error_frames"] == pytest.approx(expected.force_rmse_meV_A_error, rel=1e-3)
        assert arm["energy_std_meV_atom"]["value"] == pytest.approx(expected.energy_std_meV_atom, rel=1e-3)
        assert arm["energy_mean_meV_H2O"]["value"] == pytest.approx(3 * expected.energy_mean_meV_atom, rel=1e-4)
        assert f"{expected.force_rmse_meV_A:.1f} (" in (folder / "table.md").read_text()
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_second_run_does_no_work(results, files, folder, capsys):
    before = written(folder) | {
        path: path.stat().st_mtime_ns for path in (folder / "table.md", folder / "results.json")
    }
    assert run_learning_curve(configured(*files), folder, progress=True) == results
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 5
    assert all(line.endswith("kept from an earlier run") for line in lines)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_plans_and_workers_know_the_stages_that_were_made(results, files, folder, tmp_path):
    """The plan has their digests, and a worker makes one of them as the whole run does, to the bit."""
    config = configured(*files)
    planned = study_of(config).plan(config, folder).stages
    assert planned is not None
    made = {path.parent.name: json.loads(path.read_text())["key"] for path in folder.glob("stages/*/stage.json")}
    assert {stage.name: stage.key for stage in planned} == made
    assert all(stage.done for stage in planned)
    assert {stage.name: stage.after for stage in planned}["direct-energy-4-0"] == ("foundation",)
    shutil.copytree(folder, tmp_path / "run")
    name = "multi_fidelity-energy-4-0"
    shutil.rmtree(tmp_path / "run" / "stages" / name)
    make_stage(config, Place(tmp_path / "run", Path.cwd()), name)
    one, other = (load_potential(where / "stages" / name / "potential.jaxmlip") for where in (folder, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(ConfigError, match="stack_seeds trains seeds as one program and workers one by one"):
        configured(*files, stack_seeds=True, workers=2)


def test_forces_of_nan_change_no_potential_of_energies(results, files, folder, tmp_path):
    """Forces are absent from training and validation; the foundation is the one of the whole grid."""
    frames = ase.io.read(files[0], index=":10")
    assert isinstance(frames, list)
    for atoms in frames:
        atoms.arrays["off23_forces"] = np.full((len(atoms), 3), np.nan)
    ase.io.write(tmp_path / "blind.extxyz", frames)
    foundation = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
    config = configured(tmp_path / "blind.extxyz", files[1], labels=["energy"], foundation=foundation)
    run_learning_curve(config, tmp_path / "blind", progress=False)
    for name in ("direct-energy-4-0.jaxmlip", "multi_fidelity-energy-4-0.jaxmlip"):
        seen, unseen = (load_potential(str(where / "potentials" / name)) for where in (folder, tmp_path / "blind"))
        assert jax.tree.structure(seen) == jax.tree.structure(unseen)
        for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(unseen), strict=True):
            np.testing.assert_array_equal(one, other)


def test_accurate_labels_of_the_bulk_are_seen_by_the_test_alone(files, folder, tmp_path):
    """Without those of all bulk frames but the tested ones, every potential is the same to the last bit."""
    frames, rng = [ice_ih(molecules=16, seed=seed) for seed in range(7)], np.random.default_rng(0)
    for atoms in frames:
        for energy, forces in (LOW.values(), HIGH.values()):
            atoms.info[energy], atoms.arrays[forces] = float(rng.normal()), rng.normal(size=(len(atoms), 3))
    with_labels, without = tmp_path / "with.extxyz", tmp_path / "without.extxyz"
    ase.io.write(with_labels, frames)
    for atoms in frames[:5]:
        atoms.info["off23_energy"], atoms.arrays["off23_forces"] = np.nan, np.full((len(atoms), 3), np.nan)
    ase.io.write(without, frames)
    potentials = {}
    for bulk in (with_labels, without):
        grid: dict[str, Any] = {"strategies": ["multi_fidelity"], "labels": ["energy_forces"], "sizes": [2]}
        grid["foundation"] = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
        replay = [{"path": str(bulk), "index": ":1", **LOW}, {"path": str(files[0]), "index": ":2", **LOW}]
        config = configured(files[0], bulk, **grid, replay=replay, training={"steps": 2, "validations": 1})
        run_learning_curve(config, tmp_path / bulk.stem, progress=False)
        potentials[bulk] = {path.name: load_potential(path) for path in (tmp_path / bulk.stem).glob("potentials/*")}
    assert len(potentials[without]) == 2
    for name, potential in potentials[without].items():
        jax.tree.map(np.testing.assert_array_equal, potential, potentials[with_labels][name])


def test_results_of_other_trainings_are_left_out(results, files, folder, tmp_path):
    """A training of other length shares the folder, but not the table; what is there of the same is in it."""
    place, wanted = tmp_path / "run", {"strategies": ["direct"], "labels": ["energy"]}
    shutil.copytree(folder, place)
    again = run_learning_curve(configured(*files, **wanted), place, progress=False)
    assert len(again["arms"]) == len(results["arms"]) == 5
    longer = {"steps": 12, "validations": 2, "energy_weight": 40}
    after = run_learning_curve(configured(*files, **wanted, training=longer), place, progress=False)
    assert [(arm["strategy"], arm["size"]) for arm in after["arms"]] == [("foundation", None), ("direct", 4)]


@pytest.mark.slow
def test_killed_within_a_training_it_ends_with_the_same_bits(files, folder, tmp_path, monkeypatch):
    """Kill -9 while a potential of the grid is trained; the same command goes on from the last checkpoint."""
    foundation = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
    training = {"steps": 150, "validations": 2, "checkpoint_minutes": 0.005}
    wanted = {"foundation": foundation, "strategies": ["direct"], "labels": ["energy"], "training": training}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content(*files, **wanted)))
    command = ["run", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "killed")]
    checkpoints = tmp_path / "killed" / "stages" / ".direct-energy-4-0.partial" / "training" / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", "from jaxmlip.cli import app; app()", *command])
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()

    found, latest = [], Checkpoints.latest
    monkeypatch.setattr(Checkpoints, "latest", lambda *given: found.append(latest(*given)) or found[-1])
    for out in ("killed", "undisturbed"):
        run_learning_curve(configured(*files, **wanted), tmp_path / out, progress=False)
    (_, notes), nothing = found
    assert 1 <= notes["epoch"] < 140
    assert nothing is None
    killed, undisturbed = (
        load_potential(str(tmp_path / out / "potentials" / "direct-energy-4-0.jaxmlip"))
        for out in ("killed", "undisturbed")
    )
    jax.tree.map(np.testing.assert_array_equal, killed, undisturbed)


def test_processes_share_a_folder(results, files, folder, tmp_path, capsys):
    """A run that another process is at work on is left to the end, and there is no second one of it."""
    foundation = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
    config = configured(*files, foundation=foundation, strategies=["direct"])
    first, second = (f"direct-{labels}-4-0" for labels in LABELS)
    other = Workspace(tmp_path / "run")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with other.claimed(first, wait=True):
            running = pool.submit(run_learning_curve, config, tmp_path / "run")
            while not (tmp_path / "run" / "potentials" / f"{second}.jaxmlip").exists():
                assert not running.done()
                time.sleep(0.05)
            assert not (tmp_path / "run" / "potentials" / f"{first}.jaxmlip").exists()
        running.result()
    assert run_learning_curve(config, tmp_path / "run") == running.result()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{first}:") and line.endswith(" s") for line in lines) == 1


@pytest.mark.slow
def test_closed_forms_run_once_with_energies(files, folder, tmp_path):
    """They have no seed, and see no forces."""
    foundation = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
    config = configured(*files, foundation=foundation, strategies=["pair_difference"], seeds=[0, 1])
    results = run_learning_curve(config, tmp_path / "run", progress=False)
    assert [(run.get("labels"), run.get("seed")) for run in results["runs"]] == [(None, None), ("energy", 0)]


@pytest.mark.slow
def test_stacked_seeds_are_those_of_single_runs(files, folder, tmp_path):
    foundation = {"potential": str(folder / "potentials" / "foundation.jaxmlip")}
    common = {"foundation": foundation, "strategies": ["direct"], "labels": ["energy"], "seeds": [0, 1]}
    found = []
    for stacked in (False, True):
        config = configured(*files, **common, stack_seeds=stacked)
        results = run_learning_curve(config, tmp_path / str(stacked), progress=False)
        found.append([run["force_rmse_meV_A"]["value"] for run in results["runs"] if "seed" in run])
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert found[0][0] != found[0][1]


def test_seeds_are_averaged():
    measured = {"energy_std_meV_atom": 1.0, "energy_std_meV_H2O": 3.0, "energy_mean_meV_H2O": -5.0}
    runs = [
        {"strategy": "direct", "labels": "energy", "size": 50, "seed": seed, "wall_s": 10.0, "diverged": None}
        | {name: {"value": value, "error": 0.5} for name, value in measured.items()}
        | {"force_rmse_meV_A": {"value": force, "error": 2.0}}
        for seed, force in enumerate((90.0, 100.0, 110.0))
    ]
    (arm,) = summarise(runs)
    assert arm["seeds"] == 3
    assert arm["force_rmse_meV_A"] == {
        "value": pytest.approx(100.0),
        "error_seeds": pytest.approx(10 / np.sqrt(3)),
        "error_frames": pytest.approx(2.0),
    }
    assert "| energies only | 50 | direct | 3 | 100.0 ± 5.8 (2) |" in table([arm])
    undefined = {
        "force_rmse_meV_A": {"value": None, "error": None},
        "energy_std_meV_H2O": {"value": 3.0, "error": None},
    }
    line = table(summarise([runs[0] | undefined])).splitlines()[2]
    assert "| – |" in line, "what is undefined is a dash"
    assert "3.0 (–)" in line
    (single,) = summarise(runs[:1])
    assert single["force_rmse_meV_A"]["error_seeds"] is None
    runs[0] |= {"diverged": "The loss is not finite.", "converged": False}
    runs[1] |= {"converged": False}
    assert "3 (1 diverged, 1 unconverged)" in table(summarise(runs))


def test_units_of_energies_come_from_the_composition():
    """Per formula unit where there is one; nothing knows of water."""

    def frames(*symbols: str) -> list[Frame]:
        return [Frame(Atoms(each), 0.0, np.zeros((len(Atoms(each)), 3))) for each in symbols]

    assert formula_unit(frames("H2O", "H4O2")) == ("H2O", 3)
    assert formula_unit(frames("Na4Cl4", "NaCl")) == ("ClNa", 2)
    for mixed in (("H2O", "CO2"), ("Si8", "Si2")):
        assert formula_unit(frames(*mixed)) == ("atom", 1)
    record = {"force_rmse_meV_A": 1, "energy_std_meV_atom": 1, "energy_std_meV_ClNa": 1, "energy_mean_meV_ClNa": 1}
    assert measures([{"energy_mean_meV_atom": 1}])[-1] == "energy_mean_meV_atom"
    assert measures([record]) == [*record]
    arm = {"strategy": "direct", "labels": "energy", "size": 5, "seeds": 1, "wall_s": 1.0}
    arm |= {"diverged": 0, "unconverged": 0}
    arm |= {name: {"value": 1.0, "error_seeds": None, "error_frames": 0.1} for name in record}
    assert "| the same, meV/ClNa | mean energy error meV/ClNa |" in table([arm])


def test_length_of_a_training_is_given_in_steps():
    schedule = Schedule(steps=1200, validations=12, batch_size=5)
    assert [schedule.settings(size, seed=1).epochs for size in (50, 100, 400)] == [120, 60, 15]
    assert schedule.settings(100, seed=1).validation_every == 5
    assert schedule.settings(100, seed=1).seed == 1
    with pytest.raises(ValueError, match="epochs follows from steps"):
        Schedule.model_validate({"epochs": 3})


def test_mistakes_are_named_before_any_work(files, tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match="names an environment variable that is not set"):
        run_learning_curve(configured("${NOWHERE}/a.extxyz", files[1]), tmp_path / "run", progress=False)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.extxyz"):
        run_learning_curve(configured(tmp_path / "nothing.extxyz", files[1]), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"sizes asks for 900 frames, but .* has 10; leave that size out"):
        run_learning_curve(configured(*files, sizes=[4, 900]), tmp_path / "run", progress=False)
    assert not list((tmp_path / "run" / "stages").iterdir())
    with pytest.raises(ConfigError, match="pair_difference: these strategies learn from energy alone, which"):
        configured(*files, strategies=["pair_difference"], labels=["energy_forces"])
    with pytest.raises(ConfigError, match="neither a potential nor data to distil"):
        configured(*files, foundation={})
