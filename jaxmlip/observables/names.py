"""The observables by their names, as command lines and configurations spell them: `rdf:O-O`, `potential_energy`.

A package adds its own by `register_observable`, and is imported when needed if it declares an entry point of the group
`jaxmlip.observables` with that name, in its `pyproject.toml`:

    [project.entry-points."jaxmlip.observables"]
    ring_number = "my_package.rings"
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from jaxmlip.observables.observable import Observable
from jaxmlip.registry import Registry

Class = TypeVar("Class", bound=type[Observable])


@dataclasses.dataclass(frozen=True)
class NamedObservable:
    """An observable as text asks for it.

    Attributes:
        make: the frozen dataclass.
        elements: how many of its fields, the first, are symbols of elements.
    """

    make: type[Observable]
    elements: int

    @property
    def fields(self) -> dict[str, dataclasses.Field]:
        """What may be set, by name: the fields of the dataclass, but those whose metadata say {"text": False}."""
        every = dataclasses.fields(self.make)  # type: ignore[arg-type]
        return {field.name: field for field in every if field.init and field.metadata.get("text", True)}

    def spelling(self, name: str) -> str:
        """How it is asked for: "rdf:A-B"."""
        return f"{name}:{'-'.join('ABCDEF'[: self.elements])}" if self.elements else name


_HERE = "jaxmlip.observables"
OBSERVABLES: Registry[NamedObservable] = Registry(
    "observable",
    "jaxmlip.observables",
    {
        "potential_energy": f"{_HERE}.thermodynamics",
        "temperature": f"{_HERE}.thermodynamics",
        "density": f"{_HERE}.thermodynamics",
        "pressure": f"{_HERE}.thermodynamics",
        "pressure_tensor": f"{_HERE}.thermodynamics",
        "squared_force_error": f"{_HERE}.thermodynamics",
        "energy_difference": f"{_HERE}.thermodynamics",
        "volume": f"{_HERE}.cells",
        "cell_lengths": f"{_HERE}.cells",
        "cell_angles": f"{_HERE}.cells",
        "enthalpy": f"{_HERE}.cells",
        "heat_capacity": f"{_HERE}.fluctuations",
        "compressibility": f"{_HERE}.fluctuations",
        "thermal_expansion": f"{_HERE}.fluctuations",
        "energy_spread": f"{_HERE}.fluctuations",
        "force_error": f"{_HERE}.force_errors",
        "force_error_by_motion": f"{_HERE}.force_errors",
        "stress_error": f"{_HERE}.force_errors",
        "rdf": f"{_HERE}.structure",
        "adf": f"{_HERE}.angular",
        "tetrahedral": f"{_HERE}.angular",
        "tetrahedral_distribution": f"{_HERE}.angular",
        "coordination": f"{_HERE}.coordination",
        "bond": f"{_HERE}.molecular",
        "angle": f"{_HERE}.molecular",
    },
)
"""Observables by name. Those of this package are imported when the first is asked for, others by an entry point of the
group `jaxmlip.observables`."""


def register_observable(name: str, *, elements: int = 0) -> Callable[[Class], Class]:
    """Decorator of a class of observables, a frozen dataclass, that text then asks for by this name.

        @jm.register_observable("ring_number", elements=1)
        @dataclasses.dataclass(frozen=True)
        class RingNumber(jm.Observable):
            element: str
            largest: int = 8

    is what `ring_number:O:largest=6` asks for.

    Args:
        name: in lower case, without a colon.
        elements: how many of the fields, the first, are symbols of elements.

    Raises:
        ValueError: if the class is no dataclass, or the name is another's.
    """

    def registered(cls: Class) -> Class:
        if not dataclasses.is_dataclass(cls):
            raise ValueError(f"{cls.__name__} is no dataclass: put @dataclasses.dataclass(frozen=True) below the name.")
        OBSERVABLES.register(name, NamedObservable(cls, elements), cls)
        return cls

    return registered


def observable_from_text(
    text: str, *, temperature_K: float | int | None = None, pressure_GPa: float | int | None = None
) -> Observable:
    """The observable that a text asks for: its name, elements, and what differs from the defaults.

    `rdf:O-H`, `potential_energy`, `rdf:O-O:r_max=5:smearing=0.05`, `heat_capacity:temperature_K=250`.

    Args:
        text: name, elements and options, separated by colons.
        temperature_K: of the ensemble, for observables that depend on it, where the text says nothing of it.
        pressure_GPa: likewise.

    Raises:
        ValueError: for a name, an option or a number of elements that does not exist, saying which do, and for values
            that the observable refuses.
        ImportError: if an installed package announces the observable and cannot be imported.
    """
    name, *parts = (part.strip() for part in text.split(":"))
    named = OBSERVABLES.find(name)
    if named is None:
        known = ", ".join(
            member.spelling(each) if (member := OBSERVABLES.find(each)) else each for each in OBSERVABLES.names()
        )
        raise ValueError(f"There is no observable {name!r} (in {text!r}); there are {known}.")
    symbols = parts.pop(0).split("-") if parts and "=" not in parts[0] else []
    if len(symbols) != named.elements:
        wanted = f"{name} needs {named.elements}" if named.elements else f"{name} takes none"
        raise ValueError(
            f"The observable {text!r} names {len(symbols) or 'no'} elements, and {wanted}: "
            f"write {named.spelling(name)}."
        )
    options = _options(text, name, parts, named)
    for field, value in (("temperature_K", temperature_K), ("pressure_GPa", pressure_GPa)):
        if field in named.fields and value is not None:
            options.setdefault(field, value)
    missing = [
        field.name
        for field in list(named.fields.values())[named.elements :]
        if field.name not in options
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"The observable {text!r} needs {', '.join(missing)}: write {text}:{missing[0]}=VALUE.")
    try:
        return named.make(*symbols, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The observable {text!r} cannot be made: {error}") from None


def _options(text: str, name: str, parts: list[str], named: NamedObservable) -> dict[str, Any]:
    """Options by name, `parts` being "name=value" each."""
    free = list(named.fields)[named.elements :]
    options: dict[str, Any] = {}
    for part in parts:
        key, sign, value = (each.strip() for each in part.partition("="))
        if key not in free or not sign or key in options:
            known = f"its options are {', '.join(free)}" if free else "it has none"
            raise ValueError(f"{part!r} in {text!r} is no option of the observable {name}, given once; {known}.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"The value of {key} in {text!r} cannot be read; write {key}=NUMBER.") from None
    return options
