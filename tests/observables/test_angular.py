"""Angular distributions against MDAnalysis, tetrahedral order against ASE's neighbours and crystals."""

from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from MDAnalysis.lib.distances import calc_angles, capped_distance
from test_structure import TRICLINIC, as_frame

from jaxmlip.observables.angular import AngularDistribution, TetrahedralDistribution, TetrahedralOrder
from jaxmlip.observables.neighborhood import smeared_histogram
from jaxmlip.systems.ice import ice_ih
from jaxmlip.testing import check_observable


@pytest.fixture(scope="module")
def crowd() -> Atoms:
    """Water-like composition, in an orthorhombic box, never wrapped."""
    rng = np.random.default_rng(8)
    return Atoms("O30H60", positions=rng.uniform(-1, 2, size=(90, 3)) * [9, 10, 11], cell=[9.0, 10.0, 11.0], pbc=True)


@pytest.mark.parametrize("triple", [("O", "O", "O"), ("H", "O", "H"), ("H", "O", "O"), ("O", "H", "O")])
def test_equals_mdanalysis(crowd: Atoms, triple: tuple[str, str, str]) -> None:
    """Every pair of neighbours of every centre, by another's distances and angles."""
    adf = AngularDistribution(*triple, r_max=2.6, bins=24, neighbors=40)
    ours = np.asarray(jax.jit(adf.per_frame)(as_frame(crowd)))
    box = np.array([9.0, 10.0, 11.0, 90.0, 90.0, 90.0], np.float32)
    wrapped = crowd.get_positions(wrap=True).astype(np.float32)
    centres = np.flatnonzero(np.array(crowd.symbols) == triple[1])
    pairs = capped_distance(wrapped[centres], wrapped, 2.6, min_cutoff=1e-3, box=box, return_distances=False)
    found = []
    for place, centre in enumerate(centres):
        around = pairs[pairs[:, 0] == place, 1]
        ends = [around[np.array(crowd.symbols)[around] == symbol] for symbol in (triple[0], triple[2])]
        both = [(i, k) for i in ends[0] for k in ends[1] if (i < k if triple[0] == triple[2] else i != k)]
        for i, k in both:
            found.append((wrapped[i], wrapped[centre], wrapped[k]))
    theirs = np.degrees(calc_angles(*np.array(found).swapaxes(0, 1), box=box))
    wanted = np.histogram(theirs, bins=adf.edges)[0] / len(theirs) / 7.5
    assert len(theirs) > 25
    assert np.abs(ours - wanted).sum() * 7.5 * len(theirs) < 2.5, "one angle may be on the other side of a border"
    assert ours.sum() * 7.5 == pytest.approx(1.0, rel=1e-5)


def test_isotropic_gas() -> None:
    """sin(θ)/2 per radian; a triclinic cell narrower than two ranges, where images are neighbours."""
    rng = np.random.default_rng(1)
    adf = AngularDistribution("O", "O", "O", r_max=6.0, bins=12, neighbors=60)
    compiled = jax.jit(adf.per_frame)
    gases = [Atoms("O20", positions=rng.uniform(size=(20, 3)) @ TRICLINIC, cell=TRICLINIC, pbc=True) for _ in range(60)]
    found = np.mean([compiled(as_frame(gas)) for gas in gases], axis=0) * 15.0
    shares = -0.5 * np.diff(np.cos(np.radians(adf.edges)))
    # Images of one atom lie in fixed directions from each other: the lattice shows a little.
    np.testing.assert_allclose(found, shares, rtol=0.06)


def test_crystals_have_their_angles() -> None:
    """60, 90, 120 and 180 degrees in an fcc crystal, as often as its neighbours say; straight ones have derivatives."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    adf = AngularDistribution("Ar", "Ar", "Ar", r_max=4.2, bins=60, smearing=2.0, width=0.1)
    found = np.asarray(jax.jit(adf.per_frame)(as_frame(atoms))) * 3.0
    for angle, pairs in ((60, 24), (90, 12), (120, 24), (180, 6)):
        near = np.abs(adf.axis - angle) < 9
        assert found[near].sum() == pytest.approx(pairs / 66, rel=1e-3), angle
    frame = as_frame(atoms)

    def functional(positions: Any) -> Any:
        return (adf.per_frame(frame.replace(positions=positions)) ** 2).sum()

    assert np.isfinite(jax.jit(jax.grad(functional))(frame.positions)).all()


def test_smearing_keeps_the_sum() -> None:
    """Walls reflect; without them what is beyond is lost; both are the histogram where the smearing is small."""
    values, edges = np.array([0.05, 0.5, 0.98], np.float32), np.linspace(0.0, 1.0, 11)
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    assert float(smeared_histogram(values, weights, edges, 0.3, walls=True).sum()) == pytest.approx(6.0, rel=1e-3)
    assert float(smeared_histogram(values, weights, edges, 0.3).sum()) < 5.0
    sharp = smeared_histogram(values + 0.01, weights, edges, 1e-4)
    np.testing.assert_allclose(sharp, smeared_histogram(values + 0.01, weights, edges, 0.0), atol=1e-5)


def errington_debenedetti(atoms: Atoms, symbol: str) -> np.ndarray:
    """Of each atom, in plain loops over ASE's neighbours."""
    mine = atoms[np.array(atoms.symbols) == symbol]
    i, distance, vectors = neighbor_list("idD", mine, 6.0)
    order = []
    for atom in range(len(mine)):
        around = vectors[i == atom][np.argsort(distance[i == atom])[:4]]
        unit = around / np.linalg.norm(around, axis=1, keepdims=True)
        total = sum((unit[j] @ unit[k] + 1 / 3) ** 2 for j in range(3) for k in range(j + 1, 4))
        order.append(1 - 3 / 8 * total)
    return np.array(order)


