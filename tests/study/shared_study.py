"""A study of copper that workers can share: labels of a calculator, then a few stages that read them."""

import os
import time
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.build import bulk

from jaxmlip.files import write_json
from jaxmlip.potentials.files import load
from jaxmlip.study.labelling import Labelling
from jaxmlip.study.registry import register_study
from jaxmlip.study.section import Section
from jaxmlip.study.work import making
from jaxmlip.study.workers import WORKERS, Workers, share_stages
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace
from jaxmlip.systems.dataset import Frame, read_frames, write_frames

KILL = "kill-me"
"""File in the folder of a run that has the stage `mean-1` wait to be killed."""


class Copper(Section):
    """Energies of crystals."""

    study: Literal["copper"] = "copper"
    name: str = "copper"
    structures: int = 5
    fails: bool = False
    workers: Workers | None = WORKERS


def crystals(number: int) -> list[Atoms]:
    """Rattled, each another way."""
    made = [bulk("Cu", cubic=True) for _ in range(number)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
    return made


def stages(config: Copper, workspace: Workspace) -> dict[str, Stage]:
    """All of the study."""

    def structures(folder: Path) -> None:
        frames = [Frame(atoms, np.nan, np.full((len(atoms), 3), np.nan)) for atoms in crystals(config.structures)]
        write_frames(folder / "copper.extxyz", frames)

    made = workspace.stage("structures", {"number": config.structures}, structures, work=lambda: making("copper"))

    def read() -> list[list[Atoms]]:
        frames = read_frames(made.folder / "copper.extxyz", energy_key=None, forces_key=None)
        return [[frame.atoms for frame in frames[:2]], [frame.atoms for frame in frames[2:]]]

    inputs = {"structures": made}
    teacher, number = load("ase:ase.calculators.emt:EMT"), config.structures
    task = Labelling(workspace, "labels", inputs, read, teacher, workers=config.workers, number=number)

    def labels(folder: Path) -> None:
        write_frames(folder / "copper.extxyz", [frame for group in task.frames() for frame in group])

    labelled = workspace.stage("labels", inputs, labels, pieces=task.pieces, work=task.work)

    def mean(folder: Path) -> None:
        name = folder.name.removeprefix(".").removesuffix(".partial")
        with (workspace.folder / "begun.txt").open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if config.fails:
            raise ValueError("Copper has no mean today.")
        progress = folder / RESUMABLE / "half.txt"
        kept = progress.exists()
        if name == "mean-1" and (workspace.folder / KILL).exists():
            progress.parent.mkdir()
            progress.write_text("half")
            (workspace.folder / KILL).rename(workspace.folder / "waiting")
            time.sleep(300)
        energies = [frame.energy for frame in read_frames(labelled.folder / "copper.extxyz")]
        write_json(folder / "mean.json", {"mean": float(np.mean(energies)), "went on": kept})

    return {name: workspace.stage(name, {"labels": labelled}, mean) for name in ("mean-0", "mean-1", "mean-2")}


@register_study(Copper, told=lambda result, folder: f"{result}", stages=stages)
def run_copper(config: Copper, folder: Path, *, progress: bool = True) -> dict[str, Stage]:
    """Run it."""
    workspace = Workspace(folder, report=print if progress else lambda line: None)
    share_stages(config, workspace)
    return stages(config, workspace)
