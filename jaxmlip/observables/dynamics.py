"""Dynamical observables: diffusion, velocity autocorrelation, vibrational density of states, Debye–Waller factors."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import atoms_of, check_elements, check_symbols
from jaxmlip.observables.thermodynamics import check_periodic
from jaxmlip.observables.time_observable import TimeObservable, autocorrelation, lag_times
from jaxmlip.units import FS, KB

YEH_HUMMER = 2.837297
"""ξ of a cubic cell."""

EV_PER_MPA_S_A = 160.2176634
"""1 eV / (1 mPa s · 1 Å) in Å²/ps."""


@dataclasses.dataclass(frozen=True)
class _OfElement(TimeObservable):
    """Of the atoms of one element."""

    element: str

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.element)

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack the element."""
        check_elements(self, frame, self.element)


def _at_rest(frames: FrameState, positions: Any) -> Any:
    """Positions [frames, atoms, 3] relative to the centre of mass."""
    masses = frames.masses[..., None]
    return positions - (masses * positions).sum(1, keepdims=True) / masses.sum(1, keepdims=True)


def mean_squared_displacement(frames: FrameState, element: str, lags: np.ndarray, *, without_drift: bool) -> Any:
    """⟨|r(t + τ) − r(t)|²⟩ in Å² over atoms and all starts t, [lags]; lags in frames.

    Args:
        frames: of one replica, leaves [frames, ...].
        element: whose atoms.
        lags: in frames.
        without_drift: subtract the motion of the centre of mass.
    """
    positions = frames.positions
    if without_drift:
        positions = _at_rest(frames, positions)
    mine = positions[:, atoms_of(frames, element)]
    number = mine.shape[0]

    def at(lag: Any) -> Any:
        squared = ((jnp.roll(mine, -lag, axis=0) - mine) ** 2).sum(-1).mean(axis=1)
        started = jnp.arange(number) < number - lag
        return jnp.where(started, squared, 0.0).sum() / (number - lag)

    return jax.lax.map(at, jnp.asarray(lags))


@register_observable("msd", elements=1)
@dataclasses.dataclass(frozen=True)
class MeanSquaredDisplacement(_OfElement):
    """Mean squared displacement of the atoms of an element in Å² against time in ps, over all starts.

    Differentiable by positions.

    Attributes:
        element: symbol.
        points: number of lags.
        longest: the longest lag, as a share of the trajectory.
        without_drift: subtract the motion of the centre of mass, which thermostats that act on each atom push about.

    Raises:
        ValueError: for an unknown element, or numbers that make no sense.
    """

    points: int = 50
    longest: float | int = 0.5
    without_drift: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        super().__post_init__()
        if not (self.points >= 1 and 0 < self.longest < 1):
            raise ValueError(
                "A mean squared displacement needs a positive number of points and a longest lag between 0 and 1 of "
                f"the trajectory, not points={self.points}, longest={self.longest}."
            )

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"mean squared displacement {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å2"

    def axis(self, frames: int, interval_fs: float) -> Float[np.ndarray, " points"]:
        """Times in ps."""
        return lag_times(frames, self.points, self.longest) * (interval_fs / 1000.0)

    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """[points], Å²."""
        lags = lag_times(frames.positions.shape[0], self.points, self.longest)
        return mean_squared_displacement(frames, self.element, lags, without_drift=self.without_drift)


