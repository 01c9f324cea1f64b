"""Converted MACE models against mace-torch's own numbers.

Compilation is what takes time here: every model is compiled once for one batch of all structures.
"""

import functools
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials import mace_checkpoint
from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.files import load, read_header, save
from jaxmlip.potentials.mace import from_mace
from jaxmlip.potentials.mace_checkpoint import read_mace, unpack, write_extracted
from jaxmlip.potentials.potential import Prediction, evaluate, reference_energy
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms

REFERENCE = Path(__file__).parent / "data" / "mace_reference.npz"
CONTENT = dict(np.load(REFERENCE))
NAMES = json.loads(str(CONTENT["names"]))
CASES = NAMES["cases"]
HEADS = next(case for case in CASES if "two heads" in case)
SCALARS = "ScaleShiftMACE, scalars, order 2"


def extracted(case: str) -> dict[str, Any]:
    """What was taken out of a model, as `extract` gives it."""
    prefix = f"case {CASES.index(case)}/model/"
    return unpack({key.removeprefix(prefix): x for key, x in CONTENT.items() if key.startswith(prefix)})


def structures() -> list[Atoms]:
    """In the order of the file."""
    made = []
    for s in range(len(NAMES["structures"])):
        cell = CONTENT[f"{s}/cell"]
        made.append(Atoms(CONTENT[f"{s}/numbers"], CONTENT[f"{s}/positions"], cell=cell, pbc=cell.any(axis=1)))
    return made


def batch(made: list[Atoms], dtype: type) -> Graph:
    """All structures in one graph, of the same shape every time."""
    return batch_graphs([graph_from_atoms(atoms, 3.4, dtype=dtype) for atoms in made], slots=64)


@jax.jit
def everything(potential: EquivariantPotential, graph: Graph) -> Prediction:
    return evaluate(potential, graph, stress=True)


@functools.cache
def converted(case: str, head: str | None = None) -> EquivariantPotential:
    return from_mace(extracted(case), head)


def compare(
    potential: EquivariantPotential, made: list[Atoms], wanted: list[dict], dtype: type, tolerances: dict[str, float]
) -> None:
    """Energy per atom, forces and stress; tolerances absolute, plus relative to the largest number of the structure."""
    graph = batch(made, dtype)
    prediction = jax.tree.map(np.asarray, everything(potential, graph))
    assert prediction.forces.dtype == dtype
    for s, (atoms, right) in enumerate(zip(made, wanted, strict=True)):
        references = reference_energy(potential, atoms.numbers)
        found = {
            "energy": prediction.energy[s] / len(atoms),
            "forces": prediction.forces[graph.owner == s],
            "stress": prediction.stress[s],
        }
        right = {**right, "energy": (right["energy"] - references) / len(atoms)}
        for key, value in right.items():
            atol = tolerances[key] + tolerances["relative"] * np.abs(value).max()
            np.testing.assert_allclose(found[key], value, rtol=0, atol=atol, err_msg=f"{key} of structure {s}")


def reference(case: str, head: str) -> list[dict[str, np.ndarray]]:
    prefix = f"case {CASES.index(case)}/{head}/"
    return [
        {
            key: CONTENT[f"{prefix}{s}/{key}"]
            for key in ("energy", "forces", "stress")
            if f"{prefix}{s}/{key}" in CONTENT
        }
        for s in range(len(NAMES["structures"]))
    ]


EXACT = {"energy": 1e-8, "forces": 1e-7, "stress": 1e-8, "relative": 0.0}
SINGLE = {"energy": 1e-5, "forces": 1e-5, "stress": 1e-5, "relative": 1e-5}


ALWAYS = (SCALARS, HEADS, "ScaleShiftMACE, tensors")
"""Scalar, vector and tensor messages, with all that models may have beside them."""


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in ALWAYS)) for c in CASES])
def test_gives_the_numbers_of_mace_torch(case: str) -> None:
    """Energy within 1e-8 eV/atom, forces 1e-7 eV/Å, stress 1e-8 eV/Å³, of every head, in float64."""
    for head in extracted(case)["heads"]:
        compare(converted(case, head), structures(), reference(case, head), np.float64, EXACT)


