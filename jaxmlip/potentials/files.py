"""Potentials by name, and potentials in one file.

A `.jaxmlip` file is an uncompressed zip archive of `potential.json` (format, kind, static configuration, elemental
references, provenance, and the shape and type of every array) and `arrays.npz` (the arrays). Nothing in it is
executed: there is no pickle. The checksums of the archive guard every byte of content. Files of all versions of the
format can be read (see `upgrades`).
"""

import contextlib
import importlib.metadata
import io
import json
import platform
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmlip.files import write_bytes
from jaxmlip.potentials.ase_potential import AsePotential
from jaxmlip.potentials.checks import check_one, readouts_shape
from jaxmlip.potentials.kinds import KINDS, find_kind, find_names, kind_of, names_known
from jaxmlip.potentials.potential import N_SPECIES, Potential, Sum
from jaxmlip.potentials.upgrades import VERSION, upgraded, version_of

FORMAT = "jaxmlip potential"
HEADER, ARRAYS = "potential.json", "arrays.npz"

UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, TypeError, AttributeError, IndexError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, OverflowError, MemoryError, FlaxError),
)
"""What the readers of zip, npz and JSON raise on damaged input, and flax on parameters that do not fit."""


class PotentialFileError(ValueError):
    """A potential cannot be written to, or read from, a file; the message names the file and says why."""


def load(name: str | Path, *, dtype: Any = None) -> Potential:
    """A potential by name, or from a file.

    Args:
        name: `chgnet:gga`, `chgnet:r2scan`, `ase:package.module:factory` with optional arguments (see
            `AseTeacher.parse`), a name with the prefix of another package (see `register_names`), or the path of a file
            that `save` has written.
        dtype: precision to compute in, "float32" or "float64" (or numpy's); by default that of the file, float32 for
            CHGNet. Elemental references are in double precision always.

    Returns:
        A Potential with numpy leaves, bit-identical to the one saved unless a dtype is given.

    Raises:
        FileNotFoundError: if a path leads to no file.
        PotentialFileError: if the file is truncated, foreign, of a later version, or does not fit together.
        ValueError: if there is no potential of that name, the dtype is neither, or it is float64 and JAX is not allowed
            to use it.
        ImportError: if the calculator of `ase:…`, or the package a name needs, cannot be imported.
    """
    wanted = None if dtype is None else _checked_dtype(dtype)
    potential = _loaded(name)
    return potential if wanted is None else in_precision(potential, wanted)


