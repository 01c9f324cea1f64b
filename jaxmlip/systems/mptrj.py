"""The JSON layout in which the trajectories of the Materials Project are published, read material by material.

MPtrj (Deng et al., Nat. Mach. Intell. 5, 1031 (2023), figshare 23713842) is one JSON object of 11 GB:
{material: {frame: {"structure": …, "uncorrected_total_energy": …, "force": …, "stress": …, "magmom": …, …}}}, with
structures as pymatgen writes them. Energies are in eV, forces in eV/Å, magnetic moments in µB. The stress is VASP's, in
kBar and positive under compression (CHGNet multiplies it by −0.1 to have GPa, positive under tension).
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from jaxtyping import Float

from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import check_structure
from jaxmlip.units import GPA

KBAR = 0.1 * GPA
"""eV/Å³."""

LABELS = ("structure", "force", "stress")


def is_mptrj(path: str | Path) -> bool:
    """Whether a file begins like one of this layout; reads its first material."""
    try:
        with _opened(Path(path)) as file:
            _, frames = next(ijson.kvitems(file, "", use_float=True))
        return all(isinstance(frame, dict) and "structure" in frame for frame in frames.values())
    except (OSError, ijson.JSONError, StopIteration, AttributeError):
        return False


def iterate_mptrj(path: str | Path, *, energy_key: str = "uncorrected_total_energy") -> Iterator[Frame]:
    """The frames of a file of this layout; one material at a time is held in memory.

    Args:
        path: `.json`, or `.json.gz`.
        energy_key: which energy is the label; one whose name has "per_atom" in it is multiplied by the number of atoms.
            The uncorrected energy is that of the forces; MP2020's corrections, in `corrected_total_energy` and
            `energy_per_atom`, make GGA and GGA+U comparable.

    Yields:
        Frames; their `info` has material, frame_id, magmom (µB, one for each atom, where known) and the other numbers
        and words that the file says of a frame. Labels that are null or not there are NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another layout or truncated, a frame lacks the energy or a structure, or a label
            has a wrong shape, naming material and frame.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    number = 0
    materials = _materials(path)
    for material, frames in materials:
        if not isinstance(frames, dict):
            raise ValueError(f"{path}: {material!r} is no table of frames; the file is not of the MPtrj layout.")
        for frame_id, said in frames.items():
            where = f"{path}, {material}, frame {frame_id}"
            origin = {"material": material, "frame_id": frame_id, "file": str(path), "frame": number}
            yield _frame(said, where, energy_key, origin)
            number += 1
    if not number:
        raise ValueError(f"{path} has no frames.")


def _materials(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with _opened(path) as file:
            yield from ijson.kvitems(file, "", use_float=True)
    except (ijson.JSONError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read to its end: it is truncated or no JSON ({error}).") from error


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _frame(said: Any, where: str, energy_key: str, origin: dict[str, Any]) -> Frame:
    if not isinstance(said, dict) or not {"structure", energy_key} <= said.keys():
        there = ", ".join(sorted(said)) if isinstance(said, dict) else repr(said)
        raise ValueError(f"{where} has no structure or no {energy_key!r}; the keys that are there: {there}.")
    atoms = _atoms(said["structure"], where)
    energy = float(_numbers(said, energy_key, (), where))
    stress = -KBAR * _numbers(said, "stress", (3, 3), where)
    rest = {key: value for key, value in said.items() if key not in (*LABELS, energy_key) and value is not None}
    info = {key: value for key, value in rest.items() if isinstance(value, str | bool | int | float)}
    if "magmom" in rest:
        info["magmom"] = _numbers(said, "magmom", (len(atoms),), where).tolist()
    return Frame(
        atoms=atoms,
        energy=energy * (len(atoms) if "per_atom" in energy_key else 1),
        forces=_numbers(said, "force", (len(atoms), 3), where),
        stress=0.5 * (stress + stress.T),
        info=info | origin,
    )


def _atoms(structure: Any, where: str) -> Atoms:
    """The structure that pymatgen's `Structure.as_dict` has written; cartesian positions are taken as they are."""
    try:
        if isinstance(structure, str):  # some releases hold the structure as text
            structure = json.loads(structure)
        lattice = structure["lattice"]
        species = [site["species"] for site in structure["sites"]]
        mixed = [place for place, kinds in enumerate(species) if len(kinds) != 1 or kinds[0].get("occu", 1) != 1]
        if mixed:
            raise ValueError(f"site {mixed[0]} is not occupied by one element alone")
        numbers = [atomic_numbers[kinds[0]["element"]] for kinds in species]
        cell = np.array(lattice["matrix"], np.float64)
        if all("xyz" in site for site in structure["sites"]):
            positions = np.array([site["xyz"] for site in structure["sites"]], np.float64)
        else:
            positions = np.array([site["abc"] for site in structure["sites"]], np.float64) @ cell
        atoms = Atoms(numbers, positions, cell=cell, pbc=lattice.get("pbc", True))
        check_structure(atoms)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: the structure cannot be used: {reason}.") from error
    return atoms


def _numbers(said: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
    """A label; NaN where it is null or not there."""
    value = said.get(key)
    if value is None:
        return np.full(shape, np.nan)
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {key!r} is not numeric.") from error
    if array.shape != shape:
        raise ValueError(f"{where}: {key!r} has shape {array.shape} instead of {shape}.")
    return array
