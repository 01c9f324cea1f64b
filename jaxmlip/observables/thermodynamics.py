"""Scalars of a frame: energy, temperature, density."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.observable import Observable
from jaxmlip.simulation.observing import PRESSURE_TENSOR, FrameState
from jaxmlip.simulation.trajectory import Run
from jaxmlip.units import G_PER_CM3


@dataclasses.dataclass(frozen=True)
class PotentialEnergy(Observable):
    """Total potential energy in eV, elemental references included.

    Averages are taken in double precision: single precision would lose 0.01 eV of the energies of large cells.
    """

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "potential energy"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV"

    def per_frame(self, frame: FrameState) -> Any:
        """[], eV."""
        return frame.potential_energy

    def over(self, run: Run, first: int = 0) -> Float[np.ndarray, "replicas frames"]:
        """Energies in double precision, as the run stores them; see `Observable.over`."""
        return run.observed.get(self.name, run.potential_energy)[run.completed, first:]


@dataclasses.dataclass(frozen=True)
class Temperature(Observable):
    """Kinetic temperature 2K/3Nk in K; see `Run.temperature` on its error at finite timesteps."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "temperature"

    @property
    def unit(self) -> str:
        """Unit."""
        return "K"

    def per_frame(self, frame: FrameState) -> Any:
        """[], K."""
        return frame.temperature


@dataclasses.dataclass(frozen=True)
class Density(Observable):
    """Mass density in g/cm³, with the masses of the simulation."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "density"

    @property
    def unit(self) -> str:
        """Unit."""
        return "g/cm³"

    def check(self, run: Run) -> None:
        """Raise ValueError unless the run is periodic in three directions."""
        if not run.pbc.all():
            raise ValueError(f"The density needs a cell periodic in three directions, not pbc {run.pbc.tolist()}.")

    def per_frame(self, frame: FrameState) -> Any:
        """[], g/cm³; differentiable in the cell."""
        return frame.mass / (G_PER_CM3 * jnp.abs(jnp.linalg.det(frame.cell)))


@dataclasses.dataclass(frozen=True)
class PressureTensor(Observable):
    """The pressure tensor Σ p pᵀ/m / V − σ in GPa, kinetic part included, whether the cell moves or not.

    It costs a derivative of the energy by strain, and so must be asked for: `simulate(observables=[PressureTensor()])`.
    """

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return PRESSURE_TENSOR

    @property
    def unit(self) -> str:
        """Unit."""
        return "GPa"

    def check(self, run: Run) -> None:
        """Raise ValueError unless the run has observed it."""
        if self.name not in run.observed:
            raise ValueError(
                f"Frames hold no momenta, so that the {self.name} must be observed while the simulation runs: give "
                "simulate observables=[PressureTensor()]."
            )

    def per_frame(self, frame: FrameState) -> Any:
        """Frames do not have it; see `check`."""
        raise NotImplementedError(f"The {self.name} is observed on the way, not computed from frames.")
