"""The teacher's ensemble of ice from few of its energies: hybrid Monte Carlo by a student that is near its teacher.

Proposals are trajectories of `students/distilled.jaxmlip` (see make_student.py), started from the end of the teacher's
simulation that `against_teacher.py --molecules 16 --replicas 8 --time-ps 0.8` has made, and held against it: ⟨U⟩, the
radial distribution functions, and how many calls of the teacher either needs for the same error of ⟨U⟩. Usage:

    uv run python experiments/differentiable_validation/hybrid_ice.py runs/differentiable_validation/teacher.h5
        [--moves 300] [--out runs/hybrid_ice.json]
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import jaxmlip as jm
from jaxmlip.files import write_json

KELVIN = 250.0
PAIRS = (("O", "O"), ("O", "H"), ("H", "H"))


def main() -> None:
    """Sample, compare, and say what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("teacher_run", type=Path)
    parser.add_argument("--moves", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/hybrid_ice.json"))
    options = parser.parse_args()
    student = jm.load(Path(__file__).parent / "students" / "distilled.jaxmlip")
    teacher, direct = jm.load("chgnet:r2scan"), jm.load_run(options.teacher_run)
    starts = direct[direct.n_frames - 1 :: direct.n_frames]
    proposal = jm.Proposal(warm_up=40)
    sampled = jm.hybrid_monte_carlo(student, teacher, starts, jm.NVT(KELVIN), moves=options.moves, proposal=proposal)
    found: dict[str, Any] = {
        "acceptance": float(np.mean(sampled.acceptance)),
        "teacher_calls": sampled.teacher_calls - sampled.warm_up_calls,
        "warm_up_calls": sampled.warm_up_calls,
        "student_calls": sampled.student_calls,
        "correlation": sampled.correlation,
        "observables": {},
    }
    observables: list[Any] = [jm.PotentialEnergy(), *(jm.RDF(*pair) for pair in PAIRS)]
    for observable in observables:
        # The dynamics is not in the order of frames: the start is in equilibrium, and nothing is left out.
        own, other = jm.average(sampled.run, observable, equilibration=0.0), jm.average(direct, observable)
        if observable.axis is not None:
            off: Any = jm.rdf_error(own, other)
            told = [float(off.value), float(off.error), float(off.noise_floor)]
        else:
            told = [float(own.value), float(own.error), float(other.value), float(other.error), own.sigma_from(other)]
            calls = {
                "hybrid": float(own.error) ** 2 * found["teacher_calls"] * sampled.run.n_replicas,
                "direct": float(other.error) ** 2 * float(direct.time_fs[-1]) / direct.timestep_fs * direct.n_replicas,
            }
            found["share_of_the_calls"] = calls["hybrid"] / calls["direct"]
        found["observables"][observable.name] = told
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, found)
    print(options.out.read_text())


if __name__ == "__main__":
    main()
