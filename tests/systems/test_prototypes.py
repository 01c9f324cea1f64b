"""Structure types, against lattice constants and coordination numbers that are known."""

import itertools
import re

import numpy as np
import pytest

from jaxmlip.systems.checks import check_input
from jaxmlip.systems.ions import ANIONS, CATIONS, NOBLE, anion_charge
from jaxmlip.systems.neighbors import neighbor_pairs
from jaxmlip.systems.prototypes import FIRST, PROTOTYPES, SECOND, decorations, ideal, template

EVERYTHING = {*CATIONS, *NOBLE, *itertools.chain.from_iterable(ANIONS.values())}

MEASURED = [
    ("fcc", "Cu", 3.61), ("fcc", "Al", 4.05), ("bcc", "Fe", 2.87), ("bcc", "W", 3.16), ("hcp", "Mg", 3.21),
    ("diamond", "Si", 5.43), ("diamond", "C", 3.57), ("rocksalt", "NaCl", 5.64), ("rocksalt", "MgO", 4.21),
    ("rocksalt", "TiC", 4.33), ("CsCl", "CsCl", 4.12), ("zincblende", "ZnS", 5.41), ("zincblende", "GaAs", 5.65),
    ("wurtzite", "ZnO", 3.25), ("wurtzite", "AlN", 3.11), ("fluorite", "CaF", 5.46), ("fluorite", "CeO", 5.41),
    ("antifluorite", "LiO", 4.62), ("rutile", "TiO", 4.59), ("corundum", "FeO", 5.03), ("perovskite", "SrTiO", 3.905),
    ("perovskite", "CsPbI", 6.29), ("perovskite", "LaAlO", 3.79), ("spinel", "MgAlO", 8.08),
    ("half-Heusler", "LiZnAs", 5.94), ("layered", "LiCoO", 2.816),
]  # fmt: skip
"""Å, room temperature; elements in the order of sites."""


@pytest.mark.parametrize(("name", "symbols", "measured"), MEASURED)
def test_lattice_constants_are_near_those_measured(name: str, symbols: str, measured: float) -> None:
    elements = tuple(re.findall("[A-Z][a-z]?", symbols))
    (found,) = [option for option in decorations(name, set(elements)) if option.elements == elements]
    assert found.lattice_constant == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_nearest_neighbours_are_those_of_the_structure(name: str) -> None:
    atoms, kind = template(name), PROTOTYPES[name]
    i, j, _, distance = neighbor_pairs(atoms.positions, atoms.cell.array, 1.2)
    symbols = np.array(atoms.get_chemical_symbols())
    sites = [(FIRST, kind.coordination)] if not kind.cations else []
    sites += [(mark, site.coordination) for mark, site in zip((FIRST, SECOND), kind.cations, strict=False)]
    for mark, expected in sites:
        for atom in np.flatnonzero(symbols == mark):
            others = distance[(i == atom) & ((symbols[j] == "O") if kind.cations else True)]
            assert np.sum(others < 1.08 * others.min()) == expected


@pytest.mark.parametrize("name", PROTOTYPES)
def test_charges_add_up_and_atoms_keep_apart(name: str) -> None:
    options = [*decorations(name, EVERYTHING)]
    assert len({option.elements for option in options}) == len(options) > 50
    for option in options[:: max(1, len(options) // 40)]:
        atoms = ideal(option)
        check_input(atoms)
        assert atoms.info == {"kind": name}
        if len(option.elements) == 1:
            continue
        *cations, anion = option.elements
        counts = atoms.symbols.formula.count()
        charges = itertools.product(*(CATIONS[symbol] for symbol in cations))
        needed = -counts[anion] * (anion_charge(anion) or 0)
        assert needed in [sum(counts[s] * q for s, q in zip(cations, each, strict=True)) for each in charges]


def test_what_does_not_fit_is_left_out() -> None:
    assert [option.elements for option in decorations("perovskite", {"Sr", "Ti", "O"})] == [("Sr", "Ti", "O")]
    assert not [*decorations("rocksalt", {"Mg", "Cl"})], "charges do not add up"
    assert not [*decorations("fluorite", {"Be", "I"})], "anions would overlap"
    assert not [*decorations("fcc", {"O"})], "no crystal of single atoms"
