"""Damaged and strange input for every command, from a fixed seed: each must end in a result or in one sentence.

    uv run python tests/fuzz_command_line.py --inputs 300

prints how many ended how, and every traceback. `test_cli.py` runs the quick form.
"""

import argparse
import json
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.build import bulk, molecule
from ase.io import write
from socket_server import asking, served
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import save
from jaxmlip.study.clusters_to_bulk.summary_file import FORMAT, FrameErrors, SummaryFile
from jaxmlip.systems.dataset import write_frames

MODEL = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=3.0, radial_functions=3, radial_mlp=(4,))

WORDS = ("nan", "inf", "-1", "0", "1e308", "1e-320", "", "X", "Zz", "D", "None", "[]", '"', "=", "\x00", "é", "9" * 40)
"""What numbers, symbols and keys are replaced by."""

TRAIN = """study: train
data: {path: FILE}
validation_fraction: 0.25
student: {channels: 2, l_max: 1, correlation: 1, layers: 1, cutoff: 3.0, radial_mlp: [4]}
training: {epochs: 1, batch_size: 4}
strategy: {name: direct}
"""

OPTIONS = {
    "--temperature_K": ("250", "0", "-5", "nan", "1e9", "inf", "x"),
    "--time_ps": ("0.001", "0", "-1", "nan", "1e12", "0.0004", "0.0017"),
    "--timestep_fs": ("0.5", "0", "1e9", "nan", "-1"),
    "--sample_every_fs": ("0.5", "0", "inf", "1e9"),
    "--replicas": ("1", "0", "-3", "2", "1000000000000"),
    "--seed": ("0", "-1", "99999999999999999999"),
    "--ensemble": ("nvt", "nve", "npt", "NPT", "x", "npt-nose-hoover"),
    "--pressure_GPa": ("0", "nan", "1e9"),
    "--cell": ("isotropic", "cubic", "flexible"),
}
"""Values that options of `md` are drawn from; the first is what works."""

REQUIRED = ("--temperature_K",)
"""Options that `validate` does not do without."""


def made_summary(clusters: int) -> dict[str, Any]:
    """What a study with so many clusters writes, of two strategies, with the numbers of two seeds."""

    def number(value: float) -> dict[str, Any]:
        return {"value": value, "error": 0.1 * value, "dof": 3.0, "common_error": 0.01 * value, "seeds": 2}

    def one(force: float) -> dict[str, Any]:
        errors = {name: number(0.1 * force) for name in FrameErrors.model_fields} | {"force_rmse_meV_A": number(force)}
        observed = {"rdf_error_A": {"OO": number(0.1), "mean": number(0.2)}, "temperature_K": number(250.0)}
        verdict = {"verdict": {"level": "trusted", "reason": "all agrees"}, "stable": True, "outcome": "completed"}
        energy = {"potential_energy_deviation_meV_molecule": number(3.0)}
        return errors | observed | energy | verdict

    seeds = [one(90.0 + clusters), one(100.0 + clusters)]
    students = {
        name: {"energy_forces": one(95.0 + clusters) | {"by_seed": seeds}} for name in ("direct", "differential")
    }
    content: dict[str, Any] = {
        **{"study": "clusters_to_bulk", "format": FORMAT, "name": f"n{clusters}", "seed": 0, "teachers": {}},
        **{"setting": "ice", "clusters": {"number": clusters, "radius_A": 3.0 + clusters / 6}, "ensembles": ["NVT"]},
        "seeds": {"students": 2, "own_foundations": False, "without": []},
        "tolerances": {"energy_meV_molecule": 10.0, "rdf_A": 0.1, "density": 0.01, "force": 0.1, "level": 0.95},
        "test": {"frames": 4, "force_rms_meV_A": 700.0},
        **{"low_teacher": {name: number(1.0) for name in FrameErrors.model_fields}, "teacher": one(1.0)},
        **{"foundation": one(200.0), "students": students, "correlations": [], "answers": {}, "provenance": {}},
        **{"wall_s": 1.0, "stages_s": {}, "versions": {"jaxmlip": "0"}},
    }
    return SummaryFile.model_validate(content).model_dump(mode="json", exclude_none=True)