def test_single_precision() -> None:
    """The same in float32, within 1e-5."""
    compare(converted(HEADS, "low"), structures(), reference(HEADS, "low"), np.float32, SINGLE)


def test_what_the_reference_covers() -> None:
    """Everything that is to be converted is in the file, and the numbers in it mean something."""
    models = [extracted(case) for case in CASES]
    for name, values in {
        "class": {"MACE", "ScaleShiftMACE"},
        "message_l": {0, 1, 2},
        "l_max": {2, 3},
        "correlation": {1, 2, 3, 4},
        "layers": {1, 2, 3},
        "distance_transform": {"none", "agnesi"},
        "repulsion": {True, False},
        "first_interaction": {"residual", "agnostic"},
    }.items():
        assert {model[name] for model in models} == values, name
    assert all(model["precision"] == "float64" for model in models if model["correlation"] > 1)
    for case in CASES:
        assert max(np.abs(said["forces"]).max() for said in reference(case, extracted(case)["heads"][0])) > 0.1, case


def test_a_converted_potential_survives_a_file(tmp_path: Path) -> None:
    """Saved and loaded it is the same in every bit."""
    potential = converted(SCALARS)
    save(potential, tmp_path / "converted.jaxmlip")
    again = load(tmp_path / "converted.jaxmlip")
    assert isinstance(again, EquivariantPotential)
    assert jax.tree.structure(again) == jax.tree.structure(potential)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(potential), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float64


def test_heads_are_chosen_by_name_or_number() -> None:
    """Without a choice, or with an unknown one, the message lists them."""
    model = extracted(HEADS)
    low, high = from_mace(model, "low"), from_mace(model, 1)
    assert low.scale == pytest.approx([0.7])
    assert high.shift == pytest.approx([0.4])
    assert high.repulsion == pytest.approx([1.3])
    np.testing.assert_array_equal(high.references[[1, 6, 7, 8, 9]], model["atomic_energies"][1])
    with pytest.raises(ValueError, match=re.escape("The model has 2 heads (0: low, 1: high); choose one of them.")):
        from_mace(model)
    for head in ("middle", 2):
        with pytest.raises(ValueError, match=re.escape(f"There is no head {head!r}; the model has 0: low, 1: high.")):
            from_mace(model, head)


def test_order_of_the_elements_does_not_matter() -> None:
    """A model that counts its elements in another order gives the same potential."""
    model, order = extracted(SCALARS), [2, 0, 1]
    for key, value in model.items():
        if re.search(r"\.(weights|skip)\.", key):
            model[key] = value[order] if "weights" in key else value[:, order]
    model["embedding"], model["atomic_energies"] = model["embedding"][order], model["atomic_energies"][:, order]
    model["atomic_numbers"] = [model["atomic_numbers"][place] for place in order]
    again, potential = from_mace(model), converted(SCALARS)
    assert again.known == potential.known
    jax.tree.map(np.testing.assert_array_equal, again, potential)


def test_choice_of_the_paths_does_not_matter() -> None:
    """Paths that are mixed, with weights to match, make the same polynomials; other polynomials are refused."""
    model, draw = extracted(SCALARS), np.random.default_rng(0)
    coefficients = model["0.coefficients.0.2"]
    mixing = draw.standard_normal(2 * coefficients.shape[1:])
    model["0.coefficients.0.2"] = coefficients @ mixing
    model["0.weights.0.2"] = np.linalg.inv(mixing) @ model["0.weights.0.2"]
    again, potential = from_mace(model), converted(SCALARS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), again.params, potential.params)
    model["0.coefficients.0.2"][1] += 0.1
    with pytest.raises(ValueError, match=r"products of order 2 with output l = 0 are not polynomials of the network"):
        from_mace(model)


