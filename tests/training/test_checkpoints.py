"""Trainings that are killed: what they leave, and that they end as if nothing had happened."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import several_processes
import train_here

from jaxmlip.potentials.evaluation import predict
from jaxmlip.systems.dataset import read_frames, write_frames
from jaxmlip.training.problem import Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.trainer import train, train_many

SETTINGS = TrainingSettings(epochs=30, batch_size=4, learning_rate=0.02, ema_decay=0.9, checkpoint_minutes=0)
SHORT = SETTINGS.model_copy(update={"epochs": 3})
STEPS = 6


@pytest.fixture(scope="module")
def labelled(high, tmp_path_factory) -> Path:
    """The frames in a file, every second one of another kind."""
    path = tmp_path_factory.mktemp("labelled") / "ice.extxyz"
    kinds = [{"config_type": "odd"} if k % 2 else {} for k in range(len(high))]
    write_frames(path, [dataclasses.replace(frame, info=kind) for frame, kind in zip(high, kinds, strict=True)])
    return path


@pytest.fixture(scope="module")
def problem(labelled) -> TrainingProblem:
    return train_here.water_problem(read_frames(labelled))


@pytest.fixture(scope="module")
def undisturbed(problem) -> Trained:
    return train(problem, SETTINGS, progress=False)


def same(one: Trained, other: Trained) -> None:
    """Bit for bit, but for the time it took."""
    jax.tree.map(np.testing.assert_array_equal, one.potential.params, other.potential.params)
    assert one.best_epoch == other.best_epoch
    for mine, others in zip(one.history, other.history, strict=True):
        np.testing.assert_equal(mine | {"wall_s": 0}, others | {"wall_s": 0})


def started(labelled: Path, folder: Path, settings: TrainingSettings) -> subprocess.Popen:
    order = folder.with_suffix(".json")
    numbers = settings.model_dump(mode="json")
    out = str(folder.with_suffix(".out"))
    order.write_text(json.dumps({"frames": str(labelled), "settings": numbers, "folder": str(folder), "out": out}))
    return several_processes.started(train_here.__file__, order)


def when(process: subprocess.Popen, condition, number: int) -> int:
    """Send a signal as soon as a condition holds, and return the exit status."""
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()  # pyright: ignore[reportOptionalMemberAccess]
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate()
    return process.returncode


def saved(folder: Path) -> list[int]:
    """Numbers of the checkpoints that are whole."""
    there = folder / "checkpoints"
    return sorted(int(path.name) for path in there.iterdir() if path.name.isdigit()) if there.exists() else []


def test_killed_twice_it_ends_with_the_same_bits(labelled, problem, undisturbed, tmp_path):
    """Kill -9 within an epoch, after a checkpoint; SIGTERM in the next attempt, which saves and then ends as asked."""
    folder = tmp_path / "run"

    def within_an_epoch() -> bool:
        return any(number > 3 * (STEPS + 1) and 2 <= number % (STEPS + 1) <= 4 for number in saved(folder))

    assert when(started(labelled, folder, SETTINGS), within_an_epoch, signal.SIGKILL) == -signal.SIGKILL
    first = saved(folder)[-1]
    assert 0 < len(saved(folder)) <= 3

    rarely = SETTINGS.model_copy(update={"checkpoint_minutes": 1000.0})
    later = first // (STEPS + 1) + 2

    def some_epochs_later() -> bool:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return len(lines) > later and saved(folder)[-1] >= first

    assert when(started(labelled, folder, rarely), some_epochs_later, signal.SIGTERM) == -signal.SIGTERM
    assert saved(folder)[-1] > first

    seen = []
    result = train(problem, rarely, folder=folder, progress=False, on_epoch=seen.append)
    assert seen[0]["epoch"] > 2
    same(result, undisturbed)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(31))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [(row["epoch"], row["set"], row["fidelity"], row["type"]) for row in rows]
    assert len(set(keys)) == len(keys) == 3 + 30 * 6

    again = train(
        problem, rarely, folder=folder, progress=False, on_epoch=lambda record: pytest.fail("it was finished")
    )
    same(again, undisturbed)


def test_metrics_are_errors_by_kind(labelled, problem, tmp_path):
    """Against predictions of the potential that was validated; training errors are there too."""
    result = train(problem, SHORT, folder=tmp_path, progress=False)
    frames = read_frames(labelled)[-8:]
    predicted = predict(result.potential, [frame.atoms for frame in frames])
    with (tmp_path / "metrics.csv").open() as file:
        rows = {(r["epoch"], r["set"], r["type"]): r for r in csv.DictReader(file)}
    assert result.best_epoch == 3
    for kind, chosen in {"all": range(8), "odd": range(1, 8, 2), "ice": range(0, 8, 2)}.items():
        forces = np.concatenate([(predicted[k].forces - frames[k].forces).ravel() for k in chosen])
        energies = [(predicted[k].energy - frames[k].energy) / len(frames[k].atoms) for k in chosen]
        row = rows["3", "validation", kind]
        np.testing.assert_allclose(float(row["force_rmse_meV_A"]), 1e3 * np.sqrt(np.mean(forces**2)), rtol=1e-3)
        rms = 1e3 * np.sqrt(np.mean(np.square(energies)))
        np.testing.assert_allclose(float(row["energy_rmse_meV_atom"]), rms, rtol=2e-2, atol=2e-2)
        assert row["stress_rmse_GPa"] == ""
    assert float(rows["1", "training", "odd"]["force_rmse_meV_A"]) > float(
        rows["3", "training", "odd"]["force_rmse_meV_A"]
    )
    assert ("0", "training", "all") not in rows
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 18
    assert line["validation_force_rmse_meV_A"] == result.history[-1]["validation_force_rmse_meV_A"]
    assert {(e["set"], e["type"]) for e in line["errors"]} == {(s, t) for e, s, t in rows if e == "3"}


@pytest.mark.parametrize("vectorised", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stack_goes_on_too(problem, tmp_path, vectorised):
    """Two models, interrupted while the second (or both) train."""
    settings = [SHORT, SHORT.model_copy(update={"seed": 1, "learning_rate": 0.01})]
    whole = train_many([problem, problem], settings, vectorised=vectorised, progress=False)

    def dies(model, record):
        if (model, record["epoch"]) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_many([problem] * 2, settings, folder=tmp_path, vectorised=vectorised, progress=False, on_epoch=dies)
    resumed = train_many([problem] * 2, settings, folder=tmp_path, vectorised=vectorised, progress=False)
    for one, other in zip(resumed, whole, strict=True):
        same(one, other)
    for model in range(2):
        lines = (tmp_path / f"model-{model}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


@pytest.fixture
def interruptible() -> Iterator[Any]:
    """Python's own handler of Ctrl-C, which a shell takes from what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_interrupted_by_hand(problem, tmp_path, interruptible):
    """Ctrl-C in a process that goes on: the checkpoint comes first, and Python's own handler is back afterwards."""
    rarely = SHORT.model_copy(update={"checkpoint_minutes": 1000.0})

    def interrupts(record):
        if record["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(problem, rarely, folder=tmp_path, progress=False, on_epoch=interrupts)
    assert saved(tmp_path) == [2 * (STEPS + 1)]
    assert signal.getsignal(signal.SIGINT) is interruptible
    same(train(problem, rarely, folder=tmp_path, progress=False), train(problem, SHORT, progress=False))


def test_damaged_and_foreign_checkpoints(problem, tmp_path):
    """One damaged: the one before it serves. All damaged, or another training's: a sentence."""
    whole = train(problem, SHORT, progress=False)

    def dies(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(problem, SHORT, folder=tmp_path / "run", progress=False, on_epoch=dies)
    numbers = saved(tmp_path / "run")
    assert len(numbers) == 2

    other = SHORT.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ValueError, match="other data, settings or initial parameters; give another folder"):
        train(problem, other, folder=tmp_path / "run", progress=False)
    fewer = dataclasses.replace(problem, train=problem.train[1:])
    with pytest.raises(ValueError, match="other data"):
        train(fewer, SHORT, folder=tmp_path / "run", progress=False)

    for how in ("truncated", "altered"):
        shutil.copytree(tmp_path / "run", tmp_path / how)
        arrays = tmp_path / how / "checkpoints" / str(numbers[-1]) / "arrays"
        for path in [path for path in arrays.rglob("*") if path.is_file()]:
            content = path.read_bytes()
            path.write_bytes(b"" if how == "truncated" else content[: len(content) // 2] + os.urandom(64))
        with pytest.warns(UserWarning, match=rf"checkpoints/{numbers[-1]} is damaged"):
            result = train(problem, SHORT, folder=tmp_path / how, progress=False)
        same(result, whole)

    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"No checkpoint in .* can be read; delete the folder to start anew"),
    ):
        train(problem, SHORT, folder=tmp_path / "run", progress=False)


def test_tensorboard_gets_the_errors(problem, tmp_path):
    """Read back from the event file."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    train(problem, SHORT.model_copy(update={"log": "tensorboard"}), folder=tmp_path, progress=False)
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, tags = path.read_bytes(), set()
    while content:  # length (8), its checksum (4), event, its checksum (4)
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        tags |= {(value.tag, event.step) for value in event.summary.value}
        content = content[16 + size :]
    assert {("validation/force_rmse_meV_A", step) for step in (0, 6, 12, 18)} <= tags
    assert ("training/0/odd/energy_rmse_meV_atom", 18) in tags


def test_a_service_that_is_not_there(problem, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    logged = SHORT.model_copy(update={"log": "wandb"})
    with pytest.raises(ImportError, match=r"log is wandb, but wandb is not installed: install jaxmlip\[wandb\]"):
        train(problem, logged, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="log is wandb, but there is no folder to write to"):
        train(problem, logged, progress=False)
