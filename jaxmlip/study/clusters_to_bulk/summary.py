"""The numbers of a study, each with its standard error and sample size, and what they say of each student."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
from ase import Atoms

from jaxmlip.files import finite
from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.study.clusters_to_bulk.answers import with_answers
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.crystal import pairs_of
from jaxmlip.study.clusters_to_bulk.over_seeds import over_seeds
from jaxmlip.study.clusters_to_bulk.stages import FOUNDATION, Results
from jaxmlip.study.clusters_to_bulk.summary_file import FORMAT
from jaxmlip.study.correlations import VARIED, students_of
from jaxmlip.study.trainings import POTENTIAL
from jaxmlip.study.workspace import Stage, content_digest
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.molecules import molecules_in
from jaxmlip.validation.verdict import Level, Tolerances, Verdict, verdict
from jaxmlip.versions import versions

RDF_RANGE = 6.0
"""Å; the range customary for water."""


@dataclasses.dataclass(frozen=True)
class Analysed:
    """One potential on the test frames and in its own simulation.

    Attributes:
        predicted: what it says of the test frames.
        run: its simulation in the first ensemble.
        rdf: radial distribution functions by pair; empty if the simulation failed.
        verdicts: on its simulations, by ensemble.
    """

    predicted: list[Frame]
    run: Run
    rdf: dict[str, Estimate]
    verdicts: dict[str, Verdict]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that tables and plots are made from.

    Attributes:
        test: frames of the teacher.
        potentials: the first of each name, `teacher` and `foundation` among them.
        summary: content of `summary.json`, without times and versions.
    """

    test: list[Frame]
    potentials: dict[str, Analysed]
    summary: dict[str, Any]


def analyse(config: ClustersToBulk, results: Results) -> Analysis:
    """Measure errors on the test frames and observables of the simulations of a study."""
    test = read_frames(results.test.folder / "test.extxyz")
    structures = [frame.atoms for frame in test]
    (teacher,) = (_loaded(runs) for runs in results.runs["teacher"])
    analysed = {"teacher": _judged(config, test, test, teacher, teacher)}
    measured = {"teacher": over_seeds([_measure(test, analysed["teacher"])])}
    for name, stages in results.students.items():
        of_seeds = []
        for stage, runs in zip(stages, results.runs[name], strict=True):
            predicted = predict(load_potential(stage.folder / POTENTIAL), structures)
            of_seeds.append(_judged(config, test, predicted, _loaded(runs), teacher))
        analysed[name] = of_seeds[0]
        measured[name] = over_seeds([_measure(test, each) for each in of_seeds])

    students: dict[str, dict] = {}
    for name in results.students:
        if name != FOUNDATION:
            strategy, labels = name.split(".")
            students.setdefault(strategy, {})[labels] = measured[name]
    low = _errors(test, predict(load_potential(config.teachers.low), structures))
    summary = _of_configuration(config) | {
        "test": {
            "frames": len(test),
            "force_rms_meV_A": 1e3 * float(np.sqrt(np.mean(np.concatenate([f.forces for f in test]) ** 2))),
        },
        "low_teacher": over_seeds([low]),
        "teacher": measured["teacher"],
        FOUNDATION: measured[FOUNDATION],
        "students": students,
        "provenance": _provenance(results),
        "versions": versions(),
    }
    told = students_of(summary, config.model_dump(mode="json"), Path(config.name))
    return Analysis(test, analysed, with_answers(summary, told))


def _of_configuration(config: ClustersToBulk) -> dict[str, Any]:
    """What readers of the summary need of the configuration."""
    limits = config.verdict
    return {
        "study": config.study,
        "format": FORMAT,
        "name": config.name,
        "seed": config.seed,
        "teachers": config.teachers.model_dump(),
        "setting": content_digest(config.model_dump(mode="json", exclude={*VARIED, "clusters", "own_foundations"})),
        "clusters": {"number": config.clusters.number, "radius_A": config.clusters.radius},
        "ensembles": [each.called for each in config.ensembles],
        "seeds": {
            "students": config.seeds,
            "own_foundations": config.own_foundations,
            "without": sorted(each.called for each in config.strategies if not each.seeded),
        },
        "tolerances": {
            "energy_meV_molecule": limits.energy_tolerance_meV_molecule,
            "rdf_A": limits.rdf_tolerance_A,
            "density": limits.density_tolerance,
            "force": limits.force_tolerance,
            "level": limits.level,
        },
    }


def _provenance(results: Results) -> dict[str, Any]:
    """The stages, by name and digest of their inputs, that the numbers of each potential come from."""

    def said(stage: Stage) -> dict[str, str]:
        return {"stage": stage.folder.name, "key": stage.key}

    found: dict[str, Any] = {"test": said(results.test)}
    for name, runs in results.runs.items():
        trained = results.students.get(name, [None] * len(runs))
        found[name] = [
            {"potential": None if one is None else said(one), "runs": {key: said(run) for key, run in each.items()}}
            for one, each in zip(trained, runs, strict=True)
        ]
    return found


def _loaded(runs: dict[str, Stage]) -> dict[str, Run]:
    return {ensemble: load_run(stage.folder / "run.h5") for ensemble, stage in runs.items()}


