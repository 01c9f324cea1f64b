"""Elastic constants: Born terms against energies of strained crystals, strains against what they were drawn from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from made_runs import as_run
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from jaxmlip.observables.elastic import SHEARS, ElasticFromStrain, ElasticFromStress, strain_matrix
from jaxmlip.potentials.pairs import PairPotential
from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.testing import check_observable
from jaxmlip.units import GPA, KB
from jaxmlip.validation.averages import average, frame_states, observe

UPPER = np.triu_indices(6)
CUBIC = np.array([[90.0, 60.0, 60.0], [60.0, 90.0, 60.0], [60.0, 60.0, 90.0]])


def pairs() -> PairPotential:
    """A smooth attraction with a repulsive core, coefficients at random."""
    coefficients = np.random.default_rng(0).normal(size=(1, 10))
    return PairPotential(coefficients, np.zeros(N_SPECIES), known=(18,), reach=4.5, shortest=2.0)


def finite_differences(atoms: Atoms, potential: PairPotential) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives by the Lagrangian strain of the energies of strained crystals, over the volume."""
    graph, step = graph_from_atoms(atoms, potential.cutoff, dtype=np.float64), 1e-3
    signs = [(a, b) for a in (1.0, -1.0) for b in (1.0, -1.0)]
    unit = step * np.eye(6)
    voigt = np.array([a * unit[i] + b * unit[j] for i, j in zip(*UPPER, strict=True) for a, b in signs])
    strains = [np.asarray(strain_matrix(jnp.asarray(each))) for each in np.concatenate([voigt, unit, -unit])]
    stretches = jnp.asarray(np.array([np.real(sqrtm(np.eye(3) + 2.0 * strain)) for strain in strains]))

    @jax.jit
    @jax.vmap
    def energies(stretch: Any) -> Any:
        return potential.energy(graph.replace(positions=graph.positions @ stretch, cell=graph.cell @ stretch))[0]

    found, volume = np.asarray(energies(stretches)), atoms.get_volume()
    mixed = found[: len(voigt)].reshape(-1, 4) @ [1.0, -1.0, -1.0, 1.0]
    plus, minus = found[len(voigt) :].reshape(2, 6)
    return (plus - minus) / (2.0 * step * volume), mixed / (4.0 * step**2 * volume)


def run_of(atoms: Atoms, frames: int = 2) -> Run:
    positions = np.repeat(atoms.positions[None, None], frames, axis=1)
    return as_run(positions, atoms.numbers, atoms.cell.array)


def test_born_terms_are_those_of_strained_crystals(x64: None) -> None:
    """Of a rattled, stressed, triclinic cell; and the same wherever it is turned to."""
    cell = [[5.3, 0.0, 0.0], [0.4, 5.1, 0.0], [-0.3, 0.5, 5.6]]
    atoms = Atoms("Ar4", scaled_positions=bulk("Ar", "fcc", a=1.0, cubic=True).positions, cell=cell, pbc=True)
    atoms.rattle(0.1, seed=1)
    potential, observable = pairs(), ElasticFromStress(100.0)
    compiled = jax.jit(observable.per_frame)
    stress, born = finite_differences(atoms, potential)

    def found(each: Atoms) -> np.ndarray:
        frame = frame_states(run_of(each), potential=potential)
        one = jax.tree.map(lambda leaf: leaf[0, 0], frame)
        return np.asarray(compiled(one.replace(positions=each.positions, cell=each.cell.array), potential))

    values, volume = found(atoms), atoms.get_volume()
    np.testing.assert_allclose(values[:6] / np.sqrt(volume), stress, atol=1e-5 * np.abs(born).max())
    np.testing.assert_allclose(values[6:27], born, rtol=1e-4, atol=1e-4 * np.abs(born).max())
    assert values[27] == pytest.approx(4 / volume)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ Rotation.from_rotvec([0.3, -0.7, 1.1]).as_matrix(), scale_atoms=True)
    np.testing.assert_allclose(found(turned), values, rtol=1e-6, atol=1e-8)


