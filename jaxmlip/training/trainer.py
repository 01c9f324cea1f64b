"""The one trainer: AdamW, warm-up and cosine, clipping, moving average, best-validation parameters."""

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from ase.data import chemical_symbols
from jaxtyping import Float

from jaxmlip.potentials.potential import Potential
from jaxmlip.progress import progress_bar
from jaxmlip.systems.batches import Batch, Sample, make_batches
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.training.loss import LossKind, Terms, TermSums, Weights, loss, total
from jaxmlip.types import AnyArray, Leaf
from jaxmlip.units import GPA

LONG_TRAINING = 2000
"""Steps after which the tiers (see `Graph.tiers`) have saved more time than compiling for them takes."""


class TrainingSettings(pydantic.BaseModel):
    """How to train; the defaults follow common practice with MACE and NequIP."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    epochs: int = pydantic.Field(default=100, ge=1, description="passes over the training set")
    batch_size: int = pydantic.Field(default=4, ge=1, description="structures in a batch")
    learning_rate: float = pydantic.Field(default=0.01, gt=0, description="peak of the schedule")
    final_learning_rate: float = pydantic.Field(
        default=0.01, ge=0, le=1, description="end of the cosine, share of the peak"
    )
    warmup: float = pydantic.Field(
        default=0.05, ge=0, lt=1, description="share of all steps in which the rate rises linearly"
    )
    weight_decay: float = pydantic.Field(default=5e-7, ge=0, description="of AdamW")
    clip_norm: float = pydantic.Field(default=10.0, gt=0, description="largest norm of a gradient")
    ema_decay: float = pydantic.Field(
        default=0.99, ge=0, lt=1, description="of the moving average of parameters; 0: none"
    )
    loss: LossKind = pydantic.Field(default="huber", description="huber or mse")
    huber_delta: float = pydantic.Field(
        default=0.01, gt=0, description="error beyond which Huber is linear, eV/atom, eV/Å, eV/Å³"
    )
    energy_weight: float = pydantic.Field(default=1.0, ge=0, description="weight of the energy per atom")
    forces_weight: float = pydantic.Field(default=10.0, ge=0, description="weight of the forces")
    stress_weight: float = pydantic.Field(default=0.0, ge=0, description="weight of the stress")
    tiers: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=8,
        description="groups of atoms by number of neighbours: more run faster and compile longer; by default 1 in "
        f"trainings of less than {LONG_TRAINING} steps, else 6",
    )
    validation_every: int = pydantic.Field(default=1, ge=1, description="epochs between validations")
    seed: int = pydantic.Field(
        default=0, ge=0, description="of new parameters, the order of batches and the choice of replay"
    )

    @pydantic.model_validator(mode="after")
    def _has_something_to_minimise(self) -> "TrainingSettings":
        if self.energy_weight == self.forces_weight == self.stress_weight == 0:
            raise ValueError("energy_weight, forces_weight and stress_weight are all 0: there is nothing to minimise.")
        return self

    def terms(self) -> Terms:
        """The terms with a weight."""
        return Terms(self.energy_weight > 0, self.forces_weight > 0, self.stress_weight > 0)

    def weights(self) -> Weights:
        """The loss's numbers."""
        return Weights(
            energy=self.energy_weight,
            forces=self.forces_weight,
            stress=self.stress_weight,
            huber_delta=self.huber_delta,
        )


DEFAULT_SETTINGS = TrainingSettings()

Record: TypeAlias = dict[str, int | float]
"""What the history says of one validated epoch; see `Trained.history`."""


