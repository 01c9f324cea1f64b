"""Frames as training samples, and samples as padded batches of few shapes."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, overload

import flax.struct
import numpy as np
from jaxtyping import Float, Int

from jaxmlip.systems.dataset import Frame, frame_graph, frame_kind, moment_sizes
from jaxmlip.systems.graph import GHOST, Graph, batch_graphs, in_tiers
from jaxmlip.systems.plan import BatchIndices, Counts, SizeClass, count_graphs, join_counts, size_classes
from jaxmlip.systems.store import FrameStore
from jaxmlip.types import AnyArray, HostMatrix, Leaf

Made = TypeVar("Made")


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
        kind: what errors are listed by, see `frame_kind`.
        magmoms: [atoms], magnitudes of magnetic moments, μB; None if no atom has one.
    """

    graph: Graph
    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: HostMatrix
    head: int = 0
    weight: float = 1.0
    kind: str = ""
    magmoms: Float[np.ndarray, " atoms"] | None = None


class Batch(flax.struct.PyTreeNode):
    """Padded graphs and their labels; NaN marks an absent label, and every label of padding is absent.

    Attributes:
        graph: the structures; see `Graph` for its padding.
        energy: [graphs], eV, relative to the elemental references.
        forces: [atoms, 3], eV/Å.
        stress: [graphs, 3, 3], eV/Å³, positive under tension.
        magmoms: [atoms], magnitudes of magnetic moments, μB.
        head: [graphs], index of the readout the labels belong to; 0 for a padding graph.
        weight: [graphs], factor in the loss; 0 for a padding graph.
        index: [graphs], position of the structure among the samples the batch was made from; −1 for a padding graph.
    """

    graph: Graph
    energy: Leaf
    forces: Leaf
    stress: Leaf
    magmoms: Leaf
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

    All are made at once and held; for sets larger than memory see `LazySamples`.

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
    recipe = Recipe(cutoff, inner_cutoff, np.asarray(references, np.float64), head, weight, dtype)
    return [recipe.make(frame, number) for number, frame in enumerate(frames)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a frame becomes a sample; for the attributes see `make_samples`."""

    cutoff: float
    inner_cutoff: float
    references: Float[np.ndarray, " 119"]
    head: int = 0
    weight: float = 1.0
    dtype: type = np.float32

    def make(self, frame: Frame, number: int) -> Sample:
        """The sample of a frame; its number is for messages."""
        magmoms = moment_sizes(frame)
        return Sample(
            graph=frame_graph(frame, number, self.cutoff, self.inner_cutoff, self.dtype),
            energy=float(frame.energy - self.references[frame.atoms.numbers].sum()),
            forces=np.asarray(frame.forces, np.float64),
            stress=np.asarray(frame.stress, np.float64),
            head=self.head,
            weight=self.weight,
            kind=frame_kind(frame),
            magmoms=None if np.isnan(magmoms).all() else magmoms,
        )


class LazySamples(Sequence[Sample]):
    """Samples that are made when they are asked for, and not kept: for sets larger than memory.

    `a + b` are the samples of both, also where `a` or `b` is a list. Slices are lazy too.
    """

    def __init__(self, frames: Sequence[Frame], recipe: Recipe) -> None:
        """Nothing is read yet.

        Args:
            frames: labelled structures, as a `FrameStore` or any other sequence.
            recipe: how a frame becomes a sample.
        """
        self.frames, self.recipe = frames, recipe

    @functools.cached_property
    def counts(self) -> Counts:
        """What a plan is made from; a store keeps it beside its file, other frames are gone through once."""
        cutoffs = self.recipe.cutoff, self.recipe.inner_cutoff
        if isinstance(self.frames, FrameStore):
            return self.frames.counts(*cutoffs)
        return count_graphs(sample.graph for sample in self)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "LazySamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | LazySamples":
        """One sample, made now, or some of them, still to be made."""
        if isinstance(index, slice):
            return LazySamples(self.frames[index], self.recipe)
        return self.recipe.make(self.frames[index], index)

    def __add__(self, other: Sequence[Sample]) -> "JoinedSamples":
        """These samples, then others."""
        return JoinedSamples([self, other])

    def __radd__(self, other: Sequence[Sample]) -> "JoinedSamples":
        """Others, then these samples."""
        return JoinedSamples([other, self])


class JoinedSamples(Sequence[Sample]):
    """The samples of several sequences, one after the other, as those of several fidelities."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        """The parts are held as they are."""
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    @functools.cached_property
    def counts(self) -> Counts:
        """What a plan is made from."""
        return join_counts([count(part) for part in self.parts])

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        """One sample, or a list of some."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self.parts[part][number - (int(self._ends[part - 1]) if part else 0)]

    def __add__(self, other: Sequence[Sample]) -> "JoinedSamples":
        """These samples, then others."""
        return JoinedSamples([*self.parts, other])


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
        """Number of different shapes of the batches: so often is a training step compiled."""
        return len({one.shape for one in self.classes})

    def epoch(self, seed: int | None = None) -> list[BatchIndices]:
        """Deal every sample into one of the batches of an epoch.

        Args:
            seed: shuffles the draw (give the epoch's); by default every epoch is the same.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        all_indices = [indices for one in self.classes for indices in one.deal(rng)]
        if rng is not None:
            rng.shuffle(all_indices)
        return all_indices

    def load(self, samples: Sequence[Sample], indices: BatchIndices) -> Batch:
        """The samples of a batch, padded to its shape; numpy leaves.

        Raises:
            ValueError: if these are not the samples the plan was made for, and do not fit the shape.
        """
        mine = [samples[number] for number in indices.samples]
        shape = indices.shape
        graph = batch_graphs(
            [sample.graph for sample in mine], n_atoms=shape.n_atoms, n_graphs=shape.n_graphs, slots=shape.slots
        ).replace(inner=shape.inner)
        dtype = graph.positions.dtype
        forces = np.full((shape.n_atoms, 3), np.nan, dtype)
        forces[: sum(sample.graph.n_atoms for sample in mine)] = np.concatenate([sample.forces for sample in mine])
        magmoms, first = np.full(shape.n_atoms, np.nan, dtype), 0
        for sample in mine:
            if sample.magmoms is not None:
                magmoms[first : first + sample.graph.n_atoms] = sample.magmoms
            first += sample.graph.n_atoms
        if shape.tiers:
            graph, order = in_tiers(graph, shape.tiers)
            forces, magmoms = forces[order], magmoms[order]

        def of_graphs(values: list, padding: float, kind: np.dtype = dtype) -> np.ndarray:
            padded = np.full((shape.n_graphs, *np.shape(values)[1:]), padding, kind)
            padded[: len(values)] = values
            return padded

        return Batch(
            graph=graph,
            energy=of_graphs([sample.energy for sample in mine], np.nan),
            forces=forces,
            stress=of_graphs([sample.stress for sample in mine], np.nan),
            magmoms=magmoms,
            head=of_graphs([sample.head for sample in mine], 0.0, np.dtype(np.int32)),
            weight=of_graphs([sample.weight for sample in mine], 0.0),
            index=of_graphs(list(indices.samples), -1.0, np.dtype(np.int32)),
        )


def plan_batches(samples: Sequence[Sample], batch_size: int, *, tiers: int = 1) -> BatchPlan:
    """Plan batches of (almost) equal size, padded to few shapes.

    Number of batches and shapes depend on the samples alone, and fit every shuffle (see `jaxmlip.systems.plan`): no
    epoch compiles anew. Sizes so different that one shape would be mostly padding get up to `MAX_SHAPES` shapes.

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
    return BatchPlan(counts.atoms, size_classes(counts, batch_size, tiers))


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
    return [plan.load(samples, indices) for indices in plan.epoch(seed)]


def stream(
    plan: BatchPlan, samples: Sequence[Sample], seed: int | None = None, *, ahead: int = 2, start: int = 0
) -> Generator[Batch, None, None]:
    """The batches of an epoch in order, each made in the background while those before it are in use.

    An error in the making of a batch is raised where that batch is asked for. The thread ends with the
    generator, whether that is used up or closed.

    Args:
        plan: of these samples.
        samples: only those of the batches under way are held, where they are made on demand.
        seed: see `BatchPlan.epoch`.
        ahead: how many batches are made before they are asked for, at least 1.
        start: how many batches of the epoch to leave out, as those before an interruption.

    Raises:
        ValueError: for `ahead` below 1.
    """
    if ahead < 1:
        raise ValueError(f"At least 1 batch has to be made ahead, not {ahead}.")
    return made_ahead(functools.partial(plan.load, samples), plan.epoch(seed)[start:], ahead)


def made_ahead(make: Callable[[Any], Made], items: Sequence[Any], ahead: int = 2) -> Generator[Made, None, None]:
    """`make` of every item in order, each made in the background while those before it are in use; see `stream`."""
    pool = concurrent.futures.ThreadPoolExecutor(1, "batches")
    try:
        under_way = collections.deque(pool.submit(make, item) for item in items[:ahead])
        for place in range(len(items)):
            made = under_way.popleft().result()
            if place + ahead < len(items):
                under_way.append(pool.submit(make, items[place + ahead]))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def count(samples: Sequence[Sample]) -> Counts:
    """The numbers that a plan is made from; lazy samples are made one by one for it, once."""
    if isinstance(samples, LazySamples | JoinedSamples):
        return samples.counts
    return count_graphs(sample.graph for sample in samples)


def padding_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' atoms that is padding, between 0 and 1."""
    total = sum(batch.graph.n_atoms for batch in batches)
    return 1.0 - sum(int(np.asarray(batch.graph.atom_mask).sum()) for batch in batches) / total


def slot_waste(batches: Sequence[Batch]) -> float:
    """Share of the batches' neighbour slots that is empty, between 0 and 1; of those in use where there are tiers."""
    graphs = [batch.graph for batch in batches]
    total = sum(atoms * slots for graph in graphs for atoms, slots in graph.tiers or ((graph.n_atoms, graph.n_slots),))
    return 1.0 - sum(int(np.sum(np.asarray(graph.neighbors) != GHOST)) for graph in graphs) / total
