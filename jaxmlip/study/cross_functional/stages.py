"""The trainings of the study: foundations on one level, and every way from there to the other; each a stage.

References are what the methods differ in, so each method is a strategy and the references that its foundation carries.
All trainings of an architecture that have batches of equal shape share their compiled steps within a process.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxmlip.files import write_json
from jaxmlip.potentials.files import load_potential
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.study.cross_functional.config import CrossFunctional, Method
from jaxmlip.study.cross_functional.data import ATOMS_OF_CRYSTAL, Data, Level, prepare
from jaxmlip.study.cross_functional.errors import errors_of, phase_energies
from jaxmlip.study.trainings import POTENTIAL, keep_trained, solved
from jaxmlip.study.work import Work, errors_of_model, training
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace, seed_for
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import fresh_problem, of_architecture
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.weighting import terms_of

FOUNDATION = "foundation"
MULTI_FIDELITY = "multi_fidelity"
ALL_OF_FILES = 100_000
"""Structures that files without a limit are taken to have, for plans."""

SOURCE_HEAD = "source.jaxmlip"
"""File of the readout for the level that is replayed."""

Direction = Literal["forward", "reverse"]
"""From source to target, or the other way."""

ENDS: dict[Direction, tuple[Level, Level]] = {"forward": ("source", "target"), "reverse": ("target", "source")}

TRANSFER: Method = "target"
"""The method that stands for transfer where it is compared with training from scratch."""

STRATEGIES: dict[Method, Strategy] = {
    "scratch": Direct(references="keep"),
    "source_trainable": SingleFidelity(references="trainable", trainable_from="keep"),
    "source_frozen": SingleFidelity(references="keep"),
    "target": SingleFidelity(references="keep"),
    "residual": SingleFidelity(references="residual"),
}

WITH_REFERENCES_OF_THE_END = ("scratch", "target", MULTI_FIDELITY)
"""Methods whose foundation is given the references of the level that it is lifted to."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One potential of the study.

    Attributes:
        direction: between which levels.
        architecture: title of its model.
        method: `FOUNDATION`, one of `METHODS`, or `MULTI_FIDELITY`.
        size: structures of the level that is lifted to; 0 for foundations.
        seed: of parameters, batches and the choice of structures.
    """

    direction: Direction
    architecture: str
    method: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Of its stage."""
        size = f"-{self.size}" if self.size else ""
        return f"{self.direction}-{self.architecture}-{self.method}{size}-{self.seed}"

    @property
    def foundation(self) -> "Case":
        """What it starts from."""
        return dataclasses.replace(self, method=FOUNDATION, size=0)


@dataclasses.dataclass(frozen=True)
class Context:
    """What every training needs."""

    config: CrossFunctional
    workspace: Workspace
    data: Data
    progress: bool

    @functools.cached_property
    def elements(self) -> list[Frame]:
        """A frame for each set of elements: what the potentials must know."""
        parts = [self.data.frames(level, part) for level in ENDS["forward"] for part in ("train", "validation", "test")]
        return list({tuple(sorted({*f.atoms.numbers})): f for frames in parts for f in frames}.values())

    def chosen(self, case: Case) -> Sequence[Frame]:
        """The structures that a case sees of the level that it is lifted to; smaller sets are parts of larger ones."""
        everything = self.data.frames(ENDS[case.direction][1], "train")
        order = np.random.default_rng(seed_for(case.seed, "subset")).permutation(len(everything))
        return everything.select(order[: case.size])


def cases(config: CrossFunctional) -> list[Case]:
    """All potentials but foundations, those that share compiled code one after another."""
    largest = config.sizes[-1]
    found: dict[Case, None] = {}
    for architecture in config.architectures:
        for size in reversed(config.sizes):
            methods: list[str] = ["scratch", TRANSFER]
            if size == largest:
                methods = [*config.methods, *methods, *([MULTI_FIDELITY] if config.multi_fidelity_replay else [])]
            found |= {Case("forward", architecture, m, size, s): None for m in methods for s in config.seeds}
        if config.reverse:
            methods = ["scratch", TRANSFER]
            found |= {Case("reverse", architecture, m, largest, s): None for m in methods for s in config.seeds}
    return [*found]


def foundations(config: CrossFunctional) -> list[Case]:
    """The potentials that others start from."""
    return [*dict.fromkeys(case.foundation for case in cases(config))]


def go_through(config: CrossFunctional, workspace: Workspace) -> None:
    """All stages but the report, for plans and workers."""
    run_cases(Context(config, workspace, prepare(config, workspace), progress=False))


def run_cases(study: Context) -> dict[Case, Stage]:
    """Train and test every potential of the study, or what is left of it; processes share the work.

    Returns:
        The finished tests.
    """
    tests: dict[Case, Stage] = {}
    potentials: dict[Case, Stage] = {}
    for grid in (foundations(study.config), cases(study.config)):
        for number in study.workspace.dealt([case.name for case in grid]):
            case = grid[number]
            inputs, build = _foundation(study, case), _lifted
            if case.method == FOUNDATION:
                build = _pretrained
            else:
                inputs |= {"foundation": potentials[case.foundation], "method": case.method, "size": case.size}
                inputs |= {"settings": study.config.finetuning, "references": study.data.labels}
                inputs |= {"replay": study.config.multi_fidelity_replay if case.method == MULTI_FIDELITY else None}
            start = potentials.get(case.foundation)
            build = functools.partial(build, study, case, None if start is None else start.folder)
            potentials[case] = study.workspace.stage(
                case.name, inputs, build, work=functools.partial(_training, study, case)
            )
            tests[case] = _tested(study, case, potentials[case])
    return tests