class Material:
    """Sound files of every kind, to be damaged."""

    def __init__(self, folder: Path) -> None:
        """Make them in a folder."""
        self.folder = folder
        self.potential = MODEL.build([1, 8], average_neighbors=3.0, references=None, seed=0)
        save(self.potential, folder / "sound.jaxmlip")
        crystal = molecule("H2O", vacuum=2.0)
        crystal.pbc = True
        shaken = [crystal.copy() for _ in range(4)]
        for seed, atoms in enumerate(shaken):
            atoms.rattle(0.05, seed=seed)
        write_frames(folder / "sound.extxyz", predict(self.potential, shaken, stress=True))
        for name in ("sound.cif", "POSCAR", "sound.traj", "sound.pdb", "sound.json"):
            write(folder / name, shaken[0])
        write(folder / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.6))
        (folder / "train.yaml").write_text(TRAIN.replace("FILE", str(folder / "sound.extxyz")))
        self.run("convert-data", folder / "sound.extxyz", folder / "sound.h5", "--quiet")
        self.run(*self.md(folder / "sound.extxyz", folder / "run.h5"))
        (folder / "config.json").write_text(json.dumps({"config": {"study": "train", "name": "x"}, "versions": {}}))
        for number in (6, 12):
            self.study(folder / "studies" / str(number), number)
        self.run("report", folder / "studies", "--out", folder / "together")
        self.asked = asking(shaken[0])
        with h5py.File(folder / "run.h5", "r+", libver=("v110", "v110")) as file:
            file.swmr_mode = True
            shutil.copy(folder / "run.h5", folder / "marked.h5")  # as a writer leaves it that is killed

    def md(self, structure: Path, out: Path, **changes: str) -> list[str]:
        """Two steps of dynamics."""
        options = {name: values[0] for name, values in OPTIONS.items()} | changes
        said = [word for pair in options.items() for word in pair]
        return ["md", str(structure), "--potential", str(self.folder / "sound.jaxmlip"), "--out", str(out), *said]

    def study(self, folder: Path, clusters: int) -> None:
        """A study of clusters and bulk, of which `report` reads the summary and the configuration."""
        folder.mkdir(parents=True)
        config = {"study": "clusters_to_bulk", "seed": 0, "clusters": {"number": clusters}}
        (folder / "summary.json").write_text(json.dumps(made_summary(clusters), indent=1))
        (folder / "config.json").write_text(json.dumps({"config": config, "versions": {}}, indent=1))

    def run(self, *arguments: object) -> None:
        """A command that must succeed."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output


def damaged_text(text: str, rng: np.random.Generator) -> str:
    """Words or lines exchanged, doubled, dropped or cut."""
    lines = text.splitlines()
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(lines)))
        kind = rng.integers(6)
        if kind < 3:
            words = lines[at].split(" ")
            words[rng.integers(len(words))] = str(rng.choice(WORDS))
            lines[at] = " ".join(words)
        elif kind == 3:
            lines[at : at + 1] = [lines[at]] * 2
        elif kind == 4 and len(lines) > 1:
            del lines[at]
        else:
            lines[at] = lines[at][: rng.integers(len(lines[at]) + 1)]
    return "\n".join(lines) + "\n"


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, emptied, or with some bytes exchanged."""
    kind = rng.integers(4)
    if kind == 0:
        return content[: rng.integers(len(content))]
    if kind == 1:
        return b""
    changed = bytearray(content)
    for at in rng.integers(len(content), size=1 if kind == 2 else 40):
        changed[at] = rng.integers(256)
    return bytes(changed)


def damaged_json(content: Any, rng: np.random.Generator) -> None:
    """One value, however deep, exchanged or dropped: what a file says that is still JSON."""
    while True:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = keys[rng.integers(len(keys))]
        if not (isinstance(content[key], dict | list) and content[key]) or rng.integers(5) == 0:
            break
        content = content[key]
    if rng.integers(4) == 0:
        del content[key]
    else:
        content[key] = (None, -1, 0, 1e308, float("nan"), "x", [], {}, [1.0], {"x": 1}, True)[rng.integers(11)]


def damaged(path: Path, out: Path, rng: np.random.Generator) -> Path:
    """A damaged copy of a file."""
    content = path.read_bytes()
    try:
        out.write_text(damaged_text(content.decode(), rng))
    except UnicodeDecodeError:
        out.write_bytes(damaged_bytes(content, rng))
    return out


