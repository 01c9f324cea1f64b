"""A training in a process of its own, for tests that kill it or run several: python train_here.py ORDER.json."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from water_pairs import HIGH, LOW

from jaxmlip.processes import join_processes, writes_files
from jaxmlip.systems.batches import make_samples
from jaxmlip.systems.dataset import Frame, describe, read_frames
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.trainer import train

TERMS = Terms(True, True, False)


def water_problem(frames: list[Frame]) -> TrainingProblem:
    """From LOW's parameters to HIGH's labels, the last 8 frames for validation; frames of two kinds."""
    training, held_out = (make_samples(part, 4.0, 0.0, HIGH.references) for part in (frames[:-8], frames[-8:]))
    names = [describe(frame, number) for number, frame in enumerate(frames[:-8])]
    return TrainingProblem(LOW.replace(references=HIGH.references), training, held_out, TERMS, TERMS, names)


def main(order: dict) -> None:
    """Train as ordered: `frames` (file), `settings`, `folder` (or null), `out` (file)."""
    join_processes()
    settings = TrainingSettings(**order["settings"])
    trained = train(water_problem(read_frames(order["frames"])), settings, folder=order["folder"], progress=False)
    if writes_files():
        params = {name: np.asarray(leaf).tolist() for name, leaf in trained.potential.params.items()}
        result = {"params": params, "history": trained.history, "devices": jax.device_count()}
        Path(order["out"]).write_text(json.dumps(result | {"processes": jax.process_count()}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
