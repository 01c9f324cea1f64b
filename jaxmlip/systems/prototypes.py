"""Crystal structures that many compounds share, and the elements that can be put on their sites."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers
from ase.spacegroup import crystal

from jaxmlip.systems.ions import (
    ANIONS,
    CATIONS,
    GASES,
    NOBLE,
    anion_charge,
    anion_contact,
    bond_length,
    element_distance,
)
from jaxmlip.systems.neighbors import neighbor_pairs

MISMATCH = 1.3
"""By how much the sizes that two cations ask of a structure may differ; of SrTiO3 they differ by 1.08."""

CROWDED = 0.8
"""Share of the distance at which they touch up to which anions may come together; beyond, other structures form."""

FIRST, SECOND, ANION = "Li", "Be", "O"
"""Elements that mark the sites of a template."""

Ion = tuple[str, int]
"""Symbol and charge."""


class Site(NamedTuple):
    """Where cations go.

    Attributes:
        coordination: number of anions around them.
        charges: that they may have.
    """

    coordination: int
    charges: tuple[int, ...] = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Prototype:
    """A structure type.

    Attributes:
        build: the template, of lattice constant 1 Å, whose elements mark sites: `FIRST`, `SECOND` and `ANION`.
        cations: the sites of cations; none for structures of one element.
        anions: elements that may be anions.
        coordination: nearest neighbours of an atom, of structures of one element.
    """

    build: Callable[[], Atoms]
    cations: tuple[Site, ...] = ()
    anions: tuple[str, ...] = tuple(itertools.chain.from_iterable(ANIONS.values()))
    coordination: int = 0


class Decoration(NamedTuple):
    """Elements on the sites of a prototype, in the order `FIRST`, `SECOND`, `ANION`, and its lattice constant in Å."""

    prototype: str
    elements: tuple[str, ...]
    lattice_constant: float


def _in_group(spacegroup: int, positions: list[tuple[float | int, ...]], c: float = 1.0, setting: int = 1) -> Atoms:
    symbols = [FIRST, ANION] if len(positions) == 2 else [FIRST, SECOND, ANION]
    gamma = 120 if c != 1.0 and spacegroup in (166, 167) else 90
    return crystal(
        symbols,
        positions,
        spacegroup=spacegroup,
        setting=setting,
        cellpar=[1, 1, c, 90, 90, gamma],
        primitive_cell=True,
    )


_PAIR = FIRST + ANION
_DIVALENT = ("O", "S", "Se")

PROTOTYPES: dict[str, Prototype] = {
    "bcc": Prototype(lambda: bulk(FIRST, "bcc", a=1, cubic=True), coordination=8),
    "fcc": Prototype(lambda: bulk(FIRST, "fcc", a=1, cubic=True), coordination=12),
    "hcp": Prototype(lambda: bulk(FIRST, "hcp", a=1, c=np.sqrt(8 / 3)), coordination=12),
    "diamond": Prototype(lambda: bulk(FIRST, "diamond", a=1, cubic=True), coordination=4),
    "rocksalt": Prototype(lambda: bulk(_PAIR, "rocksalt", a=1, cubic=True), (Site(6),)),
    "CsCl": Prototype(lambda: bulk(_PAIR, "cesiumchloride", a=1, cubic=True), (Site(8),)),
    "zincblende": Prototype(lambda: bulk(_PAIR, "zincblende", a=1, cubic=True), (Site(4),)),
    "wurtzite": Prototype(lambda: bulk(_PAIR, "wurtzite", a=1, c=np.sqrt(8 / 3)), (Site(4),)),
    "fluorite": Prototype(lambda: bulk(FIRST + ANION * 2, "fluorite", a=1, cubic=True), (Site(8),)),
    "antifluorite": Prototype(lambda: bulk(ANION + FIRST * 2, "fluorite", a=1, cubic=True), (Site(4),)),
    "rutile": Prototype(lambda: _in_group(136, [(0, 0, 0), (0.305, 0.305, 0)], c=0.644), (Site(6),)),
    "corundum": Prototype(lambda: _in_group(167, [(0, 0, 0.352), (0.306, 0, 0.25)], c=2.73), (Site(6),)),
    "perovskite": Prototype(
        lambda: _in_group(221, [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]), (Site(12, (1, 2, 3)), Site(6))
    ),
    "spinel": Prototype(
        lambda: _in_group(227, [(0.125, 0.125, 0.125), (0.5, 0.5, 0.5), (0.2624, 0.2624, 0.2624)], setting=2),
        (Site(4, (2, 4)), Site(6, (2, 3))),
        _DIVALENT,
    ),
    "half-Heusler": Prototype(
        lambda: _in_group(216, [(0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0, 0, 0)]),
        (Site(6, (1, 2, 3)), Site(4, (1, 2, 3))),
        (*ANIONS[-3], *ANIONS[-4]),
    ),
    "layered": Prototype(  # of α-NaFeO2 and LiCoO2: a layer of each cation in turn between those of anions
        lambda: _in_group(166, [(0, 0, 0.5), (0, 0, 0), (0, 0, 0.2605)], c=4.99),
        (Site(6, (1,)), Site(6, (3,))),
        _DIVALENT,
    ),
}
"""Structure types by name; internal coordinates and axial ratios are those of TiO2, Al2O3, MgAl2O4 and LiCoO2."""


@functools.cache
def template(name: str) -> Atoms:
    """A prototype of lattice constant 1 Å; not to be changed."""
    return PROTOTYPES[name].build()


def decorations(name: str, elements: Collection[str]) -> Iterator[Decoration]:
    """What a prototype can be made of: neutral by common oxidation states, and of ions that fit.

    Args:
        name: of the prototype.
        elements: symbols that may be used.

    Yields:
        Each arrangement of elements once, in the order of atomic numbers.
    """
    kind = PROTOTYPES[name]
    symbols = sorted(elements, key=atomic_numbers.__getitem__)
    if not kind.cations:
        left_out = {*GASES, *(NOBLE if name == "diamond" else ())}
        for symbol in symbols:
            if symbol not in left_out:
                nearest = _shortest(name)[FIRST, FIRST]
                yield Decoration(name, (symbol,), element_distance(symbol, kind.coordination) / nearest)
        return
    candidates = [
        [(symbol, charge) for symbol in symbols for charge in CATIONS.get(symbol, {}) if charge in site.charges]
        for site in kind.cations
    ]
    seen = set()
    for anion in [symbol for symbol in symbols if symbol in kind.anions]:
        for ions in _neutral(name, candidates, anion_charge(anion) or 0):
            chosen = (*(symbol for symbol, _ in ions), anion)
            if len({*chosen}) < len(chosen) or chosen in seen:
                continue
            constant = _lattice_constant(name, ions, anion)
            if constant is not None:
                seen.add(chosen)
                yield Decoration(name, chosen, constant)


def _neutral(name: str, candidates: list[list[Ion]], anion: int) -> Iterator[tuple[Ion, ...]]:
    """Ions for the sites of cations that balance anions of such a charge."""
    counts = template(name).symbols.formula.count()
    needed = -counts[ANION] * anion
    if len(candidates) == 1:
        yield from ((ion,) for ion in candidates[0] if counts[FIRST] * ion[1] == needed)
        return
    for first in candidates[0]:
        charge, rest = divmod(needed - counts[FIRST] * first[1], counts[SECOND])
        if not rest:
            yield from ((first, second) for second in candidates[1] if second[1] == charge)


def ideal(decoration: Decoration) -> Atoms:
    """The crystal without strain or displacements; its `info` has the prototype as `kind`."""
    base = template(decoration.prototype)
    marks = (FIRST, ANION) if len(decoration.elements) == 2 else (FIRST, SECOND, ANION)
    element_of: dict[str, str] = dict(zip(marks, decoration.elements, strict=False))
    atoms = Atoms(
        [element_of[mark] for mark in base.symbols],
        scaled_positions=base.get_scaled_positions(),
        cell=base.cell.array * decoration.lattice_constant,
        pbc=True,
    )
    atoms.info["kind"] = decoration.prototype
    return atoms


def _lattice_constant(name: str, ions: tuple[Ion, ...], anion: str) -> float | None:
    """Å, at which no bond is squeezed; None if the ions do not fit together."""
    shortest = _shortest(name)
    wanted = [
        bond_length(symbol, charge, anion, site.coordination) / shortest[mark, ANION]
        for mark, site, (symbol, charge) in zip((FIRST, SECOND), PROTOTYPES[name].cations, ions, strict=False)
    ]
    constant = max(wanted)
    if constant > MISMATCH * min(wanted):
        return None
    if constant * shortest[ANION, ANION] < CROWDED * anion_contact(anion):
        return None
    return constant


@functools.cache
def _shortest(name: str) -> dict[tuple[str, str], float]:
    """The shortest distance between sites of two kinds, in lattice constants."""
    atoms = template(name)
    i, j, _, distance = neighbor_pairs(atoms.positions, atoms.cell.array, 1.7)
    found: dict[tuple[str, str], float] = {}
    marks = atoms.get_chemical_symbols()
    for one, other, length in zip(i, j, distance, strict=True):
        kinds = marks[one], marks[other]
        found[kinds] = min(found.get(kinds, np.inf), float(length))
    return found
