"""Shape aliases used throughout, declared once.

Axes: `atoms` and `graphs` run over a (padded) batch, `slots` over an atom's neighbour slots.
"""

from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

Size: TypeAlias = Any
"""Of an axis: an int, or a symbol of `jax.export` in programs for any number of atoms."""

Leaf: TypeAlias = Any
"""Array field of a pytree: numpy on the host, jax on the device, anything while jax rebuilds the tree; stacked pytrees
have leading axes. Functions check shapes, fields state them in their docstring."""

AnyArray: TypeAlias = Array | np.ndarray

Vectors: TypeAlias = Float[AnyArray, "atoms 3"]
PerAtom: TypeAlias = Float[AnyArray, " atoms"]
PerGraph: TypeAlias = Float[AnyArray, " graphs"]
Matrices: TypeAlias = Float[AnyArray, "graphs 3 3"]
EdgeVectors: TypeAlias = Float[AnyArray, "atoms slots 3"]
EdgeMask: TypeAlias = Bool[AnyArray, "atoms slots"]
Neighbors: TypeAlias = Int[AnyArray, "atoms slots"]

HostVectors: TypeAlias = Float[np.ndarray, "atoms 3"]
HostMatrix: TypeAlias = Float[np.ndarray, "3 3"]
