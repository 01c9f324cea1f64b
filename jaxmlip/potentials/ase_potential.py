"""Any ASE calculator as a Potential: slow, but right, wherever a potential of ours runs.

Compiled code asks the calculator on the host, one structure after another, by `jax.pure_callback`. Forces and stress
are the calculator's own: they are the derivative of the energy by positions and cell, and there is no other.
"""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Int

from jaxmlip.potentials.ase import AseTeacher
from jaxmlip.potentials.host_calculator import ENERGY, FORCES, STRESS, HostCalculator
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import Graph
from jaxmlip.types import Leaf, PerAtom, PerGraph

CUTOFF = 0.1
"""Å: a calculator looks for neighbours itself, so that the lists that are made for every potential shall be empty."""


@flax.struct.dataclass
class AsePotential(Potential):
    """An ASE calculator as a Potential; made by `from_ase`, or by `load("ase:package.module:factory")`.

    It has energies, and derivatives by positions and cell, of first order: those by its parameters and those of
    second order are refused. Under `jax.vmap` structures are computed one after another, and of several threads or
    devices one at a time has the calculator. Where the calculator fails, energies and forces are NaN, and `complaint`
    says why. Energies are ASE's `get_potential_energy`. The structures it is asked for have atomic numbers,
    positions, cell and periodicity; all else is that of the template, if there is one.

    Attributes:
        params: [], a number that stands for the parameters, which JAX cannot see.
        host: the calculator, and what belongs to it (static: one object, one compilation).
    """

    params: Leaf
    host: HostCalculator = flax.struct.field(pytree_node=False)

    @property
    def opaque(self) -> bool:
        """True: the parameters are the calculator's."""
        return True

    @property
    def references(self) -> Float[np.ndarray, "119"]:
        """Energies of isolated atoms, of the elements that were needed so far; 0 for others. See `references_for`."""
        return self.host.references(())

    def references_for(self, species: Sequence[int] | Int[np.ndarray, " atoms"]) -> Float[np.ndarray, "119"]:
        """Energies of isolated atoms in eV, which the calculator computes once for each element.

        An element is 0 if it cannot, unless `from_ase` was given its energy. Totals are right either way, for what is
        subtracted before is added after; but single precision then rounds them as they are.
        """
        return self.host.references(species)

    def has_references(self, species: Sequence[int] | Int[np.ndarray, " atoms"]) -> bool:
        """Whether the energies of isolated atoms of these elements are known."""
        self.host.references(species)
        return not self.host.without_reference(species)

    @property
    def cutoff(self) -> float:
        """0.1 Å, as good as none: the calculator finds its neighbours itself."""
        return CUTOFF

    @property
    def species(self) -> tuple[int, ...]:
        """All: which elements a calculator knows is found out by asking."""
        return tuple(range(1, N_SPECIES))

    def energy(self, graph: Graph) -> PerGraph:
        """The calculator's energy of each graph in eV, relative to the references; 0 for padding graphs."""
        handle, graph = jax.tree.map(jnp.asarray, (self.params, graph))
        return _energies(self.host, handle, graph.positions, graph.cell, graph.species, graph.owner)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """The energy of each graph, spread evenly over its atoms, eV; 0 for padding atoms."""
        graph = jax.tree.map(jnp.asarray, graph)
        share = self.energy(graph) / jnp.maximum(graph.atoms_per_graph(), 1.0)
        return jnp.where(graph.atom_mask, share[jnp.minimum(graph.owner, graph.n_graphs - 1)], 0.0)

    def label(self, structures: Sequence[Atoms], *, stress: bool = False, progress: bool = False) -> list[Frame]:
        """Label structures by the calculator directly, in double precision; see `ase.labels_of`."""
        return self.host.label(structures, stress=stress, progress=progress)

    def check(self, atoms: Atoms, *, stress: bool = False) -> None:
        """Whether the calculator can be made, has a stress if one is asked for, and can be told all it may read.

        Raises:
            ValueError: if not.
            ImportError: if it cannot be imported.
        """
        self.host.check(atoms, stress)

    def complaint(self) -> str:
        """Why the calculator last failed, since this was asked before; empty if it did not."""
        return self.host.complaint()

    def __str__(self) -> str:
        """The calculator's name."""
        return self.host.name


def from_ase(
    calculator: Any, *, references: Mapping[str, float | int] | None = None, template: Atoms | None = None
) -> AsePotential:
    """An ASE calculator as a Potential.

    Wrapped again, the same calculator shares compiled code.

    Args:
        calculator: any object with the interface of ASE's calculators. It is asked for one structure at a time, by
            threads of JAX.
        references: energies of isolated atoms by element in eV, such as {"O": -2043.9}; those that are not given are
            computed by the calculator when they are needed.
        template: where the other arrays and the `info` of structures with the same atoms in the same order come from:
            initial magnetic moments and charges, tags, a total charge.

    Raises:
        TypeError: if it is no calculator.
        ValueError: for a reference that is not finite, or of no element.
    """
    if isinstance(calculator, type | Atoms | Potential) or not hasattr(calculator, "get_potential_energy"):
        raise TypeError(
            f"An ASE calculator is an object such as EMT(), with get_potential_energy and get_forces, not "
            f"{calculator!r}."
        )
    kind = type(calculator)
    settings = getattr(calculator, "parameters", None) or {}
    identity = f"{kind.__module__}:{kind.__qualname__}({', '.join(f'{k}={settings[k]!r}' for k in sorted(settings))})"
    given = _checked_references(references or {})

    def host() -> HostCalculator:
        return HostCalculator(lambda: calculator, f"{kind.__module__}:{kind.__qualname__}", identity, given, template)

    if given or template is not None:
        return _potential(host())
    return _potential(_shared(("object", id(calculator)), host))


