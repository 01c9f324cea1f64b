"""Plans of runs: what they say, for every configuration that the experiments have, and that they leave no trace."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from typer.testing import CliRunner
from water_pairs import HIGH, LOW

from jaxmlip.cli import app
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.files import save
from jaxmlip.study.plan import Plan, PlannedStage, Planner
from jaxmlip.study.work import cost_of, labelling, simulating, training
from jaxmlip.study.workspace import Piece, Workspace
from jaxmlip.systems.dataset import Frame, write_frames

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIGURATIONS = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.glob("*/*.yaml"))

LABELS = {"clusters_5.0A": 600, "clusters_4.0A": 3, "clusters_5.5A": 3, "clusters_6.0A": 3, "bulk": 15}
"""Frames that the published files must have at least, by name."""

LEVELS = ("MatPES-PBE-2025.1.json.gz", "MatPES-R2SCAN-2025.1.json.gz")

CRYSTAL = "clusters_to_bulk/carbon_dioxide.cif"

SAID = {
    "clusters_to_bulk/carbon_dioxide.yaml": ["24 stages, 0 done", "2 replicas of 96 atoms, 160 steps"],
    "clusters_to_bulk/desk.yaml": [
        "88 stages, 0 done",
        "direct.energy_forces and 25 more",
        "dynamics-teacher and 55 more",
    ],
    "clusters_to_bulk/full.yaml": [
        "188 stages, 0 done",
        "8 replicas of 288 atoms, 20,000 steps",
        "foundation and 2 more",
    ],
    "clusters_to_bulk/from_scratch.yaml": ["training: 95 structures", "64 channels"],
    "clusters_to_bulk/maceoff.yaml": [
        "foundation  ",
        "8,000 steps",
        "direct-energy_forces-50-0 and ",
        "pair_difference-energy-50-0",
        "in closed form",
    ],
    "clusters_to_bulk/quick.yaml": [
        "24 stages, 0 done",
        "2 replicas of 96 atoms, 160 steps",
        "20 bulk frames, 100 clusters",
        "9 trainings, 11 simulations",
    ],
    "cross_functional/desk.yaml": ["crystals", "CHGNet", "of which nothing is known before"],
    "cross_functional/full.yaml": ["MatPES-PBE-2025.1.json.gz as a store", "at most 200,000"],
    "cross_functional/quick.yaml": ["200 crystals", "3 sets of labels", "600 steps"],
    "nacl_density/train.yaml": ["training: 5 structures", "16 channels"],
}


def water(number: int) -> list[Frame]:
    """Single molecules with labels of both levels' names."""
    shape = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    frames = []
    for _ in range(number):
        atoms = Atoms("OH2", shape)
        for level in ("mp0", "off23"):
            atoms.info[f"{level}_energy"], atoms.arrays[f"{level}_forces"] = -14.0, np.zeros((3, 3))
        frames.append(Frame(atoms, -14.0, np.zeros((3, 3)), info=dict(atoms.info)))
    return frames


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """All files that the configurations name; most are much smaller than the real ones."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "ice_maceoff").mkdir()
    for name, number in LABELS.items():
        write_frames(folder / "ice_maceoff" / f"{name}.extxyz", water(number))
    for name in LEVELS:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, inputs):
    """An empty folder with the files that are named relative to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMLIP_DATA", str(inputs))
    monkeypatch.setenv("MATPES", str(inputs))
    write_frames("labelled.xyz", water(6))
    crystal = tmp_path / "experiments" / CRYSTAL
    crystal.parent.mkdir(parents=True)
    shutil.copy(EXPERIMENTS / CRYSTAL, crystal)
    return tmp_path


def called(name: str, *words: str):
    path = EXPERIMENTS / name
    command = "train" if yaml.safe_load(path.read_text()).get("study") == "train" else "run"
    return CliRunner().invoke(app, [command, str(path), "--dry-run", *words])


def test_every_configuration_is_here():
    assert {*CONFIGURATIONS} == SAID.keys()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_plans_of_the_experiments(name, place):
    """Sizes, an estimate that says where it comes from, and no file."""
    done = called(name)
    assert done.exit_code == 0, done.output
    for words in (*SAID[name], "Nothing was computed, written or downloaded.", "Estimated memory: "):
        assert words in done.output
    assert re.search(r"Estimated time: \d.*An estimate, good to a factor", done.output)
    assert "experiments/benchmarks/results/dry_run_rates.md" in done.output
    assert sorted(path.name for path in place.iterdir()) == ["experiments", "labelled.xyz"]


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("clusters_to_bulk/maceoff.yaml", None, "names an environment variable that is not set; export it first"),
        ("cross_functional/full.yaml", None, "names an environment variable that is not set; export it first"),
        ("clusters_to_bulk/maceoff.yaml", "elsewhere", "Error: There is no file elsewhere/ice_maceoff/clusters_5.0A"),
        ("cross_functional/full.yaml", "elsewhere", "Error: There is no file elsewhere/MatPES-PBE"),
        ("nacl_density/train.yaml", "elsewhere", "labelled.xyz"),
    ],
)
def test_missing_files_are_named(name, lacking, said, place, monkeypatch):
    (place / "labelled.xyz").unlink()
    for variable in ("JAXMLIP_DATA", "MATPES"):
        monkeypatch.delenv(variable) if lacking is None else monkeypatch.setenv(variable, lacking)
    refused = called(name)
    assert refused.exit_code == 1
    assert said in refused.output
    assert len(refused.output.strip().splitlines()) == 1
    assert [path.name for path in place.iterdir()] == ["experiments"]


