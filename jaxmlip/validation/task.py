"""What is to be validated, checked before anything runs."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from jaxmlip.describing import count
from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import observable_from_text
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Pressure, Temperature
from jaxmlip.potentials.potential import Potential
from jaxmlip.progress import say
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.systems.checks import ALLOW_CLOSE
from jaxmlip.validation.averages import cell_range
from jaxmlip.validation.comparison import Comparison, Validation
from jaxmlip.validation.verdict import Tolerances
from jaxmlip.validation.ways import spacing
from jaxmlip.validation.weights import reduced_energies

RELATIVE = 0.02
"""Tolerance of observables that have none of their own, relative to the teacher's value."""

PRESSURE_GPA = 0.05
"""Tolerance of the pressure, whose value may be nothing."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How long is simulated where no run is given, and what the teacher may be asked.

    Attributes:
        time_ps: of each replica.
        replicas: number of replicas.
        timestep_fs, sample_every_fs: see `simulate`.
        seed: of the student's simulation; a bridge's and the teacher's follow.
        bridge: whether potentials between the two may be simulated.
        teacher_md: whether the teacher may be simulated.
    """

    time_ps: float | int = 1.0
    replicas: int = 4
    timestep_fs: float | int = 0.5
    sample_every_fs: float | int = 10.0
    seed: int = 0
    bridge: bool = True
    teacher_md: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be validated.

    Attributes:
        start: a structure, or the first frame of a run.
        student, teacher, ensemble, sampling: see `validate`.
        observables: by name.
        tolerances: by name, where the caller has said so.
        temperature_K, pressure_GPa: of the ensemble; no pressure at constant volume.
    """

    start: Atoms
    student: Potential
    teacher: Potential
    ensemble: Ensemble
    observables: dict[str, Observable]
    tolerances: Mapping[str, float]
    sampling: Sampling
    temperature_K: float
    pressure_GPa: float | None

    @classmethod
    def of(
        cls,
        structure: Atoms | Run,
        student: Potential,
        teacher: Potential,
        ensemble: Ensemble,
        observables: Sequence[str | Observable] | None,
        tolerances: Mapping[str, float] | None,
        sampling: Sampling,
    ) -> "Task":
        """Checked, before anything runs."""
        start = structure
        if isinstance(start, Run):
            start = start[0]
            start.info[ALLOW_CLOSE] = True  # atoms are where the dynamics has brought them
        temperature, pressure = state_of(ensemble)
        chosen = _named(_default(start, ensemble) if observables is None else observables, temperature, pressure)
        for who, potential in (("student", student), ("teacher", teacher)):
            try:
                potential.check(start, stress=ensemble.moves_cell)
            except ValueError as error:
                raise ValueError(f"The {who} cannot be used: {error}") from None
        frame = FrameState(
            None, None, None, numbers=tuple(start.numbers.tolist()), heights=cell_range(start.cell.array, start.pbc)
        )
        for name, observable in chosen.items():
            if observable.needs_moving_cell and not ensemble.moves_cell:
                raise ValueError(
                    f"{name} is the same in all frames of {type(ensemble).__name__}, whose cell does not move: choose "
                    "an ensemble at constant pressure, or leave it out."
                )
            observable.bound_to(start).check(frame)
        unknown = set(tolerances or {}) - set(chosen)
        if unknown:
            raise ValueError(f"There is a tolerance for {', '.join(sorted(unknown))}, and no such observable here.")
        return cls(start, student, teacher, ensemble, chosen, tolerances or {}, sampling, temperature, pressure)

    def simulated(self, potential: Potential, folder: Path | None, name: str, *, progress: bool) -> Run:
        """A run of one of the two potentials."""
        sampling = self.sampling
        options: dict[str, Any] = {
            "time_ps": sampling.time_ps,
            "timestep_fs": sampling.timestep_fs,
            "sample_every_fs": sampling.sample_every_fs,
            "replicas": sampling.replicas,
            "seed": sampling.seed + (name != "student"),
            "keep_velocities": True,
            "on_failure": "mark",
            "progress": progress,
        }
        say(f"the {name}: {sampling.time_ps:g} ps of {count(sampling.replicas, 'replica')}", shown=progress)
        if folder is None:
            return simulate(potential, self.start, self.ensemble, **options)
        path = folder / f"{name}.h5"
        simulate(potential, self.start, self.ensemble, to=path, **options)
        return load_run(path)

    def reduced(self, energies: np.ndarray, run: Run) -> np.ndarray:
        """Reduced energies of a run's frames."""
        if self.pressure_GPa is None:
            return reduced_energies(energies, self.temperature_K)
        return reduced_energies(energies, self.temperature_K, run.volume, self.pressure_GPa)

    def tolerance(self, name: str, teacher: Estimate | None) -> float:
        """What difference does no harm."""
        if name in self.tolerances:
            return float(self.tolerances[name])
        observable, usual = self.observables[name], Tolerances()
        if isinstance(observable, RDF):
            return usual.rdf_A
        if isinstance(observable, PotentialEnergy):
            return 1e-3 * usual.energy_meV * len(self.start)
        if isinstance(observable, Pressure):
            return PRESSURE_GPA
        if teacher is None:
            return math.nan
        size = np.abs(teacher.value)
        if observable.axis is not None:
            return float(RELATIVE * size.sum() * spacing(observable))
        relative = {Density: usual.density, Temperature: usual.temperature}.get(type(observable), RELATIVE)
        return float(relative * np.mean(size))

    def unstable(self, reason: str) -> Validation:
        """What is said of a student whose simulation fails."""
        nothing = Comparison(None, None, None, None, math.nan, math.nan, "fail", "the student's simulation fails")
        every = dict.fromkeys(self.observables, nothing)
        return Validation("fail", f"the student's simulation fails: {reason}", every, math.nan, math.nan, {}, {})


