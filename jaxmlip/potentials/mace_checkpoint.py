"""Takes a MACE model of mace-torch apart, into plain values and numpy arrays.

Runs wherever mace-torch does, with nothing but numpy and torch besides. What it gives, `jaxmlip.potentials.mace` turns
into a potential, in the same environment or, by way of a file, in another:

    python -m jaxmlip.potentials.mace_checkpoint MODEL OUT.npz

The names and meaning of everything extracted are those of ACEsuit/mace 0.3. A model that jaxmlip's network cannot
represent exactly is refused by name.
"""

import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = "settings"
"""Name of the array that holds everything extracted that is no array, as JSON."""

FIRST_INTERACTIONS = {
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticInteractionBlock": "agnostic",
}

AGNESI = {"a": 1.0805, "q": 0.9183, "p": 4.5791}
ZBL = {"a_exp": 0.3, "a_prefactor": 0.4543}
ZBL_AMPLITUDES = (0.1818, 0.5099, 0.2802, 0.02817)


def read_mace(path: str | Path) -> dict[str, Any]:
    """What `extract` gives of a model in a file.

    A file of mace-torch is a pickle, which can run any code when it is loaded: read only files you trust. A `.npz`
    file of `write_extracted` holds numbers alone and needs neither torch nor mace-torch.

    Args:
        path: a model saved by `torch.save(model)`, as mace-torch does, or the `.npz` of `write_extracted`.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if mace-torch is needed and not installed.
        ValueError: if the file holds no MACE model, is truncated, or the model is one that cannot be converted.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no model {path}.")
    if path.suffix == ".npz":
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
                return unpack({key: content[key] for key in content.files})
        except (zipfile.BadZipFile, EOFError, zlib.error, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path} is no extracted MACE model, or is truncated: {_sentence(error)}.") from error
    missing = [package for module, package in (("torch", "torch"), ("mace", "mace-torch")) if not _installed(module)]
    if missing:
        raise ModuleNotFoundError(
            f"{path} can be read only with mace-torch, and {' and '.join(missing)} cannot be found: "
            "`pip install mace-torch`, or run `python -m jaxmlip.potentials.mace_checkpoint MODEL OUT.npz` where it is "
            "installed and convert the OUT.npz here."
        )
    import mace  # noqa: F401 # pyright: ignore[reportMissingImports]  (lets its e3nn load with newer versions of torch)
    import torch  # pyright: ignore[reportMissingImports]

    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may fail in any way
        raise ValueError(
            f"{path} is no model saved by torch.save(model), or is truncated: {_sentence(error)}."
        ) from error
    try:
        return extract(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_extracted(extracted: Mapping[str, Any], path: str | Path) -> None:
    """Write what `extract` gave to a `.npz` file, which `read_mace` reads anywhere.

    Raises:
        ValueError: if the name does not end in .npz.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Extracted models are written to .npz files, and {path} is none by its name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: there is no folder {path.parent}.")
    np.savez_compressed(path, **pack(extracted))


