# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["ase>=3.23", "chgnet>=0.4.2,<0.5", "numpy>=2", "pymatgen", "torch>=2.4"]
# ///
"""Writes data/chgnet_training_reference.npz: loss and gradient of the original CHGNet on one batch, by its own trainer.

Run in an environment of its own, `uv run tests/potentials/make_chgnet_training_reference.py`, after
make_chgnet_reference.py, whose structures it takes; the package under test is not imported. All is in double
precision, and energies are relative to AtomRef.
The loss is the original's `CombinedLoss`, Huber with δ = 0.1 in eV/atom, eV/Å, GPa and μB, and E : F : S : M = 1 : 1 :
0.1 : 0.1. Of the gradient by each tensor of weights the norm is kept, and the product with numbers drawn from a
generator that the name seeds, so that the file stays small.
"""

import zlib
from pathlib import Path

import chgnet
import numpy as np
import torch
from ase import Atoms

torch.set_default_dtype(torch.float64)
for module in ("chgnet.graph.converter", "chgnet.graph.crystalgraph", "chgnet.model.model"):
    __import__(module)
    vars(__import__(module, fromlist=["TORCH_DTYPE"]))["TORCH_DTYPE"] = torch.float64

from chgnet.model.model import CHGNet  # noqa: E402 (after its precision is chosen)
from chgnet.trainer.trainer import CombinedLoss  # noqa: E402
from pymatgen.io.ase import AseAtomsAdaptor  # noqa: E402

FOLDER = Path(__file__).parent / "data"
NAMES = ("layered LiCoO2", "hcp Ti", "compressed bcc Fe, one atom", "perovskite LaMnO3")
WITHOUT_MOMENTS = 1
"""Place of the structure that has no magnetic moments among its labels."""

RATIOS = {"energy": 1.0, "force": 1.0, "stress": 0.1, "mag": 0.1}
DELTA = 0.1


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def main() -> None:
    """Predict, make labels that are off by about δ, differentiate the loss and write the file."""
    published = np.load(FOLDER / "chgnet_reference.npz")
    places = [list(published["names"]).index(name) for name in NAMES]
    structures = [
        Atoms(published[f"{k}.numbers"], published[f"{k}.positions"], cell=published[f"{k}.cell"], pbc=True)
        for k in places
    ]
    model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False).double()
    model.composition_model = None  # in single precision; energies are relative to AtomRef
    model.train()
    graphs = [model.graph_converter(AseAtomsAdaptor.get_structure(atoms)) for atoms in structures]
    said = model(graphs, task="efsm")
    labels: dict[str, list] = {"e": [], "f": [], "s": [], "m": []}
    for place, name in enumerate(NAMES):
        for key, values in labels.items():
            there = said[key][place].detach().numpy()
            values.append(there + 0.15 * drawn(f"{name} {key}", there.shape))
    labels["m"] = [np.abs(moments) for moments in labels["m"]]
    labels["m"][WITHOUT_MOMENTS] = np.full_like(labels["m"][WITHOUT_MOMENTS], np.nan)
    targets = {key: [torch.tensor(value) for value in values] for key, values in labels.items()}
    targets["e"] = torch.tensor(labels["e"])

    ratios = {f"{name}_loss_ratio": ratio for name, ratio in RATIOS.items()}
    criterion = CombinedLoss(target_str="efsm", criterion="Huber", delta=DELTA, **ratios)
    loss = criterion(targets, said)["loss"]
    loss.backward()

    fields = {"versions": np.array(f"chgnet {chgnet.__version__}, torch {torch.__version__}"), "names": np.array(NAMES)}
    fields["loss"] = np.array(loss.item())
    for place in range(len(NAMES)):
        fields |= {f"{place}.{key}": values[place] for key, values in labels.items()}
    gradients = {name: w.grad.numpy() for name, w in model.named_parameters() if w.grad is not None}
    fields["tensors"] = np.array(list(gradients))
    fields["norms"] = np.array([np.linalg.norm(g) for g in gradients.values()])
    fields["products"] = np.array([np.sum(g * drawn(name, g.shape)) for name, g in gradients.items()])
    out = FOLDER / "chgnet_training_reference.npz"
    np.savez_compressed(out, **fields)
    print(f"loss {loss.item():.10f}, {len(gradients)} tensors")
    print(f"{out} {out.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
