"""Labelled structures: what every stage hands to the next."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_dict_to_str
from ase.io.formats import UnknownFileTypeError, filetype
from ase.stress import voigt_6_to_full_3x3_stress
from ase.utils import string2index
from jaxtyping import Float, Int

from jaxmlip.describing import short
from jaxmlip.systems.graph import Graph, check_structure, graph_from_atoms
from jaxmlip.types import HostMatrix


@dataclasses.dataclass(frozen=True)
class Frame:
    """A structure and what a level of theory says of it; NaN marks a label that is absent.

    Attributes:
        atoms: the structure, without calculator or constraints.
        energy: total energy in eV, elemental references included.
        forces: eV/Å.
        stress: eV/Å³, positive under tension.
        info: where the frame comes from (file, index, kind), for messages and per-type errors.
    """

    atoms: Atoms
    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: HostMatrix = dataclasses.field(default_factory=lambda: np.full((3, 3), np.nan))
    info: dict = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """The structure, its labels and where it is from."""
        energy = "no energy" if np.isnan(self.energy) else f"{self.energy:.6f} eV"
        longest = np.linalg.norm(self.forces, axis=-1).max(initial=0.0)
        forces = "no forces" if np.isnan(self.forces).all() else f"longest force {longest:.3g} eV/Å"
        stress = "" if np.isnan(self.stress).all() else "stress"
        return short(
            "Frame", str(self.atoms.symbols), energy, forces, stress, describe(self, -1) if "file" in self.info else ""
        )


def read_frames(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = None,
    index: str | int = ":",
) -> list[Frame]:
    """Labelled frames from extended XYZ, an ASE database, or any other file ASE reads.

    Labels are taken as the file states them: constraints that ASE reads along with a structure do not zero forces.

    Args:
        path: the file.
        energy_key: name of the total energy in eV; None for frames without this label.
        forces_key: name of the forces, eV/Å, [atoms, 3]; None for frames without this label.
        stress_key: name of the stress, eV/Å³, positive under tension, as 6 Voigt components (xx yy zz yz xz xy), 9 or
            3 × 3 numbers; None for frames without this label.
        index: which frames, as in `ase.io.read`: a number or a slice such as "-100:".

    Returns:
        Frames; their `info` has `file`, `frame` (number in the file) and whatever numbers and words the file says of
        the frame besides labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read or has no frames (of this index); if a key is missing (naming file, frame
            and the keys that are there), a label has a wrong shape or is infinite, or a structure is damaged (NaN,
            singular cell).
    """
    path = Path(path)
    everything = [*_structures(path)]
    selected = select_index(len(everything), index, path)
    return [
        _read_frame(everything[number], path, int(number), energy_key, forces_key, stress_key) for number in selected
    ]


def iterate_frames(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = None,
) -> Iterator[Frame]:
    """The frames of a file one by one, so that they need not fit into memory; see `read_frames`."""
    path = Path(path)
    for number, atoms in enumerate(_structures(path)):
        yield _read_frame(atoms, path, number, energy_key, forces_key, stress_key)


def write_frames(path: str | Path, frames: Sequence[Frame], *, prefix: str = "") -> None:
    """Frames as extended XYZ, to the last digit; labels that are absent (NaN) are left out.

    The file is complete or not there at all: it is written beside its place and renamed.

    Args:
        path: the file; replaced if it exists.
        frames: labelled structures. Their `info`, but for where they were read from, is written along.
        prefix: the labels' keys are `energy`, `forces` and `stress` with this in front.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as file:
            for frame in frames:
                file.write(_extended_xyz(frame, prefix))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def split(frames: Sequence, parts: Sequence[int | float], seed: int = 0) -> tuple[Any, ...]:
    """Shuffle and split into disjoint lists, one for each part.

    Args:
        frames: anything in a sequence; the parts of what has a method `select`, as a store, are views made by it.
        parts: numbers of frames (integers), or fractions of all frames (floats) that sum to at most 1; fractions are
            rounded such that parts that sum to 1 leave no frame out.
        seed: the same seed gives the same split.

    Raises:
        ValueError: if the parts are negative, exceed what there is, or mix numbers with fractions.
    """
    whole = [isinstance(part, int | np.integer) for part in parts]
    if any(whole) and not all(whole):
        raise ValueError(f"Give numbers of frames or fractions, not a mixture: {list(parts)}.")
    if min(parts, default=0) < 0:
        raise ValueError(f"The parts of a split cannot be negative: {list(parts)}.")
    if all(whole):
        ends = np.cumsum(parts)
        if ends.size and ends[-1] > len(frames):
            raise ValueError(f"A split into {list(parts)} needs {ends[-1]} frames, but there are {len(frames)}.")
    else:
        if sum(parts) > 1 + 1e-9:
            raise ValueError(f"The fractions {list(parts)} sum to {sum(parts):g}, more than 1.")
        ends = np.round(np.cumsum(parts) * len(frames)).astype(int)
    order = np.random.default_rng(seed).permutation(len(frames))
    chosen = [order[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    select = getattr(frames, "select", lambda which: [frames[i] for i in which])
    return tuple(map(select, chosen))


def select_index(number: int, index: str | int, path: Path) -> Int[np.ndarray, " selected"]:
    """The frames, of so many in a file, that an index means; see `read_frames`.

    Raises:
        ValueError: if it means none.
    """
    which = string2index(index) if isinstance(index, str) else index
    numbers = np.arange(number)
    try:
        selected = numbers[which] if isinstance(which, slice) else numbers[[int(which)]]
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} has {number} frames, and index {index} is none of them.") from error
    if not len(selected):
        raise ValueError(f"{path} has {number} frames, and none of them is within index {index}.")
    return selected


def frame_graph(frame: Frame, number: int, cutoff: float, inner_cutoff: float = 0.0, dtype: type = np.float32) -> Graph:
    """`graph_from_atoms` of a frame, whose errors name the frame."""
    try:
        return graph_from_atoms(frame.atoms, cutoff, inner_cutoff, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{describe(frame, number)}: {error}") from error


def describe(frame: Frame, number: int) -> str:
    """How a message calls a frame: by file and number in the file where known, else by its number in the list."""
    if "file" in frame.info:
        return f"{frame.info['file']}, frame {frame.info.get('frame', number)}"
    return f"Frame {number}"


def frame_kind(frame: Frame) -> str:
    """The type of a frame, by which errors are listed: `kind` or `config_type` of its `info`, else its file's name."""
    for key in ("kind", "config_type"):
        if key in frame.info:
            return str(frame.info[key])
    return Path(str(frame.info.get("file", ""))).stem


def _read_frame(
    atoms: Atoms, path: Path, number: int, energy_key: str | None, forces_key: str | None, stress_key: str | None
) -> Frame:
    """One frame as ASE has read it, checked."""
    where = f"{path}, frame {number}"
    labels = _labels(atoms)

    def label(key: str | None, shapes: list[tuple[int, ...]]) -> np.ndarray:
        if key is None:
            return np.full(shapes[0], np.nan)
        if key not in labels:
            there = ", ".join(sorted(labels)) or "none"
            raise ValueError(f"{where} has no {key!r}; the keys that are there: {there}.")
        try:
            value = np.asarray(labels[key], np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {key!r} is not numeric ({labels[key]!r}).") from error
        if value.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{where}: {key!r} has shape {value.shape} instead of {wanted}.")
        if np.isinf(value).any():
            raise ValueError(f"{where}: {key!r} is infinite; write NaN for a label that is absent.")
        return value

    try:
        check_structure(atoms)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    stress = label(stress_key, [(3, 3), (6,), (9,)])
    stress = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress.reshape(3, 3)
    said = {key: value.item() if isinstance(value, np.generic) else value for key, value in labels.items()}
    said = {key: value for key, value in said.items() if isinstance(value, str | bool | int | float)}
    used = {energy_key, forces_key, stress_key, *(atoms.calc.results if atoms.calc else ())}
    return Frame(
        atoms=Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc),
        energy=float(label(energy_key, [()])),
        forces=label(forces_key, [(len(atoms), 3)]),
        stress=0.5 * (stress + stress.T),
        info={key: value for key, value in said.items() if key not in used} | {"file": str(path), "frame": number},
    )


def _structures(path: Path) -> Iterator[Atoms]:
    """Every structure of a file, with all that the file says of it; for the errors see `read_frames`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} has no frames: it is empty.")
    number = 0
    try:
        if filetype(str(path)) in ("db", "json"):
            rows = ase.db.connect(path, serial=True).select()
            structures = (row.toatoms(add_additional_information=True) for row in rows)
        else:
            structures = ase.io.iread(path, ":")
        for atoms in structures:
            yield atoms
            number += 1
    except UnknownFileTypeError as error:
        raise ValueError(f"{path} is of no format that ASE knows; use extended XYZ (.extxyz) or ASE's .db.") from error
    except Exception as error:  # ASE's readers raise anything, down to a bare StopIteration
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of atomic structures: {reason}") from error
    if not number:
        raise ValueError(f"{path} has no frames.")


def _labels(atoms: Atoms) -> dict[str, Any]:
    """Everything a file says of a frame besides its structure, by key.

    ASE's readers put it into five places: `info`, `arrays`, the results of a single-point calculator (which hold
    energies and forces as read, before constraints), and, for a database, key-value pairs and data in `info`.
    """
    info = dict(atoms.info)
    nested = info.pop("key_value_pairs", {}) | info.pop("data", {})
    info.pop("unique_id", None)
    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    return (dict(atoms.calc.results) if atoms.calc else {}) | nested | info | arrays


def _extended_xyz(frame: Frame, prefix: str) -> str:
    """One frame as text; 17 digits restore a double exactly, ASE's own writer keeps 8 decimals."""
    atoms = frame.atoms
    columns, properties = [atoms.positions], "species:S:1:pos:R:3"
    if not np.isnan(frame.forces).all():
        columns.append(frame.forces)
        properties += f":{prefix}forces:R:3"
    elsewhere = {"file", "frame", *(prefix + label for label in ("energy", "forces", "stress"))}
    said = {key: value for key, value in frame.info.items() if key not in elsewhere}
    if not np.isnan(frame.energy):
        said[f"{prefix}energy"] = float(frame.energy)
    if not np.isnan(frame.stress).all():
        said[f"{prefix}stress"] = frame.stress.reshape(9)
    header = {"Properties": properties, "pbc": atoms.pbc} | said
    if atoms.cell.array.any():
        header = {"Lattice": atoms.cell.array.T} | header  # the writer flattens it in column order
    lines = [str(len(atoms)), key_val_dict_to_str(header)]
    for symbol, row in zip(atoms.symbols, np.concatenate(columns, axis=1), strict=True):
        lines.append(" ".join([symbol, *(f"{value:.17g}" for value in row)]))
    return "\n".join(lines) + "\n"
