"""Problems of equal structure as one stack, whose leaves have a leading axis of models."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmlip.potentials.potential import Potential, stack
from jaxmlip.potentials.trainable import without_params
from jaxmlip.training.feed import Feed
from jaxmlip.training.objective import Objective
from jaxmlip.training.problem import DEFAULT_SETTINGS, SHARED_SETTINGS, TrainingProblem, TrainingSettings
from jaxmlip.training.step import Controls, TrainState, initial_state


def check_stack(problems: Sequence[TrainingProblem], settings: Sequence[TrainingSettings]) -> None:
    """Refuse problems that one compiled step cannot train.

    Raises:
        ValueError: if there are none, their number is not that of the settings, or they differ in what must be equal;
            the message says in what.
    """
    if not problems:
        raise ValueError("There are no problems to train.")
    if len(problems) != len(settings):
        raise ValueError(f"There are {len(problems)} problems and {len(settings)} settings; give one for each.")

    def first_that_differs(value: Callable[[int], Any]) -> int | None:
        return next((model for model in range(1, len(problems)) if value(model) != value(0)), None)

    def refuse(model: int, what: str) -> None:
        raise ValueError(f"Problems 0 and {model} cannot be trained as one stack: {what}; train them one by one.")

    for name in SHARED_SETTINGS:
        model = first_that_differs(lambda k, name=name: getattr(settings[k], name))
        if model is not None:
            values = [getattr(settings[k], name) for k in (0, model)]
            refuse(model, f"their settings have {name} {values[0]} and {values[1]}")
    for name in ("terms", "selection"):
        model = first_that_differs(lambda k, name=name: getattr(problems[k], name))
        if model is not None:
            refuse(model, f"their losses have different {name} ({_words(problems, name, 0, model)})")
    for model in range(1, len(problems)):
        structures = [jax.tree.structure(problems[k].objective) for k in (0, model)]
        if structures[0] != structures[1]:
            refuse(model, f"their objectives have different further terms ({structures[0]} and {structures[1]})")
        difference = _difference(problems[0].potential, problems[model].potential)
        if difference is not None:
            refuse(model, f"their potentials differ in {difference}")


def check_feed(feed: Feed, what: str) -> None:
    """Refuse models whose batches differ in shape.

    Args:
        feed: of the stack.
        what: which batches, for the message.

    Raises:
        ValueError: saying which models, and how their batches differ.
    """
    first = feed.plans[0]
    for model, plan in enumerate(feed.plans):
        if plan.steps != first.steps:
            counts = f"{first.steps} and {plan.steps} {what} batches"
            raise ValueError(f"Problems 0 and {model} cannot be trained as one stack: they have {counts} in an epoch.")
        if [one.shape for one in plan.classes] != [one.shape for one in first.classes]:
            shapes = [", ".join(f"{one.shape.n_atoms} × {one.shape.slots}" for one in p.classes) for p in (first, plan)]
            raise ValueError(
                f"Problems 0 and {model} cannot be trained as one stack: their {what} batches differ in shape (atoms × "
                f"neighbours: {shapes[0]} and {shapes[1]}, or in tiers)."
            )


def stacked_potentials(problems: Sequence[TrainingProblem]) -> Potential:
    """The potentials without their parameters: structure, scale, shift."""
    return stack([without_params(problem.potential) for problem in problems])


def stacked_states(problems: Sequence[TrainingProblem], settings: TrainingSettings = DEFAULT_SETTINGS) -> TrainState:
    """The states before the first step of the optimiser that the settings of all of them name."""
    choice = settings.optimizer.choice()
    return jax.tree.map(_stack, *(initial_state(problem.potential, choice) for problem in problems))


def stacked_validation(problems: Sequence[TrainingProblem], settings: Sequence[TrainingSettings]) -> Objective:
    """What is measured on validation samples."""
    return jax.tree.map(_stack, *(problem.validated(mine) for problem, mine in zip(problems, settings, strict=True)))


def stacked_controls(problems: Sequence[TrainingProblem], settings: Sequence[TrainingSettings]) -> Controls:
    """The numbers of every step but the learning rate, which is 0."""

    def of_one(problem: TrainingProblem, mine: TrainingSettings) -> Controls:
        start = problem.potential.params
        rates = problem.rates
        if rates is None:
            rates = jax.tree.map(lambda leaf: 1.0, start)
        return Controls(
            learning_rate=0.0,
            weight_decay=mine.weight_decay,
            clip_norm=mine.clip_norm,
            ema_decay=mine.ema_decay,
            objective=problem.minimised(mine),
            rates=rates,
            l2_sp=problem.l2_sp,
            start=start,
            optimizer=mine.optimizer.choice(),
        )

    return jax.tree.map(_stack, *map(of_one, problems, settings))


def _stack(*leaves: Any) -> np.ndarray:
    """Leaves along a new first axis, broadcast against each other: a rate may be one number or one for each entry."""
    return np.stack(np.broadcast_arrays(*map(np.asarray, leaves)))


def _difference(one: Potential, other: Potential) -> str | None:
    """In what two potentials differ besides numbers."""
    if type(one) is not type(other):
        return f"kind ({type(one).__name__} and {type(other).__name__})"
    static = [field.name for field in dataclasses.fields(one) if not field.metadata.get("pytree_node", True)]  # pyright: ignore[reportArgumentType]
    for name in static:
        if getattr(one, name) != getattr(other, name):
            return f"{name} ({getattr(one, name)} and {getattr(other, name)})"
    if jax.tree.structure(one) != jax.tree.structure(other):
        return "structure"
    leaves = [jax.tree_util.tree_leaves_with_path(potential) for potential in (one, other)]
    for (path, mine), (_, others) in zip(*leaves, strict=True):
        if np.shape(mine) != np.shape(others):
            return f"the shape of {jax.tree_util.keystr(path)} ({np.shape(mine)} and {np.shape(others)})"
    return None


def _words(problems: Sequence[TrainingProblem], name: str, *models: int) -> str:
    chosen = [getattr(problems[model], name)._asdict() for model in models]
    return " and ".join(" + ".join(term for term, there in terms.items() if there) for terms in chosen)
