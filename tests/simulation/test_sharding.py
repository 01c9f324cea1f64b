"""Replicas on several devices and in several processes, and several models: the same trajectories."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import simulate_here
from ase import Atoms
from conftest import DT, FLUID, run_fluid
from several_processes import ended, group_of, started, with_devices
from simple_potentials import LennardJones

from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Outcome, Run, load_run


@pytest.fixture(scope="module")
def alone() -> Run:
    """On one device."""
    run = simulate_here.simulated()
    assert isinstance(run, Run)
    return run


def assert_same(run: Run, alone: Run) -> None:
    """But for the rounding of sums over neighbours in another order: devices make lists when they need them."""
    np.testing.assert_allclose(run.positions, alone.positions, atol=2e-5)
    np.testing.assert_allclose(run.cells, alone.cells, rtol=1e-6)
    np.testing.assert_allclose(run.potential_energy, alone.potential_energy, atol=1e-4)
    assert run.pressure_GPa is not None
    assert alone.pressure_GPa is not None
    np.testing.assert_allclose(run.pressure_GPa, alone.pressure_GPa, rtol=1e-3)
    np.testing.assert_allclose(run.observed["g_ArAr"], alone.observed["g_ArAr"], atol=0.02)
    assert run.outcomes == alone.outcomes
    np.testing.assert_array_equal(run.lengths, alone.lengths)


def test_four_devices(alone: Run, tmp_path: Path) -> None:
    ended(started(simulate_here.__file__, tmp_path / "four.h5", 4, **with_devices(4)))
    assert_same(load_run(tmp_path / "four.h5"), alone)


@pytest.mark.slow
def test_two_processes(alone: Run, tmp_path: Path) -> None:
    """Of two devices each; both return the whole run, and each writes a file of its own replicas."""
    ended(
        *(
            started(simulate_here.__file__, tmp_path / f"{rank}.h5", 2, **with_devices(2), **group)
            for rank, group in enumerate(group_of(2))
        )
    )
    unlike = simulate_here.simulated_each()
    for rank in range(2):
        assert_same(load_run(tmp_path / f"{rank}.h5"), alone)
        for place, run in enumerate(unlike):
            assert_same(load_run(tmp_path / f"{rank}.{place}.h5"), run)
    parts = sorted(tmp_path.glob("shared.*.h5"))
    assert [part.name for part in parts] == ["shared.0.h5", "shared.1.h5"]
    assert_same(load_run(parts), alone)
    dataclasses.replace(load_run(parts[1]), numbers=np.full(32, 2)).save(tmp_path / "helium.h5")
    with pytest.raises(ValueError, match=r"helium.h5 and .*shared.0.h5 hold different runs"):
        load_run([parts[0], tmp_path / "helium.h5"])


def test_models_are_simulated_as_if_alone(small_fluid: Atoms) -> None:
    """Each with its own references, from the same random numbers."""
    models = [LennardJones({"epsilon": np.float32(e), "sigma": np.float32(1.0)}, np.full(119, e)) for e in (0.9, 1.1)]
    options = {"steps": 40, "timestep_fs": DT, "sample_every_fs": 10 * DT, "skin": 0.3, "progress": False}
    runs = simulate(models, small_fluid, FLUID, replicas=2, against=models[0], **options)
    assert len(runs) == 2
    for model, run in zip(models, runs, strict=True):
        single = run_fluid(small_fluid, model, replicas=2, against=models[0])
        np.testing.assert_allclose(run.positions, single.positions, atol=2e-5)
        np.testing.assert_allclose(run.potential_energy, single.potential_energy, atol=1e-4)
        for name, values in single.observed.items():
            np.testing.assert_allclose(run.observed[name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    assert runs[0].observed["squared force error"].max() < 1e-8
    assert runs[1].observed["squared force error"].min() > 1e-3
    np.testing.assert_array_equal(runs[0].positions[:, 0] == runs[1].positions[:, 0], False)


@pytest.mark.slow
def test_a_model_that_fails_leaves_the_others(small_fluid: Atoms) -> None:
    broken = LennardJones({"epsilon": np.float32(np.nan), "sigma": np.float32(1.0)})
    sound = LennardJones({"epsilon": np.float32(1.0), "sigma": np.float32(1.0)})
    options = {"steps": 40, "timestep_fs": DT, "sample_every_fs": 10 * DT, "skin": 0.3, "progress": False}
    runs = simulate([broken, sound], small_fluid, FLUID, **options)
    assert runs[0].outcomes == (Outcome.NOT_FINITE,)
    assert np.isnan(runs[0].positions).all()
    np.testing.assert_allclose(runs[1].positions, run_fluid(small_fluid, sound).positions, atol=2e-5)


def test_refuses_what_cannot_be_shared(small_fluid: Atoms) -> None:
    one, other = (LennardJones({"epsilon": np.float32(1.0), "sigma": np.float32(1.0)}, range_=r) for r in (2.5, 3.0))
    with pytest.raises(ValueError, match="Potentials 0 and 1 cannot be simulated by one program"):
        simulate([one, other], small_fluid, FLUID, steps=1, sample_every_fs=0.5)
    with pytest.raises(ValueError, match="There are no potentials"):
        simulate([], small_fluid, FLUID, steps=1, sample_every_fs=0.5)
    with pytest.raises(ValueError, match="devices is 9, but there are 1 devices"):
        run_fluid(small_fluid, devices=9)
