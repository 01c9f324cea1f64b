"""Whole-molecule clusters cut from a condensed phase."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from jaxtyping import Int

from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.systems.molecules import CentredMolecule, centred_molecules
from jaxmlip.systems.neighbors import neighbor_pairs


def cut_clusters(structures: Sequence[Atoms], radius: float = 5.0, number: int = 200, seed: int = 0) -> list[Atoms]:
    """Clusters of whole molecules around randomly chosen ones.

    A cluster has every molecule whose central atom is within the radius of that of a chosen one, through the periodic
    boundaries: the central atom of each molecule first (in water O, H, H), nearest molecule first, the chosen one's
    central atom at the origin, no cell. Which atom is central is decided by the bonds, see `CentredMolecule`.

    Args:
        structures: frames of molecules, periodic or not.
        radius: Å, between central atoms.
        number: of clusters; the chosen molecules are distinct.
        seed: the same seed chooses the same molecules.

    Returns:
        Clusters, whose `info` has `source_frame` (index into `structures`), `centre_atom` (index of the chosen
        molecule's central atom in that frame) and `radius_A`.

    Raises:
        ValueError: if there are fewer molecules than clusters wanted, if a structure is not made of whole molecules
            (see `covalent_bonds`; hydrogen and oxygen alone must be water), or if the radius is so large that
            a molecule would be in a cluster of this cell twice.
    """
    molecules = []
    for frame, atoms in enumerate(structures):
        try:
            check_structure(atoms)
            molecules.append(centred_molecules(atoms))
        except ValueError as error:
            raise ValueError(f"Structure {frame}: {error}") from error
    counts = np.array([len(each) for each in molecules], dtype=int)
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
            cut = _clusters_of(structures[frame], molecules[frame], centres[mine], radius)
            for place, cluster in zip(mine, cut, strict=True):
                cluster.info["source_frame"] = int(frame)
                clusters[place] = cluster
        except ValueError as error:
            raise ValueError(f"Structure {frame}: {error}") from error
    return [cluster for cluster in clusters if cluster is not None]


def _clusters_of(
    atoms: Atoms, molecules: Sequence[CentredMolecule], centres: Int[np.ndarray, " chosen"], radius: float
) -> list[Atoms]:
    """Clusters around the chosen molecules of one structure."""
    where, cell = atoms.positions[[molecule.atoms[0] for molecule in molecules]], periodic_cell(atoms)
    i, j, shifts, distance = neighbor_pairs(where, cell, radius)
    vectors = where[j] + shifts @ cell - where[i]
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
        of_atoms = np.concatenate([molecules[member].atoms for member in members])
        places = [origin + molecules[member].vectors for origin, member in zip(origins, members, strict=True)]
        cluster = Atoms(atoms.numbers[of_atoms], np.concatenate(places))
        if atoms.has("masses"):
            cluster.set_array("masses", atoms.get_masses()[of_atoms], float, ())
        cluster.info = {"centre_atom": int(molecules[centre].atoms[0]), "radius_A": float(radius)}
        clusters.append(cluster)
    return clusters


def _sides(atoms: Atoms) -> str:
    return " × ".join(f"{length:.2f}" for length in atoms.cell.lengths())
