"""Structures of many elements: prototypes over the periodic table, strained and rattled."""

import itertools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float

from jaxmlip.systems.checks import close_contact
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.graph import check_structure
from jaxmlip.systems.ions import ANIONS, CATIONS, NOBLE
from jaxmlip.systems.neighbors import neighbor_pairs
from jaxmlip.systems.prototypes import PROTOTYPES, Decoration, decorations, ideal

Relax = Callable[[list[Atoms]], Sequence[Atoms | None]]

REACH = 2.5
"""Up to which distances are compared to tell structures apart, in cube roots of the volume per atom: fcc and hcp differ
from 1.45 on."""

WIDTHS = (0.6, 1.0, 1.6)
"""Of the Gaussians of distances by which they are compared, in the same unit."""

SAME = 1e-6
"""Relative difference of such sums up to which two structures are the same."""

HALVINGS = 6
"""How often displacements are halved before atoms that came too close are left without any."""


class Distortions(NamedTuple):
    """How far structures may be from their crystals; see `many_crystals`."""

    volume_spread: float
    max_strain: float
    max_rattle_A: float


def many_crystals(
    number: int,
    *,
    elements: Iterable[str | int] | None = None,
    prototypes: Sequence[str] | None = None,
    volume_spread: float = 0.1,
    max_strain: float = 0.04,
    max_rattle_A: float = 0.15,
    relax: Relax | None = None,
    seed: int = 0,
) -> list[Atoms]:
    """Crystals of many elements and structure types, each strained and rattled.

    Elements are put on the sites of prototypes such that common oxidation states add up to zero and ions fit; bond
    lengths are sums of Shannon's radii, or of covalent ones, and elements have the volumes of their own metals, so that
    lattice constants are right within ten per cent. Prototypes take turns, so that each has an equal share; within one,
    elements come in random order, and again, otherwise distorted, when all have had their turn. A larger number
    continues the same list. There are some 15,000 distinct crystals of 2 to 14 atoms before distortion.

    Args:
        number: of structures.
        elements: symbols or atomic numbers that may be used, such as those for which potentials have references
            (`potential.species`); those that no prototype has a place for are passed over. All by default.
        prototypes: names of `PROTOTYPES`; all by default.
        volume_spread: volumes are multiplied by factors between 1 − this and 1 + this.
        max_strain: components of the strain at constant volume, to first order, are up to so large.
        max_rattle_A: standard deviations of displacements, Å, are between 0 and this. Structures in which atoms come
            closer than any bond get smaller ones.
        relax: gets the crystals without distortions, as many as are new, and gives them back as they should be before
            (volumes of least energy of a cheap potential, say), with None for those that are to be left out.
        seed: the same seed gives the same structures.

    Returns:
        Structures, no two the same; their `info` has `kind` (the prototype) and `composition`.

    Raises:
        ValueError: for an element or prototype that does not exist, a distortion out of range, if there are no
            crystals of these elements or, without distortions, not as many, or if `relax` gives back something else.
    """
    distortions = Distortions(volume_spread, max_strain, max_rattle_A)
    _check_wishes(number, distortions)
    chosen = _symbols(elements)
    picks = _picks(_names(prototypes), chosen, seed, repeat=any(distortions))
    start: dict[Decoration, Atoms | None] = {}
    seen: dict[tuple, list[Float[np.ndarray, " sums"]]] = {}
    found: list[Atoms] = []
    tried = 0
    while len(found) < number:
        batch = [*itertools.islice(picks, number - len(found))]
        if not batch or tried > 4 * number + 100:
            raise ValueError(_too_few(number, len(found)))
        _start(start, [decoration for _, decoration in batch], relax)
        for place, decoration in batch:
            atoms = start[decoration]
            if atoms is not None:
                distorted = _distorted(atoms, distortions, np.random.default_rng([seed, place]))
                if _is_new(distorted, seen):
                    found.append(distorted)
        tried += len(batch)
    return found


def _picks(names: Sequence[str], chosen: Collection[str], seed: int, repeat: bool) -> Iterator[tuple[int, Decoration]]:
    """Numbered decorations, prototypes taking turns; those of one prototype again and again, or once."""
    turns = []
    for name in names:
        options = [*decorations(name, chosen)]
        # Seeded by name, so that a prototype's order does not depend on which others are asked for.
        order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(options))
        if options:
            shuffled = [options[i] for i in order]
            turns.append(itertools.cycle(shuffled) if repeat else iter(shuffled))
    place = itertools.count()
    while turns:
        for turn in [*turns]:
            decoration = next(turn, None)
            if decoration is None:
                turns.remove(turn)
            else:
                yield next(place), decoration


