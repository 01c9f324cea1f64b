"""Stores of frames: what is written comes back, lazily, and damage is named."""

import dataclasses
import json
import multiprocessing
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from furnished import assert_furnished, furnished

from jaxmlip.systems.batches import JoinedSamples, LazySamples, Recipe, Sample, make_samples, plan_batches, stream
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame, iterate_frames, read_frames, split, write_frames
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.plan import Counts
from jaxmlip.systems.store import FrameStore, open_frames, write_store

REFERENCES = np.zeros(119)


def made_up_frames(number: int) -> list[Frame]:
    """Bulk ice and clusters in turn, with labels that tell them apart; every third has no forces, some a stress."""
    ice = ice_ih(16, seed=0)
    clusters = cut_clusters([ice_ih(96, seed=0)], radius=3.2, number=8, seed=0)
    rng = np.random.default_rng(0)
    frames = []
    for k in range(number):
        atoms = (ice if k % 4 == 0 else clusters[k % 8]).copy()
        atoms.rattle(0.05, seed=k)
        forces = np.full((len(atoms), 3), np.nan) if k % 3 == 0 else rng.normal(size=(len(atoms), 3))
        stress = rng.normal(size=(3, 3)) if k % 4 == 0 else np.full((3, 3), np.nan)
        frames.append(Frame(atoms, float(k), forces, stress + stress.T, {"kind": "ice", "step": np.int64(k)}))
    return frames


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return made_up_frames(40)


def test_repr_is_short(path: Path) -> None:
    store = FrameStore(path)
    assert repr(store) == f"<FrameStore: {path}, 40 frames>"
    assert repr(store[:3]) == f"<FrameStore: {path}, 3 frames>"


