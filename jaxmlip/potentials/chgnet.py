"""The pretrained CHGNet teachers: the network in flax.linen, the published weights read without torch.

Deng et al., Nat. Mach. Intell. 5, 1031 (2023); version 0.3.0 of the weights for GGA/GGA+U, and the weights transferred
to r2SCAN by Huang et al., npj Comput. Mater. (2025). Both come with the `chgnet` package, whose files alone are read.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array
from jaxtyping import Int

from jaxmlip.potentials.blocks import Form, form_of_this_machine
from jaxmlip.potentials.chgnet_network import ATOM_CUTOFF, BOND_CUTOFF, ELEMENTS, LAYERS, CHGNetNetwork
from jaxmlip.potentials.potential import LABELS, N_SPECIES, Potential
from jaxmlip.potentials.torch_checkpoint import read_checkpoint
from jaxmlip.systems.graph import GHOST, Graph, edge_vectors
from jaxmlip.types import AnyArray, Leaf, PerAtom

MISSED = 1e-2
"""Å: a bond this close to the bond graph's cutoff weighs too little to matter, and is not called missing."""

CHECKPOINTS = {"gga": "pretrained/0.3.0", "r2scan": "pretrained/r2scan"}

UNFITTED = 1e-6
"""Magnitude in eV below which an elemental reference was never fitted: no training structure had the element."""

NOT_IN_MPTRJ = (84, 85, 86, 87, 88)
"""Po, At, Rn, Fr and Ra: no structure of MPtrj, on which CHGNet was trained, has one of them (it has the other 89 of
the first 94 elements). The source is the published weights: in the embedding the rows of these five alone have the
length of rows that are drawn from the normal distribution, √64, and all others are longer by 40 % or more; and, with
that of Yb, which the data of r2SCAN lack, they have the same bits before and after the transfer to r2SCAN: no gradient
reached them. Their references for GGA are small instead of zero, and mean nothing."""


@flax.struct.dataclass
class CHGNet(Potential):
    """A CHGNet as a potential.

    Attributes:
        params: variables of `CHGNetNetwork`.
        references: [119], AtomRef of the checkpoint, eV.
        form: for which machine it is computed (static); see `blocks.Form`.

    Nothing else is static, so that all checkpoints share compiled code.
    """

    params: Leaf
    references: Leaf
    form: Form = flax.struct.field(pytree_node=False, default_factory=form_of_this_machine)

    @property
    def cutoff(self) -> float:
        """6 Å."""
        return ATOM_CUTOFF

    @property
    def inner_cutoff(self) -> float:
        """3 Å, the bond graph."""
        return BOND_CUTOFF

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that training structures had, see `NOT_IN_MPTRJ`; not to be asked for in traced code."""
        fitted = np.flatnonzero(np.abs(np.asarray(self.references)) > UNFITTED).tolist()
        return tuple(number for number in fitted if number not in NOT_IN_MPTRJ)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """All labels: CHGNet was fitted to energies, forces, stresses and magnetic moments."""
        return LABELS

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, relative to AtomRef; NaN if a bond lies outside of the inner slots."""
        energies, _ = self._apply(graph)
        return energies

    def magnetic_moments(self, graph: Graph) -> PerAtom:
        """Magnitude of each atom's magnetic moment in μB; 0 for padding atoms."""
        _, moments = self._apply(graph)
        return moments

    def _apply(self, graph: Graph) -> tuple[PerAtom, PerAtom]:
        """Atomic energies and magnetic moments, 0 for padding atoms."""
        # Numpy leaves of the host cannot be indexed by what a transformation traces.
        params, graph = jax.tree.map(jnp.asarray, (self.params, graph))
        vectors, _ = edge_vectors(graph)
        inner = min(graph.inner, graph.n_slots)
        reverse = reverse_slots(graph.neighbors[:, :inner], graph.shifts[:, :inner])
        outputs = CHGNetNetwork(self.form).apply(params, graph.species, vectors, graph.neighbors, reverse)
        # The bond graph would silently lack a bond that has moved outside of the inner slots.
        missed = jnp.any(jnp.sum(vectors[:, inner:] ** 2, axis=-1) < (BOND_CUTOFF - MISSED) ** 2, axis=1)
        energies, moments = (
            jnp.where(graph.atom_mask, jnp.where(missed, jnp.nan, x), 0.0) for x in cast(tuple[Array, Array], outputs)
        )
        return energies, moments


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
        params = _converted(weights)
        atom_ref = weights["composition_model.fc.weight"][0].astype(np.float64)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is a checkpoint, but not of CHGNet 0.3.0 or r2SCAN: it lacks {error}.") from error
    expected: dict[str, Any] = flatten_dict(jax.eval_shape(_initial_params), sep=".")
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


def reverse_slots(
    neighbors: Int[AnyArray, "atoms inner"], shifts: Int[AnyArray, "atoms inner 3"]
) -> Int[Array, "atoms inner"]:
    """Where each bond is found among the slots of its other end.

    Returns:
        Index into the flattened slots of the bond j → i, shift −S, for the bond i → j, shift S, also if j is an image
        of i itself; one past the last slot if it is not there (an empty slot, or a bond beyond the inner cutoff).
    """
    atoms, inner = neighbors.shape
    here = jnp.arange(atoms)[:, None, None]
    back = jnp.all(jnp.asarray(shifts)[neighbors] == -shifts[:, :, None], axis=-1)
    match = back & (jnp.asarray(neighbors)[neighbors] == here) & (neighbors != GHOST)[:, :, None]
    slot = jnp.argmax(match, axis=-1) if inner else jnp.zeros((atoms, 0), jnp.int32)
    return jnp.where(match.any(axis=-1), neighbors * inner + slot, atoms * inner)


def _initial_params() -> Mapping:
    """The network's parameters before training, whose shapes a checkpoint must have."""
    vectors, slots = jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32)
    variables = CHGNetNetwork().init(jax.random.key(0), jnp.ones(1, jnp.int32), vectors, slots, slots[:, :1])
    return variables["params"]


def _converted(weights: Mapping[str, np.ndarray]) -> dict:
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
