"""The pretrained CHGNet teachers, whose published weights are read without torch.

Version 0.3.0 of the weights for GGA/GGA+U (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)), and the weights transferred
to r2SCAN by Huang et al., npj Comput. Mater. (2025). Both come with the `chgnet` package, whose files alone are read.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxmlip.potentials.chgnet import CHGNet, spreads
from jaxmlip.potentials.chgnet_network import ELEMENTS, LAYERS
from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.potentials.torch_checkpoint import read_checkpoint

CHECKPOINTS = {"gga": "pretrained/0.3.0", "r2scan": "pretrained/r2scan"}


def load_chgnet(which: Literal["gga", "r2scan"], dtype: type = np.float32) -> CHGNet:
    """A pretrained CHGNet from the files of the installed `chgnet` package, which is not imported.

    Args:
        which: "gga" for version 0.3.0 (GGA and GGA+U as in the Materials Project), "r2scan" for its transfer to r2SCAN.
        dtype: of the parameters.

    Raises:
        ValueError: for another name, or if the checkpoint is truncated or not CHGNet's.
        ModuleNotFoundError: if `chgnet` is not installed.
    """
    if which not in CHECKPOINTS:
        raise ValueError(f"There is no CHGNet {which!r}; the names are {', '.join(CHECKPOINTS)}.")
    spec = importlib.util.find_spec("chgnet")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"chgnet:{which} needs the checkpoint files of the package chgnet, which is not installed: run `uv sync` "
            "(its group `teachers` is a default), or `pip install --no-deps chgnet`; torch is not needed."
        )
    folder = Path(spec.submodule_search_locations[0]) / CHECKPOINTS[which]
    files = sorted(folder.glob("*.pth.tar"))
    if not files:
        raise ValueError(f"{folder} holds no checkpoint; chgnet:{which} needs chgnet 0.4.2 or a later 0.4.")
    return read_chgnet(files[0], dtype=dtype)


def read_chgnet(path: str | Path, dtype: type = np.float32) -> CHGNet:
    """A CHGNet from one of its own checkpoints.

    Args:
        path: a `.pth.tar` file of the architecture of version 0.3.0.
        dtype: of the parameters.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, no checkpoint, or one of another architecture.
    """
    checkpoint = read_checkpoint(path)
    try:
        weights = checkpoint["model"]["state_dict"]
        params = converted(weights)
        atom_ref = weights["composition_model.fc.weight"][0].astype(np.float64)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is a checkpoint, but not of CHGNet 0.3.0 or r2SCAN: it lacks {error}.") from error
    expected: dict[str, Any] = flatten_dict(spreads(), sep=".")
    for key, found in cast(dict[str, Any], flatten_dict(params, sep=".")).items():
        if found.shape != expected[key].shape:
            raise ValueError(
                f"{path} is not of CHGNet 0.3.0 or r2SCAN: {key} has shape {found.shape} instead of "
                f"{expected[key].shape}."
            )
    references = np.zeros(N_SPECIES)
    references[1 : ELEMENTS + 1] = atom_ref
    return CHGNet(
        params={"params": jax.tree.map(lambda leaf: np.array(leaf, dtype), params)},
        references=references,
    )


def converted(weights: Mapping[str, np.ndarray]) -> dict:
    """The original's state dictionary as our parameters."""

    def gated(prefix: str, parts: tuple[str, ...], hidden: bool) -> dict:
        """A gated perceptron; the original numbers its layers by whether a hidden one and dropout come before."""
        branches = [f"{prefix}.mlp_{branch}.layers" for branch in ("core", "gate")]
        index = 0 if hidden else 1
        kernels = np.concatenate([weights[f"{branch}.{index}.weight"].T for branch in branches], axis=1)
        tree = dict(zip(parts, np.split(kernels, len(parts)), strict=True))
        tree["bias"] = np.concatenate([weights[f"{branch}.{index}.bias"] for branch in branches])
        if hidden:
            tree["second"] = np.stack([weights[f"{branch}.3.weight"].T for branch in branches])
            tree["second_bias"] = np.stack([weights[f"{branch}.3.bias"] for branch in branches])
        tree["scale"] = np.stack([weights[f"{prefix}.bn{branch}.weight"] for branch in (1, 2)])
        tree["shift"] = np.stack([weights[f"{prefix}.bn{branch}.bias"] for branch in (1, 2)])
        return tree

    def dense(prefix: str) -> dict:
        return {"kernel": weights[f"{prefix}.weight"].T, "bias": weights[f"{prefix}.bias"]}

    around_angle = ("bond", "other", "angle", "center")
    tree = {
        "atom_embedding": weights["atom_embedding.embedding.weight"],
        "atom_basis": {"frequencies": weights["bond_basis_expansion.rbf_expansion_ag.frequencies"]},
        "bond_basis": {"frequencies": weights["bond_basis_expansion.rbf_expansion_bg.frequencies"]},
        "angle_basis": {"frequencies": weights["angle_basis_expansion.fourier_expansion.frequencies"]},
        "bond_embedding": weights["bond_embedding.weight"].T,
        "atom_weights": weights["bond_weights_ag.weight"].T,
        "bond_weights": weights["bond_weights_bg.weight"].T,
        "angle_embedding": weights["angle_embedding.weight"].T,
        "moment": dense("site_wise"),
        "norm": {"scale": weights["readout_norm.weight"], "bias": weights["readout_norm.bias"]},
    }
    for layer in range(LAYERS):
        tree[f"atom_convolutions_{layer}"] = {
            "perceptron": gated(f"atom_conv_layers.{layer}.twoBody_atom", ("center", "bond", "neighbor"), True),
            "out": weights[f"atom_conv_layers.{layer}.mlp_out.layers.1.weight"].T,
        }
    for layer in range(LAYERS - 1):
        tree[f"bond_convolutions_{layer}"] = {
            "perceptron": gated(f"bond_conv_layers.{layer}.twoBody_bond", around_angle, True),
            "out": weights[f"bond_conv_layers.{layer}.mlp_out.layers.1.weight"].T,
        }
    for layer in range(LAYERS - 2):
        tree[f"angle_updates_{layer}"] = gated(f"angle_layers.{layer}.twoBody_bond", around_angle, False)
    for index, original in enumerate((0, 2, 4, 7)):
        tree[f"readout_{index}"] = dense(f"mlp.layers.{original}")
    return tree
