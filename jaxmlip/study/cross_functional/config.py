"""Configuration of the study across functionals: levels of theory, structures, potentials, and how they are lifted."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from jaxmlip.potentials.chgnet import CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.models import AnyModel
from jaxmlip.study.schedule import Schedule
from jaxmlip.study.section import Section
from jaxmlip.study.workers import WORKERS, Workers

Method = Literal["scratch", "source_trainable", "source_frozen", "target", "residual"]

METHODS: tuple[Method, ...] = ("scratch", "source_trainable", "source_frozen", "target", "residual")
"""From scratch with the target's references; pretrained, with references of the source (trained or frozen), of the
target, or moved by what the source's potential lacks."""

Title = Annotated[str, pydantic.Field(pattern=r"^\w+$")]
Count = Annotated[int, pydantic.Field(ge=1)]
Seed = Annotated[int, pydantic.Field(ge=0)]


class Structures(Section):
    """Crystals that both teachers label; see `jaxmlip.many_crystals`."""

    number: int = pydantic.Field(default=300, ge=20, description="of structures")
    elements: list[str] | None = pydantic.Field(
        default=None, description="symbols; null: all for which both teachers have references"
    )
    prototypes: list[str] | None = pydantic.Field(default=None, description="structure types; null: all")
    volume_spread: float = pydantic.Field(default=0.1, description="volumes are changed by up to this share")
    max_strain: float = pydantic.Field(default=0.04, description="largest component of the strain")
    max_rattle_A: float = pydantic.Field(default=0.15, description="largest standard deviation of displacements, Å")


class Files(Section):
    """Labels that are there, instead of teachers: stores, extended XYZ, or JSON of the MPtrj or MatPES layout."""

    source: Path = pydantic.Field(description="structures with labels of the cheap level")
    target: Path = pydantic.Field(description="structures with labels of the accurate level")
    source_energy_key: str | None = pydantic.Field(default=None, description="null: the usual one of the layout")
    target_energy_key: str | None = pydantic.Field(default=None, description="likewise")
    source_atoms: Path | None = pydantic.Field(
        default=None, description="isolated atoms (MatPES layout) as elemental references; null: least squares"
    )
    target_atoms: Path | None = pydantic.Field(default=None, description="likewise")
    number: int | None = pydantic.Field(
        default=None, ge=20, description="most structures of each level, those with both levels first; null: all"
    )


class CrossFunctional(Section):
    """What a potential of one functional is worth for another: energy scales, references, scaling, both levels."""

    study: Literal["cross_functional"] = "cross_functional"
    name: str = pydantic.Field(default="cross", pattern=r"^[\w.-]+$", description="results go to runs/<name>/")
    seed: int = pydantic.Field(default=0, ge=0, description="of structures and splits")
    source: str = pydantic.Field(default="chgnet:gga", description="cheap level: name or path of a potential")
    target: str = pydantic.Field(default="chgnet:r2scan", description="accurate level: name or path of a potential")
    files: Files | None = pydantic.Field(
        default=None, description="files of labels instead of the two teachers and of structures"
    )
    structures: Structures = Structures()
    validation_fraction: float = pydantic.Field(default=0.15, gt=0, lt=0.5, description="of compositions")
    test_fraction: float = pydantic.Field(default=0.2, gt=0, lt=0.5, description="of compositions")
    architectures: dict[Title, AnyModel] = pydantic.Field(
        default={
            "student": Equivariant(channels=32, l_max=2),
            "nequip_like": Equivariant(channels=32, l_max=2, correlation=1, message_l=1, layers=3),
            "chgnet": CHGNetModel(),
        },
        min_length=1,
        description="what is trained, by a name",
    )
    methods: list[Method] = pydantic.Field(default=[*METHODS], min_length=1, description="ways to the target level")
    seeds: list[Seed] = pydantic.Field(
        default=[0, 1, 2], min_length=1, description="of parameters, batches and the choice of target structures"
    )
    sizes: list[Count] = pydantic.Field(
        default=[16, 32, 64, 128, 192],
        min_length=1,
        description="target structures to train on, ascending; methods are compared at the largest",
    )
    multi_fidelity_replay: float = pydantic.Field(
        default=1.0,
        ge=0,
        description="source structures replayed for each target structure, in potentials with a readout for each "
        "level; 0: none are trained",
    )
    reverse: bool = pydantic.Field(default=True, description="also from the target to the source, as a control")
    pretraining: Schedule = pydantic.Field(default=Schedule(), description="on all source labels")
    finetuning: Schedule = pydantic.Field(default=Schedule(), description="on target labels, all methods alike")
    workers: Workers | None = WORKERS

    @pydantic.field_validator("seeds", "methods", "sizes")
    @classmethod
    def _occur_once(cls, value: list) -> list:
        if len(set(value)) < len(value):
            raise ValueError("the same entry is there more than once")
        return value

    @pydantic.field_validator("sizes")
    @classmethod
    def _ascend(cls, value: list[int]) -> list[int]:
        return sorted(value)

    @pydantic.model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "CrossFunctional":
        share = 1 - self.validation_fraction - self.test_fraction
        if share < 0.2:
            raise ValueError(
                f"validation_fraction and test_fraction leave {share:.0%} of the structures for training; lower them"
            )
        return self
