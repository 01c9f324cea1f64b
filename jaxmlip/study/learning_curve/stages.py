"""The stages of a learning curve: the foundation, every potential of the grid, and its errors."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.formula import Formula

from jaxmlip.files import write_json
from jaxmlip.potentials.blocks import form_of_this_machine
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.study.frames import digest
from jaxmlip.study.learning_curve.config import Foundation, LearningCurve
from jaxmlip.study.section import ConfigError
from jaxmlip.study.trainings import keep_trained, solved
from jaxmlip.study.work import Work, errors_of_model, training
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace, content_digest
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import distillation_problem, split_validation
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import CHECKPOINTS
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.trainer import train, train_many

FOUNDATION = "foundation"


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """One potential of the grid."""

    strategy: Strategy
    labels: Labels
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Of its stage and its potential's file."""
        return f"{self.strategy.called}-{self.labels}-{self.size}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage needs. Files are read when the first stage needs them.

    Attributes:
        config: checked configuration.
        workspace: where stages are.
        progress: show bars.
        waiting: results of trainings whose stage is still to come, by the name of the run.
    """

    config: LearningCurve
    workspace: Workspace
    progress: bool
    waiting: dict[str, Trained] = dataclasses.field(default_factory=dict)

    @property
    def forces_needed(self) -> bool:
        """Whether any run trains on high-fidelity forces."""
        return "energy_forces" in self.config.labels

    @functools.cached_property
    def high(self) -> Sequence[Frame]:
        """All frames that training may see."""
        return self.config.high.frames(forces_needed=self.forces_needed)

    @functools.cached_property
    def validation(self) -> Sequence[Frame]:
        """High-fidelity frames that decide which parameters are kept."""
        return self.config.validation.frames(forces_needed=self.forces_needed)

    @functools.cached_property
    def test(self) -> Sequence[Frame]:
        """High-fidelity frames that nothing but the errors has seen."""
        return self.config.test.frames(forces_needed=self.forces_needed)

    @functools.cached_property
    def low(self) -> list[Frame]:
        """Low-fidelity frames for replay."""
        return [frame for data in self.config.replay for frame in data.frames()]

    @functools.cached_property
    def foundation(self) -> Potential:
        """The foundation, which must have been made."""
        return load_potential(str(self.workspace.stages[FOUNDATION].folder / "potential.jaxmlip"))

    @functools.cached_property
    def model(self) -> Any:
        """What the foundation is: its potential where it is given, else its architecture."""
        given = self.config.foundation
        return load_potential(given.potential) if given.potential else given.student

    @functools.cached_property
    def common(self) -> str:
        """Digest of what all runs share."""
        config = self.config
        files = [data.identity() for data in (config.high, config.validation, *config.replay)]
        return content_digest(
            {"foundation": self.workspace.stages[FOUNDATION], "files": files, "training": config.training}
        )

    def inputs(self, run: TrainingCase) -> dict[str, Any]:
        """What a run depends on."""
        chosen = {"strategy": run.strategy, "labels": run.labels, "size": run.size, "seed": run.seed}
        return {"common": self.common} | chosen


def checked(study: Context) -> Context:
    """The study, whose files are there and have as many frames as it needs.

    Raises:
        ConfigError: see `run_learning_curve`.
        FileNotFoundError: likewise.
    """
    config = study.config
    used = [config.high, config.validation, config.test, *config.replay]
    for data in used if config.foundation.potential else [*used, *config.foundation.data]:
        data.identity()  # missing files are named before anything runs
    if max(config.sizes) > len(study.high):
        raise ConfigError(
            f"sizes asks for {max(config.sizes)} frames, but {config.high.path} has {len(study.high)}; leave that "
            "size out."
        )
    return study


def go_through(config: LearningCurve, workspace: Workspace) -> None:
    """All stages, for plans and workers."""
    run_stages(checked(Context(config, workspace, progress=False)), lambda number: None, lambda name, stage: None)


def run_stages(study: Context, announce: Callable[[int], None], publish: Callable[[str, Stage], None]) -> None:
    """Make and test the foundation and every potential of the grid, or what is left of it.

    Args:
        study: checked.
        announce: called before each potential of the grid, with its number.
        publish: called after each, the foundation included, with its name and stage.
    """
    workspace, grid = study.workspace, grid_of(study.config)
    with workspace.claimed(FOUNDATION, wait=True):
        foundation = _foundation(study)
        _tested(study, FOUNDATION, foundation)
        publish(FOUNDATION, foundation)
    for number in workspace.dealt([run.name for run in grid]):
        announce(number)
        run, build = grid[number], functools.partial(_lift, study, grid[number])
        work = functools.partial(_training, study, run)
        stage = workspace.stage(run.name, study.inputs(run), build, after=[foundation], work=work)
        _tested(study, run.name, stage)
        publish(run.name, stage)


def _training(study: Context, run: TrainingCase) -> Work:
    """What a training of the grid has to do, but for frames that its strategy replays."""
    atoms = float(sum(len(frame.atoms) for frame in study.high[: run.size]))
    if type(run.strategy).solve is not Strategy.solve:
        return Work("training", f"{run.size} structures, {round(atoms):,} atoms; in closed form", None)
    schedule = study.config.training
    return training(run.size, atoms, schedule.steps, schedule.batch_size, study.model)


def grid_of(config: LearningCurve) -> list[TrainingCase]:
    """All runs, seeds of an arm one after another, so that they share compilations.

    Strategies occur with the labels that they look at, and those without a seed once.
    """
    return [
        TrainingCase(strategy, labels, size, seed)
        for labels in config.labels
        for size in config.sizes
        for strategy in config.strategies
        for seed in config.seeds
        if labels in strategy.sees and (strategy.seeded or seed == config.seeds[0])
    ]


def _foundation(study: Context) -> Stage:
    """The potential that is given, or a student distilled from the low fidelity's labels."""
    wanted = study.config.foundation
    if wanted.potential:
        given = Path(wanted.potential)

        def copied(folder: Path) -> None:
            shutil.copy(given, folder / "potential.jaxmlip")

        return study.workspace.stage(FOUNDATION, {"sha256": digest(given)}, copied)

    def distilled(folder: Path) -> None:
        frames = [frame for data in wanted.data for frame in data.frames()]
        training, validation = split_validation(frames, wanted.validation_fraction, seed=0)
        references = None
        if wanted.references is not None:
            references = np.zeros(N_SPECIES)
            for symbol, energy in wanted.references.items():
                references[atomic_numbers[symbol]] = energy
        settings = wanted.training.settings(len(training), seed=0)
        problem = distillation_problem(wanted.student, training, validation, references, settings=settings)
        trained = train(problem, settings, folder=folder / RESUMABLE, progress=study.progress)
        keep_trained(study.config, folder, trained, trained.potential)

    inputs = wanted.model_dump(mode="json", exclude={"potential", "data"})
    inputs |= {"files": [data.identity() for data in wanted.data]}
    return study.workspace.stage(FOUNDATION, inputs, distilled, work=functools.partial(_distilling, wanted))


