"""Can a potential's simulations be trusted? A student against its teacher, observable by observable.

The teacher's averages are found the cheapest way that its own check allows, see `ways`; every number says which way it
came by, and where none is allowed the answer is that it cannot be told, with what it would take.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.trajectory import Run
from jaxmlip.validation.comparison import Validation
from jaxmlip.validation.ladder import Ladder, unstable_in_equilibrium
from jaxmlip.validation.task import Sampling, Task


def validate(
    structure: Atoms | Run,
    potential: Potential,
    against: Potential,
    ensemble: Ensemble,
    *,
    observables: Sequence[str | Observable] | None = None,
    sampling: Sampling | None = None,
    teacher_run: Run | None = None,
    tolerances: Mapping[str, float] | None = None,
    to: str | Path | None = None,
    progress: bool = True,
) -> Validation:
    """Hold a student's averages against its teacher's, observable by observable.

    Args:
        structure: to simulate by the student from; or a run of the student's, of this ensemble.
        potential: the student.
        against: the teacher, any Potential.
        ensemble: at constant temperature, for example `NVT(250)` or `NPT(250, 0.0)`.
        observables: by name (`rdf:O-O`, `potential_energy`, see `observable_from_text`) or themselves. By default the
            radial distribution functions of all pairs of elements where periodic, the potential energy, and the
            density where the cell moves.
        sampling: see there.
        teacher_run: a run of the teacher's, of this ensemble, if there is one: then nothing is simulated of it.
        tolerances: by name of the observable, what difference does no harm; by default those of `Tolerances`,
            `PRESSURE_GPA`, and `RELATIVE` of the teacher's value.
        to: folder for trajectories and energies; the same call again goes on from what is there.
        progress: show bars.

    Raises:
        ValueError: before anything runs, for unknown elements, ensembles without a constant temperature, observables
            that the ensemble or the structure does not define, runs of other atoms.
        SimulationError: if all replicas of a simulation fail.
    """
    task = Task.of(structure, potential, against, ensemble, observables, tolerances, sampling or Sampling())
    if teacher_run is not None and not np.array_equal(teacher_run.numbers, task.start.numbers):
        raise ValueError("The teacher's run is of other atoms than the student's.")
    folder = None if to is None else Path(to)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    run = structure if isinstance(structure, Run) else task.simulated(potential, folder, "student", progress=progress)
    wrong = unstable_in_equilibrium(run, task.temperature_K)
    if wrong:
        return task.unstable(wrong)
    return Ladder(task, run, teacher_run, folder, progress).climbed()
