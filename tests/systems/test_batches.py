"""Samples and the plan that deals them into batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.systems.batches import (
    Batch,
    Sample,
    make_batches,
    make_samples,
    padding_waste,
    plan_batches,
    slot_waste,
)
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.graph import GHOST, edge_vectors, in_tiers
from jaxmlip.systems.ice import ice_ih


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
    plain = make_batches(samples, 7, seed=0)
    batches = make_batches(samples, 7, seed=0, tiers=tiers)
    assert slot_waste(batches) < slot_waste(plain)
    epochs = [make_batches(samples, 7, seed=seed, tiers=tiers) for seed in range(3)]
    assert len({batch.graph.tiers for epoch in epochs for batch in epoch}) <= 2
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


def test_tiers_of_published_clusters(ice_data: Path) -> None:
    """Half of a dense batch of clusters is empty slots; in tiers, less than 15 % are."""
    keys = {"energy_key": "off23_energy", "forces_key": "off23_forces"}
    frames = read_frames(ice_data / "clusters_5.0A.extxyz", **keys, index=":100")
    samples = make_samples(frames, 5.0, 0.0, np.zeros(119))
    assert slot_waste(make_batches(samples, 5, seed=0)) > 0.5
    assert slot_waste(make_batches(samples[:5], 5, tiers=5)) < 0.15
    epochs = [make_batches(samples, 5, seed=seed, tiers=5) for seed in range(20)]
    assert slot_waste(epochs[0]) < 0.25
    assert len({batch.graph.tiers for epoch in epochs for batch in epoch}) <= 2


def test_tiers_that_are_too_small_are_refused(samples: list[Sample]) -> None:
    graph = samples[0].graph
    with pytest.raises(ValueError, match=r"do not hold \d+ atoms with up to \d+ neighbours"):
        in_tiers(graph, ((graph.n_atoms, 1),))
    with pytest.raises(ValueError, match="do not hold"):
        in_tiers(graph, ((graph.n_atoms - 1, graph.n_slots),))


def test_a_plan_knows_its_epochs_beforehand(samples: list[Sample]) -> None:
    plan = plan_batches(samples, 7, tiers=3)
    assert plan.steps == 8
    assert plan.shapes == 1
    for seed in (0, 1, None):
        hands = plan.epoch(seed)
        assert len(hands) == plan.steps
        assert sorted(number for hand in hands for number in hand.samples) == list(range(50))
        loaded = [plan.load(samples, hand) for hand in hands]
        for hand, batch, other in zip(hands, loaded, make_batches(samples, 7, seed=seed, tiers=3), strict=True):
            assert (batch.graph.n_atoms, batch.graph.n_graphs) == (hand.shape.n_atoms, hand.shape.n_graphs)
            assert batch.graph.inner == max(sample.graph.inner for sample in samples)
            np.testing.assert_array_equal(batch.index, other.index)
            np.testing.assert_array_equal(batch.graph.neighbors, other.graph.neighbors)


def test_a_batch_beyond_its_tiers_keeps_all_slots(samples: list[Sample]) -> None:
    plan = plan_batches(samples, 7, tiers=3)
    hand = plan.epoch(0)[0]
    first, *_, last = hand.shape.tiers
    poor = dataclasses.replace(hand.shape, tiers=((hand.shape.n_atoms, last[1]),))
    batch = plan.load(samples, dataclasses.replace(hand, shape=poor))
    assert batch.graph.tiers == ()
    assert batch.graph.n_slots == first[1]
    rich = plan.load(samples, hand)
    assert rich.graph.tiers == hand.shape.tiers
    assert (batch.graph.neighbors != GHOST).sum() == (rich.graph.neighbors != GHOST).sum()
