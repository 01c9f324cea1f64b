"""Where a training is, and how it is kept in a folder."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxmlip.processes import writes_files
from jaxmlip.training.checkpoints import Checkpoints, Interruption, fingerprint
from jaxmlip.training.metrics import Metrics, Tally
from jaxmlip.training.parallel import replicated
from jaxmlip.training.problem import Record, TrainingProblem, TrainingSettings
from jaxmlip.training.step import TrainState

CHECKPOINTS = "checkpoints"
"""Where they are, below the folder of a training."""

GAIN = 1e-3
"""By this share a validation loss must be lower than the lowest before for a training to count as one that goes on
falling (see `TrainingSettings.patience`)."""


@dataclasses.dataclass
class Model:
    """What the host keeps of one model while it trains.

    Attributes:
        losses: of the batches of the epoch under way.
        errors: on those batches, each before its step.
        history: see `Trained`.
        best_epoch: see `Trained`.
        lowest: validation loss of that epoch.
        diverged: see `Trained`.
        active: False once the last record is written.
        waited: validations since the last that was lower (see `TrainingSettings.patience`).
        slowed: what the schedule's learning rate is multiplied by.
        converged: see `Trained`.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    errors: Tally = dataclasses.field(default_factory=Tally)
    history: list[Record] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    lowest: float = np.inf
    diverged: str | None = None
    active: bool = True
    waited: int = 0
    slowed: float = 1.0
    converged: bool = False

    def note(self, record: Record, epoch: int, settings: TrainingSettings) -> bool:
        """Note a validation, and say whether it is the best so far; who has diverged or converged is active no more."""
        self.history.append(record)
        found = record["validation_loss"]
        better, self.waited = found < self.lowest, 0 if found < (1.0 - GAIN) * self.lowest else self.waited + 1
        if better:
            self.best_epoch, self.lowest = epoch, found
        if settings.patience is not None and self.waited >= settings.patience:
            self.waited, self.slowed = 0, 0.5 * self.slowed
            if self.slowed < settings.final_learning_rate:
                self.converged, self.active = True, False
        if self.diverged is not None:
            self.diverged += f" The parameters of epoch {self.best_epoch} are kept."
            self.active = False
        return better


@dataclasses.dataclass
class TrainingRun:
    """Where the training of a stack is: all that it takes to go on.

    Attributes:
        states: on the device.
        best: parameters of each model's best validation.
        models: what the host keeps of each.
        epoch: the epoch under way, 0 being the validation of the initial parameters.
        position: steps of that epoch that are done.
        wall_s: time it has taken, s; that of runs before this one included.
        renewals: how many times terms that follow the parameters have been made.
    """

    states: TrainState
    best: Any
    models: list[Model]
    epoch: int = 0
    position: int = 0
    wall_s: float = 0.0
    renewals: int = 0

    @property
    def slowed(self) -> np.ndarray:
        """[models], what learning rates are multiplied by."""
        return np.array([model.slowed for model in self.models])

    def due(self, settings: TrainingSettings) -> list[int]:
        """Numbers of the models whose errors are to be recorded at the end of this epoch."""
        due = self.epoch % settings.validation_every == 0 or self.epoch == settings.epochs
        return [n for n, model in enumerate(self.models) if model.active and (due or model.diverged is not None)]

    def next_epoch(self) -> None:
        """Begin the next epoch, with no losses and errors."""
        self.epoch, self.position = self.epoch + 1, 0
        for model in self.models:
            model.losses, model.errors = [], Tally()

    def notes(self) -> dict:
        """Everything but the arrays, as plain data."""
        models = [vars(model) | {"errors": model.errors.to_json()} for model in self.models]
        names = ("epoch", "position", "wall_s", "renewals")
        return {"models": models} | {name: getattr(self, name) for name in names}

    def go_on(self, arrays: tuple[TrainState, Any], notes: dict, mesh: Mesh | None) -> None:
        """Take the place of the run that a checkpoint was made of."""
        self.states, self.best = replicated(arrays, mesh)
        self.models = [Model(**model | {"errors": Tally(model["errors"])}) for model in notes["models"]]
        self.epoch, self.position, self.wall_s = notes["epoch"], notes["position"], notes["wall_s"]
        self.renewals = notes.get("renewals", 0)  # there were none in earlier versions


class Saver:
    """Writes the files of a run; without a folder, none."""

    def __init__(self, checkpoints: Checkpoints | None, metrics: list[Metrics], interruption: Interruption) -> None:
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._interruption = interruption

    def must_save(self) -> bool:
        """Whether it is time for a checkpoint, or the process is asked to end."""
        return self._checkpoints is not None and (self._interruption.asked() or self._checkpoints.due())

    def save(self, run: TrainingRun, steps: int) -> None:
        """Make a checkpoint; then end, if the process is asked to.

        Args:
            run: to be kept.
            steps: of an epoch.
        """
        if self._checkpoints is None:
            return
        self._checkpoints.save(run.epoch * (steps + 1) + run.position, (run.states, run.best), run.notes())
        if self._interruption.signal is not None:
            self._interruption.follow()

    def write(self, number: int, record: Record, run: TrainingRun, steps: int, validation: Tally) -> None:
        """Write a record of a model, whose errors on training samples are in the run; see `Metrics.write`.

        Args:
            number: of the model.
            record: of the epoch under way.
            run: where the training is.
            steps: of an epoch.
            validation: errors on validation samples.
        """
        if self._metrics:
            taken = (run.epoch - 1) * steps + run.position if run.epoch else 0
            tallies = {"training": run.models[number].errors, "validation": validation}
            self._metrics[number].write(record, taken, tallies)


@contextlib.contextmanager
def kept(
    run: TrainingRun,
    folder: str | Path | None,
    problems: Sequence[TrainingProblem],
    settings: Sequence[TrainingSettings],
    mesh: Mesh | None,
) -> Iterator[Saver]:
    """Bring a new run to where the last checkpoint in a folder was made, and keep it there from now on.

    Raises:
        ValueError: see `Checkpoints.latest`; or if metrics are to be logged and there is no folder.
        ImportError: see `Metrics`.
    """
    log = settings[0].log
    if folder is None:
        if log != "none":
            raise ValueError(f"log is {log}, but there is no folder to write to; give one, or set log to none.")
        yield Saver(None, [], Interruption())
        return
    folder = Path(folder)
    checkpoints = Checkpoints(
        folder / CHECKPOINTS, fingerprint(problems, settings), min(mine.checkpoint_minutes for mine in settings)
    )
    with contextlib.ExitStack() as open_:
        open_.callback(checkpoints.close)
        found = checkpoints.latest((run.states, run.best))
        if found is not None:
            run.go_on(*found, mesh)
        metrics = []
        for number, model in enumerate(run.models if writes_files() else []):
            place = folder if len(run.models) == 1 else folder / f"model-{number}"
            last = int(model.history[-1]["epoch"]) if model.history else -1
            metrics.append(Metrics(place, log, last))
            open_.callback(metrics[-1].close)
        yield Saver(checkpoints, metrics, open_.enter_context(Interruption().noted()))