def _start(start: dict[Decoration, Atoms | None], wanted: Iterable[Decoration], relax: Relax | None) -> None:
    """Add the crystals of those decorations that are new, as they are before distortion."""
    new = [decoration for decoration in dict.fromkeys(wanted) if decoration not in start]
    crystals = [ideal(decoration) for decoration in new]
    relaxed = crystals if relax is None else [*relax([atoms.copy() for atoms in crystals])]
    if len(relaxed) != len(crystals):
        raise ValueError(f"relax was given {len(crystals)} crystals and gave back {len(relaxed)}.")
    for decoration, before, after in zip(new, crystals, relaxed, strict=True):
        if after is not None:
            if not np.array_equal(before.numbers, after.numbers):
                raise ValueError(f"relax was given {before.symbols} and gave back {after.symbols}.")
            check_structure(after)
            after = after.copy()
            after.info = {"kind": decoration.prototype, "composition": composition(after)}
        start[decoration] = after


def _distorted(crystal: Atoms, distortions: Distortions, rng: np.random.Generator) -> Atoms:
    volume_spread, max_strain, max_rattle = distortions
    atoms = crystal.copy()
    strain = rng.uniform(-max_strain, max_strain, (3, 3))
    strain = 0.5 * (strain + strain.T)
    strain -= np.trace(strain) / 3 * np.eye(3)
    stretch = (1 + rng.uniform(-volume_spread, volume_spread)) ** (1 / 3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain) * stretch, scale_atoms=True)
    displacements = rng.uniform(0, max_rattle) * rng.normal(size=(len(atoms), 3))
    rest = atoms.positions.copy()
    for halving in range(HALVINGS):
        atoms.positions = rest + displacements / 2**halving
        if close_contact(atoms) is None:
            return atoms
    atoms.positions = rest
    return atoms


def _is_new(atoms: Atoms, seen: dict[tuple, list[Float[np.ndarray, " sums"]]]) -> bool:
    """Whether no structure before is the same, however its cell is chosen; and remember it."""
    sums = _fingerprint(atoms)
    alike = seen.setdefault((atoms.info["composition"], len(sums)), [])
    if any(np.allclose(sums, other, rtol=SAME, atol=SAME) for other in alike):
        return False
    alike.append(sums)
    return True


def _fingerprint(atoms: Atoms) -> Float[np.ndarray, " sums"]:
    """Size of an atom (Å) and smooth sums over distances for each pair of elements: the same for the same crystal."""
    size = np.cbrt(atoms.get_volume() / len(atoms))
    i, j, _, distance = neighbor_pairs(atoms.positions, atoms.cell.array, REACH * size)
    distance = distance / size
    elements, kind = np.unique(atoms.numbers, return_inverse=True)
    window = 0.5 * (1 + np.cos(np.pi * distance / REACH))
    terms = [window * np.exp(-((distance / width) ** 2)) for width in WIDTHS]
    pair = kind[i] * len(elements) + kind[j]
    sums = [np.bincount(pair, weights=term, minlength=len(elements) ** 2) for term in terms]
    return np.concatenate([[size], *(each / len(atoms) for each in sums)])


def _symbols(elements: Iterable[str | int] | None) -> set[str]:
    """Those elements that the tables have."""
    known = {*CATIONS, *NOBLE, *itertools.chain.from_iterable(ANIONS.values())}
    if elements is None:
        return known
    symbols = set()
    for element in elements:
        symbol = element if isinstance(element, str) else dict(enumerate(chemical_symbols)).get(int(element), "X")
        if symbol not in atomic_numbers or symbol == "X":
            raise ValueError(f"{element!r} is no element; give symbols or atomic numbers.")
        symbols.add(symbol)
    return symbols & known


def _names(prototypes: Sequence[str] | None) -> list[str]:
    names = [*dict.fromkeys(PROTOTYPES if prototypes is None else prototypes)]
    unknown = [name for name in names if name not in PROTOTYPES]
    if unknown:
        raise ValueError(f"There is no prototype {unknown[0]!r}; there are {', '.join(PROTOTYPES)}.")
    return names


def _check_wishes(number: int, distortions: Distortions) -> None:
    if number < 0:
        raise ValueError(f"The number of structures is {number}; it cannot be negative.")
    for (name, value), limit in zip(distortions._asdict().items(), (0.5, 0.2, 0.5), strict=True):
        if not 0 <= value <= limit:
            raise ValueError(f"{name} is {value}; it must be between 0 and {limit}.")


def _too_few(number: int, found: int) -> str:
    if not found:
        return "There is no crystal of these elements in these prototypes; give more of them (elements=, prototypes=)."
    return (
        f"There are {found} distinct crystals of these elements in these prototypes, and {number} are wanted; give "
        "more of them (elements=, prototypes=), or distort them more (volume_spread=, max_strain=, max_rattle_A=)."
    )