def pack(extracted: Mapping[str, Any]) -> dict[str, Any]:
    """What `extract` gives as arrays alone; all that is no array is JSON in one array of text."""
    arrays = {key: value for key, value in extracted.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in extracted.items() if key not in arrays}
    return {SETTINGS: np.array(json.dumps(plain)), **arrays}


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `pack`.

    Raises:
        ValueError: if the arrays are not those of an extracted model.
    """
    if SETTINGS not in arrays or arrays[SETTINGS].dtype.kind != "U":
        raise ValueError(f"there is no text named {SETTINGS}")
    plain = json.loads(str(arrays[SETTINGS]))
    if not isinstance(plain, dict) or "class" not in plain:
        raise ValueError(f"the text {SETTINGS} names no class of model")
    return plain | {key: value for key, value in arrays.items() if key != SETTINGS}


def extract(model: Any) -> dict[str, Any]:
    """Everything that defines a MACE model.

    Plain values: `class`, `version` of mace-torch, `atomic_numbers`, `heads` (names), `channels`, `l_max`, `message_l`,
    `correlation`, `layers`, `cutoff` (Å), `radial_functions`, `envelope_power`, `distance_transform`, `repulsion`,
    `first_interaction`, `radial_mlp`, `readout_hidden` (None without a non-linear readout), `average_neighbors`, and
    `precision`, the floating-point type that its couplings are exact in.

    Arrays, float64, with e = elements, h = heads, c = channels, and i counting layers:

    * `atomic_energies` [h, e], `scale` and `shift` [h], in eV; `embedding` [e, c]
    * `i.paths` [paths, 3], int: l of feature, harmonic and message
    * `i.up.l` [c, c]; `i.radial.k` [in, out], the last one [in, paths, c]; `i.mix` [paths, c, c]
    * `i.silu.k`: the factor that follows the activation of radial layer k
    * `i.skip.l` (residual) or `i.map.l` (agnostic) [c, e, c]
    * `i.linear.l` [c, c]; `i.weights.l.n` [e, paths, c]: of the products of order n with output l
    * `i.monomials.l.n` [monomials, 1 + n], int: the component m of the output, and the components of the factors in
      ascending order; `i.coefficients.l.n` [monomials, paths]: what a unit weight on each path adds to it
    * `i.readout` [c, h]; or `i.readout_1` [c, h, q], `i.readout_2` [h, q], where each head sees only its own hidden
      units, and `i.silu.readout`

    Args:
        model: a `MACE` or `ScaleShiftMACE` of mace-torch.

    Raises:
        ValueError: if the model is another, or one of its parts has no counterpart in jaxmlip; the message names it.
    """
    kind = type(model).__name__
    if kind not in ("MACE", "ScaleShiftMACE"):
        compiled = " (compiled: take the file it was compiled from)" if kind == "RecursiveScriptModule" else ""
        raise ValueError(
            f"The model is a {kind}{compiled}; only MACE and ScaleShiftMACE of mace-torch can be converted."
        )
    _check_options(model)
    found: dict[str, Any] = _sizes(model) | {"class": kind, "version": _version()}
    c, e, h = found["channels"], len(found["atomic_numbers"]), len(found["heads"])
    energies = np.atleast_2d(_array(model.atomic_energies_fn.atomic_energies))
    _refuse(energies.shape != (h, e), f"atomic energies of shape {energies.shape} for {h} heads and {e} elements")
    found["atomic_energies"] = energies
    for name, default in (("scale", 1.0), ("shift", 0.0)):
        value = _array(getattr(model.scale_shift, name)) if kind == "ScaleShiftMACE" else np.array(default)
        found[name] = np.broadcast_to(np.atleast_1d(value), (h,)).copy()
    (found["embedding"],) = _split(model.node_embedding.linear, [(e, c)], "the node embedding")
    return found | _layers(model, found)


def _sizes(model: Any) -> dict[str, Any]:
    """What the network is, but for what its layers say."""
    layers, interactions = int(model.num_interactions), list(model.interactions)
    c, l_in = _degrees(interactions[0].node_feats_irreps, "the node embedding")
    _refuse(l_in != 0, "a node embedding of more than scalars")
    l_max = _degrees(interactions[0].target_irreps, "the messages", c)[1]
    message_l = _degrees(interactions[1].node_feats_irreps, "hidden_irreps", c)[1] if layers > 1 else 0
    _refuse(l_max > 4, f"max_ell {l_max}, more than 4")
    _refuse(message_l > 2, f"hidden_irreps up to l = {message_l}, more than 2")
    _refuse(message_l > l_max, f"hidden_irreps up to l = {message_l}, more than max_ell = {l_max}")
    neighbors = {float(interaction.avg_num_neighbors) for interaction in interactions}
    _refuse(len(neighbors) > 1, "a different avg_num_neighbors in each layer")
    readouts = len(list(model.readouts))
    _refuse(readouts != layers, f"{readouts} readouts on {layers} layers (use_last_readout_only?)")
    numbers = [int(z) for z in model.atomic_numbers]
    return {
        "atomic_numbers": numbers,
        "heads": [str(head) for head in getattr(model, "heads", None) or ["Default"]],
        "channels": c,
        "l_max": l_max,
        "message_l": message_l,
        "layers": layers,
        "average_neighbors": neighbors.pop(),
        "radial_mlp": [int(width) for width in interactions[0].conv_tp_weights.hs[1:-1]],
        "first_interaction": FIRST_INTERACTIONS[type(interactions[0]).__name__],
        **_radial_settings(model, numbers),
    }


def _layers(model: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """The arrays of all layers, and what of the network's sizes these say."""
    layers, c, l_max, message_l = (sizes[name] for name in ("layers", "channels", "l_max", "message_l"))
    e, h = len(sizes["atomic_numbers"]), len(sizes["heads"])
    found: dict[str, Any] = {"readout_hidden": None}
    for i, parts in enumerate(zip(model.interactions, model.products, model.readouts, strict=True)):
        interaction, product, readout = parts
        l_in, l_out = message_l if i else 0, message_l if i < layers - 1 else 0
        part = _product(product, c, e, l_max, l_out) | _readout(readout, c, h, 0 < i == layers - 1)
        part |= _interaction(interaction, c, e, l_in, l_max, l_out)
        found |= {f"{i}.{name}": value for name, value in part.items()}
    widths = [found.pop(f"{i}.widths") for i in range(layers)]
    _refuse(any(width != widths[0] for width in widths), "a different radial_MLP in each layer")
    orders = {found.pop(f"{i}.correlation") for i in range(layers)}
    _refuse(len(orders) > 1, f"a different correlation in each layer ({', '.join(map(str, sorted(orders)))})")
    found["correlation"] = orders.pop()
    _refuse(found["correlation"] > 4, f"correlation {found['correlation']}, more than 4")
    exact = [found.pop(f"{i}.exact") for i in range(layers)]
    found["precision"] = "float64" if any(exact) else "float32"
    if f"{layers - 1}.readout_2" in found:
        found["readout_hidden"] = found[f"{layers - 1}.readout_2"].shape[1]
    return found


