"""Clusters to bulk: lift a student on clusters, then hold its simulations against the teacher's own.

The design of arXiv:2509.16601 with synthetic references: because the accurate level of theory is a potential too, the
truth about the bulk can be simulated. Each function below is one stage, cached by its inputs; what a stage hands on
goes through files, so that a resumed study reads exactly what an undisturbed one reads.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms

from jaxmlip.digests import digest
from jaxmlip.files import write_json
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load_potential, save
from jaxmlip.potentials.potential import Potential, check_species
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.study.clusters_to_bulk.config import ChosenEnsemble, ClustersToBulk, Dynamics
from jaxmlip.study.clusters_to_bulk.crystal import Crystal, crystal_of, made
from jaxmlip.study.labelling import Labelling
from jaxmlip.study.section import ConfigError, check_deployable
from jaxmlip.study.trainings import POTENTIAL
from jaxmlip.study.work import Work, labelling, making, simulating, training_of_epochs
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace, seed_for
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame, read_frames, write_frames
from jaxmlip.training.distill import distillation_problem, teacher_references
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import CHECKPOINTS
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.trainer import train
from jaxmlip.versions import versions

FOUNDATION = "foundation"
"""Name of the distilled student before it is lifted."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage needs."""

    config: ClustersToBulk
    workspace: Workspace
    crystal: Crystal
    low: Potential
    high: Potential
    progress: bool


@dataclasses.dataclass(frozen=True)
class Results:
    """The finished stages that the summary is made from.

    Attributes:
        students: lifted students and the foundation, by `<strategy>.<labels>`, one for each seed.
        runs: simulations of the students and of the `teacher`: for each seed, by ensemble.
        test: bulk frames of the teacher's first simulation with its labels.
    """

    students: dict[str, list[Stage]]
    runs: dict[str, list[dict[str, Stage]]]
    test: Stage


def run_stages(config: ClustersToBulk, workspace: Workspace, *, progress: bool = True) -> Results:
    """Run every stage of the study, or what is left to do.

    Raises:
        ValueError: if the crystal cannot be had, a teacher does not know its elements, or a strategy would make a
            potential of the low one that no file can hold.
    """
    for strategy in config.strategies:
        check_deployable(strategy, config.teachers.low)
    crystal = crystal_of(config.system)
    low_teacher, high_teacher = (_teacher(name, crystal) for name in (config.teachers.low, config.teachers.high))
    study = Context(config, workspace, crystal, low_teacher, high_teacher, progress)
    sampling = _sampling(study)
    structures = _structures(study, sampling)
    low = _labels(study, "labels-low", structures, study.low, config.teachers.low, ["bulk", "clusters"])
    high = _labels(study, "labels-high", structures, study.high, config.teachers.high, ["clusters"])
    foundations = [_foundation(study, low, seed) for seed in range(config.seeds if config.own_foundations else 1)]
    students = {FOUNDATION: foundations}
    for strategy in config.strategies:
        # Solutions in closed form are drawn from nothing but their foundation.
        seeds = range(config.seeds if strategy.seeded else len(foundations))
        for labels in config.labels:
            if labels not in strategy.sees:
                continue
            students[f"{strategy.called}.{labels}"] = [
                _lifted(study, (strategy, labels, seed), foundations[seed % len(foundations)], low, high)
                for seed in seeds
            ]

    runs = {"teacher": [_all_dynamics(study, "teacher", None, sampling)]}
    test = _test_frames(study, next(iter(runs["teacher"][0].values())))
    for name, each in students.items():
        runs[name] = [_all_dynamics(study, of_seed(name, seed), student, sampling) for seed, student in enumerate(each)]
    return Results(students, runs, test)


def of_seed(name: str, seed: int) -> str:
    """Name of a stage of the student of one seed; that of the first is the student's."""
    return f"{name}.{seed}" if seed else name


def _teacher(name: str, crystal: Crystal) -> Potential:
    potential = load_potential(name)
    check_species(potential, np.array(crystal.numbers))
    return potential


