"""The numbers of a study, each with its standard error and sample size, and what they say of each student."""

import dataclasses
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.files import finite
from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.stages import FOUNDATION, Results
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.validation.verdict import Tolerances, Verdict, verdict
from jaxmlip.versions import versions

PAIRS = {"OO": ("O", "O"), "OH": ("O", "H"), "HH": ("H", "H")}
"""Pairs of elements whose radial distribution functions are compared."""

RDF_RANGE = 6.0
"""Å; the range customary for water."""


@dataclasses.dataclass(frozen=True)
class Analysed:
    """One potential on the test frames and in its own simulation.

    Attributes:
        predicted: what it says of the test frames.
        run: its simulation.
        rdf: radial distribution functions by pair; empty if the simulation failed.
        verdict: on its simulation.
    """

    predicted: list[Frame]
    run: Run
    rdf: dict[str, Estimate]
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that tables and plots are made from, by name of the potential (`teacher` among them)."""

    test: list[Frame]
    potentials: dict[str, Analysed]
    summary: dict[str, Any]


def analyse(config: ClustersToBulk, results: Results) -> Analysis:
    """Measure errors on the test frames and observables of the simulations of a study."""
    test = read_frames(results.test.folder / "test.extxyz")
    structures = [frame.atoms for frame in test]
    teacher = load_run(results.runs["teacher"].folder / "run.h5")
    analysed = {"teacher": _judged(config, test, test, teacher, teacher)}
    for name, stage in results.students.items():
        predicted = predict(load_potential(stage.folder / "potential.jaxmlip"), structures)
        run = load_run(results.runs[name].folder / "run.h5")
        analysed[name] = _judged(config, test, predicted, run, teacher)

    measured = {name: _measure(test, one) for name, one in analysed.items()}
    students: dict[str, dict] = {}
    for name in results.students:
        if name != FOUNDATION:
            strategy, labels = name.split(".")
            students.setdefault(strategy, {})[labels] = measured[name]
    summary = {
        "study": config.study,
        "name": config.name,
        "seed": config.seed,
        "teachers": config.teachers.model_dump(),
        "test": {
            "frames": len(test),
            "force_rms_meV_A": 1e3 * float(np.sqrt(np.mean(np.concatenate([f.forces for f in test]) ** 2))),
        },
        "low_teacher": _errors(test, predict(load_potential(config.teachers.low), structures)),
        "teacher": measured["teacher"],
        FOUNDATION: measured[FOUNDATION],
        "students": students,
        "versions": versions(),
    }
    return Analysis(test, analysed, summary)


def _judged(config: ClustersToBulk, test: list[Frame], predicted: list[Frame], run: Run, teacher: Run) -> Analysed:
    """One potential, judged by its run."""
    limits = config.verdict
    judged = verdict(
        run,
        teacher,
        compare(test, predicted),
        pairs=list(PAIRS.values()),
        r_max=RDF_RANGE,
        per=("molecule", _molecules(test[0].atoms)),
        temperature_K=config.system.temperature_K,
        tolerances=Tolerances(
            sigma=limits.sigma,
            rdf_A=limits.rdf_tolerance_A,
            energy_meV=limits.energy_tolerance_meV_molecule,
            force=limits.force_tolerance,
        ),
    )
    structure = [check for check in judged.checks if check.kind == "structure"]
    rdf = {pair: check.student for pair, check in zip(PAIRS, structure, strict=bool(structure))}
    return Analysed(predicted, run, rdf, judged)


def _measure(test: list[Frame], one: Analysed) -> dict[str, Any]:
    """All numbers of one potential, and the verdict they lead to."""
    stable = one.verdict.level != "unstable"
    measured = _errors(test, one.predicted) | {
        "stable": stable,
        "outcome": "every replica is sound" if stable else one.verdict.reason,
    }
    checks = {check.name: check for check in one.verdict.checks}
    if checks:
        energy, temperature = checks["potential energy"], checks["temperature"]
        errors = {pair: checks[RDF(*elements).name].difference for pair, elements in PAIRS.items()}
        measured |= {
            "rdf_error_A": {pair: _number(error) for pair, error in errors.items()},
            "potential_energy_deviation_meV_molecule": _number(energy.difference),
            "potential_energy_eV": _number(energy.student),
            "temperature_K": _number(temperature.student),
        }
    return measured | {"verdict": {"level": one.verdict.level, "reason": one.verdict.reason}}


def _errors(test: list[Frame], predicted: list[Frame]) -> dict[str, dict[str, Any]]:
    """Errors on the test frames."""
    report = compare(test, predicted)
    keys = ("force_rmse_meV_A", "energy_rmse_meV_atom", "energy_mean_meV_atom", "energy_std_meV_atom")
    errors = {key: report.measured(key) | {"frames": report.frames} for key in keys}
    per_molecule = len(test[0].atoms) / _molecules(test[0].atoms)
    mean = report.measured("energy_mean_meV_atom")
    errors["energy_mean_meV_molecule"] = {
        key: None if value is None else per_molecule * value for key, value in mean.items()
    }
    return errors


def _number(estimate: Estimate) -> dict[str, Any]:
    """A scalar estimate as plain data; what is not known is None."""
    number: dict[str, Any] = {"value": float(estimate.value)}
    for name in ("error", "dof", "effective_samples"):
        number[name] = finite(float(getattr(estimate, name)))
    number["status"] = estimate.status.value
    return number if estimate.noise_floor is None else number | {"noise_floor": float(estimate.noise_floor)}


def _molecules(atoms: Atoms) -> int:
    return int(np.sum(atoms.numbers == 8))
