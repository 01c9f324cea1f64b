# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["ase>=3.23", "chgnet>=0.4.2,<0.5", "genice2>=2.2.7,<2.3", "numpy>=2", "pymatgen", "torch>=2.4"]
# ///
"""Writes data/chgnet_reference.npz: structures, and what the original CHGNet says of them.

Run in an environment of its own, `uv run tests/potentials/make_chgnet_reference.py`; the package under test is not
imported. The original knows periodic structures only, so molecules are put into a box of 40 Å; the file says that they
are not periodic, and their stress is not to be compared.
"""

import random
from pathlib import Path

import chgnet
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.spacegroup import crystal
from chgnet.model.model import CHGNet
from pymatgen.io.ase import AseAtomsAdaptor

OUT = Path(__file__).parent / "data" / "chgnet_reference.npz"
MODELS = {"gga": "0.3.0", "r2scan": "r2scan"}
BOX = 40.0


def ice(repeat: tuple[int, int, int]) -> Atoms:
    """Proton-disordered ice Ih at 0.93 g/cm³ with rigid molecules."""
    from genice2.genice import GenIce
    from genice2.plugin import Format, Lattice, Molecule

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (genice2 draws from the global generator)
    made = GenIce(Lattice("ice1h"), rep=repeat, density=0.93)
    lines = made.generate_ice(Format("gromacs"), water=Molecule("spce"), depol="optimal").splitlines()
    rows = lines[2 : 2 + int(lines[1])]
    positions = [[10 * float(row[start : start + 8]) for start in (20, 28, 36)] for row in rows]
    cell = [10 * float(length) for length in lines[2 + len(rows)].split()[:3]]
    return Atoms([row[10:15].strip()[0] for row in rows], positions, cell=cell, pbc=True)


def cluster(solid: Atoms, center: int, radius: float) -> Atoms:
    """The water molecules whose oxygen is within a radius of another's, whole; atoms come as O, H, H."""
    kept = []
    for oxygen in range(0, len(solid), 3):
        to_oxygen = solid.get_distance(center, oxygen, mic=True, vector=True)
        if np.linalg.norm(to_oxygen) < radius:
            arms = solid.get_distances(oxygen, [oxygen, oxygen + 1, oxygen + 2], mic=True, vector=True)
            kept.append(Atoms("OH2", to_oxygen + arms))
    return sum(kept[1:], start=kept[0])


def rattled(atoms: Atoms, amplitude: float, seed: int) -> Atoms:
    """Every coordinate displaced by normal noise, Å."""
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0.0, amplitude, (len(atoms), 3))
    return atoms


def structures() -> dict[str, Atoms]:
    """Everything compared, by name."""
    ice_96, ice_384 = rattled(ice((2, 1, 1)), 0.03, 1), rattled(ice((2, 2, 2)), 0.03, 2)
    perovskite = crystal(
        "LaMnO", [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.95] * 3 + [90] * 3
    )
    spinel = crystal(
        "LiMnO",
        [(1 / 8, 1 / 8, 1 / 8), (0.5, 0.5, 0.5), (0.2625, 0.2625, 0.2625)],
        spacegroup=227,
        setting=2,
        cellpar=[8.25] * 3 + [90] * 3,
        primitive_cell=True,
    )
    quartz = crystal(
        "SiO",
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )
    strain = np.array([[0.03, 0.02, -0.01], [0.0, -0.02, 0.03], [0.01, 0.0, 0.02]])
    triclinic = rattled(quartz, 0.05, 3)
    triclinic.set_cell(triclinic.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    layered = crystal(
        "LiCoO", [(0, 0, 0.5), (0, 0, 0), (0, 0, 0.2605)], spacegroup=166, cellpar=[2.815, 2.815, 14.05, 90, 90, 120],
        primitive_cell=True,
    )  # fmt: skip
    rutile = crystal("TiO", [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])
    slab = fcc111("Cu", (2, 2, 3), vacuum=12.0)
    slab.pbc = (True, True, False)
    return {
        "ice of 96 atoms": ice_96,
        "ice of 384 atoms": ice_384,
        "water molecule": rattled(molecule("H2O"), 0.05, 4),
        "water cluster of 5": cluster(ice_384, 0, 3.0),
        "water cluster of 17": cluster(ice_384, 60, 4.8),
        "rocksalt NaCl": rattled(bulk("NaCl", "rocksalt", 5.64, cubic=True), 0.1, 5),
        "perfect rocksalt MgO": bulk("MgO", "rocksalt", 4.21),
        "perovskite LaMnO3": rattled(perovskite * (2, 1, 1), 0.08, 6),
        "spinel LiMn2O4": rattled(spinel, 0.05, 7),
        "layered LiCoO2": rattled(layered, 0.05, 8),
        "rutile TiO2": rattled(rutile, 0.05, 9),
        "triclinic strained quartz": triclinic,
        "fcc Cu, one atom": bulk("Cu", "fcc", 3.58),
        "bcc Fe, one atom": bulk("Fe", "bcc", 2.83),
        "simple cubic Cu, bonds of exactly 3 and 6 Å": bulk("Cu", "sc", 3.0),
        "compressed bcc Fe, one atom": bulk("Fe", "bcc", 2.6),
        "hcp Ti": rattled(bulk("Ti", "hcp", 2.95, c=4.68), 0.05, 10),
        "diamond Si": rattled(bulk("Si", cubic=True), 0.1, 11),
        "fluorite UO2": rattled(bulk("UO2", "fluorite", 5.47), 0.05, 12),
        "argon dimer without bond graph": Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]),
        "carbon dioxide on a line": molecule("CO2"),
        "copper slab": rattled(slab, 0.05, 13),
        "water molecule and a lone nickel": molecule("H2O") + Atoms("Ni", [[0, 0, 14.0]]),
    }


def boxed(atoms: Atoms) -> Atoms:
    """The periodic structure the original gets in place of a molecule or slab."""
    if atoms.pbc.all():
        return atoms
    atoms = atoms.copy()
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, BOX * np.eye(3))
    atoms.set_cell(cell)
    atoms.pbc = True
    return atoms


def main() -> None:
    """Evaluate both models on everything and write the file."""
    fields: dict[str, np.ndarray] = {"versions": np.array(f"chgnet {chgnet.__version__}, torch {torch.__version__}")}
    made = structures()
    fields["names"] = np.array(list(made))
    for index, atoms in enumerate(made.values()):
        fields[f"{index}.numbers"] = atoms.numbers.astype(np.uint8)
        fields[f"{index}.positions"] = atoms.positions
        fields[f"{index}.cell"] = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    for ours, theirs in MODELS.items():
        model = CHGNet.load(model_name=theirs, use_device="cpu", verbose=False)
        model.graph_converter.set_isolated_atom_response("ignore")
        for index, (name, atoms) in enumerate(made.items()):
            said = model.predict_structure(AseAtomsAdaptor.get_structure(boxed(atoms)), task="efsm")
            fields[f"{index}.{ours}.energy"] = np.asarray(said["e"], np.float32)
            fields[f"{index}.{ours}.forces"] = said["f"].astype(np.float32)
            fields[f"{index}.{ours}.stress"] = said["s"].astype(np.float32)
            fields[f"{index}.{ours}.magmoms"] = said["m"].astype(np.float32)
            print(f"{ours:7s} {name:45s} {len(atoms):4d} atoms {float(said['e']):11.5f} eV/atom")
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **fields)
    print(f"{OUT} {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
