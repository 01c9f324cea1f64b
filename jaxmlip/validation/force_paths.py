"""The energy difference of two potentials as work: along straight paths from the mean structure, and by pair forces.

ΔU(x) − ΔU(x̄) = ∫ (−ΔF · dx + V Δσ : dε) along any path. Along a straight one in fractional coordinates and cells, each
atom's and each motion's share of it is a sum that nothing is left of, and that needs no more than forces: so that
potentials without atomic energies, and with any, can be compared.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.observables.force_errors import arms_of, rigid_parts
from jaxmlip.observables.frame import FrameState
from jaxmlip.potentials.pairs import PairForces, element_pairs
from jaxmlip.potentials.potential import N_SPECIES, Potential, evaluate
from jaxmlip.systems.cells import volumes
from jaxmlip.systems.molecules import Molecule
from jaxmlip.validation.averages import room_for
from jaxmlip.validation.frame_gradients import in_batches

NODES = 3
"""Points of Gauss and Legendre on a path: exact to the fifth power of the way."""

AT_HOME = 0.5
"""How far an atom may come from its mean place, in units of the edge of the cube that each atom has."""

LEAST_CURVATURE = 1e-6
"""Of the normal equations, relative to the largest: pair forces that change less are not seen, and taken as none."""

MOST_FITTED = 200
"""Frames that pair forces are fitted to, at most."""


class Work(NamedTuple):
    """Shares of ΔU in all frames, eV.

    Attributes:
        atoms: [replicas, frames, atoms, motions].
        cell: [replicas, frames], of the cell's strain, molecules carried along as they are.
    """

    atoms: Float[np.ndarray, "replicas frames atoms motions"]
    cell: Float[np.ndarray, "replicas frames"]


def work_of_paths(
    student: Potential,
    teacher: Potential,
    frames: FrameState,
    unwrapped: Float[np.ndarray, "replicas frames atoms 3"],
    molecules: tuple[Molecule, ...] | None,
    moves_cell: bool,
    common: bool,
) -> Work:
    """U_teacher − U_student of frames relative to their mean structure, as the work of the difference of forces.

    Displacements are split by `rigid_parts` where molecules are given: motions are translation, rotation and vibration;
    without, there is one, the displacement. A strain of the cell moves molecules as a whole.

    Args:
        student: any Potential.
        teacher: any Potential.
        frames: of `frame_states`, leaves [replicas, frames, ...].
        unwrapped: the same positions, continuous in time, Å.
        molecules: all of the structure; None if there are none.
        moves_cell: whether cells differ.
        common: whether all replicas have one mean structure, or each its own.

    Raises:
        ValueError: if cells are not periodic in three directions, or an atom leaves its mean place.
    """
    if not frames.periodic:
        raise ValueError("Paths from a mean structure need a cell that is periodic in three directions.")
    cells = np.asarray(frames.cell, np.float64)
    scaled = np.asarray(unwrapped, np.float64) @ np.linalg.inv(cells)
    centre = scaled.mean(axis=2, keepdims=True)
    scaled = scaled - centre + centre.mean(axis=(0, 1))  # wherever the whole has drifted
    home, mean_cell = (each.mean(axis=(0, 1) if common else 1, keepdims=True) for each in (scaled, cells))
    _check_at_home((scaled - home) @ cells, cells)
    points, weights = np.polynomial.legendre.leggauss(NODES)
    shares = 0.0
    for point, weight in zip(0.5 * (points + 1.0), 0.5 * weights, strict=True):
        cell = mean_cell + point * (cells - mean_cell)
        place = (home + point * (scaled - home)) @ cell
        here = _placed(frames, place, cell, (student, teacher))
        moved = ((scaled - home) @ cell).astype(here.positions.dtype).reshape(-1, *place.shape[2:])
        strain = np.linalg.solve(cell, cells - mean_cell).astype(here.positions.dtype).reshape(-1, 3, 3)
        done = _work((student, teacher), here, moved, strain, molecules, moves_cell)
        shares = shares + weight * np.asarray(done, np.float64)
    shares = np.asarray(shares).reshape(*cells.shape[:2], -1)
    motions = 1 if molecules is None else 3
    atoms = shares[:, :, :-1].reshape(*cells.shape[:2], scaled.shape[2], motions)
    return Work(atoms, shares[:, :, -1])


def _check_at_home(away: np.ndarray, cells: np.ndarray) -> None:
    """Raise ValueError if an atom is not where it mostly is: then straight paths lead through others."""
    distances = np.sqrt((away**2).sum(-1))
    most = AT_HOME * np.cbrt(volumes(cells) / away.shape[2]).mean()
    replica, frame, atom = np.unravel_index(np.argmax(distances), distances.shape)
    if distances[replica, frame, atom] > most:
        raise ValueError(
            f"Atom {atom} of replica {replica} comes {distances[replica, frame, atom]:.2f} Å from its mean place, more "
            f"than {most:.2f}: shares of atoms and motions are told of crystals, whose atoms stay at their sites."
        )


def _placed(frames: FrameState, positions: np.ndarray, cells: np.ndarray, both: Sequence[Potential]) -> FrameState:
    """The frames with other positions and cells, flat, and room for the lists of two potentials."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    here = frames.at_rest.replace(positions=positions.astype(dtype), cell=cells.astype(dtype))
    cutoffs = tuple(max(getattr(each, name) for each in both) for name in ("cutoff", "inner_cutoff"))
    here = here.replace(capacity=room_for(here, cutoffs))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), here)


