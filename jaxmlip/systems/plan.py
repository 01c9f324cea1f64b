"""How samples are dealt into batches: decided once, from numbers of atoms and neighbours alone.

With B batches, the samples are sorted by size and cut into strata of B: every batch gets one sample of each stratum.
The columns of this table of strata × batches are cut into groups; the larger a group's samples are in one stratum, the
smaller they are in the next. An epoch shuffles each stratum within each group. So whatever the shuffle, the sum of the
largest members of a group's strata bounds what its batches need: a shape made from the bounds fits every epoch.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, UInt8

from jaxmlip.systems.graph import GHOST, Graph

SLOT_MULTIPLE = 4
"""Neighbour slots of a batch are rounded up to a multiple of this, so that similar data sets share a shape."""

ATOM_MULTIPLE = 8
"""Likewise for the atoms of a batch."""

TIER_MULTIPLE = 4
"""And for the atoms of a tier."""

LEVEL = 2
"""Neighbours are counted in steps of this many: the slots of a tier are a multiple of it. Divides `SLOT_MULTIPLE`."""

MAX_SHAPES = 4
"""Most batch shapes a data set may have: a training step is compiled once for each."""

WORTH_A_SHAPE = 0.15
"""Share of all batches' atoms that must be saved by batching structures of different size separately."""

WORTH_A_SHAPE_BESIDE_TIERS = 0.05
"""The same where batches have tiers: who compiles longer to waste less does not want to waste it on padding."""

NEARLY = 0.8
"""Share of the best saving with which a cut is preferred if it is at a wider jump: unlike structures stay apart."""

CUTS = 16
"""Jumps of size at which cutting a class in two is tried, largest first."""

GROUPS = 8
"""Most groups of batches between which samples are balanced by size."""

SMALLEST_GROUP = 6
"""Fewest batches in a group: a sample meets the samples of its group only, so groups must be large."""

N_BITS = 120
"""Of the elements of a sample: one for each atomic number, and whole bytes."""

NOBODY = -1
"""Marks an empty place in the table of a size class."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a plan must know of samples: numbers, no graphs.

    Attributes:
        atoms: [samples], number of atoms.
        slots: [samples], neighbours of the atom that has most.
        inner: [samples], see `Graph.inner`.
        crowded: [samples, levels], number of atoms with more than k · `LEVEL` neighbours, k = 0, 1, ….
        elements: [samples, bytes], which elements there are, a bit for each atomic number (`numpy.packbits`).
    """

    atoms: Int[np.ndarray, " samples"]
    slots: Int[np.ndarray, " samples"]
    inner: Int[np.ndarray, " samples"]
    crowded: Int[np.ndarray, "samples levels"]
    elements: UInt8[np.ndarray, "samples bytes"]

    def elements_in(self) -> tuple[int, int]:
        """How many different elements there are in all samples together, and most in any one of them."""
        in_all = np.bitwise_or.reduce(self.elements, axis=0)
        each = np.bitwise_count(self.elements).sum(axis=1, dtype=int)
        return int(np.bitwise_count(in_all).sum(dtype=int)), int(each.max(initial=0))

    def of(self, which: Int[np.ndarray, " chosen"]) -> "Counts":
        """The counts of some of the samples."""
        columns = self.atoms, self.slots, self.inner, self.crowded, self.elements
        return Counts(*(column[which] for column in columns))


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
class BatchIndices:
    """The samples of one batch, by their numbers, and the shape it is padded to."""

    samples: tuple[int, ...]
    shape: Shape


@dataclasses.dataclass(frozen=True)
class SizeClass:
    """Samples of similar size, which share batches.

    Attributes:
        members: numbers of the samples, in descending order of size.
        table: [strata, batches], the same numbers as they are dealt, or `NOBODY`.
        groups: how many consecutive batches belong to each group.
        shape: of the batches.
    """

    members: Int[np.ndarray, " members"]
    table: Int[np.ndarray, "strata batches"]
    groups: tuple[int, ...]
    shape: Shape

    @property
    def n_batches(self) -> int:
        """How many batches the members make."""
        return self.table.shape[1]

    def deal(self, rng: np.random.Generator | None) -> list[BatchIndices]:
        """Every sample into one of the batches; without a generator, as the table has them."""
        table = self.table
        if rng is not None:
            columns = np.split(table, np.cumsum(self.groups)[:-1], axis=1)
            table = np.concatenate([rng.permuted(part, axis=1) for part in columns], axis=1)
        return [BatchIndices(tuple(indices[indices != NOBODY].tolist()), self.shape) for indices in table.T]


