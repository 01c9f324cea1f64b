"""Samples and the plan that deals them into batches."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms

import jaxmlip.systems.plan
from jaxmlip.systems.batches import (
    Batch,
    BatchPlan,
    Sample,
    make_batches,
    make_samples,
    padding_waste,
    plan_batches,
    slot_waste,
    stream,
)
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.graph import GHOST, edge_vectors, in_tiers
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.plan import LEVEL, BatchIndices, Counts, SizeClass, size_classes


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Droplets of 2 to 9 molecules, told apart by their energies and forces; every third without forces."""
    rng = np.random.default_rng(0)
    ice = ice_ih(32)
    references = np.zeros(119)
    references[[1, 8]] = -13.5, -2043.9
    frames = []
    for number in range(50):
        molecules = int(rng.integers(2, 10))
        atoms = ice[: 3 * molecules]
        assert isinstance(atoms, Atoms)
        atoms.pbc = False
        forces = np.full((len(atoms), 3), np.nan if number % 3 == 0 else float(number))
        frames.append(Frame(atoms, number + molecules * (-2 * 13.5 - 2043.9), forces))
    return make_samples(frames[:25], 5.0, 2.0, references) + make_samples(
        frames[25:], 5.0, 2.0, references, 1, weight=0.5
    )


def shapes(batches: list[Batch]) -> set[tuple]:
    return {(b.graph.neighbors.shape, b.energy.shape, b.graph.inner) for b in batches}


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_every_sample_is_in_one_batch(samples: list[Sample], batch_size: int) -> None:
    batches = make_batches(samples, batch_size, seed=0)
    seen = []
    for batch in batches:
        graph = batch.graph
        assert batch.energy.shape[0] == graph.n_graphs <= batch_size
        assert graph.n_slots % 4 == 0
        real = batch.index >= 0
        assert real.sum() <= batch_size
        np.testing.assert_array_equal(np.bincount(graph.owner, minlength=graph.n_graphs)[: graph.n_graphs] > 0, real)
        assert np.isnan(batch.energy[~real]).all()
        assert np.isnan(batch.forces[graph.species == 0]).all()
        assert np.isnan(batch.stress).all()
        assert (batch.weight[~real] == 0).all()
        for place in np.flatnonzero(real):
            number = batch.index[place]
            mine = graph.owner == place
            np.testing.assert_array_equal(graph.positions[mine], samples[number].graph.positions)
            np.testing.assert_array_equal(graph.species[mine], samples[number].graph.species)
            np.testing.assert_array_equal(batch.forces[mine], samples[number].forces)
            assert batch.energy[place] == pytest.approx(number, abs=1e-5), "relative to the references"
            assert (batch.head[place], batch.weight[place]) == ((0, 1.0) if number < 25 else (1, 0.5))
            seen.append(int(number))
    assert sorted(seen) == list(range(50))
    assert len(batches) <= -(-50 // batch_size) + 3


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_epochs_differ_but_not_in_shape(samples: list[Sample], batch_size: int) -> None:
    epochs = [make_batches(samples, batch_size, seed=seed) for seed in (0, 1, 2, None)]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert len(shapes(epochs[0])) <= 4
    assert all(shapes(epoch) == shapes(epochs[0]) for epoch in epochs)
    order = [np.concatenate([batch.index for batch in epoch]).tolist() for epoch in epochs]
    assert order[0] != order[1]
    again = make_batches(samples, batch_size, seed=0)
    assert np.concatenate([batch.index for batch in again]).tolist() == order[0]
    if batch_size > 1:
        assert len(shapes(epochs[0])) == 1
        company = [{frozenset(batch.index.tolist()) for batch in epoch} for epoch in epochs[:2]]
        assert len(company[0] & company[1]) <= 1, "batches are the same in every epoch"


def test_little_padding(samples: list[Sample]) -> None:
    """Sizes from 6 to 27 atoms: padding to the largest graph would waste 40 %, to the largest batch 20 %."""
    assert padding_waste(make_batches(samples, 10, seed=3)) < 0.12
    assert padding_waste(make_batches(samples[:1], 10)) < 8 / samples[0].graph.n_atoms


def test_bulk_and_clusters_get_shapes_of_their_own(samples: list[Sample]) -> None:
    ice = ice_ih(128)
    bulk = make_samples([Frame(ice, 0.0, np.zeros((384, 3)))] * 6, 3.0, 2.0, np.zeros(119))
    batches = make_batches([*samples, *bulk], 4, seed=0)
    assert 1 < len(shapes(batches)) <= 4
    assert padding_waste(batches) < 0.25
    mixed = [b for b in batches if (b.index >= 50).any() and ((b.index < 50) & (b.index >= 0)).any()]
    assert not mixed
    assert sum((b.index >= 0).sum() for b in batches) == 56


def test_published_clusters(ice_data: Path) -> None:
    frames = read_frames(
        ice_data / "clusters_4.0A.extxyz", energy_key="off23_energy", forces_key="off23_forces", index=":200"
    )
    references = np.zeros(119)
    references[[1, 8]] = -13.571964772646918, -2043.933693071156
    samples = make_samples(frames, 5.0, 3.0, references)
    per_molecule = [3 * sample.energy / sample.graph.n_atoms for sample in samples]
    assert -10.5 < min(per_molecule) < max(per_molecule) < -9.5, "water's atomisation energy is 9.5 to 10.4 eV"
    batches = make_batches(samples, 16, seed=0)
    assert len(shapes(batches)) == 1
    assert padding_waste(batches) < 0.1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no samples"):
        make_batches([], 4)
    damaged = Atoms("H", [[0, 0, np.nan]])
    frame = Frame(damaged, 0.0, np.zeros((1, 3)), info={"file": "water.extxyz", "frame": 12})
    with pytest.raises(ValueError, match=r"water\.extxyz, frame 12: The position of atom 0"):
        make_samples([frame], 5.0, 0.0, np.zeros(119))
    with pytest.raises(ValueError, match="Frame 0: Atoms 0 and 1 coincide"):
        make_samples([Frame(Atoms("H2"), 0.0, np.zeros((2, 3)))], 5.0, 0.0, np.zeros(119))
    good = make_samples([Frame(Atoms("H"), 0.0, np.zeros((1, 3)))], 5.0, 0.0, np.zeros(119))
    with pytest.raises(ValueError, match="batch size must be at least 1, not 0"):
        make_batches(good, 0)


@pytest.mark.parametrize("tiers", [2, 5])
def test_tiers_hold_the_same_structures(samples: list[Sample], tiers: int) -> None:
    """Atoms change places with everything that belongs to them; shapes are those of every epoch."""
    plan = plan_batches(samples, 7, tiers=tiers)
    hands = plan.epoch(0)
    batches = [plan.load(samples, indices) for indices in hands]
    untiered = [dataclasses.replace(indices, shape=dataclasses.replace(indices.shape, tiers=())) for indices in hands]
    plain = [plan.load(samples, indices) for indices in untiered]
    assert slot_waste(batches) < slot_waste(plain)
    assert len({batch.graph.tiers for batch in batches}) == plan.shapes
    for before, after in zip(plain, batches, strict=True):
        first = 0
        for atoms, slots in after.graph.tiers:
            assert (after.graph.neighbors[first : first + atoms, slots:] == GHOST).all()
            first += atoms
        assert first in (0, after.graph.n_atoms)
        np.testing.assert_array_equal(after.index, before.index)
        for graph in np.flatnonzero(before.index >= 0):
            old, new = (np.flatnonzero(batch.graph.owner == graph) for batch in (before, after))
            place = {tuple(row): k for k, row in zip(new, after.graph.positions[new], strict=True)}
            where = np.array([place[tuple(row)] for row in before.graph.positions[old]])
            np.testing.assert_array_equal(after.forces[where], before.forces[old])
            np.testing.assert_array_equal(after.graph.species[where], before.graph.species[old])
            lengths = [
                np.linalg.norm(np.asarray(edge_vectors(batch.graph)[0])[rows], axis=2)
                for batch, rows in ((before, old), (after, where))
            ]
            np.testing.assert_array_equal(lengths[0], lengths[1])


@pytest.mark.parametrize(
    ("radius", "batch_size"),
    [("4.0", 5), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("4.0", 16), ("5.0", 5))), ("5.0", 16)],
)
def test_little_of_a_batch_of_published_clusters_is_empty(ice_data: Path, radius: str, batch_size: int) -> None:
    """All empty slots count, those of padding atoms too; the shape holds every shuffle."""
    frames = read_frames(ice_data / f"clusters_{radius}A.extxyz", energy_key=None, forces_key=None, index=":400")
    samples = make_samples(frames, 5.0, 0.0, np.zeros(119))
    plan = plan_batches(samples, batch_size, tiers=8)
    assert plan.shapes == 1
    for seed in range(3):
        batches = [plan.load(samples, indices) for indices in plan.epoch(seed)]
        assert {batch.graph.tiers for batch in batches} == {plan.classes[0].shape.tiers}
        assert slot_waste(batches) <= 0.15
    assert slot_waste(make_batches(samples, batch_size, seed=0)) > slot_waste(batches)


