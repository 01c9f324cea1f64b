"""Scalars and tensors of a frame: energy, temperature, density, pressure; and how another potential differs."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.observable import Observable, References
from jaxmlip.potentials.potential import Potential
from jaxmlip.units import G_PER_CM3, GPA


@register_observable("potential_energy")
@dataclasses.dataclass(frozen=True)
class PotentialEnergy(Observable):
    """Total potential energy in eV, elemental references included.

    Averages are taken in double precision: single precision would lose 0.01 eV of the energies of large cells.
    """

    recorded: ClassVar[str] = "potential_energy"
    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "potential energy"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], eV, relative to the references; differentiable by positions, cell and parameters."""
        return frame.energy_of(potential)

    def completed(self, values: np.ndarray, references: References) -> np.ndarray:
        """Energies with the references; see `Observable.completed`."""
        return values + references.own.reshape(-1, *[1] * (values.ndim - 1))


@register_observable("temperature")
@dataclasses.dataclass(frozen=True)
class Temperature(Observable):
    """Kinetic temperature 2K/3Nk in K; see `Run.temperature` on its error at finite timesteps."""

    recorded: ClassVar[str] = "temperature"

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "temperature"

    @property
    def unit(self) -> str:
        """Unit."""
        return "K"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], K; differentiable by momenta."""
        return frame.temperature


@register_observable("density")
@dataclasses.dataclass(frozen=True)
class Density(Observable):
    """Mass density in g/cm³, with the masses of the simulation."""

    needs_moving_cell: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "density"

    @property
    def unit(self) -> str:
        """Unit."""
        return "g/cm³"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], g/cm³; differentiable by the cell."""
        return frame.masses.sum() / (G_PER_CM3 * frame.volume)


@register_observable("pressure_tensor")
@dataclasses.dataclass(frozen=True)
class PressureTensor(Observable):
    """The pressure tensor Σ p pᵀ/m / V − σ in GPa, kinetic part included, whether the cell moves or not.

    It costs a derivative of the energy by strain where the cell does not move, and so must be asked for:
    `simulate(observables=[PressureTensor()])`.
    """

    needs_stress: ClassVar[bool] = True
    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "pressure tensor"

    @property
    def unit(self) -> str:
        """Unit."""
        return "GPa"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[3, 3], GPa; differentiable by all that it depends on."""
        stress, volume = frame.stress_of(potential), frame.volume
        velocities = frame.known_momenta / frame.masses[:, None]
        return (velocities.T @ frame.known_momenta / volume - stress) / GPA


@register_observable("pressure")
@dataclasses.dataclass(frozen=True)
class Pressure(Observable):
    """The pressure in GPa, a third of the trace of `PressureTensor`."""

    recorded: ClassVar[str] = "pressure_GPa"
    needs_stress: ClassVar[bool] = True
    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "pressure"

    @property
    def unit(self) -> str:
        """Unit."""
        return "GPa"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], GPa; differentiable by all that it depends on."""
        return jnp.trace(PressureTensor().per_frame(frame, potential)) / 3.0


@register_observable("squared_force_error")
@dataclasses.dataclass(frozen=True)
class SquaredForceError(Observable):
    """Mean squared difference of a force component to that of another potential, eV²/Å²."""

    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "squared force error"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV2/Å2"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], eV²/Å²; `potential` is the other one."""
        return ((frame.predicted(potential).forces - frame.known_forces) ** 2).mean()


@register_observable("energy_difference")
@dataclasses.dataclass(frozen=True)
class EnergyDifference(Observable):
    """Energy per atom minus that of another potential, elemental references included, eV."""

    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "energy difference"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], eV, each relative to its own references; `potential` is the other one."""
        return (frame.energy_of(None) - frame.predicted(potential).energy[0]) / len(frame.numbers)

    def completed(self, values: np.ndarray, references: References) -> np.ndarray:
        """Differences with the references; see `Observable.completed`."""
        if references.other is None:
            raise ValueError("An energy difference is that to another potential, and there is none.")
        shape = (-1, *[1] * (values.ndim - 1))
        return values + ((references.own - references.other) / references.atoms).reshape(shape)


def check_periodic(observable: Observable, frame: FrameState) -> None:
    """Raise ValueError unless frames are periodic in three directions."""
    if not frame.periodic:
        raise ValueError(
            f"The {observable.name} needs a cell that is periodic in all three directions, not one whose faces are "
            f"{', '.join(f'{height:g}' for height in frame.heights)} Å apart."
        )
