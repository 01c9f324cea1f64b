"""K models trained together against K single runs: time of an epoch, compilation excluded.

The models are of the MACE family (2 layers, l_max 3, correlation 3, L = 0, cutoff 5 Å, float32), start from parameters
of their own and see the same clusters in orders of their own: the first `--frames` of
`$JAXMLIP_DATA/ice_maceoff/clusters_5.0A.extxyz`. An epoch is all that `train_many` does in one: batches drawn, loaded
and stacked, steps and what they report, validation on one more cluster. Three ways alternate, so that whatever else the
machine does hits all alike: one model after the other by the step of a single one, all by a step under `jax.vmap`, and
what `train_many` chooses on this backend. Runs on CPU and GPU alike. Usage:

    uv run experiments/benchmarks/many_models.py [--models 1 2 4] [--channels 64] [--frames 40] [--batch 5] [--epochs 5]
        [--json]
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.systems.dataset import read_frames
from jaxmlip.training.distill import distillation_problem
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.trainer import train_many

WAYS = {"single": False, "vmap": True, "train_many": None}
"""Ways to train K models, as `train_many` is told."""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Training K models together against K single runs")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 2, 4], help="numbers of models")
    parser.add_argument("--channels", type=int, default=64, help="of the student")
    parser.add_argument("--frames", type=int, default=40, help="training clusters")
    parser.add_argument("--batch", type=int, default=5, help="clusters in a batch")
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs of each way and number")
    parser.add_argument("--json", action="store_true", help="print one JSON object as well")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("set JAXMLIP_DATA to the folder that holds ice_maceoff/clusters_5.0A.extxyz.")
    path = Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff" / "clusters_5.0A.extxyz"
    frames = read_frames(path, energy_key="off23_energy", forces_key="off23_forces", index=f":{options.frames + 1}")
    device = jax.devices()[0]

    model = Equivariant(channels=options.channels, l_max=3, correlation=3, cutoff=5.0)
    # One more than is timed: the first may compile.
    base = TrainingSettings(epochs=options.epochs + 1, batch_size=options.batch, learning_rate=1e-3, tiers=1)
    training, validation = frames[:-1], frames[-1:]
    settings = [base.model_copy(update={"seed": seed}) for seed in range(max(options.models))]
    first = distillation_problem(model, training, validation, settings=settings[0])
    problems = [
        distillation_problem(model, training, validation, first.potential.references, settings=mine)
        for mine in settings
    ]

    print(
        f"{options.channels} channels, {len(training)} clusters, batches of {options.batch}; {device.device_kind} "
        f"({device.platform}); median of {options.epochs} epochs, s\n"
    )
    print("| models | K single runs | vmap | train_many | train_many / K single runs |")
    print("|---|---|---|---|---|")
    result = []
    for number in options.models:
        took: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(3):
            for name, vectorised in WAYS.items():
                took[name].append(epoch_s(problems[:number], settings[:number], vectorised))
        s = {name: float(np.median(values)) for name, values in took.items()}
        factor = s["train_many"] / s["single"]
        print(f"| {number} | {s['single']:.3f} | {s['vmap']:.3f} | {s['train_many']:.3f} | {factor:.2f} |", flush=True)
        result.append({"models": number, **s})
    if options.json:
        print(json.dumps({"device": device.device_kind, "platform": device.platform, "epoch_s": result}))


def epoch_s(problems: list, settings: list[TrainingSettings], vectorised: bool | None) -> float:
    """Time of an epoch of all models, s: the median of those after the first, which may compile."""
    ends: dict[int, list[float]] = {}

    def ended(model: int, record: dict) -> None:
        ends.setdefault(model, []).append(time.perf_counter())

    train_many(problems, settings, vectorised=vectorised, progress=False, on_epoch=ended)
    of_model = [np.median(np.diff(times)[1:]) for times in ends.values()]
    together = vectorised or (vectorised is None and jax.default_backend() != "cpu")
    return float(of_model[0] if together else np.sum(of_model))


if __name__ == "__main__":
    main()