def _sampling(study: Context) -> Stage:
    """Simulate the crystal with the low teacher."""
    config, settings = study.config, study.config.sampling

    def build(folder: Path) -> None:
        start = made(config.system, seed_for(config.seed, "ice"))
        ensemble = NVT(temperature_K=config.system.temperature_K, friction_per_ps=settings.friction_per_ps)
        run = _simulate(study, (study.low, [start] * settings.replicas, ensemble), settings, "sampling")
        run.save(folder / "run.h5")

    inputs = {"teacher": config.teachers.low, "system": config.system, "sampling": settings, "seed": config.seed}
    if config.system.structure is not None:
        cell = made(config.system, 0)
        inputs["crystal"] = digest(cell.numbers, cell.positions, cell.cell.array, cell.get_masses())
    return study.workspace.stage("sampling", inputs, build, work=lambda: _steps(study, settings, study.low))


def _structures(study: Context, sampling: Stage) -> Stage:
    """Choose bulk frames and cut clusters from them; training and validation share no parent frame."""
    config = study.config

    def build(folder: Path) -> None:
        run = load_run(sampling.folder / "run.h5")
        bulk = _evenly(_after(run, config.sampling.discard_ps), config.sampling.bulk_frames)
        held_back = max(1, round(config.clusters.validation_fraction * len(bulk)))
        held_back_clusters = max(1, round(config.clusters.validation_fraction * config.clusters.number))
        parts = {
            "train": (bulk[:-held_back], config.clusters.number - held_back_clusters),
            "validation": (bulk[-held_back:], held_back_clusters),
        }
        for part, (parents, number) in parts.items():
            seed = seed_for(config.seed, f"clusters-{part}")
            clusters = cut_clusters(parents, radius=config.clusters.radius, number=number, seed=seed)
            _write_structures(folder / f"bulk-{part}.extxyz", parents)
            _write_structures(folder / f"clusters-{part}.extxyz", clusters)

    inputs = {"sampling": sampling, "clusters": config.clusters, "bulk_frames": config.sampling.bulk_frames}
    inputs |= {"discard_ps": config.sampling.discard_ps, "seed": config.seed}
    sizes = f"{config.sampling.bulk_frames} bulk frames, {config.clusters.number} clusters"
    return study.workspace.stage("structures", inputs, build, work=lambda: making(sizes))


def _labels(study: Context, stage: str, structures: Stage, teacher: Potential, name: str, kinds: list[str]) -> Stage:
    """Label the structures of the given kinds; stresses too, of the bulk, where pressure is to come from them."""
    parts = [(kind, part) for part in ("train", "validation") for kind in kinds]

    def read() -> list[list[Atoms]]:
        unread: dict[str, Any] = {"energy_key": None, "forces_key": None}
        files = [structures.folder / f"{kind}-{part}.extxyz" for kind, part in parts]
        return [[frame.atoms for frame in read_frames(file, **unread)] for file in files]

    stress = "bulk" in kinds and any(each.ensemble == "NPT" for each in study.config.ensembles)
    inputs = {"structures": structures, "teacher": name, "kinds": kinds} | ({"stress": True} if stress else {})
    number, atoms = _numbers(study, kinds)
    size: dict[str, Any] = {"workers": study.config.workers, "number": number, "atoms": atoms, "stress": stress}
    task = Labelling(study.workspace, stage, inputs, read, teacher, **size)

    def build(folder: Path) -> None:
        for (kind, part), frames in zip(parts, task.frames(), strict=True):
            write_frames(folder / f"{kind}-{part}.extxyz", frames)

    return study.workspace.stage(stage, inputs, build, pieces=task.pieces, work=task.work)


def _foundation(study: Context, low: Stage, seed: int) -> Stage:
    """Distil the low teacher into a student, from bulk frames and clusters."""
    config, name = study.config, of_seed(FOUNDATION, seed)
    settings = _seeded(config.distillation, config.seed, name)

    def build(folder: Path) -> None:
        training = _frames(low, "train")
        problem = distillation_problem(
            config.student,
            training,
            _frames(low, "validation"),
            references=teacher_references(study.low, training),
            settings=settings,
        )
        _save_trained(study, folder, _train(study, folder, problem, settings))

    inputs = {"data": low, "student": config.student, "settings": settings}
    work = functools.partial(_epochs, study, ["bulk", "clusters"], settings)
    return study.workspace.stage(name, inputs, build, work=work)


