"""The kinds of potentials that files hold and the names that `load` knows: ours, and those of other packages.

A package adds its own by `register_potential` and `register_names`, and is imported when needed if it declares an entry
point of the group `jaxmlip.potentials` with the name of the kind or prefix, in its `pyproject.toml`:

    [project.entry-points."jaxmlip.potentials"]
    springs = "my_package.springs"
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxmlip.potentials.potential import Potential, TrainingRecord
from jaxmlip.registry import Registry

ENTRY_POINTS = "jaxmlip.potentials"
"""Group of the entry points by which installed packages announce kinds of potentials and prefixes of names."""

Encode = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
Decode = Callable[[Any, dict[str, Any], dict[str, Any], np.ndarray], Potential]
Load = Callable[[str], Potential]
Class = TypeVar("Class", bound=type[Potential])


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one class of potentials is written and read.

    Attributes:
        path: `module:Class`, imported only when a file of this kind is read.
        encode: gives the static configuration, as JSON can hold it, and the leaves (other than the references): arrays
            or nested dictionaries of arrays by name.
        decode: the class, static configuration, leaves and references back to a potential, equal in every bit.
        made: the class, where it is imported already.
    """

    path: str
    encode: Encode
    decode: Decode
    made: type[Potential] | None = None

    def potential_class(self) -> type[Potential]:
        """The class of the potentials."""
        module, _, name = self.path.partition(":")
        return self.made or getattr(importlib.import_module(module), name)


@dataclasses.dataclass(frozen=True)
class Names:
    """Potentials that are loaded by a name with a prefix, `prefix:rest`.

    Attributes:
        load: gives the potential for what follows the colon.
        known: what may follow, or what it looks like, as messages show it.
    """

    load: Load
    known: tuple[str, ...]


KINDS: Registry[Kind] = Registry("kind of potentials", ENTRY_POINTS)
"""Kinds of potentials by their name in the file; a `Sum` is written as its terms."""

NAMES: Registry[Names] = Registry("prefix", ENTRY_POINTS)
"""Named potentials by their prefix."""


def register_potential(
    name: str, *, encode: Encode | None = None, decode: Decode | None = None
) -> Callable[[Class], Class]:
    """Decorator of a class of potentials that `save` shall write, and `load` and the command line shall read.

        @jm.register_potential("springs")
        @flax.struct.dataclass
        class Springs(jm.Potential):
            ...

    Nothing in a file is executed: a process that reads one must have imported the module that registers its kind, or
    find it by an entry point of the group `jaxmlip.potentials` whose name is that of the kind.

    Args:
        name: of the kind, in the file.
        encode: gives the static configuration, as JSON can hold it, and the leaves other than the references: arrays,
            or nested dictionaries of arrays, by name. By default the fields of the dataclass.
        decode: called with the class and what `encode` gave, and with the references [119] in eV, gives the potential
            back, equal in every bit. By default it calls the class with the fields; lists become tuples.

    Raises:
        ValueError: if the name is taken by another class, or only one of the functions is given.
    """
    if (encode is None) != (decode is None):
        raise ValueError(f"The kind {name!r} needs both encode and decode, or neither.")

    def registered(cls: Class) -> Class:
        path = f"{cls.__module__}:{cls.__qualname__}"
        _add_kind(name, Kind(path, encode or _encode_fields, decode or _decode_fields, cls))
        return cls

    return registered


def register_names(prefix: str, *, known: Sequence[str] = ("…",)) -> Callable[[Load], Load]:
    """Decorator of a function that loads potentials by names `prefix:rest`, given what follows the colon.

    Args:
        prefix: before the colon.
        known: what may follow, for messages.

    Raises:
        ValueError: if another function has the prefix.
    """

    def registered(load: Load) -> Load:
        NAMES.register(prefix, Names(load, tuple(known)), load)
        return load

    return registered


def kind_of(potential: Potential) -> str | None:
    """Name of the kind of a potential; None if its class is of none."""
    path = f"{type(potential).__module__}:{type(potential).__qualname__}"
    return next((name for name, kind in KINDS.items() if kind.path == path), None)


