"""What is averaged on the way is what the frames would have given."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from conftest import DT, FLUID, fcc, molten, run_fluid
from made_runs import as_run
from simple_potentials import REDUCED_K, REDUCED_TIME_FS, LennardJones, lennard_jones
from test_recording import record

from jaxmlip.observables.fluctuations import HeatCapacity
from jaxmlip.observables.force_errors import MolecularForceError, SquaredStressError
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import (
    Density,
    PotentialEnergy,
    Pressure,
    PressureTensor,
    SquaredForceError,
    Temperature,
)
from jaxmlip.potentials.evaluation import compiled_evaluate, predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation import observing
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.engine import advance
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.units import GPA, KB
from jaxmlip.validation.averages import average, frame_states, observe

AT_CONSTANT_PRESSURE = NPT(REDUCED_K, 0.5 / GPA, friction_per_ps=FLUID.friction_per_ps)
PAIRS = RDF("Ar", "Ar", r_max=2.0, bins=20)


@dataclasses.dataclass(frozen=True)
class OwnTemperature(Temperature):
    """A user's, of the same name as the one that is observed always."""


@pytest.mark.parametrize(
    "ensemble", [pytest.param(FLUID, id="NVT", marks=pytest.mark.slow), pytest.param(AT_CONSTANT_PRESSURE, id="NPT")]
)
def test_means_are_those_of_the_frames(small_fluid: Atoms, tmp_path: Path, ensemble: Ensemble) -> None:
    """Two frames carry the means of the six that another run keeps; observing changes nothing of the dynamics."""
    everything = run_fluid(small_fluid, ensemble=ensemble, replicas=2, steps=60)
    options = {"steps": 60, "replicas": 2, "sample_every_fs": 30 * DT, "observables": [PAIRS]}
    run = run_fluid(small_fluid, ensemble=ensemble, observe_every_fs=10 * DT, **options)
    np.testing.assert_array_equal(run.positions, everything.positions[:, 2::3])
    for observable in (PAIRS, PotentialEnergy(), Temperature(), *([Density()] if ensemble.moves_cell else [])):
        frames = observe(everything, observable)
        means = frames.reshape(2, 2, 3, *frames.shape[2:]).mean(2)
        np.testing.assert_allclose(run.observed[observable.name], means, rtol=2e-6, atol=1e-6)
        one, other = (average(each, observable, equilibration=0) for each in (run, everything))
        np.testing.assert_allclose(one.value, other.value, rtol=2e-6, atol=1e-6)
    assert run.observed_units["g_ArAr"] == ""
    if ensemble.moves_cell:
        assert everything.pressure_GPa is not None
        means = everything.pressure_GPa.reshape(2, 2, 3).mean(2)
        np.testing.assert_allclose(run.observed["pressure"], means, rtol=1e-5, atol=1e-6 / GPA)

    record(tmp_path / "run.h5", small_fluid, ensemble, observe_every_fs=10 * DT, **(options | {"steps": 30}))
    record(tmp_path / "run.h5", small_fluid, ensemble, observe_every_fs=10 * DT, **options)
    back = load_run(tmp_path / "run.h5")
    assert back.observed_units == run.observed_units
    for name, values in run.observed.items():
        np.testing.assert_array_equal(back.observed[name], values, err_msg=name)
    back.save(tmp_path / "saved.h5")
    np.testing.assert_array_equal(load_run(tmp_path / "saved.h5").observed["g_ArAr"], run.observed["g_ArAr"])


def test_pressure_at_constant_volume(small_fluid: Atoms) -> None:
    """Its virial is that of a direct call in a frame; its kinetic part is ρkT."""
    run = run_fluid(small_fluid, replicas=2, observables=[PressureTensor()])
    tensor = run.observed["pressure tensor"] * GPA
    assert tensor.shape == (2, 4, 3, 3)
    np.testing.assert_allclose(tensor, tensor.swapaxes(-1, -2), atol=1e-4)
    pressure = np.trace(tensor, axis1=-2, axis2=-1) / 3.0
    for place in (0, 7):
        frame, at = run[place], divmod(place, 4)
        stress = compiled_evaluate(lennard_jones(), graph_from_atoms(frame, 2.5, slots=96), stress=True).stress[0]
        virial = -float(np.trace(np.asarray(stress))) / 3.0
        assert pressure[at] == pytest.approx(0.75 * run.temperature[at] / REDUCED_K + virial, abs=2e-3)
    with pytest.raises(ValueError, match="must be observed while the simulation runs"):
        average(dataclasses.replace(run, observed={}), PressureTensor())


