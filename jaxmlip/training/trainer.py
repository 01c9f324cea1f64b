"""The one trainer, of one model or many: warm-up and cosine, clipping, optimiser, moving average, best-validation."""

import collections
import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmlip.memory import check_fits
from jaxmlip.potentials.blocks import form_of_this_machine
from jaxmlip.potentials.potential import Potential
from jaxmlip.processes import writes_files
from jaxmlip.progress import progress_bar
from jaxmlip.systems.plan import BatchIndices
from jaxmlip.training.feed import Feed, make_feed
from jaxmlip.training.following import Following
from jaxmlip.training.metrics import UNITS, Tally, rmse
from jaxmlip.training.objective import Objective, TermSums, total
from jaxmlip.training.parallel import dealt, make_mesh, on_host, replicated
from jaxmlip.training.problem import (
    DEFAULT_SETTINGS,
    LONG_TRAINING,
    Record,
    Trained,
    TrainingDiverged,
    TrainingProblem,
    TrainingSettings,
)
from jaxmlip.training.runs import Model, TrainingRun, kept
from jaxmlip.training.stacking import (
    check_feed,
    check_stack,
    stacked_potentials,
    stacked_states,
)
from jaxmlip.training.step import EXPLOSION, PATIENCE, Report, choose, measure, schedule, update
from jaxmlip.training.weighting import resolved

GAIN = 1e-3
"""By this share a validation loss must be lower than the lowest before for a training to count as one that goes on
falling (see `TrainingSettings.patience`)."""


def train(
    problem: TrainingProblem,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[Record], None] | None = None,
) -> Trained:
    """Minimise the loss of a problem and return the parameters with the lowest validation loss.

    Args:
        problem: see `TrainingProblem`.
        settings: see `TrainingSettings`; the same settings give the same result.
        folder: where checkpoints and metrics are written. A training that was killed goes on from its last checkpoint
            there, to the same parameters, bit for bit. SIGTERM and SIGINT take effect after a checkpoint.
        progress: show a bar.
        on_epoch: called with each record of the history as it is made.

    Raises:
        ValueError: if there are no samples; if the folder holds checkpoints of another training, or damaged ones only;
            if there are fewer devices than asked for, or a batch does not fit into a device that says what it has.
        TrainingDiverged: if the loss or its gradient is not finite, or the loss explodes (see `step.EXPLOSION`), naming
            the epoch and the batch's frames; the best parameters validated up to then are kept in the exception.
    """
    tell = None if on_epoch is None else lambda _, record: on_epoch(record)
    (trained,) = _train_stack([problem], [settings], folder, progress, tell)
    if trained.diverged is not None:
        raise TrainingDiverged(trained.diverged, trained)
    return trained


def train_many(
    problems: Sequence[TrainingProblem],
    settings: TrainingSettings | Sequence[TrainingSettings] = DEFAULT_SETTINGS,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, Record], None] | None = None,
    vectorised: bool | None = None,
) -> list[Trained]:
    """Train models of equal structure by one compiled step, each with the result of a run of its own.

    On an accelerator the models are stacked and take their steps together under `jax.vmap`. On a CPU, where stacking
    gains nothing, they train one after the other by the compiled step of a single one: bit for bit the same results at
    the same cost, and batches may differ in shape. (`jax.lax.map` over the stack is no faster there than single steps,
    and its loop rounds otherwise.)

    Args:
        problems: of equal networks, terms, batch shapes and numbers of steps. They may differ in parameters, scale,
            shift, references, data, rates and strength of L2-SP.
        settings: for all, or one for each; they may differ in seed, learning rate, weights and the like.
        folder: see `train`; metrics are written into `model-0`, `model-1`, … below it.
        progress: show a bar.
        on_epoch: called with the number of the model and each record of its history.
        vectorised: whether to stack; by default the backend decides. Models whose terms follow their parameters (see
            `TermSource`) are never stacked.

    Returns:
        What `train` returns, for each. A model that diverges stops where it was, with a warning and with
        `Trained.diverged` set, and the others go on.

    Raises:
        ValueError: if the problems cannot be stacked, saying what differs; or see `train`.
    """
    chosen = [settings] * len(problems) if isinstance(settings, TrainingSettings) else list(settings)
    check_stack(problems, chosen)
    if vectorised is None and any(problem.source is not None for problem in problems):
        vectorised = False
    if vectorised is None:
        vectorised = form_of_this_machine() == "accelerator"
    if vectorised:
        trained = _train_stack(problems, chosen, folder, progress, on_epoch)
    else:
        trained = []
        for number, (problem, mine) in enumerate(zip(problems, chosen, strict=True)):
            place = None if folder is None else Path(folder) / f"model-{number}"
            tell = None if on_epoch is None else lambda _, record, number=number: on_epoch(number, record)
            trained += _train_stack([problem], [mine], place, progress, tell)
    for number, one in enumerate(trained):
        if one.diverged is not None:
            warnings.warn(f"Model {number} of {len(trained)} has diverged. {one.diverged}", stacklevel=2)
    return trained


