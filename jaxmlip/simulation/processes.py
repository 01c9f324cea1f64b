"""Replicas shared by processes: each simulates its own; all have the whole run, or each its own file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmlip.simulation.driver import SimulationError
from jaxmlip.simulation.trajectory import PER_REPLICA, Outcome, Run, single_if_exact


def run_in_processes(simulated: Callable[[Callable[[int], slice] | None], Run]) -> Run:
    """What a simulation gives, shared by all processes of `jax.distributed`, if there are several.

    Args:
        simulated: given a function from the number of replicas to those to simulate here (None for all), the run.

    Raises:
        ValueError: if the replicas cannot be shared evenly.
        SimulationError: on all processes, if one of them has raised it.
    """
    if jax.process_count() == 1:
        return simulated(None)
    run, failed = None, ""
    try:
        run = simulated(own_share)
    except SimulationError as error:
        failed = str(error)
    anywhere = np.asarray(multihost_utils.process_allgather(np.int32(bool(failed))))
    if anywhere.any():
        raise SimulationError(failed or f"In process {int(anywhere.argmax())} a replica failed; see its message.")
    assert run is not None
    return _joined(run)


def own_share(replicas: int) -> slice:
    """Which of so many replicas this process simulates.

    Raises:
        ValueError: if they cannot be shared evenly.
    """
    each, rest = divmod(replicas, jax.process_count())
    if rest:
        raise ValueError(
            f"{replicas} replicas cannot be shared evenly by {jax.process_count()} processes; change their number."
        )
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def own_file(path: Path) -> Path:
    """The file of this process's replicas: run.h5 where it is alone, else run.0.h5, run.1.h5 and so on."""
    return path if jax.process_count() == 1 else path.with_suffix(f".{jax.process_index()}{path.suffix}")


def _joined(run: Run) -> Run:
    """The run of all processes' replicas. Bytes are exchanged: arrays of jax would lose double precision."""
    found = {name: getattr(run, name) for name in PER_REPLICA if getattr(run, name) is not None}
    found["positions"] = run.positions.astype(np.float64)  # a process may need double where another does not
    found["outcomes"] = np.array([list(Outcome).index(outcome) for outcome in run.outcomes])
    changes: dict[str, Any] = {name: _gathered(np.asarray(values)) for name, values in found.items()}
    changes["outcomes"] = tuple(list(Outcome)[number] for number in changes["outcomes"])
    changes["positions"] = single_if_exact(changes["positions"])
    changes["observed"] = {name: _gathered(values) for name, values in run.observed.items()}
    changes["ns_per_day"] = float(_gathered(np.array([run.ns_per_day])).sum())
    return dataclasses.replace(run, **changes)


def _gathered(values: np.ndarray) -> np.ndarray:
    """The values of all processes, one after another along the first axis."""
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    everywhere = np.asarray(multihost_utils.process_allgather(data, tiled=True))
    return everywhere.view(values.dtype).reshape(-1, *values.shape[1:])
