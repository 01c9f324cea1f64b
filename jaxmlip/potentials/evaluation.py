"""Many structures through a potential, on the host: predictions with total energies, and labels of a teacher."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from ase import Atoms

from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.potential import Potential, Prediction, evaluate, reference_energy
from jaxmlip.potentials.present_elements import elements_of
from jaxmlip.progress import progress_bar
from jaxmlip.systems.checks import ALLOW_CLOSE, check_input, close_contact
from jaxmlip.systems.dataset import MAGMOMS, Frame
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms

BATCH_ATOMS = 512
"""Small structures are evaluated together up to this many atoms."""

SLOTS_PER_COMPILATION = 1_000_000
"""Compiling takes about as long as evaluating this many neighbour slots; groups merge where padding is the cheaper."""

WINDOW_ATOMS = 200_000
"""Neighbour lists of at most about this many atoms are held at once (some 100 MB)."""


@runtime_checkable
class Teacher(Protocol):
    """Anything that labels structures by itself, such as `jaxmlip.potentials.ase_potential.AsePotential`."""

    def label(self, structures: Sequence[Atoms], *, stress: bool = False, progress: bool = False) -> list[Frame]:
        """Labelled frames, in the order of the structures; energies in eV, forces in eV/Å, stress in eV/Å³."""
        ...


@functools.partial(jax.jit, static_argnames="stress")
def compiled_evaluate(potential: Potential, graph: Graph, stress: bool) -> Prediction:
    """`potential.evaluate` compiled; potentials of equal structure and graphs of equal shape share a compilation.

    Magnetic moments come along where the potential has them: they cost next to nothing.
    """
    return evaluate(potential, graph, stress=stress, magmoms=potential.has_magnetic_moments)


def potential_dtype(potential: Potential) -> type:
    """The precision a potential computes in, float64 if any of its parameters is (and JAX allows it), else float32."""
    kinds = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(potential.params) if hasattr(leaf, "dtype")}
    return np.float64 if np.dtype(np.float64) in kinds and jax.config.jax_enable_x64 else np.float32  # pyright: ignore


def round_up(number: int) -> int:
    """The next of 1, 2, …, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, …: four sizes per octave, at most 25 % waste."""
    step = 1 << max(0, (number - 1).bit_length() - 3)
    return -(-number // step) * step


def predict(
    potential: Potential,
    structures: Sequence[Atoms],
    *,
    stress: bool = False,
    batch_atoms: int = BATCH_ATOMS,
    progress: bool = False,
) -> list[Frame]:
    """Total energies, forces, magnetic moments where the potential has them and, if asked for, stresses of structures.

    Structures are grouped by the rounded-up number of neighbour slots and batched, so that a set of any composition
    needs a handful of compilations. The precision is that of the potential's parameters; the elemental references are
    added in float64.

    Args:
        potential: any Potential.
        structures: periodic in any subset of directions, of any sizes; constraints do not act on forces. Atoms may be
            as close as a scan of a repulsive wall brings them, but must not coincide.
        stress: compute stresses, for structures periodic in all three directions (NaN for the others).
        batch_atoms: small structures are evaluated together up to this many atoms; a larger one goes alone.
        progress: show a progress bar.

    Returns:
        Frames in the order of the structures: energy in eV with references, forces [atoms, 3] in eV/Å, stress [3, 3]
        in eV/Å³. `Frame.info` is a copy of `Atoms.info`, and `Frame.atoms` of the structure with all it carries but a
        calculator. Magnetic moments are magnitudes in μB; of a potential that has none the structure keeps those that
        it came with, and `Frame.carried` says that they are not the potential's.

    Raises:
        ValueError: naming the index of the frame, for an element the potential does not know, a structure that cannot
            be evaluated (see `graph_from_atoms`), or an energy, force or stress that is not finite. Also for a stack
            of potentials, or inside of `jax.grad`, `jax.jit` and the like.
    """
    if batch_atoms < 1:
        raise ValueError(f"batch_atoms must be at least 1, not {batch_atoms}.")
    check_one(potential, "predict", "give them one by one")
    for index, atoms in enumerate(structures):
        try:
            potential.check(atoms, stress=stress and bool(atoms.pbc.all()))
        except ValueError as error:
            raise ValueError(f"{_name(index, atoms)}: {error}") from None

    on_device = jax.device_put(potential)
    elements = elements_of(potential, [atoms.numbers for atoms in structures], rounded=True)
    frames: dict[int, Frame] = {}
    with progress_bar(total=len(structures), disable=not progress, desc="evaluate", unit="frame", compiles=True) as bar:
        for window in _windows(structures):
            graphs = {index: _graph(potential, structures[index], index) for index in window}
            for members, batch in _batches(graphs, batch_atoms):
                batch = batch.replace(elements=elements)
                prediction = jax.device_get(compiled_evaluate(on_device, batch, stress))
                for index, frame in _frames(potential, structures, members, prediction, stress):
                    frames[index] = frame
                bar.update(len(members))
    return [frames[index] for index in range(len(structures))]


def label(
    structures: Sequence[Atoms],
    teacher: Potential | Teacher,
    *,
    stress: bool = False,
    progress: bool = False,
    allow_close: bool = False,
) -> list[Frame]:
    """Label structures by a teacher: a Potential, or anything with a `label` method (a calculator of ASE).

    Args:
        structures: of any sizes and periodicity.
        teacher: what to trust.
        stress: label stresses too, for structures periodic in all three directions (NaN for the others).
        progress: show a progress bar.
        allow_close: label structures with atoms closer than any bond as well, and note it in their `info`.

    Returns:
        Frames in the order of the structures, in the units of `Frame`; what the structures carry (`info`, masses,
        constraints, further arrays) is kept, and constraints do not act on forces.

    Raises:
        ValueError: for a structure that `check_input` refuses, as `predict` does, or as the teacher's own method.
        TypeError: if the teacher is neither.
    """
    if not isinstance(teacher, Potential | Teacher):
        raise TypeError(
            f"A teacher is a Potential or an AseTeacher, not {type(teacher).__name__}; load one by name with "
            "jaxmlip.load, or wrap a calculator by jaxmlip.from_ase."
        )
    for index, atoms in enumerate(structures):
        try:
            check_input(atoms, allow_close=allow_close)
        except ValueError as error:
            raise ValueError(f"{_name(index, atoms)}: {error}") from None
    if isinstance(teacher, Teacher):  # first, for a potential that labels by itself does so in double precision
        frames = teacher.label(structures, stress=stress, progress=progress)
    else:
        frames = predict(teacher, structures, stress=stress, progress=progress)
    for frame in frames if allow_close else ():
        if close_contact(frame.atoms):
            frame.atoms.info[ALLOW_CLOSE] = frame.info[ALLOW_CLOSE] = True
    return frames


def bare_copy(atoms: Atoms) -> Atoms:
    """The structure without calculator or constraints, which would act on its forces."""
    copy = atoms.copy()
    copy.set_constraint()
    return copy


def _name(index: int, atoms: Atoms) -> str:
    return f"Frame {index} ({atoms.symbols})"


def _frames(
    potential: Potential, structures: Sequence[Atoms], members: Sequence[int], prediction: Prediction, stress: bool
) -> Iterator[tuple[int, Frame]]:
    """What the prediction for a batch says of its members, with references."""
    complaint, first = potential.complaint(), 0
    for place, index in enumerate(members):
        atoms = structures[index]
        mine = np.s_[first : first + len(atoms)]
        first += len(atoms)
        yield (
            index,
            _frame(
                index,
                atoms,
                float(prediction.energy[place]) + reference_energy(potential, atoms.numbers),
                np.asarray(prediction.forces[mine], np.float64),
                np.asarray(prediction.stress[place], np.float64) if stress else None,
                None if prediction.magmoms is None else np.asarray(prediction.magmoms[mine], np.float64),
                complaint,
            ),
        )


def _frame(
    index: int,
    atoms: Atoms,
    energy: float,
    forces: np.ndarray,
    stress: np.ndarray | None,
    magmoms: np.ndarray | None,
    complaint: str,
) -> Frame:
    """The frame, or ValueError if the potential broke down on it."""
    if stress is not None and not atoms.pbc.all():
        stress = None
    computed = {"energy": energy, "forces": forces} | ({} if stress is None else {"stress": stress})
    for what, values in computed.items():
        if not np.isfinite(values).all():
            why = complaint or (
                "The structure is far from anything it was trained on (atoms too close), or its parameters are damaged."
            )
            raise ValueError(f"{_name(index, atoms)}: the {what} the potential gives is not finite. {why}")
    info, atoms = dict(atoms.info), atoms.copy()
    if magmoms is not None:
        atoms.arrays[MAGMOMS] = magmoms
    carried = (MAGMOMS,) if magmoms is None and MAGMOMS in atoms.arrays else ()
    return Frame(atoms, energy, forces, np.full((3, 3), np.nan) if stress is None else stress, info, carried)


def _windows(structures: Sequence[Atoms]) -> Iterator[list[int]]:
    """Consecutive indices, as many as `WINDOW_ATOMS` allows."""
    window, atoms = [], 0
    for index, structure in enumerate(structures):
        if window and atoms + len(structure) > WINDOW_ATOMS:
            yield window
            window, atoms = [], 0
        window.append(index)
        atoms += len(structure)
    if window:
        yield window


def _graph(potential: Potential, atoms: Atoms, index: int) -> Graph:
    try:
        return graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff, dtype=potential_dtype(potential))
    except ValueError as error:
        raise ValueError(f"{_name(index, atoms)}: {error}") from None


def _batches(graphs: dict[int, Graph], batch_atoms: int) -> Iterator[tuple[list[int], Graph]]:
    """Batches of few different shapes, each with the indices of its members in order."""
    for members in _alike(graphs):
        slots = round_up(max(graphs[index].n_slots for index in members))
        inner = min(slots, round_up(max(graphs[index].inner for index in members)))
        bins = _pack({index: graphs[index].n_atoms for index in members}, batch_atoms)
        filled = [sum(graphs[index].n_atoms for index in content) for content in bins]
        common = round_up(max((n for n in filled if n <= batch_atoms), default=1))
        places = round_up(max(len(content) for content in bins))
        for content, n in zip(bins, filled, strict=True):
            alone = n > batch_atoms
            batch = batch_graphs(
                [graphs[index] for index in content],
                n_atoms=round_up(n) if alone else common,
                n_graphs=1 if alone else places,
                slots=slots,
            )
            yield content, batch.replace(inner=inner)


def _alike(graphs: dict[int, Graph]) -> list[list[int]]:
    """Indices of graphs padded to the same numbers of slots: groups for which compiling and computing are least.

    Graphs are ordered by their work and cut where that pays: of all contiguous groups the cheapest, found one by one.
    """
    sized = defaultdict(list)
    for index, graph in graphs.items():
        sized[round_up(graph.n_slots), round_up(graph.inner)].append(index)
    sizes = sorted(sized, key=lambda size: (_work(*size), size))
    atoms = [sum(graphs[index].n_atoms for index in sized[size]) for size in sizes]
    cheapest, begins = [0], [0]
    for end in range(1, len(sizes) + 1):
        costs = []
        slots = inner = padded = 0
        for begin in reversed(range(end)):
            slots, inner = max(slots, sizes[begin][0]), max(inner, sizes[begin][1])
            padded += atoms[begin]
            costs.append((cheapest[begin] + SLOTS_PER_COMPILATION + padded * _work(slots, inner), begin))
        cost, begin = min(costs)
        cheapest.append(cost)
        begins.append(begin)
    groups, end = [], len(sizes)
    while end:
        groups.append([index for size in sizes[begins[end] : end] for index in sized[size]])
        end = begins[end]
    return groups


def _work(slots: int, inner: int) -> int:
    """What an atom costs, in neighbour slots: each pair of inner slots is an angle, which costs as much as a slot."""
    return slots + inner**2


def _pack(sizes: dict[int, int], capacity: int) -> list[list[int]]:
    """First-fit decreasing bin packing; what exceeds the capacity gets a bin of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(sizes, key=lambda index: (-sizes[index], index)):
        # The newest bins have room most often; looking at a few keeps the packing linear in the number of structures.
        for place in range(max(0, len(bins) - 16), len(bins)):
            if room[place] >= sizes[index]:
                bins[place].append(index)
                room[place] -= sizes[index]
                break
        else:
            bins.append([index])
            room.append(capacity - sizes[index])
    return bins
