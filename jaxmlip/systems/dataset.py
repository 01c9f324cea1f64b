"""Labelled structures: what every stage hands to the next, and the batches that training reads."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import numpy as np
from ase import Atoms
from jaxtyping import Float

from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.types import AnyArray, HostMatrix, Leaf

SLOT_MULTIPLE = 4
"""Neighbour slots of a batch are rounded up to a multiple of this, so that similar data sets share a shape."""

ATOM_MULTIPLE = 8
"""Likewise for the atoms of a batch."""

MAX_SHAPES = 4
"""Most batch shapes a data set may have: a training step is compiled once for each."""

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


def make_batches(samples: Sequence[Sample], batch_size: int, *, seed: int | None = None) -> list[Batch]:
    """Deal all samples into batches of (almost) equal number, padded to few shapes.

    With B batches, the samples are sorted by size and cut into strata of B: every batch draws one sample of each
    stratum. The loads are then nearly equal whatever the shuffle, and the sum of the strata's largest members is an
    atom capacity that fits every shuffle: number of batches and shapes depend on the samples alone, and an epoch never
    compiles anew. Sizes so different that one shape would be mostly padding get up to `MAX_SHAPES` shapes.

    Args:
        samples: in any order; a data set of several fidelities is one list.
        batch_size: most graphs in a batch.
        seed: shuffles the draw (give the epoch's); by default samples of a stratum are taken in order of size.

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
        for drawn in _draw(members, sizes, n_batches, rng):
            batches.append(_batch(samples, drawn, capacity, inner))
    if rng is not None:
        rng.shuffle(batches)
    return batches


def padding_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' atoms that is padding, between 0 and 1."""
    total = sum(batch.graph.n_atoms for batch in batches)
    return 1.0 - sum(int(np.asarray(batch.graph.atom_mask).sum()) for batch in batches) / total


def split(frames: Sequence, parts: Sequence[float], seed: int = 0) -> tuple[list, ...]:
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


def _batch(samples: Sequence[Sample], drawn: np.ndarray, capacity: dict[str, int], inner: int) -> Batch:
    """The drawn samples, padded to the capacity."""
    mine = [samples[i] for i in drawn]
    # The largest `inner` of the data set: it is static, so a batch's own would be one more compilation.
    graph = batch_graphs([sample.graph for sample in mine], **capacity).replace(inner=inner)
    dtype = graph.positions.dtype
    n_graphs = capacity["n_graphs"]
    forces = np.full((capacity["n_atoms"], 3), np.nan, dtype)
    forces[: sum(sample.graph.n_atoms for sample in mine)] = np.concatenate([sample.forces for sample in mine])

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
