"""Errors of forces and stresses along a trajectory: by element, and by what molecules do with them."""

import dataclasses
from collections import defaultdict
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from ase import Atoms

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.molecular import nearest_image
from jaxmlip.observables.names import register_observable
from jaxmlip.observables.neighborhood import atoms_of, check_elements, check_symbols
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.thermodynamics import check_periodic
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.molecules import Molecule, molecules_in
from jaxmlip.units import GPA


@register_observable("force_error", elements=1)
@dataclasses.dataclass(frozen=True)
class ElementForceError(Observable):
    """Mean squared difference of a force component on atoms of an element to that of another potential, eV²/Å².

    Attributes:
        element: symbol.

    Raises:
        ValueError: for an unknown element.
    """

    depends_on_potential: ClassVar[bool] = True

    element: str

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        check_symbols(self.element)

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return f"squared force error {self.element}"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV2/Å2"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if frames lack the element."""
        check_elements(self, frame, self.element)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], eV²/Å²; `potential` is the other one."""
        difference = frame.predicted(potential).forces - frame.known_forces
        return (difference[atoms_of(frame, self.element)] ** 2).mean()


def rigid_parts(frame: FrameState, molecules: tuple[Molecule, ...], vectors: Any) -> tuple[Any, Any, Any]:
    """Vectors on atoms [atoms, 3] as sums of three: of molecules that translate, that rotate, and all else.

    Of every molecule, the first is the mean over its atoms, and the second the rotation ω × r about its geometric
    centre that is nearest to the vectors. The parts are orthogonal, so that their squares add up to that of the
    vectors: that is why atoms count alike, whatever they weigh. The rest of a single atom is zero; linear molecules
    have no rotation about their axis.
    """
    translation, rotation = jnp.zeros_like(vectors), jnp.zeros_like(vectors)
    for atoms, parents in _by_size(molecules):
        mine = vectors[atoms]
        mean = mine.mean(axis=1, keepdims=True)
        translation = translation.at[atoms].set(jnp.broadcast_to(mean, mine.shape))
        if atoms.shape[1] == 1:
            continue
        arms = _arms(frame, atoms, parents)
        squares = (arms**2).sum((1, 2))[:, None, None] * jnp.eye(3, dtype=arms.dtype)
        inertia = squares - jnp.einsum("mkx,mky->mxy", arms, arms)
        inverse, turned = jnp.linalg.pinv(inertia, hermitian=True), jnp.zeros_like(mine)
        # Refined once: single precision alone leaves 1e-4 in molecules that are nearly straight.
        for _ in range(2):
            turn = jnp.einsum("mxy,my->mx", inverse, jnp.cross(arms, mine - turned).sum(axis=1))
            turned += jnp.cross(turn[:, None, :], arms)
        rotation = rotation.at[atoms].set(turned)
    return translation, rotation, vectors - translation - rotation


def arms_of(frame: FrameState, molecules: tuple[Molecule, ...]) -> Any:
    """From the geometric centres of molecules to their atoms, [atoms, 3], Å."""
    found = jnp.zeros_like(frame.positions)
    for atoms, parents in _by_size(molecules):
        found = found.at[atoms].set(_arms(frame, atoms, parents))
    return found


def _by_size(molecules: tuple[Molecule, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Atoms and parents [molecules, atoms] of the molecules of each number of atoms."""
    groups: dict[int, list[Molecule]] = defaultdict(list)
    for molecule in molecules:
        groups[len(molecule.atoms)].append(molecule)
    return [
        (np.array([each.atoms for each in group]), np.array([each.parents for each in group]))
        for group in groups.values()
    ]


def _arms(frame: FrameState, atoms: np.ndarray, parents: np.ndarray) -> Any:
    """From the geometric centres of whole molecules to their atoms, [molecules, atoms, 3], Å."""
    positions, which = frame.positions[atoms], np.arange(len(atoms))
    places = [jnp.zeros_like(positions[:, 0])]
    for atom in range(1, atoms.shape[1]):
        bond = nearest_image(frame, positions[:, atom] - positions[which, parents[:, atom]])
        places.append(jnp.stack(places, axis=1)[which, parents[:, atom]] + bond)
    whole = jnp.stack(places, axis=1)
    return whole - whole.mean(axis=1, keepdims=True)


@register_observable("force_error_by_motion")
@dataclasses.dataclass(frozen=True)
class MolecularForceError(Observable):
    """Squared force error split into what translates, rotates and deforms molecules: three numbers, eV²/Å².

    Differences of forces to another potential are projected as `rigid_parts` says. Each part is the sum of its squares
    over the number of force components of the frame, so that the three add up to `SquaredForceError`. Molecules are
    found once, as `BondLength` does.

    Attributes:
        molecules: all atoms of the structure; None until it is bound.
    """

    depends_on_potential: ClassVar[bool] = True

    molecules: tuple[Molecule, ...] | None = dataclasses.field(default=None, metadata={"text": False})

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "squared force error of translation, rotation and vibration"

    @property
    def unit(self) -> str:
        """Unit."""
        return "eV2/Å2"

    def bound_to(self, structure: Atoms) -> "MolecularForceError":
        """With the molecules of a structure, unless they are known; ValueError if it has none."""
        return self if self.molecules is not None else MolecularForceError(molecules_in(structure))

    def check(self, frame: FrameState) -> None:
        """Raise ValueError if molecules are not known, or frames do not have as many atoms."""
        if self.molecules is None:
            raise ValueError(f"The {self.name} is that of molecules: give MolecularForceError().bound_to(structure).")
        number = sum(len(molecule.atoms) for molecule in self.molecules)
        if number != len(frame.numbers):
            raise ValueError(f"The {self.name} was bound to {number} atoms, and there are {len(frame.numbers)} here.")

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[3], eV²/Å², of translation, rotation and vibration; `potential` is the other one."""
        difference = frame.predicted(potential).forces - frame.known_forces
        parts = rigid_parts(frame, self.molecules or (), difference)
        return jnp.stack([(part**2).mean() for part in parts])


@register_observable("stress_error")
@dataclasses.dataclass(frozen=True)
class SquaredStressError(Observable):
    """Mean squared difference of a component of the stress to that of another potential, all nine alike, GPa²."""

    depends_on_potential: ClassVar[bool] = True
    needs_stress: ClassVar[bool] = True
    needs_other_stress: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        return "squared stress error"

    @property
    def unit(self) -> str:
        """Unit."""
        return "GPa2"

    def check(self, frame: FrameState) -> None:
        """Raise ValueError unless frames are periodic in three directions."""
        check_periodic(self, frame)

    def per_frame(self, frame: FrameState, potential: Potential | None = None) -> Any:
        """[], GPa²; `potential` is the other one."""
        other = frame.predicted(potential, stress=True).stress
        if other is None:
            raise ValueError("The prediction that is known of the frame has no stress: give the potential.")
        return ((other[0] - frame.stress_of(None)) ** 2).mean() / GPA**2