def _difference(both: Sequence[Potential], frames: FrameState, stress: bool) -> tuple[Any, Any]:
    """Forces [frames, atoms, 3] and stress of the second potential minus those of the first, NaN without room."""
    found = []
    for potential in both:
        graph, fits = frames.batch_graph(potential)
        said = evaluate(potential, graph, stress=stress)
        found.append((jnp.where(fits, said.forces, jnp.nan).reshape(frames.positions.shape), said.stress))
    (one, one_stress), (other, other_stress) = found
    return other - one, other_stress - one_stress if stress else None


@functools.partial(jax.jit, static_argnames=("molecules", "moves_cell"))
def _work(
    both: tuple[Potential, Potential],
    frames: FrameState,
    moved: Any,
    strains: Any,
    molecules: tuple[Molecule, ...] | None,
    moves_cell: bool,
) -> Any:
    """Per unit of the way at one point of each path, [frames, atoms · motions + 1]; the last is the cell's."""

    def of_frame(frame: FrameState, moved: Any, strain: Any, forces: Any, stress: Any) -> Any:
        of_cell = jnp.zeros(())
        if moves_cell:
            own = jnp.zeros_like(moved) if molecules is None else arms_of(frame, molecules) @ strain
            # A strain that stretches molecules too is undone for these, and counts as their own motion.
            of_cell = frame.volume * (stress * 0.5 * (strain + strain.T)).sum() + (forces * own).sum()
            moved = moved + own
        parts = (moved,) if molecules is None else rigid_parts(frame, molecules, moved)
        shares = jnp.stack([-(forces * part).sum(-1) for part in parts], axis=-1)
        return jnp.append(shares.ravel(), of_cell)

    def of_batch(batch: tuple[FrameState, Any, Any]) -> Any:
        frames, moved, strains = batch
        forces, stress = _difference(both, frames, moves_cell)
        stress = jnp.zeros_like(strains) if stress is None else stress
        return jax.vmap(of_frame)(frames, moved, strains, forces, stress)

    return in_batches(of_batch, (frames, moved, strains))


def pair_energies(
    student: Potential, teacher: Potential, frames: FrameState, *, reach: float, knots: int
) -> tuple[Float[np.ndarray, "replicas frames pairs knots"], PairForces]:
    """What pair forces, fitted to the difference of forces by least squares, hold of U_teacher − U_student, eV.

    Args:
        student: any Potential.
        teacher: any Potential.
        frames: of `frame_states`, leaves [replicas, frames, ...].
        reach: of the pair forces, Å.
        knots: number of distances.

    Returns:
        The energy of the force at each distance in all frames, for the pairs of `element_pairs`; and the pair forces.
    """
    known = tuple(sorted(set(frames.numbers)))
    zero = np.zeros((len(element_pairs(known)), knots))
    pairs = PairForces(zero, np.zeros(N_SPECIES), known, float(reach))
    shape = frames.positions.shape[:2]
    flat = _placed(frames, np.asarray(frames.positions), np.asarray(frames.cell), (student, teacher, pairs))
    number = shape[0] * shape[1]
    chosen = np.linspace(0, number - 1, min(MOST_FITTED, number)).astype(int)
    few = jax.tree.map(lambda leaf: leaf[chosen], flat)
    found = np.asarray(_normal_equations((student, teacher), pairs, few), np.float64).sum(0)
    curvature, slope = found[:, :-1], found[:, -1]
    values, vectors = np.linalg.eigh(curvature)
    seen = values > LEAST_CURVATURE * max(values.max(), 1e-300)
    coefficients = vectors[:, seen] @ ((vectors[:, seen].T @ slope) / values[seen])
    fitted = pairs.replace(params=coefficients.reshape(zero.shape))
    functions = np.asarray(_functions(pairs, flat), np.float64)
    return (functions * coefficients).reshape(*shape, *zero.shape), fitted


@jax.jit
def _normal_equations(both: tuple[Potential, Potential], pairs: PairForces, frames: FrameState) -> Any:
    """Of the least squares of forces of each frame, [frames, unknowns, unknowns + 1]; the last column is the right."""

    def of_batch(frames: FrameState) -> Any:
        forces, _ = _difference(both, frames, False)
        graph, _ = frames.batch_graph(pairs)
        design = pairs.forces_of_functions(graph).reshape(len(forces), forces[0].size, -1)
        right = jnp.einsum("nfu,nf->nu", design, forces.reshape(len(forces), -1))
        return jnp.concatenate([jnp.einsum("nfu,nfv->nuv", design, design), right[..., None]], axis=-1)

    return in_batches(of_batch, frames)


@jax.jit
def _functions(pairs: PairForces, frames: FrameState) -> Any:
    """The energies that coefficients of pair forces multiply, [frames, unknowns]."""

    def of_batch(frames: FrameState) -> Any:
        graph, fits = frames.batch_graph(pairs)
        functions = pairs.functions(graph).reshape(len(frames.positions), len(frames.numbers), -1).sum(1)
        return jnp.where(fits, functions, jnp.nan)

    return in_batches(of_batch, frames)
