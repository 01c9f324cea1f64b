"""Batches for a stack of models, dealt to devices and loaded ahead of their use."""

import dataclasses
from collections.abc import Generator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.present_elements import few
from jaxmlip.systems.batches import Batch, BatchPlan, Sample, count, made_ahead, plan_batches
from jaxmlip.systems.plan import ATOM_MULTIPLE, NOBODY, BatchIndices, Shape, join_counts
from jaxmlip.training.metrics import KindsOfSamples
from jaxmlip.training.parallel import local_parts


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where the batches of a stack of models come from.

    Attributes:
        samples: of each model; they note the kinds of what is loaded.
        plans: of each model; all have the same shapes.
        mesh: devices that share each batch; None for one.
        atoms: of each sample of each model; needed on several devices only.
        parts: shape of one device's part of a batch, by the shape of the batch.
        elements: `Graph.elements` of all batches.
    """

    samples: list[KindsOfSamples]
    plans: list[BatchPlan]
    mesh: Mesh | None
    atoms: list[Int[np.ndarray, " samples"]]
    parts: dict[Shape, Shape]
    elements: tuple[int, int]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.plans[0].steps

    def epoch(self, seeds: Sequence[int | None], epoch: int = 0) -> list[tuple[BatchIndices, ...]]:
        """The batches of an epoch, each as indices for every model.

        All models must have the same shape at the same step, each with its own draw: so the order of shapes is shuffled
        by the number of the epoch alone, and the batches of a shape by the seed of the model.
        """
        all_indices = [plan.epoch(seed) for plan, seed in zip(self.plans, seeds, strict=True)]
        shapes = [indices.shape for indices in self.plans[0].epoch()]
        if any(seed is not None for seed in seeds):
            shapes = [shapes[place] for place in np.random.default_rng(epoch).permutation(len(shapes))]
        piles = [
            {shape: iter([indices for indices in mine if indices.shape == shape]) for shape in set(shapes)}
            for mine in all_indices
        ]
        return [tuple(next(pile[shape]) for pile in piles) for shape in shapes]

    def load(self, all_indices: Sequence[BatchIndices]) -> Batch:
        """The batches of all models as one, with numpy leaves [models, …], or [models, parts, …] on several devices."""
        batch = _stacked([self._of_model(model, indices) for model, indices in enumerate(all_indices)])
        return batch.replace(graph=batch.graph.replace(elements=self.elements))

    def batches(self, all_indices: Sequence[tuple[BatchIndices, ...]]) -> Generator[Batch, None, None]:
        """`load` for all, ahead of their use."""
        return made_ahead(self.load, all_indices)

    def _of_model(self, model: int, indices: BatchIndices) -> Batch:
        plan, samples = self.plans[model], self.samples[model]
        if self.mesh is None:
            return plan.load(samples, indices)
        all_indices = deal(indices, self.atoms[model], self.mesh.size, self.parts[indices.shape])
        parts = []
        for part in local_parts(self.mesh):
            if all_indices[part].samples:
                parts.append(plan.load(samples, all_indices[part]))
            else:  # fewer samples than devices
                parts.append(
                    _without_labels(plan.load(samples, BatchIndices(indices.samples[-1:], all_indices[part].shape)))
                )
        return _stacked(parts)


def make_feed(
    potential: Potential, samples: Sequence[Sequence[Sample]], batch_size: int, tiers: int, mesh: Mesh | None
) -> Feed:
    """Plan the batches of every model.

    Args:
        potential: of one of the models.
        samples: of each model; models that share the very same sequence share a plan.
        batch_size: most graphs in a batch, on all devices together.
        tiers: see `plan_batches`; batches that several devices share have none.
        mesh: of those devices.
    """
    known: dict[int, tuple[KindsOfSamples, BatchPlan]] = {}
    for mine in samples:
        if id(mine) not in known:
            known[id(mine)] = KindsOfSamples(mine), plan_batches(mine, batch_size, tiers=tiers if mesh is None else 1)
    noting, plans = zip(*(known[id(mine)] for mine in samples), strict=True)
    elements = _elements(potential, samples)
    if mesh is None:
        return Feed(list(noting), list(plans), None, [], {}, elements)
    atoms = [count(mine).atoms for mine in samples]
    parts: dict[Shape, Shape] = {}
    for plan, mine in zip(plans, atoms, strict=True):
        for shape, part in part_shapes(plan, mine, mesh.size).items():
            parts[shape] = max(part, parts.get(shape, part), key=lambda one: one.n_atoms)
    return Feed(list(noting), list(plans), mesh, atoms, parts, elements)


def _elements(potential: Potential, samples: Sequence[Sequence[Sample]]) -> tuple[int, int]:
    """`Graph.elements` of batches of any of the samples, if the potential reads it."""
    if not potential.reads_elements:
        return (0, 0)
    different = {id(mine): mine for mine in samples}.values()
    return few(*join_counts([count(mine) for mine in different]).elements_in())


def deal(indices: BatchIndices, atoms: Int[np.ndarray, " samples"], devices: int, shape: Shape) -> list[BatchIndices]:
    """The samples of a batch in parts of about equal size: largest first, to and fro over the devices."""
    ranked = sorted(indices.samples, key=lambda sample: (-atoms[sample], sample))
    parts = _to_and_fro(len(ranked), devices)
    return [BatchIndices(tuple(ranked[rank] for rank in part), shape) for part in parts]


def part_shapes(plan: BatchPlan, atoms: Int[np.ndarray, " samples"], devices: int) -> dict[Shape, Shape]:
    """For each shape of a plan's batches one that holds any device's part of them; without tiers.

    The j-th largest sample of a batch has at most the atoms of the largest of the j-th stratum (see
    `jaxmlip.systems.plan`).
    """
    shapes: dict[Shape, Shape] = {}
    for one in plan.classes:
        largest = np.where(one.table == NOBODY, 0, atoms[one.table]).max(axis=1)
        parts = _to_and_fro(len(largest), devices)
        most = max(int(largest[part].sum()) for part in parts)
        if one.shape in shapes:
            most = max(most, shapes[one.shape].n_atoms)
        shapes[one.shape] = Shape(
            n_atoms=-(-most // ATOM_MULTIPLE) * ATOM_MULTIPLE,
            n_graphs=max(map(len, parts)),
            slots=one.shape.slots,
            inner=one.shape.inner,
        )
    return shapes


def _to_and_fro(number: int, devices: int) -> list[list[int]]:
    """Ranks dealt as 0 1 2 3, 3 2 1 0, 0 1 2 3, …"""
    parts: list[list[int]] = [[] for _ in range(devices)]
    for rank in range(number):
        lap, place = divmod(rank, devices)
        parts[place if lap % 2 == 0 else devices - 1 - place].append(rank)
    return parts


def _without_labels(batch: Batch) -> Batch:
    """The batch as padding: nothing of it counts."""
    blank = {name: np.full_like(getattr(batch, name), np.nan) for name in ("energy", "forces", "stress", "magmoms")}
    return batch.replace(**blank, weight=np.zeros_like(batch.weight), index=np.full_like(batch.index, -1))


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of equal shape as one with a leading axis; of a single one, without a copy."""
    if len(batches) == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], batches[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
