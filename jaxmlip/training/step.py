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
from jaxmlip.training.loss import LossKind, Terms, TermSums, Weights, loss, total
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


class Report(NamedTuple):
    """What a step says of itself, of each model.

    Attributes:
        loss: of the batch, before the step; NaN if it or its gradient is not finite.
        alive: whether the model goes on.
        sums: of each graph of the batch, by term.
        index: [graphs], see `Batch.index`.
        head: [graphs], see `Batch.head`.
    """

    loss: Any
    alive: Any
    sums: dict[str, TermSums]
    index: Any
    head: Any


@functools.partial(jax.jit, static_argnames=("terms", "kind", "mesh"))
def update(
    potential: Potential,
    state: TrainState,
    batch: Batch,
    controls: Controls,
    *,
    terms: Terms,
    kind: LossKind,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Report]:
    """One step of every model of a stack: all leaves have a leading axis of models.

    Compiled once for potentials of equal structure, batches of equal shape, and number of models.

    Args:
        potential: without `params`: they travel in the state, and the potential lends structure, scale and shift.
        state: before the step.
        batch: with a mesh, its leaves have a second axis, of the devices' parts.
        controls: see there.
        terms: of the loss.
        kind: of the loss.
        mesh: devices that share the batch; the loss is that of the whole batch.

    Returns:
        The state after the step, and a report. If the loss or its gradient is not finite, or the loss has exploded
        (`EXPLOSION`, `PATIENCE`), a model is no longer alive, and its state stays.
    """
    step = functools.partial(_step, terms=terms, kind=kind, mesh=mesh)
    return _whole(_over_models(step, potential, state, batch, controls), mesh)


@functools.partial(jax.jit, static_argnames=("terms", "kind", "mesh"))
def measure(
    potential: Potential, batch: Batch, weights: Weights, *, terms: Terms, kind: LossKind, mesh: Mesh | None = None
) -> tuple[dict[str, TermSums], Any, Any]:
    """Each term's sums for every model and graph, and `index` and `head` of the batch; see `update`."""

    def of_one(potential: Potential, batch: Batch, weights: Weights) -> tuple[dict[str, TermSums], Any, Any]:
        return _sums(potential, batch, weights, terms, kind, mesh), batch.index.ravel(), batch.head.ravel()

    return _whole(_over_models(of_one, potential, batch, weights), mesh)


@jax.jit
def choose(better: Any, new: Any, old: Any) -> Any:
    """Leaves of the models that are better from `new`, of the others from `old`; `better` is [models]."""
    return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def optimiser(controls: Controls) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, ICLR 2019) behind clipping by the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(controls.clip_norm),
        optax.adamw(controls.learning_rate, weight_decay=controls.weight_decay),
    )


def initial_state(potential: Potential) -> TrainState:
    """The state of one model before the first step; the moving average starts at the parameters."""
    params = jax.tree.map(jnp.asarray, potential.params)
    controls = Controls(0.0, 0.0, 1.0, 0.0, Weights(), None, 0.0, None)  # the structure does not depend on numbers
    return TrainState(
        params=params,
        opt_state=optimiser(controls).init(params),
        ema=params,
        step=jnp.zeros((), jnp.int32),
        alive=jnp.ones((), bool),
        recent=jnp.full(WINDOW, jnp.nan, jnp.float32),
        exploding=jnp.zeros((), jnp.int32),
    )


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


def _step(
    potential: Potential,
    state: TrainState,
    batch: Batch,
    controls: Controls,
    *,
    terms: Terms,
    kind: LossKind,
    mesh: Mesh | None,
) -> tuple[TrainState, Report]:
    """One step of one model."""

    def objective(params: Any) -> tuple[Any, dict[str, TermSums]]:
        sums = _sums(potential.replace(params=params), batch, controls.weights, terms, kind, mesh)
        return total(sums, controls.weights), sums

    (value, sums), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
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

    known = jnp.sum(~jnp.isnan(state.recent)) >= WINDOW // 4
    exploded = known & (value > EXPLOSION * jnp.nanmedian(state.recent))
    exploding = jnp.where(exploded, state.exploding + 1, 0)
    recent = jnp.where(exploded, state.recent, jnp.roll(state.recent, 1).at[0].set(value.astype(jnp.float32)))
    goes_on = state.alive & finite & (exploding < PATIENCE)

    after = TrainState(params, opt_state, ema, state.step + 1, goes_on, recent, exploding)
    after = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old).astype(old.dtype), after, state)
    loss = jnp.where(finite, value, jnp.nan)
    return after.replace(alive=goes_on), Report(loss, goes_on, sums, batch.index.ravel(), batch.head.ravel())


def _sums(
    potential: Potential, batch: Batch, weights: Weights, terms: Terms, kind: LossKind, mesh: Mesh | None
) -> dict[str, TermSums]:
    """The sums of every graph of a batch; with a mesh, each device computes those of its part."""
    if mesh is None:
        return loss(potential, batch, weights, terms=terms, kind=kind)[1]

    def of_part(potential: Potential, batch: Batch, weights: Weights) -> dict[str, TermSums]:
        mine = jax.tree.map(lambda leaf: leaf[0], batch)
        return loss(potential, mine, weights, terms=terms, kind=kind)[1]

    everywhere, split = PartitionSpec(), PartitionSpec(DATA)
    # Nothing is summed over devices inside, so that there is nothing to check.
    shared = jax.shard_map(
        of_part, mesh=mesh, in_specs=(everywhere, split, everywhere), out_specs=split, check_vma=False
    )
    return shared(potential, batch, weights)


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
