"""Several devices, and several processes, against one device: the same losses."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import train_here
from several_processes import ended, group_of, started, with_devices

from jaxmlip.systems.batches import count, plan_batches
from jaxmlip.systems.dataset import read_frames, write_frames
from jaxmlip.training.feed import deal, part_shapes
from jaxmlip.training.parallel import make_mesh
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.trainer import train

SETTINGS = TrainingSettings(epochs=4, batch_size=6, learning_rate=0.01, ema_decay=0.9)
LOSSES = ("train_loss", "validation_loss", "validation_force_rmse_meV_A")


@pytest.fixture(scope="module")
def labelled(high, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "ice.extxyz"
    write_frames(path, high)
    return path


@pytest.fixture(scope="module")
def on_one_device(labelled) -> list[dict]:
    return train(train_here.water_problem(read_frames(labelled)), SETTINGS, progress=False).history


def trained_by(labelled: Path, folder: Path, name: str, settings: TrainingSettings, **environment: str):
    order = folder / f"{name}.json"
    files = {"frames": str(labelled), "folder": str(folder / "run"), "out": str(folder / f"{name}.out")}
    order.write_text(json.dumps(files | {"settings": settings.model_dump(mode="json")}))
    return started(train_here.__file__, order, **environment)


def two_processes(labelled: Path, folder: Path, settings: TrainingSettings) -> list[subprocess.Popen]:
    """They find each other by the environment alone."""
    return [trained_by(labelled, folder, f"p{rank}", settings, **group) for rank, group in enumerate(group_of(2))]


def same_losses(history: list[dict], expected: list[dict], rtol: float = 1e-5) -> None:
    assert len(history) == len(expected) > 4
    for one, other in zip(history, expected, strict=True):
        for name in LOSSES:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, err_msg=f"{name}, epoch {one['epoch']}")


def test_four_devices(labelled, on_one_device, tmp_path):
    """Batches of 6 do not divide by 4: parts of 2, 2, 1 and 1."""
    settings = SETTINGS.model_copy(update={"data_parallel": 4})
    ended(trained_by(labelled, tmp_path, "four", settings, **with_devices(4)))
    result = json.loads((tmp_path / "four.out").read_text())
    assert result["devices"] == 4
    same_losses(result["history"], on_one_device)


def test_two_processes(labelled, on_one_device, tmp_path):
    """One of them writes."""
    ended(*two_processes(labelled, tmp_path, SETTINGS))
    assert not (tmp_path / "p1.out").exists()
    result = json.loads((tmp_path / "p0.out").read_text())
    assert (result["processes"], result["devices"]) == (2, 2)
    same_losses(result["history"], on_one_device)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3, 4]

    # The same folder on one device: the training is found finished, with the parameters of the two.
    problem = train_here.water_problem(read_frames(labelled))
    found = train(problem, SETTINGS, folder=tmp_path / "run", progress=False)
    for name, leaf in result["params"].items():
        np.testing.assert_array_equal(found.potential.params[name], np.array(leaf, np.float32))


@pytest.mark.slow
def test_two_processes_end_together(labelled, tmp_path):
    """One of them gets SIGTERM; both end after a checkpoint of the same step, and go on from there."""
    settings = SETTINGS.model_copy(update={"epochs": 30, "checkpoint_minutes": 1000.0})
    processes, metrics = two_processes(labelled, tmp_path, settings), tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert processes[0].poll() is None, "it ended before it could be disturbed"
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    ended(*processes, status=-signal.SIGTERM)
    assert not (tmp_path / "p0.out").exists()
    (kept,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept > 0, "nothing but the signal makes a checkpoint here"
    assert len(metrics.read_text().splitlines()) < 30

    ended(*two_processes(labelled, tmp_path, settings))
    again = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert again == list(range(31))
    history = json.loads((tmp_path / "p0.out").read_text())["history"]
    alone = train(train_here.water_problem(read_frames(labelled)), settings, progress=False)
    same_losses(history, alone.history, rtol=1e-3)  # rounding grows in so many steps


def test_parts_of_every_batch_fit_their_shape(high):
    """Each sample in one part, no part larger than promised, loads even; also where devices outnumber samples."""
    problem = train_here.water_problem(high)
    for devices, batch_size in ((4, 6), (3, 7), (4, 3)):
        plan = plan_batches(problem.train, batch_size)
        atoms = count(problem.train).atoms
        shapes = part_shapes(plan, atoms, devices)
        for seed in range(5):
            for hand in plan.epoch(seed):
                parts = deal(hand, atoms, devices, shapes[hand.shape])
                assert sorted(sample for part in parts for sample in part.samples) == sorted(hand.samples)
                for part in parts:
                    assert sum(atoms[list(part.samples)]) <= part.shape.n_atoms
                    assert len(part.samples) <= part.shape.n_graphs
        shape = plan.classes[0].shape
        assert shapes[shape].n_atoms * devices < 1.5 * shape.n_atoms or batch_size < devices


def test_more_devices_than_there_are():
    assert make_mesh(1) is None
    with pytest.raises(ValueError, match=r"data_parallel is 1000, but there are only \d+ devices; lower it"):
        make_mesh(1000)
