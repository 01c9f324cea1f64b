"""A potential as a serialised program that runs without this package: any number of atoms, on CPUs and GPUs."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.files import write_bytes, write_json
from jaxmlip.potentials import exported_loader
from jaxmlip.potentials.blocks import Form
from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.evaluation import potential_dtype
from jaxmlip.potentials.potential import Potential, evaluate
from jaxmlip.systems.graph import Graph
from jaxmlip.versions import versions

MOST_ATOMS, MOST_SLOTS = 1_000_000, 10_000
"""The program is made for any numbers up to these."""


def export_potential(potential: Potential, folder: str | Path, *, platforms: Sequence[str] = ("cpu", "cuda")) -> None:
    """Write a potential as a program of `jax.export`, with a loader that needs jax and numpy alone.

    The folder gets `program.jax`, `potential.json` (cutoffs, elements, references, versions) and `load.py`:

        from load import load
        energy, forces, stress = load("folder")(numbers, positions, cell, pbc)

    The numbers of atoms and of neighbours are symbols of the program, which is compiled for each that occurs. Programs
    may be read for as long as jax promises: see its documentation on the compatibility of exported programs.

    Args:
        potential: any Potential of jax, in single precision.
        folder: to write, which must not be there.
        platforms: of jax, for which it is lowered; none of them need be there.

    Raises:
        FileExistsError: if the folder is there.
        ValueError: for a stack of potentials, an ASE calculator, or one in double precision.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; give another name, or delete it.")
    check_one(potential, "export", "export each")
    if potential.opaque:
        raise ValueError("An ASE calculator is no program of jax, and cannot be exported; distil it into a student.")
    if potential_dtype(potential) != np.float32:
        raise ValueError("The potential is in double precision; load it in single precision to export it.")
    program = jax.export.export(jax.jit(_program(with_form(potential, "whole"))), platforms=tuple(platforms))
    serialised = bytes(program(*_arguments()).serialize())
    folder.mkdir(parents=True)
    write_bytes(folder / "program.jax", serialised)
    write_json(
        folder / "potential.json",
        {
            "cutoff": potential.cutoff,
            "inner_cutoff": potential.inner_cutoff,
            "species": [int(number) for number in potential.species],
            "references": np.asarray(potential.references_for(np.array(potential.species)), np.float64).tolist(),
            "platforms": [*platforms],
            "versions": versions(),
        },
    )
    shutil.copy(str(exported_loader.__file__), folder / "load.py")


def with_form(potential: Potential, form: Form) -> Potential:
    """The potential with this form in all of its terms."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(potential):  # pyright: ignore[reportArgumentType]
        value = getattr(potential, field.name)
        if field.name == "form":
            changes["form"] = form
        elif isinstance(value, Potential):
            changes[field.name] = with_form(value, form)
        elif isinstance(value, tuple) and any(isinstance(each, Potential) for each in value):
            changes[field.name] = tuple(with_form(each, form) for each in value)
    return potential.replace(**changes)


def _program(potential: Potential) -> Any:
    """Energy less the references, forces and stress as a function of arrays."""

    def program(positions: Any, species: Any, cell: Any, neighbors: Any, shifts: Any, near: Any) -> Any:
        owner = jnp.zeros(positions.shape[0], jnp.int32)
        graph = Graph(positions, species, cell[None], neighbors, shifts, owner, inner=near.shape[0])
        found = evaluate(potential, graph, stress=True)
        return found.energy[0], found.forces, found.stress[0]

    return program


def _arguments() -> tuple[jax.ShapeDtypeStruct, ...]:
    """Their shapes, in symbols."""
    limits = ["a >= 1", "s >= 1", "b >= 1", "b <= s", f"a <= {MOST_ATOMS}", f"s <= {MOST_SLOTS}"]
    a, s, b = jax.export.symbolic_shape("a, s, b", constraints=limits)
    real, whole = jnp.float32, jnp.int32
    shapes = [((a, 3), real), ((a,), whole), ((3, 3), real), ((a, s), whole), ((a, s, 3), real), ((b,), real)]
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
