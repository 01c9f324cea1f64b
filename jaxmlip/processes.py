"""Processes that work together: how they find each other, and which of them speaks."""

import os

import jax


def join_processes() -> None:
    """Become one of several processes that work together, if the environment says so.

    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name the group; where
    only the first is set, jax finds the others under Slurm, Open MPI and the like. Must run before anything is
    computed; without the variable, nothing happens.

    Raises:
        ValueError: if the number or the rank of the process is not known.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ or jax.distributed.is_initialized():
        return
    number, rank = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        num_processes=None if number is None else int(number),
        process_id=None if rank is None else int(rank),
    )


def writes_files() -> bool:
    """Whether this process is the one that writes files and messages."""
    return jax.process_index() == 0