def state_of(ensemble: Ensemble) -> tuple[float, float | None]:
    """Temperature and pressure that an ensemble holds; ValueError if it does not."""
    temperature = getattr(ensemble, "temperature_K", None)
    if "thermostat" not in ensemble.time_constants_ps:
        raise ValueError(
            f"{type(ensemble).__name__} holds no temperature, which weights are made with: choose NVT or NPT."
        )
    pressure = getattr(ensemble, "pressure_GPa", None) if ensemble.moves_cell else None
    for name, value in (("temperature", temperature), ("pressure", pressure)):
        if value is not None and not isinstance(value, float | int):
            raise ValueError(f"Frames are weighted at one {name}, not at {value!r}: give a single number.")
    if temperature is None:
        raise ValueError(f"{type(ensemble).__name__} has no temperature_K, which weights are made with.")
    return float(temperature), None if pressure is None else float(pressure)


def _default(start: Atoms, ensemble: Ensemble) -> list[str]:
    """Observables where none are asked for."""
    elements = [chemical_symbols[number] for number in np.unique(start.numbers)]
    pairs = itertools.combinations_with_replacement(elements, 2) if start.pbc.all() else ()
    names = [f"rdf:{one}-{other}" for one, other in pairs]
    if not names:
        warnings.warn(
            "The structure has no cell in which there are distributions of distances, so that energies alone are "
            "compared: name what matters as observables, such as bond:O-H, angle:H-O-H, coordination:Na-O:r_0=3.",
            stacklevel=4,
        )
    return [*names, "potential_energy", *(["density"] if ensemble.moves_cell else [])]


def _named(
    observables: Sequence[str | Observable], temperature_K: float, pressure_GPa: float | None
) -> dict[str, Observable]:
    """Observables by the names they go by here; ValueError for two of one name, or none."""
    found: dict[str, Observable] = {}
    for each in observables:
        name = each if isinstance(each, str) else each.name
        if name in found:
            raise ValueError(f"The observable {name} is asked for twice.")
        made: Any = each
        if isinstance(each, str):
            made = observable_from_text(each, temperature_K=temperature_K, pressure_GPa=pressure_GPa)
        if not isinstance(made, Observable):
            raise ValueError(
                f"{name} is of the course in time, which weights of frames do not give; leave it out, and compare its "
                "averages over runs of both potentials."
            )
        found[name] = made
    if not found:
        raise ValueError("There is no observable to compare.")
    return found


def named_values(texts: Sequence[str]) -> dict[str, float]:
    """Numbers by name, of texts NAME=VALUE whose last sign of equality counts: names may have others.

    Raises:
        ValueError: for a text that is not so, or a number that is not positive.
    """
    found = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not sign or not 0 < number < math.inf:
            raise ValueError(f"A tolerance is NAME=VALUE with a positive number, such as density=0.01, not {text!r}.")
        found[name] = number
    return found
