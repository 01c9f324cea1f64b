"""Batches shared by devices, and by processes: how arrays lie on them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"
"""Axis of the mesh along which the parts of a batch lie."""


def make_mesh(devices: int | None) -> Mesh | None:
    """The devices that share every batch; None for the default device alone.

    Args:
        devices: how many; by default all devices of a run of several processes, else one.

    Raises:
        ValueError: if there are not so many, or several processes were to use some of their devices only.
    """
    there = jax.devices()
    if devices is None:
        devices = len(there) if jax.process_count() > 1 else 1
    if devices > len(there):
        raise ValueError(f"data_parallel is {devices}, but there are only {len(there)} devices; lower it.")
    if jax.process_count() > 1 and devices != len(there):
        raise ValueError(
            f"data_parallel is {devices}, but the {jax.process_count()} processes have {len(there)} devices, all of "
            "which must take part; leave data_parallel unset."
        )
    return Mesh(np.array(there[:devices]), (DATA,)) if devices > 1 else None


def local_parts(mesh: Mesh | None) -> list[int]:
    """Which parts of a batch this process loads."""
    if mesh is None:
        return [0]
    return [part for part, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """The leaves on the device, or whole on each device of the mesh."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any) -> jax.Array:
        # By device_put, processes would compare what they have, and find NaN, or what float32 rounds, to be different.
        host = np.asarray(leaf)
        host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(placed, tree)


def dealt(tree: Any, mesh: Mesh | None) -> Any:
    """Leaves [models, parts, …] of this process's parts, each part on its device; without a mesh, on the device."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(None, DATA))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def on_host(tree: Any) -> Any:
    """Replicated leaves as numpy arrays; every process has them whole."""
    return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))
