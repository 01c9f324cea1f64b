"""Trainings as stages of studies: what is kept of them, and that one which fails is a result."""

import shutil
from pathlib import Path

from jaxmlip.files import write_json
from jaxmlip.potentials.files import save
from jaxmlip.potentials.potential import Potential
from jaxmlip.study.section import Section
from jaxmlip.study.workspace import RESUMABLE
from jaxmlip.training.problem import Trained, TrainingDiverged, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import CHECKPOINTS
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.versions import versions

POTENTIAL = "potential.jaxmlip"
"""File of the potential in the folder of a training's stage."""


def solved(
    strategy: Strategy, problem: TrainingProblem, settings: TrainingSettings, folder: Path, *, progress: bool
) -> Trained:
    """Train by a strategy; of a training that diverges, what was best before.

    One arm of a study that fails is a result, and no reason to stop the others.
    """
    try:
        return strategy.solve(problem, settings, folder=folder, progress=progress)
    except TrainingDiverged as error:
        return error.trained


def keep_trained(config: Section, folder: Path, trained: Trained, potential: Potential) -> None:
    """Write the potential, its history and how the training ended into the folder of a stage."""
    shutil.rmtree(folder / RESUMABLE / CHECKPOINTS, ignore_errors=True)  # the stage's result stands for them
    provenance = {"config": config.model_dump(mode="json"), "versions": versions()}
    save(potential, folder / POTENTIAL, provenance=provenance)
    write_json(folder / "history.json", trained.history)
    outcome = {name: getattr(trained, name) for name in ("best_epoch", "diverged", "converged")}
    write_json(folder / "outcome.json", outcome)
