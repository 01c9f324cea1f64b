"""What an ensemble is: the description that a user writes, and the dynamics that samples it, a pytree of its numbers.

An ensemble of one's own takes both: a `Dynamics` with its numbers and how a step integrates them, and an `Ensemble`, a
frozen dataclass in the units that users like, which makes it. `jaxmlip.testing.check_ensemble` holds it to the laws.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from jaxmlip.pytrees import Distinct
from jaxmlip.simulation.schedules import Schedule
from jaxmlip.types import Leaf
from jaxmlip.units import FS

PS = 1000.0 * FS
"""One picosecond in the internal unit of time."""


class Dynamics(Distinct, flax.struct.PyTreeNode, abc.ABC):
    """The numbers of an ensemble in all replicas, and how a step integrates its equations of motion.

    Fields are numbers in internal units (eV, Å, amu): a `Schedule` each; `at(time)` has their values in place of them.
    They are the leaves of the pytree, so that runs at other temperatures share compiled code and anything may be
    differentiated by them; what is compiled depends on the class alone. The names of the methods follow jax-md.

    `init`, `move`, `finish` and `reservoir` treat one replica, with values of its own:
    `jax.vmap(lambda now, state: now.move(state, dt))(dynamics.at(time), states)`. A step pauses between `move` and
    `finish`, where forces are needed, so that one call of the potential gives those of all replicas. States are of any
    class that is a `states.State`, and a `states.StateWithCell` if the cell moves.

    Attributes:
        moves_cell: whether states have a `cell` that moves and want the `stress` for it.
        conserves: whether total energy + `reservoir` is conserved while the numbers do not change.
        pads: whether there may be padding atoms, which weigh `PADDING_MASS` and feel no force; the step keeps them at
            rest, as it does atoms that are held, which weigh `HELD_MASS`. jax-md's chains want the number of atoms that
            move to be the same in all replicas.
        guarded: whether a replica fails whose kinetic temperature is many times that of `kT` (see `safety`).
        kT: k_B T in eV, of the momenta at the start, and of the thermostat where there is one.
    """

    moves_cell: ClassVar[bool] = False
    conserves: ClassVar[bool] = False
    pads: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    kT: Leaf

    def at(self, time: Any) -> Any:
        """The same with the values at a time since the start, in the internal unit, in place of schedules."""
        return jax.tree.map(lambda each: each.at(time), self, is_leaf=lambda each: isinstance(each, Schedule))

    @staticmethod
    def degrees_of_freedom(atoms: Any, held: Any = False) -> Any:
        """With which temperatures are counted: 3N − 3, the centre of mass being at rest; 3 for a single atom.

        Args:
            atoms: number N of those that move.
            held: whether others are held; then it is 3N.
        """
        return 3 * atoms - 3 * (atoms > 1) * (1 - held)

    @abc.abstractmethod
    def init(self, key: Any, positions: Any, masses: Any, cell: Any) -> Any:
        """The state of a replica, with Maxwell–Boltzmann momenta and no forces yet.

        Args:
            key: random key, of this replica alone.
            positions: [atoms, 3], Å.
            masses: [atoms], amu.
            cell: [3, 3], Å.
        """

    def with_degrees(self, state: Any, degrees: int) -> Any:
        """States at the start, for so many degrees of freedom where held atoms leave fewer than `init` has counted."""
        del degrees
        return state

    @abc.abstractmethod
    def move(self, state: Any, dt: Any) -> Any:
        """The step up to the point where forces at new positions are needed."""

    @abc.abstractmethod
    def finish(self, state: Any, forces: Any, dt: Any) -> Any:
        """The rest of the step, with the forces [atoms, 3] in eV/Å at the state's positions.

        A step of zero length changes nothing but the forces and the random key.
        """

    def reservoir(self, state: Any) -> Any:
        """Energy in eV that the thermostat holds; only where `conserves`."""
        del state
        return jnp.zeros(())


class Ensemble(abc.ABC):
    """The description of an ensemble; subclasses are frozen dataclasses in the units of their fields' names.

    They are pytrees of their numbers too, so that `jax.jit`, `jax.grad` and `jax.vmap` take one as an argument of what
    calls `rollout`; fields that are no numbers say so by `dataclasses.field(metadata={"static": True})`.

    Attributes:
        integrator: the class of its dynamics.
    """

    integrator: ClassVar[type[Dynamics]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the class as a pytree."""
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, _flattened, lambda names, values: _unflattened(cls, names, values))

    @abc.abstractmethod
    def dynamics(self, replicas: int) -> Dynamics:
        """The dynamics of so many replicas, with schedules in internal units.

        Raises:
            ValueError: if a field has several values, but not one for each replica.
        """

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """Relaxation times that the ensemble itself brings in, ps, by name: averages need many of the longest."""
        return {}

    @property
    def moves_cell(self) -> bool:
        """See `Dynamics`."""
        return self.integrator.moves_cell

    @property
    def conserves(self) -> bool:
        """See `Dynamics`."""
        return self.integrator.conserves

    @property
    def pads(self) -> bool:
        """See `Dynamics`."""
        return self.integrator.pads


_Static = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]
"""Names of the fields that are numbers, and the others."""


def _flattened(ensemble: Any) -> tuple[list[tuple[Any, Any]], _Static]:
    fields = dataclasses.fields(ensemble)
    names = tuple(each.name for each in fields if not each.metadata.get("static"))
    others = tuple((each.name, getattr(ensemble, each.name)) for each in fields if each.metadata.get("static"))
    return [(jax.tree_util.GetAttrKey(name), getattr(ensemble, name)) for name in names], (names, others)


def _unflattened(kind: type[Ensemble], static: _Static, values: Any) -> Ensemble:
    """Without the checks of values: jax rebuilds trees with whatever it likes in the place of numbers."""
    names, others = static
    ensemble = object.__new__(kind)
    for name, value in (*zip(names, values, strict=True), *others):
        object.__setattr__(ensemble, name, value)
    return ensemble


@jax.jit
def initial_state(positions: Any, masses: Any, cells: Any, key: Any, indices: Any, dynamics: Dynamics) -> Any:
    """States of all replicas; a replica's random numbers depend on the seed and its index [replicas] alone."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return jax.vmap(lambda now, *start: now.init(*start))(dynamics.at(0.0), keys, positions, masses, cells)


@jax.jit
def reservoirs(state: Any, dynamics: Dynamics, time: Any) -> Any:
    """Energies of the thermostats of all replicas, eV."""
    return jax.vmap(lambda now, state: now.reservoir(state))(dynamics.at(time), state)
