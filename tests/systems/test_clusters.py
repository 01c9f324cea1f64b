"""Whole molecules and clusters, held to brute force and to the published ice data."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk as crystal_of
from ase.build import molecule
from ase.geometry import find_mic
from ase.io import iread

from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.water import molecules_of

RADIUS = 5.0


def shaken(molecules: int, seed: int) -> Atoms:
    """Ice with thermal noise in a sheared cell, its atoms shuffled and wrapped one by one: molecules cut by faces."""
    rng = np.random.default_rng(seed)
    ice = ice_ih(molecules, seed=seed)
    ice.set_cell(ice.cell.array @ (np.eye(3) + np.array([[0, 0.05, 0], [0.02, 0, -0.04], [0, 0, 0]])), scale_atoms=True)
    ice.positions += rng.normal(loc=[1.0, 2.0, 3.0], scale=0.05, size=(len(ice), 3))
    ice.wrap()
    return ice[rng.permutation(len(ice))]


@pytest.fixture(scope="module")
def bulk() -> list[Atoms]:
    return [shaken(96, 0), shaken(96, 1)]


def test_clusters_are_pieces_of_their_parent(bulk: list[Atoms]) -> None:
    clusters = cut_clusters(bulk, RADIUS, 24, seed=3)
    centres = [(c.info["source_frame"], c.info["centre_atom"]) for c in clusters]
    assert len(set(centres)) == 24
    assert {frame for frame, _ in centres} == {0, 1}
    for cluster, (frame, centre) in zip(clusters, centres, strict=True):
        parent = bulk[frame]
        assert not cluster.pbc.any()
        assert not cluster.cell.array.any()
        assert cluster.get_chemical_symbols() == ["O", "H", "H"] * (len(cluster) // 3)
        np.testing.assert_array_equal(cluster.positions[0], 0.0)
        np.testing.assert_array_equal(molecules_of(cluster), np.arange(len(cluster)).reshape(-1, 3))

        # Every atom of the cluster is an atom of the parent, up to a lattice vector; each at most once.
        moved = cluster.positions + parent.positions[centre]
        differences = moved[:, None] - parent.positions[None]
        _, distances = find_mic(differences.reshape(-1, 3), parent.cell)
        distances = distances.reshape(len(cluster), len(parent))
        assert distances.min(axis=1).max() < 1e-9
        of_parent = distances.argmin(axis=1)
        assert len(set(of_parent.tolist())) == len(cluster)

        # Brute force over the minimum image: the same molecules.
        oxygens = np.flatnonzero(parent.numbers == 8)
        near = oxygens[parent.get_distances(centre, oxygens, mic=True) <= RADIUS]
        assert sorted(of_parent[::3].tolist()) == sorted(near.tolist())
        inner = np.linalg.norm(cluster.positions[::3], axis=1)
        assert (np.diff(inner) >= 0).all()


def test_seed_and_exhaustion(bulk: list[Atoms]) -> None:
    first, again, other = (cut_clusters(bulk, 3.5, 10, seed=seed) for seed in (0, 0, 1))
    assert [c.info for c in first] == [c.info for c in again]
    np.testing.assert_array_equal(first[4].positions, again[4].positions)
    assert [c.info for c in first] != [c.info for c in other]
    everyone = cut_clusters(bulk, 3.5, 192)
    assert len({(c.info["source_frame"], c.info["centre_atom"]) for c in everyone}) == 192
    with pytest.raises(ValueError, match="193 clusters are wanted, but 2 structures have only 192 molecules"):
        cut_clusters(bulk, 3.5, 193)


def test_droplet_without_periodicity(bulk: list[Atoms]) -> None:
    droplet = cut_clusters(bulk, RADIUS, 1)[0]
    inner = cut_clusters([droplet], 3.2, len(droplet) // 3)
    assert max(len(cluster) for cluster in inner) == 3 * 5
    whole = cut_clusters([droplet], 50.0, 1)[0]
    assert len(whole) == len(droplet)


def test_two_images_of_one_molecule_are_refused() -> None:
    small = ice_ih(32)
    assert len(cut_clusters([small], 4.0, 32)) == 32
    with pytest.raises(
        ValueError, match=r"Structure 0: A cluster of radius 5 Å does not fit into the cell of 9.04 × 7.83"
    ):
        cut_clusters([small], RADIUS, 1)
    # A central molecule meets its own image at the full side.
    lone = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], cell=[6, 7, 8], pbc=True)
    assert len(cut_clusters([lone], 5.9, 1)[0]) == 3
    with pytest.raises(ValueError, match=r"radius 6\.1 Å does not fit"):
        cut_clusters([lone], 6.1, 1)


def test_broken_molecules_are_refused() -> None:
    broken = ice_ih(16)
    del broken[7]
    with pytest.raises(ValueError, match="Structure 1: Oxygen atom 6 has 1 hydrogens instead of 2"):
        cut_clusters([ice_ih(16), broken], 3.0, 31)
    damaged = ice_ih(16)
    damaged.positions[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"Structure 0: The position of atom 5 .* not finite"):
        cut_clusters([damaged], 3.0, 1)
    with pytest.raises(ValueError, match=r"Structure 0: .* is not made of molecules"):
        cut_clusters([crystal_of("NaCl", "rocksalt", a=5.64)], 3.0, 1)


@pytest.mark.parametrize(
    ("name", "first"),
    [("CO2", "COO"), ("NH3", "NHHH"), ("CH3OH", "OHC"), ("C6H6", "C"), ("CH3CH2OH", "C"), ("Ne", "Ne")],
)
def test_clusters_of_other_molecules(name: str, first: str) -> None:
    """Wrapped into a sheared cell, so that molecules are cut by its faces: as they were, each around its centre."""
    single = molecule(name) if name != "Ne" else Atoms("Ne")
    cell = np.array([[7.5, 0.0, 0.0], [0.8, 7.2, 0.0], [-0.6, 0.5, 8.0]])
    crystal = Atoms(cell=3 * cell, pbc=True)
    for place in np.ndindex(3, 3, 3):
        one = single.copy()
        one.translate(np.array(place) @ cell - single.positions.mean(axis=0) + 0.1)
        crystal += one
    crystal.wrap()
    clusters = cut_clusters([crystal], radius=8.5, number=5, seed=0)
    for cluster in clusters:
        assert len(cluster) % len(single) == 0
        symbols = cluster.get_chemical_symbols()
        centres = cluster.positions[:: len(single)]
        assert "".join(symbols).startswith(first)
        np.testing.assert_array_equal(centres[0], 0.0)
        assert (np.diff(np.linalg.norm(centres, axis=1)) >= -1e-9).all()
        assert np.linalg.norm(centres, axis=1).max() <= 8.5
        for number in range(len(cluster) // len(single)):
            own = cluster[number * len(single) : (number + 1) * len(single)]
            assert own.get_chemical_symbols() == symbols[: len(single)]
            distances = np.sort(own.get_all_distances(), axis=None)
            np.testing.assert_allclose(distances, np.sort(single.get_all_distances(), axis=None), atol=1e-9)


def test_published_ice(ice_data: Path) -> None:
    """The mean size of 5 Å clusters is that of the published ones, cut from the same simulations: 19.1 molecules."""
    frames = list(iread(ice_data / "bulk.extxyz"))
    for frame in frames:
        assert len(molecules_of(frame)) == 128
    ours = np.array([len(cluster) // 3 for cluster in cut_clusters(frames, RADIUS, 600)])
    theirs = np.array([len(cluster) // 3 for cluster in iread(ice_data / "clusters_5.0A.extxyz")])
    sigma = np.hypot(ours.std(), theirs.std()) / np.sqrt(600)
    assert sigma < 0.1
    assert abs(ours.mean() - theirs.mean()) < 4 * sigma
    assert theirs.mean() == pytest.approx(19.1, abs=0.05)


def test_heavy_water_stays_heavy() -> None:
    ice = ice_ih(16, seed=0)
    ice.set_array("masses", np.where(ice.numbers == 1, 2.014, 15.999 + 0.01 * np.arange(48)), float, ())
    (cluster,) = cut_clusters([ice], radius=3.2, number=1, seed=0)
    assert (cluster.get_masses()[cluster.numbers == 1] == 2.014).all()
    assert cluster.get_masses()[0] == ice.get_masses()[cluster.info["centre_atom"]]
