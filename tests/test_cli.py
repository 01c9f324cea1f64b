"""The command line: help without imports, machine-readable results, and mistakes in one sentence each."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from fuzz_command_line import fuzz
from typer.testing import CliRunner
from water_pairs import LOW

from jaxmlip.cli import app
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load, load_potential, save
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.study.train_one import in_words
from jaxmlip.systems.dataset import read_frames, write_frames
from jaxmlip.systems.store import open_frames

NO_STRESS = "Warning: The potential was trained on energies and forces, but never on stress: "

COMMANDS = [
    "run",
    "train",
    "label",
    "evaluate",
    "md",
    "relax",
    "export",
    "convert-data",
    "tabulate",
    "config",
    "info",
    "cite",
]


SMALL = "{channels: 2, layers: 1, l_max: 0, correlation: 1, cutoff: 3.0, radial_mlp: [4]}"
"""A student that compiles in no time."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """How a potential of water is named that compiles in no time."""
    path = tmp_path_factory.mktemp("pairs") / "low.jaxmlip"
    save(LOW, path)
    return "--potential", path


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """A file of four distorted water molecules with labels."""
    path = tmp_path_factory.mktemp("water") / "water.extxyz"
    molecules = [molecule("H2O") for _ in range(4)]
    for seed, atoms in enumerate(molecules):
        atoms.rattle(0.05, seed=seed)
    write_frames(path, label(molecules, LOW))
    return path


def read_atoms(path):
    """One structure as ASE reads it."""
    atoms = read(path)
    assert isinstance(atoms, Atoms)
    return atoms


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence(*arguments):
    """The one sentence a mistaken command prints."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_results_are_alone_on_stdout():
    """What a calculator's program prints below Python does not stand between results."""
    program = (
        "import os, typer\nfrom jaxmlip.cli import app, config_app\n"
        "@config_app.command()\ndef loud() -> None:\n    os.write(1, b'cycle 1'); typer.echo('a result')\n"
        "app(['config', 'loud'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a result\n", "cycle 1")


