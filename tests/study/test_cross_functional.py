"""The study across functionals: numbers that are known, the whole of it in miniature, and files of two levels."""

import json
import shutil
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from matpes_entries import entry
from simple_potentials import LennardJones, lennard_jones

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential, save
from jaxmlip.study.config import load_config, resolve
from jaxmlip.study.cross_functional import resampling
from jaxmlip.study.cross_functional.config import METHODS, CrossFunctional
from jaxmlip.study.cross_functional.data import LEVELS, PARTS, prepare
from jaxmlip.study.cross_functional.errors import errors_of
from jaxmlip.study.cross_functional.phases import candidates, decomposition_energies, formation_energies, lowest
from jaxmlip.study.cross_functional.report import methods_table
from jaxmlip.study.cross_functional.resampling import Errors, crossing, measured
from jaxmlip.study.cross_functional.run import run_cross_functional, told
from jaxmlip.study.cross_functional.scales import energy_scales
from jaxmlip.study.cross_functional.summary import _stacked
from jaxmlip.study.registry import study_of
from jaxmlip.study.section import ConfigError
from jaxmlip.study.workers import Place, make_stage
from jaxmlip.study.workspace import Workspace
from jaxmlip.systems.compositions import composition
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.store import FrameStore

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "cross_functional"

MODEL = {"channels": 2, "layers": 1, "l_max": 0, "correlation": 1, "radial_mlp": [4], "cutoff": 3.2}

PROTOTYPES = ["bcc", "rocksalt", "fluorite", "antifluorite"]

ELEMENTS = {"Li": 3, "Na": 11, "K": 19, "Mg": 12, "O": 8, "F": 9, "Cl": 17}


