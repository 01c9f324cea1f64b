"""The JSON layout in which the Materials Potential Energy Surface data set is published, read entry by entry.

MatPES (Kaplan et al., arXiv:2503.04070 (2025), matpes.ai) is one JSON list for each functional, PBE or r2SCAN:
[{"structure": …, "energy": …, "forces": …, "stress": …, "matpes_id": …, "functional": …, "cohesive_energy_per_atom": …,
"provenance": {…}, …}, …], with structures as pymatgen writes them and magnetic moments (µB) among the properties of
their sites; also one entry a line (`.jsonl`). As its page says of the keys, energies are in eV, forces in eV/Å, and the
stress in kBar, as six components (xx yy zz yz xz xy), with VASP's sign, positive under compression (its own notebook of
training multiplies it by −0.1 to have GPa, positive under tension). Newer builds write a stress that is not symmetric
as `stress_matrix`. A second list of the same layout has the isolated atoms of a functional.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress
from jaxtyping import Float

from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.pymatgen_json import (
    KBAR,
    atoms_of,
    check_keys,
    label_of,
    labelled_frame,
    opened,
    opened_whole,
    set_magmoms,
    total_energy,
    usable_frames,
    words_of,
)
from jaxmlip.types import HostMatrix

ENERGY_KEY, FORCES_KEY, STRESS_KEY = "energy", "forces", "stress"

MATRIX_KEY = "stress_matrix"

LABELS = ("structure", FORCES_KEY, STRESS_KEY, MATRIX_KEY)

LINES = ".jsonl"
"""One of the endings of a file of one entry a line."""


def is_matpes(path: str | Path) -> bool:
    """Whether a file begins like one of this layout; reads its first entry."""
    path = Path(path)
    try:
        with opened(path) as file:
            if LINES not in path.suffixes and not _begins_a_list(file):
                return False
            first = next(_values(path, file))
        return isinstance(first, dict) and {"structure", FORCES_KEY} <= first.keys()
    except (OSError, EOFError, ijson.JSONError, StopIteration):
        return False


def iterate_matpes(
    path: str | Path,
    *,
    energy_key: str | None = ENERGY_KEY,
    allow_close: bool = False,
    left_out: list[str] | None = None,
) -> Iterator[Frame]:
    """The frames of a file of this layout; one entry at a time is held in memory.

    Args:
        path: `.json` or `.jsonl`, or either with `.gz`.
        energy_key: which energy is the label; one whose name has "per_atom" in it is multiplied by the number of atoms
            (`cohesive_energy_per_atom`: relative to isolated atoms). None for frames without energies.
        allow_close: see `read_frames`.
        left_out: entries that cannot be used are left out, and a sentence for each, which names it, is appended to
            this list. Without a list the first of them ends the reading.

    Yields:
        Frames with magnetic moments where they are known; their `info` has matpes_id, functional and the other numbers
        and words that the file says of a frame, those of its provenance included. Labels that are null or not there
        are NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, or no entry can be used (with `left_out`). Without it, naming the entry:
            if it lacks the energy or a structure, a label has a wrong shape, or the structure is refused (see
            `check_input`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    yield from usable_frames(path, _entries(path, energy_key, allow_close), left_out)


def isolated_atom_energies(path: str | Path) -> Float[np.ndarray, "119"]:
    """Energies of isolated atoms as elemental references, of a file of one-atom entries (`MatPES-PBE-atoms.json`).

    Args:
        path: as for `iterate_matpes`.

    Returns:
        [119], eV by atomic number; 0 for elements that are not there. `jm.Equivariant(references=…)`, strategies and
        `fit_references(start=…)` take it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an entry has more than one atom or no energy, or an element is there twice with other energies.
    """
    energies = np.zeros(len(chemical_symbols))
    seen: set[int] = set()
    for frame in iterate_matpes(path):
        where = f"{path}, entry {frame.info['frame']}"
        if len(frame.atoms) != 1:
            raise ValueError(f"{where} has {len(frame.atoms)} atoms; is this the file of isolated atoms?")
        if np.isnan(frame.energy):
            raise ValueError(f"{where} ({frame.atoms.symbols}) has no energy.")
        (number,) = frame.atoms.numbers
        if number in seen and energies[number] != frame.energy:
            raise ValueError(
                f"{where}: {frame.atoms.symbols} has {frame.energy:g} eV, and {energies[number]:g} eV in an entry "
                "before; keep one of them, or one functional to a file."
            )
        seen.add(int(number))
        energies[number] = frame.energy
    return energies


def _entries(path: Path, energy_key: str | None, allow_close: bool) -> Iterator[Callable[[], Frame]]:
    with opened_whole(path) as file:
        if LINES not in path.suffixes and not _begins_a_list(file):
            raise ValueError(f"{path} is no list of entries; is the file of the MatPES layout?")
        for number, said in enumerate(_values(path, file)):
            yield partial(_frame, said, path, number, energy_key, allow_close)


def _begins_a_list(file: Any) -> bool:
    """Whether the first character is that of a JSON list; the file is left at its beginning."""
    start = file.read(64).lstrip()[:1]
    file.seek(0)
    return start == b"["


def _values(path: Path, file: Any) -> Iterator[Any]:
    if LINES in path.suffixes:
        return ijson.items(file, "", multiple_values=True, use_float=True)
    return ijson.items(file, "item", use_float=True)


def _frame(said: Any, path: Path, number: int, energy_key: str | None, allow_close: bool) -> Frame:
    name = said.get("matpes_id") if isinstance(said, dict) else None
    where = f"{path}, entry {number}" + (f" ({name})" if name else "")
    check_keys(said, energy_key, where)
    atoms = atoms_of(said["structure"], where, allow_close)
    set_magmoms(atoms, {"magmom": _of_sites(said["structure"], "magmom", where)}, "magmom", where)
    rest = {key: value for key, value in said.items() if key not in (*LABELS, energy_key)}
    provenance = said.get("provenance")
    return labelled_frame(
        atoms,
        energy=total_energy(said, energy_key, len(atoms), where),
        forces=label_of(said, FORCES_KEY, (len(atoms), 3), where),
        stress=_stress(said, where),
        info=words_of(rest) | words_of(provenance if isinstance(provenance, dict) else {}),
        origin={"file": str(path), "frame": number},
        where=where,
    )


def _stress(said: dict[str, Any], where: str) -> HostMatrix:
    """eV/Å³, positive under tension; NaN where absent."""
    if said.get(MATRIX_KEY) is not None:
        return -KBAR * label_of(said, MATRIX_KEY, (3, 3), where)
    return -KBAR * voigt_6_to_full_3x3_stress(label_of(said, STRESS_KEY, (6,), where))


def _of_sites(structure: dict[str, Any] | str, key: str, where: str) -> list[Any] | None:
    """A property that every site has."""
    sites = (json.loads(structure) if isinstance(structure, str) else structure)["sites"]
    properties = [site.get("properties") or {} for site in sites]
    for place, own in enumerate(properties):
        if not isinstance(own, dict):
            raise ValueError(f"{where}: the properties of site {place} are {own!r}, and no table of names and values.")
    values = [own.get(key) for own in properties]
    return None if any(value is None for value in values) else values