def named(name: str) -> AsePotential:
    """The Potential of a calculator's name; the calculator is made when it is first needed, once in a process.

    Raises:
        ValueError: if the name is malformed, see `AseTeacher.parse`.
        ImportError: if there is no such factory.
    """
    teacher = AseTeacher.parse(name)
    teacher.import_factory()
    text = str(teacher)
    return _potential(_shared(("name", text), lambda: HostCalculator(teacher.calculator, text, text)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _energies(host: HostCalculator, handle: Any, positions: Any, cell: Any, species: Any, owner: Any) -> Any:
    """Energies of all graphs, differentiable by positions and cell."""
    del handle
    return _asked(host, ENERGY, positions, cell, species, owner)[0]


@functools.partial(_energies.defjvp, symbolic_zeros=True)
def _energies_jvp(host: HostCalculator, at: tuple, along: tuple) -> tuple[Any, Any]:
    """Forces are minus the derivative by positions; stress and forces make that by the cell."""
    _, positions, cell, species, owner = at
    by_handle, moved, stretched, *_ = along
    if not isinstance(by_handle, SymbolicZero):
        raise NotImplementedError(
            f"The parameters of the calculator {host.name} are not known to JAX, so nothing can be differentiated by "
            "them; differentiate by positions and cells, by another term of the sum, or distil it into a student."
        )
    with_cell = not isinstance(stretched, SymbolicZero)
    energies, forces, *rest = _first_derivatives(host, with_cell, positions, cell, species, owner)
    slope = jnp.zeros_like(energies)
    if not isinstance(moved, SymbolicZero):
        slope -= jax.ops.segment_sum((forces * moved).sum(-1), owner, num_segments=len(energies))
    if with_cell:
        slope += (rest[0] * stretched).sum((1, 2))
    return energies, slope


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _first_derivatives(
    host: HostCalculator, with_cell: bool, positions: Any, cell: Any, species: Any, owner: Any
) -> tuple[Any, ...]:
    """Energies, forces and, if asked for, derivatives by the cell; not differentiable."""
    return _asked(host, STRESS if with_cell else FORCES, positions, cell, species, owner)


@_first_derivatives.defjvp
def _refuse_second_derivatives(host: HostCalculator, with_cell: bool, at: tuple, along: tuple) -> Any:
    del with_cell, at, along
    raise NotImplementedError(
        f"The calculator {host.name} gives energy, forces and stress, and no second derivatives; take differences of "
        "forces, or distil it into a student, which has them all."
    )


def _asked(host: HostCalculator, level: int, positions: Any, cell: Any, species: Any, owner: Any) -> tuple[Any, ...]:
    """The question to the host.

    Double precision travels as pairs of integers: JAX's threads that call back do not know of a `jax.enable_x64` that
    is valid in this one alone, and would round what they hand over.
    """
    real = np.dtype(positions.dtype)
    shapes = [cell.shape[:1], positions.shape, cell.shape][:level]
    ask = functools.partial(host.answers, level, real)
    if real != np.float64:
        wanted = tuple(jax.ShapeDtypeStruct(shape, real) for shape in shapes)
        return jax.pure_callback(ask, wanted, positions, cell, species, owner, vmap_method="sequential")
    wanted = tuple(jax.ShapeDtypeStruct((*shape, 2), np.uint32) for shape in shapes)
    positions, cell = (jax.lax.bitcast_convert_type(each, jnp.uint32) for each in (positions, cell))
    bits = jax.pure_callback(ask, wanted, positions, cell, species, owner, vmap_method="sequential")
    return tuple(jax.lax.bitcast_convert_type(each, real) for each in bits)


_HOSTS: "weakref.WeakValueDictionary[tuple[str, Any], HostCalculator]" = weakref.WeakValueDictionary()
"""Calculators in use, so that one that is wrapped or named again is the same."""


def _shared(key: tuple[str, Any], make: Callable[[], HostCalculator]) -> HostCalculator:
    host = _HOSTS.get(key)
    if host is None:
        host = _HOSTS[key] = make()
    return host


def _potential(host: HostCalculator) -> AsePotential:
    return AsePotential(params=np.zeros(()), host=host)


def _checked_references(references: Mapping[str, float | int]) -> dict[int, float]:
    """By atomic number."""
    for symbol, energy in references.items():
        if symbol not in atomic_numbers or not np.isfinite(energy):
            raise ValueError(f"A reference is the finite energy of an element in eV, not {symbol!r}: {energy!r}.")
    return {atomic_numbers[symbol]: float(energy) for symbol, energy in references.items()}
