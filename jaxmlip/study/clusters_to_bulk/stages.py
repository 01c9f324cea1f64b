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

from jaxmlip.files import write_json
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.files import load_potential, save
from jaxmlip.potentials.potential import Potential, check_species
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk, Dynamics
from jaxmlip.study.labelling import Labelling
from jaxmlip.study.section import ConfigError, check_deployable
from jaxmlip.study.work import Work, labelling, making, simulating, training_of_epochs
from jaxmlip.study.workspace import RESUMABLE, Stage, Workspace, seed_for
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame, read_frames, write_frames
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.distill import distillation_problem, teacher_references
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import Trained, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import CHECKPOINTS
from jaxmlip.training.strategies.base import Strategy
from jaxmlip.training.trainer import train
from jaxmlip.versions import versions

ATOMS = 3
"""Of a molecule of water."""

MOLECULES_PER_G_CM3_A3 = 0.0334
"""Molecules of water in 1 Å³ at 1 g/cm³."""

FOUNDATION = "foundation"
"""Name of the distilled student before it is lifted."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage needs."""

    config: ClustersToBulk
    workspace: Workspace
    low: Potential
    high: Potential
    progress: bool


@dataclasses.dataclass(frozen=True)
class Results:
    """The finished stages that the summary is made from.

    Attributes:
        students: lifted students and the foundation, by `<strategy>.<labels>`.
        runs: simulations of the students and of the `teacher`.
        test: bulk frames of the teacher's simulation with its labels.
    """

    students: dict[str, Stage]
    runs: dict[str, Stage]
    test: Stage


def run_stages(config: ClustersToBulk, workspace: Workspace, *, progress: bool = True) -> Results:
    """Run every stage of the study, or what is left to do.

    Raises:
        ValueError: if a teacher does not know the elements of water, or a strategy would make a potential of the low
            one that no file can hold.
    """
    for strategy in config.strategies:
        check_deployable(strategy, config.teachers.low)
    study = Context(config, workspace, _teacher(config.teachers.low), _teacher(config.teachers.high), progress)
    sampling = _sampling(study)
    structures = _structures(study, sampling)
    low = _labels(study, "labels-low", structures, study.low, config.teachers.low, ["bulk", "clusters"])
    high = _labels(study, "labels-high", structures, study.high, config.teachers.high, ["clusters"])
    students = {FOUNDATION: _foundation(study, low)}
    for strategy in config.strategies:
        for labels in config.labels:
            name = f"{strategy.called}.{labels}"
            students[name] = _lifted(study, name, strategy, labels, students[FOUNDATION], low, high)

    runs = {"teacher": _dynamics(study, "teacher", None, sampling)}
    test = _test_frames(study, runs["teacher"])
    for name, student in students.items():
        runs[name] = _dynamics(study, name, student, sampling)
    return Results(students, runs, test)


def _teacher(name: str) -> Potential:
    potential = load_potential(name)
    check_species(potential, np.array([1, 8]))
    return potential


def _sampling(study: Context) -> Stage:
    """Simulate ice with the low teacher."""
    config, settings = study.config, study.config.sampling

    def build(folder: Path) -> None:
        ice = ice_ih(
            config.system.molecules,
            density_g_cm3=config.system.density_g_cm3,
            seed=seed_for(config.seed, "ice"),
        )
        _simulate(study, study.low, [ice] * settings.replicas, settings, "sampling").save(folder / "run.h5")

    inputs = {"teacher": config.teachers.low, "system": config.system, "sampling": settings, "seed": config.seed}
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
    """Label the structures of the given kinds."""
    parts = [(kind, part) for part in ("train", "validation") for kind in kinds]

    def read() -> list[list[Atoms]]:
        unread = {"energy_key": None, "forces_key": None}
        files = [structures.folder / f"{kind}-{part}.extxyz" for kind, part in parts]
        return [[frame.atoms for frame in read_frames(file, **unread)] for file in files]

    inputs = {"structures": structures, "teacher": name, "kinds": kinds}
    number, atoms = _numbers(study.config, kinds)
    size: dict[str, Any] = {"workers": study.config.workers, "number": number, "atoms": atoms}
    task = Labelling(study.workspace, stage, inputs, read, teacher, **size)

    def build(folder: Path) -> None:
        for (kind, part), frames in zip(parts, task.frames(), strict=True):
            write_frames(folder / f"{kind}-{part}.extxyz", frames)

    return study.workspace.stage(stage, inputs, build, pieces=task.pieces, work=task.work)