@pytest.mark.slow
@pytest.mark.physics
def test_mean_pressure_at_constant_volume(agrees) -> None:
    """That of the fluid."""
    options: dict[str, Any] = {"replicas": 4, "steps": 800, "seed": 2, "observables": [PressureTensor()]}
    run = run_fluid(fcc(3), ensemble=molten(), timestep_fs=2 * DT, sample_every_fs=20 * DT, **options)
    mean = average(run, PressureTensor(), equilibration=0.004 * REDUCED_TIME_FS)
    agrees(
        "Lennard-Jones, ρ = 0.75, T = 1, observed on the way: P", mean.value[0, 0] * GPA, mean.error[0, 0] * GPA, 0.9897
    )


def test_no_pressure_without_a_cell() -> None:
    with pytest.raises(ValueError, match="pressure tensor needs a cell that is periodic in all three directions"):
        run_fluid(Atoms("Ar2", positions=[[0, 0, 0], [1.1, 0, 0]]), observables=[PressureTensor()])


@pytest.mark.slow
def test_second_potential_along_the_run() -> None:
    """The errors of one teacher against the other, at the frames of a run and by themselves."""
    gga, r2scan = load_potential("chgnet:gga"), load_potential("chgnet:r2scan")
    water = molecule("H2O")
    run = simulate(
        gga,
        water,
        NVT(300.0),
        steps=4,
        sample_every_fs=0.5,
        replicas=2,
        against=r2scan,
        observables=[MolecularForceError()],
        progress=False,
    )
    ours, theirs = (predict(potential, [*run]) for potential in (gga, r2scan))
    for frame, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        place = divmod(frame, run.n_frames)
        squared = ((a.forces - b.forces) ** 2).mean()
        assert run.observed["squared force error"][place] == pytest.approx(squared, rel=1e-4)
        assert run.observed[MolecularForceError().name][place].sum() == pytest.approx(squared, rel=1e-4)
        assert run.observed["energy difference"][place] == pytest.approx((a.energy - b.energy) / 3, abs=1e-6)