def _refuse(condition: bool, what: str) -> None:
    if condition:
        raise ValueError(f"The model has {what}, which jaxmlip's network cannot represent, so it cannot be converted.")


def _expect(module: Any, *classes: str) -> None:
    name = type(module).__name__
    _refuse(name not in classes, f"the block {name} where {' or '.join(classes)} is known")


def _check_options(model: Any) -> None:
    """Refuse what changes the equations. Attributes that older versions lack had no other choice then."""
    for name, module in model.named_modules():
        package = type(module).__module__.partition(".")[0]
        _refuse(type(module).__name__.startswith("LoRA"), f"LoRA weights ({name}) that are not merged into the others")
        if package.startswith(("cuequivariance", "openequivariance")) or hasattr(module, "original_forward"):
            raise ValueError(
                f"The model holds {name}, a block of an accelerated backend; convert it back to e3nn first, "
                "with mace-torch's own converters (mace.cli.convert_cueq_e3nn, mace.cli.convert_oeq_e3nn)."
            )
    _refuse(hasattr(model, "joint_embedding"), "joint embeddings (embedding_specs)")
    for place in (model, model.radial_embedding):
        _refuse(not getattr(place, "apply_cutoff", True), "apply_cutoff=False")
    for name in ("use_so3", "use_agnostic_product", "use_last_readout_only", "use_edge_irreps_first"):
        _refuse(bool(getattr(model, name, False)), name)
    _refuse(getattr(model, "edge_irreps", None) is not None, "edge_irreps")
    _expect(model.radial_embedding.bessel_fn, "BesselBasis")
    _expect(model.radial_embedding.cutoff_fn, "PolynomialCutoff")
    if hasattr(model.radial_embedding, "distance_transform"):
        _expect(model.radial_embedding.distance_transform, "AgnesiTransform")
    if hasattr(model, "pair_repulsion_fn"):
        _expect(model.pair_repulsion_fn, "ZBLBasis")
    interactions = list(model.interactions)
    _expect(interactions[0], *FIRST_INTERACTIONS)
    for interaction in interactions[1:]:
        _expect(interaction, "RealAgnosticResidualInteractionBlock")
    for interaction in interactions:
        edge = getattr(interaction, "edge_irreps", interaction.node_feats_irreps)
        _refuse(str(edge) != str(interaction.node_feats_irreps), "edge_irreps")


