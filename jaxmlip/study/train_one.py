"""One potential by one strategy, from files of labelled frames: the `jaxmlip train` command."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from jaxmlip.files import to_json, write_json
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.errors import compare, table_of
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.models import AnyModel
from jaxmlip.processes import join_processes, writes_files
from jaxmlip.study.frames import FileData
from jaxmlip.study.plan import Plan, PlannedStage
from jaxmlip.study.registry import register_study
from jaxmlip.study.section import Section, check_deployable
from jaxmlip.study.work import Work, training_of_epochs
from jaxmlip.systems.dataset import has_stress, split
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.strategies.fresh import Direct
from jaxmlip.training.strategies.registry import AnyStrategy
from jaxmlip.versions import versions


class TrainOne(Section):
    """One potential by one strategy, from files of labelled frames."""

    study: Literal["train"] = "train"
    name: str = pydantic.Field(default="train", pattern=r"^[\w.-]+$")
    seed: int = pydantic.Field(default=0, ge=0)
    foundation: str | None = pydantic.Field(
        default=None, description="path of the student to start from; none: a new one (strategy direct)"
    )
    student: AnyModel = Equivariant()
    strategy: Annotated[AnyStrategy, pydantic.Field(description="how the student is lifted")] = Direct()
    teacher: str | None = pydantic.Field(
        default=None, description="name or path of the foundation's teacher, for differential with baseline: teacher"
    )
    labels: Labels = "energy_forces"
    data: FileData
    validation_fraction: float = pydantic.Field(default=0.1, gt=0, lt=1)
    replay: FileData | None = pydantic.Field(
        default=None, description="low-fidelity frames, for multi_fidelity and for references: shift"
    )
    training: TrainingSettings = TrainingSettings()


def told(result: dict[str, Any], folder: Path) -> str:
    """What the command line says of a training: a table in a terminal, JSON to a program or a file."""
    if not sys.stdout.isatty():
        return f"{to_json(result)}\nWrote {folder / 'potential.jaxmlip'}."
    return in_words(result, folder)


def in_words(result: dict[str, Any], folder: Path) -> str:
    """The errors of a training as a table, which epoch was kept, and where all of it is."""
    kept = f"Kept: the parameters of epoch {result['best_epoch']} of {result['epochs']}.\n" if result["epochs"] else ""
    weight = f"Stress was trained on with weight {result['stress_weight']:.3g}.\n" if "stress_weight" in result else ""
    return (
        f"Errors on the frames held out (value ± standard error):\n{table_of(result['validation'])}\n{kept}{weight}"
        f"Wrote {folder / 'potential.jaxmlip'}; the errors are in errors.json beside it, those of all epochs in "
        "training/metrics.csv."
    )


def planned(config: TrainOne, folder: Path) -> Plan:
    """What the training has to do; whether it is done is not known, for its folder does not say of what it is."""
    frames = config.data.frames(forces_needed=config.labels != "energy")
    foundation = load(config.foundation) if config.foundation else None
    check_deployable(config.strategy, config.teacher)
    if config.replay:
        config.replay.frames()
    number = round((1 - config.validation_fraction) * len(frames))
    atoms = (1 - config.validation_fraction) * sum(len(frame.atoms) for frame in frames)
    settings = config.strategy.adjusted(config.training)
    if type(config.strategy).solve is Strategy.solve:
        model = config.student if foundation is None else foundation
        work = training_of_epochs(number, atoms, settings.epochs, settings.batch_size, model)
    else:
        work = Work("training", f"{number} structures, {round(atoms):,} atoms; in closed form", None)
    return Plan("train", folder, (PlannedStage("training", "", False, (), work),))


@register_study(TrainOne, told=told, command="train", planned=planned)
def run_train_one(config: TrainOne, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train, write `potential.jaxmlip`, `history.json` and `errors.json`, and return the validation errors.

    With them come the epoch whose parameters were kept, the last one and, if stress was trained on, its weight.

    Checkpoints and metrics go to `training/`: the same call after a kill goes on from there. Where the environment
    names a group of processes (see `join_processes`), they share the work, and one of them writes.

    Raises:
        ValueError: if the strategy needs a foundation and none is given, or the foundation cannot be trained.
        FileNotFoundError: if a file of labels or the foundation is missing.
        KeyError: if a label is missing.
    """
    join_processes()
    held_back = config.validation_fraction
    frames = config.data.frames(forces_needed=config.labels != "energy")
    training, validation = split(frames, [1 - held_back, held_back], seed=config.seed)
    low = config.replay.frames() if config.replay else []
    strategy, settings = config.strategy, config.strategy.adjusted(config.training)
    seen: dict[str, Any] = {"validation": validation, "labels": config.labels, "settings": settings}
    if config.foundation is None:
        problem = strategy.from_labels(config.student, training, **seen)
    else:
        foundation = load(config.foundation)
        check_deployable(strategy, config.teacher)
        teacher = load(config.teacher) if config.teacher else None
        problem = strategy.problem(foundation, training, low=low, teacher=teacher, **seen)
    trained = strategy.solve(problem, settings, folder=folder / "training", progress=progress)
    potential = strategy.deploy(trained)

    predicted = predict(potential, [frame.atoms for frame in validation], stress=any(map(has_stress, validation)))
    errors = compare(validation, predicted).to_json()
    if writes_files():
        folder.mkdir(parents=True, exist_ok=True)
        provenance = {"config": config.model_dump(mode="json"), "versions": versions(), "seed": config.seed}
        save(potential, folder / "potential.jaxmlip", provenance=provenance)
        write_json(folder / "history.json", trained.history)
        write_json(folder / "errors.json", errors)
    weight = {key: trained.history[-1][key] for key in ("stress_weight",) if key in trained.history[-1]}
    epochs = trained.history[-1]["epoch"] if trained.history else 0
    return {"validation": errors, "best_epoch": trained.best_epoch, "epochs": epochs} | weight