@register_observable("diffusion", elements=1)
@dataclasses.dataclass(frozen=True)
class DiffusionConstant(_OfElement):
    """Diffusion constant of the atoms of an element in Å²/ps (10⁻⁸ m²/s): a sixth of the slope of their displacement.

    The slope is that of a straight line through the mean squared displacement from `from_ps` to `to_ps`, by least
    squares. With a viscosity η it is corrected for the size of a cubic cell of length L (Yeh and Hummer, J. Phys. Chem.
    B 108, 15873 (2004)): D = D_L + 2.837297 kT / (6π η L). Differentiable by positions.

    Attributes:
        element: symbol.
        from_ps: where the line begins; by default at a twentieth of the trajectory. It must be beyond the ballistic
            motion.
        to_ps: where it ends; by default at a quarter of the trajectory.
        viscosity_mPa_s: of the fluid; None for no correction.
        temperature_K: of the simulation, for the correction.
        without_drift: see `MeanSquaredDisplacement`.

    Raises:
        ValueError: for an unknown element, or numbers that make no sense.
    """

    from_ps: float | int | None = None
    to_ps: float | int | None = None
    viscosity_mPa_s: float | int | None = None
    temperature_K: float | int | None = None
    without_drift: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        super().__post_init__()
        if self.viscosity_mPa_s is not None and not (self.viscosity_mPa_s > 0 and (self.temperature_K or 0) > 0):
            raise ValueError(
                "The correction for the size of the cell needs a positive viscosity_mPa_s and temperature_K, not "
                f"{self.viscosity_mPa_s} and {self.temperature_K}."
            )

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"diffusion {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å2/ps"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack the element, or the correction has no cell to go by."""
        super().check(frame)
        if self.viscosity_mPa_s is not None:
            check_periodic(self, frame)

    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """[], Å²/ps.

        Raises:
            ValueError: if there are no two lags between `from_ps` and `to_ps`.
        """
        number, step = frames.positions.shape[0], interval_fs / 1000.0
        first = number / 20.0 if self.from_ps is None else self.from_ps / step
        last = number / 4.0 if self.to_ps is None else self.to_ps / step
        lowest, highest = max(1, math.ceil(first)), min(math.floor(last), number - 1)
        if highest <= lowest:
            raise ValueError(
                f"There are no two lags between {first * step:g} and {last * step:g} ps in a trajectory of "
                f"{number * step:g} ps with frames every {step:g} ps: run longer, or give from_ps and to_ps."
            )
        lags = np.unique(np.rint(np.linspace(lowest, highest, min(20, highest - lowest + 1))).astype(int))
        squared = mean_squared_displacement(frames, self.element, lags, without_drift=self.without_drift)
        times = lags * step
        weights = (times - times.mean()) / ((times - times.mean()) ** 2).sum()
        found = (jnp.asarray(weights, squared.dtype) * squared).sum() / 6.0
        if self.viscosity_mPa_s is None or self.temperature_K is None:
            return found
        length = jnp.cbrt(jnp.abs(jnp.linalg.det(frames.cell)).mean())
        thermal = YEH_HUMMER * KB * self.temperature_K * EV_PER_MPA_S_A
        return found + thermal / (6.0 * math.pi * self.viscosity_mPa_s * length)


def velocities_of(frames: FrameState, element: str) -> Any:
    """Velocities in Å/ps, [frames, atoms of the element, 3]; ValueError if there are none."""
    mine = atoms_of(frames, element)
    return frames.known_momenta[:, mine] / frames.masses[:, mine, None] * (1000.0 * FS)


@register_observable("vacf", elements=1)
@dataclasses.dataclass(frozen=True)
class VelocityAutocorrelation(_OfElement):
    """⟨v(t) · v(t + τ)⟩ of the atoms of an element in Å²/ps² against time in ps; 3kT/m at τ = 0.

    It needs `keep_velocities=True`, and frames as often as the fastest vibration asks for: every 2 fs for O–H.
    Differentiable by momenta.

    Attributes:
        element: symbol.
        longest: the longest lag, as a share of the trajectory.

    Raises:
        ValueError: for an unknown element, or a share that is not between 0 and 1.
    """

    longest: float | int = 0.25

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        super().__post_init__()
        if not 0 < self.longest < 1:
            raise ValueError(f"The longest lag is between 0 and 1 of the trajectory, not {self.longest}.")

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"velocity autocorrelation {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å2/ps2"

    def axis(self, frames: int, interval_fs: float) -> Float[np.ndarray, " points"]:
        """Times in ps, from 0."""
        return np.arange(max(1, int(self.longest * frames))) * (interval_fs / 1000.0)

    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """[points], Å²/ps²; ValueError if there are no velocities."""
        velocities = velocities_of(frames, self.element)
        lags = len(self.axis(velocities.shape[0], interval_fs))
        return autocorrelation(velocities.reshape(len(velocities), -1), lags) / velocities.shape[1]


@register_observable("vdos", elements=1)
@dataclasses.dataclass(frozen=True)
class VibrationalDensityOfStates(_OfElement):
    """Vibrational density of states of the atoms of an element per atom in 1/THz; its integral is 3.

    g(ν) = 12 ∫₀^∞ C(τ) / C(0) w(τ) cos(2πντ) dτ with C the velocity autocorrelation and w a Gaussian, that of a
    resolution of standard deviation `resolution_THz`: single vibrations are Gaussian peaks of that width, and a
    diffusive liquid has g(0) = 12 m D / kT. It needs `keep_velocities=True`, frames at least twice in the period of the
    fastest vibration (110 THz for O–H: 4 fs) and trajectories of 1.3 / `resolution_THz` ps. 1 THz is 33.36 /cm.
    Differentiable by momenta.

    Attributes:
        element: symbol.
        max_THz: highest frequency.
        points: number of frequencies from 0.
        resolution_THz: standard deviation.

    Raises:
        ValueError: for an unknown element, or numbers that are not positive.
    """

    max_THz: float | int = 130.0
    points: int = 261
    resolution_THz: float | int = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        super().__post_init__()
        if not (self.max_THz > 0 and self.points >= 2 and self.resolution_THz > 0):
            raise ValueError(
                "A density of states needs a positive max_THz and resolution_THz and two points, not "
                f"max_THz={self.max_THz}, resolution_THz={self.resolution_THz}, points={self.points}."
            )

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"vibrational density of states {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "1/THz"

    def axis(self, frames: int, interval_fs: float) -> Float[np.ndarray, " points"]:
        """Frequencies in THz."""
        return np.linspace(0.0, self.max_THz, self.points)

    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """[points], 1/THz.

        Raises:
            ValueError: if there are no velocities, frames are too rare for `max_THz` or too few for the resolution.
        """
        velocities = velocities_of(frames, self.element)
        number, step = len(velocities), interval_fs / 1000.0
        # The Gaussian has fallen to 3e-4 at the last lag.
        lags = math.ceil(4.0 / (2.0 * math.pi * self.resolution_THz * step)) + 1
        if 2.0 * self.max_THz * step > 1.0:
            raise ValueError(
                f"Frames every {interval_fs:g} fs show no vibrations above {0.5 / step:g} THz: sample more often, or "
                "give max_THz a lower value."
            )
        if 2 * lags > number:
            raise ValueError(
                f"A resolution of {self.resolution_THz} THz needs trajectories of {2 * lags * step:g} ps, not of "
                f"{number * step:g} ps: run longer, or give resolution_THz a larger value."
            )
        correlation = autocorrelation(velocities.reshape(number, -1), lags)
        times = np.arange(lags) * step
        window = np.exp(-0.5 * (2.0 * math.pi * self.resolution_THz * times) ** 2)
        window[0] *= 0.5  # of the trapezoidal rule
        cosines = np.cos(2.0 * math.pi * np.outer(self.axis(number, interval_fs), times)) * window
        return 12.0 * step * (jnp.asarray(cosines, correlation.dtype) @ (correlation / correlation[0]))


@register_observable("debye_waller", elements=1)
@dataclasses.dataclass(frozen=True)
class DebyeWallerFactor(_OfElement):
    """Isotropic Debye–Waller factor B = 8π²/3 ⟨u²⟩ in Å² of the atoms of an element in a solid.

    u is the distance of an atom from its mean place in the trajectory; in cells that move places are those of the mean
    cell. Trajectories shorter than the slowest vibration give too little. Differentiable by positions and cell.

    Attributes:
        element: symbol.
        without_drift: subtract the motion of the centre of mass, which in a crystal is no vibration; False where
            something holds the crystal.

    Raises:
        ValueError: for an unknown element.
    """

    without_drift: bool = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"Debye-Waller factor {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å2"

    def of_trajectory(self, frames: FrameState, interval_fs: float) -> Any:
        """[], Å²."""
        positions = frames.positions
        if frames.periodic:
            fractions = jnp.einsum("tax,txy->tay", positions, jnp.linalg.inv(frames.cell))
            positions = fractions @ frames.cell.mean(axis=0)
        if self.without_drift:
            positions = _at_rest(frames, positions)
        mine = positions[:, atoms_of(frames, self.element)]
        return ((mine - mine.mean(axis=0)) ** 2).sum(-1).mean() * (8.0 * math.pi**2 / 3.0)