def _judged(
    config: ClustersToBulk, test: list[Frame], predicted: list[Frame], runs: dict[str, Run], teacher: dict[str, Run]
) -> Analysed:
    """One potential, judged by its runs."""
    limits, errors, pairs = config.verdict, compare(test, predicted), pairs_of(test[0].atoms)
    verdicts = {
        each.called: verdict(
            runs[each.called],
            teacher[each.called],
            errors,
            pairs=list(pairs.values()),
            r_max=RDF_RANGE,
            per=("molecule", len(molecules_in(test[0].atoms))),
            temperature_K=each.temperature_K or config.system.temperature_K,
            tolerances=Tolerances(
                sigma=limits.sigma,
                rdf_A=limits.rdf_tolerance_A,
                energy_meV=limits.energy_tolerance_meV_molecule,
                density=limits.density_tolerance,
                force=limits.force_tolerance,
            ),
        )
        for each in config.ensembles
    }
    first = next(iter(verdicts))
    structure = [check for check in verdicts[first].checks if check.kind == "structure"]
    rdf = {pair: check.student for pair, check in zip(pairs, structure, strict=bool(structure))}
    return Analysed(predicted, runs[first], rdf, verdicts)


def _measure(test: list[Frame], one: Analysed) -> dict[str, Any]:
    """All numbers of one potential, and the verdict they lead to; those of the first ensemble stand at the top."""
    first, *others = [_of_run(each, test[0].atoms) for each in one.verdicts.values()]
    measured = _errors(test, one.predicted) | first
    if others:
        measured["ensembles"] = dict(zip([*one.verdicts][1:], others, strict=True))
        order = get_args(Level)
        worst = min(one.verdicts, key=lambda name: order.index(one.verdicts[name].level))
        measured["verdict"] = {"level": one.verdicts[worst].level, "reason": f"{worst}: {one.verdicts[worst].reason}"}
    return measured


def _of_run(judged: Verdict, atoms: Atoms) -> dict[str, Any]:
    """What one simulation says of a potential."""
    stable = judged.level != "unstable"
    measured: dict[str, Any] = {
        "stable": stable,
        "outcome": "every replica is sound" if stable else judged.reason,
    }
    checks = {check.name: check for check in judged.checks}
    if checks:
        energy, temperature = checks["potential energy"], checks["temperature"]
        errors = {pair: _number(checks[RDF(*elements).name].difference) for pair, elements in pairs_of(atoms).items()}
        measured |= {
            "rdf_error_A": errors | {"mean": _mean(list(errors.values()))},
            "potential_energy_deviation_meV_molecule": _number(
                energy.difference, 1e3 / len(molecules_in(atoms)) * float(energy.teacher.error)
            ),
            "potential_energy_eV": _number(energy.student, 0.0),
            "temperature_K": _number(temperature.student, 0.0),
        }
        if "density" in checks:
            density = checks["density"]
            percent = 100.0 / float(density.teacher)
            measured |= {
                "density_g_cm3": _number(density.student, 0.0),
                "density_deviation_percent": _number(
                    density.difference * percent, percent * float(density.teacher.error)
                ),
            }
    return measured | {"verdict": {"level": judged.level, "reason": judged.reason}}


def _errors(test: list[Frame], predicted: list[Frame]) -> dict[str, dict[str, Any]]:
    """Errors on the test frames, which are the same for all students."""
    report = compare(test, predicted)
    per_molecule = len(test[0].atoms) / len(molecules_in(test[0].atoms))
    errors = {}
    for key in ("force_rmse_meV_A", "energy_rmse_meV_atom", "energy_mean_meV_atom", "energy_std_meV_atom"):
        found = report.measured(key)
        more = {"dof": report.frames - 1.0, "common_error": found["error"], "frames": report.frames}
        errors[key] = found | more
    for key in ("energy_mean_meV_atom", "energy_rmse_meV_atom"):
        scaled = {name: errors[key][name] for name in ("value", "error", "common_error")}
        scaled = {name: None if value is None else per_molecule * value for name, value in scaled.items()}
        errors[key.replace("atom", "molecule")] = errors[key] | scaled
    return errors


def _number(estimate: Estimate, common_error: float | None = None) -> dict[str, Any]:
    """A scalar estimate as plain data; what is not known is None.

    Args:
        estimate: a scalar.
        common_error: the part of its error that is the same for all students; by default all of it.
    """
    number: dict[str, Any] = {"value": float(estimate.value)}
    for name in ("error", "dof", "effective_samples"):
        number[name] = finite(float(getattr(estimate, name)))
    number["common_error"] = number["error"] if common_error is None else finite(common_error)
    number["status"] = estimate.status.value
    return number if estimate.noise_floor is None else number | {"noise_floor": float(estimate.noise_floor)}


def _mean(numbers: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of numbers of one run; as they may go together, its error is no smaller than the mean of theirs."""
    mean = dict(numbers[0])
    for key in ("value", "error", "common_error", "noise_floor"):
        each = [number[key] for number in numbers]
        mean[key] = None if None in each else float(np.mean(each))
    return mean | {"dof": min((number["dof"] for number in numbers if number["dof"] is not None), default=None)}
