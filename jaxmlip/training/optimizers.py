"""Optimisers of optax by their names, as configurations spell them: `optimizer: {name: lion, b1: 0.95}`."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pydantic

Choice: TypeAlias = tuple[str, tuple[tuple[str, Any], ...]]
"""Name and keyword arguments of an optimiser; it is hashed, for it decides the compiled step."""

OWN = ("learning_rate", "weight_decay", "adam_weight_decay")
"""Arguments that are settings of the training: the schedule's rate, and decoupled weight decay of any optimiser."""


class Optimizer(pydantic.BaseModel):
    """What turns gradients into updates: a function of optax (or optax.contrib) by its name, and arguments of it.

    Any that takes a learning rate and gives a gradient transformation which asks for gradients and parameters alone:
    adamw, adam, sgd, lion, muon, adabelief … A function of one's own is named `package.module:function`.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str = pydantic.Field(default="adamw", description="of the function; its arguments stand beside it")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _is_known(self) -> "Optimizer":
        if self.choice() != DEFAULT_CHOICE:
            check(self.choice())
        return self

    def choice(self) -> Choice:
        """Name and arguments."""
        return self.name, tuple(sorted((name, _tuples(value)) for name, value in (self.model_extra or {}).items()))


DEFAULT_CHOICE: Choice = ("adamw", ())


def transformation(choice: Choice, learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    """The optimiser; rate and decay may be traced.

    Decay is decoupled (Loshchilov and Hutter, ICLR 2019), and passed to the function where it takes one.
    """
    name, arguments = choice
    make = _function(name)
    takes = inspect.signature(make).parameters
    decays = {argument: weight_decay for argument in OWN[1:] if argument in takes}
    made = make(learning_rate=learning_rate, **decays, **dict(arguments))
    return made if decays else optax.chain(made, optax.add_decayed_weights(-learning_rate * weight_decay))


@functools.cache
def check(choice: Choice) -> None:
    """Try an optimiser on a matrix and a vector, without computing.

    Raises:
        ValueError: if there is none of that name, it has no such arguments, or it does not work as the trainer asks.
    """
    name, arguments = choice
    takes = inspect.signature(_function(name)).parameters
    for argument, _ in arguments:
        if argument in OWN:
            raise ValueError(f"{argument} is a setting of the training, not of the optimizer {name}; set it there.")
        if argument not in takes:
            close = difflib.get_close_matches(argument, takes, n=1)
            others = [other for other in takes if other not in OWN]
            known = f"did you mean {close[0]}?" if close else f"its arguments are {', '.join(others)}."
            raise ValueError(f"The optimizer {name} has no argument {argument}; {known}")
    toy = {"matrix": jnp.ones((4, 3)), "vector": jnp.ones(3)}

    def one_step(params: Any) -> Any:
        made = transformation(choice, 0.01, 0.0)
        state = made.init(params)
        return state, made.update(params, state, params)

    try:
        state, _ = jax.eval_shape(one_step, toy)
    except Exception as error:  # functions of optax raise anything when their arguments make no sense
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"The optimizer {name} does not work with gradients alone: {reason}.") from error
    nodes = jax.tree.leaves(state, is_leaf=_is_schedule_free)
    if any(map(_is_schedule_free, nodes)):
        raise ValueError(
            f"The parameters that {name} is after are not those it moves, but an average in its state, which the "
            "trainer does not look for; choose another optimizer."
        )


def _function(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function of optax, of its contrib, or of a module of one's own."""
    module, colon, function = name.partition(":")
    if colon:
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"The optimizer {name} cannot be imported ({error}).") from None
    known = _known()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]}?" if close else f"optax has {', '.join(sorted(known))}."
        raise ValueError(f"There is no optimizer {name!r}; {meant}")
    return known[name]


@functools.cache
def _known() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Functions of optax with a learning rate; those of optax itself before those of its contrib."""
    found = {}
    for module in (optax.contrib, optax):
        for name, member in vars(module).items():
            if inspect.isfunction(member) and "learning_rate" in inspect.signature(member).parameters:
                found[name] = member
    return {name: member for name, member in found.items() if not name.startswith(("_", "scale_by_"))}


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
