"""Water molecules in a structure, and whole-molecule clusters cut from bulk."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.systems.neighbors import neighbor_pairs

COVALENT = 1.5
"""A hydrogen has a covalent oxygen within this distance in Å: beyond the barrier of a shared proton (1.2 Å from either
oxygen), before the hydrogen bond (1.7 Å)."""


def molecules_of(atoms: Atoms) -> Int[np.ndarray, "molecules 3"]:
    """Indices (O, H, H) of the water molecules, in the order of their oxygens.

    Each hydrogen belongs to its nearest oxygen, through the periodic boundaries.

    Raises:
        ValueError: if there are other elements, or if an oxygen does not have exactly two hydrogens or a hydrogen no
            oxygen within `COVALENT` (a dissociated molecule), naming the atom.
    """
    return _whole_molecules(atoms)[0]


def cut_clusters(structures: Sequence[Atoms], radius: float = 5.0, number: int = 200, seed: int = 0) -> list[Atoms]:
    """Clusters of whole water molecules around randomly chosen ones.

    A cluster has every molecule whose oxygen is within the radius of a chosen oxygen, through the periodic boundaries:
    atoms in the order O, H, H, nearest molecule first, the chosen oxygen at the origin, no cell.

    Args:
        structures: frames of water or ice, periodic or not.
        radius: Å, between oxygens.
        number: of clusters; the chosen molecules are distinct.
        seed: the same seed chooses the same molecules.

    Returns:
        Clusters, whose `info` has `source_frame` (index into `structures`), `centre_atom` (index of the chosen oxygen
        in that frame) and `radius_A`.

    Raises:
        ValueError: if there are fewer molecules than clusters wanted, if a structure is not made of whole water
            molecules, or if the radius is so large for a cell that a molecule would appear twice in a cluster.
    """
    for frame, atoms in enumerate(structures):
        try:
            check_structure(atoms)
        except ValueError as error:
            raise ValueError(f"Structure {frame}: {error}") from error
    counts = np.array([np.count_nonzero(atoms.numbers == 8) for atoms in structures], dtype=int)
    available = int(counts.sum())
    if number > available:
        raise ValueError(
            f"{number} clusters are wanted, but {len(structures)} structures have only {available} molecules to centre "
            "them on; give more structures or ask for fewer clusters."
        )
    chosen = np.random.default_rng(seed).choice(available, size=number, replace=False)
    frames = np.searchsorted(np.cumsum(counts), chosen, side="right")
    centres = chosen - (np.cumsum(counts) - counts)[frames]
    clusters: list[Atoms | None] = [None] * number
    for frame in np.unique(frames):
        mine = np.flatnonzero(frames == frame)
        try:
            for place, cluster in zip(mine, _clusters_of(structures[frame], centres[mine], radius), strict=True):
                cluster.info["source_frame"] = int(frame)
                clusters[place] = cluster
        except ValueError as error:
            raise ValueError(f"Structure {frame}: {error}") from error
    return [cluster for cluster in clusters if cluster is not None]


def _clusters_of(atoms: Atoms, centres: Int[np.ndarray, " chosen"], radius: float) -> list[Atoms]:
    """Clusters around the chosen molecules of one structure."""
    molecules, bonds = _whole_molecules(atoms)
    oxygens = atoms.positions[molecules[:, 0]]
    i, j, vectors, distance = _pairs(atoms, oxygens, radius)
    clusters = []
    for centre in centres:
        near = np.flatnonzero(i == centre)
        near = near[np.argsort(distance[near], kind="stable")]
        members = np.concatenate([[centre], j[near]])
        if len(np.unique(members)) < len(members):
            raise ValueError(
                f"A cluster of radius {radius:g} Å does not fit into the cell of {_sides(atoms)} Å: a molecule would "
                "be in it twice, by two of its periodic images; use a smaller radius or a larger cell."
            )
        origins = np.concatenate([np.zeros((1, 3)), vectors[near]])
        cluster = Atoms("OH2" * len(members), (origins[:, None, :] + bonds[members]).reshape(-1, 3))
        if atoms.has("masses"):
            cluster.set_array("masses", atoms.get_masses()[molecules[members].ravel()], float, ())
        cluster.info = {"centre_atom": int(molecules[centre, 0]), "radius_A": float(radius)}
        clusters.append(cluster)
    return clusters


def _whole_molecules(atoms: Atoms) -> tuple[Int[np.ndarray, "molecules 3"], Float[np.ndarray, "molecules 3 3"]]:
    """Indices (O, H, H) of each molecule and the vectors from its oxygen to these atoms, Å."""
    foreign = sorted(set(atoms.symbols) - {"H", "O"})
    if foreign:
        raise ValueError(f"{atoms.symbols} is not pure water: it contains {', '.join(foreign)}.")
    i, j, vectors, distance = _pairs(atoms, atoms.positions, COVALENT)
    bonds = (atoms.numbers[i] == 1) & (atoms.numbers[j] == 8)
    i, j, vectors, distance = i[bonds], j[bonds], vectors[bonds], distance[bonds]
    nearest = np.lexsort((distance, i))
    hydrogens, first = np.unique(i[nearest], return_index=True)
    owner, vectors = j[nearest][first], vectors[nearest][first]

    free = np.setdiff1d(np.flatnonzero(atoms.numbers == 1), hydrogens)
    if free.size:
        raise ValueError(f"Hydrogen atom {free[0]} has no oxygen within {COVALENT} Å: a molecule has dissociated.")
    oxygens = np.flatnonzero(atoms.numbers == 8)
    counts = np.bincount(owner, minlength=len(atoms))[oxygens]
    if (counts != 2).any():
        wrong = int(np.argmax(counts != 2))
        raise ValueError(
            f"Oxygen atom {oxygens[wrong]} has {counts[wrong]} hydrogens instead of 2: a molecule has dissociated, or "
            "the structure is not water."
        )
    by_owner = np.argsort(owner, kind="stable")
    molecules = np.column_stack([oxygens, hydrogens[by_owner].reshape(-1, 2)])
    to_hydrogens = -vectors[by_owner].reshape(-1, 2, 3)
    return molecules, np.concatenate([np.zeros((len(oxygens), 1, 3)), to_hydrogens], axis=1)


def _pairs(atoms: Atoms, positions: np.ndarray, cutoff: float) -> tuple[np.ndarray, ...]:
    """All ordered pairs of points within the cutoff, images included: i, j, vector from i to j, distance."""
    if len(positions) == 0:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)), np.zeros(0)
    cell = periodic_cell(atoms)
    i, j, shifts, distance = neighbor_pairs(positions, cell, cutoff)
    return i, j, positions[j] + shifts @ cell - positions[i], distance


def _sides(atoms: Atoms) -> str:
    return " × ".join(f"{length:.2f}" for length in atoms.cell.lengths())
