"""The strategies by their names, and how configurations spell them."""

import functools
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union

import pydantic
from pydantic_core import core_schema

from jaxmlip.registry import Registry
from jaxmlip.training.strategies.base import Strategy

Class = TypeVar("Class", bound=type[Strategy])

_HERE = "jaxmlip.training.strategies"
STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy",
    "jaxmlip.strategies",
    {
        "direct": f"{_HERE}.fresh",
        "differential": f"{_HERE}.fresh",
        "single_fidelity": f"{_HERE}.continued",
        "multi_fidelity": f"{_HERE}.multi_fidelity",
        "tangent_kernel": f"{_HERE}.tangent",
        "pair_difference": f"{_HERE}.pair_difference",
        "observable_tuning": "jaxmlip.validation.tuning",
    },
)
"""Strategies by name. Those of this package are imported when the first is asked for, others by an entry point of the
group `jaxmlip.strategies`."""


def register_strategy(cls: Class) -> Class:
    """Decorator of a class of strategies, which configurations, the command line and results then know by its name.

        @jm.register_strategy
        class Shifted(jm.Strategy):
            name: Literal["shifted"] = "shifted"

    Raises:
        ValueError: if the class has no field `name` with one value, or the name is another's.
    """
    field = cls.model_fields["name"]
    if field.annotation != Literal[field.default] or not field.default:
        raise ValueError(
            f'{cls.__name__} has no name to be registered by; give it a field name: Literal["its_name"] = "its_name".'
        )
    STRATEGIES.register(field.default, cls, cls)
    return cls


class _FromRegistry:
    """How pydantic reads a strategy: by the registry as it is when a configuration is checked."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_checked)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        known = tuple(STRATEGIES.everything().items())
        names = Literal[tuple(name for name, _ in known)]
        either: Any = Union[names, _union(tuple(cls for _, cls in known))]  # noqa: UP007 (its members are computed)
        return handler(pydantic.TypeAdapter[Any](either).core_schema)


AnyStrategy: TypeAlias = Annotated[Strategy, _FromRegistry()]
"""A strategy as configuration spells it: `{name: multi_fidelity, replay: 0.5}`, or its name alone."""


def _checked(value: Any) -> Strategy:
    if isinstance(value, Strategy):
        return value
    given = {"name": value} if isinstance(value, str) else value
    STRATEGIES.find(given.get("name") if isinstance(given, dict) else None)  # imports those of its package
    return _adapter(tuple(STRATEGIES.ours().values())).validate_python(given)


def _union(classes: tuple[type[Strategy], ...]) -> Any:
    return Annotated[Union[classes], pydantic.Field(discriminator="name")]  # noqa: UP007


@functools.cache
def _adapter(classes: tuple[type[Strategy], ...]) -> Any:
    return pydantic.TypeAdapter(_union(classes))
