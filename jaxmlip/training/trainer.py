"""The one trainer, of one model or many: warm-up and cosine, clipping, optimiser, moving average, best-validation."""

import collections
import contextlib
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
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
from jaxmlip.systems.batches import Batch
from jaxmlip.systems.plan import BatchIndices
from jaxmlip.training.feed import Feed, make_feed
from jaxmlip.training.following import Following
from jaxmlip.training.metrics import Tally
from jaxmlip.training.objective import Objective
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
from jaxmlip.training.records import record_of, shown
from jaxmlip.training.runs import Model, TrainingRun, kept
from jaxmlip.training.stacking import (
    check_feed,
    check_stack,
    stacked_potentials,
    stacked_states,
)
from jaxmlip.training.step import EXPLOSION, PATIENCE, Controls, Report, choose, measure, schedule, update
from jaxmlip.training.weighting import resolved


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
        monitor, fitting = _Monitor(run, feed, problems), _Fitting(common, mesh)
        controls, objective = following.resumed(run)
        while run.epoch <= common.epochs and any(model.active for model in run.models):
            if run.epoch:  # epoch 0 validates the initial parameters
                with contextlib.closing(_steps(run, feed, settings, templates, controls, rates, fitting)) as steps:
                    for indices, report in steps:
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
            if recorded := run.due(common):
                run.wall_s = time.perf_counter() - started
                rate = rates[:, run.epoch - 1, -1] * run.slowed if run.epoch else np.zeros(len(problems))
                tallies = _validate(templates.with_params(run.states.ema), held_out, objective, mesh, len(problems))
                better = np.zeros(len(problems), bool)
                for number in recorded:
                    record = record_of(run, number, tallies[number], settings[number], rate, following.problems[number])
                    better[number] = run.models[number].note(record, run.epoch, settings[number])
                    saver.write(number, record, run, feed.steps, tallies[number])
                    if on_epoch is not None:
                        on_epoch(number, record)
                run.best = choose(better, run.states.ema, run.best)
                bar.set_postfix(shown([model.history[-1] for model in run.models]), refresh=False)

            run.next_epoch()
            if saver.must_save() or run.epoch > common.epochs:
                saver.save(run, feed.steps)

    best = on_host(run.best)
    return [
        _trained(problem, model, jax.tree.map(lambda leaf, number=number: leaf[number], best), settings[number])
        for number, (problem, model) in enumerate(zip(problems, run.models, strict=True))
    ]


def _steps(
    run: TrainingRun,
    feed: Feed,
    settings: Sequence[TrainingSettings],
    templates: Potential,
    controls: Controls,
    rates: np.ndarray,
    fitting: "_Fitting",
) -> Generator[tuple[Sequence[BatchIndices], Report], None, None]:
    """Take the steps that are left of the epoch, one at a time; gives what each saw, and its report."""
    seeds = [epoch_seed(mine, run.epoch) for mine in settings]
    left = feed.epoch(seeds, run.epoch)[run.position :]
    with contextlib.closing(feed.batches(left)) as batches:
        for indices, batch in zip(left, batches, strict=True):
            numbers = controls.replace(learning_rate=rates[:, run.epoch - 1, run.position] * run.slowed)
            arguments = templates, run.states, dealt(batch, fitting.mesh), numbers
            fitting.check(batch, arguments)
            run.states, report = update(*arguments, mesh=fitting.mesh)
            run.position += 1
            yield indices, report


class _Fitting:
    """Which shapes of batches are known to fit into the device."""

    def __init__(self, settings: TrainingSettings, mesh: Mesh | None) -> None:
        self.mesh, self._settings = mesh, settings
        self._known: set[tuple[int, ...]] = set()

    def check(self, batch: Batch, arguments: tuple[Any, ...]) -> None:
        """Refuse a batch whose step does not fit into the device's memory, where it says how much it has; TooLarge."""
        shape = np.shape(batch.graph.neighbors)
        if shape in self._known:
            return
        what, mend = "structures in a batch (batch_size)", "share batches among devices (data_parallel)"
        check_fits(update, *arguments, number=self._settings.batch_size, what=what, mend=mend, mesh=self.mesh)
        self._known.add(shape)


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
