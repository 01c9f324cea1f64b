"""Labelled structures: what every stage hands to the next, and the batches that training reads."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import flax.struct
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_dict_to_str
from ase.io.formats import UnknownFileTypeError, filetype
from ase.stress import voigt_6_to_full_3x3_stress
from ase.utils import string2index
from jaxtyping import Float

from jaxmlip.systems.graph import GHOST, Graph, batch_graphs, check_structure, graph_from_atoms, in_tiers
from jaxmlip.types import AnyArray, HostMatrix, Leaf

SLOT_MULTIPLE = 4
"""Neighbour slots of a batch are rounded up to a multiple of this, so that similar data sets share a shape."""

ATOM_MULTIPLE = 8
"""Likewise for the atoms of a batch."""

TIER_MULTIPLE = 4
"""And for the atoms of a tier."""

MAX_SHAPES = 4
"""Most batch shapes a data set may have: a training step is compiled once for each."""

DRAWS = 16
"""Epochs dealt to find how many atoms of a batch have many neighbours."""

TOLERATED_PADDING = 0.25
"""Share of padding atoms above which structures of different size are batched separately."""


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


@dataclasses.dataclass(frozen=True)
class Sample:
    """One structure as training sees it: its graph, made once, and its labels; NaN marks an absent label.

    Attributes:
        graph: of this structure alone, numpy leaves, without padding.
        energy: eV, relative to the elemental references.
        forces: eV/Å.
        stress: eV/Å³, positive under tension.
        head: index of the readout (fidelity) the labels belong to.
        weight: factor of this structure in the loss.
    """

    graph: Graph
    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: HostMatrix
    head: int = 0
    weight: float = 1.0


class Batch(flax.struct.PyTreeNode):
    """Padded graphs and their labels; NaN marks an absent label, and every label of padding is absent.

    Attributes:
        graph: the structures; see `Graph` for its padding.
        energy: [graphs], eV, relative to the elemental references.
        forces: [atoms, 3], eV/Å.
        stress: [graphs, 3, 3], eV/Å³, positive under tension.
        head: [graphs], index of the readout the labels belong to; 0 for a padding graph.
        weight: [graphs], factor in the loss; 0 for a padding graph.
        index: [graphs], position of the structure among the samples the batch was made from; −1 for a padding graph.
    """

    graph: Graph
    energy: Leaf
    forces: Leaf
    stress: Leaf
    head: Leaf
    weight: Leaf
    index: Leaf


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
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} has no frames: it is empty.")
    try:
        everything = _structures(path)
    except UnknownFileTypeError as error:
        raise ValueError(f"{path} is of no format that ASE knows; use extended XYZ (.extxyz) or ASE's .db.") from error
    except Exception as error:  # ASE's readers raise anything, down to a bare StopIteration
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of atomic structures: {reason}") from error
    if not everything:
        raise ValueError(f"{path} has no frames.")
    which = string2index(index) if isinstance(index, str) else index
    numbers = np.arange(len(everything))
    try:
        selected = numbers[which] if isinstance(which, slice) else numbers[[int(which)]]
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} has {len(everything)} frames, and index {index} is none of them.") from error
    if not len(selected):
        raise ValueError(f"{path} has {len(everything)} frames, and none of them is within index {index}.")
    return [
        _read_frame(everything[number], path, int(number), energy_key, forces_key, stress_key) for number in selected
    ]


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


def make_samples(
    frames: Sequence[Frame],
    cutoff: float,
    inner_cutoff: float,
    references: Float[AnyArray, " 119"],
    head: int = 0,
    *,
    weight: float = 1.0,
    dtype: type = np.float32,
) -> list[Sample]:
    """Frames as samples: neighbour lists made once, energies relative to the references.

    Args:
        frames: labelled structures.
        cutoff: Å, of the potential to be trained.
        inner_cutoff: Å, of the potential to be trained (0 if it has none).
        references: [119], elemental reference energies in eV by atomic number; subtracted in float64.
        head: readout the labels belong to.
        weight: factor of these frames in the loss.
        dtype: of positions and cell.

    Raises:
        ValueError: for a structure without a neighbour list (NaN, singular cell, coinciding atoms), naming the frame.
    """
    samples = []
    for number, frame in enumerate(frames):
        try:
            graph = graph_from_atoms(frame.atoms, cutoff, inner_cutoff, dtype=dtype)
        except ValueError as error:
            raise ValueError(f"{describe(frame, number)}: {error}") from error
        samples.append(
            Sample(
                graph=graph,
                energy=float(frame.energy - np.asarray(references, np.float64)[frame.atoms.numbers].sum()),
                forces=np.asarray(frame.forces, np.float64),
                stress=np.asarray(frame.stress, np.float64),
                head=head,
                weight=weight,
            )
        )
    return samples


def make_batches(samples: Sequence[Sample], batch_size: int, *, seed: int | None = None, tiers: int = 1) -> list[Batch]:
    """Deal all samples into batches of (almost) equal number, padded to few shapes.

    With B batches, the samples are sorted by size and cut into strata of B: every batch draws one sample of each
    stratum. The loads are then nearly equal whatever the shuffle, and the sum of the strata's largest members is an
    atom capacity that fits every shuffle: number of batches and shapes depend on the samples alone, and an epoch never
    compiles anew. Sizes so different that one shape would be mostly padding get up to `MAX_SHAPES` shapes.

    Args:
        samples: in any order; a data set of several fidelities is one list.
        batch_size: most graphs in a batch.
        seed: shuffles the draw (give the epoch's); by default samples of a stratum are taken in order of size.
        tiers: most tiers of a batch (see `Graph.tiers`). In clusters few atoms have as many neighbours as in the bulk:
            with several tiers little work is wasted on empty slots, but compilation takes longer.

    Returns:
        Batches with numpy leaves, each sample in exactly one of them.

    Raises:
        ValueError: if there are no samples, or for a batch size below 1.
    """
    if len(samples) == 0:
        raise ValueError("There are no samples to make batches of.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    rng = None if seed is None else np.random.default_rng(seed)
    sizes = np.array([sample.graph.n_atoms for sample in samples])
    batches = []
    for members in _size_classes(sizes, batch_size):
        n_batches = -(-len(members) // batch_size)
        capacity = {
            "n_atoms": _round_up(int(sizes[members[::n_batches]].sum()), ATOM_MULTIPLE),
            "n_graphs": -(-len(members) // n_batches),
            "slots": _round_up(max(samples[i].graph.n_slots for i in members), SLOT_MULTIPLE),
        }
        inner = max(samples[i].graph.inner for i in members)
        levels = _tiers(samples, members, sizes, n_batches, capacity, tiers)
        for drawn in _draw(members, sizes, n_batches, rng):
            batches.append(_batch(samples, drawn, capacity, inner, levels))
    if rng is not None:
        rng.shuffle(batches)
    return batches


def padding_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' atoms that is padding, between 0 and 1."""
    total = sum(batch.graph.n_atoms for batch in batches)
    return 1.0 - sum(int(np.asarray(batch.graph.atom_mask).sum()) for batch in batches) / total


def slot_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' neighbour slots that is empty, between 0 and 1; of those in use where there are tiers."""
    graphs = [batch.graph for batch in batches]
    total = sum(atoms * slots for graph in graphs for atoms, slots in graph.tiers or ((graph.n_atoms, graph.n_slots),))
    return 1.0 - sum(int(np.sum(np.asarray(graph.neighbors) != GHOST)) for graph in graphs) / total


def split(frames: Sequence, parts: Sequence[int | float], seed: int = 0) -> tuple[list, ...]:
    """Shuffle and split into disjoint lists, one for each part.

    Args:
        frames: anything in a sequence.
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
    return tuple([frames[i] for i in order[begin:end]] for begin, end in zip([0, *ends[:-1]], ends, strict=True))


def describe(frame: Frame, number: int) -> str:
    """How a message calls a frame: by file and number in the file where known, else by its number in the list."""
    if "file" in frame.info:
        return f"{frame.info['file']}, frame {frame.info.get('frame', number)}"
    return f"Frame {number}"


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


def _structures(path: Path) -> list[Atoms]:
    """Every structure of a file, with all that the file says of it."""
    if filetype(str(path)) in ("db", "json"):
        rows = ase.db.connect(path, serial=True).select()
        return [row.toatoms(add_additional_information=True) for row in rows]
    return list(ase.io.iread(path, ":"))


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


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _size_classes(sizes: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Samples in descending order of size, cut where sizes jump until padding is tolerable or there are enough."""
    classes = [np.argsort(-sizes, kind="stable")]

    def padding(members: np.ndarray) -> float:
        n_batches = -(-len(members) // batch_size)
        return 1.0 - sizes[members].sum() / (n_batches * sizes[members[::n_batches]].sum())

    while len(classes) < MAX_SHAPES:
        worst = max(range(len(classes)), key=lambda c: padding(classes[c]))
        members = classes[worst]
        jumps = sizes[members[:-1]] / sizes[members[1:]]
        if padding(members) <= TOLERATED_PADDING or jumps.max(initial=1.0) == 1.0:
            break
        cut = int(np.argmax(jumps)) + 1
        classes[worst : worst + 1] = [members[:cut], members[cut:]]
    return classes


def _draw(members: np.ndarray, sizes: np.ndarray, n_batches: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """One member of each stratum for every batch; samples of equal size change strata freely."""
    if rng is not None:
        members = members[np.lexsort((rng.random(len(members)), -sizes[members]))]
    hands: list[list[int]] = [[] for _ in range(n_batches)]
    for begin in range(0, len(members), n_batches):
        stratum = members[begin : begin + n_batches]
        places = np.arange(len(stratum)) if rng is None else rng.permutation(n_batches)[: len(stratum)]
        for place, member in zip(places, stratum, strict=True):
            hands[place].append(member)
    return [np.array(hand) for hand in hands]


def _tiers(
    samples: Sequence[Sample],
    members: np.ndarray,
    sizes: np.ndarray,
    n_batches: int,
    capacity: dict[str, int],
    number: int,
) -> tuple[tuple[int, int], ...]:
    """The tiers with the fewest slots in all that hold the batches of several epochs."""
    slots = np.arange(capacity["slots"], 0, -SLOT_MULTIPLE)
    if number == 1 or len(slots) == 1:
        return ()
    degrees = {i: np.sum(samples[i].graph.neighbors != GHOST, axis=1) for i in members}
    needing = {i: np.sum(degree[:, None] > slots, axis=0) for i, degree in degrees.items()}
    # Atoms of a batch that do not fit into so many slots.
    beyond = np.zeros(len(slots), int)
    for draw in range(DRAWS):
        for hand in _draw(members, sizes, n_batches, np.random.default_rng(draw)):
            beyond = np.maximum(beyond, np.sum([needing[i] for i in hand], axis=0))
    beyond = np.minimum(-(-beyond // TIER_MULTIPLE) * TIER_MULTIPLE, capacity["n_atoms"])
    # cost[k]: fewest slots in all for the atoms beyond slots[k], by up to so many tiers as have been gone through.
    cost = np.where(beyond == 0, 0, np.inf)
    chosen: list[tuple[tuple[int, int], ...]] = [() for _ in slots]
    ends = [*beyond.tolist()]
    for _ in range(number - 1):
        longer, paths = cost.copy(), list(chosen)
        for end in range(len(slots)):
            for start in range(end):
                price = cost[start] + (ends[end] - ends[start]) * slots[start]
                if price < longer[end]:
                    longer[end] = price
                    paths[end] = (*chosen[start], (ends[end] - ends[start], int(slots[start])))
        cost, chosen = longer, paths
    rest = [cost[k] + (capacity["n_atoms"] - ends[k]) * slots[k] for k in range(len(slots))]
    best = int(np.argmin(rest))
    tiers = (*chosen[best], (capacity["n_atoms"] - ends[best], int(slots[best])))
    return tuple(tier for tier in tiers if tier[0])


def _batch(
    samples: Sequence[Sample],
    drawn: np.ndarray,
    capacity: dict[str, int],
    inner: int,
    tiers: tuple[tuple[int, int], ...],
) -> Batch:
    """The drawn samples, padded to the capacity."""
    mine = [samples[i] for i in drawn]
    # The largest `inner` of the data set: it is static, so a batch's own would be one more compilation.
    graph = batch_graphs([sample.graph for sample in mine], **capacity).replace(inner=inner)
    dtype = graph.positions.dtype
    n_graphs = capacity["n_graphs"]
    forces = np.full((capacity["n_atoms"], 3), np.nan, dtype)
    forces[: sum(sample.graph.n_atoms for sample in mine)] = np.concatenate([sample.forces for sample in mine])

    if tiers:
        # What the tiers were not made for gets all slots, and is compiled once more.
        with contextlib.suppress(ValueError):
            graph, order = in_tiers(graph, tiers)
            forces = forces[order]

    def of_graphs(values: list, padding: float, kind: np.dtype = dtype) -> np.ndarray:
        padded = np.full((n_graphs, *np.shape(values)[1:]), padding, kind)
        padded[: len(values)] = values
        return padded

    return Batch(
        graph=graph,
        energy=of_graphs([sample.energy for sample in mine], np.nan),
        forces=forces,
        stress=of_graphs([sample.stress for sample in mine], np.nan),
        head=of_graphs([sample.head for sample in mine], 0.0, np.dtype(np.int32)),
        weight=of_graphs([sample.weight for sample in mine], 0.0),
        index=of_graphs(drawn.tolist(), -1.0, np.dtype(np.int32)),
    )
