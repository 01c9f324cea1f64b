"""A set of labelled frames larger than memory should be: what streaming and training on it take of memory.

Clusters of 5 molecules of ice Ih are cut, shaken and written to a store, by default 100,000 of them, with made-up
labels (those of harmonic springs to where the atoms were: only size and shape matter here). Then an epoch of their
batches is streamed, and some optimiser steps of a small student are taken on it. Each part runs in a process of its
own, so that the peak resident memory printed is that of this part. For comparison the size of the frames and of the
samples with their neighbour lists in memory is given, measured on some of them. Usage:

    uv run experiments/benchmarks/large_set.py [--frames 100000] [--batch 16] [--steps 100] [--json] [--folder FOLDER]
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlip.systems.batches import LazySamples, Recipe, plan_batches, stream
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.store import FrameStore, write_store

CUTOFF = 5.0
SHAKEN = 0.05
SPRING = 30.0
TIERS = 4
MIB = 2**20


def jittered_clusters(number: int) -> Iterator[Frame]:
    """Real clusters, again and again, each time shaken anew."""
    ice = ice_ih(96, seed=0)
    clusters = cut_clusters([ice], radius=3.2, number=64, seed=0)
    rng = np.random.default_rng(0)
    for place in range(number):
        atoms = clusters[place % len(clusters)].copy()
        away = rng.normal(scale=SHAKEN, size=(len(atoms), 3))
        atoms.positions += away
        yield Frame(atoms, float(0.5 * SPRING * np.sum(away**2)), -SPRING * away, info={"kind": "cluster"})


def write(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the store."""
    write_store(path, jittered_clusters(options.frames))
    return {"file_MiB": path.stat().st_size / MIB}


def count(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Go through all frames once for the plan of batches; what is found is kept beside the store."""
    plan = plan_batches(samples(path), options.batch, tiers=TIERS)
    return {"batches": plan.steps, "shapes": plan.shapes}


def stream_epoch(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every batch of a shuffled epoch, made and dropped."""
    lazy = samples(path)
    plan = plan_batches(lazy, options.batch, tiers=TIERS)
    seen = sum(int(np.sum(batch.index >= 0)) for batch in stream(plan, lazy, 0))
    return {"samples_seen": seen}


def train(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Some steps of gradient descent, batches made while the step before is computed."""
    import jax
    import optax

    from jaxmlip.potentials.equivariant import Equivariant
    from jaxmlip.training.loss import Terms, Weights, loss

    lazy = samples(path)
    plan = plan_batches(lazy, options.batch, tiers=TIERS)
    potential = Equivariant(channels=8, l_max=1, correlation=2, cutoff=CUTOFF).build((1, 8), average_neighbors=14.0)
    optimiser = optax.adam(1e-3)

    @jax.jit
    def update(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        def objective(params: Any) -> tuple[Any, Any]:
            return loss(potential.replace(params=params), batch, Weights(), terms=Terms(True, True, False), kind="mse")

        (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        change, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params = potential.params
    state, losses = optimiser.init(params), []
    for batch, _ in zip(stream(plan, lazy, 0), range(options.steps), strict=False):
        params, state, value = update(params, state, batch)
        losses.append(float(value))
    tenth = max(1, len(losses) // 10)
    facts = {"compilations": update._cache_size()}  # pyright: ignore[reportAttributeAccessIssue]
    return facts | {"first_losses": float(np.mean(losses[:tenth])), "last_losses": float(np.mean(losses[-tenth:]))}


def in_memory(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What all frames, and all samples, would take, from the growth of this process by some of them."""
    lazy = samples(path)
    some = min(options.frames, 5000)
    before = current_MiB()
    frames = [lazy.frames[place] for place in range(some)]
    after_frames = current_MiB()
    made = [lazy[place] for place in range(some)]
    after_samples = current_MiB()
    share = len(lazy) / some
    assert len(frames) == len(made) == some  # held until here
    return {
        "all_frames_MiB": share * (after_frames - before),
        "all_samples_MiB": share * (after_samples - after_frames),
    }


def samples(path: Path) -> LazySamples:
    """The samples of the store, none of them made yet."""
    return LazySamples(FrameStore(path), Recipe(CUTOFF, 0.0, np.zeros(119)))


def current_MiB() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def measured(name: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a part says, its wall time, and the memory of the process before it and at the peak."""
    before, started = current_MiB(), time.perf_counter()
    facts = PARTS[name](path, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return facts | {"wall_s": time.perf_counter() - started, "before_MiB": before, "peak_MiB": peak}


PARTS = {"write": write, "count": count, "stream": stream_epoch, "train": train, "in memory": in_memory}


def main() -> None:
    """Run the parts, each in a fresh process, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where the store is written; a temporary folder by default")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / f"clusters-{options.frames}.h5"
        for name in PARTS:
            # A fresh process for each: a peak never falls.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[name] = pool.apply(measured, (name, path, options))
            if not options.json:
                facts = ", ".join(f"{key} {value:.4g}" for key, value in results[name].items())
                print(f"{name:10s} {facts}", flush=True)
    if options.json:
        print(json.dumps({"frames": options.frames, "batch": options.batch, "parts": results}))


if __name__ == "__main__":
    main()
