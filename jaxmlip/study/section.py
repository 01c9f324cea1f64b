"""What every part of a configuration has in common."""

import pydantic

from jaxmlip.training.strategies.base import Strategy


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the likely mend."""


class Section(pydantic.BaseModel):
    """Base of every part of a configuration: frozen, and unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def check_deployable(strategy: Strategy, teacher: str | None) -> None:
    """Raise ConfigError if what a strategy makes cannot be saved: a sum with a calculator of ASE."""
    if strategy.deploys_teacher and (teacher or "").startswith("ase:"):
        raise ConfigError(
            f"The strategy {strategy.called} adds its student to the teacher {teacher}, and no file can hold a "
            "calculator of ASE; choose baseline: student."
        )


def told_apart(strategies: list[Strategy]) -> list[Strategy]:
    """The strategies, whose names in results must differ.

    Raises:
        ValueError: if two are called the same.
    """
    names = [strategy.called for strategy in strategies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{' and '.join(twice)} is there more than once; give the variants a title each")
    return strategies
