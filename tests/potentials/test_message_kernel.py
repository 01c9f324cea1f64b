"""Messages by the kernel, interpreted, against the plain form; what it lowers to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from jaxmlip.potentials import message_kernels
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.message_kernel import Plan, contraction
from jaxmlip.potentials.message_kernels import FINAL, HARMONICS, HIDDEN, NAMES, SOURCES, SUMS, coupling
from jaxmlip.potentials.potential import Potential, evaluate, stack
from jaxmlip.systems.batches import Batch
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.training.loss import Terms, Weights, loss

TRITON = "__gpu$xla.gpu.triton"


FEW, MANY = (1, 8), (1, 6, 7, 8, 9)
"""Elements; with many the first layer has general messages, too."""


def student(message_l: int, elements: tuple[int, ...], seed: int = 0, layers: int = 2) -> EquivariantPotential:
    sizes: dict[str, Any] = {"channels": 4, "l_max": 1, "correlation": 2, "cutoff": 3.0, "layers": layers}
    model = Equivariant(radial_functions=4, radial_mlp=(8,), message_l=message_l, **sizes)
    return model.build(elements, average_neighbors=6.0, scale=0.8, seed=seed)


def graph(dtype: type) -> Graph:
    """Four atoms, two of padding, and slots that no atom fills."""
    atoms = bulk("OH", "rocksalt", a=3.6, cubic=True)[:4]
    atoms.rattle(0.1, seed=0)
    one = graph_from_atoms(atoms, 3.0, dtype=dtype)
    return batch_graphs([one], n_atoms=6, n_graphs=2, slots=one.n_slots + 3)


def labelled(graph: Graph) -> Batch:
    draw, nothing = np.random.default_rng(1), np.full(2, np.nan)
    forces = np.where(graph.atom_mask[:, None], draw.standard_normal(graph.positions.shape), np.nan)
    index = np.array([0, -1], np.int32)
    stress = draw.standard_normal((2, 3, 3)) * np.array([1.0, np.nan])[:, None, None]
    energy = np.array([3.0, np.nan])
    return Batch(graph, energy, forces, stress, nothing, np.zeros(2, np.int32), np.array([1.0, 0.0]), index)


@functools.partial(jax.jit, static_argnames=("form", "terms"))
def losses_and_slopes(potential: Potential, batch: Batch, form: str, terms: Terms) -> Any:
    """The loss, its terms, and its gradient by all parameters, which differentiates forces and stress."""
    slope = jax.value_and_grad(loss, has_aux=True, allow_int=True)
    found, by_potential = slope(potential.replace(form=form), batch, Weights(), terms=terms)
    return found, by_potential.params


def test_contractions(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is left out in turn, in several tiles and parts, by the sum as it is written."""
    monkeypatch.setattr(message_kernels, "SLOTS", 16)
    monkeypatch.setattr(message_kernels, "CHANNELS", 16)
    monkeypatch.setattr(message_kernels, "PARTS", 2)
    how, draw = coupling(1, 1), np.random.default_rng(0)
    systems, atoms, slots, hidden, channels, sources = 2, 3, 32, 16, 32, 5
    neighbors = jnp.asarray(draw.integers(0, sources, (systems, atoms, slots)))
    shapes = {
        HARMONICS: (systems, atoms, how.rows, slots),
        HIDDEN: (systems, atoms, slots, hidden),
        FINAL: (systems, len(how.paths), hidden, channels),
        SOURCES: (systems, sources, 4, channels),
        SUMS: (systems, atoms, how.places, how.rows, channels),
    }
    five = [jnp.asarray(draw.standard_normal(shapes[place])) for place in range(5)]
    of_path = np.zeros((len(how.paths), 4, how.places, how.rows, how.rows))
    for p, (place, terms) in enumerate(how.paths):
        for x, matrix in terms:
            of_path[p, x, place] = how.matrices[matrix]

    def total(five: Any) -> Any:
        """Linear in each of the five, so that its gradients are what is left out."""
        edges = five[SOURCES][jnp.arange(systems)[:, None, None], neighbors]
        weights = jnp.einsum("nash,nphc->naspc", five[HIDDEN], five[FINAL])
        uncoupled = jnp.einsum("nays,naspc,nasxc->napxyc", five[HARMONICS], weights, edges)
        return jnp.einsum("napxyc,pxkmy,nakmc->", uncoupled, of_path, five[SUMS])

    expected = jax.jit(jax.grad(total))(five)
    plan = Plan(1, 1, sources, slots)
    for target, name in enumerate(NAMES):
        given = [each for place, each in enumerate(five) if place != target]
        found = contraction.bind(neighbors, *given, target=target, plan=plan)
        np.testing.assert_allclose(found, expected[target], rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("message_l", "elements", "layers"),
    [
        (0, MANY, 1),
        pytest.param(0, FEW, 2, marks=pytest.mark.slow),
        pytest.param(1, FEW, 2, marks=pytest.mark.slow),
        pytest.param(1, MANY, 2, marks=pytest.mark.slow),
    ],
)
def test_is_the_plain_form(message_l: int, elements: tuple[int, ...], layers: int, x64: None) -> None:
    """Errors of energy and forces (and stress), and the gradient of a loss of them by all parameters."""
    potential, batch = student(message_l, elements, layers=layers), labelled(graph(np.float64))
    potential = potential.replace(params=jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), potential.params))
    terms = Terms(energy=True, forces=True, stress=layers == 2)
    plain, kernel = (losses_and_slopes(potential, batch, form, terms) for form in ("accelerator", "accelerator_kernel"))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)
        assert np.any(one != 0)


def test_stacked_in_single_precision() -> None:
    """Two potentials at once, energies and forces, through a layer that is not the first."""
    both = [student(0, FEW, seed) for seed in range(2)]
    call = jax.jit(jax.vmap(evaluate, in_axes=(0, None)))
    here = graph(np.float32)
    plain, kernel = (
        call(stack([each.replace(form=form) for each in both]), here) for form in ("accelerator", "accelerator_kernel")
    )
    np.testing.assert_allclose(plain.energy, kernel.energy, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(plain.forces, kernel.forces, rtol=2e-5, atol=2e-6)
    assert min(np.abs(kernel.forces).max(), np.abs(kernel.energy[0] - kernel.energy[1]).max()) > 1e-3


@pytest.mark.skipif(jax.__version_info__ > (0, 10, 1), reason="later versions lower kernels where there is a GPU alone")
def test_lowers_for_cuda() -> None:
    """A force call has a kernel for the messages of each of two layers and three for each of their derivatives.

    It is one program of XLA and Triton, which needs nothing of the host; that it is not called a stable one says only
    that it is not to be stored.
    """
    potential = student(0, MANY).replace(form="accelerator_kernel")
    unstable = [jax.export.DisabledSafetyCheck.custom_call(TRITON)]
    exported = jax.export.export(jax.jit(evaluate), platforms=["cuda"], disabled_checks=unstable)
    program = exported(potential, graph(np.float32)).mlir_module()
    assert "callback" not in program
    # The features of the first layer are those of the elements, which do not move.
    kernels = {name: program.count(f'name = "messages_{name}"') for name in NAMES}
    assert kernels == {"harmonics": 2, "hidden": 2, "final": 0, "sources": 1, "sums": 2}