def _degrees(irreps: Any, where: str, channels: int | None = None) -> tuple[int, int]:
    """Number of channels and largest l of c × (0e + 1o + 2e + …)."""
    wrong = [str(ir) for _, ir in irreps if ir.p != (-1) ** ir.l]
    _refuse(bool(wrong), f"features of unnatural parity ({', '.join(wrong)}) in {where}")
    multiplicities = {int(mul) for mul, _ in irreps} | ({channels} if channels else set())
    _refuse(len(multiplicities) != 1, f"unequal numbers of channels ({irreps}) in {where}")
    degrees = [int(ir.l) for _, ir in irreps]
    _refuse(degrees != list(range(len(degrees))), f"irreps ({irreps}) other than all of l = 0, 1, … in {where}")
    return multiplicities.pop(), degrees[-1]


def _radial_settings(model: Any, numbers: Sequence[int]) -> dict[str, Any]:
    """Radial basis, cutoff, transform of the distances and nuclear repulsion."""
    embedding = model.radial_embedding
    basis, smooth = embedding.bessel_fn, embedding.cutoff_fn
    cutoff = _length(model.r_max)
    frequencies = _array(basis.bessel_weights)
    standard = np.arange(1, len(frequencies) + 1) * np.pi / cutoff
    _refuse(not np.allclose(frequencies, standard, rtol=1e-6, atol=0), "trained frequencies of the Bessel functions")
    _refuse(not math.isclose(_length(smooth.r_max), cutoff), "different cutoffs of basis and envelope")
    power = int(smooth.p)
    transform = getattr(embedding, "distance_transform", None)
    if transform is not None:
        _check_constants(transform, AGNESI, numbers, "the Agnesi transform")
    repulsion = hasattr(model, "pair_repulsion_fn")
    if repulsion:
        pairs = model.pair_repulsion_fn
        _check_constants(pairs, ZBL, numbers, "the ZBL repulsion")
        amplitudes = _array(pairs.c)
        same = amplitudes.shape == (4,) and np.allclose(amplitudes, ZBL_AMPLITUDES, rtol=1e-6, atol=0)
        _refuse(not same, "other amplitudes in the ZBL repulsion")
        _refuse(int(pairs.p) != power, "a ZBL envelope of another power than that of the radial basis")
    return {
        "cutoff": cutoff,
        "radial_functions": len(frequencies),
        "envelope_power": power,
        "distance_transform": "none" if transform is None else "agnesi",
        "repulsion": repulsion,
    }


def _check_constants(module: Any, constants: Mapping[str, float], numbers: Sequence[int], where: str) -> None:
    from ase.data import covalent_radii  # a dependency of mace-torch too

    for name, value in constants.items():
        found = float(getattr(module, name))
        _refuse(not math.isclose(found, value, rel_tol=1e-6), f"{name} = {found} instead of {value} in {where}")
    radii = _array(module.covalent_radii)[list(numbers)]
    _refuse(not np.allclose(radii, covalent_radii[list(numbers)], rtol=1e-6), f"other covalent radii in {where}")


