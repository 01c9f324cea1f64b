"""The JSON layout in which the trajectories of the Materials Project are published, read material by material.

MPtrj (Deng et al., Nat. Mach. Intell. 5, 1031 (2023), figshare 23713842) is one JSON object of 11 GB:
{material: {frame: {"structure": …, "uncorrected_total_energy": …, "force": …, "stress": …, "magmom": …, …}}}, with
structures as pymatgen writes them. Energies are in eV, forces in eV/Å, magnetic moments in µB. The stress is VASP's, in
kBar and positive under compression (CHGNet multiplies it by −0.1 to have GPa, positive under tension).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ijson

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

ENERGY_KEY, FORCES_KEY, STRESS_KEY = "uncorrected_total_energy", "force", "stress"

LABELS = ("structure", FORCES_KEY, STRESS_KEY)


def is_mptrj(path: str | Path) -> bool:
    """Whether a file begins like one of this layout; reads its first material."""
    try:
        with opened(Path(path)) as file:
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
        Frames with magnetic moments where they are known; their `info` has material, frame_id and the other numbers and
        words that the file says of a frame. Labels that are null or not there are NaN.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another layout or truncated, or no entry can be used (with `left_out`). Without
            it, naming material and frame: if a frame lacks the energy or a structure, a label has a wrong shape, or
            the structure is refused (see `check_input`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    yield from usable_frames(path, _entries(path, energy_key, allow_close), left_out)


def _entries(path: Path, energy_key: str | None, allow_close: bool) -> Iterator[Callable[[], Frame]]:
    number = 0
    with opened_whole(path) as file:
        for material, frames in ijson.kvitems(file, "", use_float=True):
            for frame_id, said in frames.items() if isinstance(frames, dict) else [(None, frames)]:
                where = f"{path}, {material}, frame {frame_id}"
                origin = {"material": material, "frame_id": frame_id, "file": str(path), "frame": number}
                number += 1
                yield partial(_frame, said, where, energy_key, origin, allow_close)


def _frame(said: Any, where: str, energy_key: str | None, origin: dict[str, Any], allow_close: bool) -> Frame:
    if origin["frame_id"] is None:
        raise ValueError(
            f"{origin['file']}: {origin['material']!r} is no table of frames; is the file of the MPtrj layout?"
        )
    check_keys(said, energy_key, where)
    atoms = atoms_of(said["structure"], where, allow_close)
    set_magmoms(atoms, said, "magmom", where)
    return labelled_frame(
        atoms,
        energy=total_energy(said, energy_key, len(atoms), where),
        forces=label_of(said, FORCES_KEY, (len(atoms), 3), where),
        stress=-KBAR * label_of(said, STRESS_KEY, (3, 3), where),
        info=words_of({key: value for key, value in said.items() if key not in (*LABELS, energy_key)}),
        origin=origin,
        where=where,
    )