def test_help_imports_nothing_slow():
    """Importing jax alone takes seconds; `--help` must not wait for it."""
    program = (
        "import sys; from typer.testing import CliRunner; from jaxmlip.cli import app\n"
        f"for command in {COMMANDS}: assert CliRunner().invoke(app, [command, '--help']).exit_code == 0, command\n"
        "slow = {'jax', 'numpy', 'ase', 'flax'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_evaluate_prints_one_object(water):
    result = invoke("evaluate", "--potential", "chgnet:r2scan", water, "--json")
    report = json.loads(result.stdout)
    assert (report["frames"], report["atoms"]) == (4, 12)
    for key in ("energy_rmse_meV_atom", "energy_max_meV_atom", "energy_mean_meV_atom", "energy_std_meV_atom"):
        assert np.isfinite(report[key])
    assert report["force_max_meV_A"] >= report["force_rmse_meV_A"] > 10
    assert "stress_rmse_GPa" not in report


def test_label_then_evaluate_finds_no_error(water, tmp_path):
    out = tmp_path / "labelled.extxyz"
    assert invoke("label", water, "--potential", "chgnet:r2scan", "--out", out).exit_code == 0
    assert len(read_frames(out)) == 4
    report = json.loads(invoke("evaluate", "--potential", "chgnet:r2scan", out, "--json").stdout)
    assert report["force_max_meV_A"] < 1e-2
    assert report["energy_max_meV_atom"] < 1e-2


def test_a_store_serves_wherever_a_file_does(water, tmp_path):
    store = tmp_path / "water.h5"
    result = invoke("convert-data", water, store, "--quiet")
    assert result.stdout == f"Wrote 4 frames to {store}.\n", result.output
    config = tmp_path / "train.yaml"
    config.write_text(
        f"study: train\ndata: {{path: {store}}}\nvalidation_fraction: 0.25\nstudent: {SMALL}\ntraining: {{epochs: 1}}\n"
    )
    result = invoke("train", config, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    evaluate = ("evaluate", "--potential", tmp_path / "out" / "potential.jaxmlip")
    from_file, from_store = (invoke(*evaluate, source, "--json").stdout for source in (water, store))
    assert json.loads(from_store) == json.loads(from_file)
    assert "has no 'dft_energy'" in sentence(*evaluate, store, "--energy-key", "dft_energy")


WATER = "O 0 0 0.119{0}\nH 0 0.763 -0.477{0}\nH 0 -0.763 -0.477{0}\n"
CELL = 'Lattice="8 0 0 0 8 0 0 0 8" Properties=species:S:1:pos:R:3'


def test_what_label_writes_is_read(pairs, tmp_path):
    """A crystal with stress, a molecule without, and all that the file says of them."""
    crystal = f"3\n{CELL}:tags:I:1 config_type=cation charge=1\n{WATER.format(' 4').replace('H', 'D', 1)}"
    (tmp_path / "mixed.xyz").write_text(crystal + "3\nProperties=species:S:1:pos:R:3\n" + WATER.format(""))
    out, store = tmp_path / "l.xyz", tmp_path / "l.h5"
    result = invoke("label", tmp_path / "mixed.xyz", *pairs, "--stress", "--out", out)
    assert result.exit_code == 0, result.output
    assert "config_type=cation charge=1" in out.read_text()
    assert "tags:I:1" in out.read_text()
    assert invoke("convert-data", out, store, "--quiet").exit_code == 0
    for path in (out, store):
        report = json.loads(invoke("evaluate", path, *pairs, "--json").stdout)
        assert (report["frames"], report["force_components"], report["stress_frames"]) == (2, 18, 1)
        assert report["stress_max_GPa"] < 1e-3
        first, second = open_frames(path)
        assert first.atoms.get_masses()[1] == 2.01410178
        assert first.atoms.get_tags().tolist() == [4, 4, 4]
        assert np.isnan(second.stress).all()
    without = ("--forces-key", "none", "--stress-key", "None")
    report = json.loads(invoke("evaluate", out, *pairs, *without, "--json").stdout)
    assert (report["energy_frames"], report["force_components"]) == (2, 0)
    assert "stress_frames" not in report


def test_evaluate_shows_a_dash_where_nothing_is_defined(pairs, tmp_path):
    """Energies alone, one frame: no forces, and no standard error."""
    (tmp_path / "one.xyz").write_text(f"3\n{CELL} energy=-14.2\n{WATER.format('')}")
    result = invoke("evaluate", tmp_path / "one.xyz", *pairs)
    assert result.exit_code == 0, result.output
    lines = dict(line.split() for line in result.stdout.splitlines())
    assert lines["force_rmse_meV_A"] == "–"
    assert float(lines["energy_rmse_meV_atom"]) > 0


def test_close_atoms_only_if_meant(argon, tmp_path):
    file, *potential = argon
    (frame,) = read_frames(file, energy_key=None, forces_key=None)
    crystal = frame.atoms + Atoms("Ar", frame.atoms.positions[:1] + 0.05)
    write(tmp_path / "close.xyz", crystal)
    md = ["--temperature_K", 10, "--time_ps", 0.002, "--sample_every_fs", 1, "--out", tmp_path / "run.h5"]
    for command, options in {
        "label": ["--out", tmp_path / "l.xyz"],
        "evaluate": ["--forces-key", "none", "--energy-key", "none"],
        "md": md,
        "relax": ["--out", tmp_path / "r.xyz"],
    }.items():
        line = sentence(command, tmp_path / "close.xyz", *potential, *options)
        assert "close.xyz, frame 0: Atoms 0 (Ar) and 4 (Ar) are 0.0866 Å apart" in line, command
        assert "--allow-close" in line
    result = invoke("label", tmp_path / "close.xyz", *potential, "--out", tmp_path / "l.xyz", "--allow-close")
    assert result.exit_code == 0, result.output
    assert invoke("evaluate", tmp_path / "l.xyz", *potential).exit_code == 0, "the file says that it is meant"


def test_a_trajectory_serves_where_structures_do(argon, tmp_path):
    file, *potential = argon
    (frame,) = read_frames(file, energy_key=None, forces_key=None)
    crystal = frame.atoms
    crystal.set_masses([40.0, 36, 38, 40])  # type: ignore[arg-type]
    write(file, crystal)
    run, out = tmp_path / "run.h5", tmp_path / "l.xyz"
    md = ["--temperature_K", 10, "--time_ps", 0.003, "--sample_every_fs", 1]
    assert invoke("md", file, *potential, *md, "--out", run).exit_code == 0
    result = invoke("label", run, *potential, "--out", out)
    assert result.stdout == f"Wrote 3 frames to {out}.\n", result.output
    frames = read_frames(out)
    assert frames[2].atoms.get_masses().tolist() == [40, 36, 38, 40]
    assert [frame.info["time_fs"] for frame in frames] == [1.0, 2.0, 3.0]
    report = json.loads(invoke("evaluate", run, *potential, "--json").stdout)
    assert (report["energy_frames"], report["force_components"]) == (3, 0)
    assert report["energy_max_meV_atom"] < 1e-3, "the energies are those of the potential that made the run"
    assert invoke("md", run, *potential, *md, "--out", tmp_path / "more.h5").exit_code == 0
    assert invoke("relax", run, *potential, "--out", tmp_path / "r.xyz", "--forces_eV_A", 100).exit_code == 0
    (relaxed,) = read_frames(tmp_path / "r.xyz")
    assert relaxed.atoms.get_masses().tolist() == [40, 36, 38, 40]
    assert "is of no format that ASE writes" in sentence("relax", run, *potential, "--out", tmp_path / "r.nonsense")


def test_mistaken_conversions(water, tmp_path):
    assert "ends in .h5, and water.hdf does not" in sentence("convert-data", water, "water.hdf")
    assert "There is no file" in sentence("convert-data", tmp_path / "absent.json", tmp_path / "a.h5", "--quiet")
    (tmp_path / "mp.json").write_text('{"mp-1": {"mp-1-0-0": {"structure": {}, "energy_per_atom": 1}}}')
    line = sentence("convert-data", tmp_path / "mp.json", tmp_path / "a.h5", "--quiet")
    assert "mp-1, frame mp-1-0-0 has no structure or no 'uncorrected_total_energy'" in line
    assert not (tmp_path / "a.h5").exists()
    site = {"species": [{"element": "Ar", "occu": 1}], "xyz": [0, 0, 0]}
    good = {
        "structure": {"lattice": {"matrix": (5 * np.eye(3)).tolist()}, "sites": [site]},
        "uncorrected_total_energy": -1,
    }
    (tmp_path / "mp.json").write_text(json.dumps({"mp-1": {"mp-1-0-0": {"structure": {}}, "mp-1-0-1": good}}))
    result = invoke("convert-data", tmp_path / "mp.json", tmp_path / "a.h5", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote 1 frames to {tmp_path / 'a.h5'}.\n"
    assert result.stderr.startswith("Left out 1 frames that cannot be used, the first of them:\n")
    assert "mp-1, frame mp-1-0-0 has no structure or no" in result.stderr


def test_md_writes_a_trajectory(water, pairs, tmp_path):
    from jaxmlip.simulation.trajectory import load_run

    out = tmp_path / "run.h5"
    options = ["--temperature_K", 300, "--time_ps", 0.005, "--sample_every_fs", 1, "--replicas", 2, "--out", out]
    result = invoke("md", water, *pairs, *options)
    assert result.exit_code == 0, result.output
    assert load_run(out).positions.shape == (2, 5, 3, 3)


@pytest.fixture
def argon(tmp_path):
    """A crystal of four atoms that is not at rest, and a tiny potential for it that has never seen a stress."""
    crystal = bulk("Ar", "fcc", a=4.0, cubic=True)
    crystal.rattle(0.05, seed=0)
    write(tmp_path / "argon.xyz", crystal)
    tiny = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=3.5, radial_mlp=(8,))
    potential = tiny.build((18,), average_neighbors=12.0).having_seen(("energy", "forces"))
    save(potential, tmp_path / "tiny.jaxmlip")
    return tmp_path / "argon.xyz", "--potential", tmp_path / "tiny.jaxmlip"


def test_md_at_constant_pressure(argon, tmp_path):
    from jaxmlip.simulation.trajectory import load_run

    options = ["--temperature_K", 10, "--time_ps", 0.004, "--sample_every_fs", 1, "--out", tmp_path / "run.h5"]
    npt = ["--ensemble", "npt", "--pressure_GPa", 0.1, "--cell", "flexible"]
    result = invoke("md", *argon, *options, *npt)
    assert result.exit_code == 0, result.output
    assert result.stderr.count(NO_STRESS) == 1
    run = load_run(tmp_path / "run.h5")
    assert run.cells.shape == (1, 4, 3, 3)
    assert run.pressure_GPa is not None
    assert np.isfinite(run.pressure_GPa).all()
    assert sentence("md", *argon, *options, "--tables", "yes").endswith("--tables is auto, on or off, not yes.")
    line = sentence("md", *argon, *options, "--ensemble", "nph")
    assert "one of nve, nvt, nvt-nose-hoover, nvt-csvr, npt, npt-nose-hoover, not 'nph'" in line
    assert "isotropic, orthorhombic, flexible, not 'cubic'" in sentence(
        "md", *argon, *options, "--ensemble", "npt", "--cell", "cubic"
    )


def test_md_goes_on_where_it_was(argon, tmp_path):
    from jaxmlip.simulation.trajectory import load_run

    def options(time_ps, seed=0):
        return ["--temperature_K", 10, "--time_ps", time_ps, "--sample_every_fs", 1, "--seed", seed]

    stopped, whole = ["--out", tmp_path / "stopped.h5"], ["--out", tmp_path / "whole.h5"]
    result = invoke("md", *argon, *options(0.002), *stopped)
    assert result.exit_code == 0, result.output
    assert NO_STRESS not in result.stderr
    result = invoke("md", *argon, *options(0.005), *stopped)
    assert result.exit_code == 0, result.output
    assert "has 5 frames of 1 replicas, 2 of them from before" in result.stdout
    assert invoke("md", *argon, *options(0.005), *whole).exit_code == 0
    one, other = (load_run(tmp_path / f"{name}.h5") for name in ("stopped", "whole"))
    np.testing.assert_array_equal(one.positions, other.positions)
    assert "stopped.h5 holds another run: seed is 0 there and 1 here" in sentence(
        "md", *argon, *options(0.005, seed=1), *stopped
    )
    assert "stopped.h5 already holds 5 frames (0.005 ps), more than the 2 (0.002 ps) asked for" in sentence(
        "md", *argon, *options(0.002), *stopped
    )
    result = invoke("md", *argon, *options(0.0055), *stopped)
    assert result.exit_code == 0, result.output
    assert "Warning: 0.0055 ps is not a whole number of the 1 fs between frames: 0.005 ps are sim" in result.stderr

    result = invoke("export", tmp_path / "whole.h5", tmp_path / "whole.xyz", "--every", 2)
    assert result.exit_code == 0, result.output
    assert "Wrote 2 frames" in result.stdout
    assert "There is no trajectory" in sentence("export", tmp_path / "absent.h5", tmp_path / "absent.xyz")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_md_ends_cleanly_when_asked_to(number, argon, tmp_path):
    """What was simulated is kept, one sentence says how to go on, and so it does."""
    from jaxmlip.simulation.trajectory import load_run

    out = tmp_path / "run.h5"
    options = ["--temperature_K", 10, "--sample_every_fs", 1, "--out", out]
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    text = "import signal; signal.signal(2, signal.default_int_handler); from jaxmlip.cli import app; app()"
    program = [sys.executable, "-c", text, "md", *argon, *options, "--time_ps", 1000]
    process = subprocess.Popen([str(word) for word in program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not out.exists() or load_run(out).n_frames == 0:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1] == (
        "Interrupted; what was finished is kept, and the same command goes on from there."
    )
    kept = load_run(out).n_frames
    assert kept > 0
    result = invoke("md", *argon, *options, "--time_ps", (kept + 3) / 1000)
    assert f"has {kept + 3} frames of 1 replicas, {kept} of them from before" in result.stdout


def test_relax_says_whether_it_converged(argon, tmp_path):
    out = tmp_path / "relaxed.xyz"
    assert "did not relax: it was not yet relaxed" in sentence(
        "relax", *argon, "--out", out, "--steps", 1, "--forces_eV_A", 1e-9
    )
    result = invoke("relax", *argon, "--out", out, "--forces_eV_A", 100)
    assert result.exit_code == 0, result.output
    assert "0 steps" in result.stdout
    assert NO_STRESS not in result.stderr
    assert len(read(out)) == 4
    result = invoke("relax", *argon, "--out", out, "--cell", "--forces_eV_A", 100, "--stress_GPa", 1000)
    assert result.exit_code == 0, result.output
    assert result.stderr.count(NO_STRESS) == 1


def test_train_writes_a_potential_that_can_be_fine_tuned(water, tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        f"study: train\ndata: {{path: {water}}}\nvalidation_fraction: 0.25\nstudent: {SMALL}\ntraining: {{epochs: 2}}\n"
    )
    first = tmp_path / "first"
    result = invoke("train", config, "--out", first, "--quiet")
    assert result.exit_code == 0, result.output
    assert (first / "training" / "metrics.csv").read_text().count("validation,0,water") == 3  # one for each epoch
    options = [f"foundation={first / 'potential.jaxmlip'}", "strategy=single_fidelity", "labels=energy"]
    result = invoke("train", config, *options, "--out", tmp_path / "second", "--quiet")
    assert result.exit_code == 0, result.output
    assert np.isfinite(json.loads((tmp_path / "second" / "errors.json").read_text())["force_rmse_meV_A"])
    assert "multi_fidelity starts from a foundation" in sentence("train", config, "strategy=multi_fidelity")
    unset = "data.path='${JAXMLIP_UNSET}/water.extxyz'"
    assert "${JAXMLIP_UNSET}/water.extxyz names an environment variable that is not set" in sentence(
        "train", config, unset
    )


@pytest.fixture(scope="module")
def copper(tmp_path_factory):
    """Strained copper labelled by EMT with stress, and the configuration of a tiny student of it."""
    folder = tmp_path_factory.mktemp("copper")
    rng, crystals = np.random.default_rng(0), []
    for _ in range(12):
        crystals.append(bulk("Cu", "fcc", a=3.6, cubic=True))
        strain = np.eye(3) * (1 + rng.uniform(-0.05, 0.05)) + rng.normal(scale=0.01, size=(3, 3))
        crystals[-1].set_cell(crystals[-1].cell.array @ strain, scale_atoms=True)
        crystals[-1].rattle(0.05, rng=rng)
    write(folder / "crystals.xyz", crystals)
    out = folder / "copper.extxyz"
    teacher = "ase:ase.calculators.emt:EMT"
    assert invoke("label", folder / "crystals.xyz", "--potential", teacher, "--stress", "--out", out).exit_code == 0
    (folder / "train.yaml").write_text(
        f"study: train\ndata: {{path: {out}}}\nvalidation_fraction: 0.25\ntraining: {{epochs: 30}}\n"
        "student: {channels: 2, l_max: 0, correlation: 1, layers: 1, cutoff: 3.5, radial_mlp: [8]}\n"
    )
    return folder


def test_train_sees_stress_wherever_it_is(copper, tmp_path):
    """From extended XYZ and from a store, by default; it lowers the error of the stress, and the file says so."""
    config, out = copper / "train.yaml", tmp_path / "out"
    store = tmp_path / "copper.h5"
    assert invoke("convert-data", copper / "copper.extxyz", store, "--stress-key", "stress", "--quiet").exit_code == 0

    def trained(*overrides):
        result = invoke("train", config, *overrides, "--out", out, "--quiet")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout.partition("Wrote")[0])
        assert report["validation"] == json.loads((out / "errors.json").read_text())
        words = in_words(report, out)  # as a terminal shows it
        said = re.search(r"^force_rmse_meV_A +([\d.]+) ± ", words, flags=re.MULTILINE)
        assert said is not None
        assert float(said[1]) == pytest.approx(report["validation"]["force_rmse_meV_A"], rel=0.05)
        assert ("Stress was trained on" in words) == ("stress_weight" in report)
        assert re.search(r"^Kept: the parameters of epoch \d+ of 30\.$", words, flags=re.MULTILINE)
        shutil.rmtree(out / "training")
        return report, load_potential(out / "potential.jaxmlip").trained_on

    blind, seen = trained("training.stress_weight=0")
    assert seen == ("energy", "forces")
    evaluation = ("evaluate", copper / "copper.extxyz", "--potential", out / "potential.jaxmlip")
    result = invoke(*evaluation, "--stress-key", "stress", "--json")
    assert json.loads(result.stdout)["stress_frames"] == 12
    assert result.stderr.count(NO_STRESS) == 1
    assert "stress_weight" not in blind
    report, seen = trained()
    assert seen == ("energy", "forces", "stress")
    assert report["stress_weight"] > 1
    assert report["validation"]["stress_rmse_GPa"] < 0.75 * blind["validation"]["stress_rmse_GPa"]
    assert invoke(*evaluation, "--stress-key", "stress", "--json").stderr == ""
    assert trained(f"data.path={store}")[0] == report
    line = sentence("train", config, "data.stress_key=virial", "--out", out)
    assert "copper.extxyz, frame" in line
    assert "has no 'virial'" in line


def test_mistakes_get_one_sentence(water, tmp_path):
    evaluate = ("evaluate", "--potential", "chgnet:gga")
    assert "absent.extxyz" in sentence(*evaluate, tmp_path / "absent.extxyz")

    line = sentence(*evaluate, water, "--energy-key", "dft_energy")
    assert "dft_energy" in line
    assert "frame 0" in line
    assert "the keys that are there: energy, forces" in line.partition("dft_energy")[2]

    assert "there is no configuration" in sentence("run", tmp_path / "absent.yaml").lower()
    assert "the names are chgnet:gga, chgnet:r2scan" in sentence("evaluate", "--potential", "chgnet:pbe", water)

    assert "Yb" in _with_element(tmp_path, "Yb")

    broken = molecule("H2O")
    broken.positions[1, 2] = np.nan
    write(tmp_path / "nan.extxyz", broken)
    line = sentence("label", tmp_path / "nan.extxyz", "--potential", "chgnet:gga", "--out", tmp_path / "out.extxyz")
    assert "atom 1" in line
    assert "not finite" in line
    assert not (tmp_path / "out.extxyz").exists()

    flat = molecule("H2O", cell=[[5, 0, 0], [5, 0, 0], [0, 0, 5]], pbc=True)
    write(tmp_path / "flat.extxyz", flat)
    line = sentence("label", tmp_path / "flat.extxyz", "--potential", "chgnet:gga", "--out", tmp_path / "out.extxyz")
    assert "singular" in line


def _with_element(tmp_path, symbol):
    atoms = molecule("H2O")
    atoms.symbols[0] = symbol
    path = tmp_path / f"{symbol}.extxyz"
    write(path, atoms)
    return sentence("label", path, "--potential", "chgnet:r2scan", "--out", tmp_path / "out.extxyz")


def test_truncated_potential_is_refused(water, tmp_path):
    from jaxmlip.potentials.equivariant import Equivariant
    from jaxmlip.potentials.files import save

    path = tmp_path / "student.jaxmlip"
    tiny = Equivariant(channels=4, l_max=1, correlation=1, radial_mlp=(8,))
    save(tiny.build((1, 8), average_neighbors=2.0), path)
    path.write_bytes(path.read_bytes()[:-200])
    line = sentence("evaluate", "--potential", path, water)
    assert str(path) in line
    assert "truncated" in line


def test_missing_chgnet_is_named(water, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert "uv sync" in sentence("evaluate", "--potential", "chgnet:gga", water)


def test_config_commands(tmp_path):
    text = invoke("config", "template").stdout
    (tmp_path / "t.yaml").write_text(text)
    assert json.loads(invoke("config", "schema").stdout)["title"] == "ClustersToBulk"
    assert "unknown key colour" in sentence("run", tmp_path / "t.yaml", "colour=red")
    assert "clusters_to_bulk" in sentence("config", "template", "cooking")


def test_tabulate(tmp_path):
    """The file it writes is the potential with tables; others are refused in one sentence."""
    potential = Equivariant(channels=2, l_max=0, correlation=1).build([1, 8], average_neighbors=10.0, seed=0)
    save(potential, tmp_path / "p.jaxmlip")
    result = invoke("tabulate", tmp_path / "p.jaxmlip", tmp_path / "q.jaxmlip", "--tolerance", "1e-4")
    assert result.exit_code == 0, result.output
    tables = load(tmp_path / "q.jaxmlip")
    assert isinstance(tables, EquivariantPotential)
    assert tables.tabulated
    assert "has tables of its radial functions already" in sentence("tabulate", tmp_path / "q.jaxmlip", tmp_path / "r")
    assert "A CHGNet has no radial networks" in sentence("tabulate", "chgnet:gga", tmp_path / "r.jaxmlip")
    assert not (tmp_path / "r.jaxmlip").exists()


def test_md_and_relax_hold_fixed_atoms(argon, tmp_path):
    """What a file holds stays where it is, and what is written says so again."""
    file, *potential = argon
    start = read_atoms(file)
    start.set_constraint(FixAtoms([0, 1]))
    held = tmp_path / "held.extxyz"
    write(held, start)
    start = read_atoms(held)
    options = ["--temperature_K", 10, "--time_ps", 0.004, "--sample_every_fs", 1, "--out", tmp_path / "run.h5"]
    result = invoke("md", held, *potential, *options)
    assert result.exit_code == 0, result.output
    run = load_run(tmp_path / "run.h5")
    assert (run.positions[0, :, :2] == start.positions[:2]).all()
    assert (run.positions[0, -1, 2:] != start.positions[2:]).any()
    invoke("relax", held, *potential, "--out", tmp_path / "out.xyz", "--steps", 3)
    out = read_atoms(tmp_path / "out.xyz")
    assert out.constraints[0].index.tolist() == [0, 1]
    assert np.abs(out.positions - start.positions)[:2].max() < 1e-7
    moving = ("--ensemble", "npt", "--out", tmp_path / "npt.h5")
    assert "would move them with the cell" in sentence("md", held, *potential, *options[:-2], *moving)
    assert "keep the cell" in sentence("relax", held, *potential, "--out", tmp_path / "o.xyz", "--cell")


def test_damaged_input_ends_in_a_sentence():
    """Each kind of file and command a few times; `fuzz_command_line.py` does more."""
    ended, wrong = fuzz(46)
    assert not wrong, wrong[0]
    assert ended["a sentence"] > 30
