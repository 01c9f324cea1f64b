"""The command line: help without imports, machine-readable results, and mistakes in one sentence each."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load, save
from jaxmlip.systems.dataset import read_frames, write_frames

COMMANDS = ["run", "train", "label", "evaluate", "md", "relax", "export", "convert-data", "tabulate", "config"]


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """A file of four distorted water molecules labelled by CHGNet."""
    path = tmp_path_factory.mktemp("water") / "water.extxyz"
    molecules = [molecule("H2O") for _ in range(4)]
    for seed, atoms in enumerate(molecules):
        atoms.rattle(0.05, seed=seed)
    write_frames(path, label(molecules, load("chgnet:gga")))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence(*arguments):
    """The one sentence a mistaken command prints."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    return line


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
        f"study: train\ndata: {{path: {store}}}\nvalidation_fraction: 0.25\n"
        "student: {channels: 4, l_max: 1, correlation: 2, radial_mlp: [8]}\ntraining: {epochs: 1}\n"
    )
    result = invoke("train", config, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    evaluate = ("evaluate", "--potential", tmp_path / "out" / "potential.jaxmlip")
    from_file, from_store = (invoke(*evaluate, source, "--json").stdout for source in (water, store))
    assert json.loads(from_store) == json.loads(from_file)
    assert "has no 'dft_energy'" in sentence(*evaluate, store, "--energy-key", "dft_energy")


def test_mistaken_conversions(water, tmp_path):
    assert "ends in .h5, and water.hdf does not" in sentence("convert-data", water, "water.hdf")
    assert "There is no file" in sentence("convert-data", tmp_path / "absent.json", tmp_path / "a.h5", "--quiet")
    (tmp_path / "mp.json").write_text('{"mp-1": {"mp-1-0-0": {"structure": {}, "energy_per_atom": 1}}}')
    line = sentence("convert-data", tmp_path / "mp.json", tmp_path / "a.h5", "--quiet")
    assert "mp-1, frame mp-1-0-0 has no structure or no 'uncorrected_total_energy'" in line
    assert not (tmp_path / "a.h5").exists()


def test_md_writes_a_trajectory(water, tmp_path):
    from jaxmlip.simulation.trajectory import load_run

    out = tmp_path / "run.h5"
    options = ["--temperature_K", 300, "--time_ps", 0.005, "--sample_every_fs", 1, "--replicas", 2, "--out", out]
    result = invoke("md", water, "--potential", "chgnet:gga", *options)
    assert result.exit_code == 0, result.output
    assert load_run(out).positions.shape == (2, 5, 3, 3)


@pytest.fixture
def argon(tmp_path):
    """A crystal of four atoms that is not at rest, and a tiny potential for it."""
    crystal = bulk("Ar", "fcc", a=4.0, cubic=True)
    crystal.rattle(0.05, seed=0)
    write(tmp_path / "argon.xyz", crystal)
    tiny = Equivariant(channels=2, l_max=1, correlation=1, layers=1, cutoff=3.5, radial_mlp=(8,))
    save(tiny.build((18,), average_neighbors=12.0), tmp_path / "tiny.jaxmlip")
    return tmp_path / "argon.xyz", "--potential", tmp_path / "tiny.jaxmlip"


def test_md_at_constant_pressure(argon, tmp_path):
    from jaxmlip.simulation.trajectory import load_run

    options = ["--temperature_K", 10, "--time_ps", 0.004, "--sample_every_fs", 1, "--out", tmp_path / "run.h5"]
    npt = ["--ensemble", "npt", "--pressure_GPa", 0.1, "--cell", "flexible"]
    result = invoke("md", *argon, *options, *npt)
    assert result.exit_code == 0, result.output
    run = load_run(tmp_path / "run.h5")
    assert run.cells.shape == (1, 4, 3, 3)
    assert run.pressure_GPa is not None
    assert np.isfinite(run.pressure_GPa).all()
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
    assert invoke("md", *argon, *options(0.002), *stopped).exit_code == 0
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    assert len(read(out)) == 4


def test_train_writes_a_potential_that_can_be_fine_tuned(water, tmp_path):
    student = "{channels: 4, l_max: 1, correlation: 2, radial_mlp: [8]}"
    config = tmp_path / "train.yaml"
    config.write_text(
        f"study: train\ndata: {{path: {water}}}\nvalidation_fraction: 0.25\n"
        f"student: {student}\ntraining: {{epochs: 2}}\n"
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


def test_mistakes_get_one_sentence(water, tmp_path):
    evaluate = ("evaluate", "--potential", "chgnet:gga")
    assert "absent.extxyz" in sentence(*evaluate, tmp_path / "absent.extxyz")

    line = sentence(*evaluate, water, "--energy-key", "dft_energy")
    assert "dft_energy" in line
    assert "frame 0" in line
    assert "energy" in line.partition("dft_energy")[2]

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
    potential = Equivariant(channels=2, l_max=1).build([1, 8], average_neighbors=10.0, seed=0)
    save(potential, tmp_path / "p.jaxmlip")
    result = invoke("tabulate", tmp_path / "p.jaxmlip", tmp_path / "q.jaxmlip", "--tolerance", "1e-4")
    assert result.exit_code == 0, result.output
    tables = load(tmp_path / "q.jaxmlip")
    assert isinstance(tables, EquivariantPotential)
    assert tables.tabulated
    assert "has tables of its radial functions already" in sentence("tabulate", tmp_path / "q.jaxmlip", tmp_path / "r")
    assert "holds a CHGNet" in sentence("tabulate", "chgnet:gga", tmp_path / "r.jaxmlip")
    assert not (tmp_path / "r.jaxmlip").exists()