def test_second_potential_makes_room(small_fluid: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little room for its lists at first, and with a longer cutoff than the run's."""
    monkeypatch.setattr(observing, "needs_of", lambda *_, **__: np.ones(4, int))
    longer = lennard_jones(range_=3.0)
    run = run_fluid(small_fluid, against=longer, observables=[SquaredStressError()], replicas=2)
    for replica, frame in ((0, 0), (1, 3)):
        atoms = run[replica * run.n_frames + frame]
        (short,), (far,) = (predict(each, [atoms], stress=True) for each in (lennard_jones(), longer))
        squared = ((short.forces - far.forces) ** 2).mean()
        assert squared > 0
        assert run.observed["squared force error"][replica, frame] == pytest.approx(squared, rel=1e-3)
        difference = (short.energy - far.energy) / 32
        assert run.observed["energy difference"][replica, frame] == pytest.approx(difference, rel=1e-3)
        squared = ((short.stress - far.stress) ** 2).mean() / GPA**2
        assert run.observed["squared stress error"][replica, frame] == pytest.approx(squared, rel=1e-3)


def test_failed_replicas_have_no_means() -> None:
    starts = [fcc(2), fcc(2)]
    starts[1].positions[0] = starts[1].positions[1] + 0.4
    run = run_fluid(starts, observables=[PAIRS], on_failure="mark")
    assert np.isfinite(run.observed["g_ArAr"][0]).all()
    assert np.isnan(run.observed["g_ArAr"][1]).all()


def test_looking_compiles_once(small_fluid: Atoms) -> None:
    """Another run of the same kind, with another second potential of the same kind, compiles nothing."""
    compiled = []
    for epsilon in (0.9, 0.8):
        second = LennardJones({"epsilon": np.float32(epsilon), "sigma": np.float32(1.0)})
        run_fluid(small_fluid, observables=[PAIRS], against=second, replicas=2)
        compiled.append(advance._cache_size())  # type: ignore[attr-defined]
    assert compiled[0] == compiled[1]


def test_refuses_what_cannot_be_observed(small_fluid: Atoms) -> None:
    with pytest.raises(ValueError, match="names of their own, but several are called g_ArAr"):
        run_fluid(small_fluid, observables=[PAIRS, RDF("Ar", "Ar")])
    with pytest.raises(ValueError, match="several are called temperature"):
        run_fluid(small_fluid, observables=[OwnTemperature()])
    with pytest.raises(ValueError, match="heat capacity at constant volume is that of fluctuations, which means"):
        run_fluid(small_fluid, observables=[HeatCapacity(REDUCED_K)])
    with pytest.raises(ValueError, match="observe_every_fs must be positive and at most the"):
        run_fluid(small_fluid, observe_every_fs=11 * DT)
    polonium, one_frame = Atoms("Po", cell=[9.0] * 3, pbc=True), {"steps": 1, "sample_every_fs": 0.5}
    with pytest.raises(ValueError, match="Po"):
        simulate(lennard_jones(), polonium, FLUID, against=load_potential("chgnet:r2scan"), **one_frame)


def test_velocities_are_kept(small_fluid: Atoms, tmp_path: Path) -> None:
    """In memory, in files and in frames; with them frames have a temperature, and a potential gives the pressure.

    That of observation is the one that moves the cell.
    """
    options: dict[str, Any] = {"replicas": 2, "keep_velocities": True, "ensemble": AT_CONSTANT_PRESSURE}
    run = run_fluid(small_fluid, observables=[PressureTensor()], **options)
    assert run.velocities is not None
    assert run.velocities.shape == run.positions.shape
    assert run.pressure_GPa is not None
    traces = np.trace(run.observed["pressure tensor"], axis1=-2, axis2=-1) / 3.0
    np.testing.assert_allclose(traces, run.pressure_GPa, rtol=1e-4, atol=1e-3 / GPA)
    for replica, frame in ((0, 0), (1, 3)):
        atoms = run[replica * run.n_frames + frame]
        kelvin = 2 * atoms.get_kinetic_energy() / (3 * len(atoms) * KB)
        assert kelvin == pytest.approx(run.temperature[replica, frame], rel=1e-5)
    again = observe(run, PressureTensor(), potential=lennard_jones())
    np.testing.assert_allclose(again, run.observed["pressure tensor"], rtol=1e-3, atol=1e-3 / GPA)
    energies = observe(run, PotentialEnergy(), potential=lennard_jones())
    np.testing.assert_allclose(energies, run.potential_energy, rtol=1e-5)

    record(tmp_path / "run.h5", small_fluid, observables=[PressureTensor()], **options)
    np.testing.assert_array_equal(load_run(tmp_path / "run.h5").velocities, run.velocities)
    without: dict[str, Any] = options | {"keep_velocities": False}
    with pytest.raises(ValueError, match="velocities is True there and None here"):
        record(tmp_path / "run.h5", small_fluid, observables=[PressureTensor()], **without)
    assert run_fluid(small_fluid).velocities is None


def test_values_have_derivatives_by_the_potential(small_fluid: Atoms, x64: None) -> None:
    """Of a run's mean potential energy, virial pressure and force error, against finite differences."""
    moving = np.random.default_rng(0).normal(scale=1e-3, size=(1, 1, 32, 3))
    run = as_run(small_fluid.positions[None, None], small_fluid.numbers, small_fluid.cell.array, velocities=moving)
    frames = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0], float), frame_states(run, potential=lennard_jones()))
    frames = frames.replace(forces=jnp.zeros_like(frames.positions))

    @jax.jit
    def value(epsilon: Any) -> Any:
        potential = LennardJones({"epsilon": epsilon, "sigma": jnp.asarray(1.0)})
        seen = [each.per_frame(frames, potential) for each in (PotentialEnergy(), Pressure(), SquaredForceError())]
        return jnp.stack(seen)

    found, here = jax.jit(jax.jacfwd(value))(jnp.asarray(1.0)), value(jnp.asarray(1.0))
    step = (value(jnp.asarray(1.0 + 1e-5)) - value(jnp.asarray(1.0 - 1e-5))) / 2e-5
    np.testing.assert_allclose(found, step, rtol=1e-8)
    assert found[0] == pytest.approx(float(here[0]), rel=1e-10), "the energy is proportional to ε"


def test_what_frames_do_not_know_is_said(small_fluid: Atoms) -> None:
    run = run_fluid(small_fluid)
    with pytest.raises(ValueError, match="no momenta: simulate with keep_velocities=True"):
        observe(run, PressureTensor(), potential=lennard_jones())
    with pytest.raises(ValueError, match="no prediction: give the potential to compare with"):
        observe(run, SquaredForceError())
    with pytest.raises(ValueError, match="no forces: observe while the simulation runs"):
        observe(run, SquaredForceError(), potential=lennard_jones())