def _lifted(study: Context, arm: tuple[Strategy, Labels, int], foundation: Stage, low: Stage, high: Stage) -> Stage:
    """Lift a foundation to the accurate level of theory with labels of clusters only, by strategy, labels and seed."""
    strategy, labels, seed = arm
    name = of_seed(f"{strategy.called}.{labels}", seed)
    settings = strategy.adjusted(_seeded(study.config.finetuning, study.config.seed, name))

    def build(folder: Path) -> None:
        problem = strategy.problem(
            load_potential(foundation.folder / POTENTIAL),
            _frames(high, "train"),
            validation=_frames(high, "validation"),
            low=_frames(low, "train"),
            teacher=study.low,
            labels=labels,
            settings=settings,
        )
        trained = _train(study, folder, problem, settings, strategy.solve)
        _save_trained(study, folder, dataclasses.replace(trained, potential=strategy.deploy(trained)))

    inputs = {"foundation": foundation, "high": high, "low": low, "strategy": strategy, "labels": labels}
    work = functools.partial(_epochs, study, ["clusters"], settings)
    return study.workspace.stage(name, inputs | {"settings": settings}, build, work=work)


def _all_dynamics(study: Context, name: str, student: Stage | None, sampling: Stage) -> dict[str, Stage]:
    """Simulate with a student, or the high teacher, in every ensemble."""
    return {each.called: _dynamics(study, name, student, sampling, each) for each in study.config.ensembles}


def _dynamics(study: Context, name: str, student: Stage | None, sampling: Stage, chosen: ChosenEnsemble) -> Stage:
    """Simulate with a student, or the high teacher, from where the low teacher's replicas ended."""
    settings, system = study.config.dynamics, study.config.system
    if chosen.time_ps is not None:
        settings = settings.model_copy(update={"time_ps": chosen.time_ps})
    stage = f"dynamics-{name}" if chosen.called == "NVT" else f"dynamics-{name}-{chosen.called}"

    def build(folder: Path) -> None:
        sampled = load_run(sampling.folder / "run.h5")
        last = sampled[sampled.n_frames - 1 :: sampled.n_frames]
        start = [last[replica % len(last)] for replica in range(settings.replicas)]
        ensemble = chosen.made(system, settings.friction_per_ps)
        if student is None:
            run = _simulate(study, (study.high, start, ensemble), settings, stage)
        else:
            potential = load_potential(student.folder / POTENTIAL)
            run = _simulate(study, (potential, start, ensemble), settings, stage, "mark")
        run.save(folder / "run.h5")

    identity = study.config.teachers.high if student is None else student
    inputs = {"potential": identity, "start": sampling, "dynamics": settings, "seed": study.config.seed}
    inputs["temperature_K"] = chosen.temperature_K or system.temperature_K
    if chosen.ensemble != "NVT":
        inputs["ensemble"] = chosen
    model = study.high if student is None else study.config.student
    return study.workspace.stage(stage, inputs, build, work=lambda: _steps(study, settings, model))


def _test_frames(study: Context, teacher_run: Stage) -> Stage:
    """Frames of the teacher's own bulk, second half of every replica, with its labels."""
    number = study.config.test.frames

    def build(folder: Path) -> None:
        run = load_run(teacher_run.folder / "run.h5")
        structures = _evenly(_after(run, run.time_fs[-1] / 2e3), number)
        write_frames(folder / "test.extxyz", label(structures, study.high))

    atoms = number * study.crystal.molecules * study.crystal.atoms
    inputs = {"run": teacher_run, "frames": number}
    return study.workspace.stage("test", inputs, build, work=lambda: labelling(number, atoms, study.high))


