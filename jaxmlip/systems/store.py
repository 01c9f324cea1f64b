"""Labelled frames in one chunked HDF5 file, read frame by frame: sets larger than memory.

All atoms of all frames stand one after the other in flat arrays, and `offsets` says where a frame begins. The file says
of every frame how many atoms and which elements it has, so that splits, checks of elements and plans of batches read
no frames.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from ase import Atoms
from ase.constraints import dict2constraint
from ase.data import atomic_masses
from jaxtyping import Int

from jaxmlip.describing import count, short
from jaxmlip.files import written_whole
from jaxmlip.systems.dataset import ORIGIN, Frame, describe, frame_graph, read_frames, said_of, select_index
from jaxmlip.systems.extxyz import plain
from jaxmlip.systems.plan import Counts, count_graphs

FORMAT = "jaxmlip-frames"
LAYOUT = 2
"""Layout 1 has nothing but a frame's `info` in the text of a frame; it is still read."""

CHUNK = 2**15
"""Bytes of a chunk before compression. One frame at random costs a chunk of each array: small ones make that cheap."""

AT_ONCE = 256
"""Frames that are written together, and read together where they follow one another."""

N_ELEMENTS = 119

PER_ATOM = {"numbers": (np.uint8, ()), "positions": (np.float64, (3,)), "forces": (np.float64, (3,))}
PER_FRAME = {
    "energy": (np.float64, ()),
    "stress": (np.float64, (3, 3)),
    "cell": (np.float64, (3, 3)),
    "pbc": (np.bool_, (3,)),
    "elements": (np.uint8, (-(-N_ELEMENTS // 8),)),
}


def write_store(path: str | Path, frames: Iterable[Frame], *, keys: dict[str, str] | None = None) -> int:
    """Write frames one by one; the file appears under its name only when it is whole.

    Args:
        path: the file; replaced if it exists.
        frames: labelled structures, from a list or made as they are asked for.
        keys: under which names the labels stood where they come from, as {"energy": "off23_energy"}: kept, so that
            nobody takes them for others.

    Returns:
        Number of frames.

    Raises:
        ValueError: if there are no frames, or the `info` of one cannot be written as JSON.
    """
    path = Path(path)
    with written_whole(path) as draft, h5py.File(draft, "w") as file:
        number = _fill(file, frames)
        if not number:
            raise ValueError(f"There are no frames to write to {path}.")
        versions = {name: importlib.metadata.version(name) for name in ("jaxmlip", "ase", "h5py", "numpy")}
        file.attrs.update(
            {
                "format": FORMAT,
                "layout": LAYOUT,
                "id": uuid.uuid4().hex,
                "versions": json.dumps(versions),
                "keys": json.dumps(keys or {}),
            }
        )
    return number


class FrameStore(Sequence[Frame]):
    """The frames of a file that `write_store` has written, or some of them, read when they are asked for.

    Slices and `select` are views: they read nothing. The file is opened at the first read, once in each process, so a
    store can be pickled and used after a fork. For every frame 24 bytes are held in memory.
    """

    def __init__(self, path: str | Path) -> None:
        """Check the file and read where its frames begin.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, or something else.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no file {self.path}.")
        try:
            with h5py.File(self.path, "r") as file:
                if "h5md" in file:
                    raise ValueError(
                        f"{self.path} is a trajectory, and no store of labelled frames; make frames of it with jaxmlip "
                        "export or jaxmlip label."
                    )
                if file.attrs.get("format") != FORMAT:
                    raise ValueError(f"{self.path} is an HDF5 file, but no store of frames; make one with write_store.")
                self._layout = int(np.asarray(file.attrs["layout"]).item())
                if self._layout not in (1, LAYOUT):
                    raise ValueError(
                        f"{self.path} is a store of layout {self._layout}, and this version of jaxmlip reads layouts 1 "
                        f"to {LAYOUT}; convert the frames again."
                    )
                self.id = str(file.attrs["id"])
                self.keys: dict[str, str] = json.loads(str(file.attrs["keys"]))
                self.versions: dict[str, str] = json.loads(str(file.attrs["versions"]))
                self._offsets = _dataset(file, "offsets")[()]
                self._said = _dataset(file, "info_offsets")[()]
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{self.path} cannot be read as a store of frames: it is truncated, damaged or no HDF5 file ({error}). "
                "Convert the frames again."
            ) from error
        self._which = np.arange(len(self._offsets) - 1)
        self._hidden: frozenset[str] = frozenset()
        self._open: tuple[int, h5py.File, dict[str, h5py.Dataset]] | None = None

    def __repr__(self) -> str:
        """The file, the number of frames, and the names of the labels."""
        labels = ", ".join(f"{label} {key!r}" for label, key in self.keys.items())
        return short("FrameStore", str(self.path), count(len(self), "frame"), labels)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> "FrameStore": ...
    def __getitem__(self, index: int | slice) -> "Frame | FrameStore":
        """One frame, read now, or a view of some."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} frames, and {index} is none of them.")
        number = int(self._which[index])
        return self._read(number, number + 1)[0]

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order; those that follow one another in the file are read together."""
        place = 0
        while place < len(self):
            stop = place + 1
            while stop < len(self) and stop - place < AT_ONCE and self._which[stop] == self._which[stop - 1] + 1:
                stop += 1
            yield from self._read(int(self._which[place]), int(self._which[stop - 1]) + 1)
            place = stop

    def select(self, which: Sequence[int] | Int[np.ndarray, " chosen"]) -> "FrameStore":
        """A view of the frames of these numbers, in this order."""
        return self._view(_which=self._which[np.asarray(which, np.int64)])

    def without(self, *labels: str) -> "FrameStore":
        """A view of the same frames in which these labels ("energy", "forces", "stress") are absent."""
        return self._view(_hidden=self._hidden | set(labels))

    @property
    def atoms(self) -> Int[np.ndarray, " frames"]:
        """[frames], number of atoms; no frame is read."""
        return np.diff(self._offsets)[self._which]

    @property
    def species(self) -> list[int]:
        """Atomic numbers that occur, in ascending order; no frame is read."""
        there = self._arrays["elements"][()][self._which]
        return np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(there, axis=0))).tolist()

    def counts(self, cutoff: float, inner_cutoff: float = 0.0) -> Counts:
        """What a plan of batches is made from: the neighbours within the cutoffs (Å) are counted.

        All frames of the file are gone through once, and the counts kept in a file beside it (where its folder can be
        written to), for all who use the same frames and cutoffs.
        """
        kept = self.path.with_name(f"{self.path.name}.counts-{float(cutoff)}-{float(inner_cutoff)}.npz")
        counts = _kept_counts(kept, self.id)
        if counts is None:
            everything = FrameStore(self.path)
            counts = count_graphs(
                frame_graph(frame, number, cutoff, inner_cutoff) for number, frame in enumerate(everything)
            )
            with contextlib.suppress(OSError), written_whole(kept) as draft, draft.open("wb") as file:
                np.savez(file, id=self.id, **dataclasses.asdict(counts))
        return counts.of(self._which)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open file."""
        return self.__dict__ | {"_open": None}

    @property
    def _arrays(self) -> dict[str, h5py.Dataset]:
        """The file's arrays, opened in this process: a handle from before a fork shares its place with the parent's."""
        if self._open is None or self._open[0] != os.getpid():
            file = h5py.File(self.path, "r")
            arrays = {name: _dataset(file, name) for name in (*PER_ATOM, *PER_FRAME, "info")}
            self._open = os.getpid(), file, arrays
        return self._open[2]

    def _view(self, **changes: Any) -> "FrameStore":
        view = object.__new__(FrameStore)
        view.__dict__.update(self.__dict__ | changes)
        return view

    def _read(self, begin: int, end: int) -> list[Frame]:
        """Frames that follow one another in the file."""
        offsets, said = self._offsets[begin : end + 1], self._said[begin : end + 1]
        try:
            column = {name: self._arrays[name][offsets[0] : offsets[-1]] for name in PER_ATOM}
            value = {name: self._arrays[name][begin:end] for name in PER_FRAME if name != "elements"}
            text = self._arrays["info"][said[0] : said[-1]].tobytes()
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{self.path}, frame {begin} cannot be read: {error}. The file is damaged; convert the frames again."
            ) from error
        for name, array in (column | value).items():
            if name in self._hidden:
                array[...] = np.nan
        frames = []
        for k, number in enumerate(range(begin, end)):
            mine = slice(*(offsets[k : k + 2] - offsets[0]))
            cell, pbc = value["cell"][k], value["pbc"][k]
            atoms = Atoms(column["numbers"][mine], column["positions"][mine], cell=cell, pbc=pbc)
            info = _tell(atoms, json.loads(text[slice(*(said[k : k + 2] - said[0]))]), self._layout)
            frames.append(
                Frame(
                    atoms=atoms,
                    energy=float(value["energy"][k]),
                    forces=column["forces"][mine].copy(),  # else one frame held would hold all that were read with it
                    stress=value["stress"][k].copy(),
                    info={"file": str(self.path), "frame": number} | info,
                )
            )
        return frames


def open_frames(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = "stress",
    index: str | int = ":",
    allow_close: bool = False,
) -> Sequence[Frame]:
    """Labelled frames from files and stores: a store is read lazily, any other file as by `read_frames`.

    `jaxmlip.open_frames` reads trajectories as well.

    Args:
        path: a store (`.h5`), or a file that `read_frames` reads.
        energy_key: see `read_frames`. A store has one energy, which is meant by the name it had where it came from as
            well as by "energy".
        forces_key: likewise, "forces".
        stress_key: likewise, "stress".
        index: which frames; see `read_frames`.
        allow_close: see `read_frames`. The frames of a store were checked when they were read to be stored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `read_frames` and `FrameStore`; if a store was made from labels of another name.
    """
    path = Path(path)
    if path.suffix != ".h5":
        keys = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
        return read_frames(path, **keys, index=index, allow_close=allow_close)
    store = FrameStore(path)
    wanted = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    for kind, key in wanted.items():
        was = store.keys.get(kind, kind)
        if key not in (None, kind, was):
            raise ValueError(f"{path} has no {key!r}: it was made with {was!r} as its {kind}. Convert it with {key!r}.")
    store = store.without(*(kind for kind, key in wanted.items() if key is None))
    which = select_index(len(store), index, path)
    return store if len(which) == len(store) else store.select(which)


def _fill(file: h5py.File, frames: Iterable[Frame]) -> int:
    """Write the frames into an empty file, some at a time; returns how many there are."""
    arrays = {
        name: file.create_dataset(
            name,
            (0, *shape),
            dtype,
            maxshape=(None, *shape),
            chunks=(CHUNK // (np.dtype(dtype).itemsize * math.prod(shape)), *shape),
            shuffle=True,
            compression="lzf",
        )
        for name, (dtype, shape) in (PER_ATOM | PER_FRAME | {"info": (np.uint8, ())}).items()
    }
    atoms, said, buffer = [0], [0], []

    def append(name: str, values: np.ndarray) -> None:
        array = arrays[name]
        array.resize(len(array) + len(values), axis=0)
        array[len(array) - len(values) :] = values

    def flush() -> None:
        if not buffer:
            return
        append("numbers", np.concatenate([frame.atoms.numbers for frame in buffer]))
        append("positions", np.concatenate([frame.atoms.positions for frame in buffer]))
        append("forces", np.concatenate([frame.forces for frame in buffer]))
        append("energy", np.array([frame.energy for frame in buffer]))
        append("stress", np.array([frame.stress for frame in buffer]))
        append("cell", np.array([frame.atoms.cell.array for frame in buffer]))
        append("pbc", np.array([frame.atoms.pbc for frame in buffer]))
        there = np.array([np.bincount(frame.atoms.numbers, minlength=N_ELEMENTS) > 0 for frame in buffer])
        append("elements", np.packbits(there, axis=1))
        texts = [_text(frame, len(atoms) - 1 + number) for number, frame in enumerate(buffer)]
        append("info", np.frombuffer(b"".join(texts), np.uint8))
        atoms.extend(len(frame.atoms) for frame in buffer)
        said.extend(map(len, texts))
        buffer.clear()

    for frame in frames:
        buffer.append(frame)
        if len(buffer) == AT_ONCE:
            flush()
    flush()
    file["offsets"], file["info_offsets"] = np.cumsum(atoms), np.cumsum(said)
    return len(atoms) - 1


def _text(frame: Frame, number: int) -> bytes:
    """What is said of a frame, as JSON; numpy's numbers and arrays as plain ones.

    That is its `info`, and of its atoms what has no array in the file: further words, arrays and constraints.
    """
    atoms = frame.atoms
    arrays = {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions")}
    if "masses" in arrays and np.array_equal(arrays["masses"], atomic_masses[atoms.numbers]):
        del arrays["masses"]
    parts = {
        "info": frame.info,
        "words": {key: value for key, value in said_of(frame).items() if key not in frame.info},
        "arrays": arrays,
        "constraints": [constraint.todict() for constraint in atoms.constraints],
    }
    try:
        return json.dumps({name: part for name, part in parts.items() if part}, default=plain).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{describe(frame, number)}: its info cannot be written as JSON: {error}.") from error


def _tell(atoms: Atoms, said: Any, layout: int) -> dict[str, Any]:
    """Give a structure what `_text` has written of it; returns the frame's `info`."""
    parts: dict[str, Any] = {"info": said} if layout == 1 else said
    info = parts.get("info", {})
    atoms.info = {key: value for key, value in info.items() if key not in ORIGIN} | parts.get("words", {})
    for name, values in parts.get("arrays", {}).items():
        atoms.arrays[name] = np.asarray(values)
    constraints = [dict2constraint(constraint) for constraint in parts.get("constraints", [])]
    if constraints:
        atoms.set_constraint(constraints)
    return info


def _kept_counts(path: Path, identity: str) -> Counts | None:
    """Counts from beside a store, unless there are none, or they are damaged or of another store of the same name."""
    try:
        with np.load(path) as kept:
            if str(kept["id"]) != identity:
                return None
            return Counts(**{field.name: kept[field.name] for field in dataclasses.fields(Counts)})
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset; KeyError if something else has its name."""
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return found