def find_kind(name: str) -> Kind | None:
    """The kind of that name, of an installed package if need be; None if there is none.

    Raises:
        ImportError: if the package that announces it cannot be imported.
    """
    return KINDS.find(name)


def find_names(prefix: str) -> Names | None:
    """The potentials whose names have that prefix, as `find_kind` does."""
    return NAMES.find(prefix)


def names_known() -> str:
    """All names that can be loaded, in words."""
    return ", ".join(f"{prefix}:{rest}" for prefix, names in NAMES.items() for rest in names.known)


def _add_kind(name: str, kind: Kind) -> None:
    """Add a kind; a class may come again, as where its module is reloaded."""
    if name == "sum":
        raise ValueError(f"The kind 'sum' is that of sums of potentials; choose another name for {kind.path}.")
    KINDS.register(name, kind, kind.path)


def _encode_fields(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a dataclass, static ones and leaves."""
    of_here = ("references", "node_class", "form")
    fields = [field for field in dataclasses.fields(potential) if field.name not in of_here]
    static = {f.name: getattr(potential, f.name) for f in fields if not f.metadata.get("pytree_node", True)}
    leaves = {f.name: getattr(potential, f.name) for f in fields if f.metadata.get("pytree_node", True)}
    return static, leaves


def _decode_fields(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    return cls(**{name: _tuples(value) for name, value in static.items()}, **leaves, references=references)


def _tuples(value: Any) -> Any:
    """Static fields are hashed, so their lists were tuples."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


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
        "tabulated": static["tabulated"],
        "record": TrainingRecord(static["trained_on"]),
    }
    return cls(**leaves, references=references, specification=specification, known=known, **rest)


def _encode_chgnet(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    static = {
        "known": None if potential.known is None else [int(z) for z in potential.known],
        "heads": int(potential.heads),
        "trained_on": None if potential.trained_on is None else list(potential.trained_on),
    }
    return static, {"params": potential.params}


def _decode_chgnet(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    known, record = _tuples(static["known"]), TrainingRecord(static["trained_on"])
    return cls(params=leaves["params"], references=references, known=known, heads=static["heads"], record=record)


def _encode_linearized(potential: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    base = kind_of(potential.base)
    if base is None:
        raise ValueError(
            f"A {type(potential.base).__name__} is of no kind that a file can hold, and neither is its tangent; "
            "see jaxmlip.register_potential."
        )
    static, leaves = KINDS[base].encode(potential.base)
    return {"base": base} | static, leaves | {"change": potential.change}


def _decode_linearized(cls: Any, static: dict, leaves: dict, references: np.ndarray) -> Potential:
    static, leaves = dict(static), dict(leaves)
    change, name = leaves.pop("change"), static.pop("base")
    kind = find_kind(name)
    if kind is None:
        raise ValueError(f"its base is of the kind {name!r}, which is not known here")
    base = kind.decode(kind.potential_class(), static, leaves, references)
    return cls(base=base, change=change, references=references)


_HERE = "jaxmlip.potentials"
_add_kind("equivariant", Kind(f"{_HERE}.equivariant:EquivariantPotential", _encode_equivariant, _decode_equivariant))
_add_kind("linearized", Kind(f"{_HERE}.linearized:LinearizedPotential", _encode_linearized, _decode_linearized))
_add_kind("pairs", Kind(f"{_HERE}.pairs:PairPotential", _encode_fields, _decode_fields))
_add_kind("pair_forces", Kind(f"{_HERE}.pairs:PairForces", _encode_fields, _decode_fields))
_add_kind("chgnet", Kind(f"{_HERE}.chgnet:CHGNet", _encode_chgnet, _decode_chgnet))


@register_names("chgnet", known=("gga", "r2scan"))
def _load_chgnet(which: str) -> Potential:
    from jaxmlip.potentials.chgnet_checkpoint import load_chgnet

    if which not in ("gga", "r2scan"):
        raise ValueError(f"There is no potential 'chgnet:{which}'; the names are {names_known()}.")
    return load_chgnet(which)


@register_names("ase", known=("package.module:factory",))
def _load_ase(path: str) -> Potential:
    from jaxmlip.potentials.ase_potential import named

    return named(f"ase:{path}")
