"""Configuration of a learning curve: labelled files in, a grid of strategies, labels, sizes and seeds."""

from typing import Annotated, Literal

import pydantic
from ase.data import atomic_numbers

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.models import AnyModel
from jaxmlip.study.frames import FileData
from jaxmlip.study.schedule import Schedule
from jaxmlip.study.section import Section, told_apart
from jaxmlip.study.workers import WORKERS, Workers
from jaxmlip.training.labels import Labels
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import AnyStrategy


class Foundation(Section):
    """Where the foundation comes from: distilled from low-fidelity labels, or made elsewhere."""

    potential: str | None = pydantic.Field(
        default=None, description="file of a student that is there already; nothing else of this section counts then"
    )
    data: list[FileData] = pydantic.Field(default=[], description="low-fidelity labels to distil")
    validation_fraction: float = pydantic.Field(
        default=0.02, gt=0, lt=1, description="share of these frames that decides which parameters are kept"
    )
    references: dict[str, float] | None = pydantic.Field(
        default=None, description="elemental reference energies of the low fidelity, eV; fitted if there are none"
    )
    student: AnyModel = Equivariant()
    training: Schedule = Schedule(steps=12000, validations=20)

    @pydantic.field_validator("references")
    @classmethod
    def _are_elements(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        unknown = [symbol for symbol in value or {} if symbol not in atomic_numbers]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no symbol of an element")
        return value

    @pydantic.model_validator(mode="after")
    def _comes_from_somewhere(self) -> "Foundation":
        if self.potential is None and not self.data:
            raise ValueError("there is neither a potential nor data to distil one from; give either")
        return self


Count = Annotated[int, pydantic.Field(ge=1)]
Seed = Annotated[int, pydantic.Field(ge=0)]


class LearningCurve(Section):
    """How errors fall with the number of accurate labels, for every strategy and both sets of labels."""

    study: Literal["learning_curve"] = "learning_curve"
    name: str = pydantic.Field(default="curve", pattern=r"^[\w.-]+$", description="results go to runs/<name>/")
    foundation: Foundation
    high: FileData = pydantic.Field(description="high-fidelity labels; a run trains on the first N of these frames")
    validation: FileData = pydantic.Field(description="high-fidelity frames that decide which parameters are kept")
    test: FileData = pydantic.Field(description="high-fidelity frames on which errors are measured, and nothing else")
    replay: list[FileData] = pydantic.Field(
        default=[], description="low-fidelity frames for strategies that replay them, or compare with them"
    )
    sizes: list[Count] = pydantic.Field(default=[50, 100, 200, 400], min_length=1, description="training set sizes N")
    strategies: list[AnyStrategy] = pydantic.Field(
        default=[Direct(), Differential(), SingleFidelity(), MultiFidelity()],
        min_length=1,
        description="ways to lift the foundation",
    )
    labels: list[Labels] = pydantic.Field(
        default=["energy_forces", "energy"], min_length=1, description="accurate labels that training may see"
    )
    seeds: list[Seed] = pydantic.Field(
        default=[0, 1, 2], min_length=1, description="of new parameters, order of batches and choice of replay"
    )
    training: Schedule = Schedule()
    stack_seeds: bool | None = pydantic.Field(
        default=None,
        description="train the seeds of an arm as one program where their shapes allow it; by default on accelerators, "
        "without workers",
    )
    workers: Workers | None = WORKERS

    @pydantic.field_validator("strategies")
    @classmethod
    def _are_told_apart(cls, value: list[AnyStrategy]) -> list[AnyStrategy]:
        told_apart([*value])
        return value

    @pydantic.model_validator(mode="after")
    def _has_runs(self) -> "LearningCurve":
        if not any(set(self.labels) & set(strategy.sees) for strategy in self.strategies):
            wanted = sorted({labels for strategy in self.strategies for labels in strategy.sees})
            raise ValueError(
                f"{', '.join(strategy.called for strategy in self.strategies)}: these strategies learn from "
                f"{' or '.join(wanted)} alone, which is not in labels; add it"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _are_stacked_or_shared(self) -> "LearningCurve":
        if self.stack_seeds and self.workers is not None:
            raise ValueError("stack_seeds trains seeds as one program and workers one by one; leave either out")
        return self

    @pydantic.field_validator("sizes", "labels", "seeds")
    @classmethod
    def _occur_once(cls, value: list) -> list:
        if len(set(value)) < len(value):
            raise ValueError("the same entry is there more than once")
        return value
