"""Makes `students/distilled.jaxmlip`: the accurate teacher of `quick.yaml` itself, distilled on bulk ice.

This student is to be near its teacher, so that reweighting and response have something to go by. It is no answer to the
question of clusters and bulk, for it sees what is not there where one asks it: labels of the bulk.

Replicas of 16 molecules, at four temperatures and several densities, are simulated with the student with forces that is
there, and a new student is trained on the teacher's energies, forces and stresses of their frames. Run again to go on
where it was. Usage:

    uv run python experiments/differentiable_validation/make_student.py [--time-ps 1.2] [--epochs 80]
        [--out runs/student]
"""

import argparse
from pathlib import Path
from typing import Any

import jaxmlip as jm

TEACHER = "chgnet:r2scan"
KELVIN = [200.0, 250.0, 300.0, 350.0, 250.0, 300.0, 250.0, 300.0]
DENSITIES = [0.92, 0.92, 0.92, 0.92, 0.88, 0.96, 1.0, 0.98]
MODEL = jm.Equivariant(channels=32, l_max=2, correlation=3, layers=2, cutoff=5.0, radial_mlp=(32, 32))


def simulated(potential: Any, path: Path, time_ps: float, seed: int) -> list[Any]:
    """Frames of replicas at constant volume, the start of each left out."""
    starts = [jm.ice_ih(molecules=16, seed=0) for _ in KELVIN]
    for atoms, density in zip(starts, DENSITIES, strict=True):
        atoms.set_cell(atoms.cell.array * (0.92 / density) ** (1 / 3), scale_atoms=True)
    options: dict[str, Any] = {"timestep_fs": 1.0, "sample_every_fs": 20.0, "seed": seed, "on_failure": "mark"}
    jm.simulate(potential, starts, jm.NVT(KELVIN, friction_per_ps=20.0), time_ps=time_ps, to=path, **options)
    return [atoms for atoms in jm.load_run(path) if atoms.info["time_fs"] > 200.0]


def labelled(potential: Any, teacher: Any, path: Path, time_ps: float, seed: int) -> list[Any]:
    """Frames of a potential's simulation with the teacher's labels."""
    file = path.with_suffix(".extxyz")
    if not file.is_file():
        jm.write_frames(
            file, jm.label(simulated(potential, path.with_suffix(".h5"), time_ps, seed), teacher, stress=True)
        )
    return list(jm.read_frames(file))


def distilled(path: Path, frames: list[Any], epochs: int) -> Any:
    """A student of labelled frames, every tenth of which decides which parameters are kept."""
    if path.is_file():
        return jm.load(path)
    training, held_out = [f for n, f in enumerate(frames) if n % 10], frames[::10]
    settings, strategy = jm.TrainingSettings(epochs=epochs, batch_size=4, energy_weight=40.0), jm.Direct()
    problem = strategy.from_labels(MODEL, training, validation=held_out, settings=settings)
    trained = strategy.solve(problem, settings, folder=path.with_suffix(""))
    jm.save(strategy.deploy(trained), path)
    return jm.load(path)


def main() -> None:
    """Simulate, label, train; and say how far it is from the teacher in its own simulation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--time-ps", type=float, default=1.2)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/student"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = jm.load(TEACHER)
    sampler = jm.load(Path(__file__).parent / "students" / "energies_and_forces.jaxmlip")
    frames = labelled(sampler, teacher, options.out / "sampler", options.time_ps, 0)
    student = distilled(options.out / "distilled.jaxmlip", frames, options.epochs)
    own = labelled(student, teacher, options.out / "own", options.time_ps / 2, 2)[::10]
    print(jm.compare(own, jm.predict(student, [frame.atoms for frame in own])))


if __name__ == "__main__":
    main()
