"""Potentials by name, and potentials in one file.

A `.jaxmlip` file is an uncompressed zip archive of `potential.json` (format, kind, static configuration, elemental
references, provenance, and the shape and type of every array) and `arrays.npz` (the arrays). Nothing in it is
executed: there is no pickle. The checksums of the archive guard every byte of content.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import io
import json
import os
import platform
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmlip.potentials.ase import AseTeacher
from jaxmlip.potentials.potential import N_SPECIES, Potential, Sum, TrainingRecord
from jaxmlip.systems.graph import GHOST, Graph

FORMAT = "jaxmlip potential"
VERSION = 1
HEADER, ARRAYS = "potential.json", "arrays.npz"
CHGNETS = ("chgnet:gga", "chgnet:r2scan")

UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, TypeError, AttributeError, IndexError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, OverflowError, MemoryError, FlaxError),
)
"""What the readers of zip, npz and JSON raise on damaged input, and flax on parameters that do not fit."""


class PotentialFileError(ValueError):
    """A potential cannot be written to, or read from, a file; the message names the file and says why."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one class of potentials is written and read; a new class gets an entry in `KINDS`.

    Attributes:
        path: import path `module:Class`, imported only when a file of this kind is read.
        encode: gives the static configuration, as JSON can hold it, and the leaves (other than the references): arrays
            or nested dictionaries of arrays by name.
        decode: the class, static configuration, leaves and references back to a potential, equal in every bit.
    """

    path: str
    encode: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    decode: Callable[[Any, dict[str, Any], dict[str, Any], np.ndarray], Potential]


def _encode_equivariant(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    static = {
        "specification": potential.specification.model_dump(mode="json"),
        "known": [int(z) for z in potential.known],
        "average_neighbors": float(potential.average_neighbors),
        "heads": int(potential.heads),
        "tabulated": bool(potential.tabulated),
        "trained_on": None if potential.trained_on is None else list(potential.trained_on),
    }
    return static, {name: getattr(potential, name) for name in ("params", "scale", "shift", "repulsion")}


def _decode_equivariant(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    from jaxmlip.potentials.equivariant import Equivariant

    heads = static["heads"]
    for name in ("scale", "shift", "repulsion"):
        if leaves[name].shape != (heads,):
            raise ValueError(f"{name} has shape {leaves[name].shape} instead of ({heads},)")
    specification = Equivariant.model_validate(static["specification"])
    known = tuple(static["known"])
    rest = {
        "average_neighbors": static["average_neighbors"],
        "heads": heads,
        "tabulated": static.get("tabulated", False),
        "record": TrainingRecord(static.get("trained_on")),  # files did not always say
    }
    return cls(**leaves, references=references, specification=specification, known=known, **rest)


def _encode_linearized(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    static, leaves = _encode_equivariant(potential.base)
    return static, leaves | {"change": potential.change}


def _decode_linearized(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    from jaxmlip.potentials.equivariant import EquivariantPotential

    change = leaves.pop("change")
    base = _decode_equivariant(EquivariantPotential, static, leaves, references)
    return cls(base=base, change=change, references=references)


def _encode_chgnet(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"params": potential.params}


def _decode_chgnet(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    return cls(**leaves, references=references)


def _encode_pairs(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    static = {"known": list(potential.known), "reach": potential.reach, "shortest": potential.shortest}
    return static, {"params": potential.params}


def _decode_pairs(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    return cls(**leaves, references=references, **(static | {"known": tuple(static["known"])}))


KINDS: dict[str, Kind] = {
    "equivariant": Kind(
        "jaxmlip.potentials.equivariant:EquivariantPotential", _encode_equivariant, _decode_equivariant
    ),
    "linearized": Kind("jaxmlip.potentials.linearized:LinearizedPotential", _encode_linearized, _decode_linearized),
    "pairs": Kind("jaxmlip.potentials.pairs:PairPotential", _encode_pairs, _decode_pairs),
    "chgnet": Kind("jaxmlip.potentials.chgnet:CHGNet", _encode_chgnet, _decode_chgnet),
}
"""Kinds of potentials by their name in the file; a `Sum` is written as its terms."""


def load(name: str | Path) -> Potential | AseTeacher:
    """A potential by name, or from a file.

    Args:
        name: `chgnet:gga`, `chgnet:r2scan`, `ase:package.module:factory` with optional arguments (see
            `AseTeacher.parse`), or the path of a file that `save` has written.

    Returns:
        A Potential with numpy leaves, bit-identical to the one saved; for `ase:…` a teacher that labels structures.

    Raises:
        FileNotFoundError: if a path leads to no file.
        PotentialFileError: if the file is truncated, foreign, of another version, or does not fit together.
        ValueError: if there is no potential of that name.
        ImportError: if the calculator of `ase:…`, or the package a name needs, cannot be imported.
    """
    text = str(name)
    if text.startswith("ase:"):
        teacher = AseTeacher.parse(text)
        teacher.import_factory()
        return teacher
    if text in CHGNETS:
        from jaxmlip.potentials.chgnet import load_chgnet

        return load_chgnet("r2scan" if text == "chgnet:r2scan" else "gga")
    path = Path(name)
    if not path.is_file():
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the path of a .jaxmlip file in it.")
        if path.suffix == ".jaxmlip" or path.name != text:
            raise FileNotFoundError(f"There is no potential file {path}.")
        raise ValueError(
            f"There is no potential {text!r}; the names are {', '.join(CHGNETS)}, ase:package.module:factory, and "
            "paths of .jaxmlip files."
        )
    archive = _read(path)
    header = _header(path, archive)
    with _refusing(path):
        with np.load(io.BytesIO(archive[ARRAYS]), allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        potential = _decode(header["potential"], arrays)
        _check_network(potential)
    return potential


def load_potential(name: str | Path) -> Potential:
    """`load` for whoever needs more than labels: simulations, training, derivatives.

    Raises:
        ValueError: if the name stands for a teacher that only labels; otherwise as `load`.
    """
    potential = load(name)
    if not isinstance(potential, Potential):
        raise ValueError(f"{name} gives labels only; this needs a potential in JAX, such as a student of it.")
    return potential


def save(potential: Potential, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a potential to one file, at once or not at all.

    Args:
        potential: of a kind in `KINDS`, or a sum of such.
        path: of the file, by custom `.jaxmlip`; an existing file is replaced.
        provenance: what made it (configuration, seed, …), as JSON can hold it; versions of the packages are added.
            Read it with `read_header(path)["provenance"]`.

    Raises:
        PotentialFileError: if there is no kind for the potential, a parameter is not finite, the parameters do not
            fit the network (as those of a stack of potentials), or the provenance is not JSON.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: there is no folder {path.parent}.")
    arrays: dict[str, np.ndarray] = {}
    with _refusing(path, "cannot be written"):
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
    _write_at_once(path, content.getvalue())


def read_header(path: str | Path) -> dict[str, Any]:
    """What a potential file says of itself: format, version, kind and configuration, references, provenance.

    Raises:
        FileNotFoundError: if there is no such file.
        PotentialFileError: if it is truncated, foreign, or of another version.
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
    path = f"{type(potential).__module__}:{type(potential).__qualname__}"
    name = next((name for name, kind in KINDS.items() if kind.path == path), None)
    if name is None:
        raise ValueError(f"there is no file format for {path}; the kinds are sum, {', '.join(KINDS)}")
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
    return {"kind": name, "static": static, "references": by_symbol, "arrays": manifest}


