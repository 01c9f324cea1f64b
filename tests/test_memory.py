"""What does not fit into a device's memory is refused before it runs; here devices of a size that tests say."""

import logging

import jax
import jax.numpy as jnp
import pytest
from ase import Atoms
from simple_potentials import lennard_jones

from jaxmlip import memory
from jaxmlip.memory import TooLarge, check_fits, needed_bytes
from jaxmlip.simulation.ensembles import NVE
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session


def test_what_a_program_needs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Arguments, results and what is between; of devices alone that say what they have, and compiled once."""
    many = jax.jit(lambda x: jnp.sort(jnp.sin(x)) @ jnp.cos(x))
    x = jnp.ones(2**18)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        check_fits(many, x, number=1, what="arrays", mend="shorter ones")
        assert "XLA compilation" not in caplog.text  # a CPU says nothing, and nothing is asked
        monkeypatch.setattr(memory, "memory_limit", lambda: 2**30)
        check_fits(many, x, number=1, what="arrays", mend="shorter ones")
        many(x)
        assert caplog.text.count("Finished XLA compilation of jit(<lambda>)") == 1
    assert 2**20 < needed_bytes(many.lower(x).compile()) < 2**24
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**19)
    with pytest.raises(
        TooLarge, match=r"1 arrays need .* about 0 would fit, which is not one; give fewer, or shorter ones"
    ):
        check_fits(many, x, number=1, what="arrays", mend="shorter ones")


def test_a_simulation_says_how_many_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it starts."""
    fluid = Atoms("Ar4", positions=[[0, 0, 0], [0, 0.8, 0.8], [0.8, 0, 0.8], [0.8, 0.8, 0]], cell=[1.6] * 3, pbc=True)
    monkeypatch.setattr(memory, "memory_limit", lambda: 200_000)
    session = make_session([lennard_jones()], fluid, NVE(10.0), Options(steps=100, replicas=8))
    with pytest.raises(TooLarge, match=r"8 replicas of 4 atoms need .*: about [1-7] would fit; give fewer, or share"):
        session.run(progress=False)