def _interaction(block: Any, channels: int, elements: int, l_in: int, l_max: int, l_out: int) -> dict[str, Any]:
    """Weights of an interaction block; see `extract`."""
    c, e = channels, elements
    _degrees(block.edge_attrs_irreps, "the spherical harmonics", 1)
    _refuse(_degrees(block.target_irreps, "the messages", c)[1] != l_max, "messages of another l in each layer")
    _refuse(_degrees(block.node_feats_irreps, "hidden_irreps", c)[1] != l_in, "features of another l in each layer")
    first, harmonics, middle = (
        [int(ir.l) for _, ir in irreps]
        for irreps in (block.conv_tp.irreps_in1, block.conv_tp.irreps_in2, block.conv_tp.irreps_out)
    )
    paths = [(first[step.i_in1], harmonics[step.i_in2], middle[step.i_out]) for step in block.conv_tp.instructions]
    _refuse([path[2] for path in paths] != middle, "tensor-product paths in an unknown order")
    found: dict[str, Any] = {"paths": np.array(paths, np.int64)}
    for ell, up in enumerate(_split(block.linear_up, [(c, c)] * (l_in + 1), "linear_up")):
        found[f"up.{ell}"] = up

    network = block.conv_tp_weights
    _expect(network, "FullyConnectedNet")
    widths = [int(width) for width in network.hs]
    _refuse(len(widths) < 3, "a radial network without hidden layers")
    for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        step = getattr(network, f"layer{k}")
        shape = (inputs, outputs) if k < len(widths) - 2 else (inputs, len(paths), c)
        (found[f"radial.{k}"],) = _split(step, [shape], "the radial network")
        if k < len(widths) - 2:
            found[f"silu.{k}"] = np.array(_silu_factor(step.act, "the radial network"))
    found["widths"] = widths[1:-1]
    found["mix"] = np.stack(_split(block.linear, [(c, c)] * len(paths), "the linear map of the messages"))

    # The skip connection keeps what l features and output have in common; the agnostic map keeps every l.
    name, top = ("skip", min(l_in, l_out)) if "Residual" in type(block).__name__ else ("map", l_max)
    for ell, weight in enumerate(_split(block.skip_tp, [(c, e, c)] * (top + 1), "skip_tp")):
        found[f"{name}.{ell}"] = weight
    return found


def _product(block: Any, channels: int, elements: int, l_max: int, l_out: int) -> dict[str, Any]:
    """Weights of a product block; see `extract`."""
    c, e, components = channels, elements, (l_max + 1) ** 2
    _expect(block, "EquivariantProductBasisBlock")
    _refuse(bool(getattr(block, "use_agnostic_product", False)), "use_agnostic_product")
    _expect(block.symmetric_contractions, "SymmetricContraction")
    degree = _degrees(block.linear.irreps_out, "hidden_irreps", c)[1]
    _refuse(degree != l_out, f"a layer whose features reach l = {degree} instead of {l_out} (keep_last_layer_irreps?)")
    contractions = list(block.symmetric_contractions.contractions)
    orders = {int(contraction.correlation) for contraction in contractions}
    _refuse(len(orders) > 1, "a different correlation for each l")
    correlation = orders.pop()
    found: dict[str, Any] = {"correlation": correlation, "exact": False}
    for ell, linear in enumerate(_split(block.linear, [(c, c)] * (l_out + 1), "the linear map of the products")):
        found[f"linear.{ell}"] = linear
    for ell, contraction in enumerate(contractions):
        for order in range(1, correlation + 1):
            weights = contraction.weights_max if order == correlation else contraction.weights[correlation - order - 1]
            found[f"weights.{ell}.{order}"] = _array(weights)
            coupling = _array(getattr(contraction, f"U_matrix_{order}"))
            _refuse(coupling.size % ((2 * ell + 1) * components**order) != 0, "products of an unknown shape")
            found["exact"] |= not np.array_equal(coupling, coupling.astype(np.float32))
            monomials, coefficients = _symmetrised(coupling, ell, components, order)
            fits = found[f"weights.{ell}.{order}"].shape == (e, coefficients.shape[1], c)
            _refuse(not fits, "weights of the products of an unknown shape")
            found[f"monomials.{ell}.{order}"], found[f"coefficients.{ell}.{order}"] = monomials, coefficients
    return found