def _train_stack(
    problems: Sequence[TrainingProblem],
    settings: Sequence[TrainingSettings],
    folder: str | Path | None,
    progress: bool,
    on_epoch: Callable[[int, Record], None] | None,
) -> list[Trained]:
    """Train models that share every call of the compiled step."""
    settings = [resolved(problem, mine) for problem, mine in zip(problems, settings, strict=True)]
    common, mesh = settings[0], make_mesh(settings[0].data_parallel)
    feed, held_out = _feeds(problems, common, mesh)
    rates = np.stack([schedule(mine, feed.steps) for mine in settings])
    templates = replicated(stacked_potentials(problems), mesh)
    following = Following(problems, settings, folder, mesh, progress=progress)
    states = replicated(stacked_states(problems, common), mesh)
    run = TrainingRun(states, states.ema, [Model() for _ in problems])

    with kept(run, folder, problems, settings, mesh) as saver, _bar(run, common, feed.steps, progress) as bar:
        started = time.perf_counter() - run.wall_s
        monitor = _Monitor(run, feed, problems)
        controls, objective = following.resumed(run)
        roomy: set[tuple[int, ...]] = set()  # shapes of batches that are known to fit into the device
        while run.epoch <= common.epochs and any(model.active for model in run.models):
            if run.epoch:  # epoch 0 validates the initial parameters
                seeds = [epoch_seed(mine, run.epoch) for mine in settings]
                all_indices = feed.epoch(seeds, run.epoch)[run.position :]
                with contextlib.closing(feed.batches(all_indices)) as batches:
                    for indices, batch in zip(all_indices, batches, strict=True):
                        numbers = controls.replace(learning_rate=rates[:, run.epoch - 1, run.position] * run.slowed)
                        batch = dealt(batch, mesh)
                        arguments = templates, run.states, batch, numbers
                        if (shape := np.shape(batch.graph.neighbors)) not in roomy:
                            _check_room(arguments, mesh, common)
                            roomy.add(shape)
                        run.states, report = update(*arguments, mesh=mesh)
                        run.position += 1
                        monitor.take(indices, report)
                        bar.update()
                        if saver.must_save():
                            monitor.finish()
                            run.wall_s = time.perf_counter() - started
                            saver.save(run, feed.steps)
                        if all(model.diverged for model in run.models):
                            break
                monitor.finish()

            if following.renew(run):  # so that what is validated holds for the parameters there are
                controls, objective = following.numbers()
            due = run.epoch % common.validation_every == 0 or run.epoch == common.epochs
            recorded = [model.active and (due or model.diverged is not None) for model in run.models]
            if any(recorded):
                run.wall_s = time.perf_counter() - started
                rate = rates[:, run.epoch - 1, -1] * run.slowed if run.epoch else np.zeros(len(problems))
                tallies = _validate(templates.with_params(run.states.ema), held_out, objective, mesh, len(problems))
                better = np.zeros(len(problems), bool)
                taken = (run.epoch - 1) * feed.steps + run.position if run.epoch else 0
                for number in np.flatnonzero(recorded).tolist():
                    model, tally, problem = run.models[number], tallies[number], following.problems[number]
                    record = _record(run, model, tally, settings[number], float(rate[number]), problem)
                    better[number] = _noted(model, record, run.epoch, settings[number])
                    saver.write(number, record, taken, {"training": model.errors, "validation": tally})
                    if on_epoch is not None:
                        on_epoch(number, record)
                run.best = choose(better, run.states.ema, run.best)
                bar.set_postfix(_shown([model.history[-1] for model in run.models]), refresh=False)

            run.epoch, run.position = run.epoch + 1, 0
            for model in run.models:
                model.losses, model.errors = [], Tally()
            if saver.must_save() or run.epoch > common.epochs:
                saver.save(run, feed.steps)

    best = on_host(run.best)
    return [
        _trained(problem, model, jax.tree.map(lambda leaf, number=number: leaf[number], best), settings[number])
        for number, (problem, model) in enumerate(zip(problems, run.models, strict=True))
    ]