def _loaded(name: str | Path) -> Potential:
    """The potential as it is."""
    text, path = str(name), Path(name)
    prefix, colon, rest = text.partition(":")
    if colon and not path.is_file():
        names = find_names(prefix)
        if names is not None:
            return names.load(rest)
    if not path.is_file():
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the path of a .jaxmlip file in it.")
        if path.suffix == ".jaxmlip" or path.name != text:
            raise FileNotFoundError(f"There is no potential file {path}.")
        raise ValueError(f"There is no potential {text!r}; the names are {names_known()}, and paths of .jaxmlip files.")
    archive = _read(path)
    header = _header(path, archive)
    with _refusing(path):
        with np.load(io.BytesIO(archive[ARRAYS]), allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        header, arrays = upgraded(header, arrays)
        potential = _decode(header["potential"], arrays)
        _check_network(potential)
    return potential


def _checked_dtype(dtype: Any) -> np.dtype:
    """float32, or float64 where JAX may use it."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f'The dtype of a potential is "float32" or "float64", not {dtype!r}.')
    if found == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "A potential in float64 needs JAX to allow it, or it would compute in float32: call "
            'jax.config.update("jax_enable_x64", True) at the start of the program.'
        )
    return found


def in_precision(potential: Potential, dtype: np.dtype) -> Potential:
    """The potential with its floating-point leaves in a precision; elemental references stay in double."""

    def cast(path: Any, leaf: Any) -> Any:
        field = getattr(path[-1], "name", None)
        if field == "references" or not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            return leaf
        return np.asarray(leaf, dtype)

    return jax.tree_util.tree_map_with_path(cast, potential)


load_potential = load
"""Another name of `load`."""


def save(potential: Potential, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a potential to one file, at once or not at all.

    Args:
        potential: of a registered kind (see `register_potential`), or a sum of such.
        path: of the file, by custom `.jaxmlip`; an existing file is replaced.
        provenance: what made it (configuration, seed, …), as JSON can hold it; versions of the packages are added.
            Read it with `read_header(path)["provenance"]`.

    Raises:
        PotentialFileError: if there is no kind for the potential, a parameter is not finite, the parameters do not
            fit the network, it is a stack of potentials or traced by jax, or the provenance is not JSON.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: there is no folder {path.parent}.")
    arrays: dict[str, np.ndarray] = {}
    with _refusing(path, "cannot be written"):
        check_one(potential, "save", "save its members one by one")
        node = _encode(potential, arrays)
        _check_network(potential)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": str(np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(potential.params)))),
            "potential": node,
            "provenance": {"versions": _versions()} | dict(provenance or {}),
        }
        text = json.dumps(header, indent=1, allow_nan=False, default=_as_json)
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # pyright: ignore[reportArgumentType]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {HEADER: text.encode(), ARRAYS: packed.getvalue()}.items():
            # The time of writing stays out, so that equal potentials make equal files.
            archive.writestr(zipfile.ZipInfo(name), data)
    write_bytes(path, content.getvalue())


def read_header(path: str | Path) -> dict[str, Any]:
    """What a potential file says of itself: format, version, kind and configuration, references, provenance.

    A file of an earlier version is described as it is. To write it anew, with the versions that made it kept:
    `save(load(path), path, provenance=read_header(path)["provenance"])`.

    Raises:
        FileNotFoundError: if there is no such file.
        PotentialFileError: if it is truncated, foreign, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no potential file {path}.")
    return _header(path, _read(path))


@contextlib.contextmanager
def _refusing(path: Path, what: str = "is not a usable potential file") -> Iterator[None]:
    """Turn whatever goes wrong into one sentence that names the file."""
    try:
        yield
    except PotentialFileError:
        raise
    except UNREADABLE as error:
        reason = f"{error.args[0]!r} is missing" if type(error) is KeyError and error.args else str(error)
        reason = " ".join(reason.split()).rstrip(".") or type(error).__name__
        raise PotentialFileError(f"{path} {what}: {reason}.") from error


def _encode(potential: Potential, arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """The JSON of a potential; its arrays are added to `arrays`, under names that begin with the prefix."""
    if isinstance(potential, Sum):
        terms = [_encode(term, arrays, f"{prefix}{place}/") for place, term in enumerate(potential.terms)]
        return {"kind": "sum", "terms": terms}
    name = kind_of(potential)
    if name is None:
        raise ValueError(_no_kind(potential))
    static, leaves = KINDS[name].encode(potential)
    manifest = {}
    for key, leaf in flatten_dict(leaves, sep="/").items():
        array = np.asarray(leaf)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"the parameter {key} is no array of plain numbers, but {array.dtype}")
        _check_finite(key, array)
        arrays[prefix + key] = array
        manifest[key] = {"shape": list(array.shape), "dtype": array.dtype.name}
    references = np.asarray(potential.references, np.float64)
    if references.shape != (N_SPECIES,):
        raise ValueError(f"references has shape {references.shape} instead of ({N_SPECIES},)")
    _check_finite("references", references)
    by_symbol = {chemical_symbols[z]: float(references[z]) for z in np.flatnonzero(references)}
    node = {"kind": name, "class": KINDS[name].path, "static": static}
    return node | {"references": by_symbol, "arrays": manifest}


def _no_kind(potential: Potential) -> str:
    """Why a potential cannot be written."""
    path = f"{type(potential).__module__}:{type(potential).__qualname__}"
    if isinstance(potential, AsePotential):
        return (
            f"{potential} runs a calculator of ASE, and a file holds numbers alone; give its name, ase:…, where a "
            "potential is asked for, or distil it"
        )
    return (
        f"there is no file format for {path}; the kinds are sum, {', '.join(KINDS)}, and register_potential adds others"
    )


def _decode(node: dict[str, Any], arrays: Mapping[str, np.ndarray], prefix: str = "") -> Potential:
    """The inverse of `_encode`."""
    if node["kind"] == "sum":
        return Sum(tuple(_decode(term, arrays, f"{prefix}{place}/") for place, term in enumerate(node["terms"])))
    kind = find_kind(node["kind"])
    if kind is None:
        module = str(node.get("class", "")).partition(":")[0]
        mend = f"; import {module}, which registers it (nothing that a file names is imported by itself)"
        raise ValueError(
            f"it is of the kind {node['kind']!r}, but what is registered is sum, {', '.join(KINDS)}"
            f"{mend if module else ''}"
        )
    flat = {}
    for key, promised in node["arrays"].items():
        if prefix + key not in arrays:
            raise ValueError(f"the array {prefix}{key} is missing")
        array = arrays[prefix + key]
        if list(array.shape) != promised["shape"] or array.dtype.name != promised["dtype"]:
            raise ValueError(
                f"the array {prefix}{key} is {array.dtype.name} of shape {list(array.shape)} instead of "
                f"{promised['dtype']} of shape {promised['shape']}"
            )
        _check_finite(prefix + key, array)
        flat[key] = array
    references = np.zeros(N_SPECIES)
    for symbol, energy in node["references"].items():
        references[atomic_numbers[symbol]] = energy
    _check_finite("references", references)
    return kind.decode(kind.potential_class(), node["static"], unflatten_dict(flat, sep="/"), references)


def _check_finite(name: str, array: np.ndarray) -> None:
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{bad} of {array.size} values of {name} are NaN or infinite; the training has diverged")


def _check_network(potential: Potential) -> None:
    """Trace, without computing, the energy of two atoms: fails if the parameters do not fit the network."""
    shape = readouts_shape(potential)
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"the energies of two atoms have shape {shape}: save members of a stack one by one")


def _read(path: Path) -> dict[str, bytes]:
    """The two members of the archive."""
    with _refusing(path):
        content = path.read_bytes()
        if not content.startswith(b"PK"):
            raise ValueError("it is no zip archive, so not written by jaxmlip")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                missing = {HEADER, ARRAYS} - set(archive.namelist())
                if missing:
                    raise ValueError(
                        f"the archive lacks {' and '.join(sorted(missing))}, so jaxmlip has not written it"
                    )
                return {name: archive.read(name) for name in (HEADER, ARRAYS)}
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"it is truncated or damaged ({error}); copy it again") from error


def _header(path: Path, archive: Mapping[str, bytes]) -> dict[str, Any]:
    """The checked header."""
    with _refusing(path):
        header = json.loads(archive[HEADER])
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{HEADER} is not that of a {FORMAT}")
        version_of(header)
        return header


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("jaxmlip", "jax", "flax", "numpy")}
    return {"python": platform.python_version()} | packages


def _as_json(value: Any) -> Any:
    """JSON for the types that configurations hold besides JSON's own."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"the provenance holds a {type(value).__name__}, which JSON has no form for")
