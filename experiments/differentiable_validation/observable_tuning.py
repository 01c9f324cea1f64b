"""A student of ice whose density and O–O RDF are wrong is tuned to those of its teacher: what becomes of its forces?

The foundation is the student of MACE-MP-0 that tests simulate ice with. The student under test has gone on from it with
energies of MACE-OFF23 alone, of 100 published clusters. The teacher has to be simulated, and MACE-OFF23 itself is not
at hand: a second student stands in for it, which has seen energies and forces of 150 clusters and of bulk frames 0 to
9. Of the bulk, the tuned student sees the stand-in's density and RDF and nothing else: no energy and no force.

Forces are tested against MACE-OFF23's own labels of bulk frames 10 to 14, which no potential here has seen. Usage:

    JAXMLIP_DATA=FOLDER uv run python experiments/differentiable_validation/observable_tuning.py --out runs/tuning

It writes `observable_tuning.json` and `observable_tuning.md` to the folder, and goes on where it was killed.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import jaxmlip as jm
from jaxmlip.files import write_json, write_text
from jaxmlip.observables.structure import rdf_error
from jaxmlip.systems.dataset import Frame

FOUNDATION = Path(__file__).parents[2] / "tests" / "simulation" / "data" / "ice_student.jaxmlip"
OBSERVABLES = {"density": jm.Density(), "g_OO": jm.RDF("O", "O", bins=60)}
SIMULATION: dict[str, Any] = {"temperature_K": 250.0, "friction_per_ps": 50.0, "pressure_time_ps": 0.2}
CLUSTERS, TAUGHT, TESTED = 100, 10, 5


def labelled(file: str, index: str) -> list[Frame]:
    """Frames with MACE-OFF23's labels."""
    path = Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff" / file
    return list(jm.read_frames(path, energy_key="off23_energy", forces_key="off23_forces", index=index))


def made(path: Path, strategy: Any, frames: list[Frame], held_out: list[Frame], epochs: int, **options: Any) -> Any:
    """A potential that goes on from the foundation, or another; from its file if there is one."""
    if path.is_file():
        return jm.load(str(path))
    labels, start = options.pop("labels"), options.pop("start", None)
    settings = strategy.adjusted(jm.TrainingSettings(epochs=epochs, validation_every=2, **options))
    foundation = jm.load(str(start or FOUNDATION))
    problem = strategy.problem(foundation, frames, validation=held_out, labels=labels, settings=settings)
    trained = strategy.solve(problem, settings, folder=path.with_suffix(""))
    jm.save(strategy.deploy(trained), path)
    write_json(path.with_suffix(".json"), {"history": trained.history, "best_epoch": trained.best_epoch})
    return jm.load(str(path))


def simulated(path: Path, potential: Any, ice: Any, time_ps: float, seed: int) -> Any:
    """Replicas at constant pressure."""
    ensemble = jm.NPT(SIMULATION["temperature_K"], friction_per_ps=SIMULATION["friction_per_ps"], pressure_time_ps=0.2)
    options: dict[str, Any] = {"timestep_fs": 1.0, "sample_every_fs": 20.0, "replicas": 4, "seed": seed}
    jm.simulate(potential, ice, ensemble, time_ps=time_ps, on_failure="mark", to=path, **options)
    return jm.load_run(path)


def measured(run: Any, teacher: dict[str, Any] | None, potential: Any, tested: list[Frame]) -> dict[str, Any]:
    """Averages, how far they are from the teacher's, and force errors on frames of the bulk."""
    settled = float(run.time_fs[-1]) / 4000.0
    found = {name: jm.average(run, observable, equilibration=settled) for name, observable in OBSERVABLES.items()}
    said: dict[str, Any] = {
        "estimates": found,
        "density": [float(found["density"].value), float(found["density"].error)],
    }
    if teacher is not None:
        off: Any = rdf_error(found["g_OO"], teacher["g_OO"])
        said["rdf_error_A"] = [float(off.value), float(off.error), float(off.noise_floor)]
        said["density_sigma"] = float(found["density"].sigma_from(teacher["density"]))
    predicted = jm.predict(potential, [frame.atoms for frame in tested], progress=False)
    each = [float(np.sqrt(np.mean((p.forces - f.forces) ** 2))) for p, f in zip(predicted, tested, strict=True)]
    said["force_rmse_meV_A"] = [
        1e3 * float(np.sqrt(np.mean(np.square(each)))),
        1e3 * float(np.std(each, ddof=1) / len(each) ** 0.5),
    ]
    said["status"] = {name: one.status.name for name, one in found.items()}
    return said


