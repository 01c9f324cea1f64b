"""The numbers of a study, each with its standard error and sample size, and what they say of each student."""

import dataclasses
from typing import Any

import numpy as np
from ase import Atoms

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.observable import average
from jaxmlip.observables.structure import RDF, rdf_error
from jaxmlip.observables.thermodynamics import PotentialEnergy, Temperature
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load_potential
from jaxmlip.simulation.trajectory import Outcome, Run, load_run
from jaxmlip.study.clusters_to_bulk import FOUNDATION, Results
from jaxmlip.study.config import ClustersToBulk, Verdict
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.validation.errors import compare
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
    """

    predicted: list[Frame]
    run: Run
    rdf: dict[str, Estimate]


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
    teacher = _analysed(test, load_run(results.runs["teacher"].folder / "run.h5"))
    analysed = {"teacher": teacher}
    for name, stage in results.students.items():
        predicted = predict(load_potential(stage.folder / "potential.jaxmlip"), structures)
        analysed[name] = _analysed(predicted, load_run(results.runs[name].folder / "run.h5"))

    measured = {name: _measure(config, test, one, teacher) for name, one in analysed.items()}
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


def _analysed(predicted: list[Frame], run: Run) -> Analysed:
    rdf = (
        {pair: average(run, RDF(*elements, r_max=RDF_RANGE)) for pair, elements in PAIRS.items()}
        if run.completed.all()
        else {}
    )
    return Analysed(predicted, run, rdf)


def _measure(config: ClustersToBulk, test: list[Frame], one: Analysed, teacher: Analysed) -> dict[str, Any]:
    """All numbers of one potential, and the verdict they lead to."""
    outcome = _outcome(one.run, config.system.temperature_K)
    measured = _errors(test, one.predicted) | {
        "stable": outcome is None,
        "outcome": outcome or "every replica is sound",
    }
    if one.run.completed.all():
        molecules = _molecules(test[0].atoms)
        energy, reference = (average(run, PotentialEnergy()) for run in (one.run, teacher.run))
        temperature = average(one.run, Temperature())
        errors = {pair: rdf_error(one.rdf[pair], teacher.rdf[pair]) for pair in PAIRS}
        measured |= {
            "rdf_error_A": {pair: _number(error) for pair, error in errors.items()},
            "potential_energy_deviation_meV_molecule": {
                "value": 1e3 * (float(energy.value) - float(reference.value)) / molecules,
                "error": 1e3 * float(np.hypot(energy.error, reference.error)) / molecules,
            },
            "potential_energy_eV": _number(energy),
            "temperature_K": _number(temperature),
        }
    force_rms = 1e3 * float(np.sqrt(np.mean(np.concatenate([f.forces for f in test]) ** 2)))
    return measured | {"verdict": verdict(measured, force_rms, config.verdict)}


def verdict(measured: dict[str, Any], force_rms: float, limits: Verdict) -> dict[str, str]:
    """Which student can be trusted, from the most to the least damning observation.

    Args:
        measured: numbers of one potential, as in `summary.json`.
        force_rms: RMS of the reference forces, meV/Å.
        limits: what counts as significant and as harmful.

    Returns:
        `level`, one of unstable, wrong structure, wrong energy, undecided, right for the wrong reasons, trusted; and
        the `reason`.
    """
    if not measured["stable"]:
        return {"level": "unstable", "reason": measured["outcome"]}
    pair, excess, sigma = max(
        ((pair, *_excess(error)) for pair, error in measured["rdf_error_A"].items()), key=lambda found: found[1]
    )
    if sigma > limits.sigma and excess > limits.rdf_tolerance_A:
        reason = f"RDF error of {pair} is {excess:.2f} Å beyond sampling noise ({sigma:.1f} σ)"
        return {"level": "wrong structure", "reason": reason}
    deviation = measured["potential_energy_deviation_meV_molecule"]
    sigma = abs(deviation["value"]) / deviation["error"]
    if sigma > limits.sigma and abs(deviation["value"]) > limits.energy_tolerance_meV_molecule:
        reason = f"mean potential energy is off by {deviation['value']:+.0f} meV per molecule ({sigma:.1f} σ)"
        return {"level": "wrong energy", "reason": reason}
    if (width := max(error["error"] for error in measured["rdf_error_A"].values())) > limits.rdf_tolerance_A:
        reason = f"RDF errors are known to ± {width:.2f} Å only, more than the tolerance: run longer"
        return {"level": "undecided", "reason": reason}
    share = measured["force_rmse_meV_A"]["value"] / force_rms
    if share > limits.force_tolerance:
        reason = f"its run looks right, but forces are off by {100 * share:.0f} % of their RMS"
        return {"level": "right for the wrong reasons", "reason": reason}
    return {
        "level": "trusted",
        "reason": f"structure and energy agree within {limits.sigma:g} σ or the tolerances, and so do forces",
    }


def _excess(error: dict[str, Any]) -> tuple[float, float]:
    """RDF error beyond what sampling noise alone gives, in Å and in standard errors."""
    excess = error["value"] - error["noise_floor"]
    return excess, excess / error["error"] if error["error"] > 0 else np.inf


def _errors(test: list[Frame], predicted: list[Frame]) -> dict[str, dict[str, Any]]:
    """Errors on the test frames."""
    report = compare(test, predicted)
    keys = ("force_rmse_meV_A", "energy_rmse_meV_atom", "energy_mean_meV_atom", "energy_std_meV_atom")
    errors = {key: report.measured(key) | {"frames": report.frames} for key in keys}
    per_molecule = len(test[0].atoms) / _molecules(test[0].atoms)
    mean = report.measured("energy_mean_meV_atom")
    errors["energy_mean_meV_molecule"] = {key: per_molecule * (value or 0.0) for key, value in mean.items()}
    return errors


def _number(estimate: Estimate) -> dict[str, Any]:
    """A scalar estimate as plain data."""
    number = {
        "value": float(estimate.value),
        "error": float(estimate.error),
        "effective_samples": estimate.effective_samples,
        "status": estimate.status.value,
    }
    return number if estimate.noise_floor is None else number | {"noise_floor": float(estimate.noise_floor)}


def _outcome(run: Run, temperature_K: float) -> str | None:
    """What went wrong in a simulation, in words; None if nothing did.

    A thermostatted replica whose kinetic temperature leaves T (1 + 6 √(2/3N)), six standard deviations of the canonical
    ensemble, is falling into a hole of its potential, whether or not it goes on.
    """
    hot = temperature_K * (1.0 + 6.0 * np.sqrt(2.0 / (3.0 * len(run.numbers))))
    failures = []
    for replica, (outcome, length) in enumerate(zip(run.outcomes, run.lengths, strict=True)):
        over = np.flatnonzero(run.temperature[replica, :length] > hot)
        if outcome is not Outcome.COMPLETED:
            failures.append(f"replica {replica} failed after {length} frames: {outcome.value}")
        elif over.size:
            at = run.time_fs[over[0]]
            failures.append(f"replica {replica} is hotter than {hot:.0f} K, six σ of its thermostat, at {at:.0f} fs")
    return "; ".join(failures) or None


def _molecules(atoms: Atoms) -> int:
    return int(np.sum(atoms.numbers == 8))
