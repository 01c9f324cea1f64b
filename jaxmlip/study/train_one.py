"""One potential by one strategy, from files of labelled frames: the `jaxmlip train` command."""

import os
from pathlib import Path
from typing import Any

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load, load_potential, save
from jaxmlip.study.config import ConfigError, FileData, TrainOne
from jaxmlip.study.workspace import versions, write_json
from jaxmlip.systems.dataset import Frame, read_frames, split
from jaxmlip.training.strategies import Direct
from jaxmlip.validation.errors import compare


def run_train_one(config: TrainOne, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train, write `potential.jaxmlip`, `history.json` and `errors.json`, and return the validation errors.

    Raises:
        ConfigError: if the strategy needs a foundation and none is given, or the foundation is not a student.
        FileNotFoundError: if a file of labels or the foundation is missing.
        KeyError: if a label is missing.
    """
    held_back = config.validation_fraction
    training, validation = split(_frames(config.data), [1 - held_back, held_back], seed=config.seed)
    low = _frames(config.replay) if config.replay else []
    strategy, settings = config.strategy, config.strategy.adjusted(config.training)
    seen: dict[str, Any] = {"validation": validation, "labels": config.labels, "settings": settings}
    if config.foundation is None:
        if not isinstance(strategy, Direct):
            raise ConfigError(f"The strategy {strategy.name} starts from a foundation; give its path as foundation.")
        problem = strategy.from_labels(config.student, training, **seen)
    else:
        foundation = load(config.foundation)
        if not isinstance(foundation, EquivariantPotential):
            raise ConfigError(
                f"The foundation {config.foundation} is not a student of ours, so it cannot be fine-tuned."
            )
        teacher = load_potential(config.teacher) if config.teacher else None
        problem = strategy.problem(foundation, training, low=low, teacher=teacher, **seen)
    trained = strategy.solve(problem, settings, progress=progress)
    potential = strategy.deploy(trained)

    folder.mkdir(parents=True, exist_ok=True)
    provenance = {"config": config.model_dump(mode="json"), "versions": versions(), "seed": config.seed}
    save(potential, folder / "potential.jaxmlip", provenance=provenance)
    write_json(folder / "history.json", trained.history)
    errors = compare(validation, predict(potential, [frame.atoms for frame in validation])).to_json()
    write_json(folder / "errors.json", errors)
    return {"validation": errors, "best_epoch": trained.best_epoch}


def _frames(data: FileData) -> list[Frame]:
    path = os.path.expandvars(data.path)
    if "$" in path:
        raise ConfigError(f"The path {data.path} names an environment variable that is not set; export it first.")
    return read_frames(path, energy_key=data.energy_key, forces_key=data.forces_key, index=data.index)
