"""Frames of files that are malformed or strange, on their way into the study across functionals.

Each is left out in a sentence that names it, or has the right numbers, and is in no other part than its composition.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from matpes_entries import entry

from jaxmlip.study.config import resolve
from jaxmlip.study.convert import convert_data
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.cross_functional.data import LEVELS, PARTS, prepare
from jaxmlip.study.section import ConfigError
from jaxmlip.study.workspace import Workspace
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import moment_sizes
from jaxmlip.units import GPA

CRYSTALS = [
    bulk(f"{metal}{other}", "rocksalt", a=5.0 + 0.05 * k)
    for metal in ("Li", "Na", "K", "Rb")
    for other in ("F", "Cl", "Br", "I")
    for k in range(3)
]

Entry = dict[str, Any]


def sites(said: Entry) -> list[Any]:
    return said["structure"]["sites"]


def turned(said: Entry, turn: np.ndarray) -> None:
    """Cell and positions under a linear map."""
    lattice = said["structure"]["lattice"]
    lattice["matrix"] = (np.array(lattice["matrix"]) @ turn).tolist()
    for site in sites(said):
        site["xyz"] = (np.array(site["xyz"]) @ turn).tolist()


def repeated(said: Entry) -> None:
    """Twice the cell: the same composition by another formula."""
    lattice = said["structure"]["lattice"]["matrix"]
    more = copy.deepcopy(sites(said))
    for site in more:
        site["xyz"] = (np.array(site["xyz"]) + lattice[0]).tolist()
    said["structure"]["lattice"]["matrix"] = [[2 * x for x in lattice[0]], *lattice[1:]]
    sites(said).extend(more)
    said["energy"] *= 2
    said["forces"] *= 2


def swapped(said: Entry) -> None:
    """Vectors in another order: left-handed."""
    matrix = said["structure"]["lattice"]["matrix"]
    said["structure"]["lattice"]["matrix"] = [matrix[1], matrix[0], matrix[2]]


def one_atom(said: Entry) -> None:
    """Of a metal; whoever has no reference for it is fitted one."""
    del sites(said)[1:]
    said["forces"] = said["forces"][:1]


def some_moments(said: Entry) -> None:
    for site, moment in zip(sites(said), (-1.5, 0.25), strict=True):
        site["properties"] = {"magmom": moment}


def half_of_the_moments(said: Entry) -> None:
    sites(said)[0]["properties"] = {"magmom": 1.0}


def change(path: tuple[Any, ...], value: Any) -> Callable[[Entry], None]:
    """Another value at a place."""

    def changed(said: Entry) -> None:
        place: Any = said
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return changed


def without(*path: Any) -> Callable[[Entry], None]:
    """Nothing at a place."""

    def changed(said: Entry) -> None:
        place: Any = said
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return changed


SITE = ("structure", "sites", 1)

KEPT: list[Callable[[Entry], None]] = [
    some_moments,
    half_of_the_moments,
    swapped,
    lambda said: turned(said, np.diag([1.0, 1.0, -1.0])),
    one_atom,
    repeated,
    change(("stress",), None),
    without("stress"),
    change(("forces",), None),
    without(*SITE, "label"),
    change((*SITE, "properties"), None),
    change((*SITE, "properties"), {}),
    change((*SITE, "species", 0, "element"), "Cs"),
]
"""Strange, but nothing is wrong with them."""

LEFT_OUT: list[Callable[[Entry], None]] = [
    lambda said: sites(said)[1].update(xyz=[x + 0.005 for x in sites(said)[0]["xyz"]]),
    lambda said: sites(said)[1].update(xyz=sites(said)[0]["xyz"]),
    change((*SITE, "species", 0, "occu"), 0.5),
    change((*SITE, "species"), [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}]),
    change((*SITE, "species", 0, "element"), "Xx"),
    change((*SITE, "species"), []),
    change((*SITE, "species"), "Na"),
    change((*SITE, "xyz"), [0.0, "x", 1.0]),
    change((*SITE, "xyz"), [0.0, 1.0]),
    change((*SITE, "properties"), "none"),
    change((*SITE, "properties"), [1.0]),
    change(SITE, None),
    change(("structure", "sites"), []),
    change(("structure", "sites"), None),
    change(("structure", "lattice", "matrix"), [[0.0] * 3] * 3),
    change(("structure", "lattice", "matrix"), [[4.0, 0, 0], [4.0, 0, 0], [0, 0, 4.0]]),
    change(("structure", "lattice", "matrix"), [[4.0, 0], [0, 4.0]]),
    change(("structure", "lattice"), None),
    change(("structure",), None),
    change(("structure",), 7),
    change(("structure",), "{"),
    without("structure"),
    without("energy"),
    change(("energy",), "low"),
    change(("energy",), [1.0]),
    change(("forces",), [[0.0, 0.0, 0.0]]),
    change(("forces",), [[0.0, 0.0, "x"]] * 2),
    change(("stress",), [1.0, 2.0]),
    change(("stress",), {"xx": 1.0}),
]
"""Nothing that could be trained on."""


def written(folder: Path, rng: np.random.Generator, number: int) -> dict[str, dict[int, str]]:
    """Two files, some of whose entries are strange; by level and entry, what must become of those."""
    fates: dict[str, dict[int, str]] = {}
    for level, shift in (("source", -2.0), ("target", -7.0)):
        entries: list[Any] = [entry(k, a, len(a) * shift - 0.1 * k) for k, a in enumerate(CRYSTALS)]
        chosen = [int(k) for k in rng.choice(len(entries), number, replace=False)]
        fates[level] = {}
        for k in chosen:
            fates[level][k] = str(rng.choice(["kept", "left out"]))
            changes = KEPT if fates[level][k] == "kept" else LEFT_OUT
            changes[rng.integers(len(changes))](entries[k])
        entries += [copy.deepcopy(entries[0]), *([None] if number % 2 else [])]  # there twice; no entry at all
        (folder / f"{level}.json").write_text(json.dumps(entries))
    return fates


def prepared(folder: Path, said: list[str], **files: str) -> Any:
    where = {level: str(folder / f"{level}.json") for level in LEVELS}
    content = {"study": "cross_functional", "files": where | files, "sizes": [8]}
    config = resolve(content, "strange")
    assert isinstance(config, CrossFunctional)
    return prepare(config, Workspace(folder / "run", report=said.append))


def check(folder: Path, fates: dict[str, dict[int, str]]) -> None:
    """What became of the entries of the files."""
    data = prepared(folder, [])
    parts: dict[str, set[str]] = {}
    for level in LEVELS:
        _, left_out = convert_data(folder / f"{level}.json", folder / f"{level}-again.h5", {})
        found = {}
        for part in PARTS:
            for frame in data.frames(level, part):
                assert frame.info["matpes_id"] not in found, "there once"
                found[frame.info["matpes_id"]] = frame
                parts.setdefault(composition(frame.atoms), set()).add(part)
        entries = json.loads((folder / f"{level}.json").read_text())
        for k, said in enumerate(entries[: len(CRYSTALS)]):
            name, fate = f"matpes-{k}", fates[level].get(k, "kept")
            assert (name in found) == (fate == "kept"), (name, fate, left_out)
            assert any(f"entry {k} ({name})" in each for each in left_out) == (fate == "left out"), (name, left_out)
            if fate == "kept":
                _check_frame(found[name], said)
        assert all("Traceback" not in each and each.endswith(".") for each in left_out)
    assert all(len(of) == 1 for of in parts.values()), "a composition is in one part"
    assert np.isfinite(data.references("target")).all()


def _check_frame(frame: Any, said: Entry) -> None:
    assert frame.energy == said["energy"]
    volume = abs(np.linalg.det(said["structure"]["lattice"]["matrix"]))
    assert frame.atoms.get_volume() == pytest.approx(volume)
    assert len(frame.atoms) == len(sites(said))
    if said.get("stress") is not None:
        np.testing.assert_allclose(np.diag(frame.stress), -0.1 * GPA * np.array([1.0, 2, 3]))
    else:
        assert np.isnan(frame.stress).all()
    if said["forces"] is not None:
        np.testing.assert_array_equal(frame.forces, said["forces"])
    else:
        assert np.isnan(frame.forces).all()
    moments = [(site.get("properties") or {}).get("magmom") for site in sites(said)]
    if None in moments:
        assert np.isnan(moment_sizes(frame)).all()
    else:
        np.testing.assert_array_equal(moment_sizes(frame), np.abs(np.array(moments, float)))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_strange_frames(tmp_path: Path, seed: int) -> None:
    """40 of them, and 200."""
    rng = np.random.default_rng(seed)
    kinds = Counter()
    for trial in range(2 if seed == 0 else 10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        fates = written(folder, rng, 10)
        check(folder, fates)
        kinds.update(fate for of_level in fates.values() for fate in of_level.values())
    assert min(kinds["kept"], kinds["left out"]) > 10


@pytest.mark.parametrize("number", range(len(LEFT_OUT)))
def test_each_has_a_sentence(tmp_path: Path, number: int) -> None:
    entries: list[Any] = [entry(k, CRYSTALS[k], -1.0) for k in range(2)]
    LEFT_OUT[number](entries[1])
    (tmp_path / "a.json").write_text(json.dumps(entries))
    kept, (sentence,) = convert_data(tmp_path / "a.json", tmp_path / "a.h5", {})
    assert kept == 1
    assert sentence.startswith(f"{tmp_path / 'a.json'}, entry 1 (matpes-1)")


def test_elements_without_a_reference(tmp_path: Path) -> None:
    """Of isolated atoms that lack one, it is named; fitted, an element that no frame has apart is no mistake."""
    written(tmp_path, np.random.default_rng(0), 0)
    lone = [entry(k, bulk(symbol, "sc", a=20.0), -1.5) for k, symbol in enumerate(("Li", "Na", "K", "F", "Cl", "Br"))]
    (tmp_path / "atoms.json").write_text(json.dumps(lone))
    with pytest.raises(ConfigError, match=r"atoms\.json has no energies of Rb, I; leave the file out"):
        prepared(tmp_path, [], target_atoms=str(tmp_path / "atoms.json"))