def _distilling(wanted: Foundation) -> Work:
    """What the training of the foundation has to do."""
    sizes = [len(frame.atoms) for data in wanted.data for frame in data.frames()]
    share, schedule = 1 - wanted.validation_fraction, wanted.training
    number = round(share * len(sizes))
    return training(number, share * sum(sizes), schedule.steps, schedule.batch_size, wanted.student)


def _lift(study: Context, run: TrainingCase, folder: Path) -> None:
    """Lift the foundation with the first N labels."""
    trained = study.waiting.pop(run.name, None) or _trained(study, run, folder / RESUMABLE)
    keep_trained(study.config, folder, trained, run.strategy.deploy(trained))


def _trained(study: Context, run: TrainingCase, folder: Path) -> Trained:
    """Train for a run, and where that is useful for the other seeds of its arm, whose results go to the waiting."""
    stacked = study.config.stack_seeds
    if stacked is None:
        stacked = form_of_this_machine() == "accelerator" and study.config.workers is None
    arm = [dataclasses.replace(run, seed=seed) for seed in study.config.seeds]
    arm = [one for one in arm if study.workspace.finished(one.name, study.inputs(one)) is None]
    if stacked and len(arm) > 1 and type(run.strategy).solve is Strategy.solve:
        place = folder / f"seeds-{'-'.join(str(one.seed) for one in arm)}"
        problems, settings = zip(*(_problem(study, one) for one in arm), strict=True)
        try:
            found = train_many(problems, settings, folder=place, progress=study.progress, vectorised=True)
        except ValueError as error:
            study.workspace.report(f"One seed after the other: {error}")
        else:
            shutil.rmtree(place / CHECKPOINTS)
            study.waiting.update({one.name: trained for one, trained in zip(arm, found, strict=True)})
            return study.waiting.pop(run.name)
    problem, settings = _problem(study, run)
    return solved(run.strategy, problem, settings, folder, progress=study.progress)