def _symmetrised(coupling: np.ndarray, ell: int, components: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """The monomials that a coupling makes of equal factors, and their coefficients on each path; see `extract`."""
    coupling = coupling.reshape(2 * ell + 1, components**order, -1)
    monomials, coefficients = [np.zeros((0, 1 + order), np.int64)], [np.zeros((0, coupling.shape[-1]))]
    for m, tensor in enumerate(coupling):
        rows = np.flatnonzero(tensor.any(axis=-1))
        factors = np.sort(np.stack(np.unravel_index(rows, (components,) * order), axis=-1), axis=-1)
        distinct, inverse = np.unique(factors, axis=0, return_inverse=True)
        sums = np.zeros((len(distinct), tensor.shape[-1]))
        np.add.at(sums, inverse.reshape(-1), tensor[rows])
        monomials.append(np.concatenate([np.full((len(distinct), 1), m), distinct], axis=1))
        coefficients.append(sums)
    return np.concatenate(monomials), np.concatenate(coefficients)


def _readout(block: Any, channels: int, heads: int, nonlinear: bool) -> dict[str, Any]:
    """Weights of a readout block; see `extract`."""
    c, h = channels, heads
    if not nonlinear:
        _expect(block, "LinearReadoutBlock")
        (weight,) = _split(block.linear, [(c, h)], "a readout")
        return {"readout": weight}
    _expect(block, "NonLinearReadoutBlock")
    hidden = _array(block.linear_1.weight).size // c
    _refuse(hidden % h != 0, f"{hidden} hidden units in the readout of {h} heads")
    q = hidden // h
    activations = list(block.non_linearity.acts)
    _refuse(len(activations) != 1, f"{len(activations)} activations in the last readout")
    (inner,) = _split(block.linear_1, [(c, h, q)], "the last readout")
    (outer,) = _split(block.linear_2, [(h, q, h)], "the last readout")
    return {
        "readout_1": inner,
        "readout_2": np.stack([outer[head, :, head] for head in range(h)]),
        "silu.readout": np.array(_silu_factor(activations[0], "the last readout (gate)")),
    }


def _silu_factor(activation: Any, where: str) -> float:
    """The factor c of an activation c · silu(x); any other is refused."""
    import torch  # pyright: ignore[reportMissingImports]

    _refuse(activation is None, f"no activation in {where}")
    x = np.linspace(-4.0, 4.0, 16)
    silu = x / (1.0 + np.exp(-x))
    y = _array(activation(torch.tensor(x)))
    factor = float(silu @ y / (silu @ silu))
    _refuse(not np.allclose(y, factor * silu, rtol=1e-6, atol=1e-6), f"an activation other than silu in {where}")
    return factor


def _split(module: Any, shapes: Sequence[tuple[int, ...]], where: str) -> list[np.ndarray]:
    """The flat weight of a module as arrays of the given shapes."""
    flat = _array(module.weight).reshape(-1)
    sizes = [math.prod(shape) for shape in shapes]
    _refuse(flat.size != sum(sizes), f"{flat.size} weights instead of {sum(sizes)} in {where}")
    bias = getattr(module, "bias", None)
    _refuse(bias is not None and _array(bias).size > 0, f"biases in {where}")
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _array(tensor: Any) -> np.ndarray:
    """A tensor as float64."""
    return tensor.detach().cpu().double().numpy().copy()


def _length(tensor: Any) -> float:
    """A scalar; of a float32 the shortest decimal number it stands for."""
    value = tensor.detach().cpu().numpy()
    return float(str(value[()])) if value.dtype == np.float32 else float(value)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version() -> str:
    try:
        return importlib.metadata.version("mace-torch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _sentence(error: Exception) -> str:
    """The first sentence of an error's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python -m jaxmlip.potentials.mace_checkpoint MODEL OUT.npz")
    try:
        write_extracted(read_mace(sys.argv[1]), sys.argv[2])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"Error: {error}")
