"""Labelled structures: what every stage hands to the next."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.utils import string2index
from jaxtyping import Float, Int

from jaxmlip.describing import short
from jaxmlip.files import written_whole
from jaxmlip.systems.checks import admitted
from jaxmlip.systems.extxyz import extxyz_text, read_extxyz
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.systems.label_keys import LabelKeys
from jaxmlip.types import HostMatrix

LABELS = ("energy", "free_energy", "energies", "forces", "stress", "stresses")
"""What ASE calls results of a calculation that a frame's labels stand for; those that are not read are let go."""

MAGMOMS = "magmoms"
"""Array of a structure that holds the magnetic moments of its atoms (µB), as ASE calls the results of a calculation."""

OF_ATOMS = (MAGMOMS, "charges")
"""What ASE calls results that belong to single atoms and stay with them."""

ORIGIN = ("file", "frame")
"""Keys of a frame's `info` that say where it was read from; they are not written again."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A structure and what a level of theory says of it; NaN marks a label that is absent.

    Attributes:
        atoms: the structure with all that is said of it besides labels: masses, momenta, tags, charges, magnetic
            moments, constraints, further arrays, `info`; without calculator.
        energy: total energy in eV, elemental references included.
        forces: eV/Å.
        stress: eV/Å³, positive under tension.
        info: words and numbers for messages and per-type errors: where the frame comes from (`file`, `frame`), and of
            `atoms.info` what is no array (`kind`, `config_type`, `charge` …).
        carried: labels that come from elsewhere than energy and forces, as "magmoms" of a structure that a potential
            without magnetic moments has labelled.
    """

    atoms: Atoms
    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: HostMatrix = dataclasses.field(default_factory=lambda: np.full((3, 3), np.nan))
    info: dict = dataclasses.field(default_factory=dict)
    carried: tuple[str, ...] = ()

    @property
    def magmoms(self) -> Float[np.ndarray, " atoms"]:
        """Magnetic moments in µB, along the axis of magnetisation; NaN where absent.

        They stay with the structure, in `atoms.arrays["magmoms"]`, so that files and stores keep them.

        Raises:
            ValueError: if they have components (spin–orbit coupling), of which there is no single axis.
        """
        moments = self.atoms.arrays.get(MAGMOMS)
        if moments is None:
            return np.full(len(self.atoms), np.nan)
        if moments.shape != (len(self.atoms),):
            raise ValueError(
                f"{describe(self, -1)}: {MAGMOMS!r} has shape {moments.shape} instead of ({len(self.atoms)},): only "
                "collinear magnetic moments are a label."
            )
        return np.asarray(moments, np.float64)

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
    stress_key: str | None = "stress",
    index: str | int = ":",
    allow_close: bool = False,
) -> list[Frame]:
    """Labelled frames from extended XYZ, an ASE database, or any other file ASE reads.

    Labels are taken as the file states them: constraints that ASE reads along with a structure do not zero forces.
    Labels that a file or some of its frames lack are NaN; the rule is told in `LabelKeys`.

    Args:
        path: the file.
        energy_key: name of the total energy in eV; None for frames without this label.
        forces_key: name of the forces, eV/Å, [atoms, 3]; None for frames without this label.
        stress_key: name of the stress, eV/Å³, positive under tension, as 6 Voigt components (xx yy zz yz xz xy), 9 or
            3 × 3 numbers; None for frames without this label.
        index: which frames, as in `ase.io.read`: a number or a slice such as "-100:". Of a file other than a store what
            comes after the last of them is not read where they are counted from the first.
        allow_close: take atoms that are closer than any bond; their frames carry `allow_close` in `atoms.info`, which
            says so to all who get them.

    Returns:
        Frames; their `info` has `file`, `frame` (number in the file) and whatever numbers and words the file says of
        the frame besides labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read or has no frames (of this index); if a label is missing (naming file,
            frame and the keys that are there), has a wrong shape or is infinite; if a structure is damaged, occupied
            in part or has atoms too close (see `check_input`).
    """
    path = Path(path)
    everything = [*itertools.islice(_structures(path), _needed(index))]
    selected = select_index(len(everything), index, path)
    keys = LabelKeys(path, energy_key, forces_key, stress_key)
    frames = [_frame(everything[number], keys, int(number), allow_close) for number in selected]
    keys.check()
    return frames


def iterate_frames(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = "stress",
    allow_close: bool = False,
    lacking: list[str] | None = None,
) -> Iterator[Frame]:
    """The frames of a file one by one, so that they need not fit into memory; see `read_frames`.

    That no frame has a label is known, and said, after the last: as an error, or as a sentence in the list `lacking`,
    if one is given.
    """
    keys = LabelKeys(Path(path), energy_key, forces_key, stress_key)
    for number, atoms in enumerate(_structures(Path(path))):
        yield _frame(atoms, keys, number, allow_close)
    try:
        keys.check()
    except ValueError as error:
        if lacking is None:
            raise
        lacking.append(str(error))


def write_frames(path: str | Path, frames: Sequence[Frame], *, prefix: str = "") -> None:
    """Frames as extended XYZ, to the last digit; labels that are absent (NaN) are left out.

    All that `read_frames` keeps of a structure is written, and read again by it and by ASE: masses where they are not
    the standard ones, momenta, tags, charges, magnetic moments, other arrays, constraints that fix atoms
    (`move_mask`), and `info`.

    The file is complete or not there at all: it is written beside its place and renamed.

    Args:
        path: the file; replaced if it exists.
        frames: labelled structures. Their `info`, but for where they were read from, is written along.
        prefix: the labels' keys are `energy`, `forces` and `stress` with this in front.

    Warns:
        UserWarning: for a constraint that the format cannot hold.
    """
    with written_whole(path) as draft, draft.open("w") as file:
        for frame in frames:
            file.write(_text(frame, prefix))


