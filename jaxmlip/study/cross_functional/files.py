"""Labels of two levels of theory in files: read once, matched by structure, chosen by a seed."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int

from jaxmlip.study.convert import convert_data
from jaxmlip.study.cross_functional.config import Files
from jaxmlip.study.frames import digest, expanded
from jaxmlip.study.section import ConfigError
from jaxmlip.study.work import making
from jaxmlip.study.workspace import Stage, Workspace
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.matpes import isolated_atom_energies
from jaxmlip.systems.store import FrameStore

DECIMALS = 3
"""Of positions and cells in Å, by which structures without a name are recognised in another file."""

FEWEST = 20
"""Structures with labels of both levels below which their energies are not compared."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some frames of a store.

    Attributes:
        numbers: of the frames.
        structures: what they are called, the same in both files.
        compositions: their reduced formulas.
    """

    numbers: Int[np.ndarray, " chosen"]
    structures: list[str]
    compositions: list[str]

    def named(self, frames: Sequence[Frame], places: Sequence[int]) -> Iterator[Frame]:
        """The frames of some places, called by their structures."""
        for frame, place in zip(frames, places, strict=True):
            name = {"structure": self.structures[place]}
            frame.atoms.info |= name
            yield dataclasses.replace(frame, info=frame.info | name)


def check_there(files: Files) -> None:
    """Raise FileNotFoundError if a file is missing, before any is read."""
    for each in (files.source, files.target, files.source_atoms, files.target_atoms):
        if each is not None and not expanded(each).is_file():
            raise FileNotFoundError(f"There is no file {expanded(each)}.")


def read_level(files: Files, level: str, workspace: Workspace) -> Stage:
    """The file of a level as a store; entries that cannot be used are left out and counted."""
    path = expanded(getattr(files, level))
    key: str | None = getattr(files, f"{level}_energy_key")

    def read(folder: Path) -> None:
        number, left_out = convert_data(path, folder / "frames.h5", {} if key is None else {"energy": key})
        if left_out:
            workspace.report(f"{path}: {len(left_out)} entries left out, {number} used; the first: {left_out[0]}")

    sizes = f"{path.name} as a store, {path.stat().st_size / 2**20:.0f} MiB"
    return workspace.stage(
        f"file-{level}", {"sha256": digest(path), "energy_key": key}, read, work=lambda: making(sizes)
    )


def choose(stages: Mapping[Any, Stage], number: int | None, seed: int) -> dict[Any, Chosen]:
    """So many frames of each level: those that both levels have first, all in an order that follows from the seed.

    Raises:
        ConfigError: if the files share fewer than `FEWEST` structures.
    """
    listed = {level: _listed(FrameStore(stage.folder / "frames.h5")) for level, stage in stages.items()}
    both = set.intersection(*(set(names) for names, _ in listed.values()))
    if len(both) < FEWEST:
        raise ConfigError(
            f"The two files share {len(both)} structures (by matpes_id, or by elements and positions), and {FEWEST} "
            "are needed to compare the levels' energies; give files in which the same structures are labelled."
        )

    def order(name: str) -> tuple[bool, bytes]:
        return name not in both, hashlib.sha256(f"{seed}/{name}".encode()).digest()

    found = {}
    for level, (names, formulas) in listed.items():
        # A structure that is there twice counts once.
        first = {name: place for place, name in reversed([*enumerate(names)])}
        kept = sorted(first, key=order)[:number]
        places = [first[name] for name in kept]
        found[level] = Chosen(np.array(places), kept, [formulas[place] for place in places])
    return found


def references_of_atoms(path: Path, species: Sequence[int]) -> Float[np.ndarray, "119"]:
    """Energies of isolated atoms, eV.

    Raises:
        ConfigError: if elements of the structures are not there.
    """
    energies = isolated_atom_energies(expanded(path))
    lacking = [chemical_symbols[z] for z in species if energies[z] == 0]
    if lacking:
        raise ConfigError(
            f"{path} has no energies of {', '.join(lacking)}; leave the file out, so that references are fitted."
        )
    return energies


def _listed(store: FrameStore) -> tuple[list[str], list[str]]:
    """Names and compositions of all frames."""
    names, formulas = [], []
    for frame in store:
        names.append(_name(frame))
        formulas.append(composition(frame.atoms))
    return names, formulas


def _name(frame: Frame) -> str:
    if "matpes_id" in frame.info:
        return str(frame.info["matpes_id"])
    atoms = frame.atoms
    # Without the sign of zero, which would tell equal structures apart.
    numbers = [np.round(each, DECIMALS) + 0.0 for each in (atoms.positions, atoms.cell.array)]
    content = b"".join(np.ascontiguousarray(each).tobytes() for each in (atoms.numbers, *numbers))
    return hashlib.sha256(content).hexdigest()[:32]
