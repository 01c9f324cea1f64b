"""Coordination numbers with a smooth switching function."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import atoms_of, check_elements, check_symbols
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.device_lists import image_search, squared_distances

NEGLIGIBLE = 1e-7
"""Of a Fermi function: where it is less, neighbours are no longer looked for."""

LEFT = 0.01
"""Of a rational function, which falls slowly: where it is less it is taken as zero, and the rest is stretched."""


@register_observable("coordination", elements=2)
@dataclasses.dataclass(frozen=True)
class CoordinationNumber(Observable):
    """Mean number of atoms of `second` around an atom of `first`, periodic images included, each counted by s(r).

    `switching="fermi"`: s = 1 / (1 + exp((r − r_0) / width)), looked for as far as s > 1e-7. As the width becomes
    smaller this is the number of neighbours within r_0.

    `switching="rational"`: s = (1 − x^n) / (1 − x^2n) = 1 / (1 + x^n), x = r / r_0, as collective variables of enhanced
    sampling are defined, cut where it has fallen to 1 % and stretched to be 1 at 0 and 0 there, as PLUMED does by
    D_MAX: (s − 0.01) / 0.99.

    Differentiable by positions and cell.

    Attributes:
        first: element symbol of the atoms in the middle.
        second: element symbol of the atoms that are counted.
        r_0: Å, where s is ½; by default beyond the first neighbours of oxygen in water.
        width: Å, of the Fermi function.
        switching: "fermi" or "rational".
        exponent: n of the rational function.

    Raises:
        ValueError: for unknown elements or switching functions, or numbers that are not positive.
    """

    first: str
    second: str
    r_0: float | int = 3.3
    width: float | int = 0.1
    switching: str = "fermi"
    exponent: int = 12

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.first, self.second)
        if not (0 < self.r_0 < math.inf and 0 < self.width < math.inf and self.exponent >= 2):
            raise ValueError(
                "A coordination number needs a positive r_0 and width and an exponent of at least 2, not "
                f"r_0={self.r_0}, width={self.width}, exponent={self.exponent}."
            )
        if self.switching not in ("fermi", "rational"):
            raise ValueError(f"A switching function is 'fermi' or 'rational', not {self.switching!r}.")

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"coordination {self.first}-{self.second}"

    @property
    def unit(self) -> str:
        """Unit."""
        return ""

    @property
    def reach(self) -> float:
        """How far neighbours are looked for, Å."""
        if self.switching == "fermi":
            return self.r_0 + self.width * math.log(1.0 / NEGLIGIBLE)
        return self.r_0 * (1.0 / LEFT - 1.0) ** (1.0 / self.exponent)

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack one of the elements."""
        check_elements(self, frame, self.first, self.second)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[]."""
        mine, others = atoms_of(frame, self.first), atoms_of(frame, self.second)
        search = image_search(np.asarray(frame.heights), self.reach)
        inverse = jnp.linalg.inv(frame.cell) if frame.periodic else jnp.linalg.pinv(frame.cell)
        squared, _ = squared_distances(frame.positions[mine], frame.positions[others], frame.cell, inverse, search)
        itself = (mine[:, None] == others)[:, :, None] & ~search.translations.any(axis=1)
        counted = ~itself & (squared < self.reach**2)
        squared = jnp.where(counted, squared, self.reach**2)
        return jnp.where(counted, self._switch(squared), 0.0).sum() / len(mine)

    def _switch(self, squared: Any) -> Any:
        """Of squared distances."""
        if self.switching == "fermi":
            return jax.nn.sigmoid((self.r_0 - jnp.sqrt(squared)) / self.width)
        rational = 1.0 / (1.0 + (squared / self.r_0**2) ** (0.5 * self.exponent))
        return (rational - LEFT) / (1.0 - LEFT)