def test_tetrahedral_order_of_a_crowd(crowd: Atoms) -> None:
    wanted = errington_debenedetti(crowd, "O")
    tetrahedral = TetrahedralOrder("O")
    assert float(jax.jit(tetrahedral.per_frame)(as_frame(crowd))) == pytest.approx(wanted.mean(), abs=1e-5)
    distribution = TetrahedralDistribution("O", bins=20, q_min=-1.0)
    found = np.asarray(jax.jit(distribution.per_frame)(as_frame(crowd)))
    np.testing.assert_allclose(found, np.histogram(wanted, distribution.edges)[0] / 30 * 10, atol=1e-5)


def test_tetrahedral_order_of_crystals() -> None:
    """1 in diamond, nearly so in ice; and it is distributed there."""
    diamond = bulk("C", "diamond", a=3.57, cubic=True)
    assert float(TetrahedralOrder("C").per_frame(as_frame(diamond))) == pytest.approx(1.0, abs=1e-5)
    for smearing in (0.0, 0.01):
        found = jax.jit(TetrahedralDistribution("C", bins=30, smearing=smearing).per_frame)(as_frame(diamond))
        assert float(found.sum()) * 0.05 == pytest.approx(1.0, rel=1e-4)
        assert float(found[-1]) * 0.05 > 0.99
    assert float(TetrahedralOrder("O").per_frame(as_frame(ice_ih(molecules=16, seed=0)))) > 0.99


def test_random_directions_have_no_order() -> None:
    rng = np.random.default_rng(0)
    cell = 30.0 * np.eye(3)
    gas = Atoms("O600", positions=rng.uniform(size=(600, 3)) @ cell, cell=cell, pbc=True)
    tetrahedral = TetrahedralOrder("O", r_max=9.0)
    assert float(jax.jit(tetrahedral.per_frame)(as_frame(gas))) == pytest.approx(0.0, abs=0.06)


def test_they_conform() -> None:
    ice = ice_ih(molecules=16, seed=0)
    check_observable(TetrahedralDistribution("O", r_max=4.0, bins=5, smearing=0.1), ice)
    adf = AngularDistribution("O", "O", "O", r_max=3.3, bins=4, smearing=10.0, width=1.0, neighbors=8)
    check_observable(adf, ice)


@pytest.mark.slow
def test_others_conform() -> None:
    ice = ice_ih(molecules=16, seed=0)
    check_observable(TetrahedralOrder("O", r_max=4.0), ice)
    check_observable(AngularDistribution("H", "O", "H", r_max=1.3, bins=4, neighbors=4), ice, differentiable=())


def test_what_there_is_no_room_for(crowd: Atoms) -> None:
    adf = AngularDistribution("O", "O", "O", r_max=5.0, neighbors=3)
    values = np.asarray(adf.per_frame(as_frame(crowd)))[None, None]
    with pytest.raises(ValueError, match=r"a O has more than 3 neighbours within 5.0 Å; give neighbors="):
        adf.estimate(values)
    few = TetrahedralOrder("O", r_max=0.5)
    with pytest.raises(ValueError, match=r"no four neighbours of O within 0.5 Å"):
        few.estimate(np.asarray(few.per_frame(as_frame(crowd)))[None, None])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AngularDistribution("O", "Q", "O"), "'Q' is not the symbol"),
        (lambda: AngularDistribution("O", "O", "O", width=4.0), "a width of at most r_max"),
        (lambda: TetrahedralOrder("O", r_max=0.0), "a positive r_max"),
        (lambda: TetrahedralDistribution("O", q_min=1.0), "q_min from −3 to 1"),
    ],
)
def test_senseless_ones(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
