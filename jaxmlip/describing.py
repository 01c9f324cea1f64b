"""Short words for objects that hold large arrays: what an interactive session and a message show of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MOST_ELEMENTS = 12
"""Elements that are listed; of more, the number is said."""


def elements(numbers: Iterable[int]) -> str:
    """Elements by their symbols: "H O", or "94 elements (H to Pu)"."""
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[number] for number in sorted({int(number) for number in numbers} - {0})]
    if len(symbols) > MOST_ELEMENTS:
        return f"{len(symbols)} elements ({symbols[0]} to {symbols[-1]})"
    return " ".join(symbols) or "no elements"


def count(number: int, what: str) -> str:
    """A number of things: "1 frame", "2 frames"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def parameters(leaves: Sequence[Any]) -> str:
    """How many numbers there are in arrays, and of which types."""
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    types = sorted({str(leaf.dtype) for leaf in arrays})
    number = sum(int(np.prod(leaf.shape)) for leaf in arrays)
    return f"{count(number, 'parameter')}{' (' + ', '.join(types) + ')' if types else ''}"


def plus_minus(value: Any, error: Any) -> str:
    """A number with its error, to two digits of the error; without one six digits of the number alone."""
    if not math.isfinite(error):
        return f"{value:.6g}"
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 6
    return f"{value:.{places}f} ± {error:.{places}f}"


def short(kind: str, *parts: str) -> str:
    """What is said of an object, by its kind and in parts."""
    return f"<{kind}: {', '.join(part for part in parts if part)}>"
