"""Angles between neighbours: angular distributions, and tetrahedral order."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import (
    angles,
    atoms_of,
    check_elements,
    check_symbols,
    nearest_vectors,
    smeared_histogram,
)
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential


@register_observable("adf", elements=3)
@dataclasses.dataclass(frozen=True)
class AngularDistribution(Observable):
    """Distribution of the angle first–centre–last between neighbours of a centre, per degree: its integral is 1.

    Both neighbours are within `r_max` of the centre, periodic images included; pairs of neighbours are counted once. A
    frame without any such angle has 0 everywhere. An isotropic gas has sin(θ)/2 per radian.

    For derivatives by positions and cell give a `smearing`, and a `width`, over which neighbours cease to count: each
    then weighs s(r) = 1 − x³ (10 − 15 x + 6 x²), x = (r − r_max + width) / width from 0 to 1, and an angle the product
    of both. Without a width what neighbours add when they cross `r_max` is missing from the derivative. Angles near 0°
    and 180° are spread by a Gaussian that these reflect.

    Attributes:
        first: element symbol of one neighbour.
        centre: element symbol of the atom at the vertex.
        last: element symbol of the other neighbour.
        r_max: Å, how far neighbours may be from the centre.
        bins: number of bins from 0° to 180°.
        smearing: standard deviation in degrees of the Gaussian; 0 for a histogram.
        width: Å; 0 for neighbours that count in full up to `r_max`.
        neighbors: most neighbours of a centre, of one element, that there is room for.

    Raises:
        ValueError: for unknown elements, or numbers that make no sense.
    """

    first: str
    centre: str
    last: str
    r_max: float | int = 3.5
    bins: int = 90
    smearing: float | int = 0.0
    width: float | int = 0.0
    neighbors: int = 24

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.first, self.centre, self.last)
        sound = 0 < self.r_max < math.inf and self.bins >= 1 and 0 <= self.smearing < math.inf and self.neighbors >= 1
        if not (sound and 0 <= self.width <= self.r_max):
            raise ValueError(
                "An angular distribution needs a positive r_max and number of bins and neighbors, no negative smearing "
                f"and a width of at most r_max, not r_max={self.r_max}, bins={self.bins}, neighbors={self.neighbors}, "
                f"smearing={self.smearing}, width={self.width}."
            )

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"angles {self.first}-{self.centre}-{self.last}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "1/degree"

    @property
    def edges(self) -> Float[np.ndarray, " edges"]:
        """Borders of the bins, degrees."""
        return np.linspace(0.0, 180.0, self.bins + 1)

    @property
    def axis(self) -> Float[np.ndarray, " bins"]:
        """Middles of the bins, degrees."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack one of the elements."""
        check_elements(self, frame, self.first, self.centre, self.last)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[bins], 1/degree; NaN where a centre has more neighbours than `neighbors`."""
        centres = atoms_of(frame, self.centre)

        def around(symbol: str) -> tuple[Any, Any, Any]:
            others = atoms_of(frame, symbol)
            vectors, found, needed = nearest_vectors(frame, centres, others, self.r_max, self.neighbors)
            return vectors, jnp.where(found, self._weight(vectors), 0.0), needed.max()

        one, weight, most = around(self.first)
        other, other_weight, other_most = around(self.last) if self.last != self.first else (one, weight, most)
        both = weight[:, :, None] * other_weight[:, None, :]
        if self.last == self.first:
            both = both * (1.0 - jnp.eye(self.neighbors, dtype=both.dtype))
        between = angles(one[:, :, None, :], other[:, None, :, :])
        counts = smeared_histogram(between.ravel(), both.ravel(), self.edges, self.smearing, walls=True)
        total = both.sum() * (180.0 / self.bins)
        distribution = counts / jnp.where(total > 0, total, 1.0)
        return jnp.where(jnp.maximum(most, other_most) <= self.neighbors, distribution, jnp.nan)

    def estimate(self, values: Any, weights: Any = None) -> Estimate:
        """Average of values [replicas, frames, bins]; see `Observable.estimate`.

        Raises:
            ValueError: also where there was no room for all neighbours.
        """
        if np.isnan(values).any():
            raise ValueError(
                f"{self.name}: a {self.centre} has more than {self.neighbors} neighbours within {self.r_max} Å; give "
                "neighbors= a larger number, or a smaller r_max."
            )
        return super().estimate(values, weights)

    def _weight(self, vectors: Any) -> Any:
        """How much neighbours count."""
        distance = jnp.sqrt((vectors**2).sum(-1))
        if not self.width > 0:
            return jnp.ones_like(distance)
        x = jnp.clip((distance - self.r_max + self.width) / self.width, 0.0, 1.0)
        return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


@dataclasses.dataclass(frozen=True)
class _Tetrahedral(Observable):
    """What is common to mean and distribution of the tetrahedral order parameter."""

    element: str
    r_max: float | int = 6.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.element)
        if not 0 < self.r_max < math.inf:
            raise ValueError(f"Tetrahedral order needs a positive r_max, not {self.r_max}.")

    @property
    def unit(self) -> str:
        """Unit."""
        return ""

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack the element."""
        check_elements(self, frame, self.element)

    def of_atoms(self, frame: FrameState) -> Any:
        """Q of each atom of the element, [atoms]; NaN without four neighbours within `r_max`."""
        mine = atoms_of(frame, self.element)
        vectors, found, _ = nearest_vectors(frame, mine, mine, self.r_max, 4)
        unit = vectors / jnp.sqrt((vectors**2).sum(-1, keepdims=True))
        cosines = jnp.einsum("aix,ajx->aij", unit, unit)
        pairs = np.triu_indices(4, 1)
        order = 1.0 - 0.375 * ((cosines[:, pairs[0], pairs[1]] + 1.0 / 3.0) ** 2).sum(-1)
        return jnp.where(found.all(axis=1), order, jnp.nan)

    def estimate(self, values: Any, weights: Any = None) -> Estimate:
        """Average of values [replicas, frames, ...]; see `Observable.estimate`.

        Raises:
            ValueError: also where an atom lacks four neighbours.
        """
        if np.isnan(values).any():
            raise ValueError(
                f"{self.name}: an atom has no four neighbours of {self.element} within {self.r_max} Å; give a larger "
                "r_max, or a structure that is not a gas."
            )
        return super().estimate(values, weights)


