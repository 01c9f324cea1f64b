"""Elemental references: exact where the data determine them, warned about where they do not."""

import warnings

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.potentials.references import fit_references, shift_references
from jaxmlip.systems.dataset import Frame


def frame(formula: str, energy: float, **info: object) -> Frame:
    atoms = Atoms(formula)
    return Frame(atoms, energy, np.zeros((len(atoms), 3)), info=info)


def energy_of(atoms: Atoms, references: np.ndarray) -> float:
    return float(references[atoms.numbers].sum())


def test_recovers_the_references_of_additive_energies() -> None:
    truth = np.zeros(119)
    truth[[1, 8, 26]] = -13.571964772646918, -2043.933693071156, -8.5
    formulae = ["H2O", "H2", "Fe2O3", "FeO", "H30O15Fe"]
    frames = [frame(f, energy_of(Atoms(f), truth)) for f in formulae]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_references(frames)
        np.testing.assert_allclose(fitted, truth, rtol=1e-11, atol=0)
        baseline = [0.75 * f.energy + len(f.atoms) for f in frames]
        np.testing.assert_allclose(fit_references(frames, baseline=baseline)[[1, 8, 26]], 0.25 * truth[[1, 8, 26]] - 1)
    assert fitted.dtype == np.float64


def test_every_frame_counts_the_same_whatever_its_size() -> None:
    """Normal equations on energies per atom and fractions, written out; a fit of totals would differ."""
    rng = np.random.default_rng(0)
    formulae = ["H2O", "H20O2", "HO30", "H3", "H4O4"]
    frames = [frame(f, float(rng.normal(scale=5))) for f in formulae]
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in (1, 8)] for f in frames])
    a = counts / counts.sum(axis=1, keepdims=True)
    e = np.array([f.energy for f in frames]) / counts.sum(axis=1)
    expected = np.linalg.solve(a.T @ a, a.T @ e)
    np.testing.assert_allclose(fit_references(frames)[[1, 8]], expected)
    totals = np.linalg.lstsq(counts, np.array([f.energy for f in frames]), rcond=None)[0]
    assert np.abs(totals - expected).max() > 0.1


def test_water_alone_cannot_tell_hydrogen_from_oxygen() -> None:
    per_molecule = -2071.0776
    frames = [frame(f"H{2 * n}O{n}", per_molecule * n) for n in (1, 5, 19, 128)]
    with pytest.warns(UserWarning, match=r"^H and O occur in one ratio only, .* of all that fit, those of least norm"):
        fitted = fit_references(frames)
    for water in frames:
        assert energy_of(water.atoms, fitted) == pytest.approx(water.energy, rel=1e-12)
    assert fitted[1] / fitted[8] == pytest.approx(2.0), "least norm: along the composition itself"


def test_only_the_undetermined_elements_are_named() -> None:
    frames = [frame("H2O", -3.0), frame("H4O2", -6.0), frame("Fe", -8.0)]
    with pytest.warns(UserWarning, match="H and O occur in one ratio only") as warned:
        fitted = fit_references(frames)
    assert len(warned) == 1
    assert fitted[26] == pytest.approx(-8.0)


def test_each_group_is_named_with_what_ties_it() -> None:
    """One ratio of H and C; one more of N and O; three elements under one relation; four under two."""
    cases = {
        ("CH4", "C2H8N2O", "Fe3N2O", "NO"): ["H and C occur in one ratio only"],
        ("CH4", "C2H8N2O", "Fe3N2O", "Fe"): ["H and C occur in one ratio only", "N and O occur in one ratio only"],
        ("HO", "CO", "HCO2"): ["The amounts of H, C and O obey a linear relation in every frame"],
        ("HON", "CON2"): ["The amounts of H, C, N and O obey 2 linear relations in every frame"],
    }
    for formulae, sentences in cases.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit_references([frame(formula, -3.0) for formula in formulae])
        assert [str(warning.message).partition(", so their")[0] for warning in caught] == sentences


def test_what_is_not_determined_stays_where_it_started() -> None:
    """The fit is exact on water; of all exact ones it is the nearest, and elements without a frame stay."""
    start = np.zeros(119)
    start[[1, 8, 26]] = -1.0, -2.0, -5.0
    with pytest.warns(UserWarning, match="those that change least are used"):
        fitted = fit_references([frame("H2O", -14.0), frame("H6O3", -42.0)], start=start)
    change = fitted - start
    assert 2 * fitted[1] + fitted[8] == pytest.approx(-14.0)
    assert change[1] == pytest.approx(2 * change[8]), "orthogonal to the null space (1, −2)"
    assert fitted[26] == start[26]
    np.testing.assert_array_equal(start[[1, 8, 26]], [-1.0, -2.0, -5.0])


def test_isolated_atoms_tell_elements_apart() -> None:
    """Their energies are the references; no warning, and the start does not matter."""
    frames = [frame("H", -13.6), frame("O", -2044.0), frame("H2O", -2071.2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in (None, np.linspace(-5, 5, 119)):
            np.testing.assert_allclose(fit_references(frames, start=start)[[1, 8]], [-13.6, -2044.0], rtol=1e-12)


def test_absent_energies_are_left_out() -> None:
    frames = [frame("H", -1.0), frame("O", np.nan), frame("H2", -2.0)]
    fitted = fit_references(frames, baseline=[0.0, np.nan, 0.0])
    assert fitted[1] == pytest.approx(-1.0)
    assert fitted[8] == 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="none of the 2 frames has an energy"):
        fit_references([frame("H", np.nan), frame("O", np.nan)])
    with pytest.raises(ValueError, match="none of the 0 frames"):
        fit_references([])
    with pytest.raises(ValueError, match=r"ice\.extxyz, frame 7: the energy is inf"):
        fit_references([frame("H", np.inf, file="ice.extxyz", frame=7)])
    with pytest.raises(ValueError, match="Frame 1: the baseline energy is nan"):
        fit_references([frame("H", -1.0), frame("H", -1.0)], baseline=[0.0, np.nan])
    with pytest.raises(ValueError, match=r"1 frames, but the baseline has shape \(2,\)"):
        fit_references([frame("H", -1.0)], baseline=[0.0, 1.0])


def test_shift_keeps_what_the_model_learnt() -> None:
    """Energies relative to the fit are the same before and after, and unseen elements stay."""
    rng = np.random.default_rng(1)
    model = rng.normal(size=119)
    source, target = np.zeros(119), np.zeros(119)
    source[[1, 8, 26]], target[[1, 8, 14]] = rng.normal(size=3), rng.normal(size=3)
    shifted = shift_references(model, source, target)
    np.testing.assert_allclose((shifted - target)[[1, 8]], (model - source)[[1, 8]])
    unseen = np.setdiff1d(np.arange(119), [1, 8])
    np.testing.assert_array_equal(shifted[unseen], model[unseen])
