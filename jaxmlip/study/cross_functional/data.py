"""The labelled structures of the study: made and labelled by two teachers, or read from files of two levels.

Compositions are in one part alone: training, validation or test. Elements are in the training part, for without them
there is no energy of formation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float

from jaxmlip.describing import count
from jaxmlip.files import write_json
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load_potential
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.references import fit_references
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.cross_functional.files import Chosen, check_there, choose, read_level, references_of_atoms
from jaxmlip.study.cross_functional.phases import candidates, lowest
from jaxmlip.study.labelling import Labelling
from jaxmlip.study.section import ConfigError
from jaxmlip.study.work import labelling, making
from jaxmlip.study.workspace import Stage, Workspace, seed_for
from jaxmlip.systems.compositions import composition, split_by_composition
from jaxmlip.systems.crystals import many_crystals
from jaxmlip.systems.dataset import Frame, read_frames, write_frames
from jaxmlip.systems.store import FrameStore, write_store
from jaxmlip.training.distill import teacher_references

Level = Literal["source", "target"]
Part = Literal["train", "validation", "test"]

LEVELS: tuple[Level, ...] = ("source", "target")
PARTS: tuple[Part, ...] = ("train", "validation", "test")

ATOMS_OF_CRYSTAL = 6.0
"""In the mean over prototypes, for plans."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Labelled structures of both levels.

    Attributes:
        labels: finished stage for each level, with the frames of each part and the elemental references.
        phases: finished stage with undistorted elements and compounds, labelled by the target; None with files.
    """

    labels: dict[Level, Stage]
    phases: Stage | None

    def frames(self, level: Level, part: Part) -> FrameStore:
        """Labelled structures of a part."""
        return FrameStore(self.labels[level].folder / f"{part}.h5")

    def references(self, level: Level) -> Float[np.ndarray, "119"]:
        """Elemental references of a level, eV."""
        return np.load(self.labels[level].folder / "references.npy")

    def hull(self) -> list[Frame]:
        """Undistorted phases, one for each composition, the elements first."""
        return [] if self.phases is None else [*FrameStore(self.phases.folder / "phases.h5")]

    def pairs(self) -> list[tuple[Frame, Frame]]:
        """The structures that have labels of both levels, of all parts."""
        found = []
        for part in PARTS:
            both = [{str(frame.info["structure"]): frame for frame in self.frames(level, part)} for level in LEVELS]
            found += [(frame, both[1][name]) for name, frame in both[0].items() if name in both[1]]
        return found


def prepare(config: CrossFunctional, workspace: Workspace) -> Data:
    """Make, label and split the structures, or read them; what has been done before is not done again.

    Raises:
        ConfigError: if there are fewer structures to train on than a size asks for, a teacher does not know an element,
            or two files share no structures.
        ValueError: for structures or files that cannot be used.
    """
    with workspace.claimed("data", wait=True):
        data = _from_teachers(config, workspace) if config.files is None else _from_files(config, workspace)
    if data.labels["target"].planned:
        return data
    there = len(data.frames("target", "train"))
    if max(config.sizes) > there:
        raise ConfigError(
            f"sizes asks for {max(config.sizes)} target structures to train on, but there are {there}; leave that size "
            "out, or give more structures."
        )
    return data


def parts_of(names: Sequence[str], config: CrossFunctional) -> dict[str, Part]:
    """The part of each composition: elements are trained on, compounds shuffled.

    Raises:
        ValueError: if there are too few compounds for three parts.
    """
    compounds = [Atoms(name) for name in sorted(set(names)) if len(set(Atoms(name).numbers)) > 1]
    held_back = [config.validation_fraction, config.test_fraction]
    split = split_by_composition(compounds, [1 - sum(held_back), *held_back], seed=seed_for(config.seed, "split"))
    found: dict[str, Part] = dict.fromkeys(names, "train")
    for part, members in zip(PARTS, split, strict=True):
        found |= {composition(atoms): part for atoms in members}
    return found


def _from_teachers(config: CrossFunctional, workspace: Workspace) -> Data:
    teachers: dict[Level, str] = {"source": config.source, "target": config.target}
    loaded: dict[Level, Potential] = {level: load_potential(name) for level, name in teachers.items()}
    elements = _elements(config, loaded)
    settings = {"structures": config.structures, "elements": elements, "seed": config.seed}
    settings |= {"validation": config.validation_fraction, "test": config.test_fraction}

    def structures(folder: Path) -> None:
        wanted = config.structures.model_dump(exclude={"elements"})
        crystals = many_crystals(**wanted, elements=elements, seed=seed_for(config.seed, "structures"))
        part = parts_of([atoms.info["composition"] for atoms in crystals], config)
        for number, atoms in enumerate(crystals):
            atoms.info["structure"] = f"{atoms.info['kind']}-{number}"
        for name in PARTS:
            _write_structures(folder / f"{name}.extxyz", [a for a in crystals if part[a.info["composition"]] == name])

    sizes = count(config.structures.number, "crystal")
    made = workspace.stage("structures", settings, structures, work=lambda: making(sizes))

    def phases(folder: Path) -> None:
        tests = [atoms.info["composition"] for atoms in _structures(made, "test")]
        frames = lowest(label(candidates(tests, elements, config.structures.prototypes), loaded["target"], stress=True))
        for frame in frames:
            frame.atoms.info["structure"] = frame.info["structure"] = f"phase-{composition(frame.atoms)}"
        write_store(folder / "phases.h5", frames)

    inputs = {"structures": made, "teacher": config.target}
    hull = workspace.stage("phases", inputs, phases, work=lambda: labelling(None, None, loaded["target"]))
    labels = {level: _labelled(config, workspace, level, made, hull, loaded[level]) for level in LEVELS}
    return Data(labels, hull)


def _labelled(
    config: CrossFunctional, workspace: Workspace, level: Level, made: Stage, hull: Stage, teacher: Potential
) -> Stage:
    """The structures of all parts, and the elements for the training part, labelled by the teacher of a level."""

    def read() -> list[list[Atoms]]:
        pure = [f.atoms for f in FrameStore(hull.folder / "phases.h5") if len({*f.atoms.numbers}) == 1]
        return [_structures(made, part) + (pure if part == "train" else []) for part in PARTS]

    inputs = {"structures": hull, "teacher": getattr(config, level)}
    size: dict[str, Any] = {"number": config.structures.number, "atoms": ATOMS_OF_CRYSTAL * config.structures.number}
    task = Labelling(workspace, f"labels-{level}", inputs, read, teacher, workers=config.workers, stress=True, **size)

    def build(folder: Path) -> None:
        for part, frames in zip(PARTS, task.frames(), strict=True):
            write_store(folder / f"{part}.h5", frames)
        _write_references(folder, teacher_references(teacher, [*FrameStore(folder / "train.h5")]))

    shared = {"pieces": task.pieces, "work": task.work}
    return workspace.stage(f"labels-{level}", inputs, build, after=[made], **shared)


def _from_files(config: CrossFunctional, workspace: Workspace) -> Data:
    files = config.files
    assert files is not None
    check_there(files)
    everything = {level: read_level(files, level, workspace) for level in LEVELS}

    @functools.cache
    def chosen() -> tuple[dict[Level, Chosen], dict[str, Part]]:
        found = choose(everything, files.number, config.seed)
        return found, parts_of([name for level in LEVELS for name in found[level].compositions], config)

    labels: dict[Level, Stage] = {}
    for level in LEVELS:
        atoms = files.source_atoms if level == "source" else files.target_atoms

        def labelled(folder: Path, level: Level = level, atoms: Path | None = atoms) -> None:
            store = FrameStore(everything[level].folder / "frames.h5")
            found, part = chosen()
            for name in PARTS:
                mine = [k for k, of in enumerate(found[level].compositions) if part[of] == name]
                if not mine:
                    raise ConfigError(f"The {level} file has no structures for the {name} part; give more of them.")
                frames = store.select(found[level].numbers[mine])
                write_store(folder / f"{name}.h5", found[level].named(frames, mine))
            _write_references(folder, None if atoms is None else references_of_atoms(atoms, store.species))

        inputs = {"files": [*everything.values()], "number": files.number, "seed": config.seed}
        inputs |= {"validation": config.validation_fraction, "test": config.test_fraction, "atoms": str(atoms)}
        number = "all" if files.number is None else f"at most {files.number:,}"
        work = functools.partial(making, f"{number} of the structures, those that both files have first")
        labels[level] = workspace.stage(f"labels-{level}", inputs, labelled, work=work)
    return Data(labels, None)


def _write_references(folder: Path, references: Float[np.ndarray, "119"] | None) -> None:
    """Those that are given, or the fit to the training frames."""
    if references is None:
        references = fit_references([*FrameStore(folder / "train.h5")])
    with (folder / "references.npy").open("wb") as file:
        np.save(file, np.asarray(references, np.float64))
    shown = {chemical_symbols[z]: float(references[z]) for z in np.flatnonzero(references)}
    write_json(folder / "references.json", shown)


def _elements(config: CrossFunctional, teachers: dict[Level, Potential]) -> list[str]:
    """Symbols of the elements that both teachers know, or those asked for, ascending."""
    known = set.intersection(*(set(potential.species) for potential in teachers.values()))
    if config.structures.elements is None:
        return [chemical_symbols[z] for z in sorted(known)]
    for symbol in config.structures.elements:
        if symbol not in atomic_numbers:
            raise ConfigError(f"structures.elements: {symbol!r} is no element; give symbols.")
        for level, potential in teachers.items():
            if atomic_numbers[symbol] not in potential.species:
                raise ConfigError(
                    f"structures.elements: {getattr(config, level)} does not know {symbol}; leave it out."
                )
    return sorted(set(config.structures.elements), key=atomic_numbers.__getitem__)


def _structures(made: Stage, part: Part) -> list[Atoms]:
    unlabelled = read_frames(made.folder / f"{part}.extxyz", energy_key=None, forces_key=None, stress_key=None)
    return [frame.atoms for frame in unlabelled]


def _write_structures(path: Path, structures: list[Atoms]) -> None:
    write_frames(path, [Frame(atoms, np.nan, np.full((len(atoms), 3), np.nan)) for atoms in structures])
