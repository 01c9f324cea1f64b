"""Frames as training samples, and the plan by which samples are dealt into padded batches of few shapes."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Float, Int

from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.systems.graph import GHOST, Graph, batch_graphs, graph_from_atoms, in_tiers, tiers_hold
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


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a plan must know of samples: numbers, no graphs.

    Attributes:
        atoms: [samples], number of atoms.
        slots: [samples], neighbours of the atom that has most.
        inner: [samples], see `Graph.inner`.
        crowded: [samples, levels], number of atoms with more than k · `SLOT_MULTIPLE` neighbours, k = 0, 1, ….
    """

    atoms: Int[np.ndarray, " samples"]
    slots: Int[np.ndarray, " samples"]
    inner: Int[np.ndarray, " samples"]
    crowded: Int[np.ndarray, "samples levels"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a batch: what a training step is compiled for.

    Attributes:
        n_atoms: atoms, padding included.
        n_graphs: graphs, padding included.
        slots: neighbour slots.
        inner: see `Graph.inner`; the largest of all samples of the shape, since it is static.
        tiers: see `Graph.tiers`.
    """

    n_atoms: int
    n_graphs: int
    slots: int
    inner: int
    tiers: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Hand:
    """The samples of one batch, by their numbers, and the shape it is padded to."""

    samples: tuple[int, ...]
    shape: Shape


@dataclasses.dataclass(frozen=True)
class SizeClass:
    """Samples of similar size, which share batches.

    Attributes:
        members: numbers of the samples, in descending order of size.
        n_batches: how many batches they make.
        shape: of those batches.
    """

    members: Int[np.ndarray, " members"]
    n_batches: int
    shape: Shape


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How samples are dealt into batches in every epoch; made once, from sizes alone.

    Attributes:
        atoms: [samples], number of atoms of each sample.
        classes: the samples by size, largest first.
    """

    atoms: Int[np.ndarray, " samples"]
    classes: tuple[SizeClass, ...]

    @property
    def steps(self) -> int:
        """Number of batches of an epoch."""
        return sum(one.n_batches for one in self.classes)

    @property
    def shapes(self) -> int:
        """Number of different shapes that batches are meant to have."""
        return len({one.shape for one in self.classes})

    def epoch(self, seed: int | None = None) -> list[Hand]:
        """Deal every sample into one of the batches of an epoch.

        Args:
            seed: shuffles the draw (give the epoch's); by default samples of a stratum are taken in order of size.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        hands = []
        for one in self.classes:
            drawn = _draw(one.members, self.atoms, one.n_batches, rng)
            hands += [Hand(tuple(hand), one.shape) for hand in drawn]
        if rng is not None:
            rng.shuffle(hands)
        return hands

    def load(self, samples: Sequence[Sample], hand: Hand) -> Batch:
        """The samples of a hand, padded to its shape; numpy leaves.

        The tiers were made for the draws of some epochs: a batch that does not fit them keeps all slots for all atoms,
        and has a training step compiled of its own.
        """
        mine = [samples[number] for number in hand.samples]
        shape = hand.shape
        graph = batch_graphs(
            [sample.graph for sample in mine], n_atoms=shape.n_atoms, n_graphs=shape.n_graphs, slots=shape.slots
        ).replace(inner=shape.inner)
        dtype = graph.positions.dtype
        forces = np.full((shape.n_atoms, 3), np.nan, dtype)
        forces[: sum(sample.graph.n_atoms for sample in mine)] = np.concatenate([sample.forces for sample in mine])
        if shape.tiers and tiers_hold(graph, shape.tiers):
            graph, order = in_tiers(graph, shape.tiers)
            forces = forces[order]

        def of_graphs(values: list, padding: float, kind: np.dtype = dtype) -> np.ndarray:
            padded = np.full((shape.n_graphs, *np.shape(values)[1:]), padding, kind)
            padded[: len(values)] = values
            return padded

        return Batch(
            graph=graph,
            energy=of_graphs([sample.energy for sample in mine], np.nan),
            forces=forces,
            stress=of_graphs([sample.stress for sample in mine], np.nan),
            head=of_graphs([sample.head for sample in mine], 0.0, np.dtype(np.int32)),
            weight=of_graphs([sample.weight for sample in mine], 0.0),
            index=of_graphs(list(hand.samples), -1.0, np.dtype(np.int32)),
        )


def plan_batches(samples: Sequence[Sample], batch_size: int, *, tiers: int = 1) -> BatchPlan:
    """Plan batches of (almost) equal number of atoms, padded to few shapes.

    With B batches, the samples are sorted by size and cut into strata of B: every batch draws one sample of each
    stratum. The loads are then nearly equal whatever the shuffle, and the sum of the strata's largest members is an
    atom capacity that fits every shuffle: number of batches and shapes depend on the samples alone, and an epoch never
    compiles anew. Sizes so different that one shape would be mostly padding get up to `MAX_SHAPES` shapes.

    Args:
        samples: in any order; a data set of several fidelities is one list.
        batch_size: most graphs in a batch.
        tiers: most tiers of a batch (see `Graph.tiers`). In clusters few atoms have as many neighbours as in the bulk:
            with several tiers little work is wasted on empty slots, but compilation takes longer.

    Raises:
        ValueError: if there are no samples, or for a batch size below 1.
    """
    if len(samples) == 0:
        raise ValueError("There are no samples to make batches of.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be at least 1, not {batch_size}.")
    counts = count(samples)
    classes = []
    for members in _size_classes(counts.atoms, batch_size):
        n_batches = -(-len(members) // batch_size)
        shape = Shape(
            n_atoms=_round_up(int(counts.atoms[members[::n_batches]].sum()), ATOM_MULTIPLE),
            n_graphs=-(-len(members) // n_batches),
            slots=_round_up(int(counts.slots[members].max()), SLOT_MULTIPLE),
            inner=int(counts.inner[members].max()),
        )
        shape = dataclasses.replace(shape, tiers=_tiers(counts, members, n_batches, shape, tiers))
        classes.append(SizeClass(members, n_batches, shape))
    return BatchPlan(counts.atoms, tuple(classes))


def make_batches(samples: Sequence[Sample], batch_size: int, *, seed: int | None = None, tiers: int = 1) -> list[Batch]:
    """One epoch of `plan_batches`, loaded: batches with numpy leaves, each sample in exactly one of them.

    Args:
        samples: see `plan_batches`.
        batch_size: see `plan_batches`.
        seed: see `BatchPlan.epoch`.
        tiers: see `plan_batches`.

    Raises:
        ValueError: if there are no samples, or for a batch size below 1.
    """
    plan = plan_batches(samples, batch_size, tiers=tiers)
    return [plan.load(samples, hand) for hand in plan.epoch(seed)]


def count(samples: Sequence[Sample]) -> Counts:
    """The numbers that a plan is made from."""
    atoms, slots, inner, crowded = [], [], [], []
    for sample in samples:
        graph = sample.graph
        levels = SLOT_MULTIPLE * np.arange(-(-graph.n_slots // SLOT_MULTIPLE))
        degrees = np.sum(np.asarray(graph.neighbors) != GHOST, axis=1)
        atoms.append(graph.n_atoms)
        slots.append(graph.n_slots)
        inner.append(graph.inner)
        crowded.append(np.sum(degrees[:, None] > levels, axis=0))
    table = np.zeros((len(samples), max(map(len, crowded), default=0)), np.int32)
    for row, levels in zip(table, crowded, strict=True):
        row[: len(levels)] = levels
    return Counts(np.array(atoms, np.int32), np.array(slots, np.int32), np.array(inner, np.int32), table)


def padding_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' atoms that is padding, between 0 and 1."""
    total = sum(batch.graph.n_atoms for batch in batches)
    return 1.0 - sum(int(np.asarray(batch.graph.atom_mask).sum()) for batch in batches) / total


def slot_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' neighbour slots that is empty, between 0 and 1; of those in use where there are tiers."""
    graphs = [batch.graph for batch in batches]
    total = sum(atoms * slots for graph in graphs for atoms, slots in graph.tiers or ((graph.n_atoms, graph.n_slots),))
    return 1.0 - sum(int(np.sum(np.asarray(graph.neighbors) != GHOST)) for graph in graphs) / total


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


def _draw(
    members: Int[np.ndarray, " members"],
    atoms: Int[np.ndarray, " samples"],
    n_batches: int,
    rng: np.random.Generator | None,
) -> list[list[int]]:
    """One member of each stratum for every batch; samples of equal size change strata freely."""
    if rng is not None:
        members = members[np.lexsort((rng.random(len(members)), -atoms[members]))]
    hands: list[list[int]] = [[] for _ in range(n_batches)]
    for begin in range(0, len(members), n_batches):
        stratum = members[begin : begin + n_batches]
        places = np.arange(len(stratum)) if rng is None else rng.permutation(n_batches)[: len(stratum)]
        for place, member in zip(places, stratum, strict=True):
            hands[place].append(int(member))
    return hands


def _tiers(
    counts: Counts, members: Int[np.ndarray, " members"], n_batches: int, shape: Shape, number: int
) -> tuple[tuple[int, int], ...]:
    """The tiers with the fewest slots in all that hold the batches of several epochs."""
    slots = np.arange(shape.slots, 0, -SLOT_MULTIPLE)
    if number == 1 or len(slots) == 1:
        return ()
    # Atoms of a batch that do not fit into so many slots.
    beyond = np.zeros(len(slots), int)
    needing = np.zeros((len(counts.atoms), len(slots)), int)
    levels = slots // SLOT_MULTIPLE
    there = levels < counts.crowded.shape[1]
    needing[:, there] = counts.crowded[:, levels[there]]
    for draw in range(DRAWS):
        for hand in _draw(members, counts.atoms, n_batches, np.random.default_rng(draw)):
            beyond = np.maximum(beyond, needing[hand].sum(axis=0))
    beyond = np.minimum(-(-beyond // TIER_MULTIPLE) * TIER_MULTIPLE, shape.n_atoms)
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
    rest = [cost[k] + (shape.n_atoms - ends[k]) * slots[k] for k in range(len(slots))]
    best = int(np.argmin(rest))
    tiers = (*chosen[best], (shape.n_atoms - ends[best], int(slots[best])))
    return tuple(tier for tier in tiers if tier[0])
