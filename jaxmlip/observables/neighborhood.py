"""What observables of local structure share: elements, nearest neighbours on the device, and smeared histograms."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax.scipy.special import erf
from jaxtyping import Float

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable
from jaxmlip.systems.device_lists import image_search, nearest_pairs, squared_distances
from jaxmlip.types import AnyArray


def check_symbols(*symbols: str) -> None:
    """Raise ValueError for what is not the symbol of an element."""
    for symbol in symbols:
        if symbol not in atomic_numbers or symbol == "X":
            raise ValueError(f"{symbol!r} is not the symbol of an element.")


def check_elements(observable: Observable, frame: FrameState, *symbols: str) -> None:
    """Raise ValueError if frames lack one of the elements."""
    for symbol in symbols:
        if atomic_numbers[symbol] not in frame.numbers:
            raise ValueError(f"{observable.name}: the frames hold no {symbol}.")


def atoms_of(frame: FrameState, symbol: str) -> np.ndarray:
    """Indices of the atoms of an element."""
    return np.flatnonzero(np.asarray(frame.numbers) == atomic_numbers[symbol])


def nearest_vectors(
    frame: FrameState, centres: np.ndarray, others: np.ndarray, reach: float, slots: int
) -> tuple[Float[AnyArray, "centres slots 3"], Any, Any]:
    """Vectors to the nearest others of each centre, nearest first, periodic images included; an atom is not its own.

    Differentiable by positions and cell. Empty slots, and those beyond the reach, hold a vector as long as the reach.

    Args:
        frame: periodic in any directions.
        centres: indices of the atoms that are looked around.
        others: indices of the atoms that are looked for.
        reach: Å.
        slots: neighbours kept.

    Returns:
        Vectors in Å, which of them are of neighbours [centres, slots], and how many each centre has [centres].
    """
    search = image_search(np.asarray(frame.heights), reach)
    translations = search.translations
    inverse = jnp.linalg.inv(frame.cell) if frame.periodic else jnp.linalg.pinv(frame.cell)
    here, there = frame.positions[centres], frame.positions[others]
    squared, own = squared_distances(here, there, frame.cell, inverse, search)
    itself = (centres[:, None] == others)[:, :, None] & ~translations.any(axis=1)
    squared = jnp.where(itself, jnp.inf, squared).reshape(len(centres), -1)
    found, index, needed = nearest_pairs(squared, reach, slots)
    other, image = index // len(translations), index % len(translations)
    shift = jnp.take_along_axis(own, other[:, :, None], axis=1) + jnp.asarray(translations)[image]
    vectors = there[other] - here[:, None, :] + shift.astype(here.dtype) @ frame.cell
    return jnp.where(found[..., None], vectors, jnp.asarray([reach, 0.0, 0.0], vectors.dtype)), found, needed


def angles(first: Any, second: Any) -> Any:
    """Angles in degrees between vectors [..., 3]; differentiable, with a derivative of zero where they are parallel."""
    sine_squared = (jnp.cross(first, second) ** 2).sum(-1)
    flat = sine_squared > 0
    sine = jnp.where(flat, jnp.sqrt(jnp.where(flat, sine_squared, 1.0)), 0.0)
    return jnp.arctan2(sine, (first * second).sum(-1)) * (180.0 / math.pi)


def smeared_histogram(
    values: Float[AnyArray, " values"],
    weights: Float[AnyArray, " values"] | None,
    edges: Float[np.ndarray, " edges"],
    smearing: float,
    *,
    walls: bool = False,
) -> Float[AnyArray, " bins"]:
    """Sums of weights in bins of equal width, each value spread by a Gaussian.

    Args:
        values: any; what is beyond the edges is not counted.
        weights: of each value; 1 if None.
        edges: borders of the bins.
        smearing: standard deviation of the Gaussian; 0 for a histogram.
        walls: values cannot be beyond the edges, and what the Gaussian puts there is reflected.
    """
    if not smearing > 0:
        place = jnp.floor((values - edges[0]) * ((len(edges) - 1) / (edges[-1] - edges[0]))).astype(jnp.int32)
        if walls:
            place = jnp.clip(place, 0, len(edges) - 2)
        place = jnp.where(place < 0, len(edges), place)  # negative indices would count from the end
        counts = jnp.zeros(len(edges) - 1, values.dtype)
        return counts.at[place].add(1.0 if weights is None else weights, mode="drop")
    total = jnp.zeros(len(edges), values.dtype)
    for source in [values, 2.0 * edges[0] - values, 2.0 * edges[-1] - values] if walls else [values]:
        below = erf((edges[:, None] - source) / (math.sqrt(2.0) * smearing))
        total += 0.5 * (below if weights is None else weights * below).sum(axis=1)
    return jnp.diff(total)
