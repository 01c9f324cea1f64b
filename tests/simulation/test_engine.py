"""The compiled block of dynamics: what it lowers to for accelerators, and that nothing in it waits for the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import DT, FLUID, fluid_options
from lowering import accelerators_student, check_lowered
from simple_potentials import REDUCED_K, lennard_jones

from jaxmlip.memory import needed_bytes
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.engine import Motion, advance
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.step import Layout
from jaxmlip.units import FS


def crystal() -> Atoms:
    atoms = bulk("OH", "rocksalt", a=3.6, cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def block_of(driver: Driver, layout: Layout, until: int) -> tuple[Any, ...]:
    """The arguments of `advance`, on the device."""
    motion = Motion(
        potential=driver.potential,
        system=driver.system,
        dynamics=driver.dynamics,
        observation=driver.observation,
        dt=driver.timestep_fs * FS,
        skin=driver.skin,
        capacity=driver.capacity,
        layout=layout,
        stop_at_failure=False,
    )
    return jax.device_put((motion, driver.replicas, driver.means, until))


@pytest.mark.parametrize(
    ("moving_cell", "models"),
    [(False, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((True, 1), (False, 2)))],
)
def test_a_block_lowers_for_accelerators(moving_cell: bool, models: int) -> None:
    """NVT with observation, NPT with a flexible cell, and two models side by side that are held against a third."""
    potentials: list[Potential] = [accelerators_student(seed, l_max=0) for seed in range(models)]
    seen: dict[str, Any] = {"observables": [RDF("O", "O", r_max=1.5, bins=4)]}
    seen |= {"against": accelerators_student(7, l_max=0)} if models > 1 else {}
    options = Options(steps=100, on_failure="mark", skin=0.3, **({} if moving_cell else seen))
    ensemble = NPT(300.0, 0.0, cell="flexible") if moving_cell else NVT(300.0)
    driver = make_session(potentials, crystal(), ensemble, options).driver
    check_lowered(advance, *block_of(driver, Layout(models=models > 1, side_by_side=True), 20))


def test_a_potential_of_many_elements_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all replicas together; room made on the way keeps what was said."""
    tiny = Equivariant(channels=2, l_max=1, correlation=1, layers=1, cutoff=3.0, radial_functions=2, radial_mlp=(4,))
    potential = tiny.build(range(1, 12), average_neighbors=10.0)
    driver = make_session([potential], crystal(), NVT(300.0), Options(steps=20, replicas=2)).driver
    capacity = driver.capacity
    assert capacity.elements == (2, 0)
    assert capacity.grown(np.array([60, 50, 0, 0]), driver.heights, 3.5, 8).elements == (2, 0)
    driver.restore(driver.snapshot(driver.now, []))
    assert driver.capacity == capacity
    seen = []
    monkeypatch.setattr(
        type(potential), "energy", lambda _, graph: seen.append(graph.elements) or graph.cell.sum((1, 2))
    )
    jax.eval_shape(advance, *block_of(driver, Layout(), 20))
    assert set(seen) == {(2, 0)}


@pytest.mark.parametrize("moving_cell", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["NVT", "NPT"])
def test_no_round_trip_to_the_host_inside_a_block(moving_cell: bool, small_fluid: Atoms) -> None:
    """Steps, new lists and observation under `jax.transfer_guard("disallow")`, which lets nothing pass unasked."""
    ensemble = NPT(2 * REDUCED_K, 0.0, cell="flexible", friction_per_ps=10.0) if moving_cell else FLUID
    seen = {"observables": [RDF("Ar", "Ar", r_max=1.5, bins=4)], "observe_every_fs": 5 * DT}
    options = fluid_options(steps=100, sample_every_fs=50 * DT, skin=0.1) | seen
    options = Options(replicas=2, **{name: value for name, value in options.items() if name != "progress"})
    driver = make_session([lennard_jones()], small_fluid, ensemble, options).driver
    driver.prepare()
    driver.advance(50)
    driver.forget()
    arguments = block_of(driver, driver.layout, 100)
    host = np.float32(2.0)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match=r"[Dd]isallowed"):
            jnp.add(arguments[0].dt, host)  # the guard does guard
        replicas, means = jax.block_until_ready(advance(*arguments))
    assert int(replicas.step) == 100
    assert np.asarray(means.count).tolist() == [10, 10]
    moved = np.abs(np.asarray(replicas.origin - driver.replicas.origin)).max()
    assert moved > 0.05  # lists were made on the way


@pytest.mark.slow
def test_memory_of_a_hundred_thousand_atoms_is_as_stated() -> None:
    """A block of dynamics, neighbour lists and all: less than 16 GiB at 64 channels with vector messages."""
    atoms = bulk("O", "sc", a=2.2, cubic=True).repeat(47)  # 56 neighbours within the cutoff
    potential = Equivariant(channels=64, l_max=3, message_l=1, cutoff=5.0).build([8], average_neighbors=50.0)
    options = Options(steps=100, on_failure="mark")
    driver = make_session([potential.replace(form="accelerator")], atoms, NVT(300.0), options).driver
    assert driver.capacity.bins is not None  # in time proportional to the number of atoms
    motion, replicas, means, until = block_of(driver, driver.layout, 100)
    needed = needed_bytes(advance.lower(motion, replicas, means, until).compile())
    assert len(atoms) > 100_000
    assert needed < 16 * 2**30
