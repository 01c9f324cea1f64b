"""Loss and gradient of CHGNet are the original's: see make_chgnet_training_reference.py."""

import functools
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms

from jaxmlip.potentials.chgnet_checkpoint import CHECKPOINTS, converted, load_chgnet
from jaxmlip.potentials.torch_checkpoint import read_checkpoint
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.loss import Terms, Weights, loss
from jaxmlip.units import GPA

DATA = Path(__file__).parents[1] / "potentials" / "data"

WEIGHTS = Weights(
    energy=1.0,
    forces=1.0,
    # Huber's loss of errors in GPa: that of e / GPA with δ is that of e with δ · GPA, divided by GPA².
    stress=0.1 / GPA**2,
    magmoms=0.1,
    huber_delta=0.1,
    huber_deltas={"stress": 0.1 * GPA},
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("chgnet") is None, reason="needs the checkpoints of the package chgnet"
    ),
]


def labelled() -> list[Frame]:
    """The structures with the labels that the original was given."""
    published, said = (dict(np.load(DATA / f"chgnet_{name}reference.npz")) for name in ("", "training_"))
    frames = []
    for place, name in enumerate(said["names"]):
        k = list(published["names"]).index(name)
        atoms = Atoms(published[f"{k}.numbers"], published[f"{k}.positions"], cell=published[f"{k}.cell"], pbc=True)
        atoms.arrays["magmoms"] = said[f"{place}.m"]
        energy = float(said[f"{place}.e"]) * len(atoms)
        frames.append(Frame(atoms, energy, said[f"{place}.f"], said[f"{place}.s"] * GPA))
    return frames


def test_loss_and_gradient_are_those_of_the_original(x64) -> None:
    """To 1e-6 of the loss, and of the norm of the gradient by each tensor of weights."""
    del x64
    said = dict(np.load(DATA / "chgnet_training_reference.npz"))
    teacher = load_chgnet("gga", dtype=np.float64)
    samples = make_samples(labelled(), teacher.cutoff, teacher.inner_cutoff, np.zeros(119), dtype=np.float64)
    assert np.isnan(samples[1].forces).sum() == 0
    assert samples[1].magmoms is None
    (batch,) = make_batches(samples, len(samples))

    @jax.jit
    def differentiated(params: Any) -> Any:
        terms = Terms(True, True, True, True)
        return jax.value_and_grad(lambda p: loss(teacher.with_params(p), batch, WEIGHTS, terms=terms)[0])(params)

    value, gradient = differentiated(teacher.params)
    assert float(value) == pytest.approx(float(said["loss"]), rel=1e-6)
    assert len(said["tensors"]) == 127
    for name, norm, product in zip(said["tensors"], said["norms"], said["products"], strict=True):
        mine = [in_layout_of_the_original(gradient["params"], name, how) for how in ("square", "drawn")]
        assert np.sqrt(mine[0]) == pytest.approx(norm, rel=1e-6, abs=1e-12), name
        assert mine[1] == pytest.approx(product, abs=1e-5 * norm + 1e-12), name


@functools.cache
def shapes_of_the_original() -> dict[str, tuple[int, ...]]:
    """Of its tensors of weights, by name."""
    (folder,) = importlib.util.find_spec("chgnet").submodule_search_locations  # pyright: ignore
    (path,) = (Path(folder) / CHECKPOINTS["gga"]).glob("*.pth.tar")
    return {name: weights.shape for name, weights in read_checkpoint(path)["model"]["state_dict"].items()}


def in_layout_of_the_original(gradient: dict, name: str, how: str) -> float:
    """Of one of the original's tensors: the sum of squares of our gradient, or its product with drawn numbers."""
    shapes = shapes_of_the_original()
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shapes[name])
    chosen = drawn if how == "drawn" else np.ones(shapes[name])
    factors = converted({key: np.zeros(shape) for key, shape in shapes.items()} | {name: chosen})
    parts = jax.tree.map(lambda g, f: np.sum((g if how == "drawn" else g**2) * f), gradient, factors)
    return float(sum(jax.tree.leaves(parts)))
