"""Entries of published data sets: structures as pymatgen writes them to JSON, and labels beside them.

What the layouts of MPtrj and MatPES have in common: files that may be compressed and larger than memory, entries that
may be bad, structures of `Structure.as_dict`, and labels in VASP's units.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from jaxtyping import Float

from jaxmlip.systems.checks import FULL, admitted
from jaxmlip.systems.dataset import MAGMOMS, Frame
from jaxmlip.systems.extxyz import ISOTOPES
from jaxmlip.types import HostMatrix
from jaxmlip.units import GPA

KBAR = 0.1 * GPA
"""eV/Å³."""

HOPELESS = 1000
"""If this many entries are bad and none is good, the fault is one of all: a wrong key, or another layout."""


def opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """A file to read bytes from, decompressed if its name ends in `.gz`."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def opened_whole(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """The same; that its JSON breaks off is a ValueError that names the file."""
    try:
        with opened(path) as file:
            yield file
    except (ijson.JSONError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read to its end: it is truncated or no JSON ({error}).") from error


def usable_frames(path: Path, entries: Iterable[Callable[[], Frame]], left_out: list[str] | None) -> Iterator[Frame]:
    """The frames of those entries of which one can be made.

    Args:
        path: of the file, for messages.
        entries: each makes its frame when called, or raises ValueError.
        left_out: gets a sentence for each bad entry; None if the first of them ends the reading.

    Raises:
        ValueError: of a bad entry (without `left_out`); if there is no entry, or none can be used.
    """
    good = bad = 0
    for make in entries:
        try:
            frame = make()
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
    if not good and not bad:
        raise ValueError(f"{path} has no frames.")
    if not good and left_out:
        raise ValueError(_hopeless(path, bad, left_out))


def _hopeless(path: Path, bad: int, left_out: list[str]) -> str:
    return f"No frame of {path} can be used; of the {bad} that were read, the first: {left_out[-bad]}"


def labelled_frame(
    atoms: Atoms,
    energy: float,
    forces: Float[np.ndarray, "atoms 3"],
    stress: HostMatrix,
    info: dict[str, Any],
    origin: dict[str, Any],
    where: str,
) -> Frame:
    """A frame of labels in eV, eV/Å and eV/Å³, none of which may be infinite.

    Args:
        atoms: gets what is said of the frame, but for `file` and `frame`, as `info`.
        energy: total, or NaN.
        forces: NaN where absent.
        stress: positive under tension; made symmetric.
        info: what the file says besides.
        origin: where the frame comes from.
        where: how messages call it.

    Raises:
        ValueError: if a label is infinite.
    """
    for what, values in {"energy": energy, "force": forces, "stress": stress}.items():
        if np.isinf(values).any():
            raise ValueError(f"{where}: the {what} is infinite.")
    atoms.info |= info | {key: value for key, value in origin.items() if key not in ("file", "frame")}
    return Frame(atoms, energy, forces, 0.5 * (stress + stress.T), info | origin)


def total_energy(said: dict[str, Any], key: str | None, n_atoms: int, where: str) -> float:
    """The energy of a name, times the number of atoms if the name has "per_atom" in it; NaN without one."""
    if key is None:
        return np.nan
    return float(label_of(said, key, (), where)) * (n_atoms if "per_atom" in key else 1)


def words_of(said: dict[str, Any]) -> dict[str, str | bool | int | float]:
    """What of an entry is a word or a number."""
    return {key: value for key, value in said.items() if isinstance(value, str | bool | int | float)}


def check_keys(said: Any, energy_key: str | None, where: str) -> None:
    """Refuse an entry that is no table, or lacks a structure or the energy that is wanted.

    Raises:
        ValueError: naming the entry, what it lacks and the keys that are there.
    """
    wanted = ["structure"] if energy_key is None else ["structure", energy_key]
    if not isinstance(said, dict) or not {*wanted} <= said.keys():
        there = ", ".join(sorted(said)) if isinstance(said, dict) else repr(said)
        lacking = "no structure" if energy_key is None else f"no structure or no {energy_key!r}"
        raise ValueError(f"{where} has {lacking}; the keys that are there: {there}.")


def set_magmoms(atoms: Atoms, said: dict[str, Any], key: str, where: str) -> None:
    """Keep magnetic moments (µB, one for each atom) with a structure, where an entry has them.

    Raises:
        ValueError: if there are not as many numbers as atoms.
    """
    if said.get(key) is not None:
        atoms.set_array(MAGMOMS, label_of(said, key, (len(atoms),), where))


def atoms_of(structure: Any, where: str, allow_close: bool) -> Atoms:
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
        admitted(atoms, allow_close=allow_close)
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


def label_of(said: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Float[np.ndarray, "..."]:
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
