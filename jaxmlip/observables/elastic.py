"""Isothermal elastic constants: from fluctuations of the stress at constant volume, of the strain at constant pressure.

Both are second derivatives of the free energy by the Lagrangian strain η = ½ (Fᵀ F − 1), over the volume, in Voigt
order xx yy zz yz xz xy, in GPa. Axes are those of the cell in its standard orientation, a along x and b in the xy
plane, however it lies in space. Under a pressure P the coefficients of stress and strain are C_11 − P, C_12 + P and
C_44 − P.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.fluctuations import FluctuationObservable, check_temperature
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.thermodynamics import check_periodic
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.graph import strained
from jaxmlip.units import GPA, KB

# Tuples: JAX keeps what it made of an array in single precision, and takes it in double precision too.
ROWS, COLUMNS = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
"""Of the Voigt components of a matrix."""

PLACES = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Of the elements of a matrix among its Voigt components."""

SHEARS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
"""A Voigt strain in components of the matrix."""


def symmetric(components: Any) -> Any:
    """The symmetric matrix [3, 3] of its components in Voigt order [6]."""
    return components[np.array(PLACES)]


def voigt_of(matrix: Any) -> Any:
    """The components in Voigt order [6] of a symmetric matrix [3, 3]."""
    return matrix[np.array(ROWS), np.array(COLUMNS)]


def strain_matrix(voigt: Any) -> Any:
    """The symmetric matrix [3, 3] of a Voigt strain [6], whose shears count twice."""
    return symmetric(voigt / jnp.asarray(SHEARS, voigt.dtype))


@dataclasses.dataclass(frozen=True)
class _Elastic(FluctuationObservable):
    """What both have in common."""

    temperature_K: float | int

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_temperature(self, self.temperature_K)

    @property
    def unit(self) -> str:
        """Unit."""
        return "GPa"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)


@register_observable("elastic_stress")
@dataclasses.dataclass(frozen=True)
class ElasticFromStress(_Elastic):
    """Elastic constants [6, 6] in GPa of a simulation at constant volume, by fluctuations of its stress.

    C = ⟨C^Born⟩ − (V/kT) cov(σ, σ) + (NkT/V) (δ_ik δ_jl + δ_il δ_jk) with σ = ∂U/∂η / V and C^Born = ∂²U/∂η² / V (Ray
    and Rahman, J. Chem. Phys. 80, 4423 (1984)), the last term being what momenta add. It needs the potential whose
    energy has second derivatives by strain: `estimate` what `observe(run, ..., potential=...)` gives. A potential that
    is not twice differentiable at its cutoff gives a wrong Born term.

    Attributes:
        temperature_K: of the simulation.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    depends_on_potential: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "elastic constants by stress"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[28]: √V σ [6] in √(eV Å³)/Å³, C^Born [21] in eV/Å³, N/V; ValueError without a potential."""
        if potential is None:
            raise ValueError(f"The {self.name} need a potential: give observe(run, ..., potential=...).")
        graph, fits = frame.graph_for(potential)
        lengths = jnp.linalg.cholesky(frame.cell @ frame.cell.T)
        turn = jnp.linalg.solve(lengths, frame.cell)  # from the standard orientation to that of the frame

        def energy(voigt: Any) -> Any:
            lagrangian = turn.T @ strain_matrix(voigt) @ turn
            strain = lagrangian - 0.5 * lagrangian @ lagrangian  # √(1 + 2η) − 1, as far as second derivatives go
            return potential.energy(strained(graph, graph.positions, strain[None]))[0]

        slope, curvature = jax.grad(energy), jax.jacfwd(jax.grad(energy))
        at, volume = jnp.zeros(6, frame.cell.dtype), frame.volume
        stress, born = slope(at) / jnp.sqrt(volume), curvature(at)[np.triu_indices(6)] / volume
        density = len(frame.numbers) / volume
        found = jnp.concatenate([stress, born, density[None]])
        return jnp.where(fits, found, jnp.nan)

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[6, 6], GPa."""
        upper = jnp.zeros((6, 6), means.dtype).at[np.triu_indices(6)].set(means[6:27])
        born = upper + upper.T - jnp.diag(jnp.diag(upper))
        thermal = KB * self.temperature_K
        momenta = jnp.diag(2.0 / jnp.asarray(SHEARS, means.dtype)) * means[27] * thermal
        return (born - covariance[:6, :6] / thermal + momenta) / GPA


@register_observable("elastic_strain")
@dataclasses.dataclass(frozen=True)
class ElasticFromStrain(_Elastic):
    """Elastic constants [6, 6] in GPa of a simulation at constant pressure in a flexible cell, by fluctuations of it.

    The inverse of (V/kT) cov(η, η), less what the pressure adds to the curvature of the enthalpy (Parrinello and
    Rahman, J. Chem. Phys. 76, 2662 (1982)): C = C̃ − P (δ_ij δ_kl − δ_ik δ_jl − δ_il δ_jk). Strains are relative to the
    mean metric of the cell. All six components must fluctuate: `NPT(cell="flexible")`. Soft modes of the cell are slow,
    and what small cells fluctuate beyond the harmonic is counted as harmonic.

    Attributes:
        temperature_K: of the simulation.
        pressure_GPa: of the simulation.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    needs_moving_cell: ClassVar[bool] = True

    pressure_GPa: float | int = 0.0

    held: ClassVar[float] = 1e-6
    """Ratio of the least to the largest fluctuation of strains below which a cell keeps its shape."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "elastic constants by strain"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[6], Å²: scalar products of the lattice vectors; differentiable by the cell."""
        return voigt_of(frame.cell @ frame.cell.T)

    def of_moments(self, means: Any, covariance: Any) -> Any:
        """[6, 6], GPa."""
        strains, volume = self._strains(means)
        stiffness = jnp.linalg.inv(strains @ covariance @ strains.T) * (KB * self.temperature_K / volume)
        curvature = -jnp.diag(2.0 / jnp.asarray(SHEARS, means.dtype))
        return stiffness / GPA - self.pressure_GPa * curvature.at[:3, :3].add(1.0)

    def estimate(self, values: Any, weights: Any = None) -> Estimate:
        """See `FluctuationObservable.estimate`.

        Raises:
            ValueError: also if the cell keeps its shape, or its volume.
        """
        flat = np.asarray(values, np.float64).reshape(-1, 6)
        with jax.enable_x64(True):
            strains = np.asarray(self._strains(jnp.asarray(flat.mean(axis=0)))[0])
        spread = np.linalg.eigvalsh(np.atleast_2d(np.cov((flat @ strains.T).T)))
        if not spread[0] > self.held * spread[-1]:
            raise ValueError(f'The {self.name} need a cell that changes its shape: simulate with NPT(cell="flexible").')
        return super().estimate(values, weights)

    def _strains(self, means: Any) -> tuple[Any, Any]:
        """The matrix that takes scalar products of lattice vectors to Voigt strains, [6, 6], and the volume."""
        metric = symmetric(means)
        inverse = jnp.linalg.inv(jnp.linalg.cholesky(metric))

        def of(products: Any) -> Any:
            strain = 0.5 * inverse @ symmetric(products) @ inverse.T
            return voigt_of(strain) * jnp.asarray(SHEARS, means.dtype)

        return jax.vmap(of, out_axes=1)(jnp.eye(6, dtype=means.dtype)), jnp.sqrt(jnp.linalg.det(metric))