def commands(material: Material, rng: np.random.Generator) -> Iterator[list[str]]:
    """Command lines without end, each with files of its own."""
    folder, sound = material.folder, ["--potential", str(material.folder / "sound.jaxmlip")]
    structures = [*(folder / name for name in ("sound.extxyz", "sound.cif", "POSCAR", "sound.traj", "sound.pdb"))]
    structures += [folder / "sound.json", folder / "sound.h5", folder / "run.h5", folder / "salt.extxyz"]
    number = 0

    def broken(path: Path) -> str:
        return str(damaged(path, folder / f"{number}-{path.name}", rng))

    def any_structure() -> str:
        return broken(structures[rng.integers(len(structures))])

    def of_label() -> list[str]:
        return ["label", any_structure(), *sound, "--out", str(folder / "l.xyz"), *(["--stress"] * rng.integers(2))]

    def of_evaluate() -> list[str]:
        keys = [
            f"--{name}-key={rng.choice(('energy', 'forces', 'stress', 'none', 'x'))}" for name in ("energy", "stress")
        ]
        return ["evaluate", any_structure(), *sound, *keys[: rng.integers(3)], "--json"]

    def of_potential() -> list[str]:
        return ["evaluate", str(folder / "sound.extxyz"), "--potential", broken(folder / "sound.jaxmlip")]

    def of_name() -> list[str]:
        names = ("chgnet:x", "ase:", "ase:os:getcwd", "ase:ase.calculators.emt:EMT?x", "nothing", ".", "", "a:b:c")
        return [
            "label",
            str(folder / "sound.extxyz"),
            "--potential",
            str(rng.choice(names)),
            "--out",
            str(folder / "n.xyz"),
        ]

    def of_md() -> list[str]:
        name = str(rng.choice(list(OPTIONS)))
        changes = {name: str(rng.choice(OPTIONS[name][1:]))}
        return material.md(folder / "sound.extxyz", folder / f"{number}-run.h5", **changes)

    def of_md_start() -> list[str]:
        return material.md(Path(any_structure()), folder / f"{number}-run.h5")

    def of_md_again() -> list[str]:
        return material.md(folder / "sound.extxyz", Path(broken(folder / "run.h5")))

    def of_relax() -> list[str]:
        more = ["--cell"] * rng.integers(2) + ["--steps", str(rng.choice(["1", "0", "-2"]))]
        return ["relax", any_structure(), *sound, "--out", str(folder / "r.xyz"), *more]

    def of_train() -> list[str]:
        return ["train", broken(folder / "train.yaml"), "--quiet", "--out", str(folder / f"{number}-out")]

    def of_overrides() -> list[str]:
        keys = ("training.epochs", "student.channels", "data.index", "labels", "strategy", "data.path", "training.loss")
        override = f"{rng.choice(keys)}={rng.choice(WORDS[:10])}".replace("\x00", "")
        return ["train", str(folder / "train.yaml"), override, "--quiet", "--out", str(folder / f"{number}-out")]

    def of_study() -> list[str]:
        return ["run", broken(folder / "train.yaml"), "--quiet", "--out", str(folder / f"{number}-out")]

    def of_convert() -> list[str]:
        return ["convert-data", any_structure(), str(folder / f"{number}.h5"), "--quiet"]

    def of_export() -> list[str]:
        return [
            "export",
            broken(folder / "run.h5"),
            str(folder / "e.xyz"),
            "--every",
            str(rng.choice(["1", "0", "-1"])),
        ]

    def of_tabulate() -> list[str]:
        return ["tabulate", broken(folder / "sound.jaxmlip"), str(folder / "t.jaxmlip")]

    def of_program() -> list[str]:
        return ["export", broken(folder / "sound.jaxmlip"), str(folder / f"{number}-program")]

    def of_marked() -> list[str]:
        command = str(rng.choice(["info", "plot", "cite", "label", "export"]))
        more = {"label": [*sound, "--out", str(folder / "l.xyz")], "export": [str(folder / "e.xyz")]}
        return [command, broken(folder / "marked.h5"), *more.get(command, [])]

    def of_info() -> list[str]:
        known = [folder / name for name in ("sound.jaxmlip", "train.yaml", "sound.json", "run.h5", "config.json")]
        path = str(rng.choice([broken(known[rng.integers(len(known))]), any_structure(), str(folder), "", "."]))
        return ["info", path, *(["--json"] * rng.integers(2))]

    def of_plot() -> list[str]:
        picture = str(folder / str(rng.choice(["p.png", "p.xyz", "nowhere/p.png"])))
        equilibration = ["--equilibration-ps", str(rng.choice(["0", "nan", "-1", "1e9", "0.0004"]))]
        file = str(rng.choice([broken(folder / "run.h5"), str(folder / "run.h5"), any_structure()]))
        return ["plot", file, "--out", picture, *(equilibration * rng.integers(2))]

    def of_cite() -> list[str]:
        known = [folder / name for name in ("sound.jaxmlip", "run.h5", "sound.h5", "sound.extxyz")]
        return ["cite", str(rng.choice([broken(known[rng.integers(len(known))]), str(folder), str(folder / "no")]))]

    def of_mace() -> list[str]:
        return ["convert-mace", broken(folder / "sound.jaxmlip"), str(folder / "m.jaxmlip")]

    def of_ipi() -> list[str]:
        start = str(rng.choice([any_structure(), str(folder / "sound.extxyz")]))
        return ["ipi", start, *sound, "--port", str(served(damaged_bytes(material.asked, rng)))]

    def of_validate() -> list[str]:
        run = ["--run", str(rng.choice([broken(folder / "run.h5"), str(folder / "run.h5")]))]
        teacher = ["--teacher-run", broken(folder / "run.h5")]
        words = ["x", "rdf:O-O", "rdf:O-Xx", "temperature", "density", "rdf:O-O:r_max=nan", "", "adf:H-O-H:bins=0"]
        options = {
            "--temperature_K": str(rng.choice(["250", "nan", "0"])),
            "--time_ps": str(rng.choice(["0.001", "0", "nan"])),
            "--sample_every_fs": "0.5",
            "--replicas": str(rng.choice(["2", "0", "-1"])),
            "--observables": str(rng.choice(words)),
            "--tolerance": str(rng.choice(["x", "density=x", "potential_energy=nan", "rdf:O-O=1", "=", "a=1"])),
            "--ensemble": str(rng.choice(["nvt", "nve", "npt"])),
        }
        chosen = [word for pair in options.items() for word in pair if rng.integers(3) or pair[0] in REQUIRED]
        known = [*(run * rng.integers(2)), *(teacher * rng.integers(2)), "--no-bridge", "--quiet"]
        other = str(rng.choice([sound[1], broken(folder / "sound.jaxmlip"), "ase:os:getcwd"]))
        out = ["--out", str(folder / f"{number}-verdict")]
        return ["validate", any_structure(), *sound, "--against", other, *chosen, *known, *out]

    def of_report() -> list[str]:
        run = folder / f"{number}-studies"
        shutil.copytree(folder / "studies", run)
        file = run / str(rng.choice(["6", "12"])) / str(rng.choice(["summary.json", "config.json"]))
        if rng.integers(2):
            damaged(file, file, rng)
        else:
            content = json.loads(file.read_text())
            damaged_json(content, rng)
            file.write_text(json.dumps(content))
        runs = {"one": [run], "each": [run / "6", run / "12"], "sound": [folder / "studies"], "none": [folder / "no"]}
        chosen = runs[str(rng.choice([*runs], p=(0.4, 0.4, 0.1, 0.1)))]
        return ["report", *map(str, chosen), "--out", str(folder / f"{number}-together")]

    def of_config() -> list[str]:
        what = str(rng.choice(["template", "schema"]))
        return ["config", what, str(rng.choice(["train", "clusters_to_bulk", "cross_functional", "x", "", "../a"]))]

    kinds: list[Callable[[], list[str]]] = [
        of_label,
        of_evaluate,
        of_potential,
        of_name,
        of_md,
        of_md_start,
        of_md_again,
    ]
    kinds += [of_relax, of_train, of_overrides, of_study, of_convert, of_export, of_tabulate]
    kinds += [of_program, of_marked, of_info, of_plot, of_cite, of_mace, of_ipi, of_validate, of_report, of_config]
    while True:
        yield kinds[number % len(kinds)]()
        number += 1


def fuzz(inputs: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Run so many commands; how they ended, and what was wrong with those that must not end so."""
    ended, wrong = Counter(), []
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        made = commands(Material(folder), np.random.default_rng(seed))
        for _ in range(inputs):
            arguments = next(made)
            result = CliRunner().invoke(app, arguments)
            sentence = result.exit_code in (1, 2) and "Error" in result.stderr and "Traceback" not in result.output
            crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
            ended["a result" if result.exit_code == 0 else "a sentence" if sentence and not crashed else "wrong"] += 1
            if result.exit_code != 0 and (crashed or not sentence):
                trace = "".join(traceback.format_exception(result.exception)) if result.exception else ""
                wrong.append(f"{json.dumps(arguments)}\n{result.output}\n{trace}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ended, wrong


def main() -> None:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    ended, wrong = fuzz(chosen.inputs, chosen.seed)
    for each in wrong:
        print(each)
    print(", ".join(f"{number} ended in {how}" for how, number in ended.items()))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
