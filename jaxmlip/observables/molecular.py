"""Bond lengths and bond angles of molecules that are found once, from the structure a simulation starts from."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import angles, check_symbols
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.molecules import angles_between, bonds_between


def nearest_image(frame: FrameState, vectors: Any) -> Any:
    """Vectors [..., 3] brought to their nearest periodic image: right up to half of the least height of the cell."""
    if not np.isfinite(frame.heights).any():
        return vectors
    inverse = jnp.linalg.inv(frame.cell) if frame.periodic else jnp.linalg.pinv(frame.cell)
    return vectors - jnp.round(vectors @ inverse) @ frame.cell


@dataclasses.dataclass(frozen=True)
class _Bound(Observable):
    """An observable of atoms that it names: of bonds or angles, indices each."""

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if the bonds are not known, or frames are not of the structure they were found in."""
        found: Any = self._found()
        if found is None:
            raise ValueError(
                f"The {self.name} is that of bonds which are found once: give "
                f"{type(self).__name__}(...).bound_to(structure)."
            )
        numbers, wanted = np.asarray(frame.numbers), [atomic_numbers[symbol] for symbol in self._symbols()]
        if max(max(each) for each in found) >= len(numbers) or (numbers[np.array(found)] != wanted).any():
            raise ValueError(f"The {self.name} was bound to a structure of other atoms than those of the frames.")

    def _found(self) -> Any:
        raise NotImplementedError

    def _symbols(self) -> tuple[str, ...]:
        raise NotImplementedError


@register_observable("bond", elements=2)
@dataclasses.dataclass(frozen=True)
class BondLength(_Bound):
    """Mean length in Å of the covalent bonds between two elements.

    Bonds are those of the start (`systems.molecules.covalent_bonds`), and go on being the same atoms': averages over a
    run find them by themselves, elsewhere `BondLength("O", "H").bound_to(structure)` does. Differentiable by positions
    and cell. For the distribution of lengths see `RDF`.

    Attributes:
        first: element symbol of one end.
        second: element symbol of the other.
        bonds: pairs of indices; None until it is bound.

    Raises:
        ValueError: for unknown elements.
    """

    first: str
    second: str
    bonds: tuple[tuple[int, int], ...] | None = dataclasses.field(default=None, metadata={"text": False})

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.first, self.second)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"bond {self.first}-{self.second}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "Å"

    def bound_to(self, structure: Atoms) -> "BondLength":
        """The bonds of a structure, unless they are known; ValueError if it has none."""
        if self.bonds is not None:
            return self
        found = bonds_between(structure, self.first, self.second)
        if not found:
            raise ValueError(f"{structure.symbols} has no covalent bonds of {self.first} and {self.second}.")
        return dataclasses.replace(self, bonds=found)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], Å."""
        i, j = np.array(self.bonds).T
        vectors = nearest_image(frame, frame.positions[j] - frame.positions[i])
        return jnp.sqrt((vectors**2).sum(-1)).mean()

    def _found(self) -> Any:
        return self.bonds

    def _symbols(self) -> tuple[str, ...]:
        return self.first, self.second


@register_observable("angle", elements=3)
@dataclasses.dataclass(frozen=True)
class BondAngle(_Bound):
    """Mean angle in degrees of covalent bonds first–centre and centre–last.

    As `BondLength` in all else. For the distribution of angles see `AngularDistribution`.

    Attributes:
        first: element symbol of one end.
        centre: element symbol of the atom at the vertex.
        last: element symbol of the other end.
        triples: indices (first, centre, last) of each angle; None until it is bound.

    Raises:
        ValueError: for unknown elements.
    """

    first: str
    centre: str
    last: str
    triples: tuple[tuple[int, int, int], ...] | None = dataclasses.field(default=None, metadata={"text": False})

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.first, self.centre, self.last)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"angle {self.first}-{self.centre}-{self.last}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "degree"

    def bound_to(self, structure: Atoms) -> "BondAngle":
        """The angles of a structure, unless they are known; ValueError if it has none."""
        if self.triples is not None:
            return self
        found = angles_between(structure, self.first, self.centre, self.last)
        if not found:
            raise ValueError(f"{structure.symbols} has no bond angles {self.first}-{self.centre}-{self.last}.")
        return dataclasses.replace(self, triples=found)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], degrees; the derivative of a straight angle is taken as zero."""
        i, vertex, k = np.array(self.triples).T
        one, other = (nearest_image(frame, frame.positions[end] - frame.positions[vertex]) for end in (i, k))
        return angles(one, other).mean()

    def _found(self) -> Any:
        return self.triples

    def _symbols(self) -> tuple[str, ...]:
        return self.first, self.centre, self.last
