"""Statistical ensembles as frozen descriptions, each with the functions that sample it.

They are put together from the steps that jax-md's own simulators are made of. The ready-made `(init, apply)` of
`jax_md.simulate.nvt_langevin` calls the force of one replica from within and drops the energy: here a step pauses where
forces are needed, so that one call gives energies and forces of all replicas. A test holds the two to the same
trajectory.
"""

import abc
import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.types import AnyArray, Vectors
from jaxmlip.units import FS, KB

Number: TypeAlias = float | int


class Ensemble(abc.ABC):
    """What the engine needs of an ensemble; the names follow jax-md.

    The numbers in `parameters()` are traced, the class alone is static: runs at other temperatures share compiled code.
    """

    @abc.abstractmethod
    def parameters(self) -> dict[str, float]:
        """The ensemble's numbers in internal units (eV, Å, amu)."""

    @staticmethod
    @abc.abstractmethod
    def init(key: Any, positions: Any, masses: Any, parameters: dict[str, Any]) -> Any:
        """State of one replica, with Maxwell–Boltzmann momenta and no forces yet."""

    @staticmethod
    @abc.abstractmethod
    def move(state: Any, dt: Any, parameters: dict[str, Any]) -> Any:
        """One replica's step up to the point where forces at new positions are needed."""

    @staticmethod
    @abc.abstractmethod
    def finish(state: Any, forces: Any, dt: Any, parameters: dict[str, Any]) -> Any:
        """The rest of the step, with the forces [atoms, 3] in eV/Å at the state's positions."""


@dataclasses.dataclass(frozen=True)
class NVT(Ensemble):
    """Constant volume and temperature by Langevin dynamics (BAOAB).

    The splitting of Leimkuhler and Matthews (Appl. Math. Res. Express 2013, 34; J. Chem. Phys. 138, 174102 (2013)),
    whose configurational averages are exact for harmonic forces at every stable timestep. The thermostat acts on all
    3N degrees of freedom, the centre of mass included, which starts at rest and then diffuses.

    Attributes:
        temperature_K: K.
        friction_per_ps: friction coefficient γ in 1/ps; averages do not depend on it, rates do.

    Raises:
        ValueError: for values that are not positive and finite.
    """

    temperature_K: Number
    friction_per_ps: Number = 2.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        limits = {"temperature_K": 1e5, "friction_per_ps": 1e6}
        for name, most in limits.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and 0 < value <= most):
                raise ValueError(f"NVT needs 0 < {name} ≤ {most:g}, not {value!r}.")

    def parameters(self) -> dict[str, float]:
        """k_B T in eV and γ in internal units."""
        return {"kT": KB * self.temperature_K, "friction": self.friction_per_ps / (1000.0 * FS)}

    @staticmethod
    def init(key: Any, positions: Vectors, masses: Float[AnyArray, " atoms"], parameters: dict[str, Any]) -> Any:
        """Maxwell–Boltzmann momenta at kT with the centre of mass at rest; forces are zero until the first step."""
        from jax_md import simulate

        key, split = jax.random.split(key)
        mass = jnp.asarray(masses, positions.dtype)[:, None]
        momentum = jnp.sqrt(mass * parameters["kT"]) * jax.random.normal(split, positions.shape, positions.dtype)
        if positions.shape[0] > 1:
            momentum -= mass * momentum.sum(axis=0) / mass.sum()
        return simulate.NVTLangevinState(positions, momentum, jnp.zeros_like(positions), mass, key)  # type: ignore[call-arg]

    @staticmethod
    def move(state: Any, dt: Any, parameters: dict[str, Any]) -> Any:
        """B, A, O, A: half a kick, half a drift, the thermostat, half a drift."""
        from jax_md import simulate

        state = simulate.momentum_step(state, dt / 2)
        state = simulate.position_step(state, _free_space, dt / 2)
        state = simulate.stochastic_step(state, dt, parameters["kT"], parameters["friction"])
        return simulate.position_step(state, _free_space, dt / 2)

    @staticmethod
    def finish(state: Any, forces: Vectors, dt: Any, parameters: dict[str, Any]) -> Any:
        """B: half a kick. A step of zero length thus changes nothing but the forces and the random key."""
        from jax_md import simulate

        del parameters
        return simulate.momentum_step(state.set(force=forces), dt / 2)


def _free_space(positions: Vectors, displacement: Vectors, **_: Any) -> Vectors:
    """Positions stay unwrapped: periodicity is in the shifts of the neighbour list."""
    return positions + displacement
