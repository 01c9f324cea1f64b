"""Batches for a stack of models, dealt to devices and loaded ahead of their use."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmlip.systems.batches import ATOM_MULTIPLE, Batch, BatchPlan, Hand, Sample, Shape, plan_batches
from jaxmlip.training.metrics import Kinds
from jaxmlip.training.parallel import local_parts

AHEAD = 2
"""Batches that are loaded while a step runs."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where the batches of a stack of models come from.

    Attributes:
        samples: of each model; they note the kinds of what is loaded.
        plans: of each model; all have the same shapes.
        mesh: devices that share each batch; None for one.
        parts: shape of one device's part of a batch, by the shape of the batch.
    """

    samples: list[Kinds]
    plans: list[BatchPlan]
    mesh: Mesh | None
    parts: dict[Shape, Shape]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.plans[0].steps

    def epoch(self, seeds: Sequence[int | None], epoch: int = 0) -> list[tuple[Hand, ...]]:
        """The batches of an epoch, each a hand for every model.

        All models must have the same shape at the same step, each with its own draw: so the order of shapes is shuffled
        by the number of the epoch alone, and the batches of a shape by the seed of the model.
        """
        hands = [plan.epoch(seed) for plan, seed in zip(self.plans, seeds, strict=True)]
        shapes = [hand.shape for hand in self.plans[0].epoch()]
        if any(seed is not None for seed in seeds):
            shapes = [shapes[place] for place in np.random.default_rng(epoch).permutation(len(shapes))]
        piles = [{shape: [hand for hand in mine if hand.shape == shape] for shape in set(shapes)} for mine in hands]
        return [tuple(pile[shape].pop(0) for pile in piles) for shape in shapes]

    def load(self, hands: Sequence[Hand]) -> Batch:
        """The batches of all models as one, with numpy leaves [models, …], or [models, parts, …] on several devices."""
        loaded = [
            self._dealt(plan, samples, hand)
            for plan, samples, hand in zip(self.plans, self.samples, hands, strict=True)
        ]
        if len({jax.tree.structure(batch) for batch in loaded}) > 1:
            # Tiers are made for usual draws. What one model's batch does not fit, the others do without.
            loaded = [batch.replace(graph=batch.graph.replace(tiers=())) for batch in loaded]
        return _stacked(loaded)

    def batches(self, hands: Sequence[tuple[Hand, ...]]) -> Generator[Batch, None, None]:
        """`load` for all, ahead of their use."""
        return ahead(self.load, hands)

    def _dealt(self, plan: BatchPlan, samples: Sequence[Sample], hand: Hand) -> Batch:
        if self.mesh is None:
            return plan.load(samples, hand)
        hands = deal(hand, plan.atoms, self.mesh.size, self.parts[hand.shape])
        parts = []
        for part in local_parts(self.mesh):
            if hands[part].samples:
                parts.append(plan.load(samples, hands[part]))
            else:  # fewer samples than devices
                parts.append(_without_labels(plan.load(samples, Hand(hand.samples[-1:], hands[part].shape))))
        return _stacked(parts)


def make_feed(samples: Sequence[Sequence[Sample]], batch_size: int, tiers: int, mesh: Mesh | None) -> Feed:
    """Plan the batches of every model.

    Args:
        samples: of each model; models that share the very same sequence share a plan.
        batch_size: most graphs in a batch, on all devices together.
        tiers: see `plan_batches`; batches that several devices share have none.
        mesh: of those devices.
    """
    known: dict[int, tuple[Kinds, BatchPlan]] = {}
    for mine in samples:
        if id(mine) not in known:
            known[id(mine)] = Kinds(mine), plan_batches(mine, batch_size, tiers=tiers if mesh is None else 1)
    noting, plans = zip(*(known[id(mine)] for mine in samples), strict=True)
    parts = {} if mesh is None else part_shapes(plans, mesh.size)
    return Feed(list(noting), list(plans), mesh, parts)


def deal(hand: Hand, atoms: np.ndarray, devices: int, shape: Shape) -> list[Hand]:
    """A hand in parts of about equal size: largest first, to and fro over the devices."""
    ranked = sorted(hand.samples, key=lambda sample: (-atoms[sample], sample))
    parts = _to_and_fro(len(ranked), devices)
    return [Hand(tuple(ranked[rank] for rank in part), shape) for part in parts]


def ahead(function: Callable[[In], Out], items: Iterable[In], number: int = AHEAD) -> Generator[Out, None, None]:
    """`map(function, items)`, computed by a thread up to `number` results ahead.

    What the thread raises is raised here; a generator that is closed ends its thread.
    """
    results: queue.Queue = queue.Queue(maxsize=number)
    closed = threading.Event()

    def put(result: tuple[str, object]) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                results.put(result, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(("result", function(item)))
                if closed.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # whatever it is belongs to the one who waits for the result
            put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, result = results.get()
            if kind == "error":
                raise result
            if kind == "end":
                return
            yield result
    finally:
        closed.set()
        thread.join()


def part_shapes(plans: Sequence[BatchPlan], devices: int) -> dict[Shape, Shape]:
    """Shapes that hold the parts of every batch.

    The j-th largest sample of a batch has at most the atoms of the largest of the j-th stratum (see `plan_batches`).
    """
    shapes: dict[Shape, Shape] = {}
    for plan in plans:
        for one in plan.classes:
            largest = plan.atoms[one.members[:: one.n_batches]]
            parts = _to_and_fro(len(largest), devices)
            most = max(int(largest[part].sum()) for part in parts)
            known = shapes.get(one.shape)
            shapes[one.shape] = Shape(
                n_atoms=max(-(-most // ATOM_MULTIPLE) * ATOM_MULTIPLE, known.n_atoms if known else 0),
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
    blank = {name: np.full_like(getattr(batch, name), np.nan) for name in ("energy", "forces", "stress")}
    return batch.replace(**blank, weight=np.zeros_like(batch.weight), index=np.full_like(batch.index, -1))


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of equal shape as one with a leading axis; of a single one, without a copy."""
    if len(batches) == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], batches[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