def _check_room(arguments: tuple[Any, ...], mesh: Mesh | None, settings: TrainingSettings) -> None:
    """Refuse a batch whose step does not fit into the device's memory, where it says how much it has; TooLarge."""
    mend = "share batches among devices (data_parallel)"
    check_fits(
        update, *arguments, number=settings.batch_size, what="structures in a batch (batch_size)", mend=mend, mesh=mesh
    )


def _noted(model: Model, record: Record, epoch: int, settings: TrainingSettings) -> bool:
    """Whether a validation is the model's best so far, which is noted.

    One that has diverged or converged ceases to be active.
    """
    model.history.append(record)
    found = record["validation_loss"]
    better, model.waited = found < model.lowest, 0 if found < (1.0 - GAIN) * model.lowest else model.waited + 1
    if better:
        model.best_epoch, model.lowest = epoch, found
    if settings.patience is not None and model.waited >= settings.patience:
        model.waited, model.slowed = 0, 0.5 * model.slowed
        if model.slowed < settings.final_learning_rate:
            model.converged, model.active = True, False
    if model.diverged is not None:
        model.diverged += f" The parameters of epoch {model.best_epoch} are kept."
        model.active = False
    return better


def _trained(problem: TrainingProblem, model: Model, params: Any, settings: TrainingSettings) -> Trained:
    """What is returned of a model."""
    seen = [label for label, seen in problem.terms._asdict().items() if seen]
    potential = problem.potential.with_params(params).having_seen(seen)
    converged = None if settings.patience is None else model.converged
    return Trained(potential, model.history, model.best_epoch, problem, model.diverged, converged)


class _Monitor:
    """Notes what steps report, each when the next has been sent off: the device need not wait for the host."""

    def __init__(self, run: TrainingRun, feed: Feed, problems: Sequence[TrainingProblem]) -> None:
        self._run = run
        self._feed = feed
        self._problems = problems
        self._pending: tuple[Sequence[BatchIndices], Report] | None = None
        self._hands: collections.deque[Sequence[BatchIndices]] = collections.deque(maxlen=PATIENCE)

    def take(self, all_indices: Sequence[BatchIndices], report: Report) -> None:
        """Note the step before, and keep this one's report until it is finished."""
        self.finish()
        self._pending = all_indices, report

    def finish(self) -> None:
        """Wait for the last step, and note it."""
        if self._pending is None:
            return
        all_indices, report = self._pending[0], on_host(self._pending[1])
        self._pending = None
        self._hands.append(all_indices)
        for number, model in enumerate(self._run.models):
            if model.diverged is not None:
                continue
            loss = float(report.loss[number])
            model.losses.append(loss)
            mine = jax.tree.map(lambda leaf, number=number: leaf[number], report)
            model.errors.add(mine.sums, mine.index, mine.head, self._feed.samples[number])
            if not mine.alive:
                model.diverged = self._divergence(number, loss)

    def _divergence(self, model: int, loss: float) -> str:
        where = f"in epoch {self._run.epoch} on the batch of"
        if not np.isfinite(loss):
            return (
                f"The loss or its gradient is not finite {where} {self._names(model, self._hands[-1])}; look for "
                "damaged labels or coinciding atoms there, or lower the learning rate."
            )
        return (
            f"The loss has exploded, to more than {EXPLOSION:g} times its running median {PATIENCE} times in a row, "
            f"first {where} {self._names(model, self._hands[0])}; look for damaged labels there, or lower the learning "
            "rate."
        )

    def _names(self, model: int, all_indices: Sequence[BatchIndices]) -> str:
        names = self._problems[model].names
        return ", ".join(
            names[sample] if names else f"sample {sample}" for sample in sorted(all_indices[model].samples)
        )


def epoch_seed(settings: TrainingSettings, epoch: int) -> int:
    """Seed of the order of batches; a function of seed and epoch alone, so that no generator need be stored."""
    return int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0])