@dataclasses.dataclass(frozen=True)
class TrainingProblem:
    """What is trained on what, as a strategy (or the distillation) has set it up.

    Attributes:
        potential: with the initial parameters. Only `params` is optimised, never references, scale or shift.
        train: training samples, of all fidelities.
        validation: samples that decide which parameters are kept.
        terms: terms of the training loss.
        selection: terms of the loss on the validation samples.
        names: what messages call the training samples, in the order of `train`.
        rates: pytree like `potential.params` of factors of the learning rate: 0 (stays) to 1; None if all are 1. A
            factor is a number, or an array for each entry of a leaf. It scales AdamW's updates, decay included;
            clipping sees the gradient of what moves.
        l2_sp: strength of the penalty ½ · l2_sp · Σ (θ − θ₀)² over the parameters that move, θ₀ being those of
            `potential`, in the loss that is minimised (L2-SP: Li, Grandvalet, Davoine, ICML 2018). The losses in the
            history are without it.
        baseline: the potential whose predictions were subtracted from the labels, if any.
    """

    potential: Potential
    train: list[Sample]
    validation: list[Sample]
    terms: Terms
    selection: Terms
    names: list[str] = dataclasses.field(default_factory=list)
    rates: Any = None
    l2_sp: float = 0.0
    baseline: Potential | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained potential, before a strategy makes of it the one to deploy.

    Attributes:
        potential: with the moving-average parameters of the best validation.
        history: one record for each validated epoch, 0 being the start: epoch, train_loss, validation_loss,
            validation_energy_rmse_meV_atom, validation_force_rmse_meV_A, validation_stress_rmse_GPa, learning_rate,
            wall_s; NaN where there was no label, or nothing yet.
        best_epoch: the epoch whose parameters were kept.
        problem: what was trained.
    """

    potential: Potential
    history: list[Record]
    best_epoch: int
    problem: TrainingProblem


class TrainingDiverged(FloatingPointError):
    """The loss or its gradient is not finite. `trained` holds the best validated parameters up to then."""

    def __init__(self, message: str, trained: Trained) -> None:
        super().__init__(message)
        self.trained = trained


class TrainState(flax.struct.PyTreeNode):
    """All that an epoch hands to the next; the order of batches follows from seed and epoch alone.

    Attributes:
        params: parameters.
        opt_state: of the optimiser.
        ema: moving average of the parameters.
        step: optimiser steps taken.
    """

    params: Leaf
    opt_state: Leaf
    ema: Leaf
    step: Leaf


class Controls(flax.struct.PyTreeNode):
    """The numbers of one step; traced, so that settings share a compiled step.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        ema_decay: of the moving average.
        weights: of the loss.
        rates: pytree like the parameters of factors of the learning rate.
        l2_sp: strength of the penalty on the distance from `start`.
        start: the initial parameters.
    """

    learning_rate: Leaf
    weight_decay: Leaf
    clip_norm: Leaf
    ema_decay: Leaf
    weights: Weights
    rates: Leaf
    l2_sp: Leaf
    start: Leaf


def train(
    problem: TrainingProblem,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    *,
    progress: bool = True,
    on_epoch: Callable[[Record], None] | None = None,
) -> Trained:
    """Minimise the loss of a problem and return the parameters with the lowest validation loss.

    Args:
        problem: see `TrainingProblem`.
        settings: see `TrainingSettings`; the same settings give the same result.
        progress: show a bar.
        on_epoch: called with each record of the history as it is made.

    Raises:
        ValueError: if there are no samples.
        TrainingDiverged: if the loss or its gradient is not finite, naming the epoch and the batch's frames; the
            parameters from before the first such step are validated and kept in the exception.
    """
    if not problem.train or not problem.validation:
        counts = f"{len(problem.train)} training samples and {len(problem.validation)} validation samples"
        raise ValueError(f"There are {counts}; training needs at least one of each.")
    started = time.perf_counter()
    per_epoch = len(make_batches(problem.train, settings.batch_size))
    tiers = settings.tiers or (6 if settings.epochs * per_epoch >= LONG_TRAINING else 1)
    held_out = make_batches(problem.validation, settings.batch_size, tiers=tiers)
    rates = schedule(settings, per_epoch)
    state = initial_state(problem.potential)
    best, best_epoch, lowest, history = state.ema, 0, np.inf, []

    bar = progress_bar(range(settings.epochs + 1), desc="training", unit="epoch", disable=not progress)
    for epoch in bar:  # epoch 0 validates the initial parameters
        batches, losses = [], np.full(0, np.nan)
        if epoch:
            order = epoch_seed(settings, epoch)
            batches = make_batches(problem.train, settings.batch_size, seed=order, tiers=tiers)
            state, losses = run_epoch(problem, settings, state, batches, rates[epoch - 1])
        diverged = np.flatnonzero(~np.isfinite(losses))
        if epoch % settings.validation_every == 0 or epoch == settings.epochs or diverged.size:
            sums = validate(problem, settings, state.ema, held_out)
            record = {
                "epoch": epoch,
                "train_loss": float(losses.mean()) if epoch else np.nan,
                "validation_loss": float(total(sums, settings.weights())),
                "validation_energy_rmse_meV_atom": 1e3 * rmse(sums, "energy"),
                "validation_force_rmse_meV_A": 1e3 * rmse(sums, "forces"),
                "validation_stress_rmse_GPa": rmse(sums, "stress") / GPA,
                "learning_rate": float(rates[epoch - 1, -1]) if epoch else 0.0,
                "wall_s": time.perf_counter() - started,
            }
            history.append(record)
            if record["validation_loss"] < lowest:
                best, best_epoch, lowest = state.ema, epoch, record["validation_loss"]
            if on_epoch is not None:
                on_epoch(record)
            bar.set_postfix(_shown(record), refresh=False)
        if diverged.size:
            trained = Trained(problem.potential.replace(params=best), history, best_epoch, problem)
            raise TrainingDiverged(_divergence(problem, epoch, batches[diverged[0]], best_epoch), trained)
    return Trained(problem.potential.replace(params=best), history, best_epoch, problem)


def run_epoch(
    problem: TrainingProblem,
    settings: TrainingSettings,
    state: TrainState,
    batches: Sequence[Batch],
    rates: Float[np.ndarray, " steps"],
) -> tuple[TrainState, Float[np.ndarray, " steps"]]:
    """One optimiser step for each batch, with the given learning rates; returns each batch's loss too."""
    factors = problem.rates
    if factors is None:
        factors = jax.tree.map(lambda leaf: 1.0, problem.potential.params)
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        controls = Controls(
            learning_rate=rate,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            ema_decay=settings.ema_decay,
            weights=settings.weights(),
            rates=factors,
            l2_sp=problem.l2_sp,
            start=problem.potential.params,
        )
        # The parameters travel in the state: the potential lends its structure, scale and shift.
        lender = problem.potential.replace(params=None)
        state, value = update(lender, state, batch, controls, terms=problem.terms, kind=settings.loss)
        losses.append(value)
    return state, np.asarray(jax.device_get(losses), np.float64)


