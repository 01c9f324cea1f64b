"""A whole study in miniature: what it writes, how it is cached, that it survives a kill.

Its teachers are pair potentials that compile in no time, in files as a user's own would be; with the published ones it
is run by the slow test.
"""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner
from water_pairs import HIGH, LOW

from jaxmlip.cli import app
from jaxmlip.potentials.files import load_potential, read_header, save
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.study.clusters_to_bulk import stages
from jaxmlip.study.clusters_to_bulk.comparison import compare_studies
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.run import run_study
from jaxmlip.study.clusters_to_bulk.summary_file import ComparisonFile, SummaryFile
from jaxmlip.study.config import load_config, resolve
from jaxmlip.study.registry import study_of
from jaxmlip.study.workers import Place, make_stage
from jaxmlip.systems.dataset import has_stress, read_frames

MINIATURE = {
    "name": "miniature",
    "system": {"molecules": 16},
    "sampling": {"replicas": 2, "time_ps": 0.006, "sample_every_fs": 0.5, "discard_ps": 0.001, "bulk_frames": 4},
    "clusters": {"radius": 3.0, "number": 10},
    "student": {"channels": 2, "layers": 1, "l_max": 0, "correlation": 1, "radial_mlp": [4], "cutoff": 4.0},
    "distillation": {"epochs": 2},
    "finetuning": {"epochs": 2},
    "dynamics": {"replicas": 2, "time_ps": 0.006, "sample_every_fs": 0.5},
    "strategies": ["multi_fidelity"],
    "test": {"frames": 4},
}
SEVERAL = {"seeds": 2, "ensembles": ["NVT", {"ensemble": "NPT", "time_ps": 0.004}]}
"""Students of two seeds, with a density."""


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name, teacher in (("low", LOW), ("high", HIGH)):
        save(teacher, folder / f"{name}.jaxmlip")
    return MINIATURE | {"teachers": {name: str(folder / f"{name}.jaxmlip") for name in ("low", "high")}}


def checked(content) -> ClustersToBulk:
    config = resolve(content, "miniature")
    assert isinstance(config, ClustersToBulk)
    return config