def _feeds(
    problems: Sequence[TrainingProblem], common: TrainingSettings, mesh: Mesh | None
) -> tuple[Feed, Callable[[], Iterable]]:
    """Where training batches come from, and what gives all validation batches."""
    for problem in problems:
        if not len(problem.train) or not len(problem.validation):
            counts = f"{len(problem.train)} training samples and {len(problem.validation)} validation samples"
            raise ValueError(f"There are {counts}; training needs at least one of each.")
    per_epoch = -(-len(problems[0].train) // common.batch_size)
    tiers = common.tiers or (4 if common.epochs * per_epoch >= LONG_TRAINING else 1)
    potential = problems[0].potential
    feed = make_feed(potential, [problem.train for problem in problems], common.batch_size, tiers, mesh)
    held_out = make_feed(potential, [problem.validation for problem in problems], common.batch_size, tiers, mesh)
    check_feed(feed, "training")
    check_feed(held_out, "validation")

    def batches() -> Iterable:
        return (dealt(batch, mesh) for batch in held_out.batches(held_out.epoch([None] * len(problems))))

    if all(isinstance(problem.validation, list) for problem in problems):  # small enough to be kept
        everything = list(batches())
        return feed, lambda: [(held_out, batch) for batch in everything]
    return feed, lambda: ((held_out, batch) for batch in batches())


def _validate(
    potentials: Potential, held_out: Callable[[], Iterable], objective: Objective, mesh: Mesh | None, models: int
) -> list[Tally]:
    """Errors of every model on its validation samples."""
    tallies = [Tally() for _ in range(models)]
    for feed, batch in held_out():
        found = measure(potentials, batch, objective, mesh=mesh)
        sums, index, head = on_host(found)
        for number, tally in enumerate(tallies):
            mine = jax.tree.map(lambda leaf, number=number: leaf[number], sums)
            tally.add(mine, index[number], head[number], feed.samples[number])
    return tallies


def _record(
    run: TrainingRun, model: Model, validation: Tally, settings: TrainingSettings, rate: float, problem: TrainingProblem
) -> Record:
    """What the history says of an epoch."""
    stress = {"stress_weight": settings.weights().stress} if problem.terms.stress else {}
    sums: dict[str, TermSums] = validation.sums()
    moments = {"validation_magmom_rmse_muB": rmse(sums, "magmoms")} if problem.terms.magmoms else {}
    names = sorted(sums.keys() - UNITS.keys())
    further = {f"validation_{name}_loss": float(total({name: sums[name]}, {name: 1.0})) for name in names}
    renewals = {} if problem.source is None else {"renewals": run.renewals}
    return {
        "epoch": run.epoch,
        "train_loss": float(np.mean(model.losses)) if model.losses else np.nan,
        "validation_loss": float(problem.validated(settings).total(sums)),
        "validation_energy_rmse_meV_atom": rmse(sums, "energy"),
        "validation_force_rmse_meV_A": rmse(sums, "forces"),
        "validation_stress_rmse_GPa": rmse(sums, "stress"),
        "learning_rate": rate,
        "wall_s": run.wall_s,
    } | (stress | moments | renewals | further)


def _bar(run: TrainingRun, settings: TrainingSettings, steps: int, progress: bool) -> Any:
    """A bar of steps: rate and time left are those of steps, whatever an epoch takes."""
    done = max(run.epoch - 1, 0) * steps + run.position
    return progress_bar(
        total=settings.epochs * steps,
        initial=done,
        desc="training" if len(run.models) == 1 else f"training {len(run.models)} models",
        unit="step",
        disable=not progress or not writes_files(),
        compiles=True,
    )


def _shown(records: Sequence[Record]) -> dict[str, str]:
    """What the progress bar says: the epoch, and the errors that there are labels for, averaged over the models."""
    units = {
        "energy_rmse_meV_atom": "meV/atom",
        "force_rmse_meV_A": "meV/Å",
        "stress_rmse_GPa": "GPa",
        "magmom_rmse_muB": "μB",
    }
    errors = {
        unit: np.mean([record.get(f"validation_{name}", np.nan) for record in records]) for name, unit in units.items()
    }
    shown = {unit: f"{error:.3g}" for unit, error in errors.items() if np.isfinite(error)}
    return {"epoch": str(max(record["epoch"] for record in records))} | shown
