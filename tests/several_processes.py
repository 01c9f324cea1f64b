"""Python programs in processes of their own, alone or as a group that works together."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def started(program: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A program under way on the CPU; what it complains of is kept."""
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)} | environment,
        stderr=subprocess.PIPE,
    )


def with_devices(number: int) -> dict[str, str]:
    """The environment of a process that has so many devices."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"}


def group_of(number: int) -> list[dict[str, str]]:
    """The environments of processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    return [shared | {"JAX_PROCESS_ID": str(rank)} for rank in range(number)]


def ended(*processes: subprocess.Popen, status: int = 0) -> None:
    """All have ended, with this status."""
    for process in processes:
        said = process.communicate(timeout=300)[1].decode()
        assert process.returncode == status, said