def test_a_mixed_set_has_few_shapes(ice_data: Path) -> None:
    names = [f"clusters_{radius}A" for radius in ("4.0", "5.0", "5.5", "6.0")]
    samples = []
    for name, index in [*((name, ":40") for name in names), ("bulk", ":")]:
        frames = read_frames(ice_data / f"{name}.extxyz", energy_key=None, forces_key=None, index=index)
        samples += make_samples(frames, 5.0, 0.0, np.zeros(119))
    plan = plan_batches(samples, 8, tiers=8)
    epochs = [[plan.load(samples, indices) for indices in plan.epoch(seed)] for seed in range(2)]
    compiled = jax.jit(lambda batch: batch.graph.positions.sum())
    for batch in [*epochs[0], *epochs[1]]:
        compiled(batch)
    assert compiled._cache_size() == plan.shapes <= 4  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(slot_waste, epochs)) <= 0.15


def test_tiers_that_are_too_small_are_refused(samples: list[Sample]) -> None:
    graph = samples[0].graph
    with pytest.raises(ValueError, match=r"do not hold \d+ atoms with up to \d+ neighbours"):
        in_tiers(graph, ((graph.n_atoms, 1),))
    with pytest.raises(ValueError, match="do not hold"):
        in_tiers(graph, ((graph.n_atoms - 1, graph.n_slots),))