def check_writable(path: str | Path) -> None:
    """Raise ValueError unless the name of a file is one that a structure can be written to."""
    try:
        kind = filetype(str(path), read=False)
    except UnknownFileTypeError:
        kind = None
    if kind not in ioformats or not ioformats[kind].can_write:
        raise ValueError(f"{path} is of no format that ASE writes; use extended XYZ (.extxyz), .cif or .traj.")


def write_structure(path: str | Path, frame: Frame) -> None:
    """A structure in the format that ASE tells from the file's name; as extended XYZ by `write_frames`, with labels."""
    if filetype(str(path), read=False) == "extxyz":
        write_frames(path, [frame])
    else:
        ase.io.write(path, frame.atoms)


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


def _needed(index: str | int) -> int | None:
    """Of how many frames, from the first, an index can be told; None if of all that there are."""
    which = string2index(index) if isinstance(index, str) else index
    if isinstance(which, slice):
        start, stop, step = which.start or 0, which.stop, 1 if which.step is None else which.step
        return stop if stop is not None and 0 <= start < stop and step > 0 else None
    return which + 1 if isinstance(which, int) and which >= 0 else None


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


def has_stress(frame: Frame) -> bool:
    """Whether a frame has a stress to train on or to compare with: there is none without a volume."""
    return bool(frame.atoms.pbc.all() and not np.isnan(frame.stress).all())


def moment_sizes(frame: Frame) -> Float[np.ndarray, " atoms"]:
    """Magnitudes of magnetic moments in μB; NaN where they are absent, or have components."""
    moments = frame.atoms.arrays.get(MAGMOMS)
    return np.abs(frame.magmoms) if moments is not None and moments.ndim == 1 else np.full(len(frame.atoms), np.nan)


def without_moments(atoms: Atoms) -> Atoms:
    """The structure without its magnetic moments."""
    atoms = atoms.copy()
    atoms.arrays.pop(MAGMOMS, None)
    return atoms


def frame_kind(frame: Frame) -> str:
    """The type of a frame, by which errors are listed: `kind` or `config_type` of its `info`, else its file's name."""
    for key in ("kind", "config_type"):
        if key in frame.info:
            return str(frame.info[key])
    return Path(str(frame.info.get("file", ""))).stem


def _frame(atoms: Atoms, keys: LabelKeys, number: int, allow_close: bool) -> Frame:
    """One frame as ASE has read it, checked."""
    labels = _labels(atoms)
    try:
        admitted(atoms, allow_close=allow_close)
    except ValueError as error:
        raise ValueError(f"{keys.path}, frame {number}: {error}") from error
    energy, forces, stress = keys.read(labels, len(atoms), number)
    _settle(atoms, {key for key in keys.names.values() if key is not None})
    said = {key: value.item() if isinstance(value, np.generic) else value for key, value in atoms.info.items()}
    words = {key: value for key, value in said.items() if isinstance(value, str | bool | int | float)}
    return Frame(atoms, energy, forces, stress, words | {"file": str(keys.path), "frame": number})


def _settle(atoms: Atoms, used: set[str]) -> None:
    """Leave with a structure all that was read but its labels: results of a calculator and of a database included."""
    results = dict(atoms.calc.results) if atoms.calc else {}
    atoms.calc = None
    info = atoms.info
    info.pop("unique_id", None)
    info.pop("occupancy", None)  # every site is full, or the frame would have been refused
    info = info.pop("key_value_pairs", {}) | info.pop("data", {}) | info
    for key, value in results.items():
        if key in OF_ATOMS and len(value) == len(atoms):
            atoms.arrays.setdefault(key, np.asarray(value))
        elif key not in LABELS:
            info.setdefault(key, value)
    atoms.info = {key: value for key, value in info.items() if key not in used}
    for key in used & atoms.arrays.keys():
        del atoms.arrays[key]


def _structures(path: Path) -> Iterator[Atoms]:
    """Every structure of a file, with all that the file says of it; for the errors see `read_frames`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} has no frames: it is empty.")
    number = 0
    try:
        kind = filetype(str(path))
        if kind in ("db", "json"):
            rows = ase.db.connect(path, serial=True).select()
            structures = (row.toatoms(add_additional_information=True) for row in rows)
        elif kind == "extxyz":
            structures = read_extxyz(path)
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


def _text(frame: Frame, prefix: str) -> str:
    """One frame as extended XYZ."""
    names = {label: prefix + label for label in ("energy", "forces", "stress")}
    said = said_of(frame)
    said = {key: value for key, value in said.items() if key not in names.values()}
    if not np.isnan(frame.energy):
        said[names["energy"]] = float(frame.energy)
    if not np.isnan(frame.stress).all():
        said[names["stress"]] = frame.stress.reshape(9)
    columns = {} if np.isnan(frame.forces).all() else {names["forces"]: frame.forces}
    return extxyz_text(frame.atoms, columns, said)


def said_of(frame: Frame) -> dict[str, Any]:
    """All that is said of a frame besides labels and where it was read from."""
    return frame.atoms.info | {key: value for key, value in frame.info.items() if key not in ORIGIN}