def _training(study: Context, case: Case) -> Work:
    """What a training has to do."""
    config = study.config
    number, schedule = case.size, config.finetuning
    if case.method == FOUNDATION:
        number = round((1 - config.validation_fraction - config.test_fraction) * _structures_of_level(config))
        schedule = config.pretraining
    elif case.method == MULTI_FIDELITY:
        number += round(config.multi_fidelity_replay * number)
    model = config.architectures[case.architecture]
    return training(number, ATOMS_OF_CRYSTAL * number, schedule.steps, schedule.batch_size, model)


def _structures_of_level(config: CrossFunctional) -> int:
    """About how many there are, in all parts together."""
    return config.structures.number if config.files is None else config.files.number or ALL_OF_FILES


def _foundation(study: Context, case: Case) -> dict[str, Any]:
    """What decides the parameters of a foundation."""
    begin, _ = ENDS[case.direction]
    model = study.config.architectures[case.architecture]
    inputs = {"labels": study.data.labels[begin], "others": study.data.labels[ENDS[case.direction][1]]}
    return inputs | {"model": model, "pretraining": study.config.pretraining, "seed": case.seed}


def _pretrained(study: Context, case: Case, start: Path | None, folder: Path) -> None:
    """A new potential on all labels of the level where a direction begins."""
    del start
    begin, _ = ENDS[case.direction]
    training, validation = (study.data.frames(begin, part) for part in ("train", "validation"))
    settings = study.config.pretraining.settings(len(training), seed_for(case.seed, FOUNDATION))
    problem = fresh_problem(
        of_architecture(study.config.architectures[case.architecture], study.elements),
        training,
        validation,
        study.data.references(begin),
        settings=settings,
        terms=terms_of(settings, training),
    )
    trained = solved(Direct(), problem, settings, folder / RESUMABLE, progress=study.progress)
    keep_trained(study.config, folder, trained, trained.potential)


def _lifted(study: Context, case: Case, start: Path | None, folder: Path) -> None:
    """A foundation at the other level, by one of the methods."""
    assert start is not None
    begin, end = ENDS[case.direction]
    foundation = load_potential(start / POTENTIAL)
    assert isinstance(foundation, Trainable)
    own, other = study.data.references(begin), study.data.references(end)
    if case.method in WITH_REFERENCES_OF_THE_END:
        foundation = foundation.with_references(other)
    strategy = _strategy(study.config, case.method)
    problem, settings = _problem(study, case, strategy, foundation, other - own)
    trained = solved(strategy, problem, settings, folder / RESUMABLE, progress=study.progress)
    if case.method == MULTI_FIDELITY:
        source = trained.potential
        assert isinstance(source, Trainable)
        trained_source = dataclasses.replace(trained, potential=source.select_head(0).with_references(own))
        keep_trained(study.config, folder, trained_source, trained_source.potential)
        (folder / POTENTIAL).rename(folder / SOURCE_HEAD)
    keep_trained(study.config, folder, trained, strategy.deploy(trained))


def _strategy(config: CrossFunctional, method: str) -> Strategy:
    if method == MULTI_FIDELITY:
        return MultiFidelity(references="keep", replay=config.multi_fidelity_replay)
    return STRATEGIES[method]  # pyright: ignore[reportArgumentType]


def _problem(
    study: Context, case: Case, strategy: Strategy, foundation: Trainable, shift: Float[np.ndarray, "119"]
) -> tuple[TrainingProblem, TrainingSettings]:
    """What is trained; `shift` is from the references of where it begins to those of where it ends."""
    begin, end = ENDS[case.direction]
    chosen = study.chosen(case)
    low = [*study.data.frames(begin, "train")] if case.method == MULTI_FIDELITY else []
    schedule, seed = study.config.finetuning, seed_for(case.seed, "finetuning")
    settings = strategy.adjusted(schedule.settings(len(chosen), seed))
    problem = strategy.problem(
        foundation,
        chosen,
        validation=study.data.frames(end, "validation"),
        # One table of references serves both readouts, so that each sees energies relative to its own level's.
        low=[dataclasses.replace(f, energy=f.energy + float(shift[f.atoms.numbers].sum())) for f in low],
        settings=settings,
    )
    return problem, strategy.adjusted(schedule.settings(len(problem.train), seed))


def _tested(study: Context, case: Case, trained: Stage) -> Stage:
    """Errors of a potential on the test structures of the level that it is for, and its energies of phases."""
    begin, end = ENDS[case.direction]
    level = begin if case.method == FOUNDATION else end

    def build(folder: Path) -> None:
        potential = load_potential(trained.folder / POTENTIAL)
        write_json(folder / "errors.json", errors_of(potential, study.data.frames(level, "test")))
        if case.method == MULTI_FIDELITY:
            source = load_potential(trained.folder / SOURCE_HEAD)
            write_json(folder / "source_errors.json", errors_of(source, study.data.frames(begin, "test")))
        if case.direction == "forward" and case.method != FOUNDATION:
            write_json(folder / "phases.json", phase_energies(potential, study.data.hull()))

    inputs = {"potential": trained, "test": study.data.labels[level], "phases": study.data.phases}
    inputs |= {"other": study.data.labels[begin]}
    work = functools.partial(_testing, study, case)
    return study.workspace.stage(f"test-{case.name}", inputs, build, work=work)


def _testing(study: Context, case: Case) -> Work:
    """What a test has to do."""
    number = round(study.config.test_fraction * _structures_of_level(study.config))
    return errors_of_model(number, ATOMS_OF_CRYSTAL * number, study.config.architectures[case.architecture])