def test_a_plan_knows_its_epochs_beforehand(samples: list[Sample]) -> None:
    plan = plan_batches(samples, 7, tiers=3)
    assert plan.steps == len(plan.epoch()) >= 8
    assert 1 <= plan.shapes <= 4
    for seed in (0, 1, None):
        hands = plan.epoch(seed)
        assert len(hands) == plan.steps
        assert sorted(number for indices in hands for number in indices.samples) == list(range(50))
        loaded = [plan.load(samples, indices) for indices in hands]
        for indices, batch, other in zip(hands, loaded, make_batches(samples, 7, seed=seed, tiers=3), strict=True):
            assert (batch.graph.n_atoms, batch.graph.n_graphs) == (indices.shape.n_atoms, indices.shape.n_graphs)
            assert batch.graph.inner == indices.shape.inner >= max(samples[k].graph.inner for k in indices.samples)
            np.testing.assert_array_equal(batch.index, other.index)
            np.testing.assert_array_equal(batch.graph.neighbors, other.graph.neighbors)


def test_groups_bound_every_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at random, of a distribution with a long tail: balanced groups waste less than one group for all."""
    rng = np.random.default_rng(1)
    atoms = np.sort(rng.lognormal(3.0, 0.25, 2000).astype(np.int32))
    degrees = [rng.integers(1, 30, number) for number in atoms]
    crowded = np.array([[np.sum(degree > LEVEL * k) for k in range(15)] for degree in degrees])
    sizes = atoms, np.array([degree.max() for degree in degrees]), np.zeros_like(atoms)
    counts = Counts(*sizes, crowded, np.zeros((len(atoms), 15), np.uint8))
    classes = size_classes(counts, 10, tiers=4)
    assert sorted(k for one in classes for k in one.members) == list(range(2000))
    assert max(len(one.groups) for one in classes) > 1
    for one in classes:
        room = np.cumsum([0, *(number for number, _ in one.shape.tiers)])
        assert room[-1] == one.shape.n_atoms
        for indices in [indices for seed in range(10) for indices in one.deal(np.random.default_rng(seed))]:
            degree = np.sort(np.concatenate([degrees[number] for number in indices.samples]))[::-1]
            assert len(degree) <= one.shape.n_atoms
            for (_, slots), first in zip(one.shape.tiers, room, strict=False):
                assert not (degree[first:] > slots).any()

    def work(classes: tuple[SizeClass, ...]) -> int:
        return sum(one.n_batches * sum(atoms * slots for atoms, slots in one.shape.tiers) for one in classes)

    monkeypatch.setattr(jaxmlip.systems.plan, "GROUPS", 1)
    assert work(classes) < 0.99 * work(size_classes(counts, 10, tiers=4))


def test_stream_yields_the_same_batches(samples: list[Sample]) -> None:
    plan = plan_batches(samples, 7, tiers=3)
    for start, ahead in [(0, 2), (0, 100), (3, 1), (plan.steps, 2)]:
        expected = make_batches(samples, 7, seed=5, tiers=3)[start:]
        streamed = list(stream(plan, samples, 5, ahead=ahead, start=start))
        assert len(streamed) == len(expected)
        for one, other in zip(streamed, expected, strict=True):
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="At least 1 batch has to be made ahead, not 0"):
        stream(plan, samples, ahead=0)


@dataclasses.dataclass(frozen=True)
class WatchedPlan(BatchPlan):
    """A plan that notes which hands were loaded, and cannot load one of them."""

    loaded: list[BatchIndices] = dataclasses.field(default_factory=list)
    broken: BatchIndices | None = None

    def load(self, samples: Sequence[Sample], indices: BatchIndices) -> Batch:
        self.loaded.append(indices)
        if indices == self.broken:
            raise ValueError("this indices is broken")
        return super().load(samples, indices)


def threads() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_stream_works_ahead_and_no_further(samples: list[Sample]) -> None:
    plan = WatchedPlan(**vars(plan_batches(samples, 7)))
    batches = stream(plan, samples, 0, ahead=2)
    assert not plan.loaded, "nothing is made before it is asked for"
    next(batches)
    patience = time.monotonic() + 60
    while len(plan.loaded) < 3 and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(0.1)
    assert plan.loaded == plan.epoch(0)[:3], "the batch in use, and two ahead"
    assert threads() == 1
    batches.close()
    assert threads() == 0
    assert len(plan.loaded) == 3


def test_an_error_is_raised_where_its_batch_is_asked_for(samples: list[Sample]) -> None:
    plain = plan_batches(samples, 7)
    plan = WatchedPlan(**vars(plain), broken=plain.epoch(0)[2])
    batches = stream(plan, samples, 0, ahead=3)
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match="this indices is broken"):
        next(batches)
    assert threads() == 0
