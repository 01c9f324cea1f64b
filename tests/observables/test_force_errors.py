"""Errors of forces: what is put into one motion is found there, and squares add up."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from test_structure import as_frame

from jaxmlip.observables.force_errors import ElementForceError, MolecularForceError, SquaredStressError, rigid_parts
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.thermodynamics import SquaredForceError
from jaxmlip.potentials.potential import Prediction
from jaxmlip.systems.ice import ice_ih
from jaxmlip.systems.molecules import molecules_in
from jaxmlip.testing import check_observable
from jaxmlip.units import GPA


@pytest.fixture(scope="module")
def mixture() -> Atoms:
    """Water, ethanol, a linear molecule, a diatomic one and an atom, torn apart by the boundaries."""
    box = Atoms(cell=[[11.0, 0, 0], [1.0, 11.5, 0], [-0.5, 1.5, 12.0]], pbc=True)
    places = {"H2O": (0, 0, 0), "CH3CH2OH": (6, 6, 6), "CO2": (0, 6, 0), "N2": (6, 0, 0), "Ar": (0, 0, 6)}
    for name, where in places.items():
        one = Atoms("Ar") if name == "Ar" else molecule(name)
        one.rattle(0.02, seed=1)
        one.translate(np.array(where, float) - one.positions.mean(axis=0))
        box += one
    box.wrap()
    return box


def knowing(atoms: Atoms, own: np.ndarray, other: np.ndarray) -> FrameState:
    prediction = Prediction(np.zeros(1, np.float32), other.astype(np.float32))
    return as_frame(atoms).replace(forces=own.astype(np.float32), prediction=prediction)


def test_squares_add_up(mixture: Atoms) -> None:
    """By motion and by element, to the squared error of all."""
    rng = np.random.default_rng(0)
    frame = knowing(mixture, *rng.normal(size=(2, len(mixture), 3)))
    whole = float(SquaredForceError().per_frame(frame))
    split = MolecularForceError().bound_to(mixture)
    split.check(frame)
    assert float(jax.jit(split.per_frame)(frame).sum()) == pytest.approx(whole, rel=1e-5)
    symbols = np.array(mixture.symbols)
    by_element = [
        (symbols == symbol).mean() * float(ElementForceError(symbol).per_frame(frame)) for symbol in np.unique(symbols)
    ]
    assert sum(by_element) == pytest.approx(whole, rel=1e-5)


def test_motions_are_found(mixture: Atoms, x64: None) -> None:
    """Forces along a translation, a rotation or a stretch of whole molecules are of one kind; others are the rest."""
    frame = dataclasses.replace(as_frame(mixture), positions=mixture.positions, cell=mixture.cell.array)
    rng, molecules = np.random.default_rng(1), molecules_in(mixture)
    shift, turn, stretch = (np.zeros((len(mixture), 3)) for _ in range(3))
    for each in molecules:
        atoms = np.array(each.atoms)
        arms = mixture.get_distances(atoms[0], atoms, mic=True, vector=True)
        arms -= arms.mean(axis=0)
        shift[atoms] = rng.normal(size=3)
        turn[atoms] = np.cross(rng.normal(size=3), arms)
        stretch[atoms] = arms
    for place, vectors in enumerate((shift, turn, stretch)):
        parts = jax.jit(rigid_parts, static_argnums=1)(frame, molecules, vectors)
        for kind, part in enumerate(parts):
            np.testing.assert_allclose(part, vectors if kind == place else 0.0, atol=1e-8)
    # White noise is shared as degrees of freedom are: 3, 3 (2 if linear) and the others of each molecule.
    noise = rng.normal(size=(400, len(mixture), 3))
    parts = jax.jit(jax.vmap(lambda each: rigid_parts(frame, molecules, each)))(noise)
    found = [float((np.asarray(part) ** 2).sum((1, 2)).mean()) for part in parts]
    # The carbon dioxide of the test is bent a little.
    np.testing.assert_allclose(found, [15, 3 + 3 + 3 + 2, 3 * len(mixture) - 26], rtol=0.1)


def test_stress(mixture: Atoms) -> None:
    frame = knowing(mixture, *np.zeros((2, len(mixture), 3)))
    rng = np.random.default_rng(2)
    own, other = rng.normal(size=(2, 3, 3)).astype(np.float32)
    frame = frame.replace(stress=own)
    assert frame.prediction is not None
    with pytest.raises(ValueError, match="has no stress: give the potential"):
        SquaredStressError().per_frame(frame)
    frame = frame.replace(prediction=frame.prediction.replace(stress=other[None]))
    wanted = ((own - other) ** 2).mean() / GPA**2
    assert float(SquaredStressError().per_frame(frame)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("observable", [ElementForceError("O"), MolecularForceError(), SquaredStressError()])
def test_they_conform(observable: Any) -> None:
    check_observable(observable, ice_ih(molecules=16, seed=0))


def test_senseless_ones(mixture: Atoms) -> None:
    frame = as_frame(mixture)
    with pytest.raises(ValueError, match=r"give MolecularForceError\(\)\.bound_to\(structure\)"):
        MolecularForceError().check(frame)
    with pytest.raises(ValueError, match="was bound to 3 atoms, and there are 18 here"):
        MolecularForceError().bound_to(molecule("H2O")).check(frame)
    with pytest.raises(ValueError, match="the frames hold no Xe"):
        ElementForceError("Xe").check(frame)
