"""Properties of fluctuations: heat capacity, compressibility, thermal expansion.

They are functions of means and covariances of a few quantities of frames, which `per_frame` gives. For derivatives by a
potential or weights their `mean` is a function of both in jax.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.jackknife import jackknife_estimate
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.thermodynamics import check_periodic
from jaxmlip.potentials.potential import Potential
from jaxmlip.units import GPA, KB


class FluctuationObservable(Observable):
    """A function of the means and covariances of quantities that frames have, `per_frame` [quantities].

    Energies may be relative to any constant. `mean` works with deviations from the plain mean, so that single
    precision suffices for the squares of what it sufficed for; it is a differentiable function of values and log
    weights. `estimate` is in double precision; see `jackknife_estimate` for its error, and for the bias it is freed of.
    """

    of_fluctuations: ClassVar[bool] = True

    @abc.abstractmethod
    def of_moments(self, means: Any, covariance: Any) -> Any:
        """The property, of means [quantities] and covariances [quantities, quantities], in jax."""

    def mean(self, values: Any, log_weights: Any = None) -> Any:
        """The property of values [replicas, frames, quantities], with weights ∝ exp(log_weights) [replicas, frames]."""
        values = jnp.asarray(values)
        flat = values.reshape(-1, values.shape[-1])
        equal = jnp.full(len(flat), 1.0 / len(flat), values.dtype)
        weights = equal if log_weights is None else jax.nn.softmax(jnp.asarray(log_weights).ravel())
        centre = jax.lax.stop_gradient(flat.mean(axis=0))
        deviations = flat - centre
        shift = weights @ deviations
        covariance = (weights[:, None] * deviations).T @ deviations - jnp.outer(shift, shift)
        return self.of_moments(centre + shift, covariance)

    def estimate(self, values: Any, weights: Any = None) -> Estimate:
        """The property of values [replicas, frames, quantities] with its error; weights [replicas, frames].

        Raises:
            ValueError: see `jackknife_estimate`.
        """
        found = jackknife_estimate(self, np.asarray(values), None if weights is None else np.asarray(weights))
        return dataclasses.replace(found, axis=self.axis)


@register_observable("heat_capacity")
@dataclasses.dataclass(frozen=True)
class HeatCapacity(FluctuationObservable):
    """Heat capacity per atom in units of Boltzmann's constant, of a simulation at constant temperature.

    C_V = var(U) / kT² at constant volume; with a pressure, of a simulation at that pressure, C_P = var(U + PV) / kT².
    The kinetic energy's share is not sampled but added: 3/2 for atoms of which none is held. 1 k per atom is
    8.314 J/mol/K, and 1.385 kJ/kg/K for water (three atoms in 18.015 g/mol).

    Attributes:
        temperature_K: of the simulation.
        pressure_GPa: of the simulation; None for constant volume.
        kinetic: the kinetic energy's share, k per atom; 0 for the configurational heat capacity.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    depends_on_potential: ClassVar[bool] = True

    temperature_K: float | int
    pressure_GPa: float | int | None = None
    kinetic: float | int = 1.5

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_temperature(self, self.temperature_K)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "heat capacity at constant " + ("volume" if self.pressure_GPa is None else "pressure")

    @property
    def unit(self) -> str:
        """Unit."""
        return "k/atom"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if there is a pressure, and frames are not periodic in three directions."""
        if self.pressure_GPa is not None:
            check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[1], (U + PV) / √N in eV, U relative to the references."""
        energy = frame.energy_of(potential)
        if self.pressure_GPa is not None:
            energy = energy + self.pressure_GPa * GPA * frame.volume
        return jnp.stack([energy / math.sqrt(len(frame.numbers))])

    def recorded_in(self, run: Any) -> np.ndarray | None:
        """Values of all frames, U relative to its mean; None where a pressure needs a volume that there is not."""
        energy = _centred(run.potential_energy)
        if self.pressure_GPa is not None:
            if not run.pbc.all():
                return None
            energy = energy + self.pressure_GPa * GPA * run.volume
        return energy[:, :, None] / math.sqrt(len(run.numbers))

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[], k per atom."""
        del means
        return covariance[0, 0] / (KB * self.temperature_K) ** 2 + self.kinetic


@register_observable("compressibility")
@dataclasses.dataclass(frozen=True)
class Compressibility(FluctuationObservable):
    """Isothermal compressibility −(∂V/∂P)_T / V = var(V) / (kT ⟨V⟩) in 1/GPa, of a simulation at constant pressure.

    Attributes:
        temperature_K: of the simulation.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    needs_moving_cell: ClassVar[bool] = True

    temperature_K: float | int

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_temperature(self, self.temperature_K)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "compressibility"

    @property
    def unit(self) -> str:
        """Unit."""
        return "1/GPa"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[1], V in Å³."""
        return jnp.stack([frame.volume])

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[], 1/GPa."""
        return covariance[0, 0] / means[0] * (GPA / (KB * self.temperature_K))


@register_observable("thermal_expansion")
@dataclasses.dataclass(frozen=True)
class ThermalExpansion(FluctuationObservable):
    """Thermal expansion (∂V/∂T)_P / V = cov(U + PV, V) / (kT² ⟨V⟩) in 1/K, of a simulation at constant pressure.

    Of the volume: three times that of a length in a cubic crystal.

    Attributes:
        temperature_K: of the simulation.
        pressure_GPa: of the simulation.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    depends_on_potential: ClassVar[bool] = True
    needs_moving_cell: ClassVar[bool] = True

    temperature_K: float | int
    pressure_GPa: float | int = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_temperature(self, self.temperature_K)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "thermal expansion"

    @property
    def unit(self) -> str:
        """Unit."""
        return "1/K"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[2]: U + PV in eV, U relative to the references, and V in Å³."""
        volume = frame.volume
        return jnp.stack([frame.energy_of(potential) + self.pressure_GPa * GPA * volume, volume])

    def recorded_in(self, run: Any) -> np.ndarray | None:
        """Values of all frames, U relative to its mean; None where there is no volume."""
        if not run.pbc.all():
            return None
        return np.stack([_centred(run.potential_energy) + self.pressure_GPa * GPA * run.volume, run.volume], axis=-1)

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[], 1/K."""
        return covariance[0, 1] / means[1] / (KB * self.temperature_K**2)


@register_observable("energy_spread")
@dataclasses.dataclass(frozen=True)
class EnergySpread(FluctuationObservable):
    """Standard deviation of the energy difference to another potential, in kT: what decides on reweighting.

    With Gaussian differences of spread s in these units e^{−s²} of the frames count after reweighting to the other
    potential (Kish's effective samples), whatever its mean.

    Attributes:
        temperature_K: of the simulation.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    depends_on_potential: ClassVar[bool] = True

    temperature_K: float | int

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        _check_temperature(self, self.temperature_K)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "energy spread"

    @property
    def unit(self) -> str:
        """Unit."""
        return "kT"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[1], eV; `potential` is the other one."""
        return jnp.stack([frame.energy_of(None) - frame.predicted(potential).energy[0]])

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[], kT."""
        del means
        return jnp.sqrt(covariance[0, 0]) / (KB * self.temperature_K)


def _centred(energies: np.ndarray) -> np.ndarray:
    """Energies [replicas, frames] relative to their mean, for single precision holds no total energies."""
    return energies - np.nanmean(energies)


def _check_temperature(observable: Observable, temperature_K: float | int) -> None:
    if not 0 < temperature_K < math.inf:
        raise ValueError(f"The {observable.name} needs a positive temperature_K, not {temperature_K!r}.")