@pytest.fixture(scope="module")
def path(frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "ice.h5"
    assert write_store(path, iter(frames)) == 40
    return path


def assert_same(one: Frame, other: Frame) -> None:
    np.testing.assert_array_equal(one.atoms.numbers, other.atoms.numbers)
    np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
    np.testing.assert_array_equal(one.atoms.cell.array, other.atoms.cell.array)
    np.testing.assert_array_equal(one.atoms.pbc, other.atoms.pbc)
    np.testing.assert_array_equal(one.forces, other.forces)
    np.testing.assert_array_equal(one.stress, other.stress)
    assert one.energy == other.energy


def test_frames_come_back_to_the_last_digit(frames: list[Frame], path: Path) -> None:
    store = FrameStore(path)
    assert len(store) == 40
    assert [entry.name for entry in path.parent.iterdir()] == ["ice.h5"], "no draft is left"
    for number, (one, other) in enumerate(zip(frames, store, strict=True)):
        assert_same(one, other)
        assert other.info == {"file": str(path), "frame": number, "kind": "ice", "step": number}
    assert_same(store[-1], frames[39])
    with pytest.raises(IndexError, match=r"ice\.h5 has 40 frames, and 40 is none of them"):
        store[40]
    assert {"jaxmlip", "numpy", "h5py", "ase"} <= store.versions.keys()


def test_all_that_is_said_of_a_structure_is_kept(tmp_path: Path) -> None:
    atoms = furnished()
    write_store(tmp_path / "a.h5", [Frame(atoms, -1.0, np.zeros((3, 3)), info={"kind": "water"})] * 2)
    for back in FrameStore(tmp_path / "a.h5"):
        assert_furnished(back.atoms, atoms)
        assert back.info == {"file": str(tmp_path / "a.h5"), "frame": back.info["frame"], "kind": "water"}
        assert back.atoms.info["kind"] == "water"


def test_a_store_of_the_first_layout_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote it: the text of a frame is its info and nothing else."""
    path = tmp_path / "old.h5"
    frames = made_up_frames(5)
    write_store(path, frames)
    texts = [json.dumps({"kind": "ice", "step": k, "info": "a word of that name"}).encode() for k in range(5)]
    with h5py.File(path, "a") as file:
        file.attrs["layout"] = 1
        del file["info"], file["info_offsets"]
        file["info"] = np.frombuffer(b"".join(texts), np.uint8)
        file["info_offsets"] = np.cumsum([0, *map(len, texts)])
    for number, (one, other) in enumerate(zip(frames, FrameStore(path), strict=True)):
        assert_same(one, other)
        assert other.info == {
            "file": str(path),
            "frame": number,
            "kind": "ice",
            "step": number,
            "info": "a word of that name",
        }


def test_stress_is_seen_where_it_is_there(frames: list[Frame], tmp_path: Path) -> None:
    for prefix in ("", "dft_"):
        write_frames(tmp_path / "a.extxyz", frames[:6], prefix=prefix)
        keys = {label: prefix + label for label in ("energy", "forces", "stress")}
        named: dict[str, Any] = {f"{label}_key": key for label, key in keys.items()}
        write_store(tmp_path / "a.h5", iterate_frames(tmp_path / "a.extxyz", **named), keys=keys)
        for one, other in zip(frames[:6], open_frames(tmp_path / "a.h5"), strict=True):
            np.testing.assert_array_equal(one.stress, other.stress)
        assert np.isnan(open_frames(tmp_path / "a.h5", stress_key=None)[0].stress).all()


def test_views_read_nothing(frames: list[Frame], path: Path) -> None:
    store = FrameStore(path)
    view = store[30:10:-2].select([3, 0])
    training, validation = split(store, [0.75, 0.25], seed=1)
    assert isinstance(training, FrameStore)
    assert training.atoms.tolist() == [len(frame.atoms) for frame in split(frames, [0.75, 0.25], seed=1)[0]]
    assert len(training) + len(validation) == 40
    assert store._open is view._open is training._open is None
    assert_same(view[0], frames[24])
    assert_same(view[1], frames[30])
    assert store.species == [1, 8]
    oxygen = ice_ih(16)[[0]]
    write_store(path.with_name("mixed.h5"), [*frames[:2], Frame(oxygen, 0.0, np.zeros((1, 3)))])
    assert FrameStore(path.with_name("mixed.h5")).select([2]).species == oxygen.numbers.tolist()


def _energy(store: FrameStore) -> float:
    return store[7].energy


def test_a_store_travels_to_other_processes(path: Path) -> None:
    store = FrameStore(path)
    assert store[7].energy == 7.0  # open here
    assert pickle.loads(pickle.dumps(store))[7].energy == 7.0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_energy, [store]) == [7.0]
    assert store._open is not None
    here, file, arrays = store._open
    store._open = here + 1, file, arrays  # as a fork leaves it behind
    assert store[7].energy == 7.0
    assert store._open[2] is not arrays, "the parent's handle is not used"


def test_a_failed_write_leaves_the_old_store(frames: list[Frame], tmp_path: Path) -> None:
    path = tmp_path / "ice.h5"
    write_store(path, frames[:2])

    def breaking() -> Iterator[Frame]:
        yield frames[0]
        raise RuntimeError("the source ends")

    with pytest.raises(RuntimeError, match="the source ends"):
        write_store(path, breaking())
    with pytest.raises(ValueError, match=r"There are no frames to write to .*ice\.h5"):
        write_store(path, [])
    strange = Frame(frames[0].atoms, 0.0, frames[0].forces, info={"file": "a.xyz", "frame": 3, "what": {1, 2}})
    with pytest.raises(ValueError, match=r"a\.xyz, frame 3: its info cannot be written as JSON"):
        write_store(path, [strange])
    assert len(FrameStore(path)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["ice.h5"]


def test_files_that_are_no_stores(frames: list[Frame], path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("energies")
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "later.h5").write_bytes(whole)
    with h5py.File(tmp_path / "later.h5", "a") as file:
        file.attrs["layout"] = 7
    for name, sentence in [
        ("cut.h5", r"cut\.h5 cannot be read as a store of frames: it is truncated, damaged or no HDF5 file"),
        ("text.h5", r"text\.h5 cannot be read as a store"),
        ("run.h5", r"run\.h5 is an HDF5 file, but no store of frames"),
        ("later.h5", r"later\.h5 is a store of layout 7, and this version of jaxmlip reads layouts 1 to 2"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            FrameStore(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere\.h5"):
        FrameStore(tmp_path / "nowhere.h5")
    damaged = bytearray(whole)
    with h5py.File(path) as file:
        positions = file["positions"]
        assert isinstance(positions, h5py.Dataset)
        offset = positions.id.get_chunk_info(0).byte_offset
    assert offset is not None
    damaged[offset : offset + 64] = bytes(64)
    (tmp_path / "damaged.h5").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.h5, frame 0 cannot be read"):
        FrameStore(tmp_path / "damaged.h5")[0]


def test_one_function_opens_all(frames: list[Frame], tmp_path: Path) -> None:
    write_frames(tmp_path / "ice.extxyz", frames[:6], prefix="high_")
    keys = {"energy_key": "high_energy", "forces_key": None}
    write_store(tmp_path / "ice.h5", iterate_frames(tmp_path / "ice.extxyz", **keys), keys={"energy": "high_energy"})
    lists = [open_frames(tmp_path / name, **keys, index="1:5:2") for name in ("ice.extxyz", "ice.h5")]
    for one, other in zip(*lists, strict=True):
        assert_same(one, other)
        assert one.info == other.info, "both know where the frame was first read from"
    assert isinstance(lists[1], FrameStore)
    write_store(tmp_path / "all.h5", frames)
    hidden = open_frames(tmp_path / "all.h5", energy_key=None, forces_key=None, stress_key=None)[4]
    assert np.isnan([hidden.energy, *hidden.forces.ravel(), *hidden.stress.ravel()]).all()
    assert_same(open_frames(tmp_path / "all.h5", stress_key="stress")[4], frames[4])
    assert len(open_frames(tmp_path / "ice.h5")) == 6
    with pytest.raises(ValueError, match=r"ice\.h5 has no 'low_energy': it was made with 'high_energy' as its energy"):
        open_frames(tmp_path / "ice.h5", energy_key="low_energy")
    with pytest.raises(ValueError, match=r"ice\.h5 has 6 frames, and none of them is within index 9:"):
        open_frames(tmp_path / "ice.h5", index="9:")


def test_counts_are_kept_beside_the_store(frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ice.h5"
    write_store(path, frames)
    eager = plan_batches(make_samples(frames, 4.0, 2.0, REFERENCES), 4, tiers=3)
    samples = LazySamples(FrameStore(path), Recipe(4.0, 2.0, REFERENCES))
    assert plan_batches(samples, 4, tiers=3).epoch(1) == eager.epoch(1)
    beside = path.with_name("ice.h5.counts-4.0-2.0.npz")
    assert beside.is_file()

    read = []

    def noted(self: FrameStore, begin: int, end: int) -> list[Frame]:
        read.extend(range(begin, end))
        return frames[begin:end]

    monkeypatch.setattr(FrameStore, "_read", noted)
    view = LazySamples(FrameStore(path).select([5, 3]), Recipe(4.0, 2.0, REFERENCES))
    read.clear()  # beartype has looked at some
    assert view.counts.atoms.tolist() == [len(frames[5].atoms), len(frames[3].atoms)]
    assert not read, "counts beside the file are taken"
    view = LazySamples(FrameStore(path).select([5, 3]), Recipe(3.0, 2.0, REFERENCES))
    read.clear()
    assert view.counts.slots.max() < samples.counts.slots.max()
    assert sorted(read) == list(range(40)), "another cutoff, another count"
    monkeypatch.undo()

    for damage in (b"", beside.read_bytes()[:100]):
        beside.write_bytes(damage)
        again = FrameStore(path).counts(4.0, 2.0)
        np.testing.assert_array_equal(again.crowded, samples.counts.crowded)
    write_store(path, frames[:10])
    assert len(FrameStore(path).counts(4.0, 2.0).atoms) == 10, "counts of the store that was there before"


def test_lazy_samples_are_those_of_a_list(frames: list[Frame], path: Path) -> None:
    recipe = Recipe(4.0, 2.0, np.arange(119.0), head=1, weight=0.5, dtype=np.float64)
    eager = make_samples(frames, 4.0, 2.0, np.arange(119.0), 1, weight=0.5, dtype=np.float64)
    low = make_samples(frames[:5], 4.0, 2.0, REFERENCES)
    store = FrameStore(path)
    for samples, expected in [
        (low + LazySamples(store, recipe), low + eager),
        (LazySamples(frames, recipe) + low, eager + low),
        (JoinedSamples([low, eager]), low + eager),
    ]:
        assert len(samples) == 45
        for number in (0, 4, 5, 39, 40, 44, -1):
            one, other = samples[number], expected[number]
            np.testing.assert_array_equal(one.graph.neighbors, other.graph.neighbors)
            np.testing.assert_array_equal(one.graph.positions, other.graph.positions)
            np.testing.assert_array_equal(one.forces, other.forces)
            assert (one.energy, one.head, one.weight) == (other.energy, other.head, other.weight)
        plan, same = plan_batches(samples, 8, tiers=4), plan_batches(expected, 8, tiers=4)
        assert plan.epoch(3) == same.epoch(3)
    assert [sample.energy for sample in LazySamples(store, recipe)[2:4]] == [eager[2].energy, eager[3].energy]
    assert isinstance(LazySamples(store, recipe).counts, Counts)
    with pytest.raises(IndexError):
        LazySamples(store, recipe)[40]


def test_streaming_holds_the_samples_of_few_batches(
    frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reduced form of experiments/benchmarks/large_set.py: what is held does not grow with the set."""
    path = tmp_path / "large.h5"
    write_store(path, (dataclasses.replace(frames[k % 40], energy=float(k)) for k in range(600)))
    samples = LazySamples(FrameStore(path), Recipe(3.0, 0.0, REFERENCES))
    plan = plan_batches(samples, 8)
    made: list[weakref.ref] = []
    make = Recipe.make

    def watched(self: Recipe, frame: Frame, number: int) -> Sample:
        sample = make(self, frame, number)
        made.append(weakref.ref(sample))
        return sample

    monkeypatch.setattr(Recipe, "make", watched)
    held, energies = [], []
    for batch in stream(plan, samples, 0, ahead=2):
        held.append(sum(reference() is not None for reference in made))
        energies += batch.energy[batch.index >= 0].tolist()
    assert sorted(energies) == list(range(600))
    assert max(held) <= 3 * 8, "more than the batches under way"


def test_published_clusters_in_a_store(ice_data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"energy_key": "off23_energy", "forces_key": "off23_forces"}
    source = ice_data / "clusters_4.0A.extxyz"
    write_store(tmp_path / "clusters.h5", iterate_frames(source, **keys), keys={"energy": "off23_energy"})
    store = FrameStore(tmp_path / "clusters.h5")
    frames = read_frames(source, **keys)
    assert len(store) == len(frames) == 800
    for number in (0, 333, 799):
        assert_same(store[number], frames[number])
        assert store[number].info == frames[number].info
