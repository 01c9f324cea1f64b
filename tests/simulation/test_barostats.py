"""Cells that move: exact distributions of volumes and strains, lists that hold, pressures that are measured right."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import Growth, dynamics_of, run_fluid
from scipy import stats
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, lennard_jones

from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.observables.thermodynamics import Density
from jaxmlip.potentials.evaluation import compiled_evaluate
from jaxmlip.simulation.barostats import NPT, CellMotion, NPTNoseHoover
from jaxmlip.simulation.engine import advance
from jaxmlip.simulation.trajectory import Outcome, Run, load_run
from jaxmlip.systems import device_lists
from jaxmlip.systems.graph import graph_from_atoms, strained
from jaxmlip.units import G_PER_CM3, GPA, KB
from jaxmlip.validation.averages import observe

REDUCED_GPA = 1.0 / GPA
"""The pressure in GPa that is 1 ε/σ³ for 1 eV and 1 Å."""


def reduced_npt(pressure: float | list[float] = 1.0, **options: Any) -> NPT:
    """Stochastic cell rescaling in reduced units; compressibility and friction suit a Lennard-Jones liquid."""
    suited: dict[str, Any] = {
        "compressibility_per_GPa": 0.1 / REDUCED_GPA,
        "pressure_time_ps": 2e-4 * REDUCED_TIME_FS,
        "friction_per_ps": 1000.0 / REDUCED_TIME_FS,
    }
    return NPT(REDUCED_K, (np.asarray(pressure) * REDUCED_GPA).tolist(), **suited | options)


@pytest.mark.physics
@pytest.mark.parametrize(
    "cell", [*(pytest.param(cell, marks=pytest.mark.slow) for cell in ("isotropic", "orthorhombic")), "flexible"]
)
def test_volume_of_an_ideal_gas(cell: CellMotion, agrees) -> None:
    """Two free atoms at constant pressure: p(V) ∝ V² exp(−PV/kT) for each way that cells move."""
    ensemble = NPT(REDUCED_K, REDUCED_GPA, cell, compressibility_per_GPa=1.0 / REDUCED_GPA, pressure_time_ps=1e-3,
                   friction_per_ps=1e4)  # fmt: skip
    dynamics = dynamics_of(ensemble)
    response = float(dynamics.response)
    dt = 0.005 / response
    masses, none = jnp.ones(2, jnp.float32), jnp.zeros((2, 3), jnp.float32)

    def step(state, _):
        return dynamics.finish(dynamics.move(state, dt), none, dt), None

    @jax.jit
    @jax.vmap
    def run(key):
        state = dynamics.init(key, none, masses, 1.44 * jnp.eye(3, dtype=jnp.float32))
        # Six relaxation times of the volume; the shape of a gas is free, and would become extreme in longer ones.
        state, _ = jax.lax.scan(step, state, length=1200)
        return jnp.abs(jnp.linalg.det(state.cell))

    volumes = np.asarray(run(jax.random.split(jax.random.key(1), 2000)))
    # With one factor of V more or less the mean would be 4 or 2.
    agrees(f"PV/kT of two free atoms, {cell} cell", volumes.mean(), np.sqrt(3.0 / volumes.size), 3.0)
    assert stats.kstest(volumes, stats.gamma(3).cdf).pvalue > 1e-3


@pytest.mark.physics
def test_strain_of_an_elastic_solid() -> None:
    """A flexible cell of known elastic constants: covariance kT C⁻¹ / V of the strain, shear included."""
    # Reduced units; large against kT/V = 0.01, so that strains stay small.
    c11, c12, c44, volume, temperature = 4.0, 2.0, 1.5, 100.0, 1.0
    dynamics = dynamics_of(reduced_npt(0.0, cell="flexible", compressibility_per_GPa=0.375 / REDUCED_GPA))
    edge = volume ** (1.0 / 3.0)
    reference = edge * jnp.eye(3, dtype=jnp.float32)
    dt = 0.01 / (float(dynamics.response) * 2.67)
    masses, none = jnp.ones(1, jnp.float32), jnp.zeros((1, 3), jnp.float32)
    unit = jnp.eye(3, dtype=jnp.float32)

    def energy(cell):
        e = 0.5 * (cell @ cell.T / edge**2 - unit)
        diagonal, trace = jnp.diag(e), jnp.trace(e)
        shear = (e**2).sum() - (diagonal**2).sum()
        return 0.5 * volume * (c12 * trace**2 + (c11 - c12) * (diagonal**2).sum() + 2.0 * c44 * shear)

    def step(state, _):
        state = dynamics.move(state, dt)
        derivative = jax.grad(lambda s: energy(state.cell + state.cell @ (0.5 * (s + s.T))))(jnp.zeros((3, 3)))
        state = state.replace(stress=derivative / jnp.abs(jnp.linalg.det(state.cell)))
        return dynamics.finish(state, none, dt), None

    def sample(state, _):
        state, _ = jax.lax.scan(step, state, length=1000)  # two and a half relaxation times of the slowest strain
        return state, 0.5 * (state.cell @ state.cell.T / edge**2 - unit)

    @jax.jit
    @jax.vmap
    def run(key):
        return jax.lax.scan(sample, dynamics.init(key, none, masses, reference), length=5)[1]

    strains = np.asarray(run(jax.random.split(jax.random.key(2), 500)), np.float64)[:, 1:].reshape(-1, 3, 3)
    number = len(strains)
    compliance = np.linalg.inv(np.array([[c11, c12, c12], [c12, c11, c12], [c12, c12, c11]]))
    expected = temperature / volume * compliance
    diagonal = np.diagonal(strains, axis1=1, axis2=2)
    measured = np.cov(diagonal.T)
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / number)
    assert (np.abs(measured - expected) < 4 * error + 0.03 * np.abs(expected)).all(), measured / expected
    shear = strains[:, [0, 0, 1], [1, 2, 2]]
    expected_shear = temperature / volume / (4.0 * c44)
    assert abs((shear**2).mean() / expected_shear - 1.0) < 4 * np.sqrt(2.0 / shear.size) + 0.03


@pytest.fixture(scope="module")
def npt_run(small_fluid: Atoms) -> Run:
    """32 atoms at T = 1, P = 0.9897, where ρ = 0.75 in the thermodynamic limit; ten reduced times, eight kept."""
    return run_fluid(small_fluid, ensemble=reduced_npt(0.9897), replicas=4, steps=2000, skin=0.4, seed=3)


@pytest.mark.physics
def test_pressure_and_volume_are_canonical(npt_run: Run, agrees) -> None:
    """⟨P⟩ = P₀ and ⟨V (P − P₀)⟩ = −kT, exact for any system and size, and the density of the equation of state."""
    assert npt_run.pressure_GPa is not None
    volume, pressure = npt_run.volume[:, 40:], npt_run.pressure_GPa[:, 40:] / REDUCED_GPA
    mean = correlated_mean(pressure)
    assert mean.error < 0.1
    agrees("Lennard-Jones, cell rescaling at P = 0.9897, T = 1: ⟨P⟩", mean.value, mean.error, 0.9897)
    work = correlated_mean(volume * (pressure - 0.9897))
    agrees("Lennard-Jones, cell rescaling: ⟨V (P − P₀)⟩/kT", work.value, work.error, -1.0)
    density = correlated_mean(32 / volume)
    # The equation of state is for many atoms: 0.01 is for the size of 32.
    agrees(
        "Lennard-Jones, cell rescaling: ρ, where NVT at ρ = 0.75 has P",
        density.value,
        density.error,
        0.75,
        known_error=0.01,
    )
    kelvin = correlated_mean(npt_run.temperature[:, 40:] / REDUCED_K)
    assert kelvin.error < 0.05
    agrees("Lennard-Jones, cell rescaling: T", kelvin.value, kelvin.error, 1.0)


def extended_run(small_fluid: Atoms, steps: int) -> Run:
    """Martyna–Tobias–Klein, whose enthalpy of the extended system is conserved."""
    period = {"temperature_time_ps": 5e-4 * REDUCED_TIME_FS, "pressure_time_ps": 5e-4 * REDUCED_TIME_FS}
    ensemble = NPTNoseHoover(REDUCED_K, 0.9897 * REDUCED_GPA, **period)
    run = run_fluid(small_fluid, ensemble=ensemble, replicas=4, steps=steps, skin=0.4, seed=4)
    assert run.conserved is not None
    enthalpy = run.potential_energy + 1.5 * 31 * KB * run.temperature + 0.9897 * run.volume
    assert (run.conserved.std(axis=1) < 0.05 * enthalpy.std(axis=1)).all()
    return run


def test_extended_dynamics_is_conservative(small_fluid: Atoms) -> None:
    """While volume and temperature change by a lot."""
    run = extended_run(small_fluid, 200)
    assert (np.ptp(run.volume, axis=1) > 1.0).all()
    assert (np.ptp(run.temperature, axis=1) > 0.2 * REDUCED_K).all()


@pytest.mark.slow
@pytest.mark.physics
def test_extended_dynamics(small_fluid: Atoms, npt_run: Run, agrees) -> None:
    """Its volume is that of the other barostat."""
    run = extended_run(small_fluid, 1200)
    assert run.pressure_GPa is not None
    mean = correlated_mean(run.pressure_GPa[:, 20:] / REDUCED_GPA)
    assert mean.error < 0.13
    agrees("Lennard-Jones, Martyna–Tobias–Klein at P = 0.9897, T = 1: ⟨P⟩", mean.value, mean.error, 0.9897)
    ours, theirs = correlated_mean(run.volume[:, 20:]), correlated_mean(npt_run.volume[:, 40:])
    # Without the motion of the centre of mass volumes have one factor of 1/V more: smaller by their variance over V.
    known = float(theirs.value) - npt_run.volume[:, 40:].var() / float(theirs.value)
    agrees(
        "Lennard-Jones, Martyna–Tobias–Klein: ⟨V⟩, against cell rescaling",
        ours.value,
        ours.error,
        known,
        known_error=float(theirs.error),
    )


def test_frames_carry_their_cell(npt_run: Run, tmp_path: Path) -> None:
    """Energy and pressure of frames are those of a direct call in the frame's cell, in memory and from the file."""
    npt_run.save(tmp_path / "run.h5")
    for run in (npt_run, load_run(tmp_path / "run.h5")):
        assert run.cells.shape == (4, 200, 3, 3)
        assert run.volume.std() > 0.5
        assert run.pressure_GPa is not None
        for place in (60, 799):
            frame, at = run[place], divmod(place, 200)
            direct = compiled_evaluate(lennard_jones(), graph_from_atoms(frame, 2.5, slots=96), stress=True)
            assert frame.info["potential_energy"] == pytest.approx(float(direct.energy[0]), rel=5e-6)
            kinetic = 32 * KB * run.temperature[at] / run.volume[at]
            pressure = (kinetic - float(jnp.trace(direct.stress[0])) / 3.0) / GPA
            assert run.pressure_GPa[at] == pytest.approx(pressure, abs=1e-3 * REDUCED_GPA)
    density = 32.0 / (G_PER_CM3 * npt_run.volume)  # of unit masses
    np.testing.assert_allclose(observe(npt_run, Density()), density, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_neither_skin_nor_images_matter(
    small_fluid: Atoms, grown: list[Growth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fluid that is squeezed outgrows skin and image search: still the same run, in double precision.

    In its cell, which has become triclinic, the stress is that of finite differences of the energy.
    """
    monkeypatch.setattr(device_lists, "SHRINKAGE", 0.99)
    squeezed = reduced_npt(30.0, cell="flexible", pressure_time_ps=1e-3 * REDUCED_TIME_FS)
    ample = run_fluid(small_fluid, ensemble=squeezed, steps=20, skin=0.6)
    assert ample.volume[0, -1] < 0.9 * small_fluid.get_volume()
    grown.clear()
    thin = run_fluid(small_fluid, ensemble=squeezed, steps=20, skin=0.05)
    assert max(each.reach for each in grown) > 2.5 + 0.05, "an atom outran the skin in one step"
    assert len({each.heights.tobytes() for each in grown}) > 1, "images were searched anew"
    np.testing.assert_allclose(thin.cells, ample.cells, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(thin.potential_energy, ample.potential_energy, rtol=1e-9)

    frame = ample[-1]
    assert np.abs(frame.cell.angles() - 90.0).min() > 1e-3
    graph = graph_from_atoms(frame, 2.5, dtype=np.float64)
    energy = jax.jit(lambda strain: lennard_jones().energy(strained(graph, graph.positions, strain[None]))[0])
    stress = np.asarray(compiled_evaluate(lennard_jones(), graph, stress=True).stress[0])
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1e-6
        difference = (float(energy(strain)) - float(energy(-strain))) / 2e-6 / (1 if i == j else 2)
        assert stress[i, j] == pytest.approx(difference / frame.get_volume(), abs=1e-4)


def test_lost_cell_is_marked(small_fluid: Atoms) -> None:
    """A replica under tension bursts; the others, with pressures and temperatures of their own, share compiled code."""
    options = {"replicas": 4, "skin": 0.4, "steps": 40, "seed": 3, "on_failure": "mark"}
    calm = run_fluid(small_fluid, ensemble=reduced_npt([1.0, 1.0, 3.0, 1.0], cell="orthorhombic"), **options)
    compiled = advance._cache_size()  # type: ignore[attr-defined]
    torn = run_fluid(small_fluid, ensemble=reduced_npt([1.0, 1.0, 3.0, -40.0], cell="orthorhombic"), **options)
    assert calm.completed.all()
    assert torn.outcomes == (Outcome.COMPLETED,) * 3 + (Outcome.CELL_LOST,)
    np.testing.assert_allclose(torn.positions[:3], calm.positions[:3], atol=1e-4)
    assert (np.abs(np.diff(calm.cells[0, -1].diagonal())) > 1e-4).all(), "three lengths"
    assert np.isnan(torn.cells[3, -1]).all()
    assert advance._cache_size() == compiled  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pressure": [1.0, 2.0, 3.0]}, "pressure_GPa has 3 values for 2 replicas"),
        ({"pressure": float("nan")}, "NPT needs .* < pressure_GPa"),
        ({"cell": "cubic"}, "isotropic, orthorhombic, flexible, not 'cubic'"),
        ({"pressure_time_ps": 0.0}, "0 < pressure_time_ps"),
    ],
)
def test_refuses_senseless_values(small_fluid: Atoms, change: dict, sentence: str) -> None:
    # For a word that is none of the three the type checker of the tests may come first.
    with pytest.raises(Exception, match=sentence.replace("isotropic, orthorhombic, flexible, not ", "")):
        run_fluid(small_fluid, ensemble=reduced_npt(**change), replicas=2)


def test_refuses_open_boundaries() -> None:
    with pytest.raises(ValueError, match="NPT needs a cell that is periodic in all three directions"):
        run_fluid(Atoms("Ar2", positions=[[0, 0, 0], [1.1, 0, 0]]), ensemble=reduced_npt())