def test_wrong_configurations_are_refused(place):
    assert "unknown key systems; did you mean system?" in called("clusters_to_bulk/quick.yaml", "systems=1").output
    for teacher, level in ((LOW, "low"), (HIGH, "high")):
        save(teacher, f"{level}.jaxmlip")
    gone = called("clusters_to_bulk/quick.yaml", "teachers={low: low.jaxmlip, high: gone.jaxmlip}")
    assert "Error: There is no potential file gone.jaxmlip." in gone.output
    fine = called("clusters_to_bulk/quick.yaml", "teachers={low: low.jaxmlip, high: high.jaxmlip}", "workers=4")
    assert "time not known" in fine.output  # of teachers that nobody has timed
    assert " with 4 workers" in fine.output
    assert not (place / "runs").exists()


def test_a_plan_sees_what_is_done(tmp_path):
    """Pieces count as long as the stage that they are of is not there."""
    folder = tmp_path / "run"
    pieces = [Piece(f"all.{k}", {"piece": k}, lambda place: None) for k in range(2)]

    def go_through(workspace: Workspace) -> None:
        first = workspace.stage("first", {"seed": 1}, lambda place: None)
        whole = workspace.stage("all", {"first": first}, lambda place: None, pieces=pieces)
        workspace.stage("last", {"digest": 0}, lambda place: None, after=[whole])

    def planned() -> dict[str, PlannedStage]:
        planner = Planner(folder)
        go_through(planner)
        return planner.planned

    before = planned()
    assert [*before] == ["first", "all.0", "all.1", "all", "last"]
    assert before["all"].after == ("first", "all.0", "all.1")
    assert before["last"].after == ("all",)
    assert not folder.exists()
    workspace = Workspace(folder, report=lambda line: None)
    workspace.stage("first", {"seed": 1}, lambda place: None)
    assert [stage.name for stage in planned().values() if stage.done] == ["first"]
    go_through(workspace)
    after = planned()
    assert [*after] == ["first", "all", "last"]
    assert all(stage.done for stage in after.values())
    assert {name: stage.key for name, stage in after.items()} == {name: before[name].key for name in after}


def test_estimates():
    """Sums by hand; what is done here tells how fast the rest will be."""
    model = Equivariant(channels=128, layers=2, l_max=3, message_l=0, cutoff=5.0)
    one = training(100, 5000.0, 1000, 4, model)
    assert one.atoms == 1000 * 4 * 50
    assert one.seconds_per_atom() == pytest.approx(582e-6)
    half = cost_of(model.model_copy(update={"channels": 64}))
    assert half.step_us == pytest.approx(407.0)
    both = cost_of(model.build([1, 8], average_neighbors=10.0) + model.build([1, 8], average_neighbors=10.0))
    assert both.forces_us == pytest.approx(380.0)
    assert cost_of(LOW).forces_us is None
    run = simulating(2, 100, 5000, model)
    stages = [
        PlannedStage("foundation", "", False, (), one),
        PlannedStage("a", "", False, ("foundation",), one),
        PlannedStage("b", "", False, ("foundation",), run),
        PlannedStage("unknown", "", False, (), labelling(3, 9.0, LOW)),
    ]
    seconds = Plan("any", Path("run"), tuple(stages)).seconds()
    assert seconds["foundation"] == pytest.approx(30 + 116.4)  # with compiling
    assert seconds["a"] == pytest.approx(116.4)
    assert seconds["b"] == pytest.approx(8 + 190.0)
    assert math.isnan(seconds["unknown"])
    shared = Plan("any", Path("run"), tuple(stages), workers=8)
    assert shared.seconds_together() == pytest.approx(146.4 + 198.0)  # a chain is not shared
    done = PlannedStage("c", "", True, (), one, wall_s=20.0)
    faster = Plan("any", Path("run"), (done, *stages)).seconds()
    assert faster["foundation"] == faster["a"] == pytest.approx(20.0)
    assert "those of the stages that are done here where there are such" in str(
        Plan("any", Path("run"), (done, *stages))
    )
    assert "All stages are done" in str(Plan("any", Path("run"), (done,)))
    assert "which stages it has, this study does not say" in str(Plan("any", Path("run"), None))