@register_observable("tetrahedral", elements=1)
@dataclasses.dataclass(frozen=True)
class TetrahedralOrder(_Tetrahedral):
    """Mean tetrahedral order parameter q = 1 − 3/8 Σ_{j<k} (cos ψ_jk + 1/3)² of the atoms of an element.

    The sum is over the angles ψ between the four nearest atoms of the same element (Errington and Debenedetti, Nature
    409, 318 (2001)); 1 in diamond and perfect ice, 0 on average where directions are random. Differentiable by
    positions and cell but where the fourth neighbour and the fifth change places, which moves q in a jump: derivatives
    of its average lack that term.

    Attributes:
        element: symbol.
        r_max: Å, how far neighbours are looked for.

    Raises:
        ValueError: for an unknown element, or an r_max that is not positive.
    """

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"tetrahedral order {self.element}"

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[]; NaN if an atom lacks four neighbours within `r_max`."""
        return self.of_atoms(frame).mean()


@register_observable("tetrahedral_distribution", elements=1)
@dataclasses.dataclass(frozen=True)
class TetrahedralDistribution(_Tetrahedral):
    """Distribution of the tetrahedral order parameter q over atoms and frames, its integral from `q_min` to 1.

    For q see `TetrahedralOrder`. What is below `q_min` (at the least −3) is left out; 1 reflects the smearing.

    Attributes:
        element: symbol.
        r_max: Å, how far neighbours are looked for.
        bins: number of bins from `q_min` to 1.
        q_min: where the distribution begins.
        smearing: standard deviation of the Gaussian that spreads each q; 0 for a histogram.

    Raises:
        ValueError: for an unknown element, or numbers that make no sense.
    """

    bins: int = 60
    q_min: float | int = -0.5
    smearing: float | int = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        super().__post_init__()
        if not (self.bins >= 1 and -3 <= self.q_min < 1 and 0 <= self.smearing < math.inf):
            raise ValueError(
                "A tetrahedral distribution needs a positive number of bins, a q_min from −3 to 1 and no negative "
                f"smearing, not bins={self.bins}, q_min={self.q_min}, smearing={self.smearing}."
            )

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"tetrahedral distribution {self.element}"

    @property
    def edges(self) -> Float[np.ndarray, " edges"]:
        """Borders of the bins."""
        return np.linspace(self.q_min, 1.0, self.bins + 1)

    @property
    def axis(self) -> Float[np.ndarray, " bins"]:
        """Middles of the bins."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[bins]; differentiable by positions and cell if `smearing` is positive, as `TetrahedralOrder` is."""
        found = self.of_atoms(frame)
        order = jnp.minimum(found, 1.0)  # rounding may put perfect order above
        each = jnp.full_like(order, 1.0 / len(order))
        if self.smearing > 0:
            counts = smeared_histogram(
                jnp.concatenate([order, 2.0 - order]), jnp.tile(each, 2), self.edges, self.smearing
            )
        else:
            counts = smeared_histogram(order, each, self.edges, 0.0)
            counts = jnp.asarray(counts).at[-1].add(jnp.where(order == 1.0, each, 0.0).sum())
        return jnp.where(jnp.isnan(found).any(), jnp.nan, counts * (self.bins / (1.0 - self.q_min)))
