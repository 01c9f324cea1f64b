"""Volume, lengths and angles of the cell, and the enthalpy."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import angles
from jaxmlip.observables.observable import Observable, References
from jaxmlip.observables.thermodynamics import PotentialEnergy, check_periodic
from jaxmlip.potentials.potential import Potential
from jaxmlip.units import GPA


@dataclasses.dataclass(frozen=True)
class _OfCell(Observable):
    """What the cell alone decides."""

    needs_moving_cell: ClassVar[bool] = True

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)


@register_observable("volume")
@dataclasses.dataclass(frozen=True)
class Volume(_OfCell):
    """Volume of the cell in Å³."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "volume"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å3"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], Å³; differentiable by the cell."""
        return frame.volume


@register_observable("cell_lengths")
@dataclasses.dataclass(frozen=True)
class CellLengths(_OfCell):
    """Lengths a, b, c of the lattice vectors in Å."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "cell lengths"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[3], Å; differentiable by the cell."""
        return jnp.sqrt((frame.cell**2).sum(axis=1))


@register_observable("cell_angles")
@dataclasses.dataclass(frozen=True)
class CellAngles(_OfCell):
    """Angles α (between b and c), β and γ of the lattice vectors in degrees."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "cell angles"

    @property
    def unit(self) -> str:
        """Unit."""
        return "degree"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[3], degrees; differentiable by the cell."""
        return angles(frame.cell[jnp.array([1, 2, 0])], frame.cell[jnp.array([2, 0, 1])])


@register_observable("enthalpy")
@dataclasses.dataclass(frozen=True)
class Enthalpy(Observable):
    """Enthalpy U + PV in eV, elemental references included, of a simulation at a pressure.

    Attributes:
        pressure_GPa: of the simulation: that which is imposed, not the instantaneous one.
        kinetic: add the kinetic energy, which needs `keep_velocities=True`. By default it is left out; classically its
            mean is 3/2 kT for each atom.
    """

    depends_on_potential: ClassVar[bool] = True

    pressure_GPa: float | int = 0.0
    kinetic: bool = False

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "enthalpy with kinetic energy" if self.kinetic else "enthalpy"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], eV, relative to the references; differentiable by all that it depends on."""
        static = frame.energy_of(potential) + self.pressure_GPa * GPA * frame.volume
        return static + frame.kinetic_energy if self.kinetic else static

    def completed(self, values: np.ndarray, references: References) -> np.ndarray:
        """Enthalpies with the references; see `Observable.completed`."""
        return PotentialEnergy().completed(values, references)

    def recorded_in(self, run: Any) -> np.ndarray | None:
        """Values of all frames, in double precision; ValueError if velocities are needed and were not kept."""
        if not run.pbc.all():
            return None
        static = run.potential_energy + self.pressure_GPa * GPA * run.volume
        if not self.kinetic:
            return static
        if run.momenta is None:
            raise ValueError(f"The {self.name} needs velocities: simulate with keep_velocities=True.")
        return static + 0.5 * (run.momenta**2 / run.masses[:, None, :, None]).sum((2, 3))