def main() -> None:
    """Train, simulate, tune, simulate again, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--time-ps", type=float, default=3.0, help="of the simulations that are compared")
    parser.add_argument("--epochs", type=int, default=40, help="of the tuning")
    parser.add_argument("--tuning-ps", type=float, default=2.0, help="of each simulation of the tuning")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("JAXMLIP_DATA is not set; export the folder that has ice_maceoff/ in it.")
    began, out = time.perf_counter(), options.out
    out.mkdir(parents=True, exist_ok=True)
    clusters = labelled("clusters_5.0A.extxyz", ":200")
    taught, tested = labelled("bulk.extxyz", f":{TAUGHT}"), labelled("bulk.extxyz", f"{TAUGHT}:{TAUGHT + TESTED}")
    ice = jm.ice_ih(molecules=16, seed=0)

    lifting, held_out = jm.SingleFidelity(), clusters[160:180]
    high: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.003}
    teacher = made(
        out / "teacher.jaxmlip", lifting, [*clusters[:150], *taught], held_out, 8, labels="energy_forces", **high
    )
    student = made(out / "student.jaxmlip", lifting, clusters[:CLUSTERS], held_out, 12, labels="energy", **high)
    runs = {
        name: simulated(out / f"{name}.h5", potential, ice, options.time_ps, seed)
        for seed, (name, potential) in enumerate({"teacher": teacher, "student": student}.items(), 1)
    }
    known = measured(runs["teacher"], None, teacher, tested)
    results = {"teacher": known, "student": measured(runs["student"], known["estimates"], student, tested)}
    print({name: said["density"] + said["force_rmse_meV_A"] for name, said in results.items()}, results["student"])
    tuning = jm.ObservableTuning(
        references="keep",
        targets=tuple(jm.ObservableTarget.of(OBSERVABLES[name], known["estimates"][name]) for name in OBSERVABLES),
        simulation=jm.OwnSimulation(
            structure=runs["student"][-1],
            ensemble="npt",
            time_ps=options.tuning_ps,
            replicas=8,
            timestep_fs=1.0,
            sample_every_fs=40.0,
            **SIMULATION,
        ),
        observables_weight=1e-4,
    )
    small: dict[str, Any] = {"batch_size": 50, "learning_rate": 3e-4, "start": out / "student.jaxmlip"}
    path = out / "tuned.jaxmlip"
    tuned = made(path, tuning, clusters[:CLUSTERS], held_out, options.epochs, labels="energy", **small)
    run = simulated(out / "tuned.h5", tuned, ice, options.time_ps, 3)
    results["tuned"] = measured(run, known["estimates"], tuned, tested)
    write(out, results, time.perf_counter() - began)


def write(out: Path, results: dict[str, dict[str, Any]], seconds: float) -> None:
    """The table, and the same for machines."""
    lines = [
        "| potential | density g/cm³ | from the teacher's, σ | RDF error OO Å (noise) | force RMSE of the bulk meV/Å |",
        "|---|---|---|---|---|",
    ]
    for name, said in results.items():
        (density, error), (force, spread) = said["density"], said["force_rmse_meV_A"]
        off = "{:.3f} ± {:.3f} ({:.3f})".format(*said["rdf_error_A"]) if "rdf_error_A" in said else "–"
        sigma = f"{said['density_sigma']:+.1f}" if "density_sigma" in said else "–"
        lines.append(f"| {name} | {density:.4f} ± {error:.4f} | {sigma} | {off} | {force:.0f} ± {spread:.0f} |")
    write_text(out / "observable_tuning.md", "\n".join(lines) + "\n")
    plain = {name: {k: v for k, v in said.items() if k != "estimates"} for name, said in results.items()}
    write_json(out / "observable_tuning.json", {"results": plain, "seconds": seconds})
    print("\n".join(lines), f"\n{seconds:.0f} s")


if __name__ == "__main__":
    main()
