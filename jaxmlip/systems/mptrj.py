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

from jaxmlip.systems.checks import ALLOW_CLOSE, FULL, check_input, close_contact
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.extxyz import ISOTOPES
from jaxmlip.units import GPA

KBAR = 0.1 * GPA
"""eV/Å³."""

ENERGY_KEY, FORCES_KEY, STRESS_KEY = "uncorrected_total_energy", "force", "stress"

LABELS = ("structure", FORCES_KEY, STRESS_KEY)

HOPELESS = 1000
"""If this many entries are bad and none is good, the fault is one of all: a wrong key, or another layout."""


def is_mptrj(path: str | Path) -> bool:
    """Whether a file begins like one of this layout; reads its first material."""
    try:
        with _opened(Path(path)) as file:
            _, frames = next(ijson.kvitems(file, "", use_float=True))
        return all(isinstance(frame, dict) and "structure" in frame for frame in frames.values())
    except (OSError, ijson.JSONError, StopIteration, AttributeError):
        return False


def iterate_mptrj(
    path: str | Path,
    *,
    energy_key: str | None = ENERGY_KEY,
    allow_close: bool = False,
    left_out: list[str] | None = None,
) -> Iterator[Frame]:
    """The frames of a file of this layout; one material at a time is held in memory.

    Args:
        path: `.json`, or `.json.gz`.
        energy_key: which energy is the label; one whose name has "per_atom" in it is multiplied by the number of atoms.
            The uncorrected energy is that of the forces; MP2020's corrections, in `corrected_total_energy` and
            `energy_per_atom`, make GGA and GGA+U comparable. None for frames without energies.
        allow_close: see `read_frames`.
        left_out: entries that cannot be used are left out, and a sentence for each, which names it, is appended to
            this list. Without a list the first of them ends the reading.

    Yields:
        Frames; their `info` has material, frame_id, magmom (µB, one for each atom, where known) and the other numbers
        and words that the file says of a frame. Labels that are null or not there are NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another layout or truncated, or no entry can be used (with `left_out`). Without
            it, naming material and frame: if a frame lacks the energy or a structure, a label has a wrong shape, or
            the structure is refused (see `check_input`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    good = bad = number = 0
    for material, frames in _materials(path):
        for frame_id, said in frames.items() if isinstance(frames, dict) else [(None, frames)]:
            where = f"{path}, {material}, frame {frame_id}"
            origin = {"material": material, "frame_id": frame_id, "file": str(path), "frame": number}
            number += 1
            try:
                if frame_id is None:
                    raise ValueError(f"{path}: {material!r} is no table of frames; is the file of the MPtrj layout?")
                frame = _frame(said, where, energy_key, origin, allow_close)
            except ValueError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
                bad += 1
                if bad >= HOPELESS and not good:
                    raise ValueError(_hopeless(path, bad, left_out)) from None
                continue
            good += 1
            yield frame
    if not number:
        raise ValueError(f"{path} has no frames.")
    if not good and left_out:
        raise ValueError(_hopeless(path, bad, left_out))


def _hopeless(path: Path, bad: int, left_out: list[str]) -> str:
    return f"No frame of {path} can be used; of the {bad} that were read, the first: {left_out[-bad]}"


def _materials(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with _opened(path) as file:
            yield from ijson.kvitems(file, "", use_float=True)
    except (ijson.JSONError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read to its end: it is truncated or no JSON ({error}).") from error


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _frame(said: Any, where: str, energy_key: str | None, origin: dict[str, Any], allow_close: bool) -> Frame:
    wanted = {"structure"} if energy_key is None else {"structure", energy_key}
    if not isinstance(said, dict) or not wanted <= said.keys():
        there = ", ".join(sorted(said)) if isinstance(said, dict) else repr(said)
        lacking = "no structure" if energy_key is None else f"no structure or no {energy_key!r}"
        raise ValueError(f"{where} has {lacking}; the keys that are there: {there}.")
    atoms = _atoms(said["structure"], where, allow_close)
    energy = np.nan if energy_key is None else float(_numbers(said, energy_key, (), where))
    per_atom = energy_key is not None and "per_atom" in energy_key
    stress = -KBAR * _numbers(said, STRESS_KEY, (3, 3), where)
    rest = {key: value for key, value in said.items() if key not in (*LABELS, energy_key) and value is not None}
    info = {key: value for key, value in rest.items() if isinstance(value, str | bool | int | float)}
    if "magmom" in rest:
        info["magmom"] = _numbers(said, "magmom", (len(atoms),), where).tolist()
    forces = _numbers(said, FORCES_KEY, (len(atoms), 3), where)
    for what, values in {"energy": energy, "force": forces, "stress": stress}.items():
        if np.isinf(values).any():
            raise ValueError(f"{where}: the {what} is infinite.")
    atoms.info |= info | {key: value for key, value in origin.items() if key not in ("file", "frame")}
    return Frame(
        atoms=atoms,
        energy=energy * (len(atoms) if per_atom else 1),
        forces=forces,
        stress=0.5 * (stress + stress.T),
        info=info | origin,
    )


def _atoms(structure: Any, where: str, allow_close: bool) -> Atoms:
    """The structure that pymatgen's `Structure.as_dict` has written; cartesian positions are taken as they are."""
    try:
        if isinstance(structure, str):  # some releases hold the structure as text
            structure = json.loads(structure)
        lattice, sites = structure["lattice"], structure["sites"]
        symbols = [_element(place, site["species"]) for place, site in enumerate(sites)]
        cell = np.array(lattice["matrix"], np.float64)
        if all("xyz" in site for site in sites):
            positions = np.array([site["xyz"] for site in sites], np.float64)
        else:
            positions = np.array([site["abc"] for site in sites], np.float64) @ cell
        numbers = [1 if symbol in ISOTOPES else atomic_numbers[symbol] for symbol in symbols]
        atoms = Atoms(numbers, positions.reshape(-1, 3), cell=cell, pbc=lattice.get("pbc", True))
        heavy = {place: ISOTOPES[symbol] for place, symbol in enumerate(symbols) if symbol in ISOTOPES}
        if heavy:
            masses = atoms.get_masses()
            masses[[*heavy]] = [*heavy.values()]
            atoms.set_array("masses", masses, float, ())
        check_input(atoms, allow_close=allow_close)
        if allow_close and close_contact(atoms):
            atoms.info[ALLOW_CLOSE] = True
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(f"{where}: the structure cannot be used: {reason}.") from error
    return atoms


def _element(place: int, kinds: list[dict[str, Any]]) -> str:
    """The symbol of the element that has a site to itself."""
    shares = {kind["element"]: float(kind.get("occu", 1)) for kind in kinds}
    if len(shares) != 1 or min(shares.values()) < FULL:
        said = ", ".join(f"{symbol} {share:g}" for symbol, share in shares.items()) or "nothing"
        raise ValueError(f"site {place} is not occupied by one element alone ({said})")
    (symbol,) = shares
    if symbol not in atomic_numbers and symbol not in ISOTOPES:
        raise ValueError(f"site {place}: {symbol!r} is no element")
    return symbol


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
