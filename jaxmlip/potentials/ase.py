"""The bridge to ASE, both ways: a Potential as a calculator, and any calculator as a teacher."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote

import jax
import numpy as np
from ase import Atoms
from ase.calculators import calculator as ase_calculator
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress

from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.evaluation import bare_copy, compiled_evaluate, potential_dtype
from jaxmlip.potentials.graph_sizes import GraphSize, GraphSizes, graph_sizes
from jaxmlip.potentials.potential import Potential, check_species, reference_energy
from jaxmlip.potentials.present_elements import elements_of
from jaxmlip.progress import progress_bar
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import Graph, batch_graphs, check_structure, graph_from_atoms, periodic_cell
from jaxmlip.systems.origin import Offset, offset_from_origin


class Calculator(ase_calculator.Calculator):
    """A Potential as an ASE calculator, for ASE's optimisers, filters and dynamics.

    The neighbour list reaches `skin` further than the potential and is kept until atoms (or the cell) have moved far
    enough that it could miss a pair. Atoms and slots are padded so that structures of any sizes, one after the other,
    need a handful of compilations, which all calculators of potentials of one structure share; a structure that stays,
    as in an optimisation, loses no time by it. See `graph_sizes`.

    Energies include the elemental references (eV), forces are eV/Å, stress is eV/Å³ in Voigt order xx yy zz yz xz xy,
    positive under tension, and only for structures periodic in all three directions.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (as ASE declares it)

    def __init__(self, potential: Potential, *, skin: float = 0.5) -> None:
        """Wrap a potential.

        Args:
            potential: any Potential; calculates in the precision of its parameters.
            skin: extra reach of the neighbour list in Å; 0 makes a new list at every step.

        Raises:
            ValueError: for a negative skin, a stack of potentials, or inside of `jax.grad`, `jax.jit` and the like.
        """
        check_one(potential, "Calculator", "make a calculator of each")
        if skin < 0:
            raise ValueError(f"The skin of the neighbour list must not be negative, but is {skin} Å.")
        super().__init__()
        self.potential = potential
        self.skin = skin
        self._on_device = jax.device_put(potential)
        self._list_made_for: Atoms | None = None
        self._graph: Graph | None = None
        self._offset: Offset | None = None
        self._needed = GraphSize(0, 0, 0)
        self._elements = (0, 0)
        self._compiled: dict[tuple, GraphSizes] = {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = ase_calculator.all_changes,
    ) -> None:
        """Fill `self.results`; called by ASE.

        Raises:
            PropertyNotImplementedError: if stress is asked for a structure that has no volume.
            ValueError: for an unknown element or a structure that cannot be evaluated.
            CalculationFailed: if the energy, forces or stress come out as NaN or infinite.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        atoms = self.atoms
        if atoms is None:
            raise ValueError(
                "The calculator has no structure to work on; attach it to one: atoms.calc = Calculator(…)."
            )
        periodic = bool(atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"{atoms.symbols} is periodic along {atoms.pbc.tolist()}: stress needs a cell that is periodic in all "
                "three directions."
            )
        check_species(self.potential, atoms.numbers)
        check_structure(atoms)
        graph = self._current_graph(atoms)
        prediction = jax.device_get(compiled_evaluate(self._on_device, graph, periodic))
        if self._sizes(periodic).count(self._needed, GraphSize(graph.n_atoms, graph.n_slots, graph.inner)):
            self._graph = None
        energy = float(prediction.energy[0]) + reference_energy(self.potential, atoms.numbers)
        forces = np.asarray(prediction.forces[: len(atoms)], np.float64)
        results = {"energy": energy, "free_energy": energy, "forces": forces}
        if periodic:
            results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(prediction.stress[0], np.float64))
        for what, values in results.items():
            if not np.isfinite(values).all():
                said = self.potential.complaint() or (
                    "the structure is far from anything the potential was trained on (atoms too close), or its "
                    "parameters are damaged."
                )
                raise CalculationFailed(f"The {what} of {atoms.symbols} is not finite; {said}")
        self.results = results

    def _current_graph(self, atoms: Atoms) -> Graph:
        """The graph with the atoms where they are now, its neighbour list made anew only if it could miss a pair."""
        cell = periodic_cell(atoms)
        if self._graph is None or self._offset is None or not self._list_holds(atoms):
            self._graph = self._new_graph(atoms)
            self._list_made_for = bare_copy(atoms)
            self._offset = offset_from_origin(atoms.positions, cell)  # the list's shifts are for atoms without it
        dtype = potential_dtype(self.potential)
        positions = np.zeros((self._graph.n_atoms, 3), dtype)
        positions[: len(atoms)] = atoms.positions - self._offset.vectors(cell)
        return self._graph.replace(positions=positions, cell=np.asarray(cell[None], dtype))

    def _list_holds(self, atoms: Atoms) -> bool:
        """Whether every pair within the cutoff is still on the list.

        With R' = R F + u, F the change of the cell, a pair that was further apart than cutoff + skin is now further
        than (cutoff + skin) σ − 2 max|u|, σ the smallest singular value of F.
        """
        old = self._list_made_for
        if old is None or len(old) != len(atoms):
            return False
        if (old.numbers != atoms.numbers).any() or (old.pbc != atoms.pbc).any():
            return False
        change = np.eye(3)
        if (periodic_cell(old) != periodic_cell(atoms)).any():
            if not atoms.pbc.all():
                return False
            change = np.linalg.solve(old.cell.array, atoms.cell.array)
        smallest = np.linalg.svd(change, compute_uv=False)[-1]
        moved = np.linalg.norm(atoms.positions - old.positions @ change, axis=1).max()
        return bool((self.potential.cutoff + self.skin) * smallest - 2.0 * moved >= self.potential.cutoff)

    def _new_graph(self, atoms: Atoms) -> Graph:
        """A padded graph, of a size that is compiled if there is one that suits it."""
        potential = self.potential
        reach = potential.cutoff + self.skin
        inner_reach = potential.inner_cutoff + self.skin if potential.inner_cutoff > 0 else 0.0
        graph = graph_from_atoms(atoms, reach, inner_reach, dtype=potential_dtype(potential))
        varies = self._needed.atoms not in (0, graph.n_atoms)
        self._needed = GraphSize(graph.n_atoms, graph.n_slots, graph.inner)
        self._elements = elements_of(potential, [atoms.numbers], rounded=True)
        size = self._sizes(bool(atoms.pbc.all())).size_for(self._needed, varies=varies)
        batch = batch_graphs([graph], n_atoms=size.atoms, n_graphs=1, slots=size.slots)
        return batch.replace(inner=size.inner, elements=self._elements)

    def _sizes(self, stress: bool) -> GraphSizes:
        """The sizes of graphs that are compiled for so many elements, with stress or without."""
        which = stress, self._elements
        if which not in self._compiled:
            self._compiled[which] = graph_sizes(self.potential, potential_dtype(self.potential), stress, self._elements)
        return self._compiled[which]


@dataclasses.dataclass(frozen=True)
class AseTeacher:
    """Any ASE calculator by its name: it labels structures, and `ase_potential.named` makes a Potential of it.

    Attributes:
        factory: import path `package.module:factory` of a calculator class, or of a function that returns a
            calculator.
        kwargs: keyword arguments for the factory, JSON values.
    """

    factory: str
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, name: str) -> "AseTeacher":
        """The teacher that a name like `ase:ase.calculators.emt:EMT?asap_cutoff=true` stands for.

        Keyword arguments follow a question mark as `key=value`, separated by `&`; values are JSON (strings in double
        quotes), and %-escapes are read as in a URL.

        Raises:
            ValueError: if the name does not have this form.
        """
        path, _, query = name.removeprefix("ase:").partition("?")
        kwargs = {}
        for item in filter(None, query.split("&")):
            key, equals, value = item.partition("=")
            try:
                if not equals or not key:
                    raise ValueError("it has no '='")
                kwargs[unquote(key)] = json.loads(unquote(value))
            except ValueError as error:
                raise ValueError(
                    f"{name!r}: cannot read the keyword argument {item!r} ({error}); write key=value with a JSON "
                    'value, strings in double quotes: path="model.pt".'
                ) from None
        module, colon, attribute = path.partition(":")
        if not (module and colon and attribute):
            raise ValueError(
                f"{name!r} does not name an ASE calculator; write ase:package.module:factory, for example "
                "ase:ase.calculators.emt:EMT."
            )
        return cls(path, kwargs)

    def __str__(self) -> str:
        """The name that `parse` reads."""
        query = "&".join(
            f"{quote(key, safe='')}={quote(json.dumps(value, sort_keys=True), safe='')}"
            for key, value in sorted(self.kwargs.items())
        )
        return f"ase:{self.factory}" + (f"?{query}" if query else "")

    def import_factory(self) -> Callable[..., Any]:
        """The class or function that makes the calculator.

        Raises:
            ImportError: if module or factory cannot be imported.
            ValueError: if it is neither class nor function.
        """
        module_name, _, attribute = self.factory.partition(":")
        try:
            factory: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"The teacher {self} cannot be imported ({error}); is the package installed, and the path spelled "
                "package.module:factory?"
            ) from error
        if not callable(factory):
            raise ValueError(f"The teacher {self}: {attribute} is a {type(factory).__name__}, which cannot be called.")
        return factory

    def calculator(self) -> Any:
        """A new calculator.

        Raises:
            ImportError: if module or factory cannot be imported.
            ValueError: if the factory cannot be called with the keyword arguments, or does not give a calculator.
        """
        factory = self.import_factory()
        try:
            made = factory(**self.kwargs)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"The teacher {self}: the factory failed with these arguments ({reason}).") from error
        # Atoms have these two methods as well.
        if isinstance(made, type | Atoms) or not all(
            hasattr(made, name) for name in ("get_potential_energy", "get_forces")
        ):
            raise ValueError(
                f"The teacher {self}: the factory gives a {type(made).__name__}, not an ASE calculator; name a "
                "calculator class or a function that returns a calculator."
            )
        return made

    def label(self, structures: Sequence[Atoms], *, stress: bool = False, progress: bool = False) -> list[Frame]:
        """Label structures with the calculator, one after another; see `labels_of`.

        Raises:
            ImportError: see `calculator`.
            ValueError: see `calculator` and `labels_of`.
        """
        return labels_of(self.calculator(), str(self), structures, stress=stress, progress=progress)


def labels_of(
    calculator: Any, name: str, structures: Sequence[Atoms], *, stress: bool = False, progress: bool = False
) -> list[Frame]:
    """What an ASE calculator says of structures, one after another.

    Args:
        calculator: to ask.
        name: of the teacher, for messages.
        structures: constraints do not act on forces, and calculators they carry are ignored.
        stress: label stresses too, for structures periodic in all three directions (NaN for the others).
        progress: show a progress bar.

    Returns:
        Frames in the order of the structures: energy (ASE's `get_potential_energy`) in eV, forces in eV/Å, stress
        in eV/Å³; `Frame.info` is a copy of `Atoms.info`.

    Raises:
        ValueError: naming the frame, if the structure is damaged, the calculator does not implement a property
            or fails, or a label is not finite.
    """
    frames = []
    for index, structure in enumerate(progress_bar(structures, disable=not progress, desc="label", unit="frame")):
        atoms = bare_copy(structure)
        where = f"Frame {index} ({atoms.symbols}), teacher {name}"
        wanted = {"energy": atoms.get_potential_energy, "forces": atoms.get_forces}
        if stress and atoms.pbc.all():
            wanted["stress"] = lambda atoms=atoms: atoms.get_stress(voigt=False)
        labels = {"stress": np.full((3, 3), np.nan)}
        try:
            check_structure(atoms)
            atoms.calc = calculator
            for what, get in wanted.items():
                labels[what] = np.array(get(), np.float64)
                if not np.isfinite(labels[what]).all():
                    raise ValueError(f"the {what} is not finite")
        except NotImplementedError as error:
            raise ValueError(f"{where}: the calculator does not implement {what} ({error}).") from error
        except Exception as error:
            raise ValueError(f"{where}: {error or type(error).__name__}") from error
        kept, info = structure.copy(), dict(structure.info)
        frames.append(Frame(kept, float(labels["energy"]), labels["forces"], labels["stress"], info))
    return frames