def _problem(study: Context, run: TrainingCase) -> tuple[TrainingProblem, TrainingSettings]:
    schedule, strategy = study.config.training, run.strategy
    problem = strategy.problem(
        study.foundation,
        study.high[: run.size],
        validation=study.validation,
        low=study.low,
        labels=run.labels,
        settings=schedule.settings(run.size, run.seed),
    )
    return problem, strategy.adjusted(schedule.settings(len(problem.train), run.seed))


def _tested(study: Context, name: str, trained: Stage) -> Stage:
    """Errors of a potential on the test frames."""

    def build(folder: Path) -> None:
        potential = load_potential(str(trained.folder / "potential.jaxmlip"))
        write_json(folder / "errors.json", errors_of(potential, study.test))

    inputs = {"potential": trained, "test": study.config.test.identity()}
    return study.workspace.stage(f"test-{name}", inputs, build, work=functools.partial(_testing, study))


def _testing(study: Context) -> Work:
    """What a test has to do."""
    return errors_of_model(len(study.test), float(sum(len(frame.atoms) for frame in study.test)), study.model)


def errors_of(potential: Potential, frames: Sequence[Frame]) -> dict[str, dict[str, float | None]]:
    """Errors of a potential, each with its standard error over the frames.

    `energy_std_…` is the root of the mean squared energy error after its mean is removed. Where all frames have one
    composition, such as H2O, energies are also given for its formula unit: `energy_mean_meV_H2O`; else the mean is
    given for an atom alone.
    """
    report = compare(frames, predict(potential, [frame.atoms for frame in frames]))
    unit, atoms = formula_unit(frames)

    def per_unit(name: str) -> dict[str, float | None]:
        measured = report.measured(name).items()
        return {key: None if value is None else atoms * value for key, value in measured}

    errors = {name: report.measured(name) for name in ("force_rmse_meV_A", "energy_std_meV_atom")}
    if unit != "atom":
        errors[f"energy_std_meV_{unit}"] = per_unit("energy_std_meV_atom")
    return errors | {f"energy_mean_meV_{unit}": per_unit("energy_mean_meV_atom")}


def formula_unit(frames: Sequence[Frame]) -> tuple[str, float]:
    """The reduced formula that all frames share, and its number of atoms; "atom" and 1 where they share none."""
    formulas = {frame.atoms.symbols.formula.reduce()[0].format("hill") for frame in frames}
    number = len(Formula(min(formulas))) if formulas else 1
    return (min(formulas), float(number)) if len(formulas) == 1 and number > 1 else ("atom", 1.0)
