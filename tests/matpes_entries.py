"""Entries of files of the MatPES layout."""

from typing import Any

import numpy as np
from ase import Atoms


def entry(number: int, atoms: Atoms, energy: float) -> dict[str, Any]:
    """As MatPES has it; forces and stress are the same in all frames but for the number."""
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": list(abc), "xyz": list(xyz), "label": symbol}
        for symbol, abc, xyz in zip(atoms.symbols, atoms.get_scaled_positions(), atoms.positions, strict=True)
    ]
    structure = {"@class": "Structure", "lattice": {"matrix": atoms.cell.array.tolist()}, "sites": sites}
    forces = np.full((len(atoms), 3), 0.01 * number).tolist()
    labels = {"energy": energy, "forces": forces, "stress": [1.0, 2, 3, 0, 0, 0]}
    return {"structure": structure, "matpes_id": f"matpes-{number}", "functional": "any"} | labels