def curves(sizes, exponent: float, factor: float, noise: int, structures: int = 60) -> list[Errors]:
    """Errors that fall as a power of the size, but for the noise of three seeds; two structures of each composition."""
    rng = np.random.default_rng(noise)
    names = tuple(f"X{number // 2}" for number in range(structures))
    hard = rng.gamma(4.0, 0.25, structures // 2).repeat(2)
    of_seed = np.exp(0.02 * rng.normal(size=(len(sizes), 3, 1)))
    return [
        Errors(factor * size**exponent * seeds * hard, np.ones(structures), names)
        for size, seeds in zip(sizes, of_seed, strict=True)
    ]


def test_slopes_and_crossings_are_those_of_the_curves():
    sizes = [10, 20, 40, 80, 160]
    scratch, transfer = curves(sizes, -0.6, 10.0, 7), curves(sizes, -0.3, 1.5, 8)
    for each, exponent in ((scratch, -0.6), (transfer, -0.3)):
        found = measured(each, resampling.slope(sizes))
        assert abs(found.value - exponent) < 4 * found.error < 0.1
        low, high = found.interval()
        assert low < exponent < high
    where = crossing(scratch, transfer, sizes)
    expected = np.log10((10.0 / 1.5) ** (1 / 0.3))  # 10 N^-0.6 = 1.5 N^-0.3
    assert where["log10_size"]["low"] < expected < where["log10_size"]["high"]
    assert where["share_of_draws"] > 0.95
    apart = crossing(scratch[:1] * 5, transfer, sizes)  # level, and above a curve that falls: the lines met before
    assert apart["log10_size"]["value"] is None
    assert apart["share_of_draws"] < 0.05
    gains = [measured([a, b], resampling.log_ratio) for a, b in zip(transfer, scratch, strict=True)]
    assert all(gain.interval()[0] > 0 for gain in gains)
    with pytest.raises(ValueError, match="two sizes"):
        resampling.slope([8])


def test_errors_are_those_of_the_mean_over_compositions_and_seeds():
    """Structures of a composition are one piece of evidence, and seeds another."""
    rng = np.random.default_rng(0)
    each = rng.exponential(size=200)
    names = tuple(f"X{number // 2}" for number in range(400))
    copies = Errors(each.repeat(2)[None], np.ones(400), names)
    found = measured([copies], resampling.mean)
    assert found.value == pytest.approx(each.mean())
    assert found.error == pytest.approx(each.std(ddof=1) / np.sqrt(200), rel=0.1)
    assert (found.seeds, found.compositions) == (1, 200)
    spread = Errors(copies.sums * np.array([[0.5], [1.0], [1.5]]), copies.counts, names)
    over_seeds = measured([spread], resampling.mean)
    seeds = 0.5 * each.mean() / np.sqrt(3)
    assert over_seeds.error == pytest.approx(np.hypot(seeds, found.error), rel=0.05)
    assert over_seeds.dof == pytest.approx(2, abs=0.2)  # those of three seeds, which are most of the variance
    few = measured([Errors(np.ones((1, 2)), np.ones(2), ("A", "B"))], resampling.mean)
    assert few.to_json()["error"] is None
    with pytest.raises(ValueError, match="same test structures"):
        measured([copies, Errors(np.ones((1, 2)), np.ones(2), ("A", "B"))], resampling.difference)


def labelled(atoms: Atoms, energy: float) -> Frame:
    return Frame(atoms, energy, np.zeros((len(atoms), 3)), np.zeros((3, 3)), {})


def test_scales_of_levels_that_differ_by_references_alone():
    """The same interactions: no more than noise while elements of one level are far from the other's, then all."""
    rng = np.random.default_rng(1)
    source, target = np.zeros(119), np.zeros(119)
    numbers = [*ELEMENTS.values()]
    source[numbers], target[numbers] = rng.normal(0, 5, 7), rng.normal(-15, 5, 7)
    pairs = []
    for _ in range(60):
        atoms = Atoms(numbers=rng.choice(numbers, 4), positions=3 * np.eye(4, 3), cell=[9, 9, 9], pbc=True)
        inside = float(rng.normal(-3, 0.5)) * 4
        pair = [labelled(atoms, inside + float(table[atoms.numbers].sum())) for table in (source, target)]
        pairs.append((pair[0], pair[1]))
    found = energy_scales(pairs, (source, target)).summary
    assert found["referenced"]["pearson"]["value"] == pytest.approx(1.0)
    assert abs(found["raw"]["pearson"]["value"]) < 0.6
    low, high = found["raw"]["pearson"]["interval"]
    assert low < found["raw"]["pearson"]["value"] < high
    assert found["raw"]["pearson"]["error"] == pytest.approx((high - low) / 4, rel=0.4)
    assert found["referenced"]["shift_eV_atom"]["value"] == pytest.approx(0.0, abs=1e-9)
    means = np.array([(target - source)[a.atoms.numbers].mean() for a, _ in pairs])
    assert found["raw"]["shift_eV_atom"]["value"] == pytest.approx(means.mean())
    assert found["exchanged"]["shift_eV_atom"]["value"] == pytest.approx(2 * means.mean())
    moved = np.abs([*found["elements"].values()])
    assert (np.diff(moved) <= 0).all()
    assert found["elements"]["Li"] == pytest.approx(target[3] - source[3])


@flax.struct.dataclass
class Spins(LennardJones):
    """Lennard-Jones, each atom with a moment of 1.5 μB."""

    @property
    def has_magnetic_moments(self) -> bool:
        return True

    def outputs(self, graph):
        energies = self.atomic_energies(graph)[:, None]
        return energies, jnp.where(jnp.asarray(graph.atom_mask)[:, None], 1.5, 0.0)


def test_magnetic_moments_where_they_are_predicted_and_labelled():
    """Magnitudes, of the atoms that have a label; a potential without them has no error, nor has a test of before."""
    frames = []
    for moments in ([1.0, -2.5], [np.nan, 1.5], None):
        frames.append(labelled(bulk("MnO", "rocksalt", a=4.4), -2.0))
        if moments is not None:
            frames[-1].atoms.set_array("magmoms", np.array(moments))
    lone = lennard_jones()
    spins, plain = errors_of(Spins(lone.params), frames), errors_of(lone, frames)
    assert spins["magmom"] == {"sums": [1.5, 0.0, 0.0], "counts": [2, 1, 0]}
    assert plain["magmom"] == {"sums": [0.0] * 3, "counts": [0] * 3}
    assert spins["energy"] == plain["energy"]
    found = {name: measured([each], resampling.mean).value for name, each in _stacked([spins]).items()}
    assert found["magmom"] == pytest.approx(0.5)
    before = {name: each for name, each in spins.items() if name != "magmom"}
    assert _stacked([before, spins]).keys() == _stacked([plain, plain]).keys() == {"energy", "force", "stress"}
    methods = {"a": {"target": {"energy_mae_meV_atom": {"value": 1.0}, "magmom_mae_muB": {"value": 0.5, "error": 0.1}}}}
    methods["b"] = {"target": {"energy_mae_meV_atom": {"value": 2.0}}}
    head, *rows = methods_table({"methods": methods})
    assert head[-1] == "magnetic moment μB"
    assert [row[-1] for row in rows] == ["0.500 ± 0.100", "–"]


def test_stability_by_hand():
    """LiO at −1 eV an atom, Li2O at −0.5: Li2O falls apart into LiO and Li, and LiO is held by 0.625."""
    phases = [
        labelled(Atoms("Li", cell=[3] * 3, pbc=True), -2.0),
        labelled(Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], cell=[9] * 3, pbc=True), -8.0),
        labelled(bulk("LiO", "rocksalt", a=4.2), -2.0 - 4.0 - 2.0),
        labelled(Atoms("Li2O", 2 * np.eye(3), cell=[4] * 3, pbc=True), -4.0 - 4.0 - 1.5),
    ]
    np.testing.assert_allclose(formation_energies(phases), [0, 0, -1.0, -0.5], atol=1e-12)
    np.testing.assert_allclose(decomposition_energies(phases)[2:], [-0.625, 1 / 6], atol=1e-9)
    assert np.isnan(decomposition_energies(phases)[:2]).all()
    with pytest.raises(ValueError, match="without the elements O"):
        formation_energies([phases[0], phases[2]])
    worse = labelled(bulk("LiO", "zincblende", a=4.6), -7.0)
    assert lowest([worse, *phases]) == [phases[0], phases[1], phases[3], phases[2]]
    made = candidates(["MgO"], [*ELEMENTS], ["rocksalt"])
    assert {composition(atoms) for atoms in made} == {*ELEMENTS, "MgO"}
    assert {atoms.info["kind"] for atoms in made if "O" in atoms.symbols} == {"diatomic", "rocksalt"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two potentials of random parameters, which differ in their references and little else."""
    folder = tmp_path_factory.mktemp("teachers")
    rng = np.random.default_rng(5)
    for level, mean in (("source", -3.0), ("target", -12.0)):
        references = np.zeros(119)
        references[[*ELEMENTS.values()]] = rng.normal(mean, 4.0, len(ELEMENTS))
        model = Equivariant.model_validate(MODEL)
        made = model.build([*ELEMENTS.values()], average_neighbors=10.0, references=references, scale=0.3, seed=3)
        save(made, folder / f"{level}.jaxmlip")
    return folder


def content(teachers, **changes):
    short = {"steps": 4, "validations": 1, "batch_size": 8, "tiers": 1}
    return {
        "study": "cross_functional",
        "seeds": [0],
        "source": str(teachers / "source.jaxmlip"),
        "target": str(teachers / "target.jaxmlip"),
        "structures": {
            "number": 36,
            "elements": [*ELEMENTS],
            "prototypes": ["bcc", "rocksalt", "fluorite", "antifluorite"],
        },
        "validation_fraction": 0.2,
        "test_fraction": 0.3,
        "architectures": {"tiny": MODEL},
        "sizes": [16, 8],
        "pretraining": short,
        "finetuning": short,
    } | changes


def configured(teachers, **changes) -> CrossFunctional:
    config = resolve(content(teachers, **changes), "miniature")
    assert isinstance(config, CrossFunctional)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cross") / "run"


@pytest.fixture(scope="module")
def summary(teachers, folder):
    return run_cross_functional(configured(teachers), folder, progress=False)


def made(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "stages").rglob("*") if path.is_file()}


def test_all_that_machines_read(summary, folder):
    assert json.loads((folder / "summary.json").read_text()) == summary
    for way in ("raw", "referenced"):
        assert {"value", "error"} <= summary["energy_scales"][way]["pearson"].keys()
    assert summary["energy_scales"]["raw"]["shift_eV_atom"]["value"] < -3
    assert [*summary["methods"]["tiny"]] == [*METHODS]
    for errors in summary["methods"]["tiny"].values():
        for name in ("energy_mae_meV_atom", "force_mae_meV_A", "stress_mae_GPa", "formation_energy_mae_meV_atom"):
            assert errors[name]["value"] > 0
            assert errors[name]["seeds"] == 1
    for way in ("scratch", "transfer"):
        for quantity in ("energy", "force"):
            assert np.isfinite(summary["scaling"]["tiny"][way][f"{quantity}_slope"]["value"])
    assert {"source", "target"} == summary["multi_fidelity"]["tiny"].keys()
    assert summary["reverse"]["tiny"]["transfer"]["energy_mae_meV_atom"]["value"] > 0
    # Elements of the levels are electronvolts apart, and four steps do not make up for them.
    methods = {name: one["energy_mae_meV_atom"]["value"] for name, one in summary["methods"]["tiny"].items()}
    assert methods["source_frozen"] > 3 * methods["target"]
    page = (folder / "report.html").read_text()
    assert "tiny, source_frozen: " in page
    assert "What cannot be concluded" in page
    assert "residual" in told(summary, folder)


def test_errors_are_those_of_the_potentials(summary, folder):
    frames = [*FrameStore(folder / "stages" / "labels-target" / "test.h5")]
    potential = load_potential(folder / "stages" / "forward-tiny-residual-16-0" / "potential.jaxmlip")
    said = predict(potential, [frame.atoms for frame in frames], stress=True)
    errors = summary["methods"]["tiny"]["residual"]
    mean = np.mean([abs(a.energy - b.energy) / len(a.atoms) for a, b in zip(said, frames, strict=True)])
    assert errors["energy_mae_meV_atom"]["value"] == pytest.approx(1e3 * mean, rel=1e-5)
    forces = np.concatenate([np.abs(a.forces - b.forces).ravel() for a, b in zip(said, frames, strict=True)])
    assert errors["force_mae_meV_A"]["value"] == pytest.approx(1e3 * forces.mean(), rel=1e-5)
    assert compare(frames, said).energy_frames == summary["structures"]["target"]["test"]
    source = load_potential(folder / "stages" / "forward-tiny-multi_fidelity-16-0" / "source.jaxmlip")
    level = np.load(folder / "stages" / "labels-source" / "references.npy")
    np.testing.assert_array_equal(source.references, level)


def test_no_composition_is_on_both_sides(summary, folder):
    del summary
    names = {}
    for level in LEVELS:
        for part in PARTS:
            frames = FrameStore(folder / "stages" / f"labels-{level}" / f"{part}.h5")
            names[level, part] = {composition(frame.atoms) for frame in frames}
    assert names["source", "test"] == names["target", "test"]
    for level in LEVELS:
        assert not names[level, "test"] & (names[level, "train"] | names[level, "validation"])
        assert not names[level, "train"] & names[level, "validation"]
        assert names[level, "train"] >= {*ELEMENTS}


def test_a_second_run_does_no_work_and_a_killed_one_goes_on(summary, teachers, folder, capsys):
    before = made(folder)
    assert run_cross_functional(configured(teachers), folder) == summary
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.endswith("kept from an earlier run") for line in lines)
    assert made(folder) == before
    # As if the run had been killed in its last training.
    for name in ("reverse-tiny-target-16-0", "test-reverse-tiny-target-16-0", "report"):
        (folder / "stages" / name / "stage.json").unlink()
    again = run_cross_functional(configured(teachers), folder)
    lines = capsys.readouterr().out.splitlines()
    redone = {line.split(":")[0] for line in lines if "kept" not in line and not line.endswith("...")}
    assert redone == {"reverse-tiny-target-16-0", "test-reverse-tiny-target-16-0", "report"}
    for key in ("methods", "scaling", "reverse", "energy_scales"):
        assert again[key] == summary[key]


def test_plans_and_workers_know_the_stages_that_were_made(summary, teachers, folder, tmp_path):
    """The plan has their digests, and a worker makes one of them as the whole run does, to the bit."""
    config = configured(teachers)
    planned = study_of(config).plan(config, folder).stages
    assert planned is not None
    keys = {path.parent.name: json.loads(path.read_text())["key"] for path in folder.glob("stages/*/stage.json")}
    del keys["report"]
    assert {stage.name: stage.key for stage in planned} == keys
    assert all(stage.done for stage in planned)
    name = "reverse-tiny-target-16-0"
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages" / name)
    make_stage(config, Place(tmp_path / "run", Path.cwd()), name)
    one, other = (load_potential(where / "stages" / name / "potential.jaxmlip") for where in (folder, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_labels_in_pieces_are_those_of_one_process(summary, teachers, folder, tmp_path):
    """To rounding, in the same order and with all that the structures carry."""
    config = configured(teachers, workers={"number": 2, "structures_at_once": 13})
    data = prepare(config, Workspace(tmp_path / "run", report=lambda line: None))
    assert len([*(tmp_path / "run" / "stages").glob("labels-target.*")]) == 3
    for part in PARTS:
        whole = FrameStore(folder / "stages" / "labels-target" / f"{part}.h5")
        for one, other in zip(data.frames("target", part), whole, strict=True):
            assert one.info["structure"] == other.info["structure"]
            assert one.energy == pytest.approx(other.energy, abs=1e-4)
            np.testing.assert_allclose(one.forces, other.forces, atol=1e-4)
            np.testing.assert_allclose(one.stress, other.stress, atol=1e-5)


def test_mistakes_are_named_before_anything_is_trained(teachers, tmp_path):
    with pytest.raises(ConfigError, match="sizes asks for 500 target structures to train on, but there are"):
        run_cross_functional(configured(teachers, sizes=[500]), tmp_path / "large", progress=False)
    wrong = {"number": 30, "elements": ["Li", "Fe"]}
    with pytest.raises(ConfigError, match=r"source\.jaxmlip does not know Fe; leave it out"):
        run_cross_functional(configured(teachers, structures=wrong), tmp_path / "iron", progress=False)
    with pytest.raises(ConfigError, match=r"sizes: .*more than once"):
        configured(teachers, sizes=[8, 8])
    with pytest.raises(ConfigError, match="leave 15% of the structures"):
        configured(teachers, validation_fraction=0.4, test_fraction=0.45)


@pytest.mark.parametrize("name", ["quick", "desk", "full"])
def test_configurations_of_the_experiment(name):
    config = load_config(EXPERIMENTS / f"{name}.yaml")
    assert isinstance(config, CrossFunctional)
    assert {"student", "nequip_like", *([] if name == "quick" else ["chgnet"])} == config.architectures.keys()
    assert len(config.sizes) >= (3 if name == "quick" else 5)
    assert (config.files is not None) == (name == "full")


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Two files of the MatPES layout: the target lacks some structures, and has one that cannot be used."""
    folder = tmp_path_factory.mktemp("levels")
    metals, others = ("Li", "Na", "K", "Rb"), ("F", "Cl", "Br", "I")
    crystals = [bulk(f"{m}{x}", "rocksalt", a=5.0 + 0.05 * k) for m in metals for x in others for k in range(3)]
    crystals += [bulk(m, "bcc", a=4.2) for m in metals]
    for level, shift in (("source", -2.0), ("target", -7.0)):
        entries = [entry(k, a, len(a) * shift - 0.1 * k) for k, a in enumerate(crystals)]
        if level == "target":
            entries = entries[4:]
            entries[1]["forces"] = [[0.0, 0.0, 0.0]]
        (folder / f"{level}.json").write_text(json.dumps(entries))
    lone = [entry(k, Atoms(m, cell=[20] * 3, pbc=True), -1.5) for k, m in enumerate([*metals, *others])]
    (folder / "atoms.json").write_text(json.dumps(lone))
    return folder


def test_files_of_two_levels_by_one_key(teachers, levels, tmp_path, monkeypatch):
    monkeypatch.setenv("LEVELS", str(levels))
    files = {"source": "${LEVELS}/source.json", "target": "${LEVELS}/target.json"}
    files["target_atoms"] = "${LEVELS}/atoms.json"
    said: list[str] = []
    config = configured(teachers, files=files, sizes=[16])
    data = prepare(config, Workspace(tmp_path / "files", report=said.append))
    assert any("1 entries left out, 47 used" in line for line in said)
    pairs = data.pairs()
    assert len(pairs) == 47
    assert all(a.info["matpes_id"] == b.info["matpes_id"] for a, b in pairs)
    np.testing.assert_allclose([(b.energy - a.energy) / len(a.atoms) for a, b in pairs], -5.0)
    names = {
        (level, part): {composition(frame.atoms) for frame in data.frames(level, part)}
        for level in LEVELS
        for part in PARTS
    }
    for level in LEVELS:
        assert not names[level, "test"] & (names["source", "train"] | names["target", "train"])
    np.testing.assert_allclose(data.references("target")[[3, 9, 37, 53]], -1.5)
    assert np.all(data.references("source")[[3, 11, 19, 37]] < 0)
    assert data.hull() == []
    again = prepare(config, Workspace(tmp_path / "files", report=said.append))
    assert said[-1].endswith("kept from an earlier run")
    assert again.labels["target"].key == data.labels["target"].key


def test_files_that_cannot_be_compared(teachers, levels, tmp_path, monkeypatch):
    strange = json.loads((levels / "target.json").read_text())
    for number, each in enumerate(strange):
        each["matpes_id"] = f"other-{number}"
    (tmp_path / "strange.json").write_text(json.dumps(strange))
    files = {"source": str(levels / "source.json"), "target": str(tmp_path / "strange.json")}
    with pytest.raises(ConfigError, match=r"share 0 structures .* 20 are needed"):
        prepare(configured(teachers, files=files), Workspace(tmp_path / "none", report=lambda line: None))
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match="not set; export it first"):
        prepare(
            configured(teachers, files=files | {"source": "${NOWHERE}/source.json"}),
            Workspace(tmp_path / "unset", report=lambda line: None),
        )