@functools.partial(jax.jit, static_argnames=("terms", "kind"))
def update(
    potential: Potential, state: TrainState, batch: Batch, controls: Controls, *, terms: Terms, kind: LossKind
) -> tuple[TrainState, Float[AnyArray, ""]]:
    """One step of the optimiser, compiled once for potentials of equal structure and batches of equal shape.

    If the loss or its gradient is not finite, the state comes back as it was, with NaN for the loss.
    """

    def objective(params: Any) -> tuple[AnyArray, dict[str, TermSums]]:
        return loss(potential.replace(params=params), batch, controls.weights, terms=terms, kind=kind)

    (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
    gradient = jax.tree.map(
        lambda slope, now, start, rate: jnp.where(rate != 0, slope + controls.l2_sp * (now - start), 0.0),
        gradient,
        state.params,
        controls.start,
        controls.rates,
    )
    updates, opt_state = optimiser(controls).update(gradient, state.opt_state, state.params)
    updates = jax.tree.map(lambda update, rate: update * rate, updates, controls.rates)
    params: Any = optax.apply_updates(state.params, updates)
    # The average forgets its first steps sooner, as in TensorFlow's ExponentialMovingAverage: short runs profit.
    decay = jnp.minimum(controls.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema: Any = optax.incremental_update(params, state.ema, 1.0 - decay)
    after = TrainState(params, opt_state, ema, state.step + 1)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old).astype(old.dtype), after, state)
    return after, jnp.where(finite, value, jnp.nan)


