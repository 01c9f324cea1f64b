"""Fine-tuning to observables: targets of averages beside labels, met by simulations of the potential in training."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pydantic
from ase import Atoms

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.names import observable_from_text
from jaxmlip.observables.observable import Observable, check_names
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import Trainable, trainable
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.frames import last_structure
from jaxmlip.simulation.named_ensembles import ensemble_of
from jaxmlip.simulation.trajectory import load_run
from jaxmlip.systems.checks import check_start
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.base import Data
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import register_strategy
from jaxmlip.validation.averages import average, cell_range, room_for
from jaxmlip.validation.observable_terms import Target, answering
from jaxmlip.validation.own_simulations import OwnSimulations
from jaxmlip.validation.task import state_of

SHAKEN_A = 0.3
"""Å, by how much a structure is shaken to see whether an observable is of positions at all."""

Numbers = float | list[float] | list[list[float]]


def _structure(value: Any) -> Any:
    """Structures as ASE has them, and names of files."""
    if not isinstance(value, Atoms | str | Path):
        raise ValueError("a structure is a file that ASE reads, or an ase.Atoms")
    return value if isinstance(value, Atoms) else str(value)


def _observable(value: Any) -> Any:
    if not isinstance(value, Observable | str):
        raise ValueError("an observable is a name such as rdf:O-O or density, or an Observable")
    return value


Text = pydantic.WithJsonSchema({"type": "string"})
AsText = pydantic.PlainSerializer(str, return_type=str, when_used="json")


class ObservableTarget(pydantic.BaseModel):
    """What an average is to become: a value with its error, or that of another potential's run."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    observable: Annotated[Any, pydantic.BeforeValidator(_observable), Text, AsText] = pydantic.Field(
        description="as `jaxmlip md` names it: density, rdf:O-O:bins=60, potential_energy …"
    )
    value: Numbers | None = pydantic.Field(default=None, description="in the observable's unit and shape")
    error: Numbers | None = pydantic.Field(
        default=None,
        description="its standard error, or what difference does no harm: deviations count in multiples of it and of "
        "the simulation's own error, together",
    )
    run: Path | None = pydantic.Field(
        default=None, description="trajectory (.h5) of the teacher to take both from, in place of value and error"
    )
    weight: float = pydantic.Field(default=1.0, gt=0, description="relative to the other targets")
    axis: list[float] | None = pydantic.Field(default=None, description="points of a function, to be compared")

    @pydantic.model_validator(mode="after")
    def _says_what(self) -> "ObservableTarget":
        if (self.run is None) == (self.value is None) or (self.value is None) != (self.error is None):
            raise ValueError(
                f"The target of {self.named} needs a value and its error, or the run of a teacher (and not both)."
            )
        return self

    @property
    def named(self) -> str:
        """What messages call it."""
        return self.observable if isinstance(self.observable, str) else self.observable.name

    @classmethod
    def of(cls, observable: str | Observable, estimate: Estimate, *, weight: float | int = 1.0) -> "ObservableTarget":
        """The target that an estimate is, of `jm.average` for example.

        Raises:
            ValueError: if it has no error.
        """
        name = observable if isinstance(observable, str) else observable.name
        if not (estimate.status.has_error and np.isfinite(estimate.error).all()):
            raise ValueError(f"The estimate of {name} cannot be a target: {estimate.status.value}.")
        axis = None if estimate.axis is None else np.asarray(estimate.axis).tolist()
        numbers = {"value": np.asarray(estimate.value).tolist(), "error": np.asarray(estimate.error).tolist()}
        return cls(observable=observable, weight=weight, axis=axis, **numbers)

    def resolved(self) -> "ObservableTarget":
        """With the value and error of its run, if it names one.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no trajectory, or gives no error.
        """
        if self.run is None:
            return self
        path = Path(os.path.expandvars(self.run))
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}, which the target of {self.named} is to be taken from.")
        run = load_run(path)
        observable = observable_from_text(self.observable) if isinstance(self.observable, str) else self.observable
        return self.of(self.observable, average(run, observable), weight=self.weight)