@pytest.fixture(scope="module")
def config(content):
    return checked(content | SEVERAL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "run"


@pytest.fixture(scope="module")
def summary(config, folder):
    return run_study(config, folder, progress=False)


@pytest.fixture(scope="module")
def of_one(summary, content, folder, tmp_path_factory):
    """The same study with one seed, in a folder that holds the other's stages."""
    copied = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(folder, copied)
    return run_study(checked(content | SEVERAL | {"seeds": 1}), copied, progress=False), copied


def numbers(summary):
    """The summary without what says when and how fast."""
    return {key: value for key, value in summary.items() if key not in ("wall_s", "stages_s")}


def test_summary_holds_every_number_with_its_error(summary):
    for student in (summary["students"]["multi_fidelity"][labels] for labels in ("energy_forces", "energy")):
        measured = [student[key] for key in ("force_rmse_meV_A", "energy_rmse_meV_atom")]
        measured += [student["rdf_error_A"][pair] for pair in ("OO", "OH", "HH")]
        measured += [student[key] for key in ("potential_energy_eV", "temperature_K")]
        assert all(np.isfinite([number["value"], number["error"]]).all() for number in measured)
        assert all(number["error"] > 0 for number in measured)
        assert student["verdict"]["level"]
        assert student["force_rmse_meV_A"]["seeds"] == (2 if summary["seeds"]["students"] == 2 else 1)
        density = student["ensembles"]["NPT"]["density_deviation_percent"]
        assert abs(density["value"]) < 10
        forces = [each["force_rmse_meV_A"] for each in student["by_seed"]]
        assert student["force_rmse_meV_A"]["value"] == pytest.approx(np.mean([each["value"] for each in forces]))
        assert student["force_rmse_meV_A"]["error"] >= min(each["error"] for each in forces)
    first, second = (each["temperature_K"]["value"] for each in student["by_seed"])
    assert first != second, "the runs of both seeds have the same random numbers"
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
    bulk = read_frames(folder / "stages" / "labels-low" / "bulk-train.extxyz")
    assert all(map(has_stress, bulk)), "pressure would come from potentials that have never seen one"
    at_pressure = load_run(folder / "stages" / "dynamics-multi_fidelity.energy.1-NPT" / "run.h5")
    assert np.ptp(np.linalg.det(at_pressure.cells)) > 0
    assert (folder / "stages" / "labels-high" / "clusters-train.extxyz").exists()
    assert not list((folder / "stages" / "labels-high").glob("bulk*")), "high-fidelity labels of the bulk leaked"


def test_report_is_one_file_that_names_every_student(summary, folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    for words in ("multi-fidelity (E + F)", "multi-fidelity (E only)", "Which student can be trusted?"):
        assert words in page
    # The verdict comes first, and every number says where it is from.
    places = [page.index(words) for words in ("What was asked, at 95 %", "can be trusted?", "<img", "All numbers")]
    assert places == sorted(places)
    key = summary["provenance"]["multi_fidelity.energy"][1]["runs"]["NPT"]["key"]
    assert f"dynamics-multi_fidelity.energy.1-NPT ({key[:12]}" in page


@pytest.mark.parametrize("name", ["quick", "desk", "full"])
def test_configurations_of_the_study(name):
    """They are as the study wants them, and as large as their comments say."""
    path = Path(__file__).parents[2] / "experiments" / "clusters_to_bulk" / f"{name}.yaml"
    config = load_config(path)
    assert isinstance(config, ClustersToBulk)
    dynamics = [
        (config.dynamics.time_ps, config.dynamics.replicas),
        (config.sampling.time_ps, config.sampling.replicas),
    ]
    calls, sampled = (round(1e3 * time * replicas / config.dynamics.timestep_fs) for time, replicas in dynamics)
    closed = [strategy for strategy in config.strategies if not strategy.seeded]
    arms = sum(len({*config.labels} & {*strategy.sees}) for strategy in config.strategies if strategy.seeded)
    foundations = config.seeds if config.own_foundations else 1
    lifts = config.seeds * arms
    students = foundations + lifts + foundations * len(closed)
    said = path.read_text()
    if name != "quick":
        assert f"low teacher {sampled:,}" in said
        assert f"{foundations} foundation" in said
        assert f"{lifts} lifts" in said
        assert f"students {students} × {calls * len(config.ensembles):,}" in said
        assert f"high teacher {len(config.ensembles)} × {calls:,}" in said
        assert config.seeds >= 3
        assert {each.ensemble for each in config.ensembles} == {"NVT", "NPT"}
        frames = config.sampling.replicas * (config.sampling.time_ps - config.sampling.discard_ps) * 1e3
        assert frames / config.sampling.sample_every_fs >= config.sampling.bulk_frames


def test_ensembles_are_told_apart():
    ensembles = ["NVT", {"ensemble": "NPT", "cell": "flexible", "temperature_K": 270}, {"ensemble": "NPT"}]
    config = checked(MINIATURE | {"ensembles": ensembles})
    assert [each.called for each in config.ensembles] == ["NVT", "NPT-flexible-270K", "NPT"]
    with pytest.raises(ValueError, match="NVT is there more than once; leave one of them out"):
        checked(MINIATURE | {"ensembles": ["NVT", {"ensemble": "NVT", "time_ps": 1.0}]})
    with pytest.raises(ValueError, match="none of the strategies works with these labels; add energy to labels"):
        checked(MINIATURE | {"strategies": ["pair_difference"], "labels": ["energy_forces"]})


def test_summary_is_as_published(summary, folder):
    """By a validator of its own, against the schema of the documentation."""
    published = Path(__file__).parents[2] / "docs" / "summary.schema.json"
    schema = json.loads(published.read_text())
    assert schema == SummaryFile.model_json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    content = json.loads((folder / "summary.json").read_text())
    validator.validate(content)
    del content["answers"]["errors_tell_observables"]["level"]
    with pytest.raises(jsonschema.ValidationError, match="'level' is a required property"):
        validator.validate(content)


def test_seeds_leave_other_stages_as_they_are(of_one, folder, summary):
    """What was made with one seed is found again with more, and the other way around."""
    one, copied = of_one
    made = sorted((copied / "stages").rglob("stage.json"))
    changed = [path.parent.name for path in made if path.read_text() != (folder / path.relative_to(copied)).read_text()]
    assert changed == ["report"]
    assert one["students"]["multi_fidelity"]["energy"]["force_rmse_meV_A"]["seeds"] == 1
    first = summary["students"]["multi_fidelity"]["energy"]["by_seed"][0]["force_rmse_meV_A"]
    assert one["students"]["multi_fidelity"]["energy"]["force_rmse_meV_A"]["value"] == first["value"]


def test_studies_together(summary, of_one, folder, tmp_path):
    """The students of both, each seed's once; what is asked of all of them."""
    other = tmp_path / "other"
    shutil.copytree(of_one[1], other, ignore=shutil.ignore_patterns("stages"))
    changed = json.loads((other / "summary.json").read_text()) | {"clusters": {"number": 10, "radius_A": 4.0}}
    (other / "summary.json").write_text(json.dumps(changed))
    run = CliRunner().invoke(app, ["report", str(folder), str(other), "--out", str(tmp_path / "together")])
    assert run.exit_code == 0, run.output
    found = json.loads((tmp_path / "together" / "comparison.json").read_text())
    assert found["students"] == 6
    jsonschema.validate(found, ComparisonFile.model_json_schema())
    assert found["answers"]["larger_clusters_stop_helping"]["evidence"][0]["to_A"] == 4.0
    page = (tmp_path / "together" / "report.html").read_text()
    assert "Clusters to bulk: 2 studies together" in page
    assert page.count("data:image/png;base64,") == 1

    (other / "summary.json").write_text(json.dumps(changed | {"format": 1}))
    with pytest.raises(ValueError, match=r"another version of this package .* writes it anew"):
        compare_studies([other], tmp_path / "together")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        compare_studies([tmp_path / "nowhere"], tmp_path)
    (other / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no summary\.json of a study clusters_to_bulk"):
        compare_studies([other], tmp_path)


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


@pytest.mark.slow
@pytest.mark.parametrize("kept", [(), SAMPLED], ids=["from nothing", "sampled"])
def test_interrupted_run_ends_with_the_same_numbers(of_one, content, folder, tmp_path, monkeypatch, kept):
    """Killed in the second simulation that is left to do, then run again."""
    summary, config = of_one[0], checked(content | SEVERAL | {"seeds": 1})
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
    too_many = resolve(content | SEVERAL | {"test": {"frames": 400}}, "miniature")
    assert isinstance(too_many, ClustersToBulk)
    with pytest.raises(
        ValueError, match=r"400 frames are asked for, but the simulation leaves only \d+; make it longer"
    ):
        run_study(too_many, folder, progress=False)