def test_command(tmp_path: Path) -> None:
    """`jaxmlip convert-mace`, from an extracted model, with provenance; mistakes are one sentence."""
    source, out = tmp_path / "two.npz", tmp_path / "high.jaxmlip"
    write_extracted(extracted(HEADS), source)
    run = CliRunner().invoke(app, ["convert-mace", str(source), str(out), "--head", "high"])
    assert run.exit_code == 0, run.output
    assert "5 elements, cutoff 3.4 Å" in run.output
    jax.tree.map(np.testing.assert_array_equal, load(out), converted(HEADS, "high"))
    origin = read_header(out)["provenance"]["converted from"]
    assert origin == {"file": "two.npz", "class": "ScaleShiftMACE", "mace-torch": "0.3.16", "head": "high"}
    run = CliRunner().invoke(app, ["convert-mace", str(source), str(out)])
    assert run.exit_code == 1
    assert "Error: The model has 2 heads (0: low, 1: high); choose one of them." in run.output


def test_files_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, truncated and foreign files, and files that need mace-torch where it is not installed."""
    with pytest.raises(FileNotFoundError, match=r"There is no model .*none\.model\."):
        read_mace(tmp_path / "none.model")
    whole = tmp_path / "whole.npz"
    write_extracted(extracted(SCALARS), whole)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:5000])
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    for name in ("cut.npz", "foreign.npz"):
        with pytest.raises(ValueError, match=rf"{name} is no extracted MACE model, or is truncated: .*\.$"):
            read_mace(tmp_path / name)
    with pytest.raises(ValueError, match=r"are written to \.npz files, and .*x\.zip is none by its name"):
        write_extracted(extracted(SCALARS), tmp_path / "x.zip")
    monkeypatch.setattr(mace_checkpoint.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "some.model").write_bytes(b"anything")
    with pytest.raises(ModuleNotFoundError, match=r"some\.model can be read only with mace-torch.*`pip install mace-"):
        read_mace(tmp_path / "some.model")


def instance(name: str, **fields: Any) -> Any:
    """An object of a class of that name."""
    return type(name, (), fields)()


def pretended(**fields: Any) -> Any:
    """As much of a model as is looked at before its weights."""
    radial = instance("RadialEmbeddingBlock", bessel_fn=instance("BesselBasis"), cutoff_fn=instance("PolynomialCutoff"))
    first = instance("RealAgnosticResidualInteractionBlock", node_feats_irreps="4x0e")
    defaults = {"radial_embedding": radial, "interactions": [first], "named_modules": lambda *_: []}
    return instance("MACE", **defaults | fields)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (instance("AtomicDipolesMACE"), "The model is a AtomicDipolesMACE; only MACE and ScaleShiftMACE"),
        (pretended(joint_embedding=1), "has joint embeddings (embedding_specs), which jaxmlip's network cannot repres"),
        (pretended(apply_cutoff=False), "has apply_cutoff=False, which"),
        (pretended(use_so3=True), "has use_so3, which"),
        (pretended(use_agnostic_product=True), "has use_agnostic_product, which"),
        (pretended(use_last_readout_only=True), "has use_last_readout_only, which"),
        (pretended(edge_irreps="2x0e"), "has edge_irreps, which"),
        (pretended(named_modules=lambda *_: [("up", instance("LoRAO3Linear"))]), "has LoRA weights (up)"),
        (
            pretended(named_modules=lambda *_: [("up", instance("X", original_forward=1))]),
            "convert it back to e3nn first",
        ),
        (
            pretended(radial_embedding=instance("R", bessel_fn=instance("GaussianBasis"), cutoff_fn=0)),
            "has the block GaussianBasis where BesselBasis is known",
        ),
        (
            pretended(interactions=[instance("RealAgnosticDensityInteractionBlock")]),
            "has the block RealAgnosticDensityInteractionBlock where RealAgnosticResidualInteractionBlock or Real",
        ),
    ],
)
def test_models_that_cannot_be_converted(model: Any, reason: str) -> None:
    """The message names what the network has no counterpart for."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        mace_checkpoint.extract(model)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that made the reference, where mace-torch is at hand."""
    pytest.importorskip("torch", reason="the live comparison needs torch")
    pytest.importorskip("mace", reason="the live comparison needs mace-torch")
    spec = importlib.util.spec_from_file_location(
        "make_mace_reference", REFERENCE.parents[1] / "make_mace_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("x64")
def test_gives_the_numbers_of_mace_torch_live(maker: ModuleType, tmp_path: Path) -> None:
    """Other weights and displaced structures, through a file of mace-torch."""
    import torch  # pyright: ignore[reportMissingImports]

    made = structures()
    for seed, atoms in enumerate(made):
        atoms.rattle(0.02, seed=seed)
    model = maker.build(**maker.CASES[HEADS], seed=100)
    torch.save(model, tmp_path / "live.model")
    potential = from_mace(read_mace(tmp_path / "live.model"), "high")
    compare(potential, made, [maker.say(model, atoms, "high") for atoms in made], np.float64, EXACT)
    (tmp_path / "cut.model").write_bytes((tmp_path / "live.model").read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"cut\.model is no model saved by torch\.save\(model\), or is truncated: "):
        read_mace(tmp_path / "cut.model")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: The model is a OrderedDict; only MACE"):
        read_mace(tmp_path / "weights.pt")


@pytest.mark.usefixtures("x64")
def test_a_float32_model_live(maker: ModuleType) -> None:
    """Its couplings are rounded, which the conversion allows for."""
    import torch  # pyright: ignore[reportMissingImports]

    model = maker.build(**maker.CASES[SCALARS], seed=101).float()
    taken = mace_checkpoint.extract(model)
    assert taken["precision"] == "float32"
    assert taken["cutoff"] == 3.4
    said = [maker.say(model.double(), atoms, "Default") for atoms in structures()]
    compare(from_mace(taken), structures(), said, np.float64, SINGLE)
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "MACE", "gate": "tanh"}, "an activation other than silu in the last readout"),
        ({"radial_type": "gaussian"}, "the block GaussianBasis"),
        ({"transform": "Soft"}, "the block SoftTransform"),
        ({"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"}, "the block RealAgnosticDensityResidual"),
        ({"interaction_cls": "RealAgnosticInteractionBlock"}, "the block RealAgnosticInteractionBlock where"),
        ({"interaction_cls_first": "RealAgnosticDensityInteractionBlock"}, "the block RealAgnosticDensityInteraction"),
        ({"apply_cutoff": False}, "apply_cutoff"),
        ({"use_so3": True, "hidden_irreps": "4x0e+4x1e"}, "use_so3"),
        ({"use_agnostic_product": True}, "use_agnostic_product"),
        ({"use_last_readout_only": True}, "use_last_readout_only"),
        ({"hidden": 1, "keep_last_layer_irreps": True}, "keep_last_layer_irreps"),
        ({"hidden": 1, "edge_irreps": "2x0e+2x1o"}, "edge_irreps"),
        ({"hidden_irreps": "4x0e+2x1o"}, "unequal numbers of channels"),
        ({"hidden_irreps": "4x0e+4x1e"}, "unnatural parity (1e)"),
        ({"hidden_irreps": "4x0e+4x2e"}, "other than all of l = 0, 1, …"),
        ({"l_max": 1, "hidden": 2}, "hidden_irreps up to l = 2, more than max_ell = 1"),
        ({"order": [2, 3]}, "a different correlation in each layer (2, 3)"),
    ],
)
def test_models_that_cannot_be_converted_live(maker: ModuleType, changes: dict, reason: str) -> None:
    """Real models of the kinds that are refused."""
    import torch  # pyright: ignore[reportMissingImports]
    from e3nn import o3  # pyright: ignore[reportMissingImports]
    from mace.modules import interaction_classes  # pyright: ignore[reportMissingImports]

    read = {
        "gate": lambda name: getattr(torch, name),
        "interaction_cls": interaction_classes.get,
        "interaction_cls_first": interaction_classes.get,
        "hidden_irreps": o3.Irreps,
        "edge_irreps": o3.Irreps,
    }
    options = {key: read.get(key, lambda value: value)(value) for key, value in changes.items()}
    model = maker.build(**{"hidden": 0, "l_max": 2, "order": 2} | options)
    with pytest.raises(ValueError, match=re.escape(reason)):
        mace_checkpoint.extract(model)