def count_graphs(graphs: Iterable[Graph]) -> Counts:
    """The numbers that a plan is made from, of graphs of one structure each, in one pass."""
    sizes, crowded, elements = [], [], []
    for graph in graphs:
        there = np.zeros(N_BITS, bool)
        there[np.asarray(graph.species)] = True
        there[0] = False  # padding
        elements.append(np.packbits(there))
        degrees = np.sum(np.asarray(graph.neighbors) != GHOST, axis=1)
        # Counting backwards: how many have k · LEVEL + 1 neighbours or more.
        steps = np.bincount(-(-degrees // LEVEL), minlength=-(-graph.n_slots // LEVEL) + 1)
        crowded.append(np.cumsum(steps[:0:-1])[::-1].astype(np.int32))
        sizes.append((graph.n_atoms, graph.n_slots, graph.inner))
    table = np.zeros((len(sizes), max(map(len, crowded), default=0)), np.int32)
    for row, levels in zip(table, crowded, strict=True):
        row[: len(levels)] = levels
    if table.max(initial=0) <= np.iinfo(np.int16).max:  # half the memory: there may be millions of samples
        table = table.astype(np.int16)
    columns = np.array(sizes, np.int32).reshape(len(sizes), 3)
    bits = np.array(elements, np.uint8).reshape(len(elements), N_BITS // 8)
    return Counts(columns[:, 0], columns[:, 1], columns[:, 2], table, bits)


def join_counts(parts: list[Counts]) -> Counts:
    """The counts of samples that follow one another."""
    levels = max(int(part.crowded.shape[1]) for part in parts)
    wide = [np.zeros((len(part.crowded), levels), part.crowded.dtype) for part in parts]
    for table, part in zip(wide, parts, strict=True):
        table[:, : part.crowded.shape[1]] = part.crowded
    names = ("atoms", "slots", "inner", "elements")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Counts(crowded=np.concatenate(wide), **columns)


def size_classes(counts: Counts, batch_size: int, tiers: int) -> tuple[SizeClass, ...]:
    """The samples by size, largest first, and the shape of each class that holds its batches in every epoch.

    Args:
        counts: of the samples.
        batch_size: most graphs in a batch.
        tiers: most tiers of a batch.
    """
    classes = []
    for members in _by_size(counts, batch_size, WORTH_A_SHAPE if tiers == 1 else WORTH_A_SHAPE_BESIDE_TIERS):
        n_batches = -(-len(members) // batch_size)
        sizes = np.diff(np.linspace(0, n_batches, min(GROUPS, max(1, n_batches // SMALLEST_GROUP)) + 1).astype(int))
        table = _balanced(members, n_batches, sizes, counts)
        n_atoms, beyond = _bounds(table, sizes, counts)
        n_atoms = _round_up(n_atoms, ATOM_MULTIPLE)
        shape = Shape(
            n_atoms=n_atoms,
            n_graphs=table.shape[0],
            slots=_round_up(int(counts.slots[members].max()), SLOT_MULTIPLE),
            inner=int(counts.inner[members].max()),
            tiers=_tiers(beyond, n_atoms, tiers) if tiers > 1 else (),
        )
        classes.append(SizeClass(members, table, tuple(sizes.tolist()), shape))
    return tuple(classes)


def _by_size(counts: Counts, batch_size: int, worth: float) -> list[Int[np.ndarray, " members"]]:
    """Samples in descending order of size, cut in two as long as that saves a share of all atoms worth a shape.

    Among samples of equally many atoms those with more neighbours come first.
    """
    atoms = counts.atoms

    def padded(members: np.ndarray) -> int:
        """Atoms of the batches of a class, padding included."""
        n_batches = -(-len(members) // batch_size)
        return n_batches * int(atoms[members[::n_batches]].sum())

    def best_cut(members: np.ndarray) -> tuple[int, int]:
        """What a cut saves, and where it is: at the widest jump of those that save nearly the most."""
        jumps = atoms[members[:-1]] / atoms[members[1:]]
        places = [int(place) + 1 for place in np.argsort(-jumps, kind="stable")[:CUTS] if jumps[place] > 1]
        savings = [padded(members) - padded(members[:place]) - padded(members[place:]) for place in places]
        enough = NEARLY * max(savings, default=0)
        return next((cut for cut in zip(savings, places, strict=True) if cut[0] >= enough), (0, 0))

    classes = [np.lexsort((-counts.crowded.sum(axis=1), -atoms))]
    while len(classes) < MAX_SHAPES:
        cuts = [best_cut(members) for members in classes]
        widest = int(np.argmax([saving for saving, _ in cuts]))
        saving, place = cuts[widest]
        if saving <= worth * sum(map(padded, classes)):
            break
        members = classes[widest]
        classes[widest : widest + 1] = [members[:place], members[place:]]
    return classes


def _balanced(
    members: Int[np.ndarray, " members"], n_batches: int, groups: Int[np.ndarray, " groups"], counts: Counts
) -> Int[np.ndarray, "strata batches"]:
    """The table of strata × batches; in each stratum the group with the least so far gets the largest samples."""
    strata = -(-len(members) // n_batches)
    table = np.full((strata, n_batches), NOBODY)
    padded = np.concatenate([members, np.full(strata * n_batches - len(members), NOBODY)])
    # Slots make the work of a batch, atoms that have few of them count too.
    work = np.append(counts.crowded.sum(axis=1) * LEVEL + counts.atoms, 0)
    first = np.cumsum(groups) - groups
    so_far = np.zeros(len(groups))
    for row, stratum in zip(table, padded.reshape(strata, n_batches), strict=True):
        begin = 0
        for group in np.argsort(so_far, kind="stable"):
            mine = stratum[begin : begin + groups[group]]
            row[first[group] : first[group] + groups[group]] = mine
            so_far[group] += work[mine].mean()
            begin += groups[group]
    return table


def _bounds(
    table: Int[np.ndarray, "strata batches"], groups: Int[np.ndarray, " groups"], counts: Counts
) -> tuple[int, Int[np.ndarray, " levels"]]:
    """Most atoms of a batch, and most with more than k · `LEVEL` neighbours, whatever the shuffle."""
    atoms, beyond = 0, np.zeros(counts.crowded.shape[1], np.int64)
    for columns in np.split(table, np.cumsum(groups)[:-1], axis=1):
        strata = [stratum[stratum != NOBODY] for stratum in columns]
        atoms = max(atoms, sum(int(counts.atoms[mine].max(initial=0)) for mine in strata))
        most = [counts.crowded[mine].max(axis=0, initial=0) for mine in strata]
        beyond = np.maximum(beyond, np.sum(most, axis=0, dtype=np.int64))
    return atoms, beyond


def _tiers(beyond: Int[np.ndarray, " levels"], n_atoms: int, number: int) -> tuple[tuple[int, int], ...]:
    """The tiers, at most so many, with the fewest slots in all.

    Args:
        beyond: most atoms with more than k · `LEVEL` neighbours.
        n_atoms: atoms of a batch.
        number: of tiers.
    """
    ends = np.append(np.minimum(-(-beyond // TIER_MULTIPLE) * TIER_MULTIPLE, n_atoms), 0).tolist()
    ends[0] = n_atoms  # atoms without neighbours need a place too
    top = ends.index(0)
    # cost[k]: fewest slots for all atoms that k levels do not suffice for, by as many tiers as have been gone through.
    cost = [np.inf] * top + [0.0]
    chosen: list[tuple[tuple[int, int], ...]] = [()] * (top + 1)
    for _ in range(number):
        longer, paths = list(cost), list(chosen)
        for low in range(top):
            for high in range(low + 1, top + 1):
                atoms, slots = ends[low] - ends[high], LEVEL * high
                if cost[high] + atoms * slots < longer[low]:
                    longer[low] = cost[high] + atoms * slots
                    paths[low] = (*chosen[high], (atoms, slots)) if atoms else chosen[high]
        cost, chosen = longer, paths
    return chosen[0]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