def _numbers(study: Context, kinds: list[str], share: float = 1.0) -> tuple[int, float]:
    """About how many structures of the given kinds there are, and atoms.

    A cluster is taken to have as many molecules as there are in its sphere at the density, and one for the rim.
    """
    config, crystal = study.config, study.crystal
    molecules = min(crystal.molecules, 1 + 4 / 3 * np.pi * config.clusters.radius**3 * crystal.density)
    number = {"bulk": config.sampling.bulk_frames, "clusters": config.clusters.number}
    each = {"bulk": crystal.molecules, "clusters": molecules}
    atoms = crystal.atoms * sum(number[kind] * each[kind] for kind in kinds)
    return round(share * sum(number[kind] for kind in kinds)), share * atoms


def _epochs(study: Context, kinds: list[str], settings: TrainingSettings) -> Work:
    """What a training on structures of the given kinds has to do."""
    config = study.config
    number, atoms = _numbers(study, kinds, 1 - config.clusters.validation_fraction)
    return training_of_epochs(number, atoms, settings.epochs, settings.batch_size, config.student)


def _steps(study: Context, settings: Dynamics, model: Any) -> Work:
    """What a simulation has to do."""
    steps = round(1e3 * settings.time_ps / settings.timestep_fs)
    return simulating(settings.replicas, round(study.crystal.molecules * study.crystal.atoms), steps, model)


def _simulate(
    study: Context,
    what: tuple[Potential, list[Atoms], Ensemble],
    settings: Dynamics,
    purpose: str,
    on_failure: Literal["raise", "mark"] = "raise",
) -> Run:
    """Simulate with a potential, from structures, in an ensemble."""
    return simulate(
        *what,
        time_ps=settings.time_ps,
        timestep_fs=settings.timestep_fs,
        replicas=settings.replicas,
        sample_every_fs=settings.sample_every_fs,
        seed=seed_for(study.config.seed, purpose),
        progress=study.progress,
        on_failure=on_failure,
    )


def _seeded(settings: TrainingSettings, seed: int, purpose: str) -> TrainingSettings:
    """The settings with a seed of their own, that follows from the study's."""
    return settings.model_copy(update={"seed": seed_for(seed, f"training-{purpose}-{settings.seed}")})


def _train(
    study: Context, folder: Path, problem: TrainingProblem, settings: TrainingSettings, solve: Callable = train
) -> Trained:
    """Train with checkpoints and metrics inside the stage, so that a killed study goes on within it."""
    trained = solve(problem, settings, folder=folder / RESUMABLE, progress=study.progress)
    # From here on the stage's result stands for them; a closed form leaves none.
    shutil.rmtree(folder / RESUMABLE / CHECKPOINTS, ignore_errors=True)
    return trained


def _save_trained(study: Context, folder: Path, trained: Trained) -> None:
    provenance = {"config": study.config.model_dump(mode="json"), "versions": versions(), "seed": study.config.seed}
    save(trained.potential, folder / POTENTIAL, provenance=provenance)
    write_json(folder / "history.json", trained.history)


def _frames(labels: Stage, part: str) -> list[Frame]:
    """All frames of a stage of labels, bulk (where it is labelled) before clusters."""
    return [frame for file in sorted(labels.folder.glob(f"*-{part}.extxyz")) for frame in read_frames(file)]


def _write_structures(path: Path, structures: list[Atoms]) -> None:
    write_frames(path, [Frame(atoms, np.nan, np.full((len(atoms), 3), np.nan)) for atoms in structures])


def _after(run: Run, time_ps: float) -> list[Atoms]:
    """Frames later than a time, replica by replica."""
    return [atoms for atoms in run if atoms.info["time_fs"] > 1e3 * time_ps]


def _evenly(frames: list[Atoms], number: int) -> list[Atoms]:
    """Evenly spaced frames, in their order."""
    if number > len(frames):
        raise ConfigError(
            f"{number} frames are asked for, but the simulation leaves only {len(frames)}; make it longer."
        )
    return [frames[i] for i in np.linspace(0, len(frames) - 1, number).round().astype(int)]