class OwnSimulation(pydantic.BaseModel):
    """How the potential in training is simulated."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    structure: Annotated[Any, pydantic.BeforeValidator(_structure), Text, AsText] = pydantic.Field(
        description="file of the start; the last frame if there are several"
    )
    ensemble: Literal["nvt", "nvt-nose-hoover", "nvt-csvr", "npt", "npt-nose-hoover"] = "nvt"
    temperature_K: float = pydantic.Field(gt=0)
    pressure_GPa: float = 0.0
    cell: Literal["isotropic", "orthorhombic", "flexible"] = pydantic.Field(default="isotropic", description="of npt")
    friction_per_ps: float = pydantic.Field(default=2.0, gt=0)
    pressure_time_ps: float = pydantic.Field(default=1.0, gt=0)
    time_ps: float = pydantic.Field(default=1.0, gt=0, description="of each replica, each time it is simulated")
    replicas: int = pydantic.Field(default=4, ge=1)
    timestep_fs: float = pydantic.Field(default=0.5, gt=0)
    sample_every_fs: float = pydantic.Field(
        default=20.0, gt=0, description="time between frames; every step of the training evaluates all of them"
    )
    discard: float = pydantic.Field(default=0.2, ge=0, lt=1, description="share of the frames left out at the start")

    def described(self) -> Ensemble:
        """The ensemble."""
        return ensemble_of(
            self.ensemble,
            self.temperature_K,
            self.pressure_GPa,
            self.cell,
            self.friction_per_ps,
            pressure_time_ps=self.pressure_time_ps,
        )

    def start(self) -> Atoms:
        """The structure.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: see `last_structure`.
        """
        if isinstance(self.structure, Atoms):
            return self.structure
        path = Path(os.path.expandvars(self.structure))
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}, which simulations are to start from (structure).")
        return last_structure(path)


@register_strategy
class ObservableTuning(MultiFidelity):
    """Go on from the foundation's parameters with labels and targets of observables, simulating as they change.

    The parameters of the last validation are those that the frames are of, so that there is no moving average; what is
    kept is the epoch with the least validation loss, the errors of observables among it.
    """

    name: Literal["observable_tuning"] = "observable_tuning"  # pyright: ignore[reportIncompatibleVariableOverride]
    targets: tuple[ObservableTarget, ...] = pydantic.Field(min_length=1, description="of averages")
    simulation: OwnSimulation = pydantic.Field(description="of the potential in training")
    reuse: float = pydantic.Field(
        default=0.5,
        gt=0,
        lt=1,
        description="fraction of the effective frames (Kish) below which fresh replicas are simulated",
    )
    observables_weight: float = pydantic.Field(
        default=0.01,
        gt=0,
        description="of √(1 + z²) − 1 in the loss beside the labels, z = (average − target) / error of this difference",
    )
    replay: float = pydantic.Field(
        default=0.0,
        ge=0,
        description="low-fidelity frames replayed, on a readout of their own, for each high-fidelity one; 0: none",
    )

    def adjusted(self, settings: TrainingSettings) -> TrainingSettings:
        """Without a moving average; its parameters would not be those that are simulated.

        Raises:
            ValueError: if this strategy's own changes ask for one.
        """
        if self.training.get("ema_decay"):
            raise ValueError(
                f"{self.name} simulates the parameters that it validates, so that there is no moving average: leave "
                "ema_decay out of its training."
            )
        return super().adjusted(settings.model_copy(update={"ema_decay": 0.0}))

    def set_up(self, data: Data) -> TrainingProblem:
        """The foundation, with a second readout if labels are replayed, and simulations of it."""
        if self.replay:
            problem = super().set_up(data)
        else:
            references = self.lifted(data.foundation, data.high, data.low)
            problem = self.continued(data.foundation.with_references(references), data)
        assert isinstance(problem.potential, Trainable)
        how = self.simulation
        source = own_simulations(
            problem.potential,
            how.start(),
            how.described(),
            [target.resolved() for target in self.targets],
            weight=self.observables_weight,
            head=problem.potential.heads - 1,
            reuse=self.reuse,
            seed=data.settings.seed,
            **how.model_dump(include={"time_ps", "replicas", "timestep_fs", "sample_every_fs", "discard"}),
        )
        return dataclasses.replace(problem, source=source)


def own_simulations(
    potential: Potential,
    start: Atoms,
    ensemble: Ensemble,
    targets: list[ObservableTarget],
    *,
    weight: float | int = 0.01,
    head: int = 0,
    **sampling: Any,
) -> OwnSimulations:
    """The `source` of a training problem whose potential is to meet targets of averages.

        problem = dataclasses.replace(problem, source=own_simulations(potential, ice, jm.NPT(250), [target]))

    Args:
        potential: any with parameters.
        start: structure.
        ensemble: that holds a temperature.
        targets: with values.
        weight: of all targets in the loss.
        head: readout that is simulated.
        sampling: time_ps, replicas, timestep_fs, sample_every_fs, discard, reuse and seed of `OwnSimulations`.

    Raises:
        ValueError: for an ensemble that does not define an observable, an observable whose average has no gradient, a
            target of another shape or without an error, or a structure that the potential cannot be used for.
    """
    trainable(potential)
    check_start(start)
    if head == 0 and getattr(potential, "heads", 1) == 1:
        potential.check(start, stress=ensemble.moves_cell)
    temperature, pressure = state_of(ensemble)
    frame = _frame(start, potential)
    found = []
    for target in targets:
        made: Any = target.observable
        if isinstance(made, str):
            made = observable_from_text(made, temperature_K=temperature, pressure_GPa=pressure)
        if not isinstance(made, Observable):
            raise ValueError(
                f"{target.named} is of the course in time, of which weights of frames give no gradient; leave it out."
            )
        if made.needs_moving_cell and not ensemble.moves_cell:
            raise ValueError(
                f"{target.named} is the same in all frames of {type(ensemble).__name__}, whose cell does not move: "
                "choose an ensemble at constant pressure, or leave it out."
            )
        found.append(_checked(target, made.bound_to(start), frame, answering(potential, head), float(weight)))
    check_names([target.observable for target in found])
    return OwnSimulations(start.copy(), ensemble, temperature, tuple(found), head=head, **sampling)


def _checked(
    target: ObservableTarget, observable: Observable, frame: FrameState, potential: Potential, weight: float
) -> Target:
    """The target, if the observable's average has its shape, and a gradient."""
    observable.check(frame)
    own = potential if observable.depends_on_potential else None
    try:
        per_frame = jax.eval_shape(lambda frame: observable.per_frame(frame, own), frame)
    except ValueError as error:
        raise ValueError(f"{target.named} cannot be a target of the potential's own frames: {error}") from None
    several = jax.ShapeDtypeStruct((2, 4, *per_frame.shape), per_frame.dtype)
    shape = jax.eval_shape(observable.mean, several).shape
    value, error = (np.asarray(each, np.float64) for each in (target.value, target.error))
    if value.shape != shape or error.shape not in ((), shape):
        raise ValueError(
            f"The target of {target.named} has the shape {value.shape} and its error {error.shape}, but the average "
            f"has {shape}; give values of that shape (for a function, of the same bins)."
        )
    if target.axis is not None and observable.axis is not None and not np.allclose(target.axis, observable.axis):
        raise ValueError(f"The target of {target.named} is on other points than the observable; give both equal bins.")
    size = math.sqrt(float(np.mean(error**2)))
    if not (np.isfinite(value).all() and 0 < size < math.inf):
        raise ValueError(
            f"The target of {target.named} needs finite values and a positive error; of one that is exact, give as its "
            "error what difference does no harm."
        )
    if own is None and not _moves(observable, frame):
        raise ValueError(
            f"The {observable.name} is not of positions, so that its average has no gradient by the potential; leave "
            "it out."
        )
    return Target(observable, value, size, weight * target.weight)


def _moves(observable: Observable, frame: FrameState) -> bool:
    """Whether values change if atoms and cell are moved, momenta being the same."""
    shift = SHAKEN_A * np.random.default_rng(0).standard_normal(frame.positions.shape)
    moved = frame.replace(
        positions=(1.01 * frame.positions + shift).astype(frame.positions.dtype), cell=frame.cell * np.float32(1.01)
    )
    here, there = (np.asarray(observable.per_frame(each)) for each in (frame, moved))
    return not np.array_equal(here, there)


def _frame(start: Atoms, potential: Potential) -> FrameState:
    """The start as a frame, with momenta."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    cell = np.where(start.pbc[:, None], start.cell.array, 0.0).astype(dtype)
    frame = FrameState(
        positions=start.positions.astype(dtype),
        cell=cell,
        masses=start.get_masses().astype(dtype),
        momenta=np.ones((len(start), 3), dtype),
        degrees=dtype.type(3 * len(start)),
        numbers=tuple(start.numbers.tolist()),
        heights=cell_range(np.asarray(start.cell.array), np.asarray(start.pbc)),
    )
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], frame)
    return frame.replace(capacity=room_for(one, (potential.cutoff, potential.inner_cutoff)))
