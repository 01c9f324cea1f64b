"""A whole study in miniature: what it writes, how it is cached, that it survives a kill.

Its teachers are pair potentials that compile in no time, in files as a user's own would be; with the published ones it
is run by the slow test.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from water_pairs import HIGH, LOW

from jaxmlip.potentials.files import load_potential, read_header, save
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.study.clusters_to_bulk import stages
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.run import run_study
from jaxmlip.study.config import resolve
from jaxmlip.study.registry import study_of
from jaxmlip.study.workers import Place, make_stage

MINIATURE = {
    "name": "miniature",
    "system": {"molecules": 16},
    "sampling": {"replicas": 2, "time_ps": 0.006, "sample_every_fs": 0.5, "discard_ps": 0.001, "bulk_frames": 4},
    "clusters": {"radius": 3.0, "number": 10},
    "student": {"channels": 2, "layers": 1, "l_max": 1, "correlation": 2, "radial_mlp": [8], "cutoff": 4.0},
    "distillation": {"epochs": 2},
    "finetuning": {"epochs": 2},
    "dynamics": {"replicas": 2, "time_ps": 0.006, "sample_every_fs": 0.5},
    "strategies": ["differential", "multi_fidelity"],
    "test": {"frames": 4},
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name, teacher in (("low", LOW), ("high", HIGH)):
        save(teacher, folder / f"{name}.jaxmlip")
    return MINIATURE | {"teachers": {name: str(folder / f"{name}.jaxmlip") for name in ("low", "high")}}


@pytest.fixture(scope="module")
def config(content):
    return resolve(content, "miniature")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "run"


@pytest.fixture(scope="module")
def summary(config, folder):
    return run_study(config, folder, progress=False)


def numbers(summary):
    """The summary without what says when and how fast."""
    return {key: value for key, value in summary.items() if key not in ("wall_s", "stages_s")}


def test_summary_holds_every_number_with_its_error(summary):
    for strategy in ("differential", "multi_fidelity"):
        for labels in ("energy_forces", "energy"):
            student = summary["students"][strategy][labels]
            measured = [student[key] for key in ("force_rmse_meV_A", "energy_rmse_meV_atom")]
            measured += [student["rdf_error_A"][pair] for pair in ("OO", "OH", "HH")]
            measured += [student[key] for key in ("potential_energy_eV", "temperature_K")]
            assert all(np.isfinite([number["value"], number["error"]]).all() for number in measured)
            assert all(number["error"] > 0 for number in measured)
            assert student["verdict"]["level"]
    assert summary["teacher"]["force_rmse_meV_A"]["value"] < 1e-2
    assert summary["teacher"]["rdf_error_A"]["OO"]["noise_floor"] > 0
    assert {"jax", "jaxmlip", "chgnet"} <= set(summary["versions"])
    assert summary["seed"] == 0
    assert summary["wall_s"] == pytest.approx(sum(summary["stages_s"].values()))


@pytest.mark.slow
def test_published_teachers_differ_as_their_papers_say(tmp_path):
    """The functionals differ by −0.497 ± 0.009 eV per H2O on bulk ice, and by some 290 meV/Å in the forces."""
    published = resolve(MINIATURE, "miniature")
    assert isinstance(published, ClustersToBulk)
    low = run_study(published, tmp_path / "run", progress=False)["low_teacher"]
    assert low["energy_mean_meV_molecule"]["value"] == pytest.approx(497, abs=60)
    assert 100 < low["force_rmse_meV_A"]["value"] < 600


def test_folder_holds_what_the_readme_says(summary, folder, config):
    resolved = json.loads((folder / "config.json").read_text())
    assert resolve(resolved["config"], "config.json") == config
    student = folder / "stages" / "multi_fidelity.energy"
    potential = load_potential(student / "potential.jaxmlip")
    assert potential.species == (1, 8)
    assert read_header(student / "potential.jaxmlip")["provenance"]["seed"] == 0
    run = load_run(folder / "stages" / "dynamics-multi_fidelity.energy" / "run.h5")
    assert run.positions.shape == (2, 12, 48, 3)
    assert (folder / "stages" / "labels-high" / "clusters-train.extxyz").exists()
    assert not list((folder / "stages" / "labels-high").glob("bulk*")), "high-fidelity labels of the bulk leaked"


def test_report_is_one_file_that_names_every_student(summary, folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    for words in ("multi-fidelity (E + F)", "differential (E only)", "Which student can be trusted?"):
        assert words in page


def test_second_run_does_no_work(summary, config, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in (folder / "stages").rglob("*") if path.is_file()}
    again = run_study(config, folder, progress=True)
    printed = capsys.readouterr().out.splitlines()
    assert again == summary
    assert len(printed) == len(summary["stages_s"])
    assert all(line.endswith("kept from an earlier run") for line in printed)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_plans_and_workers_know_the_stages_that_were_made(summary, config, folder, tmp_path):
    """The plan has their digests, and a worker makes one of them as the whole run does, to the bit."""
    study = study_of(config)
    plan = study.plan(config, folder)
    assert plan.stages is not None
    made = {path.parent.name: json.loads(path.read_text())["key"] for path in folder.glob("stages/*/stage.json")}
    del made["report"]
    assert {stage.name: stage.key for stage in plan.stages} == made
    assert all(stage.done for stage in plan.stages)
    assert "All stages are done" in str(plan)
    shutil.copytree(folder, tmp_path / "run")
    for name in ("labels-high", "multi_fidelity.energy"):
        shutil.rmtree(tmp_path / "run" / "stages" / name)
        make_stage(config, Place(tmp_path / "run", Path.cwd()), name)
    for file in ("multi_fidelity.energy/potential.jaxmlip", "labels-high/clusters-train.extxyz"):
        one, other = (where / "stages" / file for where in (folder, tmp_path / "run"))
        assert one.read_bytes() == other.read_bytes()
    assert [stage.name for stage in study.plan(config, tmp_path / "run").left] == []


SAMPLED = ("sampling", "structures", "labels-low", "labels-high")


@pytest.mark.parametrize("kept", [pytest.param((), marks=pytest.mark.slow), SAMPLED], ids=["from nothing", "sampled"])
def test_interrupted_run_ends_with_the_same_numbers(summary, config, folder, tmp_path, monkeypatch, kept):
    """Killed in the second simulation that is left to do, then run again."""
    simulate, calls, fatal_call = stages.simulate, [], 2
    for stage in kept:
        shutil.copytree(folder / "stages" / stage, tmp_path / "run" / "stages" / stage)

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == fatal_call:
            raise KeyboardInterrupt
        return simulate(*arguments, **options)

    monkeypatch.setattr(stages, "simulate", dies)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = run_study(config, tmp_path / "run", progress=False)
    assert numbers(resumed) == numbers(summary)


def test_a_sum_that_no_file_can_hold_is_refused_before_any_work(tmp_path):
    with_calculator = MINIATURE | {"teachers": {"low": "ase:ase.calculators.emt:EMT"}}
    with_calculator |= {"strategies": [{"name": "differential", "baseline": "teacher"}]}
    refused = resolve(with_calculator, "miniature")
    assert isinstance(refused, ClustersToBulk)
    with pytest.raises(ValueError, match=r"adds its student to the teacher ase:.*EMT, and no file.*baseline: student"):
        run_study(refused, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run" / "stages").iterdir())


def test_more_frames_than_were_simulated(folder, summary, content):
    too_many = resolve(content | {"test": {"frames": 400}}, "miniature")
    assert isinstance(too_many, ClustersToBulk)
    with pytest.raises(
        ValueError, match=r"400 frames are asked for, but the simulation leaves only \d+; make it longer"
    ):
        run_study(too_many, folder, progress=False)