@functools.partial(jax.jit, static_argnames=("terms", "kind"))
def term_sums(
    potential: Potential, batch: Batch, weights: Weights, *, terms: Terms, kind: LossKind
) -> dict[str, TermSums]:
    """The second value of `loss`, compiled."""
    return loss(potential, batch, weights, terms=terms, kind=kind)[1]


def validate(
    problem: TrainingProblem, settings: TrainingSettings, params: Leaf, batches: Sequence[Batch]
) -> dict[str, TermSums]:
    """Each selection term's sums over all batches, added in float64; independent of the batching."""
    potential = problem.potential.replace(params=params)
    weights = settings.weights()
    parts = [term_sums(potential, batch, weights, terms=problem.selection, kind=settings.loss) for batch in batches]
    return jax.tree.map(lambda *leaves: float(np.sum(np.asarray(leaves, np.float64))), *jax.device_get(parts))


def rmse(sums: dict[str, TermSums], name: str) -> float:
    """√ of the mean squared error of a term, in its own unit; NaN without labels."""
    term = sums.get(name)
    return float(np.sqrt(term.squared / term.count)) if term is not None and term.count else float("nan")


def optimiser(controls: Controls) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, ICLR 2019) behind clipping by the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(controls.clip_norm),
        optax.adamw(controls.learning_rate, weight_decay=controls.weight_decay),
    )


def initial_state(potential: Potential) -> TrainState:
    """The state before the first step; the moving average starts at the parameters."""
    params = jax.tree.map(jnp.asarray, potential.params)
    controls = Controls(
        0.0, 0.0, 1.0, 0.0, Weights(), None, 0.0, None
    )  # the state's structure does not depend on the numbers
    return TrainState(params, optimiser(controls).init(params), params, jnp.zeros((), jnp.int32))


def schedule(settings: TrainingSettings, steps_per_epoch: int) -> Float[np.ndarray, "epochs steps"]:
    """Learning rate of every step: linear warm-up to the peak, then half a cosine to the final rate."""
    steps = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup * steps), steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (warmup + 1),
        peak_value=settings.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=settings.learning_rate * settings.final_learning_rate,
    )
    return np.asarray(rate(np.arange(steps)), np.float64).reshape(settings.epochs, steps_per_epoch)


def epoch_seed(settings: TrainingSettings, epoch: int) -> int:
    """Seed of the order of batches; a function of seed and epoch alone, so that no generator need be stored."""
    return int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0])


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


def _shown(record: Record) -> dict[str, str]:
    """What the progress bar says of an epoch: the errors that there are labels for."""
    units = {"energy_rmse_meV_atom": "meV/atom", "force_rmse_meV_A": "meV/Å", "stress_rmse_GPa": "GPa"}
    errors = {unit: record[f"validation_{name}"] for name, unit in units.items()}
    return {unit: f"{error:.3g}" for unit, error in errors.items() if np.isfinite(error)}


def _symbols(numbers: Collection[int]) -> str:
    return " ".join(chemical_symbols[number] for number in sorted(numbers))


def _divergence(problem: TrainingProblem, epoch: int, batch: Batch, best_epoch: int) -> str:
    members = [int(index) for index in batch.index if index >= 0]
    names = ", ".join(problem.names[index] if problem.names else f"sample {index}" for index in members)
    return (
        f"The loss or its gradient is not finite in epoch {epoch} on the batch of {names}; look for damaged labels or "
        f"coinciding atoms there, or lower the learning rate. The parameters of epoch {best_epoch} are kept."
    )
