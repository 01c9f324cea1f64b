"""Stages shared by workers: what one that dies costs, and that the folder alone says what is done."""

import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from shared_study import KILL, Copper, crystals, run_copper

from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load
from jaxmlip.study import workers
from jaxmlip.study.config import resolve
from jaxmlip.study.registry import study_of
from jaxmlip.study.section import ConfigError
from jaxmlip.study.workspace import Workspace
from jaxmlip.systems.dataset import read_frames

distributed = pytest.importorskip("distributed", reason="workers need Dask: uv sync")


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers are threads of the tests' process: no time goes into starting others."""
    made = distributed.LocalCluster
    here = {"processes": False, "dashboard_address": None}
    monkeypatch.setattr(workers, "_local", lambda _, number: made(n_workers=number, threads_per_worker=1, **here))


def kill_who_waits(folder: Path) -> None:
    """End the worker that is at the stage in which one is to be killed."""
    end = time.monotonic() + 300
    while not (folder / "waiting").exists():
        time.sleep(0.02)
        if time.monotonic() > end:
            return  # the test says what is wrong
    (line,) = [line for line in (folder / "begun.txt").read_text().splitlines() if line.startswith("mean-1 ")]
    os.kill(int(line.split()[1]), signal.SIGKILL)


def test_a_killed_worker_costs_one_task_and_no_result(tmp_path, capsys):
    """Two workers, one killed in the middle of a stage: another goes on from what the stage had kept."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / KILL).touch()
    killer = threading.Thread(target=kill_who_waits, args=(folder,), daemon=True)
    killer.start()
    config = Copper(workers=workers.Workers(number=2, structures_at_once=2))
    made = run_copper(config, folder)
    killer.join()

    begun = [line.split() for line in (folder / "begun.txt").read_text().splitlines()]
    assert sorted(name for name, _ in begun) == ["mean-0", "mean-1", "mean-1", "mean-2"]
    assert os.getpid() not in {int(process) for _, process in begun}
    results = {name: json.loads((stage.folder / "mean.json").read_text()) for name, stage in made.items()}
    assert [results[name]["went on"] for name in sorted(results)] == [False, True, False]
    assert {path.name for path in (folder / "stages").iterdir()} == {
        *("structures", "labels", "labels.0", "labels.1", "labels.2"),
        *("mean-0", "mean-1", "mean-2"),
    }
    expected = label(crystals(5), load("ase:ase.calculators.emt:EMT"))
    labelled = read_frames(made["mean-0"].folder.parent / "labels" / "copper.extxyz")
    for one, other in zip(labelled, expected, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-8)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-8)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "8 stages for local workers ..."
    assert said[-5:] == [f"{name}: kept from an earlier run" for name in ("structures", "labels", *sorted(made))]

    # One process alone finds all of it done, pieces or not.
    before = {path: path.stat().st_mtime_ns for path in (folder / "stages").rglob("*")}
    run_copper(Copper(), folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "stages").rglob("*")} == before


def test_mistakes_of_stages_are_those_of_the_run(tmp_path, in_this_process):
    """And what was finished before is kept."""
    config = Copper(fails=True, workers=workers.Workers(number=1))
    with pytest.raises(ValueError, match=r"^Copper has no mean today\.$"):
        run_copper(config, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "stages" / "labels" / "stage.json").exists()
    with pytest.raises(ConfigError, match=r"A worker on .* does not see .*elsewhere: run from, and into"):
        workers.make_stage(config, workers.Place(tmp_path / "elsewhere", tmp_path), "labels")
    with pytest.raises(RuntimeError, match="The study has no stage other here"):
        workers.make_stage(Copper(), workers.Place(tmp_path / "run", tmp_path), "other")


def test_a_task_that_is_given_out_twice_does_nothing(tmp_path):
    Workspace(tmp_path / "run")
    config, place = Copper(structures=3), workers.Place(tmp_path / "run", Path.cwd())
    name, wall_s, _ = workers.make_stage(config, place, "structures")
    assert name == "structures"
    stage = tmp_path / "run" / "stages" / "structures" / "stage.json"
    made = stage.stat().st_mtime_ns
    assert workers.make_stage(config, place, "structures")[1] == wall_s
    assert stage.stat().st_mtime_ns == made


def test_plan_of_pieces(tmp_path):
    """Pieces are stages before the one that they are of, which waits for all of them."""
    config = Copper(workers=workers.Workers(number=2, structures_at_once=2))
    plan = study_of(config).plan(config, tmp_path / "none")
    assert plan.stages is not None
    stages = {stage.name: stage for stage in plan.stages}
    assert [*stages][:5] == ["structures", "labels.0", "labels.1", "labels.2", "labels"]
    assert stages["labels"].after == ("structures", "labels.0", "labels.1", "labels.2")
    assert stages["mean-2"].after == ("labels",)
    assert not (tmp_path / "none").exists()
    alone = study_of(config).plan(Copper(), tmp_path / "none").stages
    assert alone is not None
    assert {stage.name: stage.key for stage in alone}["labels"] == stages["labels"].key


def test_what_comes_out_does_not_depend_on_workers():
    for study in ("clusters_to_bulk", "cross_functional"):
        alone, shared = (resolve({"study": study, "workers": each}, "test") for each in (None, 2))
        assert shared.workers == workers.Workers(number=2)  # pyright: ignore[reportAttributeAccessIssue]
        assert alone.model_dump(mode="json") == shared.model_dump(mode="json")
        assert pickle.loads(pickle.dumps(shared)) == shared


def test_workers_that_cannot_be_had(monkeypatch, tmp_path):
    for wanted, said in (
        ({"scheduler": "slrum"}, "there is no scheduler 'slrum'; give local, slurm, pbs"),
        ({"scheduler": "gone.json"}, "there is no scheduler file gone.json; start"),
        ({"options": {"queue": "long"}}, r"options are those of queueing systems \(slurm, pbs"),
        (0, "greater than or equal to 1"),
        ({"nmber": 2}, r"unknown key workers\.nmber; did you mean number\?"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve({"study": "clusters_to_bulk", "workers": wanted}, "test")
    alone = {"study": "train", "data": {"path": "labels.xyz"}, "workers": 2}
    with pytest.raises(ConfigError, match=r"the study train is one piece of work, which cannot be shared; leave"):
        resolve(alone, "test")
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    queued = workers.Workers(scheduler="slurm", options={"memory": "4GB"})
    said = "there is no sbatch on this machine; start the run where jobs are submitted"
    with pytest.raises(ConfigError, match=said), workers.connected(queued):
        pass
    monkeypatch.setattr(workers, "ANSWERS_WITHIN_S", 0.2)
    said = "workers: tcp://127.0.0.1:1 gives no workers: "
    with pytest.raises(ConfigError, match=said), workers.connected(workers.Workers(scheduler="tcp://127.0.0.1:1")):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = "workers needs Dask; install what it needs: uv sync --extra dask"
    with pytest.raises(ImportError, match=said), workers.connected(workers.Workers()):
        pass


def test_a_scheduler_without_workers_says_how_to_start_some(tmp_path, capsys, monkeypatch):
    """Once, and the run goes on when one comes."""
    monkeypatch.setattr(workers, "SILENT_S", 0.1)
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None) as empty:
        config = Copper(structures=2, workers=workers.Workers(scheduler=empty.scheduler_address))
        comes = threading.Timer(1.0, empty.scale, (1,))
        comes.start()
        run_copper(config, tmp_path / "run")
        comes.join()
    said = capsys.readouterr().out.splitlines()
    (place,) = [place for place, line in enumerate(said) if "has no workers" in line]
    assert f"dask worker {empty.scheduler_address} --nthreads 1" in said[place]
    assert said[0].endswith(" workers ...")
    assert said[place + 1].startswith("structures: ")
    assert "--scheduler-file cluster.json" in workers.Workers.model_construct(scheduler="cluster.json").lacking
    assert "2 jobs wait in the queue" in workers.Workers(scheduler="slurm").lacking


@pytest.mark.slow
def test_a_stage_that_kills_every_worker_is_named(tmp_path):
    """The first death counts here."""
    from dask import config as settings

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / KILL).touch()
    killer = threading.Thread(target=kill_who_waits, args=(folder,), daemon=True)
    killer.start()
    config = Copper(workers=workers.Workers(number=1))
    at_once = settings.set({"distributed.scheduler.allowed-failures": 0})
    with at_once, pytest.raises(RuntimeError, match=r"^mean-1 took one worker after another with it"):
        run_copper(config, folder, progress=False)
    killer.join()