def _decode(node: dict[str, Any], arrays: Mapping[str, np.ndarray], prefix: str = "") -> Potential:
    """The inverse of `_encode`."""
    if node["kind"] == "sum":
        return Sum(tuple(_decode(term, arrays, f"{prefix}{place}/") for place, term in enumerate(node["terms"])))
    kind = KINDS.get(node["kind"])
    if kind is None:
        raise ValueError(f"it is of the kind {node['kind']!r}, but this version knows sum, {', '.join(KINDS)}")
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
    module, _, name = kind.path.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return kind.decode(cls, node["static"], unflatten_dict(flat, sep="/"), references)


def _check_finite(name: str, array: np.ndarray) -> None:
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{bad} of {array.size} values of {name} are NaN or infinite; the training has diverged")


def _check_network(potential: Potential) -> None:
    """Trace, without computing, the energy of two atoms: fails if the parameters do not fit the network."""
    pair = Graph(
        positions=np.zeros((2, 3), np.float32),
        species=np.full(2, potential.species[0], np.int32),
        cell=np.zeros((1, 3, 3), np.float32),
        neighbors=np.full((2, 2), GHOST, np.int32),
        shifts=np.zeros((2, 2, 3), np.int8),
        owner=np.zeros(2, np.int32),
        inner=1,
    )
    readouts = jax.eval_shape(_readouts, potential, pair)
    if len(readouts.shape) != 2 or readouts.shape[0] != 2:
        raise ValueError(f"the energies of two atoms have shape {readouts.shape}: save members of a stack one by one")


def _readouts(potential: Potential, graph: Graph) -> Any:
    """A function of the module, so that JAX keeps its trace: potentials of equal structure are traced once."""
    return potential.readouts(graph)


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
        if header["version"] != VERSION:
            raise ValueError(
                f"it has version {header['version']} of the format, and this jaxmlip reads version {VERSION}; read it "
                "with the jaxmlip that wrote it, or update"
            )
        return header


def _write_at_once(path: Path, content: bytes) -> None:
    """Write to a temporary file beside the target and rename, so that no reader sees half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