def _foundation(study: Context, low: Stage) -> Stage:
    """Distil the low teacher into a student, from bulk frames and clusters."""
    config = study.config
    settings = _seeded(config.distillation, config.seed, FOUNDATION)

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
    work = functools.partial(_epochs, config, ["bulk", "clusters"], settings)
    return study.workspace.stage(FOUNDATION, inputs, build, work=work)


def _lifted(
    study: Context, name: str, strategy: Strategy, labels: Labels, foundation: Stage, low: Stage, high: Stage
) -> Stage:
    """Lift the foundation to the accurate level of theory with labels of clusters only."""
    settings = strategy.adjusted(_seeded(study.config.finetuning, study.config.seed, name))

    def build(folder: Path) -> None:
        problem = strategy.problem(
            load_potential(foundation.folder / "potential.jaxmlip"),
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
    work = functools.partial(_epochs, study.config, ["clusters"], settings)
    return study.workspace.stage(name, inputs | {"settings": settings}, build, work=work)


def _dynamics(study: Context, name: str, student: Stage | None, sampling: Stage) -> Stage:
    """Simulate ice with a student, or the high teacher, from where the low teacher's replicas ended."""
    settings = study.config.dynamics

    def build(folder: Path) -> None:
        sampled = load_run(sampling.folder / "run.h5")
        last = sampled[sampled.n_frames - 1 :: sampled.n_frames]
        start = [last[replica % len(last)] for replica in range(settings.replicas)]
        if student is None:
            run = _simulate(study, study.high, start, settings, f"dynamics-{name}")
        else:
            potential = load_potential(student.folder / "potential.jaxmlip")
            run = _simulate(study, potential, start, settings, f"dynamics-{name}", "mark")
        run.save(folder / "run.h5")

    identity = study.config.teachers.high if student is None else student
    inputs = {"potential": identity, "start": sampling, "dynamics": settings, "seed": study.config.seed}
    inputs["temperature_K"] = study.config.system.temperature_K
    model = study.high if student is None else study.config.student
    return study.workspace.stage(f"dynamics-{name}", inputs, build, work=lambda: _steps(study, settings, model))


def _test_frames(study: Context, teacher_run: Stage) -> Stage:
    """Frames of the teacher's own bulk, second half of every replica, with its labels."""
    number = study.config.test.frames

    def build(folder: Path) -> None:
        run = load_run(teacher_run.folder / "run.h5")
        structures = _evenly(_after(run, run.time_fs[-1] / 2e3), number)
        write_frames(folder / "test.extxyz", label(structures, study.high))

    atoms = float(number * ATOMS * study.config.system.molecules)
    inputs = {"run": teacher_run, "frames": number}
    return study.workspace.stage("test", inputs, build, work=lambda: labelling(number, atoms, study.high))


def _numbers(config: ClustersToBulk, kinds: list[str], share: float = 1.0) -> tuple[int, float]:
    """About how many structures of the given kinds there are, and atoms.

    A cluster is taken to have as many molecules as there are in its sphere at the density, and one for the rim.
    """
    volume = 4 / 3 * np.pi * config.clusters.radius**3
    molecules = min(config.system.molecules, 1 + volume * config.system.density_g_cm3 * MOLECULES_PER_G_CM3_A3)
    number = {"bulk": config.sampling.bulk_frames, "clusters": config.clusters.number}
    each = {"bulk": config.system.molecules, "clusters": molecules}
    atoms = ATOMS * sum(number[kind] * each[kind] for kind in kinds)
    return round(share * sum(number[kind] for kind in kinds)), share * atoms


def _epochs(config: ClustersToBulk, kinds: list[str], settings: TrainingSettings) -> Work:
    """What a training on structures of the given kinds has to do."""
    number, atoms = _numbers(config, kinds, 1 - config.clusters.validation_fraction)
    return training_of_epochs(number, atoms, settings.epochs, settings.batch_size, config.student)


def _steps(study: Context, settings: Dynamics, model: Any) -> Work:
    """What a simulation has to do."""
    steps = round(1e3 * settings.time_ps / settings.timestep_fs)
    return simulating(settings.replicas, ATOMS * study.config.system.molecules, steps, model)


def _simulate(
    study: Context,
    potential: Potential,
    start: list[Atoms],
    settings: Dynamics,
    purpose: str,
    on_failure: Literal["raise", "mark"] = "raise",
) -> Run:
    return simulate(
        potential,
        start,
        NVT(temperature_K=study.config.system.temperature_K, friction_per_ps=settings.friction_per_ps),
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
    save(trained.potential, folder / "potential.jaxmlip", provenance=provenance)
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
