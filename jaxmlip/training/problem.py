"""What training is given and what it gives back: settings, problems, trained potentials."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import jax
import numpy as np
import pydantic
from ase.data import chemical_symbols

from jaxmlip.describing import count, short
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.batches import Sample
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.training.loss import LabelErrors, LossKind, Terms, Weights
from jaxmlip.training.objective import Objective, Term, TermSource
from jaxmlip.training.optimizers import DEFAULT_CHOICE, Optimizer

LONG_TRAINING = 600
"""Steps after which the tiers (see `Graph.tiers`) have saved more time than compiling for them takes."""


Label: TypeAlias = Literal["energy", "forces", "stress", "magmoms"]
"""What the loss compares."""


class TrainingSettings(pydantic.BaseModel):
    """How to train; the defaults follow common practice with MACE and NequIP."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    epochs: int = pydantic.Field(default=100, ge=1, description="passes over the training set")
    batch_size: int = pydantic.Field(default=4, ge=1, description="structures in a batch")
    learning_rate: float = pydantic.Field(default=0.01, gt=0, description="peak of the schedule")
    final_learning_rate: float = pydantic.Field(
        default=0.01, ge=0, le=1, description="end of the cosine, share of the peak"
    )
    patience: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="train until converged: after so many validations in a row without a lower loss the learning rate "
        "is halved, and the training ends where it would fall below final_learning_rate of the peak, or after the "
        "epochs; null: half a cosine over the epochs",
    )
    warmup: float = pydantic.Field(
        default=0.05, ge=0, lt=1, description="share of all steps in which the rate rises linearly"
    )
    optimizer: Optimizer = pydantic.Field(
        default=Optimizer(),
        description="name and arguments of an optimiser of optax (adam, lion, muon …); learning rate and decay are "
        "settings",
    )
    weight_decay: float = pydantic.Field(default=5e-7, ge=0, description="decoupled, of the optimiser")
    clip_norm: float = pydantic.Field(default=10.0, gt=0, description="largest norm of a gradient")
    ema_decay: float = pydantic.Field(
        default=0.99, ge=0, lt=1, description="of the moving average of parameters; 0: none"
    )
    loss: LossKind = pydantic.Field(default="huber", description="huber or mse")
    huber_delta: float = pydantic.Field(
        default=0.01, gt=0, description="error beyond which Huber is linear, eV/atom, eV/Å, eV/Å³"
    )
    huber_deltas: dict[Label, Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        default={}, description="the same by label, where it is another: {energy: 0.1, stress: 0.0006, magmoms: 0.1}"
    )
    energy_weight: float = pydantic.Field(default=1.0, ge=0, description="weight of the energy per atom")
    forces_weight: float = pydantic.Field(default=10.0, ge=0, description="weight of the forces")
    stress_weight: float | None = pydantic.Field(
        default=None,
        ge=0,
        description="weight of the stress; null: from the spread of the labels (see "
        "jaxmlip.training.weighting), wherever frames have it; 0: never",
    )
    magmoms_weight: float = pydantic.Field(
        default=0.0, ge=0, description="weight of the magnetic moments' magnitudes (CHGNet predicts them)"
    )
    tiers: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=8,
        description="groups of atoms by number of neighbours: more run faster and compile longer; by default 1 in "
        f"trainings of less than {LONG_TRAINING} steps, else 4",
    )
    validation_every: int = pydantic.Field(default=1, ge=1, description="epochs between validations")
    seed: int = pydantic.Field(
        default=0, ge=0, description="of new parameters, the order of batches and the choice of replay"
    )
    data_parallel: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="devices that share the work on every batch; by default all in a run of several processes, else 1",
    )
    checkpoint_minutes: float = pydantic.Field(
        default=5.0, ge=0, description="time between checkpoints, minutes; 0: after every step"
    )
    log: Literal["none", "tensorboard", "wandb"] = pydantic.Field(
        default="none", description="where metrics are shown besides metrics.csv and metrics.jsonl"
    )

    @pydantic.model_validator(mode="after")
    def _has_something_to_minimise(self) -> "TrainingSettings":
        if self.energy_weight == self.forces_weight == self.magmoms_weight == 0 and not self.stress_weight:
            raise ValueError(
                "energy_weight, forces_weight and magmoms_weight are 0, and stress_weight is 0 or follows from them: "
                "there is nothing to minimise."
            )
        return self

    @pydantic.model_serializer(mode="wrap")
    def _as_in_earlier_versions(self, handler: Any, info: Any) -> Any:
        """Without later settings that have their defaults: earlier digests, in folders of studies, still fit."""
        content = handler(self)
        if (info.context or {}).get("whole"):
            return content
        defaults = {
            "optimizer": self.optimizer.choice() == DEFAULT_CHOICE,
            "patience": self.patience is None,
            "huber_deltas": not self.huber_deltas,
            "magmoms_weight": self.magmoms_weight == 0,
        }
        for name, default in defaults.items():
            if default:
                content.pop(name, None)
        return content

    def delta_of(self, label: Label) -> float:
        """The error of a label beyond which Huber's loss is linear."""
        return self.huber_deltas.get(label, self.huber_delta)

    def terms(self, *, stress: bool = False) -> Terms:
        """The terms with a weight; `stress` says whether there is one where `stress_weight` leaves it open."""
        stress = stress if self.stress_weight is None else self.stress_weight > 0
        return Terms(self.energy_weight > 0, self.forces_weight > 0, stress, self.magmoms_weight > 0)

    def weights(self) -> Weights:
        """The loss's numbers; a `stress_weight` that is left open is 0 until it is resolved (see `weighting`)."""
        return Weights(
            energy=self.energy_weight,
            forces=self.forces_weight,
            stress=self.stress_weight or 0.0,
            magmoms=self.magmoms_weight,
            huber_delta=self.huber_delta,
            huber_deltas={name: float(delta) for name, delta in self.huber_deltas.items()},
        )


