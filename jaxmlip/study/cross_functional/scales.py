"""How the energies of two levels of theory go together, before and after elemental references are taken out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float

from jaxmlip.files import finite
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import Frame
from jaxmlip.validation.correlation import correlation

WAYS = ("raw", "referenced", "exchanged")
"""Energies as they are, relative to each level's own references, and relative to the other's."""

RESAMPLES = 1000

SHOWN = 12
"""Elements that move most, which are listed."""


@dataclasses.dataclass(frozen=True)
class Scales:
    """Energies per atom of the same structures at both levels, eV.

    Attributes:
        source: by way, see `WAYS`.
        target: likewise.
        compositions: of the structures.
        summary: the numbers.
    """

    source: dict[str, Float[np.ndarray, " structures"]]
    target: dict[str, Float[np.ndarray, " structures"]]
    compositions: tuple[str, ...]
    summary: dict[str, Any]


def energy_scales(
    pairs: Sequence[tuple[Frame, Frame]],
    references: tuple[Float[np.ndarray, "119"], Float[np.ndarray, "119"]],
    seed: int = 0,
) -> Scales:
    """Shift and correlation of energies per atom, with bootstrap intervals over compositions.

    Args:
        pairs: the same structures, labelled by source and target.
        references: of source and target, eV by atomic number.
        seed: of the bootstrap.

    Returns:
        In the summary `raw`, `referenced` and `exchanged`, each with `pearson` and `spearman` (value, error, interval)
        and `shift_eV_atom` (target − source: its mean with standard error, and its spread over structures), and the
        `elements` whose references move most, eV.
    """
    pairs = [(a, b) for a, b in pairs if np.isfinite(a.energy + b.energy)]
    names = tuple(composition(frame.atoms) for frame, _ in pairs)
    energies = [np.array([f.energy / len(f.atoms) for f in level]) for level in zip(*pairs, strict=True)]
    own = [np.array([table[f.atoms.numbers].mean() for f, _ in pairs]) for table in references]
    source = {"raw": energies[0], "referenced": energies[0] - own[0], "exchanged": energies[0] - own[1]}
    target = {"raw": energies[1], "referenced": energies[1] - own[1], "exchanged": energies[1] - own[0]}
    summary: dict[str, Any] = {"structures": len(pairs), "compositions": len({*names})}
    for way in WAYS:
        found = correlation(source[way], target[way], clusters=names, resamples=RESAMPLES, seed=seed)
        summary[way] = {
            "pearson": _number(found.pearson, found.pearson_error, found.pearson_interval),
            "spearman": _number(found.spearman, found.spearman_error, found.spearman_interval),
            "shift_eV_atom": _shift(target[way] - source[way], names),
        }
    present = sorted({int(z) for frame, _ in pairs for z in frame.atoms.numbers})
    moved = references[1] - references[0]
    order = sorted(present, key=lambda z: -abs(moved[z]))[:SHOWN]
    summary["elements"] = {chemical_symbols[z]: float(moved[z]) for z in order}
    return Scales(source, target, names, finite(summary))


def _number(value: float, error: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"value": value, "error": error, "interval": list(interval)}


def _shift(shifts: Float[np.ndarray, " structures"], names: Sequence[str]) -> dict[str, float]:
    """Mean over structures, its standard error with compositions as the independent unit, and the spread."""
    _, place = np.unique(names, return_inverse=True)
    number = int(place.max()) + 1
    residuals = np.bincount(place, weights=shifts - shifts.mean())
    error = np.sqrt(number / (number - 1) * np.sum(residuals**2)) / len(shifts) if number > 1 else np.nan
    spread = float(shifts.std(ddof=1)) if len(shifts) > 1 else float("nan")
    return {"value": float(shifts.mean()), "error": float(error), "spread": spread}
