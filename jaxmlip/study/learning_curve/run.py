"""Learning curves on labels that are there: a foundation, lifted with N accurate labels by every strategy.

Every potential is a stage of its own whose key holds what it depends on and nothing else, so that a part of the grid
and the whole of it share their potentials in one folder.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.formula import Formula

from jaxmlip.files import to_json, write_json
from jaxmlip.potentials.blocks import form_of_this_machine
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential, save
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.study.frames import digest
from jaxmlip.study.learning_curve.config import LearningCurve
from jaxmlip.study.learning_curve.report import write_results
from jaxmlip.study.registry import register_study
from jaxmlip.study.section import ConfigError
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace, content_digest
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import distillation_problem, split_validation
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import Trained, TrainingDiverged, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import CHECKPOINTS
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.trainer import train, train_many
from jaxmlip.versions import versions

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


def told(results: dict[str, Any], folder: Path) -> str:
    """What the command line says of finished runs."""
    del results
    files = f"{folder / 'results.json'}, {folder / 'learning_curves.png'} and {folder / 'potentials'}"
    return f"{(folder / 'table.md').read_text()}\nWrote {files}."


@register_study(LearningCurve, told=told)
def run_learning_curve(config: LearningCurve, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """TrainingCase the grid in a folder, or what is left of it, and return the content of its `results.json`.

    The folder then holds `potentials/<strategy>-<labels>-<N>-<seed>.jaxmlip`, `results.json`, `table.md`,
    `learning_curves.png`, `config.json` and `stages/`. The results cover every run in the folder that differs from the
    configuration's in strategy, labels, size and seed only. Several processes may work in one folder: each takes runs
    that no other is at work on, and ends when all are done.

    Raises:
        ConfigError: if a path names an environment variable that is not set, or there are fewer frames than a size.
        FileNotFoundError: if a file is missing.
    """
    workspace = Workspace(folder, report=print if progress else lambda line: None)
    study = Context(config, workspace, progress)
    used = [config.high, config.validation, config.test, *config.replay]
    for data in used if config.foundation.potential else [*used, *config.foundation.data]:
        data.identity()  # missing files are named before anything runs
    if max(config.sizes) > len(study.high):
        raise ConfigError(
            f"sizes asks for {max(config.sizes)} frames, but {config.high.path} has {len(study.high)}; leave that "
            "size out."
        )
    (folder / "potentials").mkdir(exist_ok=True)
    with workspace.claimed("results", wait=True):
        resolved = config.model_dump(mode="json")
        write_json(folder / "config.json", {"config": resolved, "seeds": config.seeds, "versions": versions()})

    def publish(name: str, stage: Stage) -> None:
        shutil.copy(stage.folder / "potential.jaxmlip", folder / "potentials" / f"{name}.jaxmlip")
        _tested(study, name, stage)
        with workspace.claimed("results", wait=True):
            write_results(folder, config, _records(study))

    with workspace.claimed(FOUNDATION, wait=True):
        publish(FOUNDATION, _foundation(study))
    grid = _grid(config)
    clock, done = _Clock(study, grid), set()
    for wait in (False, True):  # runs that another process is at work on come last, and are then there as a rule
        for number, run in enumerate(grid):
            if run.name in done:
                continue
            with workspace.claimed(run.name, wait=wait) as mine:
                if mine:
                    clock.announce(number)
                    lift = functools.partial(_lift, study, run)
                    publish(run.name, workspace.stage(run.name, study.inputs(run), lift))
                    done.add(run.name)
    return json.loads((folder / "results.json").read_text())


def _grid(config: LearningCurve) -> list[TrainingCase]:
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
        _keep(study, folder, trained, trained.potential)

    inputs = wanted.model_dump(mode="json", exclude={"potential", "data"})
    return study.workspace.stage(FOUNDATION, inputs | {"files": [data.identity() for data in wanted.data]}, distilled)


def _lift(study: Context, run: TrainingCase, folder: Path) -> None:
    """Lift the foundation with the first N labels."""
    trained = study.waiting.pop(run.name, None) or _trained(study, run, folder / RESUMABLE)
    _keep(study, folder, trained, run.strategy.deploy(trained))


def _trained(study: Context, run: TrainingCase, folder: Path) -> Trained:
    """Train for a run, and where that is useful for the other seeds of its arm, whose results go to the waiting."""
    stacked = study.config.stack_seeds
    if stacked is None:
        stacked = form_of_this_machine() == "accelerator"
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
    try:
        trained = run.strategy.solve(problem, settings, folder=folder, progress=study.progress)
    except TrainingDiverged as error:  # one arm that fails is a result, and no reason to stop the others
        return error.trained
    return trained


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


def _keep(study: Context, folder: Path, trained: Trained, potential: Potential) -> None:
    shutil.rmtree(folder / RESUMABLE / CHECKPOINTS, ignore_errors=True)  # the stage's result stands for them
    provenance = {"config": study.config.model_dump(mode="json"), "versions": versions()}
    save(potential, folder / "potential.jaxmlip", provenance=provenance)
    write_json(folder / "history.json", trained.history)
    outcome = {name: getattr(trained, name) for name in ("best_epoch", "diverged", "converged")}
    write_json(folder / "outcome.json", outcome)


def _tested(study: Context, name: str, trained: Stage) -> Stage:
    """Errors of a potential on the test frames."""

    def build(folder: Path) -> None:
        potential = load_potential(str(trained.folder / "potential.jaxmlip"))
        write_json(folder / "errors.json", errors_of(potential, study.test))

    inputs = {"potential": trained, "test": study.config.test.identity()}
    return study.workspace.stage(f"test-{name}", inputs, build)


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


def _records(study: Context) -> list[dict[str, Any]]:
    """What the finished runs in the folder have given, those of other parts of the same grid included."""
    test = json.loads(to_json(study.config.test.identity()))
    strategies = {strategy.called: strategy.model_dump(mode="json") for strategy in study.config.strategies}
    records = []
    for tested in sorted((study.workspace.folder / "stages").glob("test-*")):
        folder = tested.with_name(tested.name.removeprefix("test-"))
        made, judged = (json.loads((one / "stage.json").read_text()) for one in (folder, tested))
        if judged["inputs"] != {"potential": made["key"], "test": test}:
            continue
        record = {"potential": f"potentials/{folder.name}.jaxmlip", "wall_s": made["wall_s"]}
        if folder.name == FOUNDATION:
            record |= {"strategy": FOUNDATION}
        else:
            inputs = made["inputs"]
            called = inputs["strategy"]["title"] or inputs["strategy"]["name"]
            if inputs["common"] != study.common or strategies.get(called, inputs["strategy"]) != inputs["strategy"]:
                continue
            record |= {"strategy": called, "settings": inputs["strategy"]}
            record |= {key: inputs[key] for key in ("labels", "size", "seed")}
            record |= json.loads((folder / "outcome.json").read_text())
        records.append(record | json.loads((tested / "errors.json").read_text()))
    return records


class _Clock:
    """Says before a run how many there are to come, and how long they will take."""

    def __init__(self, study: Context, grid: list[TrainingCase]) -> None:
        self._workspace = study.workspace
        self._grid = grid
        self._made = [study.workspace.finished(run.name, study.inputs(run)) is not None for run in grid]
        self._started = time.perf_counter()

    def announce(self, number: int) -> None:
        """Before the run of this number."""
        if self._made[number]:
            return
        left = len(self._grid) - number - sum(self._made[number:])
        done = len(self._grid) - sum(self._made) - left
        spent = time.perf_counter() - self._started
        estimate = f", about {spent / done * left / 60:.0f} min left" if done else ""
        self._workspace.report(f"run {number + 1} of {len(self._grid)}{estimate}")
