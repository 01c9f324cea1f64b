"""The works that a potential, a trajectory or a run rests on, as BibTeX: what `jaxmlip cite` prints."""

import json
import re
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxmlip.potentials.files import read_header
from jaxmlip.simulation.frames import is_trajectory
from jaxmlip.simulation.h5md import opened, read_fixed

ALWAYS = ("jaxmlip", "jax", "ase")
"""Whatever was done."""

KINDS = {
    "equivariant": ("mace", "e3nn"),
    "linearized": ("neural_tangent_kernel", "mace", "e3nn"),
    "chgnet": ("chgnet",),
}
"""By the kind of a potential."""

ENSEMBLES = {
    "NVT": ("baoab",),
    "NVTNoseHoover": ("nose_hoover_chains",),
    "NVTVelocityRescaling": ("velocity_rescaling",),
    "NPT": ("cell_rescaling", "baoab"),
    "NPTNoseHoover": ("martyna_tobias_klein", "nose_hoover_chains"),
}
"""By the name of an ensemble."""

STRATEGIES = {"differential": ("delta_learning",), "tangent_kernel": ("neural_tangent_kernel",)}
"""By the name of a strategy."""

STUDIES = {"clusters_to_bulk": ("genice2", "baoab", "jax_md", "h5md", "mace", "e3nn")}
"""What a whole study uses besides what its configuration names."""

WORDS = {
    "name": STRATEGIES,
    "strategy": STRATEGIES,
    "strategies": STRATEGIES,
    "study": STUDIES,
    "moves": {"low_rank": ("lora",)},
    "method": {"bridge": ("mbar",)},
    "class": {"MACE": ("mace",), "ScaleShiftMACE": ("mace",)},
}
"""By key and value of configurations, provenance and verdicts."""

CALCULATORS = {"GFN1-xTB": ("gfn1_xtb",), "GFN2-xTB": ("gfn2_xtb",)}
"""By a word in the name of a calculator of ASE."""

FOLLOWED = ("potential", "against", "foundation", "teacher", "run", "teacher_run")
"""Keys whose values may be files of ours, which rest on works themselves."""

SIMULATED = ("jax_md", "h5md")
"""By every simulation that is kept in a file."""


def references(path: str | Path) -> list[str]:
    """Keys of the works that a file or a run uses, each once: this package's, then potentials', methods' and packages'.

    Foundations, teachers and runs that it names are followed where their files still are. A calculator of ASE whose
    works are not known is named by a warning.

    Args:
        path: a `.jaxmlip` file, a trajectory of `jaxmlip md`, or the folder of a run or a validation: its
            configuration, and the potentials and trajectories in it.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if it is neither of these, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    seen: set[Path] = set()
    return [*dict.fromkeys([*ALWAYS, *(_of_folder(path, seen) if path.is_dir() else _of_file(path, seen))])]


def bibtex(keys: list[str]) -> str:
    """Entries of these works, in this order.

    Raises:
        KeyError: if there is none of a key.
    """
    text = files("jaxmlip.study").joinpath("citations.bib").read_text(encoding="utf-8")
    each = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry]
    entries = {re.split(r"[{,]", entry, maxsplit=2)[1]: entry for entry in each}
    return "\n".join(entries[key] for key in keys)


def _of_folder(path: Path, seen: set[Path]) -> list[str]:
    """Of a run: what its configuration and settings say, and the files below it."""
    records = [each for name in ("config.json", "verdict.json") for each in sorted(path.rglob(name))]
    parts = [*sorted(path.rglob("*.jaxmlip")), *(each for each in sorted(path.rglob("*.h5")) if is_trajectory(each))]
    if not (records or parts):
        raise ValueError(f"{path} is no run: it has no config.json or verdict.json, potentials or trajectories.")
    found = []
    for record in records:
        try:
            said = json.loads(record.read_text())
        except ValueError as error:
            raise ValueError(f"{record} is no readable JSON ({error}).") from error
        found += _of_words(said, seen)
    return [*found, *(key for part in parts for key in _of_file(part, seen))]


def _of_file(path: Path, seen: set[Path]) -> list[str]:
    """Of a potential or a trajectory, unless it was seen: a training may have replaced its own foundation."""
    if path.resolve() in seen:
        return []
    seen.add(path.resolve())
    if is_trajectory(path):
        with opened(path) as file:
            run = read_fixed(file).identity.get("run", {})
        return [*_of_ensemble(str(run.get("ensemble", ""))), *SIMULATED]
    header = read_header(path)
    kinds = [key for kind in _kinds(header["potential"]) for key in KINDS.get(kind, ())]
    return [*kinds, *_of_words(header.get("provenance", {}), seen)]


def _kinds(node: dict[str, Any]) -> Iterator[str]:
    """Kinds of a potential, the terms of its sums and the bases of its tangents."""
    yield node["kind"]
    for term in node.get("terms", ()):
        yield from _kinds(term)
    if "base" in node.get("static", {}):
        yield str(node["static"]["base"])


def _of_words(said: Any, seen: set[Path], key: str = "") -> list[str]:
    """What the values of a configuration or provenance stand for: teachers, strategies, studies, adaptation."""
    if isinstance(said, dict):
        return [each for name, value in said.items() for each in _of_words(value, seen, str(name))]
    if isinstance(said, list):
        return [each for value in said for each in _of_words(value, seen, key)]
    if not isinstance(said, str):
        return []
    if said.startswith("chgnet:"):
        return ["chgnet"]
    if said.startswith("ase:"):
        return _of_calculator(said)
    if key in FOLLOWED and Path(said).is_file() and (said.endswith(".jaxmlip") or is_trajectory(Path(said))):
        return _of_file(Path(said), seen)
    if key == "ensemble":
        return _of_ensemble(said)
    return [*WORDS.get(key, {}).get(said, ())]


def _of_calculator(name: str) -> list[str]:
    """Of one of ASE's; what is not known is said."""
    found = [key for word, keys in CALCULATORS.items() if word in name for key in keys]
    if not found:
        warnings.warn(f"The works behind {name} are not known here; cite those that its authors ask for.", stacklevel=2)
    return found


def _of_ensemble(said: str) -> list[str]:
    """Of an ensemble as it is described, NVT(temperature_K=250, …)."""
    return [*ENSEMBLES.get(re.split(r"\W", said, maxsplit=1)[0], ())]
