"""The form for accelerators on any machine: the numbers of the form for CPUs, what it lowers to, what it takes."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from jaxmlip.potentials import blocks
from jaxmlip.potentials.blocks import Blocks, form_of_this_machine, in_blocks
from jaxmlip.potentials.chgnet_checkpoint import load_chgnet
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.equivariant_layers import paths
from jaxmlip.potentials.potential import Potential, evaluate, fingerprint
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms, in_tiers

CUTOFF = 3.5


def student(message_l: int, **options: Any) -> EquivariantPotential:
    sizes: dict[str, Any] = {"channels": 4, "l_max": 1, "correlation": 2, "cutoff": CUTOFF, "layers": 2}
    small: dict[str, Any] = {"radial_functions": 4, "radial_mlp": (8,)}
    return Equivariant(message_l=message_l, **sizes, **small).build(
        [1, 8], average_neighbors=12.0, scale=0.8, **options
    )


def crystal() -> Atoms:
    atoms = bulk("OH", "rocksalt", a=3.6, cubic=True) * (1, 1, 2)
    atoms.rattle(0.1, seed=0)
    return atoms


def graph(dtype: type = np.float64, cutoff: float = CUTOFF) -> Graph:
    return graph_from_atoms(crystal(), cutoff, dtype=dtype)


def test_blocks_are_the_whole() -> None:
    """Of any size, values and gradients."""
    x, y = jnp.arange(70.0).reshape(10, 7), jnp.arange(10.0)

    def value(x: Any, y: Any, how: Blocks) -> Any:
        return in_blocks(lambda a, b: jnp.sin(a).sum(1) * b, how, x, y)

    whole = jnp.sin(x).sum(1) * y
    for how in (Blocks(3, 64), Blocks(3, 2), Blocks(4, None), Blocks(100, None)):
        np.testing.assert_allclose(value(x, y, how), whole, rtol=1e-6)
        slope = jax.grad(lambda x, how=how: value(x, y, how).sum())(x)
        np.testing.assert_allclose(slope, jnp.cos(x) * y[:, None], rtol=1e-5)
    assert len(value(x[:0], y[:0], Blocks(100, None))) == 0


@pytest.mark.parametrize("roomy", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("message_l", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_forms_of_the_student_agree(message_l: int, roomy: bool, x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding: energy, forces, stress and the gradient by parameters; also where memory has room for five atoms."""
    here = graph()
    if message_l:
        here, _ = in_tiers(here, ((8, here.n_slots), (8, here.n_slots)))
    potential = student(message_l)

    def found(form: str) -> Any:
        @jax.jit
        def everything(potential: Potential) -> Any:
            said = evaluate(potential, here, stress=True)
            slope = jax.grad(lambda potential: potential.energy(here).sum(), allow_int=True)(potential).params
            return said, slope

        return everything(potential.replace(form=form))

    whole = found("cpu")
    if not roomy:
        room = 5 * 4.0 * blocks.COPIES * here.n_slots * 4 * len(paths(message_l, 1))
        monkeypatch.setattr(blocks, "BUDGET", room)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(found("accelerator")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_forms_of_chgnet_agree() -> None:
    teacher, here = load_chgnet("gga"), graph(np.float32, 6.0)
    both = [jax.jit(evaluate)(teacher.replace(form=form), here) for form in ("cpu", "accelerator")]
    np.testing.assert_allclose(both[0].energy, both[1].energy, rtol=1e-6)
    np.testing.assert_allclose(both[0].forces, both[1].forces, atol=2e-5)


def test_form_is_no_part_of_what_a_potential_is() -> None:
    """Its digest is the same; what is made of a potential keeps its form."""
    potential = student(0)
    assert potential.form == form_of_this_machine()
    other = potential.replace(form="accelerator")
    for one in (potential, load_chgnet("gga")):
        assert fingerprint(one.replace(form="cpu")) == fingerprint(one.replace(form="accelerator"))
    assert other.fresh(references=np.zeros(119), scale=1.0, shift=0.0, seed=1).form == "accelerator"
    assert other.with_heads(2).select_head(1).form == "accelerator"


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", ["student", "chgnet"])
def test_lowers_for_accelerators(kind: str, platform: str) -> None:
    """Energy, forces and stress: nothing of the host, no double precision, no shape that is not known."""
    potential = (student(1) if kind == "student" else load_chgnet("gga")).replace(form="accelerator")
    here = graph(np.float32, potential.cutoff)
    call = jax.jit(lambda potential, graph: evaluate(potential, graph, stress=True))
    exported = jax.export.export(call, platforms=[platform])(potential, here)
    program = exported.mlir_module()
    assert "callback" not in program
    assert not re.search(r"x?f64", program)
    assert not re.search(r"tensor<\?", program)


@pytest.mark.slow
def test_memory_of_many_atoms_is_as_stated() -> None:
    """100,000 atoms of 64 channels with vector messages: the program needs less than 16 GiB beside its arguments."""
    sizes: dict[str, Any] = {"channels": 64, "l_max": 3, "message_l": 1, "cutoff": 5.0}
    potential = Equivariant(**sizes).build([8], average_neighbors=50.0).replace(form="accelerator")
    one = batch_graphs([graph_from_atoms(Atoms("O", pbc=True, cell=[3.0] * 3), 5.0)], n_atoms=8, n_graphs=1, slots=50)
    many = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((100_000 if leaf.shape[:1] == (8,) else 1, *leaf.shape[1:]), leaf.dtype), one
    )
    compiled = jax.jit(evaluate).lower(potential, many).compile()
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 16 * 2**30