DEFAULT_SETTINGS = TrainingSettings()

SHARED_SETTINGS = (
    "epochs",
    "batch_size",
    "loss",
    "huber_deltas",
    "optimizer",
    "tiers",
    "validation_every",
    "data_parallel",
)
"""Settings in which the models of a stack must agree: they decide its shapes, its program, or its course."""

HARMLESS_SETTINGS = ("data_parallel", "checkpoint_minutes", "log")
"""Settings on which the result does not depend, but for rounding: a checkpoint fits whatever they are."""

Record: TypeAlias = dict[str, int | float]
"""What the history says of one validated epoch; see `Trained.history`."""


@dataclasses.dataclass(frozen=True)
class TrainingProblem:
    """What is trained on what, as a strategy (or the distillation) has set it up.

    Attributes:
        potential: with the initial parameters. Only `params` is optimised, never references, scale or shift.
        train: training samples, of all fidelities; a list, or any sequence that makes them when asked.
        validation: samples that decide which parameters are kept.
        terms: terms of the training loss.
        selection: terms of the loss on the validation samples.
        names: what messages call the training samples, in the order of `train`.
        rates: pytree like `potential.params` of factors of the learning rate: 0 (stays) to 1; None if all are 1. A
            factor is a number, or an array for each entry of a leaf. It scales the optimiser's updates, decay included;
            clipping sees the gradient of what moves.
        l2_sp: strength of the penalty ½ · l2_sp · Σ (θ − θ₀)² over the parameters that move, θ₀ being those of
            `potential`, in the loss that is minimised (L2-SP: Li, Grandvalet, Davoine, ICML 2018). The losses in the
            history are without it.
        baseline: the potential whose predictions were subtracted from the labels, if any.
        objective: terms of the loss besides the labels', in training and validation.
        source: of further terms, which follow the parameters; see there.
    """

    potential: Potential
    train: Sequence[Sample]
    validation: Sequence[Sample]
    terms: Terms
    selection: Terms
    names: Sequence[str] = dataclasses.field(default_factory=list)
    rates: Any = None
    l2_sp: float = 0.0
    baseline: Potential | None = None
    objective: tuple[Term, ...] = ()
    source: TermSource | None = None

    def __post_init__(self) -> None:
        """Refuse a term that the potential has nothing to say of.

        Raises:
            ValueError: for magnetic moments of a potential that predicts none.
        """
        if (self.terms.magmoms or self.selection.magmoms) and not self.potential.has_magnetic_moments:
            raise ValueError(
                f"magmoms_weight is positive, but a {type(self.potential).__name__} predicts no magnetic moments: set "
                "it to 0, or train a CHGNet (jm.CHGNetModel, student: {kind: chgnet})."
            )

    def minimised(self, settings: TrainingSettings) -> Objective:
        """The loss of the training samples."""
        return self._of_labels(self.terms, settings)

    def validated(self, settings: TrainingSettings) -> Objective:
        """The loss of the validation samples."""
        return self._of_labels(self.selection, settings)

    def _of_labels(self, terms: Terms, settings: TrainingSettings) -> Objective:
        weights = jax.tree.map(float, settings.weights())
        return Objective((LabelErrors(weights, terms, settings.loss), *self.objective))

    def __repr__(self) -> str:
        """Sizes, terms and the potential."""
        sizes = f"{count(len(self.train), 'training sample')}, {count(len(self.validation), 'validation sample')}"
        terms = " ".join(name for name, wanted in self.terms._asdict().items() if wanted)
        base = "" if self.baseline is None else f"beside {self.baseline!r}"
        return short("TrainingProblem", sizes, f"terms {terms}", repr(self.potential), base)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained potential, before a strategy makes of it the one to deploy.

    Attributes:
        potential: with the moving-average parameters of the best validation.
        history: one record for each validated epoch, 0 being the start: epoch, train_loss, validation_loss,
            validation_energy_rmse_meV_atom, validation_force_rmse_meV_A, validation_stress_rmse_GPa, learning_rate,
            wall_s, and stress_weight if there is a stress term, validation_magmom_rmse_muB if there is one of magnetic
            moments, renewals if terms follow the parameters (how many
            times they have been made); NaN where there was no label, or nothing yet.
        best_epoch: the epoch whose parameters were kept.
        problem: what was trained.
        diverged: if the training was stopped, the sentence that says where and why.
        converged: whether its loss had ceased to fall before the epochs were over; None where settings have no
            `patience` to say so.
    """

    potential: Potential
    history: list[Record]
    best_epoch: int
    problem: TrainingProblem
    diverged: str | None = None
    converged: bool | None = None

    def __repr__(self) -> str:
        """Epochs, the best of them, and the potential."""
        best = [record for record in self.history if record["epoch"] == self.best_epoch]
        loss = f" (validation loss {best[0]['validation_loss']:.4g})" if best else ""
        last = self.history[-1]["epoch"] if self.history else 0
        ended = "diverged" if self.diverged else ""
        return short("Trained", f"epoch {self.best_epoch}{loss} of {last}", ended, repr(self.potential))


class TrainingDiverged(FloatingPointError):
    """The loss or its gradient is not finite, or explodes. `trained` holds the best validated parameters up to then."""

    def __init__(self, message: str, trained: Trained) -> None:
        super().__init__(message)
        self.trained = trained


def check_frames(
    species: Collection[int], frames: Sequence[Frame], validation: Sequence[Frame], terms: Terms, selection: Terms
) -> None:
    """Refuse data that a problem cannot be made of, before anything is computed.

    Args:
        species: atomic numbers that the potential to be trained knows.
        frames: training frames.
        validation: validation frames.
        terms: the training loss's.
        selection: the validation loss's.

    Raises:
        ValueError: for an empty training or validation set, an element that is not among the species, or a term whose
            label is missing in every frame; the message names the frames.
    """
    for kind, members, needed in (("training", frames, terms), ("validation", validation, selection)):
        if len(members) == 0:
            raise ValueError(f"There are no {kind} frames; training needs at least one.")
        for number, frame in enumerate(members):
            unknown = sorted(set(frame.atoms.numbers.tolist()) - set(species))
            if unknown:
                raise ValueError(
                    f"{describe(frame, number)} ({kind}) contains {_symbols(unknown)}, but the student only knows "
                    f"{_symbols(species)}; leave such frames out, or train a new student."
                )
        for label in needed._fields:
            if getattr(needed, label) and all(np.isnan(getattr(frame, label)).all() for frame in members):
                names = describe(members[0], 0)
                if len(members) > 1:
                    names += f" to {describe(members[-1], len(members) - 1)}"
                raise ValueError(
                    f"The loss needs {label}, but no {kind} frame has that label ({names}); give frames with {label}, "
                    f"or set {label}_weight to 0."
                )


def _symbols(numbers: Collection[int]) -> str:
    return " ".join(chemical_symbols[number] for number in sorted(numbers))
