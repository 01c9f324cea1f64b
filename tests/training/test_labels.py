"""Elemental references of another level of theory, from every source and for every kind of composition."""

import warnings
from typing import get_args

import numpy as np
import pytest
from ase import Atoms
from water_pairs import HIGH, LOW

from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.references import fit_references
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.labels import FixedReferences, anchors, lifted_references

OWN = np.asarray(LOW.references)


@pytest.fixture(scope="module")
def mixed(clusters) -> list[Atoms]:
    """Water, the same with a proton less or more, and the isolated atoms."""
    fewer = [atoms[1:] for atoms in clusters[:4]]
    more = [atoms + Atoms("H", [atoms.positions[0] + 0.9]) for atoms in clusters[4:8]]
    return [*clusters[8:12], *fewer, *more, Atoms("H"), Atoms("O")]


def mean_error(references: np.ndarray, frames: list[Frame]) -> float:
    """Of LOW with other references, eV/atom."""
    predicted = predict(LOW.replace(references=references), [frame.atoms for frame in frames])
    return float(np.mean([(p.energy - f.energy) / len(f.atoms) for p, f in zip(predicted, frames, strict=True)]))


@pytest.mark.filterwarnings("error")
def test_mixed_compositions_determine_every_element(mixed):
    """No warning; each way is what it says."""
    low, high = label(mixed, LOW), label(mixed, HIGH)
    references = {how: lifted_references(LOW, high, how, low) for how in get_args(FixedReferences)}
    np.testing.assert_array_equal(references["keep"], OWN)
    np.testing.assert_allclose(references["refit"], fit_references(high), rtol=1e-9)
    np.testing.assert_allclose(references["shift"], OWN + fit_references(high) - fit_references(low), rtol=1e-9)
    # The low labels are LOW's own predictions, so the difference of the fits is the fit of the difference.
    np.testing.assert_allclose(references["residual"], references["shift"], rtol=1e-9)
    assert np.abs(references["refit"] - references["residual"])[[1, 8]].min() > 0.1


@pytest.mark.filterwarnings("error")
def test_isolated_atoms_give_the_difference_of_the_references():
    """Without interactions every way but `keep` finds the references of the other level."""
    atoms = [Atoms("H"), Atoms("O")]
    low, high = label(atoms, LOW), label(atoms, HIGH)
    for how in ("refit", "shift", "residual"):
        np.testing.assert_allclose(lifted_references(LOW, high, how, low), HIGH.references, atol=1e-9)


def test_water_alone_changes_least(high, low):
    """All ways reach the water's energies by a change along (2 H, 1 O), and say that H and O are not told apart."""
    for how in ("refit", "shift", "residual"):
        with pytest.warns(UserWarning, match="H and O occur in one ratio only"):
            references = lifted_references(LOW, high, how, low)
        change = references - OWN
        np.testing.assert_allclose(change[1], 2 * change[8], rtol=1e-9)
        assert (np.delete(change, [1, 8]) == 0).all()
        if how != "refit":
            assert abs(mean_error(references, high)) < 1e-5


def test_richer_low_compositions_do_not_leak_into_the_shift(mixed, high):
    """The low labels tell H from O and the high ones do not: what stays open is no part of the shift."""
    with pytest.warns(UserWarning, match="those that change least"):
        change = lifted_references(LOW, high, "shift", label(mixed, LOW)) - OWN
    np.testing.assert_allclose(change[1], 2 * change[8], rtol=1e-9)


def test_elements_without_a_frame_keep_the_foundations(mixed):
    hydrogen = label([Atoms("H"), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])], HIGH)
    for how in get_args(FixedReferences):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            references = lifted_references(LOW, hydrogen, how, label(mixed, LOW))
        assert references[8] == OWN[8]
        assert (references[1] == OWN[1]) == (how == "keep")


def test_a_shift_needs_low_energies(high):
    with pytest.raises(ValueError, match="shift, which compares with low-fidelity energies, but there are none"):
        lifted_references(LOW, high, "shift")


def test_anchors_are_the_foundations_forces_alone(high):
    for anchor, frame in zip(anchors(LOW, high[:3]), predict(LOW, [f.atoms for f in high[:3]]), strict=True):
        np.testing.assert_array_equal(anchor.forces, frame.forces)
        assert np.isnan(anchor.energy)
        assert np.isnan(anchor.stress).all()
