"""One step of the optimiser, and one measurement of errors, for a stack of models on any number of devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.batches import Batch
from jaxmlip.training.objective import Objective, TermSums
from jaxmlip.training.optimizers import DEFAULT_CHOICE, Choice, transformation
from jaxmlip.training.parallel import DATA
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.types import Leaf

EXPLOSION = 1e3
"""A loss of more than so many times the median of the last ones is out of hand: far beyond the spread of batches, whose
losses differ by one or two orders of magnitude at worst."""

PATIENCE = 5
"""So many such losses in a row stop a model; fewer may come from single bad frames, and clipping bounds their harm."""

WINDOW = 64
"""Losses that the median is taken over; there is none before the window is a quarter full."""


class TrainState(flax.struct.PyTreeNode):
    """All that a step hands to the next. A stack of models is a TrainState whose leaves have a leading axis.

    Attributes:
        params: parameters.
        opt_state: of the optimiser.
        ema: moving average of the parameters.
        step: optimiser steps taken.
        alive: False once the model has diverged; nothing moves any more.
        recent: [WINDOW], the last losses that were not out of hand, NaN where there was none yet.
        exploding: losses in a row that were out of hand.
    """

    params: Leaf
    opt_state: Leaf
    ema: Leaf
    step: Leaf
    alive: Leaf
    recent: Leaf
    exploding: Leaf


class Controls(flax.struct.PyTreeNode):
    """The numbers of one step; traced, so that settings share a compiled step.

    Attributes:
        learning_rate: of the optimiser.
        weight_decay: of the optimiser.
        clip_norm: largest norm of the gradient.
        ema_decay: of the moving average.
        objective: what is minimised.
        rates: pytree like the parameters of factors of the learning rate.
        l2_sp: strength of the penalty on the distance from `start`.
        start: the initial parameters.
        optimizer: which one (static).
    """

    learning_rate: Leaf
    weight_decay: Leaf
    clip_norm: Leaf
    ema_decay: Leaf
    objective: Objective
    rates: Leaf
    l2_sp: Leaf
    start: Leaf
    optimizer: Choice = flax.struct.field(pytree_node=False, default=DEFAULT_CHOICE)


class Report(NamedTuple):
    """What a step says of itself, of each model.

    Attributes:
        loss: of the batch, before the step; NaN if it or its gradient is not finite.
        alive: whether the model goes on.
        sums: of each quantity of the objective, see `TermSums`.
        index: [graphs], see `Batch.index`.
        head: [graphs], see `Batch.head`.
    """

    loss: Any
    alive: Any
    sums: dict[str, TermSums]
    index: Any
    head: Any


@functools.partial(jax.jit, static_argnames="mesh")
def update(
    potential: Potential, state: TrainState, batch: Batch, controls: Controls, *, mesh: Mesh | None = None
) -> tuple[TrainState, Report]:
    """One step of every model of a stack: all leaves have a leading axis of models.

    Compiled once for potentials and objectives of equal structure, batches of equal shape, and number of models.

    Args:
        potential: without `params`: they travel in the state, and the potential lends structure, scale and shift.
        state: before the step.
        batch: with a mesh, its leaves have a second axis, of the devices' parts.
        controls: see there.
        mesh: devices that share the batch; the loss is that of the whole batch.

    Returns:
        The state after the step, and a report. If the loss or its gradient is not finite, or the loss has exploded
        (`EXPLOSION`, `PATIENCE`), a model is no longer alive, and its state stays.
    """
    step = functools.partial(_step, mesh=mesh)
    return _whole(_over_models(step, potential, state, batch, controls), mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def measure(
    potential: Potential, batch: Batch, objective: Objective, *, mesh: Mesh | None = None
) -> tuple[dict[str, TermSums], Any, Any]:
    """The sums of every quantity for every model, and `index` and `head` of the batch; see `update`."""

    def of_one(potential: Potential, batch: Batch, objective: Objective) -> tuple[dict[str, TermSums], Any, Any]:
        return _sums(potential, batch, objective, mesh), batch.index.ravel(), batch.head.ravel()

    return _whole(_over_models(of_one, potential, batch, objective), mesh)


@jax.jit
def choose(better: Any, new: Any, old: Any) -> Any:
    """Leaves of the models that are better from `new`, of the others from `old`; `better` is [models]."""
    return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def optimiser(choice: Choice, learning_rate: Any, weight_decay: Any, clip_norm: Any) -> optax.GradientTransformation:
    """The chosen optimiser behind clipping by the global norm."""
    clip = optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, transformation(choice, learning_rate, weight_decay))


def initial_state(potential: Potential, choice: Choice = DEFAULT_CHOICE) -> TrainState:
    """The state of one model before the first step; the moving average starts at the parameters."""
    params = jax.tree.map(jnp.asarray, potential.params)
    return TrainState(
        params=params,
        opt_state=optimiser(choice, 0.0, 0.0, 1.0).init(params),  # its structure does not depend on numbers
        ema=params,
        step=jnp.zeros((), jnp.int32),
        alive=jnp.ones((), bool),
        recent=jnp.full(WINDOW, jnp.nan, jnp.float32),
        exploding=jnp.zeros((), jnp.int32),
    )


def schedule(settings: TrainingSettings, steps_per_epoch: int) -> Float[np.ndarray, "epochs steps"]:
    """Learning rate of every step: linear warm-up to the peak, then half a cosine to the final rate.

    With `patience` it stays at the peak, for validations to lower it.
    """
    steps = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup * steps), steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (warmup + 1),
        peak_value=settings.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=settings.learning_rate * (settings.final_learning_rate if settings.patience is None else 1.0),
    )
    return np.asarray(rate(np.arange(steps)), np.float64).reshape(settings.epochs, steps_per_epoch)


def _step(
    potential: Potential, state: TrainState, batch: Batch, controls: Controls, *, mesh: Mesh | None
) -> tuple[TrainState, Report]:
    """One step of one model.

    Rates of parameters are numbers, not `optax.partition` or `masked`, so that strategies that move other parameters
    share a program; and a model that is not finite stops as a whole, moving average and all, where
    `optax.apply_if_finite` would skip updates and, after so many, make them nevertheless.
    """

    def loss(params: Any) -> tuple[Any, dict[str, TermSums]]:
        sums = _sums(potential.with_params(params), batch, controls.objective, mesh)
        return controls.objective.total(sums), sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
    gradient = jax.tree.map(
        lambda slope, now, start, rate: jnp.where(rate != 0, slope + controls.l2_sp * (now - start), 0.0),
        gradient,
        state.params,
        controls.start,
        controls.rates,
    )
    chain = optimiser(controls.optimizer, controls.learning_rate, controls.weight_decay, controls.clip_norm)
    updates, opt_state = chain.update(gradient, state.opt_state, state.params)
    updates = jax.tree.map(lambda update, rate: update * rate, updates, controls.rates)
    params: Any = optax.apply_updates(state.params, updates)
    # The average forgets its first steps sooner, as in TensorFlow's ExponentialMovingAverage: short runs profit.
    decay = jnp.minimum(controls.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    # A weighted sum of equal numbers may be another number: what does not move must not by rounding either.
    ema: Any = jax.tree.map(lambda new, old: old + (1.0 - decay) * (new - old), params, state.ema)

    known = jnp.sum(~jnp.isnan(state.recent)) >= WINDOW // 4
    exploded = known & (value > EXPLOSION * jnp.nanmedian(state.recent))
    exploding = jnp.where(exploded, state.exploding + 1, 0)
    recent = jnp.where(exploded, state.recent, jnp.roll(state.recent, 1).at[0].set(value.astype(jnp.float32)))
    goes_on = state.alive & finite & (exploding < PATIENCE)

    after = TrainState(params, opt_state, ema, state.step + 1, goes_on, recent, exploding)
    after = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old).astype(old.dtype), after, state)
    known_value = jnp.where(finite, value, jnp.nan)
    return after.replace(alive=goes_on), Report(known_value, goes_on, sums, batch.index.ravel(), batch.head.ravel())


def _sums(potential: Potential, batch: Batch, objective: Objective, mesh: Mesh | None) -> dict[str, TermSums]:
    """The objective's sums over a batch; with a mesh, each device computes those of its part."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, objective.sums(potential, batch))
    of_all: set[str] = set()  # quantities that are not of single structures; known once the part is traced

    def of_part(potential: Potential, batch: Batch, objective: Objective) -> dict[str, TermSums]:
        sums = objective.sums(potential, jax.tree.map(lambda leaf: leaf[0], batch))
        of_all.update(name for name, term in sums.items() if jnp.ndim(term.loss) == 0)
        return jax.tree.map(jnp.atleast_1d, sums)

    everywhere, split = PartitionSpec(), PartitionSpec(DATA)
    # Nothing is summed over devices inside, so that there is nothing to check.
    shared = jax.shard_map(
        of_part, mesh=mesh, in_specs=(everywhere, split, everywhere), out_specs=split, check_vma=False
    )
    sums = shared(potential, batch, objective)
    return {name: TermSums(*map(jnp.sum, term)) if name in of_all else term for name, term in sums.items()}


def _over_models(function: Callable, *stacked: Any) -> Any:
    """`jax.vmap`; a stack of one is computed as what it is, by the program of a single model."""
    if jax.tree.leaves(stacked)[0].shape[0] > 1:
        return jax.vmap(function)(*stacked)
    single = function(*jax.tree.map(lambda leaf: leaf[0], stacked))
    return jax.tree.map(lambda leaf: leaf[None], single)


def _whole(tree: Any, mesh: Mesh | None) -> Any:
    """Every device, and so every process, has the results whole."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
