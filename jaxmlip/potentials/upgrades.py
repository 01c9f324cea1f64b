"""Potential files of earlier versions of the format, read as those of the present one.

Each version has a function that makes a file of the next one of it, in memory; a file is passed from one to the other.
Where the format changes, `VERSION` is raised, and what the files before it lack is written down here, once, so that
whatever decodes a file sees files of the present version only.

Version 1 grew as potentials did: its files have the weight of the repulsion, tables, the labels of the training and the
kind of a tangent's base where the program that wrote them knew of these. Version 2 has all of them. In version 3 a
CHGNet says which elements it knows, how many readouts it has and what it was trained on; until then all were published
ones.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxmlip.potentials.potential import LABELS

VERSION = 3
"""Of the files that are written."""

Arrays = dict[str, np.ndarray]


def version_of(header: dict[str, Any]) -> int:
    """The version of a file, one that can be read.

    Raises:
        ValueError: if it is none that this program reads.
    """
    version = header["version"]
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        said = header.get("provenance")
        written = said.get("versions") if isinstance(said, dict) else None
        by = f" (jaxmlip {written['jaxmlip']} wrote it)" if isinstance(written, dict) and "jaxmlip" in written else ""
        raise ValueError(
            f"it has version {version!r} of the format{by}, and this jaxmlip reads versions 1 to {VERSION}; update "
            "jaxmlip, or read it with the one that wrote it"
        )
    return version


def upgraded(header: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """The header and arrays that a file would have if it were written today; what is given is not changed.

    Raises:
        ValueError: if there is no way from the file's version.
        KeyError: if the header lacks what those of its version have.
    """
    arrays = dict(arrays)
    node = _copied(header["potential"])
    for version in range(version_of(header), VERSION):
        for part, prefix in _parts(node):
            UPGRADES[version](part, arrays, prefix)
    return header | {"version": VERSION, "potential": node}, arrays


def _from_1(node: dict[str, Any], arrays: Arrays, prefix: str) -> None:
    """What files of version 1 need not have, because it came later: each at the value that it then had."""
    static = node["static"]
    if node["kind"] == "linearized":
        static.setdefault("base", "equivariant")
    if "equivariant" in (node["kind"], static.get("base")):
        static.setdefault("tabulated", False)
        static.setdefault("trained_on", None)
        if "repulsion" not in node["arrays"]:
            arrays[f"{prefix}repulsion"] = np.ones(static["heads"])
            node["arrays"]["repulsion"] = {"shape": [static["heads"]], "dtype": "float64"}


def _from_2(node: dict[str, Any], arrays: Arrays, prefix: str) -> None:
    """The published CHGNets."""
    del arrays, prefix
    if node["kind"] == "chgnet":
        node["static"] |= {"known": None, "heads": 1, "trained_on": list(LABELS)}


UPGRADES: dict[int, Callable[[dict[str, Any], Arrays, str], None]] = {1: _from_1, 2: _from_2}
"""By version: brings the node of one potential, and its arrays (whose names begin with a prefix), to the next."""


def _parts(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """The potentials of a file, terms of sums one by one, with what the names of their arrays begin with."""
    if node["kind"] == "sum":
        for place, term in enumerate(node["terms"]):
            yield from _parts(term, f"{prefix}{place}/")
    else:
        yield node, prefix


def _copied(node: Any) -> Any:
    """The tables and lists of JSON, so that they can be changed."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node