def test_cold_crystals_have_static_constants() -> None:
    """By `observe` and `estimate`, in single precision: at T → 0 the second differences of the energy are left."""
    atoms = bulk("Ar", "fcc", a=5.2, cubic=True)
    with jax.enable_x64(True):
        static = finite_differences(atoms, pairs())[1] / GPA
    potential = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), pairs())
    observable = ElasticFromStress(1e-3)
    found = observable.estimate(observe(run_of(atoms), observable, potential=potential))
    np.testing.assert_allclose(found.value[UPPER], static, atol=2e-3 * np.abs(static).max())
    assert np.ptp(np.diag(found.value)[:3]) < 1e-3 * np.abs(static).max()
    with pytest.raises(ValueError, match="elastic constants by stress need a potential"):
        average(run_of(atoms), observable, equilibration=0)


def test_ideal_gas_has_what_momenta_add() -> None:
    """Without forces C_11 = 2 NkT/V, C_44 = NkT/V and C_12 = 0: minus the pressure they are what an ideal gas has."""
    observable = ElasticFromStress(300.0)
    values = np.zeros((2, 10, 28))
    values[..., 27] = 0.01
    found = observable.estimate(values).value
    np.testing.assert_allclose(found, np.diag(2.0 / np.array(SHEARS)) * 0.01 * KB * 300.0 / GPA)


def strained_run(stiffness: np.ndarray, temperature: float, pressure: float) -> Run:
    """Cells whose strains are drawn from the harmonic distribution of elastic constants under a pressure, in GPa."""
    cell = np.array([[20.0, 0.0, 0.0], [1.0, 21.0, 0.0], [-2.0, 1.5, 19.0]])
    added = np.diag(-2.0 / np.array(SHEARS))
    added[:3, :3] += 1.0
    curvature = (stiffness + pressure * added) * GPA * np.linalg.det(cell) / (KB * temperature)
    rng = np.random.default_rng(3)
    voigt = rng.multivariate_normal(np.zeros(6), np.linalg.inv(curvature), size=(8, 400))
    strains = np.array([np.asarray(strain_matrix(each)) for each in jnp.asarray(voigt.reshape(-1, 6), float)])
    values, vectors = np.linalg.eigh(np.eye(3) + 2.0 * strains)
    stretches = np.einsum("nxk,nk,nyk->nxy", vectors, np.sqrt(values), vectors)
    turns = Rotation.from_quat(rng.normal(size=(len(stretches), 4))).as_matrix()
    cells = (cell @ stretches @ turns).reshape(8, 400, 3, 3)
    return as_run(np.zeros((8, 400, 1, 3)), np.array([18]), cell, cells=cells)


@pytest.mark.physics
@pytest.mark.parametrize("pressure", [pytest.param(0.0, marks=pytest.mark.slow), 8.0])
def test_strains_give_back_the_constants(pressure: float, agrees: Any) -> None:
    """Of a cubic solid, from a triclinic cell that turns as it likes."""
    stiffness = np.zeros((6, 6))
    stiffness[:3, :3], stiffness[3:, 3:] = CUBIC, 45.0 * np.eye(3)
    run = strained_run(stiffness, 300.0, pressure)
    found = average(run, ElasticFromStrain(300.0, pressure), equilibration=0)
    for name, place in (("C_11", (0, 0)), ("C_12", (0, 1)), ("C_44", (3, 3)), ("C_15", (0, 4))):
        what = f"strains at {pressure:g} GPa: {name} in GPa"
        agrees(what, found.value[place], found.error[place], stiffness[place])
        assert 0 < found.error[place] < 6.0


def test_cells_must_change_their_shape() -> None:
    rng = np.random.default_rng(4)
    cells = 20.0 * np.eye(3) * (1.0 + 0.01 * rng.normal(size=(2, 100, 1, 1)))
    run = as_run(np.zeros((2, 100, 1, 3)), np.array([18]), np.eye(3), cells=cells)
    with pytest.raises(ValueError, match=r'changes its shape: simulate with NPT\(cell="flexible"\)'):
        average(run, ElasticFromStrain(300.0), equilibration=0)
    with pytest.raises(ValueError, match="positive temperature_K"):
        ElasticFromStrain(0.0)


@pytest.mark.slow
def test_they_conform() -> None:
    check_observable(ElasticFromStrain(300.0))
    salt = bulk("Ar", "fcc", a=5.2, cubic=True)
    check_observable(ElasticFromStress(300.0), salt, potential=pairs(), differentiable=("cell",))