@pytest.mark.slow
def test_chgnet_is_an_architecture(tmp_path):
    """Between CHGNet's own levels, in miniature: it alone predicts magnetic moments."""
    short = {"steps": 2, "validations": 1, "batch_size": 8, "tiers": 1}
    one = {"source": "chgnet:gga", "target": "chgnet:r2scan", "sizes": [8], "methods": ["target"], "reverse": False}
    one |= {"architectures": {"chgnet": {"kind": "chgnet"}, "tiny": MODEL}, "multi_fidelity_replay": 0}
    one |= {"structures": {"number": 24, "elements": ["Li", "Mn", "O", "F"], "prototypes": PROTOTYPES}}
    config = resolve(content(tmp_path) | one | {"pretraining": short, "finetuning": short}, "miniature")
    assert isinstance(config, CrossFunctional)
    summary = run_cross_functional(config, tmp_path / "run", progress=False)
    found = {title: methods["target"] for title, methods in summary["methods"].items()}
    for name in ("energy_mae_meV_atom", "force_mae_meV_A", "stress_mae_GPa", "decomposition_energy_mae_meV_atom"):
        assert all(errors[name]["value"] > 0 for errors in found.values()), name
    frames = [*FrameStore(tmp_path / "run" / "stages" / "labels-target" / "test.h5")]
    said = predict(
        load_potential(tmp_path / "run" / "stages" / "forward-chgnet-target-8-0" / "potential.jaxmlip"),
        [frame.atoms for frame in frames],
    )
    errors = np.concatenate([np.abs(a.magmoms - b.magmoms) for a, b in zip(said, frames, strict=True)])
    assert found["chgnet"]["magmom_mae_muB"]["value"] == pytest.approx(errors.mean(), rel=1e-4)
    assert "magmom_mae_muB" not in found["tiny"]
    assert "magnetic moment" in (tmp_path / "run" / "report.html").read_text()
