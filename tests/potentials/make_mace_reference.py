# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["ase>=3.23", "mace-torch==0.3.16", "numpy>=2", "torch>=2.4"]
# ///
"""Writes data/mace_reference.npz: small random MACE models, structures, and what mace-torch says of them.

Run in an environment of its own, `uv run tests/potentials/make_mace_reference.py`. Of the package under test only
`jaxmlip.potentials.mace_checkpoint` is imported, which takes the models apart and needs numpy and torch alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mace  # before e3nn, which it lets load with newer versions of torch
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

sys.path.insert(0, str(Path(__file__).parents[2]))
from jaxmlip.potentials.mace_checkpoint import extract, pack

OUT = Path(__file__).parent / "data" / "mace_reference.npz"
CUTOFF = 3.4

CASES: dict[str, dict[str, Any]] = {
    "MACE, scalars, order 3": {"kind": "MACE", "hidden": 0, "l_max": 3, "order": 3},
    "MACE, order 1, ZBL": {"kind": "MACE", "hidden": 0, "l_max": 2, "order": 1, "repulsion": True},
    "ScaleShiftMACE, scalars, order 2": {"hidden": 0, "l_max": 2, "order": 2},
    "ScaleShiftMACE, vectors, three layers, Agnesi": {
        "hidden": 1, "l_max": 2, "order": 3, "layers": 3, "transform": "Agnesi"
    },
    "ScaleShiftMACE, tensors": {"hidden": 2, "l_max": 3, "order": 2},
    "ScaleShiftMACE, order 4, one layer": {"hidden": 0, "l_max": 2, "order": 4, "layers": 1, "agnostic": True},
    "ScaleShiftMACE, two heads, vectors, order 4, Agnesi, ZBL, five elements": {
        "hidden": 1, "l_max": 2, "order": 4, "heads": ["low", "high"], "numbers": [1, 6, 7, 8, 9],
        "transform": "Agnesi", "repulsion": True,
    },
}  # fmt: skip


def build(
    *,
    kind: str = "ScaleShiftMACE",
    hidden: int,
    l_max: int,
    order: int,
    layers: int = 2,
    agnostic: bool = False,
    transform: str = "None",
    repulsion: bool = False,
    heads: list[str] | None = None,
    numbers: list[int] | None = None,
    seed: int = 0,
    **others: Any,
) -> torch.nn.Module:
    """A random model; `others` go to mace-torch as they are."""
    from e3nn import o3
    from mace.modules import interaction_classes, models

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    numbers = numbers or [1, 6, 8]
    size = (len(heads), len(numbers)) if heads else len(numbers)
    first = "RealAgnosticInteractionBlock" if agnostic or kind == "MACE" else "RealAgnosticResidualInteractionBlock"
    settings = {
        "r_max": CUTOFF,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "max_ell": l_max,
        "interaction_cls": interaction_classes["RealAgnosticResidualInteractionBlock"],
        "interaction_cls_first": interaction_classes[first],
        "num_interactions": layers,
        "num_elements": len(numbers),
        "hidden_irreps": o3.Irreps([(4, (ell, (-1) ** ell)) for ell in range(hidden + 1)]),
        "MLP_irreps": o3.Irreps("5x0e"),
        "gate": torch.nn.functional.silu,
        "atomic_energies": draw.normal(-300.0, 100.0, size),
        "avg_num_neighbors": 5.3,
        "atomic_numbers": numbers,
        "correlation": order,
        "radial_MLP": [8, 7],
        "pair_repulsion": repulsion,
        "distance_transform": transform,
        "heads": heads,
    }
    if kind == "ScaleShiftMACE":
        settings["atomic_inter_scale"] = [0.7, 1.3] if heads else 0.8
        settings["atomic_inter_shift"] = [-0.2, 0.4] if heads else 0.3
    return getattr(models, kind)(**settings | others)


def structures() -> dict[str, Atoms]:
    """Everything compared, by name."""
    crystal = molecule("H2O") + molecule("CO", positions=[[2.2, 1.1, 1.9], [2.9, 0.6, 2.6]])
    crystal.set_cell([[4.1, 0.1, 0.0], [0.4, 3.1, 0.2], [-0.3, 0.5, 3.3]])
    crystal.pbc = True
    diamond = bulk("C", "diamond", 3.57)
    strain = np.array([[0.03, 0.05, -0.02], [0.0, -0.04, 0.06], [0.03, 0.0, 0.02]])
    diamond.set_cell(diamond.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    diamond.rattle(0.05, seed=1)
    crystal.rattle(0.05, seed=2)
    methanol = molecule("CH3OH")
    methanol.rattle(0.05, seed=3)
    return {
        "molecular crystal, smaller than the cutoff": crystal,
        "triclinic strained diamond": diamond,
        "methanol": methanol,
        "atoms at 0.6 Å": Atoms("OHCH", [[0, 0, 0], [0.1, 0.59, 0], [1.1, 0.1, 0.1], [1.0, 0.2, 0.68]]),
        "isolated atom": Atoms("O", [[0.0, 0, 0]]),
    }


def say(model: torch.nn.Module, atoms: Atoms, head: str) -> dict[str, np.ndarray]:
    """Energy, forces and, of periodic structures, stress by mace-torch."""
    from mace.calculators import MACECalculator

    atoms = atoms.copy()
    atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
    said = {"energy": np.array(atoms.get_potential_energy()), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        said["stress"] = atoms.get_stress(voigt=False)
    return said


def main() -> None:
    """Evaluate all models on everything and write the file."""
    made = structures()
    fields: dict[str, Any] = {"versions": np.array(f"mace-torch {mace.__version__}, torch {torch.__version__}")}
    fields["names"] = np.array(json.dumps({"cases": list(CASES), "structures": list(made)}))
    for s, atoms in enumerate(made.values()):
        fields |= {f"{s}/numbers": atoms.numbers, f"{s}/positions": atoms.positions}
        fields[f"{s}/cell"] = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    for case, (name, options) in enumerate(CASES.items()):
        model = build(**options, seed=case)
        extracted = extract(model)
        fields |= {f"case {case}/model/{key}": value for key, value in pack(extracted).items()}
        for head in extracted["heads"]:
            for s, (structure, atoms) in enumerate(made.items()):
                said = say(model, atoms, head)
                fields |= {f"case {case}/{head}/{s}/{key}": value for key, value in said.items()}
                print(f"{name} | {head} | {structure} | {said['energy']:.6f} eV")
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **fields)
    print(f"{OUT} {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
